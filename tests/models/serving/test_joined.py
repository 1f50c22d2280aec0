"""Sessions of several inputs against logs in memory: outages, decisions, crashes; each window once, as data and decisions say."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from aiokafka.structs import TopicPartition
from crash_lab import Found, Life, Log, content, events_of
from hypothesis import currently_in_test_context, given, note, settings
from hypothesis import strategies as st
from memory_kafka import MemoryKafka, Worker, until

from kymo.models.serving import joined, partition
from kymo.models.serving.joined import JoinedSession, Patience, decisions_from_json
from kymo.models.serving.operator import Operator
from kymo.models.serving.outputs import Events
from kymo.models.serving.partition import Limits
from kymo.models.serving.snapshots import Handover
from kymo.processors.branch import Branch
from kymo.processors.chain import Chain
from kymo.processors.intake import Intake
from kymo.processors.join import Decision, Join, JoinStage
from kymo.processors.windows import Windows
from kymo.streams.chunk import Chunk, Header
from kymo.streams.codec import ChunkCodec
from kymo.streams.topics import Names

LATE_S = 0.5
NAMES = Names("t")
MOVES = [
    *["arrive"] * 3,
    *["read"] * 5,
    *("publish", "hear", "commit", "decide", "wait") * 2,
    "crash",
]
RULES = ("durable", "caught up", "reopen", "floor", "wake")


def branch(name: str, rate: str, sample: str = "linear") -> Branch:
    return Branch(name, rate, Chain((Intake((name,)),)), sample)


JOINS = [
    Join((branch("a", "10"), branch("b", "10")), "10", "a"),
    Join((branch("a", "10"), branch("b", "4"), branch("c", "20", "mean")), "10", "a"),
    Join((branch("a", "10", "hold"), branch("b", "20", "nearest")), "5", "b"),
]


@dataclass
class JoinedLog(Log):
    """What outlives a worker, with what was decided."""

    decisions: dict[str, list[Decision]] = field(default_factory=dict)
    without: str = ""  # the rule that is left out

    def left(self) -> Handover:
        handover = super().left()
        if self.without != "wake":
            handover.decisions = {name: list(decisions) for name, decisions in self.decisions.items()}
        return handover


class JoinedLife(Life):
    """A worker that decides, too."""

    def __init__(self, log: JoinedLog, chain: Chain, clock: list[float], limits: Limits) -> None:
        self.patience = {b.stream: Patience(b.stream, LATE_S) for b in chain.specs[0].branches}  # type: ignore[attr-defined]
        self.unstored: list[tuple[str, Decision]] = []
        super().__init__(log, chain, clock, limits)

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
        read = {t: log.without == "caught up" or owned.next_offset[t] >= log.visible.get(t, 0) for t in log.inputs}
        for session, decision in owned.due(read):
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


def recorded(pick: random.Random, spec: Join) -> dict[str, list[Chunk]]:
    """By topic, one a stream, the chunks of one to three sessions, with gaps, streams that die, ends."""
    topics: dict[str, list[Chunk]] = {b.stream: [] for b in spec.branches}
    queues: dict[str, list[deque[Chunk]]] = {b.stream: [] for b in spec.branches}
    for number in range(pick.randint(1, 3)):
        seconds = pick.uniform(2, 8)
        for item in spec.branches:
            queues[item.stream].append(deque(stream(pick, f"s{number}", item, seconds, item.stream == spec.grid)))
    for topic, waiting in queues.items():
        while live := [q for q in waiting if q]:
            queue = pick.choice(live)
            topics[topic] += [queue.popleft() for _ in range(min(len(queue), pick.choice([1, 1, 3])))]
    return topics


def stream(pick: random.Random, session: str, item: Branch, seconds: float, is_grid: bool) -> list[Chunk]:
    header = Header(session, pick.choice([0, 0, 30_000_000]), item.raw)
    rate = float(item.raw.rate)
    count, chunks, at = int(seconds * rate), list[Chunk](), 0
    dies = count if is_grid or pick.random() < 0.7 else pick.randint(1, count)
    while at < dies:
        size = min(pick.randint(1, 8), dies - at)
        data = np.sin(sum(map(ord, session + item.stream)) + np.arange(at, at + size)).astype(np.float32)[:, None]
        chunks.append(Chunk(header, at, data))
        if pick.random() < 0.05:
            chunks.append(pick.choice(chunks))
        at += size + (pick.randint(1, int(2 * rate)) if pick.random() < 0.1 else 0)
    if dies == count or pick.random() < 0.5:
        chunks.append(Chunk(header, max(at, 1), np.empty((0, 1), np.float32), None, True))
    return chunks


def defined(log: JoinedLog, chain: Chain) -> list[Found]:
    """Each session's windows by its chain alone, fed with what was decided and then with all data."""
    found: list[Found] = []
    for name in sorted({c.session for items in log.inputs.values() for c in items}):
        stage, memory = chain.build(), list[Any]()
        windows = [w for decision in log.decisions.get(name, ()) for w in stage.decide(decision)]
        entry = stage.stages[0]
        assert isinstance(entry, JoinStage)
        for items in log.inputs.values():
            windows += [w for c in items if c.session == name for w in stage.push(c)]
        if entry.over:
            windows += stage.flush()
        found += [e for w in windows for e in events_of(w, content(w, memory, 0), log.heads)]
    return sorted(found)


