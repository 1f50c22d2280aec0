"""Labels from files and to files; times as users write them; the schema."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kymo.streams.errors import SourceError
from kymo.streams.labels.files import ImportOptions, as_json_lines, as_labels_json, as_table, labels_of_path, parse_time
from kymo.streams.labels.labels import LABEL_SCHEMA, Label, read_labels_json

NS = 10**9
START = 1_700_000_000 * NS


def start_of(session: str) -> int:
    if session != "s1":
        raise SourceError(f"no session {session!r} has been sent")
    return START


def read(path: Path, **how: str) -> list[Label]:
    return labels_of_path(str(path), ImportOptions(**how), start_of)


def label(start_s: float, end_s: float, text: str, session: str = "s1", kind: str = "label") -> Label:
    start, end = START + round(start_s * NS), START + round(end_s * NS)
    return Label(f"{session}/{kind}/{start}", session, kind, start, end, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12.5", START + 12_500_000_000),
        ("0", START),
        ("-1", START - NS),
        (".000000001", START + 1),
        ("1700000000000000001", 1_700_000_000_000_000_001),
        ("12ns", 12),
        ("-5 ns", -5),
        ("2023-11-14T22:13:20Z", START),
        ("2023-11-14T22:13:20", START),
        ("2023-11-14T23:13:20.123456789+01:00", START + 123_456_789),
        ("2023-11-14", 1_699_920_000 * NS),
    ],
)
def test_times(text: str, expected: int) -> None:
    assert parse_time(text, lambda: START) == expected


@given(st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)), st.integers(-12, 12))
def test_iso_times_are_exact(moment: datetime, hours: int) -> None:
    expected = (moment - datetime(1970, 1, 1) - timedelta(hours=hours)) // timedelta(microseconds=1) * 1000
    assert parse_time(f"{moment.isoformat()}{hours:+03d}:00", lambda: 0) == expected


@pytest.mark.parametrize("text", ["", "noon", "1e3", "12:30", "2023-14-01", "5 s", "1,5", "nan", "ns"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(SourceError, match="is no time: expected seconds from the session's start"):
        parse_time(text, lambda: 0)


def test_a_table(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text(
        "session,start,end,label,set,author,note\n"
        "s1,0,2.5,walk,,,x\n"
        's1,2023-11-14T22:13:23Z,1700000005000000000,3.0,speed,Ann,"a, b"\n'
    )
    assert read(tmp_path / "l.csv") == [
        label(0, 2.5, "walk"),
        Label(f"s1/speed/{START + 3 * NS}", "s1", "speed", START + 3 * NS, START + 5 * NS, "3", "Ann"),
    ]


def test_what_a_table_does_not_say(tmp_path: Path) -> None:
    (tmp_path / "l.tsv").write_text("start\tend\tlabel\n1\t2\twalk\n")
    (found,) = read(tmp_path / "l.tsv", session="s1", set="activity", author="Bob")
    assert found == Label(f"s1/activity/{START + NS}", "s1", "activity", START + NS, START + 2 * NS, "walk", "Bob")
    with pytest.raises(SourceError, match=r"l\.tsv, row 2: names no session"):
        read(tmp_path / "l.tsv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("session,start,label\ns1,0,x\n", "has no column `end`"),
        ("session,start,end,label\ns1,0,1\n", "row 2: has another number of cells"),
        ("session,start,end,label\ns1,0,1,a,b\n", "row 2: has another number of cells"),
        ("session,start,end,label\ns1,0,1,a\ns1,2,2,b\n", "row 3: label 'b' does not end after it starts"),
        ("session,start,end,label\ns1,soon,2,b\n", "row 2: 'soon' is no time"),
        ("session,start,end,label\nnobody,1,2,b\n", "row 2: no session 'nobody'"),
        ("session,start_ns,end_ns,label\ns1,1.5,2,b\n", "row 2: a time is no whole number"),
    ],
)
def test_wrong_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(SourceError, match=message):
        read(tmp_path / "l.csv")


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    labels = [label(0, 1, "a"), Label("x", "s1", "k", START, START + 7, 'b "c", d\n', "me", 5, "y"), label(2, 3, "")]
    (tmp_path / "l.jsonl").write_text(as_json_lines(labels))
    (tmp_path / "l.csv").write_text(as_table(labels))
    assert read(tmp_path / "l.jsonl") == [
        *labels[:1],
        labels[1].__class__(**{**labels[1].to_json(), "label": 'b "c", d'}),
        labels[2],
    ]
    assert read(tmp_path / "l.csv") == read(tmp_path / "l.jsonl")
    named = [x for x in labels if x.label]
    (tmp_path / "s1.labels.json").write_text(as_labels_json(named[:1]))
    (back,) = read_labels_json(tmp_path / "s1.labels.json", "label")
    assert (back.session, back.start_ns, back.end_ns, back.label) == ("s1", START, START + NS, "a")
    with pytest.raises(SourceError, match="holds one session, these labels are of 2"):
        as_labels_json([label(0, 1, "a"), label(0, 1, "a", "s2")])


def test_lines_that_are_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    for text, message in (
        ("[]", "row 1: holds no label: expected a JSON object"),
        ("\n{", "row 2: holds no label: 1 bytes are no JSON"),
        ('{"session": "s"}', "row 1: label: `start_ns` is absent"),
    ):
        path.write_text(text)
        with pytest.raises(SourceError, match=message):
            read(path)


def test_labels_of_recordings(tmp_path: Path) -> None:
    rows = "\n".join(f"{i / 10},{i},{'walk' if i < 10 else 'run'}" for i in range(20))
    (tmp_path / "rec.csv").write_text(f"t,x,activity\n{rows}\n")
    found = read(tmp_path, column="activity")
    assert [(x.session, x.set, x.start_ns, x.end_ns, x.label) for x in found] == [
        ("rec", "activity", 0, NS, "walk"),
        ("rec", "activity", NS, 2 * NS, "run"),
    ]
    with pytest.raises(SourceError, match="where do its labels stand"):
        read(tmp_path)


def test_a_labels_json_needs_a_key(tmp_path: Path) -> None:
    event = {"startTime": {"sec": 1}, "endTime": {"sec": 2}, "metadata": {"distortion": "1"}}
    (tmp_path / "s1.labels.json").write_text(json.dumps({"events": [event]}))
    with pytest.raises(SourceError, match="Name it with --key"):
        read(tmp_path / "s1.labels.json")
    (found,) = read(tmp_path / "s1.labels.json", key="distortion", session="walk-7")
    assert (found.session, found.set, found.start_ns, found.label) == ("walk-7", "distortion", NS, "1")


@given(
    st.builds(
        Label,
        *[st.text(min_size=1, max_size=5)] * 3,
        st.integers(-(10**18), 0),
        st.integers(0, 10**18),
        st.text(max_size=5),
        st.text(max_size=5),
        st.integers(0, 10**18),
        st.text(max_size=5),
    )
)
def test_every_label_is_of_the_schema(made: Label) -> None:
    jsonschema.validate(made.to_json(), LABEL_SCHEMA)
    assert list(made.to_json()) == list(LABEL_SCHEMA["properties"])


@pytest.mark.parametrize("member", ["session", "start_ns", "end_ns", "label"])
def test_reader_and_schema_require_the_same(member: str) -> None:
    value = {name: v for name, v in label(0, 1, "a").to_json().items() if name != member}
    with pytest.raises(jsonschema.ValidationError, match=member):
        jsonschema.validate(value, LABEL_SCHEMA)
    with pytest.raises(SourceError, match=member):
        Label.from_json(value)


def test_now_is_utc() -> None:
    moment = datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert parse_time("2026-03-01T12:00:00", lambda: 0) == int(moment.timestamp()) * NS
