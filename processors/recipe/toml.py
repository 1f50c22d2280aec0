"""TOML, read with the line of every key and written. In: text, or tables and comments. Out: tables, checked as they are read, whose
errors name line and nearest word; text.

`tomllib` tells no positions, so a small scanner finds the line of each key and header of a text that `tomllib` has
already accepted.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

from kymo.processors.registry import nearest
from kymo.streams.errors import RecipeError

KeyPath = tuple[str | int, ...]
_KEY = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_DOTTED = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_DOTTED})\s*\]")
_PAIR = re.compile(rf"\s*({_DOTTED})\s*=")
# What may hold a bracket or a quotation mark that is none: strings of the four kinds, and comments.
_TOKEN = re.compile(r'"""|\'\'\'|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|#[^\n]*|[\[\]{}]')
_EXACT = re.compile(r"\d{1,12}(\.\d{1,12}|/0*[1-9]\d{0,11})?|\d(\.\d{1,12})?[eE]-?\d")
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


class Table:
    """Reads the values of one table with checks."""

    def __init__(
        self, document: Document, where: KeyPath, values: Any, known: Collection[str], free: bool = False
    ) -> None:
        self.document, self.where = document, where
        self.title = f"[{'.'.join(p for p in where if isinstance(p, str))}]" if where else "a recipe"
        if not isinstance(values, Mapping):
            raise document.error(f"{self.title} is {_kind(values)}, expected a table", where)
        self.values, self._known = values, known
        for key in values:
            if key not in known and (not free or difflib.get_close_matches(key, known, 1, 0.85)):
                noun = "table or key" if not where else "key"
                raise self.error(f"{self.title} has no {noun} {key!r}{nearest(key, known)}", key)

    def error(self, message: str, *key: str) -> RecipeError:
        """Make an error at a key of this table."""
        return self.document.error(message, (*self.where, *key))

    def parameters(self) -> dict[str, Any]:
        """Give the keys that are not known ones, as plain values."""
        return {key: plain(value) for key, value in self.values.items() if key not in self._known}

    def _wrong(self, key: str, expected: str) -> RecipeError:
        return self.error(f"{key} = {_show(self.values[key])}: expected {expected}", key)

    def _required(self, key: str, expected: str) -> RecipeError:
        return self.document.error(f"{self.title} lacks {key}, {expected}", self.where)

    def text(self, key: str, default: str | None = None) -> str:
        """Read a text that is not empty; without a default it must be there."""
        if key not in self.values:
            if default is None:
                raise self._required(key, "a text")
            return default
        value = self.values[key]
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(key, "a text in quotation marks")
        return value

    def texts(self, key: str, default: tuple[str, ...] | None = None, empty: bool = False) -> tuple[str, ...]:
        """Read a text, or an array of texts with at least one; of empty ones only where they may be."""
        if key not in self.values:
            if default is None:
                raise self._required(key, "an array of texts")
            return default
        value = self.values[key]
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not items or not all(isinstance(v, str) and (v or empty) for v in items):
            raise self._wrong(key, "an array of texts")
        return tuple(items)

    def number(self, key: str, default: float, low: float, high: float = float("inf")) -> float:
        """Read a number from `low` to `high`."""
        if key not in self.values:
            return default
        value = self.values[key]
        number = float(value) if isinstance(value, int | Decimal) and not isinstance(value, bool) else float("nan")
        if not low <= number <= high:
            limits = f"from {low:g} to {high:g}" if high != float("inf") else f"of at least {low:g}"
            raise self._wrong(key, f"a number {limits}")
        return number

    def fraction(self, key: str) -> Fraction:
        """An exact number above 0: a whole or decimal one, or a text such as "30000/1001"; it must be there."""
        if key not in self.values:
            raise self._required(key, "a number above 0 (there is no default)")
        value = self.values[key]
        # Checked as text first: 1e999999999 would be a number of a billion digits.
        if not isinstance(value, bool) and isinstance(value, int | Decimal | str) and _EXACT.fullmatch(str(value)):
            number = Fraction(str(value))
            if number > 0:
                return number
        raise self._wrong(key, 'a number above 0, or a fraction as text such as "30000/1001"')

    def table(self, key: str, known: Collection[str], free: bool = False) -> Table | None:
        """Open a table inside this one; None if it is not there."""
        if key not in self.values:
            return None
        return Table(self.document, (*self.where, key), self.values[key], known, free)

    def tables(self, key: str, known: Collection[str], free: bool = False) -> list[Table]:
        """Open an array of tables inside this one."""
        values = self.values.get(key, [])
        if not isinstance(values, list):
            dotted = ".".join([*(str(p) for p in self.where), key])
            raise self.error(f"{dotted} is {_kind(values)}, expected an array of tables: write [[{dotted}]]", key)
        return [Table(self.document, (*self.where, key, i), v, known, free) for i, v in enumerate(values)]


def plain(value: Any) -> Any:
    """Turn decimals in a TOML value into floats."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return value


def _kind(value: Any) -> str:
    kinds = (
        (bool, "true or false"),
        (str, "a text"),
        (int | Decimal, "a number"),
        (list, "an array"),
        (dict, "a table"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), "a date or time")


def _show(value: Any) -> str:
    text = toml_value(plain(value)) if _kind(value) != "a date or time" else str(value)
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
