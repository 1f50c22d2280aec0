"""Steps whose memory has no end. In: Chunks of signals. Out: a sample for each, perhaps some later: filtered, normalised, repaired.

What such a step remembers is in its snapshot alone: no number of samples before one says what comes of it. It computes in float64, one
sample after the other, so that no cut shows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, ClassVar

import numpy as np
import scipy
from numpy.typing import NDArray

from kymo.processors.intake import runs_of
from kymo.processors.spec import Spec, Stage, StreamStage, derived_header, only, pack, pack_list, unpack, unpack_list
from kymo.processors.steps.maps import columns_of, float_of
from kymo.streams.chunk import Array, Chunk, Format, Header
from kymo.streams.errors import FormatError
from kymo.streams.schema import Amount, Positive, Rules

Real = NDArray[np.float64]
Names = Annotated[tuple[str, ...], Rules(uniqueItems=True, expected="a list of names, none twice")]


class Line(ABC):
    """The memory of a step over samples in a row, ``(n, channels)`` float64."""

    numbers: ClassVar[tuple[str, ...]] = ()
    arrays: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def push(self, rows: Real) -> Real:
        """What is known of the next rows by now, in their order."""

    def close(self) -> Real:
        """The rest, at the end or before a gap."""
        return np.empty((0, 1))

    def snapshot(self) -> bytes:
        return pack({n: getattr(self, n) for n in self.numbers}, {n: getattr(self, n) for n in self.arrays})

    def restore(self, snapshot: bytes) -> None:
        numbers, arrays = unpack(snapshot)
        for name, value in (numbers | arrays).items():
            setattr(self, name, value)


@dataclass(frozen=True)
class SignalSpec(Spec):
    """A step over some channels of a signal; a subclass gives its :class:`Line`."""

    channels: Names = ()  # empty: all
    into: Names = ()  # what comes out is added under these names; empty: it takes the place of what went in
    spans_all: ClassVar[bool] = False
    goes_on: ClassVar[bool] = False  # whether its memory is kept over a gap
    fills: ClassVar[bool] = False  # whether it is shown gaps, as NaN, and may leave samples out

    @property
    def endless(self) -> bool:
        return True

    @abstractmethod
    def line(self, fmt: Format) -> Line:
        """Its memory at the begin of samples of `fmt` in a row; raises FormatError where it does not fit."""

    def longest(self, rate: float) -> int:
        """Up to how many samples that are missing it is shown."""
        return 0

    def results(self, names: tuple[str, ...], units: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Channels and units of what it makes of some."""
        return names, units

    def build(self) -> Stage:
        return SignalStage(self)

    def output(self, inputs: Mapping[str, Format]) -> Format:
        fmt = only(inputs)
        at = columns_of(self.name, self.channels or fmt.channels, fmt)
        if len(fmt.shape) != 1 or not fmt.rate:
            raise FormatError(f"{self.name}: `{fmt.stream}` is no signal of numbers at a fixed rate")
        self.line(fmt)
        chosen = tuple(fmt.channels[i] for i in at)
        names, units = self.results(chosen, tuple(fmt.units[i] for i in at) if fmt.units else ())
        if self.into:
            if len(self.into) != len(names) or set(self.into) & set(fmt.channels):
                raise FormatError(
                    f"{self.name}: into {', '.join(self.into)}, expected {len(names)} names that are no channel of `{fmt.stream}`"
                )
            names, units = (*fmt.channels, *self.into), (*fmt.units, *units) if fmt.units else ()
        elif names == chosen:  # the others stay
            other = dict(zip(at, units, strict=False))
            names, units = fmt.channels, tuple(other.get(i, unit) for i, unit in enumerate(fmt.units))
        return replace(fmt, channels=names, units=units, shape=(len(names),), dtype=float_of(self.name, fmt))

    def apply(self, data: Array, fmt: Format) -> Array:
        stage = SignalStage(self)
        chunks = [*stage.push(Chunk(Header("", 0, replace(fmt, rows=None)), 0, data)), *stage.flush()]
        out: Array = np.concatenate([chunk.data for chunk in chunks])
        return out


