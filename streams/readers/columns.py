"""What each column of a table is. In: a Table, as its format reads it, and ReadOptions. Out: ColumnRoles (channels, time, label,
session …), by which its rows are read."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fractions import Fraction
from itertools import combinations, pairwise, takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kymo.streams.chunk import Array
from kymo.streams.errors import SourceError
from kymo.streams.readers.cells import is_missing
from kymo.streams.readers.facts import Facts
from kymo.streams.readers.files import File
from kymo.streams.readers.head import EACH_A_TABLE
from kymo.streams.readers.keep import Keep
from kymo.streams.readers.times import TIME_COLUMNS, TimeColumn, composed, counter_columns, time_columns, time_parts
from kymo.streams.recording import InputOptions, ReadOptions
from kymo.streams.units import factor, text_behind, unit_of_name
from kymo.streams.words import brief, is_number, some

Int = NDArray[np.int64]
# Words of names of columns that say which sensor a row is of, where so many rows follow one of another.
_SENSOR_WORDS = {
    *("sensor", "type", "tag", "stream", "signal", "channel", "variable", "measure", "measurement", "metric"),
    *("parameter", "topic", "keypoint", "landmark", "joint", "bodypart", "marker", "field", "device", "node", "mac"),
    *("placement", "eye", "hand", "side", "foot", "leg", "person"),
}
_ID_WORDS, _MOST_SENSORS = {"id", "no", "nr", "number", "index"}, 16
_ALTERNATE, _OTHER_ROWS = 0.2, 0.05
_TIME_UNITS, _LEAST_TIMES, _SAME_STEP = ("s", "ms", "us"), 8, 1.5
# Name of the stream that is made where neither a recipe nor the user names one.
_DEFAULT_STREAM = "sensor"


@dataclass(slots=True)
class Block:
    rows: Int  # ``(n,)``, as a user counts them
    values: Array  # ``(n, channels)`` in the order of `channels`; NaN where missing
    texts: Mapping[str, Sequence[str]]  # each text column's n texts
    times_ns: Int | None = None
    notes: list[str] = field(default_factory=list)  # what was passed over

    def picked(self, at: Int, names: Collection[str] | None = None) -> Block:
        """Some of its rows, with the texts of some columns; by default of all."""
        if len(at) == len(self.rows) and names is None:
            return self
        columns = [name for name in self.texts if names is None or name in names]
        texts = {name: [self.texts[name][i] for i in at.tolist()] for name in columns}
        values = self.values if len(at) == len(self.rows) else self.values[at]
        return Block(self.rows[at], values, texts, None if self.times_ns is None else self.times_ns[at], self.notes)


class Table(ABC):
    """A file of rows, one a sample: what a format says of it before its rows are read."""

    facts = Facts()
    notes: Sequence[str] = ()  # what was decided of all of it
    later_notes: Sequence[str] = ()  # the same, said after the columns
    late: Collection[str] = ()  # columns that the first rows say nothing of
    cell_units: Mapping[str, str] = {}  # units that stand behind numbers, by column

    def __init__(self, file: File, names: Sequence[str], numeric: Collection[str] = (), *, long: bool = False) -> None:
        self.file, self.path, self.names, self.numeric = file, file.path, names, numeric
        self.long = long  # whether its sessions are given away as they end, as it is too large to be held

    @abstractmethod
    def first(self, name: str) -> Sequence[str]:
        """A column's first cells."""

    @abstractmethod
    def blocks(self, roles: ColumnRoles) -> Iterator[Block]:
        """All rows, a block at a time."""


