"""What each column of a table is, and which rows are kept. In: column names, which are numeric, ReadOptions. Out: ColumnRoles (channels,
time, label, session …) and the rows that a recipe's `keep` leaves.

A `keep` such as ``usabledata == 1 and place in ("left", "right")`` is parsed, never evaluated as Python: comparisons, ``in``, ``and``,
``or``, ``not`` of column names, numbers and texts, nothing else.
"""

from __future__ import annotations

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fractions import Fraction
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kymo.streams.errors import SourceError
from kymo.streams.readers.cells import is_missing
from kymo.streams.readers.head import EACH_A_TABLE
from kymo.streams.readers.times import TIME_COLUMNS, TimeColumn, composed, counter_columns, time_columns, time_parts
from kymo.streams.readers.units import said_behind, unit_of_name
from kymo.streams.recording import InputOptions, ReadOptions
from kymo.streams.units import factor
from kymo.streams.words import brief, is_number, some

# Words of names of columns that say which sensor a row is of, where so many rows follow one of another.
_SENSOR_WORDS = {
    *(
        "sensor",
        "type",
        "tag",
        "stream",
        "signal",
        "channel",
        "variable",
        "measure",
        "measurement",
        "metric",
        "parameter",
    ),
    *("topic", "keypoint", "landmark", "joint", "bodypart", "marker", "field", "device", "node", "mac", "placement"),
    *("eye", "hand", "side", "foot", "leg", "person"),
}
_ID_WORDS, _MOST_SENSORS = {"id", "no", "nr", "number", "index"}, 16
_ALTERNATE, _OTHER_ROWS = 0.2, 0.05
_TIME_UNITS, _LEAST_TIMES, _SAME_STEP = ("s", "ms", "us"), 8, 1.5
# Name of the stream that is made where neither a recipe nor the user names one.
_DEFAULT_STREAM = "sensor"
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ALLOWED = "allowed are comparisons, in, and, or, not of column names, numbers and texts"
_LIMIT = 2_000


@dataclass(frozen=True, slots=True)
class ColumnRoles:
    """What each of a table's columns is."""

    inputs: tuple[InputOptions, ...]  # streams to make, each with its channels
    channels: tuple[str, ...]  # all of them, in the order of a block's values
    time: str | None
    session: tuple[str, ...]  # columns that name a session
    subject: str | None
    labels: tuple[str, ...]  # columns of labels
    metadata: tuple[str, ...]  # columns that are metadata where they are constant
    keep: Keep | None
    notes: list[str] = field(default_factory=list)  # what was decided
    counted: bool = False  # whether the column of times counts samples
    parts: Mapping[str, str] = field(default_factory=dict)  # columns that make a time together, by what they are of it
    rate: Fraction | None = None  # samples per second, where the recipe says one
    start_ns: int = 0  # time of the first sample, where no column says it
    late: Collection[str] = ()  # columns that the first rows say nothing of

    def time_column(self, path: Path | str) -> TimeColumn | None:
        """What reads the column of times, if there is one."""
        asked = any(item.rate_hz for item in self.inputs)
        return TimeColumn(self.time, path, self.rate, counts=self.counted, asked=asked) if self.time else None

    def time_texts(self, columns: Mapping[str, Sequence[str]]) -> Sequence[str]:
        """Texts of times, of one column or of several."""
        return composed(self.parts, columns) if self.parts else columns[self.time or ""]

    @property
    def texts(self) -> tuple[str, ...]:
        """Columns to read as text, the time column apart."""
        keep = self.keep.columns if self.keep else ()
        names = (*self.session, self.subject, *self.labels, *keep, *self.metadata, *self.parts.values())
        return tuple(dict.fromkeys(name for name in names if name is not None))


class Told(NamedTuple):
    """What a file says besides its rows."""

    rate: Fraction | None = None  # samples per second
    units: Mapping[str, str] = {}  # by column
    start_ns: int = 0  # time of the first sample
    by: str = "the head of the file"  # what says the rate


