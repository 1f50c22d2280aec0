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
from streams.sources.words import brief, many

_SIGNS = (",", ";", "\t")
_SEPARATOR = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_RATE = re.compile(
    r"(?:sampl\w*|output|measurement|data)?[ _]?(?:rate|frequency)[^\d\n]{0,12}?(\d+(?:\.\d+)?)\s*(hz)?", re.IGNORECASE
)
_TIME = re.compile(r"\d{4}[-/]\d\d[-/]\d\d[ T]\d\d:\d\d.*")
_LABELS = re.compile(r"^\W*(?:labels|columns|names)\s*:?=?\s*", re.IGNORECASE)
_ROWS = 400  # of them is judged where the table begins
_SAME = 3  # so many rows of as many columns are a table


@dataclass(slots=True)
class Head:
    """What stands before the rows.

    Attributes
    ----------
    row : int
        The last line of it, as a user counts.
    delimiter : str
        What parts the columns.
    names : list of str
        Of the columns; an empty one is no column.
    rest : list of str
        The lines behind, of those that were given.
    rate : Fraction, optional
        Samples per second, where it is said.
    notes : list of str
        What was passed over.
    """

    row: int
    delimiter: str
    names: list[str]
    rest: list[str]
    rate: Fraction | None = None
    notes: list[str] = field(default_factory=list)


def find_head(lines: Sequence[str], path: Path | str) -> Head:
    """The head of a file.

    Parameters
    ----------
    lines : sequence of str
        Its first ones, with their ends.
    path : Path or str
        The file, for messages.

    Raises
    ------
    SourceError
        If it is empty, or numbers stand where names are expected.
    """
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
    cells = [(i, _cells(line, sign)) for i, line in table]
    same = [len(row) == width for _, row in cells]
    at = next((n for n in range(len(cells)) if all(same[n : n + 1 + _SAME]) and not _names_follow(cells[n:])), None)
    if at is None or width < 1:
        raise SourceError("holds no table: a header row and rows of numbers are expected", path)
    if at == 1 and _is_data(cells[1][1]) and not _is_data(cells[0][1]):
        at = 0  # names, of which one is missing: its rows say so
    row, names = cells[at]
    about = [line for i, line in rows if i < row]
    if _is_data(names):
        told = next(
            (
                found
                for line in reversed(about)
                if len(found := _cells(_LABELS.sub("", line.lstrip("# ")), sign)) == width
            ),
            None,
        )
        named = [line for line in about if line.startswith("#")] and told
        behind, names = row, list(named or _numbered(names))
        notes = [] if named else [f"no column names: they are {', '.join(names)}"]
    else:
        behind, notes = row + 1, []
    passed = [i for i, _ in rows if i < row]
    if passed:
        notes.append(f"{many(len(passed), 'line')} before the table passed over, first row {passed[0] + 1}")
    rate = next((Fraction(said[1]) for line in about if (said := _RATE.search(line)) and float(said[1]) > 0), None)
    return _units(Head(behind, sign, [" ".join(name.split()) for name in names], list(lines[behind:]), rate, notes))


def _units(head: Head) -> Head:
    """Without the row of units behind the names, if there is one."""
    for n in range(2):
        if any(line.count('"') % 2 for line in head.rest[: 2 + n]):
            break
        rows = [line for line in head.rest[: 2 + n] if line.strip()]
        if len(rows) < 2 or _numbers(rows[0], head.delimiter) or not _numbers(rows[1], head.delimiter):
            break
        if len(_cells(rows[0], head.delimiter)) != len(head.names):
            break
        at = head.rest.index(rows[0])
        head.row, head.rest = head.row + at + 1, head.rest[at + 1 :]
        head.notes.append(f"row {head.row} holds units, not samples: passed over")
    return head


def _fits(line: str, below: Sequence[str]) -> bool:
    """Whether the first line has as many columns as most that follow, or nothing below is a better table."""
    below = [other for other in below[:_ROWS] if other.strip()]
    sign = max(_SIGNS, key=lambda one: len(_cells(line, one)))
    if any(other.count('"') % 2 for other in below):
        return True  # cells of several lines: their rows cannot be counted here
    own = len(_cells(line, sign))
    usual = max(_width(below, one) for one in (_SIGNS if own == 1 else sign))
    if _is_about(_cells(line, sign)) and not _numbers(next(iter(below), ""), sign):
        return False  # what follows are the names
    return len(below) < 2 * _SAME or usual <= own


def _is_about(row: Sequence[str]) -> bool:
    """Whether a row says something of the device: ``OutputRate:,60Hz``."""
    return len(row) > 1 and any(cell.endswith(":") or cell[:1].isdigit() for cell in row)


def _names_follow(cells: Sequence[tuple[int, list[str]]]) -> bool:
    return (
        _is_about(cells[0][1]) and not _is_data(cells[0][1]) and len(cells) > 1 and not any(map(is_number, cells[1][1]))
    )


def _width(lines: Sequence[str], sign: str) -> int:
    """How many columns most of the lines have."""
    counts = Counter(len(_cells(line, sign)) for line in lines[-100:])
    return counts.most_common(1)[0][0] if counts else 0


def _cells(line: str, sign: str) -> list[str]:
    return [" ".join(cell.split()) for cell in next(csv.reader(line.splitlines(keepends=True), delimiter=sign), [])]


def _numbers(line: str, sign: str) -> int:
    return sum(is_number(cell.replace(",", ".")) or bool(_TIME.fullmatch(cell)) for cell in _cells(line, sign))


def _is_data(row: Sequence[str]) -> bool:
    there = [cell for cell in row if cell]
    return all(is_number(cell.replace(",", ".")) or _TIME.fullmatch(cell) for cell in there)


def _numbered(row: Sequence[str]) -> list[str]:
    """Names for columns that have none."""
    out = [f"c{n + 1}" for n in range(len(row))]
    for n, cell in enumerate(row):
        if _TIME.fullmatch(cell) and "timestamp" not in out:
            out[n] = "timestamp"
    return out


def is_number(text: str) -> bool:
    """Whether a text is a number, as tables write them."""
    if "_" in text:
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True
