"""A worker's life in memory: Partition and Session against logs, with crashes anywhere, beside chains that nothing disturbs."""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import note

from kymo.models.serving import sessions
from kymo.models.serving.outputs import Events, Marks
from kymo.models.serving.partition import Limits, Partition, Pending
from kymo.models.serving.snapshots import Floor, Handover, SessionSnapshot
from kymo.processors.chain import Chain
from kymo.processors.intake import Intake
from kymo.processors.steps.conditioning import Filter, Normalise
from kymo.processors.steps.peaks import Peaks, Rate
from kymo.processors.steps.spectrogram import Spectrogram
from kymo.processors.windows import Windows
from kymo.streams.chunk import Chunk, Header, Window, signal_format
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import ChunkError

CHAINS = {
    "overlapping": Chain((Intake(), Windows(4, 2))),
    "abutting": Chain((Intake(), Windows(4, 4))),
    "apart": Chain((Intake(), Windows(3, 5))),
    "bridged": Chain((Intake(bridge=2, fill=4, max_missing=0.5), Windows(6, 3))),
    "spectrogram": Chain((Intake(), Spectrogram(nperseg=4, noverlap=2), Windows(8, 4))),
}
#: Whose memory has no end: only snapshots release what came.
ENDLESS_CHAINS = {
    "filter": Chain((Intake(), Filter(cutoff_hz=1.0), Windows(4, 2))),
    "late": Chain((Intake(bridge=2, fill=4, max_missing=0.5), Filter(kind="highpass", lag_s=0.3), Windows(6, 3))),
    "peaks": Chain((Intake(), Normalise(), Peaks(min_prominence=0.1, reach_s=0.4), Rate(seconds=1.0), Windows(3, 5))),
}
Found = tuple[str, int, str, bytes]
BUNDLE = "lab@1"  # what made all events


def content(window: Window, found: list[Any], memory: int) -> bytes:
    """What a classifier would judge by: the window, and what was found of the `memory` windows before it."""
    own = np.ascontiguousarray(window.data).tobytes() + repr(window.missing).encode()
    found[:] = [*found, hashlib.sha256(own).hexdigest()][-memory - 1 :]
    return own + "".join(found).encode()


def chunk(session: str, first: int, count: int, end: bool = False, stream: str = "imu.left") -> Chunk:
    """Samples that depend on session, stream and index alone."""
    header = Header(session, 0, signal_format(stream, ("x",), 10))
    seed = sum(map(ord, session + stream))
    data = np.sin(seed + np.arange(first, first + count, dtype=np.float64))[:, None].astype(np.float32)
    return Chunk(header, first, data, None, end)


@dataclass
class Log:
    inputs: dict[str, list[Chunk]]
    memory: int = 0
    heads: tuple[str, ...] = ("",)
    large: bool = False  # no snapshot holds a chain's memory
    restless: random.Random | None = None  # what else is done while a batch is taken
    topic_ids: dict[str, str] = field(default_factory=dict)
    visible: dict[str, int] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)
    events: list[Found] = field(default_factory=list)
    state: dict[str, bytes] = field(default_factory=dict)
    commits: dict[str, tuple[int, Floor]] = field(default_factory=dict)

    def left(self) -> Handover:
        """What a new owner reads, as the agent does."""
        floors = [self.commits.get(t, (0, Floor()))[1] for t in self.inputs]
        left = Handover(Floor(min(floor.events for floor in floors)), Floor(len(self.events)))
        for session, index, head, _ in self.events[left.start.events :]:
            left.published.setdefault(session, Marks())[index, head] = BUNDLE
        left.topic_ids = dict(self.topic_ids)
        left.snapshots = {name: SessionSnapshot.decode(raw) for name, raw in self.state.items()}
        left.first_offset = {t: self.first.get(t, 0) for t in self.inputs}
        left.next_offset = {t: max(first, self.commits.get(t, (0, 0))[0]) for t, first in left.first_offset.items()}
        left.input_end = {t: self.visible.get(t, 0) for t in self.inputs}
        return left


def record(offset: int, key: bytes, value: bytes | None) -> SimpleNamespace:
    return SimpleNamespace(offset=offset, key=key, value=value, timestamp=0)


def refuse(rejected: SimpleNamespace, error: ChunkError) -> None:
    raise error


