"""Segments without a broker: what goes in comes out, for this program and for any MCAP reader; damage is found, told and recovered
from, and nothing else is claimed; what is erased is gone."""

from __future__ import annotations

import json
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from archive_lab import (
    BEGIN_MS,
    PREFIX,
    chunk,
    chunk_record,
    following,
    record,
    some_records,
    write_archive,
    write_segment,
)
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from mcap.reader import make_reader
from mcap.records import Channel, DataEnd, Message, Metadata, Schema
from mcap.stream_reader import StreamReader
from verbs import invoke

from kymo.streams.archive.check import check_archive, recover
from kymo.streams.archive.erase import ERASED_FILE, Erased, erase_session, name_digest
from kymo.streams.archive.format import Contents, Span, read_segment, segment_paths
from kymo.streams.archive.read import ArchiveReader
from kymo.streams.errors import ArchiveError
from kymo.streams.labels.labels import Label
from kymo.streams.messages import Record
from kymo.streams.readers import read

ODD = [
    record("sessions", 0, "s1", b'{"session": "s1"}'),
    record("sessions", 1, "s1", None),
    record("events", 0, None, b"no JSON"),
    record("events", 1, "", b'{"start_ns": 5}'),
    Record(f"{PREFIX}.rejected", 3, 2**33 + 7, BEGIN_MS, 1, b"\xff\x00", b"", (("reason", b"x"), ("r", None))),
    Record(f"{PREFIX}.sensor", 3, 2**32 - 1, -1, 0, b"s1", b"\x01no chunk"),
    Record(f"{PREFIX}.sensor", 3, 2**32, 5, 0, b"s1", b"\x01no chunk either", (("a", b""), ("a", b"\xff"))),
]


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    records = [*some_records(1, 400), *ODD]
    write_archive(tmp_path, [records[:150], records[150:300], records[300:]])
    assert list(ArchiveReader(tmp_path).records()) == records


def test_any_reader_reads_a_segment(tmp_path: Path) -> None:
    records = some_records(2, 50)
    path = write_segment(tmp_path, 1, records)
    with path.open("rb") as raw:
        reader = make_reader(raw, validate_crcs=True)
        found = list(reader.iter_messages(log_time_order=False))
        summary = reader.get_summary()
    assert [bytes(message.data) for _, _, message in found] == [r.value for r in records]
    assert [message.sequence for _, _, message in found] == [r.offset for r in records]
    assert [message.publish_time for _, _, message in found] == [r.timestamp * 10**6 for r in records]
    assert [channel.topic for _, channel, _ in found] == [f"{r.topic}/{r.key.decode()}" for r in records]
    assert [channel.metadata["topic"] for _, channel, _ in found] == [r.topic for r in records]
    assert summary is not None
    assert summary.statistics is not None
    assert summary.statistics.message_count == 50
    # The schema in the file alone is enough to decode.
    schema, _, message = found[0]
    assert schema is not None
    pool, files = DescriptorPool(), FileDescriptorSet.FromString(schema.data)
    for file in files.file:
        pool.Add(file)
    decoded = GetMessageClass(pool.FindMessageTypeByName(schema.name)).FromString(message.data)
    assert (decoded.session, decoded.stream, decoded.first_index) == (records[0].key.decode(), "imu", 0)  # type: ignore[attr-defined, union-attr]


def test_official_tools_find_nothing_to_warn_of(tmp_path: Path) -> None:
    """What `mcap doctor` looks at, and why `mcap merge` would want a flag."""
    records = [*some_records(1, 400), *ODD]  # partitions one behind the other: record times go back
    assert any(a.timestamp > b.timestamp for a, b in pairwise(records))
    metadata = []
    for number in (1, 2):
        latest, registered = 0, set[tuple[type, int]]()
        with write_segment(tmp_path, number, records).open("rb") as raw:
            for record_ in StreamReader(raw, validate_crcs=True).records:
                if isinstance(record_, Message):
                    assert record_.log_time >= latest
                    latest = record_.log_time
                    assert (Channel, record_.channel_id) in registered
                elif isinstance(record_, Channel | Schema):
                    assert (type(record_), record_.id) not in registered
                    registered.add((type(record_), record_.id))
                elif isinstance(record_, Metadata):
                    metadata.append(record_.name)
                elif isinstance(record_, DataEnd):  # the summary names all channels again
                    break
    assert metadata == ["kymo.archive.00000001", "kymo.archive.00000002"]


