"""Pupils of eye trackers: whatever they call their columns, a stream at its rate in which blinks are missing; and a session of several
devices. The files are imitations after public documentation."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from physio_files import START, e4_files, eye_rows, write_e4, write_rows, write_workbook
from verbs import invoke

from kymo.streams.readers import read
from kymo.streams.recording import InputOptions, ReadOptions, Recording

TRACKERS = ("pupil_labs", "tobii", "studio", "gazepoint", "eyelink", "imotions")


def one(path: Path, *inputs: InputOptions) -> Recording:
    (recording,) = read([path], ReadOptions(inputs=inputs), lambda line: None)
    return recording


def samples(recording: Recording, rate: int) -> np.ndarray:
    """The pupil by number, NaN where it is missing."""
    (stream,) = recording.streams
    assert stream.header.format.rate == pytest.approx(rate, rel=1e-3)
    values = np.full(20 * rate, np.nan)
    for first, piece in stream.pieces:
        values[first : first + len(piece)] = piece[:, 0]
    return values


@pytest.mark.parametrize("tracker", TRACKERS)
@pytest.mark.parametrize("channel", ["pupil", "left", "right"])
def test_blinks_are_missing_whoever_writes_the_file(tmp_path: Path, tracker: str, channel: str) -> None:
    rows, sign, above = eye_rows(tracker)
    path = write_rows(tmp_path / "pupils.csv", rows, sign, above)
    rate = 120 if tracker == "pupil_labs" else 60
    recording = one(path) if channel == "pupil" else one(path, InputOptions("pupil", (channel,), Fraction(rate)))
    fmt = recording.streams[0].header.format
    assert (fmt.stream, fmt.channels) == ("pupil", (channel,))
    t = np.arange(20 * rate) / rate
    # Of rows of one eye each the right one is the surer.
    size = {"left": 3.0, "right": 3.2, "pupil": 3.2 if tracker == "pupil_labs" else 3.1}[channel] + 0.5 * np.sin(t)
    expected = np.where((t >= 5) & (t < 5.2), np.nan, size)
    np.testing.assert_allclose(samples(recording, rate), expected, rtol=1e-6)
    assert fmt.units == (("mm",) if tracker in ("pupil_labs", "gazepoint") else ())
    assert any("blinks are missing" in note for note in recording.notes)


@pytest.mark.parametrize(
    ("names", "lost"),
    [
        (("L Pupil Diameter [mm]", "R Pupil Diameter [mm]", "L Validity", "R Validity"), 0),  # SMI
        (("L Mapped Diameter [mm]", "R Mapped Diameter [mm]", "L Validity", "R Validity"), 0),
        (("LPUPILD", "RPUPILD", "LPUPILV", "RPUPILV"), 0),  # Gazepoint's interface
        (("ET_PupilLeft", "ET_PupilRight", "ET_ValidityLeftEye", "ET_ValidityRightEye"), 4),  # iMotions
        (("pupil_left", "pupil_right", "Blink detected (binary)", "note"), 1),
    ],
)
def test_what_a_flag_says_is_missing(tmp_path: Path, names: tuple[str, ...], lost: int) -> None:
    valid = 1 if lost == 0 else 0
    rows = [[i / 60, 3.0, 3.5, *[lost if 30 <= i < 40 else valid] * 2] for i in range(1200)]
    recording = one(write_rows(tmp_path / "pupils.csv", [["time_s", *names], *rows]))
    expected = np.where((np.arange(1200) >= 30) & (np.arange(1200) < 40), np.nan, 3.25)
    np.testing.assert_array_equal(samples(recording, 60), expected)


def test_one_eye_alone_is_the_pupil(tmp_path: Path) -> None:
    rows = [("t", "pupil [mm]", "blink"), *((i / 60, 0 if 30 <= i < 36 else 3, int(36 <= i < 40)) for i in range(600))]
    (stream,) = one(write_rows(tmp_path / "a.csv", rows)).streams
    assert (stream.header.format.stream, stream.header.format.units) == ("pupil", ("mm",))
    assert np.flatnonzero(np.isnan(stream.data[:, 0])).tolist() == list(range(30, 40))


def test_of_one_eye_that_is_shut_the_other_is_the_pupil(tmp_path: Path) -> None:
    rows = [("t", "pupil_left", "pupil_right"), *((i / 60, 3, 0 if i < 6 else 4) for i in range(600))]
    (stream,) = one(write_rows(tmp_path / "a.csv", rows)).streams
    assert stream.data[:8, 0].tolist() == [3] * 6 + [3.5] * 2


def test_what_is_relative_to_a_baseline_keeps_its_sign(tmp_path: Path) -> None:
    t = np.arange(600) / 60
    rows = [("t", "pupil_left", "pupil_right"), *((x, np.sin(x), np.cos(x)) for x in t.tolist())]
    recording = one(write_rows(tmp_path / "a.csv", rows))
    np.testing.assert_allclose(recording.streams[0].data[:, 0], (np.sin(t) + np.cos(t)) / 2)
    assert any("relative to a baseline" in note and "doubtful" in note for note in recording.notes)


def test_a_recipe_may_ask_for_columns_by_their_own_names(tmp_path: Path) -> None:
    rows = [("t", "pupil_left", "pupil_right", "gaze"), *((i / 60, i % 3, 4, i % 5) for i in range(600))]
    path = write_rows(tmp_path / "a.csv", rows)
    (stream,) = one(path, InputOptions("eyes", ("pupil_left", "gaze"), Fraction(60))).streams
    np.testing.assert_array_equal(stream.data, [(i % 3, i % 5) for i in range(600)])
    (stream,) = one(path, InputOptions("eyes", ("right", "gaze"), Fraction(60))).streams
    np.testing.assert_array_equal(stream.data, [(4, i % 5) for i in range(600)])


def test_other_signals_beside_a_pupil_stay(tmp_path: Path) -> None:
    rows = [("t", "eda", "pupil"), *((i / 60, 2 + i % 3, 0 if i == 9 else 3) for i in range(600))]
    (stream,) = one(write_rows(tmp_path / "a.csv", rows)).streams
    assert (stream.header.format.stream, stream.header.format.channels) == ("sensor", ("eda", "pupil"))
    assert np.isnan(stream.data).sum() == 1
    assert np.isnan(stream.data[9, 1])


SHEET: list[list[object]] = [[START, None], [4, None], *([1.5 + i % 7 / 10, START + i // 4] for i in range(80))]
INFO = [[5, START + 1, START + 9], [1, START + 10, START + 19]]


def devices(folder: Path, wristband: str, files: dict[str, str] | None = None) -> Path:
    """A folder of a session: a wristband's export, pupils by the same clock, a spreadsheet."""
    write_e4(folder / wristband, files)
    rows, _, _ = eye_rows("studio")
    write_rows(
        folder / "pupil.csv",
        [["time_s", *rows[0][1:]], *([START + i / 60, *row[1:]] for i, row in enumerate(rows[1:]))],
    )
    write_workbook(folder / "P07.xlsx", {"P07": SHEET, "info": INFO})
    return folder


