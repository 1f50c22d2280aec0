"""The cache of data sets: built once, whatever happens to a build."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from documents import ROOT
from tiny_models import RECIPE, recipe

import kymo.models.data.cache
from kymo.models.bundle import raw_chain
from kymo.models.data.cache import Reading, build_dataset, checksums, digest_of
from kymo.models.data.dataset import read_dataset
from kymo.models.data.examples import Dataset
from kymo.models.data.samples import split_chain
from kymo.models.data.splits import group_of
from kymo.processors.recipe.load import Recipe
from kymo.streams.errors import SourceWarning
from kymo.streams.readers import read
from kymo.streams.recording import Recording
from kymo.streams.settings import Settings

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
    """The data set, and whether it was made anew."""
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
