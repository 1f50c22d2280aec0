"""MCAP files that were cut or damaged: as much as is whole is read, and what is not is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mcap.reader import make_reader
from mcap_files import FOREIGN, chunk, error_of, mcap, needs_foreign, one, sample

from kymo.streams.errors import SourceError
from kymo.streams.readers import read


@needs_foreign
def test_every_cut_of_a_file_is_read_as_far_as_it_is_whole(tmp_path: Path) -> None:
    content = FOREIGN.read_bytes()
    whole = one(FOREIGN).streams[0].data
    with FOREIGN.open("rb") as file:
        summary = make_reader(file).get_summary()
    assert summary is not None
    first = summary.chunk_indexes[0]
    first_chunk_end = first.chunk_start_offset + first.chunk_length
    counts = set()
    for size in range(0, len(content), len(content) // 23):
        path = tmp_path / "cut.mcap"
        path.write_bytes(content[:size])
        if size < first_chunk_end:
            assert "ends within a record" in error_of(path) or size < 9
            continue
        recording = one(path)
        data = recording.streams[0].data
        assert "the file ends within a record" in recording.notes[0] or len(data) == len(whole)
        np.testing.assert_array_equal(data, whole[: len(data)])
        counts.add(len(data))
    assert len(counts) == 2


def test_a_cut_file_says_where(tmp_path: Path) -> None:
    path = mcap(tmp_path / "x.mcap", [sample("acc", i * 10**7, [i, 0, 0]) for i in range(200)], chunk_size=1_000)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    notes = one(path).notes
    assert notes[0].startswith("the file ends within a record: whole up to byte ")
    assert notes[0].endswith(f" of {len(content) // 2}, the rest is not read")
    path.write_bytes(content[:60])
    assert error_of(path).startswith("holds no whole message; the file ends within a record: whole up to byte ")
    for junk in (b"abc", b"a,b,c\n1,2,3\n4,5,6\n", bytes(100)):
        path.write_bytes(junk)
        assert error_of(path) == "is no MCAP file (its first bytes say so)"
    path.write_bytes(b"")
    assert error_of(path) == "is empty; expected an MCAP file"


def test_a_damaged_chunk_is_passed_over_and_leaves_a_gap(tmp_path: Path) -> None:
    path = mcap(tmp_path / "x.mcap", [sample("acc", i * 10**7, [i, 0, 0]) for i in range(300)], chunk_size=3_000)
    content = bytearray(path.read_bytes())
    with path.open("rb") as file:
        summary = make_reader(file).get_summary()
    assert summary is not None
    second = summary.chunk_indexes[1]
    content[second.chunk_start_offset + 80] ^= 0xFF
    path.write_bytes(content)
    recording = one(path)
    assert recording.notes[0].startswith("1 damaged MCAP chunk passed over, the first ends at byte ")
    assert any("1 gap, " in note for note in recording.notes)
    stream = recording.streams[0]
    indexes = [first + i for first, piece in stream.pieces for i in range(len(piece))]
    assert stream.data[:, 0].tolist() == indexes
    assert 100 < stream.count < 300


def test_random_damage_never_gives_a_traceback(tmp_path: Path) -> None:
    messages = [sample("acc", i * 10**7, [i, 0, 0]) for i in range(50)] + [chunk(i * 10, 10) for i in range(5)]
    content = mcap(tmp_path / "x.mcap", messages, chunk_size=500, metadata={"a": "b"}).read_bytes()
    random = np.random.default_rng(1)
    path = tmp_path / "y.mcap"
    for _ in range(300):
        damaged = bytearray(content)
        for at in random.integers(0, len(content), random.integers(1, 6)):
            damaged[at] = random.integers(0, 256)
        path.write_bytes(damaged)
        try:
            list(read([path]))
        except SourceError as error:
            assert str(error).count("\n") == 0  # noqa: PT017
