"""A small network over spectrograms, in torch. In: windows (n, channels, time, bins) float32. Out: (n, columns), logits
of the labels, then what further heads say.

A first layer takes non-overlapping patches, which cuts the work of all that follows; two more convolutions, the mean
over time and bins, and a 1x1 convolution give the logits. There is no dense layer, whose bytes would depend on the
batch. A plain signal (time, channels) counts as a spectrogram of one bin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from kymo.models.zoo import Between, Epoch, FitOptions, Range, Samples
from kymo.models.zoo.torch_common import TorchArchitecture
from kymo.streams.chunk import Array
from kymo.streams.schema import Amount, Below1, Count, Positive, Whole

_MOST_SEEN = 1024  # windows from which the spread is taken


@dataclass(frozen=True)
class SpectrogramCnnParameters:
    width: Count = 16
    patch_time: Whole = 0
    patch_bins: Whole = 0
    dropout: Below1 = 0.1
    learning_rate: Positive = 3e-3
    weight_decay: Amount = 1e-2
    batch_size: Count = 32
    jitter: float = 0.1
    scale: float = 0.1
    shift: float = 0.1


class SpectrogramCnn(TorchArchitecture):
    name, takes_parameters, habits = "spectrogram_cnn", SpectrogramCnnParameters, {"label_smoothing": 0.02}
    packages: ClassVar[tuple[str, ...]] = ("torch", "onnx", "onnxscript")
    search: ClassVar[Mapping[str, Range]] = {
        "width": (8, 16, 32),
        "dropout": (0.0, 0.1, 0.3),
        "learning_rate": Between(1e-3, 1e-2),
        "weight_decay": Between(1e-3, 1e-1),
        "jitter": (0.0, 0.05, 0.1, 0.2),
        "shift": (0.0, 0.1, 0.2),
    }

    def build(self) -> nn.Module:
        channels, time, bins = (*self.shape, 1)[:3]
        p, width = self.parameters, self.parameters["width"]
        # About 32 places an axis are left to the layers behind the patches; what is small already stays whole.
        patch_time = min(p["patch_time"] or _patch(time), time)
        patch_bins = min(p["patch_bins"] or _patch(bins), bins)
        patch = (patch_time, patch_bins)
        first = (time // patch_time, bins // patch_bins)
        second = (_halved(first[0]), _halved(first[1]))
        return nn.Sequential(
            *([nn.Unflatten(2, (time, 1))] if len(self.shape) == 2 else []),
            nn.Conv2d(channels, width, patch, patch, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, _stride(first), 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, _stride(second), 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Dropout(p["dropout"]),
            nn.Conv2d(2 * width, self.columns, 1),
            nn.Flatten(),
        )

    def fit(
        self, training: Samples, validation: Samples | None, options: FitOptions, on_epoch: Callable[[Epoch], None]
    ) -> None:
        """Learn from windows that are varied."""
        p, first = self.parameters, options.augment
        spread = float(training.windows[:_MOST_SEEN].std()) or 1.0

        def augment(windows: Array, random: np.random.Generator) -> Array:
            return _varied(first(windows, random) if first else windows, p, spread, random)

        super().fit(training, validation, replace(options, augment=augment), on_epoch)


def _patch(size: int) -> int:
    return 1 if size < 16 else 2 if size < 64 else max(4, size // 32)


def _stride(size: tuple[int, int]) -> tuple[int, int]:
    """Go by 2 along what is long enough to lose half of it."""
    return (2 if size[0] >= 8 else 1, 2 if size[1] >= 8 else 1)


def _halved(size: int) -> int:
    return (size + 1) // 2 if size >= 8 else size


def _varied(windows: Array, p: Mapping[str, Any], spread: float, random: np.random.Generator) -> Array:
    """Vary a batch ``(n, channels, time, …)``: with noise, another loudness of each channel, and shifted in time."""
    aside = (1,) * (windows.ndim - 2)
    varied: NDArray[np.float32] = windows.astype(np.float32, copy=False)
    varied *= 1 + p["scale"] * random.standard_normal((*windows.shape[:2], *aside), np.float32)
    varied += p["jitter"] * spread * random.standard_normal(windows.shape, np.float32)
    most = int(p["shift"] * windows.shape[2])
    if most:
        for window, by in zip(varied, random.integers(-most, most + 1, len(windows)), strict=True):
            window[:] = np.roll(window, by, axis=1)
    return varied
