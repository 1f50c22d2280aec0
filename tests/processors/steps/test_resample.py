"""The resample step against scipy.signal.resample_poly."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from kymo.processors.recipe.load import parse_recipe
from kymo.processors.steps.resample import Resample
from kymo.streams.chunk import Chunk, Header, signal_format
from kymo.streams.errors import FormatError

RATE = Fraction(500)


def header(dtype: str = "float64") -> Header:
    return Header("s", 0, signal_format("imu", ("x", "y"), RATE, dtype))


def recording(length: int, dtype: str = "float64") -> Any:
    return (np.random.default_rng(3).standard_normal((length, 2)) + 2).astype(dtype)


def resampled(spec: Resample, data: Any, cuts: list[int], head: Header) -> Any:
    stage, out = spec.build(), []
    for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        out += stage.push(Chunk(head, start, data[start:stop]))
    out += stage.flush()
    assert [c.first_index for c in out] == [sum(c.count for c in out[:i]) for i in range(len(out))]
    return np.concatenate([c.data for c in out])


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 300), st.lists(st.integers(0, 300), max_size=6))
def test_a_recording_is_resampled_as_by_scipy(up: int, down: int, length: int, cuts: list[int]) -> None:
    data = recording(length)
    cuts = sorted(min(c, length) for c in cuts)
    came = resampled(Resample(up=up, down=down), data, cuts, header())
    wanted = scipy.signal.resample_poly(data, up, down, axis=0)
    assert came.shape == wanted.shape
    np.testing.assert_allclose(came, wanted, rtol=0, atol=1e-12 * abs(wanted).max())


def test_rates_that_real_recordings_have() -> None:
    for rate, length in ((50, 3000), ("100/3", 900), (512, 700), (62.5, 4000)):
        data = recording(length)
        spec = Resample(rate_hz=rate, from_hz=500)
        wanted = scipy.signal.resample_poly(data, spec.ratio.numerator, spec.ratio.denominator, axis=0)
        came = resampled(spec, data, [100], header())
        np.testing.assert_allclose(came, wanted, rtol=0, atol=1e-12 * abs(wanted).max())


def test_float32_stays_within_1e_5() -> None:
    data = recording(2000, "float32")
    came = resampled(Resample(up=3, down=7), data, [], header("float32"))
    wanted = scipy.signal.resample_poly(data.astype("float64"), 3, 7, axis=0)
    assert came.dtype == np.float32
    np.testing.assert_allclose(came, wanted, rtol=0, atol=1e-5 * abs(wanted).max())


def test_no_output_reaches_into_a_gap() -> None:
    spec, data, head = Resample(up=1, down=2), recording(400), header()
    stage = spec.build()
    before = stage.push(Chunk(head, 0, data[:150]))
    after = stage.push(Chunk(head, 200, data[200:])) + stage.flush()
    whole = resampled(spec, data, [], head)
    given_before = sum(c.count for c in before)
    assert given_before == (150 - 20 - 1) // 2 + 1  # the filter reaches 20 samples to either side
    assert after[0].first_index == 110
    np.testing.assert_array_equal(np.concatenate([c.data for c in before]), whole[:given_before])
    np.testing.assert_array_equal(np.concatenate([c.data for c in after]), whole[110:])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 199))
def test_going_on_from_needs_from_gives_the_same_bytes(up: int, down: int, at: int) -> None:
    spec, data, head = Resample(up=up, down=down), recording(200), header()
    first, second = spec.build(), spec.build()
    out = first.push(Chunk(head, 0, data[:at]))
    start = first.needs_from["imu"]
    out += second.push(Chunk(head, start, data[start:])) + second.flush()
    columns = {c.first_index + i: c.data[i].tobytes() for c in out for i in range(c.count)}
    whole = resampled(spec, data, [], head)
    assert columns == {i: row.tobytes() for i, row in enumerate(whole)}


def test_a_recipe_fills_in_the_rate_of_what_comes_before() -> None:
    text = """
name = "r"
[[input]]
stream = "imu"
rate_hz = 500
channels = ["a", "b"]
[[steps]]
step = "resample"
rate_hz = 250
[[steps]]
step = "resample"
rate_hz = "100/3"
[window]
length_s = 3
hop_s = 1.5
"""
    first, second = parse_recipe(text).chain.specs[1:3]
    assert first == Resample(rate_hz=250, from_hz="500")
    assert isinstance(second, Resample)
    assert second.ratio == Fraction(100, 3) / 250


def test_format() -> None:
    fmt = header().format
    out = Resample(rate_hz=200, from_hz=500).output({"imu": fmt})
    assert (out.rate, out.step, out.span, out.stream) == (200, Fraction(5, 2), 1, "imu")


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({}, "either rate_hz, with or without from_hz, or up and down"),
        ({"from_hz": 50}, "either"),
        ({"rate_hz": "0"}, "rate_hz '0'"),
        ({"rate_hz": 50, "from_hz": 500, "up": 1, "down": 10}, "either"),
        ({"rate_hz": 50.001, "from_hz": 500}, "whole numbers up to 1000"),
        ({"rate_hz": -1, "from_hz": 500}, "rate_hz -1"),
        ({"rate_hz": "x", "from_hz": 500}, "rate_hz 'x'"),
        ({"up": 0, "down": 1}, "up 0"),
        ({"up": 1, "down": 1.5}, "down 1.5"),
    ],
)
def test_a_wrong_parameter_is_named(chosen: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError) as caught:
        Resample(**chosen)
    assert words in str(caught.value)


def test_another_input_rate_is_refused() -> None:
    with pytest.raises(FormatError, match="has 500 Hz, expected 64"):
        Resample(rate_hz=32, from_hz=64).output({"imu": header().format})
