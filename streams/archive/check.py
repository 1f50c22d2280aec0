"""Whether an archive is whole. In: a folder of segments. Out: what is wrong, one line each; nothing is changed.

Of every segment: all checksums, the index against the messages, every offset of its ranges there once or its absence recorded;
and of all together: no number and no offset left out between two of them.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from mcap.records import DataEnd, Footer
from mcap.stream_reader import StreamReader
from mcap.writer import MCAP0_MAGIC

from streams.archive.format import REWOUND, Contents, Place, Segment, Span, read_segment, segment_paths
from streams.archive.read import chunk_content, index_entries
from streams.errors import ArchiveError
from streams.readers.words import many

_FOOTER = 9 + 20 + 8  # the footer record and the magic at the file's end
_DATA_END = 9 + 4
_RECORD = struct.Struct("<BQ")
_MESSAGE = struct.Struct("<HIQ")


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
            found = [f"{path}: {text}" for text in (*_content(segment), *_order(before, segment))]
        except ArchiveError as error:
            wrong.append(str(error))
            continue  # the next one is compared with the last that could be read
        except Exception as error:  # a damaged length or text gives whatever error its parser has
            wrong.append(f"{path}: is damaged ({error!r}); `kymo archive recover` keeps what is whole")
            continue
        wrong += found
        before = segment
    on_segment(len(paths), len(paths))
    return wrong


def _content(segment: Segment) -> Iterator[str]:
    """What is wrong within a segment."""
    there: dict[Place, list[int]] = defaultdict(list)
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
                    there[stored.topic, stored.partition].append(stored.full_offset(sequence))
            said = {number: index_entries(raw, index, number, segment.path) for number in index.message_index_offsets}
            if said != entries:
                yield f"the index of the chunk at byte {index.chunk_start_offset} does not fit its messages"
    for known in segment.channels:
        if counts[known.id] != known.count:
            yield f"channel {known.id} holds {counts[known.id]} messages, its statistics say {known.count}"
    yield from _offsets(segment.contents, there)


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
    if zlib.crc32(summary) != footer.summary_crc:
        yield "the summary differs from its checksum"
    raw.seek(footer.summary_start - _DATA_END)
    end = next(StreamReader(io.BytesIO(raw.read(_DATA_END)), skip_magic=True).records)
    if not isinstance(end, DataEnd):
        yield "the data section has no end"
        return
    crc, left = 0, footer.summary_start - _DATA_END
    raw.seek(0)
    while left > 0 and (block := raw.read(min(left, 2**20))):
        crc, left = zlib.crc32(block, crc), left - len(block)
    if crc != end.data_section_crc:
        yield "the data differ from their checksum"


def _messages(content: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Position, channel, sequence and log time of the messages in a chunk's content."""
    at = 0
    while at < len(content):
        opcode, length = _RECORD.unpack_from(content, at)
        if opcode == 5:
            yield at, *_MESSAGE.unpack_from(content, at + _RECORD.size)
        at += _RECORD.size + length


def _offsets(contents: Contents, there: dict[Place, list[int]]) -> Iterator[str]:
    """Every offset of a range must be there once, in order, or be recorded as absent."""
    for place, span in contents.spans.items():
        where = f"{place[0]}, partition {place[1]}"
        absent = [a for a in contents.absent if (a.topic, a.partition) == place and a.reason != REWOUND]
        runs = [(a.start, a.end) for a in absent] + [(offset, offset + 1) for offset in there.pop(place, [])]
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
    for place in there:
        yield f"{place[0]}, partition {place[1]}: has messages but no range of offsets"


def _order(before: Segment | None, segment: Segment) -> Iterator[str]:
    """What is wrong between a segment and the one before it."""
    if before is None:
        return
    if segment.number != before.number + 1:
        yield f"segments {before.number + 1} to {segment.number - 1} are missing"
    for place, known in before.contents.spans.items():
        where = f"{place[0]}, partition {place[1]}"
        span = segment.contents.spans.get(place)
        if span is None:
            yield f"{where}: has no range of offsets, the segment before has"
        elif span.topic_id == known.topic_id and not _follows(segment.contents, place, known, span):
            yield f"{where}: begins at offset {span.first}, the segment before ends at {known.next}"


def _follows(contents: Contents, place: Place, known: Span, span: Span) -> bool:
    rewound = any((a.topic, a.partition) == place and a.reason == REWOUND for a in contents.absent)
    return span.first == known.next or (rewound and span.first < known.next)
