"""Classes made of a number: equal ranges, or equal numbers of people; the bundle keeps its borders."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import kymo
from kymo.models.data.bins import bin_of, settle_bins
from kymo.models.data.examples import Dataset, Example, ordered
from kymo.models.training.refresh import plan_of
from kymo.processors.recipe.load import load_recipe, parse_recipe
from kymo.streams.errors import RecipeError, TrainingError

RECIPE = """
name = "tiny"
[[input]]
stream = "imu"
rate_hz = 10
channels = ["x", "y"]
[window]
length_s = 2
hop_s = 1
[model]
architecture = "minirocket"
features = 84
[labels]
column = "seconds_10k"
{bins}
[train]
split = "subject"
"""


def settled(numbers: list[float], bins: str) -> tuple[Any, dict[str, str]]:
    """The recipe with its borders, and the class of each person."""
    window: Any = SimpleNamespace(session="s")
    dataset = Dataset([Example(window, f"{number:g}", f"s{i}", f"p{i}") for i, number in enumerate(numbers)])
    recipe = settle_bins(parse_recipe(RECIPE.format(bins=bins)), dataset)
    return recipe.labels.bins, {example.subject: example.label for example in dataset.examples}


@pytest.mark.parametrize(
    ("bins", "borders", "sizes"),
    [
        ("bins = 3", (2600, 3200), [4, 1, 1]),
        ('bins = 3\nbins_by = "people"', (2150, 2450), [2, 2, 2]),
        ("bins = [2200, 3000]", (2200, 3000), [2, 3, 1]),
    ],
)
def test_borders(bins: str, borders: tuple[float, ...], sizes: list[int]) -> None:
    numbers = [2000, 2100, 2200, 2300, 2600, 3800]
    if bins.startswith("bins = ["):
        recipe = parse_recipe(RECIPE.format(bins=bins))
        assert recipe.labels.bins == borders
        classes = {str(i): bin_of(str(number), borders) for i, number in enumerate(numbers)}
    else:
        found, classes = settled([float(number) for number in numbers], bins)
        assert found == borders
    names = ordered(classes.values())
    assert names == (f"under {borders[0]}", f"{borders[0]} to {borders[1]}", f"{borders[1]} and more")
    assert [list(classes.values()).count(name) for name in names] == sizes


@pytest.mark.parametrize("bins_by", ["range", "people"])
@pytest.mark.parametrize(("first", "last"), [(101300, 101400), (7000100, 7000109), (1.00001, 1.00009)])
def test_numbers_near_each_other_have_borders_and_names(bins_by: str, first: float, last: float) -> None:
    numbers = np.linspace(first, last, 8)
    window: Any = SimpleNamespace(session="s")
    dataset = Dataset([Example(window, repr(float(number)), f"s{i}") for i, number in enumerate(numbers)])
    recipe = settle_bins(parse_recipe(RECIPE.format(bins=f'bins = 4\nbins_by = "{bins_by}"')), dataset)
    assert isinstance(recipe.labels.bins, tuple)
    assert len(dataset.labels) == 4
    assert [dataset.labels.index(example.label) for example in dataset.examples] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_equal_numbers_are_in_one_class() -> None:
    borders, classes = settled([2000, 2500, 2500, 2500, 2500, 3000], 'bins = 2\nbins_by = "people"')
    assert len({classes[f"p{i}"] for i in range(1, 5)}) == 1
    assert len(borders) == 1
    with pytest.raises(TrainingError, match="6 people have only 2 numbers; take fewer bins"):
        settled([2000, 2000, 2000, 2500, 2500, 2500], 'bins = 3\nbins_by = "people"')


@pytest.mark.parametrize(
    "bins", ["bins = 1", "bins = [3000, 2500]", 'bins_by = "runners"', 'bins = 2\nnames = {a = "b"}']
)
def test_what_is_no_bins(bins: str) -> None:
    with pytest.raises(RecipeError, match="bins"):
        parse_recipe(RECIPE.format(bins=bins))


def people(folder: Path, bins: str) -> tuple[list[str], str]:
    """A file each of 8 people with a number of their own, and the recipe."""
    (folder / "tiny.toml").write_text(RECIPE.format(bins=bins))
    for person in range(8):
        values = np.random.default_rng(person).standard_normal((60, 2)) * (1 + person // 4)
        rows = [f"{i / 10},{x:.3f},{y:.3f},p{person},{2000 + 100 * person}" for i, (x, y) in enumerate(values)]
        (folder / f"s{person}.csv").write_text("\n".join(["t,x,y,subject,seconds_10k", *rows]) + "\n")
    return [str(folder / f"s{person}.csv") for person in range(8)], str(folder / "tiny.toml")


def test_people_with_a_number_of_their_own_can_be_spared_to_judge(tmp_path: Path) -> None:
    files, recipe = people(tmp_path, "bins = 2")
    assert 1 < len(plan_of(load_recipe(recipe), tuple(files)).held_out) < 5


@pytest.mark.parametrize("bins", ["bins = 2", "bins = [2350]"])
def test_what_is_exported_by_subject_is_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bins: str
) -> None:
    monkeypatch.setenv("KYMO_HOME", str(tmp_path / "home"))
    files, recipe = people(tmp_path, bins)

    def run(verb: str, *words: str) -> Any:
        return CliRunner().invoke(kymo.cli, ["dataset", verb, recipe, "--data", *words])

    out = str(tmp_path / "windows")
    assert run("export", *files, "--format", "tfrecord", "--by", "subject", "--out", out).exit_code == 0
    plain, read = (json.loads(run("show", *paths, "--json").stdout) for paths in (files, [out]))
    assert plain == read
    assert plain["training"].keys() == {"under 2350", "2350 and more"}
    (tmp_path / "tiny.toml").write_text(RECIPE.format(bins="bins = [2400]"))
    assert ("take these, or export anew" in run("show", out).output) == (bins == "bins = [2350]")


def test_from_training_to_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYMO_HOME", str(tmp_path / "home"))
    files, recipe = people(tmp_path, 'bins = 2\nbins_by = "people"')
    words = ["--data", *files, "--out", str(tmp_path / "bundle"), "--no-report", "--json"]
    done = CliRunner().invoke(kymo.cli, ["train", recipe, *words])
    assert done.exit_code == 0, done.output
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert (manifest["bins"], manifest["labels"]) == ([2350], ["under 2350", "2350 and more"])
    # One slow person alone would give other borders, were they not the bundle's.
    words = ["evaluate", recipe, "--data", files[7], "--bundle", str(tmp_path / "bundle"), "--json"]
    scores = json.loads(CliRunner().invoke(kymo.cli, words).stdout)
    assert scores["confusion"]["2350 and more"] == {"2350 and more": 1}
    done = CliRunner().invoke(kymo.cli, ["run", recipe, files[0], "--bundle", str(tmp_path / "bundle")])
    assert {json.loads(line)["label"] for line in done.stdout.splitlines()} <= {
        "under 2350",
        "2350 and more",
        "unknown",
    }
