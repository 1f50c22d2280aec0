"""An archive taken back: the events of the live run, and nothing where all is there already."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from archive_lab import chunk
from archive_on_broker import Topics
from fault_lab import Feed, Lab, stop_worker

from kymo.streams.archive.format import ArchivePlan
from kymo.streams.archive.writer import Archive
from kymo.streams.readers import read
from kymo.streams.recording import Recording, StreamData
from kymo.streams.replay.replay import replay
from kymo.streams.replay.schedule import ReplayPlan
from kymo.streams.settings import Settings

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]


@pytest.fixture
def topics(tmp_path: Path, broker: str, prefix: str) -> Iterator[Topics]:
    with Topics(Settings(brokers=broker, prefix=prefix, home=tmp_path / "home", partitions=2)) as made:
        yield made


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
