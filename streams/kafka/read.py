"""Topics read back without a group. In: topics. Out: their records, to the end as it stood at the start, or for ever."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any, TypeVar

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import CorruptRecordError, KafkaError, UnsupportedCodecError

from kymo.streams.errors import BrokerError, KymoError, TopicError
from kymo.streams.kafka.client import client_arguments, describe, kafka_errors, patiently
from kymo.streams.messages import Record
from kymo.streams.settings import Settings
from kymo.streams.topics import MIB, Names

Message = TypeVar("Message")
Progress = Callable[[int, int], None]  # told how many of how many records are read
POLL_MS = 200
#: A reading that has an end before it gives up if nothing comes so long, and no error says why.
STALL_S = 60.0


def read_records(
    settings: Settings,
    topics: str | Iterable[str],  # one, which must be there, or several, of which those that are not there are left out
    *,
    follow: bool = False,
    from_ms: int | None = None,  # begin at the first record that was sent at or after this, Unix ms
    stop: Callable[[], bool] | None = None,  # asked at least five times a second; a true answer ends the reading
    on_progress: Progress = lambda _done, _of: None,
) -> Iterator[Record]:
    """Records of all partitions of topics, in order within a partition; to the ends as they stand now, or for ever."""
    names = [topics] if isinstance(topics, str) else list(topics)
    doing = f"reading {names[0]}" if len(names) == 1 else "reading"
    with kafka_errors(settings, doing):
        consumer = whole_topic_consumer(settings)
    with closing(consumer):
        with kafka_errors(settings, doing):
            begins, ends = patiently(settings, doing, lambda: _begin(consumer, names, from_ms))
        if isinstance(topics, str) and not ends:
            raise TopicError(f"there is no topic {topics}; is KYMO_PREFIX right, has anything been replayed?")
        total, done = sum(end - begins[p] for p, end in ends.items()), 0
        reach = Reach(settings, ends, consumer.position)
        while not (stop and stop()) and (follow or reach.unfinished()):
            with kafka_errors(settings, doing):
                batches = patiently(settings, doing, lambda: poll(consumer, POLL_MS))
            for place, records in batches.items():
                done += len(records)
                yield from (_record(r) for r in records if follow or r.offset < ends[place])
            on_progress(done, total)


def _begin(
    consumer: Any, names: Iterable[str], from_ms: int | None
) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
    """Stand at the beginning, or at a time; the first offsets and the ends by partition."""
    places = [TopicPartition(name, n) for name in names for n in sorted(consumer.partitions_for_topic(name) or ())]
    consumer.assign(places)
    if not places:
        return {}, {}
    begins, ends = consumer.beginning_offsets(places), consumer.end_offsets(places)
    if from_ms is None:
        consumer.seek_to_beginning(*places)
        return begins, ends
    offsets = consumer.offsets_for_times(dict.fromkeys(places, from_ms))
    for place in places:
        consumer.seek(place, offsets[place].offset if offsets.get(place) else ends[place])
    return begins, ends


def read_messages(
    settings: Settings,
    name: str,  # of a topic of the table
    decode: Callable[[Record], Message],
    on_odd: Callable[[str], None] | None = None,
    **options: Any,  # as for :func:`read_records`
) -> Iterator[tuple[Record, Message]]:
    """Records of a topic with what they say; of one that says nothing `on_odd` is told, in words, or its error is raised."""
    for record in read_records(settings, Names(settings.prefix).of(name), **options):
        try:
            message = decode(record)
        except KymoError as error:
            text = f"{record.topic}, partition {record.partition}, offset {record.offset}: {error}"
            if on_odd is None:
                raise type(error)(text) from None
            on_odd(text)
        else:
            yield record, message


class Reach:
    """How far a reading is from the ends that there were when it began."""

    def __init__(self, settings: Settings, ends: Mapping[Any, int], position: Callable[[Any], int | None]) -> None:
        self._settings, self._position = settings, position
        self._open = {place: end for place, end in ends.items() if end}
        self._at: dict[Any, int] = {}
        self._since = time.monotonic()

    def unfinished(self) -> bool:
        doing = "asking how far it has been read"
        with kafka_errors(self._settings, doing):
            at = patiently(self._settings, doing, lambda: {place: self._position(place) or 0 for place in self._open})
        self._open = {place: end for place, end in self._open.items() if at[place] < end}
        if at != self._at:
            self._at, self._since = at, time.monotonic()
        elif self._open and time.monotonic() - self._since > STALL_S:
            place, end = next(iter(self._open.items()))
            raise BrokerError(
                f"Kafka at {self._settings.brokers}: {place[0]}, partition {place[1]} goes on from offset "
                f"{at[place]} to {end}, but nothing came for {STALL_S:g} s; see the broker's log"
            )
        return bool(self._open)


def poll(consumer: Any, timeout_ms: int) -> dict[TopicPartition, list[Any]]:
    """Records of a consumer; after an error here that is a BrokerError it must not be asked again: the client would spin."""
    try:
        batches: dict[TopicPartition, list[Any]] = consumer.poll(timeout_ms=timeout_ms)
    except UnsupportedCodecError as error:
        raise BrokerError(
            f"{_where(consumer)} cannot be read ({describe(error)}): pip install 'kymo-streams[kafka]' brings all that Kafka "
            "compresses with"
        ) from None
    except Exception as error:
        of_kafka = isinstance(error, KafkaError) and not isinstance(error, CorruptRecordError)
        if of_kafka or (isinstance(error, OSError) and error.errno is not None):  # gzip's has no number
            raise
        raise BrokerError(
            f"{_where(consumer)} is damaged ({describe(error)}); what comes before it is whole. Restore the partition from "
            "a replica, or give these records up: kafka-delete-records.sh to an offset behind them"
        ) from None
    return batches


def _where(consumer: Any) -> str:
    """What the client was unpacking; it has no public name for that."""
    part = getattr(getattr(consumer, "_fetcher", None), "_next_partition_records", None)
    if part is None:
        return "a record"
    place = part.topic_partition
    return f"{place.topic}, partition {place.partition}, offset {part.next_fetch_offset}: the record"


def _record(r: Any) -> Record:
    return Record(r.topic, r.partition, r.offset, r.timestamp, r.timestamp_type, r.key, r.value, r.headers)


def whole_topic_consumer(settings: Settings, **changes: Any) -> Any:
    """A client without a group, for reading partitions from end to end; topics are assigned by the caller."""
    arguments: dict[str, Any] = {
        "group_id": None,
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        "fetch_max_wait_ms": 50,
        "max_partition_fetch_bytes": 8 * MIB,
        "max_poll_records": 5000,
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
    }
    return KafkaConsumer(**client_arguments(settings), **arguments | changes)
