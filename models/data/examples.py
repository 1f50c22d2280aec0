"""Labelled windows, and what else is known of them. In: a recording's labels, ``[[heads]]``. Out: Examples, a Dataset of them, and by
head a class, or a number in its own unit.

A head learns from the label set that its column or key names. A class is that of the label which covers the window most;
a number is the mean of the labels in the window, each with the weight of the time that it covers. Either holds only where
labels cover `min_share` of the window; else the target is not known, and the head does not learn from this window.

``[labels] bins`` makes classes of labels that are numbers, each a range of them. Borders are numbers that the recipe gives, or are
worked out from the data: as many ranges of one width from the lowest number to the highest, or with ``bins_by = "people"`` ranges with
as many people each, equal numbers in one. A bundle keeps its borders: what it is judged by later goes into the same classes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kymo.models.zoo import ModelHead
from kymo.processors.recipe.load import Recipe
from kymo.processors.recipe.tables import HeadTable
from kymo.streams.chunk import Array, Window
from kymo.streams.errors import TrainingError
from kymo.streams.labels.labels import Cover, Label
from kymo.streams.words import grouped, less_numbers

#: The one class of all windows where a recipe has none: a regression alone.
EVERY = "every window"
#: By head, what is known of a window: a class, or a number.
Targets = Mapping[str, str | float]
_TargetAt = Callable[[int, int], str | float | None]
PLACE = re.compile(r"\b(rows?|messages?) [\d,]+")  # in a reader's note: it holds for one session
_RANGE = re.compile(r"(under )?(\S+)(?: to \S+| and more)?")  # classes of numbers, as :func:`bin_of` names them
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    window: Window
    label: str
    session: str = ""
    subject: str = ""  # empty where it is not known
    recording: str = ""  # path that it was read from
    metadata: Mapping[str, str] = field(default_factory=dict)  # what else the recording says of itself
    # by name of a further head, its class or number; absent where it is not known
    targets: Targets = field(default_factory=dict)
    # for a stateful model: the windows of its session that follow each other without a gap, this one among them
    run: tuple[Window, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "session", self.session or self.window.session)

    @property
    def place(self) -> tuple[str, int, int]:
        """Where it stands: session, first raw sample and time."""
        return self.session, self.window.start_index, self.window.start_ns


@dataclass(slots=True, eq=False)
class Dataset:
    examples: list[Example] = field(default_factory=list)  # in the order of the recordings, then of time
    # by path: number of ``recordings`` and ``sha256`` of their samples and labels
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    # what a user should know, with how often: repairs of the readers, windows without a label, streams not taken
    notes: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0  # of the recordings that the recipe takes, in seconds
    lengths: dict[str, list[float]] = field(
        default_factory=dict
    )  # how large their samples are: :mod:`kymo.models.lengths`
    left_out: list[str] = field(default_factory=list)  # a line for each file
    # windows without a label (theirs is empty), where the recipe's model is stateful: its state goes through them,
    # too
    unlabelled: list[Example] = field(default_factory=list)
    all_windows: bool = False  # whether windows without a label are wanted whatever the model is

    @property
    def labels(self) -> tuple[str, ...]:
        """Classes that occur, sorted; numbers by value."""
        return ordered(example.label for example in self.examples)

    def note_lines(self) -> list[str]:
        """The notes in words; those that are alike are one line."""
        placed = [(*note.partition(": ")[::2],) for note in self.notes if PLACE.search(note)]
        others: dict[str, tuple[str, int]] = {}
        for note, count in self.notes.items():
            if not PLACE.search(note):
                first, sum_ = others.get(less_numbers(note), (note, 0))
                others[less_numbers(note)] = first, sum_ + count
        return [
            *grouped(placed),
            *(f"{note} ({count} times)" if count > 1 else note for note, count in others.values()),
        ]

    def put(self, examples: Iterable[Example]) -> None:
        for example in examples:
            (self.examples if example.label else self.unlabelled).append(example)


def truth_at(recipe: Recipe, cover: Cover, start_ns: int, end_ns: int, targets: Targets) -> str | None:
    """The class of a window; where a recipe has none, :data:`EVERY` of those of which a head knows something."""
    if recipe.labels.classes:
        return cover.label_of(start_ns, end_ns, recipe.labels.min_share)
    return EVERY if targets else None


def asked_sets(recipe: Recipe) -> frozenset[str]:
    return frozenset({recipe.labels.set, *(head.set for head in recipe.heads)})


def targets_of(labels: Sequence[Label], heads: Sequence[HeadTable]) -> Callable[[int, int], dict[str, str | float]]:
    """Give what finds the targets of one recording's windows by their start and end, Unix ns; what is not known is absent."""
    finders: dict[str, _TargetAt] = {
        head.name: _target_at(head, [label for label in labels if label.set == head.set]) for head in heads
    }

    def targets_at(start_ns: int, end_ns: int) -> dict[str, str | float]:
        targets = ((name, find(start_ns, end_ns)) for name, find in finders.items())
        return {name: target for name, target in targets if target is not None}

    return targets_at


