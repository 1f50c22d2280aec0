"""Times that are texts. In: dates, times of day and lengths of time, as loggers and table programs write them. Out: int64, ns; and what
had to be decided: which number is the day, whether there is a date, and a time zone."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from datetime import date
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kymo.streams.words import DAY, HOUR, MINUTE, NS

_TO_1970 = date(1970, 1, 1).toordinal()
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = f"(?:{'|'.join(_MONTHS)})[a-z]*"
_WEEKDAY = re.compile(r"(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,?\s+", re.IGNORECASE)
#: How dates begin a text, if they do; what follows is a clock, or nothing.
_DATES = [
    re.compile(rf"{pattern}(?:[T_\s,]+|(?<=\d{{8}})(?=\d)|$)", re.IGNORECASE | re.ASCII)
    for pattern in (
        r"(?P<year>\d{4})([-/._])(?P<month>\d\d?)\2(?P<day>\d\d?)",
        r"(?P<year>(?:19|20)\d\d)(?P<month>\d\d)(?P<day>\d\d)(?=[T_ ]?\d\d:?\d\d|$)",
        r"(?P<day>\d\d?)(?P<between>[-/.])(?P<month>\d\d?)(?P=between)(?P<year>\d{4}|\d\d)",
        rf"(?P<day>\d\d?)[-\s.]+(?P<month>{_MONTH})[-\s.,]+(?P<year>\d{{4}}|\d\d)",
        rf"(?P<month>{_MONTH})\.?\s+(?P<day>\d\d?)(?:,?\s+(?P<year>\d{{4}}))?",
    )
]
_DATES = [re.compile(r"(?P<days>[-+]?\d+) days?,?\s+\+?", re.IGNORECASE | re.ASCII), *_DATES, re.compile("")]
_CLOCK = re.compile(
    r"""(?:(?:(?P<hour>\d{1,3})(?P<colon>[:-])(?P<minute>[0-5]\d)(?:(?P=colon)(?P<second>[0-5]\d|60))?
        |(?P<hours>[012]\d)(?P<minutes>[0-5]\d)(?P<seconds>[0-5]\d)(?P<thousandths>\d{3})?)
      (?:[.,](?P<fraction>\d+))?
      (?:\s*(?P<half>[ap])\.?\s?m\.?)?
      (?:\s*(?P<zone>Z|utc|gmt))?
      (?:\s*(?P<offset>[-+]\d\d(?::?\d\d(?::?\d\d)?)?)(?:\s*(?:\([^)]*\)|\[[^\]]*\]|[A-Z]{3,4}))?)?
      (?:\s+(?P<year_at_end>\d{4}))?
    )?""",
    re.IGNORECASE | re.VERBOSE | re.ASCII,
)
_FRACTION = re.compile(r"(?<=:\d\d:\d\d)(?:[.,](\d+)|:((?:\d{3}){1,3})(?!\d))")


class _Parts(NamedTuple):
    """One text, taken apart."""

    year: int | None  # None where there is no date
    first: int  # month, or the first number of a date whose order is open
    last: int
    open: bool  # whether day and month may stand the other way round
    clock_ns: int  # since midnight, or a length of time
    zoned: bool
    clock: str  # what the clock is: `h` with hours, `m` with minutes and seconds alone, empty where there is none
    half: bool = False  # whether it says AM or PM


def is_moment(text: str) -> bool:
    """Whether a text is a time of day, a date with one, or a length of time with colons.

    >>> is_moment("13.05.2024 18:36:24,500"), is_moment("18:36:24"), is_moment("2024-05-13"), is_moment("12.5")
    (True, True, False, False)
    """
    return ":" in text and _parts(text) is not None


def is_date(text: str) -> bool:
    """Whether a text is a date without a time.

    >>> is_date("13/05/2024"), is_date("18:36:24"), is_date("12.5")
    (True, False, False)
    """
    parts = _parts(text)
    return parts is not None and parts.year is not None and not parts.clock


def iso_ns(text: str) -> int:
    """Unix ns of a date, with a time of day or without, exact to the ns; a ValueError if the text is none, or has no fixed order."""
    parts = _parts(text)
    if parts is None or parts.year is None or parts.open:
        raise ValueError(text)
    return _ns(parts, False)


class Moments:
    """Reads one column of texts: what the first ones show holds for all.

    >>> moments = Moments("Time")
    >>> moments.parse(["12/01/1970 23:59:59.5", "13/01/1970 00:00:00"]).tolist(), moments.notes
    ([1036799500000000, 1036800000000000], ['`Time` is read as day/month/year without a time zone, taken as UTC'])
    """

    def __init__(self, column: str) -> None:
        self.notes: list[str] = []
        self.dated = self.zoned = self.leap = False  # whether texts have a date, a time zone, a leap second
        self.turns_ns: tuple[int, ...] = ()  # when a clock without a date may begin anew
        self._column, self._kind, self._day_first = column, "", False

    def parse(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Times of texts; a ValueError holds the number of one that is none, or not as the others."""
        if self._kind in ("", "ISO 8601") and (quick := _plain_iso(texts)) is not None:
            self._decide([part for text in texts[:1] if (part := _parts(text))])
            return quick
        parts: list[_Parts] = []
        for i, text in enumerate(texts):
            part = _parts(text)
            first = parts[0] if parts else part
            if part is None or first is None or (part.year is None, part.clock) != (first.year is None, first.clock):
                raise ValueError(i)
            parts.append(part)
        self._decide(parts)
        times = np.empty(len(texts), np.int64)
        for i, part in enumerate(parts):
            try:
                times[i] = _ns(part, self._day_first)
            except (ValueError, OverflowError):
                raise ValueError(i) from None
        self.leap = self.leap or any(":60" in text for text in texts)
        return times

    def _decide(self, parts: Sequence[_Parts]) -> None:
        if self._kind or not parts:
            return
        self.dated, self.zoned = parts[0].year is not None, all(part.zoned for part in parts)
        zone = "" if self.zoned else " without a time zone, taken as UTC"
        if self.dated:
            self._kind = "ISO 8601"
            if parts[0].open:
                self._day_first, doubt = _day_first(parts)
                self._kind = "day/month/year" if self._day_first else "month/day/year"
                zone += doubt
        else:
            self._kind = (
                "minutes and seconds" if parts[0].clock == "m" else "times of day or since a start, without a date"
            )
            self.turns_ns = (HOUR,) if parts[0].clock == "m" else (12 * HOUR, DAY)
            zone = ""
        self.notes.append(f"`{self._column}` is read as {self._kind}{zone}")


