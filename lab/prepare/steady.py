"""The steady part of a run, where no column ``usabledata`` marks it. In: accelerations of a foot, the surface. Out: which samples
lie in it, and its stretches.

How much a foot moves is the standard deviation of its acceleration's length over 2 s. It runs where that
is above 60 % of what the busiest tenth of the samples stay above, for at least 3 s on end. On a treadmill the longest such stretch
counts, without its first 10 s, in which the belt gathers speed, and its last second; of what is left, the 25,000 samples in the
middle. Over ground the two longest count, there and back, without their first 2 s and their last second. No margin takes more
than a quarter of a stretch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kymo.lab.prepare.clean import RATE_HZ, runs_of
from kymo.lab.prepare.lines import mean_around
from kymo.streams.errors import SourceError

SAMPLES = 25_000
_SMOOTH = 2 * RATE_HZ
_SHORTEST = 3 * RATE_HZ
_LEVEL, _BUSY = 0.6, 0.9
_LAST = RATE_HZ
_FIRST = {"treadmill": 10 * RATE_HZ, "overground": 2 * RATE_HZ}
_MOST = {"treadmill": 1, "overground": 2}


@dataclass(frozen=True, slots=True, eq=False)
class Steady:
    mask: NDArray[np.bool_]  # ``(n,)``, which rows
    stretches: list[tuple[int, int]]  # first row and one past the last
    note: str  # in words


def find_steady(acceleration: NDArray[np.float64], surface: str) -> Steady:
    """Find the steady part of a foot's ``(n, 3)`` accelerations."""
    count = len(acceleration)
    if count < _SHORTEST:
        whole = np.ones(count, bool)
        return Steady(whole, [(0, count)], f"all of {count / RATE_HZ:g} s: too short to tell a steady part")
    busy = _activity(acceleration)
    level = _LEVEL * float(np.quantile(busy, _BUSY))
    stretches = [(first, last + 1) for first, last in runs_of(busy > level) if last + 1 - first >= _SHORTEST]
    if not stretches:
        raise SourceError(
            "no steady running of 3 s is found; mark it with a column `usabledata`, or keep all rows with --whole"
        )
    longest = sorted(stretches, key=lambda stretch: stretch[0] - stretch[1])[: _MOST[surface]]
    stretches = [_inner(*stretch, surface) for stretch in sorted(longest)]
    mask = np.zeros(count, bool)
    for first, end in stretches:
        mask[first:end] = True
    places = " and ".join(f"{first / RATE_HZ:.1f} to {end / RATE_HZ:.1f} s" for first, end in stretches)
    fewer = ", one stretch instead of two" if len(stretches) < _MOST[surface] else ""
    return Steady(mask, stretches, f"{places}, found from the signal{fewer}")


def _activity(acceleration: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much a foot moves, ``(n,)``, in the accelerations' unit."""
    size = np.linalg.norm(acceleration, axis=1)
    size -= size.mean()
    variance = mean_around(size**2, _SMOOTH) - mean_around(size, _SMOOTH) ** 2
    return np.asarray(np.sqrt(np.maximum(variance, 0)))


def _inner(first: int, end: int, surface: str) -> tuple[int, int]:
    """A stretch without its margins; on a treadmill its middle."""
    quarter = (end - first) // 4
    first, end = first + min(_FIRST[surface], quarter), end - min(_LAST, quarter)
    spare = end - first - SAMPLES if surface == "treadmill" else 0
    if spare > 0:
        first, end = first + spare // 2, first + spare // 2 + SAMPLES
    return first, end
