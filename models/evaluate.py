"""Scores of a bundle on labelled recordings. In: recordings, a recipe, a bundle. Out: numbers from 0 to 1 and counts.

A recording counts by the mean of its windows' probabilities. One with several classes counts once for each of them that
covers a window. A labelled recording without any window counts as an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from models.bundle import UNKNOWN, Bundle
from models.classify import Classifier
from models.dataset import iter_windows
from processors.recipe import Recipe
from streams.chunk import Window
from streams.errors import TrainingError
from streams.events import Event
from streams.recording import Recording

#: What stands for the answer where a recording gave no window.
UNCLASSIFIED = "unclassified"
Pair = tuple[str, str]
Judged = tuple[str, str, Mapping[str, float]]
#: Told of each labelled window: its recording, the window, its event, its truth.
OnWindow = Callable[[Recording, Window, Event, str], None]


def evaluate(
    recipe: Recipe, bundle: Bundle, recordings: Iterable[Recording], on_window: OnWindow = lambda *_: None
) -> dict[str, Any]:
    """Scores of a bundle.

    Parameters
    ----------
    recipe : Recipe
        Which stream, which labels.
    bundle : Bundle
        Must fit the recipe.
    recordings : iterable of Recording
        Labelled ones count, the others are left out.
    on_window : callable, optional
        Told of each labelled window.

    Returns
    -------
    dict
        ``bundle``, ``accuracy``, ``macro_f1``, ``per_class``, ``confusion`` (truth, then answer), ``n`` and
        ``unclassified`` of recordings; ``window_accuracy``, ``windows`` and ``unknown_windows`` (below the recipe's
        `min_probability`) of windows.

    Raises
    ------
    BundleError
        If the bundle does not fit the recipe.
    TrainingError
        If no recording has a label.
    """
    bundle.check(recipe)
    classifier = Classifier.for_recipe(bundle, recipe)
    found: list[Judged] = []
    without: list[str] = []
    unknown = 0
    for recording, windows in iter_windows(recordings, recipe, bundle.chain):
        events = classifier.classify(windows)
        for window, event in zip(windows, events, strict=True):
            truth = recording.label_of(event.start_ns, event.end_ns, recipe.labels.min_share)
            if truth is not None:
                found.append((recording.session, truth, event.probabilities))
                unknown += event.label == UNKNOWN
                on_window(recording, window, event, truth)
        if not events:
            without += sorted({label.label for label in recording.labels})
    if not found and not without:
        raise TrainingError("no recording has a label that covers a window; check [labels] and the labels in the data")
    return {"bundle": bundle.id, **score_windows(found, bundle.labels, without), "unknown_windows": unknown}


def score_windows(found: Iterable[Judged], labels: Sequence[str], without: Sequence[str] = ()) -> dict[str, Any]:
    """Scores of classified windows and of the recordings that they make up.

    Parameters
    ----------
    found : iterable of (str, str, mapping)
        Session, truth and probabilities of each window.
    labels : sequence of str
        Gives the order of the classes.
    without : sequence of str
        Truths of recordings that gave no window.

    Returns
    -------
    dict
        What :func:`score` says of recordings, with ``window_accuracy`` and the number of ``windows``.
    """
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


def _accuracy(pairs: Sequence[Pair]) -> float:
    return sum(truth == answer for truth, answer in pairs) / len(pairs) if pairs else 0.0


def score(pairs: Sequence[Pair], labels: Sequence[str] = ()) -> dict[str, Any]:
    """Accuracy, F1, confusion of answers.

    Precision, recall and F1 of a class are 0 where they are undefined. `macro_f1` is their plain mean over the classes
    that occur as truth or as answer (D. D. Lewis 1991, Evaluating Text Categorization).

    Parameters
    ----------
    pairs : sequence of (str, str)
        Truth and answer, at least one.
    labels : sequence of str
        Gives the order of the classes.

    Returns
    -------
    dict
        ``accuracy``, ``macro_f1``, ``per_class`` (by class ``precision``, ``recall``, ``f1``, ``n``), ``confusion`` (by
        truth, by answer), ``n``, ``unclassified``.
    """
    counts = Counter(pairs)
    present = {name for pair in pairs for name in pair} - {UNCLASSIFIED}
    classes = [label for label in labels if label in present] + sorted(present - set(labels))
    answers = [*classes, UNCLASSIFIED] if any(answer == UNCLASSIFIED for _, answer in pairs) else classes
    per_class = {name: _class_scores(counts, name) for name in classes}
    return {
        "accuracy": _accuracy(pairs),
        "macro_f1": sum(found["f1"] for found in per_class.values()) / len(per_class),
        "per_class": per_class,
        "confusion": {truth: {answer: counts[truth, answer] for answer in answers} for truth in classes},
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
