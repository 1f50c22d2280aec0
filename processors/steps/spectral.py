"""Spectra of overlapping frames, and what becomes of them. In: samples ``(channels, n)``, float32 or float64. Out: columns
``(channels, m, bins)`` of power, magnitude or angle.

Frames are computed in tiles that stay in a core's cache, in work arrays that all sessions of a thread share.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from typing import Any, Protocol

import numpy as np
import scipy
from numpy.typing import NDArray

from kymo.streams.chunk import Array
from kymo.streams.errors import FormatError

Real = NDArray[Any]

_TILE_BYTES = 512 * 1024  # of frames: fewer calls for small blocks, a second-level cache's worth for large ones
_PLANS_KEPT = 16  # a thread; shapes vary only where a step stands behind the window
_local = threading.local()
#: Windows that are sums of cosines of the turn from -π to π: the factor of each.
_COSINES = {"boxcar": (1.0,), "hann": (0.5, 0.5), "hamming": (0.54, 1 - 0.54), "blackman": (0.42, 0.5, 0.08)}


@cache
def pick_transform() -> Callable[[Real, Real], Any]:
    """``scipy.fft.rfft`` along the last axis, into a given array where scipy lets us.

    The public function's dispatch costs a sixth of a block's transform; below it is the same compiled function.
    """
    try:
        from scipy.fft._pocketfft.pypocketfft import r2c

        trial, result = np.arange(8.0).reshape(1, 8), np.empty((1, 5), np.complex128)
        r2c(trial, (-1,), True, 0, result, 1)
        if np.array_equal(result, scipy.fft.rfft(trial)):
            return lambda frames, out: r2c(frames, (-1,), True, 0, out, 1)
    except (ImportError, TypeError):
        pass
    return transform_publicly


@cache
def load_libraries() -> None:
    """Load what the first block needs, which else would wait for it a quarter of a second."""
    pick_transform()
    scipy.linalg.get_blas_funcs("gemm", dtype=np.float32)


def transform_publicly(frames: Real, out: Real) -> None:
    """``scipy.fft.rfft`` of `frames` along the last axis, into `out`."""
    np.copyto(out, scipy.fft.rfft(frames))


@dataclass(frozen=True, eq=False)
class Frames:
    """How a signal is cut into frames, and what is done to a frame before its transform."""

    length: int  # samples a frame covers, from one to the next, and of the transform (zeros behind the frame)
    step: int
    nfft: int
    detrend: Any  # ``"constant"``, ``"linear"`` or False
    exact: bool = True  # whether means are summed as scipy does


class Tile:
    """Work arrays for `shape` frames, written over by each call, and views of them."""

    def __init__(self, frames: Frames, shape: tuple[int, int], window: Real) -> None:
        dtype, self._frames, length = window.dtype, frames, frames.length
        self._data = np.zeros((*shape, frames.nfft), dtype)
        self._inner = self._data[..., :length]
        # The window once a frame makes one long multiplication out of many short ones.
        tiled = np.ascontiguousarray(np.broadcast_to(window, self._inner.shape))
        whole = frames.nfft == length
        self._flat, self._window = (self._data.reshape(-1), tiled.reshape(-1)) if whole else (self._inner, tiled)
        self._mean = np.zeros((*shape, 1), dtype)
        self._mean_row = self._mean[..., 0]
        self._less_mean = _subtraction(self._inner, self._mean)
        self._weights = np.full(length, 1 / length, dtype)
        at = np.arange(length) - (length - 1) / 2
        self._line = (at / max(np.sqrt((at**2).sum()), 1e-300)).astype(dtype)
        self._transform = pick_transform()
        self.spectrum = np.empty((*shape, frames.nfft // 2 + 1), np.result_type(dtype, np.complex64))

    @cached_property
    def scratch(self) -> Real:
        """As large as :attr:`spectrum`; only who asks for it has one."""
        return np.empty_like(self.spectrum)

    def transform(self, frames: Real) -> None:
        """Fill :attr:`spectrum` from frames ``(channels, count, length)``."""
        inner, detrend = self._inner, self._frames.detrend
        if not detrend:
            np.copyto(inner, frames)
        else:
            if self._frames.exact:
                np.add.reduce(frames, -1, None, self._mean, True)
                np.true_divide(self._mean, self._frames.length, self._mean)
            else:
                np.vecdot(frames, self._weights, self._mean_row)
            np.copyto(inner, frames)  # copying first is faster than subtracting from overlapping rows
            self._less_mean()
            if detrend == "linear":
                inner -= np.vecdot(inner, self._line)[..., None] * self._line
        np.multiply(self._flat, self._window, self._flat)
        self._transform(self._data, self.spectrum)


def _subtraction(frames: Real, mean: Real) -> Callable[[], Any]:
    """What subtracts ``mean (…, 1)`` from ``frames (…, length)`` in place, whatever they hold then.

    As a product of ones and means BLAS takes half of numpy's time, which goes row by row. The products are exact, so the
    numbers are the same.
    """
    if frames.flags.c_contiguous:
        gemm = scipy.linalg.get_blas_funcs("gemm", dtype=frames.dtype)
        length = frames.shape[-1]
        ones, row, turned = np.ones((length, 1), frames.dtype), mean.reshape(1, -1), frames.reshape(-1, length).T
        if np.shares_memory(gemm(-1.0, ones, row, 1.0, turned, 0, 0, 1), frames):
            return lambda: gemm(-1.0, ones, row, 1.0, turned, 0, 0, 1)
    return lambda: np.subtract(frames, mean, frames)


#: Fills ``(channels, count, bins)`` from a tile's spectrum.
SpectrumWriter = Callable[[Tile, Real], None]


class SpectralPlan:
    """Tiles and work arrays for one shape of input."""

    def __init__(
        self, owner: Any, frames: Frames, window: Real, shape: tuple[int, ...], bins: int, finish: SpectrumWriter
    ) -> None:
        self.owner, self._frames, self._window, self._finish = owner, frames, window, finish
        channels, samples = shape
        count = (samples - frames.length) // frames.step + 1
        self._shape = (channels, count, bins)
        frame_bytes = frames.nfft * window.itemsize
        along = _even_share(count, _TILE_BYTES // frame_bytes)
        across = _even_share(channels, _TILE_BYTES // (frame_bytes * along))
        self._tile_slices = [
            (slice(c, min(c + across, channels)), slice(f, min(f + along, count)))
            for c in range(0, channels, across)
            for f in range(0, count, along)
        ]
        self._tiles: dict[tuple[int, int], Tile] = {}
        self._single_tile = self._tile(self._tile_slices[0]) if len(self._tile_slices) == 1 else None

    def _tile(self, at: tuple[slice, slice]) -> Tile:
        shape = (at[0].stop - at[0].start, at[1].stop - at[1].start)
        if shape not in self._tiles:
            self._tiles[shape] = Tile(self._frames, shape, self._window)
        return self._tiles[shape]

    def run(self, samples: Array) -> Real:
        """Columns ``(channels, m, bins)``, C order, new."""
        out: Real = np.empty(self._shape, samples.dtype)
        frames, finish = framed(samples, self._frames.length, self._frames.step), self._finish
        if self._single_tile is not None:
            self._single_tile.transform(frames)
            finish(self._single_tile, out)
            return out
        for at in self._tile_slices:
            tile = self._tile(at)
            tile.transform(frames[at])
            finish(tile, out[at])
        return out


def _even_share(total: int, most: int) -> int:
    """How many to take at a time, at most `most` and at least 1, so that the last time is no small rest."""
    return -(-total // -(-total // max(most, 1)))


class Planned(Protocol):
    def plan(self, samples: Array, rate: Fraction) -> SpectralPlan:
        """Make the plan for samples of this shape and dtype."""


def plan_for(owner: Planned, samples: Array, rate: Fraction) -> SpectralPlan:
    """This thread's plan of `owner` for samples of this shape, dtype and rate."""
    plans: dict[tuple[Any, ...], SpectralPlan] | None = getattr(_local, "plans", None)
    if plans is None:
        plans = _local.plans = {}
        # glibc gives freed memory back to the system beyond a threshold, and taking it again costs more page by page than
        # a window's copy; freeing one larger block raises the threshold for good.
        np.empty(1 << 22, np.uint8)
    key = (id(owner), samples.shape, samples.dtype.char, rate.numerator, rate.denominator)
    plan = plans.get(key)
    if plan is None:  # a plan holds its owner, so no other object gets that id while it is kept
        while len(plans) >= _PLANS_KEPT:
            del plans[next(iter(plans))]
        plan = plans[key] = owner.plan(samples, rate)
    return plan


