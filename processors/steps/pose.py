"""Steps for poses. In: samples or windows of joints, each the two channels ``NAME_x`` and ``NAME_y``. Out: the same filled, relative to the
body, smoothed, with angles and velocities; windows of so many frames.

A joint at (0, 0) was not found, before and behind each of these steps: nothing is computed of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from kymo.processors.spec import MapSpec, Spec, Stage, only
from kymo.processors.steps.conditioning import Line, Real, SignalSpec
from kymo.processors.steps.maps import float_of, with_more
from kymo.streams.chunk import Array, Format
from kymo.streams.errors import FormatError
from kymo.streams.schema import Amount, Count, Positive, Rules

Bools = NDArray[np.bool_]
_SIDES = ("left_", "right_")
#: Joints between which an angle is, its own in the middle.
_ANGLES = (
    ("shoulder", "elbow", "wrist"),
    ("elbow", "shoulder", "hip"),
    ("shoulder", "hip", "knee"),
    ("hip", "knee", "ankle"),
)


class Joints:
    """Samples ``(…, channels)`` as joints ``(…, joints)``."""

    def __init__(self, step: str, channels: Sequence[str]) -> None:
        names = [name.removesuffix("_x") for name in channels if name.endswith("_x") and f"{name[:-2]}_y" in channels]
        if not names:
            raise FormatError(f"{step}: no joint, such as nose_x and nose_y, among {', '.join(channels)}")
        self.at = {name: (channels.index(f"{name}_x"), channels.index(f"{name}_y")) for name in names}
        self.names = list(self.at)
        self.columns = np.array(list(self.at.values()))  # (joints, 2)

    def places(self, data: Array) -> tuple[Real, Real, Bools]:
        """x and y of joints, and whether they were found."""
        x, y = (np.ascontiguousarray(data[..., self.columns[:, i]], np.float64) for i in (0, 1))
        return x, y, np.asarray(((x != 0) | (y != 0)) & np.isfinite(x) & np.isfinite(y))

    def put(self, data: Array, x: Real, y: Real, found: Bools) -> None:
        data[..., self.columns[:, 0]], data[..., self.columns[:, 1]] = np.where(found, x, 0), np.where(found, y, 0)

    def among(self, *names: str) -> list[int]:
        """Numbers of those joints of these names that there are."""
        return [self.names.index(name) for name in names if name in self.at]


@dataclass(frozen=True)
class FillJoints(SignalSpec):
    """Joints that are not found are where they were last, or on the line to where they are found again; for so long, else at (0, 0)."""

    by: Annotated[str, Rules(enum=("hold", "line"))] = "hold"
    longest_s: Positive = 1.0
    name: ClassVar[str] = "fill_joints"

    def line(self, fmt: Format) -> Line:
        longest = round(self.longest_s * float(fmt.rate))
        return FillLine(Joints(self.name, self.channels or fmt.channels), longest, self.by == "line")


class FillLine(Line):
    """Line of :class:`FillJoints`."""

    arrays: ClassVar[tuple[str, ...]] = ("rows", "last", "since")

    def __init__(self, joints: Joints, longest: int, ahead: bool) -> None:
        self._joints, self._longest, self._ahead = joints, longest, ahead
        self.rows: Real = np.empty((0, 0))  # those of which nothing has come out yet
        self.last: Real = np.zeros((2, len(joints.names)))  # where each joint was found last, x and y
        self.since = np.full(
            len(joints.names), longest + 1
        )  # how many rows before the next one; more than counts: never

    def push(self, rows: Real) -> Real:
        self.rows = np.concatenate((self.rows, rows)) if len(self.rows) else rows
        return self._decide(ended=False)

    def close(self) -> Real:
        return self._decide(ended=True)

    def _decide(self, ended: bool) -> Real:
        rows, places = self.rows, np.arange(len(self.rows))[:, None]
        if not len(rows):
            return rows
        x, y, found = self._joints.places(rows)
        never = len(rows) + self._longest + 1
        before = np.maximum.accumulate(np.where(found, places, -never))
        # (n, joints): how far the row lies behind where its joint was found last, and before where it is found next.
        behind = np.where(before >= 0, places - before, np.minimum(self.since + places, self._longest + 1))
        after = np.minimum.accumulate(np.where(found, places, 2 * never)[::-1])[::-1] - places
        old_x, old_y = (
            np.where(before >= 0, np.take_along_axis(values, np.maximum(before, 0), 0), last)
            for values, last in ((x, self.last[0]), (y, self.last[1]))
        )
        count = len(rows)
        if self._ahead:
            next_at = np.minimum(places + after, count - 1)
            known = after < never
            if not ended:  # a joint may still be found within the longest gap
                open_ = ~found & ~known & (behind + (count - 1 - places) <= self._longest)
                count = int(np.argmax(open_.any(axis=1))) if open_.any() else count
            filled = known & (behind + after - 1 <= self._longest) & (behind <= self._longest)
            share = behind / np.maximum(behind + after, 1)
            new_x, new_y = (
                old + (np.take_along_axis(values, next_at, 0) - old) * share for old, values in ((old_x, x), (old_y, y))
            )
        else:
            filled, new_x, new_y = behind <= self._longest, old_x, old_y
        out = rows[:count].copy()
        x, y = np.where(found, x, new_x), np.where(found, y, new_y)
        self._joints.put(out, x[:count], y[:count], (found | filled)[:count])
        if count:
            self.last = np.stack((old_x[count - 1], old_y[count - 1]))
            self.since = np.minimum(behind[count - 1] + 1, self._longest + 1)
        self.rows = rows[count:].copy()
        return out


@dataclass(frozen=True)
class NormalisePose(MapSpec):
    """Joints relative to the hips, in lengths of the torso; to the shoulders, in the spread of all joints; or to the image."""

    by: Annotated[str, Rules(enum=("torso", "shoulders", "image"))] = "torso"
    width: Amount = 0.0  # of the image, as the joints count it
    height: Amount = 0.0
    limit: Amount = 0.0  # what is further than this from the middle is put there, where a torso that is hardly seen makes it so; 0: none
    found: bool = False  # whether a channel a joint is added: 1 where it was found
    place: bool = False  # whether body_across and body_down are added: where the middle is from the image's corner, in the same unit
    name: ClassVar[str] = "normalise_pose"

    def __post_init__(self) -> None:
        super().__post_init__()
        if {self.width > 0, self.height > 0} != {self.by == "image"}:
            raise FormatError('normalise_pose: width and height are those of the image, needed with by = "image" alone')
        if self.by == "image" and (self.place or self.limit):
            raise FormatError("normalise_pose: limit and place are of what is relative to the body")

    def output(self, inputs: Mapping[str, Format]) -> Format:
        fmt = only(inputs)
        joints = Joints(self.name, fmt.channels)
        if len(fmt.shape) != 1:
            raise FormatError(f"{self.name}: `{fmt.stream}` has {fmt.shape} a sample, expected one number a channel")
        at = {column for pair in joints.at.values() for column in pair}
        units = tuple("" if i in at else unit for i, unit in enumerate(fmt.units))
        added = tuple(f"{name}_found" for name in joints.names) if self.found else ()
        added += ("body_across", "body_down") if self.place else ()
        return with_more(self.name, replace(fmt, units=units), added, ("",) * len(added))

    def apply(self, data: Array, fmt: Format) -> Array:
        joints, width = Joints(self.name, fmt.channels), data.shape[-1]
        x, y, found = joints.places(data)
        added = self.found * len(joints.names) + 2 * self.place
        out = np.empty((*data.shape[:-1], width + added), float_of(self.name, fmt))
        out[..., :width] = data
        if self.by == "image":
            x, y = x / self.width, y / self.height
        else:
            x, y, *place = (self._limited(values) for values in _of_the_body(joints, x, y, found, self.by))
            if self.place:
                out[..., -2], out[..., -1] = place
        joints.put(out, x, y, found)
        if self.found:
            out[..., width : width + len(joints.names)] = found
        return out

    def _limited(self, values: Real) -> Real:
        return np.clip(values, -self.limit, self.limit) if self.limit else values


def _of_the_body(joints: Joints, x: Real, y: Real, found: Bools, by: str) -> tuple[Real, ...]:
    """Joints less the middle of hips or shoulders, by the torso's length or the spread of all (their root mean square distance from their
    own middle), and that middle by it. What rests on joints that were not found is the middle, and the spread, of those that were."""
    hips, shoulders = (joints.among(*(side + part for side in _SIDES)) for part in ("hip", "shoulder"))
    every = range(len(joints.names))
    hip_x, hip_y, hip = _middle(x, y, found, hips)
    top_x, top_y, top = _middle(x, y, found, shoulders)
    all_x, all_y, _ = _middle(x, y, found, every)
    square, _, _ = _middle((x - all_x[..., None]) ** 2 + (y - all_y[..., None]) ** 2, y, found, every)
    size = np.sqrt(square)
    if by == "torso":
        size = np.where(hip & top, np.hypot(top_x - hip_x, top_y - hip_y), size)
        centre_x, centre_y = np.where(hip, hip_x, all_x), np.where(hip, hip_y, all_y)
    else:
        centre_x, centre_y = np.where(top, top_x, all_x), np.where(top, top_y, all_y)
    size = np.where(size > 0, size, 1.0)
    x, y = ((values - centre[..., None]) / size[..., None] for values, centre in ((x, centre_x), (y, centre_y)))
    return x, y, centre_x / size, centre_y / size


def _middle(x: Real, y: Real, found: Bools, at: Sequence[int]) -> tuple[Real, Real, Bools]:
    """Mean x and y of those of some joints that were found, and whether any was: one after the other, whatever comes at once (law 1)."""
    sum_x, sum_y, count = np.zeros(x.shape[:-1]), np.zeros(x.shape[:-1]), np.zeros(x.shape[:-1])
    for i in at:
        sum_x += np.where(found[..., i], x[..., i], 0)
        sum_y += np.where(found[..., i], y[..., i], 0)
        count += found[..., i]
    return sum_x / np.maximum(count, 1), sum_y / np.maximum(count, 1), np.asarray(count > 0)


@dataclass(frozen=True)
class OneEuro(SignalSpec):
    """The One Euro filter on each coordinate: smooth while a joint rests, quick while it moves.

    References
    ----------
    Casiez, Roussel and Vogel, 1 € Filter (CHI 2012), algorithm 1. A joint that is found again begins anew.
    """

    min_cutoff_hz: Positive = 1.0
    beta: Amount = 0.0  # by how much the cutoff rises with the speed: Hz for one unit a second
    speed_cutoff_hz: Positive = 1.0
    name: ClassVar[str] = "one_euro"

    def line(self, fmt: Format) -> Line:
        return OneEuroLine(self, Joints(self.name, self.channels or fmt.channels), float(fmt.rate))


class OneEuroLine(Line):
    """Line of :class:`OneEuro`."""

    arrays: ClassVar[tuple[str, ...]] = ("place", "speed")

    def __init__(self, spec: OneEuro, joints: Joints, rate: float) -> None:
        self._spec, self._joints, self._rate = spec, joints, rate
        self.place: Real = np.full((2, len(joints.names)), np.nan)  # x and y, smoothed; NaN: not found yet
        self.speed: Real = np.zeros((2, len(joints.names)))

    def _share(self, cutoff_hz: float | Real) -> float | Real:
        return 1 / (1 + self._rate / (2 * np.pi * cutoff_hz))

    def push(self, rows: Real) -> Real:
        out, (x, y, found) = rows.copy(), self._joints.places(rows)
        for i, place in enumerate(np.stack((x, y), axis=1)):  # (2, joints)
            begins = np.isnan(self.place)
            before = np.where(begins, place, self.place)
            speed = self.speed + self._share(self._spec.speed_cutoff_hz) * ((place - before) * self._rate - self.speed)
            cutoff_hz = self._spec.min_cutoff_hz + self._spec.beta * np.abs(speed)
            smooth = before + self._share(cutoff_hz) * (place - before)
            self.place, self.speed = np.where(found[i], smooth, np.nan), np.where(found[i], speed, 0)
            x[i], y[i] = smooth
        self._joints.put(out, x, y, found)
        return out


@dataclass(frozen=True)
class JointFeatures(SignalSpec):
    """Adds angles at elbows, shoulders, hips and knees, 0 to pi, and how fast joints move, a second; 0 where a joint is not found."""

    angles: bool = True
    velocities: bool = False
    name: ClassVar[str] = "joint_features"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels or self.into or not (self.angles or self.velocities):
            raise FormatError(
                "joint_features: takes all channels, and adds angles, velocities or both under names of their own"
            )

    def results(self, names: tuple[str, ...], units: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        joints = Joints(self.name, names)
        added = [f"{own[1]}_angle" for own in self.corners(joints)]
        more = ["rad"] * len(added)
        if self.velocities:
            added += [f"{joint}_{axis}_velocity" for joint in joints.names for axis in "xy"]
            of_each = [units[column] for pair in joints.columns for column in pair] if units else []
            more += [f"{unit}/s" if unit else "" for unit in of_each]
        if not added:
            raise FormatError(f"joint_features: no angle between the joints {', '.join(joints.names)}")
        return (*names, *added), (*units, *more) if units else ()

    def corners(self, joints: Joints) -> list[tuple[str, ...]]:
        """The three joints of each angle."""
        named = [tuple(side + part for part in parts) for parts in _ANGLES for side in _SIDES]
        return [names for names in named if self.angles and joints.at.keys() >= set(names)]

    def line(self, fmt: Format) -> Line:
        return FeaturesLine(self, Joints(self.name, fmt.channels), float(fmt.rate))


class FeaturesLine(Line):
    """Line of :class:`JointFeatures`."""

    arrays: ClassVar[tuple[str, ...]] = ("last",)

    def __init__(self, spec: JointFeatures, joints: Joints, rate: float) -> None:
        self._spec, self._joints, self._rate = spec, joints, rate
        self._corners = [joints.among(*names) for names in spec.corners(joints)]
        self.last: Real = np.empty((0, 0))  # (1, channels): the row before

    def push(self, rows: Real) -> Real:
        x, y, found = self._joints.places(
            np.concatenate((self.last, rows)) if len(self.last) else rows[[0, *range(len(rows))]]
        )
        self.last = rows[-1:].copy()
        added = []
        for a, b, c in self._corners:
            (ax, ay), (cx, cy) = ((x[1:, i] - x[1:, b], y[1:, i] - y[1:, b]) for i in (a, c))
            angle = np.arctan2(np.abs(ax * cy - ay * cx), ax * cx + ay * cy)
            added.append(np.where(found[1:, a] & found[1:, b] & found[1:, c], angle, 0))
        for i in range(x.shape[1]) if self._spec.velocities else ():
            both = found[1:, i] & found[:-1, i]
            added += [np.where(both, np.diff(values[:, i]) * self._rate, 0) for values in (x, y)]
        return np.concatenate((rows, np.stack(added, axis=1)), axis=1)


@dataclass(frozen=True)
class EquallySpaced(Spec):
    """So many of a window's frames, equally spaced from its first to its last; or with a `stride` every so many, from its first."""

    frames: Count = 9
    stride: Annotated[int, Rules(minimum=0)] = 0
    name: ClassVar[str] = "equally_spaced"
    before_window: ClassVar[bool] = False

    def build(self) -> Stage:
        raise TypeError("equally_spaced stands behind the window")

    def output(self, inputs: Mapping[str, Format]) -> Format:
        fmt = only(inputs)
        if fmt.rows is None or (least := (self.frames - 1) * (self.stride or 1) + 1) > fmt.rows:
            raise FormatError(
                f"equally_spaced: expected a window of at least {least} rows, `{fmt.stream}` has {fmt.rows or 'none'}; "
                "make the window longer, or take fewer frames"
            )
        apart = fmt.step * (Fraction(self.stride) or Fraction(fmt.rows - 1, max(self.frames - 1, 1)) or 1)
        # The last one takes all that is left of the window.
        span = int((fmt.rows - 1) * fmt.step + fmt.span - (self.frames - 1) * apart)
        return replace(fmt, step=apart, span=span)

    def apply(self, data: Array, fmt: Format) -> Array:
        last = max(len(data) - 1, 0)
        places = np.arange(self.frames) * (self.stride or last / max(self.frames - 1, 1))
        chosen: Array = data[np.minimum(np.rint(places).astype(int), last)]
        return chosen
