"""Four signals at four rates, joined live. In: a Rig. Out: a worker's share of a core, and milliseconds from the sending of the last
chunk that a window needs to its event's arrival.

Each session sends EDA and temperature at 4 Hz, BVP at 64 Hz, pupil at 60 Hz, in chunks of 100 ms (of one sample where that is less),
when a device would. The model is the mean of each channel times weights, so that what is measured is the join and its delivery.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.child import alive, processor_s
from benchmarks.drain import await_ready
from benchmarks.load import ORIGIN_NS, send_at_pace
from benchmarks.real_time import Observer, percentiles
from benchmarks.report import Row
from benchmarks.rig import LABELS, Rig, network_of_means
from benchmarks.truth import compare_means
from kymo.deploy.children import Child
from kymo.streams.chunk import Chunk, Header, signal_format
from kymo.streams.codec import ChunkCodec
from kymo.streams.topics import Names

#: By stream, samples a second, how it is sampled, and samples a chunk.
_STREAMS = {"eda": (4, "linear", 1), "bvp": (64, "block", 6), "temperature": (4, "linear", 1), "pupil": (60, "mean", 6)}
_TICK_HZ, _LENGTH, _HOP = 4, 40, 4  # ticks
_WARM_UP_S = 15.0
_TOLERANCE = 1e-4
_EARLY_S = 0.002  # chunks that are due so soon are sent together
#: Ticks hold a block of so many samples, or one.
_CHANNELS = sum(rate // _TICK_HZ if sample == "block" else 1 for rate, sample, _ in _STREAMS.values())
_WEIGHTS = np.random.default_rng(7).standard_normal((_CHANNELS, len(LABELS))).astype(np.float32)
Message = tuple[float, str, tuple[str, str, int], bytes]


def _recipe(name: str) -> str:
    inputs = "".join(
        f'[[input]]\nstream = "{stream}"\nrate_hz = {rate}\nchannels = ["{stream}"]\nsample = "{sample}"\n'
        for stream, (rate, sample, _) in _STREAMS.items()
    )
    window = f"[window]\nlength_s = {_LENGTH / _TICK_HZ}\nhop_s = {_HOP / _TICK_HZ}\n"
    join = f'[join]\nrate_hz = {_TICK_HZ}\ngrid = "eda"\n'
    return f'name = "{name}"\n{inputs}{join}{window}[model]\narchitecture = "minirocket"\n'


def samples(number: int, stream: str, count: int) -> NDArray[np.float32]:
    """The first samples of a session's stream: ``(count, 1)``."""
    random = np.random.default_rng([number, list(_STREAMS).index(stream)])
    return random.standard_normal((count, 1)).astype(np.float32)


def _sends(sessions: int, seconds: float) -> Iterator[tuple[float, str, int, int]]:
    """When each chunk is due, s since the start, in order: time, stream, number of the chunk, session."""
    sends = [
        ((number + 1) * size / rate + i / sessions * 0.1, stream, number, i)
        for stream, (rate, _, size) in _STREAMS.items()
        for number in range(int(seconds * rate / size))
        for i in range(sessions)
    ]
    yield from sorted(sends)


def joined(rig: Rig, sessions: int = 100, seconds: float = 60.0) -> list[Row]:
    """A worker that joins so many sessions at their pace."""
    prefix = f"bench-joined{sessions}"
    names, recipe = rig.names(prefix), rig.write(f"joined{sessions}", _recipe(f"joined{sessions}"))
    child = rig.worker((recipe, rig.bundle(recipe, network_of_means(recipe, _WEIGHTS))), prefix)
    producer = rig.producer(**{"linger.ms": 5, "socket.nagle.disable": True})
    messages, since = _messages(names, sessions, seconds), list[float]()  # time and processor time behind the warm-up
    with alive([child]):
        await_ready([child], rig.settings.home)
        observer = Observer(rig.settings.brokers, f"{prefix}.events")
        sent_s = send_at_pace(producer, _watched(messages, child, since), _EARLY_S)
        cores = (processor_s(child.pid) - since[1]) / (time.perf_counter() - since[0])
        time.sleep(2)
        tail = "\n".join(child.tail)
    observer.close()
    events = [event for _, event in observer.events]
    _compare(events, sessions, seconds, tail)
    latencies_ms = [
        1000 * (at_s - _complete_s(sent_s, event))
        for at_s, event in observer.events
        if event["start_index"] / _TICK_HZ > _WARM_UP_S - _LENGTH / _TICK_HZ
    ]
    figures = {"sessions": sessions, "windows": len(observer.events), "cores": cores}
    return [figures | percentiles(latencies_ms)]


def _messages(names: Names, sessions: int, seconds: float) -> list[Message]:
    """What is sent, made before the clock runs: what measures must not be what is short of time."""
    codec, messages = ChunkCodec(), list[Message]()
    data = {(i, s): samples(i, s, int(seconds * _STREAMS[s][0])) for i in range(sessions) for s in _STREAMS}
    heads = {(i, s): Header(f"person-{i}", ORIGIN_NS, signal_format(s, (s,), _STREAMS[s][0])) for i, s in data}
    for due_s, stream, number, i in _sends(sessions, seconds):
        head, size = heads[i, stream], _STREAMS[stream][2]
        value = codec.encode(Chunk(head, number * size, data[i, stream][number * size : (number + 1) * size]))
        messages.append((due_s, names.for_stream(stream), (head.session, stream, number), value))
    return messages


def _watched(messages: list[Message], child: Child, since: list[float]) -> Iterator[Message]:
    """The messages; notes the time and the worker's processor time at the end of the warm-up."""
    for message in messages:
        if not since and message[0] > _WARM_UP_S:
            since += [time.perf_counter(), processor_s(child.pid)]
        yield message


def _complete_s(sent_s: dict[tuple[str, str, int], float], event: dict[str, Any]) -> float:
    """When the last chunk was sent that an event's window needs."""
    tick = event["start_index"] + _LENGTH - 1
    needed = {
        stream: tick if sample == "linear" else (tick + 1) * (rate // _TICK_HZ) - 1
        for stream, (rate, sample, _) in _STREAMS.items()
    }
    return max(sent_s[event["session"], stream, index // _STREAMS[stream][2]] for stream, index in needed.items())


def _compare(events: list[dict[str, Any]], sessions: int, seconds: float, tail: str) -> None:
    """Fail where a window is missing, comes twice, or is another than numpy finds."""
    ids = {event["id"] for event in events}
    most = int((seconds * _TICK_HZ - _LENGTH) // _HOP) * sessions
    if len(ids) != len(events) or len(events) < most:
        raise RuntimeError(f"{len(events)} events of {len(ids)} windows, expected {most}\n{tail}")
    for event in events[:: max(1, len(events) // 200)]:
        number, ticks = int(event["session"].rpartition("-")[2]), event["start_index"] + np.arange(_LENGTH)
        columns = []
        for stream, (rate, sample, _) in _STREAMS.items():
            each = rate // _TICK_HZ
            rows = samples(number, stream, int(seconds * rate))[: (ticks[-1] + 1) * each].reshape(-1, each)[ticks]
            columns.append(rows.mean(1, keepdims=True) if sample == "mean" else rows)
        compare_means(event, np.hstack(columns).astype(np.float64).mean(0), _WEIGHTS, _TOLERANCE)
