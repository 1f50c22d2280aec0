"""Every topic in one table. In: a prefix. Out: names, and what the broker must know of each (partitions, retention, size limits)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

_HOUR_MS = 3_600_000
MIB = 2**20
MESSAGE_MAX = 4 * MIB
Place = tuple[str, int]  # a topic's full name and a partition
REJECTED_EXTRA = 64 * 1024
#: A worker's record that reaches the broker later than this after it was made is refused there. It is what fences a worker that was
#: stopped and comes back: others own its partitions only after the session timeout, which is longer.
FENCE_MS = 4_000


@dataclass(frozen=True, slots=True)
class Topic:
    name: str  # without the prefix
    carries: str  # what its messages are
    retention_ms: int = 24 * _HOUR_MS  # how long messages stay; -1 for ever
    retention_bytes: int = 2 * 1024 * MIB  # cap a partition; -1 for none
    compact: bool = False  # whether only the newest message of a key is kept
    partitions: int | None = None  # a fixed count; None for the setting's, equal for all keyed by session
    message_max: int = MESSAGE_MAX  # largest message, bytes
    # written by workers only, which may be stopped and overtaken: records older than :data:`FENCE_MS` are refused
    fenced: bool = False

    def config(self) -> dict[str, str]:
        """Topic configuration as the broker names it."""
        entries = {
            "max.message.bytes": str(self.message_max),
            "cleanup.policy": "compact" if self.compact else "delete",
            "retention.ms": "-1" if self.compact else str(self.retention_ms),
            "retention.bytes": "-1" if self.compact else str(self.retention_bytes),
            # The event time stands in the payload; a replay of an old recording must not fall under retention at once.
            "message.timestamp.type": "CreateTime",
        }
        if self.fenced:
            entries["message.timestamp.before.max.ms"] = str(FENCE_MS)
        if self.compact:
            entries |= {"min.cleanable.dirty.ratio": "0.1", "segment.ms": str(_HOUR_MS)}
        return entries


_MONTH_MS = 30 * 24 * _HOUR_MS
TABLE: tuple[Topic, ...] = (
    Topic("sensor", "Chunk: IMU and other sensors"),
    Topic("physio", "Chunk: EDA, BVP, temperature, pupil, IBI"),
    Topic("pose", "Chunk: keypoints, ingested or derived"),
    Topic("video", "Chunk: frames", retention_bytes=4 * 1024 * MIB),
    Topic("spectrogram", "Chunk: derived spectrogram columns", fenced=True),
    Topic("animation", "Chunk: derived animation frames", fenced=True),
    Topic("events", "Event JSON", retention_ms=_MONTH_MS, fenced=True),
    Topic("shadow", "Event JSON of a shadow bundle", retention_ms=_MONTH_MS, fenced=True),
    Topic("alerts", "Alert JSON", retention_ms=_MONTH_MS),
    Topic("labels", "Label JSON", retention_ms=-1, retention_bytes=-1),
    Topic("sessions", "session metadata JSON", compact=True),
    Topic("models", "bundle promotions JSON", compact=True, partitions=1),
    Topic("state", "snapshots of quiet and slow sessions", compact=True, message_max=8 * MIB, fenced=True),
    Topic("rejected", "bytes that were no message, with the reason", message_max=MESSAGE_MAX + REJECTED_EXTRA),
)
BY_NAME = {topic.name: topic for topic in TABLE}
#: Raw streams go to the topic of their kind; kinds that are not named here are sensors.
TOPIC_OF_KIND = {
    **dict.fromkeys(("eda", "bvp", "temperature", "pupil", "ibi", "hr"), "physio"),
    **{kind: kind for kind in ("pose", "video", "spectrogram", "animation")},
}
CHUNK_TOPICS = ("sensor", "physio", "pose", "video", "spectrogram", "animation")


@dataclass(frozen=True, slots=True)
class Names:
    """Full topic names under a prefix.

    >>> Names("kymo").of("events"), Names("kymo.7").for_stream("imu.left")
    ('kymo.events', 'kymo.7.sensor')
    """

    prefix: str = "kymo"

    def of(self, name: str) -> str:
        return f"{self.prefix}.{BY_NAME[name].name}"

    def for_stream(self, stream: str) -> str:
        return self.of(topic_of(stream))


class _Input(Protocol):
    """What takes a stream, or all of a kind."""

    @property
    def stream(self) -> str: ...


_In = TypeVar("_In", bound=_Input)


def input_of(stream: str, inputs: Sequence[_In]) -> _In | None:
    """The input that a stream of this name is: an exact name comes before a kind."""
    names = (stream, stream.partition(".")[0])
    return next((item for name in names for item in inputs if item.stream == name), None)


def topic_of(stream: str) -> str:
    """Name in the table of the topic that carries a stream, by its kind."""
    return TOPIC_OF_KIND.get(stream.partition(".")[0], "sensor")
