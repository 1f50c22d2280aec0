"""Cleaning of one foot's samples. In: a RawFoot. Out: its samples on an even grid of 500 Hz, NaN where one is missing,
and a Repair for whatever was changed, by row of the file.

Rules, in this order:

- *repeated*: a sample whose time is already there goes; rows out of order are sorted by time.
- *gap*: a missing time stays missing; nothing is filled in.
- *flat*: all six channels unchanged for 0.1 s: the sensor gave nothing, the samples are missing.
- *spike*: one or two samples that leave their neighbours and come back. The excursion of a sample is the smaller of its
  two flanks, where both point the same way. It is a spike if it is above four times the excursion that 99.5 % of the
  channel's usable samples stay below, and above what the five samples before and the five behind it span (the largest
  and the smallest of those ten left out, so that a second spike does not hide the first). The second condition spares a
  foot's contact with the ground, which is tall but, with 12 to 20 Hz, wide at 500 Hz. The rule holds while spikes are
  rarer than one sample in 200 of a channel. They are replaced by the straight line between their neighbours.
- *empty*: a row with an empty or NaN cell is missing.
- *unusable*: where ``usabledata`` says so. These rows still serve the clocks (:mod:`kymo.lab.prepare.clocks`); they are
  left out at the end, and no spike is looked for in them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kymo.lab.prepare.raw import CHANNELS, RawFoot
from kymo.streams.errors import SourceError
from kymo.streams.readers import grid

RATE_HZ = 500
_QUANTILE, _TIMES = 0.995, 4.0
_AROUND = 5
_FLAT = RATE_HZ // 10
_LONGEST_GAP_S = 600

Int = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Repair:
    """One thing that was changed or left out."""

    kind: str  # repeated, order, gap, flat, spike, empty or unusable
    first_row: int  # rows of the file; of a gap the rows around it
    last_row: int
    samples: int
    channel: str = ""  # of a spike
    was: float | None = None  # of a spike: its (first) value before and after
    became: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Without what is empty."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "")}

    def __str__(self) -> str:
        rows = f"row {self.first_row}" if self.first_row == self.last_row else f"rows {self.first_row}-{self.last_row}"
        if self.kind == "spike":
            return f"{rows}: spike in {self.channel}, {self.was:g} became {self.became:g}"
        return f"{rows}: {self.kind}, {self.samples} sample{'s' * (self.samples != 1)}"


@dataclass(slots=True, eq=False)
class CleanFoot:
    """One foot on an even grid."""

    raw: RawFoot  # where it came from
    values: Floats  # ``(m, 6)`` at 500 Hz of its own clock; NaN where missing
    usable: Bools
    start_ns: int  # time of sample 0 by its own clock; 0 without times
    repairs: list[Repair] = field(default_factory=list)


def clean(raw: RawFoot, path: str) -> CleanFoot:
    """Apply the rules of this module."""
    repairs: list[Repair] = []
    numbers, indexes, start_ns = _numbers(raw, path, repairs)
    length = int(indexes[-1]) + 1
    rows = np.zeros(length, np.int64)  # 0: missing
    rows[indexes] = raw.rows[numbers]
    values = np.full((length, len(CHANNELS)), np.nan)
    values[indexes] = raw.values[numbers]
    values[~np.isfinite(values)] = np.nan
    usable = np.zeros(length, bool)
    usable[indexes] = True if raw.usable is None else raw.usable[numbers]
    present = rows > 0
    for kind, mask in (("empty", present & np.isnan(values).any(axis=1)), ("flat", _flat(values))):
        values[mask] = np.nan
        repairs += [Repair(kind, int(rows[a]), int(rows[b]), b - a + 1) for a, b in runs_of(mask)]
    for channel in range(len(CHANNELS)):
        repairs += _spikes(values, usable, rows, channel)
    repairs += [Repair("unusable", int(rows[a]), int(rows[b]), b - a + 1) for a, b in runs_of(present & ~usable)]
    repairs.sort(key=lambda repair: (repair.first_row, repair.kind, repair.channel))
    return CleanFoot(raw, values, usable, start_ns, repairs)


def _numbers(raw: RawFoot, path: str, repairs: list[Repair]) -> tuple[Int, Int, int]:
    """Which samples are kept, the number of each on the grid, and the time of number 0."""
    if raw.times_ns is None:
        numbers = np.arange(len(raw.rows), dtype=np.int64)
        return numbers, numbers, 0
    fit = grid.fit(raw.times_ns, raw.values, Fraction(RATE_HZ), grid.RowNumbers(path, raw.rows))
    if int(fit.indexes[-1]) - len(fit.indexes) > _LONGEST_GAP_S * RATE_HZ:
        seconds = int(fit.indexes[-1]) / RATE_HZ
        raise SourceError(
            f"{len(raw.rows)} rows span {seconds:.6g} s: over {_LONGEST_GAP_S} s are missing; split the file", path
        )
    back = np.flatnonzero(np.diff(raw.times_ns) < 0) + 1
    repairs += [Repair("order", int(raw.rows[i]), int(raw.rows[i]), 1) for i in back.tolist()]
    lost = np.setdiff1d(np.arange(len(raw.rows)), fit.rows)
    repairs += [Repair("repeated", int(raw.rows[i]), int(raw.rows[i]), 1) for i in lost.tolist()]
    for i in np.flatnonzero(np.diff(fit.indexes) > 1).tolist():
        before, after = (int(raw.rows[fit.rows[j]]) for j in (i, i + 1))
        repairs.append(Repair("gap", before, after, int(fit.indexes[i + 1] - fit.indexes[i] - 1)))
    return fit.rows, fit.indexes, fit.origin_ns


def _flat(values: Floats) -> Bools:
    """Samples in runs of at least 0.1 s without any change."""
    same = np.concatenate(([False], (np.diff(values, axis=0) == 0).all(axis=1), [False]))
    out = np.zeros(len(values), bool)
    for first, last in runs_of(same):
        if last - first + 2 >= _FLAT:
            out[first - 1 : last + 1] = True
    return out


def runs_of(mask: Bools) -> list[tuple[int, int]]:
    """First and last place of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return list(zip(edges[0::2].tolist(), (edges[1::2] - 1).tolist(), strict=True))


