"""The gate before a promotion. In: two bundles, sessions that neither has learned from. Out: whether the new one is better.

Both judge the same sessions, so what is hard for both cancels out. Windows of one session resemble each other, and so do sessions of one
person, hence whole people are resampled (sessions, where nobody is named), never windows: the paired bootstrap of Efron and Tibshirani
1993, An Introduction to the Bootstrap, chapters 6 and 13. The new bundle passes if the lower end of the 95 % interval of the
difference lies above 0. Further heads do not count: what is compared are answers to the recipe's own question.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kymo.models.bundle import Bundle
from kymo.models.evaluate import JudgedWindow, evaluate
from kymo.models.scores import UNCLASSIFIED, accuracies, macro_f1s
from kymo.processors.recipe.load import Recipe
from kymo.streams.errors import TrainingError
from kymo.streams.recording import Recording
from kymo.streams.words import many

#: Fewer people, or sessions where nobody is named, cannot tell: one lucky draw would decide.
MIN_OWNERS = 6
_RESAMPLES = 10_000
_INTERVAL = 0.95
Numbers = NDArray[np.float64]
_NUMBERS = 2**23  # of resamples' weights, or of their confusions, at once
Score = Callable[[Numbers], Numbers]
#: What a bundle answers on one session: pairs of truth and answer, usually one.
Answers = Mapping[str, Sequence[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a comparison came to."""

    promote: bool  # whether the candidate is better by more than chance
    metric: str  # what was compared: ``accuracy`` or ``macro_f1`` of sessions, or ``window_accuracy``
    sessions: int  # how many judged
    champion: float  # their scores, 0 to 1
    candidate: float
    difference: float  # candidate less champion, and the ends of its 95 % interval
    low: float
    high: float
    text: str  # all of it on one line

    def to_dict(self) -> dict[str, Any]:
        """JSON object."""
        return asdict(self)


def owners_of(subjects: Mapping[str, str]) -> dict[str, str]:
    """Say whose a session is: its subject's, or its own where nobody is named."""
    return {session: subject or session for session, subject in subjects.items()}


def judge(
    champion: Answers,
    candidate: Answers,
    metric: str = "accuracy",
    seed: int = 0,
    subjects: Mapping[str, str] | None = None,  # of sessions, empty where not known; None where each stands for itself
) -> Verdict:
    """Compare two bundles by their answers on the same sessions."""
    sessions = sorted(champion)
    if not sessions or sessions != sorted(candidate):
        raise TrainingError(
            f"the champion judged {len(champion)} sessions, the candidate {len(candidate)}; expected the same ones"
        )
    classes = sorted({name for side in (champion, candidate) for pairs in side.values() for p in pairs for name in p})
    owners, named = owners_of(dict.fromkeys(sessions, "") | dict(subjects or {})), any((subjects or {}).values())
    units = sorted({owners[session] for session in sessions})
    counts = [_confusions(side, owners, units, classes) for side in (champion, candidate)]
    score = macro_f1s if metric == "macro_f1" else accuracies
    before, after = (float(score(side.sum(0, keepdims=True))[0]) for side in counts)
    draws = _draws(counts, score, len(units), seed)
    low, high = (
        float(q) for q in np.quantile(draws, [(1 - _INTERVAL) / 2, (1 + _INTERVAL) / 2], method="inverted_cdf")
    )
    passed = low > 0 and len(units) >= MIN_OWNERS
    why = _reason(passed, low, "people" if named else "sessions")
    whose = f" (people: {len(units)})" if named else ""
    text = (
        f"{metric.replace('_', ' ')} on {many(len(sessions), 'held-out session')}{whose}: {after:.3f} against the champion's {before:.3f}, "
        f"difference {after - before:+.3f} (95 % interval {low:+.3f} to {high:+.3f}): {why}"
    )
    return Verdict(passed, metric, len(sessions), before, after, after - before, low, high, text)


