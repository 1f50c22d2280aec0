"""Sessions that are several files. In: files with a stream each, or recordings with some of a session's streams and files to come. Out: one
Recording a session, with all of them, as soon as no file to come can add to it. The labels of all of its files are its own. Those of a
file are of that file's clock: where ``offset_ms`` moves its streams it moves them too.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from kymo.streams.codec import CHUNK_SCHEMA
from kymo.streams.errors import EmptyFileError, SourceError
from kymo.streams.labels.labels import Label, LabelsJson
from kymo.streams.readers.doubts import doubts, hours_between
from kymo.streams.readers.file_names import WORKBOOKS, add_what_the_name_says, tells_streams
from kymo.streams.readers.files import LABELS_SUFFIX, File, format_of
from kymo.streams.readers.foreign import LOOKED_AT
from kymo.streams.recording import InputOptions, ReadOptions, Recording, StreamData, moved, shifted
from kymo.streams.topics import input_of
from kymo.streams.words import NS, OUR_DAYS_S

#: What is before 2000 counts from no date, but from when a device was switched on or a recording was begun.
_DATED_NS = OUR_DAYS_S[0] * NS
#: An irregular stream may be silent while others go on, or begin before them, so long.
_SILENT_NS = 3600 * NS
_NO_LABELS, _BESIDE = "no label column `{}`: read without labels", "beside it: read without labels"
#: As columns say it, a file at a time.
_LACKS = "no column of stream `{}`: read without it"
_START, _END = 2**16, 2**18  # bytes of a file in which names stand
_ANY = ""  # for a session's name
_CHUNKS = CHUNK_SCHEMA.encode()  # which are of sessions of their own
_MCAP, _PARQUET = (".mcap",), (".parquet", ".pq")


def of_streams(files: Sequence[File], options: ReadOptions, errors: list[SourceError]) -> Iterator[Recording]:
    """Recordings of files that hold a stream each; what cannot be read is added to the errors."""
    inputs = {file: _inputs_of(file.stream, options, {file.stream for file in files}) for file in files}
    parts, refused, silent = dict[str, list[Recording]](), list[SourceError](), dict[File, SourceError]()
    if not any(inputs.values()):
        yield from _by_channels(files, options, errors)
        return
    for file in (file for file in files if inputs[file]):
        try:
            for part in _read(file, replace(options, inputs=inputs[file], stream_name=None)):
                parts.setdefault(part.session, []).append(part)
        except SourceError as error:
            if isinstance(error, EmptyFileError) and inputs[file][0].rate_hz == 0 and inputs[file][0].channels:
                silent[file] = error
            else:
                refused.append(error)
    if not parts:
        raise [*refused, *silent.values()][0]
    errors += refused
    beside = dict[str, tuple[File, int]]()
    for file in files:
        if labels := file.labels_file():
            of_file = inputs[file] if labels.place == file.place.with_suffix(LABELS_SUFFIX) else ()
            beside[labels.path] = file, sum(item.offset_ns or 0 for item in of_file)
    for sensors in parts.values():
        sensors += [_silent(file, inputs[file][0], sensors[0]) for file in silent]
        recording = _together(sensors, files[0].part_of, options.inputs, errors)
        for witness in _witnesses([file for file in files if not inputs[file]], recording.session, options):
            recording = _labelled_by(witness, recording)
        named = files[0].path if tells_streams(options.file_names) else files[0].part_of
        yield _with_labels(recording, replace(files[0], path=named, stream=""), options, [*beside.values()])


def _read(file: File, options: ReadOptions) -> Iterator[Recording]:
    """Recordings of a file; its labels are where its streams will be."""
    for recording in format_of(file).read(file, options):
        recording.labels = moved(recording.labels, recording.offset_ns(options.inputs))
        yield recording


def _silent(file: File, item: InputOptions, other: Recording) -> Recording:
    """A stream in which nothing happened while another recording went on."""
    stream = StreamData.silent(item, other.session, other.start_ns)
    return Recording(other.session, [stream], path=file.path, notes=["its file holds no sample: nothing happened"])


def _witnesses(files: Sequence[File], session: str, options: ReadOptions) -> Iterator[Recording]:
    """What files whose streams nobody asks for may say of a session's labels."""
    for file in files:
        with contextlib.suppress(SourceError):
            with file.open() as raw:
                start = raw.read(LOOKED_AT)
            # A table that is no text has its names elsewhere.
            if file.suffix in (*_PARQUET, *WORKBOOKS) or any(name.encode() in start for name in options.label_columns):
                parts = format_of(file).read(
                    file, replace(options, inputs=(InputOptions(file.stream),), stream_name=None)
                )
                yield from (part for part in parts if part.session == session and part.labels)


def _labelled_by(witness: Recording, recording: Recording) -> Recording:
    """A recording with the labels of another one of its session, if they lie together in time."""
    both = _together([recording, witness], recording.path, (), [])
    streams = both.streams[: len(recording.streams)]
    if [stream.header.format for stream in streams] != [stream.header.format for stream in recording.streams]:
        return recording
    known = tuple(_NO_LABELS.format(label.set) for label in both.labels)
    return replace(both, streams=streams, notes=[note for note in recording.notes if not note.endswith(known)])


