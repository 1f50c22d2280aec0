"""Topics that an archive reads. In: Settings, names of the table. Out: partitions that are there, and their offsets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kafka import TopicPartition
from kafka.admin import KafkaAdminClient, OffsetSpec

from streams.archive.format import Place
from streams.kafka.client import client_arguments
from streams.settings import Settings
from streams.topics import Names


class Ends(NamedTuple):
    """Offsets that a partition has: ``[begin, end)``."""

    begin: int
    end: int


class TopicFinder:
    """Looks for a prefix's topics."""

    def __init__(self, settings: Settings, topics: Sequence[str]) -> None:
        names = Names(settings.prefix)
        self._wanted = {names.of(name) for name in topics}
        self._admin = KafkaAdminClient(**client_arguments(settings))

    @property
    def cluster(self) -> str:
        """Kafka's id of the cluster."""
        try:
            found = self._admin.describe_cluster().get("cluster_id")
        except KeyError:  # the client expects a member that Kafka has since 3.7; the metadata have the id, too
            found = self._admin._manager.cluster.cluster_id
        return str(found or "")

    def partitions(self) -> dict[Place, str]:
        """The topic's id, of every partition that is there and has a leader."""
        there = sorted(self._wanted.intersection(self._admin.list_topics()))
        rows = self._admin.describe_topics(there) if there else []
        return {
            (row["name"], part["partition_index"]): str(row.get("topic_id") or "")
            for row in rows
            for part in row["partitions"]
            if part.get("leader_id", 0) >= 0
        }

    def ends(self, places: Sequence[Place]) -> dict[Place, Ends]:
        """First offset and end of each partition."""
        parts = [TopicPartition(*place) for place in places]
        if not parts:
            return {}
        first = self._admin.list_partition_offsets(dict.fromkeys(parts, OffsetSpec.EARLIEST))
        end = self._admin.list_partition_offsets(dict.fromkeys(parts, OffsetSpec.LATEST))
        return {(p.topic, p.partition): Ends(first[p].offset, end[p].offset) for p in parts}

    def close(self) -> None:
        """Give the connection back."""
        self._admin.close()
