"""Physiological signals as an animated figure. In: a signal, or several on one grid. Out: pixels ``(m, height, width, 3)``, uint8.

From each source the recent past travels outward: a pixel shows, as brightness of the source's colour, the value of as long ago as it lies
far from it, up to the source's reach. High is dark, and fades with the distance; colours add. Distances are computed once; of a frame, the
levels of all rings are, and each pixel's three numbers are looked up in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from math import ceil
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kymo.processors.spec import only
from kymo.processors.steps.frames import FramedSpec
from kymo.processors.steps.images import COLOURS
from kymo.processors.steps.maps import FLOATS
from kymo.processors.steps.resample import rate_of
from kymo.streams.chunk import Array, Format
from kymo.streams.errors import FormatError
from kymo.streams.schema import Count, Positive, Rules

Floats = NDArray[np.float64]
Point = tuple[float, float]  # x and y, from the upper left corner of a square of side 1
_BLACK, _WHITE, _RINGS = 0, 1, 2  # the first of a frame's levels; those of rings begin behind them
_PALE, _DARK = 0.1, 0.9  # darkness of the lowest and of the highest value


@dataclass(frozen=True)
class Source:
    """Where a signal comes from, and how far it travels; no byte of a pixel is lit by two of them."""

    places: tuple[Point, ...]
    reach: float
    lights: tuple[bool, bool, bool]  # red, green, blue


SOURCES: dict[str, Source] = {
    "eda": Source(((0.13, 0.53),), 0.33, (False, False, True)),
    "bvp": Source(((0.55, 0.44),), 0.25, (True, False, False)),
    "temperature": Source(((0.635, 0.885),), 0.2, (True, True, True)),
    "pupil": Source(((0.43, 0.16), (0.57, 0.16)), 0.22, (False, True, False)),
}
#: The outline is that of their union: two ends and a radius each.
_CAPSULES: tuple[tuple[Point, Point, float], ...] = (
    ((0.5, 0.185), (0.5, 0.185), 0.17),
    ((0.5, 0.43), (0.5, 0.6), 0.15),
    ((0.4, 0.4), (0.11, 0.54), 0.075),
    ((0.6, 0.4), (0.89, 0.54), 0.075),
    ((0.435, 0.62), (0.37, 0.895), 0.085),
    ((0.565, 0.62), (0.63, 0.895), 0.085),
)
_LINE, _MARK = 0.008, 0.03  # of the outline's width, of the radius of the circle at a source
_Range = Annotated[tuple[float, float], Rules(expected="two numbers, the lowest value and the highest")]


@dataclass(frozen=True)
class Animation(FramedSpec):
    """Frames of a figure in which electrodermal activity, pulse, skin temperature and pupils of the recent past are seen.

    A frame rests on the samples of the longest time that a source shows, up to its own moment.

    Examples
    --------
    >>> Animation(rate_hz=2, from_hz=64, channels=("", "bvp", "", "")).frame_length
    257
    """

    height: Count = 224
    width: Count = 224
    rate_hz: Any = None
    look: Annotated[str, Rules(enum=("figure", "strips"))] = "figure"
    eda: _Range = (0.0, 5.0)
    bvp: _Range = (-100.0, 100.0)
    temperature: _Range = (28.0, 36.0)
    pupil: _Range = (2.0, 8.0)
    reach_s: tuple[Positive, Positive, Positive, Positive] = (12.0, 4.0, 30.0, 6.0)
    channels: Annotated[tuple[str, ...], Rules(expected="four names, empty for what is not drawn")] = ()
    from_hz: Any = None
    name: ClassVar[str] = "animation"

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind in SOURCES:
            low, high = getattr(self, kind)
            if not low < high:
                raise FormatError(f"animation: {kind} [{low:g}, {high:g}], expected the lowest value and a higher one")
        if self.channels and (len(self.channels) != len(SOURCES) or not any(self.channels)):
            raise FormatError(
                f"animation: channels {list(self.channels)}, expected one each of {', '.join(SOURCES)}, empty for what is not drawn"
            )
        if self.from_hz is not None:
            self.frame_step  # noqa: B018 (it fails where frames do not stand on samples)
        elif self.rate_hz is not None:
            rate_of(self.name, "rate_hz", self.rate_hz)

    def at(self, fmt: Format) -> Animation:
        """The same with its input's rate, and the channels that have a source's name, or that of its stream."""
        names = {name.partition(".")[0]: name for name in reversed(fmt.channels)}
        names.setdefault(fmt.stream.partition(".")[0], fmt.channels[0])
        channels = self.channels or tuple(names.get(kind, "") for kind in SOURCES)
        if not any(channels):
            raise FormatError(
                f"animation: `{fmt.stream}` has the channels {', '.join(fmt.channels)}, expected one or more of {', '.join(SOURCES)}; "
                "or name them in `channels`"
            )
        return replace(self, channels=channels, from_hz=self.from_hz or str(fmt.rate) if fmt.rate else None)

    @property
    def drawn(self) -> tuple[str, ...]:
        """Names of the sources that are drawn."""
        return tuple(kind for kind, channel in zip(SOURCES, self.channels, strict=True) if channel)

    @cached_property
    def _from_hz(self) -> Fraction:
        if self.from_hz is None or not self.channels:
            raise FormatError("animation: drawn of what? give from_hz and channels, or use `at`")
        return rate_of(self.name, "from_hz", self.from_hz)

    @cached_property
    def frame_step(self) -> int:
        step = self._from_hz / (self._from_hz if self.rate_hz is None else rate_of(self.name, "rate_hz", self.rate_hz))
        if step.denominator > 1:
            raise FormatError(
                f"animation: rate_hz {self.rate_hz} of {self.from_hz} Hz, expected a rate that divides it, "
                f"such as {float(self._from_hz / max(1, round(step))):g}; or put `resample` before it"
            )
        return int(step)

    @cached_property
    def reaches(self) -> dict[str, float]:
        """By source that is drawn, how many samples old is what is shown at its reach."""
        reaches = dict(zip(SOURCES, self.reach_s, strict=True))
        return {kind: reaches[kind] * float(self._from_hz) for kind in self.drawn}

    @cached_property
    def frame_length(self) -> int:
        return max(2, ceil(max(self.reaches.values())) + 1)

    def output(self, inputs: Mapping[str, Format]) -> Format:
        """Pixels ``(height, width, 3)``, uint8, on a stream of their own."""
        fmt = only(inputs)
        if len(fmt.shape) != 1 or fmt.dtype not in FLOATS or not fmt.rate:
            raise FormatError(
                f"animation: samples of `{fmt.stream}` are {fmt.dtype}{fmt.shape} at {fmt.rate} Hz, "
                f"expected one float32 or float64 a channel, at a fixed rate"
            )
        if fmt.rate != self._from_hz:
            raise FormatError(f"animation: `{fmt.stream}` has {fmt.rate} Hz, expected {self.from_hz}")
        if missing := [name for name in self.channels if name and name not in fmt.channels]:
            raise FormatError(
                f"animation: `{fmt.stream}` has no channel `{missing[0]}`, only {', '.join(fmt.channels)}"
            )
        return replace(
            fmt,
            stream="animation",
            channels=COLOURS,
            units=(),
            rate=fmt.rate / self.frame_step,
            dtype="uint8",
            shape=(self.height, self.width, 3),
            step=fmt.step * self.frame_step,
            span=ceil((self.frame_length - 1) * fmt.step) + fmt.span,
            rows=None,
        )

    def kernel(self, samples: Array, fmt: Format) -> Array:
        (low, span, fade), (whole, share) = self._shades, self._ages
        channels = np.array([fmt.channels.index(name) for name in self.channels if name])[:, None]
        newest = np.arange(self.frame_length - 1, samples.shape[-1], self.frame_step)
        at = newest[:, None, None] - whole  # (frames, sources, rings)
        values = samples[channels, at] * (1 - share) + samples[channels, at - 1] * share
        darkness = fade * (_PALE + (_DARK - _PALE) * np.minimum(np.maximum((values - low) / span, 0), 1))
        levels = np.empty((len(newest), _RINGS + whole.size), np.uint8)
        levels[:, _BLACK], levels[:, _WHITE] = 0, 255
        levels[:, _RINGS:] = np.fmin(255 * (1 - darkness), 255).reshape(len(newest), -1)  # NaN is as at its reach
        pixels = _pixels(self.look, self.drawn, self.height, self.width)
        out = np.empty((len(newest), *pixels.shape), np.uint8)
        for frame, own in zip(out, levels, strict=True):
            own.take(pixels, out=frame, mode="clip")
        return out

    @cached_property
    def _ages(self) -> tuple[NDArray[np.intp], Floats]:
        """How many samples old each ring of each source is, ``(sources, rings)``: whole ones, and the share of one more."""
        ages = np.linspace(0, list(self.reaches.values()), max(self.height, self.width), axis=1)
        whole = np.minimum(ages.astype(np.intp), self.frame_length - 2)
        return whole, ages - whole

    @cached_property
    def _shades(self) -> tuple[Floats, Floats, Floats]:
        """Of each source the lowest value, and how much higher the highest is; what of the darkness is left at each ring."""
        ranges = np.array([getattr(self, kind) for kind in self.drawn])
        fade = np.linspace(1, self.look == "strips", max(self.height, self.width))
        return ranges[:, :1], np.ptp(ranges, axis=1, keepdims=True), fade


@lru_cache(maxsize=16)
def _pixels(look: str, kinds: tuple[str, ...], height: int, width: int) -> NDArray[np.intp]:
    """Where among a frame's levels each number of each pixel stands, ``(height, width, 3)``."""
    pixels = np.full((height, width, 3), _WHITE, np.intp)
    ages, line = (_strips if look == "strips" else _figure)(kinds, height, width)
    pixels[(np.min(ages, axis=0) <= 1) | line] = _BLACK
    for i, (kind, age) in enumerate(zip(kinds, ages, strict=True)):
        here = (age <= 1) & ~line
        rings = np.rint(age[here] * (max(height, width) - 1)).astype(np.intp) + _RINGS + i * max(height, width)
        for colour in np.flatnonzero(SOURCES[kind].lights):
            assert (pixels[here, colour] == _BLACK).all(), "a byte is lit twice"
            pixels[here, colour] = rings
    pixels.setflags(write=False)
    return pixels


