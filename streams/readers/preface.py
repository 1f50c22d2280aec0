"""What lines before a table say of it. In: those lines. Out: the rate, names and units of columns.

Loggers write about the device above the names: what goes at a rate of its own there, such as a filter or the mains, is no sampling rate.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from kymo.streams.units import known_unit, unit_in

_NUMBER, _UNTIL = r"(\d+(?:\.\d+)?)", r"[^\d\n]{0,12}?"
_RATE = re.compile(
    rf"\b(?:(?:sampl\w*|output|update|data|measurement|frame)[ _]?(?:rate|frequency)\b{_UNTIL}|sampling\s*[:=]\s*){_NUMBER}"
    rf"(?:\s*(k?hz)\b|\b(?![.,]?\d)(?!\s*[a-z]))|\b(?:(?:rate|frequency)\b{_UNTIL}|at ){_NUMBER}\s*(k?hz)\b"
    rf"|^\W*(?:fs|sfreq|srate|rate|frequency)\s*[:=,;\t]+\s*{_NUMBER}\s*(k?hz)?\W*$",
    re.IGNORECASE,
)
_STEP = re.compile(
    rf"\b(?:sampl\w+ )?interval\b{_UNTIL}{_NUMBER}\s*(m?s|m?sec)\b|^\W*{_NUMBER}\s*(m?s|m?sec)/sample\b", re.IGNORECASE
)
# What goes at a rate of its own: the mains, filters, screens, stimuli, radio …
_OTHER_RATE = re.compile(
    r"notch|alias|\bline|\bmains|power.?line|cut.?off|(?:low|high)[ _-]?pass|\bband|filter|corner|nyquist|screen|display|refresh|video"
    r"|flicker|\b(?:clock|cpu|mcu|i2c|spi|bus|baud|bit|pwm|rf|radio|carrier|tone|laser|led|resonan\w*|modulat\w*|excit\w*|stim\w*|target"
    r"|rr|beat|beacon|connection|advertis\w*|save|sync|flush|range)\b"
    r"|(?:heart|pulse|breath\w*|respir\w*)[ _-]?(?:rate|frequency)\W*\d",
    re.IGNORECASE,
)
_EPOCH = re.compile(r"\bepoch (?:period|length)\b[^\d\n]{0,16}(\d\d):(\d\d):(\d\d)\b", re.IGNORECASE)
_NAMES_ARE = re.compile(r"^\W*(?:labels|columns|names)\s*:?=?\s*", re.IGNORECASE)
_NAMES_WITHIN = re.compile(r"\b(?:labels|columns|channels)\s*[:=]+\s*([^,;:=\t]+)", re.IGNORECASE)
_UNITS_ARE = re.compile(r"^\W*units?\s*(?:[:=,;\t]+\s*(.*))?$", re.IGNORECASE)
_SENSOR_IS = re.compile(r"^\W*(?:sensor type|channel name)\s*[:=,;\t]+\s*(.*)$", re.IGNORECASE)


def rate_in(preface: Sequence[str]) -> Fraction | None:
    """Samples per second, where lines say it once."""
    rates = set[Fraction]()
    for line in preface:
        if match := _of_samples(_RATE, line):
            number, unit = [*filter(None, match.groups()), ""][:2]
            rates.add(Fraction(number) * (1000 if unit.lower() == "khz" else 1))
        elif (match := _of_samples(_STEP, line)) and float(next(filter(None, match.groups()))):
            number, unit = filter(None, match.groups())
            rates.add((1000 if unit.lower().startswith("m") else 1) / Fraction(number))
        elif match := _EPOCH.search(line):
            hours, minutes, seconds = map(int, match.groups())
            period = 3600 * hours + 60 * minutes + seconds
            rates.add(Fraction(bool(period), max(period, 1)))
    rates -= {Fraction(0)}
    return rates.pop() if len(rates) == 1 else None


def _of_samples(pattern: re.Pattern[str], line: str) -> re.Match[str] | None:
    """The first match that is said of the samples, and not of what else goes at a rate."""
    begin = 0
    for match in pattern.finditer(line):
        if "sampl" in match[0].lower() or not _OTHER_RATE.search(line, begin, match.end()):
            return match
        begin = match.end()
    return None


def names_in(
    preface: Sequence[str],
    width: int,
    cells: Callable[[str], list[str]],  # a line's cells
    are_names: Callable[[list[str]], bool],
    are_units: Callable[[list[str]], bool],
) -> tuple[list[str], list[str]]:
    """Names of so many columns: in the last comment so wide, or the one above, where those are units; and these."""
    comments: list[list[str]] = []
    for line in reversed([line for line in preface if line.startswith("#")]):
        row = cells(_NAMES_ARE.sub("", line.lstrip("# ")))
        if len(row) == width and are_names(row):
            comments.append(row)
        elif comments:
            break
    within = [match[1].split() for line in preface if (match := _NAMES_WITHIN.search(line))]
    sensors = [match[1].strip() for line in preface if (match := _SENSOR_IS.match(line))]
    lists = [*comments[-1:], *_lists_in_json(preface), *within, ["", *sensors]]
    units = comments[0] if len(comments) > 1 and are_units(comments[0]) else []
    return next((names for names in lists if len(names) == width), []), units


def _lists_in_json(preface: Sequence[str]) -> list[list[str]]:
    """What JSON in a comment calls columns, the outermost first."""
    lists: list[list[str]] = []

    def collect(content: Any) -> None:
        if isinstance(content, dict):
            names = [content[key] for key in ("column", "columns") if isinstance(content.get(key), list)]
            lists.extend([*map(str, some_names)] for some_names in names)
            for inner in content.values():
                collect(inner)

    for line in preface:
        if (text := line.lstrip("# ").strip()).startswith("{"):
            with contextlib.suppress(ValueError, RecursionError):
                collect(json.loads(text))
    return lists


def units_in(preface: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Units by column: one for all, or one a column, the first, as that of times and counters, apart or not."""
    texts = [(match[1] or "").strip() for line in preface if (match := _UNITS_ARE.match(line))]
    if len(texts) == 1:
        several = [cell for cell in re.split(r"[,;\t]", texts[0]) if cell.strip()]
        if len(several) == 1 and known_unit(texts[0]):
            return dict.fromkeys(names, known_unit(texts[0]))
        texts = several if len(several) > 1 else []
    for columns in (names, names[1:]):
        if texts and len(texts) == len(columns):
            return {column: unit for column, cell in zip(columns, texts, strict=True) if (unit := unit_in(cell))}
    return {}
