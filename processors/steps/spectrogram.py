"""Spectrograms of a signal. In: samples ``(n, channels)`` in the signal's unit. Out: columns ``(m, bins, channels)``.

Columns are in the unit's square per Hz, or as the mode says; the numbers are those of :func:`scipy.signal.spectrogram`.
`docs/steps.md` tells what each parameter means.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from typing import Annotated, Any, ClassVar

import numpy as np

from kymo.processors.spec import only
from kymo.processors.steps.frames import FramedSpec
from kymo.processors.steps.maps import FLOATS, check_whole
from kymo.processors.steps.spectral import Frames, SpectralPlan, amplitude, plan_for, power, taper
from kymo.streams.chunk import Array, Format
from kymo.streams.errors import FormatError
from kymo.streams.schema import Count, Rules


@dataclass(frozen=True)
class SpectralSpec(FramedSpec):
    """A step from frames to what becomes of their spectra. Subclasses give a plan for it, its bins and units."""

    window: Any = "hann"  # a name, or name and parameters, as :func:`scipy.signal.get_window` takes them

    def __post_init__(self) -> None:
        super().__post_init__()
        taper(self.window, self.taper_length, self.name)

    @property
    def taper_length(self) -> int:
        """Samples of a frame that the window lets through."""
        return self.frame_length

    @property
    @abstractmethod
    def bins(self) -> int:
        """Numbers that a column holds of a channel."""

    @abstractmethod
    def unit(self, unit: str) -> str:
        """The unit of what comes out, of a channel in `unit`; empty where it is unknown."""

    @abstractmethod
    def plan(self, samples: Array, rate: Fraction) -> SpectralPlan:
        """Make the plan for samples ``(channels, n)`` of this shape and dtype."""

    def output(self, inputs: Mapping[str, Format]) -> Format:
        """Columns ``(bins, channels)``, as float32 or float64 as the input is."""
        fmt = only(inputs)
        if len(fmt.shape) != 1 or fmt.dtype not in FLOATS:
            raise FormatError(
                f"{self.name}: samples of `{fmt.stream}` are {fmt.dtype}{fmt.shape}, "
                f"expected one float32 or float64 a channel"
            )
        if not fmt.rate:
            raise FormatError(f"{self.name}: `{fmt.stream}` has no fixed rate; put `resample` before it")
        return replace(
            fmt,
            stream=spectrogram_of(fmt.stream),
            units=tuple(map(self.unit, fmt.units)),
            rate=fmt.rate / self.frame_step,
            shape=(self.bins, len(fmt.channels)),
            step=fmt.step * self.frame_step,
            span=ceil((self.frame_length - 1) * fmt.step) + fmt.span,
            rows=None,
        )

    def kernel(self, samples: Array, fmt: Format) -> Array:
        plan = plan_for(self, samples, fmt.rate)
        return plan.run(samples).transpose(1, 2, 0)  # (m, bins, channels), in memory (channels, m, bins)


def spectrogram_of(stream: str) -> str:
    """Name of a stream's spectrogram, at the same place."""
    _, dot, place = stream.partition(".")
    return f"spectrogram{dot}{place}"


def in_brackets(unit: str) -> str:
    """A unit that a power may stand behind."""
    return f"({unit})" if any(c in unit for c in "/*^ ") else unit


@dataclass(frozen=True)
class Spectrogram(SpectralSpec):
    """Power (or magnitude, or phase) of consecutive frames by frequency, as ``scipy.signal.spectrogram`` defines it.

    Bin ``k`` stands for ``k * rate / nfft`` Hz. A column depends on its own samples alone.

    In float64 every number is scipy's to the bit, but for the linear detrend (within 1e-12 of the column's largest). In
    float32, psd lies within 1e-5 of the column's largest value in float64, as long as what detrending takes away is at most
    ten times as large as what it leaves; the other modes have scipy's own float32 numbers (the linear detrend aside).

    References
    ----------
    P. Welch, IEEE Trans. Audio Electroacoust. 15 (1967) 70-73; scaling as in ``scipy.signal.spectrogram``.

    Examples
    --------
    >>> Spectrogram(nperseg=200, noverlap=160).frame_step
    40
    """

    window: Any = ("tukey", 0.25)
    nperseg: Count = 256
    noverlap: int | None = None  # an eighth of nperseg
    nfft: int | None = None  # nperseg
    detrend: Annotated[Any, Rules(enum=("constant", "linear", False))] = "constant"
    scaling: Annotated[str, Rules(enum=("density", "spectrum"))] = "density"
    mode: Annotated[str, Rules(enum=("psd", "magnitude", "angle", "phase"))] = "psd"
    keep_bins: int | None = None  # all
    name: ClassVar[str] = "spectrogram"

    def __post_init__(self) -> None:
        if self.mode == "complex":
            raise FormatError(
                'spectrogram: mode "complex" has no place on a stream of real numbers; use "magnitude" and "angle"'
            )
        super().__post_init__()
        check_whole(self.name, "noverlap", self.noverlap, 0, self.nperseg - 1)
        check_whole(self.name, "nfft", self.nfft, self.nperseg)
        check_whole(self.name, "keep_bins", self.keep_bins, 1, self.transform_length // 2 + 1)

    @property
    def frame_length(self) -> int:
        return self.nperseg

    @property
    def frame_step(self) -> int:
        return self.nperseg - (self.nperseg // 8 if self.noverlap is None else self.noverlap)

    @property
    def transform_length(self) -> int:
        """Samples of a transform: a frame, and zeros."""
        return self.nfft or self.nperseg

    @property
    def bins(self) -> int:
        return self.keep_bins or self.transform_length // 2 + 1

    def unit(self, unit: str) -> str:
        if self.mode in ("angle", "phase"):
            return "rad"
        if not unit:
            return ""
        per_hz = self.scaling == "density"
        if self.mode == "magnitude":
            return f"{in_brackets(unit)}/Hz^0.5" if per_hz else unit
        return f"{in_brackets(unit)}^2" + "/Hz" * per_hz

    def plan(self, samples: Array, rate: Fraction) -> SpectralPlan:
        """Make the plan: psd in float32 sums means and squares in an order of its own, all else takes scipy's operations in scipy's."""
        exact = self.mode != "psd" or samples.dtype != np.float32
        window = taper(self.window, self.nperseg, self.name)
        if exact:
            window = window.astype(samples.dtype, copy=False)
        # scipy sums the window in complex numbers where the input is float32
        weights: Any = window.astype(np.complex64) if window.dtype == np.float32 else window
        per_bin = float(rate) * (weights * weights).sum() if self.scaling == "density" else weights.sum() ** 2
        scale, nfft = 1.0 / per_bin, self.transform_length
        finish = power(nfft, scale, exact=exact) if self.mode == "psd" else amplitude(self.mode, np.sqrt(scale))
        frames = Frames(self.nperseg, self.frame_step, nfft, self.detrend, exact)
        return SpectralPlan(self, frames, window.astype(samples.dtype, copy=False), samples.shape, self.bins, finish)
