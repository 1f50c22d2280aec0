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

from kymo.streams.words import NS

_MINUTE, _HOUR, _DAY = 60 * NS, 3_600 * NS, 86_400 * NS
_TO_1970 = date(1970, 1, 1).toordinal()
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = f"(?:{'|'.join(_MONTHS)})[a-z]*"
_MOMENT = re.compile(
    rf"""(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,?\s+)?
    (?:(?P<days>[-+]?\d+)\ days?,?\s+\+?|(?:
      (?P<year>\d{{4}})(?P<sign>[-/._])(?P<month>\d\d?)(?P=sign)(?P<day>\d\d?)
    | (?P<packed>(?:19|20)\d{{6}})(?=[T_ ]?\d\d:?\d\d|$)
    | (?P<one>\d\d?)(?P<between>[-/.])(?P<two>\d\d?)(?P=between)(?P<last>\d{{4}}|\d\d)
    | (?P<before>\d\d?)[-\s.]+(?P<named>{_MONTH})[-\s.,]+(?P<year_of_named>\d{{4}}|\d\d)
    | (?P<first_named>{_MONTH})\.?\s+(?P<behind>\d\d?)(?:,?\s+(?P<year_behind>\d{{4}}))?
    )(?:[T_\s,]+|(?<=\d{{8}})(?=\d)|$))?
    (?:(?:(?P<hour>\d{{1,3}})(?P<colon>[:-])(?P<minute>[0-5]\d)(?:(?P=colon)(?P<second>[0-5]\d|60))?
        |(?P<hours>[012]\d)(?P<minutes>[0-5]\d)(?P<seconds>[0-5]\d)(?P<thousandths>\d{{3}})?)
      (?:[.,](?P<fraction>\d+))?
      (?:\s*(?P<half>[ap])\.?\s?m\.?)?
      (?:\s*(?P<zone>Z|utc|gmt))?
      (?:\s*(?P<offset>[-+]\d\d(?::?\d\d(?::?\d\d)?)?)(?:\s*(?:\([^)]*\)|\[[^\]]*\]|[A-Z]{{3,4}}))?)?
      (?:\s+(?P<year_at_end>\d{{4}}))?
    )?""",
    re.IGNORECASE | re.VERBOSE | re.ASCII,
)


_FRACTION = re.compile(r"(?<=:\d\d:\d\d)(?:[.,](\d+)|:((?:\d{3}){1,3})(?!\d))")


class _Parts(NamedTuple):
    """One text, taken apart."""

    year: int | None  # None where there is no date
    one: int  # month, or the first number of a date whose order is open
    two: int
    open: bool  # whether day and month may stand the other way round
    clock_ns: int  # since midnight, or a length of time
    zoned: bool
    clock: str  # what the clock is: `h` with hours, `m` with minutes and seconds alone, empty where there is none
    half: bool = False  # whether it says AM or PM


def is_moment(text: str) -> bool:
    """Whether a text is a time of day, a date with one, or a length of time with colons.

    Examples
    --------
    >>> is_moment("13.05.2024 18:36:24,500"), is_moment("18:36:24"), is_moment("2024-05-13"), is_moment("12.5")
    (True, True, False, False)
    """
    return ":" in text and _parts(text) is not None


