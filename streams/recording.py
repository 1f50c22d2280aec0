"""Recordings: what readers of files give. In: samples and their numbers. Out: Chunks, and the label of an interval;
times in Unix ns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from kymo.streams.chunk import Array, Chunk, Header, signal_format
from kymo.streams.labels.labels import Cover, Label
from kymo.streams.topics import input_of
from kymo.streams.words import NS

Times = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class InputOptions:
    """One ``[[input]]`` of a recipe, as far as reading needs it."""

    stream: str  # ``kind[.place]`` of the stream to make
    # columns to take, in this order; empty for all numeric ones. In MCAP files with a topic a signal: ``topic.channel``
    channels: tuple[str, ...] = ()
    # samples per second; 0 for an irregular stream, None to take it from the file's times
    rate_hz: Fraction | None = None
    units: tuple[str, ...] = ()  # one a channel, or empty where unknown
    takes: tuple[str, ...] = ()  # units into which those that a file says are converted, one a channel; empty for none
    offset_ns: int | None = 0  # what will be added to its times, to lie with others; None where that is to be found out


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """Where one set of labels stands."""

    column: str | None = None  # a column, or a member of `metadata` in a labels JSON: the set's name
    key: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)  # name of each value


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How files become sessions."""

    inputs: tuple[InputOptions, ...] = ()  # streams to make; empty for one stream of all numeric columns
    # columns that together name a session; empty for the column ``session`` if it is there, else the file's stem
    session: tuple[str, ...] = ()
    subject: str | None = None  # column of the subject's pseudonym; None for the column ``subject`` if it is there
    # rows to keep, such as ``usabledata == 1``: comparisons, ``in``, ``and``, ``or``, ``not`` of columns, numbers and texts
    keep: str | None = None
    label_column: str | None = "label"  # of the class
    # member of `metadata` in a labels JSON ``X.labels.json`` beside the file ``X.csv`` or ``X.mcap``
    label_key: str | None = None
    label_names: Mapping[str, str] = field(default_factory=dict)  # class name of each value
    more_labels: tuple[LabelOptions, ...] = ()  # further sets of labels, from other columns or keys
    session_name: str | None = None  # instead of the file's, as the next
    stream_name: str | None = None
    # what the names of files, or of folders that they are in, say, such as ``{label}_{subject}``
    file_names: str | None = None

    @property
    def label_columns(self) -> dict[str, Mapping[str, str]]:
        """By column that holds labels, the names of its values; the recipe's own first."""
        return self._names_by(LabelOptions(column=self.label_column, names=self.label_names), "column")

    @property
    def label_keys(self) -> dict[str, Mapping[str, str]]:
        """By key of a labels JSON, the names of its values; the recipe's own first."""
        return self._names_by(LabelOptions(key=self.label_key, names=self.label_names), "key")

    def _names_by(self, own: LabelOptions, member: str) -> dict[str, Mapping[str, str]]:
        names: dict[str, Mapping[str, str]] = {}
        for option in (own, *self.more_labels):
            if (name := getattr(option, member)) is not None:
                names.setdefault(name, option.names)
        return names


