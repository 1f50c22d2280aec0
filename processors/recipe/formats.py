"""Recipes as text. In: the tables that `tomllib` would give, and comments. Out: TOML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def toml_value(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_key(k)} = {toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, Iterable):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    if isinstance(value, Fraction):
        return str(value.numerator) if value.denominator == 1 else _decimal(value)
    return repr(value)


def _decimal(value: Fraction) -> str:
    exact = Decimal(value.numerator) / Decimal(value.denominator)
    return str(exact) if Fraction(exact) == value else f'"{value}"'


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def format_recipe(tables: Mapping[str, Any], comments: Mapping[str, str] | None = None) -> str:
    """A recipe as TOML text.

    Examples
    --------
    >>> print(format_recipe({"name": "x", "input": [{"stream": "imu"}]}, {"input.stream": "where it comes from"}))
    name = "x"
    <BLANKLINE>
    [[input]]
    stream = "imu"  # where it comes from
    <BLANKLINE>
    """
    out: list[str] = []
    _write(out, "", tables, comments or {})
    return "\n".join(out) + "\n"


def _write(out: list[str], prefix: str, table: Mapping[str, Any], comments: Mapping[str, str]) -> None:
    def line(text: str, dotted: str) -> str:
        # A comment ends with its line, and TOML forbids control characters in it.
        return f"{text}  # {_CONTROL.sub(' ', comments[dotted])}" if dotted in comments else text

    inner: list[tuple[str, str, Mapping[str, Any]]] = []
    for key, value in table.items():
        dotted = f"{prefix}{_toml_key(key)}"
        if isinstance(value, Mapping) and prefix == "":
            inner.append((f"[{dotted}]", dotted, value))
        elif isinstance(value, list | tuple) and value and all(isinstance(v, Mapping) for v in value):
            inner += [(f"[[{dotted}]]", dotted, v) for v in value]
        else:
            out.append(line(f"{_toml_key(key)} = {toml_value(value)}", dotted))
    for header, dotted, value in inner:
        out += ["", line(header, dotted)]
        _write(out, f"{dotted}.", value, comments)
