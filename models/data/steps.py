"""Windows behind the steps that learn, and as a model's input. In: windows of a chain's head. Out: fitted steps, windows,
arrays ``(n, *shape)`` float32.

Nothing here holds all windows at once: steps are applied where a window is asked for, and an array over
:data:`IN_MEMORY` bytes lies in a file that has no name and goes when nobody uses it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from models.bundle import input_shape
from models.data.targets import target_arrays
from models.zoo import Head, Samples
from processors.chain import Chain, PerWindow
from processors.spec import Spec
from streams.chunk import Array, Window
from streams.errors import TrainingError
from streams.settings import Settings

if TYPE_CHECKING:
    from models.data.dataset import Example

#: Larger arrays of windows lie in a file.
IN_MEMORY = 256 * 2**20


def split_chain(chain: Chain) -> tuple[Chain, tuple[Spec, ...]]:
    """A chain up to its first step that learns, and the steps from there on."""
    at = next((i for i, spec in enumerate(chain.specs) if _learns(spec)), len(chain.specs))
    return Chain(chain.specs[:at]), chain.specs[at:]


def _learns(spec: Spec) -> bool:
    return bool((spec.spec if isinstance(spec, PerWindow) else spec).learned)


def fit_steps(steps: Sequence[Spec], windows: Sequence[Window]) -> tuple[Spec, ...]:
    """Steps that have learned their numbers, each from what the ones before it make of `windows`."""
    fitted: list[Spec] = []
    for step in steps:
        fitted.append(_fit(step, apply_steps(fitted, windows)))
    return tuple(fitted)


def _fit(step: Spec, windows: Sequence[Window]) -> Spec:
    if not isinstance(step, PerWindow) or not _learns(step):
        return step
    learner: Any = step.spec
    return replace(step, spec=learner.fit(windows))


def apply_steps(steps: Sequence[Spec], windows: Sequence[Window]) -> Sequence[Window]:
    """Windows behind per-window steps; each is made when it is asked for, and not kept."""
    return Stepped(tuple(steps), windows) if steps else windows


def with_steps(examples: Sequence[Example], steps: Sequence[Spec]) -> Sequence[Example]:
    """Examples with their windows behind per-window steps; each is made when it is asked for, and not kept."""
    return SteppedExamples(examples, Stepped(tuple(steps), [example.window for example in examples]))


class Stepped(Sequence[Window]):
    """Windows behind steps, each made when it is asked for."""

    def __init__(self, steps: tuple[Spec, ...], windows: Sequence[Window]) -> None:
        self._windows, self._stages = windows, [step.build() for step in steps]

    def __len__(self) -> int:
        return len(self._windows)

    @overload
    def __getitem__(self, index: int) -> Window: ...
    @overload
    def __getitem__(self, index: slice) -> list[Window]: ...
    def __getitem__(self, index: int | slice) -> Window | list[Window]:
        if isinstance(index, slice):
            return [self._through(window) for window in self._windows[index]]
        return self._through(self._windows[index])

    def __iter__(self) -> Iterator[Window]:
        return map(self._through, self._windows)

    def _through(self, window: Window) -> Window:
        for stage in self._stages:
            (window,) = stage.push(window)
        return window


class SteppedExamples(Sequence["Example"]):
    """Examples whose windows are made when they are asked for: see :func:`with_steps`."""

    def __init__(self, examples: Sequence[Example], windows: Stepped) -> None:
        self._examples, self._windows = examples, windows

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return replace(self._examples[index], window=self._windows[index])


def to_samples(examples: Sequence[Example], labels: Sequence[str], layout: str, heads: Sequence[Head] = ()) -> Samples:
    """Arrays of examples as a model takes them, with what it should say in its further heads."""
    number = {label: i for i, label in enumerate(labels)}
    windows: Array | None = None
    classes, targets = np.empty(len(examples), np.int64), []
    for i, example in enumerate(examples):
        data = example.window.data
        if windows is None:
            windows = new_array((len(examples), *input_shape(data.shape, layout)))
        windows[i] = np.moveaxis(data, -1, 0) if layout == "channels_first" else data
        classes[i] = number[example.label]
        targets.append(example.targets)
        check_finite(example.window, windows[i])
    if windows is None:
        raise TrainingError("there is no window to learn from")
    return Samples(windows, classes, target_arrays(targets, heads))


def check_finite(window: Window, data: Array) -> None:
    """Refuse a window with a number that is none."""
    if not np.isfinite(data).all():
        raise TrainingError(
            f"session {window.session}, window from sample {window.start_index}: a number is not finite behind the "
            f"chain; look at its steps (a logarithm of 0 needs `eps`)"
        )


def new_array(shape: tuple[int, ...]) -> Array:
    """A float32 array to be filled; a large one lies in a nameless file under ``KYMO_HOME/cache``."""
    if 4 * np.prod(shape, dtype=np.int64) <= IN_MEMORY:
        return np.empty(shape, np.float32)
    folder = Settings.from_env().home / "cache"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:  # the mapping outlives the file's handle and name
        return np.asarray(np.memmap(file, np.float32, "w+", shape=shape))
