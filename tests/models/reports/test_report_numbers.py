"""Numbers of a report, against scikit-learn, scipy and loops; intervals over people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from kymo.models.reports.numbers import (
    NO_ANSWER,
    answers_of,
    by_group,
    calibration,
    class_rows,
    most_confused,
    wilson,
    worst,
)
from kymo.models.scores import HeldOut, Tally, confusion
from kymo.models.training.train import unfit

CLASSES = 4


@st.composite
def judged(draw: st.DrawFn) -> tuple[Any, Any]:
    """Truth (n,) and probabilities (n, 4); some fall on the edges of bins, some are not finite or all 0."""
    n = draw(st.integers(1, 40))
    truth = np.array(draw(st.lists(st.integers(0, CLASSES - 1), min_size=n, max_size=n)), np.int64)
    edges = st.sampled_from(
        [[0.4, 0.3, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1], [0, 0, 1, 0], [0.25] * 4, [math.nan] * 4, [0.0] * 4]
    )
    drawn = st.lists(st.floats(0.01, 1), min_size=CLASSES, max_size=CLASSES).map(lambda row: np.array(row) / sum(row))
    return truth, np.array(draw(st.lists(st.one_of(edges, drawn), min_size=n, max_size=n)), np.float64)


def brute_force_error(truth: Any, probabilities: Any, bins: int) -> float:
    """Expected calibration error, window by window and bin by bin."""
    held: dict[int, list[tuple[float, bool]]] = {}
    for answer_is, row in zip(truth, probabilities, strict=True):
        if any(math.isnan(p) for p in row) or not any(row):
            continue
        answer = max(range(len(row)), key=lambda i: row[i])
        # Bin b is (b / bins, (b + 1) / bins]; its edges are the doubles nearest to them.
        place = next(b for b in range(bins) if row[answer] <= np.linspace(0, 1, bins + 1)[b + 1])
        held.setdefault(place, []).append((float(row[answer]), answer == answer_is))
    n = sum(map(len, held.values()))
    gaps = [abs(sum(p for p, _ in rows) - sum(right for _, right in rows)) for rows in held.values()]
    return sum(gaps) / n if n else math.nan


@settings(max_examples=60, deadline=None)
@given(judged(), st.sampled_from([1, 5, 10, 15]))
def test_calibration_error_equals_brute_force(drawn: tuple[Any, Any], bins: int) -> None:
    truth, probabilities = drawn
    found = calibration(truth, probabilities, bins)
    assert found.error == pytest.approx(brute_force_error(truth, probabilities, bins), abs=1e-12, nan_ok=True)
    assert found.count.sum() == sum(sum(row) > 0 for row in probabilities)  # NaN is not above 0
    there = found.count > 0
    assert (np.isnan(found.accuracy) == ~there).all()
    assert (found.confidence[there] <= found.edges[1:][there] + 1e-12).all()
    assert (found.confidence[there] >= found.edges[:-1][there] - 1e-12).all()


def test_calibration_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.65, 0.35]])
    found = calibration(np.array([0, 1, 1, 0]), probabilities)
    # (0.8, 0.9]: two with 0.9, one right; (0.7, 0.8]: one with 0.8, right; (0.6, 0.7]: one with 0.65, right.
    assert found.count.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 2, 0]
    assert found.error == pytest.approx((0.35 + 0.2 + 2 * 0.4) / 4)


@settings(max_examples=40, deadline=None)
@given(judged())
def test_classes_equal_scikit_learn(drawn: tuple[Any, Any]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    truth, probabilities = drawn
    answers = answers_of(probabilities)
    counts = confusion(truth, answers, CLASSES)
    named = np.where(answers == NO_ANSWER, CLASSES, answers)
    assert counts.tolist() == metrics.confusion_matrix(truth, named, labels=range(CLASSES + 1))[:CLASSES].tolist()
    expected = metrics.precision_recall_fscore_support(truth, named, labels=range(CLASSES), zero_division=np.nan)
    rows = class_rows(counts, list("abcd"))
    for i, name in enumerate("abcd"):
        if i not in truth and i not in named:
            assert name not in rows
            continue
        found = [rows[name][key] for key in ("precision", "recall", "f1", "n")]
        assert found == pytest.approx([column[i] for column in expected], nan_ok=True)


def test_answers() -> None:
    probabilities = np.array([[0.2, 0.8], [0.5, 0.5], [math.nan, 1.0], [math.inf, 0.0], [0.0, 0.0]])
    assert answers_of(probabilities).tolist() == [1, 0, NO_ANSWER, NO_ANSWER, NO_ANSWER]


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 7), (7, 7), (3, 7), (46, 50), (1, 1000), (999, 1000)])
def test_intervals_equal_scipy(right: int, n: int) -> None:
    expected = binomtest(right, n).proportion_ci(0.95, "wilson")
    assert wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_an_interval_of_nothing_is_none() -> None:
    assert all(map(math.isnan, wilson(0, 0)))


def tally_of(right: Sequence[int], answers: int) -> Tally:
    """People with so many right answers of so many, a recording each, classes by turns."""
    windows = []
    for person, count in enumerate(right):
        for i in range(answers):
            said = "ab"[i % 2] if i < count else "ba"[i % 2]
            windows.append((f"{person}/{i}", f"p{person}", "ab"[i % 2], [said == "a", said == "b"]))
    return tally(windows)


def tally(windows: Sequence[tuple[str, str, str, Sequence[float]]]) -> Tally:
    """Of windows: session, subject, truth and probabilities of each."""
    sessions, subjects, truths, said = map(list, zip(*windows, strict=True))
    return HeldOut.of(("a", "b"), truths, said, sessions=sessions, subjects=subjects).tally()


def test_three_people_have_no_interval_and_all_right_is_not_certain() -> None:
    assert tally_of([8, 8, 8], 8).intervals() == {"level": 0.9, "of": 3}
    few, many = (tally_of([8] * people, 8).intervals()["accuracy"] for people in (4, 40))
    assert 0.7 < few[0] < 0.9 < many[0] < many[1] == few[1] == 1


def test_people_who_differ_widen_it_and_more_windows_of_each_do_not_narrow_it() -> None:
    def width(right: Sequence[int], answers: int) -> float:
        low, high = tally_of(right, answers).intervals()["window_accuracy"]
        return float(high - low)

    alike, apart = [15, 15, 16, 14, 15, 15, 16, 14], [20, 10, 20, 10, 20, 10, 20, 10]
    assert width(apart, 20) > 1.3 * width(alike, 20)
    assert width([10 * n for n in apart], 200) > 0.95 * width(apart, 20)
    assert tally_of(apart, 20).intervals() == tally_of(apart[::-1], 20).intervals()


def test_nine_of_ten_intervals_hold_even_where_nearly_all_is_right() -> None:
    random = np.random.default_rng(0)
    for mean in (0.6, 0.85, 0.97):
        held = []
        for _ in range(150):
            shares = random.beta(mean * 6, (1 - mean) * 6, 10)
            low, high = tally_of(random.binomial(12, shares).tolist(), 12).intervals()["accuracy"]
            held.append(low <= mean <= high)
        assert np.mean(held) > 0.87


def test_guessing_is_not_beaten_by_luck_or_by_the_commonest() -> None:
    assert tally_of([9, 8, 9, 7, 8], 10).beats_guessing()
    assert not tally_of([6, 5, 6, 4, 6], 10).beats_guessing()
    assert not tally_of([5, 5], 10).beats_guessing()
    windows = [(f"{i}", f"p{i % 5}", "ab"[i % 10 == 0], (1.0, 0.0)) for i in range(100)]
    assert not tally(windows).beats_guessing()


def test_of_one_class_nothing_tells_whether_guessing_is_beaten() -> None:
    scores = tally([(f"{i}", f"p{i % 5}", "a", (1.0, 0.0)) for i in range(20)]).about_people(named=True)
    assert scores["beats_guessing"] is None
    assert not unfit({"accuracy": 1.0, **scores})


@pytest.mark.parametrize(("explained", "refused"), [((0.4, -3.0), False), ((-3.0, 0.0), True), ((None, -3.0), False)])
def test_numbers_no_better_than_their_mean_are_not_promoted(explained: Any, refused: bool) -> None:
    heads = {f"n{i}": {"r2": value, "n": 8} for i, value in enumerate(explained)}
    assert ("R2" in unfit({"n": 8, "heads": heads})) is refused


def test_groups_are_counted_worst_first() -> None:
    right = np.array([True, False, True, True, False])
    found = by_group(["p", "q", "p", "p", "q"], ["p1", "q1", "p1", "p2", "q1"], right)
    assert [(g.name, g.sessions, g.right, g.n) for g in found] == [("q", 1, 0, 2), ("p", 2, 3, 3)]
    assert found[1].interval == wilson(3, 3)


def test_the_worst_are_the_surest_of_the_wrong() -> None:
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.05, 0.95], [math.nan, 0.5], [0.1, 0.9], [0.9, 0.1]])
    truth = np.array([1, 1, 1, 0, 0, 1])
    assert worst(truth, probabilities, 3) == [0, 4, 5]
    assert worst(truth, probabilities, 9) == [0, 4, 5, 1]


def test_of_many_classes_the_most_confused_are_kept() -> None:
    counts = np.zeros((5, 6), np.int64)
    counts[0, 0], counts[1, 2], counts[2, 2], counts[4, 5] = 9, 3, 1, 2  # 3 never occurs; 4 is without an answer
    assert most_confused(counts, 5) == [0, 1, 2, 4]
    assert most_confused(counts, 2) == [1, 2]
