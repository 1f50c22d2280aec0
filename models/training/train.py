"""The trainer. In: a recipe and labelled recordings. Out: a bundle, its scores, and the record of the run.

Windows come from the very chain that runs live; steps that learn, learn from the training windows alone. Beside the
recipe's model MiniRocket is fitted on the raw windows of the same split, and the better is bundled: so one sees when a
network is not worth it. Scores are of recordings held out, once or each in its turn, that had no say in any choice
(:mod:`kymo.models.training.candidates`); the bundle's model is then learned from all of them (`refit`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kymo.models.bundle import Bundle, load_bundle
from kymo.models.data.bins import settle_bins
from kymo.models.data.examples import Dataset, notes_on
from kymo.models.data.samples import is_stateful, split_chain
from kymo.models.data.splits import notes_on_split, session_of
from kymo.models.pooling import Pool
from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.models.reports import html as h
from kymo.models.reports.report import RECORD, bundle_report
from kymo.models.scores import Scores
from kymo.models.training.candidates import choose, fit_candidates, judge_leak_free
from kymo.models.training.export import Exported, export_model, export_stateful, with_metadata
from kymo.models.training.fit_and_judge import FittedModel, fit, peak_mb
from kymo.models.training.lineage import LEARNED, learned_from, lineage_of, manifest_of, revision, split_of, versions
from kymo.models.training.record import RunRecord, cross_validation
from kymo.models.training.request import OnStage, TrainingRun, TrainRequest, checkpoints, train_parameters
from kymo.models.zoo import Epoch, architecture
from kymo.processors.recipe.load import Recipe
from kymo.streams.errors import TrainingError

_MOST_NOTES = 10  # of the readers
#: How files with the weights of a framework end.
_WEIGHTS = {"keras": "weights.h5", "tensorflow": "weights.h5", "torch": "pt"}


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What came of a training run."""

    bundle: Bundle  # written and read back
    # of the validation windows; empty where there are none. See :func:`kymo.models.evaluate.score_windows`
    scores: Scores
    notes: list[str] = field(default_factory=list)  # what the user should know
    # all facts of the run; also ``report/run.json`` in the bundle
    record: RunRecord = field(default_factory=lambda: RunRecord(""))

    @property
    def report(self) -> Path:
        """The page with figures."""
        return self.bundle.path / "report" / "report.html"

    def _repr_html_(self) -> str:
        scores = self.scores._repr_html_() if self.scores else h.paragraph("nothing was held out")
        return h.paragraph(f"{self.bundle.id}, report: {self.report}") + scores + h.listed(self.notes)


def train(
    recipe: Recipe,
    request: TrainRequest,
    on_epoch: Callable[[Epoch], None] = lambda _: None,  # told the numbers of each epoch of every fit
    on_stage: OnStage | None = None,  # told what begins; gives what is told its epochs, instead of `on_epoch`
) -> Trained:
    """Train a recipe's model and write its bundle.

    Killed and started again with the same recipe, request and data, it goes on behind the last whole epoch and gives the
    same bundle; `--search` begins anew.
    """
    started = time.monotonic()
    settings = train_parameters(recipe, request)
    dataset = request.windows(recipe, split_chain(recipe.chain)[0], on_stage)
    recipe = settle_bins(recipe, dataset)
    run = TrainingRun(
        recipe,
        request,
        settings,
        dataset,
        on_stage or (lambda name, _: on_epoch if name != "reading" else lambda _: None),
    )
    with checkpoints(fingerprint(run)) as run.folder:
        candidates, pool = fit_candidates(run)
        winner, judged, choice = _choose(candidates, request.windows_of)
        final = _refit(run, winner)
        exported = _export(final)
        record = _record_of(run, candidates, (winner, judged), choice, final, pool)
        if judged.data.split.kind == "window" and judged.scores:
            plan = run.plan(winner.plan.architecture, winner.plan.parameters, "leak_free")
            plain = judge_leak_free(run, plan, judged.data.split)
            record.split["leak_free"] = {"kind": plain.data.split.kind, "scores": plain.scores}
        record.seconds, record.peak_mb = time.monotonic() - started, peak_mb()
        bundle = _write_run(run, final, judged, exported, pool, record)
    return Trained(bundle, Scores(judged.scores), record.notes, record)


