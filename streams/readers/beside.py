"""What JSON beside a file says of it. In: a File. Out: the rate of its samples and their unit.

Recordings are exported with a file of settings: ``{"sample_freqs": {"ECG": 500}, "units": {"ECG": "uV"}}`` in `meta.json` beside `ECG.csv`,
or ``{"SamplingFrequency": 100}`` in `a.json` beside `a.csv`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from kymo.streams.readers.columns import Facts
from kymo.streams.readers.files import File
from kymo.streams.units import known_unit
from kymo.streams.words import is_number

_NAMES = ("meta.json", "metadata.json", "info.json")  # besides the file's own name
_LARGEST = 2**20  # bytes
_RATE = re.compile(r"sampl\w*[ _-]?(freq\w*|rate)\w*|fs|sfreq|srate|rate_hz", re.IGNORECASE)
_UNIT = re.compile(r"units?", re.IGNORECASE)


def files_beside(file: File) -> Iterator[File]:
    """The files of settings that are beside a file, its own first."""
    for name in (f"{file.place.stem}.json", *_NAMES):
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
        rates = {value for value in _values(content, stem, _RATE) if is_number(value) and 1e-9 < float(value) < 1e9}
        units = {known_unit(value) for value in _values(content, stem, _UNIT)} - {""}
        if len(rates) == 1:
            columns = dict.fromkeys(names, units.pop()) if len(units) == 1 else {}
            return Facts(Fraction(rates.pop()), columns, source=beside.place.name)
    return Facts()


def _values(content: Any, stem: str, key: re.Pattern[str]) -> Iterator[str]:
    """What members of such a name say: for all, or in an object a signal, for the one of the file's name."""
    if not isinstance(content, Mapping):
        return
    of_file = {name.lower(): value for name, value in content.items()}.get(stem.lower())
    if isinstance(of_file, Mapping):
        yield from _values(of_file, stem, key)
        return
    for name, value in content.items():
        if key.fullmatch(name):
            of_signal = (
                {str(k).lower(): v for k, v in value.items()}.get(stem.lower()) if isinstance(value, Mapping) else value
            )
            if isinstance(of_signal, int | float | str):
                yield str(of_signal)
