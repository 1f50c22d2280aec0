"""What models learn from. In: labelled windows of a recipe, a split. Out: both sides, with what was learned on the way.

Steps that learn, learn from the training side alone. A model that takes raw windows gets the raw windows that stand at
the same places as the recipe's, on the same sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kymo.models.bundle import raw_chain
from kymo.models.data.examples import Dataset, Example, heads_of
from kymo.models.data.samples import fit_steps, sequences_of, split_chain, to_samples, with_steps
from kymo.models.data.splits import Split, check_leaks, group_of, make_split, session_of
from kymo.models.zoo import ModelHead, Samples
from kymo.processors.chain import Chain
from kymo.processors.recipe.load import Recipe
from kymo.processors.windows import PaddedWindows
from kymo.streams.chunk import Array, Format
from kymo.streams.errors import TrainingError


@dataclass(frozen=True, slots=True, eq=False)
class SplitData:
    """Windows on both sides of a split, and the chain with what was learned from the training side."""

    chain: Chain  # the one that makes these windows, its learned numbers set
    labels: tuple[str, ...]
    training: Sequence[Example]  # behind the whole chain; the second may be empty
    validation: Sequence[Example]
    split: Split  # numbers of the examples, as they came, on each side
    takes: str = "chain"  # ``chain`` or ``raw``
    heads: tuple[ModelHead, ...] = ()  # what else is to be learned

    @property
    def questions(self) -> tuple[ModelHead, ...]:
        """The recipe's own question, and its further heads."""
        return (ModelHead("", self.labels), *self.heads)

    def format(self, recipe: Recipe) -> Format:
        """Of the windows."""
        fmt = recipe.input_format()
        return self.chain.output({fmt.stream: fmt})


def check_classes(recipe: Recipe, examples: Sequence[Example]) -> None:
    """Refuse to tell one class from nothing."""
    labels = Dataset(list(examples)).labels
    if len(labels) < 2 and recipe.labels.classes:
        raise TrainingError(
            f"all {len(examples)} windows have the label `{labels[0]}`; a classifier needs at least two classes: "
            f"add recordings of another one"
        )


def prepare(recipe: Recipe, examples: Sequence[Example], share: float, seed: int) -> SplitData:
    """Split the windows that came out of the chain's head, and run them through its steps that learn."""
    check_classes(recipe, examples)
    if share:
        split = make_split(examples, recipe.train, share, seed)
        check_leaks(examples, split)
    else:
        split = Split(list(range(len(examples))), [], recipe.train.kind, seed)
    return prepare_split(recipe, examples, split)


def prepare_split(recipe: Recipe, examples: Sequence[Example], split: Split) -> SplitData:
    """Run the windows of a split, whose leaks are checked, through the steps that learn, from its training side."""
    labels = Dataset(list(examples)).labels
    head, steps = split_chain(recipe.chain)
    fitted = fit_steps(steps, [examples[i].window for i in split.training])
    sides = ([examples[i] for i in numbers] for numbers in (_balanced(recipe, examples, split), split.validation))
    training, validation = (with_steps(side, fitted) if fitted else side for side in sides)
    heads = heads_of(recipe, examples)
    return SplitData(Chain((*head.specs, *fitted)), labels, training, validation, split, heads=heads)


def _balanced(recipe: Recipe, examples: Sequence[Example], split: Split) -> list[int]:
    """Training examples; where the recipe says so, those of rarer classes again and again until all are as frequent."""
    if recipe.train.balance != "oversample":
        return split.training
    by_label: dict[str, list[int]] = {}
    for i in split.training:
        by_label.setdefault(examples[i].label, []).append(i)
    most = max(map(len, by_label.values()))
    return sorted(numbers[i % len(numbers)] for numbers in by_label.values() for i in range(most))


def prepare_raw(recipe: Recipe, raw: Sequence[Example], examples: Sequence[Example], like: SplitData) -> SplitData:
    """Raw windows on the sides on which those of the recipe's chain stand."""
    sides: list[list[int]] = []
    for side in (like.split.training, like.split.validation):
        places = {_place(examples[i]) for i in side}
        sides.append([i for i in range(len(raw)) if _place(raw[i]) in places])
    if not sides[0]:
        raise TrainingError("no raw window stands where one of the recipe's does; shorten [window] length_s")
    split = replace(like.split, training=sides[0], validation=sides[1])
    training, validation = [raw[i] for i in _balanced(recipe, raw, split)], [raw[i] for i in sides[1]]
    return SplitData(raw_chain(recipe.chain), like.labels, training, validation, split, "raw", like.heads)


def _place(example: Example) -> tuple[str, int, int]:
    return session_of(example), example.window.start_index, example.window.start_ns


def samples_of(recipe: Recipe, data: SplitData, layout: str) -> tuple[Samples, Samples | None]:
    """Arrays of both sides, as a model of this layout takes them."""
    kinds = ("subject", "session", "window")[recipe.train.split != "subject" :]

    def side(examples: Sequence[Example]) -> Samples:
        samples = to_samples(examples, data.labels, layout, data.heads)
        sorts = ([group_of(example, kind) for example in examples] for kind in kinds)
        groups = next(
            (names for names in sorts if len({*names}) > 1), [""] * len(examples)
        )  # one leaves nobody to tell it
        number = {name: i for i, name in enumerate(dict.fromkeys(groups))}
        return replace(samples, groups=np.array([number[name] for name in groups], np.int64))

    return side(data.training), side(data.validation) if len(data.validation) else None


def sequences_of_sides(data: SplitData, most: int) -> tuple[Samples, Samples | None]:
    """Sequences of both sides, of at most `most` windows; no session stands on both."""

    def side(examples: Sequence[Example]) -> Samples:
        return sequences_of(examples, data.chain, data.labels, data.heads, most)

    validation = side(data.validation) if len(data.validation) else None
    return side(data.training), validation


Augment = Callable[[Array, np.random.Generator], Array]


def augment_of(recipe: Recipe, layout: str, fmt: Format) -> Augment | None:
    """What varies training windows, as ``[[train.augment]]`` asks for, for windows in a layout."""
    if not recipe.train.augment:
        return None
    from kymo.processors.augment import augmenter

    augment: Any = augmenter(recipe.train.augment, fmt)

    def keep_padding(windows: Array, random: np.random.Generator) -> Array:
        """Vary what is there: zeros at the end are padding, which models know by them."""
        empty = (windows[:, ::-1] == 0).all(axis=tuple(range(2, windows.ndim)))
        padding = np.logical_and.accumulate(empty, axis=1)[:, ::-1]
        varied: Array = augment(windows, random)
        varied[padding] = 0
        return varied

    vary = keep_padding if any(isinstance(spec, PaddedWindows) for spec in recipe.chain.specs) else augment
    if layout == "channels_last":
        return vary
    return lambda windows, random: np.moveaxis(vary(np.moveaxis(windows, 1, -1), random), -1, 1)
