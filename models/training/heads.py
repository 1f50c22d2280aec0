"""What a model says, head by head, for the trainer. In: its outputs ``(n, columns)``. Out: temperatures, and answers as
events would carry them: probabilities, or numbers in their own unit.

A *question* is the recipe's own (a Head without a name, whose labels are the recipe's classes) or one of its further heads,
in the order of the output's columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from models.classify import fit_temperature, softmax
from models.data.examples import Targets, target_arrays
from models.pooling import Pool, State, pool_windows
from models.score_heads import score_head
from models.training.record import HeldHead
from models.training.sides import Prepared
from models.zoo import Architecture, Head, Samples, architecture
from streams.chunk import Array, Format
from streams.errors import TrainingError

#: Sessions of windows, and where each begins, raw samples.
Places = tuple[Sequence[str], Sequence[int]]


def build(name: str, fmt: Format, prepared: Prepared, parameters: Any, seed: int) -> Architecture:
    """A fresh model for prepared windows."""
    make: Any = architecture(name)
    if not prepared.heads:
        made: Architecture = make(fmt, prepared.labels, parameters, seed)
        return made
    if not getattr(make, "several_heads", False):
        raise TrainingError(
            f"architecture {name!r} says the recipe's classes alone, not the heads "
            f"{', '.join(head.name for head in prepared.heads)}; take another one, such as minirocket or recurrent, or leave "
            f"[[heads]] out"
        )
    several: Architecture = make(fmt, prepared.labels, parameters, seed, prepared.heads)
    return several


def questions_of(prepared: Prepared) -> tuple[Head, ...]:
    """The recipe's own question, and its further heads."""
    return (Head("", prepared.labels), *prepared.heads)


def fit_temperatures(outputs: Array, questions: Sequence[Head], truths: Samples) -> list[float]:
    """The temperature of each question under which what is known is most likely; 1 for numbers, and where nothing is known."""
    found = []
    for question, part in zip(questions, _parts(outputs, questions), strict=True):
        truth: Any = truths.targets[question.name] if question.name else truths.classes
        known = np.flatnonzero(truth >= 0) if question.labels else np.zeros(0, np.int64)
        found.append(fit_temperature(part[known].tolist(), truth[known].tolist()) if len(known) else 1.0)
    return found


def _parts(outputs: Array, questions: Sequence[Head]) -> list[Array]:
    """Columns of each question."""
    ends = np.cumsum([question.width for question in questions])
    return np.split(outputs, ends[:-1], axis=1)


def answers_of(
    outputs: Array, questions: Sequence[Head], temperatures: Sequence[float], pool: Pool | None, places: Places
) -> list[Array]:
    """What events would carry, question by question: ``(n, labels)`` probabilities or ``(n,)`` numbers, NaN for none.

    The mean pools all of them; an hmm has learned how the recipe's own classes follow each other, and pools those alone.
    """
    found: list[Array] = []
    for question, part, temperature in zip(questions, _parts(outputs, questions), temperatures, strict=True):
        pools = pool if pool is None or not question.name or pool.kind == "mean" else None
        if question.labels:
            rows = [softmax(row, temperature) for row in part.tolist()]
            found.append(np.array(pool_windows(pools, rows, *places) if pools else rows, np.float64))
        else:
            numbers: Array = np.where(np.isfinite(part[:, 0]), part[:, 0], np.nan).astype(np.float64)
            found.append(pool_numbers(pools, numbers, *places) if pools else numbers)
    return found


def pool_numbers(pool: Pool, numbers: Array, sessions: Sequence[str], starts: Sequence[int]) -> Array:
    """Pooled numbers of windows of many sessions, given in any order, each session's taken by its start; NaN: none."""
    out, states = np.full(len(numbers), np.nan), dict[str, State]()
    for i in sorted(range(len(sessions)), key=lambda i: (sessions[i], starts[i])):
        said = {} if math.isnan(numbers[i]) else {"": float(numbers[i])}
        states[sessions[i]], pooled = pool.step_number(states.get(sessions[i], []), said)
        out[i] = pooled.get("", math.nan)
    return out


def held_heads(heads: Sequence[Head], targets: Sequence[Targets], answers: Sequence[Array]) -> list[HeldHead]:
    """Truths and answers of held-out windows, for scores and record."""
    known = target_arrays(targets, [head for head in heads if head.labels])
    known |= {
        head.name: np.array([t.get(head.name, math.nan) for t in targets], np.float64)
        for head in heads
        if not head.labels
    }
    return [
        HeldHead(head.name, list(head.labels), known[head.name], said)
        for head, said in zip(heads, answers, strict=True)
    ]


def head_scores(held: Sequence[HeldHead], sessions: Sequence[str]) -> dict[str, Any]:
    """Scores of further heads, as ``heads`` beside those of the recipe's own classes; empty where there are none."""
    return {"heads": {head.name: score_head(head, sessions) for head in held}} if held else {}
