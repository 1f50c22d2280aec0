"""Fitting one model and judging it. In: windows on both sides, an architecture. Out: the model, its scores, what it took.

A *question* is the recipe's own (a ModelHead without a name, whose labels are the recipe's classes) or one of its further heads,
in the order of the output's columns. An answer is what an event would carry: probabilities, or a number in its own unit.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kymo.models.data.examples import EVERY, Example, Targets, target_arrays
from kymo.models.data.samples import is_stateful, run_outputs
from kymo.models.data.splits import session_of
from kymo.models.pooling import Pool, State, learn_hmm, pool_windows
from kymo.models.predict import fit_temperature, softmax
from kymo.models.scores import (
    Judged,
    Tally,
    about_people,
    number_rank,
    rank,
    score_head,
    score_windows,
    without_classes,
)
from kymo.models.training.export import load_stateful
from kymo.models.training.record import Candidate, HeldHead, HeldOut
from kymo.models.training.split_data import SplitData, augment_of, samples_of, sequences_of_sides
from kymo.models.zoo import Architecture, Epoch, FitOptions, ModelHead, Samples, architecture
from kymo.processors.recipe.load import Recipe
from kymo.streams.chunk import Array, Window
from kymo.streams.errors import TrainingError


@dataclass(frozen=True, slots=True)
class FitPlan:
    """What is to be fitted."""

    name: str  # for people and for the record
    architecture: str  # in the zoo
    parameters: Mapping[str, Any]  # as a recipe's ``[model]`` has them
    settings: Mapping[str, Any]  # ``[train]``, filled in
    checkpoints: Path | None = None  # folder of this fit alone

    @property
    def digest(self) -> str:
        """16 hexadecimal digits, of all but the names."""
        facts = [self.architecture, dict(self.parameters), dict(self.settings)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(slots=True, eq=False)
class WindowFacts:
    """What is known of windows that are judged, beside their samples: an entry a window."""

    sessions: list[str] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # raw samples
    labels: list[str] = field(default_factory=list)
    targets: list[Targets] = field(default_factory=list)

    @classmethod
    def of(cls, examples: Iterable[Example]) -> WindowFacts:
        """Asks for each window once: behind steps that learn, it is made when it is asked for."""
        facts = cls()
        for example in examples:
            facts.sessions.append(session_of(example))
            facts.subjects.append(example.subject)
            facts.starts.append(example.window.start_index)
            facts.labels.append(example.label)
            facts.targets.append(example.targets)
        return facts

    def judged(self, probabilities: Array, labels: Sequence[str]) -> list[Judged]:
        """The windows with what was said of them, ``(n, labels)``, to be scored."""
        rows = [dict(zip(labels, row, strict=True)) for row in probabilities.tolist()]
        return list(zip(self.sessions, self.labels, rows, strict=True))

    def owners(self) -> list[str]:
        """Whose the windows are: the subject's, or the session's where nobody is named."""
        return [subject or session for subject, session in zip(self.subjects, self.sessions, strict=True)]

    def __add__(self, other: WindowFacts) -> WindowFacts:
        return WindowFacts(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


@dataclass(slots=True, eq=False)
class JudgedPart:
    """Windows that are held out together, and what a model says that has learned without them."""

    data: SplitData
    held: list[Example]  # the windows, before the steps that have learned
    facts: WindowFacts
    truths: Samples  # without windows
    outputs: Array  # ``(n, columns)``
    temperatures: list[float]
    answers: list[Array]  # question by question
    tally: Tally
    about: dict[str, Any]  # ``groups``, counts of windows, ``epochs`` and scores
    history: list[Epoch]
    seconds: float
    peak_mb: float


@dataclass(slots=True, eq=False)
class FittedModel:
    """A model that has learned, and what it says of the held-out windows."""

    plan: FitPlan  # what it was made by
    data: SplitData
    model: Architecture
    training: Samples
    validation: Samples | None
    history: list[Epoch] = field(default_factory=list)
    # what logits are divided by: of the recipe's own classes, then of each further head
    temperatures: list[float] = field(default_factory=list)
    scores: dict[str, Any] = field(default_factory=dict)  # of the validation side; empty without
    held_out: WindowFacts = field(default_factory=WindowFacts)
    # ``(n, labels)`` of the held-out windows, pooled where the recipe pools
    probabilities: Array = field(default_factory=lambda: np.zeros((0, 0)))
    heads: list[HeldHead] = field(default_factory=list)  # what is said of those windows in further heads, likewise
    seconds: float = 0.0  # wall time; the process's largest resident size so far
    peak_mb: float = 0.0
    epochs: int = 0  # for how many epochs to learn from all windows
    # what is judged; where that is several folds, the model itself has learned nothing
    parts: list[JudgedPart] = field(default_factory=list)
    stop_rank: float = 0.0  # as `rank`, of the windows that said when to stop

    @property
    def calibrates(self) -> bool:
        """Whether its temperatures are fitted to held-out windows."""
        return bool(self.plan.settings["calibrate"]) and self.data.takes == "chain"

    @property
    def folds(self) -> list[dict[str, Any]]:
        """What each of several folds held out, and how it was judged."""
        return [part.about for part in self.parts] if len(self.parts) > 1 else []

    @property
    def rank(self) -> float:
        """What candidates are compared by: mean of accuracy and macro F1 of recordings and accuracy of windows."""
        if "accuracy" not in self.scores:
            return number_rank(self.scores["heads"])
        return float(np.mean([self.scores[key] for key in ("accuracy", "macro_f1", "window_accuracy")]))

    def window(self, number: int) -> Window:
        """A held-out window, as the model was given it."""
        for part in self.parts:
            if number < len(part.held):
                return part.data.validation[number].window
            number -= len(part.held)
        raise IndexError(number)

    def with_parts(self, parts: Sequence[JudgedPart]) -> FittedModel:
        """The same, judged by these parts: every window once."""
        made = replace(self, parts=list(parts))
        held = [example for part in parts for example in part.held]
        outputs = np.concatenate([part.outputs for part in parts])
        names = [head.name for head in self.data.heads]
        made.validation = Samples(
            np.zeros(0, np.float32),
            np.concatenate([part.truths.classes for part in parts]),
            {name: np.concatenate([part.truths.targets[name] for part in parts]) for name in names},
        )
        if len(parts) > 1:
            groups = tuple(sorted({group for part in parts for group in part.about["groups"]}))
            split = replace(self.data.split, validation=list(range(len(held))), validation_groups=groups)
            made.data = replace(self.data, validation=held, split=split)
        made.temperatures = parts[0].temperatures
        if len(parts) > 1 and self.calibrates:
            made.temperatures = fit_temperatures(outputs, self.data.questions, made.validation)
        facts = sum((part.facts for part in parts), WindowFacts())
        made._score(facts, [np.concatenate(said) for said in zip(*(part.answers for part in parts), strict=True)])
        return made

    def _score(self, facts: WindowFacts, answers: Sequence[Array]) -> None:
        """Take what was said of the held-out windows, question by question, and score it."""
        self.held_out = facts
        self.probabilities, *head_answers = answers
        self.heads = _held_heads(self.data.heads, facts.targets, head_answers)
        self.scores = score_windows(facts.judged(self.probabilities, self.data.labels), self.data.labels)
        self.scores |= about_people(sum((part.tally for part in self.parts), Tally()), facts.subjects)
        if self.heads:
            self.scores["heads"] = {head.name: score_head(head, facts.sessions) for head in self.heads}
        if tuple(self.data.labels) == (EVERY,):
            self.scores = without_classes(self.scores)

    def candidate(self) -> Candidate:
        """For the record."""
        return Candidate(self.plan.name, self.model.parameters, self.scores, self.history, self.seconds, self.peak_mb)

    def to_held_out(self) -> HeldOut:
        """For the record."""
        return HeldOut(
            list(self.data.labels),
            self.validation.classes if self.validation is not None else np.zeros(0, np.int64),
            self.probabilities,
            self.held_out.sessions,
            self.held_out.subjects,
            np.array(self.held_out.starts, np.int64),
            self.heads,
        )


def rank_of(parts: Sequence[JudgedPart]) -> float:
    """What models are compared by, of what these parts hold; numbers alone by their R2."""
    if tuple(parts[0].data.labels) != (EVERY,):
        return rank(sum((part.tally for part in parts), Tally()))
    facts = sum((part.facts for part in parts), WindowFacts())
    _, *answers = (np.concatenate(said) for said in zip(*(part.answers for part in parts), strict=True))
    heads = _held_heads(parts[0].data.heads, facts.targets, answers)
    return number_rank({head.name: score_head(head, facts.sessions) for head in heads})


def best_epoch(history: Sequence[Epoch]) -> int:
    """The epoch whose weights were kept: the last, where nothing said when to stop."""
    if "validation_loss" not in history[-1]:
        return len(history)
    return int(min(history, key=lambda epoch: epoch["validation_loss"])["epoch"])


def build(recipe: Recipe, data: SplitData, plan: FitPlan) -> Architecture:
    """A fresh model for the windows of a split."""
    kind: Any = architecture(plan.architecture)
    arguments = (data.format(recipe), data.labels, plan.parameters, plan.settings["seed"])
    if data.heads and not getattr(kind, "several_heads", False):
        raise TrainingError(
            f"architecture {plan.architecture!r} says the recipe's classes alone, not the heads "
            f"{', '.join(head.name for head in data.heads)}; take another one, such as minirocket or recurrent, or leave "
            f"[[heads]] out"
        )
    model: Architecture = kind(*arguments, data.heads) if data.heads else kind(*arguments)
    return model


def fit(
    recipe: Recipe,
    data: SplitData,
    plan: FitPlan,
    on_epoch: Callable[[Epoch], None],
    stops: bool = False,  # whether the other side says when to stop
) -> FittedModel:
    """A model that has learned the training side."""
    started = time.monotonic()
    layout, settings = architecture(plan.architecture).layout, plan.settings
    if is_stateful(plan.parameters):
        training, validation = sequences_of_sides(data, settings["sequence"])
    else:
        training, validation = samples_of(recipe, data, layout)
    model = build(recipe, data, plan)
    fitted = FittedModel(plan, data, model, training, validation, temperatures=[1.0] * len(data.questions))

    def tell(epoch: Epoch) -> None:
        fitted.history.append(epoch)
        on_epoch(epoch)

    is_recipes = recipe.model is not None and plan.architecture == recipe.model.architecture
    options = FitOptions(
        settings["epochs"],
        settings["seed"],
        settings["patience"],
        settings["min_gain"],
        schedule=settings["schedule"],
        # Else all classes count alike; with none given, the architecture's own rule is to weigh them.
        class_weights=() if recipe.train.balance == "weights" else (1.0,) * len(data.labels),
        # Variations are written for the recipe's own windows; another candidate may take others.
        augment=augment_of(recipe, layout, data.format(recipe)) if is_recipes else None,
        checkpoints=plan.checkpoints,
    )
    model.fit(training, validation if stops else None, options, tell)
    fitted.seconds = time.monotonic() - started
    fitted.peak_mb = peak_mb()
    return fitted


def outputs_of(fitted: FittedModel, examples: Sequence[Example], windows: Array) -> Array:
    """What a model says of windows, ``(n, columns)``: a stateful one as it comes to them in their sessions."""
    if is_stateful(fitted.plan.parameters):
        return run_outputs(load_stateful(fitted.model), examples, fitted.data.chain)
    return fitted.model.predict(windows)


def fit_temperatures(outputs: Array, questions: Sequence[ModelHead], truths: Samples) -> list[float]:
    """The temperature of each question under which what is known is most likely; 1 for numbers, and where nothing is known."""
    temperatures = []
    for question, part in zip(questions, _parts(outputs, questions), strict=True):
        truth: Any = truths.targets[question.name] if question.name else truths.classes
        known = np.flatnonzero(truth >= 0) if question.labels else np.zeros(0, np.int64)
        temperatures.append(fit_temperature(part[known].tolist(), truth[known].tolist()) if len(known) else 1.0)
    return temperatures


def _parts(outputs: Array, questions: Sequence[ModelHead]) -> list[Array]:
    """Columns of each question."""
    ends = np.cumsum([question.width for question in questions])
    return np.split(outputs, ends[:-1], axis=1)


def answers_of(
    outputs: Array, questions: Sequence[ModelHead], temperatures: Sequence[float], pool: Pool | None, facts: WindowFacts
) -> list[Array]:
    """What events would carry, question by question: ``(n, labels)`` probabilities or ``(n,)`` numbers, NaN for none.

    The mean pools all of them; an hmm has learned how the recipe's own classes follow each other, and pools those alone.
    """
    answers: list[Array] = []
    for question, part, temperature in zip(questions, _parts(outputs, questions), temperatures, strict=True):
        pools = pool if pool is None or not question.name or pool.kind == "mean" else None
        if question.labels:
            rows = [softmax(row, temperature) for row in part.tolist()]
            rows = pool_windows(pools, rows, facts.sessions, facts.starts) if pools else rows
            answers.append(np.array(rows, np.float64))
        else:
            numbers: Array = np.where(np.isfinite(part[:, 0]), part[:, 0], np.nan).astype(np.float64)
            answers.append(_pool_numbers(pools, numbers, facts.sessions, facts.starts) if pools else numbers)
    return answers


def _pool_numbers(pool: Pool, numbers: Array, sessions: Sequence[str], starts: Sequence[int]) -> Array:
    """Pooled numbers of windows of many sessions, in any order, each session's by its start; NaN: none."""
    pooled, states = np.full(len(numbers), np.nan), dict[str, State]()
    for i in sorted(range(len(sessions)), key=lambda i: (sessions[i], starts[i])):
        number = {} if math.isnan(numbers[i]) else {"": float(numbers[i])}
        states[sessions[i]], mean = pool.step_number(states.get(sessions[i], []), number)
        pooled[i] = mean.get("", math.nan)
    return pooled


