"""Scores of classes. In: truths, and what was said of windows. Out: numbers from 0 to 1 and counts.

A recording counts by the mean of its windows' probabilities. One with several classes counts once for each of them that
covers a window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: What stands for the answer where a recording gave no window.
UNCLASSIFIED = "unclassified"
#: A truth and an answer.
Pair = tuple[str, str]
#: Session, truth and probabilities of a window.
Judged = tuple[str, str, Mapping[str, float]]


def score_windows(found: Iterable[Judged], labels: Sequence[str], without: Sequence[str] = ()) -> dict[str, Any]:
    """Scores of classified windows and of the recordings that they make up."""
    recordings: dict[Pair, dict[str, float]] = {}
    window_pairs: list[Pair] = []
    for session, truth, probabilities in found:
        total = recordings.setdefault((session, truth), dict.fromkeys(probabilities, 0.0))
        for label, probability in probabilities.items():
            total[label] += probability
        window_pairs.append((truth, max(probabilities, key=lambda label: probabilities[label])))
    # The largest sum is the largest mean.
    pairs = [(truth, max(total, key=lambda label: total[label])) for (_, truth), total in recordings.items()]
    scores = score([*pairs, *((truth, UNCLASSIFIED) for truth in without)], labels)
    return {**scores, "window_accuracy": _accuracy(window_pairs), "windows": len(window_pairs)}


_MEANS = ("precision", "recall", "f1")


def _accuracy(pairs: Sequence[Pair]) -> float:
    return sum(truth == answer for truth, answer in pairs) / len(pairs) if pairs else 0.0


def score(pairs: Sequence[Pair], labels: Sequence[str] = ()) -> dict[str, Any]:
    """Accuracy, precision, recall, F1, confusion of answers.

    Precision, recall and F1 of a class are 0 where they are undefined. `macro_precision`, `macro_recall` and `macro_f1` are
    their plain means over the classes that occur as truth or as answer (D. D. Lewis 1991, Evaluating Text Categorization).
    """
    counts = Counter(pairs)
    present = {name for pair in pairs for name in pair} - {UNCLASSIFIED}
    classes = [label for label in labels if label in present] + sorted(present - set(labels))
    answers = [*classes, UNCLASSIFIED] if any(answer == UNCLASSIFIED for _, answer in pairs) else classes
    per_class = {name: _class_scores(counts, name) for name in classes}
    truths = Counter(truth for truth, _ in pairs)
    commonest = max(classes, key=lambda name: truths[name])
    return {
        "accuracy": _accuracy(pairs),
        **{f"macro_{key}": sum(c[key] for c in per_class.values()) / len(per_class) for key in _MEANS},
        "per_class": per_class,
        "confusion": {truth: {answer: counts[truth, answer] for answer in answers} for truth in classes},
        "not_judged": [label for label in labels if label not in truths],
        "commonest": {"label": commonest, "accuracy": truths[commonest] / len(pairs)},
        "n": len(pairs),
        "unclassified": sum(answer == UNCLASSIFIED for _, answer in pairs),
    }


def _class_scores(counts: Mapping[Pair, int], name: str) -> dict[str, float]:
    right = counts.get((name, name), 0)
    said = sum(count for (_, answer), count in counts.items() if answer == name)
    there = sum(count for (truth, _), count in counts.items() if truth == name)
    return {
        "precision": right / said if said else 0.0,
        "recall": right / there if there else 0.0,
        "f1": 2 * right / (said + there) if said + there else 0.0,
        "n": there,
    }
