"""A member of a consumer group: what every agent does about its partitions. In: partitions that come and go, under a lease. Out: nothing
done behind its back.

Whatever an agent has to let go of goes one way: what is under way is finished, what was published is committed, the rest is forgotten, and
whoever is next takes it up from the commit. All of that ends before the lease on the partitions does, or the process begins again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator, Mapping
from functools import partial
from typing import Any

from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from kymo.models.serving.handover import Commits
from kymo.models.serving.runtime import Outbox, Runtime
from kymo.processors.fetch import Passed
from kymo.streams.errors import DeliveryError

_YIELD_S = 0.005  # how long records are taken before other tasks have their turn


class Member(ABC):
    """Loads what it is assigned, lets go of what is revoked, and tells of the first failure that makes going on unsafe."""

    operator: Any  # what it does
    partitions: Mapping[int, Any]  # by number, what it holds
    _commits: Commits

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._life = 0  # counts how often it has let go of everything
        self._holding = 0  # whether it is about to: nothing new is begun then
        self._changed = asyncio.Condition()
        self._turn = asyncio.Lock()  # no record is taken while snapshots are stored
        self._ending = asyncio.Lock()
        self._outbox = Outbox(runtime.kafka.aiokafka_producer, self._fail, self._stamp_ms)
        self._tasks: list[asyncio.Task[None]] = []
        self._loading: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._until = 0.0  # when others should have their turn

    @abstractmethod
    def _taking(self, tp: TopicPartition, batch: list[Any]) -> Iterator[None]:
        """Take the records of a partition; gives back where others should have their turn: at :attr:`_until`, or where it is full."""

    @abstractmethod
    def _pass(self, tp: TopicPartition, offset: int) -> None:
        """Go on from an offset of a partition: there is no record before it."""

    @property
    @abstractmethod
    def _ready(self) -> bool:
        """Whether there is something to do with what was taken."""

    @property
    @abstractmethod
    def _full(self) -> bool:
        """Whether nothing more should be taken for now."""

    @abstractmethod
    async def _load(self, life: int) -> None:
        """Take over what is assigned as its last owners left it; then its records may come."""

    @abstractmethod
    async def _finish(self) -> None:
        """Finish what is under way, commit, and forget everything."""

    def _run(self, *loops: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._tasks = [asyncio.create_task(self._guard(loop)) for loop in loops]

    def _stamp_ms(self) -> int:
        return self._runtime.kafka.lease.stamp_ms

    async def _guard(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except asyncio.CancelledError:
            raise
        except KafkaError as error:
            self._fail(DeliveryError(f"Kafka's client gave up ({error!r})"))
        except BaseException as error:
            self._fail(error)

    async def on_records(self, records: Mapping[TopicPartition, list[Any]]) -> None:
        """Take records; returns when there is room for more."""
        self._raise_failure()
        life, more = self._life, True
        with contextlib.closing(self._parts(records)) as parts:
            while more:
                async with self._turn:
                    if life != self._life or self._holding:
                        return
                    self._until = time.perf_counter() + _YIELD_S
                    try:
                        more = next(parts, self) is None
                    except DeliveryError:
                        await self._commits.check_topics()
                        raise
                if self._ready:
                    await self._wake()
                await self._wait_for(lambda: life != self._life or not self._full)
                if more:
                    await asyncio.sleep(0)

    def _parts(self, records: Mapping[TopicPartition, list[Any]]) -> Generator[None, None, None]:
        for tp, batch in records.items():
            if tp.topic in self.operator.inputs:
                passed = batch.pop() if isinstance(batch[-1], Passed) else None
                if batch:
                    yield from self._taking(tp, batch)
                if passed is not None:
                    self._pass(tp, passed.offset + 1)

    @staticmethod
    def _check(tp: TopicPartition, offset: int, expected: int) -> None:
        """Refuse records that were taken already: their topic may have been made again."""
        if offset < expected:
            raise DeliveryError(f"{tp.topic}/{tp.partition} goes back from {expected} to {offset}")

    def on_assigned(self) -> None:
        """Load what came, in a task of its own: a rebalance is over only when this returns."""
        self._begin_loading()

    def _begin_loading(self) -> None:
        self._loading = asyncio.create_task(self._guard(partial(self._load, self._life)))

    async def on_revoked(self) -> None:
        """Finish what is under way, commit it and forget the partitions."""
        async with self._letting_go():
            pass

    @contextlib.asynccontextmanager
    async def _letting_go(self) -> AsyncIterator[None]:
        """Nothing is taken, made or committed any more, what was published is committed, nothing is held."""
        self._life += 1
        self._holding += 1
        self._runtime.kafka.hold()
        try:
            async with self._ending:
                await self._wake()
                if self._loading is not None:
                    self._loading.cancel()
                    await asyncio.wait([self._loading])
                    self._loading = None
                if self.partitions:
                    await self._within_lease(self._finish())
                yield
        finally:
            self._holding -= 1

    async def _within_lease(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        while not task.done():
            if (left_s := self._runtime.kafka.lease.left_s) <= 0:
                task.cancel()
                raise DeliveryError("partitions were not handed over in time; others may own them")
            await asyncio.wait([task], timeout=left_s)
        task.result()

    async def on_stop(self) -> None:
        """Let go of everything, and close."""
        try:
            if self._failure is None:
                async with self._letting_go():
                    pass
        finally:
            for task in self._tasks:
                task.cancel()
            self._outbox.close()
            await self._runtime.read_back.close()

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _wait_for(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._raise_failure()
            await asyncio.sleep(0.002)
        self._raise_failure()

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
            self._runtime.failed(error)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
