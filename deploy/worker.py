"""A worker process. In: recipes, their bundles and settings. Out: a process that turns the input topics into events until it is stopped.

One Faust app a recipe. On SIGTERM it finishes what it took and commits, within 20 s. When an output is not acknowledged, or others may
own its partitions by now, the process replaces itself by a new one, which begins from the last commit; any other failure ends it with a
non-zero exit status.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import IO, Any

from deploy.broker import address
from deploy.worker_log import set_up_logging
from models.bundle import Bundle, load_bundle
from models.classify import Classifier
from models.outputs import outputs_of
from processors.recipe import Recipe, load_recipe
from streams.chunk import Format, Window
from streams.codec import ChunkCodec
from streams.errors import BrokerError, DeliveryError, KymoError, RecipeError
from streams.kafka_admin import ensure_topics
from streams.settings import Settings
from streams.topics import Names

DRAIN_S = 20.0
AWAY_S = 600.0  # a broker may be away so long before a worker gives up
BOTH = "processor-model"
_RESTARTS = "KYMO_WORKER_RESTARTS"  # times of the last restarts, across them
_RESTARTS_MAX, _RESTARTS_S = 10, 60.0


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """A recipe with the bundle that classifies for it."""

    recipe: Recipe
    bundle: Bundle


def load_work(recipes: Sequence[str], bundle: str | None, home: Path) -> list[Work]:
    """Recipes and their bundles, checked against each other before anything starts.

    Raises
    ------
    KymoError
        If a recipe, or its bundle, cannot be used.
    """
    works = []
    for name in recipes:
        recipe = load_recipe(name)
        if recipe.model is None:
            raise RecipeError(
                f"recipe `{recipe.name}` has no [model], so there is nothing to classify with", recipe.path
            )
        loaded = load_bundle(bundle or recipe.name, home)
        loaded.check(recipe)
        works.append(Work(recipe, loaded))
    groups = [work.recipe.name for work in works]
    if len(set(groups)) != len(groups):
        raise RecipeError(f"two recipes have the same name ({', '.join(groups)}); a worker tells them apart by it")
    return works


def encoder(classifier: Classifier) -> Callable[[Sequence[Window]], list[bytes]]:
    """Windows to encoded events, stamped with the present."""

    def classify(windows: Sequence[Window]) -> list[bytes]:
        events = classifier.classify(windows)
        now_ns = time.time_ns()
        return [event.to_json(now_ns) for event in events]

    return classify


def roles_of(text: str, settings: Settings) -> list[str]:
    """The roles that a worker plays, from ``processor,model``; both together hand over in memory.

    Raises
    ------
    KymoError
        If a role is not known.
    """
    wanted = {role.strip() for role in text.split(",")}
    if wanted == {"processor", "model"}:
        return [BOTH, "processor"] if settings.write_derived else [BOTH]
    if not wanted or wanted - {"processor", "model"}:
        raise KymoError(f"--roles {text}: expected processor, model, or both separated by a comma")
    return sorted(wanted)


def run_worker(
    recipes: Sequence[str], settings: Settings, bundle: str | None = None, roles: str = "processor,model"
) -> None:
    """Run a worker until SIGTERM or SIGINT; returns when it has drained.

    Parameters
    ----------
    recipes : sequence of str
        Names or paths.
    settings : Settings
        The deployment.
    bundle : str, optional
        A bundle's path or name, instead of each recipe's own.
    roles : str
        ``processor``, ``model`` or both; with both the derived stream stays in memory unless ``KYMO_WRITE_DERIVED`` asks for it.

    Raises
    ------
    KymoError
        If it cannot start.
    """
    played = roles_of(roles, settings)
    works = load_work(recipes, bundle, settings.home)
    if set(played) != {BOTH}:
        for work in works:
            derived_format(work.recipe)
    settings = _reach(settings)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the event loop takes over
    with contextlib.ExitStack() as stack:
        slot = stack.enter_context(_slot(settings.home / "run"))
        _serve([(role, work) for work in works for role in played], settings, slot)


def _reach(settings: Settings) -> Settings:
    """Settings that name the broker, whose topics are there; a worker that has begun again waits for a broker that is away."""
    give_up = time.monotonic() + (AWAY_S if _RESTARTS in os.environ else 0.0)
    while True:
        try:
            found = dataclasses.replace(settings, brokers=address(settings))
            ensure_topics(found, Names(found.prefix))
        except BrokerError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.5)
            continue
        return found


def _serve(parts: list[tuple[str, Work]], settings: Settings, slot: int) -> None:
    import uvloop

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    # A thread that wants to answer the broker waits this long for one that computes; the default of 5 ms shows in the latency.
    sys.setswitchinterval(0.001)
    from mode import Worker

    from deploy.metrics import WorkerMetrics, serve_metrics

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    metrics = WorkerMetrics({work.recipe.name: work.bundle.id for _, work in parts})
    apps = [_app(role, work, settings, slot, metrics) for role, work in parts]
    for (_, work), app in zip(parts, apps, strict=True):
        metrics.watch(work.recipe.name, partial(_assigned, app), partial(getattr, app.handler, "waiting"))
    server = serve_metrics(metrics.registry, settings, "worker", ready=lambda: all(app.is_ready() for app in apps))

    class QuietWorker(Worker):
        def _setup_logging(self) -> None:  # mode's own would replace every handler
            set_up_logging()

        def _schedule_shutdown(self, number: signal.Signals) -> None:
            if not _stopping.is_set():
                _stopping.set()
                _end_anyway_after(DRAIN_S)
            super()._schedule_shutdown(number)

    worker = QuietWorker(*apps, redirect_stdouts=False, quiet=True, blocking_timeout=0.0, loop=loop)
    try:
        worker.execute_from_commandline()
    except SystemExit as stop:
        if stop.code:
            raise
    finally:
        server.close()


def _app(role: str, work: Work, settings: Settings, slot: int, metrics: Any) -> Any:
    from models.agent import Agent
    from models.around import Around
    from models.log import ReadBack
    from processors.batches import BatchApp, reader_arguments

    recipe, names = work.recipe, Names(settings.prefix)
    inputs = sorted({names.for_stream(table.stream) for table in recipe.inputs})
    if role == "model":
        inputs = [names.for_stream(derived_format(recipe).stream)]
    app = BatchApp(f"{settings.prefix}.{recipe.name}.{role}", inputs, settings, f"{socket.gethostname()}-{slot}", fail)
    observer = metrics.observer(recipe.name)
    app.handler = Agent(
        _job(role, work, names), Around(app, names, ReadBack(reader_arguments(settings)), observer, fail)
    )
    return app


def _assigned(app: Any) -> int:
    return len(app.assigned())


def _job(role: str, work: Work, names: Names) -> Any:
    from models.around import Job

    recipe, whole = work.recipe, work.bundle.chain
    if role == "processor":
        chain, _ = whole.split()
        codec, topic = ChunkCodec(), names.for_stream(derived_format(recipe).stream)
        outputs = outputs_of(chain, recipe.name)
        return Job(
            recipe.name, role, chain, outputs, topic, recipe.matches, lambda made: [codec.encode(c) for c in made]
        )
    chain = whole if role == BOTH else whole.split()[1]
    step = Fraction(1) if role == BOTH else derived_format(recipe).step
    classifier = Classifier.for_recipe(work.bundle, recipe)
    outputs = outputs_of(chain, recipe.name, step)
    return Job(recipe.name, role, chain, outputs, names.of("events"), recipe.matches, encoder(classifier))


def derived_format(recipe: Recipe) -> Format:
    """Format of the stream between a recipe's processor and its model agent.

    Raises
    ------
    FormatError
        If no step stands before the window.
    """
    fmt = recipe.input_format()
    return recipe.chain.split()[0].output({fmt.stream: fmt})


def fail(error: BaseException) -> None:
    """End this process, or begin it again: what was not committed is done again, and nothing that was published is published twice."""
    if isinstance(error, DeliveryError):
        print(f"kymo worker: {error}; beginning again from the last commit", file=sys.stderr, flush=True)
        _restart()
    if isinstance(error, KymoError):
        print(f"kymo worker: {error}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(1)


_stopping = threading.Event()  # the process was asked to end


def _end_anyway_after(seconds: float) -> None:
    timer = threading.Timer(seconds, _give_up, [f"not drained within {seconds:g} s"])
    timer.daemon = True
    timer.start()


def _give_up(why: str) -> None:
    print(f"kymo worker: {why}; what is left is done again at the next start", file=sys.stderr, flush=True)
    os._exit(1)


def _restart() -> None:
    if _stopping.is_set():
        _give_up("asked to end while an output could not be delivered")
    now = time.time()
    recent = [t for t in os.environ.get(_RESTARTS, "").split(",") if t and now - float(t) < _RESTARTS_S]
    if len(recent) >= _RESTARTS_MAX:
        print(
            f"kymo worker: began again {len(recent)} times within {_RESTARTS_S:g} s; giving up",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
    os.environ[_RESTARTS] = ",".join([*recent, f"{now:.1f}"])
    # A process image of its own: no task, thread or socket of this one can send anything afterwards.
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - the very command that started this process


@contextlib.contextmanager
def _slot(folder: Path) -> Any:
    """The lowest number that no other worker of this machine holds; its static membership."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1_000):
        file: IO[str] = (folder / f"worker-{number}.lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            continue
        try:
            yield number
        finally:
            file.close()
        return
    raise KymoError(f"{folder}: 1,000 workers run here already")
