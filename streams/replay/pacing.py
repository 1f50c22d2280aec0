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


class Pacer:
    """Deadlines of a replay; the replay starts when this is made.

    Examples
    --------
    >>> class Still:
    ...     def monotonic_ns(self): return 1000
    >>> Pacer(Still(), 20).deadline_ns(4000)
    1200
    """

    def __init__(self, clock: SystemClock, speed: float | None) -> None:
        if speed is not None and not speed > 0:
            raise ValueError(f"speed {speed}: expected above 0, or None")
        self.speed = speed
        self._clock = clock
        self._t0_ns = self._started_ns = clock.monotonic_ns()
        self._paused_at_ns: int | None = None
        self._paused_ns = 0
        self._skipped_to_ns = 0

    @property
    def paused(self) -> bool:
        return self._paused_at_ns is not None

    def _now_ns(self) -> int:
        return self._clock.monotonic_ns() if self._paused_at_ns is None else self._paused_at_ns

    def deadline_ns(self, due_ns: int) -> int:
        """Monotonic time at which `due_ns` of event time has passed."""
        return self._t0_ns if self.speed is None else self._t0_ns + round(due_ns / self.speed)

    def lag_ns(self, due_ns: int) -> int:
        """How far past its deadline something is; negative while it is still to come. 0 without a pace."""
        return 0 if self.speed is None else self._now_ns() - self.deadline_ns(due_ns)

    def lateness_ns(self, due_ns: int) -> int:
        """The lag that the user did not ask for: 0 for what a pause held or a skip made due, never negative."""
        return 0 if self.paused or due_ns <= self._skipped_to_ns else max(0, self.lag_ns(due_ns))

    def toggle_pause(self) -> None:
        """Let time stand still, or go on from where it stood."""
        now = self._clock.monotonic_ns()
        if self._paused_at_ns is None:
            self._paused_at_ns = now
            return
        self._t0_ns += now - self._paused_at_ns
        self._paused_ns += now - self._paused_at_ns
        self._paused_at_ns = None

    def skip(self, event_ns: int) -> None:
        """Make everything due that much event time earlier."""
        if self.speed is not None:
            self._t0_ns -= round(event_ns / self.speed)
            self._skipped_to_ns = round(self.lag_ns(0) * self.speed)

    def advance_to(self, due_ns: int) -> None:
        """Go to `due_ns` unless that lies behind."""
        if self.speed is not None:
            self._t0_ns += min(0, self.lag_ns(due_ns))

    @property
    def elapsed_ns(self) -> int:
        """Time since the start without pauses, ns."""
        return self._now_ns() - self._started_ns - self._paused_ns


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

    clock: SystemClock = field(default_factory=SystemClock)
    controls: Controls | None = None  # keys; see :class:`Player`
    progress: Callable[[ReplayProgress], None] | None = None  # shows a ReplayProgress, about twenty times a second
    flush_s: float = 120.0  # how long the last acknowledgements may take


class Player:
    """Sends each chunk when it is due."""

    def __init__(
        self,
        pacer: Pacer,  # the pace; the pacer keeps the same clock
        clock: SystemClock,
        controls: Controls | None = None,  # waits, and says what keys ask for; by default the clock's `wait`
        tick: Callable[[], None] | None = None,  # called about every :data:`POLL_S`
    ) -> None:
        self.lag = LagMeter()  # how long after their deadlines the chunks were sent; its `count` is their number
        self._pacer, self._clock, self._controls, self._tick = pacer, clock, controls, tick
        self._looked_ns = clock.monotonic_ns()

    def play(self, due: Iterable[Due], send: Callable[[Due], None]) -> bool:
        """Call `send` for each chunk when it is due.

        A seek makes the next ten seconds due at once: they are sent, not left out, so that the topics hold the whole
        recording whichever keys were pressed.
        """
        for item in due:
            if not self._await(item.due_ns):
                return False
            self.lag.add(self._pacer.lateness_ns(item.due_ns))
            send(item)
        return True

    def _await(self, due_ns: int) -> bool:
        """Return when it is due; False if the user wants to stop."""
        while True:
            seconds = -self._pacer.lag_ns(due_ns) / NS
            now = self._clock.monotonic_ns()
            if self._pacer.paused:
                seconds = POLL_S
            elif seconds <= 0 and now - self._looked_ns < POLL_S * NS:
                return True
            command = self._wait(min(max(seconds, 0.0), POLL_S))
            if now - self._looked_ns >= POLL_S * NS:
                self._looked_ns = now
                if self._tick:
                    self._tick()
            if command == QUIT:
                return False
            if command == PAUSE:
                self._pacer.toggle_pause()
            elif command == SEEK:
                self._pacer.skip(SEEK_S * NS)
            elif command == STEP and self._pacer.paused:
                self._pacer.advance_to(due_ns)
                return True

    def _wait(self, seconds: float) -> str | None:
        if self._controls is not None:
            return self._controls(seconds)
        if seconds:
            self._clock.wait(seconds)
        return None