def _reason(passed: bool, low: float, owners: str) -> str:
    if passed:
        return "better by more than chance"
    if low > 0:
        return f"fewer than {MIN_OWNERS} {owners} are too few to tell"
    return "not better by more than chance"


def _confusions(answers: Answers, owners: Mapping[str, str], units: Sequence[str], classes: Sequence[str]) -> Numbers:
    """Counts ``(people, truth, answer)``."""
    number, place = ({name: i for i, name in enumerate(names)} for names in (classes, units))
    counts = np.zeros((len(units), len(classes), len(classes)))
    for session, pairs in answers.items():
        for truth, answer in pairs:
            counts[place[owners[session]], number[truth], number[answer]] += 1
    return counts


def _draws(counts: Sequence[Numbers], score: Score, owners: int, seed: int) -> Numbers:
    """Differences of the score, one for each resample of the people."""
    random = np.random.default_rng(seed)
    parts: list[Numbers] = []
    chunk = max(1, _NUMBERS // max(owners, counts[0][0].size))
    for first in range(0, _RESAMPLES, chunk):
        size = min(chunk, _RESAMPLES - first)
        weights = random.multinomial(owners, np.full(owners, 1 / owners), size=size).astype(float)
        before, after = (score(np.tensordot(weights, side, 1)) for side in counts)
        parts.append(after - before)
    return np.concatenate(parts).round(12)  # what differs by rounding only is equal


def compare(
    champion: Bundle,
    candidate: Bundle,
    recordings: Iterable[Recording],
    recipe: Recipe,
    metric: str = "accuracy",
    subjects: Mapping[str, str] | None = None,  # see :func:`judge`
) -> Verdict:
    """Have two bundles judge the same recordings."""
    answers_of = _window_answers if metric == "window_accuracy" else _session_answers
    sessions = list(recordings)
    sides = [answers_of(bundle, sessions, recipe) for bundle in (champion, candidate)]
    for name in {*sides[0], *sides[1]}:  # a bundle that gives no window for a session has not answered
        for answers, others in (sides, sides[::-1]):
            answers.setdefault(name, [(truth, UNCLASSIFIED) for truth, _ in others.get(name, [])])
    verdict = judge(sides[0], sides[1], metric, subjects=subjects)
    truths = {truth for pairs in sides[1].values() for truth, _ in pairs}
    if missing := [label for label in candidate.labels if label not in truths]:
        text = f"{verdict.text}; not one held-out session is of {', '.join(missing)}, so nothing is known of that"
        return replace(verdict, promote=False, text=text)
    return verdict


def _session_answers(
    bundle: Bundle, recordings: Iterable[Recording], recipe: Recipe
) -> dict[str, list[tuple[str, str]]]:
    """What a bundle answers on each labelled session: by truth, the label with the largest sum over the windows."""
    totals: dict[tuple[str, str], dict[str, float]] = {}

    def add(window: JudgedWindow) -> None:
        total = totals.setdefault((window.recording.session, window.truth), defaultdict(float))
        for label, probability in window.event.probabilities.items():
            total[label] += probability

    evaluate(recipe, bundle, recordings, add)
    answers: dict[str, list[tuple[str, str]]] = {}
    for (session, truth), total in sorted(totals.items()):
        answers.setdefault(session, []).append((truth, max(total, key=lambda label: total[label])))
    return answers


def _window_answers(
    bundle: Bundle, recordings: Iterable[Recording], recipe: Recipe
) -> dict[str, list[tuple[str, str]]]:
    """What a bundle answers on each labelled window, by session."""
    answers: dict[str, list[tuple[str, str]]] = {}

    def add(window: JudgedWindow) -> None:
        probabilities = window.event.probabilities
        answer = max(probabilities, key=lambda label: probabilities[label])
        answers.setdefault(window.recording.session, []).append((window.truth, answer))

    evaluate(recipe, bundle, recordings, add)
    return answers
