"""Recipes as text. In: what matters to a test. Out: TOML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

STANDARDISE = [{"step": "standardise"}]
MINIROCKET = {"architecture": "minirocket", "features": 84}


def _value(given: Any) -> str:
    if isinstance(given, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_value(inner)}" for key, inner in given.items()) + " }"
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
) -> str:
    """A recipe of one input; `of_input`, `of_window` add to these tables, `behind` are the steps behind the window."""
    first = {"stream": stream, "rate_hz": rate_hz, "channels": channels.split()} | tables.pop("of_input", {})
    window = {"length_s": window_s[0], "hop_s": window_s[1]} | tables.pop("of_window", {})
    known = {
        "input": [first],
        "steps": tables.pop("steps", []),
        "window": window,
        "window.steps": tables.pop("behind", []),
    }
    return f'name = "{name}"\n' + toml(known | tables)
