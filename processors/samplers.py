"""One stream's samples at the ticks of another clock. In: clean Chunks in rising order. Out: values by tick, NaN where there is none.

Tick ``k`` stands at ``origin + k * 10**9 * den // num`` ns, as samples do; all that is decided by times is decided in whole numbers. What
a tick says depends on the samples under it alone, so it is the same however the stream is cut, and whenever it comes. Where the stream's
clock is the ticks' own, tick ``k`` is sample ``k``, to the bit, for every way to sample but ``count``.

An irregular stream's samples stand at times of their own, of which several may be equal: the last of them counts. A value then holds,
and a line is drawn, over so many nanoseconds at most, its reach. That no earlier sample comes says a later one, or a progress mark:
marks let ticks be decided sooner, and never otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kymo.processors.intake import runs_of
from kymo.processors.spec import pack, unpack
from kymo.streams.chunk import Array, Chunk, Header
from kymo.streams.errors import FormatError
from kymo.streams.words import NS

Ints = NDArray[np.int64]
_SAFE = 2**61  # beyond it whole numbers of any size are used
_FAR = 2**62  # farther from 1970 than any sample, ns


@dataclass(frozen=True, slots=True)
class SampleTimes:
    """Where the samples of a stream stand in time, or the ticks of a grid."""

    origin_ns: int
    rate: Fraction
    _ns: int = field(init=False, compare=False)  # so many ns every so many samples
    _samples: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ns", self.rate.denominator * NS)
        object.__setattr__(self, "_samples", self.rate.numerator)

    @classmethod
    def of(cls, header: Header) -> SampleTimes:
        """The clock of a stream's samples."""
        return cls(header.origin_ns, header.format.rate)

    def time(self, index: int) -> int:
        """Unix time of one sample, ns."""
        return self.origin_ns + index * self._ns // self._samples

    def first_at(self, time_ns: int) -> int:
        """Number of the first sample at or after a time."""
        return -((self.origin_ns - time_ns) * self._samples // self._ns)

    def count_in(self, ticks: SampleTimes) -> int:
        """How many stand between two ticks, if that is a whole number."""
        return self._samples * ticks._ns // (self._ns * ticks._samples)

    def times(self, indices: Any) -> Any:
        """:meth:`time` of rising indices, or of one."""
        if isinstance(indices, int):
            return self.time(indices)
        num, den = self._samples, self._ns
        widest = max(abs(int(indices[0])), abs(int(indices[-1])))
        if num * den >= _SAFE or widest * den // num + abs(self.origin_ns) >= _SAFE:
            indices = indices.astype(object)
        whole, rest = indices // num, indices % num
        times: Ints = self.origin_ns + whole * den + rest * den // num
        return times

    def first_at_each(self, times_ns: Any) -> Any:
        """:meth:`first_at` of rising times, or of one."""
        if isinstance(times_ns, int):
            return self.first_at(times_ns)
        num, den = self._samples, self._ns
        if num * den >= _SAFE or max(abs(int(times_ns[0])), abs(int(times_ns[-1]))) + abs(self.origin_ns) >= _SAFE:
            times_ns = times_ns.astype(object)
        since = times_ns - self.origin_ns
        indices: Ints = since // den * num - (-(since % den * num) // den)
        return indices


@dataclass(frozen=True, slots=True)
class StampedTimes:
    """Where samples with times of their own stand."""

    first: int  # number of the first
    stamps: Ints  # rising, ns

    def times(self, indices: Any) -> Any:
        """Times of samples by number; far away for those that are not there."""
        if not len(self.stamps):
            return np.full(np.shape(indices), _FAR)
        at = indices - self.first
        stamps = self.stamps[np.clip(at, 0, len(self.stamps) - 1)]
        return np.where(at < 0, -_FAR, np.where(at < len(self.stamps), stamps, _FAR))

    def first_at_each(self, times_ns: Any) -> Any:
        """Number of the first sample at or after each time."""
        return self.first + np.searchsorted(self.stamps, np.asarray(times_ns, np.int64))


Stream = SampleTimes | StampedTimes
# of ticks by number, or of one
Need = Callable[[Stream, SampleTimes, Any], tuple[Any, Any]]


def _around(stream: Stream, ticks: SampleTimes, numbers: Any) -> tuple[Any, Any]:
    """The samples on either side of each tick; one where it stands on the tick."""
    times = ticks.times(numbers)
    newest = stream.first_at_each(times + 1) - 1
    return newest, newest + 1 + (stream.times(newest) != times)


def _before(stream: Stream, ticks: SampleTimes, numbers: Any) -> tuple[Any, Any]:
    """The newest sample at each tick."""
    first, _ = _around(stream, ticks, numbers)
    return first, first + 1


def _nearest(stream: Stream, ticks: SampleTimes, numbers: Any) -> tuple[Any, Any]:
    """The sample nearest to each tick, the earlier of two."""
    times = ticks.times(numbers)
    first, end = _around(stream, ticks, numbers)
    later = times - stream.times(first) > stream.times(end - 1) - times
    return first + later, first + later + 1


def _from(stream: Stream, ticks: SampleTimes, numbers: Any) -> tuple[Any, Any]:
    """The samples from each tick to the next."""
    return stream.first_at_each(ticks.times(numbers)), stream.first_at_each(ticks.times(numbers + 1))


def samples_a_tick(stream: Fraction, ticks: Fraction) -> int:
    """How many samples a block holds."""
    ratio = stream / ticks
    if ratio.denominator != 1:
        raise FormatError(
            f'sample = "block" takes a whole number of samples a tick; {float(stream):g} Hz on a grid of {float(ticks):g} Hz are '
            f"{float(ratio):g}; resample it first"
        )
    return int(ratio)


def _block(stream: Stream, ticks: SampleTimes, numbers: Any) -> tuple[Any, Any]:
    """So many samples from each tick on."""
    assert isinstance(stream, SampleTimes)
    first = stream.first_at_each(ticks.times(numbers))
    return first, first + stream.count_in(ticks)


#: By way to sample, the range of samples that a tick rests on.
SAMPLERS: dict[str, Need] = {
    "linear": _around,
    "hold": _before,
    "nearest": _nearest,
    "mean": _from,
    "count": _from,
    "block": _block,
}


#: Ways that take one sample a tick where the two clocks are one.
_SINGLE = ("linear", "hold", "nearest")


class Sampler:
    """The memory of one stream that is sampled at ticks; of an irregular one, and of frames, with its reach."""

    def __init__(self, way: str, ticks: SampleTimes, reach_ns: int | None = None) -> None:
        self.way, self.ticks, self._need, self.reach_ns = way, ticks, SAMPLERS[way], reach_ns
        self.ready = 0  # ticks before it are decided
        self.awaits = 0  # samples of an evenly sampled stream that end before this number decide no further tick
        self._header: Header | None = None
        self._first = 0  # number of the first sample kept
        self._kept: Array = np.empty(0)
        # Of an irregular stream the kept samples' times, that of the newest there was, and before which none comes any more.
        self._stamps: Ints = np.empty(0, np.int64)
        self._newest_ns = self._complete_ns = -_FAR

    @property
    def _stream(self) -> Stream:
        if self.reach_ns is not None:
            return StampedTimes(self._first, self._stamps)
        return self._clock

    def _bind(self, header: Header) -> None:
        self._header, self._clock = header, SampleTimes.of(header)
        if self.way == "block":
            samples_a_tick(self._clock.rate, self.ticks.rate)
        self._takes_each = self._clock == self.ticks and self.way in _SINGLE

    @property
    def _end(self) -> int:
        return self._first + len(self._kept)

    def begin(self, tick: int) -> None:
        """Ask for no tick before this one."""
        self.ready, self.awaits = max(self.ready, tick), 0

    def push(self, chunk: Chunk) -> list[tuple[int, Array]]:
        """Take samples; give runs of ticks: the first one's number, and their values."""
        if chunk.times_ns is not None:
            return self._push_stamped(chunk.data, chunk.times_ns)
        if self.reach_ns is not None and chunk.count:  # frames of a fixed rate
            times_ns = SampleTimes.of(chunk.header).times(np.arange(chunk.first_index, chunk.end_index))
            after = int(
                np.searchsorted(times_ns, self._newest_ns)
            )  # a clock that is set back says nothing new at first
            return self._push_stamped(chunk.data[after:], times_ns[after:])
        values: list[tuple[int, Array]] = []
        if chunk.header is not self._header:
            if self._header is not None and chunk.header != self._header:
                # Another clock: what stands before its first sample has nothing more to come.
                values += self._decide(self.ticks.first_at(SampleTimes.of(chunk.header).time(chunk.first_index)))
                self._kept, self.awaits = self._kept[:0], 0
            self._bind(chunk.header)
        if self._takes_each:
            start, self.ready = max(self.ready, chunk.first_index), max(self.ready, chunk.end_index)
            self._first, self._kept = chunk.end_index, chunk.data[:0]
            return [*values, (start, chunk.data[start - chunk.first_index :])] if start < self.ready else values
        if not len(self._kept):
            self._first, self._kept = chunk.first_index, chunk.data
        else:
            if chunk.first_index > self._end:
                values += self._decide(self._decided(chunk.first_index))
            self._append(chunk)
        if self._end < self.awaits:
            return values
        values += self._decide(self._decided(self._end))
        self.awaits = self._need(self._clock, self.ticks, self.ready)[1]
        return values

    def _push_stamped(self, data: Array, times_ns: Ints) -> list[tuple[int, Array]]:
        if len(data):
            self._stamps = np.concatenate((self._stamps, times_ns))
            self._kept = np.concatenate((self._kept, data)) if len(self._kept) else data
            self._newest_ns = int(times_ns[-1])
        return self.complete(self._newest_ns)

    def complete(self, time_ns: int) -> list[tuple[int, Array]]:
        """Hear that no sample of an irregular stream from before a time comes any more; give what is decided by that."""
        self._complete_ns = max(self._complete_ns, time_ns)
        if self.way in ("mean", "count"):
            return self._decide(self.ticks.first_at(self._complete_ns + 1) - 1)
        if self.way == "hold":
            return self._decide(self.ticks.first_at(self._complete_ns))
        return self._decide(self.ticks.first_at(max(self._newest_ns, self._complete_ns - (self.reach_ns or 0))))

    def _append(self, chunk: Chunk) -> None:
        hole = chunk.first_index - self._end
        first = self._needed(self.ready)
        if first >= self._end:
            self._first, self._kept = chunk.first_index, chunk.data
            return
        parts = [self._kept, np.full((hole, *self._kept.shape[1:]), np.nan, self._kept.dtype), chunk.data]
        self._kept = np.concatenate(parts if hole else (parts[0], parts[2]))

    def close(self) -> list[tuple[int, Array]]:
        """Give what is left: nothing more comes. What an irregular stream's last value reaches lies behind :attr:`ready`."""
        if self.reach_ns is not None:
            ready = max(self.ready, self.ticks.first_at(self._newest_ns + 1))
            values = self._decide(max(ready, self.ticks.first_at(self._newest_ns + self._reaches[1] + 1)))
            self.ready = ready
            return values
        if self._header is None:
            return []
        return self._decide(self.ticks.first_at(self._clock.time(self._end)))

    def ticks_on(self, start: int, stop: int) -> tuple[int, int]:
        """The ticks that rest on some of an evenly sampled stream's samples from `start` to `stop`: the first, and one past the last."""
        first, end = (self.ticks.first_at(self._clock.time(index)) for index in (start, stop))
        first, end = first + 1, end + 1
        while self._need(self._clock, self.ticks, first - 1)[1] > start:
            first -= 1
        while self._need(self._clock, self.ticks, end - 1)[0] >= stop:
            end -= 1
        return first, end

    def _needed(self, tick: int) -> int:
        """Oldest sample that a tick rests on."""
        return int(self._need(self._stream, self.ticks, tick)[0])

    def _decided(self, end: int) -> int:
        """The first tick that rests on samples from `end` on."""
        tick = self.ticks.first_at(self._clock.time(end)) + 1
        while tick > self.ready and self._need(self._clock, self.ticks, tick - 1)[1] > end:
            tick -= 1
        return max(tick, self.ready)

    def _decide(self, stop: int) -> list[tuple[int, Array]]:
        """The values of ticks up to `stop`, where a sample that is there lies under them; forget what no later tick needs."""
        start, self.ready = self.ready, max(self.ready, stop)
        values = [run for a, b in self._near(start, stop) for run in self._runs(a, b)]
        drop = min(max(self._needed(self.ready) - self._first, 0), len(self._kept))
        if drop:
            self._first, self._kept, self._stamps = self._first + drop, self._kept[drop:], self._stamps[drop:]
        return values

    @property
    def _reaches(self) -> tuple[int, int]:
        """How far before and behind it an irregular stream's sample says something, ns."""
        reach = self.reach_ns or 0
        return reach if self.way == "nearest" else 0, reach if self.way in ("hold", "nearest", "linear") else 0

    def _near(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The ticks near samples: behind a gap of hours there may be millions of others, which have no value."""
        if not len(self._kept) or start >= stop:
            return []
        stream = self._stream
        if isinstance(stream, SampleTimes):
            start = max(start, self.ticks.first_at(stream.time(self._first - 1)) - 1)
            stop = min(stop, self.ticks.first_at(stream.time(self._end)) + 1)
            return [(start, stop)] if start < stop else []
        before, behind = self._reaches
        ends = np.minimum(self.ticks.first_at_each(stream.stamps + behind + 1), stop)
        if self.way in ("mean", "count"):
            starts = self.ticks.first_at_each(stream.stamps + 1) - 1
        else:
            starts = self.ticks.first_at_each(stream.stamps - before)
        starts = np.maximum(starts, start)
        cuts = np.flatnonzero(starts[1:] > ends[:-1]) + 1
        runs = zip(starts[np.append(0, cuts)].tolist(), ends[np.append(cuts, len(ends)) - 1].tolist(), strict=True)
        return [(a, b) for a, b in runs if a < b]

    def _runs(self, start: int, stop: int) -> list[tuple[int, Array]]:
        """The values of ticks; of frames, which know no NaN, the runs of those that have one."""
        if self._kept.dtype.kind == "f":
            # Live, ticks come one by one: then plain numbers cost a tenth of arrays of one.
            one = stop - start == 1 and self.reach_ns is None
            return [(start, self._values(start if one else np.arange(start, stop)))]
        stream, numbers = self._stream, np.arange(start, stop)
        first, _ = self._need(stream, self.ticks, numbers)
        ages_ns = abs(self.ticks.times(numbers) - stream.times(first))
        there = (first >= self._first) & (first < self._end) & (ages_ns <= self.reach_ns)
        at = np.asarray(first - self._first, np.int64)
        return [(int(numbers[a]), self._kept[at[a:b]]) for a, b in runs_of(np.asarray(there, bool))]

    def _values(self, numbers: Any) -> Array:
        """The values of ticks by number, or of one."""
        stream = self._stream
        first, end = self._need(stream, self.ticks, numbers)
        if self.way in ("hold", "nearest"):
            return self._within(abs(self.ticks.times(numbers) - stream.times(first)), self._rows(first))
        if self.way == "linear":
            before, after = self._rows(first), self._rows(end - 1)
            early, late = stream.times(first), stream.times(end - 1)
            after = self._within(late - early, after)
            share: Any = np.asarray((self.ticks.times(numbers) - early) / np.maximum(late - early, 1), np.float64)
            share = share.reshape(-1, *[1] * (before.ndim - 1))
            line = before * (1 - share) + after * share
            return np.where(share == 0, before, line).astype(before.dtype)
        shape = self._kept.shape[1:]
        if self.way == "block":
            starts = np.atleast_1d(first)
            each = int(np.atleast_1d(end)[0] - starts[0])
            rows = self._rows((starts[:, None] + np.arange(each)).ravel())
            return rows.reshape(len(starts), each * math.prod(shape))
        bounds = [(first, end)] if isinstance(first, int) else zip(first.tolist(), end.tolist(), strict=True)
        under = [_finite(self._kept[max(a - self._first, 0) : max(b - self._first, 0)]) for a, b in bounds]
        if self.way == "count":
            return np.array([len(rows) for rows in under], self._kept.dtype)[:, None]
        return np.array([_mean(rows, shape) for rows in under]).astype(self._kept.dtype)

    def _within(self, ages_ns: Ints, rows: Array) -> Array:
        """The values that an irregular stream's reach allows."""
        if self.reach_ns is not None:
            rows[ages_ns > self.reach_ns] = np.nan
        return rows

    def _rows(self, indices: Any) -> Array:
        """Samples by rising numbers, or one; NaN for those that are not there."""
        at = np.atleast_1d(np.asarray(indices - self._first, np.int64))
        if at[0] >= 0 and at[-1] < len(self._kept):
            return self._kept[at]
        rows = np.full((len(at), *self._kept.shape[1:]), np.nan, self._kept.dtype)
        there = (at >= 0) & (at < len(self._kept))
        rows[there] = self._kept[at[there]]
        return rows

    def snapshot(self) -> bytes:
        """All of the memory."""
        meta: dict[str, Any] = {"ready": self.ready, "header": self._header, "first": self._first}
        meta |= {"origin": self.ticks.origin_ns, "newest": self._newest_ns, "complete": self._complete_ns}
        return pack(meta, {"kept": self._kept, "stamps": self._stamps})

    def restore(self, snapshot: bytes) -> None:
        """Become what :meth:`snapshot` was taken of."""
        meta, arrays = unpack(snapshot)
        self.ticks, self.awaits = SampleTimes(meta["origin"], self.ticks.rate), 0
        self.ready, self._first, self._kept = meta["ready"], meta["first"], arrays["kept"]
        if meta["header"] is not None:
            self._bind(meta["header"])
        self._newest_ns, self._complete_ns = meta["newest"], meta["complete"]
        self._stamps = arrays["stamps"].astype(np.int64)


def _finite(rows: Array) -> Array:
    """The samples that are there."""
    good = np.isfinite(rows)
    return rows if good.all() else rows[good.all(axis=tuple(range(1, rows.ndim)))]


def _mean(rows: Array, shape: tuple[int, ...]) -> Array:
    """The mean of samples; NaN of none. In which order they are added must not depend on how they lie in memory."""
    return np.ascontiguousarray(rows).mean(0, dtype=np.float64) if len(rows) else np.full(shape, np.nan)