def fingerprint(run: TrainingRun) -> dict[str, Any]:
    """All that decides what comes of a run."""
    recipe, request = run.recipe, run.request
    assert recipe.model is not None
    model = (recipe.model.architecture, dict(recipe.model.parameters))
    tables = (recipe.labels, recipe.heads, recipe.train, recipe.chain.to_json(), recipe.model.pool)
    options = (request.only, request.search_minutes, sorted(request.without))
    return {"recipe": recipe.name, "model": model, "tables": tables, "asked": options} | {
        "settings": run.settings,
        "inputs": run.dataset.inputs,
        "windows": _digest(run.dataset),
        "revision": revision(),
        # Another version's optimiser may keep other things, and its steps give other numbers.
        "packages": versions([package for name in (model[0], *run.beside) for package in architecture(name).packages]),
    }


def _digest(dataset: Dataset) -> str:
    """Digest what decides on which side a window stands, and what is learned of it; its samples are told by the inputs."""
    digest = hashlib.sha256()
    for example in (*dataset.examples, *dataset.unlabelled):
        known = (sorted(example.metadata.items()), sorted(example.targets.items()))
        facts = (session_of(example), example.subject, example.window.start_ns, example.label, known)
        digest.update(repr(facts).encode())
    return digest.hexdigest()


def _choose(candidates: list[FittedModel], windows_of: str) -> tuple[FittedModel, FittedModel, str]:
    """The best, what the choice said of what was held out, and a sentence about it."""
    of_recipe = candidates[0]
    if not of_recipe.scores:
        return of_recipe, of_recipe, f"{of_recipe.plan.name}: nothing was held out to compare by"
    winner, judged = choose(candidates, windows_of)
    folds = cross_validation(split_of(winner))

    def place(candidate: FittedModel) -> float:
        return candidate.rank if folds else candidate.stop_rank

    losers = ", ".join(f"{loser.plan.name} {place(loser):.3f}" for loser in candidates if loser is not winner)
    if not losers:
        return winner, judged, f"bundled {winner.plan.name}"
    where = f"over {folds}" if folds else "of windows kept apart for the choice"
    mean = "the mean of accuracy, macro F1 and windows right" if "accuracy" in winner.scores else "the mean R2"
    return winner, judged, f"bundled {winner.plan.name}: {place(winner):.3f}, {mean} {where}; {losers}"


def _refit(run: TrainingRun, winner: FittedModel) -> FittedModel:
    """The model that won, learned from all windows."""
    if not winner.scores or not run.settings["refit"]:
        return winner
    epochs = winner.epochs
    plan = replace(winner.plan, settings={**run.settings, "epochs": epochs})
    # Where the run was killed, a search may have chosen another one by now: each has a folder of its own.
    plan = replace(plan, checkpoints=run.folder / f"refit-{plan.digest}" if run.folder else None)
    on_epoch = run.on_stage(f"{plan.name}, all windows", epochs)
    return fit(run.recipe, run.data_for(plan.architecture), plan, on_epoch)


def _export(final: FittedModel) -> Exported:
    windows = final.training.windows
    if is_stateful(final.plan.parameters):
        return export_stateful(final.model, windows)
    return export_model(final.model, windows.shape[1:], windows)


def _record_of(
    run: TrainingRun,
    fits: list[FittedModel],
    pair: tuple[FittedModel, FittedModel],  # the best, and with the scores of the choice
    choice: str,
    final: FittedModel,
    pool: Pool | None,
) -> RunRecord:
    """All facts of a run but its time and memory."""
    recipe, (best, winner) = run.recipe, pair
    candidates = [fitted.candidate() for fitted in fits]
    candidates[fits.index(best)].chosen = True
    lineage = lineage_of(recipe, run.request, run.dataset, winner)
    return RunRecord(
        recipe=recipe.name,
        recipe_text=recipe.path.read_text(encoding="utf-8-sig") if recipe.path else "",
        architecture=winner.plan.architecture,
        parameters=winner.model.parameters,
        training=lineage["train"],
        history=winner.history,
        split=split_of(winner),
        scores=winner.scores,
        held_out=winner.to_held_out(),
        candidates=[*candidates, *run.stopped],
        choice=choice,
        lineage={**lineage, "seed": run.settings["seed"], "revision": revision()},
        pooling=pool.to_json() if pool else {},
        notes=_notes(run, winner, final),
    )


