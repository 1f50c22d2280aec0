"""Parquet files as recordings: types kept, times exact, damaged files named."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tables import error_of, one

from kymo.streams.readers import read
from kymo.streams.recording import InputOptions, ReadOptions

pa: Any = pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
pq: Any = pytest.importorskip("pyarrow.parquet", reason="the extra `parquet` is not installed")


def save(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=7)
    return path


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [("float32", "float32"), ("float64", "float64"), ("int16", "int16"), ("int32", "float64"), ("uint8", "float64")],
)
def test_values_keep_their_type(tmp_path: Path, dtype: str, kept: str) -> None:
    x, y = np.arange(20).astype(dtype), np.arange(20, 40).astype(dtype)
    recording = one(
        save(tmp_path / "a.parquet", {"t": np.arange(20) / 50, "x": x, "y": y, "label": ["a"] * 10 + ["b"] * 10})
    )
    (stream,) = recording.streams
    assert (stream.header.format.dtype, stream.data.dtype, stream.header.format.rate) == (kept, kept, 50)
    np.testing.assert_array_equal(stream.data, np.column_stack([x, y]))
    assert [(label.label, label.start_ns, label.end_ns) for label in recording.labels] == [
        ("a", 0, 200_000_000),
        ("b", 200_000_000, 400_000_000),
    ]


def test_int16_with_empty_cells_is_float64(tmp_path: Path) -> None:
    options = ReadOptions(inputs=(InputOptions("imu", ("x",), Fraction(10)),))
    recording = one(save(tmp_path / "a.parquet", {"x": pa.array([1, None, 3], pa.int16())}), options)
    np.testing.assert_array_equal(recording.streams[0].data, [[1], [np.nan], [3]])
    assert recording.notes == ["1 row with empty or NaN cells, kept as missing, first at row 2"]


@pytest.mark.parametrize("kind", ["int", "text", "us", "ns", "zone"])
def test_timestamps(tmp_path: Path, kind: str) -> None:
    ns = 1_704_164_645_000_001_000 + np.arange(5) * 20_000_000
    column: Any = {
        "int": ns,
        "text": [f"{np.datetime64(int(value), 'ns')}Z" for value in ns],
        "us": pa.array(ns // 1000, pa.timestamp("us")),
        "ns": pa.array(ns, pa.timestamp("ns")),
        "zone": pa.array(ns // 1000, pa.timestamp("us", "Europe/Berlin")),
    }[kind]
    header = one(save(tmp_path / "a.pq", {"timestamp": column, "x": np.ones(5)})).streams[0].header
    assert (header.origin_ns, header.format.rate) == (1_704_164_645_000_001_000, 50)


def test_sessions_subjects_and_metadata(tmp_path: Path) -> None:
    columns = {
        "x": np.arange(9.0),
        "session": [1.0, 2.0, 3.0] * 3,
        "subject": [7, 8, 7] * 3,
        "site": ["lab"] * 9,
        "ok": [True] * 9,
    }
    options = ReadOptions(inputs=(InputOptions("imu", ("x",), Fraction(10)),), keep="ok == 1 and site == 'lab'")
    found = [
        (r.session, r.subject, r.streams[0].data[:, 0].tolist())
        for r in read([save(tmp_path / "a.parquet", columns)], options)
    ]
    assert found == [("1", "7", [0, 3, 6]), ("2", "8", [1, 4, 7]), ("3", "7", [2, 5, 8])]


def test_empty_labels_of_pandas(tmp_path: Path) -> None:
    columns = {"x": np.arange(3.0), "t": np.arange(3.0), "label": pa.array([3.0, float("nan"), None])}
    recording = one(save(tmp_path / "a.parquet", columns))
    assert [(label.label, label.start_ns, label.end_ns) for label in recording.labels] == [("3", 0, 10**9)]


def test_malformed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.parquet", {"t": [0.0, None, 0.2], "x": ["1", "2", "3"]})
    assert (
        error_of(path, ReadOptions(inputs=(InputOptions("imu", ("x",)),)))
        == "column `x` holds string, expected numbers"
    )
    assert "no column `y`; there are: t, x" in error_of(path, ReadOptions(inputs=(InputOptions("imu", ("y",)),)))
    assert "no column holds numbers" in error_of(path)
    save(path, {"t": [0.0, None, 0.2], "x": [1, 2, 3]})
    assert error_of(path) == ", row 2: column `t` is empty"
    save(path, {"x": np.empty(0)})
    assert error_of(path) == "has columns but no rows"
    for content in (b"", b"x,y\n1,2\n", b"PAR1" + bytes(50) + b"PAR1"):
        path.write_bytes(content)
        assert error_of(path).startswith("is no whole Parquet file (")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert error_of(path) == "Parquet is read with pyarrow, which is not installed: pip install 'kymo-streams[parquet]'"


def test_a_small_file_that_unpacks_to_far_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kymo.streams.readers.parquet_file._LARGEST", 2**16)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": np.zeros(1_000_000, np.int8)}), path)
    assert "bytes of Parquet unpack to 8000000, expected up to" in error_of(path)


@pytest.mark.parametrize(
    ("name", "times", "origin_s"),
    [
        (
            "__index_level_0__",
            pa.array([1_700_000_000_000 + 20 * i for i in range(100)], pa.timestamp("ms")),
            1_700_000_000,
        ),
        (
            "when",
            pa.array([1_700_000_000_000 + 20 * i for i in range(100)], pa.timestamp("ms", "Europe/Berlin")),
            1_700_000_000,
        ),
        ("t", pa.array([1_700_000_000_000 + 20 * i for i in range(100)], pa.timestamp("ms")), 1_700_000_000),
        (
            "timestamp",
            pa.array([f"2024-05-13 18:36:{i / 50:06.3f}" for i in range(100)]).dictionary_encode(),
            1_715_625_360,
        ),
        ("timestamp", pa.array([20240513183600000 + 20 * i for i in range(100)]), 1_715_625_360),
        ("time", pa.array([20 * i for i in range(100)], pa.duration("ms")), 0),
        ("t", pa.array([10**9 + 20_000_000 * i for i in range(100)], pa.duration("ns")), 1),
        ("time", pa.array([66_984_000_000 + 20_000 * i for i in range(100)], pa.time64("us")), 66_984),
        ("time_ms", pa.array([(2**32 - 1000 + 20 * i) % 2**32 for i in range(100)], pa.uint32()), 4_294_966.296),
    ],
)
def test_types_of_times(tmp_path: Path, name: str, times: Any, origin_s: float) -> None:
    (stream,) = one(save(tmp_path / "a.parquet", {name: times, "ax": [float(i % 7) for i in range(100)]})).streams
    assert (stream.header.format.channels, stream.header.format.rate) == (("ax",), 50)
    assert (stream.header.origin_ns, [first for first, _ in stream.pieces]) == (round(origin_s * 10**9), [0])


def test_truths_are_numbers_where_they_are_asked_for(tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", {"t": [i / 50 for i in range(100)], "on": [i % 3 == 0 for i in range(100)]})
    (stream,) = one(path, ReadOptions(inputs=(InputOptions("sensor", ("on",)),))).streams
    assert stream.data[:, 0].tolist() == [float(i % 3 == 0) for i in range(100)]
