"""Columns of times by other names, rates within what rounded times can say, and cells that are empty."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from tables import at_rate, check_read, one, table
from verbs import invoke

from kymo.deploy.doctor_session import SessionFacts, StreamFacts, explain, window_count
from kymo.processors.recipe.load import load_recipe
from kymo.streams.chunk import Chunk, Header
from kymo.streams.errors import SourceError
from kymo.streams.readers import read
from kymo.streams.recording import ReadOptions


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
    check_read(tmp_path / "a.csv", f"{name},ax", lambda i: f"{text.format(i / 50)},{math.sin(i):.3f}", 200, 50)


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
    row = lambda i: f"{(i / 50 + (i > 90) * 3) * unit:.10g},{math.sin(i):.3f}"  # noqa: E731
    check_read(tmp_path / "a.csv", f"{name},ax", row, 200, 50, pieces=[(0, 91), (241, 109)])


def test_of_several_columns_of_times_the_time_of_day_counts(tmp_path: Path) -> None:
    row = lambda i: f"2024-05-01T18:36:{i / 50:06.3f}Z,{i / 50:.2f},{i}"  # noqa: E731
    check_read(tmp_path / "a.csv", "Timestamp,Elapsed (s),ax", row, 200, 50, start_s=1_714_588_560)
    from kymo.streams.recording import InputOptions

    asked = ReadOptions(inputs=(InputOptions("sensor", ("ax", "elapsed_s"), Fraction(50)),))
    rows = [f"{i / 50 + (i > 90):.2f},{i},{i}" for i in range(200)]
    (found,) = read([table(tmp_path / "b.csv", "Time,elapsed_s,ax", rows)], asked)
    assert [first for first, _ in found.streams[0].pieces] == [0, 141]


def test_a_colon_before_something_else_is_no_time(tmp_path: Path) -> None:
    stamps = [f"2024-05-01 18:36:{24 + i // 2:02d}:{5 * (i % 2)}" for i in range(40)]
    path = table(tmp_path / "a.csv", "timestamp,ax", [f"{t},{i}" for i, t in enumerate(stamps)])
    with pytest.raises(SourceError, match="2024-05-01 18:36:24:0"):
        one(path)


def test_a_cut_last_row_hides_no_times(tmp_path: Path) -> None:
    rows = [f"2024-05-01T18:36:{i / 50:06.3f}Z,{i},{i}" for i in range(100)]
    (tmp_path / "a.csv").write_text("\n".join(["Time,ax,ay", *rows, "2024-05-01T18:3"]))
    (stream,) = one(tmp_path / "a.csv").streams
    assert (stream.count, stream.header.format.rate) == (100, 50)


def test_a_unit_of_something_else_makes_no_times(tmp_path: Path) -> None:
    rows = [f"{i / 50:.2f},{i},{i}" for i in range(100)]
    (stream,) = one(table(tmp_path / "a.csv", "t,T (C),latency (ms)", rows)).streams
    assert stream.header.format.channels == ("T (C)", "latency (ms)")


@pytest.mark.parametrize("form", ["{}:{:03d}", "{},{:03d}", "{}.{:03d}"])
@pytest.mark.parametrize("zone", ["", "Z", "+02:00"])
def test_milliseconds_behind_a_colon_count(tmp_path: Path, form: str, zone: str) -> None:
    """A log of 2 Hz, as some loggers write it; a comma needs quotes."""
    stamps = [form.format(f"2024-05-01 18:36:{24 + i // 2:02d}", 395 + 500 * (i % 2)) + zone for i in range(40)]
    (stream,) = one(table(tmp_path / "a.csv", "timestamp,ax", [f'"{t}",{i}' for i, t in enumerate(stamps)])).streams
    assert (stream.count, stream.header.format.rate) == (40, 2)
    assert stream.header.origin_ns % 10**9 == 395_000_000


def test_nanoseconds_by_another_name(tmp_path: Path) -> None:
    check_read(tmp_path / "a.csv", "Time_ns,ax", lambda i: f"{i * 20_000_000},{i % 7}", 200, 50)


def test_what_is_no_time_stays_a_channel(tmp_path: Path) -> None:
    """A temperature may be called T; a column that is named as times are is taken as such whatever else is there."""
    rows = [f"{i / 50:.2f},{36 + math.sin(i / 9):.3f},{i}" for i in range(100)]
    (stream,) = one(table(tmp_path / "a.csv", "t,T,Time", rows)).streams
    assert stream.header.format.channels == ("T",)  # `Time` counts rows here
    rows = [f"{36 + math.sin(i / 9):.3f},{i % 5}" for i in range(100)]
    from kymo.streams.recording import InputOptions

    options = ReadOptions(inputs=(InputOptions("sensor", (), Fraction(50)),))
    (found,) = read([table(tmp_path / "b.csv", "T,ax", rows)], options)
    assert found.streams[0].header.format.channels == ("T", "ax")
    rows = [f"{i / 50:.2f},{i % 5}" for i in range(100)]
    asked = ReadOptions(inputs=(InputOptions("sensor", ("Time", "ax"), Fraction(50)),))
    (found,) = read([table(tmp_path / "c.csv", "Time,ax", rows)], asked)
    assert found.streams[0].header.format.channels == ("Time", "ax")


def test_times_of_an_unknown_unit_are_no_channel_and_said(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", "Time,ax", [f"{1000 * i},{i % 5}" for i in range(100)])
    (found,) = read([path], at_rate(50))
    assert found.streams[0].header.format.channels == ("ax",)
    assert any("`Time` holds times in an unknown unit (steps of 1000)" in note for note in found.notes)


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
    form = "{:.12f},{}" if isinstance(step, float) else "{},{}"
    for given in (None, rate):
        row = lambda i: form.format(first + i * step, i % 7)  # noqa: E731
        check_read(tmp_path / "a.csv", f"{name},ax", row, 300, rate, given=given, rel=1e-3)


def test_a_table_programs_days_are_dates(tmp_path: Path) -> None:
    rows = [f"{45_292 + i / 86_400:.11f},{i}" for i in range(100)]  # from 2024-01-01
    (stream,) = one(table(tmp_path / "a.csv", "timestamp,ax", rows)).streams
    assert abs(stream.header.origin_ns - 1_704_067_200 * 10**9) < 10**6
    assert stream.header.format.rate == 1


def test_a_unit_in_doubt_is_asked_for(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", "timestamp,ax", [f"{1000 * i},{i % 5}" for i in range(100)])
    with pytest.raises(SourceError, match=r"steps of 1000.*name it `time_s`, `time_ms`"):
        one(path)
    (stream,) = one(path, at_rate(1)).streams
    assert stream.header.format.rate == 1  # as milliseconds


@pytest.mark.parametrize(
    "name", ["seconds_elapsed", "Elapsed (s)", "frame", "PacketCounter", "sample_index", "Unnamed: 0"]
)
def test_what_counts_time_or_rows_is_no_channel(tmp_path: Path, name: str) -> None:
    rows = [f"{1_700_000_000 + i / 50:.2f},{i / 50 if 'lapsed' in name else i},{i % 5}" for i in range(200)]
    recording = one(table(tmp_path / "a.csv", f"timestamp,{name},ax", rows))
    assert recording.streams[0].header.format.channels == ("ax",)
    assert any(name in note and "left out" in note for note in recording.notes)


@pytest.mark.parametrize("name", ["frame", "sample", "PacketCounter"])
def test_a_counter_with_holes_numbers_the_samples(tmp_path: Path, name: str) -> None:
    numbers = [i for i in range(300) if not 100 <= i < 130]
    rows = [f"{i + 17},{i % 5},{'a' if i < 200 else 'b'}" for i in numbers]
    recording = one(table(tmp_path / "a.csv", f"{name},ax,label", rows), at_rate(64))
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
    assert one(table(tmp_path / "a.csv", "t,ax", rows)).streams[0].header.format.rate == expected


def test_init_says_what_is_missing_and_makes_windows_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for n in range(3):
        empty = {0: (), 1: (100,), 2: (30, 31, 170)}[n]
        rows = [f"{i / 32},{'' if i in empty else i % 7},1.{i % 3}" for i in range(320)]
        table(Path("data") / f"r{n}.csv", "t,x,y", rows)
    done = invoke("init", "holes", "--from", "data")
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
        facts.add(Chunk(Header("s", 0, fmt), first, data[first : first + 13]), 0)
    facts.add(Chunk(Header("s", 0, fmt), 52, data[52:65]), 0)  # sent again
    assert (facts.runs, facts.empty) == ([[0, 60], [61, 130]], 1)
    assert window_count(recipe, facts.runs) == 2 + 2
    windows = next(
        check for check in explain(recipe, SessionFacts("s", streams={"imu": facts})) if check.name == "windows"
    )
    assert windows.text == ("129 samples (12.9 s, 1 gap (1 sample with empty or NaN cells among them)) hold 4 windows")


@pytest.mark.parametrize("odd", [1, 2])
def test_rows_from_before_the_clock_was_set(tmp_path: Path, odd: int) -> None:
    rows = [f"{i / 50:.2f},7" for i in range(odd)] + [f"{1_700_000_000 + i / 50:.2f},{i % 5}" for i in range(odd, 200)]
    recording = one(table(tmp_path / "a.csv", "timestamp,ax", rows))
    (stream,) = recording.streams
    assert (stream.count, stream.header.format.rate) == (200 - odd, 50)
    assert [first for first, _ in stream.pieces] == [0]
    assert any("54 years before the others, first at row 2" in note for note in recording.notes)


def test_a_clock_that_was_set_half_way(tmp_path: Path) -> None:
    rows = [f"{i / 50 + (i > 100) * 1_700_000_000:.2f},{i % 5}" for i in range(200)]
    with pytest.raises(SourceError, match=r"row 103.*jumps by 54 years"):
        one(table(tmp_path / "a.csv", "t,ax", rows))


def test_a_device_that_began_anew_is_no_out_of_order(tmp_path: Path) -> None:
    """Its times fall between those of before; parts that merely stand in another order are sorted."""
    rows = [f"{(i % 150) / 50 + (i >= 150) * 0.007:.3f},{i % 5}" for i in range(300)]
    with pytest.raises(SourceError, match=r"row 152: time goes back by .* two recordings in one file"):
        one(table(tmp_path / "a.csv", "t,ax", rows))
    rows = [f"{(i + 150) % 300 / 50:.2f},{i % 5}" for i in range(300)]
    (stream,) = one(table(tmp_path / "b.csv", "t,ax", rows)).streams
    assert (stream.count, [first for first, _ in stream.pieces]) == (300, [0])


EVENING = datetime(2024, 5, 13, 18, 36, 24, tzinfo=UTC)
Clock = Callable[[int], str]


def stamp(form: str, rate: float, first: datetime = EVENING) -> Clock:
    """Times of samples as :meth:`datetime.strftime` writes them; `%f` has three digits."""

    def text(i: int) -> str:
        moment = first + timedelta(microseconds=round(i * 1e6 / rate))
        return moment.strftime(form.replace("%f", f"{moment.microsecond // 1000:03d}"))

    return text


MIDNIGHT = datetime(2024, 1, 12, 23, 59, 58, tzinfo=UTC)
NOON = datetime(2019, 11, 13, 11, 59, tzinfo=UTC)


@pytest.mark.parametrize(
    ("form", "rate", "first", "note"),
    [
        ("%d.%m.%Y %H:%M:%S.%f", 50, EVENING, "day/month/year|ISO"),
        ("%d.%m.%y %H:%M:%S,%f", 50, datetime(2024, 3, 4, tzinfo=UTC), ""),
        ("%d/%m/%Y %H:%M:%S.%f", 50, EVENING, "day/month/year without"),
        ("%m/%d/%Y %H:%M:%S.%f", 50, EVENING, "month/day/year without"),
        (
            "%d/%m/%Y %H:%M:%S.%f",
            50,
            MIDNIGHT.replace(day=10),
            "day/month/year without a time zone, taken as UTC$",
        ),  # 10/01, then 11/01
        ("%d/%m/%Y %H:%M:%S.%f", 50, datetime(2024, 4, 3, tzinfo=UTC), "nothing shows which number is the day"),
        ("%m/%d/%Y %I:%M:%S %p", 1, NOON, "month/day/year without"),
        ("%Y-%m-%d %I:%M:%S.%f %p", 50, MIDNIGHT, ""),
        ("%Y/%m/%d %H:%M:%S.%f", 50, EVENING, ""),
        ("%d-%b-%Y %H:%M:%S.%f", 50, EVENING, ""),
        ("%b %d, %Y %I:%M:%S %p", 1, EVENING, ""),
        ("%a %b %d %H:%M:%S %Y", 1, EVENING, ""),
        ("%Y-%m-%d %H:%M:%S.%f UTC", 50, EVENING, "ISO 8601$"),
        ("%Y-%m-%dT%H:%M:%S.%f+0000", 50, EVENING, "ISO 8601$"),
        ("%Y%m%d%H%M%S", 1, EVENING, ""),
        ("%Y%m%d%H%M%S%f", 50, EVENING, ""),
        ("%Y%m%dT%H%M%S.%f", 50, EVENING, ""),
        ("%Y-%m-%d_%H-%M-%S.%f", 50, EVENING, ""),
        ("%Y-%m-%d", 1 / 86_400, EVENING.replace(hour=0, minute=0, second=0), ""),
    ],
)
@pytest.mark.parametrize("name", ["timestamp", "t", "recorded"])
def test_dates_as_loggers_write_them(
    tmp_path: Path, name: str, form: str, rate: float, first: datetime, note: str
) -> None:
    if name == "recorded" and ":" not in form:
        return  # a number, or a day, of no time's name
    text, start_s = stamp(form, rate, first), int(first.timestamp())
    row = lambda i: f"{text(i)};{i % 7}"  # noqa: E731
    check_read(tmp_path / "a.csv", f"{name};ax", row, 200, rate, start_s=start_s, note=note or ".", rel=1e-6)


def test_a_day_that_is_no_month_in_the_middle_is_refused(tmp_path: Path) -> None:
    rows = [f"{5 if i < 50 else 13}/{13 if i < 50 else 5}/2024 10:00:{i / 50:06.3f},{i}" for i in range(100)]
    with pytest.raises(SourceError, match=r"5/13/2024 10:00:00\.000"):
        one(table(tmp_path / "a.csv", "timestamp,ax", rows))


@pytest.mark.parametrize(
    ("head", "row", "start_s", "rate"),
    [
        ("Time", stamp("%H:%M:%S.%f", 50), 66_984, 50),
        ("Time", stamp("%H:%M:%S.%f", 50, MIDNIGHT), 86_398, 50),
        ("time", stamp("%H:%M:%S:%f", 2), 66_984, 2),
        ("Time (s)", stamp("%H:%M:%S.%f", 50), 66_984, 50),
        ("Time", stamp("%I:%M:%S", 1, NOON + timedelta(seconds=3500)), 46_640, 1),  # 12:59:59, then 01:00:00
        (
            "elapsed time",
            lambda i: f"{(86_390 + i) // 3600}:{(86_390 + i) // 60 % 60:02d}:{(86_390 + i) % 60:02d}",
            86_390,
            1,
        ),
        (
            "Time",
            lambda i: (
                f"{58 + i // 600:02d}:{i / 10 % 60:04.1f}" if i < 1200 else f"{i // 600 - 2:02d}:{i / 10 % 60:04.1f}"
            ),
            3480,
            10,
        ),
        ("time", lambda i: f"0 days {timedelta(milliseconds=20 * i)}", 0, 50),
        ("Date,Time", lambda i: f"{stamp('%Y-%m-%d,%H:%M:%S.%f', 50, MIDNIGHT)(i)}", MIDNIGHT.timestamp(), 50),
        ("date,timestamp", lambda i: f"{stamp('%d/%m/%Y,%I:%M:%S %p', 1, MIDNIGHT)(i)}", MIDNIGHT.timestamp(), 1),
    ],
)
def test_times_of_day_with_and_without_a_date(
    tmp_path: Path, head: str, row: Clock, start_s: float, rate: float
) -> None:
    check_read(tmp_path / "a.csv", f"{head},ax", lambda i: f"{row(i)},{i % 7}", 1500, rate, start_s=start_s)


def summer(hour: int, month: int, by: int) -> Clock:
    """Local times of a Sunday when clocks are set, without their zone."""
    first = datetime(2024, month, {3: 31, 10: 27}[month], hour, 59, 58, tzinfo=UTC)
    return lambda i: stamp("%Y-%m-%d %H:%M:%S.%f", 50, first + timedelta(hours=by * (i >= 100)))(i)


@pytest.mark.parametrize(
    ("head", "row", "rate"),
    [
        ("millis", lambda i: f"{(2**32 - 1000 + 20 * i) % 2**32}", 50),
        ("time_ms", lambda i: f"{(31_000 + 20 * i + 2**15) % 2**16 - 2**15}", 50),
        ("timestamp", lambda i: f"{(60_000 + 20 * i) % 2**16}", 50),
        ("time_us", lambda i: f"{(2**31 - 500_000 + 20_000 * i + 2**31) % 2**32 - 2**31}", 50),
        ("t", lambda i: f"{(4294 + i / 50) % 4294.967296:.6f}", 50),
        ("time_s", lambda i: f"{(55 + i / 50) % 60:.2f}", 50),
        ("t", lambda i: f"{(86_395 + i / 50) % 86_400:.2f}", 50),
        ("tow(msec)", lambda i: f"{(604_795_000 + 100 * i) % 604_800_000}", 10),
        ("timestamp", summer(2, 10, -1), 50),
        ("timestamp", summer(1, 3, 1), 50),
        (
            "timestamp",
            lambda i: f"2016-12-31T23:59:{58 + i / 50:06.3f}Z" if i < 150 else f"2017-01-01T00:00:{i / 50 - 3:06.3f}Z",
            50,
        ),
    ],
)
def test_a_clock_that_begins_anew_or_is_set_goes_on(tmp_path: Path, head: str, row: Clock, rate: int) -> None:
    cells = lambda i: f"{row(i)},{i}"  # noqa: E731
    stream = check_read(tmp_path / "a.csv", f"{head},ax", cells, 500, rate, note="read as going on")
    assert stream.data[:, 0].tolist() == list(range(500))


@pytest.mark.parametrize(
    ("row", "pieces"),
    [
        (summer(4, 10, 1), [0, 180_100]),  # no hour in which clocks are set
        (lambda i: stamp("%Y-%m-%dT%H:%M:%S.%fZ", 50, EVENING + timedelta(hours=i >= 100))(i), [0, 180_100]),
    ],
)
def test_an_hour_without_data_is_a_gap(tmp_path: Path, row: Clock, pieces: list[int]) -> None:
    (stream,) = one(table(tmp_path / "a.csv", "timestamp,ax", [f"{row(i)},{i}" for i in range(500)])).streams
    assert [first for first, _ in stream.pieces] == pieces


def test_recordings_of_a_minute_each_are_no_clock_that_begins_anew(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"row 3002.*two recordings in one file"):
        one(table(tmp_path / "a.csv", "t,ax", [f"{i % 3000 / 50:.2f},{i}" for i in range(6000)]))


@pytest.mark.parametrize(
    "name",
    [
        "millis",
        "ms",
        "epoch_ms",
        "uptime_ms",
        "ts",
        "Zeit (ms)",
        "unix_time",
        "loggingTime(ms)",
        "sinceReboot Timestamp(ms)",
    ],
)
def test_more_names_of_times(tmp_path: Path, name: str) -> None:
    first = 1_700_000_000_000 if "unix" in name or "epoch" in name else 100_000
    check_read(tmp_path / "a.csv", f"{name},ax", lambda i: f"{first + 20 * i},{i % 7}", 200, 50)


@pytest.mark.parametrize("name", ["min", "hr", "rate", "date of birth", "ms_since_last"])
def test_what_only_resembles_a_name_of_times_stays_a_channel(tmp_path: Path, name: str) -> None:
    rows = [f"{i / 50},{20 + i // 9 / 10},{i % 7}" for i in range(200)]
    for time in ("t", "time", "temps (s)"):
        recording = one(table(tmp_path / "b.csv", f"{time},temps,ax", rows))
        assert recording.streams[0].header.format.channels == ("temps", "ax")  # a temperature
    (stream,) = one(
        table(tmp_path / "a.csv", f"t,{name},ax", [f"{i / 50},{60 + i % 9},{i % 7}" for i in range(200)])
    ).streams
    assert stream.header.format.channels == (name, "ax")


def test_seconds_of_a_column_t_are_doubted_where_they_are_as_ms(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", "t,ax", [f"{20 * i},{i % 5}" for i in range(100)])
    recording = one(path)
    assert recording.streams[0].header.format.rate == Fraction(1, 20)
    assert "`t` is read as seconds, its steps are 20; if they are ms, name it `time_ms`" in recording.notes
    assert one(path, at_rate(50)).streams[0].header.format.rate == 50
    rows = [f"{1_700_000_000_000 + 20 * i},{i % 5}" for i in range(100)]
    assert one(table(tmp_path / "b.csv", "t,ax", rows)).streams[0].header.origin_ns == 1_700_000_000 * 10**9


@pytest.mark.parametrize(
    ("head", "row", "start_s"),
    [
        ("secs,nsecs", lambda i: f"{1_700_000_000 + i // 50},{i % 50 * 20_000_000}", 1_700_000_000),
        (
            "header.stamp.sec,header.stamp.nanosec",
            lambda i: f"{1_700_000_000 + i // 50},{i % 50 * 20_000_000}",
            1_700_000_000,
        ),
        ("timestamp,ms", lambda i: f"{1_700_000_000 + i // 50},{i % 50 * 20}", 1_700_000_000),
        ("Date,Time,ms", lambda i: f"{stamp('%d.%m.%Y,%H:%M:%S', 50)(i)},{i % 50 * 20}", EVENING.timestamp()),
        ("hour,minute,second", lambda i: f"18,{36 + (24 + i // 50) // 60},{(24 + i / 50) % 60:.2f}", 66_984),
        (
            "UTC_Nano,UTC_Year,UTC_Month,UTC_Day,UTC_Hour,UTC_Minute,UTC_Second",
            lambda i: f"{i % 50 * 20_000_000},2024,5,13,18,{36 + (24 + i // 50) // 60},{(24 + i // 50) % 60}",
            EVENING.timestamp(),
        ),
    ],
)
def test_a_time_in_several_columns(tmp_path: Path, head: str, row: Clock, start_s: float) -> None:
    check_read(tmp_path / "a.csv", f"{head},ax", lambda i: f"{row(i)},{i % 7}", 3000, 50, start_s=start_s)


def test_the_parts_of_a_time_are_no_channels_beside_another(tmp_path: Path) -> None:
    row = lambda i: f"{i / 50:.2f},10,{i // 3000},{i / 50 % 60:.0f},{i % 7}"  # noqa: E731
    check_read(tmp_path / "a.csv", "t,hour,minute,second,ax", row, 300, 50)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("time", lambda i: f"18:36:{24 + i // 50}.{i % 50 * 20}"),
        ("Time (s)", lambda i: f"{i // 50}.{i % 50 * 20}"),
        ("timestamp", lambda i: f"{1_700_000_000 + i // 50}.{i % 50 * 20_000}"),
    ],
)
def test_fractions_that_lack_zeros_in_front(tmp_path: Path, name: str, row: Clock) -> None:
    """12.5 for twelve seconds and five ms, as where the two numbers are written one behind the other."""
    cells = lambda i: f"{row(i)},{i}"  # noqa: E731
    stream = check_read(tmp_path / "a.csv", f"{name},ax", cells, 500, 50, note="lack zeros in front")
    assert stream.data[:, 0].tolist() == list(range(500))


@pytest.mark.parametrize(
    ("wrong", "note"),
    [
        ({77: 200_000.0}, "far from both neighbours"),
        ({77: -1.7e9}, "far from both neighbours"),
        ({77: 2.6e9, 300: 2.6e9}, "has 2 times far from both neighbours"),
        (dict.fromkeys(range(200, 500), -0.513), "goes back by 0.493 s and stays so"),
        (dict.fromkeys(range(200, 500), -0.5), "goes back by 0.48 s and stays so"),
    ],
)
def test_times_that_are_wrong_lose_no_sample(tmp_path: Path, wrong: dict[int, float], note: str) -> None:
    row = lambda i: f"{1.7e9 + i / 50 + wrong.get(i, 0.0):.3f},{i}"  # noqa: E731
    stream = check_read(tmp_path / "a.csv", "timestamp,ax", row, 500, 50, note=note)
    assert stream.data[:, 0].tolist() == list(range(500))


def test_a_clock_that_goes_back_far_is_refused_and_one_that_goes_on_is_a_gap(tmp_path: Path) -> None:
    rows = [f"{100 + i / 50 - 10.003 * (i >= 900):.3f},{i}" for i in range(2000)]
    with pytest.raises(SourceError, match=r"row 902.*goes back by 9.983 s"):
        one(table(tmp_path / "a.csv", "t,ax", rows))
    rows = [f"{5 + i / 100 - 0.8 * (i >= 100):.3f},{i}" for i in range(200)]  # two recordings of a second each
    with pytest.raises(SourceError, match=r"row 102.*goes back by 0.79 s.*two recordings"):
        one(table(tmp_path / "c.csv", "t,ax", rows))
    rows = [f"{100 + i / 50 + 2.5 * (i >= 200):.3f},{i}" for i in range(500)]
    assert [first for first, _ in one(table(tmp_path / "b.csv", "t,ax", rows)).streams[0].pieces] == [0, 325]


@pytest.mark.parametrize(
    ("at", "count", "note"), [(0, 2, "2 rows from 3 years before"), (498, 2, "2 rows from 82 years after")]
)
def test_a_few_rows_of_another_time_at_an_end(tmp_path: Path, at: int, count: int, note: str) -> None:
    other = datetime(2021, 1, 1, tzinfo=UTC).timestamp() if at == 0 else 4.3e9
    rows = [f"{(other if at <= i < at + count else EVENING.timestamp()) + i / 50:.2f},{i}" for i in range(500)]
    recording = one(table(tmp_path / "a.csv", "timestamp,ax", rows))
    assert (recording.streams[0].count, [first for first, _ in recording.streams[0].pieces]) == (498, [0])
    assert any(note in said for said in recording.notes), recording.notes


def test_the_newest_may_come_first(tmp_path: Path) -> None:
    recording = one(table(tmp_path / "a.csv", "Time,ax", [f"{i / 50:.2f},{i}" for i in range(300)][::-1]))
    assert recording.streams[0].data[:, 0].tolist() == list(range(300))


def test_days_of_matlab_are_dates(tmp_path: Path) -> None:
    noon = int(datetime(2024, 5, 13, 12, tzinfo=UTC).timestamp())
    row = lambda i: f"{739_385.5 + i / 86_400:.8f},{i}"  # noqa: E731
    check_read(tmp_path / "a.csv", "timestamp,ax", row, 200, 1, start_s=noon)
