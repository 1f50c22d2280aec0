"""Scores of further heads. In: what was said of windows in a head, and what is true. Out: numbers, None where undefined.

A head of classes is scored as the recipe's own classes are. A number's errors are in its own unit; as with classes, a
recording counts once, by the mean of its windows: ``mae``, ``rmse``, ``r2`` and ``n`` are of recordings, ``window_mae``,
``window_rmse``, ``window_r2`` and ``windows`` of windows. Only windows whose truth is known count.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from models.scores import UNCLASSIFIED, score_windows
from models.training.record import HeldHead

#: What the short form of a head's scores keeps, in a manifest and for people.
SHORT = ("accuracy", "macro_f1", "mae", "rmse", "r2", "n")
#: A session, the truth, what was said.
Said = tuple[str, float, float]


def score_head(head: HeldHead, sessions: Sequence[str], without: Iterable[str | float] = ()) -> dict[str, Any]:
    """Scores of one head."""
    missed = list(without)
    if not head.labels:
        found = zip(sessions, head.truth.tolist(), head.said.tolist(), strict=True)
        return score_numbers(((s, truth, said) for s, truth, said in found if not math.isnan(truth)), len(missed))
    rows = zip(sessions, head.truth.tolist(), head.said.tolist(), strict=True)
    judged = [(s, head.labels[t], dict(zip(head.labels, row, strict=True))) for s, t, row in rows if t >= 0]
    if not judged and not missed:
        return {"n": 0, "windows": 0}
    return score_windows(judged, head.labels, [str(truth) for truth in missed])


def score_numbers(found: Iterable[Said], without: int = 0) -> dict[str, Any]:
    """Errors of numbers, of recordings and of windows."""
    own: dict[str, list[tuple[float, float]]] = {}
    for session, truth, said in found:
        pairs = own.setdefault(session, [])
        if math.isfinite(said):
            pairs.append((truth, said))
    windows = [pair for pairs in own.values() for pair in pairs]
    means = [tuple(np.mean(pairs, axis=0).tolist()) for pairs in own.values() if pairs]
    unclassified = without + sum(not pairs for pairs in own.values())
    if not windows and not unclassified:
        return {"n": 0, "windows": 0}
    of_windows = {f"window_{name}": value for name, value in _errors(windows).items()}
    counts = {"n": len(means), "unclassified": unclassified}
    return {**_errors(means), **counts, **of_windows, "windows": len(windows)}


def _errors(pairs: Sequence[tuple[float, ...]]) -> dict[str, float | None]:
    """Mean absolute error, root of the mean square error, and the share of the truths' variance that is explained.

    ``r2`` is 1 less the sum of squared errors over the sum of squared distances of the truths from their mean: 0 is what their
    mean would reach, below 0 is worse. It is undefined where all truths are equal.
    """
    if not pairs:
        return {"mae": None, "rmse": None, "r2": None}
    truth, said = np.array(pairs, np.float64).T
    errors = said - truth
    around = float(np.square(truth - truth.mean()).sum())
    r2 = 1 - float(np.square(errors).sum()) / around if around > 0 and np.ptp(truth) > 0 else None
    return {"mae": float(np.abs(errors).mean()), "rmse": float(np.sqrt(np.square(errors).mean())), "r2": r2}


def short(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Heads' scores in a few numbers each."""
    return {name: {key: found[key] for key in SHORT if key in found} for name, found in scores.items()}


def said_of(name: str, scores: Mapping[str, Any]) -> str:
    """A head's scores in a line for people.

    Examples
    --------
    >>> said_of("score_10k", {"mae": 2.5, "rmse": 3.25, "r2": None, "n": 1, "unclassified": 0, "window_mae": 4.0, "windows": 9})
    'score_10k: 1 recordings: mean error 2.5, root mean square 3.25; 9 windows: mean error 4'
    """
    if not scores.get("n") and not scores.get("unclassified"):
        return f"{name}: no labels"
    without = f", {scores['unclassified']} {UNCLASSIFIED}" if scores["unclassified"] else ""
    if "accuracy" in scores:
        return (
            f"{name}: {scores['n']} recordings: accuracy {scores['accuracy']:.1%}, macro F1 {scores['macro_f1']:.3f}{without}; "
            f"{scores['windows']} windows: accuracy {scores['window_accuracy']:.1%}"
        )
    if scores["mae"] is None:
        return f"{name}: no answers{without}"
    explained = f", R2 {scores['r2']:.3f}" if scores["r2"] is not None else ""
    return (
        f"{name}: {scores['n']} recordings: mean error {scores['mae']:.4g}, root mean square {scores['rmse']:.4g}{explained}"
        f"{without}; {scores['windows']} windows: mean error {scores['window_mae']:.4g}"
    )


def collect(
    names: Sequence[str], rows: Sequence[Mapping[str, tuple[Any, Any]]], labels: Mapping[str, Sequence[str]]
) -> list[HeldHead]:
    """Heads of windows that were judged one by one."""
    made = []
    for name in names:
        truths = [row[name][0] for row in rows]
        if not labels[name]:
            known = [math.nan if truth is None else truth for truth in truths]
            made.append(
                HeldHead(name, [], np.array(known, np.float64), np.array([row[name][1] for row in rows], np.float64))
            )
            continue
        others = Counter(truth for truth in truths if truth is not None and truth not in labels[name])
        classes = [*labels[name], *sorted(others)]
        number = {label: i for i, label in enumerate(classes)}
        said = np.array([[row[name][1].get(label, 0.0) for label in classes] for row in rows], np.float64)
        numbers = np.array([-1 if truth is None else number[truth] for truth in truths], np.int64)
        made.append(HeldHead(name, classes, numbers, said.reshape(len(rows), len(classes))))
    return made
