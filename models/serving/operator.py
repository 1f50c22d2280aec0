"""What an agent does. In: windows as its chain cuts them. Out: encoded events, by the champion; those of the shadow on ``kymo.shadow``.

A chain is cut behind its window: what stands before is the recipe's and makes the windows of open sessions, what stands behind, with its
learned numbers, is the bundle's and is applied to each window when it is classified. It has no memory, so exchanging a bundle touches no
session: a batch of windows is classified by one bundle, the next by another. Where the new bundle's windows are of another kind (of raw
samples, see :mod:`kymo.models.bundle`) the agent begins again at its last commit, with the other chain, as if it had crashed.

The shadow is a second model that scores the same windows. It never stands in the way of the champion: it has a thread of its own at low
priority and a bounded queue; windows that find it full are dropped and counted, and so are events that the broker does not take.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from queue import Empty, Full, Queue
from typing import Any

from kymo.models.bundle import Bundle
from kymo.models.predict import Predictor
from kymo.models.serving.joined import Patience
from kymo.models.serving.outputs import Outputs
from kymo.models.serving.processes import Processes
from kymo.models.serving.runtime import Outbox, Outgoing
from kymo.models.serving.sessions import Listener
from kymo.processors.chain import Chain
from kymo.processors.recipe.load import Recipe
from kymo.streams.budget import PENDING
from kymo.streams.chunk import Format
from kymo.streams.errors import BundleError, DeliveryError

Classify = Callable[[Sequence[Any], Sequence[list[Any]]], list[list[bytes]]]
_PATIENCE_S = 60.0  # for an agent that is to begin again with windows of another kind
_ROOM = 256  # windows, of :data:`PENDING` bytes, that may wait for a shadow
_BATCH = 16
_NICE = 10
_SESSIONS = 10_000  # whose memories a shadow keeps
#: Instead of a partition: an earlier life has published the window, which is scored for those that rest on it.
SILENT = -1
Scored = tuple[int, Any]  # number of the partition, window
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Operator:
    """What an agent does for one recipe."""

    recipe: str  # its name; of a processor, that of its steps, which recipes may share
    state: str  # under which name its snapshots stand
    # full names of the topics that it reads; the group may have others, for members whose windows are of another kind
    inputs: tuple[str, ...]
    chain: Chain  # from the input's chunks to windows, or to derived chunks
    outputs: Outputs  # what the chain's outputs are
    topic: str  # full name of the topic for them
    matches: Callable[[Format], str | None]  # none for a stream that the recipe takes, else the reason why not
    # outputs, with their sessions' memories, to the values of each one's records, where no champion classifies; called in a thread
    # of its own
    classify: Classify | None
    shadow: Shadow | None = None  # what scores the same windows aside
    champion: Champion | None = None
    anew: Callable[[Bundle], Operator] | None = None  # the operator for a bundle whose windows are of another kind
    patience: Mapping[str, Patience] = field(
        default_factory=dict
    )  # by branch of several inputs, how long it is waited for
    # what makes a listener for a new session: from its chunks, why they are doubtful (empty: they are not), or None: go on
    listen: Callable[[], Listener] | None = None
    processes: Processes | None = None  # what does the slow step behind the chain, where `classify` is None
    age_s: float = 0.0  # what comes live and has waited for longer is dropped before it; 0 for nothing


class Champion:
    """The predictor that classifies a recipe's windows now."""

    def __init__(self, predictor: Predictor, recipe: Recipe) -> None:
        self.predictor, self.recipe = predictor, recipe
        #: Lets a predictor take over whose windows are of another kind; None until an agent serves.
        self.rechain: Callable[[Predictor], None] | None = None

    def same_windows(self, predictor: Predictor) -> bool:
        """Whether a predictor takes windows of the present one's kind."""
        return predictor.head.digest(learned=False) == self.predictor.head.digest(learned=False)

    def prepare(self, bundle: Bundle, aside: bool = False) -> Predictor:
        """A predictor that may take over from the present one, or score `aside`; to be called in any thread."""
        predictor = Predictor.to_serve(bundle, self.recipe)
        if not self.same_windows(predictor) and (aside or self.rechain is None):
            champion = self.predictor.bundle
            raise BundleError(
                f"bundle {bundle.id} takes windows of {bundle.takes!r} input, {champion.id} those of {champion.takes!r}; "
                + ("a shadow scores the champion's" if aside else "the worker has not begun yet")
            )
        return predictor

    def exchange(self, predictor: Predictor) -> None:
        """Classify with `predictor` from the next batch on; to be called in any thread but the agent's own."""
        if self.rechain is None or self.same_windows(predictor):
            self.predictor = predictor
        else:
            self.rechain(predictor)


