"""``kymo up``. In: recipes. Out: a broker, workers and the archive, until Ctrl-C or SIGTERM, which ends them in order."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kymo.deploy import broker
from kymo.deploy.broker import BrokerInfo
from kymo.deploy.children import Child, Supervisor, kymo_command, kymo_environment, stop, stop_event
from kymo.streams.errors import BrokerError, KymoError, RecipeError
from kymo.streams.settings import Settings

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from kymo.deploy.metrics_server import Server

WATCH_S = 0.2


@click.command()
@click.argument("recipes", nargs=-1, metavar="[RECIPE…]")
@click.option("--workers", type=click.IntRange(1, 1000), default=1, show_default=True, help="Worker processes.")
@click.option(
    "--archive/--no-archive", default=True, show_default=True, help="Keep all topics in files, as `kymo archive` does."
)
def up(recipes: tuple[str, ...], workers: int, archive: bool) -> None:
    """Run everything until Ctrl-C: the broker, unless KYMO_BROKERS names one, workers, and the archive.

    Without RECIPE: all recipes in ./recipes that have a bundle. What dies is started again.

    Example: kymo up basicmotions --workers 2
    """
    from kymo.streams.kafka.admin import ensure_topics
    from kymo.streams.topics import Names

    settings = Settings.from_env()
    names = usable_recipes(recipes, settings.home)
    info: BrokerInfo | None = None
    with stop_event(impatient=True) as stopped, contextlib.ExitStack() as stack:
        if not settings.brokers:
            info = _start_broker(settings, stack)
            settings = dataclasses.replace(settings, brokers=info.bootstrap)
        for sentence in ensure_topics(settings, Names(settings.prefix)).warnings:
            _tell(sentence)
        _tell(f"topics {settings.prefix}.* on {settings.brokers}; recipes {', '.join(names)}")
        _supervise(_children(names, settings, workers, archive), settings, stopped, info)


def usable_recipes(recipes: Sequence[str], home: Path) -> list[str]:
    """The recipes to run: those given and those that they fuse, which must all be usable, or else those in ``./recipes`` that are."""
    from kymo.deploy.roles import load_deployments, split_fusions
    from kymo.processors.recipe.load import INSTALLED

    def with_fused(names: Sequence[str]) -> list[str]:
        streams, fusions = split_fusions(names)
        given = {deployment.recipe.name for deployment in load_deployments(streams, None, home)}
        fused = {r.name: str(r.path) for fusion in fusions for r in fusion.recipes if r.name not in given}
        load_deployments(list(fused.values()), None, home)
        return [*fused.values(), *names]

    if recipes:
        return with_fused(recipes)
    folder = Path("recipes") if Path("recipes").is_dir() else INSTALLED
    usable = []
    for path in sorted(folder.glob("*.toml")):
        try:
            usable += [name for name in with_fused([str(path)]) if name not in usable]
        except KymoError as error:
            _tell(f"left out: {error}")
    if not usable:
        raise RecipeError(f"no recipe in {folder} can be run; name one, or train one: kymo train RECIPE --data PATH")
    return usable


def _start_broker(settings: Settings, stack: contextlib.ExitStack) -> BrokerInfo:
    folder = broker.default_data_dir(settings)
    if broker.status(folder).state == "running":
        info = broker.start(folder)
        _tell(f"broker at {info.bootstrap}, which ran already and will be left running")
        return info
    _tell("starting the broker")
    stack.callback(_stop_broker, folder)
    try:
        broker.require_free_port(port := broker.PORT)
    except BrokerError:
        port = 0  # any that is free
    info = broker.start(folder, port)
    _tell(f"broker at {info.bootstrap}, data in {info.data_dir}")
    return info


def _stop_broker(folder: Path) -> None:
    if broker.stop(folder):
        _tell("broker stopped")


def _children(recipes: Sequence[str], settings: Settings, count: int, archive: bool) -> list[Child]:
    """Name the children by their role: ``worker 1``, ``archive``."""
    env = kymo_environment({"KYMO_BROKERS": settings.brokers, "KYMO_HOME": str(settings.home.absolute())})
    command = kymo_command("worker", *recipes)
    children = [_child(f"worker {number}", command, env) for number in range(1, count + 1)]
    return [*children, *([_child("archive", kymo_command("archive"), env)] if archive else [])]


def _child(name: str, command: list[str], env: dict[str, str]) -> Child:
    return Child(name, command, env, lambda line: click.echo(f"[{name}] {line}", err=True))


def _look_after_broker(info: BrokerInfo) -> None:
    """Start the embedded broker again, where clients look for it, if it died; what is on its disk is there again."""
    if broker.status(info.data_dir).state == "died":
        _tell("the broker died; starting it again", err=True)
        broker.start(info.data_dir, info.port)
        _tell(f"broker at {info.bootstrap} again", err=True)


def _supervise(children: list[Child], settings: Settings, stopped: threading.Event, info: BrokerInfo | None) -> None:
    supervisor = Supervisor(children, lambda line: _tell(line, err=True))
    announced: dict[str, int] = {}  # process that was last said to be ready, by child
    with _metrics(supervisor, settings, announced):
        try:
            supervisor.start()
            _tell("Ctrl-C stops everything")
            while not stopped.wait(WATCH_S):
                if info is not None:
                    _look_after_broker(info)
                supervisor.check()
                _announce(children, settings, announced)
        finally:
            _tell("stopping")
            for name in stop(children):
                _tell(f"{name} did not end in time and was killed", err=True)


def _announce(children: list[Child], settings: Settings, announced: dict[str, int]) -> None:
    """Say of each child, once, that it is ready."""
    from kymo.deploy.metrics_server import find_server, is_ready

    for child in children:
        if child.status is None and announced.get(child.name) != child.pid:
            server = find_server(settings.home, child.name.partition(" ")[0], child.pid)
            if server and is_ready(server):
                announced[child.name] = child.pid
                _tell(f"{child.name} is ready, metrics at {server}/metrics")


def _metrics(supervisor: Supervisor, settings: Settings, announced: dict[str, int]) -> contextlib.closing[Server]:
    """Serve metrics of this process itself: it is ready once all children are."""
    from prometheus_client.core import GaugeMetricFamily

    from kymo.deploy.metrics import process_registry
    from kymo.deploy.metrics_server import serve_metrics

    children = supervisor.children

    def collect() -> Iterator[Metric]:
        alive = sum(child.status is None for child in children if child.name.startswith("worker"))
        yield GaugeMetricFamily("kymo_workers", "Worker processes that run", alive)
        about = "Workers and archives started again after they died"
        yield GaugeMetricFamily("kymo_worker_restarts", about, supervisor.restarts)

    ready = lambda: all(announced.get(child.name) == child.pid for child in children)  # noqa: E731
    return contextlib.closing(serve_metrics(process_registry(collect), settings, "up", ready))


def _tell(text: str, *, err: bool = False) -> None:
    click.echo(f"[up] {text}", err=err)
