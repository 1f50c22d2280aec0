"""Small steps. In: samples, columns or windows of them. Out: the same, fewer, scaled, in logarithms, standardised, masked.

In a window of several inputs NaN says that one of them is not there; each number that comes out is NaN where what it rests on is, until
`mask` makes zeros of it.

`docs/steps.md` tells what each parameter means.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kymo.processors.spec import MapSpec, only
from kymo.streams.chunk import Array, Format, Window
from kymo.streams.errors import FormatError
from kymo.streams.schema import Amount, Name, Rules

Real = NDArray[Any]
FLOATS = ("float32", "float64")
_SMALLEST = float(np.finfo(np.float32).tiny)
#: A number that is above 0 in float32, too.
_Seen = Annotated[float, Rules(minimum=_SMALLEST, expected="a number above 0")]
_FINITE = Rules(expected="a finite number or a list of them")
_Numbers = Annotated[float, _FINITE] | Annotated[tuple[float, ...], _FINITE]
ChannelNames = Annotated[
    tuple[str, ...], Rules(minItems=1, uniqueItems=True, expected="a list of at least one name, none twice")
]


@dataclass(frozen=True)
class Select(MapSpec):
    """Takes channels by name, in the order of these names."""

    channels: ChannelNames = ()
    name: ClassVar[str] = "select"

    def output(self, inputs: Mapping[str, Format]) -> Format:
        fmt = only(inputs)
        at = columns_of(self.name, self.channels, fmt)
        units = tuple(fmt.units[i] for i in at) if fmt.units else ()
        return replace(fmt, channels=self.channels, units=units, shape=(*fmt.shape[:-1], len(at)))

    def apply(self, data: Array, fmt: Format) -> Array:
        return data[..., columns_of(self.name, self.channels, fmt)]


@dataclass(frozen=True)
class Anew(MapSpec):
    """Takes out a channel that is above 0 where something begins, such as a count of tags: a stateful model begins anew there."""

    channel: Name = ""
    name: ClassVar[str] = "anew"
    before_window: ClassVar[bool] = False

    def output(self, inputs: Mapping[str, Format]) -> Format:
        fmt = only(inputs)
        columns_of(self.name, (self.channel,), fmt)
        return self._rest(fmt).output(inputs)

    def _rest(self, fmt: Format) -> Select:
        return Select(tuple(channel for channel in fmt.channels if channel != self.channel))

    def apply(self, data: Array, fmt: Format) -> Array:
        return self._rest(fmt).apply(data, fmt)

    def newest(self, data: Array, fmt: Format) -> int:
        """The last row at which something begins; -1 where there is none."""
        marks = np.greater(data[..., columns_of(self.name, (self.channel,), fmt)], 0)
        return int(np.flatnonzero(marks.any(axis=tuple(range(1, marks.ndim))))[-1:].max(initial=-1))


@dataclass(frozen=True)
class Scale(MapSpec):
    """``x * factor + offset``; whole numbers become float32."""

    factor: _Numbers = 1.0  # one for all channels, or one a channel, as the offset
    offset: _Numbers = 0.0
    units: tuple[str, ...] = ()  # of the result; none where they are unknown
    name: ClassVar[str] = "scale"

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("factor", "offset"):
            value = getattr(self, field)
            object.__setattr__(self, field, tuple(map(float, value)) if isinstance(value, tuple) else float(value))

    def output(self, inputs: Mapping[str, Format]) -> Format:
        fmt = only(inputs)
        for field, value in (("factor", self.factor), ("offset", self.offset), ("units", self.units)):
            if isinstance(value, tuple) and len(value) != len(fmt.channels) and (value or field != "units"):
                raise FormatError(
                    f"scale: {len(value)} numbers in {field}, expected one for each of {', '.join(fmt.channels)}"
                )
        return replace(fmt, units=self.units, dtype=float_of(self.name, fmt))

    def apply(self, data: Array, fmt: Format) -> Array:
        dtype = float_of(self.name, fmt)
        out: Real = np.empty_like(data, dtype)  # in the input's memory order
        np.multiply(data, np.asarray(self.factor, dtype), out=out, dtype=dtype)
        out += np.asarray(self.offset, dtype)
        return out


@dataclass(frozen=True)
class Log(MapSpec):
    """``log(max(x, floor) + eps)``, natural; with `db` ten times the decimal one, as for powers."""

    floor: Amount = 0.0  # in the input's unit, as eps; not both may be 0
    eps: Amount = 1e-10
    db: bool = False
    name: ClassVar[str] = "log"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.floor + self.eps < _SMALLEST:
            raise FormatError(
                "log: floor and eps are both 0 (or too small for float32), expected one above: log(0) is not a number"
            )

    def output(self, inputs: Mapping[str, Format]) -> Format:
        fmt = only(inputs)
        return replace(fmt, units=("dB",) * len(fmt.channels) if self.db else (), dtype=float_of(self.name, fmt))

    def apply(self, data: Array, fmt: Format) -> Array:
        out: Real = np.maximum(data, self.floor, dtype=float_of(self.name, fmt))
        if self.eps:
            out += self.eps
        if self.db:
            np.log10(out, out=out)
            out *= 10
            return out
        np.log(out, out=out)
        return out


@dataclass(frozen=True)
class Decibels(MapSpec):
    """Powers of a window in decibels below its largest one, scaled to -1 to 1.

    ``y = 10 * log10(max(x, amin) / max(largest, amin))``, at least ``-top_db``, as ``librosa.power_to_db(x, ref=np.max)`` with
    ``amin`` 1e-10 and ``top_db`` 80; with ``scaled`` ``1 + 2 * y / top_db``.
    """

    top_db: _Seen = 80.0
    amin: _Seen = 1e-10  # in the input's unit
    per: Annotated[str, Rules(enum=("channel", "window"))] = "channel"  # what the largest is of
    scaled: bool = True
    name: ClassVar[str] = "decibels"
    before_window: ClassVar[bool] = False

    def output(self, inputs: Mapping[str, Format]) -> Format:
        fmt = only(inputs)
        units = () if self.scaled else ("dB",) * len(fmt.channels)
        return replace(fmt, units=units, dtype=float_of(self.name, fmt))

    def apply(self, data: Array, fmt: Format) -> Array:
        out = decibels(data, self.amin, float_of(self.name, fmt))
        if out.size:
            # Of what is there: `fmax` passes NaN over.
            out -= np.fmax.reduce(out, axis=tuple(range(out.ndim - 1)) if self.per == "channel" else None)
        np.maximum(out, -self.top_db, out=out)
        if self.scaled:
            out *= 2 / self.top_db
            out += 1
        return out


@dataclass(frozen=True)
class Standardise(MapSpec):
    """``(x - mean) / std``, with numbers learned from the training windows."""

    mean: tuple[
        Any, ...
    ] = ()  # one a channel, or for columns (bins, channels) as nested tuples; empty before :meth:`fit`
    std: tuple[Any, ...] = ()
    per: Annotated[str, Rules(enum=("channel", "bin"))] = "channel"  # what :meth:`fit` learns a number for
    name: ClassVar[str] = "standardise"
    learned: ClassVar[frozenset[str]] = frozenset({"mean", "std"})
    before_window: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            mean, std = np.array(self.mean, np.float64), np.array(self.std, np.float64)
        except (TypeError, ValueError):
            raise FormatError("standardise: mean and std hold something else than numbers") from None
        if mean.shape != std.shape:
            raise FormatError(f"standardise: mean is {mean.shape} and std {std.shape}, expected equal shapes")
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
            raise FormatError("standardise: expected finite numbers in mean and std, and std above 0")

    def output(self, inputs: Mapping[str, Format]) -> Format:
        """The input's format, without units; before :meth:`fit`, too, so that a chain can be checked before it is trained."""
        fmt = only(inputs)
        shape = np.shape(self.mean)
        if self.mean and shape not in ((len(fmt.channels),), fmt.shape):
            raise FormatError(f"standardise: learned numbers are {shape}, `{fmt.stream}` has {fmt.shape}; train again")
        return replace(fmt, units=(), dtype=float_of(self.name, fmt))

    def apply(self, data: Array, fmt: Format) -> Array:
        if not self.mean:
            raise FormatError("standardise: has not learned mean and std yet; train first (`kymo train`)")
        dtype = float_of(self.name, fmt)
        out: Real = np.empty_like(data, dtype)  # in the input's memory order
        np.subtract(data, np.asarray(self.mean, dtype), out=out, dtype=dtype)
        out *= 1 / np.asarray(self.std, dtype)
        return out

    def fit(self, windows: Iterable[Window]) -> Standardise:
        """A Spec that has learned mean and standard deviation, from one pass over `windows`.

        Sums are kept in float64, window by window, by the update of Chan, Golub and LeVeque (The American Statistician
        37 (1983) 242-247). What does not vary at all keeps its size (std 1). What is not there, NaN, is passed over.
        """
        count: Any = 0  # where an input is missing, an array as `mean` is
        mean, squares, channels = np.zeros(()), np.zeros(()), tuple[str, ...]()
        for window in windows:
            data, channels = np.asarray(window.data, np.float64), window.header.format.channels
            rows = data.reshape(-1, data.shape[-1]) if self.per == "channel" else data
            here, n, rows = mean_of_what_is_there(rows)
            total = count + n
            delta = here - mean
            squares = squares + ((rows - here) ** 2).sum(0) + delta**2 * (count * n / np.maximum(total, 1))
            mean = mean + delta * (n / np.maximum(total, 1))
            count = total
        never = [name for i, name in enumerate(channels) if np.ndim(count) and not count[..., i].all()]
        check_learned(self.name, np.max(count), squares, never)
        std = np.sqrt(squares / count)
        # Less than what rounding alone makes of a constant counts as no variation.
        std = np.where(std > 1e-12 * np.abs(mean), std, 1.0)
        return replace(self, mean=nested(mean), std=nested(std))


