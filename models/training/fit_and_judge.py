"""Fitting one model and judging it. In: windows on both sides, an architecture. Out: the model, its scores, what it took.

A *question* is the recipe's own (a ModelHead without a name, whose labels are the recipe's classes) or one of its further heads,
in the order of the output's columns. An answer is what an event would carry: probabilities, or a number in its own unit.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from models.data.examples import Example, Targets, target_arrays
from models.data.samples import is_stateful, run_outputs
from models.data.splits import session_of
from models.pooling import Pool, State, learn_hmm, pool_windows
from models.predict import fit_temperature, softmax
from models.scores import score_head, score_windows
from models.training.export import load_stateful
from models.training.record import Candidate, HeldHead, HeldOut
from models.training.split_data import Prepared, augment_of, samples_of, sides_of, weights_of
from models.zoo import Architecture, Epoch, FitOptions, ModelHead, Samples, architecture
from processors.recipe.load import Recipe
from streams.chunk import Array, Format, Window
from streams.errors import TrainingError

#: Sessions of windows, and where each begins, raw samples.
Places = tuple[Sequence[str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be fitted."""

    name: str  # for people and for the record
    architecture: str  # in the zoo
    parameters: Mapping[str, Any]  # as a recipe's ``[model]`` has them
    settings: Mapping[str, Any]  # ``[train]``, filled in
    checkpoints: Path | None = None  # folder of this fit alone

    @property
    def digest(self) -> str:
        """16 hexadecimal digits, of all but the names."""
        said = json.dumps([self.architecture, dict(self.parameters), dict(self.settings)], sort_keys=True, default=str)
        return hashlib.sha256(said.encode()).hexdigest()[:16]


@dataclass(slots=True, eq=False)
class Fitted:
    """A model that has learned, and what it says of the held-out windows."""

    plan: Plan  # what it was made by
    prepared: Prepared
    model: Architecture
    training: Samples
    validation: Samples | None
    history: list[Epoch] = field(default_factory=list)
    # what logits are divided by: of the recipe's own classes, then of each further head
    temperatures: list[float] = field(default_factory=list)
    scores: dict[str, Any] = field(default_factory=dict)  # of the validation side; empty without
    # ``(n, labels)`` of the held-out windows, pooled where the recipe pools
    probabilities: Array = field(default_factory=lambda: np.zeros((0, 0)))
    heads: list[HeldHead] = field(default_factory=list)  # what is said of those windows in further heads, likewise
    seconds: float = 0.0  # wall time; the process's largest resident size so far
    peak_mb: float = 0.0
    # of a cross-validation, see :mod:`models.training.folds`: ``groups`` held out, counts of windows, ``epochs`` and
    # scores of each. The model has then learned nothing, and the scores are of models that had not seen what they
    # judged
    folds: list[dict[str, Any]] = field(default_factory=list)
    # gives a held-out window by its number, where the validation side is not as the model was given it
    draw: Callable[[int], Window] | None = None

    @property
    def best_epochs(self) -> int:
        """For how many epochs to learn from all windows: as many as were best, over folds their median."""
        if self.folds:
            return int(statistics.median_high(fold["epochs"] for fold in self.folds))
        return int(min(self.history, key=lambda epoch: epoch["validation_loss"])["epoch"])

    def window(self, number: int) -> Window:
        """A held-out window, as the model was given it."""
        return self.draw(number) if self.draw else self.prepared.validation[number].window

    @property
    def rank(self) -> float:
        """What candidates are compared by: mean of accuracy and macro F1 of recordings and accuracy of windows."""
        return float(np.mean([self.scores[key] for key in ("accuracy", "macro_f1", "window_accuracy")]))

    def candidate(self) -> Candidate:
        """For the record."""
        return Candidate(self.plan.name, self.model.parameters, self.scores, self.history, self.seconds, self.peak_mb)

    def held_out(self) -> HeldOut:
        """For the record."""
        side = list(self.prepared.validation)
        return HeldOut(
            list(self.prepared.labels),
            self.validation.classes if self.validation is not None else np.zeros(0, np.int64),
            self.probabilities,
            [session_of(example) for example in side],
            [example.subject for example in side],
            np.array([example.window.start_index for example in side], np.int64),
            self.heads,
        )


