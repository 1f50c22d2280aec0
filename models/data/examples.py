"""Labelled windows, and what else is known of them. In: a recording's labels, ``[[heads]]``. Out: Examples, a Dataset of them, and by
head a class, or a number in its own unit.

A head learns from the label set that its column or key names. A class is that of the label which covers the window most;
a number is the mean of the labels in the window, each with the weight of the time that it covers. Either holds only where
labels cover `min_share` of the window; else the target is not known, and the head does not learn from this window.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.zoo import Head
from processors.recipe.load import Recipe
from processors.recipe.tables import HeadTable
from streams.chunk import Array, Window
from streams.errors import TrainingError
from streams.labels.labels import Cover, Label

#: By head, what is known of a window: a class, or a number.
Targets = Mapping[str, str | float]
_Of = Callable[[int, int], str | float | None]
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A window with its class."""

    window: Window
    label: str
    group: str  # what must stand on one side of a split: subject or session, as the recipe says
    session: str = ""  # whose; the second is empty where it is not known
    subject: str = ""
    recording: str = ""  # path that it was read from
    metadata: Mapping[str, str] = field(default_factory=dict)  # what else the recording says of itself
    # by name of a further head, its class or number; absent where it is not known
    targets: Targets = field(default_factory=dict)
    # for a stateful model: the windows of its session that follow each other without a gap, this one among them
    run: tuple[Window, ...] = ()


@dataclass(slots=True, eq=False)
class Dataset:
    """Labelled windows of many recordings."""

    examples: list[Example] = field(default_factory=list)  # in the order of the recordings, then of time
    # by path: number of ``recordings`` and ``sha256`` of their samples and labels
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    # what a user should know, with how often: repairs of the readers, windows without a label, streams not taken
    notes: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0  # of the recordings that the recipe takes, in seconds
    # windows without a label (theirs is empty), where the recipe's model is stateful: its state goes through them,
    # too
    unlabelled: list[Example] = field(default_factory=list)

    @property
    def labels(self) -> tuple[str, ...]:
        """Classes that occur, sorted; numbers by value."""
        return ordered(example.label for example in self.examples)

    def put(self, examples: Iterable[Example]) -> None:
        """Add windows with a label, and without one."""
        for example in examples:
            (self.examples if example.label else self.unlabelled).append(example)


def asked_sets(recipe: Recipe) -> frozenset[str]:
    """Names of the label sets that a recipe learns from: its own and those of its heads."""
    return frozenset({recipe.labels.set, *(head.set for head in recipe.heads)})


def targets_of(labels: Sequence[Label], heads: Sequence[HeadTable]) -> Callable[[int, int], dict[str, str | float]]:
    """What gives the targets of one recording's windows by their start and end, Unix ns; what is not known is absent."""
    made: dict[str, _Of] = {
        head.name: _of(head, [label for label in labels if label.set == head.set]) for head in heads
    }

    def of(start_ns: int, end_ns: int) -> dict[str, str | float]:
        found = ((name, known(start_ns, end_ns)) for name, known in made.items())
        return {name: value for name, value in found if value is not None}

    return of


def _of(head: HeadTable, labels: Sequence[Label]) -> _Of:
    if head.kind == "number":
        numbers = NumberCover([(label.start_ns, label.end_ns, _number(label, head)) for label in labels])
        return lambda start_ns, end_ns: numbers.mean_of(start_ns, end_ns, head.min_share)
    cover = Cover(labels)
    return lambda start_ns, end_ns: cover.label_of(start_ns, end_ns, head.min_share)


def _number(label: Label, head: HeadTable) -> float:
    why = ""
    try:
        value = float(label.label)
    except ValueError:
        value, why = math.nan, "is no number"
    if abs(value) > _LARGEST:
        why = f"is no number that a model can say (float32 ends at {_LARGEST:.1e})"
    if why:
        raise TrainingError(
            f"session {label.session}: the label {label.label!r} of `{head.set}` {why}, but head `{head.name}` is of "
            f'kind "number"; correct the label, or the head\'s kind'
        )
    return value


