"""What a set of recordings has in common. In: Recordings. Out: a Survey; lengths in samples, rates in hertz."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from streams.chunk import NS
from streams.errors import KymoError, SourceError
from streams.labels.labels import Label, keys_of_labels_json
from streams.readers import read
from streams.readers.grid import RATE_TOLERANCE
from streams.readers.words import many
from streams.recording import InputOptions, ReadOptions, Recording, StreamData


@dataclass
class Survey:
    """What `kymo init` needs to know."""

    stream: str
    rate_hz: Fraction  # of most recordings
    channels: tuple[str, ...]  # those that every recording has; units are empty where unknown
    units: tuple[str, ...]
    shortest: int  # samples of the shortest recording's longest run without a gap
    recordings: int
    subjects: set[str] = field(default_factory=set)  # found in columns
    labels: set[str] = field(default_factory=set)
    label_column: str | None = None  # where labels come from
    label_key: str | None = None
    remarks: list[str] = field(default_factory=list)  # what the user should look at


@dataclass
class _Seen:
    """One stream of one recording, without its samples."""

    rate: Fraction
    channels: tuple[str, ...]
    units: tuple[str, ...]
    longest: int
    moving: set[str]
    empty: int = 0
    session: str = ""


def survey(
    paths: Sequence[str | Path], streams: Sequence[str] = (), rate_hz: Fraction | None = None, label: str = "label"
) -> Survey:
    """Look through recordings."""
    options = ReadOptions(label_column=label)
    if rate_hz is not None:
        options = replace(options, inputs=(InputOptions(streams[0] if streams else "sensor", (), rate_hz),))
    seen: dict[str, list[_Seen]] = {}
    found = Survey("", Fraction(0), (), (), 0, 0)
    try:
        _look(read(paths, _side_by_side(paths, streams, options)), seen, found)
    except SourceError as error:
        if "sampling rate" in error.message:
            raise SourceError(
                "nothing gives the sampling rate: name the column of times `t` (s), `t_ns` or `timestamp`, or say --rate-hz "
                "if there is none",
                error.path,
            ) from None
        raise
    name = _choose(seen, streams, found)
    _agree(found, name, seen[name])
    return found


def _look(recordings: Iterable[Recording], seen: dict[str, list[_Seen]], found: Survey) -> None:
    for recording in recordings:
        found.recordings += 1
        found.subjects |= {recording.subject} if recording.subject else set()
        for label in recording.labels:
            found.labels.add(label.label)
            found.label_column = label.set
        for stream in recording.streams:
            fmt = stream.header.format
            if len(fmt.shape) == 1 and fmt.rate and stream.count:
                longest, empty = _whole(stream)
                seen.setdefault(fmt.stream, []).append(
                    _Seen(
                        fmt.rate,
                        fmt.channels,
                        fmt.units,
                        longest,
                        _moving(stream, recording.labels),
                        empty,
                        recording.session,
                    )
                )
        key = None if found.label_key else _label_key(Path(recording.path))
        found.label_key = found.label_key or key


def _whole(stream: StreamData) -> tuple[int, int]:
    """Samples of the longest run that no gap and no missing value interrupts; samples that lack a value."""
    longest = missing = 0
    for _, piece in stream.pieces:
        bad = np.flatnonzero(np.isnan(piece).any(axis=1)) if piece.dtype.kind == "f" else np.empty(0, np.int64)
        missing += len(bad)
        longest = max(longest, int(np.diff([-1, *bad.tolist(), len(piece)]).max()) - 1)
    return longest, missing


def _moving(stream: StreamData, labels: Sequence[Label]) -> set[str]:
    """Channels that are not one and the same number all the time (an age, a trial's number), nor as long as a label holds (its number)."""
    header = stream.header
    numbers = np.concatenate([np.arange(first, first + len(piece)) for first, piece in stream.pieces])
    ends = [(label.start_ns, label.end_ns) for label in labels] or [
        (header.time_ns(0), header.time_ns(int(numbers[-1]) + 1))
    ]
    varies = np.zeros(len(header.format.channels), bool)
    with np.errstate(invalid="ignore"):
        for span in ends:
            first, last = np.searchsorted(
                numbers, [math.ceil((at - header.origin_ns) * header.format.rate / NS) for at in span]
            )
            varies |= (stream.data[first:last] != stream.data[first : first + 1]).any(axis=0)
    return {c for c, moves in zip(header.format.channels, varies, strict=True) if moves}


def _label_key(path: Path) -> str | None:
    """First key of the labels JSON beside a file."""
    file = path.with_suffix(".labels.json")
    if not file.is_file():
        return None
    try:
        return next(iter(keys_of_labels_json(file)), None)
    except SourceError:
        return None


def _side_by_side(paths: Sequence[str | Path], streams: Sequence[str], options: ReadOptions) -> ReadOptions:
    """Options that put several topics of an MCAP file into one stream, where that is possible."""
    mcap = next((file for path in paths for file in _mcap_files(Path(path))), None)
    if mcap is None:
        return options
    first = next(read([mcap], ReadOptions()))
    taken = [s.header.format for s in first.streams if s.header.format.rate and s.header.format.stream in streams]
    taken = taken or [s.header.format for s in first.streams if s.header.format.rate and not streams]
    taken = [fmt for fmt in taken if fmt.rate == taken[0].rate]
    if len(taken) < 2:
        return options
    channels = tuple(f"{fmt.stream}.{channel}" for fmt in taken for channel in fmt.channels)
    joined = replace(options, inputs=(InputOptions("imu", channels, taken[0].rate),))
    try:
        return joined if next(read([mcap], joined)).streams else options
    except (SourceError, StopIteration):
        return options


def _mcap_files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.rglob("*.mcap"))
    return [path] if path.suffix.lower() == ".mcap" and path.is_file() else []


