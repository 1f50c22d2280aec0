"""Sessions that are several files. In: files with a stream each, or recordings with some of a session's streams. Out: one Recording a
session, with all of them; the labels of any one of its files are all of its streams'.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

from kymo.streams.errors import SourceError
from kymo.streams.labels.labels import Label, LabelsJson
from kymo.streams.readers.file_names import add_what_the_name_says, tells_streams
from kymo.streams.readers.files import File, format_of
from kymo.streams.readers.foreign import LOOKED_AT
from kymo.streams.recording import InputOptions, ReadOptions, Recording, shifted
from kymo.streams.words import NS

#: What is before 2000 counts from no date, but from when a device was switched on or a recording was begun.
_DATED_NS = 946_684_800 * NS
#: An irregular stream may be silent while others go on, or begin before them, so long.
_SILENT_NS = 3600 * NS
_NO_LABELS, _BESIDE = "no label column `{}`: read without labels", "beside it: read without labels"
_LACKS = "no column of stream `{}`: read without it"  # as columns say, one file at a time


def of_streams(files: Sequence[File], options: ReadOptions, errors: list[SourceError]) -> Iterator[Recording]:
    """Recordings of files that hold a stream each; what cannot be read is added to the errors."""
    inputs = {file: _inputs_of(file.stream, options) for file in files}
    parts, refused = dict[str, list[Recording]](), list[SourceError]()
    if not any(inputs.values()):
        yield from _by_channels(files, options, errors)
        return
    for file in (file for file in files if inputs[file]):
        try:
            for part in _read(file, replace(options, inputs=inputs[file], stream_name=None)):
                parts.setdefault(part.session, []).append(part)
        except SourceError as error:
            refused.append(error)
    if not parts:
        raise refused[0]
    errors += refused
    beside = {labels.path: file for file in files if (labels := file.labels_file())}
    for sensors in parts.values():
        recording = together(sensors, files[0].part_of, options.inputs, errors)
        for witness in _witnesses([file for file in files if not inputs[file]], recording, options):
            recording = _labelled_by(witness, recording)
        named = files[0].path if tells_streams(options.file_names) else files[0].part_of
        yield _with_labels(recording, replace(files[0], path=named, stream=""), options, beside.values())


def _witnesses(files: Sequence[File], recording: Recording, options: ReadOptions) -> Iterator[Recording]:
    """What files whose streams nobody asks for may say of a recording's labels, as long as some are missing."""
    for file in files:
        missing = options.label_columns.keys() - {label.set for label in recording.labels}
        if not missing:
            return
        with contextlib.suppress(SourceError):
            with file.open() as raw:
                start = raw.read(LOOKED_AT)
            # A table that is no text has its names elsewhere.
            if file.suffix in (".parquet", ".pq") or any(name.encode() in start for name in missing):
                parts = format_of(file).read(
                    file, replace(options, inputs=(InputOptions(file.stream),), stream_name=None)
                )
                yield from (part for part in parts if part.session == recording.session and part.labels)


def _labelled_by(witness: Recording, recording: Recording) -> Recording:
    """A recording with the labels of another one of its session, if they lie together in time."""
    both = together([recording, witness], recording.path, (), [])
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
    streams = [name for recording in recordings for name in _names(recording)]
    if len(parts) > 1 and len({*streams}) == len(streams) and len({recording.session for recording in recordings}) == 1:
        yield together(recordings, files[0].part_of, options.inputs, errors)
    elif len(parts) == 1:
        yield from recordings
    else:
        stream = options.stream_name or ", ".join(item.stream for item in options.inputs)
        known = ", ".join(file.stream for file in files)
        wrong = f"is one recording of the streams {known}; there is no `{stream}`: name one of these, or the file"
        wrong += "; [source] file_names can say what tells files apart" if len(options.inputs) > 1 else ""
        raise SourceError(wrong, files[0].part_of)


def _inputs_of(stream: str, options: ReadOptions) -> tuple[InputOptions, ...]:
    """What is read of a stream that a file is: as the recipe says, or all."""
    if options.stream_name not in (None, stream):
        return ()
    asked = [item for item in options.inputs if item.stream in (stream, stream.partition(".")[0])]
    asked.sort(key=lambda item: item.stream != stream)  # an exact name comes before a kind
    return tuple(replace(item, stream=stream) for item in asked[:1]) if options.inputs else (InputOptions(stream),)


