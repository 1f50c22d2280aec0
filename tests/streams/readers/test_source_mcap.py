"""MCAP files as recordings: the foreign one of shared/ and own chunks."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2
from mcap.reader import make_reader
from mcap.writer import Writer
from mcap_files import FOREIGN, HEADER, Message, chunk, mcap, needs_foreign, sample
from tables import error_of, one

import kymo
from kymo.streams.chunk import Header, signal_format
from kymo.streams.readers import read
from kymo.streams.recording import InputOptions, ReadOptions


@needs_foreign
def test_foreign_topics_are_streams() -> None:
    recording = one(FOREIGN)
    assert recording.session == "basic_synthetic"
    with FOREIGN.open("rb") as file:
        raw = [json.loads(message.data) for _, _, message in make_reader(file).iter_messages(["gyro_raw"])]
    streams = {stream.header.format.stream: stream for stream in recording.streams}
    assert set(streams) == {"acc_raw", "gyro_raw", "mag_raw", "acc_truth", "gyro_truth", "mag_truth", "pose_truth"}
    gyro = streams["gyro_raw"]
    assert (gyro.header.format.channels, gyro.header.format.rate, gyro.header.origin_ns) == (("x", "y", "z"), 30, 0)
    np.testing.assert_array_equal(gyro.data, [message["values"] for message in raw])
    assert len(gyro.pieces) == 1
    # The file's times step by 33,333,333 ns or so; ours are exact thirtieths.
    ours = [gyro.header.time_ns(i) for i in range(gyro.count)]
    assert max(abs(a - message["timestamp"]) for a, message in zip(ours, raw, strict=True)) < 1_000


@needs_foreign
def test_foreign_topics_side_by_side(tmp_path: Path) -> None:
    options = ReadOptions(inputs=(InputOptions("imu", ("mag_raw.y", "acc_raw.x", "acc_raw.z"), Fraction(30)),))
    recording = one(FOREIGN, options)
    (stream,) = recording.streams
    apart = {s.header.format.stream: s.data for s in one(FOREIGN).streams}
    expected = np.column_stack([apart["mag_raw"][:, 1], apart["acc_raw"][:, 0], apart["acc_raw"][:, 2]])
    np.testing.assert_array_equal(stream.data, expected)
    assert stream.header.format.channels == ("mag_raw.y", "acc_raw.x", "acc_raw.z")
    wrong = ReadOptions(inputs=(InputOptions("imu", ("acc_raw.x", "acc_rav.y")),))
    assert error_of(FOREIGN, wrong).startswith("no channel `acc_rav.y` (did you mean `acc_raw.y`?); there are: ")
    absent = ReadOptions(inputs=(InputOptions("eda"),))
    assert error_of(FOREIGN, absent).startswith("no topic or channel `eda`")
    single = one(FOREIGN, ReadOptions(inputs=(InputOptions("acc_raw", ("z", "x")),)))
    np.testing.assert_array_equal(single.streams[0].data, apart["acc_raw"][:, [2, 0]])


def test_own_chunks_become_sessions(tmp_path: Path) -> None:
    other = Header("s2", 5, signal_format("eda", ("eda", "x"), 4, "float32"))
    record = {"session": "s1", "subject": "P1", "device": "watch", "metadata": {"room": "4"}}
    label = {"id": "l1", "session": "s1", "set": "label", "start_ns": 10**18, "end_ns": 10**18 + 5, "label": "3.0"}
    better = label | {"id": "l2", "label": "walk", "replaces": "l1"}
    messages = [
        chunk(20, 10),
        chunk(0, 10),
        chunk(0, 4, other, end=True),
        chunk(5, 10),
        ("kymo.labels", "json", "Label", 0, json.dumps(label).encode()),
        ("kymo.labels", "json", "Label", 1, json.dumps(better).encode()),
        ("kymo.sessions", "json", "Session", 0, json.dumps(record).encode()),
        ("kymo.events", "json", "Event", 0, b'{"id": "e", "probability": 0.5}'),
        ("/imu", "cdr", "sensor_msgs/msg/Imu", 0, b"\x00"),
        ("/imu", "cdr", "sensor_msgs/msg/Imu", 1, b"\x00"),
        ("kymo.sensor", "protobuf", "kymo.Chunk", 9, b"junk"),
        chunk(0, 3, Header("s1", 10**18, signal_format("spectrogram", ("a", "b"), 1), "digest")),
    ]
    first, second = read([mcap(tmp_path / "a.mcap", messages, metadata={"rig": "7"})])
    assert (first.session, first.subject) == ("s1", "P1")
    assert first.metadata == {"recording.rig": "7", "room": "4", "device": "watch"}
    assert [(start, len(piece)) for start, piece in first.streams[0].pieces] == [(0, 15), (20, 10)]
    np.testing.assert_array_equal(first.streams[0].data.ravel(), [*range(30), *range(40, 60)])
    assert first.streams[0].header == HEADER
    assert [entry.label for entry in first.labels] == ["walk"]
    assert (second.session, second.streams[0].count, second.notes) == ("s2", 4, first.notes[:4])
    assert first.notes == [
        "1 message not read: JSON without numbers on kymo.events",
        "2 messages not read: cdr on /imu",
        "1 message not read: derived stream spectrogram, made again from the raw one",
        "1 message not read: undecodable Chunk on kymo.sensor",
        "imu.left: 1 gap, 5 samples missing",
        "imu.left: 5 repeated samples, the first of each is kept",
    ]


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([sample("acc", 0, [1, 2, 3]), sample("acc", 10, [1, 2])], "acc, message 2: 2 values, expected 3"),
        ([sample("acc", 0, [])], "acc, message 1: 0 values, expected 1 to 65536"),
        ([sample("acc", 0, [1, "2", 3])], "acc, message 1: '2' among the values, expected a number"),
        ([sample("acc", 0, [1, True, 3])], "acc, message 1: True among the values, expected a number"),
        ([sample("acc", 0, [1], timestamp=1.5)], "acc, message 1: timestamp 1.5, expected whole ns"),
        ([sample("acc", 0, [10**400])], "acc, message 1: a value is too large for a float64"),
        (
            [sample("acc", 0, [1])],
            "acc, message 1: one time alone has no rate; give `rate_hz` in the recipe's [[input]]",
        ),
        (
            [("acc", "json", "e", 0, b"{"), ("/i", "cdr", "e2", 0, b"")],
            (
                "holds no Chunk messages and no messages with numbers; 1 message not read: broken JSON on acc; "
                "1 message not read: cdr on /i"
            ),
        ),
    ],
)
def test_malformed_messages(tmp_path: Path, messages: list[Message], text: str) -> None:
    assert error_of(mcap(tmp_path / "x.mcap", messages)) == text


def test_times_and_names_of_topics(tmp_path: Path) -> None:
    messages = [sample("/q/left", i * 10**7, [1, 0, 0, None], timestamp=5 + i * 10**8) for i in range(10) if i != 4]
    recording = one(mcap(tmp_path / "x.mcap", messages))
    (stream,) = recording.streams
    assert (stream.header.format.stream, stream.header.format.channels) == ("q.left", ("w", "x", "y", "z"))
    assert (stream.header.origin_ns, stream.header.format.rate) == (5, 10)
    assert [first for first, _ in stream.pieces] == [0, 5]
    assert np.isnan(stream.data[:, 3]).all()
    assert "q.left: 1 gap, 1 sample (0.1 s) missing, first before message 5" in recording.notes
    assert "q.left: 9 samples with missing values, first at index 0" in recording.notes


Stamp = Callable[[int], object]  # of a sample's time, ns


@pytest.mark.parametrize(
    ("stamp", "log_ns", "note"),
    [
        (lambda at: {"timestamp": at // 1000}, lambda at: at, "read as µs, in which they run as the log does"),
        (lambda at: {"timestamp": at / 1e9}, lambda at: at + 10**18, "read as s, in which they run as the log does"),
        (lambda at: {"ts": at // 10**6}, lambda at: at, "read as ms, in which they run as the log does"),
        (lambda at: {"timestamp": at // 10**6}, lambda at: at // 10**6, "`timestamp` is read as ms by its steps (20"),
        (lambda at: {"timestamp": at // 1000}, lambda at: 0, "`timestamp` is read as µs by its steps (20000"),
        (lambda at: {"timestamp": {"sec": at // 10**9, "nsec": at % 10**9}}, lambda at: 0, ""),
        (lambda at: {"header": {"stamp": {"sec": at // 10**9, "nanosec": at % 10**9}}}, lambda at: 0, ""),
        (lambda at: {"stamp": f"1970-01-01T00:00:0{at // 10**9}.{at % 10**9:09}Z"}, lambda at: 0, ""),
        (lambda at: {}, lambda at: at // 10**6, "`timestamp` is read as ms by its steps (20"),
        (lambda at: {}, lambda at: at, ""),
        (lambda at: {"timestamp": at + 7}, lambda at: at * 100, ""),  # replayed slower than it was taken
    ],
)
def test_the_unit_of_a_messages_own_time(tmp_path: Path, stamp: Stamp, log_ns: Callable[[int], int], note: str) -> None:
    times = [k * 20_000_000 for k in range(100)]
    recording = one(mcap(tmp_path / "x.mcap", [sample("acc", log_ns(at), [1.0], **stamp(at)) for at in times]))
    (stream,) = recording.streams
    assert (stream.header.format.rate, stream.count, len(stream.pieces)) == (50, 100, 1)
    assert [text for text in recording.notes if note in text and note] == [
        text for text in recording.notes if "read" in text
    ]


@pytest.mark.parametrize(
    "odd", ["9999-12-31T23:59:59Z", {"sec": 10**30}, {"sec": math.inf}, {"sec": 1, "nsec": math.inf}]
)
def test_a_time_beyond_all_is_the_logs(tmp_path: Path, odd: object) -> None:
    messages = [
        sample("acc", at := k * 20_000_000, [1.0], stamp=odd if k == 7 else {"sec": at / 1e9}) for k in range(100)
    ]
    recording = one(mcap(tmp_path / "x.mcap", messages))
    assert (recording.streams[0].header.format.rate, len(recording.streams[0].pieces)) == (50, 1)
    assert "acc: 1 message with a time beyond all calendars: the log's is taken" in recording.notes
    messages = [sample("acc", k, [1.0], stamp={"stars": 1}) for k in range(9)]
    assert "acc, message 1: timestamp {'stars': 1}, expected whole ns" in error_of(mcap(tmp_path / "y.mcap", messages))


REFUSED = (
    "`imu` mag_raw.x: unit 'counts' cannot be converted to 'field'; "
    "if that is right, say [[input]] units and change the step `scale`"
)


@pytest.mark.parametrize(
    ("matrix", "unit", "records", "said", "why"),
    [
        (0.00053, None, True, "counts", REFUSED),
        (0.02, "µT", True, "field", None),  # µT as the file has them, in the recipe's unit
        (1.0, None, True, "field", None),
        # As the published tool writes it: beside the truth.
        (0.00053, None, False, "counts", REFUSED),
        (1.0, None, False, "", None),
    ],
)
def test_units_travel_with_the_file_and_are_compared(
    tmp_path: Path, matrix: float, unit: str | None, records: bool, said: str, why: str | None
) -> None:
    calibration = {"matrix": (np.eye(3) * matrix).tolist()} | ({"unit": unit} if unit else {})
    written = {
        "initialization": {"sample_rate": 100, "mag": {"calibration": calibration}},
        "segments": [{"duration_s": 4, "rotation_rpy_degrees": {"yaw": 90}}],
    }
    path, recipe = tmp_path / "x.mcap", kymo.load_recipe("magnetic")
    kymo.synth(written, path)
    if not records:
        with path.open("rb") as file:
            found = [(c.topic, "json", "e", m.log_time, m.data) for _, c, m in make_reader(file).iter_messages()]
        mcap(path, found)
    (stream,) = one(path, recipe.read_options()).streams
    assert {
        u for c, u in zip(stream.header.format.channels, stream.header.format.units, strict=False) if "mag" in c
    } <= {said}
    assert recipe.matches(stream.header.format) == why
    if not why:
        np.testing.assert_allclose(np.linalg.norm(stream.data[:, 6:], axis=1), 1.0)


def test_what_no_field_is_as_long_as_is_doubted(tmp_path: Path) -> None:
    """A sensor log in µT that the published tool converted: nothing in it says the unit."""
    topics = {"mag_raw": [14.4, 10.7, -44.1], "acc_raw": [0.0, 0.0, 1.0], "gyro_raw": [0.0, 0.0, 0.0]}
    path = mcap(tmp_path / "x.mcap", [sample(t, k * 10**7, v) for k in range(400) for t, v in topics.items()])
    doubts = [note for note in one(path, kymo.load_recipe("magnetic").read_options()).notes if "taken for" in note]
    assert len(doubts) == 1
    assert doubts[0].startswith("imu: mag_raw is 47.6 long, and is taken for a field of length 1 (50 µT)")
    assert not [note for note in one(path).notes if "taken for" in note]


def test_the_time_of_publishing_counts_where_the_log_has_one_time(tmp_path: Path) -> None:
    out = io.BytesIO()
    writer = Writer(out)
    writer.start()
    channel = writer.register_channel("acc", "json", writer.register_schema("e", "jsonschema", b""))
    for k in range(50):
        writer.add_message(channel, 5, b'{"values": [1]}', k * 20_000_000)
    writer.finish()
    path = tmp_path / "x.mcap"
    path.write_bytes(out.getvalue())
    assert one(path).streams[0].header.format.rate == 50


def test_messages_of_numbers_by_name(tmp_path: Path) -> None:
    def message(k: int) -> Message:
        stamp = {"sec": 1_700_000_000 + k // 50, "nsec": k % 50 * 20_000_000}
        value = {"timestamp": stamp, "frame_id": "phone", "linear_acceleration": {"x": k, "y": -k}, "gyro": [0.5, k]}
        return "imu", "json", "custom.Imu", k * 20_000_000, json.dumps(value | ({"x": 1} if k == 3 else {})).encode()

    log = ("log", "json", "foxglove.Log", 0, b'{"level": 2, "message": "hello", "line": 0}')
    path = mcap(tmp_path / "x.mcap", [log, *map(message, range(100))])
    recording = one(path)
    (stream,) = recording.streams
    channels = ("linear_acceleration.x", "linear_acceleration.y", "gyro[0]", "gyro[1]")
    assert (stream.header.format.channels, stream.header.origin_ns) == (channels, 1_700_000_000 * 10**9)
    np.testing.assert_array_equal(stream.data[7], [7, -7, 0.5, 7])
    assert "imu: 1 message with further numbers, which are left out" in recording.notes
    assert "1 message not read: JSON without numbers on log" in recording.notes
    options = ReadOptions(inputs=(InputOptions("all", ("imu.gyro[1]", "imu.linear_acceleration.x"), Fraction(50)),))
    np.testing.assert_array_equal(one(path, options).streams[0].data[7], [7, 7])


def test_topics_that_are_no_signal_stop_no_other(tmp_path: Path) -> None:
    def message(topic: str, at: int, value: object) -> Message:
        return topic, "json", "e", at, json.dumps(value).encode()

    messages = [sample("acc", k * 10**7, [k]) for k in range(50)]
    messages += [message("config", 0, {"version": 3}), message("cloud", 0, {"points": [0.5] * 70_000})]
    messages += [
        message("acc", 10**9, {"x": 1}),
        message("scan", 0, {"ranges": [1, 2]}),
        message("scan", 10**7, {"ranges": [1]}),
    ]
    messages += [message("scan", 2 * 10**7, {"ranges": [1, 2, 3]}), message("scan", 3 * 10**7, {"text": "none"})]
    recording = one(mcap(tmp_path / "x.mcap", messages))
    scan = {stream.header.format.stream: stream for stream in recording.streams}["scan"]
    np.testing.assert_array_equal(scan.data, [[1, 2], [1, np.nan], [1, 2], [np.nan, np.nan]])
    assert len(recording.streams) == 2
    assert recording.notes[:2] == [
        "1 message not read: JSON without numbers on acc",
        "1 message not read: JSON without numbers on cloud",
    ]
    assert any(note.startswith("left out: config, message 1: one time alone has no rate") for note in recording.notes)


def test_protobuf_messages_of_others(tmp_path: Path) -> None:
    point = descriptor_pb2.FileDescriptorProto(name="imu.proto", package="rig", syntax="proto3")
    point.dependency.append("google/protobuf/timestamp.proto")
    vector, imu = point.message_type.add(name="Vector"), point.message_type.add(name="Imu")
    for number, name in enumerate("xyz", 1):
        vector.field.add(name=name, number=number, type=1, label=1)
    imu.field.add(name="timestamp", number=1, type=11, label=1, type_name=".google.protobuf.Timestamp")
    imu.field.add(name="acceleration", number=2, type=11, label=1, type_name=".rig.Vector")
    imu.field.add(name="place", number=3, type=9, label=1)
    stamps = descriptor_pb2.FileDescriptorProto.FromString(timestamp_pb2.DESCRIPTOR.serialized_pb)
    files = descriptor_pb2.FileDescriptorSet(file=[stamps, point])
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("rig.Imu"))
    out = io.BytesIO()
    writer = Writer(out)
    writer.start()
    channel = writer.register_channel(
        "/imu", "protobuf", writer.register_schema("rig.Imu", "protobuf", files.SerializeToString())
    )
    foreign = writer.register_channel(
        "/odd", "protobuf", writer.register_schema("rig.Odd", "protobuf", b"no descriptor")
    )
    writer.add_message(foreign, 0, b"\x08\x01", 0)
    for k in range(100):
        stamp = {"seconds": 1_700_000_000 + k // 50, "nanos": k % 50 * 20_000_000}
        data = kind(timestamp=stamp, acceleration={"x": k / 4, "z": -9.5}, place="wrist").SerializeToString()
        writer.add_message(channel, k, data, k)
    writer.finish()
    path = tmp_path / "x.mcap"
    path.write_bytes(out.getvalue())
    recording = one(path)
    (stream,) = recording.streams
    assert (stream.header.format.stream, stream.header.format.rate) == ("imu", 50)
    assert stream.header.format.channels == ("acceleration.x", "acceleration.y", "acceleration.z")
    np.testing.assert_array_equal(stream.data[10], [2.5, 0.0, -9.5])
    assert recording.notes[0] == "1 message not read: protobuf on /odd"


def test_topics_whose_times_differ_are_put_on_one_grid(tmp_path: Path) -> None:
    messages = [sample("acc", i * 10**7, [i]) for i in range(2, 20) if i != 7]
    messages += [sample("gyro", i * 10**7 + 1_000_000, [-i]) for i in range(18)]
    options = ReadOptions(inputs=(InputOptions("imu", ("acc.value", "gyro.value"), Fraction(100)),))
    recording = one(mcap(tmp_path / "x.mcap", messages), options)
    (stream,) = recording.streams
    acc = [np.nan if i in (0, 1, 7) else float(i) for i in range(20)]
    gyro = [-float(i) if i < 18 else np.nan for i in range(20)]
    np.testing.assert_array_equal(stream.data, np.column_stack([acc, gyro]))
    assert "imu: times of acc, gyro differ: put on one grid at 100 Hz" in recording.notes
    assert "imu: 5 samples with missing values, first at index 0" in recording.notes


def test_a_schema_may_name_the_values(tmp_path: Path) -> None:
    out = io.BytesIO()
    writer = Writer(out)
    writer.start()
    schema = {
        "type": "object",
        "properties": {"values": {"type": "array", "prefixItems": [{"title": "left"}, {"title": "right"}]}},
    }
    channel = writer.register_channel(
        "pupil", "json", writer.register_schema("pd", "jsonschema", json.dumps(schema).encode())
    )
    for i in range(3):
        writer.add_message(channel, i * 10**9, b'{"values": [1, 2]}', i * 10**9)
    writer.finish()
    path = tmp_path / "x.mcap"
    path.write_bytes(out.getvalue())
    assert one(path).streams[0].header.format.channels == ("left", "right")


def test_one_stream_of_own_chunks(tmp_path: Path) -> None:
    other = Header("s1", 5, signal_format("eda", ("eda", "x"), 4, "float32"))
    path = mcap(tmp_path / "x.mcap", [chunk(0, 10), chunk(0, 4, other)])
    assert [s.header.format.stream for s in one(path, ReadOptions(stream_name="eda")).streams] == ["eda"]
    assert error_of(path, ReadOptions(stream_name="imu.lift")) == (
        "no stream `imu.lift` (did you mean `imu.left`?); there are: imu.left, eda"
    )


@pytest.mark.parametrize("name", [None, "mine"])
def test_session_name_override(tmp_path: Path, name: str | None) -> None:
    path = mcap(tmp_path / "x.mcap", [chunk(0, 10)])
    recording = one(path, ReadOptions(session_name=name))
    assert recording.session == recording.streams[0].header.session == (name or "s1")
