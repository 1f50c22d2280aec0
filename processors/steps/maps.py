"""Small steps. In: samples, columns or windows of them. Out: the same, fewer, scaled, in logarithms, standardised."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kymo.processors.spec import MapSpec, only
from kymo.streams.chunk import Array, Format, Window
from kymo.streams.errors import FormatError
from kymo.streams.schema import Amount, Rules

Real = NDArray[Any]
FLOATS = ("float32", "float64")
#: A number that is above 0 in float32, too.
_SEEN = Rules(minimum=float(np.finfo(np.float32).tiny), expected="a number above 0")


@dataclass(frozen=True)
class Select(MapSpec):
    """Takes channels by name.

    Parameters
    ----------
    channels : tuple of str
        Channels wanted, in this order; at least one, none twice.

    Raises
    ------
    FormatError
        If there is none, one stands twice, or the input lacks one.
    """

    channels: tuple[str, ...] = ()
    name: ClassVar[str] = "select"

    def __post_init__(self) -> None:
        names: Any = self.channels
        if isinstance(names, str) or not names or len(set(names)) != len(names):
            raise FormatError(f"select: channels {names!r}, expected a list of at least one name, none twice")
        object.__setattr__(self, "channels", tuple(names))

    def output(self, inputs: Mapping[str, Format]) -> Format:
        """The wanted channels."""
        fmt = only(inputs)
        at = columns_of(self.name, self.channels, fmt)
        units = tuple(fmt.units[i] for i in at) if fmt.units else ()
        return replace(fmt, channels=self.channels, units=units, shape=(*fmt.shape[:-1], len(at)))

    def apply(self, data: Array, fmt: Format) -> Array:
        """``(n, ..., channels)`` to ``(n, ..., wanted channels)``."""
        return data[..., columns_of(self.name, self.channels, fmt)]


@dataclass(frozen=True)
class Scale(MapSpec):
    """``x * factor + offset``.

    Parameters
    ----------
    factor, offset : float or tuple of float
        One for all channels, or one a channel; finite.
    units : tuple of str
        Units of the result, one a channel; empty where unknown.

    Raises
    ------
    FormatError
        If a number is not finite, or their count is not that of the channels.
    """

    factor: Any = 1.0
    offset: Any = 0.0
    units: tuple[str, ...] = ()
    name: ClassVar[str] = "scale"

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", numbers(self.name, "factor", self.factor))
        object.__setattr__(self, "offset", numbers(self.name, "offset", self.offset))
        object.__setattr__(self, "units", tuple(self.units))

    def output(self, inputs: Mapping[str, Format]) -> Format:
        """The input's format with new units; whole numbers become float32."""
        fmt = only(inputs)
        for field, value in (("factor", self.factor), ("offset", self.offset), ("units", self.units)):
            if isinstance(value, tuple) and len(value) != len(fmt.channels) and (value or field != "units"):
                raise FormatError(
                    f"scale: {len(value)} numbers in {field}, expected one for each of {', '.join(fmt.channels)}"
                )
        return replace(fmt, units=self.units, dtype=float_of(self.name, fmt))

    def apply(self, data: Array, fmt: Format) -> Array:
        """``(n, ..., channels)`` to the same shape."""
        dtype = float_of(self.name, fmt)
        out: Real = np.empty_like(data, dtype)  # in the input's memory order
        np.multiply(data, np.asarray(self.factor, dtype), out=out, dtype=dtype)
        out += np.asarray(self.offset, dtype)
        return out


@dataclass(frozen=True)
class Log(MapSpec):
    """Logarithm, of values no smaller than a floor.

    ``log(max(x, floor) + eps)``, natural; with ``db`` ten times the decimal one.

    Parameters
    ----------
    floor : float
        Smallest value taken, at least 0. In the input's unit.
    eps : float
        Added before the logarithm, at least 0; floor and eps must not both be 0. In the input's unit.
    db : bool
        ``10 * log10`` instead, as for powers.

    Raises
    ------
    FormatError
        If floor or eps is negative or not finite, or both are 0.
    """

    floor: Amount = 0.0
    eps: Amount = 1e-10
    db: bool = False
    name: ClassVar[str] = "log"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.floor + self.eps < float(np.finfo(np.float32).tiny):
            raise FormatError(
                "log: floor and eps are both 0 (or too small for float32), expected one above: log(0) is not a number"
            )

    def output(self, inputs: Mapping[str, Format]) -> Format:
        """The input's format, in dB or without unit."""
        fmt = only(inputs)
        return replace(fmt, units=("dB",) * len(fmt.channels) if self.db else (), dtype=float_of(self.name, fmt))

    def apply(self, data: Array, fmt: Format) -> Array:
        """``(n, ...)`` to the same shape."""
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

    Parameters
    ----------
    top_db : float
        What lies more than this below the largest is raised to that, above 0.
    amin : float
        Smallest power taken, above 0. In the input's unit.
    per : str
        What the largest is of: each ``"channel"`` of the window, or the whole ``"window"``.
    scaled : bool
        Whether -top_db becomes -1, and the largest 1.

    Raises
    ------
    FormatError
        If top_db or amin is not above 0, or per is another word.
    """

    top_db: Annotated[float, _SEEN] = 80.0
    amin: Annotated[float, _SEEN] = 1e-10
    per: Annotated[str, Rules(enum=("channel", "window"))] = "channel"
    scaled: bool = True
    name: ClassVar[str] = "decibels"
    before_window: ClassVar[bool] = False

    def output(self, inputs: Mapping[str, Format]) -> Format:
        """The input's format, in dB or without unit."""
        fmt = only(inputs)
        units = () if self.scaled else ("dB",) * len(fmt.channels)
        return replace(fmt, units=units, dtype=float_of(self.name, fmt))

    def apply(self, data: Array, fmt: Format) -> Array:
        """``(n, ..., channels)`` to the same shape."""
        out: Real = np.maximum(data, self.amin, dtype=float_of(self.name, fmt))
        np.log10(out, out=out)
        out *= 10
        if out.size:
            out -= out.max(axis=tuple(range(out.ndim - 1)) if self.per == "channel" else None)
        np.maximum(out, -self.top_db, out=out)
        if self.scaled:
            out *= 2 / self.top_db
            out += 1
        return out


