"""Several streams as one: against a definition in whole numbers, tick by tick, whatever the cuts, the interleaving and the crashes."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from checks import check_json, outputs, run
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Run, one_chunk_a_run, samples

from kymo.processors.branch import Branch
from kymo.processors.chain import Chain
from kymo.processors.intake import Intake
from kymo.processors.join import Decision, Join
from kymo.processors.steps.maps import Scale
from kymo.processors.steps.resample import Resample
from kymo.processors.windows import Windows
from kymo.streams.chunk import Chunk, Header, sample_time_ns, signal_format
from kymo.streams.errors import FormatError

ORIGIN = 1_700_000_000_123_456_789
RATES = ("4", "10", "64", "30000/1001")
Cells = dict[int, list[np.ndarray[Any, Any]]]


def branch(
    stream: str, rate: str, sample: str = "linear", required: bool = False, channels: int = 1, bridge: int = 0
) -> Branch:
    names = tuple(f"{stream}{i}" for i in range(channels))
    return Branch(stream, rate, Chain((Intake(names, bridge=bridge),)), sample, required)


def sparse(
    stream: str, sample: str = "hold", reach_ms: float = 5000, required: bool = False, channels: int = 1
) -> Branch:
    """An irregular input."""
    chain = Chain((Intake(tuple(f"{stream}{i}" for i in range(channels))),))
    return Branch(stream, "0", chain, sample, required, reach_ns=round(reach_ms * 10**6))


def joined(pick: random.Random) -> tuple[Join, dict[str, list[Run]]]:
    """A join of two to five streams, up to two of them irregular, and a recording of each: gaps, clocks set anew, samples that are
    no numbers."""
    ticks, branches = pick.choice(["4", "10", "30"]), list[Branch]()
    irregular = pick.choice([0, 0, 1, 1, 2])
    for number in range(pick.randint(1 if irregular else 2, 3 if irregular else 4)):
        rate, sample = pick.choice(RATES), pick.choice(["linear", "hold", "nearest", "mean", "count", "block"])
        steps = pick.choice(
            [(), (), (Scale(-2.0, 3.0),), (Resample(up=1, down=2),), (Resample(up=3, down=2), Scale(0.5))]
        )
        ratio = math.prod([step.ratio for step in steps if isinstance(step, Resample)], start=Fraction(1))
        if sample == "block" and (Fraction(rate) * ratio / Fraction(ticks)).denominator != 1:
            rate, steps = ticks, ()
        made = branch(f"s{number}", rate, sample, pick.random() < 0.3, pick.randint(1, 2), pick.choice([0, 0, 3]))
        branches.append(replace(made, chain=Chain((*made.chain.specs, *steps))))
    grid = pick.choice(branches).stream
    ways = ["linear", "hold", "nearest", "mean", "count"]
    for number in range(irregular):
        way, reach = pick.choice(ways), pick.choice([40, 250, 5000])
        made = sparse(f"t{number}", way, reach, pick.random() < 0.3, pick.randint(1, 2))
        branches.append(replace(made, chain=Chain((*made.chain.specs, *pick.choice([(), (Scale(0.1),)])))))
    if all(is_no_reason(item) for item in branches):
        branches[0] = replace(branches[0], sample="hold")
    pick.shuffle(branches)
    spec = Join(tuple(branches), ticks, grid)
    return spec, {
        item.stream: (stamped if item.rate == "0" else recorded)(pick, item, Fraction(ticks)) for item in branches
    }


def is_no_reason(item: Branch) -> bool:
    return item.sample == "count" or (item.rate == "0" and item.sample == "hold")


def stamped(pick: random.Random, item: Branch, ticks: Fraction) -> list[Run]:
    """An irregular stream of one input: times that are equal, on ticks, far apart, or go back."""
    at, runs = pick.choice([0, 0, 3, 10**9]), list[Run]()
    header = Header("s", ORIGIN + pick.choice([0, 5]), item.raw)
    now = ORIGIN + pick.choice([0, 1, pick.randint(-(10**9), 10**10)])
    for _ in range(pick.randint(0 if pick.random() < 0.2 else 1, 4)):
        times = list[int]()
        for _ in range(pick.randint(1, 12)):
            tick = ORIGIN + int((Fraction(now - ORIGIN) * ticks / 10**9).__ceil__() * 10**9 // ticks)
            now = pick.choice([now, tick, tick - 1, now + pick.randint(1, 10**8), now + pick.randint(1, 2 * 10**9)])
            times.append(max([now, *times]))
        data = samples(item.raw, len(times), pick.randint(0, 999)).copy()
        if pick.random() < 0.3:
            data[pick.randrange(len(data)) :][: pick.randint(1, 5)] = np.nan
        runs.append(Run(header, at, data, np.array(times, np.int64)))
        at += len(data) + pick.choice([0, 0, 2])
        now += pick.choice([0, 10**9, 20 * 10**9, -(10**8)])
        if pick.random() < 0.2:
            header = replace(header, origin_ns=header.origin_ns + 7)
    return runs


def recorded(pick: random.Random, item: Branch, ticks: Fraction) -> list[Run]:
    """A stream of one input, of some seconds."""
    header = Header("s", ORIGIN + pick.choice([0, 0, pick.randint(-(10**9), 10**9)]), item.raw)
    at, runs, rate = pick.choice([0, 0, 3, 10**9]), list[Run](), float(Fraction(item.rate))
    header = replace(header, origin_ns=header.origin_ns - sample_time_ns(0, Fraction(item.rate), at))
    for _ in range(pick.randint(0 if pick.random() < 0.1 else 1, 4)):
        data = samples(item.raw, pick.randint(1, 1 + int(3 * rate)), pick.randint(0, 999)).copy()
        if pick.random() < 0.3:
            data[pick.randrange(len(data)) :][: pick.randint(1, 5)] = np.nan
        runs.append(Run(header, at, data))
        at += len(data)
        change = pick.choice(["gap", "hole", "clock", "both"])
        at += pick.randint(1, 4) if change == "gap" else pick.randint(1, int(20 * rate)) if change != "clock" else 0
        if change in ("clock", "both"):
            header = replace(
                header, origin_ns=header.origin_ns + pick.choice([1, -1, 7, 10**3]) * pick.randint(1, 10**6)
            )
    return runs


def cut(pick: random.Random, runs: list[Run]) -> list[Chunk]:
    """The runs as chunks of any size, some of them twice."""
    chunks = list[Chunk]()
    for item in runs:
        start = 0
        while start < len(item.data):
            stop = min(start + pick.choice([1, 2, 5, 40, 1000]), len(item.data))
            times = None if item.times_ns is None else item.times_ns[start:stop]
            chunks.append(Chunk(item.header, item.first + start, item.data[start:stop], times))
            if pick.random() < 0.1:
                chunks.append(pick.choice(chunks))
            start = stop
    return chunks


def marked(pick: random.Random, chunks: list[Chunk]) -> list[Chunk]:
    """The chunks of an irregular stream with progress marks, some of them in chunks with samples."""
    if not chunks or chunks[0].times_ns is None or pick.random() < 0.3:
        return chunks
    before = [-(2**62)]  # before each chunk, the newest time: an earlier one does not count
    for chunk in chunks:
        before.append(max(before[-1], *stamps(chunk)))
    out, soonest = list[Chunk](), before[-1] + 10**10
    for chunk, newest, reached in zip(chunks[::-1], before[-2::-1], before[:0:-1], strict=True):
        if pick.random() < 0.4:
            mark = pick.choice([soonest, reached, pick.randint(reached, soonest), reached - 10**9])
            with_samples = pick.random() < 0.3
            empty = replace(chunk, first_index=chunk.end_index, data=chunk.data[:0], times_ns=np.empty(0, np.int64))
            out += [] if with_samples else [replace(empty, complete_ns=mark)] * pick.choice([1, 1, 2])
            out.append(replace(chunk, complete_ns=mark if with_samples else None))
        else:
            out.append(chunk)
        soonest = min([soonest, *(time for time in stamps(chunk) if time >= newest)])
    return out[::-1]


def stamps(chunk: Chunk) -> list[int]:
    assert chunk.times_ns is not None
    times: list[int] = chunk.times_ns.tolist()
    return times


def interleaved(pick: random.Random, queues: Sequence[list[Chunk]]) -> list[Chunk]:
    """The chunks of several topics, each in its order."""
    waiting, out = [deque(q) for q in queues], []
    while live := [q for q in waiting if q]:
        queue = pick.choice(live)
        out += [queue.popleft() for _ in range(min(len(queue), pick.choice([1, 1, 3, 99])))]
    return out


def ended(chunks: list[Chunk], item: Branch) -> list[Chunk]:
    """The same with the stream's end mark."""
    last = chunks[-1] if chunks else Chunk(Header("s", ORIGIN, item.raw), 0, np.empty((0, *item.raw.shape), np.float32))
    times = np.empty(0, np.int64) if item.rate == "0" else None
    mark = replace(last, first_index=last.end_index, data=last.data[:0], times_ns=times, end=True, complete_ns=None)
    return [*chunks, mark]


