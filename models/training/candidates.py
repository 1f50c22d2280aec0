"""The models that compete in a run. In: a run. Out: each of them judged on windows of which it has seen nothing.

What is held out (one part of the windows, or all of them, fold by fold: a hold-out is one fold) is judged by models that have learned
from all the rest, as the bundle's own will from all. How long a network learns is said by others than those it is judged by: two parts
are kept apart in turn, each model learns once without each and stops where it did best, and a fold is judged after as many epochs as
the parts say that hold nobody of it. Where there is one hold-out alone, a part of what is learned from says when to stop, and
which model to take. Over folds the model to take is chosen anew for each of them, by the others (:func:`choose`).

A fit that is finished lies in the run's folder, so that a run that is killed does not do it again. What is kept of it are outputs, a
row a window; models and arrays of windows go before the next one.

A *question* is the recipe's own (a ModelHead without a name, whose labels are the recipe's classes) or one of its further heads,
in the order of the output's columns. An answer is what an event would carry: probabilities, or a number in its own unit.
"""

from __future__ import annotations

import io
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kymo.models.data.examples import Example, target_arrays
from kymo.models.data.samples import SplitData, apply_steps, is_stateful, run_outputs
from kymo.models.data.splits import Split, judged_splits, kept_apart
from kymo.models.pooling import Pool, learn_hmm, pool_numbers, pool_windows
from kymo.models.predict import fit_temperature, softmax
from kymo.models.scores import HeldHead, HeldOut
from kymo.models.training.export import load_stateful
from kymo.models.training.learning import load_state, store_state
from kymo.models.training.record import Candidate
from kymo.models.training.run import FitPlan, TrainingRun
from kymo.models.zoo import Architecture, Epoch, FitOptions, ModelHead, Samples, architecture
from kymo.processors.recipe.load import Recipe
from kymo.streams.chunk import Array, Window
from kymo.streams.errors import TrainingError


@dataclass(frozen=True, slots=True, eq=False)
class Sides:
    """Windows to learn from, and windows to judge by."""

    name: str  # for people, and for the run's folder
    split: Split
    pool: Pool | None
    folds: frozenset[int] = frozenset()  # of which it holds somebody


@dataclass(slots=True, eq=False)
class FittedModel:
    plan: FitPlan  # what it was made by
    data: SplitData
    model: Architecture
    training: Samples
    validation: Samples | None
    history: list[Epoch] = field(default_factory=list)
    seconds: float = 0.0  # wall time; the process's largest resident size so far
    peak_mb: float = 0.0

    def outputs(self) -> Array:
        """What it says of the other side, ``(n, columns)``: a stateful one as it comes to the windows in their sessions."""
        if is_stateful(self.plan.parameters):
            return run_outputs(load_stateful(self.model), self.data.validation, self.data.chain)
        assert self.validation is not None
        return self.model.predict(self.validation.windows)


@dataclass(slots=True, eq=False)
class _Learned:
    """What is kept of a model that learned from one side: what it says of the other."""

    outputs: Array  # (windows of the other side, columns)
    history: list[Epoch]
    parameters: dict[str, Any]  # all that the model has
    seconds: float
    peak_mb: float
    fitted: FittedModel | None = None  # itself, where it may be bundled

    def to_bytes(self) -> bytes:
        file = io.BytesIO()
        facts = (self.history, self.parameters, self.seconds, self.peak_mb)
        np.savez(file, outputs=self.outputs, facts=np.array(json.dumps(facts)))
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> _Learned:
        with np.load(io.BytesIO(data)) as arrays:
            return cls(arrays["outputs"], *json.loads(str(arrays["facts"])))


