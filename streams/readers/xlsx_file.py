"""Excel workbooks. In: a sheet with a table below a header row, read as CSV is; or one with a signal whose first two rows are its start
and its rate, and a sheet `info` of intervals. Out: Recordings; times in Unix ns.

Workbooks of the second kind are those of a study of listeners: electrodermal activity, perhaps whole-second stamps beside it, and in `info`
the number, start and end of each piece of music, in the order heard. Pieces 1 to 4 are classical, 5 to 8 instrumental, 9 to 12 pop.
"""

from __future__ import annotations

import csv
import io
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

from kymo.streams.errors import EmptyFileError, SourceError
from kymo.streams.labels.labels import Label, canonical, interval, rename
from kymo.streams.readers.csv_file import CsvTable
from kymo.streams.readers.facts import Facts
from kymo.streams.readers.files import File
from kymo.streams.readers.head import unix_ns
from kymo.streams.readers.keep import Keep
from kymo.streams.readers.table import read_table
from kymo.streams.recording import ReadOptions, Recording
from kymo.streams.words import NS, is_number, many, some

_INFO = "info"
_GENRES = ((4, "classical"), (8, "instrumental"), (12, "pop"))  # up to which number
_FASTEST_HZ = 20_000
_LARGEST = 2**30  # bytes of a workbook, unpacked
_NO_VALUE = re.compile(  # of a formula; an empty text is one
    rb'<c (?![^>]*t="str")[^>]*>\s*<f(?:\s[^>]*/>|/>|[^>]*>[^<]*</f>)\s*(?:<v\s*/>|<v></v>)?\s*</c>'
)
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_CLOCK_S = 1.5  # whole seconds are off by less

Rows = Sequence[Sequence[str]]


class _Piece(NamedTuple):
    """An interval of `info`."""

    number: int
    order: int  # from 1
    start_ns: int
    end_ns: int

    def text(self, name: str) -> str:
        """What a set of labels, or a column, calls it."""
        genre = next((genre for last, genre in _GENRES if 0 < self.number <= last), "")
        return {"piece": str(self.number), "order": str(self.order)}.get(name, genre)


_COLUMNS = ("piece", "order", "genre", "label")


class _Signal(NamedTuple):
    """A sheet whose first two rows are a start and a rate."""

    start_ns: int
    rate: Fraction
    cells: Sequence[str]  # from row 3 on
    notes: Sequence[str]


def read_xlsx(file: File, options: ReadOptions) -> Iterator[Recording]:
    """Recordings of a workbook."""
    notes = list[str]()
    sheets = {name: rows for name, rows in _sheets(file, notes).items() if rows}
    names = [name for name in sheets if name.lower() != _INFO]
    name = max(names, key=lambda name: _rank(name, sheets[name], file), default=None)
    if name is None:
        raise EmptyFileError("holds no sheet with rows", file.path)
    info = next((rows for sheet, rows in sheets.items() if sheet.lower() == _INFO), None)
    signal = _signal_of(sheets[name])
    others = [sheet for sheet in sheets if sheet != name and not (signal and sheet.lower() == _INFO)]
    notes += [f"read is sheet `{name}`, not {some(others, 4)}"] if others else []
    if not signal:
        table = CsvTable(_text(sheets[name]), file, False)
        table.notes = [*notes, *table.notes]
        yield from read_table(table, options)
        return
    pieces = _pieces(info or (), notes)
    notes += [] if info else ["no sheet `info`, which says what was heard: read without labels"]
    table = CsvTable(_text(_with_pieces(signal, pieces, name, options)), file, False)
    table.numeric = {"eda"}
    start_ns = 0 if table.names[0] == "t_ns" else signal.start_ns
    table.facts = Facts(signal.rate, {"eda": "uS"}, start_ns, "the head of the sheet", "eda")
    table.notes = ["rows 1 and 2 of its sheet are the start and the rate", *notes, *signal.notes]
    for recording in read_table(table, options):
        _label(recording, pieces, file, options)
        yield recording


def _rank(name: str, rows: Rows, file: File) -> tuple[bool, ...]:
    """How likely a sheet is the one to read."""
    return name == file.place.stem, _signal_of(rows[:3]) is not None, len(rows) > 1


def holds_signal(file: File) -> bool:
    """Whether it is a workbook of the second kind."""
    try:
        return any(_signal_of(rows) for rows in _sheets(file, [], 3).values())
    except SourceError:
        return False


