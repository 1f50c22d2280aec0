"""Data sets: windows with labels, and those kept from before."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from documents import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes_made import recipe_text
from tiny_models import RECIPE, recipe, window

import kymo.models.data.cache
from kymo.models.bundle import raw_chain
from kymo.models.data import samples as data_samples
from kymo.models.data import store as data_store
from kymo.models.data.cache import Reading, build_dataset, checksums, digest_of
from kymo.models.data.dataset import read_dataset
from kymo.models.data.examples import Dataset, Example
from kymo.models.data.samples import apply_steps, fit_steps, split_chain, to_samples, with_steps
from kymo.models.data.splits import group_of
from kymo.models.data.store import ROWS, StoreWriter, open_store
from kymo.processors.recipe.load import Recipe
from kymo.streams.chunk import Header, Window, signal_format
from kymo.streams.errors import SourceWarning, TrainingError
from kymo.streams.files import lock
from kymo.streams.labels.labels import Label
from kymo.streams.readers import read
from kymo.streams.recording import Recording, StreamData
from kymo.streams.settings import Settings

NS = 10**9


SPECTRA = recipe_text("spectra", "x y", 10, (2, 0.4), steps=[{"step": "spectrogram", "nperseg": 8, "noverlap": 6}])


def recording(name: str = "s1", seconds: int = 6, labels: tuple[Label, ...] = (), seed: int = 0) -> Recording:
    """A session of noise at 10 Hz, with another channel in between."""
    data = np.random.default_rng(seed).standard_normal((seconds * 10, 3)).astype(np.float32)
    header = Header(name, 5 * NS, signal_format("imu.left", ("x", "other", "y"), 10))
    return Recording(name, [StreamData(header, data)], list(labels), f"of {name}", {"place": "hall"}, f"{name}.csv")


def label(name: str, start_s: float, end_s: float, text: str = "a", kind: str = "label") -> Label:
    start, end = round((5 + start_s) * NS), round((5 + end_s) * NS)
    return Label(f"{name}/{kind}/{start}", name, kind, start, end, text)


def examples_of(loaded: Recipe, *recordings: Recording) -> Dataset:
    return read_dataset(recordings, loaded, split_chain(loaded.chain)[0])


def stored(folder: Path, found: Dataset) -> Dataset:
    writer = StoreWriter(folder)
    for example in found.examples:
        writer.add(example)
    writer.finish(found)
    writer.close()
    return open_store(folder)


def same(one: Example, other: Example) -> bool:
    return all_of(one) == all_of(other)


def all_of(e: Example) -> list[object]:
    w = e.window
    whose = [e.label, e.session, e.subject, e.recording, dict(e.metadata), w.header]
    where = [w.start_index, w.end_index, w.start_ns, w.end_ns, w.missing]
    return [*whose, *where, w.data.dtype, w.data.shape, w.data.tobytes()]


def test_an_example_knows_where_it_comes_from() -> None:
    found = examples_of(recipe(), recording(labels=(label("s1", 0, 6),)))
    first = found.examples[0]
    assert (first.session, first.subject, first.recording) == ("s1", "of s1", "s1.csv")
    assert (group_of(first, "session"), first.label, first.metadata) == ("s1", "a", {"place": "hall"})
    assert [e.window.start_index for e in found.examples] == list(range(0, 57, 2))


def test_only_the_set_that_is_asked_for_counts() -> None:
    both = (label("s1", 0, 6), label("s1", 0, 6, "grass", "surface"))
    found = examples_of(recipe(), recording(labels=both))
    assert found.labels == ("a",)
    assert found.notes["labels of another set left out"] == 1
    asked = recipe(RECIPE + '[labels]\ncolumn = "surface"\n')
    assert examples_of(asked, recording(labels=both)).labels == ("grass",)
    with pytest.raises(TrainingError, match="no labels in the data"):
        examples_of(recipe(), recording(labels=both[1:]))


def test_a_window_without_enough_of_a_label_is_left_out() -> None:
    # Windows of 0.4 s every 0.2 s; the label ends at 1.0 s, so of the window at 0.8 s it covers one half.
    text = RECIPE + "[labels]\nmin_share = {}\n"
    counts = {
        share: len(examples_of(recipe(text.format(share)), recording(labels=(label("s1", 0, 1),))).examples)
        for share in (0.5, 0.51, 1.0)
    }
    assert counts == {0.5: 5, 0.51: 4, 1.0: 4}


@pytest.mark.parametrize("text", [RECIPE, SPECTRA, SPECTRA.replace("hop_s = 0.4", "hop_s = 3")])
def test_windows_come_back_from_the_disk(tmp_path: Path, text: str) -> None:
    sessions = [recording(f"s{i}", 8, (label(f"s{i}", 0, 3), label(f"s{i}", 4, 8, "b")), seed=i) for i in range(3)]
    found = examples_of(recipe(text), *sessions)
    back = stored(tmp_path, found)
    assert len(back.examples) == len(found.examples) > 6
    assert all(same(one, other) for one, other in zip(found.examples, back.examples, strict=True))
    assert (back.inputs, back.notes, back.longest_s) == (found.inputs, found.notes, found.longest_s)
    with pytest.raises(ValueError, match="read-only"):
        back.examples[0].window.data[...] = 0
    assert back.examples[0].window.header is back.examples[1].window.header


def test_groups_are_those_of_the_split(tmp_path: Path) -> None:
    found = examples_of(recipe(), recording(labels=(label("s1", 0, 6),)))
    stored(tmp_path, found)
    example = open_store(tmp_path).examples[1]
    groups = {kind: group_of(example, kind) for kind in ("session", "subject", "window", "time")}
    assert groups == {"session": "s1", "subject": "of s1", "window": "s1/2", "time": "s1"}


def test_rows_that_windows_share_lie_on_the_disk_once(tmp_path: Path) -> None:
    found = examples_of(recipe(SPECTRA), recording(seconds=20, labels=(label("s1", 0, 20),)))
    stored(tmp_path, found)
    shape = found.examples[0].window.data.shape
    assert shape == (7, 5, 2)  # of which a hop brings 2 new ones
    assert (tmp_path / ROWS).stat().st_size == 4 * (7 + 2 * (len(found.examples) - 1)) * 5 * 2


@settings(max_examples=60, deadline=None)
@given(
    hops=st.lists(st.integers(0, 6), max_size=8),
    change=st.sampled_from(["none", "nan", "minus zero", "value", "header"]),
    order=st.permutations([0, 1, 2]),
    block=st.sampled_from([1, 24, 60, 2**20]),
)
def test_any_windows_come_back(
    tmp_path_factory: pytest.TempPathFactory, hops: list[int], change: str, order: list[int], block: int
) -> None:
    """Whatever the hop, the order in memory, what differs in rows that could be shared, and the size of a block (a row has 24 bytes)."""
    rows = np.random.default_rng(0).standard_normal((60, 3, 2)).astype(np.float32)
    rows[4] = np.nan if change == "nan" else 0.0
    header = Header("s", 0, signal_format("imu", ("x", "y"), 10))
    examples, at = [], 0
    for number, hop in enumerate([0, *hops]):
        at += hop
        data = rows[at : at + 4].copy().transpose(order).copy().transpose(np.argsort(order))
        if number % 2 and change == "minus zero":
            data[data == 0] = -0.0
        if number % 2 and change == "value":
            data[0, 0, 0] += 1
        own = Header("s", number, header.format) if change == "header" else header
        examples.append(Example(Window(own, at, at + 4, at, at + 4, data), "a", "s"))
    with patch.object(data_store, "BLOCK_BYTES", block):
        back = stored(tmp_path_factory.mktemp("store"), Dataset(examples))
    assert all(same(one, other) for one, other in zip(examples, back.examples, strict=True))


def test_what_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ROWS).symlink_to("/dev/full")
    found = examples_of(recipe(), recording(labels=(label("s1", 0, 6),)))
    with pytest.raises(OSError, match="No space left"):
        stored(tmp_path, found)


def test_windows_of_two_shapes_are_refused(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path)
    writer.add(Example(window(np.zeros((4, 2))), "a", "s"))
    with pytest.raises(TrainingError, match=r"float32\[5, 2\], those before are float32\[4, 2\]"):
        writer.add(Example(window(np.zeros((5, 2))), "a", "s"))
    writer.close()


def test_steps_are_applied_where_a_window_is_asked_for() -> None:
    windows = [window(np.full((4, 2), i)) for i in range(5)]
    fitted = fit_steps(split_chain(recipe().chain)[1], windows)
    std = np.sqrt(2)
    seen = apply_steps(fitted, windows)
    assert next(seen).data[0, 0] == pytest.approx(-2 / std)
    assert [w.data[0, 0] for w in seen] == pytest.approx([(i - 2) / std for i in range(1, 5)])
    examples = list(with_steps([Example(w, str(i)) for i, w in enumerate(windows)], fitted))
    assert (examples[4].label, examples[4].window.data[0, 0]) == ("4", pytest.approx(2 / std))
    assert all(w is same for w, same in zip(apply_steps((), windows), windows, strict=True))


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_a_large_array_lies_in_a_nameless_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    monkeypatch.setenv("KYMO_HOME", str(tmp_path))
    random = np.random.default_rng(0)
    examples = [Example(window(random.standard_normal((4, 2))), "ab"[i % 2]) for i in range(7)]
    small = to_samples(examples, ("a", "b"), layout)
    monkeypatch.setattr(data_samples, "IN_MEMORY", 0)
    large = to_samples(examples, ("a", "b"), layout)
    assert isinstance(large.windows.base, np.memmap)
    assert not isinstance(small.windows.base, np.memmap)
    assert np.array_equal(small.windows, large.windows)
    expected = np.stack([e.window.data.T if layout == "channels_first" else e.window.data for e in examples])
    assert np.array_equal(large.windows, expected)
    assert small.classes.tolist() == large.classes.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert list((tmp_path / "cache").iterdir()) == []


def test_notes_that_are_alike_are_one_line() -> None:
    dataset = Dataset()
    dataset.notes.update([f"s{i}: {i + 1} gap{'s' * (i > 0)}, first before row {i + 3}" for i in range(70)])
    dataset.notes.update(
        ["windows without a label left out"] * 9 + ["late by 0.2 s", "late by 3 s", "s1: cut at row 7"]
    )
    assert dataset.note_lines() == [
        "s0: 1 gap, first before row 3 (69 more like it)",
        "s1: cut at row 7",
        "windows without a label left out (9 times)",
        "late by 0.2 s (2 times)",
    ]


def test_labels_from_files_are_of_the_set_that_the_recipe_names(tmp_path: Path) -> None:
    rows = "\n".join(f"{i / 10},{i},{i},{'walk' if i < 20 else 'run'}" for i in range(40))
    (tmp_path / "a.csv").write_text(f"t,x,y,activity\n{rows}\n")
    loaded = recipe(RECIPE + '[labels]\ncolumn = "activity"\n')
    found = read_dataset(read([tmp_path], loaded.read_options()), loaded, split_chain(loaded.chain)[0])
    assert found.labels == ("run", "walk")
    assert loaded.inputs[0].rate_hz == Fraction(10)


#: Builds, says so after each recording and waits to be told to go on.
BUILDER = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from tiny_models import recipe
from kymo.models.data.samples import split_chain
from kymo.models.data.cache import Reading, build_dataset
from kymo.streams.settings import Settings

def wait(recordings, windows):
    print(recordings, windows, flush=True)
    sys.stdin.readline()

loaded = recipe()
build_dataset([Path({data!r})], loaded, split_chain(loaded.chain)[0], Settings(home=Path({home!r})), Reading(wait))
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(4):
        values = np.random.default_rng(number).standard_normal((40, 2))
        rows = [f"{i / 10},{x:.3f},{y:.3f},{'ab'[number % 2]}" for i, (x, y) in enumerate(values)]
        (folder / f"s{number}.csv").write_text("\n".join(["t,x,y,label", *rows]) + "\n")
    return folder


def build(
    data: Path | list[Path], home: Path, loaded: Recipe | None = None, cache_gb: float = 1.0
) -> tuple[Dataset, bool]:
    told: list[int] = []
    loaded = loaded or recipe()
    chain = split_chain(loaded.chain)[0]
    paths = data if isinstance(data, list) else [data]
    found = build_dataset(
        paths, loaded, chain, Settings(home=home, cache_gb=cache_gb), Reading(lambda n, _: told.append(n))
    )
    return found, bool(told)


def content(found: Dataset) -> list[object]:
    return [
        (e.label, e.session, e.subject, e.recording, w.header, w.start_index, w.end_ns, w.data.tobytes())
        for e in found.examples
        for w in [e.window]
    ]


def entries(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "cache" / "datasets").iterdir())


def test_a_second_build_is_a_look_up(data: Path, tmp_path: Path) -> None:
    first, made = build(data, tmp_path)
    again, remade = build(data, tmp_path)
    plain = read_dataset(read([data], recipe().read_options()), recipe(), split_chain(recipe().chain)[0])
    assert (made, remade) == (True, False)
    assert content(first) == content(again) == content(plain)
    assert (again.inputs, again.notes, again.longest_s) == (plain.inputs, plain.notes, plain.longest_s)
    assert len(entries(tmp_path)) == 1
    assert sorted(p.name for p in (tmp_path / "cache" / "datasets" / entries(tmp_path)[0]).iterdir()) == [
        "dataset.json",
        "rows.bin",
        "windows.npy",
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("factor = 0.5", "factor = 0.25"),
        ("hop_s = 0.2", "hop_s = 0.4"),
        ("epochs = 3", "epochs = 3\n[labels]\nmin_share = 0.7"),
        ("rate_hz = 10", "rate_hz = 10\nbridge_ms = 200"),
        ("[train]", '[source]\nkeep = "x < 100"\n[train]'),
    ],
)
def test_what_changes_a_window_changes_the_digest(data: Path, old: str, new: str) -> None:
    changed = recipe(RECIPE.replace(old, new))
    assert changed != recipe()
    digests = {digest_of(checksums([data]), r, split_chain(r.chain)[0]) for r in (recipe(), changed)}
    assert len(digests) == 2


def test_what_changes_no_window_does_not(data: Path, tmp_path: Path) -> None:
    build(data, tmp_path)
    by_window, made = build(data, tmp_path, recipe(RECIPE.replace("epochs = 3", 'epochs = 9\nsplit = "window"')))
    assert not made
    assert group_of(by_window.examples[1], "window") == "s0/2"


def test_a_changed_file_is_seen(data: Path, tmp_path: Path) -> None:
    build(data, tmp_path)
    file = data / "s2.csv"
    file.write_text(file.read_text().replace(",a\n", ",c\n"))
    found, made = build(data, tmp_path)
    assert made
    assert found.labels == ("a", "b", "c")
    (data / "s3.csv").unlink()
    assert build(data, tmp_path)[1]


def test_a_damaged_entry_is_built_again(data: Path, tmp_path: Path) -> None:
    right = content(build(data, tmp_path)[0])
    rows = tmp_path / "cache" / "datasets" / entries(tmp_path)[0] / "rows.bin"
    rows.write_bytes(rows.read_bytes()[:-100])
    found, made = build(data, tmp_path)
    assert made
    assert content(found) == right
    assert len(entries(tmp_path)) == 1


def test_a_killed_build_leaves_nothing_wrong(data: Path, tmp_path: Path) -> None:
    code = BUILDER.format(root=str(ROOT), tests=str(ROOT / "tests"), data=str(data), home=str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "1 19\n"
        (partial,) = entries(tmp_path)
        assert partial.endswith(".partial")
        # While it lives, another build neither uses nor removes what it has written.
        right, made = build(data, tmp_path)
        assert made
        assert partial in entries(tmp_path)
        child.send_signal(signal.SIGKILL)
    assert partial in entries(tmp_path)
    assert not build(data, tmp_path)[1]
    other = recipe(RECIPE.replace("factor = 0.5", "factor = 2"))
    assert build(data, tmp_path, other)[1]
    assert partial not in entries(tmp_path)
    assert content(right) == content(build(data, tmp_path)[0])


def test_what_a_build_left_may_go_while_another_one_looks(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "cache" / "datasets" / "0.1.partial"
    left.mkdir(parents=True)

    def late(path: Path, *, wait: bool = True) -> Any:
        if path.parent == left:
            shutil.rmtree(left)
        return lock(path, wait=wait)

    monkeypatch.setattr(kymo.models.data.cache, "lock", late)
    assert build(data, tmp_path)[1]
    assert not left.exists()


def test_a_failed_build_leaves_nothing(data: Path, tmp_path: Path) -> None:
    (data / "s9.csv").write_text("t,x,y,label\n0,1,nothing,a\n0.1,1,,a\n0.2,x,,\n")
    with pytest.raises(Exception, match=r"s9\.csv"):
        build(sorted(data.glob("*.csv")), tmp_path)  # named one by one: in a folder it would be left out
    assert entries(tmp_path) == []


def test_the_entries_unused_for_longest_go(data: Path, tmp_path: Path) -> None:
    recipes = [recipe(RECIPE.replace("factor = 0.5", f"factor = {i}")) for i in (1, 2, 3)]
    first = build(data, tmp_path, recipes[0])[0]
    right = content(first)
    build(data, tmp_path, recipes[1])
    assert not build(data, tmp_path, recipes[0])[1]  # used again, so the second is now the older one
    size = sum(f.stat().st_size for f in (tmp_path / "cache" / "datasets" / entries(tmp_path)[0]).iterdir())
    build(data, tmp_path, recipes[2], cache_gb=2.5 * size / 1e9)
    assert [build(data, tmp_path, r, 1.0)[1] for r in (recipes[0], recipes[2], recipes[1])] == [False, False, True]
    build(data, tmp_path, replace(recipes[1], name="other"), cache_gb=0.0)
    assert len(entries(tmp_path)) == 3  # a look-up removes nothing
    build(data, tmp_path, recipe(RECIPE.replace("factor = 0.5", "factor = 4")), cache_gb=0.0)
    assert len(entries(tmp_path)) == 1  # the one just built stays, whatever its size
    assert content(first) == right  # an open map outlives its entry


def test_what_was_left_out_is_told_again_and_settings_beside_a_file_count(data: Path, tmp_path: Path) -> None:
    (data / "broken.csv").write_text("t,x,y,label\n0,1,nothing,a\n0.1,1,,a\n0.2,x,,\n")
    for made in (True, False):
        with pytest.warns(SourceWarning, match=r"broken\.csv.*left out"):
            assert build(data, tmp_path)[1] == made
    (data / "s1.json").write_text('{"SamplingFrequency": 10}')
    with pytest.warns(SourceWarning):
        assert build(data, tmp_path)[1]


def test_files_are_read_once_for_two_chains(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data / "broken.csv").write_text("t,x,y,label\n0,1,nothing,a\n0.1,1,,a\n0.2,x,,\n")
    chains, reading, settings = (
        (split_chain(recipe().chain)[0], raw_chain(recipe().chain)),
        Reading(),
        Settings(home=tmp_path),
    )
    with pytest.warns(SourceWarning):
        build_dataset([data], recipe(), chains[0], settings, reading)

    def read_again(*_: object) -> Iterator[Recording]:
        raise AssertionError
        yield

    monkeypatch.setattr(kymo.models.data.cache, "read", read_again)
    raw = build_dataset([data], recipe(), chains[1], settings, reading)
    assert len(raw.left_out) == 1
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "cache")
    with pytest.warns(SourceWarning):
        assert content(raw) == content(build_dataset([data], recipe(), chains[1], settings))
