"""Sessions of any length: the last window is filled up with zeros, behind all steps, from the recipe to events."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import kymo
from kymo.models.data.dataset import read_dataset
from kymo.models.data.samples import fit_steps, split_chain, with_steps
from kymo.models.data.store import StoreWriter, open_store
from kymo.processors.recipe.load import parse_recipe
from kymo.streams.errors import RecipeError
from kymo.streams.readers import read

RECIPE = """
name = "tiny"
[[input]]
stream = "imu"
rate_hz = 10
channels = ["x", "y"]
[window]
length_s = 2
hop_s = 1
pad = true
[[window.steps]]
step = "standardise"
[model]
architecture = "minirocket"
features = 84
"""
#: Samples of each session, and of each of its windows what is there.
LENGTHS = {7: [7], 20: [20], 25: [20, 15], 31: [20, 20, 11], 40: [20, 20, 20]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for number, length in enumerate([*LENGTHS] * 2):
        values = np.random.default_rng(number).standard_normal((length, 2)) + (5 if number > 4 else 0)
        rows = [f"{i / 10},{x:.3f},{y:.3f},{'ab'[number > 4]}" for i, (x, y) in enumerate(values)]
        (folder / f"s{number}.csv").write_text("\n".join(["t,x,y,label", *rows]) + "\n")
    return folder


def test_windows_say_what_is_there_and_end_in_zeros(data: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(RECIPE)
    head, steps = split_chain(recipe.chain)
    dataset = read_dataset(read([data], recipe.read_options()), recipe, head)
    by_session: dict[str, list[int]] = {}
    for example in dataset.examples:
        window = example.window
        assert (window.data.shape, len(window.real)) == ((20, 2), window.end_index - window.start_index)
        assert window.end_ns - window.start_ns == len(window.real) * 10**8
        by_session.setdefault(window.session, []).append(len(window.real))
    assert list(by_session.values()) == [*LENGTHS.values()] * 2
    (fitted,) = fit_steps(steps, [example.window for example in dataset.examples])
    every = np.concatenate([example.window.real for example in dataset.examples])
    np.testing.assert_allclose(fitted.to_json()["spec"]["mean"], every.mean(0, np.float64), rtol=1e-6)
    writer = StoreWriter(tmp_path)
    writer.add_all(dataset.examples)
    writer.finish(dataset)
    writer.close()
    for example in with_steps(open_store(tmp_path).examples, [fitted]):
        window = example.window
        assert not window.data[len(window.real) :].any()
        assert np.abs(window.real).max() > 0


def test_sessions_of_any_length_have_events(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYMO_HOME", str(tmp_path / "home"))
    recipe, bundle = tmp_path / "tiny.toml", str(tmp_path / "bundle")
    recipe.write_text(RECIPE)
    done = CliRunner().invoke(kymo.cli, ["train", str(recipe), "--data", str(data), "--out", bundle, "--no-report"])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(kymo.cli, ["run", str(recipe), str(data), "--bundle", bundle])
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [round((event["end_ns"] - event["start_ns"]) / 1e8) for event in events] == [
        count for counts in LENGTHS.values() for count in counts
    ] * 2


def test_a_stateful_model_takes_no_padding() -> None:
    text = RECIPE.replace("hop_s = 1", "hop_s = 2").replace(
        '"minirocket"\nfeatures = 84', '"recurrent"\nstateful = true'
    )
    with pytest.raises(RecipeError, match=r"pad = true: a stateful model takes what came"):
        parse_recipe(text)
