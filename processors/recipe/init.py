"""``kymo init``. In: recordings. Out: a survey of what they have in common, and a recipe for them as TOML text, whose values are a start
that works. Lengths are in samples, rates in hertz.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from kymo.processors.recipe.compile import seconds_of
from kymo.processors.recipe.load import parse_recipe
from kymo.processors.recipe.toml import toml_value
from kymo.streams.chunk import Array, Format
from kymo.streams.errors import KymoError, SourceError
from kymo.streams.labels.labels import Label, LabelsJson
from kymo.streams.readers import read
from kymo.streams.readers.files import DISK, find
from kymo.streams.readers.grid import RATE_TOLERANCE
from kymo.streams.recording import InputOptions, ReadOptions, Recording, StreamData
from kymo.streams.words import NS, many, some

MIN_SAMPLES = 8
_USUAL = ("rate ", "the file's clock runs at ")  # how notes begin that recipes make good
_CONSTANT, _CLOCK, _CODE, _EMPTY = "constant", "clock", "code", "empty"
#: Why a channel is no signal, for remarks.
_NO_SIGNAL = {
    _CONSTANT: "the same number throughout each recording or label, so not taken: {}",
    _EMPTY: "empty in most samples, so not taken: {}",
    _CLOCK: "rises evenly as a clock or counter does, so not taken: {}",
    _CODE: "whole numbers that stay as long as labels do, so not taken: {} (where they are the classes, say --label COLUMN)",
}
_CODE_NAME = re.compile(
    "labels?|class|target|activity|gesture|state|annotation|condition|phase|stage|event|marker|trigger|stimulus|trial|block|code"
)
_EVEN_STEPS, _MOST_OF_LABEL, _LONGEST_RUNS = 0.9, 0.97, 50  # shares; samples a run, at least
_FILE_NAMES = """\
[source]
file_names = {}  # what the names of files, or of their folders, say

"""
_UNITS = """\
units = {}  # other known units are converted
"""
_INPUT = """\
[[input]]  # which stream of a session this recipe takes
stream = {}  # kind[.place]; a kind alone takes any place
rate_hz = {}  # samples per second; a stream of another rate is not taken
channels = {}  # by name; delete those that are no signal
{}
"""
# Of several inputs.
_REQUIRED = """\
required = false  # where it is silent, events say that it is absent; true: no event without it
"""
_JOIN = """\
[join]  # all inputs as one stream, side by side
rate_hz = {}  # so many ticks per second
grid = {}  # whose samples are the ticks; those of the others are interpolated (see sample, lateness_s, offset_ms of [[input]])

"""
_MASK = """
[[window.steps]]  # zeros for an input that is silent, and a channel that says so
step = "mask"
"""
_DROPOUT = """
[[train.augment]]  # in some training windows an input is silent, so that the model can do without
kind = "modality_dropout"
"""
_RECIPE = """\
# Made by `kymo init` from {count}.
# Every value is a start that works; change what you know better.
name = {name}  # part of every event's id

{file_names}{inputs}[[steps]]  # before the window: each column is computed once, however much windows overlap
step = "spectrogram"
nperseg = {nperseg}  # samples a column covers ({column_s:.3g} s), {bins} frequency bins
noverlap = {noverlap}  # a column every {step} samples, which divide the hop

[[steps]]  # before the window: each column is computed once, however much windows overlap
step = "log"

[window]
length_s = {length_s}  # {length} samples, {columns} columns; the shortest recording has {shortest_s:.3g} s
hop_s = {hop_s}  # an event this often: half a window

[[window.steps]]  # behind the window: learned at training, saved in the bundle
step = "standardise"
{mask}
[model]
architecture = "spectrogram_cnn"
min_probability = 0.5  # below it the label is `unknown`

[labels]  # the classes are those that training finds ({classes})
{where} = {label}

