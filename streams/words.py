"""Words for messages, and which texts are numbers. In: texts, counts and times out of files. Out: one short line's worth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

NS = 10**9
_LONGEST = 60


def brief(text: object) -> str:
    """A text from a file as a message may show it: one line, not too long.

    Examples
    --------
    >>> brief("a" * 100)[-3:], brief("two\\nlines")
    ('aa…', 'two lines')
    """
    line = " ".join(str(text).split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def many(count: int, word: str) -> str:
    """A count with its word.

    Examples
    --------
    >>> many(1, "gap"), many(2, "gap")
    ('1 gap', '2 gaps')
    """
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def some(names: Sequence[str], most: int) -> str:
    """Names, as many as a message may show.

    Examples
    --------
    >>> some(["a", "b", "c"], 2), some(["a", "b"], 2)
    ('a, b and 1 more', 'a, b')
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def grouped(lines: Iterable[tuple[str, str]], few: int = 1) -> list[str]:
    """A line for each text that holds for more than a few names, else a line for each name and text.

    Examples
    --------
    >>> grouped([("a", "1 gap"), ("b", "1 gap"), ("b", "late"), ("", "done")])
    ['a and 1 more: 1 gap', 'b: late', 'done']
    """
    same: dict[str, list[str]] = {}
    for name, text in lines:
        same.setdefault(text, []).append(name)
    messages = []
    for text, names in same.items():
        if len(names) > few and all(names):
            messages.append(f"{names[0]} and {len(names) - 1} more: {text}")
        else:
            messages += [f"{name}: {text}" if name else text for name in names]
    return messages


def utc(ns: int, digits: int = 0) -> str:
    """Unix ns as ISO 8601 in UTC, with so many digits of the second's fraction.

    Examples
    --------
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
