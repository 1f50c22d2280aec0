"""Pupils in tables of eye trackers. In: a Table with columns of an eye, or two, as Pupil Labs, Tobii, Gazepoint, EyeLink and iMotions call
them. Out: the same with channels `pupil`, `left`, `right`, in which blinks are missing: NaN, where a tracker writes 0, a negative number, a
flag, or little confidence.

`pupil` is the mean of both eyes, or the eye that is there; where each row is of one eye, that of which the tracker is surer.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kymo.streams.chunk import Array
from kymo.streams.readers.cells import number_in
from kymo.streams.readers.columns import Block, ColumnRoles, Table, requested_inputs
from kymo.streams.readers.times import TIME_COLUMNS, time_columns
from kymo.streams.recording import InputOptions, ReadOptions
from kymo.streams.units import unit_of_name
from kymo.streams.words import some

_OUT = ("pupil", "left", "right")
_SIZE = "(?:diameter|size|area|d)?"
_UNIT = "(?:mm|px|pixels?)?"
#: Names without blanks and signs, in lower case; of an eye the better comes first (Gazepoint has mm and pixels).
_SIDES = {
    "left": (
        f"(?:et)?pupil{_SIZE}left{_UNIT}",
        f"l(?:eft)?(?:eye)?(?:pupil|mapped){_SIZE}{_UNIT}",
        "lpmm",
        "lpd",
        "p[as]left",
        "ldiax(?:px)?",
    ),
    "right": (
        f"(?:et)?pupil{_SIZE}right{_UNIT}",
        f"r(?:ight)?(?:eye)?(?:pupil|mapped){_SIZE}{_UNIT}",
        "rpmm",
        "rpd",
        "p[as]right",
        "rdiax(?:px)?",
    ),
    "pupil": (f"(?:average|mean)?pupil{_SIZE}(?:filtered|average|mean)?{_UNIT}",),
}
_VALID = {
    side: f"(?:et)?validity{side}(?:eye)?|{side}pupilvalidity|{side[0]}(?:p(?:mm|upil)?v|validity)"
    for side in _SIDES
    if side != "pupil"
}
_BLINK = {"": "(?:is)?blinks?(?:detected)?(?:binary)?|bkid", "left": "leftinblink", "right": "rightinblink"}
_EYE_ROWS, _CONFIDENCE, _METHOD = "eye_id", "confidence", "method"  # of Pupil Labs: 0 is the right eye
_EYES = {"left": "1", "right": "0"}
_SURE = 0.6  # as their own programs take it
_CODED = "(?:et)?validity(left|right)(eye)?"  # of Tobii: 0 is sure, 4 is lost; or a word
_RELATIVE, _SENTINELS = 0.05, 3  # so many values below 0, of more than so many kinds, are no losses


def with_pupils(table: Table, options: ReadOptions) -> tuple[Table, ReadOptions]:
    """The table and what is asked of it, with channels of pupils where it has columns of eyes that nobody asks for by their own names."""
    columns = _columns_of(table)
    sources = {*columns.values()} & {*table.names}
    requested = requested_inputs(options, table.path)
    asked = {name for item in requested for name in item.channels}
    if not sources or asked & (sources - {*_OUT}) or (asked and not asked & {*_OUT}):
        return table, options
    tracker = len(columns) > 1 or table.file.stream.startswith("pupil") or any(i.stream == "pupil" for i in requested)
    if not asked and tracker:
        items = requested or (InputOptions("pupil"),)
        options = replace(options, inputs=tuple(replace(item, channels=("pupil",)) for item in items), stream_name=None)
    return _Pupils(table, columns, tracker, asked), options


def _columns_of(table: Table) -> dict[str, str]:
    """Columns of the eyes' sizes, validity and blinks, by what they are."""
    plain = {name: re.sub(r"[^a-z0-9]", "", name.lower()) for name in table.names if name}
    columns = dict[str, str]()
    if _EYE_ROWS in plain:
        sizes = [name for name in ("diameter_3d", "diameter") if name in table.numeric]
        return {"pupil": sizes[0], _EYE_ROWS: _EYE_ROWS} if sizes else {}
    for side, patterns in _SIDES.items():
        numeric = [name for name in plain if name in table.numeric]
        names = [name for pattern in patterns for name in numeric if re.fullmatch(pattern, plain[name])]
        columns |= {side: names[0]} if names else {}
    if columns.keys() & {"left", "right"}:
        columns.pop("pupil", None)
    flags = {f"valid {side}": pattern for side, pattern in _VALID.items()}
    flags |= {f"blink {side}": pattern for side, pattern in _BLINK.items()}
    for flag, pattern in flags.items() if columns else ():
        columns |= dict([(flag, name) for name in plain if re.fullmatch(pattern, plain[name])][:1])
    return columns


