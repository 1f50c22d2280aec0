"""Prometheus metrics of a worker. In: what an agent says of its work. Out: metric families, made when they are scraped.

What is called per batch or per event only adds to plain numbers: one thread writes them, the scraping thread reads
them. Labels come from closed sets (recipe, bundle, reason, stage), never from data; what belongs to a session stands in
its events, not here.
"""

from __future__ import annotations

import contextlib
import itertools
import platform
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from kymo.streams.errors import ChunkError

if TYPE_CHECKING:
    from kymo.models.serving.partition import Partition

#: Counts that chains and partitions keep, by the name they keep them under.
COUNTS = {
    "gaps": "Jumps of the sample index, after bridging",
    "duplicates": "Chunks that had come before",
    "late": "Chunks that came when their place had passed",
    "interpolated": "Samples put into gaps that the recipe bridges",
    "not_a_number": "Samples that are NaN or infinite in some channel",
    "segments": "Segments that sources began anew",
    "windows_with_gaps": "Windows not classified because of a gap",
    "windows_known": "Windows not classified because their events were published before a restart",
    "other_chain": "Stored sessions read again from their oldest open window, because another chain had stored them",
    "unmatched": "Chunks of streams that the recipe does not take",
}
STAGES = {"chain": "decoding and the chain, per batch of records", "classify": "per batch", "commit": "per commit"}
OTHER = "other"

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
# fmt: off
_LATENCY = (
    0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0
)
# fmt: on
_BATCH = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


class Histogram:
    """Counts values by bucket."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by bound, as Prometheus wants them."""
        bounds = (*map(str, self.bounds), "+Inf")
        return list(zip(bounds, map(float, itertools.accumulate(self.counts)), strict=True))


class RecipeMetrics:
    """What happened for one recipe; an :class:`kymo.models.serving.runtime.Observer`.

    Every method is called from one thread.
    """

    def __init__(self) -> None:
        self.samples = self.records = self.windows = self.events = 0
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter(dict.fromkeys((*ChunkError.REASONS, OTHER), 0))
        self.batch = Histogram(_BATCH)
        self.stages = {stage: Histogram(_SECONDS) for stage in STAGES}
        self.latency = Histogram(_LATENCY)
        self.committed_s = 0.0  # Unix time
        self.assigned: Callable[[], int] | None = None
        self.pending: Callable[[], int] | None = None
        self.swaps: Counter[tuple[str, str]] = Counter()  # (alias, result)
        self.shadow: Counter[str] = Counter()

    def took(self, partition: Partition, records: int, seconds: float) -> None:
        """Records were decoded and pushed through the chain; takes over what the partition has counted."""
        self.records += records
        self.samples += partition.samples
        partition.samples = 0
        if partition.counts:
            self.counts.update(partition.counts)
            partition.counts.clear()
        self.stages["chain"].observe(seconds)

    def classified(self, windows: int, seconds: float) -> None:
        """A batch was classified."""
        self.windows += windows
        self.batch.observe(windows)
        self.stages["classify"].observe(seconds)

    def emitted(self, seconds: float) -> None:
        """An event was acknowledged, so long after its window's last chunk was sent."""
        self.events += 1
        self.latency.observe(max(seconds, 0.0))

    def rejected(self, reason: str) -> None:
        """A record was rejected."""
        self.reasons[reason if reason in ChunkError.REASONS else OTHER] += 1

    def committed(self, seconds: float) -> None:
        """Offsets were committed."""
        self.committed_s = time.time()
        self.stages["commit"].observe(seconds)


