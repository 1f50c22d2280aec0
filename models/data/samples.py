"""What a model learns from and is judged by. In: labelled windows, of a chain up to its steps that learn; a split. Out: both sides, with
steps that have learned from the training side alone; arrays ``(n, *shape)`` float32, or sequences of windows ``(n, time, …)`` for a
stateful model.

A model that takes raw windows gets the raw windows that stand at the same places as the recipe's, on the same sides.

Nothing here holds all windows at once: steps are applied where a window is asked for, and an array over
:data:`IN_MEMORY` bytes lies in a file that has no name and goes when nobody uses it.

A run is the windows of a session that follow each other without a gap, those without a label too: a stateful model's state goes
through it and begins anew behind it, and where the step `anew` says so. What such a model learns from is a window with the
ones before it in its run, at most ``[train] sequence`` together, joined along time just as they are served: columns that lie
across the border of two windows are in neither. The label is the last window's. Shorter sequences, at a run's begin, are filled
up with NaN, which the network masks: zeros are values.
"""

from __future__ import annotations

import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kymo.models.bundle import raw_chain
from kymo.models.data.examples import Dataset, Example, heads_of, target_arrays
from kymo.models.data.splits import Split, check_leaks, group_of
from kymo.models.onnx_model import begins_anew, next_place
from kymo.models.zoo import ModelHead, Samples
from kymo.processors.chain import Chain, PerWindow
from kymo.processors.recipe.load import Recipe
from kymo.processors.spec import Spec
from kymo.processors.steps.maps import Mask
from kymo.processors.windows import PaddedWindows
from kymo.streams.chunk import Array, Format, Window
from kymo.streams.errors import TrainingError
from kymo.streams.settings import Settings

#: Larger arrays of windows lie in a file.
IN_MEMORY = 256 * 2**20
Augment = Callable[[Array, np.random.Generator], Array]


def split_chain(chain: Chain) -> tuple[Chain, tuple[Spec, ...]]:
    """Cut a chain before its first step that learns."""
    at = next((i for i, spec in enumerate(chain.specs) if _learns(spec)), len(chain.specs))
    return Chain(chain.specs[:at]), chain.specs[at:]


def _learns(spec: Spec) -> bool:
    return bool((spec.spec if isinstance(spec, PerWindow) else spec).learned)


def fit_steps(steps: Sequence[Spec], windows: Sequence[Window]) -> tuple[Spec, ...]:
    """Have steps learn their numbers, each from what the ones before it make of `windows`."""
    fitted: list[Spec] = []
    for step in steps:
        fitted.append(_fit(step, apply_steps(fitted, windows)))
    return tuple(fitted)


def _fit(step: Spec, windows: Iterable[Window]) -> Spec:
    if not isinstance(step, PerWindow) or not _learns(step):
        return step
    learner: Any = step.spec
    return replace(step, spec=learner.fit(replace(w, pieces=w.real, padded=0) if w.padded else w for w in windows))


def apply_steps(steps: Sequence[Spec], windows: Iterable[Window]) -> Iterator[Window]:
    stages = [step.build() for step in steps]
    for window in windows:
        for stage in stages:
            (window,) = stage.push(window)  # noqa: PLW2901
        yield window


def with_steps(examples: Sequence[Example], steps: Sequence[Spec]) -> Iterator[Example]:
    windows = apply_steps(steps, (example.window for example in examples))
    return (replace(example, window=window) for example, window in zip(examples, windows, strict=True))


def to_samples(
    examples: Sequence[Example],
    labels: Sequence[str],
    layout: str,
    heads: Sequence[ModelHead] = (),
    steps: Sequence[Spec] = (),  # behind which a model takes windows
) -> Samples:
    """Make arrays of examples as a model takes them, with what it should say in its further heads."""
    number = {label: i for i, label in enumerate(labels)}
    windows = _array_of(apply_steps(steps, [example.window for example in examples]), len(examples), layout)
    classes = np.array([number[example.label] for example in examples], np.int64)
    return Samples(windows, classes, target_arrays([example.targets for example in examples], heads))


def _array_of(windows: Iterable[Window], count: int, layout: str = "channels_last") -> Array:
    rows: Array | None = None
    for i, window in enumerate(windows):
        data = np.moveaxis(window.data, -1, 0) if layout == "channels_first" else window.data
        rows = _new_array((count, *data.shape)) if rows is None else rows
        rows[i] = data
        if not np.isfinite(rows[i]).all():
            place = f"session {window.session}, window from sample {window.start_index}"
            if window.absent:
                raise TrainingError(
                    f"{place}: {' and '.join(window.absent)} missing, which is no number behind the chain; make `mask` the last of "
                    f"[[window.steps]], or say required = true in its [[input]] to leave such windows out"
                )
            raise TrainingError(
                f"{place}: a number is not finite behind the chain; look at its steps (a logarithm of 0 needs `eps`)"
            )
    if rows is None:
        raise TrainingError("there is no window to learn from")
    return rows


