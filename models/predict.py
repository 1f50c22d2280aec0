"""The one place where windows become events. In: windows of any sessions, what is remembered of these. Out: Events, `emitted_ns` 0.

A :class:`Classifier` is a bundle's model as a batch function; a :class:`Predictor` makes of it what a recipe says, pooled and in the
order of its heads. Workers, shadows, `kymo run`, evaluation and the gate all predict here, so that they say the same. The same windows
give the same events, to the bit, however they are batched.

What a session's next event rests on is kept in its memory: a list that begins empty, holds JSON values, is packed into the session's
snapshots, and means something to :class:`Predictor` alone.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from threading import Lock
from typing import Any, Protocol

import numpy as np

from kymo.models.bundle import UNKNOWN, Bundle, BundleHead
from kymo.models.onnx_model import OnnxModel, StatefulModel, aligned_empty, most_together, random_windows
from kymo.models.pooling import pool_for
from kymo.processors.chain import PerWindowStage
from kymo.processors.recipe.load import Recipe
from kymo.streams.budget import BATCH
from kymo.streams.chunk import Array, Header, Window
from kymo.streams.errors import BundleError
from kymo.streams.events import Event, event_id

#: What is remembered of a session's windows, for those behind them.
Memory = list[Any]
_TEMPERATURES = np.geomspace(0.25, 8, 101)
_HEADERS = 1_000  # sessions whose formats are remembered
_WARM_UP = 4  # windows


class BatchClassifier(Protocol):
    """What a :class:`Predictor` works with: a :class:`Classifier`, or what notes what one says."""

    @property
    def bundle(self) -> Bundle:
        """Its bundle, whose chain has the learned numbers."""

    def classify(self, windows: Sequence[Window], memories: Sequence[dict[str, Any]] | None = None) -> list[Event]:
        """See :meth:`Classifier.classify`."""


class Classifier:
    """A bundle's model, ready to classify; a BundleError where it does not load or is not the one that the manifest describes."""

    def __init__(
        self,
        bundle: Bundle,
        recipe_name: str,  # for the events' ids
        min_probability: float = 0.0,  # below it the label is ``unknown``, 0 to 1
        kind: str = "",  # of the raw stream that events name, with the place of each window's own; by default a window's own stream
    ) -> None:
        self.bundle, self.recipe_name, self.min_probability, self._kind = bundle, recipe_name, min_probability, kind
        self.model = _load_model(bundle)
        self.counts: Counter[str] = Counter()  # ``not_finite``: windows whose numbers the model could not judge
        # Another processor may take other kernels than the one that the bundle was made on.
        self.model.settle(bundle.shape, bundle.dtype)
        outputs = self.model.run(np.zeros((1, *bundle.shape), bundle.dtype)).shape
        if outputs != (1, bundle.columns):
            heads = f" and {bundle.columns - len(bundle.labels)} columns of heads" if bundle.heads else ""
            raise BundleError(
                f"{bundle.model_path}: gives {outputs} for one window, expected a number for each of "
                f"{len(bundle.labels)} labels{heads}; train the bundle again"
            )
        all_heads = (BundleHead("", bundle.labels, temperature=bundle.temperature), *bundle.heads)
        ends = accumulate(head.width for head in all_heads)
        self._columns = [(head, slice(end - head.width, end)) for head, end in zip(all_heads, ends, strict=True)]
        self._stacked = aligned_empty((most_together(bundle.shape, bundle.dtype), *bundle.shape), bundle.dtype)
        axes = range(2, self._stacked.ndim)
        # The same memory, as windows are: (time, …, channels).
        self._rows = self._stacked.transpose(0, *axes, 1) if bundle.layout == "channels_first" else self._stacked
        self._shape = self._rows.shape[1:]
        self._lock = Lock()

    @classmethod
    def for_recipe(cls, bundle: Bundle, recipe: Recipe) -> Classifier:
        """A classifier whose events are those of `recipe`, which the bundle must fit."""
        bundle.check(recipe)
        kind = recipe.inputs[0].stream.partition(".")[0]
        return cls(bundle, recipe.name, recipe.model.min_probability if recipe.model else 0.0, kind)

    def classify(self, windows: Sequence[Window], memories: Sequence[dict[str, Any]] | None = None) -> list[Event]:
        """The events of each window as the bundle's chain makes it: its own, then one for each of the bundle's heads, in its order.

        For a stateful bundle `memories` are what is remembered of each window's session, and are brought up to date; without them
        sessions begin with this call.
        """
        if memories is None:
            by_session: dict[str, dict[str, Any]] = {}
            memories = [by_session.setdefault(window.session, {}) for window in windows]
        events: list[Event] = []
        most = len(self._stacked)
        for i in range(0, len(windows), most):
            part = windows[i : i + most]
            for window, row in zip(part, self._logits(part, memories[i : i + most]).tolist(), strict=True):
                events += self._events(window, row)
        return events

    def _logits(self, windows: Sequence[Window], memories: Sequence[dict[str, Any]]) -> Array:
        """Outputs of the model, ``(n, columns)``, for as many windows as are run together."""
        bundle, stacked = self.bundle, self._stacked
        with self._lock:
            for i, window in enumerate(windows):
                if window.shape != self._shape:
                    raise BundleError(
                        f"bundle {bundle.id} takes windows of {self._shape}, session {window.session} gave {window.shape}; "
                        "run the bundle's own chain"
                    )
                # Spectrograms lie in memory as a channels-first network takes them: then this is a plain copy.
                window.copy_to(self._rows[i])
            if isinstance(self.model, StatefulModel):
                return self.model.go_on(windows, stacked, memories)
            return self.model.run(stacked[: len(windows)])

    def _stream(self, stream: str) -> str:
        kind, dot, place = stream.partition(".")
        return f"{self._kind or kind}{dot}{place}"

    def _events(self, window: Window, row: list[float]) -> Iterator[Event]:
        header, outputs = window.header, [(head, row[columns]) for head, columns in self._columns]
        # JSON cannot say a number that is not finite.
        numbers = {head.name: output[0] for head, output in outputs if not head.labels and self._is_finite(output[0])}
        for head, output in outputs:
            # A regression alone: the window's own event says all numbers.
            alone = len(head.labels) == 1 and not head.name
            values = {name: number for name, number in numbers.items() if alone or name == head.name}
            answer = self._classes(head, output) if head.labels and not alone else ("", 0.0, dict[str, float]())
            yield Event(
                event_id(self.recipe_name, header.session, window.start_index, head.name),
                self.recipe_name,
                self.bundle.id,
                header.session,
                self._stream(header.format.stream),
                window.start_index,
                window.start_ns,
                window.end_ns,
                *answer,
                values,
                head.name,
                window.missing,
                list(window.absent),
            )

    def _classes(self, head: BundleHead, logits: list[float]) -> tuple[str, float, dict[str, float]]:
        probabilities = softmax(logits, head.temperature)
        probability = max(probabilities)
        self.counts["not_finite"] += not probability
        sure = probability and probability >= self.min_probability
        label = head.labels[probabilities.index(probability)] if sure else UNKNOWN
        return label, probability, dict(zip(head.labels, probabilities, strict=True))

    def _is_finite(self, number: float) -> bool:
        self.counts["not_finite"] += not math.isfinite(number)
        return math.isfinite(number)


