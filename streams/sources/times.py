"""Time columns. In: texts or numbers of a column `t` (s), `t_ns` or `timestamp` (ISO 8601, or epoch s, ms, µs, ns).
Out: int64, ns.

The unit of a `timestamp` is decided once for a file, from its first value's magnitude, and noted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streams.chunk import NS
from streams.errors import SourceError
from streams.sources.words import brief

#: Names of time columns, best first.
TIME_COLUMNS = ("t_ns", "t", "timestamp")
#: How units stand in names, such as `Time (s)` and `time_ms`: 10**exponent ns are one.
_EXPONENTS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 9),
    **dict.fromkeys(("ms", "msec", "millis", "millisecond", "milliseconds"), 6),
    **dict.fromkeys(("us", "\u00b5s", "\u03bcs", "usec", "micros", "microsecond", "microseconds"), 3),
    **dict.fromkeys(("ns", "nsec", "nanos", "nanosecond", "nanoseconds"), 0),
}
_BRACKETED = re.compile(r"(.+?)\s*[(\[]\s*(\w+)\s*[)\]]")
_TAILED = re.compile(r"(.+?)[ _]([^\W_]+)")
_UNITS = {"s": 9, "ms": 6, "µs": 3, "ns": 0}
_LIMIT_NS = 2**62
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


#: Other names of them, in any spelling of upper and lower case, without their unit; a column of these must also run as times do.
_LIKE = ("t", "timestamp", "time", "datetime", "elapsed", "elapsed time")
_FIRST_ROWS = 200
_REGULAR = 0.9  # so many of the steps are near the middle one
_RELATIVE_NS = 10**17  # times before 1973 count from some beginning
_SLOW_S = 1.0  # what has a larger step than this may well count something shorter than seconds


def time_like(names: Sequence[str], cells: Callable[[str], Sequence[str]]) -> tuple[str, str]:
    """A column of times that is not named as :data:`TIME_COLUMNS` are, such as `Time`.

    Parameters
    ----------
    names : sequence of str
        All columns.
    cells : callable
        Given a name, its first texts.

    Returns
    -------
    column, doubt : str
        The column, empty where there is none; why it is not read as times although it looks like that, empty where it is.
    """
    if any(name in TIME_COLUMNS for name in names):
        return "", ""
    spelled = {name: _spelled(name) for name in names}
    like = [name for name in names if spelled[name][0] in _LIKE]
    found: list[tuple[bool, bool, str, str]] = []
    for name in sorted(like, key=lambda n: (spelled[n][1] is None, _LIKE.index(spelled[n][0]))):
        texts = [text.strip() for text in cells(name)[:_FIRST_ROWS]]
        try:
            times = Clock(name, "").parse(texts, np.arange(len(texts)))
        except SourceError:
            continue
        steps = np.diff(times)
        middle = float(np.median(steps)) if len(steps) else 0.0
        # A name with a unit says it all, as long as its times run on.
        base, exponent = spelled[name]
        near = steps >= 0 if exponent is not None and base != "t" else np.abs(steps - middle) < 0.5 * middle
        if middle <= 0 or np.mean(near) < _REGULAR:
            continue
        unknown = middle >= _SLOW_S * NS and _is_number(texts[0]) and exponent is None
        if unknown and base.startswith("elapsed"):  # as likely a measurement
            continue
        doubt = (
            f"column `{name}` looks like times in an unknown unit (steps of {middle / NS:g}), so it is left out; "
            "name it `t` (s) or `t_ns`"
        )
        # The time of day is worth more than the time since some beginning.
        found.append((unknown, bool(times[0] < _RELATIVE_NS), name, doubt if unknown else ""))
    *_, column, why = min(found, key=lambda one: one[:2], default=(False, False, "", ""))
    return column, why


def _spelled(name: str) -> tuple[str, int | None]:
    """A column's name without its unit, and the exponent of that; None where it names none."""
    plain = name.strip().lower()
    for form in (_BRACKETED, _TAILED):
        if (found := form.fullmatch(plain)) and found[2] in _EXPONENTS:
            return found[1].replace("_", " "), _EXPONENTS[found[2]]
    return plain.replace("_", " "), None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class Clock:
    """Reads one time column of one file.

    Parameters
    ----------
    column : str
        One of :data:`TIME_COLUMNS`, or like one.
    path : Path or str
        The file, for messages.

    Attributes
    ----------
    notes : list of str
        What was decided.
    """

    def __init__(self, column: str, path: Path | str) -> None:
        self.column, self.notes = column, list[str]()
        self.path = path
        #: 10**exponent ns are one unit; -1 for ISO 8601.
        self._exponent: int | None = 9 if column.lower() == "t" else _spelled(column)[1]

    def parse(self, texts: Sequence[str], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Times of texts, exact to the ns.

        Parameters
        ----------
        texts : sequence of str
            As the file has them.
        rows : ndarray of int64
            Row number of each.

        Raises
        ------
        SourceError
            At the first text that is no time.
        """
        if self._exponent is None and texts:
            self._decide(texts[0])
        if self._exponent == 9 and (quick := _small_seconds(texts)) is not None:
            return quick
        out = np.empty(len(texts), np.int64)
        try:
            if self._exponent == -1:
                out[:] = [iso_ns(text) for text in texts]
            else:
                out[:] = [_scaled(text, self._exponent or 0) for text in texts]
        except (ValueError, ArithmeticError, OverflowError):
            raise self._wrong(texts, rows) from None
        return out

    def numbers(self, values: NDArray[np.generic], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Times of a numeric column (Parquet): whole numbers exactly, float64 as exactly as it holds them."""
        if self._exponent is None and len(values):
            self._decide(str(values[0]))
        scale = 10 ** (self._exponent or 0)
        if values.dtype.kind in "iu":
            out = values.astype(np.int64)
            limit = _LIMIT_NS // scale
            bad = np.flatnonzero((out > limit) | (out < -limit))
        else:
            exact = np.rint(values.astype(np.float64) * scale)
            bad = np.flatnonzero(~(np.abs(exact) < _LIMIT_NS))
            out = np.where(np.abs(exact) < _LIMIT_NS, exact, 0).astype(np.int64)
            scale = 1
        if len(bad):
            raise self._error(str(values[bad[0]]), int(rows[bad[0]]))
        times: NDArray[np.int64] = out * scale
        return times

    def _decide(self, text: str) -> None:
        try:
            size = abs(float(text))
        except ValueError:
            self._exponent = -1
            zoned = text.strip()[-1:] in ("Z", "z") or "+" in text[10:] or "-" in text[10:]
            self.notes.append(
                f"`{self.column}` is read as ISO 8601" + ("" if zoned else " without a time zone, taken as UTC")
            )
            return
        # Seconds reach 1e11 in the year 5138; the other units follow at the same factor.
        unit = next((name for name, top in (("s", 1e11), ("ms", 1e14), ("µs", 1e17)) if size < top), "ns")
        self._exponent = _UNITS[unit]
        self.notes.append(
            f"`{self.column}` is read as {unit} since 1970, by the size of its first value ({brief(text)})"
        )

    def _wrong(self, texts: Sequence[str], rows: NDArray[np.int64]) -> SourceError:
        for text, row in zip(texts, rows.tolist(), strict=True):
            try:
                if self._exponent == -1:
                    iso_ns(text)
                else:
                    _scaled(text, self._exponent or 0)
            except (ValueError, ArithmeticError, OverflowError):
                return self._error(text, row)
        return self._error(texts[0], int(rows[0]))

    def _error(self, text: str, row: int) -> SourceError:
        kind = "a date and time in ISO 8601" if self._exponent == -1 else "a number"
        unit = {9: " of seconds", 6: " of ms", 3: " of µs", 0: " of ns", -1: ""}[self._exponent or 0]
        return SourceError(f"column `{self.column}` has {brief(text)!r}, expected {kind}{unit}", self.path, row)


def _small_seconds(texts: Sequence[str]) -> NDArray[np.int64] | None:
    """Seconds below 1e6, where a float64 is exact to a fraction of a ns; None for anything else."""
    try:
        seconds = np.array([float(text) for text in texts], np.float64)
    except ValueError:
        return None
    if not (np.abs(seconds) < 1e6).all() or any("_" in text for text in texts):
        return None
    out: NDArray[np.int64] = np.rint(seconds * NS).astype(np.int64)
    return out


def _scaled(text: str, exponent: int) -> int:
    try:
        value = Decimal(text).scaleb(exponent).to_integral_value()
    except InvalidOperation:
        raise ValueError(text) from None
    if not abs(value) < _LIMIT_NS or "_" in text:
        raise ValueError(text)
    return int(value)


_COLON = re.compile(r"(\d\d:\d\d:\d\d):(?=(?:\d{3}){1,3}(?!\d))")
_MORE = re.compile(r"\d\d:\d\d:\d\d:")


def iso_ns(text: str) -> int:
    """Unix ns of an ISO 8601 text; :mod:`datetime` holds µs, so the digits of the fraction are read apart."""
    # Some loggers put the fraction behind a colon, which datetime would pass over.
    whole, dot, rest = _COLON.sub(r"\1.", text.strip().replace(",", "."), count=1).partition(".")
    digits = len(rest) - len(rest.lstrip("0123456789"))
    if (dot and not digits) or _MORE.search(whole):
        raise ValueError(text)
    moment = datetime.fromisoformat(whole + rest[digits:])
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    return (since.days * 86_400 + since.seconds) * NS + int((rest[:digits] + "0" * 9)[:9])
