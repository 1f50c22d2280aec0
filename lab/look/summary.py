"""``kymo inspect``: what a file holds. In: any MCAP, a recording. Out: topics with schema, encoding, count, rate, gaps; streams, labels.

Times are those at which messages were logged, ns. A gap is a step of more than 1.5 times the usual (median) one; a topic whose
steps vary by more than half of it has no rate to keep, and none is told.
"""

from __future__ import annotations

import io
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from mcap.records import Channel, Schema
from numpy.typing import NDArray

from kymo.lab.look.arrays import GAP, SUFFIXES
from kymo.models.reports.html import duration
from kymo.streams.errors import SourceError
from kymo.streams.labels.labels import LabelsJson
from kymo.streams.readers.files import File, find
from kymo.streams.readers.mcap_scan import Scan
from kymo.streams.recording import Recording
from kymo.streams.words import NS, some

_SPREAD = 0.5
_HEAD = ("topic", "messages", "rate (Hz)", "gaps", "missing", "encoding", "schema")
_RIGHT = range(1, 5)
_DAY_NS = 86_400 * NS


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
class _Tally:
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
    tallies: dict[_Key, _Tally] = {}
    by_channel: dict[int, _Tally] = {}

    def tally_of(channel: Channel, schema: Schema | None) -> _Tally:
        key = channel.topic, schema.name if schema else "", schema.encoding if schema else "", channel.message_encoding
        by_channel[channel.id] = tally = tallies.setdefault(key, _Tally())
        tally.channels.add(channel.id)
        return tally

    with file.open() as raw:
        size = raw.seek(0, io.SEEK_END)
        scan = Scan(raw, str(path), empty=True)
        for schema, channel, message in scan.messages():
            tally = by_channel.get(channel.id) or tally_of(channel, schema)
            tally.times.append(message.log_time)
            tally.bytes += len(message.data)
    for channel, schema in scan.channels.values():
        tally_of(channel, schema)
    topics = tuple(_summed(key, tally) for key, tally in tallies.items())
    start_ns = min((topic.start_ns for topic in topics if topic.start_ns is not None), default=None)
    end_ns = max((topic.end_ns for topic in topics if topic.end_ns is not None), default=None)
    return McapSummary(
        path=str(path),
        bytes=size,
        messages=sum(topic.messages for topic in topics),
        profile=scan.header.profile if scan.header else "",
        library=scan.header.library if scan.header else "",
        compression=dict(scan.compressions),
        start_ns=start_ns,
        end_ns=end_ns,
        duration_s=0.0 if start_ns is None or end_ns is None else (end_ns - start_ns) / NS,
        topics=topics,
        metadata=scan.metadata,
        attachments=tuple(scan.attachments),
        labels=_labels_beside(file),
        notes=tuple(scan.notes),
    )


def _summed(key: _Key, tally: _Tally) -> TopicSummary:
    logged = np.frombuffer(tally.times, np.uint64).astype(np.int64)
    counts = (*key, len(tally.channels), len(logged), tally.bytes)
    if not len(logged):
        return TopicSummary(*counts)
    times = np.sort(logged)
    steps = np.diff(times)
    longest = float(steps.max()) / NS if len(steps) else None
    backwards = int(np.count_nonzero(np.diff(logged) < 0))
    return TopicSummary(*counts, int(times[0]), int(times[-1]), *_regular(steps), longest, backwards)


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


def _labels_beside(file: File) -> dict[str, tuple[str, ...]]:
    """The labels JSON of a recording, with its keys; empty without one, or if it cannot be read."""
    beside = file.labels_file()
    if beside is None:
        return {}
    try:
        with beside.open() as raw:
            return {beside.path: tuple(LabelsJson(beside.path, raw.read()).keys)}
    except SourceError:
        return {beside.path: ()}


