"""Cross-validation. In: a run whose recipe says ``[train] folds``. Out: its architectures, each judged on all windows.

Each fold's windows are judged by a model that has learned from the other folds alone: steps that learn, pooling,
temperature and the end of training (early stopping) come from a part of those, never from the fold that is held out. A
fold that is finished lies in the run's folder, so that a run that is killed does not fit it again. What is kept of a
fold are outputs, a row a window; models and arrays of windows go before the next one.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from models.data.examples import Example, target_arrays
from models.data.samples import is_stateful, run_outputs, split_chain, to_samples, with_steps
from models.data.splits import Split, check_leaks, make_folds, make_split, session_of
from models.pooling import Pool
from models.scores import Judged, score_windows
from models.training.export import load_stateful
from models.training.fit import load_state, store_state
from models.training.fit_and_judge import (
    Fitted,
    Plan,
    answers_of,
    build,
    fit,
    fit_temperatures,
    head_scores,
    held_heads,
    outputs_of,
    pool_of,
    questions_of,
)
from models.training.record import Candidate
from models.training.request import Run
from models.training.split_data import Prepared, prepare_raw, prepare_split
from models.zoo import Epoch, Samples, architecture, takes
from processors.spec import Spec
from streams.chunk import Array, Window
from streams.errors import TrainingError

_SHORT = ("accuracy", "macro_f1", "n", "window_accuracy", "windows")


@dataclass(slots=True, eq=False)
class _Learned:
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
    def from_bytes(cls, data: bytes) -> _Learned:
        with np.load(io.BytesIO(data)) as found:
            return cls(found["outputs"], *json.loads(str(found["facts"])))


@dataclass(slots=True, eq=False)
class _Collected:
    """One architecture, fold by fold: numbers of the windows as they were judged, with what was said of them."""

    plan: Plan
    prepared: Prepared | None = None
    numbers: list[int] = field(default_factory=list)
    chains: list[tuple[int, tuple[Spec, ...]]] = field(default_factory=list)  # first place, steps that have learned
    outputs: list[Array] = field(default_factory=list)
    answers: list[list[Array]] = field(default_factory=list)  # of each fold, by question
    histories: list[list[Epoch]] = field(default_factory=list)
    folds: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    peak_mb: float = 0.0


def cross_validate(run: Run, beside: Sequence[str]) -> tuple[list[Fitted], Pool | None]:
    """Judge the recipe's architecture, and others beside it, on every fold."""
    recipe, examples = run.recipe, run.dataset.examples
    assert recipe.model is not None
    splits = make_folds(examples, recipe.train, run.settings["seed"])
    going = [_Collected(run.plan(recipe.model.architecture, recipe.model.parameters, "own"))]
    going += [_Collected(run.plan(name, {}, f"beside-{name}")) for name in beside]
    for split in splits:
        inside = _inside(run, split, len(splits))
        prepared = prepare_split(recipe, examples, inside)
        pool = pool_of(recipe, [examples[i] for i in inside.training], prepared.labels)
        _judge_fold(run, going[0], prepared, split, (len(splits), pool))
        for one in going[1:]:
            try:
                _judge_fold(run, one, prepared, split, (len(splits), pool))
            except TrainingError as error:
                going.remove(one)
                run.stopped.append(Candidate(one.plan.name, note=str(error)))
    return [_assembled(run, one) for one in going], pool_of(recipe, examples, run.dataset.labels)


def _inside(run: Run, fold: Split, count: int) -> Split:
    """The windows that a fold's model may see: those to learn from, and a part of them that says when to stop."""
    examples = run.dataset.examples
    named = f"fold {(fold.fold or 0) + 1} of {count}"
    if not fold.validation:
        raise TrainingError(f"{named} holds no window out; lower [train] folds, or add longer recordings")
    labels = sorted({examples[i].label for i in fold.training})
    if len(labels) < 2:
        left = f"all windows that are left have the label `{labels[0]}`" if labels else "no window is left"
        held = ", ".join(fold.validation_groups[:5])
        raise TrainingError(f"{named}, without {held}: {left}; lower [train] folds, or add recordings of other groups")
    check_leaks(examples, fold)
    learn = [examples[i] for i in fold.training]
    found = make_split(learn, run.recipe.train, run.settings["validation"], run.settings["seed"])
    sides = [[fold.training[i] for i in side] for side in (found.training, found.validation)]
    inside = replace(found, training=sides[0], validation=sides[1], fold=fold.fold, left_out=())
    check_leaks(examples, inside)
    return inside


