"""The trainer. In: a recipe and labelled recordings. Out: a bundle, its scores, and the record of the run.

Windows come from the very chain that runs live; steps that learn, learn from the training windows alone. Beside the
recipe's model MiniRocket is fitted on the raw windows of the same split, and the better on what was held out is
bundled: so one sees when a network is not worth it. Scores are of recordings held out, once or, with ``[train] folds``,
each in its turn; the bundle's model is then learned from all of them, for as many epochs as were best (`refit`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from models.bundle import Bundle
from models.data.samples import is_stateful, split_chain
from models.pooling import Pool
from models.training.candidate import Fitted, fit, judge, peak_mb, pool_of
from models.training.checkpoints import checkpoints
from models.training.export import export_model
from models.training.finish import record_of, write_run
from models.training.folds import cross_validate
from models.training.leak_free import leak_free_scores
from models.training.lineage import split_of
from models.training.record import Candidate, RunRecord, cross_validation
from models.training.request import DEFAULTS, OnStage, Run, TrainRequest, train_parameters
from models.training.search import search
from models.training.sides import prepare
from models.training.stateful_export import export_stateful
from models.zoo import Epoch, architecture, takes
from processors.recipe.load import Recipe
from streams.errors import TrainingError


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
    with checkpoints(run.decisive()) as run.folder:
        found, pool = _candidates(run)
        chosen, choice = _choose(found, request.windows_of)
        final = _refitted(run, chosen)
        windows = final.training.windows
        if is_stateful(final.plan.parameters):
            exported = export_stateful(final.model, windows)
        else:
            exported = export_model(final.model, windows.shape[1:], windows)
        record = record_of(run, found, chosen, choice, final, pool)
        record.split |= {"leak_free": other} if (other := leak_free_scores(run, chosen, pool)) else {}
        record.seconds, record.peak_mb = time.monotonic() - started, peak_mb()
        bundle = write_run(run, final, chosen, exported, pool, record)
    return Trained(bundle, chosen.scores, record.notes, record)


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


__all__ = ["DEFAULTS", "TrainRequest", "Trained", "prepare", "train", "train_parameters"]