def _write_run(
    run: TrainingRun, final: FittedModel, winner: FittedModel, exported: Exported, pool: Pool | None, record: RunRecord
) -> Bundle:
    """Write the bundle of `final`, with the scores of `winner`, its report and what else is to be saved; read it back."""
    lineage = {key: value for key, value in record.lineage.items() if key not in ("seed", "revision")}
    lineage[LEARNED] = learned_from(run.dataset)
    facts = {"history": winner.history, "validation": winner.scores, "parity": exported.parity}
    facts_text = json.dumps({**facts, "notes": dict(run.dataset.notes)}, indent=1) + "\n"
    if run.request.report:
        attached = bundle_report(record, winner.window)
    else:
        attached = {f"report/{RECORD}": record.to_json().encode("utf-8", "backslashreplace")}
    manifest, stream = manifest_of(run.recipe, final, winner, exported, pool, lineage), run.recipe.input_format()
    manifest |= {"lengths": run.dataset.lengths} if run.dataset.lengths else {}
    windows = final.data.chain.output({stream.stream: stream})
    path = write_bundle(
        run.request.out,
        manifest,
        {MODEL: with_metadata(exported.model, manifest, windows), "report/report.json": facts_text.encode()},
        attached=attached,
        promote=run.request.promote and not unfit(winner.scores),
    )
    weights_out, history_out = _places(run, final)
    if history_out:
        _save(history_out, (json.dumps(winner.history, indent=1) + "\n").encode())
    if weights_out:
        weights = getattr(final.model, "weights", None)
        _save(weights_out, weights() if callable(weights) else exported.model)
    return load_bundle(path)


def _places(run: TrainingRun, final: FittedModel) -> tuple[Path | None, Path | None]:
    """Where weights and history go: as the request says, else into the folder that ``[train] results`` names."""
    weights, history, folder = run.request.weights_out, run.request.history_out, run.settings["results"]
    if folder:
        own = "npz" if hasattr(final.model, "weights") else "onnx"
        kind = next((_WEIGHTS[name] for name in final.model.packages if name in _WEIGHTS), own)
        weights = weights or Path(folder) / "model_weights" / f"{run.recipe.name}.{kind}"
        history = history or Path(folder) / "model_history" / f"{run.recipe.name}.json"
    return weights, history


def unfit(scores: Mapping[str, Any]) -> str:
    """Why a model is promoted by nobody but a person; empty where nothing was held out, or it is better than guessing."""
    heads = [head for head in scores.get("heads", {}).values() if head.get("n")] if "accuracy" not in scores else []
    if heads and all("r2" in head and head["r2"] is not None and head["r2"] <= 0 for head in heads):
        return "on what was held out no number is told better than by always saying their mean (R2 is 0 or less)"
    if scores.get("beats_guessing") is not False:
        return ""
    common = scores["commonest"]
    return (
        f"on what was held out it is no better than guessing by more than chance: right in {scores['accuracy']:.1%} of recordings, "
        f"always saying {common['label']} in {common['accuracy']:.1%}"
    )


def _save(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written ({error.strerror}); choose another place") from None


def _notes(run: TrainingRun, winner: FittedModel, final: FittedModel) -> list[str]:
    notes = run.dataset.note_lines()
    if len(notes) > _MOST_NOTES:
        more = len(notes) - _MOST_NOTES
        notes = [*notes[:_MOST_NOTES], f"and {more} more notes on the data; `kymo dataset show` gives all of them"]
    if not winner.scores:
        notes.append(
            "nothing was held out, so there are no scores: no recording can be spared, or [train] validation = 0"
        )
    of_models = [text for fitted in (winner, final) for text in getattr(fitted.model, "notes", [])]
    notes += notes_on_split(run.dataset.examples, run.recipe.train)
    return [*notes, *notes_on(winner.data.heads), *dict.fromkeys(of_models)]


__all__ = ["TrainRequest", "Trained", "fingerprint", "train"]
