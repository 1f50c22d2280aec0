"""A worker process. In: recipes, their bundles and settings. Out: a process that turns the input topics into events until it is stopped.

One Faust app a recipe. On SIGTERM it finishes the windows under way and commits, within 20 s. When an output is not acknowledged, or
others may own its partitions by now, the process replaces itself by a new one, which begins from the last commit; any other failure ends
it with a non-zero exit status.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mode import Service, Worker

from kymo.deploy.broker import located
from kymo.deploy.follow import Exchange, Follower, announced, bundle_of, current_champions
from kymo.deploy.metrics import RecipeMetrics, WorkerMetrics
from kymo.deploy.metrics_server import Server, serve_metrics
from kymo.deploy.roles import (
    BOTH,
    Deployment,
    Part,
    bound_topics,
    check_names,
    derived_format,
    group_of,
    load_deployments,
    load_processors,
    make_app,
    make_fusion_app,
    make_part,
    make_reader,
    roles_for,
    split_fusions,
)
from kymo.deploy.worker_log import SPARSE, say, set_up_logging
from kymo.models.bundle import Bundle, load_bundle
from kymo.models.registry import CHAMPION
from kymo.processors.recipe.fusion import FusionRecipe
from kymo.streams.errors import BrokerError, BundleError, DeliveryError, KymoError
from kymo.streams.files import lock
from kymo.streams.kafka.admin import ensure_topics
from kymo.streams.settings import Settings
from kymo.streams.topics import Names
from kymo.streams.words import many

DRAIN_S = 20.0
AWAY_S = 600.0  # a broker may be away so long before a worker gives up
_RESTARTS = "KYMO_WORKER_RESTARTS"  # times of the last restarts, across them
_RESTARTS_MAX, _RESTARTS_S = 10, 60.0
_STILL_S = 30.0  # a loop that is still for so long hangs
_SILENT_S = 60.0  # so is a member that its group has not heard of, while the broker can be reached
_BEAT_S = 0.05
_ASSIGNMENT_S = 30.0  # a group may take so long to give out its partitions


def roles_of(text: str, settings: Settings) -> list[str]:
    """The roles that a worker plays, from ``processor,model``; both together hand over in memory."""
    roles = {role.strip() for role in text.split(",")}
    if roles == {"processor", "model"}:
        return [BOTH, "processor"] if settings.write_derived else [BOTH]
    if not roles or roles - {"processor", "model"}:
        raise KymoError(f"--roles {text}: expected processor, model, or both separated by a comma")
    return sorted(roles)


def run_worker(
    recipes: Sequence[str], settings: Settings, bundle: str | None = None, roles: str = "processor,model"
) -> None:
    """Run a worker until SIGTERM or SIGINT; returns when it has drained."""
    set_up_logging()
    role_names = roles_of(roles, settings)
    streams, fusions = split_fusions(recipes)
    if role_names == ["processor"] and not streams:
        raise KymoError(f"--roles processor: {', '.join(recipes)} takes events, which is the work of role model")
    processes = role_names == ["processor"] and bundle is None
    deployments = load_processors(streams) if processes else _load(streams, bundle, settings)
    check_names([*(deployment.recipe.name for deployment in deployments), *(fusion.name for fusion in fusions)])
    if set(role_names) != {BOTH}:
        for deployment in deployments:
            derived_format(deployment.recipe)
    names = Names(settings.prefix)
    topic_groups = [
        bound_topics(role, deployment.recipe, names)
        for deployment in deployments
        for role in roles_for(deployment.recipe, role_names)
    ]
    fused_topics = [(names.of("events"), names.of("state"))] if fusions else []
    settings = _reach(settings, [*topic_groups, *fused_topics])
    with _instance(settings.home / "run") as instance:
        follows = bool(deployments) and bundle is None and role_names != ["processor"]
        fusions = fusions if role_names != ["processor"] else []
        _serve(deployments, fusions, role_names, settings, instance, follows=follows)


def _load(recipes: Sequence[str], bundle: str | None, settings: Settings) -> list[Deployment]:
    """Recipes with their bundles; where this machine's registry has none, with those that are announced."""
    try:
        return load_deployments(recipes, bundle, settings.home)
    except BundleError:
        if bundle is not None:
            raise
        promotions = announced(_reach(settings))

        def find(name: str, home: Path) -> Bundle:
            promotion = promotions.get((name, CHAMPION))
            return bundle_of(promotion, home) if promotion else load_bundle(name, home)

        return load_deployments(recipes, None, settings.home, find)


