"""JSON topics with one message a sample as streams. In: ``{"timestamp": ns, "values": [..]}``. Out: StreamData, times
in Unix ns."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.chunk import Array, Header, signal_format
from streams.errors import SourceError
from streams.readers import grid
from streams.readers.layout import missing, wanted
from streams.readers.words import brief, many
from streams.recording import InputOptions, ReadOptions, StreamData

_AXES = {1: ("value",), 3: ("x", "y", "z"), 4: ("w", "x", "y", "z")}
_MAX_NS = 2**62


_MAX_VALUES = 2**16


class Topic:
    """The messages of one topic."""

    def __init__(self, name: str, schema: bytes, path: str) -> None:
        self.stream = " ".join(name.split()).strip("/").replace("/", ".") or "sensor"
        self._path, self._schema = path, schema
        self._times: list[int] = []
        self._values: list[array[float]] = []

    def add(self, message: Mapping[str, Any], log_ns: int) -> None:
        """One message; its own `timestamp` counts, else the time at which it was logged."""
        values = message["values"]
        number = len(self._values) + 1
        if not 0 < len(values) <= _MAX_VALUES or (self._values and len(values) != len(self._values[0])):
            expected = len(self._values[0]) if self._values else f"1 to {_MAX_VALUES}"
            raise SourceError(f"{self.stream}, message {number}: {len(values)} values, expected {expected}", self._path)
        numbers = [float("nan") if value is None else value for value in values]
        for value in numbers:
            if type(value) not in (int, float):
                raise SourceError(
                    f"{self.stream}, message {number}: {brief(repr(value))} among the values, expected a number",
                    self._path,
                )
        time = message.get("timestamp", log_ns)
        if type(time) is not int or not -_MAX_NS < time < _MAX_NS:
            raise SourceError(
                f"{self.stream}, message {number}: timestamp {brief(repr(time))}, expected whole ns", self._path
            )
        self._times.append(time)
        try:
            self._values.append(array("d", numbers))
        except OverflowError:
            raise SourceError(
                f"{self.stream}, message {number}: a value is too large for a float64", self._path
            ) from None

    @property
    def times_ns(self) -> NDArray[np.int64]:
        """``(n,)``."""
        return np.array(self._times, np.int64)

    @property
    def values(self) -> Array:
        """``(n, channels)`` float64."""
        return np.array(self._values, np.float64)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the values: the schema's titles, else x, y, z for three, w, x, y, z for four, else v0, v1 …"""
        count = len(self._values[0])
        titles = _titles(self._schema)
        if len(titles) == count and len(set(titles)) == count:
            return titles
        return _AXES.get(count, tuple(f"v{i}" for i in range(count)))


def topic_streams(
    topics: Mapping[str, Topic], session: str, options: ReadOptions, path: str
) -> tuple[list[StreamData], list[str]]:
    """Streams of JSON topics, as the recipe asks for them; without a recipe one a topic."""
    named = {topic.stream: topic for topic in topics.values()}
    asked = wanted(options, path)
    notes: list[str] = []
    streams: list[StreamData] = []
    for item in asked or tuple(InputOptions(name) for name in named):
        parts = _parts(item, named, path)
        if parts is None:
            notes.append(f"no topic of stream `{item.stream}`: read without it")
            continue
        stream, found = _stream(item, parts, session, path)
        streams.append(stream)
        notes += [f"{item.stream}: {note}" for note in found]
    if not streams:
        wish = asked[0].channels[0] if asked[0].channels and "." in asked[0].channels[0] else asked[0].stream
        raise missing(wish, [*_all_channels(named), *named], path, "topic or channel")
    return streams, notes


def _all_channels(named: Mapping[str, Topic]) -> list[str]:
    return [f"{name}.{channel}" for name, topic in named.items() for channel in topic.channels]


def _parts(item: InputOptions, named: Mapping[str, Topic], path: str) -> list[tuple[Topic, str, str]] | None:
    """Topic, channel in it and name in the stream, of each channel of an input; None if nothing of it is in the
    file."""
    split = [(name, *name.rpartition(".")[::2]) for name in item.channels]
    if any(topic in named for _, topic, _ in split):
        for name, topic, channel in split:
            if topic not in named or channel not in named[topic].channels:
                raise missing(name, _all_channels(named), path, "channel")
        return [(named[topic], channel, name) for name, topic, channel in split]
    topic_found = named.get(item.stream)
    if topic_found is None:
        return None
    for name in item.channels:
        if name not in topic_found.channels:
            raise missing(name, topic_found.channels, path, f"channel of {item.stream}")
    return [(topic_found, name, name) for name in item.channels or topic_found.channels]


