"""Kafka in other versions than the embedded one, and in clusters. In: version, folder, number of nodes. Out: servers until the end."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kymo.deploy import kafka_server
from kymo.deploy.broker import await_ready, free_port
from kymo.streams.errors import BrokerError

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
    """One server, broker and controller in one."""

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