def _load_model(bundle: Bundle) -> OnnxModel | StatefulModel:
    if not bundle.state:
        return OnnxModel(bundle.model_path, bundle.input, bundle.output, bundle.batch)
    model = StatefulModel(bundle.model_path, bundle.input, bundle.output, bundle.chain.hop)
    shape = (model.hop, *model.shape)
    if (model.size, shape) != (bundle.state, bundle.shape):
        raise BundleError(
            f"{bundle.model_path}: takes windows of {shape} and a state of {model.size}, its manifest says {bundle.shape} "
            f"and {bundle.state}; train the bundle again"
        )
    return model


class Predictor:
    """What turns windows into a recipe's events, by one bundle."""

    def __init__(self, classifier: BatchClassifier, recipe: Recipe) -> None:
        self.classifier, self.bundle = classifier, classifier.bundle
        self._pool = pool_for(recipe, self.bundle)
        self._min_probability = recipe.model.min_probability if recipe.model else 0.0
        # Whatever order the bundle learned them in: the delivery counts a window's events by the recipe's.
        places = {head.name: i for i, head in enumerate(self.bundle.heads, 1)}
        self._order = (0, *(places[head.name] for head in recipe.heads))
        #: The bundle's chain up to its window: what the windows of :meth:`serve` come from.
        self.head, self._steps = self.bundle.chain.cut_behind_window()
        # A stage works out the format of a stream once; the windows of many sessions come mixed, so each has its own.
        self._stages: dict[int, tuple[Header, list[PerWindowStage]]] = {}

    @classmethod
    def to_serve(cls, bundle: Bundle, recipe: Recipe) -> Predictor:
        """A predictor whose bundle is checked, loaded and warm."""
        classifier = Classifier.for_recipe(bundle, recipe)
        count = min(_WARM_UP, most_together(bundle.shape, bundle.dtype))
        random = random_windows(np.random.default_rng(0), count, bundle.shape, bundle.dtype)
        if not np.isfinite(classifier.model.run(random)).all():
            raise BundleError(
                f"bundle {bundle.id}: gives numbers that are not finite for ordinary windows; train it again"
            )
        return cls(classifier, recipe)

    @property
    def memory(self) -> int:
        """Windows before it that an event rests on."""
        return self._pool.windows - 1 if self._pool else 0

    def serve(self, windows: Sequence[Window], memories: Sequence[Memory]) -> list[list[bytes]]:
        """Encoded events of each window as `head` makes them, stamped with the present."""
        predicted = list[list[Event]]()
        # A window may grow much behind its steps.
        window_bytes = math.prod(self.bundle.shape) * np.dtype(self.bundle.dtype).itemsize
        most = max(1, BATCH // max(1, window_bytes))
        for i in range(0, len(windows), most):
            part = [self._behind_steps(window) for window in windows[i : i + most]]
            predicted += self.predict(part, memories[i : i + most])
        now_ns = time.time_ns()
        return [[event.to_json(now_ns) for event in events] for events in predicted]

    def _behind_steps(self, window: Window) -> Window:
        entry = self._stages.get(id(window.header))
        if entry is None or entry[0] is not window.header:
            if len(self._stages) >= _HEADERS:
                self._stages.clear()
            entry = self._stages[id(window.header)] = (window.header, [PerWindowStage(step) for step in self._steps])
        for stage in entry[1]:
            (window,) = stage.push(window)
        return window

    def predict(self, windows: Sequence[Window], memories: Sequence[Memory]) -> list[list[Event]]:
        """The events of each window behind all steps: its own, then one a head of the recipe."""
        if self.bundle.state:
            events = self.classifier.classify(windows, [self._recall(memory) for memory in memories])
        else:
            events = self.classifier.classify(windows)
        width = 1 + len(self.bundle.heads)
        by_window = (events[i : i + width] for i in range(0, len(events), width))
        return [
            self._of_window([heads[number] for number in self._order], memory)
            for heads, memory in zip(by_window, memories, strict=True)
        ]

    def _of_window(self, events: Sequence[Event], memory: Memory) -> list[Event]:
        own, *heads = (self._pooled(event, memory) for event in events)
        if own.values:  # a regression alone: it says what its heads say
            own = replace(own, values=own.values | {name: n for head in heads for name, n in head.values.items()})
        return [own, *heads]

    def _pooled(self, event: Event, memory: Memory) -> Event:
        # What an hmm has learned is how the recipe's own classes follow each other.
        if self._pool is None or (self._pool.kind != "mean" if event.head else not event.probabilities):
            return event
        states = self._recall(memory).setdefault("pool", {})
        state = states.get(event.head, [])
        if not event.probabilities:
            states[event.head], values = self._pool.step_number(state, event.values)
            return replace(event, values=values)
        states[event.head], row = self._pool.step(state, list(event.probabilities.values()))
        best = max(row)
        label = list(event.probabilities)[row.index(best)] if best and best >= self._min_probability else UNKNOWN
        named = dict(zip(event.probabilities, row, strict=True))
        return replace(event, label=label, probability=best, probabilities=named)

    def _recall(self, memory: Memory) -> dict[str, Any]:
        """What this bundle remembers of a session.

        What another one remembers may be of other classes, and is of another calibration: behind an exchange everything begins anew.
        """
        remembered = memory[0] if memory else None
        if not isinstance(remembered, dict) or remembered.get("bundle") != self.bundle.id:
            remembered = {"bundle": self.bundle.id}
            memory[:] = [remembered]
        return remembered


def softmax(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Probabilities of one window: ``exp(z / T)`` over their sum (Guo et al. 2017, "On Calibration").

    Plain numbers, one window at a time: vectorised exponentials may round by an element's place. Zeros where a logit is
    not finite.
    """
    top = max(logits)
    weights = [math.exp((z - top) / temperature) for z in logits]
    total = sum(weights)
    return [w / total for w in weights] if math.isfinite(total) else [0.0] * len(weights)


def fit_temperature(logits: Sequence[Sequence[float]], classes: Sequence[int]) -> float:
    """The temperature, 0.25 to 8, under which held-out classes are most likely.

    Guo, Pleiss, Sun, Weinberger 2017, On Calibration of Modern Neural Networks, section 4.2.
    """
    z = np.asarray(logits, np.float64)
    z -= z.max(1, keepdims=True)
    right = z[np.arange(len(z)), classes]
    losses = [float(np.mean(np.log(np.exp(z / t).sum(1)) - right / t)) for t in _TEMPERATURES]
    return float(_TEMPERATURES[int(np.argmin(losses))])
