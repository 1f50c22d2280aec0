"""What a plot of a recording shows. In: a recording. Out: curves thinned to what a page can show, bands of labels, counts.

Thinning keeps the smallest and the largest number of every column, so that no spike and no gap is lost. Times are
seconds since the recording's start.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kymo.streams.chunk import Array
from kymo.streams.labels.labels import Label
from kymo.streams.recording import StreamData
from kymo.streams.words import NS

Floats = NDArray[np.float64]
#: Columns of a curve, and what is left out beyond: channels and pictures of a stream, bands of labels, gaps.
COLUMNS, MOST_CHANNELS, MOST_PICTURES, MOST_BANDS, MOST_GAPS = 600, 12, 6, 400, 200


@dataclass(frozen=True, slots=True)
class Band:
    """A labelled interval, in seconds; neighbours of one class are one band."""

    start_s: float
    end_s: float
    label: str


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """One channel as it is drawn; NaN breaks the line at a gap."""

    name: str  # of the channel
    unit: str
    seconds: Floats
    values: Floats
    low: float  # of all finite numbers; NaN without any
    mean: float
    high: float
    not_finite: int  # how many are not


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Frames of a video or an animation, or columns of a spectrogram."""

    seconds: Floats  # ``(k,)``, when each was taken; of a spectrogram start and end
    images: list[Array]  # frames ``(height, width, …)``; of a spectrogram one ``(bins, columns)`` a channel
    names: tuple[str, ...] = ()  # of a spectrogram's channels; empty for frames


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """One stream: its curves, or its pictures; gaps in seconds."""

    stream: StreamData
    curves: list[Curve]
    pictures: Pictures | None
    gaps: list[tuple[float, float]]


def panel_of(stream: StreamData, start_ns: int) -> Panel:
    """A stream as it is drawn; times count from `start_ns`."""
    shape = stream.header.format.shape
    gaps = _gaps(stream, start_ns)
    if stream.header.format.dtype == "jpeg" or len(shape) >= 3:
        return Panel(stream, [], _frames(stream, start_ns), gaps)
    if len(shape) == 2:
        return Panel(stream, [], _spectrogram(stream, start_ns), gaps)
    return Panel(stream, curves_of(stream, start_ns), None, gaps)


def curves_of(stream: StreamData, start_ns: int, columns: int = COLUMNS) -> list[Curve]:
    """The first channels of a signal, thinned to so many columns; of an irregular stream in steps, or as stems."""
    fmt = stream.header.format
    units = fmt.units or ("",) * len(fmt.channels)
    seconds, breaks = _times(stream, start_ns)
    curves = []
    for i, name in enumerate(fmt.channels[:MOST_CHANNELS]):
        values = stream.data[:, i].astype(np.float64)
        finite = values[np.isfinite(values)]
        values[~np.isfinite(values)] = np.nan
        numbers = (float(finite.min()), float(finite.mean()), float(finite.max())) if len(finite) else (math.nan,) * 3
        line = (seconds, values, breaks) if stream.times_ns is None else _stepped(seconds, values, columns)
        curves.append(Curve(name, units[i], *thin(*line, columns), *numbers, len(values) - len(finite)))
    return curves


