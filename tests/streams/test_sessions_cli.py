"""`kymo sessions`: what it lists, that `end` ends, and that `delete` leaves nothing of a session and all of the others."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from archive_lab import archive_process, chunk
from fault_lab import await_that
from kafka import KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from verbs import execute, variables

from kymo.deploy.doctor_session import explain, gather
from kymo.processors.recipe.load import load_recipe
from kymo.streams.archive.check import check_archive
from kymo.streams.archive.format import segment_paths
from kymo.streams.archive.read import ArchiveReader
from kymo.streams.archive.writer import Archive
from kymo.streams.codec import ChunkCodec
from kymo.streams.kafka.admin import ensure_topics
from kymo.streams.kafka.client import client_arguments, partition_of
from kymo.streams.kafka.read import read_records
from kymo.streams.kafka.sessions import announced, delete_session, seen
from kymo.streams.labels.cli import SessionTimes
from kymo.streams.messages import Record
from kymo.streams.readers import read
from kymo.streams.settings import Settings
from kymo.streams.topics import Names


class Place:
    """Topics of one partition each, so that sessions stand between one another."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.names, self.codec = settings, Names(settings.prefix), ChunkCodec()
        ensure_topics(settings, self.names)
        self.producer = KafkaProducer(**client_arguments(settings), acks="all", metrics_enabled=False)

    def send(self, topic: str, key: bytes | None, value: bytes | None, partition: int | None = None) -> None:
        self.producer.send(self.names.of(topic), value, key, partition=partition)

    def send_chunks(
        self, session: str, first: int, number: int, stream: str = "imu", partition: int | None = None
    ) -> None:
        topic = self.names.for_stream(stream).rpartition(".")[2]
        for i in range(first, first + number):
            self.send(topic, session.encode(), self.codec.encode(chunk(session, 10 * i, stream=stream)), partition)
        self.producer.flush()

    def send_json(self, topic: str, session: str, **members: Any) -> None:
        self.send(topic, session.encode(), json.dumps({"session": session} | members).encode())
        self.producer.flush()

    def held(self, topic: str) -> list[Record]:
        return list(read_records(self.settings, self.names.of(topic)))

    def archive(self, folder: Path) -> None:
        Archive(self.settings, folder).run(lambda: False, once=True)

    def kymo(self, *words: object) -> subprocess.CompletedProcess[str]:
        return execute("sessions", *words, env=variables(self.settings), status=None)


@pytest.fixture
def place(tmp_path: Path, broker: str, prefix: str) -> Iterator[Place]:
    made = Place(Settings(brokers=broker, prefix=prefix, home=tmp_path / "home", partitions=1))
    yield made
    made.producer.close()


def test_list(place: Place, tmp_path: Path) -> None:
    assert place.kymo("list").stdout == "no sessions\n"
    place.send_json("sessions", "a", subject="P1", start_ns=0, end_ns=10**10, streams=[{"stream": "imu"}])
    place.send_json("sessions", "b", replayed={"complete": True})
    place.send_json("sessions", "c")
    place.send("sessions", b"c", None)
    place.send_chunks("a", 0, 1)
    expected = [
        {"session": "a", "subject": "P1", "start_ns": 0, "end_ns": 10**10, "streams": ["imu"], "complete": False},
        {"session": "b", "subject": None, "start_ns": None, "end_ns": None, "streams": [], "complete": True},
    ]
    assert json.loads(place.kymo("list", "--json").stdout) == expected
    assert json.loads(place.kymo("list", "--json", "--announced").stdout) == expected
    place.archive(tmp_path / "a")
    assert json.loads(place.kymo("list", "--json", "--archive", str(tmp_path / "a")).stdout) == expected[:1]
    assert place.kymo("list").stdout.startswith("a\tP1\t1970-01-01T00:00:00Z to 1970-01-01T00:00:10Z\timu\topen\n")