@dataclass(frozen=True)
class Tick:
    """What leaves at one."""

    data: bytes
    absent: frozenset[str]  # the inputs that are not there
    missing: bool  # whether one is not, or rests on an interpolated sample


def cleaned(item: Branch, runs: list[Run]) -> tuple[list[Chunk], set[int]]:
    """An input as it is behind its steps, each on every whole run by itself, and which of these samples rest on interpolated ones."""
    intake, *steps = item.chain.specs
    chunks = list[Chunk]()
    for chunk in run(intake, one_chunk_a_run(runs)):
        if (
            chunks
            and item.rate != "0"
            and (chunks[-1].header, chunks[-1].end_index) == (chunk.header, chunk.first_index)
        ):
            chunks[-1] = replace(chunks[-1], data=np.concatenate((chunks[-1].data, chunk.data)))
        else:
            chunks.append(chunk)
    there = {one.first + int(i) for one in runs for i in np.flatnonzero(np.isfinite(one.data).all(1))}
    between = [i for chunk in chunks for i in range(chunk.first_index, chunk.end_index) if i not in there]
    for step in steps:  # no filter reaches into a gap: what it keeps for more comes at the end alone
        last = chunks[-1:]
        chunks = [out for chunk in chunks for out in run(step, [chunk], end=chunk in last)]
    fmt = item.output({})
    rows = [i for chunk in chunks for i in range(chunk.first_index, chunk.end_index)]
    beneath = {i: (i * fmt.step, i * fmt.step + fmt.span) for i in rows}
    rest = {i for i, (start, stop) in beneath.items() if any(start < k + 1 and k < stop for k in between)}
    return chunks, rest


