"""Scores of a bundle on labelled recordings. In: recordings, a recipe, a bundle. Out: numbers from 0 to 1 and counts.

A recording counts by the mean of its windows' probabilities. One with several classes counts once for each of them that
covers a window. A labelled recording without any window counts as an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.bundle import UNKNOWN, Bundle
from models.classify import Classifier
from models.dataset import iter_windows, labels_of
from models.judge import Judge, Memory
from processors.recipe import Recipe
from streams.chunk import Window
from streams.errors import TrainingError
from streams.events import Event
from streams.labels_cover import Cover
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
        `min_probability`) of windows; ``per_subject``: by subject ``accuracy``, ``macro_f1``, ``n``,
        ``window_accuracy``, ``windows``, empty where no subject is known.

    Raises
    ------
    BundleError
        If the bundle does not fit the recipe.
    TrainingError
        If no recording has a label.
    """
    found = _judge(recipe, bundle, recordings, on_window)
    pairs = [(w.session, w.truth, w.probabilities) for w in found.windows]
    scores = {"bundle": bundle.id, **score_windows(pairs, bundle.labels, [truth for _, truth in found.without])}
    return {**scores, "unknown_windows": found.unknown, "per_subject": found.per_subject(bundle.labels)}


@dataclass(frozen=True, slots=True)
class _Window:
    """A labelled window and what a bundle says of it; `subject` may be empty."""

    session: str
    subject: str
    truth: str
    probabilities: Mapping[str, float]


@dataclass(slots=True)
class _Found:
    """What a bundle says of labelled recordings.

    Attributes
    ----------
    windows : list of _Window
        In the order of the recordings, then of time.
    without : list of (str, str)
        Subject and truth of recordings that gave no window.
    unknown : int
        Windows below the recipe's `min_probability`.
    """

    windows: list[_Window] = field(default_factory=list)
    without: list[Pair] = field(default_factory=list)
    unknown: int = 0

    def per_subject(self, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
        """By subject, where there are any, what is said of its recordings and windows in one number each."""
        out = {}
        for name in sorted({w.subject for w in self.windows} | {subject for subject, _ in self.without}):
            own = [(w.session, w.truth, w.probabilities) for w in self.windows if w.subject == name]
            scores = score_windows(own, labels, [truth for subject, truth in self.without if subject == name])
            out[name] = {key: scores[key] for key in ("accuracy", "macro_f1", "n", "window_accuracy", "windows")}
        return {} if set(out) <= {""} else out


def _judge(recipe: Recipe, bundle: Bundle, recordings: Iterable[Recording], on_window: OnWindow) -> _Found:
    """Classify labelled recordings as `kymo run` does, pooling included."""
    bundle.check(recipe)
    judge = Judge(Classifier.for_recipe(bundle, recipe), recipe)
    found = _Found()
    for recording, windows in iter_windows(recordings, recipe, bundle.chain):
        memory: Memory = []
        events = [own for own, *_ in judge.judge(windows, [memory] * len(windows))]
        subject = recording.subject or ""
        labels = labels_of(recording, recipe)
        cover = Cover(labels)
        for window, event in zip(windows, events, strict=True):
            truth = cover.label_of(event.start_ns, event.end_ns, recipe.labels.min_share)
            if truth is not None:
                found.windows.append(_Window(recording.session, subject, truth, event.probabilities))
                found.unknown += event.label == UNKNOWN
                on_window(recording, window, event, truth)
        if not events:
            found.without += sorted({(subject, label.label) for label in labels})
    if not found.windows and not found.without:
        raise TrainingError("no recording has a label that covers a window; check [labels] and the labels in the data")
    return found


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
