"""Errors of sensors. In: standard deviations and rates. Out: noise ``(3, n)`` and samples that are lost or late.

The terms are those of IEEE Std 952: white noise N, bias instability B and random walk K, whose Allan deviations over τ s are
``N/√τ``, ``B·√(2 ln 2 / π)`` (0.664 B) and ``K·√(τ/3)``.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lab.synth.plan import Noise, Plan

Floats = NDArray[np.float64]
#: Samples keep their order: no time is moved by more than this share of the interval.
MOST_JITTER = 0.49
#: Each use has random numbers of its own: turning one off leaves the others as they are.
USES = {"mag": 0, "acc": 1, "gyro": 2, "timing": 3}


def stream_of(seed: int, use: str, term: int = 0) -> np.random.Generator:
    """Random numbers for one use (see :data:`USES`) and term."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, USES[use], term])))


def noise(terms: Noise, rate_hz: float, count: int, seed: int, sensor: str) -> Floats | None:
    """Noise of three axes, shape (3, count); None where all terms are 0."""
    if not (terms.white or terms.bias_instability or terms.random_walk):
        return None
    out = np.zeros((3, count))
    if terms.white:
        out += stream_of(seed, sensor, 0).standard_normal((3, count)) * (terms.white * math.sqrt(rate_hz))
    if terms.bias_instability:
        out += flicker(stream_of(seed, sensor, 1).standard_normal((3, count))) * terms.bias_instability
    if terms.random_walk:
        steps = stream_of(seed, sensor, 2).standard_normal((3, count))
        out += np.cumsum(steps, axis=1) * (terms.random_walk / math.sqrt(rate_hz))
    return out


def flicker(white: Floats) -> Floats:
    """Noise with a spectral density of 1/(2πf) from white noise of deviation 1, along the last axis.

    An all-pole filter of order one half (Kasdin, Proc. IEEE 83, 1995): its response h begins with 1 and goes on with
    ``h[k] = h[k-1]·(k - 1/2)/k``.
    """
    count = white.shape[-1]
    k = np.arange(1, count)
    response = np.concatenate([[1.0], np.cumprod((k - 0.5) / k)])
    length = 1 << (2 * count - 1).bit_length()  # the convolution must not wrap around
    spectrum = np.fft.rfft(white, length) * np.fft.rfft(response, length)
    return np.fft.irfft(spectrum, length)[..., :count]


def arrivals(plan: Plan, times_ns: NDArray[np.int64], seed: int) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Which samples arrive, and when: numbers in order, and times in Unix ns, no two alike. At least one arrives."""
    timing, count = plan.timing, len(times_ns)
    kept: NDArray[np.intp] = np.arange(count)
    times = times_ns
    if timing.drop_probability:
        lost = stream_of(seed, "timing", 0).random(count) < timing.drop_probability
        lost[0] &= not lost.all()
        kept = np.flatnonzero(~lost)
        times = times_ns[kept]
    if timing.jitter_s:
        late = stream_of(seed, "timing", 1).standard_normal(count)  # the same whatever is lost
        most = int(MOST_JITTER * plan.interval_ns)
        moved = np.clip(np.rint(late[kept] * (timing.jitter_s * 1e9)), -most, most).astype(np.int64)
        times = np.maximum(times + moved, plan.start_time_ns)
    return kept, times
