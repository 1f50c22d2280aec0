"""Labels: intervals of a session with a class. In: a column's texts, a labels JSON, ``kymo.labels`` messages. Out: Labels, those of
them that hold, and the class of an interval; times in Unix ns.

Labels are text; numbers are equal by value, so that ``3``, ``3.0`` and ``"3.00"`` from three programs are one class.

Labels are never changed, only added. What holds follows from all of them, by these rules and no others:

1. Labels are ordered by when they were made (`created_ns`; of those made at one moment, by their place in the log).
2. Of several with one id the last one counts.
3. One that is named by a later one's `replaces` does not count, whatever became of the later one.
4. At each instant, of the labels of one session and set that count there, those of the latest `created_ns` hold. So a
   later label cuts what it overlaps, and labels of one import (one moment) leave each other alone.
5. A label whose class is empty covers as any other and then holds nothing: it takes labels away.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from decimal import Decimal, InvalidOperation
from itertools import chain, groupby
from pathlib import Path
from typing import Annotated, Any

from kymo.streams.errors import MessageError, SourceError
from kymo.streams.messages import MAX_FILE_BYTES, read_json
from kymo.streams.schema import Name, SchemaError, fits, json_schema, read
from kymo.streams.words import NS


@dataclass(frozen=True, slots=True)
class Label:
    """An interval of a session with a class. Intervals are half open; times are Unix nanoseconds."""

    id: Annotated[str, "unique; session/set/start_ns where a message has none"]
    session: Name
    set: Annotated[str, "which question it answers; `label` where a message has none"]  # the column's or the key's name
    start_ns: int
    end_ns: Annotated[int, "not before start_ns"]
    label: Annotated[str, "the class; empty: takes labels away"]  # canonical, see :func:`canonical`
    author: Annotated[str, "who said so: a person, a file or a rule"] = ""
    created_ns: Annotated[int, "when it was made; 0 where unknown"] = 0
    replaces: Annotated[str, "id of the label that it corrects, or empty"] = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Label:
        """Label of a JSON object; unknown members are ignored."""
        try:
            label = read(cls, {"id": "", "set": "label"} | dict(value), strict=False)
        except SchemaError as wrong:
            raise SourceError(f"label: {wrong}") from None
        if label.end_ns < label.start_ns:
            raise SourceError(
                f"label {label.label!r} ends at {label.end_ns} ns, before it starts at {label.start_ns} ns"
            )
        identity = label.id or f"{label.session}/{label.set}/{label.start_ns}"
        return replace(label, id=identity, label=canonical(label.label))


LABEL_SCHEMA = json_schema(Label, "Label", optional=("id", "set"))
_WHOLE = re.compile(r"(0|[1-9]\d*)\.0+")


def identity(text: str) -> str:
    """What names a session or a subject: text, but for whole numbers that a table program wrote as `7.0`.

    `1.1` and `1.10` are two, as are `7` and `007`.
    """
    plain = text.strip()
    return match[1] if (match := _WHOLE.fullmatch(plain)) else plain


def canonical(label: object) -> str:
    """Text of a label; numbers that are equal give equal text.

    >>> canonical("3.0"), canonical(3), canonical(" walk "), canonical("2.50"), canonical("1e1"), canonical(True)
    ('3', '3', 'walk', '2.5', '10', 'true')
    """
    if isinstance(label, bool):
        return "true" if label else "false"
    text = str(label).strip()
    if not text or text[0] not in "+-.0123456789" or "_" in text:
        return text
    try:
        number = Decimal(text)
    except InvalidOperation:
        return text
    # Beyond 30 digits it is an identifier or an overflow, not a quantity; spelling it out would only be long.
    if not number.is_finite() or abs(number.adjusted()) > 30 or len(number.as_tuple().digits) > 30:
        return text
    plain = f"{number:f}"
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return "0" if plain in ("-0", "") else plain


def interval(session: str, set: str, start_ns: int, end_ns: int, label: str, **members: Any) -> Label:
    """A Label; its id is made from session, set and start where none is given."""
    identity = members.pop("id", f"{session}/{set}/{start_ns}")
    return Label(identity, session, set, start_ns, end_ns, label, **members)


class LabelsJson:
    """A labels JSON: ``{"events": [{"startTime": {"sec", "nsec"}, "endTime": …, "metadata": {key: label}}]}``."""

    def __init__(
        self, path: str | Path, content: bytes | None = None
    ) -> None:  # where it is not on this machine's disk
        self.path = Path(path)
        try:
            raw = self.path.read_bytes() if content is None else content
            whole = read_json(raw.removeprefix(BOM_UTF8), MAX_FILE_BYTES)
        except OSError as error:
            raise self._wrong(f"cannot be read ({error.strerror or error})") from None
        except MessageError as error:
            raise self._wrong(f"is no JSON ({error})") from None
        events = whole.get("events") if isinstance(whole, dict) else None
        if not isinstance(events, list):
            raise self._wrong("is no labels JSON: expected an object with a list `events`")
        self.events: list[Any] = events

    @property
    def keys(self) -> list[str]:
        """Those of `metadata` that have a value in some event, in their order; events without it have none."""
        named = (key for event in self.events for key, value in _metadata(event).items() if key and canonical(value))
        return list(dict.fromkeys(named))

    def labels(
        self, key: str, names: Mapping[str, str] | None = None, session: str | None = None, required: bool = True
    ) -> list[Label]:
        """Labels of the events that have a key; if it is `required`, one of them must."""
        session = session or self.path.name.removesuffix(".json").removesuffix(".labels")
        labels = []
        for number, event in enumerate(self.events, 1):
            if not isinstance(event, dict) or not isinstance(event.get("metadata"), dict):
                raise self._wrong(f"event {number} has no object `metadata`")
            if text := canonical(event["metadata"].get(key, "")):
                members = {"session": session, "set": key, "label": rename(text, names), "author": self.path.name}
                times = {at: self._time_ns(event, at, number) for at in ("startTime", "endTime")}
                start, end = times.values()
                if end < start:
                    raise self._wrong(f"event {number} ends at {end} ns, before it starts at {start} ns")
                members |= {"id": f"{session}/{key}/{event['id']}"} if isinstance(event.get("id"), str) else {}
                labels.append(interval(start_ns=start, end_ns=end, **members))
        if self.events and not labels and required:
            there = ", ".join(sorted({name for event in self.events for name in event["metadata"] if name}))
            raise self._wrong(f"no event has the label key `{key}`; keys that are there: {there or 'none'}")
        return sorted(labels, key=lambda label: (label.start_ns, label.end_ns))

    def _time_ns(self, event: Mapping[str, Any], member: str, number: int) -> int:
        time = event.get(member)
        sec, nsec = (time.get("sec"), time.get("nsec", 0)) if isinstance(time, dict) else (None, None)
        if type(sec) is not int or type(nsec) is not int or not 0 <= nsec < NS or not fits(sec * NS):
            raise self._wrong(f"event {number}: `{member}` is {time!r}, expected {{sec, nsec}} as whole numbers")
        return sec * NS + nsec

    def _wrong(self, text: str) -> SourceError:
        return SourceError(text, self.path)


def _metadata(event: Any) -> dict[str, Any]:
    metadata = event.get("metadata") if isinstance(event, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def rename(text: str, names: Mapping[str, str] | None) -> str:
    """Class name of a canonical label; keys of `names` are compared by value, too ("0" names 0.0).

    >>> rename("0", {"0.0": "none"}), rename("1", {})
    ('none', '1')
    """
    if not names:
        return text
    return {canonical(value): name for value, name in names.items()}.get(text, text)


def current_labels(labels: Iterable[Label]) -> list[Label]:
    """The labels that hold."""
    by_age = sorted(labels, key=lambda label: label.created_ns)  # stable: the log's order within a moment
    places = {label.id: i for i, label in enumerate(by_age)}  # of those that count, by id
    replaced = {
        label.replaces
        for i, label in enumerate(by_age)
        if label.replaces != label.id and places.get(label.replaces, i) < i
    }
    sets: dict[tuple[str, str], list[Label]] = {}
    for label in (by_age[i] for name, i in places.items() if name not in replaced):
        sets.setdefault((label.session, label.set), []).append(label)
    current = [label for group in sets.values() for label in _uncovered(group)]
    return sorted(current, key=lambda label: (label.start_ns, label.end_ns, label.session, label.set))


def _uncovered(labels: list[Label]) -> list[Label]:
    """What later ones leave of each label of one session and set."""
    covered, uncovered = Spans(), []
    newest_first = sorted(labels, key=lambda label: -label.created_ns)
    for _, moment in groupby(newest_first, key=lambda label: label.created_ns):
        labels_of_moment = list(moment)
        for label in labels_of_moment:
            gaps = covered.gaps(label.start_ns, label.end_ns) if label.label else []
            for number, (start, end) in enumerate(gaps, 1):
                name = label.id if number == 1 else f"{label.id}~{number}"
                uncovered.append(replace(label, id=name, start_ns=start, end_ns=end))
        for label in labels_of_moment:
            covered.add(label.start_ns, label.end_ns)
    return uncovered


class Spans:
    """A set of instants, as half-open intervals that neither overlap nor touch."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> None:
        if start >= end:
            return
        first, last = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last], self._ends[first:last] = [start], [end]

    def parts(self, start: int, end: int) -> list[tuple[int, int]]:
        """What of an interval is in the set; nothing of an empty one."""
        if start >= end:
            return []
        among = slice(bisect_right(self._ends, start), bisect_left(self._starts, end))
        return [(max(start, a), min(end, b)) for a, b in zip(self._starts[among], self._ends[among], strict=True)]

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """What of an interval is not in the set."""
        edges = [start, *chain.from_iterable(self.parts(start, end)), end]
        return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]


class Cover:
    """Labels of one session, to be asked for many intervals."""

    def __init__(self, labels: Iterable[Label]) -> None:
        self._classes: dict[str, Spans] = {}
        for label in labels:
            self._classes.setdefault(label.label, Spans()).add(label.start_ns, label.end_ns)

    def label_of(self, start_ns: int, end_ns: int, min_share: float = 0.5) -> str | None:
        """The class that covers the largest part of an interval, if that is at least `min_share` of it."""
        candidates = []
        for label, spans in self._classes.items():
            if parts := spans.parts(start_ns, end_ns):
                candidates.append((-sum(b - a for a, b in parts), parts[0][0], label))
        if not candidates:
            return None
        covered, _, name = min(candidates)
        return name if -covered >= min_share * (end_ns - start_ns) else None