def test_a_segment_says_what_it_holds(tmp_path: Path) -> None:
    contents = Contents(
        PREFIX, "cluster", {(f"{PREFIX}.sensor", 0): Span("id", 5, 5), (f"{PREFIX}.sensor", 1): Span("id", 9, 9)}
    )
    path = write_segment(tmp_path, 3, [chunk_record(5, chunk("a", 0)), chunk_record(8, chunk("b", 0))], contents)
    found = read_segment(path)
    assert (found.number, found.count, found.size) == (3, 2, path.stat().st_size)
    assert (found.start_ns, found.end_ns) == ((BEGIN_MS + 5) * 10**6, (BEGIN_MS + 8) * 10**6)
    assert {place: (s.topic_id, s.first, s.next) for place, s in found.contents.spans.items()} == {
        (f"{PREFIX}.sensor", 0): ("id", 5, 9),
        (f"{PREFIX}.sensor", 1): ("id", 9, 9),
    }
    assert found.contents.absent == [(f"{PREFIX}.sensor", 0, 6, 8, "hole")]
    assert [(c.session, c.count) for c in found.channels] == [("a", 1), ("b", 1)]


def test_recordings_go_across_segments(tmp_path: Path) -> None:
    records = [
        chunk_record(0, chunk("a", 0)),
        chunk_record(1, chunk("b", 0, 7)),
        chunk_record(2, chunk("a", 10)),
        chunk_record(3, chunk("a", 0)),  # sent again
        chunk_record(4, chunk("a", 40)),  # behind a gap
        chunk_record(5, chunk("a", 20)),  # late: a worker has gone on
        chunk_record(6, chunk("a", 45, 10, end=True)),  # overlaps
        chunk_record(0, chunk("a", 0, 5, "eda"), "physio"),
        record("sessions", 0, "a", json.dumps({"session": "a", "subject": "P1", "device": "watch"}).encode()),
    ]
    write_archive(tmp_path, [records[:3], records[3:5], records[5:]])
    a, b = read([tmp_path])
    assert (a.session, a.subject, a.metadata["device"], b.session, b.subject) == ("a", "P1", "watch", "b", None)
    imu, eda = a.streams
    assert [(first, len(data)) for first, data in imu.pieces] == [(0, 20), (40, 15)]
    assert np.array_equal(imu.data[:, 0], [*range(20), *range(40, 55)])
    assert (eda.header.format.stream, eda.count) == ("eda", 5)
    assert [s.count for s in b.streams] == [7]
    assert any("2 messages not read: late or repeated chunk of imu" in note for note in a.notes)


def test_labels_of_all_segments_count_and_later_ones_correct(tmp_path: Path) -> None:
    def label(offset: int, **members: object) -> Record:
        value = {"session": "a", "set": "label", "start_ns": 0, "end_ns": 10, "label": "walk"} | members
        return record("labels", offset, "a", json.dumps(value).encode())

    write_archive(
        tmp_path,
        [
            [chunk_record(0, chunk("a", 0)), label(0, id="1"), label(1, id="2", start_ns=10, end_ns=20)],
            [
                label(2, id="3", label="run", replaces="1"),
                record("labels", 3, "a", b'{"session": "a", "start_ns": 3, "label": "x"}'),
            ],
        ],
    )
    (recording,) = read([tmp_path])
    assert recording.labels == [
        Label("3", "a", "label", 0, 10, "run", replaces="1"),
        Label("2", "a", "label", 10, 20, "walk"),
    ]


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    write_archive(tmp_path, [some_records(3, 200)])
    reader = ArchiveReader(tmp_path)
    (only,) = reader.recordings(sessions=["s3"])
    assert only.session == "s3"
    assert {r.session for r in reader.recordings()} == {f"s{i}" for i in range(6)}


