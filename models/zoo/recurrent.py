"""LSTM and GRU networks, in Keras. In: windows (n, time, …, channels) float32, time free. Out: logits and more.

A window may be shorter than the others: zeros at its end count as padding and are not looked at. A network that looks
backwards only can also run without end: :meth:`Recurrent.export_stateful` gives a graph that takes and gives its state.
With ``stateful`` that is what it is for: it learns from sequences of windows, see :mod:`kymo.models.data.samples`.

ONNX has LSTM and GRU as one node each, with the length of every sequence and the first state as inputs; only the order
of the gates differs from Keras'. Sequences are (steps, n, features) there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from kymo.models.onnx_model import NEXT_STATE, STATE
from kymo.models.training.fit_keras import keras
from kymo.models.zoo import Range
from kymo.models.zoo.keras_onnx import KerasArchitecture, write_layers
from kymo.models.zoo.onnx_graph import Graph
from kymo.streams.chunk import Array
from kymo.streams.errors import TrainingError
from kymo.streams.schema import Amount, Below1, Count, Positive, Rules, SchemaError, Whole

ops = keras.ops
CELLS = ("lstm", "gru")
_STEPS = 200  # about as many as such a network can follow
_HOP_STEPS = 10  # of a stateful one's window, which learns from about twenty of them at a time


@dataclass(frozen=True)
class RecurrentParameters:
    """What ``[model]`` takes.

    ``cell`` (lstm or gru), ``units`` of each of ``layers`` (or a list, one number a layer), both directions (``bidirectional``),
    ``attention`` over the steps instead of the last one, ``dense`` units behind them (0: none); ``patch`` samples or columns
    make one step (0: such that a window has about 200), turned into ``patch_width`` numbers; whether zeros at a window's end
    are ``masking``; whether it goes on from window to window (``stateful``; then all zeros are values); then how it learns.
    """

    cell: Annotated[str, Rules(enum=CELLS)] = "lstm"
    units: Annotated[Count | tuple[Count, ...], Rules(expected="a whole number from 1, or one a layer")] = 64
    layers: Count = 1
    bidirectional: bool = False
    attention: bool = False
    dense: Whole = 0
    patch: Whole = 0
    patch_width: Count = 32
    masking: bool = True
    stateful: bool = False
    dropout: Below1 = 0.5
    learning_rate: Positive = 1e-3
    weight_decay: Amount = 0.0
    batch_size: Count = 32
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        if isinstance(self.units, tuple) and len(self.units) != self.layers:
            why = f"layers = {self.layers}, but units has {len(self.units)}; leave layers out"
            raise SchemaError(("layers",), why=why)


_NEVER = -1e9  # a score whose exponential is 0
_GATES = {"lstm": (0, 3, 1, 2), "gru": (0, 1, 2)}  # Keras has i f c o and z r h, ONNX has i o f c and z r h


class Recurrent(KerasArchitecture):
    """The network as an :class:`~kymo.models.zoo.Architecture`."""

    name, takes_parameters = "recurrent", RecurrentParameters
    #: Its ONNX graph takes windows of any length from ``patch`` on.
    free_time: ClassVar[bool] = True
    cpu_sized: ClassVar[Mapping[str, Any]] = {"units": 16, "dropout": 0.0}
    search: ClassVar[Mapping[str, Range]] = {
        "cell": CELLS,
        "units": (32, 64, 128),
        "bidirectional": (False, True),
        "attention": (False, True),
        "learning_rate": (1e-3, 3e-3),
    }

    def read(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Fill in defaults; as many layers as units, where those of each are given."""
        units = parameters.get("units")
        layers = {"layers": len(units)} if isinstance(units, list | tuple) else {}
        p = super().read({**layers, **parameters})
        return p | {"units": list(p["units"])} if layers else p

    def build(self) -> Any:
        p, rows = self.parameters, self.shape[0]
        self.widths = p["units"] if isinstance(p["units"], list) else [p["units"]] * p["layers"]
        if p["patch"] > rows:
            raise TrainingError(f"[model] patch = {p['patch']}, but a window has {rows} samples or columns")
        self.patch = p["patch"] or _patch(rows, p["stateful"])
        if p["stateful"]:
            self._check_hop(rows)
        source = keras.Input((None, *self.shape[1:]))
        features = math.prod(self.shape[1:])
        x = source if len(self.shape) == 2 else keras.layers.Reshape((-1, features))(source)
        if p["stateful"]:
            x, mask = Filled(self.patch, name="filled")(x)
        else:
            mask = Padding(self.patch, name="padding")(x) if p["masking"] else None
        if self.patch > 1:
            x = keras.layers.Conv1D(p["patch_width"], self.patch, self.patch, name="patches")(x)
        for i in range(len(self.widths)):
            if i:
                x = keras.layers.Dropout(p["dropout"])(x)
            x = self._layer(i)(x, mask=mask)
        x = Attention(self.widths[-1], name="attention")(x, steps=mask) if p["attention"] else x
        self.features = x
        if p["dense"]:
            x = keras.layers.Dense(p["dense"], activation="relu", name="dense")(keras.layers.Dropout(p["dropout"])(x))
        return keras.Model(source, self.output(keras.layers.Dropout(p["dropout"])(x)))

    def _layer(self, i: int) -> Any:
        p = self.parameters
        kind = keras.layers.LSTM if p["cell"] == "lstm" else keras.layers.GRU
        sequences = p["attention"] or i < len(self.widths) - 1
        layer = kind(self.widths[i], return_sequences=sequences, name=f"cells_{i}")
        return keras.layers.Bidirectional(layer, name=f"both_{i}") if p["bidirectional"] else layer

    def export(self, path: Path, input_name: str, output_name: str) -> None:
        """Write ONNX with a free batch size and a free number of samples; a stateful network's for one window at a time."""
        if self.parameters["stateful"]:
            self.export_stateful(path, input_name, output_name, self.shape[0])
        else:
            path.write_bytes(windows_to_onnx(self, input_name, output_name))

    def export_stateful(self, path: Path, input_name: str, output_name: str, hop: int) -> None:
        """Write ONNX that goes on where it stopped; see :class:`~kymo.models.onnx_model.StatefulModel`.

        Beside windows ``(n, hop, …)`` it takes ``state`` ``(n, size)``, zeros at a session's begin, and gives
        ``next_state``. It never forgets on its own, though it was trained on windows that begin with nothing.
        """
        self._check_hop(hop)
        path.write_bytes(stateful_to_onnx(self, input_name, output_name, hop))

    def _check_hop(self, hop: int) -> None:
        p = self.parameters
        if p["bidirectional"] or p["attention"]:
            raise TrainingError(
                "a stateful model looks backwards only, step by step; train it with [model] bidirectional = false and "
                "attention = false"
            )
        if hop < 1 or hop % self.patch:
            raise TrainingError(
                f"a stateful model with patch = {self.patch} cannot predict every {hop} samples; take a multiple"
            )


