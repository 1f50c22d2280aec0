"""Intake by example, and against a slow, separate account of the same rules: what is taken, filled, missing, refused, and which
windows come."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from checks import check_going_on, check_snapshot, outputs, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import imu, read_only

from kymo.processors.chain import Chain
from kymo.processors.intake import Intake
from kymo.processors.spec import Spec
from kymo.processors.steps.spectrogram import Spectrogram
from kymo.processors.windows import Windows
from kymo.streams.chunk import Array, Chunk, Header, Window, signal_format
from kymo.streams.errors import FormatError

MANY = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


WANTED = ("a", "b")


UNITS = ("m/s^2", "m/s^2")


BASE = Header("s", 2**62 - 10**13, signal_format("imu", ("a", "b"), 100, "float32", UNITS))


HEADERS = [
    BASE,
    replace(BASE, format=replace(BASE.format, dtype="float64")),
    replace(BASE, format=signal_format("imu", ("b", "x", "a"), 100, "float32", ("g", "g", "m/s^2"))),
    replace(BASE, origin_ns=BASE.origin_ns + 7),
]


SEGMENT = [0, 0, 0, 1]  # the first three differ in how samples are written, the last in the clock


@st.composite
def timelines(draw: Any) -> list[tuple[int, int, bool]]:
    """Per sample: its index, its header's number, whether it is a number."""
    at, out = draw(st.sampled_from([0, 3, 50, 2**40])), []
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["numbers", "numbers", "nan", "gap"]))
        header, count = draw(st.sampled_from([0, 0, 0, 1, 2, 3])), draw(st.integers(1, 14))
        if kind != "gap":
            out += [(at + i, header, kind == "numbers") for i in range(count)]
        at += count
    return out or [(at, 0, True)]


def chunk_of(part: list[tuple[int, int, bool]]) -> Chunk:
    """Consecutive samples of a timeline as their source would write them; the value tells the index."""
    header = HEADERS[part[0][1]]
    data = np.array([[np.sin(i % 1000) * 5 + 9, i % 97] if good else [1.0, np.nan] for i, _, good in part])
    if header is HEADERS[2]:
        data = np.stack([data[:, 1] / 9.80665, data[:, 0] * 0, data[:, 0]], 1)
    return Chunk(header, part[0][0], read_only(data.astype(header.format.dtype)))


def pieces(draw: Any, timeline: list[tuple[int, int, bool]]) -> list[Chunk]:
    """The timeline, cut anywhere and wherever it must be cut."""
    parts: list[list[tuple[int, int, bool]]] = []
    for sample in timeline:
        before = parts[-1][-1] if parts else None
        new = before is None or sample[0] != before[0] + 1 or sample[1] != before[1] or draw(st.integers(0, 4)) == 0
        if new:
            parts.append([])
        parts[-1].append(sample)
    return [chunk_of(part) for part in parts]


@st.composite
def clean(draw: Any) -> list[Chunk]:
    """Every sample once, in order."""
    return pieces(draw, draw(timelines()))


@st.composite
def messy(draw: Any) -> list[Chunk]:
    """With chunks that are late, repeated, or overlap what came."""
    chunks = draw(clean())
    out = list(chunks)
    for _ in range(draw(st.integers(1, 4))):
        kind, i = draw(st.sampled_from(["late", "again", "overlap"])), draw(st.integers(0, len(chunks) - 1))
        at = draw(st.integers(0, len(out)))
        if kind == "late":
            out.insert(at, out.pop(i % len(out)))
        elif kind == "again":
            out.insert(at, chunks[i])
        else:
            last = next(b for b in range(i, len(chunks)) if chunks[b] is chunks[-1] or not follows(*chunks[b : b + 2]))
            data = np.concatenate([c.data for c in chunks[i : last + 1]])
            out.insert(at, Chunk(chunks[i].header, chunks[i].first_index, read_only(data)))
    return out


def follows(a: Chunk, b: Chunk) -> bool:
    return a.header is b.header and a.end_index == b.first_index


@dataclass
class Account:
    """What the rules say must come of the chunks."""

    rows: dict[int, tuple[Array, int]]
    filled: dict[int, bool]
    duplicates_and_late: int
    not_a_number: int


