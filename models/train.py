"""The trainer. In: a recipe and labelled recordings. Out: a bundle and its scores.

Windows come from the very chain that runs live; steps that learn, learn from the training windows alone. Scores are of
recordings held out; the bundle's model is then learned from all of them, for as many epochs as were best (`refit`).
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from models.bundle import Bundle, load_bundle
from models.classify import fit_temperature, softmax
from models.dataset import Dataset, Example, apply_steps, fit_steps, read_dataset, split, split_chain, to_samples
from models.evaluate import score_windows
from models.export import INPUT, OUTPUT, export_model
from models.registry import MODEL, write_bundle
from models.zoo import Architecture, Epoch, FitOptions, Samples, architecture, read_parameters
from processors.chain import Chain
from processors.recipe import Recipe
from streams.errors import TrainingError
from streams.sources import read

#: ``[train]`` of a recipe: epochs, patience and seed (see FitOptions), the share of windows held out for validation,
#: whether the temperature is fitted to those or stays 1, and whether the final model learns from them too.
DEFAULTS: dict[str, Any] = {
    "epochs": 60,
    "patience": 15,
    "seed": 0,
    "validation": 0.2,
    "calibrate": False,
    "refit": True,
}
_PACKAGES = ("kymo", "numpy", "scipy", "onnxruntime")


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What to train on, and where to.

    Attributes
    ----------
    paths : tuple of str
        Files, folders, URLs, names of shipped data sets.
    epochs, seed : int, optional
        Instead of the recipe's.
    out : Path, optional
        The bundle's folder; None for the registry, where it becomes the current version.
    """

    paths: tuple[str, ...]
    epochs: int | None = None
    seed: int | None = None
    out: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What came of it.

    Attributes
    ----------
    bundle : Bundle
        Written and read back.
    scores : dict
        Of the validation windows; empty where there are none. See :func:`models.evaluate.score_windows`.
    notes : list of str
        What the user should know.
    """

    bundle: Bundle
    scores: dict[str, Any]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Windows on both sides of the split, and the chain with what was learned from the training side.

    Attributes
    ----------
    chain : Chain
        The recipe's, its learned numbers set.
    labels : tuple of str
        Classes.
    training, validation : list of Example
        Behind the whole chain; the second may be empty.
    """

    chain: Chain
    labels: tuple[str, ...]
    training: list[Example]
    validation: list[Example]


@dataclass(frozen=True, slots=True, eq=False)
class _Learned:
    model: Architecture
    training: Samples
    validation: Samples | None
    history: list[Epoch]


def train(recipe: Recipe, request: TrainRequest, on_epoch: Callable[[Epoch], None] = lambda _: None) -> Trained:
    """Train a recipe's model and write its bundle.

    Parameters
    ----------
    recipe : Recipe
        With a ``[model]``.
    request : TrainRequest
        Data and target.
    on_epoch : callable
        Told each epoch's numbers.

    Raises
    ------
    TrainingError
        If the data do not allow it; the text says what to do.
    BundleError
        If the bundle cannot be written.
    """
    parameters = train_parameters(recipe, request)
    dataset = read_dataset(read(request.paths, recipe.read_options()), recipe, split_chain(recipe.chain)[0])
    prepared = prepare(recipe, dataset.examples, parameters["validation"], parameters["seed"])
    learned = learn(recipe, prepared, parameters, on_epoch)
    temperature, scores = _judge(prepared, learned, parameters["calibrate"])
    final, model = prepared, learned
    if prepared.validation and parameters["refit"]:
        best = min(learned.history, key=lambda epoch: epoch["validation_loss"])
        final = prepare(recipe, dataset.examples, 0.0, parameters["seed"])
        model = learn(recipe, final, {**parameters, "epochs": int(best["epoch"])}, on_epoch)
    exported = export_model(model.model, model.training.windows.shape[1:], model.training.windows)
    manifest = {
        "recipe": recipe.name,
        **_model_section(recipe, model),
        "labels": list(final.labels),
        "temperature": temperature,
        "batch": exported.batch,
        "chain": final.chain.to_json(),
        "scores": {k: scores[k] for k in ("accuracy", "macro_f1", "n", "window_accuracy", "windows") if k in scores},
        "lineage": _lineage(recipe, request, parameters, dataset, prepared),
    }
    report = {"history": learned.history, "validation": scores, "parity": exported.parity, "notes": dict(dataset.notes)}
    files = {MODEL: exported.model, "report/report.json": (json.dumps(report, indent=1) + "\n").encode()}
    path = write_bundle(request.out, manifest, files)
    return Trained(load_bundle(path), scores, _notes(dataset, prepared))


