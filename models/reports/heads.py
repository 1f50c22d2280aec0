"""A report's sections on further heads. In: held-out windows of a run, with truths and answers of each head. Out: HTML and figures.

A head of classes gets its confusions and classes as the recipe's own have them; a number its errors, in its own unit, and
what was said against what is true.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.reports import html as h
from models.reports import scores
from models.reports.html import Column
from models.reports.judged import Gallery, Judged
from models.reports.numbers import Floats
from models.training.record import HeldHead, HeldOut, RunRecord

MOST_POINTS, MOST_ROWS = 1_000, 10


def sections(record: RunRecord, gallery: Gallery) -> list[tuple[str, str]]:
    """A title and HTML for each head."""
    found: Mapping[str, Any] = record.scores.get("heads") or {}
    made = []
    for i, head in enumerate(record.held_out.heads, 1):
        part = gallery.part(f"head{i}_")
        body = _classes if head.labels else _number
        made.append((f"Head: {head.name}", body(record.held_out, head, found.get(head.name) or {}, part)))
        gallery.missing |= part.missing
    return made


def _classes(held: HeldOut, head: HeldHead, found: Mapping[str, Any], gallery: Gallery) -> str:
    truth: Any = head.truth
    known = np.flatnonzero(truth >= 0)
    if not len(known):
        return h.paragraph("No held-out window has a label of this head.", "note")
    own = HeldOut(
        head.labels,
        head.truth[known],
        head.said[known],
        [held.sessions[i] for i in known],
        [held.subjects[i] for i in known],
        held.start_index[known],
    )
    part = RunRecord("", scores=dict(found), held_out=own)
    judged = Judged.of(own)
    return scores.summary(part, judged) + scores.confusion(part, judged, gallery) + scores.per_class(part, judged)


@dataclass(frozen=True, slots=True, eq=False)
class Numbers:
    """Truths and answers of a number: of windows, and of recordings, each the mean of its windows."""

    truth: Floats  # ``(n,)``, of windows where both are known
    said: Floats
    names: list[str]
    means: Floats  # ``(recordings, 2)``: truth, then what was said

    @classmethod
    def of(cls, held: HeldOut, head: HeldHead) -> Numbers | None:
        """What is known of a head; None for nothing."""
        truth, said = head.truth.astype(np.float64), head.said.astype(np.float64)
        known = np.flatnonzero(np.isfinite(truth) & np.isfinite(said))
        if not len(known):
            return None
        own: dict[str, list[int]] = {}
        for i in known.tolist():
            own.setdefault(held.sessions[i], []).append(i)
        means = [(truth[rows].mean(), said[rows].mean()) for rows in own.values()]
        return cls(truth[known], said[known], list(own), np.array(means, np.float64))


def _number(held: HeldOut, head: HeldHead, found: Mapping[str, Any], gallery: Gallery) -> str:
    numbers = Numbers.of(held, head)
    if numbers is None:
        return h.paragraph("No held-out window has a label of this head.", "note")
    n, r2 = len(numbers.names), found.get("r2")
    explained = f"; R2 {r2:.3f}" if r2 is not None else ""
    of = f"{head.name} said against {head.name} as it is, of {h.counted(n, 'recording')}"
    alt = f"{of}: mean error {_short(found.get('mae'))}{explained}."
    caption = "Each point a window, each circle a recording by the mean of its windows; on the line what was said is what is true."
    drawn = gallery.show(
        "said.png", lambda plots: plots.said_against_true(f"{gallery.prefix}said", *_points(numbers)), alt, caption
    )
    made = h.figures([part for part in (drawn, _errors(numbers, found), _worst(numbers)) if part])
    if len(numbers.truth) > MOST_POINTS:
        made += h.paragraph(f"Of {len(numbers.truth):,} windows {MOST_POINTS:,} are drawn, evenly chosen.", "soft")
    if missed := found.get("unclassified"):
        made += h.paragraph(f"{h.counted(missed, 'recording')} without a number, in no error.", "note")
    return made


def _points(numbers: Numbers) -> tuple[Floats, Floats]:
    """Windows to draw, ``(n, 2)``, and recordings: truth, then what was said."""
    windows = np.stack([numbers.truth, numbers.said], 1)
    if len(windows) > MOST_POINTS:
        windows = windows[np.linspace(0, len(windows) - 1, MOST_POINTS).round().astype(int)]
    return windows, numbers.means


def _errors(numbers: Numbers, found: Mapping[str, Any]) -> str:
    names = ("mean error", "root mean square", "R2", "spread of the truths")
    columns = [Column("of"), Column("n", "n"), *(Column(name, "n") for name in names)]
    rows = []
    for what, prefix, truth in (("recordings", "", numbers.means[:, 0]), ("windows", "window_", numbers.truth)):
        figures = [found.get(f"{prefix}{name}") for name in ("mae", "rmse", "r2")]
        rows.append(
            (what, f"{len(truth):,}", *map(_short, figures[:2]), h.number(figures[2]), _short(float(truth.std())))
        )
    return h.table("Errors, in the number's own unit; always saying the mean would err by the spread", columns, rows)


def _worst(numbers: Numbers) -> str:
    errors = numbers.means[:, 1] - numbers.means[:, 0]
    order = np.argsort(-np.abs(errors), kind="stable")[:MOST_ROWS]
    columns = [Column("recording"), *(Column(name, "n") for name in ("truth", "said", "error"))]
    rows = [(numbers.names[i], *map(_short, numbers.means[i].tolist()), f"{errors[i]:+.4g}") for i in order]
    caption = (
        "Every recording"
        if len(order) == len(errors)
        else f"The {len(order)} recordings of {len(errors)} with the largest errors"
    )
    return h.table(caption, columns, rows)


def _short(value: float | None) -> str:
    return h.NOTHING if value is None else f"{value:.5g}"
