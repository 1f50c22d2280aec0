"""Cells of a text table as numbers: the one place where a text becomes a number, or nothing. In: cells. Out: floats; and what had to be
decided: what parts decimals and thousands, which units stand behind numbers."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from kymo.streams.readers.moments import is_date, is_moment
from kymo.streams.words import is_number

SPACES = " "  # what parts columns, where any number of blanks does
_POINT = re.compile(r"[+-]?\d*\.\d+([eE][+-]?\d+)?")
_NUMBER = re.compile(r"[+-]?[\d.,]*\d[\d.,]*([eE][+-]?\d+)?")
_THOUSANDS = {
    ",": re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?"),
    ".": re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+(,\d*)?"),
}
_OTHER_THOUSANDS = re.compile(r"(?<=\d)['\u2019 \u00a0\u2009\u202f](?=\d{3}(?!\d))")
_GROUPED = re.compile(r"[+-]?\d{1,3}([.,'’_ ]\d{3})+([.,]\d*)?")
_WITH_UNIT = re.compile(r"[-+]?[\d.,]*\d(?:[eE][-+]?\d+)?\s*(\D.*)")
_UNITS = "g mg m/s m/s2 m/s^2 m/s² °/s deg/s dps rad/s deg ° rad V mV uV µV A mA uA µA °C C °F F % Hz bpm Pa hPa kPa mbar N Nm kg mm cm m"
_UNIT_NAMES = frozenset(
    f"{_UNITS} km km/h lx lux uT µT T Ohm kOhm uS µS dB rpm W s sec ms us µs ns min h".replace("µ", "\u00b5").split()
)
_NO_VALUE = re.compile(
    r"|na|n/a|null|none|nil|missing|undefined|[-*?.]+|[-+]?nan(\(.*\))?|[-+]?1\.#\w+|#(n/a|div/0!|value!|num!|null!|ref!|name\?)",
    re.IGNORECASE,
)
_MANY = 10  # numbers with three digits behind a comma, beside some without one
_LARGE = 100  # a whole number beside others with three digits behind a sign: that parts thousands
_TRUTH = {"true": 1.0, "false": 0.0}


def is_missing(cell: str) -> bool:
    """Whether a cell holds no value, as table programs, loggers and people say so.

    >>> is_missing(""), is_missing("-nan(ind)"), is_missing("#N/A"), is_missing("?"), is_missing("0")
    (True, True, True, True, False)
    """
    return _NO_VALUE.fullmatch(cell.strip()) is not None


def is_value(cell: str) -> bool:
    """Whether a cell holds a number in any spelling, a date or a time.

    >>> is_value("1.234,5"), is_value("12:30:01"), is_value("x"), is_value("NaN")
    (True, True, False, False)
    """
    if is_missing(cell):
        return False
    return is_number(cell.replace(",", ".")) or _GROUPED.fullmatch(cell) is not None or is_moment(cell) or is_date(cell)


def number_in(cell: str) -> float | None:
    """The number, as Python writes it, or the truth that a cell holds; None where it holds something else.

    >>> number_in(" 1.5"), number_in("True"), number_in("1_000"), number_in("")
    (1.5, 1.0, None, None)
    """
    return float(cell) if is_number(cell) else _TRUTH.get(cell.strip().lower())


def cells_in(line: str, delimiter: str) -> list[str]:
    if delimiter == SPACES:
        line = " ".join(line.split())
    rows = csv.reader(line.lstrip("\ufeff").splitlines(keepends=True), delimiter=delimiter)
    return [" ".join(cell.split()) for cell in next(rows, [])]


def count_values(row: Sequence[str]) -> int:
    return sum(map(is_value, row))


class Numbers:
    """How a file writes its numbers, by its first rows.

    >>> numbers = Numbers([["0,5", "998"], ["1,5", "1.002"]], ";")
    >>> numbers.column(["2,5", ""], 0).tolist(), numbers.column(["1.003"], 1).tolist(), numbers.notes
    ([2.5, nan], [1003.0], ['points part thousands, commas part decimals'])
    """

    def __init__(self, sample: Sequence[Sequence[str]], delimiter: str) -> None:
        width = max((len(row) for row in sample), default=0)
        columns = [
            [cell for row in sample if len(row) > i for cell in [_spelled(row[i])] if not is_missing(cell)]
            for i in range(width)
        ]
        self.units = {i: unit for i, column in enumerate(columns) if (unit := _unit_behind(column))}
        columns = [[_without(cell, self.units.get(i, "")) for cell in column] for i, column in enumerate(columns)]
        self._thousands = ""  # the sign that parts them
        self.comma = False  # whether a comma parts decimals
        self._decide(columns, delimiter)
        self._pointed = {i for i, column in enumerate(columns) if not self._thousands_in(column)}
        if self.comma and any(
            "." in cell for i, column in enumerate(columns) if i not in self._pointed for cell in column
        ):
            self._thousands = "."
        self.numeric = {
            i
            for i in range(width)
            if 2 * sum(is_number(self.plain(cell, i)) for cell in columns[i]) >= max(len(columns[i]), 1)
        }
        signs = {",": "commas part thousands, points part decimals", ".": "points part thousands, commas part decimals"}
        self.notes = [signs[self._thousands]] if self._thousands else []
        if self.comma and any("." in cell for i in self._pointed & self.numeric for cell in columns[i]):
            self.notes.append("points part decimals in some columns, commas in others")

    def plain(self, cell: str, column: int) -> str:
        """A cell as Python writes a number, if it is one."""
        if self.comma and column not in self.units and "." not in cell:
            quick = cell.strip().replace(",", ".")
            if is_number(quick):
                return quick
        text = _without(_spelled(cell), self.units.get(column, ""))
        sign = "." if self.comma and column not in self._pointed else self._thousands
        if sign and _THOUSANDS[sign].fullmatch(text):
            text = text.replace(sign, "")
        return text.replace(",", ".") if self.comma else text

    @property
    def unusual(self) -> bool:
        """Whether it writes any otherwise than Python does."""
        return bool(self.comma or self._thousands or self.units)

    def _as_python(self, joined: str, column: int) -> bool:
        """Whether nothing in cells that zero bytes join is written otherwise than Python writes numbers."""
        return not (self.comma or self._thousands or column in self.units or "\u2212" in joined or "_" in joined)

    def texts(self, cells: Sequence[str], column: int) -> Sequence[str]:
        """The cells of a column, numbers as Python writes them."""
        joined = "\0".join(cells)
        if self._as_python(joined, column) and not _OTHER_THOUSANDS.search(joined):
            return cells
        return [self.plain(cell, column) for cell in cells]

    def column(self, cells: Sequence[str] | NDArray[np.float64], column: int) -> NDArray[np.float64]:
        """Numbers of a column, NaN where a cell has no value; a ValueError holds the number of the first cell with something else."""
        if isinstance(cells, np.ndarray):
            return cells
        joined = "\0".join(cells)
        quick = joined.replace(",", ".").split("\0") if self.comma and cells and "." not in joined else cells
        if self._as_python(joined, column) or (quick is not cells and column not in self.units and "_" not in joined):
            try:
                return np.array([float(cell or "nan") for cell in quick])
            except ValueError:
                pass
        numbers = np.empty(len(cells))
        for i, cell in enumerate(cells):
            number = float("nan") if is_missing(cell) else number_in(self.plain(cell, column))
            if number is None:
                raise ValueError(i)
            numbers[i] = number
        return numbers

    def _decide(self, columns: Sequence[Sequence[str]], delimiter: str) -> None:
        """What commas part: decimals, or thousands."""
        with_commas = [[cell for cell in column if "," in cell and _NUMBER.fullmatch(cell)] for column in columns]
        commas = [cell for column in with_commas for cell in column]
        # A comma that parts thousands is not in every number, or there are two, or a point as well.
        plain = [
            sum(map(is_number, column)) if cells else 0 for column, cells in zip(columns, with_commas, strict=True)
        ]
        beside = chain.from_iterable(column for column, cells in zip(columns, with_commas, strict=True) if cells)
        large = any(map(_is_large, beside))
        many = any(plain) and len(commas) >= _MANY and (delimiter == "," or large)
        certain = many or any(cell.count(",") > 1 or "." in cell for cell in commas)
        points = any(_POINT.fullmatch(cell) for column in columns for cell in column)
        thousands = bool(commas) and all(_THOUSANDS[","].fullmatch(cell) for cell in commas)
        # Where commas part columns, a decimal comma is odd.
        self._thousands = "," if thousands and (certain or (any(plain) and (points or delimiter == ","))) else ""
        several = any(cell.count(".") > 1 and _THOUSANDS["."].fullmatch(cell) for column in columns for cell in column)
        self.comma = not self._thousands and (bool(commas) or several)

    def _thousands_in(self, column: Sequence[str]) -> bool:
        """Whether points in a column's numbers part thousands, as where commas, two points or numbers below a thousand are there, too."""
        pointed = [cell for cell in column if "." in cell]
        alike = self.comma and all(_THOUSANDS["."].fullmatch(cell) for cell in pointed)
        return not pointed or (alike and any("," in cell or cell.count(".") > 1 or _is_large(cell) for cell in column))


def _is_large(cell: str) -> bool:
    """Whether a cell is a whole number of three digits or more."""
    return cell.lstrip("+-").isdecimal() and abs(int(cell)) >= _LARGE


def _spelled(cell: str) -> str:
    """A cell with a plain minus, without blanks and apostrophes that part thousands."""
    text = cell.strip()
    return text if is_number(text) else _OTHER_THOUSANDS.sub("", text.replace("\u2212", "-"))


def _unit_behind(column: Sequence[str]) -> str:
    """The unit that stands behind all numbers of a column, if there is one."""
    matches = [_WITH_UNIT.fullmatch(cell) for cell in column]
    units = {match[1].strip() if match else "" for match in matches}
    unit = units.pop() if len(units) == 1 else ""
    return unit if unit in _UNIT_NAMES else ""


def _without(cell: str, unit: str) -> str:
    return cell.removesuffix(unit).rstrip() if unit else cell