def defined(spec: Join, runs: dict[str, list[Run]], decisions: Sequence[Decision] = ()) -> dict[int, Tick]:
    """By tick, what leaves, from the definition: exact times, one tick and one sample at a time."""
    rate, clean, rests = Fraction(spec.rate), dict[str, list[Chunk]](), dict[str, set[int]]()
    for item in spec.branches:
        clean[item.stream], rests[item.stream] = cleaned(item, runs[item.stream])
    first = next((d for d in decisions if d.origin_ns is not None), None)
    order = sorted(spec.branches, key=lambda b: (b.rate == "0", b.stream != spec.grid))
    grid = next((clean[b.stream][0] for b in order if clean[b.stream]), None)
    if first is not None and first.origin_ns is not None:
        origin, tick = first.origin_ns, first.start
    elif grid is not None:
        origin = grid.header.origin_ns if grid.times_ns is None else grid.start_ns
        tick = math.ceil(Fraction(grid.start_ns - origin) * rate / 10**9)
    else:
        return {}
    values, lasts, on_filled = {}, [tick], set[int]()
    for item in spec.branches:
        if item.rate != "0":
            values[item.stream], under, last = sampled(item, clean[item.stream], origin, rate, tick)
            on_filled |= {k for k, numbers in under.items() if not rests[item.stream].isdisjoint(numbers)}
            lasts.append(last)
            continue
        points = [(t, row) for c in clean[item.stream] for t, row in zip(stamps(c), c.data, strict=True)]
        ends = [math.floor(Fraction(t + item.reach_ns - origin) * rate / 10**9) + 2 for t, _ in points[-1:]]
        lasts += ends if not is_no_reason(item) else []
        values[item.stream] = Points(item, points, origin, rate)
    out = {}
    for k in range(tick, max(lasts)):
        rows = [None if is_void(decisions, b.stream, k) else values[b.stream].get(k) for b in spec.branches]
        there = [row is not None for row in rows]
        reasons = [not is_no_reason(b) for b in spec.branches]
        if any(t and r for t, r in zip(there, reasons, strict=True)) and all(
            t or not b.required for t, b in zip(there, spec.branches, strict=True)
        ):
            filled = [
                row if row is not None else np.full(b.sampled(b.output({}), rate)[1], np.nan, np.float32)
                for row, b in zip(rows, spec.branches, strict=True)
            ]
            absent = frozenset(b.stream for b, t in zip(spec.branches, there, strict=True) if not t)
            data = np.concatenate(filled).astype(np.float32).tobytes()
            out[k] = Tick(data, absent, bool(absent) or k in on_filled)
    return out


