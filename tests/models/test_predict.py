"""From windows to answers: heads beside the classes, and windows pooled."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_kafka import KeptOutbox, until
from tiny_models import HMM, LABELS, RECIPE, recipe, recording, tiny_bundle, window

from kymo.models.bundle import Bundle, BundleHead, load_bundle
from kymo.models.data.examples import Example
from kymo.models.evaluate import evaluate
from kymo.models.pooling import Pool, State, learn_hmm, pool_for, pool_windows
from kymo.models.predict import Classifier, Memory, Predictor
from kymo.models.run import Report, run
from kymo.models.serving.operator import Champion, Shadow
from kymo.models.training.candidates import pool_of
from kymo.processors.recipe.load import Recipe
from kymo.streams.errors import BundleError, FormatError, RecipeError
from kymo.streams.events import Event

HEADS = '[[heads]]\nname = "score"\nkind = "number"\n[[heads]]\nname = "surface"\n'


# Behind the recipe's three logits: grass and track by the first channel's mean, the score ten times that of the second.
WEIGHTS = np.array([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [-2.0, 0.0], [0.0, 10.0]])


SAID: list[dict[str, Any]] = [
    {"name": "surface", "labels": ["grass", "track"], "temperature": 2.0},
    {"name": "score", "labels": [], "temperature": 1.0},
]


def headed(folder: Path, **changes: Any) -> Bundle:
    """A bundle whose heads stand in another order than the recipe's."""
    return tiny_bundle(folder, WEIGHTS, **({"heads": SAID} | changes))


def with_heads(model: str = "") -> Recipe:
    return recipe(RECIPE.replace("min_probability = 0.6", f"min_probability = 0.6\n{model}") + HEADS)


def rows(first: float, second: float) -> Any:
    return np.column_stack([np.full(4, first), np.full(4, second)])


def test_reads_the_heads_of_the_manifest(tmp_path: Path) -> None:
    bundle = headed(tmp_path / "b")
    assert bundle.heads == (BundleHead("surface", ("grass", "track"), temperature=2.0), BundleHead("score"))
    assert [(head.kind, head.width) for head in bundle.heads] == [("classes", 2), ("number", 1)]
    assert (bundle.columns, tiny_bundle(tmp_path / "c").columns) == (6, 3)
    bundle.check(with_heads())


@pytest.mark.parametrize(
    ("heads", "says"),
    [
        ("", "has the heads surface (classes), score (number), recipe `tiny` asks for none"),
        (HEADS.replace("surface", "mood"), "asks for score (number), mood (classes)"),
        (HEADS.replace('kind = "number"\n', ""), "asks for score (classes), surface (classes)"),
        (HEADS + 'names = {"track" = "tartan"}\n', "tells label `track`, which recipe `tiny` calls `tartan`"),
    ],
)
def test_refuses_a_recipe_with_other_heads(tmp_path: Path, heads: str, says: str) -> None:
    with pytest.raises(BundleError) as caught:
        headed(tmp_path / "b").check(recipe(RECIPE + heads))
    assert says in str(caught.value)


def test_a_model_without_the_heads_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="expected a number for each of 3 labels and 3 columns of heads"):
        Classifier(tiny_bundle(tmp_path / "b", heads=SAID), "tiny")


@pytest.mark.parametrize("change", [{"temperature": 0}, {"labels": None}, {"temperature": "warm"}])
def test_senseless_heads_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json: "):
        headed(tmp_path / "b", heads=[SAID[0] | change])


def judged(bundle: Bundle, recipe: Recipe, *data: Any, memory: Memory | None = None) -> list[list[Event]]:
    windows = [window(one, "anna", 2 * i, missing=0.25) for i, one in enumerate(data)]
    memory = [] if memory is None else memory
    return Predictor(Classifier.for_recipe(bundle, recipe), recipe).predict(windows, [memory] * len(windows))


def test_each_head_says_its_own_in_the_recipes_order(tmp_path: Path) -> None:
    bundle = headed(tmp_path / "b")
    ((own, score, surface),) = judged(bundle, with_heads(), rows(2, 4.25))
    assert own == Event(
        "anna/tiny/0", "tiny", bundle.id, "anna", "imu.wrist", 0, 0, 400_000_000, "high", own.probability,
        own.probabilities, missing=0.25,
    )  # fmt: skip
    assert tuple(own.probabilities) == LABELS
    assert score == replace(
        own, id="anna/tiny/0/score", label="", probability=0.0, probabilities={}, values={"score": 42.5}, head="score"
    )
    grass = 1 / (1 + math.exp(-4))  # logits 4 and -4 at temperature 2
    assert surface == replace(
        own,
        id="anna/tiny/0/surface",
        label="grass",
        probability=surface.probability,
        probabilities=surface.probabilities,
        head="surface",
    )
    assert surface.probabilities == pytest.approx({"grass": grass, "track": 1 - grass})
    assert surface.probability == surface.probabilities["grass"]
    for event in (own, score, surface):
        assert Event.from_json(event.to_json()) == event


def test_a_head_is_unknown_below_min_probability(tmp_path: Path) -> None:
    ((_, _, surface),) = judged(headed(tmp_path / "b"), with_heads(), rows(0.01, 0))
    assert surface.label == "unknown"
    assert 0.5 < surface.probability < 0.6


def test_what_is_not_finite_says_nothing(tmp_path: Path) -> None:
    bundle, asked = headed(tmp_path / "b"), with_heads()
    predictor = Predictor(classifier := Classifier.for_recipe(bundle, asked), asked)
    ((own, score, surface),) = predictor.predict([window(rows(math.nan, math.inf))], [[]])
    assert (own.label, surface.label, score.values) == ("unknown", "unknown", {})
    assert classifier.counts["not_finite"] == 3
    assert json.loads(score.to_json())["values"] == {}


