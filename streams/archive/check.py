"""Whether an archive is whole, and what is kept where it is not. In: a folder of segments. Out: what is wrong, one line each; segments of
what can be read of damaged files, and what was lost in words.

Of every segment are checked: all checksums, the index against the messages, every offset of its ranges there once or its absence
recorded; and of all together: no number and no offset left out between two of them.
"""

from __future__ import annotations

import contextlib
import io
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mcap.opcode import Opcode
from mcap.records import DataEnd, Footer
from mcap.stream_reader import StreamReader
from mcap.writer import MCAP0_MAGIC

from kymo.streams.archive.format import (
    DAMAGED,
    EXTRAS_TOPIC,
    PARTIAL,
    REWOUND,
    SUFFIX,
    Absent,
    ArchivedRecord,
    Contents,
    Segment,
    SegmentChannel,
    Span,
    read_extra,
    read_segment,
    segment_number,
    segment_path,
    segment_paths,
    stated_members,
    with_extra,
)
from kymo.streams.archive.read import MESSAGE, RECORD, chunk_content, index_entries
from kymo.streams.archive.segment import SegmentWriter
from kymo.streams.errors import ArchiveError, MessageError, SourceError
from kymo.streams.readers.mcap_scan import Scan
from kymo.streams.topics import Place
from kymo.streams.words import many

DAMAGED_SUFFIX = ".damaged"
_FOOTER = 9 + 20 + 8  # the footer record and the magic at the file's end
_DATA_END = 9 + 4


def check_archive(folder: Path, on_segment: Callable[[int, int], None] = lambda _done, _of: None) -> list[str]:
    """What is wrong with an archive; empty if it is whole."""
    paths = segment_paths(folder)
    if not paths:
        raise ArchiveError(f"{folder}: holds no segment (kymo-….mcap) of an archive")
    wrong: list[str] = []
    before: Segment | None = None
    for done, path in enumerate(paths):
        on_segment(done, len(paths))
        try:
            segment = read_segment(path)
            wrong += [f"{path}: {text}" for text in (*_content(segment), *_order(before, segment))]
        except ArchiveError as error:
            wrong.append(str(error))
            continue  # the next one is compared with the last that could be read
        except Exception as error:  # a damaged length or text gives whatever error its parser has
            wrong.append(f"{path}: is damaged ({error!r}); `kymo archive recover` keeps what is whole")
            continue
        before = segment
    on_segment(len(paths), len(paths))
    return wrong


def _content(segment: Segment) -> Iterator[str]:
    """What is wrong within a segment."""
    offsets: dict[Place, list[int]] = defaultdict(list)
    channels, counts = {c.id: c for c in segment.channels}, Counter[int]()
    with segment.path.open("rb") as raw:
        yield from _checksums(raw, segment.size)
        for index in segment.chunks:
            content = chunk_content(raw, index, segment.path)
            entries: dict[int, list[tuple[int, int]]] = defaultdict(list)
            for at, channel, sequence, log_ns in _messages(content):
                entries[channel].append((log_ns, at))
                counts[channel] += 1
                if (stored := channels.get(channel)) is not None:
                    offsets[stored.topic, stored.partition].append(stored.full_offset(sequence))
            numbers = index.message_index_offsets
            if {number: index_entries(raw, index, number, segment.path) for number in numbers} != entries:
                yield f"the index of the chunk at byte {index.chunk_start_offset} does not fit its messages"
    for expected in segment.channels:
        if counts[expected.id] != expected.count:
            yield f"channel {expected.id} holds {counts[expected.id]} messages, its statistics say {expected.count}"
    yield from _offsets(segment.contents, offsets)


def _checksums(raw: IO[bytes], size: int) -> Iterator[str]:
    """Data section and summary against their checksums."""
    raw.seek(size - _FOOTER)
    tail = raw.read(_FOOTER)
    if tail[-len(MCAP0_MAGIC) :] != MCAP0_MAGIC:
        yield "its last bytes are not those of an MCAP file"
    footer = next(StreamReader(io.BytesIO(tail), skip_magic=True).records)
    if not isinstance(footer, Footer):
        yield "it does not end with a footer"
        return
    raw.seek(footer.summary_start)
    summary = raw.read(size - _FOOTER - footer.summary_start) + tail[: 9 + 16]
    if footer.summary_crc and zlib.crc32(summary) != footer.summary_crc:  # 0 means that there is none, in MCAP
        yield "the summary differs from its checksum"
    raw.seek(footer.summary_start - _DATA_END)
    end = next(StreamReader(io.BytesIO(raw.read(_DATA_END)), skip_magic=True).records)
    if not isinstance(end, DataEnd):
        yield "the data section has no end"
        return
    crc, unread = 0, footer.summary_start - _DATA_END
    raw.seek(0)
    while unread > 0 and (block := raw.read(min(unread, 2**20))):
        crc, unread = zlib.crc32(block, crc), unread - len(block)
    if end.data_section_crc and crc != end.data_section_crc:
        yield "the data differ from their checksum"


