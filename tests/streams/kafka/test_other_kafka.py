"""Other people's Kafka: older versions give the same events, too old ones say so; a cluster that loses a broker is waited for."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
from fault_lab import await_that
from other_kafka import addresses, cluster, jars_of

from kymo.deploy import kafka_server
from kymo.deploy.children import Child, kymo_command, kymo_environment, stop
from kymo.streams.errors import TopicError
from kymo.streams.events import Event
from kymo.streams.kafka.admin import OLDEST_KAFKA, ensure_topics
from kymo.streams.kafka.read import read_records
from kymo.streams.settings import Settings
from kymo.streams.topics import Names

pytestmark = [pytest.mark.chaos, pytest.mark.broker, pytest.mark.timeout(600)]
RECIPE, DATA = "basicmotions", "basicmotions:test"
Said = set[tuple[str, str, float]]


def kymo(env: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        kymo_command(*arguments), env=kymo_environment(env), capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def said(lines: str) -> Said:
    return {(e.id, e.label, round(e.probability, 5)) for e in map(Event.from_json, lines.splitlines())}


def environment(folder: Path, brokers: str, **more: str) -> dict[str, str]:
    return {"KYMO_BROKERS": brokers, "KYMO_HOME": str(folder / "home"), "KYMO_METRICS_PORT": "-1"} | more


@pytest.mark.parametrize("version", ["3.6.2", "3.9.1", kafka_server.KAFKA_VERSION])
def test_every_version_gives_the_same_events(version: str, jars_dir: Path, tmp_path: Path) -> None:
    with cluster(jars_of(version, jars_dir), tmp_path, 1) as nodes:
        env = environment(tmp_path, addresses(nodes), KYMO_PARTITIONS="3")
        expected = said(kymo(env, "run", RECIPE, DATA))
        worker = Child("worker", kymo_command("worker", RECIPE), kymo_environment(env))
        worker.start()
        try:
            kymo(env, "replay", DATA, "--recipe", RECIPE, "--speed", "max")
            await_that(lambda: worker.status is not None or said(kymo(env, "events")) >= expected, "events", 60)
            worker.send(signal.SIGTERM)
            assert worker.wait(30) == 0, worker.tail
        finally:
            stop([worker])
        assert said(kymo(env, "events")) == expected
        kymo(env, "archive", "--once", "--dir", str(tmp_path / "archive"))
        assert said(kymo(env, "run", RECIPE, str(tmp_path / "archive"))) == expected
        first = json.loads(kymo(env, "sessions", "list", "--json"))[0]["session"]
        kymo(env, "doctor", "--recipe", RECIPE, "--session", first)


def test_a_version_that_is_too_old_says_so(jars_dir: Path, tmp_path: Path) -> None:
    with cluster(jars_of("3.5.2", jars_dir), tmp_path, 1) as nodes:
        settings = Settings(brokers=addresses(nodes), home=tmp_path / "home", partitions=3)
        with pytest.raises(TopicError, match=rf"older than {OLDEST_KAFKA} .* Kymo needs Kafka {OLDEST_KAFKA} or newer"):
            ensure_topics(settings, Names())


def test_verbs_wait_while_a_leader_is_elected(
    jars_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with cluster(kafka_server.class_path(jars_dir), tmp_path, 3) as nodes:
        settings = Settings(brokers=addresses(nodes), home=tmp_path / "home", partitions=6, replication=3)
        ensure_topics(settings, Names())
        for node in nodes:
            node.kill()
            try:  # its partitions have no leader now, and its address is still what the others name
                assert list(read_records(settings, "kymo.sessions")) == []
                assert ensure_topics(settings, Names()).warnings == ()
                assert list(read_records(settings, "kymo.labels")) == []
            finally:
                node.start()
                node.await_ready()
    assert "Traceback" not in capsys.readouterr().err