class Life:
    """A worker between two crashes: reads, publishes, hears acknowledgements, commits, in any order."""

    kind = Partition

    def __init__(self, log: Log, chain: Chain, clock: list[float], limits: Limits) -> None:
        self.log = log
        self.codec = ChunkCodec()
        outputs = Events("", Fraction(1), log.memory, log.heads)
        self.partition = self.kind(0, chain, lambda fmt: None, lambda: clock[0], limits, outputs)
        self.prepare()
        self.waiting: deque[Pending] = deque(self.partition.load(log.left()))
        self.judged: deque[tuple[Pending, Found]] = deque()
        self.sent: deque[tuple[Pending, int]] = deque()

    def prepare(self) -> None:
        """What a partition is told before it takes over."""

    def read(self, topic: str, count: int, between: Callable[[], bool] = lambda: True) -> int:
        """Take up to `count` records in one batch; what happens `between` may be a crash, which it tells by False."""
        start = self.partition.next_offset[topic]
        records = self.log.inputs[topic][start : min(start + count, self.log.visible.get(topic, 0))]
        if records:
            self.partition.mark(topic, start)
        encoded = [
            record(offset, item.session.encode(), self.codec.encode(item)) for offset, item in enumerate(records, start)
        ]
        for made in self.partition.take(topic, encoded, refuse):
            self.waiting += made
            if not between():
                return -1
        return len(records)

    def publish(self, count: int) -> None:
        """Classify; have events stored, whose acknowledgements are on the way. It may stop between two of one window."""
        for _ in range(count):
            while self.waiting and not self.judged:
                self._judge(self.waiting.popleft())
            if not self.judged:
                return
            pending, event = self.judged.popleft()
            self.log.events.append(event)
            self.sent.append((pending, len(self.log.events)))

    def _judge(self, pending: Pending) -> None:
        found = content(pending.output, pending.session.memory, self.log.memory)
        if not pending.unacknowledged:
            assert pending.bundle == BUNDLE, (
                "an agent takes it for another bundle's, and forgets what it has found of the session"
            )
            self.partition.acknowledge(pending)
        for event in events_of(pending.output, found, self.log.heads):
            if self.log.heads.index(event[2]) not in pending.published:
                self.judged.append((pending, event))

    def hear(self, count: int) -> None:
        for _ in range(min(count, len(self.sent))):
            pending, end = self.sent.popleft()
            self.partition.acknowledge(pending)
            self.partition.end = Floor(max(self.partition.end.events, end))

    def commit(self, heard_between: int = 0, crash_after: int = 99) -> bool:
        """Store what is due, then commit; acknowledgements may come in between. False if it crashed on the way."""
        due = self.partition.snapshots()
        self.hear(heard_between)
        for session, make in due:
            if not crash_after:
                return False
            crash_after -= 1
            snapshot = None
            if make is None:
                self.log.state.pop(session.name, None)
            else:
                snapshot = make()
                session.large = self.log.large and not snapshot.ended
                if session.large and session.goes_on_from_snapshots:
                    self.partition.put_off(session)
                    continue
                snapshot = snapshot.light() if session.large else snapshot
                self.log.state[session.name] = snapshot.encode()
            self.partition.stored(session, snapshot)
        if not crash_after:
            return False
        for topic, (offset, mark) in self.partition.committable().items():
            before = self.log.commits.get(topic, (0, 0))[0]
            assert offset >= before, f"{topic}: the commit went back from {before} to {offset}"
            self.log.commits[topic] = (offset, mark)
            self.partition.committed(topic, offset)
        return True

    def finish(self) -> None:
        for topic in self.log.inputs:
            while self.read(topic, 50):
                pass
        self.publish(10**6)
        self.hear(10**6)
        self.commit()


def events_of(window: Window, found: bytes, heads: tuple[str, ...]) -> list[Found]:
    """A window's events: what each head says depends on the head, too."""
    return [(window.session, window.start_index, head, found + head.encode()) for head in heads]


def undisturbed(log: Log, chain: Chain) -> list[Found]:
    """By chains alone, without Partition: each session's chunks in their order, of the stream that came first."""
    found: list[Found] = []
    for items in log.inputs.values():
        for name in {c.session for c in items}:
            mine = [c for c in items if c.session == name]
            stage, memory = chain.build(), list[Any]()
            for c in mine:
                if c.stream != mine[0].stream:
                    continue
                windows = stage.push(c) + (stage.flush() if c.end else [])
                found += [e for w in windows for e in events_of(w, content(w, memory, log.memory), log.heads)]
    return sorted(found)


Step = tuple[str, int]
MOVES = ["next"] * 6 + ["gap", "again", "late", "place", "whole", "end"]
STEPS: list[tuple[str, int]] = [
    ("arrive", 10),
    ("read", 8),
    ("read", 3),
    ("publish", 4),
    ("publish", 9),
    ("hear", 4),
    ("hear", 9),
    ("commit", 3),
    ("settle", 1),
    ("settle", 1),
    ("wait", 9),
    ("crash", 1),
    ("crash in commit", 2),
]
LIMITS = [Limits(60.0, 10_000), Limits(5.0, 10_000), Limits(5.0, 3)]


