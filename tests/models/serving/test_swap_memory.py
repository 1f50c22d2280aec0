"""A worker's memory does not grow with the number of exchanges."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from documents import ROOT

pytest.importorskip("psutil")
MODEL_MB = 4
CODE = """
import json, sys, threading, time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
sys.path.insert(0, "tests")
import numpy as np
import psutil
from tiny_models import dense_onnx, manifest
from kymo.deploy.follow import Exchange
from kymo.deploy.roles import Deployment, make_part
from kymo.models.bundle import load_bundle, promote
from kymo.models.registry.manifest import MODEL
from kymo.models.registry import open_registry, write_bundle
from kymo.processors.recipe.load import parse_recipe
from kymo.streams.topics import Names

recipe = parse_recipe('''
name = "wide"
[[input]]
stream = "imu"
rate_hz = 10
channels = ["x"]
[window]
length_s = 400
hop_s = 400
[model]
architecture = "spectrogram_cnn"
''')
home = Path(sys.argv[1])
section = {"input": "windows", "output": "logits", "shape": [1, 4000], "dtype": "float32", "layout": "channels_first"}
labels = [f"l{i}" for i in range(256)]
ids = []
for seed in (0, 1):
    about = manifest(recipe="wide", chain=recipe.chain.to_json(), model=section, labels=labels)
    ids.append("wide@" + write_bundle(None, about, {MODEL: dense_onnx(4000, 256, seed)}, home, promote=False).name)

class Told:
    counts = Counter()
    def swapped(self, recipe, alias, bundle): self.counts["taken"] += 1
    def refused(self, recipe, alias): self.counts["refused"] += 1

promote(ids[0], home=home)
part = make_part("processor-model", Deployment(recipe, load_bundle("wide", home)), Names("t"))
exchange, registry, over = Exchange([part], {}, home, Told()), open_registry(home), threading.Event()

def serve():
    batch = np.random.default_rng(0).standard_normal((8, 1, 4000)).astype(np.float32)
    while not over.is_set():
        part.champion.predictor.classifier.model.run(batch)

server, loader, found = threading.Thread(target=serve), ThreadPoolExecutor(1), {}
server.start()
for number in range(1, 101):
    promotion = registry.promotion(promote(ids[number % 2], home=home), "wide")
    loader.submit(exchange.consider, promotion).result()
    if number in (20, 100):
        found[number] = psutil.Process().memory_full_info().pss / 2**20
over.set()
server.join()
print(json.dumps({"pss_mb": found, **Told.counts}))
"""


def test_memory_after_100_exchanges(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout)
    assert said["taken"] == 100
    assert "refused" not in said
    print(f"\nPSS after 20 and 100 exchanges: {said['pss_mb']} MB")
    # A model that stayed each time would be 320 MB; one that is about to go may still be there.
    assert said["pss_mb"]["100"] < said["pss_mb"]["20"] + 4 * MODEL_MB