@pytest.mark.parametrize("wristband", ["E4", "e4.zip", "."])
def test_a_folder_of_several_devices_is_one_session(tmp_path: Path, wristband: str) -> None:
    for person in ("P07", "P08"):
        devices(tmp_path / person, wristband)
    first, second = read([tmp_path], tell=lambda line: None)
    assert (first.session, second.session) == ("P07", "P08")
    streams = {stream.header.format.stream: stream for stream in first.streams}
    assert set(streams) == {"acc", "bvp", "eda", "eda.sheet", "hr", "ibi", "pupil", "tags", "temperature"}
    assert {name: stream.start_ns for name, stream in streams.items() if name in ("eda", "pupil", "eda.sheet")} == dict.fromkeys(
        ("eda", "pupil", "eda.sheet"), START * 10**9
    )  # fmt: skip
    assert [label.label for label in first.labels] == ["instrumental", "classical"]


def test_a_recipe_takes_the_streams_of_several_devices_and_the_labels_of_all(tmp_path: Path) -> None:
    inputs = (InputOptions("eda", ("eda",), Fraction(4)), InputOptions("pupil", ("pupil",), Fraction(60)))
    recording = one(devices(tmp_path / "P07", "E4"), *inputs)
    assert {s.header.format.stream: float(np.nanmean(s.data).round(1)) for s in recording.streams} == {
        "eda": 2.0,
        "pupil": 3.1,
    }
    assert [label.label for label in recording.labels] == ["instrumental", "classical"]


def test_a_recipe_made_from_several_devices_takes_a_signal_once(tmp_path: Path) -> None:
    devices(tmp_path / "P07", "E4")
    said = invoke("init", "several", "--from", tmp_path / "P07", "--out", tmp_path).output
    text = (tmp_path / "several.toml").read_text()
    assert 'stream = "eda"' in text
    assert 'stream = "eda.sheet"' not in text
    assert "also there: eda.sheet" in said


def test_without_the_wristband_the_spreadsheet_has_the_signal(tmp_path: Path) -> None:
    files = {name: text for name, text in e4_files().items() if name != "EDA.csv"}
    recording = one(devices(tmp_path / "P07", "E4", files))
    assert {s.header.format.stream for s in recording.streams} >= {"eda", "pupil", "bvp"}


def test_several_recordings_of_a_device_stay_apart(tmp_path: Path) -> None:
    write_e4(tmp_path / "P07" / "first")
    devices(tmp_path / "P07", "second")
    recordings = list(read([tmp_path / "P07"], tell=lambda line: None))
    assert {"first", "second"} < {recording.session for recording in recordings}
