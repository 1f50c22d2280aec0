"""`audio_fbank` against transformers' own feature extractor."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import scipy.signal
from recipes_made import recipe_text

from kymo.processors.recipe.load import parse_recipe
from kymo.processors.steps.mel import AudioFbank
from kymo.streams.chunk import Chunk, Format, Header
from kymo.streams.errors import FormatError

extractors = pytest.importorskip("transformers.models.audio_spectrogram_transformer")


def acc(rate_hz: int = 100, channels: int = 3, rows: int | None = 300) -> Format:
    return Format("imu", tuple("xyz"[:channels]), (), Fraction(rate_hz), "float64", (channels,), rows=rows)


def motion(seconds: float, rate_hz: int, channels: int = 3) -> Any:
    """Gravity, a slow turn, steps and noise, in g."""
    random, t = np.random.default_rng(3), np.arange(round(seconds * rate_hz)) / rate_hz
    parts = [np.cos(0.3 * t + i) + 0.2 * np.sin(2 * np.pi * (2 + i) * t) for i in range(channels)]
    return np.stack(parts, 1) + 0.01 * random.standard_normal((len(t), channels))


@pytest.mark.parametrize(("rate_hz", "mels", "frames"), [(100, 128, 1024), (30, 128, 1024), (500, 40, 512)])
def test_numbers_are_those_of_the_extractor(rate_hz: int, mels: int, frames: int) -> None:
    data = motion(3, rate_hz)
    sound = scipy.signal.resample_poly(np.concatenate(list(data.T)), *(Fraction(16000, rate_hz).as_integer_ratio()))
    extractor = extractors.ASTFeatureExtractor(num_mel_bins=mels, max_length=frames)
    wanted = extractor(sound.astype(np.float32), sampling_rate=16000, return_tensors="np")["input_values"][0]
    step, fmt = AudioFbank(n_mels=mels, frames=frames), acc(rate_hz, rows=3 * rate_hz)
    found = step.apply(data, fmt)
    assert (found.shape, found.dtype) == ((frames, mels, 1), np.float32)
    declared = step.output({"imu": fmt})
    assert (declared.rows, declared.shape) == (frames, (mels, 1))
    np.testing.assert_allclose(found[..., 0], wanted, rtol=1e-4, atol=1e-4)
    assert np.ptp(wanted[:100]) > 0.5  # else anything would agree


def test_as_many_frames_as_there_are() -> None:
    step, fmt = AudioFbank(frames=0), acc()
    found = step.apply(motion(3, 100), fmt)
    assert step.output({"imu": fmt}).rows == len(found) == (9 * 16000 - 400) // 160 + 1
    np.testing.assert_array_equal(found, AudioFbank().apply(motion(3, 100), fmt)[: len(found)])


def test_silence_is_the_floor() -> None:
    found = AudioFbank(frames=0).apply(np.zeros((300, 3)), acc())
    np.testing.assert_allclose(found, (np.log(2.0**-23) + 4.2677393) / (2 * 4.5689974), rtol=1e-6)


@pytest.mark.parametrize(
    ("parameters", "fmt", "message"),
    [
        ({"std": 0.0}, acc(), "a number above 0"),
        ({"n_mels": 0}, acc(), "n_mels 0, expected a whole number"),
        ({"rate_hz": 16001}, acc(500), "is 16001/500, expected whole numbers up to 2000"),
        ({"frames": 0}, acc(100, 1, 2), "too short for a frame"),
        ({}, Format("imu", ("x",), (), Fraction(0), "float32", (1,)), "no evenly sampled signal"),
    ],
)
def test_what_it_refuses(parameters: dict[str, Any], fmt: Format, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        AudioFbank(**parameters).output({"imu": fmt})


def test_a_recipe_takes_it_behind_the_window() -> None:
    text = recipe_text("heard", "acc_raw.x acc_raw.y acc_raw.z", 100, (3, 1), behind=[{"step": "audio_fbank"}])
    recipe = parse_recipe(text)
    out = recipe.output_format()
    assert (out.rows, out.shape, out.channels, out.dtype) == (1024, (128, 1), ("fbank",), "float32")
    chunk = Chunk(Header("s", 0, recipe.input_format()), 0, motion(5, 100).astype(np.float32))
    windows = recipe.chain.build().push(chunk)
    assert [window.start_index for window in windows] == [0, 100, 200]
    np.testing.assert_array_equal(windows[1].data, AudioFbank().apply(chunk.data[100:400], recipe.input_format()))
