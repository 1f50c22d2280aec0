"""Latency and memory at real-time pace. In: a Rig. Out: milliseconds from the sending of a window's last chunk to its event's arrival.

One process sends, and receives the events, so that both times are of one clock. Devices send one after the other, not all at once.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from benchmarks.child import alive, memory
from benchmarks.drain import await_ready
from benchmarks.end_to_end import Row, Runner
from benchmarks.load import Workload, header, samples, send_at_pace
from benchmarks.rig import Rig
from benchmarks.truth import compare
from kymo.deploy.children import Child
from kymo.streams.chunk import Chunk
from kymo.streams.codec import ChunkCodec

_CHUNK = 50  # samples: 100 ms at 500 Hz
_WARM_UP_S = 8.0  # windows that end earlier do not count: the peer may still be joining its group


class Observer:
    """Receives events in a thread."""

    def __init__(self, brokers: str, topic: str) -> None:
        from confluent_kafka import OFFSET_END, Consumer, TopicPartition

        self._consumer = Consumer({"bootstrap.servers": brokers, "group.id": "observer", "enable.auto.commit": False})
        places = self._consumer.list_topics(topic).topics[topic].partitions
        self._consumer.assign([TopicPartition(topic, number, OFFSET_END) for number in places])
        self.events: list[tuple[float, dict[str, Any]]] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.is_set():
            message = self._consumer.poll(0.2)
            if message is not None and not message.error():
                self.events.append((time.perf_counter(), json.loads(message.value())))

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._consumer.close()


def sends(topic: str, work: Workload, seconds: float) -> Iterator[tuple[float, str, tuple[str, int], bytes]]:
    """Every device's chunks for so long: when each is due, topic, session and number, message."""
    codec, heads, period_s = (
        ChunkCodec(),
        [header(work, device) for device in range(work.devices)],
        _CHUNK / work.rate_hz,
    )
    for number in range(int(seconds / period_s)):
        for device, head in enumerate(heads):
            data = samples(work, device, number * _CHUNK, (number + 1) * _CHUNK)
            due_s = (number + (device + 1) / work.devices) * period_s
            yield due_s, topic, (head.session, number), codec.encode(Chunk(head, number * _CHUNK, data))


def percentiles(latencies_ms: Sequence[float]) -> Row:
    p50, p95, p99 = (float(p) for p in np.percentile(latencies_ms, [50, 95, 99]))
    return {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "max_ms": max(latencies_ms)}


def real_time(rig: Rig, work: Workload, seconds: float = 60.0, peers: Sequence[str] = ("kymo", "bare")) -> list[Row]:
    """Latency percentiles (ms) and memory (MB) of each peer, one behind the other."""
    return [{"peer": peer} | _one(Runner(rig), peer, work, seconds) for peer in peers]


def _one(runner: Runner, peer: str, work: Workload, seconds: float) -> Row:
    work = replace(work, windows=int((seconds * work.rate_hz - work.length) // work.hop) + 1)
    prefix = runner.prefix()
    child, topic = runner.peer(peer, prefix, work)
    with alive([child]):
        if peer == "kymo":
            await_ready([child], runner.rig.settings.home)
        observer = Observer(runner.rig.settings.brokers, topic.name)
        producer = runner.rig.producer(**{"linger.ms": 0, "socket.nagle.disable": True})
        sent_s = send_at_pace(producer, sends(f"{prefix}.sensor", work, seconds))
        _await_events(child, observer, work)
        used = memory(child.pid)
    observer.close()
    topic.close()
    compare(work, [event for _, event in observer.events])
    latencies_ms = [
        1000 * (at_s - sent_s[event["session"], (event["start_index"] + work.length - 1) // _CHUNK])
        for at_s, event in observer.events
        if (event["start_index"] + work.length) / work.rate_hz > _WARM_UP_S
    ]
    return percentiles(latencies_ms) | {"windows": len(latencies_ms)} | asdict(used)


def _await_events(child: Child, observer: Observer, work: Workload, timeout_s: float = 10.0) -> None:
    give_up = time.monotonic() + timeout_s
    while len(observer.events) < work.events:
        if time.monotonic() > give_up or child.status is not None:
            tail = "\n".join(child.tail)
            raise RuntimeError(f"{child.name}: {len(observer.events)} of {work.events} events\n{tail}")
        time.sleep(0.01)
