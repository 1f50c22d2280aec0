"""Campaigns of random faults, short and for hours."""

from __future__ import annotations

import os
import statistics
import struct
import time
from pathlib import Path

import psutil
import pytest
from campaign import campaign
from campaign_faults import DECK
from campaign_lab import SLEPT_CLOCK
from fault_lab import PATIENCE_S, Feed, Lab, await_that
from verbs import python

_SHORT = ("kill", "rolling-update", "stop", "promote-other-kind", "poison", "other-user")


def test_a_clock_that_slept(tmp_path: Path) -> None:
    """The monotonic clock of a process, and of its event loop, is behind by what the file says."""
    clock = tmp_path / "clock"
    clock.write_bytes(struct.pack("<d", 100.0))
    code = "import asyncio, time, uvloop; asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())\n"
    code += "print(time.monotonic(), asyncio.new_event_loop().time(), time.monotonic_ns() / 1e9, time.clock_gettime(1))"
    environment = os.environ | {"PYTHONPATH": str(SLEPT_CLOCK), "KYMO_TEST_SLEPT": str(clock)}
    *behind, real = map(float, python(code, env=environment).split())
    assert [pytest.approx(real - 100, abs=1)] * 3 == behind


@pytest.mark.slow
@pytest.mark.parametrize(
    ("faults", "seed", "deck"),
    [
        pytest.param(6, 1, dict.fromkeys(_SHORT, 1), id="short"),
        pytest.param(200, 1, DECK, marks=[pytest.mark.chaos, pytest.mark.timeout(4 * 3600)], id="full"),
    ],
)
def test_every_event_once_whatever_happens(
    tmp_path: Path, jars_dir: Path, faults: int, seed: int, deck: dict[str, int]
) -> None:
    log, events = campaign(tmp_path, jars_dir, faults, seed, deck=deck, pause_s=10.0 if faults > 50 else 2.5)
    print(f"\n{log.of('note')[-1]}")
    assert events > 100
    assert not log.of("wrong"), "\n".join(log.of("wrong"))


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
