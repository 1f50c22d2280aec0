"""The one place where windows become events. In: windows of a bundle's chain, what is remembered of their sessions. Out: Events,
`emitted_ns` 0.

Workers, shadows, `kymo run`, evaluation and the gate all judge here, so that they say the same. What a session's next event rests on is
kept in its memory: a list that begins empty, holds JSON values, is packed into the session's snapshots, and means something to
:class:`Judge` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from models.bundle import UNKNOWN, Bundle
from models.pooling import pool_for
from processors.recipe.load import Recipe
from streams.chunk import Window
from streams.events import Event

#: What was found of a session's windows before, for those behind them.
Memory = list[Any]


class BatchClassifier(Protocol):
    """What classifies: :class:`models.classify.Classifier`."""

    @property
    def bundle(self) -> Bundle:
        """Its bundle, whose chain has the learned numbers."""

    def classify(self, windows: Sequence[Window], memories: Sequence[dict[str, Any]] | None = None) -> list[Event]:
        """The events of each window, in order: its own, then one a head of the bundle; a stateful bundle's with what is
        remembered of each window's session."""


class Judge:
    """Windows to events, pooled where the recipe says so."""

    def __init__(self, classifier: BatchClassifier, recipe: Recipe) -> None:
        self.classifier, self.bundle = classifier, classifier.bundle
        self._pool = pool_for(recipe, self.bundle)
        self._min_probability = recipe.model.min_probability if recipe.model else 0.0
        # Whatever order the bundle learned them in: the delivery counts a window's events by the recipe's.
        places = {head.name: i for i, head in enumerate(self.bundle.heads, 1)}
        self._order = (0, *(places[head.name] for head in recipe.heads))

    @property
    def memory(self) -> int:
        """Windows before it that an event rests on."""
        return self._pool.windows - 1 if self._pool else 0

    def judge(self, windows: Sequence[Window], memories: Sequence[Memory]) -> list[list[Event]]:
        """The events of each window: its own, then one a head of the recipe."""
        if self.bundle.state:
            events = self.classifier.classify(windows, [self._recall(memory) for memory in memories])
        else:
            events = self.classifier.classify(windows)
        width = 1 + len(self.bundle.heads)
        found = (events[i : i + width] for i in range(0, len(events), width))
        return [
            [self._pooled(own[number], memory) for number in self._order]
            for own, memory in zip(found, memories, strict=True)
        ]

    def _pooled(self, event: Event, memory: Memory) -> Event:
        # What an hmm has learned is how the recipe's own classes follow each other.
        if self._pool is None or (event.head and self._pool.kind != "mean"):
            return event
        states = self._recall(memory).setdefault("pool", {})
        state = states.get(event.head, [])
        if not event.probabilities:
            states[event.head], values = self._pool.step_number(state, event.values)
            return replace(event, values=values)
        states[event.head], row = self._pool.step(state, list(event.probabilities.values()))
        best = max(row)
        label = list(event.probabilities)[row.index(best)] if best and best >= self._min_probability else UNKNOWN
        named = dict(zip(event.probabilities, row, strict=True))
        return replace(event, label=label, probability=best, probabilities=named)

    def _recall(self, memory: Memory) -> dict[str, Any]:
        """What this bundle found of a session.

        What another one found may be of other classes, and is of another calibration: behind an exchange everything begins anew.
        """
        known = memory[0] if memory else None
        if not isinstance(known, dict) or known.get("bundle") != self.bundle.id:
            known = {"bundle": self.bundle.id}
            memory[:] = [known]
        return known
