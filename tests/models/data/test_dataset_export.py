"""Windows for other programs: what is written is what the trainer sees, and others read it back."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import RECIPE
from verbs import invoke

from kymo.models.data.dataset import read_dataset
from kymo.models.data.examples import Example
from kymo.models.data.samples import fit_steps, split_chain, with_steps
from kymo.models.data.splits import make_split
from kymo.models.data.tfrecord import crc32c, tf_example, tf_features, tfrecord
from kymo.processors.recipe.load import parse_recipe
from kymo.streams.readers import read


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(10):
        values = np.random.default_rng(number).standard_normal((20, 2)) + number
        rows = [f"{i / 10},{x:.3f},{y:.3f},{'ab'[number % 2]},p{number}" for i, (x, y) in enumerate(values)]
        (folder / f"s{number}.csv").write_text("\n".join(["t,x,y,label,subject", *rows]) + "\n")
    (tmp_path / "tiny.toml").write_text(RECIPE)
    return folder


def expected(data: Path) -> dict[str, list[Example]]:
    """Both sides, as the trainer makes them."""
    loaded = parse_recipe(RECIPE)
    head, steps = split_chain(loaded.chain)
    examples = read_dataset(read([data], loaded.read_options()), loaded, head).examples
    split = make_split(examples, loaded.train, loaded.train.validation, loaded.train.seed)
    fitted = fit_steps(steps, [examples[i].window for i in split.training])
    return {
        side: list(with_steps([examples[i] for i in numbers], fitted))
        for side, numbers in (("training", split.training), ("validation", split.validation))
    }


def export(data: Path, fmt: str) -> Path:
    out = data.parent / "out" / fmt
    words = ["dataset", "export", data.parent / "tiny.toml", "--data", *sorted(data.iterdir())]
    done = invoke(*words, "--format", fmt, "--out", out, "--json")
    about = json.loads(done.stdout)
    assert about == json.loads((out / "dataset.json").read_text())
    sides = expected(data)
    assert {side: sum(counts.values()) for side, counts in about["windows"].items()} == {
        side: len(examples) for side, examples in sides.items()
    }
    assert (about["shape"], about["classes"], about["channels"]) == ([4, 2], ["a", "b"], ["x", "y"])
    assert about["chain"]["specs"][-1]["spec"]["mean"]
    assert len(about["inputs"]) == 10
    assert sorted(p.name for p in out.iterdir()) == ["dataset.json", f"training.{fmt}", f"validation.{fmt}"]
    return out


def plain(one: Example) -> dict[str, Any]:
    window = one.window
    return {
        "window": window.data.astype(np.float32).tobytes().hex(),
        "shape": [4, 2],
        "label": one.label,
        "class": "ab".index(one.label),
        "session": one.session,
        "subject": one.subject,
        "start_index": window.start_index,
        "end_index": window.end_index,
        "start_ns": window.start_ns,
        "end_ns": window.end_ns,
    }


def test_csv(data: Path) -> None:
    out = export(data, "csv")
    for side, examples in expected(data).items():
        with (out / f"{side}.csv").open(newline="") as file:
            found = list(csv.DictReader(file))
        for row, one in zip(found, examples, strict=True):
            values = np.array([float(row.pop(f"v{i}")) for i in range(8)], np.float32)
            assert row.pop("shape") == "4x2"
            wanted = {k: str(v) for k, v in plain(one).items() if k not in ("window", "shape")}
            assert (values.tobytes().hex(), row) == (plain(one)["window"], wanted)


def test_parquet(data: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = export(data, "parquet")
    for side, examples in expected(data).items():
        table = parquet.read_table(out / f"{side}.parquet")
        rows = table.to_pylist()
        for row in rows:
            row["window"] = np.array(row["window"], np.float32).tobytes().hex()
        assert rows == [plain(one) for one in examples]
        assert json.loads(table.schema.metadata[b"kymo"])["shape"] == [4, 2]


def test_tensorflow_reads_what_was_written_without_it(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "tensorflow", None)
        out = export(data, "tfrecord")
    tf = pytest.importorskip("kymo.models.training.fit_keras").tf
    found = []
    for raw in tf.data.TFRecordDataset(str(out / "validation.tfrecord")).as_numpy_iterator():
        row: dict[str, Any] = {}
        for name, feature in tf.train.Example.FromString(raw).features.feature.items():
            kind = feature.WhichOneof("kind")
            values = getattr(feature, kind).value
            if kind == "float_list":
                row[name] = np.array(values, np.float32).tobytes().hex()
            else:
                row[name] = [value.decode() if kind == "bytes_list" else value for value in values]
        found.append(row)
    wanted = [plain(one) for one in expected(data)["validation"]]
    assert found == [{k: v if k in ("window", "shape") else [v] for k, v in row.items()} for row in wanted]


@given(st.binary(max_size=5000))
def test_the_checksum_is_that_of_the_bytes_one_by_one(data: bytes) -> None:
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    assert crc32c(data) == state ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"\0" * 32, 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E), (b"", 0)],
)
def test_the_checksums_of_the_standard(data: bytes, expected: int) -> None:
    """RFC 3720, B.4."""
    assert crc32c(data) == expected


def test_long_checksums() -> None:
    compiled = pytest.importorskip("aiokafka.record.util").calc_crc32c
    random = np.random.default_rng(0)
    for size in (63, 64, 65, 4095, 4097, 500_001):
        data = random.bytes(size)
        assert crc32c(data) == compiled(data)


def test_a_record_byte_by_byte() -> None:
    body = bytes.fromhex("0a0e0a0c 0a0161 1207 1a05 0a03 ac02 05".replace(" ", ""))
    assert tf_example({"a": [300, 5]}) == body
    framed = tfrecord(body)
    assert framed[:8] == len(body).to_bytes(8, "little")
    assert framed[12:-4] == body
    assert tf_example({"n": -1}).endswith(b"\x0a\x0a" + b"\xff" * 9 + b"\x01")


def test_a_folder_that_holds_something_is_left_alone(data: Path) -> None:
    out = export(data, "csv")
    words = ["dataset", "export", str(data.parent / "tiny.toml"), "--data", str(data), "--format", "csv"]
    done = invoke(*words, "--out", out, status=1)
    assert "is there and not empty; name a new folder" in done.output
    assert sorted(p.name for p in out.parent.iterdir()) == ["csv"]


def test_windows_beside_recordings_hide_nothing(data: Path) -> None:
    windows, kept = data / "windows", data.parent / "kept"
    words = ["--data", str(data), "--format", "tfrecord", "--by", "subject"]
    for out in (kept / "deep" / "windows", windows):
        invoke("dataset", "export", data.parent / "tiny.toml", *words, "--out", out)
    for paths, named in (
        ([data], "s0.csv"),
        ([windows, data / "s1.csv"], "s1.csv"),
        ([kept, data.parent / "no"], "no"),
    ):
        done = invoke("dataset", "show", data.parent / "tiny.toml", "--data", *paths, status=1)
        assert f"{named}: stands beside" in done.output
    for path in (windows, kept):
        assert (
            "90 windows of 10 sessions, 10 subjects"
            in invoke("dataset", "show", data.parent / "tiny.toml", "--data", path).output
        )


def test_show_counts(data: Path) -> None:
    words = ["dataset", "show", str(data.parent / "tiny.toml"), "--data", str(data)]
    about = json.loads(invoke(*words, "--json").stdout)
    assert (about["windows"], about["sessions"], about["subjects"], about["split"]) == (90, 10, 10, "session")
    assert (about["training"], about["validation"]) == ({"a": 36, "b": 36}, {"a": 9, "b": 9})
    assert "90 windows of 10 sessions, 10 subjects; split by session" in invoke(*words).output


def test_show_counts_folds(data: Path) -> None:
    (data.parent / "folds.toml").write_text(RECIPE.replace("folds = 0", 'split = "subject"\nfolds = 5'))
    words = ["dataset", "show", str(data.parent / "folds.toml"), "--data", str(data)]
    about = json.loads(invoke(*words, "--json").stdout)
    assert [fold["validation"] for fold in about["folds"]] == [{"a": 9, "b": 9}] * 5
    assert sorted(name for fold in about["folds"] for name in fold["groups"]) == [f"p{i}" for i in range(10)]
    assert "fold 4" in invoke(*words).output


def test_features_come_back() -> None:
    features = tf_features(tf_example({"label": "run", "n": -1, "x": np.float32([0.5])}))
    assert features == {"label": "run", "n": [-1], "x": np.float32([0.5])}
    assert features["x"].dtype == np.float32
    assert crc32c(b"123456789") == 0xE3069283