def _plain_iso(texts: Sequence[str]) -> NDArray[np.int64] | None:
    """Times of texts that are all ISO 8601 in UTC or without a zone, as numpy reads them; None where one is not."""
    zones = {text.strip().endswith("Z") for text in texts}
    plain = [text.strip().removesuffix("Z") for text in texts]
    long = all(len(text) > 15 and text[4] == text[7] == "-" and not {"-", "+"} & {*text[10:]} for text in plain)
    if not long or len(zones) > 1 or not "1700" < min(plain)[:4] <= max(plain)[:4] < "2200":
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            times: NDArray[np.int64] = np.array(plain, "datetime64[ns]").astype(np.int64)
    except (ValueError, Warning):
        return None
    return times


def _parts(text: str) -> _Parts | None:
    """A text, taken apart; None where it is no moment. What it says but for the fraction is worked out once a second."""
    fraction = _FRACTION.search(text)
    if fraction is None:
        return _parts_of(text.strip())
    whole = _parts_of((text[: fraction.start()] + text[fraction.end() :]).strip())
    return whole and whole._replace(clock_ns=whole.clock_ns + _nanoseconds(fraction[1] or fraction[2]))


def _nanoseconds(digits: str) -> int:
    return int((digits + "0" * 9)[:9])


@lru_cache(4096)
def _parts_of(text: str) -> _Parts | None:
    text = text[weekday.end() :] if (weekday := _WEEKDAY.match(text)) else text
    for pattern in _DATES:
        if (date_match := pattern.match(text)) and (clock_match := _CLOCK.fullmatch(text, date_match.end())) and text:
            return _joined(date_match.groupdict(), clock_match.groupdict())
    return None


