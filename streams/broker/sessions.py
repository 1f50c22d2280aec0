"""A session in the topics. In: its name. Out: its end marks sent; or its records deleted as far as Kafka can; times in Unix ns.

Kafka deletes single records only on compacted topics. Elsewhere it can only delete all records of a partition before an offset, so
what stands behind another session's records goes when retention takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient

from streams.archive.erase import session_of
from streams.archive.format import Place
from streams.broker.client import client_arguments, kafka_errors, partition_of
from streams.broker.read import whole_topic_consumer
from streams.chunk import Chunk, Header
from streams.codec import ChunkCodec
from streams.errors import ChunkError, SourceError
from streams.replay.publish import Publisher
from streams.settings import Settings
from streams.topics import CHUNK_TOPICS, MIB, TABLE, Names, Topic

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Deleted:
    """What was done about one topic.

    Attributes
    ----------
    topic : str
        Full name.
    found : int
        Records of the session.
    deleted : int
        Gone now (on compacted topics: superseded, and gone after the next compaction).
    left : int
        That stay until retention takes them.
    until_ms : int
        When the newest of those is that old, Unix ms; 0 where none is left.
    """

    topic: str
    found: int = 0
    deleted: int = 0
    left: int = 0
    until_ms: int = 0

    def line(self) -> str:
        """For a person."""
        return f"{self.topic}: {self.deleted} of {self.found} records deleted" + (
            f", {self.left} stay between those of other sessions until retention takes them" if self.left else ""
        )


@dataclass(slots=True)
class Deletion:
    """What :func:`delete_session` did.

    Attributes
    ----------
    topics : list of Deleted
        Those that held records of the session.
    ends : dict
        Ends of the partitions that may hold records of the session, as of the start.
    topic_ids : dict of str
        Kafka's ids of their topics, by name.
    """

    topics: list[Deleted] = field(default_factory=list)
    ends: dict[Place, int] = field(default_factory=dict)
    topic_ids: dict[str, str] = field(default_factory=dict)


def end_session(settings: Settings, session: str, on_progress: Progress = lambda _done, _of: None) -> list[str]:
    """Send the end mark of every stream of a session that has none yet.

    Parameters
    ----------
    settings : Settings
        Broker and prefix.
    session : str
        Its name.
    on_progress : callable, optional
        Told how many of how many records have been looked at.

    Returns
    -------
    list of str
        The streams that were ended.

    Raises
    ------
    SourceError
        No raw stream of that session is in the topics.
    """
    names, codec = Names(settings.prefix), ChunkCodec()
    newest: dict[str, Header] = {}
    ends: dict[Header, int] = {}
    ended: set[Header] = set()
    for r in _records(settings, [names.of(name) for name in CHUNK_TOPICS], session, on_progress):
        if r.key != session.encode():
            continue
        try:
            chunk = codec.decode(r.value or b"")
        except ChunkError:
            continue
        if chunk.header.chain:  # made by a worker, which ends it itself
            continue
        newest[chunk.stream] = chunk.header
        ends[chunk.header] = max(chunk.end_index, ends.get(chunk.header, 0))
        if chunk.end:
            ended.add(chunk.header)
    if not newest:
        raise SourceError(
            f"no stream of a session {session} in {names.prefix}.*; `kymo sessions list` shows those there are"
        )
    todo = {stream: header for stream, header in newest.items() if header not in ended}
    with Publisher(settings, names) as publisher:
        for stream, header in todo.items():
            mark = _end_mark(header, ends[header])
            publisher.send(names.for_stream(stream).removeprefix(names.prefix + "."), session, codec.encode(mark))
        publisher.flush()
    return sorted(todo)


def _end_mark(header: Header, at: int) -> Chunk:
    import numpy as np

    fmt = header.format
    if fmt.dtype == "jpeg":
        return Chunk(header, at, np.empty(0, object), None, True)
    times = None if fmt.rate else np.empty(0, np.int64)
    return Chunk(header, at, np.empty((0, *fmt.shape), np.dtype(fmt.dtype)), times, True)


def delete_session(settings: Settings, session: str, on_progress: Progress = lambda _done, _of: None) -> Deletion:
    """Delete a session's records from all topics, as far as Kafka can.

    Compacted topics get a tombstone for each key. Of the others the records before the first one of another session are deleted.
    ``kymo.labels``, which is kept for ever, is written anew: the other sessions' labels of the partition are sent again, then
    all before them is deleted.

    Parameters
    ----------
    settings : Settings
        Broker and prefix.
    session : str
        Its name; nothing may be sending it any more, or it is there again.
    on_progress : callable, optional
        Told how many of how many records have been looked at.

    Raises
    ------
    BrokerError
        The broker cannot be reached or refuses; what was deleted before stays deleted.
    """
    names, out = Names(settings.prefix), Deletion()
    with kafka_errors(settings, f"deleting session {session}"), KafkaAdminClient(**client_arguments(settings)) as admin:
        there = set(admin.list_topics())
        topics = [topic for topic in TABLE if topic.name != "models" and names.of(topic.name) in there]
        tallies = {names.of(topic.name): _Tally(topic) for topic in topics}
        about = admin.describe_topics(list(tallies)) if tallies else []
        out.topic_ids = {row["name"]: str(row.get("topic_id") or "") for row in about}
        for r in _records(settings, list(tallies), session, on_progress, out.ends):
            tallies[r.topic].take(r, session)
        for full, tally in tallies.items():
            if tally.own:
                out.topics.append(_delete(settings, admin, full, tally))
    return out


@dataclass(slots=True)
class _Tally:
    """What is known of a topic's partition after one pass; only what must be sent again is held."""

    topic: Topic
    own: int = 0
    leading: int = 0  # own records before the first of another session
    place: Place = ("", 0)
    first_other: int | None = None
    behind: int = 0
    newest_ms: int = 0
    keys: set[bytes] = field(default_factory=set)
    others: list[Any] = field(default_factory=list)

    def take(self, r: Any, session: str) -> None:
        self.place, self.behind = (r.topic, r.partition), r.offset + 1
        if _is_of(r, session):
            self.own += 1
            self.leading += self.first_other is None
            self.newest_ms = max(self.newest_ms, r.timestamp)
            if self.topic.compact and r.key is not None:
                self.keys.add(r.key)
            return
        if self.first_other is None:
            self.first_other = r.offset
        if self.topic.retention_ms < 0 and not self.topic.compact:
            self.others.append((r.topic, r.partition, r.key, r.value, list(r.headers)))


