"""Variations of training windows. In: ``(n, time, …, channels)`` float32 and a random generator. Out: the same shape, varied.

====================  ==================  =======================================================================
kind                  defined on          what it does to a window
====================  ==================  =======================================================================
``jitter``            any                 adds noise, a share of each channel's standard deviation in the window
``scale``             any                 multiplies each channel by a factor
``rotate``            signals             turns the 3-axis groups, as if the sensor were worn turned
``time_warp``         any                 runs faster here and slower there; beginning and end stay
``channel_dropout``   any                 sets channels to 0, never all of them
``time_mask``         any                 sets a stretch of rows to 0
``bin_mask``          spectrograms        sets a stretch of bins to 0
``modality_dropout``  joins behind mask   takes inputs away, never all of them
``pose``              joints              mirrors and turns bodies, moves joints a little, loses some
====================  ==================  =======================================================================

Signals are ``(n, time, channels)``, spectrograms ``(n, time, bins, channels)``. They act on what the model is given: behind
``standardise`` 0 is a channel's mean, and turning makes sense only where the axes of a group keep their unit (windows
without that step). Every window is varied by itself, with probability `p`; the same generator gives the same windows, and
what is given is never changed. Only training windows are varied.

Where the last step is ``mask``, the channels that it adds are not varied: a row of an input that is not there is NaN to a variation and
stays so, what a variation makes NaN is an input that is not there, and zeros and mask follow from that behind all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kymo.processors.steps.maps import Mask
from kymo.processors.steps.pose import Joints
from kymo.streams.chunk import Array, Format
from kymo.streams.errors import FormatError, TrainingError
from kymo.streams.schema import Rules, Share

Random = np.random.Generator
Windows = NDArray[np.float32]
Factor = Annotated[float, Rules(minimum=0, maximum=10)]
Augment = Callable[[Array, Random], Array]
#: Where the channels of each input stand, by stream; empty where no ``mask`` says what is there of them.
Inputs = Mapping[str, Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Variation:
    """What all kinds of variation share."""

    p: Share = 0.5  # probability that a window is varied

    def fit(self, fmt: Format, inputs: Inputs) -> Callable[[Windows, Random], Windows]:
        """Give what varies windows of `fmt`."""
        return self.vary

    def vary(self, windows: Windows, random: Random) -> Windows:
        """Vary all of the windows."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Jitter(Variation):
    """Noise, normal, of `share` times the standard deviation that the channel has in the window."""

    share: Factor = 0.05

    def vary(self, windows: Windows, random: Random) -> Windows:
        spread = windows.std(axis=(rows := tuple(range(1, windows.ndim - 1))), keepdims=True, dtype=np.float32)
        if np.isnan(spread).any():
            there = ~np.isnan(windows)
            share = there / np.maximum(there.sum(rows, keepdims=True), 1).astype(np.float32)  # of the mean
            away = np.where(there, windows, 0) - np.where(there, windows * share, 0).sum(rows, keepdims=True)
            spread = np.where(np.isnan(spread), np.sqrt((away**2 * share).sum(rows, keepdims=True)), spread)
        noisy: Windows = windows + np.float32(self.share) * spread * random.standard_normal(windows.shape, np.float32)
        return noisy


@dataclass(frozen=True, kw_only=True)
class Gain(Variation):
    """A factor a channel, its logarithm uniform from -log(1 + share) to log(1 + share)."""

    share: Factor = 0.1

    def vary(self, windows: Windows, random: Random) -> Windows:
        bound = np.log1p(self.share)
        factor = np.exp(random.uniform(-bound, bound, (len(windows), windows.shape[-1]))).astype(np.float32)
        scaled: Windows = windows * _over_rows(factor, windows)
        return scaled


