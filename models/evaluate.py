"""Scores of a bundle on labelled recordings. In: recordings, a recipe, a bundle. Out: numbers from 0 to 1 and counts; errors of
numbers in their own unit.

See :mod:`kymo.models.scores`. A labelled recording without any window counts as an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kymo.models.bundle import UNKNOWN, Bundle
from kymo.models.data.dataset import add_input, iter_windows, judged_together, labels_of, streams_of
from kymo.models.data.examples import asked_sets, targets_of, truth_at
from kymo.models.lengths import doubt
from kymo.models.predict import Classifier, Predictor
from kymo.models.scores import HeldHead, HeldOut, Scores
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


@dataclass(slots=True)
class Judgement:
    bundle: Bundle
    held_out: HeldOut = field(default_factory=HeldOut)  # the windows, in the order of the recordings, then of time
    # subject (or session) and truth of recordings that gave no window; by head, the truths of those recordings
    missed: list[tuple[str, str]] = field(default_factory=list)
    missed_heads: dict[str, list[str]] = field(default_factory=dict)
    unknown: int = 0  # windows below the recipe's `min_probability`
    # by path: ``recordings`` and ``sha256`` of what the recipe takes, as in a bundle's lineage; and the sessions
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    sessions: dict[str, list[str]] = field(default_factory=dict)
    doubts: dict[str, str] = field(default_factory=dict)  # by session, why it is unlike all that was learned from

    def scores(self) -> Scores:
        scores = {"bundle": self.bundle.id, **self.held_out.scores(self.missed, self.missed_heads)}
        return Scores(scores, unknown_windows=self.unknown, doubts=self.doubts)

    def windows(self, recipe: Recipe, recording: Recording) -> Iterable[Window]:
        """The windows of a recording, which is noted; none where the recipe takes none of its streams."""
        if not (streams := streams_of(recording, recipe)):
            return []
        add_input(self.inputs, recording, streams)
        self.sessions.setdefault(recording.path, []).append(recording.session)
        if why := "; ".join(filter(None, (doubt(self.bundle.lengths, stream, recipe) for stream in streams))):
            self.doubts[recording.session] = why
        return iter_windows(streams, self.bundle.chain)

    def miss(self, recipe: Recipe, recording: Recording) -> None:
        """A recording gave no window: it counts once for each of its classes, and once for each number."""
        owner = recording.subject or recording.session
        self.missed += sorted({(owner, label.label) for label in labels_of(recording, recipe)})
        for head in recipe.heads:
            truths = sorted({label.label for label in recording.labels if label.set == head.set})
            self.missed_heads.setdefault(head.name, []).extend(truths if head.kind == "classes" else truths[:1])


def without(recordings: Iterable[Recording], recipe: Recipe, streams: Sequence[str]) -> Iterator[Recording]:
    """Recordings as if some of a recipe's inputs had never come."""
    optional = [table.stream for table in recipe.inputs if not table.required]
    for stream in streams:
        if stream not in optional:
            there = f"there are {', '.join(optional)}" if optional else "it has none"
            raise TrainingError(f"`{stream}` is no input of recipe `{recipe.name}` with required = false; {there}")
    for recording in recordings:
        names = [stream.header.format.stream for stream in recording.streams]
        gone = [(table := recipe.input_of(name)) is not None and table.stream in streams for name in names]
        yield replace(recording, streams=[s for s, out in zip(recording.streams, gone, strict=True) if not out])


def evaluate(
    recipe: Recipe, bundle: Bundle, recordings: Iterable[Recording], on_window: OnWindow = lambda _: None
) -> Scores:
    return judge_recordings(recipe, bundle, recordings, on_window).scores()


def judge_recordings(
    recipe: Recipe, bundle: Bundle, recordings: Iterable[Recording], on_window: OnWindow = lambda _: None
) -> Judgement:
    """Classify labelled recordings as `kymo run` does, pooling included."""
    if borders := bundle.manifest.get("bins"):
        recipe = replace(recipe, labels=replace(recipe.labels, bins=tuple(borders)))
    predictor = Predictor(Classifier.for_recipe(bundle, recipe), recipe)
    judgement, sets = Judgement(bundle), asked_sets(recipe)
    rows: list[tuple[str, list[float], HeadRow, str, str, int]] = []
    for read in recordings:
        batches = judged_together(judgement.windows(recipe, read))
        recording = replace(read, labels=[label for label in read.labels if label.set in sets])
        memory, count = list[Any](), 0  # what is remembered of the session, and its windows
        cover, targets_at = Cover(labels_of(recording, recipe)), targets_of(recording.labels, recipe.heads)
        judged = (
            pair for some in batches for pair in zip(some, predictor.predict(some, [memory] * len(some)), strict=True)
        )
        for count, (window, (event, *more)) in enumerate(judged, 1):  # noqa: B007
            targets = targets_at(event.start_ns, event.end_ns)
            truth = truth_at(recipe, cover, event.start_ns, event.end_ns, targets)
            if truth is not None:
                # What the event says in a head: probabilities, or a number; NaN where the model gave none.
                heads = {e.head: (targets.get(e.head), e.probabilities or e.values.get(e.head, math.nan)) for e in more}
                row = [event.probabilities.get(label, 1.0) for label in bundle.labels]
                rows.append((truth, row, heads, recording.session, recording.subject or "", window.start_index))
                judgement.unknown += event.label == UNKNOWN
                on_window(JudgedWindow(recording, window, event, truth, heads))
        if not count:
            judgement.miss(recipe, recording)
    if not rows and not judgement.missed:
        raise TrainingError("no recording has a label that covers a window; check [labels] and the labels in the data")
    truths, probabilities, of_heads, sessions, subjects, starts = (
        map(list, zip(*rows, strict=True)) if rows else [[]] * 6
    )
    labels = {head.name: head.labels for head in bundle.heads}
    held_heads = [HeldHead.of(head.name, labels[head.name], of_heads) for head in recipe.heads]
    names = {"sessions": sessions, "subjects": subjects, "start_index": np.array(starts, np.int64)}
    judgement.held_out = HeldOut.of(bundle.labels, truths, probabilities, **names, heads=held_heads)
    return judgement