def build(name: str, fmt: Format, prepared: Prepared, parameters: Any, seed: int) -> Architecture:
    """A fresh model for prepared windows."""
    make: Any = architecture(name)
    if not prepared.heads:
        made: Architecture = make(fmt, prepared.labels, parameters, seed)
        return made
    if not getattr(make, "several_heads", False):
        raise TrainingError(
            f"architecture {name!r} says the recipe's classes alone, not the heads "
            f"{', '.join(head.name for head in prepared.heads)}; take another one, such as minirocket or recurrent, or leave "
            f"[[heads]] out"
        )
    several: Architecture = make(fmt, prepared.labels, parameters, seed, prepared.heads)
    return several


def fit(recipe: Recipe, prepared: Prepared, plan: Plan, on_epoch: Callable[[Epoch], None]) -> Fitted:
    """A model that has learned the prepared windows."""
    started = time.monotonic()
    make, settings = architecture(plan.architecture), plan.settings
    if is_stateful(plan.parameters):
        training, validation = sides_of(prepared, settings["sequence"])
    else:
        training, validation = samples_of(recipe, prepared, make.layout)
    model = build(plan.architecture, prepared.format(recipe), prepared, plan.parameters, settings["seed"])
    found = Fitted(plan, prepared, model, training, validation, temperatures=[1.0] * (1 + len(prepared.heads)))

    def tell(epoch: Epoch) -> None:
        found.history.append(epoch)
        on_epoch(epoch)

    own = recipe.model is not None and plan.architecture == recipe.model.architecture
    options = FitOptions(
        settings["epochs"],
        settings["seed"],
        settings["patience"],
        schedule=settings["schedule"],
        class_weights=weights_of(recipe, training.classes, len(prepared.labels)),
        # Variations are written for the recipe's own windows; another candidate may take others.
        augment=augment_of(recipe, make.layout, prepared.format(recipe)) if own else None,
        checkpoints=plan.checkpoints,
    )
    model.fit(training, validation, options, tell)
    found.seconds = time.monotonic() - started
    found.peak_mb = peak_mb()
    return found


def outputs_of(found: Fitted, examples: Sequence[Example], windows: Array) -> Array:
    """What a model says of windows, ``(n, columns)``: a stateful one as it comes to them in their sessions."""
    if is_stateful(found.plan.parameters):
        return run_outputs(load_stateful(found.model), examples, found.prepared.chain)
    return found.model.predict(windows)


def judge(found: Fitted, calibrate: bool, pool: Pool | None) -> None:
    """Temperatures, and scores of the validation windows, as events would carry them."""
    if found.validation is None:
        return
    side, labels, questions = found.prepared.validation, found.prepared.labels, questions_of(found.prepared)
    outputs = outputs_of(found, side, found.validation.windows)
    if calibrate:
        found.temperatures = fit_temperatures(outputs, questions, found.validation)
    sessions, starts, truths, targets = [], [], [], []
    for example in side:
        sessions.append(session_of(example))
        starts.append(example.window.start_index)
        truths.append(example.label)
        targets.append(example.targets)
    found.probabilities, *said = answers_of(outputs, questions, found.temperatures, pool, (sessions, starts))
    rows = [dict(zip(labels, row, strict=True)) for row in found.probabilities.tolist()]
    found.heads = held_heads(found.prepared.heads, targets, said)
    own = score_windows(zip(sessions, truths, rows, strict=True), labels)
    found.scores = {**own, **head_scores(found.heads, sessions)}


def questions_of(prepared: Prepared) -> tuple[ModelHead, ...]:
    """The recipe's own question, and its further heads."""
    return (ModelHead("", prepared.labels), *prepared.heads)


