"""Replay on a real broker: everything once and in order, nothing twice, and what is said when it cannot be; the verb."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from verbs import invoke

from kymo.streams.chunk import Chunk, Header, signal_format
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import DeliveryError, SourceError
from kymo.streams.kafka.admin import ensure_topics
from kymo.streams.kafka.publish import Publisher
from kymo.streams.kafka.read import read_records
from kymo.streams.recording import ReadOptions, Recording, StreamData
from kymo.streams.replay.cli import choose
from kymo.streams.replay.pacing import ReplayIO, ReplayProgress, SystemClock
from kymo.streams.replay.replay import ReplaySummary, replay
from kymo.streams.replay.schedule import ReplayPlan
from kymo.streams.settings import Settings
from kymo.streams.topics import Names
from kymo.streams.words import NS

FAST = ReplayPlan(speed=None)


@pytest.fixture
def settings(broker: str, prefix: str) -> Settings:
    return Settings(brokers=broker, prefix=prefix, partitions=3)


def recording(session: str, seconds: float = 5, streams: tuple[tuple[str, int], ...] = (("imu", 50),)) -> Recording:
    found = []
    for stream, rate in streams:
        rng = np.random.default_rng(len(session + stream))
        data = rng.standard_normal((round(rate * seconds), 2), np.float32)
        found.append(StreamData(Header(session, NS, signal_format(stream, ("x", "y"), rate)), data))
    return Recording(session, found)


def chunks(settings: Settings, topic: str = "sensor", prefix: str = "") -> dict[tuple[str, str], list[Chunk]]:
    """Chunks in the topic by session and stream, in the order of their offsets."""
    codec, found = ChunkCodec(), defaultdict(list)
    for record in read_records(settings, Names(prefix or settings.prefix).of(topic)):
        assert record.value is not None
        chunk = codec.decode(record.value)
        assert record.key == chunk.session.encode()
        found[chunk.session, chunk.stream].append(chunk)
    return found


def session_records(settings: Settings) -> list[dict[str, object]]:
    return [json.loads(r.value or b"") for r in read_records(settings, Names(settings.prefix).of("sessions"))]


def assert_is(sent: list[Chunk], stream: StreamData) -> None:
    """Exactly the stream's samples: once, in order, ended."""
    ends = [0] + [c.end_index for c in sent]
    assert [c.first_index for c in sent] == ends[:-1]
    assert np.array_equal(np.concatenate([c.data for c in sent]), stream.data)
    assert [c.end for c in sent] == [False] * (len(sent) - 1) + [True]
    assert all(c.header == stream.header for c in sent)


def test_everything_is_there_once_and_in_order(settings: Settings) -> None:
    recordings = [recording(f"s{i}", streams=(("imu", 50), ("imu.left", 20), ("eda", 4))) for i in range(5)]
    summary = replay(recordings, settings, FAST)
    assert summary.ok
    assert summary.outcome == "done"
    assert summary.sessions == 5
    assert summary.acknowledged == summary.chunks == 5 * (50 + 50 + 20)
    assert summary.samples == 5 * (250 + 100 + 20)
    assert "streams eda (100 samples), imu (1250 samples), imu.left (500 samples)" in summary.lines()
    sensor, physio = chunks(settings), chunks(settings, "physio")
    for r in recordings:
        for stream, topic in zip(r.streams, (sensor, sensor, physio), strict=True):
            assert_is(topic[r.session, stream.header.format.stream], stream)


def test_metadata_come_first_and_say_when_it_is_complete(settings: Settings) -> None:
    r = recording("s1")
    r.subject, r.notes = "p7", ["2 rows were repeated"]
    summary = replay([r], settings, FAST)
    assert summary.notes == ["s1: 2 rows were repeated"]
    first, last = session_records(settings)
    assert (first["session"], first["subject"], first["notes"]) == ("s1", "p7", ["2 rows were repeated"])
    assert isinstance(first["replayed"], dict)
    assert isinstance(last["replayed"], dict)
    assert (first["replayed"]["complete"], first["replayed"]["samples"]) == (False, 0)
    assert (last["replayed"]["complete"], last["replayed"]["samples"]) == (True, 250)


def test_a_second_replay_adds_nothing_and_says_so(settings: Settings) -> None:
    replay([recording("s1")], settings, FAST)
    again = replay([recording("s1"), recording("s2")], settings, replace(FAST, chunk_ms=250))
    assert (again.skipped, again.sessions) == (["s1"], 1)
    assert "1 session there already" in "\n".join(again.lines())
    nothing, skipped = replay([recording("s1")], settings, FAST).lines()
    assert nothing == "0 sessions, 0 samples, 0 chunks, 0 acknowledged"
    assert skipped.startswith("1 session there already")
    found = chunks(settings)
    assert_is(found["s1", "imu"], recording("s1").streams[0])
    assert_is(found["s2", "imu"], recording("s2").streams[0])
    with pytest.raises(SourceError, match=r"session s1 is in .* already.*--run"):
        replay([recording("s1", 4)], settings, FAST)


