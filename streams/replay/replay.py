"""Replay with kafka-python. In: Recordings. Out: their chunks in the topics, at their recorded pace; a ReplaySummary.

Each session's metadata goes to ``kymo.sessions`` before its first chunk, and again when its last one is acknowledged,
with the digest of what was sent: a recording that is already there is left out, and the summary says so.
"""

from __future__ import annotations

import json
import mmap
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from kymo.streams.chunk import Array, bytes_of
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import DeliveryError, KymoError, SourceError
from kymo.streams.kafka.admin import ensure_topics, run_prefix
from kymo.streams.kafka.publish import Publisher
from kymo.streams.kafka.sessions import announced
from kymo.streams.messages import Odd
from kymo.streams.recording import Recording, StreamData, shifted
from kymo.streams.replay.pacing import Player, ReplayIO, ReplayProgress
from kymo.streams.replay.schedule import Due, ReplayPlan, cut, digest, schedule, starts, turn_ns
from kymo.streams.sessions import session_record
from kymo.streams.settings import Settings
from kymo.streams.topics import MIB, Names, topic_of
from kymo.streams.words import NS, grouped, many

#: Waiting for others to share a batch costs latency at a pace, and is worth it without one.
LINGER_MS = 5
#: Samples that a replay holds in memory; more go to a file.
KEPT_BYTES = 64 * MIB
_FEW = 3  # sessions that are named one by one
_ALIGNED = 64  # bytes


@dataclass(slots=True)
class ReplaySummary:
    sessions: int = 0  # what was sent
    chunks: int = 0
    samples: int = 0
    streams: dict[str, int] = field(default_factory=dict)  # samples of each, over all sessions
    bytes: int = 0
    acknowledged: int = 0  # chunks that Kafka has
    requested_speed: float | None = None  # seconds of event time a second; None for as fast as possible
    reached_speed: float = 0.0  # the same, measured to the last acknowledgement, pauses left out
    mean_lag_ms: float = 0.0  # how long after its deadline a chunk was sent
    max_lag_ms: float = 0.0
    event_s: float = 0.0  # event time that was replayed, and how long that took, pauses left out
    elapsed_s: float = 0.0
    alignment: str = "recorded"  # whether the sessions started as recorded relative to one another, or all at once
    skipped: list[str] = field(default_factory=list)  # sessions that were there already
    notes: list[str] = field(default_factory=list)  # repairs of the readers and remarks of the replay, with the session
    outcome: str = "done"  # how it ended
    error: str = ""  # why it failed, on one line
    topics: str = ""  # prefix of the topics

    @property
    def ok(self) -> bool:
        """Whether everything that was sent is acknowledged, and nothing went wrong."""
        return self.outcome in ("done", "quit") and not self.error

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}

    def lines(self) -> list[str]:
        asked = "max" if self.requested_speed is None else f"{self.requested_speed:g}"
        start = "as recorded relative to one another" if self.alignment == "recorded" else "together"
        sent = (self.sessions, "session"), (self.samples, "sample"), (self.chunks, "chunk")
        out = [", ".join(many(*pair) for pair in sent) + f", {self.acknowledged} acknowledged"]
        pace = [
            f"{self.bytes / 1e6:.2f} MB to {self.topics}.*",
            f"speed {asked} asked, {self.reached_speed:.4g} reached: {self.event_s:.1f} s in {self.elapsed_s:.1f} s",
            f"lag {self.mean_lag_ms:.2f} ms mean, {self.max_lag_ms:.2f} ms at most",
        ]
        if len(self.streams) > 1:
            counts = [f"{name} ({many(count, 'sample')})" for name, count in sorted(self.streams.items())]
            out.append(f"streams {', '.join(counts)}")
        out += pace if self.chunks else []
        if self.sessions > 1:
            out.append(f"sessions started {start}")
        if self.skipped:
            out.append(
                f"{many(len(self.skipped), 'session')} there already, nothing added (--run N replays them apart): "
                f"{', '.join(self.skipped[:5])}{' …' if len(self.skipped) > 5 else ''}"
            )
        notes = [note.partition(": ")[::2] if ": " in note else ("", note) for note in self.notes]
        out += [f"note: {note}" for note in grouped(notes, _FEW)]
        return out if self.outcome == "done" else [*out, f"ended early: {self.outcome}"]