def _choose(seen: dict[str, list[_Seen]], streams: Sequence[str], found: Survey) -> str:
    if not seen:
        raise KymoError("no recording holds a signal with a fixed rate, expected at least one")
    names = [name for name in seen if not streams or name in streams] or (list(seen) if "imu" in seen else [])
    if not names:
        raise KymoError(f"no stream {', '.join(streams)}; there are {', '.join(sorted(seen))}")
    name = max(names, key=lambda n: len(seen[n]))
    others = sorted(set(seen) - {name})
    if others:
        found.remarks.append(f"took stream {name}; also there: {', '.join(others)} (choose with --stream)")
    return name


def _agree(found: Survey, name: str, streams: list[_Seen]) -> None:
    """Rate, channels and length that the recordings share."""
    rates = Counter(s.rate for s in streams)
    rate = rates.most_common(1)[0][0]
    near = {other for other in rates if abs(other / rate - 1) <= RATE_TOLERANCE}
    if len(rates) > len(near):
        others = ", ".join(f"{float(r):g} Hz ({n})" for r, n in rates.most_common() if r not in near)
        found.remarks.append(f"recordings of other rates are not taken: {others}")
    same = [s for s in streams if s.rate in near]
    everywhere = [c for c in same[0].channels if all(c in s.channels for s in same)]
    if not everywhere:
        raise KymoError(f"stream {name}: no channel is in all {len(same)} recordings, expected at least one")
    lost = sorted({c for s in same for c in s.channels} - set(everywhere))
    if lost:
        found.remarks.append(f"not in every recording, so not taken: {', '.join(lost)}")
    moving = [c for c in everywhere if any(c in s.moving for s in same)]
    constant = [c for c in everywhere if c not in moving]
    if moving and constant:
        found.remarks.append(f"the same number throughout each recording or label, so not taken: {', '.join(constant)}")
    channels = tuple(moving or everywhere)
    units = [tuple(s.units[s.channels.index(c)] for c in channels) if s.units else () for s in same]
    agreed = units[0] if all(u == units[0] for u in units) and any(units[0]) else ()
    found.stream, found.rate_hz, found.channels, found.units = name, rate, channels, agreed
    found.shortest = min(s.longest for s in same)
    if holed := [s for s in same if s.empty]:
        most = max(holed, key=lambda s: s.empty)
        found.remarks.append(
            f"{many(sum(s.empty for s in holed), 'sample')} with empty or NaN cells, in {len(holed)} of {len(same)} "
            f"recordings (most in {most.session}: {most.empty}): no window spans one; see bridge_ms and max_missing"
        )