def mean_of_what_is_there(rows: Real) -> tuple[Real, Any, Real]:
    """The mean of what is not NaN, how much that is (a number where it is all), and rows with the mean where nothing is."""
    there = ~np.isnan(rows)
    if there.all():
        return rows.mean(0), len(rows), rows
    count = there.sum(0)
    mean = np.where(there, rows, 0).sum(0) / np.maximum(count, 1)
    return mean, count, np.where(there, rows, mean)


@dataclass(frozen=True)
class Mask(MapSpec):
    """Makes zeros of what is missing of a join's inputs, and adds a channel an input: 1 where it is there, 0 where it is not.

    In a row an input is there if none of its numbers is NaN. Which channels are whose, a recipe fills in.
    """

    inputs: tuple[str, ...] = ()  # streams, in the order of the channels that are added: ``mask.STREAM``
    groups: tuple[tuple[str, ...], ...] = ()  # the channels of each
    name: ClassVar[str] = "mask"
    before_window: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.inputs) != len(self.groups):
            raise FormatError(f"mask: {len(self.inputs)} inputs, but channels of {len(self.groups)}")

    def behind(self, inputs: Mapping[str, Sequence[str]], fmt: Format) -> Mask:
        """The same for a join of `inputs` (channels by stream), behind steps that give `fmt`, where `a.mean` counts as `a`."""
        known = {name for names in inputs.values() for name in names}
        own = {name: name if name in known else name.rpartition(".")[0] for name in fmt.channels}
        kept = {stream: tuple(c for name in names for c in own if own[c] == name) for stream, names in inputs.items()}
        kept = {stream: names for stream, names in kept.items() if names}
        return replace(self, inputs=tuple(kept), groups=tuple(kept.values()))

    @property
    def added(self) -> tuple[str, ...]:
        """Names of the channels that say what is there."""
        return tuple(f"mask.{stream}" for stream in self.inputs)

    def output(self, inputs: Mapping[str, Format]) -> Format:
        fmt = only(inputs)
        if not self.inputs:
            raise FormatError(
                "mask: no channel of a [join] comes to it; it stands behind several [[input]]s, before steps that mix them"
            )
        for names in self.groups:
            columns_of(self.name, names, fmt)
        return with_more(self.name, fmt, self.added, ("",) * len(self.added))

    def apply(self, data: Array, fmt: Format) -> Array:
        width = data.shape[-1]
        out: Real = np.empty((*data.shape[:-1], width + len(self.inputs)), float_of(self.name, fmt))
        out[..., :width] = data
        absent = np.isnan(out[..., :width])
        inside = tuple(range(data.ndim - len(fmt.shape), data.ndim))
        for number, names in enumerate(self.groups):
            at = columns_of(self.name, names, fmt)
            gone = np.asarray(absent[..., at].any(axis=inside, keepdims=True))  # of each row
            absent[..., at] |= gone
            out[..., width + number] = ~gone[..., 0]
        out[..., :width][absent] = 0
        return out


