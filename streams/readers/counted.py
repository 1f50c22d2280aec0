"""Samples whose times say less than their order. In: times in order, Unix ns. Out: the rate, and a number a sample, by counting.

Times of arrival come late, in bursts, several samples under one stamp. What is so is known by counting: as many rows as the span has
room for. A gap is then not one long step, which a late sample makes as well, but one after which all that comes is late for good.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streams.chunk import NS

Int = NDArray[np.int64]
Floats = NDArray[np.float64]

_LEAST = 20  # rows: with fewer nothing is known
_AROUND, _EARLY = 48, 0.15  # rows before and behind a long step that are compared, by that quantile of theirs
_FEW = 8
_WANDER, _MADE_UP = 4.5, -0.25
_BLOCK = 500_000  # numbers at once
_SHIFT = 0.75  # samples by which what comes must be late
_LATEST_S, _TOGETHER = 2.0, 16  # samples do not arrive later than that, or that many at once; a longer pause is one
_SAME = 0.01
_CLOCK = 0.002  # a clock's own wandering, as a share of the rows
_MOST, _DENSE = 0.8, 1.5  # so many steps are the same; so much longer is the mean one at most


class Counted(NamedTuple):
    """What was counted."""

    rate: float  # samples per second, by the count
    numbers: Int  # number of each row, strictly increasing from 0
    late_s: float  # how far times lie from even ones


def count(times: Int, rate: float | None) -> Counted | None:
    """Number rows in the order of their times by counting them; None where rows and span do not agree."""
    if len(times) < _LEAST:
        return None
    since = (times - times[0]).astype(np.float64) / NS
    counted = _by_steps(since, rate) or _by_rows(since, rate)
    return None if counted is None or (rate is not None and abs(counted.rate / rate - 1) > _SAME) else counted


def _by_steps(since: Floats, rate: float | None) -> Counted | None:
    """Where most steps are the same, each is so many samples, though their sum wanders a little from the clock's."""
    steps = np.diff(since)
    step = float(np.median(steps))
    if step <= 0 or np.mean(np.abs(steps / step - 1) < 0.1) < _MOST or steps.mean() > _DENSE * step:
        return None
    numbers = np.concatenate(([0], np.cumsum(np.maximum(np.rint(steps / step), 1).astype(np.int64))))
    found = _slope(since, numbers) if rate is None else rate
    late = float(np.ptp(since * found - numbers))
    return None if late > max(1.0, _CLOCK * len(since)) else Counted(found, numbers, late / found)


def _by_rows(since: Floats, rate: float | None) -> Counted | None:
    """As many rows as the span has room for."""
    rows = np.arange(len(since))
    block = max(_LEAST // 2, len(since) // 10)
    middle = float(np.median(since[block:] - since[:-block]))
    if middle <= 0:
        return None
    found = block / middle
    if rate is not None and abs(found / rate - 1) < 0.1:  # a block may end within a burst
        found = rate
    for _ in range(3):
        missing = _missing(since, found)
        found = _slope(since, rows + missing)
    even = since * found - rows - missing  # samples by which each row is late
    late = float(np.ptp(np.quantile(even, (0.02, 0.98))))
    longest = np.diff(since)[np.diff(missing) == 0].max(initial=0.0)
    if (
        longest > max(_LATEST_S, _TOGETHER / found)
        or _drift(even) > max(1.0, late, _CLOCK * len(even))
        or _wanders(even)
    ):
        return None
    return Counted(found, rows + missing.astype(np.int64), late / found)


def _missing(since: Floats, rate: float) -> Floats:
    """Samples missing before each row."""
    # More than one burst, however many rows have one stamp.
    around = max(_AROUND, 4 * len(since) // max(1, int(np.count_nonzero(np.diff(since)))))
    late = since * rate - np.arange(len(since))
    behind = np.flatnonzero(np.diff(late) > _SHIFT - 0.25) + 1  # the first row after each long step
    if not len(behind):
        return np.zeros(len(since))
    steps = np.diff(late)[behind - 1]
    shift = _earliest(late, behind, around) - _earliest(late, behind - around, around)
    # Where long steps are usual, as between bursts, only a longer one can be a gap; and it is one by itself, not by what is near.
    usual = float(np.quantile(steps, 0.9)) if len(behind) > max(_LEAST // 2, len(late) // around) else 0.0
    few = np.minimum(behind, len(late) - behind) < _FEW  # near an end little is known
    real = (shift > _SHIFT) & (steps > 0.5 * shift) & (steps > np.where(few, 3, 1.5) * usual)
    missing = np.zeros(len(since))
    missing[behind[real]] = np.maximum(np.rint(np.minimum(shift, steps)[real]), 1)
    out: Floats = np.cumsum(missing)
    return out


def _earliest(late: Floats, first: Int, around: int) -> Floats:
    """By how much the early ones are late of the rows around, from each of `first` on: some may be later, and come together."""
    out = np.empty(len(first))
    padded = np.concatenate((np.full(around, np.inf), late, np.full(around, np.inf)))
    there = np.minimum(first + around, len(late)) - np.maximum(first, 0)
    size = max(1, _BLOCK // around)
    for at in range(0, len(first), size):
        block = slice(at, at + size)
        rows = np.sort(padded[first[block, None] + around + np.arange(around)], axis=1)
        out[block] = np.take_along_axis(rows, (_EARLY * (there[block] - 1)).astype(np.int64)[:, None], axis=1)[:, 0]
    return out


def _slope(since: Floats, numbers: Floats) -> float:
    """Numbers a second, by least squares."""
    from_middle = since - since.mean()
    return float(from_middle @ (numbers - numbers.mean()) / (from_middle @ from_middle))


def _wanders(even: Floats) -> bool:
    """Whether times that are late stay so, as those of heartbeats: they follow no clock."""
    steps = np.diff(even)
    low, high = np.quantile(steps, (0.1, 0.9))
    if low > -0.9 and high - low > 0.1 and np.corrcoef(steps[1:], steps[:-1])[0, 1] > _MADE_UP:
        return True  # no bursts, and what is late is not made up for at once
    far = min(_AROUND, len(even) // 3)
    near, away = (float(np.std(even[by:] - even[:-by])) for by in (1, far))
    return away > _WANDER * max(near, 0.1)


def _drift(even: Floats) -> float:
    """By how much blocks of rows differ in how late they are."""
    blocks = np.array_split(even, max(2, min(50, len(even) // _AROUND)))
    return float(np.ptp([np.median(block) for block in blocks]))