def campaign(seed: int, without: str = "") -> None:
    """Random logs, worked on in random steps."""
    pick = random.Random(seed)
    spec, clock = pick.choice(JOINS), [0.0]
    chain = Chain((spec, Windows(6, pick.choice([2, 3, 6]))))
    log = JoinedLog(recorded(pick, spec), without=without)
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
            alive = True
            if name == "arrive":
                log.visible[topic] = min(log.visible.get(topic, 0) + pick.randint(1, 4), len(log.inputs[topic]))
            elif name == "read":
                life.read(topic, pick.randint(1, 6))
            elif name == "publish":
                life.publish(pick.randint(1, 9))
            elif name == "hear":
                life.hear(pick.randint(1, 9))
            elif name == "commit":
                alive = life.commit(pick.randint(0, 5), pick.choice([99, 99, 1]))
            elif name == "decide":
                alive = life.decide(pick.random() < 0.3)
            elif name == "wait":
                clock[0] += pick.choice([0.2, 0.6, 9.0])
            elif pick.random() < 0.4:
                alive = False
            if not alive:
                life = JoinedLife(log, chain, clock, limits)
        finish(log, chain, clock, limits)


def left_out(rule: str) -> Any:
    """Two of the rules as they would be if they were none; what is left out of the others stands above."""
    if rule == "reopen":
        return mock.patch.object(JoinedSession, "_published_end", return_value=0)
    if rule == "floor":
        return mock.patch.object(partition, "lowest", lambda floors: floors[0])
    return contextlib.nullcontext()


def finish(log: JoinedLog, chain: Chain, clock: list[float], limits: Limits) -> None:
    """One more life takes all there is, and waits for nobody; a last one finds nothing to add."""
    log.visible = {topic: len(items) for topic, items in log.inputs.items()}
    for _ in range(2):
        life = JoinedLife(log, chain, clock, limits)
        life.finish()
        for _ in range(12):
            clock[0] += 1.0
            life.decide(False)
            life.finish()
        assert sorted(log.events) == defined(log, chain)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_crashes_anywhere(seed: int) -> None:
    campaign(seed)


@pytest.mark.parametrize(
    ("rule", "seed"), [("durable", 1), ("caught up", 40), ("reopen", 40), ("wake", 53), ("floor", 229)]
)
def test_each_rule_is_needed(rule: str, seed: int) -> None:
    campaign(seed)
    with pytest.raises(AssertionError):
        campaign(seed, rule)


@pytest.mark.chaos
@pytest.mark.timeout(20_000)
@settings(max_examples=20_000, deadline=None)
@given(st.integers(0, 2**64))
def test_crashes_anywhere_at_length(seed: int) -> None:
    campaign(seed)


def lives_of(*handed: Decision, chunks: Sequence[Chunk] = ()) -> tuple[JoinedLife, JoinedLog]:
    """A worker that took over what an earlier life had decided of session `s`."""
    log = JoinedLog(
        {"a": list(chunks), "b": []}, visible={"a": len(chunks)}, decisions={"s": list(handed)} if handed else {}
    )
    return JoinedLife(log, Chain((JOINS[0], Windows(6, 3))), [0.0], Limits()), log


