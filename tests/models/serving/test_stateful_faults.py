"""Workers that serve a stateful model, killed again and again: every event there, none twice, none different."""

from __future__ import annotations

import random
import signal
import threading
from pathlib import Path

import pytest
from fault_feed import RECIPE
from fault_lab import Feed, Lab, kill, stop_worker
from tiny_stateful import leaky_onnx, manifest

from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.processors.recipe.load import load_recipe

pytestmark = [pytest.mark.broker, pytest.mark.slow]
STATEFUL = RECIPE.replace("hop_s = 0.08", "hop_s = 0.16").replace(
    'architecture = "spectrogram_cnn"\n', 'architecture = "recurrent"\nstateful = true\n'
)


@pytest.fixture
def lab(tmp_path: Path, broker: str, prefix: str) -> Lab:
    """A lab whose model is stateful, and pooled behind that."""
    made = Lab(tmp_path, broker, prefix)
    made.recipe.write_text(STATEFUL)
    described = manifest(load_recipe(made.recipe), channels=2, rows=16)
    made.bundle = write_bundle(tmp_path / "stateful", described, {MODEL: leaky_onnx(0, 2, 16)})
    return made


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(1, marks=pytest.mark.timeout(300), id="short"),
        pytest.param(20, marks=[pytest.mark.chaos, pytest.mark.timeout(3600)], id="full"),
    ],
)
def test_worker_killed_again_and_again(lab: Lab, kills: int) -> None:
    pick, back = random.Random(3), []
    with lab:
        feed, worker = Feed(lab, 3), lab.start_worker()
        feed.start()
        lab.await_growth()
        for number in range(kills):
            if number % 4 == 1:  # while it ends in order
                worker.send(signal.SIGTERM)
            threading.Event().wait(pick.uniform(0, 0.3 if number % 4 == 1 else 2))  # a random moment of its work
            kill(worker)
            worker = lab.start_worker()
            back.append(lab.await_growth())
        count = lab.check(feed)
        lab.await_that(lambda: any(lab.ends("state").values()), "a snapshot")  # sessions that ended have one
        stop_worker(worker)
        assert lab.verdict(lab.expected(feed)) == count
    stored = len(lab.records("state"))
    assert stored > 0
    print(f"\n{kills} kills: {count} events, each once, {stored} snapshots; back after {max(back):.1f} s at most")