class _Pupils(Table):
    """A table with channels of pupils in the place of a tracker's columns."""

    def __init__(self, inner: Table, columns: Mapping[str, str], tracker: bool, asked: Collection[str]) -> None:
        self._inner, self._columns = inner, columns
        self._rows = _EYE_ROWS in columns
        self._sizes = {side: columns[side] for side in _OUT if side in columns}
        self._made = _OUT if self._rows or len(self._sizes) > 1 else ("pupil", *({*self._sizes} - {"pupil"}))
        self._flags = [name for side, name in columns.items() if side not in _OUT]
        self._flags += [name for name in (_CONFIDENCE, _METHOD) if self._rows and name in inner.names]
        hidden = {*self._sizes.values(), *self._flags, *self._made}
        # What nobody asks for is no column.
        made = [name for name in self._made if name in asked] or ["pupil"]
        names = [name for name in inner.names if name not in hidden] + made
        self._eye, self._method = self._surer_eye()
        self._eyes = {self._eye if name == "pupil" else _EYES[name] for name in made}
        self._kept = (*[_EYE_ROWS] * self._rows, *[_METHOD] * bool(self._method))  # columns by which rows are
        clocks = {name for name in inner.numeric if name in TIME_COLUMNS or self._is_time(name)}
        numeric = (clocks if tracker else {*inner.numeric} - hidden) | {*made}
        super().__init__(inner.file, names, numeric, long=inner.long)
        units = {
            unit_of_name(name) or ("mm" if re.search("(?i)mm$|3d$", name) else "") for name in self._sizes.values()
        }
        units |= {inner.facts.units.get(name, "") for name in self._sizes.values()}
        known = {**inner.facts.units, **dict.fromkeys(self._made, max(units))}
        self.facts = inner.facts._replace(units=known, stream="pupil" if tracker else inner.facts.stream)
        self.late, self.later_notes = inner.late, inner.later_notes
        self.cell_units = {**inner.cell_units, **(dict.fromkeys(clocks, "s") if self._rows else {})}
        self._relative = {side: _is_relative(inner.first(name)) for side, name in self._sizes.items()}
        self.notes = [*inner.notes, *self._what_was_done()]

    def _keeps(self, eye: str, method: str = "") -> bool:
        """Whether a row of that eye, and by that method, is one that counts."""
        return _number_text(eye) in self._eyes and method == self._method

    def _is_time(self, name: str) -> bool:
        return bool(time_columns([name], self._inner.numeric, self.first))

    def _what_was_done(self) -> Iterator[str]:
        names = [f"`{name}`" for name in self._sizes.values()]
        flags = [f"`{name}`" for name in self._flags if name not in (_EYE_ROWS, _METHOD)]
        if self._rows:
            eye = ("right", "left")[self._eye == "1"]
            method = f", by {self._method}" if self._method else ""
            yield f"`pupil` is {names[0]} of the {eye} eye{method}, of which it is surer; `left` and `right` can be taken, too"
        elif len(names) > 1:
            yield f"`pupil` is the mean of {' and '.join(names)}, or the one that is there; `left` and `right` can be taken, too"
        if any(self._relative.values()):
            yield f"{some(names, 2)} runs below 0, as what is relative to a baseline: numbers below 0 are kept, doubtful"
        else:
            by = f", and what {some(flags, 5)} says is none" if flags else ""
            yield f"blinks are missing: 0 and less in {some(names, 2)}{by}"

    def _surer_eye(self) -> tuple[str, str]:
        """The eye that `pupil` is where rows are of one each, and the method whose rows are taken, empty where there is one."""
        if not self._rows:
            return "", ""
        cells = {name: self._inner.first(name) for name in (self._sizes["pupil"], *self._flags)}
        methods = list(dict.fromkeys(cells.get(_METHOD, ())))
        full = {m for m, size in zip(cells.get(_METHOD, ()), cells[self._sizes["pupil"]], strict=False) if size.strip()}
        method = next((m for m in reversed(methods) if m in full), "") if len(methods) > 1 else ""
        sure: dict[str, list[float]] = {}
        for n, eye in enumerate(cells[_EYE_ROWS]):
            if not method or cells[_METHOD][n] == method:
                text = cells[_CONFIDENCE][n] if _CONFIDENCE in cells else "1"
                sure.setdefault(_number_text(eye), []).append(number_in(text) or 0.0)
        return max(sorted(sure), key=lambda eye: round(float(np.mean(sure[eye])), 2)), method

    def first(self, name: str) -> Sequence[str]:
        """A column's first cells; of a channel that is made, those of its eye, or of one of them."""
        if name in self._made:
            name = self._sizes.get(name) or next(iter(self._sizes.values()))
        cells = self._inner.first(name)
        if not self._rows:
            return cells
        rows = zip(cells, *(self._inner.first(name) for name in self._kept), strict=True)
        return [cell for cell, *texts in rows if self._keeps(*texts)]

    def blocks(self, roles: ColumnRoles) -> Iterator[Block]:
        """All rows, a block at a time."""
        inner = copy(roles)
        kept = [name for name in roles.channels if name not in self._made]
        inner.channels = tuple(dict.fromkeys([*kept, *self._sizes.values()]))
        inner.metadata = tuple(dict.fromkeys([*roles.metadata, *self._flags]))
        at = {name: n for n, name in enumerate(inner.channels)}
        for block in self._inner.blocks(inner):
            if self._kept:
                texts = zip(*(block.texts[name] for name in self._kept), strict=True)
                block = block.picked(np.flatnonzero([self._keeps(*row) for row in texts]))  # noqa: PLW2901
            made = self._channels({side: block.values[:, at[name]] for side, name in self._sizes.items()}, block.texts)
            values = [made[name] if name in made else block.values[:, at[name]] for name in roles.channels]
            yield replace(block, values=np.column_stack(values))

    def _channels(
        self, sizes: Mapping[str, Array], texts: Mapping[str, Sequence[str]]
    ) -> dict[str, NDArray[np.float64]]:
        eyes = {side: values.astype(np.float64) for side, values in sizes.items()}
        for side, values in eyes.items():
            lost = np.zeros(len(values), np.bool_) if self._relative[side] else ~(values > 0)
            for flag, name in self._columns.items():
                kind, _, of = flag.partition(" ")
                if kind in ("valid", "blink") and of in ("", side):
                    lost |= [_is_lost(kind, name, text) for text in texts[name]]
            if self._rows and _CONFIDENCE in texts:
                lost |= [(number_in(text) or 0.0) < _SURE for text in texts[_CONFIDENCE]]
            values[lost] = np.nan
        if self._rows:
            of_row = np.array([_number_text(text) for text in texts[_EYE_ROWS]])
            eye_of = {"pupil": self._eye, **_EYES}
            return {name: np.where(of_row == eye, eyes["pupil"], np.nan) for name, eye in eye_of.items()}
        both = np.array(list(eyes.values()))  # (eyes, n)
        seen = np.isfinite(both)
        with np.errstate(invalid="ignore"):
            mean = np.where(seen, both, 0).sum(axis=0) / seen.sum(axis=0)
        return {**eyes, "pupil": mean}


def _number_text(text: str) -> str:
    """An eye's number, without the fraction that a table program gave it."""
    return text.strip().partition(".")[0]


def _is_lost(kind: str, name: str, text: str) -> bool:
    """Whether a flag says that the eye was not seen."""
    number, word = number_in(text), text.strip().lower()
    if kind == "blink":
        return bool(number) if number is not None else word in ("true", "yes", "blink")
    if number is None:
        return word not in ("valid", "true", "yes")
    return number > 1 if re.fullmatch(_CODED, re.sub(r"[^a-z]", "", name.lower())) else number < 1


def _is_relative(cells: Sequence[str]) -> bool:
    """Whether values below 0 are measured, as what is said relative to a baseline."""
    below = [number for cell in cells if (number := number_in(cell)) is not None and number < 0]
    return len(below) > _RELATIVE * len(cells) and len({*below}) > _SENTINELS
