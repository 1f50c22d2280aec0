"""The demo's judgement on made events, and the demo and `kymo up` themselves on the embedded Kafka."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from verbs import execute

from kymo.deploy.children import Child, kymo_command, kymo_environment, stop
from kymo.examples.stage import SentChunks, compare, complaints, expected_ids, latency
from kymo.processors.recipe.load import INSTALLED, load_recipe
from kymo.processors.recipe.tables import HeadTable
from kymo.streams.chunk import Chunk, Header, signal_format
from kymo.streams.events import Event, event_id
from kymo.streams.labels.labels import interval
from kymo.streams.recording import Recording, StreamData

NS = 10**9
RECIPE = load_recipe(str(INSTALLED / "basicmotions.toml"))
CHANNELS = RECIPE.inputs[0].channels
PATIENCE_S = 90.0


def header(session: str, stream: str = "imu.wrist", rate: int = 10) -> Header:
    return Header(session, 0, signal_format(stream, CHANNELS, Fraction(rate), "float64"))


def recording(session: str, count: int, label: str = "walking", first: int = 0) -> Recording:
    stream = StreamData(header(session), np.zeros((count, len(CHANNELS))), None, first)
    end_ns = (first + count) * NS // 10
    labels = [interval(session=session, set="label", start_ns=0, end_ns=end_ns, label=label, author="test")]
    return Recording(session, [stream], labels)


def event(session: str, start: int, label: str = "walking", probability: float = 0.9) -> Event:
    probabilities = {"walking": 1 - probability, "running": 1 - probability} | {label: probability}
    times = (start * NS // 10, (start + RECIPE.window_length) * NS // 10)
    name = event_id(RECIPE.name, session, start)
    return Event(name, RECIPE.name, "b", session, "imu.wrist", start, *times, label, probability, probabilities)


@pytest.mark.parametrize(
    ("first", "count", "starts"),
    [
        (0, 100, [0, 10, 20, 30, 40, 50]),
        (0, 50, [0]),
        (0, 49, []),
        (3, 100, [10, 20, 30, 40, 50]),
        (10, 59, [10]),
    ],
)
def test_windows_stand_on_the_grid_of_index_0(first: int, count: int, starts: list[int]) -> None:
    assert (RECIPE.window_length, RECIPE.window_hop) == (50, 10)
    expected = [event_id("basicmotions", "s", start) for start in starts]
    assert expected_ids([recording("s", count, first=first)], RECIPE) == expected


def test_a_gap_parts_the_windows_and_other_streams_have_none() -> None:
    data = np.zeros((140, len(CHANNELS)))
    gapped = Recording("g", [StreamData(header("g"), data, None, 0, [(0, data[:65]), (75, data[65:])])])
    other = Recording("o", [StreamData(header("o", rate=20), data)])
    starts = [start for a, b in ((0, 65), (75, 150)) for start in range(0, 150, 10) if a <= start and start + 50 <= b]
    assert expected_ids([gapped, other], RECIPE) == [event_id("basicmotions", "g", start) for start in starts]


def test_every_head_has_its_event() -> None:
    recipe = replace(RECIPE, heads=(HeadTable("surface"), HeadTable("score", "number")))
    ids = expected_ids([recording("s", 60)], recipe)
    assert ids == [f"s/basicmotions/{start}{head}" for start in (0, 10) for head in ("", "/surface", "/score")]


GOOD = [event("a", 0), event("a", 10), event("b", 0, "running")]
IDS = [found.id for found in GOOD]


def test_all_is_well_when_every_event_came_once_and_equals_the_offline_one() -> None:
    online = [replace(found, emitted_ns=7) for found in reversed(GOOD)]
    assert complaints(compare(IDS, online, GOOD), 3) == []


@pytest.mark.parametrize(
    ("online", "offline", "complaint"),
    [
        (GOOD[:2], GOOD, "1 of 3 events did not come: b/basicmotions/0"),
        ([*GOOD, GOOD[0]], GOOD, "1 of 3 events came more than once: a/basicmotions/0"),
        ([*GOOD, event("c", 0)], GOOD, "1 of 3 events belong to no window of the recordings: c/basicmotions/0"),
        (
            [event("a", 0, "running"), *GOOD[1:]],
            GOOD,
            "1 of 3 events are not as offline: a/basicmotions/0 (label: online running, offline walking)",
        ),
        (
            [replace(GOOD[0], probability=0.9000000000000001), *GOOD[1:]],
            GOOD,
            "1 of 3 events are not as offline: a/basicmotions/0 (probability: online 0.9000000000000001, offline 0.9)",
        ),
        (GOOD, GOOD[1:], "1 of 3 events did not come offline: a/basicmotions/0"),
        (GOOD, [*GOOD, event("c", 0)], "1 of 3 events came offline but belong to no window: c/basicmotions/0"),
        (
            [],
            GOOD,
            "3 of 3 events did not come: a/basicmotions/0, a/basicmotions/10, b/basicmotions/0",
        ),
    ],
)
def test_what_is_wrong_is_named(online: list[Event], offline: list[Event], complaint: str) -> None:
    assert complaints(compare(IDS, online, offline), 3) == [complaint]


def test_nothing_expected_is_no_success() -> None:
    assert complaints(compare([], [], []), 0) == ["no event was expected: the recordings hold no window"]


def test_latency_counts_from_the_chunk_that_made_the_window_whole() -> None:
    sent, head = SentChunks(), header("a")
    for first, time_ms in ((0, 1000), (25, 1100), (50, 1200), (75, 1300)):
        sent.add(Chunk(head, first, np.zeros((25, len(CHANNELS)))), time_ms)
    # [0, 50) is whole with the chunk [25, 50), [10, 60) with [50, 75), [30, 80) with [75, 100).
    events = [event("a", 0), event("a", 10), event("a", 30), event("a", 60), event("b", 0)]
    assert [sent.last_chunk_ms(found, 50) for found in events] == [1100, 1200, 1300, None, None]
    found = latency(events, 50, sent, lambda event: {0: 1105.0, 10: 1207.0, 30: 1400.0}.get(event.start_index))
    assert found is not None
    assert (found["n"], found["p50"], found["max"]) == (3, 7.0, 100.0)
    assert found["p95"] == pytest.approx(np.percentile([5, 7, 100], 95), abs=0.05)
    assert (sent.chunks, sent.samples, sent.sessions) == (4, 100, 1)
    assert latency([], 50, sent, lambda _: 0.0) is None


@pytest.fixture
def user(tmp_path: Path, jars_dir: Path) -> Iterator[dict[str, str]]:
    """Environment of a user who has a home of their own; nothing is left of what they started."""
    from kymo.deploy import broker
    from kymo.models.bundle import load_bundle
    from kymo.streams.errors import BundleError

    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    (home / "kafka").symlink_to(jars_dir)
    try:
        load_bundle("basicmotions", home)
    except BundleError as error:
        pytest.skip(str(error))
    # The port of a broker that is not there: whoever would use the user's broker fails.
    yield kymo_environment({"KYMO_HOME": str(home), "TMPDIR": str(temporary), "KYMO_METRICS_PORT": "0"}, keep=False)
    broker.stop(home / "broker")
    assert not list(temporary.glob("kymo*"))
    assert not processes_that_mention(tmp_path)


def processes_that_mention(folder: Path) -> dict[int, list[str]]:
    """Command lines, by process, of those that name a folder in arguments or environment."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, env = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in command + env and int(process.name) != os.getpid():
            found[int(process.name)] = [part.decode(errors="replace") for part in command.split(b"\0")]
    return found


