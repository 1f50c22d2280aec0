"""Frames on a grid: against a search through all of them, tick by tick, whatever the rate, the cuts and the crashes."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from checks import check_json, windows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from kymo.models.data.dataset import streams_of
from kymo.processors.branch import Branch
from kymo.processors.chain import Chain
from kymo.processors.intake import Intake
from kymo.processors.join import Join
from kymo.processors.recipe.load import parse_recipe
from kymo.processors.steps.images import Decode, Encode
from kymo.streams.chunk import Chunk, Header, sample_time_ns, signal_format
from kymo.streams.errors import FormatError, RecipeError
from kymo.streams.recording import Recording, StreamData

ORIGIN = 1_700_000_000_123_456_789
COLOURS = ("red", "green", "blue")


def join(rate: str, sample: str, ticks: str, reach_ns: int) -> Join:
    chain = Chain((Intake(COLOURS, dtype="jpeg"),))
    return Join((Branch("video", rate, chain, sample, True, 0, reach_ns),), ticks, "video")


def recorded(pick: random.Random, rate: str) -> tuple[Header, list[int], list[int]]:
    """Numbers and times of the frames that there are: some are lost, and of a variable rate some come at once."""
    fmt = replace(signal_format("video", COLOURS, Fraction(rate), "jpeg"), shape=())
    numbers = [i for i in range(pick.choice([1, 5, 60])) if pick.random() > 0.15]
    origin, steps = ORIGIN + pick.randint(-(10**9), 10**9), [0, 10**6, 33 * 10**6, 34 * 10**6, 40 * 10**6, 3 * 10**9]
    if Fraction(rate):
        return Header("s", origin, fmt), numbers, [sample_time_ns(origin, Fraction(rate), i) for i in numbers]
    now, times = origin, []
    for _ in numbers:
        now += pick.choice(steps)
        times.append(now)
    return Header("s", origin, fmt), numbers, times


def frame(number: int) -> bytes:
    return b"\xff\xd8frame %d" % number


def defined(spec: Join, header: Header, numbers: list[int], times: list[int]) -> dict[int, bytes]:
    """By tick the frame, looked for among all."""
    if not numbers:
        return {}
    (branch,), rate, ticks = spec.branches, header.format.rate, Fraction(spec.rate)
    origin = times[0] if not rate else header.origin_ns
    period = Fraction(10**9) / rate if rate else Fraction(0)
    reach = branch.reach_ns if not rate else -(-period // (2 if branch.sample == "nearest" else 1))
    out, k = {}, 0
    while (at := sample_time_ns(origin, ticks, k)) <= times[-1] + reach:
        if at >= times[0]:
            # Of frames at once the last counts from then on; before, it is the first that comes.
            near = [
                (abs(at - time), time, -i if time <= at else i)
                for i, time in enumerate(times)
                if branch.sample == "nearest" or time <= at
            ]
            if near and min(near)[0] <= reach:
                out[k] = frame(numbers[abs(min(near)[2])])
        k += 1
    return out


def cut(pick: random.Random, header: Header, numbers: list[int], times: list[int]) -> list[Chunk]:
    chunks, start = list[Chunk](), 0
    while start < len(numbers):
        stop = start + 1
        while stop < len(numbers) and numbers[stop] == numbers[stop - 1] + 1 and pick.random() < 0.7:
            stop += 1
        data = np.empty(stop - start, object)
        data[:] = [frame(number) for number in numbers[start:stop]]
        stamps = None if header.format.rate else np.array(times[start:stop], np.int64)
        chunks.append(Chunk(header, numbers[start], data, stamps))
        if pick.random() < 0.1:
            chunks.append(pick.choice(chunks))
        start = stop
    last = chunks[-1] if chunks else Chunk(header, 0, np.empty(0, object))
    none = None if header.format.rate else np.empty(0, np.int64)
    return [*chunks, replace(last, first_index=last.end_index, data=last.data[:0], times_ns=none, end=True)]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_every_tick_has_the_frame_that_a_search_finds(seed: int) -> None:
    pick = random.Random(seed)
    rate, sample = pick.choice(["0", "15", "30000/1001"]), pick.choice(["nearest", "hold"])
    if rate == "0":
        sample = "nearest"  # a value that holds is no reason for a tick
    spec = join(
        rate, sample, pick.choice(["2", "9/10", "15", "30"]), pick.choice([10**7, 10**8, 10**9]) * (rate == "0")
    )
    check_json(spec)
    header, numbers, times = recorded(pick, rate)
    stage, items = spec.build(), list[Any]()
    for chunk in cut(pick, header, numbers, times):
        if pick.random() < 0.2:
            kept, stage = stage.snapshot(), spec.build()
            stage.restore(kept)
            assert stage.snapshot() == kept
        items += stage.push(chunk)
    came: dict[int, bytes] = {}
    for item in items:
        assert item.header.format == spec.output({})
        for number, image in enumerate(item.data.tolist(), item.first_index):
            assert number > max(came, default=-1)
            came[number] = image
    assert came == defined(spec, header, numbers, times)


RECIPE = """
name = "film"
[[input]]
stream = "video"
rate_hz = 0
channels = ["red", "green", "blue"]
dtype = "jpeg"
sample = "nearest"
bridge_ms = 100
[join]
rate_hz = 0.9
grid = "video"
[[steps]]
step = "decode"
height = 6
width = 5
[window]
length_s = 10
hop_s = 10
"""


def test_nine_of_three_hundred_frames_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A video of variable rate, 30 frames a second or so: windows hold 9 ticks, and no other frame is decoded."""
    recipe = parse_recipe(RECIPE)
    assert recipe.output_format().rows == 9
    assert recipe.output_format().shape == (6, 5, 3)
    times = ORIGIN + np.cumsum(np.random.default_rng(1).integers(25 * 10**6, 40 * 10**6, 1000))
    fmt = recipe.inputs[0].format
    pixels = (np.arange(1000) % 200).astype(np.uint8).reshape(-1, 1, 1, 1).repeat(6, 1).repeat(5, 2).repeat(3, 3)
    images = Encode().apply(pixels, replace(fmt, dtype="uint8", shape=(6, 5, 3)))
    decoded, apply = list[bytes](), Decode.apply

    def noted(self: Decode, data: Any, fmt: Any) -> Any:
        decoded.extend(data)
        return apply(self, data, fmt)

    monkeypatch.setattr(Decode, "apply", noted)
    stream = StreamData(Header("s", ORIGIN, fmt), images, times)
    windows = windows_of(streams_of(Recording("s", [stream]), recipe), recipe.chain)
    assert len(windows) == 3
    assert len(decoded) <= 9 * 4
    ticks = times[0] + (np.arange(27) * Fraction(10**10, 9)).astype(np.int64)
    wanted = np.abs(times[None] - ticks[:, None]).argmin(1) % 200
    found = np.concatenate([window.data for window in windows])[:, 0, 0, 0]
    assert np.abs(found.astype(int) - wanted).max() <= 2  # of JPEG


def test_frames_stand_alone() -> None:
    video = join("15", "nearest", "2", 0).branches[0]
    other = Branch("eda", "4", Chain((Intake(("eda",)),)))
    with pytest.raises(FormatError, match="frames cannot be put beside other inputs"):
        Join((video, other), "2", "video").output({})
    with pytest.raises(FormatError, match='sample = "linear" of frames'):
        join("15", "linear", "2", 0).output({})
    with pytest.raises(FormatError, match="frames of uint8 are not put onto ticks"):
        replace(video, chain=Chain((Intake(COLOURS, dtype="uint8"),)))
    with pytest.raises(RecipeError, match="how long a value counts"):
        parse_recipe(RECIPE.replace("bridge_ms = 100\n", ""))
