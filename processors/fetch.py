"""Records of assigned partitions, from librdkafka. In: partitions and offsets. Out: batches of records, by partition, one batch ahead.

librdkafka receives, unpacks and queues in threads that need no Python; aiokafka's own fetcher would take a fifth of the interpreter's time.
It belongs to no group: who owns what is decided elsewhere (`kymo.processors.faust_app`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import confluent_kafka
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError, UnsupportedCodecError
from aiokafka.structs import TopicPartition

from kymo.streams.budget import FETCHED
from kymo.streams.errors import BrokerError
from kymo.streams.topics import MIB

_RECORDS = 2_000  # a batch, of FETCHED bytes: enough to make a hand-over cheap, few enough to answer a rebalance soon
_POLL_S = 0.1  # how soon it does what it is told
_AHEAD_MS = 2_000  # that a topic's records may be sent later than those of another that is not read to its end
_LOG = logging.getLogger("kafka.fetch")
_CODES = confluent_kafka.KafkaError
#: What the client cannot mend by trying again, where it is said of a partition.
_HOPELESS = {
    _CODES.TOPIC_AUTHORIZATION_FAILED: TopicAuthorizationFailedError,
    _CODES._NOT_IMPLEMENTED: UnsupportedCodecError,
    _CODES._BAD_COMPRESSION: UnsupportedCodecError,
    _CODES._BAD_MSG: KafkaError,
}


class FetchedRecord(NamedTuple):
    """A record as it stands in a topic."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


class Passed(NamedTuple):
    """Behind the last record of a partition that is read to its end: offsets of no record, as where a transaction ends."""

    offset: int  # the last of them


def leaders(taken_ms: Mapping[TopicPartition, int], unread: Iterable[TopicPartition]) -> set[TopicPartition]:
    """Of partitions that are not read to their ends, those that are too far ahead of one of another topic, by when records were sent.

    What waits for the others' records lies in memory: a worker that catches up would read hours of the one before seconds of the
    other. The last of them is never ahead, so that something always comes.
    """
    unread = list(unread)
    last_ms: dict[int, int] = {}
    for tp in unread:
        last_ms[tp.partition] = min(taken_ms.get(tp, 0), last_ms.get(tp.partition, 2**63))
    return {tp for tp in unread if taken_ms.get(tp, 0) > last_ms[tp.partition] + _AHEAD_MS}


#: By partition, in order; a :class:`Passed` comes last.
Batch = dict[TopicPartition, list[FetchedRecord | Passed]]


