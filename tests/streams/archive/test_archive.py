"""`kymo archive` on the embedded Kafka: every record once, in order, with equal bytes, whatever happens to the process or to Kafka;
and an archive taken back."""

from __future__ import annotations

import itertools
import json
import resource
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from archive_lab import Topics, archive_process, chunk, noise, raw, stored
from fault_lab import Feed, Lab, await_that, kill, stop_worker
from kafka.admin import KafkaAdminClient, NewTopic
from verbs import execute, variables

from kymo.deploy.children import Child
from kymo.deploy.metrics_server import find_server, is_ready
from kymo.streams.archive.check import check_archive
from kymo.streams.archive.erase import Erased
from kymo.streams.archive.format import ArchivePlan, read_segment, segment_paths
from kymo.streams.archive.read import ArchiveReader
from kymo.streams.archive.writer import Archive
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import ArchiveError
from kymo.streams.kafka.client import client_arguments
from kymo.streams.readers import read
from kymo.streams.recording import Recording, StreamData
from kymo.streams.replay.replay import replay
from kymo.streams.replay.schedule import ReplayPlan
from kymo.streams.settings import Settings


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


def test_all_topics_as_they_are_and_it_goes_on(topics: Topics, tmp_path: Path) -> None:
    topics.send_chunks(0, 50)
    topics.send("events", b'{"id": "a"}', headers=[("h", b"\xff"), ("h", b"")])
    topics.send("sessions", b'{"session": "s1"}', b"s1")
    topics.send("sessions", None, b"s2")
    topics.send("labels", b"no JSON", None, partition=1)
    topics.send("alerts", b"", b"\xff\xfe", timestamp_ms=1)
    topics.send("state", b"snapshot")
    topics.producer.flush()
    counts, _ = topics.archive(tmp_path / "a")
    assert stored(tmp_path / "a") == topics.held()
    assert (counts.records, counts.segments, counts.lost) == (55, 1, 0)
    topics.send_chunks(50, 30)
    counts, told = topics.archive(tmp_path / "a")
    assert (counts.records, told[-1].split(": ")[1][:10]) == (30, "30 records")
    assert stored(tmp_path / "a") == topics.held()
    assert topics.archive(tmp_path / "a")[0].segments == 0  # nothing new, no segment
    counts, _ = topics.archive(tmp_path / "b", ArchivePlan(topics=("state",)))
    assert stored(tmp_path / "b") == topics.held(("state",))


def test_segments_are_closed_by_size(topics: Topics, tmp_path: Path) -> None:
    for i in range(2000):
        topics.send("video", noise(i, 1500), b"s")
    topics.producer.flush()
    counts, _ = topics.archive(tmp_path, ArchivePlan(segment_bytes=2**10))
    assert counts.segments >= 2  # records go to the file a MiB at a time
    assert stored(tmp_path) == topics.held()
    ends: dict[Any, int] = {}
    for path in segment_paths(tmp_path):
        for place, span in read_segment(path).contents.spans.items():
            assert ends.get(place, 0) == span.first
            ends[place] = span.next
    assert sum(ends.values()) == 2000


def test_new_topics_are_found_and_sigterm_closes_the_segment(
    broker: str, prefix: str, tmp_path: Path, processes: list[Child]
) -> None:
    settings = Settings(brokers=broker, prefix=prefix, home=tmp_path / "home", partitions=2)
    child = archive_process(settings, tmp_path / "a", KYMO_METRICS_PORT="0")
    processes.append(child)
    await_that(lambda: find_server(settings.home, "archive", child.pid) is not None, "metrics")
    topics = Topics(settings)
    topics.send_chunks(0, 20)
    server = find_server(settings.home, "archive", child.pid)
    assert server is not None
    await_that(lambda: is_ready(server), "readiness")
    await_that(
        lambda: b"kymo_archive_records_total 20.0" in urllib.request.urlopen(f"{server}/metrics").read(), "records"
    )
    assert segment_paths(tmp_path / "a") == []
    with pytest.raises(ArchiveError, match="another `kymo archive` writes there"):
        topics.archive(tmp_path / "a")
    child.send(signal.SIGTERM)
    assert child.wait(30) == 0
    assert stored(tmp_path / "a") == topics.held()
    topics.producer.close()


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.chaos)])
def test_kill_9_loses_nothing_and_doubles_nothing(
    topics: Topics, tmp_path: Path, processes: list[Child], kills: int
) -> None:
    folder, over = tmp_path / "a", threading.Event()

    def feed() -> None:
        for i in itertools.count():
            topics.send("sensor", ChunkCodec().encode(chunk(f"s{i % 7}", 10 * i)), b"s%d" % (i % 7))
            topics.send("events", b'{"n": %d}' % i, b"s%d" % (i % 5))
            if over.wait(0.001):
                return

    feeding = threading.Thread(target=feed)
    feeding.start()
    try:
        for turn in range(kills):
            child = archive_process(settings := topics.settings, folder, "--segment-s", "0.3")
            processes.append(child)
            wanted = len(segment_paths(folder)) + 1 + turn % 2
            await_that(lambda n=wanted: len(segment_paths(folder)) >= n, "a segment")  # type: ignore[misc]
            if turn % 3 == 0:
                await_that(lambda: bool(list(folder.glob("*.partial"))), "an open segment")
            kill(child)
    finally:
        over.set()
        feeding.join()
    topics.producer.flush()
    topics.archive(folder)
    assert stored(folder) == topics.held()
    assert check_archive(folder) == []
    assert list(folder.glob("*.partial")) == []
    assert settings.prefix == topics.settings.prefix