def test_end_sends_the_marks_that_are_missing(place: Place) -> None:
    place.send_chunks("a", 0, 3)
    place.send_chunks("b", 0, 3)
    place.send_chunks("a", 0, 2, "eda")
    place.send("sensor", b"a", place.codec.encode(chunk("a", 30, 5, "imu.left", end=True)))
    place.producer.flush()
    done = place.kymo("end", "a", "--json")
    assert json.loads(done.stdout) == {"session": "a", "ended": ["eda", "imu"]}
    marks = [place.codec.decode(place.held(topic)[-1].value or b"") for topic in ("sensor", "physio")]
    assert [(m.session, m.stream, m.first_index, m.count, m.end) for m in marks] == [
        ("a", "imu", 30, 0, True),
        ("a", "eda", 20, 0, True),
    ]
    assert marks[0].header == chunk("a", 0).header
    assert place.kymo("end", "a").stdout == "a: had ended already\n"
    done = place.kymo("end", "none")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def fill(place: Place) -> None:
    place.send_chunks("gone", 0, 4)
    place.send_chunks("kept", 0, 3)
    place.send_chunks("gone", 4, 2)
    place.send_chunks("gone", 0, 2, "eda")
    for name in ("gone", "kept"):
        place.send_json("sessions", name)
        place.send_json("events", name, id=f"{name}/r/0", start_ns=1)
        place.send_json("labels", name, start_ns=0, end_ns=10**9, label="x", set="s", id=name)
    place.send("labels", None, b'{"session": "gone", "label": "by another program"}')
    place.send("state", b"r.model\ngone", b"snapshot")
    place.producer.flush()


def test_delete_leaves_nothing_that_can_go(place: Place, tmp_path: Path) -> None:
    fill(place)
    folder = place.settings.home / "archive" / place.settings.prefix
    place.archive(folder)
    place.send_chunks("kept", 3, 1)
    place.archive(folder)
    before = [r for r in ArchiveReader(folder).records() if r.key == b"kept"]
    untouched = segment_paths(folder)[1].read_bytes()
    done = place.kymo("delete", "gone", "--yes", "--json")
    assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
    assert "gone is NOT wholly erased: 2 records of it stay in Kafka until" in done.stderr
    told = json.loads(done.stdout)
    counts = {t["topic"].rpartition(".")[2]: (t["found"], t["deleted"], t["left"]) for t in told["topics"]}
    assert counts == {
        "sensor": (6, 4, 2),
        "physio": (2, 2, 0),
        "events": (1, 1, 0),
        "labels": (2, 2, 0),
        "sessions": (1, 1, 0),
        "state": (1, 1, 0),
    }
    assert told["archive"] == {"dir": str(folder), "records": 12, "segments": 1, "deleted": []}
    # The topics: what could go is gone, the others' records are there.
    assert [r.key for r in place.held("sensor")] == [b"kept"] * 3 + [b"gone"] * 2 + [b"kept"]
    assert place.held("physio") == []
    assert [(r.key, json.loads(r.value or b"")["label"]) for r in place.held("labels")] == [(b"kept", "x")]
    assert [(r.key, r.value) for r in place.held("state")][-1] == (b"r.model\ngone", None)
    # The archive: every other record as it was, the offsets accounted for, not a trace of the name.
    assert [r for r in ArchiveReader(folder).records() if r.key == b"kept"] == before
    assert {r.key for r in ArchiveReader(folder).records()} == {b"kept"}
    assert check_archive(folder) == []
    assert segment_paths(folder)[1].read_bytes() == untouched
    assert [r.session for r in read([folder])] == ["kept"]
    # What Kafka could not delete is not archived again, here or from the beginning.
    place.send_chunks("kept", 4, 1)
    place.archive(folder)
    chunks = [r.key for r in ArchiveReader(folder).records() if r.topic.endswith(".sensor")]
    assert chunks == [b"kept"] * 5
    assert check_archive(folder) == []
    # A session of that name that begins later is another one.
    place.send_chunks("gone", 0, 1)
    place.archive(folder)
    assert {r.session: r.streams[0].count for r in read([folder])} == {"kept": 50, "gone": 10}


def test_a_session_in_a_topic_made_anew_is_not_the_erased_one(place: Place, tmp_path: Path) -> None:
    folder, name = tmp_path / "a", place.names.of("sensor")
    fill(place)
    place.archive(folder)
    done = place.kymo("delete", "gone", "--yes", "--archive", str(folder))
    assert done.returncode == 3, done.stderr
    with KafkaAdminClient(**client_arguments(place.settings)) as admin:
        admin.delete_topics([name])
        await_that(lambda: name not in admin.list_topics(), "deletion")
    again = Place(place.settings)
    again.send_chunks("gone", 0, 3)
    again.archive(folder)
    again.producer.close()
    assert {r.session: r.streams[0].count for r in read([folder])} == {"kept": 30, "gone": 30}