def _by_channels(files: Sequence[File], options: ReadOptions, errors: list[SourceError]) -> Iterator[Recording]:
    """The recording of files of which none has a name that a recipe asks for: the channels that it names may be in one alone, or others in
    each."""
    parts = dict[str, list[Recording]]()
    for file in files:
        with contextlib.suppress(SourceError):
            parts[file.path] = list(recordings_of(file, options))
    recordings = [recording for of_file in parts.values() for recording in of_file]
    streams = [name for recording in recordings for name in _names_of(recording)]
    if len(parts) > 1 and len({*streams}) == len(streams) and len({recording.session for recording in recordings}) == 1:
        yield _together(recordings, files[0].part_of, options.inputs, errors)
    elif len(parts) == 1:
        yield from recordings
    else:
        stream = options.stream_name or ", ".join(item.stream for item in options.inputs)
        known = ", ".join(file.stream for file in files)
        wrong = f"is one recording of the streams {known}; there is no `{stream}`: name one of these, or the file"
        wrong += "; [source] file_names can say what tells files apart" if len(options.inputs) > 1 else ""
        raise SourceError(wrong, files[0].part_of)


def _inputs_of(stream: str, options: ReadOptions, there: Collection[str]) -> tuple[InputOptions, ...]:
    """What is read of a stream that a file is: as the recipe says, or all; nothing where another file is what the recipe names."""
    if options.stream_name not in (None, stream):
        return ()
    item = input_of(stream, options.inputs) if options.inputs else InputOptions(stream)
    return (replace(item, stream=stream),) if item and (item.stream == stream or item.stream not in there) else ()


def _names_of(recording: Recording) -> set[str]:
    return {stream.header.format.stream for stream in recording.streams}


def _lacking(names: Iterable[str], inputs: Sequence[InputOptions]) -> list[str]:
    """Inputs that none of some streams is."""
    there = {item.stream for name in names if (item := input_of(name, inputs))}
    return [item.stream for item in inputs if item.stream not in there]


def _together(
    parts: Sequence[Recording], path: str, inputs: Sequence[InputOptions], errors: list[SourceError]
) -> Recording:
    """One recording of several of one session; what is none of it is added to the errors."""
    subjects = {part.subject: part for part in parts if part.subject}
    if len(subjects) > 1:
        texts = " and ".join(f"{subject} ({Path(part.path).name})" for subject, part in subjects.items())
        raise SourceError(f"session {parts[0].session} has the subjects {texts}: give them sessions of their own", path)
    several, clock_notes = _on_one_clock(parts, inputs, errors)
    labels = _labels_of(several)
    names = {name for part in several for name in _names_of(part)}
    known = {*map(_LACKS.format, names), *(_NO_LABELS.format(label.set) for label in labels)}
    notes = list(clock_notes)
    for part in several:
        # Of several streams each note says which it is of.
        stream = f"{next(iter(_names_of(part)))}: " if len(part.streams) == 1 else ""
        notes += [stream + note for note in part.notes if note not in known and not (labels and note.endswith(_BESIDE))]
    return Recording(
        parts[0].session,
        [stream for part in several for stream in part.streams],
        labels,
        next(iter(subjects), None),
        {key: text for part in several for key, text in part.metadata.items()},
        path,
        list(dict.fromkeys(notes)),
    )


def _labels_of(parts: Sequence[Recording]) -> list[Label]:
    """Labels of several files. What they say alike is one label, from where it begins in any of them to where it ends."""
    by_class, labels = dict[tuple[str, str], list[tuple[int, Label]]](), list[Label]()
    for number, part in enumerate(parts):
        for label in part.labels:
            by_class.setdefault((label.set, label.label), []).append((number, label))
    for alike in by_class.values():
        last: tuple[int, Label] | None = None
        for number, label in sorted(alike, key=lambda pair: _when(pair[1])):
            if last and last[0] != number and (label.start_ns < last[1].end_ns or _when(label) == _when(last[1])):
                labels[-1] = replace(labels[-1], end_ns=max(labels[-1].end_ns, label.end_ns))
                last = -1, labels[-1]
            else:
                labels.append(label)
                last = number, label
    return sorted(labels, key=_when)


def _when(label: Label) -> tuple[int, int]:
    return label.start_ns, label.end_ns


