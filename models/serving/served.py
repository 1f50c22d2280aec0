"""The model that an agent serves, and its exchange while it runs. In: windows as the recipe's chain cuts them. Out: events, encoded.

A chain is cut behind its window: what stands before is the recipe's and makes the windows of open sessions, what stands behind, with its
learned numbers, is the bundle's and is applied to each window when it is classified. It has no memory, so exchanging a bundle touches no
session: a batch of windows is classified by one bundle, the next by another. Where the new bundle's windows are of another kind (of raw
samples, see :mod:`models.raw`) the agent begins again at its last commit, with the other chain, as if it had crashed.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError
from typing import Any

import numpy as np

from models.bundle import Bundle
from models.classify import Classifier
from models.judge import Judge
from processors.chain import Chain, PerWindow, PerWindowStage
from processors.recipe.load import Recipe
from processors.windows import Windows
from streams.chunk import Header, Window
from streams.errors import BundleError, DeliveryError

_HEADERS = 1_000  # sessions whose formats are remembered
_WARM_UP = 4  # windows
_PATIENCE_S = 60.0  # for an agent that is to begin again with windows of another kind


def cut_behind_window(chain: Chain) -> tuple[Chain, tuple[PerWindow, ...]]:
    """A chain up to its window, and its steps behind it."""
    at = next((i for i, spec in enumerate(chain.specs) if isinstance(spec, Windows)), len(chain.specs) - 1)
    behind = tuple(spec for spec in chain.specs[at + 1 :] if isinstance(spec, PerWindow))
    return Chain(chain.specs[: at + 1]), behind


class Tail:
    """Steps behind the window."""

    def __init__(self, steps: Sequence[PerWindow]) -> None:
        self._steps = steps
        # A stage works out the format of a stream once; the windows of many sessions come mixed, so each has its own.
        self._stages: dict[int, tuple[Header, list[PerWindowStage]]] = {}

    def apply(self, window: Window) -> Window:
        """A window behind all steps."""
        found = self._stages.get(id(window.header))
        if found is None or found[0] is not window.header:
            if len(self._stages) >= _HEADERS:
                self._stages.clear()
            found = self._stages[id(window.header)] = (window.header, [PerWindowStage(step) for step in self._steps])
        for stage in found[1]:
            (window,) = stage.push(window)
        return window


class Model:
    """A bundle ready to serve: checked, loaded, warm."""

    def __init__(self, bundle: Bundle, recipe: Recipe) -> None:
        self.bundle = bundle
        self.classifier = Classifier.for_recipe(bundle, recipe)
        self.head, steps = cut_behind_window(bundle.chain)
        self._tail = Tail(steps)
        self.judge = Judge(self.classifier, recipe)
        random = np.random.default_rng(0).standard_normal((_WARM_UP, *bundle.shape)).astype(bundle.dtype)
        if not np.isfinite(self.classifier.model.run(random)).all():
            raise BundleError(
                f"bundle {bundle.id}: gives numbers that are not finite for ordinary windows; train it again"
            )

    def classify(self, windows: Sequence[Window], memories: Sequence[list[Any]]) -> list[list[bytes]]:
        """Encoded events of each window as `head` makes them, stamped with the present."""
        judged = self.judge.judge([self._tail.apply(window) for window in windows], memories)
        now_ns = time.time_ns()
        return [[event.to_json(now_ns) for event in events] for events in judged]


class Serving:
    """What classifies the windows of a recipe now."""

    def __init__(self, model: Model, recipe: Recipe) -> None:
        self.model, self.recipe = model, recipe
        #: Lets a model take over whose windows are of another kind; None until an agent serves.
        self.rechain: Callable[[Model], None] | None = None

    def same_windows(self, model: Model) -> bool:
        """Whether a model takes windows of the present one's kind."""
        return model.head.digest(learned=False) == self.model.head.digest(learned=False)

    def prepare(self, bundle: Bundle, aside: bool = False) -> Model:
        """A model that may take over from the present one, or score `aside`; to be called in any thread."""
        model = Model(bundle, self.recipe)
        if not self.same_windows(model) and (aside or self.rechain is None):
            raise BundleError(
                f"bundle {bundle.id} takes windows of {bundle.takes!r} input, {self.model.bundle.id} those of "
                f"{self.model.bundle.takes!r}; "
                + ("a shadow scores the champion's" if aside else "the worker has not begun yet")
            )
        return model

    def exchange(self, model: Model) -> None:
        """Classify with `model` from the next batch on; to be called in any thread but the agent's own."""
        if self.rechain is None or self.same_windows(model):
            self.model = model
        else:
            self.rechain(model)

    def classify(self, windows: Sequence[Window], memories: Sequence[list[Any]]) -> list[list[bytes]]:
        """Encoded events of each window, all of one bundle: see :meth:`Model.classify`."""
        return self.model.classify(windows, memories)

    @property
    def memory(self) -> int:
        """Windows before it that an event rests on."""
        return self.model.judge.memory


def from_thread(work: Callable[[Model], Coroutine[Any, Any, None]]) -> Callable[[Model], None]:
    """What has the running loop do some work, and waits for it, in another thread; cancelled, it leaves everything as it was."""
    loop = asyncio.get_running_loop()

    def do(model: Model) -> None:
        asked = asyncio.run_coroutine_threadsafe(work(model), loop)
        try:
            asked.result(_PATIENCE_S)
        except (TimeoutError, CancelledError):
            if asked.cancel() or asked.cancelled():
                raise DeliveryError(f"the agent did not begin again within {_PATIENCE_S:g} s") from None

    return do


def release_memory() -> None:
    """Give back what exchanged models have left.

    The C library keeps what was freed, in a pool for each thread that ever asked; as loading and classifying happen in several, every
    exchange could leave another model's worth behind. (glibc only; elsewhere nothing is done.)
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
