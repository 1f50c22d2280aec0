"""Recurrent networks to ONNX. In: a trained network. Out: ONNX bytes, for whole windows or for one hop after another.

ONNX has LSTM and GRU as one node each, with the length of every sequence and the first state as inputs; only the order
of the gates differs from Keras'. Sequences are (steps, n, features) there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from models.onnx_model import NEXT_STATE, STATE
from models.zoo.keras_onnx import Graph, write_layers
from streams.chunk import Array

_GATES = {"lstm": (0, 3, 1, 2), "gru": (0, 1, 2)}  # Keras has i f c o and z r h, ONNX has i o f c and z r h


def windows_to_onnx(network: Any, input_name: str, output_name: str) -> bytes:
    """ONNX of a :class:`~models.zoo.recurrent.Recurrent` for windows ``(n, time, …)``, n and time free."""
    graph, p = Graph(), network.parameters
    flat = _flat(graph, network, input_name)
    lengths = _lengths(graph, flat, network.patch) if p["masking"] else ""
    sequence = _steps(graph, network, flat)
    for i in range(p["layers"]):
        steps, last, _ = _layer(graph, network, i, sequence, lengths)
        sequence = _joined(graph, steps)
    if p["attention"]:
        features = _attended(graph, network.model.get_layer("attention"), sequence, lengths)
    else:
        moved = graph.node("Transpose", [last], perm=[1, 0, 2])  # (directions, n, units) to (n, directions, units)
        features = _column(graph, moved)
    _heads(graph, network, features, output_name)
    inputs = {input_name: ("n", "time", *network.shape[1:])}
    return graph.model(inputs, {output_name: ("n", network.model.outputs[0].shape[-1])})


def stateful_to_onnx(network: Any, input_name: str, output_name: str, hop: int) -> bytes:
    """ONNX of one hop: windows ``(n, hop, …)`` and ``state`` ``(n, size)`` to the output and ``next_state``."""
    graph, p = Graph(), network.parameters
    sequence = _steps(graph, network, _flat(graph, network, input_name))
    kinds, units = (2 if p["cell"] == "lstm" else 1), p["units"]
    after: list[str] = []
    for i in range(p["layers"]):
        before = [_part(graph, (i * kinds + k) * units, units) for k in range(kinds)]
        steps, last, cell = _layer(graph, network, i, sequence, "", before)
        sequence = _joined(graph, steps)
        after += [last, cell][:kinds]
    axis = graph.constant([0], "int64")
    parts = [graph.node("Squeeze", [value, axis]) for value in after]  # (1, n, units) to (n, units)
    graph.node("Concat", parts, NEXT_STATE, axis=1)
    _heads(graph, network, _column(graph, parts[-kinds]), output_name)
    state = ("n", p["layers"] * kinds * units)
    columns = network.model.outputs[0].shape[-1]
    return graph.model(
        {input_name: ("n", hop, *network.shape[1:]), STATE: state}, {output_name: ("n", columns), NEXT_STATE: state}
    )


def _flat(graph: Graph, network: Any, value: str) -> str:
    """``(n, time, …)`` to ``(n, time, features)``."""
    if len(network.shape) == 2:
        return value
    return graph.node("Reshape", [value, graph.constant([0, 0, math.prod(network.shape[1:])], "int64")])


def _steps(graph: Graph, network: Any, flat: str) -> str:
    """``(n, time, features)`` to ``(steps, n, features of a step)``."""
    if network.patch == 1:
        return graph.node("Transpose", [flat], perm=[1, 0, 2])
    layer = network.model.get_layer("patches")
    kernel, bias = (w.numpy() for w in (layer.kernel, layer.bias))  # (patch, features, width), (width,)
    inputs = [graph.node("Transpose", [flat], perm=[0, 2, 1])]
    inputs += [graph.constant(kernel.transpose(2, 1, 0)), graph.constant(bias)]
    patches = graph.node("Conv", inputs, kernel_shape=[len(kernel)], strides=[len(kernel)])
    return graph.node("Transpose", [patches], perm=[2, 0, 1])


def _lengths(graph: Graph, flat: str, patch: int) -> str:
    """Steps of each sequence ``(n,)`` int32, as :class:`~models.zoo.recurrent_layers.Padding` counts them."""
    whole = "int64"
    one, size = graph.constant([1], whole), graph.constant([patch], whole)
    largest = graph.node("ReduceMax", [graph.node("Abs", [flat]), graph.constant([2], whole)], keepdims=0)
    filled = graph.node("Cast", [graph.node("Greater", [largest, graph.constant(0.0)])], to=7)  # int64
    time = graph.node("Shape", [flat], start=1, end=2)
    scalars = [graph.constant(1, whole), graph.node("Squeeze", [graph.node("Add", [time, one])])]
    numbers = graph.node("Range", [*scalars, graph.constant(1, whole)])
    length = graph.node("ReduceMax", [graph.node("Mul", [filled, numbers]), one], keepdims=0)
    most = graph.node("Div", [time, size])
    steps = graph.node("Div", [graph.node("Add", [length, graph.constant([patch - 1], whole)]), size])
    within = graph.node("Min", [graph.node("Max", [steps, one]), most])
    return graph.node("Cast", [within], to=6)  # int32


def _layer(
    graph: Graph, network: Any, i: int, sequence: str, lengths: str, before: list[str] | None = None
) -> tuple[str, str, str]:
    """All steps ``(steps, directions, n, units)``, the last state ``(directions, n, units)`` and an LSTM's cells."""
    p, found = network.parameters, network.model
    if p["bidirectional"]:
        both = found.get_layer(f"both_{i}")
        cells = [both.forward_layer.cell, both.backward_layer.cell]
    else:
        cells = [found.get_layer(f"cells_{i}").cell]
    packed = [_gates(cell, p["cell"]) for cell in cells]
    weights = [graph.constant(np.stack(arrays)) for arrays in zip(*packed, strict=True)]
    outputs = [f"steps_{i}", f"last_{i}"] + ([f"cells_{i}"] if p["cell"] == "lstm" else [])
    options = {"linear_before_reset": 1} if p["cell"] == "gru" else {}
    graph.node_of(
        p["cell"].upper(),
        [sequence, *weights, *([lengths, *(before or [])] if lengths or before else [])],
        outputs,
        hidden_size=p["units"],
        direction="bidirectional" if p["bidirectional"] else "forward",
        **options,
    )
    return outputs[0], outputs[1], outputs[-1]


