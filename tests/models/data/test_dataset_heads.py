"""Further heads of data sets: what a window's targets are, on disk, as arrays, in files for other programs."""

from __future__ import annotations

import csv
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import RECIPE, recipe
from verbs import invoke

from kymo.models.data.cache import checksums, digest_of, write_examples
from kymo.models.data.dataset import iter_examples, read_dataset
from kymo.models.data.examples import Dataset, NumberCover, heads_of, notes_on
from kymo.models.data.samples import split_chain, to_samples
from kymo.models.data.store import open_store
from kymo.models.zoo import ModelHead
from kymo.processors.recipe.load import Recipe
from kymo.streams.chunk import Header, signal_format
from kymo.streams.errors import TrainingError
from kymo.streams.labels.labels import Label
from kymo.streams.recording import Recording, StreamData

NS = 10**9
HEADS = """
[[heads]]
name = "surface"
weight = 0.5
[[heads]]
name = "pace"
column = "seconds_10k"
kind = "number"
min_share = 0.75
"""
WITH_HEADS = RECIPE.replace("[train]", f"{HEADS}[train]")


def label(start_s: float, end_s: float, text: str, kind: str = "label") -> Label:
    start, end = round(start_s * NS), round(end_s * NS)
    return Label(f"s/{kind}/{start}", "s", kind, start, end, text)


def recording(*labels: Label) -> Recording:
    """Two seconds at 10 Hz from time 0."""
    data = np.random.default_rng(0).standard_normal((20, 2)).astype(np.float32)
    stream = StreamData(Header("s", 0, signal_format("imu", ("x", "y"), 10)), data)
    return Recording("s", [stream], list(labels), path="s.csv")


def dataset(loaded: Recipe, *labels: Label) -> Dataset:
    """Windows of 0.4 s every 0.2 s of one session."""
    return read_dataset([recording(*labels)], loaded, split_chain(loaded.chain)[0])


MIXED = (
    *(label(0, 2, "a"), label(0, 0.5, "track", "surface"), label(1.0, 2, "road", "surface")),
    *(label(0, 0.8, "2400", "seconds_10k"), label(0.8, 1.4, "3000.5", "seconds_10k")),
)
#: By start of the window, tenths of a second; a surface needs half of a window, a pace three quarters.
EXPECTED: dict[int, dict[str, str | float]] = {
    0: {"surface": "track", "pace": 2400.0},
    2: {"surface": "track", "pace": 2400.0},
    4: {"pace": 2400.0},
    6: {"pace": 2700.25},
    8: {"surface": "road", "pace": 3000.5},
    10: {"surface": "road", "pace": 3000.5},
    12: {"surface": "road"},
    14: {"surface": "road"},
    16: {"surface": "road"},
}


def test_targets_of_windows() -> None:
    found = dataset(recipe(WITH_HEADS), *MIXED)
    assert {e.window.start_index: e.targets for e in found.examples} == EXPECTED
    assert found.labels == ("a",)
    assert not found.notes  # all three sets are asked for
    assert heads_of(recipe(WITH_HEADS), found.examples) == (
        ModelHead("surface", ("road", "track"), 0.5),
        ModelHead("pace"),
    )


def test_a_window_without_the_own_label_is_no_example() -> None:
    found = dataset(recipe(WITH_HEADS), label(0, 0.6, "a"), *MIXED[1:])
    assert [e.window.start_index for e in found.examples] == [0, 2, 4]


def test_one_set_may_serve_label_and_head() -> None:
    both = RECIPE.replace(
        "[train]", '[labels]\ncolumn = "speed"\n[[heads]]\nname = "v"\ncolumn = "speed"\nkind = "number"\n[train]'
    )
    found = dataset(recipe(both), label(0, 2, "2.5", "speed"))
    assert [(e.label, e.targets) for e in found.examples] == [("2.5", {"v": 2.5})] * 9


spans = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 12), st.sampled_from([1.0, 2.5, -4.0, math.nan])), max_size=6
)


