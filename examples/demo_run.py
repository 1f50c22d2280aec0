"""One run of the demo. In: a broker's settings. Out: events as they come, then what was measured and what is wrong."""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.children import Child, kymo_command, kymo_environment, stop
from examples import demo_check as checks
from examples.demo_show import Screen, summary
from streams.errors import KymoError
from streams.events import Event
from streams.replay.pacing import QUIT, ReplayIO
from streams.replay.schedule import ReplayPlan
from streams.settings import Settings
from streams.topics import Names

if TYPE_CHECKING:
    from models.bundle import Bundle
    from processors.recipe.load import Recipe
    from streams.recording import Recording
    from streams.replay.replay import ReplaySummary

RECIPE = "basicmotions"
DATA = "basicmotions:test"
READY_TIMEOUT_S = 60.0
EVENTS_TIMEOUT_S = 20.0  # without a new event, once everything is sent
FLUSH_S = 30.0  # how long the last acknowledgements may take
POLL_S = 0.05
CHUNK_MS = 500  # five samples, two messages a second and device


@dataclasses.dataclass(frozen=True)
class Task:
    """What is classified, and what must come of it."""

    recipe: Recipe
    bundle: Bundle
    recordings: dict[str, Recording]
    expected: list[str]

    @classmethod
    def load(cls, home: Path) -> Task:
        """Recipe, its bundle (the user's own, else the one that ships) and the recordings."""
        from models.bundle import load_bundle
        from processors.recipe.load import INSTALLED, load_recipe
        from streams.readers import read

        recipe = load_recipe(str(INSTALLED / f"{RECIPE}.toml"))
        bundle = load_bundle(RECIPE, home)
        bundle.check(recipe)
        recordings = {recording.session: recording for recording in read([DATA], recipe.read_options())}
        return cls(recipe, bundle, recordings, checks.expected_ids(recordings.values(), recipe))


class Run:
    """One run: first :meth:`online`, then :meth:`judge`."""

    def __init__(self, task: Task, settings: Settings, speed: float, screen: Screen) -> None:
        self.task, self.settings, self.speed, self.screen = task, settings, speed, screen
        self.seconds: dict[str, float] = {}
        self.arrived_ms: dict[str, float] = {}
        self.speed_reached = 0.0

    def online(self) -> None:
        """Worker, replay, events; the worker has drained and ended when this returns."""
        from streams.kafka.admin import ensure_topics

        ensure_topics(self.settings, Names(self.settings.prefix))
        env = kymo_environment(
            {
                "KYMO_BROKERS": self.settings.brokers,
                "KYMO_HOME": str(self.settings.home),
                "KYMO_METRICS_PORT": str(self.settings.metrics_port),
            },
            keep=False,
        )
        bundle = str(self.task.bundle.path)
        worker = Child("worker", kymo_command("worker", str(self.task.recipe.path), "--bundle", bundle), env)
        try:
            self._time("worker_ready", lambda: self._start(worker))
            self._time("replay_and_events", lambda: self._replay(worker))
        finally:
            # Only when the worker has ended is it certain that no event comes twice.
            killed = stop([worker])
        if killed or worker.status:
            raise _died(worker, "could not be ended in order")

    def _time(self, name: str, work: Callable[[], None]) -> None:
        began = time.perf_counter()
        work()
        self.seconds[name] = round(time.perf_counter() - began, 2)

    def _start(self, worker: Child) -> None:
        from deploy.metrics_server import find_server, is_ready

        self.screen.step("starting a worker")
        worker.start()
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not ((server := find_server(self.settings.home, "worker", worker.pid)) and is_ready(server)):
            if worker.wait(POLL_S) is not None:
                raise _died(worker, "ended while it started")
            if time.monotonic() > deadline:
                raise _died(worker, f"was not ready after {READY_TIMEOUT_S:g} s")

    def _replay(self, worker: Child) -> None:
        recordings = list(self.task.recordings.values())
        self.screen.step(f"replaying {len(recordings)} recordings at {self.speed:g} times their pace")
        with _Arrivals(self.settings) as arrivals, _Replay(recordings, self.settings, self.speed) as replay:
            heard = time.monotonic()
            while len(self.arrived_ms) < len(self.task.expected) or replay.runs:
                arrival = arrivals.next(POLL_S)
                if arrival is not None:
                    self._show(*arrival)
                elif worker.status is not None:
                    raise _died(worker, "ended before its time")
                if arrival is not None or replay.runs:
                    heard = time.monotonic()
                elif replay.failed or time.monotonic() - heard > EVENTS_TIMEOUT_S:
                    break
            self.speed_reached = replay.summary().reached_speed

    def _show(self, event: Event, arrived_ms: float) -> None:
        if event.id in self.arrived_ms:
            return  # the judgement, not the display, counts what comes twice
        self.arrived_ms[event.id] = arrived_ms
        recording = self.task.recordings.get(event.session)
        truth = checks.truth_of(event, self.task.recordings, self.task.recipe.labels.min_share)
        self.screen.event(event, truth, recording.start_ns if recording else 0)

    def judge(self) -> dict[str, Any]:
        """Read the topics back, run the same offline, compare."""
        from models.bundle import UNKNOWN
        from models.predict import Classifier
        from models.run import run

        task, recipe = self.task, self.task.recipe
        sent, seen, rejected = self._read_back()
        classifier = Classifier.for_recipe(task.bundle, recipe)
        offline = list(run(recipe, task.recordings.values(), classifier))
        checked = checks.check(task.expected, [found.event for found in seen], offline)
        first = {found.event.id: found for found in reversed(seen)}
        events = [found.event for found in first.values()]
        complaints = checked.complaints() + self._losses(sent, rejected)
        found = checks.scores(events, task.recordings, task.bundle.labels, recipe.labels.min_share)
        length = recipe.window_length
        latencies = {
            "consumer": checks.latency(events, length, sent, lambda event: self.arrived_ms.get(event.id)),
            "record": checks.latency(events, length, sent, lambda event: first[event.id].time_ms),
        }
        given = {
            "bundle": task.bundle.id,
            "in": {
                "sessions": sent.sessions,
                "samples": sent.samples,
                "channels": len(recipe.inputs[0].channels),
                "chunks": sent.chunks,
                "rejected": rejected,
                "speed_requested": self.speed,
                "speed_reached": self.speed_reached,
            },
            "scores": {name: found[name] for name in ("accuracy", "n", "window_accuracy", "windows")}
            | {"unknown": sum(event.label == UNKNOWN and not event.head for event in events)},
            "offline": {"events": len(offline)},
            "seconds": self.seconds,
        }
        return summary(given, checked, latencies, complaints)

    def _losses(self, sent: checks.Sent, rejected: int) -> list[str]:
        there = sum(stream.count for recording in self.task.recordings.values() for stream in recording.streams)
        out = [f"{rejected} records were rejected"] if rejected else []
        return out + ([f"{sent.samples} of {there} samples are in the topics"] if sent.samples != there else [])

    def _read_back(self) -> tuple[checks.Sent, list[checks.Seen], int]:
        from streams.codec import ChunkCodec
        from streams.kafka.read import read_records

        names, codec, sent = Names(self.settings.prefix), ChunkCodec(), checks.Sent()
        for record in read_records(self.settings, names.for_stream(self.task.recipe.inputs[0].stream)):
            sent.add(codec.decode(record.value or b""), record.time_ms)
        events = read_records(self.settings, names.of("events"))
        seen = [checks.Seen(Event.from_json(record.value or b""), record.time_ms) for record in events]
        return sent, seen, sum(1 for _ in read_records(self.settings, names.of("rejected")))


