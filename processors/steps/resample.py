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

from kymo.processors.spec import Spec, Stage, derived_header, only, pack, unpack
from kymo.streams.chunk import Chunk, Format, Header
from kymo.streams.errors import FormatError
from kymo.streams.schema import Rules

LARGEST = 1000  # of up and down: the filter has 20 times as many taps

Real = NDArray[Any]


@dataclass(frozen=True)
class Resample(Spec):
    """Changes the rate by ``up / down``, given as these two or as the two rates.

    Stands before the window only: behind it every window would have edges of its own.

    Parameters
    ----------
    rate_hz : float or str, optional
        Rate wanted, above 0; a fraction may be written as ``"100/3"``.
    from_hz : float or str, optional
        The input's rate; goes with `rate_hz`. A recipe fills it in.
    up, down : int, optional
        Instead of the rates: 1 to 1000.

    Raises
    ------
    FormatError
        If it is not one of the two ways to say it, the ratio is not one of small whole numbers, or the input has another rate.

    References
    ----------
    ``scipy.signal.resample_poly``: a low-pass filter of ``20 * max(up, down) + 1`` taps with its cut-off at the lower of the two Nyquist
    frequencies, designed with a Kaiser window (beta 5); zeros stand before the first and behind the last sample.

    Examples
    --------
    >>> Resample(rate_hz=50, from_hz=500).ratio
    Fraction(1, 10)
    """

    rate_hz: Any = None
    from_hz: Any = None
    up: Annotated[int, Rules(minimum=1, maximum=LARGEST)] | None = None
    down: Annotated[int, Rules(minimum=1, maximum=LARGEST)] | None = None
    name: ClassVar[str] = "resample"
    after_window: ClassVar[bool] = False

    def __post_init__(self) -> None:
        by_rate = self.rate_hz is not None and self.up is None and self.down is None
        by_ratio = self.rate_hz is None and self.from_hz is None and self.up is not None and self.down is not None
        if not by_rate and not by_ratio:
            raise FormatError("resample: expected either rate_hz, with or without from_hz, or up and down")
        super().__post_init__()
        if by_rate and self.from_hz is None:
            _rate("rate_hz", self.rate_hz)
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
        return _rate("rate_hz", self.rate_hz) / _rate("from_hz", self.from_hz)

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
        """A Stage for one session."""
        return ResampleStage(self)

    def output(self, inputs: Mapping[str, Format]) -> Format:
        """The input's format at the new rate."""
        fmt = only(inputs)
        if len(fmt.shape) != 1 or fmt.dtype not in ("float32", "float64"):
            raise FormatError(
                f"resample: samples of `{fmt.stream}` are {fmt.dtype}{fmt.shape}, expected one float32 or float64 a channel"
            )
        if not fmt.rate or (self.from_hz is not None and fmt.rate != _rate("from_hz", self.from_hz)):
            raise FormatError(f"resample: `{fmt.stream}` has {fmt.rate} Hz, expected {self.from_hz or 'a fixed rate'}")
        return replace(fmt, rate=fmt.rate * self.ratio, step=fmt.step / self.ratio, rows=None)


class ResampleStage(Stage):
    """Stage of :class:`Resample`: the samples that the filter of the next output still covers."""

    def __init__(self, spec: Resample) -> None:
        super().__init__()
        self.spec = spec
        self._up, self._down = spec.ratio.numerator, spec.ratio.denominator
        self._width = 2 * spec.reach // self._up + 1  # samples under the filter, at most
        self._in: Header | None = None
        self._out: Header | None = None
        self._samples: Real = np.empty((0, 0))  # (n, channels), from sample `_first` on
        self._first = 0
        self._end = 0  # index one past the last sample taken
        self._next = 0  # first output not yet given

    def push(self, item: Chunk) -> list[Chunk]:
        """Take samples; give those whose filter lies inside what came."""
        if not item.count:
            return []
        if item.header is not self._in and item.header == self._in:
            self._in = item.header  # the same header as another object, as after a restart
        if item.header is not self._in or item.first_index != self._end:
            self._start(item)
        self._samples = np.concatenate((self._samples, item.data))
        self._end = item.end_index
        return self._give(-((self.spec.reach - self._end * self._up) // self._down))

    def _start(self, item: Chunk) -> None:
        """Begin a run of samples: index 0 has zeros before it, any other start is a gap that no filter may reach into."""
        if item.header is not self._in:
            self._in, self._out = item.header, derived_header(item.header, self.spec)
            self._phases = [self._phase(k, item.data.dtype) for k in range(self._up)]
        start = item.first_index
        self._first = min(start, self.spec.first_input(0)) if start == 0 else start
        self._next = 0 if start == 0 else max(0, ((start - 1) * self._up + self.spec.reach) // self._down + 1)
        self._samples = np.zeros((start - self._first, *item.data.shape[1:]), item.data.dtype)

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
        assert self._out is not None
        first = self.spec.first_input(self._next)
        length = self.spec.first_input(stop - 1) + self._width - first
        samples = np.zeros((self._samples.shape[1], length), self._samples.dtype)
        received = self._samples[first - self._first :][:length]
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
        self._forget()
        return [chunk]

    def _forget(self) -> None:
        drop = self.spec.first_input(self._next) - self._first
        if drop > 0:
            self._samples = self._samples[drop:].copy()
            self._first += drop

    def flush(self) -> list[Chunk]:
        """The last outputs, with zeros behind the last sample."""
        return [] if self._in is None else self._give(-(-self._end * self._up // self._down))

    @property
    def needs_from(self) -> dict[str, int]:
        """Oldest sample under the next output's filter."""
        return {} if self._in is None else {self._in.format.stream: self.spec.input_index(self._next)}

    def snapshot(self) -> bytes:
        """See :meth:`Stage.snapshot`."""
        meta = {"header": self._in, "first": self._first, "end": self._end, "next": self._next}
        return pack(meta, {"kept": self._samples})

    def restore(self, snapshot: bytes) -> None:
        """See :meth:`Stage.restore`."""
        meta, arrays = unpack(snapshot)
        self._in, self._first, self._end, self._next = meta["header"], meta["first"], meta["end"], meta["next"]
        self._samples = arrays["kept"]
        if self._in is not None:
            self._out = derived_header(self._in, self.spec)
            self._phases = [self._phase(k, self._samples.dtype) for k in range(self._up)]


def _rate(field: str, value: Any) -> Fraction:
    try:
        rate = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate <= 0 or isinstance(value, bool):
        raise FormatError(f"resample: {field} {value!r}, expected a rate above 0 Hz")
    return rate
