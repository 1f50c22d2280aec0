"""How well an activity is told from keypoints. In: CSV files of keypoints, a class each. Out: accuracy over five folds of videos.

The recipe `activity` stands beside the recipe that was published with these files (raw coordinates, three LSTM layers, RMSprop, 200
epochs, the larger class cut to the smaller) and beside a random forest on one normalised pose. All learn from the same videos and
are judged by the same others; exact copies of a video are on one side only. In the published files the nine frames of every video
are one and the same, so this is of poses, not of motion.

    python -m benchmarks.activity training_data_guitar.csv training_data_yoga.csv
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kymo.models.data.samples import split_chain
from kymo.models.data.splits import judged_splits
from kymo.models.training.run import TrainRequest, train_parameters
from kymo.models.training.train import train
from kymo.processors.recipe.load import INSTALLED, Recipe, parse_recipe
from kymo.streams.chunk import Array

EPOCHS = 200
Classes = NDArray[np.int64]
#: Windows and classes to learn from, windows to judge: classes.
Judge = Callable[[Array, Classes, Array], Classes]


def activity(paths: Sequence[str], text: str, epochs: int = EPOCHS) -> list[dict[str, Any]]:
    """A row a way to tell classes: `text` is a recipe, `epochs` those of the published one."""
    recipe = parse_recipe(text)
    began, rows = time.monotonic(), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as folder:
        trained = train(recipe, TrainRequest(tuple(paths), out=Path(folder) / "bundle", promote=False, report=False))
    scores = trained.scores
    rows.append({"way": "kymo", "accuracy": scores["window_accuracy"], "interval": scores.get("interval")})
    rows[-1] |= {"videos": scores["windows"], "seconds": time.monotonic() - began}
    step = text.index('[[window.steps]]\nstep = "normalise_pose"')
    raw = parse_recipe(text[:step] + text[text.index("[model]", step) :])
    ways: dict[str, tuple[Recipe, Judge]] = {
        "published": (raw, lambda *sides: published(*sides, epochs)),
        "forest": (recipe, forest),
    }
    for name, (taken, judge) in ways.items():
        began = time.monotonic()
        rows.append({"way": name, **_judged(taken, paths, judge), "seconds": time.monotonic() - began})
    return rows


def _judged(recipe: Recipe, paths: Sequence[str], judge: Judge) -> dict[str, Any]:
    """The same folds as `kymo train` makes."""
    request = TrainRequest(tuple(paths))
    settings = train_parameters(recipe, request)
    dataset = request.windows(recipe, split_chain(recipe.chain)[0])
    windows = np.stack([example.window.data for example in dataset.examples]).astype(np.float32)
    classes = np.array([dataset.labels.index(example.label) for example in dataset.examples])
    right = list[bool]()
    for split in judged_splits(dataset.examples, recipe.train, settings["validation"], settings["seed"]):
        answers = judge(windows[split.training], classes[split.training], windows[split.validation])
        right += (answers == classes[split.validation]).tolist()
    return {"accuracy": float(np.mean(right)), "videos": len(right)}


def forest(windows: Array, classes: Classes, others: Array) -> Classes:
    """A random forest on the first frame."""
    from sklearn.ensemble import RandomForestClassifier

    answers: Classes = RandomForestClassifier(300, random_state=0).fit(windows[:, 0], classes).predict(others[:, 0])
    return answers


def published(windows: Array, classes: Classes, others: Array, epochs: int = EPOCHS) -> Classes:
    """The published network as it learns there."""
    from kymo.models.training.fit_keras import keras, prepare_keras

    prepare_keras(0)
    random = np.random.default_rng(0)
    least = np.bincount(classes).min()
    chosen = np.concatenate(
        [random.permutation(np.flatnonzero(classes == i))[:least] for i in range(classes.max() + 1)]
    )
    layers = [keras.Input(windows.shape[1:])]
    for share, goes_on in ((0.2, True), (0.1, True), (0.1, False)):
        layers += [keras.layers.LSTM(128, return_sequences=goes_on), keras.layers.Dropout(share)]
        layers += [keras.layers.BatchNormalization()]
    layers += [keras.layers.Dense(32, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(1, "sigmoid")]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.RMSprop(0.001, 0.9), "binary_crossentropy")
    model.fit(windows[chosen], classes[chosen], 64, epochs, verbose=0)
    answers: Classes = (model.predict(others, verbose=0)[:, 0] > 0.5).astype(np.int64)
    return answers


if __name__ == "__main__":
    print(json.dumps(activity(sys.argv[1:], (INSTALLED / "activity.toml").read_text()), indent=1))
