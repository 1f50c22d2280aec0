"""A place where workers are hurt. In: a broker. Out: a never-ending input, real `kymo worker` processes, and the verdict on their events.

The input (:class:`Feed`) runs until it is told to end, so that every fault hits in the middle. What it has sent is classified again
offline, by `kymo.models.run`: those are the events that must be there, each once, none different.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from fault_feed import Feed, lab_recipe
from fuzzed import Fuzzed, fuzzed
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from kymo.deploy.children import Child, kymo_command, kymo_environment
from kymo.models.bundle import Bundle, load_bundle
from kymo.models.predict import Classifier
from kymo.models.run import run
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


def await_that(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> float:
    """Seconds until `condition` was true; asks ten times a second."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < patience_s, f"{what}: not within {patience_s:g} s"
        threading.Event().wait(0.1)
    return time.monotonic() - started


class Lab:
    """Topics, recipe, bundle and workers of one experiment.

    Parameters
    ----------
    folder : Path
        For files.
    brokers, prefix : str
        Where Kafka is; the experiment's own prefix.
    partitions, replication : int
        Of each topic.
    """

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
        """At least one for each partition."""
        names: dict[int, list[str]] = {}
        for i in range(1000):
            name = f"device{i}"
            names.setdefault(partition_of(name.encode(), self.settings.partitions), []).append(name)
            if len(names) == self.settings.partitions:
                break
        return sorted(name for some in names.values() for name in some)

    def next_name(self, name: str) -> str:
        """A new session's name, in the same partition."""
        base, _, number = name.partition("@")
        place = partition_of(name.encode(), self.settings.partitions)
        names = (f"{base}@{i}" for i in count(int(number or 0) + 1))
        return next(n for n in names if partition_of(n.encode(), self.settings.partitions) == place)

    def members(self) -> int:
        """Workers among which the partitions are shared."""
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
        """Variables of a worker."""
        return kymo_environment(
            {
                "KYMO_BROKERS": self.settings.brokers,
                "KYMO_PREFIX": self.settings.prefix,
                "KYMO_HOME": str(self.settings.home),
                "KYMO_PARTITIONS": str(self.settings.partitions),
                "KYMO_REPLICATION": str(self.settings.replication),
                "KYMO_METRICS_PORT": "-1",
            },
            keep=False,
        )

    def start_worker(self, **changes: str) -> Child:
        """A real worker process."""
        command = kymo_command("worker", str(self.recipe), "--bundle", str(self.bundle))
        worker = Child(f"worker {len(self.workers)}", command, self.environment() | changes)
        worker.start()
        self.workers.append(worker)
        return worker

    def ends(self, topic: str = "events") -> dict[int, int]:
        """End of each partition of a topic; waits for a broker that is away."""
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
        """The last lines of each worker."""
        return "\n".join(f"{worker.name}: {line}" for worker in self.workers for line in worker.tail)

    def records(self, topic: str) -> list[Record]:
        """All of a topic."""
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

    def expected(self, feed: Feed) -> dict[str, dict[str, Any]]:
        """By id, the events of an undisturbed run."""
        recipe, bundle = load_recipe(self.recipe), load_bundle(str(self.bundle), self.settings.home)
        assert isinstance(bundle, Bundle)
        classifier = Classifier.for_recipe(bundle, recipe)
        recordings = [source.recording() for source in feed.sources if source.taken]
        return {e.id: json.loads(e.to_json()) | {"emitted_ns": 0} for e in run(recipe, recordings, classifier)}

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
    """SIGTERM; seconds until it has ended, which it must with status 0."""
    started = time.monotonic()
    worker.send(signal.SIGTERM)
    status = worker.wait(patience_s)
    assert status == 0, f"{worker.name}: {worker.ended() if status is not None else 'still runs'}\n" + "\n".join(
        worker.tail
    )
    return time.monotonic() - started


def kill(worker: Child) -> None:
    """Kill -9; a worker that had just ended in order is as good."""
    worker.send(signal.SIGKILL)
    status = worker.wait(PATIENCE_S)
    assert status in (-signal.SIGKILL, 0), f"it had ended before: {worker.ended()}\n" + "\n".join(worker.tail)


def signal_process(worker: Child, number: int) -> None:
    """Send a signal to a worker that may be stopped."""
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
