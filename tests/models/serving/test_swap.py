"""Bundles exchanged under a running worker: no window lost, none classified twice, each by the bundle that was current; of one kind, of
another, and a hundred times."""

from __future__ import annotations

import json
import random
import threading
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from fault_feed import RECIPE
from fault_lab import Feed, SwapLab, kill, stop_worker, version
from tiny_models import linear_onnx, manifest, mean_onnx
from verbs import python

from kymo.models.bundle import promote, raw_chain
from kymo.models.registry import open_registry, tell, write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.processors.recipe.load import load_recipe


@pytest.fixture
def lab(tmp_path: Path, broker: str, prefix: str) -> SwapLab:
    return SwapLab(tmp_path, broker, prefix)


def test_three_exchanges_while_the_stream_goes_on(lab: SwapLab) -> None:
    with lab:
        feed, worker = Feed(lab, 21, rate=300), lab.start_worker()
        feed.start()
        lab.until_served_by(lab.versions[0])
        promoted: list[tuple[str, int]] = []
        for number in range(3):
            bundle = lab.versions[(number + 1) % 2]
            promoted.append((bundle, lab.promote(bundle)))
            lab.until_served_by(bundle)
        events = lab.check_swaps(feed)
        stop_worker(worker)
        # One batch after the other: in the order of their making, bundles follow each other as they were promoted.
        ordered = sorted(events, key=lambda event: event["emitted_ns"])
        assert [bundle for bundle, _ in groupby(event["bundle"] for event in ordered)] == lab.promoted
        assert "Traceback" not in lab.said()
    took_s = [
        min(e["emitted_ns"] for e in events if e["bundle"] == bundle and e["emitted_ns"] > at_ns) - at_ns
        for bundle, at_ns in promoted
    ]
    said = ", ".join(f"{ns / 1e9:.2f}" for ns in took_s)
    print(f"\n{len(events)} events over 3 promotions, each once; first event of the new bundle after {said} s")


def test_kills_between_promotions(lab: SwapLab) -> None:
    with lab:
        feed, worker = Feed(lab, 22), lab.start_worker()
        feed.start()
        lab.until_served_by(lab.versions[0])
        kill(worker)
        lab.promote(lab.versions[1])  # while no worker runs
        worker = lab.start_worker()
        lab.until_served_by(lab.versions[1])
        lab.promote(lab.versions[0])
        kill(worker)
        worker = lab.start_worker()
        lab.until_served_by(lab.versions[0])
        lab.check_swaps(feed)
        stop_worker(worker)


def test_broken_bundles_are_refused_and_the_old_one_stays(lab: SwapLab) -> None:
    home, registry = lab.settings.home, open_registry(lab.settings.home)
    no_model = version(lab.recipe, home, 3, b"no onnx")
    not_finite = version(lab.recipe, home, 4, linear_onnx(np.full((3, 2), np.nan), rows=16))
    other_shape = version(lab.recipe, home, 5, linear_onnx(np.eye(3, 2), rows=15))
    damaged = version(lab.recipe, home, 6)
    with lab:
        feed, worker = Feed(lab, 23), lab.start_worker()
        feed.start()
        lab.until_served_by(lab.versions[0])
        for bundle in (no_model, not_finite, other_shape, damaged):
            entry = registry.promote("lab", bundle.partition("@")[2])
            if bundle == damaged:
                (home / "registry" / "lab" / entry.digest / MODEL).write_bytes(b"damaged")
            assert tell(entry, "lab", lab.settings) == ""
            lab.await_that(lambda b=bundle: f"{b} is refused" in lab.said(), "the refusal")
        lab.promote(lab.versions[1])
        lab.until_served_by(lab.versions[1])
        assert {event["bundle"] for event in lab.check_swaps(feed)} == set(lab.versions)
        stop_worker(worker)


