"""TOML, read with the line of every key and written. In: text, or tables and comments. Out: tables as dataclasses, whose errors name
the line; text.

`tomllib` tells no positions, so a small scanner finds the line of each key and header of a text that `tomllib` has
already accepted.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
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
_KEY = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_DOTTED = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_DOTTED})\s*\]")
_PAIR = re.compile(rf"\s*({_DOTTED})\s*=")
# What may hold a bracket or a quotation mark that is none: strings of the four kinds, and comments.
_TOKEN = re.compile(r'"""|\'\'\'|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|#[^\n]*|[\[\]{}]')
_AT_LINE = re.compile(r" \(at line (\d+), column \d+\)$")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Document:
    def __init__(self, text: str, path: Path | None = None) -> None:
        self.path = path
        try:
            self.values: dict[str, Any] = tomllib.loads(text, parse_float=Decimal)
        except (ValueError, RecursionError) as error:
            at = _AT_LINE.search(str(error))
            raise RecipeError(
                f"no valid TOML: {_AT_LINE.sub('', str(error))}", path, int(at[1]) if at else None
            ) from None
        self._lines = key_lines(text)

    def line(self, where: KeyPath) -> int | None:
        """Find the line of a key, or of the nearest table around it."""
        for stop in range(len(where), 0, -1):
            if where[:stop] in self._lines:
                return self._lines[where[:stop]]
        # A table that is there only as part of a longer header.
        return next((line for at, line in self._lines.items() if where and at[: len(where)] == where), None)

    def error(self, message: str, where: KeyPath = ()) -> RecipeError:
        """Make an error that names the line of `where`."""
        return RecipeError(message, self.path, self.line(where))

    def read(self, cls: type[T], values: Any, where: KeyPath = ()) -> T:
        """Read the table at `where` as a dataclass."""
        try:
            return read(cls, values)
        except SchemaError as wrong:
            raise self.wrong(wrong, where) from None

    def wrong(self, wrong: SchemaError, where: KeyPath = ()) -> RecipeError:
        """Say in the words of TOML what is wrong in the table at `where`."""
        *owner, key = where = (*where, *wrong.path)
        names = [part for part in owner if isinstance(part, str)]
        title, noun = (f"[{'.'.join(names)}]", "key") if names else ("a recipe", "table or key")
        expected = wrong.expected + f": write [[{'.'.join([*names, str(key)])}]]" * (wrong.expected == _TABLES)
        if wrong.why:
            text = wrong.why
        elif wrong.known:
            text = f"{title} has no {noun} {key!r}{nearest(str(key), wrong.known)}"
        elif wrong.value is ABSENT:
            return self.error(f"{title} lacks {expected if expected[0] == '[' else f'{key}, {expected}'}", tuple(owner))
        else:
            text = f"{key} = {_show(wrong.value)}: expected {expected}"
        return self.error(text, where)


def key_lines(text: str) -> dict[KeyPath, int]:
    """Line of each key and table header of valid TOML, counted from 1.

    Examples
    --------
    >>> key_lines('a = 1\\n[[b]]\\nc = [\\n  2,\\n]\\n')
    {('a',): 1, ('b', 0): 2, ('b', 0, 'c'): 3}
    """
    lines: dict[KeyPath, int] = {}
    counts: dict[KeyPath, int] = {}
    table: KeyPath = ()
    depth, quote = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        value = line
        if not depth and not quote:
            if header := _HEADER.match(line):
                table = _resolve(_names(header[2]), counts, header[1] == "[[")
                lines.setdefault(table, number)
                continue
            if pair := _PAIR.match(line):
                lines.setdefault((*table, *_names(pair[1])), number)
                value = line[pair.end() :]
        depth, quote = _scan(value, depth, quote)
    return lines


def _names(dotted: str) -> list[str]:
    return [name[1:-1] if name[0] in "\"'" else name for name in re.findall(_KEY, dotted)]


def _resolve(names: list[str], counts: dict[KeyPath, int], array: bool) -> KeyPath:
    """A header's path, with the number of each array of tables that it runs through."""
    where: KeyPath = ()
    for i, name in enumerate(names):
        where = (*where, name)
        if array and i == len(names) - 1:
            counts[where] = counts.get(where, -1) + 1
        if where in counts:
            where = (*where, counts[where])
    return where


def _scan(line: str, depth: int, quote: str) -> tuple[int, str]:
    """Follow bracket depth and open multi-line quotation mark through a line."""
    at = 0
    while True:
        if quote:
            close = line.find(quote, at)
            if close < 0:
                return depth, quote
            at, quote = close + 3, ""
        token = _TOKEN.search(line, at)
        if token is None:
            return depth, quote
        at = token.end()
        if token[0] in ('"""', "'''"):
            quote = token[0]
        elif token[0] in ("[", "{"):
            depth += 1
        elif token[0] in ("]", "}"):
            depth -= 1


def _show(value: Any) -> str:
    text = str(value) if isinstance(value, date | time) else toml_value(plain(value))
    return text if len(text) <= 60 else f"{text[:57]}…"


def toml_value(value: Any) -> str:
    """Write a value as TOML does."""
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
