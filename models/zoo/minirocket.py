"""MiniRocket with a ridge classifier. In: raw windows (n, channels, time) float32. Out: (n, columns), logits of the labels,
then what further heads say: a ridge each, of the same features.

See :mod:`models.zoo.rocket_features` for the features and :mod:`models.zoo.ridge` for what is learned. Nothing here is a framework:
numpy fits, ONNX computes. Its logits are equal to the bit in both and in any batch, since every sum is of whole
numbers: counts times weights that are rounded to whole multiples of a power of two, added up in float64.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from models.onnx_model import OnnxModel
from models.training.export import clean_onnx
from models.training.fit import class_weights
from models.zoo import Epoch, FitOptions, Head, Range, Samples, read_parameters
from models.zoo.ridge import Doubles, cross_entropy, fit_heads, fit_ridge
from models.zoo.rocket_features import LARGEST, LENGTH, Bank, Floats, counts_of, fit_banks
from streams.chunk import Array, Format
from streams.errors import TrainingError

OPSET = 18
#: ``features``: about how many, 84 to 50,000; ``windows``: most that are learned from, chosen at random where there are
#: more (the work grows with its third power).
DEFAULTS: dict[str, Any] = {"features": 10_000, "windows": 4096}
_MOST_FEATURES = 50_000  # five times the paper's: more take memory, and tell no more
_HEADROOM = 2.0  # times the largest training value, relative to the channel's spread, before a number is clipped
_SOME = 2**19  # numbers of windows at once
_NODE = 2**18  # comparisons a node and window: they stay in the cache


class MiniRocket:
    """The transform and the classifier as an :class:`~models.zoo.Architecture`."""

    layout: ClassVar[str] = "channels_first"
    packages: ClassVar[tuple[str, ...]] = ("onnx",)
    takes: ClassVar[str] = "raw"
    several_heads: ClassVar[bool] = True
    search: ClassVar[Mapping[str, Range]] = {"features": (2_500, 5_000, 10_000)}

    def __init__(
        self,
        fmt: Format,  # of raw windows: ``rows`` (at least 9) and shape ``(channels,)``
        labels: Sequence[str],  # classes; see :data:`DEFAULTS`; of what is chosen at random
        parameters: Mapping[str, Any],
        seed: int,
        heads: Sequence[Head] = (),  # what else it says
    ) -> None:
        self.parameters = read_parameters(parameters, DEFAULTS)
        self.labels, self.shape = len(labels), (fmt.shape[-1], fmt.rows or 0)
        self.heads, self.columns = tuple(heads), len(labels) + sum(head.width for head in heads)
        if len(fmt.shape) != 1 or self.shape[1] < LENGTH:
            raise TrainingError(
                f"architecture 'minirocket' takes raw windows of at least {LENGTH} samples, one number a channel; "
                f"these are of {(fmt.rows, *fmt.shape)}"
            )
        if not 84 <= self.parameters["features"] <= _MOST_FEATURES or self.parameters["windows"] < 2:
            raise TrainingError(f"[model] features is a number from 84 to {_MOST_FEATURES}, windows starts at 2")
        self._banks: list[Bank] = []
        self._unit = np.ones((1, self.shape[0], 1), np.float32)
        self._middle = np.zeros(0, np.float32)  # (features,)
        self._weights = np.zeros((0, self.columns), np.float32)  # whole numbers
        self._step = np.ones(self.columns)
        self._bias = np.zeros(self.columns)

    def fit(
        self, training: Samples, validation: Samples | None, options: FitOptions, on_epoch: Callable[[Epoch], None]
    ) -> None:
        """Learn at once: one epoch."""
        random = np.random.default_rng(options.seed)
        count = len(training.classes)
        most = min(count, self.parameters["windows"])
        chosen = np.sort(random.permutation(count)[:most])
        windows: Floats = np.array(training.windows[chosen], np.float32)
        classes = training.classes[chosen]
        groups = training.groups[chosen] if training.groups is not None else np.arange(most)
        self._unit = _units(windows)
        self._banks = fit_banks(self._whole(windows), self.parameters["features"], random)
        counts = self._count(windows)
        weights = class_weights(classes, self.labels, options).astype(np.float64)
        found = fit_ridge(counts, classes, groups, weights)
        targets = {name: target[chosen] for name, target in training.targets.items()}
        more, bias = fit_heads(counts, groups, self.heads, targets)
        columns = np.concatenate([found.weights, more], 1) / found.scale[:, None]
        self._set(found.mean, columns, np.concatenate([found.bias, bias]))
        numbers: Epoch = {"epoch": 1, "loss": cross_entropy(found.left_out, classes)}
        if validation is not None:
            logits = self.predict(validation.windows)[:, : self.labels]
            right = float((logits.argmax(1) == validation.classes).mean())
            numbers |= {
                "validation_loss": cross_entropy(logits.astype(np.float64), validation.classes),
                "validation_accuracy": right,
            }
        on_epoch(numbers)

    def _set(self, mean: Doubles, weights: Doubles, bias: Doubles) -> None:
        """Weights on counts less their `mean`, as whole multiples of a power of two, one a column, such that every sum is
        exact in float64."""
        self._middle = np.round(mean).astype(np.float32)
        bits = min(23, 52 - int(np.ceil(np.log2(max(2, self.shape[1] * len(weights))))))
        largest = np.abs(weights).max(0)
        self._step = 2.0 ** (np.ceil(np.log2(np.where(largest > 0, largest, 1.0))) - bits)
        self._weights = np.round(weights / self._step).astype(np.float32)
        self._bias = bias - (mean - self._middle) @ weights

    def _whole(self, windows: Floats) -> Floats:
        """Windows in whole numbers; one that holds a number that is not finite is all 0."""
        whole = np.clip(np.rint(windows * self._unit), -LARGEST, LARGEST)
        return np.where(np.isfinite(windows).all((1, 2), keepdims=True), whole, 0).astype(np.float32)

    def predict(self, windows: Array) -> Array:
        """Outputs, ``(n, columns)`` float32; not a number for a window that holds one that is not finite."""
        parts = []
        for i in range(0, len(windows), 256):
            part = np.array(windows[i : i + 256], np.float32)
            counts = counts_of(self._banks, self._whole(part)) - self._middle
            logits = counts.astype(np.float64) @ self._weights.astype(np.float64) * self._step + self._bias
            logits[~np.isfinite(part).all((1, 2))] = np.nan
            parts.append(logits.astype(np.float32))
        return np.concatenate(parts)

    def weights(self) -> bytes:
        """All numbers that were learned, as an ``.npz`` file: outputs are ``(counts - middle) @ weights * step + bias``."""
        file = io.BytesIO()
        banks = {
            f"bank{i}_{name}": getattr(bank, name)
            for i, bank in enumerate(self._banks)
            for name in ("dilation", "padded", "weights", "biases")
        }
        numbers = {"unit": self._unit, "middle": self._middle, "weights": self._weights, "bias": self._bias}
        arrays: dict[str, Any] = {**numbers, "step": self._step, **banks}
        np.savez(file, **arrays)
        return file.getvalue()

    def _count(self, windows: Floats) -> Floats:
        """Counts of all features by ONNX Runtime: the very numbers of numpy, several times faster."""
        graph = _Graph()
        self._counted(graph, "windows", "counts")
        features = sum(bank.biases.size for bank in self._banks)
        model = OnnxModel(graph.model("windows", [*self.shape], "counts", features), "windows", "counts")
        counts: Floats = np.empty((len(windows), features), np.float32)
        step = max(1, _SOME // (self.shape[0] * self.shape[1]))
        for i in range(0, len(windows), step):
            counts[i : i + step] = model.run(windows[i : i + step])
        return counts

    def _counted(self, graph: _Graph, input_name: str, output_name: str = "") -> str:
        whole = graph.add("Clip", graph.add("Round", graph.add("Mul", input_name, self._unit)), *_ends())
        counts = [_count(graph, whole, bank, self.shape[1]) for bank in self._banks]
        return graph.add("Concat", *counts, axis=1, name=output_name)

    def export(self, path: Path, input_name: str, output_name: str) -> None:
        """Write ONNX with a free batch size."""
        from onnx import TensorProto

        graph = _Graph()
        centred = graph.add("Sub", self._counted(graph, input_name), self._middle)
        weights = graph.add("Cast", self._weights, to=TensorProto.DOUBLE)
        product = graph.add("MatMul", graph.add("Cast", centred, to=TensorProto.DOUBLE), weights)
        logits = graph.add("Add", graph.add("Mul", product, self._step), self._bias)
        # A comparison hides what is not finite: 0 times the window's numbers brings it back.
        spoiled = graph.add("ReduceSum", graph.add("Mul", input_name, np.float32(0)), np.array([1, 2]), keepdims=0)
        spoiled = graph.add("Unsqueeze", spoiled, np.array([1]))
        graph.add("Add", graph.add("Cast", logits, to=TensorProto.FLOAT), spoiled, name=output_name)
        path.write_bytes(graph.model(input_name, [*self.shape], output_name, self.columns))


class _Graph:
    """Nodes and constants of an ONNX graph, named by their number."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, op: str, *inputs: Any, name: str = "", **attributes: Any) -> str:
        """Add a node; an input is a name, or numbers that become a constant."""
        from onnx import helper

        names = [value if isinstance(value, str) else self._constant(np.asarray(value)) for value in inputs]
        out = name or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, names, [out], **attributes))
        return out

    def model(self, input_name: str, shape: list[int], output_name: str, columns: int) -> bytes:
        """ONNX of windows ``(n, *shape)`` to ``(n, columns)``, both float32."""
        from onnx import TensorProto, helper

        shapes: dict[str, list[Any]] = {input_name: ["n", *shape], output_name: ["n", columns]}
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name, axes in shapes.items()]
        graph = helper.make_graph(self.nodes, "model", ends[:1], ends[1:], self.constants)
        opset = helper.make_opsetid("", OPSET)
        return clean_onnx(helper.make_model(graph, opset_imports=[opset], ir_version=10))

    def _constant(self, value: NDArray[Any]) -> str:
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name


