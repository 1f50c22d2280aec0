"""What the Keras architectures share: output columns, the model behind the protocol, and its ONNX. In: layers. Out: an Architecture.

The ONNX graph is written node by node from the layers' weights: no tracing, no converter with pins of its own, nothing that
only training needs; the same weights give the same bytes. Arrays are (n, channels, …) inside, as ONNX Runtime's convolutions want
them; what Keras holds as (n, features) is (n, features, 1, 1) here and a dense layer a 1x1 convolution, whose bytes do not depend on
the batch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kymo.models.onnx_model import NEXT_STATE, STATE
from kymo.models.training.fit_keras import fit_keras, keras, keras_to_tflite, predict_keras, prepare_keras
from kymo.models.zoo.network import Network
from kymo.models.zoo.onnx_graph import Graph
from kymo.streams.chunk import Array
from kymo.streams.errors import TrainingError


class KerasArchitecture(Network):
    """A Keras model as an :class:`~kymo.models.zoo.Architecture`; a subclass builds it."""

    layout: ClassVar[str] = "channels_last"
    packages: ClassVar[tuple[str, ...]] = ("tensorflow", "keras", "onnx")

    fit_model, predict_model = staticmethod(fit_keras), staticmethod(predict_keras)

    def seed(self, seed: int) -> None:
        prepare_keras(seed)

    def rescale(self, scale: NDArray[np.float32], offset: NDArray[np.float32]) -> None:
        at = self.labels
        for i, head in enumerate(self.heads):
            layer, columns = self.model.get_layer(f"head_{i}"), slice(at, at + head.width)
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel * scale[columns], bias * scale[columns] + offset[columns]])
            at += head.width

    def output(self, features: Any) -> Any:
        """Put a dense layer a head behind features ``(n, width)``: the output ``(n, columns)``."""
        parts = [keras.layers.Dense(self.labels, name="logits")(features)]
        parts += [keras.layers.Dense(head.width, name=f"head_{i}")(features) for i, head in enumerate(self.heads)]
        return keras.layers.Concatenate(name="columns")(parts) if self.heads else parts[0]

    def weights(self) -> bytes:
        """Save all weights in Keras' own format: the contents of a file ``*.weights.h5``."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.weights.h5"
            self.model.save_weights(path)
            return path.read_bytes()

    def tflite(self, int8: bool) -> bytes:
        """Write TFLite of built-in operations, for one window at a time; `int8`: kernels are whole numbers, activations float32."""
        return keras_to_tflite(self.model, self.shape, int8)

    def export(self, path: Path, input_name: str, output_name: str) -> None:
        path.write_bytes(keras_to_onnx(self.model, input_name, output_name))


class KerasGraph(Graph):
    """The ONNX graph of a Keras model; `endless` where it goes on from ``state`` to ``next_state``, `half` where kernels are float16."""

    def __init__(self, endless: bool = False, half: bool = False) -> None:
        super().__init__()
        self.half = half
        self.endless, self.size = endless, 0  # numbers of the state that layers have taken so far
        self.after: list[str] = []  # what they leave behind, ``(1, n, units)`` each

    def constant(self, value: Any) -> str:
        if not self.half or np.ndim(value) < 3:  # biases and the like
            return super().constant(value)
        return self.node("Cast", [super().constant(np.asarray(value, np.float16))], to=1)  # float32

    def remembered(self, units: int) -> str:
        """Cut the next piece out of the state, as ``(1, n, units)``."""
        start, self.size = self.size, self.size + units
        piece = self.node("Slice", [STATE, *(np.array([number]) for number in (start, self.size, 1))])
        return self.node("Unsqueeze", [piece, np.array([0])])

    def activated(self, value: str, layer: Any) -> str:
        """Put a layer's activation behind a value."""
        name = getattr(layer.activation, "__name__", str(layer.activation))
        if name == "linear":
            return value
        if name in ("silu", "swish"):
            return self.node("Mul", [value, self.node("Sigmoid", [value])])
        kinds = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh"}
        if name not in kinds:
            raise TrainingError(
                f"layer {layer.name!r} has the activation {name!r}, expected linear, silu or {', '.join(kinds)}"
            )
        return self.node(kinds[name], [value])

    def affine(self, value: str, rank: int, scale: Any, offset: Any) -> str:
        """Multiply and add, channel by channel, what Keras has with so many axes."""
        shape = (1, -1, *(1,) * max(rank - 2, 2 if rank == 2 else 0))
        factors, terms = (np.asarray(numbers, np.float32).reshape(shape) for numbers in (scale, offset))
        return self.node("Add", [self.node("Mul", [value, factors]), terms])


