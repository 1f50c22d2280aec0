"""LSTM and GRU networks, in Keras. In: windows (n, time, …, channels) float32, time free. Out: logits and more.

A window may be shorter than the others: zeros at its end count as padding and are not looked at. A network that looks
backwards only can also run without end: :meth:`Recurrent.export_stateful` gives a graph that takes and gives its state.
With ``stateful`` that is what it is for: it learns from sequences of windows, see :mod:`kymo.models.data.samples`.

What is a layer here says itself how ONNX has it; see :mod:`kymo.models.zoo.keras_onnx`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from kymo.models.training.fit_keras import keras
from kymo.models.zoo import Range
from kymo.models.zoo.keras_onnx import KerasArchitecture, KerasGraph, keras_to_onnx
from kymo.streams.errors import TrainingError
from kymo.streams.schema import Amount, Below1, Count, Positive, Rules, SchemaError, Whole

ops = keras.ops
CELLS = ("lstm", "gru")
_STEPS = 200  # about as many as such a network can follow
_HOP_STEPS = 10  # of a stateful one's window, which learns from about twenty of them at a time


@dataclass(frozen=True)
class RecurrentParameters:
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
    batch_norm: bool = False
    half: bool = False
    dropout: Annotated[Below1 | tuple[Below1, ...], Rules(expected="a number from 0 to below 1, or one a place")] = 0.5
    learning_rate: Positive = 1e-3
    weight_decay: Amount = 0.0
    batch_size: Count = 32
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        if isinstance(self.units, tuple) and len(self.units) != self.layers:
            why = f"layers = {self.layers}, but units has {len(self.units)}; leave layers out"
            raise SchemaError(("layers",), why=why)
        places = self.layers + (self.dense > 0)
        if isinstance(self.dropout, tuple) and len(self.dropout) != places:
            why = (
                f"dropout has {len(self.dropout)} numbers; expected one behind each layer, the dense one too: {places}"
            )
            raise SchemaError(("dropout",), why=why)


_NEVER = -1e9  # a score whose exponential is 0


class Recurrent(KerasArchitecture):
    name, takes_parameters, any_axes = "recurrent", RecurrentParameters, True
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
        return p | {name: list(p[name]) for name in ("units", "dropout") if isinstance(p[name], tuple)}

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
        places = len(self.widths) + bool(p["dense"])
        dropout = iter(p["dropout"] if isinstance(p["dropout"], list) else [p["dropout"]] * places)
        mask = None
        if p["masking"] or p["stateful"]:
            x, mask = Padding(self.patch, p["stateful"], name="padding")(x)
        if self.patch > 1:
            x = keras.layers.Conv1D(p["patch_width"], self.patch, self.patch, name="patches")(x)
        for i in range(len(self.widths)):
            x = self._layer(i)(x, mask=mask)
            if p["attention"] and i == len(self.widths) - 1:
                x = Attention(self.widths[-1], name="attention")(x, steps=mask)
            x = keras.layers.Dropout(next(dropout))(x)
            x = keras.layers.BatchNormalization(name=f"norm_{i}")(x) if p["batch_norm"] else x
        if p["dense"]:
            x = keras.layers.Dense(p["dense"], activation="relu", name="dense")(x)
            x = keras.layers.Dropout(next(dropout))(x)
        return keras.Model(source, self.output(x))

    def _layer(self, i: int) -> Any:
        p = self.parameters
        kind = keras.layers.LSTM if p["cell"] == "lstm" else keras.layers.GRU
        sequences = p["attention"] or i < len(self.widths) - 1
        layer = kind(self.widths[i], return_sequences=sequences, name=f"cells_{i}")
        return keras.layers.Bidirectional(layer, name=f"both_{i}") if p["bidirectional"] else layer

    def export(self, path: Path, input_name: str, output_name: str) -> None:
        """Write ONNX with a free batch size and a free number of samples; a stateful network's for one window at a time."""
        hop = self.shape[0] if self.parameters["stateful"] else 0
        path.write_bytes(self._graph(input_name, output_name, hop))

    def _graph(self, input_name: str, output_name: str, hop: int) -> bytes:
        if half := self.parameters["half"]:  # what the file cannot hold, the network does not keep either
            for weights in (variable for variable in self.model.variables if len(variable.shape) > 1):
                weights.assign(weights.numpy().astype(np.float16).astype(np.float32))
        return keras_to_onnx(self.model, input_name, output_name, hop, half)

    def export_stateful(self, path: Path, input_name: str, output_name: str, hop: int) -> None:
        """Write ONNX that goes on where it stopped; see :class:`~kymo.models.onnx_model.StatefulModel`.

        Beside windows ``(n, hop, …)`` it takes ``state`` ``(n, size)``, zeros at a session's begin, and gives
        ``next_state``. It never forgets on its own, though it was trained on windows that begin with nothing.
        """
        self._check_hop(hop)
        path.write_bytes(self._graph(input_name, output_name, hop))

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
    """Which steps of `patch` samples are no padding at a sequence's end: ``(n, steps)`` bool, at least the first one.

    Padding is zeros, or NaN where zeros are values like any other (`by_nan`); what stands in between is a value.
    """

    def __init__(self, patch: int, by_nan: bool, **options: Any) -> None:
        super().__init__(**options)
        self.patch, self.by_nan = patch, by_nan

    def call(self, x: Any) -> tuple[Any, Any]:
        """Give ``(n, time, features)`` with zeros as padding, and ``(n, steps)``."""
        absent, time = ops.isnan(x) if self.by_nan else ops.equal(x, 0), ops.shape(x)[1]
        filled = ops.cast(ops.logical_not(ops.all(absent, axis=-1)), "int32")  # (n, time)
        length = ops.max(filled * ops.arange(1, time + 1, dtype="int32"), axis=1, keepdims=True)
        steps = ops.maximum((length + self.patch - 1) // self.patch, 1)
        return ops.where(absent, ops.zeros_like(x), x), ops.arange(time // self.patch, dtype="int32")[None] < steps

    def to_onnx(self, graph: KerasGraph, x: str) -> tuple[str, str]:
        """Count the steps of each sequence ``(n, features, time)``: ``(n,)`` int32. One that goes on without end has all."""
        if graph.endless:
            return x, ""
        largest = graph.node("ReduceMax", [graph.node("Abs", [x]), np.array([1])], keepdims=0)
        filled = graph.node("Cast", [graph.node("Greater", [largest, np.float32(0)])], to=7)  # int64
        time = graph.node("Shape", [x], start=2, end=3)
        end = graph.node("Squeeze", [graph.node("Add", [time, np.array([1])])])
        numbers = graph.node("Range", [np.int64(1), end, np.int64(1)])
        length = graph.node("ReduceMax", [graph.node("Mul", [filled, numbers]), np.array([1])], keepdims=0)
        steps = graph.node("Div", [graph.node("Add", [length, np.array([self.patch - 1])]), np.array([self.patch])])
        most = graph.node("Div", [time, np.array([self.patch])])
        within = graph.node("Min", [graph.node("Max", [steps, np.array([1])]), most])
        return x, graph.node("Cast", [within], to=6)  # int32


class Attention(keras.layers.Layer):  # type: ignore[misc]
    """Sum of the steps, weighted by the softmax of ``v . tanh(W h + b)`` over them.

    Yang et al. 2016, Hierarchical Attention Networks for Document Classification, section 2.2.
    """

    def __init__(self, units: int, **options: Any) -> None:
        super().__init__(**options)
        self.units, self.supports_masking = units, True

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
        """Mask nothing behind it: there are no steps any more."""

    def to_onnx(self, graph: KerasGraph, x: str, lengths: str = "") -> str:
        """Turn ``(n, features, steps)`` into ``(n, features, 1, 1)``."""
        x = graph.node("Unsqueeze", [x, np.array([3])])
        hidden = graph.node("Tanh", [graph.dense(x, self.kernel.numpy(), self.bias.numpy())])
        scores = graph.dense(hidden, self.score.numpy(), None)  # (n, 1, steps, 1)
        if lengths:
            steps = graph.node("Squeeze", [graph.node("Shape", [x], start=2, end=3)])
            numbers = graph.node("Range", [np.int64(0), steps, np.int64(1)])
            shaped = graph.node("Reshape", [numbers, np.array([1, 1, -1, 1])])
            limit = graph.node("Reshape", [graph.node("Cast", [lengths], to=7), np.array([-1, 1, 1, 1])])  # int64
            scores = graph.node("Where", [graph.node("Less", [shaped, limit]), scores, np.float32(_NEVER)])
        share = graph.node("Softmax", [scores], axis=2)
        return graph.node("ReduceSum", [graph.node("Mul", [x, share]), np.array([2])], keepdims=1)