def windows_defined(ticks: dict[int, Tick], length: int, hop: int) -> list[tuple[int, bytes, float, tuple[str, ...]]]:
    """Where windows begin, what they hold, what share of their ticks is missing, and which inputs are absent in them."""
    out = list[tuple[int, bytes, float, tuple[str, ...]]]()
    for start in sorted(k for k in ticks if k % hop == 0):
        held = [ticks[k] for k in range(start, start + length) if k in ticks]
        if len(held) == length:
            absent = tuple(sorted(set[str]().union(*(tick.absent for tick in held))))
            out.append(
                (start, b"".join(tick.data for tick in held), sum(tick.missing for tick in held) / length, absent)
            )
    return out


@dataclass(frozen=True)
class Points:
    """What an irregular input says at each tick, by its definition."""

    item: Branch
    points: list[tuple[int, Any]]
    origin: int
    rate: Fraction

    def get(self, tick: int) -> Any:
        now, then = (sample_time_ns(self.origin, self.rate, k) for k in (tick, tick + 1))
        under = [row for t, row in self.points if now <= t < then]
        if self.item.sample == "count":
            return np.array([len(under)], np.float32)
        if self.item.sample == "mean":
            return np.stack(under).mean(0, dtype=np.float64).astype(np.float32) if under else None
        old = [point for point in self.points if point[0] <= now][-1:]
        new = [point for point in self.points if point[0] > now][:1]
        if self.item.sample == "hold":
            return next((row for t, row in old if now - t <= self.item.reach_ns), None)
        if self.item.sample == "nearest":
            near = [(abs(t - now), number, row) for number, (t, row) in enumerate(old + new)]
            age, _, row = min(near, key=lambda item: item[:2], default=(2**63, 0, None))
            return row if age <= self.item.reach_ns else None
        if old and old[0][0] == now:
            return old[0][1]
        if not old or not new or new[0][0] - old[0][0] > self.item.reach_ns:
            return None
        share = np.float64(now - old[0][0]) / (new[0][0] - old[0][0])
        return (old[0][1] * (1 - share) + new[0][1] * share).astype(np.float32)


def is_void(decisions: Sequence[Decision], stream: str, tick: int) -> bool:
    last = {d.start: d.stop for d in decisions if d.stream == stream}  # a later word on the same outage counts
    return any(start <= tick and (stop is None or tick < stop) for start, stop in last.items())


def segments(chunks: list[Chunk]) -> list[tuple[Header, dict[int, Any]]]:
    """The samples of each clock, by number."""
    out: list[tuple[Header, dict[int, Any]]] = []
    for chunk in chunks:
        if not out or out[-1][0] != chunk.header:
            out.append((chunk.header, {}))
        out[-1][1].update({chunk.first_index + i: row for i, row in enumerate(chunk.data)})
    return out


def sampled(
    item: Branch, chunks: list[Chunk], origin: int, rate: Fraction, first: int
) -> tuple[dict[int, Any], dict[int, range], int]:
    """A branch's value at each tick that it decides, the samples beneath it, and the first tick that it does not decide."""
    out, under = dict[int, Any](), dict[int, range]()
    tick, parts = first, segments(chunks)
    for number, (header, rows) in enumerate(parts):
        following = parts[number + 1] if number + 1 < len(parts) else None
        end_ns = following[0].time_ns(min(following[1])) if following else header.time_ns(max(rows) + 1)
        while True:
            times = sample_time_ns(origin, rate, tick), sample_time_ns(origin, rate, tick + 1)
            # What rests on samples that have come is decided, though a clock that is set back begins before.
            if times[0] >= end_ns and rests_to(item, header, *times) > max(rows):
                break
            value = at_tick(item, header, rows, *times)
            under[tick] = range(rests_from(item, header, *times), rests_to(item, header, *times) + 1)
            if value is not None:
                out[tick] = value
            tick += 1
    return out, under, tick


def rests_from(item: Branch, header: Header, now: int, then: int) -> int:
    """The first sample that a tick rests on, by number."""
    after = math.ceil(Fraction(now - header.origin_ns) * header.format.rate / 10**9)
    if item.sample in ("mean", "count", "block"):
        return after
    return rests_to(item, header, now, then) if item.sample != "linear" or header.time_ns(after) == now else after - 1


