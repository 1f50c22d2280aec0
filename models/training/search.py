"""Trying other parameters. In: a run, a recipe's plan. Out: the plan that did best.

A search tries other parameters at random (Bergstra and Bengio 2012, Random Search for Hyper-Parameter Optimization) with a
seed: the n-th trial has the same parameters in every run; how many there are depends on the time. A trial is stopped once
its best validation loss is worse than the median of what the others had reached at the same epoch (Golovin et al. 2017,
Google Vizier). Trials are compared on the first of the parts that say when to stop, and nobody of it is judged.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kymo.models.training.candidates import Sides, judge, peak_mb
from kymo.models.training.record import Candidate
from kymo.models.training.run import FitPlan, TrainingRun
from kymo.models.zoo import Between, Epoch, Range, architecture
from kymo.streams.errors import TrainingError

#: Epochs that every trial gets, and trials that must have gone as far before one is compared with them.
_GRACE, _ENOUGH = 5, 3


class _Stopped(Exception):  # noqa: N818 - not an error: a trial that ends before its time
    """A trial goes no further; the text says why."""


@dataclass(slots=True, eq=False)
class Medians:
    """What trials had reached, by epoch."""

    best: dict[int, list[float]] = field(default_factory=dict)

    def hopeless(self, epoch: int, best: float) -> bool:
        """Whether a trial with this best loss at an epoch is worse than half of the others; it is remembered."""
        losses = self.best.setdefault(epoch, [])
        hopeless = epoch >= _GRACE and len(losses) >= _ENOUGH and best > statistics.median(losses)
        losses.append(best)
        return hopeless


def draw(ranges: Mapping[str, Range], seed: int, trial: int) -> dict[str, Any]:
    """Parameters of a trial, numbered from 1."""
    random = np.random.default_rng([seed, trial])
    parameters: dict[str, Any] = {}
    for name, values in sorted(ranges.items()):
        if isinstance(values, Between):
            value = math.exp(random.uniform(math.log(values.low), math.log(values.high)))
            parameters[name] = float(f"{value:.3g}")
        else:
            parameters[name] = values[int(random.integers(len(values)))]
    return parameters


def search(run: TrainingRun, stops: Sequence[Sides], plan: FitPlan) -> FitPlan:
    """Fit with other parameters until the run's minutes for it are over; the trial under way then is stopped.

    Parameters of the plan, which is the recipe's own, stand in every trial where a range does not overrule them. What
    comes back is the plan that did best on the first part that is kept apart.
    """
    ranges: Mapping[str, Range] = getattr(architecture(plan.architecture), "search", {})
    if not ranges:
        raise TrainingError(f"architecture {plan.architecture!r} says no ranges to search; leave --search out")
    if not stops:
        raise TrainingError(
            "--search compares by windows that are kept apart, and no group can be spared; add recordings"
        )
    end, medians = time.monotonic() + 60 * run.request.search_minutes, Medians()
    best, best_rank = replace(plan, folder=None), -math.inf
    for trial in itertools.count():  # the recipe's own first, to its end
        started = time.monotonic()
        if trial and started >= end:
            break
        parameters = {**plan.parameters, **(draw(ranges, run.settings["seed"], trial) if trial else {})}
        name = f"{plan.architecture} {trial}" if trial else plan.name
        trial_plan = replace(plan, name=name, parameters=parameters, folder=None)
        history: list[Epoch] = []
        on_epoch = run.on_stage(name, run.settings["epochs"])
        try:
            watch = _watch(medians, end if trial else math.inf, history, on_epoch)
            trial_rank = judge(run, trial_plan, stops[0], on_epoch=watch).held_out.rank()
            note = f"{trial_rank:.3f} in the search"
            if trial_rank > best_rank:
                best, best_rank = trial_plan, trial_rank
        except _Stopped as why:
            note = f"stopped early: {why}"
        except TrainingError as error:  # parameters that this architecture, or these windows, do not allow
            if not trial:
                raise
            note = str(error)
        seconds = time.monotonic() - started
        run.stopped.append(Candidate(name, parameters, {}, history, seconds, peak_mb(), note=note))
    run.stopped = [candidate for candidate in run.stopped if candidate.name != best.name]
    return best


def _watch(
    medians: Medians, end: float, history: list[Epoch], on_epoch: Callable[[Epoch], None]
) -> Callable[[Epoch], None]:
    """Told of each epoch of a trial, writes it down and stops the trial once it has no chance, or no time."""

    def watch(epoch: Epoch) -> None:
        history.append(epoch)
        on_epoch(epoch)
        best = min(past["validation_loss"] for past in history)
        if medians.hopeless(len(history), best):
            raise _Stopped(f"worse than half of the trials after {len(history)} epochs")
        if time.monotonic() > end:
            raise _Stopped("the time is over")

    return watch
