"""Segments without a broker: what goes in comes out, for this program and for any MCAP reader; damage is found and told."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from archive_lab import BEGIN_MS, PREFIX, chunk, chunk_record, record, some_records, write_archive, write_segment
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from mcap.reader import make_reader
from mcap.records import Channel, DataEnd, Message, Metadata, Schema
from mcap.stream_reader import StreamReader

from kymo.streams.archive.format import ArchivedRecord, Contents, Span, read_segment
from kymo.streams.archive.read import ArchiveReader
from kymo.streams.errors import ArchiveError
from kymo.streams.labels.labels import Label
from kymo.streams.readers import read

ODD = [
    record("sessions", 0, "s1", b'{"session": "s1"}'),
    record("sessions", 1, "s1", None),
    record("events", 0, None, b"no JSON"),
    record("events", 1, "", b'{"start_ns": 5}'),
    ArchivedRecord(f"{PREFIX}.rejected", 3, 2**33 + 7, BEGIN_MS, 1, b"\xff\x00", b"", (("reason", b"x"), ("r", None))),
    ArchivedRecord(f"{PREFIX}.sensor", 3, 2**32 - 1, -1, 0, b"s1", b"\x01no chunk"),
    ArchivedRecord(f"{PREFIX}.sensor", 3, 2**32, 5, 0, b"s1", b"\x01no chunk either", (("a", b""), ("a", b"\xff"))),
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
    def label(offset: int, **members: object) -> ArchivedRecord:
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
