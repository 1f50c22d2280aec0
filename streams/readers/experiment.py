"""Experiment JSON: a data set in one file. In: ``{"dirname", "labelFiles": [{"filePath"}], "segments", "metadata"}``, on
disk or under a URL. Out: its recordings and their labels as files; a copy with results.

Where a file is looked for: `filePath` as it stands if that is absolute or a URL; then `filePath`, and what is left of it
without its first folders, down to the name alone (experiments are written on other machines), each time in the JSON's
folder, in `dirname` there, in the folder above, and in `dirname` there. The first that is there counts. A recording has
the labels' name without ``.labels.json``, with a suffix that can be read, beside the labels or in one of these folders.
Without `labelFiles` all recordings in `dirname` are meant, with the labels beside them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from streams.errors import SourceError
from streams.files import write_whole
from streams.readers.words import brief

SUFFIX = ".json"
#: Of recordings, the first that is there counts.
_RECORDED = (".mcap", ".parquet", ".pq", ".csv", ".tsv", ".txt")
_LABELS = ".labels.json"
_MOST_TOLD = 8


@dataclass(frozen=True, slots=True)
class Experiment:
    """What an experiment JSON says."""

    path: str  # file or URL
    dirname: str = ""  # folder of its recordings, or empty
    label_files: tuple[str, ...] = ()
    segments: tuple[Mapping[str, Any], ...] = ()  # the plan's, as written; not read by Kymo
    content: Mapping[str, Any] = field(default_factory=dict)  # all of it, as parsed

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What it says of itself: rate, duration, levels …"""
        found = self.content.get("metadata")
        return found if isinstance(found, Mapping) else {}


@dataclass(frozen=True, slots=True)
class Found:
    """A recording of an experiment: paths in `system`, an fsspec file system, or None for this machine's disk."""

    path: str
    labels: str | None
    system: Any = None


@dataclass(frozen=True, slots=True)
class _Tree:
    """A file system as far as it is needed here."""

    system: Any = None

    def is_file(self, path: str) -> bool:
        return bool(self.system.isfile(path)) if self.system else Path(path).is_file()

    def is_folder(self, path: str) -> bool:
        return bool(self.system.isdir(path)) if self.system else Path(path).is_dir()

    def files(self, folder: str) -> list[str]:
        if self.system:
            return sorted(map(str, self.system.find(folder)))
        return sorted(path.as_posix() for path in Path(folder).rglob("*") if path.is_file())

    def read(self, path: str) -> bytes:
        return bytes(self.system.cat_file(path)) if self.system else Path(path).read_bytes()


def _place(path: str) -> tuple[_Tree, str]:
    """The file system of a path or URL, and the path in it."""
    if "://" not in path:
        return _Tree(), Path(path).as_posix()
    try:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise SourceError("URLs are read with fsspec, which is not installed: pip install fsspec", path) from None
    try:
        system, inner = url_to_fs(path)
    except (OSError, ValueError, ImportError) as error:
        raise SourceError(f"cannot be reached ({error})", path) from None
    return _Tree(system), str(inner)


def load_experiment(path: str | Path) -> Experiment:
    """An experiment JSON, checked."""
    text = str(path)
    tree, inner = _place(text)
    try:
        content = json.loads(tree.read(inner))
    except OSError as error:
        raise SourceError(f"cannot be read ({error.strerror or error})", text) from None
    except (ValueError, RecursionError) as error:
        raise SourceError(f"is no JSON ({error})", text) from None
    expected = 'expected an experiment, {"dirname": …, "labelFiles": [{"filePath": …}]}'
    if not isinstance(content, dict) or not content.keys() & {"dirname", "labelFiles"}:
        hint = "; labels alone are found beside their recording, name that" if _is_labels(content) else ""
        raise SourceError(f"is no experiment JSON: {expected}{hint}", text)
    dirname, segments = content.get("dirname", ""), content.get("segments", [])
    if not isinstance(dirname, str):
        raise SourceError(f"`dirname` is {brief(repr(dirname))}, expected a folder's name", text)
    if not isinstance(segments, list) or not all(isinstance(one, dict) for one in segments):
        raise SourceError("`segments` is no list of objects", text)
    return Experiment(text, dirname, tuple(_label_files(content, text)), tuple(segments), content)


def _is_labels(content: object) -> bool:
    return isinstance(content, dict) and isinstance(content.get("events"), list)


def _label_files(content: Mapping[str, Any], path: str) -> Iterator[str]:
    listed = content.get("labelFiles", [])
    if not isinstance(listed, list):
        raise SourceError(f"`labelFiles` is {brief(repr(listed))}, expected a list", path)
    for i, item in enumerate(listed):
        named = item.get("filePath") if isinstance(item, dict) else None
        if not isinstance(named, str) or not named.strip():
            raise SourceError(f'labelFiles[{i}] is {brief(repr(item))}, expected {{"filePath": "…"}}', path)
        yield named.strip()


