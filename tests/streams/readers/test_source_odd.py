"""Logs that are odd in one way each, as devices and table programs write them: read right, or refused by name."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple, cast

import numpy as np
import pytest
from mcap_files import mcap, sample
from tables import at_rate, check_read, error_of, one, table

from kymo.processors.recipe.init import survey_of
from kymo.streams.errors import SourceError, SourceWarning
from kymo.streams.readers import files, label_keys, read
from kymo.streams.readers.files import File, FileFormat
from kymo.streams.recording import InputOptions, ReadOptions, Recording


class Case(NamedTuple):
    """Head, row i, how many rows; what is read, with a rate where the recipe gives one: pieces as first number and samples."""

    head: str
    row: Callable[[int], str]
    count: int
    rate: float
    given: int | None = None
    channels: tuple[str, ...] = ("ax",)
    pieces: list[tuple[int, int]] | None = None
    ends: tuple[float, float] | None = None


READ = {
    "seconds since midnight": Case(
        "timestamp,emg", lambda i: f"{45231.5 + i / 500:.6f},{i}", 1000, 500, channels=("emg",)
    ),
    "a counter of 16 bits": Case("PacketCounter,ax", lambda i: f"{(64036 + i) % 65536},{i}", 3000, 100, given=100),
    "a counter of 8 bits": Case("packet,ax", lambda i: f"{i % 256},{i}", 1000, 100, given=100),
    "microseconds of 32 bits": Case(
        "SampleTimeFine,ax", lambda i: f"{(2**32 - 15_000_000 + i * 10_000) % 2**32},{i}", 3000, 100
    ),
    "an index that begins anew": Case("index,ax", lambda i: f"{i % 300},{i}", 900, 100, given=100),
    "an index with an empty cell": Case("frame,ax", lambda i: f"{'' if i == 250 else i},{i}", 500, 100, given=100),
    "whole seconds at 64 Hz": Case("timestamp,ax", lambda i: f"{1_700_000_000 + i // 64},{i}", 3840, 64),
    "minutes": Case("Time (min),hr", lambda i: f"{i / 120:.6f},{i}", 400, 2, channels=("hr",)),
    "ten thousandths": Case("SampleTimeFine,ax", lambda i: f"{5000 + i * 100},{i}", 400, 100),
    "microseconds since the start": Case("timestamp,ax", lambda i: f"{700_000_000 + 2000 * i},{i}", 400, 500),
    "the rate above, a counter with a jump": Case(
        "// Update Rate: 100.0Hz\nPacketCounter,ax",
        lambda i: f"{i + 1000 * (i > 250)},{i}",
        300,
        100,
        pieces=[(0, 251), (1251, 49)],
    ),
    "generated, and a rate": Case("# Generated 2024-05-01\n# Sampling rate: 2 kHz\nax", lambda i: f"{i}", 100, 2000),
    "names in a comment": Case("# ax,note", lambda i: f"{i},walk", 30, 50, given=50),
    "names and units in comments": Case("# t,ax\n# s,g", lambda i: f"{i / 50},{i}", 100, 50),
    "names that begin with digits": Case("time,1st\ns,mm", lambda i: f"{i / 50},{i}", 100, 50, channels=("1st",)),
    "a title in a padded row": Case(
        "Subject five,,\ntime_s,ax,ay", lambda i: f"{i / 100},{i},0", 100, 100, channels=("ax", "ay")
    ),
    "a clock beside the time of day": Case(
        "timestamp,device time,ax", lambda i: f"2024-01-01T00:00:00.{i:03d}Z,{5_000_000_000 + i * 1000},{i}", 500, 1000
    ),
    "a batch that comes late": Case(
        "t,ax",
        lambda i: f"{(i if i < 1000 else i + 500 if i < 2000 else i - 1000 if i < 2500 else i) / 100:.2f},{i}",
        4000,
        100,
    ),
    "three decimals": Case(
        "timestamp;az;trial",
        lambda i: f"2024-01-01T00:00:{i / 50:06.3f}Z;9,{i % 900 + 100};1.1",
        300,
        50,
        channels=("az", "trial"),
        ends=(9.1, 9.399),
    ),
}


@pytest.mark.parametrize("case", READ)
def test_read(tmp_path: Path, case: str) -> None:
    about = READ[case]._asdict()
    ends = about.pop("ends") or (0, about["count"] - 1)
    stream = check_read(tmp_path / "a.csv", **about, rel=1e-3)
    data = np.concatenate([piece for _, piece in stream.pieces])
    assert (data[0, 0], data[-1, 0]) == ends


@pytest.mark.parametrize("first", ["NA,NA", ",", "nan,nan"])
def test_a_first_sample_without_values_is_no_row_of_units(tmp_path: Path, first: str) -> None:
    (tmp_path / "a.csv").write_text("\n".join(["ax,ay", first, *(f"{i},{i}" for i in range(50)), ""]))
    options = at_rate(50)
    assert one(tmp_path / "a.csv", options).streams[0].count == 51 - (first == ",")


@pytest.mark.parametrize("space", [" ", "\u00a0", "\u3000"])
def test_a_row_of_spaces_is_an_empty_line(tmp_path: Path, space: str) -> None:
    table(tmp_path / "a.csv", "t,ax,ay", [f"{i / 50},{i},1" if i != 20 else f"{space},," for i in range(40)])
    recording = one(tmp_path / "a.csv")
    assert recording.streams[0].count == 39
    assert "1 empty line passed over, first row 22" in recording.notes


@pytest.mark.parametrize(
    ("head", "rows", "rate", "message"),
    [
        ("timestamp,ax", [f"{638_500_000_000_000_000 + 100_000 * i},{i}" for i in range(100)], None, "unknown unit"),
        ("# Max heart rate: 190 bpm\nax,ay", [f"{i},1" for i in range(100)], None, "nothing gives the sampling rate"),
        ("# Sampling rate: 1,000 Hz\nax,ay", [f"{i},1" for i in range(100)], None, "nothing gives the sampling rate"),
        (
            "ax,ay,label",
            [f"{i},1,walk" for i in range(50)] + [f"{i},1,walk, fast" for i in range(120)],
            50,
            "row 52: 4 columns where the header has 3",
        ),
    ],
)
def test_refused(tmp_path: Path, head: str, rows: list[str], rate: int | None, message: str) -> None:
    table(tmp_path / "a.csv", head, rows)
    inputs = (InputOptions("sensor", (), Fraction(rate)),) if rate else ()
    with pytest.raises(SourceError, match=message):
        list(read([tmp_path / "a.csv"], ReadOptions(inputs=inputs)))


@pytest.mark.parametrize("odd", ["nan", "inf", "1e300", "", "x"])
def test_a_counter_without_a_number_is_counted_on(tmp_path: Path, odd: str) -> None:
    (tmp_path / "a.csv").write_text("\n".join(["frame,ax", *(f"{odd if i == 250 else i},{i}" for i in range(300)), ""]))
    recording = one(tmp_path / "a.csv", ReadOptions(inputs=(InputOptions("sensor", ("ax",), Fraction(50)),)))
    assert [(first, len(piece)) for first, piece in recording.streams[0].pieces] == [(0, 300)]
    assert any("first at row 252" in note for note in recording.notes)


def test_a_file_cut_before_its_times_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("ax,time_ms\n5")
    with pytest.raises(SourceError, match="no whole row"):
        list(read([tmp_path / "a.csv"], ReadOptions()))


def test_of_formats_with_one_suffix_the_first_bytes_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_own(file: File, options: ReadOptions) -> Iterator[Recording]:
        yield Recording("own", [])

    own = FileFormat("own_format:read_own", (".csv",), holds=lambda start: start.startswith(b"OWN"))
    monkeypatch.setitem(sys.modules, "own_format", cast(ModuleType, SimpleNamespace(read_own=read_own)))
    monkeypatch.setattr(files, "FORMATS", (own, *files.FORMATS))
    (tmp_path / "a.csv").write_text("OWN,1\n")
    (tmp_path / "b.csv").write_text("t,x\n0,1\n0.1,2\n")
    assert [recording.session for recording in read([tmp_path])] == ["own", "b"]


#: First bytes, a file's name, and what is said of it.
FOREIGN = {
    "EDF": (b"0       X X X X".ljust(168) + b"04.03.2115.20.30256     ", "a.dat", "is EDF: `mne.io.read_raw"),
    "XDF": (b"XDF:\x01\x3a\x01\x00<?xml", "a.xdf", "is XDF (Lab Streaming Layer): `pyxdf.load_xdf(FILE)`"),
    "a bag of ROS 2": (b"SQLite format 3\x00", "a.db3", "rosbags.highlevel.AnyReader"),
    "EEGLAB in MATLAB's format": (b"MATLAB 5.0 MAT-file", "a.set", "is EEGLAB: `mne.io.read_raw('X.set')"),
    "MATLAB": (b"MATLAB 5.0 MAT-file", "a.mat", "`scipy.io.loadmat(FILE)`"),
    "a workbook": (b"PK\x03\x04", "a.ods", "pandas.read_excel(FILE)"),
    "a workbook named as CSV": (b"PK\x03\x04", "a.csv", "unpack it first; the name of a workbook ends in .xlsx"),
    "packed CSV": (b"\x1f\x8b", "a.csv.gz", "unpack it first"),
    "ActiGraph": (b"PK\x03\x04", "a.gt3x", "export raw CSV with ActiLife"),
    "GENEActiv": (b"Device Identity\r\nDevice Unique", "a.bin", "is GENEActiv's own format"),
    "Axivity": (b"MD\xfc\x03" + bytes(99), "a.cwa", "export CSV with OmGui"),
    "a watch": (b"\x0e\x10\x43\x08\x00\x00\x00\x00.FIT", "a.bin", "fitparse.FitFile(FILE)"),
    "WFDB": (b"100 2 360 650000\n100.dat 212 200\n", "a.hea", "wfdb.rdsamp(NAME)"),
    "signals of WFDB": (bytes(range(256)), "a.dat", "if X.hea stands beside it, it is WFDB"),
    "nothing known": (bytes(range(256)), "a.bin", "is a binary file of no known format"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "a.parquet", "fetch that with `git lfs pull`"),
    "a web page": (b"<!DOCTYPE html>\n<html>", "a.csv", "is a web page"),
    "a video": (b"\x00\x00\x00\x20ftypisom", "a", "is a video"),
    "XML": (b"<?xml version='1.0'?>\n<TrainingCenterDatabase>", "a.xml", "is TCX"),
    "a phone's log": (b'[{"sensor": "Accelerometer", "time": "1", "x": 1}]', "a.json", "kymo prepare phone"),
    "poses": (b'{"people": [{"pose_keypoints_2d": [1, 2, 3]}]}', "a.json", "it holds poses"),
    "Edge Impulse": (b'{"protected": {}, "payload": {"values": [[1]]}}', "a.json", "of Edge Impulse"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_not_read_is_named_with_the_way_to_a_table(tmp_path: Path, case: str) -> None:
    start, name, said = FOREIGN[case]
    (tmp_path / name).write_bytes(start)
    error = error_of(tmp_path / name)
    assert said in error


def test_formats_that_a_folder_holds_besides_are_said(tmp_path: Path) -> None:
    for name in ("a.edf", "b.edf", "c.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(SourceError, match=r"holds no file that can be read .*; a.edf is EDF: .* \(and 1 more .edf\)"):
        list(read([tmp_path]))
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").mkdirs(str(tmp_path))  # an empty folder elsewhere, whose name one on the disk has
    with pytest.raises(SourceError, match=r"holds no file that can be read \([^;]*\)$"):
        list(read([f"memory:/{tmp_path}"]))
    (tmp_path / "a.csv").write_text("t,ax\n0,1\n0.1,2\n")
    with pytest.warns(SourceWarning) as told:
        assert [recording.session for recording in read([tmp_path])] == ["a"]
    (one,) = told
    assert "a.edf: is EDF" in str(one.message)
    (tmp_path / "a.csv").write_text("x\n1\n2\n")
    with pytest.raises(SourceError, match=r"a.csv: nothing gives the sampling rate"):
        list(read([tmp_path]))


@pytest.mark.parametrize(
    "text", ["# nothing\n", "sep=;\n", "sep=;\n# nothing\n", "\n\n", "# a\n\n# b", "[Header]\nName: x\n"]
)
def test_text_without_a_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(
        SourceError, match=r"a.csv: (holds no table|is empty|has a header but no rows|no column holds numbers)"
    ):
        list(read([tmp_path / "a.csv"]))


@pytest.mark.parametrize("head", ["22 49 35", "ms 1 2", "22 49.5 35", "FEA1 FEA2 ID3", "100 2 360\n1.5 212 3"])
def test_what_begins_like_another_format_is_a_table_still(tmp_path: Path, head: str) -> None:
    table(tmp_path / "a.txt", head, (f"{i % 7} {20 + i} 35" for i in range(50)))
    assert one(tmp_path / "a.txt", at_rate(50)).streams[0].count >= 50


@pytest.mark.parametrize("name", ["a.log", "a.dat", "a"])
def test_text_is_read_whatever_its_suffix(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("t,ax\n" + "".join(f"{i / 10},{i}\n" for i in range(50)))
    assert one(tmp_path / name).streams[0].count == 50


@pytest.mark.parametrize(
    ("head", "row"),
    [
        ("timestamp,sensor,x,y", lambda i: f"{1614867630000 + i // 2 * 10},{'acc' if i % 2 else 'gyr'},{i},{i}"),
        ("count,streamType,tag,time,values", lambda i: f"8,2,{[7, 13, 66][i % 3]},{1551454798 + i // 3},{i}"),
        ("keypoint,x,y", lambda i: f"{'ABC'[i % 3]},{i},{i}"),
        ("time,side,x", lambda i: f"{i // 2 / 100},{(i + (i // 2) ** 2 // 3) % 2},{i}"),
        ("time,sensor_id,x", lambda i: f"{i / 100},{(i * i + i) // 2 % 5},{i}"),
    ],
)
def test_rows_of_several_sensors_are_refused_by_name(tmp_path: Path, head: str, row: Callable[[int], str]) -> None:
    table(tmp_path / "a.csv", head, [*map(row, range(60))])
    with pytest.raises(SourceError, match=r"says which sensor each row is of .*: take one with keep = \"\w+ == "):
        list(read([tmp_path / "a.csv"]))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *((name, range(41)) for name in ("hand_x", "sensor1", "channel1", "foot_fx", "signal", "type", "person")),
        ("side", (0, 1)),
    ],
)
def test_numbers_of_a_channel_are_no_numbers_of_sensors(tmp_path: Path, name: str, values: Sequence[int]) -> None:
    numbers = np.random.default_rng(1).choice(values, 300)
    (tmp_path / "a.csv").write_text(f"t,{name},y\n" + "".join(f"{i / 100},{n},{i}\n" for i, n in enumerate(numbers)))
    assert one(tmp_path / "a.csv").streams[0].header.format.channels == (name, "y")


def test_one_of_several_sensors_is_taken_by_keep(tmp_path: Path) -> None:
    rows = [f"{1614867630000 + i // 2 * 10},{'acc' if i % 2 else 'gyr'},{i}" for i in range(100)]
    (tmp_path / "a.csv").write_text("\n".join(["timestamp,sensor,x", *rows, ""]))
    (stream,) = one(tmp_path / "a.csv", ReadOptions(keep="sensor == 'acc'")).streams
    assert (stream.count, stream.header.format.rate) == (50, 100)
    np.testing.assert_array_equal(stream.data[:, 0], np.arange(1, 100, 2))


def sensor(rate: int, count: int, start: float = 1_600_000_000) -> str:
    return "timestamp,x,y\n" + "".join(f"{start + i / rate:.4f},{i},{rate}\n" for i in range(count))


@pytest.fixture
def phone(tmp_path: Path) -> Path:
    """A folder as apps of phones write it."""
    folder = tmp_path / "2024-05-01_10-00-00.000"
    (folder / "meta").mkdir(parents=True)
    (folder / "Accelerometer.csv").write_text(sensor(100, 400))
    (folder / "Linear Acceleration.csv").write_text(sensor(50, 200, 1_600_000_000.5))
    (folder / "Metadata.csv").write_text("device,platform\nphone,ios\n")
    (folder / "meta" / "time.csv").write_text('"event","experiment time"\n"START",0.0\n')
    return folder


def test_a_folder_of_sensors_is_one_recording(phone: Path) -> None:
    with pytest.warns(SourceWarning) as told:
        recording = one(phone)
    assert sorted(Path(str(one.message).split(": ")[0]).name for one in told) == ["Metadata.csv", "time.csv"]
    assert recording.session == phone.name
    found = {stream.header.format.stream: (stream.header.format.rate, stream.count) for stream in recording.streams}
    assert found == {"accelerometer": (100, 400), "linear_acceleration": (50, 200)}
    assert [stream.start_ns for stream in recording.streams] == [1_600_000_000 * 10**9, 1_600_000_000_500_000_000]


@pytest.mark.filterwarnings("ignore::kymo.streams.errors.SourceWarning")
def test_a_recipe_takes_the_sensor_that_it_names(phone: Path) -> None:
    options = ReadOptions(inputs=(InputOptions("linear_acceleration", ("y", "x"), Fraction(50)),))
    recording = one(phone.parent, options)
    (stream,) = recording.streams
    assert (stream.header.format.channels, stream.count) == (("y", "x"), 200)
    recording = one(phone, ReadOptions(stream_name="accelerometer"))
    assert [stream.count for stream in recording.streams] == [400]
    for wrong in (ReadOptions(inputs=(InputOptions("imu", ("x",)),)), ReadOptions(stream_name="imu")):
        with pytest.raises(
            SourceError, match="is one recording of the streams accelerometer, linear_acceleration; there is no `imu`"
        ):
            list(read([phone], wrong))
    assert survey_of([phone], ["linear_acceleration"]).rate_hz == 50


@pytest.mark.filterwarnings("ignore::kymo.streams.errors.SourceWarning")
def test_folders_of_sensors_are_sessions_and_a_broken_file_stops_none(phone: Path) -> None:
    other = phone.parent / "other" / phone.name
    other.mkdir(parents=True)
    (other / "Accelerometer.csv").write_text(sensor(100, 300))
    (other / "Gyroscope.csv").write_text("broken")
    found = {recording.session: len(recording.streams) for recording in read([phone.parent])}
    assert sorted(found.values()) == [1, 2]
    assert len(found) == 2
    (phone / "Linear Acceleration.csv").unlink()  # one sensor alone is a file as any other
    assert "Accelerometer" in [recording.session for recording in read([phone])]


def test_a_file_with_streams_of_its_own_and_tables_twice_are_apart(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("imu", "gps"):
        mcap(tmp_path / "a" / f"{name}.mcap", [sample("acc", i * 10**7, [i]) for i in range(50)])
    assert [recording.session for recording in read([tmp_path / "a"])] == ["gps", "imu"]
    for name in ("acc.csv", "gyro.csv", "acc.tsv"):
        (tmp_path / name).write_text(sensor(50, 100).replace(",", "\t" if "tsv" in name else ","))
    assert sorted(recording.session.rpartition("-")[2] for recording in read([tmp_path])) == [
        "acc",
        "acc",
        "gps",
        "gyro",
        "imu",
    ]


def test_labels_of_a_folder_of_sensors(tmp_path: Path) -> None:
    event = {
        "startTime": {"sec": 1_600_000_001, "nsec": 0},
        "endTime": {"sec": 1_600_000_002, "nsec": 0},
        "metadata": {"k": "on"},
    }
    (tmp_path / "d").mkdir()
    for name in ("acc", "gyro"):
        (tmp_path / "d" / f"{name}.csv").write_text(sensor(50, 200))
    for path in ("d/gyro.labels.json", "d/acc.labels.json", "d.labels.json"):
        (tmp_path / path).write_text(json.dumps({"events": [event]}))
        assert label_keys([tmp_path / "d"]) == ["k"]
        recording = one(tmp_path / "d", ReadOptions(label_key="k"))
        assert [label.label for label in recording.labels] == ["on"], path
        if path == "d/acc.labels.json":
            for name in ("acc", "gyro"):
                (tmp_path / "d" / f"{name}.labels.json").unlink()


def test_sensors_of_other_clocks_and_channels_of_one_file(tmp_path: Path) -> None:
    (tmp_path / "acc.csv").write_text(sensor(50, 200))
    (tmp_path / "gyro.csv").write_text(sensor(50, 100, 0))
    with pytest.warns(
        SourceWarning,
        match=r"gyro.csv: shares no time with acc.csv: its times have no date, and those of that do.*; left out",
    ):
        recording = one(tmp_path)
    assert [stream.header.format.stream for stream in recording.streams] == ["acc"]
    (tmp_path / "gyro.csv").write_text(sensor(50, 200).replace("x,y", "gx,gy"))
    recording = one(tmp_path, ReadOptions(inputs=(InputOptions("imu", ("gx",)),)))
    assert [stream.header.format.stream for stream in recording.streams] == ["imu"]


@pytest.mark.parametrize(
    ("head", "slow", "said"),
    [
        ("X[s],EMG [V],X[s],ACC [g]", 10, "has several columns of times that differ (`X[s]`, 2 times)"),
        ("EMG Time (s),EMG (V),ACC Time (s),ACC (g)", 10, "(`EMG Time (s)`, `ACC Time (s)`)"),
        ("X[s],EMG [V],X[s],ACC [g]", 1, None),
        ("Device Time (ms),EMG (V),Unix Time (s),ACC (g)", 1, None),
    ],
)
def test_columns_of_times_of_each_sensor(tmp_path: Path, head: str, slow: int, said: str | None) -> None:
    """Where they differ, one of them is not the time of the others' channels."""
    scale = 1000 if "(ms)" in head else 1
    rows = [
        f"{scale * i / 1000:.4f},{i}," + (f"{i * slow / 1000:.4f},{i}" if i < 400 / slow else ",") for i in range(400)
    ]
    table(tmp_path / "a.csv", head, rows)
    if said:
        error = error_of(tmp_path / "a.csv")
        assert said in error
        assert "make a table of each sensor" in error
        return
    (stream,) = one(tmp_path / "a.csv").streams
    assert (stream.header.format.rate, stream.count, len(stream.header.format.channels)) == (1000, 400, 2)