def _delete(settings: Settings, admin: Any, full: str, tally: _Tally) -> Deleted:
    topic, place = tally.topic, TopicPartition(*tally.place)
    if topic.compact:
        _send(settings, [(*tally.place, key, None, []) for key in sorted(tally.keys)])
        return Deleted(full, tally.own, tally.own)
    if topic.retention_ms < 0:
        _send(settings, tally.others)
        admin.delete_records({place: tally.behind})
        return Deleted(full, tally.own, tally.own)
    if tally.leading:
        admin.delete_records({place: tally.behind if tally.first_other is None else tally.first_other})
    left = tally.own - tally.leading
    return Deleted(full, tally.own, tally.leading, left, tally.newest_ms + topic.retention_ms if left else 0)


def _is_of(record: Any, session: str) -> bool:
    return session_of(record) == session.encode() and (record.value is not None or record.key is None)


def _send(settings: Settings, rows: list[tuple[str, int, bytes | None, bytes | None, list[tuple[str, bytes]]]]) -> None:
    """Send records to their partitions; all are acknowledged on return."""
    producer = KafkaProducer(
        **client_arguments(settings),
        acks="all",
        enable_idempotence=True,
        max_request_size=16 * MIB,
        metrics_enabled=False,
    )
    try:
        sent = [producer.send(t, value, key, headers=headers, partition=part) for t, part, key, value, headers in rows]
        for future in sent:
            future.get(60)
    finally:
        producer.close()


def _records(
    settings: Settings,
    topics: Sequence[str],
    session: str,
    on_progress: Progress,
    ends_out: dict[Place, int] | None = None,
) -> Iterator[Any]:
    """Records of the partition of a session's key, of each topic, to the end as it stands now.

    Of ``state``, whose keys are others, and of topics with another number of partitions, the same holds: a worker keeps what it
    knows of a partition's sessions under that partition's number.
    """
    with kafka_errors(settings, "reading"):
        consumer = whole_topic_consumer(settings)
    try:
        with kafka_errors(settings, "reading"):
            counts = {topic: len(consumer.partitions_for_topic(topic) or ()) for topic in topics}
            places = [TopicPartition(t, partition_of(session.encode(), n)) for t, n in counts.items() if n]
            consumer.assign(places)
            ends, begins = consumer.end_offsets(places), consumer.beginning_offsets(places)
        if ends_out is not None:
            ends_out.update({(p.topic, p.partition): end for p, end in ends.items()})
        total, done = sum(ends[p] - begins[p] for p in places), 0
        while any(consumer.position(p) < ends[p] for p in places):
            with kafka_errors(settings, "reading"):
                batches = consumer.poll(timeout_ms=200)
            for place, records in batches.items():
                done += len(records)
                yield from (r for r in records if r.offset < ends[place])
            on_progress(done, total)
    finally:
        consumer.close()
