"""Mel bands. In: samples ``(n, channels)``. Out: columns ``(m, mels, channels)``, powers, their decibels or logarithms.

The numbers of `mel` and `log_mel` are those of librosa with ``center=False``; its filter bank comes from librosa itself (the extra
``audio``). `audio_fbank` hears sensors as sound: the channels of a window stand one behind the other, as one recording, which is brought
to the rate of sound; what comes next is Kaldi's filter bank, as the Audio Spectrogram Transformer was trained on. In numpy and scipy alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Annotated, Any, ClassVar, cast

import numpy as np
import scipy
from numpy.typing import NDArray

from kymo.processors.spec import MapSpec, Stage, only
from kymo.processors.steps.frames import FramedSpec, framed_format
from kymo.processors.steps.maps import whole_number
from kymo.processors.steps.spectral import Frames, SpectralPlan, Tile, plan_for, taper
from kymo.streams.chunk import Array, Format
from kymo.streams.errors import FormatError
from kymo.streams.schema import Amount, Count, Positive, Rules, Whole

Real = NDArray[Any]
# Of Kaldi's filter bank.
FRAME_S, HOP_S = Fraction(25, 1000), Fraction(10, 1000)
LOW_HZ, EMPHASIS = 20.0, 0.97
FLOOR = 1.192092955078125e-07  # smallest power of a band before the logarithm: float32's epsilon
LARGEST_RATIO = 2000  # whole number in the ratio of the rates: the filter has 20 times as many taps


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

    n_fft: Annotated[int, Rules(minimum=2)] = 2048
    hop_length: Count = 512
    win_length: int | None = None
    window: Any = "hann"
    n_mels: Count = 128
    fmin: Amount = 0.0
    fmax: float | None = None
    htk: bool = False
    norm: Annotated[str, Rules(enum=("slaney",))] | Positive | None = "slaney"
    power: Positive = 2.0
    name: ClassVar[str] = "mel"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.win_length is not None:
            whole_number(self.name, "win_length", self.win_length, 1, self.n_fft)
        if self.fmax is not None and self.fmax <= self.fmin:
            raise FormatError(f"{self.name}: fmax {self.fmax!r}, expected more Hz than fmin, {self.fmin}")
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

    def _plan(self, samples: Array, rate: Fraction) -> SpectralPlan:
        length = self.win_length or self.n_fft
        window, before = np.zeros(self.n_fft, samples.dtype), (self.n_fft - length) // 2
        window[before : before + length] = taper(self.window, length, self.name)
        frames = Frames(self.n_fft, self.hop_length, self.n_fft, False)
        bank = filter_bank(self, rate).astype(samples.dtype)
        return SpectralPlan(self, frames, window, samples.shape, self.n_mels, Bands(bank, self.power))


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

    ref: Positive = 1.0
    amin: Positive = 1e-10
    top_db: Amount | None = None
    name: ClassVar[str] = "log_mel"

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
            f'{spec.name}: librosa is not installed; install the extra `audio`: pip install "kymo-streams[audio]"'
        ) from None
    bank = mel(
        sr=float(rate),
        n_fft=spec.n_fft,
        n_mels=spec.n_mels,
        fmin=spec.fmin,
        fmax=spec.fmax,
        htk=spec.htk,
        norm=cast("Any", spec.norm),
    )
    return scipy.sparse.csr_array(bank)


@dataclass(frozen=True)
class AudioFbank(MapSpec):
    """Log mel bands of a window's channels joined to one sound.

    The joined channels are resampled by :func:`scipy.signal.resample_poly`. Frames of 25 ms every 10 ms lose their mean, are
    differenced with 0.97, weighted by a symmetric Hann window and transformed; their power in bands that are triangles on the mel
    scale, at least 2^-23, is taken by its natural logarithm, normalised by ``(x - mean) / (2 * std)``.

    Parameters
    ----------
    rate_hz : int
        Rate of the sound, at least 1000 Hz.
    n_mels : int
        Bands, from 20 Hz to half the rate, at least 1.
    frames : int
        Columns: zeros (before normalising) fill them up, what is more is cut off; 0 for as many as there are.
    mean, std : float
        Of the normalisation; std is above 0. The defaults are AudioSet's.

    Raises
    ------
    FormatError
        If a parameter is out of range, the input is no evenly sampled signal, or the rates have no ratio of small whole numbers.

    References
    ----------
    Y. Gong, Y.-A. Chung, J. Glass, AST: Audio Spectrogram Transformer, Interspeech (2021); D. Povey et al., The Kaldi Speech
    Recognition Toolkit, ASRU (2011), feature ``fbank``.
    """

    rate_hz: Annotated[int, Rules(minimum=1000)] = 16000
    n_mels: Count = 128
    frames: Whole = 1024
    mean: float = -4.2677393
    std: Positive = 4.5689974
    name: ClassVar[str] = "audio_fbank"
    before_window: ClassVar[bool] = False

    def _ratio(self, fmt: Format) -> Fraction:
        if len(fmt.shape) != 1 or fmt.dtype == "jpeg" or not fmt.rate:
            raise FormatError(f"audio_fbank: `{fmt.stream}` is no evenly sampled signal, expected one number a channel")
        ratio = self.rate_hz / fmt.rate
        if max(ratio.numerator, ratio.denominator) > LARGEST_RATIO:
            raise FormatError(
                f"audio_fbank: rate_hz {self.rate_hz} of {float(fmt.rate):g} Hz is {ratio}, expected whole numbers up to {LARGEST_RATIO}"
            )
        return ratio

    def _sizes(self) -> tuple[int, int]:
        return int(FRAME_S * self.rate_hz), int(HOP_S * self.rate_hz)

    def output(self, inputs: Mapping[str, Format]) -> Format:
        """Columns ``(n_mels, 1)`` float32."""
        fmt = only(inputs)
        ratio, (frame, hop) = self._ratio(fmt), self._sizes()
        rows = self.frames
        if fmt.rows is not None and not rows:
            sound = -(-fmt.rows * len(fmt.channels) * ratio.numerator // ratio.denominator)
            rows = (sound - frame) // hop + 1
            if rows < 1:
                raise FormatError(f"audio_fbank: a window of {fmt.rows} rows is too short for a frame of 25 ms")
        # A column is of no stretch of time, as the channels stand one behind the other: the window is shared out evenly.
        length = 1 if fmt.rows is None else int((fmt.rows - 1) * fmt.step) + fmt.span
        step = Fraction(length - 1, rows - 1) if rows > 1 and length > 1 else Fraction(length)
        return replace(
            fmt,
            stream=f"spectrogram{fmt.stream[fmt.stream.index('.') :] if '.' in fmt.stream else ''}",
            channels=("fbank",),
            units=(),
            shape=(self.n_mels, 1),
            dtype="float32",
            rate=fmt.rate * fmt.step / step,
            step=step,
            span=1,
            rows=None if fmt.rows is None else rows,
        )

    def apply(self, data: Array, fmt: Format) -> Array:
        """``(n, channels)`` to ``(frames, n_mels, 1)``."""
        ratio = self._ratio(fmt)
        joined = np.ascontiguousarray(data.T, np.float64).reshape(-1)  # channel by channel
        sound = scipy.signal.resample_poly(joined, ratio.numerator, ratio.denominator) if len(joined) else joined
        bands = self.bands(sound.astype(np.float32))
        if self.frames:
            filled = np.zeros((self.frames, self.n_mels))
            filled[: len(bands)] = bands[: self.frames]
            bands = filled
        return ((bands - self.mean) / (2 * self.std)).astype(np.float32)[..., np.newaxis]

    def bands(self, sound: Array) -> Real:
        """Logarithms of the bands' powers, before normalising.

        Parameters
        ----------
        sound : ndarray
            ``(samples,)`` at `rate_hz`.

        Returns
        -------
        ndarray
            ``(frames, n_mels)``; no frame where there are fewer samples than 25 ms.
        """
        length, hop = self._sizes()
        if len(sound) < length:
            return np.zeros((0, self.n_mels))
        frames: Real = np.lib.stride_tricks.sliding_window_view(sound.astype(np.float64), length)[::hop].copy()
        frames -= frames.mean(1, keepdims=True)
        before = np.concatenate([frames[:, :1], frames[:, :-1]], 1)
        frames -= EMPHASIS * before
        frames *= np.hanning(length)
        size = 1 << (length - 1).bit_length()
        power = np.abs(np.fft.rfft(frames, size)) ** 2
        bands: Real = np.log(np.maximum(power @ kaldi_bank(self.rate_hz, size, self.n_mels).T, FLOOR))
        return bands


@lru_cache(maxsize=8)
def kaldi_bank(rate_hz: int, size: int, mels: int) -> Real:
    """Weights ``(mels, size // 2 + 1)`` of the bins in the bands: triangles on the mel scale, 1127 ln(1 + f / 700)."""
    high = rate_hz / 2
    edges = np.linspace(_kaldi_mel(LOW_HZ), _kaldi_mel(high), mels + 2)
    at = _kaldi_mel(np.arange(size // 2 + 1) * rate_hz / size)[None]
    lower, middle, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bank: Real = np.maximum(0, np.minimum((at - lower) / (middle - lower), (upper - at) / (upper - middle)))
    return bank


def _kaldi_mel(hz: Any) -> Any:
    return 1127.0 * np.log1p(np.asarray(hz) / 700.0)
