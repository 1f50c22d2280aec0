"""A slow step live, with more than it can do. In: a Rig. Out: frames that come out, beside those that could, and the loop's longest pause.

Sessions send frames of 36 kB at their pace; the step waits, or computes, for 30 ms a frame in a pool of two processes. What waits for over
two seconds is dropped. Every frame that comes out is compared, must come once and in order, and the others must have been counted.
"""

from __future__ import annotations

import re
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.child import alive
from benchmarks.drain import await_ready
from benchmarks.report import Row
from benchmarks.rig import LABELS, Rig
from kymo.deploy.children import Child, kymo_environment
from kymo.deploy.metrics_server import find_server
from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.processors.recipe.load import Recipe, parse_recipe
from kymo.processors.registry import STEPS
from kymo.streams.chunk import Array, Chunk, Header
from kymo.streams.codec import ChunkCodec
from kymo.streams.topics import Names

_RATE, _TAKES_S, _PROCESSES, _AGE_S, _SHAPE = 15, 0.03, 2, 2, (96, 128)
_WARM_UP_S = 6.0  # until the step has as much to do as it can, and more
_RECIPE = """\
name = "{name}"
[[input]]
stream = "video"
rate_hz = {rate}
channels = ["red", "green", "blue"]
dtype = "uint8"
shape = [{shape[0]}, {shape[1]}]
[[steps]]
step = "colours"
{kind}_s = {takes_s}
[window]
length_s = 1
hop_s = 1
[model]
architecture = "minirocket"
"""


def slow(rig: Rig, sessions: int = 8, seconds: float = 40.0) -> list[Row]:
    """A worker whose step waits, then one whose step computes."""
    from benchmarks.slow_worker import Colours

    STEPS[Colours.name] = Colours
    try:
        return [_one(rig, kind, sessions, seconds) for kind in ("wait", "compute")]
    finally:
        del STEPS[Colours.name]


def _bundle(recipe: Recipe, folder: Path) -> Path:
    """A bundle that nobody asks: a processor makes no events."""
    shape = [_RATE, 3]
    model = {"input": "windows", "output": "logits", "shape": shape, "dtype": "float32", "layout": "channels_last"}
    manifest = {"recipe": recipe.name, "labels": list(LABELS), "temperature": 1.0, "batch": "any", "model": model}
    return write_bundle(folder / recipe.name, manifest | {"chain": recipe.chain.to_json()}, {MODEL: b"none"})


def _one(rig: Rig, kind: str, sessions: int, seconds: float) -> Row:
    name, names = f"slow-{kind}", Names(f"bench-slow-{kind}")
    text = _RECIPE.format(name=name, rate=_RATE, shape=_SHAPE, kind=kind, takes_s=_TAKES_S)
    path, recipe = rig.folder / f"{name}.toml", parse_recipe(text)
    path.write_text(text)
    bundle = _bundle(recipe, rig.folder)
    rig.names(names.prefix)
    changes = {"KYMO_BROKERS": rig.settings.brokers, "KYMO_HOME": str(rig.settings.home), "KYMO_METRICS_PORT": "0"}
    changes |= {"KYMO_SLOW_PROCESSES": str(_PROCESSES), "KYMO_SLOW_AGE_S": str(_AGE_S)}
    command = [sys.executable, "-P", "-m", "benchmarks.slow_worker", "worker", str(path), "--bundle", str(bundle)]
    command += ["--roles", "processor", "--prefix", names.prefix]
    child = Child("kymo", command, kymo_environment(changes, keep=False))
    with alive([child]):
        await_ready([child], rig.settings.home)
        began_ms = int(time.time() * 1000)
        _send(rig, names, recipe, sessions, seconds)
        time.sleep(_AGE_S + 2)
        counted = _metrics(rig, child)
        came = _came(rig, names, sessions * int(seconds * _RATE))
    _check(came, sessions, seconds, int(counted["kymo_dropped_total"]), "\n".join(child.tail))
    since, until = began_ms + 1000 * _WARM_UP_S, began_ms + 1000 * seconds
    rate = sum(since <= stamp_ms < until for stamp_ms, _ in came) / (seconds - _WARM_UP_S)
    possible = _PROCESSES / _TAKES_S
    figures = {"offered": sessions * _RATE, "possible": possible, "out": rate, "share": rate / possible}
    pause_ms = 1000 * counted["kymo_loop_pause_seconds"]
    return {"step": f"{kind}s"} | figures | {"dropped": int(counted["kymo_dropped_total"]), "pause_ms": pause_ms}


def _frame(session: int, index: int) -> Array:
    return np.full((1, *_SHAPE, 3), (7 * session + index) % 251, np.uint8)


def _send(rig: Rig, names: Names, recipe: Recipe, sessions: int, seconds: float) -> None:
    """Send each frame when it is taken, by absolute deadlines."""
    producer, codec = rig.producer(**{"linger.ms": 0}), ChunkCodec()
    started_ns = time.time_ns()
    heads = [Header(f"camera-{i}", started_ns, recipe.input_format()) for i in range(sessions)]
    for number in range(int(seconds * _RATE)):
        for i, head in enumerate(heads):
            due_ns = started_ns + int((number + i / sessions) / _RATE * 1e9)
            while (left_s := (due_ns - time.time_ns()) / 1e9) > 0:
                producer.poll(left_s if left_s > 0.001 else 0)
            producer.produce(
                names.for_stream("video"), codec.encode(Chunk(head, number, _frame(i, number))), head.session
            )
            producer.poll(0)
    producer.flush()


def _metrics(rig: Rig, child: Child) -> dict[str, float]:
    server = find_server(rig.settings.home, "worker", child.pid)
    with urllib.request.urlopen(f"{server}/metrics", timeout=5) as reply:
        text = reply.read().decode()
    return {name: float(value) for name, value in re.findall(r"^(\w+)(?:\{[^}]*\})? (\S+)$", text, re.MULTILINE)}


def _came(rig: Rig, names: Names, most: int) -> list[tuple[int, Chunk]]:
    """What stands on the derived topic, with its record times, Unix ms."""
    from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

    topic, codec, found = names.for_stream("pose"), ChunkCodec(), list[tuple[int, Chunk]]()
    consumer = Consumer({"bootstrap.servers": rig.settings.brokers, "group.id": "bench", "enable.auto.commit": False})
    places = consumer.list_topics(topic).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in places])
    while len(found) < most and (batch := consumer.consume(1000, 2.0)):
        found += [(message.timestamp()[1], codec.decode(message.value())) for message in batch if not message.error()]
    consumer.close()
    return found


def _check(came: list[tuple[int, Chunk]], sessions: int, seconds: float, dropped: int, tail: str) -> None:
    """Fail where a frame is not what it should be, comes twice or out of order, or is missing and not counted."""
    newest: Counter[str] = Counter()
    for _, chunk in came:
        assert chunk.first_index >= newest[chunk.session], f"{chunk} comes behind {newest[chunk.session]}\n{tail}"
        newest[chunk.session] = chunk.end_index
        expected: Any = _frame(int(chunk.session.rpartition("-")[2]), chunk.first_index).mean((1, 2))
        assert (chunk.data == expected).all(), f"{chunk} holds {chunk.data}, not {expected}"
    sent = sessions * int(seconds * _RATE)
    assert len(came) + dropped == sent, f"{len(came)} came out, {dropped} were dropped, of {sent}\n{tail}"
