"""CSV files as recordings, against the csv module and numpy.genfromtxt; every malformed file with its row."""

from __future__ import annotations

import csv
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tables import PLAIN, Write, error_of, one, refused

from kymo.streams.readers import csv_file, read
from kymo.streams.recording import InputOptions, ReadOptions


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


@pytest.mark.parametrize(
    ("content", "row", "text"),
    [
        ("", None, "is empty; expected a header row and rows of numbers"),
        ("\n\n", None, "is empty"),
        ("ax,ay\n", None, "has a header but no rows"),
        ("ax,ay\n\n\n", None, "has a header but no rows"),
        ("1,2\n3,4\n", None, "no column `ax`; there are: c1, c2"),
        ("ax,ay\n1,2\n3,abc\n", 3, "column `ay` has 'abc', expected a number"),
        ("ax,ay\n1,2\n\n3,1_0\n", 4, "column `ay` has '1_0', expected a number"),
        ("ax,ay\n1,2\n3\n", 3, "1 columns where the header has 2"),
        ("ax,ay\n1,2\n3,4,5\n", 3, "3 columns where the header has 2"),
        ("ax,az\n1,2\n", None, "no column `ay` (did you mean `az`?); there are: ax, az"),
        ("AX,AY\n1,2\n", None, "no column `ax` (did you mean `AX`?); there are: AX, AY"),
        ("ax,ay,ax\n1,2,3\n", None, "no column `ax` (did you mean `ax.2`?); there are: ax.1, ay, ax.2"),
        ("t,ax,ay\n0,1,2\nsoon,1,2\n", 3, "column `t` has 'soon', expected a number of seconds"),
        ("t,ax,ay\n0,1,2\n,1,2\n", 3, "column `t` has '', expected a number of seconds"),
        (
            "timestamp,ax,ay\n2024-01-01,1,2\n2024-13-01,1,2\n",
            3,
            "has '2024-13-01', expected a date and time such as 2024-05-13 18:36:24.5",
        ),
        ("t_ns,ax,ay\n0,1,2\n99999999999999999999,1,2\n", 3, "expected a number of ns"),
        ("session,ax,ay\ns,1,2\n,1,2\n", 3, "column `session` is empty, it names the session"),
        ("subject,ax,ay\nA,1,2\nB,1,2\n", None, "session walk has the subjects A and B; add `subject` to the columns"),
        (b"ax,ay\n1,\xff\n", 2, "column `ay` has '\u00ff', expected a number"),
        (b"\xff\xfea\x00x\x00", None, "has a header but no rows"),
        (b"PK\x03\x04", None, "is a packed file (zip, gzip …; Excel's workbooks are such, too): unpack it first"),
    ],
)
def test_malformed(write: Write, content: str | bytes, row: int | None, text: str) -> None:
    path = write(content)
    error = refused(path, PLAIN)
    assert error.row == row
    assert str(error).startswith(f"{path}, row {row}: " if row else f"{path}: ")
    assert text in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize("cut", ["2,5", "2", "2,5,"])
def test_a_file_that_ends_within_a_row_is_read_without_it(write: Write, cut: str) -> None:
    rows = [f"{i},{i + 3},{i + 5},a" for i in range(6)]
    recording = one(write("\n".join(["t,ax,ay,label", *rows, cut])))
    assert recording.streams[0].data[:, 0].tolist() == [i + 3 for i in range(6)]
    assert "the file ends within row 8, which is left out" in recording.notes
    assert refused(write("\n".join(["t,ax,ay,label", *rows, cut]) + "\n")).row == 8
    assert error_of(write(f"t,ax,ay,label\n{cut}"))  # which leaves nothing


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


@pytest.mark.parametrize(
    ("delimiter", "cell", "expected"),
    [
        (",", '"0,5"', 0.5),  # a decimal comma in quotes
        (",", '"{:,}"', None),
        (";", "{:,}", None),
        (";", "{:,}.5", None),
        (";", "{:_},5", None),  # points part thousands
        (";", "{:\u00a0}", None),
        (";", "{:'},5", None),
        ("\t", "{: }", None),
        (",", "{} g", None),
        (",", "{}\u00b0C", None),
        (",", "{}%", None),
        (",", "\u2212{}", None),
        (",", "  +{}  ", None),
    ],
)
def test_numbers_as_table_programs_write_them(write: Write, delimiter: str, cell: str, expected: float | None) -> None:
    """Values from below to above a thousand; thousands are parted only there."""
    counts = [998 + i for i in range(150)]

    def written(count: int) -> str:
        for sign, mark in (("_", "."), ("\u00a0", "\u00a0"), ("'", "'"), (" ", " ")):
            if f"{{:{sign}}}" in cell:
                return cell.replace(f"{{:{sign}}}", f"{count:,}".replace(",", mark))
        return cell.format(count)

    recording = one(
        write("\n".join([f"ax{delimiter}ay", *(f"{written(n)}{delimiter}{i}" for i, n in enumerate(counts))])), RATED
    )
    values = [expected or (n + 0.5 * cell.endswith("5")) * (-1 if "\u2212" in cell else 1) for n in counts]
    assert recording.streams[0].header.format.channels == ("ax", "ay")
    assert recording.streams[0].data[:, 0].tolist() == values


