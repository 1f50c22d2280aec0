"""Other people's Kafka: older versions give the same events, too old ones say so; clusters that lose brokers are waited for; rights
that are missing are a sentence."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fault_lab import Feed, Lab, await_that, kill, stop_worker
from kafka.admin import ACL, ACLOperation, ACLPermissionType, KafkaAdminClient, ResourcePattern, ResourceType
from kafka.admin import ACLResourcePatternType as PatternType
from kafka.errors import KafkaError
from verbs import execute, running

from kymo.deploy import kafka_server
from kymo.deploy.broker import await_ready, free_port
from kymo.deploy.kafka_server import class_path
from kymo.streams.errors import BrokerError, TopicError
from kymo.streams.events import Event
from kymo.streams.kafka.admin import OLDEST_KAFKA, ensure_topics
from kymo.streams.kafka.client import client_arguments
from kymo.streams.kafka.read import read_records
from kymo.streams.settings import Settings
from kymo.streams.topics import Names

pytestmark = pytest.mark.chaos


RECIPE, DATA = "basicmotions", "basicmotions:test"


Said = set[tuple[str, str, float]]


def kymo(env: dict[str, str], *arguments: object) -> str:
    return execute(*arguments, env=env).stdout


def said(lines: str) -> Said:
    return {(e.id, e.label, round(e.probability, 5)) for e in map(Event.from_json, lines.splitlines())}


def environment(folder: Path, brokers: str, **more: str) -> dict[str, str]:
    return {"KYMO_BROKERS": brokers, "KYMO_HOME": str(folder / "home"), "KYMO_METRICS_PORT": "-1"} | more


@pytest.mark.parametrize("version", ["3.6.2", "3.9.1", kafka_server.KAFKA_VERSION])
def test_every_version_gives_the_same_events(version: str, jars_dir: Path, tmp_path: Path) -> None:
    with cluster(jars_of(version, jars_dir), tmp_path, 1) as nodes:
        env = environment(tmp_path, addresses(nodes), KYMO_PARTITIONS="3")
        expected = said(kymo(env, "run", RECIPE, DATA))
        with running(env, "worker", RECIPE) as worker:
            kymo(env, "replay", DATA, "--recipe", RECIPE, "--speed", "max")
            await_that(lambda: worker.status is not None or said(kymo(env, "events")) >= expected, "events", 60)
            worker.send(signal.SIGTERM)
            assert worker.wait(30) == 0, worker.tail
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


KILLS = 20


def in_step(lab: Lab) -> bool:
    """Whether every partition has all of its replicas."""
    try:
        with KafkaAdminClient(**client_arguments(lab.settings)) as admin:
            partitions = [p for topic in admin.describe_topics() for p in topic["partitions"]]
    except (KafkaError, OSError):
        return False
    return all(len(p["isr_nodes"]) == len(p["replica_nodes"]) for p in partitions)


def test_brokers_killed_at_random(tmp_path: Path, jars_dir: Path, prefix: str) -> None:
    pick, back, together = random.Random(6), [], 0
    (tmp_path / "cluster").mkdir()
    with (
        cluster(class_path(jars_dir), tmp_path / "cluster", 3) as nodes,
        Lab(tmp_path, addresses(nodes), prefix, replication=3) as lab,
    ):
        await_that(lambda: in_step(lab), "all replicas")
        feed, workers = Feed(lab, 6, rate=12), [lab.start_worker(), lab.start_worker()]
        feed.start()
        lab.await_growth(everywhere=True)
        for _ in range(KILLS):
            threading.Event().wait(pick.uniform(0, 3))
            node = pick.choice(nodes)
            assert node.process is not None
            node.process.kill()
            if pick.random() < 0.4:
                kill(workers.pop(pick.randrange(2)))
                workers.append(lab.start_worker())
                together += 1
            node.kill()
            back.append(lab.await_growth(everywhere=True))
            threading.Event().wait(pick.uniform(0, 5))
            node.start()
            node.await_ready()
            if pick.random() < 0.8:  # else the next one dies while this one still lacks records
                await_that(lambda: in_step(lab), "all replicas")
        count = lab.check(feed)
        for worker in workers:
            stop_worker(worker)
        assert lab.verdict(lab.expected(feed)) == count
    print(
        f"\n{KILLS} brokers killed, {together} with a worker: {count} events, each once; back after {max(back):.1f} s at most"
    )
    assert count > 6_500


USER, PASSWORD = "guest", "secret"


LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"


SERVING = {"topic": ("DESCRIBE", "READ", "WRITE"), "group": ("DESCRIBE", "READ")}


class Guarded:
    """A Kafka with a listener for those who may do everything, and one for a guest."""

    def __init__(self, open_to_all: str, guests: str) -> None:
        self.open, self.guests = open_to_all, guests

    def allow(self, prefix: str, **rights: tuple[str, ...]) -> None:
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
        return execute(*arguments, env=self.environment(folder, prefix), status=None)


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
    with running(env, "worker", RECIPE) as worker:
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


CLUSTER = "AAAAAAAAAAAAAAAAAAAAAA"


def jars_of(version: str, jars_dir: Path) -> list[Path]:
    """The class path of a version, fetched into a folder beside the embedded one's; without network the test is skipped."""
    if version == kafka_server.KAFKA_VERSION:
        return kafka_server.class_path(jars_dir)
    names = [name.replace(kafka_server.KAFKA_VERSION, version) for name in kafka_server.ENDPOINTS]
    try:
        context = kafka_server._maven(jars_dir.parent / "other-kafka")
        inputs, others = context.resolver.resolve([context.create_dependency(name) for name in names])
        artifacts = [d.artifact for d in [*inputs, *(d for d in others if d.scope in ("compile", "runtime"))]]
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda artifact: Path(artifact.resolve()), artifacts))
    except (OSError, RuntimeError, ValueError) as error:
        pytest.skip(f"Kafka {version} cannot be fetched: {error!r:.200}")


