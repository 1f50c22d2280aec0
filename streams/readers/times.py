"""Time columns. In: texts or numbers of a column `t` (s), `t_ns` or `timestamp` (ISO 8601, or s, ms, µs, ns, or a table
program's days). Out: int64, ns.

The unit of a `timestamp` is decided once for a file, and noted: by its size where that is a time of our days, else by its steps, where
only one unit makes a rate of them that a sensor has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kymo.streams.errors import SourceError
from kymo.streams.words import NS, brief, is_number

#: Names of time columns, best first.
TIME_COLUMNS = ("t_ns", "t", "timestamp")
#: Other names of them, in any spelling of upper and lower case, without their unit; a column of these must also run as times do.
_TIME_NAMES = ("t", "timestamp", "time", "datetime", "elapsed", "elapsed time")
_TIME_WORDS = {"time", "timestamp", "datetime"}
# Words of names of columns that number the rows.
_COUNTERS = {"frame", "frames", "index", "counter", "packet", "sample", "samples", "row", "seq", "sequence", "#"}
_COUNTERS |= {"unnamed"}  # as pandas calls its index
_FIRST_ROWS = 200
_REGULAR_SHARE, _FORWARD_SHARE = 0.9, 0.98  # so many of the steps are near the middle one; so many do not go back
_RELATIVE_NS = 10**17  # times before 1973 count from some beginning
_US, _MS, _MINUTE, _HOUR, _DAY = 10**3, 10**6, 60 * NS, 3_600 * NS, 86_400 * NS
_TENTH_MS = 10**5
_ISO = 0  # texts, no number of any unit
#: How units stand in names, such as `Time (s)` and `time_ms`, in ns.
_UNITS_BY_NAME = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), NS),
    **dict.fromkeys(("ms", "msec", "millis", "millisecond", "milliseconds"), _MS),
    **dict.fromkeys(("us", "\u00b5s", "\u03bcs", "usec", "micros", "microsecond", "microseconds"), _US),
    **dict.fromkeys(("ns", "nsec", "nanos", "nanosecond", "nanoseconds"), 1),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), _MINUTE),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), _HOUR),
}
_UNIT_IN_BRACKETS = re.compile(r"(.+?)\s*[(\[]\s*(\w+)\s*[)\]]")
_UNIT_FIRST = re.compile(r"([^\W_]+)[ _](.+)")
_UNIT_LAST = re.compile(r"(.+?)[ _]([^\W_]+)")
_DECIMAL_UNITS = {NS: "s", _MS: "ms", _US: "µs", 1: "ns"}
_UNIT_NAMES = _DECIMAL_UNITS | {
    _MINUTE: "minutes",
    _HOUR: "hours",
    _DAY: "days as table programs count them",
    _TENTH_MS: "ten thousandths of a second",
}
_OUR_DAYS_S, _SLOWEST_S = (946_684_800, 2_840_140_800), 300  # 2000 to 2060
#: Between which steps nothing but that unit is likely; what counts whole units is no clock of seconds.
_LIKELY_STEPS = {NS: (0.0, 1.0), _MS: (2, 500), _US: (2_000, 200_000), 1: (2_000_000, 500_000_000)}
_FINE_CLOCK = {"sample", "time", "fine"}  # of Xsens: µs of one device, ten thousandths of a second of another
_CHIP_CLOCK_SIZE = 2**32  # where a chip's clock begins anew
_LARGEST_COUNT = 2**53  # counters are whole numbers below that
_TABLE_DAYS, _DAYS_TO_1970, _DAY_STEP = (20_000, 80_000), 25_569, 2e-4
_RATE_MATCH = 0.1  # steps that are so near to those of the recipe's rate say the unit
_LARGEST, _TENTH_MS_STEP = 1e17, 1_000
_LIMIT_NS = 2**62
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COLON_FRACTION = re.compile(r"(\d\d:\d\d:\d\d):(?=(?:\d{3}){1,3}(?!\d))")
_FOURTH_COLON = re.compile(r"\d\d:\d\d:\d\d:")


class TimeCandidate(NamedTuple):
    """A column that runs as time does."""

    name: str
    doubt: str  # why it is not read as times although it looks like that, empty where it is


def time_columns(
    names: Sequence[str], cells: Callable[[str], Sequence[str]], rate: Fraction | None = None
) -> list[TimeCandidate]:
    """Columns of times that are not named as :data:`TIME_COLUMNS` are, such as `Time`; the best one first."""
    ranked: list[tuple[bool, bool, int, TimeCandidate]] = []
    for name in names:
        base, unit = _spelled(name)
        if base not in _TIME_NAMES and _TIME_WORDS.isdisjoint(_words(name)):
            continue
        times, doubt = _first_times(name, cells(name), rate)
        # A column named elapsed without a unit is as likely a measurement.
        if not _run_as_time(times, base) or (doubt and unit is None and base.startswith("elapsed")):
            continue
        # The time of day is worth more than the time since some beginning.
        rank = 2 * len(_TIME_NAMES)
        if base in _TIME_NAMES:
            rank = _TIME_NAMES.index(base) + len(_TIME_NAMES) * (unit is None)
        ranked.append((bool(doubt), bool(times[0] < _RELATIVE_NS), rank, TimeCandidate(name, doubt)))
    return [candidate for *_, candidate in sorted(ranked, key=lambda row: row[:3])]


def _first_times(name: str, cells: Sequence[str], rate: Fraction | None) -> tuple[NDArray[np.int64], str]:
    """First times of a column, and why its unit is in doubt, where it is: then as if it were ms; empty where they are no times."""
    texts = [text.strip() for text in cells[:_FIRST_ROWS]]
    try:
        return TimeColumn(name, "", rate).parse(texts, np.arange(len(texts))), ""
    except _UnitError as error:
        if all(map(is_number, texts)):
            numbers = np.array([float(text) for text in texts])
            return np.rint(1000 * (numbers - numbers[0])).astype(np.int64), str(error)
    except SourceError:
        pass
    return np.empty(0, np.int64), ""


def _run_as_time(times: NDArray[np.int64], base: str) -> bool:
    steps = np.diff(times)
    if not len(steps) or times[-1] <= times[0]:
        return False
    middle = float(np.median(steps))
    if base == "t":  # a name that says it all only has to run on; a letter may as well be a temperature
        return bool(np.mean(np.abs(steps - middle) < 0.5 * middle) >= _REGULAR_SHARE)
    # Of other names than those of times, it may be a trial's start, or its number.
    return bool((base in _TIME_NAMES or middle > 0) and np.mean(steps >= 0) >= _FORWARD_SHARE)


def counter_columns(names: Sequence[str], cells: Callable[[str], Sequence[str]]) -> list[str]:
    """Columns that number the rows, such as `frame`: whole numbers that rise, by their name no measurement."""
    columns = []
    for name in names:
        if _COUNTERS.isdisjoint(_words(name)):
            continue
        try:
            numbers = np.array([float(text) for text in cells(name)[:_FIRST_ROWS]], np.float64)
        except ValueError:
            continue
        steps = np.diff(numbers)
        whole = bool((numbers == np.rint(numbers)).all())
        if len(steps) and whole and np.mean(steps >= 1) >= _FORWARD_SHARE and np.median(steps) == 1:
            columns.append(name)
    return columns


def _words(name: str) -> set[str]:
    """The words of a name: ``SampleTimeFine`` and ``sample_time_fine`` have three."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|#", name)}


