"""Taking over partitions. In: what is assigned, what stands in the topics. Out: what an earlier owner left of each partition."""

from __future__ import annotations

import json
from collections.abc import Sequence

from aiokafka.structs import TopicPartition

from models.around import Around, Job
from models.handed import Left


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