def _reach(settings: Settings, topic_groups: Iterable[Sequence[str]] = ()) -> Settings:
    """Settings that name the broker, whose topics are there; a worker that has begun again waits for a broker that is away."""
    give_up, away = time.monotonic() + (AWAY_S if _RESTARTS in os.environ else 0.0), False
    while True:
        try:
            reachable = located(settings)
            topics = ensure_topics(reachable, Names(reachable.prefix))
            for sentence in topics.warnings:
                say(sentence)
            for group in topic_groups:
                topics.require_equal(group)
        except BrokerError as error:
            if time.monotonic() > give_up:
                raise
            if not away:
                say(f"waiting for Kafka, for up to {AWAY_S:g} s ({error})")
            away = SPARSE.away = True
            time.sleep(0.5)
            continue
        if away:
            SPARSE.away = False
            say("Kafka is back")
        return reachable


def _serve(
    deployments: list[Deployment],
    fusions: list[FusionRecipe],
    roles: list[str],
    settings: Settings,
    instance: str,
    *,
    follows: bool,
) -> None:
    import uvloop

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    # A thread that wants to answer the broker waits this long for one that computes; the default of 5 ms shows in the latency.
    sys.setswitchinterval(0.0005)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    metrics = WorkerMetrics({d.recipe.name: d.bundle.id if d.loaded else "" for d in deployments})
    metrics.recipes |= {fusion.name: RecipeMetrics() for fusion in fusions}
    followers: list[Service] = []
    if follows:
        deployments, since = current_champions(deployments, settings, metrics)
        metrics.bundles.update({deployment.recipe.name: deployment.bundle.id for deployment in deployments})
    parts = _parts(deployments, roles, Names(settings.prefix))
    if follows:
        for part in parts:
            if part.shadow is not None:
                metrics.recipes[part.deployment.recipe.name].shadow = part.shadow.counts
        exchange = Exchange(parts, since, settings.home, metrics)
        followers.append(Follower(exchange, settings, partial(make_reader, settings)))
    apps = [make_app(part, settings, instance, metrics, fail) for part in parts]
    apps += [make_fusion_app(fusion, settings, instance, metrics, fail) for fusion in fusions]
    recipe_names = [*(part.deployment.recipe.name for part in parts), *(fusion.name for fusion in fusions)]
    for recipe_name, app in zip(recipe_names, apps, strict=True):
        metrics.watch(recipe_name, partial(_assigned, app), partial(getattr, app.handler, "waiting"))
    pulse = Pulse(apps, settings, loop=loop)
    metrics.longest_pause_s = lambda: pulse.longest_s
    ready = lambda: all(app.is_ready() for app in apps)  # noqa: E731
    server = serve_metrics(metrics.registry, settings, "worker", ready, pulse.is_live)
    pulse.metrics_port = server.port
    worker = _DrainingWorker(apps, [*followers, pulse], server, loop)
    gc.collect()
    gc.freeze()  # what stands so far stays: every look at it would stop the loop
    try:
        worker.execute_from_commandline()
    except SystemExit as stop:
        if stop.code:
            raise
    finally:
        server.close()


def _parts(deployments: list[Deployment], roles: list[str], names: Names) -> list[Part]:
    """One part a group: recipes whose derived streams are the same share what makes them."""
    by_group = {
        group_of(role, deployment.recipe, names): (role, deployment)
        for deployment in deployments
        for role in roles_for(deployment.recipe, roles)
    }
    return [make_part(role, deployment, names) for role, deployment in by_group.values()]


