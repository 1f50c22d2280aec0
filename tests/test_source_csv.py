"""CSV files as recordings, against the csv module and numpy.genfromtxt; every malformed file with its row."""

from __future__ import annotations

import csv
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streams.errors import SourceError
from streams.recording import InputOptions, ReadOptions, Recording
from streams.sources import csv_file, read

Write = Callable[..., Path]
DEFAULT = ReadOptions()
PLAIN = ReadOptions(inputs=(InputOptions("imu", ("ax", "ay"), Fraction(10)),))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(content: str | bytes, name: str = "walk.csv") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def one(path: Path, options: ReadOptions = DEFAULT) -> Recording:
    (recording,) = read([path], options)
    return recording


def error_of(path: Path, options: ReadOptions = DEFAULT) -> SourceError:
    with pytest.raises(SourceError) as error:
        list(read([path], options))
    return error.value


def timed(count: int, rate: float = 10.0) -> list[str]:
    return [f"{i / rate:.6f},{i}" for i in range(count)]


def test_values_times_labels_subject_and_metadata(write: Write) -> None:
    rows = ["t,ax,ay,label,subject,room"]
    rows += [f"{5 + i / 10},{i},{-i},{'3.0' if i < 4 else '2'},P1,4" for i in range(10)]
    path = write("\n".join(rows) + "\n\n\n")
    options = ReadOptions(inputs=(InputOptions("imu.left", ("ay", "ax"), None, ("g", "g")),))
    recording = one(path, options)
    stream = recording.streams[0]
    assert (recording.session, recording.subject, recording.metadata) == ("walk", "P1", {"room": "4"})
    assert (stream.header.format.stream, stream.header.format.channels) == ("imu.left", ("ay", "ax"))
    assert (stream.header.format.units, stream.header.format.rate, stream.header.format.dtype) == (
        ("g", "g"),
        10,
        "float64",
    )
    assert stream.header.origin_ns == 5_000_000_000
    reference = np.genfromtxt(path, delimiter=",", names=True)
    np.testing.assert_array_equal(stream.data, np.column_stack([reference["ay"], reference["ax"]]))
    found = [(label.label, label.start_ns, label.end_ns, label.set, label.author) for label in recording.labels]
    assert found == [
        ("3", 5_000_000_000, 5_400_000_000, "label", "walk.csv"),
        ("2", 5_400_000_000, 6_000_000_000, "label", "walk.csv"),
    ]
    assert recording.notes == ["rate 10 Hz taken from the times (they say 10 Hz)"]


