"""Two streams, two clocks. In: samples of any two kinds at any rates, each by its own clock. Out: how much later the second one's times
have to be so that both tell of the same moments, how sure that is, or why it cannot be said.

Ways, best first:

- ``taps``: sharp pulses that both show, such as knocks of one sensor against the other, paired by the distances between them.
- ``movement``: cross-correlation of what moves in both: of each vector's length or each channel, up or down, and of how much is going on
  (the logarithm of the power of what is quick). The second recording is cut into parts, and each part says by itself how well every
  offset fits. An offset is taken if it beats every other one beyond its own peak by a multiple of what the parts differ by: a rhythm
  whose next period fits as well is refused, and so is one moment that happens to be alike.

Uncertainties are half widths that hold in 95 of 100 cases. What a sensor is late by in itself (skin conductance answers a second or more
after a movement) is part of the offset, since no data can tell the two apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from kymo.lab.prepare.lines import MOST_DRIFT, Alignment, Curves, Floats, Lines, filled, mean_around, t95
from kymo.lab.prepare.taps import by_taps

_LEAST_S = 20.0  # of both
_MOST_RATE_HZ = 64.0
_PARTS, _PART_S = (8, 90), 4.0  # how many parts, and how long
_SIGNALS, _ACTIVITY = "the signals", "how much is going on"
# standard errors by which the best offset has to be better; by which another may be worse and count as possible
_SURE, _NEARLY = 3.0, 0.8
_PRIOR = 8  # parts that the scatter of all offsets counts as beside an offset's own
_FILTERS = 0.12  # of a sample of the slower one: what sensors' own filters may differ by


def align_streams(first: Lines, second: Lines, centre_s: float, within_s: float) -> Alignment:
    """Find what must be added to the second one's times; looked for up to `within_s` around `centre_s`."""
    if not first.values or not second.values:
        return Alignment("none", "one of them has no channel that changes")
    shortest = min(item.end_s - item.start_s for item in (first, second))
    if shortest < _LEAST_S:
        return Alignment("none", f"{shortest:.3g} s are too short, expected {_LEAST_S:g} s or more of both")
    moved = Lines(second.start_s + centre_s, second.rate_hz, second.values)
    ways = [by_taps(first, moved, within_s), _by_movement(first, moved, within_s)]
    sure = [way for way in ways if way.sure]
    if not sure:
        return _moved(Alignment("none", "; ".join(way.why for way in ways), curves=ways[1].curves), centre_s)
    best, other = sure[0], sure[-1]
    allowed = 3 * (best.offset_uncertainty_s + other.offset_uncertainty_s) + 1 / min(first.rate_hz, second.rate_hz)
    if abs(best.offset_s - other.offset_s) > allowed:
        why = f"taps say {best.offset_s + centre_s:+.3f} s, movement says {other.offset_s + centre_s:+.3f} s"
        return _moved(Alignment("none", why, curves=other.curves), centre_s)
    return _moved(best, centre_s)


def _moved(alignment: Alignment, centre_s: float) -> Alignment:
    """By the second one's own times."""
    curves = alignment.curves
    if curves is not None:
        times, line = curves.second
        offsets = {name: getattr(curves, name) + centre_s for name in ("offsets_s", "parts_offset_s")}
        curves = replace(curves, parts_s=curves.parts_s - centre_s, second=(times - centre_s, line), **offsets)
    offset_s, middle_s = alignment.offset_s + centre_s, alignment.middle_s - centre_s
    return replace(alignment, offset_s=offset_s, middle_s=middle_s, curves=curves)


