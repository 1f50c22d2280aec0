"""TOML, read and written. In: text, or tables. Out: tables as dataclasses, whose errors name the line; text.

`tomllib` tells no positions: a key's line is that with which the text first holds it.
"""

from __future__ import annotations

import contextlib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from kymo.streams.errors import RecipeError
from kymo.streams.schema import ABSENT, SchemaError, nearest, plain, read

T = TypeVar("T")
KeyPath = tuple[str | int, ...]
_TABLES = "an array of tables"
_AT_LINE = re.compile(r" \(at line (\d+), column \d+\)$")


class Document:
    """A recipe's text, and what it says."""

    def __init__(self, text: str, path: Path | None = None) -> None:
        self._lines, self._path = text.replace("\r\n", "\n").split("\n"), path
        try:
            self.values: dict[str, Any] = tomllib.loads(text, parse_float=Decimal)
        except (ValueError, RecursionError) as error:
            at = _AT_LINE.search(str(error))
            raise RecipeError(
                f"no valid TOML: {_AT_LINE.sub('', str(error))}", path, int(at[1]) if at else None
            ) from None

    def tables(self, name: str) -> list[dict[str, Any]]:
        """An array of tables as it stands; empty where there is none."""
        given = self.values.get(name)
        return [table for table in given if isinstance(table, dict)] if isinstance(given, list) else []

    def line(self, where: KeyPath) -> int | None:
        """Find the line of a key, or of the nearest table around it: with which the text first holds it."""
        while where and not _holds(self.values, where):
            where = where[:-1]
        whole = 0  # lines that are TOML by themselves: what comes next begins behind them
        for count in range(1, len(self._lines) + 1) if where else ():
            with contextlib.suppress(ValueError):  # in the middle of a value
                if _holds(tomllib.loads("\n".join(self._lines[:count])), where):
                    return whole + 1
                whole = count
        return None

    def error(self, where: KeyPath, message: str, *key: str) -> RecipeError:
        """Make an error that names the line of the table at `where`, or of a key in it."""
        return RecipeError(message, self._path, self.line((*where, *key)))

    def read(self, cls: type[T]) -> T:
        """Read all of it as a dataclass; say in the words of TOML what is wrong."""
        try:
            return read(cls, self.values)
        except SchemaError as problem:
            wrong = problem
        *owner, key = wrong.path
        names = [part for part in owner if isinstance(part, str)]
        title, noun = (f"[{'.'.join(names)}]", "key") if names else ("a recipe", "table or key")
        expected = wrong.expected + f": write [[{'.'.join([*names, str(key)])}]]" * (wrong.expected == _TABLES)
        if wrong.why:
            text = wrong.why
        elif wrong.known:
            text = f"{title} has no {noun} {key!r}{nearest(str(key), wrong.known)}"
        elif wrong.value is ABSENT:
            text = f"{title} lacks {expected if expected[0] == '[' else f'{key}, {expected}'}"
            raise self.error(tuple(owner), text)
        else:
            text = f"{key} = {_show(wrong.value)}: expected {expected}"
        raise self.error(wrong.path, text)


def _holds(values: Any, where: KeyPath) -> bool:
    """Whether there is such a key in tables and arrays of them."""
    for part in where:
        if not (
            part in values if isinstance(values, dict) else isinstance(values, list) and part in range(len(values))
        ):
            return False
        values = values[part]
    return True


def _show(value: Any) -> str:
    text = str(value) if isinstance(value, date | time) else toml_value(plain(value))
    return text if len(text) <= 60 else f"{text[:57]}…"


def toml_value(value: Any) -> str:
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


def format_recipe(tables: Mapping[str, Any]) -> str:
    """A recipe as TOML text.

    Examples
    --------
    >>> print(format_recipe({"name": "x", "input": [{"stream": "imu"}]}))
    name = "x"
    <BLANKLINE>
    [[input]]
    stream = "imu"
    <BLANKLINE>
    """
    return "\n".join([*_table_lines("", tables), ""])


def _table_lines(prefix: str, table: Mapping[str, Any]) -> Iterator[str]:
    inner: list[tuple[str, str, Mapping[str, Any]]] = []
    for key, value in table.items():
        name = f"{prefix}{_toml_key(key)}"
        if isinstance(value, Mapping) and prefix == "":
            inner.append((f"[{name}]", name, value))
        elif isinstance(value, list | tuple) and value and all(isinstance(v, Mapping) for v in value):
            inner += [(f"[[{name}]]", name, v) for v in value]
        else:
            yield f"{_toml_key(key)} = {toml_value(value)}"
    for header, name, value in inner:
        yield from ("", header, *_table_lines(f"{name}.", value))
