"""What an MCAP file holds. In: any MCAP, of whatever messages. Out: its topics with schema, encoding, count, rate and gaps.

Times are those at which messages were logged, ns. A gap is a step of more than 1.5 times the usual (median) one; a topic whose
steps vary by more than half of it has no rate to keep, and none is told.
"""

from __future__ import annotations

import io
import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.look.arrays import GAP, SUFFIXES
from streams.chunk import NS
from streams.errors import SourceError
from streams.labels.labels import keys_of_labels_json
from streams.readers.files import File, find
from streams.readers.mcap_scan import Scan

_SPREAD = 0.5


@dataclass(frozen=True, slots=True)
class TopicSummary:
    """One topic; several if its messages have several schemas."""

    topic: str  # names; empty where there is none
    schema: str
    schema_encoding: str
    encoding: str
    channels: int  # MCAP channels that write it
    messages: int  # how many, and how large together
    bytes: int
    start_ns: int | None = None  # first and last log time; None without messages
    end_ns: int | None = None
    rate_hz: float | None = None  # messages a second outside gaps; None if they come irregularly, or are fewer than two
    gaps: int | None = None  # how many gaps, and how many messages would fill them; None without a rate
    missing: int | None = None
    longest_step_s: float | None = None  # from a message to the next
    backwards: int = 0  # messages logged earlier than the one before them in the file


@dataclass(frozen=True, slots=True)
class McapSummary:
    """A file."""

    path: str  # as it was named
    bytes: int  # size, and number of messages
    messages: int
    profile: str = ""  # what the file says of itself
    library: str = ""
    # MCAP chunks by compression; empty for a file without chunks
    compression: Mapping[str, int] = field(default_factory=dict)
    start_ns: int | None = None  # first and last log time of all
    end_ns: int | None = None
    duration_s: float = 0.0
    topics: tuple[TopicSummary, ...] = ()  # in the order of the file
    metadata: Mapping[str, str] = field(default_factory=dict)
    attachments: tuple[str, ...] = ()
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by labels JSON beside the file, its keys
    notes: tuple[str, ...] = ()  # what is damaged


@dataclass(slots=True)
class _Seen:
    channels: set[int] = field(default_factory=set)
    bytes: int = 0
    times: array[int] = field(default_factory=lambda: array("Q"))


_Key = tuple[str, str, str, str]


def mcap_summary(path: str | Path) -> McapSummary:
    """What an MCAP file holds.

    Parameters
    ----------
    path : str or Path
        File or fsspec URL.

    Raises
    ------
    SourceError
        If it is not there or no MCAP.
    """
    (file,) = find([path], SUFFIXES, ())
    seen: dict[_Key, _Seen] = {}
    with file.open() as raw:
        size = raw.seek(0, io.SEEK_END)
        scan = Scan(raw, str(path), empty=True)
        by_channel: dict[int, _Seen] = {}
        for schema, channel, message in scan.messages():
            own = by_channel.get(channel.id)
            if own is None:
                own = by_channel[channel.id] = seen.setdefault(_key(channel, schema), _Seen())
                own.channels.add(channel.id)
            own.times.append(message.log_time)
            own.bytes += len(message.data)
    for channel, schema in scan.channels.values():
        seen.setdefault(_key(channel, schema), _Seen()).channels.add(channel.id)
    topics = tuple(_summed(key, one) for key, one in seen.items())
    starts = [one.start_ns for one in topics if one.start_ns is not None]
    ends = [one.end_ns for one in topics if one.end_ns is not None]
    return McapSummary(
        path=str(path),
        bytes=size,
        messages=sum(one.messages for one in topics),
        profile=scan.header.profile if scan.header else "",
        library=scan.header.library if scan.header else "",
        compression=dict(scan.compressions),
        start_ns=min(starts, default=None),
        end_ns=max(ends, default=None),
        duration_s=(max(ends) - min(starts)) / NS if starts else 0.0,
        topics=topics,
        metadata=scan.metadata,
        attachments=tuple(scan.attachments),
        labels=labels_beside(file),
        notes=tuple(scan.notes),
    )


def _key(channel: Any, schema: Any) -> _Key:
    return channel.topic, schema.name if schema else "", schema.encoding if schema else "", channel.message_encoding


def _summed(key: _Key, seen: _Seen) -> TopicSummary:
    times = np.frombuffer(seen.times, np.uint64).astype(np.int64)
    of = (*key, len(seen.channels), len(times), seen.bytes)
    if not len(times):
        return TopicSummary(*of)
    backwards = int(np.count_nonzero(np.diff(times) < 0))
    times = np.sort(times)
    steps = np.diff(times)
    rate, gaps, missing = _regular(steps)
    longest = float(steps.max()) / NS if len(steps) else None
    return TopicSummary(*of, int(times[0]), int(times[-1]), rate, gaps, missing, longest, backwards)


def _regular(steps: NDArray[np.int64]) -> tuple[float | None, int | None, int | None]:
    """Rate, gaps and missing messages."""
    ahead = steps[steps > 0]
    if not len(ahead):
        return None, None, None
    usual = float(np.median(ahead))
    inner = ahead[ahead <= GAP * usual]
    # Long steps are gaps, if the others agree.
    low, high = np.quantile(inner, (0.05, 0.95))
    if high - low > _SPREAD * usual or 2 * len(inner) < len(ahead):
        return None, None, None
    gaps = ahead[ahead > GAP * usual]
    missing = sum(math.floor(step / usual + 0.5) - 1 for step in gaps.tolist())
    return float(NS / inner.mean()), len(gaps), missing


def labels_beside(file: File) -> dict[str, tuple[str, ...]]:
    """The labels JSON of a recording, with its keys; empty without one, or if it cannot be read."""
    beside = file.labels_file()
    if beside is None:
        return {}
    try:
        with beside.open() as raw:
            return {beside.path: tuple(keys_of_labels_json(beside.path, raw.read()))}
    except SourceError:
        return {beside.path: ()}