@dataclass(slots=True, eq=False)
class StreamData:
    """One stream of a recording."""

    header: Header  # shared by all its chunks
    # all samples, ``(n, *header.format.shape)`` of the header's dtype; for jpeg an object array ``(n,)`` of bytes
    data: Array
    times_ns: Times | None = None  # ``(n,)``, irregular streams only
    first_index: int = 0  # number of the first sample
    # runs of consecutive samples with the number of their first; a gap is a jump between two of them. Views of `data`, in order
    pieces: list[tuple[int, Array]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.pieces:
            self.pieces = [(self.first_index, self.data)]
        self.first_index = self.pieces[0][0]

    @classmethod
    def from_indexes(cls, header: Header, data: Array, indexes: Times, times_ns: Times | None = None) -> StreamData:
        """A stream whose samples carry these numbers."""
        cuts = [0, *(np.flatnonzero(np.diff(indexes) != 1) + 1).tolist(), len(indexes)]
        pieces = [(int(indexes[a]), data[a:b]) for a, b in pairwise(cuts) if b > a]
        return cls(header, data, times_ns, 0, pieces)

    @classmethod
    def silent(cls, item: InputOptions, session: str, start_ns: int) -> StreamData:
        """An irregular stream in which nothing happens."""
        fmt = signal_format(item.stream, item.channels, Fraction(0), "float64", item.units)
        return cls(Header(session, start_ns, fmt), np.empty((0, *fmt.shape)), np.empty(0, np.int64))

    @property
    def count(self) -> int:
        return len(self.data)

    @property
    def end_index(self) -> int:
        """Number one past the last sample."""
        first, samples = self.pieces[-1]
        return first + len(samples)

    @property
    def start_ns(self) -> int:
        """Unix time of the first sample, ns."""
        return self.header.edge_ns(self.first_index, self.times_ns, 0)

    @property
    def end_ns(self) -> int:
        """Unix time one sample after the last, ns (irregular streams: of the last sample)."""
        return self.header.edge_ns(self.end_index, self.times_ns, -1)

    @property
    def duration_s(self) -> float:
        """Seconds from the first sample to the end, gaps included."""
        return (self.end_ns - self.start_ns) / NS

    def chunks(self, samples: int) -> Iterator[Chunk]:
        """The stream as consecutive chunks of at most `samples` samples; none spans a gap, the last one has
        ``end=True``.

        An empty stream gives one empty chunk with ``end=True``.
        """
        if samples < 1:
            raise ValueError(f"chunks of {samples} samples: expected at least 1")
        at = 0
        for first, piece in self.pieces:
            for start in range(0, max(len(piece), 1 if self.count == 0 else 0), samples):
                part = piece[start : start + samples]
                times = None if self.times_ns is None else self.times_ns[at : at + len(part)]
                at += len(part)
                yield Chunk(self.header, first + start, part, times, at == self.count)
                if self.count == 0:
                    return


@dataclass(slots=True, eq=False)
class Recording:
    """One session as its file holds it."""

    session: str  # its name; the Kafka key
    streams: list[StreamData]
    labels: list[Label] = field(default_factory=list)  # by start
    subject: str | None = None  # pseudonym
    metadata: dict[str, str] = field(default_factory=dict)  # what else the file says of the session
    path: str = ""  # where it was read from
    notes: list[str] = field(default_factory=list)  # every repair and every guess, counted, with the first row

    @property
    def start_ns(self) -> int:
        """Unix time of the earliest sample, ns; 0 without streams."""
        return min((stream.start_ns for stream in self._with_samples()), default=0)

    @property
    def end_ns(self) -> int:
        """Unix time of the latest end of a stream, ns; 0 without streams."""
        return max((stream.end_ns for stream in self._with_samples()), default=0)

    def span_ns(self, inputs: Sequence[InputOptions]) -> tuple[int, int]:
        """Where its streams begin and end once inputs have moved them."""
        streams = [(stream, _offset_ns(stream, inputs)) for stream in self._with_samples()]
        start_ns = min((stream.start_ns + later_ns for stream, later_ns in streams), default=0)
        return start_ns, max((stream.end_ns + later_ns for stream, later_ns in streams), default=0)

    def offset_ns(self, inputs: Sequence[InputOptions]) -> int:
        """By how much inputs move its streams; 0 where each is moved otherwise."""
        offsets = {_offset_ns(stream, inputs) for stream in self._with_samples()}
        return offsets.pop() if len(offsets) == 1 else 0

    def _with_samples(self) -> list[StreamData]:
        """Streams that say when it is; all where none has a sample."""
        return [stream for stream in self.streams if stream.count] or self.streams

    def label_of(self, start_ns: int, end_ns: int, min_share: float = 0.5) -> str | None:
        """The class that covers the largest part of ``[start_ns, end_ns)``, if that is at least `min_share` of it, else None.

        Of classes with equal parts the one whose part begins first counts, then the first by name. Labels of one class that
        overlap count once.
        """
        near = [label for label in self.labels if label.start_ns < end_ns and start_ns < label.end_ns]
        return Cover(near).label_of(start_ns, end_ns, min_share)


def _offset_ns(stream: StreamData, inputs: Sequence[InputOptions]) -> int:
    item = input_of(stream.header.format.stream, inputs)
    return item.offset_ns or 0 if item else 0


def moved(labels: Iterable[Label], later_ns: int) -> list[Label]:
    """Labels that are later by so much."""
    return [replace(label, start_ns=label.start_ns + later_ns, end_ns=label.end_ns + later_ns) for label in labels]


def shifted(recording: Recording, shift_ns: int) -> Recording:
    """The recording with every event time later by `shift_ns`."""
    if not shift_ns:
        return recording
    streams = []
    for stream in recording.streams:
        header = replace(stream.header, origin_ns=stream.header.origin_ns + shift_ns)
        times = None if stream.times_ns is None else stream.times_ns + shift_ns
        streams.append(StreamData(header, stream.data, times, 0, list(stream.pieces)))
    return replace(recording, streams=streams, labels=moved(recording.labels, shift_ns))
