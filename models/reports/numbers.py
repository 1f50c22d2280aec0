"""Numbers of a report. In: held-out windows with their probabilities, 0 to 1. Out: shares from 0 to 1 and counts.

A window without an answer (its probabilities are not finite, or all 0) counts as an error, in a column of its own.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kymo.models.scores import class_scores, confusion, share_limits
from kymo.streams.chunk import Array

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: The answer where a model gave no probabilities.
NO_ANSWER = -1
#: Two-sided 95 % point of the normal distribution.
_Z = 1.959963984540054


class RightShare(NamedTuple):
    """How often something was right: ``right`` of ``n`` windows in ``sessions`` sessions."""

    name: str
    sessions: int
    right: int
    n: int

    @property
    def share(self) -> float:
        return self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, as if windows were independent: those of one session resemble each other, so that the true interval is wider."""
        return wilson(self.right, self.n)


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """A reliability diagram: bins of the answer's probability, and the expected calibration error."""

    edges: Floats  # ``(bins + 1,)``; a bin holds what lies above its lower edge and not above its upper
    count: Integers
    confidence: Floats  # ``(bins,)``, means in each bin; NaN where it is empty
    accuracy: Floats
    error: float  # mean over the windows of the distance of the two in a window's bin; NaN without windows


def answers_of(probabilities: Floats) -> Integers:
    """Number of each row's largest entry, the first of equals; :data:`NO_ANSWER` where all are 0 or one is not finite."""
    if probabilities.shape[1] == 0:
        return np.full(len(probabilities), NO_ANSWER, np.int64)
    finite = np.where(np.isfinite(probabilities).all(axis=1, keepdims=True), probabilities, 0.0)
    return np.where(finite.any(axis=1), finite.argmax(axis=1), NO_ANSWER).astype(np.int64)


def class_rows(counts: Integers, labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Precision, recall and F1 (NaN where undefined) and ``n`` of each class of a confusion matrix that occurs as truth or as answer."""
    rows = {}
    for i, name in enumerate(labels):
        right, truths, answers = int(counts[i, i]), int(counts[i].sum()), int(counts[:, i].sum())
        if truths + answers:
            rows[name] = class_scores(right, answers, truths, undefined=math.nan)
    return rows


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a share, of `n` independent trials; NaN for none."""
    if not n:
        return math.nan, math.nan
    low, high = share_limits(right / n, _Z * _Z / n)
    return low, high


def by_group(names: Sequence[str], sessions: Sequence[str], right: NDArray[np.bool_]) -> list[RightShare]:
    """Right windows of each group, the worst first."""
    counts, rights = Counter(names), Counter(itertools.compress(names, right.tolist()))
    held = Counter(name for name, _ in set(zip(names, sessions, strict=True)))
    shares = [RightShare(name, held[name], rights[name], n) for name, n in counts.items()]
    return sorted(shares, key=lambda group: (group.share, group.name))


def calibration(truth: Integers, probabilities: Floats, bins: int = 10) -> Calibration:
    """Reliability diagram and expected calibration error, with bins of equal width.

    After C. Guo et al. 2017, On Calibration of Modern Neural Networks, equation 3. Windows without an answer are left out.
    """
    answers = answers_of(probabilities)
    answered = answers != NO_ANSWER
    confidence = probabilities[answered, answers[answered]]
    right = (answers == truth)[answered].astype(float)
    edges = np.linspace(0.0, 1.0, bins + 1)
    number = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(number, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(number, values, bins) / count for values in (confidence, right)]
    distance = np.abs(means[0] - means[1])
    error = float(np.nansum(count * distance) / count.sum()) if count.sum() else math.nan
    return Calibration(edges, count.astype(np.int64), means[0], means[1], error)


def worst(truth: Integers, probabilities: Floats, count: int) -> list[int]:
    """Numbers of the wrong windows of which the model was surest, the surest first, then by number."""
    answers = answers_of(probabilities)
    wrong = np.flatnonzero((answers != truth) & (answers != NO_ANSWER))
    sure = probabilities[wrong, answers[wrong]]
    return [int(i) for i in wrong[np.argsort(-sure, kind="stable")][:count]]


def most_confused(counts: Integers, most: int) -> list[int]:
    """Numbers of the classes to show where there are too many: those with the most errors, in their own order."""
    occurs = [i for i in range(len(counts)) if counts[i].sum() + counts[:, i].sum()]
    if len(occurs) <= most:
        return occurs
    errors = {i: int(counts[i].sum() + counts[:, i].sum() - 2 * counts[i, i]) for i in occurs}
    return sorted(sorted(occurs, key=lambda i: -errors[i])[:most])


@dataclass(frozen=True, slots=True, eq=False)
class JudgedWindows:
    """Held-out windows, counted once for all sections."""

    labels: tuple[str, ...]
    truth: Integers  # ``(n,)``; an answer may be :data:`NO_ANSWER`
    answers: Integers
    probabilities: Floats
    counts: Integers  # ``(labels, labels + 1)``, see :func:`~kymo.models.scores.confusion`
    kind: str  # ``subject`` or, where none is known, ``session``
    groups: list[RightShare]
    sessions: list[RightShare]

    @classmethod
    def of(
        cls, labels: Sequence[str], truth: Array, probabilities: Array, sessions: Sequence[str], subjects: Sequence[str]
    ) -> JudgedWindows | None:
        """What was held out; None if nothing was."""
        if not len(truth):
            return None
        truths: Integers = np.asarray(truth, np.int64)
        shares: Floats = np.asarray(probabilities, np.float64).reshape(len(truths), -1)
        answers = answers_of(shares)
        names = [subject or f"session {session}" for subject, session in zip(subjects, sessions, strict=True)]
        by_session = by_group(sessions, sessions, truths == answers)
        by_subject = by_group(names, sessions, truths == answers) if any(subjects) else by_session
        counts, kind = confusion(truths, answers, len(labels)), "subject" if any(subjects) else "session"
        return cls(tuple(labels), truths, answers, shares, counts, kind, by_subject, by_session)

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.truth == self.answers))
