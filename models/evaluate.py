"""Scores of a bundle on labelled recordings. In: recordings, a recipe, a bundle. Out: numbers from 0 to 1 and counts; errors of
numbers in their own unit.

See :mod:`kymo.models.scores`. A labelled recording without any window counts as an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from kymo.models.bundle import UNKNOWN, Bundle
from kymo.models.data.dataset import iter_windows, labels_of, stream_of
from kymo.models.data.examples import EVERY, targets_of, truth_at
from kymo.models.lengths import doubt
from kymo.models.predict import Classifier, Memory, Predictor
from kymo.models.scores import (
    Pair,
    Scores,
    Tally,
    about_people,
    collect_heads,
    score_head,
    score_windows,
    without_classes,
)
from kymo.models.training.record import HeldHead
from kymo.processors.recipe.load import Recipe
from kymo.streams.chunk import Window
from kymo.streams.errors import TrainingError
from kymo.streams.events import Event
from kymo.streams.labels.labels import Cover
from kymo.streams.recording import Recording

#: A window in further heads: by name the truth (None: not known), and the bundle's probabilities or number (NaN: none).
HeadRow = Mapping[str, tuple[str | float | None, Mapping[str, float] | float]]


@dataclass(frozen=True, slots=True, eq=False)
class JudgedWindow:
    """A labelled window, and what a bundle says of it."""

    recording: Recording  # whose, with the labels that the recipe asks for
    window: Window  # as the model was given it
    event: Event  # of the recipe's own classes
    truth: str
    heads: HeadRow  # what is said in further heads, and what is true


#: Told of each labelled window.
OnWindow = Callable[[JudgedWindow], None]


def evaluate(
    recipe: Recipe, bundle: Bundle, recordings: Iterable[Recording], on_window: OnWindow = lambda _: None
) -> Scores:
    """Scores of a bundle."""
    if borders := bundle.manifest.get("bins"):
        recipe = replace(recipe, labels=replace(recipe.labels, bins=tuple(borders)))
    answers = _answers(recipe, bundle, recordings, on_window)
    windows = [(w.session, w.truth, w.probabilities) for w in answers.windows]
    scores = Scores(bundle=bundle.id, **score_windows(windows, bundle.labels, [truth for _, truth in answers.without]))
    tally = Tally.of(windows, [w.subject or w.session for w in answers.windows], bundle.labels, answers.without)
    scores |= about_people(tally, (w.subject for w in answers.windows)) | {"unknown_windows": answers.unknown}
    scores |= {"doubts": answers.doubts}
    if recipe.heads:
        sessions = [w.session for w in answers.windows]
        scores["heads"] = {
            head.name: score_head(head, sessions, answers.heads_without.get(head.name, ()))
            for head in heads_of(recipe, bundle, [w.heads for w in answers.windows])
        }
    return scores if recipe.labels.classes else Scores(without_classes(scores))


def heads_of(recipe: Recipe, bundle: Bundle, rows: Sequence[HeadRow]) -> list[HeldHead]:
    """Answers and truths of judged windows, head by head, in the recipe's order."""
    labels = {head.name: head.labels for head in bundle.heads}
    return collect_heads([head.name for head in recipe.heads], rows, labels)


@dataclass(frozen=True, slots=True)
class _Window:
    """A labelled window and what a bundle says of it; `subject` may be empty."""

    session: str
    subject: str
    truth: str
    probabilities: Mapping[str, float]
    heads: HeadRow


@dataclass(slots=True)
class _Answers:
    """What a bundle says of labelled recordings."""

    windows: list[_Window] = field(default_factory=list)  # in the order of the recordings, then of time
    without: list[Pair] = field(
        default_factory=list
    )  # subject (or session) and truth of recordings that gave no window
    heads_without: dict[str, list[str]] = field(default_factory=dict)  # by head, the truths of those recordings
    doubts: dict[str, str] = field(default_factory=dict)  # by session, why it is unlike all that was learned from
    unknown: int = 0  # windows below the recipe's `min_probability`

    def miss(self, recipe: Recipe, recording: Recording) -> None:
        """A recording gave no window: it counts once for each of its classes, and once for each number."""
        self.without += sorted(
            {(recording.subject or recording.session, label.label) for label in labels_of(recording, recipe)}
        )
        for head in recipe.heads:
            truths = sorted({label.label for label in recording.labels if label.set == head.set})
            self.heads_without.setdefault(head.name, []).extend(truths if head.kind == "classes" else truths[:1])


def _answers(recipe: Recipe, bundle: Bundle, recordings: Iterable[Recording], on_window: OnWindow) -> _Answers:
    """Classify labelled recordings as `kymo run` does, pooling included."""
    predictor = Predictor(Classifier.for_recipe(bundle, recipe), recipe)
    answers = _Answers()
    for recording, windows in iter_windows(recordings, recipe, bundle.chain):
        memory: Memory = []
        cover, targets = Cover(labels_of(recording, recipe)), targets_of(recording.labels, recipe.heads)
        for window, (event, *heads) in zip(windows, predictor.predict(windows, [memory] * len(windows)), strict=True):
            truths = targets(event.start_ns, event.end_ns)
            truth = truth_at(recipe, cover, event.start_ns, event.end_ns, truths)
            if truth is not None:
                row = {head.head: (truths.get(head.head), _answer(head)) for head in heads}
                subject = recording.subject or ""
                answers.windows.append(
                    _Window(recording.session, subject, truth, event.probabilities or {EVERY: 1.0}, row)
                )
                answers.unknown += event.label == UNKNOWN
                on_window(JudgedWindow(recording, window, event, truth, row))
        if not windows:
            answers.miss(recipe, recording)
        stream = stream_of(recording, recipe)
        if stream is not None and (why := doubt(bundle.lengths, stream, recipe)):
            answers.doubts[recording.session] = why
    if not answers.windows and not answers.without:
        raise TrainingError("no recording has a label that covers a window; check [labels] and the labels in the data")
    return answers


def _answer(event: Event) -> Mapping[str, float] | float:
    """An event's probabilities, or its number; NaN where the model gave none."""
    return event.probabilities or event.values.get(event.head, math.nan)