def replay(
    recordings: Iterable[Recording], settings: Settings, plan: ReplayPlan, io: ReplayIO | None = None
) -> ReplaySummary:
    """Send recordings to their topics, which are made if they are missing."""
    settings = settings if plan.run is None else settings.under(run_prefix(settings.prefix, plan.run))
    names = Names(settings.prefix)
    summary = ReplaySummary(requested_speed=plan.speed, topics=names.prefix)
    parts = spooled_parts(recordings, plan, summary, settings)
    summary.notes += ensure_topics(settings, names).warnings
    digests = {part.session: digest(part, plan) for part in parts}
    parts = _missing_parts(parts, digests, settings, summary)
    if parts:
        with Publisher(settings, names, linger_ms=0 if plan.speed else LINGER_MS) as publisher:
            _Replay(parts, plan, digests, publisher, io or ReplayIO(), summary).run()
    return summary


def spooled_parts(
    recordings: Iterable[Recording], plan: ReplayPlan, summary: ReplaySummary, settings: Settings
) -> list[Recording]:
    """The recordings cut as planned, in memory or on the disk; those with nothing in the part are noted."""
    parts = Spool(settings.home / "cache" / "replay", KEPT_BYTES).keep(_parts(recordings, plan, summary))
    if not parts:
        raise SourceError("nothing to replay: " + ("; ".join(summary.notes[-3:]) or "no recordings"))
    return parts


def _parts(recordings: Iterable[Recording], plan: ReplayPlan, summary: ReplaySummary) -> Iterator[Recording]:
    paths: dict[str, str] = {}
    for recording in recordings:
        if recording.session in paths:
            raise SourceError(
                f"session {recording.session} is in {paths[recording.session] or 'one recording'} and again in "
                f"{recording.path or 'another'}; sessions need different names (a `session` column, or --session)"
            )
        part = cut(recording, plan.start_s, plan.duration_s)
        summary.notes += [f"{recording.session}: {note}" for note in recording.notes]
        if part is None or not any(stream.count for stream in part.streams):
            length = (recording.end_ns - recording.start_ns) / NS
            summary.notes.append(f"{recording.session}: left out, no sample in that part ({length:g} s long)")
        else:
            paths[recording.session] = recording.path
            yield part


def _missing_parts(
    parts: list[Recording], digests: dict[str, str], settings: Settings, summary: ReplaySummary
) -> list[Recording]:
    odd = Odd()
    replays = {name: record.get("replayed") for name, record in announced(settings, odd).items()}
    if odd.count:
        summary.notes.append(str(odd))
    missing = []
    for part in parts:
        before = replays.get(part.session)
        if before is None or not before.get("complete"):
            if before:
                summary.notes.append(f"{part.session}: an earlier replay did not end; sent again from its start")
            missing.append(part)
        elif before.get("digest") == digests[part.session]:
            summary.skipped.append(part.session)
        else:
            there = (
                f"session {part.session} is in {settings.prefix}.* already, with other samples or another part of them"
            )
            use = "use --run N for topics of its own, or another name (--session)"
            raise SourceError(f"{there}; {use}", part.path or None)
    return missing


