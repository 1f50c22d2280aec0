"""What the delivery guarantee promises, on real processes: workers, of stateful models, too, killed and overtaken, a broker killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from fault_feed import RECIPE, lab_recipe
from fault_lab import TAKEOVER_S, Feed, Lab, await_that, kill, signal_process, stop_worker
from joined_campaign import campaign
from tiny_stateful import leaky_onnx, manifest

from kymo.deploy import broker as embedded
from kymo.deploy.children import kymo_command
from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.processors.recipe.load import load_recipe
from kymo.streams.errors import ChunkError

pytestmark = pytest.mark.slow


SIZES = [
    pytest.param(False, id="short"),
    pytest.param(True, marks=pytest.mark.chaos, id="full"),
]


@pytest.fixture
def lab(tmp_path: Path, broker: str, prefix: str) -> Lab:
    return Lab(tmp_path, broker, prefix)


def started(lab: Lab, seed: int) -> Feed:
    feed = Feed(lab, seed)
    feed.start()
    return feed


def pause(pick: random.Random, most_s: float) -> None:
    """A random moment: where in its work the worker is hit."""
    threading.Event().wait(pick.uniform(0, most_s))


_LONG = pytest.mark.chaos


@pytest.mark.parametrize(
    ("kills", "heads"),
    [
        pytest.param(3, False, id="short"),
        pytest.param(50, False, marks=_LONG, id="full"),
        pytest.param(12, True, marks=_LONG, id="heads"),
    ],
)
def test_worker_killed_again_and_again(lab: Lab, kills: int, heads: bool) -> None:
    pick, back = random.Random(1), []
    if heads:
        lab.recipe, lab.bundle = lab_recipe(lab.recipe.parent, heads=True)
    with lab:
        feed, worker = started(lab, 1), lab.start_worker()
        lab.await_growth()
        for number in range(kills):
            if number % 4 == 1:  # while it ends in order
                worker.send(signal.SIGTERM)
            pause(pick, 0.3 if number % 4 == 1 else 1.5)
            kill(worker)
            if number % 4 == 2:  # while it starts and loads
                worker = lab.start_worker()
                pause(pick, 6.0)
                kill(worker)
            worker = lab.start_worker()
            back.append(lab.await_growth())
        count = lab.check(feed)
        stop_worker(worker)
        assert lab.verdict(lab.expected(feed)) == count
    print(f"\n{kills} kills: {count} events, each once; back after {max(back):.1f} s at most")


@pytest.mark.parametrize("full", SIZES)
def test_broker_killed_and_started_again(tmp_path: Path, jars_dir: Path, prefix: str, full: bool) -> None:
    data, pick, kills, back = tmp_path / "broker", random.Random(2), 5 if full else 1, []
    info = embedded.start(data, jars_dir=jars_dir)
    try:
        with Lab(tmp_path, info.bootstrap, prefix) as lab:
            feed, worker = started(lab, 2), lab.start_worker()
            for _ in range(kills):
                lab.await_growth()
                pause(pick, 1.0)
                os.kill(info.pid, signal.SIGKILL)
                await_that(lambda: embedded.status(data).state == "died", "the broker's death")
                pause(pick, 8.0)
                info = embedded.start(data, info.port, jars_dir=jars_dir)
                back.append(lab.await_growth())
            count = lab.check(feed)
            stop_worker(worker)
            said = list(worker.tail)
            assert any("waiting" in line or "beginning again" in line for line in said), said
            assert any("ready, 6 partitions" in line for line in said), said
            assert full or len(said) < 20, said  # instead of what its clients try all the while
        print(f"\nbroker killed {kills} times: {count} events, each once; back after {max(back):.1f} s at most")
    finally:
        embedded.stop(data)


def test_a_worker_that_nobody_listens_to_goes_on_and_ends(tmp_path: Path, jars_dir: Path, prefix: str) -> None:
    data = tmp_path / "broker"
    info = embedded.start(data, jars_dir=jars_dir)
    try:
        with Lab(tmp_path, info.bootstrap, prefix) as lab:
            feed, command = started(lab, 4), kymo_command("worker", str(lab.recipe), "--bundle", str(lab.bundle))
            worker = subprocess.Popen(command, env=lab.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            assert worker.stdout is not None
            try:
                lab.await_growth()
                worker.stdout.close()  # as when a terminal, or what kept the log, has gone
                os.kill(info.pid, signal.SIGKILL)  # now it has something to say, and begins again
                await_that(lambda: embedded.status(data).state == "died", "the broker's death")
                threading.Event().wait(5.0)
                info = embedded.start(data, info.port, jars_dir=jars_dir)
                lab.await_growth()
                lab.check(feed)
                os.kill(info.pid, signal.SIGKILL)
                threading.Event().wait(8.0)
                worker.terminate()
                assert worker.wait(30.0) in (0, 1)
            finally:
                worker.kill()
    finally:
        embedded.stop(data)


@pytest.mark.parametrize("full", SIZES[1:])  # the short campaign kills workers side by side, too
def test_one_of_two_workers_killed(lab: Lab, full: bool) -> None:
    took = []
    with lab:
        feed, workers = started(lab, 3), [lab.start_worker(), lab.start_worker()]
        for _ in range(5 if full else 1):
            await_both(lab)
            kill(workers.pop(0))
            took.append(lab.await_growth(everywhere=True))
            workers.append(lab.start_worker())
        await_both(lab)
        count = lab.check(feed)
        for worker in workers:
            stop_worker(worker)
    print(f"\n{count} events, each once; taken over after {max(took):.1f} s at most")
    assert max(took) < TAKEOVER_S


@pytest.mark.parametrize("full", SIZES)
def test_one_of_two_workers_stopped_and_continued(lab: Lab, full: bool) -> None:
    stopped_s, took = 30.0 if full else 8.0, []
    with lab:
        feed, workers = started(lab, 4), [lab.start_worker(), lab.start_worker()]
        for worker in workers if full else workers[:1]:
            await_both(lab)
            signal_process(worker, signal.SIGSTOP)
            took.append(lab.await_growth(everywhere=True))
            threading.Event().wait(max(0.0, stopped_s - took[-1]))
            signal_process(worker, signal.SIGCONT)
            lab.await_growth(everywhere=True)
        await_both(lab)
        count = lab.check(feed)
        for worker in workers:
            stop_worker(worker)
    print(f"\n{count} events, each once; taken over after {max(took):.1f} s at most")
    assert max(took) < TAKEOVER_S


def await_both(lab: Lab) -> None:
    """Wait until events come from all partitions, and two workers share them."""
    lab.await_that(lambda: lab.members() == 2, "two workers")
    lab.await_growth(everywhere=True)


@pytest.mark.parametrize("full", SIZES)
def test_messages_that_are_none(lab: Lab, full: bool) -> None:
    number = 10_000 if full else 500
    with lab:
        feed, worker = started(lab, 5), lab.start_worker()
        sent = lab.send_fuzzed(5, number)
        events = lab.check(feed)
        lab.await_that(lambda: sum(lab.ends("rejected").values()) >= number, f"{number} rejected")
        stop_worker(worker)
        rejected = lab.rejected()
    assert rejected.keys() == sent.keys()
    for place, (key, value) in sent.items():
        (came_key, came_value), reason = rejected[place]
        assert (came_key or b"", came_value or b"") == (key or b"", value or b""), place
        assert reason in ChunkError.REASONS
    print(f"\n{number} messages rejected with a reason, {events} events, each once")


FILTERS = """
[[steps]]
step = "filter"
kind = "highpass"
cutoff_hz = 0.5
lag_s = 0.05