def _judge_fold(run: Run, one: _Collected, chain: Prepared, fold: Split, rest: tuple[int, Pool | None]) -> None:
    """Fit without a fold, and take up what the model says of it."""
    count, pool = rest
    number = fold.fold or 0
    prepared, held, examples = _taken(run, one.plan.architecture, chain, fold)
    folder = one.plan.checkpoints / f"fold-{number + 1}" if one.plan.checkpoints else None
    learned = _learned(run, replace(one.plan, checkpoints=folder), prepared, (examples, held), count)
    plain = [examples[i] for i in held]
    answers = answers_of(learned.outputs, questions_of(prepared), learned.temperatures, pool, _places(plain))
    scores = score_windows(_said(plain, answers[0], prepared.labels), prepared.labels)
    one.folds.append(
        {
            "groups": list(fold.validation_groups),
            "training": len(prepared.split.training),
            "validation": len(prepared.split.validation),
            "epochs": _best(learned.history),
            **{key: scores[key] for key in _SHORT},
        }
    )
    one.chains.append((len(one.numbers), _steps(run, prepared)))
    one.numbers += held
    one.answers.append(answers)
    one.outputs.append(learned.outputs)
    one.histories.append(learned.history)
    one.prepared, one.seconds = prepared, one.seconds + learned.seconds
    one.peak_mb = max(one.peak_mb, learned.peak_mb)


def _taken(run: Run, name: str, chain: Prepared, fold: Split) -> tuple[Prepared, list[int], Sequence[Example]]:
    """Windows as an architecture takes them: what a fold's model may see, numbers of the fold's own, all examples."""
    examples = run.dataset.examples
    if takes(architecture(name)) == "chain":
        return chain, fold.validation, examples
    raw = run.raw_windows().examples
    held = prepare_raw(run.recipe, raw, examples, replace(chain, split=fold)).split.validation
    return prepare_raw(run.recipe, raw, examples, chain), held, raw


def _learned(
    run: Run, plan: Plan, prepared: Prepared, held: tuple[Sequence[Example], Sequence[int]], count: int
) -> _Learned:
    """A model's outputs for a fold that it has not seen; those of the run that was killed, where there are any."""
    on_epoch = run.on_stage(f"{plan.name}, fold {(prepared.split.fold or 0) + 1} of {count}", plan.settings["epochs"])
    result = plan.checkpoints / "result" if plan.checkpoints else None
    if (stored := load_state(result)) is not None:
        before = _Learned.from_bytes(stored)
        for epoch in before.history:
            on_epoch(epoch)
        return before
    found = fit(run.recipe, prepared, plan, on_epoch)
    examples, numbers = held
    outputs = _outputs(found, [examples[i] for i in numbers], _steps(run, prepared))
    if run.settings["calibrate"] and prepared.takes == "chain" and found.validation is not None:
        seen = outputs_of(found, found.prepared.validation, found.validation.windows)
        found.temperatures = fit_temperatures(seen, questions_of(prepared), found.validation)
    made = _Learned(np.asarray(outputs, np.float64), found.temperatures, found.history, found.seconds, found.peak_mb)
    store_state(result, made.to_bytes())
    if plan.checkpoints:
        (plan.checkpoints / "state").unlink(missing_ok=True)
    return made


def _outputs(found: Fitted, examples: Sequence[Example], steps: tuple[Spec, ...]) -> Array:
    """What a model says of windows as they stand before the steps that have learned."""
    if is_stateful(found.plan.parameters):
        return run_outputs(load_stateful(found.model), examples, found.prepared.chain)
    windows = _behind(steps, examples)
    return found.model.predict(to_samples(windows, found.prepared.labels, found.model.layout).windows)


def _steps(run: Run, prepared: Prepared) -> tuple[Spec, ...]:
    """What learned from the other folds, and all steps behind it; none for raw windows."""
    before = len(split_chain(run.recipe.chain)[0].specs)
    return tuple(prepared.chain.specs[before:]) if prepared.takes == "chain" else ()


