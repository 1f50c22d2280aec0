"""Pooling over time. In: probabilities of a session's windows, in order. Out: probabilities that heed the windows before.

``mean`` is the mean of the last n windows. ``hmm`` is the forward filter of a hidden Markov model (Rabiner 1989, A
Tutorial on Hidden Markov Models, section III.A) over the last n windows: what they say, carried over by how often one
class follows another, times what this window says. Both rest on the last n windows alone, so that a worker can make
them again after a crash from a bounded stretch of its input, and gives the same numbers as an offline run.

A window that gives no probabilities (all 0) counts among the n but says nothing. A gap is no new beginning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from kymo.models.bundle import Bundle
from kymo.processors.recipe.tables import POOLS
from kymo.streams.chunk import Array
from kymo.streams.errors import BundleError, FormatError
from kymo.streams.schema import Count, Rules, SchemaError, read

if TYPE_CHECKING:
    from kymo.processors.recipe.load import Recipe

Row = list[float]
#: What is kept from window to window: the rows of the last n windows; empty at first.
State = list[Row]
HMM_WINDOWS = 30  # how far a filter looks back unless told otherwise: what lies before has long faded
_RARE = 0.5  # added to every count of a transition, so that none is impossible


@dataclass(frozen=True, slots=True)
class Pool:
    """How probabilities are pooled; what a bundle's manifest holds as ``pool``."""

    kind: Annotated[str, Rules(enum=POOLS)]
    windows: Count = HMM_WINDOWS  # how many, from 1, this one counted
    # for ``hmm``: row of the class before, column of the class now; each row sums to 1
    transitions: tuple[tuple[float, ...], ...] = ()
    start: tuple[float, ...] = ()  # for ``hmm``: share of each class, which the network's probabilities are relative to

    def __post_init__(self) -> None:
        if self.kind == "hmm" and (
            not 0 < len(self.start) == len(self.transitions)
            or any(len(row) != len(self.start) for row in (self.start, *self.transitions))
        ):
            raise FormatError(
                "pool hmm: expected a share for each class and a row of transitions for each; train again"
            )

    def step(self, state: State, probabilities: Sequence[float]) -> tuple[State, Row]:
        """The next window of a session."""
        row = list(probabilities)
        state = [*state, row][-self.windows :]
        rows = [r for r in state if any(r)]
        if not any(row):
            return state, row
        if self.kind == "mean":
            return state, [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        return state, self._filtered(rows)

    def step_number(self, state: State, values: Mapping[str, float]) -> tuple[State, dict[str, float]]:
        """The next window of a session, for a head that says a number: the mean of those that the last n windows gave."""
        state = [*state, list(values.values())][-self.windows :]
        numbers = [value for row in state for value in row]
        return state, {name: sum(numbers) / len(numbers) for name in values}

    def _filtered(self, rows: Sequence[Row]) -> Row:
        """The forward filter over some windows, from the shares that classes have at large."""
        expected, filtered = list(self.start), rows[0]
        for row in rows:
            # The network learned from classes as frequent as in training: what a window itself says is its share of that.
            joint = [e * p / max(s, 1e-9) for e, p, s in zip(expected, row, self.start, strict=True)]
            total = sum(joint)
            filtered = [value / total for value in joint] if total > 0 else row
            expected = [sum(f * t[j] for f, t in zip(filtered, self.transitions, strict=True)) for j in range(len(row))]
        return filtered

    def to_json(self) -> dict[str, Any]:
        if self.kind == "mean":
            return {"kind": "mean", "windows": self.windows}
        return {"kind": "hmm", "transitions": [list(row) for row in self.transitions], "start": list(self.start)}

    @classmethod
    def from_json(cls, described: Mapping[str, Any]) -> Pool:
        try:
            return read(cls, described, strict=False)
        except SchemaError as error:
            raise FormatError(f"pool {described!r}: not a pooling ({error}); train the bundle again") from None


def learn_hmm(classes: Sequence[int], sessions: Sequence[str], labels: int, balanced: bool) -> Pool:
    counts = np.full((labels, labels), _RARE)
    for i in range(1, len(classes)):
        if sessions[i] == sessions[i - 1]:
            counts[classes[i - 1], classes[i]] += 1
    frequent = np.full(labels, 1.0) if balanced else np.bincount(classes, minlength=labels) + _RARE
    rows = counts / counts.sum(1, keepdims=True)
    return Pool(
        "hmm", transitions=tuple(tuple(row) for row in rows.tolist()), start=tuple((frequent / frequent.sum()).tolist())
    )


def pool_windows(
    pool: Pool, probabilities: Sequence[Sequence[float]] | Array, sessions: Sequence[str], starts: Sequence[int]
) -> list[Row]:
    """Pooled probabilities of windows of many sessions, given in any order, each session's taken by its start."""
    return _pooled(pool.step, [list(map(float, row)) for row in probabilities], sessions, starts)


def pool_numbers(pool: Pool, numbers: Sequence[float], sessions: Sequence[str], starts: Sequence[int]) -> list[float]:
    """Pooled numbers of windows, likewise; NaN: none."""
    rows = [{} if math.isnan(number) else {"": number} for number in numbers]
    return [mean.get("", math.nan) for mean in _pooled(pool.step_number, rows, sessions, starts)]


def _pooled(
    step: Callable[[State, Any], tuple[State, Any]], rows: Sequence[Any], sessions: Sequence[str], starts: Sequence[int]
) -> list[Any]:
    pooled, states = [None] * len(rows), dict[str, State]()
    for i in sorted(range(len(rows)), key=lambda i: (sessions[i], starts[i])):
        states[sessions[i]], pooled[i] = step(states.get(sessions[i], []), rows[i])
    return pooled


def pool_for(recipe: Recipe, bundle: Bundle) -> Pool | None:
    """How a recipe pools what a bundle says; None for not at all.

    The recipe decides; what an ``hmm`` learned stands in the bundle.
    """
    table = recipe.model.pool if recipe.model else None
    if not table:
        return None
    if table.kind == "mean":
        return Pool("mean", table.windows)
    learned = bundle.manifest.get("pool", {})
    if learned.get("kind") != "hmm":
        raise BundleError(
            f"bundle {bundle.id} has learned no hmm, which recipe `{recipe.name}` pools by; train it again "
            f"(`kymo train {recipe.name}`)"
        )
    return replace(Pool.from_json(learned), windows=table.windows)
