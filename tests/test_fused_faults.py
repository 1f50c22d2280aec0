"""Late fusion by real workers that are killed: the events of two recipes and of the one that fuses them, each once, none different."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault_feed import RECIPE, Feed
from fault_lab import Lab, kill, stop_worker
from tiny_models import fitted, linear_onnx, manifest

from kymo.deploy.children import Child, kymo_command
from kymo.models.bundle import load_bundle
from kymo.models.fusion import run_fusion
from kymo.models.predict import Classifier
from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.processors.recipe.fusion import FusionRecipe, load_fusion
from kymo.processors.recipe.load import load_recipe

FUSED = """name = "fused"
[[input]]
events = "short"
lateness_s = 20
idle_s = 20
[[input]]
events = "long"
weight = 2
lateness_s = 20
idle_s = 20
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


@pytest.mark.parametrize("kills", [pytest.param(3, id="short"), pytest.param(50, marks=pytest.mark.chaos, id="full")])
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