def account(spec: Intake, chunks: list[Chunk]) -> Account:
    """Sample by sample, with nothing but dictionaries."""
    taken: dict[int, tuple[Array, int]] = {}
    seen, old, part, last = None, 0, 0, None
    for chunk in chunks:
        number = HEADERS.index(chunk.header)
        if seen is not None and chunk.first_index < seen and chunk.count:
            old += 1
        for i, came in enumerate(chunk.data, chunk.first_index):
            if seen is not None and i < seen:
                continue
            if last is not None and SEGMENT[last] != SEGMENT[number]:
                part += 1
            last, seen = number, i + 1
            row = np.array([came[2], came[0] * np.float64(9.80665)]) if number == 2 else came
            taken[i] = (row.astype(spec.dtype), part)
    rows = {i: v for i, v in taken.items() if np.isfinite(v[0]).all()}
    filled: dict[int, bool] = {}
    for a, b in pairwise(sorted(rows)):
        gap = b - a - 1
        if 0 < gap <= max(spec.bridge, spec.fill) and rows[a][1] == rows[b][1]:
            for i in range(a + 1, b):
                share = Fraction(i - a, b - a)
                ends = [(Fraction(float(x)), Fraction(float(y))) for x, y in zip(rows[a][0], rows[b][0], strict=True)]
                rows[i] = (np.array([float(x * (1 - share) + y * share) for x, y in ends]), rows[a][1])
                filled[i] = gap <= spec.bridge
    return Account(rows, filled, old, len(taken) - sum(1 for i in rows if i not in filled))


def windows_of(spec: Intake, cut: Windows, told: Account) -> dict[int, float]:
    """Start and share missing of every window that must come."""
    out = {}
    for start in {i - i % cut.hop for i in told.rows} | {i for i in told.rows if i % cut.hop == 0}:
        inside = range(start, start + cut.length)
        if all(i in told.rows for i in inside) and len({told.rows[i][1] for i in inside}) == 1:
            missing = [told.filled[i] for i in inside if i in told.filled]
            if sum(not bridged for bridged in missing) / cut.length <= spec.max_missing:
                out[start] = len(missing) / cut.length
    return out


@st.composite
def specs(draw: Any) -> Intake:
    """Intakes that bridge, fill, both or neither."""
    bridge, fill = draw(st.sampled_from([0, 1, 4, 30])), draw(st.sampled_from([0, 3, 9]))
    share = draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]))
    return Intake(WANTED, UNITS, draw(st.sampled_from(["float32", "float64"])), bridge, fill, share)


def compare(spec: Intake, cut: Windows, chunks: list[Chunk]) -> None:
    told, chain = account(spec, chunks), Chain((spec, cut))
    stage = chain.build()
    came = [w for chunk in chunks for w in stage.push(chunk)]
    assert {w.start_index: w.missing for w in came} == windows_of(spec, cut, told)
    assert [w.start_index for w in came] == sorted(windows_of(spec, cut, told))
    for window in came:
        for i, row in enumerate(window.data, window.start_index):
            if i in told.filled:
                np.testing.assert_allclose(row, told.rows[i][0], rtol=1e-6, atol=1e-6)
            else:
                assert row.tobytes() == told.rows[i][0].tobytes()
        assert window.start_ns == window.header.origin_ns + window.start_index * 10**9 // 100
    counts = stage.take_counts()
    assert counts["duplicates"] + counts["late"] == told.duplicates_and_late
    assert counts["not_a_number"] == told.not_a_number
    assert counts["interpolated"] == len(told.filled)


CUT = st.builds(Windows, st.integers(1, 20), st.integers(1, 12))


@given(spec=specs(), cut=CUT, chunks=clean())
@MANY
def test_clean_input(spec: Intake, cut: Windows, chunks: list[Chunk]) -> None:
    compare(spec, cut, chunks)


@given(spec=specs(), cut=CUT, chunks=messy())
@MANY
def test_late_repeated_and_overlapping_chunks(spec: Intake, cut: Windows, chunks: list[Chunk]) -> None:
    compare(spec, cut, chunks)


