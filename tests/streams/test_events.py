"""Events: JSON both ways, ids, reading the topic back, the command."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from documents import ROOT
from hypothesis import given
from hypothesis import strategies as st
from verbs import invoke

from kymo.streams.errors import EventError, TopicError
from kymo.streams.events import EVENT_SCHEMA, Event, EventFilter, event_id, read_events
from kymo.streams.events_cli import parse_moment
from kymo.streams.kafka.admin import ensure_topics
from kymo.streams.kafka.publish import Publisher
from kymo.streams.settings import Settings
from kymo.streams.topics import Names

NS = 10**9


def event(session: str = "s1", start: int = 0, recipe: str = "walk") -> Event:
    return Event(
        id=event_id(recipe, session, start),
        recipe=recipe,
        bundle="3",
        session=session,
        stream="imu",
        start_index=start,
        start_ns=start * NS,
        end_ns=(start + 2) * NS,
        label="Gehen",
        probability=0.75,
        probabilities={"Gehen": 0.75, "Stehen": 0.25},
        emitted_ns=time.time_ns(),
    )


@given(
    st.text(min_size=1, max_size=20),
    st.integers(0, 2**53),
    st.floats(0, 1),
    st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False), max_size=3),
)
def test_json_both_ways(session: str, start: int, probability: float, values: dict[str, float]) -> None:
    there = replace(event(), session=session, start_index=start, probability=probability, values=values, head="h")
    assert Event.from_json(there.to_json()) == there
    absent = replace(there, absent=["eda"])
    assert Event.from_json(absent.to_json()) == absent
    assert list(json.loads(absent.to_json())) == list(EVENT_SCHEMA["properties"])
    assert list(json.loads(there.to_json())) == [name for name in EVENT_SCHEMA["properties"] if name != "absent"]


def test_schema_names_every_member_and_requires_only_known_ones() -> None:
    assert set(EVENT_SCHEMA["properties"]) == set(replace(event(), absent=["eda"]).to_dict())
    assert set(EVENT_SCHEMA["required"]) <= set(EVENT_SCHEMA["properties"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start_index": "5"}, "`start_index` is '5', expected a whole number"),
        ({"start_index": True}, "`start_index` is True, expected a whole number"),
        ({"probability": 1.5}, "`probability` is 1.5, expected a number from 0 to 1"),
        ({"probabilities": {"a": "x"}}, "`probabilities.a` is 'x', expected a number from 0 to 1"),
        ({"id": ""}, "`id` is '', expected a text that is not empty"),
        ({"label": None}, "`label` is None, expected a text"),
    ],
)
def test_wrong_members_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(EventError, match=message):
        Event.from_json(json.dumps(event().to_dict() | change))


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"[]", b"{", b'{"id": "x"}'])
def test_what_is_no_event_is_an_event_error(raw: bytes) -> None:
    with pytest.raises(EventError):
        Event.from_json(raw)


def test_numbers_that_json_lacks_are_refused() -> None:
    with pytest.raises(EventError, match="s1/walk/0: a probability or value is not finite"):
        replace(event(), values={"x": float("nan")}).to_json()


def test_unknown_members_are_left_out() -> None:
    there = event()
    assert Event.from_json(json.dumps(there.to_dict() | {"later": 1})) == there


@pytest.fixture(scope="module")
def settings(broker: str) -> Settings:
    found = Settings(brokers=broker, prefix=f"events{time.time_ns()}", partitions=3)
    ensure_topics(found, Names(found.prefix))
    with Publisher(found, Names(found.prefix)) as publisher:
        for session in ("a", "b", "c", "d"):
            for start in range(5):
                for recipe in ("walk", "fall"):
                    publisher.send("events", session, event(session, start, recipe).to_json())
        publisher.send("events", "a", b"no event")
        publisher.flush(20)
    return found


def skip_bad(*_: object) -> None:
    pass


def test_reads_all_in_order_and_ends(settings: Settings) -> None:
    got = list(read_events(settings, on_odd=skip_bad))
    assert len({e.id for e in got}) == len(got) == 40
    for session in "abcd":
        starts = [e.start_index for e in got if (e.session, e.recipe) == (session, "walk")]
        assert starts == [0, 1, 2, 3, 4]


def test_filters(settings: Settings) -> None:
    every = list(read_events(settings, on_odd=skip_bad))
    walk = EventFilter(recipe="walk", since=5 * NS)
    assert {e.start_index for e in read_events(settings, only=walk, on_odd=skip_bad)} == {4}
    middle = sorted(e.emitted_ns for e in every)[20]
    later = EventFilter(since_emitted=middle)
    expected = {e.id for e in every if e.emitted_ns >= middle}
    assert {e.id for e in read_events(settings, only=later, on_odd=skip_bad)} == expected
    assert list(read_events(settings, only=EventFilter(since_emitted=time.time_ns() + 3600 * NS))) == []


def test_filters_by_head() -> None:
    own, other = event(), replace(event(), head="surface")
    takes = [[EventFilter(head=head).takes(one) for one in (own, other)] for head in (None, "", "surface")]
    assert takes == [[True, True], [True, False], [False, True]]


def test_what_is_no_event_is_told_with_its_place(settings: Settings) -> None:
    with pytest.raises(EventError, match=rf"{settings.prefix}\.events, partition \d, offset \d+: 8 bytes are no JSON"):
        list(read_events(settings))


def test_follow_goes_on_until_stopped(settings: Settings) -> None:
    seen: list[Event] = []
    following: Iterator[Event] = read_events(settings, follow=True, on_odd=skip_bad, stop=lambda: len(seen) > 40)
    for e in following:
        seen.append(e)
        if len(seen) == 40:
            with Publisher(settings, Names(settings.prefix)) as publisher:
                publisher.send("events", "z", event("z", 99, "late").to_json())
                publisher.flush(20)
    assert seen[-1].id == "z/late/99"


def test_missing_topic_is_named(broker: str) -> None:
    with pytest.raises(TopicError, match=r"no topic nobody\.events"):
        list(read_events(Settings(brokers=broker, prefix="nobody")))


def test_command_prints_json_lines(settings: Settings) -> None:
    env = {"KYMO_BROKERS": settings.brokers, "KYMO_PREFIX": settings.prefix}
    done = invoke("events", "--recipe", "fall", env=env)
    assert {Event.from_json(line).recipe for line in done.stdout.splitlines()} == {"fall"}
    assert "partition" in done.stderr
    for head, found in (("", done.stdout), ("surface", "")):
        assert invoke("events", "--recipe", "fall", "--head", head, env=env).stdout == found


def test_command_prints_a_table_of_a_session(settings: Settings) -> None:
    env = {"KYMO_BROKERS": settings.brokers, "KYMO_PREFIX": settings.prefix}
    nothing = invoke("events", "--session", "nobody", env=env)
    assert nothing.stdout == ""
    assert nothing.stderr.endswith("kymo events: none; why, says kymo doctor --recipe R --session S\n")
    lines = invoke("events", "--session", "b", env=env).stdout.splitlines()
    found = [Event.from_json(line) for line in lines]
    assert {one.session for one in found} == {"b"}
    table = list(csv.DictReader(io.StringIO(invoke("events", "--session", "b", "--csv", env=env).stdout)))
    assert [(row["id"], row["label"], float(row["probability"])) for row in table] == [
        (one.id, one.label, one.probability) for one in found
    ]
    for row, one in zip(table, found, strict=True):
        moment = datetime.fromisoformat(row["start"][:26]).replace(tzinfo=UTC)
        assert round(moment.timestamp() * 10**6) == one.start_ns // 1000
    shown = invoke("events", "--session", "b", "--table", env=env).stdout.splitlines()
    assert len(shown) == len(found)
    assert all(one.session in line and one.label in line for one, line in zip(found, shown, strict=True))


def test_command_ends_quietly_when_its_reader_goes(settings: Settings) -> None:
    code = "from kymo.streams.events_cli import events; events()"
    env = os.environ | {"KYMO_BROKERS": settings.brokers, "KYMO_PREFIX": settings.prefix}
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    with os.fdopen(write_fd, "wb") as gone:
        done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, stdout=gone, stderr=-1, check=False)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert b"BrokenPipe" not in done.stderr


def test_command_says_what_a_time_is() -> None:
    done = invoke("events", "--since", "yesterday", status=2)
    assert "2026-03-01T12:00:00" in done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.5", 1_500_000_000),
        ("1700000000", 1_700_000_000 * NS),
        ("1970-01-02", 86_400 * NS),
        ("1970-01-01T01:00:00+01:00", 0),
        ("2026-03-01T12", 1_772_366_400 * NS),
        ("1970-W01-5", 86_400 * NS),
        ("1.5h", 10_000 * NS - 5400 * NS),
        ("2026-03-01T12:00:00.123456", 1_772_366_400_123_456_000),
    ],
)
def test_moments(text: str, expected: int) -> None:
    assert parse_moment(text, 10_000 * NS) == expected