def _spelled(name: str) -> tuple[str, int | None]:
    """A column's name without its unit, and that in ns; None where it names none."""
    plain = name.strip().lower()
    for form in (_UNIT_IN_BRACKETS, _UNIT_LAST):
        if (match := form.fullmatch(plain)) and match[2] in _UNITS_BY_NAME:
            return match[1].replace("_", " "), _UNITS_BY_NAME[match[2]]
    if (match := _UNIT_FIRST.fullmatch(plain)) and match[1] in _UNITS_BY_NAME and len(match[1]) > 2:
        return match[2].replace("_", " "), _UNITS_BY_NAME[match[1]]
    return plain.strip("_").replace("_", " "), None


class _UnitError(SourceError):
    """Times whose unit nothing tells."""


def _unit(middle: float, step: float, rate: Fraction | None, fine: bool) -> tuple[int | None, str]:
    """The unit of numbers in ns, and how it was found; None in doubt."""
    if rate and step:
        for unit in (*_DECIMAL_UNITS, *([_TENTH_MS] if fine else [])):
            if abs(step * float(rate) * unit / NS - 1) < _RATE_MATCH:
                return unit, "by its steps"
    for unit in _DECIMAL_UNITS:
        second = NS / unit
        if _OUR_DAYS_S[0] <= middle / second < _OUR_DAYS_S[1] and step <= _SLOWEST_S * second:
            return unit, "since 1970, by the size of its first value"
    if _TABLE_DAYS[0] <= middle < _TABLE_DAYS[1] and 0 < step < _DAY_STEP:
        return _DAY, "by the size of its first value"
    if rate or abs(middle) >= _LARGEST:  # no unit makes that rate, or it counts since some other year
        return None, ""
    if fine and 1 < step <= _TENTH_MS_STEP:
        return _TENTH_MS, "by its steps"
    likely = [unit for unit, (low, high) in _LIKELY_STEPS.items() if low < step <= high or step == low > 0]
    return (likely[0] if likely else None), "by its steps"


