"""A small stateful model, made by hand, with its recipe and bundle: what several tests of stateful models share.

Its state is a leaky sum, ``next = LEAK * state + W mean(window)``, its logits are ``V next``: numpy can do it too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from crash_lab import Life
from onnx import helper
from recipes_made import STANDARDISE, recipe_text
from tiny_models import onnx_bytes

from kymo.models.bundle import Bundle, load_bundle
from kymo.models.predict import Predictor
from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.models.serving.partition import Pending
from kymo.processors.recipe.load import Recipe, parse_recipe
from kymo.streams.chunk import Array

ROWS, SIZE, LEAK = 4, 3, 0.9
LABELS = ("low", "middle", "high")
RECIPE = recipe_text(
    "tiny",
    "x",
    10,
    (0.4, 0.4),
    steps=[{"step": "scale", "factor": 0.5}],
    behind=STANDARDISE,
    model={"architecture": "recurrent", "stateful": True, "min_probability": 0.4},
)


@cache
def recipe(more: str = "") -> Recipe:
    """The small recipe: one channel at 10 Hz, windows of 4 samples, one behind the other."""
    return parse_recipe(RECIPE + more)


def weights(number: int, channels: int = 1, columns: int = len(LABELS)) -> tuple[Array, Array]:
    """W ``(channels, SIZE)`` and V ``(SIZE, columns)`` of a version."""
    random = np.random.default_rng(number)
    return tuple(random.normal(0, 1, shape).astype(np.float32) for shape in ((channels, SIZE), (SIZE, columns)))  # type: ignore[return-value]


def leaky_onnx(
    number: int = 0, channels: int = 1, rows: int = ROWS, columns: int = len(LABELS), sides: Sequence[int] = ()
) -> bytes:
    """The graph: ``windows`` (n, rows, *sides, channels) and ``state`` (n, SIZE) to ``logits`` and ``next_state``."""
    w, v = weights(number, channels, columns)
    constants = {"axes": np.arange(1, 2 + len(sides)), "leak": np.float32(LEAK), "w": w, "v": v}
    nodes = [
        helper.make_node("ReduceMean", ["windows", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["new"]),
        helper.make_node("Mul", ["state", "leak"], ["old"]),
        helper.make_node("Add", ["old", "new"], ["next_state"]),
        helper.make_node("MatMul", ["next_state", "v"], ["logits"]),
    ]
    inputs = {"windows": ["n", rows, *sides, channels], "state": ["n", SIZE]}
    return onnx_bytes(nodes, constants, inputs, {"logits": ["n", columns], "next_state": ["n", SIZE]})


def manifest(made_for: Recipe, channels: int = 1, rows: int = ROWS, **changes: Any) -> dict[str, Any]:
    chain = made_for.chain.to_json()
    chain["specs"][-1]["spec"] |= {"mean": [0.0] * channels, "std": [1.0] * channels}
    model = {"input": "windows", "output": "logits", "shape": [rows, channels], "state": SIZE}
    return {
        "recipe": made_for.name,
        "labels": list(LABELS),
        "temperature": 1.0,
        "batch": "single",
        "chain": chain,
        "model": {**model, "dtype": "float32", "layout": "channels_last"} | changes,
    }


def stateful_bundle(folder: Path, number: int = 0, **changes: Any) -> Bundle:
    return load_bundle(write_bundle(folder, manifest(recipe(), **changes), {MODEL: leaky_onnx(number)}))


def reference(number: int, means: Array, columns: int = len(LABELS)) -> Array:
    """Logits ``(n, columns)`` of windows with these means ``(n, channels)``, from zeros, in double precision."""
    w, v = (some.astype(np.float64) for some in weights(number, means.shape[1], columns))
    state, out = np.zeros(SIZE), []
    for mean in means:
        state = LEAK * state + mean @ w
        out.append(state @ v)
    return np.array(out)


def plain(events: Sequence[bytes]) -> bytes:
    """A window's events without the time of their making."""
    return json.dumps([json.loads(event) | {"emitted_ns": 0} for event in events]).encode()


class JudgedLife(Life):
    """A worker whose windows a stateful bundle judges."""

    model: Predictor

    def _judge(self, pending: Pending) -> None:
        (made,) = self.model.serve([pending.output], [pending.session.memory])
        if not pending.unacknowledged:
            self.partition.acknowledge(pending)
        else:
            window = pending.output
            self.judged.append((pending, (window.session, window.start_index, "", plain(made))))
