"""Names of files and folders that tell classes and subjects, and zip files as apps of phones send them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from verbs import invoke

import kymo
from kymo.streams.errors import RecipeError, SourceError
from kymo.streams.readers import read
from kymo.streams.recording import ReadOptions, Recording


def write(path: Path, head: str = "t,x", more: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([head, *(f"{i / 50},{i % 7}{more}" for i in range(200))]) + "\n")


def told(paths: Path, pattern: str) -> list[tuple[str | None, list[str]]]:
    recordings = read([paths], ReadOptions(file_names=pattern))
    return [(recording.subject, [label.label for label in recording.labels]) for recording in recordings]


def test_names_of_files_and_of_folders(tmp_path: Path) -> None:
    write(tmp_path / "files" / "walking_ann.csv")
    write(tmp_path / "phyphox" / "run_ben" / "Raw Data.csv", '"Time (s)","x (m/s^2)"')
    for sensor in ("Accelerometer", "Gyroscope"):
        write(tmp_path / "logger" / "jump-cem-2024-05-01_10-00-00" / f"{sensor}.csv", "seconds_elapsed,x")
    write(tmp_path / "classes" / "stairs" / "1.csv")
    assert told(tmp_path / "files", "{label}_{subject}") == [("ann", ["walking"])]
    assert told(tmp_path / "phyphox", "{label}_{subject}") == [("ben", ["run"])]
    assert told(tmp_path / "logger", "{label}-{subject}-*") == [("cem", ["jump"])]
    assert told(tmp_path / "classes", "{label}/*") == [(None, ["stairs"])]


def one(path: Path, pattern: str) -> Recording:
    (recording,) = read([path], ReadOptions(file_names=pattern))
    return recording


def test_what_the_file_says_counts_more_and_what_is_unclear_is_said(tmp_path: Path) -> None:
    write(tmp_path / "walking_ann_left.csv", "t,x,subject,label", ",dora,still")
    whole = one(tmp_path / "walking_ann_left.csv", "{label}_{subject}_{side}")
    assert (whole.subject, [label.label for label in whole.labels], whole.metadata["side"]) == (
        "dora",
        ["still"],
        "left",
    )
    write(tmp_path / "walking_fast_ann.csv")
    unclear = one(tmp_path / "walking_fast_ann.csv", "{label}_{subject}")
    assert (unclear.subject, unclear.labels) == (None, [])
    assert "its file is not named like {label}_{subject}" in unclear.notes
    label = one(tmp_path / "walking_fast_ann.csv", "{label}_*_{subject}").labels[0]
    assert (label.set, label.start_ns, label.end_ns, label.author) == ("label", 0, 4 * 10**9, "walking_fast_ann.csv")


def test_init_and_recipe(tmp_path: Path) -> None:
    for name in ("walking_ann", "still_ben"):
        write(tmp_path / "data" / f"{name}.csv")
    words = ["init", "m", "--from", str(tmp_path / "data"), "--out", str(tmp_path), "--file-names", "{label}_{subject}"]
    invoke(*words)
    text = (tmp_path / "m.toml").read_text()
    assert "(found: still, walking)" in text
    assert "2 subjects" in text
    assert kymo.load_recipe(str(tmp_path / "m.toml")).read_options().file_names == "{label}_{subject}"
    with pytest.raises(RecipeError, match=r'file_names.*expected a pattern such as "\{label\}_\{subject\}"'):
        kymo.parse_recipe(text.replace('"{label}_{subject}"', '"label"'))
    with pytest.raises(SourceError, match=r"is no pattern"):
        one(tmp_path / "data" / "still_ben.csv", "{label}_{label}")


TABLE = "\n".join(["t,x", *(f"{i / 50},{i % 7}" for i in range(200))]) + "\n"


def pack(path: Path, **members: str) -> Path:
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
        pack(tmp_path / "data" / f"{name}.zip", **members)
    pack(tmp_path / "data" / "jump_cem.zip", **{"Accelerometer.csv": TABLE, "Gyroscope.csv": TABLE})
    pack(tmp_path / "data" / "picture.zip", **{"a.png": "x"})
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
    done = invoke("init", "m", "--from", data, "--stream", "sensor", "--out", tmp_path)
    lines = done.stderr.splitlines()
    assert sum("device.csv" in line for line in lines) == 2
    assert lines[-1] == f"kymo: 1 more file like {data}/run_ben.zip/meta/device.csv left out"


def test_zip_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "cut.zip").write_bytes(pack(tmp_path / "whole.zip", **{"a.csv": TABLE}).read_bytes()[:100])
    with pytest.raises(SourceError, match=r"cut\.zip: is no zip file that can be read"):
        list(read([tmp_path / "cut.zip"]))
    content = bytearray(pack(tmp_path / "damaged.zip", **{"a.csv": TABLE}).read_bytes())
    for at in (40, 60, 200):
        (tmp_path / "damaged.zip").write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        with pytest.raises(SourceError, match=r"a\.csv: cannot be unpacked \(.+\); unpack it first, or copy it again"):
            list(read([tmp_path / "damaged.zip"]))
    with pytest.raises(SourceError, match=r"picture\.zip: is a packed file"):
        list(read([pack(tmp_path / "picture.zip", **{"a.png": "x"})]))
