"""The report of an evaluation. In: a recipe, a bundle, labelled recordings. Out: scores, and the files of a report."""

from __future__ import annotations

import heapq
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from models.bundle import Bundle
from models.data.dataset import add_input, stream_of
from models.evaluate import HeadRow, JudgedWindow, evaluate, heads_of
from models.reports.html import counted
from models.reports.page import WORST, Picture, report_files
from models.training.record import HeldOut, RunRecord
from processors.recipe.load import Recipe
from streams.chunk import Window
from streams.recording import Recording


@dataclass(slots=True, eq=False)
class _Watch:
    """What an evaluation comes across: every window's answer, the worst windows themselves, checksums of the inputs."""

    recipe: Recipe
    labels: list[str]
    truth: list[str] = field(default_factory=list)
    probabilities: list[list[float]] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    heads: list[HeadRow] = field(default_factory=list)
    worst: list[tuple[float, int, Picture]] = field(default_factory=list)  # a heap: the least bad first
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def read(self, recordings: Iterable[Recording]) -> Iterator[Recording]:
        """The recordings as they are, noted."""
        for recording in recordings:
            stream = stream_of(recording, self.recipe)
            if stream is not None:
                add_input(self.inputs, recording, stream)
            yield recording

    def on_window(self, one: JudgedWindow) -> None:
        """A window with what was said of it; of all windows only the worst are kept."""
        recording, window, truth = one.recording, one.window, one.truth
        row = [one.event.probabilities[label] for label in self.labels]
        number, sure = len(self.truth), max(row)
        self.truth.append(truth)
        self.heads.append(one.heads)
        self.probabilities.append(row)
        self.sessions.append(recording.session)
        self.subjects.append(recording.subject or "")
        self.starts.append(window.start_index)
        if sure > 0 and self.labels[row.index(sure)] != truth:
            self._keep(sure, number, window)

    def _keep(self, sure: float, number: int, window: Window) -> None:
        if len(self.worst) < WORST:
            heapq.heappush(self.worst, (sure, -number, Picture.of(window)))
        elif (sure, -number) > self.worst[0][:2]:
            heapq.heapreplace(self.worst, (sure, -number, Picture.of(window)))

    def held_out(self, bundle: Bundle) -> HeldOut:
        """All windows; classes that the model does not know have the probability 0."""
        labels = [*self.labels, *sorted(set(self.truth) - set(self.labels))]
        known = np.array(self.probabilities, np.float64).reshape(len(self.truth), len(self.labels))
        return HeldOut(
            labels=labels,
            y_true=np.array([labels.index(label) for label in self.truth], np.int64),
            probabilities=np.pad(known, ((0, 0), (0, len(labels) - len(self.labels)))),
            sessions=self.sessions,
            subjects=self.subjects,
            start_index=np.array(self.starts, np.int64),
            heads=heads_of(self.recipe, bundle, self.heads),
        )


def evaluate_with_report(
    recipe: Recipe, bundle: Bundle, recordings: Iterable[Recording]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Scores of a bundle, and a report of them."""
    watch = _Watch(recipe, list(bundle.labels))
    scores = evaluate(recipe, bundle, watch.read(recordings), watch.on_window)
    made = bundle.manifest.get("architecture", {})
    record = RunRecord(
        recipe=recipe.name,
        recipe_text=recipe.path.read_text(encoding="utf-8-sig") if recipe.path else "",
        architecture=str(made.get("name", "")),
        parameters=dict(made.get("parameters", {})),
        scores={key: value for key, value in scores.items() if key != "bundle"},
        held_out=watch.held_out(bundle),
        lineage=_lineage(bundle, watch.inputs),
        pooling=dict(bundle.manifest.get("pool", {})),
        notes=_notes(scores),
    )
    drawn = {-number: picture for _, number, picture in watch.worst}
    return scores, report_files(record, drawn, f"{bundle.id}: evaluation")


def _lineage(bundle: Bundle, inputs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    trained = bundle.manifest.get("lineage", {})
    return {
        "inputs": [{"path": path, **found} for path, found in inputs.items()],
        "python": platform.python_version(),
        "bundle": bundle.id,
        "trained by": trained.get("command", ""),
        "trained on": ", ".join(str(one.get("path", "")) for one in trained.get("inputs", [])),
    }


def _notes(scores: dict[str, Any]) -> list[str]:
    notes = []
    if scores["unclassified"]:
        notes.append(f"{counted(scores['unclassified'], 'recording')} without a window, counted as wrong.")
    if scores["unknown_windows"]:
        notes.append(
            f"{counted(scores['unknown_windows'], 'window')} below min_probability: events say `unknown`; here the most "
            f"probable class counts."
        )
    return notes
