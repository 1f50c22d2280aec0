"""What a pool of processes makes of an agent's outputs. In: outputs of a chain up to its slow step. Out: values, in order by partition.

Where more comes than can be done, what has waited for too long is dropped and counted: a gap in the derived stream. The choice shows by
nothing but what that topic holds, and there for good: once something behind a gap is published, an agent that begins again takes what is
missing before it for published. What is dropped must come live, sent when it was taken: a recording that is replayed has all the time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from kymo.models.serving.partition import Partition, Pending
from kymo.models.serving.processes import Processes, Value
from kymo.streams.chunk import Chunk, Format

_LIVE_MS = 60_000.0  # what is sent so soon after its time comes live
Judged = tuple[Partition, Pending, list[bytes]]


@dataclass(slots=True, eq=False)
class _Given:
    """An output that is given to a process."""

    partition: Partition
    pending: Pending
    value: Value | None = None  # None until it is there
    refusing: bool = False


class Lanes:
    """Outputs that processes are at, by partition in their order."""

    def __init__(
        self,
        processes: Processes,
        age_s: float,  # what has waited for longer is dropped; 0 for nothing
        dropped: Callable[[int], None],  # told of so many samples
        publish: Callable[[Sequence[Judged]], None],
        refuse: Callable[
            [Partition, Pending, str], Awaitable[None]
        ],  # has a record rejected; returns when that is acknowledged
        begin: Callable[[Callable[[], Coroutine[Any, Any, None]]], None],  # has something done in a task of its own
    ) -> None:
        self._processes, self._age_ms = processes, 1000 * age_s
        self._dropped, self._publish, self._refuse, self._begin = dropped, publish, refuse, begin
        self._lanes: dict[int, deque[_Given]] = {}
        self._under_way = 0  # batches

    @property
    def has_room(self) -> bool:
        """Whether a process could begin with more; one batch more is under way than there are processes, so that none waits."""
        return self._under_way <= self._processes.count

    @property
    def nbytes(self) -> int:
        """Size of the outputs that are given and not yet published."""
        lanes = (given for lane in self._lanes.values() for given in lane)
        return sum(given.pending.output.nbytes + len(given.value or b"") for given in lanes)

    def give(self, batch: Iterable[tuple[Partition, Pending]], encode: Callable[[Chunk], bytes]) -> None:
        """Have a batch done; end marks, of which there is nothing to do, are encoded as they are."""
        groups: dict[Format, list[_Given]] = {}
        for partition, pending in batch:
            output = pending.output
            assert isinstance(output, Chunk)
            given = _Given(partition, pending)
            if output.end:
                given.value = encode(output)
            elif self._is_too_old(output, pending.sent_ms):
                self._dropped(output.count)
                partition.acknowledge(pending)
                continue
            else:
                groups.setdefault(output.header.format, []).append(given)
            self._lanes.setdefault(partition.number, deque()).append(given)
            self._release(partition.number)
        for group in groups.values():
            self._under_way += 1
            self._begin(partial(self._do, group))

    def clear(self) -> None:
        """Publish nothing of what is under way."""
        self._lanes.clear()

    def _is_too_old(self, output: Chunk, sent_ms: int) -> bool:
        is_live = abs(sent_ms - output.start_ns / 1e6) < _LIVE_MS
        return is_live and 0 < self._age_ms < time.time() * 1000 - sent_ms

    async def _do(self, group: Sequence[_Given]) -> None:
        try:
            values = await self._processes.values([given.pending.output for given in group])  # type: ignore[misc]
        finally:
            self._under_way -= 1
        for given, value in zip(group, values, strict=True):
            given.value = value
        for number in {given.partition.number for given in group}:
            self._release(number)

    def _release(self, number: int) -> None:
        """Publish what nothing before it is missing of."""
        lane, done = self._lanes.get(number, deque()), list[Judged]()
        while lane and (value := lane[0].value) is not None:
            if isinstance(value, str):  # nothing behind it may show before it does
                if not lane[0].refusing:
                    lane[0].refusing = True
                    self._begin(partial(self._refuse_first, lane, value))
                break
            given = lane.popleft()
            done.append((given.partition, given.pending, [value]))
        if done:
            self._publish(done)
            for _, pending, _ in done:
                del pending.output

    async def _refuse_first(self, lane: deque[_Given], why: str) -> None:
        given = lane[0]
        await self._refuse(given.partition, given.pending, why)
        if self._lanes.get(given.partition.number) is lane:
            lane.popleft()
            given.partition.acknowledge(given.pending)
            self._release(given.partition.number)
