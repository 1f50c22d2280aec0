"""The gate lets pass what is better by more than chance, and nothing else."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from tiny_models import recipe, tiny_bundle

from kymo.models.data.splits import hold_out_by_name
from kymo.models.scores import score
from kymo.models.training.gate import MIN_OWNERS, compare, judge
from kymo.streams.chunk import Header, signal_format
from kymo.streams.errors import TrainingError
from kymo.streams.labels.labels import Label
from kymo.streams.recording import Recording, StreamData


def answers(right: str) -> dict[str, list[tuple[str, str]]]:
    """By session, an answer that is right (1) or wrong (0); truths alternate."""
    out = {}
    for i, mark in enumerate(right):
        truth, other = ("a", "b") if i % 2 else ("b", "a")
        out[f"s{i}"] = [(truth, truth if mark == "1" else other)]
    return out


def exact_interval(before: str, after: str) -> tuple[float, float]:
    """Ends of the bootstrap's 95 % interval from its exact distribution: the sum of n draws of wins, ties and losses."""
    n = len(before)
    differences = [int(b) - int(a) for a, b in zip(before, after, strict=True)]
    single = np.array([differences.count(d) for d in (-1, 0, 1)]) / n
    whole = np.ones(1)
    for _ in range(n):
        whole = np.convolve(whole, single)  # probabilities of -n … n
    below = np.cumsum(whole)
    return tuple(float(np.searchsorted(below, q) - n) / n for q in (0.025, 0.975))  # type: ignore[return-value]


CASES = [
    ("0000000011", "1111111111"),
    ("1111111111", "0000000011"),
    ("0101010101", "1010101010"),
    ("0000111111", "0001111111"),
    ("00000111111111111111", "11111111111111111111"),
    ("00011111111111111111", "11111111111111111111"),
    ("0" * 30 + "1" * 70, "1" * 20 + "0" * 10 + "1" * 65 + "0" * 5),
]


@pytest.mark.parametrize(("before", "after"), CASES)
def test_the_interval_is_that_of_the_exact_distribution(before: str, after: str) -> None:
    low, high = exact_interval(before, after)
    found = judge(answers(before), answers(after))
    step = 1.0001 / len(before)  # 10,000 draws place a quantile within one session
    assert abs(found.low - low) <= step
    assert abs(found.high - high) <= step
    assert found.champion == pytest.approx(before.count("1") / len(before))
    assert found.candidate == pytest.approx(after.count("1") / len(after))
    assert found.promote == (found.low > 0)
    back = judge(answers(after), answers(before))
    assert not (found.promote and back.promote)
    assert back.difference == pytest.approx(-found.difference)


def test_small_samples_by_enumeration() -> None:
    before, after = "001101", "111011"
    pairs = [(int(a), int(b)) for a, b in zip(before, after, strict=True)]
    differences = sorted(
        sum(pairs[i][1] - pairs[i][0] for i in drawn) / 6 for drawn in itertools.product(range(6), repeat=6)
    )
    found = judge(answers(before), answers(after))
    places = [math.ceil(q * len(differences)) - 1 for q in (0.025, 0.975)]
    assert [found.low, found.high] == pytest.approx([differences[i] for i in places], abs=1 / 6)


def test_ties_and_few_sessions_do_not_pass() -> None:
    same = judge(answers("0101010101"), answers("0101010101"))
    assert (same.promote, same.difference, same.low, same.high) == (False, 0, 0, 0)
    few = judge(answers("0" * (MIN_OWNERS - 1)), answers("1" * (MIN_OWNERS - 1)))
    assert (few.promote, few.low) == (False, 1)
    assert "too few to tell" in few.text
    assert judge(answers("0" * MIN_OWNERS), answers("1" * MIN_OWNERS)).promote
    with pytest.raises(TrainingError, match="expected the same ones"):
        judge(answers("01"), answers("011"))
    with pytest.raises(TrainingError, match="0 sessions"):
        judge({}, {})


def test_a_session_counts_once_however_many_windows_it_has() -> None:
    """Resampling is by session: where one session holds all the gain, nothing passes."""
    before = answers("1" * 20) | {"long": [("a", "b")] * 50}
    after = answers("1" * 20) | {"long": [("a", "a")] * 50}
    found = judge(before, after)
    assert found.difference > 0.5
    assert (found.promote, found.low) == (False, 0)


