"""A report's sections on what was done. In: the record of a run. Out: HTML: split, candidates, settings, lineage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kymo.models.reports import html as h
from kymo.models.reports.html import Column
from kymo.models.training.record import Candidate, RunRecord, cross_validation

_MOST_NAMES, _MOST_INPUTS, _MOST_CANDIDATES, _MOST_HELD = 60, 100, 40, 6


def split(record: RunRecord) -> str:
    """Who stands on which side."""
    kind, sides = record.split.get("kind"), {side: record.split.get(side) or {} for side in ("training", "validation")}
    if not kind and not any(sides.values()):
        return ""
    seed = record.split.get("seed")
    parts = [h.paragraph(f"Split by {kind}{f', seed {seed}' if seed is not None else ''}.")] if kind else []
    if kind == "window":
        parts.append(
            h.paragraph("Windows of one session stand on both sides: new sessions score lower than these.", "note")
        )
    if leak_free := record.split.get("leak_free"):
        parts.append(_both_figures(record, leak_free))
    if folds_text := cross_validation(record.split):
        parts.append(_folds(record, folds_text))
        sides = {"all": sides["validation"]}
    labels = list(dict.fromkeys(label for side in sides.values() for label in side.get("labels") or {}))
    rows = [
        (
            side,
            _count(facts.get("groups")),
            h.number(facts.get("windows")),
            _by_class(facts.get("labels") or {}, labels),
        )
        for side, facts in sides.items()
    ]
    columns = [Column("side"), Column("groups", "n"), Column("windows", "n"), Column("windows by class")]
    parts.append(h.table("All windows" if folds_text else "The two sides", columns, rows))
    for side, facts in sides.items():
        if names := facts.get("groups"):
            parts.append(h.details(f"Groups in {side} ({len(names):,})", _names(names)))
    return "".join(parts)


def _folds(record: RunRecord, folds_text: str) -> str:
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
    text = f"Scores are over {folds_text}: a model that has not seen a fold judges it. The bundled model learned from all windows."
    return h.paragraph(text) + h.table("Folds, of the bundled architecture", columns, rows)


def _names_of(groups: Sequence[str]) -> str:
    more = len(groups) - _MOST_HELD
    return ", ".join(map(str, groups[:_MOST_HELD])) + (f" and {more:,} more" if more > 0 else "")


def _both_figures(record: RunRecord, leak_free: Mapping[str, Any]) -> str:
    """Scores of the random split beside those of one in which no session stands on both sides."""
    columns = [Column("split by"), *(Column(n, "n") for n in ("recordings right", "macro F1", "windows right"))]
    rows = [
        (
            kind,
            h.percent(scores.get("accuracy")),
            h.number(scores.get("macro_f1")),
            h.percent(scores.get("window_accuracy")),
        )
        for kind, scores in (
            (record.split.get("kind"), record.scores),
            (leak_free.get("kind"), leak_free.get("scores") or {}),
        )
    ]
    return h.table("The same architecture, fitted and scored with each split", columns, rows)


def _count(names: Sequence[str] | None) -> str:
    return h.NOTHING if names is None else f"{len(names):,}"


def _by_class(counts: Mapping[str, int], labels: Sequence[str]) -> str:
    shown = [f"{label}: {counts.get(label, 0):,}" for label in labels[:_MOST_NAMES]]
    more = len(labels) - len(shown)
    return ", ".join(shown) + (f" and {more} more classes" if more > 0 else "")


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(map(str, names[:_MOST_NAMES]))
    more = len(names) - _MOST_NAMES
    return h.paragraph(f"{shown} and {more:,} more" if more > 0 else shown)


def candidates(record: RunRecord) -> str:
    """What was compared on the same split, and which was taken."""
    models = record.candidates
    if not models:
        return ""
    shown = [model for model in models if model.chosen] + [model for model in models if not model.chosen]
    shown = shown[:_MOST_CANDIDATES]
    columns = [Column("model"), *(Column(n, "n") for n in ("recordings right", "macro F1", "windows right", "loss"))]
    columns += [Column("time", "n"), Column("memory", "n"), Column("note")]
    caption = f"Compared {'in the same folds' if record.split.get('folds') else 'on the same validation windows'}"
    if len(shown) < len(models):
        caption += f"; {len(shown)} of {len(models)} shown"
    stressed = [i for i, model in enumerate(shown) if model.chosen]
    rows = [_candidate(model) for model in shown]
    if not any(model.note for model in shown):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    text = h.table(caption, columns, rows, stressed)
    settings = [(model.name, json.dumps(model.parameters, ensure_ascii=False)) for model in shown if model.parameters]
    if settings:
        text += h.details(
            "Their parameters", h.table("Parameters", [Column("model"), Column("parameters", "code")], settings)
        )
    return text


def _candidate(model: Candidate) -> tuple[str, ...]:
    scores = model.scores
    losses = [epoch["validation_loss"] for epoch in model.history if epoch.get("validation_loss") is not None]
    return (
        model.name + (" (bundled)" if model.chosen else ""),
        h.percent(scores.get("accuracy")),
        h.number(scores.get("macro_f1")),
        h.percent(scores.get("window_accuracy")),
        h.number(min(losses)) if losses else h.NOTHING,
        h.duration(model.seconds),
        f"{model.peak_mb:,.0f} MB" if model.peak_mb > 0 else h.NOTHING,
        model.note,
    )


def settings(record: RunRecord) -> str:
    """Parameters of the model and of its training, and the recipe."""
    blocks = []
    tables = (("Model", record.parameters), ("Training", record.training), ("Pooling over time", record.pooling))
    for name, values in tables:
        if values:
            rows = [(key, _value(value)) for key, value in values.items()]
            blocks.append(h.table(name, [Column("parameter"), Column("value", "code")], rows))
    text = h.figures(blocks)
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
    origin = record.lineage
    if not origin:
        return ""
    parts = [h.code(origin["command"])] if origin.get("command") else []
    inputs = origin.get("inputs") or []
    if inputs:
        shown = inputs[:_MOST_INPUTS]
        caption = h.counted(len(inputs), "input") + (f", {len(shown)} shown" if len(shown) < len(inputs) else "")
        columns = [Column("path"), Column("recordings", "n"), Column("SHA-256 of samples and labels", "code")]
        rows = [
            (source.get("path", ""), h.number(source.get("recordings")), source.get("sha256", h.NOTHING))
            for source in shown
        ]
        parts.append(h.table(caption, columns, rows))
    versions = {"python": origin.get("python"), **(origin.get("packages") or {})}
    rows_of_versions = [(name, version or h.NOTHING) for name, version in versions.items() if version]
    if rows_of_versions:
        parts.append(h.table("Versions", [Column("package"), Column("version")], rows_of_versions))
    others = {key: value for key, value in origin.items() if key not in ("command", "inputs", "packages", "python")}
    if others:
        facts = [(key.replace("_", " "), _value(value)) for key, value in others.items()]
        parts.append(h.table("Also", [Column("fact"), Column("value", "code")], facts))
    return "".join(parts)
