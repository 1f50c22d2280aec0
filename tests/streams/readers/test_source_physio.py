"""Recordings of the body: exports of wristbands and spreadsheets; what is hardly so of them is said."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from documents import SHARED
from physio_files import START, e4_files, write_e4, write_workbook
from verbs import invoke

from kymo.streams.errors import SourceError
from kymo.streams.readers import read
from kymo.streams.recording import InputOptions, LabelOptions, ReadOptions, Recording

NS = 10**9
STUDY = SHARED / "data" / "physio_anu"
needs_study = pytest.mark.skipif(not STUDY.is_dir(), reason="shared/data/physio_anu is absent")
E4 = {"acc": 640, "bvp": 1280, "eda": 80, "hr": 20, "ibi": 21, "tags": 2, "temperature": 80}


def counts(recording: Recording) -> dict[str, int]:
    return {stream.header.format.stream: stream.count for stream in recording.streams}


def all_of(*paths: Path, options: ReadOptions = ReadOptions()) -> tuple[list[Recording], list[str]]:  # noqa: B008
    told = list[str]()
    return list(read(paths, options, told.append)), told


def one(*paths: Path) -> Recording:
    (recording,), _ = all_of(*paths)
    return recording


@pytest.mark.parametrize("name", ["night", "night.zip"])
def test_an_export_of_a_wristband_is_one_session_of_seven_streams(tmp_path: Path, name: str) -> None:
    recording = one(write_e4(tmp_path / name))
    assert (recording.session, counts(recording)) == ("night", E4)
    streams = {stream.header.format.stream: stream for stream in recording.streams}
    fmt = streams["acc"].header.format
    assert (fmt.rate, fmt.units) == (32, ("g",) * 3)
    np.testing.assert_array_equal(streams["acc"].data[:, 2], 63 / 64)
    assert streams["temperature"].header.format.units == ("°C",)
    assert {stream.start_ns for name, stream in streams.items() if name not in ("ibi", "tags")} == {START * NS}
    times = streams["tags"].times_ns
    assert times is not None
    assert times.tolist() == [(START + 5) * NS, (START + 12) * NS]
    assert not [note for note in recording.notes if "doubtful" in note]


def test_several_exports_in_a_folder_are_as_many_sessions(tmp_path: Path) -> None:
    write_e4(tmp_path / "all" / "first")
    write_e4(tmp_path / "all" / "second.zip", e4_files(start=START + 90_000))
    recordings, told = all_of(tmp_path / "all")
    assert {recording.session: recording.start_ns for recording in recordings} == {
        "first": START * NS,
        "second": (START + 90_000) * NS,
    }
    assert not told


def test_one_file_alone_has_the_name_of_its_stream(tmp_path: Path) -> None:
    write_e4(tmp_path, {"tags.csv": e4_files()["tags.csv"], "EDA.csv": e4_files()["EDA.csv"]})
    assert counts(one(tmp_path / "EDA.csv")) == {"eda": 80}
    (tmp_path / "EDA.csv").unlink()
    assert counts(one(tmp_path)) == {"tags": 2}


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("HR.csv", "", "is empty"),
        ("IBI.csv", "1700000000.0, IBI\n", "no rows"),
        ("TEMP.csv", "1700000000.0\n4.0\n", "no sample"),
        ("EDA.csv", "1700000000.0\n", "EDA.csv"),
    ],
)
def test_files_without_samples_are_left_out_and_said(tmp_path: Path, name: str, text: str, why: str) -> None:
    (recording,), told = all_of(write_e4(tmp_path / "half.zip", e4_files() | {name: text}))
    stream = {"TEMP.csv": "temperature"}.get(name, name[:-4].lower())
    assert counts(recording) == {key: count for key, count in E4.items() if key != stream}
    (line,) = told
    assert why in line


def test_a_table_program_of_another_country_has_saved_it(tmp_path: Path) -> None:
    texts = {name: text.replace(", ", ";").replace(",", ";").replace(".", ",") for name, text in e4_files().items()}
    recording, same = one(write_e4(tmp_path / "other", texts)), one(write_e4(tmp_path / "same"))
    assert counts(recording) == E4
    for stream, other in zip(recording.streams, same.streams, strict=True):
        np.testing.assert_array_equal(stream.data, other.data)
        assert stream.start_ns == other.start_ns


@pytest.mark.parametrize("name", ["P01_EDA.csv", "EDA (1).csv", "EDA - P01.csv"])
def test_a_name_around_that_of_the_sensor_changes_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(e4_files()["EDA.csv"])
    (stream,) = one(tmp_path / name).streams
    assert (stream.header.format.stream, stream.header.format.units, stream.count) == ("eda", ("uS",), 80)


@pytest.mark.parametrize("start", ["2023-11-14 22:13:20", f"{START}000", f"EDA\n{START}"])
def test_a_start_that_a_table_program_changed_is_the_same_moment(tmp_path: Path, start: str) -> None:
    text = e4_files()["EDA.csv"].replace(f"{START}.000000", start)
    streams = {s.header.format.stream: s for s in one(write_e4(tmp_path / "s", e4_files(EDA=text))).streams}
    assert (streams["eda"].start_ns, streams["eda"].count) == (START * NS, 80)


def test_a_folder_of_a_packing_program_is_no_recording(tmp_path: Path) -> None:
    write_e4(tmp_path / "s" / "__MACOSX", {"EDA.csv": "\0"})
    assert all_of(write_e4(tmp_path / "s"))[1] == []


def test_copies_are_passed_over(tmp_path: Path) -> None:
    files = e4_files()
    write_e4(tmp_path / "night", files | {"EDA (1).csv": files["EDA.csv"]})
    write_e4(tmp_path / "night.zip", files)
    (recording,), told = all_of(tmp_path)
    assert counts(recording) == E4
    assert [line.rpartition("/")[2] for line in told] == [
        "EDA (1).csv: is a copy of EDA.csv; left out",
        "night.zip: holds what is unpacked in night; left out",
    ]


def test_another_file_beside_of_the_same_name_is_no_copy(tmp_path: Path) -> None:
    write_e4(tmp_path / "night", e4_files() | {"EDA (1).csv": e4_files(start=START + 60)["EDA.csv"]})
    recordings, _ = all_of(tmp_path)
    assert [(r.session, counts(r)) for r in recordings] == [("night", E4), ("EDA (1)", {"eda": 80})]


def test_a_clock_of_another_zone_is_said(tmp_path: Path) -> None:
    later = e4_files(start=START + 3600)
    (recording,), told = all_of(write_e4(tmp_path / "apart", e4_files() | {"EDA.csv": later["EDA.csv"]}))
    assert "eda" not in counts(recording)
    assert "begins +1 h" in told[0]
    assert "offset_ms = -3600000" in told[0]
    hours = [f"{START + shift}.00\n1.00\n" + "33.2\n33.3\n" * 3600 for shift in (0, 0, 3600)]
    recording = one(write_e4(tmp_path / "over", dict(zip(("TEMP.csv", "HR.csv", "EDA.csv"), hours, strict=True))))
    assert "eda begins +1 h from hr, as where one clock is local, doubtful" in recording.notes


def test_a_stream_that_ends_early_is_said(tmp_path: Path) -> None:
    files = e4_files(60)
    files["ACC.csv"] = "\n".join(files["ACC.csv"].splitlines()[: 2 + 32 * 40]) + "\n12,"
    recording = one(write_e4(tmp_path / "a", files))
    assert counts(recording)["acc"] == 32 * 40
    assert "acc ends 20 s before bvp, doubtful" in recording.notes


@pytest.mark.parametrize(
    ("name", "change", "doubt"),
    [
        ("EDA", lambda x: 1000 * x, "as where it is in nS"),
        ("EDA", lambda x: 1000 / x, "in kΩ or nS"),
        ("EDA", lambda x: x * 1e-6, "as where it is in S"),
        ("EDA", lambda x: 0 * x, "not worn"),
        ("EDA", lambda x: np.where(np.arange(len(x)) % 8 == 3, -1, x), "10 numbers (12.5%) beyond 0 to 60 uS, such as -1"),
        ("TEMP", lambda x: x * 1.8 + 32, "in °F"),
        ("TEMP", lambda x: x + 273.15, "in K"),
        ("TEMP", lambda x: np.where(np.arange(len(x)) == 70, 382.2, x), "1 numbers (1.2%) beyond 10 to 45 °C, such as 382.2"),
        ("HR", lambda x: x / 60, "in Hz"),
        ("BVP", np.sign, "stands still"),
    ],
)  # fmt: skip
def test_what_no_body_has_is_doubted(tmp_path: Path, name: str, change: object, doubt: str) -> None:
    lines = e4_files()[f"{name}.csv"].splitlines()
    assert callable(change)
    rows = [f"{value:.9f}" for value in change(np.array(lines[2:], float))]
    recording = one(write_e4(tmp_path / "a", e4_files() | {f"{name}.csv": "\n".join([*lines[:2], *rows, ""])}))
    (note,) = [note for note in recording.notes if note.endswith("doubtful")]
    assert doubt in note
    assert counts(recording) == E4


def test_units_that_are_said_are_no_doubt_where_they_are_known(tmp_path: Path) -> None:
    rows = [f"{i / 4},{2000 + i}" for i in range(80)]
    (tmp_path / "a.csv").write_text("\n".join(["t,eda [nS]", *rows]))
    (tmp_path / "b.csv").write_text("\n".join(["t,eda [kOhm]", *rows]))
    options = ReadOptions(stream_name="eda")
    (in_siemens, in_ohm), _ = all_of(tmp_path / "a.csv", tmp_path / "b.csv", options=options)
    assert not [note for note in in_siemens.notes if "doubtful" in note]
    assert "eda: it is in kOhm, where uS is usual, and not converted, doubtful" in in_ohm.notes


def utc(seconds: object) -> datetime:
    return datetime.fromtimestamp(float(str(seconds)), UTC).replace(tzinfo=None)


INFO = [(9, START + 10.25, START + 20.25), (10, START + 30, START + 40.5), (1, START + 41, START + 50)]


def sheet(seconds: int = 60, stray: int = 0, stamps: int = 1) -> list[list[object]]:
    """A sheet as the study's, with empty columns in front."""
    rows: list[list[object]] = [[START, None], [4, None]]
    rows += [[1 + i / 1000, START + i // 4] for i in range(4 * seconds)]
    return [[None] * stray + [row[0]] + [None] * (stamps - 1) + [row[1]] for row in rows]


@pytest.mark.parametrize(("stray", "stamps"), [(0, 1), (2, 1), (1, 3)])
def test_a_spreadsheet_of_the_study(tmp_path: Path, stray: int, stamps: int) -> None:
    recording = one(write_workbook(tmp_path / "P07.xlsx", {"P07": sheet(60, stray, stamps), "info": INFO}))
    (stream,) = recording.streams
    fmt = stream.header.format
    assert (recording.session, recording.subject) == ("P07", "P07")
    assert (fmt.stream, fmt.channels, fmt.units, fmt.rate) == ("eda", ("eda",), ("uS",), 4)
    assert (stream.count, stream.start_ns) == (240, START * NS)
    np.testing.assert_allclose(stream.data[:, 0], 1 + np.arange(240) / 1000, rtol=1e-15)
    assert [(label.set, label.label, label.start_ns - START * NS, label.end_ns - START * NS) for label in recording.labels] == [
        ("label", "pop", 10_250_000_000, 20_250_000_000),
        ("label", "pop", 30_000_000_000, 40_500_000_000),
        ("label", "classical", 41_000_000_000, 50_000_000_000),
    ]  # fmt: skip


def test_pieces_are_labels_and_sessions_if_asked(tmp_path: Path) -> None:
    path = write_workbook(tmp_path / "P07.xlsx", {"info": INFO, "P07": sheet()})
    options = ReadOptions(label_column="genre", more_labels=(LabelOptions("piece"), LabelOptions("order")))
    (recording,), _ = all_of(path, options=options)
    assert {(label.set, label.label) for label in recording.labels if label.start_ns == (START + 30) * NS} == {
        ("genre", "pop"),
        ("piece", "10"),
        ("order", "2"),
    }
    assert not [note for note in recording.notes if "label column" in note]
    options = ReadOptions(session=("subject", "piece"), keep="piece > 0")
    recordings, _ = all_of(path, options=options)
    assert [(r.session, r.subject, r.metadata, r.streams[0].count) for r in recordings] == [
        ("P07-9", "P07", {"piece": "9", "order": "1", "genre": "pop"}, 40),
        ("P07-10", "P07", {"piece": "10", "order": "2", "genre": "pop"}, 42),
        ("P07-1", "P07", {"piece": "1", "order": "3", "genre": "classical"}, 36),
    ]
    assert [label.label for r in recordings for label in r.labels] == ["pop", "pop", "classical"]
    assert recordings[1].start_ns == (START + 30) * NS


@pytest.mark.parametrize(
    ("change", "info", "note"),
    [
        ({}, None, "no sheet `info`"),
        ({5: "lost", 9: "n/a"}, INFO, "2 cells with text in place of a number, missing, first in row 6"),
        ({5: "1,5"}, INFO, "1 number in cells of text, first in row 6"),
        ({}, [*INFO, ("x", START, "?")], "row 4 of `info` is no number, start and end"),
        ({}, [*INFO, (2, START + 49, START + 55)], "piece 2 begins 1.0 s before piece 1 ends, doubtful"),
        ({}, [*INFO, (2, START + 59, START + 65)], "piece 2 of `info` is not within the recording, doubtful"),
        ({}, [*INFO, (13, START + 51, START + 55)], "no genre is known of piece 13"),
        ({}, [("piece", "start", "end"), *INFO], ""),
    ],
)
def test_what_is_odd_in_a_spreadsheet_is_said(
    tmp_path: Path, change: dict[int, object], info: list[tuple[object, ...]] | None, note: str
) -> None:
    rows = sheet()
    for row, cell in change.items():
        rows[row][0] = cell
    recording = one(write_workbook(tmp_path / "P07.xlsx", {"P07": rows} | ({"info": info} if info else {})))
    known = ("rows 1 and 2 of its sheet", "rate 4 Hz", "2 rows with empty")
    odd = [text for text in recording.notes if not text.startswith(known)]
    assert [text for text in odd if note in text] if note else not odd
    assert recording.streams[0].count == 240
    assert [label.label for label in recording.labels][:3] == (["pop", "pop", "classical"] if info else [])


def test_stamps_that_jump_are_doubted(tmp_path: Path) -> None:
    rows = sheet()
    for row in rows[102:]:
        row[1] = int(str(row[1])) + 3600
    recording = one(write_workbook(tmp_path / "P07.xlsx", {"P07": rows, "info": INFO}))
    (note,) = [note for note in recording.notes if "stamps" in note]
    assert "+3600 s from what the rate gives, first in row 103" in note
    assert recording.streams[0].count == 240


def test_marks_of_open_workbooks_are_passed_over(tmp_path: Path) -> None:
    path = write_workbook(tmp_path / "P07.xlsx", {"P07": sheet(), "info": INFO})
    (tmp_path / "~$P07.xlsx").write_bytes(b"\x05user" + bytes(160))
    for paths in ([tmp_path], [path, tmp_path / "~$P07.xlsx"]):
        recordings, told = all_of(*paths)
        assert [recording.session for recording in recordings] == ["P07"]
        assert "~$P07.xlsx: is no workbook, but the mark" in told[0]


def test_the_sheet_that_holds_a_signal_is_read_and_its_times_may_be_dates(tmp_path: Path) -> None:
    info = [("piece", "from", "to"), *((piece, *map(utc, times)) for piece, *times in INFO)]
    signal = [[utc(START)], *([row[0]] for row in sheet()[1:])]
    recording = one(write_workbook(tmp_path / "P07.xlsx", {"remarks": [("none",)], "a": signal, "info": info}))
    (tmp_path / "same").mkdir()
    same = one(write_workbook(tmp_path / "same" / "P07.xlsx", {"P07": sheet(), "info": INFO}))
    assert recording.start_ns == START * NS
    assert [(label.start_ns, label.label) for label in recording.labels] == [
        (label.start_ns, label.label) for label in same.labels
    ]


def test_cells_far_away_that_hold_nothing_take_no_room(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in [("t", "x"), *((i / 10, i) for i in range(20))]:
        book.active.append(row)
    book.active.cell(300_000, 9_000).number_format = "0.0"  # 300,000 × 9,000 cells, were they kept
    book.save(tmp_path / "a.xlsx")
    assert counts(one(tmp_path / "a.xlsx")) == {"sensor": 20}


def test_a_sheet_that_is_seen_comes_before_one_that_is_hidden(tmp_path: Path) -> None:
    path = write_workbook(tmp_path / "walk.xlsx", {name: [("t", "x"), (0, n), (1, n)] for n, name in enumerate("ab")})
    book = openpyxl.load_workbook(path)
    book["a"].sheet_state = "hidden"
    book.active = 1
    book.save(path)
    assert one(path).streams[0].data.tolist() == [[1], [1]]


def test_formulas_that_nobody_worked_out_are_refused(tmp_path: Path) -> None:
    rows = [("t", "x", "y"), *((i / 10, i, f"=B{i + 2}*2") for i in range(9))]
    with pytest.raises(SourceError, match="9 formulas without a stored value"):
        one(write_workbook(tmp_path / "a.xlsx", {"a": rows}))


def test_any_table_in_a_workbook_is_read_as_csv_is(tmp_path: Path) -> None:
    header, rows = ("t", "ax", "ay", "label"), [(i / 50, i % 7 / 4, -i, "walk") for i in range(100)]
    write_workbook(tmp_path / "walk.xlsx", {"walk": [header, *rows], "remarks": [("nothing",)]})
    lines = [",".join(map(str, row)) for row in (header, *rows)]
    (tmp_path / "same.csv").write_text("\n".join(lines))
    recording, same = one(tmp_path / "walk.xlsx"), one(tmp_path / "same.csv")
    assert recording.notes == ["read is sheet `walk`, not remarks", *same.notes]
    (stream,), (other,) = recording.streams, same.streams
    assert stream.header.format == other.header.format
    np.testing.assert_array_equal(stream.data, other.data)
    assert [label.label for label in recording.labels] == ["walk"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"PK\x03\x04" + bytes(200), "is no whole workbook"),
        (b"\xd0\xcf\x11\xe0" + bytes(200), "an old Excel workbook, or one with a password"),
        (b"", "is empty"),
    ],
)
def test_what_is_no_workbook_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "a.xlsx"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=why):
        one(path)


