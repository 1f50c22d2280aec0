"""The models that compete in a run. In: a run. Out: each of them fitted and judged on windows that it has not seen.

They are judged by one part of the windows that is held out, or with ``[train] folds`` by all windows, fold by fold: a
model that has learned from the other folds alone judges each. Steps that learn, pooling, temperature and the end of
training (early stopping) come from a part of those, never from the fold that is held out. A fold that is finished lies in
the run's folder, so that a run that is killed does not fit it again. What is kept of a fold are outputs, a row a window;
models and arrays of windows go before the next one.

A search tries other parameters at random (Bergstra and Bengio 2012, Random Search for Hyper-Parameter Optimization) with a
seed: the n-th trial has the same parameters in every run; how many there are depends on the time. A trial is stopped once
its best validation loss is worse than the median of what the others had reached at the same epoch (Golovin et al. 2017,
Google Vizier).
"""

from __future__ import annotations

import io
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kymo.models.data.examples import Example, target_arrays
from kymo.models.data.samples import is_stateful, split_chain, to_samples, with_steps
from kymo.models.data.splits import Split, check_leaks, make_folds, make_split
from kymo.models.pooling import Pool
from kymo.models.scores import BRIEF, score_windows
from kymo.models.training.fit_and_judge import (
    FitPlan,
    FittedModel,
    WindowFacts,
    answers_of,
    best_epoch,
    build,
    fit,
    fit_temperatures,
    judge,
    outputs_of,
    peak_mb,
    pool_of,
)
from kymo.models.training.learning import load_state, store_state
from kymo.models.training.record import Candidate
from kymo.models.training.request import TrainingRun
from kymo.models.training.split_data import SplitData, prepare, prepare_raw, prepare_split
from kymo.models.zoo import Between, Epoch, Range, Samples, architecture, takes
from kymo.processors.spec import Spec
from kymo.streams.chunk import Array, Window
from kymo.streams.errors import TrainingError

#: Epochs that every trial gets, and trials that must have gone as far before one is compared with them.
_GRACE, _ENOUGH = 5, 3


def fit_candidates(run: TrainingRun) -> tuple[list[FittedModel], Pool | None]:
    """The recipe's model first, then what a search tried, then MiniRocket or what else the recipe compares with."""
    recipe, settings = run.recipe, run.settings
    if recipe.train.folds:
        return _cross_validate(run)
    split = prepare(recipe, run.dataset.examples, settings["validation"], settings["seed"])
    pool = pool_of(recipe, split.training, split.labels)
    own, *beside = run.plans()
    data = run.data_for(own.architecture, split)
    candidates = [fit(recipe, data, own, run.on_stage(own.name, settings["epochs"]))]
    if run.request.search_minutes:
        candidates += _search(run, data, own)
    for plan in beside if split.validation else ():
        try:
            data = run.data_for(plan.architecture, split)
            epochs = settings["epochs"] if data.takes == "chain" else 1
            candidates.append(fit(recipe, data, plan, run.on_stage(plan.name, epochs)))
        except TrainingError as error:
            run.stopped.append(Candidate(plan.name, note=str(error)))
    for candidate in candidates:
        judge(candidate, pool)
    return candidates, pool


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


def _search(run: TrainingRun, data: SplitData, plan: FitPlan) -> list[FittedModel]:
    """Fit with other parameters until the run's minutes for it are over; the trial under way then is stopped.

    Parameters of the plan, which is the recipe's own, stand in every trial where a range does not overrule them.
    """
    ranges: Mapping[str, Range] = getattr(architecture(plan.architecture), "search", {})
    if not ranges:
        raise TrainingError(f"architecture {plan.architecture!r} says no ranges to search; leave --search out")
    if not len(data.validation):
        raise TrainingError("--search compares by held-out windows, and none are held out; see [train] validation")
    end, medians = time.monotonic() + 60 * run.request.search_minutes, Medians()
    fitted: list[FittedModel] = []
    for trial in itertools.count(1):
        started = time.monotonic()
        if started >= end:
            break
        parameters = {**plan.parameters, **draw(ranges, plan.settings["seed"], trial)}
        trial_plan = replace(plan, name=f"{plan.architecture} {trial}", parameters=parameters, checkpoints=None)
        history: list[Epoch] = []
        on_epoch = run.on_stage(trial_plan.name, plan.settings["epochs"])
        try:
            fitted.append(fit(run.recipe, data, trial_plan, _watch(medians, end, history, on_epoch)))
        except _Stopped as why:
            note, seconds = f"stopped early: {why}", time.monotonic() - started
            run.stopped.append(Candidate(trial_plan.name, parameters, {}, history, seconds, peak_mb(), note=note))
        except TrainingError as error:  # parameters that this architecture, or these windows, do not allow
            run.stopped.append(Candidate(trial_plan.name, parameters, note=str(error)))
    return fitted


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
class _FoldModel:
    """What is kept of a model that learned without one fold."""

    outputs: Array  # (windows of the fold, columns)
    temperatures: list[float]
    history: list[Epoch]
    seconds: float
    peak_mb: float

    def to_bytes(self) -> bytes:
        file = io.BytesIO()
        facts = (self.temperatures, self.history, self.seconds, self.peak_mb)
        np.savez(file, outputs=self.outputs, facts=np.array(json.dumps(facts)))
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> _FoldModel:
        with np.load(io.BytesIO(data)) as arrays:
            return cls(arrays["outputs"], *json.loads(str(arrays["facts"])))


