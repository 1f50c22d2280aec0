"""Clocks of recordings as if they went on. In: times as they stand, ns, or numbers of a counter. Out: the same, across where a clock
begins anew, is set, or is wrong once; and notes on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kymo.streams.words import DAY, HOUR, MINUTE, NS, many

Int = NDArray[np.int64]
_STEPS = 3  # by which a clock that begins anew, or is set, goes on at once
_LIMIT_NS = 2**62
_FAR_NS, _FAR = 10 * NS, 1_000  # a time is wrong that is so far, and so many steps, from both neighbours
_SET_BACK_NS, _ROWS = 5 * NS, 20  # a clock is set back by so much at most; rows before and behind
_PARTS = 4  # which take so many times as long, else they are two recordings


class Clock:
    """Reads the times of one recording, or its counter, as if its clock went on; notes say where it did not."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def going_on(self, values: Int, turns: Sequence[int], wide: Sequence[int]) -> Int:
        """Values of a clock that begins anew after one of `turns`, as if it went on; after a `wide` one there may be a pause."""
        steps, step = _steps(values)
        span = int(values.max()) - int(values.min())
        for turn in (turn for turn in turns if span <= turn < _LIMIT_NS):
            longest = turn // 8 if turn in wide else min(_STEPS * max(step, 1), turn // 8)
            begins = (steps < 0) & (steps + turn >= 0) & (steps + turn < max(longest, 1))
            # What begins at 0, and so often, may as well be recordings one after the other.
            fresh = turn in (MINUTE, HOUR) and int(values[0]) % turn < _STEPS * step
            if begins.any() and not fresh:
                self._say("begins anew where a counter is full: it is read as going on")
                on: Int = values + turn * np.cumsum(begins)
                return on
        return values

    def set_forth_and_back(self, times: Int, hours: bool, leap: bool) -> Int:
        """Times of a calendar, across an hour that summer time takes or gives, and a leap second, as if there were none."""
        steps, step = _steps(times)
        near = _STEPS * step
        for size, asked in ((HOUR, hours), (NS, leap)):
            back = (steps < 0) & (steps + size >= 0) & (steps + size <= near)
            odd = back | ((steps > size) & (steps - size <= near)) if size == HOUR else back
            if size == HOUR:  # on a Sunday morning, when the hour is full
                before = times - steps
                days, since = np.divmod(before, DAY)
                odd &= (days % 7 == 3) & (since < 4 * HOUR) & ((before + near) // HOUR > before // HOUR)
            if asked and odd.sum() == 1:
                row = int(np.argmax(odd))
                times = times + np.where(np.arange(len(times)) >= row, -size * int(np.sign(steps[row])), 0)
                kind = "summer time" if size == HOUR else "a leap second"
                self._say(f"jumps by {size // NS} s, as with {kind}: it is read as going on")
        return times

    def mended(self, times: Int) -> Int:
        """Times without those that are far from both neighbours, and on from where a clock is set back by a few seconds."""
        if len(times) < 2 * _ROWS:
            return times
        steps = np.diff(times)
        step = int(np.median(steps[steps > 0])) if (steps > 0).any() else 0
        far = max(_FAR_NS, _FAR * step)
        over = times[2:] - times[:-2]  # around each time but the first and the last
        away = np.abs(steps) > far
        wrong = np.flatnonzero(away[:-1] & away[1:] & (over > 0) & (over <= 2 * _STEPS * step)) + 1
        if len(wrong):
            times = times.copy()
            times[wrong] = (times[wrong - 1] + times[wrong + 1]) // 2
            self._say(f"has {many(len(wrong), 'time')} far from both neighbours: read as between them")
            steps = np.diff(times)
        back = np.flatnonzero(steps < 0)
        if len(back) != 1:
            return times
        row, size = int(back[0]) + 1, -int(steps[back[0]])
        again = times[row] - times[0] < _STEPS * step  # as where a device begins anew
        caught_up = steps.max() >= size // 2  # as where rows come late
        shorter = min(times[row - 1] - times[0], times[-1] - times[row])
        small = _STEPS * step < size <= min(_SET_BACK_NS, shorter // _PARTS)
        if not small or again or caught_up or not _ROWS <= row <= len(times) - _ROWS:
            return times
        self._say(f"goes back by {size / NS:g} s and stays so, as where a clock is set: it is read as going on")
        on: Int = times + np.where(np.arange(len(times)) >= row, size + step, 0)
        return on

    def _say(self, note: str) -> None:
        self.notes += [note] if note not in self.notes else []


def _steps(values: Int) -> tuple[Int, int]:
    """Steps to each value, the first one 0, and the middle one of those that go on."""
    steps: Int = np.diff(values, prepend=values[0])
    return steps, int(np.median(steps[steps > 0])) if (steps > 0).any() else 0
