"""An archive read back. In: a folder of segments. Out: its sessions as Recordings, one at a time, or its records as they were.

Only what is asked for is read: a segment's index says where the records of each key stand. Memory holds one session.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from mcap.data_stream import ReadDataStream
from mcap.opcode import Opcode
from mcap.records import Chunk, ChunkIndex, MessageIndex

from kymo.streams.archive.format import (
    Segment,
    SegmentChannel,
    is_archive,
    read_extra,
    read_segment,
    segment_paths,
)
from kymo.streams.errors import ArchiveError, EventError, MessageError, SourceError
from kymo.streams.events import Event
from kymo.streams.messages import Record, read_object
from kymo.streams.readers.mcap_file import SortedMessages, chunk_sessions
from kymo.streams.readers.mcap_scan import unpack
from kymo.streams.recording import ReadOptions, Recording
from kymo.streams.topics import CHUNK_TOPICS

RECORD = struct.Struct("<BQ")  # opcode, length
MESSAGE = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time
_HEAD = RECORD.size + MESSAGE.size
_BEGIN = struct.Struct("<BQH")  # of a message: opcode, length, channel
_INDEX = struct.Struct("<HI")  # channel, bytes of its entries, 16 each
Choice = Callable[[SegmentChannel], bool]
Stored = tuple[SegmentChannel | None, int, int, int, bytes]  # sequence, log and publish time, value


class ArchiveReader:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not is_archive(folder):
            raise ArchiveError(
                f"{folder}: holds no segment (kymo-….mcap) of an archive; has `kymo archive` closed one?"
            )
        self.segments = [read_segment(path) for path in segment_paths(folder)]

    def records(self, choose: Choice | None = None) -> Iterator[Record]:
        """Records as Kafka had them, segment by segment, in the order in which they were stored."""
        for segment in self.segments:
            if channels := [c for c in segment.channels if choose is None or choose(c)]:
                yield from segment_records(segment, channels)

    def sessions(self) -> list[str]:
        return list(dict.fromkeys(name for segment in self.segments for name in segment.sessions))

    def recordings(self, options: ReadOptions | None = None, sessions: list[str] | None = None) -> Iterator[Recording]:
        """Sessions with all their streams, their current labels and what is known of them."""
        options = options or ReadOptions()
        about = self.about()
        for name in self.sessions():
            if sessions is not None and name not in sessions:
                continue
            content = SortedMessages(str(self.folder), as_arrived=True)
            content.labels, content.records = about.labels, about.records
            for record in self.records(lambda c, n=name: c.session == n and c.name in CHUNK_TOPICS):  # type: ignore[misc]
                if record.key is not None:
                    content.add_chunk(record.topic, record.value or b"")
            if content.chunks:
                yield from chunk_sessions(content, options, {}, str(self.folder), content.notes())

    def events(self, session: str) -> list[Event]:
        """A session's events, as far as they are whole."""
        events = []
        for record in self.records(lambda c: c.session == session and c.name == "events"):
            with contextlib.suppress(EventError):
                events.append(Event.from_json(record.value or b""))
        return events

    def about(self) -> SortedMessages:
        """Labels and metadata of all sessions; the newest of each counts."""
        content = SortedMessages(str(self.folder))
        for record in self.records(lambda c: c.name in ("labels", "sessions")):
            if record.value is None:
                content.records.pop((record.key or b"").decode(errors="replace"), None)
                continue
            try:
                content.add_record(record.topic, read_object(record.value))
            except (MessageError, SourceError):  # some other program's; the live readers pass over it, too
                continue
        return content


def segment_records(segment: Segment, channels: Collection[SegmentChannel] | None = None) -> Iterator[Record]:
    """Records of a segment, in the order in which they were stored."""
    wanted = {c.id: c for c in (segment.channels if channels is None else channels)}
    numbers = wanted.keys() | {segment.extras}

    def messages() -> Iterator[Stored]:
        with segment.path.open("rb") as raw:
            for index in segment.chunks:
                if numbers.isdisjoint(index.message_index_offsets):
                    continue
                content, places = _chunk(raw, index, segment.path, numbers if channels is not None else ())
                for at, end, (channel, sequence, log_ns, publish_ns) in messages_in(content, places):
                    if channel in numbers:
                        yield wanted.get(channel), sequence, log_ns, publish_ns, content[at + _HEAD : end]

    try:
        yield from restored(messages())
    except MessageError as error:
        raise ArchiveError(f"{segment.path}: {error}; `kymo archive recover` keeps what is whole") from None


def restored(messages: Iterable[Stored], on_odd: Callable[[MessageError], None] | None = None) -> Iterator[Record]:
    """Records as they were; a message of no channel is an extra, which stands before the message that it belongs to."""
    extras: dict[tuple[str, int, int], dict[str, Any]] = {}
    for channel, sequence, log_ns, publish_ns, value in messages:
        if channel is None:
            try:
                place, members = read_extra(value)
            except MessageError as error:
                if on_odd is None:
                    raise
                on_odd(error)
            else:
                extras[place] = members
            continue
        record = channel.record(sequence, log_ns, publish_ns, value)
        yield record._replace(**extras.pop(record[:3], {})) if extras else record


def _chunk(raw: IO[bytes], index: ChunkIndex, path: Path, numbers: Collection[int]) -> tuple[bytes, list[int] | None]:
    """Uncompressed records of an MCAP chunk, its checksum verified, and where in it the messages of some channels are."""
    try:
        raw.seek(index.chunk_start_offset + RECORD.size)
        content, places = unpack(Chunk.read(ReadDataStream(raw))), list[int]()
        for number in index.message_index_offsets.keys() & numbers:
            raw.seek(index.message_index_offsets[number])
            places += _places(raw, number, content)
    except Exception as error:  # a damaged length gives whatever error its parser has
        raise ArchiveError(
            f"{path}: the chunk at byte {index.chunk_start_offset} is damaged ({error}); `kymo archive recover` keeps "
            "what is whole"
        ) from None
    return content, sorted(places) if numbers else None


def _places(raw: IO[bytes], number: int, content: bytes) -> list[int]:
    """Where messages of a channel are in a chunk's content, as the index says at which a file stands. It has no checksum, so
    what does not fit the content is a ValueError."""
    opcode, length = RECORD.unpack(raw.read(RECORD.size))
    index = MessageIndex.read(ReadDataStream(raw))
    places = [at for _, at in index.records]
    fits = (opcode, length, index.channel_id) == (Opcode.MESSAGE_INDEX, _INDEX.size + 16 * len(places), number)
    for at in places:
        opcode, length, channel = _BEGIN.unpack_from(content, min(at, len(content) - _BEGIN.size))
        fits &= (opcode, channel) == (Opcode.MESSAGE, number) and at + RECORD.size + length <= len(content)
    if not fits or len({*places}) < len(places):
        raise ValueError(f"its index of channel {number} does not fit its messages")
    return places


def messages_in(
    content: bytes, places: Iterable[int] | None = None
) -> Iterator[tuple[int, int, tuple[int, int, int, int]]]:
    """Messages in a chunk's content, or those in some places of it: where each begins and ends, and its channel, sequence, log
    and publish time."""
    chosen = None if places is None else iter(places)
    at = 0 if chosen is None else next(chosen, len(content))
    while at < len(content):
        opcode, length = RECORD.unpack_from(content, at)
        end = at + RECORD.size + length
        if opcode == Opcode.MESSAGE:
            yield at, end, MESSAGE.unpack_from(content, at + RECORD.size)
        at = end if chosen is None else next(chosen, len(content))
