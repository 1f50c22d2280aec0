"""What an earlier life left: snapshots of other chains, of other versions, of a topic that was made again; notes beside commits."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from aiokafka.structs import TopicPartition
from memory_kafka import MemoryKafka, Worker

from kymo.models.serving.handover import LIFE, ReadBack, floor_of, note, read_handovers
from kymo.models.serving.operator import Operator
from kymo.models.serving.outputs import Events
from kymo.models.serving.partition import Limits, Partition
from kymo.models.serving.snapshots import Floor, Handover, SessionSnapshot
from kymo.processors.chain import Chain
from kymo.processors.intake import Intake
from kymo.processors.steps.spectrogram import Spectrogram
from kymo.processors.windows import Windows
from kymo.streams.chunk import Chunk, Header, signal_format
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import MessageError
from kymo.streams.topics import Names

RAW = Chain((Intake(), Windows(8, 4)))
COLUMNS = Chain((Intake(), Spectrogram(nperseg=4, noverlap=2), Windows(8, 4)))


def take(partition: Partition, first: int, count: int) -> list[int]:
    """Take samples of one session, at an offset of the first one's number; start indices of the windows that became whole."""
    data = np.arange(first, first + count, dtype=np.float32)[:, None]
    chunk = Chunk(Header("s", 0, signal_format("imu", ("x",), 10)), first, data)
    record = SimpleNamespace(offset=first, key=b"s", value=ChunkCodec().encode(chunk), timestamp=0)
    found = [pending for made in partition.take("t", [record], lambda *_: None) for pending in made]
    for pending in found:
        partition.acknowledge(pending)
    return [pending.output.start_index for pending in found]  # type: ignore[union-attr]


def stored(chain: Chain) -> SessionSnapshot:
    """A session of two chunks, of samples 0 to 6 and 7 to 10, that went quiet."""
    clock = [0.0]
    partition = Partition(0, chain, lambda _: None, lambda: clock[0], Limits(quiet_s=1))
    partition.load(Handover(next_offset={"t": 0}, topic_ids={"t": "first"}))
    assert take(partition, 0, 7) + take(partition, 7, 3) == [0]
    clock[0] = 5.0
    ((_, make),) = partition.snapshots()
    assert make is not None
    return SessionSnapshot.decode(make().encode())


def taken_over(chain: Chain, snapshot: SessionSnapshot, topic_id: str = "first") -> Partition:
    partition = Partition(0, chain, lambda _: None, lambda: 0.0)
    partition.load(Handover(snapshots={"s": snapshot}, next_offset={"t": 10}, topic_ids={"t": topic_id}))
    return partition


@pytest.mark.parametrize(("before", "after"), [(RAW, COLUMNS), (COLUMNS, RAW), (RAW, RAW)])
def test_another_chain_reads_again_what_is_open(before: Chain, after: Chain) -> None:
    partition, same = taken_over(after, stored(before)), before is after
    assert partition.next_offset == {"t": 10 if same else 0}
    assert partition.counts["other_chain"] == (not same)
    again = [] if same else take(partition, 0, 7) + take(partition, 7, 3)
    assert again + take(partition, 10, 10) == [4, 8, 12]  # the window at 0 was given before


def test_what_of_it_is_gone_is_told() -> None:
    partition = Partition(0, RAW, lambda _: None, lambda: 0.0)
    left = Handover(snapshots={"s": stored(COLUMNS)}, next_offset={"t": 10}, first_offset={"t": 9})
    partition.load(left)
    assert partition.next_offset == {"t": 9}
    assert list(partition.damaged) == ["s"]


def test_offsets_of_a_topic_that_was_made_again_mean_nothing() -> None:
    partition = taken_over(RAW, stored(RAW), "second")
    record = SimpleNamespace(offset=2, key=b"s", value=None, timestamp=0)
    data = np.arange(10, 20, dtype=np.float32)[:, None]
    record.value = ChunkCodec().encode(Chunk(Header("s", 0, signal_format("imu", ("x",), 10)), 10, data))
    partition = Partition(0, RAW, lambda _: None, lambda: 0.0)
    partition.load(Handover(snapshots={"s": stored(RAW)}, next_offset={"t": 0}, topic_ids={"t": "second"}))
    made = [p.output.start_index for found in partition.take("t", [record], lambda *_: None) for p in found]  # type: ignore[union-attr]
    assert made == [4, 8, 12]  # with the samples that the first topic had
    assert partition.committable() == {"t": (2, Floor())}  # until a snapshot says so