def session(pick: random.Random, name: str) -> list[Chunk]:
    """A recording as it comes: gaps, repetitions, late chunks, end marks, another place of the same kind, all of it again."""
    out: list[Chunk] = []
    at = pick.choice([0, 0, 7])
    for _ in range(pick.randint(1, 14)):
        move, size = pick.choice(MOVES), pick.randint(1, 6)
        at += pick.randint(1, 8) if move == "gap" else 0
        if move in ("next", "gap", "end"):
            out.append(chunk(name, at, size, move == "end"))
            at += size
        elif move == "again" and out:
            out.append(pick.choice(out))
        elif move == "late":
            out += [chunk(name, at + size, 2), chunk(name, at, size)]
            at += size + 2
        elif move == "place":
            out.append(chunk(name, at, size, stream="imu.right"))
        elif move == "whole":
            out += [chunk(name, i, 3, i + 3 >= at) for i in range(0, at, 3)]
    return out


def recorded(pick: random.Random) -> Log:
    """One or two input topics with the chunks of one to three sessions, interleaved."""
    queues = [deque(session(pick, f"s{i}")) for i in range(pick.randint(1, 3))]
    topics = pick.choice([("a",), ("a",), ("a", "b")])
    inputs: dict[str, list[Chunk]] = {topic: [] for topic in topics}
    while live := [i for i, q in enumerate(queues) if q]:
        i = pick.choice(live)
        for _ in range(min(pick.choice([1, 1, 2, 5]), len(queues[i]))):
            inputs[topics[i % len(topics)]].append(queues[i].popleft())
    return Log(inputs)


def act(life: Life, step: Step, clock: list[float], topic: str) -> bool:
    """One step; False if the worker has crashed."""
    name, number = step
    log = life.log
    if name == "arrive":
        log.visible[topic] = min(log.visible.get(topic, 0) + number, len(log.inputs[topic]))
    elif name == "read" and log.restless is not None:
        return read_on_and_off(life, topic, number, log.restless)
    elif name == "read":
        life.read(topic, number)
    elif name == "publish":
        life.publish(number)
    elif name == "hear":
        life.hear(number)
    elif name == "commit":
        life.commit(number)
    elif name == "settle":
        life.publish(99)
        life.hear(99)
        life.commit()
    elif name == "wait":
        clock[0] += number
    elif name == "crash in commit":
        return life.commit(0, number)
    return name != "crash"


def read_on_and_off(life: Life, topic: str, count: int, pick: random.Random) -> bool:
    """A batch, with other things done between its pieces, as the agent does; False if the worker has crashed."""

    def between() -> bool:
        move = pick.random()
        if move < 0.5:
            life.publish(9)
            life.hear(9)
        if move < 0.3:
            life.commit()
        return move < 0.95

    return life.read(topic, count, between) >= 0


def finish(log: Log, chain: Chain, clock: list[float], limits: Limits) -> None:
    """One more life takes all there is; a last one finds nothing to add. Every event is there, none twice, none different."""
    log.visible = {topic: len(items) for topic, items in log.inputs.items()}
    for _ in range(2):
        Life(log, chain, clock, limits).finish()
        assert sorted(log.events) == undisturbed(log, chain)


def campaign(seed: int, chains: dict[str, Chain] = CHAINS) -> None:
    """A random log, worked on in random steps."""
    pick = random.Random(seed)
    memory = random.Random(-seed - 1).choice([0, 0, 1, 3])
    chain, log, limits, clock = chains[pick.choice(sorted(chains))], recorded(pick), pick.choice(LIMITS), [0.0]
    log.memory = memory
    log.heads = random.Random(-seed - 2).choice([("",), ("",), ("", "a"), ("", "a", "b")])
    log.large = random.Random(-seed - 3).random() < 0.3
    restless = random.Random(-seed - 9)
    log.restless = restless if restless.random() < 0.5 else None
    samples = 2 if log.restless else sessions.SAMPLES  # of a piece
    if pick.random() < 0.5:
        log.visible = {topic: len(items) for topic, items in log.inputs.items()}
    with mock.patch.object(sessions, "SAMPLES", samples):
        life = Life(log, chain, clock, limits)
        for _ in range(pick.randint(1, 60)):
            name, most = pick.choice(STEPS)
            step, topic = (name, pick.randint(0 if "commit" in name else 1, most)), pick.choice(sorted(log.inputs))
            note(f"{step} {topic}")
            if not act(life, step, clock, topic):
                life = Life(log, chain, clock, limits)
        finish(log, chain, clock, limits)


def lives(log: Log, name: str = "abutting", limits: Limits | None = None) -> Iterator[Life]:
    """One life after another, each begun where the last one crashed; everything is visible."""
    log.visible = {topic: len(items) for topic, items in log.inputs.items()}
    clock = [0.0]
    while True:
        yield Life(log, CHAINS[name], clock, limits or Limits())


def settle(life: Life, topic: str, count: int) -> None:
    life.read(topic, count)
    life.publish(99)
    life.hear(99)
    life.commit()