@given(spec=specs(), cut=CUT, chunks=clean(), kills=st.lists(st.integers(0, 9), min_size=1, max_size=4))
@MANY
def test_going_on_through_gaps_and_new_clocks(
    spec: Intake, cut: Windows, chunks: list[Chunk], kills: list[int]
) -> None:
    for trim in (False, True):
        check_going_on(Chain((spec, cut)), chunks, kills, trim)
        check_going_on(spec, chunks, kills, trim)


@given(spec=specs(), cut=CUT, chunks=messy(), kills=st.lists(st.integers(0, 20), min_size=1, max_size=4))
@MANY
def test_snapshots_hold_with_late_chunks(spec: Intake, cut: Windows, chunks: list[Chunk], kills: list[int]) -> None:
    check_snapshot(Chain((spec, cut)), chunks, kills)
    check_snapshot(spec, chunks, kills)


@given(
    spec=specs(),
    cut=st.tuples(st.integers(4, 20), st.integers(1, 8)),
    border=st.tuples(st.integers(1, 5), st.integers(0, 5)),
    chunks=st.tuples(clean(), messy()),
    kills=st.lists(st.integers(0, 9), min_size=1, max_size=4),
)
@settings(MANY, max_examples=60)
def test_both_laws_with_columns_over_gaps(
    spec: Intake,
    cut: tuple[int, int],
    border: tuple[int, int],
    chunks: tuple[list[Chunk], list[Chunk]],
    kills: list[int],
) -> None:
    columns = Spectrogram(nperseg=4, noverlap=2, chunk_frames=border[0], chunk_phase=border[1])
    chain = Chain((spec, columns, Windows(cut[0], 2 * cut[1])))
    for trim in (False, True):
        check_going_on(chain, chunks[0], kills, trim)
    check_snapshot(chain, chunks[1], kills)
    single = [
        replace(c, first_index=c.first_index + i, data=c.data[i : i + 1]) for c in chunks[0] for i in range(c.count)
    ]
    assert outputs(run(chain, chunks[0])) == outputs(run(chain, single))
    plain = {w.start_index for w in run(Chain((spec, Windows(cut[0], 2 * cut[1]))), chunks[0])}
    assert plain <= {w.start_index for w in run(chain, chunks[0])}


@given(chunks=clean(), repeat=st.data())
@MANY
def test_repeating_what_came_changes_nothing(chunks: list[Chunk], repeat: st.DataObject) -> None:
    chain, again = Chain((Intake(WANTED, UNITS, bridge=4), Windows(6, 2))), []
    for i, chunk in enumerate(chunks):
        again += [chunk, *[chunks[j] for j in repeat.draw(st.lists(st.integers(0, i), max_size=2))]]
    assert outputs(run(chain, again)) == outputs(run(chain, chunks))


def rows(first: int, *values: float, header: Header | None = None) -> Chunk:
    header = header or Header("s", 0, imu(1))
    return Chunk(header, first, read_only(np.array(values, header.format.dtype).reshape(-1, 1)))


def test_a_bridged_gap_is_a_straight_line_and_counts_as_missing() -> None:
    chain = Chain((Intake(bridge=3), Windows(4, 4)))
    (first, second) = run(chain, [rows(0, 0, 1), rows(5, 5, 6, 7)])
    assert first.data.ravel().tolist() == [0, 1, 2, 3]
    assert second.data.ravel().tolist() == [4, 5, 6, 7]
    assert (first.missing, second.missing) == (0.5, 0.25)


def test_a_gap_beyond_the_limit_is_not_filled_and_its_windows_do_not_come() -> None:
    chain = Chain((Intake(bridge=2), Windows(4, 2)))
    stage = chain.build()
    out = stage.push(rows(0, 0, 1, 2, 3)) + stage.push(rows(7, 7, 8, 9, 10, 11))
    assert [w.start_index for w in out] == [0, 8]
    assert stage.take_counts() == {"gaps": 1}


def test_a_long_run_of_nan_does_not_hold_back_the_commit() -> None:
    stage = Chain((Intake(bridge=3),)).build()
    stage.push(rows(0, 1, 2, 3))
    assert stage.needs_from == {"imu": 2}
    stage.push(rows(3, np.nan, np.nan))
    assert stage.needs_from == {"imu": 2}
    stage.push(rows(5, np.nan, np.nan))
    assert stage.needs_from == {"imu": 7}


