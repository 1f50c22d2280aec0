"""The shadow: a second model that scores the same windows. In: classified windows. Out: its events on ``kymo.shadow``.

It never stands in the way of the champion: it has a thread of its own at low priority and a bounded queue; windows that find it full are
dropped and counted, and so are events that the broker does not take.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from queue import Empty, Full, Queue
from typing import Any

from models.serving.outbox import Outbox, Outgoing
from models.serving.served import Model

_ROOM = 256  # windows that may wait
_BATCH = 16
_NICE = 10
_SESSIONS = 10_000  # whose memories are kept
_log = logging.getLogger(__name__)
SILENT = (
    -1
)  # instead of a partition: an earlier life has published the window, which is scored for those that rest on it
Scored = tuple[int, Any]  # number of the partition, window


class Shadow:
    """Scores windows aside."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.model: Model | None = None  # what scores; None for nothing
        # ``scored``, ``dropped`` (it, or the broker, was too slow), ``failed`` (could not be scored or published)
        self.counts: Counter[str] = Counter()
        self._queue: Queue[Scored] = Queue(_ROOM)
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
        if self.model is None:
            return
        if self._outbox is not None and self._outbox.full:
            self.counts["dropped"] += len(windows)
            return
        for number, item in enumerate(windows):
            try:
                self._queue.put_nowait(item)
            except Full:
                self.counts["dropped"] += len(windows) - number
                return

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
            model = self.model
            if not batch or model is None:
                continue
            try:
                events = model.classify(
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
                _log.warning("shadow %s: %s", model.bundle.id, error)

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
        return batch
