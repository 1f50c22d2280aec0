"""A session out of the topics. In: its name. Out: its records deleted as far as Kafka can; times in Unix ms.

Kafka deletes single records only on compacted topics. Elsewhere it can only delete all records of a partition before an offset, so
what stands behind another session's records goes when retention takes it. Whoever sends decides in which partition a session
stands, so all are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaProducer, TopicPartition

from streams.archive.erase import session_of
from streams.kafka.client import admin_client, client_arguments
from streams.kafka.promises import settings_of
from streams.kafka.read import Place, Record, read_topics
from streams.settings import Settings
from streams.topics import MIB, TABLE, Names

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Deleted:
    """What was done about one topic."""

    topic: str
    found: int = 0  # records of the session
    deleted: int = 0  # gone now (on compacted topics: superseded, and gone after the next compaction)
    left: int = 0  # that stay until retention takes them
    # when the newest of those is that old, Unix ms; 0 where none is left or retention never takes them
    until_ms: int = 0

    def line(self) -> str:
        """For a person."""
        return f"{self.topic}: {self.deleted} of {self.found} records deleted" + (
            f", {self.left} stay between those of other sessions until retention takes them"
            if self.until_ms
            else f", {self.left} stay between those of other sessions FOR EVER (retention.ms is -1)"
            if self.left
            else ""
        )


@dataclass(slots=True)
class Deletion:
    """What :func:`delete_session` did."""

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
        there = set(admin.list_topics())
        topics = [full for topic in TABLE if topic.name != "models" and (full := names.of(topic.name)) in there]
        about = admin.describe_topics(topics) if topics else []
        out.topic_ids = {row["name"]: str(row.get("topic_id") or "") for row in about}
        kept = _kept(names, settings_of(admin, topics))
        tallies: dict[Place, _Tally] = {}
        for r in read_topics(settings, topics, on_progress, out.ends):
            tallies.setdefault((r.topic, r.partition), _Tally(kept[r.topic])).take(r, session)
        out.ends = {place: end for place, end in out.ends.items() if end}
        rows: dict[str, Deleted] = {}
        for place, tally in tallies.items():
            if tally.own:
                _delete(settings, admin, place, tally, rows.setdefault(place[0], Deleted(place[0])))
        out.topics = [rows[full] for full in topics if full in rows]
    return out


@dataclass(frozen=True, slots=True)
class _Kept:
    """How a topic keeps its records: as it is set, not as the table has it."""

    compact: bool
    anew: bool
    """Whether the others' records are sent again: few, and of use for ever."""
    retention_ms: int


def _kept(names: Names, settings: Mapping[str, Mapping[str, str]]) -> dict[str, _Kept]:
    out = {}
    for topic in TABLE:
        full = names.of(topic.name)
        have = topic.config() | dict(settings.get(full, {}))
        # Where a topic is compacted and deleted, too, records before an offset can go.
        out[full] = _Kept(
            have["cleanup.policy"] == "compact",
            topic.retention_ms < 0 and not topic.compact,
            int(have["retention.ms"]),
        )
    return out


@dataclass(slots=True)
class _Tally:
    """What is known of a partition after one pass; only what must be sent again is held."""

    kept: _Kept
    own: int = 0
    leading: int = 0  # own records before the first of another session
    first_other: int | None = None
    behind: int = 0
    newest_ms: int = 0
    keys: set[bytes] = field(default_factory=set)
    others: list[Record] = field(default_factory=list)

    def take(self, r: Record, session: str) -> None:
        self.behind = r.offset + 1
        if session_of(r) == session.encode() and (r.value is not None or r.key is None):
            self.own += 1
            self.leading += self.first_other is None
            self.newest_ms = max(self.newest_ms, r.time_ms)
            if self.kept.compact and r.key is not None:
                self.keys.add(r.key)
            return
        if self.first_other is None:
            self.first_other = r.offset
        if self.kept.anew:
            self.others.append(r)


def _delete(settings: Settings, admin: Any, place: Place, tally: _Tally, row: Deleted) -> None:
    row.found += tally.own
    if tally.kept.compact:
        _send(settings, [Record(*place, 0, 0, key, None) for key in sorted(tally.keys)])
        row.deleted += tally.own
        return
    if tally.kept.anew:
        _send(settings, tally.others)
        until, deleted = tally.behind, tally.own
    else:
        until, deleted = tally.behind if tally.first_other is None else tally.first_other, tally.leading
    if deleted:
        admin.delete_records({TopicPartition(*place): until})
    row.deleted += deleted
    if deleted < tally.own:
        row.left += tally.own - deleted
        if tally.kept.retention_ms >= 0:
            row.until_ms = max(row.until_ms, tally.newest_ms + tally.kept.retention_ms)


def _send(settings: Settings, records: list[Record]) -> None:
    """Send records to their partitions; all are acknowledged on return."""
    if not records:
        return
    producer = KafkaProducer(
        **client_arguments(settings),
        acks="all",
        enable_idempotence=True,
        max_request_size=16 * MIB,
        metrics_enabled=False,
    )
    try:
        sent = [producer.send(r.topic, r.value, r.key, headers=list(r.headers), partition=r.partition) for r in records]
        for future in sent:
            future.get(60)
    finally:
        producer.close()
