"""What becomes of a spectrum. In: a tile's spectra, complex, (channels, count, bins). Out: columns of power, magnitude or angle."""

from __future__ import annotations

from typing import Any

import numpy as np

from processors.steps.spectral import Real, Tile


class Power:
    """Squared magnitudes times a scale, by any of several ways of squaring."""

    exact: bool

    def __init__(self, nfft: int, scale: Any) -> None:
        self._scale = np.full(nfft // 2 + 1, 2 * scale)
        self._scale[0] = scale
        if nfft % 2 == 0:
            self._scale[-1] = scale
        self._tiled: dict[tuple[int, ...], Real] = {}

    def scales(self, shape: tuple[int, ...], dtype: Any) -> Real:
        """The scale of each number of an array ``(channels, count, bins)``; one long multiplication is faster than many short ones."""
        if shape not in self._tiled:
            self._tiled[shape] = np.broadcast_to(self._scale[: shape[-1]], shape).astype(dtype, order="C")
        return self._tiled[shape]


class FastPower(Power):
    """The absolute value, squared: numpy has that in vectors, the sum of every other number with the next one it has not."""

    exact = False

    def __call__(self, tile: Tile, out: Real) -> None:
        """Fill `out` ``(channels, count, bins)`` from the tile's spectrum."""
        np.absolute(tile.spectrum[..., : out.shape[-1]], out)
        np.multiply(out, out, out)
        np.multiply(out, self.scales(out.shape, out.dtype), out)


class ExactPower(Power):
    """A spectrum times its conjugate, times the scale: the same operations as scipy's, so the same to the bit."""

    exact = True

    def __call__(self, tile: Tile, out: Real) -> None:
        """Fill `out` ``(channels, count, bins)`` from the tile's spectrum."""
        # A complex product: where numpy fuses its multiplications and additions, a² + b² would round otherwise.
        power = np.conjugate(tile.spectrum, tile.scratch)
        np.multiply(power, tile.spectrum, power)
        np.multiply(power.real[..., : out.shape[-1]], self.scales(out.shape, self._scale.dtype), out)


class Amplitude:
    """Absolute value or angle of a scaled spectrum."""

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
