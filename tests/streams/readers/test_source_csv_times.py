"""Times and rates of CSV files: exact, snapped to a grid, with gaps, or refused."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from csv_files import Write, error_of, one, timed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kymo.streams.recording import InputOptions, ReadOptions


@pytest.mark.parametrize(
    ("column", "texts", "origin_ns", "note"),
    [
        (
            "timestamp",
            ["2024-01-02T03:04:05.000000001Z", "2024-01-02T03:04:05.100000001Z"],
            1_704_164_645_000_000_001,
            "ISO 8601",
        ),
        (
            "timestamp",
            ["2024-01-02 04:04:05+01:00", "2024-01-02 04:04:05.1+01:00"],
            1_704_164_645_000_000_000,
            "ISO 8601",
        ),
        ("timestamp", ["2024-01-02T03:04:05", "2024-01-02T03:04:05.1"], 1_704_164_645_000_000_000, "taken as UTC"),
        ("timestamp", ["1704164645.000000001", "1704164645.100000001"], 1_704_164_645_000_000_001, "read as s "),
        ("timestamp", ["1704164645000000001", "1704164645100000001"], 1_704_164_645_000_000_001, "read as ns "),
        ("timestamp", ["1704164645000000", "1704164645100000"], 1_704_164_645_000_000_000, "read as µs "),
        ("t_ns", ["1704164645000000001", "1704164645100000001"], 1_704_164_645_000_000_001, "rate 10 Hz"),
        ("t", ["1704164645.000000001", "1704164645.100000001"], 1_704_164_645_000_000_001, "rate 10 Hz"),
        ("t", ["-0.05", "0.05"], -50_000_000, "rate 10 Hz"),
    ],
)
def test_time_columns_are_exact(write: Write, column: str, texts: list[str], origin_ns: int, note: str) -> None:
    recording = one(write(f"{column},ax\n" + "".join(f"{text},1\n" for text in texts)))
    header = recording.streams[0].header
    assert (header.origin_ns, header.format.rate) == (origin_ns, 10)
    assert note in recording.notes[0]


def test_a_rate_must_come_from_somewhere(write: Write) -> None:
    path = write("ax\n1\n2\n")
    assert str(error_of(path)) == (
        f"{path}: nothing gives the sampling rate: add a time column (`t` in s, `t_ns`, or `timestamp`), "
        "or say `rate_hz` in the recipe's [[input]]"
    )
    assert "give `rate_hz`" in str(error_of(write("t,ax\n1,1\n")))


def test_gaps_duplicates_and_order(write: Write) -> None:
    rows = timed(12)
    gap = one(write("\n".join(["t,ax", *rows[:4], *rows[7:]])))
    assert [first for first, _ in gap.streams[0].pieces] == [0, 7]
    assert gap.notes[1:] == ["1 gap, 3 samples (0.3 s) missing, first before row 6"]
    again = one(write("\n".join(["t,ax", *rows[:4], rows[3], "0.3,99", *rows[4:]])))
    assert again.streams[0].data[:, 0].tolist() == list(range(12))
    assert again.notes[1:] == ["2 repeated samples (1 with other values), first at row 6: the first of each is kept"]
    mixed = one(write("\n".join(["t,ax", *rows[:4], rows[5], rows[4], *rows[6:]])))
    assert mixed.streams[0].data[:, 0].tolist() == list(range(12))
    assert mixed.notes[0] == "1 time earlier than the one before, first at row 7: sorted by time"


def test_two_recordings_in_one_file_are_refused(write: Write) -> None:
    path = write("\n".join(["t,ax", *timed(5), *(f"{i / 10},{i + 50}" for i in range(5))]))
    error = error_of(path)
    assert error.row == 7
    assert (
        "time goes back by 0.4 s, and the same times come again with other values: two recordings in one file"
        in str(error)
    )


def test_a_wrong_rate_is_refused_and_a_near_one_is_numbered_by_the_file(write: Write) -> None:
    path = write("\n".join(["t,ax", *timed(2_000, 49.9)]))
    wrong = ReadOptions(inputs=(InputOptions("imu", ("ax",), Fraction(100)),))
    assert str(error_of(path, wrong)).endswith(
        "the times say 49.9 Hz, the recipe says 100 Hz; correct `rate_hz`, or the time column"
    )
    near = one(path, ReadOptions(inputs=(InputOptions("imu", ("ax",), Fraction(50)),)))
    assert len(near.streams[0].pieces) == 1
    assert near.notes == [
        "the file's clock runs at 49.9 Hz, numbered as 50 Hz: the last sample's time is off by -0.080 s"
    ]


@pytest.mark.parametrize("rate", ["500", "32", "10", "0.2", "12.5", "1/3", "30000/1001", "31.25", "1000", "48000"])
def test_rates_are_snapped(write: Write, rate: str) -> None:
    exact = Fraction(rate)
    path = write("\n".join(["t_ns,ax", *(f"{round(i * 10**9 / exact)},{i}" for i in range(400))]))
    assert one(path).streams[0].header.format.rate == exact


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([10, 30, 100, 500]))
def test_jitter_and_ms_rounding_make_no_gap(tmp_path: Path, seed: int, rate: int) -> None:
    jitter = np.random.default_rng(seed).uniform(-0.4, 0.4, 3_000) / rate
    times = np.arange(3_000) / rate + jitter
    path = tmp_path / "jitter.csv"
    path.write_text(
        "\n".join(["t,ax", *(f"{t:.3f},{i}" for i, t in enumerate(times - times[0]))])
        if rate < 500
        else "\n".join(["t,ax", *(f"{t:.6f},{i}" for i, t in enumerate(times - times[0]))])
    )
    recording = one(path, ReadOptions(inputs=(InputOptions("imu", ("ax",), Fraction(rate)),)))
    assert [(first, len(piece)) for first, piece in recording.streams[0].pieces] == [(0, 3_000)]
    np.testing.assert_array_equal(recording.streams[0].data[:, 0], np.arange(3_000))


def test_times_without_a_grid(write: Write) -> None:
    times = np.cumsum(np.random.default_rng(0).exponential(0.1, 200))
    path = write("\n".join(["t,ibi", *(f"{t},{i}" for i, t in enumerate(times))]))
    assert "the times lie on no grid" in str(error_of(path)) or "times fall on a sample" in str(error_of(path))
    recording = one(path, ReadOptions(inputs=(InputOptions("ibi", ("ibi",), Fraction(0)),)))
    assert recording.streams[0].header.format.rate == 0
    np.testing.assert_array_equal(recording.streams[0].times_ns, np.rint(times * 1e9).astype(np.int64))


def test_times_too_coarse_for_the_rate(write: Write) -> None:
    path = write("\n".join(["t,ax", *(f"{i // 50},{i}" for i in range(200))]))
    options = ReadOptions(inputs=(InputOptions("imu", ("ax",), Fraction(1)),))
    assert "the times are too coarse; leave the time column out" in str(error_of(path, options))


def test_streams_of_different_rates_side_by_side(write: Write) -> None:
    rows = ["t,bvp,eda,label", *(f"{i / 64:.6f},{i},{i if i % 16 == 0 else ''},a" for i in range(256))]
    options = ReadOptions(
        inputs=(
            InputOptions("eda", ("eda",), Fraction(4)),
            InputOptions("bvp", ("bvp",), Fraction(64)),
            InputOptions("pupil", ("pd",)),
        )
    )
    recording = one(write("\n".join(rows)), options)
    assert [(s.header.format.stream, s.count, s.header.format.rate) for s in recording.streams] == [
        ("eda", 16, 4),
        ("bvp", 256, 64),
    ]
    assert recording.notes == ["no column of stream `pupil`: read without it"]
    assert [(label.start_ns, label.end_ns) for label in recording.labels] == [(0, 4 * 10**9)]