def test_without_a_recipe_all_numeric_columns_are_channels(write: Write) -> None:
    recording = one(
        write(
            "timestamp,ax,place,gy,session\n"
            + "".join(f"{1_700_000_000_000 + 20 * i},{i},left,1e-3,a\n" for i in range(5))
        )
    )
    assert recording.session == "a"
    assert recording.streams[0].header.format.channels == ("ax", "gy")
    assert recording.streams[0].header.format.stream == "sensor"
    assert recording.streams[0].header.origin_ns == 1_700_000_000 * 10**9
    assert recording.metadata == {"place": "left"}
    assert recording.notes == [
        "`timestamp` is read as ms since 1970, by the size of its first value (1700000000000)",
        "rate 50 Hz taken from the times (they say 50 Hz)",
    ]


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


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbft,ax,ay\r\n0,1.5,2\r\n0.1,3,-4e-1\r\n\r\n",
        b"t;ax;ay\n0;1,5;2\n0,1;3;-4e-1\n",
        b"t;ax;ay\n0;1.5;2\n0.1;3;-4e-1\n",
        b"t\tax\tay\n0\t1.5\t2\n0.1\t3\t-4e-1\n",
        b'"t","ax","ay"\n"0","1.5","2"\n"0.1","3","-4e-1"',
        b"t, ax , ay\n0, 1.5, 2 \n0.1, 3, -4e-1\n",
        b"\n\nt,ax,ay\n0,1.5,2\n0.1,3,-4e-1\n,,\n,,\n",
        b"t,ax,ay\r0,1.5,2\r0.1,3,-4e-1\r",
        b't,"ax","ay","two\nlines"\n0,1.5,2,x\n0.1,3,-4e-1,x\n',
    ],
)
def test_dialects(write: Write, content: bytes) -> None:
    recording = one(write(content))
    np.testing.assert_array_equal(recording.streams[0].data, [[1.5, 2.0], [3.0, -0.4]])
    assert recording.notes == ["rate 10 Hz taken from the times (they say 10 Hz)"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.tuples(st.floats(allow_infinity=False), st.text("ab,\"'; \n", max_size=5)), min_size=1, max_size=20),
    st.booleans(),
)
def test_any_values_and_quoted_texts(tmp_path: Path, rows: list[tuple[float, str]], small: bool) -> None:
    path = tmp_path / "any.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["ax", "label"])
        writer.writerows([[repr(value), text] for value, text in rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_file, "_BLOCK_BYTES", 10 if small else 2**25)
        recording = one(path, ReadOptions(inputs=(InputOptions("imu", ("ax",), Fraction(10)),)))
    np.testing.assert_array_equal(recording.streams[0].data[:, 0], [value for value, _ in rows])
    # Independent: the label at each sample's time.
    header = recording.streams[0].header
    for i, (_, text) in enumerate(rows):
        assert recording.label_of(header.time_ns(i), header.time_ns(i + 1), 1.0) == (text.strip() or None)


def test_blocks_do_not_change_the_result(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("t,ax,session\n" + "".join(f"{i / 10},{i},s{i % 3}\n" for i in range(300)))
    whole = list(read([path], ReadOptions(inputs=(InputOptions("imu", ("ax",), Fraction(10, 3)),))))
    monkeypatch.setattr(csv_file, "_BLOCK_BYTES", 64)
    parts = list(read([path], ReadOptions(inputs=(InputOptions("imu", ("ax",), Fraction(10, 3)),))))
    assert [r.session for r in whole] == [r.session for r in parts] == ["s0", "s1", "s2"]
    for a, b in zip(whole, parts, strict=True):
        assert (a.streams[0].header, a.notes) == (b.streams[0].header, b.notes)
        np.testing.assert_array_equal(a.streams[0].data, b.streams[0].data)
        np.testing.assert_array_equal(a.streams[0].data[:, 0], np.arange(int(a.session[1]), 300, 3))


def test_large_files_are_given_away_session_by_session(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_file, "_BLOCK_BYTES", 64)
    monkeypatch.setattr(csv_file, "_TOGETHER_BYTES", 100)
    lines = [f"{i / 10},{i},{name}" for name in "abc" for i in range(50)]
    path = write("\n".join(["t,ax,session", *lines]))
    source = read([path])
    assert next(source).session == "a"
    with path.open("a") as file:  # what is behind is not read yet
        file.write("\n0,1,a\n")
    assert next(source).session == "b"
    with pytest.raises(SourceError) as error:
        list(source)
    assert str(error.value) == f"{path}, row 152: session a comes again after others; sort a file this large by session"


def test_sessions_of_several_columns_keep_and_names(write: Write) -> None:
    rows = ["subject_id,trial_id,usabledata,ax,ay,speed"]
    rows += [
        f"7,{trial}.0,{int(trial != 2)},{i},0,{speed}"
        for trial, speed in ((1, "2.5"), (2, "3"), (3, "3.50"))
        for i in range(4)
    ]
    options = ReadOptions(
        inputs=PLAIN.inputs,
        session=("subject_id", "trial_id"),
        subject="subject_id",
        keep="usabledata == 1",
        label_column="speed",
        label_names={"3.5": "fast"},
    )
    first, second = read([write("\n".join(rows))], options)
    assert (first.session, first.subject, first.labels[0].label) == ("7-1", "7", "2.5")
    assert (second.session, second.labels[0].label, second.labels[0].set) == ("7-3", "fast", "speed")
    assert (first.notes, second.notes) == (["keep leaves no row of session 7-2"], [])


def test_rows_left_out_by_keep_are_a_gap(write: Write) -> None:
    path = write("ax,ay,ok\n" + "".join(f"{i},0,{int(i != 3)}\n" for i in range(6)))
    recording = one(path, ReadOptions(inputs=PLAIN.inputs, keep="not ok == 0"))
    assert [(first, piece[:, 0].tolist()) for first, piece in recording.streams[0].pieces] == [
        (0, [0, 1, 2]),
        (4, [4, 5]),
    ]
    assert recording.notes == [
        "keep leaves 5 of 6 rows",
        "rows left out between others make 1 gap, first before row 6",
    ]


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("a == 1", [True, True, False, False]),
        ("a > 1 and b != 'y'", [False, False, True, False]),
        ("b in ('x', 'y') or a < 0", [True, True, False, False]),
        ("a not in (1, -3)", [False, False, True, True]),
        ("0 < a <= 2", [True, True, True, False]),
        ("b == 'x'", [True, False, False, False]),
        ("a == -3", [False] * 4),
        ("a != b", [True, True, True, True]),
        ("a == '1.0'", [False, True, False, False]),
    ],
)
def test_keep(write: Write, keep: str, expected: list[bool]) -> None:
    path = write("a,b,ax,ay\n1,x,0,0\n1.0,y,1,0\n2,z,2,0\n,w,3,0\n")
    options = ReadOptions(inputs=PLAIN.inputs, keep=keep)
    if not any(expected):
        assert str(error_of(path, options)) == f"{path}: keep = {keep!r} leaves no row"
        return
    assert one(path, options).streams[0].data[:, 0].tolist() == [float(i) for i, kept in enumerate(expected) if kept]


