"""Waiting for a Kafka that starts. In: its process, port and data folder. Out: a server that answers, or why there is none."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from deploy.kafka_server import POLL_S, explain, log_file, probe, tail
from streams.errors import BrokerError

SAY_S = 5.0
BUSY = 0.1  # share of the time that a starting server must compute to count as alive; an idle one takes 0.04


def _say(text: str) -> None:
    print(f"kymo: {text}", file=sys.stderr, flush=True)


def await_ready(
    process: subprocess.Popen[bytes],
    port: int,  # where it will answer
    data_dir: Path,  # its data folder, with its log
    timeout_s: float,  # how long it may do nothing
    tell: Callable[[str], None] = _say,  # gets a line about every `SAY_S` seconds of waiting
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Wait until the server that was just launched answers on `port`, as long as it gets on.

    After an unclean end Kafka reads its logs whole before it answers, however long that takes: it gets on while its log grows
    or it computes.
    """
    begun = said = moved = clock()
    before = _work_of(process.pid, data_dir)
    while not probe(port):
        if process.poll() is not None:
            raise BrokerError(explain(data_dir, f"died at start (status {process.returncode})"))
        now, work = clock(), _work_of(process.pid, data_dir)
        if work[0] != before[0] or work[1] - before[1] > BUSY * timeout_s:
            moved, before = now, work
        if now - moved > timeout_s:
            waited = f"did not answer on port {port} within {now - begun:.0f} s"
            raise BrokerError(explain(data_dir, f"{waited} and did nothing for the last {timeout_s:.0f} s"))
        if now - said >= SAY_S:
            said = now
            tell(f"Kafka has been starting for {now - begun:.0f} s, {_stage(data_dir)}; see {log_file(data_dir)}")
        time.sleep(POLL_S)


def _work_of(pid: int, data_dir: Path) -> tuple[int, float]:
    """Size of a server's log, and the processor time that it has used (s)."""
    import psutil

    path, used_s = log_file(data_dir), 0.0
    with contextlib.suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        used_s = times.user + times.system
    return path.stat().st_size if path.exists() else 0, used_s


def _stage(data_dir: Path) -> str:
    """How far a start has come, by the log."""
    text = "\n".join(tail(log_file(data_dir)))
    loaded = re.findall(r"\((\d+)/(\d+) completed in ", text)
    if loaded:
        return "{} of {} partitions loaded".format(*loaded[-1])
    unclean = "no clean shutdown file was found" in text
    return "reading its data after an unclean end" if unclean else "no partition loaded yet"
