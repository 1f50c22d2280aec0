"""The shadow never holds anything up: what it is too slow for is dropped and counted, and what it does wrong stays its own affair."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
from memory_kafka import KeptOutbox, until
from tiny_models import window

from kymo.models.serving.operator import SILENT, Shadow

WINDOWS = [(i % 3, window(np.zeros((4, 2)), f"s{i % 3}", i)) for i in range(1000)]


class Model:
    """Gives each window's index, once it may."""

    bundle = type("Bundle", (), {"id": "tiny@1"})

    def __init__(self) -> None:
        self.may, self.broken = threading.Event(), False

    def serve(self, windows: list[Any], *_: Any) -> list[list[bytes]]:
        assert self.may.wait(30)
        if self.broken:
            raise ValueError("broken on purpose")
        return [[str(w.start_index).encode()] for w in windows]


def test_what_it_is_too_slow_for_is_dropped() -> None:
    async def work() -> None:
        shadow, outbox, model = Shadow("t.shadow"), KeptOutbox(), Model()
        shadow.start(outbox)  # type: ignore[arg-type]
        shadow.offer(WINDOWS)  # there is no model: nobody is asked
        assert not shadow.counts
        shadow.predictor = model  # type: ignore[assignment]
        shadow.offer(WINDOWS)
        shadow.offer(WINDOWS[:5])
        dropped = shadow.counts["dropped"]
        assert 700 <= dropped <= 1000
        model.may.set()
        await until(lambda: shadow.counts["scored"] + dropped == 1005)
        await until(lambda: len(outbox.found) == shadow.counts["scored"])
        places = [(partition, int(record.value or b"")) for _, partition, record in outbox.found]
        assert places == [(number, w.start_index) for number, w in WINDOWS[: len(places)]]
        assert {record.key for _, _, record in outbox.found} == {b"s0", b"s1", b"s2"}
        model.broken = True
        shadow.offer(WINDOWS[:3])
        await until(lambda: shadow.counts["failed"] == 3)
        model.broken = False
        shadow.offer(WINDOWS[:3])  # it goes on
        await until(lambda: shadow.counts["scored"] + dropped == 1008)
        shadow.close()

    asyncio.run(work())


def test_what_is_published_already_is_scored_in_silence() -> None:
    async def work() -> None:
        shadow, outbox, model = Shadow("t.shadow"), KeptOutbox(), Model()
        shadow.predictor = model  # type: ignore[assignment]
        model.may.set()
        shadow.start(outbox)  # type: ignore[arg-type]
        shadow.offer([(SILENT, WINDOWS[0][1]), WINDOWS[1], WINDOWS[2]])
        await until(lambda: shadow.counts["scored"] == 3 and len(outbox.found) >= 2)
        shadow.close()
        assert [(partition, record.value) for _, partition, record in outbox.found] == [(1, b"1"), (2, b"2")]

    asyncio.run(work())
