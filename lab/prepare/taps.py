"""Knocks that two streams show. In: lines of both. Out: an alignment, by sharp pulses that are paired by the distances between them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.signal import find_peaks
from scipy.special import pdtrc

from kymo.lab.prepare.lines import MOST_DRIFT, UNKNOWN_DRIFT, Alignment, Curves, Floats, Lines, filled, mean_around, t95

_SURE = 5e-3  # chance that as many agree by accident
_FILTERS = 0.04  # of a sample of the slower one: what a pulse's middle may be off by


def _pulses(lines: Lines) -> Floats:
    """Times of sharp pulses: where a line leaves what is around it by eight times what it usually does."""
    rate, highest = lines.rate_hz, np.zeros(0)
    for line in lines.values:
        values, there = filled(line)
        away = np.abs(values - mean_around(values, max(5, round(0.2 * rate))))
        away[~there] = 0
        usual = 1.4826 * float(np.median(away[there])) or float(away[there].mean()) or 1.0
        away /= usual
        highest = away if not len(highest) else np.maximum(highest, away)
    around = mean_around(highest, round(2 * rate))
    at, _ = find_peaks(highest, np.maximum(8, 3 * around), distance=max(2, round(0.12 * rate)) + 1)
    times, half = list[float](), max(1, round(0.03 * rate))
    for i in np.sort(at[np.argsort(-highest[at], kind="stable")][:4000]).tolist():
        low, high = max(0, i - half), min(len(highest), i + half + 1)
        weight = highest[low:high] ** 2
        times.append(lines.start_s + float(np.dot(np.arange(low, high), weight) / weight.sum()) / rate)
    return np.array(times)


@dataclass(frozen=True, slots=True, eq=False)
class _Match:
    pairs: list[tuple[float, float]]  # time by the second clock, first less second
    rival: int
    chance: float

    @property
    def alone(self) -> bool:
        """Whether no other distance has nearly as many, as in a rhythm."""
        return len(self.pairs) >= 1 + self.rival + 2 * math.sqrt(self.rival)


def _match(a: Floats, b: Floats, tolerance: float, low: float, high: float) -> _Match | None:
    """The largest set of pulses with one distance, to a tolerance; how many the next best distance has."""
    distances = (a[:, None] - b[None, :]).ravel()
    owner = np.tile(np.arange(len(b)), len(a))
    inside = (distances >= low) & (distances <= high)
    distances, owner = distances[inside], owner[inside]
    if not len(distances):
        return None
    order = np.argsort(distances, kind="stable")
    distances, owner = distances[order], owner[order]
    ends = np.searchsorted(distances, distances + 2 * tolerance, side="right")
    counts = np.array([len(set(owner[i:j].tolist())) for i, j in enumerate(ends.tolist())])
    top = int(counts.argmax())
    middle = float(np.median(distances[top : ends[top]]))
    near = np.abs(distances - middle) <= tolerance
    pairs: dict[int, float] = {}
    for pulse, distance in zip(owner[near].tolist(), distances[near].tolist(), strict=True):
        if pulse not in pairs or abs(distance - middle) < abs(pairs[pulse] - middle):
            pairs[pulse] = distance
    far = np.abs(distances + tolerance - middle) > 3 * tolerance
    rival = int(counts[far].max()) if far.any() else 0
    span = max(float(np.ptp(b)), 1.0) + 2 * tolerance
    here = int(((a >= b[0] + middle - tolerance) & (a <= b[-1] + middle + tolerance)).sum())
    expected = (len(b) - 1) * here / span * 2 * tolerance
    as_many = float(pdtrc(len(pairs) - 2, expected)) if len(pairs) > 1 else 1.0  # or more, by Poisson
    chance = min(1.0, len(distances) * as_many)
    return _Match([(float(b[i]), value) for i, value in sorted(pairs.items())], rival, chance)


def _groups(times: Floats) -> list[Floats]:
    """Pulses that come together: pauses of at most 5 s, 30 s in all."""
    groups: list[list[float]] = []
    for time in times.tolist():
        if groups and time - groups[-1][-1] <= 5 and time - groups[-1][0] <= 30:
            groups[-1].append(time)
        else:
            groups.append([time])
    return [np.array(group) for group in groups if len(group) > 1]


def by_taps(first: Lines, second: Lines, within_s: float) -> Alignment:
    why = "no knocks that both show"
    if min(first.rate_hz, second.rate_hz) < 20:
        return Alignment("none", why)
    a, b = _pulses(first), _pulses(second)
    tolerance = 0.004 + 0.35 * (1 / first.rate_hz + 1 / second.rate_hz)
    matches = [match for group in _groups(b) if (match := _match(a, group, tolerance, -within_s, within_s))]
    if not matches:
        return Alignment("none", why)
    best = min(matches, key=lambda match: (not match.alone, match.chance))
    anchor, at = float(np.median([d for _, d in best.pairs])), float(np.mean([t for t, _ in best.pairs]))
    pairs, chance, rivals = list(best.pairs), best.chance, best.rival
    for group in _groups(b):
        if group[0] <= best.pairs[0][0] <= group[-1]:
            continue
        reach = tolerance + MOST_DRIFT * abs(float(group.mean()) - at)
        match = _match(a, group, tolerance, anchor - reach, anchor + reach)
        if match and len(match.pairs) > max(1, match.rival):
            pairs, chance, rivals = pairs + match.pairs, chance * match.chance, rivals + match.rival
    if chance > _SURE or not best.alone or len(pairs) < 3 or rivals > 0.6 * len(pairs):
        return Alignment("none", why)
    return _of_pairs(sorted(pairs), first, second)


def _of_pairs(pairs: list[tuple[float, float]], first: Lines, second: Lines) -> Alignment:
    """Offset and drift of pairs of pulses."""
    times, offsets = np.array(pairs).T
    middle = (second.start_s + second.end_s) / 2
    least = 0.15 * math.hypot(1 / first.rate_hz, 1 / second.rate_hz)
    filters = _FILTERS / min(first.rate_hz, second.rate_hz)  # of a pulse's middle
    why = f"{len(pairs)} knocks that both show"
    shown = [
        (item.start_s + np.arange(len(item.values[0])) / item.rate_hz, filled(item.values[0])[0])
        for item in (first, second)
    ]
    curves = Curves(
        np.zeros(0),
        np.zeros(0),
        times,
        offsets,
        *[(at, (line - line.mean()) / (line.std() or 1.0)) for at, line in shown],
    )
    count, span = len(pairs), float(np.ptp(times))
    if count >= 4 and span > 5:
        slope, start = np.polyfit(times - middle, offsets, 1)
        residual = offsets - start - slope * (times - middle)
        error = max(float(np.sqrt((residual**2).sum() / (count - 2))), least)
        spread = float(np.sqrt(((times - times.mean()) ** 2).sum()))
        scale = t95(count - 2) * error
        drift_unsure = scale / spread
        if drift_unsure < UNKNOWN_DRIFT:
            unsure = math.hypot(scale * math.sqrt(1 / count + ((middle - times.mean()) / spread) ** 2), filters)
            return Alignment("taps", why, float(start), unsure, float(slope) * 1e6, drift_unsure * 1e6, middle, curves)
    error = t95(count - 1) * max(float(np.std(offsets, ddof=1)), least) / math.sqrt(count)
    error = math.hypot(error, UNKNOWN_DRIFT * abs(middle - times.mean()), filters)
    return Alignment("taps", why, float(offsets.mean()), error, middle_s=middle, curves=curves)