@dataclass(frozen=True, slots=True, eq=False)
class JudgedPart:
    """What a model says of one side of a part, having learned from the other."""

    part: Sides
    data: SplitData
    learned: _Learned
    epochs: int  # for how long it learned; where this side said when to stop, which epoch was the best
    temperatures: list[float]  # what logits are divided by: of the recipe's own classes, then of each further head
    held_out: HeldOut

    @property
    def about(self) -> dict[str, Any]:
        """For the record: who was held out, counts of windows, epochs and scores."""
        split = self.data.split
        counts = {"training": len(split.training), "validation": len(split.validation), "epochs": self.epochs}
        return {"groups": list(self.part.split.validation_groups), **counts, **self.held_out.tally().brief()}


@dataclass(slots=True, eq=False)
class Contender:
    """A plan, and what its models said of all that is held out; without parts nothing was."""

    run: TrainingRun
    plan: FitPlan
    data: SplitData  # both sides; of folds all windows stand on each
    parts: list[JudgedPart]  # of its own models
    stops: list[JudgedPart] = field(default_factory=list)
    judged: Sequence[JudgedPart] = ()  # what is reported: its own parts, unless another was chosen for some
    held_out: HeldOut = field(init=False)
    scores: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.judged = self.judged or self.parts
        parts = [part.held_out for part in self.judged]
        self.held_out = HeldOut.joined(parts) if parts else HeldOut([*self.data.labels])
        self.scores = self.held_out.scores() if parts else {}

    @property
    def folds(self) -> list[dict[str, Any]]:
        """What each of several folds held out, and how it was judged."""
        return [part.about for part in self.judged] if len(self.judged) > 1 else []

    def rank(self, without: int | None = None) -> float:
        """What it is compared by: how well it tells the folds, all but one; of one hold-out what said when to stop."""
        if len(self.parts) > 1:
            return HeldOut.joined([part.held_out for i, part in enumerate(self.parts) if i != without]).rank()
        return self.stops[0].held_out.rank() if self.stops else 0.0

    @property
    def temperatures(self) -> list[float]:
        """The bundle's: fitted to all that the folds hold, or what said when to stop."""
        if len(self.parts) > 1 and _calibrates(self.run, self.data):
            outputs = np.concatenate([part.learned.outputs for part in self.parts])
            held_out = HeldOut.joined([part.held_out for part in self.parts])
            return fit_temperatures(outputs, self.data.questions, held_out)
        return self.parts[0].temperatures if self.parts else [1.0] * len(self.data.questions)

    @property
    def epochs(self) -> int:
        return _mean_epochs(self.run, self.stops)

    @property
    def history(self) -> list[Epoch]:
        """Means over the fits that came as far as each epoch, and how many did."""
        histories = [judged.learned.history for judged in self.stops or self.parts]
        if len(histories) < 2:
            return list(*histories)
        means: list[Epoch] = []
        for i in range(max(map(len, histories))):
            epochs = [history[i] for history in histories if len(history) > i]
            names = [name for name in epochs[0] if all(name in epoch for epoch in epochs)]
            mean = {name: float(np.mean([epoch[name] for epoch in epochs])) for name in names}
            means.append(mean | {"folds": len(epochs)})
        return means

    def window(self, number: int) -> Window:
        """A held-out window, as the model was given it."""
        for part in self.judged:
            if number < len(part.data.split.validation):
                return next(apply_steps(part.data.steps, [part.data.validation[number].window]))
            number -= len(part.data.split.validation)
        raise IndexError(number)

    def candidate(self) -> Candidate:
        fits = [judged.learned for judged in (*self.parts, *self.stops)]
        seconds, peak = sum(fit.seconds for fit in fits), max((fit.peak_mb for fit in fits), default=0.0)
        parameters = fits[0].parameters if fits else {}
        return Candidate(self.plan.name, parameters, self.scores, self.history, seconds, peak)


