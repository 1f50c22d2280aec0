"""Real recordings of many devices: read with times, rates, channels, units and values as they stand there, or refused by name."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from documents import SHARED

from kymo.processors.recipe.init import recipe_text, survey_of
from kymo.processors.recipe.load import parse_recipe
from kymo.streams.errors import SourceError, SourceWarning
from kymo.streams.readers import read
from kymo.streams.recording import Recording

FIELD = SHARED / "data/field"
pytestmark = [
    pytest.mark.skipif(not FIELD.is_dir(), reason="shared/data/field is absent"),
    pytest.mark.filterwarnings("ignore::kymo.streams.errors.SourceWarning"),
]


class Wanted(NamedTuple):
    """What a file holds."""

    count: int
    rate: float
    start_s: float  # Unix time of the first sample, or that of its own clock
    channels: int
    units: set[str]
    columns: tuple[int, ...] = ()  # in the file, of the first channels
    below: int = 1  # line of the first sample, from 0
    sign: str = ","
    size: float = 1  # of what the file's numbers count


REAL = {
    "biosppy_txt/acc.txt": Wanted(2000, 100, 0, 3, {"m/s^2"}, (0, 1, 2), 5, "\t"),
    "ecg_faros/ECG.csv": Wanted(39000, 500, 0, 1, {"uV"}, (0,)),
    "empatica_e4/devicely/ACC.csv": Wanted(890, 32, 1551453301, 3, {"g"}, (0, 1, 2), 2, size=1 / 64),
    "empatica_e4/devicely/BVP.csv": Wanted(2054, 64, 1551453301, 1, set(), (0,), 2),
    "empatica_e4/devicely/EDA.csv": Wanted(133, 4, 1551453301, 1, {"uS"}, (0,), 2),
    "empatica_e4/devicely/HR.csv": Wanted(28, 1, 1551453311, 1, {"bpm"}, (0,), 2),
    "empatica_e4/devicely/IBI.csv": Wanted(49, 0, 1551453446.631666, 1, {"s"}, (1,)),
    "empatica_e4/devicely/tags.csv": Wanted(4, 0, 1551453311.68, 1, set()),
    "geneactiv/demo_data.csv": Wanted(8400, 50, 1565087150, 6, {"g", "lux", "", "°C"}, (1, 2, 3, 4, 5, 6), 100),
    "heartpy_ppg/data3.csv": Wanted(68476, 100.41, 1479995938.081, 1, set(), (1,)),
    "imu_xio_fusion/sensor_data.csv": Wanted(13514, 100, 0, 9, {"deg/s", "g", "uT"}, tuple(range(1, 10))),
    "muse_mindmonitor/read_test_data.csv": Wanted(418, 256, 1617637684.834, 37, set()),  # and one row of a blink
    "sensorlogger_benny/Accelerometer.csv": Wanted(1038, 99.71, 1760565906.248623, 3, set(), (2, 3, 4)),
    "sensorlogger_benny/Gyroscope.csv": Wanted(1038, 99.71, 1760565906.248623, 3, set(), (2, 3, 4)),
    "shimmer/read_test_data.csv": Wanted(
        90,
        51.28,
        1595933810.034,
        20,
        {"m/s^2", "mV", "", "uS", "kOhm", "deg/s", "local_flux", "kPa", "°C"},
        tuple(range(1, 21)),
        3,
        ";",
    ),
    "xsens_dot/Pelvis_20210820_202113_836.csv": Wanted(382, 60, 3343.428, 8, set(), tuple(range(2, 9)), 12),
}
#: Too short for a window, or irregular.
_NO_RECIPE = {f"empatica_e4/devicely/{name}.csv" for name in ("HR", "IBI", "tags")}
REFUSED = {
    "acc_skdh/motion_test_positive.csv": "nothing gives the sampling rate",
    "ecg_faros/meta.json": "is no experiment JSON; if it holds samples, save its rows as CSV",
    "ecg_faros/testfile_read.EDF": "is EDF: `mne.io.read_raw",
    "everion/CsvData_signals.csv": 'take one with keep = "tag == ',
    "heartpy_ppg/data.csv": "nothing gives the sampling rate",
    "rosbag/rosbag2_test_0.db3": "is a bag of ROS 2",
    "timestamp_app_tags/tags.csv": "no column holds numbers",
    "xdf/clock_resets.xdf": "is XDF (Lab Streaming Layer): `pyxdf.load_xdf(FILE)`",
}


def samples(recording: Recording) -> np.ndarray:
    return np.concatenate([np.asarray(piece) for _, piece in recording.streams[0].pieces])


@pytest.mark.parametrize("name", REAL)
def test_real_recordings(name: str) -> None:
    wanted = REAL[name]
    (recording,) = read([FIELD / name])
    (stream,) = recording.streams
    fmt = stream.header.format
    assert (stream.count, len(fmt.channels)) == (wanted.count, wanted.channels), recording.notes
    assert float(fmt.rate) == pytest.approx(wanted.rate, rel=1e-4)
    assert stream.start_ns / 1e9 == pytest.approx(wanted.start_s, abs=1e-3)
    assert set(fmt.units) == wanted.units
    if wanted.columns:
        lines = (FIELD / name).read_text(encoding="utf-8-sig").splitlines()[wanted.below :]
        cells = [[float(line.split(wanted.sign)[n]) for n in wanted.columns] for line in lines if line.strip()]
        np.testing.assert_array_equal(samples(recording)[:, : len(wanted.columns)], np.multiply(cells, wanted.size))


@pytest.mark.parametrize("name", [name for name in REAL if name not in _NO_RECIPE])
def test_what_init_writes_reads_them(name: str) -> None:
    recipe = parse_recipe(recipe_text("real", survey_of([FIELD / name])))
    (recording,) = read([FIELD / name], recipe.read_options())
    (stream,) = recording.streams
    assert recipe.matches(stream.header.format) is None
    assert stream.count == REAL[name].count


@pytest.mark.parametrize("name", REFUSED)
def test_what_holds_no_table_with_times_is_refused_by_name(name: str) -> None:
    with pytest.raises(SourceError, match=re.escape(REFUSED[name])):
        list(read([FIELD / name]))


def test_every_file_is_judged() -> None:
    there = {file.relative_to(FIELD).as_posix() for file in FIELD.rglob("*") if file.is_file()}
    assert there - {*REAL, *REFUSED, "LICENSES.md"} == {"plotjuggler_csv/turtle.csv"}


def test_topics_that_share_a_table() -> None:
    (recording,) = read([FIELD / "plotjuggler_csv/turtle.csv"])
    found = {
        stream.header.format.stream: (stream.count, len(stream.header.format.channels)) for stream in recording.streams
    }
    assert found["turtle2_cmd_vel"] == (207, 6)
    assert set(found) == {"turtle1_cmd_vel", "turtle2_cmd_vel"}


@pytest.mark.parametrize(
    ("folder", "streams"),
    [
        ("sensorlogger_benny", {"accelerometer": 1038, "gyroscope": 1038}),
        ("empatica_e4", {"acc": 890, "bvp": 2054, "eda": 133, "hr": 28, "ibi": 49, "tags": 4}),
    ],
)
def test_folders_that_are_one_recording(folder: str, streams: dict[str, int]) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        (recording,) = read([FIELD / folder])
    assert {stream.header.format.stream: stream.count for stream in recording.streams} == streams
    left = {Path(str(one.message).split(": ")[0]).name for one in told if one.category is SourceWarning}
    assert not left
