"""A report's sections on what was done. In: the record of a run. Out: HTML: split, candidates, settings, lineage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kymo.models.reports import html as h
from kymo.models.training.record import Candidate, RunRecord, cross_validation
from kymo.streams.words import some

_MOST_NAMES, _MOST_INPUTS, _MOST_CANDIDATES, _MOST_HELD = 60, 100, 40, 6
#: Columns of a model's scores in brief, for :func:`_scores`.
_SCORES = h.numbers("recordings right", "macro F1", "windows right")


def _scores(scores: Mapping[str, Any]) -> tuple[Any, ...]:
    return h.percent(scores.get("accuracy")), scores.get("macro_f1"), h.percent(scores.get("window_accuracy"))


def render_split(record: RunRecord) -> str:
    facts, folds = record.split, cross_validation(record.split)
    kind, seed = facts.get("kind"), facts.get("seed")
    sides = {side: facts.get(side) or {} for side in ("training", "validation")}
    if not kind and not any(sides.values()):
        return ""
    text = h.paragraph(f"Split by {kind}{f', seed {seed}' if seed is not None else ''}.") if kind else ""
    if kind == "window":
        text += h.paragraph("Windows of one session stand on both sides: new sessions score lower than these.", "note")
    if leak_free := facts.get("leak_free"):
        rows = [(kind, *_scores(record.scores)), (leak_free.get("kind"), *_scores(leak_free.get("scores") or {}))]
        text += h.table("The same architecture, fitted and scored with each split", {"split by": "", **_SCORES}, rows)
    if folds:
        text += _folds(facts["folds"], folds)
        sides = {"all": sides["validation"]}
    labels = list(dict.fromkeys(label for side in sides.values() for label in side.get("labels") or {}))
    rows = []
    for name, side in sides.items():
        counts, groups = side.get("labels") or {}, side.get("groups")
        by_class = some([f"{label}: {counts.get(label, 0):,}" for label in labels], _MOST_NAMES)
        rows.append((name, None if groups is None else len(groups), side.get("windows"), by_class))
    columns = {"side": "", **h.numbers("groups", "windows"), "windows by class": ""}
    text += h.table("All windows" if folds else "The two sides", columns, rows)
    for name, side in sides.items():
        if groups := side.get("groups"):
            text += h.details(f"Groups in {name} ({len(groups):,})", h.paragraph(some(groups, _MOST_NAMES)))
    return text


def _folds(folds: list[dict[str, Any]], words: str) -> str:
    """What each part of a cross-validation held out, and how it was judged."""
    columns = {"fold": "", "held out": "", **h.numbers("learned from", "stopped by", "judged", "epochs"), **_SCORES}
    rows = [
        (
            str(i),
            some(fold.get("groups") or [], _MOST_HELD),
            *(fold.get(key) for key in ("training", "validation", "windows", "epochs")),
            *_scores(fold),
        )
        for i, fold in enumerate(folds, 1)
    ]
    text = f"Scores are over {words}: a model that has not seen a fold judges it. The bundled model learned from all windows."
    return h.paragraph(text) + h.table("Folds, of the bundled architecture", columns, rows)


def render_candidates(record: RunRecord) -> str:
    """What was compared on the same split, and which was taken."""
    models = sorted(record.candidates, key=lambda model: not model.chosen)
    shown = models[:_MOST_CANDIDATES]
    if not shown:
        return ""
    caption = f"Compared {'in the same folds' if record.split.get('folds') else 'on the same validation windows'}"
    if len(shown) < len(models):
        caption += f"; {len(shown)} of {len(models)} shown"
    columns = {"model": "", **_SCORES, **h.numbers("loss", "time", "memory"), "note": ""}
    rows = [_candidate(model) for model in shown]
    if not any(model.note for model in shown):
        del columns["note"]
        rows = [row[:-1] for row in rows]
    text = h.table(caption, columns, rows, [i for i, model in enumerate(shown) if model.chosen])
    settings = [(model.name, json.dumps(model.parameters, ensure_ascii=False)) for model in shown if model.parameters]
    if settings:
        table = h.table("Parameters", {"model": "", "parameters": "code"}, settings)
        text += h.details("Their parameters", table)
    return text


def _candidate(model: Candidate) -> tuple[Any, ...]:
    losses = [epoch["validation_loss"] for epoch in model.history if epoch.get("validation_loss") is not None]
    return (
        model.name + (" (bundled)" if model.chosen else ""),
        *_scores(model.scores),
        min(losses, default=None),
        h.duration(model.seconds),
        f"{model.peak_mb:,.0f} MB" if model.peak_mb > 0 else None,
        model.note,
    )


def render_settings(record: RunRecord) -> str:
    tables = {"Model": record.parameters, "Training": record.training, "Pooling over time": record.pooling}
    text = h.figures([_values(name, "parameter", values) for name, values in tables.items() if values])
    return text + (h.details("The recipe", h.code(record.recipe_text)) if record.recipe_text else "")


def _values(caption: str, of: str, values: Mapping[str, Any]) -> str:
    return h.table(caption, {of: "", "value": "code"}, [(name, _value(value)) for name, value in values.items()])


def _value(value: Any) -> str:
    if value in ("", None):
        return h.NOTHING
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 400 else f"{text[:400]}… ({len(text):,} characters)"


def render_lineage(record: RunRecord) -> str:
    """Inputs with their checksums, versions, seed: what it takes to make the same again."""
    facts = dict(record.lineage)
    command, inputs = facts.pop("command", ""), facts.pop("inputs", None) or []
    versions = {"python": facts.pop("python", None), **(facts.pop("packages", None) or {})}
    text = h.code(command) if command else ""
    if inputs:
        caption = h.counted(len(inputs), "input")
        if len(inputs) > _MOST_INPUTS:
            caption += f", {_MOST_INPUTS} shown"
        columns = {"path": "", "recordings": "n", "SHA-256 of samples and labels": "code"}
        rows = [(x.get("path", ""), x.get("recordings"), x.get("sha256")) for x in inputs[:_MOST_INPUTS]]
        text += h.table(caption, columns, rows)
    if known := [(name, version) for name, version in versions.items() if version]:
        text += h.table("Versions", {"package": "", "version": ""}, known)
    return text + (_values("Also", "fact", {name.replace("_", " "): v for name, v in facts.items()}) if facts else "")