def keras_to_onnx(model: Any, input_name: str, output_name: str, hop: int = 0, half: bool = False) -> bytes:
    """Write a functional Keras model with one input and one output ``(n, columns)`` as ONNX, its batch free, and its time where it is so.

    With a `hop` it takes so many samples and the ``state`` before them, ``(n, size)``, and gives the ``next_state`` too.
    """
    graph = KerasGraph(hop > 0, half)
    (source,), (target,) = model.inputs, model.outputs
    names = {id(source): graph.node("Transpose", [input_name], perm=_first(len(source.shape)))}
    for layer in model.operations:  # each behind those that it needs
        tensors = layer.input if isinstance(layer.input, list) else [layer.input]
        if not isinstance(layer, keras.layers.InputLayer):
            made = _convert(graph, layer, [names[id(tensor)] for tensor in tensors])
            outputs = layer.output if isinstance(made, tuple) else [layer.output]
            names |= zip(map(id, outputs), made if isinstance(made, tuple) else [made], strict=True)
    graph.node("Flatten", [names[id(target)]], output_name)
    shape = [hop or "time" if size is None else size for size in source.shape[1:]]
    inputs, outputs = {input_name: ("n", *shape)}, {output_name: ("n", target.shape[-1])}
    if hop:
        graph.node(
            "Concat", [graph.node("Squeeze", [piece, np.array([0])]) for piece in graph.after], NEXT_STATE, axis=1
        )
        inputs[STATE] = outputs[NEXT_STATE] = ("n", graph.size)
    return graph.model(inputs, outputs)


def _first(rank: int) -> list[int]:
    """Order axes such that the last stands behind the first."""
    return [0, rank - 1, *range(1, rank - 1)]


def _convert(graph: KerasGraph, layer: Any, inputs: list[str]) -> str | tuple[str, ...]:
    """Write a layer; what is no layer of Keras' own brings its ``to_onnx``."""
    name = type(layer).__name__
    if hasattr(layer, "to_onnx"):
        made: str | tuple[str, ...] = layer.to_onnx(graph, *inputs)
        return made
    if name not in _LAYERS:
        raise TrainingError(
            f"layer {layer.name!r} is a {name}, which has no ONNX form here; known are {', '.join(sorted(_LAYERS))}: "
            f"build the model of these, or add it to models/zoo/keras_onnx.py"
        )
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise TrainingError(f"layer {layer.name!r} is channels first, expected channels last; take that option off")
    return _LAYERS[name](graph, layer, inputs)


