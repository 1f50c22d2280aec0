"""`make soak`: a worker for a long time, with the same memory at the end, and every event there once. KYMO_SOAK_S sets how long."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import psutil
import pytest
from fault_lab import PATIENCE_S, Feed, Lab, await_that

SOAK_S = float(os.environ.get("KYMO_SOAK_S", "3600"))
MAX_MIB = 250


@pytest.mark.soak
@pytest.mark.timeout(SOAK_S * 2 + 600)
def test_memory_stays_and_no_event_is_lost(tmp_path: Path, broker: str, prefix: str) -> None:
    with Lab(tmp_path, broker, prefix) as lab:
        feed, worker = Feed(lab, 11), lab.start_worker()
        feed.start()
        lab.await_growth(everywhere=True)
        process, started, sizes = psutil.Process(worker.pid), time.monotonic(), list[float]()

        def soaked() -> bool:
            sizes.append(process.memory_info().rss / 2**20)
            return time.monotonic() - started > SOAK_S

        await_that(soaked, "the soak", SOAK_S + PATIENCE_S)
        early, late = (statistics.median(sizes[i * len(sizes) // 4 : (i + 1) * len(sizes) // 4]) for i in (1, 3))
        print(f"{early:.0f} MiB in the second quarter, {late:.0f} MiB in the last, {max(sizes):.0f} at most")
        assert lab.check(feed) > 100
        assert late < early * 1.05 + 5
        assert max(sizes) < MAX_MIB
