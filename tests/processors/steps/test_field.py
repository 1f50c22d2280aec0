"""`field` and `deviation`, against geometry with scipy's rotations."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from kymo.processors.registry import spec_from_json
from kymo.processors.steps.field import Deviation, Field, half_sample_mode
from kymo.streams.chunk import Format, Header, Window
from kymo.streams.errors import FormatError

CHANNELS = ("a.x", "a.y", "a.z", "g", "m.x", "m.y", "m.z")
UNITS = ("g", "g", "g", "rad/s", "µT", "µT", "µT")
FIELD = Field(("a.x", "a.y", "a.z"), ("m.x", "m.y", "m.z"))


def fmt(dtype: str = "float64", rows: int | None = None) -> Format:
    return Format("imu", CHANNELS, UNITS, Fraction(100), dtype, (7,), rows=rows)


def turned(world: Any, count: int = 50) -> Any:
    """A field in the world (z up), as a sensor sees it that is turned at random: samples ``(n, 7)``."""
    rotations = Rotation.random(count, random_state=np.random.RandomState(5))
    acc, mag = rotations.apply([0, 0, 1], inverse=True), rotations.apply(world, inverse=True)
    return np.hstack([acc, np.ones((count, 1)), mag])


@pytest.mark.parametrize("world", [(0.0, 50.0, 0.0), (3.0, 20.0, -43.0), (0.0, 0.0, 9.0)])
def test_what_does_not_turn_with_the_sensor(world: tuple[float, float, float]) -> None:
    data = turned(world)
    found = FIELD.apply(data, fmt())
    across, down = np.hypot(*world[:2]), world[2]
    wanted = (np.linalg.norm(world), down, across, np.arctan2(down, across))
    # Next to a field along gravity what is left across is the root of a rounding error.
    np.testing.assert_allclose(found[:, 7:], np.tile(wanted, (len(data), 1)), rtol=1e-12, atol=1e-6)
    np.testing.assert_array_equal(found[:, :7], data)


def test_its_format() -> None:
    out = FIELD.output({"imu": fmt()})
    assert out.channels == (*CHANNELS, "field", "vertical", "horizontal", "inclination")
    assert out.units == (*UNITS, "µT", "µT", "µT", "rad")
    free_fall = np.array([[0, 0, 0, 1, 3.0, 0, 4.0]])
    np.testing.assert_array_equal(FIELD.apply(free_fall, fmt())[0, 7:], [5, 0, 5, 0])


@pytest.mark.parametrize(
    ("acc", "mag", "units", "message"),
    [
        (("a.x", "a.y"), ("m.x", "m.y", "m.z"), UNITS, "expected the names of three channels"),
        (("a.x", "a.y", "m.x"), ("m.x", "m.y", "m.z"), UNITS, "one stands twice"),
        (("a.x", "a.y", "b"), ("m.x", "m.y", "m.z"), UNITS, "has no channel b; it has a.x"),
        (("a.x", "a.y", "a.z"), ("m.x", "m.y", "m.z"), (*UNITS[:6], "T"), "are in T, µT, expected one unit"),
    ],
)
def test_what_field_refuses(acc: Any, mag: Any, units: Any, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Field(acc, mag).output({"imu": Format("imu", CHANNELS, units, Fraction(100), "float64", (7,))})


def windows(values: Any) -> list[Window]:
    """A window of 4 samples for each value of the second channel, which varies by 1 about it."""
    header = Header("s", 0, Format("imu", ("x", "y"), ("T", "T"), Fraction(1), "float64", (2,), rows=4))
    return [
        Window(header, 4 * i, 4 * i + 4, 0, 1, np.stack([np.full(4, 7.0), value + np.array([-1, 0, 0, 1])], 1))
        for i, value in enumerate(values)
    ]


def test_what_is_usual_is_met_among_one_sided_exceptions() -> None:
    random = np.random.default_rng(0)
    usual = 50 + 0.02 * random.standard_normal(100)
    values = np.concatenate([usual, 50 + random.uniform(0, 15, 150)])
    fitted = Deviation(("y",)).fit(windows(values))
    assert abs(fitted.usual[0] - 50) < 0.02 < abs(np.median(values) - 50)
    assert spec_from_json(fitted.to_json()) == fitted
    data = windows([60.0])[0].data
    found = fitted.apply(data, windows([0.0])[0].header.format)
    np.testing.assert_array_equal(found[:, 0], data[:, 0])
    np.testing.assert_array_equal(found[:, 1], data[:, 1] - fitted.usual[0])


def test_how_far_channels_are_off_together() -> None:
    step, form = Deviation(("y", "x"), ("x", "y"), (5.0, 1.0)), windows([0.0])[0].header.format
    out = step.output({"imu": form})
    assert (out.channels, out.units, out.shape) == (("x", "y", "deviation"), ("T", "T", "T"), (3,))
    np.testing.assert_array_equal(step.apply(np.array([[4.0, 9.0], [1.0, 5.0]]), form), [[3, 4, 5], [0, 0, 0]])


@pytest.mark.parametrize(
    ("values", "mode"),
    [([3.0], 3.0), ([1.0, 2.0], 1.5), ([0.0, 5.0, 6.0], 5.5), ([9.0, 1.0, 1.2, 1.3, 4.0, 7.0], 1.25)],
)
def test_half_sample_mode(values: list[float], mode: float) -> None:
    assert half_sample_mode(np.array(values)) == pytest.approx(mode)


def test_what_deviation_refuses() -> None:
    form = windows([0.0])[0].header.format
    for parameters, message in (
        ({"channels": ()}, "expected a list of at least one name"),
        ({"channels": ("z",)}, "has no channel z"),
        ({"channels": ("x",), "joint": ("y",)}, "expected some of channels"),
        ({"channels": ("x",), "usual": (1.0, 2.0)}, "2 numbers for 1 channels"),
    ):
        with pytest.raises(FormatError, match=message):
            Deviation(**parameters).output({"imu": form})
    with pytest.raises(FormatError, match="has not learned what is usual yet"):
        Deviation(("x",)).apply(np.zeros((4, 2)), form)
    with pytest.raises(FormatError, match="nothing to learn from"):
        Deviation(("x",)).fit([])
    with pytest.raises(FormatError, match="not finite"):
        Deviation(("y",)).fit(windows([np.nan]))
