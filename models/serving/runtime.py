"""What an agent runs on: Kafka in aiokafka's terms, and whoever is told. In: records to send. Out: batches acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiokafka
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from kymo.models.serving.partition import Partition
from kymo.models.serving.scopes import Scopes
from kymo.processors.lease import Lease
from kymo.streams.budget import OUTBOX
from kymo.streams.errors import ChunkError, DeliveryError
from kymo.streams.topics import Names

#: Records, of :data:`OUTBOX` bytes, that may wait for the broker's word: beyond either an outbox is full.
MOST_RECORDS = 4096


class Observer(Protocol):
    """Told what happens, for metrics."""

    def took(self, partition: Partition | Scopes, records: int, seconds: float) -> None:
        """Records were decoded and pushed through the chain."""

    def classified(self, windows: int, seconds: float) -> None:
        """A batch was classified."""

    def emitted(self, seconds: float) -> None:
        """An event was acknowledged, so long after its window's last chunk was sent."""

    def rejected(self, reason: str) -> None:
        """A record was rejected."""

    def committed(self, seconds: float) -> None:
        """Offsets were committed."""

    def dropped(self, samples: int) -> None:
        """Samples waited for a slow step for too long."""


class TopicReader(Protocol):
    """What reads topics without a group."""

    async def limits(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        """By partition, the first offset there is, and the one behind the last."""

    async def read(self, ranges: Mapping[TopicPartition, tuple[int, int]], visit: Callable[[Any], None]) -> None:
        """Visit every record between two offsets of each partition."""

    async def close(self) -> None:
        """Close the connection."""


class Kafka(Protocol):
    """What the agent asks of its Faust app."""

    lease: Lease  # how long the agent may act on its partitions
    consumer_generation_id: int  # the group's generation

    def hold(self) -> None:
        """Let no record come, nor any that was fetched before."""

    async def begin(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Let records of these partitions come, from there on; no others."""

    def aiokafka_producer(self) -> Any:
        """The producer."""

    async def commit_with(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        """Commit."""

    async def committed_with(self, partitions: Any) -> dict[TopicPartition, OffsetAndMetadata]:
        """Committed offsets."""

    def assigned(self) -> list[TopicPartition]:
        """The partitions that are this worker's."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """What an agent runs on."""

    kafka: Kafka
    names: Names
    read_back: TopicReader  # for what an earlier life has written
    observer: Observer
    failed: Callable[[BaseException], None]  # called once, with the first error that makes going on unsafe
    topic_ids: Callable[[Sequence[str]], Awaitable[dict[str, str]]]  # Kafka's ids of topics, by name
    tell: Callable[[str], None]  # called with a line for a person


def rejection(record: Any, error: ChunkError, recipe: str, topic_id: str = "") -> Outgoing:
    """A record as it came, with the reason why it is of no use."""
    about = {
        "reason": error.reason,
        "message": error.message[:1000],
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "recipe": recipe,
        "topic_id": topic_id,
    }
    return Outgoing(record.key or b"", record.value or b"", [(k, str(v).encode()) for k, v in about.items()])


@dataclass(slots=True)
class Outgoing:
    """A record on its way out."""

    key: bytes  # the record; a value of None deletes on a compacted topic
    value: bytes | None
    headers: list[tuple[str, bytes]] = field(default_factory=list)
    # called with the offset behind the record's batch once the broker has acknowledged it (0 where the broker did not
    # say)
    done: Callable[[int], None] | None = None


class Outbox:
    """Sends records in batches that form by themselves while the previous one is on its way, in order within a partition."""

    def __init__(
        self,
        producer: Callable[[], aiokafka.AIOKafkaProducer],  # gives the aiokafka producer
        failed: Callable[[BaseException], None],
        stamp_ms: Callable[[], int],  # the time that records carry, Unix ms
    ) -> None:
        self._producer, self._failed, self._stamp_ms = producer, failed, stamp_ms
        self._waiting: dict[TopicPartition, list[Outgoing]] = {}
        self._tasks: dict[TopicPartition, asyncio.Task[None]] = {}
        self._records = self._bytes = 0  # not yet acknowledged

    @property
    def full(self) -> bool:
        """Whether its owner should wait before it makes more, or whoever acknowledges slowly fills the memory."""
        return self._records >= MOST_RECORDS or self._bytes >= OUTBOX

    def _count(self, sign: int, records: Sequence[Outgoing]) -> None:
        self._records += sign * len(records)
        self._bytes += sign * sum(len(record.value or b"") for record in records)

    def put(self, topic: str, partition: int, records: Sequence[Outgoing]) -> None:
        """Send records as soon as their partition is free."""
        tp = TopicPartition(topic, partition)
        self._count(1, records)
        self._waiting.setdefault(tp, []).extend(records)
        if tp not in self._tasks:
            self._tasks[tp] = asyncio.create_task(self._send_all(tp))

    async def settled(self, *topics: str) -> None:
        """Wait until everything put for some topics (all, if none is named) is acknowledged, or has failed."""
        while tasks := [task for tp, task in self._tasks.items() if not topics or tp.topic in topics]:
            await asyncio.wait(tasks)

    def close(self) -> None:
        """Send nothing more."""
        for task in self._tasks.values():
            task.cancel()

    async def _send_all(self, tp: TopicPartition) -> None:
        waiting, batch = self._waiting[tp], list[Outgoing]()
        try:
            while waiting:
                batch = waiting[:]
                waiting.clear()
                await self._send(tp, batch)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._count(-1, batch)  # they are given up, so nothing waits for them
            self._failed(error)
        finally:
            del self._tasks[tp]

    async def _send(self, tp: TopicPartition, records: list[Outgoing]) -> None:
        """Send records, and take each away once it is acknowledged."""
        while records:
            builder, count = self._producer().create_batch(), 0
            stamp_ms = self._stamp_ms()
            for r in records:
                if builder.append(timestamp=stamp_ms, key=r.key, value=r.value, headers=r.headers) is None:
                    break
                count += 1
            if not count:
                size = len(records[0].value or b"")
                raise DeliveryError(f"{tp.topic}/{tp.partition}: a record of {size} bytes does not fit into a batch")
            try:
                metadata = await (await self._producer().send_batch(builder, tp.topic, partition=tp.partition))
            except Exception as error:
                raise DeliveryError(
                    f"{tp.topic}/{tp.partition}: {count} records were not acknowledged ({error!r})"
                ) from error
            offset = metadata.offset if metadata is not None else None
            end = offset + count if offset is not None and offset >= 0 else 0
            sent = records[:count]
            del records[:count]
            self._count(-1, sent)
            for r in sent:
                if r.done is not None:
                    r.done(end)