def _messages(content: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Position, channel, sequence and log time of the messages in a chunk's content."""
    at = 0
    while at < len(content):
        opcode, length = RECORD.unpack_from(content, at)
        if opcode == Opcode.MESSAGE:
            yield at, *MESSAGE.unpack_from(content, at + RECORD.size)[:3]
        at += RECORD.size + length


def _offsets(contents: Contents, offsets: dict[Place, list[int]]) -> Iterator[str]:
    """Every offset of a range must be there once, in order, or be recorded as absent."""
    for place, span in contents.spans.items():
        where = f"{place[0]}, partition {place[1]}"
        absent = [a for a in contents.absent if a.place == place and a.reason != REWOUND]
        runs = [(a.start, a.end) for a in absent] + [(offset, offset + 1) for offset in offsets.pop(place, [])]
        expected = span.first
        in_order = runs[len(absent) :]
        if in_order != sorted(in_order):
            yield f"{where}: messages are not in the order of their offsets"
        for start, end in sorted(runs):
            if start < expected:
                yield f"{where}: offset {start} is there twice, or before the range {span.first} to {span.next}"
            elif start > expected:
                yield f"{where}: {many(start - expected, 'record')} missing from offset {expected} on"
            expected = max(expected, end)
        if expected != span.next:
            yield f"{where}: the range ends at {span.next}, its records at {expected}"
    for place in offsets:
        yield f"{place[0]}, partition {place[1]}: has messages but no range of offsets"


def _order(before: Segment | None, segment: Segment) -> Iterator[str]:
    """What is wrong between a segment and the one before it."""
    if before is None:
        return
    if segment.number != before.number + 1:
        yield f"segments {before.number + 1} to {segment.number - 1} are missing"
    for place, earlier in before.contents.spans.items():
        where = f"{place[0]}, partition {place[1]}"
        span = segment.contents.spans.get(place)
        if span is None:
            yield f"{where}: has no range of offsets, the segment before has"
        elif span.topic_id == earlier.topic_id and not _follows(segment.contents, place, earlier, span):
            yield f"{where}: begins at offset {span.first}, the segment before ends at {earlier.next}"


def _follows(contents: Contents, place: Place, earlier: Span, span: Span) -> bool:
    rewound = any(a.place == place and a.reason == REWOUND for a in contents.absent)
    return span.first == earlier.next or (rewound and span.first < earlier.next)


class NothingWholeError(ArchiveError):
    """A file of which nothing can be kept."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """What :func:`recover` did with a file."""

    path: Path  # the new segment
    records: int  # that it holds
    notes: list[str]  # what was damaged

    @property
    def text(self) -> str:
        """One line."""
        return f"{self.path}: {many(self.records, 'record')} recovered; " + (
            "; ".join(self.notes) or "nothing was lost"
        )


def recover(folder: Path) -> list[Recovered]:
    """Recover every segment that is damaged, and one that was not closed.

    The damaged file stays beside its successor as ``….damaged``.
    """
    out = []
    for path in segment_paths(folder):
        try:
            read_segment(path)
            if not _chunks_damaged(path):
                continue
        except ArchiveError:
            pass
        damaged = path.with_name(path.name + DAMAGED_SUFFIX)
        path.replace(damaged)
        out.append(_recover_file(damaged, path))
    partials = sorted(folder.glob(f"kymo-*{SUFFIX}{PARTIAL}"))
    for partial in partials:
        if partial.with_suffix("").exists():  # of a rewrite that was killed: the segment is whole
            partial.unlink()
        else:
            out.append(_recover_file(_set_aside(partial), partial.with_suffix("")))
    damaged_files = sorted(folder.glob(f"kymo-*{SUFFIX}{DAMAGED_SUFFIX}"))  # of a recovery that was killed
    out += [_recover_file(path, path.with_suffix("")) for path in damaged_files if not path.with_suffix("").exists()]
    return out


def unclosed(folder: Path, number: int) -> list[Path]:
    """Segments that were not closed, by the names under which they were written."""
    partials = set(folder.glob(f"kymo-*{SUFFIX}{PARTIAL}"))
    target = segment_path(folder, number)
    if target.with_name(target.name + DAMAGED_SUFFIX).exists():
        partials.add(target.with_name(target.name + PARTIAL))
    return sorted(partials)


def recover_partial(partial: Path) -> str:
    """Make a segment of what is whole of one that was not closed, and take that one away; what became of it, in words."""
    damaged = _set_aside(partial)
    try:
        outcome = _recover_file(damaged, partial.with_suffix("")).text
    except NothingWholeError as error:
        outcome = str(error)
    damaged.unlink()
    return outcome


def _set_aside(partial: Path) -> Path:
    """Give an unclosed segment another name; if that is taken, a recovery was killed and the other one is the whole file."""
    damaged = partial.with_name(partial.with_suffix("").name + DAMAGED_SUFFIX)
    if damaged.exists():
        partial.unlink(missing_ok=True)
    else:
        partial.replace(damaged)
    return damaged


def _recover_file(path: Path, target: Path) -> Recovered:
    """Write what is whole of a file as a segment."""
    number = segment_number(target)
    assert number is not None
    with path.open("rb") as raw:
        scan = Scan(raw, str(path), limited=False)
        records = _records(scan)
        first = _first(records, scan)
        contents = _start(target, number, first[0] if first else None, scan)
        writer = SegmentWriter(target.parent, number, contents)
        if first is not None:
            _add(writer, *first)
        for record, topic_id in records:
            _add(writer, record, topic_id)
    _finish(contents, scan, path)
    writer.close()
    return Recovered(target, writer.count, scan.notes)


def _first(records: Iterator[tuple[ArchivedRecord, str]], scan: Scan) -> tuple[ArchivedRecord, str] | None:
    try:
        return next(records, None)
    except SourceError as error:
        if "offsets" in stated_members(scan.metadata):  # which offsets are gone is known at least
            return None
        raise NothingWholeError(f"{error}; nothing of it can be kept, delete it") from None


def _add(writer: SegmentWriter, record: ArchivedRecord, topic_id: str) -> None:
    place = (record.topic, record.partition)
    span = writer.contents.spans.get(place)
    if span is None or (topic_id and span.topic_id != topic_id):
        writer.contents.spans[place] = Span(topic_id, record.offset, record.offset)
    writer.add(record)


def _start(target: Path, number: int, first: ArchivedRecord | None, scan: Scan) -> Contents:
    """Spans at the segment's start: those that the segment before it ends with."""
    before = segment_path(target.parent, number - 1)
    if before.exists():
        return read_segment(before).contents.following()
    prefix = stated_members(scan.metadata).get("prefix", "")
    return Contents(prefix or (first.topic.rpartition(".")[0] if first else ""))


def _finish(contents: Contents, scan: Scan, path: Path) -> None:
    """Where the file's own list of offsets is whole, its gaps and ends hold."""
    if not (members := stated_members(scan.metadata)):
        return
    stated = Contents.from_metadata(members, path)
    reasons = {absent[:4]: absent for absent in stated.absent}
    contents.absent = [reasons.get(absent[:4], absent) for absent in contents.absent]
    contents.cluster = contents.cluster or stated.cluster
    for place, span in stated.spans.items():
        recovered = contents.spans.setdefault(place, Span(span.topic_id, span.first, span.first))
        recovered.topic_id = span.topic_id
        if recovered.next < span.next:
            contents.absent.append(Absent(*place, recovered.next, span.next, DAMAGED))
            recovered.next = span.next


def _records(scan: Scan) -> Iterator[tuple[ArchivedRecord, str]]:
    """Records as they were, in the file's order, with their topic's id."""
    channels: dict[int, SegmentChannel | None] = {}
    extras: dict[tuple[str, int, int], dict[str, Any]] = {}
    for _, channel, message in scan.messages():
        if channel.topic == EXTRAS_TOPIC:
            with contextlib.suppress(MessageError):
                place, extra = read_extra(message.data)
                extras[place] = extra
            continue
        if channel.id not in channels:
            channels[channel.id] = SegmentChannel.of(channel, 0)
        stored = channels[channel.id]
        if stored is None:
            continue
        record = stored.record(message.sequence, message.log_time, message.publish_time, bytes(message.data))
        if extras and (saved := extras.pop(record[:3], None)):
            record = with_extra(record, saved)
        yield record, stored.topic_id


def _chunks_damaged(path: Path) -> bool:
    with path.open("rb") as raw:
        scan = Scan(raw, str(path), limited=False)
        # No message at all: of a segment that records a gap, or the notes say why.
        with contextlib.suppress(SourceError):
            for _ in scan.messages():
                pass
    return bool(scan.notes)
