"""A bundle that takes raw windows, in workers: the events of `kymo run`, whether one worker plays both roles or two do."""

from __future__ import annotations

import dataclasses
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fault_lab import await_that

from deploy.children import Child, kymo_command, kymo_environment, stop
from models.classify import Classifier
from models.run import run
from models.train import TrainRequest, train
from processors.recipe import load_recipe
from streams.kafka_admin import ensure_topics
from streams.kafka_read import read_records
from streams.replay import replay
from streams.schedule import ReplayPlan
from streams.settings import Settings
from streams.sources import read
from streams.topics import Names

RECIPE = Path(__file__).parents[1] / "recipes" / "basicmotions.toml"


def plain(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "emitted_ns"}


@pytest.mark.broker
@pytest.mark.parametrize("roles", [["processor,model"], ["processor", "model"]])
def test_a_raw_bundle_in_workers(
    roles: list[str], broker: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aeon")
    monkeypatch.setenv("KYMO_HOME", str(tmp_path / "home"))
    path = tmp_path / "motions.toml"
    named = 'architecture = "minirocket"\nfeatures = 840\npool = {kind = "mean", windows = 3}'
    path.write_text(RECIPE.read_text().replace('architecture = "spectrogram_cnn"', named))
    recipe = load_recipe(path)
    bundle = train(recipe, TrainRequest(("basicmotions:train",), report=False)).bundle
    assert bundle.takes == "raw"
    recordings = list(read(["basicmotions:test"], recipe.read_options()))[::5]
    offline = run(recipe, recordings, Classifier.for_recipe(bundle, recipe))
    expected = {e.id: json.loads(dataclasses.replace(e, emitted_ns=0).to_json()) for e in offline}
    settings = Settings(brokers=broker, prefix=prefix, home=tmp_path / "home", partitions=3, metrics_port=-1)
    ensure_topics(settings, Names(prefix))
    changes = {"KYMO_BROKERS": broker, "KYMO_PREFIX": prefix, "KYMO_HOME": str(settings.home)}
    environment = kymo_environment({**changes, "KYMO_PARTITIONS": "3", "KYMO_METRICS_PORT": "-1"}, keep=False)

    def events() -> list[dict[str, Any]]:
        return [json.loads(r.value or b"") for r in read_records(settings, Names(prefix).of("events"))]

    with ExitStack() as stack:
        children = [Child(r, kymo_command("worker", str(path), "--roles", r), environment, print) for r in roles]
        stack.callback(stop, children)
        for child in children:
            child.start()
        replay(recordings, settings, ReplayPlan(speed=None))
        await_that(lambda: len(events()) >= len(expected), "every event")
    assert len(expected) == 8 * 6
    found = events()
    assert len(found) == len(expected)
    assert {e["id"]: plain(e) for e in found} == {i: plain(e) for i, e in expected.items()}