class Spool:
    """Keeps recordings that are more than memory should hold: their samples in a file without a name, which is gone with the process.

    It is mapped: what of it is in memory the system decides, and can take back.
    """

    def __init__(self, folder: Path, most_bytes: int = 64 * MIB) -> None:
        self._folder, self._most = folder, most_bytes
        self._file: IO[bytes] | None = None

    def keep(self, recordings: Iterable[Recording]) -> list[Recording]:
        """All recordings, in their order; no more of them than fits is in memory at once."""
        spooled: list[Recording] = []
        waiting, size = 0, 0
        for recording in recordings:
            spooled.append(recording)
            size += sum(_size(stream) for stream in recording.streams)
            if size > self._most:
                spooled[waiting:] = self._write(spooled[waiting:])
                waiting, size = len(spooled), 0
        return spooled

    def _write(self, recordings: list[Recording]) -> list[Recording]:
        try:
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (it lives as long as its maps)
            begin = self._pad(mmap.ALLOCATIONGRANULARITY)
            arrays = [
                [(s.data, np.empty(0) if s.times_ns is None else s.times_ns) for s in r.streams] for r in recordings
            ]
            places = [[(self._put(data, begin), self._put(times, begin)) for data, times in row] for row in arrays]
            self._file.flush()
            size = self._file.tell() - begin
        except OSError as error:
            wrong = f"the recordings do not fit into memory, and cannot be put there ({error.strerror or error})"
            do = "make room, set KYMO_HOME to another disk, or name fewer recordings"
            raise SourceError(f"{wrong}; {do}", self._folder) from None
        block = memoryview(mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_READ, offset=begin)) if size else b""
        return [
            replace(r, streams=[_mapped(s, *ends, block) for s, ends in zip(r.streams, row, strict=True)])
            for r, row in zip(recordings, places, strict=True)
        ]

    def _put(self, array: Any, origin: int) -> list[int]:
        """Write samples, or times; where their parts begin and end, behind `origin` in the file."""
        assert self._file is not None
        parts = list(map(bytes, array)) if array.dtype == object else [np.ascontiguousarray(array).data]
        begin = self._pad(_ALIGNED) - origin
        self._file.writelines(parts)
        return list(accumulate((memoryview(part).nbytes for part in parts), initial=begin))

    def _pad(self, step: int) -> int:
        assert self._file is not None
        at = self._file.tell()
        self._file.write(bytes(-at % step))
        return at + -at % step


def _size(stream: StreamData) -> int:
    return bytes_of(stream.data) + (0 if stream.times_ns is None else stream.times_ns.nbytes)


def _mapped(stream: StreamData, samples: list[int], stamps: list[int], block: Any) -> StreamData:
    """The stream with its samples (and times) from `block`, where their parts begin and end there."""
    data: Array
    if stream.header.format.dtype == "jpeg":
        data = np.empty(stream.count, object)
        for i, (begin, end) in enumerate(pairwise(samples)):
            data[i] = block[begin:end]
    else:
        data = np.frombuffer(block, stream.data.dtype, stream.data.size, samples[0]).reshape(stream.data.shape)
    times = stream.times_ns
    times = None if times is None else np.frombuffer(block, times.dtype, len(times), stamps[0])
    rows = accumulate((len(piece) for _, piece in stream.pieces), initial=0)
    pieces = [(first, data[row : row + len(piece)]) for (first, piece), row in zip(stream.pieces, rows, strict=False)]
    return StreamData(stream.header, data, times, stream.first_index, pieces)


