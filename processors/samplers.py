"""One stream's samples at the ticks of another clock. In: clean Chunks in rising order. Out: values by tick, NaN where there is none.

Tick ``k`` stands at ``origin + k * 10**9 * den // num`` ns, as samples do; all that is decided by times is decided in whole numbers. What
a tick says depends on the samples under it alone, so it is the same however the stream is cut, and whenever it comes. Where the stream's
clock is the ticks' own, tick ``k`` is sample ``k``, to the bit, for every way to sample but ``count``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kymo.processors.spec import pack, unpack
from kymo.streams.chunk import Array, Chunk, Header, index_at, sample_time_ns
from kymo.streams.errors import FormatError
from kymo.streams.words import NS

Ints = NDArray[np.int64]
_SAFE = 2**61  # beyond it whole numbers of any size are used


@dataclass(frozen=True, slots=True)
class SampleTimes:
    """Where the samples of a stream stand in time, or the ticks of a grid."""

    origin_ns: int
    rate: Fraction

    @classmethod
    def of(cls, header: Header) -> SampleTimes:
        """The clock of a stream's samples."""
        return cls(header.origin_ns, header.format.rate)

    def time(self, index: int) -> int:
        """Unix time of one sample, ns."""
        return sample_time_ns(self.origin_ns, self.rate, index)

    def first_at(self, time_ns: int) -> int:
        """Number of the first sample at or after a time."""
        return index_at(self.origin_ns, self.rate, time_ns)

    def times(self, indices: Ints) -> Ints:
        """:meth:`time` of rising indices."""
        num, den = self.rate.numerator, self.rate.denominator * NS
        widest = max(abs(int(indices[0])), abs(int(indices[-1])))
        if num * den >= _SAFE or widest * den // num + abs(self.origin_ns) >= _SAFE:
            indices = indices.astype(object)
        whole, rest = indices // num, indices % num
        times: Ints = self.origin_ns + whole * den + rest * den // num
        return times

    def first_at_each(self, times_ns: Ints) -> Ints:
        """:meth:`first_at` of rising times."""
        num, den = self.rate.numerator, self.rate.denominator * NS
        if num * den >= _SAFE or max(abs(int(times_ns[0])), abs(int(times_ns[-1]))) + abs(self.origin_ns) >= _SAFE:
            times_ns = times_ns.astype(object)
        since = times_ns - self.origin_ns
        indices: Ints = since // den * num - (-(since % den * num) // den)
        return indices


Need = Callable[[SampleTimes, SampleTimes, Ints], tuple[Ints, Ints]]


def _around(stream: SampleTimes, ticks: SampleTimes, numbers: Ints) -> tuple[Ints, Ints]:
    """The samples on either side of each tick; one where it stands on the tick."""
    times = ticks.times(numbers)
    after = stream.first_at_each(times)
    return after - (stream.times(after) != times), after + 1


def _before(stream: SampleTimes, ticks: SampleTimes, numbers: Ints) -> tuple[Ints, Ints]:
    """The newest sample at each tick."""
    first, _ = _around(stream, ticks, numbers)
    return first, first + 1


def _nearest(stream: SampleTimes, ticks: SampleTimes, numbers: Ints) -> tuple[Ints, Ints]:
    """The sample nearest to each tick, the earlier of two."""
    times = ticks.times(numbers)
    first, end = _around(stream, ticks, numbers)
    later = times - stream.times(first) > stream.times(end - 1) - times
    return first + later, first + later + 1


def _from(stream: SampleTimes, ticks: SampleTimes, numbers: Ints) -> tuple[Ints, Ints]:
    """The samples from each tick to the next."""
    borders = stream.first_at_each(ticks.times(np.append(numbers, numbers[-1] + 1)))
    return borders[:-1], borders[1:]


def samples_a_tick(stream: Fraction, ticks: Fraction) -> int:
    """How many samples a block holds."""
    ratio = stream / ticks
    if ratio.denominator != 1:
        raise FormatError(
            f'sample = "block" takes a whole number of samples a tick; {float(stream):g} Hz on a grid of {float(ticks):g} Hz are '
            f"{float(ratio):g}; resample it first"
        )
    return int(ratio)