@pytest.mark.parametrize(
    "rows",
    [
        [f"{1 + i / 1000:.3f};0,5" for i in range(50)],
        [f"{1 + i / 4:.3f};0".replace(".", ",").replace(",000", "") for i in range(32)],
    ],
)
def test_three_decimals_are_no_thousands(write: Write, rows: list[str]) -> None:
    data = one(write("\n".join(["a;b", *rows])), RATED).streams[0].data
    assert (data[0, 0], data[:, 0].max() < 10, data[0, 1] < 1) == (1.0, True, True)


RATED = ReadOptions(inputs=(InputOptions("sensor", (), Fraction(50)),))


def test_a_thousand_far_below_is_no_one(write: Write) -> None:
    """Nor is it where commas part decimals and no number had a point before."""
    numbers = [*[700] * 3000, *range(900, 1100)]
    rows = [f"{n:,};{n / 8}" for n in numbers]
    path = write("\n".join(["p;q", *(row.replace(",", "_").replace(".", ",").replace("_", ".") for row in rows)]))
    assert one(path, RATED).streams[0].data[:, 0].tolist() == numbers
    path = write("\n".join(["p,q", *(f'"{n:,}",{n}' for n in numbers)]))
    assert "row 3102: column `p` has '1,000', expected a number" in error_of(path, RATED)


@pytest.mark.parametrize(
    "odd", ["?", "-", "--", "#N/A", "#DIV/0!", "1.#QNAN", "-1.#IND", "-nan(ind)", "NaN", "n/a", "undefined", "inf"]
)
def test_what_stands_for_no_value_is_missing(write: Write, odd: str) -> None:
    recording = one(write("\n".join(["ax,ay", *(f"{odd if i == 20 else i},{i}" for i in range(50))])), RATED)
    assert np.flatnonzero(np.isnan(recording.streams[0].data[:, 0])).tolist() == [20]
    assert "1 row with empty or NaN cells, kept as missing, first at row 22" in recording.notes


def test_truths_are_numbers_where_they_are_asked_for(write: Write) -> None:
    path = write("\n".join(["ax,button", *(f"{i},{i % 3 == 0}" for i in range(30))]))
    assert one(path, RATED).streams[0].header.format.channels == ("ax",)
    asked = ReadOptions(inputs=(InputOptions("sensor", ("button",), Fraction(50)),))
    assert one(path, asked).streams[0].data[:, 0].tolist() == [float(i % 3 == 0) for i in range(30)]


def test_units_in_the_cells_of_times_count(write: Write) -> None:
    recording = one(write("\n".join(["t,ax", *(f"{20 * i} ms,{i} m/s2" for i in range(30))])))
    assert recording.streams[0].header.format.rate == 50
    assert "`ax` has its unit in its cells (m/s2)" in recording.notes


ROWS = [f"{i / 50:.2f},{i},walk" for i in range(200)]


@pytest.mark.parametrize(
    ("between", "note"),
    [
        ("t,ax,label\n", "1 row of names passed over, first row 102"),
        ("\ufefft,ax,label\n", "1 row of names passed over, first row 102"),
        ("t,ax,label\ns,g,\n", "1 row of units passed over, first row 103"),
        ("# paused\n", "1 comment passed over, first row 102"),
        ("\0" * 512, "512 zero bytes passed over, as where a logger lost its power"),
    ],
)
def test_what_stands_between_rows_is_passed_over_and_said(write: Write, between: str, note: str) -> None:
    path = write("\n".join(["t,ax,label", *ROWS[:100], ""]) + between + "\n".join([*ROWS[100:], ""]))
    recording = one(path)
    assert [len(piece) for _, piece in recording.streams[0].pieces] == [200]
    assert note in recording.notes


@pytest.mark.parametrize("last", ["4.00,200,wal", '4.00,200,"wa', "4.00,2", "4.00,-,\0\0", "4.0", "4.00,2e,walk"])
def test_a_cut_last_row_is_left_out_whatever_is_missing(write: Write, last: str) -> None:
    recording = one(write("\n".join(["t,ax,label", *ROWS, last])))
    assert recording.streams[0].count == 200
    assert {label.label for label in recording.labels} == {"walk"}
    assert "the file ends within row 202, which is left out" in recording.notes


def test_a_time_that_is_cut_ends_the_file(write: Write) -> None:
    rows = [f"{i},2024-05-13T18:36:{24 + i / 50:06.3f}Z" for i in range(100)]
    recording = one(write("\n".join(["ax,timestamp", *rows, "100,2024-05-1"])))
    assert recording.streams[0].count == 100
    assert "the file ends within row 102, which is left out" in recording.notes


