"""The spectrogram step against scipy.signal.spectrogram, whole and through its Stage."""

from __future__ import annotations

import threading
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st
from verbs import python

from kymo.processors.registry import make_step, spec_from_json
from kymo.processors.steps import spectral
from kymo.processors.steps.spectrogram import Spectrogram
from kymo.streams.chunk import Chunk, Header, signal_format
from kymo.streams.errors import FormatError

RATE = Fraction(500)
COMMON = (
    "boxcar",
    "hann",
    "hamming",
    "blackman",
    *(("tukey", share) for share in (-1.0, 0.0, 0.01, 0.25, 0.3, 0.5, 0.999, 1.0)),
)


@pytest.mark.parametrize("window", COMMON)
def test_common_windows_are_scipys_to_the_bit(window: Any) -> None:
    for length in (*range(1, 260), 500, 1000, 1023, 1024, 10_007):
        values = spectral.taper(window, length, "test")
        assert (values.dtype, values.tobytes()) == (np.float64, scipy.signal.get_window(window, length).tobytes())


def test_a_usual_start_does_not_wait_for_scipy_signal() -> None:
    code = (
        "import sys; from kymo.processors.recipe.load import load_recipe; load_recipe('basicmotions'); "
        "load_recipe('running'); print('scipy.signal' in sys.modules)"
    )
    assert python(code) == "False\n"


def recording(dtype: str, length: int = 1500, channels: int = 3, offset: float = 3.0) -> Any:
    """Noise about an offset, ``(length, channels)``."""
    return (np.random.default_rng(7).standard_normal((length, channels)) + offset).astype(dtype)


def fmt(dtype: str, channels: int = 3, unit: str = "m/s^2") -> Any:
    names = tuple(f"c{i}" for i in range(channels))
    return signal_format("imu.left", names, RATE, dtype, (unit,) * channels)


def by_scipy(data: Any, **parameters: Any) -> Any:
    """Columns ``(m, bins, channels)`` as scipy has them."""
    rows = np.ascontiguousarray(data.T)
    return scipy.signal.spectrogram(rows, float(RATE), **parameters)[2].transpose(2, 1, 0)


@st.composite
def parameters(draw: st.DrawFn) -> dict[str, Any]:
    nperseg = draw(st.integers(2, 300))
    out: dict[str, Any] = {"nperseg": nperseg, "noverlap": draw(st.integers(0, nperseg - 1))}
    out["window"] = draw(st.sampled_from([("tukey", 0.25), "hamming", "boxcar", ("kaiser", 8.0), ("tukey", 0.9)]))
    out["nfft"] = draw(st.none() | st.integers(nperseg, 2 * nperseg))
    out["detrend"] = draw(st.sampled_from(["constant", False]))
    out["scaling"] = draw(st.sampled_from(["density", "spectrum"]))
    out["mode"] = draw(st.sampled_from(["psd", "magnitude", "angle", "phase"]))
    return out


@settings(max_examples=120, deadline=None)
@given(parameters())
def test_float64_is_scipy_to_the_bit(chosen: dict[str, Any]) -> None:
    data = recording("float64", 700)
    came = make_step("spectrogram", chosen).apply(data, fmt("float64"))
    np.testing.assert_array_equal(came, by_scipy(data, **chosen))


@settings(max_examples=60, deadline=None)
@given(parameters(), st.sampled_from(["magnitude", "angle", "phase"]))
def test_float32_amplitudes_are_scipy_to_the_bit(chosen: dict[str, Any], mode: str) -> None:
    data, chosen = recording("float32", 700), chosen | {"mode": mode}
    came = make_step("spectrogram", chosen).apply(data, fmt("float32"))
    np.testing.assert_array_equal(came, by_scipy(data, **chosen))


@settings(max_examples=40, deadline=None)
@given(parameters())
def test_linear_detrend_is_scipy_to_1e_12(chosen: dict[str, Any]) -> None:
    chosen |= {"detrend": "linear", "mode": "psd", "nperseg": max(chosen["nperseg"], 4)}
    chosen["nfft"] = None
    data = recording("float64", 700)
    came, wanted = make_step("spectrogram", chosen).apply(data, fmt("float64")), by_scipy(data, **chosen)
    assert (abs(came - wanted) <= 1e-12 * wanted.max(1, keepdims=True)).all()


@settings(max_examples=60, deadline=None)
@given(parameters(), st.floats(-10, 10))
def test_float32_stays_within_its_bound(chosen: dict[str, Any], offset: float) -> None:
    """Stated in the step: 1e-5 of the column's largest value while the offset is at most ten standard deviations."""
    chosen |= {"mode": "psd", "detrend": "constant", "nperseg": max(chosen["nperseg"], 16)}
    chosen["nfft"], chosen["noverlap"] = None, min(chosen["noverlap"], chosen["nperseg"] - 1)
    data = recording("float32", 700, offset=offset)
    came = make_step("spectrogram", chosen).apply(data, fmt("float32"))
    wanted = by_scipy(data.astype("float64"), **chosen)
    assert came.dtype == np.float32
    assert (abs(came - wanted) <= 1e-5 * wanted.max(1, keepdims=True)).all()


def test_defaults_are_those_of_scipy() -> None:
    data = recording("float64")
    np.testing.assert_array_equal(Spectrogram().apply(data, fmt("float64")), by_scipy(data))


def test_keep_bins_takes_the_first() -> None:
    for dtype in ("float32", "float64"):
        for mode in ("psd", "magnitude"):
            data, chosen = recording(dtype), {"nperseg": 100, "noverlap": 80, "mode": mode}
            few = Spectrogram(keep_bins=23, **chosen).apply(data, fmt(dtype))
            np.testing.assert_array_equal(few, Spectrogram(**chosen).apply(data, fmt(dtype))[:, :23])