def lines_of(summary: McapSummary) -> list[str]:
    packed = ", ".join(f"{count} {kind}" for kind, count in summary.compression.items()) or "none"
    lasts = duration(summary.duration_s).replace("\u00a0", " ")
    out = [
        f"{summary.path}: {summary.bytes:,} bytes, {summary.messages:,} messages, {lasts}",
        f"written by {summary.library or 'an unnamed library'}; chunks: {packed}",
    ]
    if summary.start_ns is not None and summary.end_ns is not None:
        out.append(f"logged from {_moment(summary.start_ns)} to {_moment(summary.end_ns)}")
    out += ["", *_table([_HEAD, *(_row(topic) for topic in summary.topics)]), ""]
    for topic in summary.topics:
        if topic.backwards:
            out.append(f"{topic.topic}: {topic.backwards:,} messages logged earlier than the one before")
    for path, keys in summary.labels.items():
        out.append(f"labels: {path}, keys {', '.join(keys)}" if keys else f"labels: {path}, without a label")
    out += [f"attachment: {name}" for name in summary.attachments]
    out += [f"metadata: {name} = {text}" for name, text in summary.metadata.items()]
    out += [f"damaged: {note}" for note in summary.notes]
    return out[:-1] if not out[-1] else out


def recording_facts(recording: Recording) -> dict[str, Any]:
    """What a recording holds."""
    streams = [
        {
            "stream": (fmt := stream.header.format).stream,
            "samples": stream.count,
            "rate_hz": float(fmt.rate) or None,  # None of an irregular one
            "gaps": len(stream.pieces) - 1,
            "missing": int(np.isnan(stream.data).any(axis=-1).sum()) if stream.data.dtype.kind == "f" else 0,
            "channels": fmt.channels,
            "units": fmt.units,
            "start_ns": stream.start_ns,
            "end_ns": stream.end_ns,
        }
        for stream in recording.streams
    ]
    labels = dict[str, dict[str, int]]()
    for label in recording.labels:
        classes = labels.setdefault(label.set, {})
        classes[label.label] = classes.get(label.label, 0) + 1
    about = {name: getattr(recording, name) for name in ("session", "subject", "path", "metadata", "notes")}
    return about | {"streams": streams, "labels": labels}


def lines_of_recording(recording: Recording, facts: Mapping[str, Any]) -> list[str]:
    lasts = duration((recording.end_ns - recording.start_ns) / NS).replace("\u00a0", " ")
    of_whom = f" of {recording.subject}" if recording.subject not in (None, recording.session) else ""
    out = [f"{recording.session}{of_whom}: {lasts}, from {_moment(recording.start_ns)} ({recording.path})", ""]
    rows = [("stream", "samples", "rate (Hz)", "gaps", "missing", "lasts", "channels")]
    for row in facts["streams"]:
        rate = f"{row['rate_hz']:.4g}" if row["rate_hz"] else "irregular"
        units = f" ({', '.join(unit or '–' for unit in dict.fromkeys(row['units']))})" if any(row["units"]) else ""
        seconds = duration((row["end_ns"] - row["start_ns"]) / NS).replace("\u00a0", " ")
        counts = (f"{row['samples']:,}", rate, *(f"{row[name]:,}" for name in ("gaps", "missing")))
        rows.append((row["stream"], *counts, seconds, some(row["channels"], 8) + units))
    out += [*_table(rows), ""]
    for name, classes in facts["labels"].items():
        out.append(f"labels `{name}`: {some([f'{label} ({count})' for label, count in classes.items()], 12)}")
    out += [f"{name}: {text}" for name, text in recording.metadata.items()]
    return out + [f"note: {note}" for note in recording.notes]


def _moment(time_ns: int) -> str:
    """A date, or seconds where there is none."""
    if time_ns < _DAY_NS:
        return f"{time_ns / NS:.3f} s"
    try:
        return datetime.fromtimestamp(time_ns / NS, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):  # beyond the year 9999
        return f"{time_ns} ns"


def _row(topic: TopicSummary) -> tuple[str, ...]:
    rate = "irregular" if topic.rate_hz is None else f"{topic.rate_hz:.4g}"
    if topic.messages < 2:
        rate = "–"
    counts = ["–" if n is None else f"{n:,}" for n in (topic.gaps, topic.missing)]
    schema = f"{topic.schema} ({topic.schema_encoding})" if topic.schema else "–"
    return topic.topic, f"{topic.messages:,}", rate, *counts, topic.encoding or "–", schema


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    form = "  ".join(f"{{:{'>' if i in _RIGHT else '<'}{width}}}" for i, width in enumerate(widths))
    return [form.format(*row).rstrip() for row in rows]
