"""Inputs that never come, die, end without saying so or come back; snapshots and decisions that are of no use."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from aiokafka.structs import TopicPartition
from joined_lab import IDLE_S, JOINS, LATE_S, NAMES, JoinedLife, JoinedLog, defined, joined_operator
from memory_kafka import MemoryKafka, Worker, until

from kymo.models.serving import joined
from kymo.models.serving.handover import read_handovers
from kymo.models.serving.joined import decisions_from_json, decisions_to_json
from kymo.models.serving.outputs import DerivedChunks
from kymo.models.serving.partition import Limits
from kymo.models.serving.snapshots import Floor, SessionSnapshot
from kymo.processors.chain import Chain
from kymo.processors.fetch import Passed
from kymo.processors.join import Decision, JoinStage
from kymo.processors.steps.maps import Scale
from kymo.processors.windows import Windows
from kymo.streams.chunk import Chunk, Header
from kymo.streams.codec import ChunkCodec

SPEC = JOINS[0]  # `a`, the grid, and `b` at 10 Hz
CHAIN = Chain((SPEC, Windows(6, 3)))
BEHIND = int(LATE_S * 10)


def chunks(stream: str, first: int, stop: int, end: bool = False) -> list[Chunk]:
    """One a sample, whose value is its number."""
    raw = next(branch.raw for branch in SPEC.branches if branch.stream == stream)
    made = [Chunk(Header("s", 10**12, raw), i, np.full((1, 1), i, np.float32)) for i in range(first, stop)]
    mark = Chunk(Header("s", 10**12, raw), stop, np.empty((0, 1), np.float32), None, True)
    return [*made, mark] if end else made


class Times:
    """Lives that follow each other, and what goes by between them."""

    def __init__(self, a: list[Chunk], b: list[Chunk]) -> None:
        self.log, self.clock = JoinedLog({"a": a, "b": b}, topics={"a": "a", "b": "b"}), [0.0]
        self.life = self.next_life()

    def next_life(self, chain: Chain = CHAIN) -> JoinedLife:
        self.life = JoinedLife(self.log, chain, self.clock, Limits())
        return self.life

    def pass_by(self, seconds: float, **visible: int) -> None:
        """New records come, and then time goes by."""
        self.log.visible |= visible
        self.life.finish()
        for _ in range(4):
            self.clock[0] += seconds / 4
            self.life.decide(False)
            self.life.finish()

    @property
    def is_right(self) -> bool:
        """Whether what is published is what all that came, and what was decided, define."""
        seen = {topic: items[: self.log.visible.get(topic, 0)] for topic, items in self.log.inputs.items()}
        return sorted(self.log.events) == defined(replace(self.log, inputs=seen), CHAIN)

    @property
    def decided(self) -> list[Decision]:
        return self.log.decisions.get("s", [])

    @property
    def starts(self) -> list[int]:
        return sorted(start for _, start, _, _ in self.log.events)


def test_a_grid_that_never_comes_is_decided_on_and_the_next_input_gives_the_origin() -> None:
    times = Times([], chunks("b", 40, 100))
    times.pass_by(1.0, b=60)
    assert times.decided == [Decision("a", 40, origin_ns=10**12, behind=BEHIND)]
    assert times.starts == list(range(42, 90, 3))  # but for what it stays behind
    times.next_life()
    times.pass_by(IDLE_S)
    assert times.decided[1:] == [Decision("a", 40)]
    assert times.starts == list(range(42, 95, 3))
    assert times.is_right
    last = np.frombuffer(max(times.log.events, key=lambda e: e[1])[3][: 6 * 2 * 4], np.float32).reshape(6, 2)
    assert np.isnan(last[:, 0]).all()
    assert last[:, 1].tolist() == [93, 94, 95, 96, 97, 98]


def test_what_comes_before_the_origin_is_known_is_in_the_snapshot_and_its_size_is_worked_out() -> None:
    stage = SPEC.build()
    for chunk in chunks("b", 0, 50):
        assert stage.push(chunk) == []
    again = SPEC.build()
    again.restore(stage.snapshot())
    assert again.waits() == stage.waits()
    assert [wait.newest for wait in stage.waits()] == [50, 50]
    assert SPEC.waiting_bytes(5.0) == {"a": 5 * 10 * 4, "b": 5 * 10 * 4}
    assert JOINS[1].waiting_bytes(1.0) == {
        "a": 40,
        "b": 40,
        "c": 80,
    }  # ticks are 10 a second, `b` has 4 samples, `c` 20


@pytest.mark.parametrize("why", ["another chain", "damaged", "left out"])
def test_decisions_stay_with_a_session_whose_snapshot_is_of_no_use(why: str) -> None:
    times = Times(chunks("a", 0, 200), chunks("b", 0, 20))
    with mock.patch.object(joined, "SNAPSHOT_S", 0.0):
        times.pass_by(1.0, a=60, b=20)
        times.pass_by(IDLE_S)
    assert times.decided == [Decision("b", 20, behind=BEHIND), Decision("b", 20)]
    stored = SessionSnapshot.decode(times.log.state["s"])
    assert stored.meta["decided"] == 2
    times.log.state["s"] = replace(stored, memory=b"" if why == "left out" else stored.memory[:-9]).encode()
    chain = Chain((SPEC, Windows(8, 4))) if why == "another chain" else CHAIN
    times.next_life(chain)
    given = times.starts[-1]
    times.pass_by(0.2, a=80)
    told = times.life.partition.damaged["s"]
    assert {"another chain": "chain has changed", "left out": "did not fit", "damaged": "is cut"}[why] in told
    session = times.life.partition.sessions["s"]
    assert (session.decided, session.join.waits()[1].since) == (2, 20)
    for number in (100, 120, 140):  # whatever lives follow, what was decided is heard once
        times.next_life(chain)
        with mock.patch.object(joined, "SNAPSHOT_S", 0.0):
            times.pass_by(0.2, a=number)
        assert times.life.partition.sessions["s"].decided == len(times.decided) == 2
    assert len(times.starts) == len(set(times.starts))
    assert times.starts[-1] > given


def test_a_stage_that_is_made_anew_hears_of_what_was_decided() -> None:
    times = Times(chunks("a", 0, 60), chunks("b", 0, 20))
    times.pass_by(1.0, a=40, b=20)
    session = times.life.partition.sessions["s"]
    with mock.patch.object(JoinStage, "push", side_effect=ZeroDivisionError), pytest.raises(Exception, match="Zero"):
        times.pass_by(0.0, a=41)
    assert (session.decided, session.join.waits()[1].since) == (1, 20)


def test_a_session_that_was_stored_while_it_waited_is_decided_on_in_the_next_life() -> None:
    times = Times(chunks("a", 0, 60), chunks("b", 0, 20))
    with mock.patch.object(joined, "SNAPSHOT_S", 0.0):
        times.log.visible = {"a": 60, "b": 20}
        times.life.finish()
    assert times.log.commits["a"][0] == 60
    times.next_life()
    assert list(times.life.partition.sessions) == ["s"]
    times.pass_by(IDLE_S + 1)  # and nothing comes
    assert times.decided == [Decision("b", 20, behind=BEHIND), Decision("b", 20)]
    assert times.starts[-1] == 54


def test_sessions_that_wait_for_nobody_stay_asleep() -> None:
    times = Times(chunks("a", 0, 60), chunks("b", 0, 60))
    with mock.patch.object(joined, "SNAPSHOT_S", 0.0):
        times.log.visible = {"a": 60, "b": 58}  # less than the lateness
        times.life.finish()
    assert list(times.next_life().partition.sessions) == []


@pytest.mark.parametrize("silent", ["never came", "died", "without an end mark"])
def test_a_session_ends_although_one_input_does_not_say_so(silent: str) -> None:
    count = {"never came": 0, "died": 20, "without an end mark": 60}[silent]
    times = Times(chunks("a", 0, 60, end=True), chunks("b", 0, count) + chunks("b", 60, 70))
    times.pass_by(LATE_S, a=61, b=count)
    times.pass_by(LATE_S)
    assert times.decided[-1] == Decision("b", count, ends=True)
    assert times.life.log.commits["a"][0] == 61
    assert times.life.partition.sessions == {}  # stored, and put away
    assert times.starts == list(range(0, 57, 3))
    times.next_life()
    times.pass_by(0.2, b=count + 10)  # it comes back too late
    assert len(times.decided) == len({d.ends for d in times.decided})
    assert times.life.partition.counts["late"] == 1  # run of chunks
    assert times.is_right


def test_inputs_that_go_on_end_for_themselves() -> None:
    times = Times(chunks("a", 0, 60, end=True), chunks("b", 0, 200))
    for number in range(60, 200, 4):
        times.pass_by(LATE_S / 2, a=61, b=number)
    assert not any(decision.ends for decision in times.decided)
    times.pass_by(2 * LATE_S, b=200)
    assert times.decided == [Decision("b", 200, ends=True)]


def test_offsets_of_a_topic_that_was_made_again_are_forgotten() -> None:
    times = Times(chunks("a", 0, 90), chunks("b", 0, 60))
    times.log.topic_ids = {"a": "A", "b": "B"}
    times.next_life()
    with mock.patch.object(joined, "SNAPSHOT_S", 0.0):
        times.pass_by(0.2, a=60, b=60)
    times.log.topic_ids["b"], times.log.inputs["b"] = "B2", chunks("b", 60, 90)
    del times.log.commits["b"]  # as :func:`valid_commits` leaves it out
    times.next_life()
    times.pass_by(0.2, a=90, b=30)
    assert times.starts == list(range(0, 85, 3))


def test_a_topic_without_records_keeps_no_old_note() -> None:
    times = Times(chunks("a", 0, 90), chunks("b", 0, 90))
    with mock.patch.object(joined, "SNAPSHOT_S", 0.0):
        times.pass_by(0.2, a=30, b=30)
        at_first = times.log.commits["b"]
        times.pass_by(0.2, a=60, b=60)
        times.pass_by(2.0, a=90)  # only `a` goes on
    assert times.log.commits["a"][1] == times.log.commits["b"][1] == Floor(len(times.log.events))
    assert times.log.commits["b"][1].events > at_first[1].events


def test_an_input_falls_silent_on_a_topic_that_never_stands_still() -> None:
    times = Times([*chunks("b", 0, 3), *chunks("a", 0, 60)], [])
    times.log.topics["b"], owned, made = "a", times.life.partition, list[Decision]()
    times.life.prepare()
    for number in range(4, 60):
        times.log.visible = {"a": number}
        times.life.finish()
        asked_s, topics = owned.to_ask()
        made += [decision for _, decision in owned.due(dict.fromkeys(topics, (number + 1, asked_s)))]
        times.clock[0] += 0.1
    assert made[0] == Decision("b", 3, behind=BEHIND)


def back(after: int) -> tuple[Times, int]:
    """`b` falls silent at tick 20; back after so many ticks of `a`, each a tenth of a second long."""
    times = Times(chunks("a", 0, 300), chunks("b", 0, 20) + chunks("b", after, 300))
    shown = 20
    times.pass_by(0.4, a=20, b=shown)
    for number in range(20, 200):
        shown = number - after + 20 if number > after else 20
        times.pass_by(0.1, a=number, b=max(shown, 20))
    times.pass_by(0.4, a=200, b=shown)
    return times, int(times.life.partition.counts["late"])


def test_an_input_that_is_back_in_time_loses_nothing() -> None:
    times, late = back(45)
    assert [(d.start, d.stop) for d in times.decided] == [(20, None), (20, 45)]
    assert late == 0
    assert times.is_right


def test_what_comes_after_it_was_idle_is_late_for_ticks_that_are_out() -> None:
    times = Times(chunks("a", 0, 150), chunks("b", 0, 20) + chunks("b", 60, 150))
    for number in range(20, 101):
        times.pass_by(0.1, a=number, b=20)
    assert times.decided == [Decision("b", 20, behind=BEHIND), Decision("b", 20)]
    assert times.starts[-1] == 93  # with the newest of `a`
    times.pass_by(0.1, b=40)  # ticks 60 to 80 are out
    assert times.decided[2:] == [Decision("b", 20, 100)]
    assert times.life.partition.counts["late"] == 1  # run of chunks
    times.pass_by(0.1, a=150, b=110)
    assert times.is_right
    assert times.starts[-1] == 144


class Seen:
    """An observer that keeps latencies."""

    def __init__(self) -> None:
        self.latencies = list[float]()

    def __getattr__(self, name: str) -> Callable[..., None]:
        return self.latencies.append if name == "emitted" else lambda *_: None


def lives(
    *between: Callable[[MemoryKafka], None], least: tuple[int, ...] = (16, 16, 16), behind: Sequence[Passed] = ()
) -> tuple[MemoryKafka, Worker, Seen]:
    """Workers one after the other, of a session whose input `b` is silent; what happens before each but the first."""
    kafka, codec, seen = MemoryKafka(), ChunkCodec(), Seen()
    inputs = [TopicPartition(f"t.{b.stream}", 0) for b in SPEC.branches]

    async def work() -> Worker:
        for number, tp in ((60, inputs[0]), (20, inputs[1])):
            for chunk in chunks(tp.topic[2:], 0, number):
                kafka.append(tp.topic, 0, b"s", codec.encode(chunk), timestamp=int(time.time() * 1000))
        kafka.logs[inputs[1]] += behind
        for number, before in enumerate((lambda _: None, *between), 1):
            before(kafka)
            worker = Worker(kafka, joined_operator(SPEC), NAMES)
            worker.consumer_generation_id = number
            worker.agent._runtime.observer.__dict__["emitted"] = seen.emitted
            worker.start(*inputs)
            await until(
                lambda number=number: (
                    len(kafka.values(NAMES.of("events"))) >= least[number - 1]
                    and any(f'.{number}"' in commit.metadata for commit in kafka.commits.values())
                )
            )
            if number <= len(between):
                await worker.stop()
        handover = (await read_handovers(worker.agent.operator, worker.agent._runtime, inputs, b"two.x\n"))[0]
        assert worker.failures == []
        kafka.handover = handover  # type: ignore[attr-defined]
        await worker.stop()
        return worker

    return kafka, asyncio.run(work()), seen


def test_a_topic_that_ends_with_a_transaction_is_read_to_its_end() -> None:
    kafka, _, _ = lives(lambda _: None, behind=[Passed(20)])
    assert len(kafka.values(NAMES.of("events"))) >= 16


def test_latency_is_told_of_windows_alone_that_came_in_this_life() -> None:
    def forgotten(kafka: MemoryKafka) -> None:
        """The first snapshot and the decision are stored, and the worker died before it published what came of that."""
        kafka.logs[TopicPartition(NAMES.of("events"), 0)].clear()
        kafka.commits = {tp: commit._replace(metadata="") for tp, commit in kafka.commits.items()}
        stored = [r for r in kafka.logs[TopicPartition(NAMES.of("state"), 0)] if r.key == b"two.x\ns"]
        for record in stored:
            record.value = stored[0].value

    with mock.patch.object(joined, "SNAPSHOT_S", 0.0):
        kafka, _, seen = lives(forgotten, least=(16, 9))
    starts = [json.loads(event)["start_index"] for event in kafka.values(NAMES.of("events"))]
    assert starts[0] == 15  # from where `b` was waited for
    assert len(seen.latencies) > 0
    assert max(seen.latencies) < 1e6


def test_a_decision_of_a_worker_that_was_overtaken_counts_no_more() -> None:
    key, late = b"two.x.decisions\ns", decisions_to_json([Decision("b", 5), Decision("a", 7)], CHAIN)

    def zombie(kafka: MemoryKafka) -> None:
        """What the first life had on its way comes once the second has begun."""
        kafka.append(NAMES.of("state"), 0, key, late, headers=[("life", b"0.1")])

    kafka, _, _ = lives(lambda _: None, zombie)
    records = [r for r in kafka.logs[TopicPartition(NAMES.of("state"), 0)] if r.key == key]
    assert late in [r.value for r in records]
    decided: Any = kafka.handover.decisions["s"]  # type: ignore[attr-defined]
    assert [(d.stream, d.start) for d in decided[:1]] == [("b", 20)]
    assert decisions_from_json(records[-1].value, CHAIN) == decided  # written again, so that no later life hears of it
    assert kafka.handover.overruled == []  # type: ignore[attr-defined]


def test_a_derived_stream_of_several_inputs_goes_on_over_lives() -> None:
    chain = Chain((SPEC, Scale(2.0)))
    outputs, kafka, codec = DerivedChunks(chain), MemoryKafka(), ChunkCodec()
    inputs = [TopicPartition(f"t.{b.stream}", 0) for b in SPEC.branches]
    operator = replace(
        joined_operator(SPEC), chain=chain, outputs=outputs, topic="t.joined", classify=outputs.encode, state="two.p"
    )
    sent = [
        chunks("a", 0, 200, end=True),
        chunks("b", 0, 60) + chunks("b", 120, 200),
    ]  # which does not say that it ends

    async def work() -> None:
        for first in range(0, 200, 50):
            worker = Worker(kafka, operator, NAMES)
            worker.start(*inputs)
            for tp, items in [*zip(inputs, sent, strict=True)][::-1]:
                for chunk in items:
                    if first <= chunk.first_index and (first == 150 or chunk.first_index < first + 50):
                        kafka.append(tp.topic, 0, b"s", codec.encode(chunk))
                if first == 100 and tp is inputs[1]:  # `b` is back, and that is decided before `a` goes on
                    await until(lambda: any(d.stop is not None for d in decided()))
            reach = {0: 50, 50: 90, 100: 140, 150: 200}[first]
            await until(lambda reach=reach: sum(c.count for c in published()) >= reach)
            if first == 150:
                await until(lambda: any(chunk.end for chunk in published()))
            await worker.stop()
            assert worker.failures == []

    def decided() -> list[Decision]:
        records = [r for r in kafka.logs[TopicPartition(NAMES.of("state"), 0)] if b".decisions" in r.key]
        return decisions_from_json(records[-1].value, chain)

    def published() -> list[Chunk]:
        return [codec.decode(value) for value in kafka.values("t.joined")]

    asyncio.run(work())
    rows = {c.first_index + i: row.tolist() for c in published() for i, row in enumerate(c.data)}
    assert sum(c.count for c in published()) == len(rows) == 200
    assert [row[0] for _, row in sorted(rows.items())] == [2.0 * i for i in range(200)]
    assert [i for i, row in sorted(rows.items()) if np.isnan(row[1])] == list(range(60, 120))
    assert [chunk.end for chunk in published()].count(True) == 1
    assert {stream for c in published() for _, _, stream in c.absent} == {"b"}
