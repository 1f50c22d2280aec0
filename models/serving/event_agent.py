"""The agent whose items are events. In: records of its topics, in batches. Out: findings, once snapshots hold them; commits.

A session's scope stands in the session's partition. Where all sessions are one scope, one member of the group reads all partitions, and
what it keeps and publishes stands in partition 0; the other members stand by.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from aiokafka.structs import OffsetAndMetadata, TopicPartition

from kymo.models.serving.handover import LIFE, Commits, last_offset, life_of, note, valid_commits
from kymo.models.serving.member import Member
from kymo.models.serving.runtime import Outgoing, Runtime
from kymo.models.serving.scopes import EventOperator, Finding, Scope, Scopes, ScopesHandover, ScopeSnapshot
from kymo.models.serving.snapshots import BYTES_MAX, Floor
from kymo.streams.errors import KymoError
from kymo.streams.topics import MIB

_TAKEN = 200  # records taken before others have their turn
_FULL = 1_000  # findings that are not published: beyond them nothing more is read


class EventAgent(Member):
    """Takes records, gives findings."""

    def __init__(
        self,
        operator: EventOperator,
        runtime: Runtime,
        whole: bool = False,  # whether all sessions are one scope
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        super().__init__(runtime)
        self.operator, self._whole, self._now_ns = operator, whole, now_ns
        self.partitions: dict[int, Scopes] = {}  # by home
        self._commits = Commits({}, lambda: operator, runtime, self._outbox)
        self._timed_s = 0.0

    @property
    def waiting(self) -> int:
        """Findings that are not published."""
        return sum(scopes.waiting for scopes in self.partitions.values())

    def start(self, commit_every_s: float = 0.5) -> None:
        """Begin to publish and commit."""
        self._run(partial(self._work, commit_every_s))

    @property
    def _ready(self) -> bool:
        return any(scopes.ready for scopes in self.partitions.values())

    @property
    def _full(self) -> bool:
        return self.waiting >= _FULL or self._outbox.full

    def _taking(self, tp: TopicPartition, batch: list[Any]) -> Iterator[None]:
        scopes = self.partitions.get(0 if self._whole else tp.partition)
        for start in range(0, 0 if scopes is None else len(batch), _TAKEN):
            assert scopes is not None
            records, started_s = batch[start : start + _TAKEN], time.perf_counter()
            self._check(tp, records[0].offset, scopes.next_offset.get(tp, 0))
            scopes.take(tp, records)
            self._runtime.observer.took(scopes, len(records), time.perf_counter() - started_s)
            yield

    def _pass(self, tp: TopicPartition, offset: int) -> None:
        if (scopes := self.partitions.get(0 if self._whole else tp.partition)) is not None:
            scopes.next_offset[tp] = offset

    async def _load(self, life: int) -> None:
        runtime, operator = self._runtime, self.operator
        homes: dict[int, list[TopicPartition]] = {}
        for tp in runtime.kafka.assigned():
            if tp.topic in operator.inputs:
                homes.setdefault(0 if self._whole else tp.partition, []).append(tp)
        producer = runtime.kafka.aiokafka_producer()
        for topic in (operator.topic, runtime.names.of("state")):
            await producer.partitions_for(topic)  # else the first finding would wait for it
        handovers = await read_scopes(operator, runtime, homes, self._commits.key("")) if homes else {}
        await self._wait_for(lambda: runtime.kafka.lease.left_s > 0 or life != self._life)
        if life != self._life:
            return
        offsets = dict[TopicPartition, int]()
        for home, handover in handovers.items():
            self._commits.remember(handover.topic_ids)
            scopes = self.partitions[home] = Scopes(home, operator, self._now_ns, runtime.tell)
            scopes.load(handover)
            offsets |= scopes.next_offset
        await runtime.kafka.begin(offsets)
        await self._wake()

    async def _finish(self) -> None:
        async with self._turn:
            await self._outbox.settled()
            self._raise_failure()
            await self._commit_offsets()
            self.partitions.clear()

    # --- publishing and committing

    async def _work(self, every_s: float) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every_s), self._changed:
                    await self._changed.wait_for(lambda: self._ready)
            await self.commit(timed=time.monotonic() - self._timed_s >= every_s)

    async def commit(self, timed: bool = True) -> None:
        """Publish what was found, once it is stored; `timed`, tell the time before, and commit what nothing needs any more."""
        life = self._life
        if timed:
            self._timed_s = time.monotonic()
            for scopes in [scopes for scopes in self.partitions.values() if scopes.asks]:
                asked_ns = self._now_ns()
                limits = await self._runtime.read_back.limits(scopes.next_offset)
                scopes.ask(asked_ns, {tp: last_offset(limit) for tp, limit in limits.items()})
        async with self._turn:
            if life != self._life or self._holding:
                return
            for scopes in self.partitions.values():
                scopes.tick()
            await self._publish(timed)
            if timed:
                await self._commit_offsets()
        await self._wake()

    async def _publish(self, timed: bool) -> None:
        state = self._runtime.names.of("state")
        for scopes in self.partitions.values():
            if due := scopes.snapshots(timed):
                self._outbox.put(state, scopes.number, [self._record(scopes, *about) for about in due])
        await self._outbox.settled(state)
        self._raise_failure()
        for scopes in self.partitions.values():
            records = [
                Outgoing(found.key, found.value, done=partial(self._published, scopes, scope, found))
                for scope, found in scopes.released()
            ]
            if records:
                self._outbox.put(self.operator.topic, scopes.number, records)

    def _record(self, scopes: Scopes, scope: Scope, snapshot: ScopeSnapshot | None) -> Outgoing:
        value = snapshot.encode() if snapshot is not None else None
        if len(value or b"") > BYTES_MAX:
            whose = f"session {scope.name}" if scope.name else "all sessions"
            raise KymoError(
                f"{self.operator.recipe}: {whose}: {len(value or b'') / MIB:.1f} MiB to remember, a snapshot has "
                f"{BYTES_MAX / MIB:.1f} MiB at most"
            )

        def stored(_: int) -> None:
            scopes.stored(scope, snapshot)

        return Outgoing(self._commits.key(scope.name), value, [self._commits.life(scopes.state_end)], stored)

    def _published(self, scopes: Scopes, scope: Scope, found: Finding, end: int) -> None:
        scopes.acknowledge(scope, found, end)
        if scope.sent_ms:  # else nothing has come of it in this life
            self._runtime.observer.emitted(time.time() - scope.sent_ms / 1000)

    async def _commit_offsets(self) -> None:
        offsets, owners = dict[TopicPartition, OffsetAndMetadata](), dict[TopicPartition, Scopes]()
        for scopes in self.partitions.values():
            for tp, offset in scopes.committable().items():
                offsets[tp], owners[tp] = OffsetAndMetadata(offset, note(Floor(), scopes.topic_id(tp.topic))), scopes
        await self._commits.commit(offsets)
        for tp, scopes in owners.items():
            scopes.committed(tp, offsets[tp].offset)


async def read_scopes(
    operator: EventOperator, runtime: Runtime, homes: Mapping[int, Sequence[TopicPartition]], state_key: bytes
) -> dict[int, ScopesHandover]:
    """By home, what the last owners of its partitions hand over."""
    inputs = [tp for tps in homes.values() for tp in tps]
    states = [TopicPartition(runtime.names.of("state"), home) for home in homes]
    outputs = [TopicPartition(operator.topic, home) for home in homes]
    limits = await runtime.read_back.limits({*inputs, *states, *outputs})
    ids = await runtime.topic_ids(sorted({tp.topic for tp in inputs}))
    committed = valid_commits(await runtime.kafka.committed_with(inputs), limits, ids)
    stored: dict[int, dict[str, tuple[tuple[int, ...], bytes | None]]] = {home: {} for home in homes}
    handovers = dict[int, ScopesHandover]()

    def visit_state(record: Any) -> None:
        if record.key is not None and record.key.startswith(state_key):
            name = record.key[len(state_key) :].decode(errors="replace")
            life = (*life_of(dict(record.headers).get(LIFE) or b""), record.offset)
            last = stored[record.partition].get(name)
            if last is None or last[0] <= life:  # the newest life's last word counts, whenever it was written
                stored[record.partition][name] = life, record.value

    def visit_output(record: Any) -> None:
        with contextlib.suppress(KymoError):  # others may write there, too
            if (name := operator.identify(record.value)) is not None:
                handovers[record.partition].published.add(name)

    await runtime.read_back.read({tp: limits[tp] for tp in states}, visit_state)
    ranges = dict[TopicPartition, tuple[int, int]]()
    for (home, tps), state, output in zip(homes.items(), states, outputs, strict=True):
        first, end = limits[output]
        offsets = {tp: max(limits[tp][0], committed[tp].offset if tp in committed else 0) for tp in tps}
        snapshots = {name: value for name, (_, value) in stored[home].items() if value is not None}
        handover = handovers[home] = ScopesHandover(offsets, ids, snapshots, set(), end, limits[state][1])
        floor = handover.floor()
        ranges[output] = (max(first, floor) if floor <= end else first, end)  # behind its end where it was made again
    await runtime.read_back.read(ranges, visit_output)
    return handovers
