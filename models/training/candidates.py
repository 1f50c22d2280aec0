"""The models that compete in a run. In: a run. Out: each of them judged on windows of which it has seen nothing.

What is held out (one part of the windows, or all of them, fold by fold) is judged by models that have learned from all the rest, as
the bundle's own will from all. How long a network learns is said by others than those it is judged by: two parts are kept
apart in turn, each model learns once without each and stops where it did best, and a fold is judged after as many epochs as
the parts say that hold nobody of it. Where there is one hold-out alone, a part of what is learned from says when to stop, and
which model to take. Over folds the model to take is chosen anew for each of them, by the others (:func:`choose`).

A fit that is finished lies in the run's folder, so that a run that is killed does not do it again. What is kept of it are outputs, a
row a window; models and arrays of windows go before the next one.

A search tries other parameters at random (Bergstra and Bengio 2012, Random Search for Hyper-Parameter Optimization) with a
seed: the n-th trial has the same parameters in every run; how many there are depends on the time. A trial is stopped once
its best validation loss is worse than the median of what the others had reached at the same epoch (Golovin et al. 2017,
Google Vizier). Trials are compared on the first of the two parts, and nobody of it is judged.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kymo.models.data.examples import Example, target_arrays
from kymo.models.data.splits import Split, check_leaks, hold_out, inner_split, judged_splits, leak_free
from kymo.models.pooling import Pool
from kymo.models.scores import Tally
from kymo.models.training.fit_and_judge import (
    FitPlan,
    FittedModel,
    JudgedPart,
    WindowFacts,
    answers_of,
    best_epoch,
    build,
    fit,
    fit_temperatures,
    outputs_of,
    peak_mb,
    pool_of,
    rank_of,
)
from kymo.models.training.learning import load_state, store_state
from kymo.models.training.record import Candidate
from kymo.models.training.request import TrainingRun
from kymo.models.training.split_data import SplitData, check_classes, prepare, prepare_split
from kymo.models.zoo import Between, Epoch, Range, Samples, architecture, takes
from kymo.streams.chunk import Array
from kymo.streams.errors import TrainingError

#: Epochs that every trial gets, and trials that must have gone as far before one is compared with them.
_GRACE, _ENOUGH = 5, 3


@dataclass(frozen=True, slots=True, eq=False)
class _Sides:
    """Windows to learn from and windows to judge by, as both kinds of models take them."""

    name: str  # for people, and for the run's folder
    chain: SplitData
    pool: Pool | None
    folds: frozenset[int] = frozenset()  # of which it holds somebody

    def data(self, run: TrainingRun, plan: FitPlan) -> SplitData:
        return run.data_for(plan.architecture, self.chain)


@dataclass(frozen=True, slots=True, eq=False)
class _Stop:
    """What the windows that say when to stop have said of a model."""

    folds: frozenset[int]
    model: _Learned
    epochs: int
    temperatures: list[float]
    rank: float


def fit_candidates(run: TrainingRun) -> tuple[list[FittedModel], Pool | None]:
    """The recipe's model (or the best that a search found) first, then MiniRocket or what else the recipe compares with."""
    recipe, settings, examples = run.recipe, run.settings, run.dataset.examples
    check_classes(recipe, examples)
    table = recipe.train if settings["refit"] else replace(recipe.train, folds=recipe.train.folds or 0)
    splits = judged_splits(examples, table, settings["validation"], settings["seed"])
    plans = run.plans()
    if not splits:
        if run.request.search_minutes:
            raise TrainingError("--search compares by held-out windows, and none are held out; see [train] validation")
        data, own = prepare(recipe, examples, 0.0, settings["seed"]), plans[0]
        on_epoch = run.on_stage(own.name, settings["epochs"])
        fitted = fit(recipe, run.data_for(own.architecture, data), own, on_epoch)
        return [fitted], pool_of(recipe, data.training, data.labels)
    folds, stops = _folds(run, splits), _stops(run, splits)
    if run.request.search_minutes:
        plans[0] = _search(run, stops, plans[0])
        folds = [fold for fold in folds if not fold.folds & stops[0].folds] or folds
    candidates = []
    for plan in plans:
        try:
            candidates.append(_judged(run, plan, folds, stops))
        except TrainingError as error:
            if plan is plans[0]:
                raise
            run.stopped.append(Candidate(plan.name, note=str(error)))
    return candidates, folds[0].pool if len(splits) == 1 else pool_of(recipe, examples, run.dataset.labels)


def judge_leak_free(run: TrainingRun, plan: FitPlan, split: Split) -> FittedModel:
    """A model judged on a split by session (by time, where no session can be spared), beside one of windows at random."""
    plain = leak_free(run.dataset.examples, split, run.settings["validation"])
    return _judged(run, plan, _folds(run, [plain]), _stops(run, [plain]))


