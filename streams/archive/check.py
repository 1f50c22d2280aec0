"""Whether an archive is whole, and what is kept where it is not. In: a folder of segments. Out: what is wrong, one line each; segments of
what can be read of damaged files, and what was lost in words.

Of every segment are checked: all checksums, the index against the messages, every offset of its ranges there once or its absence
recorded; and of all together: no number and no offset left out between two of them.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcap.records import Chunk, Footer, MessageIndex
from mcap.stream_reader import StreamReader

from kymo.streams.archive.format import (
    DAMAGED,
    EXTRAS_TOPIC,
    PARTIAL,
    REWOUND,
    SUFFIX,
    Absent,
    Contents,
    Segment,
    SegmentChannel,
    Span,
    read_segment,
    segment_number,
    segment_path,
    segment_paths,
    stated_members,
)
from kymo.streams.archive.read import Stored, messages_in, restored, segment_records
from kymo.streams.archive.segment import SegmentWriter
from kymo.streams.errors import ArchiveError, SourceError
from kymo.streams.readers.mcap_scan import Scan, unpack
from kymo.streams.topics import Place
from kymo.streams.words import many

DAMAGED_SUFFIX = ".damaged"
_UNSUMMED = 4 + 8  # bytes behind the summary that are not in its checksum: that one, and the magic at the file's end


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
    """What is wrong within a segment; a wrong checksum, or what cannot be read, is raised."""
    offsets: dict[Place, list[int]] = defaultdict(list)
    channels, counts = {c.id: c for c in segment.channels}, Counter[int]()
    index, entries, number = dict[int, Any](), defaultdict[int, list[tuple[int, int]]](list), 0  # of one MCAP chunk
    with segment.path.open("rb") as raw:
        for record in StreamReader(raw, emit_chunks=True, validate_crcs=True, record_size_limit=segment.size).records:
            if isinstance(record, MessageIndex):
                index[record.channel_id] = record.records
                continue
            if index != entries:
                yield f"the index of chunk {number} does not fit its messages"
            index, entries = {}, defaultdict(list)
            if isinstance(record, Chunk):
                number += 1
                for at, _, (channel, sequence, log_ns, _) in messages_in(unpack(record)):
                    entries[channel].append((log_ns, at))
                    counts[channel] += 1
                    if (stored := channels.get(channel)) is not None:
                        offsets[stored.topic, stored.partition].append(stored.full_offset(sequence))
            elif isinstance(record, Footer):
                footer = record
        raw.seek(footer.summary_start)
        if footer.summary_crc and zlib.crc32(raw.read()[:-_UNSUMMED]) != footer.summary_crc:  # in MCAP, 0 is none
            yield "the summary differs from its checksum"
    for expected in segment.channels:
        if counts[expected.id] != expected.count:
            yield f"channel {expected.id} holds {counts[expected.id]} messages, its statistics say {expected.count}"
    yield from _offsets(segment.contents, offsets)


def _offsets(contents: Contents, offsets: dict[Place, list[int]]) -> Iterator[str]:
    """Every offset of a range must be there once, in order, or be recorded as absent."""
    for place, span in contents.spans.items():
        where = f"{place[0]}, partition {place[1]}"
        absent = [a for a in contents.absent if a[:2] == place and a.reason != REWOUND]
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


def _order(previous: Segment | None, segment: Segment) -> Iterator[str]:
    if previous is None:
        return
    if segment.number != previous.number + 1:
        yield f"segments {previous.number + 1} to {segment.number - 1} are missing"
    for place, earlier in previous.contents.spans.items():
        where = f"{place[0]}, partition {place[1]}"
        span = segment.contents.spans.get(place)
        if span is None:
            yield f"{where}: has no range of offsets, the segment before has"
        elif span.topic_id == earlier.topic_id and span.first != earlier.next:
            rewound = any(a[:2] == place and a.reason == REWOUND for a in segment.contents.absent)
            if span.first > earlier.next or not rewound:
                yield f"{where}: begins at offset {span.first}, the segment before ends at {earlier.next}"


class NothingWholeError(ArchiveError):
    """A file of which nothing can be kept."""


@dataclass(frozen=True, slots=True)
class Recovered:
    path: Path  # the new segment
    records: int  # that it holds
    notes: list[str]  # what was damaged

    @property
    def text(self) -> str:
        return f"{self.path}: {many(self.records, 'record')} recovered; {'; '.join(self.notes) or 'nothing was lost'}"


def recover(folder: Path) -> list[Recovered]:
    """Recover every segment that is damaged, or was not closed, or whose recovery was killed.

    The damaged file stays beside its successor as ``….damaged``. One of which nothing can be kept is an error, raised when the
    others are done.
    """
    for path in segment_paths(folder):
        if _is_damaged(path):
            path.replace(damaged_path(path))
    for partial in folder.glob(f"kymo-*{SUFFIX}{PARTIAL}"):
        if partial.with_suffix("").exists():  # of a rewrite that was killed: the segment is whole
            partial.unlink()
        else:
            _set_aside(partial)
    damaged_files = sorted(folder.glob(f"kymo-*{SUFFIX}{DAMAGED_SUFFIX}"))
    out, hopeless = list[Recovered](), list[NothingWholeError]()
    for path in damaged_files:
        if not path.with_suffix("").exists():
            try:
                out.append(_recover_file(path))
            except NothingWholeError as error:
                hopeless.append(error)
    if hopeless:
        raise hopeless[0]
    return out


def damaged_path(path: Path) -> Path:
    return path.with_name(path.name + DAMAGED_SUFFIX)


def unclosed(folder: Path, number: int) -> list[Path]:
    """Segments that were not closed, by the names under which they were written."""
    partials = set(folder.glob(f"kymo-*{SUFFIX}{PARTIAL}"))
    target = segment_path(folder, number)
    if damaged_path(target).exists():
        partials.add(target.with_name(target.name + PARTIAL))
    return sorted(partials)


def recover_partial(partial: Path) -> str:
    """Make a segment of what is whole of one that was not closed, and take that one away; what became of it, in words."""
    damaged = _set_aside(partial)
    try:
        outcome = _recover_file(damaged).text
    except NothingWholeError as error:
        outcome = str(error)
    damaged.unlink()
    return outcome


def _set_aside(partial: Path) -> Path:
    """Give an unclosed segment another name; if that is taken, a recovery was killed and the other one is the whole file."""
    damaged = damaged_path(partial.with_suffix(""))
    if damaged.exists():
        partial.unlink(missing_ok=True)
    else:
        partial.replace(damaged)
    return damaged


def _is_damaged(path: Path) -> bool:
    try:
        segment = read_segment(path)
        for _ in segment_records(segment, segment.channels):  # by their index
            pass
    except ArchiveError:
        return True
    with path.open("rb") as raw:
        scan = Scan(raw, str(path), empty=True, limited=False)
        for _ in scan.messages():
            pass
    return bool(scan.notes)


def _recover_file(path: Path) -> Recovered:
    """Write what is whole of a damaged file as a segment; spans begin where those of the segment before it end."""
    target = path.with_suffix("")
    number = segment_number(target)
    assert number is not None
    before, topic_ids = segment_path(target.parent, number - 1), dict[Place, str]()
    contents = read_segment(before).contents.following() if before.exists() else Contents("")
    with path.open("rb") as raw:
        scan = Scan(raw, str(path), limited=False)
        writer = SegmentWriter(target.parent, number, contents)
        try:
            for record in restored(_messages(scan, topic_ids), lambda _: None):
                span, topic_id = contents.spans.get(record[:2]), topic_ids[record[:2]]
                if span is None or (topic_id and span.topic_id != topic_id):
                    contents.spans[record[:2]] = Span(topic_id, record.offset, record.offset)
                writer.add(record)
        except SourceError as error:  # no message is whole
            if "offsets" not in stated_members(scan.metadata):  # which offsets are gone is known else
                writer.discard()
                raise NothingWholeError(f"{error}; nothing of it can be kept, delete it") from None
    stated, first = stated_members(scan.metadata), next(iter(contents.spans), ("", 0))
    contents.prefix = contents.prefix or stated.get("prefix") or first[0].rpartition(".")[0]
    if stated:
        _fill_in(contents, Contents.from_metadata(stated, path))
    writer.close()
    return Recovered(target, writer.count, scan.notes)


def _messages(scan: Scan, topic_ids: dict[Place, str]) -> Iterator[Stored]:
    """Messages of a damaged file, in its order; `topic_ids` gets Kafka's ids of their topics."""
    channels: dict[int, SegmentChannel | None] = {}
    for _, channel, message in scan.messages():
        if channel.id not in channels:
            stored = channels[channel.id] = SegmentChannel.of(channel, 0)
            if stored is not None:
                topic_ids[stored.topic, stored.partition] = stored.topic_id
        if channel.topic == EXTRAS_TOPIC or channels[channel.id] is not None:
            head = (message.sequence, message.log_time, message.publish_time)
            yield channels[channel.id], *head, bytes(message.data)


def _fill_in(contents: Contents, stated: Contents) -> None:
    """Where the file's own list of offsets is whole, its gaps and ends hold."""
    reasons = {absent[:4]: absent for absent in stated.absent}
    contents.absent = [reasons.get(absent[:4], absent) for absent in contents.absent]
    contents.cluster = contents.cluster or stated.cluster
    for place, span in stated.spans.items():
        recovered = contents.spans.setdefault(place, Span(span.topic_id, span.first, span.first))
        recovered.topic_id = span.topic_id
        if recovered.next < span.next:
            contents.absent.append(Absent(*place, recovered.next, span.next, DAMAGED))
            recovered.next = span.next
