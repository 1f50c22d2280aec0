"""Pooling over time: against brute force, causal, and the same wherever it was stored and gone on from."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import HMM, RECIPE, recipe, recording, tiny_bundle, window

from kymo.models.bundle import load_bundle
from kymo.models.data.examples import Example
from kymo.models.evaluate import evaluate
from kymo.models.pooling import Pool, State, learn_hmm, pool_for, pool_windows
from kymo.models.predict import Classifier
from kymo.models.run import run
from kymo.models.training.candidates import pool_of
from kymo.streams.errors import BundleError, FormatError, RecipeError

ROWS = st.lists(
    st.lists(st.floats(0.01, 1), min_size=3, max_size=3).map(lambda row: [p / sum(row) for p in row]),
    min_size=1,
    max_size=6,
)


def through(pool: Pool, rows: list[list[float]], state: State | None = None) -> tuple[State, list[list[float]]]:
    state, out = state or [], []
    for row in rows:
        state, pooled = pool.step(state, row)
        out.append(pooled)
    return state, out


@settings(deadline=None)
@given(ROWS, st.integers(1, 7))
def test_the_mean_is_that_of_the_last_windows(rows: list[list[float]], windows: int) -> None:
    _, out = through(Pool("mean", windows), rows)
    for i, row in enumerate(out):
        np.testing.assert_allclose(row, np.mean(rows[max(0, i + 1 - windows) : i + 1], axis=0), rtol=1e-12)


@settings(deadline=None, max_examples=40)
@given(ROWS)
def test_the_filter_is_the_sum_over_all_paths(rows: list[list[float]]) -> None:
    """P(class now | windows so far), by adding up every sequence of classes."""
    _, out = through(HMM, rows)
    for n in range(1, len(rows) + 1):
        total = np.zeros(3)
        for path in itertools.product(range(3), repeat=n):
            likely = HMM.start[path[0]]
            for i, now in enumerate(path):
                likely *= rows[i][now] / HMM.start[now] * (HMM.transitions[path[i - 1]][now] if i else 1)
            total[path[-1]] += likely
        np.testing.assert_allclose(out[n - 1], total / total.sum(), rtol=1e-9)


@settings(deadline=None)
@given(ROWS, st.integers(0, 6), st.sampled_from([HMM, Pool("mean", 3), Pool("mean", 1)]))
def test_gone_on_from_a_stored_state(rows: list[list[float]], cut: int, pool: Pool) -> None:
    _, whole = through(pool, rows)
    state, first = through(pool, rows[:cut])
    _, rest = through(Pool.from_json(json.loads(json.dumps(pool.to_json()))), rows[cut:], json.loads(json.dumps(state)))
    assert first + rest == whole


def test_a_window_without_probabilities_says_nothing() -> None:
    for pool in (HMM, Pool("mean", 3)):
        rows = [[0.7, 0.2, 0.1], [0.0, 0.0, 0.0], [0.1, 0.2, 0.7]]
        _, out = through(pool, rows)
        assert out[1] == rows[1]
        assert [out[0], out[2]] == through(pool, [rows[0], rows[2]])[1]


@settings(deadline=None)
@given(ROWS, st.integers(1, 4))
def test_what_lies_further_back_than_the_windows_counts_for_nothing(rows: list[list[float]], windows: int) -> None:
    for pool in (Pool("hmm", windows, HMM.transitions, HMM.start), Pool("mean", windows)):
        assert through(pool, rows)[1][-1] == through(pool, rows[-windows:])[1][-1]


def test_transitions_are_those_of_the_labels() -> None:
    pool = learn_hmm([0, 0, 1, 1, 1, 0], ["s", "s", "s", "s", "t", "t"], 2, balanced=False)
    # Within sessions: 0 to 0, 0 to 1, 1 to 1; and 1 to 0 in the second; half a count is added to each.
    np.testing.assert_allclose(pool.transitions, [[0.5, 0.5], [0.5, 0.5]])
    np.testing.assert_allclose(pool.start, [0.5, 0.5])
    longer = learn_hmm([0] * 10 + [1] * 5, ["s"] * 15, 2, balanced=True)
    np.testing.assert_allclose(longer.transitions, [[9.5 / 11, 1.5 / 11], [0.5 / 5, 4.5 / 5]])
    assert longer.start == (0.5, 0.5)


def test_windows_that_are_learned_again_and_again_follow_each_other_once() -> None:
    text = RECIPE.replace("min_probability = 0.6", 'pool = {kind = "hmm"}') + 'balance = "oversample"\n'
    classes = [0, 1, 0, 0, 1, 0]
    examples = [Example(window(np.zeros((4, 2)), "s", 4 * i), "ab"[n], "s") for i, n in enumerate(classes)]
    oversampled = [e for e in examples for _ in range(2 if e.label == "b" else 1)]
    assert pool_of(recipe(text), oversampled, ("a", "b")) == learn_hmm(classes, ["s"] * 6, 2, balanced=True)
    shorter = pool_of(recipe(text.replace('"hmm"', '"hmm", windows = 4')), examples, ("a", "b"))
    assert shorter
    assert shorter.windows == 4  # judged as it is served


def test_sessions_do_not_mix_and_come_in_any_order() -> None:
    rows = [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.2, 0.8]]
    out = pool_windows(Pool("mean", 2), rows, ["a", "b", "a", "b"], [10, 0, 0, 5])
    assert out == [[0.75, 0.25], [0.0, 1.0], [0.5, 0.5], [0.1, 0.9]]


POOLED = RECIPE.replace("min_probability = 0.6", 'min_probability = 0.6\npool = {kind = "mean", windows = 2}')


@pytest.mark.parametrize("chunk_ms", [100, 700])
def test_events_are_pooled(tmp_path: Path, chunk_ms: int) -> None:
    bundle = tiny_bundle(tmp_path / "b")
    levels = [8.0] * 6 + [-8.0] * 6 + [8.0] * 6
    streams = [recording(name, levels, [(0, 1.8, "high")]) for name in ("s", "t")]
    plain = list(run(recipe(), streams, Classifier(bundle, "tiny", 0.6)))
    pooled = list(run(recipe(POOLED), streams, Classifier(bundle, "tiny", 0.6), chunk_ms))
    assert [e.id for e in pooled] == [e.id for e in plain]
    for name in ("s", "t"):
        alone, together = ([e for e in events if e.session == name] for events in (plain, pooled))
        for i, event in enumerate(together):
            before = alone[max(0, i - 1) : i + 1]
            means = {label: sum(e.probabilities[label] for e in before) / len(before) for label in event.probabilities}
            assert event.probabilities == pytest.approx(means)
            best = max(means, key=lambda label: means[label])
            assert event.label == (best if means[best] >= 0.6 else "unknown")
            assert event.probability == pytest.approx(means[best])
    assert any(a.label != b.label for a, b in zip(plain, pooled, strict=True))


def test_evaluate_pools_as_run_does(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b")
    levels = [8.0] * 10 + [-8.0] * 4 + [8.0] * 20
    streams = [recording("s", levels, [(0, 3.4, "high")])]
    said = [e.label for e in run(recipe(POOLED), streams, Classifier(bundle, "tiny", 0.6))]
    found = evaluate(recipe(POOLED), bundle, streams)
    assert found["windows"] == len(said)
    assert found["unknown_windows"] == said.count("unknown")


def test_an_hmm_must_have_been_learned(tmp_path: Path) -> None:
    text = RECIPE.replace("min_probability = 0.6", 'pool = {kind = "hmm"}')
    with pytest.raises(BundleError, match="has learned no hmm"):
        pool_for(recipe(text), tiny_bundle(tmp_path / "b"))
    learned = tiny_bundle(tmp_path / "c", pool=HMM.to_json())
    assert pool_for(recipe(text), load_bundle(learned.path)) == HMM
    shorter = recipe(text.replace('"hmm"', '"hmm", windows = 4'))
    assert pool_for(shorter, learned) == Pool("hmm", 4, HMM.transitions, HMM.start)
    assert pool_for(recipe(), learned) is None


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ('{kind = "median"}', "expected one of mean, hmm|mean"),
        ('{kind = "mean", windows = 0}', "windows"),
        ('{kind = "mean", windows = 2.5}', "windows = 2.5: expected a whole number"),
        ('{kind = "hmm", windows = 0}', "windows"),
        ("{windows = 2}", "lacks kind"),
    ],
)
def test_recipes_that_pool_wrongly(pool: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(RECIPE.replace("min_probability = 0.6", f"pool = {pool}"))


def test_pools_that_are_none() -> None:
    for wrong in ({"start": []}, {"transitions": [[1.0]]}, {"transitions": HMM.to_json()["transitions"][:2]}):
        with pytest.raises(FormatError, match="a row of transitions for each"):
            Pool.from_json(HMM.to_json() | wrong)
    with pytest.raises(FormatError, match="not a pooling"):
        Pool.from_json({"windows": 3})
