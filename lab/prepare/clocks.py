"""Two sensors, two clocks. In: both feet's samples at 500 Hz, each by its own clock. Out: a ClockFit, which turns the right
sensor's time into the left's, ``t_left = offset_s + (1 + drift) t_right`` (s since each one's first sample), with what
the estimate is uncertain by; and the right foot's samples at the left one's times.

Ways, best first:

- ``rows``: both feet stand in one file and share its rows.
- ``calendar``: both files carry absolute times. They are believed; what taps or gait say of them is reported beside.
- ``taps``: both sensors were knocked together, twice or more, while the runner stood. The knocks are matched by their
  distances, each by cross-correlation of the acceleration's magnitude. Knocks before and after the run give the drift.
- ``gait``: cross-correlation of the acceleration's magnitude over the run. The feet strike half a stride apart, so it has
  a peak half a stride before and one half a stride behind the offset; the offset is the middle of the two. Which pair it
  is among the many a stride apart, the variation from stride to stride tells. Windows of 8 s give the drift. A runner whose
  steps differ in time moves the middle by half the difference; 4 % of a step are allowed for.

Uncertainties are half widths that hold in 95 of 100 cases (coverage factor 2). A drift that is not measured is taken as 0,
and 100 ppm are allowed for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kymo.lab.prepare.clean import RATE_HZ, CleanFoot
from kymo.lab.prepare.lines import UNKNOWN_DRIFT, Floats

_MAX_OFFSET_S = 10.0
_STRIDE_S = (0.45, 1.2)
_ASYMMETRY = 0.04
_WINDOW_S, _HOP_S = 8.0, 2.0


@dataclass(frozen=True, slots=True)
class ClockFit:
    """From the right sensor's time to the left's."""

    method: str  # ``rows``, ``calendar``, ``taps`` or ``gait``
    offset_s: float  # left time at the right sensor's first sample
    offset_uncertainty_s: float
    # how much more the left clock counts than the right. The uncertainty is NaN where nothing measures the drift,
    # which is then taken as 0
    drift_ppm: float = 0.0
    drift_uncertainty_ppm: float = float("nan")
    note: str = ""  # what a reader must know

    def right_times(self, left_s: Floats) -> Floats:
        """The right sensor's times of left times, s."""
        times: Floats = (left_s - self.offset_s) / (1 + self.drift_ppm * 1e-6)
        return times


def fit_clocks(left: CleanFoot, right: CleanFoot) -> ClockFit | None:
    """How the right sensor's clock stands to the left's; None if nothing tells."""
    if left.raw.shared == right.raw.shared == "rows" and left.raw.path == right.raw.path:
        return ClockFit("rows", (right.start_ns - left.start_ns) / 1e9, 0.0, 0.0, 0.0)
    sides = [_magnitude(foot) for foot in (left, right)]
    measured = _from_taps(*sides) or _from_gait(*sides)
    if left.raw.shared == right.raw.shared == "calendar":
        offset = (right.start_ns - left.start_ns) / 1e9
        note = "nothing in the signals checks it"
        if measured:
            note = (
                f"{measured.method} say {measured.offset_s - offset:+.4f} ± {measured.offset_uncertainty_s:.4f} s more"
            )
        return ClockFit("calendar", offset, 1 / RATE_HZ, 0.0, float("nan"), note)
    return measured


