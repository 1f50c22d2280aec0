"""What is whole of a damaged segment. In: an MCAP file that was cut, not closed or damaged. Out: a segment of what can be read, and
what was lost in words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streams.archive.format import (
    DAMAGED,
    EXTRAS_TOPIC,
    METADATA_NAME,
    PARTIAL,
    SUFFIX,
    Absent,
    Contents,
    Place,
    Span,
    Stored,
    read_segment,
    segment_number,
    segment_path,
    segment_paths,
)
from streams.archive.record import ArchivedRecord, read_extra, with_extra
from streams.archive.segment import SegmentWriter
from streams.errors import ArchiveError, MessageError, SourceError
from streams.readers.mcap_scan import Scan
from streams.readers.words import many

DAMAGED_SUFFIX = ".damaged"


class NothingWholeError(ArchiveError):
    """A file of which nothing can be kept."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """What :func:`recover_file` did."""

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
        kept = path.with_name(path.name + DAMAGED_SUFFIX)
        path.replace(kept)
        out.append(recover_file(kept, path))
    partials = sorted(folder.glob(f"kymo-*{SUFFIX}{PARTIAL}"))
    for rewrite in [
        path for path in partials if path.with_suffix("").exists()
    ]:  # that was killed: the segment is whole
        rewrite.unlink()
        partials.remove(rewrite)
    out += [recover_file(_set_aside(partial), partial.with_suffix("")) for partial in partials]
    left = sorted(folder.glob(f"kymo-*{SUFFIX}{DAMAGED_SUFFIX}"))  # of a recovery that was killed
    out += [recover_file(path, path.with_suffix("")) for path in left if not path.with_suffix("").exists()]
    return out


def unclosed(folder: Path, number: int) -> list[Path]:
    """Segments that were not closed, by the names under which they were written."""
    found = set(folder.glob(f"kymo-*{SUFFIX}{PARTIAL}"))
    target = segment_path(folder, number)
    if target.with_name(target.name + DAMAGED_SUFFIX).exists():
        found.add(target.with_name(target.name + PARTIAL))
    return sorted(found)


def recover_partial(partial: Path) -> list[str]:
    """Make a segment of what is whole of one that was not closed, and take that one away."""
    kept = _set_aside(partial)
    try:
        told = recover_file(kept, partial.with_suffix("")).text
    except NothingWholeError as error:
        told = str(error)
    kept.unlink()
    return [told]


def _set_aside(partial: Path) -> Path:
    """Give an unclosed segment another name; if that is taken, a recovery was killed and the other one is the whole file."""
    kept = partial.with_name(partial.with_suffix("").name + DAMAGED_SUFFIX)
    if kept.exists():
        partial.unlink(missing_ok=True)
    else:
        partial.replace(kept)
    return kept


def recover_file(path: Path, target: Path) -> Recovered:
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
        if f"{METADATA_NAME}.offsets" in scan.metadata:  # which offsets are gone is known at least
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
    prefix = scan.metadata.get(f"{METADATA_NAME}.prefix", "")
    return Contents(prefix or (first.topic.rpartition(".")[0] if first else ""))


def _finish(contents: Contents, scan: Scan, path: Path) -> None:
    """Where the file's own list of offsets is whole, its gaps and ends hold."""
    members = {
        name.removeprefix(METADATA_NAME + "."): text
        for name, text in scan.metadata.items()
        if name.startswith(METADATA_NAME + ".")
    }
    if not members:
        return
    own = Contents.from_metadata(members, path)
    known = {(*a[:4],): a for a in own.absent}
    contents.absent = [known.get((*a[:4],), a) for a in contents.absent]
    contents.cluster = contents.cluster or own.cluster
    for place, span in own.spans.items():
        made = contents.spans.setdefault(place, Span(span.topic_id, span.first, span.first))
        made.topic_id = span.topic_id
        _note_tail(contents, place, made, span)


def _note_tail(contents: Contents, place: Place, made: Span, span: Span) -> None:
    if made.next < span.next:
        contents.absent.append(Absent(*place, made.next, span.next, DAMAGED))
        made.next = span.next


def _records(scan: Scan) -> Iterator[tuple[ArchivedRecord, str]]:
    """Records as they were, in the file's order, with their topic's id."""
    channels: dict[int, Stored | None] = {}
    extras: dict[tuple[str, int, int], dict[str, Any]] = {}
    for _, channel, message in scan.messages():
        if channel.topic == EXTRAS_TOPIC:
            with contextlib.suppress(MessageError):
                place, said = read_extra(message.data)
                extras[place] = said
            continue
        if channel.id not in channels:
            channels[channel.id] = Stored.of(channel, 0)
        stored = channels[channel.id]
        if stored is None:
            continue
        offset = stored.full_offset(message.sequence)
        record = ArchivedRecord(
            stored.topic, stored.partition, offset, message.log_time // 10**6, 0, stored.key, bytes(message.data)
        )
        extra = extras.pop((stored.topic, stored.partition, offset), None) if extras else None
        yield (with_extra(record, extra) if extra else record), stored.topic_id


def _chunks_damaged(path: Path) -> bool:
    with path.open("rb") as raw:
        scan = Scan(raw, str(path), limited=False)
        with contextlib.suppress(
            SourceError
        ):  # no message at all: of a segment that records a gap, or the notes say why
            for _ in scan.messages():
                pass
    return bool(scan.notes)
