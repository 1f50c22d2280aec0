"""LSTM and GRU networks, in Keras. In: windows (n, time, …, channels) float32, time free. Out: logits and more.

A window may be shorter than the others: zeros at its end count as padding and are not looked at. A network that looks
backwards only can also run without end: :meth:`Recurrent.export_stateful` gives a graph that takes and gives its state.
With ``stateful`` that is what it is for: it learns from sequences of windows, see :mod:`models.data.samples`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from models.training.fit_keras import keras, prepare_keras
from models.zoo import Head, read_parameters
from models.zoo.keras_common import KerasArchitecture, check_learning, one_of, window_shape
from models.zoo.recurrent_layers import Attention, Filled, Padding
from models.zoo.recurrent_onnx import stateful_to_onnx, windows_to_onnx
from streams.chunk import Format
from streams.errors import TrainingError

CELLS = ("lstm", "gru")
_STEPS = 200  # about as many as such a network can follow
_HOP_STEPS = 10  # of a stateful one's window, which learns from about twenty of them at a time
#: ``cell`` (lstm or gru), ``units`` of each of ``layers``, both directions (``bidirectional``), ``attention`` over the
#: steps instead of the last one; ``patch`` samples or columns make one step (0: such that a window has about 200),
#: turned into ``patch_width`` numbers; whether zeros at a window's end are ``masking``; whether it goes on from window
#: to window (``stateful``; then all zeros are values); then how it learns.
DEFAULTS: dict[str, Any] = {
    "cell": "lstm",
    "units": 64,
    "layers": 1,
    "bidirectional": False,
    "attention": False,
    "patch": 0,
    "patch_width": 32,
    "masking": True,
    "stateful": False,
    "dropout": 0.5,
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "batch_size": 32,
    "schedule": "cosine",
}


class Recurrent(KerasArchitecture):
    """The network as an :class:`~models.zoo.Architecture`."""

    #: Its ONNX graph takes windows of any length from ``patch`` on.
    free_time: ClassVar[bool] = True
    cpu_sized: ClassVar[Mapping[str, Any]] = {"units": 16, "dropout": 0.0}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "cell": CELLS,
        "units": (32, 64, 128),
        "bidirectional": (False, True),
        "attention": (False, True),
        "learning_rate": (1e-3, 3e-3),
    }

    def __init__(
        self,
        fmt: Format,  # of the windows: ``rows`` and any shape; all of a step's numbers are its features
        labels: Sequence[str],
        parameters: Mapping[str, Any],
        seed: int,  # of the first weights
        heads: Sequence[Head] = (),  # what else it says
    ) -> None:
        super().__init__(labels, heads)
        p = self.parameters = read_parameters(parameters, DEFAULTS)
        self.shape = window_shape(fmt)
        _check(p, self.shape[0])
        self.patch = p["patch"] or _patch(self.shape[0], p["stateful"])
        if p["stateful"]:
            self._check_hop(self.shape[0])
        prepare_keras(seed)
        source = keras.Input((None, *self.shape[1:]))
        features = math.prod(self.shape[1:])
        x = source if len(self.shape) == 2 else keras.layers.Reshape((-1, features))(source)
        if p["stateful"]:
            x, mask = Filled(self.patch, name="filled")(x)
        else:
            mask = Padding(self.patch, name="padding")(x) if p["masking"] else None
        if self.patch > 1:
            x = keras.layers.Conv1D(p["patch_width"], self.patch, self.patch, name="patches")(x)
        for i in range(p["layers"]):
            if i:
                x = keras.layers.Dropout(p["dropout"])(x)
            x = self._layer(i)(x, mask=mask)
        x = Attention(p["units"], name="attention")(x, steps=mask) if p["attention"] else x
        self.features = x
        self.model = keras.Model(source, self.columns(keras.layers.Dropout(p["dropout"])(x)))

    def _layer(self, i: int) -> Any:
        p = self.parameters
        kind = keras.layers.LSTM if p["cell"] == "lstm" else keras.layers.GRU
        sequences = p["attention"] or i < p["layers"] - 1
        layer = kind(p["units"], return_sequences=sequences, name=f"cells_{i}")
        return keras.layers.Bidirectional(layer, name=f"both_{i}") if p["bidirectional"] else layer

    def export(self, path: Path, input_name: str, output_name: str) -> None:
        """Write ONNX with a free batch size and a free number of samples; a stateful network's for one window at a time."""
        if self.parameters["stateful"]:
            self.export_stateful(path, input_name, output_name, self.shape[0])
        else:
            path.write_bytes(windows_to_onnx(self, input_name, output_name))

    def export_stateful(self, path: Path, input_name: str, output_name: str, hop: int) -> None:
        """Write ONNX that goes on where it stopped; see :class:`~models.onnx_model.StatefulModel`.

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
    """Samples or columns that make one step, unless told otherwise."""
    if not stateful:
        return max(1, rows // _STEPS)
    most = max(1, rows // _HOP_STEPS)
    return next(size for size in range(most, 0, -1) if rows % size == 0)


def _check(p: Mapping[str, Any], rows: int) -> None:
    check_learning(p)
    one_of(p, "cell", CELLS)
    if min(p["units"], p["layers"], p["patch_width"]) < 1 or p["patch"] < 0:
        raise TrainingError("[model] units, layers and patch_width start at 1, patch at 0")
    if p["patch"] > rows:
        raise TrainingError(f"[model] patch = {p['patch']}, but a window has {rows} samples or columns")
