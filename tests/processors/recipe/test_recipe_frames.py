"""Recipes whose samples are images: what they take, what their windows are, and what is refused because it does not fit."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from checks import windows_of
from PIL import Image
from strategies import samples

from kymo.models.data.dataset import streams_of
from kymo.processors.recipe.load import parse_recipe
from kymo.processors.steps.images import Decode, Encode
from kymo.streams.budget import IMAGE
from kymo.streams.chunk import Chunk, Format, Header
from kymo.streams.errors import RecipeError
from kymo.streams.recording import Recording, StreamData

TEXT = """
name = "film"
[[input]]
stream = "video"
rate_hz = 15
channels = ["red", "green", "blue"]
dtype = "jpeg"
[window]
length_s = {length_s}
hop_s = 0.4
[[window.steps]]
step = "decode"
height = {size}
width = {size}
[model]
architecture = "spectrogram_cnn"
"""
DECODE = '[[window.steps]]\nstep = "decode"\nheight = 8\nwidth = 8'
IMAGES = Format("video.front", ("red", "green", "blue"), (), Fraction(15), "jpeg", ())


def text(length_s: float = 0.8, size: int = 8) -> str:
    return TEXT.format(length_s=length_s, size=size)


def test_images_become_windows_of_pixels_as_pillow_has_them() -> None:
    recipe = parse_recipe(text())
    assert recipe.matches(IMAGES) is None
    data = samples(IMAGES, 40, 3)
    data = data.copy()
    data[7] = data[7][: len(data[7]) // 2]  # half of it never came
    stream = StreamData(Header("s", 0, IMAGES), data)
    windows = windows_of(streams_of(Recording("s", [stream]), recipe), recipe.chain)
    assert [window.start_index for window in windows] == [0, 6, 12, 18, 24]
    assert recipe.output_format().shape == (8, 8, 3)
    for window in windows:
        assert window.data.dtype == np.uint8
        for row, image in zip(window.data, data[window.start_index : window.end_index], strict=True):
            wanted = np.zeros((8, 8, 3), np.uint8)
            if image is not data[7]:
                with Image.open(io.BytesIO(image)) as opened:
                    wanted = np.asarray(opened.convert("RGB").resize((8, 8), Image.Resampling.BILINEAR))
            assert np.array_equal(row, wanted)


def test_pixels_of_one_shape_are_taken() -> None:
    made = text().replace('dtype = "jpeg"', 'dtype = "uint8"\nshape = [4, 5]')
    recipe = parse_recipe(re.sub(r"\[\[window.steps\]\]\n(.*\n){3}", "", made))
    good = replace(IMAGES, dtype="uint8", shape=(4, 5, 3))
    assert recipe.matches(good) is None
    assert recipe.input_format().shape == (4, 5, 3)
    for bad in (IMAGES, replace(good, shape=(5, 4, 3)), replace(good, shape=(3,))):
        assert "expected uint8[4, 5, 3]" in (recipe.matches(bad) or "")
    assert "expected jpeg[]" in (parse_recipe(text()).matches(good) or "")


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ('dtype = "jpeg"', 'dtype = "jpeg"\nbridge_ms = 100', "of which none is made up"),
        ('dtype = "jpeg"', 'dtype = "jpeg"\nmax_missing = 0.1', "of which none is made up"),
        ('dtype = "jpeg"', 'dtype = "jpeg"\nunits = ["", "", ""]', "none converted"),
        ('dtype = "jpeg"', 'dtype = "jpeg"\nshape = [4, 5]', 'of frames of dtype = "uint8"'),
        ('dtype = "jpeg"', 'dtype = "uint8"', "0 numbers, frames of"),
        ('dtype = "jpeg"', 'dtype = "uint8"\nshape = [4, 5, 3]', "3 numbers, frames of"),
        ('dtype = "jpeg"', "", "expected jpeg images"),
        (DECODE, "", "not images; add the step `decode`"),
        (DECODE, '[[window.steps]]\nstep = "select"\nchannels = ["red"]', "holds jpeg images, expected numbers"),
    ],
)
def test_what_frames_have_not_is_refused_at_its_line(before: str, after: str, says: str) -> None:
    assert before in text()
    with pytest.raises(RecipeError, match=re.escape(says)):
        parse_recipe(text().replace(before, after))


def test_a_recipe_that_does_not_fit_is_refused_with_the_sum() -> None:
    """The numbers are worked out here once more, by hand."""
    frames, decoded, model = 78, 78 * 224 * 224 * 3, 4 * 78 * 224 * 224 * 3
    assert parse_recipe(text(5.2, 224))  # 78 + 11.2 + 44.8 MiB
    frames, decoded, model = 300, 300 * 224 * 224 * 3, 4 * 300 * 224 * 224 * 3
    with pytest.raises(RecipeError) as refused:
        parse_recipe(text(20, 224))
    said = str(refused.value)
    assert f"a window of {frames} images of up to 1 MiB is {frames * IMAGE / 2**20:.1f} MiB" in said
    assert f"{decoded / 2**20:.1f} behind `decode` (300 x 224 x 224 x 3 uint8)" in said
    assert f"{model / 2**20:.1f} as the model takes it" in said
    assert f"{(frames * IMAGE + decoded + model) / 2**20:.1f} MiB in all, expected 256 at most" in said
    assert "line" in said or "[window]" in said


def test_an_image_that_is_too_large_is_left_out_and_counted() -> None:
    recipe = parse_recipe(text())
    data = samples(IMAGES, 30, 3).copy()
    data[9] = data[9] + bytes(IMAGE)
    stage = recipe.chain.build()
    windows: list[Any] = stage.push(Chunk(Header("s", 0, IMAGES), 0, data))
    assert [window.start_index for window in windows] == [12, 18]  # it is a gap
    assert stage.take_counts()["too_large"] == 1


def test_pixels_that_were_images_are_nearly_what_they_were() -> None:
    fmt = replace(IMAGES, dtype="uint8", shape=(64, 48, 3))
    smooth = np.add.outer(np.arange(64), np.arange(48)).astype(np.uint8)[None, :, :, None].repeat(3, 3)
    images = Encode(quality=95).apply(smooth, fmt)
    assert len(images[0]) < smooth.nbytes / 5
    back = Decode(64, 48).apply(images, IMAGES)
    assert np.abs(back.astype(int) - smooth).max() <= 3
    grey = Encode().apply(smooth[..., :1], replace(fmt, channels=("y",), shape=(64, 48, 1)))
    assert np.abs(Decode(64, 48).apply(grey, IMAGES).astype(int) - smooth).max() <= 6