def by_session(
    recordings: Iterable[Recording], inputs: Sequence[InputOptions], errors: list[SourceError]
) -> Iterator[Recording]:
    """Recordings with the streams that others of their session have, each as soon as it has all that are asked for."""
    waiting = dict[str, list[list[Recording]]]()  # those of a session; where one comes again, apart
    for recording in recordings:
        sessions = waiting.setdefault(recording.session, [])
        names = _names(recording)
        parts = next((parts for parts in sessions if not any(names & _names(part) for part in parts)), None)
        if parts is None:
            sessions.append(parts := [])
        parts.append(recording)
        if not _lacking(parts, inputs):
            sessions.remove(parts)
            yield from _whole(parts, inputs, errors)
    left = [parts for sessions in waiting.values() for parts in sessions]
    # What one lacks others have: they may be of one session, and nothing says so.
    apart = not _lacking([part for parts in left for part in parts], inputs)
    for parts in left:
        yield from _whole(parts, inputs, errors, apart)


def _whole(
    parts: Sequence[Recording], inputs: Sequence[InputOptions], errors: list[SourceError], apart: bool = False
) -> Iterator[Recording]:
    folders = {str(PurePath(part.path).parent) for part in parts}
    path = parts[0].path if len(parts) == 1 or len(folders) > 1 else folders.pop()
    try:
        recording = parts[0] if len(parts) == 1 else together(parts, path, inputs, errors)
    except SourceError as error:
        errors.append(error)
        return
    for stream in _lacking([recording], inputs):
        note = f"no file has stream `{stream}` of it"
        if apart:
            note += f": files of one session are named after their streams ({stream}.csv) in a folder of its own, or share a `session`"
            recording.notes = [known for known in recording.notes if known != _LACKS.format(stream)]
        recording.notes += [note] if _LACKS.format(stream) not in recording.notes else []
    yield recording


def _names(recording: Recording) -> set[str]:
    return {stream.header.format.stream for stream in recording.streams}


def _lacking(parts: Sequence[Recording], inputs: Sequence[InputOptions]) -> list[str]:
    """Streams that are asked for, and that none of the recordings has."""
    names = {name for part in parts for name in _names(part)}
    # An exact name comes before a kind.
    kinds = {name.partition(".")[0] for name in names - {item.stream for item in inputs}} | names
    return [item.stream for item in inputs if item.stream not in kinds]


def together(
    parts: Sequence[Recording], path: str, inputs: Sequence[InputOptions], errors: list[SourceError]
) -> Recording:
    """One recording of several of one session; what is none of it is added to the errors."""
    subjects = {part.subject: part for part in parts if part.subject}
    if len(subjects) > 1:
        texts = " and ".join(f"{subject} ({Path(part.path).name})" for subject, part in subjects.items())
        raise SourceError(f"session {parts[0].session} has the subjects {texts}: give them sessions of their own", path)
    several, clock_notes = _on_one_clock(parts, inputs, errors)
    labels = dict[str, list[Label]]()
    for part in several:
        for label_set in {label.set: None for label in part.labels}:
            of_set = [label for label in part.labels if label.set == label_set]
            labels[label_set] = max(labels.get(label_set, []), of_set, key=len)
    names = {name for part in several for name in _names(part)}
    known = {_LACKS.format(name) for name in names} | {_NO_LABELS.format(label_set) for label_set in labels}
    notes = list(clock_notes)
    for part in several:
        # Of several streams each note says which it is of.
        stream = f"{next(iter(_names(part)))}: " if len(part.streams) == 1 else ""
        notes += [stream + note for note in part.notes if note not in known and not (labels and note.endswith(_BESIDE))]
    return Recording(
        parts[0].session,
        [stream for part in several for stream in part.streams],
        sorted(
            (label for of_set in labels.values() for label in of_set), key=lambda label: (label.start_ns, label.end_ns)
        ),
        next(iter(subjects), None),
        {key: text for part in several for key, text in part.metadata.items()},
        path,
        list(dict.fromkeys(notes)),
    )


