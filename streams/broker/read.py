"""Topics read back without a group. In: a topic. Out: its records, to the end as it stood at the start, or for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from kafka import KafkaConsumer, TopicPartition

from streams.broker.client import client_arguments, kafka_errors
from streams.errors import TopicError
from streams.settings import Settings
from streams.topics import MIB

POLL_MS = 200


class Record(NamedTuple):
    """One record of a topic."""

    partition: int
    offset: int
    time_ms: int
    """Wall time of sending, Unix ms."""
    key: bytes | None
    value: bytes | None
    """None for a deleted key."""


def read_records(
    settings: Settings,
    topic: str,
    *,
    follow: bool = False,
    from_ms: int | None = None,
    stop: Callable[[], bool] | None = None,
) -> Iterator[Record]:
    """Records of all partitions of a topic; in order within a partition.

    Parameters
    ----------
    settings : Settings
        Broker.
    topic : str
        Full name.
    follow : bool
        Go on behind the end, for ever; else end at the offsets that were the ends when the reading began.
    from_ms : int, optional
        Begin at the first record that was sent at or after this, Unix ms.
    stop : callable, optional
        Asked at least five times a second; a true answer ends the reading.

    Raises
    ------
    TopicError
        There is no such topic.
    BrokerError
        The broker cannot be reached.
    """
    with kafka_errors(settings, f"reading {topic}"):
        consumer = whole_topic_consumer(settings)
    try:
        with kafka_errors(settings, f"reading {topic}"):
            ends = _begin(consumer, topic, from_ms)
        open_ends = dict(ends)
        while not (stop and stop()):
            if not follow and not _behind(consumer, open_ends):
                return
            with kafka_errors(settings, f"reading {topic}"):
                batches = consumer.poll(timeout_ms=POLL_MS)
            for place, records in batches.items():
                for r in records:
                    if follow or r.offset < ends[place]:
                        yield Record(r.partition, r.offset, r.timestamp, r.key, r.value)
    finally:
        consumer.close()


def whole_topic_consumer(settings: Settings) -> Any:
    """A client without a group, for reading partitions from end to end; topics are assigned by the caller.

    Raises
    ------
    SettingsError, KafkaError
        If no broker is named, or it does not answer; see :func:`~streams.broker.client.kafka_errors`.
    """
    return KafkaConsumer(
        **client_arguments(settings),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=50,
        max_partition_fetch_bytes=8 * MIB,
        max_poll_records=5000,
        allow_auto_create_topics=False,
        metrics_enabled=False,
    )


def _begin(consumer: Any, topic: str, from_ms: int | None) -> dict[TopicPartition, int]:
    """Stand at the beginning; the ends by partition."""
    partitions = consumer.partitions_for_topic(topic)
    if not partitions:
        raise TopicError(f"there is no topic {topic}; is KYMO_PREFIX right, has anything been replayed?")
    places = [TopicPartition(topic, partition) for partition in sorted(partitions)]
    consumer.assign(places)
    ends: dict[TopicPartition, int] = consumer.end_offsets(places)
    if from_ms is None:
        consumer.seek_to_beginning(*places)
        return ends
    found = consumer.offsets_for_times(dict.fromkeys(places, from_ms))
    for place in places:
        consumer.seek(place, found[place].offset if found.get(place) else ends[place])
    return ends


def _behind(consumer: Any, ends: dict[TopicPartition, int]) -> bool:
    """Whether a partition is still to be read to its end; those that are not leave `ends`."""
    for place in list(ends):
        if ends[place] == 0 or consumer.position(place) >= ends[place]:
            del ends[place]
    return bool(ends)