class SignalStage(StreamStage):
    """Stage of a :class:`SignalSpec`: its line, and the samples of which nothing has come out yet."""

    numbers: ClassVar[tuple[str, ...]] = ("next", "end")
    arrays: ClassVar[tuple[str, ...]] = ("kept",)

    def __init__(self, spec: SignalSpec) -> None:
        super().__init__(spec)
        self.spec: SignalSpec = spec
        self._end = 0  # index one past the last sample taken
        self._kept: Array = np.empty((0, 0))  # (n, channels), from sample `_next` on

    def _bind(self, header: Header) -> None:
        goes_on = self.spec.goes_on and self._header is not None
        super()._bind(header)
        fmt = header.format
        self._at = columns_of(self.spec.name, self.spec.channels or fmt.channels, fmt)
        self._in_place = not self.spec.into and self._out.format.channels == fmt.channels
        self._kept = np.empty((0, *fmt.shape), fmt.dtype)
        if not goes_on:
            self._line = self.spec.line(fmt)

    def push(self, item: Chunk) -> list[Chunk]:
        """Take samples; give what is known by now."""
        if not item.count:
            return []
        out = list[Chunk]()
        other, missing = self._is_other(item.header), item.first_index - self._end
        if other:
            derived_header(item.header, self.spec)  # first: one that is refused must change nothing
        if other or missing:
            if not other and 0 < missing <= self.spec.longest(float(item.header.format.rate)):
                out += self._take(np.full((missing, *item.data.shape[1:]), np.nan, self._out.format.dtype))
            else:
                out += self._close()
                if other:
                    self._bind(item.header)
                self._next = item.first_index
        out += self._take(item.data)
        self._end = item.end_index
        return out

    def _take(self, data: Array) -> list[Chunk]:
        self._kept = np.concatenate((self._kept, data))
        rows = data[:, self._at].astype(np.float64)
        finite = np.isfinite(rows)
        if self.spec.fills or np.count_nonzero(finite) == finite.size:
            return self._give(self._line.push(rows))
        out, at, there = list[Chunk](), 0, np.asarray(finite.all(axis=1))
        for start, stop in [*runs_of(there), (len(rows), len(rows))]:
            if start > at:  # an input of a join is not there: as a gap, but said
                width = len(self._at) if self._in_place else len(self.spec.into or self._out.format.channels)
                out += self._close() + self._give(np.full((start - at, width), np.nan))
            if stop > start:
                out += self._give(self._line.push(rows[start:stop]))
            at = stop
        return out

    def _close(self) -> list[Chunk]:
        """Give what is left of the samples in a row; what follows begins anew, or goes on."""
        if self._header is None:
            return []
        out = self._give(self._line.close())
        if not self.spec.goes_on:
            self._line = self.spec.line(self._header.format)
        return out

    def _give(self, rows: Real) -> list[Chunk]:
        if not len(rows):
            return []
        kept, self._kept, fmt = self._kept[: len(rows)], self._kept[len(rows) :], self._out.format
        if self.spec.into:
            data = np.concatenate((kept, rows), axis=1, dtype=fmt.dtype, casting="same_kind")
        elif self._in_place:
            data = kept.astype(fmt.dtype)
            data[:, self._at] = rows
        else:
            data = rows.astype(fmt.dtype)
        first, self._next = self._next, self._next + len(rows)
        if not self.spec.fills:
            return [Chunk(self._out, first, data)]
        return [Chunk(self._out, first + a, data[a:b]) for a, b in runs_of(np.asarray(np.isfinite(rows).all(axis=1)))]

    def flush(self) -> list[Chunk]:
        return self._close()

    def snapshot(self) -> bytes:
        return pack_list([super().snapshot(), b"" if self._header is None else self._line.snapshot()])

    def restore(self, snapshot: bytes) -> None:
        stage, *line = unpack_list(snapshot)
        super().restore(stage)
        if self._header is not None:
            self._line.restore(line[0])


_KINDS = ("lowpass", "highpass", "bandpass", "bandstop", "notch")


