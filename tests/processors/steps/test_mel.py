"""The mel and log_mel steps against librosa."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from kymo.processors.chain import PerWindow
from kymo.processors.registry import make_step
from kymo.processors.steps.mel import LogMel, Mel, filter_bank
from kymo.streams.chunk import Chunk, Header, signal_format
from kymo.streams.errors import FormatError

librosa = pytest.importorskip("librosa", reason="the extra `audio` is not installed")

CASES: list[dict[str, Any]] = [
    {"n_fft": 256, "hop_length": 64, "n_mels": 20},
    {"n_fft": 200, "hop_length": 40, "n_mels": 12, "win_length": 150, "window": "hamming"},
    {"n_fft": 256, "hop_length": 300, "n_mels": 16, "htk": True, "fmin": 20.0, "fmax": 400.0},
    {"n_fft": 128, "hop_length": 32, "n_mels": 10, "power": 1.0, "norm": None},
    {"n_fft": 255, "hop_length": 100, "n_mels": 8, "power": 1.5, "norm": 1.0},
]


def recording(dtype: str) -> Any:
    return (np.random.default_rng(5).standard_normal((2000, 2)) + 0.5).astype(dtype)


def fmt(dtype: str, unit: str = "") -> Any:
    return signal_format("audio.room", ("left", "right"), 1000, dtype, (unit, unit) if unit else ())


def by_librosa(data: Any, **chosen: Any) -> Any:
    return librosa.feature.melspectrogram(y=np.ascontiguousarray(data.T), sr=1000.0, center=False, **chosen)


@pytest.mark.parametrize("chosen", CASES)
def test_mel_has_the_numbers_of_librosa(chosen: dict[str, Any]) -> None:
    for dtype, bound in (("float64", 1e-12), ("float32", 1e-5)):
        data = recording(dtype)
        came, wanted = Mel(**chosen).apply(data, fmt(dtype)), by_librosa(data, **chosen).transpose(2, 1, 0)
        assert came.dtype == wanted.dtype == np.dtype(dtype)
        assert (abs(came - wanted) <= bound * wanted.max(1, keepdims=True)).all()


@pytest.mark.parametrize("chosen", CASES)
def test_log_mel_has_the_numbers_of_librosa(chosen: dict[str, Any]) -> None:
    data, more = recording("float64"), {"ref": 2.0, "amin": 1e-5}
    wanted = librosa.power_to_db(by_librosa(data, **chosen), top_db=None, **more).transpose(2, 1, 0)
    np.testing.assert_allclose(LogMel(**chosen, **more).apply(data, fmt("float64")), wanted, rtol=0, atol=1e-9)


def test_top_db_stands_behind_the_window_only() -> None:
    data, chosen = recording("float64"), CASES[0]
    spec = LogMel(**chosen, top_db=3.0)
    wanted = librosa.power_to_db(by_librosa(data, **chosen), top_db=3.0).transpose(2, 1, 0)
    np.testing.assert_allclose(spec.apply(data, fmt("float64")), wanted, rtol=0, atol=1e-9)
    with pytest.raises(FormatError, match="behind the window"):
        spec.build()
    PerWindow(spec).build()


def test_a_stage_gives_the_same_bytes_as_the_whole() -> None:
    for dtype in ("float32", "float64"):
        for cls in (Mel, LogMel):
            data, form = recording(dtype), fmt(dtype)
            spec = cls(**CASES[0], chunk_frames=5, chunk_phase=2)
            stage, header, came = spec.build(), Header("s", 0, form), []
            for start in range(0, 2000, 130):
                came += stage.push(Chunk(header, start, data[start : start + 130]))
            came += stage.flush()
            np.testing.assert_array_equal(np.concatenate([c.data for c in came]), spec.apply(data, form))


def test_format() -> None:
    form = fmt("float32", "Pa")
    out = Mel(**CASES[0]).output({form.stream: form})
    assert (out.stream, out.shape, out.step, out.span, out.units) == (
        "spectrogram.room",
        (20, 2),
        64,
        256,
        ("Pa^2",) * 2,
    )
    assert LogMel(**CASES[0]).output({form.stream: form}).units == ("dB", "dB")


def test_without_librosa_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "librosa.filters", None)
    filter_bank.cache_clear()
    form = fmt("float32")
    with pytest.raises(FormatError, match=r"extra `audio`.*kymo-streams\[audio\]"):
        Mel(**CASES[0]).output({form.stream: form})


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"n_fft": 1}, "n_fft 1"),
        ({"hop_length": 0}, "hop_length 0"),
        ({"win_length": 4096}, "win_length 4096, expected a whole number, 1 to 2048"),
        ({"n_mels": 0}, "n_mels 0"),
        ({"fmin": -1.0}, "fmin -1.0"),
        ({"fmin": 10.0, "fmax": 5.0}, "fmax 5.0"),
        ({"power": 0}, "power 0"),
        ({"norm": "area"}, "norm 'area'"),
        ({"htk": "yes"}, "htk 'yes'"),
        ({"window": "hannn"}, "window 'hannn'"),
    ],
)
def test_a_wrong_parameter_is_named(chosen: dict[str, Any], words: str) -> None:
    for name in ("mel", "log_mel"):
        with pytest.raises(FormatError) as caught:
            make_step(name, chosen)
        assert words in str(caught.value)
        assert str(caught.value).startswith(name)


def test_wrong_decibels_are_named() -> None:
    for chosen in ({"ref": 0.0}, {"amin": -1.0}, {"top_db": -1.0}):
        with pytest.raises(FormatError, match=next(iter(chosen))):
            LogMel(**chosen)


def test_a_band_above_half_the_rate_is_refused() -> None:
    form = fmt("float32")
    with pytest.raises(FormatError, match="half the rate"):
        Mel(fmax=501.0).output({form.stream: form})