[train]
split = "subject"  # {subjects}
{dropout}"""


@dataclass
class Survey:
    """What `kymo init` needs to know."""

    file_names: str | None = None  # what they say
    stream: str = ""
    rate_hz: Fraction = Fraction(0)  # of most recordings
    channels: tuple[str, ...] = ()  # those that every recording has; units are empty where unknown
    units: tuple[str, ...] = ()
    shortest: int = 0  # samples of the shortest recording's longest run without a gap
    recordings: int = 0
    subjects: set[str] = field(default_factory=set)  # found in columns
    labels: set[str] = field(default_factory=set)
    label_column: str | None = None  # where labels come from
    label_key: str | None = None
    beside: list[Survey] = field(default_factory=list)  # of the other streams that every recording has
    remarks: list[str] = field(default_factory=list)  # what the user should look at
    notes: list[tuple[str, str]] = field(default_factory=list)  # of reading, with their sessions; not those on rates


@dataclass
class _StreamSummary:
    """Sums up one stream of one recording."""

    session: str
    format: Format
    no_signal: dict[str, str]  # why, by channel
    longest: int  # samples of the longest run that no gap and no missing value of a signal interrupts
    empty: int  # samples that lack a value


def survey_of(
    paths: Sequence[str | Path],
    streams: Sequence[str] = (),
    rate_hz: Fraction | None = None,
    label: str = "label",
    file_names: str | None = None,
) -> Survey:
    options = ReadOptions(label_column=label, file_names=file_names)
    if rate_hz is not None:
        names = streams or ("sensor",)
        options = replace(options, inputs=tuple(InputOptions(name, (), rate_hz) for name in names))
    elif len(streams) > 1 and next(_mcap_files(paths), None) is None:  # files of these names are one session
        options = replace(options, inputs=tuple(InputOptions(name) for name in streams))
    summaries: dict[str, list[_StreamSummary]] = {}  # by stream, one a recording
    survey, irregular = Survey(file_names), dict[str, None]()
    try:
        for recording in read(paths, _side_by_side(paths, streams, options)):
            _note(survey, recording)
            if len(streams) > 1:
                _check_apart(recording)
            for stream in recording.streams:
                fmt = stream.header.format
                if not fmt.rate and stream.count:
                    irregular.setdefault(fmt.stream)
                elif len(fmt.shape) == 1 and stream.count:
                    summaries.setdefault(fmt.stream, []).append(_summary(stream, recording))
    except SourceError as error:
        if "sampling rate" in error.message:
            raise SourceError(
                "nothing gives the sampling rate: name the column of times `t` (s), `t_ns` or `timestamp`, or say --rate-hz "
                "if there is none",
                error.path,
            ) from None
        raise
    survey.stream, *others = _choose(summaries, streams, survey)
    if irregular:
        survey.remarks.append(
            f"irregular, so not taken: {', '.join(irregular)}; an [[input]] with rate_hz = 0 takes it"
        )
    if not others and not streams and (names := _in_each_folder(paths)):
        words = " ".join(f"--stream {name}" for name in names)
        survey.remarks.append(f"each folder holds {' and '.join(names)}: if a folder is one session, say {words}")
    _agree(survey, summaries[survey.stream])
    for name in others:
        survey.beside.append(Survey(None, name, remarks=survey.remarks))
        _agree(survey.beside[-1], summaries[name])
    return survey


def _check_apart(recording: Recording) -> None:
    """Raise where streams that are asked for by name would each be all that one file holds."""
    (first, *others), path = recording.streams, Path(recording.path)
    channels = first.header.format.channels
    alike = [other for other in others if other.header.format.channels == channels and other.data.dtype.kind in "fiu"]
    if path.is_file() and any(np.array_equal(first.data, other.data, equal_nan=True) for other in alike):
        names = " and ".join(stream.header.format.stream for stream in recording.streams)
        raise SourceError(
            f"{names} would each be all its channels ({some(channels, 8)}), as no file has such a name; leave out --stream, and write an "
            "[[input]] for each sensor, with its own `channels`, into the recipe",
            path,
        )


def _note(survey: Survey, recording: Recording) -> None:
    """Take down what a recording tells beside its streams."""
    survey.recordings += 1
    survey.notes += [(recording.session, note) for note in recording.notes if not note.startswith(_USUAL)]
    survey.subjects |= {recording.subject} if recording.subject else set()
    for label in recording.labels:
        survey.labels.add(label.label)
        survey.label_column = label.set
    labels_json = Path(recording.path).with_suffix(".labels.json")
    if survey.label_key is None and labels_json.is_file():
        with contextlib.suppress(SourceError):
            survey.label_key = next(iter(LabelsJson(labels_json).keys), None)


def _summary(stream: StreamData, recording: Recording) -> _StreamSummary:
    fmt = stream.header.format
    numbers = np.concatenate([np.arange(first, first + len(piece)) for first, piece in stream.pieces])
    no_signal = _without_signal(stream, numbers, recording.labels)
    data = stream.data
    if 0 < len(no_signal) < len(fmt.channels):
        data = data[:, [channel not in no_signal for channel in fmt.channels]]
    whole = ~np.isnan(data).any(axis=1) if data.dtype.kind == "f" else np.ones(len(data), bool)
    steps = np.diff(numbers[whole])
    borders = [0, *(np.flatnonzero(steps != 1) + 1).tolist(), int(whole.sum())]
    longest = int(np.diff(borders).max())
    return _StreamSummary(recording.session, fmt, no_signal, longest, int((~whole).sum()))


def _without_signal(stream: StreamData, numbers: Array, labels: Sequence[Label]) -> dict[str, str]:
    """Channels that are one and the same number all the time (an age) or as long as a label holds (its number), that rise as a clock
    does, or that are numbers of classes; each with the kind of it."""
    header = stream.header
    ends = [(label.start_ns, label.end_ns) for label in labels] or [
        (header.time_ns(0), header.time_ns(int(numbers[-1]) + 1))
    ]
    spans = [
        slice(*np.searchsorted(numbers, [math.ceil((at - header.origin_ns) * header.format.rate / NS) for at in span]))
        for span in ends
    ]
    kinds = {}
    for i, channel in enumerate(header.format.channels):
        values = stream.data[:, i]
        parts = [part for span in spans if len(part := values[span])]
        with np.errstate(invalid="ignore"):
            if values.dtype.kind == "f" and 2 * np.count_nonzero(np.isnan(values)) > len(values):
                kinds[channel] = _EMPTY
            elif not any((part != part[0]).any() for part in parts):
                kinds[channel] = _CONSTANT
            elif _is_clock(values):
                kinds[channel] = _CLOCK
            elif _is_code(channel, values, parts if labels else []):
                kinds[channel] = _CODE
    return kinds


def _is_clock(values: Array) -> bool:
    """Whether values rise by about the same from sample to sample."""
    steps = np.diff(values[np.isfinite(values)].astype(np.float64))
    if len(steps) < MIN_SAMPLES or np.median(steps) <= 0:
        return False
    return bool(np.mean(np.abs(steps / np.median(steps) - 1) < 0.5) > _EVEN_STEPS)


def _is_code(channel: str, values: Array, labelled: Sequence[Array]) -> bool:
    """Whether values are whole numbers that stay: those of the labels, up to a few samples, or by their name."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if not len(finite) or (finite != np.rint(finite)).any():
        return False
    if labelled:
        # how often, which
        usual = [max(zip(*np.unique(part, return_counts=True)[::-1], strict=True)) for part in labelled]
        often = sum(count for count, _ in usual)
        if often > _MOST_OF_LABEL * sum(map(len, labelled)) and len({number for _, number in usual}) > 1:
            return True
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", channel)
    changes = int(np.count_nonzero(np.diff(finite)))
    return any(_CODE_NAME.fullmatch(word.lower()) for word in words) and changes * _LONGEST_RUNS < len(finite)