@dataclass(frozen=True, kw_only=True)
class TimeWarp(Variation):
    """Another pace, up to `share` faster or slower, linear between `knots` points; rows are interpolated."""

    share: Factor = 0.2
    knots: Annotated[int, Rules(minimum=2, maximum=1000)] = 4

    def vary(self, windows: Windows, random: Random) -> Windows:
        count, rows = windows.shape[:2]
        if rows < 2:
            return windows
        bound = np.log1p(self.share)
        knots = np.exp(random.uniform(-bound, bound, (count, int(self.knots))))
        steps = np.linspace(0, knots.shape[1] - 1, rows - 1)  # in knots
        low = np.minimum(steps.astype(np.int64), knots.shape[1] - 2)
        pace = knots[:, low] + (knots[:, low + 1] - knots[:, low]) * (steps - low)  # (n, rows - 1)
        places = np.concatenate([np.zeros((count, 1)), np.cumsum(pace, 1)], 1)  # (n, rows), in rows
        places *= (rows - 1) / places[:, -1:]
        first = np.minimum(places.astype(np.int64), rows - 2)
        over_axes = (..., *[np.newaxis] * (windows.ndim - 2))
        part, index = (places - first).astype(np.float32)[over_axes], first[over_axes]
        before, after = (np.take_along_axis(windows, index + i, 1) for i in (0, 1))
        warped: Windows = before + (after - before) * part
        return warped


@dataclass(frozen=True, kw_only=True)
class ChannelDropout(Variation):
    """Each channel becomes 0 with probability `share`; one chosen at random always stays."""

    share: Share = 0.2

    def vary(self, windows: Windows, random: Random) -> Windows:
        visible = random.random((len(windows), windows.shape[-1])) >= self.share  # (n, channels)
        visible[np.arange(len(windows)), random.integers(windows.shape[-1], size=len(windows))] = True
        return np.where(_over_rows(visible, windows) | np.isnan(windows), windows, np.float32(0))


@dataclass(frozen=True, kw_only=True)
class TimeMask(Variation):
    """A stretch of rows becomes 0: of a length up to `share` of them (at least one), anywhere."""

    share: Share = 0.1
    axis: ClassVar[int] = 1

    def vary(self, windows: Windows, random: Random) -> Windows:
        size = windows.shape[self.axis]
        length = random.integers(0, max(int(size * self.share), 1 if self.share else 0), len(windows), endpoint=True)
        start = random.integers(0, size - length, endpoint=True)
        places = np.arange(size)
        hidden = (places >= start[:, None]) & (places < (start + length)[:, None])
        others = tuple(axis for axis in range(1, windows.ndim) if axis != self.axis)
        return np.where(np.expand_dims(hidden, others) & ~np.isnan(windows), np.float32(0), windows)


@dataclass(frozen=True, kw_only=True)
class BinMask(TimeMask):
    """A stretch of bins becomes 0: of a length up to `share` of them (at least one), anywhere."""

    axis: ClassVar[int] = 2

    def fit(self, fmt: Format, inputs: Inputs) -> Callable[[Windows, Random], Windows]:
        if len(fmt.shape) != 2:
            raise TrainingError(
                f"[[train.augment]] bin_mask: defined on spectrograms (time, bins, channels), `{fmt.stream}` has "
                f"{len(fmt.shape) + 1} axes; use time_mask"
            )
        return self.vary


@dataclass(frozen=True, kw_only=True)
class Rotate(Variation):
    """A turn about a random axis by a random angle."""

    degrees: Annotated[float, Rules(minimum=0, maximum=180)] = 15.0  # largest angle
    # channels of each group, x, y, z; by default those whose names differ in x, y and z alone, such as ax, ay, az
    groups: Annotated[tuple[tuple[str, str, str], ...], Rules(expected="arrays of three channel names each")] = ()
    together: bool = True  # all groups of a window turn as one (they sit in one device); else each by itself

    def fit(self, fmt: Format, inputs: Inputs) -> Callable[[Windows, Random], Windows]:
        if len(fmt.shape) != 1:
            raise TrainingError(
                f"[[train.augment]] rotate: defined on signals (time, channels), `{fmt.stream}` has {len(fmt.shape) + 1} "
                f"axes; leave it out"
            )
        groups = self.groups or three_axes(fmt.channels)
        absent = [channel for group in groups for channel in group if channel not in fmt.channels]
        if absent or not groups:
            raise TrainingError(
                f"[[train.augment]] rotate: {'no channel ' + absent[0] if absent else 'no channels x, y, z of a group'} "
                f"among {', '.join(fmt.channels)}; name them in groups"
            )
        columns = [[fmt.channels.index(channel) for channel in group] for group in groups]
        return lambda windows, random: self._turned(windows, random, columns)

    def _turned(self, windows: Windows, random: Random, columns: list[list[int]]) -> Windows:
        out = windows.copy()
        turns = self._turns(len(windows), random)
        for number, group in enumerate(columns):
            if number and not self.together:
                turns = self._turns(len(windows), random)
            out[..., group] = np.einsum("nij,ntj->nti", turns, windows[..., group])
        return out

    def _turns(self, count: int, random: Random) -> Windows:
        """Draw rotation matrices ``(count, 3, 3)``, by Rodrigues's formula."""
        axis = random.standard_normal((count, 3))
        x, y, z = (axis / np.linalg.norm(axis, axis=1, keepdims=True)).T
        angle = np.deg2rad(random.uniform(0, self.degrees, count))[:, None, None]
        zero = np.zeros(count)
        cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).reshape(count, 3, 3)
        turned = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)
        matrices: Windows = turned.astype(np.float32)
        return matrices


