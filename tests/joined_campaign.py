"""Kills on a real broker, of a recipe that joins four streams on three topics. In: how often, a seed. Out: what is wrong.

python tests/joined_campaign.py --kills 50 --stops 1 --broker-kills 3 --seed 1

Streams come late, by less and by more than the others wait; each session's die and come back, with what they have missed or without; some
sessions end without one of their end marks. Each window must be published once, and be that of all that stands in the topics, joined
with what was decided.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from fault_lab import Lab, await_that, kill, signal_process, stop_worker
from recipes_made import toml
from tiny_models import linear_onnx, manifest

from kymo.deploy import broker as embedded
from kymo.models.bundle import load_bundle
from kymo.models.predict import Classifier, Predictor
from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.models.serving.handover import LIFE, life_of
from kymo.models.serving.joined import decisions_from_json
from kymo.processors.join import Decision, JoinStage
from kymo.processors.recipe.load import load_recipe
from kymo.streams.chunk import Chunk, Header, signal_format
from kymo.streams.codec import ChunkCodec
from kymo.streams.kafka.publish import Publisher
from kymo.streams.settings import Settings
from kymo.streams.topics import TOPIC_OF_KIND

LATENESS_S, IDLE_S = 3.0, 8.0
#: By stream: channels, samples a second, how it is put onto the ticks.
STREAMS = {
    "eda": (("eda",), 4, "linear"),
    "bvp": (("bvp",), 64, "mean"),
    "imu": (("x", "y"), 32, "linear"),
    "pose": (("u", "v"), 16, "nearest"),
}
#: How long chunks of a stream are on their way, s.
DELAYS = (0.0, 0.1, 0.3, 1.5, LATENESS_S + 2)
#: How long a stream that dies is away: less than it is waited for, less than it is expected back, longer.
OUTAGES = (1.5, LATENESS_S + 2, IDLE_S + 6)
LIFE_S = 45.0  # of a session


def recipe_of() -> str:
    inputs = [
        {"stream": name, "rate_hz": rate, "channels": list(channels), "sample": sample, "required": False}
        | {"lateness_s": LATENESS_S, "idle_s": IDLE_S}
        for name, (channels, rate, sample) in STREAMS.items()
    ]
    tables = {"input": inputs, "join": {"rate_hz": 4, "grid": "eda"}, "window": {"length_s": 4, "hop_s": 1}}
    tables |= {"window.steps": [{"step": "mask"}], "model": {"architecture": "spectrogram_cnn"}}
    return 'name = "lab"\n' + toml(tables)


@dataclass
class Source:
    """One stream of a session, as it is recorded and as it comes."""

    session: str
    stream: str
    pick: random.Random
    began_s: float
    at: int = 0
    away: tuple[float, float] = (0.0, 0.0)  # seconds of the session
    keeps: bool = True  # whether what is recorded while it is away comes afterwards

    def __post_init__(self) -> None:
        channels, self.rate, _ = STREAMS[self.stream]
        self.header = Header(self.session, 10**18, signal_format(self.stream, channels, self.rate))
        self.delay_s, self.keeps = self.pick.choice(DELAYS), self.pick.random() < 0.5
        if self.pick.random() < 0.8:
            start = self.pick.choice([0.0, self.pick.uniform(0, LIFE_S)])
            self.away = (start, start + self.pick.choice(OUTAGES))

    def until(self, now_s: float) -> Iterator[tuple[float, Chunk]]:
        """What is recorded up to now, with when it comes."""
        every = max(1, self.rate // 8)
        while (self.at + every) / self.rate <= now_s - self.began_s:
            data = np.random.default_rng(self.at).normal(0, 1, (every, len(self.header.format.channels)))
            chunk = Chunk(self.header, self.at, data.astype(np.float32))
            self.at += every
            recorded_s, (gone_s, back_s) = self.at / self.rate, self.away
            is_away = gone_s <= recorded_s < back_s
            if not is_away or self.keeps:
                yield self.began_s + (back_s if is_away else recorded_s) + self.delay_s, chunk

    def end(self) -> Chunk:
        channels = len(self.header.format.channels)
        return Chunk(self.header, self.at, np.empty((0, channels), np.float32), None, True)


class JoinedFeed(threading.Thread):
    """Sends sessions until told to end."""

    def __init__(self, lab: JoinedFaultLab, seed: int) -> None:
        super().__init__(name="feed", daemon=True)
        self.lab, self.pick, self.failure = lab, random.Random(seed), ""
        self._codec, self._number = ChunkCodec(), itertools.count()
        self._due: list[tuple[float, int, Chunk]] = []
        self._live: dict[str, list[Source]] = {}
        self._last_s: dict[str, float] = {}  # by session and stream, when its last chunk comes: in order

    def run(self) -> None:
        try:
            with Publisher(self.lab.settings, self.lab.names) as publisher:
                for name in self.lab.session_names():
                    self._begin(name)
                while not self.lab.over.wait(0.05):
                    self._record(time.monotonic())
                    self._send(publisher, time.monotonic())
                for name in list(self._live):
                    self._end(name, time.monotonic())
                self._send(publisher, float("inf"))
                publisher.flush(120.0)
        except BaseException as error:
            self.failure = repr(error)

    def _begin(self, name: str) -> None:
        began_s = time.monotonic() - self.pick.uniform(0, LIFE_S / 2)
        self._live[name] = [Source(name, s, random.Random(self.pick.random()), began_s) for s in STREAMS]

    def _record(self, now_s: float) -> None:
        for name, sources in list(self._live.items()):
            for source in sources:
                for at_s, chunk in source.until(now_s):
                    self._come(source, at_s, chunk)
            if now_s - sources[0].began_s > LIFE_S:
                self._end(name, now_s)
                self._begin(self.lab.next_name(name))

    def _come(self, source: Source, at_s: float, chunk: Chunk) -> None:
        key = f"{source.session} {source.stream}"
        self._last_s[key] = max(at_s, self._last_s.get(key, 0.0))
        heapq.heappush(self._due, (self._last_s[key], next(self._number), chunk))

    def _end(self, name: str, now_s: float) -> None:
        sources = self._live.pop(name)
        silent = self.pick.choice(sources) if self.pick.random() < 0.3 else None
        for source in sources:
            if source is not silent:
                self._come(source, now_s + source.delay_s, source.end())

    def _send(self, publisher: Publisher, now_s: float) -> None:
        while self._due and self._due[0][0] <= now_s:
            chunk = heapq.heappop(self._due)[2]
            topic = TOPIC_OF_KIND.get(chunk.stream, "sensor")
            publisher.send(topic, chunk.session, self._codec.encode(chunk))

    def end(self) -> None:
        """End all sessions; returns when all is acknowledged."""
        self.lab.over.set()
        self.join(240.0)
        assert not self.is_alive()
        assert not self.failure, self.failure


@dataclass
class Verdict:
    """What must be there, and what is wrong."""

    events: int = 0
    decisions: Counter[str] = field(default_factory=Counter)  # by kind
    open: int = 0  # sessions of which some inputs have ended and others neither came nor were decided on
    wrong: list[str] = field(default_factory=list)
    missing: int = 0


class JoinedFaultLab(Lab):
    """A lab whose recipe joins four streams."""

    def __init__(self, folder: Path, brokers: str, prefix: str) -> None:
        super().__init__(folder, brokers, prefix, partitions=3)
        self.recipe.write_text(recipe_of())
        recipe = load_recipe(self.recipe)
        (channels,) = recipe.output_format().shape
        model = {"input": "windows", "output": "logits", "dtype": "float32", "layout": "channels_first"}
        described = manifest(
            recipe="lab", chain=recipe.chain.to_json(), model=model | {"shape": [channels, recipe.window_length]}
        )
        weights = np.random.default_rng(0).normal(0, 1, (3, channels))
        onnx = linear_onnx(weights, channels, recipe.window_length)
        self.bundle = write_bundle(folder / "joined", described, {MODEL: onnx})

    def decided(self) -> dict[str, list[Decision]]:
        """By session, what was decided, as the newest life has stored it."""
        chain, words = load_recipe(self.recipe).chain, dict[str, tuple[Any, list[Decision]]]()
        for record in self.records("state"):
            kind, _, session = (record.key or b"").decode().partition("\n")
            if kind.endswith(".decisions") and record.value is not None:
                word = (*life_of(dict(record.headers).get(LIFE, b"")), record.offset)
                if session not in words or words[session][0] < word:
                    words[session] = word, decisions_from_json(record.value, chain)
        return {session: decisions for session, (_, decisions) in words.items()}

    def judge(self) -> Verdict:
        """Compare the events with what stands in the other topics."""
        verdict, recipe, codec = Verdict(), load_recipe(self.recipe), ChunkCodec()
        predictor = Predictor(Classifier.for_recipe(load_bundle(str(self.bundle)), recipe), recipe)
        decided, came = self.decided(), dict[str, list[Chunk]]()
        for topic in sorted({TOPIC_OF_KIND.get(stream, "sensor") for stream in STREAMS}):
            for record in self.records(topic):
                chunk = codec.decode(record.value or b"")
                came.setdefault(chunk.session, []).append(chunk)
        expected = dict[str, dict[str, Any]]()
        for session, chunks in came.items():
            stage, memory = predictor.bundle.chain.build(), list[Any]()
            windows = [w for decision in decided.get(session, ()) for w in stage.decide(decision)]
            windows += [w for chunk in chunks for w in stage.push(chunk)]
            entry = stage.stages[0]
            assert isinstance(entry, JoinStage)
            if entry.over:
                windows += stage.flush()
            verdict.open += 0 < len(entry.waits()) < len(STREAMS) or any(wait.behind for wait in entry.waits())
            for events in predictor.predict(windows, [memory] * len(windows)):
                expected |= {event.id: event.to_dict() | {"emitted_ns": 0} for event in events}
        for decisions in decided.values():
            verdict.decisions.update(kind_of(decision) for decision in decisions)
        events = [json.loads(record.value or b"") | {"emitted_ns": 0} for record in self.records("events")]
        times = Counter(event["id"] for event in events)
        verdict.events, verdict.missing = len(expected), len(expected.keys() - times.keys())
        verdict.wrong += [f"{name} is there {count} times" for name, count in times.items() if count > 1]
        verdict.wrong += [f"{name} was not expected" for name in times.keys() - expected.keys()]
        for event in events:
            wanted = expected.get(event["id"], event)
            if event != wanted:
                apart = {name: (value, wanted.get(name)) for name, value in event.items() if value != wanted.get(name)}
                verdict.wrong.append(f"{event['id']} (came, expected): {apart}")
        return verdict


def kind_of(decision: Decision) -> str:
    if decision.stop is not None:
        return "back"
    return "ends" if decision.ends else "given up" if decision.behind else "idle"


def campaign(folder: Path, jars: Path, counts: dict[str, int], seed: int = 1, stop_s: float = 30.0) -> Verdict:
    """Hurt a worker of a lab by faults of each kind: ``kill``, ``stop``, ``broker``."""
    pick, data = random.Random(seed), folder / "broker"
    faults = [fault for fault, count in counts.items() for _ in range(count)]
    pick.shuffle(faults)
    info = embedded.start(data, jars_dir=jars)
    with ExitStack() as stack:
        stack.callback(embedded.stop, data)
        lab = stack.enter_context(JoinedFaultLab(folder, info.bootstrap, f"joined{seed}"))
        feed, worker, started_s = JoinedFeed(lab, seed), lab.start_worker(), time.monotonic()
        feed.start()
        lab.await_growth()
        for number, fault in enumerate(faults, 1):
            # A random moment of its work, at times late enough to give up an input, or to take it back.
            threading.Event().wait(pick.uniform(*pick.choice([(0.0, 3.0), (LATENESS_S, 2 * IDLE_S)])))
            if fault == "kill":
                kill(worker)
                worker = lab.start_worker()
            elif fault == "stop":
                signal_process(worker, signal.SIGSTOP)
                threading.Event().wait(stop_s)
                signal_process(worker, signal.SIGCONT)
            else:
                os.kill(info.pid, signal.SIGKILL)
                await_that(lambda: embedded.status(data).state == "died", "the broker's death")
                threading.Event().wait(pick.uniform(0, 6.0))
                info = embedded.start(data, info.port, jars_dir=jars, timeout_s=180)
            took_s = lab.await_growth()
            print(f"{time.monotonic() - started_s:7.1f} s: {number}, {fault}: back after {took_s:.1f} s", flush=True)
        feed.end()
        verdict = settled(lab)
        stop_worker(worker)
        after = lab.judge()
        if not verdict.wrong and after != verdict:
            after.wrong.append(f"it was not over: {verdict} before the worker's end")
    return after


def settled(lab: JoinedFaultLab, patience_s: float = 180.0) -> Verdict:
    """The verdict once nothing is missing and nobody is waited for any more, or that takes too long."""
    until_s = time.monotonic() + patience_s
    while (verdict := lab.judge()).missing or verdict.open:
        if time.monotonic() > until_s or verdict.wrong:
            verdict.wrong.append(f"{verdict.missing} events are missing, {verdict.open} sessions wait\n{lab.said()}")
            return verdict
        threading.Event().wait(2.0)
    return verdict


@click.command()
@click.option("--kills", default=50)
@click.option("--stops", default=1, help="Times that the worker is stopped for 30 s.")
@click.option("--broker-kills", default=3)
@click.option("--seed", default=1)
def main(kills: int, stops: int, broker_kills: int, seed: int) -> None:
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kymo-joined-") as folder:
        counts = {"kill": kills, "stop": stops, "broker": broker_kills}
        verdict = campaign(Path(folder), Settings.from_env().home / "kafka", counts, seed)
    print(*verdict.wrong[:20], sep="\n")
    decisions = ", ".join(f"{kind} {count}" for kind, count in sorted(verdict.decisions.items()))
    print(
        f"{kills} kills, {stops} stops, {broker_kills} of the broker: {verdict.events} events, {len(verdict.wrong)} wrong; "
        f"decisions: {decisions}; {time.monotonic() - started_s:.0f} s"
    )
    raise SystemExit(1 if verdict.wrong else 0)


if __name__ == "__main__":
    main()