def _joined(on_day: dict[str, str | None], clock: dict[str, str | None]) -> _Parts | None:
    """Date and clock of a text as one; None where they are no moment."""
    year, first, last, month = None, 0, 0, on_day.get("month") or ""
    is_open = on_day.get("between", ".") != "."  # points stand between day and month, in this order
    if text := on_day.get("year") or (clock["year_at_end"] if month.isalpha() else None):
        year = int(text) if len(text) == 4 else int(text) + (2000 if int(text) < 70 else 1900)
        first = _MONTHS.index(month[:3].lower()) + 1 if month.isalpha() else int(month)
        last = int(on_day["day"] or 0)
        first, last = (last, first) if is_open else (first, last)
    clock_ns, kind = _clock_in(clock, dated=year is not None)
    if clock_ns is None or (year is None and not kind):
        return None
    clock_ns += int(on_day.get("days") or 0) * DAY
    if offset := clock["offset"]:
        hours, minutes, seconds = (int(offset.replace(":", "")[at : at + 2] or 0) for at in (1, 3, 5))
        clock_ns -= (1 if offset[0] == "+" else -1) * (hours * HOUR + minutes * MINUTE + seconds * NS)
    return _Parts(year, first, last, is_open, clock_ns, bool(clock["zone"] or offset), kind, bool(clock["half"]))


def _clock_in(clock: dict[str, str | None], dated: bool) -> tuple[int | None, str]:
    """Ns since midnight, and what the clock has; None where it is no clock."""
    fraction = (clock["thousandths"] or "") + (clock["fraction"] or "")
    below = _nanoseconds(fraction)
    if clock["hours"]:
        hour, minute, second = (int(clock[name] or 0) for name in ("hours", "minutes", "seconds"))
        return ((hour * 60 + minute) * 60 + second) * NS + below if dated and hour < 24 else None, "h"
    if clock["hour"] is None:
        return (0 if not fraction and dated else None), ""
    hour, minute, seconds = int(clock["hour"]), int(clock["minute"] or 0), clock["second"]
    if clock["half"]:
        if not 1 <= hour <= 12:
            return None, ""
        hour = hour % 12 + 12 * (clock["half"].lower() == "p")
    if (dated and hour > 23) or (clock["colon"] == "-" and not dated):
        return None, ""
    if seconds is None and not dated:
        # Two numbers with a fraction are minutes and seconds; without one they may be hours as well.
        return ((hour * 60 + minute) * NS + below if fraction and hour < 60 else None), "m"
    if seconds is None and fraction:
        return None, ""
    return ((hour * 60 + minute) * 60 + int(seconds or 0)) * NS + below, "h"


def _day_first(parts: Sequence[_Parts]) -> tuple[bool, str]:
    """Whether the first number is the day, and what to say where nothing shows it."""
    first_days, second_days = any(part.first > 12 for part in parts), any(part.last > 12 for part in parts)
    if first_days or second_days:
        return first_days, ""
    spans = [
        max(days) - min(days) for day_first in (True, False) for days in [{_days_of(part, day_first) for part in parts}]
    ]
    if spans[0] != spans[1]:  # what changes at midnight is the day
        return spans[0] < spans[1], ""
    day_first = not any(part.half for part in parts)
    other = "month/day" if day_first else "day/month"
    return day_first, f"; nothing shows which number is the day: if it is {other}/year, write year-month-day"


def _days_of(parts: _Parts, day_first: bool) -> int:
    month, day = (parts.last, parts.first) if parts.open and day_first else (parts.first, parts.last)
    return _days(parts.year or 1970, month, day)


def _ns(parts: _Parts, day_first: bool) -> int:
    return parts.clock_ns if parts.year is None else _days_of(parts, day_first) * DAY + parts.clock_ns


@lru_cache(4096)
def _days(year: int, month: int, day: int) -> int:
    return date(year, month, day).toordinal() - _TO_1970
