"""Search. In: an architecture's ranges, a time budget. Out: fits with other parameters, those without a chance cut short.

Random search (Bergstra and Bengio 2012, Random Search for Hyper-Parameter Optimization) with a seed: the n-th trial has
the same parameters in every run; how many there are depends on the time. A trial is stopped once its best validation
loss is worse than the median of what the others had reached at the same epoch (Golovin et al. 2017, Google Vizier).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from models.training.fit_and_judge import Fitted, Plan, fit, peak_mb
from models.training.record import Candidate
from models.training.split_data import Prepared
from models.zoo import Between, Epoch, Range, architecture
from processors.recipe.load import Recipe
from streams.errors import TrainingError

#: Epochs that every trial gets, and trials that must have gone as far before one is compared with them.
GRACE, ENOUGH = 5, 3


class Stopped(Exception):  # noqa: N818 - not an error: a trial that ends before its time
    """A trial goes no further; the text says why."""


@dataclass(slots=True, eq=False)
class Medians:
    """What trials had reached, by epoch."""

    best: dict[int, list[float]] = field(default_factory=dict)

    def hopeless(self, epoch: int, best: float) -> bool:
        """Whether a trial with this best loss at an epoch is worse than half of the others; it is remembered."""
        others = self.best.setdefault(epoch, [])
        out = epoch >= GRACE and len(others) >= ENOUGH and best > statistics.median(others)
        others.append(best)
        return out


def draw(ranges: Mapping[str, Range], seed: int, trial: int) -> dict[str, Any]:
    """Parameters of a trial, numbered from 1.

    Examples
    --------
    >>> draw({"width": (8, 16)}, 0, 1) == draw({"width": (8, 16)}, 0, 1)
    True
    """
    random = np.random.default_rng([seed, trial])
    out: dict[str, Any] = {}
    for name, values in sorted(ranges.items()):
        if isinstance(values, Between):
            chosen = math.exp(random.uniform(math.log(values.low), math.log(values.high)))
            out[name] = float(f"{chosen:.3g}")
        else:
            out[name] = values[int(random.integers(len(values)))]
    return out


def search(
    recipe: Recipe,
    prepared: Prepared,
    plan: Plan,  # the recipe's own; its parameters stand in every trial where a range does not overrule them
    minutes: float,
    on_stage: Callable[[str, int], Callable[[Epoch], None]],
) -> tuple[list[Fitted], list[Candidate]]:
    """Fit with other parameters until `minutes` of wall time are over; the trial under way then is stopped."""
    ranges: Mapping[str, Range] = getattr(architecture(plan.architecture), "search", {})
    if not ranges:
        raise TrainingError(f"architecture {plan.architecture!r} says no ranges to search; leave --search out")
    if not len(prepared.validation):
        raise TrainingError("--search compares by held-out windows, and none are held out; see [train] validation")
    end, medians = time.monotonic() + 60 * minutes, Medians()
    fitted: list[Fitted] = []
    stopped: list[Candidate] = []
    trial = 0
    while time.monotonic() < end:
        trial += 1
        parameters = {**plan.parameters, **draw(ranges, plan.settings["seed"], trial)}
        own = replace(plan, name=f"{plan.architecture} {trial}", parameters=parameters, checkpoints=None)
        found = _trial(recipe, prepared, own, (medians, end), on_stage(own.name, plan.settings["epochs"]))
        if isinstance(found, Fitted):
            fitted.append(found)
        else:
            stopped.append(found)
    return fitted, stopped


def _trial(
    recipe: Recipe, prepared: Prepared, plan: Plan, rules: tuple[Medians, float], tell: Callable[[Epoch], None]
) -> Fitted | Candidate:
    """One trial: the model, or, where it was stopped or cannot be, what is to be said of it."""
    history: list[Epoch] = []
    started = time.monotonic()
    try:
        return fit(recipe, prepared, plan, _watch(*rules, history, tell))
    except Stopped as why:
        note, seconds = f"stopped early: {why}", time.monotonic() - started
        return Candidate(plan.name, dict(plan.parameters), {}, history, seconds, peak_mb(), note=note)
    except TrainingError as error:  # parameters that this architecture, or these windows, do not allow
        return Candidate(plan.name, dict(plan.parameters), note=str(error))


def _watch(
    medians: Medians, end: float, history: list[Epoch], tell: Callable[[Epoch], None]
) -> Callable[[Epoch], None]:
    def on_epoch(epoch: Epoch) -> None:
        history.append(epoch)
        tell(epoch)
        best = min(one["validation_loss"] for one in history)
        if medians.hopeless(len(history), best):
            raise Stopped(f"worse than half of the trials after {len(history)} epochs")
        if time.monotonic() > end:
            raise Stopped("the time is over")

    return on_epoch
