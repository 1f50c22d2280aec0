"""A prefilled topic, drained by a process. In: the process and the topic of its events. Out: how long that took.

The rate counts from the first event's to the last event's record time in Kafka (which their senders set), so that no start-up is in it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.child import Memory, check, memory, processor_s
from benchmarks.load import Workload
from kymo.deploy.children import Child
from kymo.deploy.metrics_server import find_server, is_ready

_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Drained:
    rate: float  # channel-samples a second
    rate_cpu: float  # the same a second of processor time of the peer's processes; includes the first windows' warm-up
    events: list[dict[str, Any]]  # as published, each with ``t_ms``, its record time
    memory: Memory  # of the first process, at the end


class EventTopic:
    """A topic that events, or other records, are awaited on from now."""

    def __init__(self, brokers: str, topic: str) -> None:
        from confluent_kafka import Consumer, TopicPartition
        from confluent_kafka.admin import AdminClient

        self._admin = AdminClient({"bootstrap.servers": brokers})
        self._consumer = Consumer({"bootstrap.servers": brokers, "group.id": "benchmark", "enable.auto.commit": False})
        partitions = self._consumer.list_topics(topic).topics[topic].partitions
        self._places = [TopicPartition(topic, number) for number in partitions]
        self.name = topic
        self._start = self._first_ends()

    def _first_ends(self, timeout_s: float = 20.0) -> dict[int, int]:
        """Ends of a topic that may be so new that its leaders do not know of it yet."""
        from confluent_kafka import KafkaException

        give_up = time.monotonic() + timeout_s
        while True:
            try:
                return self._ends()
            except KafkaException:
                if time.monotonic() > give_up:
                    raise
            time.sleep(_POLL_S)

    def _ends(self) -> dict[int, int]:
        from confluent_kafka.admin import OffsetSpec

        asked = self._admin.list_offsets(dict.fromkeys(self._places, OffsetSpec.latest()))
        return {place.partition: future.result().offset for place, future in asked.items()}

    def count(self) -> int:
        """Events that have come since this was made."""
        return sum(self._ends().values()) - sum(self._start.values())

    def records(self) -> Iterator[tuple[int, bytes]]:
        """Record times and values of those."""
        from confluent_kafka import TopicPartition

        left = self.count()
        self._consumer.assign([TopicPartition(self.name, number, at) for number, at in self._start.items()])
        while left > 0:
            for message in self._consumer.consume(min(left, 5_000), 5.0):
                if message.error():
                    raise RuntimeError(message.error())
                yield message.timestamp()[1], message.value()
                left -= 1
        self._consumer.unassign()

    def read(self) -> list[dict[str, Any]]:
        """Those as events, with their record times as ``t_ms``."""
        return [json.loads(value) | {"t_ms": t_ms} for t_ms, value in self.records()]

    def close(self) -> None:
        self._consumer.close()


def drain(children: Sequence[Child], topic: EventTopic, work: Workload, timeout_s: float = 120.0) -> Drained:
    """Wait until processes that run already have published every event; a RuntimeError if one ends, or the events are not all, or more."""
    give_up = time.monotonic() + timeout_s
    cpu_first, first = 0.0, 0
    while (count := topic.count()) < work.events:
        check(children)
        if time.monotonic() > give_up:
            tail = "\n".join(children[0].tail)
            raise RuntimeError(f"{children[0].name}: {count} of {work.events} events after {timeout_s:g} s\n{tail}")
        if count and not first:
            cpu_first, first = _cpu(children), count
        time.sleep(_POLL_S)
    cpu = _cpu(children) - cpu_first
    used = memory(children[0].pid)
    events = topic.read()
    if len({(e["session"], e["start_index"]) for e in events}) != work.events or len(events) != work.events:
        raise RuntimeError(f"{children[0].name}: {len(events)} events for {work.events} windows")
    times = [e["t_ms"] for e in events]
    seconds = max(1, max(times) - min(times)) / 1000
    share = (work.events - 1) / work.events
    rate_cpu = work.channel_samples * (work.events - first) / work.events / cpu if first and cpu > 0 else float("nan")
    return Drained(work.channel_samples * share / seconds, rate_cpu, events, used)


def await_ready(workers: Sequence[Child], home: Path, timeout_s: float = 60.0) -> None:
    """Wait until Kymo's workers all hold partitions; a RuntimeError if one ends, or they do not in time."""
    give_up = time.monotonic() + timeout_s
    while True:
        check(workers)
        servers = [find_server(home, "worker", worker.pid) for worker in workers]
        if all(server is not None and is_ready(server) for server in servers):
            return
        if time.monotonic() > give_up:
            raise RuntimeError(f"workers are not ready after {timeout_s:g} s: {workers[-1].tail}")
        time.sleep(_POLL_S)


def _cpu(children: Sequence[Child]) -> float:
    return sum(processor_s(child.pid) for child in children)
