"""From a trained stateful model to a bundle's ONNX file. In: the model and some sequences. Out: ONNX bytes that agree with it.

The graph takes one window and the state before it. What is compared is the framework's output for a whole sequence with
the graph's for its last window, gone through window by window.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from models.onnx_stateful import StatefulModel
from models.stateful import WindowModel
from models.training.export import INPUT, OUTPUT, Exported, quiet
from models.zoo import Architecture
from streams.chunk import Array
from streams.errors import TrainingError

#: A difference grows with the steps that it goes through; a class changes its place at far larger ones.
TOLERANCE = 1e-4
_COMPARED = 16
_LENGTHS = (1, 3, 7)  # windows of random sequences


def stateful_graph(model: Architecture) -> bytes:
    """ONNX of a trained stateful model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        with quiet():
            model.export(path, INPUT, OUTPUT)
        return path.read_bytes()


def load_stateful(model: Architecture) -> StatefulModel:
    """What a trained model becomes where it serves."""
    return StatefulModel(stateful_graph(model), INPUT, OUTPUT)


def export_stateful(model: Architecture, sequences: Any) -> Exported:
    """ONNX of a trained stateful model, checked against it."""
    data = stateful_graph(model)
    stateful = StatefulModel(data, INPUT, OUTPUT)
    random = np.random.default_rng(0)
    trials = [random.standard_normal((1, n * stateful.hop, *stateful.shape)).astype(np.float32) for n in _LENGTHS]
    trials += [sequences[i : i + 1] for i in range(min(_COMPARED, len(sequences)))]
    parity = max(_parity(model, stateful, some) for some in trials)
    if not parity <= TOLERANCE:
        raise TrainingError(
            f"the exported model differs from the trained one by {parity:.2g} (allowed {TOLERANCE:g}); "
            f"its architecture uses something that ONNX computes otherwise"
        )
    shape = (stateful.hop, *stateful.shape)
    return Exported(data, WindowModel.rule, parity, shape, len(stateful.start().hidden))


def _parity(model: Architecture, stateful: StatefulModel, sequence: Array) -> float:
    there = model.predict(sequence).astype(np.float64)[0]
    whole = sequence[0][np.isfinite(sequence[0]).reshape(len(sequence[0]), -1).all(1)]  # without what fills it up
    here = stateful.step(stateful.start(), whole)[1][-1].astype(np.float64)
    return float(np.max(np.abs(there - here) / (1 + np.abs(there))))
