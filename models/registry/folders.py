"""Where bundles are, and how they get there. In: names, a manifest and files. Out: folders.

Trained bundles stand in the registry, ``KYMO_REGISTRY`` or ``KYMO_HOME/registry`` (see :mod:`models.registry.log`); those that ship with
Kymo stand beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.registry.log import ALIASES, CHAMPION, Registry
from models.registry.manifest import FORMAT, MANIFEST, MODEL, complete, digest_of, manifest_bytes, read_manifest
from models.registry.store import replace_folder
from streams.errors import BundleError
from streams.files import is_file_name
from streams.settings import Settings

__all__ = ["FORMAT", "MANIFEST", "MODEL", "SHIPPED", "digest_of", "find_bundle", "read_manifest", "write_bundle"]
SHIPPED = Path(__file__).parent.parent / "shipped"


def open_registry(home: Path | None = None) -> Registry:
    """The registry of this deployment; with `home` instead of ``KYMO_HOME``."""
    settings = Settings.from_env()
    where = home or settings.home
    return Registry.at(settings.registry or str(where / "registry"), where)


def find_bundle(name: str, home: Path | None = None) -> Path:
    """Folder of a bundle."""
    recipe, _, version = name.partition("@")
    plain = is_file_name(recipe) and (not version or is_file_name(version))
    if plain and (found := _in_registry(name, recipe, version, open_registry(home))) is not None:
        return found
    if plain and (found := _shipped(recipe, name)) is not None:
        return found
    if (Path(name) / MANIFEST).is_file():
        return Path(name)
    if plain:
        raise _absent(name, recipe, version, open_registry(home))
    raise BundleError(
        f"{name}: no bundle, {MANIFEST} is not there; name a bundle's folder or a recipe that was trained"
    )


def _absent(name: str, recipe: str, version: str, registry: Registry) -> BundleError:
    have = registry.versions(recipe)
    if version and have:
        return BundleError(f"no bundle `{name}` in {registry.url}; the versions of `{recipe}` are {', '.join(have)}")
    aside = f" (the folder {name} is none: {MANIFEST} is not in it)" if Path(name).is_dir() else ""
    return BundleError(
        f"no bundle `{name}` in {registry.url} and none ships with Kymo{aside}; "
        f"train one: kymo train {recipe} --data PATH"
    )


def _in_registry(name: str, recipe: str, version: str, registry: Registry) -> Path | None:
    if not version or version in ALIASES:
        entry = registry.current(recipe, version or CHAMPION)
        if entry is None or not entry.bundle:
            return None
        digest = entry.digest
    else:
        found = [digest for digest in registry.versions(recipe) if digest.startswith(version)]
        if len(found) > 1:
            raise BundleError(f"bundle `{name}`: {', '.join(found)} begin so; give more digits")
        if not found:
            return None
        digest = found[0]
    folder = registry.folder(recipe, digest)
    if folder is None:
        raise BundleError(
            f"bundle {recipe}@{digest}: not whole in registry {registry.url}; promote another, or train again"
        )
    return folder


def _shipped(recipe: str, name: str) -> Path | None:
    folder = SHIPPED / recipe
    if (folder / MANIFEST).is_file() and str(read_manifest(folder).get("id", "")).startswith(
        name.removesuffix(f"@{CHAMPION}")
    ):
        return folder
    return None


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
