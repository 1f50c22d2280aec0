"""The agent of one operator. In: records of the input topics, in batches. Out: events (or derived chunks), snapshots, rejections, commits.

It knows aiokafka's records and producer but no Faust: `processors.faust_app.BatchApp` calls it. Windows that become whole while a batch is
being classified form the next batch.

A kind of windows that another bundle replaces is let go of as partitions are that are revoked, see :mod:`kymo.models.serving.member`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from aiokafka.structs import TopicPartition

from kymo.models.predict import Predictor
from kymo.models.serving.handover import Commits, read_handovers
from kymo.models.serving.joined import JoinedPartition
from kymo.models.serving.member import Member
from kymo.models.serving.operator import SILENT, Classify, Operator, from_thread
from kymo.models.serving.partition import Limits, Partition, Pending
from kymo.models.serving.runtime import Outbox, Outgoing, Runtime, rejection
from kymo.models.serving.slow import Judged, Lanes
from kymo.models.serving.snapshots import Handover
from kymo.processors.join import Decision
from kymo.streams.budget import BATCH, PENDING
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import ChunkError
from kymo.streams.words import some

_BATCH = 64  # windows a classification; more only adds latency
_BATCH_S = 0.2  # how long one may take, or a revocation waits for it
_PENDING_MAX = 256  # windows waiting, of :data:`PENDING` bytes: beyond either nothing more is read
_TELL_EVERY_S = 10.0


class Agent(Member):
    """Takes records, gives events."""

    def __init__(self, operator: Operator, runtime: Runtime, limits: Limits | None = None) -> None:
        super().__init__(runtime)
        self.operator, self._limits = operator, limits
        self.partitions: dict[int, Partition] = {}
        self._pending: deque[tuple[Partition, Pending]] = deque()
        self._pending_bytes = 0
        self._idle = asyncio.Event()  # no batch is being classified
        self._idle.set()
        self._commits = Commits(self.partitions, lambda: self.operator, runtime, self._outbox)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="classify")
        self._batch_size = 1  # windows in the next batch
        # by input and what it is, sessions to be told of, and when such were last told of
        self._untold, self._told_s = dict[tuple[str, str], list[str]](), dict[tuple[str, str], float]()
        self._overdue = False  # nothing is taken until a session that holds the commit back can be stored
        self._lanes: Lanes | None = None
        if (slow := operator.processes) is not None:
            self._lanes = Lanes(
                slow, operator.age_s, runtime.observer.dropped, self._publish, self._refuse, self._aside
            )
            self._batch_size = slow.spec.batch
        self._asides: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Windows that wait to be classified."""
        return len(self._pending)

    def start(self, commit_every_s: float = 0.5) -> None:
        """Begin to classify and commit."""
        if self.operator.shadow is not None:
            self.operator.shadow.start(
                Outbox(self._runtime.kafka.aiokafka_producer, self.operator.shadow.failed, self._stamp_ms)
            )
        if self.operator.champion is not None and self.operator.anew is not None:
            self.operator.champion.rechain = from_thread(self.rechain)
        if self.operator.processes is not None:
            self.operator.processes.start(self._fail)
        self._run(self._classify if self._lanes is None else self._compute, partial(self._commit_every, commit_every_s))

    # --- taking records

    def _taking(self, tp: TopicPartition, batch: list[Any]) -> Iterator[None]:
        partition = self.partitions.get(tp.partition)
        if partition is None:
            return
        self._check(tp, batch[0].offset, partition.next_offset.get(tp.topic, 0))
        partition.mark(tp.topic, batch[0].offset)
        started_s = time.perf_counter()
        with contextlib.closing(partition.take(tp.topic, batch, self._reject)) as taking:
            for windows in taking:
                if windows:
                    self._add(partition, windows)
                if (now_s := time.perf_counter()) > self._until or self._full:
                    self._runtime.observer.took(partition, 0, now_s - started_s)
                    self._tell_damaged(partition)
                    yield
                    started_s = time.perf_counter()
        self._runtime.observer.took(partition, len(batch), time.perf_counter() - started_s)
        self._tell_damaged(partition)

    def _pass(self, tp: TopicPartition, offset: int) -> None:
        if (partition := self.partitions.get(tp.partition)) is not None:
            partition.next_offset[tp.topic] = offset

    def _add(self, partition: Partition, windows: list[Pending]) -> None:
        self._pending.extend((partition, pending) for pending in windows)
        self._pending_bytes += sum(pending.output.nbytes for pending in windows)

    @property
    def _ready(self) -> bool:
        return bool(self._pending) and not self._holding and (self._lanes is None or self._lanes.has_room)

    @property
    def _full(self) -> bool:
        if self._overdue:
            return True
        waiting_bytes = self._pending_bytes + (self._lanes.nbytes if self._lanes is not None else 0)
        return len(self._pending) >= _PENDING_MAX or waiting_bytes >= PENDING or self._outbox.full

    def _tell_damaged(self, partition: Partition) -> None:
        for session, why in partition.damaged.items():
            self._runtime.tell(f"{self.operator.recipe}: session {session}: {why}; it goes on with what comes")
        partition.damaged.clear()

    def _reject(self, record: Any, error: ChunkError) -> None:
        """Send a record as it came to `kymo.rejected`, with the reason; one that an earlier life has sent stands there already."""
        partition = self.partitions.get(record.partition)
        if partition is None or not partition.rejects(record.topic, record.offset):
            return
        self._runtime.observer.rejected(error.reason)
        rejected = rejection(record, error, self.operator.recipe, partition.topic_id(record.topic))
        rejected.done = partial(self._rejected, partition)
        self._outbox.put(self._runtime.names.of("rejected"), record.partition, [rejected])

    @staticmethod
    def _rejected(partition: Partition, end: int) -> None:
        partition.end = partition.end._replace(rejected=max(partition.end.rejected, end))

    # --- taking over, letting go

    async def _load(self, life: int) -> None:
        """The assigned partitions as their last owners left them; then their records may come."""
        runtime, operator = self._runtime, self.operator
        inputs = [tp for tp in runtime.kafka.assigned() if tp.topic in operator.inputs]
        producer = runtime.kafka.aiokafka_producer()
        for topic in (operator.topic, runtime.names.of("state"), runtime.names.of("rejected")):
            await producer.partitions_for(topic)  # else the first event would wait for it
        handovers = await read_handovers(operator, runtime, inputs, self._commits.key("")) if inputs else {}
        await self._wait_for(lambda: runtime.kafka.lease.left_s > 0 or life != self._life)
        if life != self._life:
            return
        offsets = dict[TopicPartition, int]()
        for n, handover in handovers.items():
            self._commits.remember(handover.topic_ids)
            kind = JoinedPartition if operator.patience else Partition
            partition = self.partitions[n] = kind(
                n, operator.chain, operator.matches, time.monotonic, self._limits, operator.outputs
            )
            partition.listen, partition.takes_runs = operator.listen, self._lanes is None
            if isinstance(partition, JoinedPartition):
                partition.patience = operator.patience
            self._add(partition, partition.load(handover))
            self._tell_damaged(partition)
            await asyncio.sleep(0)
            offsets |= {TopicPartition(topic, n): offset for topic, offset in partition.next_offset.items()}
        if operator.patience:
            await self._commits.overrule(handovers)
        await runtime.kafka.begin(offsets)
        for n, handover in handovers.items():
            self._clear_up(n, handover)

    def _clear_up(self, number: int, handover: Handover) -> None:
        """Reject what nobody here can have written, and delete snapshots that are of no use."""
        for record, error in (*handover.odd, *handover.odd_snapshots.values()):
            self._runtime.tell(
                f"{self.operator.recipe}: {record.topic}/{record.partition} at {record.offset}: {error}; left out"
            )
            self._reject(record, ChunkError("undecodable", str(error)))
        self._commits.forget(number, handover)

    async def _finish(self) -> None:
        async with self._turn:
            await self._idle.wait()
            self._pending.clear()
            self._pending_bytes = 0
            if self._lanes is not None:
                self._lanes.clear()
            await self._outbox.settled()
            self._raise_failure()
            await self._commits.commit_offsets()
            self.partitions.clear()

    async def rechain(self, predictor: Predictor) -> None:
        """Let a predictor take over whose windows are of another kind: everything is let go of, and taken up with the other chain."""
        assert self.operator.champion is not None
        assert self.operator.anew is not None
        try:
            async with self._letting_go():
                self.operator.champion.predictor, self.operator = predictor, self.operator.anew(predictor.bundle)
                if self.operator.shadow is not None:  # what it takes is not made any more
                    self.operator.shadow.predictor = None
                self._begin_loading()
        except Exception as error:
            self._fail(error)
            raise
        await self._wait_for(lambda: self._loading is None or self._loading.done())

    async def on_stop(self) -> None:
        for task in self._asides:
            task.cancel()
        try:
            await super().on_stop()
        finally:
            if self.operator.processes is not None:
                self.operator.processes.close()
            if self.operator.shadow is not None:
                self.operator.shadow.close()
            self._thread.shutdown(wait=False, cancel_futures=True)

    # --- classifying

    async def _classify(self) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._ready)
            # Asked once: another thread may exchange it.
            predictor = self.operator.champion.predictor if self.operator.champion is not None else None
            classify = predictor.serve if predictor is not None else self.operator.classify
            assert classify is not None
            if batch := self._next_batch(predictor.bundle.id if predictor is not None else ""):
                self._idle.clear()
                try:
                    await self._judge(classify, batch)
                finally:
                    self._idle.set()
            await self._wake()

    def _next_batch(self, bundle: str) -> list[tuple[Partition, Pending]]:
        """The next windows to judge by `bundle`; those that need no judgement are done with on the way."""
        batch: list[tuple[Partition, Pending]] = []
        sessions, size = set(), 0
        while self._pending and len(batch) < self._batch_size:
            partition, pending = self._pending[0]
            # Another bundle made it, so nothing that this one finds rests on it: it begins anew behind it.
            skipped = not pending.unacknowledged and pending.bundle not in ("", bundle)
            if skipped and pending.session in sessions:
                break
            window = pending.output.nbytes
            if batch and size + window > BATCH:
                break
            self._pending.popleft()
            self._pending_bytes -= window
            if skipped:
                pending.session.memory.clear()
                partition.acknowledge(pending)
            else:
                sessions.add(pending.session)
                batch.append((partition, pending))
                size += window
        return batch

    async def _judge(self, classify: Classify, batch: list[tuple[Partition, Pending]]) -> None:
        started = time.perf_counter()
        outputs, memories = [p.output for _, p in batch], [p.session.memory for _, p in batch]
        judged = await asyncio.get_running_loop().run_in_executor(self._thread, classify, outputs, memories)
        took_s = time.perf_counter() - started
        self._batch_size = max(1, min(_BATCH, 2 * self._batch_size, int(_BATCH_S * len(batch) / max(took_s, 1e-6))))
        self._runtime.observer.classified(len(batch), took_s)
        self._publish(
            [(partition, pending, events) for (partition, pending), events in zip(batch, judged, strict=True)]
        )
        if self.operator.shadow is not None and not self._holding:
            self.operator.shadow.offer(
                [(SILENT if p.published else partition.number, p.output) for partition, p in batch]
            )
        for _, pending in batch:  # a window may be large, and the broker's word takes its time
            del pending.output

    def _publish(self, judged: Sequence[Judged]) -> None:
        outgoing: dict[int, list[Outgoing]] = {}
        for partition, pending, events in judged:
            if not pending.unacknowledged:
                partition.acknowledge(pending)
                continue
            key, done = pending.output.session.encode(), partial(self._emitted, partition, pending)
            fresh = [Outgoing(key, event, done=done) for n, event in enumerate(events) if n not in pending.published]
            outgoing.setdefault(partition.number, []).extend(fresh)
        for number, records in outgoing.items():
            self._outbox.put(self.operator.topic, number, records)

    async def _compute(self) -> None:
        """Have processes do what is slow, and publish what they make."""
        lanes, codec = self._lanes, ChunkCodec()
        assert lanes is not None
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._ready)
            lanes.give(self._next_batch(""), codec.encode)
            await self._wake()

    def _aside(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def run() -> None:
            await self._guard(work)
            await self._wake()

        task = asyncio.create_task(run())
        self._asides.add(task)
        task.add_done_callback(self._asides.discard)

    async def _refuse(self, partition: Partition, pending: Pending, why: str) -> None:
        """Have the record rejected that an output begins with; on return that is acknowledged (or has failed)."""
        topic, offset = pending.session.topic, pending.session.offset_of(pending.place)
        record = {TopicPartition(topic, partition.number): (offset, offset + 1)}
        await self._runtime.read_back.read(record, partial(self._reject, error=ChunkError("invalid", why)))
        await self._outbox.settled(self._runtime.names.of("rejected"))

    def _emitted(self, partition: Partition, pending: Pending, end: int) -> None:
        partition.acknowledge(pending)
        partition.end = partition.end._replace(events=max(partition.end.events, end))
        if pending.sent_ms:  # else it is whole by a decision, and nothing has come of the session in this life
            self._runtime.observer.emitted(time.time() - pending.sent_ms / 1000)

    # --- committing

    def _tell_decided(self, partition: JoinedPartition, decided: Sequence[tuple[str, Decision]]) -> None:
        """Tell of inputs that fell silent and of those that are back: now and then a line for each, however many sessions it is in."""
        for session, decision in decided:
            is_silent, starts = (
                decision.stop is None,
                [(d.stream, d.start) for d in partition.decisions.get(session, ())],
            )
            if is_silent and starts.count((decision.stream, decision.start)) > 1:  # a further word on the same silence
                continue
            partition.counts["silent_inputs"] += is_silent
            what = "silent, not waited for any more" if is_silent else "back"
            self._untold.setdefault((decision.stream, what), []).append(session)
        now_s = time.monotonic()
        for key in [key for key in self._untold if now_s - self._told_s.get(key, -math.inf) >= _TELL_EVERY_S]:
            names, self._told_s[key] = self._untold.pop(key), now_s
            stream, what = key
            self._runtime.tell(f"{self.operator.recipe}: input {stream} of session {some(names, 3)} is {what}")

    async def _commit_every(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self.commit()

    async def commit(self) -> None:
        """Store the snapshots that are due, then commit what nothing needs any more."""
        life, self._overdue = self._life, self._commits.overdue
        if self._overdue:
            await self._wait_for(lambda: life != self._life or not self._commits.overdue)
        async with self._turn:
            self._overdue = False
            if life != self._life or not self.partitions:
                return
            await self._commits.store_snapshots()
            self._raise_failure()
            committing = self._commits.commit_offsets()
        await committing
        for partition in [p for p in self.partitions.values() if isinstance(p, JoinedPartition)]:
            ends = await self._commits.ends(partition)  # others go on meanwhile
            async with self._turn:
                if life != self._life or self._holding:
                    break
                decided = await self._commits.store_decisions(partition, ends)
                self._raise_failure()
                for session, decision in decided:
                    self._add(partition, partition.decide(session, decision))
                self._tell_decided(partition, [(session.name, decision) for session, decision in decided])
        await self._wake()
