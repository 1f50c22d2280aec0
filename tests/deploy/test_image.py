"""Images and docker-compose.yml without a Docker engine: their text, docker-compose's opinion, and their steps run one by one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from documents import ROOT
from fault_lab import await_that

import kymo
from kymo.deploy.kafka_server import KAFKA_VERSION, MESSAGE_LIMIT_BYTES
from kymo.deploy.metrics_server import find_server, is_ready
from kymo.deploy.roles import load_deployments

DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
STAGES = ("core", "worker", "trainer")


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def override() -> str:
    """The file in docs/operation.md that brings in an own recipe and bundle."""
    return re.search(r"```yaml\n(.*?)```", (ROOT / "docs" / "operation.md").read_text(), re.DOTALL)[1]  # type: ignore[index]


def instructions(stage: str) -> Iterator[tuple[str, str]]:
    """(word, rest) of a stage, and before them of the stage that it is made from."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    parts = re.split(r"^FROM (\S+) AS (\w+)$", text, flags=re.MULTILINE)[1:]
    made_from = dict(zip(parts[1::3], zip(parts[0::3], parts[2::3], strict=True), strict=True))
    base, own = made_from[stage]
    if base in made_from:
        yield from instructions(base)
    for line in filter(str.strip, own.splitlines()):
        word, _, rest = line.strip().partition(" ")
        yield word, " ".join(rest.split())


def last(stage: str, word: str) -> str:
    return [rest for name, rest in instructions(stage) if name == word][-1]


def copied() -> set[str]:
    return {name for word, rest in instructions("worker") if word == "COPY" for name in rest.split()[:-1]}


def test_a_worker_needs_no_training_framework() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = " ".join([*project["dependencies"], *project["optional-dependencies"]["kafka"]])
    assert not re.search(r"torch|tensorflow|aeon|librosa|pyarrow", needs)
    assert last("worker", "RUN").endswith("'.[kafka]'")


@pytest.mark.parametrize("stage", STAGES)
def test_images_are_pinned_and_not_root(stage: str) -> None:
    assert re.fullmatch(r"\d{4,}:\d{4,}", last(stage, "USER"))
    assert last(stage, "ENTRYPOINT") == '["kymo"]'
    assert json.loads(last(stage, "CMD"))[0] in {*kymo.VERBS, "--help"}
    for image in re.findall(r"^FROM (\S+:\S+)", DOCKERFILE, re.MULTILINE):
        assert re.fullmatch(r"python:3\.1[123]\.\d+-slim-bookworm", image)


def test_an_image_gets_the_code_and_nothing_else() -> None:
    first, *allowed = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert first == "*"
    assert {line[1:] for line in allowed if line.startswith("!")} == copied()
    assert {line for line in allowed if not line.startswith("!")} == {"**/__pycache__", "**/*.pyc"}
    packages = {folder.name for folder in ROOT.iterdir() if (folder / "__init__.py").exists()} - {"benchmarks"}
    assert packages | {"recipes", "pyproject.toml", "constraints.txt"} <= copied()