def test_late_is_told_from_duplicate() -> None:
    stage = Intake().build()
    for chunk in (rows(0, 1, 2), rows(4, 5), rows(2, 3, 4), rows(0, 1)):
        stage.push(chunk)
    assert stage.counts == {"late": 1, "duplicates": 1, "gaps": 1}


def test_an_old_chunk_of_the_clock_before_changes_nothing() -> None:
    old, new = Header("s", 0, imu(1)), Header("s", 99, imu(1))
    chain = Chain((Intake(bridge=3), Windows(6, 10)))
    chunks = [rows(8, 8, 9, header=old), rows(10, 10, 11, 12, header=new), rows(14, 14, 15, 16, header=new)]
    again = [*chunks[:2], chunks[0], chunks[2]]
    assert [w.start_index for w in run(chain, again)] == [10]
    assert outputs(run(chain, again)) == outputs(run(chain, chunks))


def test_what_float32_cannot_hold_is_missing() -> None:
    header = Header("s", 0, imu(1, "float64"))
    stage = Intake().build()
    assert [c.first_index for c in stage.push(rows(0, 1.0, 1e300, 3.0, header=header))] == [0, 2]
    assert stage.counts["not_a_number"] == 1


def test_a_stream_whose_unit_changes_is_not_interpolated_across() -> None:
    a, b = Header("s", 0, imu(1, units=("g",))), Header("s", 0, imu(1, units=("m/s^2",)))
    assert [c.count for c in run(Intake(bridge=3), [rows(0, 1, 1, header=a), rows(3, 9.8, header=b)])] == [2, 1]


@pytest.mark.parametrize(
    ("spec", "fmt", "says"),
    [
        (Intake(("z",)), imu(), "has no channel z"),
        (Intake(("c0",), ("V",)), imu(2, units=("g", "g")), "'g' cannot be converted to 'V'"),
        (Intake((), ("g",)), imu(2), "1 units for the 2 channels"),
        (Intake(bridge=1), imu(rate=0), "is irregular: nothing can be put into a gap"),
        (Chain((Intake(), Windows(2, 1))), imu(rate=0), "no fixed rate, and windows count samples"),
        (Intake(dtype="uint8"), imu(), "expected frames of uint8"),
        (Intake(dtype="uint8", fill=1), replace(imu(), dtype="uint8"), "samples are frames: nothing can be put"),
        (Intake((), ("g", "g"), "uint8"), replace(imu(), dtype="uint8"), "units of `imu`, whose samples are frames"),
        (Intake(("c1", "c0"), dtype="jpeg"), replace(imu(), dtype="jpeg", shape=()), "images have all of c0, c1"),
        (Intake(), replace(imu(), shape=(3, 2)), "expected one number a channel"),
        (Intake(), replace(imu(), dtype="jpeg", shape=()), "expected one number a channel"),
    ],
)
def test_what_it_cannot_take_is_named(spec: Spec, fmt: Any, says: str) -> None:
    with pytest.raises(FormatError, match=says):
        spec.output({"imu": fmt})


def test_a_window_carries_what_was_interpolated_only_in_it() -> None:
    out: list[Window] = run(
        Chain((Intake(fill=4, max_missing=0.5), Windows(8, 8))), [rows(0, *range(7)), rows(11, *range(11, 24))]
    )
    assert [(w.start_index, w.missing) for w in out] == [(0, 1 / 8), (8, 3 / 8), (16, 0.0)]


def test_what_no_column_covers_does_not_count_as_missing_however_it_is_cut() -> None:
    chain = Chain((Intake(fill=3, max_missing=0.5), Spectrogram(nperseg=4, noverlap=2), Windows(5, 10)))
    values = [0.0, 1, 2, 3, np.nan, 5, 6, 7]
    for chunks in (
        [rows(0, *values)],
        [rows(i, v) for i, v in enumerate(values)],
        [rows(0, *values[:4]), rows(5, 5, 6)],
    ):
        assert [(w.start_index, w.missing) for w in run(chain, chunks)] == [(0, 0.0)]


