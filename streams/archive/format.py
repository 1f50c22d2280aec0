"""What an archive is made of. In: segments' files. Out: which records they hold, by topic, partition and offset; times in Unix ns; records
and what an MCAP message has no place for, as JSON, and back.

A segment is an MCAP file ``kymo-00000017.mcap`` that any MCAP reader opens. There is one channel for each topic, partition and key, named
``TOPIC/KEY``, so that viewers tell sessions apart; its metadata say ``topic``, ``partition``, ``topic_id``, ``key`` (or ``key_base64``;
neither where there is none) and ``offset``, the first one. A message is a Kafka record: its bytes, ``publish_time`` the record time,
``log_time`` the same or, where one that stands before it is later, that one's; ``sequence`` the offset's lower 32 bits. Version 1 named
channels by the topic alone, had the record time in ``log_time``, and no number behind its metadata record's name. What fits nowhere there
(headers, a deleted key) stands in a JSON message on :data:`EXTRAS_TOPIC`. The metadata record :data:`METADATA_NAME`, with the segment's
number (tools refuse to merge files that have equal names there), holds the range of offsets of every topic-partition, and those within it
that are not there.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kymo.streams.errors import ArchiveError, MessageError
from kymo.streams.messages import MAX_FILE_BYTES, Record, read_json, read_object
from kymo.streams.schema import SchemaError, read
from kymo.streams.settings import Settings
from kymo.streams.topics import CHUNK_TOPICS, MIB, TABLE, Place

if TYPE_CHECKING:
    from mcap.records import Channel, ChunkIndex

METADATA_NAME = "kymo.archive"
EXTRAS_TOPIC = "archive.record"
VERSION = "2"
_READABLE = ("1", VERSION)
SUFFIX = ".mcap"
PARTIAL = ".partial"
_OWN = re.compile(rf"{re.escape(METADATA_NAME)}(\.\d+)?")
_NAME = re.compile(r"kymo-(\d{8,})\.mcap")
NS_PER_MS = 10**6
#: Why offsets within a range are not there.
RETENTION, HOLE, REWOUND, ERASED, DAMAGED = "retention", "hole", "rewound", "erased", "damaged"


#: What is worth keeping: snapshots are of no use without their workers, rejected bytes are kept by Kafka for a day.
TOPICS = tuple(topic.name for topic in TABLE if topic.name not in ("state", "rejected"))


@dataclass(frozen=True, slots=True)
class ArchivePlan:
    segment_bytes: int = 256 * MIB  # a segment is closed when its file is this large
    segment_s: float = 300.0  # … or when it has been open this long
    topics: tuple[str, ...] = TOPICS  # names in the table, without the prefix


def default_folder(settings: Settings) -> Path:
    """Where the archive of the settings' prefix stands: ``archive/PREFIX`` under KYMO_HOME."""
    return settings.home / "archive" / settings.prefix


class Absent(NamedTuple):
    """Offsets ``[start, end)`` of a range that the segment does not hold."""

    topic: str
    partition: int
    start: int
    end: int
    reason: str


@dataclass(slots=True)
class Span:
    """Which records of a topic-partition a segment covers."""

    # Kafka's own id of the topic, which a topic that is deleted and made again does not keep; empty where unknown
    topic_id: str
    first: int  # offsets ``[first, next)``
    next: int


