"""Classes of a number: ``[labels] bins``. In: labels that are numbers. Out: classes, each a range of them.

Borders are numbers that the recipe gives, or are worked out from the data: as many ranges of one width from the lowest number
to the highest, or with ``bins_by = "people"`` ranges with as many people each, equal numbers in one. A bundle keeps its
borders: what it is judged by later goes into the same classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from kymo.models.data.examples import Dataset, Example
from kymo.models.data.splits import session_of
from kymo.processors.recipe.load import Recipe
from kymo.streams.errors import TrainingError


def settle_bins(recipe: Recipe, dataset: Dataset) -> Recipe:
    """Work out the borders that a recipe leaves to the data, and put the windows into their classes; the recipe with borders."""
    count = recipe.labels.bins
    if not isinstance(count, int) or not count:
        return recipe
    people: dict[str, float] = {}
    for example in dataset.examples:
        people.setdefault(example.subject or session_of(example), _number(example.label, example.window.session))
    numbers = sorted(people.values())
    borders = _by_people(numbers, count) if recipe.labels.bins_by == "people" else _by_range(numbers, count)
    if len(borders) < count - 1:
        raise TrainingError(
            f"[labels] bins = {count}: {len(people)} people have only {len(set(numbers))} numbers; take fewer bins"
        )
    settled = replace(recipe, labels=replace(recipe.labels, bins=borders))
    dataset.examples = [_with_class(example, borders) for example in dataset.examples]
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


def _with_class(example: Example, borders: Sequence[float]) -> Example:
    return replace(example, label=bin_of(example.label, borders, example.window.session))
