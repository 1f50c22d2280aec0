"""Sessions in the topics. In: what was sent. Out: which sessions there are; end marks of one; one deleted as far as Kafka can; times in
Unix ns, where not said otherwise.

A session is known by its record on ``kymo.sessions``, which a writer may leave out, and by its chunks. They stand in whatever
partitions whoever sends them chose, so all are looked at. Kafka deletes single records only on compacted topics. Elsewhere it can only
delete all records of a partition before an offset, so what stands behind another session's records goes when retention takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kafka import TopicPartition

from kymo.streams.chunk import Chunk, Header
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import ChunkError, SourceError
from kymo.streams.kafka.admin import described, ends_of, ids_of, places_of, settings_of
from kymo.streams.kafka.client import admin_client
from kymo.streams.kafka.publish import Publisher
from kymo.streams.kafka.read import Progress, read_messages, read_records
from kymo.streams.messages import Record, session_of
from kymo.streams.sessions import plain_name, read_session
from kymo.streams.settings import Settings
from kymo.streams.topics import CHUNK_TOPICS, TABLE, Names, Place, Topic, topic_of
from kymo.streams.words import utc


def announced(settings: Settings, on_odd: Callable[[str], None] = lambda text: None) -> dict[str, dict[str, Any]]:
    """Records of ``kymo.sessions`` by session, in the order in which they were last sent; `on_odd` is told, in words, of one
    that is none, which is passed over."""

    def decode(record: Record) -> tuple[str, dict[str, Any] | None]:
        name = plain_name((record.key or b"").decode(errors="replace"))
        return name, None if record.value is None else read_session(record.value)

    sessions: dict[str, dict[str, Any]] = {}
    for _, (name, value) in read_messages(settings, "sessions", decode, on_odd):
        sessions.pop(name, None)
        if value is not None:
            sessions[name] = value
    return sessions


def seen(settings: Settings, on_progress: Progress = lambda _done, _of: None) -> dict[str, dict[str, Any]]:
    """What raw chunks tell of their sessions, in members of a record of ``kymo.sessions``; reads all of them."""
    sessions: dict[str, dict[str, Any]] = {}
    open_streams: dict[str, set[str]] = {}
    for _, chunk in raw_chunks(settings, None, on_progress):
        row = sessions.setdefault(chunk.session, {"start_ns": chunk.start_ns, "end_ns": chunk.start_ns, "streams": []})
        if {"stream": chunk.stream} not in row["streams"]:
            row["streams"].append({"stream": chunk.stream})
            open_streams.setdefault(chunk.session, set()).add(chunk.stream)
        row["start_ns"] = min(row["start_ns"], chunk.start_ns)
        row["end_ns"] = max(row["end_ns"], chunk.header.edge_ns(chunk.end_index, chunk.times_ns, -1))
        if chunk.end:
            open_streams[chunk.session].discard(chunk.stream)
    for session, row in sessions.items():
        row["replayed"] = {"complete": not open_streams[session]}
    return sessions


def raw_chunks(
    settings: Settings, session: str | None, on_progress: Progress = lambda _done, _of: None
) -> Iterator[tuple[Record, Chunk]]:
    """Raw chunks with their records, of one session or of all, whichever partition they stand in; what is none is left out."""
    names, codec = Names(settings.prefix), ChunkCodec()
    for r in read_records(settings, [names.of(name) for name in CHUNK_TOPICS], on_progress=on_progress):
        if session is not None and r.key not in (None, session.encode()):
            continue
        try:
            chunk = codec.decode(r.value or b"")
        except ChunkError:
            continue
        if not chunk.header.chain and r.key in (None, chunk.session.encode()) and session in (None, chunk.session):
            yield r, chunk


def end_session(settings: Settings, session: str, on_progress: Progress = lambda _done, _of: None) -> list[str]:
    """Send the end mark of every stream of a session that has none yet, to the partition where the stream is."""
    names, codec = Names(settings.prefix), ChunkCodec()
    newest: dict[str, Header] = {}
    ends: dict[Header, tuple[int, int]] = {}
    ended: set[Header] = set()
    for r, chunk in raw_chunks(settings, session, on_progress):
        if r.key is None:  # no worker takes it
            continue
        newest[chunk.stream] = chunk.header
        ends[chunk.header] = max((chunk.end_index, r.partition), ends.get(chunk.header, (0, 0)))
        if chunk.end:
            ended.add(chunk.header)
    if not newest:
        raise SourceError(
            f"no stream of a session {session} in {names.prefix}.*; `kymo sessions list` shows those there are"
        )
    unended = {stream: header for stream, header in newest.items() if header not in ended}
    with Publisher(settings, names) as publisher:
        for stream, header in unended.items():
            at, partition = ends[header]
            publisher.send(topic_of(stream), session, codec.encode(_end_mark(header, at)), partition=partition)
        publisher.flush()
    return sorted(unended)


def _end_mark(header: Header, at: int) -> Chunk:
    import numpy as np

    fmt = header.format
    times = None if fmt.rate else np.empty(0, np.int64)
    return Chunk(header, at, np.empty((0, *fmt.shape), fmt.array_dtype), times, True)


@dataclass(slots=True)
class Deleted:
    topic: str
    found: int = 0  # records of the session
    deleted: int = 0  # gone now (on compacted topics: superseded, and gone after the next compaction)
    left: int = 0  # that stay until retention takes them
    # when the newest of those is that old, Unix ms; 0 where none is left or retention never takes them
    until_ms: int = 0

    def line(self) -> str:
        stay = f", {self.left} stay between those of other sessions" if self.left else ""
        if self.until_ms:
            stay += f" until retention takes them ({utc(self.until_ms * 10**6)} at the earliest)"
        elif self.left:
            stay += " FOR EVER (retention.ms is -1)"
        return f"{self.topic}: {self.deleted} of {self.found} records deleted{stay}"


@dataclass(slots=True)
class Deletion:
    topics: list[Deleted] = field(default_factory=list)  # those that held records of the session
    # ends of the partitions that may hold records of the session, as of the start
    ends: dict[Place, int] = field(default_factory=dict)
    topic_ids: dict[str, str] = field(default_factory=dict)  # Kafka's ids of their topics, by name


def delete_session(settings: Settings, session: str, on_progress: Progress = lambda _done, _of: None) -> Deletion:
    """Delete a session's records from all partitions of all topics, as far as Kafka can.

    Compacted topics get a tombstone for each key. Of the others the records before the first one of another session are deleted.
    ``kymo.labels``, which is kept for ever, is written anew: the other sessions' labels of the partition are sent again, then
    all before them is deleted.
    """
    names, out = Names(settings.prefix), Deletion()
    with admin_client(settings, f"deleting session {session}") as admin:
        table = {names.of(topic.name): topic for topic in TABLE if topic.name != "models"}
        rows = described(admin, table)
        out.topic_ids = ids_of(rows)
        topics = {full: topic for full, topic in table.items() if full in out.topic_ids}
        values, tallies = settings_of(admin, list(topics)), dict[Place, _Tally]()
        out.ends = {place: ends.end for place, ends in ends_of(admin, places_of(rows)).items() if ends.end}
        for r in read_records(settings, topics, on_progress=on_progress):
            tally = tallies.setdefault((r.topic, r.partition), _Tally.under(topics[r.topic], values.get(r.topic, {})))
            tally.take(r, session)
        out.ends |= {place: max(tally.behind, out.ends.get(place, 0)) for place, tally in tallies.items()}
        deleted: dict[str, Deleted] = {}
        for place, tally in tallies.items():
            if tally.records:
                _delete(settings, admin, place, tally, deleted.setdefault(place[0], Deleted(place[0])))
        out.topics = [deleted[full] for full in topics if full in deleted]
    return out


@dataclass(slots=True)
class _Tally:
    """What is known of a partition after one pass; only what must be sent again is held."""

    compact: bool
    anew: bool  # whether the others' records are sent again: few, and of use for ever
    retention_ms: int
    records: int = 0  # of the session
    leading: int = 0  # those before the first of another session
    first_foreign: int | None = None
    behind: int = 0
    newest_ms: int = 0
    keys: set[bytes] = field(default_factory=set)
    foreign: list[Record] = field(default_factory=list)

    @classmethod
    def under(cls, topic: Topic, values: Mapping[str, str]) -> _Tally:
        """Begin with how a topic keeps its records: as it is set, not as the table has it."""
        values = topic.config() | dict(values)
        # Where a topic is compacted and deleted, too, records before an offset can go.
        compact, anew = values["cleanup.policy"] == "compact", topic.retention_ms < 0 and not topic.compact
        return cls(compact, anew, int(values["retention.ms"]))

    def take(self, r: Record, session: str) -> None:
        self.behind = r.offset + 1
        if session_of(r) == session.encode() and (r.value is not None or r.key is None):
            self.records += 1
            self.leading += self.first_foreign is None
            self.newest_ms = max(self.newest_ms, r.timestamp)
            if self.compact and r.key is not None:
                self.keys.add(r.key)
            return
        if self.first_foreign is None:
            self.first_foreign = r.offset
        if self.anew:
            self.foreign.append(r)


def _delete(settings: Settings, admin: Any, place: Place, tally: _Tally, row: Deleted) -> None:
    row.found += tally.records
    if tally.compact:
        _send(settings, [Record(*place, 0, 0, 0, key, None) for key in sorted(tally.keys)])
        row.deleted += tally.records
        return
    if tally.anew:
        _send(settings, tally.foreign)
        until, deleted = tally.behind, tally.records
    else:
        until, deleted = tally.behind if tally.first_foreign is None else tally.first_foreign, tally.leading
    if deleted:
        admin.delete_records({TopicPartition(*place): until})
    row.deleted += deleted
    if deleted < tally.records:
        row.left += tally.records - deleted
        if tally.retention_ms >= 0:
            row.until_ms = max(row.until_ms, tally.newest_ms + tally.retention_ms)


def _send(settings: Settings, records: list[Record]) -> None:
    """Send records to their partitions; all are acknowledged on return."""
    if records:
        with Publisher(settings, Names(settings.prefix)) as publisher:
            for record in records:
                publisher.send_again(record)
            publisher.flush()