class _Texts(NamedTuple):
    """Columns that say whose rows these are, in which class, and which of them to keep."""

    session: tuple[str, ...]
    subject: str | None
    labels: tuple[str, ...]
    keep: Keep | None

    @property
    def names(self) -> set[str | None]:
        return {*self.session, self.subject, *self.labels, *(self.keep.columns if self.keep else ())}


class _Counting(NamedTuple):
    """Columns that count time or rows."""

    names: set[str]
    time: str | None = None
    parts: Mapping[str, str] = {}
    numbers: bool = False  # whether `time` holds the numbers of samples instead
    notes: Sequence[str] = ()


def column_roles(
    names: Sequence[str],  # column names; an empty one is no column
    numeric: Collection[str],  # those that hold numbers
    options: ReadOptions,  # what the recipe says
    path: Path | str,  # the file, for messages
    cells: Callable[[str], Sequence[str]],  # a column's first cells
    told: Told | None = None,  # what the file says, where the recipe does not
) -> ColumnRoles:
    """Roles of the columns `names`."""
    told = told or Told()
    names = [name for name in names if name]
    asked = {name for item in options.inputs for name in item.channels}
    texts = _text_columns(names, asked, options, path)
    rate = _common_rate(options, told.rate, path)
    unasked = [name for name in names if name not in asked | texts.names]
    counting = _counting_columns(
        unasked, numeric, cells, rate, bool(texts.session), _common_rate(options, None, path) is not None
    )
    _check_one_time(unasked, cells, path)
    no_channels = {*texts.names, *counting.names, counting.time, *TIME_COLUMNS}
    free = [name for name in names if name in numeric and name not in no_channels]
    _check_one_sensor(unasked, free, counting.time, cells, path)
    inputs, notes = _inputs(options, names, free, path)
    inputs = inputs if options.inputs or options.stream_name else _by_rows(inputs[0], cells)
    inputs = tuple(_with_units(item, told.units) for item in inputs)
    channels = tuple(dict.fromkeys(name for item in inputs for name in item.channels))
    notes += counting.notes
    notes += [
        f"`{name}`: `{said}` is no known unit, the numbers are taken for {unit}, as the recipe says"
        for item in inputs
        for name, unit in zip(item.channels, item.units, strict=False)
        if unit and not told.units.get(name) and not unit_of_name(name) and (said := said_behind(name))
    ]
    if told.rate and (counting.numbers or counting.time is None) and not any(item.rate_hz for item in inputs):
        inputs = tuple(replace(item, rate_hz=told.rate) for item in inputs)
        notes.append(f"rate {float(told.rate):g} Hz, as {told.by} says")
    notes += _absent_labels(options, texts.labels)
    # A column of a further label set stays metadata too: what is constant in a session may say its side of a split.
    further = set(texts.labels) - {options.label_column}
    metadata = tuple(name for name in names if name not in channels and (name not in no_channels or name in further))
    clocks = sorted(name for name in counting.names if name not in (counting.time, *channels))
    notes += [f"columns left out, they count time or rows: {', '.join(clocks)}"] if clocks else []
    roles = (counting.time, texts.session, texts.subject, texts.labels, metadata, texts.keep)
    return ColumnRoles(inputs, channels, *roles, notes, counting.numbers, counting.parts, rate, told.start_ns)


def _check_one_sensor(
    names: Sequence[str], free: Sequence[str], time: str | None, cells: Callable[[str], Sequence[str]], path: Path | str
) -> None:
    """Refuse rows of several sensors below each other, which are no samples of one; `free` columns may be channels instead."""
    for name in names:
        words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", name)]
        if _SENSOR_WORDS.isdisjoint(words):
            continue
        texts = [text.strip() for text in cells(name) if text.strip()]
        different, changes = list(dict.fromkeys(texts)), sum(a != b for a, b in pairwise(texts))
        if not 1 < len(different) <= len(texts) / 2 or changes <= _ALTERNATE * len(texts):
            continue
        numbered = words[-1] in _ID_WORDS
        if name not in free or (
            (numbered or _SENSOR_WORDS.issuperset(words))
            and len(free) > 1
            and all(map(str.isdigit, different))
            and (numbered or 2 < len(different) <= _MOST_SENSORS or _take_turns(texts, cells(time) if time else ()))
        ):
            raise SourceError(
                f"column `{brief(name)}` says which sensor each row is of ({some([brief(text) for text in different], 6)}): take one with "
                f"keep = \"{name} == '{brief(different[0])}'\" in the recipe's [source], or make a table of each",
                path,
            )


