"""What is made of events by real workers that are killed: fused events, and a rule over all sessions; each once, none different."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crowd import check_history
from documents import ROOT
from fault_feed import RECIPE, Feed
from fault_lab import Lab, kill, stop_worker
from tiny_models import fitted, linear_onnx, manifest
from verbs import await_that, variables

from kymo.deploy.children import Child, kymo_command, kymo_environment
from kymo.models.bundle import load_bundle
from kymo.models.fusion import run_fusion
from kymo.models.predict import Classifier
from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.processors.recipe.fusion import FusionRecipe, load_fusion
from kymo.processors.recipe.load import load_recipe
from kymo.streams.kafka.admin import ensure_topics
from kymo.streams.kafka.publish import Publisher
from kymo.streams.kafka.read import read_records
from kymo.streams.settings import Settings
from kymo.streams.topics import Names

FUSED = """name = "fused"
[[input]]
events = "short"
lateness_s = 12
idle_s = 12
[[input]]
events = "long"
weight = 2
lateness_s = 12
idle_s = 12
"""
WINDOWS = {"short": (0.16, 0.08), "long": (0.32, 0.16)}
WEIGHTS = {"short": [[-4.0, 1.0], [0.0, -2.0], [4.0, 1.0]], "long": [[-2.0, 2.0], [1.0, -2.0], [3.0, -1.0]]}


def fused_recipes(folder: Path, home: Path) -> FusionRecipe:
    """Two recipes with bundles, and the one that fuses their events."""
    for name, (length_s, hop_s) in WINDOWS.items():
        text = RECIPE.replace('name = "lab"', f'name = "{name}"')
        text = text.replace("length_s = 0.16", f"length_s = {length_s}").replace("hop_s = 0.08", f"hop_s = {hop_s}")
        (folder / f"{name}.toml").write_text(text)
        rows = round(length_s * 100)
        model = {"input": "windows", "output": "logits", "shape": [2, rows], "dtype": "float32"}
        described = manifest(
            recipe=name,
            chain=fitted(load_recipe(folder / f"{name}.toml").chain),
            model=model | {"layout": "channels_first"},
        )
        write_bundle(None, described, {MODEL: linear_onnx(np.array(WEIGHTS[name]), rows=rows)}, home)
    (folder / "fused.toml").write_text(FUSED)
    fusion = load_fusion(folder / "fused.toml")
    assert fusion is not None
    return fusion


class FusedLab(Lab):
    """A lab whose workers classify by two recipes and fuse what comes of it."""

    def __init__(self, folder: Path, brokers: str, prefix: str) -> None:
        super().__init__(folder, brokers, prefix, partitions=2)
        self.folder, self.fusion = folder, fused_recipes(folder, self.settings.home)

    def start_worker(self, **changes: str) -> Child:
        paths = [str(self.folder / f"{name}.toml") for name in (*WINDOWS, "fused")]
        worker = Child(f"worker {len(self.workers)}", kymo_command("worker", *paths), self.environment() | changes)
        worker.start()
        self.workers.append(worker)
        return worker

    def expected(self, feed: Feed, bundle: str = "") -> dict[str, dict[str, Any]]:
        recordings = [source.recording() for source in feed.sources if source.taken]
        out: dict[str, dict[str, Any]] = {}
        classifiers = []
        for recipe in self.fusion.recipes:
            found = load_bundle(recipe.name, self.settings.home)
            classifiers.append(Classifier.for_recipe(found, recipe))
            self.recipe, self.bundle = self.folder / f"{recipe.name}.toml", found.path
            out |= super().expected(feed, recipe.name)
        fused = run_fusion(self.fusion, classifiers, lambda _: recordings)
        return out | {event.id: event.to_dict() | {"emitted_ns": 0} for event in fused}


@pytest.mark.parametrize("kills", [pytest.param(2, id="short"), pytest.param(50, marks=pytest.mark.chaos, id="full")])
def test_events_are_fused_while_workers_are_killed(tmp_path: Path, broker: str, prefix: str, kills: int) -> None:
    pick = random.Random(1)
    with FusedLab(tmp_path, broker, prefix) as lab:
        feed = Feed(lab, 1, rate=30.0)
        feed.start()
        worker = lab.start_worker()
        lab.await_growth()
        for _ in range(kills):
            threading.Event().wait(pick.uniform(0, 1.5))  # a random moment of its work
            kill(worker)
            worker = lab.start_worker()
            lab.await_growth()
        count = lab.check(feed)
        stop_worker(worker)
        expected = lab.expected(feed)
        assert lab.verdict(expected) == count
        fused = [event for event in expected.values() if event["recipe"] == "fused"]
        assert len(fused) > 100
        assert not any(event["absent"] for event in fused[:20] if "absent" in event)
    print(f"\n{kills} kills: {count} events, {len(fused)} of them fused, each once")


def crowd_worker(settings: Settings, instance: str) -> Child:
    """A worker of a rule alone."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = kymo_environment(variables(settings) | {"PYTHONPATH": path}, keep=False)
    topic, script = f"{settings.prefix}.sensor", ROOT / "tests" / "crowd.py"
    worker = Child(instance, [sys.executable, str(script), settings.prefix, topic, instance], environment)
    worker.start()
    return worker


def test_a_rule_over_all_sessions_has_one_owner_whoever_is_killed(tmp_path: Path, broker: str, prefix: str) -> None:
    pick, over = random.Random(2), threading.Event()
    settings = Settings(broker, prefix, tmp_path / "home", partitions=3)
    names = Names(prefix)
    ensure_topics(settings, names)

    def send(labels: Mapping[int, bytes]) -> None:
        with Publisher(settings, names) as publisher:
            for number, label in labels.items():
                publisher.send("sensor", f"s{number}", label)
            publisher.flush(60)

    def feed() -> None:
        with Publisher(settings, names) as publisher:
            while not over.wait(0.01):
                publisher.send("sensor", f"s{pick.randint(0, 7)}", pick.choice("xy").encode())
        send(dict.fromkeys(range(8), b"y"))

    def events() -> list[dict[str, Any]]:
        return [json.loads(record.value or b"") for record in read_records(settings, names.of("events"))]

    def goes_on() -> None:
        count = len(events())
        await_that(lambda: len(events()) > count + 5, "the rule goes on")

    owner, other = (
        crowd_worker(settings, "first"),
        crowd_worker(settings, "second"),
    )  # the one whose name comes first has all partitions
    sending = threading.Thread(target=feed, daemon=True)
    sending.start()
    try:
        for fault in ("killed", "stopped", "killed"):
            goes_on()
            if fault == "stopped":
                owner.send(signal.SIGSTOP)
                goes_on()  # the other has taken over
                owner.send(signal.SIGCONT)
            else:
                kill(owner)
                goes_on()
                owner = crowd_worker(settings, "first")
        goes_on()
        over.set()
        sending.join(60)
        sent_ns = time.time_ns()
        await_that(lambda: events()[-1]["state"] == "silent" and events()[-1]["now"] > sent_ns, "all is taken")
        count = len(events())
        send({1: b"x", 4: b"x", 6: b"x"})  # what all others say, the rule remembers
        await_that(lambda: len(events()) == count + 3, "all is taken again")
    finally:
        for worker in (owner, other):
            worker.send(signal.SIGKILL)
            worker.wait(60)
    found = events()
    check_history(found)
    assert [event["state"] for event in found[-3:]] == ["few", "many", "silent"]
    assert found[-2]["crowd"] == ["s1", "s4", "s6"]
    assert {record.partition for record in read_records(settings, names.of("events"))} == {0}