def fit_candidates(run: TrainingRun) -> list[Contender]:
    """The recipe's model (or the best that a search found) first, then MiniRocket or what else the recipe compares with."""
    recipe, settings, examples = run.recipe, run.settings, run.dataset.examples
    if len(labels := run.dataset.labels) < 2 and recipe.labels.classes:
        raise TrainingError(
            f"all {len(examples)} windows have the label `{labels[0]}`; a classifier needs at least two classes: "
            f"add recordings of another one"
        )
    table = recipe.train if settings["refit"] else replace(recipe.train, folds=recipe.train.folds or 0)
    splits = judged_splits(examples, table, settings["validation"], settings["seed"])
    run.splits = len(splits)
    own, *beside = run.plans()
    folds, stops = parts_of(run, splits)
    if run.request.search_minutes:
        from kymo.models.training.search import search

        if not splits:
            raise TrainingError("--search compares by held-out windows, and none are held out; see [train] validation")
        own = search(run, stops, own)
        folds = [fold for fold in folds if not fold.folds & stops[0].folds] or folds
    contenders = [contend(run, own, folds, stops)]
    for plan in beside if folds else ():
        try:
            contenders.append(contend(run, plan, folds, stops))
        except TrainingError as error:
            run.stopped.append(Candidate(plan.name, note=str(error)))
    return contenders


def choose(contenders: Sequence[Contender], windows_of: str) -> Contender:
    """The best, the recipe's own where another is not better; with what was said of the held-out windows by the choice.

    Each fold's windows are judged by the model that did best on the other folds: so they have no part in the choice that
    they judge, as little as new people will. Where windows must be of one kind, models that take the other come last.
    """

    def place(contender: Contender, fold: int | None = None) -> tuple[bool, float]:
        return windows_of in ("", contender.data.takes), contender.rank(fold)

    winner = max(contenders, key=place) if len(contenders) > 1 else contenders[0]  # the first of equals
    if len(contenders) == 1 or len(winner.parts) < 2:
        return winner
    chosen = [max(contenders, key=lambda contender: place(contender, i)) for i in range(len(winner.parts))]
    return replace(winner, judged=[contender.parts[i] for i, contender in enumerate(chosen)])


def contend(run: TrainingRun, plan: FitPlan, folds: Sequence[Sides], stops: Sequence[Sides]) -> Contender:
    """All that is held out, judged by models of one plan."""
    asked = stops if not plan.at_once or len(folds) == 1 else ()
    said = [judge(run, plan, part) for part in asked]
    parts = [judge(run, plan, fold, [stop for stop in said if not stop.part.folds & fold.folds]) for fold in folds]
    if not parts:
        return Contender(run, plan, run.data(plan.architecture), [])
    data = parts[-1].data
    if len(parts) > 1:
        sides = [{name for fold in folds for name in getattr(fold.split, f"{side}_groups")} for side in _SIDES]
        held = [i for part in parts for i in part.data.split.validation]
        training, validation = (tuple(sorted(groups)) for groups in sides)
        split = replace(data.split, training=[*range(len(data.examples))], validation=held, fold=None)
        data = replace(data, split=replace(split, training_groups=training, validation_groups=validation))
    return Contender(run, plan, data, parts, said)


_SIDES = ("training", "validation")


def parts_of(run: TrainingRun, splits: Sequence[Split]) -> tuple[list[Sides], list[Sides]]:
    """What is judged, fold by fold; and what says when to stop."""
    examples = run.dataset.examples

    def part(name: str, split: Split, folds: frozenset[int]) -> Sides:
        return Sides(name, split, pool_of(run.recipe, [examples[i] for i in split.training], run.dataset.labels), folds)

    folds = []
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
        folds.append(part(name, split, frozenset({i})))
    classes, share, seed = run.recipe.labels.classes, run.settings["validation"], run.settings["seed"]
    apart = kept_apart(examples, splits, share, seed, classes)
    of_all = f" of {len(apart)}" if len(splits) > 1 else ""
    return folds, [
        part("when to stop" + (of_all and f", {i}{of_all}"), split, held) for i, (split, held) in enumerate(apart, 1)
    ]