def test_compose_runs_the_same_kafka() -> None:
    kafka = compose()["services"]["kafka"]
    assert kafka["image"] == f"apache/kafka:{KAFKA_VERSION}"
    assert kafka["healthcheck"]["test"][0] == "CMD"
    settings = kafka["environment"]
    assert all(isinstance(value, str) for value in settings.values())
    assert int(settings["KAFKA_MESSAGE_MAX_BYTES"]) == MESSAGE_LIMIT_BYTES
    assert settings["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
    # On the host it is reachable from this machine alone.
    assert [port.rpartition(":")[0] for port in kafka["ports"]] == ["127.0.0.1:9092"]


@pytest.mark.skipif(
    shutil.which("docker-compose") is None, reason="docker-compose is not installed: the files are not checked by it"
)
def test_both_files_are_taken_by_docker_compose(tmp_path: Path) -> None:
    shutil.copy(ROOT / "docker-compose.yml", tmp_path)
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy", ignore=shutil.ignore_patterns("*.py", "__pycache__"))

    def config() -> dict[str, Any]:
        done = subprocess.run(["docker-compose", "config"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        loaded: dict[str, Any] = yaml.safe_load(done.stdout)
        return loaded["services"]["worker"]

    assert config()["command"] == ["worker", "basicmotions"]
    (tmp_path / "docker-compose.override.yml").write_text(override())
    own = config()
    assert own["command"] == ["worker", "/recipes/motions.toml"]
    assert own["environment"]["KYMO_REGISTRY"] == "/registry"
    assert own["environment"]["KYMO_BROKERS"] == "kafka:19092"
    assert sorted(mount.partition(":")[2] for mount in own["volumes"]) == [
        "/recipes:ro",
        "/registry:ro",
        "/var/lib/kymo:rw",
    ]


def test_compose_is_pinned_and_not_root() -> None:
    loaded = compose()
    volumes = {mount.partition(":")[0] for service in loaded["services"].values() for mount in service["volumes"]}
    assert volumes == set(loaded["volumes"])
    for service in loaded["services"].values():
        assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+", service["image"])
        assert service["user"].partition(":")[0] not in ("", "0", "root")
    worker = loaded["services"]["worker"]
    assert worker["depends_on"]["kafka"]["condition"] == "service_healthy"
    assert worker["build"]["dockerfile"] == "deploy/Dockerfile"
    assert worker["user"] == last(worker["build"]["target"], "USER")
    assert worker["environment"]["KYMO_METRICS_PORT"] == last("worker", "EXPOSE")


def test_what_compose_and_the_image_start_ships(tmp_path: Path) -> None:
    for service in compose()["services"].values():
        if "build" in service:
            verb, *rest = service["command"]
            assert verb in kymo.VERBS
            assert verb != "worker" or load_deployments(rest, None, tmp_path)
    verb, *rest = json.loads(last("worker", "CMD"))
    assert verb == "worker"
    assert load_deployments(rest, None, tmp_path)


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


class Container:
    """The worker's image, made step by step in a folder: `/app`, `/var/lib/kymo` and the mounts are folders in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.app, self.home = folder, folder / "app", folder / "home"
        self.app.mkdir(parents=True)
        self.home.mkdir()
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        self.env = {name: os.environ[name] for name in os.environ if not name.startswith(("KYMO_", "PYTHON"))}
        self.env["PATH"] = f"{folder / 'venv' / 'bin'}:{os.environ['PATH']}"
        for word, rest in instructions("worker"):
            self.step(word, rest)

    def step(self, word: str, rest: str) -> None:
        if word == "ENV":
            self.env |= dict(pair.split("=", 1) for pair in rest.split()) | {"KYMO_HOME": str(self.home)}
        elif word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
                    shutil.copytree(ROOT / source, self.app / target, ignore=ignored)
                else:
                    shutil.copy(ROOT / source, self.app)
        elif word == "RUN" and not rest.startswith("groupadd"):
            subprocess.run(["bash", "-euc", rest], cwd=self.app, env=self.env, check=True)

    def inside(self, text: str) -> str:
        return re.sub(r"^/(?=recipes|registry)", f"{self.folder}/", text)

    @contextlib.contextmanager
    def running(self, service: dict[str, Any], broker: str, prefix: str) -> Iterator[None]:
        """A service of compose, ready; at the end it must obey SIGTERM."""
        env = self.env | {name: self.inside(value) for name, value in service["environment"].items()}
        env |= {
            "KYMO_BROKERS": broker,
            "KYMO_PREFIX": prefix,
            "KYMO_METRICS_PORT": "0",
            "KYMO_METRICS_HOST": "127.0.0.1",
        }
        line = [*json.loads(last("worker", "ENTRYPOINT")), *map(self.inside, service["command"])]
        process = subprocess.Popen(line, cwd=self.app, env=env, stderr=subprocess.PIPE, text=True)

        def ready() -> bool:
            assert process.poll() is None, process.stderr and process.stderr.read()
            server = find_server(self.home, service["command"][0], process.pid)
            return server is not None and is_ready(server)

        try:
            await_that(ready, "ready", 60)
            yield
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.communicate()


@pytest.mark.chaos
def test_the_worker_of_compose_classifies(tmp_path: Path, broker: str, prefix: str) -> None:
    """As it ships, and with an own recipe and bundle; it writes to its home alone."""
    container = Container(tmp_path / "image")
    own = container.folder / "recipes" / "motions.toml"
    own.parent.mkdir()
    own.write_text((ROOT / "recipes" / "basicmotions.toml").read_text().replace('"basicmotions"', '"motions"'))
    env = os.environ | {"KYMO_HOME": str(tmp_path / "me"), "KYMO_BROKERS": broker, "KYMO_PREFIX": prefix}
    host = [sys.executable, "-m", "kymo"]
    training = [*host, "train", own, "--data", "basicmotions:train", "--only", "--epochs", "2", "--no-report"]
    subprocess.run(training, check=True, cwd=ROOT, env=env | {"KYMO_REGISTRY": str(container.folder / "registry")})
    before = {folder: files(container.folder / folder) for folder in ("app", "recipes", "registry")}
    assert list((container.app / "deploy").glob("__pycache__/worker.*.pyc"))
    services = compose()["services"]
    own_worker = services["worker"] | yaml.safe_load(override())["services"]["worker"]
    own_worker["environment"] = services["worker"]["environment"] | own_worker["environment"]
    subprocess.run([*host, "replay", "basicmotions:test", "--speed", "max"], check=True, cwd=ROOT, env=env)
    for service, recipe in ((services["worker"], "basicmotions"), (own_worker, "motions")):
        follow = [*host, "events", "--recipe", recipe, "--follow"]
        with (
            container.running(service, broker, prefix),
            subprocess.Popen(follow, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as events,
        ):
            assert events.stdout is not None
            assert json.loads(events.stdout.readline())["recipe"] == recipe
            events.kill()
    with container.running(services["archive"], broker, prefix):
        pass
    assert {folder: files(container.folder / folder) for folder in before} == before
