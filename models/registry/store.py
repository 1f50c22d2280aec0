"""Where a registry's bytes are. In: a folder or an fsspec URL. Out: bundles as local folders, logs as lines.

A local store is safe under concurrent use and kills: a bundle's folder appears whole by a rename, a line is appended under a lock that
the kernel frees when its holder dies, and half a line at the end is ignored and closed by the next one.

How a remote store does without locks and appending, :mod:`models.registry.remote` says.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from models.registry.manifest import MANIFEST
from streams.errors import BundleError
from streams.file_names import is_inside


class Store(Protocol):
    """What a registry asks of its store; paths are relative, parts separated by a slash."""

    url: str

    def lock(self, folder: str) -> contextlib.AbstractContextManager[None]:
        """Keep others from adding lines in `folder`."""

    def adding(self, folder: str) -> contextlib.AbstractContextManager[None]:
        """Keep others from adding bundles in `folder`, where two that add the same one would be in each other's way."""

    def lines(self, path: str) -> list[bytes]:
        """Whole lines of a file; none where there is no file."""

    def append(self, path: str, lines: list[bytes], before: list[bytes]) -> None:
        """Add lines at the end of a file that has the lines `before`; the caller holds the lock."""

    def folders(self, path: str) -> list[str]:
        """Names of the folders inside a folder, sorted."""

    def add(self, path: str, contents: Mapping[str, bytes]) -> None:
        """Write a bundle's folder whole, in place of one that is there."""

    def folder(self, path: str) -> Path | None:
        """A bundle as a local folder; None where there is none."""


class LocalStore:
    """A folder of this machine, or one that it has mounted."""

    def __init__(self, root: Path) -> None:
        self.root, self.url = root, str(root)

    @contextlib.contextmanager
    def lock(self, folder: str) -> Iterator[None]:
        """See :meth:`Store.lock`."""
        (self.root / folder).mkdir(parents=True, exist_ok=True)
        with (self.root / folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    adding = lock

    def lines(self, path: str) -> list[bytes]:
        """See :meth:`Store.lines`."""
        try:
            return whole_lines((self.root / path).read_bytes())
        except FileNotFoundError:
            return []

    def append(self, path: str, lines: list[bytes], before: list[bytes]) -> None:
        """See :meth:`Store.append`; under this lock nobody else can have written."""
        with (self.root / path).open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            torn = size > 0 and file.read(1) != b"\n"  # its writer was killed
            file.write(b"\n" * torn + b"".join(line + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())

    def folders(self, path: str) -> list[str]:
        """See :meth:`Store.folders`."""
        there = (self.root / path).iterdir() if (self.root / path).is_dir() else []
        return sorted(entry.name for entry in there if entry.is_dir() and not entry.name.startswith("."))

    def add(self, path: str, contents: Mapping[str, bytes]) -> None:
        """See :meth:`Store.add`; the caller holds the lock, so what other writers left unfinished nobody will finish."""
        folder = self.root / path
        for left in folder.parent.glob(f".{folder.name}.*-*"):
            shutil.rmtree(left, ignore_errors=True)
        replace_folder(folder, contents)

    def folder(self, path: str) -> Path | None:
        """See :meth:`Store.folder`."""
        return self.root / path if (self.root / path / MANIFEST).is_file() else None


def store_at(url: str, cache: Path) -> Store:
    """The store at a path or URL."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme != "file":
        from models.registry.remote import RemoteStore

        return RemoteStore(url, cache)
    return LocalStore(Path(rest if separator else url).expanduser())


def replace_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write a folder; it is there whole or not at all."""
    if outside := [name for name in contents if not is_inside(name)]:
        raise BundleError(f"{folder}: the file name {outside[0][:80]!r} leads out of it; the bundle is not taken")
    new, old = (folder.with_name(f".{folder.name}.{kind}-{os.getpid()}") for kind in ("new", "old"))
    try:
        for name, data in contents.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_bytes(data)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def whole_lines(data: bytes) -> list[bytes]:
    """Lines that end, and hold something."""
    return [line for line in data.split(b"\n")[:-1] if line]
