"""A report's sections on how well a model does. In: held-out windows and scores of a run. Out: HTML and figures.

Windows are counted from the record's probabilities, recordings are the record's own scores. What is too long to read
is cut to its worst part, and says so. A further head of classes gets its confusions and classes as the recipe's own have
them; a number its errors, in its own unit, and what was said against what is true.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from models.reports import html as h
from models.reports import numbers
from models.reports.html import Column
from models.reports.numbers import Judged
from models.training.record import HeldHead, HeldOut, RunRecord

if TYPE_CHECKING:
    from models.reports.plots import Drawing


_MOST_CLASSES, _MOST_ROWS, _MOST_GROUPS = 20, 40, 30
_MOST_DRAWN, _MOST_RECORDINGS = 1_000, 10  # of a number
_CLASS_COLUMNS = [Column("class"), *(Column(name, "n") for name in ("precision", "recall", "F1", "support"))]


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


def summary(record: RunRecord, judged: Judged | None) -> str:
    """The numbers that matter most."""
    scores, made = record.scores, []
    if scores.get("n"):
        n, share = int(scores["n"]), float(scores["accuracy"] if scores["accuracy"] is not None else math.nan)
        if math.isfinite(share):
            right = round(share * n)
            said = f"{right} of {n}; 95 % interval {h.percents(numbers.wilson(right, n))}"
            made.append(("Recordings right", h.percent(share), said))
        said = f"macro precision {h.number(scores.get('macro_precision'))}, macro recall {h.number(scores.get('macro_recall'))}"
        made.append(("Macro F1", h.number(scores.get("macro_f1")), f"of recordings, over the classes; {said}"))
    if judged:
        low_high = h.percents(numbers.group_interval(judged.groups))
        said = f"{h.counted(len(judged.truth), 'window')} of {h.counted(len(judged.groups), judged.kind)}"
        said += f"; 95 % interval {low_high}" if low_high != h.NOTHING else ""
        made.append(("Windows right", h.percent(judged.accuracy), said))
        error = numbers.calibration(judged.truth, judged.probabilities).error
        made.append(("Calibration error", h.percent(error), "expected; how far probabilities are from shares"))
    made += [
        (name, h.number(value), "")
        for name, value in scores.items()
        if isinstance(value, float) and not name.startswith("macro_") and name not in ("accuracy", "window_accuracy")
    ]
    if record.seconds > 0:
        made.append(("Time", h.duration(record.seconds), "of the whole run"))
    if record.peak_mb > 0:
        made.append(("Memory", f"{record.peak_mb:,.0f} MB", "largest resident size of the process"))
    return h.cards(made)


def curves(record: RunRecord, gallery: Gallery) -> str:
    """Loss and accuracy by epoch."""
    history = [epoch for epoch in record.history if "epoch" in epoch]
    if not history:
        return ""
    seen = [epoch for epoch in history if _is_number(epoch.get("validation_loss"))]
    alt = f"Learning curves over {len(history)} epochs"
    alt += ", means of the folds that came so far" if record.split.get("folds") else ""
    if seen:
        best = min(seen, key=lambda epoch: epoch["validation_loss"])
        alt += f"; the validation loss is lowest, {best['validation_loss']:.4g}, in epoch {best['epoch']:g}"
    drawn = gallery.show("learning_curves.png", lambda plots: plots.learning_curves(history), alt + ".", f"{alt}.")
    names = list(dict.fromkeys(key for epoch in history for key in epoch))
    shown = history if len(history) <= 4 * _MOST_ROWS else history[-4 * _MOST_ROWS :]
    caption = "Every epoch" if len(shown) == len(history) else f"The last {len(shown)} of {len(history)} epochs"
    rows = [[_epoch_cell(epoch.get(name), name) for name in names] for epoch in shown]
    columns = [Column(name.replace("_", " "), "n") for name in names]
    return drawn + h.details("Numbers of every epoch", h.table(caption, columns, rows))


def _epoch_cell(value: Any, name: str) -> str:
    return f"{value:g}" if name == "epoch" else f"{value:.4g}" if _is_number(value) else h.NOTHING


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def confusion(record: RunRecord, judged: Judged | None, gallery: Gallery) -> str:
    """Who is taken for whom: recordings, and windows."""
    made, remarks = [], []
    for what, labels, counts in _matrices(record, judged):
        kept = numbers.most_confused(counts, _MOST_CLASSES)
        rest = counts[kept][:, kept]
        columns = [labels[i] for i in kept]
        elsewhere = counts[kept].sum(axis=1) - rest.sum(axis=1) - counts[kept, -1]
        for name, extra in (("other", elsewhere), ("no answer", counts[kept, -1])):
            if extra.any():
                rest, columns = np.column_stack([rest, extra]), [*columns, name]
        rows = [labels[i] for i in kept]
        classes = len(numbers.most_confused(counts, len(counts)))
        if len(kept) < classes:
            remarks.append(f"{what.capitalize()}: the {len(kept)} classes with the most errors of {classes} are shown.")
        alt = f"Confusion matrix of {counts.sum():,} {what}: {_confusions(counts, labels)}"
        drawn = (rest, tuple(rows), tuple(columns), f"{gallery.prefix}confusion_{what}")
        caption = f"{what.capitalize()}: counts, and shares of each row."
        made.append(gallery.show(f"confusion_{what}.png", _matrix(*drawn), alt, caption))
    return h.figures([item for item in made if item]) + "".join(h.paragraph(text, "soft") for text in remarks)


def _matrix(counts: Any, rows: Sequence[str], columns: Sequence[str], name: str) -> Callable[[Any], Drawing]:
    return lambda plots: plots.confusion_matrix(name, counts, rows, columns)


def _matrices(record: RunRecord, judged: Judged | None) -> list[tuple[str, Sequence[str], numbers.Integers]]:
    made: list[tuple[str, Sequence[str], numbers.Integers]] = []
    table = record.scores.get("confusion") or {}
    if table:
        labels = list(table)
        counts = np.zeros((len(labels), len(labels) + 1), np.int64)
        for i, row in enumerate(table.values()):
            for answer, count in row.items():
                counts[i, labels.index(answer) if answer in labels else -1] += count
        made.append(("recordings", labels, counts))
    if judged:
        made.append(("windows", judged.labels, judged.counts))
    return made


def _confusions(counts: numbers.Integers, labels: Sequence[str]) -> str:
    """The three most frequent errors in words."""
    wrong = counts[:, : len(labels)].copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:3]
    found = [np.unravel_index(i, wrong.shape) for i in order]
    texts = [f"{labels[i]} taken for {labels[j]} {wrong[i, j]} times" for i, j in found if wrong[i, j]]
    return f"most often {', '.join(texts)}." if texts else "no class is taken for another."


def per_class(record: RunRecord, judged: Judged | None) -> str:
    """Precision, recall and F1 of every class, of recordings and of windows."""
    made = []
    if found := record.scores.get("per_class"):
        rows = [
            numbers.ClassRow(
                name,
                _number_of(row.get("precision")),
                _number_of(row.get("recall")),
                _number_of(row.get("f1")),
                int(row["n"]),
            )
            for name, row in found.items()
        ]
        made.append(_class_table("Recordings", rows))
    if judged:
        made.append(_class_table("Windows", numbers.class_rows(judged.counts, judged.labels)))
    return h.figures(made)


def _number_of(value: Any) -> float:
    return math.nan if value is None else float(value)


def _class_table(what: str, rows: Sequence[numbers.ClassRow]) -> str:
    shown = list(rows)
    caption = f"{what}, {h.counted(len(rows), 'class')}"
    if len(rows) > _MOST_ROWS:
        shown = sorted(rows, key=lambda row: (not math.isnan(row.f1), row.f1))[:_MOST_ROWS]
        caption = f"{what}: the {_MOST_ROWS} classes of {len(rows)} with the lowest F1"
    cells = [(r.name, *(h.number(x) for x in (r.precision, r.recall, r.f1)), f"{r.n:,}") for r in shown]
    return h.table(caption, _CLASS_COLUMNS, cells)


def per_group(judged: Judged | None, gallery: Gallery) -> str:
    """How well each subject's, or each session's, windows are answered."""
    if judged is None:
        return ""
    kind, groups = judged.kind, judged.groups
    shown = groups[:_MOST_GROUPS]
    which = (
        f"{len(groups)} {kind}s"
        if len(groups) <= _MOST_GROUPS
        else f"the worst {_MOST_GROUPS} of {len(groups)} {kind}s"
    )
    worst, best = groups[0], groups[-1]
    alt = f"Share of windows answered rightly, {which}: from {worst.name}, {h.percent(worst.share)}, "
    alt += f"to {best.name}, {h.percent(best.share)}."
    caption = (
        f"{which[0].upper()}{which[1:]}, the worst first, with 95 % intervals (Wilson) as if windows were independent; "
        f"windows of one session are not quite, so the true intervals are wider."
    )
    drawn = gallery.show("groups.png", lambda plots: plots.group_scores(shown, judged.accuracy), alt, caption)
    made = h.figures([part for part in (drawn, _group_table(kind, groups)) if part])
    if kind != "session":
        made += h.details("Every session", _group_table("session", judged.sessions))
    return made


def _group_table(kind: str, groups: Sequence[numbers.Shares]) -> str:
    shown = groups[:_MOST_ROWS]
    caption = f"{h.counted(len(groups), kind)}, the worst first"
    if len(shown) < len(groups):
        caption = f"The worst {len(shown)} of {len(groups)} {kind}s"
    columns = [
        Column(kind),
        Column("sessions", "n"),
        Column("windows", "n"),
        Column("right", "n"),
        Column("95 % interval", "n"),
    ]
    rows: list[tuple[Any, ...]] = [
        (g.name, g.sessions, f"{g.n:,}", h.percent(g.share), h.percents(g.interval)) for g in shown
    ]
    if kind == "session":
        columns, rows = [columns[0], *columns[2:]], [(row[0], *row[2:]) for row in rows]
    return h.table(caption, columns, rows)


def reliability(judged: Judged | None, gallery: Gallery) -> str:
    """Whether a probability of 80 % is right in 80 % of cases."""
    if judged is None:
        return ""
    found = numbers.calibration(judged.truth, judged.probabilities)
    if not found.count.sum():
        return h.paragraph("No window has probabilities.", "note")
    alt = f"Reliability diagram with {len(found.count)} bins; expected calibration error {h.percent(found.error)}."
    caption = (
        f"How often answers of each probability are right. Expected calibration error {h.percent(found.error)}: 0 % "
        f"where each bar ends at its diamond."
    )
    drawn = gallery.show("reliability.png", lambda plots: plots.reliability(found), alt, caption)
    edges = zip(found.edges[:-1], found.edges[1:], strict=True)
    rows = [
        (f"{a * 100:.0f} to {b * 100:.0f}\u00a0%", f"{n:,}", h.percent(confidence), h.percent(right))
        for (a, b), n, confidence, right in zip(edges, found.count, found.confidence, found.accuracy, strict=True)
    ]
    columns = [Column("probability"), Column("windows", "n"), Column("mean probability", "n"), Column("right", "n")]
    made = h.figures([part for part in (drawn, h.table("Bins of the answer's probability", columns, rows)) if part])
    without = int((judged.answers == numbers.NO_ANSWER).sum())
    return made + (h.paragraph(f"{without} windows without probabilities are left out.", "note") if without else "")


def head_sections(record: RunRecord, gallery: Gallery) -> list[tuple[str, str]]:
    """A title and HTML for each head."""
    found: Mapping[str, Any] = record.scores.get("heads") or {}
    made = []
    for i, head in enumerate(record.held_out.heads, 1):
        part = gallery.part(f"head{i}_")
        body = _head_classes if head.labels else _head_number
        made.append((f"Head: {head.name}", body(record.held_out, head, found.get(head.name) or {}, part)))
        gallery.missing |= part.missing
    return made


def _head_classes(held: HeldOut, head: HeldHead, found: Mapping[str, Any], gallery: Gallery) -> str:
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
    return summary(part, judged) + confusion(part, judged, gallery) + per_class(part, judged)


@dataclass(frozen=True, slots=True, eq=False)
class _Numbers:
    """Truths and answers of a number: of windows, and of recordings, each the mean of its windows."""

    truth: numbers.Floats  # ``(n,)``, of windows where both are known
    said: numbers.Floats
    names: list[str]
    means: numbers.Floats  # ``(recordings, 2)``: truth, then what was said

    @classmethod
    def of(cls, held: HeldOut, head: HeldHead) -> _Numbers | None:
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


def _head_number(held: HeldOut, head: HeldHead, found: Mapping[str, Any], gallery: Gallery) -> str:
    values = _Numbers.of(held, head)
    if values is None:
        return h.paragraph("No held-out window has a label of this head.", "note")
    n, r2 = len(values.names), found.get("r2")
    explained = f"; R2 {r2:.3f}" if r2 is not None else ""
    of = f"{head.name} said against {head.name} as it is, of {h.counted(n, 'recording')}"
    alt = f"{of}: mean error {_short(found.get('mae'))}{explained}."
    caption = "Each point a window, each circle a recording by the mean of its windows; on the line what was said is what is true."
    drawn = gallery.show(
        "said.png", lambda plots: plots.said_against_true(f"{gallery.prefix}said", *_points(values)), alt, caption
    )
    made = h.figures([part for part in (drawn, _errors(values, found), _worst(values)) if part])
    if len(values.truth) > _MOST_DRAWN:
        made += h.paragraph(f"Of {len(values.truth):,} windows {_MOST_DRAWN:,} are drawn, evenly chosen.", "soft")
    if missed := found.get("unclassified"):
        made += h.paragraph(f"{h.counted(missed, 'recording')} without a number, in no error.", "note")
    return made


def _points(values: _Numbers) -> tuple[numbers.Floats, numbers.Floats]:
    """Windows to draw, ``(n, 2)``, and recordings: truth, then what was said."""
    windows = np.stack([values.truth, values.said], 1)
    if len(windows) > _MOST_DRAWN:
        windows = windows[np.linspace(0, len(windows) - 1, _MOST_DRAWN).round().astype(int)]
    return windows, values.means


def _errors(values: _Numbers, found: Mapping[str, Any]) -> str:
    names = ("mean error", "root mean square", "R2", "spread of the truths")
    columns = [Column("of"), Column("n", "n"), *(Column(name, "n") for name in names)]
    rows = []
    for what, prefix, truth in (("recordings", "", values.means[:, 0]), ("windows", "window_", values.truth)):
        figures = [found.get(f"{prefix}{name}") for name in ("mae", "rmse", "r2")]
        rows.append(
            (what, f"{len(truth):,}", *map(_short, figures[:2]), h.number(figures[2]), _short(float(truth.std())))
        )
    return h.table("Errors, in the number's own unit; always saying the mean would err by the spread", columns, rows)


def _worst(values: _Numbers) -> str:
    errors = values.means[:, 1] - values.means[:, 0]
    order = np.argsort(-np.abs(errors), kind="stable")[:_MOST_RECORDINGS]
    columns = [Column("recording"), *(Column(name, "n") for name in ("truth", "said", "error"))]
    rows = [(values.names[i], *map(_short, values.means[i].tolist()), f"{errors[i]:+.4g}") for i in order]
    caption = (
        "Every recording"
        if len(order) == len(errors)
        else f"The {len(order)} recordings of {len(errors)} with the largest errors"
    )
    return h.table(caption, columns, rows)


def _short(value: float | None) -> str:
    return h.NOTHING if value is None else f"{value:.5g}"