@pytest.mark.parametrize(
    ("keep", "text"),
    [
        ("__import__('os').system('x') == 1", "is not allowed"),
        ("a ==", "is no expression"),
        ("a + 1 == 2", "'a + 1' is not allowed"),
        ("1 == 1", "names no column"),
        ("a", "'a' is not allowed"),
        ("a in b", "'b' is not allowed"),
        ("(lambda: a)() == 1", "is not allowed"),
        ("[a for a in (1,)] == 1", "is not allowed"),
    ],
)
def test_keep_is_no_python(write: Write, keep: str, text: str) -> None:
    assert text in str(error_of(write("a,b,ax,ay\n1,2,3,4\n"), ReadOptions(inputs=PLAIN.inputs, keep=keep)))


@pytest.mark.parametrize(
    ("content", "row", "text"),
    [
        ("", None, "is empty; expected a header row and rows of numbers"),
        ("\n\n", None, "is empty"),
        ("ax,ay\n", None, "has a header but no rows"),
        ("ax,ay\n\n\n", None, "has a header but no rows"),
        ("1,2\n3,4\n", 1, "holds '1,2' where column names are expected"),
        ("ax,ay\n1,2\n3,abc\n", 3, "column `ay` has 'abc', expected a number"),
        ("ax,ay\n1,2\n\n3,1_0\n", 4, "column `ay` has '1_0', expected a number"),
        ("ax,ay\n1,2\n3\n", 3, "1 columns where the header has 2"),
        ("ax,ay\n1,2\n3,4,5\n", 3, "3 columns where the header has 2"),
        ("ax,az\n1,2\n", None, "no column `ay` (did you mean `az`?); there are: ax, az"),
        ("AX,AY\n1,2\n", None, "no column `ax` (did you mean `AX`?); there are: AX, AY"),
        ("ax,ay,ax\n1,2,3\n", 1, "column `ax` is there 2 times; each needs a name of its own"),
        ("t,ax,ay\n0,1,2\nsoon,1,2\n", 3, "column `t` has 'soon', expected a number of seconds"),
        ("t,ax,ay\n0,1,2\n,1,2\n", 3, "column `t` has '', expected a number of seconds"),
        (
            "timestamp,ax,ay\n2024-01-01,1,2\n2024-13-01,1,2\n",
            3,
            "has '2024-13-01', expected a date and time in ISO 8601",
        ),
        ("t_ns,ax,ay\n0,1,2\n99999999999999999999,1,2\n", 3, "expected a number of ns"),
        ("session,ax,ay\ns,1,2\n,1,2\n", 3, "column `session` is empty, it names the session"),
        ("subject,ax,ay\nA,1,2\nB,1,2\n", None, "session walk has the subjects A and B; add `subject` to the columns"),
        (b"ax,ay\n1,\xff\n", None, "is no UTF-8 text (byte 0xff); save it as UTF-8"),
        (b"\xff\xfea\x00x\x00", None, "is UTF-16, expected CSV text in UTF-8"),
        (b"PK\x03\x04", None, "is a zip or Excel file, expected CSV text in UTF-8"),
    ],
)
def test_malformed(write: Write, content: str | bytes, row: int | None, text: str) -> None:
    path = write(content)
    error = error_of(path, PLAIN)
    assert error.row == row
    assert str(error).startswith(f"{path}, row {row}: " if row else f"{path}: ")
    assert text in str(error)
    assert "\n" not in str(error)


def test_a_rate_must_come_from_somewhere(write: Write) -> None:
    path = write("ax\n1\n2\n")
    assert str(error_of(path)) == (
        f"{path}: nothing gives the sampling rate: add a time column (`t` in s, `t_ns`, or `timestamp`), "
        "or say `rate_hz` in the recipe's [[input]]"
    )
    assert "give `rate_hz`" in str(error_of(write("t,ax\n1,1\n")))


def test_missing_values_stay_nan_and_are_reported(write: Write) -> None:
    recording = one(write("ax,ay\n1,2\n,3\n4,NaN\n5,inf\n6,NA\n"), PLAIN)
    np.testing.assert_array_equal(
        recording.streams[0].data, [[1, 2], [np.nan, 3], [4, np.nan], [5, np.nan], [6, np.nan]]
    )
    assert recording.notes == ["4 rows with empty or NaN cells, kept as missing, first at row 3"]


