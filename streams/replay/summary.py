"""What a replay reports. In: counts. Out: a ReplaySummary; on the way ReplayProgress; times in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from streams.readers.words import grouped, many
from streams.replay.pacing import Clock, SystemClock
from streams.replay.player import Controls

_FEW = 3  # sessions that are named one by one


@dataclass(slots=True)
class ReplaySummary:
    """What a replay did."""

    sessions: int = 0  # what was sent
    chunks: int = 0
    samples: int = 0
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
        """JSON object of the attributes, and `ok`."""
        return {**asdict(self), "ok": self.ok}

    def lines(self) -> list[str]:
        """The summary for a person."""
        asked = "max" if self.requested_speed is None else f"{self.requested_speed:g}"
        start = "as recorded relative to one another" if self.alignment == "recorded" else "together"
        sent = (self.sessions, "session"), (self.samples, "sample"), (self.chunks, "chunk")
        out = [
            ", ".join(many(*pair) for pair in sent) + f", {self.acknowledged} acknowledged",
            f"{self.bytes / 1e6:.2f} MB to {self.topics}.*",
            f"speed {asked} asked, {self.reached_speed:.4g} reached: {self.event_s:.1f} s in {self.elapsed_s:.1f} s",
            f"lag {self.mean_lag_ms:.2f} ms mean, {self.max_lag_ms:.2f} ms at most",
        ]
        if self.sessions > 1:
            out.append(f"sessions started {start}")
        if self.skipped:
            out.append(
                f"{many(len(self.skipped), 'session')} there already, nothing added (--run N replays them apart): "
                f"{', '.join(self.skipped[:5])}{' …' if len(self.skipped) > 5 else ''}"
            )
        told = [note.partition(": ")[::2] if ": " in note else ("", note) for note in self.notes]
        out += [f"note: {note}" for note in grouped(told, _FEW)]
        return out if self.outcome == "done" else [*out, f"ended early: {self.outcome}"]


@dataclass(frozen=True, slots=True)
class ReplayProgress:
    """Where a running replay stands."""

    event_s: float  # event time sent so far, and in all; 0 in all for an endless one
    total_s: float
    speed: float  # reached so far, seconds of event time a second
    lag_ms: float  # mean so far
    sessions_done: int  # acknowledged to their end, and in all
    sessions: int
    unacknowledged: int  # messages under way
    paused: bool  # whether it stands still


@dataclass(frozen=True, slots=True)
class ReplayIO:
    """What a replay is connected to besides Kafka."""

    clock: Clock = field(default_factory=SystemClock)
    controls: Controls | None = None  # keys; see :class:`~streams.replay.player.Player`
    progress: Callable[[ReplayProgress], None] | None = None  # shows a ReplayProgress, about twenty times a second
    flush_s: float = 120.0  # how long the last acknowledgements may take
