"""A place where workers are hurt. In: a broker. Out: a never-ending input, real `kymo worker` processes, and the verdict on their events.

The input (:class:`Feed`) runs until it is told to end, so that every fault hits in the middle. What it has sent is classified again
offline, by `kymo.models.run`: those are the events that must be there, each once, none different.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from fault_feed import Feed, lab_recipe
from fuzzed import Fuzzed, fuzzed
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError
from served import offline
from tiny_models import linear_onnx, manifest
from verbs import await_that, variables

from kymo.deploy.children import Child, kymo_command, kymo_environment
from kymo.models.bundle import load_bundle, promote
from kymo.models.registry import tell, write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.processors.recipe.load import load_recipe
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import KymoError
from kymo.streams.kafka.admin import ensure_topics
from kymo.streams.kafka.client import client_arguments, partition_of
from kymo.streams.kafka.read import read_records
from kymo.streams.messages import Record
from kymo.streams.settings import Settings
from kymo.streams.topics import MESSAGE_MAX, Names

PATIENCE_S = 120.0


TAKEOVER_S = 15.0


class Lab:
    """Topics, recipe, bundle and workers of one experiment."""

    def __init__(self, folder: Path, brokers: str, prefix: str, partitions: int = 6, replication: int = 1) -> None:
        self.recipe, self.bundle = lab_recipe(folder)
        self.settings = Settings(brokers, prefix, folder / "home", partitions=partitions, replication=replication)
        self.names, self.codec = Names(prefix), ChunkCodec()
        self.workers: list[Child] = []
        self._asking: Any = None
        self.over = threading.Event()  # no more input
        ensure_topics(self.settings, self.names)

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for worker in self.workers:
            worker.send(signal.SIGKILL)
            worker.wait(PATIENCE_S)
        if self._asking is not None:
            self._asking.close()

    def session_names(self) -> list[str]:
        names: dict[int, list[str]] = {}
        for i in range(1000):
            name = f"device{i}"
            names.setdefault(partition_of(name.encode(), self.settings.partitions), []).append(name)
            if len(names) == self.settings.partitions:
                break
        return sorted(name for some in names.values() for name in some)

    def next_name(self, name: str) -> str:
        base, _, number = name.partition("@")
        place = partition_of(name.encode(), self.settings.partitions)
        names = (f"{base}@{i}" for i in count(int(number or 0) + 1))
        return next(n for n in names if partition_of(n.encode(), self.settings.partitions) == place)

    def members(self) -> int:
        group = f"{self.settings.prefix}.lab.model"
        try:
            admin = KafkaAdminClient(**client_arguments(self.settings))
            try:
                found = admin.describe_groups([group])[group]
            finally:
                admin.close()
        except (KafkaError, OSError):
            return 0
        return len(found["members"]) if found["group_state"] == "Stable" else 0

    def environment(self) -> dict[str, str]:
        return kymo_environment(variables(self.settings), keep=False)

    def start_worker(self, **changes: str) -> Child:
        command = kymo_command("worker", str(self.recipe), "--bundle", str(self.bundle))
        worker = Child(f"worker {len(self.workers)}", command, self.environment() | changes)
        worker.start()
        self.workers.append(worker)
        return worker

    def ends(self, topic: str = "events") -> dict[int, int]:
        found: dict[int, int] = {}

        def asked() -> bool:
            try:
                found.update(self._ends(topic))
            except (KafkaError, OSError):
                return False
            return True

        await_that(asked, f"the ends of {topic}")
        return found

    def _ends(self, topic: str) -> dict[int, int]:
        if self._asking is None:
            self._asking = KafkaConsumer(**client_arguments(self.settings), group_id=None, metrics_enabled=False)
        places = [TopicPartition(self.names.of(topic), i) for i in range(self.settings.partitions)]
        try:
            return {place.partition: end for place, end in self._asking.end_offsets(places, timeout_ms=5000).items()}
        except (KafkaError, OSError):
            self._asking.close()
            self._asking = None
            raise

    def await_growth(self, everywhere: bool = False) -> float:
        """Seconds until new events are there: in any partition, or in each."""
        before, each = self.ends(), all if everywhere else any
        return self.await_that(lambda: each(end > before[p] for p, end in self.ends().items()), "new events")

    def await_that(self, condition: Callable[[], bool], what: str) -> float:
        """Seconds until `condition` was true; no worker may end by itself meanwhile."""

        def asked() -> bool:
            ended = [worker for worker in self.workers if worker.status not in (None, 0, -signal.SIGKILL)]
            assert not ended, f"{what}: {ended[0].name} ended ({ended[0].ended()})\n{self.said()}"
            return condition()

        try:
            return await_that(asked, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.said()}") from None

    def said(self) -> str:
        return "\n".join(f"{worker.name}: {line}" for worker in self.workers for line in worker.tail)

    def records(self, topic: str) -> list[Record]:
        return list(read_records(self.settings, self.names.of(topic)))

    def send_fuzzed(self, seed: int, number: int) -> dict[tuple[str, int, int], Fuzzed]:
        """Messages that are none, while the feed runs; by (topic, partition, offset)."""
        pick, topic, sent = random.Random(seed), self.names.of("sensor"), {}
        producer = KafkaProducer(
            **client_arguments(self.settings), acks="all", max_request_size=2 * MESSAGE_MAX, metrics_enabled=False
        )
        try:
            for i in range(number):
                key, value = fuzzed(pick, i)
                place = pick.randrange(self.settings.partitions)
                told = producer.send(topic, key=key, value=value, partition=place).get(PATIENCE_S)
                sent[topic, place, told.offset] = (key, value)
        finally:
            producer.close()
        return sent

    def rejected(self) -> dict[tuple[str, int, int], tuple[Fuzzed, str]]:
        """By (topic, partition, offset), what was rejected, and the reason."""
        return {where: (came, reason) for where, came, reason in self.rejections()}

    def rejections(self) -> list[tuple[tuple[str, int, int], Fuzzed, str]]:
        """(topic, partition, offset) of what was rejected, what it was, and the reason; as often as it stands there."""
        topic, found = self.names.of("rejected"), list[tuple[tuple[str, int, int], Fuzzed, str]]()
        places = [TopicPartition(topic, i) for i in range(self.settings.partitions)]
        arguments = client_arguments(self.settings) | {"max_partition_fetch_bytes": 2 * MESSAGE_MAX}
        consumer = KafkaConsumer(**arguments, group_id=None, auto_offset_reset="earliest", metrics_enabled=False)
        try:
            consumer.assign(places)
            ends = consumer.end_offsets(places)
            while any(consumer.position(place) < end for place, end in ends.items()):
                for records in consumer.poll(1000).values():
                    for r in records:
                        about = {name: value.decode() for name, value in r.headers}
                        where = (about["topic"], int(about["partition"]), int(about["offset"]))
                        found.append((where, (r.key, r.value), about["reason"]))
        finally:
            consumer.close()
        return found

    def expected(self, feed: Feed, bundle: str = "") -> dict[str, dict[str, Any]]:
        """By id, the events of an undisturbed run with the bundle, by default the lab's."""
        recordings = [source.recording() for source in feed.sources if source.taken]
        found = load_bundle(bundle or str(self.bundle), self.settings.home)
        return offline(load_recipe(self.recipe), recordings, found)

    def check(self, feed: Feed) -> int:
        """End the input, wait for its last event; every one is there, none twice, none different. Gives their number."""
        feed.end()
        expected = self.expected(feed)
        self.await_that(lambda: sum(self.ends().values()) >= len(expected), f"{len(expected)} events")
        return self.verdict(expected)

    def verdict(self, expected: dict[str, dict[str, Any]]) -> int:
        """Compare the topic with what must be there."""
        found = [json.loads(record.value or b"") | {"emitted_ns": 0} for record in self.records("events")]
        times = Counter(event["id"] for event in found)
        twice = [name for name, count in times.items() if count > 1]
        missing, extra = sorted(expected.keys() - times.keys()), sorted(times.keys() - expected.keys())
        different = [event for event in found if event["id"] in expected and event != expected[event["id"]]]
        assert (missing[:5], extra[:5], twice[:5], different[:2]) == ([], [], [], []), (
            f"of {len(expected)} events {len(missing)} are missing, {len(extra)} too many, {len(twice)} there twice, "
            f"{len(different)} different\n"
            + "\n".join(f"  is {event}\nnot {expected[event['id']]}" for event in different[:2])
            + f"\n{self.said()}"
        )
        return len(found)


