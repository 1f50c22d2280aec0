"""What the Keras architectures share: output columns, the model behind the protocol, and its ONNX. In: layers. Out: an Architecture.

A model has one output, ``(n, columns)``: logits of the classes, then what each further head says. A number comes in its
own unit (3,000 s, 42.5 points): the last layer scales and shifts it by spread and mean of the training windows' own.

The ONNX graph is written node by node from the layers' weights: no tracing, no converter with pins of its own, nothing that
only training needs; the same weights give the same bytes. Arrays are (n, channels, …) inside, as ONNX Runtime's convolutions want
them; what Keras holds as (n, features) is (n, features, 1, 1) here and a dense layer a 1x1 convolution, whose bytes do not depend on
the batch.
"""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kymo.models.training.fit_keras import fit_keras, keras, predict_keras, prepare_keras
from kymo.models.training.learning import units_of
from kymo.models.zoo import Epoch, FitOptions, Samples
from kymo.models.zoo.network import Network
from kymo.models.zoo.onnx_graph import Graph
from kymo.streams.chunk import Array
from kymo.streams.errors import TrainingError


class Units(keras.layers.Layer):  # type: ignore[misc]
    """Columns times a scale plus an offset, both set from the training windows and not learned.

    Always in float32: in float16, as the rest may be while it learns, the next number behind 3,000 s is 3,002 s.
    """

    def build(self, shape: Any) -> None:
        options = {"shape": shape[-1:], "trainable": False, "autocast": False}
        self.scale = self.add_weight(initializer="ones", name="scale", **options)
        self.offset = self.add_weight(initializer="zeros", name="offset", **options)

    def call(self, x: Any) -> Any:
        """Bring ``(n, columns)`` into their units."""
        return keras.ops.cast(x, "float32") * self.scale + self.offset


class KerasArchitecture(Network):
    """A Keras model as an :class:`~kymo.models.zoo.Architecture`; a subclass builds it."""

    layout: ClassVar[str] = "channels_last"
    packages: ClassVar[tuple[str, ...]] = ("tensorflow", "keras", "onnx")

    def make(self, seed: int) -> None:
        """Seed Keras and build."""
        self.shape = (self.fmt.rows or 1, *self.fmt.shape)  # ``(time, …, channels)`` of the windows
        self.notes: list[str] = []  # what the user should know of the fit
        prepare_keras(seed)
        self.model = self.build()

    @abstractmethod
    def build(self) -> Any:
        """Make the model: one input ``(n, *shape)``, one output ``(n, columns)``."""

    def output(self, features: Any) -> Any:
        """Put a dense layer a head, then units, behind features ``(n, width)``: the output ``(n, columns)``."""
        parts = [keras.layers.Dense(self.labels, name="logits")(features)]
        parts += [keras.layers.Dense(head.width, name=f"head_{i}")(features) for i, head in enumerate(self.heads)]
        joined = keras.layers.Concatenate(name="columns")(parts) if len(parts) > 1 else parts[0]
        return Units(name="units")(joined) if self.says_numbers() else joined

    def fit(
        self, training: Samples, validation: Samples | None, options: FitOptions, on_epoch: Callable[[Epoch], None]
    ) -> None:
        """Learn by AdamW; with validation, keep the best epoch's weights."""
        if self.says_numbers():
            self.model.get_layer("units").set_weights(list(units_of(self.labels, self.heads, training)))
        fit_keras(self.model, self.learning(), training, validation, options, on_epoch)

    def predict(self, windows: Array) -> Array:
        """Compute outputs, ``(n, columns)`` float32, by TensorFlow."""
        return predict_keras(self.model, windows)

    def weights(self) -> bytes:
        """Save all weights in Keras' own format: the contents of a file ``*.weights.h5``."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.weights.h5"
            self.model.save_weights(path)
            return path.read_bytes()

    def export(self, path: Path, input_name: str, output_name: str) -> None:
        """Write ONNX with a free batch size."""
        path.write_bytes(keras_to_onnx(self.model, input_name, output_name))


def keras_to_onnx(model: Any, input_name: str, output_name: str) -> bytes:
    """Write a functional Keras model with one input and one output ``(n, columns)`` as ONNX."""
    graph = Graph()
    (source,), (target,) = model.inputs, model.outputs
    names = {id(source): graph.node("Transpose", [input_name], perm=_first(len(source.shape)))}
    graph.node("Flatten", [write_layers(graph, names, model)], output_name)
    return graph.model({input_name: ("n", *source.shape[1:])}, {output_name: ("n", target.shape[-1])})


def write_layers(graph: Graph, names: dict[int, str], model: Any) -> str:
    """Write all layers of a model that stand behind tensors with `names` in the graph, by their ids; the output's name."""
    for layer in model.operations:  # each behind those that it needs
        tensors = layer.input if isinstance(layer.input, list) else [layer.input]
        if not isinstance(layer, keras.layers.InputLayer) and all(id(x) in names for x in tensors):
            names[id(layer.output)] = _convert(graph, layer, [names[id(x)] for x in tensors], tensors)
    return names[id(model.outputs[0])]