class TimeColumn:
    """Reads one time column of one file."""

    def __init__(self, column: str, path: Path | str, rate: Fraction | None = None, *, counts: bool = False) -> None:
        self.column, self.notes = column, list[str]()
        self.path, self._rate, self._counts = path, rate, counts
        self._last: int | None = None  # of a counter, before it was unwrapped
        self._turns = 0
        self._number: int | None = None
        #: In ns; `_ISO` for ISO 8601, None before it is decided.
        self._unit: int | None = NS if column.lower() == "t" else _spelled(column)[1]

    def parse(self, texts: Sequence[str], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Times of texts, exact to the ns."""
        if self._counts and self._rate:
            return self._numbered(texts, rows)
        if self._unit is None and len(texts):
            self._decide(texts, int(rows[0]))
        if self._unit == NS and (quick := _small_seconds(texts)) is not None:
            return quick
        times = np.empty(len(texts), np.int64)
        try:
            if self._unit == _ISO:
                times[:] = [iso_ns(text) for text in texts]
            else:
                times[:] = [_scaled(text, self._unit or 1) for text in texts]
        except (ValueError, ArithmeticError, OverflowError):
            raise self._wrong(texts, rows) from None
        return (
            self._unwrapped(times, _CHIP_CLOCK_SIZE * self._unit) if self._unit in (1, _US, _TENTH_MS, _MS) else times
        )

    def numbers(self, values: NDArray[np.generic], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Times of a numeric column (Parquet): whole numbers exactly, float64 as exactly as it holds them."""
        if self._unit is None and len(values):
            self._decide([str(value) for value in values[:_FIRST_ROWS]], int(rows[0]))
        if self._unit == _DAY or self._counts:
            return self.parse([str(value) for value in values], rows)
        scale = self._unit or 1
        if values.dtype.kind in "iu":
            whole = values.astype(np.int64)
            limit = _LIMIT_NS // scale
            bad = np.flatnonzero((whole > limit) | (whole < -limit))
        else:
            exact = np.rint(values.astype(np.float64) * scale)
            bad = np.flatnonzero(~(np.abs(exact) < _LIMIT_NS))
            whole = np.where(np.abs(exact) < _LIMIT_NS, exact, 0).astype(np.int64)
            scale = 1
        if len(bad):
            raise self._error(str(values[bad[0]]), int(rows[bad[0]]))
        times: NDArray[np.int64] = whole * scale
        return times

    def _numbered(self, texts: Sequence[str], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Times of samples that are counted."""
        assert self._rate
        values = np.array([float(text) if is_number(text) else np.nan for text in texts], np.float64)
        numbers = np.where(np.abs(values) < _LARGEST_COUNT, values, -1).astype(np.int64)
        for size in (2**8, 2**16, _CHIP_CLOCK_SIZE):
            if self._turns or numbers.max(initial=0) < size:
                numbers = self._unwrapped(numbers, size)
                break
        before = numbers[0] - 1 if self._number is None else self._number
        steps = np.diff(numbers, prepend=before)
        odd = steps < 1
        odd[1:] |= odd[:-1]  # what follows a number that is wrong is wrong by as much
        if odd.any():
            where = f"row {rows[np.argmax(odd)]}"
            note = f"`{self.column}` goes back or lacks a number, first at {where}: counted on by rows there"
            self.notes += [note] if not any("counted on" in known for known in self.notes) else []
        numbers = before + np.cumsum(np.where(odd, 1, steps))
        self._number = int(numbers[-1])
        return np.array([round(int(number) * NS / self._rate) for number in numbers.tolist()], np.int64)

    def _unwrapped(self, values: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        """Values of a counter that begins anew at `size`, as if it went on."""
        if not len(values):
            return values
        before = values[0] if self._last is None else self._last
        steps = np.diff(values, prepend=before)
        turns = (steps < 0) & (steps + size < size // 8)
        if turns.any():
            note = f"`{self.column}` begins anew where a counter is full: it is read as going on"
            self.notes += [note] if note not in self.notes else []
        self._last = int(values[-1])
        total = self._turns + np.cumsum(turns)
        self._turns = int(total[-1])
        return values + total * size

    def _decide(self, texts: Sequence[str], row: int) -> None:
        try:
            float(texts[0])
        except ValueError:
            self._unit = _ISO
            text = texts[0].strip()
            zoned = text[-1:] in ("Z", "z") or "+" in text[10:] or "-" in text[10:]
            self.notes.append(
                f"`{self.column}` is read as ISO 8601" + ("" if zoned else " without a time zone, taken as UTC")
            )
            return
        numbers = np.array([float(text) for text in texts[:_FIRST_ROWS] if is_number(text)], np.float64)
        steps = np.diff(numbers)
        step = float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.0
        self._unit, how = _unit(float(np.median(numbers)), step, self._rate, fine=_words(self.column) >= _FINE_CLOCK)
        if self._unit is None:
            raise _UnitError(
                f"column `{self.column}` holds times in an unknown unit (steps of {step:g}); name it `time_s`, `time_ms`, "
                "`time_us` or `time_ns`",
                self.path,
                row,
            )
        unit = _UNIT_NAMES[self._unit]
        why = brief(texts[0])
        if "size" not in how:
            why = f"{step:g}; if that is wrong, let its name say the unit, such as `time_s`"
        self.notes.append(f"`{self.column}` is read as {unit} {how} ({why})")

    def _wrong(self, texts: Sequence[str], rows: NDArray[np.int64]) -> SourceError:
        for text, row in zip(texts, rows.tolist(), strict=True):
            try:
                if self._unit == _ISO:
                    iso_ns(text)
                else:
                    _scaled(text, self._unit or 1)
            except (ValueError, ArithmeticError, OverflowError):
                return self._error(text, row)
        return self._error(texts[0], int(rows[0]))

    def _error(self, text: str, row: int) -> SourceError:
        names = _UNIT_NAMES | {NS: "seconds"}
        kind = f"a number of {names[self._unit or 1]}" if self._unit != _ISO else "a date and time in ISO 8601"
        return SourceError(f"column `{self.column}` has {brief(text)!r}, expected {kind}", self.path, row)


def _small_seconds(texts: Sequence[str]) -> NDArray[np.int64] | None:
    """Seconds below 1e6, where a float64 is exact to a fraction of a ns; None for anything else."""
    try:
        seconds = np.array([float(text) for text in texts], np.float64)
    except ValueError:
        return None
    if not (np.abs(seconds) < 1e6).all() or any("_" in text for text in texts):
        return None
    times: NDArray[np.int64] = np.rint(seconds * NS).astype(np.int64)
    return times


def _scaled(text: str, unit: int) -> int:
    try:
        number = Decimal(text) - (_DAYS_TO_1970 if unit == _DAY else 0)
        value = (number * unit).to_integral_value()
    except InvalidOperation:
        raise ValueError(text) from None
    if not abs(value) < _LIMIT_NS or "_" in text:
        raise ValueError(text)
    return int(value)


def iso_ns(text: str) -> int:
    """Unix ns of an ISO 8601 text; :mod:`datetime` holds µs, so the digits of the fraction are read apart."""
    # Some loggers put the fraction behind a colon, which datetime would pass over.
    whole, dot, fraction = _COLON_FRACTION.sub(r"\1.", text.strip().replace(",", "."), count=1).partition(".")
    digits = len(fraction) - len(fraction.lstrip("0123456789"))
    if (dot and not digits) or _FOURTH_COLON.search(whole):
        raise ValueError(text)
    moment = datetime.fromisoformat(whole + fraction[digits:])
    since_1970 = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    return (since_1970.days * 86_400 + since_1970.seconds) * NS + int((fraction[:digits] + "0" * 9)[:9])
