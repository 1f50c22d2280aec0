"""The loop of a replay. In: chunks with the time they are due, a clock, keys. Out: calls at the deadlines; lag, ns."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from streams.replay.pacing import NS, Clock, LagMeter, Pacer
from streams.replay.schedule import Due

SEEK_S = 10
#: A key is noticed, and a picture renewed, within this.
POLL_S = 0.05
#: What a key may ask for.
PAUSE, STEP, SEEK, QUIT = "pause", "step", "seek", "quit"
#: Waits up to that many seconds and returns what was asked for meanwhile.
Controls = Callable[[float], str | None]


class Player:
    """Sends each chunk when it is due."""

    def __init__(
        self,
        pacer: Pacer,  # the pace; the pacer keeps the same clock
        clock: Clock,
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