def _on_one_clock(
    parts: Sequence[Recording], inputs: Sequence[InputOptions], errors: list[SourceError]
) -> tuple[list[Recording], list[str]]:
    """Recordings that lie together in time, and what is assumed of their clocks."""
    if any(item.offset_ns is None for item in inputs):
        return list(parts), []
    silent = [part for part in parts if not any(stream.count for stream in part.streams)]
    sparse = [part for part in parts if not any(stream.header.format.rate for stream in part.streams)]
    most = max(parts, key=lambda part: (part not in sparse, part.end_ns - part.start_ns))
    dated, name = most.start_ns >= _DATED_NS, Path(most.path).name
    kept, moved = list[Recording](), list[str]()
    for part in parts:
        later_ns = part.offset_ns(inputs) - most.offset_ns(inputs)
        apart_ns = max(part.start_ns + later_ns - most.end_ns, most.start_ns - part.end_ns - later_ns)
        if (part.start_ns >= _DATED_NS) != dated:
            which = "no date, and those of that do" if dated else "a date, and those of that do not"
            wrong = f"shares no time with {name}: its times have {which}; give both times of one clock"
            errors.append(SourceError(wrong, part.path))
        elif part is most or part in silent or apart_ns <= (_SILENT_NS if part in sparse else 0):
            kept.append(part)
        elif dated:
            seconds = apart_ns / NS
            apart = f"{seconds / 86_400:.1f} days" if seconds > 86_400 else f"{seconds:.1f} s"
            wrong = f"shares no time with {name} ({apart} between them): is its clock another one?"
            if hours := hours_between(part.start_ns + later_ns, most.start_ns):
                wrong += f" It begins {hours:+d} h from that, as local times do: try offset_ms = {-3_600_000 * hours} for its input"
            errors.append(SourceError(wrong, part.path))
        else:
            kept.append(shifted(part, most.start_ns - part.start_ns))
            moved += _names_of(part)
    if dated or len(kept) < 2:
        return kept, []
    notes = ["times without a date: all its files are taken to count from one moment"]
    return kept, [f"times without a date: {', '.join(moved)} are taken to begin with {name}"] if moved else notes


def recordings_of(file: File, options: ReadOptions) -> Iterator[Recording]:
    for recording in _read(file, options):
        yield _with_labels(recording, file, options, [(file, recording.offset_ns(options.inputs))])


def _with_labels(
    recording: Recording, file: File, options: ReadOptions, labelled: Sequence[tuple[File, int]]
) -> Recording:
    """A recording with what stands beside it, by clocks that are so much behind, and in its name."""
    for key in options.label_keys:
        for file_and_offset in labelled:
            _add_labels(recording, *file_and_offset, key, options)
    recording.notes += doubts(recording)
    if options.file_names is not None:
        label_set = options.label_column or options.label_key or "label"
        add_what_the_name_says(recording, file.path, options, label_set)
    return recording


def _add_labels(recording: Recording, file: File, later_ns: int, key: str, options: ReadOptions) -> None:
    """Labels of ``X.labels.json`` beside the file, or where an experiment has them, as far as they touch the recording; where
    they are not required, a file may be without."""
    names, required = options.label_keys[key], key == options.label_key
    beside = file.labels_file()
    if beside is None:
        note = f"no {Path(file.path).stem}.labels.json beside it: read without labels"
        recording.notes += [note] if note not in recording.notes else []
        return
    path = Path(beside.path)
    with beside.open() as raw:
        content = LabelsJson(path, raw.read())
    labels = moved(content.labels(key, names, recording.session, required), later_ns)
    start_ns, end_ns = recording.span_ns(options.inputs)
    inside = [label for label in labels if label.end_ns > start_ns and label.start_ns < end_ns]
    if labels and not inside:
        wrong = f"none of its {len(labels)} labels lies within session {recording.session}; is its clock another one?"
        if required:
            raise SourceError(wrong, path)
        recording.notes.append(f"{path.name}: {wrong}")
        return
    if without := len(content.events) - len(labels):
        recording.notes.append(f"{path.name}: {without} events without `{key}` left out")
    if len(inside) < len(labels):
        recording.notes.append(f"{path.name}: {len(labels) - len(inside)} labels outside the recording left out")
    # Parts of a recording may have the same labels beside them.
    known = {(label.set, label.start_ns, label.end_ns, label.label) for label in recording.labels}
    inside = [label for label in inside if (label.set, label.start_ns, label.end_ns, label.label) not in known]
    recording.labels = sorted([*recording.labels, *inside], key=lambda label: (label.start_ns, label.end_ns))


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
    if file.suffix in WORKBOOKS:
        return None
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
        return cls([recording], _names_of(recording), start_ns, max(end_ns, start_ns + 1))

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
        session.lacks |= {*_lacking(part.names, inputs)}
        parts = session.put(part, 0.5)
        if not _lacking(parts.names, inputs):
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
        recording = _together(parts.recordings, path, inputs, errors) if more else first
    except SourceError as error:
        errors.append(error)
        return
    lacks = _lacking(_names_of(recording), inputs)
    for stream in lacks:
        note = f"no file has stream `{stream}` of it"
        if {*lacks} <= {*apart}:  # others have it: they may be of one session
            note += f": files of one session are named after their streams ({stream}.csv) in a folder of its own, or share a `session`"
            recording.notes = [known for known in recording.notes if known != _LACKS.format(stream)]
        recording.notes += [note] if _LACKS.format(stream) not in recording.notes else []
    yield recording
