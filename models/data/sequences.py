"""What a stateful model learns from and is judged by. In: labelled windows, each with the run that it stands in.
Out: sequences of windows ``(n, time, …)``; a model's outputs over whole runs.

A run is the windows of a session that follow each other without a gap, those without a label too: a model's state goes
through it and begins anew behind it. What is learned from is a window with the ones before it in its run, at most
``[train] sequence`` together, joined along time just as they are served: columns that lie across the border of two
windows are in neither. The label is the last window's. Shorter sequences, at a run's begin, are filled up with NaN,
which the network masks: zeros are values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.data.splits import session_of
from models.data.steps import apply_steps, check_finite, new_array, split_chain
from models.data.targets import target_arrays
from models.stateful import follows
from models.zoo import Head, Samples
from processors.chain import Chain
from streams.chunk import Array, Window
from streams.errors import TrainingError

if TYPE_CHECKING:
    from models.data.dataset import Dataset, Example
    from models.training.sides import Prepared
    from processors.recipe.load import Recipe


def is_stateful(parameters: Any) -> bool:
    """Whether ``[model]`` parameters ask for a model that goes on from window to window."""
    return parameters.get("stateful") is True


def link_runs(dataset: Dataset) -> list[Example]:
    """A data set's examples, each with the run that it stands in."""
    own: dict[tuple[str, str], list[Window]] = {}
    for example in (*dataset.examples, *dataset.unlabelled):
        own.setdefault((example.recording, session_of(example)), []).append(example.window)
    runs: dict[tuple[str, str, int, int], tuple[Window, ...]] = {}
    for key, windows in own.items():
        for run in _runs(sorted(windows, key=lambda window: window.start_ns)):
            runs.update(((*key, window.start_index, window.start_ns), run) for window in run)

    def run_of(example: Example) -> tuple[Window, ...]:
        window = example.window
        return runs[example.recording, session_of(example), window.start_index, window.start_ns]

    return [replace(example, run=run_of(example)) for example in dataset.examples]


def _runs(windows: Sequence[Window]) -> Iterable[tuple[Window, ...]]:
    run: list[Window] = []
    for window in windows:
        if run and not follows(window, run[-1].end_index, run[-1].end_ns):
            yield tuple(run)
            run = []
        run.append(window)
    if run:
        yield tuple(run)


def _place(example: Example) -> int:
    """Which of its run's windows an example's is."""
    window, first = example.window, example.run[0]
    return (window.start_index - first.start_index) // (first.end_index - first.start_index)


class Sequences:
    """An array ``(n, time, …)`` of sequences, each made when it is asked for."""

    def __init__(self, rows: Array, last: NDArray[np.int64], count: NDArray[np.int64]) -> None:
        self._rows, self._last, self._count = rows, last, count
        self.shape = (len(last), int(count.max()) * rows.shape[1], *rows.shape[2:])
        self.ndim, self.dtype = len(self.shape), rows.dtype

    def __len__(self) -> int:
        return len(self._last)

    def __getitem__(self, key: Any) -> Array:
        last, count = np.atleast_1d(self._last[key]), np.atleast_1d(self._count[key])
        made = np.full((len(last), *self.shape[1:]), np.nan, np.float32)
        for sequence, end, windows in zip(made, last.tolist(), count.tolist(), strict=True):
            some = self._rows[end + 1 - windows : end + 1]  # (windows, rows, …)
            sequence[: windows * some.shape[1]] = some.reshape(-1, *some.shape[2:])
        return made if np.ndim(self._last[key]) else made[0]


def sequences_of(
    examples: Sequence[Example], chain: Chain, labels: Sequence[str], heads: Sequence[Head], most: int
) -> Samples:
    """Sequences of examples, as a stateful model learns from them."""
    numbers = {label: i for i, label in enumerate(labels)}
    runs: dict[int, tuple[int, tuple[Window, ...]]] = {}
    total, places, classes = 0, [], []
    for example in examples:
        if id(example.run) not in runs:
            runs[id(example.run)] = total, example.run
            total += len(example.run)
        places.append((runs[id(example.run)][0], _place(example)))
        classes.append(numbers[example.label])
    rows = _rows_of([run for _, run in runs.values()], chain, total)
    begin, place = np.array(places, np.int64).T
    windows: Any = Sequences(rows, begin + place, np.minimum(place + 1, most))
    targets = target_arrays([example.targets for example in examples], heads)
    return Samples(windows, np.array(classes, np.int64), targets)


def sides_of(prepared: Prepared, most: int) -> tuple[Samples, Samples | None]:
    """Sequences of both sides of a split, of at most `most` windows; no session stands on both."""
    chain, labels = prepared.chain, prepared.labels
    training, validation = prepared.training, prepared.validation
    held = sequences_of(validation, chain, labels, prepared.heads, most) if len(validation) else None
    return sequences_of(training, chain, labels, prepared.heads, most), held


def _rows_of(runs: Sequence[tuple[Window, ...]], chain: Chain, total: int) -> Array:
    """Windows of runs behind the chain's steps: ``(total, rows, …)`` float32."""
    rows: Array | None = None
    i = 0
    for run in runs:
        for window in apply_steps(split_chain(chain)[1], run):
            rows = new_array((total, *window.data.shape)) if rows is None else rows
            rows[i] = window.data
            check_finite(window, rows[i])
            i += 1
    if rows is None:
        raise TrainingError("there is no window to learn from")
    return rows


def run_outputs(model: Any, examples: Sequence[Example], chain: Chain) -> Array:
    """What a stateful model says of examples when it goes through their whole runs, as it does where it serves."""
    own: dict[int, list[int]] = {}
    for i, example in enumerate(examples):
        own.setdefault(id(example.run), []).append(i)
    found = np.empty((len(examples), model.columns), np.float32)
    for numbers in own.values():
        places = {i: _place(examples[i]) for i in numbers}
        run = examples[numbers[0]].run[: max(places.values()) + 1]
        state, said = model.start(), []
        for window in apply_steps(split_chain(chain)[1], run):
            state, logits = model.step(state, window.data)
            said.append(logits[0])
        for i, place in places.items():
            found[i] = said[place]
    return found


def check_training(recipe: Recipe, sequence: int) -> None:
    """Refuse what a stateful model cannot be trained with."""
    if sequence < 1:
        raise TrainingError("[train] sequence starts at 1 window")
    if recipe.model is None or not is_stateful(recipe.model.parameters):
        return
    if recipe.train.split in ("time", "window"):
        raise TrainingError(
            f"[train] split = {recipe.train.split!r} divides sessions, but a stateful model goes through whole ones; "
            f"split by subject or session"
        )
    if recipe.train.augment:
        raise TrainingError(
            "[[train.augment]] varies windows one by one, but a stateful model learns from sequences of them; leave it out"
        )
