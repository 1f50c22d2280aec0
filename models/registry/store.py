"""Where a registry's bytes are. In: a folder or an fsspec URL. Out: bundles as local folders, logs as lines.

A local store is safe under concurrent use and kills: a bundle's folder appears whole by a rename, a line is appended under a lock that
the kernel frees when its holder dies, and half a line at the end is ignored and closed by the next one.

Object stores know neither locks nor appending. A bundle is there once its manifest is, which is written last. Each addition to a log is
an object of its own, called by how many lines stand before it, and written only if there is no such object yet, as S3, Google's and
Azure's stores promise: who finds the number taken was overtaken, and nothing is lost. What is written is seen by whoever lists afterwards.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kymo.models.registry.manifest import MANIFEST, verified
from kymo.streams.errors import BundleError
from kymo.streams.files import is_inside, lock

_LINES = ".log"


class LocalStore:
    """A folder of this machine, or one that it has mounted; paths inside it are relative, parts separated by a slash."""

    def __init__(self, root: Path) -> None:
        self.root, self.url = root, str(root)

    @contextlib.contextmanager
    def lock(self, folder: str) -> Iterator[None]:
        """Keep others from adding lines, or bundles, in `folder`."""
        (self.root / folder).mkdir(parents=True, exist_ok=True)
        with lock(self.root / folder / ".lock"):
            yield

    def lines(self, path: str) -> list[bytes]:
        """Read the whole lines of a file; none where there is no file."""
        try:
            return _whole_lines((self.root / path).read_bytes())
        except FileNotFoundError:
            return []

    def append(self, path: str, lines: list[bytes], before: list[bytes]) -> bool:
        """Add lines at the end of a file that has the lines `before`; the caller holds the lock, so nobody else has written."""
        with (self.root / path).open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            torn = size > 0 and file.read(1) != b"\n"  # its writer was killed
            file.write(b"\n" * torn + b"".join(line + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
        return True

    def folders(self, path: str) -> list[str]:
        entries = (self.root / path).iterdir() if (self.root / path).is_dir() else []
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))

    def add(self, path: str, contents: Mapping[str, bytes]) -> None:
        """Write a bundle's folder whole, in place of one that is there.

        The caller holds the lock, so what other writers left unfinished nobody will finish.
        """
        folder = self.root / path
        for remains in folder.parent.glob(f".{folder.name}.*-*"):
            shutil.rmtree(remains, ignore_errors=True)
        replace_folder(folder, contents)

    def folder(self, path: str) -> Path | None:
        """Give a bundle as a local folder; None where there is none."""
        return self.root / path if (self.root / path / MANIFEST).is_file() else None


class RemoteStore:
    """An fsspec URL, such as ``s3://bucket/models``; it does what :class:`LocalStore` does."""

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
        except (FileNotFoundError, BundleError):
            raise
        except Exception as error:  # every kind of store brings its own classes
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise BundleError(f"registry {self.url}, {doing}: {reason}; is it reachable, may it be used?") from None

    def lock(self, folder: str) -> contextlib.AbstractContextManager[None]:
        """Nobody is in another's way: of two lines one is refused, and who adds the same bundle writes the same bytes."""
        return contextlib.nullcontext()

    def _list(self, path: str, kind: str) -> list[str]:
        """List what is in a folder, sorted: each ``file``, or each ``directory``."""
        with self._errors(f"listing {path or 'it'}"):
            self._fs.invalidate_cache()
            try:
                entries = self._fs.ls(self._at(path), detail=True)
            except FileNotFoundError:
                return []
        return sorted(entry["name"].rstrip("/") for entry in entries if entry["type"] == kind)

    def _write(self, name: str, data: bytes, **options: Any) -> None:
        self._fs.makedirs(name.rpartition("/")[0], exist_ok=True)
        self._fs.pipe_file(name, data, **options)

    def lines(self, path: str) -> list[bytes]:
        """Read the whole lines; what earlier versions of Kymo wrote into one object comes first."""
        folder, _, _ = path.rpartition("/")
        names = [name for name in self._list(folder, "file") if name.endswith(f"/{path}")]
        names += self._list(f"{folder}/{_LINES}", "file")
        with self._errors(f"reading {path}"):
            contents = self._fs.cat(names) if names else {}
        return [line for name in names for line in _whole_lines(bytes(contents[name]))]

    def append(self, path: str, lines: list[bytes], before: list[bytes]) -> bool:
        """Add lines behind the lines `before`; False where somebody else has done so meanwhile.

        An error may be of the answer alone: what counts is which lines there are then.
        """
        name = self._at(f"{path.rpartition('/')[0]}/{_LINES}/{len(before):08d}.jsonl")
        with self._errors(f"writing {name}"):
            try:
                self._write(name, b"".join(line + b"\n" for line in lines), mode="create")
            except Exception:  # every kind of store brings its own classes
                there = self.lines(path)
                if there == before:
                    raise
                return there[: len(before) + len(lines)] == before + lines
        return True

    def folders(self, path: str) -> list[str]:
        names = [name.rpartition("/")[2] for name in self._list(path, "directory")]
        return [name for name in names if not name.startswith(".")]

    def add(self, path: str, contents: Mapping[str, bytes]) -> None:
        with self._errors(f"writing {path}"):
            for name in sorted(contents, key=lambda name: name == MANIFEST):
                self._write(self._at(f"{path}/{name}"), contents[name])

    def folder(self, path: str) -> Path | None:
        """Give the bundle, from the cache or fetched to it; its checksums are verified."""
        cached = self._cache / path
        with contextlib.suppress(BundleError):
            verified(cached)
            return cached
        with self._errors(f"fetching {path}"):
            self._fs.invalidate_cache()
            root = self._at(path)
            if not self._fs.exists(f"{root}/{MANIFEST}"):
                return None
            names: list[Any] = [name[len(root) :].lstrip("/") for name in self._fs.find(root)]
            contents = {name: bytes(self._fs.cat_file(f"{root}/{name}")) for name in names}
        replace_folder(cached, contents)
        verified(cached)
        return cached


Store = LocalStore | RemoteStore


def store_at(url: str, cache: Path) -> Store:
    scheme, separator, path = url.partition("://")
    if separator and scheme != "file":
        return RemoteStore(url, cache)
    return LocalStore(Path(path if separator else url).expanduser())


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
        try:
            new.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _whole_lines(data: bytes) -> list[bytes]:
    """Take the lines that end, and hold something."""
    return [line for line in data.split(b"\n")[:-1] if line]