def _target_at(head: HeadTable, labels: Sequence[Label]) -> _TargetAt:
    if head.kind == "number":
        numbers = NumberCover(
            [(label.start_ns, label.end_ns, number_of(label.label, head, label.session)) for label in labels]
        )
        return lambda start_ns, end_ns: numbers.mean_of(start_ns, end_ns, head.min_share)
    cover = Cover(labels)
    return lambda start_ns, end_ns: cover.label_of(start_ns, end_ns, head.min_share)


def number_of(text: str, head: HeadTable, session: str) -> float:
    why = ""
    try:
        value = float(text)
    except ValueError:
        value, why = math.nan, "is no number"
    if abs(value) > _LARGEST:
        why = f"is no number that a model can say (float32 ends at {_LARGEST:.1e})"
    if why:
        raise TrainingError(
            f"session {session}: the label {text!r} of `{head.set}` {why}, but head `{head.name}` is of "
            f'kind "number"; correct the label, or the head\'s kind'
        )
    return value


class NumberCover:
    """Labels of one session that are numbers, to be asked for many intervals."""

    def __init__(self, labels: Sequence[tuple[int, int, float]]) -> None:
        spans = sorted(label for label in labels if label[1] > label[0] and not math.isnan(label[2]))
        self._starts = np.array([start for start, _, _ in spans], np.int64)
        self._ends = np.array([end for _, end, _ in spans], np.int64)
        self._values = np.array([number for _, _, number in spans], np.float64)
        self._latest: NDArray[np.int64] = np.maximum.accumulate(self._ends)  # ascending, unlike the ends

    def mean_of(self, start_ns: int, end_ns: int, min_share: float = 0.5) -> float | None:
        """Average the numbers in an interval, each weighted by the time that it covers."""
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
    """Sort classes; numbers by value."""
    return tuple(sorted(set(labels), key=_order))


def _order(label: str) -> tuple[bool, float, str]:
    bounds = _RANGE.fullmatch(label)
    try:
        number = float(bounds[2] if bounds else label)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        return True, 0.0, label
    return False, number, "" if bounds and bounds[1] else label


def heads_of(recipe: Recipe, examples: Sequence[Example]) -> tuple[ModelHead, ...]:
    heads = []
    for head in recipe.heads:
        if not _known(head, examples):
            source = f"key `{head.key}` of a labels JSON" if head.key else f"column `{head.set}`"
            raise TrainingError(
                f"head `{head.name}` has nothing to learn: no window has its label ({source}); add labels, or take a copy of "
                f"the recipe without this head"
            )
        heads.append(ModelHead(head.name, classes_of(head, examples), head.weight))
    return tuple(heads)


def classes_of(head: HeadTable, examples: Sequence[Example]) -> tuple[str, ...]:
    """List the classes of a head that occur; none for a number."""
    return ordered(map(str, _known(head, examples))) if head.kind == "classes" else ()


def _known(head: HeadTable, examples: Sequence[Example]) -> list[str | float]:
    return [example.targets[head.name] for example in examples if head.name in example.targets]


def describe(head: HeadTable, examples: Sequence[Example]) -> dict[str, float]:
    """Sum up what is known for a head: windows by class, or of numbers how many, their mean, the lowest and the highest."""
    targets = _known(head, examples)
    if head.kind == "classes":
        counts = Counter(map(str, targets))
        return {label: counts[label] for label in ordered(counts)}
    numbers = [float(target) for target in targets]
    if not numbers:
        return {}
    return {"windows": len(numbers), "mean": float(np.mean(numbers)), "lowest": min(numbers), "highest": max(numbers)}