def _stepped(seconds: Floats, values: Floats, columns: int) -> tuple[Floats, Floats, list[int]]:
    """What an irregular stream says between its samples: each value holds until the next one; one that is always the same, as a tag's,
    stands as a stem at its time."""
    if len(values) and not (values == values[0]).all():
        return np.repeat(seconds, 2)[1:], np.repeat(values, 2)[:-1], []
    width = float(np.ptp(seconds)) / columns if len(seconds) > columns else 0.0
    if width:  # one stem a column is all that can be seen
        seconds = seconds[np.unique((seconds - seconds[0]) // width, return_index=True)[1]]
    high = values[0] if len(values) and values[0] else 1.0
    stems = np.tile([0.0, high], len(seconds))
    return np.repeat(seconds, 2), stems, list(range(2, len(stems), 2))


def split_constant(curves: Sequence[Curve]) -> tuple[list[Curve], str]:
    """Curves to draw, and in words those of a stream of many channels that are one number all the time."""
    still = [c for c in curves if c.low == c.high and not c.not_finite]
    if len(curves) <= 4 or not still or len(still) == len(curves):
        return list(curves), ""
    by_value: dict[float, list[str]] = {}
    for curve in still:
        by_value.setdefault(curve.low, []).append(curve.name)
    words = "; ".join(f"{', '.join(names)} = {value:.6g}" for value, names in by_value.items())
    return [curve for curve in curves if curve not in still], f"constant: {words}"


def rows_of(curves: Sequence[Curve]) -> list[list[Curve]]:
    """Curves that share a row: axes of one vector, such as x, y, z or ax, ay, az, in one unit."""
    rows: list[list[Curve]] = []
    for curve in curves:
        if rows and are_axes([(member.name, member.unit) for member in rows[-1]], (curve.name, curve.unit)):
            rows[-1].append(curve)
        else:
            rows.append([curve])
    return rows


def are_axes(members: Sequence[tuple[str, str]], other: tuple[str, str]) -> bool:
    """Whether a channel (name, unit) is a further axis of the vector that others are axes of."""
    (name, unit), (last, unit_of_last) = other, members[-1]
    axis, known = name[-1:].lower(), {member[-1:].lower() for member, _ in members}
    same = (last[:-1], unit_of_last) == (name[:-1], unit)
    return same and axis in "xyzw" and last[-1:].lower() in "xyzw" and axis not in known


def thin(seconds: Floats, values: Floats, breaks: Sequence[int] = (), columns: int = COLUMNS) -> tuple[Floats, Floats]:
    """A curve with at most two points a column, and NaN where it breaks."""
    parts: list[NDArray[np.int64]] = []
    step = max(1.0, len(values) / columns)
    for first, end in zip([0, *breaks], [*breaks, len(values)], strict=True):
        if len(values) <= 2 * columns:
            parts.append(np.arange(first, end))
        else:
            edges = np.unique(np.append(np.arange(first, end, step).astype(np.int64), end))
            parts.append(_extremes(values, edges))
    # The line breaks behind each run: its last sample stands there once more, as NaN.
    numbers = np.concatenate([np.append(part, part[-1:]) for part in parts])
    breaking = np.concatenate([np.append(np.zeros(len(part), bool), [True] * bool(len(part))) for part in parts])
    return seconds[numbers][:-1], np.where(breaking, np.nan, values[numbers])[:-1]


def _extremes(values: Floats, edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers of the smallest and the largest value between neighbouring edges, in order, each once, with both ends."""
    numbers: list[int] = []
    for first, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        part = values[first:end]
        if np.isnan(part).all():
            numbers.append(first)
            continue
        numbers += (first + int(np.nanargmin(part)), first + int(np.nanargmax(part)))
    # With its ends, a run is drawn as long as it is.
    return np.unique([*numbers, edges[0], edges[-1] - 1])


def _times(stream: StreamData, start_ns: int) -> tuple[Floats, list[int]]:
    """Seconds of all samples, and the numbers of those behind a gap."""
    if stream.times_ns is not None:
        return (stream.times_ns - start_ns) / NS, []
    rate = float(stream.header.format.rate)
    parts, breaks, at = [], [], 0
    for first, samples in stream.pieces:
        parts.append((stream.header.time_ns(first) - start_ns) / NS + np.arange(len(samples)) / rate)
        breaks.append(at)
        at += len(samples)
    return np.concatenate(parts), breaks[1:]


def _gaps(stream: StreamData, start_ns: int) -> list[tuple[float, float]]:
    ends = [first + len(samples) for first, samples in stream.pieces]
    starts = [first for first, _ in stream.pieces]
    header = stream.header
    if stream.times_ns is not None:
        behind = np.cumsum([len(samples) for _, samples in stream.pieces[:-1]], dtype=np.int64)
        seconds = (stream.times_ns - start_ns) / NS
        return list(zip(seconds[behind - 1].tolist(), seconds[behind].tolist(), strict=True))
    return [
        ((header.time_ns(end) - start_ns) / NS, (header.time_ns(start) - start_ns) / NS)
        for end, start in zip(ends[:-1], starts[1:], strict=True)
    ]


def _frames(stream: StreamData, start_ns: int) -> Pictures:
    seconds, _ = _times(stream, start_ns)
    numbers = np.unique(np.linspace(0, stream.count - 1, min(MOST_PICTURES, stream.count)).round().astype(int))
    return Pictures(seconds[numbers], [_image(stream.data[i]) for i in numbers])


def _image(frame: Array | bytes) -> Array:
    """A frame ``(height, width, …)``: a JPEG's bytes decoded, other frames as they are."""
    if not isinstance(frame, bytes):
        return frame
    import io

    from PIL import Image

    with Image.open(io.BytesIO(frame)) as image:
        image.thumbnail((240, 240))
        return np.asarray(image)


def _spectrogram(stream: StreamData, start_ns: int) -> Pictures:
    """Means of neighbouring columns, ``(bins, columns)`` a channel; gaps are not told apart in it."""
    step = max(1, -(-stream.count // COLUMNS))
    whole = [stream.data[i : i + step].astype(np.float64).mean(axis=0) for i in range(0, stream.count, step)]
    stacked = np.array(whole).reshape(len(whole), *stream.header.format.shape)  # (columns, bins, channels)
    channels = stream.header.format.channels[:3]
    times = np.array([(stream.start_ns - start_ns) / NS, (stream.end_ns - start_ns) / NS])
    return Pictures(times, [stacked[:, :, i].T for i in range(len(channels))], channels)


def bands_of(labels: Sequence[Label], start_ns: int) -> dict[str, list[Band]]:
    """Labels by set, in order of time; those of one class that touch are one band."""
    sets: dict[str, list[Band]] = {}
    for label in sorted(labels, key=lambda label: (label.set, label.start_ns)):
        band = Band((label.start_ns - start_ns) / NS, (label.end_ns - start_ns) / NS, label.label)
        bands = sets.setdefault(label.set, [])
        if bands and bands[-1].label == band.label and band.start_s <= bands[-1].end_s + 1e-9:
            bands[-1] = Band(bands[-1].start_s, max(band.end_s, bands[-1].end_s), band.label)
        else:
            bands.append(band)
    return sets
