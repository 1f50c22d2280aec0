"""A session taken out of an archive. In: its name. Out: segments without its records; the others' bytes and all offsets as they were.

What Kafka still holds of it would be archived again. So the folder keeps a list of what is erased: the SHA-256 of the session's
name, and for each partition the offset before which its records are left out, with Kafka's id of the topic: one that is deleted and
made anew under the same name counts from 0 again, and what it holds was never erased.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kymo.streams.archive.check import DAMAGED_SUFFIX
from kymo.streams.archive.format import (
    ERASED,
    SUFFIX,
    Absent,
    Contents,
    Segment,
    Span,
    read_segment,
    segment_paths,
)
from kymo.streams.archive.read import segment_records
from kymo.streams.archive.segment import SegmentWriter
from kymo.streams.errors import ArchiveError, MessageError
from kymo.streams.files import lock, write_whole
from kymo.streams.messages import MAX_FILE_BYTES, Record, read_json, session_of
from kymo.streams.topics import Place

ERASED_FILE = "erased.json"


def name_digest(session: str | bytes) -> str:
    """SHA-256 of a session's name, hexadecimal: the list of what is erased must not hold the name itself."""
    return hashlib.sha256(session.encode() if isinstance(session, str) else session).hexdigest()


class Erased:
    """Sessions that are to be left out of an archive."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ERASED_FILE
        self._until: dict[str, dict[tuple[Place, str], int]] = {}  # by session, then place and topic id
        self._seen: tuple[int, int] | None = None
        self._digests: dict[bytes, str] = {}
        self.load()

    def load(self) -> None:
        """Read the list again if it has changed."""
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return
        if (stat.st_mtime_ns, stat.st_ino) == self._seen:
            return
        try:
            rows = read_json(self._path.read_bytes(), MAX_FILE_BYTES)
            self._until = {
                row["session_sha256"]: {((topic, part), "".join(of)): until for topic, part, until, *of in row["until"]}
                for row in rows
            }
        except (OSError, MessageError, ValueError, KeyError, TypeError) as error:
            raise ArchiveError(f"{self._path}: cannot be read ({error!r}); it says which sessions are erased") from None
        self._seen = stat.st_mtime_ns, stat.st_ino

    def __bool__(self) -> bool:
        return bool(self._until)

    def has(self, record: Any, topic_id: str) -> bool:
        """Whether a record is of an erased session, and was there when it was erased."""
        if not self._until:
            return False
        session, place = session_of(record), (record.topic, record.partition)
        if session not in self._digests:
            self._digests[session] = name_digest(session)
        offsets = self._until.get(self._digests[session], {})
        # Of a segment that does not tell: any.
        ids = {"", topic_id} if topic_id else {known_id for _, known_id in offsets}
        return bool(record.offset < max((offsets.get((place, known_id), 0) for known_id in ids), default=0))

    def add(self, session: str, until: Mapping[Place, int], topic_ids: Mapping[str, str] | None = None) -> None:
        """Put a session on the list; what is there of it already stays."""
        self.load()
        offsets = self._until.setdefault(name_digest(session), {})
        for place, offset in until.items():
            key = (place, (topic_ids or {}).get(place[0], ""))
            offsets[key] = max(offset, offsets.get(key, 0))
        rows = []
        for digest, offsets in sorted(self._until.items()):
            until_rows = [[*place, offset, topic_id] for (place, topic_id), offset in sorted(offsets.items())]
            rows.append({"session_sha256": digest, "until": until_rows})
        write_whole(self._path, json.dumps(rows), durable=True)


def erase_session(folder: Path, session: str) -> tuple[int, int]:
    """Rewrite the complete segments that hold records of a session."""
    records = segments = 0
    for path in segment_paths(folder):
        with rewrite_lock(folder):
            count = _rewrite_without(read_segment(path), lambda record: session_of(record) == session.encode())
        records, segments = records + count, segments + bool(count)
    return records, segments


@contextlib.contextmanager
def rewrite_lock(folder: Path) -> Iterator[None]:
    """Wait until no other process writes a segment of an archive anew, and keep others from it."""
    with lock(folder / ".rewrite"):
        yield


def drop_erased(path: Path, erased: Erased) -> int:
    """Rewrite a segment that was open while a session was erased; how many records were taken out."""
    if not erased:
        return 0
    with rewrite_lock(path.parent):
        segment = read_segment(path)
        spans = segment.contents.spans
        return _rewrite_without(segment, lambda r: erased.has(r, spans[r.topic, r.partition].topic_id))


def damaged_files(folder: Path) -> list[Path]:
    """Damaged files that a recovery left: nobody can say what the parts of them hold that cannot be read."""
    paths = sorted(folder.glob(f"kymo-*{SUFFIX}{DAMAGED_SUFFIX}"))
    for path in paths:
        if not path.with_suffix("").exists():
            raise ArchiveError(
                f"{path}: has not been recovered to its end; first do: kymo archive recover --dir {folder}"
            )
    return paths


def _rewrite_without(segment: Segment, unwanted: Callable[[Record], bool]) -> int:
    """Rewrite a segment without some records; nothing is touched if it holds none."""
    gone = [record[:3] for record in segment_records(segment) if unwanted(record)]
    if not gone:
        return 0
    dropped, old = set(gone), segment.contents
    spans = {place: Span(s.topic_id, s.first, s.first) for place, s in old.spans.items()}
    new = Contents(old.prefix, old.cluster, spans, [], old.created_ns)
    writer = SegmentWriter(segment.path.parent, segment.number, new)
    for record in segment_records(segment):
        if record[:3] not in dropped:
            writer.add(record)
    new.absent[:] = [*old.absent, *_runs(gone)]
    new.spans.update(old.spans)
    writer.close()
    return len(gone)


def _runs(gone: Iterable[tuple[str, int, int]]) -> list[Absent]:
    """Offsets that follow one another, together."""
    out: list[Absent] = []
    for topic, partition, offset in sorted(gone):
        last = out[-1] if out else None
        if last is not None and (last.topic, last.partition, last.end) == (topic, partition, offset):
            out[-1] = last._replace(end=offset + 1)
        else:
            out.append(Absent(topic, partition, offset, offset + 1, ERASED))
    return out
