"""How long a worker may act on its partitions. In: when the group's coordinator was asked, and what it answered. Out: the seconds that
are left, and the time that its records carry.

A coordinator gives partitions away when it has not heard of a member for the session timeout, or when a member has not come back within
the rebalance timeout. A worker stops well before either: nobody tells it that it is late. Time is the larger of what the steady clock
and the wall clock say has passed, since a steady clock stands still while the machine sleeps, and a wall clock may be set back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

#: What the coordinator's end of a rebalance comes before the worker's own, s.
_MARGIN_S = 2.0


@dataclass(frozen=True, slots=True)
class Instant:
    """A moment on both clocks, s."""

    steady_s: float
    wall_s: float

    @classmethod
    def now(cls) -> Instant:
        """The present."""
        return cls(time.monotonic(), time.time())

    def since(self, earlier: Instant) -> float:
        """Seconds that have passed."""
        return max(self.steady_s - earlier.steady_s, self.wall_s - earlier.wall_s)


class Lease:
    """A member's right to its partitions. It is told in one thread and asked in another."""

    def __init__(self, session_s: float, rebalance_s: float, now: Callable[[], Instant] = Instant.now) -> None:
        self._heard_s, self._settled_s, self._now = session_s / 2, rebalance_s - _MARGIN_S, now
        # Heard of, and heard of while nothing was given out anew.
        self._last: tuple[Instant, Instant] | None = None
        self._heard_at = now()

    def heard(self, sent_at: Instant, rebalancing: bool = False) -> None:
        """The coordinator, which was asked then, knows this member; `rebalancing` if it gives out partitions anew."""
        self._heard_at = sent_at
        if not rebalancing:
            self._last = sent_at, sent_at
        elif self._last is not None:
            self._last = sent_at, self._last[1]

    def lost(self) -> None:
        """The coordinator does not know this member (any more)."""
        self._last = None

    @property
    def left_s(self) -> float:
        """Seconds in which nobody else can own the partitions; 0 or less for none."""
        if (last := self._last) is None:
            return 0.0
        now = self._now()
        return min(self._heard_s - now.since(last[0]), self._settled_s - now.since(last[1]))

    @property
    def silent_s(self) -> float:
        """Seconds since the coordinator was heard of, or since the beginning; by the steady clock."""
        return self._now().steady_s - self._heard_at.steady_s

    @property
    def stamp_ms(self) -> int:
        """The present as records carry it, Unix ms: no later than the steady clock says, however long the machine slept.

        The broker refuses a record that comes too long after its stamp, see :data:`kymo.streams.topics.FENCE_MS`.
        """
        now = self._now()
        if (last := self._last) is None:
            return int(now.wall_s * 1000)
        return int((last[0].wall_s + now.steady_s - last[0].steady_s) * 1000)
