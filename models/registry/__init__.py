"""The registry: versions of models, and what each alias stands for. In: bundles, promotions, names. Out: bundles' folders, and who
promoted which when and why.

A registry, ``KYMO_REGISTRY`` or ``KYMO_HOME/registry``, holds ``RECIPE/DIGEST/`` for every version, never changed, and
``RECIPE/log.jsonl``, to which lines are only ever added: one JSON object for every promotion or rollback. What an alias stands for is what
the log says, so there is no second place that could differ. Bundles that ship with Kymo stand beside this folder.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kymo.models.registry.manifest import MANIFEST, complete, manifest_bytes, verified
from kymo.models.registry.store import LocalStore, Store, replace_folder, store_at
from kymo.streams.errors import BundleError, MessageError
from kymo.streams.files import RULE, is_file_name
from kymo.streams.messages import read_object
from kymo.streams.promotions import Promotion, announce
from kymo.streams.schema import SchemaError, read
from kymo.streams.settings import Settings
from kymo.streams.words import user

SHIPPED = Path(__file__).parent.parent / "shipped"
CHAMPION, SHADOW = "champion", "shadow"
ALIASES = (CHAMPION, SHADOW)
_LOG = "log.jsonl"
_BEFORE = "current"  # how earlier versions of Kymo named the champion


@dataclass(frozen=True, slots=True)
class Entry:
    at_ns: int  # when, Unix ns; grows from line to line
    action: str  # ``promote`` or ``rollback``
    alias: str  # ``champion`` or ``shadow``
    bundle: str  # what the alias stands for from then on, ``recipe@digest``; empty for nothing
    before: str = ""  # what it stood for before
    by: str = ""  # who, and the reason given
    why: str = ""

    @property
    def digest(self) -> str:
        return self.bundle.partition("@")[2]


class Registry:
    def __init__(self, store: Store) -> None:
        self.store, self.url = store, store.url

    @classmethod
    def at(cls, url: str, home: Path) -> Registry:
        """Open the registry at a path or fsspec URL; what is fetched from it is kept in `home`."""
        return cls(store_at(url, home / "cache" / "bundles"))

    def recipes(self) -> list[str]:
        return [name for name in self.store.folders("") if is_file_name(name)]

    def versions(self, recipe: str) -> list[str]:
        """List the digests of a recipe's versions, sorted."""
        return [name for name in self.store.folders(_path(recipe)) if is_file_name(name)]

    def folder(self, recipe: str, digest: str) -> Path | None:
        """Give a version as a local folder; None where there is none."""
        return self.store.folder(_path(recipe, digest))

    def log(self, recipe: str) -> list[Entry]:
        """List every promotion and rollback of a recipe, the oldest first."""
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
        """Find the line by which an alias stands for what it does; None where it never stood for anything."""
        return next((entry for entry in reversed(self.log(recipe)) if entry.alias == alias), None)

    def add(self, manifest: Mapping[str, Any], contents: Mapping[str, bytes]) -> Path:
        """Keep a bundle as a version; one that is there whole stays as it is."""
        recipe, digest = manifest["recipe"], manifest["digest"]
        try:
            with self.store.lock(_path(recipe)):
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
            return folder is not None and bool(verified(folder))
        except BundleError:
            return False

    def promote(self, recipe: str, digest: str, alias: str = CHAMPION, *, why: str = "") -> Entry:
        """Have an alias stand for a version; nothing is written where it does already."""
        folder = self.folder(recipe, digest)
        if folder is None:
            versions = ", ".join(self.versions(recipe)) or "none"
            raise BundleError(f"registry {self.url} has no version {recipe}@{digest}; there are {versions}")
        verified(folder)
        return self._write(recipe, Entry(0, "promote", alias, f"{recipe}@{digest}", why=why))

    def rollback(self, recipe: str, alias: str = CHAMPION, *, why: str = "") -> Entry:
        """Have an alias stand for what it stood for before its last promotion.

        The first champion gives way only to a bundle that ships with Kymo, the first shadow to none.
        """
        return self._write(recipe, Entry(0, "rollback", alias, "", why=why))

    def _write(self, recipe: str, entry: Entry) -> Entry:
        """Add a line to the log, behind those of whoever is quicker; its time, its writer and what stood before are set here."""
        while True:
            with self.store.lock(_path(recipe)):
                lines = self.store.lines(_path(recipe, _LOG))
                entries = self._entries(recipe, lines)
                line = self._line_behind(entries, recipe, entry)
                added = [line] if lines else [*entries, line]  # the line from before there was a log comes along
                texts = [json.dumps(asdict(e), ensure_ascii=False, separators=(",", ":")).encode() for e in added]
                if line in entries or self.store.append(_path(recipe, _LOG), texts, lines):
                    return line

    def _line_behind(self, entries: Sequence[Entry], recipe: str, entry: Entry) -> Entry:
        """Complete a line for the end of a log; the last one of its alias where that says the same already."""
        stack = _stack(entries, entry.alias)
        if entry.action == "rollback":
            if not stack:
                raise BundleError(f"recipe `{recipe}` has no {entry.alias} in registry {self.url}; promote one")
            if len(stack) == 1 and entry.alias == CHAMPION and not (SHIPPED / recipe).is_dir():
                raise BundleError(f"{stack[0]} is the first {entry.alias} of `{recipe}`; there is none before it")
            entry = replace(entry, bundle=stack[-2] if len(stack) > 1 else "")
        standing = next((e for e in reversed(entries) if e.alias == entry.alias), None)
        if standing is not None and stack and stack[-1] == entry.bundle:
            return standing
        # Time may go back, or two lines fall on one tick: what is newer must be told by the number.
        at_ns = max([time.time_ns(), *(e.at_ns + 1 for e in entries)])
        return replace(entry, at_ns=at_ns, before=standing.bundle if standing else "", by=user())

    def promotion(self, entry: Entry, recipe: str) -> Promotion:
        """Say what a line of a recipe's log tells running agents."""
        url = self.url if "://" in self.url else os.path.abspath(self.url)
        return Promotion(recipe, entry.alias, entry.bundle, entry.at_ns, url, entry.action, entry.by, entry.why)


