"""An agent on a Kafka in memory: how it hands over, what it does not do any more once its lease is over, what it rejects and stores."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from aiokafka.structs import TopicPartition
from memory_kafka import MemoryKafka, Worker, until
from tiny_models import recipe

from kymo.models.serving import handover
from kymo.models.serving.operator import Operator
from kymo.models.serving.outputs import Events
from kymo.models.serving.partition import Limits
from kymo.models.serving.sessions import Listener
from kymo.streams.chunk import Chunk, Header
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import DeliveryError
from kymo.streams.topics import Names

NAMES, INPUT = Names("t"), TopicPartition("t.sensor", 0)
SESSIONS, SAMPLES = 5, 200  # windows of 4 samples every 2


def operator(slow_s: float = 0.0) -> Operator:
    """Events that say which window they are of, after a while for each."""
    made = recipe()

    def classify(windows: Sequence[Any], _: object) -> list[list[bytes]]:
        time.sleep(slow_s * len(windows))
        return [
            [json.dumps({"recipe": "tiny", "session": w.session, "start_index": w.start_index}).encode()]
            for w in windows
        ]

    chain = made.chain.cut_behind_window()[0]
    return Operator("tiny", "tiny.x", (INPUT.topic,), chain, Events("tiny"), NAMES.of("events"), made.matches, classify)


def feed(kafka: MemoryKafka, end: bool = True, begin: int = 0) -> set[tuple[str, int]]:
    codec, headers = ChunkCodec(), [Header(f"s{i}", 0, recipe().input_format()) for i in range(SESSIONS)]
    for first in range(begin, begin + SAMPLES, 10):
        for header in headers:
            made = Chunk(header, first, np.ones((10, 2), np.float32), None, end and first + 10 == begin + SAMPLES)
            kafka.append(INPUT.topic, 0, header.session.encode(), codec.encode(made))
    return {(header.session, start) for header in headers for start in range(begin, begin + SAMPLES - 3, 2)}


def published(kafka: MemoryKafka) -> Counter[tuple[str, int]]:
    """How often each window's event stands there."""
    events = map(json.loads, kafka.values(NAMES.of("events")))
    return Counter((event["session"], event["start_index"]) for event in events)


def run(work: Any) -> None:
    asyncio.run(work())


def test_what_is_handed_over_half_way_is_there_once() -> None:
    async def work() -> None:
        kafka = MemoryKafka()
        expected = feed(kafka)
        for turn in range(6):
            worker = Worker(kafka, operator(0.002), NAMES)
            worker.start(INPUT)
            await until(lambda turn=turn: len(published(kafka)) >= 60 * (turn + 1))
            began_s = time.monotonic()
            await (worker.stop() if turn % 2 else worker.revoke())
            assert time.monotonic() - began_s < 2  # though hundreds of windows waited
            before = len(kafka.values(NAMES.of("events")))
            await asyncio.sleep(0)
            assert len(kafka.values(NAMES.of("events"))) == before
            assert worker.failures == []
            await worker.stop()
        worker = Worker(kafka, operator(), NAMES)
        worker.start(INPUT)
        await until(lambda: published(kafka).keys() == expected)
        await worker.stop()
        assert set(published(kafka).values()) == {1}

    run(work)


def test_records_are_taken_while_a_commit_is_on_its_way_and_none_overtakes_it() -> None:
    async def work() -> None:
        kafka, may, asked = MemoryKafka(), asyncio.Event(), list[int]()
        worker = Worker(kafka, operator(), NAMES)
        commit = worker.commit_with

        async def commit_when_allowed(offsets: Any) -> None:
            asked.append(offsets[INPUT].offset)
            await may.wait()
            await commit(offsets)

        worker.commit_with = commit_when_allowed  # type: ignore[method-assign]
        expected = feed(kafka, end=False)
        worker.start(INPUT)
        await until(lambda: bool(asked))
        expected |= feed(kafka, end=False, begin=SAMPLES)
        await until(lambda: published(kafka).keys() >= expected)
        leaving = asyncio.create_task(worker.revoke())
        await asyncio.sleep(0)
        assert len(asked) == 1
        may.set()
        await leaving
        assert worker.failures == []
        assert asked[0] < asked[-1] == kafka.committed(INPUT.topic)
        assert asked == sorted(asked)
        await worker.stop()

    run(work)


def test_a_worker_that_cannot_hand_over_in_time_begins_again() -> None:
    async def work() -> None:
        kafka = MemoryKafka()
        feed(kafka)
        worker = Worker(kafka, operator(), NAMES)
        worker.start(INPUT)
        await until(lambda: len(published(kafka)) > 20)
        worker.producer.may.clear()  # the broker is slow
        await until(lambda: bool(worker.agent._outbox._tasks))
        worker.lease.lost()
        with pytest.raises(DeliveryError, match="in time"):
            await worker.revoke()

    run(work)


def test_a_long_load_is_no_obstacle_to_a_rebalance() -> None:
    async def work() -> None:
        kafka = MemoryKafka()
        expected = feed(kafka)
        may, read = asyncio.Event(), kafka.read

        async def slow(*args: Any) -> None:
            await may.wait()
            await read(*args)

        kafka.read = slow  # type: ignore[method-assign]
        worker = Worker(kafka, operator(), NAMES)
        worker.start(INPUT)
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await worker.revoke()
        may.set()
        worker.assign(INPUT)
        await until(lambda: published(kafka).keys() == expected)
        assert set(published(kafka).values()) == {1}
        await worker.stop()

    run(work)


