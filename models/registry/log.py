"""Versions and aliases of models. In: bundles, promotions. Out: which version is champion or shadow, and who said so when and why.

A registry holds ``RECIPE/DIGEST/`` for every version, never changed, and ``RECIPE/log.jsonl``, to which lines are only ever added: one
JSON object for every promotion or rollback. What an alias stands for is what the log says, so there is no second place that could differ.
"""

from __future__ import annotations

import getpass
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from models.registry.manifest import MANIFEST, manifest_bytes, read_manifest, verify
from models.registry.store import LocalStore, Store, store_at
from streams.errors import BundleError, MessageError
from streams.files import RULE, is_file_name
from streams.messages import read_object

CHAMPION, SHADOW = "champion", "shadow"
ALIASES = (CHAMPION, SHADOW)
_LOG = "log.jsonl"
_BEFORE = "current"  # how earlier versions of Kymo named the champion


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a recipe's log."""

    at_ns: int  # when, Unix ns; grows from line to line
    action: str  # ``promote`` or ``rollback``
    alias: str  # ``champion`` or ``shadow``
    bundle: str  # what the alias stands for from then on, ``recipe@digest``; empty for nothing
    before: str = ""  # what it stood for before
    by: str = ""  # who, and the reason given
    why: str = ""

    @property
    def digest(self) -> str:
        """Of the bundle."""
        return self.bundle.partition("@")[2]