def test_lines_that_end_with_a_semicolon_besides(tmp_path: Path) -> None:
    rows = [f"33,Jogging,{49105962326000 + i * 50_000_000},{i},{-i};" for i in range(100)]
    (tmp_path / "a.txt").write_text("\n".join([*rows, ""]))
    (stream,) = one(tmp_path / "a.txt").streams
    assert (stream.header.format.rate, stream.count) == (20, 100)
    np.testing.assert_array_equal(stream.data[:, -1], -np.arange(100.0))


def test_sensors_that_share_a_table_by_empty_cells(tmp_path: Path) -> None:
    """Each is a stream; a recipe that names one's channels takes its rows."""
    rows = [(i / 10, f"{i},{-i},") for i in range(200)] + [(i / 4 + 0.01, f",,{i}") for i in range(80)]
    lines = [f"{1.6e9 + t:.3f},{cells}" for t, cells in sorted(rows)]
    (tmp_path / "a.csv").write_text("\n".join(["__time,/imu/acc/x,/imu/acc/y,/baro/p", *lines, ""]))
    recording = one(tmp_path / "a.csv")
    found = {stream.header.format.stream: (stream.header.format.rate, stream.count) for stream in recording.streams}
    assert found == {"imu_acc": (10, 200), "baro_p": (4, 80)}
    survey = survey_of([tmp_path / "a.csv"], ["baro_p"])
    assert (survey.rate_hz, survey.channels) == (4, ("/baro/p",))
    for stream, channel, rate, count in (("imu", "/imu/acc/y", 10, 200), ("baro_p", "/baro/p", 4, 80)):
        options = ReadOptions(inputs=(InputOptions(stream, (channel,), Fraction(rate)),))
        recording = one(tmp_path / "a.csv", options)
        assert [len(piece) for _, piece in recording.streams[0].pieces] == [count], recording.notes


