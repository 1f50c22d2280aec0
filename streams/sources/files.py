"""Paths and URLs as files to read. In: paths, folders, fsspec URLs. Out: :class:`File` objects that can be opened, with
their sessions' names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from streams.errors import SourceError


@dataclass(frozen=True, slots=True)
class File:
    """One file.

    Attributes
    ----------
    path : str
        As the user would name it.
    session : str
        Its session's name where nothing in it says otherwise: the stem, with its folders in front if several files
        share the stem.
    system : object, optional
        fsspec file system of a URL; None for a local file.
    """

    path: str
    session: str
    system: Any = None

    @property
    def suffix(self) -> str:
        """Lower-case suffix with its dot."""
        return PurePosixPath(self.path.replace("\\", "/")).suffix.lower()

    def open(self) -> IO[bytes]:
        """The file's bytes.

        Raises
        ------
        SourceError
            If it cannot be opened.
        """
        try:
            return cast(IO[bytes], self.system.open(self.path, "rb")) if self.system else open(self.path, "rb")
        except OSError as error:
            raise SourceError(f"cannot be opened ({error.strerror or error})", self.path) from None


def find(paths: Sequence[str | Path], suffixes: Sequence[str], in_folders: Sequence[str]) -> Iterator[File]:
    """Files of paths, folders (sorted, with their subfolders) and URLs.

    Parameters
    ----------
    paths : sequence of str or Path
        What the user gave.
    suffixes : sequence of str
        Those that can be read; naming another is an error.
    in_folders : sequence of str
        Those to take from a folder; others there are passed over.

    Raises
    ------
    SourceError
        If a path does not exist, holds nothing that can be read, or is of another kind.
    """
    found: list[tuple[str, PurePosixPath, Any]] = []
    for path in paths:
        found += (
            _remote(str(path), suffixes, in_folders) if "://" in str(path) else _local(Path(path), suffixes, in_folders)
        )
    unique = list({str(item[0]): item for item in found}.values())
    stems = Counter(parts.stem for _, parts, _ in unique)
    for path_text, parts, system in unique:
        shared = stems[parts.stem] > 1
        name = (
            "-".join(part for part in (*parts.parts[-3:-1], parts.stem) if part not in ("/", "..", "."))
            if shared
            else parts.stem
        )
        yield File(path_text, name, system)


def _local(path: Path, suffixes: Sequence[str], in_folders: Sequence[str]) -> list[tuple[str, PurePosixPath, Any]]:
    if path.is_dir():
        files = sorted(
            p for p in path.rglob("*") if p.suffix.lower() in in_folders and p.is_file() and not _hidden(p, path)
        )
        if not files:
            raise SourceError(f"the folder holds no file that can be read ({', '.join(in_folders)})", path)
        return [(str(file), PurePosixPath(file.as_posix()), None) for file in files]
    if not path.exists():
        raise SourceError("no such file or folder", path)
    _check_suffix(str(path), path.suffix.lower(), suffixes)
    return [(str(path), PurePosixPath(path.as_posix()), None)]


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _remote(url: str, suffixes: Sequence[str], in_folders: Sequence[str]) -> list[tuple[str, PurePosixPath, Any]]:
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
    return [(name, PurePosixPath(name), system) for name in files]


def _check_suffix(path: str, suffix: str, suffixes: Sequence[str]) -> None:
    if suffix not in suffixes:
        raise SourceError(f"cannot read {suffix or 'a file without suffix'}; known are {', '.join(suffixes)}", path)