def _offset_ns(part: Recording, inputs: Sequence[InputOptions]) -> int:
    """What a recipe adds to its times."""
    kinds = {kind for name in _names(part) for kind in (name, name.partition(".")[0])}
    return next((item.offset_ns or 0 for item in inputs if item.stream in kinds), 0)


def _read(file: File, options: ReadOptions) -> Iterator[Recording]:
    """Recordings of a file. Labels beside the samples of one stream are by its clock, so what a recipe adds to those is added to them."""
    for recording in format_of(file).read(file, options):
        if len(recording.streams) == 1 and (later_ns := _offset_ns(recording, options.inputs)):
            recording.labels = [
                replace(label, start_ns=label.start_ns + later_ns, end_ns=label.end_ns + later_ns)
                for label in recording.labels
            ]
        yield recording


def _on_one_clock(
    parts: Sequence[Recording], inputs: Sequence[InputOptions], errors: list[SourceError]
) -> tuple[list[Recording], list[str]]:
    """Recordings that lie together in time, and what is assumed of their clocks."""
    if any(item.offset_ns is None for item in inputs):
        return list(parts), []
    sparse = [part for part in parts if not any(stream.header.format.rate for stream in part.streams)]
    most = max(parts, key=lambda part: (part not in sparse, part.end_ns - part.start_ns))
    dated, name = most.start_ns >= _DATED_NS, Path(most.path).name
    kept, moved = list[Recording](), list[str]()

    for part in parts:
        later_ns = _offset_ns(part, inputs) - _offset_ns(most, inputs)
        apart_ns = max(part.start_ns + later_ns - most.end_ns, most.start_ns - part.end_ns - later_ns)
        if (part.start_ns >= _DATED_NS) != dated:
            which = "no date, and those of that do" if dated else "a date, and those of that do not"
            wrong = f"shares no time with {name}: its times have {which}; give both times of one clock"
            errors.append(SourceError(wrong, part.path))
        elif part is most or apart_ns <= (_SILENT_NS if part in sparse else 0):
            kept.append(part)
        elif dated:
            seconds = apart_ns / NS
            apart = f"{seconds / 86_400:.1f} days" if seconds > 86_400 else f"{seconds:.1f} s"
            wrong = f"shares no time with {name} ({apart} between them): is its clock another one?"
            errors.append(SourceError(wrong, part.path))
        else:
            kept.append(shifted(part, most.start_ns - part.start_ns))
            moved += _names(part)
    if dated or len(kept) < 2:
        return kept, []
    notes = ["times without a date: all its files are taken to count from one moment"]
    return kept, [f"times without a date: {', '.join(moved)} are taken to begin with {name}"] if moved else notes


def recordings_of(file: File, options: ReadOptions) -> Iterator[Recording]:
    for recording in _read(file, options):
        yield _with_labels(recording, file, options)


def _with_labels(recording: Recording, file: File, options: ReadOptions, labelled: Iterable[File] = ()) -> Recording:
    """A recording with what stands beside it, and in its name."""
    for key, names in options.label_keys.items():
        for source in list(labelled) or [file]:
            _add_labels(recording, source, key, names, key == options.label_key)
    if options.file_names is not None:
        label_set = options.label_column or options.label_key or "label"
        add_what_the_name_says(recording, file.path, options.file_names, label_set)
    return recording


def _add_labels(recording: Recording, file: File, key: str, names: Mapping[str, str], required: bool) -> None:
    """Labels of ``X.labels.json`` beside the file, or where an experiment has them, as far as they touch the recording; where
    they are not required, a file may be without."""
    beside = file.labels_file()
    if beside is None:
        note = f"no {Path(file.path).stem}.labels.json beside it: read without labels"
        recording.notes += [note] if note not in recording.notes else []
        return
    path = Path(beside.path)
    with beside.open() as raw:
        content = LabelsJson(path, raw.read())
    labels = content.labels(key, names, recording.session, required)
    inside = [label for label in labels if label.end_ns > recording.start_ns and label.start_ns < recording.end_ns]
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