@given(spans, st.integers(0, 20), st.integers(1, 15), st.sampled_from([0.0, 0.5, 0.8, 1.0]))
def test_the_mean_of_numbers_against_counting_every_instant(
    labels: list[tuple[int, int, float]], start: int, length: int, share: float
) -> None:
    cover = NumberCover([(a, a + n, value) for a, n, value in labels])
    instants = [[v for a, n, v in labels if a <= t < a + n and not math.isnan(v)] for t in range(start, start + length)]
    values = [value for there in instants for value in there]
    covered = sum(map(bool, instants))
    found = cover.mean_of(start, start + length, share)
    if not values or covered < share * length:
        assert found is None
    else:
        assert found == pytest.approx(np.mean(values), rel=1e-12, abs=1e-12)


def test_what_is_no_number_is_refused() -> None:
    loaded = recipe(WITH_HEADS)
    with pytest.raises(
        TrainingError, match=r"session s: the label 'slow' of `seconds_10k` is no number, but head `pace`"
    ):
        dataset(loaded, label(0, 2, "a"), label(0, 2, "slow", "seconds_10k"))
    with pytest.raises(TrainingError, match="'inf' of `seconds_10k` is no number"):
        dataset(loaded, label(0, 2, "a"), label(0, 2, "inf", "seconds_10k"))
    assert "pace" not in dataset(loaded, label(0, 2, "a"), label(0, 2, "nan", "seconds_10k")).examples[0].targets


@pytest.mark.parametrize("number", ["3.5e38", "-1e40", "1e999"])
def test_a_number_beyond_float32_is_refused(number: str) -> None:
    loaded = recipe(WITH_HEADS)
    message = (
        rf"session s: the label '{number}' of `seconds_10k` is no number that a model can say \(.*\), but head `pace`"
    )
    with pytest.raises(TrainingError, match=message):
        dataset(loaded, label(0, 2, "a"), label(0, 2, number, "seconds_10k"))
    found = dataset(loaded, label(0, 2, "a"), label(0, 2, "-3.4e38", "seconds_10k"))
    assert [e.targets for e in found.examples] == [{"pace": -3.4e38}] * 9


def test_a_head_without_anything_to_learn_is_refused() -> None:
    loaded = recipe(WITH_HEADS)
    without = dataset(loaded, *MIXED[:3])
    message = r"head `pace` has nothing to learn: no window has its label \(column `seconds_10k`\); add labels, or take a copy"
    with pytest.raises(TrainingError, match=message):
        heads_of(loaded, without.examples)


def test_a_head_of_one_class_says_so() -> None:
    loaded = recipe(WITH_HEADS)
    heads = heads_of(loaded, dataset(loaded, MIXED[0], MIXED[1], MIXED[3]).examples)
    assert heads[0].labels == ("track",)
    assert notes_on(heads) == ["head `surface`: all windows with its label have `track`, so it will say nothing else"]


def test_targets_come_back_from_the_disk(tmp_path: Path) -> None:
    # Nothing is known of the first windows, an odd number must come back to the bit.
    odd = (label(0, 2, "a"), label(1.0, 2, "0.1", "seconds_10k"), label(1.2, 2, "track", "surface"))
    loaded = recipe(WITH_HEADS)
    found = dataset(loaded, *odd)
    about, chain = Dataset(), split_chain(loaded.chain)[0]
    with ThreadPoolExecutor(1) as thread:
        examples = iter_examples([recording(*odd)], loaded, chain, about, thread)
        write_examples(tmp_path, examples, about, thread)
    back = open_store(tmp_path)
    assert [e.targets for e in back.examples] == [e.targets for e in found.examples]
    assert back.examples[0].targets == {}
    assert back.examples[-1].targets == {"surface": "track", "pace": 0.1}


def test_targets_as_arrays() -> None:
    found = dataset(recipe(WITH_HEADS), *MIXED)
    heads = (ModelHead("surface", ("road", "track")), ModelHead("pace"))
    samples = to_samples(found.examples, ("a",), "channels_last", heads)
    assert samples.targets["surface"].tolist() == [1, 1, -1, -1, 0, 0, 0, 0, 0]
    assert samples.targets["surface"].dtype == np.int64
    pace = [2400, 2400, 2400, 2700.25, 3000.5, 3000.5, np.nan, np.nan, np.nan]
    np.testing.assert_array_equal(samples.targets["pace"], np.array(pace, np.float32))
    other = to_samples(found.examples, ("a",), "channels_last", (ModelHead("surface", ("road", "trail")),))
    assert other.targets["surface"].tolist() == [-1, -1, -1, -1, 0, 0, 0, 0, 0]  # a class that the head does not know


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for n in range(10):
        values = np.random.default_rng(n).standard_normal((20, 2)) + n
        pace, surface = "" if n % 3 == 2 else f"{2400 + 100.25 * n}", "" if n % 5 == 4 else ("track", "road")[n % 2]
        rows = [f"{i / 10},{x:.3f},{y:.3f},{'ab'[n // 5]},{surface},{pace}" for i, (x, y) in enumerate(values)]
        (folder / f"s{n}.csv").write_text("\n".join(["t,x,y,label,surface,seconds_10k", *rows]) + "\n")
    (tmp_path / "tiny.toml").write_text(WITH_HEADS)
    return folder