def _held_heads(heads: Sequence[ModelHead], targets: Sequence[Targets], answers: Sequence[Array]) -> list[HeldHead]:
    """Truths and answers of held-out windows, for scores and record."""
    truths = target_arrays(targets, [head for head in heads if head.labels])
    truths |= {
        head.name: np.array([values.get(head.name, math.nan) for values in targets], np.float64)
        for head in heads
        if not head.labels
    }
    return [
        HeldHead(head.name, list(head.labels), truths[head.name], answer)
        for head, answer in zip(heads, answers, strict=True)
    ]


def pool_of(recipe: Recipe, training: Sequence[Example], labels: Sequence[str]) -> Pool | None:
    """What pools probabilities over time, as ``[model] pool`` asks for; None without."""
    assert recipe.model is not None
    pool = recipe.model.pool
    if not pool or pool.kind == "mean":
        return Pool("mean", pool.windows) if pool else None
    once = {(session_of(e), e.window.start_index, e.window.start_ns): e for e in training}  # some may be oversampled
    order = [once[place] for place in sorted(once)]
    number = {label: i for i, label in enumerate(labels)}
    classes = [number[example.label] for example in order]
    learned = learn_hmm(classes, [session_of(e) for e in order], len(number), recipe.train.balance != "none")
    return replace(learned, windows=pool.windows)  # judged as it is served


def peak_mb() -> float:
    """The process's largest resident size so far, MB; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