def rests_to(item: Branch, header: Header, now: int, then: int) -> int:
    """The last sample that a tick rests on, by number."""
    after = math.ceil(Fraction(now - header.origin_ns) * header.format.rate / 10**9)
    before = after if header.time_ns(after) == now else after - 1
    if item.sample in ("mean", "count"):
        return math.ceil(Fraction(then - header.origin_ns) * header.format.rate / 10**9) - 1
    if item.sample == "block":
        return after + round(header.format.rate * Fraction(then - now, 10**9)) - 1
    near = now - header.time_ns(before) <= header.time_ns(after) - now
    return before if item.sample == "hold" or (item.sample == "nearest" and near) else after


def at_tick(item: Branch, header: Header, rows: dict[int, Any], now: int, then: int) -> Any:
    """The value of one tick, by the samples of one clock."""
    after = math.ceil(Fraction(now - header.origin_ns) * header.format.rate / 10**9)
    later = math.ceil(Fraction(then - header.origin_ns) * header.format.rate / 10**9)
    on = header.time_ns(after) == now
    before = after if on else after - 1
    if item.sample in ("mean", "count"):
        under = [rows[i] for i in range(after, later) if i in rows]
        if item.sample == "count":
            return np.array([len(under)], np.float32)
        return np.stack(under).mean(0, dtype=np.float64).astype(np.float32) if under else None
    if item.sample == "block":
        each = int(header.format.rate / Fraction(1, 1) * Fraction(then - now, 10**9) + Fraction(1, 2))
        block = [rows.get(after + i) for i in range(each)]
        return None if any(row is None for row in block) else np.concatenate(block)  # type: ignore[arg-type]
    if item.sample == "hold":
        return rows.get(before)
    early, late = header.time_ns(before), header.time_ns(after)
    if item.sample == "nearest":
        return rows.get(before if now - early <= late - now else after)
    if before not in rows or after not in rows:
        return None
    share = np.float64(now - early) / max(late - early, 1)
    return rows[before] if on else (rows[before] * (1 - share) + rows[after] * share).astype(np.float32)


def came(items: list[Any]) -> dict[int, bytes]:
    return {key[-1]: value[-1] for key, value in outputs(items).items()}


def told(windows: list[Any]) -> list[tuple[int, bytes, float, tuple[str, ...]]]:
    return [(w.start_index, w.data.tobytes(), w.missing, w.absent) for w in windows]


def followed(pick: random.Random, spec: Join, wanted: dict[int, Tick]) -> tuple[Chain | Join, Any, Any]:
    """The join with or without windows behind it, how what leaves is read, and what is defined of that."""
    if pick.random() < 0.5:
        return spec, came, {k: tick.data for k, tick in wanted.items()}
    length, hop = pick.randint(1, 12), pick.randint(1, 12)
    return Chain((spec, Windows(length, hop))), told, windows_defined(wanted, length, hop)


def campaign(seed: int) -> None:
    """Any cut and any interleaving, with a crash anywhere, give what is defined."""
    pick = random.Random(seed)
    spec, runs = joined(pick)
    whole, read, wanted = followed(pick, spec, defined(spec, runs))
    feed = interleaved(pick, [ended(marked(pick, cut(pick, runs[b.stream])), b) for b in spec.branches])
    stage, items = whole.build(), list[Any]()
    for chunk in feed:
        if pick.random() < 0.1:
            kept, stage = stage.snapshot(), whole.build()
            stage.restore(kept)
            assert stage.snapshot() == kept
        items += stage.push(chunk)
    assert read(items) == wanted


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_any_cut_and_any_interleaving_give_what_is_defined(seed: int) -> None:
    campaign(seed)


def decided(seed: int) -> None:
    """Inputs that fall silent, are not waited for, and come back: what leaves is what all data and the decisions define, in any order."""
    pick = random.Random(seed)
    spec, runs = joined(pick)
    queues = {b.stream: deque(ended(marked(pick, cut(pick, runs[b.stream])), b)) for b in spec.branches}
    stage, items, decisions = spec.build(), list[Any](), list[Decision]()
    while any(queues.values()):
        name = pick.choice([n for n, q in queues.items() if q])
        for _ in range(min(len(queues[name]), pick.choice([1, 1, 5, 99]))):
            items += stage.push(queues[name].popleft())
        if (decision := a_decision(pick, stage)) is not None:
            decisions.append(decision)
            items += stage.decide(decision)
    defined_ticks = defined(spec, runs, decisions)
    assert came(items) == {k: tick.data for k, tick in defined_ticks.items()}
    whole, read, wanted = followed(pick, spec, defined_ticks)
    again = whole.build()
    known = [item for decision in decisions for item in again.decide(decision)]
    queues_again = [ended(marked(pick, cut(pick, runs[b.stream])), b) for b in spec.branches]
    assert read(known + run_again(pick, again, queues_again)) == wanted


