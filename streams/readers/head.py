"""Where a table begins in a text file. In: its first lines. Out: the column names, what parts them, and the lines behind.

Loggers write more than a table: what parts the columns (`sep=;`), lines about the device, comments, a row of units. The names are the
row before the rows of numbers.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from streams.errors import SourceError
from streams.readers.words import brief, is_number, many

NO_VALUE = frozenset(("", "nan", "na", "n/a", "null", "none"))
_SIGNS = (",", ";", "\t")
_SEPARATOR = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_RATE = re.compile(
    r"\b(?:(?:sampl\w*|output|update|data|measurement)[ _]?(?:rate|frequency)\b[^\d\n]{0,12}?(\d+(?:\.\d+)?)(?:\s*(k?hz))?"
    r"|(?:rate|frequency)\b[^\d\n]{0,12}?(\d+(?:\.\d+)?)\s*(k?hz))\b(?![.,]?\d)(?!\s*[a-z])",
    re.IGNORECASE,
)
_TIME = re.compile(r"\d{4}[-/]\d\d[-/]\d\d[ T]\d\d:\d\d.*")
_MEASURE = re.compile(r"\d+(\.\d+)?(\s*hz|\s+\w+)?", re.IGNORECASE)
_LABELS = re.compile(r"^\W*(?:labels|columns|names)\s*:?=?\s*", re.IGNORECASE)
_ROWS = 400  # of them is judged where the table begins
_SAME = 3  # so many rows of as many columns are a table


@dataclass(slots=True)
class Head:
    """What stands before the rows."""

    row: int  # the last line of it, as a user counts
    delimiter: str  # what parts the columns
    names: list[str]  # of the columns; an empty one is no column
    rest: list[str]  # the lines behind, of those that were given
    rate: Fraction | None = None  # samples per second, where it is said
    notes: list[str] = field(default_factory=list)  # what was passed over


def find_head(lines: Sequence[str], path: Path | str) -> Head:
    """The head of a file."""
    first = next((i for i, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise SourceError("is empty; expected a header row and rows of numbers", path)
    end = first + 1
    while "".join(lines[first:end]).count('"') % 2 and end < len(lines):  # a line break within a quoted name
        end += 1
    line = "".join(lines[first:end])
    if (said := _SEPARATOR.fullmatch(line)) is None and not line.lstrip().startswith("#") and _fits(line, lines[end:]):
        found = [_cells(line, sign) for sign in _SIGNS]
        best = max(found, key=len)
        delimiter = _SIGNS[found.index(best)]
        if not any(best) or all(is_number(name) for name in best if name):
            raise SourceError(f"holds {brief(line)!r} where column names are expected", path, end)
        return _units(Head(end, delimiter, best, list(lines[end:])))
    return _further(lines, end if said else first, said[1] if said else "", path)


def _further(lines: Sequence[str], begin: int, sign: str, path: Path | str) -> Head:
    """The head of a file that begins with something else."""
    rows = [(i, line) for i, line in enumerate(lines[:_ROWS]) if i >= begin and line.strip()]
    table = [(i, line) for i, line in rows if not line.startswith("#")]
    sign = sign or max(_SIGNS, key=lambda one: _width([line for _, line in table], one))
    width = _width([line for _, line in table], sign)
    cells = [_cells(line, sign) for _, line in table]
    same = [len(row) == width for row in cells]
    at = next(
        (n for n in range(len(cells)) if all(same[n : n + 1 + _SAME]) and not _precedes(*cells[n : n + 3])),
        None,
    )
    if at is None or width < 1:
        raise SourceError("holds no table: a header row and rows of numbers are expected", path)
    if sum(2 * _values(row) > len(row) > 1 for row in cells[:at]) > bool(_is_data(cells, 1)) + 1 or (
        at == 1 and _is_data(cells, 1) and not _is_data(cells, 0)
    ):
        at = 0  # what comes before are rows of numbers, too, or names, of which one is missing: the rows say so
    row, names = table[at][0], cells[at]
    about = [line for i, line in rows if i < row]
    behind, notes = row + 1, list[str]()
    if _is_data(cells, at):
        named = _commented(about, sign, width)
        behind, names = row, named or _numbered(names)
        notes += [] if named else [f"no column names: they are {', '.join(names)}"]
    if about:
        notes.append(f"{many(len(about), 'line')} before the table passed over, first row {rows[0][0] + 1}")
    rates = {_rate(said) for line in about if (said := _RATE.search(line))} - {0}
    rate = rates.pop() if len(rates) == 1 else None
    return _units(Head(behind, sign, names, list(lines[behind:]), rate, notes))


def _commented(about: Sequence[str], sign: str, width: int) -> list[str]:
    """The names of a table that stand in a comment: in the last of that width, or the one above, where the last are units."""
    found: list[str] = []
    for line in reversed([line for line in about if line.startswith("#")]):
        cells = _cells(_LABELS.sub("", line.lstrip("# ")), sign)
        if len(cells) == width and not _values(cells):
            found = cells
        elif found:
            break
    return found


def _rate(said: re.Match[str]) -> Fraction:
    number, unit = (said[1], said[2]) if said[1] else (said[3], said[4])
    return Fraction(number) * (1000 if (unit or "").lower() == "khz" else 1)


def _units(head: Head) -> Head:
    """Without the row of units behind the names, if there is one."""
    for n in range(2):
        first = [line for line in head.rest[: 2 + n] if line.strip()]
        if len(first) < 2 or any(line.count('"') % 2 for line in first):
            break
        row, below = (_cells(line, head.delimiter) for line in first[:2])
        if len(row) != len(head.names) or not _says_units(row, below):
            break
        at = head.rest.index(first[0])
        head.row, head.rest = head.row + at + 1, head.rest[at + 1 :]
        head.notes.append(f"row {head.row} holds units, not samples: passed over")
    return head


def _says_units(row: Sequence[str], below: Sequence[str]) -> bool:
    """Whether a row has words where the next one has numbers."""
    columns = [n for n, cell in enumerate(below[: len(row)]) if _is_value(cell)]
    if not columns or any(map(_is_value, row)):
        return False
    return 2 * sum(row[n].lower() not in NO_VALUE for n in columns) > len(columns)


def _fits(line: str, below: Sequence[str]) -> bool:
    """Whether the first line has as many columns as most that follow, or nothing below is a better table."""
    below = [other for other in below[:_ROWS] if other.strip()]
    sign = max(_SIGNS, key=lambda one: len(_cells(line, one)))
    if any(other.count('"') % 2 for other in below):
        return True  # cells of several lines: their rows cannot be counted here
    own = len(_cells(line, sign))
    usual = max(_width(below, one) for one in (_SIGNS if own == 1 else sign))
    if _precedes(*(_cells(other, sign) for other in (line, *below[:2]))):
        return False
    return len(below) < 2 * _SAME or usual <= own


def _precedes(row: Sequence[str], names: Sequence[str] = (), data: Sequence[str] = ()) -> bool:
    """Whether a row says something of the device, and the names are in the next one: it holds a value, or fewer cells are filled."""
    if _values(row) > len(row) / 2 or _values(names) or not _values(data):
        return False
    ends = [cell.endswith(":") for cell in row]
    about = len(row) > 1 and not all(ends) and (any(ends) or any(map(_MEASURE.fullmatch, row)))
    filled, named, there = (sum(map(bool, one)) for one in (row, names, data))
    return about or (1 < named == len(names) and filled < named and there > filled)


def _width(lines: Sequence[str], sign: str) -> int:
    """How many columns most of the lines have."""
    counts = Counter(len(_cells(line, sign)) for line in lines[-100:])
    return counts.most_common(1)[0][0] if counts else 0


def _cells(line: str, sign: str) -> list[str]:
    return [" ".join(cell.split()) for cell in next(csv.reader(line.splitlines(keepends=True), delimiter=sign), [])]


def _is_value(cell: str) -> bool:
    return cell.lower() not in NO_VALUE and (is_number(cell.replace(",", ".")) or bool(_TIME.fullmatch(cell)))


def _values(row: Sequence[str]) -> int:
    return sum(map(_is_value, row))


def _is_data(cells: Sequence[Sequence[str]], at: int) -> bool:
    """Whether a row holds as many numbers as the next one."""
    if at >= len(cells):
        return False
    own = _values(cells[at])
    return own > 0 and own >= _values(cells[min(at + 1, len(cells) - 1)])


def _numbered(row: Sequence[str]) -> list[str]:
    """Names for columns that have none."""
    out = [f"c{n + 1}" for n in range(len(row))]
    for n, cell in enumerate(row):
        if _TIME.fullmatch(cell) and "timestamp" not in out:
            out[n] = "timestamp"
    return out
