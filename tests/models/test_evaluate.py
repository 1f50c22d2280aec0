"""Scores: a bundle over recordings, of classes and of further heads."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_pages import read_record
from tiny_models import LABELS, RECIPE, recipe, recording, tiny_bundle
from verbs import invoke

from kymo.models.bundle import load_bundle
from kymo.models.data.dataset import read_dataset
from kymo.models.data.samples import split_chain
from kymo.models.evaluate import evaluate
from kymo.models.predict import Classifier
from kymo.models.registry import SHIPPED
from kymo.models.run import run
from kymo.models.scores import (
    UNCLASSIFIED,
    HeldHead,
    HeldOut,
    confusion,
    interval_line,
    score,
    score_line,
    score_numbers,
)
from kymo.models.training.record import RunRecord, cross_validation
from kymo.streams.chunk import Header, signal_format
from kymo.streams.errors import BundleError, TrainingError
from kymo.streams.events import Event
from kymo.streams.labels.labels import interval
from kymo.streams.recording import Recording, StreamData

CLASSES = ("a", "b", "c", "d")


def scores_of(pairs: Sequence[tuple[str, str]], labels: Sequence[str] = CLASSES) -> dict[str, Any]:
    """Scores of truths and answers."""
    number = {label: i for i, label in enumerate(labels)} | {UNCLASSIFIED: -1}
    truths, answers = ([number[name] for name in side] for side in zip(*pairs, strict=True))
    return score(confusion(truths, answers, len(labels)), labels)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(CLASSES), st.sampled_from(CLASSES)), min_size=1, max_size=60))
def test_scores_equal_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    truth, answer = zip(*pairs, strict=True)
    found = scores_of(pairs)
    names = [name for name in CLASSES if name in truth or name in answer]
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, answer))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(truth, answer, average="macro", zero_division=0))
    means = metrics.precision_recall_fscore_support(truth, answer, average="macro", zero_division=0)
    assert (found["macro_precision"], found["macro_recall"]) == (pytest.approx(means[0]), pytest.approx(means[1]))
    rows = metrics.precision_recall_fscore_support(truth, answer, labels=names, zero_division=0)
    for name, precision, recall, f1, n in zip(names, *rows, strict=True):
        expected = {"precision": precision, "recall": recall, "f1": f1, "n": n}
        assert found["per_class"][name] == pytest.approx(expected)
    matrix = metrics.confusion_matrix(truth, answer, labels=names)
    assert [list(row.values()) for row in found["confusion"].values()] == matrix.tolist()
    assert (list(found["confusion"]), found["n"], found["unclassified"]) == (names, len(pairs), 0)


def test_what_was_not_classified_is_an_error() -> None:
    found = scores_of([("a", "a"), ("a", "unclassified"), ("b", "b"), ("b", "b")])
    assert (found["accuracy"], found["n"], found["unclassified"]) == (0.75, 4, 1)
    assert found["per_class"]["a"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "n": 2}
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["confusion"] == {
        "a": {"a": 1, "b": 0, "unclassified": 1},
        "b": {"a": 0, "b": 2, "unclassified": 0},
    }


def test_a_recording_counts_by_the_mean_of_its_windows() -> None:
    windows = [
        ("one", "a", (0.9, 0.1)),
        ("one", "a", (0.4, 0.6)),
        ("one", "a", (0.4, 0.6)),
        ("two", "b", (0.8, 0.2)),
        ("two", "b", (0.4, 0.6)),
    ]
    sessions, truths, said = map(list, zip(*windows, strict=True))
    found = HeldOut.of(("a", "b"), truths, said, sessions=sessions, subjects=[""] * 5).scores()
    assert found["confusion"] == {"a": {"a": 1, "b": 0}, "b": {"a": 1, "b": 0}}
    assert (found["accuracy"], found["n"], found["window_accuracy"], found["windows"]) == (0.5, 2, 0.4, 5)


def test_evaluates_recordings(tmp_path: Path) -> None:
    found = evaluate(
        recipe(),
        tiny_bundle(tmp_path / "b"),
        [
            recording("right", [8] * 10, [(0, 1, "high")]),
            recording("wrong", [-8] * 10, [(0, 1, "high")]),
            recording("two classes", [8] * 6 + [-8] * 6, [(0, 0.6, "high"), (0.6, 1.2, "low")]),
            recording("too short", [8] * 3, [(0, 0.3, "low")]),
            recording("unlabelled", [8] * 10, []),
            recording("undecided", [0] * 4, [(0, 1, "middle")]),
        ],
    )
    assert found["confusion"] == {
        "low": {"low": 1, "middle": 0, "high": 0, "unclassified": 1},
        "middle": {"low": 1, "middle": 0, "high": 0, "unclassified": 0},
        "high": {"low": 1, "middle": 0, "high": 2, "unclassified": 0},
    }
    assert (found["n"], found["unclassified"], found["accuracy"]) == (6, 1, 0.5)
    assert (found["windows"], found["unknown_windows"]) == (14, 2)  # 4 + 4 + 5 + 1; at the border, and undecided
    assert found["bundle"].startswith("tiny@")
    assert set(found["per_class"]) == set(LABELS)


def test_of_several_streams_all_take_the_raw_one_that_begins_first(tmp_path: Path) -> None:
    def stream(place: str, begin_s: int, level: float, chain: str = "") -> StreamData:
        header = Header("s", begin_s * 10**9, signal_format(f"imu.{place}", ("x", "y"), Fraction(10)), chain)
        return StreamData(header, np.full((40, 2), level, np.float32))

    streams = [stream("derived", 0, 5, "0" * 16), stream("late", 2, 5), stream("early", 1, -5)]
    labels = [interval(session="s", set="label", start_ns=0, end_ns=10 * 10**9, label="low")]
    one, bundle = Recording("s", streams, labels, path="s"), tiny_bundle(tmp_path / "b")
    events = list(run(recipe(), [one], Classifier.for_recipe(bundle, recipe())))
    judged: list[Event] = []
    evaluate(recipe(), bundle, [one], lambda window: judged.append(window.event))
    learned = read_dataset([one], recipe(), split_chain(recipe().chain)[0]).examples
    assert {event.stream for event in events} == {"imu.early"}
    assert [(e.id, e.label) for e in events] == [(e.id, e.label) for e in judged]
    assert [e.start_ns for e in events] == [e.window.start_ns for e in learned]
    assert {e.window.header.format.stream for e in learned} == {"imu.early"}


def test_without_labels_there_is_nothing_to_score(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b")
    with pytest.raises(TrainingError, match=r"no recording has a label .* check \[labels\]"):
        evaluate(recipe(), bundle, [recording("s", [1] * 10, [])])
    with pytest.raises(BundleError, match=r"factor is 0\.5 in the bundle"):
        evaluate(recipe(RECIPE.replace("0.5", "0.25", 1)), bundle, [])


def test_the_shipped_bundle(tmp_path: Path) -> None:
    if importlib.util.find_spec("aeon") is None:
        pytest.skip("the recordings come with the package aeon, which is not installed")
    bundle = load_bundle("basicmotions")
    assert bundle.path == SHIPPED / "basicmotions"
    assert sum(file.stat().st_size for file in bundle.path.rglob("*") if file.is_file()) < 1_000_000
    assert bundle.manifest["lineage"]["command"] == "kymo train basicmotions --data basicmotions:train --seed 0"
    assert bundle.batch == Classifier(bundle, "basicmotions").model.rule == "any"
    done = invoke("evaluate", "basicmotions", "--data", "basicmotions:test", "--json")
    scores = json.loads(done.stdout)
    assert (scores["accuracy"], scores["macro_f1"], scores["n"], scores["unclassified"]) == (1.0, 1.0, 40, 0)
    assert scores["window_accuracy"] > 0.98
    assert set(scores) >= {"per_class", "confusion", "bundle"}


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
    back = read_record(RunRecord("r", held_out=held).to_json()).held_out
    for one, other in zip(held.heads, back.heads, strict=True):
        assert (one.name, one.labels, one.truth.dtype) == (other.name, other.labels, other.truth.dtype)
        np.testing.assert_array_equal(one.truth, other.truth)
        np.testing.assert_array_equal(one.said, other.said)


def test_lines_for_people() -> None:
    one = {"mae": 2.5, "rmse": 3.25, "r2": None, "n": 1, "unclassified": 0, "window_mae": 4.0, "windows": 9}
    expected = "score_10k: 1 recordings: mean error 2.5, root mean square 3.25; 9 windows: mean error 4"
    assert score_line("score_10k", one) == expected
    few = {"kind": "session", "level": 0.9, "of": 2}
    assert interval_line(few) == "2 sessions are too few for an interval; 4 would do"
    assert cross_validation({"kind": "subject", "folds": [{}] * 3}) == "a cross-validation of 3 folds by subject"