def _compared(line: Floats, rate_hz: float, at_hz: float, activity: bool) -> Floats:
    """A line at a lower rate, without what is slow, its spectrum flattened by half; 0 where nothing is known."""
    values, there = filled(line)
    width = max(1, round(rate_hz / at_hz))
    if activity:
        power = mean_around((values - mean_around(values, max(3, round(rate_hz / 2)))) ** 2, width)
        values = np.log(power + max(float(np.quantile(power, 0.1)), 1e-3 * float(power.mean())) + 1e-30)
    at = np.arange(int((len(values) - 1) * at_hz / rate_hz) + 1) * (rate_hz / at_hz)
    values = np.interp(at, np.arange(len(values)), mean_around(values, width))
    values -= mean_around(values, round(8 * at_hz))
    known = there[np.minimum(np.rint(at).astype(np.int64), len(there) - 1)]
    spread = 1.4826 * float(np.median(np.abs(values[known]))) or float(values[known].std()) or 1.0
    values = np.where(known, np.clip(values / spread, -6, 6), 0.0)
    size = 1 << int(np.ceil(np.log2(2 * len(values))))
    spectrum = np.fft.rfft(values, size)
    level = mean_around(np.abs(spectrum), max(3, size // 64))
    flat = np.fft.irfft(spectrum / np.sqrt(level + 1e-3 * level.max() + 1e-30), size)[: len(values)]
    return np.where(known, flat, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """Two lines at one rate."""

    first: Floats
    second: Floats
    rate_hz: float
    shift_s: float  # how far behind the first one's start the second one's is
    what: str  # the lines say

    @property
    def signs(self) -> tuple[float, ...]:
        """Ways up that the second may be."""
        return (1.0,) if self.what == _ACTIVITY else (1.0, -1.0)

    def scores(self, low: int, high: int, finer: int = 1) -> _Scores:
        """Correlation of each part of the second with the first at lags from `low` to `high` samples, that many times as finely."""
        parts = int(np.clip(len(self.second) / self.rate_hz / _PART_S, *_PARTS))
        length, base = len(self.second) // parts, round(self.shift_s * self.rate_hz)
        size = 1 << int(np.ceil(np.log2(2 * length + high - low)))
        count, usual = (
            (high - low) * finer + 1,
            length * np.array([np.mean(self.first**2), np.mean(self.second**2)]) / 4,
        )
        energy = np.concatenate((np.zeros(1), np.cumsum(self.first**2)))
        rows = np.empty((parts, count))
        for k, row in enumerate(rows):
            part = self.second[k * length : (k + 1) * length]
            start = k * length + base + low
            piece = np.zeros(length + high - low)
            i, j = max(start, 0), min(start + len(piece), len(self.first))
            if i < j:
                piece[i - start : j - start] = self.first[i:j]
            product_of_both = np.fft.rfft(piece, size) * np.conj(np.fft.rfft(part, size))
            edges = np.clip(start + np.arange(high - low + 1), 0, len(self.first))
            under = energy[np.minimum(edges + length, len(self.first))] - energy[edges]
            under = np.interp(np.arange(count) / finer, np.arange(len(under)), np.maximum(under, usual[0] + 1e-30))
            own = max(float((part**2).sum()), float(usual[1]) + 1e-30)
            row[:] = np.fft.irfft(product_of_both, size * finer)[:count] * finer / np.sqrt(under * own)
        middles_s = ((np.arange(parts) + 0.5) * length - len(self.second) / 2) / self.rate_hz
        lags_s = (low + np.arange(count) / finer + base) / self.rate_hz - self.shift_s
        return _Scores(
            np.arctanh(np.clip(rows, -0.99, 0.99)), np.asarray(middles_s, np.float64), np.asarray(lags_s, np.float64)
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Scores:
    """How well offsets fit, by part: ``(parts, lags)``."""

    values: Floats
    middles_s: Floats  # of the parts, from the middle of all
    lags_s: Floats

    def drifted(self, drift: float) -> Floats:
        """With a drift taken out."""
        count, step = self.values.shape[1], float(self.lags_s[1] - self.lags_s[0])
        out = np.zeros(self.values.shape)
        for k, move in enumerate(np.rint(drift * self.middles_s / step).astype(int).tolist()):
            a, b = max(0, -move), min(count, count - move)
            out[k, a:b] = self.values[k, a + move : b + move]
        return out


@dataclass(frozen=True, slots=True, eq=False)
class _Peak:
    """The best offset of a pair."""

    errors: float  # standard errors by which it is better than the next best
    lag: int  # where it is in the scores
    lobe: int  # how far it is from where it is half as high
    drift: float
    sign: float
    total: Floats  # by lag
    rival: int  # the next best


def _peak(scores: _Scores, drifts: Floats, signs: tuple[float, ...]) -> _Peak:
    """Where the parts together fit best, and by how much better than anywhere else, by what the parts differ by."""
    means, (parts, lags) = np.array([scores.drifted(drift).mean(axis=0) for drift in drifts]), scores.values.shape
    peaks = []
    for sign in signs:
        by_lag, total = (sign * means).argmax(axis=0), (sign * means).max(axis=0)
        top = int(total.argmax())
        lower = np.flatnonzero(total <= total[top] / 2)
        before, behind = lower[lower < top], lower[lower > top]
        lobe = max(top - int(before[-1]) if len(before) else top, int(behind[0]) - top if len(behind) else lags - top)
        others = np.flatnonzero(np.abs(np.arange(lags) - top) > lobe)
        if not len(others):
            continue
        each = np.empty((parts, lags))
        for i in np.unique(by_lag):
            each[:, by_lag == i] = sign * scores.drifted(drifts[i])[:, by_lag == i]
        ahead = each[:, [top]] - each[:, others]
        variance = ahead.var(axis=0, ddof=1)
        # a rival from which the parts happen to differ alike is not told from others by that
        variance = (variance * (parts - 1) + float(np.median(variance)) * _PRIOR) / (parts - 1 + _PRIOR)
        errors = ahead.mean(axis=0) / np.sqrt(variance / parts + 1e-30)
        drift, at = float(drifts[by_lag[top]]), int(errors.argmin())
        peaks.append(_Peak(float(errors[at]), top, lobe, drift, sign, total, int(others[at])))
    return max(peaks, key=lambda peak: peak.errors, default=_Peak(0.0, 0, 1, 0.0, 1.0, means[0], 0))


def _pairs(first: Lines, second: Lines) -> Iterator[_Pair]:
    rate_hz, shift_s = min(first.rate_hz, second.rate_hz, _MOST_RATE_HZ), second.start_s - first.start_s
    for what, at_hz in ((_SIGNALS, rate_hz), (_ACTIVITY, min(rate_hz, 16.0))):
        sides = [
            [_compared(line, item.rate_hz, at_hz, what == _ACTIVITY) for line in item.values]
            for item in (first, second)
        ]
        for a, b in product(*([np.mean(side, axis=0)] if what == _ACTIVITY else side for side in sides)):
            yield _Pair(a, b, at_hz, shift_s, what)


def _by_movement(first: Lines, second: Lines, within_s: float) -> Alignment:
    within_s = min(within_s, max(first.end_s - second.start_s, second.end_s - first.start_s))
    best: tuple[_Peak, _Pair, _Scores] | None = None
    for pair in _pairs(first, second):
        reach = int(within_s * pair.rate_hz) + 1
        steps = math.ceil(MOST_DRIFT * len(pair.second) / 2)
        drifts = np.linspace(-MOST_DRIFT, MOST_DRIFT, 2 * steps + 1) if steps > 1 else np.zeros(1)
        scores = pair.scores(-reach, reach)
        peak = _peak(scores, drifts, pair.signs)
        if best is None or peak.errors > best[0].errors:
            best = peak, pair, scores
    assert best is not None
    peak, pair, scores = best
    shown = (
        (item.start_s + np.arange(len(line)) / pair.rate_hz, line)
        for item, line in ((first, pair.first), (second, pair.second))
    )
    curves = Curves(scores.lags_s, peak.total / max(float(peak.total.max()), 1e-30), np.zeros(0), np.zeros(0), *shown)
    if peak.errors < _SURE:
        rival, top = float(scores.lags_s[peak.rival]), float(scores.lags_s[peak.lag])
        why = (
            f"no offset fits better than all others: {top:+.2f} s and {rival:+.2f} s are {max(peak.errors, 0):.1f} standard errors "
            f"apart, expected {_SURE:g}"
        )
        return Alignment("none", why, curves=curves)
    theta, unsure, parts_s = _refined(peak, pair, scores)
    middle_s = second.start_s + len(pair.second) / pair.rate_hz / 2
    why = f"{pair.what} in {len(scores.values)} parts" + ", one upside down" * (peak.sign < 0)
    unsure_s = math.hypot(unsure[0], _FILTERS / min(first.rate_hz, second.rate_hz))
    curves = replace(curves, parts_s=scores.middles_s + middle_s, parts_offset_s=parts_s)
    return Alignment("movement", why, theta[0], unsure_s, theta[1] * 1e6, unsure[1] * 1e6, middle_s, curves)


def _refined(peak: _Peak, pair: _Pair, scores: _Scores) -> tuple[list[float], list[float], Floats]:
    """Offset and drift to a part of a sample, what they are uncertain by, and what each part says of the offset.

    Newton's method on the sum of the parts' scores; the uncertainty is the sandwich estimate of how an estimate that maximises a sum
    varies with its terms (Huber 1967), so that nothing is taken for granted of noise and shapes.
    """
    finer, lag_s = 4, float(scores.lags_s[peak.lag])
    reach = 2 * peak.lobe + 3 + math.ceil(MOST_DRIFT * len(pair.second) / 2)
    base_s = round(pair.shift_s * pair.rate_hz) / pair.rate_hz - pair.shift_s
    centre = round((lag_s - base_s) * pair.rate_hz)
    fine, step = pair.scores(centre - reach, centre + reach, finer), 1 / (pair.rate_hz * finer)
    # What is finer than the peak is noise: derivatives are those of the scores' mean over half of it.
    values = peak.sign * np.array([mean_around(row, peak.lobe * finer) for row in fine.values])
    slope = np.gradient(values, step, axis=1)
    bend = -np.gradient(slope, step, axis=1)
    parts = len(values)
    measures = 2 if abs(fine.middles_s).max() * MOST_DRIFT * pair.rate_hz > 0.02 else 1
    moments = np.column_stack((np.ones(parts), fine.middles_s))[:, :measures]
    theta, rows = np.array([lag_s, peak.drift])[:measures], np.arange(parts)
    for _ in range(8):
        at = (moments @ theta - fine.lags_s[0]) / step
        near = np.clip(np.rint(at).astype(int), 0, values.shape[1] - 1)
        gradient = slope[rows, near] - bend[rows, near] * (at - near) * step
        curve = max(float(bend[rows, near].mean()), 1e-12)
        inverse = np.linalg.inv(curve * moments.T @ moments)
        move = inverse @ (moments.T @ gradient)
        theta = theta + move * min(1.0, 4 * step / (abs(float(move[0])) + 1e-30))
    spread = inverse @ (moments.T * gradient**2 @ moments) @ inverse * parts / (parts - measures)
    unsure = [*(t95(parts - measures) * np.sqrt(np.diag(spread))).tolist(), math.nan][:2]
    # Where the best is hardly better than what is around it, that estimate is too small: offsets that fit nearly as well count too.
    around = np.arange(-2 * peak.lobe * finer, 2 * peak.lobe * finer + 1)
    values = peak.sign * fine.values[rows[:, None], np.clip(near[:, None] + around, 0, values.shape[1] - 1)]
    behind = values[:, [int(values.mean(axis=0).argmax())]] - values
    errors = behind.mean(axis=0) / np.sqrt(behind.var(axis=0, ddof=1) / parts + 1e-30)
    wider = max(1.0, float(np.abs(around[errors < _NEARLY]).max()) * step / unsure[0])
    own = moments @ theta + gradient / np.maximum(bend[rows, near], curve / 2)
    return [*theta.tolist(), 0.0][:2], [wider * item for item in unsure], own
