"""Words for messages, and which texts are numbers. In: texts, counts and times out of files. Out: one short line's worth."""

from __future__ import annotations

import getpass
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

NS = 10**9
MINUTE, HOUR, DAY = 60 * NS, 3_600 * NS, 86_400 * NS
OUR_DAYS_S = (946_684_800, 2_840_140_800)  # 2000 to 2060, in Unix seconds
_LONGEST = 60
_NUMBER, _COUNTED = re.compile(r"\b\d[\d,]*(\.\d+)?(e[+-]?\d+)?"), re.compile(r"# (\w+?)s?\b")


def brief(text: object) -> str:
    """A text from a file as a message may show it: one line, not too long.

    >>> brief("a" * 100)[-3:], brief("two\\nlines")
    ('aa…', 'two lines')
    """
    line = " ".join(str(text).split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user without a name
        return "unknown"


def many(count: int, word: str) -> str:
    """A count with its word.

    >>> many(1, "gap"), many(2, "gap")
    ('1 gap', '2 gaps')
    """
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def some(names: Sequence[str], most: int) -> str:
    """Names, as many as a message may show.

    >>> some(["a", "b", "c"], 2), some(["a", "b"], 2)
    ('a, b and 1 more', 'a, b')
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def less_numbers(text: str) -> str:
    """What a text has in common with those that say the same of other counts."""
    return _COUNTED.sub(r"# \1", _NUMBER.sub("#", text))


def grouped(lines: Iterable[tuple[str, str]], few: int = 1) -> list[str]:
    """A line for each text that holds for more than a few names, numbers aside, else a line for each name and text.

    >>> grouped([("a", "late"), ("b", "late"), ("b", "1 gap, 0.5 s"), ("", "done"), ("c", "12 gaps, 3 s")])
    ['a and 1 more: late', 'b: 1 gap, 0.5 s (1 more like it)', 'done']
    """
    alike: dict[str, list[tuple[str, str]]] = {}
    for name, text in lines:
        alike.setdefault(less_numbers(text), []).append((name, text))
    messages = []
    for group in alike.values():
        (first, text), more = group[0], len(group) - 1
        if len(group) <= few or not all(name for name, _ in group):
            messages += [f"{name}: {text}" if name else text for name, text in group]
        elif all(other == text for _, other in group):
            messages.append(f"{first} and {more} more: {text}")
        else:
            messages.append(f"{first}: {text} ({more} more like it)")
    return messages


def utc(ns: int, digits: int = 0) -> str:
    """Unix ns as ISO 8601 in UTC, with so many digits of the second's fraction.

    >>> utc(1_500_000_000), utc(1_500_000_000, 9)
    ('1970-01-01T00:00:01Z', '1970-01-01T00:00:01.500000000Z')
    """
    seconds, nanoseconds = divmod(ns, NS)
    fraction = f".{nanoseconds:09d}"[: digits + 1] if digits else ""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}{fraction}Z"


def is_number(text: str) -> bool:
    """Whether a text is a number, as tables write them."""
    if "_" in text:
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True
