"""Zip files as apps of phones send them, read as folders."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

import kymo
from kymo.streams.errors import SourceError
from kymo.streams.readers import read
from kymo.streams.recording import ReadOptions

TABLE = "\n".join(["t,x", *(f"{i / 50},{i % 7}" for i in range(200))]) + "\n"


def write(path: Path, **members: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in members.items():
            file.writestr(name.replace("__", "/"), text)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two exports whose recording has the same name, with what else is in them; a folder of sensors; a packed picture."""
    for name in ("walk_ann", "run_ben"):
        members = {
            "Raw Data.csv": TABLE,
            "meta__device.csv": "property,value\nmodel,A\n",
            "__MACOSX__._Raw Data.csv": "\0",
        }
        write(tmp_path / "data" / f"{name}.zip", **members)
    write(tmp_path / "data" / "jump_cem.zip", **{"Accelerometer.csv": TABLE, "Gyroscope.csv": TABLE})
    write(tmp_path / "data" / "picture.zip", **{"a.png": "x"})
    return tmp_path / "data"


@pytest.mark.filterwarnings("ignore::kymo.streams.errors.SourceWarning")
def test_recordings_in_zip_files(data: Path) -> None:
    recordings = list(read([data], ReadOptions(file_names="{label}_{subject}")))
    told = {r.session: (r.subject, r.labels[0].label, [s.header.format.stream for s in r.streams]) for r in recordings}
    assert told == {
        "walk_ann-Raw Data": ("ann", "walk", ["sensor"]),
        "run_ben-Raw Data": ("ben", "run", ["sensor"]),
        "jump_cem": ("cem", "jump", ["accelerometer", "gyroscope"]),
    }
    (alone,) = read([data / "walk_ann.zip"])
    assert (alone.session, alone.streams[0].count) == ("walk_ann-Raw Data", 200)


def test_files_left_out_for_one_reason_are_one_line(data: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        kymo.cli, ["init", "m", "--from", str(data), "--stream", "sensor", "--out", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    lines = done.stderr.splitlines()
    assert sum("device.csv" in line for line in lines) == 2
    assert lines[-1] == f"kymo: 1 more file like {data}/run_ben.zip/meta/device.csv left out"


def test_zip_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "cut.zip").write_bytes(write(tmp_path / "whole.zip", **{"a.csv": TABLE}).read_bytes()[:100])
    with pytest.raises(SourceError, match=r"cut\.zip: is no zip file that can be read"):
        list(read([tmp_path / "cut.zip"]))
    content = bytearray(write(tmp_path / "damaged.zip", **{"a.csv": TABLE}).read_bytes())
    for at in (40, 60, 200):
        (tmp_path / "damaged.zip").write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        with pytest.raises(SourceError, match=r"a\.csv: cannot be unpacked \(.+\); unpack it first, or copy it again"):
            list(read([tmp_path / "damaged.zip"]))
    with pytest.raises(SourceError, match=r"picture\.zip: is a packed file"):
        list(read([write(tmp_path / "picture.zip", **{"a.png": "x"})]))
