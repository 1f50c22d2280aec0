"""``kymo demo``. In: BasicMotions' 40 test recordings. Out: their labelled events, and a check that all came once.

It has a broker, topics, a worker and a run folder of its own, in a temporary folder that is gone afterwards.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from kymo.deploy.children import ENDING, Child, at_end_signals
from kymo.examples.stage import (
    SentChunks,
    compare,
    complaints,
    died,
    ended_after,
    expected_ids,
    latency,
    live_events,
    own_broker,
    verb,
)
from kymo.streams.events import Event
from kymo.streams.settings import Settings
from kymo.streams.topics import Names

if TYPE_CHECKING:
    from kymo.models.bundle import Bundle
    from kymo.processors.recipe.load import Recipe
    from kymo.streams.recording import Recording

RECIPE = "basicmotions"
DATA = "basicmotions:test"
READY_TIMEOUT_S = 60.0
POLL_S = 0.05
CHUNK_MS = 500  # five samples, two messages a second and device
Say = Callable[[str], None]
#: Shows an event, with its truth and its session's start.
Show = Callable[[Event, str | None, int], None]


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and a closed terminal end the demo as Ctrl-C does: everything is cleared away."""

    def interrupt(*_: object) -> None:
        for number in ENDING:  # clearing away takes seconds; a second Ctrl-C must not break it off
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    with at_end_signals(interrupt):
        yield


def run_demo(speed: float, say: Say, show: Show, *, keep: bool = False) -> dict[str, Any]:
    """The whole demo; leaves nothing running and no file, unless told to keep the broker."""
    started = time.perf_counter()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load, Settings.from_env())  # takes a processor while Kafka starts on another
        with own_broker("demo", lambda home: say(f"starting Kafka in {home}"), keep=keep) as settings:
            task = loading.result()
            trip = online(task, settings, speed, say, show)
            say("reading the topics back, and classifying the same recordings without a broker")
            result = judge(task, settings, trip)
            result["in"]["speed_requested"] = speed
            result["seconds"]["total"] = round(time.perf_counter() - started, 2)
            if keep:
                result["broker"] = {"address": settings.brokers, "data_dir": str((settings.home / "broker").absolute())}
            return result


class Task(NamedTuple):
    """What is classified, and what must come of it."""

    recipe: Recipe
    bundle: Bundle
    recordings: dict[str, Recording]
    expected: list[str]


class Trip(NamedTuple):
    """What was seen of the recordings' way through Kafka and back."""

    arrived_ms: dict[str, float]  # by event
    seconds: dict[str, float]  # by what took them
    speed_reached: float


def load(settings: Settings) -> Task:
    """Recipe, its bundle (the user's own, else the one that ships) and the recordings."""
    from kymo.models.bundle import load_bundle
    from kymo.processors.recipe.load import INSTALLED, load_recipe
    from kymo.streams.readers import read

    recipe = load_recipe(str(INSTALLED / f"{RECIPE}.toml"))
    bundle = load_bundle(RECIPE, settings.home)
    bundle.check(recipe)
    recordings = {recording.session: recording for recording in read([DATA], recipe.read_options())}
    return Task(recipe, bundle, recordings, expected_ids(recordings.values(), recipe))


def online(task: Task, settings: Settings, speed: float, say: Say, show: Show) -> Trip:
    """Worker, replay, events; the worker has drained and ended when this returns."""
    recipe, arrived_ms = str(task.recipe.path), dict[str, float]()
    worker = verb("worker", recipe, "--bundle", str(task.bundle.path))
    pace = ("--speed", f"{speed:g}", "--chunk-ms", str(CHUNK_MS))
    replay = verb("replay", DATA, "--recipe", recipe, *pace, "--json")
    with ended_after(worker, replay):
        began = time.perf_counter()
        say("starting a worker")
        worker.start()
        _wait_for(worker, settings)
        ready = time.perf_counter()
        say(f"replaying {len(task.recordings)} recordings at {speed:g} times their pace")
        replay.start()
        for event in live_events(settings, worker, replay, len(task.expected)):
            if event.id not in arrived_ms:  # the judgement, not the display, counts what comes twice
                arrived_ms[event.id] = time.time_ns() / 1e6
                recording, share = task.recordings[event.session], task.recipe.labels.min_share
                show(event, recording.label_of(event.start_ns, event.end_ns, share), recording.start_ns)
        seconds = {"worker_ready": ready - began, "replay_and_events": time.perf_counter() - ready}
    seconds = {name: round(value, 2) for name, value in seconds.items()}
    return Trip(arrived_ms, seconds, json.loads(replay.tail[-1])["reached_speed"])


