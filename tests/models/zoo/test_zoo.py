"""Architectures: any shape, small, equal in ONNX Runtime, equal bytes whatever the batch."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kymo.models.onnx_model import OnnxModel  # noqa: E402
from kymo.models.training.export import export_model  # noqa: E402
from kymo.models.zoo import FitOptions, Samples, architecture  # noqa: E402
from kymo.models.zoo.spectrogram_cnn import SpectrogramCnn  # noqa: E402
from kymo.streams.chunk import Format  # noqa: E402
from kymo.streams.errors import TrainingError  # noqa: E402


def network(rows: int, shape: tuple[int, ...], seed: int = 0, **parameters: Any) -> SpectrogramCnn:
    fmt = Format("spectrogram", ("c",) * shape[-1], (), Fraction(50), "float32", shape, rows=rows)
    return SpectrogramCnn(fmt, ("a", "b", "c"), parameters, seed)


@pytest.mark.parametrize(
    ("rows", "shape"),
    [(1, (1, 1)), (1, (257, 2)), (9, (9, 6)), (46, (223, 6)), (1000, (12,)), (7, (3,)), (64, (16, 1))],
)
def test_takes_any_shape(rows: int, shape: tuple[int, ...]) -> None:
    made = network(rows, shape)
    windows = np.random.default_rng(0).standard_normal((5, shape[-1], rows, *shape[:-1])).astype(np.float32)
    logits = made.predict(windows)
    assert (logits.shape, logits.dtype) == ((5, 3), np.float32)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize(("rows", "shape"), [(21, (101, 12)), (50, (3,))])
def test_exports_what_it_computes(rows: int, shape: tuple[int, ...]) -> None:
    made = network(rows, shape)
    random = np.random.default_rng(0)
    windows = random.standard_normal((64, shape[-1], rows, *shape[:-1])).astype(np.float32)
    made.fit(Samples(windows, random.integers(0, 3, 64)), None, FitOptions(epochs=1), lambda _: None)
    exported = export_model(made, windows.shape[1:], windows)
    assert exported.batch == "any"
    assert exported.parity <= 1e-5
    assert len(exported.model) < 150_000
    assert b"/site-packages/" not in exported.model
    model = OnnxModel(exported.model, "windows", "logits")
    np.testing.assert_allclose(model.run(windows[:33]), made.predict(windows[:33]), rtol=1e-5, atol=1e-5)
    rows_alone = [model.run(windows[i : i + 1]).tobytes() for i in range(64)]
    assert b"".join(rows_alone) == model.run(windows).tobytes()


def test_an_export_that_differs_is_refused() -> None:
    class Drifting(SpectrogramCnn):
        def predict(self, windows: Any) -> Any:
            return super().predict(windows) + np.float32(1e-3)

    made = Drifting(Format("s", ("c",), (), Fraction(1), "float32", (1,), rows=4), ("a", "b"), {}, 0)
    with pytest.raises(TrainingError, match=r"differs from the trained one by 0\.0009"):
        export_model(made, (1, 4), np.zeros((2, 1, 4), np.float32))


def planted(n: int, seed: int) -> Samples:
    """Two classes: energy in the low or in the high bins."""
    random = np.random.default_rng(seed)
    windows = random.standard_normal((n, 2, 6, 8)).astype(np.float32)
    classes = random.integers(0, 2, n)
    windows[classes == 0, :, :, :3] += 1
    windows[classes == 1, :, :, 5:] += 1
    return Samples(windows, classes)


def test_learns_and_keeps_the_best_epoch() -> None:
    made = network(6, (8, 2), width=8)
    epochs: list[dict[str, float]] = []
    held = planted(100, 1)
    before = held.windows.tobytes()
    made.fit(planted(200, 0), held, FitOptions(epochs=20, patience=5), epochs.append)
    best = min(epochs, key=lambda epoch: epoch["validation_loss"])
    assert best["validation_accuracy"] > 0.97
    logits = torch.from_numpy(made.predict(held.windows))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(held.classes)).item()
    assert loss == pytest.approx(best["validation_loss"], rel=1e-6)
    assert held.windows.tobytes() == before


def test_stops_when_nothing_gets_better() -> None:
    random = np.random.default_rng(0)
    noise = [Samples(planted(60, s).windows, random.integers(0, 2, 60)) for s in (0, 1)]
    epochs: list[dict[str, float]] = []
    network(6, (8, 2)).fit(noise[0], noise[1], FitOptions(epochs=200, patience=3), epochs.append)
    losses = [epoch["validation_loss"] for epoch in epochs]
    assert len(epochs) < 200
    assert len(epochs) == losses.index(min(losses)) + 1 + 3


def test_the_seed_decides() -> None:
    def weights(seed: int) -> bytes:
        made = network(6, (8, 2), seed)
        made.fit(planted(40, 0), None, FitOptions(epochs=2, seed=seed), lambda _: None)
        return made.predict(planted(4, 2).windows).tobytes()

    assert weights(3) == weights(3) != weights(4)


def test_rare_classes_count_as_much() -> None:
    samples = planted(400, 0)
    keep = (samples.classes == 0) | (np.cumsum(samples.classes == 1) <= 12)
    made = network(6, (8, 2))
    made.fit(Samples(samples.windows[keep], samples.classes[keep]), None, FitOptions(epochs=15), lambda _: None)
    held = planted(200, 1)
    answers = made.predict(held.windows).argmax(1)
    assert (answers == held.classes)[held.classes == 1].mean() > 0.8


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"widht": 8}, "has no parameter 'widht' here; did you mean 'width'"),
        ({"width": 2.5}, "width = 2.5, expected a whole number"),
        ({"width": 0}, "width = 0, expected a whole number from 1"),
        ({"dropout": True}, "dropout = True, expected a number"),
        ({"dropout": 1.0}, "dropout = 1.0, expected a number from 0 to below 1"),
    ],
)
def test_refuses_wrong_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        network(6, (8, 2), **parameters)


def test_refuses_other_axes_and_names() -> None:
    with pytest.raises(TrainingError, match=r"makes 4 axes"):
        network(6, (8, 8, 3))
    with pytest.raises(TrainingError, match=r"architecture 'resnet': expected one of .*spectrogram_cnn"):
        architecture("resnet")


def test_a_missing_framework_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(architecture.__globals__["ARCHITECTURES"], "other", "kymo.models.zoo.nothing_here:Other")
    with pytest.raises(
        TrainingError, match=r"needs the package `kymo\.models\.zoo\.nothing_here`, which is not installed"
    ):
        architecture("other")
