"""Times and rates of CSV files: exact, snapped to a grid, counted where they are times of arrival, with gaps, or refused."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tables import Write, error_of, one, refused, timed

from kymo.streams.errors import SourceError
from kymo.streams.readers.grid import Grid, RowNumbers, fit
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
    assert error_of(path) == (
        "nothing gives the sampling rate: add a time column (`t` in s, `t_ns`, or `timestamp`), "
        "or say `rate_hz` in the recipe's [[input]]"
    )
    assert "give `rate_hz`" in error_of(write("t,ax\n1,1\n"))


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
    error = refused(path)
    assert error.row == 7
    assert (
        "time goes back by 0.4 s, and the same times come again with other values: two recordings in one file"
        in str(error)
    )


def test_a_wrong_rate_is_refused_and_a_near_one_is_numbered_by_the_file(write: Write) -> None:
    path = write("\n".join(["t,ax", *timed(2_000, 49.9)]))
    wrong = ReadOptions(inputs=(InputOptions("imu", ("ax",), Fraction(100)),))
    assert error_of(path, wrong).endswith(
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
    assert "the times lie on no grid" in error_of(path) or "times fall on a sample" in error_of(path)
    recording = one(path, ReadOptions(inputs=(InputOptions("ibi", ("ibi",), Fraction(0)),)))
    assert recording.streams[0].header.format.rate == 0
    np.testing.assert_array_equal(recording.streams[0].times_ns, np.rint(times * 1e9).astype(np.int64))


def test_times_too_coarse_for_the_rate(write: Write) -> None:
    path = write("\n".join(["t,ax", *(f"{i // 50},{i}" for i in range(200))]))
    options = ReadOptions(inputs=(InputOptions("imu", ("ax",), Fraction(1)),))
    assert "the times are too coarse; leave the time column out" in error_of(path, options)


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
    assert recording.notes == [
        "no column of stream `pupil`: read without it",
        "eda: its middle is 120 uS, as where it is in kΩ or nS, doubtful",
    ]
    assert [(label.start_ns, label.end_ns) for label in recording.labels] == [(0, 4 * 10**9)]


Times = NDArray[np.float64]


RATES = (10.0, 25.0, 50.0, 64.0, 100.0, 128.0, 200.0)


def fitted(seconds: Times, rate: float | None = None, data: NDArray[np.float64] | None = None) -> Grid:
    times = np.rint(seconds * 1e9).astype(np.int64) + 1_700_000_000 * 10**9
    values = np.random.default_rng(9).standard_normal((len(times), 3)) if data is None else data
    given = None if rate is None else Fraction(rate).limit_denominator(1001)
    return fit(times, values, given, RowNumbers(Path("a.csv"), np.arange(len(times), dtype=np.int64) + 2))


def lose(numbers: NDArray[np.int64], *gaps: tuple[int, int]) -> NDArray[np.int64]:
    """Numbers of samples without those from `at` on, `count` of them."""
    for at, count in gaps:
        numbers = numbers[(numbers < at) | (numbers >= at + count)]
    return numbers


def check(grid: Grid, numbers: NDArray[np.int64], rate: float) -> None:
    assert float(grid.rate) == pytest.approx(rate, rel=1e-4), grid.notes
    assert len(grid.indexes) == len(numbers), grid.notes
    np.testing.assert_array_equal(grid.indexes, numbers, err_msg=str(grid.notes))


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("each", [2, 3, 10])
def test_several_samples_a_stamp(rate: float, each: int, given: bool) -> None:
    numbers = np.arange(1200)
    check(fitted(numbers // each * each / rate, rate if given else None), numbers, rate)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("each", [4, 7, 10])
def test_bursts(rate: float, each: int, given: bool) -> None:
    """Samples wait for the one that fills a packet, whose samples arrive one right after the other."""
    numbers = np.arange(1190)
    seconds = numbers // each * each / rate + numbers % each * 0.05 / rate
    check(fitted(seconds, rate if given else None), numbers, rate)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("rate", RATES)
def test_late_samples(rate: float, given: bool, seed: int) -> None:
    """Arrival jitter of a third of a sample's time: no row is a repeat, none is missing."""
    rng, numbers = np.random.default_rng(seed), np.arange(1500)
    seconds = np.sort(numbers / rate + rng.normal(0, 0.3 / rate, len(numbers)))
    check(fitted(seconds, rate if given else None), numbers, rate)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rate", [50.0, 100.0])