def _gates(cell: Any, kind: str) -> tuple[Array, Array, Array]:
    """W ``(gates * units, features)``, R ``(gates * units, units)`` and B ``(2 * gates * units,)``, in ONNX's order."""
    order, units = _GATES[kind], cell.units

    def sorted_gates(x: Array) -> Array:  # (…, gates * units)
        return np.concatenate([x[..., k * units : (k + 1) * units] for k in order], axis=-1)

    bias = np.atleast_2d(cell.bias.numpy())  # an LSTM has one of the input, a GRU one of the state too
    bias = np.concatenate([bias, np.zeros_like(bias)])[:2]
    weights = (sorted_gates(w.numpy()).T for w in (cell.kernel, cell.recurrent_kernel))
    return (*weights, sorted_gates(bias).reshape(-1))  # type: ignore[return-value]


def _joined(graph: Graph, steps: str) -> str:
    """``(steps, directions, n, units)`` to ``(steps, n, directions * units)``."""
    moved = graph.node("Transpose", [steps], perm=[0, 2, 1, 3])
    return graph.node("Reshape", [moved, graph.constant([0, 0, -1], "int64")])


def _column(graph: Graph, value: str) -> str:
    """``(n, …)`` to ``(n, features, 1, 1)``, as the layers behind want it."""
    return graph.node("Reshape", [graph.node("Flatten", [value]), graph.constant([0, -1, 1, 1], "int64")])


def _attended(graph: Graph, layer: Any, sequence: str, lengths: str) -> str:
    """``(steps, n, features)`` to ``(n, features, 1, 1)``."""
    whole = "int64"
    moved = graph.node("Transpose", [sequence], perm=[1, 2, 0])
    x = graph.node("Unsqueeze", [moved, graph.constant([3], whole)])  # (n, features, steps, 1)
    kernel, bias, score = (w.numpy() for w in (layer.kernel, layer.bias, layer.score))
    scores = graph.dense(graph.node("Tanh", [graph.dense(x, kernel, bias)]), score, None)  # (n, 1, steps, 1)
    if lengths:
        steps = graph.node("Squeeze", [graph.node("Shape", [x], start=2, end=3)])
        numbers = graph.node("Range", [graph.constant(0, whole), steps, graph.constant(1, whole)])
        shaped = graph.node("Reshape", [numbers, graph.constant([1, 1, -1, 1], whole)])
        limit = graph.node("Cast", [lengths], to=7)  # int64
        limit = graph.node("Reshape", [limit, graph.constant([-1, 1, 1, 1], whole)])
        never = graph.constant(np.float32(-1e9))
        scores = graph.node("Where", [graph.node("Less", [shaped, limit]), scores, never])
    share = graph.node("Softmax", [scores], axis=2)
    return graph.node("ReduceSum", [graph.node("Mul", [x, share]), graph.constant([2], whole)], keepdims=1)


def _part(graph: Graph, start: int, units: int) -> str:
    """A piece of the state, as ``(1, n, units)``."""
    edges = [graph.constant([value], "int64") for value in (start, start + units, 1)]
    piece = graph.node("Slice", [STATE, *edges])
    return graph.node("Unsqueeze", [piece, graph.constant([0], "int64")])


def _heads(graph: Graph, network: Any, features: str, output_name: str) -> None:
    known = {id(network.features): features}
    graph.node("Flatten", [write_layers(graph, known, network.model.outputs[0])], output_name)
