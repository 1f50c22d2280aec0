"""The fit loop of all frameworks. In: samples, options. Out: batches, rates, states on disk, the best epoch.

Nothing here knows a framework. A loop is a sequence of epochs; after each one its whole state can be stored, so that a
process that is killed goes on with the next epoch and ends with the same weights.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kymo.models.zoo import Epoch, FitOptions, ModelHead, Samples
from kymo.processors.recipe.tables import SCHEDULES
from kymo.streams.budget import BATCH
from kymo.streams.chunk import Array
from kymo.streams.errors import TrainingError
from kymo.streams.files import write_whole

_PREDICT_BATCH = 256  # windows
_WARM = 0.1  # share of the steps over which a cosine schedule rises


def predict_batch(windows: Array) -> int:
    return max(1, min(_PREDICT_BATCH, 8 * BATCH // max(1, 4 * math.prod(windows.shape[1:]))))


@dataclass(frozen=True, slots=True)
class LearningSettings:
    """An architecture's own way to learn; :class:`~kymo.models.zoo.FitOptions` overrule it."""

    labels: int  # number of classes; the first columns of the output
    heads: tuple[ModelHead, ...] = ()  # what the other columns are
    learning_rate: float = 1e-3  # highest of the schedule, above 0
    batch_size: int = 32  # windows a step
    schedule: str = "cosine"  # one of :data:`~kymo.processors.recipe.tables.SCHEDULES`
    weight_decay: float = 0.0  # decoupled, of AdamW (Loshchilov and Hutter 2019)
    label_smoothing: float = 0.0  # share of a class's probability that is spread over all of them
    clip_norm: float | None = None  # longest gradient; None for any

    def under(self, options: FitOptions) -> LearningSettings:
        """The same with what `options` say instead."""
        schedule = options.schedule or self.schedule
        if schedule not in SCHEDULES:
            raise TrainingError(f"schedule {schedule!r}: expected one of {', '.join(SCHEDULES)}")
        return replace(self, schedule=schedule, batch_size=options.batch_size or self.batch_size)