def _new_array(shape: tuple[int, ...]) -> Array:
    """Make a float32 array to be filled; a large one lies in a nameless file under ``KYMO_HOME/cache``."""
    if 4 * np.prod(shape, dtype=np.int64) <= IN_MEMORY:
        return np.empty(shape, np.float32)
    folder = Settings.from_env().home / "cache"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:  # the mapping outlives the file's handle and name
        return np.asarray(np.memmap(file, np.float32, "w+", shape=shape))


def is_stateful(parameters: Any) -> bool:
    return parameters.get("stateful") is True


def link_runs(dataset: Dataset, every: int = 0) -> list[Example]:
    """Tell each example its run, of windows that begin every so many raw samples; 0: where the one before ends."""
    sessions: dict[tuple[str, str], list[Window]] = {}
    for example in (*dataset.examples, *dataset.unlabelled):
        sessions.setdefault((example.recording, example.session), []).append(example.window)
    runs: dict[tuple[str, tuple[str, int, int]], tuple[Window, ...]] = {}  # by recording, and place in it
    for (recording, session), windows in sessions.items():
        for run in _runs(sorted(windows, key=lambda window: window.start_ns), every):
            runs.update(((recording, (session, w.start_index, w.start_ns)), run) for w in run)
    return [replace(example, run=runs[example.recording, example.place]) for example in dataset.examples]


def _runs(windows: Sequence[Window], every: int) -> Iterable[tuple[Window, ...]]:
    run: list[Window] = []
    for window in windows:
        place = window.start_index, window.start_ns
        if run and (place != next_place(run[-1], every) or begins_anew(window, every)):
            yield tuple(run)
            run = []
        run.append(window)
    if run:
        yield tuple(run)


def _place(example: Example) -> int:
    return bisect_left(example.run, example.window.start_index, key=lambda window: window.start_index)


class _Sequences:
    """An array ``(n, time, …)`` of sequences, each made when it is asked for."""

    def __init__(self, rows: Array, last: NDArray[np.int64], count: NDArray[np.int64]) -> None:
        self._rows, self._last, self._count = rows, last, count
        self.shape = (len(last), int(count.max()) * rows.shape[1], *rows.shape[2:])
        self.ndim, self.dtype = len(self.shape), rows.dtype

    def __len__(self) -> int:
        return len(self._last)

    def __getitem__(self, key: Any) -> Array:
        last, count = np.atleast_1d(self._last[key]), np.atleast_1d(self._count[key])
        sequences = np.full((len(last), *self.shape[1:]), np.nan, np.float32)
        for sequence, end, windows in zip(sequences, last.tolist(), count.tolist(), strict=True):
            part = self._rows[end + 1 - windows : end + 1]  # (windows, rows, …)
            sequence[: windows * part.shape[1]] = part.reshape(-1, *part.shape[2:])
        return sequences if np.ndim(self._last[key]) else sequences[0]


def sequences_of(
    examples: Sequence[Example], chain: Chain, labels: Sequence[str], heads: Sequence[ModelHead], longest: int
) -> Samples:
    """Make a sequence of at most `longest` windows for each example, as a stateful model learns from them."""
    numbers = {label: i for i, label in enumerate(labels)}
    runs: dict[int, tuple[int, tuple[Window, ...]]] = {}
    total, places, classes = 0, [], []
    for example in examples:
        if id(example.run) not in runs:
            runs[id(example.run)] = total, example.run
            total += len(example.run)
        places.append((runs[id(example.run)][0], _place(example)))
        classes.append(numbers[example.label])
    windows_of_runs = [window for _, run in runs.values() for window in run]
    rows = _array_of(apply_steps(split_chain(chain)[1], windows_of_runs), total)
    begin, place = np.array(places, np.int64).T
    windows: Any = _Sequences(rows, begin + place, np.minimum(place + 1, longest))
    targets = target_arrays([example.targets for example in examples], heads)
    return Samples(windows, np.array(classes, np.int64), targets)


def run_outputs(model: Any, examples: Sequence[Example], chain: Chain) -> Array:
    """Have a stateful model go through the whole runs of examples, as it does where it serves: ``(n, columns)``."""
    by_run: dict[int, list[int]] = {}
    for i, example in enumerate(examples):
        by_run.setdefault(id(example.run), []).append(i)
    outputs = np.empty((len(examples), model.columns), np.float32)
    for numbers in by_run.values():
        places = {i: _place(examples[i]) for i in numbers}
        run = examples[numbers[0]].run[: max(places.values()) + 1]
        state, run_logits = model.start(), []
        for window in apply_steps(split_chain(chain)[1], run):
            state, logits = model.step(state, window.data)
            run_logits.append(logits[0])
        for i, place in places.items():
            outputs[i] = run_logits[place]
    return outputs


