"""What tests of the archive on a broker share. In: settings. Out: topics with records, and what Kafka and an archive hold of them."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

from archive_lab import chunk
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient

from kymo.streams.archive.format import TOPICS, ArchivePlan
from kymo.streams.archive.read import ArchiveReader
from kymo.streams.archive.writer import Archive
from kymo.streams.codec import ChunkCodec
from kymo.streams.kafka.admin import ensure_topics
from kymo.streams.kafka.client import client_arguments
from kymo.streams.settings import Settings
from kymo.streams.topics import Names

Raw = tuple[str, int, int, int, bytes | None, bytes | None, tuple[tuple[str, bytes | None], ...]]


class Topics:
    """Two partitions a topic, and what Kafka itself says that it holds."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.names = settings, Names(settings.prefix)
        ensure_topics(settings, self.names)
        self.producer = KafkaProducer(**client_arguments(settings), acks="all", metrics_enabled=False)

    def __enter__(self) -> Topics:
        return self

    def __exit__(self, *error: object) -> None:
        self.producer.close()

    def send(self, topic: str, value: bytes | None, key: bytes | None = b"s", **more: Any) -> None:
        self.producer.send(self.names.of(topic), value, key, **more)

    def send_chunks(self, first: int, number: int, session: str = "s1") -> None:
        """Chunks of ten samples each."""
        for i in range(first, first + number):
            self.send("sensor", ChunkCodec().encode(chunk(session, 10 * i)), session.encode())
        self.producer.flush()

    def held(self, topics: tuple[str, ...] = TOPICS) -> list[Raw]:
        """Every record, by topic, partition and offset."""
        consumer = KafkaConsumer(**client_arguments(self.settings), auto_offset_reset="earliest", metrics_enabled=False)
        try:
            parts = [
                (self.names.of(t), p) for t in topics for p in consumer.partitions_for_topic(self.names.of(t)) or ()
            ]
            places = [TopicPartition(*part) for part in parts]
            consumer.assign(places)
            ends = consumer.end_offsets(places)
            found = []
            while any(consumer.position(place) < end for place, end in ends.items()):
                found += [raw(r) for records in consumer.poll(200).values() for r in records]
        finally:
            consumer.close()
        return sorted(found, key=lambda r: r[:3])

    def archive(self, folder: Path, plan: ArchivePlan | None = None) -> tuple[Any, list[str]]:
        """What is there now; the counts and what was told."""
        told: list[str] = []
        return Archive(self.settings, folder, plan, told.append).run(lambda: False, once=True), told

    def delete_before(self, topic: str, offset: int, partition: int) -> None:
        """As retention does."""
        with KafkaAdminClient(**client_arguments(self.settings)) as admin:
            admin.delete_records({TopicPartition(self.names.of(topic), partition): offset})


def noise(seed: int, size: int) -> bytes:
    """Bytes that do not get smaller."""
    return random.Random(seed).randbytes(size)


def raw(r: Any) -> Raw:
    headers = tuple((str(name), value) for name, value in r.headers)
    return r.topic, r.partition, r.offset, r.timestamp, r.key, r.value, headers


def stored(folder: Path) -> list[Raw]:
    """Every archived record, by topic, partition and offset; each partition's must stand in order."""
    found = [raw(r) for r in ArchiveReader(folder).records()]
    by_place: dict[tuple[str, int], list[int]] = defaultdict(list)
    for r in found:
        by_place[r[:2]].append(r[2])
    assert all(a < b for offsets in by_place.values() for a, b in itertools.pairwise(offsets)), "out of order, or twice"
    return sorted(found, key=lambda r: r[:3])
