"""Peaks of a signal, beats of a pulse, and how often they come. In: Chunks of signals. Out: a sample for each.

A peak is told in place: the channel holds its size at the sample where it stands, and 0 elsewhere. Each is found with a bounded look at
what comes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Annotated, Any, ClassVar

import numpy as np
import scipy

from kymo.processors.intake import runs_of
from kymo.processors.spec import Spec, Stage, only
from kymo.processors.steps.conditioning import Line, Real, SignalSpec, windows_of
from kymo.processors.steps.maps import float_of
from kymo.streams.chunk import Array, Format
from kymo.streams.errors import FormatError
from kymo.streams.schema import Amount, Positive, Rules


@dataclass(frozen=True)
class Peaks(SignalSpec):
    """The local maxima that stand out by `min_prominence`, as ``scipy.signal.find_peaks`` finds them within `reach_s` to either side."""

    min_prominence: Positive = 0.05  # in the unit of the signal
    reach_s: Positive = 10.0  # so much later they are told
    name: ClassVar[str] = "peaks"

    def line(self, fmt: Format) -> Line:
        return PeaksLine(self.min_prominence, max(4, round(self.reach_s * float(fmt.rate))))


class PeaksLine(Line):
    """Line of :class:`Peaks`."""

    numbers: ClassVar[tuple[str, ...]] = ("behind",)
    arrays: ClassVar[tuple[str, ...]] = ("rows",)

    def __init__(self, least: float, reach: int) -> None:
        self._least, self._reach = least, reach
        self.rows: Real = np.empty((0, 0))
        self.behind = 0  # rows that have been told, and count for those that come

    def push(self, rows: Real) -> Real:
        self.rows = np.concatenate((self.rows, rows)) if len(self.rows) else rows
        return self._tell(len(self.rows) - self._reach)

    def close(self) -> Real:
        return self._tell(len(self.rows))

    def _tell(self, stop: int) -> Real:
        if stop <= self.behind:
            return self.rows[:0]
        out = np.zeros((stop - self.behind, self.rows.shape[1]))
        for i, signal in enumerate(np.ascontiguousarray(self.rows.T)):
            # A level stretch as long as the reach may be seen or not: it is no peak.
            places, told = scipy.signal.find_peaks(
                signal, prominence=self._least, wlen=2 * self._reach + 1, plateau_size=(1, self._reach)
            )
            here = (places >= self.behind) & (places < stop)
            out[places[here] - self.behind, i] = told["prominences"][here]
        first = max(0, stop - self._reach)
        self.rows, self.behind = self.rows[first:].copy(), stop - first
        return out


@dataclass(frozen=True)
class Beats(SignalSpec):
    """Systolic peaks of a band-passed pulse wave: 1 at each.

    References
    ----------
    Elgendi et al. (2013), "Systolic peak detection in acceleration photoplethysmograms", PLoS ONE 8(10), with the parameters and the choice
    within a wave of neurokit2; the mean that the threshold rests on is that of about the last 10 s.
    """

    peak_s: Positive = 0.111
    beat_s: Positive = 0.667
    offset: Amount = 0.02
    min_delay_s: Amount = 0.3
    longest_s: Positive = 1.5  # of a wave; a longer one is none
    name: ClassVar[str] = "beats"

    def results(self, names: tuple[str, ...], units: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return names, ("",) * len(units)

    def line(self, fmt: Format) -> Line:
        if len(self.channels or fmt.channels) != 1:
            raise FormatError(
                f"beats: `{fmt.stream}` has channels {', '.join(fmt.channels)}, expected one, or one named"
            )
        return BeatsLine(self, float(fmt.rate))


class BeatsLine(Line):
    """Line of :class:`Beats`."""

    numbers: ClassVar[tuple[str, ...]] = ("mean", "margin", "last", "lost")
    arrays: ClassVar[tuple[str, ...]] = ("rows", "waves", "means")

    def __init__(self, spec: Beats, rate: float) -> None:
        self._sizes = [max(1, round(seconds * rate)) for seconds in (spec.peak_s, spec.beat_s)]
        self._offset, self._delay, self._longest = (
            spec.offset,
            round(spec.min_delay_s * rate),
            round(spec.longest_s * rate),
        )
        self._reach, self._share = max(self._sizes), 1 / (10 * rate)
        self.mean, self.last, self.lost = 0.0, -(10**9), False  # of squares; the newest beat, from the first of `rows`
        self.margin = 0  # rows before those of which it is not known yet whether a beat stands there
        self.rows: Real = np.empty(0)
        self.waves = np.empty(0, bool)  # whether rows behind the margin lie in a wave, as far as that is known
        self.means: Real = np.empty(0)  # of the squares up to rows of which that is not known

    def push(self, rows: Real) -> Real:
        signal = rows[:, 0]
        if not len(self.rows):  # what was before the first is as that
            signal, self.margin = np.concatenate((np.full(self._reach, signal[0]), signal)), self._reach
        self.rows = np.concatenate((self.rows, signal))
        squares = np.maximum(rows[:, 0], 0) ** 2
        means, state = scipy.signal.lfilter([self._share], [1, self._share - 1], squares, zi=[self.mean])
        self.mean, self.means = float(state[0]), np.concatenate((self.means, means))
        return self._tell(self.rows)

    def close(self) -> Real:
        if not len(self.rows):
            return np.empty((0, 1))
        return self._tell(np.concatenate((self.rows, np.full(self._reach, self.rows[-1]))), ended=True)

    def _tell(self, rows: Real, ended: bool = False) -> Real:
        """What is known of the rows behind the margin."""
        known = self.margin + len(self.waves)
        count = len(rows) - self._reach - known
        if count > 0:
            squares = np.maximum(rows, 0) ** 2
            short, long = (self._averages(squares, size, known, count) for size in self._sizes)
            waves = short > long + self._offset * self.means[:count]
            self.waves, self.means = np.concatenate((self.waves, waves)), self.means[count:]
        out, told = np.zeros((len(self.waves), 1)), len(self.waves)
        was_lost, self.lost = self.lost, False
        for start, stop in runs_of(self.waves):
            lost = stop - start > self._longest or (was_lost and start == 0)
            if stop < len(self.waves):
                if not lost:
                    self._find(rows, start, stop, out)
            elif not ended:
                told, self.lost = stop if lost else start, lost
        drop = max(0, self.margin + told - self._reach)
        self.rows, self.waves, self.last = self.rows[drop:].copy(), self.waves[told:].copy(), self.last - drop
        self.margin += told - drop
        return out[:told]

    @staticmethod
    def _averages(squares: Real, size: int, start: int, count: int) -> Real:
        """Means of `size` samples around each: of each a product of its own (law 1)."""
        first = start - size // 2
        windows = windows_of(squares[first : first + count + size - 1], size)
        return np.asarray(np.vecdot(windows, np.full(size, 1 / size)))

    def _find(self, rows: Real, start: int, stop: int, out: Real) -> None:
        """Note the most prominent peak of a wave."""
        if stop - start < self._sizes[0]:
            return
        # As neurokit2 has it, a wave begins at the sample before it and ends before its last.
        begin = self.margin + start - 1
        places, told = scipy.signal.find_peaks(rows[begin : self.margin + stop - 1], prominence=(None, None))
        if len(places):
            place = begin + int(places[np.argmax(told["prominences"])])
            if place - self.last > self._delay:
                self.last = place
                out[place - self.margin] = 1


RHYTHMS = ("count", "rate", "interval", "sdnn", "rmssd", "amplitude")
_UNITS = {"count": "1/min", "rate": "1/min", "interval": "s", "sdnn": "ms", "rmssd": "ms"}


def rhythm(
    places: Sequence[int], sizes: Sequence[float], rate: float, seconds: float, within: tuple[float, float]
) -> dict[str, float]:
    """Of peaks in `seconds`, by name of :data:`RHYTHMS`; 0 where there are too few. Intervals count whose rates are `within`."""
    intervals_s = np.diff(np.asarray(places, np.float64)) / rate
    return {
        "count": 60 * len(places) / seconds,
        "amplitude": float(np.mean(sizes)) if len(sizes) else 0.0,
        **of_intervals(intervals_s, within),
    }


def of_intervals(intervals_s: Real, within: tuple[float, float]) -> dict[str, float]:
    """Rate (1/min), newest interval (s), SDNN and RMSSD (ms) of intervals in a row; of no number where one is missing."""
    low, high = within
    with np.errstate(divide="ignore"):
        rates = 60 / intervals_s
    intervals_s = np.where((rates >= low) & (rates <= high), intervals_s, np.nan)
    good = intervals_s[np.isfinite(intervals_s)]
    steps = np.diff(intervals_s)
    steps = steps[np.isfinite(steps)]
    return {
        "rate": 60 / float(np.mean(good)) if len(good) else 0.0,
        "interval": float(good[-1]) if len(good) else 0.0,
        "sdnn": 1000 * float(np.std(good, ddof=1)) if len(good) > 1 else 0.0,
        "rmssd": 1000 * float(np.sqrt(np.mean(steps**2))) if len(steps) else 0.0,
    }


@dataclass(frozen=True)
class Rate(SignalSpec):
    """Of the peaks of the last `seconds`: how many a minute, the rate by their intervals, how these vary, how large the peaks are."""

    measures: Annotated[tuple[str, ...], Rules(minItems=1, uniqueItems=True)] = ("rate",)
    seconds: Positive = 60.0
    low: Amount = 30.0  # a minute; what goes slower, or faster than high, is no interval
    high: Positive = 220.0
    name: ClassVar[str] = "rate"

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := set(self.measures).difference(RHYTHMS):
            raise FormatError(f"rate: measures {', '.join(sorted(unknown))}, expected some of {', '.join(RHYTHMS)}")

    def results(self, names: tuple[str, ...], units: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return self.measures, tuple(_UNITS.get(name, units[0]) for name in self.measures) if units else ()

    def line(self, fmt: Format) -> Line:
        if len(self.channels or fmt.channels) != 1:
            raise FormatError(
                f"rate: `{fmt.stream}` has channels {', '.join(fmt.channels)}, expected one, or one named"
            )
        return RateLine(self, float(fmt.rate))


class RateLine(Line):
    """Line of :class:`Rate`."""

    numbers: ClassVar[tuple[str, ...]] = ("count",)
    arrays: ClassVar[tuple[str, ...]] = ("places", "sizes", "now")

    def __init__(self, spec: Rate, rate: float) -> None:
        self._spec, self._rate, self._span = spec, rate, round(spec.seconds * rate)
        self.count = 0  # samples so far
        self.places, self.sizes = np.empty(0, np.int64), np.empty(0)
        self.now: Real = np.zeros(len(spec.measures))

    def push(self, rows: Real) -> Real:
        peaks, out, at = np.flatnonzero(rows[:, 0]), np.empty((len(rows), len(self.now))), 0
        self.places = np.concatenate((self.places, self.count + peaks))
        self.sizes = np.concatenate((self.sizes, rows[peaks, 0]))
        changes = np.unique(np.concatenate((self.places, self.places + self._span)) - self.count)
        for change in changes[(changes >= 0) & (changes < len(rows))]:
            out[at:change], at = self.now, change
            self.now = self._measure(self.count + int(change))
        out[at:] = self.now
        self.count += len(rows)
        kept = self.places >= self.count - self._span  # that falls out with the next sample, too
        self.places, self.sizes = self.places[kept], self.sizes[kept]
        return out

    def _measure(self, place: int) -> Real:
        spec, here = self._spec, (self.places <= place) & (self.places > place - self._span)
        told = rhythm(
            self.places[here].tolist(), self.sizes[here].tolist(), self._rate, spec.seconds, (spec.low, spec.high)
        )
        return np.array([told[name] for name in spec.measures])


def _slope(values: Real, times_s: Real) -> float:
    """Of the line that is nearest, per s."""
    away_s = times_s - times_s.mean()
    return float(away_s @ values / (away_s @ away_s)) if len(values) > 1 else 0.0


#: Of a channel's numbers in a window that are there, and how long it is in s.
_OF_NUMBERS: dict[str, Callable[[Real, Real], Any]] = {
    "mean": lambda values, _: np.mean(values),
    "std": lambda values, _: np.std(values),
    "min": lambda values, _: np.min(values),
    "max": lambda values, _: np.max(values),
    "median": lambda values, _: np.median(values),
    "last": lambda values, _: values[-1],
    "slope": _slope,
}
_INTERVALS = "ibi_"


@dataclass(frozen=True)
class Features(Spec):
    """One row of numbers about a window, each named ``channel.measure``."""

    measures: Annotated[tuple[str, ...], Rules(minItems=1, uniqueItems=True)] = ()
    low: Amount = 30.0  # a minute, as of `rate`
    high: Positive = 220.0
    name: ClassVar[str] = "features"
    before_window: ClassVar[bool] = False

    def build(self) -> Stage:
        raise TypeError("features stand behind the window")

    def _chosen(self, fmt: Format) -> list[tuple[int, str]]:
        known = [*_OF_NUMBERS, *RHYTHMS, *(f"{_INTERVALS}{name}" for name in RHYTHMS[1:5])]
        chosen = []
        for measure in self.measures:
            channel, _, name = measure.rpartition(".")
            if channel not in fmt.channels or name not in known:
                raise FormatError(
                    f"features: measures {measure!r}, expected channel.measure of the channels {', '.join(fmt.channels)} "
                    f"and the measures {', '.join(known)}"
                )
            chosen.append((fmt.channels.index(channel), name))
        return chosen

    def output(self, inputs: Mapping[str, Format]) -> Format:
        fmt = only(inputs)
        self._chosen(fmt)
        if fmt.rows is None or len(fmt.shape) != 1 or not fmt.rate:
            raise FormatError("features: expected a window of signals at a fixed rate")
        span = int((fmt.rows - 1) * fmt.step) + fmt.span
        made = replace(
            fmt, channels=self.measures, units=(), shape=(len(self.measures),), dtype=float_of(self.name, fmt)
        )
        return replace(made, rate=fmt.rate * fmt.step / span, step=Fraction(span), span=span)

    def apply(self, data: Array, fmt: Format) -> Array:
        columns = np.ascontiguousarray(
            data.T, np.float64
        )  # (channels, n): what comes must not depend on how it lies there
        times_s = np.arange(columns.shape[1]) / float(fmt.rate)
        row = [self._measure(columns[i], name, times_s) for i, name in self._chosen(fmt)]
        return np.array([row], float_of(self.name, fmt))

    def _measure(self, column: Real, name: str, times_s: Real) -> float:
        there, within = np.isfinite(column), (self.low, self.high)
        if not there.any():
            return np.nan
        values, times_s, rate = column[there], times_s[there], 1 / times_s[1] if len(times_s) > 1 else 1.0
        if name in _OF_NUMBERS:
            return float(_OF_NUMBERS[name](values, times_s))
        peaks = np.flatnonzero(values)
        if name.startswith(_INTERVALS):
            return of_intervals(values[peaks], within)[name.removeprefix(_INTERVALS)]
        return rhythm(
            np.rint(times_s[peaks] * rate).astype(int).tolist(),
            values[peaks].tolist(),
            rate,
            len(column) / rate,
            within,
        )[name]