def choose(candidates: Sequence[FittedModel], windows_of: str) -> tuple[FittedModel, FittedModel]:
    """The best, the recipe's own where another is not better; and what was said of the held-out windows by the choice.

    Each fold's windows are judged by the model that did best on the other folds: so they have no part in the choice that
    they judge, as little as new people will. Where windows must be of one kind, models that take the other come last.
    """

    def place(candidate: FittedModel, fold: int | None = None) -> tuple[bool, float]:
        allowed, parts = windows_of in ("", takes(type(candidate.model))), candidate.parts
        if len(parts) == 1:
            return allowed, candidate.stop_rank
        return allowed, rank_of([part for i, part in enumerate(parts) if i != fold])

    winner = max(candidates, key=place)  # the first of equals
    if len(winner.parts) < 2:
        return winner, winner
    chosen = [max(candidates, key=lambda candidate: place(candidate, i)) for i in range(len(winner.parts))]
    if all(candidate is winner for candidate in chosen):
        return winner, winner
    parts = [candidate.parts[i] for i, candidate in enumerate(chosen)]
    judged = winner.with_parts(parts)
    judged.temperatures = winner.temperatures  # the bundle's, whoever said what is judged
    return winner, judged


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
    """Parameters of a trial, numbered from 1.

    Examples
    --------
    >>> draw({"width": (8, 16)}, 0, 1) == draw({"width": (8, 16)}, 0, 1)
    True
    """
    random = np.random.default_rng([seed, trial])
    parameters: dict[str, Any] = {}
    for name, values in sorted(ranges.items()):
        if isinstance(values, Between):
            value = math.exp(random.uniform(math.log(values.low), math.log(values.high)))
            parameters[name] = float(f"{value:.3g}")
        else:
            parameters[name] = values[int(random.integers(len(values)))]
    return parameters


def _search(run: TrainingRun, stops: Sequence[_Sides], plan: FitPlan) -> FitPlan:
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
    best, best_rank = replace(plan, checkpoints=None), -math.inf
    for trial in itertools.count():  # the recipe's own first, to its end
        started = time.monotonic()
        if trial and started >= end:
            break
        parameters = {**plan.parameters, **(draw(ranges, plan.settings["seed"], trial) if trial else {})}
        name = f"{plan.architecture} {trial}" if trial else plan.name
        trial_plan = replace(plan, name=name, parameters=parameters, checkpoints=None)
        history: list[Epoch] = []
        on_epoch = run.on_stage(name, plan.settings["epochs"])
        try:
            trial_rank = _try(run, stops[0], trial_plan, _watch(medians, end if trial else math.inf, history, on_epoch))
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


def _try(run: TrainingRun, sides: _Sides, plan: FitPlan, on_epoch: Callable[[Epoch], None]) -> float:
    data = sides.data(run, plan)
    return _rank_of(run, sides, data, _learn(run, data, plan, "", on_epoch))[0]


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


@dataclass(slots=True, eq=False)
class _Learned:
    """What is kept of a model that learned from one side: what it says of the other."""

    outputs: Array  # (windows of the other side, columns)
    history: list[Epoch]
    seconds: float
    peak_mb: float
    fitted: FittedModel | None = None  # itself, where it may be bundled

    def to_bytes(self) -> bytes:
        file = io.BytesIO()
        facts = (self.history, self.seconds, self.peak_mb)
        np.savez(file, outputs=self.outputs, facts=np.array(json.dumps(facts)))
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> _Learned:
        with np.load(io.BytesIO(data)) as arrays:
            return cls(arrays["outputs"], *json.loads(str(arrays["facts"])))


def _folds(run: TrainingRun, splits: Sequence[Split]) -> list[_Sides]:
    """What is judged, fold by fold."""
    folds, examples = [], run.dataset.examples
    for i, split in enumerate(splits):
        name = f"fold {i + 1} of {len(splits)}" if len(splits) > 1 else "what is held out"
        if not split.validation:
            raise TrainingError(f"{name} holds no window out; lower [train] folds, or add longer recordings")
        labels = sorted({examples[i].label for i in split.training})
        if len(labels) < 2 and run.recipe.labels.classes:
            why = f"all windows that are left have the label `{labels[0]}`" if labels else "no window is left"
            groups = ", ".join(split.validation_groups[:5])
            raise TrainingError(
                f"{name}, without {groups}: {why}; lower [train] folds, or add recordings of other groups"
            )
        folds.append(_sides(run, name, split, frozenset({i})))
    return folds