class _DrainingWorker(Worker):
    """Runs the apps and what accompanies them; at a signal it ends at once where nothing is under way, else within the time to drain."""

    def __init__(
        self, apps: Sequence[Any], services: Sequence[Service], server: Server, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(*apps, *services, redirect_stdouts=False, quiet=True, blocking_timeout=0.0, loop=loop)
        self._apps, self._server = apps, server

    def _setup_logging(self) -> None:  # mode's own would replace every handler
        pass

    def _settled(self) -> bool:
        return not any(app.handler.partitions for app in self._apps)

    def _schedule_shutdown(self, number: signal.Signals) -> None:
        if self._settled():  # Faust may take long to stop what it has half started
            self._server.close()
            os._exit(0)
        if not _stopping.is_set():
            _stopping.set()
            _end_anyway_after(DRAIN_S, self._settled)
        super()._schedule_shutdown(number)


class Pulse(Service):
    """Beats twenty times a second in a worker's loop; says when it is ready, when its broker is away and when it is back, and begins the
    worker again where Kafka's client hangs though a broker answers.
    """

    def __init__(self, apps: Sequence[Any], settings: Settings, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._apps, self._brokers = apps, settings.brokers.split(",")
        self._beat_s, self.longest_s, self.metrics_port = time.monotonic(), 0.0, -1
        self._session_s, self._ready, self._away = settings.session_timeout_s, False, False

    def is_live(self) -> bool:
        """Whether the loop beats; to be asked in any thread."""
        return time.monotonic() - self._beat_s < _STILL_S

    @Service.task
    async def _beat(self) -> None:
        while not self.should_stop:
            asked_s = time.monotonic()
            await asyncio.sleep(_BEAT_S)
            self._beat_s = time.monotonic()
            self.longest_s = max(self.longest_s, self._beat_s - asked_s - _BEAT_S)
            self._tell()
            for app in self._apps:
                if app.lease.silent_s > _SILENT_S and await self._answers():
                    reason = SPARSE.reason(_SILENT_S)
                    app.failed(
                        DeliveryError(
                            f"group {app.conf.id} has not heard of this worker for {_SILENT_S:g} s"
                            + (f" ({reason})" if reason else "")
                        )
                    )

    def _tell(self) -> None:
        settled = not any(app.rebalancing for app in self._apps)
        if not self._ready and settled and all(app.is_ready() or _idle(app) for app in self._apps):
            self._ready = True
            partitions = sum(len(app.assigned()) for app in self._apps)
            share = f"{many(partitions, 'partition')} to work on" if partitions else "others have all partitions"
            say(f"ready, {share}" + (f"; metrics on port {self.metrics_port}" if self.metrics_port > 0 else ""))
        silent_s = max((app.lease.silent_s for app in self._apps), default=0.0)
        limit_s = self._session_s / 2 if self._ready and settled else _ASSIGNMENT_S
        if (away := silent_s > limit_s) != self._away:
            self._away = SPARSE.away = away
            reason = SPARSE.reason(silent_s) or "silence"
            say(f"Kafka at {','.join(self._brokers)} does not answer ({reason}); waiting" if away else "Kafka is back")

    async def _answers(self) -> bool:
        for host_and_port in self._brokers:
            host, _, port = host_and_port.rpartition(":")
            try:
                async with asyncio.timeout(1.0):
                    _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            except (OSError, ValueError, TimeoutError):
                continue
            writer.close()
            return True
        return False


def _idle(app: Any) -> bool:
    """See whether its group knows it and has no partition for it."""
    return app.lease.left_s > 0 and not app.assigned()


def _assigned(app: Any) -> int:
    return len(app.assigned())


def fail(error: BaseException) -> None:
    """End this process, or begin it again: what was not committed is done again, and nothing that was published is published twice."""
    if isinstance(error, DeliveryError):
        say(f"{'' if SPARSE.away else f'{error}; '}beginning again from the last commit")
        _restart()
    if isinstance(error, KymoError):
        say(str(error))
    else:
        traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(1)


_stopping = threading.Event()  # the process was asked to end


def _end_anyway_after(seconds: float, settled: Callable[[], bool]) -> None:
    def end() -> None:
        if settled():  # only the closing of connections takes so long
            os._exit(0)
        _give_up(f"not drained within {seconds:g} s")

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _give_up(reason: str) -> None:
    say(f"{reason}; what is left is done again at the next start")
    os._exit(1)


def _restart() -> None:
    if _stopping.is_set():
        _give_up("asked to end while an output could not be delivered")
    now_s = time.time()
    recent = [t for t in os.environ.get(_RESTARTS, "").split(",") if t and now_s - float(t) < _RESTARTS_S]
    if len(recent) >= _RESTARTS_MAX:
        say(f"began again {len(recent)} times within {_RESTARTS_S:g} s; giving up")
        os._exit(1)
    for child in multiprocessing.active_children():  # what is slow is done there
        child.kill()
        child.join(1)
    os.environ[_RESTARTS] = ",".join([*recent, f"{now_s:.1f}"])
    for descriptor in os.listdir("/dev/fd"):  # librdkafka leaves pipes open to the next
        with contextlib.suppress(OSError):
            os.set_inheritable(int(descriptor), int(descriptor) < 3)
    # A process image of its own: no task, thread or socket of this one can send anything afterwards.
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - the very command that started this process


@contextlib.contextmanager
def _instance(folder: Path) -> Any:
    """A name that no other worker has, and that the next one in its place gets: a group then gives it its partitions at once.

    It stands in the lowest numbered file that no other worker of this folder holds. A number alone, with the host's name, would be another
    user's, too, or that of a container on the same host.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1_000):
        with lock(folder / f"worker-{number}.lock", wait=False) as file:
            if file is None:
                continue
            file.seek(0)
            name = file.read().decode(errors="replace").strip()
            if not re.fullmatch(r"[0-9a-f]{32}", name):
                name = uuid.uuid4().hex
                file.truncate(0)
                file.write(name.encode())
                file.flush()
            yield f"kymo-{name}"
            return
    raise KymoError(f"{folder}: 1,000 workers run here already")