@dataclass(slots=True)
class Contents:
    prefix: str  # of the topics, and the Kafka cluster's id
    cluster: str = ""
    # by topic and partition; every partition that the archive knows, those without a record in this segment too
    spans: dict[Place, Span] = field(default_factory=dict)
    absent: list[Absent] = field(default_factory=list)  # offsets within the spans that are not there, with the reason
    created_ns: int = 0  # when the segment was begun, Unix ns

    def leave_out(self, topic: str, partition: int, last: int, reason: str) -> None:
        """Move a span on behind `last`; what it did not hold up to there is absent for this reason."""
        span = self.spans[topic, partition]
        before = self.absent[-1] if self.absent else None
        if before is not None and before[:2] == (topic, partition) and before[3:] == (span.next, reason):
            self.absent[-1] = before._replace(end=last + 1)
        else:
            self.absent.append(Absent(topic, partition, span.next, last + 1, reason))
        span.next = last + 1

    def following(self) -> Contents:
        """What the segment behind this one begins with."""
        return Contents(self.prefix, self.cluster, {p: Span(s.topic_id, s.next, s.next) for p, s in self.spans.items()})

    def to_metadata(self) -> dict[str, str]:
        spans = [[topic, part, s.topic_id, s.first, s.next] for (topic, part), s in sorted(self.spans.items())]
        return {
            "version": VERSION,
            "prefix": self.prefix,
            "cluster": self.cluster,
            "created_ns": str(self.created_ns),
            "offsets": json.dumps(spans, separators=(",", ":")),
            "absent": json.dumps(self.absent, separators=(",", ":")),
        }

    @classmethod
    def from_metadata(cls, members: Mapping[str, str], path: Path | str) -> Contents:
        if members.get("version") not in _READABLE:
            raise ArchiveError(f"{path}: archive version {members.get('version')!r}, expected {VERSION!r}; update kymo")
        try:
            rows, absences = (read_json(members[name], MAX_FILE_BYTES) for name in ("offsets", "absent"))
            spans = {(str(topic), int(part)): Span(str(i), int(a), int(b)) for topic, part, i, a, b in rows}
            absent = [Absent(str(t), int(p), int(a), int(b), str(why)) for t, p, a, b, why in absences]
            return cls(members["prefix"], members["cluster"], spans, absent, int(members["created_ns"]))
        except (MessageError, KeyError, ValueError, TypeError) as error:
            raise ArchiveError(f"{path}: its offsets cannot be read ({error!r}); `kymo archive recover`") from None


@dataclass(frozen=True, slots=True)
class SegmentChannel:
    """One channel of a segment: the records of one key in one topic-partition."""

    id: int
    topic: str
    partition: int
    key: bytes | None
    offset: int  # of its first record
    count: int
    topic_id: str = ""
    published: bool = True  # whether ``publish_time`` is the record time; in version 1 it was ``log_time``

    @classmethod
    def of(cls, channel: Channel, count: int) -> SegmentChannel | None:
        """Of an MCAP channel; None if it is none of ours."""
        members = channel.metadata
        try:
            key = base64.b64decode(members["key_base64"]) if "key_base64" in members else None
            key = members["key"].encode() if "key" in members else key
            offset, topic_id = int(members["offset"]), members.get("topic_id", "")
            topic, published = members.get("topic", channel.topic), "topic" in members
            return cls(channel.id, topic, int(members["partition"]), key, offset, count, topic_id, published)
        except (KeyError, ValueError):
            return None

    def full_offset(self, sequence: int) -> int:
        """The offset of a message from its lower 32 bits."""
        return self.offset + ((sequence - self.offset) & 0xFFFFFFFF)

    def record(self, sequence: int, log_ns: int, publish_ns: int, value: bytes) -> Record:
        """A message as the record it was, but for what stands in its extra."""
        offset, at_ms = self.full_offset(sequence), (publish_ns if self.published else log_ns) // NS_PER_MS
        return Record(self.topic, self.partition, offset, at_ms, 0, self.key, value)

    @property
    def name(self) -> str:
        """The topic's, without the prefix."""
        return self.topic.rpartition(".")[2]

    @property
    def session(self) -> str:
        """The key as text; empty where there is none."""
        return (self.key or b"").decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Segment:
    """One complete file of an archive, without its messages."""

    path: Path
    number: int  # its place in the archive
    size: int
    start_ns: int  # first and last log time, Unix ns; 0 where it holds no message
    end_ns: int
    count: int  # messages, extras not counted
    contents: Contents
    channels: list[SegmentChannel]  # whose messages it holds
    chunks: list[ChunkIndex]  # where they stand
    extras: int = 0  # channel of the extras; 0 for none

    @property
    def sessions(self) -> list[str]:
        """Those with chunks, in the order in which they first appear; chunks without a key are nobody's."""
        of_chunks = (c for c in self.channels if c.name in CHUNK_TOPICS and c.count and c.key is not None)
        return list(dict.fromkeys(c.session for c in of_chunks))


