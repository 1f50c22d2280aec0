"""Recipes whose input is the events of others. In: TOML. Out: a FusionRecipe with the recipes that it fuses."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from kymo.processors.recipe.load import Recipe, load_recipe, recipe_file
from kymo.processors.recipe.tables import Text, check_name, refuse
from kymo.processors.recipe.toml import Document
from kymo.streams.errors import RecipeError
from kymo.streams.files import read_text
from kymo.streams.recording import ReadOptions
from kymo.streams.schema import Amount, Positive, Rules, Share


@dataclass(frozen=True)
class EventInputTable:
    """One ``[[input]]``: a recipe whose events are fused; the windows of the first are those of what comes out."""

    events: Text  # the recipe's name
    weight: Positive = 1  # of its probabilities beside those of the others
    lateness_s: Amount = 10  # how long the others wait for it beyond its own window
    idle_s: Amount = 60  # silent for longer: not waited for any more, until it is back


@dataclass(frozen=True)
class FusionTable:
    """``[fusion]``: what is said of the fused probabilities."""

    min_probability: Share = 0  # below it a label is ``unknown``


@dataclass(frozen=True)
class FusionTables:
    """All that the file of such a recipe says."""

    name: Text  # part of every event's id
    input: Annotated[
        tuple[EventInputTable, ...],
        Rules(minItems=2, expected='two or more [[input]] with events = "NAME OF A RECIPE"'),
    ]
    fusion: FusionTable = field(default_factory=FusionTable)

    def __post_init__(self) -> None:
        check_name(self.name)
        names = [table.events for table in self.input]
        for number, name in enumerate(names):
            refuse(name in names[:number], f"events of `{name}` are an input already", "input", number, "events")
            refuse(name == self.name, "a recipe cannot take its own events", "input", number, "events")


@dataclass(frozen=True, kw_only=True)
class FusionRecipe(FusionTables):
    """A recipe whose input is the events of others."""

    path: Path | None
    recipes: tuple[Recipe, ...]  # whose events it takes, in the order of its inputs

    def read_options(self, recipe: Recipe | None = None) -> ReadOptions:
        """How files become sessions for one of the recipes, by default the first: with the streams of all, for equal sessions."""
        own = (recipe or self.recipes[0]).read_options()
        inputs = {item.stream: item for other in self.recipes for item in other.read_options().inputs}
        return replace(own, inputs=tuple((inputs | {item.stream: item for item in own.inputs}).values()))


def load_fusion(path_or_name: str | Path) -> FusionRecipe | None:
    """The recipe of a file or a name, if it takes events; None for one that takes streams.

    The recipes that it fuses are looked for beside it first, then where all are. A RecipeError names file and line.
    """
    path = recipe_file(path_or_name)
    document = Document(read_text(path, RecipeError), path)
    if not any("events" in table for table in document.tables("input")):
        return None
    tables = document.read(FusionTables)
    recipes = tuple(_member(document, path, number, table) for number, table in enumerate(tables.input))
    return FusionRecipe(**vars(tables), path=path, recipes=recipes)


def _member(document: Document, path: Path, number: int, table: EventInputTable) -> Recipe:
    where = ("input", number)
    beside = path.parent / f"{table.events}.toml"
    try:
        recipe = load_recipe(beside if beside.is_file() else table.events)
    except RecipeError as error:
        raise document.error(where, f"events = {table.events!r}: {error}", "events") from None
    if recipe.name != table.events:
        why = f"events = {table.events!r}: {recipe.path} is called {recipe.name!r}, and so are its events"
        raise document.error(where, why, "events")
    if not recipe.labels.classes:
        why = f"events = {table.events!r}: recipe `{recipe.name}` says numbers alone; only classes are fused"
        raise document.error(where, why, "events")
    return recipe