def _sheets(file: File, notes: list[str], most: int | None = None) -> dict[str, list[list[str]]]:
    """Cells of all sheets, as text; of the first so many rows."""
    try:
        import openpyxl
    except ImportError:
        raise SourceError(
            "workbooks are read with openpyxl, which is not installed: pip install 'kymo-streams[excel]'", file.path
        ) from None
    texts = [0, 0]  # numbers that are text: how many, and the first one's row
    with file.open() as raw, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of styles
        try:
            archive = zipfile.ZipFile(raw)
            if sum(item.file_size for item in archive.infolist()) > _LARGEST:
                raise SourceError("unpacks to more than 1 GiB, expected less; save it as CSV", file.path)
            parts = [name for name in archive.namelist() if "worksheets/" in name and not most]
            if lost := sum(len(_NO_VALUE.findall(archive.read(name))) for name in parts):
                wrong = f"holds {many(lost, 'formula')} without a stored value; open it in a table program and save it there"
                raise SourceError(wrong, file.path)
            book, sheets = openpyxl.load_workbook(raw, read_only=True, data_only=True), dict[str, list[list[str]]]()
            for sheet in sorted(book.worksheets, key=lambda sheet: sheet.sheet_state != "visible"):
                sheet.reset_dimensions()  # cells far away may have a format alone
                rows = sheets[sheet.title] = [*_cells(sheet.iter_rows(max_row=most, values_only=True), texts)]
                while rows and not rows[-1]:
                    rows.pop()
        except (
            zipfile.BadZipFile,
            AttributeError,
            KeyError,
            ValueError,
            TypeError,
            OSError,
            EOFError,
            SyntaxError,
        ) as error:
            raise SourceError(f"is no whole workbook ({str(error)[:100]}); save it anew", file.path) from None
    if texts[0]:
        notes.append(f"{many(texts[0], 'number')} in cells of text, first in row {texts[1]}: read as numbers")
    return sheets


def _cells(rows: Any, texts: list[int]) -> Iterator[list[str]]:
    for row, values in enumerate(rows, 1):
        cells = list(
            map(_cell, values[: max((n + 1 for n, value in enumerate(values) if value is not None), default=0)])
        )
        for n, value in enumerate(values[: len(cells)]):
            if isinstance(value, str) and _DECIMAL_COMMA.fullmatch(cells[n]):
                cells[n] = cells[n].replace(",", ".")
            if isinstance(value, str) and is_number(cells[n]):
                texts[:] = texts[0] + 1, texts[1] or row
        yield cells


def _cell(value: Any) -> str:
    if isinstance(value, datetime | date | time):
        return value.isoformat(" ") if isinstance(value, datetime) else value.isoformat()
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value).strip()


