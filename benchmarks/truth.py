"""What every peer must find. In: events. Out: nothing, or an error: each is compared with scipy's and ONNX Runtime's own result.

A peer that leaves work out, or takes other windows, is found out here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.load import ORIGIN_NS, Workload, samples
from benchmarks.peer import by_channel, event, network, softmax
from benchmarks.rig import LABELS

#: Probabilities may differ by so much: float32 sums in another order.
TOLERANCE = 1e-4


def expected(work: Workload, device: int, start_index: int) -> dict[str, float]:
    """Probabilities of one window: scipy in float64, a channel at a time, then the network."""
    window = samples(work, device, start_index, start_index + work.length).astype(np.float64)
    found: dict[str, float] = event("", start_index, network()(by_channel(work, window))[0])["probabilities"]
    return found


def compare(work: Workload, events: Sequence[dict[str, Any]], most: int = 100) -> float:
    """Largest difference of a probability, over at most so many events, drawn by chance.

    A RuntimeError if one is off by more than the tolerance, or the label is not the most probable one.
    """
    worst = 0.0
    for found in random.sample(list(events), min(most, len(events))):
        device, start = int(found["session"].rpartition("-")[2]), found["start_index"]
        right, came = expected(work, device, start), found["probabilities"]
        difference = max(abs(right[label] - came[label]) for label in LABELS)
        worst = max(worst, difference)
        if difference > TOLERANCE or found["label"] != max(came, key=came.__getitem__) or start % work.hop:
            raise RuntimeError(f"{found['session']} at {start}: {came}, scipy and ONNX Runtime give {right}")
        if "end_ns" in found and found["end_ns"] - found["start_ns"] != work.length * 10**9 // work.rate_hz:
            raise RuntimeError(f"{found['session']} at {start}: spans {found['end_ns'] - found['start_ns']} ns")
        if "start_ns" in found and found["start_ns"] != ORIGIN_NS + start * 10**9 // work.rate_hz:
            raise RuntimeError(f"{found['session']} at {start}: begins at {found['start_ns']} ns")
    return worst


def compare_means(
    event: dict[str, Any], means: NDArray[np.float64], weights: NDArray[np.float32], tolerance: float
) -> None:
    """A RuntimeError if the event of a network of means says other probabilities than numpy finds for the channels' means."""
    expected, came = softmax(means @ weights.astype(np.float64)), [event["probabilities"][label] for label in LABELS]
    if np.abs(expected - came).max() > tolerance:
        raise RuntimeError(f"{event['id']}: {came}, numpy finds {expected}")