@dataclass(frozen=True)
class Filter(SignalSpec):
    """A Butterworth filter, or a notch; `lag_s` later without a shift of phase.

    References
    ----------
    ``scipy.signal.sosfilt`` with the state of a constant signal before the first sample; with a lag ``sosfiltfilt``, whose second pass,
    backwards in time, sees `lag_s` of what comes, and takes the last of it to go on for ever.
    """

    kind: Annotated[str, Rules(enum=_KINDS)] = "lowpass"
    cutoff_hz: Positive | Annotated[tuple[float, ...], Rules(minItems=2, maxItems=2)] = 1.0
    order: Annotated[int, Rules(minimum=1, maximum=20)] = 2
    quality: Positive = 30.0
    lag_s: Amount = 0.0
    name: ClassVar[str] = "filter"

    def __post_init__(self) -> None:
        super().__post_init__()
        cutoffs = self.cutoff_hz if isinstance(self.cutoff_hz, tuple) else (self.cutoff_hz,)
        wanted = 2 if self.kind.startswith("band") else 1
        if len(cutoffs) != wanted or min(cutoffs) <= 0 or sorted(set(cutoffs)) != list(cutoffs):
            raise FormatError(
                f"filter: cutoff_hz {self.cutoff_hz!r} of a {self.kind}, expected {'two, the lower first' if wanted == 2 else 'one'}"
            )

    def line(self, fmt: Format) -> Line:
        rate, highest = float(fmt.rate), np.max(self.cutoff_hz)
        if highest >= rate / 2:
            raise FormatError(
                f"filter: cutoff_hz {highest:g} of `{fmt.stream}`, expected less than half of its {rate:g} samples a second"
            )
        return FilterLine(
            _sections(self.kind, self.cutoff_hz, self.order, self.quality, rate), round(self.lag_s * rate)
        )


@cache
def _sections(kind: str, cutoff_hz: Any, order: int, quality: float, rate: float) -> Real:
    """A filter, ``(sections, 6)``."""
    if kind == "notch":
        return np.asarray(scipy.signal.tf2sos(*scipy.signal.iirnotch(cutoff_hz, quality, fs=rate)))
    return np.asarray(scipy.signal.butter(order, cutoff_hz, kind, fs=rate, output="sos"))


class FilterLine(Line):
    """Line of :class:`Filter`."""

    arrays: ClassVar[tuple[str, ...]] = ("state", "ahead")

    def __init__(self, sections: Real, lag: int) -> None:
        self.sections, self.lag = sections, lag
        self.state: Real = np.empty((0,))
        self.ahead: Real = np.empty((0, 0))  # (n, channels), passed once
        if lag:
            impulse = np.zeros(lag)
            impulse[0] = 1.0
            taps = scipy.signal.sosfilt(sections, impulse)
            steady = np.prod(sections[:, :3].sum(axis=1) / sections[:, 3:].sum(axis=1))
            self._taps = np.append(taps, steady - taps.sum())  # what lies behind the lag is as its last sample

    def push(self, rows: Real) -> Real:
        if not self.state.size:
            self.state = scipy.signal.sosfilt_zi(self.sections)[:, :, None] * rows[0]
            self.ahead = rows[:0]
        once, self.state = scipy.signal.sosfilt(self.sections, rows, axis=0, zi=self.state)
        return self._back(np.concatenate((self.ahead, once))) if self.lag else once

    def _back(self, once: Real) -> Real:
        count = max(0, len(once) - self.lag)
        self.ahead = once[count:]
        columns = np.ascontiguousarray(once.T)
        if not count:
            return once[:0]
        # Each output is a product of its own: its bytes depend on its own samples alone.
        return np.asarray(np.vecdot(windows_of(columns, self.lag + 1), self._taps)).T

    def close(self) -> Real:
        if not self.lag or not len(self.ahead):
            return self.ahead[:0]
        return self._back(np.concatenate((self.ahead, np.repeat(self.ahead[-1:], self.lag, axis=0))))


def windows_of(values: Real, size: int) -> Real:
    """Views of so many numbers in a row of the last axis, as numpy's sliding_window_view, but quickly; of an array in C order."""
    shape = (*values.shape[:-1], values.shape[-1] - size + 1, size)
    return np.ndarray(shape, values.dtype, values, 0, (*values.strides, values.strides[-1]))


