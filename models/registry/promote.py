"""Promoting bundles. In: a bundle's name, an alias, a reason. Out: a line in the registry's log, told to running agents."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.bundle import load_bundle
from models.registry.folders import SHIPPED, open_registry
from models.registry.log import CHAMPION, Entry, Registry
from streams.promotions import Promotion, announce
from streams.settings import Settings

if TYPE_CHECKING:
    from models.training.request import OnStage, TrainRequest
    from models.training.train import Trained
    from processors.recipe.load import Recipe


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
    """What is announced of a line of the log."""
    where = registry.url if "://" in registry.url else os.path.abspath(registry.url)
    return Promotion(recipe, entry.alias, entry.bundle, entry.at_ns, where, entry.action, entry.by, entry.why)


def tell(entry: Entry, recipe: str, settings: Settings) -> str:
    """Announce a line of the log; empty, or why running agents could not be told."""
    return announce(settings, promotion_of(entry, recipe, open_registry(settings.home)))


def trainer(gated: bool) -> Callable[[Recipe, TrainRequest, OnStage], tuple[Trained, dict[str, Any]]]:
    """What `kymo train` does: train and promote at once, or behind the gate; with what to say of the promotion."""
    from models.training.refresh import train_behind_gate
    from models.training.train import train

    def behind_gate(recipe: Recipe, request: TrainRequest, on_stage: OnStage) -> tuple[Trained, dict[str, Any]]:
        trained, outcome = train_behind_gate(recipe, request, Settings.from_env(), on_stage)
        return trained, {name: getattr(outcome, name) for name in ("promoted", "champion", "verdict", "reason", "told")}

    def at_once(recipe: Recipe, request: TrainRequest, on_stage: OnStage) -> tuple[Trained, dict[str, Any]]:
        trained, settings = train(recipe, request, on_stage=on_stage), Settings.from_env()
        entry = open_registry().current(recipe.name)
        promoted = request.out is None and request.promote and entry is not None
        if promoted and entry is not None:
            tell(entry, recipe.name, settings)  # without a broker there is nobody to be told
        return trained, {"promoted": promoted}

    return behind_gate if gated else at_once
