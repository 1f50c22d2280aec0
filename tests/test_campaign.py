"""Random faults of twenty kinds against real workers, and every event there once. Short here, 200 faults under the mark `chaos`.

The findings name the faults that went before each: `python tests/campaign.py --faults 40 --seed 7 --log FILE` repeats one by hand.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from campaign import campaign
from campaign_faults import DECK
from campaign_lab import SLEPT_CLOCK

_SHORT = ("kill", "rolling-update", "stop", "promote-other-kind", "poison", "other-user")


def test_a_clock_that_slept(tmp_path: Path) -> None:
    """The monotonic clock of a process, and of its event loop, is behind by what the file says."""
    clock = tmp_path / "clock"
    clock.write_bytes(struct.pack("<d", 100.0))
    code = "import asyncio, time, uvloop; asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())\n"
    code += "print(time.monotonic(), asyncio.new_event_loop().time(), time.monotonic_ns() / 1e9, time.clock_gettime(1))"
    environment = os.environ | {"PYTHONPATH": str(SLEPT_CLOCK), "KYMO_TEST_SLEPT": str(clock)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    *behind, real = map(float, done.stdout.split())
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