def segment_path(folder: Path, number: int) -> Path:
    """Name of a segment's file.

    >>> segment_path(Path("a"), 17).name
    'kymo-00000017.mcap'
    """
    return folder / f"kymo-{number:08d}{SUFFIX}"


def segment_number(path: Path) -> int | None:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def stated_members(metadata: Mapping[str, str]) -> dict[str, str]:
    """What a file states of its contents, of metadata by ``record.member``."""
    parts = ((*name.rpartition(".")[::2], text) for name, text in metadata.items())
    return {member: text for record, member, text in parts if _OWN.fullmatch(record)}


def segment_paths(folder: Path) -> list[Path]:
    """Complete segments of an archive, oldest first."""
    numbered = [(number, path) for path in folder.glob("kymo-*.mcap") if (number := segment_number(path)) is not None]
    return [path for _, path in sorted(numbered)]


def is_archive(folder: Path) -> bool:
    return folder.is_dir() and bool(segment_paths(folder))


def read_segment(path: Path) -> Segment:
    """What a segment holds, from its summary alone."""
    from mcap.reader import make_reader

    try:
        with path.open("rb") as raw:
            reader = make_reader(raw)
            summary = reader.get_summary()
            records = [record for record in reader.iter_metadata() if _OWN.fullmatch(record.name)] if summary else []
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # a damaged length or text gives whatever error its parser has
        raise _damaged(path, repr(error)) from None
    if summary is None or summary.statistics is None:
        raise _damaged(path, "it has no summary, as if it was not closed")
    if not records:
        raise ArchiveError(f"{path}: is no segment of an archive (no metadata record {METADATA_NAME})")
    stats = summary.statistics
    counts = stats.channel_message_counts
    channels = [s for c in summary.channels.values() if (s := SegmentChannel.of(c, counts.get(c.id, 0))) is not None]
    extras = next((c.id for c in summary.channels.values() if c.topic == EXTRAS_TOPIC), 0)
    return Segment(
        path,
        segment_number(path) or 0,
        path.stat().st_size,
        stats.message_start_time,
        stats.message_end_time,
        stats.message_count - counts.get(extras, 0),
        Contents.from_metadata(records[-1].metadata, path),
        channels,
        sorted(summary.chunk_indexes, key=lambda chunk: chunk.chunk_start_offset),
        extras,
    )


def _damaged(path: Path, damage: str) -> ArchiveError:
    return ArchiveError(f"{path}: the segment is damaged ({damage}); `kymo archive recover` keeps what is whole")


@dataclass(frozen=True, slots=True)
class Extra:
    """What of a record an MCAP message has no place for, as JSON."""

    topic: str
    partition: int
    offset: int
    headers: list[list[str | None]] = field(default_factory=list)  # name and value in base64
    deleted: bool = False
    timestamp: int | None = None
    timestamp_type: int = 0


def extra_of(record: Any) -> dict[str, Any]:
    texts = [(name, value if value is None else base64.b64encode(value).decode()) for name, value in record.headers]
    members = {"headers": texts, "deleted": record.value is None, "timestamp": min(record.timestamp, 0)}
    members["timestamp_type"] = record.timestamp_type
    place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
    return place | {name: member for name, member in members.items() if member}


def read_extra(raw: bytes) -> tuple[tuple[str, int, int], dict[str, Any]]:
    """Of which record, by topic, partition and offset, an extra is, and which members of that it says."""
    try:
        extra = read(Extra, read_object(raw), strict=False)
        headers = tuple((str(name), None if text is None else base64.b64decode(text)) for name, text in extra.headers)
    except (SchemaError, ValueError) as error:
        raise MessageError(f"no extra of a record: {error}") from None
    members: dict[str, Any] = {"headers": headers, "timestamp_type": extra.timestamp_type}
    members |= {"value": None} if extra.deleted else {}
    members |= {} if extra.timestamp is None else {"timestamp": extra.timestamp}
    return (extra.topic, extra.partition, extra.offset), members