def test_twelve_seconds_of_the_readme_are_46_columns() -> None:
    spec = Spectrogram(nperseg=1000, noverlap=800)
    assert spec.apply(recording("float32", 10_000), fmt("float32")).shape == (46, 501, 3)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(["float32", "float64"]), st.integers(1, 7), st.integers(0, 6))
def test_a_stage_gives_the_same_bytes_however_cut(data: Any, dtype: str, frames: int, phase: int) -> None:
    samples, form = recording(dtype, 400), fmt(dtype)
    spec = Spectrogram(nperseg=40, noverlap=30, chunk_frames=frames, chunk_phase=phase)
    header = Header("s", 0, form)
    cuts = sorted(data.draw(st.lists(st.integers(0, 400), max_size=8)))
    stage, came = spec.build(), []
    for start, stop in zip([0, *cuts], [*cuts, 400], strict=True):
        if stop > start and data.draw(st.booleans()):
            kept, stage = stage.snapshot(), spec.build()
            stage.restore(kept)
        came += stage.push(Chunk(header, start, samples[start:stop]))
    came += stage.flush()
    columns = np.concatenate([chunk.data for chunk in came])
    whole = spec.apply(samples, form)
    np.testing.assert_array_equal(columns, whole)


def test_a_column_rests_on_its_own_samples_alone() -> None:
    for dtype in ("float32", "float64"):
        spec, data = Spectrogram(nperseg=50, noverlap=40), recording(dtype, 500, 5)
        changed = data.copy()
        changed[250:] = 1e6
        changed[:, 3:] = -7
        one, other = spec.apply(data, fmt(dtype, 5)), spec.apply(changed, fmt(dtype, 5))
        np.testing.assert_array_equal(one[:21, :, :3], other[:21, :, :3])


def test_tiles_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {dtype: recording(dtype, 1200, 4) for dtype in ("float32", "float64")}
    chosen = {"nperseg": 64, "noverlap": 48}
    whole = {d: Spectrogram(**chosen).apply(x, fmt(d, 4)) for d, x in data.items()}
    for size in (1, 5000, 30_000):
        monkeypatch.setattr(spectral, "_TILE_BYTES", size)
        for dtype, x in data.items():
            np.testing.assert_array_equal(Spectrogram(**chosen).apply(x, fmt(dtype, 4)), whole[dtype])


def test_threads_do_not_share_work_arrays() -> None:
    spec, form = Spectrogram(nperseg=64, noverlap=32), fmt("float32")
    inputs = [recording("float32", 640, offset=i) for i in range(4)]
    wanted = [spec.apply(x, form) for x in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        wrong.extend(i for _ in range(50) if not np.array_equal(spec.apply(inputs[i], form), wanted[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_fallback_transform_gives_the_same() -> None:
    frames = recording("float32", 30, 200)
    out = np.empty((30, 101), np.complex64)
    spectral.transform_publicly(frames, out)
    direct = np.empty_like(out)
    spectral.pick_transform()(frames, direct)
    np.testing.assert_array_equal(out, direct)


def test_format() -> None:
    spec, form = Spectrogram(nperseg=200, noverlap=160, keep_bins=90), fmt("float32")
    out = spec.output({form.stream: form})
    assert (out.stream, out.shape, out.rate, out.step, out.span) == (
        "spectrogram.left",
        (90, 3),
        Fraction(25, 2),
        40,
        200,
    )
    assert out.units == ("(m/s^2)^2/Hz",) * 3
    for mode, scaling, unit, wanted in (
        ("psd", "spectrum", "V", "V^2"),
        ("magnitude", "density", "V", "V/Hz^0.5"),
        ("magnitude", "spectrum", "V", "V"),
        ("angle", "density", "V", "rad"),
        ("psd", "density", "", ""),
    ):
        form = fmt("float32", 1, unit)
        assert Spectrogram(mode=mode, scaling=scaling).output({form.stream: form}).units == (wanted,)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"nperseg": 0}, "nperseg 0"),
        ({"nperseg": 10, "noverlap": 10}, "noverlap 10, expected a whole number, 0 to 9"),
        ({"nperseg": 10, "nfft": 9}, "nfft 9"),
        ({"nperseg": 10, "keep_bins": 7}, "keep_bins 7"),
        ({"nperseg": 10.5}, "nperseg 10.5"),
        ({"detrend": "cubic"}, "detrend 'cubic'"),
        ({"scaling": "power"}, "scaling 'power'"),
        ({"mode": "complex"}, 'use "magnitude" and "angle"'),
        ({"mode": "psdd"}, "mode 'psdd'"),
        ({"window": "tuky"}, "window 'tuky'"),
        ({"window": "kaiser"}, "window 'kaiser'"),
        ({"chunk_frames": 0}, "chunk_frames 0"),
    ],
)
def test_a_wrong_parameter_is_named(chosen: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError) as caught:
        make_step("spectrogram", chosen)
    assert words in str(caught.value)


def test_wrong_input_is_named() -> None:
    form = fmt("int16")
    with pytest.raises(FormatError, match="int16"):
        Spectrogram().output({form.stream: form})
    irregular = signal_format("ibi", ("x",), 0)
    with pytest.raises(FormatError, match="no fixed rate"):
        Spectrogram().output({"ibi": irregular})


def test_json_keeps_a_window_with_parameters() -> None:
    spec = Spectrogram(window=("kaiser", 8.0), nperseg=32)
    assert spec_from_json(spec.to_json()) == spec
    assert Spectrogram(window=["kaiser", 8.0], nperseg=32) == spec
