"""What a worker's agents do. In: recipes with their bundles, roles, settings. Out: a Faust app with its agent for each."""

from __future__ import annotations

import dataclasses
import socket
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from models.bundle import Bundle, load_bundle
from models.classify import Classifier
from models.outputs import outputs_of
from processors.recipe import Recipe, load_recipe
from streams.chunk import Format, Window
from streams.codec import ChunkCodec
from streams.errors import RecipeError
from streams.settings import Settings
from streams.topics import Names

BOTH = "processor-model"
Failed = Callable[[BaseException], None]


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


def make_job(role: str, work: Work, names: Names) -> Any:
    """What the agent of a role does."""
    from models.around import Job

    recipe, whole = work.recipe, work.bundle.chain
    if role == "processor":
        chain, _ = recipe.chain.split()
        codec, topic = ChunkCodec(), names.for_stream(derived_format(recipe).stream)
        outputs = outputs_of(chain, recipe.name)
        return Job(
            recipe.name, role, chain, outputs, topic, recipe.matches, lambda made: [codec.encode(c) for c in made]
        )
    alone = role == BOTH or work.bundle.takes == "raw"
    chain = whole if alone else whole.split()[1]
    step = Fraction(1) if alone else derived_format(recipe).step
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


def make_app(role: str, work: Work, settings: Settings, slot: int, metrics: Any, failed: Failed) -> Any:
    """A Faust app that plays `role` for a recipe; `failed` is told of an error after which going on is unsafe."""
    from models.agent import Agent
    from models.around import Around
    from models.log import ReadBack
    from processors.batches import BatchApp
    from processors.transport import reader_arguments

    recipe, names = work.recipe, Names(settings.prefix)
    inputs = sorted({names.for_stream(table.stream) for table in recipe.inputs})
    if role == "model" and work.bundle.takes == "chain":
        inputs = [names.for_stream(derived_format(recipe).stream)]
    app = BatchApp(
        f"{settings.prefix}.{recipe.name}.{role}", inputs, settings, f"{socket.gethostname()}-{slot}", failed
    )
    observer = metrics.observer(recipe.name)
    app.handler = Agent(
        make_job(role, work, names), Around(app, names, ReadBack(reader_arguments(settings)), observer, failed)
    )
    return app