def test_the_mean_pools_every_head(tmp_path: Path) -> None:
    bundle, pooled = headed(tmp_path / "b"), with_heads('pool = {kind = "mean", windows = 2}')
    data = [rows(2, 4), rows(-2, 5), rows(0, math.nan), rows(0, 7)]
    alone, together = judged(bundle, with_heads(), *data), judged(bundle, pooled, *data)
    for before, now, found in zip(alone, alone[1:3], together[1:3], strict=False):
        for head in (0, 2):
            means = {
                k: (before[head].probabilities[k] + now[head].probabilities[k]) / 2 for k in now[head].probabilities
            }
            if any(now[head].probabilities.values()):
                assert found[head].probabilities == pytest.approx(means)
    # The third gives no number; the fourth is the mean of the last two windows, of which one says something.
    assert [events[1].values for events in together] == [{"score": 40}, {"score": 45}, {}, {"score": 70}]


def test_an_hmm_pools_the_recipes_own_classes_alone(tmp_path: Path) -> None:
    bundle, pooled = headed(tmp_path / "b", pool=HMM.to_json()), with_heads('pool = {kind = "hmm"}')
    data = [rows(2, 4), rows(-2, 5), rows(1, 6)]
    alone, together = judged(bundle, with_heads(), *data), judged(bundle, pooled, *data)
    assert [events[1:] for events in together] == [events[1:] for events in alone]
    assert together[1][0].probabilities != alone[1][0].probabilities


@pytest.mark.parametrize("pool", ['pool = {kind = "mean", windows = 3}', 'pool = {kind = "hmm"}', ""])
def test_what_is_remembered_goes_through_a_snapshot(tmp_path: Path, pool: str) -> None:
    bundle, asked = headed(tmp_path / "b", pool=HMM.to_json()), with_heads(pool)
    data = [rows(math.sin(i), 10 * math.cos(i)) for i in range(9)]
    windows = [window(one, "s", 2 * i) for i, one in enumerate(data)]
    predictor = Predictor(Classifier.for_recipe(bundle, asked), asked)
    memory: Memory = []
    whole = predictor.predict(windows, [memory] * 9)
    stored: Memory = []
    for cut in range(9):
        (events,) = predictor.predict(windows[cut : cut + 1], [stored])
        assert events == whole[cut]
        stored = json.loads(json.dumps(stored))


def test_behind_an_exchange_every_head_begins_anew(tmp_path: Path) -> None:
    pooled = with_heads('pool = {kind = "mean", windows = 9}')
    first, second = (Predictor.to_serve(headed(tmp_path / str(t), temperature=t), pooled) for t in (1.0, 1.5))
    champion, memory = Champion(first, pooled), list[Any]()
    champion.predictor.serve([window(rows(2, 4), "s", 0)], [memory])
    champion.exchange(second)
    ((own, score, surface),) = champion.predictor.serve([window(rows(-2, 5), "s", 2)], [memory])
    ((alone, *_),) = champion.predictor.serve([window(rows(-2, 5), "s", 2)], [[]])
    assert json.loads(own)["probabilities"] == json.loads(alone)["probabilities"]
    assert json.loads(score)["values"] == {"score": 50.0}
    assert json.loads(surface)["label"] == "track"


def test_a_shadow_publishes_the_events_of_all_heads(tmp_path: Path) -> None:
    model = Predictor.to_serve(headed(tmp_path / "b"), with_heads())

    async def work() -> list[str]:
        shadow, outbox = Shadow("t.shadow"), KeptOutbox()
        shadow.predictor = model
        shadow.start(outbox)  # type: ignore[arg-type]
        shadow.offer([(4, window(rows(i, i), "s", i)) for i in range(3)])
        await until(lambda: len(outbox.found) == 9)
        shadow.close()
        assert {(topic, number) for topic, number, _ in outbox.found} == {("t.shadow", 4)}
        return [json.loads(record.value or b"")["id"] for _, _, record in outbox.found]

    assert asyncio.run(work()) == [f"s/tiny/{i}{head}" for i in range(3) for head in ("", "/score", "/surface")]


@pytest.mark.parametrize("chunk_ms", [100, 700])
def test_a_run_gives_every_window_and_head_once(tmp_path: Path, chunk_ms: int) -> None:
    bundle, asked, report = headed(tmp_path / "b"), with_heads(), Report()
    streams = [recording(name, [8.0] * 9 + [-8.0] * 9, []) for name in ("s", "t")]
    events = list(run(asked, streams, Classifier.for_recipe(bundle, asked), chunk_ms, report))
    starts = range(0, 15, 2)
    assert [e.id for e in events] == [
        f"{name}/tiny/{start}{head}" for name in ("s", "t") for start in starts for head in ("", "/score", "/surface")
    ]
    plain = tiny_bundle(tmp_path / "c", WEIGHTS[:3])
    own = [replace(e, bundle="", emitted_ns=0) for e in events if not e.head]
    without = run(recipe(), streams, Classifier.for_recipe(plain, recipe()), chunk_ms)
    assert own == [replace(e, bundle="", emitted_ns=0) for e in without]
    assert report.events == len(events)


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


def test_a_mean_of_two() -> None:
    pool = Pool("mean", 2)
    state, _ = pool.step([], [1.0, 0.0])
    assert pool.step(state, [0.0, 1.0])[1] == [0.5, 0.5]
    state, _ = pool.step_number([], {"score": 40.0})
    assert pool.step_number(state, {"score": 50.0})[1] == {"score": 45.0}
