"""Where a registry's bytes are. In: a folder or an fsspec URL. Out: bundles as local folders, logs as lines.

A local store is safe under concurrent use and kills: a bundle's folder appears whole by a rename, a line is appended under a lock that
the kernel frees when its holder dies, and half a line at the end is ignored and closed by the next one.

Object stores know neither locks nor appending; all that is asked of one is that an object which was written is seen by whoever lists
afterwards, as S3, Google's and Azure's do. A bundle is there once its manifest is, which is written last. Each addition to a log is an
object of its own, so none can overwrite another's. Who wants to add claims the recipe first, by an object too: it is alone if it sees
no other claim after it has written its own, else it steps back and tries again. A claim holds for a while only, as its owner may have
been killed; whoever was stopped for longer reads that others have written meanwhile, takes its line back and says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kymo.models.registry.manifest import MANIFEST, verified
from kymo.streams.errors import BundleError
from kymo.streams.files import is_inside, lock
from kymo.streams.replay.pacing import SystemClock
from kymo.streams.words import NS

#: How long a claim holds, s: many times what reading and writing a log takes.
CLAIM_S = 30
_PATIENCE_S = 120
_STEP_BACK_S = 0.05, 0.5
_CLAIMS, _LINES = ".claims", ".log"


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

    adding = lock

    def lines(self, path: str) -> list[bytes]:
        """Read the whole lines of a file; none where there is no file."""
        try:
            return _whole_lines((self.root / path).read_bytes())
        except FileNotFoundError:
            return []

    def append(self, path: str, lines: list[bytes], before: list[bytes]) -> None:
        """Add lines at the end of a file that has the lines `before`; the caller holds the lock, so nobody else has written."""
        with (self.root / path).open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            torn = size > 0 and file.read(1) != b"\n"  # its writer was killed
            file.write(b"\n" * torn + b"".join(line + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())

    def folders(self, path: str) -> list[str]:
        """List the names of the folders inside a folder, sorted."""
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

    def __init__(self, url: str, cache: Path, clock: SystemClock | None = None) -> None:
        try:
            from fsspec.core import url_to_fs  # type: ignore[import-untyped,unused-ignore]

            self._fs, root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise BundleError(f"KYMO_REGISTRY={url}: {error}; install what this kind of URL needs") from None
        self._clock = clock or SystemClock()
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

    @contextlib.contextmanager
    def lock(self, folder: str) -> Iterator[None]:
        claim = self._claim(folder)
        try:
            yield
        finally:
            self._forget([claim])

    def adding(self, folder: str) -> contextlib.AbstractContextManager[None]:
        """Nobody is in another's way: who adds the same bundle writes the same bytes, and its manifest last."""
        return contextlib.nullcontext()

    def _claim(self, folder: str) -> str:
        """Claim a folder once nobody else does; give the claim's name."""
        begin_ns = self._clock.wall_ns()
        while self._clock.wall_ns() - begin_ns < _PATIENCE_S * NS:
            until_ns = self._clock.wall_ns() + CLAIM_S * NS
            claim = self._at(f"{folder}/{_CLAIMS}/{until_ns}-{secrets.token_hex(8)}")
            if not self._claims(folder):
                with self._errors(f"writing {claim}"):
                    self._write(claim, b"")
                if self._claims(folder) == [claim]:
                    return claim
                self._forget([claim])  # of two at the same moment both step back
            self._clock.wait(random.uniform(*_STEP_BACK_S))
        raise BundleError(
            f"registry {self.url}: others have been promoting `{folder}` for {_PATIENCE_S} s; try again in a minute"
        )

    def _claims(self, folder: str) -> list[str]:
        """List the claims that hold; those of the dead are taken away."""
        claims = self._names(f"{folder}/{_CLAIMS}")
        expired = [name for name in claims if _until_ns(name) <= self._clock.wall_ns()]
        self._forget(expired)
        return [name for name in claims if name not in expired]

    def _forget(self, names: list[str]) -> None:
        """Take objects away; one that somebody else has taken away, or that has to wait until it is too old, does not matter."""
        for name in names:
            with contextlib.suppress(Exception):  # every kind of store brings its own classes
                self._fs.rm_file(name)

    def _names(self, path: str) -> list[str]:
        """List the objects in a folder, sorted."""
        with self._errors(f"listing {path}"):
            self._fs.invalidate_cache()
            try:
                return sorted(e["name"] for e in self._fs.ls(self._at(path), detail=True) if e["type"] == "file")
            except FileNotFoundError:
                return []

    def _write(self, name: str, data: bytes) -> None:
        self._fs.makedirs(name.rpartition("/")[0], exist_ok=True)
        self._fs.pipe_file(name, data)

    def lines(self, path: str) -> list[bytes]:
        """Read the whole lines; what earlier versions of Kymo wrote into one object comes first."""
        folder, _, _ = path.rpartition("/")
        names = [name for name in self._names(folder) if name.endswith(f"/{path}")] + self._names(f"{folder}/{_LINES}")
        with self._errors(f"reading {path}"):
            # One that is gone by now was taken back by its writer.
            contents = self._fs.cat(names, on_error="omit") if names else {}
        return [line for name in names if name in contents for line in _whole_lines(bytes(contents[name]))]

    def append(self, path: str, lines: list[bytes], before: list[bytes]) -> None:
        folder = path.rpartition("/")[0]
        name = self._at(f"{folder}/{_LINES}/{len(before):08d}-{secrets.token_hex(8)}.jsonl")
        with self._errors(f"writing {path}"):
            self._write(name, b"".join(line + b"\n" for line in lines))
        if self.lines(path) != [*before, *lines]:
            self._forget([name])
            raise BundleError(
                f"registry {self.url}: another promotion came at the same moment; look at it, and do it again"
            )

    def folders(self, path: str) -> list[str]:
        with self._errors(f"listing {path or 'it'}"):
            self._fs.invalidate_cache()
            try:
                entries = self._fs.ls(self._at(path), detail=True)
            except FileNotFoundError:
                return []
        names = (e["name"].rstrip("/").rpartition("/")[2] for e in entries if e["type"] == "directory")
        return sorted(name for name in names if not name.startswith("."))

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


def _until_ns(claim: str) -> int:
    """Read from a claim's name until when it holds, Unix ns."""
    try:
        return int(claim.rpartition("/")[2].partition("-")[0])
    except ValueError:  # somebody else's object
        return 0
