"""Peer: a bare confluent-kafka loop. In: the same Chunk messages as Kymo's. Out: events. One session's windows at index 0, hop, 2 hop, …

What someone who knows Kafka, numpy and processors writes by hand: batches of messages, views of their bytes, all channels of 16 windows in
one call of scipy and one of the network. It commits every 5 s whatever is open, knows no gaps, no
duplicates, no restart, no bad message.
"""

from __future__ import annotations

import json
import signal
from typing import Any

import numpy as np
from confluent_kafka import Consumer, Producer
from numpy.typing import NDArray

from benchmarks.peer import Task, batched, event, network
from kymo.streams.chunk_pb2 import Chunk

_MESSAGES = 500
_WINDOWS = 16  # a call: more no longer fit into the processor's cache, which costs half of the rate


class Ring:
    """The last samples of one session."""

    def __init__(self, task: Task) -> None:
        work = task.work
        self._data = np.empty((16 * work.length, work.channels), np.float32)
        self._length, self._hop = work.length, work.hop
        self._count, self._start, self.start_index = 0, 0, 0

    def push(self, samples: NDArray[np.float32]) -> list[tuple[int, NDArray[np.float32]]]:
        """Start index and a copy of each window that became whole: ``(time, channels)``."""
        if self._count + len(samples) > len(self._data):
            left = self._data[self._start : self._count].copy()
            self._data[: len(left)] = left
            self._count, self._start = len(left), 0
        self._data[self._count : self._count + len(samples)] = samples
        self._count += len(samples)
        out = []
        while self._count - self._start >= self._length:
            out.append((self.start_index, self._data[self._start : self._start + self._length].copy()))
            self._start += self._hop
            self.start_index += self._hop
        return out


def main() -> None:
    task, run = Task.from_argv(), network()
    consumer = Consumer({"bootstrap.servers": task.brokers, "group.id": task.group, "auto.offset.reset": "earliest"})
    producer = Producer({"bootstrap.servers": task.brokers, "linger.ms": 0})
    consumer.subscribe([task.source])
    rings: dict[str, Ring] = {}
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    while not stopped:
        found = []
        # The first message by itself: a batch would wait for its end, which is latency.
        first = consumer.poll(0.05)
        for message in [first, *consumer.consume(_MESSAGES - 1, 0)] if first else ():
            if message.error():
                raise RuntimeError(message.error())
            found += take(task, rings, message.value())
        for i in range(0, len(found), _WINDOWS):
            part = found[i : i + _WINDOWS]
            logits = run(batched(task.work, np.stack([window for _, _, window in part])))
            for (session, start_index, _), row in zip(part, logits, strict=True):
                producer.produce(task.target, json.dumps(event(session, start_index, row)), session)
        producer.poll(0)
    producer.flush()
    consumer.close()


def take(task: Task, rings: dict[str, Ring], message: bytes) -> list[tuple[str, int, Any]]:
    """Session, start index and samples of the windows that a message completes."""
    chunk = Chunk.FromString(message)
    samples = np.frombuffer(chunk.data, "<f4").reshape(-1, task.work.channels)
    ring = rings.get(chunk.session)
    if ring is None:
        ring = rings[chunk.session] = Ring(task)
    return [(chunk.session, *window) for window in ring.push(samples)]


if __name__ == "__main__":
    main()
