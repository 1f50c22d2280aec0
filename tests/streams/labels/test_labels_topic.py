"""``kymo label`` on a real broker."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

import kymo
from kymo.streams.kafka.admin import ensure_topics
from kymo.streams.kafka.publish import Publisher
from kymo.streams.labels.cli import append_labels, read_labels
from kymo.streams.labels.labels import Label
from kymo.streams.settings import Settings
from kymo.streams.topics import Names

pytestmark = pytest.mark.broker
NS = 10**9
START = 1_700_000_000 * NS


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
        done = CliRunner().invoke(kymo.cli, ["label", *words])
        assert done.exit_code == status, done.output
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
        (("add", "walk-7", "0", "1", "x"), "no session 'walk-7' has been sent; did you mean 'walk-07'?"),
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
