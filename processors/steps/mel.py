"""Mel spectrograms. In: samples ``(n, channels)``. Out: columns ``(m, mels, channels)``, powers or their decibels.

The numbers are those of librosa with ``center=False``; its filter bank comes from librosa itself (the extra ``audio``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import scipy
from numpy.typing import NDArray

from processors.spec import Stage, only
from processors.steps.frames import FramedSpec
from processors.steps.maps import is_number
from processors.steps.spectral import Frames, Plan, Tile, plan_for, taper
from processors.steps.spectrogram import framed_format, whole_number
from streams.chunk import Array, Format
from streams.errors import FormatError

Real = NDArray[Any]


@dataclass(frozen=True)
class Mel(FramedSpec):
    """Power (or another power of the magnitude) of consecutive frames by mel band, as ``librosa.feature.melspectrogram``.

    Column ``j`` covers samples ``[j * hop_length, j * hop_length + n_fft)``; the sampling rate is the stream's own.

    Parameters
    ----------
    n_fft : int
        Samples a column covers and length of the transform, at least 2.
    hop_length : int
        Samples from one column to the next, at least 1.
    win_length : int, optional
        Length of the window, in the middle of n_fft, 1 to n_fft; n_fft if not given.
    window : str or tuple
        A window's name, or name and parameters, as :func:`scipy.signal.get_window` takes them.
    n_mels : int
        Bands, at least 1.
    fmin, fmax : float
        Edges of the lowest and highest band, Hz; fmax is half the rate if not given.
    htk : bool
        The HTK formula of the mel scale instead of Slaney's.
    norm : str, float or None
        ``"slaney"``: each band's area is 1; a number: that norm of each band is 1; None: its peak is 1.
    power : float
        Exponent of the magnitude, above 0: 1 for magnitude, 2 for power.

    Raises
    ------
    FormatError
        If a parameter is out of range, or librosa is not installed.

    References
    ----------
    M. Slaney, Auditory Toolbox, Technical Report 1998-010 (1998); S. Young et al., The HTK Book (2006), section 5.4.
    """

    n_fft: int = 2048
    hop_length: int = 512
    win_length: int | None = None
    window: Any = "hann"
    n_mels: int = 128
    fmin: float = 0.0
    fmax: float | None = None
    htk: bool = False
    norm: Any = "slaney"
    power: float = 2.0
    name: ClassVar[str] = "mel"

    def __post_init__(self) -> None:
        whole_number(self.name, "chunk_frames", self.chunk_frames, 1)
        whole_number(self.name, "n_fft", self.n_fft, 2)
        whole_number(self.name, "hop_length", self.hop_length, 1)
        whole_number(self.name, "n_mels", self.n_mels, 1)
        if self.win_length is not None:
            whole_number(self.name, "win_length", self.win_length, 1, self.n_fft)
        if not is_number(self.fmin) or self.fmin < 0:
            raise FormatError(f"{self.name}: fmin {self.fmin!r}, expected at least 0 Hz")
        if self.fmax is not None and (not is_number(self.fmax) or self.fmax <= self.fmin):
            raise FormatError(f"{self.name}: fmax {self.fmax!r}, expected more Hz than fmin, {self.fmin}")
        if not is_number(self.power) or self.power <= 0:
            raise FormatError(f"{self.name}: power {self.power!r}, expected above 0")
        if not isinstance(self.htk, bool):
            raise FormatError(f"{self.name}: htk {self.htk!r}, expected true or false")
        if not (self.norm in ("slaney", None) or (is_number(self.norm) and self.norm > 0)):
            raise FormatError(f'{self.name}: norm {self.norm!r}, expected "slaney", a number above 0, or none')
        if isinstance(self.window, list):
            object.__setattr__(self, "window", tuple(self.window))
        taper(self.window, self.win_length or self.n_fft, self.name)

    @property
    def frame_length(self) -> int:
        """Samples a column covers."""
        return self.n_fft

    @property
    def frame_step(self) -> int:
        """Samples from one column to the next."""
        return self.hop_length

    def output(self, inputs: Mapping[str, Format]) -> Format:
        """Columns ``(n_mels, channels)``, as float32 or float64 as the input is."""
        fmt = only(inputs)
        if self.fmax is not None and fmt.rate and self.fmax > fmt.rate / 2:
            raise FormatError(
                f"{self.name}: fmax {self.fmax}, expected at most half the rate of `{fmt.stream}`, {fmt.rate / 2} Hz"
            )
        if fmt.rate and self.fmin >= fmt.rate / 2:
            raise FormatError(
                f"{self.name}: fmin {self.fmin}, expected below half the rate of `{fmt.stream}`, {fmt.rate / 2} Hz"
            )
        out = framed_format(self, fmt, self.n_mels, self._unit)
        filter_bank(self, fmt.rate)  # librosa is missed now, not when data come
        return out

    def _unit(self, unit: str) -> str:
        if not unit or self.power == 1:
            return unit
        return f"({unit})^{self.power:g}" if any(c in unit for c in "/*^ ") else f"{unit}^{self.power:g}"

    def kernel(self, samples: Array, fmt: Format) -> Array:
        """Columns of consecutive samples: see :meth:`FramedSpec.kernel`."""
        plan = plan_for(self, samples, fmt.rate, lambda: self._plan(samples, fmt.rate))
        return plan.run(samples).transpose(1, 2, 0)  # (m, mels, channels), in memory (channels, m, mels)

    def _plan(self, samples: Array, rate: Fraction) -> Plan:
        length = self.win_length or self.n_fft
        window, before = np.zeros(self.n_fft, samples.dtype), (self.n_fft - length) // 2
        window[before : before + length] = taper(self.window, length, self.name)
        frames = Frames(self.n_fft, self.hop_length, self.n_fft, False)
        bank = filter_bank(self, rate).astype(samples.dtype)
        return Plan(self, frames, window, samples.shape, self.n_mels, Bands(bank, self.power))


@dataclass(frozen=True)
class LogMel(Mel):
    """Mel spectrogram in decibels, as ``librosa.power_to_db`` of :class:`Mel`.

    ``10 * log10(max(amin, S)) - 10 * log10(max(amin, ref))``

    Parameters
    ----------
    ref : float
        What counts as 0 dB, above 0.
    amin : float
        Smallest power taken, above 0.
    top_db : float, optional
        What lies more than this below the highest value of the window is raised to that; behind the window only, since before
        it there is no highest value. At least 0.
    """

    ref: float = 1.0
    amin: float = 1e-10
    top_db: float | None = None
    name: ClassVar[str] = "log_mel"

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("ref", "amin"):
            value = getattr(self, field)
            if not is_number(value) or value <= 0:
                raise FormatError(f"log_mel: {field} {value!r}, expected above 0")
        if self.top_db is not None and (not is_number(self.top_db) or self.top_db < 0):
            raise FormatError(f"log_mel: top_db {self.top_db!r}, expected at least 0 dB")

    def build(self) -> Stage:
        """A Stage for one session.

        Raises
        ------
        FormatError
            If top_db is set.
        """
        if self.top_db is not None:
            raise FormatError("log_mel: top_db needs the highest value of a window; put the step behind the window")
        return super().build()

    def _unit(self, unit: str) -> str:
        return "dB"

    def kernel(self, samples: Array, fmt: Format) -> Array:
        """Columns of consecutive samples: see :meth:`FramedSpec.kernel`."""
        out: Real = super().kernel(samples, fmt)
        np.maximum(out, self.amin, out=out)
        np.log10(out, out=out)
        out *= 10
        out -= 10 * np.log10(max(self.amin, self.ref))
        return out

    def apply(self, data: Array, fmt: Format) -> Array:
        """All whole columns of ``(n, channels)``, the first one at its first sample."""
        out: Real = super().apply(data, fmt)
        if self.top_db is not None and out.size:
            np.maximum(out, out.max() - self.top_db, out=out)
        return out


class Bands:
    """A spectrum's magnitude to some power, summed by band."""

    exact = True

    def __init__(self, bank: Any, power: float) -> None:
        self._bank, self._power = bank, power

    def __call__(self, tile: Tile, out: Real) -> None:
        """Fill `out` ``(channels, count, bands)`` from the tile's spectrum."""
        spectrum = tile.spectrum
        values = (
            np.square(spectrum.real) + np.square(spectrum.imag) if self._power == 2 else np.abs(spectrum) ** self._power
        )
        # Sparse: each band adds its few bins in rising order, whatever the number of frames.
        summed = self._bank @ values.reshape(-1, values.shape[-1]).T
        np.copyto(out, summed.T.reshape(out.shape))


@lru_cache(maxsize=16)
def filter_bank(spec: Mel, rate: Fraction) -> Any:
    """Weights ``(n_mels, n_fft // 2 + 1)`` of the bins in the bands, sparse, rounded to float32 as librosa does."""
    try:
        from librosa.filters import mel
    except ImportError:
        raise FormatError(
            f'{spec.name}: librosa is not installed; install the extra `audio`: pip install "kymo[audio]"'
        ) from None
    bank = mel(
        sr=float(rate),
        n_fft=spec.n_fft,
        n_mels=spec.n_mels,
        fmin=spec.fmin,
        fmax=spec.fmax,
        htk=spec.htk,
        norm=spec.norm,
    )
    return scipy.sparse.csr_array(bank)
