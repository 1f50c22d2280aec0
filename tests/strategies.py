"""Recordings and ways to cut them, for Hypothesis. In: Formats. Out: Runs (what was measured), Chunks (how it came).

A recording is a list of Runs: consecutive samples under one Header. Between two runs there is a gap, or a clock that
the source re-anchored. All arrays are read-only, so that a step that writes to its input fails at once.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import strategies as st

from kymo.processors.steps.images import Encode
from kymo.streams.chunk import DTYPES, Array, Chunk, Format, Header, signal_format
from kymo.streams.codec import last_index

RATES = (10, 64, 500)


@dataclass(frozen=True)
class Run:
    """Consecutive samples under one header."""

    header: Header
    first: int
    data: Array
    times_ns: Array | None = None  # of an irregular stream

    @property
    def end(self) -> int:
        """Index one past the last sample."""
        return self.first + len(self.data)


def read_only(array: Array) -> Array:
    array.setflags(write=False)
    return array


def samples(fmt: Format, count: int, seed: int) -> Array:
    """Plausible samples ``(count, *shape)``: noise around an offset, over the range of the dtype."""
    rng = np.random.default_rng(seed)
    shape = (count, *fmt.shape)
    if fmt.dtype == "jpeg":
        pixels = Format("pixels", ("y",), (), Fraction(1), "uint8", (6, 5, 1))
        return read_only(Encode().apply(samples(pixels, count, seed), pixels))
    if fmt.dtype in ("int16", "uint8"):
        info = np.iinfo(fmt.dtype)
        return read_only(rng.integers(info.min, info.max, shape, fmt.dtype, endpoint=True))
    return read_only((rng.standard_normal(shape) + rng.uniform(-9, 9)).astype(fmt.dtype))


@st.composite
def recordings(draw: Any, fmt: Format, longest: int = 60, whole: bool = False) -> list[Run]:
    """One session: runs of samples with gaps and re-anchored clocks between; one run that starts at 0 where `whole`."""
    origin = draw(st.sampled_from([0, 1_700_000_000_123_456_789, 2**62 - 10**13 - 1]))
    header = Header("s", origin, fmt)
    if whole:
        return [Run(header, 0, samples(fmt, draw(st.integers(0, longest)), draw(st.integers(0, 999))))]
    at, runs = draw(st.sampled_from([0, 0, 1, 7, 10**6 + 3, 2**52 + 5])), []
    for _ in range(draw(st.integers(1, 3))):
        count = draw(st.integers(1, longest))
        runs.append(Run(header, at, samples(fmt, count, draw(st.integers(0, 999)))))
        at += count
        change = draw(st.sampled_from(["gap", "gap", "origin", "both"]))
        if change != "gap":
            header = replace(header, origin_ns=header.origin_ns + draw(st.integers(1, 10**6)))
        if change != "origin":
            at += draw(st.integers(1, 25))
    return runs


@st.composite
def cuttings(draw: Any, runs: list[Run], empties: bool = True) -> list[Chunk]:
    """The runs as chunks, cut anywhere, with empty chunks between."""
    chunks: list[Chunk] = []
    for run in runs:
        borders = sorted(draw(st.sets(st.integers(1, max(1, len(run.data) - 1)), max_size=6)))
        if draw(st.integers(0, 5)) == 0:
            borders = list(range(1, len(run.data)))
        for a, b in zip([0, *borders], [*borders, len(run.data)], strict=True):
            chunks.append(Chunk(run.header, run.first + a, run.data[a:b]))
            if empties and draw(st.integers(0, 7)) == 0:
                chunks.append(Chunk(run.header, draw(st.sampled_from([run.first + b, run.first, 0])), run.data[:0]))
    return [c for c in chunks if c.count or empties]


def one_chunk_a_run(runs: list[Run]) -> list[Chunk]:
    """The coarsest cutting."""
    return [Chunk(run.header, run.first, run.data, run.times_ns) for run in runs]


def fresh_headers(chunks: list[Chunk]) -> list[Chunk]:
    """The same chunks with headers that are equal, but other objects, as after a restart."""
    return [
        replace(c, header=Header(c.header.session, c.header.origin_ns, replace(c.header.format), c.header.chain))
        for c in chunks
    ]


def chunks_from(chunks: list[Chunk], index: int | None, trim: bool) -> list[Chunk]:
    """What is read again when a worker goes on from `index`: from the chunk that holds it, or from exactly there."""
    if index is None:
        return chunks
    out = [c for c in chunks if c.end_index > index or (not c.count and c.first_index >= index)]
    if trim and out and out[0].first_index < index:
        cut = index - out[0].first_index
        out[0] = replace(out[0], first_index=index, data=out[0].data[cut:])
    return out


def imu(channels: int = 2, dtype: str = "float32", rate: int = 100, units: tuple[str, ...] = ()) -> Format:
    return signal_format("imu", tuple(f"c{i}" for i in range(channels)), rate, dtype, units)


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=12)


@st.composite
def any_headers(draw: Any, dtypes: tuple[str, ...] = DTYPES) -> Header:
    dtype = draw(st.sampled_from(dtypes))
    channels = tuple(draw(st.lists(NAMES, min_size=1, max_size=4, unique=True)))
    units = (
        tuple(draw(st.lists(st.just("") | NAMES, min_size=len(channels), max_size=len(channels))))
        if draw(st.booleans())
        else ()
    )
    shape = () if dtype == "jpeg" else (*draw(st.lists(st.integers(1, 4), max_size=2)), len(channels))
    rate = draw(st.one_of(st.just(Fraction(0)), st.fractions(Fraction(1, 10**6), 10**6, max_denominator=10**9)))
    step = draw(st.fractions(Fraction(1, 1000), 10**5, max_denominator=1000))
    chain = draw(st.sampled_from(["", "0123456789abcdef"]))
    under = (step, draw(st.integers(1, 10**6))) if chain else ()
    fmt = Format(draw(NAMES), channels, units, rate, dtype, shape, *under)
    return Header(draw(NAMES), draw(st.integers(-(2**62) + 1, 2**62 - 1)), fmt, chain)


@st.composite
def any_chunks(draw: Any, header: Header | None = None, longest: int = 5) -> Chunk:
    header = header or draw(any_headers())
    limit = last_index(header)
    count, seed = draw(st.integers(0, min(longest, limit))), draw(st.integers(0, 99))
    if header.format.dtype == "jpeg":
        data = np.empty(count, object)
        data[:] = [bytes(random.Random(seed + i).randbytes(1 + seed % 40)) for i in range(count)]
    else:
        data = samples(header.format, count, seed)
        if header.format.dtype.startswith("float") and count:
            data = data.copy()
            data.flat[0] = draw(st.sampled_from([math.nan, math.inf, -0.0, 5e-324]))
    times, mark = None, None
    if header.format.rate == 0:
        mark = draw(st.none() | st.integers(1 - 2**62, 2**62 - 1))
        near = st.lists(st.integers(1 - 2**62, 2**62 - 1), min_size=count, max_size=count)
        times = np.array(sorted(draw(near)), np.int64)
    first = draw(st.integers(0, limit - count))
    return Chunk(header, first, data, times, draw(st.booleans()), (), mark)


def assert_same(came: Chunk, sent: Chunk) -> None:
    assert came.header == sent.header
    assert (came.first_index, came.end, came.count) == (sent.first_index, sent.end, sent.count)
    assert came.complete_ns == sent.complete_ns
    assert came.data.dtype == sent.data.dtype
    assert came.data.shape == sent.data.shape
    if sent.header.format.dtype == "jpeg":
        assert came.data.tolist() == sent.data.tolist()
    else:
        assert came.data.tobytes() == sent.data.tobytes()
    assert (came.times_ns is None) == (sent.times_ns is None)
    if came.times_ns is not None and sent.times_ns is not None:
        assert came.times_ns.dtype == np.int64
        assert came.times_ns.tolist() == sent.times_ns.tolist()