def find_experiment(experiment: Experiment) -> list[Found]:
    """Its recordings, in its order."""
    tree, inner = _place(experiment.path)
    folders = _folders(PurePosixPath(inner).parent, experiment.dirname)
    if not experiment.label_files:
        return _whole_folder(experiment, tree, folders)
    found: dict[tuple[int, str], str] = {}
    out = []
    for name in experiment.label_files:
        where, labels = _labels_of(name, tree, folders, experiment.path)
        known = found.setdefault((id(where.system), labels), name)
        if known is not name:
            raise SourceError(
                f"`{known}` and `{name}` both lead to {labels}; give them different paths", experiment.path
            )
        out.append(Found(_recording_of(labels, where, folders, experiment.path), labels, where.system))
    return out


def _folders(here: PurePosixPath, dirname: str) -> list[PurePosixPath]:
    """Where files are looked for, in this order."""
    inside = dirname.replace("\\", "/")
    out = [here, here / inside, here.parent, here.parent / inside]
    base = PurePosixPath(inside).name
    return list(dict.fromkeys([*out, here / base, here.parent / base] if base else out))


def _labels_of(name: str, tree: _Tree, folders: Sequence[PurePosixPath], path: str) -> tuple[_Tree, str]:
    if "://" in name:
        where, inner = _place(name)
        if where.is_file(inner):
            return where, inner
    parts = PurePosixPath(name.partition("://")[2] or name.replace("\\", "/")).parts
    tails = [PurePosixPath(*parts[i:]) for i in range(len(parts))]
    tried = list(dict.fromkeys(str(folder / tail) for tail in tails for folder in folders))
    for candidate in tried:
        if tree.is_file(candidate):
            return tree, candidate
    raise SourceError(f"labelFiles names `{name}`, which is nowhere: {_looked(tried)}", path)


def _looked(tried: Sequence[str]) -> str:
    shown = [*tried[: _MOST_TOLD // 2], *tried[-_MOST_TOLD // 2 :]] if len(tried) > _MOST_TOLD else list(tried)
    rest = f" and {len(tried) - len(shown)} more places" if len(tried) > len(shown) else ""
    return f"looked for {', '.join(dict.fromkeys(shown))}{rest}"


def _recording_of(labels: str, tree: _Tree, folders: Sequence[PurePosixPath], path: str) -> str:
    """The recording of a labels JSON."""
    file = PurePosixPath(labels)
    stem = file.name.removesuffix(_LABELS) if file.name.endswith(_LABELS) else file.stem
    places = list(dict.fromkeys([file.parent, *folders]))
    for folder in places:
        for suffix in _RECORDED:
            if tree.is_file(candidate := str(folder / f"{stem}{suffix}")):
                return candidate
    named = f"{stem}{_RECORDED[0]} (or {', '.join(_RECORDED[1:])})"
    raise SourceError(f"no recording {named} belongs to {labels}: looked in {', '.join(map(str, places))}", path)


def _whole_folder(experiment: Experiment, tree: _Tree, folders: Sequence[PurePosixPath]) -> list[Found]:
    if not experiment.dirname:
        raise SourceError("names neither `labelFiles` nor `dirname`: it has no recording", experiment.path)
    base = PurePosixPath(experiment.dirname.replace("\\", "/")).name
    places = [folder for folder in folders if folder.name == base]
    folder = next((place for place in places if tree.is_folder(str(place))), None)
    if folder is None:
        looked = _looked([str(place) for place in places])
        raise SourceError(f"`dirname` is {experiment.dirname}, which is no folder: {looked}", experiment.path)
    files = [name for name in tree.files(str(folder)) if PurePosixPath(name).suffix.lower() in _RECORDED[:-1]]
    if not files:
        raise SourceError(f"{folder} holds no recording ({', '.join(_RECORDED[:-1])})", experiment.path)
    return [Found(name, None, tree.system) for name in files]


def write_results(experiment: Experiment, out: Path, results: Mapping[str, Any]) -> None:
    """Write a copy of an experiment with a member ``results``."""
    content = dict(experiment.content)
    local = "://" not in experiment.path
    if experiment.label_files and not (local and Path(experiment.path).resolve().parent == out.resolve().parent):
        paths = [_from(found, out) for found in find_experiment(experiment)]
        listed = zip(content["labelFiles"], paths, strict=True)
        content["labelFiles"] = [{**item, "filePath": path} for item, path in listed]
    text = json.dumps({**content, "results": dict(results)}, indent=2, ensure_ascii=False) + "\n"
    try:
        write_whole(out, text)
    except OSError as error:
        raise SourceError(f"cannot be written ({error.strerror or error})", out) from None


def _from(found: Found, out: Path) -> str:
    """How an experiment at `out` names the labels of a recording."""
    assert found.labels is not None
    if found.system is not None:
        return str(found.system.unstrip_protocol(found.labels))
    return Path(os.path.relpath(found.labels, out.resolve().parent)).as_posix()
