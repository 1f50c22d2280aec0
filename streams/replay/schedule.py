"""What a replay sends and in which order. In: Recordings and a ReplayPlan. Out: Chunks and when they are due, in ns.

Pure: nothing here knows a clock or Kafka. A chunk is due when its last sample has been taken, as a device would send.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from kymo.streams.budget import MESSAGE_DATA
from kymo.streams.chunk import Chunk, Header, index_at
from kymo.streams.recording import Recording, StreamData
from kymo.streams.words import NS

DAY_NS = 24 * 3600 * NS


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    speed: float | None = 1.0  # seconds of event time a second; None for as fast as Kafka takes it
    loop: int = 1  # how many times, index and time going on; 0 for ever
    start_s: float = 0.0  # which part, in seconds from each session's first sample; no duration for all that follows
    duration_s: float | None = None
    now: bool = False  # shift event times so that the replay's first sample is taken at its start
    chunk_ms: float = 100  # length of a chunk, ms of event time
    run: str | None = None  # replay into topics of its own, ``prefix.run``


class Due(NamedTuple):
    """One chunk and when it is due."""

    due_ns: int  # event time since the replay's start
    session: int  # which recording, and which stream of it, counted from 0
    stream: int
    chunk: Chunk


def cut(recording: Recording, start_s: float, duration_s: float | None) -> Recording | None:
    """A part of a recording; samples keep their numbers, streams without a sample in it keep their end mark."""
    if start_s == 0 and duration_s is None:
        return recording
    low = recording.start_ns + round(start_s * NS)
    high = recording.end_ns + 1 if duration_s is None else low + round(duration_s * NS)
    streams = [_cut_stream(stream, low, high) for stream in recording.streams]
    return replace(recording, streams=streams) if any(stream.count for stream in streams) else None


def _cut_stream(stream: StreamData, low_ns: int, high_ns: int) -> StreamData:
    if stream.times_ns is not None:
        a, b = (int(i) for i in np.searchsorted(stream.times_ns, [low_ns, high_ns]))
        runs = [np.arange(first, first + len(samples)) for first, samples in stream.pieces]
        numbers = np.append(np.concatenate(runs), stream.end_index)
        if a == b:
            return StreamData(stream.header, stream.data[a:b], stream.times_ns[a:b], int(numbers[a]))
        return StreamData.from_indexes(stream.header, stream.data[a:b], numbers[a:b], stream.times_ns[a:b])
    rate, origin = stream.header.format.rate, stream.header.origin_ns
    low, high = index_at(origin, rate, low_ns), index_at(origin, rate, high_ns)
    pieces = []
    for first, samples in stream.pieces:
        a, b = max(low - first, 0), min(high - first, len(samples))
        if b > a:
            pieces.append((first + a, samples[a:b]))
    if not pieces:
        first = min(max(low, stream.first_index), stream.end_index)
        return StreamData(stream.header, stream.data[:0], None, first)
    data = pieces[0][1] if len(pieces) == 1 else np.concatenate([samples for _, samples in pieces])
    return StreamData(stream.header, data, None, 0, pieces)


def starts(recordings: Sequence[Recording]) -> tuple[list[int], bool]:
    """When each session starts, ns after the replay's start, and whether that is as recorded.

    Sessions start as recorded if, within a day, at least one of them ran at every moment from the first start to the
    last; else (recordings of different days, or with silence between them) all start together.
    """
    first = min(recording.start_ns for recording in recordings)
    reached = first
    for recording in sorted(recordings, key=lambda r: r.start_ns):
        if recording.start_ns > reached or recording.start_ns - first > DAY_NS:
            return [0] * len(recordings), False
        reached = max(reached, recording.end_ns)
    return [recording.start_ns - first for recording in recordings], True


def schedule(recordings: Sequence[Recording], offsets_ns: Sequence[int], plan: ReplayPlan) -> Iterator[Due]:
    """All chunks by the time they are due, then by session, then by stream."""
    parts = []
    for i, (recording, offset) in enumerate(zip(recordings, offsets_ns, strict=True)):
        to_due, period_ns = offset - recording.start_ns, turn_ns(recording)
        for j, stream in enumerate(recording.streams):
            part = _stream_schedule(stream, (i, j), to_due, plan, period_ns)
            parts.append(part if stream.header.format.rate else _with_marks(part, stream, (i, j), recording, to_due))
    return heapq.merge(*parts, key=lambda due: due[:3])


def turn_ns(recording: Recording) -> Fraction:
    """How much later each turn of a loop is than the one before, for all streams: ns.

    It holds each stream whole, and all of the recording but for less than a sample (devices that start together do so no more exactly). It
    is a whole number of the slowest stream's samples; where it is none of another one's, a turn of that begins at the nearest sample of its
    grid: half a sample away at most, however many turns there were.
    """
    streams = [stream for stream in recording.streams if stream.count]
    regular = [stream for stream in streams if stream.header.format.rate]
    begin = min(map(_begin_ns, streams), default=Fraction(0))
    whole = max((_begin_ns(stream) + _span_ns(stream) for stream in streams), default=begin) - begin
    if not regular:  # the next turn begins a mean interval later
        intervals = [_span_ns(s) // (s.count - 1) if s.count > 1 else NS for s in streams]
        return max([whole, *(_span_ns(s) + max(1, step) for s, step in zip(streams, intervals, strict=True))])
    rates = [stream.header.format.rate for stream in regular]
    slowest = min(rates) / NS
    samples = [math.ceil(_span_ns(stream) * slowest) for stream in regular]
    samples += [math.floor(_span_ns(stream) * slowest) + 1 for stream in streams if stream not in regular]
    return max(*samples, math.floor((whole - NS / max(rates)) * slowest) + 1) / slowest


def _begin_ns(stream: StreamData) -> Fraction:
    rate = stream.header.format.rate
    return stream.header.origin_ns + stream.first_index * NS / rate if rate else Fraction(stream.start_ns)


def _span_ns(stream: StreamData) -> Fraction:
    """A stream's length, gaps included; of an irregular one to its last sample, whatever its next interval would have been."""
    rate = stream.header.format.rate
    return (stream.end_index - stream.first_index) * NS / rate if rate else Fraction(stream.end_ns - stream.start_ns)