def _patch(rows: int, stateful: bool) -> int:
    """Choose how many samples or columns make one step."""
    if not stateful:
        return max(1, rows // _STEPS)
    most = max(1, rows // _HOP_STEPS)
    return next(size for size in range(most, 0, -1) if rows % size == 0)


class Padding(keras.layers.Layer):  # type: ignore[misc]
    """Which steps of `patch` samples each hold something: ``(n, steps)`` bool, at least the first one.

    What counts runs from the first sample to the last one that is not all zeros; zeros in between are values.
    """

    def __init__(self, patch: int, **options: Any) -> None:
        super().__init__(**options)
        self.patch = patch

    def call(self, x: Any) -> Any:
        """Turn ``(n, time, features)`` into ``(n, steps)``."""
        time = ops.shape(x)[1]
        filled = ops.cast(ops.any(ops.not_equal(x, 0), axis=-1), "int32")  # (n, time)
        length = ops.max(filled * ops.arange(1, time + 1, dtype="int32"), axis=1, keepdims=True)
        steps = ops.maximum((length + self.patch - 1) // self.patch, 1)
        return ops.arange(time // self.patch, dtype="int32")[None] < steps

    def compute_output_spec(self, x: Any) -> Any:
        """Give its shape, without running it."""
        time = x.shape[1]
        return keras.KerasTensor((x.shape[0], None if time is None else time // self.patch), "bool")


class Filled(keras.layers.Layer):  # type: ignore[misc]
    """Sequences of several lengths, the shorter ones filled up with NaN at their end: zeros are values like any other.

    A step of `patch` samples is there or not as a whole.
    """

    def __init__(self, patch: int, **options: Any) -> None:
        super().__init__(**options)
        self.patch = patch

    def call(self, x: Any) -> tuple[Any, Any]:
        """Give ``(n, time, features)`` with zeros for NaN, and which steps are there, ``(n, steps)``."""
        present = ops.logical_not(ops.isnan(x))
        steps = ops.shape(x)[1] // self.patch
        return ops.where(present, x, ops.zeros_like(x)), present[:, : steps * self.patch : self.patch, 0]

    def compute_output_spec(self, x: Any) -> tuple[Any, Any]:
        """Give their shapes, without running it."""
        time = x.shape[1]
        steps = (x.shape[0], None if time is None else time // self.patch)
        return keras.KerasTensor(x.shape, x.dtype), keras.KerasTensor(steps, "bool")


class Attention(keras.layers.Layer):  # type: ignore[misc]
    """Sum of the steps, weighted by the softmax of ``v . tanh(W h + b)`` over them.

    Yang et al. 2016, Hierarchical Attention Networks for Document Classification, section 2.2.
    """

    def __init__(self, units: int, **options: Any) -> None:
        super().__init__(**options)
        self.units = units
        self.supports_masking = True  # what came with a mask leaves without one: there are no steps any more

    def build(self, shape: Any) -> None:
        """Make W ``(features, units)``, b ``(units,)`` and v ``(units, 1)``."""
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")
        self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias")
        self.score = self.add_weight(shape=(self.units, 1), name="score")

    def call(self, x: Any, steps: Any = None) -> Any:
        """Turn ``(n, steps, features)`` and which steps count, ``(n, steps)``, into ``(n, features)``."""
        score = ops.matmul(ops.tanh(ops.matmul(x, self.kernel) + self.bias), self.score)  # (n, steps, 1)
        if steps is not None:
            score = ops.where(steps[:, :, None], score, ops.cast(_NEVER, score.dtype))
        return ops.sum(ops.softmax(score, axis=1) * x, axis=1)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        """Mask nothing behind it."""

    def compute_output_spec(self, x: Any, steps: Any = None) -> Any:
        """Give its shape, without running it."""
        return keras.KerasTensor((x.shape[0], x.shape[-1]), x.dtype)


def windows_to_onnx(network: Any, input_name: str, output_name: str) -> bytes:
    """Write a :class:`Recurrent` for windows ``(n, time, …)`` as ONNX, n and time free."""
    graph, p = Graph(), network.parameters
    flat = _flat(graph, network, input_name)
    lengths = _lengths(graph, flat, network.patch) if p["masking"] else ""
    sequence = _steps(graph, network, flat)
    for i in range(len(network.widths)):
        steps, last, _ = _layer(graph, network, i, sequence, lengths)
        sequence = _joined(graph, steps)
    if p["attention"]:
        features = _attended(graph, network.model.get_layer("attention"), sequence, lengths)
    else:
        moved = graph.node("Transpose", [last], perm=[1, 0, 2])  # (directions, n, units) to (n, directions, units)
        features = _column(graph, moved)
    _heads(graph, network, features, output_name)
    inputs = {input_name: ("n", "time", *network.shape[1:])}
    return graph.model(inputs, {output_name: ("n", network.columns)})


def stateful_to_onnx(network: Any, input_name: str, output_name: str, hop: int) -> bytes:
    """Write one hop as ONNX: windows ``(n, hop, …)`` and ``state`` ``(n, size)`` to the output and ``next_state``."""
    graph, p = Graph(), network.parameters
    sequence = _steps(graph, network, _flat(graph, network, input_name))
    kinds, begin = (2 if p["cell"] == "lstm" else 1), 0
    after: list[str] = []
    for i, units in enumerate(network.widths):
        before = [_part(graph, begin + k * units, units) for k in range(kinds)]
        begin += kinds * units
        steps, last, cell = _layer(graph, network, i, sequence, "", before)
        sequence = _joined(graph, steps)
        after += [last, cell][:kinds]
    parts = [graph.node("Squeeze", [value, np.array([0])]) for value in after]  # (1, n, units) to (n, units)
    graph.node("Concat", parts, NEXT_STATE, axis=1)
    _heads(graph, network, _column(graph, parts[-kinds]), output_name)
    state = ("n", begin)
    inputs = {input_name: ("n", hop, *network.shape[1:]), STATE: state}
    return graph.model(inputs, {output_name: ("n", network.columns), NEXT_STATE: state})


def _flat(graph: Graph, network: Any, value: str) -> str:
    """Turn ``(n, time, …)`` into ``(n, time, features)``."""
    if len(network.shape) == 2:
        return value
    return graph.node("Reshape", [value, np.array([0, 0, math.prod(network.shape[1:])])])


def _steps(graph: Graph, network: Any, flat: str) -> str:
    """Turn ``(n, time, features)`` into ``(steps, n, features of a step)``."""
    if network.patch == 1:
        return graph.node("Transpose", [flat], perm=[1, 0, 2])
    layer = network.model.get_layer("patches")
    kernel, bias = (w.numpy() for w in (layer.kernel, layer.bias))  # (patch, features, width), (width,)
    inputs = [graph.node("Transpose", [flat], perm=[0, 2, 1]), kernel.transpose(2, 1, 0), bias]
    patches = graph.node("Conv", inputs, kernel_shape=[len(kernel)], strides=[len(kernel)])
    return graph.node("Transpose", [patches], perm=[2, 0, 1])


def _lengths(graph: Graph, flat: str, patch: int) -> str:
    """Count the steps of each sequence, ``(n,)`` int32, as :class:`Padding` does."""
    largest = graph.node("ReduceMax", [graph.node("Abs", [flat]), np.array([2])], keepdims=0)
    filled = graph.node("Cast", [graph.node("Greater", [largest, np.float32(0)])], to=7)  # int64
    time = graph.node("Shape", [flat], start=1, end=2)
    end = graph.node("Squeeze", [graph.node("Add", [time, np.array([1])])])
    numbers = graph.node("Range", [np.int64(1), end, np.int64(1)])
    length = graph.node("ReduceMax", [graph.node("Mul", [filled, numbers]), np.array([1])], keepdims=0)
    steps = graph.node("Div", [graph.node("Add", [length, np.array([patch - 1])]), np.array([patch])])
    most = graph.node("Div", [time, np.array([patch])])
    within = graph.node("Min", [graph.node("Max", [steps, np.array([1])]), most])
    return graph.node("Cast", [within], to=6)  # int32


def _layer(
    graph: Graph, network: Any, i: int, sequence: str, lengths: str, before: list[str] | None = None
) -> tuple[str, str, str]:
    """Add a layer: all steps ``(steps, directions, n, units)``, the last state ``(directions, n, units)`` and an LSTM's cells."""
    p, model = network.parameters, network.model
    if p["bidirectional"]:
        pair = model.get_layer(f"both_{i}")
        cells = [pair.forward_layer.cell, pair.backward_layer.cell]
    else:
        cells = [model.get_layer(f"cells_{i}").cell]
    packed = [_gates(cell, p["cell"]) for cell in cells]
    weights = [graph.constant(np.stack(arrays)) for arrays in zip(*packed, strict=True)]
    outputs = [f"steps_{i}", f"last_{i}"] + ([f"cells_{i}"] if p["cell"] == "lstm" else [])
    options = {"linear_before_reset": 1} if p["cell"] == "gru" else {}
    graph.node_of(
        p["cell"].upper(),
        [sequence, *weights, *([lengths, *(before or [])] if lengths or before else [])],
        outputs,
        hidden_size=network.widths[i],
        direction="bidirectional" if p["bidirectional"] else "forward",
        **options,
    )
    return outputs[0], outputs[1], outputs[-1]


def _gates(cell: Any, kind: str) -> tuple[Array, Array, Array]:
    """Give W ``(gates * units, features)``, R ``(gates * units, units)`` and B ``(2 * gates * units,)``, in ONNX's order."""
    order, units = _GATES[kind], cell.units

    def sorted_gates(x: Array) -> Array:  # (…, gates * units)
        return np.concatenate([x[..., k * units : (k + 1) * units] for k in order], axis=-1)

    bias = np.atleast_2d(cell.bias.numpy())  # an LSTM has one of the input, a GRU one of the state too
    bias = np.concatenate([bias, np.zeros_like(bias)])[:2]
    weights = (sorted_gates(w.numpy()).T for w in (cell.kernel, cell.recurrent_kernel))
    return (*weights, sorted_gates(bias).reshape(-1))  # type: ignore[return-value]


def _joined(graph: Graph, steps: str) -> str:
    """Turn ``(steps, directions, n, units)`` into ``(steps, n, directions * units)``."""
    moved = graph.node("Transpose", [steps], perm=[0, 2, 1, 3])
    return graph.node("Reshape", [moved, np.array([0, 0, -1])])


def _column(graph: Graph, value: str) -> str:
    """Turn ``(n, …)`` into ``(n, features, 1, 1)``, as the layers behind want it."""
    return graph.node("Reshape", [graph.node("Flatten", [value]), np.array([0, -1, 1, 1])])


def _attended(graph: Graph, layer: Any, sequence: str, lengths: str) -> str:
    """Turn ``(steps, n, features)`` into ``(n, features, 1, 1)``."""
    moved = graph.node("Transpose", [sequence], perm=[1, 2, 0])
    x = graph.node("Unsqueeze", [moved, np.array([3])])  # (n, features, steps, 1)
    kernel, bias, score = (w.numpy() for w in (layer.kernel, layer.bias, layer.score))
    scores = graph.dense(graph.node("Tanh", [graph.dense(x, kernel, bias)]), score, None)  # (n, 1, steps, 1)
    if lengths:
        steps = graph.node("Squeeze", [graph.node("Shape", [x], start=2, end=3)])
        numbers = graph.node("Range", [np.int64(0), steps, np.int64(1)])
        shaped = graph.node("Reshape", [numbers, np.array([1, 1, -1, 1])])
        limit = graph.node("Reshape", [graph.node("Cast", [lengths], to=7), np.array([-1, 1, 1, 1])])  # int64
        scores = graph.node("Where", [graph.node("Less", [shaped, limit]), scores, np.float32(_NEVER)])
    share = graph.node("Softmax", [scores], axis=2)
    return graph.node("ReduceSum", [graph.node("Mul", [x, share]), np.array([2])], keepdims=1)


def _part(graph: Graph, start: int, units: int) -> str:
    """Cut a piece out of the state, as ``(1, n, units)``."""
    piece = graph.node("Slice", [STATE, *(np.array([value]) for value in (start, start + units, 1))])
    return graph.node("Unsqueeze", [piece, np.array([0])])


def _heads(graph: Graph, network: Any, features: str, output_name: str) -> None:
    names = {id(network.features): features}
    graph.node("Flatten", [write_layers(graph, names, network.model)], output_name)
