"""The rule on a vector's length: where its thresholds stand, and what it says."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from kymo.models.onnx_model import OnnxModel
from kymo.models.training.export import INPUT, OUTPUT, export_model
from kymo.models.zoo import Epoch, FitOptions, Samples
from kymo.models.zoo.magnitude_rule import MagnitudeRule
from kymo.streams.chunk import Format
from kymo.streams.errors import TrainingError

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
    assert (exported.batch, exported.parity <= 1e-6) == ("any", True)
    many = windows(np.linspace(30, 70, 401))
    found = OnnxModel(exported.model, INPUT, OUTPUT).run(many)
    np.testing.assert_array_equal(found.argmax(1), rule.predict(many).argmax(1))


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
