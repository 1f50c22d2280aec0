"""Time columns. In: texts or numbers of a column `t` (s), `t_ns` or `timestamp` (dates and times of day, or s, ms, µs, ns, or a table
program's days), or of another name that says it. Out: int64, ns.

The unit of a `timestamp` is decided once for a file, and noted: by its size where that is a time of our days, else by its steps, where
only one unit makes a rate of them that a sensor has. A clock that begins anew when it is full, at midnight or with summer time is read as
going on, where the step back is as long as that, and this is noted, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from kymo.streams.errors import SourceError
from kymo.streams.readers.clocks import Clock
from kymo.streams.readers.moments import Moments, is_date, is_moment
from kymo.streams.words import DAY, HOUR, MINUTE, NS, OUR_DAYS_S, brief, is_number

Int = NDArray[np.int64]
Cells = Callable[[str], Sequence[str]]  # first ones of a column
#: Names of time columns, best first.
TIME_COLUMNS = ("t_ns", "t", "timestamp")
#: Other names of them, in any case of letters, without their unit, best first; a column of these must also run as times do.
_TIME_NAMES = [
    *("t", "timestamp", "time", "datetime", "elapsed", "elapsed time", "ts", "date", "utc", "epoch", "unix", "uptime"),
    *("tow", "datum", "zeit", "uhrzeit", "zeitstempel", "temps", "heure", "fecha", "hora", "tiempo", "index level 0"),
]
_TEMPERATURES = ("t", "temps")  # as they may be as well
_TIME_WORDS = {"time", "timestamp", "timestamps", "datetime", "unixtime", "stamp"}
#: Parts of times in columns of their own, by the last word of their names.
_CLOCK_PARTS = {part: part for part in ("year", "month", "day", "hour", "minute", "second")}
_CLOCK_PARTS |= {"hours": "hour", "minutes": "minute", "min": "minute", "seconds": "second", "sec": "second"}
_DATE_WORDS = {"date", "datum", "day", "fecha"}
# Words of names of columns that number the rows; pandas calls its index unnamed.
_COUNTERS = {
    *["frame", "frames", "index", "counter", "packet", "sample", "samples", "row", "seq", "sequence", "#", "unnamed"]
}
_FIRST_ROWS = 2_000
_REGULAR_SHARE, _FORWARD_SHARE = 0.9, 0.98  # so many of the steps are near the middle one; so many do not go back
_RELATIVE_NS = 10**17  # times before 1973 count from some beginning
_ODD_SHARE = 0.01  # so many times that go back are more than a few late rows
_FRACTION = re.compile(r"[.](\d+)(?!.*[.]\d)")
_COMPACT = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])([0-2]\d|3[01])([01]\d|2[0-3])[0-5]\d[0-5]\d(\d{3})?([.,]\d+)?")
_US, _MS = 10**3, 10**6
_TENTH_MS = 10**5
_TEXT = 0  # texts, no number of any unit
#: How units stand in names, such as `Time (s)` and `time_ms`, in ns.
_UNITS_BY_NAME = {
    name: unit
    for unit, names in {
        NS: "s sec secs second seconds",
        _MS: "ms msec msecs milli millis millisec millisecond milliseconds",
        _US: "us \u00b5s \u03bcs usec usecs micros microsec microsecond microseconds",
        1: "ns nsec nsecs nano nanos nanosec nanosecs nanosecond nanoseconds",
        MINUTE: "min mins minute minutes",
        HOUR: "h hr hrs hour hours",
    }.items()
    for name in names.split()
}
_UNIT_IN_BRACKETS = re.compile(r"(.+?)\s*[(\[]\s*(\w+)\s*[)\]]")
_UNIT_FIRST = re.compile(r"([^\W_]+)[ _.](.+)")
_UNIT_LAST = re.compile(r"(.+?)[ _.]([^\W_]+)")
_DECIMAL_UNITS = {NS: "s", _MS: "ms", _US: "µs", 1: "ns"}
_UNIT_NAMES = _DECIMAL_UNITS | {
    MINUTE: "minutes",
    HOUR: "hours",
    DAY: "days as table programs count them",
    _TENTH_MS: "ten thousandths of a second",
}
_SLOWEST_S = 300
#: Between which steps nothing but that unit is likely; what counts whole units is no clock of seconds.
_LIKELY_STEPS = {NS: (4e-6, 1.0), _MS: (2, 500), _US: (2_000, 200_000), 1: (2_000_000, 500_000_000)}
_FINE_CLOCK = {"sample", "time", "fine"}  # of Xsens: µs of one device, ten thousandths of a second of another
_CHIP_CLOCK_SIZE = 2**32  # where a chip's clock begins anew
#: When clocks begin anew that are no chip's: every minute, hour, 12 hours, day, week; µs and ms of 32 bits, as seconds.
_TURNS = (MINUTE, HOUR, 12 * HOUR, DAY, 7 * DAY, _CHIP_CLOCK_SIZE * _US, _CHIP_CLOCK_SIZE * _MS)
_WIDE_TURNS = (DAY, 7 * DAY)  # or with a pause in between
_LARGEST_COUNT = 2**53  # counters are whole numbers below that
_TABLE_DAYS, _DAYS_TO_1970, _DAY_STEP = (20_000, 80_000), 25_569, 2e-4
_MATLAB_DAYS, _MATLAB_TO_1970 = (730_000, 790_000), 719_529
_RATE_MATCH = 0.1  # steps that are so near to those of the recipe's rate say the unit
_LARGEST, _TENTH_MS_STEP = 1e17, 1_000
_LIMIT_NS = 2**62


class TimeCandidate(NamedTuple):
    """A column that runs as time does."""

    name: str
    doubt: str  # why it is not read as times although it looks like that, empty where it is


def time_columns(
    names: Sequence[str],
    numeric: Collection[str],
    cells: Cells,
    rate: Fraction | None = None,
    asked: bool = True,
) -> list[TimeCandidate]:
    """Columns of times that are not named as :data:`TIME_COLUMNS` are, such as `Time`; the best one first. Dates with times of day
    are times whatever their column is called."""
    ranked: list[tuple[bool, bool, int, TimeCandidate]] = []
    for name in names:
        base, unit = _spelled(name)
        named = base in _TIME_NAMES or not _TIME_WORDS.isdisjoint(_words(name))
        if name in numeric and not named and base != "index":
            continue
        texts = [text.strip() for text in cells(name)[:_FIRST_ROWS]]
        fractions = base == "index" and any("." in text for text in texts)  # else it counts rows
        if not named and not fractions and not (texts and is_moment(texts[0])):
            continue
        times, doubt = _first_times(name, texts, rate, asked)
        # A column named elapsed without a unit is as likely a measurement.
        if not _run_as_time(times, base, texts) or (doubt and unit is None and base.startswith("elapsed")):
            continue
        # The time of day is worth more than the time since some beginning.
        rank = 2 * len(_TIME_NAMES) + (not named)
        if base in _TIME_NAMES:
            rank = _TIME_NAMES.index(base) + len(_TIME_NAMES) * (unit is None)
        ranked.append((bool(doubt), bool(times[0] < _RELATIVE_NS), rank, TimeCandidate(name, doubt)))
    best = [candidate for *_, candidate in sorted(ranked, key=lambda row: row[:3])]
    others = len(best) > 1 or not {*TIME_COLUMNS}.isdisjoint(names)
    return [candidate for candidate in best if not others or _spelled(candidate.name) != ("temps", None)]


def time_parts(time: str | None, names: Sequence[str], cells: Cells) -> dict[str, str]:
    """Columns that make one time, by what they are of it: `date`, `time`, `year` to `second`, and `sub`, what is below a second. Empty
    where the column of times stands alone."""
    last = {_last_word(name): name for name in reversed(names)}
    parts = {_CLOCK_PARTS[word]: name for word, name in last.items() if word in _CLOCK_PARTS}
    below = [name for word, name in last.items() if 0 < _UNITS_BY_NAME.get(word, NS) < NS]
    if not {"hour", "minute", "second"} <= parts.keys() or time not in (None, *parts.values(), *below):
        parts = {}
        if time is None:
            return {}
        parts["time"] = time
        texts = [text for text in cells(time)[:_FIRST_ROWS] if text.strip()]
        if texts and all(is_moment(text) and is_moment(f"1970-01-01 {text.strip()}") for text in texts):
            dates = [name for name in names if name != time and not _DATE_WORDS.isdisjoint(_words(name))]
            parts |= dict([("date", name) for name in dates if all(map(is_date, cells(name)[:_FIRST_ROWS]))][:1])
    elif not {"year", "month", "day"} <= parts.keys():
        parts = {part: parts[part] for part in ("hour", "minute", "second")}
    below = [name for name in below if name not in parts.values()]
    parts |= dict([("sub", name) for name in below if _is_below_seconds(name, parts, cells)][:1])
    return parts if len(parts) > 1 else {}


def _is_below_seconds(name: str, parts: Mapping[str, str], cells: Cells) -> bool:
    """Whether a column holds what is below a second, and begins anew with each."""
    columns = {column: cells(column) for column in parts.values()}
    try:
        numbers = np.array([int(text) for text in cells(name)])
        seconds = TimeColumn(next(iter(parts.values())), "").parse(composed(parts, columns), np.arange(len(numbers)))
    except (ValueError, SourceError):
        return False
    limit = NS // _UNITS_BY_NAME[_last_word(name)]
    anew, steps = np.diff(seconds) > 0, np.diff(numbers)
    whole = not (seconds % NS).any() and (numbers >= 0).all() and (numbers < limit).all()
    if not whole or not anew.any():
        return False
    return bool(np.mean(steps[anew] <= 0) > _REGULAR_SHARE and np.mean(steps[~anew] >= 0) > _REGULAR_SHARE)


def composed(parts: Mapping[str, str], columns: Mapping[str, Sequence[str]]) -> list[str]:
    """Texts of times whose parts stand in columns of their own; as they stand where one is no number."""
    digits = len(str(NS // _UNITS_BY_NAME[_last_word(parts["sub"])])) - 1 if "sub" in parts else 0
    cells = zip(*(columns[name] for name in parts.values()), strict=True)
    return [_composed(dict(zip(parts, texts, strict=True)), digits) for texts in cells]


def _composed(texts: dict[str, str], digits: int) -> str:
    try:
        if "hour" in texts:
            second, _, fraction = texts["second"].strip().partition(".")
            hour, minute, below = int(float(texts["hour"])), int(float(texts["minute"])), fraction.rstrip("0")
            texts["time"] = f"{hour}:{minute:02d}:{int(second):02d}" + (f".{below}" if below else "")
            if "year" in texts:
                texts["date"] = "-".join(str(int(float(texts[part]))) for part in ("year", "month", "day"))
        text = f"{texts['date'].strip()} {texts['time'].strip()}" if "date" in texts else texts["time"].strip()
        if "sub" in texts:
            text = f"{text.removesuffix('.0')}.{int(float(texts['sub'])):0{digits}d}"
    except ValueError:
        return " ".join(texts.values())
    return text


def _first_times(name: str, texts: Sequence[str], rate: Fraction | None, asked: bool) -> tuple[Int, str]:
    """First times of a column, and why its unit is in doubt, where it is: then as if it were ms; empty where they are no times."""
    try:
        column, rows = TimeColumn(name, "", rate, asked=asked), np.arange(len(texts))
        return column.going_on(column.parse(texts, rows), rows)[0], ""
    except _UnitError as error:
        if all(map(is_number, texts)):
            numbers = np.array([float(text) for text in texts])
            return np.rint(1000 * (numbers - numbers[0])).astype(np.int64), str(error)
    except SourceError:
        pass
    return np.empty(0, np.int64), ""


def _run_as_time(times: Int, base: str, texts: Sequence[str]) -> bool:
    steps = np.diff(times)
    if not len(steps) or (np.ptp(times) < NS and (steps < 0).any()):  # what is below a second, of another column
        return False
    middle, is_text, days = float(np.median(steps)), is_moment(texts[0]), is_date(texts[0])
    if base in _TEMPERATURES and not is_text:
        return bool(middle > 0 and np.mean(np.abs(steps - middle) < 0.5 * middle) >= _REGULAR_SHARE)
    # Of other names than those of times, it may be a trial's start, or its number; dates alone are days.
    certain = (base in _TIME_NAMES or times[0] > _RELATIVE_NS) and not days
    if times[0] == times[-1] and not (steps.any() or (certain and (is_text or times[0] > _RELATIVE_NS))):
        return False  # else a second of a fast sensor
    onward = max(np.mean(steps >= 0), np.mean(steps <= 0) if certain else 0.0)  # the newest may come first
    return bool((certain or middle > 0) and onward >= _FORWARD_SHARE)


def counter_columns(names: Sequence[str], cells: Cells) -> list[str]:
    """Columns that number the rows, such as `frame`: whole numbers that rise, by their name no measurement."""
    columns = []
    for name in names:
        if _COUNTERS.isdisjoint(_words(name)):
            continue
        texts = cells(name)[:_FIRST_ROWS]
        numbers = np.array([float(text) for text in texts if is_number(text)], np.float64)
        numbers = numbers[np.isfinite(numbers)]
        steps, whole = np.diff(numbers), bool((numbers == np.rint(numbers)).all())
        few_odd = len(steps) and len(numbers) >= _FORWARD_SHARE * len(texts)
        if few_odd and whole and np.mean(steps >= 1) >= _FORWARD_SHARE and np.mean(steps == np.median(steps)) > 0.5:
            columns.append(name)
    return columns


def _words(name: str) -> set[str]:
    """The words of a name: ``SampleTimeFine`` and ``sample_time_fine`` have three."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|#", name)}