def is_date(text: str) -> bool:
    """Whether a text is a date without a time.

    Examples
    --------
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

    Examples
    --------
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
            self.turns_ns = (_HOUR,) if parts[0].clock == "m" else (12 * _HOUR, _DAY)
            zone = ""
        self.notes.append(f"`{self._column}` is read as {self._kind}{zone}")


def _plain_iso(texts: Sequence[str]) -> NDArray[np.int64] | None:
    """Times of texts that are all ISO 8601 in UTC or without a zone, as numpy reads them; None where one is not."""
    plain = [text.strip().removesuffix("Z") for text in texts]
    if not all(
        len(text) > 15 and text[4] == "-" and text[7] == "-" and not {"-", "+"} & set(text[10:]) for text in plain
    ):
        return None
    if (
        len({text.strip().endswith("Z") for text in texts}) > 1
        or not "1700" < min(plain)[:4] <= max(plain)[:4] < "2200"
    ):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            moments = np.array(plain, "datetime64[ns]")
    except (ValueError, Warning):
        return None
    times: NDArray[np.int64] = moments.astype(np.int64)
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
    match = _MOMENT.fullmatch(text)
    if match is None or not text:
        return None
    found = match.groupdict()
    year, one, two, is_open = _date_in(found)
    if found["days"]:
        year = None
    clock_ns, clock = _clock_in(found, dated=year is not None)
    if clock_ns is None or (year is None and not clock):
        return None
    clock_ns += int(found["days"] or 0) * _DAY
    offset = found["offset"]
    if offset:
        hours, minutes, seconds = (int(offset.replace(":", "")[at : at + 2] or 0) for at in (1, 3, 5))
        clock_ns -= (1 if offset[0] == "+" else -1) * (hours * _HOUR + minutes * _MINUTE + seconds * NS)
    return _Parts(year, one, two, is_open, clock_ns, bool(found["zone"] or offset), clock, bool(found["half"]))


def _date_in(found: dict[str, str | None]) -> tuple[int | None, int, int, bool]:
    """Year, month and day; of a date whose order is open the two numbers as they stand."""
    if year := found["year"]:
        return int(year), int(found["month"] or 0), int(found["day"] or 0), False
    if packed := found["packed"]:
        return int(packed[:4]), int(packed[4:6]), int(packed[6:]), False
    if last := found["last"]:
        # Points stand between day and month, in this order.
        is_open, numbers = found["between"] != ".", (int(found["one"] or 0), int(found["two"] or 0))
        return _whole_year(last), *(numbers if is_open else numbers[::-1]), is_open
    month = found["named"] or found["first_named"]
    behind = found["year_of_named"] or found["year_behind"] or found["year_at_end"]
    if month and behind:
        return (
            _whole_year(behind),
            _MONTHS.index(month[:3].lower()) + 1,
            int(found["before"] or found["behind"] or 0),
            False,
        )
    return None, 0, 0, False


def _whole_year(text: str) -> int:
    return int(text) if len(text) == 4 else int(text) + (2000 if int(text) < 70 else 1900)


def _clock_in(found: dict[str, str | None], dated: bool) -> tuple[int | None, str]:
    """Ns since midnight, and what the clock has; None where it is no clock."""
    fraction = (found["thousandths"] or "") + (found["fraction"] or "")
    nanoseconds = _nanoseconds(fraction)
    if found["hours"]:
        clock = [int(found[name] or 0) for name in ("hours", "minutes", "seconds")]
        return (
            None if not dated or clock[0] > 23 else (clock[0] * 3600 + clock[1] * 60 + clock[2]) * NS + nanoseconds
        ), "h"
    if found["hour"] is None:
        return (0 if not fraction and dated else None), ""
    hour, minute, second = int(found["hour"]), int(found["minute"] or 0), found["second"]
    if found["half"]:
        if not 1 <= hour <= 12:
            return None, ""
        hour = hour % 12 + 12 * (found["half"].lower() == "p")
    if (dated and hour > 23) or (found["colon"] == "-" and not dated):
        return None, ""
    if second is None and not dated:
        # Two numbers with a fraction are minutes and seconds; without one they may be hours as well.
        return ((hour * 60 + minute) * NS + nanoseconds if fraction and hour < 60 else None), "m"
    if second is None and fraction:
        return None, ""
    return (hour * 3600 + minute * 60 + int(second or 0)) * NS + nanoseconds, "h"


def _day_first(parts: Sequence[_Parts]) -> tuple[bool, str]:
    """Whether the first number is the day, and what to say where nothing shows it."""
    first_days, second_days = any(part.one > 12 for part in parts), any(part.two > 12 for part in parts)
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
    month, day = (parts.two, parts.one) if parts.open and day_first else (parts.one, parts.two)
    return _days(parts.year or 1970, month, day)


def _ns(parts: _Parts, day_first: bool) -> int:
    return parts.clock_ns if parts.year is None else _days_of(parts, day_first) * _DAY + parts.clock_ns


@lru_cache(4096)
def _days(year: int, month: int, day: int) -> int:
    return date(year, month, day).toordinal() - _TO_1970
