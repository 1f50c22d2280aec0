"""Shared fixtures.

One embedded Kafka serves a whole test session; a test that needs topics makes them under a prefix of its own.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kymo.streams.settings import Settings

# Read once: a test may point KYMO_HOME elsewhere, and the 45 MB of jars should not be fetched again for that.
JARS_DIR = Settings.from_env().home / "kafka"
# A broker lives for seconds here: the JVM's second compiler would take as much processor time as it, and never pay.
os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1")

#: How long a test of a kind may take that says nothing of it itself.
PATIENCE_S = {"chaos": 3600, "slow": 600, "broker": 300}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what runs on an embedded Kafka, and say how long each may take; of several processes, each takes the long files first."""
    for item in items:
        if "jars_dir" in getattr(item, "fixturenames", ()):
            item.add_marker("broker")
        kinds = [seconds for kind, seconds in PATIENCE_S.items() if item.get_closest_marker(kind)]
        if kinds and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(kinds[0]))
    if hasattr(config, "workerinput"):
        long = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("broker")}
        items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True)
def _own_settings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test finds neither settings of this machine nor what another test has promoted or kept."""
    for name in [name for name in os.environ if name.startswith("KYMO_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KYMO_HOME", str(tmp_path_factory.getbasetemp() / "homes" / uuid.uuid4().hex))


@pytest.fixture(scope="session")
def jars_dir() -> Path:
    """Where the jars of the embedded Kafka are kept between test sessions; all of them are there."""
    from kymo.deploy.kafka_server import class_path

    class_path(JARS_DIR)
    return JARS_DIR


@pytest.fixture(scope="session")
def broker_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("broker")


@pytest.fixture(scope="session")
def broker(broker_data_dir: Path, jars_dir: Path) -> Iterator[str]:
    """``host:port`` of an embedded Kafka that serves the whole session."""
    from kymo.deploy.broker import running

    with running(broker_data_dir, jars_dir=jars_dir) as info:
        yield info.bootstrap


@pytest.fixture
def new_prefix() -> Callable[[], str]:
    """A function that gives topic prefixes that nobody else uses."""
    return lambda: f"t{uuid.uuid4().hex[:10]}"


@pytest.fixture
def prefix(new_prefix: Callable[[], str]) -> str:
    """A topic prefix for this test alone."""
    return new_prefix()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file, by default `walk.csv`, into the test's folder: ``write(content, name)``."""

    def make(content: str | bytes, name: str = "walk.csv") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make
