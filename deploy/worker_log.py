"""What a worker says on stderr. In: what it has to say, log records of Faust and of Kafka's clients. Out: a line each, but not the same
one again and again; of a broker that is away the worker tells by itself, once.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

from streams.sources.words import brief

#: Faust's complaint about a sensor state that it keeps for its own statistics only, at every first assignment.
_MEANINGLESS = ("Missing sensor state",)
#: What Kafka's clients say, many times a second, while they look for a broker.
_CLIENTS = ("aiokafka", "kafka")
_LOOKING = ("onnect", "oordinator", "metadata", "Heartbeat", "Failed fetch", "ootstrap")


def say(text: str) -> None:
    """A line for whoever watches a worker."""
    print(f"kymo worker: {text}", file=sys.stderr, flush=True)


class Sparse(logging.Filter):
    """Lets a message pass once in a while, and then says how often it was held back.

    What clients say while they look for a broker does not pass: the last of it is kept, for whoever tells of the broker.

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
        self.reason = ""  # what a client has said last of a broker that it looks for

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to print `record`; its message may be completed."""
        text = str(record.msg)
        if any(meaningless in text for meaningless in _MEANINGLESS):  # behind the name of the service
            return False
        if record.name.partition(".")[0] in _CLIENTS and any(word in text for word in _LOOKING):
            self.reason = brief(record.getMessage())
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


SPARSE = Sparse()


def set_up_logging() -> None:
    """Print warnings and worse on stderr, sparsely."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("kymo worker: %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(SPARSE)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
