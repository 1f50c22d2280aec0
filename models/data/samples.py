"""What a model learns from and is judged by. In: labelled windows, of a chain up to its steps that learn. Out: fitted steps; arrays
``(n, *shape)`` float32, or sequences of windows ``(n, time, …)`` for a stateful model.

Nothing here holds all windows at once: steps are applied where a window is asked for, and an array over
:data:`IN_MEMORY` bytes lies in a file that has no name and goes when nobody uses it.

A run is the windows of a session that follow each other without a gap, those without a label too: a stateful model's state goes
through it and begins anew behind it. What such a model learns from is a window with the ones before it in its run, at most
``[train] sequence`` together, joined along time just as they are served: columns that lie across the border of two
windows are in neither. The label is the last window's. Shorter sequences, at a run's begin, are filled up with NaN,
which the network masks: zeros are values.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from kymo.models.bundle import input_shape
from kymo.models.data.examples import Dataset, Example, target_arrays
from kymo.models.data.splits import session_of
from kymo.models.onnx_model import follows
from kymo.models.zoo import ModelHead, Samples
from kymo.processors.chain import Chain, PerWindow
from kymo.processors.spec import Spec
from kymo.streams.chunk import Array, Window
from kymo.streams.errors import TrainingError
from kymo.streams.settings import Settings

#: Larger arrays of windows lie in a file.
IN_MEMORY = 256 * 2**20
_T = TypeVar("_T")


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


def _fit(step: Spec, windows: Sequence[Window]) -> Spec:
    if not isinstance(step, PerWindow) or not _learns(step):
        return step
    learner: Any = step.spec
    return replace(step, spec=learner.fit(_Mapped(_without_padding, windows)))


def _without_padding(window: Window) -> Window:
    return replace(window, pieces=window.real, padded=0) if window.padded else window


def apply_steps(steps: Sequence[Spec], windows: Sequence[Window]) -> Sequence[Window]:
    """Send windows through per-window steps; each is made when it is asked for, and not kept."""
    return _Mapped(_through(steps), windows) if steps else windows


def with_steps(examples: Sequence[Example], steps: Sequence[Spec]) -> Sequence[Example]:
    """Send the windows of examples through per-window steps; each is made when it is asked for, and not kept."""
    through = _through(steps)
    return _Mapped(lambda example: replace(example, window=through(example.window)), examples)


def _through(steps: Sequence[Spec]) -> Callable[[Window], Window]:
    stages = [step.build() for step in steps]

    def through(window: Window) -> Window:
        for stage in stages:
            (window,) = stage.push(window)
        return window

    return through


class _Mapped(Sequence[_T]):
    """A sequence whose items are made of those of another one when they are asked for."""

    def __init__(self, make: Callable[[Any], _T], items: Sequence[Any]) -> None:
        self._make, self._items = make, items

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> _T: ...
    @overload
    def __getitem__(self, index: slice) -> list[_T]: ...
    def __getitem__(self, index: int | slice) -> _T | list[_T]:
        if isinstance(index, slice):
            return [self._make(item) for item in self._items[index]]
        return self._make(self._items[index])

    def __iter__(self) -> Iterator[_T]:
        return map(self._make, self._items)


def to_samples(
    examples: Sequence[Example], labels: Sequence[str], layout: str, heads: Sequence[ModelHead] = ()
) -> Samples:
    """Make arrays of examples as a model takes them, with what it should say in its further heads."""
    number = {label: i for i, label in enumerate(labels)}
    windows: Array | None = None
    classes, targets = np.empty(len(examples), np.int64), []
    for i, example in enumerate(examples):
        data = example.window.data
        if windows is None:
            windows = _new_array((len(examples), *input_shape(data.shape, layout)))
        windows[i] = np.moveaxis(data, -1, 0) if layout == "channels_first" else data
        classes[i] = number[example.label]
        targets.append(example.targets)
        _check_finite(example.window, windows[i])
    if windows is None:
        raise TrainingError("there is no window to learn from")
    return Samples(windows, classes, target_arrays(targets, heads))


def _check_finite(window: Window, data: Array) -> None:
    """Refuse a window with a number that is none."""
    if not np.isfinite(data).all():
        raise TrainingError(
            f"session {window.session}, window from sample {window.start_index}: a number is not finite behind the "
            f"chain; look at its steps (a logarithm of 0 needs `eps`)"
        )


def _new_array(shape: tuple[int, ...]) -> Array:
    """Make a float32 array to be filled; a large one lies in a nameless file under ``KYMO_HOME/cache``."""
    if 4 * np.prod(shape, dtype=np.int64) <= IN_MEMORY:
        return np.empty(shape, np.float32)
    folder = Settings.from_env().home / "cache"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:  # the mapping outlives the file's handle and name
        return np.asarray(np.memmap(file, np.float32, "w+", shape=shape))


def is_stateful(parameters: Any) -> bool:
    """Tell whether ``[model]`` parameters ask for a model that goes on from window to window."""
    return parameters.get("stateful") is True


def link_runs(dataset: Dataset) -> list[Example]:
    """Give each example of a data set the run that it stands in."""
    sessions: dict[tuple[str, str], list[Window]] = {}
    for example in (*dataset.examples, *dataset.unlabelled):
        sessions.setdefault((example.recording, session_of(example)), []).append(example.window)
    runs: dict[tuple[str, str, int, int], tuple[Window, ...]] = {}
    for key, windows in sessions.items():
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
    """Tell which of its run's windows an example's is."""
    window, first = example.window, example.run[0]
    return (window.start_index - first.start_index) // (first.end_index - first.start_index)


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
    rows = _rows_of([run for _, run in runs.values()], chain, total)
    begin, place = np.array(places, np.int64).T
    windows: Any = _Sequences(rows, begin + place, np.minimum(place + 1, longest))
    targets = target_arrays([example.targets for example in examples], heads)
    return Samples(windows, np.array(classes, np.int64), targets)


def _rows_of(runs: Sequence[tuple[Window, ...]], chain: Chain, total: int) -> Array:
    """Send the windows of runs through the chain's steps: ``(total, rows, …)`` float32."""
    rows: Array | None = None
    i = 0
    for run in runs:
        for window in apply_steps(split_chain(chain)[1], run):
            rows = _new_array((total, *window.data.shape)) if rows is None else rows
            rows[i] = window.data
            _check_finite(window, rows[i])
            i += 1
    if rows is None:
        raise TrainingError("there is no window to learn from")
    return rows


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
