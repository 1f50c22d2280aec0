"""Where bundles are, and how they get there. In: names, a manifest and files. Out: folders.

Trained bundles stand in ``KYMO_HOME/registry/RECIPE/DIGEST``, the current version's digest in the file ``current``;
those that ship with Kymo stand beside this file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from streams.errors import BundleError
from streams.settings import Settings

FORMAT = 1
MODEL = "model.onnx"
MANIFEST = "manifest.json"
SHIPPED = Path(__file__).parent / "shipped"
_NOT_DIGESTED = ("id", "digest", "created")


def registry_folder(home: Path | None = None) -> Path:
    """Where trained bundles go: ``KYMO_HOME/registry``."""
    return (home or Settings.from_env().home) / "registry"


def find_bundle(name: str, home: Path | None = None) -> Path:
    """Folder of a bundle.

    Parameters
    ----------
    name : str
        A folder, a recipe's name (the registry's current version, else the one that ships with Kymo), or
        ``name@digest`` (its first digits suffice).
    home : Path, optional
        Instead of ``KYMO_HOME``.

    Raises
    ------
    BundleError
        If there is none.
    """
    recipe, _, digest = name.partition("@")
    plain = bool(recipe) and recipe not in (".", "..") and not {"/", os.sep} & set(name)
    if plain:
        versions = registry_folder(home) / recipe
        if not digest and (versions / "current").is_file():
            return versions / (versions / "current").read_text().strip()
        there = versions.iterdir() if digest and versions.is_dir() else []
        found = sorted(path for path in there if path.name.startswith(digest) and (path / MANIFEST).is_file())
        if len(found) == 1:
            return found[0]
        if len(found) > 1:
            raise BundleError(f"bundle `{name}`: {', '.join(path.name for path in found)} begin so; give more digits")
        shipped = SHIPPED / recipe
        if (shipped / MANIFEST).is_file() and str(read_manifest(shipped).get("id", "")).startswith(name):
            return shipped
    if (Path(name) / MANIFEST).is_file():
        return Path(name)
    if plain and not Path(name).exists():
        raise BundleError(
            f"no bundle `{name}` in {registry_folder(home)} and none ships with Kymo; "
            f"train one: kymo train {recipe} --data PATH"
        )
    raise BundleError(
        f"{name}: no bundle, {MANIFEST} is not there; name a bundle's folder or a recipe that was trained"
    )


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a bundle's folder, its checksums not yet verified.

    Raises
    ------
    BundleError
        If it is not there or no JSON object.
    """
    where = path / MANIFEST
    try:
        manifest = json.loads(where.read_bytes())
    except FileNotFoundError:
        raise BundleError(f"{where}: not there; name a bundle's folder") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{where}: cannot be read ({error}); copy or train the bundle again") from None
    if not isinstance(manifest, dict):
        raise BundleError(f"{where}: expected a JSON object; copy or train the bundle again")
    return manifest


def digest_of(manifest: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of all that a manifest says, the moment of making apart."""
    said = {key: value for key, value in manifest.items() if key not in _NOT_DIGESTED}
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def write_bundle(
    target: Path | None, manifest: Mapping[str, Any], files: Mapping[str, bytes], home: Path | None = None
) -> Path:
    """Write a bundle; it is there whole or not at all.

    Parameters
    ----------
    target : Path, optional
        Its folder; a bundle that is there is replaced. None for the registry, where it becomes the current version.
    manifest : mapping
        Without ``format``, ``files``, ``digest``, ``id`` and ``created``, which are added here.
    files : mapping
        Contents by relative name, ``model.onnx`` among them.
    home : Path, optional
        Instead of ``KYMO_HOME``.

    Returns
    -------
    Path
        The bundle's folder.

    Raises
    ------
    BundleError
        If `target` holds something else, or cannot be written.
    """
    full: dict[str, Any] = {"format": FORMAT, **manifest}
    full["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    digest = digest_of(full)
    full = {"id": f"{full['recipe']}@{digest}", "digest": digest, "created": _now(), **full}
    contents = {**files, MANIFEST: (json.dumps(full, indent=1, ensure_ascii=False) + "\n").encode()}
    folder = target or registry_folder(home) / full["recipe"] / digest
    if folder.exists() and not (folder / MANIFEST).is_file() and any(folder.iterdir()):
        raise BundleError(f"{folder}: holds something that is no bundle; choose another folder")
    try:
        _replace_folder(folder, contents)
        if target is None:
            _replace_file(folder.parent / "current", f"{digest}\n".encode())
    except OSError as error:
        raise BundleError(
            f"{folder}: the bundle cannot be written ({error.strerror}); free space or choose another folder"
        ) from None
    return folder


def _replace_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
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


def _replace_file(path: Path, data: bytes) -> None:
    new = path.with_name(f".{path.name}.new-{os.getpid()}")
    new.write_bytes(data)
    new.replace(path)


def _now() -> str:
    # SOURCE_DATE_EPOCH is what reproducible builds set (https://reproducible-builds.org/specs/source-date-epoch/).
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