class Node:
    def __init__(self, jars: list[Path], folder: Path, port: int, properties: Path) -> None:
        self.jars, self.folder, self.port, self.properties = jars, folder, port, properties
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with kafka_server.log_file(self.folder).open("ab") as log:
            line = kafka_server.command(self.jars, "kafka.Kafka", str(self.properties))
            self.process = subprocess.Popen(line, cwd=self.folder, stdout=log, stderr=log)

    def await_ready(self) -> None:
        assert self.process is not None
        await_ready(self.process, self.port, self.folder, 90.0)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)
            self.process = None


def make_node(
    jars: list[Path], folder: Path, number: int, ports: list[int], controllers: list[int], more: dict[str, str]
) -> Node:
    """A formatted node of a cluster whose ports are known."""
    folder.mkdir()
    port, copies = ports[number - 1], min(3, len(ports))
    properties = kafka_server.write_properties(folder, port, controllers[number - 1])
    voters = ",".join(f"{i}@{kafka_server.HOST}:{at}" for i, at in enumerate(controllers, 1))
    own = {
        "node.id": str(number),
        "controller.quorum.voters": voters,
        "default.replication.factor": str(copies),
        "min.insync.replicas": str(max(1, copies - 1)),
        "offsets.topic.replication.factor": str(copies),
        "transaction.state.log.replication.factor": str(copies),
    }
    written = [line for line in properties.read_text().splitlines() if "=" in line and not line.startswith("#")]
    settings = dict(line.split("=", 1) for line in written)
    wanted = settings | own | more
    properties.write_text("".join(f"{key}={value}\n" for key, value in wanted.items()))
    kafka_server.rotate_log(folder)  # makes the log's folder
    arguments = ("format", f"--cluster-id={CLUSTER}", "--config", str(properties))
    line = kafka_server.command(jars, "kafka.tools.StorageTool", *arguments)
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Node(jars, folder, port, properties)


@contextlib.contextmanager
def cluster(
    jars: list[Path], folder: Path, nodes: int, more: dict[str, str] | None = None, port: int = 0
) -> Iterator[list[Node]]:
    """Servers that answer, with some settings of their own; ended at the end of the block."""
    ports, controllers = ([free_port() for _ in range(nodes)] for _ in range(2))
    ports[0] = port or ports[0]
    made = [make_node(jars, folder / str(n), n, ports, controllers, more or {}) for n in range(1, nodes + 1)]
    try:
        for node in made:
            node.start()
        for node in made:
            node.await_ready()
        yield made
    except BrokerError as error:
        pytest.fail(str(error))
    finally:
        for node in made:
            node.kill()


def addresses(nodes: list[Node]) -> str:
    """As KYMO_BROKERS takes them."""
    return ",".join(f"{kafka_server.HOST}:{node.port}" for node in nodes)
