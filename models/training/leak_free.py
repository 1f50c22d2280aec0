"""The other figure of a split that leaks. In: a run whose windows were split at random. Out: scores of a split that does not.

Windows of one session resemble each other and may share samples, so that scores of a random split say how well the
model does on these sessions, not on new ones. Where a recipe asks for that split all the same, the chosen architecture
is fitted once more on a split by session (by time, where no session can be spared) and scored there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from models.pooling import Pool
from models.training.candidate import Fitted, fit, judge
from models.training.request import Run
from models.training.sides import prepare


def leak_free_scores(run: Run, chosen: Fitted, pool: Pool | None) -> dict[str, Any]:
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