@dataclass(slots=True)
class Course:
    """Where a fit stands: what it must remember from epoch to epoch beside weights."""

    history: list[Epoch] = field(default_factory=list)  # the epochs that were
    best_loss: float = math.inf  # lowest validation loss
    reached: float = math.inf  # what a validation loss must lie `min_gain` below to count as better
    since: int = 0  # epochs without a better one
    stopped: bool = False  # whether nothing more is to be learned

    def add(self, numbers: Epoch, options: FitOptions) -> bool:
        """Take an epoch's numbers; whether it is the best so far."""
        self.history.append(numbers)
        better = numbers.get("validation_loss", math.inf) < self.best_loss
        if "validation_loss" in numbers:
            gained = numbers["validation_loss"] < self.reached - options.min_gain
            self.since, self.reached = (0, numbers["validation_loss"]) if gained else (self.since + 1, self.reached)
            self.best_loss = min(self.best_loss, numbers["validation_loss"])
        self.stopped = self.since >= options.patience or len(self.history) >= options.epochs
        return better

    def factor(self, patience: int) -> float:
        """What a plateau schedule has made of the learning rate so far."""
        wait, best, since, factor = max(1, patience // 3), math.inf, 0, 1.0
        for epoch in self.history:
            loss = epoch.get("validation_loss", epoch["loss"])
            best, since = (loss, 0) if loss < best else (best, since + 1)
            if since >= wait:
                factor, since = factor / 2, 0
        return factor


class FitLoop(ABC):
    """One fit, epoch by epoch; a framework says how it learns from a batch, judges, and what its state is."""

    def __init__(self, learning: LearningSettings, options: FitOptions) -> None:
        self.learning, self.options, self.course = learning, options, Course()
        self.weights = np.ones(learning.labels, np.float32)  # of the classes
        self.scales: dict[str, np.float32] = {}  # what errors of numbers are measured in, by head

    def run(self, training: Samples, validation: Samples | None, on_epoch: Callable[[Epoch], None]) -> None:
        """Learn to the end, from where a fit that was killed came to; with validation, end with the best epoch's weights."""
        options, learning = self.options, self.learning
        if (stored := load_state(options.checkpoints)) is not None:
            course, _, state = stored.partition(b"\n")
            self.course = Course(**json.loads(course))
            self.restore(state)
            for epoch_numbers in self.course.history:
                on_epoch(epoch_numbers)
        self.weights = class_weights(training.classes, learning.labels, options)
        self.scales = {head.name: spread(training.targets[head.name]) for head in learning.heads if not head.labels}
        count = len(training.classes)
        steps = max(1, -(-count // learning.batch_size))
        while not self.course.stopped:
            epoch, total = len(self.course.history), 0.0
            random = np.random.default_rng([options.seed, epoch])  # known without the epochs before
            self.begin_epoch(random)
            for i, (windows, numbers) in enumerate(batches(training, learning.batch_size, options, random)):
                step_rate = rate(learning, self.course, epoch * steps + i, options.epochs * steps, options.patience)
                truths = self.truths(training, numbers)
                total += self.learn(windows, truths, step_rate) * len(numbers)
            epoch_numbers = {"epoch": epoch + 1, "loss": total / count}
            if validation is not None:
                epoch_numbers |= self.judge(validation)
            if self.course.add(epoch_numbers, options):
                self.keep_best()
            if options.checkpoints is not None:
                course = json.dumps(asdict(self.course)).encode()
                store_state(options.checkpoints, course + b"\n" + self.state())
            on_epoch(epoch_numbers)
        self.take_best()

    def truths(self, samples: Samples, numbers: Any) -> dict[str, Array]:
        """Classes (of no name) and targets by head, of samples by their numbers."""
        arrays = {"": samples.classes} | {head.name: samples.targets[head.name] for head in self.learning.heads}
        return {name: np.asarray(values[numbers]) for name, values in arrays.items()}

    def begin_epoch(self, random: np.random.Generator) -> None:  # noqa: B027 - seeds may be among the model's variables
        """Take what the epoch is to be random by."""

    @abstractmethod
    def learn(self, windows: NDArray[np.float32], truths: Mapping[str, Array], step_rate: float) -> float:
        """Learn from a batch; its mean loss."""

    @abstractmethod
    def judge(self, samples: Samples) -> Epoch:
        """``validation_loss`` and ``validation_accuracy``."""

    @abstractmethod
    def keep_best(self) -> None:
        """Remember the weights as they are."""

    @abstractmethod
    def take_best(self) -> None:
        """Go back to the weights that are remembered, if any."""

    @abstractmethod
    def state(self) -> bytes:
        """All that it takes to go on, beside the course."""

    @abstractmethod
    def restore(self, state: bytes) -> None:
        """Go on from a state."""


def rate(learning: LearningSettings, course: Course, step: int, total: int, patience: int) -> float:
    if learning.schedule == "plateau":
        return learning.learning_rate * course.factor(patience)
    if learning.schedule == "none":
        return learning.learning_rate
    warm = max(1, round(_WARM * total))
    if step < warm:
        return learning.learning_rate * (step + 1) / warm
    return learning.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def batches(
    samples: Samples, batch_size: int, options: FitOptions, random: np.random.Generator
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """One epoch's batches, shuffled and varied: windows, a copy of this batch alone, and numbers of the samples.

    Batches differ in size by one at most: a last one of a single window would upset batch normalisation.
    """
    order = random.permutation(len(samples.classes))
    for numbers in np.array_split(order, max(1, -(-len(order) // batch_size))):
        numbers.sort()  # a memory map is read forwards
        windows: NDArray[np.float32] = np.array(samples.windows[numbers], np.float32)
        if options.augment is not None:
            windows = np.ascontiguousarray(options.augment(windows, random), np.float32)
        yield windows, numbers


def class_weights(classes: NDArray[np.int64], labels: int, options: FitOptions) -> NDArray[np.float32]:
    """Weight of each class, ``(labels,)``; unless the options say: as if all were equally frequent, with mean 1."""
    if options.class_weights:
        return np.asarray(options.class_weights, np.float32)
    counts = np.bincount(classes, minlength=labels)
    return (len(classes) / (labels * np.maximum(counts, 1))).astype(np.float32)


def spread(values: Array) -> np.float32:
    """Standard deviation of the known ones, 1 where there is none: what a number's error is measured in."""
    known = values[np.isfinite(values)]
    return np.float32(known.std() if len(known) and known.std() > 0 else 1.0)


def load_state(folder: Path | None) -> bytes | None:
    """The stored state of a fit; None where there is none."""
    file = folder / "state" if folder else None
    return file.read_bytes() if file and file.is_file() else None


def store_state(folder: Path | None, state: bytes) -> None:
    """Store the state of a fit: whole or not at all, whenever the process is killed."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "state", state, durable=True)