def notes_on(heads: Iterable[ModelHead]) -> list[str]:
    return [
        f"head `{head.name}`: all windows with its label have `{head.labels[0]}`, so it will say nothing else"
        for head in heads
        if len(head.labels) == 1
    ]


def target_arrays(
    targets: Sequence[Targets], heads: Sequence[ModelHead], kind: type[np.floating[Any]] = np.float32
) -> dict[str, Array]:
    """Give each head ``(n,)`` int64 numbers of its labels (-1: not known) or its numbers (NaN: not known)."""
    arrays: dict[str, Array] = {}
    for head in heads:
        if head.labels:
            number: dict[str | float, int] = {label: i for i, label in enumerate(head.labels)}
            arrays[head.name] = np.array([number.get(t.get(head.name, ""), -1) for t in targets], np.int64)
        else:
            arrays[head.name] = np.array([t.get(head.name, math.nan) for t in targets], kind)
    return arrays


def settle_bins(recipe: Recipe, dataset: Dataset) -> Recipe:
    """Work out the borders that a recipe leaves to the data, and put the windows into their classes; the recipe with borders."""
    count = recipe.labels.bins
    if not isinstance(count, int) or not count:
        return recipe
    people: dict[str, float] = {}
    for example in dataset.examples:
        people.setdefault(example.subject or example.session, _number(example.label, example.window.session))
    numbers = sorted(people.values())
    borders = _by_people(numbers, count) if recipe.labels.bins_by == "people" else _by_range(numbers, count)
    if len(borders) < count - 1:
        raise TrainingError(
            f"[labels] bins = {count}: {len(people)} people have only {len(set(numbers))} numbers; take fewer bins"
        )
    settled = replace(recipe, labels=replace(recipe.labels, bins=borders))
    dataset.examples = [replace(e, label=bin_of(e.label, borders, e.window.session)) for e in dataset.examples]
    return settled


def _by_range(numbers: Sequence[float], count: int) -> tuple[float, ...]:
    low, high = numbers[0], numbers[-1]
    width = (high - low) / count
    return tuple(_short(low + width * i, width / 100) for i in range(1, count)) if high > low else ()


def _by_people(numbers: Sequence[float], count: int) -> tuple[float, ...]:
    """Borders between neighbours, each as near as it can be to where as many stand on either side as should."""
    gaps = [i for i in range(1, len(numbers)) if numbers[i] > numbers[i - 1]]
    borders: list[int] = []
    for i in range(1, count):
        free = [gap for gap in gaps if not borders or gap > borders[-1]]
        if free:
            borders.append(min(free, key=lambda gap: abs(gap - len(numbers) * i / count)))
    pairs = [(numbers[i - 1], numbers[i]) for i in borders]
    return tuple(_short((low + high) / 2, (high - low) / 2) for low, high in pairs)


def _short(number: float, most: float) -> float:
    """Round to few digits, less than `most` away."""
    shorts = (float(f"{number:.{digits}g}") for digits in range(4, 17))
    return next((short for short in shorts if abs(short - number) < most), number)


def bin_of(text: str, borders: Sequence[float], session: str = "") -> str:
    """The class of a number.

    Examples
    --------
    >>> bin_of("2400", (2500, 3000)), bin_of("2500.0", (2500, 3000)), bin_of("9e3", (2500, 3000))
    ('under 2500', '2500 to 3000', '3000 and more')
    """
    number = _number(text, session)
    texts = [f"{border:g}" for border in borders]
    if len({*texts}) < len(borders):
        texts = [f"{border:.15g}" for border in borders]
    names = [f"under {texts[0]}", *(f"{a} to {b}" for a, b in pairwise(texts)), f"{texts[-1]} and more"]
    return names[int(np.searchsorted(borders, number, "right"))]


def _number(text: str, session: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise TrainingError(
            f"session {session}: the label {text!r} is no number, but [labels] bins makes classes of numbers"
        )
    return number