def _path(*names: str) -> str:
    if wrong := [name for name in names if not is_file_name(name)]:
        raise BundleError(f"registry: {str(wrong[0])[:80]!r} is no name of a recipe or a version; expected {RULE}")
    return "/".join(names)


def _stack(entries: Sequence[Entry], alias: str) -> list[str]:
    """List the bundles that an alias was given and that no rollback has undone."""
    stack: list[str] = []
    for entry in entries:
        if entry.alias == alias and entry.action == "promote":
            stack.append(entry.bundle)
        elif entry.alias == alias and stack:
            stack.pop()
    return stack


def _entry(line: bytes) -> Entry | None:
    """Read a line; None for half a line, which a killed writer left, or one of another program."""
    try:
        return read(Entry, read_object(line))
    except (MessageError, SchemaError):
        return None


def open_registry(home: Path | None = None) -> Registry:
    """Open the registry of this deployment, with `home` instead of ``KYMO_HOME`` if it is given."""
    settings = Settings.from_env()
    home = home or settings.home
    return Registry.at(settings.registry or str(home / "registry"), home)


def tell(entry: Entry, recipe: str, settings: Settings) -> str:
    """Announce a line of the log; empty, or why running agents could not be told."""
    return announce(settings, open_registry(settings.home).promotion(entry, recipe))


def write_bundle(
    target: Path | None,  # its folder; a bundle that is there is replaced. None for the registry, as a new version
    manifest: Mapping[str, Any],
    files: Mapping[str, bytes],  # contents by relative name, ``model.onnx`` among them
    home: Path | None = None,
    attached: Mapping[str, bytes] | None = None,
    promote: bool = True,  # whether a version in the registry becomes the champion
) -> Path:
    """Write a bundle; it is there whole or not at all."""
    full = complete(manifest, files, attached or {})
    contents = {**files, **(attached or {})}
    if target is None:
        registry = open_registry(home)
        folder = registry.add(full, contents)
        if promote:
            registry.promote(full["recipe"], full["digest"], why="trained")
        return folder
    if target.exists() and not (target / MANIFEST).is_file() and any(target.iterdir()):
        raise BundleError(f"{target}: holds something that is no bundle; choose another folder")
    try:
        replace_folder(target, {**contents, MANIFEST: manifest_bytes(full)})
    except OSError as error:
        raise BundleError(
            f"{target}: the bundle cannot be written ({error.strerror}); free space or choose another folder"
        ) from None
    return target
