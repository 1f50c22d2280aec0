"""Samples whose times say less than their order. In: times. Out: a number a sample, by counting; nothing where rows and span
do not agree.

Times of arrival come late, in bursts, several samples under one stamp; and stamps may be coarser than samples are, such as whole seconds.
What is so is known by counting: as many rows as the span has room for. A gap is then not one long step, which a late sample makes as
well, but one after which all that comes is late for good.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kymo.streams.words import NS

Int = NDArray[np.int64]
Floats = NDArray[np.float64]
_FEW = 3  # stamps
_LEAST = 20  # rows: with fewer nothing is known
_AROUND, _EARLY = 48, 0.15  # rows before and behind a long step that are compared, by that quantile of theirs
_NEAR_END = 8  # rows
_WANDER, _MADE_UP = 4.5, -0.25
_BLOCK = 500_000  # numbers at once
_SHIFT = 0.75  # samples by which what comes must be late
_LATEST_S, _TOGETHER = 2.0, 16  # samples do not arrive later than that, or that many at once; a longer pause is one
_SAME = 0.01
_CLOCK = 0.002  # a clock's own wandering, as a share of the rows
_COARSE, _ODD_STEPS = 0.3, 0.1  # a stamp's step, in samples; so many steps are longer or shorter then
_MOST, _DENSE = 0.8, 1.5  # so many steps are the same; so much longer is the mean one at most


class Counted(NamedTuple):
    rate: float  # samples per second, by the count
    numbers: Int  # number of each row, strictly increasing from 0
    late_s: float  # how far times lie from even ones


def count(times: Int, rate: float | None) -> Counted | None:
    """Number rows in the order of their times by counting them; None where rows and span do not agree."""
    if len(times) < _LEAST:
        return None
    since = (times - times[0]).astype(np.float64) / NS
    counted = coarse(times) or _by_steps(since, rate) or _by_rows(since, rate)
    return None if counted is None or (rate is not None and abs(counted.rate / rate - 1) > _SAME) else counted


def coarse(times: Int) -> Counted | None:
    """Rows that come evenly, as far as stamps can say that are coarser than they are; a step far longer than others is a pause."""
    starts = np.flatnonzero(np.diff(times, prepend=times[0] - 1))  # the first row of each stamp
    if len(times) < _LEAST or len(starts) < _FEW + 1:
        return None
    stamps = (times[starts] - times[0]).astype(np.float64) / NS
    between = np.diff(stamps)
    step = float(np.gcd.reduce(np.diff(times[starts]))) / NS
    pauses = np.flatnonzero(between > 2.5 * np.quantile(between, 0.9)) + 1
    # The first stamp of a run, and what is below it, may be cut short.
    runs = [run[1:] if len(run) > 2 else run for run in np.split(np.arange(len(starts)), pauses)]
    rows, spans = (sum(values[run[-1]] - values[run[0]] for run in runs) for values in (starts, stamps))
    if spans <= 0 or (len(runs) > 1 and step * rows / spans < 1):
        return None
    rate = rows / spans if len(runs) > 1 else _slope(stamps[runs[0]], starts[runs[0]].astype(np.float64))
    first_rows = [0, *starts[pauses].tolist()]
    shifts = [round(stamps[run[0]] * rate - int(starts[run[0]])) for run in runs]
    missing = np.repeat(shifts, np.diff([*first_rows, len(times)])) - shifts[0]
    since, numbers = (times - times[0]).astype(np.float64) / NS, np.arange(len(times)) + missing
    steps = np.diff(since)
    long, repeats = np.count_nonzero(steps > 1.5 * np.median(steps)), np.count_nonzero(steps == 0)
    odd = np.mean(np.abs(steps - np.median(steps)) > 0.5 * step) >= min(_ODD_STEPS, 0.5 / (step * rate))
    if (
        step * rate < _COARSE
        or not (odd or 0 < long <= repeats + 1)
        or (np.diff(numbers) < 1).any()
        or float(np.ptp(since * rate - numbers)) > 1.1 + step * rate * 1.02
    ):
        return None
    return Counted(rate, numbers, step)


def _by_steps(since: Floats, rate: float | None) -> Counted | None:
    """Where most steps are the same, each is so many samples, though their sum wanders a little from the clock's."""
    steps = np.diff(since)
    step = float(np.median(steps))
    if step <= 0 or np.mean(np.abs(steps / step - 1) < 0.1) < _MOST or steps.mean() > _DENSE * step:
        return None
    numbers = np.concatenate(([0], np.cumsum(np.maximum(np.rint(steps / step), 1).astype(np.int64))))
    counted_rate = _slope(since, numbers) if rate is None else rate
    late = float(np.ptp(since * counted_rate - numbers))
    return None if late > max(1.0, _CLOCK * len(since)) else Counted(counted_rate, numbers, late / counted_rate)


