"""Latency and memory at real-time pace. In: a Rig. Out: milliseconds from the sending of a window's last chunk to its event's arrival.

One process sends, and receives the events, so that both times are of one clock. Devices send one after the other, not all at once.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.child import alive, memory
from benchmarks.drain import await_ready
from benchmarks.end_to_end import Row, Runner
from benchmarks.load import Workload, header, samples, session
from benchmarks.rig import Rig
from benchmarks.truth import compare
from kymo.deploy.children import Child
from kymo.streams.chunk import Chunk
from kymo.streams.codec import ChunkCodec

_CHUNK = 50  # samples: 100 ms at 500 Hz
_WARM_UP_S = 8.0  # windows that end earlier do not count: the peer may still be joining its group


@dataclass(frozen=True, slots=True)
class Sent:
    """When chunks were sent.

    Attributes
    ----------
    at_s : dict
        By session and chunk number, ``time.perf_counter()`` just before the send.
    """

    at_s: dict[tuple[str, int], float]

    def of(self, work: Workload, name: str, start_index: int) -> float:
        """When the chunk was sent that completed a window."""
        return self.at_s[name, (start_index + work.length - 1) // _CHUNK]


class Observer:
    """Receives events in a thread.

    Parameters
    ----------
    brokers, topic : str
        Where.
    """

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
        """Stop and close the connection."""
        self._stopped.set()
        self._thread.join()
        self._consumer.close()


def send(rig: Rig, prefix: str, work: Workload, seconds: float) -> Sent:
    """Send every device's chunks at their pace, by absolute deadlines, for so long."""
    producer = rig.producer(**{"linger.ms": 0, "socket.nagle.disable": True})
    codec, topic, sent = ChunkCodec(), f"{prefix}.sensor", Sent({})
    heads = [header(work, device) for device in range(work.devices)]
    period_s, started_s = _CHUNK / work.rate_hz, time.perf_counter()
    for number in range(int(seconds / period_s)):
        for device, head in enumerate(heads):
            data = samples(work, device, number * _CHUNK, (number + 1) * _CHUNK)
            value, key = codec.encode(Chunk(head, number * _CHUNK, data)), session(device)
            due_s = started_s + (number + (device + 1) / work.devices) * period_s
            while (left := due_s - time.perf_counter()) > 0:
                producer.poll(left if left > 0.001 else 0)
            sent.at_s[key, number] = time.perf_counter()
            producer.produce(topic, value, key)
            producer.poll(0)
    producer.flush()
    return sent


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
        sent = send(runner.rig, prefix, work, seconds)
        _await_events(child, observer, work)
        used = memory(child.pid)
    observer.close()
    topic.close()
    compare(work, [event for _, event in observer.events])
    latencies_ms = [
        1000 * (at_s - sent.of(work, event["session"], event["start_index"]))
        for at_s, event in observer.events
        if (event["start_index"] + work.length) / work.rate_hz > _WARM_UP_S
    ]
    p50, p95, p99 = (float(p) for p in np.percentile(latencies_ms, [50, 95, 99]))
    figures = {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "max_ms": max(latencies_ms), "windows": len(latencies_ms)}
    return figures | {"pss_mb": used.pss_mb, "rss_mb": used.rss_mb, "peak_mb": used.peak_mb}


def _await_events(child: Child, observer: Observer, work: Workload, timeout_s: float = 10.0) -> None:
    give_up = time.monotonic() + timeout_s
    while len(observer.events) < work.events:
        if time.monotonic() > give_up or child.status is not None:
            tail = "\n".join(child.tail)
            raise RuntimeError(f"{child.name}: {len(observer.events)} of {work.events} events\n{tail}")
        time.sleep(0.01)
