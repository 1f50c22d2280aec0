"""The input of the long campaign. In: a pace. Out: sessions that are recorded badly, ended and begun again when it is asked for."""

from __future__ import annotations

import random
import time
from typing import Any

from fault_feed import FLUSH_S, Feed, Source
from fault_lab import Lab, await_that

from kymo.streams.kafka.publish import Publisher


class CampaignFeed(Feed):
    """A feed whose pace can be changed, and whose sessions can all be ended at once."""

    def __init__(self, lab: Lab, seed: int) -> None:
        super().__init__(lab, seed, ending=0.01)
        self.pace, self.held, self.burst = 5.0, False, 0  # chunks a second; nothing; so many more, at once
        self.publisher: Publisher | None = None
        self._renew, self.sent_at_s = False, dict[tuple[str, int], float]()

    def run(self) -> None:
        """Send."""
        try:
            while not self._end.is_set():
                with Publisher(self.lab.settings, self.lab.names) as publisher:
                    self._renew, self.publisher = False, publisher
                    self._publish(publisher)
        except BaseException as error:
            self.failure = error

    def _publish(self, publisher: Publisher) -> None:
        while not self._end.wait(1 / self.pace) and not self._renew:
            for _ in range(0 if self.held else 1 + self.burst):
                self._step(publisher)
            self.burst = 0
        for place, source in enumerate(self.live):
            if source.sent:
                self._send(publisher, [source.end()])
                self.live[place] = Source(self.lab.next_name(source.name), random.Random(self.pick.randrange(2**32)))
                self.sources.append(self.live[place])
        publisher.flush(FLUSH_S)

    def _send(self, publisher: Publisher, chunks: list[Any]) -> None:
        for chunk in chunks:
            self.sent_at_s.setdefault((chunk.session, chunk.first_index), time.time())
        super()._send(publisher, chunks)

    def state(self) -> str:
        """How it is going, in words."""
        counts = (
            f"{self.publisher.acknowledged} of {self.publisher.sent} acknowledged" if self.publisher else "nothing sent"
        )
        return f"the feed: {'held, ' if self.held else ''}{counts}, failure {self.failure}"

    def end_sessions(self) -> None:
        """End every session, begin new ones under a new connection; nothing is sent until `held` is taken back."""
        self.held = self._renew = True
        await_that(lambda: not self._renew or not self.is_alive(), "the end of all sessions")
        assert self.failure is None, self.failure
