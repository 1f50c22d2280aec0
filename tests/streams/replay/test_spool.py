"""Recordings that are kept in a file are the same ones, and memory does not hold them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from archive_lab import chunk_record, write_archive

from kymo.streams.chunk import Chunk, Header, signal_format
from kymo.streams.errors import SourceError
from kymo.streams.recording import ReadOptions, Recording, StreamData
from kymo.streams.replay.cli import choose
from kymo.streams.replay.replay import ReplaySummary, spooled_parts
from kymo.streams.replay.schedule import ReplayPlan, digest, schedule, starts
from kymo.streams.replay.spool import Spool
from kymo.streams.settings import Settings
from kymo.streams.topics import MIB
from kymo.streams.words import NS

PLAN = ReplayPlan(speed=None, chunk_ms=300)


def recordings() -> Iterator[Recording]:
    """Of every kind: regular with a gap, doubles, irregular, pictures, nothing at all."""
    random = np.random.default_rng(1)
    for n in range(7):
        name = f"s{n}"
        regular = Header(name, NS, signal_format("imu", ("x", "y"), 100))
        numbers = np.concatenate([np.arange(5, 400), np.arange(450, 700)]).astype(np.int64)
        streams = [StreamData.from_indexes(regular, random.standard_normal((645, 2)).astype(np.float32), numbers)]
        if n % 2:
            eda = Header(name, 3 * NS, signal_format("eda", ("eda",), Fraction(4), "float64"))
            streams.append(StreamData(eda, random.standard_normal((31, 1))))
            pulse = Header(name, 0, replace(signal_format("ibi", ("ibi",), 1), rate=None))
            times = np.cumsum(random.integers(1, NS, 17)).astype(np.int64)
            streams.append(StreamData(pulse, random.standard_normal((17, 1)).astype(np.float32), times))
        if n == 3:
            frames = np.empty(9, object)
            frames[:] = [random.bytes(int(size)) for size in random.integers(1, 5000, 9)]
            film = replace(signal_format("video", ("rgb",), 2, "jpeg"), shape=())
            streams.append(StreamData(Header(name, 0, film), frames))
        if n == 5:
            streams.append(StreamData(Header(name, 0, signal_format("hr", ("hr",), 1)), np.empty((0, 1), np.float32)))
        yield Recording(name, streams, subject=f"p{n}", metadata={"n": str(n)}, notes=["as it was"])


def sent(found: list[Recording]) -> list[tuple[int, int, int, bytes, int, bool]]:
    """What a replay sends."""
    out = []
    for due in schedule(found, starts(found)[0], PLAN):
        c = due.chunk
        data = b"".join(map(bytes, c.data)) if c.header.format.dtype == "jpeg" else c.data.tobytes()
        times = b"" if c.times_ns is None else c.times_ns.tobytes()
        out.append((due.due_ns, due.session, due.stream, data + times, c.first_index, c.end))
    return out


@pytest.mark.parametrize("most", [0, 10_000, 10**9])
def test_kept_recordings_are_the_same(tmp_path: Path, most: int) -> None:
    before, after = list(recordings()), Spool(tmp_path / "new", most).keep(recordings())
    assert sent(after) == sent(before)
    assert [digest(r, PLAN) for r in after] == [digest(r, PLAN) for r in before]
    about = lambda r: (r.session, r.subject, r.metadata, r.notes, r.start_ns, r.end_ns)  # noqa: E731
    assert [about(r) for r in after] == [about(r) for r in before]
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").iterdir())  # the file has no name


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match="cannot be put there"):
        Spool(tmp_path / "file", 0).keep(recordings())


def archive(folder: Path, sessions: int) -> int:
    """1 MB a session; gives the size of all."""
    rows, offset, parts = 2500, 0, []
    for n in range(sessions):
        header = Header(f"s{n}", 1_770_000_000 * NS, signal_format("imu", ("x", "y"), 500))
        data = np.zeros((50 * rows, 2), np.float32)
        parts.append(
            [chunk_record(offset + i, Chunk(header, i * rows, data[i * rows : (i + 1) * rows])) for i in range(50)]
        )
        offset += 50
    write_archive(folder, parts)
    return sessions * data.nbytes


def test_a_replay_does_not_hold_its_archive_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kymo.streams.replay.replay.KEPT_BYTES", 2 * MIB)
    peaks = []
    for sessions in (8, 24):
        folder = tmp_path / str(sessions)
        size = archive(folder, sessions)
        plan = replace(PLAN, start_s=1, duration_s=240)
        tracemalloc.start()
        chosen = choose([str(folder)], ReadOptions(), None, None)
        parts = spooled_parts(chosen, plan, ReplaySummary(topics="t"), Settings(home=tmp_path / "home"))
        samples = sum(due.chunk.count for due in schedule(parts, starts(parts)[0], plan))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert samples == sessions * 500 * 240
    assert peaks[1] - peaks[0] < 1.5 * MIB
    assert peaks[1] < size / 2
