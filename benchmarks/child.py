"""Processes under measurement. In: a process id. Out: processor time in s, memory in MB (10**6 bytes)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from kymo.deploy.children import Child, stop


@dataclass(frozen=True, slots=True)
class Memory:
    pss_mb: float  # its proportional share: pages shared with others count in parts
    rss_mb: float  # all pages that are resident
    peak_mb: float  # the most `rss_mb` has been


def processor_s(pid: int) -> float:
    """Processor time of a process so far, user and system, s."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def memory(pid: int) -> Memory:
    """Memory of a process and its children together."""
    found = [_memory(p.pid) for p in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))]
    return Memory(*(round(sum(numbers), 1) for numbers in zip(*found, strict=True)))


def _memory(pid: int) -> tuple[float, float, float]:
    rollup = _fields(Path(f"/proc/{pid}/smaps_rollup"))
    return rollup["Pss"], rollup["Rss"], _fields(Path(f"/proc/{pid}/status"))["VmHWM"]


def _fields(path: Path) -> dict[str, float]:
    """Sizes in MB of a file of ``Name:  123 kB`` lines."""
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 / 1e6 for row in rows if len(row) == 3 and row[2] == "kB"}


@contextlib.contextmanager
def alive(children: Sequence[Child]) -> Iterator[None]:
    """Children that run for the length of a ``with`` block and are ended behind it."""
    try:
        for child in children:
            child.start()
        yield
    finally:
        stop(children)


def check(children: Sequence[Child]) -> None:
    """Raise RuntimeError with its last lines if a child has ended."""
    for child in children:
        if child.status is not None:
            raise RuntimeError(f"{child.name} ended ({child.ended()}):\n" + "\n".join(child.tail))