class Fetch:
    """Fetches partitions in a thread of its own, from where it is told to, until it is told otherwise."""

    def __init__(
        self, arguments: dict[str, Any], loop: asyncio.AbstractEventLoop, failed: Callable[[BaseException], None]
    ) -> None:
        self._loop, self._failed = loop, failed
        settings = {
            "group.id": "kymo",  # it joins none, yet asks who coordinates it
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
            "isolation.level": "read_uncommitted",
            "fetch.message.max.bytes": 2 * MIB,  # a larger message comes alone
            "fetch.max.bytes": 4 * MIB,  # as they stand compressed: a whole fetch is unpacked at once
            "queued.max.messages.kbytes": 8 * MIB // 1024,
            "fetch.queue.backoff.ms": 5,  # a full queue is soon empty
            "fetch.wait.max.ms": 500,
            "reconnect.backoff.max.ms": 1_000,
            "socket.keepalive.enable": True,
            "socket.timeout.ms": 30_000,
            "topic.metadata.refresh.interval.ms": 5_000,  # a topic deleted and made again is found within so long
            "log_level": 0,  # errors come to `error_cb`
            "error_cb": self._note,
        }
        try:
            self._consumer = confluent_kafka.Consumer(settings | arguments)
        except confluent_kafka.KafkaException as error:
            raise BrokerError(f"Kafka's client does not take these settings: {error.args[0].str()}") from None
        # how often it was told what to fetch, and from where
        self._turn: tuple[int, Mapping[TopicPartition, int]] = (0, {})
        self._ready: asyncio.Queue[tuple[int, Batch]] = asyncio.Queue()
        self._room = threading.Semaphore(1)  # batches that may lie ready
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="fetch", daemon=True).start()

    def begin(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Let the records of these partitions come, from there on; of no other, nor any that was fetched before."""
        self._turn = self._turn[0] + 1, offsets

    async def next(self) -> Batch:
        """The records that come next."""
        while True:
            turn, batch = await self._ready.get()
            self._room.release()
            if turn == self._turn[0]:
                return batch

    def close(self) -> None:
        """Fetch no more."""
        self._closed.set()
        self._room.release()

    def _run(self) -> None:
        try:
            self._fetch()
        except confluent_kafka.KafkaException as error:
            self._in_loop(self._failed, KafkaError(error.args[0].str()))
        except Exception as error:
            self._in_loop(self._failed, error)
        self._consumer.close()

    def _fetch(self) -> None:
        turn, expected, taken_ms = 0, dict[TopicPartition, int](), dict[TopicPartition, int]()
        paused, several = set[TopicPartition](), False
        while not self._closed.is_set():
            if turn != self._turn[0]:
                turn, offsets = self._turn
                paused = self._pause(set(), paused)
                expected, taken_ms = dict(offsets), {}
                several = len({tp.partition for tp in offsets}) < len(offsets)
                self._consumer.assign(
                    [confluent_kafka.TopicPartition(tp.topic, tp.partition, at) for tp, at in offsets.items()]
                )
            if several:
                ahead = leaders(taken_ms, expected)  # seldom any: asking where partitions end takes longer
                paused = self._pause(leaders(taken_ms, self._unread(expected)) if ahead else ahead, paused)
            if (first := self._consumer.poll(_POLL_S)) is None:
                continue
            batch, ends = Batch(), dict[TopicPartition, int]()
            # As many more as there may be of the first one's size; librdkafka's own queue bounds what others may have.
            size = len(first.value() or b"") if first.error() is None else 1
            more = min(_RECORDS, FETCHED // max(1, size))
            for message in (first, *(self._consumer.consume(more - 1, 0) if more > 1 else ())):
                if (error := message.error()) is not None and error.code() != _CODES._PARTITION_EOF:
                    self._tell(error)
                    continue
                tp, offset = TopicPartition(message.topic(), message.partition()), message.offset()
                if error is not None:
                    ends[tp] = offset
                    continue
                record = FetchedRecord(
                    tp.topic, tp.partition, offset, message.timestamp()[1], message.key(), message.value()
                )
                if offset < expected.get(tp, 0):
                    raise KafkaError(
                        f"{tp.topic}/{tp.partition} goes back from {expected[tp]} to {offset}: the topic was made again, or lost records"
                    )
                expected[tp], taken_ms[tp] = offset + 1, record.timestamp
                batch.setdefault(tp, []).append(record)
            for tp, end in ends.items():
                if expected.get(tp, end) < end:
                    expected[tp] = end
                    batch.setdefault(tp, []).append(Passed(end - 1))
            if batch:
                self._room.acquire()
                self._in_loop(self._ready.put_nowait, (turn, batch))

    def _unread(self, expected: Mapping[TopicPartition, int]) -> Iterator[TopicPartition]:
        """Partitions that may have more: they do, or no answer has said yet where they end."""
        for tp, offset in expected.items():
            _, end = self._consumer.get_watermark_offsets(
                confluent_kafka.TopicPartition(tp.topic, tp.partition), cached=True
            )
            if end > offset or end < 0:
                yield tp

    def _pause(self, wanted: set[TopicPartition], paused: set[TopicPartition]) -> set[TopicPartition]:
        """Fetch nothing of some partitions for now, and go on with what is paused else."""
        for tps, call in ((wanted - paused, self._consumer.pause), (paused - wanted, self._consumer.resume)):
            if tps:
                call([confluent_kafka.TopicPartition(tp.topic, tp.partition) for tp in tps])
        return wanted

    def _tell(self, error: Any) -> None:
        """An error of a partition."""
        if error.code() in _HOPELESS:
            self._in_loop(self._failed, _HOPELESS[error.code()](error.str()))
        else:
            self._note(error)

    def _note(self, error: Any) -> None:
        """An error of the client, which it may mend."""
        if error.fatal():
            self._in_loop(self._failed, KafkaError(error.str()))
        _LOG.warning("Unable to connect or to fetch: %s", error.str())

    def _in_loop(self, call: Callable[..., Any], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(call, *arguments)