def test_a_true_gap_stays_one_and_is_as_long_as_it_is(rate: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    numbers = lose(np.arange(3000), (900, 37), (2000, 500))
    jittered = np.sort(numbers / rate + rng.normal(0, 0.3 / rate, len(numbers)))
    for seconds in (jittered, numbers // 2 * 2 / rate, numbers // 10 * 10 / rate + numbers % 10 * 0.05 / rate):
        grid = fitted(seconds, rate)
        jumps = np.flatnonzero(np.diff(grid.indexes) > 1)
        assert len(jumps) == 2, grid.notes
        assert len(grid.indexes) == len(numbers)
        assert abs(grid.indexes - numbers).max() <= 3, grid.notes


@pytest.mark.parametrize("share", [0.01, 0.05])
def test_a_watch_whose_long_steps_are_short_of_two(share: float) -> None:
    rng = np.random.default_rng(5)
    steps = np.where(rng.random(4000) < share, 0.019, 0.010)
    grid = fitted(np.concatenate(([0.0], np.cumsum(steps))))
    assert float(grid.rate) == pytest.approx(100, rel=0.006), grid.notes
    assert len(grid.indexes) == 4001
    # Never further from its time than a sample.
    seconds = np.concatenate(([0.0], np.cumsum(steps)))
    assert abs(grid.indexes / 100 - seconds).max() < 0.02 + 0.001 * (steps > 0.015).sum(), grid.notes


def test_whole_seconds() -> None:
    numbers = np.arange(25 * 60)
    grid = fitted(np.floor(numbers / 25 + 0.52))
    check(grid, numbers, 25.0)
    assert any("by their count" in note for note in grid.notes)


@pytest.mark.parametrize("each", [1, 2])
def test_rows_written_twice_count_once(each: int) -> None:
    numbers = np.arange(800)
    data = np.repeat(np.random.default_rng(1).standard_normal((800, 3)), 2, axis=0)
    grid = fitted(np.repeat(numbers // each * each / 50, 2), None, data)
    if each == 1:
        check(grid, numbers, 50.0)


def test_what_is_recorded_now_and_then_has_gaps() -> None:
    """Ten seconds of 50 Hz a minute are no bursts."""
    numbers = np.concatenate([np.arange(500) + 3000 * k for k in range(6)])
    grid = fitted(numbers / 50)
    check(grid, numbers, 50.0)


def test_even_times_are_read_as_they_stand() -> None:
    numbers = lose(np.arange(4000), *((at, 1 + at % 5) for at in range(100, 3900, 90)))
    check(fitted(numbers / 100), numbers, 100.0)


@pytest.mark.parametrize("seed", range(5))
def test_what_follows_no_clock_is_not_counted(seed: int) -> None:
    """Heartbeats: a long step is not made up for by a short one."""
    rng = np.random.default_rng(seed)
    for steps in (rng.exponential(0.1, 500), rng.uniform(0.5, 1.5, 500)):
        try:
            notes = fitted(np.cumsum(steps)).notes
        except SourceError as error:
            notes = [str(error)]
        assert not any("by their count" in note for note in notes)


@pytest.mark.parametrize("seed", range(4))
def test_what_waits_comes_together(seed: int) -> None:
    """A radio that is away for 20 samples, now and then."""
    rng, numbers = np.random.default_rng(seed), np.arange(2000)
    seconds = numbers / 100
    for at in rng.integers(100, 1900, 3):
        waiting = (numbers >= at) & (numbers < at + 20)
        seconds[waiting] = max(seconds[waiting][-1], (at + 20) / 100)
    check(fitted(np.maximum.accumulate(seconds), 100.0), numbers, 100.0)


@pytest.mark.parametrize("still", [False, True])
@pytest.mark.parametrize(("rate", "begin"), [(100, 0.37), (128, 0.0), (200, 0.9), (500, 0.37), (1000, 0.5)])
def test_fast_samples_under_whole_seconds(rate: int, begin: float, still: bool) -> None:
    """Also where a sensor lies still: rows that are equal are no rows written twice."""
    numbers = np.arange(20 * rate)
    data = np.repeat(numbers[:, None] // (7 * rate) % 2, 3, axis=1) if still else None
    check(fitted(np.floor(numbers / rate + begin), None, data), numbers, rate)


@pytest.mark.parametrize(
    ("rate", "step"), [(1.0, 0.864), (64.0, 0.01), (75.0, 0.01), (50.0, 1 / 64), (100.0, 0.1), (1000.0, 0.016)]
)
def test_stamps_coarser_than_samples(rate: float, step: float) -> None:
    """Days with five decimals, a clock of 10 ms or of a sixty-fourth of a second."""
    numbers = np.arange(2000)
    check(fitted(np.floor(numbers / rate / step + 1e-6) * step), numbers, rate)


@pytest.mark.parametrize("lost", [200, 300, 3000])
def test_a_pause_between_whole_seconds_is_as_long_as_they_say(lost: int) -> None:
    numbers = lose(np.arange(6000), (1000, lost))
    check(fitted(np.floor(numbers / 100)), numbers, 100.0)


def test_a_second_that_comes_twice_and_another_that_is_skipped() -> None:
    """Stamps that are rounded up and down."""
    numbers = np.arange(600)
    check(fitted(numbers + (numbers % 37 == 0)), numbers, 1.0)
    check(fitted(np.where(numbers == 50, 49, numbers) / 50), numbers, 50.0)