def test_a_run_has_topics_of_its_own(settings: Settings) -> None:
    replay([recording("s1")], settings, FAST)
    summary = replay([recording("s1")], settings, replace(FAST, run="7"))
    assert (summary.topics, summary.sessions) == (f"{settings.prefix}.7", 1)
    assert_is(chunks(settings, prefix=summary.topics)["s1", "imu"], recording("s1").streams[0])
    assert len(chunks(settings)["s1", "imu"]) == 50
    # Few partitions, and the same for a worker that is sent there.
    here = settings.under(summary.topics)
    found = ensure_topics(here, Names(here.prefix))
    assert (found.created, sum(found.partitions.values())) == ((), 27)
    env = {"KYMO_BROKERS": settings.brokers, "KYMO_PREFIX": settings.prefix, "KYMO_PARTITIONS": "3"}
    listed = invoke("runs", "list", "--json", env=env)
    assert [(run["name"], run["messages"]) for run in json.loads(listed.stdout)] == [("7", 52)]
    invoke("runs", "delete", "7", env=env)
    invoke("runs", "delete", "7", env=env, status=1)


def test_now_shifts_event_times_to_the_present(settings: Settings) -> None:
    before = time.time_ns()
    replay([recording("s1"), recording("s2", 3)], settings, replace(FAST, now=True))
    for found in chunks(settings).values():
        assert before <= found[0].start_ns <= time.time_ns()
        assert found[0].first_index == 0


def test_loop_and_part(settings: Settings) -> None:
    r = recording("s1")
    replay([r], settings, replace(FAST, loop=3, start_s=1, duration_s=2))
    sent = chunks(settings)["s1", "imu"]
    assert [c.first_index for c in sent] == list(range(50, 350, 5))
    assert np.array_equal(np.concatenate([c.data for c in sent]), np.tile(r.streams[0].data[50:150], (3, 1)))
    assert sent[-1].end


def test_paced_replay_reaches_its_speed(settings: Settings) -> None:
    shown: list[ReplayProgress] = []
    summary = replay([recording("s1", 10)], settings, ReplayPlan(speed=10), ReplayIO(progress=shown.append))
    assert 0.9 < summary.elapsed_s < 3
    assert summary.requested_speed == 10
    assert summary.event_s == pytest.approx(9.98)
    assert shown[-1].sessions_done == 1
    assert shown[-1].unacknowledged == 0


def test_quit_and_interrupt_keep_what_was_sent(settings: Settings) -> None:
    keys = iter([None] * 3 + ["quit"])

    def controls(seconds: float) -> str | None:
        SystemClock().wait(seconds)
        return next(keys)

    summary = replay([recording("s1")], settings, ReplayPlan(speed=5), ReplayIO(controls=controls))
    assert (summary.outcome, summary.ok) == ("quit", True)
    assert summary.acknowledged == summary.chunks == len(chunks(settings)["s1", "imu"]) < 50

    def interrupt(_: float) -> str | None:
        raise KeyboardInterrupt

    summary = replay([recording("s2")], settings, ReplayPlan(speed=5), ReplayIO(controls=interrupt))
    assert (summary.outcome, summary.ok) == ("interrupted", False)
    again = replay([recording("s1")], settings, FAST)
    assert again.notes == ["s1: an earlier replay did not end; sent again from its start"]


def test_too_large_is_refused_by_name(settings: Settings) -> None:
    header = Header("big", 0, signal_format("imu", tuple(f"c{i}" for i in range(3000)), 1, "float64"))
    frames = np.empty(2, object)
    frames[:] = [b"x" * 5_000_000, b"y"]
    fmt = replace(signal_format("video", ("rgb",), 1, "jpeg"), shape=())
    video = Recording("film", [StreamData(replace(header, session="film", format=fmt), frames)])
    summary = replay([video], settings, FAST)
    assert not summary.ok
    assert summary.outcome == "failed"
    assert "session film: a message of 5000" in summary.error
    assert f"{settings.prefix}.video" in summary.error
    with Publisher(settings, Names(settings.prefix)) as publisher:
        limit = 4 * 2**20
        publisher.send("sensor", "k", b"x" * (limit - 100))  # the largest that the broker takes
        publisher.flush(20)
        with pytest.raises(DeliveryError, match="over the limit"):
            publisher.send("sensor", "k", b"x" * limit)


