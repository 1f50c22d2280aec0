"""Four signals at four rates, joined live. In: a Rig. Out: a worker's share of a core, and milliseconds from the sending of the last
chunk that a window needs to its event's arrival.

Each session sends EDA and temperature at 4 Hz, BVP at 64 Hz, pupil at 60 Hz, in chunks of 100 ms (of one sample where that is less),
when a device would. The model is the mean of each channel times weights, so that what is measured is the join and its delivery.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.child import alive, processor_s
from benchmarks.drain import await_ready
from benchmarks.load import ORIGIN_NS
from benchmarks.real_time import Observer
from benchmarks.report import Row
from benchmarks.rig import LABELS, Rig
from kymo.deploy.children import Child, kymo_command, kymo_environment
from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.models.zoo.onnx_graph import Graph
from kymo.processors.recipe.load import Recipe, load_recipe
from kymo.streams.chunk import Chunk, Header, signal_format
from kymo.streams.codec import ChunkCodec

#: By stream, samples a second, how it is sampled, and samples a chunk.
_STREAMS = {"eda": (4, "linear", 1), "bvp": (64, "block", 6), "temperature": (4, "linear", 1), "pupil": (60, "mean", 6)}
_TICK_HZ, _LENGTH, _HOP = 4, 40, 4  # ticks
_WARM_UP_S = 15.0
_TOLERANCE = 1e-4
_EARLY_S = 0.002  # chunks that are due so soon are sent together


def _recipe(name: str) -> str:
    inputs = "".join(
        f'[[input]]\nstream = "{stream}"\nrate_hz = {rate}\nchannels = ["{stream}"]\nsample = "{sample}"\n'
        for stream, (rate, sample, _) in _STREAMS.items()
    )
    window = f"[window]\nlength_s = {_LENGTH / _TICK_HZ}\nhop_s = {_HOP / _TICK_HZ}\n"
    join = f'[join]\nrate_hz = {_TICK_HZ}\ngrid = "eda"\n'
    return f'name = "{name}"\n{inputs}{join}{window}[model]\narchitecture = "minirocket"\n'


def _weights(channels: int) -> NDArray[np.float32]:
    return np.random.default_rng(7).standard_normal((channels, len(LABELS))).astype(np.float32)


def _bundle(recipe: Recipe, folder: Path) -> Path:
    fmt = recipe.output_format()
    graph = Graph()
    means = graph.node("ReduceMean", ["windows", np.array([1])], keepdims=0)
    graph.node("MatMul", [means, _weights(len(fmt.channels))], "logits")
    shape = [fmt.rows, len(fmt.channels)]
    model = {"input": "windows", "output": "logits", "shape": shape, "dtype": "float32", "layout": "channels_last"}
    manifest = {"recipe": recipe.name, "labels": list(LABELS), "temperature": 1.0, "batch": "any"}
    manifest |= {"chain": recipe.chain.to_json(), "model": model}
    network = graph.model({"windows": ("n", *shape)}, {"logits": ("n", len(LABELS))})
    return write_bundle(folder / recipe.name, manifest, {MODEL: network})


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
    name, prefix = f"joined{sessions}", f"bench-joined{sessions}"
    rig.names(prefix)
    path = rig.folder / f"{name}.toml"
    path.write_text(_recipe(name))
    bundle = _bundle(load_recipe(str(path)), rig.folder)
    changes = {"KYMO_BROKERS": rig.settings.brokers, "KYMO_HOME": str(rig.settings.home), "KYMO_METRICS_PORT": "0"}
    command = kymo_command("worker", str(path), "--bundle", str(bundle), "--prefix", prefix)
    child = Child("kymo", command, kymo_environment(changes, keep=False))
    with alive([child]):
        await_ready([child], rig.settings.home)
        observer = Observer(rig.settings.brokers, f"{prefix}.events")
        sent_s, cores = _send(rig, prefix, sessions, seconds, child)
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
    p50, p99 = (float(p) for p in np.percentile(latencies_ms, [50, 99]))
    figures = {"cores": cores, "p50_ms": p50, "p99_ms": p99, "max_ms": max(latencies_ms)}
    return [{"sessions": sessions, "windows": len(observer.events)} | figures]


def _send(
    rig: Rig, prefix: str, sessions: int, seconds: float, child: Child
) -> tuple[dict[tuple[str, str, int], float], float]:
    """Send at the pace; when each chunk was sent, and what of a core the worker took behind the warm-up."""
    producer, codec = rig.producer(**{"linger.ms": 5, "socket.nagle.disable": True}), ChunkCodec()
    names, sent_s = rig.names(prefix), dict[tuple[str, str, int], float]()
    data = {(i, s): samples(i, s, int(seconds * _STREAMS[s][0])) for i in range(sessions) for s in _STREAMS}
    heads = {
        (i, s): Header(f"person-{i}", ORIGIN_NS, signal_format(s, (s,), _STREAMS[s][0]))
        for i in range(sessions)
        for s in _STREAMS
    }
    messages = []  # made before the clock runs: what measures must not be what is short of time
    for due_s, stream, number, i in _sends(sessions, seconds):
        head, size = heads[i, stream], _STREAMS[stream][2]
        value = codec.encode(Chunk(head, number * size, data[i, stream][number * size : (number + 1) * size]))
        messages.append((due_s, names.for_stream(stream), (head.session, stream, number), value))
    started_s, since = time.perf_counter(), (0.0, 0.0)
    for due_s, topic, place, value in messages:
        while (left := started_s + due_s - time.perf_counter()) > _EARLY_S:
            producer.poll(left)
        if not since[0] and due_s > _WARM_UP_S:
            since = time.perf_counter(), processor_s(child.pid)
        sent_s[place] = time.perf_counter()
        producer.produce(topic, value, place[0])
    producer.flush()
    return sent_s, (processor_s(child.pid) - since[1]) / (time.perf_counter() - since[0])


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
        means = np.hstack(columns).astype(np.float64).mean(0)
        logits = means @ _weights(len(means)).astype(np.float64)
        expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        came = np.array([event["probabilities"][label] for label in LABELS])
        if np.abs(came - expected).max() > _TOLERANCE:
            raise RuntimeError(f"{event['id']}: {came}, numpy finds {expected}")
