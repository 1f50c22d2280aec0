"""Images to pixels and back. In: JPEG images ``(n,)`` or pixels ``(n, height, width, 3)``. Out: the other.

Both are Pillow's (the extra `frames`), so what is kept as images offline went through the same encoder as what comes live.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kymo.processors.spec import MapSpec, only
from kymo.streams.chunk import Array, Format
from kymo.streams.errors import FormatError
from kymo.streams.schema import Count, Rules

COLOURS = ("red", "green", "blue")
_MOST_PIXELS = 2**25  # of an image; a few bytes may claim to be a larger one


def pillow(step: str) -> Any:
    """Pillow's module of images."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise FormatError(
            f'{step}: Pillow is not installed; install the extra `frames`: pip install "kymo-streams[frames]"'
        ) from None
    return Image


@dataclass(frozen=True)
class Decode(MapSpec):
    """JPEG images as pixels: red, green and blue from 0 to 255, of one size, whatever size they come in.

    What is no image, is damaged or has over 33 million pixels becomes black.
    """

    height: Count
    width: Count
    name: ClassVar[str] = "decode"

    def output(self, inputs: Mapping[str, Format]) -> Format:
        """Pixels ``(height, width, 3)``, uint8."""
        fmt = only(inputs)
        if fmt.dtype != "jpeg":
            raise FormatError(f"decode: `{fmt.stream}` holds {fmt.dtype}{fmt.shape}, expected jpeg images")
        pillow(self.name)  # it is missed now, not when data come
        return replace(fmt, channels=COLOURS, units=(), dtype="uint8", shape=(self.height, self.width, 3))

    def apply(self, data: Array, fmt: Format) -> Array:
        """``(n,)`` to ``(n, height, width, 3)``."""
        out = np.zeros((len(data), self.height, self.width, 3), np.uint8)
        for row, image in zip(out, data, strict=True):
            self._decode(image, row)
        return out

    def _decode(self, image: bytes, out: NDArray[np.uint8]) -> None:
        library, size = pillow(self.name), (self.width, self.height)
        try:
            with library.open(io.BytesIO(image), formats=("JPEG",)) as opened:
                if opened.width * opened.height > _MOST_PIXELS:
                    return
                pixels = opened.convert("RGB")
                out[...] = pixels if pixels.size == size else pixels.resize(size, library.Resampling.BILINEAR)
        except Exception:  # it names no class for all that a damaged image may do
            out[...] = 0


@dataclass(frozen=True)
class Encode(MapSpec):
    """Pixels as JPEG images, which take a tenth of the room."""

    quality: Annotated[int, Rules(minimum=1, maximum=95, expected="a whole number from 1 to 95")] = 90
    name: ClassVar[str] = "encode"

    def output(self, inputs: Mapping[str, Format]) -> Format:
        """Images."""
        fmt = only(inputs)
        if fmt.dtype != "uint8" or len(fmt.shape) != 3 or fmt.shape[-1] not in (1, 3):
            raise FormatError(
                f"encode: `{fmt.stream}` holds {fmt.dtype}{fmt.shape}, expected pixels, uint8(height, width, 3) or (height, width, 1)"
            )
        pillow(self.name)
        return replace(fmt, units=(), dtype="jpeg", shape=())

    def apply(self, data: Array, fmt: Format) -> Array:
        """``(n, height, width, channels)`` to ``(n,)``."""
        out, library = np.empty(len(data), object), pillow(self.name)
        for i, pixels in enumerate(data):
            file = io.BytesIO()
            library.fromarray(pixels if fmt.shape[-1] == 3 else pixels[..., 0]).save(file, "JPEG", quality=self.quality)
            out[i] = file.getvalue()
        return out
