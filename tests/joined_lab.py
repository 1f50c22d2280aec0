"""Sessions of several inputs against logs in memory: outages, decisions, crashes; each window once, as data and decisions say.

A campaign may leave out a rule, to show that it is needed.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import numpy as np
from crash_lab import Found, Life, Log, content, events_of
from hypothesis import currently_in_test_context, note

from kymo.models.serving import joined
from kymo.models.serving.joined import JoinedPartition, JoinedSession, Patience
from kymo.models.serving.operator import Operator
from kymo.models.serving.outputs import Events
from kymo.models.serving.partition import Limits
from kymo.models.serving.snapshots import Handover
from kymo.processors.branch import Branch
from kymo.processors.chain import Chain
from kymo.processors.intake import Intake
from kymo.processors.join import Decision, Join, JoinStage
from kymo.processors.steps.conditioning import Filter
from kymo.processors.windows import Windows
from kymo.streams.chunk import Chunk, Header
from kymo.streams.topics import Names

LATE_S, IDLE_S = 0.5, 5.0
NAMES = Names("t")
MOVES = [
    *["arrive"] * 3,
    *["read"] * 5,
    *("publish", "hear", "commit", "decide", "wait") * 2,
    "crash",
]
#: What each decision is for that is one of a kind: without it somebody waits for ever.
DECISIONS: dict[str, Callable[[Decision], bool]] = {
    "origin": lambda d: d.origin_ns is not None,
    "idle": lambda d: d.stop is None and not (d.behind or d.ends),
    "ends": lambda d: d.ends,
}


def branch(name: str, rate: str, sample: str = "linear") -> Branch:
    return Branch(name, rate, Chain((Intake((name,)),)), sample, reach_ns=700_000_000 * (rate == "0"))


JOINS = [
    Join((branch("a", "10"), branch("b", "10")), "10", "a"),
    Join((branch("a", "10"), branch("b", "4"), branch("c", "20", "mean")), "10", "a"),
    Join((branch("a", "10", "hold"), branch("b", "20", "nearest")), "5", "b"),
]
#: With inputs that are irregular.
SPARSE = [
    Join((branch("a", "10"), branch("t", "0", "count")), "10", "a"),
    Join((branch("t", "0", "hold"), branch("a", "10"), branch("u", "0", "mean")), "5", "a"),
    Join((branch("a", "10"), branch("b", "4"), branch("t", "0", "nearest"), branch("u", "0")), "10", "b"),
]


#: With a branch whose memory has no end, and one that is late.
FILTERED = [
    Join((replace(branch("a", "10"), chain=Chain((Intake(("a",)), spec))), branch("b", "4")), "10", "a")
    for spec in (Filter(cutoff_hz=1.0), Filter(kind="highpass", into=("phasic",), lag_s=0.4))
]


@dataclass
class JoinedLog(Log):
    """What outlives a worker, with what was decided."""

    decisions: dict[str, list[Decision]] = field(default_factory=dict)
    without: str = ""  # the rule that is left out
    topics: dict[str, str] = field(default_factory=dict)  # by stream, where it comes on

    def left(self) -> Handover:
        handover = super().left()
        if self.without != "wake":
            handover.decisions = {name: list(decisions) for name, decisions in self.decisions.items()}
        return handover


class JoinedLife(Life):
    """A worker that decides, too."""

    kind = JoinedPartition
    partition: JoinedPartition

    def __init__(self, log: JoinedLog, chain: Chain, clock: list[float], limits: Limits) -> None:
        self.clock = clock
        self.unstored: list[tuple[str, Decision]] = []
        super().__init__(log, chain, clock, limits)

    def prepare(self) -> None:
        assert isinstance(self.log, JoinedLog)
        self.partition.patience = {s: Patience(topic, LATE_S, IDLE_S) for s, topic in self.log.topics.items()}

    def read(self, topic: str, count: int, between: Any = lambda: True) -> int:
        """Without the rule that wakes them, sessions hear with their next chunk of what was decided since their snapshot."""
        taken = super().read(topic, count, between)
        assert isinstance(self.log, JoinedLog)
        for name, session in self.partition.sessions.items() if self.log.without == "wake" else ():
            assert isinstance(session, JoinedSession)
            for decision in self.log.decisions.get(name, [])[session.decided :]:
                self.waiting += self.partition.decide(session, decision)
        return taken

    def decide(self, crash: bool) -> bool:
        """Store what is to be decided, then hear of it; False if it crashed in between."""
        log, owned = self.log, self.partition
        assert isinstance(log, JoinedLog)
        now_s, topics = owned.to_ask()
        ends = {topic: 0 if log.without == "caught up" else log.visible.get(topic, 0) for topic in topics}
        for session, decision in owned.due({topic: (end, now_s) for topic, end in ends.items()}):
            if log.without == "durable":
                self.unstored.append((session.name, decision))
            else:
                log.decisions.setdefault(session.name, []).append(decision)
            if log.without != "durable" and crash:
                return False
            self.waiting += owned.decide(session, decision)
        return True

    def commit(self, heard_between: int = 0, crash_after: int = 99) -> bool:
        """Store and commit; without the rule that comes first, decisions too."""
        alive = super().commit(heard_between, crash_after)
        assert isinstance(self.log, JoinedLog)
        for name, decision in self.unstored if alive else ():
            self.log.decisions.setdefault(name, []).append(decision)
        self.unstored.clear()
        return alive


def recorded(pick: random.Random, spec: Join) -> tuple[dict[str, list[Chunk]], dict[str, str]]:
    """By topic, the chunks of one to three sessions, and by stream, on which of one to three topics it comes."""
    on = {b.stream: pick.choice([b.stream, b.stream, spec.branches[0].stream]) for b in spec.branches}
    topics: dict[str, list[Chunk]] = {topic: [] for topic in on.values()}
    queues: dict[str, list[deque[Chunk]]] = {topic: [] for topic in topics}
    for number in range(pick.randint(1, 3)):
        seconds = pick.uniform(2, 8)
        for item in spec.branches:
            queues[on[item.stream]].append(deque(stream(pick, f"s{number}", item, seconds)))
    for topic, waiting in queues.items():
        while live := [q for q in waiting if q]:
            queue = pick.choice(live)
            topics[topic] += [queue.popleft() for _ in range(min(len(queue), pick.choice([1, 1, 3])))]
    return topics, on


def stream(pick: random.Random, session: str, item: Branch, seconds: float) -> list[Chunk]:
    """One that may never come, or die, or end without saying so."""
    if pick.random() < 0.1:
        return []
    header = Header(session, pick.choice([0, 0, 30_000_000]), item.raw)
    if item.irregular:
        return sparse(pick, header, seconds)
    rate = float(item.raw.rate)
    count, chunks, at = int(seconds * rate), list[Chunk](), 0
    dies = count if pick.random() < 0.7 else pick.randint(1, count)
    while at < dies:
        size = min(pick.randint(1, 8), dies - at)
        data = np.sin(sum(map(ord, session + item.stream)) + np.arange(at, at + size)).astype(np.float32)[:, None]
        chunks.append(Chunk(header, at, data))
        if pick.random() < 0.05:
            chunks.append(pick.choice(chunks))
        at += size + (pick.randint(1, int(2 * rate)) if pick.random() < 0.1 else 0)
    if pick.random() < (0.8 if dies == count else 0.4):
        chunks.append(Chunk(header, max(at, 1), np.empty((0, 1), np.float32), None, True))
    return chunks


def sparse(pick: random.Random, header: Header, seconds: float) -> list[Chunk]:
    """An irregular one, with progress marks or without."""
    at, now, chunks, dies = 0, 0.0, list[Chunk](), seconds if pick.random() < 0.7 else pick.uniform(0, seconds)
    says = pick.choice([0.0, 0.9, 1.0])
    while (until := now + pick.choice([0.1, 0.5, 1.0])) < dies:
        times = sorted(pick.uniform(now, until) for _ in range(pick.choice([0, 0, 1, 1, 2, 5])))
        data = np.sin(np.arange(at, at + len(times))).astype(np.float32)[:, None]
        mark = round(until * 10**9) if pick.random() < says else None
        if times or mark is not None:
            stamps = np.array([round(time * 10**9) for time in times], np.int64)
            chunks.append(Chunk(header, at, data, stamps, complete_ns=mark))
        if chunks and pick.random() < 0.05:
            chunks.append(pick.choice(chunks))
        at, now = at + len(times), until
    if pick.random() < 0.6:
        chunks.append(Chunk(header, at, np.empty((0, 1), np.float32), np.empty(0, np.int64), True))
    return chunks


def ends(log: JoinedLog, chain: Chain) -> Iterator[tuple[list[Found], JoinStage]]:
    """Each session's windows by its chain alone, fed with what was decided and then with all data; and where that ends."""
    for name in sorted({c.session for items in log.inputs.values() for c in items}):
        stage, memory = chain.build(), list[Any]()
        windows = [w for decision in log.decisions.get(name, ()) for w in stage.decide(decision)]
        entry = stage.stages[0]
        assert isinstance(entry, JoinStage)
        for items in log.inputs.values():
            windows += [w for c in items if c.session == name for w in stage.push(c)]
        if entry.over:
            windows += stage.flush()
        yield [e for w in windows for e in events_of(w, content(w, memory, 0), log.heads)], entry


