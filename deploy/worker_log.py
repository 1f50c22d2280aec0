"""What a worker says on stderr. In: log records of Faust, aiokafka and Kymo. Out: one line each, and not the same one again and again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

#: Faust's complaint about a sensor state that it keeps for its own statistics only, at every first assignment.
_MEANINGLESS = ("Missing sensor state",)


class Sparse(logging.Filter):
    """Lets a message pass once in a while, and then says how often it was held back.

    A broker that is away makes its client say so many times a second.

    Parameters
    ----------
    every_s : float
        Seconds between two of the same kind (same logger, same text but for its arguments).
    now_s : callable
        A monotonic clock.
    """

    def __init__(self, every_s: float = 10.0, now_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._every_s, self._now_s = every_s, now_s
        self._last: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to print `record`; its message may be completed."""
        text = str(record.msg)
        if any(meaningless in text for meaningless in _MEANINGLESS):  # behind the name of the service
            return False
        key, now = (record.name, text), self._now_s()
        then, held = self._last.get(key, (float("-inf"), 0))
        if now - then < self._every_s:
            self._last[key] = (then, held + 1)
            return False
        self._last[key] = (now, 0)
        if held:
            record.msg, record.args = f"{record.getMessage()} ({held} more like it)", None
        return True


def set_up_logging() -> None:
    """Print warnings and worse on stderr, sparsely."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("kymo worker: %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(Sparse())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
