"""A report's sections on how well a model does. In: held-out windows and scores of a run. Out: HTML and figures.

Windows are counted from the record's probabilities, recordings are the record's own scores. What is too long to read
is cut to its worst part, and says so. A further head of classes gets its confusions and classes as the recipe's own have
them; a number its errors, in its own unit, and what was said against what is true.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import numpy as np

from kymo.models.reports import html as h
from kymo.models.reports import numbers
from kymo.models.reports.numbers import JudgedWindows
from kymo.models.scores import HeldHead, HeldOut
from kymo.models.training.record import RunRecord

_MOST_CLASSES, _MOST_ROWS, _MOST_GROUPS = 20, 40, 30
_MOST_DRAWN, _MOST_RECORDINGS = 1_000, 10  # of a number


@dataclass(slots=True, eq=False)
class Gallery:
    """Figures of one report: into the page as SVG, beside it as PNG."""

    files: dict[str, bytes] = field(default_factory=dict)  # PNG by file name
    missing: bool = False  # whether nothing can be drawn, because matplotlib is not installed

    def show(self, plot: str, name: str, alt: str, caption: str, *values: Any) -> str:
        """Draw `values` by a function of :mod:`~kymo.models.reports.plots`; HTML, empty where nothing can be drawn."""
        try:
            from kymo.models.reports import plots
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "matplotlib":
                raise
            self.missing = True
            return ""
        drawing = getattr(plots, plot)(name, *values)
        self.files[f"{name}.png"] = drawing.png
        return h.figure(drawing.svg, alt, caption)


def render_summary(
    scores: Mapping[str, Any], judged: JudgedWindows | None, seconds: float = 0, peak_mb: float = 0
) -> str:
    cards = []
    if scores.get("n") and "accuracy" in scores:
        n, share = int(scores["n"]), float(scores["accuracy"] if scores["accuracy"] is not None else math.nan)
        if math.isfinite(share):
            common = scores.get("commonest")
            always = f"; always saying {common['label']}: {h.percent(common['accuracy'])}" if common else ""
            remark = f"{round(share * n)} of {n}{_interval(scores, 'accuracy')}{always}"
            cards.append(("Recordings right", h.percent(share), remark))
        remark = f"macro precision {h.number(scores.get('macro_precision'))}, macro recall {h.number(scores.get('macro_recall'))}"
        remark = f"of recordings, over the classes; {remark}{_interval(scores, 'macro_f1')}"
        cards.append(("Macro F1", h.number(scores.get("macro_f1")), remark))
    if judged:
        remark = f"{h.counted(len(judged.truth), 'window')} of {h.counted(len(judged.groups), judged.kind)}"
        remark += _interval(scores, "window_accuracy")
        cards.append(("Windows right", h.percent(judged.accuracy), remark))
        error = numbers.calibration(judged.truth, judged.probabilities).error
        cards.append(("Calibration error", h.percent(error), "expected; how far probabilities are from shares"))
    cards += [
        (name, h.number(value), "")
        for name, value in scores.items()
        if isinstance(value, float) and not name.startswith("macro_") and name not in ("accuracy", "window_accuracy")
    ]
    if seconds > 0:
        cards.append(("Time", h.duration(seconds), "of the whole run"))
    if peak_mb > 0:
        cards.append(("Memory", f"{peak_mb:,.0f} MB", "largest resident size of the process"))
    return h.cards(cards)


def _interval(scores: Mapping[str, Any], name: str) -> str:
    """The interval of a score over people, to be added to a remark; empty where they are too few."""
    limits = scores.get("interval") or {}
    if name not in limits:
        return ""
    return f"; {limits['level']:.0%} interval {h.percents(tuple(limits[name]))} over {h.counted(limits['of'], limits['kind'])}"


def render_curves(record: RunRecord, gallery: Gallery) -> str:
    history = [epoch for epoch in record.history if "epoch" in epoch]
    if not history:
        return ""
    validated = [epoch for epoch in history if _is_number(epoch.get("validation_loss"))]
    alt = f"Learning curves over {len(history)} epochs"
    alt += ", means of the folds that came so far" if record.split.get("folds") else ""
    best = min(validated, key=lambda epoch: epoch["validation_loss"], default=None)
    if best:
        alt += f"; the validation loss is lowest, {best['validation_loss']:.4g}, in epoch {best['epoch']:g}"
    drawn = gallery.show("learning_curves", "learning_curves", f"{alt}.", f"{alt}.", history, best and best["epoch"])
    names = list(dict.fromkeys(key for epoch in history for key in epoch))
    shown = history[-4 * _MOST_ROWS :]
    caption = "Every epoch" if len(shown) == len(history) else f"The last {len(shown)} of {len(history)} epochs"
    rows = [[_epoch_cell(epoch.get(name), name) for name in names] for epoch in shown]
    columns = h.numbers(*(name.replace("_", " ") for name in names))
    return drawn + h.details("Numbers of every epoch", h.table(caption, columns, rows))


def _epoch_cell(value: Any, name: str) -> str:
    return f"{value:g}" if name == "epoch" else f"{value:.4g}" if _is_number(value) else h.NOTHING


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def render_confusion(
    scores: Mapping[str, Any], judged: JudgedWindows | None, gallery: Gallery, prefix: str = ""
) -> str:
    """Who is taken for whom: recordings, and windows."""
    drawings, remarks = [], []
    for unit, labels, counts in _matrices(scores, judged):
        classes = numbers.most_confused(counts, _MOST_CLASSES)
        cells = counts[classes][:, classes]
        columns = [labels[i] for i in classes]
        elsewhere = counts[classes].sum(axis=1) - cells.sum(axis=1) - counts[classes, -1]
        for name, column in (("other", elsewhere), ("no answer", counts[classes, -1])):
            if column.any():
                cells, columns = np.column_stack([cells, column]), [*columns, name]
        rows = [labels[i] for i in classes]
        total = len(numbers.most_confused(counts, len(counts)))
        if len(classes) < total:
            remarks.append(
                f"{unit.capitalize()}: the {len(classes)} classes with the most errors of {total} are shown."
            )
        alt = f"Confusion matrix of {counts.sum():,} {unit}: {_confusions(counts, labels)}"
        caption = f"{unit.capitalize()}: counts, and shares of each row."
        drawings.append(
            gallery.show("confusion_matrix", f"{prefix}confusion_{unit}", alt, caption, cells, rows, columns)
        )
    return h.figures(drawings) + "".join(h.paragraph(text, "soft") for text in remarks)


def _matrices(
    scores: Mapping[str, Any], judged: JudgedWindows | None
) -> list[tuple[str, Sequence[str], numbers.Integers]]:
    matrices: list[tuple[str, Sequence[str], numbers.Integers]] = []
    if table := scores.get("confusion"):
        labels = list(table)
        counts = np.zeros((len(labels), len(labels) + 1), np.int64)
        for i, row in enumerate(table.values()):
            for answer, count in row.items():
                counts[i, labels.index(answer) if answer in labels else -1] += count
        matrices.append(("recordings", labels, counts))
    if judged:
        matrices.append(("windows", judged.labels, judged.counts))
    return matrices


def _confusions(counts: numbers.Integers, labels: Sequence[str]) -> str:
    """The three most frequent errors in words."""
    wrong = counts[:, : len(labels)].copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:3]
    places = [np.unravel_index(i, wrong.shape) for i in order]
    texts = [f"{labels[i]} taken for {labels[j]} {wrong[i, j]} times" for i, j in places if wrong[i, j]]
    return f"most often {', '.join(texts)}." if texts else "no class is taken for another."


def render_per_class(scores: Mapping[str, Any], judged: JudgedWindows | None) -> str:
    units = {"Recordings": scores.get("per_class") or {}}
    units["Windows"] = numbers.class_rows(judged.counts, judged.labels) if judged else {}
    return h.figures(_class_table(unit, rows) for unit, rows in units.items() if rows)


def _class_table(unit: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    def f1_of(name: str) -> float:
        f1 = rows[name]["f1"]
        return -1.0 if f1 is None or math.isnan(f1) else float(f1)

    names, caption = list(rows), f"{unit}, {h.counted(len(rows), 'class')}"
    if len(rows) > _MOST_ROWS:
        names = sorted(rows, key=f1_of)[:_MOST_ROWS]
        caption = f"{unit}: the {_MOST_ROWS} classes of {len(rows)} with the lowest F1"
    cells = [(name, *(rows[name][key] for key in ("precision", "recall", "f1", "n"))) for name in names]
    return h.table(caption, {"class": "", **h.numbers("precision", "recall", "F1", "support")}, cells)


def render_per_group(judged: JudgedWindows | None, gallery: Gallery) -> str:
    """How well each subject's, or each session's, windows are answered."""
    if judged is None:
        return ""
    kind, groups = judged.kind, judged.groups
    shown = groups[:_MOST_GROUPS]
    which = (
        h.counted(len(groups), kind)
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
    drawn = gallery.show("group_scores", "groups", alt, caption, shown, judged.accuracy)
    blocks = h.figures((drawn, _group_table(kind, groups)))
    if kind != "session":
        blocks += h.details("Every session", _group_table("session", judged.sessions))
    return blocks


def _group_table(kind: str, groups: Sequence[numbers.RightShare]) -> str:
    shown = groups[:_MOST_ROWS]
    caption = f"{h.counted(len(groups), kind)}, the worst first"
    if len(shown) < len(groups):
        caption = f"The worst {len(shown)} of {len(groups)} {kind}s"
    rows = [(g.name, g.sessions, g.n, h.percent(g.share), h.percents(g.interval)) for g in shown]
    columns = {kind: "", **h.numbers("sessions", "windows", "right", "95 % interval")}
    if kind == "session":
        del columns["sessions"]
        return h.table(caption, columns, [(name, *values) for name, _, *values in rows])
    return h.table(caption, columns, rows)


def render_reliability(judged: JudgedWindows | None, gallery: Gallery) -> str:
    """Whether a probability of 80 % is right in 80 % of cases."""
    if judged is None:
        return ""
    bins = numbers.calibration(judged.truth, judged.probabilities)
    if not bins.count.sum():
        return h.paragraph("No window has probabilities.", "note")
    alt = f"Reliability diagram with {len(bins.count)} bins; expected calibration error {h.percent(bins.error)}."
    caption = (
        f"How often answers of each probability are right. Expected calibration error {h.percent(bins.error)}: 0 % "
        f"where each bar ends at its diamond."
    )
    drawn = gallery.show("reliability", "reliability", alt, caption, bins)
    edges = zip(bins.edges[:-1], bins.edges[1:], strict=True)
    rows = [
        (f"{a * 100:.0f} to {b * 100:.0f}\u00a0%", n, h.percent(confidence), h.percent(right))
        for (a, b), n, confidence, right in zip(edges, bins.count.tolist(), bins.confidence, bins.accuracy, strict=True)
    ]
    columns = {"probability": "", **h.numbers("windows", "mean probability", "right")}
    blocks = h.figures((drawn, h.table("Bins of the answer's probability", columns, rows)))
    without = int((judged.answers == numbers.NO_ANSWER).sum())
    return blocks + (h.paragraph(f"{without} windows without probabilities are left out.", "note") if without else "")


def head_sections(record: RunRecord, gallery: Gallery) -> list[tuple[str, str]]:
    scores: Mapping[str, Any] = record.scores.get("heads") or {}
    titled = []
    for i, head in enumerate(record.held_out.heads, 1):
        body = _head_classes if head.labels else _head_number
        text = body(record.held_out, head, scores.get(head.name) or {}, gallery, f"head{i}_")
        titled.append(
            (f"Head: {head.name}", text or h.paragraph("No held-out window has a label of this head.", "note"))
        )
    return titled


def _head_classes(held: HeldOut, head: HeldHead, scores: Mapping[str, Any], gallery: Gallery, prefix: str) -> str:
    truth: Any = head.truth
    known = truth >= 0
    sessions, subjects = (list(compress(names, known)) for names in (held.sessions, held.subjects))
    judged = JudgedWindows.of(head.labels, truth[known], head.said[known], sessions, subjects)
    if judged is None:
        return ""
    return (
        render_summary(scores, judged)
        + render_confusion(scores, judged, gallery, prefix)
        + render_per_class(scores, judged)
    )


def _head_number(held: HeldOut, head: HeldHead, scores: Mapping[str, Any], gallery: Gallery, prefix: str) -> str:
    by_session: dict[str, list[tuple[float, float]]] = {}
    for session, pair in zip(held.sessions, zip(head.truth.tolist(), head.said.tolist(), strict=True), strict=True):
        if all(map(math.isfinite, pair)):
            by_session.setdefault(session, []).append(pair)
    if not by_session:
        return ""
    # Truth, then what was said: of windows, and of recordings, each the mean of its windows.
    windows = np.array([pair for pairs in by_session.values() for pair in pairs])
    recordings = np.array([np.mean(pairs, axis=0) for pairs in by_session.values()])
    r2, drawn = scores.get("r2"), windows
    if len(windows) > _MOST_DRAWN:
        drawn = windows[np.linspace(0, len(windows) - 1, _MOST_DRAWN).round().astype(int)]
    alt = f"{head.name} said against {head.name} as it is, of {h.counted(len(recordings), 'recording')}"
    alt += f": mean error {_short(scores.get('mae'))}{f'; R2 {r2:.3f}' if r2 is not None else ''}."
    caption = "Each point a window, each circle a recording by the mean of its windows; on the line what was said is what is true."
    figure = gallery.show("said_against_true", f"{prefix}said", alt, caption, drawn, recordings)
    text = h.figures((figure, _errors(windows, recordings, scores), _worst(list(by_session), recordings)))
    if len(drawn) < len(windows):
        text += h.paragraph(f"Of {len(windows):,} windows {_MOST_DRAWN:,} are drawn, evenly chosen.", "soft")
    if missed := scores.get("unclassified"):
        text += h.paragraph(f"{h.counted(missed, 'recording')} without a number, in no error.", "note")
    return text


def _errors(windows: numbers.Floats, recordings: numbers.Floats, scores: Mapping[str, Any]) -> str:
    columns = {"of": "", **h.numbers("n", "mean error", "root mean square", "R2", "spread of the truths")}
    rows = []
    for unit, prefix, pairs in (("recordings", "", recordings), ("windows", "window_", windows)):
        mae, rmse, r2 = (scores.get(f"{prefix}{name}") for name in ("mae", "rmse", "r2"))
        rows.append((unit, len(pairs), _short(mae), _short(rmse), r2, _short(float(pairs[:, 0].std()))))
    return h.table("Errors, in the number's own unit; always saying the mean would err by the spread", columns, rows)


def _worst(names: Sequence[str], recordings: numbers.Floats) -> str:
    errors = recordings[:, 1] - recordings[:, 0]
    order = np.argsort(-np.abs(errors), kind="stable")[:_MOST_RECORDINGS]
    rows = [(names[i], *map(_short, recordings[i].tolist()), f"{errors[i]:+.4g}") for i in order]
    caption = f"The {len(order)} recordings of {len(errors)} with the largest errors"
    columns = {"recording": "", **h.numbers("truth", "said", "error")}
    return h.table(caption if len(order) < len(errors) else "Every recording", columns, rows)


def _short(value: float | None) -> str:
    return h.NOTHING if value is None else f"{value:.5g}"