@dataclass(frozen=True, slots=True, eq=False)
class _FoldResult:
    """One fold, judged."""

    numbers: list[int]  # of its windows, in the order of all answers
    steps: tuple[Spec, ...]  # that made them, as they learned from the other folds
    model: _FoldModel
    answers: list[Array]  # by question
    facts: dict[str, Any]  # for the record


@dataclass(slots=True, eq=False)
class _Contender:
    """One architecture, fold by fold."""

    plan: FitPlan
    data: SplitData | None = None  # of the last fold
    results: list[_FoldResult] = field(default_factory=list)


def _cross_validate(run: TrainingRun) -> tuple[list[FittedModel], Pool | None]:
    """Judge the recipe's architecture, and others beside it, on every fold."""
    recipe, examples = run.recipe, run.dataset.examples
    splits = make_folds(examples, recipe.train, run.settings["seed"])
    contenders = [_Contender(plan) for plan in run.plans()]
    for split in splits:
        inside = _inside(run, split, len(splits))
        data = prepare_split(recipe, examples, inside)
        pool = pool_of(recipe, [examples[i] for i in inside.training], data.labels)
        for contender in tuple(contenders):
            try:
                _judge_fold(run, contender, data, split, (len(splits), pool))
            except TrainingError as error:
                if contender is contenders[0]:
                    raise
                contenders.remove(contender)
                run.stopped.append(Candidate(contender.plan.name, note=str(error)))
    return [_assembled(run, contender) for contender in contenders], pool_of(recipe, examples, run.dataset.labels)


def _inside(run: TrainingRun, fold: Split, count: int) -> Split:
    """The windows that a fold's model may see: those to learn from, and a part of them that says when to stop."""
    examples = run.dataset.examples
    name = f"fold {(fold.fold or 0) + 1} of {count}"
    if not fold.validation:
        raise TrainingError(f"{name} holds no window out; lower [train] folds, or add longer recordings")
    labels = sorted({examples[i].label for i in fold.training})
    if len(labels) < 2 and run.recipe.labels.classes:
        why = f"all windows that are left have the label `{labels[0]}`" if labels else "no window is left"
        groups = ", ".join(fold.validation_groups[:5])
        raise TrainingError(f"{name}, without {groups}: {why}; lower [train] folds, or add recordings of other groups")
    check_leaks(examples, fold)
    training = [examples[i] for i in fold.training]
    split = make_split(training, run.recipe.train, run.settings["validation"], run.settings["seed"])
    sides = [[fold.training[i] for i in side] for side in (split.training, split.validation)]
    inside = replace(split, training=sides[0], validation=sides[1], fold=fold.fold, left_out=())
    check_leaks(examples, inside)
    return inside


def _judge_fold(
    run: TrainingRun, contender: _Contender, chain: SplitData, fold: Split, of_all: tuple[int, Pool | None]
) -> None:
    """Fit without a fold, and take up what the model says of it."""
    count, pool = of_all
    examples, data, numbers = run.dataset.examples, chain, fold.validation
    if takes(architecture(contender.plan.architecture)) == "raw":
        raw = run.raw_windows().examples
        numbers = prepare_raw(run.recipe, raw, examples, replace(chain, split=fold)).split.validation
        data, examples = prepare_raw(run.recipe, raw, examples, chain), raw
    held_out, steps = [examples[i] for i in numbers], _steps(run, data)
    model = _fold_model(run, contender.plan, data, (fold.fold or 0, count), (held_out, steps))
    facts = WindowFacts.of(held_out)
    answers = answers_of(model.outputs, data.questions, model.temperatures, pool, facts)
    scores = score_windows(facts.judged(answers[0], data.labels), data.labels)
    counts = {
        "groups": list(fold.validation_groups),
        "training": len(data.split.training),
        "validation": len(data.split.validation),
        "epochs": best_epoch(model.history),
        **{key: scores[key] for key in BRIEF},
    }
    contender.data = data
    contender.results.append(_FoldResult(numbers, steps, model, answers, counts))


