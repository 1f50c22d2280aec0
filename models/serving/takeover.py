"""Taking over partitions. In: what is assigned, what stands in the topics. Out: what an earlier owner left of each partition."""

from __future__ import annotations

import json
from collections.abc import Sequence

from aiokafka.structs import TopicPartition

from models.serving.around import Around, Job
from models.serving.handed import Left

_REWINDS = 3  # where the broker skips offsets that often, nothing stands there


class Rewinds:
    """Records that the broker has passed over.

    Parameters
    ----------
    around : Around
        Kafka.
    """

    def __init__(self, around: Around) -> None:
        self._around = around
        self._seen: dict[TopicPartition, tuple[int, int, int]] = {}  # (expected, came, how often)

    async def dropped(self, tp: TopicPartition, expected: int, came: int) -> bool:
        """Whether records in between were dropped, as in a rebalance, and so are read again; else there are none (any more)."""
        before = self._seen.get(tp, (-1, -1, 0))
        times = before[2] + 1 if before[:2] == (expected, came) else 1
        if times > _REWINDS or (await self._around.read_back.limits([tp]))[tp][0] > expected:
            return False
        self._seen[tp] = (expected, came, times)
        await self._around.kafka.rewind(tp, expected)
        return True


async def read_left(job: Job, around: Around, inputs: Sequence[TopicPartition], state_key: bytes) -> dict[int, Left]:
    """What the last owners of some partitions left.

    Parameters
    ----------
    job : Job
        What to do with them.
    around : Around
        Kafka.
    inputs : sequence of TopicPartition
        Partitions of the input topics.
    state_key : bytes
        How the keys of their snapshots begin.

    Returns
    -------
    dict of int to Left
        By number of the partition.
    """
    numbers = sorted({tp.partition for tp in inputs})
    events = {n: TopicPartition(job.topic, n) for n in numbers}
    states = [TopicPartition(around.names.of("state"), n) for n in numbers]
    limits = await around.read_back.limits([*inputs, *events.values(), *states])
    found = (await around.kafka.committed_with(inputs)).items()
    # A commit behind the end is of a topic that was deleted and made again.
    committed = {tp: c for tp, c in found if 0 <= c.offset <= limits[tp][1]}
    # Without a commit nothing is known: any event that is there may be of a window that comes again.
    marks = {tp: events_mark(committed[tp].metadata) if tp in committed else 0 for tp in inputs}
    starts = {
        n: max(limits[events[n]][0], min(mark for tp, mark in marks.items() if tp.partition == n)) for n in numbers
    }
    published = await around.read_back.published(
        {events[n]: (starts[n], limits[events[n]][1]) for n in numbers}, job.outputs.read
    )
    snapshots = await around.read_back.snapshots({tp: limits[tp] for tp in states}, state_key)
    return {
        n: Left(
            events_start=starts[n],
            events_end=limits[events[n]][1],
            published=published[n],
            snapshots=snapshots[n],
            next_offset={
                tp.topic: max(limits[tp][0], committed[tp].offset if tp in committed else 0)
                for tp in inputs
                if tp.partition == n
            },
            input_end={tp.topic: limits[tp][1] for tp in inputs if tp.partition == n},
        )
        for n in numbers
    }


def events_mark(metadata: str | None) -> int:
    """Where to begin to read the events back, as it stands beside a commit; 0, from the start, where another program made the commit."""
    try:
        mark = json.loads(metadata or "")["events"]
    except (ValueError, TypeError, KeyError):
        return 0
    return mark if type(mark) is int and mark >= 0 else 0
