"""The input of the end-to-end comparisons. In: a Workload. Out: its samples, as Chunks or as one JSON message a sample, in a topic.

Sample i of a device is the same in every format, so that all peers must find the same numbers. Units: samples are plain float32 numbers,
times Unix ns.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kymo.streams.chunk import Chunk, Header, signal_format
from kymo.streams.codec import ChunkCodec

#: A multiple of the hop, so that windows on the grid of wall time (Quix Streams) stand on the samples' own grid.
ORIGIN_NS = 1_770_000_000 * 960 * 10**6
_BLOCK = 9_973  # samples after which a device repeats itself; prime, so that no two windows near each other are equal


@dataclass(frozen=True, slots=True)
class Workload:
    """What is sent and what is made of it; lengths in samples."""

    windows: int  # that each device gives
    devices: int = 8
    channels: int = 12
    rate_hz: int = 500
    length: int = 1_000
    hop: int = 480
    nperseg: int = 200  # of the spectrogram; scipy's defaults otherwise
    noverlap: int = 160
    eps: float = 1e-6  # added before the logarithm

    @property
    def samples(self) -> int:
        """Samples that each device sends: no more than its last window needs."""
        return self.length + (self.windows - 1) * self.hop

    @property
    def events(self) -> int:
        return self.windows * self.devices

    @property
    def channel_samples(self) -> int:
        return self.samples * self.devices * self.channels

    @property
    def columns(self) -> int:
        return (self.length - self.noverlap) // (self.nperseg - self.noverlap)

    @property
    def bins(self) -> int:
        return self.nperseg // 2 + 1

    def sized(self, channel_samples: float) -> Workload:
        """The same with about so many numbers in all, at least two windows a device."""
        per_device = channel_samples / (self.devices * self.channels)
        return replace(self, windows=max(2, round((per_device - self.length) / self.hop) + 1))


def session(device: int) -> str:
    """Name of a device's session; by these, four of the first eight are in each half of twelve partitions."""
    return f"sensor-{device}"


@cache
def _block(device: int, channels: int) -> NDArray[np.float32]:
    random = np.random.default_rng(device)
    t = np.arange(_BLOCK)[:, None]
    waves = np.sin(t * random.uniform(0.01, 1.5, channels)) * random.uniform(0.2, 2, channels)
    loudness = 1 + 0.8 * np.sin(t * random.uniform(1e-3, 5e-3))  # windows differ in more than noise
    out: NDArray[np.float32] = (loudness * (waves + random.standard_normal((_BLOCK, channels)))).astype(np.float32)
    return out


def samples(work: Workload, device: int, start: int, stop: int) -> NDArray[np.float32]:
    """Samples `start` to `stop` of a device: ``(stop - start, channels)``."""
    out: NDArray[np.float32] = _block(device, work.channels)[np.arange(start, stop) % _BLOCK]
    return out


def header(work: Workload, device: int) -> Header:
    """What all chunks of a device share."""
    names = tuple(f"c{i}" for i in range(work.channels))
    return Header(session(device), ORIGIN_NS, signal_format("imu", names, work.rate_hz))


def chunks(work: Workload, size: int) -> Iterator[tuple[str, bytes]]:
    """Keys and Chunk messages of `size` samples, the devices in turn."""
    codec, headers = ChunkCodec(), [header(work, device) for device in range(work.devices)]
    for start in range(0, work.samples, size):
        stop = min(start + size, work.samples)
        for device, head in enumerate(headers):
            yield head.session, codec.encode(Chunk(head, start, samples(work, device, start, stop)))


def json_samples(work: Workload) -> Iterator[tuple[str, bytes]]:
    """Keys and JSON messages of one sample each, the devices in turn; behind the last window a sample that closes it.

    A message: ``{"session", "index", "t_ms", "values": [one a channel]}``.
    """
    step_ms = 1000 // work.rate_hz
    origin_ms = ORIGIN_NS // 10**6
    for start in range(0, work.samples + 1, _BLOCK):
        stop = min(start + _BLOCK, work.samples + 1)
        values = [samples(work, device, start, stop).tolist() for device in range(work.devices)]
        for i in range(stop - start):
            index = start + i
            for device in range(work.devices):
                key, t_ms = session(device), origin_ms + index * step_ms
                row = {"session": key, "index": index, "t_ms": t_ms, "values": values[device][i]}
                yield key, json.dumps(row).encode()


def send_at_pace(
    producer: Any, sends: Iterable[tuple[float, str, Any, bytes]], early_s: float = 0.0
) -> dict[Any, float]:
    """Send messages when they are due, or so much earlier; by place, when each was sent, by ``time.perf_counter()``.

    A message: when it is due, s from now; topic; place, a tuple that begins with the key; value.
    """
    started_s, sent_s = time.perf_counter(), {}
    for due_s, topic, place, value in sends:
        while (left := started_s + due_s - time.perf_counter()) > early_s:
            producer.poll(left if left > 0.001 else 0)
        sent_s[place] = time.perf_counter()
        producer.produce(topic, value, place[0])
        producer.poll(0)
    producer.flush()
    return sent_s


def fill(producer: Any, topic: str, messages: Iterable[tuple[str, bytes]]) -> int:
    """Send messages and wait until all are acknowledged, each at a place of its own (else a RuntimeError); gives their number."""
    failed, places = list[str](), set[tuple[int, int]]()

    def done(error: Any, message: Any) -> None:
        if error is not None:
            failed.append(str(error))
        places.add((message.partition(), message.offset()))

    count = 0
    for key, value in messages:
        while True:
            try:
                producer.produce(topic, value, key.encode(), on_delivery=done)
                break
            except BufferError:
                producer.poll(0.1)
        count += 1
        if count % 1_000 == 0:
            producer.poll(0)
    producer.flush()
    if failed:
        raise RuntimeError(f"{topic}: {len(failed)} of {count} messages were not acknowledged: {failed[0]}")
    if len(places) < count:  # taken for sent before
        raise RuntimeError(f"{topic}: {count} messages were acknowledged, {len(places)} of them are there")
    return count
