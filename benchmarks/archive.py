"""How fast topics become an archive. In: a Rig and a Workload. Out: rows of figures; MB are 10**6 bytes of messages.

Messages of 4.8 kB (100 samples of 12 channels) through Kafka: into segments; to a consumer that only reads; to one that writes the bytes
to a plain file. Each peer is one process on one core, by turns. The archive is checked after every run: all checksums, every offset.
"""

from __future__ import annotations

import shutil
import statistics
import time
import uuid
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path

from benchmarks.archive_peer import take
from benchmarks.load import Workload, chunks, fill
from benchmarks.report import Row
from benchmarks.rig import Rig
from kymo.streams.archive.check import check_archive
from kymo.streams.archive.read import ArchiveReader
from kymo.streams.settings import Settings

TITLES = {
    "kymo": "Kymo: into segments",
    "reader": "kafka-python that only reads",
    "file": "kafka-python that writes the bytes to a plain file",
}
CHUNK = 100
LIVE_MB_S = 50.0


def archive(rig: Rig, work: Workload, rounds: int = 3, live_s: float = 20.0) -> list[Row]:
    """All peers on one backlog, by turns, then Kymo while messages come at 50 MB/s for so long (0 s: not at all)."""
    prefix, messages = _topics(rig), list(chunks(work, CHUNK))
    number = fill(rig.producer(), rig.names(prefix).of("sensor"), iter(messages))
    megabytes = sum(len(value) for _, value in messages) / 1e6
    found: dict[str, list[Row]] = {peer: [] for peer in TITLES}
    for _ in range(rounds):
        for peer in TITLES:
            found[peer].append(_run(rig, peer, prefix, number))
    rows = [_row(TITLES[peer], runs, megabytes, number) for peer, runs in found.items()]
    return rows + ([live(rig, work, live_s)] if live_s else [])


def live(rig: Rig, work: Workload, seconds: float) -> Row:
    """Kymo beside a producer that sends 50 MB a second; how long after the last message its segment is closed."""
    prefix = _topics(rig)
    messages = cycle(list(chunks(work, CHUNK)))
    size = len(next(messages)[1])
    number = int(LIVE_MB_S * 1e6 * seconds / size)
    producer, topic, step = rig.producer(), rig.names(prefix).of("sensor"), 100
    with _process() as pool:
        running = _started(pool, rig, "kymo", prefix, number)
        started, sent_mb = time.monotonic(), 0.0
        for first in range(0, number, step):
            for key, value in islice(messages, min(step, number - first)):
                producer.produce(topic, value, key)
                sent_mb += len(value) / 1e6
            producer.poll(max(0.0, started + sent_mb / LIVE_MB_S - time.monotonic()))
            time.sleep(max(0.0, started + sent_mb / LIVE_MB_S - time.monotonic()))
        producer.flush()
        took, ended_s = time.monotonic() - started, time.time()
        run = _finished(rig, running, "kymo", prefix, number)
    title = f"Kymo, live for {took:.0f} s"
    behind_ms = 1000 * (run["ended_s"] - ended_s)
    return _row(title, [run | {"wall_s": took}], sent_mb, number) | {"behind_ms": behind_ms}


def _topics(rig: Rig) -> str:
    prefix = f"bench-{uuid.uuid4().hex[:8]}"
    rig.names(prefix)
    return prefix


def _folder(rig: Rig, prefix: str) -> Path:
    return rig.folder / f"archive-{prefix}"


def _started(pool: Executor, rig: Rig, peer: str, prefix: str, number: int) -> Future[Row]:
    settings = Settings(brokers=rig.settings.brokers, prefix=prefix)
    return pool.submit(take, peer, settings, _folder(rig, prefix), number)


def _finished(rig: Rig, running: Future[Row], peer: str, prefix: str, number: int) -> Row:
    took, folder = running.result(600), _folder(rig, prefix)
    took["file_mb"] = sum(path.stat().st_size for path in folder.glob("*")) / 1e6 if folder.exists() else 0.0
    if peer == "kymo":
        wrong, stored = check_archive(folder), sum(s.count for s in ArchiveReader(folder).segments)
        if wrong or stored != number:
            raise RuntimeError(f"the archive holds {stored} of {number} records; {wrong[:3]}")
    shutil.rmtree(folder, ignore_errors=True)
    return took


def _run(rig: Rig, peer: str, prefix: str, number: int) -> Row:
    with _process() as pool:
        return _finished(rig, _started(pool, rig, peer, prefix, number), peer, prefix, number)


def _process() -> Executor:
    """A new process, for one peer."""
    return ProcessPoolExecutor(1, get_context("spawn"))


def _row(title: str, runs: list[Row], megabytes: float, number: int) -> Row:
    rates = [megabytes / run["wall_s"] for run in runs]
    cpu_s = statistics.median(run["cpu_s"] for run in runs)
    return {
        "peer": title,
        "mb_s": statistics.median(rates),
        "mb_s_spread": f"{min(rates):.0f} to {max(rates):.0f}",
        "mb_cpu_s": megabytes / cpu_s,
        "us_message": 1e6 * cpu_s / number,
        "peak_mb": max(run["peak_mb"] for run in runs),
        "file_mb": runs[0]["file_mb"],
        "sent_mb": megabytes,
    }