def _side_by_side(paths: Sequence[str | Path], streams: Sequence[str], options: ReadOptions) -> ReadOptions:
    """Options that put several topics of an MCAP file into one stream, where that is possible."""
    path, first = next(_mcap_files(paths), ("", None))
    if first is None:
        return options
    regular = [stream.header.format for stream in first.streams if stream.header.format.rate]
    formats = [fmt for fmt in regular if fmt.stream in streams] or ([] if streams else regular)
    formats = [fmt for fmt in formats if fmt.rate == formats[0].rate]
    # What no sensor gives is nothing to learn from.
    if any(fmt.stream.endswith("_raw") for fmt in formats) and not streams:
        formats = [fmt for fmt in formats if not fmt.stream.endswith("_truth")]
    if len(formats) < 2:
        return options
    channels = tuple(f"{fmt.stream}.{channel}" for fmt in formats for channel in fmt.channels)
    joined = replace(options, inputs=(InputOptions("imu", channels, formats[0].rate),))
    try:
        return joined if next(read([path], joined)).streams else options
    except (SourceError, StopIteration):
        return options


def _mcap_files(paths: Sequence[str | Path]) -> Iterator[tuple[str, Recording]]:
    """MCAP files of this machine that paths, folders or experiments lead to, each with its first recording."""
    for path in paths:
        with contextlib.suppress(SourceError):  # said where all are read
            files = [file.path for file in find([path]) if file.suffix == ".mcap" and file.system is DISK]
            for file in files:
                with contextlib.suppress(SourceError):
                    yield file, next(read([file], ReadOptions()))