def defined(log: JoinedLog, chain: Chain) -> list[Found]:
    """What must be published."""
    return sorted(event for events, _ in ends(log, chain) for event in events)


def campaign(seed: int, without: str = "", joins: Sequence[Join] = JOINS) -> None:
    """Random logs, worked on in random steps."""
    pick = random.Random(seed)
    spec, clock = pick.choice(joins), [0.0]
    chain = Chain((spec, Windows(6, pick.choice([2, 3, 6]))))
    inputs, topics = recorded(pick, spec)
    log = JoinedLog(inputs, topics=topics, without=without)
    limits = pick.choice([Limits(60.0, 10_000), Limits(5.0, 10_000)])
    with mock.patch.object(joined, "SNAPSHOT_THINGS", pick.choice([1, 5, 50, 2000])), left_out(without):
        life = JoinedLife(log, chain, clock, limits)
        slow = pick.choice(sorted(log.inputs))
        for number in range(pick.randint(20, 200)):
            if number % 40 == 0:
                slow = pick.choice(sorted(log.inputs))
            name, topic = pick.choice(MOVES), pick.choice(sorted(log.inputs))
            if name == "arrive" and topic == slow and pick.random() < 0.8:
                continue
            if currently_in_test_context():
                note(f"{name} {topic}")
            if not survives(life, name, topic, pick):
                life = JoinedLife(log, chain, clock, limits)
        finish(log, chain, clock, limits)


