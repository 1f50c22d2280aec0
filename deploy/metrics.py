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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

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
from kymo.streams.sessions import software_version

if TYPE_CHECKING:
    from kymo.models.serving.partition import Partition
    from kymo.models.serving.scopes import Scopes

TOTALS = {
    "samples": "Samples that came in, of all channels at once",
    "records": "Records taken from the input topics",
    "windows": "Windows classified",
    "events": "Events acknowledged by the broker, one a window and head",
}
#: Counts that chains and partitions keep, by the name they keep them under.
COUNTS = {
    "gaps": "Jumps of the sample index, after bridging",
    "duplicates": "Chunks that had come before",
    "late": "Chunks that came when their place had passed",
    "interpolated": "Samples put into gaps that the recipe bridges",
    "not_a_number": "Samples that are NaN or infinite in some channel",
    "time_went_back": "Samples of irregular streams, left out since their time is before that of an earlier one",
    "too_large": "JPEG images of over 1 MiB, left out",
    "segments": "Segments that sources began anew",
    "windows_with_gaps": "Windows not classified because of a gap",
    "windows_known": "Windows not classified because their events were published before a restart",
    "other_chain": "Stored sessions read again from their oldest open window, because another chain had stored them",
    "dropped": "Samples that waited for a slow step for too long",
    "doubtful": "Sessions whose first samples are far larger or smaller than all that the bundle learned from",
    "silent_inputs": "Inputs of sessions that fell silent and are not waited for any more",
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
    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative counts by bound, as Prometheus wants them, and the sum of all values."""
        bounds = (*map(str, self.bounds), "+Inf")
        return list(zip(bounds, map(float, itertools.accumulate(self.counts)), strict=True)), self.total


class RecipeMetrics:
    """What happened for one recipe; an :class:`kymo.models.serving.runtime.Observer`.

    Every method is called from one thread.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter(dict.fromkeys((*ChunkError.REASONS, OTHER), 0))
        self.batch = Histogram(_BATCH)
        self.stages = {stage: Histogram(_SECONDS) for stage in STAGES}
        self.latency = Histogram(_LATENCY)
        self.committed_s = 0.0  # Unix time
        self.swaps: Counter[tuple[str, str]] = Counter()  # (alias, result)
        self.shadow: Counter[str] = Counter()
        self.gauges: dict[str, Callable[[], int]] = {}  # by name, where each scrape asks

    def took(self, partition: Partition | Scopes, records: int, seconds: float) -> None:
        """Records were decoded and pushed through the chain; takes over what the partition has counted."""
        self.counts["records"] += records
        self.counts["samples"] += partition.samples
        partition.samples = 0
        if partition.counts:
            self.counts.update(partition.counts)
            partition.counts.clear()
        self.stages["chain"].observe(seconds)

    def classified(self, windows: int, seconds: float) -> None:
        self.counts["windows"] += windows
        self.batch.observe(windows)
        self.stages["classify"].observe(seconds)

    def emitted(self, seconds: float) -> None:
        """An event was acknowledged, so long after its window's last chunk was sent."""
        self.counts["events"] += 1
        self.latency.observe(max(seconds, 0.0))

    def rejected(self, reason: str) -> None:
        self.reasons[reason if reason in ChunkError.REASONS else OTHER] += 1

    def committed(self, seconds: float) -> None:
        self.committed_s = time.time()
        self.stages["commit"].observe(seconds)

    def dropped(self, samples: int) -> None:
        """Samples waited for a slow step for too long."""
        self.counts["dropped"] += samples

    def counted(self, name: str) -> list[tuple[int]]:
        return [(self.counts[name],)]

    def asked(self, gauge: str) -> Iterator[tuple[int]]:
        """What a gauge says; nothing where it cannot be asked: it may be only half there while the process starts."""
        with contextlib.suppress(Exception):
            yield (self.gauges[gauge](),)


class WorkerMetrics:
    """Shows what happened for a worker's recipes."""

    def __init__(self, bundles: Mapping[str, str]) -> None:
        self.bundles = dict(bundles)
        self.recipes = {recipe: RecipeMetrics() for recipe in bundles}  # each an observer of its agent
        # where each scrape finds the longest pause of the event loop
        self.longest_pause_s: Callable[[], float] = lambda: 0.0
        self.registry = process_registry(self.collect)  # what to serve

    def watch(self, recipe: str, assigned: Callable[[], int], pending: Callable[[], int]) -> None:
        """Say where each scrape finds how many partitions a recipe's agent holds, and how many windows wait."""
        self.recipes[recipe].gauges = {"assigned": assigned, "pending": pending}

    def swapped(self, recipe: str, alias: str, bundle: str) -> None:
        """A bundle was taken over while the worker runs."""
        self.recipes[recipe].swaps[alias, "taken"] += 1
        if alias == "champion":
            self.bundles[recipe] = bundle

    def refused(self, recipe: str, alias: str) -> None:
        """A bundle that was promoted was refused."""
        self.recipes[recipe].swaps[alias, "refused"] += 1

    def collect(self) -> Iterable[Metric]:
        counter, gauge, histogram = CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
        for name, about in (TOTALS | COUNTS).items():
            yield self._family(counter, name, about, partial(RecipeMetrics.counted, name=name))
        text = "Records sent to the rejected topic"
        yield self._family(counter, "rejected", text, lambda m: m.reasons.items(), "reason")
        text = "Promoted bundles that were taken over or refused"
        swaps = list(itertools.product(("champion", "shadow"), ("taken", "refused")))
        yield self._family(counter, "swaps", text, lambda m: [(*key, m.swaps[key]) for key in swaps], "alias", "result")
        text, results = "Windows that a shadow scored, dropped or failed at", ("scored", "dropped", "failed")
        yield self._family(counter, "shadow_windows", text, lambda m: [(r, m.shadow[r]) for r in results], "result")
        text = "Windows classified at once"
        yield self._family(histogram, "batch_windows", text, lambda m: [m.batch.buckets()])
        text = "Time a stage takes"
        yield self._family(
            histogram, "stage_seconds", text, lambda m: [(s, *h.buckets()) for s, h in m.stages.items()], "stage"
        )
        text = "From the sending of a window's last chunk to its event's acknowledgement"
        yield self._family(histogram, "end_to_end_seconds", text, lambda m: [m.latency.buckets()])
        text = "Partitions that this worker holds"
        yield self._family(gauge, "assigned_partitions", text, lambda m: m.asked("assigned"))
        text = "Windows that wait to be classified"
        yield self._family(gauge, "pending_windows", text, lambda m: m.asked("pending"))
        text = "Unix time of the last commit"
        yield self._family(gauge, "last_commit_timestamp_seconds", text, lambda m: [(m.committed_s,)])
        text = "Longest that the event loop has kept others waiting"
        yield gauge("kymo_loop_pause_seconds", text, value=self.longest_pause_s())
        model = InfoMetricFamily("kymo_model", "The bundle that classifies for a recipe", labels=["recipe"])
        for recipe, bundle in self.bundles.items():
            model.add_metric([recipe], {"bundle": bundle})
        yield model

    def _family(
        self, kind: Any, name: str, about: str, rows: Callable[[RecipeMetrics], Iterable[tuple[Any, ...]]], *labels: str
    ) -> Any:
        """A metric of all recipes: a row has the values of the labels behind the recipe, then numbers."""
        family = kind(f"kymo_{name}", about, labels=["recipe", *labels])
        for recipe, metrics in self.recipes.items():
            for row in rows(metrics):
                family.add_metric([recipe, *row[: len(labels)]], *row[len(labels) :])
        return family


class _Asked(Collector):
    """Collects what a function gives at each scrape."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()


def _build() -> Iterator[Metric]:
    versions = {"version": software_version(), "python": platform.python_version()}
    yield InfoMetricFamily("kymo_build", "Versions of what runs", versions)


def process_registry(*collects: Callable[[], Iterable[Metric]]) -> CollectorRegistry:
    """A registry with the build and this process's memory and CPU time, for any long-running process, and what functions give."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    for collect in (_build, *collects):
        registry.register(_Asked(collect))
    return registry
