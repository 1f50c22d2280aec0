"""ResNet50 and its like over spectrograms, in Keras. In: windows (n, time, bins, channels) float32. Out: logits and more.

Convolutions in front map any number of channels to the three that networks trained on images take. The backbones `small` and
`resnet18` are built here and take any shape and number of channels; the others are Keras' own, take three channels, and have
ImageNet weights. Without those the large ones need a GPU and much data; `backbone = "small"` learns on two cores.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, ClassVar

from kymo.models.training.fit_keras import keras
from kymo.models.zoo import Epoch, FitOptions, Range, Samples
from kymo.models.zoo.keras_onnx import KerasArchitecture
from kymo.streams.errors import TrainingError
from kymo.streams.schema import Amount, Below1, Count, Positive, Rules, Share, Whole

_log = logging.getLogger(__name__)
FRONTS = ("conv2d", "deep", "conv3d", "none")


@dataclass(frozen=True)
class SpectrogramResNetParameters:
    backbone: Annotated[str, Rules(enum=BACKBONES)] = "resnet50"
    weights: str = "imagenet"
    width: Whole = 0
    front: Annotated[str, Rules(enum=FRONTS)] = "conv2d"
    frozen_names: str = ""
    frozen_layers: Whole = 0
    frozen_share: Share = 0.0
    batch_norm: bool = True
    momentum: Below1 = 0.9
    dropout: Below1 = 0.5
    learning_rate: Positive = 1e-3
    weight_decay: Amount = 0.0
    batch_size: Count = 32
    schedule: str = "cosine"


#: Blocks a stage, and filters of the first stage, of the networks that are built here.
BUILT_HERE = {"small": ((1, 1, 1), 16), "resnet18": ((2, 2, 2, 2), 64)}
#: Names in keras.applications.
FROM_KERAS = {
    "resnet50": "ResNet50",
    "resnet101": "ResNet101",
    "resnet152": "ResNet152",
    "efficientnetb0": "EfficientNetB0",
}
BACKBONES = (*BUILT_HERE, *FROM_KERAS)
_LEAST = 32  # keras.applications' networks halve an axis five times
_TIMEOUT_S = 20.0


class SpectrogramResnet(KerasArchitecture):
    name, takes_parameters = "spectrogram_resnet", SpectrogramResNetParameters
    cpu_sized: ClassVar[Mapping[str, Any]] = {"backbone": "small", "width": 8, "dropout": 0.0}
    search: ClassVar[Mapping[str, Range]] = {
        "learning_rate": (3e-4, 1e-3, 3e-3),
        "dropout": (0.2, 0.5),
        "front": ("conv2d", "conv3d", "deep"),
    }

    def build(self) -> Any:
        p = self.parameters
        _check(p, self.shape[-1])
        source = keras.Input(self.shape)
        x = source if len(self.shape) == 3 else keras.layers.Reshape((self.shape[0], 1, self.shape[1]))(source)
        x = _front(p, x)
        x = _padded(x) if p["backbone"] in FROM_KERAS else x
        before = keras.Model(source, x).layers
        if p["backbone"] in BUILT_HERE:
            features = _residual_features(p, x)
        else:
            model = _keras_model(p["backbone"])(include_top=False, weights=None, input_tensor=x, pooling="avg")
            features = model.outputs[0]
        self._backbone = [layer for layer in keras.Model(source, features).layers if layer not in before]
        self._freeze(self._backbone)
        return keras.Model(source, self.output(keras.layers.Dropout(p["dropout"])(features)))

    def fit(
        self, training: Samples, validation: Samples | None, options: FitOptions, on_epoch: Callable[[Epoch], None]
    ) -> None:
        """Take the backbone's learned weights, then learn by AdamW; with validation, keep the best epoch's weights."""
        p = self.parameters
        if p["backbone"] in FROM_KERAS:
            lacking = _pretrain(p["backbone"], p["weights"], self._backbone)
            if lacking:
                _log.warning(lacking)
                self.notes.append(lacking)
            if lacking or p["weights"] == "fresh":
                for layer in self._backbone:
                    if isinstance(layer, keras.layers.BatchNormalization):
                        layer.momentum = p["momentum"]
        super().fit(training, validation, options, on_epoch)

    def _freeze(self, layers: Sequence[Any]) -> None:
        """Keep the weights of some layers of the backbone, in the order from the input."""
        p = self.parameters
        count = p["frozen_layers"] or int(p["frozen_share"] * len(layers))
        if count > len(layers):
            raise TrainingError(f"[model] frozen_layers = {count}, but {p['backbone']} has {len(layers)} layers")
        for layer in layers[:count]:
            layer.trainable = False
        for pattern in filter(None, (name.strip() for name in p["frozen_names"].split(","))):
            frozen = [layer for layer in layers if fnmatchcase(layer.name, pattern)]
            if not frozen:
                names = [layer.name for layer in layers if layer.weights]
                raise TrainingError(
                    f"[model] frozen_names: {p['backbone']} has no layer {pattern!r}; it begins with "
                    f"{', '.join(names[:4])} and ends with {', '.join(names[-2:])}"
                )
            for layer in frozen:
                layer.trainable = False


def _check(p: Mapping[str, Any], channels: int) -> None:
    if p["front"] == "none" and p["backbone"] not in BUILT_HERE and channels != 3:
        raise TrainingError(f"[model] front = 'none': {p['backbone']} takes 3 channels, the recipe makes {channels}")
    if p["weights"] not in ("imagenet", "fresh") and not (p["backbone"] in FROM_KERAS and Path(p["weights"]).is_file()):
        raise TrainingError(
            f"[model] weights = {p['weights']!r}: expected imagenet, fresh or, for {', '.join(FROM_KERAS)}, a file"
        )
    if p["width"] and p["backbone"] not in BUILT_HERE:
        raise TrainingError(f"[model] width is for {' and '.join(BUILT_HERE)} alone, {p['backbone']} has its own")
    if sum(bool(p[key]) for key in ("frozen_names", "frozen_layers", "frozen_share")) > 1:
        raise TrainingError("[model] takes one of frozen_names, frozen_layers and frozen_share, not several")


def _front(p: Mapping[str, Any], x: Any) -> Any:
    """Turn ``(n, time, bins, channels)`` into ``(n, time, bins, 3)``."""
    if p["front"] == "none":
        return x
    if p["front"] == "conv3d":
        # Neighbouring channels are axes of one sensor: the first layer takes three at once, the second one all.
        _, time, bins, channels = x.shape
        x = keras.layers.Reshape((time, bins, channels, 1))(x)
        x = _relu(_convolved(p, x, "front_1", 4, (3, 3, min(3, channels))))
        x = _convolved(p, x, "front_2", 3, (1, 1, channels), padding="valid")
        return keras.layers.Reshape((time, bins, 3))(x)
    widths = (32, 16, 8) if p["front"] == "deep" else (8,)
    for i, filters in enumerate(widths, 1):
        x = _relu(_convolved(p, x, f"front_{i}", filters, (3, 3)))
    return _convolved(p, x, f"front_{len(widths) + 1}", 3, (1, 1))


def _convolved(
    p: Mapping[str, Any], x: Any, name: str, filters: int, size: tuple[int, ...], padding: str = "same", **options: Any
) -> Any:
    """Add a convolution and, where they are asked for, normalised batches: layers called `name` and ``_conv`` or ``_bn``."""
    layer = keras.layers.Conv3D if len(size) == 3 else keras.layers.Conv2D
    x = layer(filters, size, padding=padding, use_bias=not p["batch_norm"], name=f"{name}_conv", **options)(x)
    return keras.layers.BatchNormalization(momentum=p["momentum"], name=f"{name}_bn")(x) if p["batch_norm"] else x


def _relu(x: Any) -> Any:
    return keras.layers.Activation("relu")(x)


def _residual_features(p: Mapping[str, Any], x: Any) -> Any:
    """Build a residual network of basic blocks (He et al. 2016, Deep Residual LearningSettings, section 3.3 and table 1)."""
    stages, width = BUILT_HERE[p["backbone"]]
    width = p["width"] or width
    x = _relu(_residual(p, x, "stem", width, 7, _strides(x, 16)))
    x = keras.layers.MaxPooling2D(3, _strides(x, 16), padding="same")(x)
    for i, blocks in enumerate(stages):
        for j in range(blocks):
            name, filters, strides = (
                f"stage{i + 1}_block{j + 1}",
                width * 2**i,
                _strides(x, 4) if i and not j else (1, 1),
            )
            inner = _relu(_residual(p, x, f"{name}_1", filters, 3, strides))
            inner = _residual(p, inner, f"{name}_2", filters, 3)
            if strides != (1, 1) or x.shape[-1] != filters:
                x = _residual(p, x, f"{name}_0", filters, 1, strides)
            x = _relu(keras.layers.Add()([inner, x]))
    return keras.layers.GlobalAveragePooling2D()(x)


def _strides(x: Any, least: int) -> tuple[int, int]:
    """Go by 2 along what is long enough to lose half of it."""
    _, time, bins, _ = x.shape
    return (2 if time >= least else 1, 2 if bins >= least else 1)


def _residual(
    p: Mapping[str, Any], x: Any, name: str, filters: int, size: int, strides: tuple[int, int] = (1, 1)
) -> Any:
    # An axis of one place (a plain signal) needs no more of the kernel than its middle.
    kernel = tuple(min(size, 2 * length - 1) for length in x.shape[1:3])
    return _convolved(p, x, name, filters, kernel, strides=strides, kernel_initializer="he_normal")


def _padded(x: Any) -> Any:
    """Continue by zeros what is too short for Keras' own networks."""
    missing = [max(0, _LEAST - length) for length in x.shape[1:3]]
    sides = [(size // 2, size - size // 2) for size in missing]
    return keras.layers.ZeroPadding2D(sides)(x) if any(missing) else x


def _pretrain(name: str, weights: str, layers: Sequence[Any]) -> str:
    """Give the layers of a borrowed network the weights that it has learned elsewhere; empty, or why it keeps fresh ones."""
    if weights == "fresh":
        return ""
    # The network by itself: a file's order of layers is not that of a larger model.
    if weights == "imagenet":
        try:
            # Keras reports a download on the standard output, where results belong.
            with contextlib.redirect_stdout(sys.stderr), _timeout():
                learned = _keras_model(name)(include_top=False, weights="imagenet", pooling="avg")
        except Exception as error:  # Keras wraps what the network says in bare Exceptions
            return (
                f"no ImageNet weights of {name}: {str(error).splitlines()[0][:200]}; it begins with fresh ones, which "
                f'need far more data. Give a file ([model] weights = "PATH"), or say weights = "fresh"'
            )
    else:
        learned = _keras_model(name)(include_top=False, weights=None, pooling="avg")
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
    pairs = ([layer for layer in row if layer.weights] for row in (layers, learned.layers))
    for layer, source in zip(*pairs, strict=True):
        layer.set_weights(source.get_weights())
    return ""


def _keras_model(name: str) -> Any:
    return getattr(keras.applications, FROM_KERAS[name])


@contextlib.contextmanager
def _timeout() -> Iterator[None]:
    """End a download that hangs."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
