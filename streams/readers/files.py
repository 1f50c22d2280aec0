"""Paths and URLs as files to read. In: paths, folders, experiment JSON, fsspec URLs. Out: :class:`File` objects that can be
opened, with their sessions' names; a copy of an experiment with results.

An experiment is a data set in one file: ``{"dirname", "labelFiles": [{"filePath"}], "segments", "metadata"}``, on disk or under a URL.
It is written on another machine, so its files are looked for without their first folders, too, down to the name alone: docs/files.md.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path, PurePath, PurePosixPath
from typing import IO, TYPE_CHECKING, Annotated, Any, NamedTuple, cast

from kymo.streams.errors import SourceError
from kymo.streams.files import write_whole
from kymo.streams.readers.file_names import WORKBOOKS, with_streams
from kymo.streams.readers.foreign import LOOKED_AT, foreign_format, foreign_json
from kymo.streams.readers.zip_file import SUFFIX as ZIP_SUFFIX
from kymo.streams.readers.zip_file import ZipFolder
from kymo.streams.schema import Rules, SchemaError, read
from kymo.streams.words import brief

if TYPE_CHECKING:
    from kymo.streams.recording import ReadOptions, Recording


class FileFormat(NamedTuple):
    reader: str  # ``module:function`` that makes Recordings of a File and ReadOptions; loaded when it is needed
    suffixes: tuple[str, ...]
    holds: Callable[[bytes], bool] | None = None  # whether a file is of that format, by its first bytes

    def read(self, file: File, options: ReadOptions) -> Iterator[Recording]:
        module, _, function = self.reader.partition(":")
        recordings: Iterator[Recording] = getattr(import_module(module), function)(file, options)
        return recordings


_KEYPOINTS = re.compile(rb"(\xef\xbb\xbf)?(keypoint,x,y\b.*\n)?A(,[^,\n]*){2,3}\nB,.*\nC,.*\n[D-Q],")
#: What reads a file: the first row that has its suffix and takes its first bytes.
FORMATS = (
    FileFormat("kymo.streams.readers.keypoints:read_keypoints", (".csv",), lambda start: bool(_KEYPOINTS.match(start))),
    FileFormat("kymo.streams.readers.csv_file:read_csv", (".csv", ".tsv", ".txt")),
    FileFormat("kymo.streams.readers.parquet_file:read_parquet", (".parquet", ".pq")),
    FileFormat("kymo.streams.readers.mcap_file:read_mcap", (".mcap",)),
    FileFormat("kymo.streams.readers.xlsx_file:read_xlsx", WORKBOOKS, lambda start: start.startswith(b"PK\x03\x04")),
)
#: Suffixes of files that can be read.
SUFFIXES = tuple(dict.fromkeys(suffix for row in FORMATS for suffix in row.suffixes))
#: Those that are read where they are found in a folder (a .txt there is as likely a readme).
_TEXT = ".txt"
FOLDER_SUFFIXES = tuple(suffix for suffix in SUFFIXES if suffix != _TEXT)
EXPERIMENT_SUFFIX = ".json"
#: Suffixes of an experiment's recordings: the first that is there counts.
_RECORDED = tuple(dict.fromkeys(suffix for row in reversed(FORMATS[:-1]) for suffix in row.suffixes))
LABELS_SUFFIX = ".labels.json"
_HARDLY = (".html", ".htm", ".xml", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".pdf", ".pkl", ".npy", ".npz")
_MOST_PLACES = 8  # that an error names
_LOCK, _OF_LOCK = "~$", "is no workbook, but the mark of a program that has one open"
_COPY = re.compile(r"[ _-]+(\(\d+\)|copy)$", re.IGNORECASE)


class Disk:
    """This machine's disk, as far as :class:`File` needs a file system of fsspec's."""

    isfile, isdir = staticmethod(os.path.isfile), staticmethod(os.path.isdir)

    def find(self, folder: str) -> list[str]:
        """Paths of all files in a folder and those below."""
        return [str(path) for path in sorted(Path(folder).rglob("*")) if path.is_file()]

    def open(self, path: str, mode: str = "rb") -> IO[Any]:
        return open(path, mode)

    def unstrip_protocol(self, path: str) -> str:
        """The path, as there is no protocol."""
        return path


DISK = Disk()


@dataclass(frozen=True, slots=True)
class File:
    path: str  # as the user would name it
    # its session's name where nothing in it says otherwise: the stem, with its folders in front if several files share the stem
    session: str = ""
    system: Any = DISK  # the file system: of a URL one of fsspec's
    # its labels JSON, in the same system, where an experiment names it; else ``X.labels.json`` is looked for beside it
    labels: str | None = None
    in_folder: bool = False  # whether nobody named it: it was there in a folder
    stream: str = ""  # what it holds of its session, where that is several files
    part_of: str = ""  # what these have in common: their folder, or the path without what says the stream
    no_recording: str = ""  # why it is passed over

    @property
    def place(self) -> PurePosixPath:
        return PurePosixPath(self.path.replace("\\", "/"))

    @property
    def folder(self) -> str:
        return str(self.place.parent)

    @property
    def suffix(self) -> str:
        return self.place.suffix.lower()

    def beside(self, name: str) -> File:
        return replace(self, path=str(self.place.with_name(name)), labels=None, stream="", part_of="")

    def open(self) -> IO[bytes]:
        try:
            return cast(IO[bytes], self.system.open(self.path, "rb"))
        except OSError as error:
            raise SourceError(f"cannot be opened ({error.strerror or error})", self.path) from None

    def exists(self) -> bool:
        return bool(self.system.isfile(self.path))

    def labels_file(self) -> File | None:
        paths = [self.labels or str(self.place.with_suffix(LABELS_SUFFIX))]
        paths += [f"{self.part_of}{LABELS_SUFFIX}"] if self.stream else []
        places = [(path, self.system) for path in paths]
        if isinstance(self.system, ZipFolder):
            places.append((str(self.system.path.with_suffix(LABELS_SUFFIX)), DISK))
        return next((labels for place in places if (labels := File(place[0], self.session, place[1])).exists()), None)


def format_of(file: File) -> FileFormat:
    """What reads a file that :func:`find` gave: by its suffix, where that says nothing as text."""
    if file.no_recording:
        raise SourceError(file.no_recording, file.path)
    rows = [row for row in FORMATS if file.suffix in row.suffixes]
    with file.open() as raw:
        start = raw.read(LOOKED_AT)
    certain = next((row for row in rows if row.holds and row.holds(start)), None)
    if not certain and (foreign := foreign_format(start, file.suffix, bool(rows))):
        raise SourceError(foreign, file.path)
    return certain or next(row for row in (*rows, *FORMATS) if not row.holds)


def find(
    paths: Sequence[str | Path],
    suffixes: Sequence[str] = SUFFIXES,
    in_folders: Sequence[str] = FOLDER_SUFFIXES,
    options: ReadOptions | None = None,  # which streams there are, and what names say
) -> Iterator[File]:
    """Files of paths, folders (sorted, with their subfolders), experiments and URLs."""
    files: list[File] = []
    for path in paths:
        system, inner = _located(str(path))
        is_json = PurePosixPath(str(path)).suffix.lower() == EXPERIMENT_SUFFIX
        if is_json and (system is not DISK or not system.isdir(inner)):
            files += find_experiment(load_experiment(path))
        else:
            files += _files_of(system, inner, path, suffixes, in_folders)
    unique = with_streams({file.path: file for file in files}.values(), options)
    places = [
        Path(file.part_of).resolve() if file.stream else PurePosixPath(Path(file.path).as_posix()) for file in unique
    ]
    names = [_less_zip(place.name) if file.stream else place.stem for file, place in zip(unique, places, strict=True)]
    alike = Counter(name for name, _ in dict.fromkeys(zip(names, places, strict=True)))
    for file, name, place in zip(unique, names, places, strict=True):
        folders = place.parts[-3:-1] if alike[name] > 1 else ()
        if isinstance(file.system, ZipFolder) and not file.stream:  # apps give what is inside the same name each time
            folders = place.parts[len(file.system.path.parts) - 1 : -1]
        parts = [_less_zip(part) for part in folders if part not in ("/", "..", ".")]
        yield replace(file, session="-".join([*parts, name]))


def _less_zip(name: str) -> str:
    return name[: -len(ZIP_SUFFIX)] if name.lower().endswith(ZIP_SUFFIX) else name


def _located(path: str) -> tuple[Any, str]:
    """Where a path or URL leads: the file system, and the path in it."""
    if not is_url(path):
        return DISK, str(Path(path))
    try:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise SourceError("URLs are read with fsspec, which is not installed: pip install fsspec", path) from None
    try:
        system, place = url_to_fs(path)
    except (OSError, ValueError, ImportError) as error:
        raise SourceError(f"cannot be reached ({error})", path) from None
    return system, str(place)


def is_url(path: str | Path) -> bool:
    return "://" in str(path)


def _files_of(
    system: Any, place: str, path: str | Path, suffixes: Sequence[str], in_folders: Sequence[str]
) -> list[File]:
    try:
        is_folder = system.isdir(place)
        names = system.find(place) if is_folder else [place] if system.isfile(place) else []
    except (OSError, ValueError, ImportError) as error:
        raise SourceError(f"cannot be reached ({error})", path) from None
    if not names and not is_folder:
        raise SourceError("no such file or folder", path)
    if not is_folder:
        suffix = PurePosixPath(place).suffix.lower()
        if suffix == ZIP_SUFFIX and system is DISK and (files := _zipped(place, in_folders)):
            return files
        # Of any recording, what a file holds says what it is.
        if suffix not in suffixes and (suffixes is not SUFFIXES or system is not DISK):
            raise SourceError(f"cannot read {suffix or 'a file without suffix'}; known are {', '.join(suffixes)}", path)
        lock = PurePosixPath(place).name.startswith(_LOCK)
        return [File(place, system=system, in_folder=lock, no_recording=_OF_LOCK * lock)]
    files = list[File]()
    for name in (name for name in names if not _hidden(name, place)):
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in in_folders:
            files.append(File(name, system=system, in_folder=True, no_recording=_passed_over(name, names, system)))
        elif suffix == ZIP_SUFFIX and system is DISK:
            with contextlib.suppress(SourceError):  # it is told by :func:`not_read`
                members = _zipped(name, in_folders)
                beside = [f"{name[: -len(ZIP_SUFFIX)]}/{file.path[len(name) + 1 :]}" for file in members]
                if all(map(system.isfile, beside)) and [Path(path).stat().st_size for path in beside] == [
                    file.system.size(file.path) for file in members
                ]:
                    what = f"holds what is unpacked in {Path(name).stem}"
                    members = [File(name, in_folder=True, no_recording=what)] * bool(members)
                files += members
    if not files:
        foreign = not_read(Path(place))[:1] if system is DISK else []
        also = "".join(f"; {Path(str(error.path)).name} {error.message}" for error in foreign)
        known = ", ".join(in_folders)
        raise SourceError(f"the folder holds no file that can be read ({known}){also}", path)
    return files


def _passed_over(name: str, names: Sequence[str], system: Any) -> str:
    """Why a file of a folder is none of its recordings: a lock of a program, or a copy; empty where it is."""
    place = PurePosixPath(name.replace("\\", "/"))
    if place.name.startswith(_LOCK):
        return _OF_LOCK
    first = str(place.with_name(_COPY.sub("", place.stem) + place.suffix))
    if first == str(place) or first not in names or system is not DISK:
        return ""
    return f"is a copy of {Path(first).name}" if filecmp.cmp(name, first, shallow=False) else ""


def _zipped(path: str, in_folders: Sequence[str]) -> list[File]:
    folder = ZipFolder(Path(path))
    names = [name for name in folder.find("") if PurePosixPath(name).suffix.lower() in in_folders]
    return [File(name, system=folder, in_folder=True) for name in names]


def not_read(path: Path) -> list[SourceError]:
    """Why files of a folder are not read whose formats are known, one a suffix; nothing of what is hardly a recording."""
    first: dict[str, list[str]] = {}
    for name in DISK.find(str(path)) if path.is_dir() else ():
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in (*SUFFIXES, *_HARDLY, "") or _hidden(name, str(path)):
            continue
        with contextlib.suppress(SourceError):
            if suffix == ZIP_SUFFIX and _zipped(name, FOLDER_SUFFIXES):
                continue
        first.setdefault(suffix, []).append(name)
    errors = []
    for suffix, names in first.items():
        if known := foreign_format(b"", suffix, False):
            more = f" (and {len(names) - 1} more {suffix})" if len(names) > 1 else ""
            errors.append(SourceError(known + more, names[0]))
    return errors


def _hidden(name: str, folder: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePath(name).parts[len(PurePath(folder).parts) :])


Level = Annotated[str, Rules(enum=("none", "low", "high"))]


@dataclass(frozen=True)
class _Texts:
    description: str = ""


@dataclass(frozen=True)
class _About:
    """What an experiment says of its recordings; ``classification_type`` is the labels' key."""

    classification_type: str = ""
    sample_rate: Annotated[float, Rules(exclusiveMinimum=0, maximum=10**9)] = 1
    total_duration_s: Annotated[float, Rules(minimum=0, maximum=10**9)] = 0
    distortion_levels: Annotated[tuple[Level, ...], Rules(expected="a list of none, low, high")] = ()


