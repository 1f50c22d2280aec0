"""What all end-to-end comparisons stand on. In: a Workload. Out: a broker, topics, recipes and bundles around one network."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.load import Workload
from kymo.deploy.broker import running
from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.processors.recipe.load import load_recipe
from kymo.streams.kafka.admin import ensure_topics
from kymo.streams.settings import Settings
from kymo.streams.topics import Names

NETWORK = Path(__file__).with_name("network.onnx")
LABELS = ("rest", "walk", "run", "jump")
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
    """A running broker and the files of one workload's shape.

    Attributes
    ----------
    settings : Settings
        Of the broker, with a home of its own.
    folder : Path
        For recipes, bundles and logs.
    work : Workload
        Shapes; its sizes are only defaults.
    """

    settings: Settings
    folder: Path
    work: Workload

    def recipe(self, name: str) -> tuple[Path, Path]:
        """A recipe and its bundle. A new name is a new consumer group, which reads its topic from the start."""
        path, work = self.folder / f"{name}.toml", self.work
        path.write_text(recipe_text(name, work))
        recipe = load_recipe(str(path))
        model = {
            "input": "windows",
            "output": "logits",
            "shape": [work.channels, work.columns, work.bins],
            "dtype": "float32",
            "layout": "channels_first",
        }
        manifest = {
            "recipe": name,
            "labels": list(LABELS),
            "temperature": 1.0,
            "batch": "any",
            "chain": recipe.chain.to_json(),
            "model": model,
        }
        return path, write_bundle(self.folder / name, manifest, {MODEL: NETWORK.read_bytes()})

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
    """The workload as a recipe."""
    channels = ", ".join(f'"c{i}"' for i in range(work.channels))
    length_s, hop_s = work.length / work.rate_hz, work.hop / work.rate_hz
    return _RECIPE.format(name=name, work=work, channels=channels, length_s=length_s, hop_s=hop_s)


@contextlib.contextmanager
def rig(work: Workload, brokers: str = "") -> Iterator[Rig]:
    """A rig for the length of a ``with`` block.

    Parameters
    ----------
    work : Workload
        Shapes.
    brokers : str
        A broker that runs already; by default an embedded one of its own, with empty topics.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kymo-bench-")))
        jars = Settings.from_env().home / "kafka"
        brokers = brokers or stack.enter_context(running(folder / "broker", jars_dir=jars)).bootstrap
        yield Rig(Settings(brokers=brokers, home=folder / "home", metrics_port=0), folder, work)
