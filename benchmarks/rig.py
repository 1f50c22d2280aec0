"""What all end-to-end comparisons stand on. In: a Workload. Out: a broker, topics, recipes, bundles and workers, as a user starts them."""

from __future__ import annotations

import contextlib
import re
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.load import Workload
from kymo.deploy.broker import running
from kymo.deploy.children import Child, kymo_environment
from kymo.deploy.metrics_server import find_server
from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.models.zoo.onnx_graph import Graph
from kymo.processors.recipe.load import Recipe, load_recipe
from kymo.streams.kafka.admin import ensure_topics
from kymo.streams.settings import Settings
from kymo.streams.topics import Names

NETWORK = Path(__file__).with_name("network.onnx")
LABELS = ("rest", "walk", "run", "jump")
Deployed = tuple[Recipe, Path]  # a recipe that has a file, and its bundle
_RECIPE = """\
name = "{name}"
[[input]]
stream = "imu"
rate_hz = {work.rate_hz}
channels = [{channels}]
[[steps]]
step = "spectrogram"
nperseg = {work.nperseg}
noverlap = {work.noverlap}
[[steps]]
step = "log"
eps = {work.eps}
[window]
length_s = {length_s}
hop_s = {hop_s}
[model]
architecture = "spectrogram_cnn"
"""


@dataclass(frozen=True, slots=True)
class Rig:
    """A running broker and the files of one workload's shape."""

    settings: Settings  # of the broker, with a home of its own
    folder: Path  # for recipes, bundles and logs
    work: Workload  # shapes; its sizes are only defaults

    def recipe(self, name: str) -> Deployed:
        """The workload's recipe, with its network. A new name is a new consumer group, which reads its topic from the start."""
        recipe, work = self.write(name, recipe_text(name, self.work)), self.work
        shape = [work.channels, work.columns, work.bins]
        return recipe, self.bundle(recipe, NETWORK.read_bytes(), {"shape": shape, "layout": "channels_first"})

    def write(self, name: str, text: str) -> Recipe:
        path = self.folder / f"{name}.toml"
        path.write_text(text)
        return load_recipe(str(path))

    def bundle(self, recipe: Recipe, network: bytes, shape: dict[str, Any] | None = None) -> Path:
        """A bundle of a network, which takes a recipe's windows as they are, or otherwise."""
        fmt = recipe.output_format()
        model = {"input": "windows", "output": "logits", "shape": [fmt.rows, *fmt.shape], "dtype": "float32"}
        model |= {"layout": "channels_last"} | (shape or {})
        manifest = {"recipe": recipe.name, "labels": list(LABELS), "temperature": 1.0, "batch": "any", "model": model}
        return write_bundle(self.folder / recipe.name, manifest | {"chain": recipe.chain.to_json()}, {MODEL: network})

    def worker(self, deployed: Deployed, prefix: str, *options: str, module: str = "kymo", **env: str) -> Child:
        """A worker under a prefix (workers of one recipe share the work), not yet started."""
        recipe, bundle = deployed
        changes = {
            "KYMO_BROKERS": self.settings.brokers,
            "KYMO_HOME": str(self.settings.home),
            "KYMO_METRICS_PORT": "0",
        }
        command = [sys.executable, "-P", "-m", module, "worker", str(recipe.path), "--bundle", str(bundle)]
        return Child("kymo", [*command, "--prefix", prefix, *options], kymo_environment(changes | env, keep=False))

    def metrics(self, worker: Child) -> dict[str, float]:
        """What a worker says of itself, by name."""
        server = find_server(self.settings.home, "worker", worker.pid)
        with urllib.request.urlopen(f"{server}/metrics", timeout=5) as reply:
            rows = re.findall(r"^(\w+)(?:\{[^}]*\})? (\S+)$", reply.read().decode(), re.MULTILINE)
        return {name: float(value) for name, value in rows}

    def names(self, prefix: str) -> Names:
        """Kymo's topics under a prefix, made."""
        names = Names(prefix)
        ensure_topics(replace(self.settings, prefix=prefix), names)
        return names

    def topic(self, name: str) -> str:
        """A topic for a peer, made, with as many partitions as Kymo's and leaders for all; its name."""
        from kafka.admin import KafkaAdminClient

        from kymo.streams.kafka.client import client_arguments

        with KafkaAdminClient(**client_arguments(self.settings)) as admin:
            admin.create_topics({name: {"num_partitions": self.settings.partitions, "replication_factor": 1}})
            admin.wait_for_topics([name], timeout_ms=20_000)
        return name

    def producer(self, **options: Any) -> Any:
        """A confluent-kafka producer with Java's partitioner, as Kymo's own."""
        from confluent_kafka import Producer

        defaults = {"partitioner": "murmur2", "linger.ms": 20, "batch.size": 2**20, "enable.idempotence": True}
        return Producer({"bootstrap.servers": self.settings.brokers} | defaults | options)


def recipe_text(name: str, work: Workload) -> str:
    channels = ", ".join(f'"c{i}"' for i in range(work.channels))
    length_s, hop_s = work.length / work.rate_hz, work.hop / work.rate_hz
    return _RECIPE.format(name=name, work=work, channels=channels, length_s=length_s, hop_s=hop_s)


def network_of_means(recipe: Recipe, weights: NDArray[np.float32]) -> bytes:
    """The mean of each channel times weights: what is measured then is not a network."""
    fmt, graph = recipe.output_format(), Graph()
    means = graph.node("ReduceMean", ["windows", np.arange(1, 1 + len(fmt.shape))], keepdims=0)
    graph.node("MatMul", [means, weights], "logits")
    return graph.model({"windows": ("n", fmt.rows or 0, *fmt.shape)}, {"logits": ("n", len(LABELS))})


@contextlib.contextmanager
def rig(work: Workload, brokers: str = "") -> Iterator[Rig]:
    """A rig for the length of a ``with`` block, on a broker that runs already, or on an embedded one with empty topics."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kymo-bench-")))
        jars = Settings.from_env().home / "kafka"
        brokers = brokers or stack.enter_context(running(folder / "broker", jars_dir=jars)).bootstrap
        yield Rig(Settings(brokers=brokers, home=folder / "home", metrics_port=0), folder, work)