def _ends() -> tuple[np.float32, np.float32]:
    return np.float32(-LARGEST), np.float32(LARGEST)


def _count(graph: _Graph, whole: str, bank: Bank, time: int) -> str:
    """Nodes of one bank: ``(n, channels, time)`` to counts ``(n, kernels * biases)``."""
    from onnx import TensorProto

    reach = LENGTH // 2 * bank.dilation if bank.padded else 0
    response = graph.add("Conv", whole, bank.weights, dilations=[bank.dilation], pads=[reach, reach])
    response = graph.add("Unsqueeze", response, np.array([2]))  # (n, kernels, 1, places)
    kernels, biases = bank.biases.shape
    size = max(1, _NODE // (kernels * time))
    parts = []
    for i in range(0, biases, size):
        above = graph.add("Greater", response, bank.biases[:, i : i + size, None])
        parts.append(graph.add("ReduceSum", graph.add("Cast", above, to=TensorProto.FLOAT), np.array([3]), keepdims=0))
    joined = graph.add("Concat", *parts, axis=2) if len(parts) > 1 else parts[0]
    return graph.add("Flatten", joined, axis=1)


def _units(windows: Floats) -> Floats:
    """What a channel is multiplied by, ``(1, channels, 1)``: equal spreads, and room above the largest value."""
    spread, size = windows.std((0, 2), dtype=np.float64), np.sqrt(np.square(windows, dtype=np.float64).mean((0, 2)))
    spread = np.where(spread > 1e-3 * size, spread, np.where(size > 0, size, 1.0))
    largest = float((np.abs(windows).max((0, 2)) / spread).max()) or 1.0
    return (LARGEST / (_HEADROOM * largest) / spread).astype(np.float32)[None, :, None]
