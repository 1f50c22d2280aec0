"""`kymo archive` where Kafka no longer has what it held: gaps are told, what is already archived stays."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from archive_lab import archive_process
from archive_on_broker import Topics, noise, raw, stored
from fault_lab import await_that, kill
from kafka.admin import KafkaAdminClient, NewTopic

from kymo.deploy.children import Child
from kymo.streams.archive.check import check_archive
from kymo.streams.archive.erase import Erased
from kymo.streams.archive.format import read_segment, segment_paths
from kymo.streams.archive.read import ArchiveReader
from kymo.streams.archive.writer import Archive
from kymo.streams.kafka.client import client_arguments
from kymo.streams.settings import Settings

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]


@pytest.fixture
def topics(tmp_path: Path, broker: str, prefix: str) -> Iterator[Topics]:
    with Topics(Settings(brokers=broker, prefix=prefix, home=tmp_path / "home", partitions=2)) as made:
        yield made


@pytest.fixture
def processes() -> Iterator[list[Child]]:
    started: list[Child] = []
    yield started
    for child in started:
        child.send(signal.SIGKILL)
        child.wait(30)


def test_what_kafka_no_longer_has_is_a_gap(topics: Topics, tmp_path: Path) -> None:
    topics.send_chunks(0, 20)
    (place,) = {r[1] for r in topics.held()}
    topics.delete_before("sensor", 5, place)
    _, told = topics.archive(tmp_path)
    assert any("begins at offset 5" in line for line in told)
    topics.send_chunks(20, 20)
    topics.delete_before("sensor", 30, place)
    counts, told = topics.archive(tmp_path)
    assert (counts.lost, counts.records) == (10, 10)
    assert any("GAP, offsets 20 to 29 (10)" in line for line in told)
    found = read_segment(segment_paths(tmp_path)[-1]).contents
    assert found.absent == [(topics.names.of("sensor"), place, 20, 30, "retention")]
    assert (
        found.spans[topics.names.of("sensor"), place].first,
        found.spans[topics.names.of("sensor"), place].next,
    ) == (20, 40)


def test_what_is_deleted_while_it_runs_is_a_gap(topics: Topics, tmp_path: Path) -> None:
    topics.send_chunks(0, 20)
    (place,) = {r[1] for r in topics.held()}
    told: list[str] = []
    archive = Archive(topics.settings, tmp_path, None, told.append)

    def stop() -> bool:
        if not told:  # it stands at offset 0 and has read nothing yet
            topics.delete_before("sensor", 15, place)
            told.append("deleted")
        return archive.counts.records >= 5

    counts = archive.run(stop)
    assert (counts.records, counts.lost) == (5, 15)
    assert any("GAP, offsets 0 to 14 (15)" in line for line in told)
    assert stored(tmp_path) == topics.held()
    assert check_archive(tmp_path) == []


@pytest.mark.parametrize("found", ["behind a closed one", "the first", "set aside, its recovery killed"])
def test_an_unclosed_segment_is_kept_where_kafka_has_lost_it(
    topics: Topics, tmp_path: Path, processes: list[Child], found: str
) -> None:
    folder = tmp_path / "a"
    topics.send_chunks(0, 10)
    if found != "the first":
        topics.archive(folder)
    for i in range(3000):  # more than a chunk of the file, so that something is on the disk
        topics.send("sensor", noise(i, 1500), b"s1")
    topics.producer.flush()
    held = topics.held()
    (place,) = {r[1] for r in held}
    child = archive_process(topics.settings, folder, KYMO_METRICS_PORT="0")
    processes.append(child)
    await_that(lambda: any(p.stat().st_size > 2**21 for p in folder.glob("*.partial")), "a segment with whole chunks")
    kill(child)
    topics.delete_before("sensor", 3010, place)
    if found.startswith("set aside"):
        (partial,) = folder.glob("*.partial")
        partial.rename(partial.with_suffix(".damaged"))
    counts, told = topics.archive(folder)
    assert any("Kafka no longer has all of it" in line for line in told)
    kept = stored(folder)
    assert kept == held[: len(kept)]
    assert len(kept) > 10
    assert counts.lost == 3010 - len(kept)
    assert not [*folder.glob("*.partial"), *folder.glob("*.damaged")]


def test_a_session_erased_just_before_a_kill_is_gone_after_the_next_start(topics: Topics, tmp_path: Path) -> None:
    topics.send_chunks(0, 10)
    topics.send_chunks(0, 5, "s2")
    topics.archive(tmp_path)
    ends = {(r[0], r[1]): 10**6 for r in topics.held()}
    Erased(tmp_path).add("s1", ends)  # the archive was killed before it took the session out of the segment just closed
    topics.archive(tmp_path)
    assert stored(tmp_path) == [r for r in topics.held() if r[4] != b"s1"]
    assert check_archive(tmp_path) == []


def test_a_topic_made_anew_is_archived_from_its_beginning(topics: Topics, tmp_path: Path) -> None:
    topics.send_chunks(0, 10)
    before = topics.held()
    topics.archive(tmp_path)
    with KafkaAdminClient(**client_arguments(topics.settings)) as admin:
        name = topics.names.of("sensor")
        admin.delete_topics([name])
        await_that(lambda: name not in admin.list_topics(), "deletion")
        admin.create_topics([NewTopic(name, 2, 1)])
        admin.wait_for_topics([name], timeout_ms=20_000)
    topics.producer.close()
    again = Topics(topics.settings)
    again.send_chunks(0, 30, "s2")
    counts, told = again.archive(tmp_path)
    again.producer.close()
    assert (counts.records, counts.lost) == (30, 0)
    assert any("made anew" in line for line in told)
    found = [raw(r) for r in ArchiveReader(tmp_path).records()]
    assert found == [*before, *again.held()]
