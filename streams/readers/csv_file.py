"""CSV files. In: text, one column a channel, one row a sample. Out: Recordings; values are float64 as written, times in
Unix ns.

Loggers write more than a table: what parts the columns (`sep=;`), lines about the device, comments, a row of units. The names are the
row before the rows of numbers.

Comma, semicolon or tab; a decimal comma where the delimiter is none; with or without byte order mark. Rows are parsed
in blocks by numpy; a block that it refuses is read again cell by cell, which finds the row.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kymo.streams.errors import SourceError
from kymo.streams.readers.cells import Numbers, is_missing
from kymo.streams.readers.columns import ColumnRoles, column_roles
from kymo.streams.readers.files import File
from kymo.streams.readers.table import Block, Gatherer
from kymo.streams.readers.times import TimeColumn
from kymo.streams.recording import ReadOptions, Recording
from kymo.streams.words import brief, is_number, many

_BLOCK_BYTES = 32 * 2**20
_TOGETHER_BYTES = 64 * 2**20  # larger files are given away session by session
_SAMPLE_ROWS = 200
_INDEX = "index"
_HEAD_BYTES = 2**18  # names stand within so much
_OTHER_FORMATS = {
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"PK": "a zip or Excel file",
    b"\x1f\x8b": "a gzip file",
}
# Of the head:
_NO_VALUE = frozenset(("", "nan", "na", "n/a", "null", "none"))
_DELIMITERS = (",", ";", "\t")
_SEPARATOR = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_RATE = re.compile(
    r"\b(?:(?:sampl\w*|output|update|data|measurement)[ _]?(?:rate|frequency)\b[^\d\n]{0,12}?(\d+(?:\.\d+)?)(?:\s*(k?hz))?"
    r"|(?:rate|frequency)\b[^\d\n]{0,12}?(\d+(?:\.\d+)?)\s*(k?hz))\b(?![.,]?\d)(?!\s*[a-z])",
    re.IGNORECASE,
)
_MOMENT = re.compile(r"\d{4}[-/]\d\d[-/]\d\d[ T]\d\d:\d\d.*")
_MEASURE = re.compile(r"\d+(\.\d+)?(\s*hz|\s+\w+)?", re.IGNORECASE)
_NAMES_ARE = re.compile(r"^\W*(?:labels|columns|names)\s*:?=?\s*", re.IGNORECASE)
_HEAD_ROWS = 400  # of them is judged where the table begins
_TABLE_ROWS = 3  # so many rows of as many columns are a table


def read_csv(file: File, options: ReadOptions) -> Iterator[Recording]:
    """Recordings of a CSV file."""
    with file.open() as raw:
        size = raw.seek(0, io.SEEK_END)
        raw.seek(0)
        start = raw.read(2)
        raw.seek(0)
        if start in _OTHER_FORMATS:
            raise SourceError(f"is {_OTHER_FORMATS[start]}, expected CSV text in UTF-8", file.path)
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
        try:
            yield from _Reader(text, file, options).recordings(size > _TOGETHER_BYTES)
        except UnicodeDecodeError as error:
            raise SourceError(
                f"is no UTF-8 text (byte {error.object[error.start]:#04x}); save it as UTF-8", file.path
            ) from None
        except csv.Error as error:
            raise SourceError(f"is no CSV ({error})", file.path) from None


class _Reader:
    """One file: finds out what its columns are, then parses block after block."""

    def __init__(self, text: io.TextIOWrapper, file: File, options: ReadOptions) -> None:
        self._text, self._file, self._options = text, file, options
        self._head = _find_head(text.readlines(_HEAD_BYTES), file.path)
        self._names, self._delimiter = self._head.names, self._head.delimiter
        # pandas writes its index without a name.
        self._index = "" if self._names[0] or not all(self._names[1:]) or _INDEX in self._names else _INDEX
        self._names[0] = self._names[0] or self._index
        self._row, self._ahead = self._head.row, self._head.below  # the last row that was read, and the lines behind
        self._blank: list[int] = []
        self._cut = 0  # the last row, where it ends too early
        self._passed: dict[int, str] = {}  # rows that hold no sample, and what they hold
        self._zeros = 0
        self._numbers: Numbers
        self._roles: ColumnRoles
        self._time_column: TimeColumn | None = None

    def recordings(self, together: bool) -> Iterator[Recording]:
        lines, rows = self._lines()
        if not lines:
            raise SourceError("has a header but no rows", self._file.path)
        self._find_roles(lines)
        gatherer = Gatherer(self._file, self._roles, self._options, together)
        while lines:
            block = self._block(lines, rows)
            # Empty lines at the end are nobody's fault; between rows they may stand for lost ones.
            inner = sorted(row for row in self._blank if len(block.rows) and row < block.rows[-1])
            if inner:
                gatherer.notes.append(f"{many(len(inner), 'empty line')} passed over, first row {inner[0]}")
                self._blank = [row for row in self._blank if row not in inner]
            gatherer.notes += self._passed_over()
            if self._time_column:
                gatherer.notes += [note for note in self._time_column.notes if note not in gatherer.notes]
            if len(block.rows):
                yield from gatherer.add(block)
            lines, rows = self._lines()
        yield from gatherer.finish()

    def _passed_over(self) -> list[str]:
        """Notes on what was no sample."""
        kinds: dict[str, list[int]] = {}
        for row, kind in sorted(self._passed.items()):
            kinds.setdefault(kind, []).append(row)
        notes = [f"{many(len(rows), kind)} passed over, first row {rows[0]}" for kind, rows in kinds.items()]
        if self._zeros:
            notes.append(f"{many(self._zeros, 'zero byte')} passed over, as where a logger lost its power")
        if self._cut:
            notes.append(f"the file ends within row {self._cut}, which is left out")
        self._passed, self._zeros = {}, 0
        return notes

    def _block(self, lines: list[str], rows: NDArray[np.int64]) -> Block:
        """A block of rows; the last one of a file is left out where it ends too early, as where a logger was switched off."""
        whole = lines[-1].endswith(("\n", "\r")) or len(lines) == 1
        if not whole and lines[-1].count('"') % 2:
            self._cut = int(rows[-1])
            lines, rows, whole = lines[:-1], rows[:-1], True
        blank = [*self._blank]
        try:
            block = self._fast(lines, rows) or self._slow(lines, rows)
        except SourceError as error:
            if whole or error.row != rows[-1]:
                raise
            self._cut, self._blank, self._passed = int(rows[-1]), blank, {}
            return self._block([*lines[:-2], f"{lines[-2].rstrip()}\n"], rows[:-1])
        last = block.texts.get(self._names[-1], []) if self._names[-1] in self._roles.labels else []
        if not whole and len(last) > 1 and last[-2] != last[-1] and last[-2].startswith(last[-1]):
            self._cut = int(rows[-1])
            texts = {name: cells[:-1] for name, cells in block.texts.items()}
            return Block(
                block.rows[:-1], block.values[:-1], texts, None if block.times_ns is None else block.times_ns[:-1]
            )
        return block

    def _lines(self) -> tuple[list[str], NDArray[np.int64]]:
        """The next lines that hold something, with their row numbers; quoted line breaks stay within one block."""
        lines, self._ahead = self._ahead + self._text.readlines(_BLOCK_BYTES), []
        while sum(line.count('"') for line in lines) % 2 and (more := self._text.readline()):
            lines.append(more)
        rows = np.arange(self._row + 1, self._row + 1 + len(lines))
        self._row += len(lines)
        if zeros := sum(line.count("\0") for line in lines):
            self._zeros += zeros
            lines = [line.replace("\0", "") or "\n" for line in lines]
        blank = [i for i, line in enumerate(lines) if line.isspace()]
        # An empty line within quotes belongs to its cell; the slow path sees it.
        if blank and not any('"' in line for line in lines):
            self._blank += rows[blank].tolist()
            filled = np.setdiff1d(np.arange(len(lines)), blank)
            lines, rows = [lines[i] for i in filled.tolist()], rows[filled]
        if not lines and blank:
            return self._lines()
        return lines, rows

    def _find_roles(self, lines: Sequence[str]) -> None:
        sample = [row for row in islice(csv.reader(lines, delimiter=self._delimiter), _SAMPLE_ROWS) if any(row)]
        # A channel with one wrong cell is a channel with an error, not a text column to pass over.
        self._numbers = Numbers(sample, self._delimiter)
        filled = {i for i in range(len(self._names)) if any(len(row) > i and not is_missing(row[i]) for row in sample)}
        numeric = {self._names[i] for i in filled & self._numbers.numeric} - {self._index}
        column = partial(self._column, sample)
        self._roles = column_roles(self._names, numeric, self._options, self._file.path, column, self._head.rate)
        self._roles.notes[:0] = self._head.notes
        self._roles.notes.extend(self._numbers.notes)
        self._time_column = self._roles.time_column(self._file.path)
        for i, unit in self._numbers.units.items():
            self._roles.notes.append(f"`{self._names[i]}` has its unit in its cells ({unit})")
            if self._time_column and self._names[i] == self._roles.time:
                self._time_column.say_unit(unit)

    def _column(self, sample: Sequence[Sequence[str]], name: str) -> list[str]:
        at = self._names.index(name)
        whole = [row for row in sample if len(row) == len(self._names)]
        rows = whole if 2 * len(whole) >= len(sample) else [row for row in sample if len(row) > at]
        return [self._numbers.plain(row[at], at) for row in rows]

    def _fast(self, lines: list[str], rows: NDArray[np.int64]) -> Block | None:
        """A block by numpy; None if it holds anything unusual."""
        roles = self._roles
        texts = {*roles.texts, roles.time} - {None}
        numbers = [name in roles.channels and name not in texts for name in self._names]
        if sum(numbers) < len(roles.channels) or not self._numbers.by_numpy:
            return None
        if self._numbers.comma:
            if not all(numbers) or any("." in line for line in lines):
                return None
            lines = [line.replace(",", ".") for line in lines]
        fields = np.dtype([(f"c{i}", "f8" if number else "O") for i, number in enumerate(numbers)])
        try:
            table = np.loadtxt(lines, fields, None, self._delimiter, ndmin=1, quotechar='"')
        except (ValueError, IndexError):
            return None
        if len(table) != len(lines):
            return None
        values = np.column_stack([table[f"c{self._names.index(name)}"] for name in roles.channels])
        columns = {name: table[f"c{self._names.index(name)}"].tolist() for name in texts if name}
        return Block(rows, values, {name: columns[name] for name in roles.texts}, self._times(columns, rows))

    def _slow(self, lines: list[str], rows: NDArray[np.int64]) -> Block:
        """A block cell by cell: finds the wrong row, or reads what numpy does not (empty cells, quoted line breaks)."""
        roles = self._roles
        reader = csv.reader(lines, delimiter=self._delimiter)
        at = [self._names.index(name) for name in roles.channels]
        positions = {name: self._names.index(name) for name in (*roles.texts, *([roles.time] if roles.time else []))}
        row_numbers: list[int] = []
        values: list[list[float]] = []
        texts: dict[str, list[str]] = {name: [] for name in positions}
        before = 0
        for cells in reader:
            row, before = int(rows[before]), reader.line_num
            if not any(cell.strip() for cell in cells):
                self._blank.append(row)
                continue
            if kind := self._no_sample(cells, row):
                self._passed[row] = kind
                continue
            if len(cells) < len(self._names) and row == rows[-1] and not lines[-1].endswith(("\n", "\r")):
                self._cut = row  # a logger that was switched off
                continue
            if len(cells) != len(self._names):
                cells = self._whole(cells, row)  # noqa: PLW2901
            row_numbers.append(row)
            values.append([self._number(cells[i], i, row) for i in at])
            for name, i in positions.items():
                texts[name].append(self._numbers.plain(cells[i], i) if name == roles.time else cells[i])
        numbers = np.array(row_numbers, np.int64)
        table = np.array(values, np.float64).reshape(len(numbers), len(at))
        return Block(numbers, table, {name: texts[name] for name in roles.texts}, self._times(texts, numbers))

    def _no_sample(self, cells: Sequence[str], row: int) -> str:
        """What a row holds that is no sample: the names again, as where files are appended, their units, a comment."""
        first = cells[0].strip().lstrip("\ufeff")
        if first.startswith(("#", "%", "//")) and not is_missing(first):
            return "comment"
        if first == self._names[0] and [" ".join(cell.split()) for cell in cells[1:]] == self._names[1:]:
            return "row of names"
        again = self._passed.get(row - 1) == "row of names" and len(cells) == len(self._names)
        return "row of units" if again and not any(map(is_number, cells)) else ""

    def _whole(self, cells: list[str], row: int) -> list[str]:
        """A row without what is empty beyond the names, or with empty texts where it ends before the last of them."""
        count, roles = len(self._names), self._roles
        if len(cells) > count and not any(cell.strip() for cell in cells[count:]):
            return cells[:count]
        keep = roles.keep.columns if roles.keep else ()
        needed = {*roles.channels, *roles.session, *roles.labels, *keep, roles.time, roles.subject}
        absent = self._names[len(cells) :]
        if not absent or not needed.isdisjoint(absent):
            raise SourceError(f"{len(cells)} columns where the header has {count}", self._file.path, row)
        return cells + [""] * len(absent)

    def _number(self, cell: str, column: int, row: int) -> float:
        number = self._numbers.number(cell, column)
        if number is None:
            raise SourceError(
                f"column `{self._names[column]}` has {brief(cell)!r}, expected a number", self._file.path, row
            )
        return number

    def _times(self, texts: dict[str, list[str]], rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        return self._time_column.parse(self._roles.time_texts(texts), rows) if self._time_column else None


@dataclass(slots=True)
class _TableHead:
    """What stands before the rows."""

    row: int  # the last line of it, as a user counts
    delimiter: str  # what parts the columns
    names: list[str]  # of the columns; an empty one is no column
    below: list[str]  # the lines behind
    rate: Fraction | None = None  # samples per second, where it is said
    notes: list[str] = field(default_factory=list)  # what was passed over


def _find_head(lines: Sequence[str], path: Path | str) -> _TableHead:
    """The head of a file."""
    first = next((i for i, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise SourceError("is empty; expected a header row and rows of numbers", path)
    end = first + 1
    while "".join(lines[first:end]).count('"') % 2 and end < len(lines):  # a line break within a quoted name
        end += 1
    line = "".join(lines[first:end])
    if (
        (separator := _SEPARATOR.fullmatch(line)) is None
        and not line.lstrip().startswith("#")
        and _is_header(line, lines[end:])
    ):
        rows = [_cells(line, delimiter) for delimiter in _DELIMITERS]
        names = max(rows, key=len)
        delimiter = _DELIMITERS[rows.index(names)]
        if not any(names) or all(is_number(name) for name in names if name):
            raise SourceError(f"holds {brief(line)!r} where column names are expected", path, end)
        return _without_units(_TableHead(end, delimiter, names, list(lines[end:])))
    return _head_behind_preface(lines, end if separator else first, separator[1] if separator else "", path)


def _head_behind_preface(lines: Sequence[str], begin: int, delimiter: str, path: Path | str) -> _TableHead:
    """The head of a file that begins with something else."""
    rows = [(i, line) for i, line in enumerate(lines[:_HEAD_ROWS]) if i >= begin and line.strip()]
    table = [(i, line) for i, line in rows if not line.startswith("#")]
    delimiter = delimiter or max(_DELIMITERS, key=lambda sign: _width([line for _, line in table], sign))
    width = _width([line for _, line in table], delimiter)
    cells = [_cells(line, delimiter) for _, line in table]
    same = [len(row) == width for row in cells]
    at = next(
        (n for n in range(len(cells)) if all(same[n : n + 1 + _TABLE_ROWS]) and not _is_preface(*cells[n : n + 3])),
        None,
    )
    if at is None or width < 1:
        raise SourceError("holds no table: a header row and rows of numbers are expected", path)
    if sum(2 * _count_values(row) > len(row) > 1 for row in cells[:at]) > bool(_is_data(cells, 1)) + 1 or (
        at == 1 and _is_data(cells, 1) and not _is_data(cells, 0)
    ):
        at = 0  # what comes before are rows of numbers, too, or names, of which one is missing: the rows say so
    row, names = table[at][0], cells[at]
    preface = [line for i, line in rows if i < row]
    behind, notes = row + 1, list[str]()
    if _is_data(cells, at):
        comment = _names_in_comment(preface, delimiter, width)
        behind, names = row, comment or _made_up_names(names)
        notes += [] if comment else [f"no column names: they are {', '.join(names)}"]
    if preface:
        notes.append(f"{many(len(preface), 'line')} before the table passed over, first row {rows[0][0] + 1}")
    rates = {_rate(match) for line in preface if (match := _RATE.search(line))} - {0}
    rate = rates.pop() if len(rates) == 1 else None
    return _without_units(_TableHead(behind, delimiter, names, list(lines[behind:]), rate, notes))


def _names_in_comment(preface: Sequence[str], delimiter: str, width: int) -> list[str]:
    """The names of a table that stand in a comment: in the last of that width, or the one above, where the last are units."""
    names: list[str] = []
    for line in reversed([line for line in preface if line.startswith("#")]):
        cells = _cells(_NAMES_ARE.sub("", line.lstrip("# ")), delimiter)
        if len(cells) == width and not _count_values(cells):
            names = cells
        elif names:
            break
    return names


def _rate(match: re.Match[str]) -> Fraction:
    number, unit = (match[1], match[2]) if match[1] else (match[3], match[4])
    return Fraction(number) * (1000 if (unit or "").lower() == "khz" else 1)


def _without_units(head: _TableHead) -> _TableHead:
    """Without the row of units behind the names, if there is one."""
    for n in range(2):
        first = [line for line in head.below[: 2 + n] if line.strip()]
        if len(first) < 2 or any(line.count('"') % 2 for line in first):
            break
        row, below = (_cells(line, head.delimiter) for line in first[:2])
        if len(row) != len(head.names) or not _are_units(row, below):
            break
        at = head.below.index(first[0])
        head.row, head.below = head.row + at + 1, head.below[at + 1 :]
        head.notes.append(f"row {head.row} holds units, not samples: passed over")
    return head


def _are_units(row: Sequence[str], below: Sequence[str]) -> bool:
    """Whether a row has words where the next one has numbers."""
    columns = [n for n, cell in enumerate(below[: len(row)]) if _is_value(cell)]
    if not columns or any(map(_is_value, row)):
        return False
    return 2 * sum(row[n].lower() not in _NO_VALUE for n in columns) > len(columns)


def _is_header(line: str, below: Sequence[str]) -> bool:
    """Whether the first line has as many columns as most that follow, or nothing below is a better table."""
    below = [line for line in below[:_HEAD_ROWS] if line.strip()]
    delimiter = max(_DELIMITERS, key=lambda sign: len(_cells(line, sign)))
    if any(line.count('"') % 2 for line in below):
        return True  # cells of several lines: their rows cannot be counted here
    width = len(_cells(line, delimiter))
    usual = max(_width(below, sign) for sign in (_DELIMITERS if width == 1 else delimiter))
    if _is_preface(*(_cells(row, delimiter) for row in (line, *below[:2]))):
        return False
    return len(below) < 2 * _TABLE_ROWS or usual <= width


def _is_preface(row: Sequence[str], names: Sequence[str] = (), data: Sequence[str] = ()) -> bool:
    """Whether a row says something of the device, and the names are in the next one: it holds a value, or fewer cells are filled."""
    if _count_values(row) > len(row) / 2 or _count_values(names) or not _count_values(data):
        return False
    ends = [cell.endswith(":") for cell in row]
    about_device = len(row) > 1 and not all(ends) and (any(ends) or any(map(_MEASURE.fullmatch, row)))
    filled, names_filled, data_filled = (sum(map(bool, cells)) for cells in (row, names, data))
    return about_device or (1 < names_filled == len(names) and filled < names_filled and data_filled > filled)


def _width(lines: Sequence[str], delimiter: str) -> int:
    """How many columns most of the lines have."""
    counts = Counter(len(_cells(line, delimiter)) for line in lines[-100:])
    return counts.most_common(1)[0][0] if counts else 0


def _cells(line: str, delimiter: str) -> list[str]:
    return [
        " ".join(cell.split()) for cell in next(csv.reader(line.splitlines(keepends=True), delimiter=delimiter), [])
    ]


def _is_value(cell: str) -> bool:
    return cell.lower() not in _NO_VALUE and (is_number(cell.replace(",", ".")) or bool(_MOMENT.fullmatch(cell)))


def _count_values(row: Sequence[str]) -> int:
    return sum(map(_is_value, row))


def _is_data(cells: Sequence[Sequence[str]], at: int) -> bool:
    """Whether a row holds as many numbers as the next one."""
    if at >= len(cells):
        return False
    count = _count_values(cells[at])
    return count > 0 and count >= _count_values(cells[min(at + 1, len(cells) - 1)])


def _made_up_names(row: Sequence[str]) -> list[str]:
    """Names for columns that have none."""
    names = [f"c{n + 1}" for n in range(len(row))]
    for n, cell in enumerate(row):
        if _MOMENT.fullmatch(cell) and "timestamp" not in names:
            names[n] = "timestamp"
    return names
