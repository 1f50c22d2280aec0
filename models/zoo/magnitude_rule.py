"""A plain rule on the length of a vector. In: raw windows ``(n, channels, time)`` float32. Out: logits ``(n, labels)``.

The mean length of the magnetometer's vector over a window differs from its usual length by so much; thresholds between classes say
what that means. It is what a network must beat to be worth its while.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kymo.models.training.learning import class_weights
from kymo.models.zoo import Epoch, FitOptions, Samples, read_parameters
from kymo.models.zoo.onnx_graph import Graph, GraphArchitecture, cross_entropy
from kymo.streams.chunk import Array, Format
from kymo.streams.errors import TrainingError


@dataclass(frozen=True)
class MagnitudeRuleParameters:
    channels: str = "mag*"


_STEEPNESS = tuple(2.0**i for i in range(-4, 9))  # of probabilities, tried in training

Floats = NDArray[np.float64]


class MagnitudeRule(GraphArchitecture):
    one_number: ClassVar[bool] = True  # of a window is all it looks at: it cannot learn whatever it is given
    cpu_sized: ClassVar[Mapping[str, Any]] = {"channels": "*"}

    def __init__(self, fmt: Format, labels: Sequence[str], parameters: Mapping[str, Any], seed: int) -> None:
        self.parameters = read_parameters(parameters, MagnitudeRuleParameters)
        if len(fmt.shape) != 1:
            raise TrainingError("architecture 'magnitude_rule' takes raw windows, one number a channel")
        patterns = [pattern.strip() for pattern in self.parameters["channels"].split(",")]
        in_vector = [any(fnmatchcase(name, pattern) for pattern in patterns) for name in fmt.channels]
        self._names = fmt.channels
        self.labels = self.columns = len(labels)
        self.shape = fmt.shape[-1], fmt.rows or 1
        self._in_vector = np.array(in_vector, np.float32)  # (channels,)
        self._usual = np.float32(0)
        self._unit = np.float32(1)  # what a deviation of 1 is
        self._slopes = np.zeros(self.labels, np.float32)
        self._offsets = np.zeros(self.labels, np.float32)

    def fit(
        self, training: Samples, validation: Samples | None, options: FitOptions, on_epoch: Callable[[Epoch], None]
    ) -> None:
        """Learn at once: one epoch.

        The usual length is the median of the class that varies least; classes stand in the order of their median deviation, and
        each threshold is where the fewest windows of the two beside it are on the wrong side.
        """
        if not self._in_vector.any():
            raise TrainingError(
                f"[model] channels = {self.parameters['channels']!r}: none of {', '.join(self._names)} has such a name"
            )
        lengths, classes = self._lengths(training.windows), training.classes
        weights = class_weights(classes, self.labels, options).astype(np.float64)[classes]
        present = np.unique(classes)
        parts = [lengths[classes == c] for c in present]
        self._usual = np.float32(np.median(min(parts, key=lambda part: np.ptp(np.percentile(part, [25, 75])))))
        deviations = np.abs(lengths - self._usual)
        order = present[np.argsort([np.median(deviations[classes == c]) for c in present], kind="stable")]
        thresholds = [_threshold(deviations, classes, pair, weights) for pair in itertools.pairwise(order)]
        self._unit = np.float32(max(thresholds, default=0.0) or 1.0)
        rising = np.maximum.accumulate(np.array(thresholds) / self._unit)
        self._set(order, rising, 1.0)
        logits = self.predict(training.windows).astype(np.float64)
        steepness = min(_STEEPNESS, key=lambda s: cross_entropy(logits * s, classes))
        self._set(order, rising, steepness)
        on_epoch(self.only_epoch(cross_entropy(logits * steepness, classes), validation))

    def _set(self, order: NDArray[np.int64], thresholds: Floats, steepness: float) -> None:
        """Set straight lines of the deviation, each steeper than the one before, which cross at the thresholds."""
        slopes, offsets = np.zeros(self.labels), np.full(self.labels, -1e3)  # what was never seen is never said
        for rank, number in enumerate(order):
            slopes[number] = steepness * rank
            offsets[number] = -steepness * float(thresholds[:rank].sum())
        self._slopes, self._offsets = slopes.astype(np.float32), offsets.astype(np.float32)

    def _lengths(self, windows: Array) -> Floats:
        """Average the vector's length, ``(n,)``, 256 windows at a time; added up as ONNX Runtime may not, so in float64."""
        parts = []
        for i in range(0, len(windows), 256):
            vector = np.asarray(windows[i : i + 256], np.float64)[:, self._in_vector > 0]
            parts.append(np.sqrt(np.square(vector).sum(1)).mean(1))
        return np.concatenate(parts)

    def write(self, graph: Graph, input_name: str, output_name: str) -> None:
        """Compute in float64, so that no window's result depends on the others."""
        from onnx import TensorProto

        vectors = graph.node("Gather", [input_name, np.flatnonzero(self._in_vector)], axis=1)
        vectors = graph.node("Cast", [vectors], to=TensorProto.DOUBLE)
        lengths = graph.node("Sqrt", [graph.node("ReduceSumSquare", [vectors, np.array([1])], keepdims=0)])
        mean = graph.node("ReduceMean", [lengths, np.array([1])], keepdims=1)
        deviation = graph.node("Abs", [graph.node("Sub", [mean, np.float64(self._usual)])])
        deviation = graph.node("Div", [deviation, np.float64(self._unit)])
        logits = graph.node("Mul", [deviation, self._slopes.astype(np.float64)])
        logits = graph.node("Add", [logits, self._offsets.astype(np.float64)])
        graph.node("Cast", [logits], output_name, to=TensorProto.FLOAT)


def _threshold(
    deviations: Floats, classes: NDArray[np.int64], pair: tuple[np.int64, np.int64], weights: Floats
) -> float:
    """Find the deviation that parts two classes with the least weight on the wrong side; half way between two that occur."""
    either = np.isin(classes, pair)
    order = np.argsort(deviations[either], kind="stable")
    values, high, weight = deviations[either][order], (classes[either] == pair[1])[order], weights[either][order]
    # Wrong, if the first i of them are said to be low: the high ones among those, and the low ones behind.
    wrong = np.concatenate([[0.0], np.cumsum(weight * high)]) + (weight * ~high).sum()
    wrong -= np.concatenate([[0.0], np.cumsum(weight * ~high)])
    edges = np.concatenate([[values[0]], (values[1:] + values[:-1]) / 2, [values[-1] * (1 + 1e-6)]])
    return float(edges[int(np.argmin(wrong))])