def _fold_model(
    run: TrainingRun,
    plan: FitPlan,
    data: SplitData,
    fold: tuple[int, int],  # its number from 0, and of how many
    held_out: tuple[Sequence[Example], tuple[Spec, ...]],  # before the steps that have learned, and those
) -> _FoldModel:
    """A model's outputs for a fold that it has not seen; those of the run that was killed, where there are any."""
    number, count = fold
    folder = plan.checkpoints / f"fold-{number + 1}" if plan.checkpoints else None
    result = folder / "result" if folder else None
    on_epoch = run.on_stage(f"{plan.name}, fold {number + 1} of {count}", plan.settings["epochs"])
    if (stored := load_state(result)) is not None:
        model = _FoldModel.from_bytes(stored)
        for epoch in model.history:
            on_epoch(epoch)
        return model
    fitted = fit(run.recipe, data, replace(plan, checkpoints=folder), on_epoch)
    outputs = _outputs(fitted, *held_out)
    if fitted.calibrates and fitted.validation is not None:
        validation = outputs_of(fitted, data.validation, fitted.validation.windows)
        fitted.temperatures = fit_temperatures(validation, data.questions, fitted.validation)
    numbers = (fitted.temperatures, fitted.history, fitted.seconds, fitted.peak_mb)
    model = _FoldModel(np.asarray(outputs, np.float64), *numbers)
    store_state(result, model.to_bytes())
    if folder:
        (folder / "state").unlink(missing_ok=True)
    return model


def _outputs(fitted: FittedModel, examples: Sequence[Example], steps: tuple[Spec, ...]) -> Array:
    """What a model says of windows as they stand before the steps that have learned."""
    if is_stateful(fitted.plan.parameters):
        return outputs_of(fitted, examples, np.zeros(0))
    samples = to_samples(_behind(steps, examples), fitted.data.labels, fitted.model.layout)
    return outputs_of(fitted, examples, samples.windows)


def _steps(run: TrainingRun, data: SplitData) -> tuple[Spec, ...]:
    """What learned from the other folds, and all steps behind it; none for raw windows."""
    before = len(split_chain(run.recipe.chain)[0].specs)
    return tuple(data.chain.specs[before:]) if data.takes == "chain" else ()


def _behind(steps: tuple[Spec, ...], examples: Sequence[Example]) -> Sequence[Example]:
    return with_steps(examples, steps) if steps else examples


def _assembled(run: TrainingRun, contender: _Contender) -> FittedModel:
    """All folds as one: every window judged once."""
    plan, results, last = contender.plan, contender.results, contender.data
    assert last is not None
    examples = run.raw_windows().examples if last.takes == "raw" else run.dataset.examples
    numbers = [i for result in results for i in result.numbers]
    held_out = [examples[i] for i in numbers]
    groups = tuple(sorted({group for result in results for group in result.facts["groups"]}))
    split = Split(list(range(len(examples))), numbers, last.split.kind, last.split.seed, groups, groups)
    data = replace(last, training=examples, validation=held_out, split=split)
    facts, number = WindowFacts.of(held_out), {label: i for i, label in enumerate(data.labels)}
    none = Samples(np.zeros((0,), np.float32), np.zeros(0, np.int64))
    classes = np.array([number[label] for label in facts.labels], np.int64)
    truths = replace(none, classes=classes, targets=target_arrays(facts.targets, data.heads))
    history = _mean([result.model.history for result in results])
    fitted = FittedModel(plan, data, build(run.recipe, data, plan), none, truths, history, [1.0] * len(data.questions))
    if fitted.calibrates:
        outputs = np.concatenate([result.model.outputs for result in results])
        fitted.temperatures = fit_temperatures(outputs, data.questions, truths)
    answers = [np.concatenate(parts) for parts in zip(*(result.answers for result in results), strict=True)]
    fitted.score(facts, answers, by_subject=True)
    fitted.folds = [result.facts for result in results]
    fitted.seconds = sum(result.model.seconds for result in results)
    fitted.peak_mb = max(result.model.peak_mb for result in results)
    steps = [result.steps for result in results for _ in result.numbers]

    def draw(i: int) -> Window:
        """A judged window as its fold's model was given it."""
        return _behind(steps[i], [held_out[i]])[0].window

    fitted.draw = draw
    return fitted


def _mean(histories: Sequence[Sequence[Epoch]]) -> list[Epoch]:
    """Means over the folds that came as far as each epoch, and how many did."""
    means: list[Epoch] = []
    for i in range(max(map(len, histories))):
        epochs = [history[i] for history in histories if len(history) > i]
        names = [name for name in epochs[0] if all(name in epoch for epoch in epochs)]
        mean = {name: float(np.mean([epoch[name] for epoch in epochs])) for name in names}
        means.append(mean | {"folds": len(epochs)})
    return means
