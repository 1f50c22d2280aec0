"""What every architecture must satisfy, as functions. In: its name and a recipe. Out: nothing, or an AssertionError.

An entry of ``ARCHITECTURES`` is checked without a test of its own. Where its defaults are too much for two cores it
names smaller parameters as ``cpu_sized``; ``free_time = True`` says that its graph takes windows of any length.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from recipes_made import recipe_text

from kymo.models.bundle import input_shape, load_bundle
from kymo.models.onnx_model import OnnxModel
from kymo.models.predict import Classifier
from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.models.training.export import INPUT, OUTPUT, Exported, export_model
from kymo.models.zoo import FitOptions, ModelHead, Samples, architecture, takes
from kymo.processors.recipe.load import Recipe, parse_recipe
from kymo.streams.chunk import Array, Format, Header, Window

LABELS = ("low", "middle", "high")
#: What those that can say in further heads: classes that follow the first ones', and a number far from 0.
HEADS = (ModelHead("side", ("left", "right")), ModelHead("seconds", weight=0.5))
BATCHES = (1, 2, 7, 16)
TOLERANCE = 1e-4
_SPECTROGRAM = {"step": "spectrogram", "nperseg": 8, "noverlap": 4, "keep_bins": 5}
#: Recipes that an architecture may be put behind: windows of (80, 3), and of (19, 8, 3).
RECIPES = {
    kind: recipe_text("zoo", "x y z", 20, (4, 2), steps=steps)
    for kind, steps in (("raw", []), ("spectrogram", [_SPECTROGRAM]))
}


def kinds(name: str) -> tuple[str, ...]:
    """The recipes that an architecture can stand behind."""
    return ("raw",) if takes(architecture(name)) == "raw" else tuple(RECIPES)


def recipe(kind: str) -> Recipe:
    """One of :data:`RECIPES`."""
    return parse_recipe(RECIPES[kind])


def fresh(name: str, fmt: Format, heads: tuple[ModelHead, ...] = (), **parameters: Any) -> Any:
    """An architecture of a size for two cores."""
    make: Any = architecture(name)
    chosen = {**getattr(make, "cpu_sized", {}), **parameters}
    return make(fmt, LABELS, chosen, 0, heads) if heads else make(fmt, LABELS, chosen, 0)


def has_heads(name: str) -> bool:
    return bool(getattr(architecture(name), "several_heads", False))


def laid_out(name: str, windows: Array) -> Array:
    """Windows ``(n, time, …, channels)`` in the architecture's layout."""
    if architecture(name).layout == "channels_last":
        return windows
    return np.ascontiguousarray(np.moveaxis(windows, -1, 1))


def eight(fmt: Format, name: str = "") -> tuple[Array, Array]:
    """Eight windows of noise about a tone, and their classes: nothing in common but what each is by itself.

    An architecture with ``one_number = True`` looks at one number of a window: for such a one the classes differ in size, too.
    """
    random = np.random.default_rng(1)
    windows = random.standard_normal((8, fmt.rows or 1, *fmt.shape)).astype(np.float32)
    classes = np.arange(8) % len(LABELS)
    tone = np.sin(np.arange(fmt.rows or 1)[None] * (0.3 + 0.5 * classes[:, None])).astype(np.float32)
    windows += 2 * tone.reshape(8, -1, *(1,) * len(fmt.shape))
    if name and getattr(architecture(name), "one_number", False):
        windows *= np.float32([1, 2, 6])[classes].reshape(8, *(1,) * (windows.ndim - 1))
    return windows, classes


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """An architecture that has learned the eight windows, and its ONNX."""

    name: str
    kind: str
    fmt: Format
    model: Any
    windows: Array
    classes: Array
    exported: Exported


@cache
def trained(name: str, kind: str) -> Trained:
    """Train once for all checks; the windows are in the architecture's layout."""
    fmt = recipe(kind).output_format()
    windows, classes = eight(fmt, name)
    windows = laid_out(name, windows)
    model = fresh(name, fmt)
    model.fit(Samples(windows, classes), None, FitOptions(epochs=80, schedule="none"), lambda _: None)
    return Trained(name, kind, fmt, model, windows, classes, export_model(model, windows.shape[1:], windows))


def check_builds(name: str, kind: str) -> None:
    """It takes the declared input and leaves it as it is; one epoch from the same seed gives the same bytes."""
    fmt = recipe(kind).output_format()
    windows, classes = eight(fmt)
    windows = laid_out(name, windows)
    before = windows.tobytes()
    given = []
    for _ in range(2 if kind == "raw" else 1):
        model = fresh(name, fmt)
        model.fit(Samples(windows, classes), None, FitOptions(epochs=1), lambda _: None)
        given.append(model.predict(windows))
    assert (given[0].shape, given[0].dtype) == ((8, len(LABELS)), np.float32)
    assert np.isfinite(given[0]).all()
    assert given[0].tobytes() == given[-1].tobytes()
    assert windows.tobytes() == before


def check_overfits(name: str, kind: str) -> None:
    """It tells eight windows apart that it has seen."""
    case = trained(name, kind)
    assert case.model.predict(case.windows).argmax(1).tolist() == case.classes.tolist()


def check_exports(name: str, kind: str) -> None:
    """ONNX of one opset, batch free, with nothing of training or of this machine; the same bytes every time."""
    case = trained(name, kind)
    import onnx

    proto = onnx.load_from_string(case.exported.model)
    onnx.checker.check_model(proto, full_check=True)
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 18)]
    assert not proto.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")
    assert {node.op_type for node in proto.graph.node}.isdisjoint({"Dropout", "Loop", "If", "Scan"})
    assert not any(node.doc_string or node.metadata_props for node in proto.graph.node)
    assert str(Path(onnx.__file__).parent.parent).encode() not in case.exported.model
    with tempfile.TemporaryDirectory() as folder:
        again = Path(folder) / MODEL
        case.model.export(again, INPUT, OUTPUT)
        assert again.read_bytes() == case.exported.model


