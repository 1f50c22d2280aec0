"""One input of a join: as a recipe says it, and in a session. In: its chunks. Out: what each tick holds of it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Annotated, ClassVar

import numpy as np

from kymo.processors.chain import Chain
from kymo.processors.intake import Intake, runs_of
from kymo.processors.samplers import SAMPLERS, Sampler, SampleTimes, samples_a_tick
from kymo.processors.spec import Spec, Stage, pack, pack_list, unpack, unpack_list
from kymo.streams.chunk import Array, Chunk, Format, Header, signal_format
from kymo.streams.errors import FormatError
from kymo.streams.schema import Name, Rules, Whole
from kymo.streams.words import NS

_NO_TIMES = np.empty(0, np.int64)


@lru_cache(maxsize=1024)
def fraction_of(step: str, rate: str, *, may_be_0: bool = False) -> Fraction:
    """Read a rate, a fraction as text; asked for with every chunk."""
    try:
        number = Fraction(rate)
    except (ValueError, ZeroDivisionError, TypeError):
        number = Fraction(-1)
    if number < 0 or (number == 0 and not may_be_0):
        raise FormatError(f'{step}: rate {rate!r}, expected a number above 0 as text, such as "4" or "30000/1001"')
    return number


@dataclass(frozen=True)
class Branch(Spec):
    """One input of a join: a stream, the steps at its own rate, and how it is put onto the ticks.

    Parameters
    ----------
    stream : str
        ``kind`` for one at any place, or ``kind.place``.
    rate : str
        Its raw samples per second, as a fraction; 0 for an irregular stream.
    chain : Chain
        From its raw chunks to clean ones; begins with an Intake that names its channels.
    sample : str
        ``linear`` between the samples around a tick, ``hold`` the newest, ``nearest``; of those from a tick to the next ``mean``,
        ``block`` (all of them) or ``count``.
    required : bool
        Whether a tick without it is left out.
    offset_ns : int
        What its times are late by, ns: it is added to them.
    reach_ns : int
        Of an irregular stream: how long a value holds, how far the nearest may be, or how far apart two are for a line between them.
    """

    stream: Name
    rate: str
    chain: Chain
    sample: Annotated[str, Rules(enum=tuple(SAMPLERS))] = "linear"
    required: bool = False
    offset_ns: int = 0
    reach_ns: Whole = 0
    name: ClassVar[str] = "branch"
    after_window: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.irregular and self.sample == "block":
            raise FormatError(
                f'branch `{self.stream}`: sample = "block" takes evenly sampled streams, this one is irregular'
            )
        if self.irregular and not self.reach_ns and self.sample not in ("mean", "count"):
            raise FormatError(
                f"branch `{self.stream}`: reach_ns 0, expected how long a value of this irregular stream holds"
            )
        first = self.chain.specs[0]
        if isinstance(first, Intake) and first.dtype == "uint8":
            raise FormatError(f"branch `{self.stream}`: frames of uint8 are not put onto ticks, expected jpeg images")
        if not isinstance(first, Intake) or not first.channels:
            raise FormatError(
                f"branch `{self.stream}`: its chain does not begin with an intake that names its channels"
            )

    def build(self) -> Stage:
        return self.chain.build()

    @property
    def irregular(self) -> bool:
        """Whether its samples have times of their own."""
        return not fraction_of("branch", self.rate, may_be_0=True)

    @property
    def counts_alone(self) -> bool:
        """Whether it is there without a sample, and so is no reason for a tick."""
        return self.sample == "count" or (self.irregular and self.sample == "hold")

    @property
    def raw(self) -> Format:
        """Format of its raw stream, as far as it is known without it."""
        intake = self.chain.specs[0]
        assert isinstance(intake, Intake)
        rate = fraction_of("branch", self.rate, may_be_0=True)
        fmt = signal_format(self.stream, intake.channels, rate, intake.dtype, intake.units)
        return replace(fmt, shape=()) if intake.dtype == "jpeg" else fmt

    def output(self, inputs: Mapping[str, Format]) -> Format:
        """Format of its chunks, before they are sampled."""
        return self.chain.output(inputs or {self.stream: self.raw})

    def sampled(self, fmt: Format, ticks: Fraction) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Channels and shape of what a tick holds of it."""
        if fmt.dtype not in ("float32", "float64") and self.sample not in ("hold", "nearest"):
            raise FormatError(f'`{fmt.stream}`: sample = "{self.sample}" of frames, expected "hold" or "nearest"')
        if self.sample == "count":
            return ("count",), (1,)
        if self.sample != "block":
            return fmt.channels, fmt.shape
        if len(fmt.shape) != 1:
            raise FormatError(f'`{fmt.stream}`: sample = "block" takes one number a channel, not {fmt.shape}')
        numbers = range(samples_a_tick(fmt.rate, ticks))
        channels = tuple(f"{channel}.{number}" for number in numbers for channel in fmt.channels)
        return channels, (len(channels),)