def _stream_schedule(
    stream: StreamData, place: tuple[int, int], to_due_ns: int, plan: ReplayPlan, period_ns: Fraction
) -> Iterator[Due]:
    due, turn = 0, 0
    samples = stream.end_index - stream.first_index
    rate = stream.header.format.rate
    while plan.loop == 0 or turn < plan.loop:
        last = turn + 1 == plan.loop
        later = round(turn * period_ns * rate / NS) if rate else turn * samples
        for chunk in _chunks(stream, plan.chunk_ms):
            if not chunk.count and not last:
                continue
            times = None if chunk.times_ns is None else chunk.times_ns + round(turn * period_ns)
            sent = Chunk(chunk.header, chunk.first_index + later, chunk.data, times, chunk.end and last)
            due = max(due, _last_ns(sent, due - to_due_ns) + to_due_ns)
            yield Due(due, *place, sent)
        turn += 1
        if not stream.count and plan.loop == 0:
            return


def _with_marks(
    chunks: Iterator[Due], stream: StreamData, place: tuple[int, int], recording: Recording, to_due_ns: int
) -> Iterator[Due]:
    """An irregular stream's chunks, and between them a progress mark at every second of the recording that has passed without one.

    A recording that is played for ever has nothing to end a stream without samples: that says so for ever.
    """
    second, number, due_ns, ended = 1, stream.first_index, 0, False
    nothing, no_times = stream.data[:0], np.empty(0, np.int64)

    def marks(until_ns: int | None) -> Iterator[Due]:
        nonlocal second, due_ns
        while until_ns is None or recording.start_ns + second * NS <= until_ns:
            at_ns = recording.start_ns + second * NS
            due_ns = max(due_ns, at_ns + to_due_ns)
            yield Due(due_ns, *place, Chunk(stream.header, number, nothing, no_times, complete_ns=at_ns))
            second += 1

    for due in chunks:
        if due.chunk.count:
            yield from marks(due.chunk.start_ns)
        yield due
        due_ns, number, ended = due.due_ns, due.chunk.end_index, due.chunk.end
        second = max(second, (_last_ns(due.chunk, 0) - recording.start_ns) // NS + 1)
    if not ended:
        yield from marks(None)


def _last_ns(chunk: Chunk, default_ns: int) -> int:
    return chunk.header.edge_ns(chunk.end_index - 1, chunk.times_ns, -1) if chunk.count else default_ns


def _chunks(stream: StreamData, chunk_ms: float) -> Iterator[Chunk]:
    fmt = stream.header.format
    if fmt.rate:
        for chunk in stream.chunks(max(1, int(fmt.rate * round(chunk_ms * 1000) / 1_000_000))):
            yield from chunk.parts(MESSAGE_DATA)
        return
    slot_ns = max(1, round(chunk_ms * 1_000_000))
    for chunk in (part for piece in stream.chunks(max(1, stream.count)) for part in piece.parts(MESSAGE_DATA)):
        if chunk.times_ns is None or chunk.count < 2:
            yield chunk
            continue
        slots = chunk.times_ns // slot_ns
        cuts = [0, *(np.flatnonzero(np.diff(slots)) + 1).tolist(), chunk.count]
        for a, b in pairwise(cuts):
            end = chunk.end and b == chunk.count
            yield Chunk(chunk.header, chunk.first_index + a, chunk.data[a:b], chunk.times_ns[a:b], end)


def digest(recording: Recording, plan: ReplayPlan) -> str:
    """SHA-256 of what a replay of `recording` (cut, not shifted) puts into the topics, whatever the chunks' length."""
    total = hashlib.sha256(json.dumps([plan.loop, plan.now]).encode())
    for stream in sorted(recording.streams, key=lambda s: s.header.format.stream):
        total.update(_header_text(stream.header, plan.now).encode())
        for first, samples in stream.pieces:
            total.update(f"{first}+{len(samples)};".encode())
            if stream.header.format.dtype == "jpeg":
                for frame in samples:
                    total.update(f"{len(frame)}:".encode() + bytes(frame))
            else:
                total.update(np.ascontiguousarray(samples).data)
        if stream.times_ns is not None:
            total.update(np.ascontiguousarray(stream.times_ns).data)
    return total.hexdigest()


def _header_text(header: Header, now: bool) -> str:
    fmt = header.format
    origin = 0 if now else header.origin_ns
    return json.dumps(
        [header.session, fmt.stream, header.chain, origin, str(fmt.rate), fmt.channels, fmt.units, fmt.dtype, fmt.shape]
    )
