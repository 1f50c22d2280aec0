"""Taking over partitions. In: what is assigned, what stands in the topics. Out: what an earlier owner left of each partition."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import aiokafka
from aiokafka.errors import KafkaError, NoError, for_code
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from models.serving.around import Around, Job
from models.serving.handed import Floor, Left
from models.serving.snapshots import Snapshot
from streams.errors import KymoError, MessageError
from streams.messages import read_object
from streams.topics import BY_NAME

_NOBODY = (
    2**31 - 1
)  # a replica's number that none has: its leader then tells where its log ends, not what may be read of it
_TURN_S = 0.01  # how long records are looked at before other tasks have their turn
LIFE = "life"  # header of a snapshot: where `kymo.state` ended when its writer took over, and the group's generation


class ReadBack:
    """Reads ranges of topics without a group."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._arguments = arguments
        self._consumer: aiokafka.AIOKafkaConsumer | None = None

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
        consumer, wanted = await self._open(), list(partitions)
        first, shown = await consumer.beginning_offsets(wanted), await consumer.end_offsets(wanted)
        target = await self._appended(consumer, wanted)
        while any(shown[tp] < target[tp] for tp in wanted):
            await asyncio.sleep(0.02)
            appended, shown = await self._appended(consumer, wanted), await consumer.end_offsets(wanted)
            target = {tp: min(target[tp], appended[tp]) for tp in wanted}
        return {tp: (first[tp], shown[tp]) for tp in wanted}

    async def _appended(self, consumer: Any, wanted: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Where the partitions' logs end on their leaders."""
        client = consumer._client
        while True:
            try:
                return await _log_ends(client, wanted)
            except KafkaError as error:
                if not getattr(error, "retriable", False):
                    raise
                await client.force_metadata_update()
                await asyncio.sleep(0.1)

    async def read(self, ranges: Mapping[TopicPartition, tuple[int, int]], visit: Callable[[Any], None]) -> None:
        """Visit every record between two offsets of each partition, in order within a partition."""
        consumer = await self._open()
        left = {tp: end for tp, (start, end) in ranges.items() if start < end}
        if not left:
            return
        consumer.assign(list(left))
        for tp in left:
            consumer.seek(tp, ranges[tp][0])
        turn_s = time.perf_counter()
        while left:
            for tp, records in (await consumer.getmany(*left, timeout_ms=1000)).items():
                for record in records:
                    if record.offset < ranges[tp][1]:
                        visit(record)
                    if time.perf_counter() - turn_s > _TURN_S:
                        await asyncio.sleep(0)
                        turn_s = time.perf_counter()
            for tp in [tp for tp, end in left.items() if await consumer.position(tp) >= end]:
                del left[tp]
        # Left assigned, it would go on to fetch, and every later question would wait behind an idle fetch.
        consumer.unsubscribe()

    async def close(self) -> None:
        """Close the connection."""
        if self._consumer is not None:
            await self._consumer.stop()


async def _log_ends(client: Any, wanted: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
    by_leader: dict[int, dict[str, list[tuple[int, int]]]] = {}
    for tp in wanted:
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


class _Found:
    """What stands in the output topics of a partition, record by record."""

    def __init__(self, job: Job, state_key: bytes, ids: Mapping[str, str]) -> None:
        self.left, self._job, self._key, self._ids = Left(), job, state_key, ids
        self._lives: dict[str, tuple[int, int, int]] = {}  # by session, whose snapshot it is
        self._old_ms = int(time.time() * 1000) - BY_NAME["events"].retention_ms

    def published(self, record: Any) -> None:
        """A record of the topic of events, or of the derived stream."""
        try:
            read = self._job.outputs.read(record.value)
        except KymoError as error:
            self.left.odd.append((record, error))
            return
        if read is not None:
            session, mark, bundle = read
            self._job.outputs.add(self.left.published.setdefault(session, {}), mark, bundle)

    def rejected(self, record: Any) -> None:
        """A record of ``kymo.rejected``."""
        about = {name: (value or b"").decode(errors="replace") for name, value in record.headers}
        topic, offset, then = (about.get(name, "") for name in ("topic", "offset", "topic_id"))
        # A topic that was made again has other records at the same offsets.
        same = not then or then == self._ids.get(topic, then)
        if about.get("recipe") == self._job.recipe and offset.isdigit() and same:
            self.left.rejected.add((topic, int(offset)))

    def state(self, record: Any) -> None:
        """A record of ``kymo.state``: the newest life's last word on a session counts, whenever it was written."""
        if record.key is None or not record.key.startswith(self._key):
            return
        name = record.key[len(self._key) :].decode(errors="replace")
        life = (*_life_of(dict(record.headers).get(LIFE) or b""), record.offset)
        if life < self._lives.get(name, life):
            return
        self._lives[name] = life
        self.left.snapshots.pop(name, None)
        self.left.odd_snapshots.pop(name, None)
        if record.value is None:
            return
        try:
            snapshot = Snapshot.decode(record.value)
        except MessageError as error:
            self.left.odd_snapshots[name] = record, error
            return
        if snapshot.ended and record.timestamp < self._old_ms:  # its events are gone as well
            self.left.gone.append(name)
        else:
            self.left.snapshots[name] = snapshot


def _life_of(header: bytes) -> tuple[int, int]:
    at, _, generation = header.partition(b".")
    return (int(at), int(generation)) if at.isdigit() and generation.isdigit() else (0, 0)


async def read_left(job: Job, around: Around, inputs: Sequence[TopicPartition], state_key: bytes) -> dict[int, Left]:
    """What the last owners of some partitions left."""
    numbers, of = sorted({tp.partition for tp in inputs}), around.names.of
    outputs = [TopicPartition(topic, n) for n in numbers for topic in (job.topic, of("rejected"), of("state"))]
    limits = await around.read_back.limits([*inputs, *outputs])
    ids = await around.topic_ids(sorted({tp.topic for tp in inputs}))
    committed = _valid(await around.kafka.committed_with(inputs), limits, ids)
    found = {n: _Found(job, state_key, ids) for n in numbers}
    ranges, states = dict[TopicPartition, tuple[int, int]](), dict[TopicPartition, tuple[int, int]]()
    for n in numbers:
        own = [tp for tp in inputs if tp.partition == n]
        events, rejected, state = (TopicPartition(topic, n) for topic in (job.topic, of("rejected"), of("state")))
        # Without a commit nothing is known: any event that is there may be of a window that comes again.
        floors = [floor_of(committed[tp].metadata) if tp in committed else Floor() for tp in own]
        left = found[n].left
        left.start = Floor(
            max(limits[events][0], min(floor.events for floor in floors)),
            max(limits[rejected][0], min(floor.rejected for floor in floors)),
        )
        left.end = Floor(limits[events][1], limits[rejected][1])
        ranges |= {events: (left.start.events, left.end.events), rejected: (left.start.rejected, left.end.rejected)}
        states[state] = limits[state]
        left.state_end = limits[state][1]
        for tp in own:
            left.next_offset[tp.topic] = max(limits[tp][0], committed[tp].offset if tp in committed else 0)
            left.first_offset[tp.topic], left.input_end[tp.topic] = limits[tp]
            left.topic_ids[tp.topic] = ids.get(tp.topic, "")
    visits = {job.topic: _Found.published, of("rejected"): _Found.rejected, of("state"): _Found.state}
    await around.read_back.read(ranges | states, lambda record: visits[record.topic](found[record.partition], record))
    return {n: one.left for n, one in found.items()}


def _valid(
    committed: Mapping[TopicPartition, OffsetAndMetadata],
    limits: Mapping[TopicPartition, tuple[int, int]],
    ids: Mapping[str, str],
) -> dict[TopicPartition, OffsetAndMetadata]:
    """Commits that are of today's topics: not of those that were deleted and made again."""
    out = {}
    for tp, commit in committed.items():
        then, now = _note(commit.metadata).get("topic"), ids.get(tp.topic)
        if 0 <= commit.offset <= limits[tp][1] and not (then and now and then != now):
            out[tp] = commit
    return out


def note(floor: Floor, topic_id: str) -> str:
    """What stands beside a commit."""
    return json.dumps({"events": floor.events, "rejected": floor.rejected, "topic": topic_id})


def floor_of(metadata: str | None) -> Floor:
    """Where to begin to read the outputs back, as it stands beside a commit; from the start, where another program made the commit."""
    told = _note(metadata)
    events, rejected = (told.get(name, 0) for name in ("events", "rejected"))
    return Floor(*(at if type(at) is int and at >= 0 else 0 for at in (events, rejected)))


def _note(metadata: str | None) -> dict[str, Any]:
    try:
        return read_object(metadata or "")
    except MessageError:
        return {}
