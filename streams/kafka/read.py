"""Topics read back without a group. In: topics. Out: their records, to the end as it stood at the start, or for ever."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import CorruptRecordError, KafkaError, UnsupportedCodecError

from kymo.streams import chunk_pb2
from kymo.streams.errors import BrokerError, MessageError, TopicError
from kymo.streams.kafka.client import client_arguments, describe, kafka_errors, patiently
from kymo.streams.messages import read_object
from kymo.streams.settings import Settings
from kymo.streams.topics import CHUNK_TOPICS, MIB, Place

POLL_MS = 200
#: A reading that has an end before it gives up if nothing comes so long, and no error says why.
STALL_S = 60.0


class Record(NamedTuple):
    """One record of a topic."""

    topic: str
    partition: int
    offset: int
    time_ms: int
    """Wall time of sending, Unix ms."""
    key: bytes | None
    value: bytes | None
    """None for a deleted key."""
    headers: Sequence[tuple[str, bytes | None]] = ()


def session_of(record: Any) -> bytes:
    """Whose a record is: by its key, or where another program left that out by what its JSON or its chunk says; empty if nobody's.

    Examples
    --------
    >>> session_of(Record("kymo.labels", 0, 0, 0, None, b'{"session": "s1"}'))
    b's1'
    """
    if record.key is not None:
        return bytes(record.key.rpartition(b"\n")[2])
    if record.topic.rpartition(".")[2] in (*CHUNK_TOPICS, "rejected"):
        try:
            return chunk_pb2.Chunk.FromString(record.value or b"").session.encode()
        except DecodeError:
            return b""
    try:
        session = read_object(record.value).get("session")
    except MessageError:
        return b""
    return session.encode() if isinstance(session, str) else b""


def read_records(
    settings: Settings,
    topic: str,
    *,
    follow: bool = False,
    from_ms: int | None = None,  # begin at the first record that was sent at or after this, Unix ms
    stop: Callable[[], bool] | None = None,  # asked at least five times a second; a true answer ends the reading
) -> Iterator[Record]:
    """Records of all partitions of a topic; in order within a partition."""
    doing = f"reading {topic}"
    with _consumer(settings, doing) as consumer:
        with kafka_errors(settings, doing):
            ends = patiently(settings, doing, lambda: _begin(consumer, topic, from_ms))
        reach = Reach(settings, ends, consumer.position)
        while not (stop and stop()) and (follow or reach.unfinished()):
            with kafka_errors(settings, doing):
                batches = patiently(settings, doing, lambda: poll(consumer, POLL_MS))
            for place, records in batches.items():
                for r in records:
                    if follow or r.offset < ends[place]:
                        yield _record(r)


def read_topics(
    settings: Settings,
    topics: Iterable[str],
    on_progress: Callable[[int, int], None] = lambda _done, _of: None,
    ends_out: dict[Place, int] | None = None,  # gets the ends by partition
) -> Iterator[Record]:
    """Records of all partitions of several topics, to the ends as they stand now; topics that are not there are left out."""
    names = list(topics)
    doing = f"reading {names[0]}" if len(names) == 1 else "reading"
    with _consumer(settings, doing) as consumer:

        def begin() -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
            places = [TopicPartition(t, n) for t in names for n in sorted(consumer.partitions_for_topic(t) or ())]
            consumer.assign(places)
            if not places:
                return {}, {}
            consumer.seek_to_beginning(*places)
            return consumer.beginning_offsets(places), consumer.end_offsets(places)

        with kafka_errors(settings, doing):
            begins, ends = patiently(settings, doing, begin)
        if ends_out is not None:
            ends_out.update({(p.topic, p.partition): end for p, end in ends.items()})
        total, done = sum(end - begins[p] for p, end in ends.items()), 0
        reach = Reach(settings, ends, consumer.position)
        while reach.unfinished():
            with kafka_errors(settings, doing):
                batches = patiently(settings, doing, lambda: poll(consumer, POLL_MS))
            for place, records in batches.items():
                done += len(records)
                yield from (_record(r) for r in records if r.offset < ends[place])
            on_progress(done, total)


class Reach:
    """How far a reading is from the ends that there were when it began."""

    def __init__(self, settings: Settings, ends: Mapping[Any, int], position: Callable[[Any], int | None]) -> None:
        self._settings, self._position = settings, position
        self._open = {place: end for place, end in ends.items() if end}
        self._at: dict[Any, int] = {}
        self._since = time.monotonic()

    def unfinished(self) -> bool:
        """Whether something is still to be read."""
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
    return Record(r.topic, r.partition, r.offset, r.timestamp, r.key, r.value, r.headers)


@contextmanager
def _consumer(settings: Settings, doing: str) -> Iterator[Any]:
    with kafka_errors(settings, doing):
        consumer = whole_topic_consumer(settings)
    try:
        yield consumer
    finally:
        consumer.close()


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
    offsets = consumer.offsets_for_times(dict.fromkeys(places, from_ms))
    for place in places:
        consumer.seek(place, offsets[place].offset if offsets.get(place) else ends[place])
    return ends
