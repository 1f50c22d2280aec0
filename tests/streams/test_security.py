"""TLS and SASL: a worker, a replay and a reader over encrypted listeners of a real Kafka, with passwords and with certificates.

The server's own traffic stays on its plain loopback listener; clients get the others only.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest
from verbs import execute, running

from kymo.deploy import kafka_server
from kymo.deploy.broker import await_ready, free_port
from kymo.streams.events import Event
from kymo.streams.kafka.read import read_records
from kymo.streams.settings import Settings
from kymo.streams.topics import Names

pytestmark = [
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed: no certificates to try"),
]
USER, PASSWORD = "kymo", "not a secret"
LISTENERS = """
listeners=PLAINTEXT://{host}:{plain},CONTROLLER://{host}:{controller},SSL://{host}:{ssl},SASL_SSL://{host}:{sasl}
advertised.listeners=PLAINTEXT://{host}:{plain},SSL://{host}:{ssl},SASL_SSL://{host}:{sasl}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL
ssl.keystore.type=PEM
ssl.keystore.location={folder}/server.pem
ssl.truststore.type=PEM
ssl.truststore.location={folder}/ca.crt
listener.name.ssl.ssl.client.auth=required
sasl.enabled.mechanisms=SCRAM-SHA-256,PLAIN
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
  user_{user}="{password}";
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
"""

REPLAY = ("replay", "basicmotions:test", "--recipe", "basicmotions", "--speed", "max")


@dataclass(frozen=True, slots=True)
class Secured:
    """A Kafka with a listener for certificates and one for passwords, and the folder of the certificates."""

    ssl: str
    sasl: str
    folder: Path

    def by(self, protocol: str, **more: str) -> dict[str, str]:
        settings = {"protocol": protocol, "ssl_cafile": str(self.folder / "ca.crt")} | more
        return {f"KYMO_KAFKA_SECURITY_{name.upper()}": value for name, value in settings.items()} | {
            "KYMO_BROKERS": self.ssl if protocol == "SSL" else self.sasl
        }

    def with_certificate(self) -> dict[str, str]:
        return self.by("SSL", ssl_certfile=str(self.folder / "client.crt"), ssl_keyfile=str(self.folder / "client.key"))

    def with_password(self, mechanism: str, password: str = PASSWORD) -> dict[str, str]:
        return self.by("SASL_SSL", sasl_mechanism=mechanism, sasl_username=USER, sasl_password=password)


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def certificates(folder: Path) -> None:
    new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    openssl(folder, *new, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=authority")
    for name in ("server", "client"):
        (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
        request = ("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}")
        openssl(folder, *request, "-keyout", f"{name}.key", "-out", f"{name}.csr")
        sign = ("x509", "-req", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
        openssl(folder, *sign, "-extfile", "names", "-in", f"{name}.csr", "-out", f"{name}.crt")
    (folder / "server.pem").write_bytes((folder / "server.key").read_bytes() + (folder / "server.crt").read_bytes())


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, jars_dir: Path) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    certificates(folder)
    plain, controller, ssl, sasl = (free_port() for _ in range(4))
    properties = kafka_server.write_properties(folder, plain, controller)
    own = {line.split("=")[0] for line in LISTENERS.splitlines() if "=" in line}
    kept = [line for line in properties.read_text().splitlines() if line.split("=")[0] not in own]
    listeners = LISTENERS.format(
        host=kafka_server.HOST,
        plain=plain,
        controller=controller,
        ssl=ssl,
        sasl=sasl,
        folder=folder,
        user=USER,
        password=PASSWORD,
    )
    properties.write_text("\n".join(kept) + listeners)
    jars = kafka_server.class_path(jars_dir)
    scram = f"SCRAM-SHA-256=[name={USER},password={PASSWORD}]"
    storage = ("format", "--cluster-id=AAAAAAAAAAAAAAAAAAAAAA", "--config", str(properties), "--add-scram", scram)
    line = kafka_server.command(jars, "kafka.tools.StorageTool", *storage)
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    kafka_server.rotate_log(folder)  # makes the log's folder
    with kafka_server.log_file(folder).open("wb") as log:
        process = subprocess.Popen(
            kafka_server.command(jars, "kafka.Kafka", str(properties)), cwd=folder, stdout=log, stderr=log
        )
    try:
        await_ready(process, plain, folder, 60.0)
        yield Secured(f"{kafka_server.HOST}:{ssl}", f"{kafka_server.HOST}:{sasl}", folder)
    finally:
        process.kill()
        process.wait(30)


@pytest.mark.parametrize("way", ["certificate", "SCRAM-SHA-256", "PLAIN"])
def test_events_come_over_an_encrypted_connection(secured: Secured, way: str, tmp_path: Path, prefix: str) -> None:
    env = secured.with_certificate() if way == "certificate" else secured.with_password(way)
    env |= {"KYMO_HOME": str(tmp_path), "KYMO_PREFIX": prefix, "KYMO_METRICS_PORT": "-1"}
    offline = execute("run", "basicmotions", "basicmotions:test", env=env)
    wanted = {(e.id, e.label, e.probability) for e in map(Event.from_json, offline.stdout.splitlines())}
    assert wanted
    with running(env, "worker", "basicmotions") as worker:
        execute(*REPLAY, env=env)
        ended = lambda: worker.status is not None  # noqa: E731
        came = read_records(Settings.from_env(env), Names(prefix).of("events"), follow=True, stop=ended)
        assert len(list(islice(came, len(wanted)))) == len(wanted), worker.tail
        worker.send(signal.SIGTERM)
        assert worker.wait(30) == 0, worker.tail
    assert events(env) == wanted


def events(env: dict[str, str]) -> set[tuple[str, str, float]]:
    done = execute("events", env=env)
    return {(e.id, e.label, e.probability) for e in map(Event.from_json, done.stdout.splitlines())}


def test_a_wrong_password_is_one_line(secured: Secured, tmp_path: Path, prefix: str) -> None:
    env = secured.with_password("SCRAM-SHA-256", "wrong") | {"KYMO_HOME": str(tmp_path), "KYMO_PREFIX": prefix}
    done = execute(*REPLAY, env=env, status=1)
    assert len(done.stderr.strip().splitlines()) == 1
    assert "password" in done.stderr


def test_an_authority_that_is_not_known_is_one_line(secured: Secured, tmp_path: Path, prefix: str) -> None:
    openssl(tmp_path, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "k", "-out", "ca", "-subj", "/CN=x")
    env = secured.with_password("PLAIN") | {"KYMO_HOME": str(tmp_path), "KYMO_PREFIX": prefix}
    env["KYMO_KAFKA_SECURITY_SSL_CAFILE"] = str(tmp_path / "ca")
    done = execute(*REPLAY, env=env, status=1)
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