@pytest.mark.parametrize(
    ("old", "new", "other"),
    [
        ('name = "surface"', 'name = "ground"\ncolumn = "surface"', True),
        ('column = "seconds_10k"', 'column = "score_10k"', True),
        ('kind = "number"', "", True),
        ("min_share = 0.75", "min_share = 0.5", True),
        ("weight = 0.5", "weight = 0.7", False),
    ],
)
def test_what_changes_a_target_changes_the_digest(data: Path, old: str, new: str, other: bool) -> None:
    assert WITH_HEADS.count(old) == 1
    changed = recipe(WITH_HEADS.replace(old, new))
    digests = {digest_of(checksums([data]), r, split_chain(r.chain)[0]) for r in (recipe(WITH_HEADS), changed)}
    assert len(digests) == 1 + other


def wanted(session: str) -> tuple[str | None, float | None]:
    n = int(session.rsplit("s", 1)[-1])
    return None if n % 5 == 4 else ("track", "road")[n % 2], None if n % 3 == 2 else 2400 + 100.25 * n


def exported(data: Path, fmt: str) -> Path:
    out = data.parent / "out"
    invoke("dataset", "export", data.parent / "tiny.toml", "--data", data, "--format", fmt, "--out", out)
    assert json.loads((out / "dataset.json").read_text())["heads"] == [
        {
            "name": "surface",
            "column": "target_surface",
            "set": "surface",
            "kind": "classes",
            "classes": ["road", "track"],
        },
        {"name": "pace", "column": "target_pace", "set": "seconds_10k", "kind": "number", "classes": []},
    ]
    return out / f"training.{fmt}"


def test_show_counts_what_heads_know(data: Path) -> None:
    words = ["dataset", "show", str(data.parent / "tiny.toml"), "--data", str(data)]
    heads = json.loads(invoke(*words, "--json").stdout)["heads"]
    paces = [pace for n in range(10) if (pace := wanted(f"s{n}")[1]) is not None for _ in range(9)]
    assert heads["surface"] == {"road": 9 * 4, "track": 9 * 4}
    assert heads["pace"] == pytest.approx({"windows": 63, "mean": np.mean(paces), "lowest": 2400, "highest": 3302.25})
    told = invoke(*words).output
    assert "head surface: road 36, track 36" in told


def test_csv_has_a_column_a_head(data: Path) -> None:
    with exported(data, "csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["session"] for row in rows}) == 8
    for row in rows:
        surface, pace = wanted(row["session"])
        assert (row["target_surface"], row["target_pace"]) == (surface or "", "" if pace is None else str(pace))


def test_parquet_has_a_column_a_head(data: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = parquet.read_table(exported(data, "parquet")).to_pylist()
    assert len(rows) == 72
    assert all((row["target_surface"], row["target_pace"]) == wanted(row["session"]) for row in rows)


def test_tfrecord_has_a_feature_a_head(data: Path) -> None:
    tf = pytest.importorskip("kymo.models.training.fit_keras").tf
    rows = []
    for raw in tf.data.TFRecordDataset(str(exported(data, "tfrecord"))).as_numpy_iterator():
        feature = tf.train.Example.FromString(raw).features.feature
        session, surface = (feature[name].bytes_list.value[0].decode() for name in ("session", "target_surface"))
        rows.append((session, surface, list(feature["target_pace"].float_list.value)))
    assert len(rows) == 72
    for session, said, number in rows:
        surface, pace = wanted(session)
        assert said == (surface or "")
        np.testing.assert_array_equal(number, [np.nan if pace is None else np.float32(pace)])
