"""Spectrograms of a signal. In: samples ``(n, channels)`` in the signal's unit. Out: columns ``(m, bins, channels)``.

Columns are in the unit's square per Hz, or as the mode says; the numbers are those of :func:`scipy.signal.spectrogram`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np

from kymo.processors.spec import only
from kymo.processors.steps.frames import FramedSpec, framed_format
from kymo.processors.steps.maps import whole_number
from kymo.processors.steps.spectral import Amplitude, ExactPower, FastPower, Frames, SpectralPlan, plan_for, taper
from kymo.streams.chunk import Array, Format
from kymo.streams.errors import FormatError
from kymo.streams.schema import Count, Rules


@dataclass(frozen=True)
class Spectrogram(FramedSpec):
    """Power (or magnitude, or phase) of consecutive frames by frequency, as ``scipy.signal.spectrogram`` defines it.

    Bin ``k`` stands for ``k * rate / nfft`` Hz. A column depends on its own samples alone.

    In float64 every number is scipy's to the bit, but for the linear detrend (within 1e-12 of the column's largest). In
    float32, psd lies within 1e-5 of the column's largest value in float64, as long as what detrending takes away is at most
    ten times as large as what it leaves; the other modes have scipy's own float32 numbers (the linear detrend aside).

    Parameters
    ----------
    window : str or tuple
        A window's name, or name and parameters, as :func:`scipy.signal.get_window` takes them.
    nperseg : int
        Samples a column covers, at least 1.
    noverlap : int, optional
        Samples that neighbouring columns share, 0 to nperseg - 1; ``nperseg // 8`` if not given.
    nfft : int, optional
        Length of the transform (zeros fill it up), at least nperseg; nperseg if not given.
    detrend : str or False
        ``"constant"`` takes each frame's mean away, ``"linear"`` its straight line, False nothing.
    scaling : str
        ``"density"`` (unit²/Hz) or ``"spectrum"`` (unit²).
    mode : str
        ``"psd"``, ``"magnitude"``, ``"angle"`` or ``"phase"`` (the angle unwrapped along frequency), both in rad.
    keep_bins : int, optional
        Only the first so many bins; all ``nfft // 2 + 1`` if not given.

    Raises
    ------
    FormatError
        If a parameter is out of range.

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
    noverlap: int | None = None
    nfft: int | None = None
    detrend: Annotated[Any, Rules(enum=("constant", "linear", False))] = "constant"
    scaling: Annotated[str, Rules(enum=("density", "spectrum"))] = "density"
    mode: Annotated[str, Rules(enum=("psd", "magnitude", "angle", "phase"))] = "psd"
    keep_bins: int | None = None
    name: ClassVar[str] = "spectrogram"

    def __post_init__(self) -> None:
        if self.mode == "complex":
            raise FormatError(
                'spectrogram: mode "complex" has no place on a stream of real numbers; use "magnitude" and "angle"'
            )
        super().__post_init__()
        if self.noverlap is not None:
            whole_number(self.name, "noverlap", self.noverlap, 0, self.nperseg - 1)
        if self.nfft is not None:
            whole_number(self.name, "nfft", self.nfft, self.nperseg)
        if self.keep_bins is not None:
            whole_number(self.name, "keep_bins", self.keep_bins, 1, (self.nfft or self.nperseg) // 2 + 1)
        if isinstance(self.window, list):
            object.__setattr__(self, "window", tuple(self.window))
        taper(self.window, self.nperseg, self.name)

    @property
    def frame_length(self) -> int:
        """Samples a column covers."""
        return self.nperseg

    @property
    def frame_step(self) -> int:
        """Samples from one column to the next."""
        return self.nperseg - (self.nperseg // 8 if self.noverlap is None else self.noverlap)

    @property
    def bins(self) -> int:
        """Bins a column holds."""
        return self.keep_bins or (self.nfft or self.nperseg) // 2 + 1

    def output(self, inputs: Mapping[str, Format]) -> Format:
        """Columns ``(bins, channels)``, as float32 or float64 as the input is."""
        return framed_format(self, only(inputs), self.bins, self._unit)

    def _unit(self, unit: str) -> str:
        if self.mode in ("angle", "phase"):
            return "rad"
        if not unit:
            return ""
        of = f"({unit})" if any(c in unit for c in "/*^ ") else unit
        if self.mode == "magnitude":
            return f"{of}/Hz^0.5" if self.scaling == "density" else unit
        return f"{of}^2/Hz" if self.scaling == "density" else f"{of}^2"

    def kernel(self, samples: Array, fmt: Format) -> Array:
        """Columns of consecutive samples: see :meth:`FramedSpec.kernel`.

        float64, and any mode but psd, take scipy's operations in scipy's order. psd in float32
        sums means and squares in another order.
        """
        plan = plan_for(self, samples, fmt.rate, lambda: self._plan(samples, float(fmt.rate)))
        return plan.run(samples).transpose(1, 2, 0)  # (m, bins, channels), in memory (channels, m, bins)

    def _plan(self, samples: Array, rate_hz: float) -> SpectralPlan:
        nfft = self.nfft or self.nperseg
        window = taper(self.window, self.nperseg, self.name)
        frames = Frames(self.nperseg, self.frame_step, nfft, self.detrend)
        if self.mode == "psd" and samples.dtype == np.float32:
            fast = FastPower(nfft, self._scale(window, rate_hz))
            return SpectralPlan(self, frames, window.astype(np.float32), samples.shape, self.bins, fast)
        window = window.astype(samples.dtype, copy=False)
        # scipy sums the window in complex numbers where the input is float32
        scale = self._scale(window.astype(np.complex64) if window.dtype == np.float32 else window, rate_hz)
        finish = ExactPower(nfft, scale) if self.mode == "psd" else Amplitude(self.mode, np.sqrt(scale))
        return SpectralPlan(self, frames, window, samples.shape, self.bins, finish)

    def _scale(self, window: Any, rate_hz: float) -> Any:
        return 1.0 / (rate_hz * (window * window).sum()) if self.scaling == "density" else 1.0 / window.sum() ** 2
