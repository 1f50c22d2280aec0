"""Kinds of variation of windows. In: ``(n, time, …, channels)`` float32, a random generator. Out: the same shape, varied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from streams.chunk import Format
from streams.errors import TrainingError

Random = np.random.Generator
Windows = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Variation:
    """One kind of variation."""

    p: float = 0.5  # probability that a window is varied, 0 to 1
    kind: ClassVar[str]

    def __post_init__(self) -> None:
        self._check("p", self.p, 0, 1)

    def _check(self, name: str, value: Any, low: float, high: float) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise TrainingError(
                f"[[train.augment]] {self.kind}: {name} = {value!r}, expected a number from {low:g} to {high:g}"
            )

    def fit(self, fmt: Format) -> Callable[[Windows, Random], Windows]:
        """What varies windows of `fmt`."""
        return self.vary

    def vary(self, windows: Windows, random: Random) -> Windows:
        """All of the windows, varied."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Jitter(Variation):
    """Noise, normal, of `share` times the standard deviation that the channel has in the window."""

    share: float = 0.05
    kind: ClassVar[str] = "jitter"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("share", self.share, 0, 10)

    def vary(self, windows: Windows, random: Random) -> Windows:
        """See :meth:`Variation.vary`."""
        size = windows.std(axis=tuple(range(1, windows.ndim - 1)), keepdims=True, dtype=np.float32)
        noisy: Windows = windows + np.float32(self.share) * size * random.standard_normal(windows.shape, np.float32)
        return noisy


@dataclass(frozen=True, kw_only=True)
class Scale(Variation):
    """A factor a channel, its logarithm uniform from -log(1 + share) to log(1 + share)."""

    share: float = 0.1
    kind: ClassVar[str] = "scale"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("share", self.share, 0, 10)

    def vary(self, windows: Windows, random: Random) -> Windows:
        """See :meth:`Variation.vary`."""
        most = np.log1p(self.share)
        factor = np.exp(random.uniform(-most, most, (len(windows), windows.shape[-1]))).astype(np.float32)
        scaled: Windows = windows * _over_rows(factor, windows.ndim)
        return scaled


@dataclass(frozen=True, kw_only=True)
class TimeWarp(Variation):
    """Another pace, up to `share` faster or slower, linear between `knots` points; rows are interpolated."""

    share: float = 0.2
    knots: int = 4
    kind: ClassVar[str] = "time_warp"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("share", self.share, 0, 10)
        self._check("knots", self.knots, 2, 1000)

    def vary(self, windows: Windows, random: Random) -> Windows:
        """See :meth:`Variation.vary`."""
        count, rows = windows.shape[:2]
        if rows < 2:
            return windows
        most = np.log1p(self.share)
        knots = np.exp(random.uniform(-most, most, (count, int(self.knots))))
        where = np.linspace(0, knots.shape[1] - 1, rows - 1)
        low = np.minimum(where.astype(np.int64), knots.shape[1] - 2)
        pace = knots[:, low] + (knots[:, low + 1] - knots[:, low]) * (where - low)  # (n, rows - 1)
        at = np.concatenate([np.zeros((count, 1)), np.cumsum(pace, 1)], 1)
        at *= (rows - 1) / at[:, -1:]
        first = np.minimum(at.astype(np.int64), rows - 2)
        part = _over_rest((at - first).astype(np.float32), windows.ndim)
        index = _over_rest(first, windows.ndim)
        before, after = (np.take_along_axis(windows, index + i, 1) for i in (0, 1))
        warped: Windows = before + (after - before) * part
        return warped


@dataclass(frozen=True, kw_only=True)
class ChannelDropout(Variation):
    """Each channel becomes 0 with probability `share`; one chosen at random always stays."""

    share: float = 0.2
    kind: ClassVar[str] = "channel_dropout"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("share", self.share, 0, 1)

    def vary(self, windows: Windows, random: Random) -> Windows:
        """See :meth:`Variation.vary`."""
        kept = random.random((len(windows), windows.shape[-1])) >= self.share
        kept[np.arange(len(windows)), random.integers(windows.shape[-1], size=len(windows))] = True
        return np.where(_over_rows(kept, windows.ndim), windows, np.float32(0))


@dataclass(frozen=True, kw_only=True)
class TimeMask(Variation):
    """A stretch of rows becomes 0: of a length up to `share` of them (at least one), anywhere."""

    share: float = 0.1
    kind: ClassVar[str] = "time_mask"
    axis: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("share", self.share, 0, 1)

    def vary(self, windows: Windows, random: Random) -> Windows:
        """See :meth:`Variation.vary`."""
        size = windows.shape[self.axis]
        length = random.integers(0, max(int(size * self.share), 1 if self.share else 0), len(windows), endpoint=True)
        start = random.integers(0, size - length, endpoint=True)
        at = np.arange(size)
        hidden = (at >= start[:, None]) & (at < (start + length)[:, None])
        shape = [1] * windows.ndim
        shape[0], shape[self.axis] = len(windows), size
        return np.where(hidden.reshape(shape), np.float32(0), windows)


@dataclass(frozen=True, kw_only=True)
class BinMask(TimeMask):
    """A stretch of bins becomes 0: of a length up to `share` of them (at least one), anywhere."""

    kind: ClassVar[str] = "bin_mask"
    axis: ClassVar[int] = 2

    def fit(self, fmt: Format) -> Callable[[Windows, Random], Windows]:
        """See :meth:`Variation.fit`."""
        if len(fmt.shape) != 2:
            raise TrainingError(
                f"[[train.augment]] bin_mask: defined on spectrograms (time, bins, channels), `{fmt.stream}` has "
                f"{len(fmt.shape) + 1} axes; use time_mask"
            )
        return self.vary


def _over_rows(values: Any, ndim: int) -> Any:
    """``(n, channels)`` as ``(n, 1, …, channels)``."""
    return values.reshape(len(values), *([1] * (ndim - 2)), values.shape[-1])


def _over_rest(values: Any, ndim: int) -> Any:
    """``(n, rows)`` as ``(n, rows, 1, …)``."""
    return values.reshape(*values.shape, *([1] * (ndim - 2)))
