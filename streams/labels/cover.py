"""Which labels hold, and where. In: Labels as they were made, corrections among them. Out: Labels that hold; the class of
an interval. Times in Unix ns.

Labels are never changed, only added. What holds follows from all of them, by these rules and no others:

1. Labels are ordered by when they were made (`created_ns`; of those made at one moment, by their place in the log).
2. Of several with one id the last one counts.
3. One that is named by a later one's `replaces` does not count, whatever became of the later one.
4. At each instant, of the labels of one session and set that count there, those of the latest `created_ns` hold. So a
   later label cuts what it overlaps, and labels of one import (one moment) leave each other alone.
5. A label whose class is empty covers as any other and then holds nothing: it takes labels away.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby

from streams.labels.labels import Label

Span = tuple[int, int]


def current_labels(made: Iterable[Label]) -> list[Label]:
    """The labels that hold."""
    order = sorted(made, key=lambda label: label.created_ns)  # stable: the log's order within a moment
    last = {label.id: i for i, label in enumerate(order)}
    replaced = {
        i
        for k, label in enumerate(order)
        if label.replaces and (i := _before(order, label.replaces, k, last)) is not None
    }
    counting = [label for i, label in enumerate(order) if last[label.id] == i and i not in replaced]
    out: list[Label] = []
    where = _where
    for _, group in groupby(sorted(counting, key=where), key=where):
        out += _uncovered(list(group))
    return sorted(out, key=lambda label: (label.start_ns, label.end_ns, label.session, label.set))


def _where(label: Label) -> tuple[str, str]:
    return label.session, label.set


def _before(order: Sequence[Label], name: str, k: int, last: dict[str, int]) -> int | None:
    """Place of the label that counts under an id, if it was made before the k-th."""
    i = last.get(name)
    return i if i is not None and i < k and order[i].id != order[k].id else None


def _uncovered(labels: list[Label]) -> list[Label]:
    """What later ones leave of each label of one session and set."""
    covered, out = Spans(), []
    newest_first = sorted(labels, key=lambda label: -label.created_ns)
    for _, moment in groupby(newest_first, key=lambda label: label.created_ns):
        made = list(moment)
        for label in made:
            left = covered.gaps(label.start_ns, label.end_ns) if label.label else []
            for number, (start, end) in enumerate(left, 1):
                name = label.id if number == 1 else f"{label.id}~{number}"
                out.append(replace(label, id=name, start_ns=start, end_ns=end))
        for label in made:
            covered.add(label.start_ns, label.end_ns)
    return out


class Spans:
    """A set of instants, as half-open intervals that neither overlap nor touch."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> None:
        """Take an interval in."""
        if start >= end:
            return
        first, last = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last], self._ends[first:last] = [start], [end]

    def gaps(self, start: int, end: int) -> list[Span]:
        """What of an interval is not in the set."""
        out = []
        for i in range(bisect_right(self._ends, start), len(self._starts)):
            if self._starts[i] >= end:
                break
            if start < self._starts[i]:
                out.append((start, self._starts[i]))
            start = self._ends[i]
        if start < end:
            out.append((start, end))
        return out

    def within(self, start: int, end: int) -> tuple[int, int]:
        """Length of what lies in an interval, ns, and where the first part of it begins; 0 and 0 if nothing does."""
        first = bisect_right(self._ends, start)
        total, i = 0, first
        while i < len(self._starts) and self._starts[i] < end:
            total += min(end, self._ends[i]) - max(start, self._starts[i])
            i += 1
        return total, max(start, self._starts[first]) if total else 0


class Cover:
    """Labels of one session, to be asked for many intervals."""

    def __init__(self, labels: Iterable[Label]) -> None:
        self._classes: dict[str, Spans] = {}
        for label in labels:
            self._classes.setdefault(label.label, Spans()).add(label.start_ns, label.end_ns)

    def label_of(self, start_ns: int, end_ns: int, min_share: float = 0.5) -> str | None:
        """The class that covers the largest part of an interval, if that is at least `min_share` of it."""
        parts = []
        for label, spans in self._classes.items():
            covered, first = spans.within(start_ns, end_ns)
            if covered:
                parts.append((-covered, first, label))
        if not parts:
            return None
        covered, _, name = min(parts)
        return name if -covered >= min_share * (end_ns - start_ns) else None
