"""Scores of further heads against plain numpy; what is not known or not said."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kymo.models.scores import HeldHead, HeldOut, score_line, score_numbers
from kymo.models.training.record import RunRecord

numbers = st.floats(-1e4, 1e4, allow_nan=False)


@given(st.lists(st.tuples(st.sampled_from("abc"), numbers, numbers | st.just(math.nan)), min_size=1, max_size=30))
def test_errors_of_numbers(found: list[tuple[str, float, float]]) -> None:
    scores = score_numbers(found)
    kept = [row for row in found if not math.isnan(row[2])]
    sessions = sorted({s for s, *_ in kept})
    assert scores["unclassified"] == len({s for s, *_ in found}) - len(sessions)
    assert (scores["n"], scores["windows"]) == (len(sessions), len(kept))
    means = [np.mean([row[1:] for row in kept if row[0] == s], axis=0) for s in sessions]
    for prefix, pairs in (("", means), ("window_", [row[1:] for row in kept])):
        if not pairs:
            assert [scores[prefix + name] for name in ("mae", "rmse", "r2")] == [None, None, None]
            continue
        truth, said = np.array(pairs, float).T
        assert scores[f"{prefix}mae"] == pytest.approx(np.mean(np.abs(said - truth)))
        assert scores[f"{prefix}rmse"] == pytest.approx(np.sqrt(np.mean((said - truth) ** 2)))
        if np.ptp(truth) > 1e-3:
            wanted = 1 - np.sum((said - truth) ** 2) / (np.var(truth) * len(truth))
            assert scores[f"{prefix}r2"] == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_r2_by_hand() -> None:
    scores = score_numbers([("a", 1.0, 1.0), ("b", 2.0, 2.0), ("c", 3.0, 5.0)])
    assert (scores["mae"], scores["rmse"], scores["r2"]) == pytest.approx((2 / 3, math.sqrt(4 / 3), 1 - 4 / 2))
    same = score_numbers([("a", 3000.1, 3000.0), ("a", 3000.1, 3100.0), ("b", 3000.1, 2900.0)], without=2)
    assert same["r2"] is None  # all truths are equal
    assert same["mae"] == pytest.approx((49.9 + 100.1) / 2)
    assert same["unclassified"] == 2


def test_only_known_truths_count() -> None:
    truth = np.array([0, -1, 1, 1])
    said = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3]])
    scores = HeldHead("surface", ["road", "track"], truth, said).scores(["a", "a", "b", "c"], ["road"])
    assert (scores["windows"], scores["window_accuracy"]) == (3, pytest.approx(2 / 3))
    assert (scores["n"], scores["accuracy"], scores["unclassified"]) == (4, 0.5, 1)
    pace = HeldHead("pace", [], np.array([1.0, np.nan, 3.0, 4.0]), np.array([2.0, 9.0, np.nan, 4.0]))
    scores = pace.scores(["a", "a", "b", "c"])
    assert (scores["n"], scores["windows"], scores["mae"], scores["unclassified"]) == (2, 2, 0.5, 1)


def test_a_head_without_labels_has_no_figures() -> None:
    unknown = HeldHead("surface", ["road", "track"], np.array([-1]), np.array([[0.5, 0.5]]))
    number = HeldHead("pace", [], np.array([np.nan]), np.array([1.0]))
    for head in (unknown, number):
        scores = head.scores(["a"])
        assert scores == {"n": 0, "windows": 0}
        assert score_line(head.name, scores) == f"{head.name}: no labels"


def test_windows_judged_one_by_one_become_columns() -> None:
    rows = [
        {"surface": ("road", {"road": 0.6, "track": 0.4}), "pace": (None, 2.0)},
        {"surface": ("sand", {"road": 0.1, "track": 0.9}), "pace": (3.0, math.nan)},
        {"surface": (None, {"road": 0.5, "track": 0.5}), "pace": (4.0, 5.0)},
    ]
    surface, pace = (HeldHead.of(name, labels, rows) for name, labels in (("surface", ("road", "track")), ("pace", ())))
    assert (surface.labels, surface.truth.tolist()) == (["road", "track", "sand"], [0, 2, -1])
    assert surface.said.tolist() == [[0.6, 0.4, 0.0], [0.1, 0.9, 0.0], [0.5, 0.5, 0.0]]
    np.testing.assert_array_equal(pace.truth, [np.nan, 3.0, 4.0])
    np.testing.assert_array_equal(pace.said, [2.0, np.nan, 5.0])
    assert surface.scores(["a", "b", "c"])["window_accuracy"] == 0.5  # a class that the model does not know is an error
    held = HeldOut(["x"], np.zeros(3, np.int64), np.ones((3, 1)), ["a"] * 3, [""] * 3, np.arange(3), [surface, pace])
    back = RunRecord.from_json(RunRecord("r", held_out=held).to_json()).held_out
    for one, other in zip(held.heads, back.heads, strict=True):
        assert (one.name, one.labels, one.truth.dtype) == (other.name, other.labels, other.truth.dtype)
        np.testing.assert_array_equal(one.truth, other.truth)
        np.testing.assert_array_equal(one.said, other.said)