@needs_study
def test_recordings_of_the_study() -> None:
    import openpyxl

    recordings, _ = all_of(*(STUDY / f"P{number}.xlsx" for number in ("09", "12")))
    assert [(recording.session, len(recording.labels)) for recording in recordings] == [("P09", 8), ("P12", 8)]
    assert "piece 10 begins 35.3 s before piece 9 ends, doubtful" in recordings[1].notes
    assert "eda: its middle is 0.04354 uS, as of a sensor that is not worn, doubtful" in recordings[1].notes
    book = openpyxl.load_workbook(STUDY / "P09.xlsx", read_only=True)
    cells = [row[0] for row in book["P09"].iter_rows(min_row=3, values_only=True) if row[0] is not None]
    np.testing.assert_array_equal(recordings[0].streams[0].data[:, 0], np.array(cells, float))
    starts = [round(Fraction(str(row[1])) * NS) for row in book["info"].iter_rows(values_only=True)]
    assert [label.start_ns for label in recordings[0].labels] == starts


def test_inspect_says_what_recordings_hold(tmp_path: Path) -> None:
    write_e4(tmp_path / "night", e4_files() | {"HR.csv": ""})
    path = write_workbook(tmp_path / "P07.xlsx", {"P07": sheet(), "info": INFO})
    inspect = partial(invoke, "inspect", tmp_path / "night", path)
    done = inspect()
    lines = done.stdout.splitlines()
    assert lines[0].startswith("night: 20.0 s, from 2023-11-14T22:13:20.000Z (")
    assert ["eda", "80", "4", "0", "0", "20.0", "s", "eda", "(uS)"] in [line.split() for line in lines]
    assert "labels `label`: pop (2), classical (1)" in lines
    assert "HR.csv: is empty" in done.stderr
    night, person = (json.loads(line) for line in inspect("--json").stdout.splitlines())
    assert {row["stream"]: row["samples"] for row in night["streams"]} == {k: v for k, v in E4.items() if k != "hr"}
    assert person["labels"] == {"label": {"pop": 2, "classical": 1}}


def test_inputs_of_a_recipe_take_what_they_name(tmp_path: Path) -> None:
    inputs = (InputOptions("eda", ("eda",), Fraction(4)), InputOptions("temp", (), Fraction(4)))
    (recording,), _ = all_of(write_e4(tmp_path / "a"), options=ReadOptions(inputs=inputs))
    assert counts(recording) == {"eda": 80, "temp": 80}
