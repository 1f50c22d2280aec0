"""Architectures by name. In: format of the windows, labels, parameters. Out: what learns, predicts and exports ONNX.

A new architecture is a file in this folder and a line in :data:`ARCHITECTURES`; its framework is imported only when it
is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from processors.registry import nearest
from streams.chunk import Array, Format
from streams.errors import TrainingError

#: Name to ``module:class``.
ARCHITECTURES: dict[str, str] = {"spectrogram_cnn": "models.zoo.spectrogram_cnn:SpectrogramCnn"}


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Windows with their classes.

    Attributes
    ----------
    windows : ndarray
        ``(n, *shape)`` in the architecture's layout, float32.
    classes : ndarray of int64
        ``(n,)``, numbers of the labels.
    """

    windows: Array
    classes: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How to learn.

    Attributes
    ----------
    epochs : int
        Most passes over the data, at least 1.
    seed : int
        Of everything that is random.
    patience : int
        Epochs without a better validation loss after which learning stops.
    """

    epochs: int = 60
    seed: int = 0
    patience: int = 15


#: One epoch's numbers: ``epoch``, ``loss`` and, with validation, ``validation_loss`` and ``validation_accuracy``.
Epoch = dict[str, float]


class Architecture(Protocol):
    """What the trainer needs of a model.

    Attributes
    ----------
    layout : str
        ``channels_first`` or ``channels_last``: how it takes windows.
    packages : tuple of str
        What it is built with, for a bundle's lineage.
    parameters : dict
        All of its parameters, defaults filled in.
    """

    layout: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    parameters: dict[str, Any]

    def __init__(self, fmt: Format, labels: Sequence[str], parameters: Mapping[str, Any], seed: int) -> None:
        """A fresh model for windows of `fmt`."""

    def fit(
        self, training: Samples, validation: Samples | None, options: FitOptions, on_epoch: Callable[[Epoch], None]
    ) -> None:
        """Learn; with validation, keep the state of the best epoch."""

    def predict(self, windows: Array) -> Array:
        """Logits, ``(n, labels)`` float32, by the framework itself."""

    def export(self, path: Path, input_name: str, output_name: str) -> None:
        """Write ONNX: `input_name` ``(n, *shape)`` to `output_name`, logits ``(n, labels)``, n free."""


def architecture(name: str) -> type[Architecture]:
    """The class of an architecture.

    Raises
    ------
    TrainingError
        If there is none of this name, or its framework is not installed.
    """
    if name not in ARCHITECTURES:
        raise TrainingError(f"[model] architecture {name!r}: expected one of {', '.join(sorted(ARCHITECTURES))}")
    module, _, cls = ARCHITECTURES[name].partition(":")
    try:
        return cast("type[Architecture]", getattr(importlib.import_module(module), cls))
    except ModuleNotFoundError as error:
        raise TrainingError(
            f"architecture {name!r} needs the package `{error.name}`, which is not installed; here: make setup, "
            f"else install Kymo with the extra of its framework, such as 'kymo[torch]'"
        ) from None


def read_parameters(given: Mapping[str, Any], defaults: Mapping[str, Any], table: str = "[model]") -> dict[str, Any]:
    """Parameters with defaults filled in; each must be of its default's kind.

    Raises
    ------
    TrainingError
        If one is not known or of another kind; the text names it.
    """
    for key, value in given.items():
        if key not in defaults:
            raise TrainingError(f"{table} has no parameter {key!r} here{nearest(key, defaults)}")
        kind = type(defaults[key])
        fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            words = {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "a text")
            raise TrainingError(f"{table} {key} = {value!r}, expected {words}")
    return {**defaults, **given}