class Registry:
    """The registry at a folder or URL."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @classmethod
    def at(cls, url: str, home: Path) -> Registry:
        """The registry at a path or fsspec URL; what is fetched from it is kept in `home`."""
        return cls(store_at(url, home / "cache" / "bundles"))

    @property
    def url(self) -> str:
        """Where it is."""
        return self.store.url

    def recipes(self) -> list[str]:
        """Names that have versions."""
        return [name for name in self.store.folders("") if is_file_name(name)]

    def versions(self, recipe: str) -> list[str]:
        """Digests of a recipe's versions, sorted."""
        return [name for name in self.store.folders(_path(recipe)) if is_file_name(name)]

    def folder(self, recipe: str, digest: str) -> Path | None:
        """A version as a local folder; None where there is none."""
        return self.store.folder(_path(recipe, digest))

    def log(self, recipe: str) -> list[Entry]:
        """Every promotion and rollback of a recipe, the oldest first."""
        return self._entries(recipe, self.store.lines(_path(recipe, _LOG)))

    def _entries(self, recipe: str, lines: Sequence[bytes]) -> list[Entry]:
        return [entry for line in lines if (entry := _entry(line)) is not None] or self._from_before(recipe)

    def _from_before(self, recipe: str) -> list[Entry]:
        if not isinstance(self.store, LocalStore):
            return []
        file = self.store.root / recipe / _BEFORE
        try:
            digest, at_ns = file.read_text().strip(), file.stat().st_mtime_ns
        except OSError:
            return []
        return [Entry(at_ns, "promote", CHAMPION, f"{recipe}@{digest}", why="before there was a log")]

    def current(self, recipe: str, alias: str = CHAMPION) -> Entry | None:
        """The line by which an alias stands for what it does; None where it never stood for anything."""
        return next((entry for entry in reversed(self.log(recipe)) if entry.alias == alias), None)

    def add(self, manifest: Mapping[str, Any], contents: Mapping[str, bytes]) -> Path:
        """Keep a bundle as a version; one that is there whole stays as it is."""
        recipe, digest = manifest["recipe"], manifest["digest"]
        try:
            with self.store.adding(_path(recipe)):
                if not self._is_whole(recipe, digest):
                    self.store.add(_path(recipe, digest), {**contents, MANIFEST: manifest_bytes(manifest)})
            folder = self.folder(recipe, digest)
        except OSError as error:
            raise BundleError(
                f"{self.url}/{recipe}/{digest}: the bundle cannot be written ({error.strerror}); free space or choose "
                f"another folder"
            ) from None
        if folder is None:
            raise BundleError(f"{self.url}/{recipe}/{digest}: the bundle was written, but it is not there; look at it")
        return folder

    def _is_whole(self, recipe: str, digest: str) -> bool:
        try:
            folder = self.folder(recipe, digest)
            if folder is None:
                return False
            verify(folder, read_manifest(folder))
        except BundleError:
            return False
        return True

    def promote(self, recipe: str, digest: str, alias: str = CHAMPION, *, why: str = "") -> Entry:
        """Have an alias stand for a version; nothing is written where it does already."""
        folder = self.folder(recipe, digest)
        if folder is None:
            have = ", ".join(self.versions(recipe)) or "none"
            raise BundleError(f"registry {self.url} has no version {recipe}@{digest}; there are {have}")
        verify(folder, read_manifest(folder))
        with self.store.lock(_path(recipe)):
            known = self.store.lines(_path(recipe, _LOG))
            stack = _stack(self._entries(recipe, known), alias)
            if stack and stack[-1].bundle == f"{recipe}@{digest}":
                return self.current(recipe, alias) or stack[-1]
            return self._write(recipe, known, Entry(0, "promote", alias, f"{recipe}@{digest}", why=why))

    def rollback(self, recipe: str, alias: str = CHAMPION, *, why: str = "", may_empty: bool = False) -> Entry:
        """Have an alias stand for what it stood for before its last promotion."""
        with self.store.lock(_path(recipe)):
            known = self.store.lines(_path(recipe, _LOG))
            stack = _stack(self._entries(recipe, known), alias)
            if not stack:
                raise BundleError(f"recipe `{recipe}` has no {alias} in registry {self.url}; promote one")
            if len(stack) == 1 and not may_empty:
                raise BundleError(f"{stack[0].bundle} is the first {alias} of `{recipe}`; there is none before it")
            bundle = stack[-2].bundle if len(stack) > 1 else ""
            return self._write(recipe, known, Entry(0, "rollback", alias, bundle, why=why))

    def _write(self, recipe: str, known: list[bytes], made: Entry) -> Entry:
        """Add a line to those that are there; its time, its writer and what stood before are set here."""
        entries = self._entries(recipe, known)
        before = next((entry.bundle for entry in reversed(entries) if entry.alias == made.alias), "")
        # Time may go back, or two lines fall on one tick: what is newer must be told by the number.
        at_ns = max([time.time_ns(), *(entry.at_ns + 1 for entry in entries)])
        entry = replace(made, at_ns=at_ns, before=before, by=_user())
        new = [entry] if known else [*entries, entry]  # the line from before there was a log comes along
        self.store.append(f"{recipe}/{_LOG}", [_line(e) for e in new], known)
        return entry


def _path(*names: str) -> str:
    """Of a recipe, and a version of it, inside the registry."""
    if odd := [name for name in names if not is_file_name(name)]:
        raise BundleError(f"registry: {str(odd[0])[:80]!r} is no name of a recipe or a version; expected {RULE}")
    return "/".join(names)


def _stack(entries: Sequence[Entry], alias: str) -> list[Entry]:
    """Promotions of an alias that no rollback has undone."""
    stack: list[Entry] = []
    for entry in entries:
        if entry.alias != alias:
            continue
        if entry.action == "promote":
            stack.append(entry)
        elif stack:
            stack.pop()
    return stack


def _line(entry: Entry) -> bytes:
    return json.dumps(asdict(entry), ensure_ascii=False, separators=(",", ":")).encode()


def _entry(line: bytes) -> Entry | None:
    """A line's entry; None for half a line, which a killed writer left, or one of another program."""
    try:
        entry = Entry(**read_object(line))
    except (MessageError, TypeError):
        return None
    whole = all(type(value) is (int if name == "at_ns" else str) for name, value in asdict(entry).items())
    return entry if whole else None


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        return "unknown"
