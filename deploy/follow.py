"""Following promotions. In: the compacted ``kymo.models``. Out: bundles that running agents take over, or refuse.

A worker reads the topic whole, without a group, and then goes on reading. What it loads, checks and warms it does in a thread of its own,
so that the present bundle goes on classifying meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mode import Service

from kymo.deploy.metrics import WorkerMetrics
from kymo.deploy.roles import Deployment, Part
from kymo.deploy.worker_log import say
from kymo.models.bundle import Bundle, load_bundle
from kymo.models.registry import CHAMPION, SHADOW, SHIPPED, open_registry
from kymo.models.registry.manifest import MANIFEST
from kymo.models.serving.operator import release_memory
from kymo.streams.errors import BrokerError, BundleError, KymoError, TopicError
from kymo.streams.promotions import Promotion
from kymo.streams.settings import Settings
from kymo.streams.topics import Names
from kymo.streams.words import NS, brief

_AGAIN_S = 1.0
#: By which another machine's clock may be ahead: a promotion from later on would shut out all others.
_AHEAD_NS = 24 * 3600 * NS


def bundle_of(promotion: Promotion, home: Path) -> Bundle:
    """The bundle that a promotion names, from this worker's registry, verified.

    A record on a topic is not what decides where code is loaded from: the registry that it names is told, and never asked.
    """
    recipe, _, digest = promotion.bundle.partition("@")
    if not digest:
        if not (SHIPPED / promotion.recipe / MANIFEST).is_file():
            raise BundleError(f"recipe `{promotion.recipe}` has no champion any more, and none ships with Kymo")
        return load_bundle(SHIPPED / promotion.recipe)
    registry = open_registry(home)
    folder = registry.folder(recipe, digest)
    if folder is None:
        raise BundleError(
            f"bundle {promotion.bundle} is not in this worker's registry, {registry.url}; it was promoted in "
            f"{brief(promotion.registry) or 'another'}: copy its folder here, or have all share one registry (KYMO_REGISTRY)"
        )
    bundle = load_bundle(folder)
    if bundle.id != promotion.bundle:
        raise BundleError(f"{folder}: holds {bundle.id}, expected {promotion.bundle}; copy the bundle again")
    return bundle


def announced(settings: Settings) -> dict[tuple[str, str], Promotion]:
    """By recipe and alias, what the topic says now; nothing where it cannot be read."""
    from kymo.streams.kafka.read import read_records

    promotions = {}
    try:
        for record in read_records(settings, Names(settings.prefix).of("models")):
            promotion = _read(record.value)
            if isinstance(promotion, Promotion):
                promotions[promotion.recipe, promotion.alias] = promotion
    except (BrokerError, TopicError):
        return {}
    return promotions


def _read(value: bytes | None) -> Promotion | str:
    """The promotion of a record, or why it is left out; empty for a deleted one."""
    try:
        promotion = Promotion.from_json(value) if value is not None else None
    except BundleError as error:
        return str(error)
    if promotion is not None and promotion.promoted_ns > time.time_ns() + _AHEAD_NS:
        return f"promotion: {promotion.bundle or 'no bundle'} was promoted at {promotion.promoted_ns} ns, in the future"
    return promotion or ""


def current_champions(
    deployments: Sequence[Deployment], settings: Settings, metrics: WorkerMetrics
) -> tuple[list[Deployment], dict[str, int]]:
    """The deployments with the champions of now, by the registry or the topic, whichever is newer; by recipe, when each was promoted."""
    promotions, registry = announced(settings), open_registry(settings.home)
    current, since = [], {}
    for deployment in deployments:
        recipe, newest = deployment.recipe, deployment
        entry = registry.current(recipe.name)
        promotion, promoted_ns = promotions.get((recipe.name, CHAMPION)), entry.at_ns if entry else 0
        if promotion is not None and promotion.promoted_ns > promoted_ns:
            promoted_ns = promotion.promoted_ns
            try:
                bundle = bundle_of(promotion, settings.home)
                bundle.check(recipe)
                newest = Deployment(recipe, bundle)
            except KymoError as error:
                metrics.refused(recipe.name, CHAMPION)
                say(
                    f"{recipe.name}: {promotion.bundle} is announced but refused: {error}; "
                    f"starting with {deployment.bundle.id}"
                )
        current.append(newest)
        since[recipe.name] = promoted_ns
    return current, since


class Exchange:
    def __init__(self, parts: Sequence[Part], since: dict[str, int], home: Path, metrics: WorkerMetrics) -> None:
        self._parts = {part.deployment.recipe.name: part for part in parts if part.champion is not None}
        self._since = {(recipe, CHAMPION): at_ns for recipe, at_ns in since.items()}
        self._home, self._metrics = home, metrics

    def start_shadows(self) -> None:
        """Take over the shadows that the registry knows of."""
        registry = open_registry(self._home)
        for recipe in self._parts:
            entry = registry.current(recipe, SHADOW)
            if entry is not None and entry.bundle:
                self.consider(registry.promotion(entry, recipe))

    def consider(self, promotion: Promotion) -> None:
        """Take over the bundle of a promotion that is news, or refuse it and keep the present one."""
        part, key = self._parts.get(promotion.recipe), (promotion.recipe, promotion.alias)
        if part is None or promotion.alias not in (CHAMPION, SHADOW):
            return
        if promotion.promoted_ns <= self._since.get(key, 0):
            return
        self._since[key] = promotion.promoted_ns
        try:
            if promotion.alias == SHADOW:
                self._shadow(part, promotion)
            else:
                self._champion(part, promotion)
        except Exception as error:  # whatever is wrong with a bundle, the present one goes on
            self._metrics.refused(*key)
            why = error if isinstance(error, KymoError) else f"{type(error).__name__}: {error}"
            say(f"{promotion.recipe}: {promotion.bundle or 'no bundle'} is refused as {promotion.alias}: {why}")
        release_memory()

    def _champion(self, part: Part, promotion: Promotion) -> None:
        assert part.champion is not None
        bundle = bundle_of(promotion, self._home)
        before, shadow = part.champion.predictor.bundle.id, part.shadow.predictor
        if bundle.id == before:
            return
        part.champion.exchange(part.champion.prepare(bundle))
        self._metrics.swapped(promotion.recipe, CHAMPION, bundle.id)
        if shadow is not None and part.shadow.predictor is None:
            self._metrics.swapped(promotion.recipe, SHADOW, "")
            say(f"{promotion.recipe}: shadow none, since {shadow.bundle.id} takes other windows than {bundle.id}")
        after_s = (time.time_ns() - promotion.promoted_ns) / 1e9
        say(f"{promotion.recipe}: {bundle.id} takes over from {before}, {after_s:.2f} s after its promotion")

    def _shadow(self, part: Part, promotion: Promotion) -> None:
        assert part.champion is not None
        bundle = bundle_of(promotion, self._home) if promotion.bundle else None
        part.shadow.predictor = part.champion.prepare(bundle, aside=True) if bundle else None
        self._metrics.swapped(promotion.recipe, SHADOW, promotion.bundle)
        say(f"{promotion.recipe}: shadow {promotion.bundle or 'none'}")


class Follower(Service):
    """Reads the topic as long as the worker runs."""

    def __init__(self, exchange: Exchange, settings: Settings, consumer: Callable[[], Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._exchange, self._topic, self._consumer = exchange, Names(settings.prefix).of("models"), consumer
        self._odd_to = -1  # offset of the newest odd record that was told
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="exchange")

    @Service.task
    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._exchange.start_shadows)
        while not self.should_stop:
            try:
                await self._read(loop)
            except asyncio.CancelledError:
                raise
            except Exception as error:  # the agents' own clients say what is wrong with the broker
                self.log.debug("following promotions: %r", error)
            await self.sleep(_AGAIN_S)

    async def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        from aiokafka.structs import TopicPartition

        consumer, tp = self._consumer(), TopicPartition(self._topic, 0)
        try:
            await consumer.start()
            consumer.assign([tp])
            await consumer.seek_to_beginning(tp)
            async for record in consumer:
                promotion = _read(record.value)
                if isinstance(promotion, Promotion):
                    await loop.run_in_executor(self._thread, self._exchange.consider, promotion)
                elif promotion and record.offset > self._odd_to:  # once, however often the topic is read
                    self._odd_to = record.offset
                    say(f"{self._topic}, offset {record.offset}: {promotion}; left out")
        finally:
            await consumer.stop()

    async def on_stop(self) -> None:
        """Wait for nothing: a bundle that is half loaded is not taken."""
        self._thread.shutdown(wait=False, cancel_futures=True)
