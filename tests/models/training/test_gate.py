"""The gate lets pass what is better by more than chance, and nothing else; what a bundle has learned from is said."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archive_lab import BEGIN_MS, chunk_record, record, write_archive
from scipy import stats
from tiny_models import RECIPE, recipe, tiny_bundle
from verbs import invoke

from kymo.models.data.dataset import add_input, read_dataset, streams_of
from kymo.models.data.samples import split_chain
from kymo.models.data.splits import hold_out_by_name
from kymo.models.evaluate import judge_recordings
from kymo.models.scores import HeldOut
from kymo.models.training.gate import MIN_OWNERS, compare, judge
from kymo.models.training.record import knows, learned_from, name_digest, trained_on
from kymo.streams.chunk import Chunk, Header, signal_format
from kymo.streams.errors import TrainingError
from kymo.streams.labels.labels import Label
from kymo.streams.readers import read
from kymo.streams.recording import Recording, StreamData


def scores_of(pairs: list[tuple[str, str]], labels: tuple[str, ...] = ("a", "b")) -> dict[str, Any]:
    """Scores of recordings of one window each: truth and answer."""
    names, said = (
        [str(i) for i in range(len(pairs))],
        [[float(label == answer) for label in labels] for _, answer in pairs],
    )
    return HeldOut.of(labels, [t for t, _ in pairs], said, sessions=names, subjects=names).scores()


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
        assert value == pytest.approx(scores_of([pair for pairs in side.values() for pair in pairs])["macro_f1"])
    assert "macro f1" in found.text.lower()


def recording(session: str, label: str) -> Recording:
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
    found = scores_of([("walk", "walk"), ("walk", "walk"), ("run", "walk")], ("run", "sit", "walk"))
    assert found["not_judged"] == ["sit"]
    assert found["commonest"] == {"label": "walk", "accuracy": 2 / 3}
    assert found["accuracy"] == found["commonest"]["accuracy"]


def write_csv(path: Path, level: float, subject: str = "") -> None:
    head, cell = ("", "") if not subject else (",subject", f",{subject}")
    path.parent.mkdir(exist_ok=True)
    rows = [f"{i / 10:.1f},{level + i / 100:.2f},0.5,low{cell}" for i in range(20)]
    path.write_text("\n".join([f"t,x,y,label{head}", *rows]) + "\n")


def test_names_are_not_told_but_recognised(tmp_path: Path) -> None:
    for name, subject in (("a1", "ann"), ("a2", "ann"), ("b1", "ben")):
        write_csv(tmp_path / "data" / f"{name}.csv", 1.0, subject)
    dataset = read_dataset(read([tmp_path / "data"], recipe().read_options()), recipe(), split_chain(recipe().chain)[0])
    found = learned_from(dataset)
    assert [len(found["sessions"]), len(found["subjects"])] == [3, 2]
    assert not {"a1", "ann"} & set(json.dumps(found).split('"'))
    bundle = tiny_bundle(tmp_path / "bundle", lineage={"learned": found})
    assert [knows(bundle, name) for name in ("a1", "b1", "c1")] == [True, True, False]
    assert [knows(bundle, "a3", subject) for subject in ("ann", "cem", "")] == [True, False, False]
    assert knows(tiny_bundle(tmp_path / "older"), "a1") is None


def evaluated(folder: Path, *data: Path) -> tuple[dict[str, object], str]:
    (folder / "tiny.toml").write_text(RECIPE)
    words = [folder / "tiny.toml", "--bundle", folder / "bundle", "--data", *data]
    done, shown = (invoke("evaluate", *words, *more) for more in (["--json"], []))
    assert done.stderr == ""
    return json.loads(done.stdout), shown.stderr


def test_evaluate_says_what_the_bundle_was_trained_on(tmp_path: Path) -> None:
    for n in range(4):
        write_csv(tmp_path / "data" / f"r{n}.csv", float(n))
    inputs: dict[str, dict[str, object]] = {}
    for one in list(read([tmp_path / "data"], recipe().read_options()))[:2]:
        streams = streams_of(one, recipe())
        assert streams
        add_input(inputs, one, streams)
    tiny_bundle(tmp_path / "bundle", lineage={"inputs": [{"path": path, **found} for path, found in inputs.items()]})
    scores, said = evaluated(tmp_path, tmp_path / "data")
    assert scores["trained_on"] == 2
    assert said.startswith("note: tiny@")
    assert said.endswith("was trained on 2 of these 4 recordings: the scores do not say how it does on new ones\n")
    (tmp_path / "data" / "r0.csv").rename(tmp_path / "elsewhere.csv")
    scores, _ = evaluated(tmp_path, tmp_path / "elsewhere.csv")
    assert scores["trained_on"] == 0  # a session of another name is another one
    write_csv(tmp_path / "other" / "r1.csv", 7.0)  # another recording of the same name
    assert evaluated(tmp_path, tmp_path / "other")[0]["trained_on"] == 0
    scores, said = evaluated(tmp_path, tmp_path / "data" / "r3.csv")
    assert (scores["trained_on"], said) == (0, "")


@pytest.mark.parametrize("learned", [{}, {"learned": {"sessions": [name_digest("s0")], "subjects": []}}])
def test_an_archive_that_has_grown_is_told_by_its_sessions(tmp_path: Path, learned: dict[str, object]) -> None:
    begin, parts = BEGIN_MS * 10**6, []
    import numpy as np

    for i in range(2):
        made = Chunk(Header(f"s{i}", begin, signal_format("imu", ("x", "y"), 10)), 0, np.zeros((20, 2), np.float32))
        label = {"id": "1", "session": f"s{i}", "set": "label", "start_ns": begin, "end_ns": begin + 2 * 10**9}
        value = json.dumps({**label, "label": "low", "author": "a", "created_ns": begin}).encode()
        parts.append([chunk_record(i, made), record("labels", i, f"s{i}", value)])
    write_archive(tmp_path / "archive", parts)
    lineage = {"inputs": [{"path": str(tmp_path / "archive"), "recordings": 1, "sha256": "of before"}], **learned}
    bundle = tiny_bundle(tmp_path / "bundle", lineage=lineage)
    judgement = judge_recordings(recipe(), bundle, read([tmp_path / "archive"], recipe().read_options()))
    assert judgement.sessions == {str(tmp_path / "archive"): ["s0", "s1"]}
    assert trained_on(judgement) == len(learned)
    assert [facts["recordings"] for facts in judgement.inputs.values()] == [2]