def _last_word(name: str) -> str:
    """The last word of a name, which may be its unit."""
    words: list[str] = re.findall(r"[a-z\u00b5]+", name.lower())
    return words[-1] if words else ""


def _spelled(name: str) -> tuple[str, int | None]:
    """A column's name without its unit, and that in ns; None where it names none."""
    plain = name.strip().lower()
    # `millis` and `sec` say it all; `min` is as likely the least, `hr` a pulse.
    if len(plain) > 1 and _UNITS_BY_NAME.get(plain, MINUTE) < MINUTE:
        return "time", _UNITS_BY_NAME[plain]
    for form in (_UNIT_IN_BRACKETS, _UNIT_LAST):
        if (match := form.fullmatch(plain)) and match[2] in _UNITS_BY_NAME:
            return match[1].replace("_", " "), _UNITS_BY_NAME[match[2]]
    if (match := _UNIT_FIRST.fullmatch(plain)) and match[1] in _UNITS_BY_NAME and len(match[1]) > 2:
        return match[2].replace("_", " "), _UNITS_BY_NAME[match[1]]
    return plain.strip("_").replace("_", " "), None


class _UnitError(SourceError):
    """Times whose unit nothing tells."""


def _unit(middle: float, step: float, rate: Fraction | None, fine: bool, asked: bool) -> tuple[int | None, str]:
    """The unit of numbers in ns, and how it was found; None in doubt."""
    if rate and step:
        for unit in (*_DECIMAL_UNITS, *([_TENTH_MS] if fine else [])):
            if abs(step * float(rate) * unit / NS - 1) < _RATE_MATCH:
                return unit, "by its steps"
    for unit in _DECIMAL_UNITS:
        second = NS / unit
        slow = unit == NS and (step % 3600 == 0 or step in (600, 900, 1200, 1800))
        if OUR_DAYS_S[0] <= middle / second < OUR_DAYS_S[1] and (step <= _SLOWEST_S * second or slow):
            return unit, "since 1970, by the size of its first value"
    if any(low <= middle < high for low, high in (_TABLE_DAYS, _MATLAB_DAYS)) and 0 < step < _DAY_STEP:
        return DAY, "by the size of its first value"
    # No unit makes that rate, which another sensor may have, or what is by its steps a count; or it counts since some other year.
    if (rate and (asked or step == 1)) or abs(middle) >= _LARGEST:
        return None, ""
    if fine and 1 < step <= _TENTH_MS_STEP:
        return _TENTH_MS, "by its steps"
    likely = [unit for unit, (low, high) in _LIKELY_STEPS.items() if low < step <= high or step == low > 0]
    return (likely[0] if likely else None), "by its steps"