def test_empty_lines_between_rows_are_reported(write: Write) -> None:
    for gap in ("\n\n", ",\n,\n"):
        recording = one(write(f"ax,ay\n1,2\n{gap}3,4\n{gap}"), PLAIN)
        assert recording.streams[0].data.tolist() == [[1, 2], [3, 4]]
        assert recording.notes == ["2 empty lines passed over, first row 3"]


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


def test_label_runs_break_at_empty_cells_and_gaps(write: Write) -> None:
    cells = ["", "a", "a", "b", "", "b", "b", "b"]
    rows = [f"{(i + 5 * (i > 6)) / 10},{i},{cell}" for i, cell in enumerate(cells)]
    recording = one(write("\n".join(["t,ax,label", *rows])))
    ms = [(label.label, label.start_ns // 10**6, label.end_ns // 10**6) for label in recording.labels]
    assert ms == [("a", 100, 300), ("b", 300, 400), ("b", 500, 700), ("b", 1200, 1300)]


def test_an_absent_label_column_is_said(write: Write) -> None:
    recording = one(write("ax,ay\n1,2\n"), ReadOptions(inputs=PLAIN.inputs, label_column="speed"))
    assert (recording.labels, recording.notes) == ([], ["no label column `speed`: read without labels"])


def test_stream_and_session_names_from_the_user(write: Write) -> None:
    path = write("ax,ay\n1,2\n")
    recording = one(path, ReadOptions(inputs=PLAIN.inputs, session_name="mine", stream_name="imu.left"))
    assert (recording.session, recording.streams[0].header.format.stream) == ("mine", "imu.left")
    two = ReadOptions(
        inputs=(InputOptions("a", ("ax",), Fraction(1)), InputOptions("b", ("ay",), Fraction(1))), stream_name="c"
    )
    assert str(error_of(path, two)) == f"{path}: the stream name `c` is none of the recipe's a, b"


def test_labels_json_beside_the_file(write: Write) -> None:
    path = write("\n".join(["t,ax", *timed(50)]))
    options = ReadOptions(label_key="k", label_names={"1": "on"})
    assert one(path, options).notes[-1] == "no walk.labels.json beside it: read without labels"
    event = (
        '{{"startTime": {{"sec": {0}, "nsec": 0}}, "endTime": {{"sec": {1}, "nsec": 5}}, "metadata": {{"k": "{2}"}}}}'
    )
    write(
        '{"events": ['
        + ",".join([event.format(1, 2, "1.0"), event.format(90, 91, "0"), event.format(0, 1, "")])
        + "]}",
        "walk.labels.json",
    )
    recording = one(path, options)
    assert [(label.label, label.start_ns, label.end_ns) for label in recording.labels] == [("on", 10**9, 2 * 10**9 + 5)]
    assert recording.notes[-2:] == [
        "walk.labels.json: 1 events without `k` left out",
        "walk.labels.json: 1 labels outside the recording left out",
    ]


def test_folders_names_and_wrong_paths(write: Write, tmp_path: Path) -> None:
    write("ax,ay\n1,2\n", "d/p2/walk.csv")
    write("ax,ay\n3,4\n", "d/p1/walk.csv")
    write("ax,ay\n5,6\n", "d/run.csv")
    write("read me", "d/readme.txt")
    write("ax,ay\n7,8\n", "d/.hidden/x.csv")
    found = [(r.session, r.streams[0].data[0, 0]) for r in read([tmp_path / "d"], PLAIN)]
    assert found == [("d-p1-walk", 3.0), ("d-p2-walk", 1.0), ("run", 5.0)]
    assert str(error_of(tmp_path / "nowhere")) == f"{tmp_path / 'nowhere'}: no such file or folder"
    assert "cannot read .doc; known are .csv, .tsv" in str(error_of(write("x", "x.doc")))
    (tmp_path / "empty").mkdir()
    assert "the folder holds no file that can be read" in str(error_of(tmp_path / "empty"))


def test_urls(write: Write) -> None:
    pytest.importorskip("fsspec", reason="fsspec is not installed")
    path = write("ax,ay\n1,2\n")
    (recording,) = read([f"file://{path}"], PLAIN)
    assert (recording.session, recording.streams[0].data.tolist()) == ("walk", [[1, 2]])
    with pytest.raises(SourceError, match="no such file or folder"):
        list(read([f"file://{path}x.csv"], PLAIN))
