"""Raw running recordings. In: ``SENSOR001/…csv``: samples of one or two foot sensors at 500 Hz. Out: one RawFoot for
each foot and trial in a file: values as they stand, times in ns, rows as an editor counts them.

A file holds one sensor (columns ``ax … az, gx … gz``, and ``foot`` saying left or right where there are two) or both
(``ax_left … gz_right`` or ``left_ax … right_gz``; ``l``/``r`` and ``1``/``2`` are understood, 1 is left), which then share
rows and clock. What no column says is taken from the names: folder ``SENSOR001`` is subject 1, ``SENSOR001_2.5_3.csv`` its
third trial at 2.5 m/s on a treadmill, ``SENSOR001_run_2.csv`` its second over ground; without a last number, the first.
Over ground the speed may be unknown.

An overview table is a CSV beside the raw folders with ``subject_id`` and ``seconds_10k`` or ``score_10k`` (or both).
"""

from __future__ import annotations

import contextlib
import csv
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kymo.streams.errors import SourceError
from kymo.streams.labels.labels import canonical
from kymo.streams.readers.columns import no_such_name
from kymo.streams.readers.times import TIME_COLUMNS, TimeColumn
from kymo.streams.words import brief, is_number

CHANNELS = ("ax", "ay", "az", "gx", "gy", "gz")
_FOLDER = re.compile(r"SENSOR(\w+)", re.IGNORECASE)
_NAME = re.compile(r"SENSOR([^\W_]+)_(run|\d+(?:\.\d+)?)(?:_(\d+))?", re.IGNORECASE)
_SIDES = (("_left", "_right"), ("_l", "_r"), ("1", "2"), ("_1", "_2"))
_SURFACE_COLUMNS = ("tread or overground", "tread_or_overground", "surface")
_SURFACES = {
    **dict.fromkeys(("tread", "treadmill", "1"), "treadmill"),
    **dict.fromkeys(("overground", "over", "0"), "overground"),
}
_FEET = {"left": "left", "l": "left", "right": "right", "r": "right"}
_TEXTS = ("subject_id", "trial_id", "speed")
RESULTS = ("seconds_10k", "score_10k")
_EMPTY = ("", "na", "n/a", "nan", "null", "none")
_TRUE = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
EPOCH_NS = 10**17  # later than this, in 1973, a time is one of the calendar and not since the sensor's start

Int = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, order=True)
class Trial:
    """What names a recording: who, which trial, m/s as text (empty: not known), ``treadmill`` or ``overground``."""

    subject: str
    trial: str
    speed: str
    surface: str

    @property
    def session(self) -> str:
        """Name of its session, and of its files."""
        parts = (self.subject, self.trial, self.speed, self.surface)
        return "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts if part)


@dataclass(slots=True, eq=False)
class RawFoot:
    """One foot's samples of one trial, as a file has them."""

    path: str  # the file, from the raw folder on
    foot: str  # ``left``, ``right``, or empty where nothing says which
    trial: Trial  # whose and which
    rows: Int  # ``(n,)``, counted from 1; the header is row 1
    values: Floats  # ``(n, 6)`` in the order of :data:`CHANNELS`; NaN where a cell is empty
    usable: NDArray[np.bool_] | None  # ``(n,)``, what ``usabledata`` says; None without this column
    times_ns: Int | None  # ``(n,)``; None without a time column
    # why this foot's times are the other foot's, too: ``rows`` (one file), ``calendar`` (absolute times), or empty
    shared: str
    results: dict[str, str]  # ``seconds_10k`` and ``score_10k``, where they are there
    notes: list[str] = field(default_factory=list)  # what was guessed


def raw_files(folder: Path) -> list[Path]:
    """CSV files of the ``SENSOR…`` folders, sorted."""
    if not folder.is_dir():
        raise SourceError("no such folder; expected one with folders SENSOR001, SENSOR002, … of CSV files", folder)
    for root in (folder, folder / "Raw"):
        sensors = sorted(p for p in root.glob("*") if p.is_dir() and _FOLDER.fullmatch(p.name))
        files = [file for sensor in sensors for file in sorted(sensor.rglob("*")) if file.suffix.lower() == ".csv"]
        if files:
            return files
    raise SourceError("holds no folder SENSOR001, SENSOR002, … with CSV files", folder)


def read_overview(folder: Path, named: Path | None = None) -> tuple[Path | None, dict[str, dict[str, str]]]:
    """The overview table that is named, or lies beside or above the raw folders; by subject, the 10 km results."""
    near = (path for place in (folder, folder / "Raw", folder.parent) for path in sorted(place.glob("*.csv")))
    path = named or next(filter(_is_overview, near), None)
    if path is None:
        return None, {}
    table = _Table(path)
    if not any(column in table for column in RESULTS) or _TEXTS[0] not in table:
        raise SourceError("is no overview; expected columns subject_id and seconds_10k or score_10k", path)
    results: dict[str, dict[str, str]] = {}
    for place, subject in enumerate(table[_TEXTS[0]]):
        results.setdefault(canonical(subject), {}).update(_results(table, place))
    return path, results