@pytest.mark.parametrize("late_ms", [3, -3, 9])
def test_marks_between_samples_are_no_samples(write: Write, late_ms: int) -> None:
    """Nor do they take the place of one; a sample without a value stays missing."""
    rows = {20 * i: "" if i == 30 else f"{i}" for i in range(200)} | {20 * i + late_ms: "" for i in (50, 90)}
    recording = one(write("\n".join(["time_ms,ax,event", *(f"{t},{rows[t]}," for t in sorted(rows))])))
    assert [(first, len(piece)) for first, piece in recording.streams[0].pieces] == [(0, 30), (31, 169)]
    assert any(note.startswith("3 rows without a value between samples") for note in recording.notes)
    assert (
        np.count_nonzero(
            np.isnan(
                one(write("\n".join(["time_ms,ax", *(f"{20 * i},{'' if i == 30 else i}" for i in range(200))])))
                .streams[0]
                .data
            )
        )
        == 1
    )


@pytest.mark.parametrize(("stamp", "rate"), [("2024-05-13 18:36:{:06.3f}", 50), ("{:.2f}", 50)])
def test_the_index_of_pandas_is_the_time(write: Write, stamp: str, rate: int) -> None:
    recording = one(write("\n".join([",ax", *(f"{stamp.format(i / 50)},{i % 7}" for i in range(200))])))
    assert (recording.streams[0].header.format.channels, recording.streams[0].header.format.rate) == (("ax",), rate)
    counted = one(write("\n".join([",t,ax", *(f"{3 * i},{i / 50},{i % 7}" for i in range(200))])))
    assert counted.streams[0].header.format.channels == ("ax",)


@pytest.mark.parametrize(
    ("word", "classes"), [("NA", {"walk"}), ("N/A", {"walk"}), ("#N/A", {"walk"}), ("null", {"walk", "null"})]
)
def test_words_that_say_there_is_no_label(write: Write, word: str, classes: set[str]) -> None:
    recording = one(
        write("\n".join(["t,ax,label", *(f"{i / 50},{i},{'walk' if i < 50 else word}" for i in range(100))]))
    )
    assert {label.label for label in recording.labels} == classes
    assert any("`null` counts as a class of `label`" in note for note in recording.notes) == (word == "null")


@pytest.mark.parametrize("where", ["name", "cell"])
def test_a_quote_that_none_closes_is_a_sign_of_inches(
    write: Write, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not looked for to the end of the file."""
    monkeypatch.setattr(csv_file, "_BLOCK_BYTES", 200)
    monkeypatch.setattr(csv_file, "_QUOTED", 100)
    name, cell = ('5" disk', "a") if where == "name" else ("disk", '5" disk')
    rows = [f"{i / 50},{i},{cell if i == 30 else 'a'}" for i in range(400)]
    recording = one(write("\n".join([f"t,ax,{name}", *rows, ""])))
    assert (recording.streams[0].header.format.channels, recording.streams[0].count) == (("ax",), 400)


def test_a_channel_that_begins_late_is_said(write: Write) -> None:
    rows = [f"{i / 50},{i},{'' if i < 2100 else i}" for i in range(2500)]
    assert any(
        note.startswith("columns left out, empty in the first 2,000 rows") and note.endswith(": pulse")
        for note in one(write("\n".join(["t,ax,pulse", *rows]))).notes
    )


def test_blanks_before_quotes_and_units(write: Write) -> None:
    recording = one(write("\n".join(["t, ax, label", *(f'{i / 50} s, {i} mg, "walk"' for i in range(50))])))
    assert ({label.label for label in recording.labels}, recording.streams[0].count) == ({"walk"}, 50)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig", "cp1252"])
def test_encodings(write: Write, encoding: str) -> None:
    text = "\r\n".join(["t,turn (\u00b0/s)", *(f"{i / 50},{i}" for i in range(50))])
    assert one(write(text.encode(encoding))).streams[0].data[:, 0].tolist() == list(range(50))


@pytest.mark.parametrize("timed", [True, False])
def test_marks_that_say_something_are_no_samples_of_late_ones_either(write: Write, timed: bool) -> None:
    """Samples of a headband arrive several under one stamp, with blinks between them; without times rows are counted."""
    first = "{:.2f},".format if timed else lambda _: ""
    rows = [f"{first(i // 7 * 7 / 50)}{i}," + f"\n{first(i / 50)},/blink" * (i % 90 == 40) for i in range(400)]
    recording = one(write("\n".join(["time_s," * timed + "ax,elements", *rows])), ReadOptions() if timed else RATED)
    assert recording.streams[0].data[:, 0].tolist() == list(range(400))
    assert "4 rows of marks without a value left out, first at row 43" in recording.notes


def test_a_class_that_looks_like_a_comment_is_none(write: Write) -> None:
    recording = one(
        write("\n".join(["label,t,ax", *(f"#{1 + i // 50},{i / 50},{'' if i == 7 else i}" for i in range(100))]))
    )
    assert (recording.streams[0].count, {label.label for label in recording.labels}) == (100, {"#1", "#2"})