def with_more(step: str, fmt: Format, channels: tuple[str, ...], units: tuple[str, ...]) -> Format:
    """A format with channels behind its own; whole numbers become float32."""
    if present := sorted(set(fmt.channels) & set(channels)):
        raise FormatError(f"{step}: `{fmt.stream}` has a channel {present[0]} already")
    return replace(
        fmt,
        channels=(*fmt.channels, *channels),
        units=(*fmt.units, *units) if fmt.units else (),
        shape=(*fmt.shape[:-1], len(fmt.channels) + len(channels)),
        dtype=float_of(step, fmt),
    )


def check_learned(step: str, count: int, numbers: Real, never: Sequence[str] = ()) -> None:
    """Refuse what was learned from so many windows or rows, where there was none, a number is not finite or a channel was `never` there."""
    if never:
        raise FormatError(
            f"{step}: {', '.join(never)} missing in all windows that are learned from; add recordings with it, or leave its "
            f"[[input]] out"
        )
    if not count:
        raise FormatError(f"{step}: nothing to learn from, expected at least one window")
    if not np.isfinite(numbers).all():
        raise FormatError(f"{step}: a value in the windows is not finite, expected numbers only")


def nested(values: Any) -> Any:
    """An array's numbers as nested tuples."""
    return tuple(map(nested, values)) if np.ndim(values) else float(values)