class TimeColumn:
    """Reads one time column of one file."""

    def __init__(
        self, column: str, path: Path | str, rate: Fraction | None = None, *, counts: bool = False, asked: bool = True
    ) -> None:
        self.column, self.path, self._rate, self._counts = column, path, rate, counts
        self._asked = asked  # whether the recipe says that rate
        self._notes, self._moments = list[str](), Moments(column)
        self._digits: int | None = None  # that a fraction lacks in front, as where ms are written as numbers
        #: In ns; `_TEXT` for texts, None before it is decided.
        self._unit: int | None = None
        self._named = NS if column.lower() == "t" else _spelled(column)[1]

    @property
    def notes(self) -> list[str]:
        return [*self._notes, *self._moments.notes]

    def say_unit(self, unit: str) -> None:
        """Take a unit that stands in the cells, such as `ms`."""
        self._named = _UNITS_BY_NAME.get(unit.lower(), self._named)

    def parse(self, texts: Sequence[str], row_numbers: Int) -> Int:
        """Times of texts as they stand, exact to the ns; of a counter its numbers, -1 where there is none."""
        if not len(texts):
            return np.empty(0, np.int64)
        if self._counts:
            values = np.array([float(text) if is_number(text) else np.nan for text in texts], np.float64)
            return np.where(np.abs(values) < _LARGEST_COUNT, values, -1).astype(np.int64)
        if self._unit is None:
            self._decide(texts, int(row_numbers[0]))
        times = self._read(texts, row_numbers)
        if self._digits is None:
            self._digits = _lacking_digits(texts, times)
            if self._digits:
                self._notes.append(
                    f"fractions of `{self.column}` lack zeros in front: .5 is read as .{5:0{self._digits}d}"
                )
                times = self._read(texts, row_numbers)
        return times

    def _read(self, texts: Sequence[str], row_numbers: Int) -> Int:
        if self._digits:
            texts = [_FRACTION.sub(lambda match: f".{match[1]:0>{self._digits}}", text, count=1) for text in texts]
        if self._unit == NS and (quick := _small_seconds(texts)) is not None:
            return quick
        try:
            return self._moments.parse(texts) if self._unit == _TEXT else _scaled(texts, self._unit or 1)
        except ValueError as error:
            raise self._error(texts[error.args[0]], int(row_numbers[error.args[0]])) from None

    def numbers(self, values: NDArray[np.generic], row_numbers: Int) -> Int:
        """Times of a numeric column (Parquet): whole numbers exactly, float64 as exactly as it holds them."""
        if self._unit is None and len(values):
            self._decide([str(value) for value in values[:_FIRST_ROWS]], int(row_numbers[0]))
        if self._unit in (DAY, _TEXT) or self._counts:
            return self.parse([str(value) for value in values], row_numbers)
        scale, counts = self._unit or 1, cast(Int, values)
        if values.dtype.kind not in "iu":
            scale, counts = 1, np.rint(values.astype(np.float64) * scale)
        bad = np.flatnonzero(~((counts <= _LIMIT_NS // scale) & (counts >= -_LIMIT_NS // scale)))
        if len(bad):
            raise self._error(str(values[bad[0]]), int(row_numbers[bad[0]]))
        times: Int = counts.astype(np.int64) * scale
        return times

    def going_on(self, times: Int, row_numbers: Int) -> tuple[Int, list[str]]:
        """Times of one recording, whose clock may begin anew, be set, or be wrong once, as if it went on; and notes on that."""
        clock, unit = Clock(), self._unit or 1
        if not len(times):
            return times, []
        if self._counts:
            times = self._numbered(times, row_numbers, clock)
        elif self._unit == _TEXT and self._moments.dated:
            times = clock.mended(times)
            times = clock.set_forth_and_back(times, hours=not self._moments.zoned, leap=self._moments.leap)
        elif self._unit == _TEXT:
            times = clock.going_on(clock.mended(times), self._moments.turns_ns, (DAY,))
        elif self._unit == DAY or abs(int(times[0])) > _RELATIVE_NS:
            times = clock.mended(times)
        else:
            turns = (unit * 2**16, unit * 2**24, unit * _CHIP_CLOCK_SIZE, *_TURNS)
            times = clock.going_on(clock.mended(times), turns, (unit * _CHIP_CLOCK_SIZE, *_WIDE_TURNS))
        return times, [f"`{self.column}` {note}" for note in clock.notes]

    def _numbered(self, numbers: Int, row_numbers: Int, clock: Clock) -> Int:
        assert self._rate
        size = next((size for size in (2**8, 2**16, _CHIP_CLOCK_SIZE) if numbers.max() < size), 0)
        by = max(1, int(np.median(np.abs(np.diff(numbers))))) if len(numbers) > 1 else 1
        numbers = clock.going_on(numbers, (size,), (size,)) // by
        steps = np.diff(numbers, prepend=numbers[0] - 1)
        odd = steps < 1
        odd[1:] |= odd[:-1]  # what follows a number that is wrong is wrong by as much
        if odd.any():
            clock.notes.append(
                f"goes back or lacks a number, first at row {row_numbers[np.argmax(odd)]}: counted on by rows there"
            )
        numbers = numbers[0] - 1 + np.cumsum(np.where(odd, 1, steps))
        return np.array([round(int(number) * NS / self._rate) for number in numbers.tolist()], np.int64)

    def _decide(self, texts: Sequence[str], row: int) -> None:
        first = next((text for text in texts if text.strip()), "")
        compact = all(_COMPACT.fullmatch(text.strip()) for text in texts[:_FIRST_ROWS])
        if not is_number(first) or compact:
            self._unit = _TEXT
            return
        if self._named and self.column.lower() != "t":
            self._unit = self._named
            return
        numbers = np.array([float(text) for text in texts[:_FIRST_ROWS] if is_number(text)], np.float64)
        numbers = numbers[np.isfinite(numbers)]
        steps = np.diff(numbers)
        step = float(np.median(np.abs(steps[steps != 0]))) if steps.any() else 0.0
        middle = float(np.median(numbers)) if len(numbers) else 0.0
        self._unit, how = _unit(
            middle, step, self._rate, _words(self.column) >= _FINE_CLOCK, self._asked or bool(self._named)
        )
        if self._named and (self._unit in (None, NS) or ("size" not in how and not self._rate)):  # `t` is in seconds
            self._unit = self._named
            low, high = _LIKELY_STEPS[_MS]
            whole = (numbers == np.rint(numbers)).all() and middle < OUR_DAYS_S[0]
            if low <= step <= high and not self._rate and whole:
                self._notes.append(
                    f"`{self.column}` is read as seconds, its steps are {step:g}; if they are ms, name it `time_ms`"
                )
            return
        if self._unit is None:
            wrong = f"column `{self.column}` holds times in an unknown unit (steps of {step:g})"
            raise _UnitError(f"{wrong}; name it `time_s`, `time_ms`, `time_us` or `time_ns`", self.path, row)
        unit = _UNIT_NAMES[self._unit]
        why = brief(texts[0])
        if "size" not in how:
            why = f"{step:g}; if that is wrong, let its name say the unit, such as `time_s`"
        self._notes.append(f"`{self.column}` is read as {unit} {how} ({why})")

    def _error(self, text: str, row: int) -> SourceError:
        kind = "a date and time such as 2024-05-13 18:36:24.5"
        if self._unit != _TEXT:
            kind = f"a number of {(_UNIT_NAMES | {NS: 'seconds'})[self._unit or 1]}"
        return SourceError(f"column `{self.column}` has {brief(text)!r}, expected {kind}", self.path, row)


def _lacking_digits(texts: Sequence[str], times: Int) -> int:
    """Digits of fractions that are written as numbers, 0 where fractions are as usual: as these, times go back again and again."""
    if np.mean(np.diff(times) < 0) < _ODD_SHARE if len(times) > 1 else True:
        return 0
    fractions = [match[1] for text in texts if (match := _FRACTION.search(text))]
    lengths = {len(digits) for digits in fractions}
    if len(lengths) < 2 or any(len(digits) > 1 and digits[0] == "0" for digits in fractions):
        return 0
    return next((digits for digits in (3, 6, 9) if max(lengths) <= digits), 0)


def _small_seconds(texts: Sequence[str]) -> Int | None:
    """Seconds below 1e6, where a float64 is exact to a fraction of a ns; None for anything else."""
    try:
        seconds = np.array([float(text) for text in texts], np.float64)
    except ValueError:
        return None
    if not (np.abs(seconds) < 1e6).all() or any("_" in text for text in texts):
        return None
    times: Int = np.rint(seconds * NS).astype(np.int64)
    return times


def _scaled(texts: Sequence[str], unit: int) -> Int:
    """Numbers of a unit in ns, exactly; a ValueError holds the number of a text that is none."""
    times = np.empty(len(texts), np.int64)
    for i, text in enumerate(texts):
        try:
            number = Decimal(text)
            if unit == DAY:
                number -= _MATLAB_TO_1970 if number > _TABLE_DAYS[1] else _DAYS_TO_1970
            value = (number * unit).to_integral_value()
            if not abs(value) < _LIMIT_NS or "_" in text:
                raise ValueError(text)
            times[i] = int(value)
        except (ValueError, ArithmeticError):
            raise ValueError(i) from None
    return times
