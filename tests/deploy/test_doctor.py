"""`kymo doctor`: what is wrong on a machine, and why a session yields no events."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from verbs import invoke

from kymo.deploy.doctor import (
    check_broker,
    check_home,
    check_jars,
    check_port,
    check_python,
    check_topics,
)
from kymo.deploy.doctor_session import SessionFacts, StreamFacts, explain, window_count
from kymo.processors.recipe.load import Recipe, load_recipe
from kymo.streams.chunk import Chunk, Format, Header
from kymo.streams.codec import ChunkCodec
from kymo.streams.events import Event
from kymo.streams.settings import Settings
from kymo.streams.topics import Names


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("basicmotions")


def stream(recipe: Recipe, *runs: list[int], ended: bool = True, **changed: Any) -> StreamFacts:
    return StreamFacts(replace(recipe.input_format(), **changed), "kymo.sensor", list(runs), ended, 10)


def event(label: str, probability: float, start: int = 0) -> Event:
    return Event(f"s/basicmotions/{start}", "basicmotions", "b", "s", "imu", start, 0, 1, label, probability)


def said(recipe: Recipe, facts: SessionFacts) -> tuple[str, str]:
    check = explain(recipe, facts)[-1]
    return check.state, check.text


def test_python_versions() -> None:
    assert [check_python(v).state for v in ((3, 10), (3, 11), (3, 13), (3, 14))] == ["wrong", "ok", "ok", "wrong"]


def test_home(tmp_path: Path) -> None:
    assert check_home(tmp_path / "new").state == "ok"
    full = check_home(tmp_path, lambda _: 10 * 2**20)
    assert (full.state, "make room" in full.text) == ("wrong", True)
    (tmp_path / "file").write_text("")
    assert "cannot be written" in check_home(tmp_path / "file").text


def test_jars(tmp_path: Path) -> None:
    assert check_jars(tmp_path).state == "note"
    from kymo.deploy.kafka_server import read_lock

    (tmp_path / read_lock()[0].filename).write_bytes(b"broken")
    assert (check_jars(tmp_path).state, "wrong checksum" in check_jars(tmp_path).text) == ("wrong", True)


def test_port_and_broker(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    assert check_broker(settings).state == "note"
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert check_port(settings, port).state == "wrong"
    assert check_port(settings, port).state == "ok"


def test_windows_between_gaps(recipe: Recipe) -> None:
    assert window_count(recipe, [[0, 100]]) == 6
    assert window_count(recipe, [[0, 49], [50, 100]]) == 1
    assert window_count(recipe, [[0, 49], [51, 100]]) == 0
    assert window_count(recipe, [[3, 60]]) == 1


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        (SessionFacts("s"), "nothing has been replayed"),
        (SessionFacts("walk-1", ["walk-2", "x"]), "did you mean 'walk-2'?"),
        (SessionFacts("s", ["s"], {"session": "s"}), "no chunk"),
    ],
)
def test_sessions_that_are_not_there(recipe: Recipe, facts: SessionFacts, says: str) -> None:
    state, text = said(recipe, facts)
    assert state == "wrong"
    assert says in text


def test_streams_that_do_not_match(recipe: Recipe) -> None:
    eda = stream(recipe, [0, 100], stream="eda")
    fast = stream(recipe, [0, 100], rate=recipe.inputs[0].rate_hz * 2)
    state, text = said(recipe, SessionFacts("s", streams={"eda": eda, "imu": fast}))
    assert state == "wrong"
    assert "`eda` is not `imu`" in text
    assert "20 Hz, expected 10 Hz" in text


def test_too_short(recipe: Recipe) -> None:
    ended = SessionFacts("s", streams={"imu": stream(recipe, [0, 49])})
    assert "has 49 samples (4.9 s), a window needs 50 (5 s)" in said(recipe, ended)[1]
    live = SessionFacts("s", streams={"imu": stream(recipe, [0, 49], ended=False)})
    assert "have come so far" in said(recipe, live)[1]
    gaps = SessionFacts("s", streams={"imu": stream(recipe, [0, 45], [46, 90])})
    assert "1 gap: at most 45 samples" in said(recipe, gaps)[1]


def test_no_events(recipe: Recipe) -> None:
    facts = SessionFacts("s", streams={"imu": stream(recipe, [0, 100])})
    assert "start one: kymo worker basicmotions" in said(recipe, facts)[1]
    facts.committed["kymo.sensor"] = 10
    assert "has not come to this session yet" in said(recipe, facts)[1]
    facts.committed["kymo.sensor"] = 21
    assert "although a worker has passed" in said(recipe, facts)[1]


def test_events(recipe: Recipe) -> None:
    facts = SessionFacts("s", streams={"imu": stream(recipe, [0, 100])}, events=[event("unknown", 0.4)] * 6)
    assert "the highest probability, 0.40, is below min_probability 0.5" in said(recipe, facts)[1]
    facts.events[0] = event("walking", 0.9)
    assert said(recipe, facts) == ("ok", "6 of 6 windows have one, 5 of them `unknown` (below 0.5)")
    facts.events.pop()
    assert said(recipe, facts)[0] == "note"


def test_rejected_messages_are_told(recipe: Recipe) -> None:
    facts = SessionFacts("s", rejected=Counter(key=2))
    assert explain(recipe, facts)[0].text == "messages of this session were refused: key 2"


def test_command_line() -> None:
    invoke("doctor", "--session", "s", status=2)
    result = invoke("doctor", "--recipe", "nowhere", "--json", status=1)
    found = json.loads(result.stdout)
    assert not found["ok"]
    assert [c["state"] for c in found["checks"] if c["name"] == "recipe"] == ["wrong"]


def test_unreachable_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    from kymo.streams.errors import BrokerError
    from kymo.streams.kafka import client as kafka_client

    monkeypatch.setattr(kafka_client, "BOOTSTRAP_TIMEOUT_S", 0.3)
    with pytest.raises(BrokerError, match=r"Kafka at 127\.0\.0\.1:1, asking for topics"):
        check_broker(Settings(brokers="127.0.0.1:1"))


def test_on_a_broker(
    broker: str, new_prefix: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Recipe
) -> None:
    from kafka import KafkaProducer

    from kymo.streams.kafka.admin import ensure_topics

    prefix = new_prefix()
    for name, value in {"BROKERS": broker, "PREFIX": prefix, "HOME": str(tmp_path), "PARTITIONS": "2"}.items():
        monkeypatch.setenv(f"KYMO_{name}", value)
    settings, names = Settings.from_env(), Names(prefix)
    assert check_broker(settings).state == "ok"
    assert check_topics(settings).state == "note"
    arguments = ["doctor", "--recipe", "basicmotions", "--session", "s", "--json"]

    def texts() -> dict[str, str]:
        result = invoke(*arguments, status=None)
        return {c["name"]: c["text"] for c in json.loads(result.stdout)["checks"]}

    assert "nothing has been replayed" in texts()["session"]
    ensure_topics(settings, names)
    assert check_topics(settings).state == "ok"
    other = check_topics(replace(settings, partitions=3))
    assert other.state == "note"
    assert "2 partitions, not the 3 of KYMO_PARTITIONS" in other.text
    producer, codec = KafkaProducer(bootstrap_servers=broker), ChunkCodec()
    fmt: Format = replace(recipe.input_format(), stream="imu.wrist")
    for first in range(0, 60, 20):
        data = np.zeros((20, 6), np.float32)
        chunk = Chunk(Header("s", 0, fmt), first, data, end=first == 40)
        producer.send(names.of("sensor"), codec.encode(chunk), b"s")
    producer.send(names.of("rejected"), b"?", b"s", headers=[("reason", b"undecodable")])
    producer.flush()
    found = texts()
    assert found["windows"] == "60 samples (6 s) hold 2 windows"
    assert found["rejected"] == "messages of this session were refused: undecodable 1"
    assert "no worker has ever worked on this recipe" in found["events"]
    producer.send(names.of("events"), event("walking", 0.9).to_json(), b"s")
    producer.close()
    assert texts()["events"].startswith("1 of 2 windows have one")