@pytest.mark.parametrize(
    ("people", "helped", "said"),
    [(1, 1, "fewer than 6 people"), (5, 5, "fewer than 6 people"), (8, 1, "not better"), (8, 8, "better by")],
)
def test_people_are_resampled_where_they_are_named(people: int, helped: int, said: str) -> None:
    """However many sessions each has: what helps one person says nothing of others."""
    subjects = {f"s{i}": f"p{i % people}" for i in range(10 * people)}
    before = answers("".join("01"[i % people >= helped or i < people] for i in range(10 * people)))
    verdict = judge(before, answers("1" * 10 * people), subjects=subjects)
    assert (verdict.promote, verdict.sessions) == (said == "better by", 10 * people)
    assert said in verdict.text


def test_equal_models_pass_as_rarely_as_they_should() -> None:
    """Two models that are right with the same probability: at most 1 in 20 passes, plus what 150 trials leave open."""
    random = np.random.default_rng(5)
    passed = 0
    for _ in range(150):
        pair = ["".join("01"[int(x)] for x in random.random(30) < 0.8) for _ in range(2)]
        passed += judge(answers(pair[0]), answers(pair[1])).promote
    assert stats.binomtest(passed, 150, 0.05, alternative="greater").pvalue > 0.01, passed


def test_macro_f1_is_that_of_the_scores() -> None:
    before, after = answers("0011010111"), answers("1111010111")
    found = judge(before, after, "macro_f1")
    for side, value in ((before, found.champion), (after, found.candidate)):
        assert value == pytest.approx(score([pair for pairs in side.values() for pair in pairs])["macro_f1"])
    assert "macro f1" in found.text.lower()


def recording(session: str, label: str) -> Recording:
    """2 s at 10 Hz whose channels are constant, one for each class."""
    level = {"low": (-4, 0), "middle": (0, 4), "high": (4, 0)}[label]
    data = np.tile(np.array(level, np.float32), (20, 1))
    header = Header(session, 0, signal_format("imu", ("x", "y"), 10))
    return Recording(
        session, [StreamData(header, data)], labels=[Label(session, session, "label", 0, 2 * 10**9, label)]
    )


RIGHT = np.array([[-1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])


def test_bundles_are_compared_on_recordings(tmp_path: Path) -> None:
    good, bad = tiny_bundle(tmp_path / "good", RIGHT), tiny_bundle(tmp_path / "bad", -RIGHT)
    recordings = [recording(f"s{i}", ("low", "middle", "high")[i % 3]) for i in range(9)]
    verdict = compare(bad, good, recordings, recipe())
    assert (verdict.promote, verdict.champion, verdict.candidate, verdict.sessions) == (True, 0, 1, 9)
    assert not compare(good, bad, recordings, recipe()).promote


def test_what_was_not_judged_in_full_is_not_promoted(tmp_path: Path) -> None:
    good, bad = tiny_bundle(tmp_path / "good", RIGHT), tiny_bundle(tmp_path / "bad", -RIGHT)
    verdict = compare(bad, good, [recording(f"s{i}", "high") for i in range(8)], recipe())
    assert (verdict.promote, verdict.champion, verdict.candidate) == (False, 0, 1)
    assert "not one held-out session is of low, middle" in verdict.text


def test_the_same_groups_are_held_out_every_time() -> None:
    groups = {f"s{i}": "ab"[i % 2] for i in range(400)}
    held = hold_out_by_name(groups)
    assert 60 < len(held) < 140
    more = groups | {f"t{i}": "a" for i in range(100)}
    assert {name for name in hold_out_by_name(more) if name in groups} == held
    assert hold_out_by_name({"one": "a", "other": "b"}) == set()  # nothing can be spared
    assert len(hold_out_by_name({"a1": "a", "a2": "a", "b1": "b", "b2": "b"})) == 2


def test_scores_say_what_they_do_not_say() -> None:
    found = score([("walk", "walk"), ("walk", "walk"), ("run", "walk")], ("run", "sit", "walk"))
    assert found["not_judged"] == ["sit"]
    assert found["commonest"] == {"label": "walk", "accuracy": 2 / 3}
    assert found["accuracy"] == found["commonest"]["accuracy"]