def a_decision(pick: random.Random, stage: Any) -> Decision | None:
    """Any that somebody might take now, whatever he knows."""
    wait = pick.choice(stage.waits() or [None])
    if wait is None or pick.random() < 0.5:
        return None
    about = {"behind": pick.choice([0, 0, 1, 30]), "ends": pick.random() < 0.1}
    if wait.since is not None:
        return Decision(wait.stream, wait.since, wait.back) if wait.back else Decision(wait.stream, wait.since, **about)
    if wait.tick is None or wait.tick >= wait.newest:
        return None
    return Decision(wait.stream, wait.tick, origin_ns=wait.origin_ns, **about)


@pytest.mark.chaos
@pytest.mark.timeout(20_000)
@settings(max_examples=2_000, deadline=None)
@given(st.integers(0, 2**64))
def test_joins_at_length(seed: int) -> None:
    campaign(seed)
    decided(seed)


def run_again(pick: random.Random, stage: Any, queues: list[list[Chunk]]) -> list[Any]:
    return [item for chunk in interleaved(pick, queues) for item in stage.push(chunk)]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_inputs_that_are_not_waited_for(seed: int) -> None:
    decided(seed)


def test_outages_that_are_over_are_forgotten() -> None:
    spec, one = Join((branch("a", "4"), branch("b", "4")), "4", "b"), np.ones((4, 1), np.float32)
    a, b = (Header("s", ORIGIN, item.raw) for item in spec.branches)
    stage, sizes = Chain((spec, Windows(4, 4))).build(), list[int]()
    for tick in range(0, 1600, 8):
        stage.push(Chunk(b, tick, np.repeat(one, 2, 0)))
        stage.push(Chunk(a, tick, one))
        out = stage.decide(Decision("a", tick + 4)) + stage.decide(Decision("a", tick + 4, tick + 8))
        stage.push(Chunk(a, tick + 4, one))
        assert [(window.start_index, window.absent) for window in out] == [(tick + 4, ("a",))]
        sizes.append(len(stage.snapshot()))
    assert max(sizes[10:]) < sizes[10] + 50  # numbers grow by a digit


def feet(count: int = 500) -> tuple[Join, list[Chunk], list[Chunk], Any]:
    """Two feet at 100 Hz whose clocks agree, and what both say."""
    names, rng = ("ax", "ay"), np.random.default_rng(0)
    sides = [Branch(f"imu.{side}", "100", Chain((Intake(names),))) for side in ("left", "right")]
    data = [rng.standard_normal((count, 2)).astype(np.float32) for _ in sides]
    headers = [Header("s", ORIGIN, signal_format(side.stream, names, 100)) for side in sides]
    left, right = (one_chunk_a_run([Run(h, 0, d)]) for h, d in zip(headers, data, strict=True))
    return Join(tuple(sides), "100", "imu.left"), left, right, np.hstack(data)


def test_two_feet_of_one_clock_stand_side_by_side() -> None:
    spec, left, right, both = feet()
    (joined_chunk,) = run(spec, [*right, *left])
    assert joined_chunk.data.tobytes() == both.tobytes()
    assert joined_chunk.header.format == spec.output({})
    assert spec.output({}).channels == ("imu.left.ax", "imu.left.ay", "imu.right.ax", "imu.right.ay")


def test_windows_say_what_share_of_them_an_input_was_absent() -> None:
    spec, left, right, both = feet()
    half = [replace(right[0], data=right[0].data[:250])]
    chain = Chain((spec, Windows(200, 100)))
    windows = run(chain, [*left, *half])
    assert [w.missing for w in windows] == [0.0, 0.25, 0.75, 1.0]
    assert [w.start_ns for w in windows] == [ORIGIN + k * 10**9 for k in range(4)]
    assert windows[0].data.tobytes() == both[:200].tobytes()
    assert np.isnan(windows[3].data[:, 2:]).all()
    needed = Chain(
        (replace(spec, branches=(spec.branches[0], replace(spec.branches[1], required=True))), Windows(200, 100))
    )
    assert [w.start_index for w in run(needed, [*left, *half])] == [0]


