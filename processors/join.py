"""Several streams as one. In: raw Chunks of each, in its own order, interleaved anyhow. Out: Chunks of all of them, tick by tick.

A tick leaves once **every** input has it, or is declared void there: nothing depends on which input comes first, so that any interleaving
gives the same bytes. Only to stop waiting for a silent input, and to take it again, needs a choice: a :class:`Decision`, which whoever
knows the clock makes, and stores before the stage hears of it. An input that is not there at a tick is NaN; a tick at which an input
that is required, or every one, is not there is left out, as a gap is. (A count of nothing, and an irregular input's value that holds, is
there, but is no reason for a tick.)

An irregular input says by its samples' times, and by progress marks, what it has; marks let ticks leave sooner, and change none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kymo.processors.branch import Branch, BranchState, fraction_of
from kymo.processors.intake import EntryStage, runs_of, united
from kymo.processors.samplers import SampleTimes
from kymo.processors.spec import Spec, chain_digest, pack, pack_list, unpack, unpack_list
from kymo.streams.chunk import Chunk, Format, Header
from kymo.streams.errors import FormatError
from kymo.streams.schema import Name
from kymo.streams.topics import input_of

Mask = NDArray[np.bool_]
#: What the joined stream is called.
JOINED = "joined"
_TICKS = 4096  # that are put together at once
_NO_TIMES = np.empty(0, np.int64)


@dataclass(frozen=True)
class Join(Spec):
    """Puts several inputs onto one grid of ticks.

    Parameters
    ----------
    branches : tuple of Branch
        In the order of their channels; one alone is put onto the ticks by itself, as frames always are.
    rate : str
        Ticks per second, as a fraction: ``"4"``, ``"30000/1001"``.
    grid : str
        The stream of the branch whose sample 0 is tick 0.
    """

    branches: tuple[Branch, ...]
    rate: str
    grid: Name
    name: ClassVar[str] = "join"
    after_window: ClassVar[bool] = False

    def __post_init__(self) -> None:
        streams = [branch.stream for branch in self.branches]
        if len(set(streams)) != len(streams) or not streams:
            raise FormatError(f"join: inputs {', '.join(streams) or 'none'}, expected each another stream")
        if self.grid not in streams:
            raise FormatError(f"join: grid {self.grid!r}, expected one of {', '.join(streams)}")
        fraction_of("join", self.rate)
        if len(streams) > 1 and next(branch for branch in self.branches if branch.stream == self.grid).irregular:
            raise FormatError(f"join: grid {self.grid!r} is irregular, expected an input that is evenly sampled")
        if all(branch.counts_alone for branch in self.branches):
            raise FormatError("join: every input is counted alone, expected one at least that is sampled at the ticks")

    def build(self) -> JoinStage:
        return JoinStage(self)

    def takes(self, stream: str) -> Branch | None:
        """The branch whose input a stream of this name is."""
        return input_of(stream, self.branches)

    @property
    def ticks(self) -> Fraction:
        """Ticks per second."""
        return fraction_of("join", self.rate)

    @cached_property
    def widths(self) -> list[int]:
        """Channels of each branch."""
        return [len(branch.sampled(branch.output({}), self.ticks)[0]) for branch in self.branches]

    @property
    def channels(self) -> dict[str, tuple[str, ...]]:
        """By stream, which channels of the joined stream are its own."""
        names = iter(self.output({}).channels)
        return {
            branch.stream: tuple(islice(names, width)) for branch, width in zip(self.branches, self.widths, strict=True)
        }

    def output(self, inputs: Mapping[str, Format]) -> Format:
        """Format of the joined stream; it is known from the branches alone."""
        formats = [branch.output({}) for branch in self.branches]
        sampled = [branch.sampled(fmt, self.ticks) for branch, fmt in zip(self.branches, formats, strict=True)]
        if any(fmt.dtype in ("uint8", "jpeg") for fmt in formats):
            if len(formats) > 1:
                raise FormatError("join: frames cannot be put beside other inputs, expected them alone")
            return replace(formats[0], stream=JOINED, rate=self.ticks, step=Fraction(1), span=1)
        if len({shape[:-1] for _, shape in sampled}) > 1:
            shapes = ", ".join(f"{b.stream} {shape}" for b, (_, shape) in zip(self.branches, sampled, strict=True))
            raise FormatError(f"join: samples of different shapes cannot be put side by side: {shapes}")
        names = [channel for channels, _ in sampled for channel in channels]
        channels, units = list[str](), list[str]()
        for branch, fmt, (own, _) in zip(self.branches, formats, sampled, strict=True):
            channels += [name if names.count(name) == 1 else f"{branch.stream}.{name}" for name in own]
            known = fmt.units and branch.sample != "count"
            units += fmt.units * (len(own) // len(fmt.units)) if known else ("",) * len(own)
        dtype = "float64" if any(fmt.dtype == "float64" for fmt in formats) else "float32"
        shape = (*sampled[0][1][:-1], len(channels))
        return Format(JOINED, tuple(channels), tuple(units) if any(units) else (), self.ticks, dtype, shape)

    def memory_bytes(self, fmt: Format) -> int:
        """What its branches keep, but for what waits."""
        return sum(branch.chain.memory_bytes(branch.raw) for branch in self.branches)

    def waiting_bytes(self, seconds: float) -> dict[str, int]:
        """By stream, what is kept of it while it is so far ahead of another: its samples before the grid is known, else its ticks."""
        if len(self.branches) == 1:  # it waits for nothing
            return {}
        kept, joined = dict[str, int](), self.output({})
        for branch, width in zip(self.branches, self.widths, strict=True):
            fmt = branch.output({})
            tick = self.ticks * width * math.prod(joined.shape[:-1]) * np.dtype(joined.dtype).itemsize
            kept[branch.stream] = math.ceil(seconds * max(tick, fmt.rate * fmt.sample_bytes))
        return kept


@dataclass(frozen=True, slots=True)
class Decision:
    """An input is not waited for from a tick on; with `stop`, it counts again from there. A later word on the same start stands."""

    stream: str  # the branch's
    start: int
    stop: int | None = None
    origin_ns: int | None = None  # of the grid, where its own input never came: it begins at tick `start`
    behind: int = 0  # ticks that the join stays behind the furthest input, lest what soon comes back is late
    ends: bool = False  # it never counts again, as if it had ended


@dataclass(frozen=True, slots=True)
class Wait:
    """An input of a join that has not ended."""

    stream: str  # the branch's
    tick: int | None  # the first that it lacks; None where it is not waited for
    newest: int  # how far the furthest input is
    # of one that a decision says is not waited for: since which tick, where it may count again if it has come back, how
    # far the join stays behind meanwhile
    since: int | None = None
    back: int | None = None
    behind: int = 0
    origin_ns: int | None = None  # where nothing leaves before it comes: the grid's origin if it is not waited for


class JoinStage(EntryStage):
    """Stage of :class:`Join`."""

    def __init__(self, spec: Join) -> None:
        super().__init__()
        self.spec = spec
        self._by_stream = {branch.stream: BranchState(branch, spec.ticks) for branch in spec.branches}
        self._branches = list(self._by_stream.values())
        self._fed: dict[str, BranchState | None] = {}  # by a stream's name, the branch that it may feed
        self._widths = spec.widths
        #: In which order inputs are asked for the grid's origin.
        (self._grid,) = (state for state in self._branches if state.spec.stream == spec.grid)
        self._origins = sorted(self._branches, key=lambda state: (state.irregular, state.spec.stream != spec.grid))
        self._origin_ns: int | None = None
        self._tick = 0  # the next to leave
        self._header: Header | None = None
        self._session = ""

    def push(self, item: Chunk) -> list[Chunk]:
        """Take a chunk of any input; give the ticks that became whole."""
        branch_state = self._branch_of(item.stream)
        if branch_state is None or branch_state.stream not in ("", item.stream):
            self.counts["unmatched"] += 1
            return []
        if branch_state.over:
            self.counts["late"] += 1
            return []
        # Samples of an irregular stream have times; an end mark without any says that there is no stream.
        if not branch_state.stream and not (branch_state.irregular and item.times_ns is None):
            branch_state.stream, self._session = item.stream, item.session
        rows = branch_state.push(item)
        if not rows and not item.end:
            return []
        if counts := branch_state.stage.take_counts():
            self.counts.update(counts)
        self._add(branch_state, rows)
        if branch_state.drop(self._tick):
            self.counts["late"] += 1
        if item.end:
            branch_state.end()
        return self._advance()

    def _branch_of(self, stream: str) -> BranchState | None:
        if stream not in self._fed:
            branch = self.spec.takes(stream)
            self._fed[stream] = None if branch is None else self._by_stream[branch.stream]
        return self._fed[stream]

    def input_of(self, stream: str) -> str | None:
        """Of which branch a stream is the input."""
        branch_state = self._branch_of(stream)
        return None if branch_state is None else branch_state.spec.stream

    def _add(self, branch_state: BranchState, rows: list[Chunk]) -> None:
        if self._origin_ns is None:
            branch_state.keep(rows)
        else:
            self._sample(branch_state, rows)

    def _sample(self, branch_state: BranchState, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            branch_state.sample(chunk)
            for start, stop, _ in chunk.filled:  # the ticks that rest on an interpolated sample
                fmt = chunk.header.format
                # Those of another chunk may be of another clock. Between two that are counted there may be ticks that rest on none.
                first = max(int((start - fmt.span) // fmt.step) + 1, chunk.first_index)
                end = min(math.ceil(stop / fmt.step), chunk.end_index)
                each = 1 if branch_state.spec.sample == "count" else max(end - first, 1)
                for row in range(first, end, each):
                    ticks = branch_state.sampler.ticks_on(row, row + each)
                    self.filled = united([*self.filled, (*ticks, True)]) if ticks[0] < ticks[1] else self.filled

    def _look_for_origin(self) -> None:
        """Begin at the grid's first sample; where its input ended without any, at that of the next one that has some."""
        branch_state = next((state for state in self._origins if state.first or not state.ended), None)
        if branch_state is not None and (first := branch_state.first) is not None:
            self._begin(*self._start(first))

    def _start(self, first: Chunk) -> tuple[int, int]:
        """Origin and first tick of the grid that begins with a branch's first samples."""
        origin_ns = first.header.origin_ns if first.times_ns is None else first.start_ns
        return origin_ns, SampleTimes(origin_ns, self.spec.ticks).first_at(first.start_ns)

    def _begin(self, origin_ns: int, tick: int) -> None:
        ticks = SampleTimes(origin_ns, self.spec.ticks)
        self._origin_ns, self._tick = origin_ns, tick
        for branch_state in self._branches:
            branch_state.begun, branch_state.sampler.ticks = True, ticks
            branch_state.sampler.begin(self._tick)
            self._sample(branch_state, branch_state.rows)
            branch_state.rows.clear()
            if branch_state.ended:
                branch_state.end()

    def decide(self, decision: Decision) -> list[Chunk]:
        """Hear of a decision; give the ticks that became whole by it."""
        branch_state = self._by_stream[decision.stream]
        branch_state.leave_out(decision.start, decision.stop, decision.behind, decision.ends)
        if decision.stop is not None and any(first < decision.stop for first, _ in branch_state.values):
            self.counts["late"] += 1
        if self._origin_ns is None and decision.origin_ns is not None:
            self._begin(decision.origin_ns, decision.start)
        return self._advance()

    @property
    def over(self) -> bool:
        """Whether all inputs have ended."""
        return all(branch_state.over for branch_state in self._branches)

    def waits(self) -> list[Wait]:
        """The inputs that have not ended."""
        if self._origin_ns is None:
            return self._waits_for_origin()
        newest = max(branch_state.sampler.ready for branch_state in self._branches)
        waits = []
        for branch_state in self._branches:
            if branch_state.ended or branch_state.ends:
                continue
            since, back = branch_state.since, None
            if since is not None and branch_state.stream and branch_state.sampler.ready > since:
                # It may have nothing to say, but says so.
                first = next((first for first, _ in branch_state.values if first >= since), self._tick)
                back = max(first if not branch_state.irregular else since, self._tick)
            waits.append(Wait(branch_state.spec.stream, branch_state.lacks, newest, since, back, branch_state.behind))
        return waits

    def _waits_for_origin(self) -> list[Wait]:
        """Only the input that the grid's origin is to come from is waited for; the others are ahead by what lies between their samples."""
        waiting = [branch_state for branch_state in self._origins if not branch_state.ended and not branch_state.ends]
        first = next((first for state in self._origins if (first := state.first) is not None), None)
        origin_ns, tick, newest = None, 0, 0
        if first is not None:
            origin_ns, tick = self._start(first)
            until_ns = max(branch_state.until_ns for branch_state in self._branches if branch_state.rows)
            newest = SampleTimes(origin_ns, self.spec.ticks).first_at(until_ns)
        return [
            Wait(state.spec.stream, tick if state is waiting[0] else None, newest, origin_ns=origin_ns)
            for state in waiting
        ]

    def _advance(self) -> list[Chunk]:
        if self._origin_ns is None:
            self._look_for_origin()
        if self._origin_ns is None:
            return []
        stops = list[int]()
        for branch_state in self._branches:
            if (tick := branch_state.lacks) is not None:
                if tick <= self._tick:  # so nothing leaves
                    return []
                stops.append(tick)
        if any(branch_state.behind for branch_state in self._branches):
            newest = max(branch_state.sampler.ready for branch_state in self._branches)
            stops += [newest - state.behind for state in self._branches if state.behind and not state.over]
        stop = min(stops) if stops else max(branch_state.reaches for branch_state in self._branches)
        chunks = list[Chunk]()
        while self._tick < stop:
            first = min(
                (branch_state.values[0][0] for branch_state in self._branches if branch_state.values), default=stop
            )
            start = min(max(self._tick, first), stop)
            self._tick = min(start + _TICKS, stop)
            chunks += self._joined(start, self._tick)
        return chunks

    def _joined(self, start: int, stop: int) -> Iterator[Chunk]:
        """The ticks from `start` to `stop` that are whole enough, as chunks without gaps."""
        if start == stop:
            return
        if self._header is None:
            digest = chain_digest("", self.spec)
            self._header = Header(self._session, self._origin_ns or 0, self.spec.output({}), digest)
        header = self._header
        if not header.format.dtype.startswith("float"):
            yield from (Chunk(header, first, data) for first, data in self._grid.take_runs(start, stop))
            return
        values, at = np.full((stop - start, *header.format.shape), np.nan, header.format.dtype), 0
        parts = list[Any]()
        for branch_state, width in zip(self._branches, self._widths, strict=True):
            parts.append(values[..., at : at + width])
            branch_state.take(start, parts[-1])
            at += width
        if not np.isnan(values).any():
            yield Chunk(header, start, values)
            return
        there, some = np.ones(stop - start, bool), np.zeros(stop - start, bool)
        absent: list[tuple[str, Mask]] = []
        for branch_state, part in zip(self._branches, parts, strict=True):
            present = ~np.isnan(part.reshape(len(part), -1)).any(1)
            part[~present] = np.nan  # a block of which some is missing is missing
            if not branch_state.spec.counts_alone:
                some |= present
            if not present.all():
                absent.append((branch_state.spec.stream, ~present))
            if branch_state.spec.required:
                there &= present
        for stream, mask in absent:
            ranges = [(start + a, start + b, True) for a, b in runs_of(mask & there & some)]
            self.absent[stream] = united([*self.absent.get(stream, ()), *ranges])
            self.filled = united([*self.filled, *ranges])
        for a, b in runs_of(there & some):
            yield Chunk(header, start + a, values[a:b])

    def flush(self) -> list[Chunk]:
        """Nothing more comes of any input."""
        for branch_state in self._branches:
            if not branch_state.ended:
                self._add(branch_state, branch_state.release() + branch_state.stage.flush())
                branch_state.end()
        return self._advance()

    @property
    def needs_from(self) -> dict[str, int]:
        """By stream, what its branch needs; what was sampled already is in the snapshot alone."""
        return {
            branch_state.stream: min(branch_state.stage.needs_from.values(), default=0)
            for branch_state in self._branches
            if branch_state.stream
        }

    def snapshot(self) -> bytes:
        for branch_state in self._branches:
            self._sample(branch_state, branch_state.release())
        meta: dict[str, Any] = {"origin": self._origin_ns, "tick": self._tick, "session": self._session}
        meta |= {"filled": self.filled, "absent": self.absent}
        return pack_list([pack(meta), *(branch_state.snapshot() for branch_state in self._branches)])

    def restore(self, snapshot: bytes) -> None:
        packed, *branches = unpack_list(snapshot)
        meta, _ = unpack(packed)
        self._origin_ns, self._tick, self._session = meta["origin"], meta["tick"], meta["session"]
        self.filled = [(a, b, bool(c)) for a, b, c in meta["filled"]]
        self.absent = {stream: [(a, b, True) for a, b, _ in ranges] for stream, ranges in meta["absent"].items()}
        for branch_state, part in zip(self._branches, branches, strict=True):
            branch_state.restore(part)
            branch_state.begun = self._origin_ns is not None
