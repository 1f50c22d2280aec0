"""An archive read back. In: a folder of segments. Out: its sessions as Recordings, one at a time, or its records as they were.

Only what is asked for is read: a segment's index says where the records of each key stand. Memory holds one session.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from mcap.data_stream import ReadDataStream
from mcap.opcode import Opcode
from mcap.records import Chunk, ChunkIndex
from numpy.typing import NDArray

from kymo.streams.archive.format import (
    ArchivedRecord,
    Segment,
    SegmentChannel,
    is_archive,
    read_extra,
    read_segment,
    segment_paths,
    with_extra,
)
from kymo.streams.errors import ArchiveError, EventError, MessageError, SourceError
from kymo.streams.events import Event
from kymo.streams.messages import read_object
from kymo.streams.readers.mcap_file import SortedMessages, chunk_sessions
from kymo.streams.readers.mcap_scan import unpack
from kymo.streams.recording import ReadOptions, Recording
from kymo.streams.topics import CHUNK_TOPICS

RECORD = struct.Struct("<BQ")  # opcode, length
MESSAGE = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time
_HEAD = RECORD.size + MESSAGE.size
Choice = Callable[[Segment, SegmentChannel], bool]


class ArchiveReader:
    """The complete segments of an archive."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not is_archive(folder):
            raise ArchiveError(
                f"{folder}: holds no segment (kymo-….mcap) of an archive; has `kymo archive` closed one?"
            )
        self.segments = [read_segment(path) for path in segment_paths(folder)]

    def records(self, choose: Choice | None = None) -> Iterator[ArchivedRecord]:
        """Records as Kafka had them, segment by segment, in the order in which they were stored."""
        for segment in self.segments:
            channels = {c.id: c for c in segment.channels if choose is None or choose(segment, c)}
            if channels:
                yield from segment_records(segment, channels)

    def sessions(self) -> list[str]:
        """Sessions with chunks, in the order in which they first appear; chunks without a key are nobody's."""
        names: dict[str, None] = {}
        for segment in self.segments:
            for channel in segment.channels:
                if segment.name_of(channel.topic) in CHUNK_TOPICS and channel.count and channel.key is not None:
                    names.setdefault(channel.session)
        return list(names)

    def recordings(self, options: ReadOptions | None = None, sessions: list[str] | None = None) -> Iterator[Recording]:
        """Sessions with all their streams, their current labels and what is known of them."""
        options = options or ReadOptions()
        about = self.about()
        for name in self.sessions():
            if sessions is not None and name not in sessions:
                continue
            content = SortedMessages(str(self.folder), as_arrived=True)
            content.labels, content.records = about.labels, about.records
            for record in self.records(lambda s, c, n=name: c.session == n and s.name_of(c.topic) in CHUNK_TOPICS):  # type: ignore[misc]
                if record.key is not None:
                    content.add_chunk(record.topic, record.value or b"")
            if content.chunks:
                yield from chunk_sessions(content, options, {}, str(self.folder), content.notes())

    def events(self, session: str) -> list[Event]:
        """A session's events, as far as they are whole."""
        events = []
        for record in self.records(lambda s, c: c.session == session and s.name_of(c.topic) == "events"):
            with contextlib.suppress(EventError):
                events.append(Event.from_json(record.value or b""))
        return events

    def about(self) -> SortedMessages:
        """Labels and metadata of all sessions; the newest of each counts."""
        content = SortedMessages(str(self.folder))
        for record in self.records(lambda s, c: s.name_of(c.topic) in ("labels", "sessions")):
            if record.value is None:
                content.records.pop((record.key or b"").decode(errors="replace"), None)
                continue
            try:
                content.add_record(record.topic, read_object(record.value))
            except (MessageError, SourceError):  # some other program's; the live readers pass over it, too
                continue
        return content