def train_parameters(recipe: Recipe, request: TrainRequest) -> dict[str, Any]:
    """``[train]`` with defaults filled in and the request's own numbers.

    Raises
    ------
    TrainingError
        If the recipe has no model, or a parameter is unknown or out of range.
    """
    if recipe.model is None:
        raise TrainingError(f"recipe `{recipe.name}` has no [model]; add one with its architecture")
    found = read_parameters(recipe.train.parameters, DEFAULTS, "[train]")
    found |= {k: v for k, v in (("epochs", request.epochs), ("seed", request.seed)) if v is not None}
    if found["epochs"] < 1 or found["patience"] < 1 or not 0 <= found["validation"] < 1:
        raise TrainingError("[train] epochs and patience start at 1, validation is a share from 0 to below 1")
    return found


def prepare(recipe: Recipe, examples: Sequence[Example], share: float, seed: int) -> Prepared:
    """Split the windows that came out of the chain's head, and run them through its steps that learn.

    Raises
    ------
    TrainingError
        If there are fewer than two classes.
    """
    labels = Dataset(list(examples)).labels
    if len(labels) < 2:
        raise TrainingError(
            f"all {len(examples)} windows have the label `{labels[0]}`; a classifier needs at least two classes: "
            f"add recordings of another one"
        )
    head, steps = split_chain(recipe.chain)
    sides = [[examples[i] for i in numbers] for numbers in split(examples, share, seed)]
    fitted = fit_steps(steps, [example.window for example in sides[0]])
    for i, side in enumerate(sides):
        windows = apply_steps(fitted, [example.window for example in side])
        sides[i] = [replace(example, window=window) for example, window in zip(side, windows, strict=True)]
    return Prepared(Chain((*head.specs, *fitted)), labels, sides[0], sides[1])


def learn(
    recipe: Recipe, prepared: Prepared, parameters: Mapping[str, Any], on_epoch: Callable[[Epoch], None]
) -> _Learned:
    """A model that has learned the prepared windows.

    Raises
    ------
    TrainingError
        If the architecture cannot take them, or a window holds a number that is not finite.
    """
    assert recipe.model is not None
    make = architecture(recipe.model.architecture)
    training = to_samples(prepared.training, prepared.labels, make.layout)
    validation = to_samples(prepared.validation, prepared.labels, make.layout) if prepared.validation else None
    model = make(recipe.output_format(), prepared.labels, recipe.model.parameters, parameters["seed"])
    history: list[Epoch] = []

    def tell(epoch: Epoch) -> None:
        history.append(epoch)
        on_epoch(epoch)

    options = FitOptions(parameters["epochs"], parameters["seed"], parameters["patience"])
    model.fit(training, validation, options, tell)
    return _Learned(model, training, validation, history)


def _judge(prepared: Prepared, learned: _Learned, calibrate: bool) -> tuple[float, dict[str, Any]]:
    """Temperature, and scores of the validation windows."""
    if learned.validation is None:
        return 1.0, {}
    logits = learned.model.predict(learned.validation.windows)
    temperature = fit_temperature(logits.tolist(), learned.validation.classes.tolist()) if calibrate else 1.0
    probabilities = [dict(zip(prepared.labels, softmax(row, temperature), strict=True)) for row in logits.tolist()]
    sessions = [example.window.session for example in prepared.validation]
    truths = [example.label for example in prepared.validation]
    return temperature, score_windows(zip(sessions, truths, probabilities, strict=True), prepared.labels)


def _model_section(recipe: Recipe, learned: _Learned) -> dict[str, Any]:
    assert recipe.model is not None
    model = {
        "input": INPUT,
        "output": OUTPUT,
        "shape": list(learned.training.windows.shape[1:]),
        "dtype": "float32",
        "layout": learned.model.layout,
    }
    return {
        "architecture": {"name": recipe.model.architecture, "parameters": learned.model.parameters},
        "model": model,
    }


def _lineage(
    recipe: Recipe, request: TrainRequest, parameters: Mapping[str, Any], dataset: Dataset, prepared: Prepared
) -> dict[str, Any]:
    assert recipe.model is not None
    packages = architecture(recipe.model.architecture).packages
    named = str(recipe.path.with_suffix("").name) if recipe.path else recipe.name
    data = "".join(f" --data {path}" for path in request.paths)
    epochs = f" --epochs {request.epochs}" if request.epochs is not None else ""
    return {
        "command": f"kymo train {named}{data}{epochs} --seed {parameters['seed']}",
        "chain": recipe.chain.digest(learned=False),
        "train": {**parameters, "split": recipe.train.split},
        "inputs": [{"path": path, **found} for path, found in dataset.inputs.items()],
        "windows": {"training": len(prepared.training), "validation": len(prepared.validation)},
        "validation_groups": sorted({example.group for example in prepared.validation}),
        "packages": {name: _version(name) for name in (*_PACKAGES, *packages)},
        "python": platform.python_version(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _notes(dataset: Dataset, prepared: Prepared) -> list[str]:
    notes = [f"{text} ({count} times)" if count > 1 else text for text, count in dataset.notes.items()]
    if not prepared.validation:
        notes.append(
            "nothing was held out, so there are no scores: no recording can be spared, or [train] validation = 0"
        )
    return notes
