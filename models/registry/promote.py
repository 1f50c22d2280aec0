"""Promoting bundles. In: a bundle's name, an alias, a reason. Out: a line in the registry's log, told to running agents."""

from __future__ import annotations

import os
from pathlib import Path

from kymo.models.bundle import load_bundle
from kymo.models.registry import CHAMPION, SHIPPED, Entry, Registry, open_registry
from kymo.streams.promotions import Promotion, announce
from kymo.streams.settings import Settings


def promote(name: str | Path, alias: str = CHAMPION, *, why: str = "", home: Path | None = None) -> Entry:
    """Have an alias stand for a bundle; one from outside is taken into the registry first."""
    bundle, registry = load_bundle(name, home), open_registry(home)
    listed = {**bundle.manifest["files"], **bundle.manifest.get("attached", {})}
    registry.add(bundle.manifest, {name: (bundle.path / name).read_bytes() for name in listed})
    return registry.promote(bundle.recipe, bundle.manifest["digest"], alias, why=why)


def rollback(recipe: str, alias: str = CHAMPION, *, why: str = "", home: Path | None = None) -> Entry:
    """Have an alias stand for what it stood for before.

    The first champion gives way only to a bundle that ships with Kymo, the first shadow to none.
    """
    may_empty = alias != CHAMPION or (SHIPPED / recipe).is_dir()
    return open_registry(home).rollback(recipe, alias, why=why, may_empty=may_empty)


def promotion_of(entry: Entry, recipe: str, registry: Registry) -> Promotion:
    url = registry.url if "://" in registry.url else os.path.abspath(registry.url)
    return Promotion(recipe, entry.alias, entry.bundle, entry.at_ns, url, entry.action, entry.by, entry.why)


def tell(entry: Entry, recipe: str, settings: Settings) -> str:
    """Announce a line of the log; empty, or why running agents could not be told."""
    return announce(settings, promotion_of(entry, recipe, open_registry(settings.home)))
