"""MiniRocket with a ridge classifier. In: raw windows (n, channels, time) float32. Out: (n, columns), logits of the labels,
then what further heads say: a ridge each, of the same features.

Dempster, Schmidt, Webb 2021, MiniRocket: A Very Fast (Almost) Deterministic Transform for Time Series Classification.
84 kernels of length 9 (six weights of -1, three of 2) are laid over a window at several dilations, each over some of
its channels. A feature is the share of places at which the result lies above a bias. Here windows are first rounded to
whole numbers, small enough that every sum is exact in float32: any order of adding gives the same counts, so aeon and
ONNX Runtime agree to the bit, whatever the batch.

The ridge has one solution in the number of samples (dual form). The penalty, and the temperature that turns scores into
probabilities, are chosen by the scores that each group gets from a model fitted without it: exact, in closed form, from
the one decomposition (the leave-one-out identity, by blocks: Cook and Weisberg 1982, Residuals and Influence, 3.5).

Nothing here is a framework: numpy fits, ONNX computes. Logits are equal to the bit in any batch, since every sum is of
whole numbers: counts times weights that are rounded to whole multiples of a power of two, added up in float64.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kymo.models.onnx_model import OnnxModel
from kymo.models.predict import fit_temperature
from kymo.models.training.learning import class_weights
from kymo.models.zoo import Epoch, FitOptions, ModelHead, Range, Samples, read_parameters
from kymo.models.zoo.onnx_graph import Graph, GraphArchitecture, cross_entropy
from kymo.streams.chunk import Array, Format
from kymo.streams.errors import TrainingError
from kymo.streams.schema import Rules

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
_MOST_FEATURES = 50_000  # five times the paper's: more take memory, and tell no more


@dataclass(frozen=True)
class MiniRocketParameters:
    features: Annotated[int, Rules(minimum=84, maximum=_MOST_FEATURES)] = 10_000
    windows: Annotated[int, Rules(minimum=2)] = 4096


LENGTH, KERNELS = 9, 84
MOST_CHANNELS = 9
#: Largest whole number: 9 channels x (6 x 1 + 3 x 2) x 2**17 stays below 2**24, up to which float32 is exact.
LARGEST = 2**17 - 1
_HEADROOM = 2.0  # times the largest training value, relative to the channel's spread, before a number is clipped
_TRIPLES = np.array(list(combinations(range(LENGTH), 3)))  # where a kernel's weights are 2
_GOLDEN = (np.sqrt(5) + 1) / 2
_NODE = 2**18  # comparisons a node and window: they stay in the cache
PENALTIES = np.logspace(-3, 4, 15)  # per sample: the kernel's mean diagonal is 1
_SHARP = 2.0  # scores differ by about 2: temperatures from 1/8 on are tried, so that none is surer than 1 - 1e-7


class MiniRocket(GraphArchitecture):
    several_heads: ClassVar[bool] = True
    search: ClassVar[Mapping[str, Range]] = {"features": (2_500, 5_000, 10_000)}

    def __init__(
        self,
        fmt: Format,  # of raw windows: ``rows`` (at least 9) and shape ``(channels,)``
        labels: Sequence[str],  # classes; see :class:`MiniRocketParameters`; of what is chosen at random
        parameters: Mapping[str, Any],
        seed: int,
        heads: Sequence[ModelHead] = (),  # what else it says
    ) -> None:
        self.parameters = read_parameters(parameters, MiniRocketParameters)
        self.labels, self.shape = len(labels), (fmt.shape[-1], fmt.rows or 0)
        self.heads = ModelHead("", tuple(labels)), *heads
        self.columns = sum(head.width for head in self.heads)
        if len(fmt.shape) != 1 or self.shape[1] < LENGTH:
            raise TrainingError(
                f"architecture 'minirocket' takes raw windows of at least {LENGTH} samples, one number a channel; "
                f"these are of {(fmt.rows, *fmt.shape)}"
            )
        self.banks: list[Bank] = []
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
        sample = np.sort(random.permutation(count)[: self.parameters["windows"]])
        windows: Floats = np.array(training.windows[sample], np.float32)
        classes = training.classes[sample]
        groups = training.groups[sample] if training.groups is not None else np.arange(len(sample))
        self._unit = _units(windows)
        self.banks = fit_banks(self._whole(windows), self.parameters["features"], random)
        counts = self.count(windows)
        mean, scale = standardise(counts)
        targets = {"": classes, **{name: target[sample] for name, target in training.targets.items()}}
        balance = class_weights(classes, self.labels, options).astype(np.float64)
        ridges = fit_ridges(counts, groups, self.heads, targets, balance)
        weights = np.concatenate([ridge.weights for ridge in ridges], 1) / scale[:, None]
        self._set(mean, weights, np.concatenate([ridge.bias for ridge in ridges]))
        on_epoch(self.only_epoch(cross_entropy(ridges[0].left_out, classes), validation))

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
        """Round windows to whole numbers; one that holds a number that is not finite is all 0."""
        whole = np.clip(np.rint(windows * self._unit), -LARGEST, LARGEST)
        return np.where(np.isfinite(windows).all((1, 2), keepdims=True), whole, 0).astype(np.float32)

    def weights(self) -> bytes:
        """Save all numbers that were learned, as an ``.npz`` file: outputs are ``(counts - middle) @ weights * step + bias``."""
        file = io.BytesIO()
        banks = {
            f"bank{i}_{name}": getattr(bank, name)
            for i, bank in enumerate(self.banks)
            for name in ("dilation", "padded", "weights", "biases")
        }
        numbers = {"unit": self._unit, "middle": self._middle, "weights": self._weights, "bias": self._bias}
        arrays: dict[str, Any] = {**numbers, "step": self._step, **banks}
        np.savez(file, **arrays)
        return file.getvalue()

    def count(self, windows: Floats) -> Floats:
        """Count all features, ``(n, features)``: one bank behind the other."""
        graph = Graph("t")
        self._counted(graph, "windows", "counts")
        features = sum(bank.biases.size for bank in self.banks)
        model = graph.model({"windows": ("n", *self.shape)}, {"counts": ("n", features)})
        return OnnxModel(model, "windows", "counts").run(windows).astype(np.float32, copy=False)

    def _counted(self, graph: Graph, input_name: str, output_name: str = "") -> str:
        rounded = graph.node("Round", [graph.node("Mul", [input_name, self._unit])])
        whole = graph.node("Clip", [rounded, np.float32(-LARGEST), np.float32(LARGEST)])
        counts = [_count(graph, whole, bank, self.shape[1]) for bank in self.banks]
        return graph.node("Concat", counts, output_name, axis=1)

    def write(self, graph: Graph, input_name: str, output_name: str) -> None:
        """Give not a number for a window that holds one that is not finite."""
        from onnx import TensorProto

        centred = graph.node("Sub", [self._counted(graph, input_name), self._middle])
        weights = graph.node("Cast", [self._weights], to=TensorProto.DOUBLE)
        product = graph.node("MatMul", [graph.node("Cast", [centred], to=TensorProto.DOUBLE), weights])
        logits = graph.node("Add", [graph.node("Mul", [product, self._step]), self._bias])
        # A comparison hides what is not finite: 0 times the window's numbers brings it back.
        spoiled = graph.node("Mul", [input_name, np.float32(0)])
        spoiled = graph.node("ReduceSum", [spoiled, np.array([1, 2])], keepdims=0)
        spoiled = graph.node("Unsqueeze", [spoiled, np.array([1])])
        graph.node("Add", [graph.node("Cast", [logits], to=TensorProto.FLOAT), spoiled], output_name)


def _count(graph: Graph, whole: str, bank: Bank, time: int) -> str:
    """Add the nodes of one bank: ``(n, channels, time)`` to counts ``(n, kernels * biases)``."""
    from onnx import TensorProto

    reach = LENGTH // 2 * bank.dilation if bank.padded else 0
    response = graph.node("Conv", [whole, bank.weights], dilations=[bank.dilation], pads=[reach, reach])
    response = graph.node("Unsqueeze", [response, np.array([2])])  # (n, kernels, 1, places)
    kernels, biases = bank.biases.shape
    size = max(1, _NODE // (kernels * time))
    parts = []
    for i in range(0, biases, size):
        above = graph.node("Greater", [response, bank.biases[:, i : i + size, None]])
        above = graph.node("Cast", [above], to=TensorProto.FLOAT)
        parts.append(graph.node("ReduceSum", [above, np.array([3])], keepdims=0))
    joined = graph.node("Concat", parts, axis=2) if len(parts) > 1 else parts[0]
    return graph.node("Flatten", [joined], axis=1)


def _units(windows: Floats) -> Floats:
    """Find what a channel is multiplied by, ``(1, channels, 1)``: equal spreads, and room above the largest value."""
    spread, size = windows.std((0, 2), dtype=np.float64), np.sqrt(np.square(windows, dtype=np.float64).mean((0, 2)))
    spread = np.where(spread > 1e-3 * size, spread, np.where(size > 0, size, 1.0))
    largest = float((np.abs(windows).max((0, 2)) / spread).max()) or 1.0
    return (LARGEST / (_HEADROOM * largest) / spread).astype(np.float32)[None, :, None]


@dataclass(frozen=True, slots=True, eq=False)
class Bank:
    """Kernels of one dilation that see as many places of a window."""

    dilation: int  # samples from one weight to the next
    padded: bool  # whether the window is continued by zeros on both sides; else a kernel stays inside
    weights: Floats  # ``(kernels, channels, 9)``; 0 for channels that a kernel does not look at
    biases: Floats  # ``(kernels, biases)``, halves of odd numbers

    def respond(self, windows: Floats) -> Floats:
        """Lay the kernels on windows: ``(n, channels, time)`` to ``(n, kernels, places)``."""
        n, channels, time = windows.shape
        reach = LENGTH // 2 * self.dilation if self.padded else 0
        padded = np.pad(windows, ((0, 0), (0, 0), (reach, reach)))
        places = time if self.padded else time - (LENGTH - 1) * self.dilation
        shifted = [padded[:, :, i * self.dilation : i * self.dilation + places] for i in range(LENGTH)]
        columns = np.stack(shifted, 2).reshape(n, channels * LENGTH, places)
        response: Floats = np.matmul(self.weights.reshape(len(self.weights), -1), columns)
        return response


def dilations(time: int, features: int) -> list[tuple[int, int]]:
    """Choose dilations for windows of `time` samples, and how many features a kernel has at each (paper, section 3.1)."""
    per_kernel = max(1, features // KERNELS)
    steps = min(per_kernel, 32)
    largest = np.log2((time - 1) / (LENGTH - 1))
    values, counts = np.unique(np.logspace(0, largest, steps, base=2).astype(int), return_counts=True)
    counts = (counts * (per_kernel / steps)).astype(int)
    for i in range(per_kernel - int(counts.sum())):
        counts[i % len(counts)] += 1
    return [(int(value), int(count)) for value, count in zip(values, counts, strict=True)]


def fit_banks(windows: Floats, features: int, random: np.random.Generator) -> list[Bank]:
    """Make kernels whose biases are quantiles of what they give for random windows."""
    _, channels, time = windows.shape
    banks, number = [], 0
    for j, (dilation, count) in enumerate(dilations(time, features)):
        for padded in (True, False):
            kernels = [k for k in range(KERNELS) if (j + k) % 2 != padded]
            weights = np.stack([_kernel(k, channels, random) for k in kernels])
            bank = Bank(dilation, padded, weights, np.zeros((len(kernels), count), np.float32))
            for i in range(len(kernels)):
                everywhere = Bank(dilation, True, weights[i : i + 1], bank.biases[i : i + 1])
                response = everywhere.respond(windows[random.integers(len(windows))][None])[0, 0]
                # Low-discrepancy quantiles, so that few biases cover what a kernel may give.
                quantiles = (np.arange(number + 1, number + count + 1) * _GOLDEN) % 1
                bank.biases[i] = np.floor(np.quantile(response, quantiles)) + 0.5
                number += count
            banks.append(bank)
    return banks


def _kernel(k: int, channels: int, random: np.random.Generator) -> Floats:
    """Draw weights ``(channels, 9)`` of one kernel on some of the channels: few more often than many."""
    most = min(channels, MOST_CHANNELS)
    subset = random.choice(channels, int(2 ** random.uniform(0, np.log2(most + 1))), replace=False)
    weights = np.zeros((channels, LENGTH), np.float32)
    weights[subset] = -1
    weights[np.ix_(subset, _TRIPLES[k])] = 2
    return weights


class Ridge(NamedTuple):
    """A solution on standardised features: ``features @ weights + bias``; of classes, logits."""

    weights: Doubles  # ``(features, columns)``
    bias: Doubles
    penalty: float  # that was chosen
    left_out: Doubles  # ``(n, columns)``: of each sample by a model fitted without its group


def standardise(features: Floats) -> tuple[Doubles, Doubles]:
    """Bring each feature to mean 0 and spread 1 where it stands; give what they were."""
    mean, scale = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    scale[scale == 0] = 1
    features -= mean.astype(np.float32)
    features /= scale.astype(np.float32)
    return mean, scale


def fit_ridges(
    features: Floats,  # standardised
    groups: NDArray[np.int64],
    heads: Sequence[ModelHead],  # the recipe's own classes have no name
    targets: Mapping[str, Array],
    balance: Doubles,  # weight of each of the recipe's own classes
) -> list[Ridge]:
    """Fit a ridge a head, from the samples whose target is known; classes with targets of 1 for the own one and -1 for the others."""
    kernels: dict[tuple[bytes, bytes], _Gram] = {}
    ridges = []
    for head in heads:
        target: Any = targets[head.name]
        known = target >= 0 if head.labels else np.isfinite(target)
        if not known.any():
            ridges.append(Ridge(np.zeros((features.shape[1], head.width)), np.zeros(head.width), 0.0, np.zeros((0, 0))))
            continue
        weights = np.ones(head.width) if head.name else balance
        of_samples = weights[target[known]] if head.labels else np.ones(int(known.sum()))
        key = known.tobytes(), of_samples.tobytes()
        if key not in kernels:
            kernels[key] = _Gram(features if known.all() else features[known], groups[known], of_samples)
        gram = kernels[key]
        ridges.append(gram.classes(target[known], weights) if head.labels else gram.number(target[known]))
    return ridges


class _Gram:
    """Inner products of standardised features, decomposed once for all that is asked of the same samples."""

    def __init__(self, features: NDArray[np.float32], groups: NDArray[np.int64], weights: Doubles) -> None:
        self.features, self.groups, self.root = features, groups, np.sqrt(weights)[:, None]
        self.size = float(np.square(features, dtype=np.float64).sum(1).mean()) or 1.0
        # A constant feature as long as the others together stands for the bias.
        kernel = (features @ features.T).astype(np.float64) / self.size + 1.0
        values, self.vectors = np.linalg.eigh(kernel * self.root * self.root.T)
        self.values: Doubles = np.maximum(values, 0)

    def classes(self, classes: NDArray[np.int64], weights: Doubles) -> Ridge:
        targets = np.where(np.arange(len(weights)) == classes[:, None], 1.0, -1.0)

        def judge(scores: Doubles) -> tuple[float, float]:
            temperature = fit_temperature((scores * _SHARP).tolist(), classes.tolist()) / _SHARP
            return cross_entropy(scores / temperature, classes, weights), temperature

        return self._solve(targets, judge)

    def number(self, values: Array) -> Ridge:
        column = values.astype(np.float64)[:, None]
        middle, spread = float(column.mean()), float(column.std()) or 1.0
        targets = (column - middle) / spread

        def judge(scores: Doubles) -> tuple[float, float]:
            return float(np.square(scores - targets).mean()), 1.0

        weights, bias, penalty, left_out = self._solve(targets, judge)
        return Ridge(weights * spread, bias * spread + middle, penalty, left_out * spread + middle)

    def _solve(self, targets: Doubles, judge: Callable[[Doubles], tuple[float, float]]) -> Ridge:
        """Choose the solution whose left-out scores have the lowest loss; `judge` gives it, and what to divide scores by."""
        turned = self.vectors.T @ (targets * self.root)
        best: tuple[float, float, float, Doubles] | None = None
        for penalty in PENALTIES:
            shrunk = self.values / (self.values + penalty)
            scores = _left_out(self.vectors, shrunk, turned, targets * self.root, self.groups) / self.root
            loss, temperature = judge(scores)
            if best is None or loss < best[0]:
                best = loss, float(penalty), temperature, scores
        assert best is not None
        _, penalty, temperature, scores = best
        dual = (self.vectors @ (turned / (self.values + penalty)[:, None])) * self.root / temperature
        weights = self.features.T.astype(np.float64) @ dual / self.size
        return Ridge(weights, dual.sum(0), penalty, scores / temperature)


def _left_out(
    vectors: Doubles, shrunk: Doubles, turned: Doubles, targets: Doubles, groups: NDArray[np.int64]
) -> Doubles:
    """Score each sample without its group: ``y - (I - H_gg)^-1 (y - H y)_g``."""
    residuals = targets - vectors @ (shrunk[:, None] * turned)
    scores = np.empty_like(targets)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        hat = (vectors[rows] * shrunk) @ vectors[rows].T
        scores[rows] = targets[rows] - np.linalg.solve(np.eye(len(rows)) - hat, residuals[rows])
    return scores
