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
from kymo.processors.recipe.load import parse_recipe
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


def test_from_training_to_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYMO_HOME", str(tmp_path / "home"))
    (tmp_path / "tiny.toml").write_text(RECIPE.format(bins='bins = 2\nbins_by = "people"'))
    for person in range(8):
        values = np.random.default_rng(person).standard_normal((60, 2)) * (1 + person // 4)
        rows = [f"{i / 10},{x:.3f},{y:.3f},p{person},{2000 + 100 * person}" for i, (x, y) in enumerate(values)]
        (tmp_path / f"s{person}.csv").write_text("\n".join(["t,x,y,subject,seconds_10k", *rows]) + "\n")
    files, recipe = [str(tmp_path / f"s{person}.csv") for person in range(8)], str(tmp_path / "tiny.toml")
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
