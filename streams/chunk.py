"""Chunk, Format and sample times. In: integers and arrays. Out: the same, with times in ns since the Unix epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from kymo.streams.budget import IMAGE
from kymo.streams.words import NS

Array = NDArray[np.generic]
DTYPES = ("float32", "float64", "int16", "uint8", "jpeg")


@dataclass(frozen=True, slots=True)
class Format:
    """What one sample of a stream is, known before any sample is."""

    stream: str  # ``kind[.place]``, such as ``imu.left``
    channels: tuple[str, ...]  # names of the last axis
    units: tuple[str, ...]  # one a channel, or empty where unknown
    rate: Fraction  # samples per second; 0 for an irregular stream
    dtype: str  # one of :data:`DTYPES`
    # of one sample; the last axis is the channels: ``(channels,)`` for a signal, ``(bins, channels)`` for a spectrogram column
    shape: tuple[int, ...]
    step: Fraction = Fraction(1)  # raw input samples from one sample of this stream to the next (1 for raw streams)
    span: int = 1  # raw input samples that one sample of this stream covers (1 for raw streams)
    rows: int | None = None  # behind a window: how many samples it holds

    @property
    def array_dtype(self) -> np.dtype[np.generic]:
        """Of an array of its samples: images are objects."""
        return np.dtype(object if self.dtype == "jpeg" else self.dtype)

    @property
    def sample_bytes(self) -> int:
        """What a sample takes; of an image, which is as large as it is, the most that one may."""
        return IMAGE if self.dtype == "jpeg" else math.prod(self.shape) * self.array_dtype.itemsize

    def beneath(self, first: int, end: int) -> tuple[int, int]:
        """Raw samples beneath some of its samples, those between the one before them and the first of them too: from, to."""
        start = min(int(first * self.step), int((first - 1) * self.step) + self.span)
        return start, math.ceil((end - 1) * self.step) + self.span


@dataclass(frozen=True, slots=True)
class Header:
    """A Format of one session: whose it is, when sample 0 was taken, and by which chain it was made."""

    session: str  # one recording of one subject or device; the Kafka key
    # Unix time of sample 0, ns. A source that re-anchors its clock sends a new origin; no window spans the two
    origin_ns: int
    format: Format  # what one sample is
    chain: str = ""  # digest of the steps that made it; empty for raw samples

    def time_ns(self, index: int) -> int:
        """Unix time of sample `index` in ns, exact integer arithmetic (rounded down)."""
        return sample_time_ns(self.origin_ns, self.format.rate, index)

    def edge_ns(self, index: int, times_ns: NDArray[np.int64] | None, at: int) -> int:
        """Unix time of sample `index`; of an irregular stream the one `at` that place of its times, or its origin if there is none."""
        if times_ns is not None and len(times_ns):
            return int(times_ns[at])
        return self.time_ns(index) if self.format.rate else self.origin_ns


@dataclass(slots=True, eq=False)
class Chunk:
    """Consecutive samples of one stream of one session. Not to be changed once made."""

    header: Header  # one object for all chunks of the stream, so that comparing headers is comparing identities
    first_index: int  # number of the first sample, counted from 0 at the session's start
    data: Array  # ``(n, *format.shape)``; for jpeg an object array ``(n,)`` of bytes
    times_ns: NDArray[np.int64] | None = None  # ``(n,)``, irregular streams only
    end: bool = False  # whether the session's stream ends behind this chunk (which may be empty)
    # of a derived chunk: ranges of raw samples beneath it that were interpolated (start, end, bridged)
    filled: tuple[tuple[int, int, bool], ...] = ()
    # progress mark of an irregular stream: no sample behind this chunk is from before this Unix time, ns
    complete_ns: int | None = None
    # of a derived chunk of several inputs: ranges of ticks beneath it at which one was not there (start, end, its stream)
    absent: tuple[tuple[int, int, str], ...] = ()

    @property
    def session(self) -> str:
        return self.header.session

    @property
    def stream(self) -> str:
        return self.header.format.stream

    @property
    def count(self) -> int:
        return len(self.data)

    @property
    def nbytes(self) -> int:
        return bytes_of(self.data) + (0 if self.times_ns is None else self.times_ns.nbytes)

    @property
    def end_index(self) -> int:
        """Index one past the last sample."""
        return self.first_index + len(self.data)

    @property
    def start_ns(self) -> int:
        """Unix time of the first sample, ns; of an irregular stream's empty end mark, its origin."""
        return self.header.edge_ns(self.first_index, self.times_ns, 0)

    def parts(self, most: int) -> Iterator[Chunk]:
        """It in chunks of at most so many bytes (or of one sample), one behind the other; itself where it has no more."""
        if self.nbytes <= most:
            yield self
            return
        beside = 8  # a sample's time, or the length of its image
        cuts = [0]
        if self.data.dtype.hasobject:
            size = 0
            for number, frame in enumerate(self.data):
                if size and size + len(frame) + beside > most:
                    cuts.append(number)
                    size = 0
                size += len(frame) + beside
        else:
            cuts = list(range(0, self.count, max(1, most // (self.data[0].nbytes + beside))))
        for start, stop in pairwise([*cuts, self.count]):
            yield self.part(start, stop)

    def part(self, start: int, stop: int) -> Chunk:
        """Some of its samples, counted from its first."""
        first = self.first_index + start
        raw, raw_end = self.header.format.beneath(first, self.first_index + stop)
        filled = tuple(gap for gap in self.filled if gap[0] < raw_end and raw < gap[1])
        times, last = None if self.times_ns is None else self.times_ns[start:stop], stop == self.count
        mark = self.complete_ns if last else None
        absent = tuple(ticks for ticks in self.absent if ticks[0] < raw_end and raw < ticks[1])
        return Chunk(self.header, first, self.data[start:stop], times, self.end and last, filled, mark, absent)

    def __repr__(self) -> str:
        return f"Chunk({self.session}/{self.stream}[{self.first_index}:{self.end_index}]{' end' if self.end else ''})"


@dataclass(slots=True, eq=False)
class Window:
    """A fixed number of consecutive samples, columns or frames."""

    header: Header  # of the samples in `data` (its format has `rows` set)
    start_index: int  # half open, in samples of the raw input
    end_index: int
    start_ns: int  # Unix times of those two, ns
    end_ns: int
    # ``(rows, *shape)``, or what makes that, one behind the other: they are joined where :attr:`data` is asked for
    pieces: Array | list[Array]
    missing: float = 0.0  # share of the window's raw samples that were interpolated, 0 to 1
    # rows at its end that are zeros, since the session ended before it was whole; start and end tell of what is there
    padded: int = 0
    absent: tuple[str, ...] = ()  # of several inputs, those that were not there at some of its samples
    anew: int = -1  # its newest raw sample at which something begins, for stateful models; -1 where nothing does

    @property
    def data(self) -> Array:
        """``(rows, *shape)``, in the memory order that its pieces have.

        A spectrogram's columns may lie in memory channel by channel; keeping that order makes joining them a plain copy, and the
        network's channels-first input a view.
        """
        pieces = self.pieces
        if isinstance(pieces, list):
            order, rows, back = _memory_order(pieces[0].strides)
            pieces = self.pieces = np.concatenate([piece.transpose(order) for piece in pieces], rows).transpose(back)
        return pieces

    @property
    def shape(self) -> tuple[int, ...]:
        pieces = self.pieces
        return (sum(map(len, pieces)), *pieces[0].shape[1:]) if isinstance(pieces, list) else pieces.shape

    @property
    def nbytes(self) -> int:
        pieces = self.pieces
        return sum(map(bytes_of, pieces)) if isinstance(pieces, list) else bytes_of(pieces)

    def copy_to(self, out: Array) -> None:
        """Write :attr:`data` into an array of its shape, without joining it first."""
        at, pieces = 0, self.pieces
        for piece in pieces if isinstance(pieces, list) else (pieces,):
            out[at : at + len(piece)] = piece
            at += len(piece)

    @property
    def real(self) -> Array:
        return self.data[: len(self.data) - self.padded]

    @property
    def session(self) -> str:
        return self.header.session


def bytes_of(data: Array) -> int:
    """Bytes of samples; of images, what they hold."""
    return sum(map(len, data)) if data.dtype.hasobject else data.nbytes


@lru_cache(maxsize=256)
def _memory_order(strides: tuple[int, ...]) -> tuple[tuple[int, ...], int, tuple[int, ...]]:
    """Axes from the slowest to the fastest in memory, where axis 0 stands among them, and the way back."""
    order = sorted(range(len(strides)), key=lambda axis: -abs(strides[axis]))
    return tuple(order), order.index(0), tuple(order.index(axis) for axis in range(len(order)))


def sample_time_ns(origin_ns: int, rate: Fraction, index: int) -> int:
    """Unix time of sample `index`: ``origin_ns + index * 10**9 * den // num``.

    >>> sample_time_ns(0, Fraction(30), 1)
    33333333
    """
    return origin_ns + index * NS * rate.denominator // rate.numerator


def index_at(origin_ns: int, rate: Fraction, time_ns: int) -> int:
    """Number of the first sample taken at or after `time_ns` (the inverse of :func:`sample_time_ns`, rounded up).

    >>> index_at(0, Fraction(10), 250_000_000)
    3
    """
    return -((origin_ns - time_ns) * rate.numerator // (NS * rate.denominator))


def signal_format(
    stream: str, channels: tuple[str, ...], rate: Fraction | int, dtype: str = "float32", units: tuple[str, ...] = ()
) -> Format:
    """Format of a plain signal: a sample is one number a channel."""
    return Format(stream, tuple(channels), tuple(units), Fraction(rate), dtype, (len(channels),))