@pytest.mark.parametrize(
    "raw", [b"", b"KS", b"KS\x09" + bytes(10), b"KS\x01\x05\x00\x00\x00[1,2]", b"\xff" * 50, b"{}"]
)
def test_what_is_no_snapshot_is_refused(raw: bytes) -> None:
    with pytest.raises(MessageError):
        SessionSnapshot.decode(raw)


@pytest.mark.parametrize("cut", [1, 20])
def test_a_session_whose_snapshot_is_damaged_begins_anew(cut: int) -> None:
    raw = stored(RAW).encode()
    partition = taken_over(RAW, SessionSnapshot.decode(raw[:-cut]))
    assert take(partition, 10, 10) == [12]
    assert list(partition.damaged) == ["s"]


def test_notes_beside_commits() -> None:
    notes = [note(Floor(7, 3), "id"), "", None, "x", "[1]", '{"events": -1}', '{"events": true}', '{"events": 1e999}']
    assert [floor_of(told) for told in notes] == [Floor(7, 3), *[Floor()] * 7]
    assert json.loads(notes[0] or "")["topic"] == "id"


class Leader:
    """A partition whose followers lag: readers are shown less than its leader has appended."""

    def __init__(self, shown: list[int], appended: list[int]) -> None:
        self._shown, self._appended, self.asked = shown, appended, 0
        self.cluster, self._client = self, self

    def leader_for_partition(self, _: TopicPartition) -> int:
        return 0

    async def send(self, _: int, request: Any) -> Any:
        assert request._replica_id >= 0  # a consumer would be told what is shown
        (at,) = self._next(self._appended)
        return SimpleNamespace(topics=[("t", [(0, 0, -1, at)])])

    async def beginning_offsets(self, wanted: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(wanted, 0)

    async def end_offsets(self, wanted: list[TopicPartition]) -> dict[TopicPartition, int]:
        self.asked += 1
        return dict.fromkeys(wanted, *self._next(self._shown))

    @staticmethod
    def _next(ends: list[int]) -> tuple[int]:
        return (ends.pop(0) if len(ends) > 1 else ends[0],)


@pytest.mark.parametrize(
    ("shown", "appended", "end"),
    [
        ([5], [5], 5),
        ([5, 6, 8], [8], 8),  # what a dead owner's leader has appended shows later
        ([5, 6, 6], [8, 8, 6], 6),  # another leader, which never had it
        ([5, 9], [8, 12], 9),  # others go on writing
    ],
)
def test_what_the_leader_has_appended_is_waited_for(shown: list[int], appended: list[int], end: int) -> None:
    read_back = ReadBack({})
    read_back._consumer = Leader(shown, appended)
    limits = asyncio.run(read_back.limits([TopicPartition("t", 0)]))
    assert limits == {TopicPartition("t", 0): (0, end)}


def test_a_snapshot_that_was_held_back_over_a_takeover_is_older_than_its_successor() -> None:
    kafka, names = MemoryKafka(), Names("t")
    older, newer = stored(RAW), replace(stored(RAW), upto=9)
    for life, snapshot in ((b"0.1", older), (b"1.2", newer), (b"0.1", older)):
        kafka.append(names.of("state"), 0, b"tiny\ns", snapshot.encode(), headers=((LIFE, life),))

    operator = Operator("r", "tiny", ("t.sensor",), RAW, Events("r"), names.of("events"), lambda _: None, lambda *_: [])

    async def take_over() -> Handover:
        runtime = Worker(kafka, operator, names).agent._runtime
        return (await read_handovers(operator, runtime, [TopicPartition("t.sensor", 0)], b"tiny\n"))[0]

    assert asyncio.run(take_over()).snapshots["s"].upto == 9