def test_a_worker_with_another_home_takes_what_is_announced_from_the_shared_registry_and_its_shadow_scores_aside(
    lab: SwapLab, tmp_path: Path
) -> None:
    shadow, champion = lab.versions
    shared = str(lab.settings.home / "registry")
    elsewhere = {"KYMO_HOME": str(tmp_path / "other"), "KYMO_REGISTRY": shared}
    with lab:
        lab.promote(champion)
        feed, worker = Feed(lab, 24), lab.start_worker(**elsewhere)
        feed.start()
        lab.until_served_by(champion)
        lab.promote(shadow, "shadow")
        lab.await_that(lambda: len(lab.events("shadow")) > 50, "the shadow's events")
        events, scored = lab.check_swaps(feed), lab.events("shadow")
        stop_worker(worker)
    offline = lab.expected(feed, shadow)
    assert {event["bundle"] for event in events} == {champion}
    assert len({event["id"] for event in scored}) == len(scored)
    for event in scored:
        assert event | {"emitted_ns": 0} == offline[event["id"]]


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_promotions_and_kills_at_random_moments(lab: SwapLab) -> None:
    pick, kills, promotions = random.Random(31), 0, 0
    with lab:
        feed, workers = Feed(lab, 31), [lab.start_worker(), lab.start_worker()]
        feed.start()
        lab.until_served_by(lab.versions[0])
        for number in range(30):
            lab.promote(lab.versions[(number + 1) % 2])
            promotions += 1
            threading.Event().wait(pick.uniform(0, 2))  # a random moment: while it loads, exchanges, or has exchanged
            if number % 3 == 2:
                kill(workers.pop(0))
                workers.append(lab.start_worker())
                kills += 1
                lab.await_growth()
        lab.until_served_by(lab.promoted[-1])
        events = lab.check_swaps(feed)
        for worker in workers:
            stop_worker(worker)
    print(f"\n{len(events)} events over {promotions} promotions and {kills} kills, each once")


#: Eight samples a column, every eight: the window of spectra is whole when the one of samples is.
SPECTRA = RECIPE.replace('step = "scale"\nfactor = 0.5', 'step = "spectrogram"\nnperseg = 8\nnoverlap = 0')


class KindsLab(SwapLab):
    def __init__(self, folder: Path, brokers: str, prefix: str) -> None:
        super().__init__(folder, brokers, prefix)
        text = "\n".join(line for line in SPECTRA.splitlines() if not line.startswith("pool"))
        self.recipe.write_text(text.replace('[[window.steps]]\nstep = "standardise"\n', ""))
        loaded = load_recipe(self.recipe)
        ids = []
        for raw in (False, True):
            shape = [16, 2] if raw else [2, 5, 2]
            chain = (raw_chain(loaded.chain) if raw else loaded.chain).to_json()
            model = {"input": "windows", "output": "logits", "shape": shape, "dtype": "float32"}
            model |= {"layout": "channels_last"} | ({"takes": "raw"} if raw else {})
            described = manifest(recipe="lab", chain=chain, model=model)
            onnx = pooled_onnx(raw)
            ids.append(f"lab@{write_bundle(None, described, {MODEL: onnx}, self.settings.home, promote=False).name}")
        self.versions, self.promoted = ids, [ids[0]]
        promote(ids[0], home=self.settings.home)


def pooled_onnx(raw: bool) -> bytes:
    """Logits of the mean over time (and bins) of each channel."""
    weights = np.array([[-4.0, 0.0, 4.0], [1.0, -2.0, 1.0]], np.float32)
    return mean_onnx(weights, [1], [16, 2]) if raw else mean_onnx(weights, [1, 2], [2, 5, 2])


@pytest.fixture
def kinds_lab(tmp_path: Path, broker: str, prefix: str) -> KindsLab:
    return KindsLab(tmp_path, broker, prefix)


def test_from_spectra_to_samples_and_back_while_the_stream_goes_on(kinds_lab: KindsLab) -> None:
    with kinds_lab:
        feed, worker = Feed(kinds_lab, 41, rate=150), kinds_lab.start_worker()
        feed.start()
        kinds_lab.until_served_by(kinds_lab.versions[0])
        for number in (1, 0, 1):
            kinds_lab.promote(kinds_lab.versions[number])
            kinds_lab.until_served_by(kinds_lab.versions[number])
        kill(worker)
        kinds_lab.promote(kinds_lab.versions[0])  # while no worker runs: the next one finds sessions of the other kind
        worker = kinds_lab.start_worker()
        kinds_lab.until_served_by(kinds_lab.versions[0])
        events = kinds_lab.check_swaps(feed)
        stop_worker(worker)
        assert "refused" not in kinds_lab.said()
    served = {bundle: sum(event["bundle"] == bundle for event in events) for bundle in kinds_lab.versions}
    print(f"\n{len(events)} events over 4 exchanges of kind and a kill, each once: {served}")


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
    said = json.loads(python(CODE, tmp_path))
    assert said["taken"] == 100
    assert "refused" not in said
    print(f"\nPSS after 20 and 100 exchanges: {said['pss_mb']} MB")
    # A model that stayed each time would be 320 MB; one that is about to go may still be there.
    assert said["pss_mb"]["100"] < said["pss_mb"]["20"] + 4 * MODEL_MB