@dataclass(frozen=True, kw_only=True)
class ModalityDropout(Variation):
    """Each input is gone with probability `share`, as one that is silent; of those that are there one, chosen at random, always stays."""

    share: Share = 0.3
    whole: Share = (
        1.0  # of those that are gone, how many throughout the window; the others in a stretch of it, anywhere
    )
    inputs: tuple[str, ...] = ()  # the streams that may be gone; by default all

    def fit(self, fmt: Format, inputs: Inputs) -> Callable[[Windows, Random], Windows]:
        alone = [name for i, name in enumerate(fmt.channels) if not any(i in columns for columns in inputs.values())]
        if not inputs or alone:
            why = f"channel {alone[0]} is of no input alone" if inputs else f"`{fmt.stream}` is not so"
            raise TrainingError(
                f"[[train.augment]] modality_dropout: defined on windows of several [[input]]s whose last step is `mask`; {why}"
            )
        if unknown := [name for name in self.inputs if name not in inputs]:
            raise TrainingError(
                f"[[train.augment]] modality_dropout: no input {unknown[0]} among {', '.join(inputs)}; correct inputs"
            )
        columns = list(inputs.values())
        droppable = np.array([not self.inputs or name in self.inputs for name in inputs])
        return lambda windows, random: self._without(windows, random, columns, droppable)

    def _without(self, windows: Windows, random: Random, columns: Sequence[Sequence[int]], droppable: Any) -> Windows:
        out, count, rows, places = windows.copy(), *windows.shape[:2], np.arange(windows.shape[1])
        there = np.stack([~np.isnan(windows[..., at[0]]).reshape(count, -1).all(1) for at in columns], 1)
        gone = (random.random(there.shape) < self.share) & droppable  # (n, inputs)
        # One stays: any that is there, but first of all one that may not be gone.
        stays = np.where(there, random.random(there.shape) + ~droppable, -1).argmax(1)
        gone[np.arange(count), stays] = False
        length = random.integers(1, rows, there.shape, endpoint=True)
        length = np.where(random.random(there.shape) < self.whole, rows, length)
        start = random.integers(0, rows - length, endpoint=True)[..., None]
        hidden = gone[..., None] & (places >= start) & (places < start + length[..., None])  # (n, inputs, rows)
        for number, at in enumerate(columns):
            for column in at:
                out[..., column][hidden[:, number]] = np.nan
        return out


@dataclass(frozen=True, kw_only=True)
class Pose(Variation):
    """A body as seen from elsewhere, by another estimator: of joints relative to the body, all frames of a window alike.

    Channels ``NAME_found``, and joints at (0, 0), which were not found, go with their joints.
    """

    mirror: Share = 0.5  # probability that left and right change places
    degrees: Annotated[float, Rules(minimum=0, maximum=180)] = 10.0  # largest turn in the image
    share: Factor = 0.1  # larger or smaller by up to it
    noise: Factor = 0.05  # of each coordinate, normal, in the joints' unit
    lost: Share = 0.05  # probability that a joint is not found

    def fit(self, fmt: Format, inputs: Inputs) -> Callable[[Windows, Random], Windows]:
        try:
            joints = Joints("defined on joints", fmt.channels)
        except FormatError as error:
            raise TrainingError(f"[[train.augment]] pose: {error}") from None
        found = [fmt.channels.index(f"{name}_found") for name in joints.names if f"{name}_found" in fmt.channels]
        if len(fmt.shape) != 1 or len(found) not in (0, len(joints.names)):
            raise TrainingError(
                "[[train.augment]] pose: defined on (time, channels), with all NAME_found or none of them"
            )
        return lambda windows, random: self._varied(windows, random, joints, found)

    def _varied(self, windows: Windows, random: Random, joints: Joints, found: list[int]) -> Windows:
        count, out = len(windows), windows.copy()
        x, y, there = joints.places(windows)  # (n, time, joints)
        if found:
            there = windows[..., found] > 0
        others = [joints.names.index(_other_side(name, joints.names)) for name in joints.names]
        mirrored = (random.random(count) < self.mirror)[:, None, None]
        x, y, there = (np.where(mirrored, values[..., others], values) for values in (x, y, there))
        x = np.where(mirrored, -x, x)
        bound = np.log1p(self.share)
        size = np.exp(random.uniform(-bound, bound, (count, 1, 1)))
        angle = np.deg2rad(random.uniform(-self.degrees, self.degrees, (count, 1, 1)))
        cos, sin = size * np.cos(angle), size * np.sin(angle)
        noise = self.noise * random.standard_normal((2, count, 1, len(joints.names)))
        there = there & (random.random((count, 1, len(joints.names))) >= self.lost)
        joints.put(out, cos * x - sin * y + noise[0], sin * x + cos * y + noise[1], there)
        if found:
            out[..., found] = there
        return out


