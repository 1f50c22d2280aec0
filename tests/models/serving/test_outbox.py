"""Events that wait for the broker, and those of a shadow."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
from aiokafka.structs import TopicPartition
from memory_kafka import KeptOutbox, until
from tiny_models import recipe, window

from kymo.models.serving.agent import Agent
from kymo.models.serving.operator import SILENT, Operator, Shadow
from kymo.models.serving.outputs import Events
from kymo.models.serving.partition import Partition
from kymo.models.serving.runtime import MOST_RECORDS, Outbox, Outgoing, Runtime
from kymo.models.serving.snapshots import Handover
from kymo.processors.lease import Instant, Lease
from kymo.streams.budget import OUTBOX
from kymo.streams.chunk import Chunk, Header
from kymo.streams.codec import ChunkCodec
from kymo.streams.topics import Names

ROWS, CHUNKS = 2000, 20  # samples a chunk, nearly 1000 windows; chunks that are there to be read


class Producer:
    """Takes batches, and acknowledges them once it may."""

    def __init__(self) -> None:
        self.may, self.acknowledged = asyncio.Event(), 0

    def create_batch(self) -> Any:
        rows: list[bytes] = []

        def append(*, value: bytes, **_: Any) -> object | None:
            if len(rows) >= 100:
                return None
            rows.append(value)
            return rows

        return SimpleNamespace(append=append, rows=rows)

    async def send_batch(self, builder: Any, topic: str, partition: int) -> Any:
        async def told() -> Any:
            await self.may.wait()
            self.acknowledged += len(builder.rows)
            return SimpleNamespace(offset=self.acknowledged - len(builder.rows))

        return asyncio.ensure_future(told())


def record(number: int) -> Any:
    made = Chunk(Header("s", 0, recipe().input_format()), number * ROWS, np.zeros((ROWS, 2), np.float32))
    now_ms = int(time.time() * 1000)
    return SimpleNamespace(
        offset=number, key=b"s", value=ChunkCodec().encode(made), timestamp=now_ms, topic="t.sensor", partition=0
    )


def make_agent(producer: Producer, failed: list[BaseException]) -> Agent:
    """An agent with one partition, and nothing but the producer around it."""
    made = recipe()
    chain, outputs = made.chain.cut_behind_window()[0], Events("tiny")
    lease = Lease(3600, 7200)
    lease.heard(Instant.now())
    kafka = SimpleNamespace(aiokafka_producer=lambda: producer, assigned=list, lease=lease)
    told = dict.fromkeys(("took", "classified", "emitted", "rejected", "committed"), lambda *_: None)

    def classify(windows: Any, memories: Any) -> list[list[bytes]]:
        return [[str(w.start_index).encode()] for w in windows]

    operator = Operator("tiny", "tiny", ("t.sensor",), chain, outputs, "t.events", made.matches, classify)

    async def ids(_: object) -> dict[str, str]:
        return {}

    runtime = Runtime(kafka, Names("t"), SimpleNamespace(), SimpleNamespace(**told), failed.append, ids, print)  # type: ignore[arg-type]
    agent = Agent(operator, runtime)
    agent.partitions[0] = Partition(0, chain, made.matches, time.monotonic, None, outputs)
    agent.partitions[0].load(Handover())
    return agent


def test_nothing_more_is_read_while_too_much_waits_for_the_broker() -> None:
    async def work() -> None:
        producer, failed = Producer(), []  # type: tuple[Producer, list[BaseException]]
        agent = make_agent(producer, failed)
        agent.start(commit_every_s=3600)
        taken = []

        async def feed() -> None:
            for number in range(CHUNKS):
                await agent.on_records({TopicPartition("t.sensor", 0): [record(number)]})
                taken.append(number)

        feeding = asyncio.create_task(feed())
        waiting = lambda: sum(s.pending for p in agent.partitions.values() for s in p.sessions.values())  # noqa: E731
        await until(lambda: feeding.done() or (len(taken) >= 3 and not agent.waiting and waiting() > MOST_RECORDS))
        assert not feeding.done()
        for _ in range(1000):  # whatever is ready to run has run
            await asyncio.sleep(0)
        assert len(taken) * ROWS // 2 <= MOST_RECORDS + ROWS
        producer.may.set()
        await feeding
        await until(lambda: producer.acknowledged >= CHUNKS * ROWS // 2 - 1)
        await until(lambda: not waiting())
        assert failed == []

    asyncio.run(work())


def test_full_by_number_and_by_size() -> None:
    async def work() -> None:
        producer = Producer()
        for rows in ([Outgoing(b"", b"x")] * MOST_RECORDS, [Outgoing(b"", b"x" * (OUTBOX // 4))] * 4):
            producer.may.clear()
            outbox = Outbox(lambda: producer, lambda error: None, lambda: 0)  # type: ignore[arg-type,return-value]
            outbox.put("t.a", 0, rows[1:])
            assert not outbox.full
            outbox.put("t.b", 1, rows[:1])
            assert outbox.full
            producer.may.set()
            await outbox.settled("t.a", "t.b")
            assert not outbox.full

    asyncio.run(work())


def test_a_shadow_drops_what_the_broker_is_too_slow_for() -> None:
    class Full:
        full = True

    async def work() -> None:
        shadow = Shadow("t.shadow")
        shadow.predictor = object()  # type: ignore[assignment]
        shadow.start(Full())  # type: ignore[arg-type]
        shadow.offer([(0, window(np.zeros((4, 2))))] * 3)
        assert shadow.counts == {"dropped": 3}
        shadow.close()

    asyncio.run(work())


class Refusing(Producer):
    """A producer whose broker is away for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.away = True
        self.may.set()

    async def send_batch(self, builder: Any, topic: str, partition: int) -> Any:
        if self.away:
            raise OSError("away")
        return await super().send_batch(builder, topic, partition)