def test_back_pressure_bounds_what_is_under_way(settings: Settings) -> None:
    ensure_topics(settings, Names(settings.prefix))
    with Publisher(settings, Names(settings.prefix), max_unacknowledged=100_000) as publisher:
        for i in range(200):
            publisher.send("sensor", f"s{i % 3}", bytes(20_000))
            assert publisher.sent - publisher.acknowledged <= 5
        publisher.flush(20)
        assert publisher.acknowledged == 200


@pytest.fixture
def own_broker(tmp_path: Path, jars_dir: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """A broker for this test alone, and what kills and restarts it."""
    import os
    import signal

    from kymo.deploy import broker as embedded

    info = embedded.start(tmp_path, jars_dir=jars_dir)

    def kill_and_restart() -> None:
        found = embedded.status(tmp_path).info
        assert found is not None
        os.kill(found.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(
                found.pid, 0
            )  # it counts as dead when its first thread is; the others hold the port a little longer
        embedded.start(tmp_path, info.port, jars_dir=jars_dir)

    yield info.bootstrap, kill_and_restart
    embedded.stop(tmp_path)


@pytest.mark.slow
def test_broker_killed_on_the_way_everything_is_there_once(
    own_broker: tuple[str, Callable[[], None]], prefix: str
) -> None:
    bootstrap, kill_and_restart = own_broker
    settings = Settings(brokers=bootstrap, prefix=prefix, partitions=3)
    recordings = [recording(f"s{i}", 60) for i in range(3)]
    started = threading.Event()

    def progress(now: ReplayProgress) -> None:
        if now.event_s > 10:
            started.set()

    def chaos() -> None:
        started.wait(60)
        kill_and_restart()

    killer = threading.Thread(target=chaos)
    killer.start()
    summary = replay(recordings, settings, ReplayPlan(speed=20), ReplayIO(progress=progress))
    killer.join()
    assert summary.error == ""
    assert summary.acknowledged == summary.chunks == 3 * 600
    found = chunks(settings)
    for r in recordings:
        assert_is(found[r.session, "imu"], r.streams[0])


def test_two_sessions_of_one_name_are_refused() -> None:
    with pytest.raises(SourceError, match=r"session s1 is in .* and again in .*different names"):
        replay([recording("s1"), recording("s1", 3)], Settings(brokers="127.0.0.1:1"), FAST)


def test_what_is_said_of_many_sessions_is_said_once() -> None:
    notes = [f"s{n}: rate 50 Hz taken from the times" for n in range(70)] + ["s3: 1 gap", "topic x: made"]
    lines = ReplaySummary(notes=notes).lines()
    assert [line for line in lines if line.startswith("note")] == [
        "note: s0 and 69 more: rate 50 Hz taken from the times",
        "note: s3: 1 gap",
        "note: topic x: made",
    ]


def csv(folder: Path, name: str, session: str = "") -> Path:
    rows = "".join(f"{i / 10},{i},{-i}" + (f",{session}" if session else "") + "\n" for i in range(30))
    path = folder / f"{name}.csv"
    path.write_text("t,ax,ay" + (",session" if session else "") + "\n" + rows)
    return path


def test_names_choose_one_of_several_or_name_the_only_one(tmp_path: Path) -> None:
    one = csv(tmp_path, "walk1")
    assert [r.session for r in choose([str(one)], ReadOptions(), "mine", None)] == ["mine"]
    (named,) = choose([str(one)], ReadOptions(), None, "imu.left")
    assert [s.header.format.stream for s in named.streams] == ["imu.left"]
    csv(tmp_path, "walk2")
    assert [r.session for r in choose([str(tmp_path)], ReadOptions(), "walk2", None)] == ["walk2"]
    with pytest.raises(SourceError, match=r"no session walk3: there are walk1, walk2; did you mean walk2\?"):
        list(choose([str(tmp_path)], ReadOptions(), "walk3", None))


def test_command_sums_up_and_its_status_tells(settings: Settings, tmp_path: Path) -> None:
    env = {"KYMO_BROKERS": settings.brokers, "KYMO_PREFIX": settings.prefix, "KYMO_PARTITIONS": "3"}
    path = csv(tmp_path, "walk")
    done = invoke("replay", path, "--speed", "max", "--stream", "imu", "--json", env=env)
    found = json.loads(done.stdout)
    assert (found["sessions"], found["samples"], found["ok"]) == (1, 30, True)
    again = invoke("replay", path, "--speed", "max", "--stream", "imu", env=env)
    assert "there already" in again.stdout
    gone = invoke("replay", tmp_path / "no.csv", "--speed", "max", env=env, status=1)
    assert len(gone.stderr.strip().splitlines()) == 1
    invoke("replay", path, "--speed", "0", env=env, status=2)
