"""Paths and URLs as files to read. In: paths, folders, experiment JSON, fsspec URLs. Out: :class:`File` objects that can be
opened, with their sessions' names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from streams.errors import SourceError
from streams.readers import experiment


@dataclass(frozen=True, slots=True)
class File:
    """One file."""

    path: str  # as the user would name it
    # its session's name where nothing in it says otherwise: the stem, with its folders in front if several files
    # share the stem
    session: str
    system: Any = None  # fsspec file system of a URL; None for a local file
    # its labels JSON, in the same system, where an experiment names it; else ``X.labels.json`` is looked for beside
    # it
    labels: str | None = None
    in_folder: bool = False  # whether nobody named it: it was there in a folder

    @property
    def suffix(self) -> str:
        """Lower-case suffix with its dot."""
        return PurePosixPath(self.path.replace("\\", "/")).suffix.lower()

    def open(self) -> IO[bytes]:
        """The file's bytes."""
        try:
            return cast(IO[bytes], self.system.open(self.path, "rb")) if self.system else open(self.path, "rb")
        except OSError as error:
            raise SourceError(f"cannot be opened ({error.strerror or error})", self.path) from None

    def labels_file(self) -> File | None:
        """Its labels JSON, if it is there."""
        path = self.labels or str(PurePosixPath(self.path.replace("\\", "/")).with_suffix(".labels.json"))
        there = self.system.isfile(path) if self.system else Path(path).is_file()
        return File(path, self.session, self.system) if there else None


_Named = tuple[str, PurePosixPath, Any, str | None, bool]


def find(paths: Sequence[str | Path], suffixes: Sequence[str], in_folders: Sequence[str]) -> Iterator[File]:
    """Files of paths, folders (sorted, with their subfolders), experiments (see :mod:`streams.readers.experiment`) and URLs."""
    found: list[_Named] = []
    for path in paths:
        if _is_experiment(path):
            found += _listed(path)
        elif "://" in str(path):
            found += _remote(str(path), suffixes, in_folders)
        else:
            found += _local(Path(path), suffixes, in_folders)
    unique = list({str(item[0]): item for item in found}.values())
    stems = Counter(parts.stem for _, parts, *_ in unique)
    for path_text, parts, system, labels, in_folder in unique:
        shared = stems[parts.stem] > 1
        name = (
            "-".join(part for part in (*parts.parts[-3:-1], parts.stem) if part not in ("/", "..", "."))
            if shared
            else parts.stem
        )
        yield File(path_text, name, system, labels, in_folder)


def _is_experiment(path: str | Path) -> bool:
    is_json = PurePosixPath(str(path)).suffix.lower() == experiment.SUFFIX
    return is_json and ("://" in str(path) or not Path(path).is_dir())


def _listed(path: str | Path) -> list[_Named]:
    if "://" not in str(path) and not Path(path).exists():
        raise SourceError("no such file or folder", path)
    there = experiment.find_experiment(experiment.load_experiment(path))
    return [(one.path, PurePosixPath(one.path), one.system, one.labels, False) for one in there]


def _local(path: Path, suffixes: Sequence[str], in_folders: Sequence[str]) -> list[_Named]:
    if path.is_dir():
        files = sorted(
            p for p in path.rglob("*") if p.suffix.lower() in in_folders and p.is_file() and not _hidden(p, path)
        )
        if not files:
            raise SourceError(f"the folder holds no file that can be read ({', '.join(in_folders)})", path)
        return [(str(file), PurePosixPath(file.as_posix()), None, None, True) for file in files]
    if not path.exists():
        raise SourceError("no such file or folder", path)
    _check_suffix(str(path), path.suffix.lower(), suffixes)
    return [(str(path), PurePosixPath(path.as_posix()), None, None, False)]


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _remote(url: str, suffixes: Sequence[str], in_folders: Sequence[str]) -> list[_Named]:
    try:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise SourceError("URLs are read with fsspec, which is not installed: pip install fsspec", url) from None
    try:
        system, path = url_to_fs(url)
        names = sorted(system.find(path)) if system.isdir(path) else [path] if system.exists(path) else []
    except (OSError, ValueError, ImportError) as error:
        raise SourceError(f"cannot be reached ({error})", url) from None
    if names == [path]:
        _check_suffix(url, PurePosixPath(path).suffix.lower(), suffixes)
        in_folders = suffixes
    files = [name for name in names if PurePosixPath(name).suffix.lower() in in_folders]
    if not files:
        raise SourceError(
            f"holds no file that can be read ({', '.join(in_folders)})" if names else "no such file or folder", url
        )
    return [(name, PurePosixPath(name), system, None, names != [path]) for name in files]


def _check_suffix(path: str, suffix: str, suffixes: Sequence[str]) -> None:
    if suffix not in suffixes:
        known = ", ".join([*suffixes, experiment.SUFFIX])
        raise SourceError(f"cannot read {suffix or 'a file without suffix'}; known are {known}", path)
