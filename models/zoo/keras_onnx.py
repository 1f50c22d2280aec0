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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kymo.models.training.fit_keras import fit_keras, keras, predict_keras
from kymo.models.training.learning import Learning, units_of
from kymo.models.zoo import Epoch, FitOptions, ModelHead, Samples
from kymo.models.zoo.onnx_graph import Graph
from kymo.streams.chunk import Array, Format
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


class KerasArchitecture:
    """A Keras model as an :class:`~kymo.models.zoo.Architecture`; a subclass builds it."""

    layout: ClassVar[str] = "channels_last"
    packages: ClassVar[tuple[str, ...]] = ("tensorflow", "keras", "onnx")
    several_heads: ClassVar[bool] = True
    parameters: dict[str, Any]
    model: Any  # one input ``(n, *shape)``, one output ``(n, columns)``

    def __init__(self, labels: Sequence[str], heads: Sequence[ModelHead]) -> None:
        self.labels, self.heads = tuple(labels), tuple(heads)
        self.notes: list[str] = []  # what the user should know of the fit

    def columns(self, features: Any) -> Any:
        """Put a dense layer a head, then units, behind features ``(n, width)``: the output ``(n, columns)``."""
        parts = [keras.layers.Dense(len(self.labels), name="logits")(features)]
        parts += [keras.layers.Dense(head.width, name=f"head_{i}")(features) for i, head in enumerate(self.heads)]
        joined = keras.layers.Concatenate(name="columns")(parts) if len(parts) > 1 else parts[0]
        return Units(name="units")(joined) if any(not head.labels for head in self.heads) else joined

    def learning(self) -> Learning:
        """Say how the model learns, by its parameters."""
        p = self.parameters
        return Learning(
            len(self.labels),
            self.heads,
            learning_rate=p["learning_rate"],
            batch_size=p["batch_size"],
            schedule=p["schedule"],
            weight_decay=p["weight_decay"],
            clip_norm=1.0,  # a fresh network's first steps can be far too long
        )

    def fit(
        self, training: Samples, validation: Samples | None, options: FitOptions, on_epoch: Callable[[Epoch], None]
    ) -> None:
        """Learn by AdamW; with validation, keep the best epoch's weights."""
        self._set_units(training)
        fit_keras(self.model, self.learning(), training, validation, options, on_epoch)

    def _set_units(self, training: Samples) -> None:
        if any(not head.labels for head in self.heads):
            self.model.get_layer("units").set_weights(list(units_of(len(self.labels), self.heads, training)))

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


def window_shape(fmt: Format) -> tuple[int, ...]:
    """Give the windows' ``(time, …, channels)``."""
    return (fmt.rows or 1, *fmt.shape)


def keras_to_onnx(model: Any, input_name: str, output_name: str) -> bytes:
    """Write a functional Keras model with one input and one output ``(n, columns)`` as ONNX."""
    graph = Graph()
    (source,), (target,) = model.inputs, model.outputs
    names = {id(source): graph.node("Transpose", [input_name], perm=_first(len(source.shape)))}
    graph.node("Flatten", [write_layers(graph, names, target)], output_name)
    return graph.model({input_name: ("n", *source.shape[1:])}, {output_name: ("n", target.shape[-1])})


def write_layers(graph: Graph, names: dict[int, str], target: Any) -> str:
    """Write all layers between tensors that have `names` in the graph, by their ids, and one that is computed from them; its name."""
    for tensor in _in_order(target, names):
        layer, index, _ = tensor._keras_history
        arguments = layer._inbound_nodes[index].input_tensors
        names[id(tensor)] = _convert(graph, layer, [names[id(x)] for x in arguments], arguments)
    return names[id(target)]


def _in_order(target: Any, names: Mapping[int, str]) -> list[Any]:
    """List all tensors between those that have names and a target, each behind what it needs; networks are too deep to recurse."""
    order: list[Any] = []
    done = set(names)
    stack = [(target, False)]
    while stack:
        tensor, ready = stack.pop()
        if id(tensor) in done:
            continue
        if ready:
            done.add(id(tensor))
            order.append(tensor)
            continue
        layer, index, _ = tensor._keras_history
        stack.append((tensor, True))
        stack += [(x, False) for x in reversed(layer._inbound_nodes[index].input_tensors)]
    return order


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
    kernel = layer.kernel.numpy()
    kernel = kernel.transpose(kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2))
    weights = [graph.constant(kernel)] + ([graph.constant(layer.bias.numpy())] if layer.use_bias else [])
    options = _windowed(layer, layer.kernel_size, tensors[0])
    return _activated(graph, graph.node("Conv", [*inputs, *weights], group=layer.groups, **options), layer)


