"""Sessions that another chain stored, as after a promotion of a model with other steps, are begun anew, and counted."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from models.serving.handed import Left, Limits
from models.serving.partition import Partition
from models.serving.takeover import events_mark
from processors.chain import Chain
from processors.intake import Intake
from processors.spectrogram import Spectrogram
from processors.windows import Windows
from streams.chunk import Chunk, Header, signal_format
from streams.codec import ChunkCodec

RAW = Chain((Intake(), Windows(8, 4)))
COLUMNS = Chain((Intake(), Spectrogram(nperseg=4, noverlap=2), Windows(8, 4)))


def take(partition: Partition, first: int, count: int) -> list[int]:
    """Take samples of one session; start indices of the windows that became whole."""
    data = np.arange(first, first + count, dtype=np.float32)[:, None]
    chunk = Chunk(Header("s", 0, signal_format("imu", ("x",), 10)), first, data)
    record = SimpleNamespace(offset=first, key=b"s", value=ChunkCodec().encode(chunk), timestamp=0)
    found = [pending for made in partition.take("t", [record], lambda *_: None) for pending in made]
    for pending in found:
        partition.acknowledge(pending)
    return [pending.output.start_index for pending in found]  # type: ignore[union-attr]


@pytest.mark.parametrize(("before", "after"), [(RAW, COLUMNS), (COLUMNS, RAW), (RAW, RAW)])
def test_another_chain(before: Chain, after: Chain) -> None:
    clock = [0.0]
    first = Partition(0, before, lambda _: None, lambda: clock[0], Limits(quiet_s=1))
    first.load(Left(next_offset={"t": 0}))
    assert take(first, 0, 10) == [0]
    clock[0] = 5.0
    ((session, snapshot),) = first.snapshots()
    assert snapshot is not None
    second = Partition(0, after, lambda _: None, lambda: clock[0])
    second.load(Left(snapshots={session.name: snapshot}, next_offset={"t": 10}))
    same = before is after
    assert take(second, 10, 10) == ([4, 8, 12] if same else [12])  # what began before is known to the same chain alone
    assert second.counts["other_chain"] == (not same)


def test_marks_beside_commits() -> None:
    notes = ['{"events": 7}', "", None, "x", "[1]", '{"events": -1}', '{"events": true}']
    assert [events_mark(note) for note in notes] == [7, 0, 0, 0, 0, 0, 0]
