"""What an agent keeps durable. In: its partitions. Out: snapshots stored, offsets committed, both within the lease on the partitions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from aiokafka.structs import OffsetAndMetadata, TopicPartition

from models.serving.around import Around, Job
from models.serving.outbox import Outbox, Outgoing
from models.serving.partition import Partition
from models.serving.sessions import Session
from models.serving.snapshots import BYTES_MAX, MEMORY_MAX, Snapshot
from models.serving.takeover import LIFE, note
from streams.errors import DeliveryError
from streams.topics import MIB

_AGAIN_S = 15.0  # a topic that was deleted and made again is found within so long


class Commits:
    """Snapshots and offsets of an agent."""

    def __init__(
        self, partitions: dict[int, Partition], job: Callable[[], Job], around: Around, outbox: Outbox
    ) -> None:
        self._partitions, self._job, self._around, self._outbox = partitions, job, around, outbox
        self._looked_s = time.monotonic()
        self._topic_ids: dict[str, str] = {}
        self._large: set[str] = set()  # sessions that were said to be too large

    @property
    def overdue(self) -> bool:
        """Whether nothing must be taken until a session that holds the commit back can be stored."""
        return any(partition.overdue for partition in self._partitions.values())

    def key(self, session: str) -> bytes:
        """Key of a session's snapshot."""
        return f"{self._job().state}\n{session}".encode()

    async def store(self) -> None:
        """Store the snapshots that are due; all are acknowledged (or have failed) on return. No record may be taken meanwhile."""
        loop, state = asyncio.get_running_loop(), self._around.names.of("state")
        for partition in list(self._partitions.values()):
            if due := partition.snapshots():
                # Compressing takes its time, and other things must go on.
                made = await loop.run_in_executor(None, _make, [make for _, make in due])
                sessions = (session for session, _ in due)
                records = [self._record(partition, *each) for each in zip(sessions, made, strict=True)]
                self._outbox.put(state, partition.number, records)
        await self._outbox.settled(state, self._around.names.of("rejected"))

    def _record(self, partition: Partition, session: Session, snapshot: Snapshot | None) -> Outgoing:
        value = snapshot.encode() if snapshot is not None else None
        size = len(value or b"") if snapshot is None or snapshot.memory else MEMORY_MAX
        if snapshot is not None and size > BYTES_MAX:
            if session.name not in self._large:
                self._large.add(session.name)
                self._around.tell(
                    f"{self._job().recipe}: session {session.name} holds {size / MIB:.1f} MiB, more than the "
                    f"{BYTES_MAX / MIB:.1f} MiB that a snapshot may have: after a restart its open window is read again from its topic, "
                    "for as long as that keeps it; shorter windows or fewer channels avoid it"
                )
            session.large, snapshot = True, snapshot.light()
            value = snapshot.encode()
        done = partial(_stored, partition, session, snapshot)
        return Outgoing(self.key(session.name), value, [self._life(partition)], done)

    def _life(self, partition: Partition) -> tuple[str, bytes]:
        return LIFE, b"%d.%d" % (partition.state_end, self._around.kafka.consumer_generation_id)

    def forget(self, number: int, sessions: Iterable[str]) -> None:
        """Delete snapshots."""
        life = self._life(self._partitions[number])
        records = [Outgoing(self.key(name), None, [life]) for name in sessions]
        self._outbox.put(self._around.names.of("state"), number, records)

    async def offsets(self) -> None:
        """Commit what nothing needs any more."""
        started, offsets = time.perf_counter(), dict[TopicPartition, OffsetAndMetadata]()
        for partition in self._partitions.values():
            for topic, (offset, floor) in partition.committable().items():
                told = note(floor, partition.topic_id(topic))
                offsets[TopicPartition(topic, partition.number)] = OffsetAndMetadata(offset, told)
        if time.monotonic() - self._looked_s >= _AGAIN_S:
            await self.check_topics()
        if not offsets:
            return
        if self._around.kafka.lease.left_s <= 0:
            raise DeliveryError("the broker has not heard of this worker for half its session timeout")
        await self._around.kafka.commit_with(offsets)
        for tp, committed in offsets.items():
            if tp.partition in self._partitions:
                self._partitions[tp.partition].committed(tp.topic, committed.offset)
        self._around.observer.committed(time.perf_counter() - started)

    async def check_topics(self) -> None:
        """Look whether the input topics are those that offsets are kept of."""
        self._looked_s = time.monotonic()
        self.know(await self._around.topic_ids(self._job().inputs))

    def know(self, ids: Mapping[str, str]) -> None:
        """Remember which topics these are, for as long as this process lives: its clients keep to what they have seen of them."""
        for topic, topic_id in ids.items():
            if topic_id and self._topic_ids.setdefault(topic, topic_id) != topic_id:
                raise DeliveryError(f"topic {topic} was deleted and made again")


def _make(made: Sequence[partial[Snapshot] | None]) -> list[Snapshot | None]:
    return [make() if make is not None else None for make in made]


def _stored(partition: Partition, session: Session, snapshot: Snapshot | None, _end: int) -> Any:
    partition.stored(session, snapshot)