def power(nfft: int, scale: Any, *, exact: bool) -> SpectrumWriter:
    """Squared magnitudes times a scale."""
    scales = np.full(nfft // 2 + 1, 2 * scale)
    scales[0] = scale
    if nfft % 2 == 0:
        scales[-1] = scale
    tiled: dict[tuple[int, ...], Real] = {}

    def scale_up(powers: Real, out: Real, dtype: Any) -> None:
        if out.shape not in tiled:  # one long multiplication is faster than many short ones
            tiled[out.shape] = np.broadcast_to(scales[: out.shape[-1]], out.shape).astype(dtype, order="C")
        np.multiply(powers, tiled[out.shape], out)

    def fast(tile: Tile, out: Real) -> None:
        # The absolute value, squared: numpy has that in vectors, the sum of every other number with the next one it has not.
        np.absolute(tile.spectrum[..., : out.shape[-1]], out)
        np.multiply(out, out, out)
        scale_up(out, out, out.dtype)

    def precise(tile: Tile, out: Real) -> None:
        # The same operations as scipy's, so the same to the bit: where numpy fuses multiplications and additions, a² + b² would
        # round otherwise than the product of a number and its conjugate.
        product = np.conjugate(tile.spectrum, tile.scratch)
        np.multiply(product, tile.spectrum, product)
        scale_up(product.real[..., : out.shape[-1]], out, scales.dtype)

    return precise if exact else fast


def amplitude(mode: str, scale: float) -> SpectrumWriter:
    """Absolute value or angle of a scaled spectrum."""

    def write_amplitude(tile: Tile, out: Real) -> None:
        np.multiply(tile.spectrum, scale, out=tile.spectrum)
        bins = tile.spectrum[..., : out.shape[-1]]
        if mode == "magnitude":
            np.abs(bins, out=out)
        else:
            angle = np.angle(bins)
            np.copyto(out, np.unwrap(angle, axis=-1) if mode == "phase" else angle)

    return write_amplitude


def framed(samples: Array, length: int, step: int) -> Real:
    """Overlapping frames ``(channels, m, length)`` of ``(channels, n)``: a view, not to be written to."""
    count = (samples.shape[1] - length) // step + 1
    down, along = samples.strides
    # The constructor itself: as_strided takes ten times as long.
    return np.ndarray((len(samples), count, length), samples.dtype, samples, 0, (down, step * along, along))


def taper(window: Any, length: int, step: str) -> Real:
    """A window function's values ``(length,)`` in float64, periodic, as scipy's spectral functions take it."""
    if (common := _common_taper(window, length)) is not None:
        return common
    try:
        values: Real = scipy.signal.get_window(window, length)
    except (ValueError, TypeError) as error:
        raise FormatError(f"{step}: window {window!r}: {error}") from None
    return values


def _common_taper(window: Any, length: int) -> Real | None:
    """The windows that most recipes name, scipy's to the bit: loading scipy.signal takes longer than all else that a start needs."""
    if isinstance(window, tuple) and len(window) == 2 and window[0] == "tukey" and isinstance(window[1], float):
        name, share = "tukey" if 0 < window[1] < 1 else "hann" if window[1] > 0 else "boxcar", window[1]
    elif isinstance(window, str) and window in _COSINES:
        name, share = window, 0.0
    else:
        return None
    if length < 2:
        return np.ones(length)
    if name != "tukey":
        turn = np.linspace(-np.pi, np.pi, length + 1)[:-1]
        return np.asarray(sum(factor * np.cos(k * turn) for k, factor in enumerate(_COSINES[name])))
    at, values = np.arange(length + 1.0), np.ones(length + 1)
    edge = math.floor(share * length / 2) + 1
    values[:edge] = 0.5 * (1 + np.cos(np.pi * (2 * at[:edge] / share / length - 1)))
    values[-edge:] = 0.5 * (1 + np.cos(np.pi * (1 - 2 / share + 2 * at[-edge:] / share / length)))
    return values[:-1]