@dataclass(frozen=True)
class Normalise(SignalSpec):
    """Less the mean, by the standard deviation, of a session's samples so far; of its first `baseline_s` where that is given."""

    baseline_s: Amount = 0.0
    name: ClassVar[str] = "normalise"
    goes_on: ClassVar[bool] = True

    def results(self, names: tuple[str, ...], units: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return names, ("",) * len(units)

    def line(self, fmt: Format) -> Line:
        return NormaliseLine(round(self.baseline_s * float(fmt.rate)))


class NormaliseLine(Line):
    """Line of :class:`Normalise`."""

    numbers: ClassVar[tuple[str, ...]] = ("count",)
    arrays: ClassVar[tuple[str, ...]] = ("first", "sums")

    def __init__(self, most: int) -> None:
        self.most, self.count = most, 0  # samples that count at most, and that have
        self.first: Real = np.empty(0)
        self.sums: Real = np.empty(0)  # (1, 2, channels): of what is above the first sample, and of its squares

    def push(self, rows: Real) -> Real:
        if not self.count:
            self.first, self.sums = rows[0].copy(), np.zeros((1, 2, rows.shape[1]))
        above = rows - self.first
        taken = above[: max(0, self.most - self.count)] if self.most else above
        # One after the other, as accumulate does, whatever comes at once (law 1).
        sums = np.add.accumulate(np.concatenate((self.sums, np.stack((taken, taken**2), axis=1))))
        counts = self.count + np.arange(len(sums))
        self.sums, self.count = sums[-1:].copy(), int(counts[-1])
        at = np.minimum(np.arange(1, len(rows) + 1), len(taken))
        means = sums[at] / counts[at][:, None, None]
        deviations = np.sqrt(np.maximum(means[:, 1] - means[:, 0] ** 2, 0))
        out = np.zeros_like(rows)
        np.divide(above - means[:, 0], deviations, out=out, where=deviations > 1e-9 * (1 + np.abs(self.first)))
        return out


@dataclass(frozen=True)
class Repair(SignalSpec):
    """Lines instead of what is missing or implausible, and of `margin_s` around it: blinks in the size of a pupil."""

    low: float = 0.0  # what is not above it, or not below high, is implausible
    high: float = 1e9
    margin_s: Amount = 0.1
    longest_s: Positive = 0.5  # of what is repaired, without its margins; what is longer becomes a gap
    name: ClassVar[str] = "repair"
    fills: ClassVar[bool] = True
    after_window: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels or self.into or self.low >= self.high:
            raise FormatError("repair: takes all channels in their places, and a low below a high")

    def longest(self, rate: float) -> int:
        return round(self.longest_s * rate)

    def line(self, fmt: Format) -> Line:
        rate = float(fmt.rate)
        margin = round(self.margin_s * rate)
        return RepairLine((self.low, self.high), margin, self.longest(rate) + 2 * margin)


class RepairLine(Line):
    """Line of :class:`Repair`."""

    numbers: ClassVar[tuple[str, ...]] = ("since", "lost")
    arrays: ClassVar[tuple[str, ...]] = ("rows", "last")

    def __init__(self, within: tuple[float, float], margin: int, longest: int) -> None:
        self._within, self._margin, self._longest = within, margin, longest
        self.since = margin + 1  # how far before the first row the newest bad one lies, as far as that counts
        self.lost = True  # whether what is bad now has no begin, or is too long
        self.rows: Real = np.empty((0, 0))  # those of which nothing has come out yet
        self.last: Real = np.empty((0, 0))  # (1, channels): the newest good one

    def push(self, rows: Real) -> Real:
        self.rows = np.concatenate((self.rows, rows)) if len(self.rows) else rows
        return self._decide(len(self.rows) - self._margin)

    def close(self) -> Real:
        out = self._decide(len(self.rows))
        return np.concatenate((out, np.full_like(self.rows, np.nan)))

    def _decide(self, count: int) -> Real:
        """What comes of the first `count` rows, unless they are bad and may still be repaired."""
        rows, (low, high), places = self.rows, self._within, np.arange(len(self.rows))
        if count <= 0:
            return rows[:0]
        bad = ~((rows > low) & (rows < high)).all(axis=1)
        before = places - np.maximum.accumulate(np.where(bad, places, -self.since))
        behind = np.minimum.accumulate(np.where(bad, places, len(rows) + self._margin)[::-1])[::-1] - places
        good = (np.minimum(before, behind) > self._margin)[:count]
        out, given = [rows[:0]], 0
        for start, stop in runs_of(good):
            if start > given:
                out.append(self._instead(start - given, rows[start]))
            out.append(rows[start:stop])
            given, self.last, self.lost = stop, rows[stop - 1 : stop].copy(), False
        self.lost = self.lost or count - given > self._longest
        if self.lost and count > given:
            out.append(np.full_like(rows[given:count], np.nan))
            given = count
        self.since = min(self._margin + 1, int(before[given - 1]) + 1) if given else self.since
        self.rows = rows[given:].copy()
        return np.concatenate(out)

    def _instead(self, count: int, after: Real) -> Real:
        if self.lost or count > self._longest:
            return np.full((count, len(after)), np.nan)
        share = (np.arange(1, count + 1) / (count + 1))[:, None]
        line: Real = self.last * (1 - share) + after * share
        return line
