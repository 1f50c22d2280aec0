"""From a trained model to a bundle's ONNX file. In: the model and some windows. Out: ONNX bytes that agree with it."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.onnx_model import OnnxModel
from models.zoo import Architecture
from streams.chunk import Array
from streams.errors import TrainingError

INPUT, OUTPUT = "windows", "logits"
TOLERANCE = 1e-5
_BATCHES = (1, 2, 7, 16)


@dataclass(frozen=True, slots=True)
class Exported:
    """An exported model."""

    model: bytes
    batch: str  # the batch rule under which no window's result depends on the others
    parity: float  # largest difference between a logit here and there, divided by 1 + the logit's size
    shape: tuple[int, ...]  # of a window as the model takes it
    state: int = 0  # numbers that a stateful model remembers; 0 for one that judges each window by itself


def export_model(model: Architecture, shape: Sequence[int], windows: Array) -> Exported:
    """ONNX of a trained model, checked against it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        with quiet():
            model.export(path, INPUT, OUTPUT)
        data = path.read_bytes()
    onnx_model = OnnxModel(data, INPUT, OUTPUT)
    batch = onnx_model.settle(shape, "float32")
    parity = max(_parity(model, onnx_model, some) for some in _trials(shape, windows))
    if not parity <= TOLERANCE:
        raise TrainingError(
            f"the exported model differs from the trained one by {parity:.2g} (allowed {TOLERANCE:g}); "
            f"its architecture uses something that ONNX computes otherwise"
        )
    return Exported(data, batch, parity, tuple(shape))


def _trials(shape: Sequence[int], windows: Array) -> list[Array]:
    random = np.random.default_rng(0).standard_normal((max(_BATCHES), *shape)).astype(np.float32)
    return [source[:n] for n in _BATCHES for source in (random, windows) if len(source) >= n]


def _parity(model: Architecture, onnx_model: OnnxModel, windows: Array) -> float:
    there = model.predict(windows).astype(np.float64)
    here = onnx_model.run(np.ascontiguousarray(windows)).astype(np.float64)
    return float(np.max(np.abs(there - here) / (1 + np.abs(there))))


def clean_onnx(proto: Any) -> bytes:
    """An ONNX model's bytes without what exporters add for debugging: source paths, stack traces, their version.

    Equal models then have equal bytes, wherever they were exported.
    """
    proto.producer_name = proto.producer_version = proto.doc_string = ""
    graph = proto.graph
    graph.name, graph.doc_string = "model", ""
    del graph.value_info[:]
    for item in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


@contextlib.contextmanager
def quiet() -> Any:
    """Exporters talk on every channel; what matters is checked afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
