"""Live accuracy, as `make loop` counts it."""

from __future__ import annotations

from dataclasses import replace

from kymo.examples.loop import LIVE, RECIPE, LiveScore
from kymo.processors.recipe.load import parse_recipe
from kymo.streams.events import Event
from kymo.streams.readers import read


def test_events_are_counted_by_bundle() -> None:
    recordings = list(read((LIVE,), parse_recipe(RECIPE).read_options()))
    live, (first, second) = LiveScore({r.session: r.labels[0].label for r in recordings}), recordings[::39]
    event = Event(
        "a", "loop", "loop@1", first.session, "imu", 0, 0, 1, first.labels[0].label, 0.9, emitted_ns=5 * 10**9
    )
    live.add(event)
    live.add(replace(event, id="b", label=second.labels[0].label))
    live.add(replace(event, id="c", session="somebody else's"))
    live.add(replace(event, id="d", bundle="loop@2", emitted_ns=9 * 10**9))
    live.add(replace(event, id="d", bundle="loop@2", emitted_ns=8 * 10**9))
    assert live.score("loop@1") == {"bundle": "loop@1", "windows": 2, "accuracy": 0.5}
    assert live.score("loop@2") == {"bundle": "loop@2", "windows": 2, "accuracy": 1.0}
    assert live.score("loop@3") == {"bundle": "loop@3", "windows": 0, "accuracy": 0.0}
    assert (live.repeated, live.first_s("loop@2", 6 * 10**9), live.first_s("loop@3", 0)) == (1, 2.0, None)
