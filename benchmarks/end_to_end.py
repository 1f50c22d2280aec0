"""Throughput through Kafka. In: a Rig and a Workload. Out: rows of figures; rates in channel-samples a second.

Every peer drains a prefilled topic with a consumer group of its own and publishes an event a window; the peers take turns, and events of
every run are compared with scipy's and ONNX Runtime's own results.
"""

from __future__ import annotations

import signal
import statistics
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.child import alive
from benchmarks.drain import Drained, EventTopic, await_ready, drain
from benchmarks.load import Workload, chunks, fill, json_samples
from benchmarks.peer import Task, peer_child
from benchmarks.report import Row, commit
from benchmarks.rig import Rig
from benchmarks.truth import compare
from kymo.deploy.children import Child


@dataclass(frozen=True, slots=True)
class Entry:
    """A peer with its input."""

    title: str  # in the table
    peer: str  # ``kymo``, or the NAME of a peer_NAME.py
    chunk: int  # samples a message; 1 for JSON
    share: float = 1.0  # of the numbers that the fastest peers get: slow ones get fewer, since only the rate counts
    checkout: Path | None = None  # another Kymo than this one


KYMO, BARE = Entry("Kymo, chunks of 100", "kymo", 100), Entry("bare confluent-kafka loop, chunks of 100", "bare", 100)
ENTRIES = (
    Entry("Kymo, chunks of 500", "kymo", 500),
    KYMO,
    Entry("bare confluent-kafka loop, chunks of 500", "bare", 500),
    BARE,
    Entry("Quix Streams, a JSON message a sample", "quix", 1, 0.02),
    Entry("Faust, a JSON message a sample", "faust", 1, 0.02),
)


class Runner:
    """Runs entries on one rig, each input filled in once."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self._filled: dict[tuple[Workload, int, Path | None], str] = {}

    def prefix(self) -> str:
        prefix = f"bench-{uuid.uuid4().hex[:8]}"
        self.rig.names(prefix)
        return prefix

    def fill(self, prefix: str, work: Workload, chunk: int) -> None:
        """Send a workload in messages of `chunk` samples; 1 is JSON."""
        fill(self.rig.producer(), f"{prefix}.sensor", json_samples(work) if chunk == 1 else chunks(work, chunk))

    def filled(self, entry: Entry, work: Workload) -> str:
        """Prefix of topics that hold a workload already; another checkout, whose snapshots may differ, has its own."""
        key = (work, entry.chunk, entry.checkout)
        if key not in self._filled:
            self._filled[key] = self.prefix()
            self.fill(self._filled[key], work, entry.chunk)
        return self._filled[key]

    def peer(self, peer: str, prefix: str, work: Workload, checkout: Path | None = None) -> tuple[Child, EventTopic]:
        """A peer's process under a new consumer group, not yet started, and the topic of its events."""
        brokers, name = self.rig.settings.brokers, f"{peer}-{uuid.uuid4().hex[:8]}"
        if peer == "kymo":
            env = {"PYTHONPATH": str(checkout)} if checkout else {}  # another checkout runs in the same environment
            return self.rig.worker(self.rig.recipe(name), prefix, **env), EventTopic(brokers, f"{prefix}.events")
        target = self.rig.topic(f"out.{name}")
        task = Task(brokers, name, f"{prefix}.sensor", target, str(self.rig.folder), work)
        return peer_child(peer, task), EventTopic(brokers, target)

    def run(self, entry: Entry, work: Workload) -> Drained:
        """Drain once, and check the events."""
        child, topic = self.peer(entry.peer, self.filled(entry, work), work, entry.checkout)
        with alive([child]):
            result = drain([child], topic, work)
        topic.close()
        compare(work, result.events)
        return result

    def by_turns(self, works: Mapping[Entry, Workload], rounds: int) -> dict[Entry, Row]:
        """Every entry `rounds` times, by turns; the median of each."""
        for entry, work in works.items():
            self.filled(entry, work)
        runs: dict[Entry, list[Drained]] = {entry: [] for entry in works}
        for _ in range(rounds):
            for entry, work in works.items():
                runs[entry].append(self.run(entry, work))
        return {entry: _row(each) for entry, each in runs.items()}


