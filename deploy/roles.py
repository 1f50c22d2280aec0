"""What a worker's agents do. In: recipes with their bundles, roles, settings. Out: a Faust app with its agent for each."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kymo.deploy.worker_log import say
from kymo.models.bundle import Bundle, check_model, load_bundle, raw_chain
from kymo.models.serving.outputs import ENDLESS, DerivedChunks, Events, taken_chain, window_kinds
from kymo.processors.chain import Chain
from kymo.processors.join import Join
from kymo.processors.recipe.fusion import FusionRecipe, load_fusion
from kymo.processors.recipe.load import Recipe, load_recipe
from kymo.streams.chunk import Chunk, Format
from kymo.streams.errors import BrokerError, DeliveryError, FormatError, RecipeError
from kymo.streams.events import Event
from kymo.streams.kafka.admin import topic_ids
from kymo.streams.messages import read_object
from kymo.streams.settings import Settings
from kymo.streams.topics import MIB, Names

if TYPE_CHECKING:
    from kymo.models.serving.operator import Champion

BOTH = "processor-model"
Failed = Callable[[BaseException], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Deployment:
    """A recipe with the bundle that classifies for it; without one it is a processor's alone."""

    recipe: Recipe
    loaded: Bundle | None

    @property
    def bundle(self) -> Bundle:
        """The bundle, of what classifies."""
        assert self.loaded is not None, f"recipe {self.recipe.name} has no bundle"
        return self.loaded


def load_deployments(
    recipes: Sequence[str], bundle: str | None, home: Path, find: Callable[[str, Path], Bundle] = load_bundle
) -> list[Deployment]:
    """Recipes and their bundles, checked against each other before anything starts; `find` gives a name's bundle."""
    deployments = []
    for name in recipes:
        recipe = load_recipe(name)
        check_model(recipe)
        loaded_bundle = find(bundle or recipe.name, home)
        loaded_bundle.check(recipe)
        check_waiting(recipe, loaded_bundle.chain)
        deployments.append(Deployment(recipe, loaded_bundle))
    check_names([deployment.recipe.name for deployment in deployments])
    return deployments


def load_processors(recipes: Sequence[str]) -> list[Deployment]:
    """Recipes whose steps alone are run, which takes no model."""
    deployments = [Deployment(load_recipe(name), None) for name in recipes]
    for deployment in deployments:
        check_waiting(deployment.recipe, deployment.recipe.chain)
    return deployments


def check_names(names: Sequence[str]) -> None:
    """Refuse recipes that have one name."""
    if len(set(names)) != len(names):
        raise RecipeError(f"two recipes have the same name ({', '.join(names)}); a worker tells them apart by it")


def split_fusions(recipes: Sequence[str]) -> tuple[list[str], list[FusionRecipe]]:
    """Recipes that take streams, and those that take the events of others."""
    streams, fusions = list[str](), list[FusionRecipe]()
    for name in recipes:
        if (fusion := load_fusion(name)) is not None:
            fusions.append(fusion)
        else:
            streams.append(name)
    return streams, fusions


