"""Recipes of several inputs that no worker can serve."""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_feed import lab_recipe

from kymo.deploy.roles import check_waiting, patience_of
from kymo.models.bundle import load_bundle
from kymo.processors.recipe.load import parse_recipe
from kymo.streams.errors import RecipeError
from kymo.streams.topics import Names

JOINED = """
name = "two"
[[input]]
stream = "eda"
rate_hz = 4
channels = ["eda"]
lateness_s = 2
[[input]]
stream = "eeg"
rate_hz = 1000
channels = ["c1", "c2", "c3", "c4"]
sample = "mean"
lateness_s = 600
idle_s = 700
[join]
rate_hz = 100
grid = "eda"
[[steps]]
step = "scale"
factor = 2
[window]
length_s = 60
hop_s = 30
"""


def test_a_recipe_whose_sessions_cannot_be_stored_is_refused_with_the_sum(tmp_path: Path) -> None:
    _, folder = lab_recipe(tmp_path)
    bundle, recipe = load_bundle(folder), parse_recipe(JOINED)
    with pytest.raises(RecipeError) as told:
        check_waiting(recipe, recipe.chain)
    # 60 s of 100 ticks of 5 numbers; 600 s of 100 ticks of 1, and of 1,000 samples of 4.
    assert "its steps and window take 0.1, and what waits for lateness_s = 600 `eda` 0.2, `eeg` 9.2" in str(told.value)
    assert "may hold 9.5 MiB, and a snapshot 7.9" in str(told.value)
    short = parse_recipe(JOINED.replace("600", "30"))
    check_waiting(short, short.chain)
    check_waiting(recipe, bundle.chain)  # one input is read again


def test_how_long_is_waited_is_the_recipes(tmp_path: Path) -> None:
    patience = patience_of(parse_recipe(JOINED), Names("k"))
    assert [(p.topic, p.lateness_s, p.idle_s) for p in patience.values()] == [
        ("k.physio", 2, 60),
        ("k.sensor", 600, 700),
    ]
