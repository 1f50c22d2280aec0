"""CSV files. In: text, one column a channel, one row a sample. Out: Recordings; values are float64 as written, times in Unix ns."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import PurePath
from typing import Any, TextIO

import numpy as np

from kymo.streams.errors import EmptyFileError, SourceError
from kymo.streams.readers.cells import Numbers, is_missing
from kymo.streams.readers.columns import Block, ColumnRoles, Table
from kymo.streams.readers.facts import Facts, facts_beside
from kymo.streams.readers.files import File
from kymo.streams.readers.head import find_head
from kymo.streams.readers.table import read_table
from kymo.streams.recording import ReadOptions, Recording
from kymo.streams.units import known_unit
from kymo.streams.words import brief, is_number, many

_BLOCK_BYTES = 8 * 2**20
_TOGETHER_BYTES = 64 * 2**20  # larger files are given away session by session
_SAMPLE_ROWS = 2_000
_INDEX = "index"
_HEAD_BYTES = 2**18  # names stand within so much
_QUOTED = 2**20  # a cell with line breaks ends within so much, or its quote is a sign of inches


def read_csv(file: File, options: ReadOptions) -> Iterator[Recording]:
    with file.open() as raw:
        size = raw.seek(0, io.SEEK_END)
        raw.seek(0)
        encoding = _encoding(raw.read(_HEAD_BYTES))
        raw.seek(0)
        text = io.TextIOWrapper(raw, encoding=encoding, newline="")
        try:
            yield from read_table(CsvTable(text, file, size > _TOGETHER_BYTES), options)
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


class CsvTable(Table):
    """One file: finds out how it writes its cells, then reads block after block."""

    def __init__(self, text: TextIO, file: File, long: bool) -> None:
        head = find_head(text.readlines(_HEAD_BYTES), file.path, PurePath(file.path).stem)
        names = head.names
        # pandas writes its index without a name.
        index = "" if names[0] or not all(names[1:]) or _INDEX in names else _INDEX
        names[0] = names[0] or index
        super().__init__(file, names, long=long)
        self._text, self._head, self._row, self._ahead = text, head, head.row, head.below
        self._blank: list[int] = []
        self._cut = 0  # the last row, where it ends too early
        self._passed: dict[int, str] = {}  # rows that hold no sample, and what they hold
        self._zeros = 0
        # Where these begin a row, it may be no sample.
        self._odd = {"", " ", "\u00a0", "\u3000", "#", "%", "/", "\t", "\ufeff", names[0][:1]}
        lines, _ = self._lines_ahead = self._lines()
        if not lines:
            raise EmptyFileError("has a header but no rows", file.path)
        sample = [row for row in islice(self._parsed(lines), _SAMPLE_ROWS) if any(row)]
        # A channel with one wrong cell is a channel with an error, not a text column to pass over.
        self._numbers = numbers = Numbers(sample, head.delimiter)
        filled = {i for i in range(len(names)) if any(len(row) > i and not is_missing(row[i]) for row in sample)}
        self.numeric = {names[i] for i in filled & numbers.numeric} - {index}
        self.late = [name for i, name in enumerate(names) if i not in filled]
        whole = [row for row in sample if len(row) == len(names)]
        self._sample = whole if 2 * len(whole) >= len(sample) else sample
        self.cell_units = {names[i]: unit for i, unit in numbers.units.items()}
        units = {name: known_unit(unit) for name, unit in self.cell_units.items()} | head.units
        self.facts = Facts(head.rate, units, head.start_ns, stream=head.stream)
        if head.rate is None and (beside := facts_beside(file, names)).rate:
            self.facts = beside._replace(units={**beside.units, **units}, start_ns=head.start_ns)
        self.notes = [*head.notes]
        self.later_notes = [*numbers.notes]
        self.later_notes += [f"`{name}` has its unit in its cells ({unit})" for name, unit in self.cell_units.items()]

    def first(self, name: str) -> Sequence[str]:
        at = self.names.index(name)
        return self._numbers.texts([row[at] for row in self._sample if len(row) > at], at)

    def blocks(self, roles: ColumnRoles) -> Iterator[Block]:
        lines, first = self._lines_ahead
        while lines:
            block = self._block(lines, first, roles)
            # Empty lines at the end are nobody's fault; between rows they may stand for lost ones.
            inner = [row for row in self._blank if len(block.rows) and row < block.rows[-1]]
            if inner:
                block.notes.append(f"{many(len(inner), 'empty line')} passed over, first row {min(inner)}")
                self._blank = [row for row in self._blank if row >= block.rows[-1]]
            kinds: dict[str, list[int]] = {}
            for row, kind in sorted(self._passed.items()):
                kinds.setdefault(kind, []).append(row)
            block.notes += [f"{many(len(rows), kind)} passed over, first row {rows[0]}" for kind, rows in kinds.items()]
            if self._zeros:
                block.notes.append(f"{many(self._zeros, 'zero byte')} passed over, as where a logger lost its power")
            if self._cut:
                block.notes.append(f"the file ends within row {self._cut}, which is left out")
            self._passed, self._zeros = {}, 0
            yield block
            lines, first = self._lines()

    def _lines(self) -> tuple[list[str], int]:
        """The next lines, and the number of the first one; quoted line breaks stay within one block."""
        lines, self._ahead = self._ahead + self._text.readlines(_BLOCK_BYTES), []
        odd, ahead = sum(line.count('"') for line in lines) % 2, 0
        while odd and ahead < _QUOTED and (more := self._text.readline()):
            lines.append(more)
            odd, ahead = odd ^ more.count('"') % 2, ahead + len(more)
        first = self._row + 1
        self._row += len(lines)
        if zeros := sum(line.count("\0") for line in lines):
            self._zeros += zeros
            lines = [line.replace("\0", "") or "\n" for line in lines]
        if lines and all(map(str.isspace, lines)):
            self._blank += range(first, self._row + 1)
            return self._lines()
        return self._head.tidy(lines), first

    def _parsed(self, lines: Sequence[str]) -> Any:
        return csv.reader(lines, delimiter=self._head.delimiter, skipinitialspace=True)

    def _block(self, lines: list[str], first: int, roles: ColumnRoles) -> Block:
        """A block of rows; the last one of a file is left out where it ends too early, as where a logger was switched off."""
        last = first + len(lines) - 1
        whole = lines[-1].endswith(("\n", "\r")) or len(lines) == 1
        if not whole and lines[-1].count('"') % 2:
            self._cut = last
            lines, whole = lines[:-1], True
        blank = [*self._blank]
        try:
            block = self._whole_block(lines, first, roles)
        except SourceError as error:
            if whole or error.row != last:
                raise
            self._cut, self._blank, self._passed = last, blank, {}
            return self._block([*lines[:-2], f"{lines[-2].rstrip()}\n"], first, roles)
        label = block.texts.get(self.names[-1], []) if self.names[-1] in roles.labels else []
        cut = len(label) > 1 and label[-2] != label[-1] and label[-2].startswith(label[-1])
        if not whole and cut and lines[-1].strip():
            self._cut = last
            return block.picked(np.arange(len(block.rows) - 1))
        return block

    def _whole_block(self, lines: list[str], first: int, roles: ColumnRoles) -> Block:
        at = {name: i for i, name in enumerate(self.names)}
        wrong = None
        if quick := self._columns_by_numpy(lines, first, roles):
            columns, rows = quick
        else:
            cells, rows, wrong = self._rows(lines, first, roles)
            columns = dict(zip(self.names, zip(*cells, strict=True) if cells else [()] * len(self.names), strict=True))
        values, faults = [], list[tuple[int, str, str]]()
        for name in roles.channels:
            try:
                values.append(self._numbers.column(columns[name], at[name]))
            except ValueError as error:
                faults.append((error.args[0], name, columns[name][error.args[0]]))
        if faults:
            number, name, cell = min(faults, key=lambda fault: fault[0])
            raise SourceError(f"column `{name}` has {brief(cell)!r}, expected a number", self.path, rows[number])
        if wrong:
            raise wrong
        texts = {name: columns[name] for name in roles.texts}
        times = [roles.time] if roles.time and not roles.parts else []
        texts |= {name: self._numbers.texts(columns[name], at[name]) for name in times}
        numbers = np.array(rows, np.int64)
        samples = np.column_stack(values) if self._head.size == 1 else np.column_stack(values) * self._head.size
        return Block(numbers, samples, texts, roles.times(texts, numbers))

    def _columns_by_numpy(
        self, lines: list[str], first: int, roles: ColumnRoles
    ) -> tuple[dict[str, Any], list[int]] | None:
        """Columns as numpy reads them, which is fast, and the numbers of rows; None where these hold anything unusual."""
        if self._numbers.unusual or any(' "' in line for line in lines[:1]):
            return None
        texts = {*roles.texts, roles.time}
        kinds = ["f8" if name in roles.channels and name not in texts else "O" for name in self.names]
        fields = np.dtype([(f"c{i}", kind) for i, kind in enumerate(kinds)])
        try:
            table = np.loadtxt(lines, fields, None, self._head.delimiter, ndmin=1, quotechar='"')
        except (ValueError, IndexError):
            return None
        rows = list(range(first, first + len(lines)))
        if len(table) < len(lines):  # it passes over empty lines
            rows = [first + i for i, line in enumerate(lines) if not line.isspace()]
        if len(table) != len(rows):
            return None
        self._blank += {*range(first, first + len(lines))}.difference(rows) if len(rows) < len(lines) else ()
        columns = [
            table[field] if kind == "f8" else table[field].tolist()
            for field, kind in zip(fields.names or (), kinds, strict=True)
        ]
        return dict(zip(self.names, columns, strict=True)), rows

    def _rows(
        self, lines: list[str], first: int, roles: ColumnRoles
    ) -> tuple[list[list[str]], list[int], SourceError | None]:
        """Rows of as many cells as there are names, and their numbers; up to the first that is too short or too long, and the error."""
        width, parsed, last = len(self.names), self._parsed(lines), first + len(lines) - 1
        rows, numbers = list[list[str]](), list[int]()
        before, after_odd = 0, False
        for cells in parsed:
            row, before = first + before, parsed.line_num
            if len(cells) != width or after_odd or cells[0][:1] in self._odd:
                after_odd = True
                if not any(cell.strip() for cell in cells):
                    self._blank.append(row)
                    continue
                if kind := self._no_sample(cells, row):
                    self._passed[row] = kind
                    continue
                if len(cells) < width and row == last and not lines[-1].endswith(("\n", "\r")):
                    self._cut = row  # a logger that was switched off
                    continue
                after_odd = False
                try:
                    cells = self._with_width(cells, row, roles)  # noqa: PLW2901
                except SourceError as error:
                    return rows, numbers, error
            rows.append(cells)
            numbers.append(row)
        return rows, numbers, None

    def _no_sample(self, cells: Sequence[str], row: int) -> str:
        """What a row holds that is no sample: the names again, as where files are appended, their units, a comment."""
        if cells[0][:1].isdigit() and row - 1 not in self._passed:
            return ""
        first = cells[0].strip().lstrip("\ufeff")
        whole = len(cells) == len(self.names) and any(is_number(cell) for cell in cells)
        if first.startswith(("#", "%", "//")) and not whole and not is_missing(first):
            return "comment"
        if first == self.names[0] and [" ".join(cell.split()) for cell in cells[1:]] == self.names[1:]:
            return "row of names"
        again = self._passed.get(row - 1) == "row of names" and len(cells) == len(self.names)
        return "row of units" if again and not any(map(is_number, cells)) else ""

    def _with_width(self, cells: list[str], row: int, roles: ColumnRoles) -> list[str]:
        """A row without what is empty beyond the names, or with empty texts where it ends before the last of them."""
        count = len(self.names)
        if len(cells) == count:
            return cells
        if len(cells) > count and not any(cell.strip() for cell in cells[count:]):
            return cells[:count]
        absent = self.names[len(cells) :]
        if not absent or not roles.needed.isdisjoint(absent):
            raise SourceError(f"{len(cells)} columns where the header has {count}", self.path, row)
        return cells + [""] * len(absent)