def _first(rank: int) -> list[int]:
    """Order axes such that the last stands behind the first."""
    return [0, rank - 1, *range(1, rank - 1)]


def _last(rank: int) -> list[int]:
    """Order axes such that the second stands last."""
    return [0, *range(2, rank), 1]


#: ``(graph, layer, names of its inputs, its Keras input tensors)`` to the name of its output.
Form = Callable[[Graph, Any, list[str], Any], str]


def _convert(graph: Graph, layer: Any, inputs: list[str], tensors: Any) -> str:
    name = type(layer).__name__
    if name not in _LAYERS:
        raise TrainingError(
            f"layer {layer.name!r} is a {name}, which has no ONNX form here; known are {', '.join(sorted(_LAYERS))}: "
            f"build the model of these, or add it to models/zoo/keras_onnx.py"
        )
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise TrainingError(f"layer {layer.name!r} is channels first, expected channels last; take that option off")
    return _LAYERS[name](graph, layer, inputs, tensors)


def _activated(graph: Graph, value: str, layer: Any) -> str:
    name = getattr(layer.activation, "__name__", str(layer.activation))
    if name == "linear":
        return value
    if name in ("silu", "swish"):
        return graph.node("Mul", [value, graph.node("Sigmoid", [value])])
    kinds = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh"}
    if name not in kinds:
        raise TrainingError(
            f"layer {layer.name!r} has the activation {name!r}, expected linear, silu or {', '.join(kinds)}"
        )
    return graph.node(kinds[name], [value])