@pytest.mark.slow
def test_the_demo_proves_itself_and_leaves_nothing(user: dict[str, str]) -> None:
    # A broker that is not there: the demo has its own.
    env = user | {"KYMO_BROKERS": "127.0.0.1:1", "KYMO_PREFIX": "mine"}
    done = subprocess.run(
        kymo_command("demo", "--json"), env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["ok"]
    assert result["complaints"] == []
    assert result["in"]["sessions"] == 40
    assert result["in"]["samples"] == 4000
    assert result["out"] == {
        "expected": 240,
        "events": 240,
        "missing": 0,
        "repeated": 0,
        "unexpected": 0,
        "different": 0,
    }
    assert result["latency_ms"]["record"]["n"] == result["latency_ms"]["consumer"]["n"] == 240
    assert result["scores"]["n"] == 40


class Verb:
    """A running verb, whose lines can be waited for."""

    def __init__(self, env: dict[str, str], *arguments: str) -> None:
        self.lines: list[str] = []
        self._came = threading.Condition()
        self.child = Child("verb", kymo_command(*arguments), env, self._said)

    def _said(self, line: str) -> None:
        with self._came:
            self.lines.append(line)
            self._came.notify_all()

    def wait_for(self, found: Callable[[list[str]], bool]) -> None:
        """Wait until the lines are as wanted."""
        with self._came:
            assert self._came.wait_for(lambda: found(self.lines), PATIENCE_S), "\n".join(self.lines)

    def __enter__(self) -> Verb:
        self.child.start()
        return self

    def __exit__(self, *_: object) -> None:
        stop([self.child])


def says(text: str, times: int = 1) -> Callable[[list[str]], bool]:
    return lambda lines: sum(text in line for line in lines) >= times


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_of_the_demo(user: dict[str, str]) -> None:
    with Verb(user, "demo", "--speed", "2") as verb:
        verb.wait_for(says("truth"))  # in the midst of it
        verb.child.send(signal.SIGINT)
        assert verb.child.wait(PATIENCE_S) == 130, verb.lines


@pytest.mark.slow
def test_a_demo_whose_worker_dies_fails_and_says_so(user: dict[str, str], tmp_path: Path) -> None:
    with Verb(user, "demo", "--speed", "2") as verb:
        verb.wait_for(says("truth"))
        workers = [pid for pid, command in processes_that_mention(tmp_path).items() if "worker" in command]
        assert len(workers) == 1
        os.kill(workers[0], signal.SIGKILL)
        assert verb.child.wait(PATIENCE_S) == 1, verb.lines
        assert says("kymo: the worker ended before its time (killed by SIGKILL)")(verb.lines)


@pytest.mark.slow
def test_up_starts_a_worker_again_and_ends_everything(user: dict[str, str]) -> None:
    with Verb(user, "up", "basicmotions") as verb:
        verb.wait_for(says("worker 1 is ready"))
        verb.wait_for(says("archive is ready"))
        targets = Path(user["KYMO_HOME"]) / "run" / "prometheus"
        worker = next(int(path.stem.rpartition("-")[2]) for path in targets.glob("worker-*.json"))
        os.kill(worker, signal.SIGKILL)
        verb.wait_for(says("worker 1 is ready", times=2))
        assert says("worker 1 ended (killed by SIGKILL); starting it again in 1 s")(verb.lines)
        assert not (targets / f"worker-{worker}.json").exists()
        verb.child.send(signal.SIGTERM)
        assert verb.child.wait(PATIENCE_S) == 0, verb.lines
        assert says("broker stopped")(verb.lines)
        assert not list(targets.glob("*.json"))


def test_up_refuses_what_cannot_be_run_before_it_starts_anything(tmp_path: Path) -> None:
    done = execute("up", "nothing-of-the-kind", env={"KYMO_HOME": str(tmp_path / "home")}, status=1)
    assert re.fullmatch(r"kymo: .*nothing-of-the-kind.*\n", done.stderr)
    assert not (tmp_path / "home").exists()
