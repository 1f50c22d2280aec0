"""MiniRocket: aeon's features to the bit, a ridge against scikit-learn, one result in numpy and ONNX; and the rule on a length."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kymo.models.onnx_model import OnnxModel
from kymo.models.training.export import INPUT, OUTPUT, export_model
from kymo.models.zoo import Epoch, FitOptions, ModelHead, Samples
from kymo.models.zoo.magnitude_rule import MagnitudeRule
from kymo.models.zoo.minirocket import (
    KERNELS,
    LARGEST,
    LENGTH,
    PENALTIES,
    Bank,
    MiniRocket,
    dilations,
    fit_banks,
    fit_ridges,
    standardise,
)
from kymo.streams.chunk import Array, Format
from kymo.streams.errors import TrainingError


def whole(n: int, channels: int, time: int, seed: int = 0) -> Any:
    """Windows of whole numbers, some as large as they may be."""
    random = np.random.default_rng(seed)
    windows = np.rint(random.standard_normal((n, channels, time)) * 9_000).astype(np.float32)
    windows[0] = LARGEST
    windows[1, :, ::2] = -LARGEST
    return windows


def as_aeon_has_them(banks: list[Bank], channels: int) -> tuple[Array, ...]:
    """Banks as the parameters of aeon's transform: by dilation, then by kernel, padded and not in turn."""
    counts, indices, steps, features, biases = [], [], [], [], []
    for j in range(len(banks) // 2):
        padded, inside = banks[2 * j : 2 * j + 2]
        steps.append(padded.dilation)
        features.append(padded.biases.shape[1])
        for k in range(KERNELS):
            bank = padded if (j + k) % 2 == 0 else inside
            row = k // 2
            chosen = np.flatnonzero(bank.weights[row].any(1))
            counts.append(len(chosen))
            indices += chosen.tolist()
            biases.append(bank.biases[row])
    numbers = (np.array(values, np.int32) for values in (counts, indices, steps, features))
    return (*numbers, np.concatenate(biases).astype(np.float32))


@pytest.fixture(scope="module")
def aeon() -> Any:
    """Aeon's MiniRocket, not compiled: that would take a hundred times as long as these few windows."""
    numba = pytest.importorskip("numba")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba.config, "DISABLE_JIT", True)
        return pytest.importorskip("aeon.transformations.collection.convolution_based._minirocket")


