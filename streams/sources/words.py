"""Words for messages. In: texts and counts out of files. Out: one short line's worth."""

from __future__ import annotations

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