def throughput(rig: Rig, work: Workload, rounds: int = 3, entries: Sequence[Entry] = ENTRIES) -> list[Row]:
    works = {entry: work.sized(work.channel_samples * entry.share) for entry in entries}
    return [{"peer": entry.title} | row for entry, row in Runner(rig).by_turns(works, rounds).items()]


def _row(runs: Sequence[Drained]) -> Row:
    return {
        "rate": statistics.median(r.rate for r in runs),
        "rates": [round(r.rate) for r in runs],
        "rate_cpu": statistics.median(r.rate_cpu for r in runs),
        "rates_cpu": [r.rate_cpu for r in runs],
        "windows": len(runs[0].events),
        "pss_mb": statistics.median(r.memory.pss_mb for r in runs),
        "peak_mb": max(r.memory.peak_mb for r in runs),
    }


def beside(rig: Rig, work: Workload, checkout: Path, rounds: int = 3) -> dict[str, list[Row]]:
    """This Kymo, another checkout's and the bare loop, by turns: their rates, and how they compare in each round."""
    rows, ratios = [], []
    for chunk in (500, 100):
        entries = [
            Entry(f"Kymo {commit()}, chunks of {chunk}", "kymo", chunk),
            Entry(f"the other Kymo {commit(checkout)}, chunks of {chunk}", "kymo", chunk, checkout=checkout),
            Entry(f"bare confluent-kafka loop, chunks of {chunk}", "bare", chunk),
        ]
        rows += (mine := throughput(rig, work, rounds, entries))
        ratios += [{"chunk": chunk, "of": of} | _ratios(mine, key) for of, key in _RATES.items()]
    return {"throughput": rows, "beside": ratios}


_RATES = {"the clock": "rates", "processor time": "rates_cpu"}


def _ratios(rows: Sequence[Row], key: str) -> Row:
    """Medians, over the rounds, of what this Kymo's, the other's and the bare loop's rate are of each other."""
    here, there, bare = (row[key] for row in rows)
    pairs = {"here_bare": (here, bare), "there_bare": (there, bare), "here_there": (here, there)}
    rounds = {name: [a / b for a, b in zip(*pair, strict=True)] for name, pair in pairs.items()}
    spread = f"{min(rounds['here_there']):.2f} to {max(rounds['here_there']):.2f}"
    return {name: statistics.median(found) for name, found in rounds.items()} | {"spread": spread}


def devices(rig: Rig, work: Workload, rounds: int = 2, counts: Sequence[int] = (1, 8, 64, 512)) -> list[Row]:
    """The same number of samples from more and more devices: Kymo and the bare loop, chunks of 100."""
    rows = []
    for count in counts:
        sized = replace(work, devices=count).sized(work.channel_samples)
        turns = Runner(rig).by_turns({KYMO: sized, BARE: sized}, rounds)
        rows += [{"devices": count, "peer": entry.peer} | row for entry, row in turns.items()]
    return rows


def workers(rig: Rig, work: Workload, rounds: int = 2, counts: Sequence[int] = (1, 2)) -> list[Row]:
    """Workers that share the partitions: from the moment at which all may begin to the last event.

    They join while there is no input, stand still (SIGSTOP) while it is filled in, and go on at the same moment.
    """
    runner, rows = Runner(rig), []
    for count in counts:
        seconds = [_together(runner, work, count) for _ in range(rounds)]
        rates = [work.channel_samples / s for s in seconds]
        rows.append({"workers": count, "rate": statistics.median(rates), "rates": [round(r) for r in rates]})
    return rows


def _together(runner: Runner, work: Workload, count: int) -> float:
    prefix = runner.prefix()
    topic, recipe = EventTopic(runner.rig.settings.brokers, f"{prefix}.events"), runner.rig.recipe(f"{prefix}-workers")
    # Long enough to stand still without being taken for dead.
    children = [runner.rig.worker(recipe, prefix, KYMO_SESSION_TIMEOUT_S="120") for _ in range(count)]
    with alive(children):
        await_ready(children, runner.rig.settings.home)
        try:
            for child in children:
                child.send(signal.SIGSTOP)
            runner.fill(prefix, work, KYMO.chunk)
            started_ms = time.time() * 1000
        finally:
            for child in children:
                child.send(signal.SIGCONT)
        result = drain(children, topic, work)
    topic.close()
    compare(work, result.events)
    return float(max(e["t_ms"] for e in result.events) - started_ms) / 1000
