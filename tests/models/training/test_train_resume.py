"""Training that is killed goes on where it was, and ends with the same bytes as training that was not."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from documents import ROOT
from tiny_models import RECIPE, recipe

import kymo.models.training.train
from kymo.models.data.examples import Dataset, Example
from kymo.models.registry.manifest import MODEL
from kymo.models.training.learning import Course, LearningSettings, rate
from kymo.models.training.run import TrainingRun, checkpoints
from kymo.models.training.train import TrainRequest, fingerprint, train
from kymo.models.zoo import FitOptions, Samples

TEXT = RECIPE.replace("epochs = 3", "epochs = 9\nrefit = true")


def write_data(folder: Path) -> None:
    random = np.random.default_rng(0)
    for i in range(10):
        level = 3.0 * (i % 2)
        rows = [f"{t / 10},{level + random.standard_normal():.3f},{random.standard_normal():.3f}" for t in range(20)]
        lines = ["t,x,y,label", *(f"{row},{'ab'[i % 2]}" for row in rows)]
        (folder / f"r{i}.csv").write_text("\n".join(lines) + "\n")


def killed_after(code: str, epochs: int, environment: dict[str, str]) -> None:
    """TrainingRun Python code that prints a line an epoch; kill -9 after so many."""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        for _ in range(epochs):
            assert child.stdout.readline().startswith(b"epoch")
        child.kill()
    assert child.returncode == -9


TRAIN = """
import sys; sys.path[:0] = ["tests", "tests/models/training"]
from pathlib import Path
from kymo.models.training.train import TrainRequest, train
from kymo.processors.recipe.load import parse_recipe
train(parse_recipe({text!r}), TrainRequest(({data!r},), out=Path({out!r})), lambda e: print("epoch", e["epoch"], flush=True))
"""


@pytest.mark.parametrize("epochs", [2, 12])  # in the first fit, and while the final model learns from all windows
def test_killed_and_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    pytest.importorskip("torch")
    data = tmp_path / "data"
    data.mkdir()
    write_data(data)
    monkeypatch.setenv("KYMO_HOME", str(tmp_path / "undisturbed"))
    told: list[float] = []
    whole = train(recipe(TEXT), TrainRequest((str(data),), out=tmp_path / "a"), lambda e: told.append(e["epoch"]))
    assert len(told) > 12
    monkeypatch.setenv("KYMO_HOME", str(tmp_path / "home"))
    killed_after(TRAIN.format(text=TEXT, data=str(data), out=str(tmp_path / "b")), epochs, dict(os.environ))
    states = list((tmp_path / "home" / "cache" / "training").rglob("state"))
    assert len(states) == 1 + (epochs > 9)
    again: list[float] = []
    resumed = train(recipe(TEXT), TrainRequest((str(data),), out=tmp_path / "b"), lambda e: again.append(e["epoch"]))
    assert resumed.bundle.id == whole.bundle.id
    for name in (MODEL, "report/report.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert again == told  # the epochs that were are told again
    assert not list((tmp_path / "home" / "cache" / "training").iterdir())


class Killed(BaseException):
    """As a kill: nobody catches it."""


def test_another_choice_does_not_go_on_from_the_weights_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    data = tmp_path / "data"
    data.mkdir()
    write_data(data)
    request, choose, rate_of = TrainRequest((str(data),), only=True), kymo.models.training.train._choose, {"now": 0.001}

    def chosen(*given: Any) -> Any:  # as a search with its budget of time: not the same in every run
        found, why = choose(*given)
        found.plan = replace(found.plan, parameters={**found.plan.parameters, "learning_rate": rate_of["now"]})
        return found, why

    def killed(name: str, epochs: int) -> Any:
        def on_epoch(_: Any) -> None:
            if "all windows" in name:
                raise Killed

        return on_epoch

    monkeypatch.setattr(kymo.models.training.train, "_choose", chosen)
    made = []
    for home, kill in (("a", True), ("a", False), ("b", False)):
        monkeypatch.setenv("KYMO_HOME", str(tmp_path / home))
        asked = replace(request, out=tmp_path / f"{home}.bundle")
        if kill:
            with pytest.raises(Killed):
                train(recipe(TEXT), asked, on_stage=killed)
            assert len(list((tmp_path / home / "cache" / "training").rglob("state"))) == 3
            rate_of["now"] = 0.02
        else:
            made.append((train(recipe(TEXT), asked).bundle.path / MODEL).read_bytes())
    assert made[0] == made[1]


KERAS = """
import sys; sys.path[:0] = ["tests", "tests/models/training"]
from pathlib import Path
from test_train_resume import fit_small
fit_small(Path({folder!r}), lambda e: print("epoch", e["epoch"], flush=True))
"""


def fit_small(checkpoints: Path | None, on_epoch: Any) -> Any:
    """A small Keras model with dropout and batch normalisation, trained; what it then says of some windows."""
    from kymo.models.training.fit_keras import fit_keras, keras, predict_keras, prepare_keras

    prepare_keras(0)
    given = keras.Input((8, 2))
    hidden = keras.layers.BatchNormalization()(keras.layers.Conv1D(6, 3, activation="relu")(given))
    hidden = keras.layers.Dropout(0.3)(keras.layers.GlobalAveragePooling1D()(hidden))
    model = keras.Model(given, keras.layers.Dense(2)(hidden))
    sides = [planted(60, 0), planted(30, 1)]
    options = FitOptions(epochs=6, seed=1, schedule="plateau", patience=6, checkpoints=checkpoints)
    fit_keras(model, LearningSettings(2, learning_rate=0.02), *sides, options, on_epoch)
    return predict_keras(model, sides[1].windows)


def planted(n: int, seed: int) -> Samples:
    random = np.random.default_rng(seed)
    classes = random.integers(0, 2, n)
    windows = random.standard_normal((n, 8, 2)).astype(np.float32)
    windows[:, :, 0] += classes[:, None]
    return Samples(windows, classes)


@pytest.mark.slow  # imports TensorFlow twice
def test_keras_too(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    whole: list[Any] = []
    expected = fit_small(None, whole.append)
    assert fit_small(None, lambda _: None).tobytes() == expected.tobytes()
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    killed_after(KERAS.format(folder=str(tmp_path)), 3, environment)
    again: list[Any] = []
    assert fit_small(tmp_path, again.append).tobytes() == expected.tobytes()
    assert again == whole


def test_a_gain_that_is_too_small_does_not_keep_training() -> None:
    """As Keras' EarlyStopping counts it: from the last loss that was low enough."""
    losses = (1.0, 0.9995, 0.9989, 0.9985, 0.9984, 0.9983)
    for gain, epochs in ((0.0, 6), (0.001, 5), (0.01, 3)):
        course, options = Course(), FitOptions(patience=2, min_gain=gain)
        for epoch, loss in enumerate(losses, 1):
            course.add({"epoch": epoch, "loss": loss, "validation_loss": loss}, options)
            if course.stopped:
                break
        assert (len(course.history), course.best_loss) == (epochs, losses[epochs - 1])