def test_damage_is_told(tmp_path: Path) -> None:
    (path,) = write_archive(tmp_path, [some_records(4, 100)])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match=r"kymo-00000001.*damaged.*recover"):
        list(read([tmp_path]))
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ArchiveError, match="damaged"):
        ArchiveReader(tmp_path)
    with pytest.raises(ArchiveError, match="holds no segment"):
        ArchiveReader(tmp_path / "elsewhere")


def test_every_flipped_bit_of_an_index_is_told_or_changes_nothing(tmp_path: Path) -> None:
    records = some_records(4, 25, 9)
    (path,) = write_archive(tmp_path, [records])
    whole, told = path.read_bytes(), 0
    (index,) = read_segment(path).chunks
    at = sorted(index.message_index_offsets.values())
    for bit in range(8 * at[0], 8 * (at[0] + index.message_index_length), 7):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            assert list(ArchiveReader(tmp_path).records(lambda _: True)) == records, f"bit {bit % 8} of byte {bit // 8}"
        except ArchiveError as error:
            assert f"the chunk at byte {index.chunk_start_offset} is damaged" in str(error)  # noqa: PT017
            told += 1
    assert told > 25 * 64 // 7  # the positions, each of 8 bytes
    data = bytearray(whole)
    data[at[0] + 15 + 8] ^= 1  # the first position
    path.write_bytes(data)
    (found,) = recover(tmp_path)
    assert found.text.endswith("25 records recovered; nothing was lost")
    assert list(ArchiveReader(tmp_path).records(lambda _: True)) == records


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


def test_a_chunk_of_no_known_compression_is_a_damaged_one(tmp_path: Path) -> None:
    records = some_records(12, 1500)
    (path,) = write_archive(tmp_path, [records])
    flip(path, path.read_bytes().index(b"zstd"))
    (found,) = recover(tmp_path)
    kept = list(ArchiveReader(tmp_path).records())
    assert kept
    assert kept == records[len(records) - len(kept) :]
    assert "1 damaged MCAP chunk passed over" in found.text


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


def test_nothing_whole_does_not_keep_others_from_recovery(tmp_path: Path, paths: list[Path]) -> None:
    paths[0].write_bytes(b"\x89MCAP0\r\n")
    paths[1].write_bytes(paths[1].read_bytes()[:-100])
    with pytest.raises(ArchiveError, match=r"kymo-00000001.*nothing of it can be kept"):
        recover(tmp_path)
    assert list(ArchiveReader(tmp_path).records()) == [r for part in PARTS[1:] for r in part]


def test_the_command_line(tmp_path: Path, paths: list[Path]) -> None:
    rows = json.loads(invoke("archive", "list", "--dir", tmp_path, "--json").stdout)
    assert [row["segment"] for row in rows] == [path.name for path in paths]
    assert rows[2]["topics"] == {"labels": 1, "sensor": 200}
    assert sorted(rows[0]["sessions"]) == [f"s{i}" for i in range(6)]
    assert sum(end - start for row in rows for start, end in row["offsets"].values()) == 601
    invoke("archive", "--dir", tmp_path, "check")
    flip(paths[1], 3000)
    done = invoke("archive", "check", "--dir", tmp_path, "--json", status=1)
    assert json.loads(done.stdout)["ok"] is False
    done = invoke("archive", "recover", "--dir", tmp_path)
    assert "kymo-00000002.mcap" in done.stdout
    assert invoke("archive", "check", "--dir", tmp_path).stdout == f"{tmp_path}: whole\n"
    done = invoke("archive", "list", "--dir", tmp_path / "none", status=1)
    assert done.stderr.count("\n") == 1


SENSOR = ("t.sensor", 0)


def test_a_topic_made_anew_is_another_one(tmp_path: Path) -> None:
    erased = Erased(tmp_path)
    erased.add("s1", {SENSOR: 100}, {"t.sensor": "old"})
    before = record("sensor", 99, "s1", b"")
    behind = record("sensor", 100, "s1", b"")
    for found in (erased, Erased(tmp_path)):
        assert found.has(before, "old")
        assert not found.has(behind, "old")
        assert not found.has(before, "new")
        assert found.has(before, "")  # of a segment that does not tell: rather erased than kept
        assert not found.has(record("sensor", 99, "s2", b""), "old")
    erased.add("s1", {SENSOR: 50}, {"t.sensor": "new"})
    again = Erased(tmp_path)
    assert again.has(record("sensor", 49, "s1", b""), "new")
    assert not again.has(record("sensor", 50, "s1", b""), "new")
    assert again.has(before, "old")
    assert b"s1" not in (tmp_path / ERASED_FILE).read_bytes()


