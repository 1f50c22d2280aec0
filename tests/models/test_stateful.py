"""Stateful models where they serve: cut anywhere, killed anywhere, stored and resumed, the events are those of one pass."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crash_lab import LIMITS, STEPS, Log, act, chunk, recorded, settle
from hypothesis import given, note, settings
from hypothesis import strategies as st
from tiny_stateful import (
    LABELS,
    RECIPE,
    ROWS,
    JudgedLife,
    leaky_onnx,
    manifest,
    plain,
    recipe,
    reference,
    stateful_bundle,
)

from kymo.models.bundle import Bundle, load_bundle
from kymo.models.predict import Classifier, Predictor, softmax
from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.models.run import run
from kymo.models.serving.operator import Shadow
from kymo.models.serving.outputs import ENDLESS
from kymo.models.serving.partition import Limits
from kymo.processors.recipe.load import parse_recipe
from kymo.streams.chunk import Chunk, Window
from kymo.streams.errors import BundleError, RecipeError
from kymo.streams.recording import Recording, StreamData


@cache
def bundle(number: int = 0) -> Bundle:
    return stateful_bundle(Path(tempfile.mkdtemp()) / "bundle", number)


@cache
def model(number: int = 0) -> Predictor:
    return Predictor.to_serve(bundle(number), recipe())


class StatefulLife(JudgedLife):
    """A worker of the small recipe."""

    model = model()


def recording(session: str, chunks: Sequence[Chunk]) -> Recording:
    """One stream, as files give it."""
    pieces = [(c.first_index, c.data) for c in chunks]
    return Recording(session, [StreamData(chunks[0].header, np.concatenate([d for _, d in pieces]), None, 0, pieces)])


def offline(chunks: Sequence[Chunk], number: int = 0, chunk_ms: int = 100) -> list[dict[str, Any]]:
    """The events of `kymo run`."""
    classifier = Classifier.for_recipe(bundle(number), recipe())
    found = run(recipe(), [recording(chunks[0].session, chunks)], classifier, chunk_ms)
    return [json.loads(event.to_json()) | {"emitted_ns": 0} for event in found]


def probabilities(events: Sequence[dict[str, Any]]) -> np.ndarray[Any, Any]:
    return np.array([[event["probabilities"][label] for label in LABELS] for event in events])


def expected(chunks: Sequence[Chunk], number: int = 0) -> np.ndarray[Any, Any]:
    """Probabilities of one run of windows, by numpy."""
    samples = np.concatenate([c.data for c in chunks]).astype(np.float64)
    means = 0.5 * samples.reshape(-1, ROWS, 1).mean(1)
    return np.array([softmax(row) for row in reference(number, means).tolist()])


def test_events_are_those_of_the_recursion_and_a_gap_begins_it_anew() -> None:
    before, behind = [chunk("s", i, 4) for i in range(0, 80, 4)], [chunk("s", i, 4) for i in range(84, 120, 4)]
    found = offline([*before, *behind])
    assert [event["start_index"] for event in found] == [*range(0, 80, 4), *range(84, 120, 4)]
    both = np.concatenate([expected(before), expected(behind)])
    np.testing.assert_allclose(probabilities(found), both, atol=1e-6)
    alone = [offline([c])[0]["probabilities"] for c in (before[-1], behind[-1])]
    assert alone != [found[19]["probabilities"], found[-1]["probabilities"]]  # there is something to remember


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3000), st.lists(st.integers(1, 9), min_size=1, max_size=30))
def test_however_the_stream_is_cut(chunk_ms: int, sizes: list[int]) -> None:
    whole = [chunk("s", 0, sum(sizes))]
    edges = np.cumsum([0, *sizes]).tolist()
    cut = [chunk("s", a, b - a) for a, b in pairwise(edges)]
    once = offline(whole, chunk_ms=10**6)
    assert offline(whole, chunk_ms=chunk_ms) == once
    log = Log({"a": cut}, ENDLESS, visible={"a": len(cut)})
    StatefulLife(log, model().head, [0.0], Limits()).finish()
    assert [json.loads(found)[0] for *_, found in log.events] == once


def undisturbed(log: Log) -> list[tuple[str, int, str, bytes]]:
    """By the chain and one pass of the model, without Partition."""
    out = []
    for items in log.inputs.values():
        for name in {c.session for c in items}:
            mine = [c for c in items if c.session == name]
            stage, memory = model().head.build(), list[Any]()
            for c in mine:
                if c.stream == mine[0].stream:
                    windows = stage.push(c) + (stage.flush() if c.end else [])
                    out += [(name, w.start_index, "", plain(model().serve([w], [memory])[0])) for w in windows]
    return sorted(out)


def finish(log: Log, clock: list[float], limits: Limits) -> None:
    """One more life takes all there is; a last one finds nothing to add."""
    log.visible = {topic: len(items) for topic, items in log.inputs.items()}
    for _ in range(2):
        StatefulLife(log, model().head, clock, limits).finish()
        assert sorted(log.events) == undisturbed(log)


def campaign(seed: int) -> None:
    """A random log, worked on in random steps."""
    pick = random.Random(seed)
    log, limits, clock = recorded(pick), pick.choice(LIMITS), [0.0]
    log.memory = ENDLESS
    if pick.random() < 0.5:
        log.visible = {topic: len(items) for topic, items in log.inputs.items()}
    life = StatefulLife(log, model().head, clock, limits)
    for _ in range(pick.randint(1, 60)):
        name, most = pick.choice(STEPS)
        step, topic = (name, pick.randint(0 if "commit" in name else 1, most)), pick.choice(sorted(log.inputs))
        note(f"{step} {topic}")
        if not act(life, step, clock, topic):
            life = StatefulLife(log, model().head, clock, limits)
    finish(log, clock, limits)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_crashes_anywhere(seed: int) -> None:
    campaign(seed)


@pytest.mark.chaos
@pytest.mark.timeout(1200)
@settings(max_examples=20_000, deadline=None)
@given(st.integers(0, 2**64))
def test_crashes_anywhere_at_length(seed: int) -> None:
    campaign(seed)


@pytest.mark.parametrize("killed", [False, True])
def test_a_quiet_session_is_unloaded_with_its_state_and_goes_on_exactly(killed: bool) -> None:
    whole = [chunk("s", i, 4) for i in range(0, 60, 4)]
    log = Log({"a": [*whole[:8], *(chunk("t", i, 4) for i in range(0, 40, 4)), *whole[8:]]}, ENDLESS)
    log.visible, clock = {"a": 18}, [0.0]
    life = StatefulLife(log, model().head, clock, Limits(quiet_s=5.0))
    for _ in range(18):
        settle(life, "a", 1)
        clock[0] += 1
    assert (set(log.state), set(life.partition.sessions)) == ({"s"}, {"t"})
    log.visible = {"a": len(log.inputs["a"])}
    (StatefulLife(log, model().head, clock, Limits(quiet_s=5.0)) if killed else life).finish()
    own = [json.loads(found)[0] for name, *_, found in log.events if name == "s"]
    assert own == offline(whole)


def test_the_commit_is_bounded_though_nothing_but_snapshots_releases_it() -> None:
    log = Log({"a": [chunk(name, i, 4) for i in range(0, 400, 4) for name in ("s", "t")]}, ENDLESS)
    log.visible = {"a": 200}
    life, behind = StatefulLife(log, model().head, [0.0], Limits(lag=10)), []
    for read in range(1, 201):
        settle(life, "a", 1)
        behind.append(read - log.commits.get("a", (0, 0))[0])
    assert max(behind) == 10
    assert sorted(log.events) == undisturbed(log)


def test_a_session_with_a_window_always_under_way_is_known_to_be_overdue() -> None:
    log = Log({"a": [chunk("s", i, 4) for i in range(0, 400, 4)]}, ENDLESS, visible={"a": 100})
    life = StatefulLife(log, model().head, [0.0], Limits(lag=10))
    overdue = []
    for _ in range(20):
        life.read("a", 1)
        life.hear(1)  # of the window before
        life.publish(1)
        life.commit()
        overdue.append(life.partition.overdue)
    assert overdue == [False] * 10 + [True] * 10
    assert "a" not in {topic for topic, (offset, _) in log.commits.items() if offset}
    life.hear(9)  # as the agent waits for it
    life.commit()
    assert (log.commits["a"][0], life.partition.overdue) == (20, False)


def exchanged(chunks: Sequence[Chunk], at: int) -> list[dict[str, Any]]:
    """Online events, where another bundle takes over before window `at`."""
    log = Log({"a": list(chunks)}, ENDLESS, visible={"a": len(chunks)})
    life = StatefulLife(log, model().head, [0.0], Limits())
    for number in range(len(chunks)):
        life.model = model(int(number >= at))
        settle(life, "a", 1)
    return [json.loads(found)[0] for *_, found in log.events]


def test_behind_an_exchange_the_state_begins_at_zeros() -> None:
    chunks = [chunk("s", i, 4) for i in range(0, 48, 4)]
    found = exchanged(chunks, 7)
    assert found[:7] == offline(chunks)[:7]
    assert found[7:] == offline(chunks[7:], 1)


def test_a_shadow_keeps_a_state_of_its_own() -> None:
    chunks = [chunk("s", i, 4) for i in range(0, 48, 4)]
    shadow, windows = Shadow("t"), windows_of(chunks)
    shadow.predictor = model(1)
    mine, memory = [], list[Any]()
    for window in windows:
        mine.append(plain(model(0).serve([window], [memory])[0]))
        (made,) = shadow.predictor.serve([window], [shadow._memory(window.session)])
        assert json.loads(plain(made)) == [offline(chunks, 1)[len(mine) - 1]]
    assert [json.loads(m)[0] for m in mine] == offline(chunks)


def windows_of(chunks: Sequence[Chunk]) -> list[Window]:
    stage = model().head.build()
    return [window for c in chunks for window in stage.push(c)]


def test_sessions_in_one_batch_do_not_mix() -> None:
    streams = {name: [chunk(name, i, 4) for i in range(0, 80, 4)] for name in ("s", "t", "u")}
    windows = [w for group in zip(*map(windows_of, streams.values()), strict=True) for w in group]
    memories: dict[str, list[Any]] = {name: [] for name in streams}
    made = model().serve(windows, [memories[w.session] for w in windows])
    for name, chunks in streams.items():
        own = [json.loads(plain(m))[0] for m, w in zip(made, windows, strict=True) if w.session == name]
        assert own == offline(chunks)


def test_a_number_that_is_none_does_not_stay() -> None:
    windows, memory = windows_of([chunk("s", i, 4) for i in range(0, 24, 4)]), list[Any]()
    windows[2].pieces = np.full_like(windows[2].data, np.inf)
    made = [json.loads(model().serve([window], [memory])[0][0]) for window in windows]
    assert [event["label"] == "unknown" and not event["probability"] for event in made] == [False] * 2 + [True] + [
        False
    ] * 3
    behind = offline([chunk("s", i, 4) for i in range(12, 24, 4)])
    np.testing.assert_allclose(probabilities(made[3:]), probabilities(behind))


HEADS = """
[[heads]]
name = "surface"
kind = "classes"
[[heads]]
name = "speed"
kind = "number"
"""


def test_further_heads_rest_on_the_same_state(tmp_path: Path) -> None:
    made = recipe(HEADS)
    described = manifest(made) | {
        "heads": [
            {"name": "surface", "labels": ["a", "b"], "temperature": 1.0},
            {"name": "speed", "labels": [], "temperature": 1.0},
        ]
    }
    path = write_bundle(tmp_path / "heads", described, {MODEL: leaky_onnx(columns=6)})
    chunks = [chunk("s", i, 4) for i in range(0, 80, 4)]
    found = list(run(made, [recording("s", chunks)], Classifier.for_recipe(load_bundle(path), made)))
    means = 0.5 * np.concatenate([c.data for c in chunks]).astype(np.float64).reshape(-1, ROWS, 1).mean(1)
    rows = reference(0, means, 6)
    assert [event.head for event in found] == ["", "surface", "speed"] * 20
    for row, own, surface, speed in zip(rows.tolist(), found[::3], found[1::3], found[2::3], strict=True):
        np.testing.assert_allclose(list(own.probabilities.values()), softmax(row[:3]), atol=1e-6)
        np.testing.assert_allclose(list(surface.probabilities.values()), softmax(row[3:5]), atol=1e-6)
        np.testing.assert_allclose(speed.values["speed"], row[5], atol=1e-5)


@pytest.mark.parametrize("hop_s", [0.2, 0.8])
def test_a_window_must_be_a_hop(hop_s: float) -> None:
    with pytest.raises(RecipeError, match=r"line 16: .*length_s equal to hop_s"):
        parse_recipe(RECIPE.replace("hop_s = 0.4", f"hop_s = {hop_s}"))


def test_bundles_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    stateless = parse_recipe(RECIPE.replace("stateful = true\n", ""))
    with pytest.raises(BundleError, match=r"does not say .model. stateful = true"):
        bundle().check(stateless)
    wrong = stateful_bundle(tmp_path / "wrong", state=7)
    with pytest.raises(BundleError, match=r"a state of 3, its manifest says \(4, 1\) and 7"):
        Classifier.for_recipe(wrong, recipe())
