"""`kymo archive check` and `recover`: every kind of damage is found, what is whole is kept, and nothing else is claimed."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path

import pytest
from archive_lab import PREFIX, chunk, chunk_record, following, record, some_records, write_archive, write_segment

from kymo.deploy.children import kymo_command
from kymo.streams.archive.check import check_archive, recover
from kymo.streams.archive.format import Contents, Span, read_segment
from kymo.streams.archive.read import ArchiveReader
from kymo.streams.errors import ArchiveError

RECORDS = some_records(9, 600)
PARTS = [RECORDS[:200], RECORDS[200:400], [*RECORDS[400:], record("labels", 0, "s1", None)]]


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return write_archive(tmp_path, PARTS)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def test_a_whole_archive_is_whole(tmp_path: Path, paths: list[Path]) -> None:
    assert check_archive(tmp_path) == []
    with pytest.raises(ArchiveError, match="no segment"):
        check_archive(tmp_path / "none")


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    (path,) = write_archive(tmp_path, [some_records(10, 30)])
    whole = path.read_bytes()
    for at in [*range(60), *range(60, len(whole), max(1, len(whole) // 200)), len(whole) - 1]:
        flip(path, at)
        assert check_archive(tmp_path), f"byte {at} of {len(whole)}"
        path.write_bytes(whole)
    assert check_archive(tmp_path) == []


def test_no_checksum_is_no_damage(tmp_path: Path) -> None:
    (path,) = write_archive(tmp_path, [some_records(10, 30)])
    data = bytearray(path.read_bytes())
    (summary,) = struct.unpack_from("<Q", data, len(data) - 28)
    data[summary - 4 : summary] = data[-12:-8] = bytes(4)  # other writers leave them out: 0, which means none in MCAP
    path.write_bytes(data)
    assert check_archive(tmp_path) == []


def test_what_is_missing_is_named(tmp_path: Path, paths: list[Path]) -> None:
    paths[1].unlink()
    wrong = check_archive(tmp_path)
    assert wrong[0] == f"{paths[2]}: segments 2 to 2 are missing"
    assert len(wrong) == 3  # and both partitions' offsets


def test_offsets_must_be_there_once(tmp_path: Path) -> None:
    place = (f"{PREFIX}.sensor", 0)
    contents = Contents(PREFIX, "", {place: Span("id", 0, 0)})
    write_segment(tmp_path, 1, [chunk_record(0, chunk("a", 0)), chunk_record(4, chunk("a", 10))], contents)
    assert check_archive(tmp_path) == []  # a hole that the segment itself records
    behind = following(contents)
    contents.absent.clear()
    write_segment(tmp_path, 1, [], contents)
    text = f"{tmp_path / 'kymo-00000001.mcap'}: {place[0]}, partition 0: the range ends at 5, its records at 0"
    assert check_archive(tmp_path) == [text]
    write_segment(
        tmp_path,
        1,
        [chunk_record(i, chunk("a", 0)) for i in (0, 1, 1, 2, 3, 4)],
        Contents(PREFIX, "", {place: Span("id", 0, 0)}),
    )
    assert ["offset 1 is there twice" in line for line in check_archive(tmp_path)] == [True]
    behind.spans[place].first = behind.spans[place].next = 7
    write_segment(tmp_path, 2, [chunk_record(7, chunk("a", 20))], behind)
    assert "begins at offset 7, the segment before ends at 5" in check_archive(tmp_path)[-1]


def test_a_cut_segment_is_kept_as_far_as_it_is_whole(tmp_path: Path) -> None:
    number = 1500
    records = some_records(11, number, 900)  # more than one chunk of the file
    first, second = write_archive(tmp_path, [records[:700], records[700:]])
    data = second.read_bytes()
    second.write_bytes(data[: len(data) * 3 // 4])
    (found,) = recover(tmp_path)
    kept = list(ArchiveReader(tmp_path).records())
    assert kept == records[: len(kept)]
    assert 700 < len(kept) == 700 + found.records < number
    assert "ends within a record" in found.text
    assert check_archive(tmp_path) == []
    assert (tmp_path / "kymo-00000002.mcap.damaged").exists()
    spans = read_segment(second).contents.spans
    assert {p: s.first for p, s in spans.items()} == {p: s.next for p, s in read_segment(first).contents.spans.items()}
    assert {s.topic_id for s in spans.values()} == {"id"}
    assert recover(tmp_path) == []


def test_a_damaged_chunk_is_left_out_and_its_offsets_are_known_to_be_gone(tmp_path: Path) -> None:
    records = some_records(12, 1500)
    (path,) = write_archive(tmp_path, [records])
    chunks = read_segment(path).chunks
    assert len(chunks) > 1
    flip(path, chunks[0].chunk_start_offset + chunks[0].chunk_length // 2)
    (found,) = recover(tmp_path)
    kept = list(ArchiveReader(tmp_path).records())
    assert kept == records[len(records) - len(kept) :]
    assert "1 damaged MCAP chunk passed over" in found.text
    spans = read_segment(path).contents
    assert sum(s.next - s.first for s in spans.spans.values()) == 1500 - sum(s.first for s in spans.spans.values())
    assert check_archive(tmp_path) == []


def test_an_unclosed_segment_is_recovered(tmp_path: Path, paths: list[Path]) -> None:
    data = paths[2].read_bytes()
    (summary_start,) = struct.unpack_from("<Q", data, len(data) - 8 - 20)
    paths[2].rename(paths[2].with_suffix(".mcap.partial"))
    paths[2].with_suffix(".mcap.partial").write_bytes(data[:summary_start])
    assert len(list(ArchiveReader(tmp_path).records())) == 400
    recover(tmp_path)
    assert list(ArchiveReader(tmp_path).records()) == [r for part in PARTS for r in part]
    assert check_archive(tmp_path) == []


def test_nothing_whole_is_an_error(tmp_path: Path) -> None:
    (path,) = write_archive(tmp_path, [some_records(13, 3)])
    path.write_bytes(b"\x89MCAP0\r\n")
    with pytest.raises(ArchiveError, match="nothing of it can be kept"):
        recover(tmp_path)


def kymo(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(kymo_command(*words), capture_output=True, text=True, check=False)


def test_the_command_line(tmp_path: Path, paths: list[Path]) -> None:
    rows = json.loads(kymo("archive", "list", "--dir", str(tmp_path), "--json").stdout)
    assert [row["segment"] for row in rows] == [path.name for path in paths]
    assert rows[2]["topics"] == {"labels": 1, "sensor": 200}
    assert sorted(rows[0]["sessions"]) == [f"s{i}" for i in range(6)]
    assert sum(end - start for row in rows for start, end in row["offsets"].values()) == 601
    assert kymo("archive", "--dir", str(tmp_path), "check").returncode == 0
    flip(paths[1], 3000)
    done = kymo("archive", "check", "--dir", str(tmp_path), "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["ok"] is False
    done = kymo("archive", "recover", "--dir", str(tmp_path))
    assert done.returncode == 0
    assert "kymo-00000002.mcap" in done.stdout
    assert kymo("archive", "check", "--dir", str(tmp_path)).stdout == f"{tmp_path}: whole\n"
    done = kymo("archive", "list", "--dir", str(tmp_path / "none"))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
