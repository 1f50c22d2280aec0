"""The report of a training run or of an evaluation. In: its :class:`RunRecord`. Out: one HTML page, and PNG figures.

The page stands alone: figures and styles are in it, it fetches nothing and runs no script. Equal records give equal
bytes (for one version of matplotlib); time and memory stand in the record, so that the files of two equal runs differ.
A bundle therefore leaves its report out of its digest.
"""

from __future__ import annotations

import itertools
import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kymo.models.bundle import Bundle
from kymo.models.evaluate import JudgedWindow, Judgement, judge_recordings
from kymo.models.reports import html as h
from kymo.models.reports import numbers, performance
from kymo.models.reports.numbers import JudgedWindows
from kymo.models.reports.performance import Gallery
from kymo.models.scores import interval_line
from kymo.models.training.record import Candidate, RunRecord, cross_validation
from kymo.processors.recipe.load import Recipe
from kymo.streams.chunk import Array, Window
from kymo.streams.errors import TrainingError
from kymo.streams.recording import Recording
from kymo.streams.words import NS, grouped, some

PAGE = "report.html"
RECORD = "run.json"
_WORST = 6
_MOST_NAMES, _MOST_INPUTS, _MOST_CANDIDATES, _MOST_HELD = 60, 100, 40, 6
#: Columns of a model's scores in brief, for :func:`_scores`.
_SCORES = h.numbers("recordings right", "macro F1", "windows right")


class Picture(NamedTuple):
    """What a window holds, to be drawn."""

    data: Array  # ``(time, channels)``, ``(time, bins, channels)`` or ``(time, height, width, channels)``
    channels: tuple[str, ...]  # names of the last axis
    seconds: tuple[float, float]  # since the session's index 0


def picture_of(window: Window) -> Picture:
    """A window as it is; its numbers are copied, so that nothing larger is held on to."""
    header = window.header
    start_s, end_s = ((time_ns - header.origin_ns) / NS for time_ns in (window.start_ns, window.end_ns))
    return Picture(window.data.copy(), header.format.channels, (start_s, end_s))


def worst_windows(record: RunRecord, count: int = _WORST) -> list[int]:
    """Numbers of the held-out windows whose wrong answers are the surest: those to draw, in order."""
    judged = _judged(record)
    return numbers.worst(judged.truth, judged.probabilities, count) if judged else []


def _judged(record: RunRecord) -> JudgedWindows | None:
    held = record.held_out
    return JudgedWindows.of(held.labels, held.y_true, held.probabilities, held.sessions, held.subjects)


def pictures(record: RunRecord, window_of: Callable[[int], Window]) -> dict[int, Picture]:
    """The worst windows; `window_of` gives a held-out window by its number in the record, and is asked for these alone."""
    return {i: picture_of(window_of(i)) for i in worst_windows(record)}


def report_files(
    record: RunRecord, drawn: Mapping[int, Picture] | None = None, title: str | None = None
) -> dict[str, bytes]:
    gallery, judged = Gallery(), None if record.held_out.numbers_alone else _judged(record)
    sections: Sequence[tuple[str, str]] = [
        ("Learning curves", performance.render_curves(record, gallery)),
        (
            "" if record.held_out.numbers_alone else "Confusion",
            performance.render_confusion(record.scores, judged, gallery),
        ),
        ("Classes", performance.render_per_class(record.scores, judged)),
        (f"{judged.kind.capitalize()}s" if judged else "", performance.render_per_group(judged, gallery)),
        ("Reliability", performance.render_reliability(judged, gallery)),
        ("Worst windows", _worst(record, judged, drawn or {}, gallery)),
        *performance.head_sections(record, gallery),
        ("Models compared", render_candidates(record)),
        ("Split", render_split(record)),
        ("Settings", render_settings(record)),
        ("Lineage", render_lineage(record)),
    ]
    heading = title or f"{record.recipe}{f': {record.architecture}' if record.architecture else ''}"
    beside = " Its figures stand beside this file as PNG." if gallery.files else ""
    foot = f"Made by Kymo.{beside} Intervals by group are of 95 %, as if its windows were independent."
    page = h.page(heading, _lead(record, judged, gallery), sections, foot)
    return {PAGE: page.encode(), **gallery.files}


def bundle_report(record: RunRecord, window_of: Callable[[int], Window] | None = None) -> dict[str, bytes]:
    """A report as a bundle holds it: contents by name, each in the folder ``report``, the record itself among them."""
    files = report_files(record, pictures(record, window_of) if window_of else None)
    # File names may bring halves of characters, which JSON can say but UTF-8 cannot.
    text = record.to_json().encode("utf-8", "backslashreplace")
    return {f"report/{name}": data for name, data in {RECORD: text, **files}.items()}


def write_report(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write a report's files into a folder, which is made; the path of the page."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise TrainingError(
            f"{folder}: the report cannot be written ({error.strerror}); choose another folder or free space"
        ) from None
    return folder / PAGE


def _lead(record: RunRecord, judged: JudgedWindows | None, gallery: Gallery) -> str:
    parts = [h.paragraph(record.choice)] if record.choice else []
    parts.append(performance.render_summary(record.scores, judged, record.seconds, record.peak_mb))
    notes = [*_on_scores(record.scores), *record.notes]
    if leak_free := record.split.get("leak_free"):
        right = h.percent((leak_free.get("scores") or {}).get("window_accuracy"))
        notes.insert(
            0,
            f"These scores leak: split by {leak_free.get('kind')} instead of by window, {right} of windows are right.",
        )
    if judged is None and not record.held_out.numbers_alone:
        notes.insert(0, "No window was held out: there is nothing to say of new data.")
    if gallery.missing:
        notes.append("Figures are missing, since matplotlib is not installed: pip install 'kymo-streams[report]'.")
    parts += [h.paragraph(note, "note") for note in notes[:20]]
    if more := notes[20:]:
        parts.append(h.details(f"{len(more)} more notes", h.listed(more[:500])))
    return "".join(parts)


