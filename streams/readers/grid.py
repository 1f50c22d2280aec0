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

from kymo.streams.chunk import Array, Header, signal_format
from kymo.streams.errors import SourceError
from kymo.streams.recording import InputOptions, StreamData
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

    def stream(self, session: str, item: InputOptions, values: Array, times_ns: Int | None) -> StreamData:
        """The stream of these samples, by the values and times of all rows."""
        whole = len(self.rows) == len(values) and bool((np.diff(self.rows) == 1).all())
        data = np.ascontiguousarray(values if whole else values[self.rows])
        fmt = signal_format(item.stream, item.channels, self.rate, values.dtype.name, item.units)
        times = times_ns[self.rows] if times_ns is not None and self.rate == 0 else None
        return StreamData.from_indexes(Header(session, self.origin_ns, fmt), data, self.indexes, times)


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
    samples = _Samples(times_ns, data, rate, row_numbers)
    samples.sort_by_time()
    samples.leave_out_unset_clock()
    order = samples.order
    if rate == 0:
        origin_ns = int(times_ns[order[0]]) if len(order) else 0
        return Grid(Fraction(0), origin_ns, order, np.arange(len(order), dtype=np.int64), samples.notes)
    refusal, grid, faults = None, None, len(order)
    by_time, by_count = samples.again(), samples.again()
    try:
        grid, lost, gaps, missing = by_time.numbered_by_time()
        # Gaps are gaps, and rows for which there is no room are too many. As many as are missing, or a gap every few rows: count.
        often = gaps > max(5, len(order) // 25) and (missing > len(order) or _coarse(samples.times) is not None)
        faults = lost + gaps if 0 < lost <= 1.5 * missing + 2 or lost > len(order) // 10 or often else 0
    except SourceError as error:
        refusal = error
    if faults > 0:
        counted, counted_gaps = by_count.numbered_by_count()
        grid = counted if counted is not None and counted_gaps < faults else grid
    if grid is None:
        assert refusal is not None
        raise refusal
    grid.notes[:0] = samples.notes
    return grid


class _Samples:
    """A stream's samples in some order, and what is to be said of them."""

    def __init__(self, times_ns: Int, data: Array, rate: Fraction | None, row_numbers: RowNumbers) -> None:
        self._all_times, self._data, self._rate, self._rows = times_ns, data, rate, row_numbers
        self.order: Int = np.arange(len(times_ns))  # rows in the order of their times
        self.notes: list[str] = []

    def again(self) -> _Samples:
        """The same samples, of which nothing is said yet."""
        samples = _Samples(self._all_times, self._data, self._rate, self._rows)
        samples.order = self.order
        return samples

    @property
    def times(self) -> Int:
        """Times in order."""
        return self._all_times[self.order]

    def _where(self, i: int) -> str:
        return self._rows.at(int(self.order[i]))

    def _error(self, message: str, i: int) -> SourceError:
        return self._rows.error(message, int(self.order[i]))

    def _equal(self, a: Int, b: Int) -> NDArray[np.bool_]:
        """Which samples are the same as others, missing values too."""
        left, right = self._data[self.order[a]], self._data[self.order[b]]
        equal = left == right
        if left.dtype.kind == "f":
            equal |= np.isnan(left) & np.isnan(right)
        equal_rows: NDArray[np.bool_] = equal.all(axis=tuple(range(1, equal.ndim)))
        return equal_rows

    def _at_rest(self, picked: Int) -> bool:
        """Whether most of these samples are as the one before, though their times differ."""
        return bool(np.mean(self._equal(picked[1:], picked[:-1])) > _REST) if len(picked) > 1 else False

    def sort_by_time(self) -> None:
        """Put samples in the order of their times; two recordings in one are refused."""
        times = self._all_times
        backward = np.flatnonzero(np.diff(times) < 0) + 1
        if not len(backward):
            return
        self.order = np.argsort(times, kind="stable").astype(np.int64)
        repeats = np.flatnonzero((np.diff(self.times) == 0) & (np.diff(self.order) != 1))  # not of one stamp
        twice = not self._equal(repeats, repeats + 1).all()
        if twice or self._interleaved(backward):
            seconds = (times[backward[0] - 1] - times[backward[0]]) / NS
            also = (
                "the same times come again with other values" if twice else "what follows lies between what came before"
            )
            raise self._rows.error(
                f"time goes back by {seconds:g} s, and {also}: two recordings in one file; name them in a `session` column or "
                "split the file",
                int(backward[0]),
            )
        where = self._rows.at(int(backward[0]))
        self.notes.append(
            f"{many(len(backward), 'time')} earlier than the one before, first at {where}: sorted by time"
        )

    def _interleaved(self, backward: Int) -> bool:
        """Whether parts that begin with a step far back lie between each other: a device that began anew, not samples that overtook
        some."""
        back = -np.diff(self._all_times)[backward - 1]
        restarts = backward[back > max(NS, _TRACKED * int(np.median(np.abs(np.diff(self._all_times)))))]
        part = np.searchsorted(restarts, self.order, side="right")
        return bool(np.count_nonzero(np.diff(part)) > 3 * len(restarts))  # one part may have come late

    def leave_out_unset_clock(self) -> None:
        """Leave out what is not of the others' years: the first few may be from before the clock was set, or the last ones be wrong."""
        steps = np.diff(self.times)
        jumps = np.flatnonzero(steps > max(_DAY_NS, _FAR * float(np.median(steps)))) if len(steps) else steps
        few = max(_FEW, len(self.order) // 100)
        for jump in jumps[::-1].tolist():
            before, behind, size = jump + 1, len(self.order) - jump - 1, int(steps[jump])
            how_far = f"{size / _YEAR_NS:.0f} years" if size > _YEAR_NS else f"{size / _DAY_NS:.0f} days"
            if before <= few < behind:
                rows = f"{many(before, 'row')} from {how_far} before the others, first at {self._where(0)}"
                self.notes.append(f"{rows}: the clock was not set yet, left out")
                self.order = self.order[before:]
                return
            if size > _YEARS * _YEAR_NS and not behind <= few < before:
                raise self._error(
                    f"the time jumps by {how_far}: the clock was set while recording; split the file there", before
                )
            if size > _YEARS * _YEAR_NS:
                rows = f"{many(behind, 'row')} from {how_far} after the others, first at {self._where(before)}"
                self.notes.append(f"{rows}: left out")
                self.order = self.order[:before]

    def numbered_by_time(self) -> tuple[Grid, int, int, int]:
        """Numbers by times alone; how many samples that loses, and in how many gaps how many are missing."""
        times, rate = self.times, self._rate
        estimates = _rate_estimates(times)
        if rate is None and not estimates:
            same = "all times are the same, as where a table program shortens numbers"
            same = same if len(times) > 1 else "one time alone has no rate"
            raise self._error(f"{same}; give `rate_hz` in the recipe's [[input]]", 0)
        if rate is None:
            rate = self._plain_rate(estimates[0], _rate_blur(times))
        elif estimates and all(abs(estimate / float(rate) - 1) > RATE_TOLERANCE for estimate in estimates):
            raise SourceError(
                f"the times say {_hz(estimates[0])}, the recipe says {_hz(float(rate))}; correct `rate_hz`, or the time column",
                self._rows.path,
            )
        numbers = self._sample_numbers(times, rate)
        is_first, lost = self._first_of_each(numbers)
        missing = int(numbers[-1]) + 1 - int(is_first.sum())
        self.order, numbers = self.order[is_first], numbers[is_first]
        gaps = self._note_gaps(numbers, rate)
        return Grid(rate, int(times[0]), self.order, numbers, self.notes), lost, gaps, missing

    def numbered_by_count(self) -> tuple[Grid | None, int]:
        """Numbers by counting, and how many gaps that makes; None where rows and span do not agree."""
        times = self.times
        repeats = np.flatnonzero(np.diff(times) == 0) + 1
        same = repeats[self._equal(repeats - 1, repeats)]
        # Else several samples share a stamp, whatever their values.
        if 2 * len(same) > len(repeats) and not self._at_rest(np.flatnonzero(np.diff(times, prepend=times[0] - 1))):
            where = self._where(int(same[0]))
            self.notes.append(f"{many(len(same), 'repeated sample')}, first at {where}: the first of each is kept")
            self.order = np.delete(self.order, same)
            times = self.times
        counted = _count(times, None if self._rate is None else float(self._rate))
        if counted is None:
            return None, 0
        blur = max(_rate_blur(times), counted.late_s * NS / max(int(times[-1] - times[0]), 1))
        rate = self._plain_rate(counted.rate, blur) if self._rate is None else self._rate
        self.notes.append(
            f"times lie up to {1000 * counted.late_s:.3g} ms from even ones, as where samples arrive late or together: "
            "samples are numbered by their count"
        )
        gaps = self._note_gaps(counted.numbers, rate)
        return Grid(rate, int(times[0]), self.order, counted.numbers, self.notes), gaps

    def _plain_rate(self, estimate: float, blur: float) -> Fraction:
        """The plain number within 1e-4 of a rate: whole, a whole number of seconds, television's n/1.001, then two decimals. Where the
        times are rounded so coarsely that a rate that sensors are built for is as likely, it is that one: a power of two, or a multiple
        of 100, 50, ..., 5."""
        usual = [2 ** max(0, round(math.log2(estimate)))]
        usual += [step * round(estimate / step) for step in (100, 50, 25, 20, 10, 5)]
        plain = [Fraction(1, round(1 / estimate))] if estimate < 1 else []
        plain += [Fraction(round(estimate)), Fraction(round(estimate * 1.001) * 1000, 1001)]
        plain += [Fraction(round(estimate * 100), 100)]
        rates = [(Fraction(rate), min(blur, RATE_TOLERANCE)) for rate in usual]
        for rate, within in rates + [(rate, _PLAIN_WITHIN) for rate in plain]:
            if rate and abs(estimate / float(rate) - 1) <= within:
                self.notes.append(f"rate {_hz(float(rate))} taken from the times (they say {_hz(estimate)})")
                return rate
        rate = Fraction(f"{estimate:.6g}")
        self.notes.append(f"rate {_hz(float(rate))} taken from the times; no plain number is within 0.01 %")
        return rate

    def _sample_numbers(self, times: Int, rate: Fraction) -> Int:
        since = (times - times[0]).astype(np.float64) / NS  # (n,) seconds
        positions = since * float(rate)
        if positions[-1] >= _MAX_INDEX:
            raise SourceError(
                f"the times span {since[-1]:.6g} s: more than 2^53 samples at {_hz(float(rate))}", self._rows.path
            )
        # The first time jitters as any other: the grid's phase is the mean of all, on a circle.
        exact = positions - _phases(positions, len(positions))
        if len(positions) >= 2 * _TRACKED and _jumps(exact):
            # A clock that is 0.1 % off would skip a sample every 1,000: follow its phase, if that gives fewer jumps.
            tracked = positions - _phases(positions, _TRACKED)
            if _jumps(tracked) < _jumps(exact):
                exact = tracked
                count = float(np.rint(exact[-1]) - np.rint(exact[0]))
                self.notes.append(
                    f"the file's clock runs at {_hz(count / since[-1])}, numbered as {_hz(float(rate))}: "
                    f"the last sample's time is off by {count / float(rate) - since[-1]:+.3f} s"
                )
        numbers = np.rint(exact).astype(np.int64)
        if len(times) >= _LEAST and float(np.abs(exact - numbers).mean()) > _IRREGULAR:
            raise SourceError(
                f"the times lie on no grid of {_hz(float(rate))} (they vary by more than a sample): an irregular stream, "
                "which recipes do not take; resample it",
                self._rows.path,
            )
        from_zero: Int = numbers - numbers[0]
        return from_zero

    def _first_of_each(self, numbers: Int) -> tuple[NDArray[np.bool_], int]:
        """Which samples are kept, and how many others had values of their own."""
        is_first = np.diff(numbers, prepend=-1) != 0
        repeated, starts = np.flatnonzero(~is_first), np.flatnonzero(is_first)
        if not len(repeated):
            return is_first, 0
        if len(repeated) > len(numbers) // 2:
            raise self._error(
                f"{len(repeated)} of {len(numbers)} times fall on a sample that is already there: "
                "the times are too coarse; leave the time column out and give `rate_hz`, or write finer times",
                int(repeated[0]),
            )
        owners = starts[np.searchsorted(starts, repeated) - 1]
        different = int(np.count_nonzero(~self._equal(owners, repeated)))
        still = 10 * len(repeated) > len(numbers) and self._at_rest(starts)
        where = self._where(int(repeated[np.argmin(self._rows.numbers[self.order[repeated]])]))
        with_different = f" ({different} with other values)" if different else ""
        repeats = f"{many(len(repeated), 'repeated sample')}{with_different}"
        self.notes.append(f"{repeats}, first at {where}: the first of each is kept")
        return is_first, len(repeated) if still else different

    def _note_gaps(self, numbers: Int, rate: Fraction) -> int:
        jumps = np.diff(numbers) - 1
        gaps = np.flatnonzero(jumps > 0)
        if len(gaps):
            missing = int(jumps.sum())
            lack = f"{many(len(gaps), 'gap')}, {many(missing, 'sample')} ({missing / float(rate):.6g} s) missing"
            self.notes.append(f"{lack}, first before {self._where(int(gaps[0]) + 1)}")
        return len(gaps)


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


def _hz(rate: float) -> str:
    return f"{rate:.8g} Hz"


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
