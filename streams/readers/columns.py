"""What each column of a table is, and which rows are kept. In: column names, which are numeric, ReadOptions. Out: a Layout (channels,
time, label, session …) and the rows that a recipe's `keep` leaves.

A `keep` such as ``usabledata == 1 and place in ("left", "right")`` is parsed, never evaluated as Python: comparisons, ``in``, ``and``,
``or``, ``not`` of column names, numbers and texts, nothing else.
"""

from __future__ import annotations

import ast
import operator
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.errors import SourceError
from streams.readers.times import TIME_COLUMNS, Clock, counts, time_like
from streams.readers.words import brief, some
from streams.recording import InputOptions, ReadOptions

#: Name of the stream that is made where neither a recipe nor the user names one.
DEFAULT_STREAM = "sensor"
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
class Layout:
    """Roles of a table's columns."""

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
    rate: Fraction | None = None  # samples per second, where the recipe says one

    def clock(self, path: Path | str) -> Clock | None:
        """What reads the column of times, if there is one."""
        return Clock(self.time, path, self.rate, counts=self.counted) if self.time else None

    @property
    def texts(self) -> tuple[str, ...]:
        """Columns to read as text, the time column apart."""
        keep = self.keep.columns if self.keep else ()
        wanted = (*self.session, self.subject, *self.labels, *keep, *self.metadata)
        return tuple(dict.fromkeys(name for name in wanted if name is not None))


def decide(
    names: Sequence[str],  # column names; an empty one is no column
    numeric: Collection[str],  # those that hold numbers
    options: ReadOptions,  # what the recipe says
    path: Path | str,  # the file, for messages
    cells: Callable[[str], Sequence[str]],
    said_rate: Fraction | None = None,  # samples per second as the file says, where the recipe does not
) -> Layout:
    """Roles of the columns `names`."""
    named = [name for name in names if name]
    keep = Keep(options.keep) if options.keep else None
    kept = tuple(keep.columns) if keep else ()
    _check(named, (*options.session, *([options.subject] if options.subject else []), *kept), path)
    asked = {name for item in options.inputs for name in item.channels}
    session = options.session or (("session",) if "session" in named and "session" not in asked else ())
    subject = options.subject or ("subject" if "subject" in named and "subject" not in asked else None)
    labels = tuple(name for name in options.label_columns if name in named)
    other = {*asked, *session, subject, *labels, *kept}
    unasked = [name for name in named if name not in other]
    rates = {item.rate_hz or said_rate for item in wanted(options, path)}
    rate = rates.pop() if len(rates) == 1 else None if rates else said_rate
    time, counted, beside, doubts = _clocks(unasked, cells, rate, bool(session))
    spoken_for = {time, *beside, subject, *labels, *TIME_COLUMNS, *session, *kept}
    free = [name for name in named if name in numeric and name not in spoken_for]
    inputs, notes = _inputs(options, named, free, path)
    channels = tuple(dict.fromkeys(name for item in inputs for name in item.channels))
    notes += doubts
    notes += [f"samples are numbered by `{time}`"] if counted else []
    if said_rate and (counted or time is None) and not any(item.rate_hz for item in inputs):
        inputs = tuple(replace(item, rate_hz=said_rate) for item in inputs)
        notes.append(f"rate {float(said_rate):g} Hz, as the head of the file says")
    # Not missed is the column `label`, where no recipe may ask for it, and the recipe's own where a labels JSON has its labels.
    optional = {"label", options.label_column if options.label_key else None}
    asked_for = [name for name in options.label_columns if name not in optional]
    notes += [f"no label column `{name}`: read without labels" for name in asked_for if name not in labels]
    # A column of a further label set stays metadata too: what is constant in a session may say its side of a split.
    others = set(labels) - {options.label_column}
    rest = tuple(name for name in named if (name not in spoken_for or name in others) and name not in channels)
    clocks = sorted(name for name in beside if name not in (time, *channels))
    notes += [f"columns left out, they count time or rows: {', '.join(clocks)}"] if clocks else []
    return Layout(inputs, channels, time, session, subject, labels, rest, keep, notes, counted=counted, rate=rate)


