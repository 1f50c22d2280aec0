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
from kymo.processors.steps.maps import check_whole, decibels
from kymo.processors.steps.spectral import Frames, SpectralPlan, SpectrumWriter, Tile, taper
from kymo.processors.steps.spectrogram import SpectralSpec, in_brackets, spectrogram_of
from kymo.streams.chunk import Array, Format
from kymo.streams.errors import FormatError
from kymo.streams.schema import Amount, Count, Positive, Rules, Whole

Real = NDArray[Any]
# Of Kaldi's filter bank.
FRAME_S, HOP_S = Fraction(25, 1000), Fraction(10, 1000)
LOW_HZ, EMPHASIS = 20.0, 0.97
FLOOR = 1.192092955078125e-07  # smallest power of a band before the logarithm: float32's epsilon
LARGEST_RATIO_TERM = 2000  # whole number in the ratio of the rates: the filter has 20 times as many taps


@dataclass(frozen=True)
class Mel(SpectralSpec):
    """Power (or another power of the magnitude) of consecutive frames by mel band, as ``librosa.feature.melspectrogram``.

    Column ``j`` covers samples ``[j * hop_length, j * hop_length + n_fft)``; the sampling rate is the stream's own.

    References
    ----------
    M. Slaney, Auditory Toolbox, Technical Report 1998-010 (1998); S. Young et al., The HTK Book (2006), section 5.4.
    """

    n_fft: Annotated[int, Rules(minimum=2)] = 2048
    hop_length: Count = 512
    win_length: int | None = None  # n_fft
    n_mels: Count = 128
    fmin: Amount = 0.0
    fmax: float | None = None  # half the rate
    htk: bool = False
    norm: Annotated[str, Rules(enum=("slaney",))] | Positive | None = "slaney"
    power: Positive = 2.0
    name: ClassVar[str] = "mel"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self.name, "win_length", self.win_length, 1, self.n_fft)
        if self.fmax is not None and self.fmax <= self.fmin:
            raise FormatError(f"{self.name}: fmax {self.fmax!r}, expected more Hz than fmin, {self.fmin}")

    @property
    def frame_length(self) -> int:
        return self.n_fft

    @property
    def frame_step(self) -> int:
        return self.hop_length

    @property
    def taper_length(self) -> int:
        return self.win_length or self.n_fft

    @property
    def bins(self) -> int:
        return self.n_mels

    def output(self, inputs: Mapping[str, Format]) -> Format:
        """Columns ``(n_mels, channels)``, as float32 or float64 as the input is."""
        fmt = only(inputs)
        for field, hz, words in (("fmax", self.fmax, "at most"), ("fmin", self.fmin, "below")):
            if fmt.rate and hz is not None and (hz > fmt.rate / 2 or (hz == fmt.rate / 2 and field == "fmin")):
                raise FormatError(
                    f"{self.name}: {field} {hz}, expected {words} half the rate of `{fmt.stream}`, {fmt.rate / 2} Hz"
                )
        out = super().output(inputs)
        filter_bank(self, fmt.rate)  # librosa is missed now, not when data come
        return out

    def unit(self, unit: str) -> str:
        return unit if not unit or self.power == 1 else f"{in_brackets(unit)}^{self.power:g}"

    def plan(self, samples: Array, rate: Fraction) -> SpectralPlan:
        length = self.taper_length
        window, before = np.zeros(self.n_fft, samples.dtype), (self.n_fft - length) // 2
        window[before : before + length] = taper(self.window, length, self.name)
        frames = Frames(self.n_fft, self.hop_length, self.n_fft, False)
        finish = in_bands(filter_bank(self, rate).astype(samples.dtype), self.power)
        return SpectralPlan(self, frames, window, samples.shape, self.n_mels, finish)


@dataclass(frozen=True)
class LogMel(Mel):
    """Mel spectrogram in decibels, as ``librosa.power_to_db`` of :class:`Mel`.

    ``10 * log10(max(amin, S)) - 10 * log10(max(amin, ref))``; `top_db` behind the window only, since before it there is no highest
    value.
    """

    ref: Positive = 1.0
    amin: Positive = 1e-10
    top_db: Amount | None = None
    name: ClassVar[str] = "log_mel"

    def build(self) -> Stage:
        if self.top_db is not None:
            raise FormatError("log_mel: top_db needs the highest value of a window; put the step behind the window")
        return super().build()

    def unit(self, unit: str) -> str:
        return "dB"

    def kernel(self, samples: Array, fmt: Format) -> Array:
        out = decibels(super().kernel(samples, fmt), self.amin, samples.dtype)
        out -= 10 * np.log10(max(self.amin, self.ref))
        return out

    def apply(self, data: Array, fmt: Format) -> Array:
        out: Real = super().apply(data, fmt)
        if self.top_db is not None and out.size:
            np.maximum(out, np.fmax.reduce(out, axis=None) - self.top_db, out=out)
        return out


def in_bands(bank: Any, power: float) -> SpectrumWriter:
    """A spectrum's magnitude to some power, summed by band."""

    def write_bands(tile: Tile, out: Real) -> None:
        spectrum = tile.spectrum
        values = np.square(spectrum.real) + np.square(spectrum.imag) if power == 2 else np.abs(spectrum) ** power
        # Sparse: each band adds its few bins in rising order, whatever the number of frames.
        summed = bank @ values.reshape(-1, values.shape[-1]).T
        np.copyto(out, summed.T.reshape(out.shape))

    return write_bands


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

    References
    ----------
    Y. Gong, Y.-A. Chung, J. Glass, AST: Audio Spectrogram Transformer, Interspeech (2021); D. Povey et al., The Kaldi Speech
    Recognition Toolkit, ASRU (2011), feature ``fbank``.
    """

    rate_hz: Annotated[int, Rules(minimum=1000)] = 16000  # of the sound
    n_mels: Count = 128  # bands, from 20 Hz to half the rate
    frames: Whole = 1024  # zeros fill up to so many columns, what is more is cut off; 0 for as many as there are
    mean: float = -4.2677393  # of the normalisation, as std: those of AudioSet
    std: Positive = 4.5689974
    name: ClassVar[str] = "audio_fbank"
    before_window: ClassVar[bool] = False

    def _ratio(self, fmt: Format) -> Fraction:
        if len(fmt.shape) != 1 or fmt.dtype == "jpeg" or not fmt.rate:
            raise FormatError(f"audio_fbank: `{fmt.stream}` is no evenly sampled signal, expected one number a channel")
        ratio = self.rate_hz / fmt.rate
        if max(ratio.numerator, ratio.denominator) > LARGEST_RATIO_TERM:
            raise FormatError(
                f"audio_fbank: rate_hz {self.rate_hz} of {float(fmt.rate):g} Hz is {ratio}, expected whole numbers up to "
                f"{LARGEST_RATIO_TERM}"
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
            stream=spectrogram_of(fmt.stream),
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
        """Logarithms of the bands' powers ``(frames, n_mels)`` of a sound ``(samples,)`` at `rate_hz`, before normalising."""
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
