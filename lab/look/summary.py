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
    """One topic; several if its messages have several schemas.

    Attributes
    ----------
    topic, schema, schema_encoding, encoding : str
        Names; empty where there is none.
    channels : int
        MCAP channels that write it.
    messages, bytes : int
        How many, and how large together.
    start_ns, end_ns : int, optional
        First and last log time; None without messages.
    rate_hz : float, optional
        Messages a second outside gaps; None if they come irregularly, or are fewer than two.
    gaps, missing : int, optional
        How many gaps, and how many messages would fill them; None without a rate.
    longest_step_s : float, optional
        From a message to the next.
    backwards : int
        Messages logged earlier than the one before them in the file.
    """

    topic: str
    schema: str
    schema_encoding: str
    encoding: str
    channels: int
    messages: int
    bytes: int
    start_ns: int | None = None
    end_ns: int | None = None
    rate_hz: float | None = None
    gaps: int | None = None
    missing: int | None = None
    longest_step_s: float | None = None
    backwards: int = 0


@dataclass(frozen=True, slots=True)
class McapSummary:
    """A file.

    Attributes
    ----------
    path : str
        As it was named.
    bytes, messages : int
        Size, and number of messages.
    profile, library : str
        What the file says of itself.
    compression : mapping of str to int
        MCAP chunks by compression; empty for a file without chunks.
    start_ns, end_ns : int, optional
        First and last log time of all.
    duration_s : float
        Between them.
    topics : tuple of TopicSummary
        In the order of the file.
    metadata : mapping of str
        ``record.member``.
    attachments : tuple of str
        Names.
    labels : mapping of str to tuple of str
        By labels JSON beside the file, its keys.
    notes : tuple of str
        What is damaged.
    """

    path: str
    bytes: int
    messages: int
    profile: str = ""
    library: str = ""
    compression: Mapping[str, int] = field(default_factory=dict)
    start_ns: int | None = None
    end_ns: int | None = None
    duration_s: float = 0.0
    topics: tuple[TopicSummary, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    attachments: tuple[str, ...] = ()
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


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
