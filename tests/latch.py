"""Synthetic recordings of a latch. In: a seed, a length. Out: recordings that only memory can tell apart.

A pulse upwards opens the latch, one downwards closes it; in between, for 4 to 12 s, there is nothing but noise. What it
is at a moment says the last pulse alone, so that a model which sees a second of it at a time can only guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kymo.streams.chunk import Array

RATE = 20
RECIPE = """
name = "latch"
[[input]]
stream = "sensor"
rate_hz = 20
channels = ["x", "y"]
[window]
length_s = 1
hop_s = 1
[[window.steps]]
step = "standardise"
[model]
architecture = "recurrent"
stateful = true
cell = "gru"
units = 16
dropout = 0.1
learning_rate = 0.01
[train]
folds = 0
epochs = 25
sequence = 20
split = "session"
"""


def latch(seed: int, seconds: int = 80) -> tuple[Array, Sequence[str]]:
    """Samples ``(n, 2)`` and a label for each; the first ones, before any pulse, have none."""
    random = np.random.default_rng(seed)
    data, labels = random.normal(0, 0.2, (seconds * RATE, 2)), [""] * (seconds * RATE)
    at, up = int(random.integers(5, 2 * RATE)), bool(random.integers(2))
    while at < len(data) - 8:
        data[at : at + 6, 0] += 3 if up else -3
        until = at + int(random.integers(4 * RATE, 12 * RATE))
        labels[at:until] = ["open" if up else "closed"] * (until - at)
        at, up = until, bool(random.integers(2))
    return data.astype(np.float32), labels[: len(data)]


def write(path: Path, seed: int, seconds: int = 80) -> Path:
    """One recording as CSV: ``t``, ``x``, ``y``, ``label``."""
    data, labels = latch(seed, seconds)
    rows = [
        f"{i / RATE:.2f},{x:.4f},{y:.4f},{label}" for i, ((x, y), label) in enumerate(zip(data, labels, strict=False))
    ]
    path.write_text("t,x,y,label\n" + "\n".join(rows) + "\n")
    return path
