"""Events as they come. In: the events topic of a campaign. Out: how many of each recipe, how far behind, what came twice and when."""

from __future__ import annotations

import json
import threading
from collections import Counter

from campaign_feed import CampaignFeed
from campaign_lab import PARTS, CampaignLab
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from kymo.streams.kafka.client import client_arguments

_HOP = 8


class Watch(threading.Thread):
    """Reads until the lab is over; a broker that is away is waited for.

    Attributes
    ----------
    count : Counter
        Events, by recipe.
    """

    def __init__(self, lab: CampaignLab) -> None:
        super().__init__(name="watch", daemon=True)
        self._lab, self._next = lab, dict[int, int]()
        self._reached: dict[tuple[str, str], int] = {}
        self._seen: set[str] = set()
        self.count: Counter[str] = Counter()

    def run(self) -> None:
        """Read."""
        while not self._lab.over.is_set():
            try:
                self._read()
            except (KafkaError, OSError):
                self._lab.over.wait(1)

    def _read(self) -> None:
        topic, settings = self._lab.names.of("events"), self._lab.settings
        places = [TopicPartition(topic, number) for number in range(settings.partitions)]
        consumer = KafkaConsumer(**client_arguments(settings), group_id=None, metrics_enabled=False)
        try:
            consumer.assign(places)
            for place in places:
                consumer.seek(place, self._next.get(place.partition, 0))
            while not self._lab.over.is_set():
                for place, records in consumer.poll(500).items():
                    for record in records:
                        self._next[place.partition] = record.offset + 1
                        self._take(record.value, place.partition)
        finally:
            consumer.close()

    def _take(self, value: bytes, partition: int) -> None:
        try:
            event = json.loads(value)
            recipe, key = event["recipe"], (event["recipe"], event["session"])
            if recipe not in PARTS:
                return
            if event["id"] in self._seen:
                self._lab.log("doubled", f"{event['id']} in partition {partition} by {event['bundle'][-6:]}")
            self._seen.add(event["id"])
            self._reached[key] = max(self._reached.get(key, 0), event["start_index"])
            self.count[recipe] += 1
        except (ValueError, TypeError, KeyError, RecursionError):
            return

    def behind(self, feed: CampaignFeed) -> int:
        """Windows that the slower recipe has yet to classify, about; of sessions that go on."""
        live = [(source.name, source.at) for source in feed.live]
        return max(
            sum(max(0, at - self._reached.get((recipe, name), 0)) for name, at in live) // _HOP for recipe in PARTS
        )
