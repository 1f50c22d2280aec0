"""Windows against lists of numbers: which come, what they hold, what is kept; and of a chain cut in two at its window."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from checks import run, with_borders
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import cuttings, imu, recordings

from kymo.processors.chain import Chain, PerWindow
from kymo.processors.intake import Derived, Intake
from kymo.processors.registry import make_step, spec_from_json
from kymo.processors.spec import Spec
from kymo.processors.steps.maps import Log, Scale
from kymo.processors.steps.resample import Resample
from kymo.processors.steps.spectrogram import Spectrogram
from kymo.processors.windows import Windows
from kymo.streams.chunk import Chunk, Format, Header, Window, index_at, sample_time_ns, signal_format
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import FormatError


def numbered(fmt: Format, first: int, count: int, origin_ns: int = 0) -> Chunk:
    """Samples whose value is their index (modulo what the dtype holds exactly)."""
    values = (np.arange(first, first + count) % 30_000).astype(fmt.dtype)
    values = np.broadcast_to(values.reshape(-1, *[1] * len(fmt.shape)), (count, *fmt.shape)).copy()
    values.setflags(write=False)
    return Chunk(Header("s", origin_ns, fmt), first, values)


@given(st.integers(1, 40), st.integers(1, 40), st.data())
@settings(max_examples=150, deadline=None)
def test_windows_are_slices_of_the_recording(length: int, hop: int, data: st.DataObject) -> None:
    runs = data.draw(recordings(imu(2, "int16"), 70))
    wanted = {}
    for run_ in runs:
        for k in range(-(-run_.first // hop), run_.end // hop + 1):
            start = k * hop
            if run_.first <= start and start + length <= run_.end:
                wanted[start] = (
                    run_.header.origin_ns,
                    run_.data[start - run_.first : start - run_.first + length].tolist(),
                )
    came = run(Windows(length, hop), data.draw(cuttings(runs)))
    assert {w.start_index: (w.header.origin_ns, w.data.tolist()) for w in came} == wanted
    assert all(w.end_index == w.start_index + length for w in came)
    assert [w.start_index for w in came] == sorted(wanted)


@given(st.integers(1, 7), st.integers(1, 12), st.integers(1, 8), st.integers(0, 30), st.integers(1, 200))
def test_a_window_holds_the_columns_inside_it(step: int, span: int, k: int, extra: int, count: int) -> None:
    fmt = Format("spectrogram", ("a",), (), Fraction(100, step), "float32", (2, 1), Fraction(step), span)
    length, hop = span + extra, k * step
    rows = [r for r in range(length) if r * step + span <= length]
    came = run(Windows(length, hop), [numbered(fmt, 0, count)])
    assert Windows(length, hop).rows(fmt) == len(rows)
    starts = [s for s in range(0, count * step, hop) if s // step + len(rows) <= count]
    assert [w.start_index for w in came] == starts
    for w in came:
        assert w.data[:, 0, 0].tolist() == [w.start_index // step + r for r in rows]
        assert (w.start_ns, w.end_ns) == (w.start_index * 10**7, w.end_index * 10**7)


def test_twenty_seconds_at_500_hz_hold_46_columns() -> None:
    fmt = Format("spectrogram", ("a",), (), Fraction(500, 200), "float32", (223, 1), Fraction(200), 1000)
    assert Windows(10_000, 5_000).output({"spectrogram": fmt}).rows == 46


def test_a_fractional_step_between_rows() -> None:
    fmt = replace(imu(1), rate=Fraction(64), step=Fraction(25, 16))  # 100 Hz made 64 Hz
    came = run(Windows(100, 25), [numbered(fmt, 0, 100)])
    assert Windows(100, 25).rows(fmt) == 64
    assert [(w.start_index, int(w.data[0, 0])) for w in came] == [(0, 0), (25, 16), (50, 32)]
    assert [w.start_ns for w in came] == [0, 250_000_000, 500_000_000]
    with pytest.raises(FormatError, match="no multiple"):
        Windows(100, 10).output({"imu": fmt})


@given(st.integers(-(2**61), 2**62 - 10**12), st.integers(0, 10**9), st.fractions(Fraction(1, 100), 10**6))
def test_times_are_exact_integers(origin: int, index: int, rate: Fraction) -> None:
    time = sample_time_ns(origin, rate, index)
    assert time == origin + int(Fraction(index) * 10**9 / rate)
    assert index_at(origin, rate, time) == index or rate > 10**9
    assert sample_time_ns(origin, rate, index_at(origin, rate, time + 1)) >= time + 1


def test_only_what_an_open_window_needs_is_held() -> None:
    stage = Windows(10, 4).build()
    for first in range(0, 60, 3):
        stage.push(numbered(imu(), first, 3))
        whole = max(0, (first + 3 - 10) // 4 + 1)
        assert stage.needs_from == {"imu": whole * 4}
        assert len(stage.snapshot()) < 1000


def test_a_hop_longer_than_the_window_leaves_samples_out() -> None:
    stage = Windows(3, 10).build()
    assert [w.start_index for w in stage.push(numbered(imu(), 0, 4))] == [0]
    assert stage.needs_from == {"imu": 10}
    assert [w.data[:, 0].tolist() for w in stage.push(numbered(imu(), 4, 12))] == [[10, 11, 12]]


def test_frames_of_video_as_bytes_survive_a_snapshot() -> None:
    fmt = Format("video", ("rgb",), (), Fraction(10), "jpeg", ())
    frames = np.empty(5, object)
    frames[:] = [b"a", b"", b"ccc", b"dd", b"e"]
    stage, again = Windows(4, 2).build(), Windows(4, 2).build()
    header = Header("s", 0, fmt)
    stage.push(Chunk(header, 0, frames[:3]))
    again.restore(stage.snapshot())
    (window,) = again.push(Chunk(header, 3, frames[3:]))
    assert window.data.tolist() == [b"a", b"", b"ccc", b"dd"]


def test_an_empty_chunk_anywhere_changes_nothing() -> None:
    stage, chunk = Windows(6, 3).build(), numbered(imu(), 0, 4)
    stage.push(chunk)
    for first in (0, 2, 4, 99):
        assert stage.push(replace(chunk, first_index=first, data=chunk.data[:0], end=True)) == []
    assert [w.start_index for w in stage.push(numbered(imu(), 4, 3))] == [0]


def test_a_format_that_is_refused_changes_nothing() -> None:
    stage, wrong = Windows(4, 2).build(), numbered(replace(imu(), span=1000), 0, 4)
    for _ in range(2):
        with pytest.raises(FormatError):
            stage.push(wrong)
    assert stage.needs_from == {}
    assert [w.start_index for w in stage.push(numbered(imu(), 0, 4))] == [0]
    with pytest.raises(FormatError):
        stage.push(replace(wrong, first_index=4))
    assert [w.start_index for w in stage.push(numbered(imu(), 4, 2))] == [2]


def test_windows_share_no_memory_with_their_input_or_each_other() -> None:
    chunk = numbered(imu(), 0, 20)
    a, b, *_ = run(Windows(10, 4), [chunk])
    assert not np.shares_memory(a.data, b.data)
    assert not np.shares_memory(a.data, chunk.data)


@pytest.mark.parametrize(
    ("name", "parameters", "says"),
    [
        ("windows", {"length": 0, "hop": 1}, "length 0, expected a whole number from 1"),
        ("windows", {"length": 10.5, "hop": 2}, "whole number"),
        ("windows", {"length": 10, "hop": "2"}, "whole number"),
        ("windows", {"length": 10, "hop": True}, "whole number"),
        ("windows", {"length": 10, "hopp": 2}, "did you mean 'hop'"),
        ("windows", {"length": 10}, "hop"),
        ("window", {"length": 10}, "did you mean 'windows'"),
        ("intake", {"bridge": 1.5}, "whole number"),
        ("intake", {"max_missing": 2}, "from 0 to 1"),
        ("intake", {"max_missing": "x"}, "max_missing"),
        ("chain", {"specs": []}, "no steps"),
    ],
)
def test_wrong_parameters_are_named(name: str, parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(FormatError, match=says):
        make_step(name, parameters)


@pytest.mark.parametrize(
    "described",
    [{}, {"step": 3}, [], "windows", {"step": "chain", "specs": [{"step": "no"}]}, {"step": "chain", "specs": [3]}],
)
def test_json_that_describes_no_step_is_named(described: Any) -> None:
    with pytest.raises(FormatError):
        spec_from_json(described)


def test_steps_in_the_wrong_place_fail_when_declared() -> None:
    with pytest.raises(FormatError, match="behind the window"):
        PerWindow(Windows(3, 3))
    with pytest.raises(FormatError, match="no window"):
        Chain((Intake(), PerWindow(make_step("log", {})))).output({"imu": imu()})
    with pytest.raises(FormatError, match="behind the window"):
        Chain((Windows(5, 5), make_step("log", {}))).output({"imu": imu()})
    with pytest.raises(FormatError, match="fewer than"):
        Windows(9, 4).output({"s": Format("s", ("a",), (), Fraction(1), "float32", (1,), Fraction(4), 10)})


def test_what_a_chain_keeps_of_a_session_is_known_before_any_data_come() -> None:
    fmt = signal_format("eeg", tuple(f"c{i}" for i in range(64)), 500, "float64")
    raw = Chain((Intake(dtype="float64"), Windows(20_000, 10_000)))
    assert raw.memory_bytes(fmt) == 20_000 * 64 * 8
    columns = Chain((Intake(dtype="float64"), Spectrogram(nperseg=1000, noverlap=800), Windows(20_000, 10_000)))
    rows, bins = 96, 501
    assert columns.memory_bytes(fmt) == 1000 * 64 * 8 + rows * bins * 64 * 8


def test_a_window_that_waits_holds_no_more_than_itself() -> None:
    """Where windows lie far apart, most of a large message belongs to none."""
    chain = Chain((Intake(), Windows(10, 5_000)))
    data = np.arange(100_000, dtype=np.float32)[:, None]
    windows = chain.build().push(Chunk(Header("s", 0, signal_format("imu", ("x",), 100)), 0, data))
    assert len(windows) == 20
    for window in windows:
        assert isinstance(window.pieces, list)
        assert all(piece.base is None for piece in window.pieces)
        assert window.data[:, 0].tolist() == list(range(window.start_index, window.start_index + 10))


HEADER = Header("s", 0, signal_format("imu.wrist", ("a", "b"), 100))


SAMPLES = np.random.default_rng(7).standard_normal((3000, 2)).astype(np.float32)


WHOLE = Chain(
    (
        Intake(bridge=5, fill=30, max_missing=0.1),
        Spectrogram(nperseg=20, noverlap=16, chunk_frames=6, chunk_phase=3),
        Log(),
        Windows(100, 24),
    )
)


def recording(cut: int) -> Iterator[Chunk]:
    """A gap to bridge, one to fill, one that no window spans."""
    for a, b in [(0, 500), (503, 900), (908, 2000), (2100, 3000)]:
        for i in range(a, b, cut):
            yield Chunk(HEADER, i, SAMPLES[i : min(b, i + cut)])


def fields(w: Window) -> tuple[Any, ...]:
    return w.start_index, w.start_ns, w.end_ns, w.missing, w.header.format, w.data.shape, w.data.tobytes()


@pytest.mark.parametrize("cut", [7, 37, 400])
def test_halves_give_the_windows_of_the_whole(cut: int) -> None:
    first, rest = WHOLE.split(HEADER.format)
    codec = ChunkCodec()
    derived = [codec.decode(codec.encode(chunk)) for chunk in run(first, recording(cut))]
    assert {c.header.chain for c in derived} == {first.derived_digest()}
    expected = run(WHOLE, recording(cut))
    assert {w.missing for w in expected} == {0.0, 0.03, 0.08}
    assert list(map(fields, run(rest, derived))) == list(map(fields, expected))


STEPS_BEFORE: list[tuple[Spec, ...]] = [
    (Scale(2.0),),
    (Spectrogram(nperseg=20, noverlap=16), Log()),
    (Resample(up=1, down=2), Spectrogram(nperseg=10, noverlap=8)),
]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_halves_give_the_windows_of_the_whole_for_any_window(seed: int) -> None:
    pick = random.Random(seed)
    length, hop, most = pick.randint(10, 60) * 4, pick.randint(1, 30) * 4, pick.choice([0.0, 0.1, 0.5])
    steps = [
        with_borders(spec, pick.randint(1, 6), pick.randint(0, 5)) if isinstance(spec, Spectrogram) else spec
        for spec in pick.choice(STEPS_BEFORE)
    ]
    whole = Chain(
        (Intake((), (), "float32", pick.choice([0, 5]), int(most * length), most), *steps, Windows(length, hop))
    )
    at, chunks = pick.choice([0, 30]), list[Chunk]()
    while at < 2000:
        size = pick.choice([7, 40, 300])
        chunks.append(Chunk(HEADER, at, SAMPLES[at : at + size]))
        at += size + (pick.choice([3, 9, 30, 200]) if pick.random() < 0.2 else 0)
    first, rest = whole.split(HEADER.format)
    assert list(map(fields, run(rest, run(first, chunks)))) == list(map(fields, run(whole, chunks)))


def test_repeated_chunks_change_nothing() -> None:
    first, rest = WHOLE.split(HEADER.format)
    derived = run(first, recording(50))
    again = [chunk for i, chunk in enumerate(derived) for chunk in (chunk, *derived[max(0, i - 1) : i])]
    assert list(map(fields, run(rest, again))) == list(map(fields, run(rest, derived)))


def test_digest_tells_recipes_apart() -> None:
    other = Chain((Intake(bridge=6), *WHOLE.specs[1:])).split(HEADER.format)[0]
    assert other.derived_digest() != WHOLE.split(HEADER.format)[0].derived_digest()


def test_a_chain_without_steps_before_the_window_has_no_derived_stream() -> None:
    with pytest.raises(FormatError, match="no step stands before the window"):
        Chain((Intake(), Windows(10, 5))).split(HEADER.format)


def test_range_is_checked() -> None:
    with pytest.raises(FormatError, match="max_missing"):
        Derived(max_missing=2.0)


def test_a_gap_that_two_chunks_rest_on_counts_once_however_they_are_joined() -> None:
    fmt = replace(signal_format("spectrogram", ("x",), 1), step=Fraction(8), span=16)
    header = Header("s", 0, fmt, "c")
    gap = ((7, 10, True),)

    def missing(*chunks: Chunk) -> list[float]:
        stage = Chain((Derived("c", 1.0), Windows(32, 32))).build()
        return [window.missing for item in chunks for window in stage.push(item)]

    rows = np.zeros((3, 1), np.float32)
    apart = missing(*(Chunk(header, i, rows[i : i + 1], filled=gap if i < 2 else ()) for i in range(3)))
    joined = missing(Chunk(header, 0, rows, filled=gap + gap))
    assert apart == joined == [3 / 32]