def _on_scores(scores: Mapping[str, Any]) -> list[str]:
    limits, notes = scores.get("interval") or {}, []
    if missing := scores.get("not_judged"):
        notes.append(f"Not judged: {', '.join(missing)}. No recording of that is among these, so no score counts it.")
    if (better := scores.get("beats_guessing", True)) is None:
        notes.append("One class alone is judged: nothing tells whether this is better than guessing.")
    elif not better:
        notes.append("No better than guessing by more than chance.")
    if limits and "accuracy" not in limits:
        notes.append(f"{interval_line(limits)}.")
    if limits.get("kind") == "session":
        notes.append("Nobody is named, so scores are of new recordings; new people may be told worse.")
    return notes


def _worst(record: RunRecord, judged: JudgedWindows | None, drawn: Mapping[int, Picture], gallery: Gallery) -> str:
    """The wrong answers that were the surest, each with its window."""
    if judged is None:
        return ""
    worst = worst_windows(record)
    if not worst:
        return h.paragraph("No window was answered wrongly.")
    wrong = int((judged.truth != judged.answers).sum())
    several = f"The {len(worst)} of {wrong:,} wrongly answered windows of whose answer the model was surest."
    text = several if wrong > 1 else "One window was answered wrongly."
    # Of signals six channels are drawn, of spectrograms three.
    if any(
        len(picture.channels) > (6 if picture.data.ndim == 2 else 3)
        for picture in drawn.values()
        if picture.data.ndim < 4
    ):
        text += " The first of their channels are drawn."
    lead = h.paragraph(text)
    items = [(i, _sentence(record, judged, i, drawn.get(i))) for i in worst]
    shown = [
        gallery.show("window_picture", f"worst_{place}", text, text, *picture)
        for place, (i, text) in enumerate(items, 1)
        if (picture := drawn.get(i))
        and picture.data.ndim >= 2
        and picture.data.size
        and picture.data.dtype.kind in "fiub"
    ]
    return lead + (h.figures(shown) or h.listed(text for _, text in items))


def _sentence(record: RunRecord, judged: JudgedWindows, i: int, picture: Picture | None) -> str:
    windows, answer = record.held_out, int(judged.answers[i])
    when = "{:.2f} to {:.2f} s".format(*picture.seconds) if picture else f"from sample {windows.start_index[i]}"
    who = f" ({windows.subjects[i]})" if windows.subjects[i] and windows.subjects[i] != windows.sessions[i] else ""
    truth, sure = judged.labels[int(judged.truth[i])], judged.probabilities[i]
    of_truth = sure[int(judged.truth[i])] if int(judged.truth[i]) < len(sure) else float("nan")
    return (
        f"{windows.sessions[i]}{who}, {when}: {truth} taken for {judged.labels[answer]} with {h.percent(sure[answer])} "
        f"({truth} {h.percent(of_truth)})."
    )


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


def evaluate_with_report(
    recipe: Recipe, bundle: Bundle, recordings: Iterable[Recording]
) -> tuple[Judgement, dict[str, bytes]]:
    """What a bundle says of recordings, and a report of its scores."""
    worst: dict[tuple[float, int], Picture] = {}  # by less of the probability, and number
    numbers_of = itertools.count()

    def keep_worst(judged: JudgedWindow) -> None:
        """Of all windows only the worst are kept."""
        probabilities, number = judged.event.probabilities, next(numbers_of)
        answer = max(probabilities, key=lambda label: probabilities[label], default="")
        place = -probabilities.get(answer, 0.0), number
        if place[0] < 0 and answer != judged.truth and (len(worst) < _WORST or place < max(worst)):
            worst[place] = picture_of(judged.window)
            if len(worst) > _WORST:
                del worst[max(worst)]

    judgement = judge_recordings(recipe, bundle, recordings, keep_worst)
    scores = judgement.scores()
    architecture = bundle.manifest.get("architecture", {})
    record = RunRecord(
        recipe=recipe.name,
        recipe_text=recipe.path.read_text(encoding="utf-8-sig") if recipe.path else "",
        architecture=str(architecture.get("name", "")),
        parameters=dict(architecture.get("parameters", {})),
        scores={key: value for key, value in scores.items() if key != "bundle"},
        held_out=judgement.held_out,
        lineage=_lineage(bundle, judgement.inputs),
        pooling=dict(bundle.manifest.get("pool", {})),
        notes=_notes(scores),
    )
    drawn = {number: picture for (_, number), picture in worst.items()}
    return judgement, report_files(record, drawn, f"{bundle.id}: evaluation")


def _lineage(bundle: Bundle, inputs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    origin = bundle.manifest.get("lineage", {})
    return {
        "inputs": [{"path": path, **facts} for path, facts in inputs.items()],
        "python": platform.python_version(),
        "bundle": bundle.id,
        "trained by": origin.get("command", ""),
        "trained on": ", ".join(str(source.get("path", "")) for source in origin.get("inputs", [])),
    }


def _notes(scores: dict[str, Any]) -> list[str]:
    notes = grouped(scores.get("doubts", {}).items())
    if scores["unclassified"]:
        notes.append(f"{h.counted(scores['unclassified'], 'recording')} without a window, counted as wrong.")
    if scores["unknown_windows"]:
        notes.append(
            f"{h.counted(scores['unknown_windows'], 'window')} below min_probability: events say `unknown`; here the most "
            f"probable class counts."
        )
    return notes
