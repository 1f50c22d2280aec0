"""Architectures by name. In: format of the windows, labels, parameters. Out: what learns, predicts and exports ONNX.

A new architecture is a file in this folder and a line in :data:`ARCHITECTURES`; its framework is imported only when it
is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from kymo.streams.chunk import Array, Format
from kymo.streams.errors import TrainingError
from kymo.streams.schema import SchemaError, nearest, read

#: Name to ``module:class``.
ARCHITECTURES: dict[str, str] = {
    "ast": "kymo.models.zoo.ast:Ast",
    "crnn": "kymo.models.zoo.crnn:Crnn",
    "magnitude_rule": "kymo.models.zoo.magnitude_rule:MagnitudeRule",
    "minirocket": "kymo.models.zoo.minirocket:MiniRocket",
    "recurrent": "kymo.models.zoo.recurrent:Recurrent",
    "spectrogram_cnn": "kymo.models.zoo.spectrogram_cnn:SpectrogramCnn",
    "spectrogram_resnet": "kymo.models.zoo.spectrogram_resnet:SpectrogramResnet",
}


@dataclass(frozen=True, slots=True)
class ModelHead:
    """What a model says beside the recipe's classes: classes of another kind, or one number."""

    name: str  # of the labels it learns from, and of what an event carries
    labels: tuple[str, ...] = ()  # its classes; empty for a number
    weight: float = 1.0  # of its loss beside that of the recipe's classes, above 0

    @property
    def width(self) -> int:
        """Columns of the output: a logit a class, or the number itself."""
        return len(self.labels) or 1


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Windows with what a model should say of them."""

    # ``(n, *shape)`` in the architecture's layout, float32. It may be a memory map: take what a batch needs
    # (``windows[numbers]``), never a copy of all of it
    windows: Array
    classes: NDArray[np.int64]  # ``(n,)``, numbers of the labels
    # by name of a further head, ``(n,)``: int64 numbers of its labels (-1: not known) or float32 (NaN: not known)
    targets: Mapping[str, Array] = field(default_factory=dict)
    # ``(n,)``, numbers of what must stay on one side of a split: for architectures that cross-validate
    groups: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How to learn. Where a value is empty or 0 the architecture's own parameter decides."""

    epochs: int = 60  # most passes over the data, at least 1
    seed: int = 0  # of everything that is random
    patience: int = 15  # epochs without a better validation loss after which learning stops
    min_gain: float = (
        0.0  # by which a validation loss must be lower to count as better; weights are those of the lowest
    )
    batch_size: int = 0  # windows a step; 0 for the architecture's own
    schedule: str = ""  # learning rate over time, one of :data:`~kymo.processors.recipe.tables.SCHEDULES`; empty for the architecture's own
    class_weights: tuple[float, ...] = ()  # one a label; empty: as if all classes were equally frequent
    # ``augment(windows, random)`` varies a batch of training windows, given and returned in the architecture's
    # layout; it may change what it is given
    augment: Callable[[Array, np.random.Generator], Array] | None = None
    # a folder of this fit alone: its state after every epoch. A fit that finds a state there goes on from it, tells
    # `on_epoch` the epochs that were, and ends with the very weights of one that was never stopped
    checkpoints: Path | None = None
    mixed_precision: str = "auto"  # ``auto`` (on a GPU), ``on`` or ``off``


@dataclass(frozen=True, slots=True)
class Between:
    """A range of a parameter that a search may try: evenly in its logarithm, both ends above 0."""

    low: float
    high: float


#: What a search may try of a parameter: some values, or a range.
Range = tuple[Any, ...] | Between

#: One epoch's numbers: ``epoch``, ``loss`` and, with validation, ``validation_loss`` and ``validation_accuracy``.
Epoch = dict[str, float]


class Architecture(Protocol):
    """What the trainer needs of a model.

    A class may also have ``takes = "raw"`` (windows of raw samples instead of what the recipe's steps make of them;
    see :func:`takes`), ``at_once = True`` (it learns without epochs), ``several_heads = True`` (its ``__init__`` then
    takes ``heads``, see below), ``search``, by parameter the values that ``kymo train --search`` may try (see
    :mod:`kymo.models.training.candidates`), and ``weights()``, bytes of the framework's own kind for
    ``kymo train --weights-out``, as is ``tflite(int8)``.

    Its output has a column for each label, then those of each further head in order: one matrix, so that one ONNX
    output carries all. With ``several_heads`` the constructor is ``(fmt, labels, parameters, seed, heads)``.
    """

    layout: ClassVar[str]  # ``channels_first`` or ``channels_last``: how it takes windows
    packages: ClassVar[tuple[str, ...]]  # what it is built with, for a bundle's lineage
    parameters: dict[str, Any]  # all of its parameters, defaults filled in

    def __init__(self, fmt: Format, labels: Sequence[str], parameters: Mapping[str, Any], seed: int) -> None:
        """A fresh model for windows of `fmt`."""

    def fit(
        self, training: Samples, validation: Samples | None, options: FitOptions, on_epoch: Callable[[Epoch], None]
    ) -> None:
        """Learn; with validation, keep the state of the best epoch."""

    def predict(self, windows: Array) -> Array:
        """Outputs, ``(n, columns)`` float32, by the framework itself; `windows` may be a memory map."""

    def export(self, path: Path, input_name: str, output_name: str) -> None:
        """Write ONNX: `input_name` ``(n, *shape)`` to `output_name`, ``(n, columns)``, n free."""


def takes(make: type[Architecture]) -> str:
    """Tell what an architecture takes: ``chain``, the recipe's windows, or ``raw``, windows of the samples that came in."""
    return str(getattr(make, "takes", "chain"))


def architecture(name: str) -> type[Architecture]:
    if name not in ARCHITECTURES:
        raise TrainingError(f"[model] architecture {name!r}: expected one of {', '.join(sorted(ARCHITECTURES))}")
    module, _, cls = ARCHITECTURES[name].partition(":")
    try:
        return cast("type[Architecture]", getattr(importlib.import_module(module), cls))
    except ModuleNotFoundError as error:
        raise TrainingError(
            f"architecture {name!r} needs the package `{error.name}`, which is not installed; here: make setup, "
            f"else install Kymo with the extra of its framework, such as 'kymo-streams[torch]'"
        ) from None


def check_axes(name: str, fmt: Format) -> None:
    """Refuse windows that are neither signals nor spectrograms, for the architecture of this name."""
    if len(fmt.shape) not in (1, 2):
        raise TrainingError(
            f"architecture {name!r} takes windows of (time, bins, channels), the recipe makes {len(fmt.shape) + 1} axes; "
            f"take another architecture"
        )


def read_parameters(parameters: Mapping[str, Any], kind: type[Any]) -> dict[str, Any]:
    """Check the parameters of ``[model]`` by a dataclass, and fill in its defaults; docs/architectures.md says what each means."""
    try:
        return asdict(read(kind, parameters))
    except SchemaError as wrong:
        if wrong.known:
            name = str(wrong.path[0])
            raise TrainingError(f"[model] has no parameter {name!r} here{nearest(name, wrong.known)}") from None
        text = wrong.why or f"{wrong.path[0]} = {wrong.value!r}, expected {wrong.expected}"
        raise TrainingError(f"[model] {text}") from None
