"""Files as recordings. In: paths, folders, URLs, the name of a shipped data set. Out: Recordings, one a session, times in Unix ns.

One reader a format, found by :data:`streams.readers.files.FORMATS`. Whatever one repairs or guesses stands in the recording's `notes`;
what it cannot repair is a SourceError with file and row.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from kymo.streams.archive.format import is_archive
from kymo.streams.errors import EmptyKeepError, SourceError, SourceWarning
from kymo.streams.labels.labels import LabelsJson
from kymo.streams.readers.basic_motions import NAMES, read_basic_motions
from kymo.streams.readers.files import File, find, is_url, not_read
from kymo.streams.readers.together import ToCome, by_session, of_streams, recordings_of
from kymo.streams.recording import ReadOptions, Recording
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
        One a session. Only one file's worth is held (of a CSV or Parquet file with many sessions, one session's), and sessions of
        several files that lack a stream yet.

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
        from kymo.streams.archive.read import ArchiveReader

        yield from ArchiveReader(Path(path)).recordings(options)
    on_disk = [path for path in paths if path not in archives and not _is_data_set(path)]
    foreign = [error for path in on_disk if not is_url(path) for error in not_read(Path(path))]
    errors = list[SourceError]()
    groups: dict[str, list[File]] = {}
    for file in find(on_disk, options=options):
        groups.setdefault(file.part_of or file.path, []).append(file)
    inputs = [item for item in options.inputs if options.stream_name in (None, item.stream)]
    to_come = ToCome(groups.values(), options, inputs) if len(inputs) > 1 else None
    recordings = _of_files(groups.values(), options, errors, tell, to_come, bool(archives or names))
    yield from by_session(recordings, inputs, errors, to_come) if to_come else recordings
    _leave_out(errors + foreign, tell)


def _of_files(
    groups: Iterable[Sequence[File]],
    options: ReadOptions,
    errors: list[SourceError],
    tell: Callable[[str], None],
    to_come: ToCome | None,
    readable: bool,
) -> Iterator[Recording]:
    """Recordings of files; what cannot be read is told, or added to the errors, as long as another can be, or was."""
    emptied = list[SourceError]()
    for files in groups:
        if to_come:
            to_come.begin(files)
        try:
            for recording in (
                of_streams(files, options, errors) if files[0].stream else recordings_of(files[0], options)
            ):
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
    if emptied:
        files_without = many(len(emptied), "file")
        tell(f"keep = {options.keep!r} leaves no row of {files_without}, such as {emptied[0].path}; left out")


def _is_data_set(path: str | Path) -> bool:
    return str(path).lower() in NAMES


def _leave_out(errors: list[SourceError], tell: Callable[[str], None]) -> None:
    while errors:
        tell(f"{errors.pop(0)}; left out")


def label_keys(paths: Sequence[str | Path]) -> list[str]:
    """Keys of all labels JSON that :func:`read` would find for these paths, in their order."""
    keys: dict[str, None] = {}
    for file in find([path for path in paths if not _is_data_set(path)]):
        beside = file.labels_file()
        if beside is not None:
            with beside.open() as raw:
                keys |= dict.fromkeys(LabelsJson(beside.path, raw.read()).keys)
    return list(keys)