def _is_overview(path: Path) -> bool:
    """Whether a file's first line has the columns of an overview, and none of samples."""
    with contextlib.suppress(OSError), path.open(encoding="utf-8-sig", errors="replace") as text:
        names = {cell.strip().lower() for cell in re.split("[,;\t]", text.readline(65_536))}
        return _TEXTS[0] in names and bool(names & {*RESULTS}) and not any("ax" in name for name in names)
    return False


def _results(table: _Table, place: int) -> dict[str, str]:
    """10 km results of a row, as far as they are known; a time such as 45:30 in seconds."""
    results: dict[str, str] = {}
    for column in RESULTS:
        text = table[column][place].strip() if column in table else ""
        if text.lower() in _EMPTY:
            continue
        try:
            time_parts = [float(part) for part in text.split(":")]
        except ValueError:
            time_parts = []
        if not 0 < len(time_parts) < 4 or not 0 < time_parts[0] < math.inf:
            raise table.wrong(column, text, "a number, or a time such as 45:30", place)
        seconds = sum(number * 60**i for i, number in enumerate(reversed(time_parts)))
        results[column] = text if len(time_parts) == 1 else f"{seconds:g}"
    return results


def read_raw(path: Path, name: str) -> list[RawFoot]:
    """Feet and trials of a file."""
    table = _Table(path)
    feet = _feet(table)
    notes: list[str] = []
    keys = _keys(table, notes)
    usable = _usable(table)
    if usable is None:
        notes.append("no column `usabledata`: the steady part is found from the signal")
    times = _times(table)
    if times is None:
        notes.append("no time column: rows are taken as evenly spaced, lost rows cannot be seen")
    values = {foot: np.column_stack([_numbers(table, column) for column in columns]) for foot, columns in feet.items()}
    members: dict[tuple[str, ...], list[int]] = {}
    for i, key in enumerate(keys):
        members.setdefault(key, []).append(i)
    calendar = times is not None and times[0] > EPOCH_NS
    shared = "rows" if len(values) > 1 else "calendar" if calendar else ""
    out: list[RawFoot] = []
    for key, part in ((key, np.array(numbers)) for key, numbers in members.items()):
        rows, times_ns = table.rows[part], None if times is None else times[part]
        trial, results = _trial(key, int(rows[0]), path), _results(table, part[0])
        marks = None if usable is None else usable[part]
        for foot, data in values.items():
            side = foot or _foot(table, part)
            out.append(RawFoot(name, side, trial, rows, data[part], marks, times_ns, shared, results, notes))
    return out


def first_row(path: Path) -> tuple[tuple[str, ...], bool]:
    """What names a file's first trial, to bring the two feet of one together, and whether it says which foot is which.

    It looks at the first row alone; what a file really holds is found when it is read.
    """
    try:
        table = _Table(path, 1)
        (key,) = _keys(table, [])
        return tuple(map(canonical, key)), "" not in _feet(table)
    except SourceError:
        return (*(text or "" for text in named_trial(path)), str(path)), False


def _keys(table: _Table, notes: list[str]) -> Iterator[tuple[str, ...]]:
    """Subject, trial, speed and surface of each row; from the file's name where there is no such column."""
    surface = next((column for column in _SURFACE_COLUMNS if column in table), _SURFACE_COLUMNS[0])
    columns: list[Sequence[str]] = []
    for column, text in zip((*_TEXTS, surface), named_trial(table.path), strict=True):
        if column in table or text is None:
            columns.append(table[column])
        else:
            columns.append([text] * len(table.rows))
            notes.append(f"no column `{column}`: {text or 'not known'}, by the names of file and folder")
    return zip(*columns, strict=True)


def named_trial(path: Path) -> tuple[str | None, ...]:
    """Subject, trial, speed and surface as the names of a file and its folders say them; None where they do not.

    Examples
    --------
    >>> named_trial(Path("SENSOR001/SENSOR001_2.5_3.csv")), named_trial(Path("SENSOR012/SENSOR012_run.csv"))
    (('1', '3', '2.5', 'treadmill'), ('12', '1', '', 'overground'))
    """
    if match := _NAME.fullmatch(path.stem.removesuffix("_x")):
        runs = match[2].lower() == "run"
        speed, surface = ("", "overground") if runs else (canonical(match[2]), "treadmill")
        return canonical(match[1]), canonical(match[3] or "1"), speed, surface
    folder = next((match for part in path.parent.parts[::-1] if (match := _FOLDER.fullmatch(part))), None)
    return canonical(folder[1]) if folder else None, None, None, None