class ColumnRoles:
    def __init__(self, table: Table, options: ReadOptions) -> None:
        self._table, self._options, self._path = table, options, table.path
        self._names = [name for name in table.names if name]  # an empty one is no column
        self.notes, self._unit_notes = [*table.notes], list[str]()  # what was decided
        self.keep = Keep(options.keep) if options.keep else None
        asked = {name for item in options.inputs for name in item.channels}
        self._name_rows(asked)
        unasked = [name for name in self._names if name not in asked | self._row_names]
        self.time: str | None
        self.parts: Mapping[str, str]  # columns that make a time together, by what they are of it
        self._counted = False  # whether the column of times counts samples
        self.rate = self._common_rate(table.facts.rate)  # samples per second, where something says it
        clocks, notes = self._find_times(unasked)
        self._check_one_time(unasked)
        no_channels = {*self._row_names, *clocks, self.time, *TIME_COLUMNS}
        free = [name for name in self._names if name in table.numeric and name not in no_channels]
        self._check_one_sensor(unasked, free)
        self.inputs = self._streams(free)  # streams to make, each with its channels
        # All of them, in the order of a block's values.
        self.channels = tuple(dict.fromkeys(name for item in self.inputs for name in item.channels))
        self.notes += [*notes, *self._unit_notes]
        if table.facts.rate and (self._counted or self.time is None) and not any(item.rate_hz for item in self.inputs):
            self.inputs = tuple(replace(item, rate_hz=table.facts.rate) for item in self.inputs)
            self.notes.append(f"rate {float(table.facts.rate):g} Hz, as {table.facts.source} says")
        if table.facts.rate == 0:
            self.inputs = tuple(i if i.rate_hz is not None else replace(i, rate_hz=Fraction(0)) for i in self.inputs)
        # Not missed is the column `label`, where no recipe may ask for it, and the recipe's own where a labels JSON has its labels.
        optional = {"label", options.label_column if options.label_key else None, *self.labels}
        absent = [name for name in options.label_columns if name not in optional]
        self.notes += [f"no label column `{name}`: read without labels" for name in absent]
        # A column of a further label set stays metadata too: what is constant in a session may say its side of a split.
        further = set(self.labels) - {options.label_column}
        metadata = [name for name in self._names if name not in no_channels or name in further]
        self.metadata = tuple(name for name in metadata if name not in self.channels)  # where they are constant
        left_out = sorted(name for name in clocks if name not in (self.time, *self.channels))
        self.notes += [f"columns left out, they count time or rows: {', '.join(left_out)}"] if left_out else []
        self.notes += table.later_notes
        asked_rate = any(item.rate_hz for item in self.inputs)
        self.clock: TimeColumn | None = None  # what reads the column of times
        if self.time:
            self.clock = TimeColumn(self.time, self._path, self.rate, counts=self._counted, asked=asked_rate)
            self.clock.say_unit(table.cell_units.get(self.time, ""))

    def times(self, columns: Mapping[str, Sequence[str]], rows: Int) -> Int | None:
        """Times of rows, by the texts of one column or of several; None where there are none."""
        if not self.clock:
            return None
        return self.clock.parse(composed(self.parts, columns) if self.parts else columns[self.clock.column], rows)

    @property
    def texts(self) -> tuple[str, ...]:
        """Columns to read as text, the time column apart."""
        keep = self.keep.columns if self.keep else ()
        names = (*self.session, self.subject, *self.labels, *keep, *self.metadata, *self.parts.values())
        return tuple(dict.fromkeys(name for name in names if name is not None))

    @property
    def needed(self) -> set[str | None]:
        """Columns that no row may be without."""
        return {*self.channels, self.time, *self._row_names}

    def _name_rows(self, asked: Collection[str]) -> None:
        """Find the columns that say whose rows these are, and in which class; none that a stream asks for as a channel."""
        options, names, keep = self._options, self._names, self.keep.columns if self.keep else ()
        for name, count in Counter(names).items():
            if count > 1:
                wrong = f"column `{brief(name)}` is there {count} times; each needs a name of its own"
                raise SourceError(wrong, self._path, 1)
        # Of a session's files one may say whose it is.
        subject = [options.subject] if options.subject and not self._table.file.stream else []
        for name in (*options.session, *subject, *keep):
            if name not in names:
                raise no_such_name(name, names, self._path)
        usual = {name for name in ("session", "subject") if name in names and name not in asked}
        self.session = options.session or tuple(usual & {"session"})
        self.subject = options.subject or ("subject" if "subject" in usual else None)
        self.subject = self.subject if self.subject in names else None
        self.labels = tuple(name for name in options.label_columns if name in names)
        self._row_names = {*self.session, self.subject, *self.labels, *keep}

    def _common_rate(self, rate: Fraction | None) -> Fraction | None:
        """Samples per second of all streams; None where nothing says it, or theirs differ."""
        rates = {item.rate_hz or rate or None for item in requested_inputs(self._options, self._path)} or {rate or None}
        return rates.pop() if len(rates) == 1 else None

    def _find_times(self, names: Sequence[str]) -> tuple[set[str], list[str]]:
        """Find which column is the time, or counts samples instead; gives all that count time or rows, and what is doubtful of them."""
        cells, asked = self._table.first, self._common_rate(None) is not None
        candidates = time_columns(names, self._table.numeric, cells, self.rate, asked)
        counters = counter_columns(names, cells)
        certain = (*TIME_COLUMNS, *(candidate.name for candidate in candidates if not candidate.doubt))
        self.time = next((name for name in certain if name in names), None)
        self.parts = time_parts(self.time, names, cells)
        clocks = {*(candidate.name for candidate in candidates), *counters, *self.parts.values()}
        clocks |= {*time_parts(None, names, cells).values()}
        if self.time is not None or self.parts:
            self.time = self.time or self.parts["second"]
        elif counters and self.rate is not None and not self.session:
            self.time, self._counted = counters[0], True
            return clocks, [f"samples are numbered by `{counters[0]}`"]
        else:
            return clocks, [f"{candidate.doubt}; left out" for candidate in candidates if candidate.doubt]
        return clocks, []

    def _check_one_sensor(self, names: Sequence[str], free: Sequence[str]) -> None:
        """Refuse rows of several sensors below each other, which are no samples of one; `free` columns may be channels instead."""
        for name in names:
            words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", name)]
            if _SENSOR_WORDS.isdisjoint(words):
                continue
            texts = [text.strip() for text in self._table.first(name) if text.strip()]
            different, changes = list(dict.fromkeys(texts)), sum(a != b for a, b in pairwise(texts))
            if not 1 < len(different) <= len(texts) / 2 or changes <= _ALTERNATE * len(texts):
                continue
            numbered = words[-1] in _ID_WORDS
            if name not in free or (
                (numbered or _SENSOR_WORDS.issuperset(words))
                and len(free) > 1
                and all(map(str.isdigit, different))
                and (numbered or 2 < len(different) <= _MOST_SENSORS or self._take_turns(texts))
            ):
                sensors = some([brief(text) for text in different], 6)
                take = f"keep = \"{name} == '{brief(different[0])}'\" in the recipe's [source], or make a table of each"
                wrong = f"column `{brief(name)}` says which sensor each row is of ({sensors}): take one with {take}"
                raise SourceError(wrong, self._path)

    def _take_turns(self, texts: Sequence[str]) -> bool:
        """Whether rows of several sensors follow each other evenly, or share times: numbers of a signal do neither."""
        times = self._table.first(self.time) if self.time else ()
        even = any(texts[step:] == texts[:-step] for step in range(2, min(_MOST_SENSORS, len(texts) // 2)))
        shared = len(times) == len(texts) == len({*zip(times, texts, strict=True)}) > (1 + _ALTERNATE) * len({*times})
        return even or shared

    def _check_one_time(self, names: Sequence[str]) -> None:
        """Refuse columns of times whose units are said and whose steps differ: sensors of other rates beside each other."""
        steps = {}
        for name in names:
            if (unit := unit_of_name(name)) in _TIME_UNITS:
                times = np.array([float(text) for text in self._table.first(name) if is_number(text)], np.float64)
                rising = np.diff(times)
                if len(times) >= _LEAST_TIMES and (rising >= 0).all() and np.median(rising) > 0:
                    steps[name] = float(np.median(rising)) * factor(unit, "s")
        if steps and max(steps.values()) > _SAME_STEP * min(steps.values()):
            shown = some([f"`{brief(name)}`" for name in steps], 4)
            raise SourceError(f"has several columns of times that differ ({shown}): {EACH_A_TABLE}", self._path)

    def _streams(self, free: Sequence[str]) -> tuple[InputOptions, ...]:
        """Streams that the columns make, each with its channels; `free` columns are those of an input that names none."""
        names, path, options = self._names, self._path, self._options
        requested = requested_inputs(options, path) or (InputOptions(self._table.facts.stream or _DEFAULT_STREAM),)
        present = [item for item in requested if not item.channels or any(name in names for name in item.channels)]
        several = len(options.inputs) > 1
        if not present:
            asked = ", ".join(f"`{item.stream}` ({', '.join(item.channels)})" for item in requested)
            if len(requested) > 1:
                wrong = f"no column of any stream that is asked for: {asked}; there are: {some(names, 40)}"
                raise SourceError(wrong, path)
            raise no_such_name(requested[0].channels[0], names, path, _kind(requested[0], several))
        for first, second in combinations(present, 2):
            if first.channels and set(first.channels) == set(second.channels):
                name = f"{first.stream.replace('.', '_')}{self._table.file.suffix}"
                alike = (
                    f"its columns {', '.join(first.channels)} are those of `{first.stream}` and of `{second.stream}`"
                )
                which = f"let its name say which ({name}), or [source] file_names in the recipe"
                raise SourceError(f"{alike}: {which}", path)
        self.notes += [
            f"no column of stream `{item.stream}`: read without it" for item in requested if item not in present
        ]
        named = {name for item in present for name in item.channels}
        inputs: list[InputOptions] = []
        for item in present:
            for name in item.channels:
                if name not in names:
                    raise no_such_name(name, names, path, _kind(item, several))
            channels = item.channels or tuple(name for name in free if name not in named)
            if not channels:
                wrong = f"no column holds numbers for stream `{item.stream}` but times or counts, so there is no signal"
                raise SourceError(f"{wrong}; there are: {some([*map(brief, names)], 40) or 'none'}", path)
            if item.units and len(item.units) != len(channels):
                wrong = f"stream `{item.stream}` has {len(item.units)} units for {len(channels)} channels"
                raise SourceError(wrong, path)
            inputs.append(replace(item, channels=channels))
        if not (options.inputs or options.stream_name):
            inputs = self._by_rows(inputs[0])
        return tuple(map(self._with_units, inputs))

    def _by_rows(self, item: InputOptions) -> list[InputOptions]:
        """A stream a sensor, where each row holds values of one alone."""
        groups: dict[tuple[bool, ...], list[str]] = {}
        for name in item.channels:
            groups.setdefault(tuple(not is_missing(text) for text in self._table.first(name)), []).append(name)
        if len({*map(len, groups)}) > 1:
            return [item]  # rows of unlike lengths, which the reader refuses
        filled = np.array(list(groups))
        apart = len(groups) > 1 and filled.size and filled.sum(axis=1).min() > 1
        if not apart or (filled.sum(axis=0) != 1).mean() > _OTHER_ROWS:
            return [item]
        begins = ["".join(takewhile(bool, map(_same, zip(*group, strict=False)))) for group in groups.values()]
        names = [re.sub(r"\W+", "_", begin).strip("_").lower() for begin in begins]
        unlike = len({*names} - {""}) == len(names)
        return [
            replace(item, stream=name if unlike else f"{item.stream}.{n + 1}", channels=tuple(group))
            for n, (name, group) in enumerate(zip(names, groups.values(), strict=True))
        ]

    def _with_units(self, item: InputOptions) -> InputOptions:
        """An input whose channels have the units that the file says; what the recipe says holds where it says none."""
        units = []
        for name, recipe_unit in zip(item.channels, item.units or ("",) * len(item.channels), strict=True):
            unit, behind = self._table.facts.units.get(name) or unit_of_name(name), text_behind(name)
            if recipe_unit and behind and not unit:
                self._unit_notes.append(
                    f"`{name}`: `{behind}` is no known unit, the numbers are taken for {recipe_unit}, as the recipe says"
                )
            units.append(unit or recipe_unit)
        return replace(item, units=tuple(units) if any(units) else ())


def _kind(item: InputOptions, several: bool) -> str:
    """What a missing column would be, as an error calls it."""
    return f"column of stream `{item.stream}`:" if several else "column"


def no_such_name(name: str, names: Sequence[str], path: Path | str, kind: str = "column") -> SourceError:
    """The error for a name that is not there: which one, the nearest, and all that are."""
    lower = {known.lower(): known for known in names}
    near = get_close_matches(name.lower(), list(lower), 1, 0.5)
    hint = f" (did you mean `{lower[near[0]]}`?)" if near else ""
    shown = some([brief(known) for known in names], 40)
    return SourceError(f"no {kind} `{name}`{hint}; there are: {shown or 'none'}", path)


def requested_inputs(options: ReadOptions, path: Path | str) -> tuple[InputOptions, ...]:
    """The recipe's inputs under the stream name that the user gave instead, if any."""
    if options.stream_name is None:
        return options.inputs
    if not options.inputs:
        return (InputOptions(options.stream_name),)
    chosen = [item for item in options.inputs if item.stream == options.stream_name]
    if chosen:
        return tuple(chosen)
    if len(options.inputs) > 1:
        known = ", ".join(item.stream for item in options.inputs)
        raise SourceError(f"the stream name `{options.stream_name}` is none of the recipe's {known}", path)
    return (replace(options.inputs[0], stream=options.stream_name),)


def _same(letters: Sequence[str]) -> str:
    return letters[0] if len({*letters}) == 1 else ""
