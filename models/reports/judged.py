"""What all sections of a report share. In: held-out windows of a record. Out: their counts; a gallery of figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from models.reports import html as h
from models.reports import numbers
from models.training.record import HeldOut

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.reports.drawing import Drawing


@dataclass(slots=True, eq=False)
class Gallery:
    """Figures of one report: into the page as SVG, beside it as PNG."""

    files: dict[str, bytes] = field(default_factory=dict)  # PNG by file name
    missing: bool = False  # whether nothing can be drawn, because matplotlib is not installed
    prefix: str = ""  # how the names of files and figures begin, where a page has several of a kind

    def part(self, prefix: str) -> Gallery:
        """A gallery whose figures are of this one, named apart."""
        return Gallery(self.files, self.missing, prefix)

    def show(self, file: str, make: Callable[[Any], Drawing], alt: str, caption: str = "") -> str:
        """Draw a figure with the module that can; HTML, empty where nothing can be drawn."""
        try:
            from models.reports import plots as report_plots
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "matplotlib":
                raise
            self.missing = True
            return ""
        drawing = make(report_plots)
        self.files[f"{self.prefix}{file}"] = drawing.png
        return h.figure(drawing.svg, alt, caption)


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Held-out windows, counted once for all sections."""

    labels: tuple[str, ...]
    truth: numbers.Integers  # ``(n,)``; an answer may be :data:`~models.reports.numbers.NO_ANSWER`
    answers: numbers.Integers
    probabilities: numbers.Floats
    counts: numbers.Integers  # ``(labels, labels + 1)``, see :func:`~models.reports.numbers.confusion`
    kind: str  # ``subject`` or, where none is known, ``session``
    groups: list[numbers.Shares]
    sessions: list[numbers.Shares]

    @classmethod
    def of(cls, held: HeldOut) -> Judged | None:
        """What was held out; None if nothing was."""
        truth = np.asarray(held.y_true, np.int64)
        if not len(truth):
            return None
        probabilities = np.asarray(held.probabilities, np.float64).reshape(len(truth), -1)
        answers = numbers.answers_of(probabilities)
        known = any(held.subjects)
        names = [subject or f"session {session}" for subject, session in zip(held.subjects, held.sessions, strict=True)]
        sessions = numbers.by_group(held.sessions, held.sessions, truth == answers)
        return cls(
            tuple(held.labels),
            truth,
            answers,
            probabilities,
            numbers.confusion(truth, answers, len(held.labels)),
            "subject" if known else "session",
            numbers.by_group(names, held.sessions, truth == answers) if known else sessions,
            sessions,
        )

    @property
    def accuracy(self) -> float:
        """Share of windows answered rightly."""
        return float(np.mean(self.truth == self.answers))
