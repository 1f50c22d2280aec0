"""The jars of the embedded Apache Kafka. In: a folder. Out: the class path, each jar checked against ``kafka.lock``.

Each jar named in the lock file is fetched once, by jgo, and moved into the folder only after its SHA-256 has matched: a
download that was cut off leaves nothing behind. Later starts need neither the network nor jgo.
``python -m deploy.kafka_jars`` writes the lock file anew.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streams.errors import BrokerError

KAFKA_VERSION = "4.1.1"
# Kafka logs through slf4j and its Maven artifact brings no backend; without one the server would die in silence.
ENDPOINTS = (f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}", "org.slf4j:slf4j-simple:1.7.36")
LOCK_FILE = Path(__file__).with_name("kafka.lock")
TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Jar:
    """One line of the lock file."""

    group: str
    artifact: str
    version: str
    sha256: str  # checksum of the jar, 64 hexadecimal digits

    @property
    def filename(self) -> str:
        """Name of the file, as in a Maven repository."""
        return f"{self.artifact}-{self.version}.jar"


def read_lock(path: Path = LOCK_FILE) -> list[Jar]:
    """Jars of the lock file, in class path order."""
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
    """Paths of all jars, downloaded where missing and verified."""
    jars = read_lock() if lock is None else lock
    missing = [jar for jar in jars if not (folder / jar.filename).exists()]
    if missing:
        _download(missing, folder)
    for jar in jars:
        _verify(jar, folder / jar.filename)
    return [folder / jar.filename for jar in jars]


def _verify(jar: Jar, path: Path) -> None:
    # 44 MB take about 50 ms, so every start checks all of them.
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != jar.sha256:
        raise BrokerError(
            f"{path}: checksum mismatch: expected sha256 {jar.sha256}, got {found}; "
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
    try:
        import jgo.maven
    except ImportError as error:
        raise BrokerError("the embedded broker needs the 'kafka' extra: pip install 'kymo[kafka]'") from error
    # jgo logs a traceback of its own for each failed download; the error that is raised says it in one line.
    logging.getLogger("jgo").setLevel(logging.CRITICAL)
    # An explicit cache keeps jgo from looking for a home folder, of which a container may have none.
    return jgo.maven.MavenContext(repo_cache=cache, timeout=TIMEOUT_S)


def resolve_lock() -> list[Jar]:
    """Resolve Kafka's dependencies anew and give the jars with the checksums of what was downloaded."""
    with tempfile.TemporaryDirectory() as cache:
        context = _maven(Path(cache))
        inputs, others = context.resolver.resolve([context.create_dependency(name) for name in ENDPOINTS])
        artifacts = [d.artifact for d in [*inputs, *(d for d in others if d.scope in ("compile", "runtime"))]]
        with ThreadPoolExecutor(8) as pool:
            paths = list(pool.map(lambda artifact: artifact.resolve(), artifacts))
        return [
            Jar(a.groupId, a.artifactId, a.version, hashlib.sha256(Path(path).read_bytes()).hexdigest())
            for a, path in zip(artifacts, paths, strict=True)
        ]


if __name__ == "__main__":
    lines = [f"# Jars of Apache Kafka {KAFKA_VERSION}, in class path order. Made by `python -m deploy.kafka_jars`."]
    lines += [f"{jar.group}:{jar.artifact}:{jar.version} {jar.sha256}" for jar in resolve_lock()]
    LOCK_FILE.write_text("\n".join(lines) + "\n")
