"""What tests of the archive share. In: a seed, settings. Out: records as Kafka gives them, segments, the processes that archive, topics
with records, and what Kafka and an archive hold of them."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from verbs import variables

from kymo.deploy.children import Child, kymo_command, kymo_environment
from kymo.streams.archive.format import TOPICS, ArchivePlan, Contents, Span
from kymo.streams.archive.read import ArchiveReader
from kymo.streams.archive.segment import SegmentWriter
from kymo.streams.archive.writer import Archive
from kymo.streams.chunk import Chunk, Header, signal_format
from kymo.streams.codec import ChunkCodec
from kymo.streams.kafka.admin import ensure_topics
from kymo.streams.kafka.client import client_arguments
from kymo.streams.messages import Record
from kymo.streams.settings import Settings
from kymo.streams.topics import Names

PREFIX = "t"


BEGIN_MS = 1_770_000_000_000


def header(session: str, stream: str = "imu", origin_ns: int = BEGIN_MS * 10**6) -> Header:
    """Two channels at 100 Hz."""
    return Header(session, origin_ns, signal_format(stream, ("x", "y"), 100))


def chunk(session: str, first: int, count: int = 10, stream: str = "imu", end: bool = False) -> Chunk:
    """Sample i is ``(i, i / 2)``."""
    index = np.arange(first, first + count, dtype=np.float32)
    return Chunk(header(session, stream), first, np.stack([index, index / 2], 1), None, end)


def record(topic: str, offset: int, key: str | None, value: bytes | None, partition: int = 0) -> Record:
    """A record as Kafka gives it, one a ms."""
    full = f"{PREFIX}.{topic}"
    return Record(full, partition, offset, BEGIN_MS + offset, 0, None if key is None else key.encode(), value)


def chunk_record(offset: int, made: Chunk, topic: str = "sensor", partition: int = 0) -> Record:
    return record(topic, offset, made.session, ChunkCodec().encode(made), partition)


def write_segment(folder: Path, number: int, records: Iterable[Record], contents: Contents | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    made = contents or Contents(PREFIX)
    writer = SegmentWriter(folder, number, made)
    for r in records:
        made.spans.setdefault((r.topic, r.partition), Span("id", r.offset, r.offset))
        writer.add(r)
    return writer.close()


def following(contents: Contents) -> Contents:
    spans = {place: Span(s.topic_id, s.next, s.next) for place, s in contents.spans.items()}
    return Contents(contents.prefix, contents.cluster, spans)


def write_archive(folder: Path, parts: Sequence[Sequence[Record]]) -> list[Path]:
    contents, out = Contents(PREFIX), []
    for number, records in enumerate(parts, 1):
        out.append(write_segment(folder, number, records, contents))
        contents = following(contents)
    return out


def some_records(seed: int, number: int, most: int = 300) -> list[Record]:
    """Records of several sessions in two partitions, and a few of a kind of their own."""
    pick = random.Random(seed)
    at: dict[str, int] = {}
    offsets = [0, 0]
    out = []
    for _ in range(number):
        session = f"s{pick.randrange(6)}"
        part = int(session[1]) % 2
        made = chunk(session, at.get(session, 0), pick.randint(1, most))
        at[session] = made.end_index
        out.append(chunk_record(offsets[part], made, partition=part))
        offsets[part] += 1
    return out


def archive_process(settings: Settings, folder: Path, *options: str, **env: str) -> Child:
    environment = kymo_environment(variables(settings, **env), keep=False)
    child = Child("archive", kymo_command("archive", "--dir", str(folder), *options), environment)
    child.start()
    return child


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
        for i in range(first, first + number):
            self.send("sensor", ChunkCodec().encode(chunk(session, 10 * i)), session.encode())
        self.producer.flush()

    def held(self, topics: tuple[str, ...] = TOPICS) -> list[Raw]:
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
        told: list[str] = []
        return Archive(self.settings, folder, plan, told.append).run(lambda: False, once=True), told

    def delete_before(self, topic: str, offset: int, partition: int) -> None:
        """As retention does."""
        with KafkaAdminClient(**client_arguments(self.settings)) as admin:
            admin.delete_records({TopicPartition(self.names.of(topic), partition): offset})


def noise(seed: int, size: int) -> bytes:
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