def _text(rows: Rows) -> io.StringIO:
    """Rows as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    width = max((n + 1 for row in rows for n, cell in enumerate(row) if cell), default=0)
    writer.writerows([*row, *[""] * width][:width] if any(row) else [] for row in rows)
    text.seek(0)
    return text


def _signal_of(rows: Rows) -> _Signal | None:
    """The signal of a sheet, in whatever column it is; None where the sheet is a table."""
    if len(rows) < 3:
        return None
    heads = [
        n
        for n, (start, rate) in enumerate(zip(rows[0], rows[1], strict=False))
        if unix_ns(start) and is_number(rate) and 0 < float(rate) <= _FASTEST_HZ
    ]
    if len(heads) != 1:
        return None
    (column,) = heads
    start_ns, rate = unix_ns(rows[0][column]), Fraction(rows[1][column])
    cells = [row[column] if column < len(row) else "" for row in rows[2:]]
    last, notes = max((n for n, cell in enumerate(cells) if cell), default=-1), list[str]()
    if last + 1 < len(cells):
        notes.append(f"{many(len(cells) - last - 1, 'row')} at the end without a value left out")
    words = [n for n, cell in enumerate(cells) if cell and not is_number(cell)]
    if words:
        notes.append(f"{many(len(words), 'cell')} with text in place of a number, missing, first in row {words[0] + 3}")
        cells = [cell if is_number(cell) else "" for cell in cells]
    for n in range(max(map(len, rows))):
        at = (unix_ns(row[n]) if n != column and n < len(row) else 0 for row in rows[2:])
        stamps = [(i, stamp_ns) for i, stamp_ns in enumerate(at) if stamp_ns]
        away = ((i, (stamp_ns - start_ns) / NS - i / float(rate)) for i, stamp_ns in stamps)
        if 2 * len(stamps) > len(cells) and (far := next((at for at in away if abs(at[1]) > _CLOCK_S), None)):
            notes.append(
                f"the stamps in column {n + 1} are {far[1]:+.0f} s from what the rate gives, first in row {far[0] + 3}: the clock jumped, "
                "or samples are lost; the rate counts, doubtful"
            )
    return _Signal(start_ns, rate, cells[: last + 1], notes)


def _pieces(rows: Rows, notes: list[str]) -> list[_Piece]:
    """Intervals of `info`: rows of a number, a start and an end, wherever their columns are."""
    pieces = list[_Piece]()
    for row, cells in enumerate(rows, 1):
        numbers = [Fraction(cell) for cell in cells if is_number(cell)]
        times = [at for cell in cells if (at := unix_ns(cell))]
        small = [int(number) for number in numbers if 0 < number < 1000 and number.denominator == 1]
        if len(times) != 2 or not small or times[0] >= times[1]:
            if any(cells) and (row > 1 or numbers):
                notes.append(f"row {row} of `info` is no number, start and end: left out")
            continue
        pieces.append(_Piece(small[0], len(pieces) + 1, *times))
    for first, second in pairwise(pieces):
        if second.start_ns < first.end_ns:
            seconds = (first.end_ns - second.start_ns) / NS
            notes.append(f"piece {second.number} begins {seconds:.1f} s before piece {first.number} ends, doubtful")
    if unknown := [str(piece.number) for piece in pieces if not piece.text("genre")]:
        notes.append(f"no genre is known of piece {some(unknown, 8)}: expected 1 to {_GENRES[-1][0]}")
    return pieces


def _with_pieces(signal: _Signal, pieces: Sequence[_Piece], name: str, options: ReadOptions) -> Rows:
    """A table of the signal, its rows where they stand in the sheet; with columns for what recipes ask of pieces."""
    asked = {*options.session, *(Keep(options.keep).columns if options.keep else ()), *options.label_columns}
    columns = [column for column in _COLUMNS if column in asked]
    between = ["0" if column in _COLUMNS[:2] else "" for column in columns]
    rows = [["eda", "subject", *columns]] + [[cell, name, *between] for cell in signal.cells]
    for piece in reversed(pieces):  # of two at once the first
        texts = [piece.text(column) for column in columns]
        first, end = (max(0, -int((signal.start_ns - at) * signal.rate // NS)) for at in piece[2:])
        for row in rows[1 + first : 1 + end]:
            row[2:] = texts
    if options.session or options.keep:  # parts of it say when they are
        times = [str(signal.start_ns + round(i * NS / signal.rate)) for i in range(len(signal.cells))]
        rows = [[time, *row] for time, row in zip(["t_ns", *times], rows, strict=True)]
    return [[], *rows]


def _label(recording: Recording, pieces: Sequence[_Piece], file: File, options: ReadOptions) -> None:
    """Give a recording its labels, to the ns as `info` says them."""
    step_ns = round(NS / recording.streams[0].header.format.rate)
    within = [p for p in pieces if p.start_ns <= recording.start_ns and recording.end_ns <= p.end_ns + step_ns]
    recording.metadata |= {name: within[0].text(name) for name in _COLUMNS[:3]} if within else {}
    labels = list[Label]()
    for label_set, names in options.label_columns.items():
        for piece in pieces if label_set in _COLUMNS else ():
            inside = piece.end_ns > recording.start_ns and piece.start_ns < recording.end_ns
            if inside and piece in (within or pieces) and (text := canonical(piece.text(label_set))):
                at = piece.start_ns, piece.end_ns, rename(text, names)
                labels.append(interval(recording.session, label_set, *at, author=file.place.name))
    recording.labels = sorted(labels, key=lambda label: (label.start_ns, label.end_ns))
    outside = [p for p in pieces if p.start_ns < recording.start_ns or p.end_ns > recording.end_ns]
    if outside and not within:
        recording.notes.append(
            f"piece {some([str(p.number) for p in outside], 12)} of `info` is not within the recording, doubtful"
        )