def test_a_list_without_ids_counts_for_every_topic_of_the_name(tmp_path: Path) -> None:
    rows = [{"session_sha256": name_digest("s1"), "until": [["t.sensor", 0, 100]]}]
    (tmp_path / ERASED_FILE).write_text(json.dumps(rows))
    erased = Erased(tmp_path)
    assert erased.has(record("sensor", 99, "s1", b""), "any")
    assert not erased.has(record("sensor", 100, "s1", b""), "any")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ERASED_FILE).write_text("[{}]")
    with pytest.raises(ArchiveError, match="says which sessions are erased"):
        Erased(tmp_path / "other")


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sessions in two segments, the second of them recovered from a damaged file, and no broker."""
    parts = [[chunk_record(2 * n + i, chunk(f"s{i}", 10 * n)) for i in range(2)] for n in range(2)]
    paths = write_archive(tmp_path / "a", parts)
    paths[1].with_name(paths[1].name + ".damaged").write_bytes(paths[1].read_bytes()[:-20])
    monkeypatch.setattr(
        "kymo.streams.kafka.sessions.delete_session", lambda *_: pytest.fail("nothing may be erased yet")
    )
    return tmp_path / "a"


def delete(folder: Path, *more: str) -> tuple[int, str]:
    done = invoke("sessions", "delete", "s0", "--yes", "--archive", folder, *more, status=None)
    return done.exit_code, done.stderr


def test_damaged_files_that_may_hold_the_session_are_named(archive: Path) -> None:
    before = {path.name: path.read_bytes() for path in archive.iterdir()}
    status, said = delete(archive)
    assert status == 1
    assert "kymo-00000002.mcap.damaged may hold records of s0" in said
    assert "--damaged" in said
    assert {path.name: path.read_bytes() for path in archive.iterdir() if path.name in before} == before


def test_damaged_files_go_where_that_is_asked_for(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kymo.streams.kafka.sessions import Deletion

    monkeypatch.setattr("kymo.streams.kafka.sessions.delete_session", lambda *_: Deletion())
    assert delete(archive, "--damaged")[0] == 0
    assert not list(archive.glob("*.damaged"))
    assert ArchiveReader(archive).sessions() == ["s1"]
    for path in archive.iterdir():
        assert b"s0" not in path.read_bytes()


def test_what_was_not_recovered_yet_is_not_thrown_away(archive: Path) -> None:
    """The recovery was killed: all that there is of the others' records stands in the damaged file."""
    segment_paths(archive)[1].unlink()
    status, said = delete(archive, "--damaged")
    assert (status, "kymo archive recover" in said) == (1, True)
    assert list(archive.glob("*.damaged"))


def test_chunks_without_a_key_are_no_session_but_somebodys(tmp_path: Path) -> None:
    keyed = [chunk_record(i, chunk("a", 10 * i)) for i in range(2)]
    others = [chunk("b", 0), chunk("b", 10), chunk("a", 20)]
    nameless = [chunk_record(2 + i, made)._replace(key=None) for i, made in enumerate(others)]
    odd = [record("sensor", 5, None, b"garbage"), record("sensor", 6, None, None)]
    write_archive(tmp_path, [[*keyed, *nameless, *odd]])
    reader = ArchiveReader(tmp_path)
    assert reader.sessions() == ["a"]  # no worker takes a chunk without a key
    assert [(r.session, r.streams[0].count) for r in reader.recordings()] == [("a", 20)]
    assert erase_session(tmp_path, "b") == (2, 1)
    assert erase_session(tmp_path, "a") == (3, 1)
    assert [r.value for r in ArchiveReader(tmp_path).records()] == [b"garbage", None]
