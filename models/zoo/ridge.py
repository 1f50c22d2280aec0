"""Ridge regression onto classes and numbers. In: features, targets, groups. Out: weights, and how sure they may be.

One solution in the number of samples (dual form). The penalty, and the temperature that turns scores into
probabilities, are chosen by the scores that each group gets from a model fitted without it: exact, in closed form, from
the one decomposition (the leave-one-out identity, by blocks: Cook and Weisberg 1982, Residuals and Influence, 3.5).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.predict import fit_temperature
from models.zoo import Head
from streams.chunk import Array

Doubles = NDArray[np.float64]
PENALTIES = np.logspace(-3, 4, 15)  # per sample: the kernel's mean diagonal is 1


@dataclass(frozen=True, slots=True, eq=False)
class Ridge:
    """A fitted model: ``logits = (features - mean) / scale @ weights + bias``."""

    mean: Doubles
    scale: Doubles
    weights: Doubles  # ``(features, labels)``, divided by the temperature
    bias: Doubles
    penalty: float  # that was chosen
    left_out: Doubles  # ``(n, labels)``: logits of each sample by a model fitted without its group


def fit_ridge(
    features: NDArray[np.float32], classes: NDArray[np.int64], groups: NDArray[np.int64], weights: Doubles
) -> Ridge:
    """Fit on standardised features, with targets of 1 for the own class and -1 for the others."""
    mean, scale = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    scale[scale == 0] = 1
    features -= mean.astype(np.float32)
    features /= scale.astype(np.float32)
    return Ridge(mean, scale, *_Kernel(features, groups, weights[classes]).classes(classes, weights))


def fit_heads(
    features: NDArray[np.float32], groups: NDArray[np.int64], heads: Sequence[Head], targets: Mapping[str, Array]
) -> tuple[Doubles, Doubles]:
    """What further heads say: one solution a head, from the samples whose target is known."""
    kernels: dict[bytes, _Kernel] = {}
    weights, bias = [np.zeros((features.shape[1], 0))], [np.zeros(0)]
    for head in heads:
        target: Any = targets[head.name]
        known = target >= 0 if head.labels else np.isfinite(target)
        if not known.any():
            weights.append(np.zeros((features.shape[1], head.width)))
            bias.append(np.zeros(head.width))
            continue
        if known.tobytes() not in kernels:
            some = features if known.all() else features[known]
            kernels[known.tobytes()] = _Kernel(some, groups[known], np.ones(int(known.sum())))
        kernel = kernels[known.tobytes()]
        own = kernel.classes(target[known], np.ones(head.width)) if head.labels else kernel.number(target[known])
        weights.append(own[0])
        bias.append(own[1])
    return np.concatenate(weights, 1), np.concatenate(bias)


class _Kernel:
    """Inner products of standardised features, decomposed once for all that is asked of the same samples."""

    def __init__(self, features: NDArray[np.float32], groups: NDArray[np.int64], weights: Doubles) -> None:
        self.features, self.groups, self.root = features, groups, np.sqrt(weights)[:, None]
        self.size = float(np.square(features, dtype=np.float64).sum(1).mean()) or 1.0
        # A constant feature as long as the others together stands for the bias.
        kernel = (features @ features.T).astype(np.float64) / self.size + 1.0
        values, self.vectors = np.linalg.eigh(kernel * self.root * self.root.T)
        self.values: Doubles = np.maximum(values, 0)

    def classes(self, classes: NDArray[np.int64], weights: Doubles) -> tuple[Doubles, Doubles, float, Doubles]:
        """Weights, bias, penalty and left-out logits for classes, each with its weight."""
        targets = np.where(np.arange(len(weights)) == classes[:, None], 1.0, -1.0)

        def judge(left: Doubles) -> tuple[float, float]:
            temperature = fit_temperature((left * _SHARP).tolist(), classes.tolist()) / _SHARP
            return cross_entropy(left / temperature, classes, weights), temperature

        return self._solve(targets, judge)

    def number(self, values: Array) -> tuple[Doubles, Doubles, float, Doubles]:
        """Weights, bias, penalty and left-out values for a number, in its own unit."""
        known = values.astype(np.float64)[:, None]
        middle, spread = float(known.mean()), float(known.std()) or 1.0
        targets = (known - middle) / spread

        def judge(left: Doubles) -> tuple[float, float]:
            return float(np.square(left - targets).mean()), 1.0

        weights, bias, penalty, left = self._solve(targets, judge)
        return weights * spread, bias * spread + middle, penalty, left * spread + middle

    def _solve(
        self, targets: Doubles, judge: Callable[[Doubles], tuple[float, float]]
    ) -> tuple[Doubles, Doubles, float, Doubles]:
        """The solution whose left-out scores have the lowest loss; `judge` gives it, and what to divide scores by."""
        turned = self.vectors.T @ (targets * self.root)
        best: tuple[float, float, float, Doubles] | None = None
        for penalty in PENALTIES:
            shrunk = self.values / (self.values + penalty)
            left = _left_out(self.vectors, shrunk, turned, targets * self.root, self.groups) / self.root
            loss, temperature = judge(left)
            if best is None or loss < best[0]:
                best = loss, float(penalty), temperature, left
        assert best is not None
        _, penalty, temperature, left = best
        dual = (self.vectors @ (turned / (self.values + penalty)[:, None])) * self.root / temperature
        weights = self.features.T.astype(np.float64) @ dual / self.size
        return weights, dual.sum(0), penalty, left / temperature


_SHARP = 2.0  # scores differ by about 2: temperatures from 1/8 on are tried, so that none is surer than 1 - 1e-7


def _left_out(
    vectors: Doubles, shrunk: Doubles, turned: Doubles, targets: Doubles, groups: NDArray[np.int64]
) -> Doubles:
    """Scores of each sample without its group: ``y - (I - H_gg)^-1 (y - H y)_g``."""
    residuals = targets - vectors @ (shrunk[:, None] * turned)
    out = np.empty_like(targets)
    for group in np.unique(groups):
        at = np.flatnonzero(groups == group)
        hat = (vectors[at] * shrunk) @ vectors[at].T
        out[at] = targets[at] - np.linalg.solve(np.eye(len(at)) - hat, residuals[at])
    return out


def cross_entropy(logits: Doubles, classes: NDArray[np.int64], weights: Doubles | None = None) -> float:
    """Mean over samples, each with its class's weight if there are weights."""
    top = logits.max(1, keepdims=True)
    each = np.log(np.exp(logits - top).sum(1)) + top[:, 0] - logits[np.arange(len(classes)), classes]
    return float(np.average(each, weights=None if weights is None else weights[classes]))