def _windowed(layer: Any, size: Sequence[int]) -> dict[str, Any]:
    """Give the attributes of what slides over the axes between batch and channels, with Keras' own padding."""
    strides, dilations = list(layer.strides), list(getattr(layer, "dilation_rate", (1,) * len(size)))
    before, after = [0] * len(size), [0] * len(size)
    if layer.padding == "same":
        for i, (length, k, step, wide) in enumerate(
            zip(layer.input.shape[1:-1], size, strides, dilations, strict=True)
        ):
            missing = max((-(-length // step) - 1) * step + (k - 1) * wide + 1 - length, 0)
            before[i], after[i] = missing // 2, missing - missing // 2
    return {"kernel_shape": list(size), "strides": strides, "dilations": dilations, "pads": before + after}


def _conv(graph: KerasGraph, layer: Any, inputs: list[str]) -> str:
    kernel, options = layer.kernel.numpy(), _windowed(layer, layer.kernel_size)
    groups = getattr(layer, "groups", 1)
    if isinstance(layer, keras.layers.DepthwiseConv2D):  # (height, width, channels, multiplier)
        groups, kernel = kernel.shape[2], kernel.reshape(*kernel.shape[:2], 1, -1)
    kernel = kernel.transpose(kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2))
    weights = [kernel, layer.bias.numpy()] if layer.use_bias else [kernel]
    return graph.activated(graph.node("Conv", [*inputs, *weights], group=groups, **options), layer)


def _dense(graph: KerasGraph, layer: Any, inputs: list[str]) -> str:
    bias = layer.bias.numpy() if layer.use_bias else None
    return graph.activated(graph.dense(inputs[0], layer.kernel.numpy(), bias), layer)


def _batch_norm(graph: KerasGraph, layer: Any, inputs: list[str]) -> str:
    mean, variance = layer.moving_mean.numpy(), layer.moving_variance.numpy()
    gamma = layer.gamma.numpy() if layer.scale else np.ones_like(mean)
    beta = layer.beta.numpy() if layer.center else np.zeros_like(mean)
    # Which steps are padding says a second input, which counts in training alone.
    return graph.node("BatchNormalization", [inputs[0], gamma, beta, mean, variance], epsilon=float(layer.epsilon))


def _padding(graph: KerasGraph, layer: Any, inputs: list[str]) -> str:
    before, after = zip(*layer.padding, strict=True)
    return graph.node("Pad", [*inputs, np.array([0, 0, *before, 0, 0, *after])])


def _mean_of_all(graph: KerasGraph, layer: Any, inputs: list[str]) -> str:
    if layer.keepdims or len(layer.input.shape) != 4:
        raise TrainingError(f"layer {layer.name!r}: only the mean over two axes that leaves (n, channels) is known")
    return graph.node("GlobalAveragePool", inputs)


def _reshape(graph: KerasGraph, layer: Any, inputs: list[str]) -> str:
    value, rank = inputs[0], len(layer.input.shape)
    target = [0, *(-1 if size is None else size for size in layer.output.shape[1:])]
    if rank > 2:
        value = graph.node("Transpose", [value], perm=[0, *range(2, rank), 1])
    if len(target) > 2:
        return graph.node("Transpose", [graph.node("Reshape", [value, np.array(target)])], perm=_first(len(target)))
    return graph.node("Reshape", [value, np.array([*target, 1, 1])])


def _normalization(graph: KerasGraph, layer: Any, inputs: list[str]) -> str:
    mean, spread = np.asarray(layer.mean), np.maximum(np.sqrt(np.asarray(layer.variance)), 1e-7)
    return graph.affine(inputs[0], len(layer.input.shape), 1 / spread, -mean / spread)


def _recurrent(graph: KerasGraph, layer: Any, inputs: list[str]) -> str:
    """Turn ``(n, features, steps)``, and how many steps count, into all states or the last one.

    ONNX has LSTM and GRU as one node each, over (steps, n, features), with the length of every sequence and the first state as inputs.
    """
    layers = [layer.forward_layer, layer.backward_layer] if isinstance(layer, keras.layers.Bidirectional) else [layer]
    kind, cells, directions = type(layers[0]).__name__.upper(), [each.cell for each in layers], len(layers)
    weights = [graph.constant(np.stack(arrays)) for arrays in zip(*(_gates(cell, kind) for cell in cells), strict=True)]
    sequence = graph.node("Transpose", inputs[:1], perm=[2, 0, 1])
    lengths = inputs[1] if len(inputs) > 1 else ""
    outputs = [f"{layer.name}_{part}" for part in ("steps", "last", "cells")][: 3 if kind == "LSTM" else 2]
    before = [graph.remembered(cells[0].units) for _ in outputs[1:]] if graph.endless else []
    graph.node_of(
        kind,
        [sequence, *weights, *([lengths, *before] if lengths or before else [])],
        outputs,
        hidden_size=cells[0].units,
        direction="bidirectional" if directions > 1 else "forward",
        **({"linear_before_reset": 1} if kind == "GRU" else {}),
    )
    graph.after += outputs[1:]
    if layer.return_sequences:  # (steps, directions, n, units) to (n, features, steps)
        moved = graph.node("Transpose", outputs[:1], perm=[2, 1, 3, 0])
        return graph.node("Reshape", [moved, np.array([0, directions * cells[0].units, -1])])
    moved = graph.node("Transpose", [outputs[1]], perm=[1, 0, 2])  # (directions, n, units) to (n, features, 1, 1)
    return graph.node("Reshape", [moved, np.array([0, directions * cells[0].units, 1, 1])])


_GATES = {
    "LSTM": np.array([0, 3, 1, 2]),
    "GRU": np.arange(3),
}  # Keras has i f c o and z r h, ONNX has i o f c and z r h


def _gates(cell: Any, kind: str) -> tuple[Array, ...]:
    """Give W ``(gates * units, features)``, R ``(gates * units, units)`` and B ``(2 * gates * units,)``, in ONNX's order."""
    bias = np.atleast_2d(cell.bias.numpy())  # an LSTM has one of the input, a GRU one of the state too
    bias = np.concatenate([bias, np.zeros_like(bias)])[:2]
    columns = (_GATES[kind][:, None] * cell.units + np.arange(cell.units)).reshape(-1)
    kernel, recurrent = (weights.numpy()[:, columns].T for weights in (cell.kernel, cell.recurrent_kernel))
    return kernel, recurrent, bias[:, columns].reshape(-1)


#: By Keras layer, ``(graph, layer, names of its inputs)`` to the name of its output.
_LAYERS: dict[str, Callable[[KerasGraph, Any, list[str]], str]] = {
    "Activation": lambda graph, layer, inputs: graph.activated(inputs[0], layer),
    "Add": lambda graph, _, inputs: graph.node("Add", inputs),
    "BatchNormalization": _batch_norm,
    "Bidirectional": _recurrent,
    "Concatenate": lambda graph, _, inputs: graph.node("Concat", inputs, axis=1),
    **dict.fromkeys(("Conv1D", "Conv2D", "Conv3D", "DepthwiseConv2D"), _conv),
    "Dense": _dense,
    "Dropout": lambda _, __, inputs: inputs[0],
    "GRU": _recurrent,
    "GlobalAveragePooling2D": _mean_of_all,
    "LSTM": _recurrent,
    "MaxPooling2D": lambda graph, layer, inputs: graph.node("MaxPool", inputs, **_windowed(layer, layer.pool_size)),
    "Multiply": lambda graph, _, inputs: graph.node("Mul", inputs),
    "Normalization": _normalization,
    "Rescaling": lambda graph, layer, xs: graph.affine(xs[0], len(layer.input.shape), layer.scale, layer.offset),
    "Reshape": _reshape,
    "ZeroPadding2D": _padding,
}
