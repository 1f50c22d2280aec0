"""Small ONNX models and a small recipe, made by hand: what several model tests share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from recipes_made import STANDARDISE, recipe_text
from tables import table

from kymo.models.bundle import Bundle, load_bundle
from kymo.models.pooling import Pool
from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MANIFEST, MODEL, complete, manifest_bytes
from kymo.processors.chain import Chain
from kymo.processors.recipe.load import Recipe, parse_recipe
from kymo.streams.chunk import Array, Format, Header, Window, signal_format
from kymo.streams.files import is_inside
from kymo.streams.labels.labels import interval
from kymo.streams.recording import Recording, StreamData

RECIPE = recipe_text(
    "tiny",
    "x y",
    10,
    (0.4, 0.2),
    steps=[{"step": "scale", "factor": 0.5}],
    behind=STANDARDISE,
    model={"architecture": "spectrogram_cnn", "min_probability": 0.6},
    train={"folds": 0, "epochs": 3},
)
LABELS = ("low", "middle", "high")
HMM = Pool("hmm", transitions=((0.9, 0.1, 0.0), (0.2, 0.7, 0.1), (0.1, 0.1, 0.8)), start=(0.5, 0.25, 0.25))


@cache
def recipe(text: str = RECIPE) -> Recipe:
    """The small recipe: 2 channels at 10 Hz, windows of 4 samples."""
    return parse_recipe(text)


def mean_onnx(weights: Array, axes: list[int], shape: list[int]) -> bytes:
    """Logits = means over some axes of the windows, times weights (channels, labels)."""
    nodes = [
        helper.make_node("ReduceMean", ["windows", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
    ]
    constants = {"axes": np.array(axes), "weights": weights.astype(np.float32)}
    return onnx_bytes(nodes, constants, {"windows": ["n", *shape]}, {"logits": ["n", weights.shape[1]]})


def linear_onnx(weights: Array, channels: int = 2, rows: int = 4) -> bytes:
    """Logits = weights @ (mean of each channel over time), for windows (n, channels, rows)."""
    return mean_onnx(weights.T, [2], [channels, rows])


def dense_onnx(inputs: int, labels: int, seed: int) -> bytes:
    """A dense layer over all of a window (n, 1, inputs): the kind whose bytes may depend on the batch."""
    weights = np.random.default_rng(seed).standard_normal((inputs, labels)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["windows"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights"], ["logits"]),
    ]
    return onnx_bytes(nodes, {"weights": weights}, {"windows": ["n", 1, inputs]}, {"logits": ["n", labels]})


def onnx_bytes(
    nodes: list[Any], constants: Mapping[str, Any], inputs: Mapping[str, list[Any]], outputs: Mapping[str, list[Any]]
) -> bytes:
    """A model of these nodes, with shapes by name, all of float32."""
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in side.items()]
        for side in (inputs, outputs)
    ]
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "model", *ends, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def fitted(chain: Chain) -> dict[str, Any]:
    """A chain's JSON with numbers in its learned step."""
    described = chain.to_json()
    described["specs"][-1]["spec"] |= {"mean": [0.0, 0.0], "std": [1.0, 1.0]}
    return described


def manifest(**changes: Any) -> dict[str, Any]:
    """A manifest of the small recipe's linear model."""
    model = {"input": "windows", "output": "logits", "shape": [2, 4], "dtype": "float32", "layout": "channels_first"}
    return {
        "recipe": "tiny",
        "labels": list(LABELS),
        "temperature": 1.0,
        "batch": "any",
        "chain": fitted(recipe().chain),
        "model": model,
    } | changes


def tiny_bundle(folder: Path, weights: Array | None = None, **changes: Any) -> Bundle:
    """A bundle of the small recipe; its model's logits are ``weights @ mean of each channel``."""
    w = np.array([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]) if weights is None else weights
    return load_bundle(write_bundle(folder, manifest(**changes), {MODEL: linear_onnx(w)}))


def foreign_bundle(folder: Path, said: dict[str, Any], contents: dict[str, bytes]) -> Path:
    """A bundle as another program may have written it, whatever its names are; those that lead out of the folder are not written."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).write_bytes(manifest_bytes(complete(said, contents, {})))
    for name, data in contents.items():
        if is_inside(name):
            (folder / name).write_bytes(data)
    return folder


def window(data: Array, session: str = "s", index: int = 0, missing: float = 0.0) -> Window:
    """A window of (time, channels) numbers."""
    fmt = Format("imu.wrist", ("x", "y"), (), Fraction(10), "float32", (2,), rows=4)
    header = Header(session, 0, fmt)
    return Window(header, index, index + 4, index * 10**8, (index + 4) * 10**8, data.astype(np.float32), missing)


def recording(session: str, levels: Sequence[float], labels: Sequence[tuple[float, float, str]]) -> Recording:
    """A recording at 10 Hz whose channel x holds `levels`; the small model's logits are (-x/2, 0, x/2)."""
    data = np.column_stack([levels, np.zeros(len(levels))]).astype(np.float32)
    stream = StreamData(Header(session, 0, signal_format("imu.wrist", ("x", "y"), Fraction(10))), data)
    named = [
        interval(session=session, set="label", start_ns=int(a * 1e9), end_ns=int(b * 1e9), label=name)
        for a, b, name in labels
    ]
    return Recording(session, [stream], named)


def write_csv(path: Path, label: str, level: float, count: int = 20) -> None:
    """A recording at 10 Hz: noise around a level."""
    random = np.random.default_rng(sum(path.name.encode()))
    numbers = np.column_stack([level + random.standard_normal(count), random.standard_normal(count)])
    table(path, "t,x,y,label", (f"{i / 10:.1f},{x:.4f},{y:.4f},{label}" for i, (x, y) in enumerate(numbers)))
