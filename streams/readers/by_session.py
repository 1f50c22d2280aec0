"""Sessions over files that do not lie together. In: recordings with some of a session's streams, files to come. Out: recordings with
all of them, each as soon as no file to come can add to it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from kymo.streams.codec import CHUNK_SCHEMA
from kymo.streams.errors import SourceError
from kymo.streams.readers.files import File
from kymo.streams.readers.together import LACKS, lacking, names_of, together
from kymo.streams.recording import InputOptions, ReadOptions, Recording
from kymo.streams.topics import input_of

_START, _END = 2**16, 2**18  # bytes of a file in which names stand
_ANY = ""  # for a session's name
_CHUNKS = CHUNK_SCHEMA.encode()  # which are of sessions of their own
_MCAP, _PARQUET = (".mcap",), (".parquet", ".pq")


class ToCome:
    """Which streams of which sessions files may have that are not read yet, by the names in their heads: rather one too many."""

    def __init__(self, groups: Iterable[Sequence[File]], options: ReadOptions, inputs: Sequence[InputOptions]) -> None:
        self._options, self._inputs = options, inputs
        self._held = {group[0]: {pair for file in group for pair in self._may_hold(file)} for group in groups}
        self._counts = Counter(pair for pairs in self._held.values() for pair in pairs)
        self._over, self._reading = set[str](), set[tuple[str, str]]()
        #: Streams that some files hold alone, of which nothing says that they are of one session.
        self.apart = {
            stream
            for file, pairs in self._held.items()
            if not file.stream and len(pairs) < len(inputs)
            for session, stream in pairs
            if session != _ANY
        }

    def begin(self, group: Sequence[File]) -> None:
        """Hear that these files are read now, and those before them to their end."""
        for pair in self._reading:
            self._counts[pair] -= 1
            if not self._counts[pair]:
                self._over.add(pair[0])
        self._reading = self._held.pop(group[0])

    def may_add(self, session: str, streams: Iterable[str], read: bool) -> bool:
        """Whether a file to come, or the one that is read if that has not given the session yet, may have one of these streams of it."""
        pairs = [(name, stream) for stream in streams for name in (session, _ANY)]
        return any(self._counts[pair] > (read and pair in self._reading) for pair in pairs)

    def take_over(self, sessions: Collection[str]) -> list[str]:
        """Those of the sessions that fewer files may have than when asked before."""
        over, self._over = self._over, set()
        return [*sessions] if _ANY in over else [session for session in over if session in sessions]

    def _may_hold(self, file: File) -> Iterator[tuple[str, str]]:
        options, words = self._options, _names_in(file)
        own = options.session_name if options.session_name is not None else file.session
        columns = options.session or ("session",)
        session = own
        if (
            words is None
            or any(_may_be_in(words, name) for name in columns)
            or (file.suffix in _MCAP and _CHUNKS in words)
        ):
            session = _ANY
        named = input_of(file.stream, self._inputs) if file.stream else None
        for item in (named,) if named else self._inputs:
            sure = words is not None and item.channels and file.suffix not in _MCAP and not named
            if not sure or any(_may_be_in(words or b"", name) for name in item.channels):
                yield session, item.stream


def _names_in(file: File) -> bytes | None:
    """The part of a file in which names of columns, or of topics, stand; None where they may stand elsewhere, or columns have none."""
    with file.open() as raw:
        start = raw.read(_START)
        if file.suffix not in (*_MCAP, *_PARQUET):
            text = start.replace(b"\0", b"")  # UTF-16
            return text if re.search(rb"[A-Za-z]", text.lstrip().partition(b"\n")[0]) else None
        size = raw.seek(0, 2)
        raw.seek(max(0, size - _END))
        end = raw.read()
    if file.suffix in _PARQUET:
        whole = int.from_bytes(end[-8:-4], "little") + 8 <= len(end)
    else:
        summary = int.from_bytes(end[-28:-20], "little")
        whole = summary >= size - len(end) and summary > 0
    return end if whole else None


def _may_be_in(text: bytes, name: str) -> bool:
    return not name.isascii() or all(word.encode() in text for word in re.findall(r"\w+", name))


@dataclass(slots=True, eq=False)
class _Parts:
    """Recordings that are one."""

    recordings: list[Recording]
    names: set[str]  # of their streams
    start_ns: int
    end_ns: int

    @classmethod
    def of(cls, recording: Recording, inputs: Sequence[InputOptions]) -> _Parts:
        start_ns, end_ns = recording.span_ns(inputs)
        return cls([recording], names_of(recording), start_ns, max(end_ns, start_ns + 1))

    def add(self, other: _Parts) -> None:
        self.recordings += other.recordings
        self.names |= other.names
        self.start_ns, self.end_ns = min(self.start_ns, other.start_ns), max(self.end_ns, other.end_ns)

    def nearest(self, others: Iterable[_Parts]) -> tuple[_Parts | None, float]:
        """Of others that have none of its streams those with which it shares most time: which part of the shorter, below 0 where they lie
        apart."""
        free = [other for other in others if self.names.isdisjoint(other.names)]
        best = max(free, key=self._shared_ns, default=None)
        if best is None:
            return None, 0
        return best, self._shared_ns(best) / min(self.end_ns - self.start_ns, best.end_ns - best.start_ns)

    def _shared_ns(self, other: _Parts) -> int:
        return min(self.end_ns, other.end_ns) - max(self.start_ns, other.start_ns)


@dataclass(slots=True)
class _Session:
    """What waits of a session for other files."""

    parts: list[_Parts] = field(default_factory=list)
    lacks: set[str] = field(default_factory=set)

    def put(self, part: _Parts, least: float) -> _Parts:
        """Put a part to those with which it shares more than so much of its time, or apart."""
        best, share = part.nearest(self.parts)
        if best is None or share <= least:
            self.parts.append(part)
            return part
        best.add(part)
        return best

    def paired(self) -> list[_Parts]:
        """All that waits, put together by time: what lies mostly together first, what lies apart last."""
        for least in (0.5, 0, float("-inf")):
            left, self.parts = sorted(self.parts, key=lambda part: part.start_ns), []
            for part in left:
                self.put(part, least)
        return self.parts


def by_session(
    recordings: Iterable[Recording], inputs: Sequence[InputOptions], errors: list[SourceError], to_come: ToCome
) -> Iterator[Recording]:
    """Recordings with the streams that others of their session have. Where files cut a session each in its own way, parts of it that lie
    together in time are one."""
    waiting = dict[str, _Session]()
    for recording in recordings:
        session = waiting.setdefault(recording.session, _Session())
        part = _Parts.of(recording, inputs)
        session.lacks |= {*lacking(part.names, inputs)}
        parts = session.put(part, 0.5)
        if not lacking(parts.names, inputs):
            session.parts.remove(parts)
            yield from _whole(parts, inputs, errors)
        for name in dict.fromkeys([recording.session, *to_come.take_over(waiting)]):
            if not to_come.may_add(name, waiting[name].lacks, name == recording.session):
                for parts in waiting.pop(name).paired():
                    yield from _whole(parts, inputs, errors, to_come.apart)
    for session in waiting.values():
        for parts in session.paired():
            yield from _whole(parts, inputs, errors, to_come.apart)


def _whole(
    parts: _Parts, inputs: Sequence[InputOptions], errors: list[SourceError], apart: Iterable[str] = ()
) -> Iterator[Recording]:
    first, *more = parts.recordings
    folders = {str(PurePath(part.path).parent) for part in parts.recordings}
    path = first.path if not more or len(folders) > 1 else folders.pop()
    try:
        recording = together(parts.recordings, path, inputs, errors) if more else first
    except SourceError as error:
        errors.append(error)
        return
    lacks = lacking(names_of(recording), inputs)
    for stream in lacks:
        note = f"no file has stream `{stream}` of it"
        if {*lacks} <= {*apart}:  # others have it: they may be of one session
            note += f": files of one session are named after their streams ({stream}.csv) in a folder of its own, or share a `session`"
            recording.notes = [known for known in recording.notes if known != LACKS.format(stream)]
        recording.notes += [note] if LACKS.format(stream) not in recording.notes else []
    yield recording