def decibels(powers: Array, least: float, dtype: Any) -> Real:
    """``10 * log10(max(powers, least))``, in the memory order of `powers`."""
    out: Real = np.maximum(powers, least, dtype=dtype)
    np.log10(out, out=out)
    out *= 10
    return out


def check_whole(step: str, field: str, value: int | None, low: int, high: int | None = None) -> None:
    """Refuse a parameter that is no whole number from `low` to `high`; None stands for another parameter's value."""
    if value is not None and (value < low or (high is not None and value > high)):
        expected = f"{low} to {high}" if high is not None else f"at least {low}"
        raise FormatError(f"{step}: {field} {value!r}, expected a whole number, {expected}")


def columns_of(step: str, names: tuple[str, ...], fmt: Format) -> list[int]:
    """Where channels stand in a sample."""
    if fmt.dtype == "jpeg":
        raise FormatError(f"{step}: `{fmt.stream}` holds jpeg images, expected numbers")
    absent = [name for name in names if name not in fmt.channels]
    if absent:
        has = ", ".join(fmt.channels)
        raise FormatError(f"{step}: `{fmt.stream}` has no channel {', '.join(absent)}; it has {has}")
    return [fmt.channels.index(name) for name in names]


def float_of(step: str, fmt: Format) -> str:
    """The dtype that a step computes `fmt` in: as it is, float32 for whole numbers."""
    if fmt.dtype == "jpeg":
        raise FormatError(f"{step}: `{fmt.stream}` holds jpeg images, expected numbers")
    return fmt.dtype if fmt.dtype in FLOATS else "float32"
