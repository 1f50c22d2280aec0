"""From one owner of a partition to the next. In: partitions, what stands in the topics. Out: snapshots stored and offsets committed, all
within the lease on the partitions; and what an earlier owner left of each.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import aiokafka
from aiokafka.errors import KafkaError, NoError, for_code
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from kymo.models.serving.joined import JoinedPartition, JoinedSession, decisions_from_json, decisions_to_json
from kymo.models.serving.operator import Operator
from kymo.models.serving.partition import Partition
from kymo.models.serving.runtime import Outbox, Outgoing, Runtime
from kymo.models.serving.scopes import EventOperator
from kymo.models.serving.sessions import Session
from kymo.models.serving.snapshots import BYTES_MAX, MEMORY_MAX, Floor, Handover, SessionSnapshot
from kymo.processors.join import Decision
from kymo.streams.errors import DeliveryError, KymoError, MessageError
from kymo.streams.messages import read_object
from kymo.streams.topics import BY_NAME, MIB

_NOBODY = 2**31 - 1  # number of no replica: a leader then tells where its log ends, not what may be read of it
_AGAIN_S = 15.0  # a topic that was deleted and made again is found within so long
_ASK_S = 5.0  # how long is waited for a topic without a leader, before it is asked again
_TURN_S = 0.01  # how long records are looked at before other tasks have their turn
LIFE = "life"  # header of a snapshot: where `kymo.state` ended when its writer took over, and the group's generation


class ReadBack:
    """Reads ranges of topics without a group."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._arguments = arguments
        self._consumer: aiokafka.AIOKafkaConsumer | None = None
        self._reading = asyncio.Lock()  # there is one consumer, which is assigned what is read

    async def _open(self) -> aiokafka.AIOKafkaConsumer:
        if self._consumer is None:
            consumer = aiokafka.AIOKafkaConsumer(
                enable_auto_commit=False, auto_offset_reset="earliest", fetch_max_wait_ms=10, **self._arguments
            )
            try:
                await consumer.start()
            except BaseException:
                await consumer.stop()
                raise
            self._consumer = consumer
        return self._consumer

    async def limits(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        """By partition, the first offset there is, and the one behind the last that its leader has appended, which may be read by now.

        What a leader has appended and its followers have not is not shown to readers, and shows later: an owner that died may have
        left such records. So the end is the leader's, and this waits until readers are shown as much (or another leader has less).
        """
        consumer, tps = await self._open(), list(partitions)
        first, shown = await consumer.beginning_offsets(tps), await consumer.end_offsets(tps)
        target = await self._appended(consumer, tps)
        while any(shown[tp] < target[tp] for tp in tps):
            await asyncio.sleep(0.02)
            appended, shown = await self._appended(consumer, tps), await consumer.end_offsets(tps)
            target = {tp: min(target[tp], appended[tp]) for tp in tps}
        return {tp: (first[tp], shown[tp]) for tp in tps}

    async def _appended(self, consumer: Any, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Where the partitions' logs end on their leaders."""
        client = consumer._client
        while True:
            try:
                return await _log_ends(client, partitions)
            except KafkaError as error:
                if not getattr(error, "retriable", False):
                    raise
                await client.force_metadata_update()
                await asyncio.sleep(0.1)

    async def read(self, ranges: Mapping[TopicPartition, tuple[int, int]], visit: Callable[[Any], None]) -> None:
        """Visit every record between two offsets of each partition, in order within a partition."""
        async with self._reading:
            await self._read(ranges, visit)

    async def _read(self, ranges: Mapping[TopicPartition, tuple[int, int]], visit: Callable[[Any], None]) -> None:
        consumer = await self._open()
        ends = {tp: end for tp, (start, end) in ranges.items() if start < end}  # of partitions not read whole yet
        if not ends:
            return
        consumer.assign(list(ends))
        for tp in ends:
            consumer.seek(tp, ranges[tp][0])
        turn_s = time.perf_counter()
        while ends:
            for tp, records in (await consumer.getmany(*ends, timeout_ms=1000)).items():
                for record in records:
                    if record.offset < ranges[tp][1]:
                        visit(record)
                    if time.perf_counter() - turn_s > _TURN_S:
                        await asyncio.sleep(0)
                        turn_s = time.perf_counter()
            for tp in [tp for tp, end in ends.items() if await consumer.position(tp) >= end]:
                del ends[tp]
        # Left assigned, it would go on to fetch, and every later question would wait behind an idle fetch.
        consumer.unsubscribe()

    async def close(self) -> None:
        """Close the connection."""
        if self._consumer is not None:
            await self._consumer.stop()


async def _log_ends(client: Any, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
    by_leader: dict[int, dict[str, list[tuple[int, int]]]] = {}
    for tp in partitions:
        leader = client.cluster.leader_for_partition(tp)
        by_leader.setdefault(-1 if leader is None else leader, {}).setdefault(tp.topic, []).append((tp.partition, -1))
    if -1 in by_leader:
        raise for_code(5)("no leader is known")  # LeaderNotAvailable
    ends = {}
    for leader, topics in by_leader.items():
        answer = await client.send(leader, OffsetRequest(_NOBODY, 0, list(topics.items())))
        for topic, rows in answer.topics:
            for partition, code, _, offset in rows:
                if (error := for_code(code)) is not NoError:
                    raise error(f"{topic}/{partition}")
                ends[TopicPartition(topic, partition)] = offset
    return ends


class _HandoverReader:
    """Reads what stands in the output topics of a partition, record by record."""

    def __init__(self, operator: Operator, state_key: bytes, ids: Mapping[str, str], life: Life) -> None:
        self.handover, self._operator, self._key, self._ids = Handover(), operator, state_key, ids
        self._decisions_key = state_key.replace(b"\n", b".decisions\n")
        self._newest = life  # the newest that has committed
        self._lives: dict[bytes, tuple[int, int, int]] = {}  # by key, whose word it is
        self._old_ms = int(time.time() * 1000) - BY_NAME["events"].retention_ms

    def published(self, record: Any) -> None:
        """A record of the topic of events, or of the derived stream."""
        try:
            published = self._operator.outputs.read(record.value)
        except KymoError as error:
            self.handover.odd.append((record, error))
            return
        if published is not None:
            session, mark, bundle = published
            self._operator.outputs.add(self.handover.published.setdefault(session, {}), mark, bundle)

    def rejected(self, record: Any) -> None:
        """A record of ``kymo.rejected``."""
        headers = {name: (value or b"").decode(errors="replace") for name, value in record.headers}
        topic, offset, topic_id = (headers.get(name, "") for name in ("topic", "offset", "topic_id"))
        # A topic that was made again has other records at the same offsets.
        same = not topic_id or topic_id == self._ids.get(topic, topic_id)
        if headers.get("recipe") == self._operator.recipe and offset.isdigit() and same:
            self.handover.rejected.add((topic, int(offset)))

    def state(self, record: Any) -> None:
        """A record of ``kymo.state``: the newest life's last word on a session counts, whenever it was written."""
        key = record.key or b""
        kind = next((prefix for prefix in (self._key, self._decisions_key) if key.startswith(prefix)), None)
        life = (*life_of(dict(record.headers).get(LIFE) or b""), record.offset)
        if kind is None or life < self._lives.get(key, life):
            return
        name = key[len(kind) :].decode(errors="replace")
        if kind == self._decisions_key:
            if life[:2] < self._newest and record.offset >= self._newest[0]:
                # Whoever wrote it was overtaken already: a newer life has not seen it, and it has not heard of it itself.
                self.handover.overruled.append(name)
                return
            self._decided(name, record)
        self._lives[key] = life
        if kind == self._decisions_key:
            return
        self.handover.snapshots.pop(name, None)
        self.handover.odd_snapshots.pop(name, None)
        if record.value is None:
            return
        try:
            snapshot = SessionSnapshot.decode(record.value)
        except MessageError as error:
            self.handover.odd_snapshots[name] = record, error
            return
        if snapshot.ended and record.timestamp < self._old_ms:  # its events are gone as well
            self.handover.gone.append(name)
        else:
            self.handover.snapshots[name] = snapshot

    def _decided(self, name: str, record: Any) -> None:
        self.handover.decisions.pop(name, None)
        if record.value is None:
            return
        try:
            self.handover.decisions[name] = decisions_from_json(record.value, self._operator.chain)
        except MessageError as error:
            self.handover.odd.append((record, error))


Life = tuple[int, int]  # where `kymo.state` ended when it took over, and the group's generation


def life_of(header: bytes) -> Life:
    """What :data:`LIFE` says."""
    state_end, _, generation = header.partition(b".")
    return (int(state_end), int(generation)) if state_end.isdigit() and generation.isdigit() else (0, 0)


async def read_handovers(
    operator: Operator, runtime: Runtime, inputs: Sequence[TopicPartition], state_key: bytes
) -> dict[int, Handover]:
    """What the last owners of some partitions hand over."""
    numbers, of = sorted({tp.partition for tp in inputs}), runtime.names.of
    outputs = [TopicPartition(topic, n) for n in numbers for topic in (operator.topic, of("rejected"), of("state"))]
    limits = await runtime.read_back.limits([*inputs, *outputs])
    ids = await runtime.topic_ids(sorted({tp.topic for tp in inputs}))
    committed = valid_commits(await runtime.kafka.committed_with(inputs), limits, ids)
    lives = {
        n: max(
            (life_of(_note(c.metadata).get(LIFE, "").encode()) for tp, c in committed.items() if tp.partition == n),
            default=(0, 0),
        )
        for n in numbers
    }
    readers = {n: _HandoverReader(operator, state_key, ids, lives[n]) for n in numbers}
    ranges, states = dict[TopicPartition, tuple[int, int]](), dict[TopicPartition, tuple[int, int]]()
    for n in numbers:
        tps = [tp for tp in inputs if tp.partition == n]
        events, rejected, state = (TopicPartition(topic, n) for topic in (operator.topic, of("rejected"), of("state")))
        # Without a commit nothing is known: any event that is there may be of a window that comes again.
        floors = [floor_of(committed[tp].metadata) if tp in committed else Floor() for tp in tps]
        start = Floor(
            max(limits[events][0], min(floor.events for floor in floors)),
            max(limits[rejected][0], min(floor.rejected for floor in floors)),
        )
        end, handover = Floor(limits[events][1], limits[rejected][1]), readers[n].handover
        handover.start, handover.end = start, end
        ranges |= {events: (start.events, end.events), rejected: (start.rejected, end.rejected)}
        states[state] = limits[state]
        handover.state_end = limits[state][1]
        for tp in tps:
            handover.next_offset[tp.topic] = max(limits[tp][0], committed[tp].offset if tp in committed else 0)
            handover.first_offset[tp.topic], handover.input_end[tp.topic] = limits[tp]
            handover.topic_ids[tp.topic] = ids.get(tp.topic, "")
    visits = {
        operator.topic: _HandoverReader.published,
        of("rejected"): _HandoverReader.rejected,
        of("state"): _HandoverReader.state,
    }
    await runtime.read_back.read(
        ranges | states, lambda record: visits[record.topic](readers[record.partition], record)
    )
    return {n: reader.handover for n, reader in readers.items()}


def valid_commits(
    committed: Mapping[TopicPartition, OffsetAndMetadata],
    limits: Mapping[TopicPartition, tuple[int, int]],
    ids: Mapping[str, str],
) -> dict[TopicPartition, OffsetAndMetadata]:
    """Commits that are of today's topics: not of those that were deleted and made again."""
    out = {}
    for tp, commit in committed.items():
        noted_id, topic_id = _note(commit.metadata).get("topic"), ids.get(tp.topic)
        if 0 <= commit.offset <= limits[tp][1] and not (noted_id and topic_id and noted_id != topic_id):
            out[tp] = commit
    return out


def note(floor: Floor, topic_id: str, life: str = "") -> str:
    """What stands beside a commit."""
    return json.dumps({"events": floor.events, "rejected": floor.rejected, "topic": topic_id, LIFE: life})


def floor_of(metadata: str | None) -> Floor:
    """Where to begin to read the outputs back, as it stands beside a commit; from the start, where another program made the commit."""
    offsets = map(_note(metadata).get, ("events", "rejected"))
    return Floor(*(offset if type(offset) is int and offset >= 0 else 0 for offset in offsets))


def _note(metadata: str | None) -> dict[str, Any]:
    try:
        return read_object(metadata or "")
    except MessageError:
        return {}


class Commits:
    """Snapshots and offsets of an agent."""

    def __init__(
        self,
        partitions: dict[int, Partition],
        operator: Callable[[], Operator | EventOperator],
        runtime: Runtime,
        outbox: Outbox,
    ) -> None:
        self._partitions, self._operator, self._runtime, self._outbox = partitions, operator, runtime, outbox
        self._looked_s = time.monotonic()
        self._topic_ids: dict[str, str] = {}
        self._large: set[str] = set()  # sessions that were said to be too large
        self._committing = asyncio.Lock()  # one commit after the other

    @property
    def overdue(self) -> bool:
        """Whether nothing must be taken until a session that holds the commit back can be stored."""
        return any(partition.overdue for partition in self._partitions.values())

    def key(self, session: str) -> bytes:
        """Key of a session's snapshot."""
        return f"{self._operator().state}\n{session}".encode()

    async def store_snapshots(self) -> None:
        """Store the snapshots that are due; all are acknowledged (or have failed) on return. No record may be taken meanwhile."""
        loop, state = asyncio.get_running_loop(), self._runtime.names.of("state")
        for partition in list(self._partitions.values()):
            if due := partition.snapshots():
                # Compressing takes its time, and other things must go on.
                snapshots = await loop.run_in_executor(None, _make, [make for _, make in due])
                records = (
                    self._record(partition, session, snapshot)
                    for (session, _), snapshot in zip(due, snapshots, strict=True)
                )
                self._outbox.put(state, partition.number, [record for record in records if record is not None])
        await self._outbox.settled(state, self._runtime.names.of("rejected"))

    def _record(self, partition: Partition, session: Session, snapshot: SessionSnapshot | None) -> Outgoing | None:
        value = snapshot.encode() if snapshot is not None else None
        size = len(value or b"") if snapshot is None or snapshot.memory else MEMORY_MAX
        if snapshot is not None and size > BYTES_MAX:
            if session.name not in self._large:
                self._large.add(session.name)
                again = "its open window is read again from its topic, for as long as that keeps it"
                if session.goes_on_from_snapshots:
                    again = (
                        "all since it was last small enough is read again from its topics, for as long as those keep it"
                    )
                self._runtime.tell(
                    f"{self._operator().recipe}: session {session.name} holds {size / MIB:.1f} MiB, more than the "
                    f"{BYTES_MAX / MIB:.1f} MiB that a snapshot may have: after a restart {again}; shorter windows or fewer channels "
                    "avoid it"
                )
            if session.goes_on_from_snapshots and not snapshot.ended:
                partition.put_off(session)  # nothing else says what was taken, so nothing is committed past it
                return None
            session.large, snapshot = True, snapshot.light()
            value = snapshot.encode()
        done = partial(_stored, partition, session, snapshot)
        return Outgoing(self.key(session.name), value, [self.life(partition.state_end)], done)

    async def ends(self, partition: JoinedPartition) -> dict[str, tuple[int, float]]:
        """Where topics end of which that must be known, and when it was asked; nothing where a topic has no leader for now."""
        asked_s, topics = partition.to_ask()
        places = [TopicPartition(topic, partition.number) for topic in topics]
        if places:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ASK_S):
                    limits = await self._runtime.read_back.limits(places)
                    return {tp.topic: (last_offset(limit), asked_s) for tp, limit in limits.items()}
        return {}

    async def store_decisions(
        self, partition: JoinedPartition, ends: Mapping[str, tuple[int, float]]
    ) -> list[tuple[JoinedSession, Decision]]:
        """Store what is to be decided of inputs that fell silent or are back; on return it is acknowledged (or has failed)."""
        state, due = self._runtime.names.of("state"), partition.due(ends)
        for session, decision in due:
            decisions = [*partition.decisions.get(session.name, ()), decision]
            self._outbox.put(state, partition.number, [self._decisions(partition, session.name, decisions)])
        await self._outbox.settled(state)
        return due

    def decisions_key(self, session: str) -> bytes:
        """Key of what was decided of a session's inputs."""
        return f"{self._operator().state}.decisions\n{session}".encode()

    def life(self, state_end: int) -> tuple[str, bytes]:
        """The header of a snapshot of this life, which found that ``kymo.state`` ended there."""
        return LIFE, b"%d.%d" % (state_end, self._runtime.kafka.consumer_generation_id)

    def _decisions(self, partition: Partition, session: str, decisions: Sequence[Decision]) -> Outgoing:
        value = decisions_to_json(decisions, partition.chain) if decisions else None
        return Outgoing(self.decisions_key(session), value, [self.life(partition.state_end)])

    async def overrule(self, handovers: Mapping[int, Handover]) -> None:
        """From here on what an earlier life still decides counts no more; nor does what one had decided that was overtaken already."""
        state = self._runtime.names.of("state")
        for number, handover in handovers.items():
            partition = self._partitions[number]
            assert isinstance(partition, JoinedPartition)
            decided = {name: partition.decisions.get(name, ()) for name in handover.overruled}
            self._outbox.put(state, number, [self._decisions(partition, *entry) for entry in decided.items()])
        await self._outbox.settled(state)
        await self.commit_offsets()

    def forget(self, number: int, handover: Handover) -> None:
        """Delete snapshots that are of no use, and what was decided of sessions that are gone."""
        partition = self._partitions[number]
        records = [
            Outgoing(self.key(name), None, [self.life(partition.state_end)])
            for name in (*handover.gone, *handover.odd_snapshots)
        ]
        records += [self._decisions(partition, name, ()) for name in handover.gone if name in handover.decisions]
        self._outbox.put(self._runtime.names.of("state"), number, records)

    def commit_offsets(self) -> Coroutine[Any, Any, None]:
        """Commit what nothing needs any more as this is called; while it is awaited records may be taken."""
        offsets, partitions = dict[TopicPartition, OffsetAndMetadata](), dict(self._partitions)
        for partition in partitions.values():
            for topic, (offset, floor) in partition.committable().items():
                metadata = note(floor, partition.topic_id(topic), self.life(partition.state_end)[1].decode())
                offsets[TopicPartition(topic, partition.number)] = OffsetAndMetadata(offset, metadata)

        async def commit() -> None:
            async with self._committing:
                await self.commit(offsets)
            for tp, committed in offsets.items():
                partitions[tp.partition].committed(tp.topic, committed.offset)

        return commit()

    async def commit(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        """Commit offsets, if the lease lasts; see now and then whether the topics are the same."""
        started = time.perf_counter()
        if time.monotonic() - self._looked_s >= _AGAIN_S:
            await self.check_topics()
        if not offsets:
            return
        if self._runtime.kafka.lease.left_s <= 0:
            raise DeliveryError("the broker has not heard of this worker for half its session timeout")
        await self._runtime.kafka.commit_with(offsets)
        self._runtime.observer.committed(time.perf_counter() - started)

    async def check_topics(self) -> None:
        """Look whether the input topics are those that offsets are kept of."""
        self._looked_s = time.monotonic()
        self.remember(await self._runtime.topic_ids(self._operator().inputs))

    def remember(self, ids: Mapping[str, str]) -> None:
        """Remember which topics these are, for as long as this process lives: its clients keep to what they have seen of them."""
        for topic, topic_id in ids.items():
            if topic_id and self._topic_ids.setdefault(topic, topic_id) != topic_id:
                raise DeliveryError(f"topic {topic} was deleted and made again")


def last_offset(limits: tuple[int, int]) -> int:
    """Where a partition ends, from its first offset and its end; 0 where everything of it is deleted, so that nothing can be read."""
    first, end = limits
    return end if first < end else 0


def _make(makers: Sequence[partial[SessionSnapshot] | None]) -> list[SessionSnapshot | None]:
    return [make() if make is not None else None for make in makers]


def _stored(partition: Partition, session: Session, snapshot: SessionSnapshot | None, _end: int) -> Any:
    partition.stored(session, snapshot)