def _wait_for(worker: Child, settings: Settings) -> None:
    from kymo.deploy.metrics_server import find_server, is_ready

    deadline = time.monotonic() + READY_TIMEOUT_S
    while not ((server := find_server(settings.home, "worker", worker.pid)) and is_ready(server)):
        if worker.wait(POLL_S) is not None:
            raise died(worker, "ended while it started")
        if time.monotonic() > deadline:
            raise died(worker, f"was not ready after {READY_TIMEOUT_S:g} s")


def judge(task: Task, settings: Settings, trip: Trip) -> dict[str, Any]:
    """Read the topics back, run the same offline, compare."""
    from kymo.models.evaluate import evaluate
    from kymo.models.predict import Classifier
    from kymo.models.run import run

    recipe, recordings = task.recipe, task.recordings.values()
    sent, records, rejected = _read_back(settings, recipe)
    offline = list(run(recipe, recordings, Classifier.for_recipe(task.bundle, recipe)))
    wrong = compare(task.expected, [event for event, _ in records], offline)
    problems = complaints(wrong, len(task.expected)) + ([f"{rejected} records were rejected"] if rejected else [])
    samples = sum(stream.count for recording in recordings for stream in recording.streams)
    if sent.samples != samples:
        problems.append(f"{sent.samples} of {samples} samples are in the topics")
    # Of the offline events: those that came are the same, or the demo complains.
    scores = evaluate(recipe, task.bundle, recordings)
    first = {event.id: (event, time_ms) for event, time_ms in reversed(records)}
    events, length = [event for event, _ in first.values()], recipe.window_length
    return {
        "ok": not problems,
        "bundle": task.bundle.id,
        "in": {
            "sessions": sent.sessions,
            "samples": sent.samples,
            "channels": len(recipe.inputs[0].channels),
            "chunks": sent.chunks,
            "rejected": rejected,
            "speed_reached": trip.speed_reached,
        },
        "scores": {
            **{name: scores[name] for name in ("accuracy", "n", "window_accuracy", "windows")},
            "unknown": scores["unknown_windows"],
        },
        "offline": {"events": len(offline)},
        "seconds": trip.seconds,
        "out": {
            "expected": len(task.expected),
            "events": len(records),
            **{name: len(wrong[name]) for name in ("missing", "repeated", "unexpected", "different")},
        },
        "latency_ms": {
            "consumer": latency(events, length, sent, lambda event: trip.arrived_ms.get(event.id)),
            "record": latency(events, length, sent, lambda event: first[event.id][1]),
        },
        "complaints": problems,
    }


def _read_back(settings: Settings, recipe: Recipe) -> tuple[SentChunks, list[tuple[Event, int]], int]:
    """Chunks, events with the time of their record (Unix ms, when the worker sent them), and how many records were rejected."""
    from kymo.streams.codec import ChunkCodec
    from kymo.streams.kafka.read import read_records

    names, codec, sent = Names(settings.prefix), ChunkCodec(), SentChunks()
    for record in read_records(settings, names.for_stream(recipe.inputs[0].stream)):
        sent.add(codec.decode(record.value or b""), record.timestamp)
    records = read_records(settings, names.of("events"))
    events = [(Event.from_json(record.value or b""), record.timestamp) for record in records]
    return sent, events, sum(1 for _ in read_records(settings, names.of("rejected")))