def _depthwise(graph: Graph, layer: Any, inputs: list[str], tensors: Any) -> str:
    kernel = layer.kernel.numpy()  # (height, width, channels, multiplier)
    channels = kernel.shape[2]
    flat = kernel.reshape(*kernel.shape[:2], 1, -1).transpose(3, 2, 0, 1)
    weights = [graph.constant(flat)] + ([graph.constant(layer.bias.numpy())] if layer.use_bias else [])
    options = _windowed(layer, layer.kernel_size, tensors[0])
    return _activated(graph, graph.node("Conv", [*inputs, *weights], group=channels, **options), layer)


def _dense(graph: Graph, layer: Any, inputs: list[str], tensors: Any) -> str:
    bias = layer.bias.numpy() if layer.use_bias else None
    return _activated(graph, graph.dense(inputs[0], layer.kernel.numpy(), bias), layer)


def _batch_norm(graph: Graph, layer: Any, inputs: list[str], tensors: Any) -> str:
    mean, variance = layer.moving_mean.numpy(), layer.moving_variance.numpy()
    gamma = layer.gamma.numpy() if layer.scale else np.ones_like(mean)
    beta = layer.beta.numpy() if layer.center else np.zeros_like(mean)
    constants = [graph.constant(x) for x in (gamma, beta, mean, variance)]
    return graph.node("BatchNormalization", [*inputs, *constants], epsilon=float(layer.epsilon))


def _padding(graph: Graph, layer: Any, inputs: list[str], tensors: Any) -> str:
    sides = layer.padding  # ((before, after), …)
    pads = [0, 0, *(before for before, _ in sides), 0, 0, *(after for _, after in sides)]
    return graph.node("Pad", [*inputs, graph.constant(pads, "int64")])


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
    value = graph.node("Reshape", [value, graph.constant(target, "int64")])
    if len(target) > 2:
        return graph.node("Transpose", [value], perm=_first(len(target)))
    return graph.node("Reshape", [value, graph.constant([*target, 1, 1], "int64")])


def _affine(graph: Graph, value: str, scale: Any, offset: Any, rank: int) -> str:
    def shaped(x: Any) -> str:
        flat = np.asarray(x, np.float32).reshape(-1)
        return graph.constant(flat.reshape(1, -1, *(1,) * max(rank - 2, 2 if rank == 2 else 0)))

    return graph.node("Add", [graph.node("Mul", [value, shaped(scale)]), shaped(offset)])


def _rescaling(graph: Graph, layer: Any, inputs: list[str], tensors: Any) -> str:
    return _affine(graph, inputs[0], layer.scale, layer.offset, len(tensors[0].shape))


def _normalization(graph: Graph, layer: Any, inputs: list[str], tensors: Any) -> str:
    mean, spread = np.asarray(layer.mean), np.maximum(np.sqrt(np.asarray(layer.variance)), 1e-7)
    return _affine(graph, inputs[0], 1 / spread, -mean / spread, len(tensors[0].shape))


def _units(graph: Graph, layer: Any, inputs: list[str], _: Any) -> str:
    scale, offset = (graph.constant(x.numpy().reshape(1, -1, 1, 1)) for x in (layer.scale, layer.offset))
    return graph.node("Add", [graph.node("Mul", [*inputs, scale]), offset])


_LAYERS: dict[str, Form] = {
    "Activation": lambda graph, layer, inputs, _: _activated(graph, inputs[0], layer),
    "Add": lambda graph, _, inputs, __: graph.node("Add", inputs),
    "BatchNormalization": _batch_norm,
    "Concatenate": lambda graph, _, inputs, __: graph.node("Concat", inputs, axis=1),
    "Conv1D": _conv,
    "Conv2D": _conv,
    "Conv3D": _conv,
    "Dense": _dense,
    "DepthwiseConv2D": _depthwise,
    "Dropout": lambda _, __, inputs, ___: inputs[0],
    "GlobalAveragePooling2D": _mean_of_all,
    "MaxPooling2D": _max_pool,
    "Multiply": lambda graph, _, inputs, __: graph.node("Mul", inputs),
    "Normalization": _normalization,
    "Rescaling": _rescaling,
    "Reshape": _reshape,
    "Units": _units,
    "ZeroPadding2D": _padding,
}
