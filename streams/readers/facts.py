"""What a file says besides its rows. In: the lines before a table, JSON beside the file. Out: the rate, names and units of columns.

Loggers write about the device above the names: what goes at a rate of its own there, such as a filter or the mains, is no sampling rate.
Others export a file of settings: ``{"sample_freqs": {"ECG": 500}, "units": {"ECG": "uV"}}`` in `meta.json` beside `ECG.csv`, or
``{"SamplingFrequency": 100}`` in `a.json` beside `a.csv`.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from kymo.streams.readers.cells import cells_in, count_values
from kymo.streams.readers.files import File
from kymo.streams.units import known_unit, unit_in
from kymo.streams.words import is_number

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

_SETTINGS = ("meta.json", "metadata.json", "info.json")  # besides the file's own name
_LARGEST = 2**20  # bytes
_RATE_KEY = re.compile(r"sampl\w*[ _-]?(freq\w*|rate)\w*|fs|sfreq|srate|rate_hz", re.IGNORECASE)
_UNIT_KEY = re.compile(r"units?", re.IGNORECASE)


class Facts(NamedTuple):
    """What is said once of all rows."""

    rate: Fraction | None = None  # samples per second; 0 of an irregular stream
    units: Mapping[str, str] = {}  # by column
    start_ns: int = 0  # time of the first sample, or from which the times count
    source: str = "the head of the file"  # what says the rate
    stream: str = ""  # what it is, where that is known


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


def names_in(preface: Sequence[str], width: int, delimiter: str) -> tuple[list[str], list[str]]:
    """Names of so many columns: in the last comment so wide, or the one above, where those are units; and these."""
    comments: list[list[str]] = []
    for line in reversed([line for line in preface if line.startswith("#")]):
        row = cells_in(_NAMES_ARE.sub("", line.lstrip("# ")), delimiter)
        if len(row) == width and not count_values(row):
            comments.append(row)
        elif comments:
            break
    within = [match[1].split() for line in preface if (match := _NAMES_WITHIN.search(line))]
    sensors = [match[1].strip() for line in preface if (match := _SENSOR_IS.match(line))]
    lists = [*comments[-1:], *_lists_in_json(preface), *within, ["", *sensors]]
    units = comments[0] if len(comments) > 1 and are_units(comments[0], range(width)) else []
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


def are_units(row: Sequence[str], columns: Sequence[int]) -> bool:
    cells = [row[n] for n in columns if n < len(row) and row[n]]
    return bool(cells) and 2 * sum(bool(known_unit(cell)) for cell in cells) >= len(cells)


def files_beside(file: File) -> Iterator[File]:
    """The files of settings that are beside a file, its own first."""
    for name in (f"{file.place.stem}.json", *_SETTINGS):
        if (beside := file.beside(name)).exists():
            yield beside


def facts_beside(file: File, names: Sequence[str]) -> Facts:
    """What the first JSON beside a file says of its rate, if one does, and of the unit of all its columns."""
    stem = file.place.stem
    for beside in files_beside(file):
        with beside.open() as raw:
            text = raw.read(_LARGEST)
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            continue
        rates = {
            value for value in _members_of(content, stem, _RATE_KEY) if is_number(value) and 1e-9 < float(value) < 1e9
        }
        units = {known_unit(value) for value in _members_of(content, stem, _UNIT_KEY)} - {""}
        if len(rates) == 1:
            columns = dict.fromkeys(names, units.pop()) if len(units) == 1 else {}
            return Facts(Fraction(rates.pop()), columns, source=beside.place.name)
    return Facts()


def _members_of(content: Any, stem: str, key: re.Pattern[str]) -> Iterator[str]:
    """What members of such a name say: for all, or in an object a signal, for the one of the file's name."""
    if not isinstance(content, Mapping):
        return
    of_file = {name.lower(): value for name, value in content.items()}.get(stem.lower())
    if isinstance(of_file, Mapping):
        yield from _members_of(of_file, stem, key)
        return
    for name, value in content.items():
        if key.fullmatch(name):
            if isinstance(value, Mapping):
                value = {str(signal).lower(): item for signal, item in value.items()}.get(stem.lower())  # noqa: PLW2901
            if isinstance(value, int | float | str):
                yield str(value)
