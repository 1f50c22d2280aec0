"""What a worker says on stderr. In: what it has to say, log records of Faust and of Kafka's clients. Out: a line each, but not the same
one again and again; of a broker that is away the worker tells by itself, once.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

#: Faust's complaint about a sensor state that it keeps for its own statistics only, at every first assignment.
_MEANINGLESS = ("Missing sensor state",)
#: What Kafka's clients say, many times a second, while they look for a broker; but for what a broker has answered.
_CLIENTS = ("aiokafka", "kafka")
_LOOKING = (
    "onnect",
    "oordinator",
    "update metadata",
    "request metadata",
    "etadata refresh",
    "Heartbeat",
    "Failed fetch",
    "ootstrap",
)
_ANSWERED = ("not found", "for topic", "uthenti", "uthoriz")
_USUAL = "rebalancing"
_LONGEST = 200
_PATIENCE_S = 30.0  # so long it is the worker's to tell of a broker


def say(text: str) -> None:
    """Print a line for whoever watches a worker."""
    print(f"kymo worker: {text}", file=sys.stderr, flush=True)


class Sparse(logging.Filter):
    """Lets a message pass once in a while, and then says how often it was held back.

    What clients say while they look for a broker does not pass for a while, nor where it is told that none answers: the last of it is
    kept, for whoever tells.
    """

    def __init__(self, every_s: float = 10.0, now_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._every_s, self._now_s = every_s, now_s
        self._last: dict[
            tuple[str, str], tuple[float, int]
        ] = {}  # when each was printed, how many were held back since
        self.away = False  # whether it is told that no broker answers
        self._reason = ""  # the last that a client said while it looked for a broker
        self._looking_s = (float("-inf"), float("-inf"))  # since when clients look for one, until when

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to print `record`; its message may be completed."""
        text = str(record.msg)
        if any(meaningless in text for meaningless in _MEANINGLESS):  # behind the name of the service
            return False
        if self._is_looking(record, text):
            return False
        key, now_s = (record.name, text), self._now_s()
        printed_s, held_back = self._last.get(key, (float("-inf"), 0))
        if now_s - printed_s < self._every_s:
            self._last[key] = (printed_s, held_back + 1)
            return False
        self._last[key] = (now_s, 0)
        if held_back:
            record.msg, record.args = f"{record.getMessage()} ({held_back} more like it)", None
        return True

    def reason(self, within_s: float) -> str:
        """What a client has said of a broker that it looks for within the last seconds, if anything."""
        return self._reason if self._now_s() - self._looking_s[1] <= within_s else ""

    def _is_looking(self, record: logging.LogRecord, text: str) -> bool:
        """Whether a record is the worker's own to tell of."""
        message = record.getMessage()
        if (
            record.name.partition(".")[0] not in _CLIENTS
            or record.exc_info
            or any(word in message for word in _ANSWERED)
            or not any(word in text for word in _LOOKING)
        ):
            return False
        if _USUAL in message:
            return True
        now_s, (since_s, last_s) = self._now_s(), self._looking_s
        since_s = now_s if now_s - last_s > _PATIENCE_S else since_s
        self._reason, self._looking_s = " ".join(message.split())[:_LONGEST], (since_s, now_s)
        return self.away or now_s - since_s < _PATIENCE_S


SPARSE = Sparse()


def set_up_logging() -> None:
    """Print warnings and worse on stderr, sparsely."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("kymo worker: %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(SPARSE)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
