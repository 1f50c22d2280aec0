"""What the fault lab runs. In: a folder. Out: a recipe's file and a bundle for it, whose weights are chosen by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_models import fitted, linear_onnx, manifest

from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.processors.recipe.load import load_recipe

RECIPE = """
name = "lab"
[[input]]
stream = "imu"
rate_hz = 100
channels = ["x", "y"]
bridge_ms = 30
max_missing = 0.2
[[steps]]
step = "scale"
factor = 0.5
[window]
length_s = 0.16
hop_s = 0.08
[[window.steps]]
step = "standardise"
[model]
architecture = "spectrogram_cnn"
min_probability = 0.6
pool = { kind = "mean", windows = 3 }
"""
HEADS = """
[[heads]]
name = "surface"
[[heads]]
name = "score"
kind = "number"
"""
_HEADS = [
    {"name": "surface", "labels": ["grass", "track"], "temperature": 1.5},
    {"name": "score", "labels": [], "temperature": 1.0},
]


def lab_recipe(folder: Path, heads: bool = False) -> tuple[Path, Path]:
    """The lab's recipe file and a bundle for it, made in `folder`; with heads, a window has three events."""
    path = folder / "lab.toml"
    path.write_text(RECIPE + HEADS * heads)
    weights = np.array([[-4.0, 1.0], [0.0, -2.0], [4.0, 1.0], [2.0, 1.0], [1.0, 2.0], [30.0, 7.0]])[
        : None if heads else 3
    ]
    model = {"input": "windows", "output": "logits", "shape": [2, 16], "dtype": "float32", "layout": "channels_first"}
    described = manifest(recipe="lab", chain=fitted(load_recipe(path).chain), model=model)
    described |= {"heads": _HEADS} if heads else {}
    return path, write_bundle(folder / "bundle", described, {MODEL: linear_onnx(weights, rows=16)})