def _stream(
    item: InputOptions, parts: list[tuple[Topic, str, str]], session: str, path: str
) -> tuple[StreamData, list[str]]:
    distinct = list(dict.fromkeys(topic for topic, _, _ in parts))
    times = [topic.times_ns for topic in distinct]
    notes: list[str] = []
    if all(np.array_equal(times[0], other) for other in times[1:]):
        together = np.hstack([topic.values for topic in distinct])  # (n, all channels)
        found = _numbered(item.rate_hz, times[0], together, path, item.stream)
        rate, origin, indexes, values, notes = (
            found.rate,
            found.origin_ns,
            found.indexes,
            together[found.rows],
            found.notes,
        )
        stamps = times[0][found.rows] if rate == 0 else None
    elif item.rate_hz == 0:
        raise SourceError(f"{item.stream}: the topics of an irregular stream need equal times", path)
    else:
        rate, origin, indexes, values, notes = _side_by_side(item, distinct, path)
        stamps = None
    columns = [
        sum(len(t.channels) for t in distinct[: distinct.index(topic)]) + topic.channels.index(channel)
        for topic, channel, _ in parts
    ]
    fmt = signal_format(item.stream, tuple(name for _, _, name in parts), rate, "float64", item.units)
    data = np.ascontiguousarray(values[:, columns])
    bad = np.flatnonzero(~np.isfinite(data).all(axis=1))
    if len(bad):
        notes.append(f"{many(len(bad), 'sample')} with missing values, first at index {int(indexes[bad[0]])}")
    return StreamData.from_indexes(Header(session, origin, fmt), data, indexes, stamps), notes


def _numbered(rate: Fraction | None, times: NDArray[np.int64], values: Array, path: str, stream: str) -> grid.Grid:
    place = grid.Place(path, np.arange(1, len(times) + 1), "message", stream)
    return grid.irregular(times, values, place) if rate == 0 else grid.fit(times, values, rate, place)


def _side_by_side(
    item: InputOptions, topics: list[Topic], path: str
) -> tuple[Fraction, int, NDArray[np.int64], Array, list[str]]:
    """Topics whose times differ, on the first one's grid; a sample that one of them lacks is NaN there."""
    grids: list[grid.Grid] = []
    notes: list[str] = []
    for topic in topics:
        rate = item.rate_hz if not grids else grids[0].rate
        grids.append(_numbered(rate, topic.times_ns, topic.values, path, topic.stream))
        notes += grids[-1].notes
    rate = grids[0].rate
    shifts = [round((g.origin_ns - grids[0].origin_ns) * rate / 10**9) for g in grids]
    low = min(shifts)
    numbers = [g.indexes + shift - low for g, shift in zip(grids, shifts, strict=True)]
    every = np.unique(np.concatenate(numbers))
    shared = sum(np.isin(every, own) for own in numbers) == len(numbers)
    if 2 * int(np.sum(shared)) < len(every):
        names = ", ".join(topic.stream for topic in topics)
        some = f"only {int(np.sum(shared))} of {len(every)} samples are in all of {names}"
        raise SourceError(f"{item.stream}: {some}; take them as streams of their own", path)
    values = np.full((len(every), sum(len(topic.channels) for topic in topics)), np.nan)
    at = 0
    for topic, own, found in zip(topics, numbers, grids, strict=True):
        width = len(topic.channels)
        values[np.searchsorted(every, own), at : at + width] = topic.values[found.rows]
        at += width
    notes.append(
        f"times of {', '.join(topic.stream for topic in topics)} differ: put on one grid at {float(rate):g} Hz"
    )
    origin = grids[shifts.index(low)].origin_ns
    return rate, origin, every - every[0], values, notes


def _titles(schema: bytes) -> tuple[str, ...]:
    try:
        values = json.loads(schema)["properties"]["values"]
        return tuple(str(item["title"]) for item in values.get("prefixItems") or values["items"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ()