class _Arrivals:
    """A consumer of the events topic in a thread of its own, which notes when each event came."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._stop = settings, threading.Event()
        self._found: queue.SimpleQueue[tuple[Event, float] | KymoError] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, name="events", daemon=True)

    def __enter__(self) -> _Arrivals:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5.0)

    def next(self, timeout_s: float) -> tuple[Event, float] | None:
        """The next event, and the Unix ms at which it came; None if none came within `timeout_s`."""
        try:
            found = self._found.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(found, KymoError):
            raise found
        return found

    def _read(self) -> None:
        from streams.events import read_events

        try:
            for event in read_events(self._settings, follow=True, stop=self._stop.is_set):
                self._found.put((event, time.time_ns() / 1e6))
        except KymoError as error:
            self._found.put(error)


class _Replay:
    """The replay, in a thread of its own: what it needs is loaded here already."""

    def __init__(self, recordings: list[Recording], settings: Settings, speed: float) -> None:
        self._cancelled = threading.Event()
        self._summary: ReplaySummary | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run, args=(recordings, settings, speed), name="replay", daemon=True
        )

    def __enter__(self) -> _Replay:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._cancelled.set()
        self._thread.join(FLUSH_S + 1)

    @property
    def runs(self) -> bool:
        """Whether something may still be sent."""
        return self._thread.is_alive()

    @property
    def failed(self) -> bool:
        """Whether it has ended without having sent all."""
        return not self.runs and (self._summary is None or not self._summary.ok)

    def summary(self) -> ReplaySummary:
        """What it did."""
        if self._error is not None:
            raise self._error
        if self._summary is None or not self._summary.ok:
            raise KymoError(f"the demo's replay failed: {self._summary.error if self._summary else 'it did not end'}")
        return self._summary

    def _run(self, recordings: list[Recording], settings: Settings, speed: float) -> None:
        from streams.replay.replay import replay

        try:
            io = ReplayIO(controls=self._controls, flush_s=FLUSH_S)
            self._summary = replay(recordings, settings, ReplayPlan(speed=speed, chunk_ms=CHUNK_MS), io)
        except BaseException as error:  # raised where the summary is asked for
            self._error = error

    def _controls(self, seconds: float) -> str | None:
        return QUIT if self._cancelled.wait(seconds) else None


def _died(child: Child, what: str) -> KymoError:
    said = " | ".join(list(child.tail)[-3:]) or "it said nothing"
    how = f" ({child.ended()})" if child.status is not None else ""
    return KymoError(f"the demo's {child.name} {what}{how}: {said}; run `kymo doctor`")
