"""Whether a worker lives. In: its apps. Out: a beat of its loop; a line when it is ready, when its broker is away and when it is back; a
new beginning where Kafka's client hangs though a broker answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from mode import Service

from deploy.worker_log import SPARSE, say
from streams.errors import DeliveryError
from streams.readers.words import many
from streams.settings import Settings

_STILL_S = 30.0  # a loop that is still for so long hangs
_SILENT_S = 60.0  # so is a member that its group has not heard of, while the broker can be reached
_EVERY_S = 0.05
_LONG_S = 30.0  # a group may take so long to give out its partitions


class Pulse(Service):
    """Beats twenty times a second."""

    def __init__(self, apps: Sequence[Any], settings: Settings, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._apps, self._brokers = apps, settings.brokers.split(",")
        self._beat_s, self.longest_s, self.serves = time.monotonic(), 0.0, -1
        self._session_s, self._ready, self._away = settings.session_timeout_s, False, False

    def is_live(self) -> bool:
        """Whether the loop beats; to be asked in any thread."""
        return time.monotonic() - self._beat_s < _STILL_S

    @Service.task
    async def _beat(self) -> None:
        while not self.should_stop:
            asked_s = time.monotonic()
            await asyncio.sleep(_EVERY_S)
            self._beat_s = time.monotonic()
            self.longest_s = max(self.longest_s, self._beat_s - asked_s - _EVERY_S)
            self._tell()
            for app in self._apps:
                if app.lease.silent_s > _SILENT_S and await self._answers():
                    reason = SPARSE.reason(_SILENT_S)
                    app.failed(
                        DeliveryError(
                            f"group {app.conf.id} has not heard of this worker for {_SILENT_S:g} s"
                            + (f" ({reason})" if reason else "")
                        )
                    )

    def _tell(self) -> None:
        settled = not any(app.rebalancing for app in self._apps)
        if not self._ready and settled and all(app.is_ready() or _idle(app) for app in self._apps):
            self._ready = True
            partitions = sum(len(app.assigned()) for app in self._apps)
            work = f"{many(partitions, 'partition')} to work on" if partitions else "others have all partitions"
            say(f"ready, {work}" + (f"; metrics on port {self.serves}" if self.serves > 0 else ""))
        silent_s = max((app.lease.silent_s for app in self._apps), default=0.0)
        limit_s = self._session_s / 2 if self._ready and settled else _LONG_S
        if (away := silent_s > limit_s) != self._away:
            self._away = SPARSE.away = away
            reason = SPARSE.reason(silent_s) or "silence"
            say(f"Kafka at {','.join(self._brokers)} does not answer ({reason}); waiting" if away else "Kafka is back")

    async def _answers(self) -> bool:
        """Whether a broker can be reached."""
        for address in self._brokers:
            host, _, port = address.rpartition(":")
            try:
                async with asyncio.timeout(1.0):
                    _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            except (OSError, ValueError, TimeoutError):
                continue
            writer.close()
            return True
        return False


def _idle(app: Any) -> bool:
    """Whether its group knows it and has no partition for it."""
    return app.lease.left_s > 0 and not app.assigned()
