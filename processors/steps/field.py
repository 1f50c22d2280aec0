"""The magnetic field beside gravity. In: samples ``(n, channels)`` of an accelerometer and a magnetometer, or windows of them.
Out: the same with channels that do not turn with the sensor, in the magnetometer's unit (an angle in rad); deviations from usual.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kymo.processors.spec import MapSpec, only
from kymo.processors.steps.maps import (
    ChannelNames,
    check_learned,
    columns_of,
    float_of,
    mean_of_what_is_there,
    with_more,
)
from kymo.streams.chunk import Array, Format, Window
from kymo.streams.errors import FormatError
from kymo.streams.schema import Rules

Real = NDArray[Any]
_Axes = Annotated[tuple[str, str, str], Rules(expected="the names of three channels")]
_UNSET: Any = ()  # no three channels, so refused
DERIVED = ("field", "vertical", "horizontal", "inclination")
JOINT = "deviation"


@dataclass(frozen=True)
class Field(MapSpec):
    """Adds what of a magnetic field stays the same however the sensor is turned.

    Behind the input's channels come ``field``, its length; ``vertical``, its component along gravity; ``horizontal``, what is
    left across; ``inclination``, the angle between it and the plane across gravity, rad. Gravity is the accelerometer's
    direction at the sample, so the sensor should not be shaken much. Where the acceleration is 0, ``vertical`` is 0.

    References
    ----------
    The elements of the field: S. Chapman and J. Bartels, Geomagnetism (1940), chapter 1.
    """

    acc: _Axes = _UNSET  # in the same axes as the magnetometer's
    mag: _Axes = _UNSET
    name: ClassVar[str] = "field"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len({*self.acc, *self.mag}) < 6:
            raise FormatError(f"field: {', '.join((*self.acc, *self.mag))}: one stands twice")

    def output(self, inputs: Mapping[str, Format]) -> Format:
        fmt = only(inputs)
        columns_of(self.name, (*self.acc, *self.mag), fmt)
        unit = _one_unit(self.name, self.mag, fmt)
        return with_more(self.name, fmt, DERIVED, (unit, unit, unit, "rad"))

    def apply(self, data: Array, fmt: Format) -> Array:
        values: Real = data.astype(float_of(self.name, fmt), copy=False)
        acc = [values[..., i] for i in columns_of(self.name, self.acc, fmt)]
        mag = [values[..., i] for i in columns_of(self.name, self.mag, fmt)]
        # Axis by axis: what numpy's own sums round to may depend on how many rows there are (law 1).
        gravity = np.sqrt(acc[0] * acc[0] + acc[1] * acc[1] + acc[2] * acc[2])
        along = mag[0] * acc[0] + mag[1] * acc[1] + mag[2] * acc[2]
        square = mag[0] * mag[0] + mag[1] * mag[1] + mag[2] * mag[2]
        vertical = np.divide(along, gravity, out=np.zeros_like(along), where=gravity != 0)
        horizontal = np.sqrt(np.maximum(square - vertical * vertical, 0))
        out: Real = np.empty((*values.shape[:-1], values.shape[-1] + len(DERIVED)), values.dtype)
        out[..., : values.shape[-1]] = values
        for i, column in enumerate((np.sqrt(square), vertical, horizontal, np.arctan2(vertical, horizontal))):
            out[..., values.shape[-1] + i] = column
        return out


@dataclass(frozen=True)
class Deviation(MapSpec):
    """Takes from channels the value that they usually have, learned from the training windows.

    What is usual is the most frequent mean of a window, found by halving: a constant with rare or one-sided exceptions, such as
    the length of the earth's field among distortions, is met where a mean would be drawn aside. If `joint` asks for it, a channel
    ``deviation`` comes behind the others: how far some of them are off together, the root of the sum of their squares.

    References
    ----------
    The half-sample mode: D. R. Bickel and R. Frühwirth, Computational Statistics & Data Analysis 50 (2006) 3500-3530.
    """

    channels: ChannelNames = ()  # the others stay as they are
    joint: tuple[
        str, ...
    ] = ()  # those of `channels`, of one unit, that ``deviation`` is made of; none for no such channel
    usual: tuple[float, ...] = ()  # of each of `channels`, in the input's units; empty before :meth:`fit`
    name: ClassVar[str] = "deviation"
    learned: ClassVar[frozenset[str]] = frozenset({"usual"})
    before_window: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not set(self.joint) <= set(self.channels) or len(set(self.joint)) < len(self.joint):
            raise FormatError(f"deviation: joint {self.joint!r}, expected some of channels, none twice")
        if self.usual and len(self.usual) != len(self.channels):
            raise FormatError(f"deviation: {len(self.usual)} numbers for {len(self.channels)} channels; train again")

    def output(self, inputs: Mapping[str, Format]) -> Format:
        fmt = only(inputs)
        columns_of(self.name, self.channels, fmt)
        if not self.joint:
            return replace(fmt, dtype=float_of(self.name, fmt))
        return with_more(self.name, fmt, (JOINT,), (_one_unit(self.name, self.joint, fmt),))

    def apply(self, data: Array, fmt: Format) -> Array:
        if not self.usual:
            raise FormatError("deviation: has not learned what is usual yet; train first (`kymo train`)")
        out: Real = np.array(data, float_of(self.name, fmt))
        for i, usual in zip(columns_of(self.name, self.channels, fmt), self.usual, strict=True):
            out[..., i] -= out.dtype.type(usual)
        if not self.joint:
            return out
        squares = [np.square(out[..., i]) for i in columns_of(self.name, self.joint, fmt)]
        together = np.sqrt(np.add.reduce(squares))
        return np.concatenate([out, together[..., np.newaxis]], -1)

    def fit(self, windows: Iterable[Window]) -> Deviation:
        """A Spec that has learned what is usual, from one pass over `windows`."""
        rows_of_means = []
        for window in windows:
            at = columns_of(self.name, self.channels, window.header.format)
            rows: Real = np.asarray(window.data, np.float64).reshape(-1, window.data.shape[-1])
            mean, count, _ = mean_of_what_is_there(rows[:, at])
            rows_of_means.append(np.where(count, mean, np.nan))
        means = [column[~np.isnan(column)] for column in np.array(rows_of_means).reshape(-1, len(self.channels)).T]
        never = [name for name, column in zip(self.channels, means, strict=True) if rows_of_means and not len(column)]
        check_learned(self.name, len(rows_of_means), np.concatenate(means), never)
        return replace(self, usual=tuple(float(half_sample_mode(column)) for column in means))


def _one_unit(step: str, channels: tuple[str, ...], fmt: Format) -> str:
    """The unit that channels share; empty where it is unknown."""
    units = {fmt.units[i] for i in columns_of(step, channels, fmt)} if fmt.units else {""}
    if len(units) > 1:
        raise FormatError(f"{step}: {', '.join(channels)} are in {', '.join(sorted(units))}, expected one unit")
    return units.pop()


def half_sample_mode(values: Real) -> float:
    """Where values lie closest together: the narrowest half of them, of that the narrowest half, and so on."""
    densest: Real = np.sort(values)
    while len(densest) > 2:
        size = -(-len(densest) // 2) if len(densest) > 3 else 2
        widths = densest[size - 1 :] - densest[: len(densest) - size + 1]
        first = int(np.argmin(widths))
        densest = densest[first : first + size]
    return float(densest.mean())