def _take_turns(texts: Sequence[str], times: Sequence[str]) -> bool:
    """Whether rows of several sensors follow each other evenly, or share times: numbers of a signal do neither."""
    even = any(texts[step:] == texts[:-step] for step in range(2, min(_MOST_SENSORS, len(texts) // 2)))
    shared = len(times) == len(texts) == len({*zip(times, texts, strict=True)}) > (1 + _ALTERNATE) * len({*times})
    return even or shared


def _check_one_time(names: Sequence[str], cells: Callable[[str], Sequence[str]], path: Path | str) -> None:
    """Refuse columns of times whose units are said and whose steps differ: sensors of other rates beside each other."""
    steps = {}
    for name in names:
        if (unit := unit_of_name(name)) in _TIME_UNITS:
            times = np.array([float(text) for text in cells(name) if is_number(text)], np.float64)
            rising = np.diff(times)
            if len(times) >= _LEAST_TIMES and (rising >= 0).all() and np.median(rising) > 0:
                steps[name] = float(np.median(rising)) * factor(unit, "s")
    if steps and max(steps.values()) > _SAME_STEP * min(steps.values()):
        shown = some([f"`{brief(name)}`" for name in steps], 4)
        raise SourceError(f"has several columns of times that differ ({shown}): {EACH_A_TABLE}", path)


def _text_columns(names: Sequence[str], asked: Collection[str], options: ReadOptions, path: Path | str) -> _Texts:
    """Columns that the recipe names, or that are named as such; none that a stream asks for as a channel."""
    keep = Keep(options.keep) if options.keep else None
    needed = (*options.session, *([options.subject] if options.subject else []), *(keep.columns if keep else ()))
    for name, count in Counter(names).items():
        if count > 1:
            raise SourceError(f"column `{brief(name)}` is there {count} times; each needs a name of its own", path, 1)
    for name in needed:
        if name not in names:
            raise no_such_name(name, names, path)
    session = options.session or (("session",) if "session" in names and "session" not in asked else ())
    subject = options.subject or ("subject" if "subject" in names and "subject" not in asked else None)
    return _Texts(session, subject, tuple(name for name in options.label_columns if name in names), keep)


def _common_rate(options: ReadOptions, head_rate: Fraction | None, path: Path | str) -> Fraction | None:
    """Samples per second of all streams; None where nothing says it, or theirs differ."""
    rates = {item.rate_hz or head_rate for item in requested_inputs(options, path)} or {head_rate}
    return rates.pop() if len(rates) == 1 else None


def _counting_columns(
    names: Sequence[str],
    numeric: Collection[str],
    cells: Callable[[str], Sequence[str]],
    rate: Fraction | None,
    sessions: bool,
    asked: bool,
) -> _Counting:
    """Which column is the time, and whether it counts samples instead; what is doubtful is noted where there is neither."""
    candidates, counters = time_columns(names, numeric, cells, rate, asked), counter_columns(names, cells)
    certain = (*TIME_COLUMNS, *(candidate.name for candidate in candidates if not candidate.doubt))
    counting = {*(candidate.name for candidate in candidates), *counters}
    time = next((name for name in certain if name in names), None)
    parts = time_parts(time, names, cells)
    counting |= {*time_parts(None, names, cells).values(), *parts.values()}
    if time is not None or parts:
        return _Counting(counting, time or parts["second"], parts)
    if counters and rate is not None and not sessions:
        return _Counting(counting, counters[0], {}, True, [f"samples are numbered by `{counters[0]}`"])
    return _Counting(counting, notes=[f"{candidate.doubt}; left out" for candidate in candidates if candidate.doubt])


def _absent_labels(options: ReadOptions, labels: Sequence[str]) -> list[str]:
    # Not missed is the column `label`, where no recipe may ask for it, and the recipe's own where a labels JSON has its labels.
    optional = {"label", options.label_column if options.label_key else None}
    absent = [name for name in options.label_columns if name not in optional and name not in labels]
    return [f"no label column `{name}`: read without labels" for name in absent]


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


def _inputs(
    options: ReadOptions, names: Sequence[str], free: Sequence[str], path: Path | str
) -> tuple[tuple[InputOptions, ...], list[str]]:
    """Streams that the columns make, each with its channels; `free` columns are those of an input that names none."""
    requested = requested_inputs(options, path) or (InputOptions(_DEFAULT_STREAM),)
    present = [item for item in requested if not item.channels or any(name in names for name in item.channels)]
    if not present:
        raise no_such_name(requested[0].channels[0], names, path)
    notes = [f"no column of stream `{item.stream}`: read without it" for item in requested if item not in present]
    named = {name for item in present for name in item.channels}
    inputs: list[InputOptions] = []
    for item in present:
        for name in item.channels:
            if name not in names:
                raise no_such_name(name, names, path)
        channels = item.channels or tuple(name for name in free if name not in named)
        if not channels:
            raise SourceError(
                f"no column holds numbers for stream `{item.stream}` but times or counts, so there is no signal; there are: "
                f"{some([brief(name) for name in names], 40) or 'none'}",
                path,
            )
        if item.units and len(item.units) != len(channels):
            raise SourceError(f"stream `{item.stream}` has {len(item.units)} units for {len(channels)} channels", path)
        inputs.append(replace(item, channels=channels))
    return tuple(inputs), notes


def _same(letters: Sequence[str]) -> str:
    return letters[0] if len({*letters}) == 1 else ""


def _by_rows(item: InputOptions, cells: Callable[[str], Sequence[str]]) -> tuple[InputOptions, ...]:
    """A stream a sensor, where each row holds values of one alone."""
    groups: dict[tuple[bool, ...], list[str]] = {}
    for name in item.channels:
        groups.setdefault(tuple(not is_missing(text) for text in cells(name)), []).append(name)
    if len({*map(len, groups)}) > 1:
        return (item,)  # rows of unlike lengths, which the reader refuses
    filled = np.array(list(groups))
    apart = len(groups) > 1 and filled.size and filled.sum(axis=1).min() > 1
    if not apart or (filled.sum(axis=0) != 1).mean() > _OTHER_ROWS:
        return (item,)
    begins = ["".join(takewhile(bool, map(_same, zip(*group, strict=False)))) for group in groups.values()]
    names = [re.sub(r"\W+", "_", begin).strip("_").lower() for begin in begins]
    unlike = len({*names} - {""}) == len(names)
    return tuple(
        replace(item, stream=name if unlike else f"{item.stream}.{n + 1}", channels=tuple(group))
        for n, (name, group) in enumerate(zip(names, groups.values(), strict=True))
    )


def _with_units(item: InputOptions, units: Mapping[str, str]) -> InputOptions:
    """An input whose channels have the units that the file says; what the recipe says holds where it says none."""
    wanted = item.units or ("",) * len(item.channels)
    found = [units.get(name) or unit_of_name(name) for name in item.channels]
    told = tuple(unit or want for unit, want in zip(found, wanted, strict=True))
    return replace(item, units=told if any(told) else ())


class Keep:
    """A parsed expression.

    Examples
    --------
    >>> keep = Keep("usable == 1 and place != 'foot'")
    >>> keep({"usable": ["1", "1.0", "0"], "place": ["hand", "foot", "hand"]}).tolist()
    [True, False, False]
    """

    def __init__(self, text: str) -> None:
        self.text = text
        if len(text) > _LIMIT:
            raise SourceError(f"keep: {len(text)} characters, expected at most {_LIMIT}")
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise SourceError(f"keep = {text!r} is no expression; {_ALLOWED}") from None
        names: dict[str, None] = {}
        self._check(self._tree, names)
        self.columns = tuple(names)  # columns that it names

    def __call__(self, columns: Mapping[str, Sequence[str]]) -> NDArray[np.bool_]:
        """Which rows to keep: ``(n,)``."""
        length = len(columns[self.columns[0]])
        return np.broadcast_to(self._truth(self._tree, columns), (length,)).copy()

    def _check(self, node: ast.expr, names: dict[str, None]) -> None:
        if isinstance(node, ast.BoolOp):
            for part in node.values:
                self._check(part, names)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self._check(node.operand, names)
        elif isinstance(node, ast.Compare):
            self._check_compare(node, names)
        else:
            raise self._refuse(node)

    def _check_compare(self, node: ast.Compare, names: dict[str, None]) -> None:
        count = len(names)
        self._check_operand(node.left, names)
        for op, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, (ast.In, ast.NotIn)):
                if not isinstance(right, (ast.Tuple, ast.List, ast.Set)) or not all(
                    _constant(item) for item in right.elts
                ):
                    raise self._refuse(right)
            elif type(op) in _COMPARE:
                self._check_operand(right, names)
            else:
                raise self._refuse(node)
        if len(names) == count and not any(isinstance(part, ast.Name) for part in ast.walk(node)):
            raise SourceError(f"keep = {self.text!r}: {ast.unparse(node)!r} names no column")

    def _check_operand(self, node: ast.expr, names: dict[str, None]) -> None:
        if isinstance(node, ast.Name):
            names[node.id] = None
        elif not _constant(node):
            raise self._refuse(node)

    def _refuse(self, node: ast.expr) -> SourceError:
        return SourceError(f"keep = {self.text!r}: {ast.unparse(node)!r} is not allowed; {_ALLOWED}")

    def _truth(self, node: ast.expr, columns: Mapping[str, Sequence[str]]) -> NDArray[np.bool_]:
        if isinstance(node, ast.BoolOp):
            parts = [self._truth(part, columns) for part in node.values]
            join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            return np.asarray(join.reduce(parts))
        if isinstance(node, ast.UnaryOp):
            return np.logical_not(self._truth(node.operand, columns))
        assert isinstance(node, ast.Compare)
        sides = [node.left, *node.comparators]
        parts = [_compare(op, a, b, columns) for op, a, b in zip(node.ops, sides, sides[1:], strict=False)]
        return np.asarray(np.logical_and.reduce(parts))


def _compare(op: ast.cmpop, left: ast.expr, right: ast.expr, columns: Mapping[str, Sequence[str]]) -> NDArray[np.bool_]:
    if isinstance(right, (ast.Tuple, ast.List, ast.Set)):
        equal = [_compare(ast.Eq(), left, item, columns) for item in right.elts]
        inside = np.logical_or.reduce(equal) if equal else np.zeros(1, bool)
        return np.logical_not(inside) if isinstance(op, ast.NotIn) else inside
    as_text = any(isinstance(_value(side), str) for side in (left, right))
    a, b = (_operand(side, columns, as_text) for side in (left, right))
    if (
        not as_text
        and isinstance(left, ast.Name)
        and isinstance(right, ast.Name)
        and (np.isnan(a).any() or np.isnan(b).any())
    ):
        a, b = (_operand(side, columns, True) for side in (left, right))
    rows: NDArray[np.bool_] = _COMPARE[type(op)](a, b)
    return rows


def _operand(node: ast.expr, columns: Mapping[str, Sequence[str]], as_text: bool) -> NDArray[Any]:
    if isinstance(node, ast.Name):
        texts = columns[node.id]
        return (
            np.array([text.strip() for text in texts])
            if as_text
            else np.array([_number(text) for text in texts], float)
        )
    value = _value(node)
    return np.array([str(value) if as_text else float(value)])  # type: ignore[arg-type]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        # A text equals no number, as NaN does.
        return {"true": 1.0, "false": 0.0}.get(text.strip().lower(), float("nan"))


def _constant(node: ast.expr) -> bool:
    return isinstance(_value(node), (int, float, str))


def _value(node: ast.expr) -> object:
    """Value of a constant, also a negative number; None for anything else."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _value(node.operand)
        return -inner if isinstance(inner, (int, float)) else None
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str)) else None
