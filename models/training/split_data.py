"""What models learn from. In: labelled windows of a recipe, a split. Out: both sides, with what was learned on the way.

Steps that learn, learn from the training side alone. A model that takes raw windows gets the raw windows that stand at
the same places as the recipe's, on the same sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from models.bundle import raw_chain
from models.data.examples import Dataset, Example, heads_of
from models.data.samples import fit_steps, sequences_of, split_chain, to_samples, with_steps
from models.data.splits import Split, check_leaks, group_of, make_split, session_of
from models.zoo import ModelHead, Samples
from processors.chain import Chain
from processors.recipe.load import Recipe
from streams.chunk import Array, Format
from streams.errors import TrainingError


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Windows on both sides of the split, and the chain with what was learned from the training side."""

    chain: Chain  # the one that makes these windows, its learned numbers set
    labels: tuple[str, ...]
    training: Sequence[Example]  # behind the whole chain; the second may be empty
    validation: Sequence[Example]
    split: Split  # numbers of the examples, as they came, on each side
    takes: str = "chain"  # ``chain`` or ``raw``
    heads: tuple[ModelHead, ...] = ()  # what else is to be learned

    def format(self, recipe: Recipe) -> Format:
        """Of the windows."""
        fmt = recipe.input_format()
        return self.chain.output({fmt.stream: fmt})


def prepare(recipe: Recipe, examples: Sequence[Example], share: float, seed: int) -> Prepared:
    """Split the windows that came out of the chain's head, and run them through its steps that learn."""
    labels = Dataset(list(examples)).labels
    if len(labels) < 2:
        raise TrainingError(
            f"all {len(examples)} windows have the label `{labels[0]}`; a classifier needs at least two classes: "
            f"add recordings of another one"
        )
    if share:
        split = make_split(examples, recipe.train, share, seed)
        check_leaks(examples, split)
    else:
        split = Split(list(range(len(examples))), [], recipe.train.split, seed)
    return prepare_split(recipe, examples, split)


def prepare_split(recipe: Recipe, examples: Sequence[Example], split: Split) -> Prepared:
    """Run the windows of a split, whose leaks are checked, through the steps that learn, from its training side."""
    labels = Dataset(list(examples)).labels
    head, steps = split_chain(recipe.chain)
    sides = [[examples[i] for i in numbers] for numbers in (split.training, split.validation)]
    fitted = fit_steps(steps, [example.window for example in sides[0]])
    sides[0] = [examples[i] for i in _balanced(recipe, examples, split)]
    training, validation = (with_steps(side, fitted) if fitted else side for side in sides)
    heads = heads_of(recipe, examples)
    return Prepared(Chain((*head.specs, *fitted)), labels, training, validation, split, heads=heads)


def _balanced(recipe: Recipe, examples: Sequence[Example], split: Split) -> list[int]:
    """Training examples; where the recipe says so, those of rarer classes again and again until all are as frequent."""
    if recipe.train.balance != "oversample":
        return split.training
    own: dict[str, list[int]] = {}
    for i in split.training:
        own.setdefault(examples[i].label, []).append(i)
    most = max(map(len, own.values()))
    return sorted(numbers[i % len(numbers)] for numbers in own.values() for i in range(most))


def prepare_raw(recipe: Recipe, raw: Sequence[Example], examples: Sequence[Example], like: Prepared) -> Prepared:
    """Raw windows on the sides on which those of the recipe's chain stand."""
    sides: list[list[int]] = []
    for side in (like.split.training, like.split.validation):
        places = {_place(examples[i]) for i in side}
        sides.append([i for i in range(len(raw)) if _place(raw[i]) in places])
    if not sides[0]:
        raise TrainingError("no raw window stands where one of the recipe's does; shorten [window] length_s")
    split = replace(like.split, training=sides[0], validation=sides[1])
    training, validation = [raw[i] for i in _balanced(recipe, raw, split)], [raw[i] for i in sides[1]]
    return Prepared(raw_chain(recipe.chain), like.labels, training, validation, split, "raw", like.heads)


def _place(example: Example) -> tuple[str, int, int]:
    return session_of(example), example.window.start_index, example.window.start_ns


def samples_of(recipe: Recipe, prepared: Prepared, layout: str) -> tuple[Samples, Samples | None]:
    """Arrays of both sides, as a model of this layout takes them."""
    sides: list[Samples | None] = []
    for side in (prepared.training, prepared.validation):
        if not len(side):
            sides.append(None)
            continue
        made = to_samples(side, prepared.labels, layout, prepared.heads)
        kind = recipe.train.split if recipe.train.split == "subject" else "session"
        names = [group_of(example, kind) for example in side]
        number = {name: i for i, name in enumerate(dict.fromkeys(names))}
        sides.append(replace(made, groups=np.array([number[name] for name in names], np.int64)))
    training, validation = sides
    assert training is not None
    return training, validation


def sides_of(prepared: Prepared, most: int) -> tuple[Samples, Samples | None]:
    """Sequences of both sides of a split, of at most `most` windows; no session stands on both."""
    chain, labels = prepared.chain, prepared.labels
    training, validation = prepared.training, prepared.validation
    held = sequences_of(validation, chain, labels, prepared.heads, most) if len(validation) else None
    return sequences_of(training, chain, labels, prepared.heads, most), held


def weights_of(recipe: Recipe, classes: Array, labels: int) -> tuple[float, ...]:
    """Weights of the classes as ``[train] balance`` asks for; empty where the architecture's own rule is that."""
    return () if recipe.train.balance == "weights" else (1.0,) * labels


Augment = Callable[[Array, np.random.Generator], Array]


def augment_of(recipe: Recipe, layout: str, fmt: Format) -> Augment | None:
    """What varies training windows, as ``[[train.augment]]`` asks for, for windows in a layout."""
    if not recipe.train.augment:
        return None
    from models.data.augment import augmenter

    vary: Any = augmenter(recipe.train.augment, fmt)
    if layout == "channels_last":
        return vary  # type: ignore[no-any-return]
    return lambda windows, random: np.moveaxis(vary(np.moveaxis(windows, 1, -1), random), -1, 1)