def _stops(run: TrainingRun, splits: Sequence[Split]) -> list[_Sides]:
    """What says when to stop: of one hold-out a part of the other side, of folds two parts, neither of which holds all of them."""
    examples, share, seed = run.dataset.examples, run.settings["validation"], run.settings["seed"]
    if len(splits) == 1:
        inner = inner_split(examples, splits[0], share, seed)
        return [_sides(run, "when to stop", inner, frozenset())] if inner.validation else []
    fold_of = {i: f"{number:06d}" for number, split in enumerate(splits) for i in split.validation}
    parts: list[set[str]] = []
    classes: dict[str, set[str]] = {}
    for i, name in fold_of.items():
        classes.setdefault(name, set()).add(examples[i].label)
    for _ in range(2):
        left = [i for i in sorted(fold_of) if not any(fold_of[i] in part for part in parts)]
        names, labels = [fold_of[i] for i in left], [examples[i].label for i in left]
        part = hold_out(names, labels, share * len(fold_of) / max(1, len(left)), seed) or {*names[-1:]}
        part |= _lacking({name: classes[name] for name in names}, classes, part)
        learned = {examples[i].label for i in fold_of if fold_of[i] not in part}
        if len(learned) > 1 or not run.recipe.labels.classes:
            parts.append(part)
    stops = []
    for number, part in enumerate(parts, 1):
        folds = frozenset(map(int, part))
        training = set.intersection(*({*splits[i].training} for i in folds))
        validation = sorted(i for i in fold_of if int(fold_of[i]) in folds)
        split = replace(splits[0], training=sorted(training), validation=validation, left_out=(), fold=None)
        stops.append(_sides(run, f"when to stop, {number} of {len(parts)}", split, folds))
    return stops


def _lacking(free: Mapping[str, set[str]], classes: Mapping[str, set[str]], part: set[str]) -> set[str]:
    """Folds to add, so that a part holds every class that several folds have, as far as training keeps all of them."""
    every, added = Counter(label for labels in classes.values() for label in labels), set[str]()

    def learned(apart: set[str]) -> set[str]:
        return set().union(*(labels for name, labels in classes.items() if name not in apart))

    while True:
        apart = part | added
        held, rest = set().union(*(classes[name] for name in apart)), learned(apart)
        missing = {label for label, count in every.items() if count > 1} - held
        able = [name for name in sorted(free) if free[name] & missing and learned(apart | {name}) == rest]
        if not able:
            return added
        added.add(max(able, key=lambda name: len(free[name] & missing)))


def _sides(run: TrainingRun, name: str, split: Split, folds: frozenset[int]) -> _Sides:
    examples = run.dataset.examples
    check_leaks(examples, split)
    data = prepare_split(run.recipe, examples, split)
    return _Sides(name, data, pool_of(run.recipe, [examples[i] for i in split.training], data.labels), folds)


def _judged(run: TrainingRun, plan: FitPlan, folds: Sequence[_Sides], stops: Sequence[_Sides]) -> FittedModel:
    """All that is held out, judged by models of one plan."""
    at_once = getattr(architecture(plan.architecture), "at_once", False)
    asked = stops if not at_once or len(folds) == 1 else ()
    said = [_stop(run, plan, sides) for sides in asked]
    parts, data, fitted = [], folds[-1].data(run, plan), None
    for fold in folds:
        heard = [stop for stop in said if not stop.folds & fold.folds]
        epochs = _mean_epochs(heard, plan)
        data = fold.data(run, plan)
        learned = _learn(run, data, plan, fold.name, _on_stage(run, plan, fold.name, epochs), epochs)
        temperatures = heard[0].temperatures if heard else [1.0] * len(data.questions)
        parts.append(_part(run, fold, data, (learned, epochs, temperatures)))
        fitted = learned.fitted
    if fitted is None:
        fitted = FittedModel(plan, data, build(run.recipe, data, plan), _truths([], data), None)
    if len(folds) > 1:
        examples = run.raw_windows().examples if data.takes == "raw" else run.dataset.examples
        groups = tuple(sorted({group for fold in folds for group in fold.chain.split.training_groups}))
        split = replace(data.split, training=list(range(len(examples))), training_groups=groups, fold=None)
        fitted.data = replace(data, training=examples, split=split)
    histories = [stop.model.history for stop in said] or [part.history for part in parts]
    fitted.plan, fitted.history, fitted.epochs = plan, _mean(histories), _mean_epochs(said, plan)
    fitted.seconds = sum(part.seconds for part in parts) + sum(stop.model.seconds for stop in said)
    fitted.peak_mb = max(part.peak_mb for part in parts)
    fitted.stop_rank = said[0].rank if said else 0.0
    return fitted.with_parts(parts)


def _mean_epochs(stops: Sequence[_Stop], plan: FitPlan) -> int:
    """For how many epochs to learn: the mean of what was best; as many as are allowed where nothing says it."""
    return round(statistics.mean(stop.epochs for stop in stops)) if stops else int(plan.settings["epochs"])


