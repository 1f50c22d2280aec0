"""CONTRIBUTING's two examples: the step keeps the laws and stands in a recipe, the model is trained into a bundle."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from checks import check_per_window, check_spec
from documents import blocks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import cuttings, imu, recordings, samples

from kymo.models import zoo
from kymo.models.predict import Classifier
from kymo.models.run import run
from kymo.models.training.train import TrainRequest, train
from kymo.processors.recipe.load import parse_recipe
from kymo.processors.registry import STEPS
from kymo.streams.errors import FormatError
from kymo.streams.readers import read

STEP, MODEL = "Adding a step", "Adding a model"


def example(heading: str, name: str, folder: Path) -> ModuleType:
    """The Python block under a heading, imported as a module of this name."""
    (block,) = blocks("CONTRIBUTING.md", "python", heading)
    (folder / f"{name}.py").write_text(block.text, encoding="utf-8")
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def norm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return example(STEP, "norm_of_the_example", tmp_path_factory.mktemp("step")).Norm


@pytest.fixture
def _registered(norm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STEPS, "norm", norm)


@pytest.mark.usefixtures("_registered")
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_the_step_keeps_the_laws(norm: Any, data: st.DataObject) -> None:
    fmt = imu(3, data.draw(st.sampled_from(["float32", "float64", "int16"])))
    runs = data.draw(recordings(fmt))
    chunks = data.draw(cuttings(runs))
    kills = data.draw(st.lists(st.integers(0, len(chunks)), max_size=3))
    check_spec(norm(), fmt, runs, chunks, kills)
    check_per_window(norm(), fmt, runs[0])


def test_the_numbers_of_the_step(norm: Any) -> None:
    fmt = imu(9, "float64", units=("g",) * 9)
    data = samples(fmt, 50, 1)
    assert np.allclose(norm().apply(data, fmt)[:, 0], np.linalg.norm(data, axis=1), rtol=1e-12)
    assert norm("total").output({"imu": fmt}).channels == ("total",)
    assert norm().output({"imu": fmt}).units == ("g",)
    with pytest.raises(FormatError, match="the units g, T"):
        norm().output({"imu": imu(2, units=("g", "T"))})


@pytest.mark.usefixtures("_registered")
def test_the_step_stands_in_a_recipe() -> None:
    (block,) = blocks("CONTRIBUTING.md", "toml", STEP)
    recipe = parse_recipe(
        'name = "x"\n[[input]]\nstream = "imu"\nrate_hz = 50\nchannels = ["x", "y", "z"]\n'
        f"{block.text}[window]\nlength_s = 2\nhop_s = 1\n"
    )
    assert (recipe.output_format().rows, recipe.output_format().shape) == (100, (1,))


def test_the_model_becomes_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    example(MODEL, "softmax_of_the_example", tmp_path)
    monkeypatch.setitem(zoo.ARCHITECTURES, "softmax_regression", "softmax_of_the_example:SoftmaxRegression")
    (block,) = blocks("CONTRIBUTING.md", "toml", MODEL)
    recipe = parse_recipe(
        'name = "tilt"\n[[input]]\nstream = "sensor"\nrate_hz = 10\nchannels = ["x", "y"]\n'
        f'[window]\nlength_s = 1\nhop_s = 1\n[[window.steps]]\nstep = "standardise"\n{block.text}'
    )
    rng = np.random.default_rng(0)
    for number in range(8):  # a constant of either sign in noise: easy to tell apart
        level, label = (1, "up") if number % 2 else (-1, "down")
        rows = (f"{x:.3f},{y:.3f},{label}" for x, y in rng.normal(level, 0.3, (60, 2)))
        (tmp_path / f"r{number}.csv").write_text("\n".join(["x,y,label", *rows]))
    trained = train(recipe, TrainRequest((str(tmp_path),), out=tmp_path / "bundle"))
    assert trained.scores["accuracy"] == 1.0
    assert (trained.bundle.layout, trained.bundle.shape) == ("channels_last", (10, 2))
    classifier = Classifier(trained.bundle, recipe.name, 0.5)
    for event in run(recipe, read([tmp_path / "r1.csv"], recipe.read_options()), classifier):
        assert event.label == "up"
