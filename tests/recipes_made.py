"""Recipes as text. In: what matters to a test. Out: TOML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

STANDARDISE = [{"step": "standardise"}]
MINIROCKET = {"architecture": "minirocket", "features": 84}


class RecipeText(str):
    """The text of a recipe, in which nothing can be replaced that does not stand there; but for what tomllib replaces."""

    def replace(self, old: str, new: str, count: Any = -1) -> RecipeText:
        assert old in self or old == "\r\n", f"{old!r} does not stand in the recipe, so that nothing would change"
        return RecipeText(super().replace(old, new, count))

    def __add__(self, more: str) -> RecipeText:
        return RecipeText(super().__add__(more))


def _value(given: Any) -> str:
    if isinstance(given, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(inner)}" for key, inner in given.items()) + " }"
    if isinstance(given, list | tuple):
        return f"[{', '.join(map(_value, given))}]"
    return json.dumps(given)


def toml(tables: Mapping[str, Any]) -> str:
    """Tables by name, or lists of such; a table that is text stands as it is."""
    text = ""
    for name, given in tables.items():
        title, several = (f"[[{name}]]", given) if isinstance(given, list) else (f"[{name}]", [given])
        for table in several:
            rows = [table] if isinstance(table, str) else [f"{key} = {_value(value)}" for key, value in table.items()]
            text += "\n".join([title, *rows]) + "\n"
    return text


def recipe_text(
    name: str, channels: str, rate_hz: float, window_s: tuple[float, float], *, stream: str = "imu", **tables: Any
) -> RecipeText:
    """A recipe of one input; `of_input`, `of_window` add to these tables, `behind` are the steps behind the window."""
    first = {"stream": stream, "rate_hz": rate_hz, "channels": channels.split()} | tables.pop("of_input", {})
    window = {"length_s": window_s[0], "hop_s": window_s[1]} | tables.pop("of_window", {})
    known = {
        "input": [first],
        "steps": tables.pop("steps", []),
        "window": window,
        "window.steps": tables.pop("behind", []),
    }
    return RecipeText(f'name = "{name}"\n' + toml(known | tables))
