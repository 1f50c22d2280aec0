"""Event ⇄ JSON. In: a classified window's fields. Out: the JSON that ``kymo.events`` carries, and Events read back from there, in order
within a session; times in Unix ns."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from kymo.streams.errors import EventError, MessageError
from kymo.streams.messages import read_object
from kymo.streams.schema import Name, SchemaError, Share, json_schema, read
from kymo.streams.settings import Settings

#: The clock of the machine that wrote the record may be behind that of the one that made the event, or rounded to ms.
_CLOCK_SLACK_NS = 60 * 10**9
# Made once: it costs as much as an event.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Event:
    """A classified window of one session. Intervals are half open; times are Unix nanoseconds."""

    id: Annotated[Name, "session/recipe/start_index[/head]"]  # see :func:`event_id`
    recipe: Name
    bundle: Annotated[str, "the model that classified it; no part of the id"]
    session: Name
    stream: Annotated[str, "kind[.place]"]
    start_index: Annotated[int, "first sample of the window, counted from the session's start"]
    start_ns: int
    end_ns: int
    label: Annotated[str, "the class, 'unknown' below the recipe's min_probability, empty for a number"]
    probability: Annotated[Share, "of the most probable class; 0 for a number"]
    probabilities: dict[str, Share] = field(default_factory=dict)  # of every class
    values: Annotated[dict[str, float], "of a head that is a number: {head: number}, empty where there is none"] = (
        field(default_factory=dict)
    )
    head: Annotated[str, "which of the recipe's heads; empty for its own classes"] = ""
    missing: Annotated[Share, "share of the window's samples that were interpolated"] = 0.0
    # left out of the JSON where there is none
    absent: Annotated[list[str], "inputs that were not there at some of the window's samples"] = field(
        default_factory=list
    )
    emitted_ns: Annotated[int, "wall time of publication"] = 0  # the one that may differ between two runs

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, members in the order of the attributes."""
        return {name: getattr(self, name) for name in (_NAMES if self.absent else _ALWAYS)}

    def to_json(self, emitted_ns: int | None = None) -> bytes:
        """One line of JSON in UTF-8, its `emitted_ns` this one where one is given; equal events give equal bytes."""
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

        >>> Event.from_json('{"id": "a/r/0"}')
        Traceback (most recent call last):
        ...
        kymo.streams.errors.EventError: event a/r/0: `recipe` is absent, expected a text that is not empty
        """
        message: dict[str, Any] = {}
        try:
            message = read_object(raw)
            return read(cls, message, strict=False)
        except MessageError as error:
            raise EventError(str(error)) from None
        except SchemaError as wrong:
            raise EventError(f"event {str(message.get('id', '?'))[:200]}: {wrong}") from None


EVENT_SCHEMA = json_schema(Event, "Event")
_NAMES = tuple(EVENT_SCHEMA["properties"])
_ALWAYS = tuple(name for name in _NAMES if name != "absent")


def event_id(recipe: str, session: str, start_index: int, head: str = "") -> str:
    """Id of an event: the same for the same window, whichever bundle classified it.

    >>> event_id("walk", "s1", 500), event_id("walk", "s1", 500, "gait")
    ('s1/walk/500', 's1/walk/500/gait')
    """
    return f"{session}/{recipe}/{start_index}" + (f"/{head}" if head else "")


@dataclass(frozen=True, slots=True)
class EventFilter:
    recipe: str | None = None  # only this recipe's
    since: int | None = None  # only windows that end after this event time, Unix ns
    since_emitted: int | None = None  # only events that were published at or after this wall time, Unix ns
    head: str | None = None  # only this head's; empty for those of recipes' own classes
    session: str | None = None  # only this session's

    def takes(self, event: Event) -> bool:
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
    only: EventFilter | None = None,
    stop: Callable[[], bool] | None = None,  # asked at least five times a second; a true answer ends the reading
    on_odd: Callable[[str], None] | None = None,  # told, in words, of a record that is no event; else that is raised
) -> Iterator[Event]:
    """Events of ``kymo.events``, read without a group."""
    from kymo.streams.kafka.read import read_messages

    only = only or EventFilter()
    from_ms = None if only.since_emitted is None else max(0, (only.since_emitted - _CLOCK_SLACK_NS) // 10**6)
    options = {"follow": follow, "from_ms": from_ms, "stop": stop}
    for _, event in read_messages(settings, "events", lambda record: Event.from_json(record.value), on_odd, **options):
        if only.takes(event):
            yield event
