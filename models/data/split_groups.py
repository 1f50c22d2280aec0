"""Groups on two or more sides. In: a group and a class for each window. Out: which groups to take, classes kept in proportion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.float64]


def hold_out(groups: Sequence[str], labels: Sequence[str], share: float, seed: int) -> set[str]:
    """Names of groups to hold out.

    They are taken one by one, each the one that brings the count of every class held out nearest to its share, as long
    as every class stays in training.
    """
    names, counts = _count(groups, labels)
    order = list(range(len(names)))
    shuffled = [names[i] for i in order]
    np.random.default_rng(seed).shuffle(shuffled)
    row = {name: i for i, name in enumerate(names)}
    left = counts[[row[name] for name in shuffled]] if names else counts
    total, chosen = counts.sum(0), set[str]()
    taken, free = np.zeros(counts.shape[1]), np.ones(len(names), bool)
    while share and free.any():
        able = np.flatnonzero(free & (taken + left < total).all(1))
        if not len(able):
            break
        # In shares of each class, so that rare ones count as much as frequent ones.
        distance = np.sum(((taken + left[able]) / total - share) ** 2, axis=1)
        best = int(distance.argmin())
        if chosen and distance[best] >= np.sum((taken / total - share) ** 2):
            break
        taken = taken + left[able[best]]
        free[able[best]] = False
        chosen.add(shuffled[able[best]])
    return chosen


def deal(groups: Sequence[str], labels: Sequence[str], count: int, seed: int) -> dict[str, int]:
    """A part for each group: large groups first, each to where it leaves the parts' classes most alike."""
    names, counts = _count(groups, labels)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-counts[order].sum(1), kind="stable")]
    shares = counts / counts.sum(0)
    filled, sizes = np.zeros((count, counts.shape[1])), np.zeros(count)
    part: dict[str, int] = {}
    for left, i in enumerate(order):
        # The sum of squares grows least where the part has least of these classes; parts without a group come first
        # when there are just enough groups left to give each of them one.
        cost = ((filled + shares[i]) ** 2 - filled**2).sum(1)
        if (sizes == 0).sum() >= len(order) - left:
            cost = np.where(sizes == 0, cost, np.inf)
        best = int(np.lexsort((sizes, cost))[0])
        filled[best] += shares[i]
        sizes[best] += 1
        part[names[i]] = best
    return part


def _count(groups: Sequence[str], labels: Sequence[str]) -> tuple[list[str], Counts]:
    """Names of the groups, sorted, and ``(groups, classes)`` windows."""
    classes = {label: i for i, label in enumerate(sorted(set(labels)))}
    names = sorted(set(groups))
    row = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(classes)))
    for group, label in zip(groups, labels, strict=True):
        counts[row[group], classes[label]] += 1
    return names, counts
