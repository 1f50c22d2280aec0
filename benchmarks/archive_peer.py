"""The peers of the comparison `archive`, each in a process of its own on one core. In: a topic's records. Out: what it took."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.child import memory
from kymo.streams.archive.writer import CONSUMER, Archive
from kymo.streams.settings import Settings
from kymo.streams.topics import Names


def kymo(settings: Settings, folder: Path, records: int) -> None:
    """`kymo archive`, all topics of the prefix, until so many records are stored; the segment is on the disk then."""
    archive = Archive(settings, folder)
    archive.run(lambda: archive.counts.records >= records)


def reader(settings: Settings, _folder: Path, records: int) -> None:
    """A consumer that throws away what it reads."""
    for _ in values(settings, records):
        pass


def file(settings: Settings, folder: Path, records: int) -> None:
    """A consumer that appends the bytes to one file: no index, no checksum, no key, nothing to go on from."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "raw").open("wb", 2**20) as out:
        for value in values(settings, records):
            out.write(value)
        out.flush()
        os.fsync(out.fileno())


def values(settings: Settings, records: int) -> Iterator[bytes]:
    """Values of the topic ``sensor``, read as the archive reads."""
    from kafka import TopicPartition

    from kymo.streams.kafka.read import whole_topic_consumer

    topic = Names(settings.prefix).of("sensor")
    consumer = whole_topic_consumer(settings, **CONSUMER)
    try:
        places = [TopicPartition(topic, i) for i in sorted(consumer.partitions_for_topic(topic))]
        consumer.assign(places)
        consumer.seek_to_beginning(*places)
        left = records
        while left > 0:
            for batch in consumer.poll(timeout_ms=100).values():
                left -= len(batch)
                for record in batch:
                    yield record.value
    finally:
        consumer.close()


PEERS: dict[str, Callable[[Settings, Path, int], None]] = {"kymo": kymo, "reader": reader, "file": file}


def take(peer: str, settings: Settings, folder: Path, records: int) -> dict[str, float]:
    """What a peer takes of this process."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    started, before = time.monotonic(), time.process_time()
    PEERS[peer](settings, folder, records)
    took = {"wall_s": time.monotonic() - started, "cpu_s": time.process_time() - before}
    return took | {"peak_mb": memory(os.getpid()).peak_mb, "ended_s": time.time()}