def test_a_row_of_counts_below_the_names(tmp_path: Path) -> None:
    rows = [f"{i / 100},{i},{-i}," for i in range(50)]
    (tmp_path / "a.txt").write_text(
        "\n".join(["a.acq", "10 msec/sample", "2 channels", "sec,CH1,CH2,", ",50,50,", *rows, ""])
    )
    recording = one(tmp_path / "a.txt")
    (stream,) = recording.streams
    assert (stream.header.format.channels, stream.count) == (("CH1", "CH2"), 50)
    assert "row 5 counts the samples: passed over" in recording.notes


def test_a_first_sample_that_lacks_its_time_or_label_counts_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("label,x\n,5\n" + "".join(f"walk,{i}\n" for i in range(30)))
    assert one(tmp_path / "a.csv", at_rate(50)).streams[0].count == 31


def test_rows_of_unlike_lengths_are_an_error_of_a_row(tmp_path: Path) -> None:
    rows = ["0,1,2,3", *("0,1", "0,1,2", "0,1,2,3", "0") * 5]
    (tmp_path / "a.csv").write_text("\n".join(["t,ax,ay,az", *rows, ""]))
    with pytest.raises(SourceError, match="row 3: 2 columns where the header has 4"):
        list(read([tmp_path / "a.csv"]))
