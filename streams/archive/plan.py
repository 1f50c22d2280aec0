"""How an archive is written, and what it has done. In: sizes in bytes and seconds. Out: the same, for the archive and its metrics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from streams.settings import Settings
from streams.topics import MIB, TABLE

#: What is worth keeping: snapshots are of no use without their workers, rejected bytes are kept by Kafka for a day.
TOPICS = tuple(topic.name for topic in TABLE if topic.name not in ("state", "rejected"))


@dataclass(frozen=True, slots=True)
class ArchivePlan:
    """How an archive is written."""

    segment_bytes: int = 256 * MIB  # a segment is closed when its file is this large
    segment_s: float = 300.0  # … or when it has been open this long
    topics: tuple[str, ...] = TOPICS  # names in the table, without the prefix


@dataclass(slots=True)
class ArchiveCounts:
    """What an archive has done since it was started, for metrics."""

    records: int = 0  # stored, in closed and open segments; bytes of values
    bytes: int = 0
    segments: int = 0
    lost: int = 0  # offsets that Kafka no longer had
    behind: int = 0  # records that wait in Kafka, as of the last look
    partitions: int = 0  # that are read
    errors: int = 0  # failed looks at the topics; the archive goes on
    last_closed_s: float = 0.0  # Unix time of the newest segment's end, s; 0 before


def default_folder(settings: Settings) -> Path:
    """Where the archive of the settings' prefix stands: ``archive/PREFIX`` under KYMO_HOME."""
    return settings.home / "archive" / settings.prefix