[[steps]]
step = "normalise"
"""


@pytest.mark.parametrize("kills", [pytest.param(2, id="short"), pytest.param(30, marks=_LONG, id="full")])
def test_filters_go_on_where_their_worker_was_killed(lab: Lab, tmp_path: Path, kills: int) -> None:
    (tmp_path / "filters").mkdir()
    lab.recipe, lab.bundle = lab_recipe(tmp_path / "filters", steps=FILTERS)
    pick = random.Random(9)
    with lab:
        feed, worker = started(lab, 9), lab.start_worker()
        lab.await_growth()
        for _ in range(kills):
            pause(pick, 3)
            kill(worker)
            worker = lab.start_worker()
            lab.await_growth()
        count = lab.check(feed)
        stop_worker(worker)
        assert lab.verdict(lab.expected(feed)) == count
    assert lab.records("state")
    print(f"\n{kills} kills: {count} events, each once")


STATEFUL = RECIPE.replace("hop_s = 0.08", "hop_s = 0.16").replace(
    'architecture = "spectrogram_cnn"\n', 'architecture = "recurrent"\nstateful = true\n'
)


@pytest.fixture
def stateful_lab(tmp_path: Path, broker: str, prefix: str) -> Lab:
    """A lab whose model is stateful, and pooled behind that."""
    made = Lab(tmp_path, broker, prefix)
    made.recipe.write_text(STATEFUL)
    described = manifest(load_recipe(made.recipe), channels=2, rows=16)
    made.bundle = write_bundle(tmp_path / "stateful", described, {MODEL: leaky_onnx(0, 2, 16)})
    return made


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(1, marks=pytest.mark.timeout(300), id="short"),
        pytest.param(20, marks=[pytest.mark.chaos, pytest.mark.timeout(3600)], id="full"),
    ],
)
def test_stateful_worker_killed_again_and_again(stateful_lab: Lab, kills: int) -> None:
    pick, back = random.Random(3), []
    with stateful_lab:
        feed, worker = Feed(stateful_lab, 3), stateful_lab.start_worker()
        feed.start()
        stateful_lab.await_growth()
        for number in range(kills):
            if number % 4 == 1:  # while it ends in order
                worker.send(signal.SIGTERM)
            threading.Event().wait(pick.uniform(0, 0.3 if number % 4 == 1 else 2))  # a random moment of its work
            kill(worker)
            worker = stateful_lab.start_worker()
            back.append(stateful_lab.await_growth())
        count = stateful_lab.check(feed)
        stateful_lab.await_that(
            lambda: any(stateful_lab.ends("state").values()), "a snapshot"
        )  # sessions that ended have one
        stop_worker(worker)
        assert stateful_lab.verdict(stateful_lab.expected(feed)) == count
    stored = len(stateful_lab.records("state"))
    assert stored > 0
    print(f"\n{kills} kills: {count} events, each once, {stored} snapshots; back after {max(back):.1f} s at most")


@pytest.mark.chaos
def test_four_streams_on_three_topics_whatever_is_killed(tmp_path: Path, jars_dir: Path) -> None:
    verdict = campaign(tmp_path, jars_dir, {"kill": 10, "stop": 1, "broker": 1}, stop_s=10.0)
    print(f"\n{verdict.events} events, each once; decisions: {dict(verdict.decisions)}")
    assert not verdict.wrong, "\n".join(verdict.wrong[:20])
    assert verdict.decisions.keys() >= {"given up", "back", "ends"}
