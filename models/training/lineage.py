"""Where a model came from. In: what a training run read, fitted and chose. Out: a bundle's manifest, and the run's record."""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.data.examples import Dataset, Example
from models.pooling import Pool
from models.score_heads import short
from models.training.candidate import Fitted
from models.training.export import INPUT, OUTPUT, Exported
from models.zoo import architecture
from processors.recipe.load import Recipe

if TYPE_CHECKING:
    from models.training.train import TrainRequest

_PACKAGES = ("kymo", "numpy", "scipy", "onnxruntime")
_SCORES = ("accuracy", "macro_f1", "n", "window_accuracy", "windows")


def manifest_of(
    recipe: Recipe, final: Fitted, judged: Fitted, exported: Exported, pool: Pool | None, lineage: Mapping[str, Any]
) -> dict[str, Any]:
    """A bundle's manifest: of the model `final`, with the scores of `judged`, which learned from the training side."""
    model: dict[str, Any] = {
        "input": INPUT,
        "output": OUTPUT,
        "shape": list(exported.shape),
        "dtype": "float32",
        "layout": final.model.layout,
    }
    if exported.state:
        model["state"] = exported.state
    if final.prepared.takes != "chain":
        model["takes"] = final.prepared.takes
    made: dict[str, Any] = {
        "recipe": recipe.name,
        "architecture": {"name": final.plan.architecture, "parameters": final.model.parameters},
        "model": model,
        "labels": list(final.prepared.labels),
        "temperature": judged.temperatures[0],
        "batch": exported.batch,
        "chain": final.prepared.chain.to_json(),
        "scores": {key: judged.scores[key] for key in _SCORES if key in judged.scores},
        "lineage": dict(lineage),
    }
    if heads := final.prepared.heads:
        temperatures = zip(heads, judged.temperatures[1:], strict=True)
        made["heads"] = [{"name": h.name, "labels": list(h.labels), "temperature": t} for h, t in temperatures]
        made["scores"] |= {"heads": short(judged.scores["heads"])} if judged.scores else {}
    return made | ({"pool": pool.to_json()} if pool else {})


def lineage_of(recipe: Recipe, request: TrainRequest, dataset: Dataset, chosen: Fitted) -> dict[str, Any]:
    """What a bundle's model was made of; the same for equal runs."""
    settings, prepared = chosen.plan.settings, chosen.prepared
    packages = architecture(chosen.plan.architecture).packages
    folds = {"folds": len(chosen.folds)} if chosen.folds else {}
    return {
        "command": _command(recipe, request, settings["seed"]),
        "chain": recipe.chain.digest(learned=False),
        "train": {**settings, "split": recipe.train.split, "balance": recipe.train.balance, **folds},
        "inputs": [{"path": path, **found} for path, found in dataset.inputs.items()],
        **({"without": sorted(request.without)} if request.without else {}),
        "windows": {"training": len(prepared.split.training), "validation": len(prepared.split.validation)},
        "validation_groups": sorted({example.group for example in prepared.validation}),
        "packages": versions(packages),
        "python": platform.python_version(),
    }


def _command(recipe: Recipe, request: TrainRequest, seed: int) -> str:
    named = str(recipe.path.with_suffix("").name) if recipe.path else recipe.name
    data = "".join(f" --data {path}" for path in request.paths)
    epochs = f" --epochs {request.epochs}" if request.epochs is not None else ""
    only = " --only" if request.only else ""
    search = f" --search {request.search_minutes:g}" if request.search_minutes else ""
    return f"kymo train {named}{data}{epochs} --seed {seed}{only}{search}"


def split_of(chosen: Fitted) -> dict[str, Any]:
    """What stands on each side, for the record."""
    split = chosen.prepared.split
    sides = {
        "training": (split.training_groups, chosen.prepared.training, len(split.training)),
        "validation": (split.validation_groups, chosen.prepared.validation, len(split.validation)),
    }
    return {
        "kind": split.kind,
        "seed": split.seed,
        **({"folds": chosen.folds} if chosen.folds else {}),
        **{name: _side(groups, examples, count) for name, (groups, examples, count) in sides.items()},
    }


def _side(groups: Sequence[str], examples: Sequence[Example], count: int) -> dict[str, Any]:
    return {"windows": count, "groups": list(groups), "labels": dict(Counter(example.label for example in examples))}


def revision() -> str:
    """The git commit of Kymo's own folder, empty where it is no checkout."""
    git = Path(__file__).resolve().parent.parent.parent / ".git"
    try:
        head = (git / "HEAD").read_text().strip()
        return (git / head[5:]).read_text().strip() if head.startswith("ref: ") else head
    except OSError:
        return ""


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Versions of what every model rests on, and of `packages`; None for one that is not installed."""
    return {name: _version(name) for name in (*_PACKAGES, *packages)}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
