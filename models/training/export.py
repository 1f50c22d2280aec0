"""From a trained model to a bundle's ONNX file. In: the model and some windows or sequences. Out: ONNX bytes that agree with it.

The graph of a stateful model takes one window and the state before it. What is compared is the framework's output for a
whole sequence with the graph's for its last window, gone through window by window.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kymo.models.onnx_model import OnnxModel, StatefulModel
from kymo.models.zoo import Architecture
from kymo.models.zoo.onnx_graph import GraphArchitecture
from kymo.streams.chunk import Array, Format
from kymo.streams.errors import TrainingError

INPUT, OUTPUT = "windows", "logits"
_TOLERANCE = 1e-5
#: A difference grows with the steps that it goes through; a class changes its place at far larger ones.
_STATEFUL_TOLERANCE = 1e-4
_BATCHES = (1, 2, 7, 16)
_COMPARED = 16  # of the sequences
_LENGTHS = (1, 3, 7)  # windows of random sequences


@dataclass(frozen=True, slots=True)
class Exported:
    model: bytes
    batch: str  # the batch rule under which no window's result depends on the others
    # largest difference between a logit here and there, divided by 1 + the logit's size; None where the model predicts by this graph
    parity: float | None
    shape: tuple[int, ...]  # of a window as the model takes it
    state: int = 0  # numbers that a stateful model remembers; 0 for one that judges each window by itself


def export_model(model: Architecture, shape: Sequence[int], windows: Array) -> Exported:
    """ONNX of a trained model, checked against it."""
    graph = _graph_of(model)
    onnx_model = OnnxModel(graph, INPUT, OUTPUT)
    batch = onnx_model.settle(shape, "float32")

    def parity_of(batch: Array) -> float:
        return _parity(model.predict(batch), onnx_model.run(np.ascontiguousarray(batch)))

    random = np.random.default_rng(0).standard_normal((max(_BATCHES), *shape)).astype(np.float32)
    trials = [source[:n] for n in _BATCHES for source in (random, windows) if len(source) >= n]
    parity = _checked(max(map(parity_of, trials)), getattr(model, "tolerance", _TOLERANCE))
    # A graph beside itself shows no more than that it gives numbers.
    return Exported(graph, batch, None if isinstance(model, GraphArchitecture) else parity, tuple(shape))


def load_stateful(model: Architecture) -> StatefulModel:
    """What a trained model becomes where it serves."""
    return StatefulModel(_graph_of(model), INPUT, OUTPUT)


def export_stateful(model: Architecture, sequences: Any) -> Exported:
    """ONNX of a trained stateful model, checked against it."""
    graph = _graph_of(model)
    stateful = StatefulModel(graph, INPUT, OUTPUT)

    def parity_of(sequence: Array) -> float:
        windows = sequence[0][np.isfinite(sequence[0]).reshape(len(sequence[0]), -1).all(1)]  # without what fills it up
        return _parity(model.predict(sequence)[0], stateful.step(stateful.start(), windows)[1][-1])

    random = np.random.default_rng(0)
    trials = [random.standard_normal((1, n * stateful.hop, *stateful.shape)).astype(np.float32) for n in _LENGTHS]
    trials += [sequences[i : i + 1] for i in range(min(_COMPARED, len(sequences)))]
    parity = _checked(max(map(parity_of, trials)), _STATEFUL_TOLERANCE)
    shape = (stateful.hop, *stateful.shape)
    return Exported(graph, StatefulModel.rule, parity, shape, stateful.size)


def with_metadata(graph: bytes, manifest: Mapping[str, Any], fmt: Format) -> bytes:
    """The ONNX that says, in its metadata, what goes in and what comes out: for whoever meets it without its manifest."""
    import onnx

    model = onnx.load_from_string(graph)
    facts = {name: manifest[name] for name in ("recipe", "labels", "heads", "temperature") if name in manifest}
    facts |= {name: manifest["model"][name] for name in ("layout", "shape")}
    facts |= {"channels": list(fmt.channels), "units": list(fmt.units), "rate_hz": float(fmt.rate)}
    onnx.helper.set_model_props(
        model, {n: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for n, v in facts.items()}
    )
    return bytes(model.SerializeToString(deterministic=True))


def _graph_of(model: Architecture) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        with _quiet():
            model.export(path, INPUT, OUTPUT)
        return path.read_bytes()


def _parity(trained: Array, exported: Array) -> float:
    trained = trained.astype(np.float64)
    return float(np.max(np.abs(trained - exported.astype(np.float64)) / (1 + np.abs(trained))))


def _checked(parity: float, tolerance: float) -> float:
    if not parity <= tolerance:
        raise TrainingError(
            f"the exported model differs from the trained one by {parity:.2g} (allowed {tolerance:g}); "
            f"its architecture uses something that ONNX computes otherwise"
        )
    return parity


@contextlib.contextmanager
def _quiet() -> Any:
    """Exporters talk on every channel; what matters is checked afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
