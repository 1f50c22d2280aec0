"""Ridge regression onto classes. In: features, classes, groups. Out: weights, and how sure they may be.

One solution in the number of samples (dual form). The penalty, and the temperature that turns scores into
probabilities, are chosen by the scores that each group gets from a model fitted without it: exact, in closed form, from
the one decomposition (the leave-one-out identity, by blocks: Cook and Weisberg 1982, Residuals and Influence, 3.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.classify import fit_temperature

Doubles = NDArray[np.float64]
PENALTIES = np.logspace(-3, 4, 15)  # per sample: the kernel's mean diagonal is 1


@dataclass(frozen=True, slots=True, eq=False)
class Ridge:
    """A fitted model: ``logits = (features - mean) / scale @ weights + bias``.

    Attributes
    ----------
    mean, scale : ndarray
        ``(features,)``.
    weights : ndarray
        ``(features, labels)``, divided by the temperature.
    bias : ndarray
        ``(labels,)``, likewise.
    penalty : float
        That was chosen.
    left_out : ndarray
        ``(n, labels)``: logits of each sample by a model fitted without its group.
    """

    mean: Doubles
    scale: Doubles
    weights: Doubles
    bias: Doubles
    penalty: float
    left_out: Doubles


def fit_ridge(
    features: NDArray[np.float32], classes: NDArray[np.int64], groups: NDArray[np.int64], weights: Doubles
) -> Ridge:
    """Fit on standardised features, with targets of 1 for the own class and -1 for the others.

    Parameters
    ----------
    features : ndarray
        ``(n, features)``; standardised in place.
    classes, groups : ndarray of int64
        ``(n,)``; a group is left out as a whole.
    weights : ndarray
        ``(labels,)``: how much a sample of each class counts.
    """
    mean, scale = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    scale[scale == 0] = 1
    features -= mean.astype(np.float32)
    features /= scale.astype(np.float32)
    root = np.sqrt(weights[classes])[:, None]
    targets = np.where(np.arange(len(weights)) == classes[:, None], 1.0, -1.0)
    size = float(np.square(features, dtype=np.float64).sum(1).mean()) or 1.0
    # A constant feature as long as the others together stands for the bias.
    kernel = (features @ features.T).astype(np.float64) / size + 1.0
    values, vectors = np.linalg.eigh(kernel * root * root.T)
    values = np.maximum(values, 0)
    turned = vectors.T @ (targets * root)
    best: tuple[float, float, float, Doubles] | None = None
    for penalty in PENALTIES:
        shrunk = values / (values + penalty)
        left = _left_out(vectors, shrunk, turned, targets * root, groups) / root
        temperature = fit_temperature((left * _SHARP).tolist(), classes.tolist()) / _SHARP
        loss = cross_entropy(left / temperature, classes, weights)
        if best is None or loss < best[0]:
            best = loss, float(penalty), temperature, left
    assert best is not None
    _, penalty, temperature, left = best
    dual = (vectors @ (turned / (values + penalty)[:, None])) * root / temperature
    return Ridge(mean, scale, features.T.astype(np.float64) @ dual / size, dual.sum(0), penalty, left / temperature)


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
    """Mean over samples, each with its class's weight if there are weights.

    Parameters
    ----------
    logits, classes, weights : ndarray
        ``(n, labels)``, ``(n,)``, ``(labels,)``.
    """
    top = logits.max(1, keepdims=True)
    each = np.log(np.exp(logits - top).sum(1)) + top[:, 0] - logits[np.arange(len(classes)), classes]
    return float(np.average(each, weights=None if weights is None else weights[classes]))
