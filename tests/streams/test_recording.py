"""Recordings, labels and session records: chunking, label lookup, JSON."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from documents import SHARED
from hypothesis import given
from hypothesis import strategies as st

from kymo.streams.chunk import Header, signal_format
from kymo.streams.errors import SourceError
from kymo.streams.labels.labels import Label, LabelsJson, canonical, interval
from kymo.streams.recording import Recording, StreamData
from kymo.streams.sessions import SESSION_SCHEMA, session_record

HEADER = Header("s1", 1_000, signal_format("imu.left", ("a", "b"), 10, "float64", ("g", "g")))


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40)), min_size=0, max_size=6),
    st.integers(1, 50),
)
def test_chunks_of_any_size_are_the_data(runs: list[tuple[int, int]], size: int) -> None:
    indexes, at = [], 0
    for skip, length in runs:
        indexes += range(at + skip, at + skip + length)
        at += skip + length
    data = np.arange(2.0 * len(indexes)).reshape(-1, 2)
    stream = StreamData.from_indexes(HEADER, data, np.array(indexes, np.int64))
    chunks = list(stream.chunks(size))
    assert [chunk.end for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert all(chunk.count <= size and chunk.header is HEADER for chunk in chunks)
    assert [i for chunk in chunks for i in range(chunk.first_index, chunk.end_index)] == indexes
    np.testing.assert_array_equal(np.concatenate([chunk.data for chunk in chunks]), data)
    assert stream.count == len(indexes)
    np.testing.assert_array_equal(np.concatenate([piece for _, piece in stream.pieces]), stream.data)


def test_an_empty_stream_is_one_empty_end_chunk() -> None:
    (chunk,) = StreamData(HEADER, np.empty((0, 2))).chunks(100)
    assert (chunk.first_index, chunk.data.shape, chunk.end) == (0, (0, 2), True)


def test_irregular_chunks_carry_their_times() -> None:
    header = Header("s1", 5, signal_format("ibi", ("ibi",), Fraction(0), "float64"))
    times = np.array([5, 10, 100], np.int64)
    stream = StreamData(header, np.ones((3, 1)), times)
    assert [chunk.times_ns.tolist() for chunk in stream.chunks(2) if chunk.times_ns is not None] == [[5, 10], [100]]
    assert (stream.start_ns, stream.end_ns, stream.duration_s) == (5, 100, 95e-9)


def test_no_chunks_of_no_samples() -> None:
    with pytest.raises(ValueError, match="chunks of 0 samples"):
        next(StreamData(HEADER, np.ones((3, 2))).chunks(0))


def test_duration_counts_gaps() -> None:
    stream = StreamData.from_indexes(HEADER, np.ones((3, 2)), np.array([0, 1, 9]))
    assert stream.duration_s == 1.0
    assert (stream.start_ns, stream.end_ns) == (1_000, 1_000_001_000)


def _label(start: int, end: int, name: str) -> Label:
    return interval(session="s1", set="label", start_ns=start, end_ns=end, label=name)


@pytest.mark.parametrize(
    ("start", "end", "share", "expected"),
    [
        (0, 10, 0.5, "walk"),
        (5, 15, 0.5, "walk"),  # a tie: the one that starts first
        (6, 16, 0.5, "run"),
        (6, 16, 0.7, None),
        (18, 28, 0.5, None),
        (100, 110, 0.0, None),
        (8, 10, 1.0, "walk"),
    ],
)
def test_label_of(start: int, end: int, share: float, expected: str | None) -> None:
    recording = Recording("s1", [], [_label(0, 10, "walk"), _label(10, 20, "run")])
    assert recording.label_of(start, end, share) == expected


def test_parts_of_one_class_add_up() -> None:
    recording = Recording("s1", [], [_label(0, 3, "walk"), _label(3, 7, "run"), _label(7, 10, "walk")])
    assert recording.label_of(0, 10, 0.6) == "walk"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("3.0", "3"),
        ("-0.0", "0"),
        ("1e400", "1e400"),
        ("1_0", "1_0"),
        ("nan", "nan"),
        (".5", "0.5"),
        (2.0, "2"),
        ("", ""),
    ],
)
def test_canonical(value: object, text: str) -> None:
    assert canonical(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e15, max_value=1e15))
def test_canonical_is_stable_and_keeps_the_value(value: float) -> None:
    text = canonical(value)
    assert canonical(text) == text
    assert float(text) == value


def test_label_json_round_trip() -> None:
    label = Label("i", "s1", "speed", 1, 2, "3.5", "me", 7, "j")
    assert Label.from_json(json.loads(json.dumps(label.to_json()))) == label
    assert Label.from_json({"session": "s", "start_ns": 0, "end_ns": 1, "label": "3.0"}).id == "s/label/0"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"start_ns": 1.5}, "label: `start_ns` is 1.5, expected a whole number"),
        ({"label": 3}, "label: `label` is 3, expected a text"),
        ({"end_ns": -1}, "label 'x' ends at -1 ns, before it starts at 0 ns"),
    ],
)
def test_wrong_label_json(change: dict[str, object], text: str) -> None:
    good: dict[str, object] = {"session": "s", "start_ns": 0, "end_ns": 1, "label": "x"}
    with pytest.raises(SourceError) as error:
        Label.from_json(good | change)
    assert str(error.value) == text
    with pytest.raises(SourceError, match="`label` is absent, expected a text"):
        Label.from_json({"session": "s", "start_ns": 0, "end_ns": 1})


def test_example_labels_json() -> None:
    path = SHARED / "data/imu_mcap/example_labels.json"
    if not path.is_file():
        pytest.skip("shared/data/imu_mcap is absent")
    labels = LabelsJson(path).labels("distortion", {"0": "none"}, "s1")
    assert [(label.start_ns, label.end_ns, label.label) for label in labels] == [
        (4_883_785_939, 8_883_785_939, "1"),
        (19_314_421_341, 21_314_421_341, "none"),
    ]
    assert labels[0].id == "s1/distortion/4d92d450-9cf2-4ab4-9c88-b7f04bfbdc1b"
    with pytest.raises(SourceError, match="no event has the label key `speed`; keys that are there: distortion"):
        LabelsJson(path).labels("speed")


def test_events_without_metadata_have_no_keys(tmp_path: Path) -> None:
    path = tmp_path / "x.labels.json"
    events = [{"startTime": {"sec": 1}, "endTime": {"sec": 2}}, {"metadata": {"k": 1}}, {"metadata": [1]}, 5]
    path.write_text(json.dumps({"events": events}))
    assert LabelsJson(path).keys == ["k"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("[", "is no JSON"),
        ("[]", "expected an object with a list `events`"),
        ('{"events": [{}]}', "event 1 has no object `metadata`"),
        (
            '{"events": [{"metadata": {"k": 1}, "startTime": {"sec": 1.5}}]}',
            "event 1: `startTime` is {'sec': 1.5}, expected",
        ),
        (
            '{"events": [{"metadata": {"k": 1}, "startTime": {"sec": 2}, "endTime": {"sec": 1}}]}',
            "event 1 ends at 1000000000 ns, before it starts at 2000000000 ns",
        ),
    ],
)
def test_malformed_labels_json(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "x.labels.json"
    path.write_text(content)
    with pytest.raises(SourceError) as error:
        LabelsJson(path).labels("k")
    assert str(error.value).startswith(f"{path}: ")
    assert text in str(error.value)


def test_session_record_is_json() -> None:
    stream = StreamData(HEADER, np.ones((5, 2)))
    recording = Recording("s1", [stream], [], "P07", {"device": "watch", "room": "4"}, "/data/x.csv", ["a note"])
    record = json.loads(json.dumps(session_record(recording)))
    assert record["software"].startswith("kymo ")
    jsonschema.validate(record, SESSION_SCHEMA)
    jsonschema.validate(record | {"subject": None}, SESSION_SCHEMA)  # as of whom nothing is known
    assert [*record, "replayed"] == list(SESSION_SCHEMA["properties"])
    del record["software"]
    assert record == {
        "session": "s1",
        "subject": "P07",
        "start_ns": 1_000,
        "end_ns": 500_001_000,
        "streams": [
            {
                "stream": "imu.left",
                "placement": "left",
                "channels": ["a", "b"],
                "units": ["g", "g"],
                "rate_hz": 10.0,
                "rate": "10/1",
                "dtype": "float64",
                "samples": 5,
            }
        ],
        "device": "watch",
        "placement": "",
        "axes": "",
        "source": "x.csv",
        "metadata": {"room": "4"},
        "notes": ["a note"],
    }
