"""Residual and other networks over images, in Keras. In: a tensor (n, time, bins, channels). Out: features (n, width).

`small` and `resnet18` are built here and take any shape and number of channels; the others are Keras' own, take three
channels, and have ImageNet weights.
"""

from __future__ import annotations

import contextlib
import socket
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from models.training.fit_keras import keras
from models.zoo.keras_common import output_aside
from streams.errors import TrainingError

#: Blocks a stage, and filters of the first stage, of the networks that are built here.
OWN = {"small": ((1, 1, 1), 16), "resnet18": ((2, 2, 2, 2), 64)}
#: Names in keras.applications.
BORROWED = {
    "resnet50": "ResNet50",
    "resnet101": "ResNet101",
    "resnet152": "ResNet152",
    "efficientnetb0": "EfficientNetB0",
}
BACKBONES = (*OWN, *BORROWED)
_LEAST = 32  # keras.applications' networks halve an axis five times
_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Whether batches are normalised, and how slowly the running mean and variance follow (0 to below 1)."""

    on: bool = True
    momentum: float = 0.9

    def __call__(self, x: Any, name: str) -> Any:
        """`x`, normalised where it is on by a layer called `name` and ``_bn``."""
        return keras.layers.BatchNormalization(momentum=self.momentum, name=f"{name}_bn")(x) if self.on else x


def own(name: str, width: int, normalise: Normalisation, x: Any) -> Any:
    """Features of a residual network of basic blocks (He et al. 2016, Deep Residual Learning, section 3.3 and table 1)."""
    stages, own_width = OWN[name]
    width = width or own_width
    x = _convolve(x, "stem", (width, 7, _strides(x, 16)), normalise)
    x = keras.layers.Activation("relu")(x)
    x = keras.layers.MaxPooling2D(3, _strides(x, 16), padding="same")(x)
    for i, blocks in enumerate(stages):
        for j in range(blocks):
            strides = _strides(x, 4) if i and not j else (1, 1)
            x = _block(x, f"stage{i + 1}_block{j + 1}", width * 2**i, strides, normalise)
    return keras.layers.GlobalAveragePooling2D()(x)


def _strides(x: Any, least: int) -> tuple[int, int]:
    """2 along what is long enough to lose half of it."""
    _, time, bins, _ = x.shape
    return (2 if time >= least else 1, 2 if bins >= least else 1)


def _convolve(x: Any, name: str, kind: tuple[int, int, tuple[int, int]], normalise: Normalisation) -> Any:
    """A convolution of (filters, size, strides), its layers called `name` and ``_conv`` or ``_bn``."""
    filters, size, strides = kind
    # An axis of one place (a plain signal) needs no more of the kernel than its middle.
    kernel = tuple(min(size, 2 * length - 1) for length in x.shape[1:3])
    options = {"use_bias": not normalise.on, "kernel_initializer": "he_normal", "name": f"{name}_conv"}
    return normalise(keras.layers.Conv2D(filters, kernel, strides, padding="same", **options)(x), name)


def _block(x: Any, name: str, filters: int, strides: tuple[int, int], normalise: Normalisation) -> Any:
    inner = keras.layers.Activation("relu")(_convolve(x, f"{name}_1", (filters, 3, strides), normalise))
    inner = _convolve(inner, f"{name}_2", (filters, 3, (1, 1)), normalise)
    if strides != (1, 1) or x.shape[-1] != filters:
        x = _convolve(x, f"{name}_0", (filters, 1, strides), normalise)
    return keras.layers.Activation("relu")(keras.layers.Add()([inner, x]))


def borrowed(name: str, x: Any) -> tuple[Any, list[Any]]:
    """Features of one of Keras' own networks, with fresh weights, and its layers."""
    missing = [max(0, _LEAST - length) for length in x.shape[1:3]]
    if any(missing):
        x = keras.layers.ZeroPadding2D([(size // 2, size - size // 2) for size in missing])(x)
    before = {layer.name for layer in keras.Model(keras.utils.get_source_inputs(x), x).layers}
    made = _make(name)(include_top=False, weights=None, input_tensor=x, pooling="avg")
    return made.outputs[0], [layer for layer in made.layers if layer.name not in before]


def pretrain(name: str, weights: str, layers: Sequence[Any]) -> str:
    """Give the layers of a borrowed network the weights that it has learned elsewhere; empty, or why it keeps fresh ones."""
    if weights == "fresh":
        return ""
    # The network by itself: a file's order of layers is not that of a larger model.
    if weights == "imagenet":
        try:
            with output_aside(), _timeout():
                learned = _make(name)(include_top=False, weights="imagenet", pooling="avg")
        except Exception as error:  # Keras wraps what the network says in bare Exceptions
            return (
                f"no ImageNet weights of {name}: {str(error).splitlines()[0][:200]}; it begins with fresh ones, which "
                f'need far more data. Give a file ([model] weights = "PATH"), or say weights = "fresh"'
            )
    else:
        learned = _make(name)(include_top=False, weights=None, pooling="avg")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # what a file lacks, Keras only warns of
                learned.load_weights(weights)
        except Exception as error:  # h5py's and Keras' errors share no base
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise TrainingError(
                f"[model] weights = {weights!r}: not those of {name} without its top ({reason})"
            ) from None
    # By order, since a few layers have no name of their own.
    ours, theirs = ([layer for layer in some if layer.weights] for some in (layers, learned.layers))
    for mine, other in zip(ours, theirs, strict=True):
        mine.set_weights(other.get_weights())
    return ""


def _make(name: str) -> Any:
    return getattr(keras.applications, BORROWED[name])


@contextlib.contextmanager
def _timeout() -> Iterator[None]:
    """A download that hangs ends."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
