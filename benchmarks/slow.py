"""A slow step live, with more than it can do. In: a Rig. Out: frames that come out, beside those that could, and the loop's longest pause.

Sessions send frames of 36 kB at their pace; the step waits, or computes, for 30 ms a frame in a pool of two processes. What waits for over
two seconds is dropped. Every frame that comes out is compared, must come once and in order, and the others must have been counted.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.child import alive
from benchmarks.drain import EventTopic, await_ready
from benchmarks.load import send_at_pace
from benchmarks.report import Row
from benchmarks.rig import Rig
from kymo.processors.recipe.load import Recipe
from kymo.processors.registry import STEPS
from kymo.streams.chunk import Array, Chunk, Header
from kymo.streams.codec import ChunkCodec

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


def _one(rig: Rig, kind: str, sessions: int, seconds: float) -> Row:
    names, text = (
        rig.names(f"bench-slow-{kind}"),
        _RECIPE.format(name=f"slow-{kind}", rate=_RATE, shape=_SHAPE, kind=kind, takes_s=_TAKES_S),
    )
    recipe = rig.write(f"slow-{kind}", text)
    deployed = recipe, rig.bundle(recipe, b"none")  # nobody asks it: a processor makes no events
    env = {"KYMO_SLOW_PROCESSES": str(_PROCESSES), "KYMO_SLOW_AGE_S": str(_AGE_S)}
    child = rig.worker(deployed, names.prefix, "--roles", "processor", module="benchmarks.slow_worker", **env)
    derived, producer, codec = (
        EventTopic(rig.settings.brokers, names.for_stream("pose")),
        rig.producer(**{"linger.ms": 0}),
        ChunkCodec(),
    )
    with alive([child]):
        await_ready([child], rig.settings.home)
        began_ms = int(time.time() * 1000)
        send_at_pace(producer, _sends(names.for_stream("video"), recipe, sessions, seconds))
        time.sleep(_AGE_S + 2)
        counted = rig.metrics(child)
        came = [(t_ms, codec.decode(value)) for t_ms, value in derived.records()]
    derived.close()
    dropped = int(counted["kymo_dropped_total"])
    _check(came, sessions, seconds, dropped, "\n".join(child.tail))
    since, until = began_ms + 1000 * _WARM_UP_S, began_ms + 1000 * seconds
    rate = sum(since <= stamp_ms < until for stamp_ms, _ in came) / (seconds - _WARM_UP_S)
    possible = _PROCESSES / _TAKES_S
    figures = {"offered": sessions * _RATE, "possible": possible, "out": rate, "share": rate / possible}
    return {"step": f"{kind}s"} | figures | {"dropped": dropped, "pause_ms": 1000 * counted["kymo_loop_pause_seconds"]}


def _frame(session: int, index: int) -> Array:
    return np.full((1, *_SHAPE, 3), (7 * session + index) % 251, np.uint8)


def _sends(
    topic: str, recipe: Recipe, sessions: int, seconds: float
) -> Iterator[tuple[float, str, tuple[str, int], bytes]]:
    """Each frame when it is taken."""
    codec, started_ns = ChunkCodec(), time.time_ns()
    heads = [Header(f"camera-{i}", started_ns, recipe.input_format()) for i in range(sessions)]
    for number in range(int(seconds * _RATE)):
        for i, head in enumerate(heads):
            value = codec.encode(Chunk(head, number, _frame(i, number)))
            yield (number + i / sessions) / _RATE, topic, (head.session, number), value


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
