"""A lab whose workers follow promotions. In: a broker. Out: versions, promotions, and the verdict on the events."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from fault_feed import Feed
from fault_lab import Lab
from tiny_models import linear_onnx, manifest

from kymo.deploy.children import Child, kymo_command
from kymo.models.bundle import load_bundle, promote
from kymo.models.predict import Classifier
from kymo.models.registry import tell, write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.models.run import run
from kymo.processors.recipe.load import load_recipe

_WEIGHTS = np.array([[-4.0, 1.0], [0.0, -2.0], [4.0, 1.0]])
_MODEL = {"input": "windows", "output": "logits", "shape": [2, 16], "dtype": "float32", "layout": "channels_first"}


def version(recipe: Path, home: Path, number: int, onnx: bytes | None = None) -> str:
    """Id of a new version for the lab's recipe: other weights, and other learned numbers."""
    chain = load_recipe(recipe).chain.to_json()
    chain["specs"][-1]["spec"] |= {"mean": [0.01 * number, 0.0], "std": [1.0 + number / 10, 1.0]}
    described = manifest(recipe="lab", chain=chain, model=_MODEL)
    onnx = linear_onnx(_WEIGHTS * (1 + number / 7), rows=16) if onnx is None else onnx
    return f"lab@{write_bundle(None, described, {MODEL: onnx}, home, promote=False).name}"


class SwapLab(Lab):
    """A :class:`fault_lab.Lab` whose workers take the champion."""

    def __init__(self, folder: Path, brokers: str, prefix: str, versions: int = 2) -> None:
        super().__init__(folder, brokers, prefix)
        # Pooling begins anew behind an exchange, so its first events would not be those of either bundle alone.
        self.recipe.write_text(re.sub(r"(?m)^pool = .*\n", "", self.recipe.read_text()))
        self.versions = [version(self.recipe, self.settings.home, number) for number in range(versions)]
        self.promoted = [self.versions[0]]
        promote(self.versions[0], home=self.settings.home)

    def start_worker(self, **changes: str) -> Child:
        """A worker that follows promotions."""
        command = kymo_command("worker", str(self.recipe))
        worker = Child(f"worker {len(self.workers)}", command, self.environment() | changes)
        worker.start()
        self.workers.append(worker)
        return worker

    def promote(self, bundle: str, alias: str = "champion") -> int:
        """Promote, and tell; when it was promoted, Unix ns."""
        entry = promote(bundle, alias, home=self.settings.home)
        if alias == "champion":
            self.promoted.append(bundle)
        assert tell(entry, "lab", self.settings) == ""
        return entry.at_ns

    def events(self, topic: str = "events") -> list[dict[str, Any]]:
        """All events of a topic."""
        return [json.loads(record.value or b"") for record in self.records(topic)]

    def until_served_by(self, bundle: str) -> None:
        """Wait for an event of `bundle` that was not there before."""
        before = Counter(event["bundle"] for event in self.events())
        self.await_that(
            lambda: Counter(event["bundle"] for event in self.events())[bundle] > before[bundle], f"events of {bundle}"
        )

    def offline(self, feed: Feed, bundle: str) -> dict[str, dict[str, Any]]:
        """By id, the events of an undisturbed run with one bundle."""
        recipe = load_recipe(self.recipe)
        classifier = Classifier.for_recipe(load_bundle(bundle, self.settings.home), recipe)
        recordings = [source.recording() for source in feed.sources if source.taken]
        return {e.id: json.loads(e.to_json()) | {"emitted_ns": 0} for e in run(recipe, recordings, classifier)}

    def check_swaps(self, feed: Feed) -> list[dict[str, Any]]:
        """End the input; every window has one event, that of a bundle which was current when it was made. Gives the events."""
        feed.end()
        offline = {bundle: self.offline(feed, bundle) for bundle in sorted(set(self.promoted))}
        ids = sorted(offline[self.versions[0]])
        self.await_that(lambda: sum(self.ends().values()) >= len(ids), f"{len(ids)} events")
        found = self.events()
        assert sorted(event["id"] for event in found) == ids
        for event in found:
            expected = offline[event["bundle"]][event["id"]]
            different = {name: (value, expected[name]) for name, value in event.items() if value != expected[name]}
            assert set(different) <= {"emitted_ns"}, f"{event['id']}: came, expected: {different}"
        return found
