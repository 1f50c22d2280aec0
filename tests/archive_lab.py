"""What tests of the archive share. In: a seed. Out: records as Kafka gives them, segments of them, and the processes that archive."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from kymo.deploy.children import Child, kymo_command, kymo_environment
from kymo.streams.archive.format import ArchivedRecord, Contents, Span
from kymo.streams.archive.segment import SegmentWriter
from kymo.streams.chunk import Chunk, Header, signal_format
from kymo.streams.codec import ChunkCodec
from kymo.streams.settings import Settings

PREFIX = "t"
BEGIN_MS = 1_770_000_000_000


def header(session: str, stream: str = "imu", origin_ns: int = BEGIN_MS * 10**6) -> Header:
    """Two channels at 100 Hz."""
    return Header(session, origin_ns, signal_format(stream, ("x", "y"), 100))


def chunk(session: str, first: int, count: int = 10, stream: str = "imu", end: bool = False) -> Chunk:
    """Sample i is ``(i, i / 2)``."""
    index = np.arange(first, first + count, dtype=np.float32)
    return Chunk(header(session, stream), first, np.stack([index, index / 2], 1), None, end)


def record(topic: str, offset: int, key: str | None, value: bytes | None, partition: int = 0) -> ArchivedRecord:
    """A record as Kafka gives it, one a ms."""
    full = f"{PREFIX}.{topic}"
    return ArchivedRecord(full, partition, offset, BEGIN_MS + offset, 0, None if key is None else key.encode(), value)


def chunk_record(offset: int, made: Chunk, topic: str = "sensor", partition: int = 0) -> ArchivedRecord:
    """A chunk's record."""
    return record(topic, offset, made.session, ChunkCodec().encode(made), partition)


def write_segment(
    folder: Path, number: int, records: Iterable[ArchivedRecord], contents: Contents | None = None
) -> Path:
    """A closed segment; spans begin at the first offsets."""
    folder.mkdir(parents=True, exist_ok=True)
    made = contents or Contents(PREFIX)
    writer = SegmentWriter(folder, number, made)
    for r in records:
        made.spans.setdefault((r.topic, r.partition), Span("id", r.offset, r.offset))
        writer.add(r)
    return writer.close()


def following(contents: Contents) -> Contents:
    """Contents of the segment behind."""
    spans = {place: Span(s.topic_id, s.next, s.next) for place, s in contents.spans.items()}
    return Contents(contents.prefix, contents.cluster, spans)


def write_archive(folder: Path, parts: Sequence[Sequence[ArchivedRecord]]) -> list[Path]:
    """Segments one behind the other."""
    contents, out = Contents(PREFIX), []
    for number, records in enumerate(parts, 1):
        out.append(write_segment(folder, number, records, contents))
        contents = following(contents)
    return out


def some_records(seed: int, number: int, most: int = 300) -> list[ArchivedRecord]:
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
    """A real `kymo archive`."""
    variables = kymo_environment(
        {
            "KYMO_BROKERS": settings.brokers,
            "KYMO_PREFIX": settings.prefix,
            "KYMO_HOME": str(settings.home),
            "KYMO_METRICS_PORT": "-1",
        },
        keep=False,
    )
    child = Child("archive", kymo_command("archive", "--dir", str(folder), *options), variables | env)
    child.start()
    return child
