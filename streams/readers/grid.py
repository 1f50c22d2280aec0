"""From the times of samples to their numbers. In: times, Unix ns. Out: rate (a fraction), origin in ns, a number a
sample, and notes.

Sample i of a stream is taken at ``origin + i / rate``. Recorded times jitter, drift, repeat and jump; here they become
whole numbers: jitter is rounded away, a jump in the numbers is a gap, a repeated number is a duplicate. Nothing is
repaired without a note.

Times of arrival say less than their order: they come late, in bursts, several samples under one stamp; and stamps may be coarser than
samples are, such as whole seconds. What is so is known by counting: as many rows as the span has room for. A gap is then not one long
step, which a late sample makes as well, but one after which all that comes is late for good.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kymo.streams.chunk import Array
from kymo.streams.errors import SourceError
from kymo.streams.words import NS, many

Int = NDArray[np.int64]
Floats = NDArray[np.float64]
_PLAIN_WITHIN = 1e-4  # a rate this close to a plain number is that number
RATE_TOLERANCE = 0.01  # a recipe takes rates that far from its own
_MOST_BLUR = 0.005
_IRREGULAR = 0.22  # mean distance from the grid in samples; times without any grid have 0.25
_MAX_INDEX = 2**53
_YEAR_NS, _YEARS = 31_557_600 * NS, 10
_DAY_NS, _FAR = 86_400 * NS, 1_000  # a jump of a day, and of so many steps
_FEW = 3  # rows
_TRACKED = 24  # samples a block when a clock's phase is followed: at 1 % off it moves by a quarter of a sample
# Of samples that are counted:
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
_REST = 0.5  # so many neighbours are equal where a sensor lies still
_MOST, _DENSE = 0.8, 1.5  # so many steps are the same; so much longer is the mean one at most


@dataclass(slots=True)
class Grid:
    """Numbers of a stream's samples."""

    rate: Fraction  # samples per second; 0 for an irregular stream
    origin_ns: int  # Unix time of sample 0
    rows: Int  # which input rows are kept, in the order of their times
    indexes: Int  # number of each kept row, strictly increasing from 0
    notes: list[str] = field(default_factory=list)  # what was repaired or guessed


@dataclass(frozen=True, slots=True)
class RowNumbers:
    """Where rows come from, for messages."""

    path: Path | str
    numbers: Int  # ``(n,)``, row number of each sample as a user counts
    word: str = "row"  # what a row is called there (``row``, ``message``)
    stream: str = ""  # the stream's name

    def at(self, i: int) -> str:
        """``row 17``."""
        return f"{self.word} {int(self.numbers[i])}"

    def error(self, message: str, i: int) -> SourceError:
        """A SourceError at sample `i`."""
        if self.word == "row":
            return SourceError(message, self.path, int(self.numbers[i]))
        return SourceError(f"{self.stream}, {self.at(i)}: {message}", self.path)


