"""Where a table begins in text. In: the first lines of a file. Out: what parts the columns, their names and units, the rate and the
start that are said above them.

Loggers write more than a table: what parts the columns (`sep=;`), lines about the device, comments, names in two rows, a row of units; or
less: no names at all, or, as wristbands of Empatica do, when it starts and how fast it goes in the place of names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain, takewhile
from pathlib import Path

import numpy as np

from kymo.streams.errors import EmptyFileError, SourceError
from kymo.streams.readers.cells import SPACES, cells_in, count_values, is_missing, is_value
from kymo.streams.readers.facts import are_units, names_in, rate_in, units_in
from kymo.streams.readers.moments import is_moment, iso_ns
from kymo.streams.units import known_unit, unit_in, unit_of_name
from kymo.streams.words import NS, OUR_DAYS_S, is_number, many, some

_DELIMITERS = (",", ";", "\t", "|", SPACES)
_SEPARATOR = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_STATEMENT = re.compile(r"[\w ]+:.*\d|[\d.]+$")
_MEASURE = re.compile(r"\d+(\.\d+)?(\s*hz|\s+\w+)?", re.IGNORECASE)
_KEY = re.compile(r"(?:channel ?titles?|channels?|labels?|columns?|names?)\s*[:=]", re.IGNORECASE)
EACH_A_TABLE = "sensors of other rates beside each other; make a table of each sensor with its times"
_NUMBER_AND_SIGN = re.compile(r",[+-]?[\d.]+([eE][+-]?\d+)?;\s*$")
_HEAD_ROWS = 400  # of them is judged where the table begins
_TABLE_ROWS = 3  # so many rows of as many columns are a table
_NAME_ROWS = 5  # at most
_CLOSING_ROWS = 50  # a quoted name ends within so many
_SAMPLE_ROWS = 200
_WHOLE = 2**17  # a file of fewer characters is here as a whole
_EVEN, _COUNTED = 0.9, 0.75  # so many steps are about the middle one, or are 1
#: Of Empatica's files, by their name: stream, channels, and the unit. Of the wristband's acceleration 64 are 1 g.
_EMPATICA = {
    "acc": ("acc", ("x", "y", "z"), "g"),
    "eda": ("eda", ("eda",), "uS"),
    "temp": ("temperature", ("temperature",), "°C"),
    "hr": ("hr", ("hr",), "bpm"),
    "bvp": ("bvp", ("bvp",), ""),
}
_G = 1 / 64
_DECIMAL_COMMA = re.compile(r"-?\d+,\d+\s*(;\s*(-?\d+,\d+|IBI)\s*)*")
_FASTEST_HZ = 20_000

Cells = Sequence[Sequence[str]]


@dataclass(slots=True)
class TableHead:
    """What stands before the rows."""

    row: int  # the last line of it, as a user counts
    delimiter: str  # what parts the columns; a blank where any number of them does
    names: list[str]  # of the columns; an empty one is no column
    below: list[str]  # the lines behind
    rate: Fraction | None = None  # samples per second, where it is said; 0 where they have times of their own
    start_ns: int = 0  # time of the first sample, or from which times count, where it is said
    stream: str = ""  # what it is, where that is known
    size: float = 1.0  # of what its numbers count, in its unit
    ending: str = ""  # with which lines end besides
    further: str = ""  # what is to be read behind each
    units: dict[str, str] = field(default_factory=dict)  # by column
    notes: list[str] = field(default_factory=list)  # what was passed over

    def pass_over(self, count: int) -> None:
        self.row, self.below = self.row + count, self.below[count:]

    def samples(self) -> list[list[str]]:
        return [cells_in(line, self.delimiter) for line in self.below[:_SAMPLE_ROWS] if line.strip()]

    def tidy(self, lines: list[str]) -> list[str]:
        """Lines with one sign between two cells."""
        if self.delimiter == SPACES:
            return [" ".join(line.split()) + "\n" * line.endswith(("\n", "\r")) for line in lines]
        if self.further:
            return [line.rstrip("\r\n") + self.further + "\n" if line.strip() else line for line in lines]
        if self.ending:
            return [
                line.rstrip("\r\n").removesuffix(self.ending) + "\n" * line.endswith(("\n", "\r")) for line in lines
            ]
        return lines


def find_head(lines: Sequence[str], path: Path | str, name: str) -> TableHead:
    first = next((i for i, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise EmptyFileError("is empty; expected a header row and rows of numbers", path)
    if empatica := _empatica(lines, first, path, name):
        return empatica
    end = _end_of_row(lines, first)
    line = "".join(lines[first:end])
    separator = _SEPARATOR.fullmatch(line)
    if separator is not None or line.lstrip().startswith("#") or not _is_header(line, lines[end:]):
        return _head_behind_preface(lines, end if separator else first, separator[1] if separator else "", path)
    delimiter = _delimiter([text for text in lines[end:_HEAD_ROWS] if text.strip()] or [line], line)
    if not any(cells_in(line, delimiter)):
        raise SourceError(f"holds {line.strip()[:60]!r} where column names are expected", path, end)
    return _head_at(lines, first, delimiter, [], path)


def _end_of_row(lines: Sequence[str], row: int) -> int:
    """Where a row ends: there may be a line break within a quoted name, if another line closes it."""
    closing = range(row + 1, min(len(lines), row + 1 + _CLOSING_ROWS)) if lines[row].count('"') % 2 else ()
    return next((n + 1 for n in closing if lines[n].count('"') % 2), row + 1)


def _head_at(
    lines: Sequence[str], begin: int, delimiter: str, above: Cells, path: Path | str, preface: Sequence[str] = ()
) -> TableHead:
    """The head of a table that begins in a line, with names or the first sample."""
    end = _end_of_row(lines, begin)
    names = cells_in("".join(lines[begin:end]), delimiter)
    head = TableHead(end, delimiter, names, list(lines[end:]))
    rows = [names, *_rows(lines[end : end + _SAMPLE_ROWS], delimiter)]
    if len(rows) > 1 and _is_sample(names, rows[1 : 1 + _TABLE_ROWS]):
        head.row, head.below = begin, list(lines[begin:])
        width = max((n + 1 for row in rows for n, cell in enumerate(row) if cell), default=0)
        preface_names, units = names_in(preface, width, delimiter)
        _make_up_names(head, rows, preface_names)
        head.units = {name: unit for name, cell in zip(head.names, units, strict=False) if (unit := unit_in(cell))}
    if preface:
        first = lines.index(preface[0]) + 1
        head.notes.append(f"{many(len(preface), 'line')} before the table passed over, first row {first}")
    head.rate = rate_in(preface)
    _take_all_names(head, above, path)
    for column, unit in units_in(preface, [name for name in head.names if name]).items():
        head.units.setdefault(column, unit)
    return head


def _rows(lines: Sequence[str], delimiter: str) -> list[list[str]]:
    """Cells of lines that are neither empty nor comments."""
    return [cells_in(line, delimiter) for line in lines if line.strip() and not line.startswith("#")]


def _empatica(lines: Sequence[str], first: int, path: Path | str, name: str) -> TableHead | None:
    """The head of a file whose first row is the time at which it starts and whose second one is the rate."""
    words = re.findall("[a-z]+", name.lower())  # of `P01_EDA (1)` the key is eda
    keys = [word for word in words if word in (*_EMPATICA, "tags")]
    key = keys[0] if len(keys) == 1 else ""
    begin = [line for line in lines[first : first + 6] if line.strip()]
    # A table program of another country has saved it.
    delimiter = ";" if all(map(_DECIMAL_COMMA.fullmatch, begin[:2])) else ","
    rows = [[cell.replace(",", ".") for cell in cells_in(line, delimiter)] for line in begin]
    if key and len(rows) > 2 and not count_values(rows[0]) and is_number(rows[1][0]) and unix_ns(rows[1][0]):
        first, rows = first + 1, rows[1:]  # somebody gave it a name
    if key == "tags" and all(len(row) == 1 and is_number(row[0]) and unix_ns(row[0]) for row in rows):
        note = "its rows are the times of tags, as wristbands of Empatica write them: `tag` is 1 at each"
        head = TableHead(first, delimiter, ["t", "tag"], list(lines[first:]), Fraction(0), stream="tags", notes=[note])
        head.further = f"{delimiter}1"
        return head
    if len(rows) < 2 or not rows[0] or not (start_ns := unix_ns(rows[0][0])):
        return None
    if [cell.upper() for cell in rows[0][1:]] == ["IBI"]:
        note = f"row {first + 1} is the start, from which beats are counted, as wristbands of Empatica write it"
        below = list(lines[first + 1 :])
        head = TableHead(first + 1, delimiter, ["t", "ibi"], below, Fraction(0), start_ns, "ibi", notes=[note])
        head.units = {"ibi": "s"}
        return head
    starts, rates = ({*row} for row in rows[:2])
    if len(rows) == 2 and key in _EMPATICA and len(starts) == len(rates) == 1:
        raise EmptyFileError("has a start and a rate but no sample", path)
    if len(starts) > 1 or len(rates) > 1 or len({*map(len, rows)}) > 1 or len(rows) < 3:
        return None
    rate = rates.pop()
    if not is_number(rate) or not 0 < float(rate) <= _FASTEST_HZ or not all(map(is_number, chain(*rows[1:]))):
        return None
    width = len(rows[0])
    stream, names, unit = _EMPATICA.get(key, ("", (), ""))
    if len(names) != width:
        stream, names, unit = "", (("x", "y", "z") if width == 3 else tuple(f"c{n + 1}" for n in range(width))), ""
    row = first + 1 + next(n for n, line in enumerate(lines[first + 1 :], 1) if line.strip())
    head = TableHead(row, delimiter, list(names), list(lines[row:]), Fraction(rate), start_ns, stream)
    if stream == "acc":
        head.size = _G
        head.notes.append("its numbers are 1/64 g each: read in g")
    head.units = dict.fromkeys(names, unit) if unit else {}
    head.notes.append(f"rows {first + 1} and {row} are the start and the rate, as wristbands of Empatica write them")
    return head


def unix_ns(cell: str) -> int:
    """Unix ns of a number that is a Unix time in s, ms, µs or ns, or of a date with a time of day; 0 of what is neither."""
    if is_number(cell):
        units = (unit for unit in (1, 10**3, 10**6, 10**9) if OUR_DAYS_S[0] <= float(cell) / unit < OUR_DAYS_S[1])
        return next((round(Fraction(cell) * NS / unit) for unit in units), 0)
    try:
        return iso_ns(cell) if is_moment(cell) and ":" in cell and cell[:4].isdecimal() else 0
    except ValueError:
        return 0


def _head_behind_preface(lines: Sequence[str], begin: int, delimiter: str, path: Path | str) -> TableHead:
    """The head of a file that begins with something else."""
    rows = [(i, line) for i, line in enumerate(lines[:_HEAD_ROWS]) if i >= begin and line.strip()]
    table = [(i, line) for i, line in rows if not line.startswith("#")]
    delimiter = delimiter or _delimiter([line for _, line in table])
    cells = [cells_in(line, delimiter) for _, line in table]
    width = _width(cells)
    same = [len(row) == width for row in cells]
    starts = (n for n in range(len(cells)) if all(same[n : n + 1 + _TABLE_ROWS]))
    at = next((n for n in starts if not _is_preface(*cells[n : n + 3])), None)
    at = None if at is None else at + _later_names(cells[at:])
    if at is None or width < 1 or not any(map(count_values, cells)):
        raise SourceError("holds no table: a header row and rows of numbers are expected", path)
    if sum(2 * count_values(row) > len(row) > 1 for row in cells[:at]) > bool(_is_data(cells, 1)) + 1 or (
        at == 1 and _is_data(cells, 1) and not _is_data(cells, 0) and not any(map(_STATEMENT.match, cells[0]))
    ):
        at = 0  # what comes before are rows of numbers, too, or names, of which one is missing: the rows say so
    row = table[at][0]
    preface = [line for i, line in rows if i < row]
    above = [row_above for row_above in cells[:at] if len(row_above) == width]
    return _head_at(lines, row, delimiter, above, path, preface)


def _take_all_names(head: TableHead, above: Cells, path: Path | str) -> None:
    """Take the names of all rows that hold some; pass over the rows of units among them."""
    lines = [(n, line) for n, line in enumerate(head.below[: 4 * _NAME_ROWS]) if line.strip()]
    if any(line.count('"') % 2 for _, line in lines):
        return
    if head.delimiter == "," and 2 * sum(map(bool, (_NUMBER_AND_SIGN.search(line) for _, line in lines))) > len(lines):
        head.ending = ";"
    rows = [cells_in(line, head.delimiter) for _, line in lines]
    data = next((row for row in rows[: _NAME_ROWS + 1] if count_values(row)), None)
    if data is None:
        return
    width = len(head.names)
    texts = list(takewhile(lambda row: _are_words(row, data, width), rows))
    columns = [n for n, cell in enumerate(data[:width]) if is_value(cell)]
    named, units = [head.names, *texts], [""] * width
    for row in texts:
        if are_units(row, columns) or _is_whole(head.names, columns):
            named.remove(row)
            units = ["" if unit[:1].isdigit() else unit for unit in map(unit_in, row)]
            at = head.row + lines[texts.index(row)][0] + 1
            head.notes.append(f"row {at} holds units, not samples: passed over")
    if texts:
        head.pass_over(lines[len(texts) - 1][0] + 1)
    joined = next((list(row) for row in reversed(named) if _is_whole(row, columns)), [])
    head.names = joined or _joined([*above[-_NAME_ROWS:], *named] if len(named) == 1 else named, columns)
    head.names = [name[1:-1] if len(name) > 1 and name[0] == name[-1] == "'" else name for name in head.names]
    if _KEY.match(head.names[0]) or (len(named) > 1 and "." in head.names[0]):
        head.names[0] = _kind(head.samples(), 0) or "c1"
    if _are_counts(data, rows[len(texts) + 1 :], head.below):
        head.pass_over(next(n for n, line in enumerate(head.below) if line.strip()) + 1)
        head.notes.append(f"row {head.row} counts the samples: passed over")
    head.units |= {name: unit for name, unit in zip(head.names, units, strict=True) if name and unit}
    _take_same_times_once(head, path)
    _number_alike(head)


def _are_counts(row: Sequence[str], samples: Cells, lines: Sequence[str]) -> bool:
    """Whether a row says how many samples follow, as AcqKnowledge writes it below the names."""
    counts = {cell for cell in row if cell}
    count = counts.pop() if len(counts) == 1 else ""
    if row[0] or not samples or not is_value(samples[0][0]) or not count.isdecimal():
        return False
    follow = sum(map(bool, map(str.strip, lines))) - 1
    return 0.9 * follow <= int(count) and (int(count) <= 1.1 * follow or sum(map(len, lines)) > _WHOLE)


def _number_alike(head: TableHead) -> None:
    """Tell columns of one name apart by a number; none keeps the name, so that nobody takes one for the other."""
    alike = {name for name, count in Counter(head.names).items() if name and count > 1}
    names = [
        f"{name}.{head.names[: n + 1].count(name)}" if name in alike else name for n, name in enumerate(head.names)
    ]
    if alike and len({*names}) == len(names) - max(names.count("") - 1, 0):
        units = {new: head.units.get(old) or unit_of_name(old) for old, new in zip(head.names, names, strict=True)}
        head.units |= {name: unit for name, unit in units.items() if unit}
        shown = [f"`{name}`" for name in sorted(alike)]
        head.notes.append(
            f"{some(shown, 4)}: there several times, so numbered ({some([n for n in names if n not in head.names], 3)})"
        )
        head.names = names


def _take_same_times_once(head: TableHead, path: Path | str) -> None:
    """Of columns of times with one name, one for each sensor, leave the first, if all are the same."""
    again = {name for name, count in Counter(head.names).items() if name and count > 1}
    if not again:
        return
    rows = head.samples()
    times = [n for n, name in enumerate(head.names) if name in again and _kind(rows, n) in ("time", "timestamp")]
    if len(times) > 1:
        first = [row[times[0]] for row in rows if len(row) > times[-1]]
        if any([row[n] for row in rows if len(row) > times[-1]] != first for n in times):
            name = head.names[times[0]]
            raise SourceError(
                f"has several columns of times that differ (`{name}`, {len(times)} times): {EACH_A_TABLE}", path
            )
        for n in times[1:]:
            head.names[n] = ""
        head.names[times[0]] = "time_s" if known_unit(head.names[times[0]][-3:]) == "s" else "time"


def _is_whole(row: Sequence[str], columns: Sequence[int]) -> bool:
    """Whether a row has a name of its own for each column of numbers."""
    names = [row[n] for n in columns if n < len(row)]
    return len(names) == len(columns) and all(names) and len({*names}) == len(names)


def _are_words(row: Sequence[str], data: Sequence[str], width: int) -> bool:
    """Whether a row has words where samples have numbers."""
    columns = [n for n, cell in enumerate(data[: len(row)]) if is_value(cell)]
    if len(row) != width or not columns or any(map(is_value, row)):
        return False
    return 2 * sum(not is_missing(row[n]) for n in columns) > len(columns)


def _joined(rows: Cells, columns: Sequence[int]) -> list[str]:
    """Names of several rows as one, such as ``hip.x``: of rows above only those that tell more columns apart."""
    names = [*rows[-1]]
    for row in reversed(rows[:-1]):
        if _is_whole(names, columns):
            break
        parts, part = list[str](), ""
        for n, name in enumerate(names):
            cell = row[n] if n < len(row) else ""
            part = cell or (part if name else "")
            parts.append(f"{part}.{name}" if part and name else part or name)
        if len({parts[n] for n in columns} - {""}) > len({names[n] for n in columns} - {""}):
            names = parts
    return names


def _is_header(line: str, below: Sequence[str]) -> bool:
    """Whether the first line has as many columns as most that follow, or nothing below is a better table."""
    below = [text for text in below[:_HEAD_ROWS] if text.strip()]
    if any(text.count('"') % 2 for text in below):
        return True  # cells of several lines: their rows cannot be counted here
    delimiter = _delimiter(below or [line], line)
    row, rows = cells_in(line, delimiter), [cells_in(text, delimiter) for text in below]
    usual = _width(rows)
    if _is_preface(row, *rows[:2]) or _later_names([row, *rows]):
        return False
    if len(row) > usual > 1 and len(below) >= 2 * _TABLE_ROWS and any(map(_STATEMENT.match, row)):
        return False
    return len(below) < 2 * _TABLE_ROWS or usual <= len(row)


def _later_names(rows: Cells) -> int:
    """Where names begin that stand below a first row of them and its values, 0 where there are none: those say something of the device."""
    values = [count_values(row) for row in rows[: 2 * _NAME_ROWS]]
    words = [not count and _are_names(rows[n], rows[n + 1 : len(values)]) for n, count in enumerate(values)]
    # Either there are values between two rows of names, or the first row has some, but fewer than samples have.
    least, begin = (
        (0, next((n for n, count in enumerate(values) if count), 0)) if words[:1] == [True] else (values[0], 0)
    )
    later = [
        n
        for n in range(begin + 1, len(words) - 1)
        if words[n]
        and not words[n - 1]
        and max(values[n + 1 :]) > least
        and rows[n] != rows[0]
        # A class or a session goes on, a name does not.
        and not any(cell and cell == above for cell, above in zip(rows[n], rows[n - 1], strict=False))
    ]
    return later[0] if later and (begin or sum(map(bool, rows[0])) > least > 0) else 0


def _over_numbers(row: Sequence[str], below: Cells) -> list[str]:
    """The cells of a row above numbers."""
    columns = {n for cells in below for n, cell in enumerate(cells) if is_value(cell)}
    return [cell for n, cell in enumerate(row) if n in columns]


def _are_names(row: Sequence[str], below: Cells) -> bool:
    """Whether a row has several words, above numbers not always the same one."""
    over = _over_numbers(row, below)
    words = {cell for cell in over if not is_missing(cell)}
    return sum(not is_missing(cell) for cell in row) > 1 and 0 < min(2, len(over)) <= len(words)


def _is_preface(row: Sequence[str], names: Sequence[str] = (), data: Sequence[str] = ()) -> bool:
    """Whether a row says something of the device, and the names are in the next one: it holds a value, or fewer cells are filled."""
    if count_values(row) > len(row) / 2 or count_values(names) or all(map(is_missing, _over_numbers(names, [data]))):
        return False
    ends = [cell.endswith(":") for cell in row]
    about_device = len(row) > 1 and not all(ends) and (any(ends) or any(map(_MEASURE.fullmatch, row)))
    filled, names_filled, data_filled = (sum(map(bool, cells)) for cells in (row, names, data))
    return about_device or (1 < names_filled == len(names) and filled < names_filled and data_filled > filled)


def _delimiter(lines: Sequence[str], names: str = "") -> str:
    """What parts the columns of most lines: the sign that leaves most numbers, and little else; without numbers, most columns."""

    def worth(sign: str) -> tuple[float, int]:
        rows = [cells_in(line, sign) for line in lines[-30:]]
        values, width = float(np.median([count_values(row) for row in rows] or [0])), _width(rows)
        if sign == SPACES and 2 * values < width:
            return 0.0, 0
        return values**2 / max(width, 1), width if values else len(cells_in(names or "".join(lines[-1:]), sign))

    present = [sign for sign in _DELIMITERS if any(sign in line for line in (names, *lines[-30:]))]
    signs = {sign: worth(sign) for sign in present or _DELIMITERS}
    apart = len(cells_in(names, SPACES)) == _width([cells_in(line, SPACES) for line in lines[-30:]])
    others = [signs[sign][0] for sign in signs if sign in ";\t|"]
    if len(signs) > 1 and (max(others, default=0.0) >= 1 or (not apart and any(sign in names for sign in ",;\t|"))):
        signs.pop(SPACES, None)  # which may part thousands, or stand before units
    return max(signs, key=lambda sign: signs[sign])


def _width(rows: Cells) -> int:
    """How many columns most of the rows have."""
    counts = Counter(len(row) for row in rows[-100:])
    return counts.most_common(1)[0][0] if counts else 0


def _is_data(cells: Cells, at: int) -> bool:
    """Whether a row holds as many numbers as the next one."""
    if at >= len(cells):
        return False
    count = count_values(cells[at])
    return count > 0 and count >= count_values(cells[min(at + 1, len(cells) - 1)])


def _is_sample(row: Sequence[str], below: Cells) -> bool:
    """Whether a first row has numbers wherever the next ones have: it is a sample, and nothing has a name. Numbers may be names, too,
    from 0, as pandas makes them up, or from 1; those of samples go on below."""
    columns = [n for n in range(len(row)) if all(n < len(cells) and is_value(cells[n]) for cells in below)]
    if not columns or not all(is_value(row[n]) for n in columns):
        return False
    first = columns[0] + (row[columns[0]] != str(columns[0]))
    goes_on = [cells[columns[0]] for cells in below] == [str(first + n) for n in range(1, len(below) + 1)]
    numbered = [row[n] for n in columns] == [str(n - columns[0] + first) for n in columns]
    are_names = len(columns) > 1 and numbered and not goes_on and len(below) >= (first - columns[0]) * _TABLE_ROWS
    return not are_names


def _make_up_names(head: TableHead, rows: Cells, known: Sequence[str] = ()) -> None:
    """Give names to columns that have none: those that are known, or by what they hold."""
    names = [*known, *[""] * (len(rows[0]) - len(known))]
    counting = True  # the first column that is not one and the same
    for n in range(len(names)):
        cells = {row[n] for row in rows if n < len(row)}
        kind = _kind(rows, n, counting)
        counting = counting and not kind and len(cells) < 2
        # What counts, but some numbers twice, tells nothing.
        no_column = cells <= {""} or (kind == "index" and len(cells) < len(rows))
        names[n] = names[n] or ("" if no_column else kind if kind and kind not in names else f"c{n + 1}")
    head.names = names
    if not known:
        head.notes.append(f"no column names: they are {some([name for name in names if name], 8)}")


def _kind(rows: Cells, column: int, counting: bool = True) -> str:
    """What a column without a name holds, so that it gets a name: times or, if it may count, what goes up evenly."""
    cells = [row[column].replace(",", ".") for row in rows if column < len(row) and row[column]]
    if cells and all(map(is_moment, cells)):
        return "timestamp"
    if not cells or not all(map(is_number, cells)):
        return ""
    steps = np.diff([float(cell) for cell in cells])
    if unix_ns(cells[0]) and (steps >= 0).all():
        return "time"
    if len(steps) < _TABLE_ROWS:
        return ""
    middle = float(np.median(steps))
    if counting and middle == 1 and (steps >= 0).all() and np.mean(steps == 1) >= _COUNTED:
        return "index"
    return "time" if counting and middle > 0 and np.mean(np.abs(steps - middle) < 0.5 * middle) >= _EVEN else ""