class WorkerMetrics(Collector):
    """Shows what happened for a worker's recipes."""

    def __init__(self, bundles: Mapping[str, str]) -> None:
        self.bundles = dict(bundles)
        self.recipes = {recipe: RecipeMetrics() for recipe in bundles}  # each an observer of its agent
        # where each scrape finds the longest pause of the event loop
        self.longest_pause_s: Callable[[], float] = lambda: 0.0
        self.registry = process_registry()  # what to serve; holds the process's memory and CPU time and the build too
        self.registry.register(self)

    def watch(self, recipe: str, assigned: Callable[[], int], pending: Callable[[], int]) -> None:
        """Say where each scrape finds how many partitions a recipe's agent holds, and how many windows wait."""
        self.recipes[recipe].assigned, self.recipes[recipe].pending = assigned, pending

    def swapped(self, recipe: str, alias: str, bundle: str) -> None:
        """A bundle was taken over while the worker runs."""
        self.recipes[recipe].swaps[alias, "taken"] += 1
        if alias == "champion":
            self.bundles[recipe] = bundle

    def refused(self, recipe: str, alias: str) -> None:
        """A bundle that was promoted was refused."""
        self.recipes[recipe].swaps[alias, "refused"] += 1

    def collect(self) -> Iterable[Metric]:
        yield from self._counters()
        yield from self._exchanges()
        yield from self._histograms()
        yield from self._gauges()
        model = InfoMetricFamily("kymo_model", "The bundle that classifies for a recipe", labels=["recipe"])
        for recipe, bundle in self.bundles.items():
            model.add_metric([recipe], {"bundle": bundle})
        yield model

    def _counters(self) -> Iterable[Metric]:
        totals: dict[str, tuple[str, Callable[[RecipeMetrics], float]]] = {
            "samples": ("Samples that came in, of all channels at once", lambda m: m.samples),
            "records": ("Records taken from the input topics", lambda m: m.records),
            "windows": ("Windows classified", lambda m: m.windows),
            "events": ("Events acknowledged by the broker, one a window and head", lambda m: m.events),
        }
        for name, (about, value) in totals.items():
            family = CounterMetricFamily(f"kymo_{name}", about, labels=["recipe"])
            for recipe, metrics in self.recipes.items():
                family.add_metric([recipe], value(metrics))
            yield family
        for name, about in COUNTS.items():
            family = CounterMetricFamily(f"kymo_{name}", about, labels=["recipe"])
            for recipe, metrics in self.recipes.items():
                family.add_metric([recipe], metrics.counts[name])
            yield family
        rejected = CounterMetricFamily(
            "kymo_rejected", "Records sent to the rejected topic", labels=["recipe", "reason"]
        )
        for recipe, metrics in self.recipes.items():
            for reason, count in metrics.reasons.items():
                rejected.add_metric([recipe, reason], count)
        yield rejected

    def _exchanges(self) -> Iterable[Metric]:
        swaps = CounterMetricFamily(
            "kymo_swaps", "Promoted bundles that were taken over or refused", labels=["recipe", "alias", "result"]
        )
        shadow = CounterMetricFamily(
            "kymo_shadow_windows", "Windows that a shadow scored, dropped or failed at", labels=["recipe", "result"]
        )
        for recipe, metrics in self.recipes.items():
            for key in itertools.product(("champion", "shadow"), ("taken", "refused")):
                swaps.add_metric([recipe, *key], metrics.swaps[key])
            for result in ("scored", "dropped", "failed"):
                shadow.add_metric([recipe, result], metrics.shadow[result])
        yield from (swaps, shadow)

    def _histograms(self) -> Iterable[Metric]:
        batch = HistogramMetricFamily("kymo_batch_windows", "Windows classified at once", labels=["recipe"])
        stage = HistogramMetricFamily("kymo_stage_seconds", "Time a stage takes", labels=["recipe", "stage"])
        end_to_end = HistogramMetricFamily(
            "kymo_end_to_end_seconds",
            "From the sending of a window's last chunk to its event's acknowledgement",
            labels=["recipe"],
        )
        for recipe, metrics in self.recipes.items():
            batch.add_metric([recipe], metrics.batch.buckets(), metrics.batch.total)
            end_to_end.add_metric([recipe], metrics.latency.buckets(), metrics.latency.total)
            for name, seconds in metrics.stages.items():
                stage.add_metric([recipe, name], seconds.buckets(), seconds.total)
        yield from (batch, stage, end_to_end)

    def _gauges(self) -> Iterable[Metric]:
        assigned = GaugeMetricFamily("kymo_assigned_partitions", "Partitions that this worker holds", labels=["recipe"])
        pending = GaugeMetricFamily("kymo_pending_windows", "Windows that wait to be classified", labels=["recipe"])
        commit = GaugeMetricFamily(
            "kymo_last_commit_timestamp_seconds", "Unix time of the last commit", labels=["recipe"]
        )
        for recipe, metrics in self.recipes.items():
            for family, count in ((assigned, metrics.assigned), (pending, metrics.pending)):
                # What is asked may be only half there while the process starts; the other metrics are shown all the same.
                with contextlib.suppress(Exception):
                    if count is not None:
                        family.add_metric([recipe], count())
            commit.add_metric([recipe], metrics.committed_s)
        pause = GaugeMetricFamily(
            "kymo_loop_pause_seconds",
            "Longest that the event loop has kept others waiting",
            value=self.longest_pause_s(),
        )
        yield from (assigned, pending, commit, pause)


class _Build(Collector):
    def collect(self) -> Iterable[Metric]:
        build = InfoMetricFamily("kymo_build", "Versions of what runs")
        build.add_metric([], {"version": _version(), "python": platform.python_version()})
        yield build


def process_registry() -> CollectorRegistry:
    """A registry with the build and this process's memory and CPU time, for any long-running process."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Build())
    return registry


def _version() -> str:
    try:
        return metadata.version("kymo-streams")
    except metadata.PackageNotFoundError:  # a checkout on the path
        return "unknown"
