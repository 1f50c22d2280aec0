"""The trainer. In: a recipe and labelled recordings. Out: a bundle, its scores, and the record of the run.

Windows come from the very chain that runs live; steps that learn, learn from the training windows alone. Beside the
recipe's model MiniRocket is fitted on the raw windows of the same split, and the better on what was held out is
bundled: so one sees when a network is not worth it. Scores are of recordings held out, once or, with ``[train] folds``,
each in its turn; the bundle's model is then learned from all of them, for as many epochs as were best (`refit`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from models.bundle import Bundle, load_bundle
from models.data.examples import notes_on
from models.data.samples import is_stateful, split_chain
from models.pooling import Pool
from models.registry import write_bundle
from models.registry.manifest import MODEL
from models.training.export import Exported, export_model, export_stateful
from models.training.fit_and_judge import Fitted, fit, judge, peak_mb, pool_of
from models.training.folds import cross_validate
from models.training.lineage import LEARNED, learned_from, lineage_of, manifest_of, revision, split_of, versions
from models.training.record import Candidate, RunRecord, cross_validation
from models.training.request import DEFAULTS, OnStage, Run, TrainRequest, checkpoints, train_parameters
from models.training.search import search
from models.training.split_data import prepare
from models.zoo import Epoch, architecture, takes
from processors.recipe.load import Recipe
from streams.errors import TrainingError

_MOST_NOTES = 10  # of the readers


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What came of it."""

    bundle: Bundle  # written and read back
    # of the validation windows; empty where there are none. See :func:`models.evaluate.score_windows`
    scores: dict[str, Any]
    notes: list[str] = field(default_factory=list)  # what the user should know
    # all facts of the run; also ``report/run.json`` in the bundle
    record: RunRecord = field(default_factory=lambda: RunRecord(""))


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
    dataset = request.windows(recipe, split_chain(recipe.chain)[0])
    run = Run(recipe, request, settings, dataset, on_stage or (lambda name, epochs: on_epoch))
    with checkpoints(fingerprint(run)) as run.folder:
        found, pool = _candidates(run)
        chosen, choice = _choose(found, request.windows_of)
        final = _refitted(run, chosen)
        windows = final.training.windows
        if is_stateful(final.plan.parameters):
            exported = export_stateful(final.model, windows)
        else:
            exported = export_model(final.model, windows.shape[1:], windows)
        record = _record_of(run, found, chosen, choice, final, pool)
        record.split |= {"leak_free": other} if (other := _leak_free_scores(run, chosen, pool)) else {}
        record.seconds, record.peak_mb = time.monotonic() - started, peak_mb()
        bundle = _write_run(run, final, chosen, exported, pool, record)
    return Trained(bundle, chosen.scores, record.notes, record)


def fingerprint(run: Run) -> dict[str, Any]:
    """All that decides what comes of a run."""
    recipe, request = run.recipe, run.request
    assert recipe.model is not None
    model = (recipe.model.architecture, dict(recipe.model.parameters))
    tables = (recipe.labels, recipe.heads, recipe.train, recipe.chain.to_json(), dict(recipe.model.pool))
    asked = (request.only, request.search_minutes, sorted(request.without))
    return {"recipe": recipe.name, "model": model, "tables": tables, "asked": asked} | {
        "settings": run.settings,
        "inputs": run.dataset.inputs,
        "revision": revision(),
        # Another version's optimiser may keep other things, and its steps give other numbers.
        "packages": versions([name for one in (model[0], *run.beside) for name in architecture(one).packages]),
    }


def _candidates(run: Run) -> tuple[list[Fitted], Pool | None]:
    """The recipe's model first, then what a search tried, then MiniRocket or what else the recipe compares with."""
    recipe, settings = run.recipe, run.settings
    assert recipe.model is not None
    name = recipe.model.architecture
    if recipe.train.folds:
        return cross_validate(run, run.beside)
    chain = prepare(recipe, run.dataset.examples, settings["validation"], settings["seed"])
    pool, prepared = pool_of(recipe, chain.training, chain.labels), run.prepared_for(name, 0.0, chain)
    own = run.plan(name, recipe.model.parameters, "own")
    found = [fit(recipe, prepared, own, run.on_stage(name, settings["epochs"]))]
    if run.request.search_minutes:
        more, run.stopped = search(recipe, prepared, own, run.request.search_minutes, run.on_stage)
        found += more
    for other in run.beside if chain.validation else ():
        try:
            epochs = settings["epochs"] if takes(architecture(other)) == "chain" else 1
            plan = run.plan(other, {}, f"beside-{other}")
            found.append(fit(recipe, run.prepared_for(other, 0.0, chain), plan, run.on_stage(other, epochs)))
        except TrainingError as error:
            run.stopped.append(Candidate(other, note=str(error)))
    for one in found:
        judge(one, settings["calibrate"] and takes(type(one.model)) == "chain", pool)
    return found, pool


def _choose(found: list[Fitted], windows_of: str) -> tuple[Fitted, str]:
    """The best by what was held out, the recipe's own where another is not better; and a sentence about it.

    Where windows must be of one kind, those of the other come last.
    """
    own = found[0]
    if not own.scores:
        return own, f"{own.plan.name}: nothing was held out to compare by"

    def rank(one: Fitted) -> tuple[bool, float]:
        return windows_of in ("", takes(type(one.model))), one.rank

    best = max(found, key=rank)
    chosen = best if rank(best) > rank(own) else own
    others = ", ".join(f"{one.plan.name} {one.rank:.3f}" for one in found if one is not chosen)
    beside = f"; {others}" if others else ""
    where = f"over {cross_validation(split_of(chosen))}" if chosen.folds else "on what was held out"
    return chosen, f"bundled {chosen.plan.name}: {chosen.rank:.3f} {where}{beside}"


