"""A bundle's manifest. In: a folder, or what a trainer knows. Out: the manifest; contents to write; an error where a file is damaged."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from kymo.streams.errors import BundleError, MessageError
from kymo.streams.files import RULE, is_file_name, is_inside
from kymo.streams.messages import MAX_FILE_BYTES, read_object
from kymo.streams.words import NS, utc

FORMAT = 1
MODEL = "model.onnx"
MANIFEST = "manifest.json"
_NOT_DIGESTED = ("id", "digest", "created", "attached")
_KINDS: dict[str, type] = {
    **dict.fromkeys(("id", "recipe", "digest", "created", "batch"), str),
    **dict.fromkeys(("scores", "files", "attached", "model", "chain", "lineage", "lengths"), dict),
    **dict.fromkeys(("labels", "heads"), list),
}


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a bundle's folder, its checksums not yet verified."""
    file = path / MANIFEST
    try:
        manifest = read_object(file.read_bytes(), MAX_FILE_BYTES, nan=True)
    except FileNotFoundError:
        raise BundleError(f"{file}: not there; name a bundle's folder") from None
    except (OSError, MessageError) as error:
        raise BundleError(f"{file}: cannot be read ({error}); copy or train the bundle again") from None
    wrong = [name for name, kind in _KINDS.items() if not isinstance(manifest.get(name, kind()), kind)]
    if wrong:
        raise BundleError(f"{file}: `{wrong[0]}` is {str(manifest[wrong[0]])[:40]!r}; copy or train the bundle again")
    for name in ("recipe", "digest"):
        if not is_file_name(manifest.get(name)):
            value = str(manifest.get(name))[:80]
            raise BundleError(f"{file}: `{name}` is {value!r}, expected {RULE}; the bundle is not taken")
    if manifest.get("id") != f"{manifest['recipe']}@{manifest['digest']}":
        raise BundleError(f"{file}: `id` is not RECIPE@DIGEST; copy or train the bundle again")
    return manifest


def digest_of(manifest: Mapping[str, Any]) -> str:
    """Digest all that a manifest says, the moment of making and what is attached apart: 16 hexadecimal digits."""
    facts = {key: value for key, value in manifest.items() if key not in _NOT_DIGESTED}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def complete(manifest: Mapping[str, Any], files: Mapping[str, bytes], attached: Mapping[str, bytes]) -> dict[str, Any]:
    """Add ``format``, ``files``, ``attached`` (where something is), ``digest``, ``id`` and ``created`` to a manifest."""
    full: dict[str, Any] = {"format": FORMAT, **as_json(manifest), "files": _checksums(files)}
    if attached:
        full["attached"] = _checksums(attached)
    digest = digest_of(full)
    # SOURCE_DATE_EPOCH is what reproducible builds set (https://reproducible-builds.org/specs/source-date-epoch/).
    created = utc(int(os.environ.get("SOURCE_DATE_EPOCH") or time.time()) * NS)
    return {"id": f"{full['recipe']}@{digest}", "digest": digest, "created": created, **full}


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()


def verify(path: Path, manifest: Mapping[str, Any]) -> None:
    files, attached = manifest.get("files"), manifest.get("attached", {})
    if not isinstance(files, dict) or not isinstance(attached, dict) or MODEL not in files:
        raise BundleError(f"{path / MANIFEST}: does not list {MODEL} among its files; copy or train the bundle again")
    if digest_of(manifest) != manifest.get("digest"):
        raise BundleError(f"{path / MANIFEST}: was changed after it was made; copy or train the bundle again")
    for name, expected in {**attached, **files}.items():
        file = path / name
        if not is_inside(name) or not file.resolve().is_relative_to(path.resolve()) or not file.is_file():
            raise BundleError(f"{file}: not there, but {MANIFEST} lists it; copy or train the bundle again")
        if hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            raise BundleError(
                f"{file}: damaged, its checksum is not the one in {MANIFEST}; copy or train the bundle again"
            )


def verified(path: Path) -> dict[str, Any]:
    """Read the manifest of a bundle's folder, and compare every file with it."""
    manifest = read_manifest(path)
    verify(path, manifest)
    return manifest


def _checksums(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}


def as_json(value: Any) -> Any:
    """Turn a value into what JSON can say; a number that is none, such as the score of nothing, is null."""
    if is_dataclass(value):
        value = {member.name: getattr(value, member.name) for member in fields(value)}
    if hasattr(value, "tolist"):  # of numpy, which the verb `models` need not load
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
