"""Columns of times by other names, rates within what rounded times can say, and cells that are empty."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import kymo
from kymo.deploy.doctor import Facts, StreamFacts, explain, window_count
from kymo.processors.recipe.load import load_recipe
from kymo.streams.chunk import Chunk, Header
from kymo.streams.errors import SourceError
from kymo.streams.readers import read
from kymo.streams.recording import ReadOptions, Recording


def one(path: Path) -> Recording:
    (found,) = read([path], ReadOptions())
    return found


def write(path: Path, head: str, rows: list[str]) -> Path:
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Time", "{:.2f}"),
        ("TIME", "{:.3f}"),
        ("T", "{:.2f}"),
        ("time_s", "{:.2f}"),
        ("Timestamp", "17700{:08.2f}"),
        ("Time", "2026-01-01T00:00:{:05.2f}Z"),
    ],
)
def test_a_column_of_times_by_another_name(tmp_path: Path, name: str, text: str) -> None:
    rows = [f"{text.format(i / 50)},{math.sin(i):.3f}" for i in range(200)]
    (stream,) = one(write(tmp_path / "a.csv", f"{name},ax", rows)).streams
    assert (stream.header.format.channels, stream.header.format.rate) == (("ax",), 50)
    assert stream.count == 200


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("Time (s)", 1),
        ("time [ms]", 1000),
        ("Timestamp(\u00b5s)", 10**6),
        ("t (\u03bcs)", 10**6),
        ("time_ms", 1000),
        ("Elapsed time (s)", 1),
        ("elapsed_time_s", 1),
    ],
)
def test_a_name_that_says_its_unit(tmp_path: Path, name: str, unit: int) -> None:
    """Also where the times are not even, and where a number of seconds would be as likely."""
    times = [i / 50 + (i > 90) * 3 for i in range(200)]
    rows = [f"{t * unit:.10g},{math.sin(i):.3f}" for i, t in enumerate(times)]
    (stream,) = one(write(tmp_path / "a.csv", f"{name},ax", rows)).streams
    assert (stream.header.format.channels, stream.header.format.rate) == (("ax",), 50)
    assert [first for first, _ in stream.pieces] == [0, 241]


def test_of_several_columns_of_times_the_time_of_day_counts(tmp_path: Path) -> None:
    rows = [f"2024-05-01T18:36:{i / 50:06.3f}Z,{i / 50:.2f},{i}" for i in range(200)]
    (stream,) = one(write(tmp_path / "a.csv", "Timestamp,Elapsed (s),ax", rows)).streams
    assert (stream.header.origin_ns, stream.header.format.rate) == (1_714_588_560 * 10**9, 50)
    from kymo.streams.recording import InputOptions

    asked = ReadOptions(inputs=(InputOptions("sensor", ("ax", "elapsed_s"), Fraction(50)),))
    rows = [f"{i / 50 + (i > 90):.2f},{i},{i}" for i in range(200)]
    (found,) = read([write(tmp_path / "b.csv", "Time,elapsed_s,ax", rows)], asked)
    assert [first for first, _ in found.streams[0].pieces] == [0, 141]


def test_a_colon_before_something_else_is_no_time(tmp_path: Path) -> None:
    stamps = [f"2024-05-01 18:36:{24 + i // 2:02d}:{5 * (i % 2)}" for i in range(40)]
    path = write(tmp_path / "a.csv", "timestamp,ax", [f"{t},{i}" for i, t in enumerate(stamps)])
    with pytest.raises(SourceError, match="2024-05-01 18:36:24:0"):
        one(path)


def test_a_cut_last_row_hides_no_times(tmp_path: Path) -> None:
    rows = [f"2024-05-01T18:36:{i / 50:06.3f}Z,{i},{i}" for i in range(100)]
    (tmp_path / "a.csv").write_text("\n".join(["Time,ax,ay", *rows, "2024-05-01T18:3"]))
    recording = one(tmp_path / "a.csv")
    assert (recording.streams[0].count, recording.streams[0].header.format.rate) == (100, 50)


def test_a_unit_of_something_else_makes_no_times(tmp_path: Path) -> None:
    rows = [f"{i / 50:.2f},{i},{i}" for i in range(100)]
    (stream,) = one(write(tmp_path / "a.csv", "t,T (C),latency (ms)", rows)).streams
    assert stream.header.format.channels == ("T (C)", "latency (ms)")


@pytest.mark.parametrize("form", ["{}:{:03d}", "{},{:03d}", "{}.{:03d}"])
@pytest.mark.parametrize("zone", ["", "Z", "+02:00"])
def test_milliseconds_behind_a_colon_count(tmp_path: Path, form: str, zone: str) -> None:
    """A log of 2 Hz, as some loggers write it; a comma needs quotes."""
    stamps = [form.format(f"2024-05-01 18:36:{24 + i // 2:02d}", 395 + 500 * (i % 2)) + zone for i in range(40)]
    (stream,) = one(write(tmp_path / "a.csv", "timestamp,ax", [f'"{t}",{i}' for i, t in enumerate(stamps)])).streams
    assert (stream.count, stream.header.format.rate) == (40, 2)
    assert stream.header.origin_ns % 10**9 == 395_000_000


def test_nanoseconds_by_another_name(tmp_path: Path) -> None:
    (stream,) = one(write(tmp_path / "a.csv", "Time_ns,ax", [f"{i * 20_000_000},{i % 7}" for i in range(200)])).streams
    assert (stream.header.format.channels, stream.header.format.rate) == (("ax",), 50)


def test_what_is_no_time_stays_a_channel(tmp_path: Path) -> None:
    """A temperature may be called T; a column that is named as times are is taken as such whatever else is there."""
    rows = [f"{i / 50:.2f},{36 + math.sin(i / 9):.3f},{i}" for i in range(100)]
    (stream,) = one(write(tmp_path / "a.csv", "t,T,Time", rows)).streams
    assert stream.header.format.channels == ("T",)  # `Time` counts rows here
    rows = [f"{36 + math.sin(i / 9):.3f},{i % 5}" for i in range(100)]
    from kymo.streams.recording import InputOptions

    options = ReadOptions(inputs=(InputOptions("sensor", (), Fraction(50)),))
    (found,) = read([write(tmp_path / "b.csv", "T,ax", rows)], options)
    assert found.streams[0].header.format.channels == ("T", "ax")
    rows = [f"{i / 50:.2f},{i % 5}" for i in range(100)]
    asked = ReadOptions(inputs=(InputOptions("sensor", ("Time", "ax"), Fraction(50)),))
    (found,) = read([write(tmp_path / "c.csv", "Time,ax", rows)], asked)
    assert found.streams[0].header.format.channels == ("Time", "ax")


def test_times_of_an_unknown_unit_are_no_channel_and_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "Time,ax", [f"{1000 * i},{i % 5}" for i in range(100)])
    (found,) = read([path], at_rate(50))
    assert found.streams[0].header.format.channels == ("ax",)
    assert any("`Time` holds times in an unknown unit (steps of 1000)" in note for note in found.notes)


def at_rate(rate: int) -> ReadOptions:
    from kymo.streams.recording import InputOptions

    return ReadOptions(inputs=(InputOptions("sensor", (), Fraction(rate)),))


@pytest.mark.parametrize("name", ["timestamp", "Time", "SampleTimeFine", "device_timestamp", "__time"])
@pytest.mark.parametrize(
    ("first", "step", "rate"),
    [
        (0, 20, 50),  # a microcontroller's milliseconds
        (123_456, 10, 100),
        (3_343_427_885, 16_667, 60),  # a chip's microseconds
        (86_000 * 10**9, 4_000_000, 250),  # nanoseconds since the machine was started
        (1_700_000_000, 0.02, 50),
        (1_700_000_000_000, 20, 50),
        (1_700_000_000_000_000, 20_000, 50),
        (0, 0.02, 50),
        (45_000.5, 1 / 86_400 / 8, 8),  # a table program's days
    ],
)
def test_the_unit_is_the_one_whose_steps_make_sense(
    tmp_path: Path, name: str, first: float, step: float, rate: int
) -> None:
    if name == "SampleTimeFine" and step in (10, 20) and first < 10**9:
        step = 10_000 // rate  # of ten thousandths of a second
    rows = [
        f"{first + i * step:.12f},{i % 7}" if isinstance(step, float) else f"{first + i * step},{i % 7}"
        for i in range(300)
    ]
    for options in (ReadOptions(), at_rate(rate)):
        (found,) = read([write(tmp_path / "a.csv", f"{name},ax", rows)], options)
        stream = found.streams[0]
        assert stream.header.format.channels == ("ax",)
        assert float(stream.header.format.rate) == pytest.approx(rate, 1e-3), found.notes
        assert [first for first, _ in stream.pieces] == [0]


def test_a_table_programs_days_are_dates(tmp_path: Path) -> None:
    rows = [f"{45_292 + i / 86_400:.11f},{i}" for i in range(100)]  # from 2024-01-01
    (stream,) = one(write(tmp_path / "a.csv", "timestamp,ax", rows)).streams
    assert abs(stream.header.origin_ns - 1_704_067_200 * 10**9) < 10**6
    assert stream.header.format.rate == 1


def test_a_unit_in_doubt_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "timestamp,ax", [f"{1000 * i},{i % 5}" for i in range(100)])
    with pytest.raises(SourceError, match=r"steps of 1000.*name it `time_s`, `time_ms`"):
        one(path)
    (stream,) = one_with(path, at_rate(1)).streams
    assert stream.header.format.rate == 1  # as milliseconds


def one_with(path: Path, options: ReadOptions) -> Recording:
    (found,) = read([path], options)
    return found


@pytest.mark.parametrize(
    "name", ["seconds_elapsed", "Elapsed (s)", "frame", "PacketCounter", "sample_index", "Unnamed: 0"]
)
def test_what_counts_time_or_rows_is_no_channel(tmp_path: Path, name: str) -> None:
    rows = [f"{1_700_000_000 + i / 50:.2f},{i / 50 if 'lapsed' in name else i},{i % 5}" for i in range(200)]
    recording = one(write(tmp_path / "a.csv", f"timestamp,{name},ax", rows))
    assert recording.streams[0].header.format.channels == ("ax",)
    assert any(name in note and "left out" in note for note in recording.notes)


@pytest.mark.parametrize("name", ["frame", "sample", "PacketCounter"])
def test_a_counter_with_holes_numbers_the_samples(tmp_path: Path, name: str) -> None:
    numbers = [i for i in range(300) if not 100 <= i < 130]
    rows = [f"{i + 17},{i % 5},{'a' if i < 200 else 'b'}" for i in numbers]
    recording = one_with(write(tmp_path / "a.csv", f"{name},ax,label", rows), at_rate(64))
    assert [first for first, _ in recording.streams[0].pieces] == [0, 130]
    assert [(label.start_ns * 64 // 10**9, label.label) for label in recording.labels][-1] == (217, "b")


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for n, times in enumerate(([i / 50 for i in range(100)], [1_000_000_000 + 20_000 * i for i in range(100)])):
        column = pa.array(times) if n == 0 else pa.array(times, pa.timestamp("us"))
        parquet.write_table(
            pa.table({"Time": column, "ax": [float(i % 7) for i in range(100)]}), tmp_path / f"{n}.parquet"
        )
        (stream,) = one(tmp_path / f"{n}.parquet").streams
        assert (stream.header.format.channels, stream.header.format.rate) == (("ax",), 50)


@pytest.mark.parametrize(
    ("text", "rate", "count", "expected"),
    [
        ("{:.3f}", 50.0, 101, 50),  # the last step is cut short: the times say 49.99
        ("{:.3f}", 32.0, 90, 32),
        ("{:.3f}", 64.0, 90, 64),
        ("{:.2f}", 100.0, 400, 100),
        ("{:.6f}", 49.99, 3000, Fraction(4999, 100)),  # exact times: it is 49.99
        ("{:.3f}", 51.2, 600, Fraction(256, 5)),
        ("{:.3f}", 52.0, 600, 52),
    ],
)
def test_a_rate_within_what_rounded_times_can_say(
    tmp_path: Path, text: str, rate: float, count: int, expected: Fraction
) -> None:
    times = [i / rate for i in range(count)]
    if (rate, count) == (50.0, 101):
        times[-1] += 0.0004 + 0.0004 / 50  # rounds up by one ms
        times = [t + 0.00005 for t in times]
        times[-1] += 0.00008
    rows = [f"{text.format(t)},{i % 7}" for i, t in enumerate(times)]
    assert one(write(tmp_path / "a.csv", "t,ax", rows)).streams[0].header.format.rate == expected


def test_init_says_what_is_missing_and_makes_windows_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for n in range(3):
        empty = {0: (), 1: (100,), 2: (30, 31, 170)}[n]
        rows = [f"{i / 32},{'' if i in empty else i % 7},1.{i % 3}" for i in range(320)]
        write(Path("data") / f"r{n}.csv", "t,x,y", rows)
    done = CliRunner().invoke(kymo.cli, ["init", "holes", "--from", "data"])
    assert done.exit_code == 0, done.output
    assert (
        "4 samples with empty or NaN cells, in 2 of 3 recordings (most in r2: 3): no window spans one; "
        "see bridge_ms and max_missing"
    ) in done.stderr
    assert load_recipe("holes").window_length <= 149  # r2's longest run


def test_doctor_counts_windows_that_empty_cells_leave() -> None:
    recipe = load_recipe("basicmotions")  # windows of 50 samples every 10
    fmt = recipe.input_format()
    data = np.zeros((130, 6), np.float32)
    data[60, 2] = np.nan
    facts = StreamFacts(fmt, "t.sensor", [[0, 0]])
    for first in range(0, 130, 13):
        facts.add(Chunk(Header("s", 0, fmt), first, data[first : first + 13]), first)
    facts.add(Chunk(Header("s", 0, fmt), 52, data[52:65]), 200)  # sent again
    assert (facts.runs, facts.empty) == ([[0, 60], [61, 130]], 1)
    assert window_count(recipe, facts.runs) == 2 + 2
    windows = next(check for check in explain(recipe, Facts("s", streams={"imu": facts})) if check.name == "windows")
    assert windows.text == ("129 samples (12.9 s, 1 gap (1 sample with empty or NaN cells among them)) hold 4 windows")


@pytest.mark.parametrize("odd", [1, 2])
def test_rows_from_before_the_clock_was_set(tmp_path: Path, odd: int) -> None:
    rows = [f"{i / 50:.2f},7" for i in range(odd)] + [f"{1_700_000_000 + i / 50:.2f},{i % 5}" for i in range(odd, 200)]
    recording = one(write(tmp_path / "a.csv", "timestamp,ax", rows))
    (stream,) = recording.streams
    assert (stream.count, stream.header.format.rate) == (200 - odd, 50)
    assert [first for first, _ in stream.pieces] == [0]
    assert any("54 years before the others, first at row 2" in note for note in recording.notes)


def test_a_clock_that_was_set_half_way(tmp_path: Path) -> None:
    rows = [f"{i / 50 + (i > 100) * 1_700_000_000:.2f},{i % 5}" for i in range(200)]
    with pytest.raises(SourceError, match=r"row 103.*jumps by 54 years"):
        one(write(tmp_path / "a.csv", "t,ax", rows))


def test_a_device_that_began_anew_is_no_out_of_order(tmp_path: Path) -> None:
    """Its times fall between those of before; parts that merely stand in another order are sorted."""
    rows = [f"{(i % 150) / 50 + (i >= 150) * 0.007:.3f},{i % 5}" for i in range(300)]
    with pytest.raises(SourceError, match=r"row 152: time goes back by .* two recordings in one file"):
        one(write(tmp_path / "a.csv", "t,ax", rows))
    rows = [f"{(i + 150) % 300 / 50:.2f},{i % 5}" for i in range(300)]
    (stream,) = one(write(tmp_path / "b.csv", "t,ax", rows)).streams
    assert (stream.count, [first for first, _ in stream.pieces]) == (300, [0])