class BranchState:
    """A branch in one session."""

    def __init__(self, spec: Branch, ticks: Fraction) -> None:
        self.spec, self.stage = spec, spec.chain.build()
        self.stream = ""  # the one that feeds it
        self._moved: tuple[Header, Header] | None = None  # the newest header, before and with the offset
        out = spec.output({})
        reach_ns = spec.reach_ns if spec.irregular else None
        if not spec.irregular and out.dtype in ("uint8", "jpeg"):
            reach_ns = math.ceil(NS / out.rate / (2 if spec.sample == "nearest" else 1))
        self.sampler = Sampler(spec.sample, SampleTimes(0, ticks), reach_ns)
        # Chunks of which no tick comes wait, and go through the steps as one; where these give a sample for a sample.
        self._may_wait = out.step == 1 and out.span == 1 and not spec.irregular
        self._waiting: list[Chunk] = []
        self._header: Header | None = None  # of the newest chunk, and where that ends
        self._end = 0
        self.irregular = spec.irregular
        self.rows: list[Chunk] = []  # before the grid is known
        self.values: deque[tuple[int, Array]] = deque()
        self.void: list[tuple[int, int | None]] = []  # from, to
        self.behind = 0  # of the open one: ticks that the join stays behind the furthest input
        self.begun = self.ends = self.ended = False

    @property
    def reaches(self) -> int:
        """One past the last tick of which it says something."""
        return max(self.sampler.ready, self.values[-1][0] + len(self.values[-1][1]) if self.values else 0)

    @property
    def lacks(self) -> int | None:
        """The first tick that it has not and that is not void; None where it is not waited for."""
        tick = self.sampler.ready
        for start, stop in self.void:
            if start <= tick:
                if stop is None:
                    return None
                tick = max(tick, stop)
        return None if self.ended else tick

    @property
    def since(self) -> int | None:
        """From which tick on it is not waited for, as far as is known."""
        return self.void[-1][0] if self.void and self.void[-1][1] is None else None

    @property
    def over(self) -> bool:
        """Whether nothing of it counts any more."""
        return self.ended or (self.ends and self.begun and self.lacks is None)

    @property
    def first(self) -> Chunk | None:
        """What came first, before the grid is known."""
        return next((row for row in self.rows if row.count), None)

    @property
    def until_ns(self) -> int:
        """Where that ends."""
        last = self.rows[-1]
        if not self.irregular:
            return last.header.time_ns(last.end_index)
        return max(last.complete_ns or last.start_ns, *(last.times_ns if last.times_ns is not None else ())[-1:], 0)

    def leave_out(self, start: int, stop: int | None, behind: int, ends: bool) -> None:
        """Hear of a :class:`~kymo.processors.join.Decision`."""
        if self.void and self.void[-1] == (start, None):
            self.void.pop()
        self.void.append((start, stop))
        self.behind, self.ends = behind, ends

    def drop(self, before: int) -> bool:
        """Forget the values of ticks that have left; whether there were any."""
        dropped = False
        while self.values and self.values[0][0] < before:
            first, data = self.values.popleft()
            dropped = True
            if first + len(data) > before:
                self.values.appendleft((before, data[before - first :]))
        return dropped

    def push(self, chunk: Chunk) -> list[Chunk]:
        """Clean samples, at the branch's own rate."""
        follows = self._may_wait and chunk.header is self._header and chunk.first_index == self._end
        self._header, self._end = chunk.header, chunk.end_index
        if not follows:
            return self.release() + self._through(chunk)
        self._waiting.append(chunk)
        return [] if chunk.end_index < self.sampler.awaits and not chunk.end else self.release()

    def release(self) -> list[Chunk]:
        """Clean samples of the chunks that wait."""
        if not self._waiting:
            return []
        first, last = self._waiting[0], self._waiting[-1]
        if first is not last:
            data = np.concatenate([chunk.data for chunk in self._waiting])
            last = Chunk(last.header, first.first_index, data, None, last.end)
        self._waiting.clear()
        return self._through(last)

    def _through(self, chunk: Chunk) -> list[Chunk]:
        chunk = self._with_offset(chunk) if self.spec.offset_ns else chunk
        rows: list[Chunk] = self.stage.push(chunk)
        if chunk.complete_ns is not None and self.irregular:  # its steps keep nothing back
            rows.append(Chunk(chunk.header, chunk.end_index, chunk.data[:0], _NO_TIMES, complete_ns=chunk.complete_ns))
        return rows + self.stage.flush() if chunk.end else rows

    def keep(self, chunks: list[Chunk]) -> None:
        """Keep what comes before the grid is known; of progress marks in a row the newest."""
        for chunk in chunks:
            marks = [chunk, self.rows.pop()] if self.rows and not chunk.count and not self.rows[-1].count else [chunk]
            self.rows.append(max(marks, key=lambda mark: mark.complete_ns or 0))

    def _with_offset(self, chunk: Chunk) -> Chunk:
        if self._moved is None or self._moved[0] is not chunk.header:
            self._moved = chunk.header, replace(chunk.header, origin_ns=chunk.header.origin_ns + self.spec.offset_ns)
        times_ns = None if chunk.times_ns is None else chunk.times_ns + self.spec.offset_ns
        complete_ns = None if chunk.complete_ns is None else chunk.complete_ns + self.spec.offset_ns
        return replace(chunk, header=self._moved[1], times_ns=times_ns, complete_ns=complete_ns)

    def sample(self, chunk: Chunk) -> None:
        self.values += [run for run in self.sampler.push(chunk) if len(run[1])]
        if chunk.complete_ns is not None:
            self.values += self.sampler.complete(chunk.complete_ns)

    def end(self) -> None:
        self.ended = True
        self.values += [run for run in self.sampler.close() if len(run[1])]

    def take_runs(self, start: int, stop: int) -> Iterator[tuple[int, Array]]:
        """The values of ticks from `start` to `stop`, of those that have one and are not void; forget them."""
        while self.values and self.values[0][0] < stop:
            first, data = self.values.popleft()
            if first + len(data) > stop:
                self.values.appendleft((stop, data[stop - first :]))
            counts = np.arange(first, min(first + len(data), stop)) >= start
            self._leave_void(first, stop, counts, False)
            yield from ((first + a, data[a:b]) for a, b in runs_of(counts))

    def take(self, start: int, out: Array) -> None:
        """Write the values of ticks from `start` on into `out`, which is NaN; forget them."""
        stop = start + len(out)
        if self.spec.sample == "count":  # nothing came where nothing is kept
            until = stop if self.ended and self.stream and self.irregular else self.sampler.ready
            out[: max(until - start, 0)] = 0
        while self.values and self.values[0][0] < stop:
            first, data = self.values.popleft()
            a, b = max(first, start), min(first + len(data), stop)
            if a < b:
                out[a - start : b - start] = data[a - first : b - first]
            if first + len(data) > stop:
                self.values.appendleft((stop, data[stop - first :]))
                break
        self._leave_void(start, stop, out, np.nan)

    def _leave_void(self, start: int, stop: int, out: Array, nothing: float) -> None:
        """Write `nothing` where ticks from `start` on are void; forget outages that lie behind tick `stop` and all that comes."""
        for first, end in self.void:
            out[max(first - start, 0) : None if end is None else max(end - start, 0)] = nothing
        left = min(stop, self.sampler.ready)
        self.void = [(first, end) for first, end in self.void if end is None or end > left]

    def snapshot(self) -> bytes:
        meta = {
            "stream": self.stream,
            "void": self.void,
            "behind": self.behind,
            "ends": self.ends,
            "ended": self.ended,
            "runs": [first for first, _ in self.values],
        }
        arrays = {f"v{i}": data for i, (_, data) in enumerate(self.values)}
        waiting = [
            pack(
                {"header": c.header, "first": c.first_index, "filled": c.filled, "complete": c.complete_ns},
                {"rows": c.data} if c.times_ns is None else {"rows": c.data, "times": c.times_ns},
            )
            for c in self.rows
        ]
        return pack_list([pack(meta, arrays), self.stage.snapshot(), self.sampler.snapshot(), *waiting])

    def restore(self, snapshot: bytes) -> None:
        packed, stage, sampler, *waiting = unpack_list(snapshot)
        meta, arrays = unpack(packed)
        self.stream, self.ended, self.void = meta["stream"], meta["ended"], [(a, b) for a, b in meta["void"]]
        self.behind, self.ends = meta["behind"], meta["ends"]
        self.values = deque((first, arrays[f"v{i}"]) for i, first in enumerate(meta["runs"]))
        self.rows = [
            Chunk(
                m["header"],
                m["first"],
                a["rows"],
                a["times"].astype(np.int64) if "times" in a else None,
                filled=tuple((a, b, bool(c)) for a, b, c in m["filled"]),
                complete_ns=m["complete"],
            )
            for m, a in map(unpack, waiting)
        ]
        self.stage.restore(stage)
        self.sampler.restore(sampler)