def _block(stream: SampleTimes, ticks: SampleTimes, numbers: Ints) -> tuple[Ints, Ints]:
    """So many samples from each tick on."""
    first = stream.first_at_each(ticks.times(numbers))
    return first, first + samples_a_tick(stream.rate, ticks.rate)


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
    """The memory of one stream that is sampled at ticks."""

    def __init__(self, way: str, ticks: SampleTimes) -> None:
        self.way, self.ticks, self._need = way, ticks, SAMPLERS[way]
        self.ready = 0  # ticks before it are decided
        self._header: Header | None = None
        self._first = 0  # number of the first sample kept
        self._kept: Array = np.empty(0)

    @property
    def _end(self) -> int:
        return self._first + len(self._kept)

    def begin(self, tick: int) -> None:
        """Ask for no tick before this one."""
        self.ready = max(self.ready, tick)

    def push(self, chunk: Chunk) -> list[tuple[int, Array]]:
        """Take samples; give runs of ticks: the first one's number, and their values."""
        values: list[tuple[int, Array]] = []
        if self._header is not None and chunk.header is not self._header and chunk.header != self._header:
            # Another clock: what stands before its first sample has nothing more to come.
            values += self._decide(self.ticks.first_at(SampleTimes.of(chunk.header).time(chunk.first_index)))
            self._kept = self._kept[:0]
        self._header = chunk.header
        if SampleTimes.of(chunk.header) == self.ticks and self.way in _SINGLE:
            start, self.ready = max(self.ready, chunk.first_index), max(self.ready, chunk.end_index)
            self._first, self._kept = chunk.end_index, chunk.data[:0]
            return [*values, (start, chunk.data[start - chunk.first_index :])] if start < self.ready else values
        if not len(self._kept):
            self._first, self._kept = chunk.first_index, chunk.data
        else:
            if chunk.first_index > self._end:
                values += self._decide(self._decided(chunk.first_index))
            self._append(chunk)
        return values + self._decide(self._decided(self._end))

    def _append(self, chunk: Chunk) -> None:
        hole = chunk.first_index - self._end
        first = self._needed(self.ready)
        if first >= self._end:
            self._first, self._kept = chunk.first_index, chunk.data
            return
        parts = [self._kept, np.full((hole, *self._kept.shape[1:]), np.nan, self._kept.dtype), chunk.data]
        self._kept = np.concatenate(parts if hole else (parts[0], parts[2]))

    def close(self) -> list[tuple[int, Array]]:
        """Give what is left: nothing more comes."""
        if self._header is None:
            return []
        return self._decide(self.ticks.first_at(SampleTimes.of(self._header).time(self._end)))

    def _needed(self, tick: int) -> int:
        """Oldest sample that a tick rests on."""
        assert self._header is not None
        return int(self._need(SampleTimes.of(self._header), self.ticks, np.array([tick]))[0][0])

    def _decided(self, end: int) -> int:
        """The first tick that rests on samples from `end` on."""
        assert self._header is not None
        stream = SampleTimes.of(self._header)
        tick = self.ticks.first_at(stream.time(end)) + 1
        while tick > self.ready and self._need(stream, self.ticks, np.array([tick - 1]))[1][0] > end:
            tick -= 1
        return max(tick, self.ready)

    def _decide(self, stop: int) -> list[tuple[int, Array]]:
        """The values of ticks up to `stop`, where a sample that is there lies under them; forget what no later tick needs."""
        assert self._header is not None
        start, self.ready = self.ready, max(self.ready, stop)
        stream, values = SampleTimes.of(self._header), list[tuple[int, Array]]()
        # Only ticks near samples have any: behind a gap of hours there may be millions of others.
        start = max(start, self.ticks.first_at(stream.time(self._first - 1)) - 1)
        stop = min(stop, self.ticks.first_at(stream.time(self._end)) + 1)
        if start < stop and len(self._kept):
            values.append((start, self._values(np.arange(start, stop))))
        drop = min(max(self._needed(self.ready) - self._first, 0), len(self._kept))
        if drop:
            self._first, self._kept = self._first + drop, self._kept[drop:]
        return values

    def _values(self, numbers: Ints) -> Array:
        assert self._header is not None
        stream = SampleTimes.of(self._header)
        first, end = self._need(stream, self.ticks, numbers)
        if self.way in ("hold", "nearest"):
            return self._rows(first)
        if self.way == "linear":
            before, after = self._rows(first), self._rows(end - 1)
            early, late = stream.times(first), stream.times(end - 1)
            share = ((self.ticks.times(numbers) - early) / np.maximum(late - early, 1)).astype(np.float64)
            share = share.reshape(-1, *[1] * (before.ndim - 1))
            line = before * (1 - share) + after * share
            return np.where(share == 0, before, line).astype(before.dtype)
        shape = self._kept.shape[1:]
        if self.way == "block":
            each = samples_a_tick(stream.rate, self.ticks.rate)
            rows = self._rows((first[:, None] + np.arange(each)).ravel())
            return rows.reshape(len(numbers), each * math.prod(shape))
        under = [
            self._kept[max(a - self._first, 0) : max(b - self._first, 0)]
            for a, b in zip(first.tolist(), end.tolist(), strict=True)
        ]
        if self.way == "count":
            return np.array([len(_finite(rows)) for rows in under], self._kept.dtype)[:, None]
        return np.stack([_mean(rows, shape) for rows in under]).astype(self._kept.dtype)

    def _rows(self, indices: Ints) -> Array:
        """Samples by number; NaN for those that are not there."""
        rows = np.full((len(indices), *self._kept.shape[1:]), np.nan, self._kept.dtype)
        there = (indices >= self._first) & (indices < self._end)
        rows[there] = self._kept[(indices[there] - self._first).astype(np.int64)]
        return rows

    def snapshot(self) -> bytes:
        """All of the memory."""
        meta: dict[str, Any] = {"ready": self.ready, "header": self._header, "first": self._first}
        return pack(meta | {"origin": self.ticks.origin_ns}, {"kept": self._kept})

    def restore(self, snapshot: bytes) -> None:
        """Become what :meth:`snapshot` was taken of."""
        meta, arrays = unpack(snapshot)
        self.ticks = SampleTimes(meta["origin"], self.ticks.rate)
        self.ready, self._header, self._first, self._kept = meta["ready"], meta["header"], meta["first"], arrays["kept"]


def _finite(rows: Array) -> Array:
    """The samples that are there."""
    good: Array = rows[np.isfinite(rows).all(axis=tuple(range(1, rows.ndim)))]
    return good


def _mean(rows: Array, shape: tuple[int, ...]) -> Array:
    """The mean of the samples that are there; NaN of none."""
    finite = _finite(rows)
    return finite.mean(0, dtype=np.float64) if len(finite) else np.full(shape, np.nan)