def _excursions(x: Floats, width: int) -> Floats:
    """How far `width` samples from each on leave both neighbours in one direction; 0 where they do not, or at a gap.

    Examples
    --------
    >>> _excursions(np.array([0.0, 1.0, 9.0, 2.0, 2.0]), 1).tolist()
    [0.0, 0.0, 7.0, 0.0, 0.0]
    """
    out = np.zeros(len(x))
    if len(x) < width + 2:
        return out
    up = x[1 : len(x) - width] - x[: len(x) - width - 1]
    down = x[width : len(x) - 1] - x[width + 1 :]
    with np.errstate(invalid="ignore"):
        size = np.where(up * down > 0, np.minimum(np.abs(up), np.abs(down)), 0.0)
    out[1 : len(x) - width] = np.nan_to_num(size)
    return out


def _spikes(values: Floats, usable: Bools, rows: Int, channel: int) -> list[Repair]:
    """Replace the spikes of a channel; single samples first, then pairs."""
    x = values[:, channel]
    repairs: list[Repair] = []
    candidates = usable & np.isfinite(x)
    if not candidates.any():
        return repairs
    for width in (1, 2):
        size = _excursions(x, width)
        limit = _TIMES * float(np.quantile(size[candidates], _QUANTILE))
        # Largest first: what stood beside a spike is then seen as it is once that one is mended.
        for i in sorted(np.flatnonzero(candidates & (size > limit)).tolist(), key=lambda i: -size[i]):
            was, ends = float(x[i]), (x[i - 1], x[i + width])
            if _excursions(x[i - 1 : i + width + 1], width)[1] <= max(limit, _span(x, i, width)):
                continue
            x[i : i + width] = np.linspace(*ends, width + 2)[1:-1]
            last = int(rows[i + width - 1])
            repairs.append(Repair("spike", int(rows[i]), last, width, CHANNELS[channel], was, round(float(x[i]), 6)))
    return repairs


def _span(x: Floats, i: int, width: int) -> float:
    """What the samples around those from `i` on span, without the largest and the smallest of them."""
    around = np.concatenate((x[max(0, i - _AROUND) : i], x[i + width : i + width + _AROUND]))
    around = np.sort(around[np.isfinite(around)])[1:-1]
    return float(around[-1] - around[0]) if len(around) else 0.0