@st.composite
def beats(draw: Any) -> tuple[list[Chunk], list[tuple[int, int, float]], int]:
    """An irregular stream as it came: cut, repeated, with marks, times that go back, and samples that are no numbers.

    What is wanted of it beside it: index, time and value; and how many times went back.
    """
    header = Header("s", 5, signal_format("ibi", ("x", "y"), 0, "float64", ("ms", "ms")))
    at, now, newest, chunks = draw(st.sampled_from([0, 7])), 0, -(2**63), list[Chunk]()
    wanted, back = list[tuple[int, int, float]](), 0
    for _ in range(draw(st.integers(1, 8))):
        steps = draw(st.lists(st.integers(0, 4), min_size=0, max_size=5))
        now += draw(st.sampled_from([0, 1, 3, 3, -4]))
        times = [now := now + step for step in steps]
        values = [float("nan") if draw(st.integers(0, 5)) == 0 else float(at + i) for i in range(len(times))]
        data = np.array([[0.0, value] for value in values]).reshape(-1, 2)
        mark = draw(st.none() | st.integers(now - 3, now + 6))
        chunks.append(Chunk(header, at, read_only(data), np.array(times, np.int64), False, (), mark))
        for i, (time, value) in enumerate(zip(times, values, strict=True)):
            back += time < newest
            if time >= newest and not np.isnan(value):
                wanted.append((at + i, time, value * 0.001))
            newest = max(newest, time)
        newest = max(newest, -(2**63) if mark is None else mark)
        at += len(times) + draw(st.sampled_from([0, 0, 2]))
        if draw(st.integers(0, 3)) == 0:
            chunks.append(replace(draw(st.sampled_from(chunks)), complete_ns=None))
    return chunks, wanted, back


@given(beats(), st.integers(0, 99))
@MANY
def test_irregular_streams_keep_their_times_and_gaps(made: Any, restart: int) -> None:
    chunks, wanted, back = made
    spec = Intake(("y",), ("s",), "float64")
    stage, came, went_back = spec.build(), [], 0
    for i, chunk in enumerate(chunks):
        if i == restart % len(chunks):
            kept, went_back = stage.snapshot(), stage.counts["time_went_back"]
            stage = spec.build()
            stage.restore(kept)
            assert stage.snapshot() == kept
        for out in stage.push(chunk):
            assert out.times_ns is not None
            values = out.data[:, 0].tolist()
            came += list(zip(range(out.first_index, out.end_index), out.times_ns.tolist(), values, strict=True))
    assert came == wanted
    assert went_back + stage.counts["time_went_back"] == back


@pytest.mark.parametrize("dtype", ["uint8", "jpeg"])
@pytest.mark.parametrize("rate", [0, 15])
def test_frames_are_taken_as_they_come(dtype: str, rate: int) -> None:
    fmt = replace(signal_format("video", ("r", "g", "b"), rate, dtype), shape=() if dtype == "jpeg" else (2, 3, 3))
    frames: Array = np.arange(5 * 18, dtype=np.uint8).reshape(5, 2, 3, 3)
    if dtype == "jpeg":
        frames = np.array([b"a", b"bc", b"d", b"e", b"f"], object)
    times = np.array([3, 3, 9, 10, 40], np.int64)
    spec, header = Intake(("r", "g", "b"), dtype=dtype), Header("s", 0, fmt)
    cuts = [(0, 2), (1, 4), (4, 5)]
    stage = spec.build()
    out = [c for a, b in cuts for c in stage.push(Chunk(header, a, frames[a:b], None if rate else times[a:b]))]
    assert [c.first_index for c in out] == [0, 2, 4]
    assert np.concatenate([c.data for c in out]).tolist() == frames.tolist()
    assert out[0].header.format == spec.output({"video": fmt}) == fmt
    assert stage.counts == {"duplicates": 1}
    if not rate:
        assert [time for c in out if c.times_ns is not None for time in c.times_ns.tolist()] == times.tolist()
    if dtype == "uint8":
        (red,) = Intake(("r",), dtype=dtype).build().push(Chunk(header, 0, frames[:2], None if rate else times[:2]))
        assert red.data.tolist() == frames[:2, :, :, :1].tolist()
