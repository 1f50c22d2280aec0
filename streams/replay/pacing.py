"""The pace of a replay. In: chunks with the event time since the replay's start at which they are due, ns; a clock, keys. Out: calls at the
deadlines, in ns of a monotonic clock; the lag, ns.

Every deadline is counted from one moment, ``t0 + event time / speed``, so that a sleep that lasts too long delays one
chunk and not all that follow. A pause moves t0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kymo.streams.words import NS

if TYPE_CHECKING:
    from kymo.streams.replay.schedule import Due

SEEK_S = 10
#: A key is noticed, and a picture renewed, within this.
POLL_S = 0.05
#: What a key may ask for.
PAUSE, STEP, SEEK, QUIT = "pause", "step", "seek", "quit"
#: Waits up to that many seconds and returns what was asked for meanwhile.
Controls = Callable[[float], str | None]


class SystemClock:
    """This machine's clock: where time comes from, ns."""

    monotonic_ns = staticmethod(time.monotonic_ns)
    wall_ns = staticmethod(time.time_ns)
    wait = staticmethod(time.sleep)


@dataclass(slots=True)
class LagMeter:
    """Running mean and maximum of the lag, ns."""

    count: int = 0
    total_ns: int = 0
    max_ns: int = 0

    def add(self, lag_ns: int) -> None:
        self.count += 1
        self.total_ns += lag_ns
        self.max_ns = max(self.max_ns, lag_ns)

    @property
    def mean_ns(self) -> float:
        return self.total_ns / self.count if self.count else 0.0


@dataclass(frozen=True, slots=True)
class ReplayProgress:
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

    clock: SystemClock = field(default_factory=SystemClock)
    controls: Controls | None = None  # waits, and says what keys ask for; by default the clock's `wait`
    progress: Callable[[ReplayProgress], None] | None = None  # shows a ReplayProgress, about twenty times a second
    flush_s: float = 120.0  # how long the last acknowledgements may take


class Player:
    """Sends each chunk when it is due; the replay starts when this is made."""

    def __init__(
        self,
        clock: SystemClock,
        speed: float | None,  # seconds of event time a second; None for no pace
        controls: Controls | None = None,  # as in :class:`ReplayIO`
        tick: Callable[[], None] | None = None,  # called about every :data:`POLL_S`
    ) -> None:
        if speed is not None and not speed > 0:
            raise ValueError(f"speed {speed}: expected above 0, or None")
        self.lag = LagMeter()  # how long after their deadlines the chunks were sent; its `count` is their number
        self._clock, self._speed, self._controls, self._tick = clock, speed, controls, tick
        self._t0_ns = self._started_ns = self._looked_ns = clock.monotonic_ns()
        self._paused_at_ns: int | None = None
        self._paused_ns = self._skipped_to_ns = 0

    @property
    def paused(self) -> bool:
        return self._paused_at_ns is not None

    @property
    def elapsed_ns(self) -> int:
        """Time since the start without pauses."""
        return self._now_ns() - self._started_ns - self._paused_ns

    def play(self, due: Iterable[Due], send: Callable[[Due], None]) -> bool:
        """Call `send` for each chunk when it is due; false if the user stops it.

        A seek makes the next ten seconds due at once: they are sent, not left out, so that the topics hold the whole
        recording whichever keys were pressed.
        """
        for item in due:
            if not self._await(item.due_ns):
                return False
            asked = self.paused or item.due_ns <= self._skipped_to_ns  # by the user, who stepped or skipped
            self.lag.add(0 if asked else max(0, self._late_ns(item.due_ns)))
            send(item)
        return True

    def _await(self, due_ns: int) -> bool:
        """Return when it is due; False if the user wants to stop."""
        while True:
            seconds = POLL_S if self.paused else -self._late_ns(due_ns) / NS
            now = self._clock.monotonic_ns()
            if seconds <= 0 and now - self._looked_ns < POLL_S * NS:
                return True
            command = self._wait(min(max(seconds, 0.0), POLL_S))
            if now - self._looked_ns >= POLL_S * NS:
                self._looked_ns = now
                if self._tick:
                    self._tick()
            if command == QUIT:
                return False
            if command == PAUSE:
                self._toggle_pause()
            elif command == SEEK and self._speed is not None:
                self._t0_ns -= round(SEEK_S * NS / self._speed)
                self._skipped_to_ns = round(self._late_ns(0) * self._speed)
            elif command == STEP and self.paused:
                self._t0_ns += min(0, self._late_ns(due_ns))
                return True

    def _late_ns(self, due_ns: int) -> int:
        """How far past its deadline something is; negative while it is still to come, 0 without a pace."""
        return 0 if self._speed is None else self._now_ns() - self._t0_ns - round(due_ns / self._speed)

    def _now_ns(self) -> int:
        return self._clock.monotonic_ns() if self._paused_at_ns is None else self._paused_at_ns

    def _toggle_pause(self) -> None:
        now = self._clock.monotonic_ns()
        if self._paused_at_ns is None:
            self._paused_at_ns = now
            return
        self._t0_ns += now - self._paused_at_ns
        self._paused_ns += now - self._paused_at_ns
        self._paused_at_ns = None

    def _wait(self, seconds: float) -> str | None:
        if self._controls is not None:
            return self._controls(seconds)
        if seconds:
            self._clock.wait(seconds)
        return None