def _clocks(
    names: Sequence[str], cells: Callable[[str], Sequence[str]], rate: Fraction | None, sessions: bool
) -> tuple[str | None, bool, set[str], list[str]]:
    """The column of times, whether it counts samples instead, all columns that count time or rows, and what is doubtful."""
    ran, numbered = time_like(names, cells, rate), counts(names, cells)
    sure = (*TIME_COLUMNS, *(one.name for one in ran if not one.doubt))
    time = next((name for name in sure if name in names), None)
    doubts = [f"{one.doubt}; left out" for one in ran if one.doubt]
    beside = {*(one.name for one in ran), *numbered}
    if time is not None:
        return time, False, beside, []
    if numbered and rate is not None and not sessions:
        return numbered[0], True, beside, []
    return None, False, beside, doubts


def _check(named: Sequence[str], needed: Sequence[str], path: Path | str) -> None:
    for name, count in Counter(named).items():
        if count > 1:
            raise SourceError(f"column `{brief(name)}` is there {count} times; each needs a name of its own", path, 1)
    for name in needed:
        if name not in named:
            raise missing(name, named, path)


def missing(name: str, names: Sequence[str], path: Path | str, what: str = "column") -> SourceError:
    """The error for a name that is not there: which one, the nearest, and all that are."""
    lower = {other.lower(): other for other in names}
    near = get_close_matches(name.lower(), list(lower), 1, 0.5)
    hint = f" (did you mean `{lower[near[0]]}`?)" if near else ""
    shown = some([brief(name) for name in names], 40)
    return SourceError(f"no {what} `{name}`{hint}; there are: {shown or 'none'}", path)


def wanted(options: ReadOptions, path: Path | str) -> tuple[InputOptions, ...]:
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
    options: ReadOptions, named: Sequence[str], free: Sequence[str], path: Path | str
) -> tuple[tuple[InputOptions, ...], list[str]]:
    asked = wanted(options, path) or (InputOptions(DEFAULT_STREAM),)
    present = [item for item in asked if not item.channels or any(name in named for name in item.channels)]
    if not present:
        raise missing(asked[0].channels[0], named, path)
    notes = [f"no column of stream `{item.stream}`: read without it" for item in asked if item not in present]
    taken = {name for item in present for name in item.channels}
    out: list[InputOptions] = []
    for item in present:
        for name in item.channels:
            if name not in named:
                raise missing(name, named, path)
        channels = item.channels or tuple(name for name in free if name not in taken)
        if not channels:
            raise SourceError(
                f"no column holds numbers for stream `{item.stream}`; there are: {', '.join(named) or 'none'}", path
            )
        if item.units and len(item.units) != len(channels):
            raise SourceError(f"stream `{item.stream}` has {len(item.units)} units for {len(channels)} channels", path)
        out.append(replace(item, channels=channels))
    return tuple(out), notes


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
        before = len(names)
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
        if len(names) == before and not any(isinstance(part, ast.Name) for part in ast.walk(node)):
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
            out: NDArray[np.bool_] = join.reduce(parts)
            return out
        if isinstance(node, ast.UnaryOp):
            return np.logical_not(self._truth(node.operand, columns))
        assert isinstance(node, ast.Compare)
        sides = [node.left, *node.comparators]
        parts = [_compare(op, a, b, columns) for op, a, b in zip(node.ops, sides, sides[1:], strict=False)]
        both: NDArray[np.bool_] = np.logical_and.reduce(parts)
        return both


def _compare(op: ast.cmpop, left: ast.expr, right: ast.expr, columns: Mapping[str, Sequence[str]]) -> NDArray[np.bool_]:
    if isinstance(right, (ast.Tuple, ast.List, ast.Set)):
        found = [_compare(ast.Eq(), left, item, columns) for item in right.elts]
        inside = np.logical_or.reduce(found) if found else np.zeros(1, bool)
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
    out: NDArray[np.bool_] = _COMPARE[type(op)](a, b)
    return out


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
