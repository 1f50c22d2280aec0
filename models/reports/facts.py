"""A report's sections on what was done. In: the record of a run. Out: HTML: split, candidates, settings, lineage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from models.reports import html as h
from models.reports.html import Column
from models.training.record import Candidate, RunRecord, cross_validation

MOST_NAMES, MOST_INPUTS, MOST_CANDIDATES, MOST_HELD = 60, 100, 40, 6


def split(record: RunRecord) -> str:
    """Who stands on which side."""
    kind, sides = record.split.get("kind"), {side: record.split.get(side) or {} for side in ("training", "validation")}
    if not kind and not any(sides.values()):
        return ""
    seed = record.split.get("seed")
    made = [h.paragraph(f"Split by {kind}{f', seed {seed}' if seed is not None else ''}.")] if kind else []
    if kind == "window":
        made.append(
            h.paragraph("Windows of one session stand on both sides: new sessions score lower than these.", "note")
        )
    if other := record.split.get("leak_free"):
        made.append(_both_figures(record, other))
    if said := cross_validation(record.split):
        made.append(_folds(record, said))
        sides = {"all": sides["validation"]}
    labels = list(dict.fromkeys(label for side in sides.values() for label in side.get("labels") or {}))
    rows = [
        (
            side,
            _count(found.get("groups")),
            h.number(found.get("windows")),
            _by_class(found.get("labels") or {}, labels),
        )
        for side, found in sides.items()
    ]
    columns = [Column("side"), Column("groups", "n"), Column("windows", "n"), Column("windows by class")]
    made.append(h.table("All windows" if said else "The two sides", columns, rows))
    for side, found in sides.items():
        if names := found.get("groups"):
            made.append(h.details(f"Groups in {side} ({len(names):,})", _names(names)))
    return "".join(made)


def _folds(record: RunRecord, said: str) -> str:
    """What each part of a cross-validation held out, and how it was judged."""
    counts = ("learned from", "stopped by", "judged", "epochs")
    columns = [Column("fold"), Column("held out"), *(Column(name, "n") for name in counts)]
    columns += [Column(name, "n") for name in ("recordings right", "macro F1", "windows right")]
    rows = [
        (
            str(i),
            _names_of(fold.get("groups") or []),
            *(h.number(fold.get(key)) for key in ("training", "validation", "windows", "epochs")),
            h.percent(fold.get("accuracy")),
            h.number(fold.get("macro_f1")),
            h.percent(fold.get("window_accuracy")),
        )
        for i, fold in enumerate(record.split["folds"], 1)
    ]
    text = f"Scores are over {said}: a model that has not seen a fold judges it. The bundled model learned from all windows."
    return h.paragraph(text) + h.table("Folds, of the bundled architecture", columns, rows)


def _names_of(groups: Sequence[str]) -> str:
    more = len(groups) - MOST_HELD
    return ", ".join(map(str, groups[:MOST_HELD])) + (f" and {more:,} more" if more > 0 else "")


def _both_figures(record: RunRecord, other: Mapping[str, Any]) -> str:
    """Scores of the random split beside those of one in which no session stands on both sides."""
    columns = [Column("split by"), *(Column(n, "n") for n in ("recordings right", "macro F1", "windows right"))]
    rows = [
        (
            kind,
            h.percent(found.get("accuracy")),
            h.number(found.get("macro_f1")),
            h.percent(found.get("window_accuracy")),
        )
        for kind, found in ((record.split.get("kind"), record.scores), (other.get("kind"), other.get("scores") or {}))
    ]
    return h.table("The same architecture, fitted and scored with each split", columns, rows)


def _count(names: Sequence[str] | None) -> str:
    return h.NOTHING if names is None else f"{len(names):,}"


def _by_class(counts: Mapping[str, int], labels: Sequence[str]) -> str:
    shown = [f"{label}: {counts.get(label, 0):,}" for label in labels[:MOST_NAMES]]
    more = len(labels) - len(shown)
    return ", ".join(shown) + (f" and {more} more classes" if more > 0 else "")


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(map(str, names[:MOST_NAMES]))
    more = len(names) - MOST_NAMES
    return h.paragraph(f"{shown} and {more:,} more" if more > 0 else shown)


def candidates(record: RunRecord) -> str:
    """What was compared on the same split, and which was taken."""
    found = record.candidates
    if not found:
        return ""
    shown = [one for one in found if one.chosen] + [one for one in found if not one.chosen]
    shown = shown[:MOST_CANDIDATES]
    columns = [Column("model"), *(Column(n, "n") for n in ("recordings right", "macro F1", "windows right", "loss"))]
    columns += [Column("time", "n"), Column("memory", "n"), Column("note")]
    caption = f"Compared {'in the same folds' if record.split.get('folds') else 'on the same validation windows'}"
    if len(shown) < len(found):
        caption += f"; {len(shown)} of {len(found)} shown"
    stressed = [i for i, one in enumerate(shown) if one.chosen]
    rows = [_candidate(one) for one in shown]
    if not any(one.note for one in shown):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    made = h.table(caption, columns, rows, stressed)
    settings = [(one.name, json.dumps(one.parameters, ensure_ascii=False)) for one in shown if one.parameters]
    if settings:
        made += h.details(
            "Their parameters", h.table("Parameters", [Column("model"), Column("parameters", "code")], settings)
        )
    return made


def _candidate(one: Candidate) -> tuple[str, ...]:
    scores = one.scores
    losses = [epoch["validation_loss"] for epoch in one.history if epoch.get("validation_loss") is not None]
    return (
        one.name + (" (bundled)" if one.chosen else ""),
        h.percent(scores.get("accuracy")),
        h.number(scores.get("macro_f1")),
        h.percent(scores.get("window_accuracy")),
        h.number(min(losses)) if losses else h.NOTHING,
        h.duration(one.seconds),
        f"{one.peak_mb:,.0f} MB" if one.peak_mb > 0 else h.NOTHING,
        one.note,
    )


def settings(record: RunRecord) -> str:
    """Parameters of the model and of its training, and the recipe."""
    made = []
    tables = (("Model", record.parameters), ("Training", record.training), ("Pooling over time", record.pooling))
    for name, found in tables:
        if found:
            rows = [(key, _value(value)) for key, value in found.items()]
            made.append(h.table(name, [Column("parameter"), Column("value", "code")], rows))
    text = h.figures(made)
    if record.recipe_text:
        text += h.details("The recipe", h.code(record.recipe_text))
    return text


def _value(value: Any) -> str:
    if value in ("", None):
        return h.NOTHING
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 400 else f"{text[:400]}… ({len(text):,} characters)"


def lineage(record: RunRecord) -> str:
    """Inputs with their checksums, versions, seed: what it takes to make the same again."""
    found = record.lineage
    if not found:
        return ""
    made = [h.code(found["command"])] if found.get("command") else []
    inputs = found.get("inputs") or []
    if inputs:
        shown = inputs[:MOST_INPUTS]
        caption = h.counted(len(inputs), "input") + (f", {len(shown)} shown" if len(shown) < len(inputs) else "")
        columns = [Column("path"), Column("recordings", "n"), Column("SHA-256 of samples and labels", "code")]
        rows = [(one.get("path", ""), h.number(one.get("recordings")), one.get("sha256", h.NOTHING)) for one in shown]
        made.append(h.table(caption, columns, rows))
    versions = {"python": found.get("python"), **(found.get("packages") or {})}
    rows_of_versions = [(name, version or h.NOTHING) for name, version in versions.items() if version]
    if rows_of_versions:
        made.append(h.table("Versions", [Column("package"), Column("version")], rows_of_versions))
    rest = {key: value for key, value in found.items() if key not in ("command", "inputs", "packages", "python")}
    if rest:
        facts = [(key.replace("_", " "), _value(value)) for key, value in rest.items()]
        made.append(h.table("Also", [Column("fact"), Column("value", "code")], facts))
    return "".join(made)