def _windowed(layer: Any, size: Sequence[int], tensor: Any) -> dict[str, Any]:
    """Give the attributes of what slides over the axes between batch and channels, with Keras' own padding."""
    strides, dilations = list(layer.strides), list(getattr(layer, "dilation_rate", (1,) * len(size)))
    before, after = [0] * len(size), [0] * len(size)
    if layer.padding == "same":
        for i, (length, k, step, wide) in enumerate(zip(tensor.shape[1:-1], size, strides, dilations, strict=True)):
            missing = max((-(-length // step) - 1) * step + (k - 1) * wide + 1 - length, 0)
            before[i], after[i] = missing // 2, missing - missing // 2
    return {"kernel_shape": list(size), "strides": strides, "dilations": dilations, "pads": before + after}


def _conv(graph: Graph, layer: Any, inputs: list[str], tensors: Any) -> str:
    kernel, options = layer.kernel.numpy(), _windowed(layer, layer.kernel_size, tensors[0])
    groups = getattr(layer, "groups", 1)
    if isinstance(layer, keras.layers.DepthwiseConv2D):  # (height, width, channels, multiplier)
        groups, kernel = kernel.shape[2], kernel.reshape(*kernel.shape[:2], 1, -1)
    kernel = kernel.transpose(kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2))
    weights = [kernel, layer.bias.numpy()] if layer.use_bias else [kernel]
    return _activated(graph, graph.node("Conv", [*inputs, *weights], group=groups, **options), layer)


def _dense(graph: Graph, layer: Any, inputs: list[str], tensors: Any) -> str:
    bias = layer.bias.numpy() if layer.use_bias else None
    return _activated(graph, graph.dense(inputs[0], layer.kernel.numpy(), bias), layer)


def _batch_norm(graph: Graph, layer: Any, inputs: list[str], tensors: Any) -> str:
    mean, variance = layer.moving_mean.numpy(), layer.moving_variance.numpy()
    gamma = layer.gamma.numpy() if layer.scale else np.ones_like(mean)
    beta = layer.beta.numpy() if layer.center else np.zeros_like(mean)
    return graph.node("BatchNormalization", [*inputs, gamma, beta, mean, variance], epsilon=float(layer.epsilon))


def _padding(graph: Graph, layer: Any, inputs: list[str], tensors: Any) -> str:
    sides = layer.padding  # ((before, after), …)
    pads = [0, 0, *(before for before, _ in sides), 0, 0, *(after for _, after in sides)]
    return graph.node("Pad", [*inputs, np.array(pads)])


def _max_pool(graph: Graph, layer: Any, inputs: list[str], tensors: Any) -> str:
    return graph.node("MaxPool", inputs, **_windowed(layer, layer.pool_size, tensors[0]))


def _mean_of_all(graph: Graph, layer: Any, inputs: list[str], tensors: Any) -> str:
    if layer.keepdims or len(tensors[0].shape) != 4:
        raise TrainingError(f"layer {layer.name!r}: only the mean over two axes that leaves (n, channels) is known")
    return graph.node("GlobalAveragePool", inputs)


def _reshape(graph: Graph, layer: Any, inputs: list[str], tensors: Any) -> str:
    value, rank = inputs[0], len(tensors[0].shape)
    target = [-1, *layer.output.shape[1:]]
    if rank > 2:
        value = graph.node("Transpose", [value], perm=_last(rank))
    value = graph.node("Reshape", [value, np.array(target)])
    if len(target) > 2:
        return graph.node("Transpose", [value], perm=_first(len(target)))
    return graph.node("Reshape", [value, np.array([*target, 1, 1])])


def _affine(graph: Graph, value: str, scale: Any, offset: Any, rank: int) -> str:
    def shaped(x: Any) -> Array:
        return np.asarray(x, np.float32).reshape(1, -1, *(1,) * max(rank - 2, 2 if rank == 2 else 0))

    return graph.node("Add", [graph.node("Mul", [value, shaped(scale)]), shaped(offset)])


def _rescaling(graph: Graph, layer: Any, inputs: list[str], tensors: Any) -> str:
    return _affine(graph, inputs[0], layer.scale, layer.offset, len(tensors[0].shape))


def _normalization(graph: Graph, layer: Any, inputs: list[str], tensors: Any) -> str:
    mean, spread = np.asarray(layer.mean), np.maximum(np.sqrt(np.asarray(layer.variance)), 1e-7)
    return _affine(graph, inputs[0], 1 / spread, -mean / spread, len(tensors[0].shape))


_LAYERS: dict[str, Form] = {
    "Activation": lambda graph, layer, inputs, _: _activated(graph, inputs[0], layer),
    "Add": lambda graph, _, inputs, __: graph.node("Add", inputs),
    "BatchNormalization": _batch_norm,
    "Concatenate": lambda graph, _, inputs, __: graph.node("Concat", inputs, axis=1),
    "Conv1D": _conv,
    "Conv2D": _conv,
    "Conv3D": _conv,
    "Dense": _dense,
    "DepthwiseConv2D": _conv,
    "Dropout": lambda _, __, inputs, ___: inputs[0],
    "GlobalAveragePooling2D": _mean_of_all,
    "MaxPooling2D": _max_pool,
    "Multiply": lambda graph, _, inputs, __: graph.node("Mul", inputs),
    "Normalization": _normalization,
    "Rescaling": _rescaling,
    "Reshape": _reshape,
    "Units": _rescaling,
    "ZeroPadding2D": _padding,
}