def _magnitude(foot: CleanFoot) -> Floats:
    """Length of the acceleration over what it is at rest; gaps bridged. Free of the sensor's mounting and unit."""
    size = np.linalg.norm(foot.values[:, :3], axis=1)
    present = np.flatnonzero(np.isfinite(size))
    size = np.interp(np.arange(len(size)), present, size[present]) if len(present) else np.zeros(len(size))
    if len(size) >= 3:  # a single wrong sample outside the usable rows must not look like a knock
        size[1:-1] = np.median(np.column_stack([size[:-2], size[1:-1], size[2:]]), axis=1)
    block = RATE_HZ // 2
    blocks = size[: len(size) // block * block].reshape(-1, block)
    calm = blocks[np.argmin(blocks.std(axis=1))] if len(blocks) else size
    return np.asarray(size / (float(np.median(calm)) or 1.0), np.float64)


def _knocks(size: Floats) -> list[list[int]]:
    """Groups of knocks: at least two sharp pulses while the foot is at rest, at most 3 s apart; where each is highest."""
    moving = np.abs(size - 1) > 0.3
    share = np.convolve(moving, np.ones(RATE_HZ // 2) / (RATE_HZ // 2), mode="same")
    pulse = (np.abs(size - 1) > 1.0) & (share < 0.12)
    groups: list[list[int]] = []
    last = -10 * RATE_HZ
    for i in np.flatnonzero(pulse).tolist():
        if groups and i - last < RATE_HZ // 20:  # the same pulse
            if size[i] > size[groups[-1][-1]]:
                groups[-1][-1] = i
        elif groups and i - last < 3 * RATE_HZ:
            groups[-1].append(i)
        else:
            groups.append([i])
        last = i
    return [group for group in groups if len(group) >= 2]


def _from_taps(left: Floats, right: Floats) -> ClockFit | None:
    pairs: list[tuple[float, float]] = []  # right time, left minus right time; s
    for left_group in _knocks(left):
        best: list[tuple[float, float]] = []
        for right_group in _knocks(right):
            matches = _match(left, right, left_group, right_group)
            if len(matches) > len(best):
                best = matches
        pairs += best
    if len(pairs) < 2:
        return None
    times, offsets = np.array(pairs).T
    floor = 0.3 / RATE_HZ  # what a parabola through a sampled peak leaves
    if np.ptp(times) > 5 and len(pairs) >= 4:
        slope, start = np.polyfit(times, offsets, 1)
        residuals = offsets - start - slope * times
        error = max(float(np.sqrt(np.sum(residuals**2) / (len(pairs) - 2))), floor)
        spread = float(np.sqrt(np.sum((times - times.mean()) ** 2)))
        at_zero = error * np.sqrt(1 / len(pairs) + (times.mean() / spread) ** 2)
        return ClockFit("taps", float(start), 2 * float(at_zero), float(slope) * 1e6, 2 * error / spread * 1e6)
    error = 2 * max(float(np.std(offsets, ddof=1)), floor) / np.sqrt(len(pairs))
    error = float(np.hypot(error, UNKNOWN_DRIFT * times.mean()))
    return ClockFit("taps", float(offsets.mean()), error, note="knocks at one end only: the drift is not measured")


def _match(left: Floats, right: Floats, left_group: list[int], right_group: list[int]) -> list[tuple[float, float]]:
    """Right time and offset of the knocks that belong together: the largest set with one distance, to 4 ms."""
    best: list[tuple[int, int]] = []
    for apart in {a - b for a in left_group for b in right_group if abs(a - b) <= _MAX_OFFSET_S * RATE_HZ}:
        pairs = [(a, b) for a in left_group for b in right_group if abs(a - b - apart) <= 2]
        if len(pairs) >= 2 and len(pairs) > len(best):
            best = pairs
    half = RATE_HZ // 25
    matches = []
    for a, b in best:
        if min(a, b) < 2 * half or a + 2 * half >= len(left) or b + 2 * half >= len(right):
            continue
        pulse = right[b - half : b + half] - 1
        lags = np.array([np.dot(left[a + k - half : a + k + half] - 1, pulse) for k in range(-half, half + 1)])
        matches.append((b / RATE_HZ, (a - b + _peak(lags) - half) / RATE_HZ))
    return matches


def _peak(values: Floats) -> float:
    """Place of the largest value, between samples by a parabola."""
    i = int(np.argmax(values))
    if not 0 < i < len(values) - 1:
        return float(i)
    low, top, high = values[i - 1 : i + 2]
    bend = low - 2 * top + high
    return i + float((low - high) / (2 * bend) if bend else 0.0)


def _shocks(size: Floats) -> Floats:
    """What is sharp in a magnitude: less its mean over 0.1 s, cut at its own extremes, mean 0."""
    width = RATE_HZ // 10
    sharp = size - np.convolve(size, np.ones(width) / width, mode="same")
    limit = float(np.quantile(np.abs(sharp), 0.995))
    sharp = np.clip(sharp, -limit, limit)
    return np.asarray(sharp - sharp.mean(), np.float64)


def _correlation(left: Floats, right: Floats, most: int) -> Floats:
    """Cross-correlation for left = right moved by -most to most samples, ``(2 * most + 1,)``."""
    size = 1 << int(np.ceil(np.log2(len(left) + len(right))))
    product = np.fft.rfft(left, size) * np.conj(np.fft.rfft(right, size))
    whole = np.fft.irfft(product, size)
    return np.asarray(np.concatenate((whole[-most:], whole[: most + 1])), np.float64)


def _from_gait(left: Floats, right: Floats) -> ClockFit | None:
    if min(len(left), len(right)) < 4 * RATE_HZ:
        return None
    a, b = _shocks(left), _shocks(right)
    stride = _stride(a)
    most = min(int(_MAX_OFFSET_S * RATE_HZ), min(len(a), len(b)) // 2)
    correlation = _correlation(a, b, most + stride)
    half = stride // 2
    score = (
        correlation[stride - half : len(correlation) - stride - half]
        + correlation[stride + half : len(correlation) - stride + half]
    )
    at = int(np.argmax(score)) - most
    local = _local_offsets(a, b, at, stride)
    if len(local) < 2:
        return None
    times, offsets = local
    rivals = [score[i] for k in (-1, 1) if 0 <= (i := at + most + k * stride) < len(score)]
    note = "" if not rivals or max(rivals) < 0.97 * score.max() else "may be wrong by whole strides: all are too alike"
    return _from_local(times, offsets, stride / RATE_HZ, note)


def _stride(shocks: Floats) -> int:
    """Samples of a stride, by autocorrelation."""
    low, high = (round(s * RATE_HZ) for s in _STRIDE_S)
    return low + int(np.argmax(_correlation(shocks, shocks, high)[high + low :]))


def _local_offsets(a: Floats, b: Floats, at: int, stride: int) -> tuple[Floats, Floats] | tuple[()]:
    """Right time and offset, s, of windows in which both feet strike: the middle of the two peaks around `at`."""
    length, reach = int(_WINDOW_S * RATE_HZ), round(0.12 * stride)
    loud = float(np.sqrt(np.mean(b**2)))
    pairs = []
    for start in range(0, len(b) - length + 1, int(_HOP_S * RATE_HZ)):
        part = b[start : start + length]
        first = start + at - stride
        if first < 0 or first + length + 2 * stride > len(a) or np.sqrt(np.mean(part**2)) < 0.7 * loud:
            continue
        around = np.correlate(a[first : first + length + 2 * stride], part, "valid")  # lags at - stride to at + stride
        lags = []
        for centre in (stride - stride // 2, stride + stride // 2):
            piece = around[centre - reach : centre + reach + 1]
            lags.append(centre - reach + _peak(np.asarray(piece, np.float64)) - stride)
        pairs.append(((start + length / 2) / RATE_HZ, (at + sum(lags) / 2) / RATE_HZ))
    return (np.array(pairs)[:, 0], np.array(pairs)[:, 1]) if len(pairs) > 1 else ()


def _from_local(times: Floats, offsets: Floats, stride_s: float, note: str) -> ClockFit:
    """Offset and drift from those of windows; neighbouring windows overlap, so only every fourth counts as new."""
    count = max(2.0, len(times) * _HOP_S / _WINDOW_S)
    middle = float(np.median(offsets))
    scatter = max(1.4826 * float(np.median(np.abs(offsets - middle))), 0.3 / RATE_HZ)
    uneven = _ASYMMETRY / 2 * stride_s / 2
    if len(times) >= 8:
        slope, start = np.polyfit(times, offsets, 1)
        residual = float(np.std(offsets - start - slope * times, ddof=2))
        spread = float(np.std(times)) * np.sqrt(count)
        drift, unsure = float(slope) * 1e6, 2 * max(residual, 0.3 / RATE_HZ) / spread * 1e6
        if abs(drift) > unsure:
            error = float(np.hypot(2 * residual / np.sqrt(count), unsure * 1e-6 * times.mean()))
            return ClockFit("gait", float(start), float(np.hypot(error, uneven)), drift, unsure, note)
        scatter = max(residual, 0.3 / RATE_HZ)
        error = float(np.hypot(2 * scatter / np.sqrt(count), max(unsure, 1.0) * 1e-6 * times.mean()))
        note = "; ".join(filter(None, (note, "the drift is within its uncertainty of 0 and taken as 0")))
        return ClockFit("gait", middle, float(np.hypot(error, uneven)), 0.0, unsure, note)
    note = "; ".join(filter(None, (note, "too short to measure the drift")))
    error = float(np.hypot(2 * scatter / np.sqrt(count), UNKNOWN_DRIFT * times.mean()))
    return ClockFit("gait", middle, float(np.hypot(error, uneven)), note=note)


def align(right: Floats, fit: ClockFit, length: int) -> Floats:
    """The right foot's samples at the left one's times.

    Where the clocks differ by a whole number of samples throughout, to a tenth of one, values are taken as they are;
    else by a cubic through the four samples around (its error in amplitude is below 1 % up to 60 Hz, 5 % at 100 Hz).
    """
    at = fit.right_times(np.arange(length) / RATE_HZ) * RATE_HZ
    nearest = np.rint(at)
    out = np.full((length, right.shape[1]), np.nan)
    if float(np.abs(at - nearest).max()) <= 0.1:
        inside = (nearest >= 0) & (nearest < len(right))
        out[inside] = right[nearest[inside].astype(np.int64)]
        return out
    base = np.floor(at).astype(np.int64)
    inside = (base >= 1) & (base + 2 < len(right))
    x = (at - base)[inside, np.newaxis]
    # Lagrange's cubic through -1, 0, 1, 2.
    weights = (
        -x * (x - 1) * (x - 2) / 6,
        (x + 1) * (x - 1) * (x - 2) / 2,
        -(x + 1) * x * (x - 2) / 2,
        (x + 1) * x * (x - 1) / 6,
    )
    out[inside] = sum(w * right[base[inside] + k] for k, w in zip((-1, 0, 1, 2), weights, strict=True))
    return out
