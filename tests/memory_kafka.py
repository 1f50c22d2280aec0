"""Kafka in memory, as an agent sees it: logs, commits, a producer that acknowledges when it may, records once they are asked for."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from aiokafka.structs import OffsetAndMetadata, TopicPartition

from kymo.models.serving.agent import Agent
from kymo.models.serving.event_agent import EventAgent
from kymo.models.serving.operator import Operator
from kymo.models.serving.partition import Limits
from kymo.models.serving.runtime import Outgoing, Runtime
from kymo.models.serving.scopes import EventOperator
from kymo.processors.lease import Instant, Lease
from kymo.streams.topics import Names


@dataclass
class MemoryKafka:
    """Logs and commits, shared by several workers."""

    logs: dict[TopicPartition, list[Any]] = field(default_factory=lambda: defaultdict(list))
    commits: dict[TopicPartition, OffsetAndMetadata] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    appended: Callable[[str], None] = lambda _: None

    def append(self, topic: str, partition: int, key: bytes | None, value: bytes | None, **more: Any) -> int:
        log = self.logs[TopicPartition(topic, partition)]
        about = {"topic": topic, "partition": partition, "offset": len(log), "headers": (), "timestamp": 2**41}
        log.append(SimpleNamespace(key=key, value=value, **about | more))
        self.appended(topic)
        return len(log) - 1

    def committed(self, topic: str, partition: int = 0) -> int:
        """Where a partition's commit stands; -1 where there is none."""
        commit = self.commits.get(TopicPartition(topic, partition))
        return -1 if commit is None else commit.offset

    def values(self, topic: str) -> list[bytes]:
        return [r.value for tp, log in sorted(self.logs.items()) for r in log if tp.topic == topic]

    async def limits(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        return {tp: (0, len(self.logs[tp])) for tp in partitions}

    async def read(self, ranges: Mapping[TopicPartition, tuple[int, int]], visit: Callable[[Any], None]) -> None:
        for tp, (start, end) in ranges.items():
            for record in self.logs[tp][start:end]:
                visit(record)
                if not record.offset % 100:
                    await asyncio.sleep(0)

    async def close(self) -> None:
        """Nothing to close."""


class Producer:
    """Appends batches, once it may."""

    def __init__(self, kafka: MemoryKafka) -> None:
        self._kafka, self.may = kafka, asyncio.Event()
        self.may.set()

    async def partitions_for(self, _: str) -> set[int]:
        return {0}

    def create_batch(self) -> Any:
        rows: list[dict[str, Any]] = []

        def append(**row: Any) -> object | None:
            return None if len(rows) >= 50 else rows.append(row) or rows

        return SimpleNamespace(append=append, rows=rows)

    async def send_batch(self, builder: Any, topic: str, partition: int) -> Any:
        async def told() -> Any:
            await self.may.wait()
            offsets = [self._kafka.append(topic, partition, **row) for row in builder.rows]
            return SimpleNamespace(offset=offsets[0])

        return asyncio.ensure_future(told())


class Worker:
    """An agent with a group's membership, as `BatchApp` gives it."""

    def __init__(
        self,
        kafka: MemoryKafka,
        operator: Operator | EventOperator,
        names: Names,
        limits: Limits | None = None,
        **of_agent: Any,
    ) -> None:
        self.kafka, self.producer, self.lease = kafka, Producer(kafka), Lease(3600, 7200)
        self.lease.heard(Instant.now())
        self.consumer_generation_id = 1
        self.failures: list[BaseException] = []
        self.lines: list[str] = []
        self._assigned: list[TopicPartition] = []
        self._feeding: asyncio.Task[None] | None = None
        self._held = False
        told: dict[str, Any] = dict.fromkeys(
            ("took", "classified", "emitted", "rejected", "committed"), lambda *_: None
        )
        self.dropped: list[int] = []
        runtime = Runtime(
            self,
            names,
            kafka,
            SimpleNamespace(**told, dropped=self.dropped.append),
            self.failures.append,
            self._ids,
            self.lines.append,  # type: ignore[arg-type]
        )
        self.agent: Any
        if isinstance(operator, EventOperator):
            self.agent = EventAgent(operator, runtime, **of_agent)
        else:
            self.agent = Agent(operator, runtime, limits)

    async def _ids(self, topics: Iterable[str]) -> dict[str, str]:
        return {topic: self.kafka.ids.get(topic, "") for topic in topics}

    def start(self, *partitions: TopicPartition, commit_every_s: float = 0.01) -> None:
        self.agent.start(commit_every_s)
        self.assign(*partitions)

    def assign(self, *partitions: TopicPartition) -> None:
        self._assigned = list(partitions)
        self.agent.on_assigned()

    async def revoke(self) -> None:
        self._assigned = []
        await self._stop_feeding()
        await self.agent.on_revoked()

    async def die(self) -> None:
        """End as kill -9 does: nothing is sent any more, and nothing committed."""
        self.agent._outbox.close()
        for task in (*self.agent._tasks, self.agent._loading):
            task.cancel()
        await self._stop_feeding()

    async def stop(self) -> None:
        await self._stop_feeding()
        await self.agent.on_stop()

    async def _stop_feeding(self) -> None:
        if self._feeding is not None:
            self._feeding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._feeding
            self._feeding = None

    def hold(self) -> None:
        self._held = True

    async def begin(self, offsets: Mapping[TopicPartition, int]) -> None:
        await self._stop_feeding()
        self._held = False
        self._feeding = asyncio.create_task(self._feed(dict(offsets)))

    async def _feed(self, offsets: dict[TopicPartition, int]) -> None:
        while not self._held:
            for tp in offsets:
                if not self._held and (records := self.kafka.logs[tp][offsets[tp] : offsets[tp] + 20]):
                    offsets[tp] += len(records)
                    await self.agent.on_records({tp: records})
            await asyncio.sleep(0.001)

    def aiokafka_producer(self) -> Any:
        return self.producer

    def assigned(self) -> list[TopicPartition]:
        return self._assigned

    async def commit_with(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        self.kafka.commits |= offsets

    async def committed_with(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        return {tp: self.kafka.commits[tp] for tp in partitions if tp in self.kafka.commits}


class KeptOutbox:
    full = False

    def __init__(self) -> None:
        self.found: list[tuple[str, int, Outgoing]] = []

    def put(self, topic: str, partition: int, records: list[Outgoing]) -> None:
        self.found += [(topic, partition, record) for record in records]


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)