def check_waiting(recipe: Recipe, chain: Chain) -> None:
    """Refuse a recipe of several inputs whose sessions cannot be stored: what these have in common is not read again."""
    from kymo.models.serving.snapshots import BYTES_MAX

    entry = chain.specs[0]
    if not isinstance(entry, Join):
        return
    late_s, fmt = max(table.lateness_s for table in recipe.inputs), recipe.input_format()
    kept, waiting = chain.cut_behind_window()[0].memory_bytes(fmt), entry.waiting_bytes(late_s)
    needs = kept + sum(waiting.values())
    if needs > BYTES_MAX:
        parts = ", ".join(f"`{stream}` {size / MIB:.1f}" for stream, size in waiting.items())
        raise RecipeError(
            f"recipe {recipe.name}: a session may hold {needs / MIB:.1f} MiB, and a snapshot {BYTES_MAX / MIB:.1f}: its steps and "
            f"window take {kept / MIB:.1f}, and what waits for lateness_s = {late_s:g} {parts}; shorten the window, or lateness_s, "
            "or take fewer channels"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A role that a worker plays for a recipe."""

    role: str  # ``processor``, ``model`` or both in one
    deployment: Deployment
    champion: Champion | None = None  # what classifies; None for a processor
    shadow: Any = None  # what scores aside

    @property
    def reads_derived(self) -> bool:
        """Whether it reads what the recipe's processor makes, instead of the sensor's stream."""
        return self.role == "model" and self.deployment.bundle.takes == "chain"

    @property
    def input_format(self) -> Format:
        recipe = self.deployment.recipe
        return derived_format(recipe) if self.reads_derived else recipe.input_format()


def roles_for(recipe: Recipe, roles: Sequence[str]) -> list[str]:
    """The roles that a worker plays for a recipe: what a slow step makes stands on a topic, whoever takes it."""
    if BOTH in roles and recipe.chain.slow is not None:
        return ["processor", "model"]
    return list(roles)


def make_part(role: str, deployment: Deployment, names: Names) -> Part:
    from kymo.models.predict import Predictor
    from kymo.models.serving.operator import Champion, Shadow

    if role == "processor":
        return Part(role, deployment)
    champion = Champion(Predictor.to_serve(deployment.bundle, deployment.recipe), deployment.recipe)
    return Part(role, deployment, champion, Shadow(names.of("shadow")))


def make_operator(part: Part, names: Names) -> Any:
    """Say what the agent of a part does."""
    from kymo.models.lengths import FirstSamples
    from kymo.models.serving.operator import Operator

    recipe, champion = part.deployment.recipe, part.champion
    if champion is None:
        name, chain = steps_name(recipe), cut(recipe, recipe.chain)[0]
        topic, inputs = names.for_stream(derived_format(recipe).stream), raw_topics(recipe, names)
        outputs, before = DerivedChunks(chain, name), chain if chain.slow is None else Chain(chain.specs[:-1])
        encode = outputs.encode if chain.slow is None else None
        operator = Operator(name, f"{name}.processor", inputs, before, outputs, topic, recipe.matches, encode)
        return dataclasses.replace(operator, patience=patience_of(recipe, names))
    bundle, fmt = part.deployment.bundle, part.input_format
    chain = (cut(recipe, bundle.chain)[1] if part.reads_derived else bundle.chain).cut_behind_window()[0]
    heads = ("", *(head.name for head in recipe.heads))
    # As the recipe says, not the bundle: one that is stateless may be exchanged for one that is not.
    memory = ENDLESS if recipe.stateful else champion.predictor.memory
    # The kinds of windows that it can make; none where its input is the processor's stream or the sensor's alone.
    chains = (each.cut_behind_window()[0] for each in (recipe.chain, raw_chain(recipe.chain)))
    kinds = window_kinds(fmt, *chains) if part.role == BOTH else ()
    events = Events(recipe.name, fmt.step, memory, heads, kinds)
    inputs = (names.for_stream(fmt.stream),) if part.reads_derived else raw_topics(recipe, names)
    # What is read by one kind of windows goes on where that kind left it, whoever reads it.
    state, topic = f"{recipe.name}.{'model' if part.reads_derived else BOTH}", names.of("events")

    def anew(bundle: Bundle) -> Any:
        deployment = dataclasses.replace(part.deployment, loaded=bundle)
        return make_operator(dataclasses.replace(part, deployment=deployment), names)

    def listen() -> Callable[[Chunk], str | None]:
        first = FirstSamples()
        return lambda chunk: first.doubt(champion.predictor.bundle.lengths, chunk, recipe)

    matches = derived_matches(fmt) if part.reads_derived else recipe.matches
    operator = Operator(recipe.name, state, inputs, chain, events, topic, matches, None, part.shadow, champion, anew)
    if part.reads_derived:
        return operator
    return dataclasses.replace(operator, listen=listen, patience=patience_of(recipe, names))


def derived_matches(expected: Format) -> Callable[[Format], str | None]:
    """Whether a derived stream is the one that a recipe's steps make; its digest alone may be anybody's."""
    fixed = attrgetter("channels", "rate", "dtype", "shape", "step", "span")

    def matches(fmt: Format) -> str | None:
        equal = fixed(fmt) == fixed(expected) and fmt.stream.partition(".")[0] == expected.stream.partition(".")[0]
        return None if equal else f"`{fmt.stream}` is not what the recipe's steps make"

    return matches


def patience_of(recipe: Recipe, names: Names) -> dict[str, Any]:
    """By input of a recipe that joins several, how long it is waited for."""
    from kymo.models.serving.joined import Patience

    tables = recipe.inputs if recipe.join is not None else ()
    return {table.stream: Patience(names.for_stream(table.stream), table.lateness_s, table.idle_s) for table in tables}


def raw_topics(recipe: Recipe, names: Names) -> tuple[str, ...]:
    return tuple(sorted({names.for_stream(table.stream) for table in recipe.inputs}))


def cut(recipe: Recipe, chain: Chain) -> tuple[Chain, Chain]:
    """What a recipe's processor does of a chain, and what its model agent does."""
    return chain.split(recipe.input_format())


def steps_name(recipe: Recipe) -> str:
    """Name of what a recipe's processor does, which its chunks carry: recipes whose derived streams are the same to the byte share it."""
    return taken_chain(cut(recipe, recipe.chain)[1])


def group_of(role: str, recipe: Recipe, names: Names) -> str:
    """Consumer group of a role: one for all who publish a recipe's events, and one for all who publish a derived stream."""
    if role == "processor":
        return f"{names.prefix}.{steps_name(recipe)}.processor"
    return f"{names.prefix}.{recipe.name}.model"


def group_topics(role: str, recipe: Recipe, names: Names) -> tuple[str, ...]:
    """What the members of a group subscribe to. All to the same, whatever each of them reads of it: else partitions of one number
    could go to two members, and both would publish their windows."""
    topics = raw_topics(recipe, names)
    if role == "processor":
        return topics
    with contextlib.suppress(FormatError):  # no step stands before the window
        topics = tuple(sorted({*topics, names.for_stream(derived_format(recipe).stream)}))
    return topics


def derived_format(recipe: Recipe) -> Format:
    """Format of the stream between a recipe's processor and its model agent."""
    fmt = recipe.input_format()
    return cut(recipe, recipe.chain)[0].output({fmt.stream: fmt})


def bound_topics(role: str, recipe: Recipe, names: Names) -> tuple[str, ...]:
    """Topics whose partition counts must be equal: those that a role reads and those that it writes."""
    state, derived = names.of("state"), () if role == BOTH else (names.for_stream(derived_format(recipe).stream),)
    outputs = () if role == "processor" else (names.of("events"), names.of("shadow"))
    return (*raw_topics(recipe, names), *derived, *outputs, state)


def make_app(part: Part, settings: Settings, instance: str, metrics: Any, failed: Failed) -> Any:
    """A Faust app that plays a part; `failed` is told of an error after which going on is unsafe."""
    from kymo.models.serving.agent import Agent
    from kymo.models.serving.processes import Processes
    from kymo.models.serving.snapshots import BYTES_MAX
    from kymo.processors.faust_app import BatchApp

    recipe, names = part.deployment.recipe, Names(settings.prefix)
    group, topics = group_of(part.role, recipe, names), group_topics(part.role, recipe, names)
    app = BatchApp(group, topics, settings, instance, failed)
    operator = make_operator(part, names)
    needs = operator.chain.memory_bytes(part.input_format)
    if needs > BYTES_MAX:
        say(
            f"recipe {recipe.name}: a session's memory takes up to {needs / MIB:.1f} MiB, a snapshot {BYTES_MAX / MIB:.1f}: one that does "
            "not fit is read again from its topic after a restart, so its records must still be there; shorter windows or fewer "
            "channels avoid it"
        )
    if part.champion is None and (slow := recipe.chain.slow) is not None:
        processes = Processes(slow, steps_name(recipe), settings.slow_processes or max(1, (os.cpu_count() or 1) - 1))
        operator = dataclasses.replace(operator, processes=processes, age_s=settings.slow_age_s)
    app.handler = Agent(operator, _runtime(app, settings, metrics.recipes[recipe.name]))
    return app


def make_fusion_app(fusion: FusionRecipe, settings: Settings, instance: str, metrics: Any, failed: Failed) -> Any:
    """A Faust app that fuses the events of a recipe's others; `failed` is as for :func:`make_app`."""
    operator = fusion_operator(fusion, Names(settings.prefix))
    return make_event_app(operator, settings, instance, metrics.recipes[fusion.name], failed)


def make_event_app(
    operator: Any,
    settings: Settings,
    instance: str,
    observer: Any,
    failed: Failed,
    whole: bool = False,  # whether all sessions are one scope, which one member of the group has; the others stand by
) -> Any:
    """A Faust app whose items are events; `failed` is as for :func:`make_app`."""
    from kymo.models.serving.event_agent import EventAgent
    from kymo.processors.faust_app import BatchApp

    app = BatchApp(f"{settings.prefix}.{operator.state}", operator.inputs, settings, instance, failed, whole)
    app.handler = EventAgent(operator, _runtime(app, settings, observer), whole)
    return app


def fusion_operator(fusion: FusionRecipe, names: Names) -> Any:
    """What is done with events that are fused: they come from the topic that what they become goes to, from sessions to sessions."""
    from kymo.models.fusion import Fusion
    from kymo.models.serving.scopes import EventOperator, Finding

    members, topic = {table.events for table in fusion.input}, names.of("events")

    def item(record: Any) -> tuple[str, Event] | None:
        recipe = read_object(record.value).get("recipe")
        if not isinstance(recipe, str) or recipe not in members:
            return None
        event = Event.from_json(record.value)
        return None if event.head else (event.session, event)

    def finding(event: Event, now_ns: int) -> Finding:
        return Finding(event.id, event.session.encode(), event.to_json(now_ns))

    def identify(value: bytes | None) -> str | None:
        event = read_object(value)
        return str(event.get("id")) if event.get("recipe") == fusion.name else None

    state = f"{fusion.name}.fusion"
    return EventOperator(fusion.name, state, (topic,), topic, item, lambda _: Fusion(fusion), finding, identify)


def _runtime(app: Any, settings: Settings, observer: Any) -> Any:
    """What the agent of an app runs on."""
    from kymo.models.serving.handover import ReadBack
    from kymo.models.serving.runtime import Runtime
    from kymo.processors.faust_app import reader_arguments

    async def ids(topics: Sequence[str]) -> dict[str, str]:
        try:
            return await asyncio.to_thread(topic_ids, settings, topics)
        except BrokerError as error:  # it is away: what was taken is taken again once it is back
            raise DeliveryError(str(error)) from error

    read_back = ReadBack(reader_arguments(settings))
    return Runtime(app, Names(settings.prefix), read_back, observer, app.failed, ids, say)


def make_reader(settings: Settings) -> Any:
    """Make a consumer without a group."""
    import aiokafka

    from kymo.processors.faust_app import reader_arguments

    return aiokafka.AIOKafkaConsumer(
        enable_auto_commit=False, auto_offset_reset="earliest", **reader_arguments(settings)
    )
