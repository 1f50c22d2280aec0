"""Taking over partitions that hold many sessions. In: a Rig. Out: rows of figures; seconds from a worker's start to its being ready, beside
one that takes over nothing, and the longest pause of its event loop, ms."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from benchmarks.child import alive, check
from benchmarks.drain import EventTopic, await_ready
from benchmarks.end_to_end import Runner
from benchmarks.load import Workload, fill, header, samples
from benchmarks.rig import Deployed, Rig
from kymo.streams.chunk import Chunk
from kymo.streams.codec import ChunkCodec

SESSIONS = 10_000


def takeover(rig: Rig, work: Workload, rounds: int = 3, most: int = SESSIONS) -> list[dict[str, Any]]:
    """Ready after so long, with so many ended sessions on ``kymo.state``: none, and `most`."""
    runner, rows = Runner(rig), []
    for sessions in (0, most):
        prefix, name = runner.prefix(), f"takeover-{sessions}"
        fill(rig.producer(), f"{prefix}.sensor", _ended(work, sessions))
        recipe = rig.recipe(name)
        child = rig.worker(recipe, prefix)
        events, stored = (EventTopic(rig.settings.brokers, f"{prefix}.{topic}") for topic in ("events", "state"))
        with alive([child]):
            await_ready([child], rig.settings.home)
            while events.count() < 2 * sessions or stored.count() < sessions:
                check([child])
                time.sleep(0.2)
        found = [_start(rig, prefix, recipe) for _ in range(rounds)]
        ready_s = ", ".join(f"{s:.1f}" for s, _ in found)
        rows.append({"sessions": sessions, "ready_s": ready_s, "pause_ms": max(p for _, p in found)})
    return rows


def _ended(work: Workload, sessions: int) -> Iterator[tuple[str, bytes]]:
    """Recordings of two windows each, all at once."""
    codec = ChunkCodec()
    for device in range(sessions):
        head = header(work, device)
        yield (
            head.session,
            codec.encode(Chunk(head, 0, samples(work, device % 8, 0, work.length + work.hop), None, True)),
        )


def _start(rig: Rig, prefix: str, recipe: Deployed) -> tuple[float, float]:
    """Seconds from the start of a worker to its being ready, and the longest pause of its loop, ms."""
    child = rig.worker(recipe, prefix)
    with alive([child]):
        began_s = time.monotonic()
        await_ready([child], rig.settings.home)
        ready_s = time.monotonic() - began_s
        time.sleep(2.0)  # what it does once its records may come
        return ready_s, 1000 * rig.metrics(child)["kymo_loop_pause_seconds"]
