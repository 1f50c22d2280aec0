"""Several streams as one. In: raw Chunks of each, in its own order, interleaved anyhow. Out: Chunks of all of them, tick by tick.

A tick leaves once **every** input has it, or is declared void there: nothing depends on which input comes first, so that any interleaving
gives the same bytes. Only to stop waiting for a silent input, and to take it again, needs a choice: a :class:`Decision`, which whoever
knows the clock makes, and stores before the stage hears of it. An input that is not there at a tick is NaN; a tick at which an input
that is required, or every one, is not there is left out, as a gap is. (A count of nothing, and an irregular input's value that holds, is
there, but is no reason for a tick.)

An irregular input says by its samples' times, and by progress marks, what it has; marks let ticks leave sooner, and change none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kymo.processors.branch import Branch, fraction_of
from kymo.processors.intake import EntryStage, runs_of
from kymo.processors.samplers import Sampler, SampleTimes
from kymo.processors.spec import Spec, chain_digest, pack, pack_list, unpack, unpack_list
from kymo.streams.chunk import Array, Chunk, Format, Header, Window
from kymo.streams.errors import FormatError
from kymo.streams.schema import Name

Mask = NDArray[np.bool_]
Ranges = list[tuple[int, int, bool]]  # from, to, bridged
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
        Two or more, in the order of their channels.
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
        if len(set(streams)) != len(streams) or len(streams) < 2:
            raise FormatError(f"join: inputs {', '.join(streams) or 'none'}, expected two or more, each another stream")
        if self.grid not in streams:
            raise FormatError(f"join: grid {self.grid!r}, expected one of {', '.join(streams)}")
        fraction_of("join", self.rate)
        if next(branch for branch in self.branches if branch.stream == self.grid).irregular:
            raise FormatError(f"join: grid {self.grid!r} is irregular, expected an input that is evenly sampled")
        if all(branch.counts_alone for branch in self.branches):
            raise FormatError("join: every input is counted alone, expected one at least that is sampled at the ticks")

    def build(self) -> JoinStage:
        return JoinStage(self)

    def takes(self, stream: str) -> Branch | None:
        """The branch whose input a stream of this name is: an exact name comes before a kind."""
        return next((b for b in self.branches if b.stream == stream), None) or next(
            (b for b in self.branches if b.takes(stream)), None
        )

    @property
    def ticks(self) -> Fraction:
        """Ticks per second."""
        return fraction_of("join", self.rate)

    @property
    def widths(self) -> list[int]:
        """Channels of each branch."""
        return [branch.sampled(branch.output({}), self.ticks)[1][-1] for branch in self.branches]

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
        """What its branches keep."""
        return sum(branch.chain.memory_bytes(branch.raw) for branch in self.branches)


@dataclass(frozen=True, slots=True)
class Decision:
    """An input is not waited for from a tick on; with `stop`, it counts again from there."""

    stream: str  # the branch's
    start: int
    stop: int | None = None
    origin_ns: int | None = None  # of the grid, where its own input never came


@dataclass(frozen=True, slots=True)
class Wait:
    """What a join waits for."""

    stream: str  # the branch's
    tick: int | None  # the first that it lacks; None where it is not waited for
    newest: int  # how far the furthest input is
    # of one that a decision says is not waited for: since which tick, and where it may count again if it has come back
    since: int = 0
    back: int | None = None


class _BranchState:
    """A branch in one session."""

    def __init__(self, spec: Branch, ticks: Fraction) -> None:
        self.spec, self.stage = spec, spec.chain.build()
        self.sampler = Sampler(spec.sample, SampleTimes(0, ticks), spec.reach_ns if spec.irregular else None)
        self.stream = ""  # the one that feeds it
        self._moved: tuple[Header, Header] | None = None  # the newest header, before and with the offset
        out = spec.output({})
        # Chunks of which no tick comes wait, and go through the steps as one; where these give a sample for a sample.
        self._may_wait = out.step == 1 and out.span == 1 and not spec.irregular
        self._waiting: list[Chunk] = []
        self._header: Header | None = None  # of the newest chunk, and where that ends
        self._end = 0
        self.rate, self.irregular = spec.raw.rate, spec.irregular
        self.rows: list[Chunk] = []  # before the grid is known
        self.values: deque[tuple[int, Array]] = deque()
        self.void: list[tuple[int, int | None]] = []  # from, to
        self.ended = False

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
            last = replace(last, first_index=first.first_index, data=data)
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

    def sample(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            self.values += [run for run in self.sampler.push(chunk) if len(run[1])]
            if chunk.complete_ns is not None:
                self.values += self.sampler.complete(chunk.complete_ns)

    def end(self) -> None:
        self.ended = True
        self.values += [run for run in self.sampler.close() if len(run[1])]

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
        for first, end in self.void:
            out[max(first - start, 0) : None if end is None else max(end - start, 0)] = np.nan

    def snapshot(self) -> bytes:
        meta = {
            "stream": self.stream,
            "void": self.void,
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


def _joined_ranges(ranges: Ranges) -> Ranges:
    """Ranges of ticks in their order, those that touch as one."""
    joined: Ranges = []
    for start, stop, bridged in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], stop), bridged
        else:
            joined.append((start, stop, bridged))
    return joined


class JoinStage(EntryStage):
    """Stage of :class:`Join`."""

    def __init__(self, spec: Join) -> None:
        super().__init__()
        self.spec = spec
        self._branches = [_BranchState(branch, spec.ticks) for branch in spec.branches]
        self._widths = spec.widths
        self._grid = next(branch_state for branch_state in self._branches if branch_state.spec.stream == spec.grid)
        self._origin_ns: int | None = None
        self._tick = 0  # the next to leave
        self._header: Header | None = None
        self._session = ""
        self._absent: dict[str, Ranges] = {}  # by branch, at which ticks it was not there

    def push(self, item: Chunk) -> list[Chunk]:
        """Take a chunk of any input; give the ticks that became whole."""
        branch = self.spec.takes(item.stream)
        branch_state = next((branch_state for branch_state in self._branches if branch_state.spec is branch), None)
        if branch_state is None or branch_state.stream not in ("", item.stream):
            self.counts["unmatched"] += 1
            return []
        if branch_state.ended:
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
        if self._origin_ns is None:
            branch_state.keep(rows)
            if branch_state is self._grid and rows:
                self._begin(rows[0].header.origin_ns, rows[0].header.time_ns(rows[0].first_index))
        else:
            self._sample(branch_state, rows)
        if item.end:
            branch_state.end()
        return self._advance()

    def _sample(self, branch_state: _BranchState, rows: list[Chunk]) -> None:
        branch_state.sample(rows)
        ticks = branch_state.sampler.ticks
        for chunk in rows if not branch_state.irregular else ():
            times = SampleTimes(chunk.header.origin_ns, branch_state.rate)
            for start, stop, _ in chunk.filled:  # the ticks that rest on an interpolated sample
                first, end = ticks.first_at(times.time(start - 1) + 1), ticks.first_at(times.time(stop))
                if first < end:
                    self.filled.append((first, end, True))
        if len(self.filled) > 1:
            self.filled = _joined_ranges(self.filled)

    def _begin(self, origin_ns: int, time_ns: int) -> None:
        ticks = SampleTimes(origin_ns, self.spec.ticks)
        self._origin_ns, self._tick = origin_ns, ticks.first_at(time_ns)
        self._header = Header(self._session, origin_ns, self.spec.output({}), chain_digest("", self.spec))
        for branch_state in self._branches:
            branch_state.sampler.ticks = ticks
            branch_state.sampler.begin(self._tick)
            self._sample(branch_state, branch_state.rows)
            branch_state.rows.clear()
            if branch_state.ended:
                branch_state.end()

    def decide(self, decision: Decision) -> list[Chunk]:
        """Hear of a decision; give the ticks that became whole by it."""
        branch_state = next(
            branch_state for branch_state in self._branches if branch_state.spec.stream == decision.stream
        )
        if decision.stop is not None:
            branch_state.void.pop()
        branch_state.void.append((decision.start, decision.stop))
        if self._origin_ns is None and decision.origin_ns is not None:
            self._begin(decision.origin_ns, decision.origin_ns)
        return self._advance()

    @property
    def over(self) -> bool:
        """Whether all inputs have ended."""
        return all(branch_state.ended for branch_state in self._branches)

    def waits(self) -> list[Wait]:
        """The inputs that are behind, and those that are back."""
        newest = max(branch_state.sampler.ready for branch_state in self._branches)
        waits = []
        for branch_state in self._branches:
            since = branch_state.void[-1][0] if branch_state.void and branch_state.void[-1][1] is None else None
            back = next((first for first, _ in branch_state.values if since is not None and first >= since), None)
            if branch_state.irregular and since is not None and branch_state.sampler.ready > since:
                back = since  # it may have nothing to say, but says so
            back = None if back is None else max(back, self._tick)
            waits.append(Wait(branch_state.spec.stream, branch_state.lacks, newest, since or 0, back))
        return waits

    def _advance(self) -> list[Chunk]:
        if self._origin_ns is None:
            return []
        waited = [tick for branch_state in self._branches if (tick := branch_state.lacks) is not None]
        stop = min(waited) if waited else max(branch_state.reaches for branch_state in self._branches)
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
        header = self._header
        assert header is not None
        values = np.full((stop - start, *header.format.shape), np.nan, header.format.dtype)
        there, some, at = np.ones(stop - start, bool), np.zeros(stop - start, bool), 0
        absent: list[tuple[str, Mask]] = []
        for branch_state, width in zip(self._branches, self._widths, strict=True):
            part = values[..., at : at + width]
            branch_state.take(start, part)
            present = ~np.isnan(part.reshape(len(part), -1)).all(1)
            if not branch_state.spec.counts_alone:
                some |= present
            if not present.all():
                absent.append((branch_state.spec.stream, ~present))
            if branch_state.spec.required:
                there &= present
            at += width
        for stream, mask in absent:
            ranges = [(start + a, start + b, True) for a, b in runs_of(mask & there & some)]
            self._absent[stream] = _joined_ranges([*self._absent.get(stream, ()), *ranges])
            self.filled = _joined_ranges([*self.filled, *ranges])
        for a, b in runs_of(there & some):
            yield Chunk(header, start + a, values[a:b])

    def admits(self, window: Window, covered: int) -> bool:
        """Say of a window which inputs were not there at some of its ticks, too."""
        start, stop = window.start_index, window.start_index + covered
        streams = (branch.stream for branch in self.spec.branches)
        window.absent = tuple(s for s in streams if any(a < stop and start < b for a, b, _ in self._absent.get(s, ())))
        return super().admits(window, covered)

    def forget(self, before: int) -> None:
        super().forget(before)
        self._absent = {stream: [r for r in ranges if r[1] > before] for stream, ranges in self._absent.items()}

    def flush(self) -> list[Chunk]:
        """Nothing more comes of any input."""
        regular = [branch_state for branch_state in self._branches if not branch_state.irregular]
        first = next((branch_state for branch_state in regular if branch_state.rows), None)
        if first is not None:  # and nothing has come of the grid's
            rows = first.rows[0]
            self._begin(rows.header.origin_ns, rows.header.time_ns(rows.first_index))
        for branch_state in self._branches:
            if not branch_state.ended:
                self._sample(branch_state, branch_state.release() + branch_state.stage.flush())
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
        meta |= {"filled": self.filled, "absent": self._absent}
        return pack_list([pack(meta), *(branch_state.snapshot() for branch_state in self._branches)])

    def restore(self, snapshot: bytes) -> None:
        packed, *branches = unpack_list(snapshot)
        meta, _ = unpack(packed)
        self._origin_ns, self._tick, self._session = meta["origin"], meta["tick"], meta["session"]
        self.filled = [(a, b, bool(c)) for a, b, c in meta["filled"]]
        self._absent = {stream: [(a, b, True) for a, b, _ in ranges] for stream, ranges in meta["absent"].items()}
        if self._origin_ns is not None:
            self._header = Header(self._session, self._origin_ns, self.spec.output({}), chain_digest("", self.spec))
        for branch_state, part in zip(self._branches, branches, strict=True):
            branch_state.restore(part)