def test_a_shadow_goes_on_once_the_broker_is_back() -> None:
    async def play() -> None:
        producer, shadow = Refusing(), Shadow("t.shadow")
        outbox = Outbox(lambda: producer, shadow.failed, lambda: 0)
        for _ in range(MOST_RECORDS // 64):
            outbox.put("t.shadow", 0, [Outgoing(b"", b"x")] * 64)
            await outbox.settled("t.shadow")
        assert shadow.counts["failed"] == MOST_RECORDS // 64
        assert not outbox.full
        producer.away = False
        outbox.put("t.shadow", 0, [Outgoing(b"", b"x")])
        await outbox.settled("t.shadow")
        assert producer.acknowledged == 1

    asyncio.run(play())


WINDOWS = [(i % 3, window(np.zeros((4, 2)), f"s{i % 3}", i)) for i in range(1000)]


class Model:
    """Gives each window's index, once it may."""

    bundle = type("Bundle", (), {"id": "tiny@1"})

    def __init__(self) -> None:
        self.may, self.broken = threading.Event(), False

    def serve(self, windows: list[Any], *_: Any) -> list[list[bytes]]:
        assert self.may.wait(30)
        if self.broken:
            raise ValueError("broken on purpose")
        return [[str(w.start_index).encode()] for w in windows]


def test_what_it_is_too_slow_for_is_dropped() -> None:
    async def work() -> None:
        shadow, outbox, model = Shadow("t.shadow"), KeptOutbox(), Model()
        shadow.start(outbox)  # type: ignore[arg-type]
        shadow.offer(WINDOWS)  # there is no model: nobody is asked
        assert not shadow.counts
        shadow.predictor = model  # type: ignore[assignment]
        shadow.offer(WINDOWS)
        shadow.offer(WINDOWS[:5])
        dropped = shadow.counts["dropped"]
        assert 700 <= dropped <= 1000
        model.may.set()
        await until(lambda: shadow.counts["scored"] + dropped == 1005)
        await until(lambda: len(outbox.found) == shadow.counts["scored"])
        places = [(partition, int(record.value or b"")) for _, partition, record in outbox.found]
        assert places == [(number, w.start_index) for number, w in WINDOWS[: len(places)]]
        assert {record.key for _, _, record in outbox.found} == {b"s0", b"s1", b"s2"}
        model.broken = True
        shadow.offer(WINDOWS[:3])
        await until(lambda: shadow.counts["failed"] == 3)
        model.broken = False
        shadow.offer(WINDOWS[:3])  # it goes on
        await until(lambda: shadow.counts["scored"] + dropped == 1008)
        shadow.close()

    asyncio.run(work())


def test_what_is_published_already_is_scored_in_silence() -> None:
    async def work() -> None:
        shadow, outbox, model = Shadow("t.shadow"), KeptOutbox(), Model()
        shadow.predictor = model  # type: ignore[assignment]
        model.may.set()
        shadow.start(outbox)  # type: ignore[arg-type]
        shadow.offer([(SILENT, WINDOWS[0][1]), WINDOWS[1], WINDOWS[2]])
        await until(lambda: shadow.counts["scored"] == 3 and len(outbox.found) >= 2)
        shadow.close()
        assert [(partition, record.value) for _, partition, record in outbox.found] == [(1, b"1"), (2, b"2")]

    asyncio.run(work())
