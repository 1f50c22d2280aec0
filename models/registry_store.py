"""Where a registry's bytes are. In: a folder or an fsspec URL. Out: bundles as local folders, logs as lines.

A local store is safe under concurrent use and kills: a bundle's folder appears whole by a rename, a line is appended under a lock that
the kernel frees when its holder dies, and half a line at the end is ignored and closed by the next one.

A remote store can promise less, as object stores know neither locks nor appending: a bundle is there once its manifest is, which is
written last; a log is read, written whole and read back. Of two writers at the same moment one may lose its line, and
is told so only if the other had written by the time it read back; what a reader sees is always the whole log of one of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from models.manifest import MANIFEST, read_manifest, verify
from streams.errors import BundleError


class Store(Protocol):
    """What a registry asks of its store; paths are relative, parts separated by a slash."""

    url: str

    def lock(self, folder: str) -> contextlib.AbstractContextManager[None]:
        """Keep other writers of `folder` out, as far as the store can."""

    def lines(self, path: str) -> list[bytes]:
        """Whole lines of a file; none where there is no file."""

    def append(self, path: str, lines: list[bytes]) -> None:
        """Add lines at the end of a file; the caller holds the lock."""

    def folders(self, path: str) -> list[str]:
        """Names of the folders inside a folder, sorted."""

    def add(self, path: str, contents: Mapping[str, bytes]) -> None:
        """Write a bundle's folder whole, in place of one that is there."""

    def folder(self, path: str) -> Path | None:
        """A bundle as a local folder; None where there is none."""


class LocalStore:
    """A folder of this machine, or one that it has mounted.

    Parameters
    ----------
    root : Path
        The folder; made when it is first written to.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.url = root, str(root)

    @contextlib.contextmanager
    def lock(self, folder: str) -> Iterator[None]:
        """See :meth:`Store.lock`."""
        (self.root / folder).mkdir(parents=True, exist_ok=True)
        with (self.root / folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def lines(self, path: str) -> list[bytes]:
        """See :meth:`Store.lines`."""
        try:
            return _whole_lines((self.root / path).read_bytes())
        except FileNotFoundError:
            return []

    def append(self, path: str, lines: list[bytes]) -> None:
        """See :meth:`Store.append`."""
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


class RemoteStore:
    """An fsspec URL, such as ``s3://bucket/models``.

    Parameters
    ----------
    url : str
        The registry.
    cache : Path
        Where fetched bundles are kept.

    Raises
    ------
    BundleError
        If fsspec, or what it needs for this kind of URL, is not installed.
    """

    def __init__(self, url: str, cache: Path) -> None:
        try:
            from fsspec.core import url_to_fs  # type: ignore[import-untyped,unused-ignore]

            self._fs, root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise BundleError(f"KYMO_REGISTRY={url}: {error}; install what this kind of URL needs") from None
        self._root, self.url = root.rstrip("/"), url.rstrip("/")
        self._cache = cache / hashlib.sha256(self.url.encode()).hexdigest()[:16]

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except BundleError:
            raise
        except Exception as error:  # every kind of store brings its own classes
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise BundleError(f"registry {self.url}, {doing}: {reason}; is it reachable, may it be used?") from None

    def lock(self, folder: str) -> contextlib.AbstractContextManager[None]:
        """There is none."""
        return contextlib.nullcontext()

    def lines(self, path: str) -> list[bytes]:
        """See :meth:`Store.lines`."""
        with self._errors(f"reading {path}"):
            self._fs.invalidate_cache()
            try:
                return _whole_lines(self._fs.cat_file(self._at(path)))
            except FileNotFoundError:
                return []

    def append(self, path: str, lines: list[bytes]) -> None:
        """See :meth:`Store.append`.

        Raises
        ------
        BundleError
            If another writer came in between.
        """
        before = self.lines(path)
        with self._errors(f"writing {path}"):
            self._fs.makedirs(self._at(path).rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(self._at(path), b"".join(line + b"\n" for line in [*before, *lines]))
        if self.lines(path)[: len(before) + len(lines)] != [*before, *lines]:
            raise BundleError(f"registry {self.url}: another promotion came at the same moment; look, and do it again")

    def folders(self, path: str) -> list[str]:
        """See :meth:`Store.folders`."""
        with self._errors(f"listing {path or 'it'}"):
            self._fs.invalidate_cache()
            try:
                there = self._fs.ls(self._at(path), detail=True)
            except FileNotFoundError:
                return []
        return sorted(e["name"].rstrip("/").rpartition("/")[2] for e in there if e["type"] == "directory")

    def add(self, path: str, contents: Mapping[str, bytes]) -> None:
        """See :meth:`Store.add`."""
        with self._errors(f"writing {path}"):
            for name in sorted(contents, key=lambda name: name == MANIFEST):
                where = self._at(f"{path}/{name}")
                self._fs.makedirs(where.rpartition("/")[0], exist_ok=True)
                self._fs.pipe_file(where, contents[name])

    def folder(self, path: str) -> Path | None:
        """The bundle, from the cache or fetched to it; its checksums are verified.

        Raises
        ------
        BundleError
            If what comes is damaged.
        """
        kept = self._cache / path
        with contextlib.suppress(BundleError):
            verify(kept, read_manifest(kept))
            return kept
        with self._errors(f"fetching {path}"):
            self._fs.invalidate_cache()
            root = self._at(path)
            if not self._fs.exists(f"{root}/{MANIFEST}"):
                return None
            names: list[Any] = [name[len(root) :].lstrip("/") for name in self._fs.find(root)]
            contents = {name: bytes(self._fs.cat_file(f"{root}/{name}")) for name in names}
        replace_folder(kept, contents)
        verify(kept, read_manifest(kept))
        return kept


def store_at(url: str, cache: Path) -> Store:
    """The store at a path or URL."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme != "file":
        return RemoteStore(url, cache)
    return LocalStore(Path(rest if separator else url).expanduser())


def replace_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write a folder; it is there whole or not at all.

    Raises
    ------
    OSError
        If it cannot be written.
    """
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


def _whole_lines(data: bytes) -> list[bytes]:
    return [line for line in data.split(b"\n")[:-1] if line]
