"""Milliseconds a window: ONNX Runtime as an agent runs it, keras.predict, and the compiled call. Out: tables and ratios.

All three run the same weights in one process, by turns. ONNX Runtime has one thread, as in an agent; TensorFlow has as
many as it wants. What is timed is the wall time of a call on windows that lie in memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

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
Call = Callable[[], Any]


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


def measure(ways: dict[str, Call], rounds: int, seconds: float = 0.3) -> dict[str, list[float]]:
    """Seconds a call, one figure a round; the ways take turns, each for about `seconds`."""
    counts: dict[str, int] = {}
    for name, call in ways.items():
        call()
        start = perf_counter()
        call()
        counts[name] = max(1, round(seconds / max(perf_counter() - start, 1e-6)))
    taken: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            ways[name]()  # the one before has left the caches full of its own
            start = perf_counter()
            for _ in range(counts[name]):
                ways[name]()
            taken[name].append((perf_counter() - start) / counts[name])
    return taken


def results(rounds: int) -> list[dict[str, Any]]:
    """A row for each network, batch and way: median and lowest milliseconds a window, and how they compare."""
    rows = []
    for title, name, shape, parameters, at_least in NETWORKS:
        for batch in BATCHES:
            taken = measure(calls(name, shape, parameters, batch), rounds)
            for way, times in taken.items():
                rows.append(
                    {
                        "network": title,
                        "batch": batch,
                        "way": way,
                        "ms": 1000 * median(times) / batch,
                        "lowest_ms": 1000 * min(times) / batch,
                        "agent_is_faster_by": median(a / b for a, b in zip(times, taken[AGENT], strict=True)),
                        "must_reach": at_least if way == PREDICT and batch == 1 else None,
                    }
                )
    return rows


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """Print the table."""
    table = Table(title=f"ms a window, {os.cpu_count()} cores", title_justify="left")
    for column in ("network", "batch", "", "ms", "lowest", "agent is faster by", "must reach"):
        table.add_column(column, justify="left" if column in ("network", "") else "right")
    for row in rows:
        faster = "" if row["way"] == AGENT else f"{row['agent_is_faster_by']:.1f} x"
        must = f"{row['must_reach']:.0f} x" if row["must_reach"] else ""
        figures = (f"{row['ms']:.3f}", f"{row['lowest_ms']:.3f}", faster, must)
        table.add_row(row["network"], str(row["batch"]), row["way"], *figures)
    console.print(table)