def test_an_input_that_never_came_is_waited_for_in_vain_whatever_is_stored_meanwhile() -> None:
    header = Header("s", 0, JOINS[0].branches[0].raw)
    chunks = [Chunk(header, i, np.ones((10, 1), np.float32)) for i in range(0, 400, 10)]
    with mock.patch.object(joined, "SNAPSHOT_S", 0.1):  # shorter than the lateness
        log = JoinedLog({"a": chunks, "b": []}, visible={})
        clock = [0.0]
        life = JoinedLife(log, Chain((JOINS[0], Windows(6, 3))), clock, Limits())
        for number in range(1, 21):
            log.visible = {"a": number}
            life.finish()
            clock[0] += 0.2
            life.decide(False)
        life.finish()
    assert log.decisions["s"][0] == Decision("b", 0)
    assert len(log.events) > 50


def test_decisions_of_inputs_that_the_recipe_no_longer_has_are_passed_over() -> None:
    life, _ = lives_of(Decision("another", 3))
    assert life.partition.sessions == {}
    life, _ = lives_of(Decision("b", 3))
    assert list(life.partition.sessions) == ["s"]


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


def test_an_input_dies_and_returns_while_workers_come_and_go() -> None:
    spec, codec = JOINS[0], ChunkCodec()
    chain, headers = Chain((spec, Windows(6, 3))), [Header("s", 0, b.raw) for b in spec.branches]
    data = [np.random.default_rng(i).standard_normal((400, 1)).astype(np.float32) for i in range(2)]
    chunks = [[Chunk(h, i, d[i : i + 5]) for i in range(0, 400, 5)] for h, d in zip(headers, data, strict=True)]
    silent = range(20, 30)  # chunks of `b` that never come

    async def work() -> None:
        kafka = MemoryKafka()
        inputs = [TopicPartition(f"t.{b.stream}", 0) for b in spec.branches]
        worker = Worker(kafka, joined_operator(spec), NAMES)
        worker.start(*inputs)
        for number in range(80):
            for tp, items in zip(inputs, chunks, strict=True):
                if tp is inputs[0] or number not in silent:
                    kafka.append(tp.topic, 0, b"s", codec.encode(items[number]))
            if number == 29:  # nobody waits for `b` any more
                await until(
                    lambda: b"decisions" in b"".join(r.key for r in kafka.logs[TopicPartition(NAMES.of("state"), 0)])
                )
            if number % 12 == 11:
                await worker.stop()
                worker = Worker(kafka, joined_operator(spec), NAMES)
                worker.start(*inputs)
            await asyncio.sleep(0.02)
        for tp, items in zip(inputs, chunks, strict=True):
            kafka.append(
                tp.topic, 0, b"s", codec.encode(replace(items[-1], first_index=400, data=items[-1].data[:0], end=True))
            )
        await until(lambda: any(json.loads(e)["start_index"] == 393 for e in kafka.values(NAMES.of("events"))))
        await worker.stop()
        assert worker.failures == []
        stored = [r.value for r in kafka.logs[TopicPartition(NAMES.of("state"), 0)] if b".decisions" in r.key]
        decided = decisions_from_json(json.loads(stored[-1]))
        stage = chain.build()
        windows = [w for decision in decided for w in stage.decide(decision)]
        windows += [w for number in range(80) for c in chunks[0][number : number + 1] for w in stage.push(c)]
        windows += [w for number in range(80) if number not in silent for w in stage.push(chunks[1][number])]
        for header in headers:
            windows += stage.push(Chunk(header, 400, np.empty((0, 1), np.float32), None, True))
        wanted = {w.start_index: w.data.tobytes().hex() for w in [*windows, *stage.flush()]}
        events = [json.loads(e) for e in kafka.values(NAMES.of("events"))]
        assert len(events) == len({e["start_index"] for e in events})
        assert {e["start_index"]: e["holds"] for e in events} == wanted
        assert any(decision.stop is None for decision in decided)

    asyncio.run(work())