def fit_temperatures(outputs: Array, questions: Sequence[ModelHead], truths: Samples) -> list[float]:
    """The temperature of each question under which what is known is most likely; 1 for numbers, and where nothing is known."""
    found = []
    for question, part in zip(questions, _parts(outputs, questions), strict=True):
        truth: Any = truths.targets[question.name] if question.name else truths.classes
        known = np.flatnonzero(truth >= 0) if question.labels else np.zeros(0, np.int64)
        found.append(fit_temperature(part[known].tolist(), truth[known].tolist()) if len(known) else 1.0)
    return found


def _parts(outputs: Array, questions: Sequence[ModelHead]) -> list[Array]:
    """Columns of each question."""
    ends = np.cumsum([question.width for question in questions])
    return np.split(outputs, ends[:-1], axis=1)


def answers_of(
    outputs: Array, questions: Sequence[ModelHead], temperatures: Sequence[float], pool: Pool | None, places: Places
) -> list[Array]:
    """What events would carry, question by question: ``(n, labels)`` probabilities or ``(n,)`` numbers, NaN for none.

    The mean pools all of them; an hmm has learned how the recipe's own classes follow each other, and pools those alone.
    """
    found: list[Array] = []
    for question, part, temperature in zip(questions, _parts(outputs, questions), temperatures, strict=True):
        pools = pool if pool is None or not question.name or pool.kind == "mean" else None
        if question.labels:
            rows = [softmax(row, temperature) for row in part.tolist()]
            found.append(np.array(pool_windows(pools, rows, *places) if pools else rows, np.float64))
        else:
            numbers: Array = np.where(np.isfinite(part[:, 0]), part[:, 0], np.nan).astype(np.float64)
            found.append(pool_numbers(pools, numbers, *places) if pools else numbers)
    return found


def pool_numbers(pool: Pool, numbers: Array, sessions: Sequence[str], starts: Sequence[int]) -> Array:
    """Pooled numbers of windows of many sessions, given in any order, each session's taken by its start; NaN: none."""
    out, states = np.full(len(numbers), np.nan), dict[str, State]()
    for i in sorted(range(len(sessions)), key=lambda i: (sessions[i], starts[i])):
        said = {} if math.isnan(numbers[i]) else {"": float(numbers[i])}
        states[sessions[i]], pooled = pool.step_number(states.get(sessions[i], []), said)
        out[i] = pooled.get("", math.nan)
    return out


def held_heads(heads: Sequence[ModelHead], targets: Sequence[Targets], answers: Sequence[Array]) -> list[HeldHead]:
    """Truths and answers of held-out windows, for scores and record."""
    known = target_arrays(targets, [head for head in heads if head.labels])
    known |= {
        head.name: np.array([t.get(head.name, math.nan) for t in targets], np.float64)
        for head in heads
        if not head.labels
    }
    return [
        HeldHead(head.name, list(head.labels), known[head.name], said)
        for head, said in zip(heads, answers, strict=True)
    ]


def head_scores(held: Sequence[HeldHead], sessions: Sequence[str]) -> dict[str, Any]:
    """Scores of further heads, as ``heads`` beside those of the recipe's own classes; empty where there are none."""
    return {"heads": {head.name: score_head(head, sessions) for head in held}} if held else {}


def pool_of(recipe: Recipe, learned: Sequence[Example], labels: Sequence[str]) -> Pool | None:
    """What pools probabilities over time, as ``[model] pool`` asks for; None without."""
    assert recipe.model is not None
    pool = recipe.model.pool
    if not pool or pool["kind"] == "mean":
        return Pool("mean", pool["windows"]) if pool else None
    once = {(session_of(e), e.window.start_index, e.window.start_ns): e for e in learned}  # some may be oversampled
    order = [once[place] for place in sorted(once)]
    number = {label: i for i, label in enumerate(labels)}
    classes = [number[example.label] for example in order]
    return learn_hmm(classes, [session_of(e) for e in order], len(number), recipe.train.balance != "none")


def peak_mb() -> float:
    """The process's largest resident size so far, MB; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
