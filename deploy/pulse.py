"""Whether a worker lives. In: its apps. Out: a beat of its loop; a new beginning where Kafka's client hangs though a broker answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from mode import Service

from streams.errors import DeliveryError
from streams.settings import Settings

_STILL_S = 30.0  # a loop that is still for so long hangs
_SILENT_S = 60.0  # so is a member that its group has not heard of, while the broker can be reached
_EVERY_S = 0.05


class Pulse(Service):
    """Beats twenty times a second.

    Parameters
    ----------
    apps : sequence of BatchApp
        What it watches over.
    settings : Settings
        Where the broker is.

    Attributes
    ----------
    longest_s : float
        The longest that the loop has kept others waiting for their turn.
    """

    def __init__(self, apps: Sequence[Any], settings: Settings, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._apps, self._brokers = apps, settings.brokers.split(",")
        self._beat_s, self.longest_s = time.monotonic(), 0.0

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
            for app in self._apps:
                if app.lease.silent_s > _SILENT_S and await self._answers():
                    app.failed(DeliveryError(f"group {app.conf.id} has not heard of this worker for {_SILENT_S:g} s"))

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
