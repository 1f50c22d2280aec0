"""What an archive says while Kafka cannot be asked. In: failing calls. Out: a line when that begins, one when it ends; a count."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from kafka.errors import (
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    NodeNotReadyError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)

from streams.archive.plan import ArchiveCounts
from streams.kafka.client import describe
from streams.settings import Settings

_ABSENT = (ConnectionError, KafkaConnectionError, KafkaTimeoutError, NodeNotReadyError)


class Trouble:
    """Lets calls fail for a while."""

    def __init__(self, settings: Settings, counts: ArchiveCounts, tell: Callable[[str], None]) -> None:
        self._where, self._counts, self._tell = f"Kafka at {settings.brokers}", counts, tell
        self._told: dict[str, str] = {}  # by what was being done, what was said last

    @property
    def lasts(self) -> bool:
        """Whether something still fails."""
        return bool(self._told)

    @contextlib.contextmanager
    def passing(self, doing: str) -> Iterator[None]:
        """Do something that may fail, and will be done again.

        An error of Kafka is told when it is another one than last time; offsets that are not there are not this one's affair.
        """
        try:
            yield
        except (OffsetOutOfRangeError, NoOffsetForPartitionError):
            raise
        except (KafkaError, OSError) as error:
            self._counts.errors += 1
            absent = isinstance(error, _ABSENT)
            what = "cannot be reached" if absent else f"refuses {doing} ({describe(error)})"
            known = what in self._told.values()  # that Kafka is away is one matter, whatever finds it out
            self._told[doing] = what
            if not known:
                self._tell(f"{self._where} {what}; trying again until it works, or Ctrl-C")
            return
        what = self._told.pop(doing, "")
        if what and what not in self._told.values():
            self._tell(f"{self._where}: {doing} works again")
