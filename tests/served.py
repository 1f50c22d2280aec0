"""Recordings through real workers. In: a recipe, a bundle, recordings, Kafka. Out: events, which must be those of one run over all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from verbs import await_that, running, variables

from kymo.models.bundle import Bundle
from kymo.models.predict import Classifier
from kymo.models.run import run
from kymo.processors.recipe.load import Recipe
from kymo.streams.kafka.admin import ensure_topics
from kymo.streams.kafka.read import read_records
from kymo.streams.recording import Recording
from kymo.streams.replay.replay import replay
from kymo.streams.replay.schedule import ReplayPlan
from kymo.streams.settings import Settings
from kymo.streams.topics import Names

Events = dict[str, dict[str, Any]]


def offline(recipe: Recipe, recordings: Sequence[Recording], bundle: Bundle) -> Events:
    """By id, the events of `kymo run`, without the time of their making."""
    events = run(recipe, recordings, Classifier.for_recipe(bundle, recipe))
    return {event.id: event.to_dict() | {"emitted_ns": 0} for event in events}


def check_online(
    path: Path, recordings: list[Recording], settings: Settings, roles: list[str], expected: Events
) -> None:
    """Replay recordings to a worker of each of the roles: every expected event comes, once, and no other."""
    settings = replace(settings, partitions=3)
    topics = Names(settings.prefix)
    ensure_topics(settings, topics)

    def events() -> list[dict[str, Any]]:
        return [json.loads(r.value or b"") | {"emitted_ns": 0} for r in read_records(settings, topics.of("events"))]

    with ExitStack() as stack:
        for role in roles:
            stack.enter_context(running(variables(settings), "worker", path, "--roles", role))
        replay(recordings, settings, ReplayPlan(speed=None))
        await_that(lambda: len(events()) >= len(expected), "every event")
    assert len(found := events()) == len(expected)
    assert {event["id"]: event for event in found} == expected
