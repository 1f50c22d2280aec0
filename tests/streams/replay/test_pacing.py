"""The pace of a replay, its order and its arithmetic, against brute force; recordings kept in a file are the same ones."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from archive_lab import chunk_record, write_archive
from hypothesis import given
from hypothesis import strategies as st

from kymo.streams.chunk import Chunk, Header, signal_format
from kymo.streams.errors import SourceError
from kymo.streams.recording import ReadOptions, Recording, StreamData, shifted
from kymo.streams.replay.cli import choose
from kymo.streams.replay.pacing import PAUSE, QUIT, SEEK, STEP, Player
from kymo.streams.replay.replay import ReplaySummary, Spool, spooled_parts
from kymo.streams.replay.schedule import Due, ReplayPlan, cut, digest, schedule, starts
from kymo.streams.settings import Settings
from kymo.streams.topics import MIB
from kymo.streams.words import NS


class SleepyClock:
    """A clock whose sleep lasts up to `over_s` too long, at random."""

    def __init__(self, over_s: float = 0.0, seed: int = 0) -> None:
        self.now_ns = 1_000
        self._over_s = over_s
        self._random = random.Random(seed)

    def monotonic_ns(self) -> int:
        return self.now_ns

    def wall_ns(self) -> int:
        return 1_700_000_000 * NS

    def wait(self, seconds: float) -> None:
        self.now_ns += round((seconds + self._random.random() * self._over_s) * NS)


def recording(
    name: str = "s", rates: dict[str, int] | None = None, seconds: float = 10, origin_ns: int = 0, first: int = 0
) -> Recording:
    streams = []
    for stream, rate in (rates or {"imu": 10}).items():
        header = Header(name, origin_ns, signal_format(stream, ("x", "y"), rate))
        n = round(rate * seconds)
        data = np.arange(2 * n, dtype=np.float32).reshape(n, 2)
        streams.append(StreamData(header, data, None, first, [(first, data)]))
    return Recording(name, streams)


def irregular(name: str, times_ns: list[int]) -> Recording:
    header = Header(name, 0, signal_format("ibi", ("ms",), 0))
    data = np.arange(len(times_ns), dtype=np.float32).reshape(-1, 1)
    return Recording(name, [StreamData(header, data, np.array(times_ns, np.int64))])


def chunks_only(*recordings: Recording, plan: ReplayPlan = ReplayPlan()) -> list[Due]:  # noqa: B008
    return list(schedule(recordings, starts(recordings)[0], plan))


def idle(n: int, step_ns: int) -> Iterator[Due]:
    chunk = recording().streams[0].chunks(1).__next__()
    return (Due(i * step_ns, 0, 0, chunk) for i in range(n))


def test_ten_minutes_do_not_drift() -> None:
    clock = SleepyClock(over_s=0.004)
    late: list[int] = []
    start = clock.now_ns

    def send(due: Due) -> None:
        late.append(clock.now_ns - start - due.due_ns)
        clock.now_ns += 200_000  # sending takes time as well

    assert Player(clock, 1).play(idle(6000, 100_000_000), send)
    first, last = np.mean(late[:600]), np.mean(late[-600:])
    assert abs(last - first) < 1_000_000
    assert min(late) >= 0
    assert max(late) < 5_000_000


@given(st.sampled_from([0.5, 1.0, 20.0, 333.3]), st.integers(0, 1000))
def test_deadlines_scale_with_speed(speed: float, seed: int) -> None:
    clock = SleepyClock(over_s=0.001, seed=seed)
    start, sent = clock.now_ns, []
    Player(clock, speed).play(idle(50, 7_000_000), lambda due: sent.append((clock.now_ns, due.due_ns)))
    for now, due in sent:
        assert 0 <= now - start - round(due / speed) < 2_000_000


def test_without_pace_nothing_waits() -> None:
    clock = SleepyClock()
    player = Player(clock, None)
    assert player.play(idle(100, NS), lambda _: None)
    assert (clock.now_ns, player.lag.count, player.lag.max_ns) == (1_000, 100, 0)


def test_slow_sending_is_lag_and_is_caught_up() -> None:
    clock = SleepyClock()
    sent = []

    def send(due: Due) -> None:
        sent.append(due.due_ns)
        if len(sent) == 3:
            clock.now_ns += 350_000_000

    player = Player(clock, 1)
    assert player.play(idle(20, 100_000_000), send)
    assert len(sent) == 20
    assert player.lag.max_ns == 250_000_000  # chunk 3, due 100 ms after the one that took 350 ms
    assert clock.now_ns == 1_000 + 1_900_000_000


class Script:
    """Keys at given times; between them it waits."""

    def __init__(self, clock: SleepyClock, keys: list[tuple[float, str]]) -> None:
        self._clock, self._keys = clock, keys

    def __call__(self, seconds: float) -> str | None:
        if self._keys and self._clock.now_ns >= self._keys[0][0] * NS:
            return self._keys.pop(0)[1]
        self._clock.wait(seconds or 0.0)
        return None


def played(keys: list[tuple[float, str]], n: int = 40) -> tuple[list[tuple[float, float]], Player, bool]:
    clock = SleepyClock()
    sent: list[tuple[float, float]] = []
    player = Player(clock, 1, Script(clock, keys))
    done = player.play(idle(n, NS), lambda due: sent.append((round(clock.now_ns / NS, 1), due.due_ns / NS)))
    return sent, player, done


def test_pause_moves_all_that_follows() -> None:
    sent, player, done = played([(2.5, PAUSE), (7.5, PAUSE)], 6)
    assert done
    assert sent == [(0, 0), (1, 1), (2, 2), (8, 3), (9, 4), (10, 5)]
    assert player.lag.max_ns < 60_000_000


def test_seek_sends_ten_seconds_at_once_and_loses_none() -> None:
    sent, player, _ = played([(2.5, SEEK)], 20)
    assert [due for _, due in sent] == list(range(20))
    assert [due for now, due in sent if now == 2.5] == list(range(3, 13))
    assert {due: now for now, due in sent}[13] == 3.0
    assert player.lag.max_ns < 60_000_000


def test_step_sends_one_chunk_and_going_on_waits_for_the_next() -> None:
    sent, _, _ = played([(1.5, PAUSE), (3, STEP), (4, STEP), (6, PAUSE)], 6)
    assert sent == [(0, 0), (1, 1), (3, 2), (4, 3), (7, 4), (8, 5)]


def test_quit_ends() -> None:
    sent, _, done = played([(1.5, QUIT)])
    assert (len(sent), done) == (2, False)


@pytest.mark.parametrize("speed", [0, -1, float("nan")])
def test_speed_must_be_above_zero(speed: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Player(SleepyClock(), speed)


def test_order_is_by_due_time_then_session_then_stream() -> None:
    a, b = recording("a", {"imu": 10, "eda": 4}, 3), recording("b", {"imu": 10, "eda": 4}, 3)
    got = chunks_only(a, b, plan=ReplayPlan(chunk_ms=250))
    assert [d[:3] for d in got] == sorted(d[:3] for d in got)
    assert {d[1:3] for d in got} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    for place in {d[1:3] for d in got}:
        mine = [d.chunk for d in got if d[1:3] == place]
        assert [c.first_index for c in mine[1:]] == [c.end_index for c in mine[:-1]]
        assert [c.end for c in mine] == [False] * (len(mine) - 1) + [True]


def test_a_chunk_is_due_when_its_last_sample_is_taken() -> None:
    first, second = chunks_only(recording(origin_ns=5 * NS), plan=ReplayPlan(chunk_ms=300))[:2]
    assert (first.due_ns, first.chunk.count) == (200_000_000, 3)
    assert second.due_ns == 500_000_000


def test_overlapping_sessions_start_as_recorded_and_others_together() -> None:
    def at(*starts_s: int) -> list[Recording]:
        return [recording(f"s{i}", origin_ns=start * NS) for i, start in enumerate(starts_s)]

    assert starts(at(100, 105, 112)) == ([0, 5 * NS, 12 * NS], True)
    assert starts(at(105, 100)) == ([5 * NS, 0], True)
    assert starts(at(100, 111)) == ([0, 0], False)  # a second of silence
    assert starts(at(0, 0)) == ([0, 0], True)
    week = [recording(f"s{i}", {"eda": 1}, 90_000, origin_ns=i * 89_000 * NS) for i in range(2)]
    assert starts(week) == ([0, 0], False)  # more than a day apart


@given(st.integers(0, 12), st.integers(1, 12), st.sampled_from([1, 3, 7, 10]), st.integers(0, 20))
def test_cut_equals_brute_force(start: int, length: int, rate: int, first: int) -> None:
    whole = recording("s", {"imu": rate}, 10, origin_ns=3, first=first)
    header = whole.streams[0].header
    low = whole.start_ns + start * NS
    numbers = range(first, first + 10 * rate)
    expected = [i for i in numbers if low <= header.time_ns(i) < low + length * NS]
    part = cut(whole, start, length)
    if part is None:
        assert expected == []
        return
    (stream,) = part.streams
    assert list(range(stream.first_index, stream.end_index)) == expected
    assert np.array_equal(stream.data[:, 0], [2 * (i - first) for i in expected])
    sent = [d.chunk for d in chunks_only(part)]
    assert [i for c in sent for i in range(c.first_index, c.end_index)] == expected
    assert sent[-1].end


def test_cut_keeps_gaps_and_empty_streams_end() -> None:
    header = Header("s", 0, signal_format("imu", ("x",), 1))
    data = np.arange(6, dtype=np.float32).reshape(6, 1)
    short = recording("s", {"eda": 1}, 2).streams[0]
    gap = StreamData.from_indexes(header, data, np.array([0, 1, 2, 7, 8, 9]))
    part = cut(Recording("s", [gap, short]), 2, 6)
    assert part is not None
    assert [(f, len(d)) for f, d in part.streams[0].pieces] == [(2, 1), (7, 1)]
    end = [d.chunk for d in chunks_only(part) if d.stream == 1]
    assert [(c.count, c.first_index, c.end) for c in end] == [(0, 2, True)]


def test_cut_of_irregular_samples() -> None:
    part = cut(irregular("s", [10 * NS, 11 * NS, 13 * NS, 14 * NS]), 1, 3)
    assert part is not None
    assert part.streams[0].times_ns is not None
    assert part.streams[0].times_ns.tolist() == [11 * NS, 13 * NS]
    assert part.streams[0].first_index == 1


@given(st.integers(1, 4), st.sampled_from([100.0, 250.0, 1000.0]), st.integers(0, 5))
def test_loops_continue_index_and_time(loop: int, chunk_ms: float, first: int) -> None:
    whole = recording(first=first, seconds=3)
    got = [d.chunk for d in chunks_only(whole, plan=ReplayPlan(loop=loop, chunk_ms=chunk_ms))]
    assert [i for c in got for i in range(c.first_index, c.end_index)] == list(range(first, first + 30 * loop))
    values = np.concatenate([c.data for c in got])
    assert np.array_equal(values, np.tile(whole.streams[0].data, (loop, 1)))
    assert [c.end for c in got] == [False] * (len(got) - 1) + [True]


def test_a_part_of_an_irregular_stream_keeps_the_numbers_of_its_samples() -> None:
    times = np.array([0, 1, 5, 6, 9], np.int64) * NS
    header = Header("s", 0, signal_format("ibi", ("ms",), 0))
    data = np.arange(5, dtype=np.float32)[:, None]
    whole = Recording("s", [StreamData.from_indexes(header, data, np.array([3, 4, 7, 8, 9]), times)])
    part = cut(whole, 1, 6)
    assert part is not None
    assert [(first, samples[:, 0].tolist()) for first, samples in part.streams[0].pieces] == [(4, [1]), (7, [2, 3])]
    assert part.streams[0].times_ns is not None
    assert part.streams[0].times_ns.tolist() == [NS, 5 * NS, 6 * NS]
    both = cut(Recording("s", [*recording().streams, *whole.streams]), 2, 2)
    assert both is not None
    assert (both.streams[1].count, both.streams[1].first_index) == (0, 7)


def test_loops_of_irregular_samples_go_on_one_interval_later() -> None:
    plan = ReplayPlan(loop=2, chunk_ms=10_000)
    got = [d.chunk for d in chunks_only(irregular("s", [0, NS, 2 * NS]), plan=plan) if d.chunk.count]
    assert [t // NS for c in got if c.times_ns is not None for t in c.times_ns] == [0, 1, 2, 3, 4, 5]
    assert [c.first_index for c in got] == [0, 3]


@st.composite
def several(draw: st.DrawFn) -> Recording:
    """Two to four streams of any rates, which begin and end at other times and may have a gap or no rate."""
    streams = []
    for n in range(draw(st.integers(2, 4))):
        origin, count = draw(st.integers(0, 20 * NS)), draw(st.integers(1, 40))
        rate = draw(
            st.sampled_from(
                [Fraction(4), Fraction(1, 3), Fraction(64), Fraction(9971, 100), Fraction(30000, 1001), None]
            )
        )
        header = Header("s", origin, replace(signal_format(f"s{n}", ("x",), 1), rate=rate))
        data = np.arange(count, dtype=np.float32).reshape(-1, 1)
        numbers = np.arange(count) + draw(st.integers(0, 9))
        numbers[count // 2 :] += draw(st.integers(0, 3))
        times = None
        if rate is None:
            numbers, times = (
                np.arange(count),
                origin + np.cumsum(draw(st.lists(st.integers(1, NS), min_size=count, max_size=count))),
            )
        streams.append(StreamData.from_indexes(header, data, numbers, times))
    return Recording("s", streams)


def times_of(chunk: Chunk) -> list[Fraction]:
    """Exact times of samples, which are whole ns only where they are written."""
    header, numbers = chunk.header, range(chunk.first_index, chunk.end_index)
    if chunk.times_ns is not None:
        return [Fraction(int(time)) for time in chunk.times_ns]
    return [header.origin_ns + Fraction(number) * NS / header.format.rate for number in numbers]


def step_ns(stream: StreamData) -> Fraction:
    return NS / stream.header.format.rate if stream.header.format.rate else Fraction(2)


@given(several(), st.integers(2, 9))
def test_loops_keep_streams_together(whole: Recording, loop: int) -> None:
    got = chunks_only(whole, plan=ReplayPlan(loop=loop))
    assert [due[:3] for due in got] == sorted(due[:3] for due in got)
    turns: list[list[list[Fraction]]] = []  # times by stream and turn
    for place, stream in enumerate(whole.streams):
        chunks = [due.chunk for due in got if due.stream == place]
        assert all(a.end_index <= b.first_index for a, b in pairwise(chunks))
        assert np.array_equal(np.concatenate([c.data for c in chunks]), np.tile(stream.data, (loop, 1)))
        assert [c.end for c in chunks] == [False] * (len(chunks) - 1) + [True]
        times = [time for chunk in chunks for time in times_of(chunk)]
        assert times == sorted(set(times))
        turns.append([times[k * stream.count : (k + 1) * stream.count] for k in range(loop)])
    regular = [step_ns(stream) for stream in whole.streams if stream.header.format.rate]
    finest = min(regular, default=Fraction(2))
    for k in range(1, loop):
        for stream, mine in zip(whole.streams, turns, strict=True):
            # Each sample lies as to the others as it did, but for half a sample of either: in the ninth turn as in the second.
            for other, theirs in zip(whole.streams, turns, strict=True):
                error = (mine[k][0] - theirs[k][0]) - (mine[0][0] - theirs[0][0])
                assert abs(error) <= (step_ns(stream) + step_ns(other)) / 2
                # A turn begins when the one before has ended.
                early = max(theirs[k - 1]) - min(mine[k])
                assert early < finest + (step_ns(stream) + step_ns(other)) / 2


def test_loops_of_two_devices_have_no_gap_and_others_what_they_lack() -> None:
    plan = ReplayPlan(loop=300)
    left, right = (
        recording("s", {f"imu.{side}": 100}, 10, origin_ns=at).streams[0]
        for side, at in (("left", 0), ("right", 7_300_000))
    )
    for due in (got := chunks_only(Recording("s", [left, right]), plan=plan)):
        assert due.chunk.first_index % 10 == 0
    assert {due.chunk.end_index for due in got if due.chunk.end} == {300_000}
    # 4 and 60 Hz from one moment, 64 Hz ten seconds later: each turn is 20 s of every stream, silence included.
    late = recording("s", {"bvp": 64}, 10, origin_ns=10 * NS).streams[0]
    both = Recording("s", [*recording("s", {"eda": 4, "pupil": 60}, 20).streams, late])
    begins = [
        sorted(
            {due.chunk.first_index for due in chunks_only(both, plan=replace(plan, chunk_ms=20_000)) if due.stream == n}
        )
        for n in range(3)
    ]
    assert begins == [[k * rate * 20 for k in range(300)] for rate in (4, 60, 64)]
    # A rate of which a turn is no whole number: the 3,000th begins half a sample away at most.
    odd = Recording(
        "s",
        [
            *recording("s", {"eda": 4}, 10).streams,
            StreamData(
                Header("s", 0, signal_format("imu", ("x", "y"), Fraction(9971, 100))), np.zeros((900, 2), np.float32)
            ),
        ],
    )
    plan = replace(plan, loop=3000, chunk_ms=10_000)
    starts_at = [
        due.chunk.header.time_ns(due.chunk.first_index) for due in chunks_only(odd, plan=plan) if due.stream == 1
    ]
    assert max(abs(time - k * 10 * NS) for k, time in enumerate(starts_at)) <= NS * 100 // 9971 // 2 + 1
    assert len(starts_at) == 3000


def test_a_few_tags_make_no_turn_longer() -> None:
    for tags in ([0, 30 * NS], [39 * NS], [0, 40 * NS - 1], [0, 40 * NS]):
        whole = Recording("s", [*recording("s", {"eda": 4}, 40).streams, *irregular("s", tags).streams])
        dues = chunks_only(whole, plan=ReplayPlan(loop=3, chunk_ms=50_000))
        turn = 40.25 if tags[-1] == 40 * NS else 40
        assert [due.chunk.first_index for due in dues if due.stream == 0] == [0, 4 * turn, 8 * turn]
        times = [time for due in dues if due.stream == 1 and due.chunk.count for time in times_of(due.chunk)]
        assert times == [tag + k * int(turn * NS) for k in range(3) for tag in tags]


def test_a_part_begins_and_ends_with_its_samples_whatever_streams_lack_it() -> None:
    early, late = (
        recording("s", {"eda": 4}, 5).streams[0],
        recording("s", {"bvp": 64}, 10, origin_ns=10 * NS).streams[0],
    )
    whole = Recording("s", [early, recording("s", {"imu": 10}, 20).streams[0], late])
    for start, length, begin_s, end_s in ((0, 5, 0, 5), (6, 3, 6, 9), (12, None, 12, 20)):
        part = cut(whole, start, length)
        assert part is not None
        assert (part.start_ns, part.end_ns) == (begin_s * NS, end_s * NS)
        first = chunks_only(part)
        assert next(due.due_ns for due in first if due.chunk.count) < 100_000_000
        assert sum(due.chunk.end for due in first) == 3
    assert cut(whole, 25, None) is None


def test_irregular_chunks_span_one_slot() -> None:
    times = [0, 50_000_000, 99_999_999, 100_000_000, 450_000_000]
    got = [d.chunk for d in chunks_only(irregular("s", times))]
    assert [(c.first_index, c.count, c.end) for c in got] == [(0, 3, False), (3, 1, False), (4, 1, True)]


def test_progress_marks_of_a_sparse_stream() -> None:
    beats = [2_500_000_000, 2_599_999_999, 7 * NS]
    both = Recording("s", [*recording(seconds=9).streams, *irregular("s", beats).streams])
    got = [due for due in chunks_only(both) if due.stream == 1]
    said = [(due.due_ns // NS, due.chunk.complete_ns, due.chunk.first_index, due.chunk.count) for due in got]
    marks = [(second, second * NS, 2, 0) for second in (3, 4, 5, 6, 7)]
    assert said == [(1, NS, 0, 0), (2, 2 * NS, 0, 0), (2, None, 0, 2), *marks, (7, None, 2, 1)]
    assert [due.chunk.end for due in got] == [False] * 8 + [True]
    silent = schedule([irregular("s", [])], [0], ReplayPlan(loop=0))
    assert [next(silent).chunk.complete_ns for _ in range(3)] == [NS, 2 * NS, 3 * NS]
    assert [due.chunk.end for due in chunks_only(irregular("s", []))] == [True]


@given(
    st.lists(st.integers(0, 9 * NS), min_size=1, max_size=9), st.integers(1, 3), st.sampled_from([1, 100, 700, 3000])
)
def test_progress_marks_are_true_and_never_far_apart(times: list[int], loop: int, chunk_ms: int) -> None:
    both = Recording("s", [*recording(seconds=9).streams, *irregular("s", sorted(times)).streams])
    plan = ReplayPlan(loop=loop, chunk_ms=chunk_ms)
    dues = [due for due in chunks_only(both, plan=plan) if due.stream == 1]
    assert [due.due_ns for due in dues] == sorted(due.due_ns for due in dues)
    reached = 0
    for due in dues:
        chunk = due.chunk
        assert chunk.times_ns is not None
        assert (chunk.complete_ns is None) == (chunk.count > 0)
        now = chunk.complete_ns if chunk.complete_ns is not None else int(chunk.times_ns[0])
        assert reached <= now < reached + NS + (chunk_ms * 10**6 if chunk.count else 1)
        assert due.due_ns >= now
        reached = now if not chunk.count else int(chunk.times_ns[-1])
    assert dues[-1].chunk.end


def test_endless_loop_never_ends() -> None:
    endless = schedule([recording(seconds=1)], [0], ReplayPlan(loop=0, chunk_ms=1000))
    got = [next(endless).chunk for _ in range(50)]
    assert got[-1].end_index == 500
    assert not any(c.end for c in got)


def test_shift_moves_every_time_and_nothing_else() -> None:
    whole = Recording("s", [*recording(origin_ns=7).streams, *irregular("s", [5, 9]).streams])
    moved = shifted(whole, 1000)
    assert moved.start_ns == whole.start_ns + 1000
    assert moved.streams[0].header.time_ns(13) == whole.streams[0].header.time_ns(13) + 1000
    assert moved.streams[1].times_ns is not None
    assert moved.streams[1].times_ns.tolist() == [1005, 1009]
    assert np.array_equal(moved.streams[0].data, whole.streams[0].data)


def test_chunk_stays_below_the_message_limit() -> None:
    header = Header("s", 0, signal_format("imu", tuple(f"c{i}" for i in range(1000)), Fraction(10_000), "float64"))
    wide = Recording("s", [StreamData(header, np.zeros((1200, 1000)))])
    assert max(d.chunk.data.nbytes for d in chunks_only(wide, plan=ReplayPlan(chunk_ms=1000))) < 4 * 2**20


def test_digest_depends_on_samples_and_plan_only() -> None:
    plan = ReplayPlan()
    base = digest(recording(), plan)
    assert digest(recording(), replace(plan, chunk_ms=500, speed=20)) == base
    other = recording()
    other.streams[0].data[3, 1] += 1
    different = [
        digest(other, plan),
        digest(recording(first=1), plan),
        digest(recording(origin_ns=1), plan),
        digest(recording("t"), plan),
        digest(recording(), replace(plan, loop=2)),
        digest(recording(), replace(plan, now=True)),
    ]
    assert len({base, *different}) == 7
    now = replace(plan, now=True)
    assert digest(recording(origin_ns=1), now) == digest(recording(), now)


PLAN = ReplayPlan(speed=None, chunk_ms=300)


def recordings() -> Iterator[Recording]:
    """Of every kind: regular with a gap, doubles, irregular, pictures, nothing at all."""
    random = np.random.default_rng(1)
    for n in range(7):
        name = f"s{n}"
        regular = Header(name, NS, signal_format("imu", ("x", "y"), 100))
        numbers = np.concatenate([np.arange(5, 400), np.arange(450, 700)]).astype(np.int64)
        streams = [StreamData.from_indexes(regular, random.standard_normal((645, 2)).astype(np.float32), numbers)]
        if n % 2:
            eda = Header(name, 3 * NS, signal_format("eda", ("eda",), Fraction(4), "float64"))
            streams.append(StreamData(eda, random.standard_normal((31, 1))))
            pulse = Header(name, 0, replace(signal_format("ibi", ("ibi",), 1), rate=None))
            times = np.cumsum(random.integers(1, NS, 17)).astype(np.int64)
            streams.append(StreamData(pulse, random.standard_normal((17, 1)).astype(np.float32), times))
        if n == 3:
            frames = np.empty(9, object)
            frames[:] = [random.bytes(int(size)) for size in random.integers(1, 5000, 9)]
            film = replace(signal_format("video", ("rgb",), 2, "jpeg"), shape=())
            streams.append(StreamData(Header(name, 0, film), frames))
        if n == 5:
            streams.append(StreamData(Header(name, 0, signal_format("hr", ("hr",), 1)), np.empty((0, 1), np.float32)))
        yield Recording(name, streams, subject=f"p{n}", metadata={"n": str(n)}, notes=["as it was"])


def sent(found: list[Recording]) -> list[tuple[int, int, int, bytes, int, bool]]:
    out = []
    for due in schedule(found, starts(found)[0], PLAN):
        c = due.chunk
        data = b"".join(map(bytes, c.data)) if c.header.format.dtype == "jpeg" else c.data.tobytes()
        times = b"" if c.times_ns is None else c.times_ns.tobytes()
        out.append((due.due_ns, due.session, due.stream, data + times, c.first_index, c.end))
    return out


@pytest.mark.parametrize("most", [0, 10_000, 10**9])
def test_kept_recordings_are_the_same(tmp_path: Path, most: int) -> None:
    before, after = list(recordings()), Spool(tmp_path / "new", most).keep(recordings())
    assert sent(after) == sent(before)
    assert [digest(r, PLAN) for r in after] == [digest(r, PLAN) for r in before]
    about = lambda r: (r.session, r.subject, r.metadata, r.notes, r.start_ns, r.end_ns)  # noqa: E731
    assert [about(r) for r in after] == [about(r) for r in before]
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").iterdir())  # the file has no name


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match="cannot be put there"):
        Spool(tmp_path / "file", 0).keep(recordings())


def archive(folder: Path, sessions: int) -> int:
    """1 MB a session; gives the size of all."""
    rows, offset, parts = 2500, 0, []
    for n in range(sessions):
        header = Header(f"s{n}", 1_770_000_000 * NS, signal_format("imu", ("x", "y"), 500))
        data = np.zeros((50 * rows, 2), np.float32)
        parts.append(
            [chunk_record(offset + i, Chunk(header, i * rows, data[i * rows : (i + 1) * rows])) for i in range(50)]
        )
        offset += 50
    write_archive(folder, parts)
    return sessions * data.nbytes


def test_a_replay_does_not_hold_its_archive_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kymo.streams.replay.replay.KEPT_BYTES", 2 * MIB)
    peaks = []
    for sessions in (8, 24):
        folder = tmp_path / str(sessions)
        size = archive(folder, sessions)
        plan = replace(PLAN, start_s=1, duration_s=240)
        tracemalloc.start()
        chosen = choose([str(folder)], ReadOptions(), None, None)
        parts = spooled_parts(chosen, plan, ReplaySummary(topics="t"), Settings(home=tmp_path / "home"))
        samples = sum(due.chunk.count for due in schedule(parts, starts(parts)[0], plan))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert samples == sessions * 500 * 240
    assert peaks[1] - peaks[0] < 1.5 * MIB
    assert peaks[1] < size / 2
