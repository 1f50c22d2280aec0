"""Keras layers to ONNX. In: a trained functional Keras model. Out: ONNX bytes, batch free, the same for the same weights.

The graph is written node by node from the layers' weights: no tracing, no converter with pins of its own, nothing that
only training needs. Arrays are (n, channels, …) inside, as ONNX Runtime's convolutions want them; what Keras holds as
(n, features) is (n, features, 1, 1) here and a dense layer a 1x1 convolution, whose bytes do not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from models.training.export import clean_onnx
from streams.chunk import Array
from streams.errors import TrainingError

OPSET, IR_VERSION = 18, 10


class Graph:
    """An ONNX graph in the making; values and constants are numbered in the order in which they are made."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any, dtype: str = "float32") -> str:
        """Name of a constant array."""
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype, order="C"), name))
        return name

    def node(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Add a node with one output; its name."""
        return self.node_of(kind, inputs, [output or f"v{len(self.nodes)}"], **attributes)[0]

    def node_of(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> list[str]:
        """Add a node with several outputs; an empty name is one that nobody needs."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), **attributes))
        return list(outputs)

    def dense(self, value: str, kernel: Array, bias: Array | None, output: str = "") -> str:
        """``(n, inputs, …)`` to ``(n, outputs, …)`` by `kernel` ``(inputs, outputs)``; the axes behind stay."""
        weights = [self.constant(kernel.T[:, :, None, None])] + ([] if bias is None else [self.constant(bias)])
        return self.node("Conv", [value, *weights], output)

    def model(self, inputs: Mapping[str, Sequence[Any]], outputs: Mapping[str, Sequence[Any]]) -> bytes:
        """ONNX bytes."""
        from onnx import TensorProto, checker, helper

        def values(shapes: Mapping[str, Sequence[Any]]) -> list[Any]:
            return [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(s)) for name, s in shapes.items()]

        graph = helper.make_graph(self.nodes, "model", values(inputs), values(outputs), self.constants)
        opsets = [helper.make_opsetid("", OPSET)]
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        checker.check_model(proto, full_check=True)
        return clean_onnx(proto)


def keras_to_onnx(model: Any, input_name: str, output_name: str) -> bytes:
    """ONNX of a functional Keras model with one input and one output ``(n, columns)``."""
    graph = Graph()
    (source,), (wanted,) = model.inputs, model.outputs
    known = {id(source): graph.node("Transpose", [input_name], perm=_first(len(source.shape)))}
    graph.node("Flatten", [write_layers(graph, known, wanted)], output_name)
    return graph.model({input_name: ("n", *source.shape[1:])}, {output_name: ("n", wanted.shape[-1])})


def write_layers(graph: Graph, known: dict[int, str], wanted: Any) -> str:
    """Write all layers between some tensors and one that is computed from them; its name."""
    for tensor in _in_order(wanted, known):
        layer, index, _ = tensor._keras_history
        arguments = layer._inbound_nodes[index].input_tensors
        known[id(tensor)] = _convert(graph, layer, [known[id(x)] for x in arguments], arguments)
    return known[id(wanted)]


def _in_order(wanted: Any, known: Mapping[int, str]) -> list[Any]:
    """All tensors between the known ones and a wanted one, each behind what it needs; networks are too deep to recurse."""
    order: list[Any] = []
    done = set(known)
    todo = [(wanted, False)]
    while todo:
        tensor, ready = todo.pop()
        if id(tensor) in done:
            continue
        if ready:
            done.add(id(tensor))
            order.append(tensor)
            continue
        layer, index, _ = tensor._keras_history
        todo.append((tensor, True))
        todo += [(x, False) for x in reversed(layer._inbound_nodes[index].input_tensors)]
    return order


def _first(rank: int) -> list[int]:
    """Order of axes that puts the last behind the first."""
    return [0, rank - 1, *range(1, rank - 1)]


def _last(rank: int) -> list[int]:
    """Order of axes that puts the second last."""
    return [0, *range(2, rank), 1]


#: ``(graph, layer, names of its inputs, its Keras input tensors)`` to the name of its output.
Form = Callable[[Graph, Any, list[str], Any], str]


def layer_form(kind: str) -> Callable[[Form], Form]:
    """Declare how a layer of one's own, by the name of its class, is written."""

    def add(form: Form) -> Form:
        _LAYERS[kind] = form
        return form

    return add


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
    """Attributes of what slides over the axes between batch and channels, with Keras' own padding."""
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
    "ZeroPadding2D": _padding,
}
