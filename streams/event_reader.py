"""Events read back from Kafka. In: Settings and filters. Out: Events, in order within a session; times in Unix ns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from streams.errors import EventError
from streams.events import Event
from streams.kafka.read import Record, read_records
from streams.settings import Settings
from streams.topics import Names

#: The clock of the machine that wrote the record may be behind that of the one that made the event, or rounded to ms.
CLOCK_SLACK_NS = 60 * 10**9


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
    wanted = wanted or EventFilter()
    topic = Names(settings.prefix).of("events")
    from_ms = None if wanted.since_emitted is None else max(0, (wanted.since_emitted - CLOCK_SLACK_NS) // 10**6)
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