def survives(life: JoinedLife, name: str, topic: str, pick: random.Random) -> bool:
    """Let a worker do one of the moves; whether it lives on."""
    log = life.log
    if name == "arrive":
        log.visible[topic] = min(log.visible.get(topic, 0) + pick.randint(1, 4), len(log.inputs[topic]))
    elif name == "read":
        life.read(topic, pick.randint(1, 6))
    elif name == "publish":
        life.publish(pick.randint(1, 9))
    elif name == "hear":
        life.hear(pick.randint(1, 9))
    elif name == "commit":
        return life.commit(pick.randint(0, 5), pick.choice([99, 99, 1]))
    elif name == "decide":
        return life.decide(pick.random() < 0.3)
    elif name == "wait":
        life.clock[0] += pick.choice([0.2, 0.6, 9.0])
    else:
        return pick.random() >= 0.4
    return True


def left_out(rule: str) -> Any:
    """Some of the rules as they would be if they were none; what is left out of the others stands above."""
    if rule in DECISIONS:
        due = JoinedSession.due

        def without(*arguments: Any) -> Decision | None:
            decision = due(*arguments)
            return None if decision is not None and DECISIONS[rule](decision) else decision

        return mock.patch.object(JoinedSession, "due", without)
    if rule == "waiting":
        return mock.patch.object(joined, "_are_due", return_value=False)
    if rule == "reopen":
        return mock.patch.object(JoinedSession, "_published_end", return_value=0)
    if rule == "floor":
        return mock.patch.object(joined, "lowest", lambda floors: floors[0])
    return contextlib.nullcontext()


def finish(log: JoinedLog, chain: Chain, clock: list[float], limits: Limits) -> None:
    """One more life takes all there is, and waits for nobody; a last one finds nothing to add."""
    log.visible = {topic: len(items) for topic, items in log.inputs.items()}
    for _ in range(2):
        life = JoinedLife(log, chain, clock, limits)
        life.finish()
        for _ in range(20):
            clock[0] += 1.0
            life.decide(False)
            life.finish()
        assert sorted(log.events) == defined(log, chain)
        assert all(is_settled(entry) for _, entry in ends(log, chain))


def is_settled(entry: JoinStage) -> bool:
    """Whether nobody waits for what will not come."""
    waits = entry.waits()
    late = [w for w in waits if w.tick is not None and w.newest - w.tick >= LATE_S * entry.spec.ticks]
    return not late and not any(w.behind for w in waits) and (not waits or len(waits) == len(entry.spec.branches))


def joined_operator(spec: Join) -> Operator:
    """Events that say what their windows hold, of a join whose inputs come on topics of their own."""
    chain = Chain((spec, Windows(6, 3)))

    def classify(windows: Sequence[Any], _: object) -> list[list[bytes]]:
        about = [{"session": w.session, "start_index": w.start_index, "holds": w.data.tobytes().hex()} for w in windows]
        return [[json.dumps({"recipe": "two"} | fields).encode()] for fields in about]

    topics = {b.stream: f"t.{b.stream}" for b in spec.branches}
    operator = Operator(
        "two", "two.x", tuple(topics.values()), chain, Events("two"), NAMES.of("events"), lambda _: None, classify
    )
    return replace(operator, patience={name: Patience(topic, LATE_S) for name, topic in topics.items()})