def test_a_full_disk_is_told_and_leaves_no_segment(topics: Topics, tmp_path: Path) -> None:
    for i in range(3000):
        topics.send("sensor", noise(i, 1500), b"s1")
    topics.producer.flush()
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))  # noqa: E731
    words = ("archive", "--dir", tmp_path / "a", "--once")
    done = execute(*words, env=variables(topics.settings), status=1, preexec_fn=limit)
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("kymo: ")
    assert "kymo-00000001.mcap: cannot be written (File too large)" in error
    assert "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "a").iterdir()] == [".lock"]
    topics.archive(tmp_path / "a")
    assert stored(tmp_path / "a") == topics.held()


def test_another_prefix_is_refused(topics: Topics, tmp_path: Path, new_prefix: Callable[[], str]) -> None:
    topics.send_chunks(0, 1)
    topics.archive(tmp_path)
    other = Settings(brokers=topics.settings.brokers, prefix=new_prefix())
    with pytest.raises(ArchiveError, match=f"is the archive of {topics.settings.prefix}"):
        Archive(other, tmp_path).run(lambda: False, once=True)


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


def test_a_replayed_archive_gives_the_events_of_the_live_run(
    tmp_path: Path, broker: str, new_prefix: Callable[[], str]
) -> None:
    """The live input has gaps, repeated and late chunks, and sessions that end and come again."""
    live, again = tmp_path / "live", tmp_path / "again"
    live.mkdir()
    again.mkdir()
    with Lab(live, broker, new_prefix(), partitions=2) as lab:
        feed, worker = Feed(lab, 5, rate=300, ending=0.01), lab.start_worker()
        feed.start()
        lab.await_growth(everywhere=True)
        lab.await_growth(everywhere=True)
        lab.check(feed)
        stop_worker(worker)
        events = by_id(lab)
        Archive(lab.settings, tmp_path / "a", ArchivePlan(segment_bytes=2**12)).run(lambda: False, once=True)
    recordings = list(read([tmp_path / "a"]))
    with Lab(again, broker, new_prefix(), partitions=2) as lab:
        worker = lab.start_worker()
        summary = replay(recordings, lab.settings, ReplayPlan(speed=None))
        assert summary.ok
        lab.await_that(lambda: sum(lab.ends().values()) >= len(events), "as many events")
        stop_worker(worker)
        assert by_id(lab) == events


def test_replaying_an_archive_where_it_came_from_adds_nothing(topics: Topics, tmp_path: Path) -> None:
    made = [recording("a", 250), recording("b", 990)]
    assert replay(made, topics.settings, ReplayPlan(speed=None)).chunks > 2
    topics.archive(tmp_path)
    held = topics.held()
    summary = replay(list(read([tmp_path])), topics.settings, ReplayPlan(speed=None))
    assert (sorted(summary.skipped), summary.chunks) == (["a", "b"], 0)
    assert topics.held() == held


def recording(session: str, count: int) -> Recording:
    made = chunk(session, 0, count)
    return Recording(session, [StreamData(made.header, made.data)], [], "P1")


def by_id(lab: Lab) -> dict[str, tuple[str, float]]:
    found = [json.loads(r.value or b"") for r in lab.records("events")]
    assert len({event["id"] for event in found}) == len(found)
    return {event["id"]: (event["label"], event["probability"]) for event in found}
