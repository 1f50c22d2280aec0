"""Processor and model agent as two processes, with the derived topic between them: the same events as from one, each once."""

from __future__ import annotations

import dataclasses
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT
from fault_lab import await_that

from kymo.deploy.children import Child, kymo_command, kymo_environment, stop
from kymo.deploy.worker import roles_of
from kymo.models.bundle import load_bundle
from kymo.models.predict import Classifier
from kymo.models.run import run
from kymo.processors.recipe.load import load_recipe
from kymo.streams.chunk import Chunk
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import KymoError
from kymo.streams.kafka.admin import ensure_topics
from kymo.streams.kafka.read import read_records
from kymo.streams.readers import read
from kymo.streams.replay.replay import replay
from kymo.streams.replay.schedule import ReplayPlan
from kymo.streams.settings import Settings
from kymo.streams.topics import Names

RECIPE = ROOT / "recipes" / "basicmotions.toml"


def events_of(settings: Settings) -> list[dict[str, Any]]:
    return [json.loads(r.value or b"") for r in read_records(settings, Names(settings.prefix).of("events"))]


def plain(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "emitted_ns"}


def chunks_of(settings: Settings) -> list[Chunk]:
    codec = ChunkCodec()
    return [codec.decode(r.value or b"") for r in read_records(settings, Names(settings.prefix).of("spectrogram"))]


def test_two_roles_give_the_events_of_one(broker: str, prefix: str, tmp_path: Path) -> None:
    recipe, home = load_recipe(RECIPE), tmp_path / "home"
    classifier = Classifier.for_recipe(load_bundle("basicmotions", home), recipe)
    recordings = list(read(["basicmotions:test"], recipe.read_options()))[::4]
    expected = {
        e.id: json.loads(dataclasses.replace(e, emitted_ns=0).to_json()) for e in run(recipe, recordings, classifier)
    }
    settings = Settings(brokers=broker, prefix=prefix, home=home, partitions=3, metrics_port=-1)
    ensure_topics(settings, Names(prefix))
    changes = {
        "KYMO_BROKERS": broker,
        "KYMO_PREFIX": prefix,
        "KYMO_HOME": str(home),
        "KYMO_PARTITIONS": "3",
        "KYMO_METRICS_PORT": "-1",
    }
    environment = kymo_environment(changes, keep=False)
    children = [
        Child(r, kymo_command("worker", str(RECIPE), "--roles", r), environment, print) for r in ("processor", "model")
    ]
    with ExitStack() as stack:
        stack.callback(stop, children)
        for child in children:
            child.start()
        replay(recordings, settings, ReplayPlan(speed=None))
        await_that(lambda: len(events_of(settings)) >= len(expected), "every event")
    events = events_of(settings)
    assert sorted(e["id"] for e in events) == sorted(expected)
    assert {e["id"]: plain(e) for e in events} == {i: plain(e) for i, e in expected.items()}
    chunks = chunks_of(settings)
    places = [(c.session, c.first_index, c.end) for c in chunks]
    assert len(set(places)) == len(places)
    assert sorted(c.session for c in chunks if c.end) == sorted(r.session for r in recordings)


def test_roles() -> None:
    settings = Settings()
    assert roles_of("processor,model", settings) == ["processor-model"]
    assert roles_of("model, processor", dataclasses.replace(settings, write_derived=True)) == [
        "processor-model",
        "processor",
    ]
    assert roles_of("model", settings) == ["model"]
    with pytest.raises(KymoError, match="expected processor, model"):
        roles_of("trainer", settings)
