"""`kymo archive export`: tables read back to the same numbers, and a file that Foxglove's readers take as it is."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archive_lab import BEGIN_MS, chunk, chunk_record, record, write_archive
from mcap.reader import make_reader
from verbs import invoke

from kymo.processors.branch import Branch
from kymo.processors.chain import Chain
from kymo.processors.intake import Intake
from kymo.processors.join import Join
from kymo.streams.archive.check import check_archive
from kymo.streams.archive.export import export_recordings, file_stem, label_columns, sample_times
from kymo.streams.archive.read import ArchiveReader
from kymo.streams.chunk import Chunk, Format, Header, signal_format
from kymo.streams.codec import ChunkCodec
from kymo.streams.events import Event
from kymo.streams.labels.labels import Label
from kymo.streams.readers import read
from kymo.streams.recording import Recording, StreamData
from kymo.streams.replay.schedule import ReplayPlan, schedule
from kymo.streams.words import NS

T0 = BEGIN_MS * 10**6
ODD = np.array([[0.1, -1e-30], [np.nan, 3e38], [1 / 3, 0.0]])


def signal(name: str, data: np.ndarray[Any, Any], rate: Fraction, dtype: str, origin_ns: int = T0) -> StreamData:
    header = Header("s", origin_ns, signal_format(name, ("x", "y"), rate, dtype))
    return StreamData(header, data.astype(dtype))


def recording(*streams: StreamData, labels: tuple[Label, ...] = (), session: str = "s") -> Recording:
    return Recording(session, list(streams), list(labels), "P1", {"device": "watch"})


def label(start: int, end: int, text: str, name: str = "label") -> Label:
    return Label(f"{name}{start}", "s", name, start, end, text, "me")


def export(made: Recording, fmt: str, out: Path, told: list[str] | None = None) -> list[Path]:
    ((session, paths),) = export_recordings([made], fmt, out, (told if told is not None else []).append)
    assert session == made.session
    assert list(out.rglob(".*")) == []
    return paths


@pytest.mark.parametrize("fmt", ["csv", "parquet"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tables_read_back_to_the_same_samples(tmp_path: Path, fmt: str, dtype: str) -> None:
    made = recording(signal("imu.left", ODD, Fraction(30), dtype), labels=(label(T0, T0 + 50_000_000, "walk"),))
    (path,) = export(made, fmt, tmp_path)
    assert path == tmp_path / "s" / f"imu.left.{fmt}"
    (back,) = read([path])
    assert (back.session, back.subject) == ("s", "P1")
    (stream,) = back.streams
    values = stream.data[:, [stream.header.format.channels.index(c) for c in ("x", "y")]]
    assert np.array_equal(values.astype(dtype), ODD.astype(dtype), equal_nan=True)
    assert [one.label for one in back.labels] == ["walk"]
    if fmt == "csv":
        lines = path.read_text().splitlines()
        assert lines[0] == "t_ns,x,y,label,session,subject"
        assert lines[1] == f"{T0},0.1,-1e-30,walk,s,P1"
        assert lines[2].startswith(f"{T0 + 33_333_333},,3")
        assert lines[3].endswith(",,s,P1")  # after the label


def test_times_are_exact_however_long_the_stream() -> None:
    far = 10**10  # its product with 10**9 does not fit into 64 bits
    header = Header("s", 5, signal_format("imu", ("x",), Fraction(500)))
    stream = StreamData(header, np.zeros((3, 1), np.float32), None, 0, [(7, np.zeros((1, 1))), (far, np.zeros((2, 1)))])
    assert sample_times(stream).tolist() == [header.time_ns(i) for i in (7, far, far + 1)]


def test_an_irregular_stream_comes_back_without_its_progress_marks(tmp_path: Path) -> None:
    chain = (Intake(("ibi",)), Intake(("eda",)))
    spec = Join(
        (Branch("ibi", "0", Chain(chain[:1]), "hold", reach_ns=3 * NS), Branch("eda", "4", Chain(chain[1:]))),
        "4",
        "eda",
    )
    times = T0 + np.array([0, 0, 900, 1800, 5200, 9000], np.int64) * 1_000_000
    eda, ibi = (Header("s", T0, item.raw) for item in spec.branches[::-1])
    beats = StreamData(ibi, np.arange(6, dtype=np.float32)[:, None], times)
    made = Recording("s", [StreamData(eda, np.arange(40, dtype=np.float32)[:, None]), beats])
    chunks = [due.chunk for due in schedule([made], [0], ReplayPlan())]
    late = Chunk(ibi, 6, np.ones((1, 1), np.float32), times[:1])
    chunks[-2:-2] = [late, next(chunk for chunk in chunks if chunk.stream == "ibi" and chunk.count)]
    assert sum(chunk.complete_ns is not None for chunk in chunks) == 9
    folder = tmp_path / "archive"
    write_archive(folder, [[chunk_record(offset, chunk, "physio") for offset, chunk in enumerate(chunks)]])
    assert check_archive(folder) == []
    (back,) = read([folder])
    (stream,) = (one for one in back.streams if one.header.format.stream == "ibi")
    assert stream.times_ns is not None
    assert (stream.times_ns.tolist(), stream.data.tolist()) == (times.tolist(), beats.data.tolist())
    assert "ibi: 1 sample left out, their times go back" in back.notes
    (path,) = (path for path in export(back, "csv", tmp_path) if path.stem == "ibi")
    assert [int(line.split(",")[0]) for line in path.read_text().splitlines()[1:]] == times.tolist()
    online = spec.build()
    came = [
        out
        for record in ArchiveReader(folder).records()
        for out in online.push(ChunkCodec().decode(record.value or b""))
    ]
    offline = spec.build()
    wanted = [out for one in back.streams for chunk in one.chunks(3) for out in offline.push(chunk)]
    both = [np.concatenate([out.data for out in outs]).tobytes() for outs in (came, wanted)]
    assert both[0] == both[1]
    assert len(both[0]) == 40 * 8


def test_what_a_progress_mark_makes_late_is_late_in_the_archive_too(tmp_path: Path) -> None:
    header = Header("s", T0, signal_format("ibi", ("ibi",), 0))

    def beats(first: int, *seconds: int, mark_s: int | None = None) -> Chunk:
        data = np.arange(first, first + len(seconds), dtype=np.float32)[:, None]
        mark = None if mark_s is None else T0 + mark_s * NS
        return Chunk(header, first, data, T0 + np.array(seconds, np.int64) * NS, complete_ns=mark)

    chunks = [beats(0, 10), beats(1, mark_s=20), beats(1, 15, 22), beats(0, 10, mark_s=30), beats(3, 25, 35)]
    stage = Intake(("ibi",)).build()
    online = [int(time) for chunk in chunks for part in stage.push(chunk) for time in part.times_ns]
    assert online == [T0 + seconds * NS for seconds in (10, 22, 35)]
    write_archive(tmp_path, [[chunk_record(offset, chunk, "physio") for offset, chunk in enumerate(chunks)]])
    (back,) = read([tmp_path])
    assert back.streams[0].times_ns is not None
    assert back.streams[0].times_ns.tolist() == online
    assert "ibi: 2 samples left out, their times go back" in back.notes
    late = [note for note in back.notes if "as a worker leaves it out" in note]
    assert late == ["1 message not read: late or repeated chunk of ibi, as a worker leaves it out"]


def test_label_columns() -> None:
    times = np.array([0, 10, 20, 30])
    assert label_columns([], times) == {}
    assert label_columns([label(10, 30, "a"), label(30, 31, "b")], times) == {"label": ["", "a", "a", "b"]}
    two = label_columns([label(0, 5, "a", "gait"), label(15, 40, "b", "mood")], times)
    assert two == {"label.gait": ["a", "", "", ""], "label.mood": ["", "", "b", "b"]}


def test_samples_with_axes_and_a_clock_set_anew(tmp_path: Path) -> None:
    fmt = Format("pose", ("x", "y"), (), Fraction(30), "int16", (2, 2))
    data = np.arange(8, dtype=np.int16).reshape(2, 2, 2)
    streams = [StreamData(Header("a/b", origin, fmt), data) for origin in (T0, T0 + 10**12)]
    paths = export(recording(*streams, session="a/b"), "csv", tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in paths] == [
        f"{file_stem('a/b')}/pose.csv",
        f"{file_stem('a/b')}/pose.2.csv",
    ]
    assert paths[0].read_text().splitlines()[:2] == ["t_ns,x[0],y[0],x[1],y[1],session,subject", f"{T0},0,1,2,3,a/b,P1"]


def test_pictures_are_left_out_of_tables_and_said(tmp_path: Path) -> None:
    told: list[str] = []
    assert export(recording(video()), "csv", tmp_path, told) == []
    assert told == ["s: video is left out, its samples are pictures; take --format foxglove"]


def video() -> StreamData:
    frames = np.empty(2, object)
    frames[:] = [b"\xff\xd8one", b"\xff\xd8two"]
    return StreamData(Header("s", T0, Format("video", (), (), Fraction(2), "jpeg", ())), frames)


def messages(path: Path) -> tuple[dict[str, Any], dict[str, list[tuple[int, Any]]]]:
    """By topic: the schema, and log time with the message."""
    schemas, found, times = {}, defaultdict(list), []
    with path.open("rb") as raw:
        for schema, channel, message in make_reader(raw, validate_crcs=True).iter_messages(log_time_order=False):
            assert schema is not None
            assert (schema.encoding, channel.message_encoding) == ("jsonschema", "json")
            schemas[channel.topic] = {"name": schema.name} | json.loads(schema.data)
            found[channel.topic].append((message.log_time, json.loads(message.data)))
            times.append(message.log_time)
    assert times == sorted(times)
    return schemas, found


def check_value(value: Any, rule: dict[str, Any]) -> None:
    """The few words of JSON Schema that are used."""
    if "oneOf" in rule:
        assert value in [one["const"] for one in rule["oneOf"]]
        return
    kinds = {"object": dict, "integer": int, "number": int | float | None, "string": str, "array": list}
    assert isinstance(value, kinds[rule["type"]])
    if rule["type"] == "array":
        for item in value:
            check_value(item, rule["items"])
    for name, inner in rule.get("properties", {}).items():
        check_value(value[name], inner)


def test_foxglove(tmp_path: Path) -> None:
    pixels = Format("video.raw", ("r", "g", "b"), (), Fraction(1), "uint8", (1, 2, 3))
    raw = StreamData(Header("s", T0, pixels), np.arange(6, dtype=np.uint8).reshape(1, 1, 2, 3))
    pose = StreamData(
        Header("s", T0, Format("pose", ("x", "y"), (), Fraction(30), "int16", (2, 2))),
        np.arange(4, dtype=np.int16).reshape(1, 2, 2),
    )
    made = recording(
        signal("imu", ODD, Fraction(30), "float64"),
        video(),
        raw,
        pose,
        labels=(label(T0 + 40_000_000, T0 + 10**9, "run"),),
    )
    (path,) = export(made, "foxglove", tmp_path)
    schemas, found = messages(path)
    for topic, items in found.items():
        for _, value in items:
            check_value(value, schemas[topic])
    time = {"timestamp": {"sec": T0 // 10**9, "nsec": 0}}
    assert found["/imu"][0] == (T0, time | {"x": 0.1, "y": -1e-30})
    assert [(at - T0, v["x"]) for at, v in found["/imu"]] == [(0, 0.1), (33_333_333, None), (66_666_666, 1 / 3)]
    assert found["/pose"] == [(T0, time | {"x": [0, 2], "y": [1, 3]})]
    assert schemas["/video"]["name"] == "foxglove.CompressedImage"
    assert [base64.b64decode(v["data"]) for _, v in found["/video"]] == [b"\xff\xd8one", b"\xff\xd8two"]
    ((_, picture),) = found["/video.raw"]
    assert (picture["width"], picture["height"], picture["step"], picture["encoding"]) == (2, 1, 6, "rgb8")
    assert base64.b64decode(picture["data"]) == bytes(range(6))
    ((at, log),) = found["/labels"]
    assert (at - T0, log["message"], log["name"], schemas["/labels"]["name"]) == (
        40_000_000,
        "run for 0.96 s",
        "label",
        "foxglove.Log",
    )


def test_foxglove_holds_events(tmp_path: Path) -> None:
    event = Event("a/r/0", "r", "r@1", "a", "imu", 0, T0, T0 + 10**9, "walk", 0.75, {"walk": 0.75}, head="")
    further = replace(event, id="a/r/0/grip", head="grip", label="firm")
    raw = [event.to_json(), further.to_json(), b"damaged", replace(event, session="b").to_json()]
    keys = ("a", "a", "a", "b")
    records = [record("events", offset, key, text) for offset, (key, text) in enumerate(zip(keys, raw, strict=True))]
    write_archive(tmp_path / "archive", [[chunk_record(0, chunk("a", 0)), *records]])
    reader = ArchiveReader(tmp_path / "archive")
    ((_, (path,)),) = export_recordings(reader.recordings(), "foxglove", tmp_path / "out", events_of=reader.events)
    schemas, found = messages(path)
    assert schemas["/events/r"]["name"] == "kymo.Event"
    time = {"timestamp": {"sec": T0 // 10**9, "nsec": T0 % 10**9}}
    assert found["/events/r"] == [(T0, time | event.to_dict())]
    assert [message["label"] for _, message in found["/events/r/grip"]] == ["firm"]
    (again,), (before,) = read([path]), reader.recordings()
    assert [stream.header.format.stream for stream in again.streams] == ["imu"]
    np.testing.assert_array_equal(again.streams[0].data, before.streams[0].data)


def test_the_command_line(tmp_path: Path) -> None:
    text = json.dumps({"session": "a", "start_ns": T0, "end_ns": T0 + 10**9, "label": "walk"}).encode()
    write_archive(
        tmp_path / "archive",
        [
            [chunk_record(0, chunk("a", 0)), chunk_record(1, chunk("b", 0))],
            [chunk_record(2, chunk("a", 10)), record("labels", 0, "a", text)],
        ],
    )
    where = ("--dir", str(tmp_path / "archive"), "--out", str(tmp_path / "out"))
    done = invoke("archive", "export", "--format", "csv", "--json", *where)
    assert [Path(p).relative_to(tmp_path / "out").as_posix() for p in json.loads(done.stdout)["files"]] == [
        "a/imu.csv",
        "b/imu.csv",
    ]
    (a,) = read([tmp_path / "out" / "a" / "imu.csv"])
    assert (a.streams[0].count, [one.label for one in a.labels]) == (20, ["walk"])
    assert (
        invoke("archive", "export", "--format", "foxglove", "--session", "b", *where).stdout
        == f"1 file in {tmp_path / 'out'}\n"
    )
    assert [p.name for p in (tmp_path / "out").glob("*.mcap")] == ["b.mcap"]
    done = invoke("archive", "export", "--format", "csv", "--session", "c", *where, status=1)
    assert done.stderr.count("\n") == 1
    assert "no session c; there are a, b" in done.stderr