def check_agrees(name: str, kind: str) -> None:
    """ONNX Runtime computes what the framework does, in any batch and, where time is free, for any length."""
    case = trained(name, kind)
    model = OnnxModel(case.exported.model, INPUT, OUTPUT)
    for length in lengths(name, case.fmt):
        random = np.random.default_rng(2)
        windows = random.standard_normal((max(BATCHES), length, *case.fmt.shape)).astype(np.float32)
        windows[3, length // 2 :] = 0  # half of one is empty
        windows = laid_out(name, windows)
        for n in BATCHES:
            here, there = model.run(windows[:n]), case.model.predict(windows[:n])
            np.testing.assert_allclose(here, there, rtol=TOLERANCE, atol=TOLERANCE)
        assert there.std(0).max() > 100 * TOLERANCE  # else anything would agree


def lengths(name: str, fmt: Format) -> tuple[int, ...]:
    rows = fmt.rows or 1
    return (rows, rows - 5, 2 * rows + 3) if getattr(architecture(name), "free_time", False) else (rows,)


def check_bundle(name: str, kind: str, folder: Path) -> None:
    """It goes through a bundle, and an agent's classifier gives the same events in any batch."""
    case, made = trained(name, kind), recipe(kind)
    layout = architecture(name).layout
    shape = input_shape((case.fmt.rows or 1, *case.fmt.shape), layout)
    model = {"input": INPUT, "output": OUTPUT, "shape": list(shape), "dtype": "float32", "layout": layout}
    manifest = {
        "recipe": made.name,
        "architecture": {"name": name, "parameters": case.model.parameters},
        "model": model,
        "labels": list(LABELS),
        "temperature": 1.0,
        "batch": case.exported.batch,
        "chain": made.chain.to_json(),
    }
    bundle = load_bundle(write_bundle(folder, manifest, {MODEL: case.exported.model}))
    assert bundle.model_path.read_bytes() == case.exported.model
    classifier = Classifier.for_recipe(bundle, made)
    windows, classes = eight(case.fmt, name)
    seen = [_window(case.fmt, data, i) for i, data in enumerate(windows)]
    events = classifier.classify(seen)
    assert [event.label for event in events] == [LABELS[i] for i in classes]
    for size in (1, 3):
        parts = [classifier.classify(seen[i : i + size]) for i in range(0, len(seen), size)]
        assert [event for part in parts for event in part] == events
    logits = case.model.predict(laid_out(name, windows)).astype(np.float64)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    expected = powers / powers.sum(1, keepdims=True)
    given = [[event.probabilities[label] for label in LABELS] for event in events]
    np.testing.assert_allclose(given, expected, rtol=1e-3, atol=TOLERANCE)


def _window(fmt: Format, data: Array, i: int) -> Window:
    header = Header("s", 0, fmt)
    return Window(header, 40 * i, 40 * i + 80, 2 * 10**9 * i, 2 * 10**9 * (i + 2), data)


def head_targets(classes: Array) -> dict[str, Array]:
    """Targets of the eight windows: each head lacks one."""
    side = (classes % 2).astype(np.int64)
    seconds = (3000 + 600 * (classes - 1)).astype(np.float32)
    side[2], seconds[5] = -1, np.nan
    return {"side": side, "seconds": seconds}


def check_heads(name: str, kind: str) -> None:
    """Further heads learn beside the classes, numbers come in their own unit, and ONNX Runtime says the same."""
    fmt = recipe(kind).output_format()
    windows, classes = eight(fmt)
    windows, targets = laid_out(name, windows), head_targets(classes)
    model = fresh(name, fmt, HEADS)
    model.fit(Samples(windows, classes, targets), None, FitOptions(epochs=160, schedule="none"), lambda _: None)
    out = model.predict(windows)
    assert (out.shape, out.dtype) == ((8, 3 + 2 + 1), np.float32)
    assert out[:, :3].argmax(1).tolist() == classes.tolist()
    side, seconds = targets["side"], targets["seconds"]
    assert (out[:, 3:5].argmax(1) == side)[side >= 0].all()
    known = np.isfinite(seconds)
    assert np.abs(out[known, 5] - seconds[known]).mean() < 200, (out[:, 5], seconds)  # of 2,400 to 3,600
    onnx_model = OnnxModel(export_model(model, windows.shape[1:], windows).model, INPUT, OUTPUT)
    random = np.random.default_rng(3).standard_normal((max(BATCHES), *windows.shape[1:])).astype(np.float32)
    for n in BATCHES:
        here, there = onnx_model.run(random[:n]), model.predict(random[:n])
        np.testing.assert_allclose(here, there, rtol=TOLERANCE, atol=TOLERANCE)


def check_no_known_targets(name: str) -> None:
    """A side of a split on which nothing is known of a head is no reason to fail: its columns stay finite."""
    fmt = recipe("raw").output_format()
    windows, classes = eight(fmt)
    windows = laid_out(name, windows)
    nothing = {"side": np.full(8, -1, np.int64), "seconds": np.full(8, np.nan, np.float32)}
    model = fresh(name, fmt, HEADS)
    epochs: list[dict[str, float]] = []
    samples = Samples(windows, classes, nothing)
    model.fit(samples, samples, FitOptions(epochs=2), epochs.append)
    assert np.isfinite(model.predict(windows)).all()
    assert all(np.isfinite(list(epoch.values())).all() for epoch in epochs)
