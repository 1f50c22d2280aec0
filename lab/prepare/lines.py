"""Streams as lines, and what an alignment of two says. In: a stream's samples. Out: even lines, NaN where one is missing; times in s."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from kymo.lab.look.curves import are_axes
from kymo.streams.errors import SourceError
from kymo.streams.recording import StreamData
from kymo.streams.words import NS

Floats = NDArray[np.float64]
#: How far clocks may run apart, as a share; what is allowed for a drift that is not measured.
MOST_DRIFT, UNKNOWN_DRIFT = 2e-4, 1e-4
_MOST_LINES = 6


def t95(freedom: int) -> float:
    """Student's t that 95 of 100 stay below in size."""
    return float(stdtrit(freedom, 0.975))


def to_json(members: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object; NaN as null."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in members.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Lines:
    """A stream as one or several even lines, NaN where a sample is missing."""

    start_s: float  # time of the first sample
    rate_hz: float
    values: list[Floats]  # each ``(n,)``

    @property
    def end_s(self) -> float:
        return self.start_s + len(self.values[0]) / self.rate_hz

    @classmethod
    def of(cls, stream: StreamData, base_ns: int = 0) -> Lines:
        """Lengths of vectors, and what other channels there are; times count from `base_ns`."""
        fmt = stream.header.format
        if len(fmt.shape) != 1 or fmt.dtype in ("jpeg", "uint8"):
            raise SourceError(f"`{fmt.stream}` has no numbers by channel, so that nothing tells its clock")
        if stream.times_ns is not None:
            numbers, rate, start_ns = _even(stream.times_ns)
        else:
            rate, start_ns = float(fmt.rate), stream.start_ns
            numbers = np.concatenate([np.arange(first, first + len(part)) for first, part in stream.pieces])
            numbers -= stream.first_index
        table = np.full((int(numbers[-1]) + 1 if len(numbers) else 0, len(fmt.channels)), np.nan)
        table[numbers] = np.concatenate([part for _, part in stream.pieces]) if len(numbers) else table
        table[~np.isfinite(table)] = np.nan
        units, columns, last = fmt.units or ("",) * len(fmt.channels), list[list[int]](), -1
        for i, (name, unit) in enumerate(zip(fmt.channels, units, strict=True)):
            if last >= 0 and are_axes([(fmt.channels[j], units[j]) for j in columns[-1]], (name, unit)):
                columns[-1].append(i)
            else:
                columns.append([i])
            last = i
        lines = [line for group in columns for line in _lines(table[:, group])]
        return cls((start_ns - base_ns) / NS, rate, lines[:_MOST_LINES])


def _even(times_ns: NDArray[np.int64]) -> tuple[NDArray[np.int64], float, int]:
    """Irregular samples by the number of the nearest even one."""
    steps = np.diff(times_ns)
    step, start_ns = float(np.median(steps[steps > 0])) if steps.any() else NS, int(times_ns[0]) if len(times_ns) else 0
    return np.rint((times_ns - start_ns) / step).astype(np.int64), NS / step, start_ns


def _lines(group: Floats) -> Iterator[Floats]:
    """The length of a vector, which does not know how a sensor is turned, and its axes; what never changes is left out."""
    length = np.linalg.norm(group, axis=1)
    known = length[np.isfinite(length)]
    if group.shape[1] > 1 and len(known) and known.std() > 1e-3 * known.mean():  # a quaternion is always as long
        yield length
    for line in group.T:
        if np.isfinite(line).any() and np.nanmin(line) < np.nanmax(line):
            yield line


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """What a picture of a fit shows."""

    offsets_s: Floats
    fits: Floats  # how well each offset fits, the best as 1
    parts_s: Floats  # times of the second stream
    parts_offset_s: Floats
    first: tuple[Floats, Floats]  # times and values that were compared
    second: tuple[Floats, Floats]


@dataclass(frozen=True, slots=True)
class Alignment:
    """How much later a stream's times have to be."""

    method: str  # ``taps``, ``movement``; ``none`` where nothing is sure
    why: str  # what it rests on, or why nothing is sure
    offset_s: float = math.nan  # at `middle_s`
    offset_uncertainty_s: float = math.nan
    drift_ppm: float = 0.0  # how much the offset grows
    drift_uncertainty_ppm: float = math.nan  # NaN where nothing measures it
    middle_s: float = 0.0  # by the second stream's clock
    curves: Curves | None = field(default=None, repr=False, compare=False)

    @property
    def sure(self) -> bool:
        return self.method != "none"


def mean_around(line: Floats, width: int) -> Floats:
    """Moving mean over an odd width, shorter at the ends."""
    total, at = np.concatenate((np.zeros(1), np.cumsum(line))), np.arange(len(line))
    low, high = np.maximum(at - width // 2, 0), np.minimum(at + width // 2 + 1, len(line))
    return np.asarray((total[high] - total[low]) / (high - low), np.float64)


def filled(line: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """A line with its gaps bridged, and where there is none."""
    there = np.isfinite(line)
    at = np.flatnonzero(there)
    return np.interp(np.arange(len(line)), at, line[at]), there
