"""Another sampling rate. In: Chunks of a signal. Out: Chunks of the same signal at a rational multiple of its rate.

A polyphase FIR filter; the numbers are those of :func:`scipy.signal.resample_poly` on the whole recording. Output sample ``k`` stands at
input index ``k * down / up``, on a grid fixed to index 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Annotated, Any, ClassVar

import numpy as np
import scipy
from numpy.typing import NDArray

from kymo.processors.spec import Spec, Stage, StreamStage, only
from kymo.processors.steps.maps import FLOATS
from kymo.streams.chunk import Chunk, Format, Header
from kymo.streams.errors import FormatError
from kymo.streams.schema import Rules

LARGEST = 1000  # of up and down: the filter has 20 times as many taps

Real = NDArray[Any]


@dataclass(frozen=True)
class Resample(Spec):
    """Changes the rate by ``up / down``, given as these two or as the two rates.

    Stands before the window only: behind it every window would have edges of its own. A recipe fills `from_hz` in.

    References
    ----------
    ``scipy.signal.resample_poly``: a low-pass filter of ``20 * max(up, down) + 1`` taps with its cut-off at the lower of the two Nyquist
    frequencies, designed with a Kaiser window (beta 5); zeros stand before the first and behind the last sample.

    Examples
    --------
    >>> Resample(rate_hz=50, from_hz=500).ratio
    Fraction(1, 10)
    """

    rate_hz: Any = None  # a fraction may be written as ``"100/3"``
    from_hz: Any = None
    up: Annotated[int, Rules(minimum=1, maximum=LARGEST)] | None = None
    down: Annotated[int, Rules(minimum=1, maximum=LARGEST)] | None = None
    name: ClassVar[str] = "resample"
    spans_all: ClassVar[bool] = False  # the filter reaches further
    after_window: ClassVar[bool] = False

    def __post_init__(self) -> None:
        by_rate = self.rate_hz is not None and self.up is None and self.down is None
        by_ratio = self.rate_hz is None and self.from_hz is None and self.up is not None and self.down is not None
        if not by_rate and not by_ratio:
            raise FormatError("resample: expected either rate_hz, with or without from_hz, or up and down")
        super().__post_init__()
        if by_rate and self.from_hz is None:
            rate_of(self.name, "rate_hz", self.rate_hz)
        elif max(self.ratio.numerator, self.ratio.denominator) > LARGEST:
            raise FormatError(
                f"resample: rate_hz {self.rate_hz} of {self.from_hz} is {self.ratio}, expected whole numbers up to {LARGEST}"
            )

    @cached_property
    def ratio(self) -> Fraction:
        """Output samples for each input sample, in lowest terms."""
        if self.up is not None and self.down is not None:
            return Fraction(self.up, self.down)
        if self.from_hz is None:
            raise FormatError(f"resample: rate_hz {self.rate_hz} of which rate? give from_hz")
        return rate_of(self.name, "rate_hz", self.rate_hz) / rate_of(self.name, "from_hz", self.from_hz)

    def at(self, fmt: Format) -> Resample:
        """The same with the rate of its input."""
        if self.rate_hz is None or self.from_hz is not None or not fmt.rate:
            return self
        return replace(self, from_hz=str(fmt.rate))

    @cached_property
    def taps(self) -> Real:
        """The filter, ``(2 * reach + 1,)``, in float64."""
        widest = max(self.ratio.numerator, self.ratio.denominator)
        if widest == 1:
            return np.ones(1)
        taps: Real = scipy.signal.firwin(20 * widest + 1, 1 / widest, window=("kaiser", 5.0))
        return taps * self.ratio.numerator

    @property
    def reach(self) -> int:
        """How far the filter reaches to either side, in steps of ``1 / up`` input samples."""
        return len(self.taps) // 2

    def first_input(self, index: int) -> int:
        """Oldest input sample under the filter of output `index`; below 0 for the first ones."""
        return -((self.reach - index * self.ratio.denominator) // self.ratio.numerator)

    def input_index(self, index: int) -> int:
        """Oldest input index that output `index` rests on."""
        return max(0, self.first_input(index))

    def build(self) -> Stage:
        return ResampleStage(self)

    def output(self, inputs: Mapping[str, Format]) -> Format:
        fmt = only(inputs)
        if len(fmt.shape) != 1 or fmt.dtype not in FLOATS:
            raise FormatError(
                f"resample: samples of `{fmt.stream}` are {fmt.dtype}{fmt.shape}, expected one float32 or float64 a channel"
            )
        if not fmt.rate or (self.from_hz is not None and fmt.rate != rate_of(self.name, "from_hz", self.from_hz)):
            raise FormatError(f"resample: `{fmt.stream}` has {fmt.rate} Hz, expected {self.from_hz or 'a fixed rate'}")
        return replace(fmt, rate=fmt.rate * self.ratio, step=fmt.step / self.ratio, rows=None)


class ResampleStage(StreamStage):
    """Stage of :class:`Resample`: the samples that the filter of the next output still covers."""

    numbers: ClassVar[tuple[str, ...]] = ("first", "end", "next")
    arrays: ClassVar[tuple[str, ...]] = ("kept",)

    def __init__(self, spec: Resample) -> None:
        super().__init__(spec)
        self.spec: Resample = spec
        self._up, self._down = spec.ratio.numerator, spec.ratio.denominator
        self._width = 2 * spec.reach // self._up + 1  # samples under the filter, at most
        self._kept: Real = np.empty((0, 0))  # (n, channels), from sample `_first` on
        self._first = 0
        self._end = 0  # index one past the last sample taken

    def push(self, item: Chunk) -> list[Chunk]:
        """Take samples; give those whose filter lies inside what came."""
        if not item.count:
            return []
        if other := self._is_other(item.header):
            self._bind(item.header)
        if other or item.first_index != self._end:
            self._begin(item)
        self._kept = np.concatenate((self._kept, item.data))
        self._end = item.end_index
        return self._give(-((self.spec.reach - self._end * self._up) // self._down))

    def _bind(self, header: Header) -> None:
        super()._bind(header)
        self._phases = [self._phase(k, header.format.dtype) for k in range(self._up)]

    def _begin(self, item: Chunk) -> None:
        """Begin a run of samples: index 0 has zeros before it, any other start is a gap that no filter may reach into."""
        start = item.first_index
        self._first = min(start, self.spec.first_input(0)) if start == 0 else start
        self._next = 0 if start == 0 else max(0, ((start - 1) * self._up + self.spec.reach) // self._down + 1)
        self._kept = np.zeros((start - self._first, *item.data.shape[1:]), item.data.dtype)

    def _phase(self, k: int, dtype: Any) -> Real:
        """Filter taps ``(width,)`` over the samples of outputs ``k, k + up, k + 2 * up, …``."""
        taps, spec = np.zeros(self._width, dtype), self.spec
        last = k * self._down + spec.reach - spec.first_input(k) * self._up
        used = spec.taps[last :: -self._up]
        taps[: len(used)] = used
        return taps

    def _give(self, stop: int) -> list[Chunk]:
        """Outputs from the next one to `stop`; samples behind the last one taken count as 0."""
        count = stop - self._next
        if count <= 0:
            return []
        first = self.spec.first_input(self._next)
        length = self.spec.first_input(stop - 1) + self._width - first
        samples = np.zeros((self._kept.shape[1], length), self._kept.dtype)
        received = self._kept[first - self._first :][:length]
        samples[:, : len(received)] = received.T
        out = np.empty((count, len(samples)), samples.dtype)
        for i in range(min(self._up, count)):
            k = self._next + i
            rows = (count - i - 1) // self._up + 1
            down, along = samples.strides
            view = np.ndarray(
                (len(samples), rows, self._width),
                samples.dtype,
                samples,
                (self.spec.first_input(k) - first) * along,
                (down, self._down * along, along),
            )
            # Each output is a product of its own: its bytes depend on its own samples alone.
            out[i :: self._up] = np.vecdot(view, self._phases[k % self._up]).T
        chunk = Chunk(self._out, self._next, out)
        self._next = stop
        drop = self.spec.first_input(stop) - self._first
        if drop > 0:
            self._kept = self._kept[drop:].copy()
            self._first += drop
        return [chunk]

    def flush(self) -> list[Chunk]:
        """The last outputs, with zeros behind the last sample."""
        return [] if self._header is None else self._give(-(-self._end * self._up // self._down))


def rate_of(step: str, field: str, value: Any) -> Fraction:
    """Read a rate, a number or a fraction as text."""
    try:
        rate = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate <= 0 or isinstance(value, bool):
        raise FormatError(f"{step}: {field} {value!r}, expected a rate above 0 Hz")
    return rate