@dataclass(frozen=True)
class Standardise(MapSpec):
    """``(x - mean) / std``, with numbers learned from the training windows.

    Parameters
    ----------
    mean, std : tuple
        One a channel, or for columns ``(bins, channels)`` one a bin and channel as nested tuples; std is above 0.
        Empty before :meth:`fit`.
    per : str
        What :meth:`fit` learns a number for: ``"channel"``, or ``"bin"`` for every bin of every channel.

    Raises
    ------
    FormatError
        If mean and std do not match, std is not above 0, the input does not fit them, or nothing was learned yet.
    """

    mean: tuple[Any, ...] = ()
    std: tuple[Any, ...] = ()
    per: Annotated[str, Rules(enum=("channel", "bin"))] = "channel"
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
        """The input's format, without units.

        Before :meth:`fit` this tells the format too, so that a chain can be checked before it is trained.
        """
        fmt = only(inputs)
        shape = np.shape(self.mean)
        if self.mean and shape not in ((len(fmt.channels),), fmt.shape):
            raise FormatError(f"standardise: learned numbers are {shape}, `{fmt.stream}` has {fmt.shape}; train again")
        return replace(fmt, units=(), dtype=float_of(self.name, fmt))

    def apply(self, data: Array, fmt: Format) -> Array:
        """``(n, ...)`` to the same shape."""
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
        37 (1983) 242-247). What does not vary at all keeps its size (std 1).

        Parameters
        ----------
        windows : iterable of Window
            At least one; of one format.

        Raises
        ------
        FormatError
            If there is no window, or a value is not finite.
        """
        count, mean, squares = 0, np.zeros(()), np.zeros(())
        for window in windows:
            data = np.asarray(window.data, np.float64)
            rows = data.reshape(-1, data.shape[-1]) if self.per == "channel" else data
            here, n = rows.mean(0), len(rows)
            delta = here - mean
            squares = squares + ((rows - here) ** 2).sum(0) + delta**2 * (count * n / (count + n))
            mean = mean + delta * (n / (count + n))
            count += n
        if not count:
            raise FormatError("standardise: nothing to learn from, expected at least one window")
        if not np.isfinite(squares).all():
            raise FormatError("standardise: a value in the windows is not finite, expected numbers only")
        std = np.sqrt(squares / count)
        # Less than what rounding alone makes of a constant counts as no variation.
        std = np.where(std > 1e-12 * np.abs(mean), std, 1.0)
        return replace(self, mean=nested(mean), std=nested(std))


def nested(values: Array) -> Any:
    """An array's numbers as nested tuples."""
    listed = values.tolist()
    return tuple(nested(np.asarray(v)) for v in listed) if values.ndim > 1 else tuple(listed)


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def numbers(step: str, field: str, value: Any) -> float | tuple[float, ...]:
    """A number or a tuple of them, as floats."""
    several = isinstance(value, list | tuple)
    for v in value if several else (value,):
        if not is_number(v):
            raise FormatError(f"{step}: {field} {value!r}, expected a finite number or a list of them")
    return tuple(float(v) for v in value) if several else float(value)


def whole_number(step: str, field: str, value: Any, low: int, high: int | None = None) -> None:
    """Check that a parameter is a whole number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        expected = f"{low} to {high}" if high is not None else f"at least {low}"
        raise FormatError(f"{step}: {field} {value!r}, expected a whole number, {expected}")


def columns_of(step: str, names: tuple[str, ...], fmt: Format) -> list[int]:
    """Where channels stand in a sample."""
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
