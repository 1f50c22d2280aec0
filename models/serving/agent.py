"""The model agent of one recipe. In: records of the input topics, in batches. Out: events, snapshots, rejected records, commits.

It knows aiokafka's records and producer but no Faust: `processors.batches.BatchApp` calls it. Windows that become whole while a batch is
being classified form the next batch. Whatever goes wrong with an output, the worker begins again from its last commit: that is the one
path for a crash, a lost partition and a broker that refused, so it is the one that is tested.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from aiokafka.structs import OffsetAndMetadata, TopicPartition

from models.serving.around import Around, Job
from models.serving.handed import Limits, Pending
from models.serving.outbox import Outbox, Outgoing, rejection
from models.serving.partition import Partition
from models.serving.served import Model, from_thread
from models.serving.shadow import SILENT
from models.serving.takeover import Rewinds, read_left
from streams.errors import ChunkError, DeliveryError

_BATCH = 64  # windows a classification; more only adds latency
_PENDING_MAX = 256  # windows waiting: beyond it nothing more is read
_YIELD_S = 0.005  # how long records are taken before other tasks have their turn
_DRAIN_S = 12.0  # how long a revocation may wait for what was taken


class Agent:
    """Takes records, gives events.

    Parameters
    ----------
    job : Job
        What to do.
    around : Around
        Kafka, and who is told.
    limits : Limits
        When to snapshot.
    """

    def __init__(self, job: Job, around: Around, limits: Limits | None = None) -> None:
        self.job, self._limits, self._chain = job, limits, job.chain
        self._around, self._kafka, self._names, self._read_back = around, around.kafka, around.names, around.read_back
        self._observer, self._failed = around.observer, around.failed
        self.partitions: dict[int, Partition] = {}
        self._epoch = 0  # counts revocations
        self._pending: deque[tuple[Partition, Pending]] = deque()
        self._changed = asyncio.Condition()
        self._turn = asyncio.Lock()  # no record is taken while snapshots are stored
        self._outbox = Outbox(self._kafka.aiokafka_producer, self._fail)
        self._rewinds = Rewinds(around)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="classify")
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: BaseException | None = None

    @property
    def waiting(self) -> int:
        """Windows that wait to be classified."""
        return len(self._pending)

    def start(self, commit_every_s: float = 0.5) -> None:
        """Begin to classify and commit."""
        if self.job.shadow is not None:
            self.job.shadow.start(Outbox(self._kafka.aiokafka_producer, self.job.shadow.failed))
        if self.job.serving is not None and self.job.outputs.kinds:
            self.job.serving.rechain = from_thread(self.rechain)
        loops = self._classify(), self._commit_every(commit_every_s)
        self._tasks = [asyncio.create_task(self._guard(loop)) for loop in loops]

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._fail(error)

    async def on_records(self, records: Mapping[TopicPartition, list[Any]]) -> None:
        """Take records; returns when there is room for more.

        Raises
        ------
        DeliveryError
            If an output failed; the worker must begin again from its last commit.
        """
        self._raise_failure()
        async with self._turn:
            epoch = self._epoch
            await self._load()
            for tp, batch in records.items():
                if tp.partition in self.partitions and epoch == self._epoch:
                    await self._take(self.partitions[tp.partition], tp, batch)
        await self._wait_for(lambda: len(self._pending) < _PENDING_MAX and not self._outbox.full)

    async def _take(self, partition: Partition, tp: TopicPartition, batch: list[Any]) -> None:
        started, epoch, expected = time.perf_counter(), self._epoch, partition.next_offset.get(tp.topic, 0)
        if batch[0].offset > expected and await self._rewinds.dropped(tp, expected, batch[0].offset):
            return
        partition.mark(tp.topic, max(expected, batch[0].offset))
        new = [r for r in batch if r.offset >= expected]  # the others were fetched again after a rebalance
        with contextlib.closing(partition.take(tp.topic, new, self._reject)) as taking:
            for found in taking:
                self._pending.extend((partition, pending) for pending in found)
                if time.perf_counter() - started > _YIELD_S:
                    self._observer.took(partition, 0, time.perf_counter() - started)
                    await self._wake()
                    await asyncio.sleep(0)
                    if epoch != self._epoch:
                        return
                    started = time.perf_counter()
        self._observer.took(partition, len(new), time.perf_counter() - started)
        await self._wake()

    async def on_assigned(self) -> None:
        """Load the partitions that came before their first record does."""
        async with self._turn:
            await self._load()

    async def _load(self) -> None:
        """The assigned partitions as their last owners left them."""
        job, assigned = self.job, self._kafka.assigned()
        numbers = sorted({tp.partition for tp in assigned} - set(self.partitions))
        if not numbers:
            return
        for topic in (self.job.topic, self._names.of("state"), self._names.of("rejected")):
            await self._kafka.aiokafka_producer().partitions_for(topic)  # else the first event would wait for it
        inputs = [tp for tp in assigned if tp.partition in numbers]
        for n, left in (await read_left(job, self._around, inputs, self._state_key(""))).items():
            self.partitions[n] = Partition(n, self._chain, job.matches, time.monotonic, self._limits, job.outputs)
            self.partitions[n].load(left)

    def _state_key(self, session: str) -> bytes:
        return f"{self.job.recipe}.{self.job.role}\n{session}".encode()

    def _reject(self, record: Any, error: ChunkError) -> None:
        """Send a record as it came to `kymo.rejected`, with the reason."""
        self._observer.rejected(error.reason)
        self._outbox.put(self._names.of("rejected"), record.partition, [rejection(record, error, self.job.recipe)])

    async def _classify(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: bool(self._pending))
            batch = [self._pending.popleft() for _ in range(min(_BATCH, len(self._pending)))]
            started = time.perf_counter()
            given = [p.output for _, p in batch], [p.session.memory for _, p in batch]
            made = await loop.run_in_executor(self._thread, self.job.classify, *given)
            self._observer.classified(len(batch), time.perf_counter() - started)
            outgoing: dict[int, list[Outgoing]] = {}
            for (partition, pending), events in zip(batch, made, strict=True):
                if not pending.left:
                    partition.acknowledge(pending)
                    continue
                key, done = pending.output.session.encode(), partial(self._emitted, partition, pending)
                fresh = [Outgoing(key, event, done=done) for n, event in enumerate(events) if n not in pending.known]
                outgoing.setdefault(partition.number, []).extend(fresh)
            for number, records in outgoing.items():
                self._outbox.put(self.job.topic, number, records)
            if self.job.shadow is not None:
                self.job.shadow.offer([(SILENT if p.known else partition.number, p.output) for partition, p in batch])
            await self._wake()

    async def rechain(self, model: Model) -> None:
        """Let a model take over whose windows are of another kind, when every window that was taken is an event."""
        async with self._turn:
            await self._wait_for(self._settled)
            assert self.job.serving is not None
            self.job.serving.model, self._chain = model, model.head
            if self.job.shadow is not None:  # what it takes is not made any more
                self.job.shadow.model = None
            try:
                for partition in self.partitions.values():
                    for found in partition.rechain(model.head):
                        self._pending.extend((partition, pending) for pending in found)
                        await asyncio.sleep(0)
            except Exception as error:
                self._fail(error)
        await self._wake()

    def _settled(self) -> bool:
        return not any(s.pending for p in self.partitions.values() for s in p.sessions.values())

    def _emitted(self, partition: Partition, pending: Pending, end: int) -> None:
        partition.acknowledge(pending)
        partition.events_end = max(partition.events_end, end)
        self._observer.emitted(time.time() - pending.sent_ms / 1000)

    async def _commit_every(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self.commit()

    async def commit(self) -> None:
        """Store the snapshots that are due, then commit what nothing needs any more."""
        async with self._turn:
            await self._commit()

    async def _commit(self) -> None:
        started = time.perf_counter()
        await self._wait_for(lambda: not any(partition.overdue for partition in self.partitions.values()))
        for partition in list(self.partitions.values()):
            records = []
            for session, snapshot in partition.snapshots():
                done = partial(self._stored, partition, session, snapshot)
                records.append(Outgoing(self._state_key(session.name), snapshot, done=done))
            if records:
                self._outbox.put(self._names.of("state"), partition.number, records)
        # No record is taken meanwhile, so these two settle; only then may what they release be committed.
        await self._outbox.settled(self._names.of("state"), self._names.of("rejected"))
        self._raise_failure()
        if (offsets := self._committable()) and not self._kafka.is_stale():
            await self._kafka.commit_with(offsets)
            for tp, committed in offsets.items():
                self.partitions[tp.partition].committed(tp.topic, committed.offset)
            self._observer.committed(time.perf_counter() - started)

    @staticmethod
    def _stored(partition: Partition, session: Any, snapshot: bytes | None, _end: int) -> None:
        partition.stored(session, snapshot)

    def _committable(self) -> dict[TopicPartition, OffsetAndMetadata]:
        out = {}
        for partition in self.partitions.values():
            for topic, (offset, events_end) in partition.committable().items():
                note = json.dumps({"events": events_end})
                out[TopicPartition(topic, partition.number)] = OffsetAndMetadata(offset, note)
        return out

    async def _drain(self) -> None:
        """Wait until every window taken is an acknowledged event, then commit."""
        await self._wait_for(self._settled)
        await self._commit()

    async def on_revoked(self) -> None:
        """Finish what was taken and forget the partitions.

        Raises
        ------
        DeliveryError
            If they may belong to another worker by now, or finishing takes too long: then only a new beginning is safe.
        """
        self._epoch += 1
        async with self._turn:
            if self.partitions:
                if self._kafka.is_stale():
                    raise DeliveryError("the broker has not heard of this worker for half its session timeout")
                try:
                    await asyncio.wait_for(self._drain(), _DRAIN_S)
                except TimeoutError:
                    raise DeliveryError(
                        f"what was taken could not be finished within {_DRAIN_S:g} s of losing its partitions"
                    ) from None
            self.partitions.clear()

    async def on_stop(self) -> None:
        """Finish what was taken, commit it, close."""
        self._epoch += 1
        try:
            async with self._turn:
                if self._failure is None:
                    await self._drain()
        finally:
            for task in self._tasks:
                task.cancel()
            if self.job.shadow is not None:
                self.job.shadow.close()
            self._outbox.close()
            self._thread.shutdown(wait=False, cancel_futures=True)
            await self._read_back.close()

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _wait_for(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._raise_failure()
            await asyncio.sleep(0.002)
        self._raise_failure()

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
            self._failed(error)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
