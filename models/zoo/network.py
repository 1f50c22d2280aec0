"""What all networks share, whatever their framework. In: an architecture's parameters. Out: checked ones, and how it learns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kymo.models.bundle import input_shape
from kymo.models.training.learning import LearningSettings, spread
from kymo.models.zoo import Epoch, FitOptions, ModelHead, Range, Samples, check_axes, read_parameters
from kymo.streams.chunk import Array, Format

_LEARNING = ("learning_rate", "batch_size", "schedule", "weight_decay", "label_smoothing")


class Network:
    """A network as an :class:`~kymo.models.zoo.Architecture`; a framework's subclass fits it, the architecture's builds it.

    Its model has one output, ``(n, columns)``: logits of the classes, then what each further head says. A number comes in its own unit
    (3,000 s, 42.5 points): it is learned relative to spread and mean of the training windows' own, and the last layer takes those in.
    """

    name: ClassVar[str]
    layout: ClassVar[str]
    takes_parameters: ClassVar[type[Any]]  # a dataclass: what ``[model]`` takes
    any_axes: ClassVar[bool] = False  # whether it takes more than signals and spectrograms
    habits: ClassVar[Mapping[str, Any]] = {"clip_norm": 1.0}  # a fresh network's first steps can be far too long
    several_heads: ClassVar[bool] = True
    search: ClassVar[Mapping[str, Range]] = {}
    fit_model: ClassVar[Any]  # functions of the framework, which take the model first: how it learns, then as `fit`;
    predict_model: ClassVar[Any]  # and as `predict`

    def __init__(
        self,
        fmt: Format,  # of the windows
        labels: Sequence[str],
        parameters: Mapping[str, Any],
        seed: int,  # of the first weights
        heads: Sequence[ModelHead] = (),  # what else it says
    ) -> None:
        self.labels, self.heads = len(labels), tuple(heads)
        self.columns = self.labels + sum(head.width for head in self.heads)  # of the output
        self.shape = input_shape((fmt.rows or 1, *fmt.shape), self.layout)  # of a window
        self.notes: list[str] = []  # what the user should know of the fit
        self.parameters = self.read(parameters)
        if not self.any_axes:
            check_axes(self.name, fmt)
        self.seed(seed)
        self.model = self.build()

    def read(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        return read_parameters(parameters, self.takes_parameters)

    @abstractmethod
    def seed(self, seed: int) -> None:
        """Have the framework draw the same first weights for the same seed."""

    @abstractmethod
    def build(self) -> Any:
        """Make the model."""

    @abstractmethod
    def rescale(self, scale: NDArray[np.float32], offset: NDArray[np.float32]) -> None:
        """Have the last layer multiply what its columns are by the first, and then add the second, ``(columns,)`` each."""

    def learning(self) -> LearningSettings:
        own = {name: self.parameters[name] for name in _LEARNING if name in self.parameters}
        return LearningSettings(self.labels, self.heads, **self.habits, **own)

    def fit(
        self, training: Samples, validation: Samples | None, options: FitOptions, on_epoch: Callable[[Epoch], None]
    ) -> None:
        """Learn by AdamW, with class weights; with validation, keep the best epoch's weights."""
        scale, offset = np.ones(self.columns, np.float32), np.zeros(self.columns, np.float32)
        ends = accumulate((head.width for head in self.heads), initial=self.labels)
        numbers = {head.name: column for head, column in zip(self.heads, ends, strict=False) if not head.labels}
        for name, at in numbers.items():
            values = training.targets[name]
            known = values[np.isfinite(values)].astype(np.float64)
            scale[at], offset[at] = spread(values), known.mean() if len(known) else 0

        def relative(samples: Samples) -> Samples:
            targets = {name: (samples.targets[name] - offset[at]) / scale[at] for name, at in numbers.items()}
            return replace(samples, targets={**samples.targets, **targets})

        sides = [samples and relative(samples) for samples in (training, validation)]
        self.fit_model(self.model, self.learning(), *sides, options, on_epoch)
        if numbers:
            self.rescale(scale, offset)

    def predict(self, windows: Array) -> Array:
        outputs: Array = self.predict_model(self.model, windows)
        return outputs
