"""The signals that ask a process to end. In: what to do at one. Out: the same done for all of them, for a while."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

#: Ctrl-C, SIGTERM and a closed terminal.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def at_end_signals(handler: Callable[..., Any]) -> Iterator[None]:
    """Have `handler` called at each of :data:`ENDING`; what was there before is put back afterwards."""
    before = [signal.signal(number, handler) for number in ENDING]
    try:
        yield
    finally:
        for number, former in zip(ENDING, before, strict=True):
            signal.signal(number, former)
