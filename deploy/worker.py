"""A worker process. In: recipes, their bundles and settings. Out: a process that turns the input topics into events until it is stopped.

One Faust app a recipe. On SIGTERM it finishes the windows under way and commits, within 20 s. When an output is not acknowledged, or
others may own its partitions by now, the process replaces itself by a new one, which begins from the last commit; any other failure ends
it with a non-zero exit status.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
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
from typing import TYPE_CHECKING, Any

from mode import Service

from deploy.broker import address
from deploy.jobs import (
    BOTH,
    Part,
    Work,
    bound_topics,
    derived_format,
    group_of,
    load_work,
    make_app,
    make_part,
    make_reader,
)
from deploy.worker_log import SPARSE, say, set_up_logging
from models.bundle import load_bundle
from models.registry import CHAMPION
from streams.errors import BrokerError, BundleError, DeliveryError, KymoError
from streams.files import lock
from streams.kafka.admin import ensure_topics
from streams.readers.words import many
from streams.settings import Settings
from streams.topics import Names

if TYPE_CHECKING:
    from deploy.metrics import WorkerMetrics

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
    wanted = {role.strip() for role in text.split(",")}
    if wanted == {"processor", "model"}:
        return [BOTH, "processor"] if settings.write_derived else [BOTH]
    if not wanted or wanted - {"processor", "model"}:
        raise KymoError(f"--roles {text}: expected processor, model, or both separated by a comma")
    return sorted(wanted)


def run_worker(
    recipes: Sequence[str], settings: Settings, bundle: str | None = None, roles: str = "processor,model"
) -> None:
    """Run a worker until SIGTERM or SIGINT; returns when it has drained."""
    set_up_logging()
    played = roles_of(roles, settings)
    works = _load(recipes, bundle, settings)
    if set(played) != {BOTH}:
        for work in works:
            derived_format(work.recipe)
    names = Names(settings.prefix)
    bound = [bound_topics(role, work.recipe, names) for work in works for role in played]
    settings = _reach(settings, bound)
    with contextlib.ExitStack() as stack:
        instance = stack.enter_context(_instance(settings.home / "run"))
        _serve(works, played, settings, Place(instance, follows=bundle is None and played != ["processor"]))


def _load(recipes: Sequence[str], bundle: str | None, settings: Settings) -> list[Work]:
    """Recipes with their bundles; where this machine's registry has none, with those that are announced."""
    try:
        return load_work(recipes, bundle, settings.home)
    except BundleError:
        if bundle is not None:
            raise
        from deploy.follow import announced, bundle_of

        said = {recipe: p for (recipe, alias), p in announced(_reach(settings)).items() if alias == CHAMPION}
        if not said:
            raise
        return load_work(
            recipes,
            None,
            settings.home,
            lambda n, home: bundle_of(said[n], home) if n in said else load_bundle(n, home),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """A worker's name among the members of its groups, and whether it follows promotions."""

    instance: str
    follows: bool


def _reach(settings: Settings, bound: Iterable[Sequence[str]] = ()) -> Settings:
    """Settings that name the broker, whose topics are there; a worker that has begun again waits for a broker that is away."""
    give_up, away = time.monotonic() + (AWAY_S if _RESTARTS in os.environ else 0.0), False
    while True:
        try:
            found = dataclasses.replace(settings, brokers=address(settings))
            topics = ensure_topics(found, Names(found.prefix))
            for sentence in topics.warnings:
                say(sentence)
            for together in bound:
                topics.require_equal(together)
        except BrokerError as error:
            if time.monotonic() > give_up:
                raise
            if not away:
                say(f"{error}; waiting for it, for up to {AWAY_S:g} s")
            away = True
            time.sleep(0.5)
            continue
        if away:
            say("Kafka is back")
        return found


def _serve(works: list[Work], played: list[str], settings: Settings, place: Place) -> None:
    import uvloop

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    # A thread that wants to answer the broker waits this long for one that computes; the default of 5 ms shows in the latency.
    sys.setswitchinterval(0.0005)
    from mode import Worker

    from deploy.metrics import WorkerMetrics
    from deploy.metrics_server import serve_metrics

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    metrics = WorkerMetrics({work.recipe.name: work.bundle.id for work in works})
    parts, followers = _parts(works, played, settings, place, metrics)
    apps = [make_app(part, settings, place.instance, metrics, fail) for part in parts]
    for part, app in zip(parts, apps, strict=True):
        metrics.watch(part.work.recipe.name, partial(_assigned, app), partial(getattr, app.handler, "waiting"))
    pulse = Pulse(apps, settings, loop=loop)
    metrics.longest_pause_s = lambda: pulse.longest_s
    ready = lambda: all(app.is_ready() for app in apps)  # noqa: E731
    server = serve_metrics(metrics.registry, settings, "worker", ready, pulse.is_live)
    pulse.serves = server.port

    def settled() -> bool:
        return not any(app.handler.partitions for app in apps)

    class QuietWorker(Worker):
        def _setup_logging(self) -> None:  # mode's own would replace every handler
            pass

        def _schedule_shutdown(self, number: signal.Signals) -> None:
            if settled():  # Faust may take long to stop what it has half started
                server.close()
                os._exit(0)
            if not _stopping.is_set():
                _stopping.set()
                _end_anyway_after(DRAIN_S, settled)
            super()._schedule_shutdown(number)

    worker = QuietWorker(*apps, *followers, pulse, redirect_stdouts=False, quiet=True, blocking_timeout=0.0, loop=loop)
    gc.collect()
    gc.freeze()  # what stands so far stays: every look at it would stop the loop
    try:
        worker.execute_from_commandline()
    except SystemExit as stop:
        if stop.code:
            raise
    finally:
        server.close()


def _parts(
    works: list[Work], played: list[str], settings: Settings, place: Place, metrics: WorkerMetrics
) -> tuple[list[Part], list[Any]]:
    """What the worker does, with the champions of now; and what follows promotions, if it should."""
    since: dict[str, int] = {}
    if place.follows:
        from deploy.follow import Exchange, Follower, newest

        found = list(newest(works, settings, metrics))
        works, since = [work for work, _ in found], {work.recipe.name: at_ns for work, at_ns in found}
        metrics.bundles.update({work.recipe.name: work.bundle.id for work in works})
    names = Names(settings.prefix)
    # Recipes whose derived streams are the same share what makes them.
    sought = {group_of(role, work.recipe, names): (role, work) for work in works for role in played}
    parts = [make_part(role, work, names) for role, work in sought.values()]
    if not place.follows:
        return parts, []
    for part in parts:
        if part.shadow is not None:
            metrics.recipes[part.work.recipe.name].shadow = part.shadow.counts
    exchange = Exchange(parts, since, settings.home, metrics)
    return parts, [Follower(exchange, settings, partial(make_reader, settings))]


class Pulse(Service):
    """Beats twenty times a second in a worker's loop; says when it is ready, when its broker is away and when it is back, and begins the
    worker again where Kafka's client hangs though a broker answers.
    """

    def __init__(self, apps: Sequence[Any], settings: Settings, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._apps, self._brokers = apps, settings.brokers.split(",")
        self._beat_s, self.longest_s, self.serves = time.monotonic(), 0.0, -1
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
            work = f"{many(partitions, 'partition')} to work on" if partitions else "others have all partitions"
            say(f"ready, {work}" + (f"; metrics on port {self.serves}" if self.serves > 0 else ""))
        silent_s = max((app.lease.silent_s for app in self._apps), default=0.0)
        limit_s = self._session_s / 2 if self._ready and settled else _ASSIGNMENT_S
        if (away := silent_s > limit_s) != self._away:
            self._away = SPARSE.away = away
            reason = SPARSE.reason(silent_s) or "silence"
            say(f"Kafka at {','.join(self._brokers)} does not answer ({reason}); waiting" if away else "Kafka is back")

    async def _answers(self) -> bool:
        """Whether a broker can be reached."""
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
    """Whether its group knows it and has no partition for it."""
    return app.lease.left_s > 0 and not app.assigned()


def _assigned(app: Any) -> int:
    return len(app.assigned())


def fail(error: BaseException) -> None:
    """End this process, or begin it again: what was not committed is done again, and nothing that was published is published twice."""
    if isinstance(error, DeliveryError):
        say(f"{error}; beginning again from the last commit")
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


def _give_up(why: str) -> None:
    say(f"{why}; what is left is done again at the next start")
    os._exit(1)


def _restart() -> None:
    if _stopping.is_set():
        _give_up("asked to end while an output could not be delivered")
    now = time.time()
    recent = [t for t in os.environ.get(_RESTARTS, "").split(",") if t and now - float(t) < _RESTARTS_S]
    if len(recent) >= _RESTARTS_MAX:
        say(f"began again {len(recent)} times within {_RESTARTS_S:g} s; giving up")
        os._exit(1)
    os.environ[_RESTARTS] = ",".join([*recent, f"{now:.1f}"])
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
