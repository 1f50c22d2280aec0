"""Labels from files and to files, and ``kymo label`` on a real broker; times as users write them; the schema."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from verbs import invoke

from kymo.streams.errors import SourceError
from kymo.streams.kafka.admin import ensure_topics
from kymo.streams.kafka.publish import Publisher
from kymo.streams.labels.cli import (
    ImportOptions,
    append_labels,
    as_json_lines,
    as_labels_json,
    as_table,
    labels_of_path,
    parse_time,
    read_labels,
)
from kymo.streams.labels.labels import LABEL_SCHEMA, Label, LabelsJson
from kymo.streams.readers import read as read_files
from kymo.streams.recording import ReadOptions
from kymo.streams.settings import Settings
from kymo.streams.topics import Names

NS = 10**9


START = 1_700_000_000 * NS


def start_of(session: str) -> int:
    if session != "s1":
        raise SourceError(f"no session {session!r} is there")
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
    (back,) = LabelsJson(tmp_path / "s1.labels.json").labels("label")
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


@pytest.fixture
def there(broker: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Topics with the sessions s1 and walk-07, which begin at START."""
    monkeypatch.setenv("KYMO_BROKERS", broker)
    monkeypatch.setenv("KYMO_PREFIX", prefix)
    monkeypatch.setenv("KYMO_PARTITIONS", "3")
    settings = Settings.from_env()
    ensure_topics(settings, Names(prefix))
    with Publisher(settings, Names(prefix)) as publisher:
        for session in ("s1", "walk-07"):
            publisher.send("sessions", session, json.dumps({"session": session, "start_ns": START}).encode())
        for session, loops in (("short", 1), ("again", 2)):
            row = {"session": session, "start_ns": START, "end_ns": START + 30 * NS, "replayed": {"loops": loops}}
            publisher.send("sessions", session, json.dumps(row).encode())
        publisher.flush()
    return settings


@pytest.fixture
def say(there: Settings) -> Callable[..., str]:
    """Runs ``kymo label …``; gives what it printed."""

    def run(*words: str, status: int = 0) -> str:
        done = invoke("label", *words, status=status)
        assert "Traceback" not in done.output
        return done.output

    return run


def exported(text: str) -> list[tuple[str, float, float, str]]:
    found = [json.loads(line) for line in text.splitlines()]
    return [(x["session"], (x["start_ns"] - START) / NS, (x["end_ns"] - START) / NS, x["label"]) for x in found]


def test_labels_are_added_and_corrected(say: Callable[..., str], there: Settings) -> None:
    say("add", "s1", "0", "100", "walk", "--author", "Ann")
    first = json.loads(say("add", "walk-07", "2023-11-14T22:13:20Z", str(START + 5 * NS), "3.0", "--json"))
    assert (first["label"], first["end_ns"] - first["start_ns"], first["set"]) == ("3", 5 * NS, "label")
    say("add", "s1", "40", "60", "run")
    say("add", "walk-07", "1", "2", "sit", "--replaces", first["id"])
    say("add", "s1", "95", "200", "")
    assert exported(say("export")) == [
        ("s1", 0, 40, "walk"),
        ("s1", 40, 60, "run"),
        ("s1", 60, 95, "walk"),
        ("walk-07", 1, 2, "sit"),
    ]
    assert exported(say("export", "--session", "walk-07")) == [("walk-07", 1, 2, "sit")]
    assert len(exported(say("export", "--all"))) == 5  # nothing that was made is gone
    made = read_labels(there)
    assert {x.author for x in made if x.label == "walk"} == {"Ann"}
    assert all(x.author and x.created_ns > START for x in made)