def _behind(steps: tuple[Spec, ...], examples: Sequence[Example]) -> Sequence[Example]:
    return with_steps(examples, steps) if steps else examples


def _assembled(run: Run, one: _Collected) -> Fitted:
    """All folds as one: every window judged once."""
    assert one.prepared is not None
    labels, plan = one.prepared.labels, one.plan
    examples = run.raw_windows().examples if one.prepared.takes == "raw" else run.dataset.examples
    judged = [examples[i] for i in one.numbers]
    groups = tuple(sorted({group for fold in one.folds for group in fold["groups"]}))
    every, inside = list(range(len(examples))), one.prepared.split
    split = Split(every, one.numbers, inside.kind, inside.seed, groups, groups)
    prepared = replace(one.prepared, training=examples, validation=judged, split=split)
    number, targets = {label: i for i, label in enumerate(labels)}, [example.targets for example in judged]
    classes = np.array([number[example.label] for example in judged], np.int64)
    none = Samples(np.zeros((0,), np.float32), np.zeros(0, np.int64))
    truths = replace(none, classes=classes, targets=target_arrays(targets, prepared.heads))
    model = build(plan.architecture, prepared.format(run.recipe), prepared, plan.parameters, plan.settings["seed"])
    questions = questions_of(prepared)
    found = Fitted(plan, prepared, model, none, truths, _mean(one.histories), [1.0] * len(questions))
    if run.settings["calibrate"] and prepared.takes == "chain":
        found.temperatures = fit_temperatures(np.concatenate(one.outputs), questions, truths)
    found.probabilities, *said = [np.concatenate(parts) for parts in zip(*one.answers, strict=True)]
    found.heads, found.folds = held_heads(prepared.heads, targets, said), one.folds
    found.scores = _scores(judged, found.probabilities, labels) | head_scores(found.heads, _places(judged)[0])
    found.seconds, found.peak_mb = one.seconds, one.peak_mb
    found.draw = lambda i: _drawn(one, judged[i], i)
    return found


def _drawn(one: _Collected, example: Example, place: int) -> Window:
    """A judged window as its fold's model was given it."""
    steps = next(steps for first, steps in reversed(one.chains) if first <= place)
    return _behind(steps, [example])[0].window


def _scores(judged: Sequence[Example], rows: Array, labels: Sequence[str]) -> dict[str, Any]:
    """Of all recordings and windows, and of each subject's."""
    said = _said(judged, rows, labels)
    own: dict[str, list[Judged]] = {}
    for example, one in zip(judged, said, strict=True):
        own.setdefault(example.subject, []).append(one)
    scores = score_windows(said, labels)
    if set(own) == {""}:
        return scores
    each = {name: score_windows(own[name], labels) for name in sorted(own)}
    return {**scores, "per_subject": {name: {key: found[key] for key in _SHORT} for name, found in each.items()}}


def _said(judged: Sequence[Example], rows: Array, labels: Sequence[str]) -> list[Judged]:
    pairs = zip(judged, rows.tolist(), strict=True)
    return [(session_of(example), example.label, dict(zip(labels, row, strict=True))) for example, row in pairs]


def _places(examples: Sequence[Example]) -> tuple[list[str], list[int]]:
    return [session_of(example) for example in examples], [example.window.start_index for example in examples]


def _best(history: Sequence[Epoch]) -> int:
    """The epoch whose weights were kept: the last, where nothing said when to stop."""
    if "validation_loss" not in history[-1]:
        return len(history)
    return int(min(history, key=lambda epoch: epoch["validation_loss"])["epoch"])


def _mean(histories: Sequence[Sequence[Epoch]]) -> list[Epoch]:
    """Means over the folds that came as far as each epoch, and how many did."""
    made: list[Epoch] = []
    for i in range(max(map(len, histories))):
        found = [history[i] for history in histories if len(history) > i]
        names = [name for name in found[0] if all(name in epoch for epoch in found)]
        made.append({name: float(np.mean([epoch[name] for epoch in found])) for name in names} | {"folds": len(found)})
    return made
