"""`[train] compare` as a list: which architectures are fitted beside the recipe's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

from kymo.models.training.train import TrainRequest, train
from kymo.processors.recipe.load import parse_recipe
from kymo.streams.errors import TrainingError

RECIPE = """
name = "beside"
[[input]]
stream = "imu"
rate_hz = 10
channels = ["acc", "mag.x", "mag.y"]
[window]
length_s = 2
hop_s = 1
[model]
architecture = "minirocket"
features = 84
[train]
epochs = 2
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten recordings of 6 s: the vector's length says the class, its direction and the other channel nothing."""
    folder, random = tmp_path_factory.mktemp("beside"), np.random.default_rng(6)
    for i in range(10):
        angle = random.uniform(0, 7, 60)
        length = 50 + 0.1 * random.standard_normal(60) + 10 * (i % 2)
        rows = np.stack([random.standard_normal(60), length * np.cos(angle), length * np.sin(angle)], 1)
        lines = [",".join(f"{x:.4f}" for x in row) + f",{'far' if i % 2 else 'near'}" for row in rows]
        (folder / f"r{i}.csv").write_text("\n".join(["acc,mag.x,mag.y,label", *lines]) + "\n")
    return folder


@pytest.mark.parametrize("folds", ["folds = 0\n", "folds = 2\n"])
def test_the_named_are_fitted_and_judged(data: Path, tmp_path: Path, folds: str) -> None:
    recipe = parse_recipe(f'{RECIPE}{folds}compare = ["magnitude_rule", "minirocket", "magnitude_rule"]\n')
    trained = train(recipe, TrainRequest((str(data),), out=tmp_path / "bundle", report=False))
    assert [candidate.name for candidate in trained.record.candidates] == ["minirocket", "magnitude_rule"]
    assert [candidate.scores["windows"] for candidate in trained.record.candidates] == [50 if "2" in folds else 10] * 2
    assert trained.record.candidates[1].scores["window_accuracy"] == 1


def test_none_and_one_that_is_not_known(data: Path, tmp_path: Path) -> None:
    request = TrainRequest((str(data),), out=tmp_path / "bundle", report=False)
    trained = train(parse_recipe(f"{RECIPE}compare = []\n"), request)
    assert [candidate.name for candidate in trained.record.candidates] == ["minirocket"]
    with pytest.raises(TrainingError, match=r"architecture 'magnitude': expected one of ast, magnitude_rule"):
        train(parse_recipe(f'{RECIPE}compare = ["magnitude"]\n'), request)
