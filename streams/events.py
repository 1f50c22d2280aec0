"""Event ⇄ JSON. In: a classified window's fields. Out: the JSON that ``kymo.events`` carries, and Events read back from there, in order
within a session; times in Unix ns."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from streams.errors import EventError, MessageError
from streams.messages import read_object
from streams.settings import Settings
from streams.topics import Names

if TYPE_CHECKING:
    from streams.kafka.read import Record

#: The clock of the machine that wrote the record may be behind that of the one that made the event, or rounded to ms.
_CLOCK_SLACK_NS = 60 * 10**9
_INTEGER = {"type": "integer"}
_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_TEXT = {"type": "string"}
_NUMBERS = {"type": "object", "additionalProperties": {"type": "number"}}
#: JSON Schema (draft 2020-12) of an Event.
EVENT_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Event",
    "description": "A classified window of one session. Intervals are half open; times are Unix nanoseconds.",
    "type": "object",
    "additionalProperties": True,
    "properties": {
        "id": {"type": "string", "minLength": 1, "description": "session/recipe/start_index[/head]"},
        "recipe": {"type": "string", "minLength": 1},
        "bundle": {**_TEXT, "description": "the model that classified it; no part of the id"},
        "session": {"type": "string", "minLength": 1},
        "stream": {**_TEXT, "description": "kind[.place]"},
        "start_index": {**_INTEGER, "description": "first sample of the window, counted from the session's start"},
        "start_ns": _INTEGER,
        "end_ns": _INTEGER,
        "label": {
            **_TEXT,
            "description": "the class, 'unknown' below the recipe's min_probability, empty for a number",
        },
        "probability": {**_SHARE, "description": "of the most probable class; 0 for a number"},
        "probabilities": {"type": "object", "additionalProperties": _SHARE},
        "values": {**_NUMBERS, "description": "of a head that is a number: {head: number}, empty where there is none"},
        "head": {**_TEXT, "description": "which of the recipe's heads; empty for its own classes"},
        "missing": {**_SHARE, "description": "share of the window's samples that were interpolated"},
        "emitted_ns": {**_INTEGER, "description": "wall time of publication"},
    },
    "required": [
        "id",
        "recipe",
        "bundle",
        "session",
        "stream",
        "start_index",
        "start_ns",
        "end_ns",
        "label",
        "probability",
    ],
}


_ENCODER = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":")
)  # once: it costs as much as an event


@dataclass(frozen=True, slots=True)
class Event:
    """A classified window.

    Attributes
    ----------
    id : str
        See :func:`event_id`.
    recipe, bundle, session, stream : str
        What classified which stream.
    start_index : int
        First sample of the window, counted from the session's start.
    start_ns, end_ns : int
        Half open, Unix ns.
    label : str
        The class; ``unknown`` below the recipe's `min_probability`; empty for a number.
    probability : float
        Of the most probable class, 0 to 1; 0 for a number.
    probabilities : dict
        Of every class.
    values : dict
        Of a head that is a number: the number by the head's name; empty where it was not finite.
    head : str
        Which of the recipe's heads; empty for its own classes.
    missing : float
        Share of the window's samples that were interpolated, 0 to 1.
    emitted_ns : int
        Wall time of publication, Unix ns; the one field that may differ between two runs.
    """

    id: str
    recipe: str
    bundle: str
    session: str
    stream: str
    start_index: int
    start_ns: int
    end_ns: int
    label: str
    probability: float
    probabilities: dict[str, float] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    head: str = ""
    missing: float = 0.0
    emitted_ns: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, members in the order of the attributes."""
        return {name: getattr(self, name) for name in _NAMES}

    def to_json(self, emitted_ns: int | None = None) -> bytes:
        """One line of JSON in UTF-8; equal events give equal bytes.

        Parameters
        ----------
        emitted_ns : int, optional
            Wall time of publication to write instead of the event's own, Unix ns.

        Raises
        ------
        EventError
            If a number is not finite.
        """
        members = self.to_dict()
        if emitted_ns is not None:
            members["emitted_ns"] = emitted_ns
        try:
            return _ENCODER.encode(members).encode()
        except ValueError:
            raise EventError(f"event {self.id}: a probability or value is not finite") from None

    @classmethod
    def from_json(cls, raw: bytes | str | None) -> Event:
        """The event of a message; members that are not known are left out.

        Raises
        ------
        EventError
            If it is no JSON object, or a member is absent or of the wrong type.

        Examples
        --------
        >>> Event.from_json('{"id": "a/r/0"}')
        Traceback (most recent call last):
        ...
        streams.errors.EventError: event a/r/0: `recipe` is absent
        """
        try:
            found = read_object(raw)
        except MessageError as error:
            raise EventError(str(error)) from None
        return cls(
            **{name: _checked(found, name) for name in _NAMES if name in found or name in EVENT_SCHEMA["required"]}
        )