def _on_stage(run: TrainingRun, plan: FitPlan, name: str, epochs: int) -> Callable[[Epoch], None]:
    at_once = getattr(architecture(plan.architecture), "at_once", False)
    return run.on_stage(f"{plan.name}, {name}", 1 if at_once else epochs)


def _stop(run: TrainingRun, plan: FitPlan, sides: _Sides) -> _Stop:
    """Learn without a part, and see when it is told best."""
    data = sides.data(run, plan)
    model = _learn(run, data, plan, sides.name, _on_stage(run, plan, sides.name, plan.settings["epochs"]))
    place, temperatures = _rank_of(run, sides, data, model)
    return _Stop(sides.folds, model, best_epoch(model.history), temperatures, place)


def _rank_of(run: TrainingRun, sides: _Sides, data: SplitData, model: _Learned) -> tuple[float, list[float]]:
    """How well a model tells the other side, and the temperatures under which it does best."""
    held = _held(run, data)
    temperatures = [1.0] * len(data.questions)
    if run.settings["calibrate"] and data.takes == "chain":
        temperatures = fit_temperatures(model.outputs, data.questions, _truths(held, data))
    return rank_of([_part(run, sides, data, (model, 0, temperatures))]), temperatures


def _learn(
    run: TrainingRun,
    data: SplitData,
    plan: FitPlan,
    name: str,  # of the sides, for the run's folder; empty where nothing is to be kept
    on_epoch: Callable[[Epoch], None],
    epochs: int = 0,  # for how long to learn; 0: the other side says when to stop
) -> _Learned:
    """A model's outputs for a side that it has not learned from; those of the run that was killed, where there are any."""
    folder = plan.checkpoints / name.replace(", ", "-").replace(" ", "-") if plan.checkpoints and name else None
    result = folder / "result" if folder and run.settings["refit"] else None
    if (stored := load_state(result)) is not None:
        model = _Learned.from_bytes(stored)
        for epoch in model.history:
            on_epoch(epoch)
        return model
    settings = {**plan.settings, "epochs": epochs or plan.settings["epochs"]}
    fitted = fit(run.recipe, data, replace(plan, settings=settings, checkpoints=folder), on_epoch, not epochs)
    assert fitted.validation is not None
    outputs = np.asarray(outputs_of(fitted, data.validation, fitted.validation.windows), np.float64)
    model = _Learned(outputs, fitted.history, fitted.seconds, fitted.peak_mb)
    store_state(result, model.to_bytes())
    if folder and result:
        (folder / "state").unlink(missing_ok=True)
    if not run.settings["refit"]:
        model.fitted = fitted
    return model


def _held(run: TrainingRun, data: SplitData) -> list[Example]:
    """The judged windows, as they stand before the steps that have learned."""
    examples = run.raw_windows().examples if data.takes == "raw" else run.dataset.examples
    return [examples[i] for i in data.split.validation]


def _truths(held: Sequence[Example], data: SplitData) -> Samples:
    number = {label: i for i, label in enumerate(data.labels)}
    classes = np.array([number[example.label] for example in held], np.int64)
    targets = target_arrays([example.targets for example in held], data.heads)
    return Samples(np.zeros(0, np.float32), classes, targets)


def _part(run: TrainingRun, sides: _Sides, data: SplitData, said: tuple[_Learned, int, list[float]]) -> JudgedPart:
    """What was said of one side, with what is known of it."""
    (model, epochs, temperatures), held = said, _held(run, data)
    facts = WindowFacts.of(held)
    answers = answers_of(model.outputs, data.questions, temperatures, sides.pool, facts)
    tally = Tally.of(facts.judged(answers[0], data.labels), facts.owners(), data.labels)
    counts = {"training": len(data.split.training), "validation": len(data.split.validation), "epochs": epochs}
    about = {"groups": list(sides.chain.split.validation_groups), **counts, **tally.brief()}
    truths, cost = _truths(held, data), (model.history, model.seconds, model.peak_mb)
    return JudgedPart(data, held, facts, truths, model.outputs, temperatures, answers, tally, about, *cost)


def _mean(histories: Sequence[Sequence[Epoch]]) -> list[Epoch]:
    """Means over the folds that came as far as each epoch, and how many did."""
    if len(histories) == 1:
        return list(histories[0])
    means: list[Epoch] = []
    for i in range(max(map(len, histories))):
        epochs = [history[i] for history in histories if len(history) > i]
        names = [name for name in epochs[0] if all(name in epoch for epoch in epochs)]
        mean = {name: float(np.mean([epoch[name] for epoch in epochs])) for name in names}
        means.append(mean | {"folds": len(epochs)})
    return means