def read_archive(folder: Path, options: ReadOptions) -> Iterator[Recording]:
    """Recordings of an archive, for :func:`kymo.streams.readers.read`."""
    yield from ArchiveReader(folder).recordings(options)


def segment_records(segment: Segment, channels: dict[int, SegmentChannel] | None = None) -> Iterator[ArchivedRecord]:
    """Records of a segment, in the order in which they were stored."""
    channels = {c.id: c for c in segment.channels} if channels is None else channels
    with segment.path.open("rb") as raw:
        extras = _extras(raw, segment) if segment.extras else {}
        for index in segment.chunks:
            ids = [number for number in channels if number in index.message_index_offsets]
            if not ids:
                continue
            content = chunk_content(raw, index, segment.path)
            for at in _positions(raw, index, ids, segment.path):
                channel_id, sequence, log_ns, publish_ns = MESSAGE.unpack_from(content, at + RECORD.size)
                end = at + RECORD.size + RECORD.unpack_from(content, at)[1]
                record = channels[channel_id].record(sequence, log_ns, publish_ns, content[at + _HEAD : end])
                extra = extras.get(record[:3]) if extras else None
                yield with_extra(record, extra) if extra else record


def chunk_content(raw: IO[bytes], index: ChunkIndex, path: Path) -> bytes:
    """Uncompressed records of an MCAP chunk, its checksum verified."""
    try:
        raw.seek(index.chunk_start_offset + RECORD.size)
        chunk = Chunk.read(ReadDataStream(raw, calculate_crc=False))
        return unpack(chunk)
    except Exception as error:  # a damaged length gives whatever error its parser has
        raise ArchiveError(
            f"{path}: the chunk at byte {index.chunk_start_offset} is damaged ({error}); `kymo archive recover` keeps "
            "what is whole"
        ) from None


def _index(raw: IO[bytes], index: ChunkIndex, channel: int, path: Path) -> NDArray[np.uint64]:
    """An MCAP message index: log time and position of a channel's messages in a chunk's content, ``(n, 2)``."""
    at = index.message_index_offsets[channel]
    raw.seek(at)
    head = raw.read(RECORD.size)
    opcode, length = RECORD.unpack(head) if len(head) == RECORD.size else (0, 0)
    body = raw.read(length) if opcode == Opcode.MESSAGE_INDEX and length < index.message_index_length else b""
    if len(body) < 6 or struct.unpack_from("<H", body)[0] != channel or (length - 6) % 16:
        raise ArchiveError(f"{path}: the index at byte {at} is damaged; `kymo archive recover` makes it again")
    return np.frombuffer(body, "<u8", (length - 6) // 8, 6).reshape(-1, 2)


def index_entries(raw: IO[bytes], index: ChunkIndex, channel: int, path: Path) -> list[tuple[int, int]]:
    """Log time, Unix ns, and position of a channel's messages in a chunk's content, as its index has them."""
    return [(time, at) for time, at in _index(raw, index, channel, path).tolist()]


def _positions(raw: IO[bytes], index: ChunkIndex, ids: list[int], path: Path) -> list[int]:
    """Where messages of some channels stand in a chunk's content, in the order in which they were stored."""
    positions = np.concatenate([_index(raw, index, number, path)[:, 1] for number in ids])
    return [int(at) for at in np.sort(positions)]


def _extras(raw: IO[bytes], segment: Segment) -> dict[tuple[str, int, int], dict[str, Any]]:
    out = {}
    for index in segment.chunks:
        if segment.extras not in index.message_index_offsets:
            continue
        content = chunk_content(raw, index, segment.path)
        for at in _positions(raw, index, [segment.extras], segment.path):
            end = at + RECORD.size + RECORD.unpack_from(content, at)[1]
            try:
                place, extra = read_extra(content[at + _HEAD : end])
            except MessageError as error:
                raise ArchiveError(f"{segment.path}: {error}; `kymo archive recover` keeps what is whole") from None
            out[place] = extra
    return out