@pytest.mark.parametrize("channels", [1, 3])
def test_features_are_aeons(channels: int, aeon: Any) -> None:
    windows = whole(12, channels, 50)
    banks = fit_banks(windows, 840, np.random.default_rng(1))
    places = [np.full(b.biases.size, b.respond(windows[:1]).shape[2], np.float32) for b in banks]
    model = rocket(50, channels)
    model.banks = banks
    ours = model.count(windows) / np.concatenate(places)
    parameters, indices = as_aeon_has_them(banks, channels), aeon.MiniRocket._indices
    if channels == 1:
        theirs = aeon._static_transform_uni(windows[:, 0], parameters, indices)
    else:
        theirs = aeon._static_transform_multi(windows, parameters, indices)
    # Ours stand by bank, aeon's by kernel: the same numbers, in another order.
    by_kernel = []
    at = 0
    for j in range(len(banks) // 2):
        size = banks[2 * j].biases.size
        halves = [ours[:, at + i * size : at + (i + 1) * size].reshape(12, KERNELS // 2, -1) for i in range(2)]
        at += 2 * size
        by_kernel += [halves[(j + k) % 2][:, k // 2] for k in range(KERNELS)]
    np.testing.assert_array_equal(np.concatenate(by_kernel, 1).astype(np.float32), theirs)


@pytest.mark.parametrize(("time", "features"), [(9, 84), (50, 10_000), (160, 10_000), (1000, 2_000), (17, 500)])
def test_dilations_are_aeons(time: int, features: int, aeon: Any) -> None:
    values, counts = aeon._fit_dilations(time, features, 32)
    assert dilations(time, features) == list(zip(values.tolist(), counts.tolist(), strict=True))


def test_a_count_is_how_often_a_sum_lies_above_a_bias() -> None:
    windows = whole(3, 2, 30)
    (bank, *_) = (b for b in fit_banks(windows, 840, np.random.default_rng(0)) if b.dilation == 2 and b.padded)
    padded = np.pad(windows.astype(np.int64), ((0, 0), (0, 0), (8, 8)))
    weights = bank.weights.astype(np.int64)
    for kernel in (0, 17):
        sums = [
            sum(int((weights[kernel, :, i] * padded[1, :, t + 2 * i]).sum()) for i in range(LENGTH)) for t in range(30)
        ]
        np.testing.assert_array_equal(bank.respond(windows)[1, kernel], sums)
        count = counted(bank, windows).reshape(3, len(weights), -1)[1, kernel]
        assert count.tolist() == [sum(s > bias for s in sums) for bias in bank.biases[kernel]]


def counted(bank: Bank, windows: Any) -> Any:
    """Counts ``(n, kernels * biases)`` by numpy."""
    above = bank.respond(windows)[:, :, None] > bank.biases[:, :, None]
    return np.count_nonzero(above, axis=3).reshape(len(windows), -1)


def test_the_ridge_is_scikit_learns() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    random = np.random.default_rng(0)
    classes = random.integers(0, 3, 60)
    features = random.standard_normal((60, 8)).astype(np.float32) * 3 + classes[:, None]
    scaled = features.copy()
    mean, scale = standardise(scaled)
    np.testing.assert_allclose(scaled, (features - mean) / scale, atol=1e-5)
    (found,) = fit_ridges(scaled, np.arange(60) // 4, (ModelHead("", ("a", "b", "c")),), {"": classes}, np.ones(3))
    scaled = (features - mean) / scale
    size = float(np.square(scaled).sum(1).mean())
    # Our bias is a feature of the length of the others, with the same penalty.
    rows = np.column_stack([scaled / np.sqrt(size), np.ones(60)])
    targets = np.where(np.arange(3) == classes[:, None], 1.0, -1.0)
    theirs = linear.Ridge(alpha=found.penalty, fit_intercept=False)
    expected = theirs.fit(rows, targets).predict(rows)
    ours = scaled @ found.weights + found.bias
    temperature = float(np.median(expected / ours))
    np.testing.assert_allclose(ours * temperature, expected, atol=1e-5)
    for group in (0, 7):
        held = np.arange(60) // 4 == group
        left_out = theirs.fit(rows[~held], targets[~held]).predict(rows[held])
        np.testing.assert_allclose(found.left_out[held] * temperature, left_out, atol=1e-5)


def test_heads_are_scikit_learns_ridge() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    random = np.random.default_rng(1)
    features = random.standard_normal((50, 6)).astype(np.float32)
    features -= features.mean(0)
    features /= features.std(0)
    seconds = (3000 + 400 * features[:, 0] - 150 * features[:, 3] + 20 * random.standard_normal(50)).astype(np.float32)
    side = (features[:, 1] + 0.3 * random.standard_normal(50) > 0).astype(np.int64)
    seconds[::7], side[1::5], groups = np.nan, -1, np.arange(50) // 5
    heads = (ModelHead("seconds"), ModelHead("side", ("left", "right")), ModelHead("nothing"), ModelHead("same"))
    targets = {"seconds": seconds, "side": side, "nothing": np.full(50, np.nan), "same": np.full(50, 7.5)}
    ridges = fit_ridges(features, groups, heads, targets, np.ones(0))
    weights, bias = (np.concatenate(parts, -1) for parts in list(zip(*ridges, strict=True))[:2])
    assert (weights.shape, bias.shape) == ((6, 5), (5,))
    known = np.isfinite(seconds)
    some, wanted = features[known].astype(np.float64), seconds[known].astype(np.float64)
    rows = np.column_stack([some / np.sqrt(np.square(some).sum(1).mean()), np.ones(len(some))])
    scaled = (wanted - wanted.mean()) / wanted.std()

    def left_out(penalty: float) -> float:
        errors = []
        for group in np.unique(groups[known]):
            held = groups[known] == group
            model = linear.Ridge(alpha=penalty, fit_intercept=False).fit(rows[~held], scaled[~held])
            errors += (model.predict(rows[held]) - scaled[held]).tolist()
        return float(np.mean(np.square(errors)))

    best = min(PENALTIES, key=left_out)
    expected = (
        linear.Ridge(alpha=best, fit_intercept=False).fit(rows, scaled).predict(rows) * wanted.std() + wanted.mean()
    )
    np.testing.assert_allclose(some @ weights[:, 0] + bias[0], expected, atol=0.02)  # of 2,000 to 4,000 s
    answers = (features @ weights[:, 1:3] + bias[1:3]).argmax(1)
    assert (answers == side)[side >= 0].mean() > 0.85
    assert not weights[:, 3].any()
    assert bias[3] == 0
    np.testing.assert_allclose(features @ weights[:, 4] + bias[4], 7.5, atol=1e-6)


def planted(n: int, seed: int, time: int = 40) -> Samples:
    """Three classes: frequencies in noise, six windows a recording, far from 0."""
    random = np.random.default_rng(seed)
    classes = np.arange(n) // 6 % 3
    phase = random.uniform(0, 6, (n, 1, 1))
    rate = np.array([0.3, 0.7, 1.3])[classes][:, None, None] * np.array([[1.0], [1.1]])
    windows = np.sin(rate * np.arange(time) + phase) + 0.5 * random.standard_normal((n, 2, time)) + [[9.81], [0.0]]
    return Samples(windows.astype(np.float32), classes, groups=np.arange(n) // 6)


def rocket(time: int = 40, channels: int = 2, **parameters: Any) -> MiniRocket:
    fmt = Format("imu", tuple("xyz"[:channels]), (), Fraction(20), "float32", (channels,), rows=time)
    return MiniRocket(fmt, ("a", "b", "c"), {"features": 840, **parameters}, 0)


@pytest.mark.parametrize("time", [9, 40, 130])
def test_exports_what_it_computes_to_the_bit(time: int) -> None:
    model, samples = rocket(time), planted(36, 0, time)
    model.fit(samples, None, FitOptions(seed=3), lambda _: None)
    exported = export_model(model, (2, time), samples.windows)
    assert (exported.batch, exported.parity) == ("any", None)  # with itself the graph is not compared
    onnx, windows = OnnxModel(exported.model, "windows", "logits"), planted(70, 1, time).windows * 3
    counts = np.concatenate([counted(bank, model._whole(windows)) for bank in model.banks], 1)
    by_numpy = (counts - model._middle).astype(np.float64) @ model._weights.astype(np.float64) * model._step
    logits = (by_numpy + model._bias).astype(np.float32)
    assert onnx.run(windows).tobytes() == model.predict(windows).tobytes() == logits.tobytes()


def test_learns_and_knows_how_sure_it_may_be() -> None:
    model, held, epochs = rocket(), planted(90, 1), []
    before = held.windows.tobytes()
    model.fit(planted(180, 0), held, FitOptions(), epochs.append)
    assert [set(epoch) for epoch in epochs] == [{"epoch", "loss", "validation_loss", "validation_accuracy"}]
    assert epochs[0]["validation_accuracy"] > 0.95
    # What was left out while it learned says how well it does on what it has not seen.
    assert epochs[0]["validation_loss"] == pytest.approx(epochs[0]["loss"], abs=0.1)
    assert held.windows.tobytes() == before


def test_the_seed_decides() -> None:
    def logits(seed: int) -> bytes:
        model = rocket()
        model.fit(planted(36, 0), None, FitOptions(seed=seed), lambda _: None)
        return model.predict(planted(4, 2).windows).tobytes()

    assert logits(3) == logits(3) != logits(4)


def test_learns_from_no_more_windows_than_it_may() -> None:
    model = rocket(windows=30)
    model.fit(planted(180, 0), None, FitOptions(), lambda _: None)
    assert (model.predict(planted(90, 1).windows).argmax(1) == planted(90, 1).classes).mean() > 0.7


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_not_hidden(bad: float, tmp_path: Path) -> None:
    model = rocket()
    model.fit(planted(36, 0), None, FitOptions(), lambda _: None)
    model.export(tmp_path / "m.onnx", "windows", "logits")
    windows = planted(3, 1).windows
    good = model.predict(windows)
    windows[1, 0, 5] = bad
    for out in (model.predict(windows), OnnxModel(tmp_path / "m.onnx", "windows", "logits").run(windows)):
        assert np.isnan(out[1]).all()
        np.testing.assert_array_equal(out[[0, 2]], good[[0, 2]])


@pytest.mark.parametrize(
    ("parameters", "time"), [({"features": 83}, 40), ({"features": 10**11}, 40), ({"windows": 1}, 40), ({}, 8)]
)
def test_refuses(parameters: dict[str, Any], time: int) -> None:
    with pytest.raises(
        TrainingError,
        match=r"expected a whole number from 84 to 50000|expected a whole number from 2|at least 9 samples",
    ):
        rocket(time, **parameters)


pytest.importorskip("onnx")


CHANNELS = ("acc.x", "mag.x", "mag.y", "mag.z")


LABELS = ("high", "low", "none")


FORMAT = Format("imu", CHANNELS, (), Fraction(10), "float32", (4,), rows=6)


def windows(lengths: Any) -> Any:
    """A window for each length: the vector in a direction drawn for each sample, beside a loud channel of something else."""
    random = np.random.default_rng(2)
    vectors = random.standard_normal((len(lengths), 3, 6))
    vectors *= np.asarray(lengths, float)[:, None, None] / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.concatenate([100 * random.standard_normal((len(lengths), 1, 6)), vectors], 1).astype(np.float32)


def fitted(lengths: Any, classes: Any, **parameters: Any) -> tuple[MagnitudeRule, list[Epoch]]:
    rule, epochs = MagnitudeRule(FORMAT, LABELS, parameters, 0), list[Epoch]()
    rule.fit(Samples(windows(lengths), np.array(classes)), None, FitOptions(), epochs.append)
    return rule, epochs


LENGTHS = [50, 50.1, 49.9, 50, 48, 52.2, 47.9, 52, 40, 61, 38, 59]


CLASSES = [2] * 4 + [1] * 4 + [0] * 4


def test_thresholds_stand_between_the_classes() -> None:
    rule, (epoch,) = fitted(LENGTHS, CLASSES)
    # none up to 0.1 off, low from 2 to 2.2, high from 9: halfway are 1.05 and 5.6.
    for length, label in (
        (50, 2),
        (51.04, 2),
        (48.96, 2),
        (51.06, 1),
        (44.41, 1),
        (55.59, 1),
        (55.61, 0),
        (44.39, 0),
        (90, 0),
    ):
        assert rule.predict(windows([length])).argmax() == label, length
    assert epoch["epoch"] == 1
    assert epoch["loss"] < 0.05


def test_exports_what_it_computes() -> None:
    rule, _ = fitted(LENGTHS, CLASSES)
    exported = export_model(rule, (4, 6), windows(LENGTHS))
    assert (exported.batch, exported.parity) == ("any", None)
    many = windows(np.linspace(30, 70, 401))
    deviations = np.abs(np.linalg.norm(many[:, 1:].astype(np.float64), axis=1).mean(1) - rule._usual) / rule._unit
    logits = deviations[:, None] * rule._slopes + rule._offsets
    np.testing.assert_allclose(OnnxModel(exported.model, INPUT, OUTPUT).run(many), logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(rule.predict(many), logits, rtol=1e-5, atol=1e-5)


def test_a_class_that_never_came_is_never_said() -> None:
    rule, _ = fitted(LENGTHS[:8], CLASSES[:8])
    assert set(rule.predict(windows(np.linspace(0, 200, 99))).argmax(1)) == {1, 2}


def test_a_vector_must_be_there() -> None:
    with pytest.raises(
        TrainingError, match=r"channels = 'b\*': none of acc\.x, mag\.x, mag\.y, mag\.z has such a name"
    ):
        fitted(LENGTHS, CLASSES, channels="b*")
    with pytest.raises(TrainingError, match="takes raw windows"):
        MagnitudeRule(Format("s", ("c",), (), Fraction(1), "float32", (3, 1), rows=4), LABELS, {}, 0)


def test_dilations_of_a_short_window() -> None:
    assert dilations(17, 500) == [(1, 4), (2, 1)]
