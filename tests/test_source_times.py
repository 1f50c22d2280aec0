"""Columns of times by other names, rates within what rounded times can say, and cells that are empty."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import kymo
from deploy.doctor_session import Facts, StreamFacts, explain, window_count
from processors.recipe import load_recipe
from streams.chunk import Chunk, Header
from streams.errors import SourceError
from streams.recording import ReadOptions, Recording
from streams.sources import read


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
    from streams.recording import InputOptions

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
    assert stream.header.format.channels == ("T", "Time")
    rows = [f"{36 + math.sin(i / 9):.3f},{i % 5}" for i in range(100)]
    from streams.recording import InputOptions

    options = ReadOptions(inputs=(InputOptions("sensor", (), Fraction(50)),))
    (found,) = read([write(tmp_path / "b.csv", "T,ax", rows)], options)
    assert found.streams[0].header.format.channels == ("T", "ax")
    rows = [f"{i / 50:.2f},{i % 5}" for i in range(100)]
    asked = ReadOptions(inputs=(InputOptions("sensor", ("Time", "ax"), Fraction(50)),))
    (found,) = read([write(tmp_path / "c.csv", "Time,ax", rows)], asked)
    assert found.streams[0].header.format.channels == ("Time", "ax")


def test_times_of_an_unknown_unit_are_no_channel_and_said(tmp_path: Path) -> None:
    from streams.recording import InputOptions

    options = ReadOptions(inputs=(InputOptions("sensor", (), Fraction(50)),))
    path = write(tmp_path / "a.csv", "Time,ax", [f"{20 * i},{i % 5}" for i in range(100)])
    (found,) = read([path], options)
    assert found.streams[0].header.format.channels == ("ax",)
    assert any("`Time` looks like times in an unknown unit (steps of 20)" in note for note in found.notes)


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
