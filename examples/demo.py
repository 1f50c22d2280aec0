"""``kymo demo``. In: BasicMotions' 40 test recordings. Out: their labelled events, and a check that all came once.

It has a broker, topics, a worker and a run folder of its own, in a temporary folder that is gone afterwards.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from kymo.deploy.children import ENDING, Child, at_end_signals, stop
from kymo.examples.stage import (
    SentChunks,
    adopt,
    compare,
    complaints,
    died,
    expected_ids,
    latency,
    live_events,
    own_broker,
    verb,
)
from kymo.streams.events import Event
from kymo.streams.settings import Settings
from kymo.streams.topics import Names
from kymo.streams.words import NS

if TYPE_CHECKING:
    from kymo.models.bundle import Bundle
    from kymo.processors.recipe.load import Recipe
    from kymo.streams.recording import Recording

RECIPE = "basicmotions"
DATA = "basicmotions:test"
READY_TIMEOUT_S = 60.0
POLL_S = 0.05
CHUNK_MS = 500  # five samples, two messages a second and device


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and a closed terminal end the demo as Ctrl-C does: everything is cleared away."""

    def interrupt(*_: object) -> None:
        for number in ENDING:  # clearing away takes seconds; a second Ctrl-C must not break it off
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    with at_end_signals(interrupt):
        yield


def run_demo(speed: float, screen: Screen, *, keep: bool = False) -> dict[str, Any]:
    """The whole demo; leaves nothing running and no file, unless told to keep the broker."""
    started = time.perf_counter()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(Task.load, Settings.from_env().home)  # takes a processor while Kafka starts on another
        with own_broker("demo", lambda home: screen.step(f"starting Kafka in {home}"), keep=keep) as settings:
            task = loading.result()
            adopt(settings)
            trip = Trip(task, settings, speed, screen)
            trip.online()
            screen.step("reading the topics back, and classifying the same recordings without a broker")
            result = trip.judge()
            result["seconds"]["total"] = round(time.perf_counter() - started, 2)
            if keep:
                result["broker"] = {"address": settings.brokers, "data_dir": str((settings.home / "broker").absolute())}
            return result


@dataclass(frozen=True)
class Task:
    """What is classified, and what must come of it."""

    recipe: Recipe
    bundle: Bundle
    recordings: dict[str, Recording]
    expected: list[str]

    @classmethod
    def load(cls, home: Path) -> Task:
        """Recipe, its bundle (the user's own, else the one that ships) and the recordings."""
        from kymo.models.bundle import load_bundle
        from kymo.processors.recipe.load import INSTALLED, load_recipe
        from kymo.streams.readers import read

        recipe = load_recipe(str(INSTALLED / f"{RECIPE}.toml"))
        bundle = load_bundle(RECIPE, home)
        bundle.check(recipe)
        recordings = {recording.session: recording for recording in read([DATA], recipe.read_options())}
        return cls(recipe, bundle, recordings, expected_ids(recordings.values(), recipe))


class Trip:
    """The recordings' way through Kafka and back: first :meth:`online`, then :meth:`judge`."""

    def __init__(self, task: Task, settings: Settings, speed: float, screen: Screen) -> None:
        self.task, self.settings, self.speed, self.screen = task, settings, speed, screen
        self.seconds: dict[str, float] = {}
        self.arrived_ms: dict[str, float] = {}
        self.speed_reached = 0.0

    def online(self) -> None:
        """Worker, replay, events; the worker has drained and ended when this returns."""
        from kymo.streams.kafka.admin import ensure_topics

        ensure_topics(self.settings, Names(self.settings.prefix))
        recipe = str(self.task.recipe.path)
        worker = verb("worker", recipe, "--bundle", str(self.task.bundle.path))
        pace = ("--speed", f"{self.speed:g}", "--chunk-ms", str(CHUNK_MS))
        replay = verb("replay", DATA, "--recipe", recipe, *pace, "--json")
        try:
            with self._timed("worker_ready"):
                self._start(worker)
            with self._timed("replay_and_events"):
                self.screen.step(f"replaying {len(self.task.recordings)} recordings at {self.speed:g} times their pace")
                replay.start()
                for event in live_events(self.settings, worker, replay, len(self.task.expected)):
                    self._show(event, time.time_ns() / 1e6)
        finally:
            # Only when the worker has ended is it certain that no event comes twice.
            killed = stop([worker, replay])
        if killed or worker.status:
            raise died(worker, "could not be ended in order")
        self.speed_reached = json.loads(replay.tail[-1])["reached_speed"]

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 2)

    def _start(self, worker: Child) -> None:
        from kymo.deploy.metrics_server import find_server, is_ready

        self.screen.step("starting a worker")
        worker.start()
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not ((server := find_server(self.settings.home, "worker", worker.pid)) and is_ready(server)):
            if worker.wait(POLL_S) is not None:
                raise died(worker, "ended while it started")
            if time.monotonic() > deadline:
                raise died(worker, f"was not ready after {READY_TIMEOUT_S:g} s")

    def _show(self, event: Event, arrived_ms: float) -> None:
        if event.id in self.arrived_ms:
            return  # the judgement, not the display, counts what comes twice
        self.arrived_ms[event.id] = arrived_ms
        recording, share = self.task.recordings[event.session], self.task.recipe.labels.min_share
        self.screen.event(event, recording.label_of(event.start_ns, event.end_ns, share), recording.start_ns)

    def judge(self) -> dict[str, Any]:
        """Read the topics back, run the same offline, compare."""
        from kymo.models.evaluate import evaluate
        from kymo.models.predict import Classifier
        from kymo.models.run import run

        task, recipe = self.task, self.task.recipe
        sent, records, rejected = self._read_back()
        offline = list(run(recipe, task.recordings.values(), Classifier.for_recipe(task.bundle, recipe)))
        wrong = compare(task.expected, [event for event, _ in records], offline)
        problems = complaints(wrong, len(task.expected)) + self._losses(sent, rejected)
        # Of the offline events: those that came are the same, or the demo complains.
        scores = evaluate(recipe, task.bundle, task.recordings.values())
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
                "speed_requested": self.speed,
                "speed_reached": self.speed_reached,
            },
            "scores": {
                **{name: scores[name] for name in ("accuracy", "n", "window_accuracy", "windows")},
                "unknown": scores["unknown_windows"],
            },
            "offline": {"events": len(offline)},
            "seconds": self.seconds,
            "out": {
                "expected": len(task.expected),
                "events": len(records),
                **{name: len(wrong[name]) for name in ("missing", "repeated", "unexpected", "different")},
            },
            "latency_ms": {
                "consumer": latency(events, length, sent, lambda event: self.arrived_ms.get(event.id)),
                "record": latency(events, length, sent, lambda event: first[event.id][1]),
            },
            "complaints": problems,
        }

    def _losses(self, sent: SentChunks, rejected: int) -> list[str]:
        samples = sum(stream.count for recording in self.task.recordings.values() for stream in recording.streams)
        lines = [f"{rejected} records were rejected"] if rejected else []
        return lines + ([f"{sent.samples} of {samples} samples are in the topics"] if sent.samples != samples else [])

    def _read_back(self) -> tuple[SentChunks, list[tuple[Event, int]], int]:
        """Chunks, events with the time of their record (Unix ms, when the worker sent them), and how many records were rejected."""
        from kymo.streams.codec import ChunkCodec
        from kymo.streams.kafka.read import read_records

        names, codec, sent = Names(self.settings.prefix), ChunkCodec(), SentChunks()
        for record in read_records(self.settings, names.for_stream(self.task.recipe.inputs[0].stream)):
            sent.add(codec.decode(record.value or b""), record.time_ms)
        records = read_records(self.settings, names.of("events"))
        events = [(Event.from_json(record.value or b""), record.time_ms) for record in records]
        return sent, events, sum(1 for _ in read_records(self.settings, names.of("rejected")))


