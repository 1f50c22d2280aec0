"""Sensors heard as sound. In: windows ``(n, channels)``. Out: log mel bands ``(frames, mels, 1)``, normalised, without unit.

The channels stand one behind the other, as one recording, which is brought to the rate of sound; what comes next is Kaldi's filter
bank, as the Audio Spectrogram Transformer was trained on. In numpy and scipy alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import scipy
from numpy.typing import NDArray

from processors.spec import MapSpec, only
from processors.steps.maps import is_number
from processors.steps.spectrogram import whole_number
from streams.chunk import Array, Format
from streams.errors import FormatError

Real = NDArray[np.float64]
FRAME_S, HOP_S = Fraction(25, 1000), Fraction(10, 1000)
LOW_HZ, EMPHASIS = 20.0, 0.97
FLOOR = 1.192092955078125e-07  # smallest power of a band before the logarithm: float32's epsilon
LARGEST = 2000  # of the ratio of the rates: the filter has 20 times as many taps


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

    rate_hz: int = 16000
    n_mels: int = 128
    frames: int = 1024
    mean: float = -4.2677393
    std: float = 4.5689974
    name: ClassVar[str] = "audio_fbank"
    before_window: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole_number(self.name, "rate_hz", self.rate_hz, 1000)
        whole_number(self.name, "n_mels", self.n_mels, 1)
        whole_number(self.name, "frames", self.frames, 0)
        if not is_number(self.mean) or not is_number(self.std) or self.std <= 0:
            raise FormatError(f"audio_fbank: mean {self.mean!r} and std {self.std!r}, expected numbers, std above 0")

    def _ratio(self, fmt: Format) -> Fraction:
        if len(fmt.shape) != 1 or fmt.dtype == "jpeg" or not fmt.rate:
            raise FormatError(f"audio_fbank: `{fmt.stream}` is no evenly sampled signal, expected one number a channel")
        ratio = self.rate_hz / fmt.rate
        if max(ratio.numerator, ratio.denominator) > LARGEST:
            raise FormatError(
                f"audio_fbank: rate_hz {self.rate_hz} of {float(fmt.rate):g} Hz is {ratio}, expected whole numbers up to {LARGEST}"
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
        found: Real = np.log(np.maximum(power @ filter_bank(self.rate_hz, size, self.n_mels).T, FLOOR))
        return found


@lru_cache(maxsize=8)
def filter_bank(rate_hz: int, size: int, mels: int) -> Real:
    """Weights ``(mels, size // 2 + 1)`` of the bins in the bands: triangles on the mel scale, 1127 ln(1 + f / 700)."""
    high = rate_hz / 2
    edges = np.linspace(_mel(LOW_HZ), _mel(high), mels + 2)
    at = _mel(np.arange(size // 2 + 1) * rate_hz / size)[None]
    left, middle, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bank: Real = np.maximum(0, np.minimum((at - left) / (middle - left), (right - at) / (right - middle)))
    return bank


def _mel(hz: Any) -> Any:
    return 1127.0 * np.log1p(np.asarray(hz) / 700.0)