def test_importing_twice_adds_nothing(say: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("session,start,end,label\ns1,0,10,walk\ns1,10,20,run\nwalk-07,0,5,sit\n")
    assert say("import", str(tmp_path / "l.csv")) == "3 labels added\n"
    assert say("import", str(tmp_path / "l.csv")) == "0 labels added, 3 were there already\n"
    (tmp_path / "l.csv").write_text("session,start,end,label\ns1,0,10,walk\ns1,10,20,sprint\n")
    assert json.loads(say("import", str(tmp_path / "l.csv"), "--json")) == {"added": 1, "there": 1}
    held = exported(say("export"))
    assert held == [("s1", 0, 10, "walk"), ("s1", 10, 20, "sprint"), ("walk-07", 0, 5, "sit")]
    # What was exported can go to another broker, and back.
    for fmt in ("jsonl", "csv"):
        say("export", "--all", "--format", fmt, "--out", str(tmp_path / f"all.{fmt}"))
        assert json.loads(say("import", str(tmp_path / f"all.{fmt}"), "--json")) == {"added": 0, "there": 4}
        assert exported(say("export")) == held


def test_labels_of_recordings_are_imported(say: Callable[..., str], tmp_path: Path) -> None:
    rows = "\n".join(f"{(START + i * NS // 10)},{i},{'walk' if i < 10 else 'run'}" for i in range(20))
    (tmp_path / "s1.csv").write_text(f"t_ns,x,activity\n{rows}\n")
    say("import", str(tmp_path), "--column", "activity")
    assert exported(say("export", "--set", "activity")) == [("s1", 0, 1, "walk"), ("s1", 1, 2, "run")]
    events = json.loads(say("export", "--session", "s1", "--format", "json"))["events"]
    assert [event["metadata"] for event in events] == [{"activity": "walk"}, {"activity": "run"}]


def test_labels_beyond_their_session_are_told(say: Callable[..., str], tmp_path: Path) -> None:
    note = "note: session short: a part of the label from 25 to 40 s lies behind its 30 s\n"
    assert say("add", "short", "25", "40", "x").startswith(note)
    assert say("add", "again", "35", "40", "x").startswith("added ")  # a replay in a loop goes on
    (tmp_path / "l.csv").write_text("session,start,end,label\nshort,1,2,a\nshort,100,200,b\nshort,300,400,b\n")
    left_out = "note: short: the label from 100 to 200 s lies behind its 30 s; left out (1 more like it)\n"
    assert say("import", str(tmp_path / "l.csv")) == f"{left_out}1 label added\n"
    (tmp_path / "l.csv").write_text("session,start,end,label\nshort,100,200,b\nshort,300,400,b\n")
    assert "no label lies within its session" in say("import", str(tmp_path / "l.csv"), status=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("add", "walk-7", "0", "1", "x"), "no session 'walk-7' is there; did you mean 'walk-07'?"),
        (("add", "s1", "5", "1", "x"), "END comes second"),
        (("add", "s1", "1ns", "2ns", "x"), "session s1: the label from -1.7e+09 to -1.7e+09 s lies before it begins"),
        (("add", "short", "30", "40", "x"), "session short: the label from 30 to 40 s lies behind its 30 s"),
        (("add", "s1", "five", "6", "x"), "'five' is no time"),
        (("add", "s1", "5", "6", "x", "--replaces", "no"), "there is no label 'no' to replace"),
        (("import", "nowhere.jsonl"), "nowhere.jsonl: cannot be read"),
        (("export", "--out", "no/such/folder.csv"), "cannot be written"),
    ],
)
def test_mistakes_are_one_line(say: Callable[..., str], words: tuple[str, ...], message: str) -> None:
    printed = say(*words, status=1)
    assert message in printed
    assert printed.count("\n") == 1


def test_a_message_that_is_no_label_is_passed_over(say: Callable[..., str], there: Settings) -> None:
    with Publisher(there, Names(there.prefix)) as publisher:
        for raw in (b"{", b"[1]", b'{"session": "s1"}', b"\xff"):
            publisher.send("labels", "s1", raw)
        publisher.flush()
    append_labels(there, [Label("x", "s1", "label", START, START + NS, "a")], 7)
    told: list[str] = []
    assert [(x.id, x.created_ns) for x in read_labels(there, told.append)] == [("x", 7)]
    assert len(told) == 4
    assert all("offset" in text for text in told)


@pytest.mark.parametrize("packed", [False, True])
def test_a_table_of_intervals_beside_wristbands_is_what_training_reads(tmp_path: Path, packed: bool) -> None:
    """Whatever a time is written as: Unix s, ms, a date, or seconds from the start."""
    for name in ("P1", "P2", "P3", "P4"):
        folder = tmp_path / "study" / "raw" / name
        folder.mkdir(parents=True)
        for file in ("EDA.csv", "TEMP.csv"):
            (folder / file).write_text("1700000000\n4\n" + "1.5\n" * 40)
        if packed:
            shutil.make_archive(str(folder), "zip", *((folder,) if name == "P1" else (folder.parent, name)))
            shutil.rmtree(folder)
    table = tmp_path / "intervals.csv"
    rows = ["P1,1700000001,1700000004.5", "P2,1700000001000,1700000004500", "P3,2023-11-14T22:13:21Z,4.5", "P4,1,4.5"]
    table.write_text("Folder;Start;End;Label\n" + "".join(f"{row},calm\n".replace(",", ";") for row in rows))
    arguments = ("label", "import", table, "--set", "state", "--beside", tmp_path / "study")
    assert "4 labels added" in invoke(*arguments).output
    for recording in read_files([tmp_path / "study"], ReadOptions(label_key="state")):
        assert [x.label for x in recording.labels] == ["calm"], recording.session
        assert (recording.labels[0].start_ns, recording.labels[0].end_ns) == (START + NS, START + 4_500_000_000)
    assert "0 labels added, 4 were there already" in invoke(*arguments).output
    table.write_text(table.read_text().replace("calm", "stress"))
    assert "is there already and says something else" in invoke(*arguments, status=1).output
    table.write_text("session,start,end,label\nP11,0,1,calm\n")
    assert "no session 'P11' is there; did you mean 'P1'?" in invoke(*arguments, status=1).output
    table.write_text("session,start,end,label\nP1,20,30,calm\n")
    assert "no label lies within its session" in invoke(*arguments, status=1).output
