"""Sessions that are several files. In: files with a stream each, or recordings with some of a session's streams. Out: one Recording a
session, with all of them. The labels of all of its files are its own. Those of a file are of that file's clock: where ``offset_ms`` moves
its streams it moves them too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from kymo.streams.errors import EmptyFileError, SourceError
from kymo.streams.labels.labels import Label, LabelsJson
from kymo.streams.readers.file_names import add_what_the_name_says, tells_streams
from kymo.streams.readers.files import LABELS_SUFFIX, File, format_of
from kymo.streams.readers.foreign import LOOKED_AT
from kymo.streams.recording import InputOptions, ReadOptions, Recording, StreamData, moved, shifted
from kymo.streams.topics import input_of
from kymo.streams.words import NS

#: What is before 2000 counts from no date, but from when a device was switched on or a recording was begun.
_DATED_NS = 946_684_800 * NS
#: An irregular stream may be silent while others go on, or begin before them, so long.
_SILENT_NS = 3600 * NS
_NO_LABELS, _BESIDE = "no label column `{}`: read without labels", "beside it: read without labels"
#: As columns say it, a file at a time.
LACKS = "no column of stream `{}`: read without it"


def of_streams(files: Sequence[File], options: ReadOptions, errors: list[SourceError]) -> Iterator[Recording]:
    """Recordings of files that hold a stream each; what cannot be read is added to the errors."""
    inputs = {file: _inputs_of(file.stream, options) for file in files}
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
        recording = together(sensors, files[0].part_of, options.inputs, errors)
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
            if file.suffix in (".parquet", ".pq") or any(name.encode() in start for name in options.label_columns):
                parts = format_of(file).read(
                    file, replace(options, inputs=(InputOptions(file.stream),), stream_name=None)
                )
                yield from (part for part in parts if part.session == session and part.labels)


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
    streams = [name for recording in recordings for name in names_of(recording)]
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
    item = input_of(stream, options.inputs) if options.inputs else InputOptions(stream)
    return (replace(item, stream=stream),) if item else ()


def names_of(recording: Recording) -> set[str]:
    return {stream.header.format.stream for stream in recording.streams}


def lacking(names: Iterable[str], inputs: Sequence[InputOptions]) -> list[str]:
    """Inputs that none of some streams is."""
    there = {item.stream for name in names if (item := input_of(name, inputs))}
    return [item.stream for item in inputs if item.stream not in there]


def together(
    parts: Sequence[Recording], path: str, inputs: Sequence[InputOptions], errors: list[SourceError]
) -> Recording:
    """One recording of several of one session; what is none of it is added to the errors."""
    subjects = {part.subject: part for part in parts if part.subject}
    if len(subjects) > 1:
        texts = " and ".join(f"{subject} ({Path(part.path).name})" for subject, part in subjects.items())
        raise SourceError(f"session {parts[0].session} has the subjects {texts}: give them sessions of their own", path)
    several, clock_notes = _on_one_clock(parts, inputs, errors)
    labels = _labels_of(several)
    names = {name for part in several for name in names_of(part)}
    known = {LACKS.format(name) for name in names} | {
        _NO_LABELS.format(label_set) for label_set in {label.set for label in labels}
    }
    notes = list(clock_notes)
    for part in several:
        # Of several streams each note says which it is of.
        stream = f"{next(iter(names_of(part)))}: " if len(part.streams) == 1 else ""
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
            errors.append(SourceError(wrong, part.path))
        else:
            kept.append(shifted(part, most.start_ns - part.start_ns))
            moved += names_of(part)
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
