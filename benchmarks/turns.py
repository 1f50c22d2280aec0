"""Calls by turns, so that other work on the machine falls on all of them. In: calls by name. Out: seconds, their medians and ratios."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from time import perf_counter, process_time
from typing import Any

Call = Callable[[], Any]
Seconds = tuple[float, float]  # by the clock, of the processor
#: The same as members of a row.
KINDS = ("clock_s", "cpu_s")


def measure(
    calls: Mapping[str, Call], rounds: int, seconds: float, clock: Callable[[], float] = perf_counter
) -> dict[str, list[float]]:
    """Seconds a call by name, one figure a round of about `seconds` each; each round starts with another one."""
    counts: dict[str, int] = {}
    for name, call in calls.items():
        call()
        start = clock()
        call()
        counts[name] = max(1, round(seconds / max(clock() - start, 1e-6)))
    taken: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            call, count = calls[name], counts[name]
            call()  # the one before has left the caches full of its own
            start = clock()
            for _ in range(count):
                call()
            taken[name].append((clock() - start) / count)
    return taken


def faster(times: Sequence[float], than: Sequence[float]) -> float:
    """Median of the ratios of rounds that lie side by side."""
    return median(b / a for a, b in zip(times, than, strict=True))


def timed(call: Call) -> tuple[Seconds, Any]:
    """Seconds of a call, and what came of it."""
    clock, processor = perf_counter(), process_time()
    out = call()
    return (perf_counter() - clock, process_time() - processor), out


def turn(calls: Mapping[str, Call], number: int) -> Iterator[tuple[str, Call]]:
    """The calls of a round, forwards and backwards by turns."""
    yield from list(calls.items())[:: -1 if number % 2 else 1]


def medians(rounds: Sequence[Mapping[str, Seconds]], name: str) -> dict[str, float]:
    """Seconds of a call over rounds."""
    return {kind: median(taken[name][i] for taken in rounds) for i, kind in enumerate(KINDS)}


def ratios(rounds: Sequence[Mapping[str, Seconds]], name: str, than: str) -> dict[str, float]:
    """How many times as fast a call is as another one."""
    sides = ([[taken[each][i] for taken in rounds] for each in (name, than)] for i in range(2))
    return {kind: faster(*side) for kind, side in zip(("clock", "cpu"), sides, strict=True)}