@pytest.mark.parametrize("commit_every_s", [0.01, 3600])
def test_an_odd_record_is_rejected_once_whatever_restarts(commit_every_s: float) -> None:
    async def work() -> None:
        kafka = MemoryKafka()
        odd = [
            (b"s0", b"garbage"),
            (None, ChunkCodec().encode(Chunk(Header("x", 0, recipe().input_format()), 0, np.ones((3, 2), np.float32)))),
        ]
        for key, value in odd:
            kafka.append(INPUT.topic, 0, key, value)
        kafka.append(NAMES.of("events"), 0, b"s0", b'{"session": "s0", "recipe": "tiny", "start_index": 1e999}')
        kafka.append(NAMES.of("state"), 0, b"tiny.x\ns0", b"no snapshot")
        feed(kafka, end=commit_every_s < 1)
        for turn in range(3):
            worker = Worker(kafka, operator(), NAMES)
            worker.start(INPUT, commit_every_s=commit_every_s)
            await until(lambda: len(kafka.values(NAMES.of("rejected"))) >= 4)
            await until(lambda worker=worker: worker.agent.waiting == 0 and worker._feeding is not None)
            if commit_every_s < 1:  # from here on nothing of before is read back
                late = Chunk(
                    Header(f"late{turn}", 0, recipe().input_format()), 0, np.ones((9, 2), np.float32), None, True
                )
                kafka.append(INPUT.topic, 0, late.session.encode(), ChunkCodec().encode(late))
                await until(lambda: kafka.committed(*INPUT) == len(kafka.logs[INPUT]))
                await worker.stop()
            worker.producer.may.clear()
            worker.agent._outbox.close()  # as kill -9 does
        rejected = kafka.logs[TopicPartition(NAMES.of("rejected"), 0)]
        places = [(dict(r.headers)["topic"], dict(r.headers)["offset"]) for r in rejected]
        assert sorted(places) == [(b"t.events", b"0"), (b"t.sensor", b"0"), (b"t.sensor", b"1"), (b"t.state", b"0")]
        assert {r.value for r in rejected} >= {value for _, value in odd}

    run(work)


def test_a_session_too_large_for_a_snapshot_is_told_and_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "BYTES_MAX", 100)

    async def work() -> None:
        kafka = MemoryKafka()
        expected = feed(kafka, end=False)
        first = Worker(kafka, operator(), NAMES, Limits(quiet_s=0.05))
        first.start(INPUT)
        await until(lambda: len(kafka.values(NAMES.of("state"))) >= SESSIONS)
        await first.stop()
        assert len(first.lines) == SESSIONS
        assert "session s0 holds" in "\n".join(first.lines)
        assert kafka.commits[INPUT].offset == len(kafka.logs[INPUT])
        more = Chunk(Header("s1", 0, recipe().input_format()), SAMPLES, np.ones((10, 2), np.float32))
        kafka.append(INPUT.topic, 0, b"s1", ChunkCodec().encode(more))
        second = Worker(kafka, operator(), NAMES)
        second.start(INPUT)
        expected |= {("s1", start) for start in range(SAMPLES - 2, SAMPLES + 7, 2)}
        await until(lambda: published(kafka).keys() >= expected)
        await second.stop()
        assert published(kafka) == dict.fromkeys(expected, 1)

    run(work)


def test_a_topic_that_was_made_again_ends_the_life_that_knew_it() -> None:
    async def work() -> None:
        kafka = MemoryKafka(ids={INPUT.topic: "first"})
        kafka.append(INPUT.topic, 0, b"s0", b"garbage")
        expected = feed(kafka, end=False)
        worker = Worker(kafka, operator(), NAMES)
        worker.start(INPUT)
        await until(lambda: published(kafka).keys() == expected)
        await until(lambda: INPUT in kafka.commits)
        kafka.ids[INPUT.topic] = "second"
        with pytest.raises(DeliveryError, match="made again"):
            await worker.agent.on_records({INPUT: kafka.logs[INPUT][:1]})
        kafka.logs[INPUT].clear()
        kafka.append(INPUT.topic, 0, b"s0", b"garbage again")
        again = Worker(kafka, operator(), NAMES)
        made = Chunk(Header("s0", 0, recipe().input_format()), SAMPLES, np.ones((10, 2), np.float32))
        kafka.append(INPUT.topic, 0, b"s0", ChunkCodec().encode(made))
        again.start(INPUT)
        await until(lambda: ("s0", SAMPLES) in published(kafka))
        assert set(published(kafka).values()) == {1}
        await until(lambda: kafka.values(NAMES.of("rejected")) == [b"garbage", b"garbage again"])

    run(work)


def test_a_new_sessions_first_samples_are_doubted_once() -> None:
    async def work() -> None:
        kafka = MemoryKafka()

        def listen() -> Listener:
            samples = [0]

            def hear(chunk: Chunk) -> str | None:
                samples[0] += chunk.count
                return None if samples[0] < 25 else f"doubtful {chunk.session}"

            return hear

        told = list[int]()
        for begin in (0, SAMPLES):  # a session that goes on after a take-over is not new
            expected = feed(kafka, end=False, begin=begin)
            worker = Worker(kafka, replace(operator(), listen=listen), NAMES, Limits(quiet_s=0.0))
            worker.start(INPUT)
            await until(lambda expected=expected: published(kafka).keys() >= expected)
            await until(lambda: len(kafka.values(NAMES.of("state"))) >= SESSIONS)
            await worker.stop()
            told.append(sum("doubtful s" in line for line in worker.lines))
        assert told == [SESSIONS, 0]

    run(work)