def stop_worker(worker: Child, patience_s: float = 60.0) -> float:
    started = time.monotonic()
    worker.send(signal.SIGTERM)
    status = worker.wait(patience_s)
    assert status == 0, f"{worker.name}: {worker.ended() if status is not None else 'still runs'}\n" + "\n".join(
        worker.tail
    )
    return time.monotonic() - started


def kill(worker: Child) -> None:
    worker.send(signal.SIGKILL)
    status = worker.wait(PATIENCE_S)
    assert status in (-signal.SIGKILL, 0), f"it had ended before: {worker.ended()}\n" + "\n".join(worker.tail)


def signal_process(worker: Child, number: int) -> None:
    os.kill(worker.pid, number)


__all__ = [
    "PATIENCE_S",
    "TAKEOVER_S",
    "Feed",
    "KymoError",
    "Lab",
    "await_that",
    "kill",
    "signal_process",
    "stop_worker",
]


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
    def __init__(self, folder: Path, brokers: str, prefix: str, versions: int = 2) -> None:
        super().__init__(folder, brokers, prefix)
        # Pooling begins anew behind an exchange, so its first events would not be those of either bundle alone.
        self.recipe.write_text(re.sub(r"(?m)^pool = .*\n", "", self.recipe.read_text()))
        self.versions = [version(self.recipe, self.settings.home, number) for number in range(versions)]
        self.promoted = [self.versions[0]]
        promote(self.versions[0], home=self.settings.home)

    def start_worker(self, **changes: str) -> Child:
        command = kymo_command("worker", str(self.recipe))
        worker = Child(f"worker {len(self.workers)}", command, self.environment() | changes)
        worker.start()
        self.workers.append(worker)
        return worker

    def promote(self, bundle: str, alias: str = "champion") -> int:
        entry = promote(bundle, alias, home=self.settings.home)
        if alias == "champion":
            self.promoted.append(bundle)
        assert tell(entry, "lab", self.settings) == ""
        return entry.at_ns

    def events(self, topic: str = "events") -> list[dict[str, Any]]:
        return [json.loads(record.value or b"") for record in self.records(topic)]

    def until_served_by(self, bundle: str) -> None:
        """Wait for an event of `bundle` that was not there before."""
        before = Counter(event["bundle"] for event in self.events())
        self.await_that(
            lambda: Counter(event["bundle"] for event in self.events())[bundle] > before[bundle], f"events of {bundle}"
        )

    def check_swaps(self, feed: Feed) -> list[dict[str, Any]]:
        """End the input; every window has one event, that of a bundle which was current when it was made. Gives the events."""
        feed.end()
        offline = {bundle: self.expected(feed, bundle) for bundle in sorted(set(self.promoted))}
        ids = sorted(offline[self.versions[0]])
        self.await_that(lambda: sum(self.ends().values()) >= len(ids), f"{len(ids)} events")
        found = self.events()
        assert sorted(event["id"] for event in found) == ids
        for event in found:
            expected = offline[event["bundle"]][event["id"]]
            different = {name: (value, expected[name]) for name, value in event.items() if value != expected[name]}
            assert set(different) <= {"emitted_ns"}, f"{event['id']}: came, expected: {different}"
        return found