def _in_each_folder(paths: Sequence[str | Path]) -> tuple[str, ...]:
    """Names of a few files that each of several folders has."""
    stems: dict[str, list[str]] = {}
    with contextlib.suppress(SourceError):  # said where all are read
        for file in find(paths):
            if file.in_folder and file.suffix != ".mcap":
                stems.setdefault(file.folder, []).append(file.place.stem)
    alike = {tuple(sorted(names)) for names in stems.values()}
    return next(iter(alike)) if len(stems) > 1 and len(alike) == 1 and 1 < len(min(alike)) < 5 else ()


def _choose(summaries: dict[str, list[_StreamSummary]], streams: Sequence[str], survey: Survey) -> list[str]:
    """The streams to take, the fastest first: the one that most recordings have, and those that all of these have."""
    if not summaries:
        raise KymoError("no recording holds a signal with a fixed rate, expected at least one")
    still = {
        name
        for name, of_name in summaries.items()
        if all(len(summary.no_signal) == len(summary.format.channels) for summary in of_name)
    }
    still = set() if streams or len(still) == len(summaries) else still
    names = [name for name in summaries if name not in still and (not streams or name in streams)] or (
        list(summaries) if "imu" in summaries else []
    )
    if not names:
        raise KymoError(f"no stream {', '.join(streams)}; there are {', '.join(sorted(summaries))}")
    most = max(names, key=lambda n: len(summaries[n]))
    sessions = [{summary.session for summary in summaries[name]} for name in names]
    taken = [name for name, known in zip(names, sessions, strict=True) if known == sessions[names.index(most)]]
    if not streams:  # `eda` of a wristband stands for the `eda.sheet` beside it
        taken = [name for name in taken if "." not in name or name.partition(".")[0] not in taken]
    taken.sort(key=lambda name: -summaries[name][0].format.rate)
    if still:
        survey.remarks.append(f"without a channel that is a signal, so not taken: {', '.join(sorted(still))}")
    others = sorted(set(summaries) - {*taken} - still)
    if others:
        what = f"stream{'s' * (len(taken) > 1)} {', '.join(taken)}"
        survey.remarks.append(f"took {what}; also there: {', '.join(others)} (choose with --stream)")
    return taken


def _agree(survey: Survey, streams: list[_StreamSummary]) -> None:
    """Settle on the rate, channels and length that the recordings share."""
    rates = Counter(s.format.rate for s in streams)
    rate = rates.most_common(1)[0][0]
    close_rates = {r for r in rates if abs(r / rate - 1) <= RATE_TOLERANCE}
    if len(rates) > len(close_rates):
        others = ", ".join(f"{float(r):g} Hz ({n})" for r, n in rates.most_common() if r not in close_rates)
        hint = (
            ""
            if survey.file_names
            else '; where files are devices of one session, say --file-names "{session}/{stream}"'
        )
        survey.remarks.append(f"recordings of other rates are not taken: {others}{hint}")
    streams = [s for s in streams if s.format.rate in close_rates]
    formats = [s.format for s in streams]
    everywhere = [c for c in formats[0].channels if all(c in fmt.channels for fmt in formats)]
    if not everywhere:
        raise KymoError(
            f"stream {survey.stream}: no channel is in all {len(streams)} recordings, expected at least one"
        )
    partial = sorted({c for fmt in formats for c in fmt.channels} - set(everywhere))
    if partial:
        survey.remarks.append(f"not in every recording, so not taken: {', '.join(partial)}")
    kinds = {c: streams[0].no_signal.get(c, "") for c in everywhere if all(c in s.no_signal for s in streams)}
    signals = tuple(c for c in everywhere if c not in kinds)
    for kind, remark in _NO_SIGNAL.items():
        if signals and (of_kind := [c for c in kinds if kinds[c] == kind]):
            survey.remarks.append(remark.format(", ".join(of_kind)))
    channels = signals or tuple(everywhere)
    units = [tuple(fmt.units[fmt.channels.index(c)] for c in channels) if fmt.units else () for fmt in formats]
    agreed = units[0] if all(u == units[0] for u in units) and any(units[0]) else ()
    survey.rate_hz, survey.channels, survey.units = rate, channels, agreed
    usable = [s for s in streams if s.longest >= MIN_SAMPLES] or streams
    if too_short := [s.session for s in streams if s not in usable]:
        survey.remarks.append(
            f"fewer than {MIN_SAMPLES} samples without a gap, too few for a window: {some(too_short, 3)}"
        )
    survey.shortest = min(s.longest for s in usable)
    if with_gaps := [s for s in streams if s.empty]:
        worst = max(with_gaps, key=lambda s: s.empty)
        survey.remarks.append(
            f"{many(sum(s.empty for s in with_gaps), 'sample')} with empty or NaN cells, in {len(with_gaps)} of {len(streams)} "
            f"recordings (most in {worst.session}: {worst.empty}): no window spans one; see bridge_ms and max_missing"
        )


