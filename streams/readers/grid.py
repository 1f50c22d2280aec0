"""From the times of samples to their numbers. In: times, Unix ns. Out: rate (a fraction), origin in ns, a number a
sample, and notes.

Sample i of a stream is taken at ``origin + i / rate``. Recorded times jitter, drift, repeat and jump; here they become
whole numbers: jitter is rounded away, a jump in the numbers is a gap, a repeated number is a duplicate. Nothing is
repaired without a note.
Where times say less than their order, samples are counted.
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kymo.streams.chunk import Array, Header, signal_format
from kymo.streams.errors import SourceError
from kymo.streams.readers.counted import coarse, count
from kymo.streams.recording import InputOptions, StreamData
from kymo.streams.words import DAY, NS, many

Int = NDArray[np.int64]
_PLAIN_WITHIN = 1e-4  # a rate this close to a plain number is that number
RATE_TOLERANCE = 0.01  # a recipe takes rates that far from its own
_MOST_BLUR = 0.005
_IRREGULAR = 0.22  # mean distance from the grid in samples; times without any grid have 0.25
_MAX_INDEX = 2**53
_YEAR_NS, _YEARS = 31_557_600 * NS, 10
_FAR = 1_000  # a jump of a day is of so many steps, too
_FEW = 3  # rows
_TRACKED = 24  # samples a block when a clock's phase is followed: at 1 % off it moves by a quarter of a sample
_LEAST = 20  # rows: with fewer nothing is known
_REST = 0.5  # so many neighbours are equal where a sensor lies still


@dataclass(slots=True)
class Grid:
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
        return f"{self.word} {int(self.numbers[i])}"

    def error(self, message: str, i: int) -> SourceError:
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
    try:
        grid, lost, gap_count, missing = copy(samples).numbered_by_time()
        # Gaps are gaps, and rows for which there is no room are too many. As many as are missing, or a gap every few rows: count.
        often = gap_count > max(5, len(order) // 25) and (missing > len(order) or coarse(samples.times) is not None)
        faults = lost + gap_count if 0 < lost <= 1.5 * missing + 2 or lost > len(order) // 10 or often else 0
    except SourceError as error:
        refusal = error
    if faults > 0:
        counted, counted_gap_count = copy(samples).numbered_by_count()
        grid = counted if counted is not None and counted_gap_count < faults else grid
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

    @property
    def times(self) -> Int:
        return self._all_times[self.order]

    def _where(self, i: int) -> str:
        return self._rows.at(int(self.order[i]))

    def _error(self, message: str, i: int) -> SourceError:
        return self._rows.error(message, int(self.order[i]))

    def _equal(self, a: Int, b: Int) -> NDArray[np.bool_]:
        """Which samples are the same as others, missing values too."""
        first, second = self._data[self.order[a]], self._data[self.order[b]]
        equal = first == second
        if first.dtype.kind == "f":
            equal |= np.isnan(first) & np.isnan(second)
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
        # Parts that begin with a step far back and lie between each other are of a device that began anew; one may have come late.
        back = -np.diff(times)[backward - 1]
        restarts = backward[back > max(NS, _TRACKED * int(np.median(np.abs(np.diff(times)))))]
        part = np.searchsorted(restarts, self.order, side="right")
        if twice or np.count_nonzero(np.diff(part)) > 3 * len(restarts):
            seconds = (times[backward[0] - 1] - times[backward[0]]) / NS
            also = "the same times come again with other values"
            also = also if twice else "what follows lies between what came before"
            wrong = f"time goes back by {seconds:g} s, and {also}: two recordings in one file"
            do = "name them in a `session` column or split the file"
            raise self._rows.error(f"{wrong}; {do}", int(backward[0]))
        where = self._rows.at(int(backward[0]))
        self.notes.append(
            f"{many(len(backward), 'time')} earlier than the one before, first at {where}: sorted by time"
        )

    def leave_out_unset_clock(self) -> None:
        """Leave out what is not of the others' years: the first few may be from before the clock was set, or the last ones be wrong."""
        steps = np.diff(self.times)
        jumps = np.flatnonzero(steps > max(DAY, _FAR * float(np.median(steps)))) if len(steps) else steps
        few = max(_FEW, len(self.order) // 100)
        for jump in jumps[::-1].tolist():
            before, behind, size = jump + 1, len(self.order) - jump - 1, int(steps[jump])
            how_far = f"{size / _YEAR_NS:.0f} years" if size > _YEAR_NS else f"{size / DAY:.0f} days"
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
        self.notes = []
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
        gap_count = self._note_gaps(numbers, rate)
        return Grid(rate, int(times[0]), self.order, numbers, self.notes), lost, gap_count, missing

    def numbered_by_count(self) -> tuple[Grid | None, int]:
        """Numbers by counting, and how many gaps that makes; None where rows and span do not agree."""
        self.notes = []
        times = self.times
        repeats = np.flatnonzero(np.diff(times) == 0) + 1
        same = repeats[self._equal(repeats - 1, repeats)]
        # Else several samples share a stamp, whatever their values.
        if 2 * len(same) > len(repeats) and not self._at_rest(np.flatnonzero(np.diff(times, prepend=times[0] - 1))):
            where = self._where(int(same[0]))
            self.notes.append(f"{many(len(same), 'repeated sample')}, first at {where}: the first of each is kept")
            self.order = np.delete(self.order, same)
            times = self.times
        counted = count(times, None if self._rate is None else float(self._rate))
        if counted is None:
            return None, 0
        blur = max(_rate_blur(times), counted.late_s * NS / max(int(times[-1] - times[0]), 1))
        rate = self._plain_rate(counted.rate, blur) if self._rate is None else self._rate
        self.notes.append(
            f"times lie up to {1000 * counted.late_s:.3g} ms from even ones, as where samples arrive late or together: "
            "samples are numbered by their count"
        )
        gap_count = self._note_gaps(counted.numbers, rate)
        return Grid(rate, int(times[0]), self.order, counted.numbers, self.notes), gap_count

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
            wrong = f"the times lie on no grid of {_hz(float(rate))} (they vary by more than a sample)"
            do = "an irregular stream, which a recipe takes as rate_hz = 0 beside others; or resample it"
            raise SourceError(f"{wrong}: {do}", self._rows.path)
        from_zero: Int = numbers - numbers[0]
        return from_zero

    def _first_of_each(self, numbers: Int) -> tuple[NDArray[np.bool_], int]:
        """Which samples are kept, and how many others had values of their own."""
        is_first = np.diff(numbers, prepend=-1) != 0
        repeated, starts = np.flatnonzero(~is_first), np.flatnonzero(is_first)
        if not len(repeated):
            return is_first, 0
        if len(repeated) > len(numbers) // 2:
            wrong = f"{len(repeated)} of {len(numbers)} times fall on a sample that is already there"
            do = "leave the time column out and give `rate_hz`, or write finer times"
            raise self._error(f"{wrong}: the times are too coarse; {do}", int(repeated[0]))
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
    trimmed_rate = float(NS / inner.mean()) if len(inner) else NS / middle
    return [trimmed_rate, *means] if high - low < 0.5 * middle else [*means, trimmed_rate]


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
