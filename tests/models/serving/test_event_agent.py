"""Agents whose items are events against Kafka in memory: workers come, go and die; every finding once."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest
from aiokafka.structs import TopicPartition
from crowd import SECOND_NS, Crowd, check_history, crowd, finding
from memory_kafka import MemoryKafka, Worker, until

from kymo.models.serving.scopes import EventOperator
from kymo.processors.faust_app import OneOwnerAssignor
from kymo.streams.topics import Names

NAMES = Names("t")
IN, OUT, STATE = "t.sensor", NAMES.of("events"), NAMES.of("state")


CROWD = crowd(IN, NAMES)
INPUTS = [TopicPartition(IN, n) for n in range(3)]


def session_in(partition: int, number: int) -> bytes:
    return b"s%d.%d" % (partition, number)


@pytest.mark.parametrize("seed", range(4))
def test_a_rule_over_all_sessions_while_its_owner_comes_goes_and_dies(seed: int) -> None:
    pick, clock = random.Random(seed), [10**18]

    async def work() -> None:
        kafka = MemoryKafka()

        def begin() -> Worker:
            worker = Worker(kafka, CROWD, NAMES, whole=True, now_ns=lambda: clock[0])
            worker.start(*INPUTS)
            return worker

        worker = begin()
        for _ in range(150):
            tp = pick.choice(INPUTS)
            label = pick.choice("xy").encode()
            kafka.append(tp.topic, tp.partition, session_in(tp.partition, pick.randint(0, 1)), label)
            clock[0] += pick.choice([0, 0, SECOND_NS, 6 * SECOND_NS])
            if (move := pick.random()) < 0.06:
                await worker.die()
                worker = begin()
            elif move < 0.12:
                await worker.stop()
                worker = begin()
            elif move < 0.3:
                await asyncio.sleep(pick.choice([0.002, 0.02]))

        def is_silent() -> bool:
            clock[0] += SECOND_NS // 100
            taken = all(kafka.committed(*tp) == len(kafka.logs[tp]) for tp in INPUTS if kafka.logs[tp])
            return taken and b'"silent"' in kafka.values(OUT)[-1]

        await until(is_silent)
        await worker.stop()
        assert worker.failures == []
        events = [json.loads(value) for value in kafka.values(OUT)]
        check_history(events)
        assert sum(len(kafka.logs[tp]) for tp in INPUTS) == 150
        assert all(kafka.logs[TopicPartition(OUT, n)] == [] for n in (1, 2))  # home is partition 0
        assert len(events) > 10

    asyncio.run(work())


def test_nothing_is_published_before_its_snapshot_is_acknowledged() -> None:
    async def work() -> None:
        kafka, order = MemoryKafka(), list[str]()
        kafka.appended = lambda topic: order.append(topic) if topic != IN else None
        worker = Worker(kafka, CROWD, NAMES, whole=True)
        worker.start(*INPUTS)
        kafka.append(IN, 0, b"s", b"y")
        await until(lambda: bool(kafka.values(OUT)))
        worker.producer.may.clear()
        for number in range(3):
            kafka.append(IN, number, b"r%d" % number, b"x")
        await until(lambda: bool(worker.agent._outbox._tasks))
        for _ in range(100):
            await asyncio.sleep(0)
        assert {tp.topic for tp in worker.agent._outbox._tasks} == {STATE}
        worker.producer.may.set()
        await until(lambda: len(kafka.values(OUT)) == 2)
        await worker.stop()
        assert worker.failures == []
        assert order == [STATE, OUT] * 2

    asyncio.run(work())


def test_what_a_dead_owner_has_stored_and_not_published_is_published() -> None:
    async def work() -> None:
        kafka = MemoryKafka()
        worker = Worker(kafka, CROWD, NAMES, whole=True)
        worker.start(*INPUTS)
        dead = asyncio.Event()
        kafka.appended = lambda topic: dead.set() if topic == STATE else None
        kafka.append(IN, 0, b"s", b"y")
        await dead.wait()
        await worker.die()
        assert kafka.values(OUT) == []
        heir = Worker(kafka, CROWD, NAMES, whole=True)
        heir.start(*INPUTS)
        await until(lambda: len(kafka.values(OUT)) == 1)
        await heir.stop()
        assert heir.failures == []

    asyncio.run(work())


def test_a_snapshot_that_no_message_can_hold_ends_the_worker_with_its_size() -> None:
    class Hoarder(Crowd):
        def snapshot(self) -> dict[str, Any]:
            return super().snapshot() | {"hoard": "x" * 9 * 2**20}

    async def work() -> None:
        kafka = MemoryKafka()
        operator = EventOperator("hoarder", "h", (IN,), OUT, CROWD.item, Hoarder, finding, CROWD.identify)
        worker = Worker(kafka, operator, NAMES, whole=True)
        worker.start(*INPUTS)
        kafka.append(IN, 0, b"s", b"x")
        await until(lambda: bool(worker.failures))
        assert "hoarder: all sessions: 9.0 MiB to remember" in str(worker.failures[0])

    asyncio.run(work())


def test_one_member_owns_all_partitions_and_the_others_none() -> None:
    metadata = OneOwnerAssignor.metadata([IN])
    cluster: Any = type("Cluster", (), {"partitions_for_topic": lambda self, topic: {0, 1, 2}})()
    given = OneOwnerAssignor.assign(cluster, {"b": metadata, "a": metadata})
    assert given["a"].assignment == [(IN, [0, 1, 2])]
    assert given["b"].assignment == []
