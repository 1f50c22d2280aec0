"""Residual and other networks over images, in Keras. In: a tensor (n, time, bins, channels). Out: features (n, width).

`small` and `resnet18` are built here and take any shape and number of channels; the others are Keras' own, take three
channels, and have ImageNet weights.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from models.zoo.keras_common import output_aside
from streams.errors import TrainingError

_log = logging.getLogger(__name__)
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

    def __call__(self, x: Any) -> Any:
        """`x`, normalised where it is on."""
        return keras.layers.BatchNormalization(momentum=self.momentum)(x) if self.on else x


def own(name: str, width: int, normalise: Normalisation, x: Any) -> Any:
    """Features of a residual network of basic blocks (He et al. 2016, Deep Residual Learning, section 3.3 and table 1).

    Parameters
    ----------
    name : str
        One of :data:`OWN`.
    width : int
        Filters of the first stage, doubled from stage to stage; 0 for the network's own.
    normalise : Normalisation
        Behind each convolution.
    x : KerasTensor
        ``(n, time, bins, channels)``.
    """
    stages, own_width = OWN[name]
    width = width or own_width
    x = _convolve(x, width, 7, _strides(x, 16), normalise)
    x = keras.layers.Activation("relu")(x)
    x = keras.layers.MaxPooling2D(3, _strides(x, 16), padding="same")(x)
    for i, blocks in enumerate(stages):
        for j in range(blocks):
            x = _block(x, width * 2**i, _strides(x, 4) if i and not j else (1, 1), normalise)
    return keras.layers.GlobalAveragePooling2D()(x)


def _strides(x: Any, least: int) -> tuple[int, int]:
    """2 along what is long enough to lose half of it."""
    _, time, bins, _ = x.shape
    return (2 if time >= least else 1, 2 if bins >= least else 1)


def _convolve(x: Any, filters: int, size: int, strides: tuple[int, int], normalise: Normalisation) -> Any:
    # An axis of one place (a plain signal) needs no more of the kernel than its middle.
    kernel = tuple(min(size, 2 * length - 1) for length in x.shape[1:3])
    convolution = keras.layers.Conv2D(
        filters, kernel, strides, padding="same", use_bias=not normalise.on, kernel_initializer="he_normal"
    )
    return normalise(convolution(x))


def _block(x: Any, filters: int, strides: tuple[int, int], normalise: Normalisation) -> Any:
    inner = keras.layers.Activation("relu")(_convolve(x, filters, 3, strides, normalise))
    inner = _convolve(inner, filters, 3, (1, 1), normalise)
    if strides != (1, 1) or x.shape[-1] != filters:
        x = _convolve(x, filters, 1, strides, normalise)
    return keras.layers.Activation("relu")(keras.layers.Add()([inner, x]))


def borrowed(name: str, weights: str, momentum: float, x: Any) -> tuple[Any, list[Any], str]:
    """Features of one of Keras' own networks, its layers, and the weights that it really has.

    Parameters
    ----------
    name : str
        One of :data:`BORROWED`.
    weights : str
        ``imagenet`` (from Keras' cache or the network, else fresh ones, which a warning says), ``fresh``, or a file of
        weights without the network's top.
    momentum : float
        Of the batch normalisation of fresh weights, 0 to below 1.
    x : KerasTensor
        ``(n, time, bins, 3)``; axes shorter than 32 are filled up with zeros.

    Raises
    ------
    TrainingError
        If the file holds no weights of this network.
    """
    make = getattr(keras.applications, BORROWED[name])
    missing = [max(0, _LEAST - length) for length in x.shape[1:3]]
    if any(missing):
        x = keras.layers.ZeroPadding2D([(size // 2, size - size // 2) for size in missing])(x)
    learned, weights = _learned(make, name, weights, x.shape[1:])
    made = make(include_top=False, weights=None, input_tensor=x, pooling="avg")
    ours = {layer.name for layer in learned.layers if not isinstance(layer, keras.layers.InputLayer)}
    layers = [layer for layer in made.layers if layer.name in ours]
    for layer in layers:
        layer.set_weights(learned.get_layer(layer.name).get_weights())
        if weights == "fresh" and isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = momentum
    return made.outputs[0], layers, weights


def _learned(make: Callable[..., Any], name: str, weights: str, shape: Any) -> tuple[Any, str]:
    """The network by itself, for its weights: a file's order of layers is not that of a larger model."""
    if weights == "imagenet":
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(_TIMEOUT_S)
        try:
            with output_aside():
                return make(include_top=False, weights="imagenet", input_shape=shape, pooling="avg"), weights
        except Exception as error:  # Keras wraps what the network says in bare Exceptions
            _log.warning(
                "no ImageNet weights of %s: %s; it begins with fresh ones, which need far more data. Give a file "
                '([model] weights = "PATH"), or say weights = "fresh" to be rid of this line',
                name,
                str(error).splitlines()[0][:200],
            )
        finally:
            socket.setdefaulttimeout(before)
        weights = "fresh"
    made = make(include_top=False, weights=None, input_shape=shape, pooling="avg")
    if weights != "fresh":
        if not Path(weights).is_file():
            raise TrainingError(f"[model] weights = {weights!r}: no such file; expected imagenet, fresh or a file")
        try:
            made.load_weights(weights)
        except Exception as error:  # h5py's and Keras' errors share no base
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise TrainingError(
                f"[model] weights = {weights!r}: not those of {name} without its top ({reason})"
            ) from None
    return made, weights