@dataclass(frozen=True)
class _Segment:
    """A segment of the plan, as far as a reader may be misled by it."""

    duration_s: Annotated[float, Rules(minimum=0, maximum=10**9)] = 0
    magnetic_distortion: Annotated[float, Rules(minimum=0, maximum=10**30)] = 0


@dataclass(frozen=True)
class _Distortion:
    level: Level = "none"


@dataclass(frozen=True, slots=True)
class Experiment:
    path: str  # file or URL
    dirname: str = ""  # folder of its recordings, or empty
    label_files: tuple[str, ...] = ()
    segments: tuple[Mapping[str, Any], ...] = ()  # the plan's, as written; not read by Kymo
    content: Mapping[str, Any] = field(default_factory=dict)  # all of it, as parsed

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What it says of itself: rate, duration, levels …"""
        metadata = self.content.get("metadata")
        return metadata if isinstance(metadata, Mapping) else {}


def load_experiment(path: str | Path) -> Experiment:
    text = str(path)
    system, place = _located(text)
    try:
        if not system.isfile(place):
            raise SourceError("no such file or folder", text)
        with system.open(place, "rb") as raw:
            content = json.load(raw)
    except OSError as error:
        raise SourceError(f"cannot be read ({error.strerror or error})", text) from None
    except (ValueError, RecursionError) as error:
        raise SourceError(f"is no JSON ({error})", text) from None
    expected = 'expected an experiment, {"dirname": …, "labelFiles": [{"filePath": …}]}'
    if not isinstance(content, dict) or not content.keys() & {"dirname", "labelFiles"}:
        hint = foreign_json(content)
        raise SourceError(f"is no experiment JSON{'; ' + hint if hint else ': ' + expected}", text)
    dirname, segments = content.get("dirname", ""), content.get("segments", [])
    if not isinstance(dirname, str):
        raise SourceError(f"`dirname` is {brief(repr(dirname))}, expected a folder's name", text)
    if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
        raise SourceError("`segments` is no list of objects", text)
    _check_members(content, text)
    items = content.get("labelFiles", [])
    if not isinstance(items, list):
        raise SourceError(f"`labelFiles` is {brief(repr(items))}, expected a list", text)
    label_files: list[Any] = [item.get("filePath") if isinstance(item, dict) else None for item in items]
    for i, name in enumerate(label_files):
        if not isinstance(name, str) or not name.strip():
            raise SourceError(f'labelFiles[{i}] is {brief(repr(items[i]))}, expected {{"filePath": "…"}}', text)
    return Experiment(text, dirname, tuple(name.strip() for name in label_files), tuple(segments), content)


def _check_members(content: Mapping[str, Any], path: str) -> None:
    """Refuse members that say what they cannot; those that are not known are left as they are."""
    parts: list[tuple[tuple[str | int, ...], type, Any]] = [((), _Texts, content)]
    parts.append((("metadata",), _About, content.get("metadata", {})))
    for i, segment in enumerate(content.get("segments", [])):
        parts.append((("segments", i), _Segment, segment))
        distortion = segment.get("mag_distortion")
        if isinstance(distortion, Mapping):
            parts.append((("segments", i, "mag_distortion"), _Distortion, distortion))
    for way, kind, members in parts:
        try:
            read(kind, members, strict=False)
        except SchemaError as wrong:
            wrong.path = (*way, *wrong.path)
            raise SourceError(str(wrong), path) from None


def find_experiment(experiment: Experiment) -> list[File]:
    system, place = _located(experiment.path)
    # Where files are looked for, in this order.
    here, inside = PurePosixPath(Path(place).as_posix()).parent, PurePosixPath(experiment.dirname.replace("\\", "/"))
    folders = [here, here / inside, here.parent, here.parent / inside]
    folders = list(dict.fromkeys([*folders, here / inside.name, here.parent / inside.name]))
    if not experiment.label_files:
        return _whole_folder(experiment, system, folders)
    names: dict[tuple[int, str], str] = {}
    files = []
    for name in experiment.label_files:
        where, labels = _labels_of(name, system, folders, experiment.path)
        first = names.setdefault((id(where), labels), name)
        if first is not name:
            raise SourceError(
                f"`{first}` and `{name}` both lead to {labels}; give them different paths", experiment.path
            )
        path = _recording_of(labels, where, folders, experiment.path)
        files.append(File(path, system=where, labels=labels))
    return files


def _labels_of(name: str, system: Any, folders: Sequence[PurePosixPath], path: str) -> tuple[Any, str]:
    if is_url(name):
        where, inner = _located(name)
        if where.isfile(inner):
            return where, inner
    parts = PurePosixPath(name.partition("://")[2] or name.replace("\\", "/")).parts
    tails = [PurePosixPath(*parts[i:]) for i in range(len(parts))]
    places = list(dict.fromkeys(str(folder / tail) for tail in tails for folder in folders))
    for place in places:
        if system.isfile(place):
            return system, place
    raise SourceError(f"labelFiles names `{name}`, which is nowhere: {_looked_for(places)}", path)


def _looked_for(places: Sequence[str]) -> str:
    shown = list(places)
    if len(places) > _MOST_PLACES:
        shown = [*places[: _MOST_PLACES // 2], *places[-_MOST_PLACES // 2 :]]
    more = f" and {len(places) - len(shown)} more places" if len(places) > len(shown) else ""
    return f"looked for {', '.join(dict.fromkeys(shown))}{more}"


def _recording_of(labels: str, system: Any, folders: Sequence[PurePosixPath], path: str) -> str:
    file = PurePosixPath(labels)
    stem = file.name.removesuffix(LABELS_SUFFIX) if file.name.endswith(LABELS_SUFFIX) else file.stem
    places = list(dict.fromkeys([file.parent, *folders]))
    for folder in places:
        for suffix in _RECORDED:
            if system.isfile(candidate := str(folder / f"{stem}{suffix}")):
                return candidate
    names = f"{stem}{_RECORDED[0]} (or {', '.join(_RECORDED[1:])})"
    raise SourceError(f"no recording {names} belongs to {labels}: looked in {', '.join(map(str, places))}", path)


def _whole_folder(experiment: Experiment, system: Any, folders: Sequence[PurePosixPath]) -> list[File]:
    if not experiment.dirname:
        raise SourceError("names neither `labelFiles` nor `dirname`: it has no recording", experiment.path)
    base = PurePosixPath(experiment.dirname.replace("\\", "/")).name
    places = [folder for folder in folders if folder.name == base]
    folder = next((place for place in places if system.isdir(str(place))), None)
    if folder is None:
        looked_for = _looked_for([str(place) for place in places])
        raise SourceError(f"`dirname` is {experiment.dirname}, which is no folder: {looked_for}", experiment.path)
    suffixes = [suffix for suffix in _RECORDED if suffix in FOLDER_SUFFIXES]
    names = [name for name in sorted(system.find(str(folder))) if PurePosixPath(name).suffix.lower() in suffixes]
    if not names:
        raise SourceError(f"{folder} holds no recording ({', '.join(suffixes)})", experiment.path)
    return [File(name, system=system) for name in names]


def write_results(experiment: Experiment, out: Path, results: Mapping[str, Any]) -> None:
    """Write a copy of an experiment with a member ``results``."""
    content = dict(experiment.content)
    local = not is_url(experiment.path)
    if experiment.label_files and not (local and Path(experiment.path).resolve().parent == out.resolve().parent):
        content["labelFiles"] = []
        for item, file in zip(experiment.content["labelFiles"], find_experiment(experiment), strict=True):
            path = str(file.system.unstrip_protocol(file.labels))
            if file.system is DISK:
                path = Path(os.path.relpath(path, out.resolve().parent)).as_posix()
            content["labelFiles"].append({**item, "filePath": path})
    text = json.dumps({**content, "results": dict(results)}, indent=2, ensure_ascii=False) + "\n"
    try:
        write_whole(out, text)
    except OSError as error:
        raise SourceError(f"cannot be written ({error.strerror or error})", out) from None
