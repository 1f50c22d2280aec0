"""A Kafka with an authorizer: what docs/operation.md says is enough, and what is not given is a sentence."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_lab import await_that
from kafka.admin import ACL, ACLOperation, ACLPermissionType, KafkaAdminClient, ResourcePattern, ResourceType
from kafka.admin import ACLResourcePatternType as PatternType
from other_kafka import cluster

from kymo.deploy import kafka_server
from kymo.deploy.broker import free_port
from kymo.deploy.children import Child, kymo_command, kymo_environment, stop
from kymo.streams.kafka.admin import ensure_topics
from kymo.streams.settings import Settings
from kymo.streams.topics import Names

pytestmark = [pytest.mark.chaos, pytest.mark.broker, pytest.mark.timeout(300)]
RECIPE, DATA = "basicmotions", "basicmotions:test"
USER, PASSWORD = "guest", "secret"
LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"
SERVING = {"topic": ("DESCRIBE", "READ", "WRITE"), "group": ("DESCRIBE", "READ")}


class Guarded:
    """A Kafka with a listener for those who may do everything, and one for a guest."""

    def __init__(self, open_to_all: str, guests: str) -> None:
        self.open, self.guests = open_to_all, guests

    def allow(self, prefix: str, **rights: tuple[str, ...]) -> None:
        """Give the guest rights on the prefix's topics and groups."""
        acls = [
            ACL(
                f"User:{USER}",
                "*",
                ACLOperation[operation],
                ACLPermissionType.ALLOW,
                ResourcePattern(ResourceType[kind.upper()], prefix, PatternType.PREFIXED),
            )
            for kind, operations in rights.items()
            for operation in operations
        ]
        with KafkaAdminClient(bootstrap_servers=self.open) as admin:
            admin.create_acls(acls)

    def environment(self, folder: Path, prefix: str) -> dict[str, str]:
        security = {"PROTOCOL": "SASL_PLAINTEXT", "SASL_MECHANISM": "PLAIN", "SASL_USERNAME": USER}
        security["SASL_PASSWORD"] = PASSWORD
        own = {"BROKERS": self.guests, "PREFIX": prefix, "HOME": str(folder), "METRICS_PORT": "-1", "PARTITIONS": "3"}
        return {f"KYMO_{k}": v for k, v in own.items()} | {f"KYMO_KAFKA_SECURITY_{k}": v for k, v in security.items()}

    def kymo(self, folder: Path, prefix: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        env = kymo_environment(self.environment(folder, prefix))
        return subprocess.run(
            kymo_command(*arguments), env=env, capture_output=True, text=True, check=False, timeout=120
        )


@pytest.fixture(scope="module")
def guarded(jars_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    plain, guests = free_port(), free_port()
    controller = free_port()
    listeners = {
        name: f"{name}://{kafka_server.HOST}:{port}"
        for name, port in {"PLAINTEXT": plain, "CONTROLLER": controller, "SASL_PLAINTEXT": guests}.items()
    }
    more = {
        "listeners": ",".join(listeners.values()),
        "advertised.listeners": f"{listeners['PLAINTEXT']},{listeners['SASL_PLAINTEXT']}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT",
        "controller.quorum.voters": f"1@{kafka_server.HOST}:{controller}",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_plaintext.plain.sasl.jaas.config": f'{LOGIN} user_{USER}="{PASSWORD}";',
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }
    folder = tmp_path_factory.mktemp("guarded")
    with cluster(kafka_server.class_path(jars_dir), folder, 1, more, port=plain):
        yield Guarded(f"{kafka_server.HOST}:{plain}", f"{kafka_server.HOST}:{guests}")


def test_the_rights_that_are_documented_are_enough(guarded: Guarded, tmp_path: Path, prefix: str) -> None:
    ensure_topics(Settings(brokers=guarded.open, prefix=prefix, partitions=3), Names(prefix))
    guarded.allow(prefix, **SERVING)
    env = guarded.environment(tmp_path, prefix)
    worker = Child("worker", kymo_command("worker", RECIPE), kymo_environment(env))
    worker.start()
    try:
        sent = guarded.kymo(tmp_path, prefix, "replay", DATA, "--recipe", RECIPE, "--speed", "max")
        assert sent.returncode == 0, sent.stderr
        await_that(
            lambda: (
                worker.status is not None or len(guarded.kymo(tmp_path, prefix, "events").stdout.splitlines()) >= 240
            ),
            "events",
            60,
        )
        worker.send(signal.SIGTERM)
        assert worker.wait(30) == 0, worker.tail
        assert any("this user may not read their settings" in line for line in worker.tail), worker.tail
    finally:
        stop([worker])
    for arguments in (
        ("archive", "--once", "--dir", str(tmp_path / "a")),
        ("sessions", "list"),
        ("sessions", "end", "basicmotions-test-00"),
        ("label", "add", "basicmotions-test-00", "1", "2", "x", "--set", "s"),
        ("doctor", "--recipe", RECIPE, "--session", "basicmotions-test-00"),
    ):
        done = guarded.kymo(tmp_path, prefix, *arguments)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    refused = guarded.kymo(tmp_path, prefix, "sessions", "delete", "basicmotions-test-00", "--yes")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1), refused.stderr
    guarded.allow(prefix, topic=("DELETE", "DESCRIBE_CONFIGS"))
    done = guarded.kymo(tmp_path, prefix, "sessions", "delete", "basicmotions-test-00", "--yes")
    assert done.returncode in (0, 3), done.stderr


def test_rights_that_are_missing_are_a_sentence(guarded: Guarded, tmp_path: Path, prefix: str) -> None:
    def say(*arguments: str) -> tuple[int, str]:
        done = guarded.kymo(tmp_path, prefix, *arguments)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stderr

    replay = ("replay", DATA, "--recipe", RECIPE, "--speed", "max")
    for arguments in (("worker", RECIPE), replay):
        status, text = say(*arguments)
        assert status == 1
        assert "may not make it" in text
    assert say("sessions", "list")[0] == 1
