"""The chain's entry. In: raw Chunks as they came (repeated, late, with gaps, in other units). Out: clean Chunks in rising order.

Duplicates and late chunks are dropped and counted; short gaps are interpolated where the recipe says so; any other gap is a jump of the
index, which no window spans. Samples that are NaN or infinite in any channel count as missing.

Frames, and samples of an irregular stream, stay as they are: nothing is put between them. The latter keep their times; one whose time is
before that of a sample, or a progress mark, that came earlier is dropped and counted. So is a JPEG image of over 1 MiB.

A processor that publishes a derived stream and a model agent that reads it share a chain: the one runs what stands before the window, the
other the rest, which begins with :class:`Derived`. Which raw samples were interpolated travels with the chunks, so that windows come out
as from the whole chain.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, floor
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kymo.processors.spec import Spec, Stage, derived_header, only, pack, unpack
from kymo.streams.budget import IMAGE
from kymo.streams.chunk import Array, Chunk, Format, Header, Window
from kymo.streams.errors import FormatError
from kymo.streams.schema import Rules, Share, Whole
from kymo.streams.units import factor

_GAPS_KEPT = 64  # gaps remembered per session to tell a late chunk from a duplicate
_FILL = 8192  # samples of gap that are filled for windows of any kind
_NEVER = -(2**63)  # before all times


@dataclass(frozen=True)
class Intake(Spec):
    """Takes what a recipe's ``[[input]]`` asks for out of a stream, clean.

    Parameters
    ----------
    channels : tuple of str
        Channels wanted, in this order; empty for all as they come.
    units : tuple of str
        Units wanted, one a channel; empty for as they come. Known units are converted.
    dtype : str
        float32 or float64: what the chain computes in. uint8 or jpeg: frames, taken as they come.
    bridge : int
        Gaps of up to this many samples are interpolated and do not speak against a window.
    fill : int
        Gaps of up to this many samples are interpolated and count as missing.
    max_missing : float
        Share of a window's samples (0 to 1) that may be missing.
    """

    channels: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    dtype: Annotated[str, Rules(enum=("float32", "float64", "uint8", "jpeg"))] = "float32"
    bridge: Whole = 0
    fill: Whole = 0
    max_missing: Share = 0.0
    name: ClassVar[str] = "intake"
    after_window: ClassVar[bool] = False

    def build(self) -> Stage:
        return IntakeStage(self)

    def shared(self, fmt: Format) -> Intake:
        """Gaps are filled as for any window, if at all; which windows that is good for, they say themselves."""
        return replace(self, fill=max(self.fill, _FILL) if self.fill > self.bridge else 0, max_missing=0.0)

    @property
    def frames(self) -> bool:
        """Whether samples are images, which are taken as they come."""
        return self.dtype in ("uint8", "jpeg")

    def columns(self, fmt: Format) -> list[int]:
        """Where the wanted channels stand in `fmt`."""
        absent = [c for c in self.channels if c not in fmt.channels]
        if absent:
            raise FormatError(f"`{fmt.stream}` has no channel {', '.join(absent)}; it has {', '.join(fmt.channels)}")
        return [fmt.channels.index(c) for c in self.channels or fmt.channels]

    def output(self, inputs: Mapping[str, Format]) -> Format:
        """The wanted channels, in the wanted units and dtype."""
        fmt = only(inputs)
        if self.frames:
            if fmt.dtype != self.dtype:
                raise FormatError(
                    f"`{fmt.stream}`: samples are {fmt.dtype}{fmt.shape}, expected frames of {self.dtype}"
                )
        elif len(fmt.shape) != 1 or fmt.dtype in ("jpeg", "uint8"):
            raise FormatError(f"`{fmt.stream}`: samples are {fmt.dtype}{fmt.shape}, expected one number a channel")
        at = self.columns(fmt)
        if self.frames and self.units:
            raise FormatError(
                f"input: units of `{fmt.stream}`, whose samples are frames of {self.dtype}, expected none"
            )
        if fmt.dtype == "jpeg" and at != list(range(len(fmt.channels))):
            raise FormatError(
                f"`{fmt.stream}`: images have all of {', '.join(fmt.channels)}, expected them in this order"
            )
        if (self.frames or not fmt.rate) and (self.bridge or self.fill):
            why = "samples are frames" if self.frames else "is irregular"
            raise FormatError(f"`{fmt.stream}` {why}: nothing can be put into a gap, expected no bridge and no fill")
        if len(self.units) not in (0, len(at)):
            raise FormatError(
                f"input: {len(self.units)} units for the {len(at)} channels of `{fmt.stream}`, expected one each or none"
            )
        units = self.units or tuple(fmt.units[i] for i in at if fmt.units)
        if self.units and fmt.units:
            for i, unit in zip(at, self.units, strict=True):
                factor(fmt.units[i], unit)
        shape = (*fmt.shape[:-1], len(at)) if fmt.shape else ()
        return replace(fmt, channels=tuple(fmt.channels[i] for i in at), units=units, dtype=self.dtype, shape=shape)


def runs_of(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Where it is true: from, to."""
    count = np.count_nonzero(mask)  # mostly all or none, which is told quickly
    if count in (0, len(mask)):
        return [(0, len(mask))] if count else []
    edges = np.flatnonzero(np.diff(np.concatenate((np.zeros(1, bool), mask, np.zeros(1, bool))).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


Ranges = list[tuple[int, int, bool]]  # from, to, bridged


def united(ranges: Ranges) -> Ranges:
    """Ranges in their order, those that overlap, or touch and are alike, as one."""
    out: Ranges = []
    for start, stop, bridged in sorted(ranges):
        if out and (start < out[-1][1] or (start == out[-1][1] and bridged == out[-1][2])):
            out[-1] = out[-1][0], max(out[-1][1], stop), bridged
        else:
            out.append((start, stop, bridged))
    return out


class EntryStage(Stage):
    """First stage of a chain: knows which samples that go through are interpolated.

    Attributes
    ----------
    filled : list of (start, end, bridged)
        Ranges of raw samples that a window may still hold.
    absent : dict of list of (start, end, True)
        Of several inputs, by stream, the ranges among them at which one was not there.
    """

    def __init__(self, max_missing: float = 0.0) -> None:
        super().__init__()
        self._max_missing = max_missing
        self.filled: Ranges = []
        self.absent: dict[str, Ranges] = {}
        self.seen = 0  # index one past the newest sample taken

    def go_on_from(self, seen: int) -> None:
        """Begin in mid-session: what lies before sample `seen` has come already."""
        self.seen = seen

    def decide(self, decision: Any) -> list[Chunk]:
        """Hear of a :class:`~kymo.processors.join.Decision`; only an entry of several inputs does."""
        raise TypeError(f"{type(self).__name__} takes one input, and waits for none")

    def admits(self, window: Window, covered: int) -> bool:
        """Say of a window what share of it was interpolated, and which inputs were not there; whether it is to be judged.

        Only the first `covered` of its samples count, on which its rows rest: what lies behind the last row may not have come
        yet when the window is whole, and must not decide.
        """
        start, stop, length = window.start_index, window.start_index + covered, window.end_index - window.start_index
        lengths = [(max(0, min(b, stop) - max(a, start)), bridged) for a, b, bridged in self.filled]
        absent = (stream for stream, ranges in self.absent.items() if any(a < stop and start < b for a, b, _ in ranges))
        window.absent = tuple(sorted(absent))
        window.missing = sum(n for n, _ in lengths) / length
        return sum(n for n, bridged in lengths if not bridged) / length <= self._max_missing

    def forget(self, before: int) -> None:
        """Forget interpolated ranges that end before sample `before`."""
        self.filled = [r for r in self.filled if r[1] > before]
        if self.absent:
            self.absent = {stream: [r for r in ranges if r[1] > before] for stream, ranges in self.absent.items()}

    def input_needed(self, index: int) -> int:
        """Oldest input index needed to make input `index` again."""
        return index


class IntakeStage(EntryStage):
    """Stage of :class:`Intake`."""

    def __init__(self, spec: Intake) -> None:
        super().__init__(spec.max_missing)
        self.spec, self._frames = spec, spec.frames
        self._dtype = np.dtype(object if spec.dtype == "jpeg" else spec.dtype)
        self._in: Header | None = None
        self._out: Header | None = None
        self._valid = -1  # index of the newest sample that was a number
        self._last: Array | None = None  # that sample, as it went out
        self._gaps: deque[tuple[int, int]] = deque(maxlen=_GAPS_KEPT)
        self._newest_ns = _NEVER  # of an irregular stream: no sample behind is from before

    def _bind(self, header: Header) -> None:
        fmt, derived = header.format, derived_header(header, self.spec)
        at = self.spec.columns(fmt)
        self._columns = None if at == list(range(len(fmt.channels))) else at
        self._scale = None
        if self.spec.units and fmt.units:
            scale = np.array([factor(fmt.units[i], unit) for i, unit in zip(at, self.spec.units, strict=True)])
            self._scale = None if (scale == 1).all() else scale
        if self._out is not None and derived != self._out:
            self.counts["segments"] += 1
            self._last = None  # no interpolation across a re-anchored clock, or from one unit to another
        self._in, self._out = header, derived

    def push(self, item: Chunk) -> list[Chunk]:
        """Take a raw Chunk; give what of it is new and good."""
        data, first, times = item.data, item.first_index, item.times_ns
        if not len(data):
            return self._note_mark(item, [])
        if self._in is None:
            self.seen = max(first, self.seen)
        if first < self.seen:
            self._count_old(first, item.end_index)
            if item.end_index <= self.seen:
                # Before its header is looked at: what came late from before a re-anchored clock must change nothing.
                return self._note_mark(item, [])
            data, first = data[self.seen - first :], self.seen
            times = None if times is None else times[-len(data) :]
        if item.header is not self._in:
            if item.header != self._in:
                self._bind(item.header)
            self._in = item.header
        values = self._convert(data)
        if first > self.seen:
            self._gaps.append((self.seen, first))
        self.seen = first + len(data)
        if times is not None:
            return self._note_mark(item, self._timed(first, values, times))
        if (good := self._good(values)) is None:
            return self._run(first, values)
        return [c for a, b in runs_of(good) for c in self._run(first + a, values[a:b])]

    def _note_mark(self, item: Chunk, chunks: list[Chunk]) -> list[Chunk]:
        """Remember what time an irregular stream says it has reached."""
        if item.complete_ns is not None:
            self._newest_ns = max(item.complete_ns, self._newest_ns)
        return chunks

    def _timed(self, first: int, values: Array, times_ns: NDArray[np.int64]) -> list[Chunk]:
        """The runs of an irregular stream's samples that are numbers, and whose times do not go back."""
        assert self._out is not None
        newest = np.maximum(np.maximum.accumulate(times_ns), self._newest_ns)
        good = in_order = times_ns >= newest
        if not in_order.all():
            self.counts["time_went_back"] += int((~in_order).sum())
        if (whole := self._good(values)) is not None:
            good = in_order & whole
        self._newest_ns = int(newest[-1])
        return [Chunk(self._out, first + a, values[a:b], times_ns[a:b]) for a, b in runs_of(good)]

    def _convert(self, data: Array) -> Array:
        if self._columns is not None:
            data = data[..., self._columns]
        if self._scale is None and data.dtype == self._dtype:
            return data
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and so is missing
            if self._scale is not None:
                data = np.multiply(data, self._scale)
            return data.astype(self.spec.dtype, copy=False)

    def _count_old(self, first: int, end: int) -> None:
        late = any(a < min(end, self.seen) and first < b for a, b in self._gaps)
        self.counts["late" if late else "duplicates"] += 1

    def _good(self, values: Array) -> NDArray[np.bool_] | None:
        """Which samples are numbers, or images that are not too large; None for all."""
        if self._frames:
            if self.spec.dtype == "uint8" or max(map(len, values)) <= IMAGE:
                return None
            good, why = np.array([len(image) <= IMAGE for image in values]), "too_large"
        else:
            if np.isfinite(values).all():
                return None
            good, why = np.asarray(np.isfinite(values).all(axis=1)), "not_a_number"
        self.counts[why] += int(len(good) - good.sum())
        return good

    def _run(self, first: int, values: Array) -> list[Chunk]:
        """Consecutive numbers, with the gap before them filled if it may be."""
        assert self._out is not None
        out = []
        missing = first - self._valid - 1
        if missing and self._valid >= 0:
            self.counts["gaps"] += 1
            if missing <= max(self.spec.bridge, self.spec.fill) and self._last is not None:
                out.append(Chunk(self._out, self._valid + 1, self._between(values[0], missing)))
                self.filled.append((self._valid + 1, first, missing <= self.spec.bridge))
                self.counts["interpolated"] += missing
        out.append(Chunk(self._out, first, values))
        self._valid = first + len(values) - 1
        if self.spec.bridge or self.spec.fill:
            self._last = values[-1].copy()
        return out

    def _between(self, after: Array, count: int) -> Array:
        """Samples on the straight line between the last number and `after`: ``(count, channels)``."""
        assert self._last is not None
        share = (np.arange(1, count + 1) / (count + 1))[:, None]
        line: Array = (np.multiply(self._last, 1 - share) + np.multiply(after, share)).astype(self.spec.dtype)
        return line

    def input_needed(self, index: int) -> int:
        """Oldest raw sample needed to make sample `index` again: an interpolated one rests on the number before its gap."""
        # In a gap that is too long already the last number is of no use any more, and must not hold back a commit.
        if self._last is not None and self.seen - self._valid - 1 <= max(self.spec.bridge, self.spec.fill):
            index = min(index, self._valid)
        for start, end, _ in self.filled:
            if start <= index < end:
                return start - 1
        return index

    @property
    def needs_from(self) -> dict[str, int]:
        """The next sample, or the last number where a gap behind it may still be filled (see :meth:`input_needed`)."""
        return {} if self._in is None else {self._in.format.stream: self.input_needed(self.seen)}

    def snapshot(self) -> bytes:
        meta = {
            "header": self._in,
            "seen": self.seen,
            "valid": self._valid,
            "filled": self.filled,
            "gaps": list(self._gaps),
        }
        if self._newest_ns != _NEVER:
            meta["newest"] = self._newest_ns
        return pack(meta, {} if self._last is None else {"last": self._last})

    def restore(self, snapshot: bytes) -> None:
        meta, arrays = unpack(snapshot)
        if meta["header"] is not None:
            self._bind(meta["header"])
        self.seen, self._valid = meta["seen"], meta["valid"]
        self.filled = [tuple(r) for r in meta["filled"]]
        self._gaps = deque((tuple(g) for g in meta["gaps"]), maxlen=_GAPS_KEPT)
        self._last, self._newest_ns = arrays.get("last"), meta.get("newest", _NEVER)


def fill_lengths(rate: Fraction, bridge_ms: float, max_missing: float, window: int) -> tuple[int, int]:
    """Samples of gap that may be bridged, and filled, by a recipe's ``bridge_ms`` and ``max_missing``."""
    return int(bridge_ms * rate / 1000), int(max_missing * window)


@dataclass(frozen=True)
class Derived(Spec):
    """Takes the chunks of a derived stream.

    Parameters
    ----------
    chain : str
        Digest of the chain whose chunks they are.
    max_missing : float
        Share of a window's raw samples (0 to 1) that may be missing.
    fill : int
        Gaps of up to this many raw samples, if they are not bridged, may be filled: what rests on longer ones is left out.
    """

    chain: str = ""
    max_missing: Share = 0.0
    fill: Whole = 0
    name: ClassVar[str] = "derived"
    after_window: ClassVar[bool] = False

    def build(self) -> Stage:
        return DerivedStage(self)

    def output(self, inputs: Mapping[str, Format]) -> Format:
        """The input's format."""
        return only(inputs)


class DerivedStage(EntryStage):
    """Stage of :class:`Derived`."""

    def __init__(self, spec: Derived) -> None:
        super().__init__(spec.max_missing)
        self.spec = spec
        self._in: Header | None = None

    def push(self, item: Chunk) -> list[Chunk]:
        """Take a derived Chunk; give what of it is new."""
        data, first = item.data, item.first_index
        if not len(data):
            return []
        if first < self.seen:
            self.counts["duplicates"] += 1
            if item.end_index <= self.seen:
                return []
            data, first = data[self.seen - first :], self.seen
        self._in, self.seen = item.header, item.end_index
        if not item.filled:
            return [Chunk(item.header, first, data)]
        # A range that two chunks rest on comes with both, of several inputs longer with the second.
        self.filled = united([*self.filled, *(gap for gap in item.filled if not self._is_too_long(gap))])
        for start, end, stream in item.absent:
            self.absent[stream] = united([*self.absent.get(stream, ()), (start, end, True)])
        fmt, good = item.header.format, np.ones(len(data), bool)
        for start, end, _ in filter(self._is_too_long, item.filled):
            before, behind = floor((start - fmt.span) / fmt.step) + 1, ceil(end / fmt.step)
            good[max(0, before - first) : max(0, behind - first)] = False
        return [Chunk(item.header, first + a, data[a:b]) for a, b in runs_of(good)]

    def _is_too_long(self, gap: tuple[int, int, bool]) -> bool:
        """Whether a gap is filled that no window here may have."""
        start, end, bridged = gap
        return not bridged and end - start > self.spec.fill

    def forget(self, before: int) -> None:
        """Forget interpolated ranges that end before row `before`."""
        super().forget(int(before * self._in.format.step) if self._in else 0)

    @property
    def needs_from(self) -> dict[str, int]:
        """The next row."""
        return {} if self._in is None else {self._in.format.stream: self.seen}

    def snapshot(self) -> bytes:
        meta: dict[str, Any] = {"header": self._in, "seen": self.seen, "filled": self.filled}
        return pack(meta | {"absent": self.absent} if self.absent else meta)

    def restore(self, snapshot: bytes) -> None:
        meta, _ = unpack(snapshot)
        self._in, self.seen = meta["header"], meta["seen"]
        self.filled = [(a, b, bool(c)) for a, b, c in meta["filled"]]
        self.absent = {s: [(a, b, True) for a, b, _ in ranges] for s, ranges in meta.get("absent", {}).items()}