def fit(times_ns: Int, data: Array, rate: Fraction | None, row_numbers: RowNumbers) -> Grid:
    """Numbers of a stream's samples from their times; with a rate of 0 one after the other."""
    if rate == 0:
        return _irregular(times_ns, data, row_numbers)
    notes: list[str] = []
    order = _rows_by_time(times_ns, data, row_numbers, notes)
    refusal, grid, faults = None, None, len(order)
    try:
        grid, lost, gaps, missing = _by_time(times_ns, order, data, rate, row_numbers)
        # Gaps are gaps, and rows for which there is no room are too many. As many as are missing, or a gap every few rows: count.
        often = gaps > max(5, len(order) // 25) and (missing > len(order) or _coarse(times_ns[order]) is not None)
        faults = lost + gaps if 0 < lost <= 1.5 * missing + 2 or lost > len(order) // 10 or often else 0
    except SourceError as error:
        refusal = error
    if faults > 0:
        counted, counted_gaps = _by_count(times_ns, order, data, rate, row_numbers)
        grid = counted if counted is not None and counted_gaps < faults else grid
    if grid is None:
        assert refusal is not None
        raise refusal
    grid.notes[:0] = notes
    return grid


def _irregular(times_ns: Int, data: Array, row_numbers: RowNumbers) -> Grid:
    notes: list[str] = []
    order = _rows_by_time(times_ns, data, row_numbers, notes)
    numbers = np.arange(len(order), dtype=np.int64)
    return Grid(Fraction(0), int(times_ns[order[0]]) if len(order) else 0, order, numbers, notes)


def _by_time(
    times_ns: Int, order: Int, data: Array, rate: Fraction | None, row_numbers: RowNumbers
) -> tuple[Grid, int, int, int]:
    """Numbers by times alone; how many samples that loses, and in how many gaps how many are missing."""
    notes: list[str] = []
    times = times_ns[order]
    estimates = _rate_estimates(times)
    if rate is None:
        if not estimates:
            hint = "give `rate_hz` in the recipe's [[input]]"
            same = (
                "all times are the same, as where a table program shortens numbers"
                if len(times) > 1
                else "one time alone has no rate"
            )
            raise row_numbers.error(f"{same}; {hint}", int(order[0]))
        rate = _plain_rate(estimates[0], _rate_blur(times), notes)
    elif estimates and all(abs(estimate / float(rate) - 1) > RATE_TOLERANCE for estimate in estimates):
        raise SourceError(
            f"the times say {_hz(estimates[0])}, the recipe says {_hz(float(rate))}; correct `rate_hz`, or the time column",
            row_numbers.path,
        )
    numbers = _sample_numbers(times, rate, row_numbers, notes)
    is_first, lost = _first_of_each(numbers, order, data, row_numbers, notes)
    gaps = _note_gaps(numbers[is_first], order[is_first], rate, row_numbers, notes)
    missing = int(numbers[-1]) + 1 - int(is_first.sum())
    return Grid(rate, int(times[0]), order[is_first], numbers[is_first], notes), lost, gaps, missing


def _by_count(
    times_ns: Int, order: Int, data: Array, rate: Fraction | None, row_numbers: RowNumbers
) -> tuple[Grid | None, int]:
    """Numbers by counting, and how many gaps that makes; None where rows and span do not agree."""
    notes: list[str] = []
    times = times_ns[order]
    repeats = np.flatnonzero(np.diff(times) == 0) + 1
    same = repeats[_equal_rows(data[order[repeats - 1]], data[order[repeats]])]
    # Else several samples share a stamp, whatever their values.
    if 2 * len(same) > len(repeats) and not _at_rest(data, order[np.concatenate(([True], np.diff(times) != 0))]):
        notes.append(
            f"{many(len(same), 'repeated sample')}, first at {row_numbers.at(int(order[same[0]]))}: the first of each is kept"
        )
        order = np.delete(order, same)
        times = times_ns[order]
    counted = _count(times, None if rate is None else float(rate))
    if counted is None:
        return None, 0
    if rate is None:
        rate = _plain_rate(
            counted.rate, max(_rate_blur(times), counted.late_s * NS / max(int(times[-1] - times[0]), 1)), notes
        )
    notes.append(
        f"times lie up to {1000 * counted.late_s:.3g} ms from even ones, as where samples arrive late or together: "
        "samples are numbered by their count"
    )
    gaps = _note_gaps(counted.numbers, order, rate, row_numbers, notes)
    return Grid(rate, int(times[0]), order, counted.numbers, notes), gaps


def _rows_by_time(times: Int, data: Array, row_numbers: RowNumbers, notes: list[str]) -> Int:
    """Rows in the order of their times; two recordings in one are refused."""
    backward = np.flatnonzero(np.diff(times) < 0) + 1
    order = np.argsort(times, kind="stable") if len(backward) else np.arange(len(times))
    if len(backward):
        repeats = np.flatnonzero((np.diff(times[order]) == 0) & (np.diff(order) != 1))  # not of one stamp
        twice = not _equal_rows(data[order[repeats]], data[order[repeats + 1]]).all()
        if twice or _interleaved(times, order, backward):
            seconds = (times[backward[0] - 1] - times[backward[0]]) / NS
            also = (
                "the same times come again with other values" if twice else "what follows lies between what came before"
            )
            raise row_numbers.error(
                f"time goes back by {seconds:g} s, and {also}: two recordings in one file; name them in a `session` column or "
                "split the file",
                int(backward[0]),
            )
        notes.append(
            f"{many(len(backward), 'time')} earlier than the one before, first at {row_numbers.at(int(backward[0]))}: sorted by time"
        )
    return _rows_since_clock_was_set(times, order.astype(np.int64), row_numbers, notes)


def _interleaved(times: Int, order: Int, backward: Int) -> bool:
    """Whether parts that begin with a step far back lie between each other: a device that began anew, not samples that overtook some."""
    restarts = backward[
        times[backward - 1] - times[backward] > max(NS, _TRACKED * int(np.median(np.abs(np.diff(times)))))
    ]
    part = np.searchsorted(restarts, order, side="right")
    return bool(np.count_nonzero(np.diff(part)) > 3 * len(restarts))  # one part may have come late


def _rows_since_clock_was_set(times: Int, order: Int, row_numbers: RowNumbers, notes: list[str]) -> Int:
    """Rows from where the clock was set: the first few may be from before, or the last ones be wrong."""
    steps = np.diff(times[order])
    jumps = np.flatnonzero(steps > max(_DAY_NS, _FAR * float(np.median(steps)))) if len(steps) else steps
    few = max(_FEW, len(order) // 100)
    for jump in jumps[::-1].tolist():
        before, behind = jump + 1, len(order) - jump - 1
        size = int(steps[jump])
        how_far = f"{size / _YEAR_NS:.0f} years" if size > _YEAR_NS else f"{size / _DAY_NS:.0f} days"
        if before <= few < behind:
            notes.append(
                f"{many(before, 'row')} from {how_far} before the others, first at {row_numbers.at(int(order[0]))}: the clock was not set "
                "yet, left out"
            )
            return order[before:]
        if behind <= few < before and size > _YEARS * _YEAR_NS:
            notes.append(
                f"{many(behind, 'row')} from {how_far} after the others, first at {row_numbers.at(int(order[before]))}: left out"
            )
            order = order[:before]
        elif size > _YEARS * _YEAR_NS:
            raise row_numbers.error(
                f"the time jumps by {how_far}: the clock was set while recording; split the file there",
                int(order[before]),
            )
    return order


def _rate_estimates(times: Int) -> list[float]:
    """Estimates of the rate, the best one first; none where no time differs from another.

    The mean of the steps that are no gaps is best where times jitter little, and right where they are rounded to ms
    (their median is not). Where they jitter much, leaving out long and short steps would bias it; then the mean of all
    is best.
    """
    steps = np.diff(times)
    steps = steps[steps > 0]
    if not len(steps):
        return []
    middle = float(np.median(steps))
    inner = steps[(steps > 0.4 * middle) & (steps < 1.6 * middle)]
    low, high = np.quantile(inner, (0.05, 0.95)) if len(inner) else (0.0, np.inf)
    means = [float(NS * len(steps) / steps.sum()), NS / middle]
    best = float(NS / inner.mean()) if len(inner) else NS / middle
    return [best, *means] if high - low < 0.5 * middle else [*means, best]


def _rate_blur(times: Int) -> float:
    """How far off, as a share, a rate may be by the rounding of its times: a decimal step of theirs over their span."""
    since = times - times[0]
    step = 1
    while step < NS and not (since % (10 * step)).any():
        step *= 10
    return min(step / max(int(since[-1]), 1), _MOST_BLUR)


def _common_rate(estimate: float, blur: float) -> Fraction | None:
    """The plainest rate within `blur` that sensors are built for: a power of two, or a multiple of 100, 50, ..., 5."""
    plain = [
        2 ** max(0, round(math.log2(estimate))),
        *(step * round(estimate / step) for step in (100, 50, 25, 20, 10, 5)),
    ]
    return next((Fraction(rate) for rate in plain if rate and abs(estimate / rate - 1) <= blur), None)


def _plain_rate(estimate: float, blur: float, notes: list[str]) -> Fraction:
    """The plain number within 1e-4 of a rate: whole, a whole number of seconds, television's n/1.001, then two
    decimals. Where the times are rounded so coarsely that a common rate is as likely, it is that one."""
    if common := _common_rate(estimate, min(blur, RATE_TOLERANCE)):
        notes.append(f"rate {_hz(float(common))} taken from the times (they say {_hz(estimate)})")
        return common
    plain = [
        Fraction(round(estimate)),
        Fraction(round(estimate * 1.001) * 1000, 1001),
        Fraction(round(estimate * 100), 100),
    ]
    if estimate < 1:
        plain = [Fraction(1, round(1 / estimate)), *plain]
    for rate in plain:
        if rate and abs(estimate / float(rate) - 1) <= _PLAIN_WITHIN:
            notes.append(f"rate {_hz(float(rate))} taken from the times (they say {_hz(estimate)})")
            return rate
    rate = Fraction(f"{estimate:.6g}")
    notes.append(f"rate {_hz(float(rate))} taken from the times; no plain number is within 0.01 %")
    return rate


def _sample_numbers(times: Int, rate: Fraction, row_numbers: RowNumbers, notes: list[str]) -> Int:
    since = (times - times[0]).astype(np.float64) / NS  # (n,) seconds
    positions = since * float(rate)
    if positions[-1] >= _MAX_INDEX:
        raise SourceError(
            f"the times span {since[-1]:.6g} s: more than 2^53 samples at {_hz(float(rate))}", row_numbers.path
        )
    # The first time jitters as any other: the grid's phase is the mean of all, on a circle.
    exact = positions - _phases(positions, len(positions))
    if len(positions) >= 2 * _TRACKED and _jumps(exact):
        # A clock that is 0.1 % off would skip a sample every 1,000: follow its phase, if that gives fewer jumps.
        tracked = positions - _phases(positions, _TRACKED)
        if _jumps(tracked) < _jumps(exact):
            exact = tracked
            count = float(np.rint(exact[-1]) - np.rint(exact[0]))
            notes.append(
                f"the file's clock runs at {_hz(count / since[-1])}, numbered as {_hz(float(rate))}: "
                f"the last sample's time is off by {count / float(rate) - since[-1]:+.3f} s"
            )
    numbers = np.rint(exact).astype(np.int64)
    if len(times) >= 20 and float(np.abs(exact - numbers).mean()) > _IRREGULAR:
        raise SourceError(
            f"the times lie on no grid of {_hz(float(rate))} (they vary by more than a sample): an irregular stream, "
            "which recipes do not take; resample it",
            row_numbers.path,
        )
    from_zero: Int = numbers - numbers[0]
    return from_zero


def _phases(positions: NDArray[np.float64], block: int) -> NDArray[np.float64]:
    """Distance of times from whole samples, -0.5 to 0.5: one mean a block of samples, followed from block to block."""
    turns = np.exp(2j * np.pi * (positions - np.round(positions)))
    starts = np.arange(0, len(positions), block)
    means = np.add.reduceat(turns, starts)
    block_phases = np.unwrap(np.angle(means)) / (2 * np.pi)
    centres = starts + (np.diff(starts, append=len(positions)) - 1) / 2
    phases: NDArray[np.float64] = np.interp(np.arange(len(positions)), centres, block_phases)
    return phases


def _jumps(exact: NDArray[np.float64]) -> int:
    return int(np.count_nonzero(np.diff(np.rint(exact)) != 1))


def _first_of_each(
    numbers: Int, order: Int, data: Array, row_numbers: RowNumbers, notes: list[str]
) -> tuple[NDArray[np.bool_], int]:
    """Which rows are kept, and how many others had values of their own."""
    is_first = np.concatenate(([True], np.diff(numbers) != 0))
    repeated = np.flatnonzero(~is_first)
    if not len(repeated):
        return is_first, 0
    file_rows = row_numbers.numbers[order]
    if len(repeated) > len(numbers) // 2:
        raise row_numbers.error(
            f"{len(repeated)} of {len(numbers)} times fall on a sample that is already there: "
            "the times are too coarse; leave the time column out and give `rate_hz`, or write finer times",
            int(order[repeated[0]]),
        )
    starts = np.flatnonzero(is_first)
    owners = starts[np.searchsorted(starts, repeated) - 1]
    different = int(np.count_nonzero(~_equal_rows(data[order[owners]], data[order[repeated]])))
    still = 10 * len(repeated) > len(numbers) and _at_rest(data, order[starts])
    first = int(order[repeated[np.argmin(file_rows[repeated])]])
    with_different = f" ({different} with other values)" if different else ""
    notes.append(
        f"{many(len(repeated), 'repeated sample')}{with_different}, first at {row_numbers.at(first)}: the first of each is kept"
    )
    return is_first, len(repeated) if still else different


def _at_rest(data: Array, rows: Int) -> bool:
    """Whether most rows are as the one before, though their times differ."""
    return bool(np.mean(_equal_rows(data[rows[1:]], data[rows[:-1]])) > _REST) if len(rows) > 1 else False


def _note_gaps(numbers: Int, order: Int, rate: Fraction, row_numbers: RowNumbers, notes: list[str]) -> int:
    jumps = np.diff(numbers) - 1
    gaps = np.flatnonzero(jumps > 0)
    if len(gaps):
        missing = int(jumps.sum())
        seconds = missing / float(rate)
        where = row_numbers.at(int(order[gaps[0] + 1]))
        notes.append(
            f"{many(len(gaps), 'gap')}, {many(missing, 'sample')} ({seconds:.6g} s) missing, first before {where}"
        )
    return len(gaps)


def _equal_rows(a: Array, b: Array) -> NDArray[np.bool_]:
    """Which rows are the same, missing values too."""
    equal = a == b
    if a.dtype.kind == "f":
        equal |= np.isnan(a) & np.isnan(b)
    equal_rows: NDArray[np.bool_] = equal.all(axis=tuple(range(1, equal.ndim)))
    return equal_rows


def _hz(rate: float) -> str:
    return f"{rate:.8g} Hz"


class _Counted(NamedTuple):
    """What was counted."""

    rate: float  # samples per second, by the count
    numbers: Int  # number of each row, strictly increasing from 0
    late_s: float  # how far times lie from even ones


def _count(times: Int, rate: float | None) -> _Counted | None:
    """Number rows in the order of their times by counting them; None where rows and span do not agree."""
    if len(times) < _LEAST:
        return None
    since = (times - times[0]).astype(np.float64) / NS
    counted = _coarse(times) or _by_steps(since, rate) or _by_rows(since, rate)
    return None if counted is None or (rate is not None and abs(counted.rate / rate - 1) > _SAME) else counted


def _coarse(times: Int) -> _Counted | None:
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
    rows, spans = (
        sum(starts[run[-1]] - starts[run[0]] for run in runs),
        sum(stamps[run[-1]] - stamps[run[0]] for run in runs),
    )
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
    return _Counted(rate, numbers, step)


def _by_steps(since: Floats, rate: float | None) -> _Counted | None:
    """Where most steps are the same, each is so many samples, though their sum wanders a little from the clock's."""
    steps = np.diff(since)
    step = float(np.median(steps))
    if step <= 0 or np.mean(np.abs(steps / step - 1) < 0.1) < _MOST or steps.mean() > _DENSE * step:
        return None
    numbers = np.concatenate(([0], np.cumsum(np.maximum(np.rint(steps / step), 1).astype(np.int64))))
    counted_rate = _slope(since, numbers) if rate is None else rate
    late = float(np.ptp(since * counted_rate - numbers))
    return None if late > max(1.0, _CLOCK * len(since)) else _Counted(counted_rate, numbers, late / counted_rate)


def _by_rows(since: Floats, rate: float | None) -> _Counted | None:
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
    if (
        longest > max(_LATEST_S, _TOGETHER / counted_rate)
        or _drift(even, max(_AROUND, 4 * each)) > max(1.0, late, _CLOCK * len(even))
        or _wanders_off(even, max(_AROUND, 4 * each))
    ):
        return None
    return _Counted(counted_rate, rows + missing.astype(np.int64), late / counted_rate)


def _missing_before(since: Floats, rate: float) -> Floats:
    """Samples missing before each row."""
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
    earliest = np.empty(len(starts))
    padded = np.concatenate((np.full(around, np.inf), late_by, np.full(around, np.inf)))
    near_rows = np.minimum(starts + around, len(late_by)) - np.maximum(starts, 0)
    size = max(1, _BLOCK // around)
    for at in range(0, len(starts), size):
        block = slice(at, at + size)
        rows = np.sort(padded[starts[block, None] + around + np.arange(around)], axis=1)
        ranks = (_EARLY * (near_rows[block] - 1)).astype(np.int64)
        earliest[block] = np.take_along_axis(rows, ranks[:, None], axis=1)[:, 0]
    return earliest


def _slope(since: Floats, numbers: Floats) -> float:
    """Numbers a second, by least squares."""
    from_middle = since - since.mean()
    return float(from_middle @ (numbers - numbers.mean()) / (from_middle @ from_middle))


def _wanders_off(even: Floats, around: int) -> bool:
    """Whether times that are late stay so, as those of heartbeats: they follow no clock."""
    steps = np.diff(even)
    low, high = np.quantile(steps, (0.1, 0.9))
    if low > -0.9 and high - low > 0.1 and np.corrcoef(steps[1:], steps[:-1])[0, 1] > _MADE_UP:
        return True  # no bursts, and what is late is not made up for at once
    far = min(around, len(even) // 3)
    near, away = (float(np.std(even[by:] - even[:-by])) for by in (1, far))
    return away > _WANDER * max(near, 0.1)


def _drift(even: Floats, around: int) -> float:
    """By how much blocks of rows differ in how late they are."""
    blocks = np.array_split(even, max(2, min(50, len(even) // around)))
    return float(np.ptp([np.median(block) for block in blocks]))