def _other_side(name: str, names: Sequence[str]) -> str:
    left, right = "left_", "right_"
    other = right + name.removeprefix(left) if name.startswith(left) else left + name.removeprefix(right)
    return other if name.startswith((left, right)) and other in names else name


def three_axes(channels: Sequence[str]) -> list[tuple[str, str, str]]:
    """Find the triples of channels whose names differ only in one letter, x, y, z.

    Examples
    --------
    >>> three_axes(["ax", "ay", "az", "temperature", "gyro_x.left", "gyro_y.left", "gyro_z.left", "x"])
    [('ax', 'ay', 'az'), ('gyro_x.left', 'gyro_y.left', 'gyro_z.left')]
    """
    triples = []
    for channel in channels:
        for i, letter in enumerate(channel):
            if letter in "xX":
                y, z = (channel[:i] + chr(ord(letter) + k) + channel[i + 1 :] for k in (1, 2))
                if y in channels and z in channels:
                    triples.append((channel, y, z))
    return triples


def _over_rows(values: Any, windows: Windows) -> Any:
    """Shape ``(n, channels)`` as ``(n, 1, …, channels)``, of as many axes as windows have."""
    return np.expand_dims(values, tuple(range(1, windows.ndim - 1)))


KINDS: dict[str, type[Variation]] = {
    "jitter": Jitter,
    "scale": Gain,
    "rotate": Rotate,
    "time_warp": TimeWarp,
    "channel_dropout": ChannelDropout,
    "time_mask": TimeMask,
    "bin_mask": BinMask,
    "modality_dropout": ModalityDropout,
    "pose": Pose,
}
#: Any of them, as ``[[train.augment]]`` says it.
Augmentation = Annotated[Variation, Rules(kinds=KINDS)]


def augmenter(variations: Sequence[Variation], fmt: Format, mask: Mask | None = None) -> Augment:
    """Give what varies batches of training windows of `fmt`, whose last step is `mask` where there is one."""
    inputs: dict[str, list[int]] = {}
    if mask is not None:
        fmt = _before(mask, fmt)
        for stream, names in zip(mask.inputs, mask.groups, strict=True):
            inputs[stream] = [fmt.channels.index(name) for name in names]
    steps = [(variation.p, variation.fit(fmt, inputs)) for variation in variations]

    def augment(windows: Array, random: Random) -> Array:
        varied: Windows = windows.astype(np.float32)
        if inputs:
            varied = _opened(varied, list(inputs.values()))
        for p, vary in steps:
            drawn = random.random(len(varied)) < p
            if drawn.any():
                varied[drawn] = vary(varied[drawn], random)
        return np.asarray(mask.apply(varied, fmt)) if mask is not None else varied

    return augment


def _before(mask: Mask, fmt: Format) -> Format:
    """The format that a mask takes, of the one that it gives."""
    count = len(fmt.channels) - len(mask.added)
    return replace(fmt, channels=fmt.channels[:count], units=fmt.units[:count], shape=(*fmt.shape[:-1], count))


def _opened(windows: Windows, columns: Sequence[Sequence[int]]) -> Windows:
    """Windows as they were before a mask: NaN where an input is not there."""
    width = windows.shape[-1] - len(columns)
    out = windows[..., :width].copy()
    for number, at in enumerate(columns):
        absent = windows[..., width + number] == 0
        for column in at:
            out[..., column][absent] = np.nan
    return out
