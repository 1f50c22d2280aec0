"""MCAP files that were cut or damaged, or unpack to far more than they are: as much as is whole is read, and what is not is said."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from functools import cache
from pathlib import Path

import lz4.frame
import numpy as np
import pytest
import zstandard
from mcap.reader import make_reader
from mcap_files import FOREIGN, chunk, mcap, needs_foreign, sample
from tables import error_of, one

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


MIB = 2**20


MAGIC = b"\x89MCAP0\r\n"


def zstd(pieces: list[bytes]) -> bytes:
    packer = zstandard.ZstdCompressor().compressobj()  # without its size in the frame
    return b"".join(map(packer.compress, pieces)) + packer.flush()


def zstd_sized(pieces: list[bytes]) -> bytes:
    packer = zstandard.ZstdCompressor().compressobj(size=sum(map(len, pieces)))
    return b"".join(map(packer.compress, pieces)) + packer.flush()


def lz4_frame(pieces: list[bytes]) -> bytes:
    with lz4.frame.LZ4FrameCompressor() as packer:
        return packer.begin() + b"".join(map(packer.compress, pieces)) + packer.flush()


@cache
def packed_zeros(pack: Callable[[list[bytes]], bytes], mib: int) -> bytes:
    return pack([bytes(MIB)] * mib)


def text(value: str) -> bytes:
    return struct.pack("<I", len(value)) + value.encode()


def record(kind: int, body: bytes) -> bytes:
    return struct.pack("<BQ", kind, len(body)) + body


def packed(kind: str, content: bytes, says: int) -> bytes:
    inside = struct.pack("<QQQI", 0, 0, says, 0) + text(kind) + struct.pack("<Q", len(content)) + content
    return record(6, inside)


def bomb(path: Path, *chunks: bytes) -> Path:
    path.write_bytes(MAGIC + record(1, text("") + text("x")) + b"".join(chunks) + record(15, bytes(4)) + MAGIC)
    return path


@pytest.mark.parametrize("says", [160 * MIB, 100, 2**63])
@pytest.mark.parametrize("pack", [zstd, zstd_sized, lz4_frame])
def test_what_unpacks_to_far_more_than_it_is_takes_no_memory(
    pack: Callable[[list[bytes]], bytes], says: int, tmp_path: Path
) -> None:
    kind, content = pack.__name__.partition("_")[0], packed_zeros(pack, 160)
    path = bomb(tmp_path / "x.mcap", packed(kind, content, says))
    tracemalloc.start()
    error = error_of(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "unpack to" in error or "damaged MCAP chunk" in error
    assert peak < 30 * MIB


def test_a_chunk_that_claims_too_much_is_passed_over_as_a_damaged_one(tmp_path: Path) -> None:
    content = mcap(tmp_path / "x.mcap", [sample("acc", i * 10**7, [i, 0, 0]) for i in range(300)], 3_000).read_bytes()
    with (tmp_path / "x.mcap").open("rb") as file:
        summary = make_reader(file).get_summary()
    assert summary is not None
    size_at = summary.chunk_indexes[1].chunk_start_offset + 9 + 16
    (tmp_path / "x.mcap").write_bytes(content[:size_at] + struct.pack("<Q", 2**40) + content[size_at + 8 :])
    recording = one(tmp_path / "x.mcap")
    assert recording.notes[0].startswith("1 damaged MCAP chunk passed over, the first ends at byte ")
    assert "unpack to 1099511627776" in recording.notes[0]
    assert 100 < recording.streams[0].count < 300


def test_many_chunks_that_are_each_within_bounds(tmp_path: Path) -> None:
    private = struct.pack("<BQ", 0x80, 100 * MIB)  # a kind of record that readers leave alone
    content = zstd([private, *[bytes(MIB)] * 100])
    error = error_of(bomb(tmp_path / "x.mcap", *[packed("zstd", content, 100 * MIB + len(private))] * 4))
    assert "bytes of MCAP unpack to" in error


@pytest.mark.parametrize("kind", ["brotli", "ZSTD"])
def test_a_compression_that_is_not_known(kind: str, tmp_path: Path) -> None:
    assert f"compressed with '{kind}'" in error_of(bomb(tmp_path / "x.mcap", packed(kind, b"x", 1)))


def test_a_long_recording_that_packs_well_is_read(tmp_path: Path) -> None:
    path = mcap(tmp_path / "x.mcap", [sample("acc", i * 10**7, [float("nan"), 0, i % 2]) for i in range(50_000)])
    assert one(path).streams[0].count >= 49_999


def test_a_message_of_more_values_than_a_sample_has(tmp_path: Path) -> None:
    assert "expected 1 to 65536" in error_of(mcap(tmp_path / "x.mcap", [sample("acc", 0, [0] * 100_000)]))