def judge(
    run: TrainingRun,
    plan: FitPlan,
    part: Sides,
    heard: Sequence[JudgedPart] | None = None,  # says for how long to learn; None: the other side says when to stop
    on_epoch: Callable[[Epoch], None] | None = None,
) -> JudgedPart:
    """Learn from one side of a part, and tell the other."""
    data = run.data(plan.architecture, part.split)
    epochs = _mean_epochs(run, heard or ())
    on_epoch = on_epoch or run.on_stage(f"{plan.name}, {part.name}", 1 if plan.at_once else epochs)
    folder = plan.folder / part.name.replace(", ", "-").replace(" ", "-") if plan.folder else None
    learned = _learn(run, data, plan, (folder, epochs, heard is None), on_epoch)
    temperatures = heard[0].temperatures if heard else [1.0] * len(data.questions)
    held_out = told(data, learned.outputs, temperatures, part.pool)
    if heard is None:
        epochs = best_epoch(learned.history)
        if _calibrates(run, data):
            temperatures = fit_temperatures(learned.outputs, data.questions, held_out)
            held_out = told(data, learned.outputs, temperatures, part.pool)
    return JudgedPart(part, data, learned, epochs, temperatures, held_out)


def _learn(
    run: TrainingRun,
    data: SplitData,
    plan: FitPlan,
    how: tuple[Path | None, int, bool],  # where to keep it, epochs, and whether the other side says when to stop
    on_epoch: Callable[[Epoch], None],
) -> _Learned:
    """A model's outputs for a side that it has not learned from; those of the run that was killed, where there are any."""
    folder, epochs, stops = how
    result = folder / "result" if folder and run.settings["refit"] else None
    if (stored := load_state(result)) is not None:
        learned = _Learned.from_bytes(stored)
        for epoch in learned.history:
            on_epoch(epoch)
        return learned
    fitted = fit(run, data, replace(plan, folder=folder), epochs, on_epoch, stops)
    outputs = np.asarray(fitted.outputs(), np.float64)
    learned = _Learned(outputs, fitted.history, fitted.model.parameters, fitted.seconds, fitted.peak_mb)
    store_state(result, learned.to_bytes())
    if folder and result:
        (folder / "state").unlink(missing_ok=True)
    if not run.settings["refit"]:
        learned.fitted = fitted
    return learned


def fit(
    run: TrainingRun,
    data: SplitData,
    plan: FitPlan,
    epochs: int,
    on_epoch: Callable[[Epoch], None],
    stops: bool = False,  # whether the other side says when to stop
) -> FittedModel:
    started, recipe, settings = time.monotonic(), run.recipe, run.settings
    layout = architecture(plan.architecture).layout
    training, validation = data.samples(layout, plan.parameters, settings["sequence"])
    model = _build(plan, data, settings["seed"])
    fitted = FittedModel(plan, data, model, training, validation)

    def tell(epoch: Epoch) -> None:
        fitted.history.append(epoch)
        on_epoch(epoch)

    is_recipes = recipe.model is not None and plan.architecture == recipe.model.architecture
    options = FitOptions(
        epochs,
        settings["seed"],
        settings["patience"],
        settings["min_gain"],
        schedule=settings["schedule"],
        # Else all classes count alike; with none given, the architecture's own rule is to weigh them.
        class_weights=() if recipe.train.balance == "weights" else (1.0,) * len(data.labels),
        # Variations are written for the recipe's own windows; another candidate may take others.
        augment=data.augment(layout) if is_recipes else None,
        checkpoints=plan.folder,
    )
    model.fit(training, validation if stops else None, options, tell)
    fitted.seconds, fitted.peak_mb = time.monotonic() - started, peak_mb()
    return fitted


def _build(plan: FitPlan, data: SplitData, seed: int) -> Architecture:
    kind: Any = architecture(plan.architecture)
    arguments = (data.format, data.labels, plan.parameters, seed)
    if data.heads and not getattr(kind, "several_heads", False):
        raise TrainingError(
            f"architecture {plan.architecture!r} says the recipe's classes alone, not the heads "
            f"{', '.join(head.name for head in data.heads)}; take another one, such as minirocket or recurrent, or leave "
            f"[[heads]] out"
        )
    model: Architecture = kind(*arguments, data.heads) if data.heads else kind(*arguments)
    return model


