"""What each column of a table is. In: column names, which are numeric, ReadOptions. Out: a Layout (channels, time,
label, session …)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fractions import Fraction
from pathlib import Path

from streams.errors import SourceError
from streams.readers.keep import Keep
from streams.readers.times import TIME_COLUMNS, Clock, counts, time_like
from streams.readers.words import brief, some
from streams.recording import InputOptions, ReadOptions

#: Name of the stream that is made where neither a recipe nor the user names one.
DEFAULT_STREAM = "sensor"


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
