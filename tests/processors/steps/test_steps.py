"""Steps of each sample: select, scale, log, standardise, field, deviation, resample; exact input, exact output, geometry."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes_made import recipe_text
from scipy.spatial.transform import Rotation

from kymo.processors.chain import Chain, PerWindow
from kymo.processors.intake import Intake
from kymo.processors.recipe.load import parse_recipe
from kymo.processors.registry import make_step, spec_from_json
from kymo.processors.steps.field import Deviation, Field, half_sample_mode
from kymo.processors.steps.maps import Decibels, Log, Mask, Scale, Select, Standardise
from kymo.processors.steps.mel import LogMel, Mel
from kymo.processors.steps.resample import Resample
from kymo.processors.steps.spectrogram import Spectrogram
from kymo.processors.windows import PaddedWindows
from kymo.streams.chunk import Chunk, Format, Header, Window, signal_format
from kymo.streams.errors import FormatError

IMU = signal_format("imu", ("ax", "ay", "az"), 100, "float64", ("g", "g", "m/s^2"))


COLUMNS = Format("spectrogram", ("a", "b"), ("V^2", "V^2"), Fraction(10), "float32", (3, 2), Fraction(4), 8)


def windows_of(data: Any, fmt: Format, rows: int) -> list[Window]:
    header = Header("s", 0, fmt)
    return [Window(header, i, i + rows, 0, 1, data[i : i + rows]) for i in range(0, len(data), rows)]


def test_select_takes_channels_in_the_order_asked_for() -> None:
    spec, data = Select(("az", "ax")), np.arange(6.0).reshape(2, 3)
    assert spec.apply(data, IMU).tolist() == [[2, 0], [5, 3]]
    out = spec.output({"imu": IMU})
    assert (out.channels, out.units, out.shape) == (("az", "ax"), ("m/s^2", "g"), (2,))
    with pytest.raises(FormatError, match=r"no channel gx; it has ax, ay, az"):
        Select(("gx",)).output({"imu": IMU})


def test_scale_by_channel_and_in_new_units() -> None:
    spec, data = Scale((2.0, 10.0, 1.0), 1.0, ("V", "V", "V")), np.ones((2, 3))
    assert spec.apply(data, IMU).tolist() == [[3, 11, 2], [3, 11, 2]]
    assert (data == 1).all()
    assert spec.output({"imu": IMU}).units == ("V", "V", "V")
    whole = signal_format("imu", ("ax", "ay", "az"), 100, "int16")
    assert spec.output({"imu": whole}).dtype == "float32"
    assert spec.apply(np.full((1, 3), 30_000, "int16"), whole).tolist() == [[60_001, 300_001, 30_001]]
    with pytest.raises(FormatError, match="2 numbers in factor"):
        Scale((1.0, 2.0)).output({"imu": IMU})
    with pytest.raises(FormatError, match=r"factor 'two', expected a finite number or a list of them$"):
        Scale("two")  # type: ignore[arg-type]


def test_log_takes_nothing_below_its_floor() -> None:
    data = np.array([[0.0, 1e-3, 1.0]])
    natural = Log(floor=1e-2, eps=0.0).apply(data, IMU)
    np.testing.assert_allclose(natural, [[math.log(1e-2), math.log(1e-2), 0.0]], rtol=1e-15)
    np.testing.assert_allclose(Log(eps=1e-3, db=True).apply(data, IMU), 10 * np.log10(data + 1e-3), rtol=1e-15)
    assert data[0, 0] == 0
    assert np.isfinite(Log().apply(np.zeros((1, 3, 2), "float32"), COLUMNS)).all()
    assert Log(db=True).output({"s": COLUMNS}).units == ("dB", "dB")


def test_steps_keep_dtype_and_memory_order() -> None:
    """A spectrogram lies channel by channel in memory; a step that changed that would cost a transposition."""
    data = np.ones((2, 5, 3), "float32").transpose(1, 2, 0)  # (5, 3, 2)
    for spec in (
        Scale(2.0),
        Log(),
        Standardise((0.0, 0.0), (1.0, 2.0)),
        Standardise(((0.0,) * 2,) * 3, ((1.0,) * 2,) * 3),
    ):
        out = spec.apply(data, COLUMNS)
        assert out.dtype == np.float32
        assert out.transpose(2, 0, 1).flags.c_contiguous, spec.name


@pytest.mark.parametrize("per", ["channel", "bin"])
def test_standardise_learns_mean_and_deviation(per: str) -> None:
    data = (np.random.default_rng(0).standard_normal((60, 3, 2)) * 3 + 1e4).astype("float32")
    spec = Standardise(per=per).fit(iter(windows_of(data, COLUMNS, 7)))
    axes, wide = ((0, 1) if per == "channel" else (0,)), data.astype("float64")
    np.testing.assert_allclose(spec.mean, wide.mean(axes), rtol=1e-13)
    np.testing.assert_allclose(spec.std, wide.std(axes), rtol=1e-10)
    assert spec.output({"s": COLUMNS}).units == ()
    assert spec_from_json(spec.to_json()) == spec
    assert abs(spec.apply(data, COLUMNS).std() - 1) < 1e-2


def test_standardise_in_float64_is_the_formula() -> None:
    spec, data = Standardise((1.0, 2.0, 3.0), (2.0, 4.0, 0.5)), np.array([[3.0, 2.0, 4.0]])
    assert spec.apply(data, IMU).tolist() == [[1.0, 0.0, 2.0]]
    assert data[0, 0] == 3


def test_what_does_not_vary_keeps_its_size() -> None:
    data = np.full((20, 3, 2), 0.1, "float64")
    spec = Standardise().fit(windows_of(data, COLUMNS, 5))
    assert spec.std == (1.0, 1.0)


def test_learned_numbers_do_not_change_the_chain() -> None:
    spec = Standardise()
    fitted = spec.fit(windows_of(np.random.default_rng(1).standard_normal((8, 3)), IMU, 4))
    assert fitted != spec
    assert Chain((spec,)).digest(learned=False) == Chain((fitted,)).digest(learned=False)
    assert Chain((spec,)).digest() != Chain((fitted,)).digest()


def test_standardise_says_what_is_missing() -> None:
    with pytest.raises(FormatError, match="has not learned"):
        Standardise().apply(np.ones((1, 3)), IMU)
    with pytest.raises(FormatError, match="at least one window"):
        Standardise().fit([])
    with pytest.raises(FormatError, match="ay missing in all windows"):
        Standardise().fit(windows_of(np.array([[1.0, np.nan, 1.0]]), IMU, 1))
    with pytest.raises(FormatError, match="not finite"):
        Standardise().fit(windows_of(np.array([[1.0, np.inf, 1.0]]), IMU, 1))
    with pytest.raises(FormatError, match="train again"):
        Standardise((1.0, 1.0), (1.0, 1.0)).output({"imu": IMU})


@pytest.mark.parametrize(
    ("name", "chosen", "words"),
    [
        ("select", {}, "at least one name"),
        ("select", {"channels": ["a", "a"]}, "none twice"),
        ("select", {"channels": "ax"}, "expected a list"),
        ("scale", {"factor": "2"}, "factor '2'"),
        ("scale", {"offset": [1.0, math.inf]}, "finite"),
        ("log", {"floor": -1.0}, "floor -1.0"),
        ("log", {"eps": 0.0}, "both 0"),
        ("decibels", {"top_db": 0.0}, "top_db 0.0, expected a number above 0"),
        ("decibels", {"amin": -1.0}, "amin -1.0"),
        ("decibels", {"per": "bin"}, "per 'bin'"),
        ("log", {"db": 1}, "db 1"),
        ("standardise", {"per": "row"}, "per 'row'"),
        ("standardise", {"mean": [1.0], "std": [0.0]}, "std above 0"),
        ("standardise", {"mean": [1.0], "std": [1.0, 2.0]}, "equal shapes"),
        ("standardise", {"mean": ["x"], "std": ["y"]}, "numbers"),
        ("log", {"flor": 1.0}, "did you mean 'floor'"),
    ],
)
def test_a_wrong_parameter_is_named(name: str, chosen: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError) as caught:
        make_step(name, chosen)
    assert words in str(caught.value)


@pytest.mark.parametrize("per", ["channel", "window"])
def test_decibels_are_those_of_librosa_scaled(per: str) -> None:
    librosa = pytest.importorskip("librosa")
    powers = np.random.default_rng(0).lognormal(0, 6, (46, 20, 3)).astype(np.float32)
    powers[:, :, 1] = 0  # a dead channel
    fmt = Format("spectrogram", ("a", "b", "c"), (), Fraction(500), "float32", (20, 3), Fraction(200), 1000)
    parts = [powers[..., i] for i in range(3)] if per == "channel" else [powers]
    wanted = [librosa.power_to_db(part, ref=np.max) for part in parts]
    expected = np.stack(wanted, -1) if per == "channel" else wanted[0]
    made = make_step("decibels", {"per": per, "scaled": False}).apply(powers, fmt)
    np.testing.assert_allclose(made, expected, atol=2e-5)
    scaled = make_step("decibels", {"per": per}).apply(powers, fmt)
    np.testing.assert_allclose(scaled, expected / 40 + 1, atol=1e-6)
    assert (scaled.min(), scaled.max()) == (-1, 1)


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
    with pytest.raises(FormatError, match="y missing in all windows"):
        Deviation(("y",)).fit(windows([np.nan]))
    with pytest.raises(FormatError, match="not finite"):
        Deviation(("y",)).fit(windows([np.inf]))


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
    steps = [{"step": "resample", "rate_hz": rate} for rate in (250, "100/3")]
    text = recipe_text("r", "a b", 500, (3, 1.5), steps=steps)
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
def test_a_wrong_rate_is_named(chosen: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError) as caught:
        Resample(**chosen)
    assert words in str(caught.value)


def test_another_input_rate_is_refused() -> None:
    with pytest.raises(FormatError, match="has 500 Hz, expected 64"):
        Resample(rate_hz=32, from_hz=64).output({"imu": header().format})


# -- what is missing of several inputs -------------------------------------------------------------------------------

JOINED = signal_format("joined", ("x", "y", "pulse"), 100, "float32")
OF_JOINED = Mask(("imu", "heart"), (("x", "y"), ("pulse",)))


def with_holes(shape: tuple[int, ...], seed: int) -> Any:
    """Powers, of which one input or the other is missing in some rows."""
    random = np.random.default_rng(seed)
    data = random.uniform(0.1, 9, shape).astype("float32")
    for channels, share in ((slice(0, 2), 0.2), (slice(2, 3), 0.3)):
        data[random.random(len(data)) < share, ..., channels] = np.nan
    return data


@pytest.mark.parametrize("bins", [(), (3,)])
def test_mask_says_row_by_row_which_input_is_there(bins: tuple[int, ...]) -> None:
    fmt = replace(JOINED, shape=(*bins, 3), units=("g", "g", "bpm"))
    data = with_holes((40, *bins, 3), 1)
    if bins:
        data[7, 1, 2] = np.nan  # a number alone: the whole row of the input is not to be trusted
    data[8, ..., 0] = np.nan
    before, out = data.copy(), OF_JOINED.apply(data, fmt)
    np.testing.assert_array_equal(data, before)
    for row, result in zip(before, out, strict=True):
        missing = [np.isnan(row[..., :2]).any(), np.isnan(row[..., 2]).any()]
        expected = np.concatenate([row, np.ones((*bins, 2))], -1)
        for number, channels in enumerate((slice(0, 2), slice(2, 3))):
            if missing[number]:
                expected[..., channels] = expected[..., 3 + number] = 0
        np.testing.assert_array_equal(result, expected)
    declared = OF_JOINED.output({"joined": fmt})
    assert declared.channels == ("x", "y", "pulse", "mask.imu", "mask.heart")
    assert (declared.units, declared.shape, declared.dtype) == (("g", "g", "bpm", "", ""), (*bins, 5), "float32")
    assert spec_from_json(OF_JOINED.to_json()) == OF_JOINED
    kept = Mask().behind({"imu": ("x", "y"), "heart": ("pulse",)}, replace(fmt, channels=("y", "z")))
    assert (kept.inputs, kept.groups) == (("imu",), (("y",),))
    told = Mask().behind({"imu": ("x",), "heart": ("pulse",)}, replace(fmt, channels=("pulse.mean", "x.std", "x.max")))
    assert told.groups == (("x.std", "x.max"), ("pulse.mean",))
    with pytest.raises(FormatError, match=r"mask: no channel of a \[join\] comes to it"):
        Mask().output({"joined": fmt})


@pytest.mark.parametrize("per", ["channel", "bin"])
def test_standardise_learns_from_what_is_there(per: str) -> None:
    data = with_holes((60, 3, 3), 2) + 1e3
    data[:20, ..., 2] = np.nan  # in the first windows not at all
    fmt = replace(COLUMNS, channels=("x", "y", "pulse"), units=(), shape=(3, 3))
    spec = Standardise(per=per).fit(iter(windows_of(data, fmt, 7)))
    axes, wide = ((0, 1) if per == "channel" else (0,)), data.astype("float64")
    np.testing.assert_allclose(spec.mean, np.nanmean(wide, axes), rtol=1e-13)
    np.testing.assert_allclose(spec.std, np.nanstd(wide, axes), rtol=1e-9)
    np.testing.assert_array_equal(np.isnan(spec.apply(data, fmt)), np.isnan(data))


def test_standardise_of_one_input_is_the_same_to_the_bit() -> None:
    data = np.random.default_rng(3).standard_normal((50, 3)) * 7 + 100
    count, mean, squares = 0, np.zeros(()), np.zeros(())
    for start in range(0, 50, 8):
        rows = data[start : start + 8]
        here, n = rows.mean(0), len(rows)
        delta = here - mean
        squares = squares + ((rows - here) ** 2).sum(0) + delta**2 * (count * n / (count + n))
        mean, count = mean + delta * (n / (count + n)), count + n
    spec = Standardise().fit(windows_of(data, IMU, 8))
    assert spec.mean == tuple(mean.tolist())
    assert spec.std == tuple(np.sqrt(squares / count).tolist())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "spec",
    [
        Log(db=True),
        Scale(2.0, 1.0),
        Decibels(),
        Decibels(per="window", scaled=False),
        Spectrogram(nperseg=8, noverlap=6),
        Spectrogram(nperseg=8, noverlap=4, detrend="linear", mode="magnitude"),
        Mel(n_fft=16, hop_length=4, n_mels=3),
        LogMel(n_fft=16, hop_length=4, n_mels=3, top_db=20.0),
        Chain((Resample(up=2, down=1),)),
    ],
    ids=lambda spec: spec.name,
)
def test_a_missing_input_leaves_the_others_as_they_are(spec: Any) -> None:
    """And is NaN itself, wherever a number rests on it; `decibels` of a window take the largest of what is there."""
    if spec.name in ("mel", "log_mel"):
        pytest.importorskip("librosa")
    data = np.random.default_rng(4).uniform(0.1, 9, (64, 3)).astype("float32")
    data[:, 2] *= 0.1  # not the largest, nor within 20 dB of a larger one
    holes = data.copy()
    holes[20:30, 2] = np.nan

    def through(samples: Any) -> Any:
        if isinstance(spec, Chain):
            chunks = spec.build().push(Chunk(Header("s", 0, JOINED), 0, samples))
            return np.concatenate([chunk.data for chunk in chunks])
        return spec.apply(samples, JOINED)

    whole, out = through(data), through(holes)
    np.testing.assert_array_equal(out[..., :2], whole[..., :2])
    gone = np.isnan(out[..., 2]).reshape(len(out), -1)
    assert (gone.any(1) == gone.all(1)).all()  # in all bins of a row or in none
    assert 0 < gone.all(1).sum() < len(gone)
    if spec.name != "decibels":
        np.testing.assert_array_equal(out[~gone.any(1), ..., 2], whole[~gone.any(1), ..., 2])
    holes[:, 2] = np.nan  # all of it
    np.testing.assert_array_equal(through(holes)[..., :2], whole[..., :2])
    assert np.isnan(through(holes)[..., 2]).all()


def test_field_and_deviation_know_what_is_missing() -> None:
    acc, mag = ("ax", "ay", "az"), ("mx", "my", "mz")
    fmt = signal_format("joined", (*acc, *mag), 100, "float64")
    data = np.random.default_rng(5).standard_normal((6, 6))
    data[1, :3] = np.nan  # no gravity, so no vertical
    data[2, 3:] = np.nan
    out = Field(acc, mag).apply(data, fmt)[:, 6:]
    assert np.isnan(out).tolist() == [[False] * 4, [False, True, True, True], [True] * 4, *[[False] * 4] * 3]
    given = windows([50.0, 51.0, 49.9, 50.1])
    given[1].data[:] = np.nan
    given[2].data[1, 1] = 50.4  # the mean of what is there counts
    given[2].data[0, 1] = np.nan
    means = [np.nanmean(window.data[:, 1]) for window in (given[0], given[2], given[3])]
    assert Deviation(("y",)).fit(given).usual == (half_sample_mode(np.array(means)),)


def test_padding_is_as_an_input_that_is_missing() -> None:
    stage = Chain((Intake(), PaddedWindows(8, 8), PerWindow(OF_JOINED))).build()
    data = np.ones((5, 3), "float32")
    (window,) = [*stage.push(Chunk(Header("s", 0, JOINED), 0, data)), *stage.flush()]
    np.testing.assert_array_equal(window.data[:5], np.ones((5, 5)))
    np.testing.assert_array_equal(window.data[5:], np.zeros((3, 5)))