def from_thread(work: Callable[[Predictor], Coroutine[Any, Any, None]]) -> Callable[[Predictor], None]:
    """What has the running loop do some work, and waits for it, in another thread; cancelled, it leaves everything as it was."""
    loop = asyncio.get_running_loop()

    def run(predictor: Predictor) -> None:
        future = asyncio.run_coroutine_threadsafe(work(predictor), loop)
        try:
            future.result(_PATIENCE_S)
        except (TimeoutError, CancelledError):
            if future.cancel() or future.cancelled():
                raise DeliveryError(f"the agent did not begin again within {_PATIENCE_S:g} s") from None

    return run


class Shadow:
    """Scores windows aside."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.predictor: Predictor | None = None  # what scores; None for nothing
        # ``scored``, ``dropped`` (it, or the broker, was too slow), ``failed`` (could not be scored or published)
        self.counts: Counter[str] = Counter()
        self._queue: Queue[Scored] = Queue(_ROOM)
        self._bytes = 0  # of the windows in it
        self._lock = threading.Lock()
        self._outbox: Outbox | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._memories: dict[str, list[Any]] = {}  # by session, for pooling

    def start(self, outbox: Outbox) -> None:
        """Begin; to be called in the event loop that `outbox` lives in."""
        loop, self._outbox = asyncio.get_running_loop(), outbox
        self._thread = threading.Thread(target=self._work, args=(loop, outbox), name="shadow", daemon=True)
        self._thread.start()

    def offer(self, windows: Sequence[Scored]) -> None:
        """Windows to score; returns at once."""
        if self.predictor is None:
            return
        if self._outbox is not None and self._outbox.full:
            self.counts["dropped"] += len(windows)
            return
        for number, item in enumerate(windows):
            try:
                if self._bytes >= PENDING:
                    raise Full
                self._queue.put_nowait(item)
            except Full:
                self.counts["dropped"] += len(windows) - number
                return
            self._waits(item[1].nbytes)

    def _waits(self, size: int) -> None:
        with self._lock:
            self._bytes += size

    def failed(self, error: BaseException) -> None:
        """An event was not taken; nothing depends on it."""
        self.counts["failed"] += 1
        _log.warning("a shadow's events were not published: %s", error)

    def close(self) -> None:
        """Score nothing more."""
        self._stopped = True

    def _work(self, loop: asyncio.AbstractEventLoop, outbox: Outbox) -> None:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while not self._stopped:
            batch = self._next()
            predictor = self.predictor
            if not batch or predictor is None:
                continue
            try:
                events = predictor.serve(
                    [window for _, window in batch], [self._memory(window.session) for _, window in batch]
                )
                for (partition, window), values in zip(batch, events, strict=True):
                    if partition != SILENT:
                        records = [Outgoing(window.session.encode(), value) for value in values]
                        loop.call_soon_threadsafe(outbox.put, self.topic, partition, records)
                self.counts["scored"] += len(batch)
            except RuntimeError:  # the loop has ended
                return
            except Exception as error:  # whatever a model does wrong must not reach the champion
                self.counts["failed"] += len(batch)
                _log.warning("shadow %s: %s", predictor.bundle.id, error)

    def _memory(self, session: str) -> list[Any]:
        if session not in self._memories and len(self._memories) >= _SESSIONS:
            self._memories.clear()
        return self._memories.setdefault(session, [])

    def _next(self) -> list[Scored]:
        batch: list[Scored] = []
        try:
            batch.append(self._queue.get(timeout=0.5))
            while len(batch) < _BATCH:
                batch.append(self._queue.get_nowait())
        except Empty:
            pass
        self._waits(-sum(window.nbytes for _, window in batch))
        return batch


def release_memory() -> None:
    """Give back the memory of exchanged models.

    The C library keeps what was freed, in a pool for each thread that ever asked; as loading and classifying happen in several, every
    exchange could leave another model's worth behind. (glibc only; elsewhere nothing is done.)
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