class Screen:
    """Prints as it goes; or, for programs, nothing until the end."""

    def __init__(self, as_json: bool) -> None:
        self._json = as_json
        self._console = Console(highlight=False, soft_wrap=True, quiet=as_json)

    def step(self, text: str) -> None:
        """Say what is being done."""
        self._console.print(Text(text, style="dim"))

    def event(self, event: Event, truth: str | None, start_ns: int) -> None:
        """Show an event, its times counted from its session's start, and whether it is right."""
        right = truth is not None and event.label == truth
        begin, end = ((at - start_ns) / NS for at in (event.start_ns, event.end_ns))
        line = Text(f"{event.session}  {begin:5.1f} to {end:4.1f} s  ")
        line.append(f"{event.label:<10}", style="bold")
        line.append(f"{event.probability:6.1%}  truth {truth or 'unlabelled':<10} ")
        line.append("✓" if right else "✗", style="green" if right else "red")
        self._console.print(line)

    def result(self, result: dict[str, Any]) -> None:
        """Show everything that was found."""
        if self._json:
            print(json.dumps(result, ensure_ascii=False, allow_nan=False))
            return
        self._console.print()
        for name, text in _rows(result):
            self._console.print(Text(f"{name:<10}", style="bold").append(text, style="not bold"))
        self._console.print()
        for line in result["complaints"]:
            self._console.print(Text(f"✗ {line}", style="red"))
        if result["ok"]:
            praise = f"all {result['out']['expected']} events came exactly once, and they equal the offline run's"
            self._console.print(Text(f"✓ {praise}", style="green"))


def _unknown(scores: dict[str, Any]) -> str:
    return f"; {scores['unknown']} said `unknown`, below min_probability" if scores["unknown"] else ""


def _rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    sent, out, accuracies, seconds = result["in"], result["out"], result["scores"], result["seconds"]
    wrong = accuracies["n"] - round(accuracies["accuracy"] * accuracies["n"])
    return [
        ("in", "{sessions} recordings, {samples} samples of {channels} channels in {chunks} chunks".format(**sent)),
        ("pace", f"{sent['speed_requested']:g} times the recorded one asked for, {sent['speed_reached']:.1f} reached"),
        (
            "out",
            f"{out['events']} events of {out['expected']} windows, {out['repeated']} twice, {out['missing']} missing",
        ),
        ("accuracy", f"{accuracies['accuracy']:.1%} of {accuracies['n']} recordings ({wrong} wrong)"),
        (
            "",
            f"{accuracies['window_accuracy']:.1%} of {accuracies['windows']} windows, by their most probable class{_unknown(accuracies)}",
        ),
        (
            "latency",
            _latency(result["latency_ms"]["consumer"], "from a window's last chunk to its event in a consumer"),
        ),
        ("", _latency(result["latency_ms"]["record"], "from a window's last chunk to its event's record")),
        ("offline", f"{result['offline']['events']} events, {out['different']} of the online ones differ"),
        ("model", result["bundle"]),
        ("time", ", ".join(f"{name.replace('_', ' ')} {value:.1f} s" for name, value in seconds.items())),
    ]


def _latency(percentiles: dict[str, float] | None, span: str) -> str:
    if percentiles is None:
        return f"none measured, {span}"
    return f"p50 {percentiles['p50']:.1f}, p95 {percentiles['p95']:.1f}, p99 {percentiles['p99']:.1f} ms, {span}"
