"""CSV files. In: text, one column a channel, one row a sample. Out: Recordings; values are float64 as written, times in
Unix ns.

Comma, semicolon, tab, bar or blanks; a decimal comma where the delimiter is none; UTF-8, UTF-16 with its mark, or what Windows writes.
Rows are parsed in blocks by numpy; a block that it refuses is read again cell by cell, which finds the row.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from kymo.streams.errors import SourceError
from kymo.streams.readers.beside import told_beside
from kymo.streams.readers.cells import Numbers, is_missing
from kymo.streams.readers.columns import ColumnRoles, Told, column_roles
from kymo.streams.readers.files import File
from kymo.streams.readers.head import find_head
from kymo.streams.readers.table import Block, Gatherer
from kymo.streams.readers.times import TimeColumn
from kymo.streams.readers.units import known_unit
from kymo.streams.recording import ReadOptions, Recording
from kymo.streams.words import brief, is_number, many

_BLOCK_BYTES = 32 * 2**20
_TOGETHER_BYTES = 64 * 2**20  # larger files are given away session by session
_SAMPLE_ROWS = 2_000
_INDEX = "index"
_HEAD_BYTES = 2**18  # names stand within so much
_QUOTED = 2**20  # a cell with line breaks ends within so much, or its quote is a sign of inches


def read_csv(file: File, options: ReadOptions) -> Iterator[Recording]:
    """Recordings of a CSV file."""
    with file.open() as raw:
        size = raw.seek(0, io.SEEK_END)
        raw.seek(0)
        encoding = _encoding(raw.read(_HEAD_BYTES))
        raw.seek(0)
        text = io.TextIOWrapper(raw, encoding=encoding, newline="")
        try:
            yield from _Reader(text, file, options).recordings(size > _TOGETHER_BYTES)
        except UnicodeError as error:
            raise SourceError(f"is no whole text in {encoding} ({error}); save it as UTF-8", file.path) from None
        except csv.Error as error:
            raise SourceError(f"is no CSV ({error})", file.path) from None


def _encoding(start: bytes) -> str:
    """The encoding of a text: UTF-16 by its mark or its zeros, UTF-8, or else that of Windows (degrees, micro, squares)."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    for encoding, zeros in (("utf-16-le", start[1:200:2]), ("utf-16-be", start[:200:2])):
        if len(zeros) > 1 and not zeros.strip(b"\0"):
            return encoding
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8-sig"


class _Reader:
    """One file: finds out what its columns are, then parses block after block."""

    def __init__(self, text: io.TextIOWrapper, file: File, options: ReadOptions) -> None:
        self._text, self._file, self._options = text, file, options
        self._head = find_head(text.readlines(_HEAD_BYTES), file.path, PurePath(file.path).stem)
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
        gatherer = Gatherer(self._file, self._roles, self._options, together, self._time_column)
        while lines:
            block = self._block(lines, rows)
            # Empty lines at the end are nobody's fault; between rows they may stand for lost ones.
            inner = [row for row in self._blank if len(block.rows) and row < block.rows[-1]]
            if inner:
                gatherer.notes.append(f"{many(len(inner), 'empty line')} passed over, first row {min(inner)}")
                self._blank = [row for row in self._blank if row >= block.rows[-1]]
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
        odd, ahead = sum(line.count('"') for line in lines) % 2, 0
        while odd and ahead < _QUOTED and (more := self._text.readline()):
            lines.append(more)
            odd, ahead = odd ^ more.count('"') % 2, ahead + len(more)
        rows = np.arange(self._row + 1, self._row + 1 + len(lines))
        self._row += len(lines)
        if zeros := sum(line.count("\0") for line in lines):
            self._zeros += zeros
            lines = [line.replace("\0", "") or "\n" for line in lines]
        lines = self._head.tidy(lines)
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
        sample = [
            row
            for row in islice(csv.reader(lines, delimiter=self._delimiter, skipinitialspace=True), _SAMPLE_ROWS)
            if any(row)
        ]
        # A channel with one wrong cell is a channel with an error, not a text column to pass over.
        self._numbers = Numbers(sample, self._delimiter)
        filled = {i for i in range(len(self._names)) if any(len(row) > i and not is_missing(row[i]) for row in sample)}
        numeric = {self._names[i] for i in filled & self._numbers.numeric} - {self._index}
        column = partial(self._column, sample)
        cells_units = {self._names[i]: known_unit(unit) for i, unit in self._numbers.units.items()}
        told = Told(self._head.rate, cells_units | self._head.units, self._head.start_ns)
        if told.rate is None and (beside := told_beside(self._file)).rate:
            units = {**(dict.fromkeys(self._names, beside.unit) if beside.unit else {}), **told.units}
            told = told._replace(rate=beside.rate, units=units, by=beside.name)
        roles = column_roles(self._names, numeric, self._options, self._file.path, column, told)
        self._roles = replace(roles, late=[name for i, name in enumerate(self._names) if i not in filled])
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
        if sum(numbers) < len(roles.channels) or not self._numbers.by_numpy or any(' "' in line for line in lines[:1]):
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
        reader = csv.reader(lines, delimiter=self._delimiter, skipinitialspace=True)
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
        if cells[0][:1].isdigit() and row - 1 not in self._passed:
            return ""
        first = cells[0].strip().lstrip("\ufeff")
        whole = len(cells) == len(self._names) and any(is_number(cell) for cell in cells)
        if first.startswith(("#", "%", "//")) and not whole and not is_missing(first):
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