class _Replay:
    def __init__(
        self,
        parts: list[Recording],
        plan: ReplayPlan,
        digests: dict[str, str],
        publisher: Publisher,
        io: ReplayIO,
        summary: ReplaySummary,
    ) -> None:
        self.plan, self.digests, self.publisher, self.io, self.summary = plan, digests, publisher, io, summary
        self.offsets, recorded = starts(parts)
        summary.alignment = "recorded" if recorded else "together"
        wall = io.clock.wall_ns() if plan.now else 0
        shifts = [wall + o - p.start_ns if plan.now else 0 for o, p in zip(self.offsets, parts, strict=True)]
        self.parts = [shifted(part, shift) for part, shift in zip(parts, shifts, strict=True)]
        turns = max(0, plan.loop - 1)
        ends = [o + p.end_ns - p.start_ns + turns * turn_ns(p) for o, p in zip(self.offsets, self.parts, strict=True)]
        self.total_s = float(max(ends) / NS) if plan.loop else 0.0
        self.codec = ChunkCodec()
        self.samples = [0] * len(parts)
        self.open_streams = [len(part.streams) for part in parts]
        self.started = [False] * len(parts)
        self.ended: deque[int] = deque()  # filled by the producer's thread, emptied by this one
        self.done = 0
        self.event_ns = 0

    def run(self) -> None:
        """Send, flush, sum up; never raises for a failed delivery or Ctrl-C."""
        self.player = Player(self.io.clock, self.plan.speed, self.io.controls, self._tick)
        try:
            try:
                if not self.player.play(schedule(self.parts, self.offsets, self.plan), self._send):
                    self.summary.outcome = "quit"
            except KeyboardInterrupt:
                self.summary.outcome = "interrupted"
            self.publisher.flush(self.io.flush_s)
            self._finish_sessions()
            self.publisher.flush(self.io.flush_s)
        except KeyboardInterrupt:
            self.summary.outcome, self.summary.error = "interrupted", "stopped before everything was acknowledged"
        except KymoError as error:
            self.summary.outcome, self.summary.error = "failed", str(error)
        self._sum_up()

    def _send(self, due: Due) -> None:
        i, chunk = due.session, due.chunk
        if not self.started[i]:
            self.started[i] = True
            self._publish_session(i, complete=False)
        value = self.codec.encode(chunk)
        on_end = (lambda acknowledged, i=i: self._stream_ended(i, acknowledged)) if chunk.end else None
        self.publisher.send(topic_of(chunk.stream), chunk.session, value, on_end)
        self.samples[i] += chunk.count
        self.summary.chunks += 1
        self.summary.samples += chunk.count
        self.summary.streams[chunk.stream] = self.summary.streams.get(chunk.stream, 0) + chunk.count
        self.summary.bytes += len(value)
        self.event_ns = due.due_ns
        if self.ended:
            self._finish_sessions()

    def _stream_ended(self, i: int, acknowledged: bool) -> None:
        """A stream's end mark, and with it all before it, is acknowledged (in the producer's thread)."""
        if acknowledged:
            self.open_streams[i] -= 1
            if self.open_streams[i] == 0:
                self.ended.append(i)

    def _finish_sessions(self) -> None:
        while self.ended:
            self._publish_session(self.ended.popleft(), complete=True)
            self.done += 1

    def _publish_session(self, i: int, *, complete: bool) -> None:
        part = self.parts[i]
        replayed = {"digest": self.digests[part.session], "complete": complete, "samples": self.samples[i]}
        record = session_record(part) | {"replayed": replayed | {"loops": self.plan.loop}}
        self.publisher.send("sessions", part.session, json.dumps(record, ensure_ascii=False).encode())

    def _tick(self) -> None:
        if self.publisher.failure:
            raise DeliveryError(self.publisher.failure)
        if self.io.progress is None:
            return
        event_s, elapsed_s = self.event_ns / NS, self.player.elapsed_ns / NS
        self.io.progress(
            ReplayProgress(
                event_s,
                self.total_s,
                event_s / elapsed_s if elapsed_s else 0.0,
                self.player.lag.mean_ns / 1e6,
                self.done,
                len(self.parts),
                self.publisher.sent - self.publisher.acknowledged,
                self.player.paused,
            )
        )

    def _sum_up(self) -> None:
        s, lag = self.summary, self.player.lag
        s.sessions = sum(self.started)
        missing = self.publisher.sent - self.publisher.acknowledged
        s.acknowledged = max(0, s.chunks - missing)
        s.event_s, s.elapsed_s = self.event_ns / NS, self.player.elapsed_ns / NS
        s.reached_speed = s.event_s / s.elapsed_s if s.elapsed_s else 0.0
        s.mean_lag_ms, s.max_lag_ms = lag.mean_ns / 1e6, lag.max_ns / 1e6
        if not self.publisher.failure:
            self._tick()  # a last picture, with everything in it