@dataclass(frozen=True, slots=True, eq=False)
class SplitData:
    """Windows on both sides of a split, and the chain with what was learned from the training side."""

    recipe: Recipe
    chain: Chain  # the one that makes these windows, its learned numbers set
    labels: tuple[str, ...]
    heads: tuple[ModelHead, ...]  # what else is to be learned
    examples: Sequence[Example]  # before the steps that learn
    split: Split  # numbers of the examples on each side
    steps: tuple[Spec, ...] = ()  # behind the examples, fitted
    takes: str = "chain"  # ``chain`` or ``raw``

    @property
    def questions(self) -> tuple[ModelHead, ...]:
        return (ModelHead("", self.labels), *self.heads)

    @property
    def format(self) -> Format:
        fmt = self.recipe.input_format()
        return self.chain.output({fmt.stream: fmt})

    @property
    def validation(self) -> list[Example]:
        return [self.examples[i] for i in self.split.validation]

    @property
    def training(self) -> list[Example]:
        """What is learned from; where the recipe says so, rarer classes again and again until all are as frequent."""
        numbers = self.split.training
        if self.recipe.train.balance == "oversample":
            by_label: dict[str, list[int]] = {}
            for i in numbers:
                by_label.setdefault(self.examples[i].label, []).append(i)
            most = max(map(len, by_label.values()))
            numbers = sorted(some[i % len(some)] for some in by_label.values() for i in range(most))
        return [self.examples[i] for i in numbers]

    def samples(self, layout: str, parameters: Mapping[str, Any], sequence: int) -> tuple[Samples, Samples | None]:
        """Arrays of both sides, as a model of this layout takes them; for a stateful one sequences of windows."""
        kinds = ("subject", "session", "window")[self.recipe.train.split != "subject" :]

        def side(examples: Sequence[Example]) -> Samples:
            if is_stateful(parameters):
                return sequences_of(examples, self.chain, self.labels, self.heads, sequence)
            samples = to_samples(examples, self.labels, layout, self.heads, self.steps)
            sorts = ([group_of(example, kind) for example in examples] for kind in kinds)
            # One group leaves nobody to tell it.
            groups = next((names for names in sorts if len({*names}) > 1), [""] * len(examples))
            return replace(samples, groups=np.unique(groups, return_inverse=True)[1])

        return side(self.training), side(self.validation) if self.split.validation else None

    def augment(self, layout: str) -> Augment | None:
        """What varies training windows, as ``[[train.augment]]`` asks for, for windows in a layout."""
        if not self.recipe.train.augment:
            return None
        from kymo.processors.augment import augmenter

        last = self.chain.specs[-1]
        mask = last.spec if isinstance(last, PerWindow) and isinstance(last.spec, Mask) else None
        augment: Any = augmenter(self.recipe.train.augment, self.format, mask)

        def keep_padding(windows: Array, random: np.random.Generator) -> Array:
            """Vary what is there: zeros at the end are padding, which models know by them."""
            empty = (windows[:, ::-1] == 0).all(axis=tuple(range(2, windows.ndim)))
            padding = np.logical_and.accumulate(empty, axis=1)[:, ::-1]
            varied: Array = augment(windows, random)
            varied[padding] = 0
            return varied

        vary = keep_padding if any(isinstance(spec, PaddedWindows) for spec in self.chain.specs) else augment
        if layout == "channels_last":
            return vary
        return lambda windows, random: np.moveaxis(vary(np.moveaxis(windows, 1, -1), random), -1, 1)


def split_data(
    recipe: Recipe, examples: Sequence[Example], split: Split, raw: Sequence[Example] | None = None
) -> SplitData:
    """Windows of a split behind the steps that learn; or the raw windows that stand where they do."""
    check_leaks(examples, split)
    labels, heads = Dataset(list(examples)).labels, heads_of(recipe, examples)
    if raw is None:
        head, steps = split_chain(recipe.chain)
        fitted = fit_steps(steps, [examples[i].window for i in split.training])
        return SplitData(recipe, Chain((*head.specs, *fitted)), labels, heads, examples, split, fitted)
    sides = [{examples[i].place for i in side} for side in (split.training, split.validation)]
    training, validation = ([i for i, example in enumerate(raw) if example.place in side] for side in sides)
    if not training:
        raise TrainingError("no raw window stands where one of the recipe's does; shorten [window] length_s")
    split = replace(split, training=training, validation=validation)
    return SplitData(recipe, raw_chain(recipe.chain), labels, heads, raw, split, takes="raw")