class _Table:
    """A file's cells by column; columns are found whatever their case."""

    def __init__(self, path: Path, most: int | None = None) -> None:
        self.path = path
        self.names, cells, self.rows = _cells(path, most)  # rows are numbered as an editor does
        self._columns = {name.lower(): [row[i] for row in cells] for i, name in enumerate(self.names)}

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def __getitem__(self, name: str) -> list[str]:
        if name not in self._columns:
            raise no_such_name(name, self.names, self.path)
        return self._columns[name]

    def wrong(self, name: str, text: str, expected: str, place: int) -> SourceError:
        column = next(column for column in self.names if column.lower() == name)
        what = f"column `{column}` has {brief(text)!r}, expected {expected}"
        return SourceError(what, self.path, int(self.rows[place]))


def _cells(path: Path, most: int | None) -> tuple[list[str], list[list[str]], Int]:
    """Column names, rows of cells (at most so many), and the number of each row."""
    cells: list[list[str]] = []
    numbers: list[int] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            delimiter = max(",;\t", key=text.readline().count)
            text.seek(0)
            reader = csv.reader(text, delimiter=delimiter)
            names = [" ".join(cell.split()) for cell in next(reader, ())]
            for row in reader:
                if any(cell.strip() for cell in row):
                    if len(row) != len(names):
                        wrong = f"{len(row)} columns where the header has {len(names)}"
                        raise SourceError(wrong, path, reader.line_num)
                    cells.append(row)
                    numbers.append(reader.line_num)
                    if len(cells) == most:
                        break
    except UnicodeDecodeError:
        raise SourceError("is no UTF-8 text; save it as CSV in UTF-8", path) from None
    except OSError as error:
        raise SourceError(f"cannot be read ({error.strerror or error})", path) from None
    except csv.Error as error:
        raise SourceError(f"is no CSV ({error})", path, reader.line_num) from None
    if not any(names) and not cells:
        raise SourceError("is empty; expected a header row and rows of numbers", path)
    if not cells:
        raise SourceError("has a header but no rows", path)
    return names, cells, np.array(numbers, np.int64)


def _feet(table: _Table) -> dict[str, list[str]]:
    """Columns of each foot; one with the name "" where the columns do not say which."""
    for sides in _SIDES:
        for form in ("{channel}{side}", "{plain}_{channel}"):
            feet = {
                foot: [form.format(channel=channel, side=side, plain=side.strip("_")) for channel in CHANNELS]
                for foot, side in zip(("left", "right"), sides, strict=True)
            }
            if there := {foot: names for foot, names in feet.items() if any(name in table for name in names)}:
                return there
    return {"": list(CHANNELS)}


def _foot(table: _Table, part: Int) -> str:
    if "foot" not in table:
        return next((foot for foot in ("left", "right") if foot in table.path.stem.lower()), "")
    texts = {table["foot"][i].strip().lower() for i in part}
    text = brief(" and ".join(sorted(texts)))
    if text not in _FEET:
        raise table.wrong("foot", text, "left or right", part[0])
    return _FEET[text]


def _trial(key: tuple[str, ...], row: int, path: Path) -> Trial:
    subject, trial, speed, surface = (canonical(part) for part in key)
    for column, text in (("subject_id", subject), ("trial_id", trial)):
        if not text:
            raise SourceError(f"column `{column}` is empty", path, row)
    if surface.lower() not in _SURFACES:
        raise SourceError(f"surface {brief(surface)!r}, expected tread or overground, 1 or 0", path, row)
    on = _SURFACES[surface.lower()]
    if speed.lower() in _EMPTY and on == "overground":
        return Trial(subject, trial, "", on)
    if not is_number(speed) or not 0 < float(speed) < 20:
        raise SourceError(f"column `speed` has {brief(speed)!r}, expected m/s, such as 2.5", path, row)
    return Trial(subject, trial, speed, on)


def _numbers(table: _Table, column: str) -> Floats:
    texts = table[column]
    with contextlib.suppress(ValueError):
        return np.array(texts, np.float64)
    numbers = np.empty(len(texts))
    for i, text in enumerate(texts):
        try:
            numbers[i] = np.nan if text.strip().lower() in _EMPTY else float(text)
        except ValueError:
            raise table.wrong(column, text, "a number", i) from None
    return numbers


def _usable(table: _Table) -> NDArray[np.bool_] | None:
    if "usabledata" not in table:
        return None
    texts = table["usabledata"]
    flags = {text: _TRUE.get(canonical(text).lower()) for text in set(texts)}
    for text, flag in flags.items():
        if flag is None:
            raise table.wrong("usabledata", text, "1 or 0", texts.index(text))
    return np.array([flags[text] for text in texts], bool)


def _times(table: _Table) -> Int | None:
    """Times in ns; those of the calendar are the same for both feet."""
    column = next((name for name in TIME_COLUMNS if name in table), None)
    if column is None:
        return None
    time_column = TimeColumn(column, table.path)
    return time_column.going_on(time_column.parse(table[column], table.rows), table.rows)[0]
