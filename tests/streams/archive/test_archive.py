"""`kymo archive` on the embedded Kafka: every record once, in order, with equal bytes, whatever happens to the process."""

from __future__ import annotations

import itertools
import resource
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from archive_lab import archive_process, chunk
from archive_on_broker import Topics, noise, stored
from fault_lab import await_that, kill

from kymo.deploy.children import Child, kymo_command, kymo_environment
from kymo.deploy.metrics_server import find_server, is_ready
from kymo.streams.archive.check import check_archive
from kymo.streams.archive.format import ArchivePlan, read_segment, segment_paths
from kymo.streams.archive.writer import Archive
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import ArchiveError
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
    variables = {
        "KYMO_BROKERS": topics.settings.brokers,
        "KYMO_PREFIX": topics.settings.prefix,
        "KYMO_METRICS_PORT": "-1",
    }
    done = subprocess.run(
        kymo_command("archive", "--dir", str(tmp_path / "a"), "--once"),
        env=kymo_environment(variables, keep=False),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
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