def _figure(kinds: tuple[str, ...], height: int, width: int) -> tuple[list[Floats], NDArray[np.bool_]]:
    """By source how old each pixel is, from 0 to 1 at its reach; which are of the outline."""
    side = min(height, width)
    rows, columns = np.ogrid[:height, :width]
    x, y = (columns + 0.5 - width / 2) / side + 0.5, (rows + 0.5 - height / 2) / side + 0.5
    body = np.min([_distance(x, y, *ends) - radius for *ends, radius in _CAPSULES], axis=0)
    half = max(_LINE * side, 1) / side / 2
    ages, line = [], np.abs(body) <= half
    for kind in kinds:
        source = SOURCES[kind]
        distance = np.min([_distance(x, y, place, place) for place in source.places], axis=0)
        ages.append(np.where(body < 0, distance / source.reach, np.inf))
        line |= np.abs(distance - _MARK) <= half / 2
    return ages, line


def _distance(x: Floats, y: Floats, start: Point, end: Point) -> Floats:
    """From the line between two points."""
    (ax, ay), (bx, by) = start, end
    length = (bx - ax) ** 2 + (by - ay) ** 2
    along = np.clip(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / (length or 1), 0, 1)
    return np.asarray(np.hypot(x - ax - along * (bx - ax), y - ay - along * (by - ay)))


def _strips(kinds: tuple[str, ...], height: int, width: int) -> tuple[list[Floats], NDArray[np.bool_]]:
    """The plain alternative: a strip a source, one below the other, its newest value at the right edge."""
    rows, age = np.arange(height)[:, None] * len(kinds) // height, np.linspace(1, 0, width)
    return [np.where(rows == i, age, np.inf) for i in range(len(kinds))], np.zeros((height, width), bool)
