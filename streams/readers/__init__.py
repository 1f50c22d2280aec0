"""Files as recordings. In: paths, folders, URLs, the name of a shipped data set. Out: Recordings, one a session, times
in Unix ns.

One reader a format, found by :data:`streams.readers.files.FORMATS`: CSV, Parquet, MCAP; and the BasicMotions recordings of the aeon package
(``basicmotions:train``, ``basicmotions:test``). Whatever a reader repairs or guesses stands in the recording's `notes`; what it cannot
repair is a SourceError with file and row.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from kymo.streams.archive.format import is_archive
from kymo.streams.errors import EmptyKeepError, SourceError, SourceWarning
from kymo.streams.labels.labels import LabelsJson
from kymo.streams.readers.basic_motions import NAMES, read_basic_motions
from kymo.streams.readers.file_names import add_what_the_name_says
from kymo.streams.readers.files import File, find, format_of, is_url, not_read
from kymo.streams.recording import InputOptions, ReadOptions, Recording
from kymo.streams.words import many


def _warn(text: str) -> None:
    warnings.warn(text, SourceWarning, stacklevel=4)


def read(
    paths: Sequence[str | Path],
    options: ReadOptions = ReadOptions(),  # noqa: B008
    tell: Callable[[str], None] = _warn,
) -> Iterator[Recording]:
    """Recordings of files, one after the other.

    Parameters
    ----------
    paths : sequence of str or Path
        Files, folders (sorted, with subfolders, known suffixes), archives (folders of segments), experiment JSON, fsspec URLs,
        or ``basicmotions:train``, ``basicmotions:test``.
    options : ReadOptions
        How files become sessions.
    tell : callable
        Called with a line for each file that is left out; by default it is a :class:`~kymo.streams.errors.SourceWarning`.

    Yields
    ------
    Recording
        One a session. Only one file's worth is held; of a CSV or Parquet file with many sessions, one session's.

    Raises
    ------
    SourceError
        If a path is not there or a file cannot be read as it stands. One that nobody named, since it was there in a folder, or of
        which `keep` leaves no row, is left out, as long as another can be read.
    """
    names = [str(path).lower() for path in paths if _is_data_set(path)]
    for name in names:
        yield from read_basic_motions(name, options)
    archives = [path for path in paths if not is_url(path) and is_archive(Path(path))]
    for path in archives:
        from kymo.streams.archive.read import read_archive

        yield from read_archive(Path(path), options)
    on_disk = [path for path in paths if path not in archives and not _is_data_set(path)]
    foreign = [error for path in on_disk if not is_url(path) for error in not_read(Path(path))]
    errors, emptied, readable = list[SourceError](), list[SourceError](), bool(archives or names)
    groups: dict[str, list[File]] = {}
    for file in find(on_disk):
        groups.setdefault(file.folder if file.stream else file.path, []).append(file)
    for files in groups.values():
        try:
            for recording in _of_sensors(files, options, errors) if files[0].stream else _recordings(files[0], options):
                readable = True
                yield recording
        except EmptyKeepError as error:
            emptied.append(error)
        except SourceError as error:
            if not files[0].in_folder:
                raise
            errors.append(error)
            if readable:
                _leave_out(errors, tell)
    if not readable and (errors or emptied):
        raise (errors or emptied)[0]
    _leave_out(errors + foreign, tell)
    if emptied:
        files_without = many(len(emptied), "file")
        tell(f"keep = {options.keep!r} leaves no row of {files_without}, such as {emptied[0].path}; left out")


def _is_data_set(path: str | Path) -> bool:
    return str(path).lower() in NAMES


def _leave_out(errors: list[SourceError], tell: Callable[[str], None]) -> None:
    """Say that files are left out, each once."""
    while errors:
        tell(f"{errors.pop(0)}; left out")


def _of_sensors(files: Sequence[File], options: ReadOptions, errors: list[SourceError]) -> Iterator[Recording]:
    """Recordings of files that hold a sensor each: one with several streams; what cannot be read is added to the errors."""
    folder, inputs = files[0].folder, {file: _inputs_of(file.stream, options) for file in files}
    parts, refused = dict[str, list[Recording]](), list[SourceError]()
    if not any(inputs.values()):  # the channels that the recipe names may be in one file alone
        for file in files:
            with contextlib.suppress(SourceError):
                parts[file.path] = list(_recordings(file, options))
        if len(parts) == 1:
            yield from next(iter(parts.values()))
            return
        stream = options.stream_name or ", ".join(item.stream for item in options.inputs)
        streams = ", ".join(file.stream for file in files)
        wrong = f"is one recording of the streams {streams}; there is no `{stream}`: name one of these, or the file"
        raise SourceError(wrong, folder)
    for file in (file for file in files if inputs[file]):
        try:
            for part in format_of(file).read(file, replace(options, inputs=inputs[file], stream_name=None)):
                parts.setdefault(part.session, []).append(part)
        except SourceError as error:
            refused.append(error)
    if not parts:
        raise refused[0]
    errors += refused
    beside = {labels.path: file for file in files if (labels := file.labels_file())}
    for session, sensors in parts.items():
        most = max(sensors, key=lambda part: part.streams[0].count)
        several = [part for part in sensors if part.start_ns < most.end_ns and part.end_ns > most.start_ns]
        for part in (part for part in sensors if part not in several):
            wrong = f"shares no time with {Path(most.path).name}: is its clock another one?"
            errors.append(SourceError(wrong, part.path))
        longest = max((part.labels for part in several), key=len)
        notes = [f"{part.streams[0].header.format.stream}: {note}" for part in several for note in part.notes]
        metadata = {key: text for part in several for key, text in part.metadata.items()}
        subject = next((part.subject for part in several if part.subject), None)
        recording = Recording(
            session, [stream for part in several for stream in part.streams], longest, subject, metadata, folder, notes
        )
        yield _with_labels(recording, replace(files[0], path=folder, stream=""), options, beside.values())


def _inputs_of(stream: str, options: ReadOptions) -> tuple[InputOptions, ...]:
    """What is read of a stream that a file is: as the recipe says, or all."""
    if options.stream_name not in (None, stream):
        return ()
    asked = [item for item in options.inputs if item.stream in (stream, stream.partition(".")[0])]
    return tuple(replace(item, stream=stream) for item in asked) if options.inputs else (InputOptions(stream),)


def _recordings(file: File, options: ReadOptions) -> Iterator[Recording]:
    for recording in format_of(file).read(file, options):
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


def label_keys(paths: Sequence[str | Path]) -> list[str]:
    """Keys of all labels JSON that :func:`read` would find for these paths, in their order."""
    keys: dict[str, None] = {}
    for file in find([path for path in paths if not _is_data_set(path)]):
        beside = file.labels_file()
        if beside is not None:
            with beside.open() as raw:
                keys |= dict.fromkeys(LabelsJson(beside.path, raw.read()).keys)
    return list(keys)