def test_a_join_goes_into_a_bundle_and_back() -> None:
    spec = feet()[0]
    check_json(spec)
    check_json(Chain((spec, Windows(200, 100))))
    assert run(spec, feet()[1], end=False) == []  # nothing leaves without the other foot, until the session ends


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"branches": ()}, "inputs none"),
        ({"branches": (branch("a", "4"), branch("a", "8"))}, "each another stream"),
        ({"grid": "c"}, "expected one of a, b"),
        ({"rate": "0"}, "above 0"),
        ({"rate": "four"}, "above 0"),
        ({"branches": (branch("a", "4", "count"), branch("b", "8", "count"))}, "counted alone"),
    ],
)
def test_joins_that_are_none(change: dict[str, Any], why: str) -> None:
    with pytest.raises(FormatError, match=why):
        replace(Join((branch("a", "4"), branch("b", "8")), "4", "a"), **change)


def test_a_block_of_half_a_sample_is_refused() -> None:
    with pytest.raises(FormatError, match=r"10 Hz on a grid of 4 Hz are 2.5; resample"):
        Join((branch("a", "4"), branch("b", "10", "block")), "4", "a").output({})


def test_blocks_are_locked_to_the_ticks() -> None:
    spec = Join((branch("a", "4"), branch("b", "64", "block")), "4", "a")
    slow = [Chunk(Header("s", ORIGIN, spec.branches[0].raw), 0, np.arange(8, dtype=np.float32)[:, None])]
    fast = [Chunk(Header("s", ORIGIN, spec.branches[1].raw), 0, np.arange(128, dtype=np.float32)[:, None])]
    (out,) = run(spec, [*fast, *slow])
    assert out.data[:, 1:].ravel().tolist() == list(range(128))
    assert spec.output({}).channels == ("a0", *(f"b0.{i}" for i in range(16)))


def test_a_mean_rests_on_the_samples_alone_not_on_how_they_lie_in_memory() -> None:
    intake = Intake(("b0", "b1"), dtype="float64")  # of a stream that has them in another order
    spec = Join((Branch("b", "100", Chain((intake,)), "mean"),), "4", "b")
    header = Header("s", ORIGIN, signal_format("b", ("b1", "b2", "b0"), 100, "float64"))
    values = np.random.default_rng(1).normal(size=(1000, 3))
    wanted = outputs(run(spec, [Chunk(header, 0, values)]))
    for length in (1, 7, 40):
        cut = [Chunk(header, i, values[i : i + length]) for i in range(0, 1000, length)]
        assert outputs(run(spec, cut)) == wanted
        stage, again, items = spec.build(), spec.build(), []
        for chunk in cut:
            items += stage.push(chunk)
            again.restore(stage.snapshot())
            stage, again = again, spec.build()
        assert outputs(items + stage.flush()) == wanted


def pulses(count: int) -> Any:
    return np.arange(count, dtype=np.float32)[:, None] ** 2 % 7


@pytest.mark.parametrize(
    ("sample", "reach_ms"), [("linear", 50), ("hold", 49.999999), ("nearest", 30), ("mean", 0), ("count", 0)]
)
@pytest.mark.parametrize("shift_ns", [0, 1, 10**7])
def test_an_irregular_stream_of_even_times_equals_the_regular_one(sample: str, reach_ms: float, shift_ns: int) -> None:
    even, grid = branch("b", "20", sample), branch("a", "10", required=True)
    odd = sparse("b", sample, reach_ms)
    header = Header("s", ORIGIN + shift_ns, even.raw)
    values = pulses(100)
    parts = [(0, 40), (44, 100)]  # with a gap, over which neither says anything
    times = np.array([header.time_ns(i) for i in range(100)], np.int64)
    slow = [Chunk(Header("s", ORIGIN, grid.raw), 0, pulses(48))]
    regular = [Chunk(header, a, values[a:b]) for a, b in parts]
    irregular = [Chunk(Header("s", ORIGIN, odd.raw), a, values[a:b], times[a:b]) for a, b in parts]
    wanted = came(run(Join((grid, even), "10", "a"), [*slow, *regular]))
    assert came(run(Join((grid, odd), "10", "a"), [*slow, *irregular])) == wanted
    assert sorted(wanted) == list(range(48))