_NAMES = tuple(f.name for f in fields(Event))
_TYPES: dict[str, type | tuple[type, ...]] = {"string": str, "integer": int, "number": (int, float), "object": dict}


def _checked(found: dict[str, Any], name: str) -> Any:
    who, rule = f"event {str(found.get('id', '?'))[:200]}", EVENT_SCHEMA["properties"][name]
    if name not in found:
        raise EventError(f"{who}: `{name}` is absent")
    value: Any = found[name]
    if not isinstance(value, _TYPES[rule["type"]]) or isinstance(value, bool):
        raise EventError(f"{who}: `{name}` is {str(value)[:40]!r}, expected {rule['type']}")
    if len(str(value)) < rule.get("minLength", 0):
        raise EventError(f"{who}: `{name}` is empty")
    if rule["type"] == "number" and not rule["minimum"] <= value <= rule["maximum"]:
        raise EventError(f"{who}: `{name}` is {value}, expected 0 to 1")
    if isinstance(value, dict):
        for key, number in value.items():
            if not isinstance(number, int | float) or isinstance(number, bool):
                raise EventError(f"{who}: `{name}` holds {key!r}: {str(number)[:40]!r}, expected a number")
    return value


def event_id(recipe: str, session: str, start_index: int, head: str = "") -> str:
    """Id of an event: the same for the same window, whichever bundle classified it.

    Examples
    --------
    >>> event_id("walk", "s1", 500), event_id("walk", "s1", 500, "gait")
    ('s1/walk/500', 's1/walk/500/gait')
    """
    return f"{session}/{recipe}/{start_index}" + (f"/{head}" if head else "")


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events to give."""

    recipe: str | None = None  # only this recipe's
    since: int | None = None  # only windows that end after this event time, Unix ns
    since_emitted: int | None = None  # only events that were published at or after this wall time, Unix ns
    head: str | None = None  # only this head's; empty for those of recipes' own classes
    session: str | None = None  # only this session's

    def takes(self, event: Event) -> bool:
        """Whether the event is wanted."""
        return (
            (self.recipe is None or event.recipe == self.recipe)
            and (self.since is None or event.end_ns > self.since)
            and (self.since_emitted is None or event.emitted_ns >= self.since_emitted)
            and (self.head is None or event.head == self.head)
            and (self.session is None or event.session == self.session)
        )


def read_events(
    settings: Settings,
    *,
    follow: bool = False,  # go on with what is published later; else end where the topic ended when the reading began
    wanted: EventFilter | None = None,
    stop: Callable[[], bool] | None = None,  # asked at least five times a second; a true answer ends the reading
    on_bad: Callable[[Record, EventError], None] | None = None,
) -> Iterator[Event]:
    """Events of ``kymo.events``, read without a group."""
    from streams.kafka.read import read_records

    wanted = wanted or EventFilter()
    topic = Names(settings.prefix).of("events")
    from_ms = None if wanted.since_emitted is None else max(0, (wanted.since_emitted - _CLOCK_SLACK_NS) // 10**6)
    for record in read_records(settings, topic, follow=follow, from_ms=from_ms, stop=stop):
        try:
            event = Event.from_json(record.value)
        except EventError as error:
            located = EventError(f"{topic}, partition {record.partition}, offset {record.offset}: {error}")
            if on_bad is None:
                raise located from None
            on_bad(record, located)
            continue
        if wanted.takes(event):
            yield event