def best_epoch(history: Sequence[Epoch]) -> int:
    """The epoch whose weights were kept: the last, where nothing said when to stop."""
    if "validation_loss" not in history[-1]:
        return len(history)
    return int(min(history, key=lambda epoch: epoch["validation_loss"])["epoch"])


def _mean_epochs(run: TrainingRun, stops: Sequence[JudgedPart]) -> int:
    """For how many epochs to learn: the mean of what was best; as many as are allowed where nothing says it."""
    return round(statistics.mean(stop.epochs for stop in stops)) if stops else int(run.settings["epochs"])


def _calibrates(run: TrainingRun, data: SplitData) -> bool:
    return bool(run.settings["calibrate"]) and data.takes == "chain"


def told(data: SplitData, outputs: Array, temperatures: Sequence[float], pool: Pool | None) -> HeldOut:
    """The held-out windows of a split with what events would carry of them, of outputs ``(n, columns)``.

    The mean pools all questions; an hmm has learned how the recipe's own classes follow each other, and pools those alone.
    """
    held, labels = data.validation, list(data.labels)
    sessions, starts = [e.session for e in held], [e.window.start_index for e in held]
    answers: list[Array] = []
    for question, part, temperature in zip(data.questions, _parts(outputs, data.questions), temperatures, strict=True):
        pools = pool if pool is None or not question.name or pool.kind == "mean" else None
        if question.labels:
            rows = [softmax(row, temperature) for row in part.tolist()]
            answers.append(np.array(pool_windows(pools, rows, sessions, starts) if pools else rows, np.float64))
        else:
            numbers = [value if math.isfinite(value) else math.nan for value in part[:, 0].tolist()]
            answers.append(np.array(pool_numbers(pools, numbers, sessions, starts) if pools else numbers, np.float64))
    truths = target_arrays([e.targets for e in held], data.heads, np.float64)
    return HeldOut(
        labels,
        np.array([labels.index(e.label) for e in held], np.int64),
        answers[0],
        sessions,
        [e.subject for e in held],
        np.array(starts, np.int64),
        [
            HeldHead(head.name, list(head.labels), truths[head.name], answer)
            for head, answer in zip(data.heads, answers[1:], strict=True)
        ],
    )


def _parts(outputs: Array, questions: Sequence[ModelHead]) -> list[Array]:
    ends = np.cumsum([question.width for question in questions])
    return np.split(outputs, ends[:-1], axis=1)


def fit_temperatures(outputs: Array, questions: Sequence[ModelHead], held: HeldOut) -> list[float]:
    """The temperature of each question under which what is known is most likely; 1 for numbers, and where nothing is known."""
    temperatures = []
    truths: list[Any] = [held.y_true, *(head.truth for head in held.heads)]
    for question, truth, part in zip(questions, truths, _parts(outputs, questions), strict=True):
        known = np.flatnonzero(truth >= 0) if question.labels else np.zeros(0, np.int64)
        temperatures.append(fit_temperature(part[known].tolist(), truth[known].tolist()) if len(known) else 1.0)
    return temperatures


def pool_of(recipe: Recipe, training: Sequence[Example], labels: Sequence[str]) -> Pool | None:
    """What pools probabilities over time, as ``[model] pool`` asks for; None without."""
    assert recipe.model is not None
    pool = recipe.model.pool
    if not pool or pool.kind == "mean":
        return Pool("mean", pool.windows) if pool else None
    once = {example.place: example for example in training}  # some may be oversampled
    order = [once[place] for place in sorted(once)]
    number = {label: i for i, label in enumerate(labels)}
    classes = [number[example.label] for example in order]
    learned = learn_hmm(classes, [example.session for example in order], len(number), recipe.train.balance != "none")
    return replace(learned, windows=pool.windows)  # judged as it is served


def peak_mb() -> float:
    """The process's largest resident size so far, MB; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