def test_progress_marks_release_what_waits_for_a_sparse_stream() -> None:
    spec = Join((branch("eda", "4"), sparse("tag", "count")), "4", "eda")
    eda, tag = (Header("s", ORIGIN, item.raw) for item in spec.branches)
    none, no_times = np.empty((0, 1), np.float32), np.empty(0, np.int64)
    stage = spec.build()
    assert stage.push(Chunk(eda, 0, pulses(2400))) == []
    first = Chunk(tag, 0, none, no_times, complete_ns=ORIGIN + 600 * 10**9)
    (out,) = stage.push(first)
    assert (out.first_index, out.count) == (0, 2400)
    assert not out.data[:, 1].any()
    assert stage.push(first) == stage.push(Chunk(tag, 0, none, no_times, complete_ns=ORIGIN)) == []
    stage.push(Chunk(eda, 2400, pulses(80)))
    beat = np.array([ORIGIN + 601 * 10**9 + 1] * 3, np.int64)
    (out,) = stage.push(Chunk(tag, 0, np.zeros((3, 1), np.float32), beat))
    assert (out.first_index, out.count) == (2400, 4)
    # Neither samples nor marks: whoever knows the clock decides. A mark, even without a sample, brings it back.
    wait = next(wait for wait in stage.waits() if wait.stream == "tag")
    assert (wait.tick, wait.newest) == (2404, 2480)
    (out,) = stage.decide(Decision("tag", 2404))
    assert np.isnan(out.data[:, 1]).all()
    assert out.end_index == 2480
    stage.push(Chunk(tag, 3, none, no_times, complete_ns=ORIGIN + 625 * 10**9))
    wait = next(wait for wait in stage.waits() if wait.stream == "tag")
    assert (wait.back, wait.since) == (2480, 2404)
    stage.decide(Decision("tag", 2404, 2480))
    (out,) = stage.push(Chunk(eda, 2480, pulses(40)))
    assert out.end_index == 2500
    assert not out.data[:, 1].any()


def test_an_irregular_stream_that_ended_counts_nothing_from_then_on() -> None:
    spec = Join((branch("eda", "4"), sparse("tag", "count"), sparse("ibi", reach_ms=2000)), "4", "eda")
    eda, tag, ibi = (Header("s", ORIGIN, item.raw) for item in spec.branches)
    at, one = np.array([ORIGIN + 10**9], np.int64), np.ones((1, 1), np.float32)
    chunks = [Chunk(tag, 0, one, at, end=True), Chunk(ibi, 0, one, at, end=True), Chunk(eda, 0, pulses(40), end=True)]
    for feed in (chunks, chunks[::-1]):
        out = np.concatenate([c.data for c in run(spec, feed)])
        assert out[:, 1].tolist() == [float(k == 4) for k in range(40)]
        assert np.isfinite(out[:, 2]).tolist() == [4 <= k <= 12 for k in range(40)]
    silent = np.concatenate([c.data for c in run(spec, chunks[1:])])
    assert np.isnan(silent[:, 1]).all()  # of a stream that never was there is no count


def test_steps_of_an_irregular_input_keep_its_times() -> None:
    ibi = replace(sparse("ibi"), chain=Chain((Intake(("ibi0",)), Scale(1000.0))))
    spec = Join((branch("a", "4"), ibi), "4", "a")
    (out,) = run(
        spec,
        [
            Chunk(Header("s", ORIGIN, ibi.raw), 0, np.full((1, 1), 0.8, np.float32), np.array([ORIGIN], np.int64)),
            Chunk(Header("s", ORIGIN, spec.branches[0].raw), 0, pulses(4)),
        ],
    )
    assert out.data[:, 1].tolist() == [np.float32(0.8) * 1000] * 4


@pytest.mark.parametrize(
    ("branches", "why"),
    [
        (lambda: (branch("a", "4"), sparse("b", "block")), "takes evenly sampled streams"),
        (lambda: (branch("a", "4"), sparse("b", "hold", 0)), "reach_ns 0, expected how long a value"),
        (lambda: (sparse("a"), branch("b", "4")), "grid 'a' is irregular"),
        (lambda: (branch("a", "4", "count"), sparse("b")), "counted alone"),
        (lambda: (branch("a", "-4"), branch("b", "4")), "above 0"),
    ],
)
def test_irregular_inputs_that_are_none(branches: Any, why: str) -> None:
    with pytest.raises(FormatError, match=why):
        Join(branches(), "4", "a")