class NumberCover:
    """Labels of one session that are numbers, to be asked for many intervals."""

    def __init__(self, labels: Sequence[tuple[int, int, float]]) -> None:
        known = sorted(label for label in labels if label[1] > label[0] and not math.isnan(label[2]))
        self._starts = np.array([label[0] for label in known], np.int64)
        self._ends = np.array([label[1] for label in known], np.int64)
        self._values = np.array([label[2] for label in known], np.float64)
        self._latest: NDArray[np.int64] = np.maximum.accumulate(self._ends)  # ascending, unlike the ends

    def mean_of(self, start_ns: int, end_ns: int, min_share: float = 0.5) -> float | None:
        """The mean of the numbers in an interval, weighted by the time that each covers."""
        first = int(np.searchsorted(self._latest, start_ns, "right"))
        last = int(np.searchsorted(self._starts, end_ns, "left"))
        if first >= last:
            return None
        starts, ends = np.maximum(self._starts[first:last], start_ns), np.minimum(self._ends[first:last], end_ns)
        lengths = np.maximum(ends - starts, 0)
        if not lengths.sum():
            return None
        # What several labels cover counts once: from where those before it have ended.
        before = np.concatenate([[start_ns], np.maximum.accumulate(ends)[:-1]])
        covered = int(np.maximum(ends - np.maximum(starts, before), 0).sum())
        if covered < min_share * (end_ns - start_ns):
            return None
        values = self._values[first:last]
        low = float(values[0])  # about one of them, so that the mean of equal numbers is that number
        return low + float(((values - low) * lengths).sum() / lengths.sum())


def ordered(labels: Iterable[str]) -> tuple[str, ...]:
    """Classes, sorted; numbers by value."""
    return tuple(sorted(set(labels), key=_order))


def _order(label: str) -> tuple[bool, float, str]:
    try:
        return (False, float(label), label)
    except ValueError:
        return (True, 0.0, label)


def heads_of(recipe: Recipe, examples: Sequence[Example]) -> tuple[Head, ...]:
    """The recipe's heads, with the classes that occur."""
    made = []
    for head in recipe.heads:
        known = [example.targets[head.name] for example in examples if head.name in example.targets]
        if not known:
            source = f"key `{head.key}` of a labels JSON" if head.key else f"column `{head.set}`"
            raise TrainingError(
                f"head `{head.name}` has nothing to learn: no window has its label ({source}); add labels, or take a copy of "
                f"the recipe without this head"
            )
        made.append(Head(head.name, ordered(map(str, known)) if head.kind == "classes" else (), head.weight))
    return tuple(made)


def describe(head: HeadTable, examples: Sequence[Example]) -> dict[str, float]:
    """What is known for a head: windows by class, or of numbers how many, their mean, the lowest and the highest."""
    known = [example.targets[head.name] for example in examples if head.name in example.targets]
    if head.kind == "classes":
        counts = Counter(map(str, known))
        return {label: counts[label] for label in ordered(counts)}
    numbers = [float(value) for value in known]
    if not numbers:
        return {}
    return {"windows": len(numbers), "mean": float(np.mean(numbers)), "lowest": min(numbers), "highest": max(numbers)}


def notes_on(heads: Iterable[Head]) -> list[str]:
    """What a user should know of heads as they were learned."""
    return [
        f"head `{head.name}`: all windows with its label have `{head.labels[0]}`, so it will say nothing else"
        for head in heads
        if len(head.labels) == 1
    ]


def target_arrays(targets: Sequence[Targets], heads: Sequence[Head]) -> dict[str, Array]:
    """By head, ``(n,)``: int64 numbers of its labels (-1: not known) or float32 (NaN: not known)."""
    out: dict[str, Array] = {}
    for head in heads:
        if head.labels:
            number: dict[str | float, int] = {label: i for i, label in enumerate(head.labels)}
            out[head.name] = np.array([number.get(t.get(head.name, ""), -1) for t in targets], np.int64)
        else:
            out[head.name] = np.array([t.get(head.name, math.nan) for t in targets], np.float32)
    return out