def test_schedules() -> None:
    course = Course()
    cosine = [rate(LearningSettings(2, learning_rate=0.1), course, step, 100, 9) for step in range(100)]
    assert cosine.index(max(cosine)) in (9, 10)
    assert max(cosine) == pytest.approx(0.1)
    assert cosine[55] == pytest.approx(0.05)
    assert (cosine[0], cosine[99] < 1e-4) == (pytest.approx(0.01), True)
    none = LearningSettings(2, learning_rate=0.1, schedule="none")
    assert {rate(none, course, step, 100, 9) for step in (0, 50, 99)} == {0.1}
    options, plateau = FitOptions(patience=9), LearningSettings(2, learning_rate=0.1, schedule="plateau")
    rates = []
    for loss in (1.0, 0.9, 0.95, 0.95, 0.95, 0.8, 0.9, 0.9, 0.9):
        course.add({"epoch": 0, "loss": 1.0, "validation_loss": loss}, options)
        rates.append(rate(plateau, course, 0, 1, 9))
    assert rates == [0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05, 0.025]


@pytest.mark.parametrize(
    "other",
    [{"subject": "q"}, {"metadata": {"week": "2"}}, {"label": "b"}, {"session": "t"}, {"targets": {"pace": 2.0}}],
)
def test_what_other_windows_gave_is_not_taken_up(other: dict[str, Any]) -> None:
    """Corrected between a kill and a new start: other windows stand on the sides."""
    example = Example(SimpleNamespace(start_ns=0), "a", "s", "p", "f.csv", {"week": "1"}, {"pace": 1.0})  # type: ignore[arg-type]
    request, silent = TrainRequest(("data",)), lambda name, epochs: lambda epoch: None
    runs = [
        TrainingRun(recipe(TEXT), request, {"compare": False}, Dataset([changed, example]), silent)
        for changed in (example, replace(example), replace(example, **other))
    ]
    same, again, new = map(fingerprint, runs)
    assert same == again != new


def test_checkpoints_of_another_version_of_a_library_are_not_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("KYMO_HOME", str(tmp_path / "home"))
    made = recipe(TEXT)
    run = TrainingRun(
        made,
        TrainRequest(("data",)),
        {"epochs": 9, "compare": True},
        Dataset(),
        lambda name, epochs: lambda epoch: None,
    )
    installed = importlib.metadata.version
    same, folders = [], []
    for other in ("", "", "torch", "numpy", "onnx"):
        version = lambda name, other=other: "0.0.1" if name == other else installed(name)  # noqa: E731
        monkeypatch.setattr(importlib.metadata, "version", version)
        same.append(fingerprint(run))
        with checkpoints(fingerprint(run)) as folder:
            assert folder is not None
            folders.append(folder.name)
    assert folders[0] == folders[1]
    assert len(set(folders)) == 4