def test_delete_while_the_archive_runs(place: Place, tmp_path: Path) -> None:
    fill(place)
    folder = tmp_path / "a"
    child = archive_process(place.settings, folder, "--segment-s", "3600")
    try:
        await_that(lambda: bool(list(folder.glob("*.partial"))), "an open segment")
        done = place.kymo("delete", "gone", "--yes", "--archive", str(folder))
        assert done.returncode == 3, done.stderr
        place.send_chunks("kept", 3, 1)
        child.send(15)
        assert child.wait(30) == 0
    finally:
        child.send(9)
        child.wait(30)
    place.archive(folder)
    chunks = {r.key for r in ArchiveReader(folder).records() if r.topic.endswith((".sensor", ".physio", ".labels"))}
    assert chunks == {b"kept"}
    assert check_archive(folder) == []


def test_what_comes_while_a_deletion_reads_is_not_of_the_deleted(place: Place) -> None:
    fill(place)
    deletion = delete_session(place.settings, "gone", lambda *_: place.send_chunks("gone", 6, 1))
    assert len(place.held("sensor")) > 5  # two and three of before, and those
    assert deletion.ends[place.names.of("sensor"), 0] == 9


def test_delete_of_nothing_is_an_error_and_asks_first(place: Place) -> None:
    done = place.kymo("delete", "nobody", "--yes")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no record of a session nobody" in done.stderr
    place.send_chunks("a", 0, 1)
    assert place.kymo("delete", "a").returncode == 130  # nobody answers
    assert len(place.held("sensor")) == 1


@pytest.fixture
def three(tmp_path: Path, broker: str, prefix: str) -> Iterator[Place]:
    """Three partitions a topic, and a session that its sender put elsewhere than murmur2 would."""
    made = Place(Settings(brokers=broker, prefix=prefix, home=tmp_path / "home", partitions=3))
    other = (partition_of(b"gone", 3) + 1) % 3
    made.send_chunks("gone", 2, 3, partition=other)
    made.send("events", b"gone", b"{}", other)
    made.send("state", b"r.model\ngone", b"snapshot", other)
    made.send("labels", b"gone", b'{"session": "gone"}', other)
    made.producer.flush()
    yield made
    made.producer.close()


def test_a_session_by_another_partitioner_is_found_ended_and_erased(three: Place) -> None:
    other = (partition_of(b"gone", 3) + 1) % 3
    (row,) = json.loads(three.kymo("list", "--json").stdout)
    assert (row["session"], row["streams"], row["complete"]) == ("gone", ["imu"], False)
    assert (row["start_ns"], row["end_ns"]) == (chunk("gone", 20).start_ns, chunk("gone", 50).start_ns)
    assert three.kymo("list", "--announced").stdout == "no sessions\n"
    assert SessionTimes(announced(three.settings), lambda: seen(three.settings)).start_of("gone") == row["start_ns"]
    assert json.loads(three.kymo("end", "gone", "--json").stdout)["ended"] == ["imu"]
    assert {r.partition for r in three.held("sensor")} == {other}
    assert json.loads(three.kymo("list", "--json").stdout)[0]["complete"]
    # A sender without keys: no worker takes these, but they are somebody's all the same.
    three.send("sensor", None, three.codec.encode(chunk("gone", 50)), (other + 1) % 3)
    three.producer.flush()
    done = three.kymo("delete", "gone", "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    for topic in ("sensor", "events", "labels"):
        assert three.held(topic) == []
    assert [r.value for r in three.held("state")][-1] is None
    assert {r.partition for r in three.held("state")} == {other}


def test_what_retention_never_takes_is_told(three: Place) -> None:
    other = (partition_of(b"gone", 3) + 1) % 3
    for session in ("kept", "gone"):
        three.send_chunks(session, 5, 1, partition=other)
    with KafkaAdminClient(**client_arguments(three.settings)) as admin:
        config = ConfigResource(ConfigResourceType.TOPIC, three.names.of("sensor"), configs={"retention.ms": "-1"})
        admin.alter_configs([config])
    done = three.kymo("delete", "gone", "--yes")
    assert done.returncode == 3
    assert "3 of 4 records deleted, 1 stay between those of other sessions FOR EVER" in done.stdout
    assert "1 record of it stay in Kafka for ever" in done.stderr


def test_a_session_in_two_partitions_is_named(three: Place) -> None:
    own = partition_of(b"gone", 3)
    three.send_chunks("gone", 5, 1, partition=own)
    recipe = load_recipe("recipes/basicmotions.toml")
    facts = gather(recipe, "gone", three.settings)
    (check,) = explain(recipe, facts)
    assert (check.name, check.state) == ("partitions", "wrong")
    places = ", ".join(map(str, sorted({own, (own + 1) % 3})))
    assert f"chunks of imu stand in partitions {places} of {three.names.of('sensor')}" in check.text
