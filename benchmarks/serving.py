"""Milliseconds a window: ONNX Runtime as an agent runs it, keras.predict, and the compiled call. Out: rows with ratios.

All three run the same weights in one process, by turns. ONNX Runtime has one thread, as in an agent; TensorFlow has as
many as it wants. What is timed is the wall time of a call on windows that lie in memory.
"""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.turns import Call, faster, measure
from kymo.models.onnx_model import OnnxModel
from kymo.models.training.export import INPUT, OUTPUT
from kymo.models.zoo import architecture
from kymo.streams.chunk import Format

AGENT, PREDICT, COMPILED = "ONNX Runtime in an agent, 1 thread", "keras.predict", "compiled call"
BATCHES = (1, 16)
#: Name, architecture, shape of a window (time, …, channels), parameters, and how much faster than predict it must be.
NETWORKS: tuple[tuple[str, str, tuple[int, ...], dict[str, Any], float], ...] = (
    ("ResNet50, 46 x 223 x 12", "spectrogram_resnet", (46, 223, 12), {"backbone": "resnet50", "weights": "fresh"}, 6.0),
    ("LSTM of 64, 46 x 223 x 12", "recurrent", (46, 223, 12), {}, 50.0),
    ("LSTM of 64, 10,000 x 6 in steps of 50", "recurrent", (10_000, 6), {}, 50.0),
)


def calls(name: str, shape: tuple[int, ...], parameters: dict[str, Any], batch: int) -> dict[str, Call]:
    """One call a way, each on `batch` windows; all give the same numbers."""
    from kymo.models.training.fit_keras import tf

    fmt = Format("imu", ("c",) * shape[-1], (), Fraction(500), "float32", shape[1:], rows=shape[0])
    made: Any = architecture(name)(fmt, ("2.5", "3.0", "3.5"), parameters, 0)
    windows = np.random.default_rng(0).standard_normal((batch, *shape)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        made.export(Path(folder) / "model.onnx", INPUT, OUTPUT)
        model = OnnxModel((Path(folder) / "model.onnx").read_bytes(), INPUT, OUTPUT)
    model.settle(shape, "float32")
    compiled, tensor = tf.function(lambda x: made.model(x, training=False)), tf.constant(windows)
    ways = {
        AGENT: lambda: model.run(windows),
        PREDICT: lambda: made.model.predict(windows, batch_size=batch, verbose=0),
        COMPILED: lambda: compiled(tensor).numpy(),
    }
    wanted = ways[PREDICT]()
    for way in ways.values():
        np.testing.assert_allclose(way(), wanted, rtol=1e-4, atol=1e-4)
    return ways


def serving(rounds: int) -> list[dict[str, Any]]:
    """A row for each network, batch and way: median and lowest milliseconds a window, and how they compare."""
    rows: list[dict[str, Any]] = []
    for title, name, shape, parameters, at_least in NETWORKS:
        for batch in BATCHES:
            taken = measure(calls(name, shape, parameters, batch), rounds, 0.3)
            for way, times in taken.items():
                rows.append(
                    {
                        "network": title,
                        "batch": batch,
                        "way": way,
                        "ms": 1000 * median(times) / batch,
                        "lowest_ms": 1000 * min(times) / batch,
                        "agent_is_faster_by": faster(taken[AGENT], times),
                        "must_reach": at_least if way == PREDICT and batch == 1 else None,
                    }
                )
    return rows