def _refitted(run: Run, chosen: Fitted) -> Fitted:
    """The chosen model, learned from all windows."""
    if not chosen.scores or not run.settings["refit"]:
        return chosen
    epochs = chosen.best_epochs
    plan = replace(chosen.plan, settings={**run.settings, "epochs": epochs})
    # Where the run was killed, a search may have chosen another one by now: each has a folder of its own.
    plan = replace(plan, checkpoints=run.folder / f"refit-{plan.digest}" if run.folder else None)
    prepared = run.prepared_for(plan.architecture, 0.0)
    return fit(run.recipe, prepared, plan, run.on_stage(f"{plan.name}, all windows", epochs))


def _leak_free_scores(run: Run, chosen: Fitted, pool: Pool | None) -> dict[str, Any]:
    """Scores of the chosen architecture on a split without leaks."""
    if chosen.prepared.split.kind != "window" or not chosen.scores:
        return {}
    name, settings = chosen.plan.architecture, run.settings
    for kind in ("session", "time"):
        recipe = replace(run.recipe, train=replace(run.recipe.train, split=kind))
        chain = prepare(recipe, run.dataset.examples, settings["validation"], settings["seed"])
        if not chain.validation:
            continue
        plan = run.plan(name, chosen.plan.parameters, "leak_free")
        on_epoch = run.on_stage(f"{name}, split by {kind}", settings["epochs"])
        found = fit(recipe, run.prepared_for(name, 0.0, chain), plan, on_epoch)
        judge(found, settings["calibrate"] and found.prepared.takes == "chain", pool)
        return {"kind": kind, "scores": found.scores}
    return {}


def _record_of(
    run: Run, found: list[Fitted], chosen: Fitted, choice: str, final: Fitted, pool: Pool | None
) -> RunRecord:
    """All facts of a run but its time and memory."""
    recipe = run.recipe
    candidates = [one.candidate() for one in found]
    candidates[found.index(chosen)].chosen = True
    lineage = lineage_of(recipe, run.request, run.dataset, chosen)
    return RunRecord(
        recipe=recipe.name,
        recipe_text=recipe.path.read_text(encoding="utf-8-sig") if recipe.path else "",
        architecture=chosen.plan.architecture,
        parameters=chosen.model.parameters,
        training=lineage["train"],
        history=chosen.history,
        split=split_of(chosen),
        scores=chosen.scores,
        held_out=chosen.held_out(),
        candidates=[*candidates, *run.stopped],
        choice=choice,
        lineage={**lineage, "seed": run.settings["seed"], "revision": revision()},
        pooling=pool.to_json() if pool else {},
        notes=_notes(run, chosen, final),
    )


def _write_run(
    run: Run, final: Fitted, chosen: Fitted, exported: Exported, pool: Pool | None, record: RunRecord
) -> Bundle:
    """Write the bundle of `final`, with the scores of `chosen`, its report and what else is to be saved; read it back."""
    from models.reports.report import RECORD, bundle_report

    lineage = {key: value for key, value in record.lineage.items() if key not in ("seed", "revision")}
    lineage[LEARNED] = learned_from(run.dataset)
    facts = {"history": chosen.history, "validation": chosen.scores, "parity": exported.parity}
    said = json.dumps({**facts, "notes": dict(run.dataset.notes)}, indent=1) + "\n"
    if run.request.report:
        attached = bundle_report(record, chosen.window)
    else:
        attached = {f"report/{RECORD}": record.to_json().encode("utf-8", "backslashreplace")}
    path = write_bundle(
        run.request.out,
        manifest_of(run.recipe, final, chosen, exported, pool, lineage),
        {MODEL: exported.model, "report/report.json": said.encode()},
        attached=attached,
        promote=run.request.promote,
    )
    if run.request.history_out:
        _save(run.request.history_out, (json.dumps(chosen.history, indent=1) + "\n").encode())
    if run.request.weights_out:
        own = getattr(final.model, "weights", None)
        _save(run.request.weights_out, own() if callable(own) else exported.model)
    return load_bundle(path)


def _save(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written ({error.strerror}); choose another place") from None


def _notes(run: Run, chosen: Fitted, final: Fitted) -> list[str]:
    notes = [f"{text} ({count} times)" if count > 1 else text for text, count in run.dataset.notes.items()]
    if len(notes) > _MOST_NOTES:
        left = len(notes) - _MOST_NOTES
        notes = [*notes[:_MOST_NOTES], f"and {left} more notes on the data; `kymo dataset show` gives all of them"]
    if not chosen.scores:
        notes.append(
            "nothing was held out, so there are no scores: no recording can be spared, or [train] validation = 0"
        )
    said = [text for one in (chosen, final) for text in getattr(one.model, "notes", [])]
    return [*notes, *notes_on(chosen.prepared.heads), *dict.fromkeys(said)]


__all__ = ["DEFAULTS", "TrainRequest", "Trained", "fingerprint", "prepare", "train", "train_parameters"]