def window_samples(shortest: int, rate_hz: Fraction) -> int:
    """Length of a window: a third of the shortest recording, but 2 to 5 s, and never more than it holds.

    Examples
    --------
    >>> window_samples(100, Fraction(10)), window_samples(60_000, Fraction(500)), window_samples(40, Fraction(32))
    (32, 2500, 32)
    """
    third = min(5 * rate_hz, max(2 * rate_hz, Fraction(shortest, 3)))
    longest = min(shortest, max(int(third), 32))
    for halves in range(int(2 * longest / rate_hz), 0, -1):
        samples = halves * rate_hz / 2
        if samples < max(0.75 * longest, min(32, shortest)):
            break
        if samples % 2 == 0:
            return int(samples)
    return longest - longest % (8 if longest >= 32 else 2)


def frames(length: int, hop: int) -> tuple[int, int]:
    """``nperseg`` and ``noverlap`` for a window: frames of at most a third of it, whose step divides the hop.

    Examples
    --------
    >>> frames(128, 64), frames(2500, 1250)
    ((32, 24), (512, 387))
    """
    nperseg = 2 ** max(2, (length // 3).bit_length() - 1)
    step = next(s for s in range(max(1, nperseg // 4), 0, -1) if hop % s == 0)
    return nperseg, nperseg - step


def _input_text(survey: Survey, joined: bool) -> str:
    units = _UNITS.format(toml_value(survey.units)) if survey.units else ""
    facts = (toml_value(value) for value in (survey.stream, survey.rate_hz, survey.channels))
    return _INPUT.format(*facts, units + _REQUIRED * joined)


def recipe_text(name: str, survey: Survey) -> str:
    """Write a recipe of this name for the recordings of a survey."""
    if survey.shortest < MIN_SAMPLES:
        raise KymoError(f"the shortest recording holds {survey.shortest} samples, expected at least {MIN_SAMPLES}")
    rate, inputs = survey.rate_hz, [survey, *survey.beside]
    shortest = int(min(Fraction(each.shortest) / each.rate_hz for each in inputs) * rate)
    shortest = shortest if shortest >= MIN_SAMPLES else survey.shortest  # one that is mostly silent says nothing
    length = window_samples(shortest, rate)
    hop = length // 2
    nperseg, noverlap = frames(length, hop)
    by_key = survey.label_key is not None and not survey.labels
    classes = f"found: {', '.join(sorted(survey.labels)[:8])}" if survey.labels else "none found yet"
    text = _RECIPE.format(
        count=many(survey.recordings, "recording"),
        name=toml_value(name),
        file_names=_FILE_NAMES.format(toml_value(survey.file_names)) if survey.file_names else "",
        inputs="".join(_input_text(each, bool(survey.beside)) for each in inputs)
        + (_JOIN.format(toml_value(rate), toml_value(survey.stream)) if survey.beside else ""),
        mask=_MASK if survey.beside else "",
        dropout=_DROPOUT if survey.beside else "",
        nperseg=nperseg,
        column_s=float(nperseg / rate),
        bins=nperseg // 2 + 1,
        noverlap=noverlap,
        step=nperseg - noverlap,
        length_s=toml_value(seconds_of(length, rate)),
        length=length,
        columns=(length - nperseg) // (nperseg - noverlap) + 1,
        shortest_s=float(shortest / rate),
        hop_s=toml_value(seconds_of(hop, rate)),
        # A comment ends with its line, and TOML forbids control characters in it.
        classes=re.sub(r"[\x00-\x1f\x7f]", " ", classes),
        where="key" if by_key else "column",
        label=toml_value(survey.label_key if by_key else survey.label_column or "label"),
        subjects=f"{len(survey.subjects)} subjects: none on both sides"
        if len(survey.subjects) >= 2
        else "nobody on both sides (a column `subject`), else no recording",
    )
    parse_recipe(text)
    return text
