"""Several iterables worked off at once, in threads. In: keys with what makes their items. Out: the items, key by key, in order.

For work that leaves the interpreter to others, as numpy's does. Each iterable is at most a given number of items ahead of whoever
takes them, so that memory stays bounded.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, Full, Queue
from typing import Generic, TypeVar

Key = TypeVar("Key")
Item = TypeVar("Item")
_POLL_S = 0.1  # how soon a thread notices that nobody takes its items any more


class _Ahead(Generic[Key, Item]):
    """One iterable in a thread of its own."""

    def __init__(self, key: Key, make: Callable[[], Iterable[Item]], room: int, over: threading.Event) -> None:
        self.key, self._make, self._over = key, make, over
        self._queue: Queue[tuple[Item] | None] = Queue(room)
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._work, daemon=True, name="ahead")
        self.thread.start()

    def _work(self) -> None:
        try:
            for item in self._make():
                if not self._put((item,)):
                    return
        except BaseException as error:  # raised again where the items are taken
            self._error = error
        self._put(None)

    def _put(self, entry: tuple[Item] | None) -> bool:
        while not self._over.is_set():
            try:
                self._queue.put(entry, timeout=_POLL_S)
            except Full:
                continue
            return True
        return False

    def items(self) -> Iterator[Item]:
        """What comes, until it ends or fails."""
        while (entry := self._queue.get()) is not None:
            yield entry[0]
        if self._error is not None:
            raise self._error

    def empty(self) -> None:
        """Forget what waits."""
        while True:
            try:
                self._queue.get_nowait()
            except Empty:
                return


def in_order(
    jobs: Iterable[tuple[Key, Callable[[], Iterable[Item]]]], threads: int, room: int = 32
) -> Iterator[tuple[Key, Iterator[Item]]]:
    """Each key with its items.

    Parameters
    ----------
    jobs : iterable of (key, callable)
        Taken as threads become free, in the caller's thread; a callable gives the items.
    threads : int
        How many are worked off at once, at least 1.
    room : int
        Items that each may be ahead, at least 1.

    Yields
    ------
    tuple of (key, iterator)
        The iterator must be used up before the next key is asked for; it raises what making the items raised.
    """
    over, begun, source = threading.Event(), deque[_Ahead[Key, Item]](), iter(jobs)
    try:
        while True:
            while len(begun) < threads and (job := next(source, None)) is not None:
                begun.append(_Ahead(job[0], job[1], room, over))
            if not begun:
                return
            yield begun[0].key, begun[0].items()
            begun.popleft()
    finally:
        over.set()
        for ahead in begun:
            ahead.empty()
            ahead.thread.join()
