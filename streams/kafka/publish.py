"""Acknowledged, idempotent sending with kafka-python. In: topic, key, bytes. Out: records, each once and in order.

The key is a session's name; the partition is Java's (murmur2). When more than `max_unacknowledged` bytes wait for the
broker, `send` blocks: the caller falls behind its schedule, and nothing is lost. After the first failure nothing more
is sent, so that what is there is a beginning without holes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from kafka import KafkaProducer

from kymo.streams.errors import DeliveryError
from kymo.streams.kafka.client import client_arguments, describe, kafka_errors, partition_of
from kymo.streams.messages import Record
from kymo.streams.settings import Settings
from kymo.streams.topics import BY_NAME, MIB, Names

#: A record alone in its batch: 61 bytes of batch header, at most 21 of record header, five lengths.
RECORD_OVERHEAD = 61 + 21 + 5
BATCH_BYTES = MIB
REQUEST_TIMEOUT_S = 10.0
DELIVERY_TIMEOUT_S = 120.0


class Publisher:
    """A producer for the topics of one prefix; to be used from one thread."""

    def __init__(
        self,
        settings: Settings,
        names: Names,
        *,
        max_unacknowledged: int = 32 * MIB,  # bytes that may wait for their acknowledgement before `send` blocks
        linger_ms: int = 0,  # how long a record may wait for others to share its batch
        delivery_timeout_s: float = DELIVERY_TIMEOUT_S,
    ) -> None:
        self.names, self.sent, self.acknowledged, self.bytes = names, 0, 0, 0
        self._settings, self._limit = settings, max_unacknowledged
        self._timeout_s = delivery_timeout_s
        self._changed = threading.Condition()
        self._waiting_bytes = 0
        self.failure = ""  # the first that was not delivered, on one line
        self._partitions: dict[str, int] = {}
        self._places: dict[tuple[str, str], tuple[bytes, int]] = {}
        with kafka_errors(settings, "connecting"):
            self._producer: Any = KafkaProducer(
                **client_arguments(settings),
                acks="all",
                enable_idempotence=True,
                batch_size=BATCH_BYTES,
                linger_ms=linger_ms,
                max_request_size=2 * max(topic.message_max for topic in BY_NAME.values()),
                request_timeout_ms=int(REQUEST_TIMEOUT_S * 1000),
                delivery_timeout_ms=int(delivery_timeout_s * 1000),
                allow_auto_create_topics=False,
                metrics_enabled=False,
            )

    def send(
        self,
        topic: str,  # name in the table, without the prefix
        key: str,
        value: bytes,
        on_done: Callable[[bool], None] | None = None,
        *,
        partition: int | None = None,  # where another program put the session, if not where Java's clients do
    ) -> None:
        """Send one record; blocks while too much is unacknowledged."""
        key_bytes, usual = self._place(topic, key)
        size = len(value) + len(key_bytes) + RECORD_OVERHEAD
        limit = BY_NAME[topic].message_max
        if size > limit:
            raise DeliveryError(
                f"session {key}: a message of {len(value)} bytes is over the limit of {self.names.of(topic)}, {limit} "
                "bytes with its headers; cut it smaller (--chunk-ms)"
            )
        partition = usual if partition is None else partition
        self._send(Record(self.names.of(topic), partition, 0, 0, 0, key_bytes, value), size, on_done)

    def send_again(self, record: Record) -> None:
        """Send a record as it is, to its partition."""
        self._send(record, len(record.value or b"") + len(record.key or b"") + RECORD_OVERHEAD)

    def _send(self, record: Record, size: int, on_done: Callable[[bool], None] | None = None) -> None:
        with self._changed:
            self._await_room(size)
            self._waiting_bytes += size
        key, value, headers = record.key, record.value, list(record.headers)
        with kafka_errors(self._settings, "sending"):
            future = self._producer.send(record.topic, value, key, headers=headers, partition=record.partition)
        self.sent += 1
        self.bytes += len(value or b"")
        where = f"{record.topic}, session {(key or b'').decode(errors='replace')}"
        future.add_callback(lambda _metadata: self._settled(size, "", on_done))
        future.add_errback(lambda error: self._settled(size, f"{where}: not acknowledged: {describe(error)}", on_done))

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything that was sent is acknowledged."""
        with self._changed:
            timed_out = not self._changed.wait_for(
                lambda: self.failure or self._waiting_bytes == 0, self._timeout_s if timeout_s is None else timeout_s
            )
            if self.failure:
                raise DeliveryError(self.failure)
            if timed_out:
                raise DeliveryError(
                    f"{self.sent - self.acknowledged} of {self.sent} messages are not acknowledged by Kafka at "
                    f"{self._settings.brokers}; is it running (kymo broker status)?"
                )

    def close(self, timeout_s: float = 1.0) -> None:
        """Give the connection back; what is not acknowledged by then is dropped, so flush before."""
        self._producer.close(timeout=timeout_s)

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _await_room(self, size: int) -> None:
        """Wait until `size` more bytes may be under way; the lock is held."""
        give_up = time.monotonic() + self._timeout_s + REQUEST_TIMEOUT_S
        while not self.failure and self._waiting_bytes and self._waiting_bytes + size > self._limit:
            if not self._changed.wait(give_up - time.monotonic()):
                self.failure = self.failure or f"Kafka at {self._settings.brokers} acknowledges nothing any more"
        if self.failure:
            raise DeliveryError(self.failure)

    def _place(self, topic: str, key: str) -> tuple[bytes, int]:
        place = self._places.get((topic, key))
        if place is None:
            if topic not in self._partitions:
                with kafka_errors(self._settings, f"looking for {self.names.of(topic)}"):
                    self._partitions[topic] = len(self._producer.partitions_for(self.names.of(topic)))
            key_bytes = key.encode()
            place = self._places[topic, key] = (key_bytes, partition_of(key_bytes, self._partitions[topic]))
        return place

    def _settled(self, size: int, failure: str, on_done: Callable[[bool], None] | None) -> None:
        """Note that a record is acknowledged, or failed (in the producer's thread)."""
        with self._changed:
            self.acknowledged += not failure
            self._waiting_bytes -= size
            self.failure = self.failure or failure
            self._changed.notify_all()
        if on_done:
            on_done(not failure)
