"""Faust without its stream path. In: settings and topic names. Out: a Faust app that hands over records in batches as they were fetched.

Faust keeps what it is good at: the consumer's thread with its heartbeats, group membership, assignment, commits, start and stop. Its
stream path costs 0.08 to 0.15 ms a message, so it is left out: what a fetch brings goes to the app's `handler` as it is
(`processors.transport`).
"""

# Faust declares its app, consumer and producer by abstract types that lack what the concrete ones have and we add.
# mypy: disable-error-code="attr-defined,no-any-return,misc"
from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import aiokafka
import faust
from aiokafka.errors import IllegalStateError
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from processors.transport import REQUEST_TIMEOUT_S, BatchTransport, credentials
from streams.errors import DeliveryError, KymoError
from streams.settings import Settings


class Handler(Protocol):
    """What takes the records; all methods are called in the app's event loop."""

    def start(self) -> None:
        """The loop runs; records may come."""

    async def on_records(self, records: Mapping[TopicPartition, list[Any]]) -> None:
        """Records of each partition, in order."""

    async def on_assigned(self) -> None:
        """Partitions came; their records follow."""

    async def on_revoked(self) -> None:
        """Every partition goes; those that come are read from their committed offsets."""

    async def on_stop(self) -> None:
        """Finish what was taken, commit it."""


class BatchApp(faust.App):
    """A Faust app that hands fetched records to a handler.

    Parameters
    ----------
    group : str
        Consumer group, ``prefix.recipe.role``.
    topics : sequence of str
        Input topics; they must exist, with equal numbers of partitions.
    settings : Settings
        Brokers, security, session timeout.
    instance : str
        Static member name; a worker that comes back under it within the session timeout gets its partitions at once.
    failed : callable
        Called, and expected not to return, with an error after which only a new beginning is safe: when a send is tried after half a
        session timeout without a heartbeat, or partitions were lost with work unfinished.
    """

    handler: Handler

    def __init__(
        self,
        group: str,
        topics: Iterable[str],
        settings: Settings,
        instance: str,
        failed: Callable[[BaseException], None],
    ) -> None:
        super().__init__(
            group,
            broker=[f"kafka://{address}" for address in settings.brokers.split(",")],
            broker_credentials=credentials(settings),
            broker_session_timeout=settings.session_timeout_s,
            broker_request_timeout=REQUEST_TIMEOUT_S,
            broker_heartbeat_interval=settings.session_timeout_s / 8,
            consumer_group_instance_id=instance,
            producer_request_timeout=REQUEST_TIMEOUT_S,
            topic_allow_declare=False,
            topic_disable_leader=True,
            web_enabled=False,
            store="memory://",
            autodiscover=False,
        )
        self._failed, self._session_timeout_s = failed, settings.session_timeout_s
        # An agent makes Faust subscribe; its stream stays empty, since records go to the handler.
        self.agent(self.topic(*topics, value_type=bytes, value_serializer="raw"), name=f"{group}.subscription")(
            _subscription
        )

    def _create_directories(self) -> None:
        """Make none: there are no tables, and a folder would stand wherever the worker was started."""

    def _new_transport(self) -> BatchTransport:
        return BatchTransport(self.conf.broker_consumer, self)

    def _new_producer_transport(self) -> BatchTransport:
        return BatchTransport(self.conf.broker_producer, self)

    async def on_first_start(self) -> None:
        """Begin to classify and commit once the loop runs."""
        await super().on_first_start()
        self.on_partitions_revoked.connect(self._revoked)
        self.on_partitions_assigned.connect(self._assigned)
        self.handler.start()

    async def _revoked(self, *_: Any, **__: Any) -> None:
        try:
            await self.handler.on_revoked()
        except KymoError as error:
            self._failed(error)

    async def _assigned(self, *_: Any, **__: Any) -> None:
        await self.handler.on_assigned()

    def is_ready(self) -> bool:
        """Whether partitions are assigned and the broker has been heard of lately."""
        return bool(
            self.started and not self.should_stop and not self.rebalancing and self.assigned() and not self.is_stale()
        )

    def is_stale(self) -> bool:
        """Whether the broker may by now have given this worker's partitions to another."""
        return time.monotonic() - self.consumer._thread.last_heartbeat_s > self._session_timeout_s / 2

    def fail_stale(self) -> None:
        """Give up: what this worker would send may be another's by now."""
        self._failed(
            DeliveryError(
                "the broker has not heard of this worker for half its session timeout; others may own its partitions"
            )
        )

    async def commit_with(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        """Commit offsets with metadata."""
        await self.consumer._thread.commit_with(offsets)

    async def committed_with(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        """Committed offsets with their metadata."""
        found: dict[TopicPartition, OffsetAndMetadata] = await self.consumer._thread.committed_with(partitions)
        return found

    async def rewind(self, tp: TopicPartition, offset: int) -> None:
        """Read a partition again from there."""
        with contextlib.suppress(IllegalStateError):
            await self.consumer.seek(tp, offset)

    def assigned(self) -> list[TopicPartition]:
        """The partitions that are this worker's."""
        return list(self.consumer.assignment())

    def aiokafka_producer(self) -> aiokafka.AIOKafkaProducer:
        """The producer under Faust's, for whole batches."""
        return self.producer._ensure_producer()


async def _subscription(stream: Any) -> None:
    async for _ in stream.noack():
        raise RuntimeError("a record took Faust's stream path")
