"""The features of MiniRocket. In: windows (n, channels, time) of whole numbers. Out: counts (n, features), exact.

Dempster, Schmidt, Webb 2021, MiniRocket: A Very Fast (Almost) Deterministic Transform for Time Series Classification.
84 kernels of length 9 (six weights of -1, three of 2) are laid over a window at several dilations, each over some of
its channels. A feature is the share of places at which the result lies above a bias. Here windows are first rounded to
whole numbers, small enough that every sum is exact in float32: any order of adding gives the same counts, so numpy,
aeon and ONNX Runtime agree to the bit, whatever the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

LENGTH, KERNELS = 9, 84
MOST_CHANNELS = 9
#: Largest whole number: 9 channels x (6 x 1 + 3 x 2) x 2**17 stays below 2**24, up to which float32 is exact.
LARGEST = 2**17 - 1
_TRIPLES = np.array(list(combinations(range(LENGTH), 3)))  # where a kernel's weights are 2
_GOLDEN = (np.sqrt(5) + 1) / 2
_SOME = 2**20  # numbers of windows at once


@dataclass(frozen=True, slots=True, eq=False)
class Bank:
    """Kernels of one dilation that see as many places of a window."""

    dilation: int  # samples from one weight to the next
    padded: bool  # whether the window is continued by zeros on both sides; else a kernel stays inside
    weights: Floats  # ``(kernels, channels, 9)``; 0 for channels that a kernel does not look at
    biases: Floats  # ``(kernels, biases)``, halves of odd numbers

    def places(self, time: int) -> int:
        """How many places of a window of `time` samples a kernel is laid on."""
        return time if self.padded else time - (LENGTH - 1) * self.dilation

    def respond(self, windows: Floats) -> Floats:
        """``(n, channels, time)`` to ``(n, kernels, places)``."""
        n, channels, time = windows.shape
        reach = LENGTH // 2 * self.dilation if self.padded else 0
        padded = np.pad(windows, ((0, 0), (0, 0), (reach, reach)))
        places = self.places(time)
        shifted = [padded[:, :, i * self.dilation : i * self.dilation + places] for i in range(LENGTH)]
        columns = np.stack(shifted, 2).reshape(n, channels * LENGTH, places)
        out: Floats = np.matmul(self.weights.reshape(len(self.weights), -1), columns)
        return out

    def count(self, windows: Floats) -> Floats:
        """At how many places each kernel's result lies above each of its biases, ``(n, kernels * biases)``."""
        response = self.respond(windows)
        above = [np.count_nonzero(response > self.biases[:, i, None], axis=2) for i in range(self.biases.shape[1])]
        return np.stack(above, 2).reshape(len(windows), -1).astype(np.float32)


def dilations(time: int, features: int) -> list[tuple[int, int]]:
    """Dilations for windows of `time` samples, and how many features a kernel has at each (paper, section 3.1).

    Examples
    --------
    >>> dilations(17, 500)
    [(1, 4), (2, 1)]
    """
    per_kernel = max(1, features // KERNELS)
    steps = min(per_kernel, 32)
    largest = np.log2((time - 1) / (LENGTH - 1))
    values, counts = np.unique(np.logspace(0, largest, steps, base=2).astype(int), return_counts=True)
    counts = (counts * (per_kernel / steps)).astype(int)
    for i in range(per_kernel - int(counts.sum())):
        counts[i % len(counts)] += 1
    return [(int(value), int(count)) for value, count in zip(values, counts, strict=True)]


def fit_banks(windows: Floats, features: int, random: np.random.Generator) -> list[Bank]:
    """Kernels whose biases are quantiles of what they give for random windows."""
    _, channels, time = windows.shape
    banks, number = [], 0
    for j, (dilation, count) in enumerate(dilations(time, features)):
        for padded in (True, False):
            mine = [k for k in range(KERNELS) if (j + k) % 2 != padded]
            weights = np.stack([_kernel(k, channels, random) for k in mine])
            bank = Bank(dilation, padded, weights, np.zeros((len(mine), count), np.float32))
            for i in range(len(mine)):
                seen = Bank(dilation, True, weights[i : i + 1], bank.biases[i : i + 1])
                response = seen.respond(windows[random.integers(len(windows))][None])[0, 0]
                # Low-discrepancy quantiles, so that few biases cover what a kernel may give.
                quantiles = (np.arange(number + 1, number + count + 1) * _GOLDEN) % 1
                bank.biases[i] = np.floor(np.quantile(response, quantiles)) + 0.5
                number += count
            banks.append(bank)
    return banks


def _kernel(k: int, channels: int, random: np.random.Generator) -> Floats:
    """Weights ``(channels, 9)`` of one kernel on some of the channels: few more often than many."""
    most = min(channels, MOST_CHANNELS)
    chosen = random.choice(channels, int(2 ** random.uniform(0, np.log2(most + 1))), replace=False)
    weights = np.zeros((channels, LENGTH), np.float32)
    weights[chosen] = -1
    weights[np.ix_(chosen, _TRIPLES[k])] = 2
    return weights


def counts_of(banks: list[Bank], windows: Floats) -> Floats:
    """Counts of all features, ``(n, features)``: one bank behind the other."""
    return np.concatenate([np.concatenate([bank.count(part) for bank in banks], 1) for part in _parts(windows)])


def _parts(windows: Floats) -> Iterator[Floats]:
    step = max(1, _SOME // (windows.shape[1] * windows.shape[2] * LENGTH))
    for i in range(0, len(windows), step):
        yield windows[i : i + step]


def places_of(banks: list[Bank], time: int) -> Floats:
    """Largest count of each feature, ``(features,)``: what turns counts into shares."""
    return np.concatenate([np.full(bank.biases.size, bank.places(time), np.float32) for bank in banks])
