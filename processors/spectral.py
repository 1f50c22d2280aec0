"""Spectra of overlapping frames. In: samples ``(channels, n)``, float32 or float64. Out: ``(channels, m, bins)``.

Frames are computed in tiles that stay in a core's cache, in work arrays that all sessions of a thread share.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
import scipy.signal
from numpy.typing import NDArray

from streams.chunk import Array
from streams.errors import FormatError

Real = NDArray[Any]

_TILE_BYTES = 512 * 1024  # of frames: fewer calls for small blocks, a second-level cache's worth for large ones
_PLANS_KEPT = 16  # a thread; shapes vary only where a step stands behind the window
_local = threading.local()


def _pick_transform() -> Callable[[Real, Real], Any]:
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


def transform_publicly(frames: Real, out: Real) -> None:
    """``scipy.fft.rfft`` of `frames` along the last axis, into `out`."""
    np.copyto(out, scipy.fft.rfft(frames))


transform = _pick_transform()


@dataclass(frozen=True, eq=False)
class Frames:
    """How a signal is cut into frames, and what is done to a frame before its transform.

    Attributes
    ----------
    length, step, nfft : int
        Samples a frame covers, from one to the next, and of the transform (zeros behind the frame).
    detrend : str or False
        ``"constant"``, ``"linear"`` or False.
    """

    length: int
    step: int
    nfft: int
    detrend: Any


class Tile:
    """Work arrays for `shape` frames, written over by each call, and views of them.

    Parameters
    ----------
    frames : Frames
        What to compute.
    shape, window
        Channels and frames a channel; ``(length,)``, of the dtype to compute in.
    """

    def __init__(self, frames: Frames, shape: tuple[int, int], window: Real) -> None:
        dtype, self._frames, length = window.dtype, frames, frames.length
        self._data = np.zeros((*shape, frames.nfft), dtype)
        self._inner = self._data[..., :length]
        # The window once a frame makes one long multiplication out of many short ones.
        tiled = np.ascontiguousarray(np.broadcast_to(window, self._inner.shape))
        whole = frames.nfft == length
        self._flat, self._window = (self._data.reshape(-1), tiled.reshape(-1)) if whole else (self._inner, tiled)
        self._mean = np.empty((*shape, 1), dtype)
        self._mean_row = self._mean[..., 0]
        self._weights = np.full(length, 1 / length, dtype)
        at = np.arange(length) - (length - 1) / 2
        self._line = (at / max(np.sqrt((at**2).sum()), 1e-300)).astype(dtype)
        # (channels, count, bins); as one row of real and imaginary parts by turns; and these apart
        self.spectrum = np.empty((*shape, frames.nfft // 2 + 1), np.result_type(dtype, np.complex64))
        self.parts = self.spectrum.view(dtype).reshape(-1)
        self.real, self.imaginary = self.parts[::2], self.parts[1::2]
        self.single = _without_twin(self.parts, frames.nfft)

    def transform(self, frames: Real, exact: bool) -> None:
        """Fill :attr:`spectrum` from frames ``(channels, count, length)``.

        Parameters
        ----------
        frames : ndarray
            Of the signal; not written to.
        exact : bool
            Whether means are summed in numpy's order, as ``numpy.mean`` does, or as is fastest.
        """
        inner, detrend = self._inner, self._frames.detrend
        if not detrend:
            np.copyto(inner, frames)
        else:
            if exact:
                np.add.reduce(frames, -1, None, self._mean, True)
                np.true_divide(self._mean, self._frames.length, self._mean)
            else:
                np.vecdot(frames, self._weights, self._mean_row)
            np.copyto(inner, frames)  # copying first is faster than subtracting from overlapping rows
            np.subtract(inner, self._mean, inner)
            if detrend == "linear":
                inner -= np.vecdot(inner, self._line)[..., None] * self._line
        np.multiply(self._flat, self._window, self._flat)
        transform(self._data, self.spectrum)


def _without_twin(parts: Real, nfft: int) -> Real:
    """View ``(1 or 2, frames)`` of the bins without a twin: the first, and an even length's last."""
    row = 2 * (nfft // 2 + 1)
    by_frame = parts.reshape(-1, row)
    return by_frame.T[:1] if nfft % 2 else by_frame.T[:: row - 2]


class FastPower:
    """Squares of a spectrum whose window holds the square root of twice the scale."""

    exact = False
    _root_half = np.float32(0.5**0.5)

    def __call__(self, tile: Tile, out: Real) -> None:
        """Fill `out` ``(channels, count, bins)`` from the tile's spectrum."""
        single, parts = tile.single, tile.parts
        # Bins without a twin count once; their imaginary parts are 0. Order C: bin by bin, in long rows.
        np.multiply(single, self._root_half, single, order="C")
        np.multiply(parts, parts, parts)
        kept = out.shape[-1]
        if kept == tile.spectrum.shape[-1]:
            np.add(tile.real, tile.imaginary, out.reshape(-1))
        else:
            np.add(tile.spectrum.real[..., :kept], tile.spectrum.imag[..., :kept], out)


class ExactPower:
    """A spectrum times its conjugate, times the scale: the same operations as scipy's, so the same to the bit.

    Parameters
    ----------
    nfft : int
        Length of the transform.
    scale : float
        Factor of bins without a twin; the others have twice that.
    """

    exact = True

    def __init__(self, nfft: int, scale: float) -> None:
        self._scale = np.full(nfft // 2 + 1, 2 * scale)
        self._scale[0] = scale
        if nfft % 2 == 0:
            self._scale[-1] = scale

    def __call__(self, tile: Tile, out: Real) -> None:
        """Fill `out` ``(channels, count, bins)`` from the tile's spectrum."""
        # A complex product: where numpy fuses its multiplications and additions, a² + b² would round otherwise.
        power = np.multiply(np.conjugate(tile.spectrum), tile.spectrum, tile.spectrum)
        kept = out.shape[-1]
        np.multiply(power.real[..., :kept], self._scale[:kept], out)


class Amplitude:
    """Absolute value or angle of a scaled spectrum.

    Parameters
    ----------
    mode : str
        ``"magnitude"``, ``"angle"`` or ``"phase"``.
    scale : float
        Factor.
    """

    exact = True

    def __init__(self, mode: str, scale: float) -> None:
        self._mode, self._scale = mode, scale

    def __call__(self, tile: Tile, out: Real) -> None:
        """Fill `out` ``(channels, count, bins)`` from the tile's spectrum."""
        np.multiply(tile.spectrum, self._scale, out=tile.spectrum)
        kept = tile.spectrum[..., : out.shape[-1]]
        if self._mode == "magnitude":
            np.abs(kept, out=out)
        else:
            angle = np.angle(kept)
            np.copyto(out, np.unwrap(angle, axis=-1) if self._mode == "phase" else angle)


class Plan:
    """Tiles and work arrays for one shape of input.

    Parameters
    ----------
    owner : object
        The Spec that it is for.
    frames, window, shape
        What to compute, ``(length,)`` in the dtype to compute in (it may hold a scale), and the samples' ``(channels, n)``.
    bins : int
        Bins to give, from the first.
    finish : callable
        Turns a tile's spectrum into columns; its attribute `exact` goes to :meth:`Tile.transform`.
    """

    def __init__(
        self, owner: Any, frames: Frames, window: Real, shape: tuple[int, ...], bins: int, finish: Any
    ) -> None:
        self.owner, self._frames, self._window, self._finish = owner, frames, window, finish
        channels, samples = shape
        count = (samples - frames.length) // frames.step + 1
        self._shape = (channels, count, bins)
        one = frames.nfft * window.itemsize
        along = max(1, min(count, _TILE_BYTES // one))
        across = max(1, min(channels, _TILE_BYTES // (one * along)))
        self._at = [
            (slice(c, min(c + across, channels)), slice(f, min(f + along, count)))
            for c in range(0, channels, across)
            for f in range(0, count, along)
        ]
        self._tiles: dict[tuple[int, int], Tile] = {}
        self._only = self._tile(self._at[0]) if len(self._at) == 1 else None

    def _tile(self, at: tuple[slice, slice]) -> Tile:
        shape = (at[0].stop - at[0].start, at[1].stop - at[1].start)
        if shape not in self._tiles:
            self._tiles[shape] = Tile(self._frames, shape, self._window)
        return self._tiles[shape]

    def run(self, samples: Array) -> Real:
        """Columns ``(channels, m, bins)``, C order, new."""
        out: Real = np.empty(self._shape, samples.dtype)
        frames, finish = framed(samples, self._frames.length, self._frames.step), self._finish
        if self._only is not None:
            self._only.transform(frames, finish.exact)
            finish(self._only, out)
            return out
        for at in self._at:
            tile = self._tile(at)
            tile.transform(frames[at], finish.exact)
            finish(tile, out[at])
        return out


def plan_for(owner: Any, samples: Array, rate: Any, make: Callable[[], Plan]) -> Plan:
    """This thread's plan of `owner` for samples of this shape, dtype and rate; made by `make` at first."""
    plans: dict[tuple[Any, ...], Plan] | None = getattr(_local, "plans", None)
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
        plan = plans[key] = make()
    return plan


def framed(samples: Array, length: int, step: int) -> Real:
    """Overlapping frames ``(channels, m, length)`` of ``(channels, n)``: a view, not to be written to."""
    count = (samples.shape[1] - length) // step + 1
    down, along = samples.strides
    # The constructor itself: as_strided takes ten times as long.
    return np.ndarray((len(samples), count, length), samples.dtype, samples, 0, (down, step * along, along))


def taper(window: Any, length: int, step: str) -> Real:
    """A window function's values ``(length,)`` in float64, periodic, as scipy's spectral functions take it.

    Raises
    ------
    FormatError
        If scipy knows no such window.
    """
    try:
        values: Real = scipy.signal.get_window(window, length)
    except (ValueError, TypeError) as error:
        raise FormatError(f"{step}: window {window!r}: {error}") from None
    return values
