"""An archive outlives what Kafka refuses: one line when it begins, one when it is over, and nothing lost."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from archive_lab import archive_process, record
from fault_lab import await_that
from kafka.errors import (
    BrokerResponseError,
    KafkaConnectionError,
    NodeNotReadyError,
    TopicAuthorizationFailedError,
)

from kymo.streams.archive.read import ArchiveReader
from kymo.streams.archive.writer import Archive, ArchiveCounts, Outages
from kymo.streams.kafka.admin import Ends, ensure_topics
from kymo.streams.kafka.publish import Publisher
from kymo.streams.settings import Settings
from kymo.streams.topics import Names

PLACE = ("t.events", 0)


class Finder:
    cluster = "c"

    def __init__(self, *_: Any) -> None:
        self.looks: Iterator[Exception | None] = iter(())

    def partitions(self) -> dict[tuple[str, int], str]:
        if error := next(self.looks, None):
            raise error
        return {PLACE: "id"}

    def ends(self, places: list[tuple[str, int]]) -> dict[tuple[str, int], Ends]:
        return dict.fromkeys(places, Ends(0, 10))

    def close(self) -> None:
        pass


class Consumer:
    """Gives a record a poll, or raises what is next."""

    polls: list[Exception | None]

    def __init__(self, **_: Any) -> None:
        self.at = 0

    def poll(self, timeout_ms: int) -> dict[Any, list[Any]]:
        error = self.polls.pop(0) if self.polls else None
        if error:
            raise error
        if self.at >= 10:
            return {}
        self.at += 1
        return {PLACE: [record("events", self.at - 1, "s", b"{}")]}

    def assign(self, places: Any) -> None:
        pass

    def seek(self, place: Any, offset: int) -> None:
        self.at = offset

    def position(self, place: Any) -> int:
        return self.at

    def close(self) -> None:
        pass


def archived(folder: Path, monkeypatch: pytest.MonkeyPatch, polls: list[Exception | None]) -> tuple[Any, list[str]]:
    """What an archive told until it had all ten records, or had seen all that was to go wrong."""
    monkeypatch.setattr("kymo.streams.archive.writer.TopicFinder", Finder)
    monkeypatch.setattr("kymo.streams.kafka.read.KafkaConsumer", type("C", (Consumer,), {"polls": polls}))
    monkeypatch.setattr("kymo.streams.archive.writer.POLL_MS", 0)
    told: list[str] = []
    settings = Settings(brokers="kafka-1:9093", prefix="t", home=folder / "home")
    return Archive(settings, folder / "a", tell=told.append).run(lambda: False, once=True), told


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            TopicAuthorizationFailedError("t.events"),
            "refuses reading ([Error 29] TopicAuthorizationFailedError: t.events)",
        ),
        (KafkaConnectionError("111 ECONNREFUSED"), "cannot be reached"),
        (OSError(104, "Connection reset by peer"), "cannot be reached"),
        (BrokerResponseError("of a new kind"), "refuses reading ("),
    ],
)
def test_what_a_poll_raises_is_told_once_and_outlived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    counts, told = archived(tmp_path, monkeypatch, [None, None, *[error] * 30, None, error])
    assert (counts.records, counts.errors) == (10, 31)
    assert [r.offset for r in ArchiveReader(tmp_path / "a").records()] == list(range(10))
    lines = [line for line in told if "kafka-1" in line]
    assert lines[0].startswith(f"Kafka at kafka-1:9093 {said}")
    assert lines[0].endswith("; trying again until it works, or Ctrl-C")
    assert lines[1:] == ["Kafka at kafka-1:9093: reading works again", lines[0], lines[1]]
    assert all("\n" not in line for line in told)


def test_another_error_is_another_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [NodeNotReadyError("a"), KafkaConnectionError("b"), TopicAuthorizationFailedError("t.events")]
    _, told = archived(tmp_path, monkeypatch, [error for error in errors for _ in range(3)])
    assert [line.split(";")[0].split(" (")[0] for line in told if "kafka-1" in line] == [
        "Kafka at kafka-1:9093 cannot be reached",
        "Kafka at kafka-1:9093 refuses reading",
        "Kafka at kafka-1:9093: reading works again",
    ]


def test_that_kafka_is_away_is_said_once_whatever_finds_it_out() -> None:
    told: list[str] = []
    outages = Outages(Settings(brokers="kafka-1:9093"), ArchiveCounts(), told.append)
    away = KafkaConnectionError("111 ECONNREFUSED")
    for doing, error in [
        ("reading", away),
        ("looking for topics", away),
        ("reading", None),
        ("looking for topics", None),
    ]:
        with outages.tolerated(doing):
            if error is not None:
                raise error
    assert told == [
        "Kafka at kafka-1:9093 cannot be reached; trying again until it works, or Ctrl-C",
        "Kafka at kafka-1:9093: looking for topics works again",
    ]


@pytest.fixture
def own_broker(tmp_path: Path, jars_dir: Path) -> Iterator[tuple[str, Callable[[], None], Callable[[], None]]]:
    """A broker for one test alone, what kills it and what starts it again."""
    from kymo.deploy import broker as embedded

    data = tmp_path / "broker"
    info = embedded.start(data, jars_dir=jars_dir)

    def kill() -> None:
        found = embedded.status(data).info
        assert found is not None
        os.kill(found.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(found.pid, 0)

    yield info.bootstrap, kill, lambda: void(embedded.start(data, info.port, jars_dir=jars_dir))
    embedded.stop(data)


def void(_: object) -> None:
    """Nothing."""


@pytest.mark.slow
def test_a_broker_that_goes_and_comes_back(
    tmp_path: Path, prefix: str, own_broker: tuple[str, Callable[[], None], Callable[[], None]]
) -> None:
    bootstrap, kill, start = own_broker
    settings = Settings(brokers=bootstrap, prefix=prefix, home=tmp_path / "home", partitions=2)

    def send(first: int, count: int) -> None:
        with Publisher(settings, Names(prefix)) as publisher:
            for i in range(first, first + count):
                publisher.send("events", f"s{i}", b'{"start_ns":1}')
            publisher.flush(60)

    ensure_topics(settings, Names(prefix))
    send(0, 10)
    child = archive_process(settings, tmp_path / "a", "--segment-s", "1")
    try:
        await_that(lambda: any("records" in line for line in child.tail), "a segment")
        kill()
        await_that(lambda: any("cannot be reached" in line for line in child.tail), "word of it")
        start()
        send(10, 7)
        await_that(lambda: any("works again" in line for line in child.tail), "word of its end")
        await_that(lambda: len(list(ArchiveReader(tmp_path / "a").records())) == 17, "all records")
        child.send(signal.SIGTERM)
        assert child.wait(60) == 0
    finally:
        child.send(signal.SIGKILL)
        child.wait(30)
    lines = [line for line in child.tail if "Kafka at" in line]
    assert [("reached" in line, "again" in line.split(";")[0]) for line in lines] == [(True, False), (False, True)]
    found = [r.key for r in ArchiveReader(tmp_path / "a").records()]
    assert sorted(found) == sorted(f"s{i}".encode() for i in range(17))