def _by_rows(since: Floats, rate: float | None) -> Counted | None:
    """As many rows as the span has room for."""
    rows = np.arange(len(since))
    each = len(since) // max(1, int(np.count_nonzero(np.diff(since))))  # rows a stamp
    block = min(max(_LEAST // 2, len(since) // 10, 2 * each), len(since) // 2)
    middle = float(np.median(since[block:] - since[:-block]))
    if middle <= 0:
        return None
    counted_rate = block / middle
    if rate is not None and abs(counted_rate / rate - 1) < 0.1:  # a block may end within a burst
        counted_rate = rate
    for _ in range(3):
        missing = _missing_before(since, counted_rate)
        counted_rate = _slope(since, rows + missing)
    even = since * counted_rate - rows - missing  # samples by which each row is late
    late = float(np.ptp(np.quantile(even, (0.02, 0.98))))
    longest = np.diff(since)[np.diff(missing) == 0].max(initial=0.0)
    around = max(_AROUND, 4 * each)
    blocks = np.array_split(even, max(2, min(50, len(even) // around)))
    drift = float(np.ptp([np.median(block) for block in blocks]))
    if longest > max(_LATEST_S, _TOGETHER / counted_rate) or drift > max(1.0, late, _CLOCK * len(even)):
        return None
    # Times that are late and stay so, as those of heartbeats, follow no clock.
    steps = np.diff(even)
    low, high = np.quantile(steps, (0.1, 0.9))
    if low > -0.9 and high - low > 0.1 and np.corrcoef(steps[1:], steps[:-1])[0, 1] > _MADE_UP:
        return None  # no bursts, and what is late is not made up for at once
    far = min(around, len(even) // 3)
    near, away = (float(np.std(even[by:] - even[:-by])) for by in (1, far))
    if away > _WANDER * max(near, 0.1):
        return None
    return Counted(counted_rate, rows + missing.astype(np.int64), late / counted_rate)


def _missing_before(since: Floats, rate: float) -> Floats:
    # More than one burst, however many rows have one stamp.
    around = max(_AROUND, 4 * len(since) // max(1, int(np.count_nonzero(np.diff(since)))))
    late_by = since * rate - np.arange(len(since))
    late_rows = np.flatnonzero(np.diff(late_by) > _SHIFT - 0.25) + 1  # the first row after each long step
    if not len(late_rows):
        return np.zeros(len(since))
    steps = np.diff(late_by)[late_rows - 1]
    shift = _earliest(late_by, late_rows, around) - _earliest(late_by, late_rows - around, around)
    # Where long steps are usual, as between bursts, only a longer one can be a gap; and it is one by itself, not by what is near.
    usual = float(np.quantile(steps, 0.9)) if len(late_rows) > max(_LEAST // 2, len(late_by) // around) else 0.0
    few = np.minimum(late_rows, len(late_by) - late_rows) < _NEAR_END  # near an end little is known
    real = (shift > _SHIFT) & (steps > 0.5 * shift) & (steps > np.where(few, 3, 1.5) * usual)
    missing = np.zeros(len(since))
    missing[late_rows[real]] = np.maximum(np.rint(np.minimum(shift, steps)[real]), 1)
    total: Floats = np.cumsum(missing)
    return total


def _earliest(late_by: Floats, starts: Int, around: int) -> Floats:
    """By how much the early ones are late of the rows around, from each of `starts` on: some may be later, and come together."""
    ends = np.full(around, np.inf)
    rows = np.lib.stride_tricks.sliding_window_view(np.concatenate((ends, late_by, ends)), around)
    count = np.minimum(starts + around, len(late_by)) - np.maximum(starts, 0)
    ranks = (_EARLY * (count - 1)).astype(np.int64)
    size = max(1, _BLOCK // around)
    earliest = np.empty(len(starts))
    for at in range(0, len(starts), size):
        near = np.sort(rows[starts[at : at + size] + around], axis=1)
        earliest[at : at + size] = near[np.arange(len(near)), ranks[at : at + size]]
    return earliest


def _slope(since: Floats, numbers: Floats) -> float:
    """Numbers a second, by least squares."""
    from_middle = since - since.mean()
    return float(from_middle @ (numbers - numbers.mean()) / (from_middle @ from_middle))
