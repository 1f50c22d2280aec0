"""Frames of signals: geometry and times against a figure drawn pixel by pixel, and against the given videos."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from documents import SHARED
from scipy.stats import spearmanr

from kymo.processors.chain import Chain, PerWindow
from kymo.processors.intake import Intake
from kymo.processors.steps.animation import SOURCES, Animation
from kymo.processors.steps.images import Encode
from kymo.processors.windows import Windows
from kymo.streams.chunk import Array, Chunk, Format, Header, signal_format
from kymo.streams.errors import FormatError
from kymo.streams.topics import Names

PHYSIO = SHARED / "data" / "physio_anu"
ALL = signal_format("joined", ("eda", "bvp", "temperature", "pupil"), 16)
EDA = signal_format("eda", ("eda",), 4)


def ramps(seconds: float, fmt: Format = ALL) -> Array:
    """Signals that change slowly, each in its own range."""
    t = np.arange(round(seconds * fmt.rate)) / float(fmt.rate)
    columns = [2.5 + 2 * np.sin(t / 4), 90 * np.sin(t), 32 + 3 * np.cos(t / 9), 5 + 2 * np.sin(t / 2)]
    return np.stack(columns, 1)[:, : len(fmt.channels)].astype(np.float32)


def pixel(spec: Animation, data: Array, newest: int, row: int, column: int) -> list[float]:
    """A pixel well inside the body: what each colour must be, from the definition."""
    side, lit, rgb = min(spec.height, spec.width), False, [0.0, 0.0, 0.0]
    x = (column + 0.5 - spec.width / 2) / side + 0.5
    y = (row + 0.5 - spec.height / 2) / side + 0.5
    for i, (kind, source) in enumerate(SOURCES.items()):
        share = min(math.dist((x, y), place) for place in source.places) / source.reach
        if share <= 1:
            lit, (low, high) = True, getattr(spec, kind)
            at = newest - share * spec.reach_s[i] * float(ALL.rate)
            value = float(np.interp(at, np.arange(len(data)), data[:, i]))
            bright = 255 - 255 * (0.1 + 0.8 * (value - low) / (high - low)) * (1 - share)
            rgb = [old + bright * lights for old, lights in zip(rgb, source.lights, strict=True)]
    return rgb if lit else [255.0] * 3


@pytest.mark.parametrize(("height", "width"), [(224, 224), (150, 231), (97, 64)])
def test_pixels_show_the_past_by_their_distance(height: int, width: int) -> None:
    spec, data = Animation(height=height, width=width, rate_hz=2).at(ALL), ramps(40)
    frames = spec.apply(data, ALL)
    newest = spec.frame_length - 1 + 3 * spec.frame_step
    side, seen = min(height, width), set()
    for x, y in [
        (0.5, 0.3),
        (0.45, 0.5),
        (0.2, 0.5),
        (0.5, 0.1),
        (0.38, 0.75),
        (0.63, 0.8),
        (0.75, 0.48),
        (0.5, 0.25),
        (0.36, 0.42),
    ]:
        row, column = int((y - 0.5) * side + height / 2), int((x - 0.5) * side + width / 2)
        wanted = pixel(spec, data, newest, row, column)
        assert frames[3, row, column] == pytest.approx(wanted, abs=5), (x, y)
        seen.add(tuple(level > 0 for level in wanted))
    assert len(seen) >= 5  # single colours, sums of two and of three, and what nothing reaches


def test_outside_is_white_and_the_outline_black() -> None:
    frame = Animation().at(ALL).apply(ramps(31), ALL)[0]
    assert (frame[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    middle = frame[:, 112]
    assert not middle[: round(0.02 * 224) + 1].all()  # the top of the head
    assert not frame[round(0.16 * 224), round(0.4 * 224) - 8 : round(0.4 * 224) + 8].all()


def test_more_is_darker_and_what_lacks_is_as_at_the_reach() -> None:
    spec = Animation(look="strips", height=8, width=30).at(ALL)
    low, high = (np.tile(np.float32([getattr(spec, kind)[i] for kind in SOURCES]), (500, 1)) for i in (0, 1))
    dark, pale = (spec.apply(data, ALL)[0].max(-1)[:, 0] for data in (high, low))
    assert set(dark.tolist()) == {25}
    assert set(pale.tolist()) == {229}
    assert (spec.apply(low * np.nan, ALL)[0].max(-1) == 255).all()


def test_strips_stand_one_below_the_other_newest_at_the_right() -> None:
    spec, data = Animation(height=8, width=121, look="strips").at(ALL), ramps(31)
    frame = spec.apply(data, ALL)[-1].max(-1)
    for i, (kind, reach) in enumerate(zip(SOURCES, spec.reach_s, strict=True)):
        low, high = getattr(spec, kind)
        at = len(data) - 1 - np.linspace(reach * 16, 0, 121)
        values = np.interp(at, np.arange(len(data)), data[:, i])
        wanted = 255 * (0.9 - 0.8 * (values - low) / (high - low))
        assert np.abs(frame[2 * i] - wanted).max() <= 1
        assert (frame[2 * i] == frame[2 * i + 1]).all()


def test_beats_are_rings() -> None:
    t = np.arange(64 * 6) / 64
    beats = np.where(t % 0.8 < 0.2, 100, -100).astype(np.float32)[:, None]
    spec = Animation().at(signal_format("bvp", ("bvp",), 64))
    red = spec.apply(beats, signal_format("bvp", ("bvp",), 64))[0][:, :, 0].astype(int)
    down = red[round(0.44 * 224) + 8 : round((0.44 + 0.2) * 224), round(0.55 * 224)]
    dark = down < np.convolve(np.pad(down, 6, "edge"), np.ones(13) / 13, "valid")
    assert 3 <= (np.diff(dark.astype(int)) == 1).sum() <= 5  # 0.2 of 0.25 in 4 s: four beats of 0.8 s


def test_behind_the_window_and_before_it_the_same() -> None:
    data, intake = ramps(40), Intake(ALL.channels)
    spec, header = Animation(height=24, width=20, rate_hz=1).at(ALL), Header("s", 0, ALL)
    chunks = [Chunk(header, i, data[i : i + 37]) for i in range(0, len(data), 37)]
    before, behind = (
        [item for stage in [Chain(steps).build()] for chunk in chunks for item in stage.push(chunk)]
        for steps in (
            (intake, spec, Windows(560, 80)),
            (intake, Windows(560, 80), PerWindow(Animation(height=24, width=20, rate_hz=1)).at(ALL)),
        )
    )
    assert [w.start_index for w in before] == [w.start_index for w in behind] == [0, 80]
    for one, other in zip(before, behind, strict=True):
        assert one.data.shape == (5, 24, 20, 3)
        assert np.array_equal(one.data, other.data)


def test_a_stream_of_its_own() -> None:
    chain = Chain(
        (Intake(ALL.channels), Animation(height=24, width=20, rate_hz="1/2").at(ALL), Encode(), Windows(640, 32))
    )
    derived = chain.split(ALL)[0].output({"joined": ALL})
    assert (derived.stream, derived.dtype, derived.rate) == ("animation", "jpeg", Fraction(1, 2))
    assert Names().for_stream(derived.stream) == "kymo.animation"


@pytest.mark.parametrize(
    ("parameters", "fmt", "words"),
    [
        ({"rate_hz": 3}, EDA, "rate_hz 3 of 4 Hz, expected a rate that divides it, such as 4"),
        ({"rate_hz": -1}, EDA, "rate_hz -1, expected a rate above 0"),
        ({"eda": (5, 1)}, EDA, "eda [5, 1], expected the lowest value and a higher one"),
        ({"channels": ("eda",)}, EDA, "expected one each of eda, bvp, temperature, pupil"),
        ({"channels": ("skin", "", "", "")}, EDA, "has no channel `skin`, only eda"),
        ({}, signal_format("imu", ("ax", "ay"), 50), "has the channels ax, ay, expected one or more of eda"),
        ({}, signal_format("eda", ("eda",), 0), "at a fixed rate"),
    ],
)
def test_what_cannot_be_drawn(parameters: dict[str, Any], fmt: Format, words: str) -> None:
    with pytest.raises(FormatError) as failed:
        Animation(**parameters).at(fmt).output({fmt.stream: fmt})
    assert words in str(failed.value)


def test_channels_by_name_by_stream_and_of_several_wrists() -> None:
    assert Animation().at(signal_format("bvp.left", ("v",), 64)).channels == ("", "v", "", "")
    several = signal_format("joined", ("x", "eda.left.eda", "eda.right.eda", "pupil"), 4)
    assert Animation().at(several).channels == ("eda.left.eda", "", "", "pupil")


def wrist(height: int) -> Array:
    """Which pixels are of the wrist: 7 of 224 around its middle."""
    rows, columns = np.ogrid[:height, :height]
    ((x, y),) = SOURCES["eda"].places
    near: Array = np.hypot((columns + 0.5) / height - x, (rows + 0.5) / height - y) < 7 / 224
    return near


MORE = [pytest.param(person, marks=pytest.mark.large) for person in range(1, 19) if person not in (10, 14)]


@pytest.mark.slow
@pytest.mark.parametrize("person", [10, 14, *MORE])
def test_the_wrist_follows_that_of_the_given_video(person: int) -> None:
    """Over all of it, at no lag; the video of a person has that person's number."""
    openpyxl, cv2 = pytest.importorskip("openpyxl"), pytest.importorskip("cv2")
    if not PHYSIO.is_dir():
        pytest.skip("shared/data/physio_anu is absent")
    book = openpyxl.load_workbook(PHYSIO / f"P{person:02d}.xlsx", read_only=True)
    start, _, *rows = [row[0] for row in book[f"P{person:02d}"].iter_rows(max_col=1, values_only=True)]
    first_s = next(book["info"].iter_rows(values_only=True))[1]
    eda = np.array([[value] for value in rows if value is not None], np.float32)
    low, high = np.quantile(eda, [0.01, 0.99]).tolist()
    spec = Animation(height=56, width=56, eda=(low, high)).at(EDA)
    first = round((first_s - start) * 4) + 48  # the video begins without a past
    given, video = list[float](), cv2.VideoCapture(str(PHYSIO / f"{person:02d}.mp4"))
    while (read := video.read())[0]:
        given.append(float(read[1][115:130, 23:38, 0].mean()))  # blue of its wrist
    part = eda[first - spec.frame_length + 1 : first - 48 + len(given)]
    drawn = spec.apply(part, EDA)[:, wrist(56), 2].mean(1)
    assert len(drawn) == len(given) - 48 > 8000
    assert spearmanr(drawn, given[48:])[0] >= 0.9
