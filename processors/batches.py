"""Faust without its stream path. In: settings and topic names. Out: a Faust app that hands over records in batches as they were fetched.

Faust keeps what it is good at: the consumer's thread, group membership, assignment, commits, start and stop. Its stream path costs 0.08
to 0.15 ms a message, so it is left out: what a fetch brings goes to the app's `handler` as it is (`processors.transport`). So is its
work around a rebalance, which is for tables and streams, and which ends early in a worker that stops.
"""

# Faust declares its app, consumer and producer by abstract types that lack what the concrete ones have and we add.
# mypy: disable-error-code="attr-defined,no-any-return,misc"
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, Protocol

import aiokafka
import faust
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    IllegalStateError,
    InvalidSessionTimeoutError,
    KafkaError,
    TopicAuthorizationFailedError,
    UnsupportedCodecError,
)
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from processors.fetch import Fetch
from processors.lease import Lease
from processors.transport import REQUEST_TIMEOUT_S, BatchTransport, credentials, rebalance_timeout_s
from streams.errors import BrokerError, DeliveryError
from streams.settings import Settings


class Handler(Protocol):
    """What takes the records; all methods are called in the app's event loop."""

    def start(self) -> None:
        """The loop runs; records may come."""

    async def on_records(self, records: Mapping[TopicPartition, list[Any]]) -> None:
        """Records of each partition, in order."""

    def on_assigned(self) -> None:
        """Partitions came; their records follow once :meth:`BatchApp.begin` is called. Returns at once: no heartbeat is sent meanwhile."""

    async def on_revoked(self) -> None:
        """Every partition goes; those that come are read from their committed offsets."""

    async def on_stop(self) -> None:
        """Let go of everything, as if all partitions were revoked, and close."""


class BatchApp(faust.App):
    """A Faust app that hands fetched records to a handler."""

    handler: Handler  # what takes the records
    fetch: Fetch | None = None  # where the records come from, once it has started

    def __init__(
        self,
        group: str,
        topics: Iterable[str],  # input topics; they must exist, with equal numbers of partitions
        settings: Settings,  # brokers, security, session timeout
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
        self._failed, self._settings = failed, settings
        self._assigned: Set[TopicPartition] = frozenset()
        # how long it may act on its partitions
        self.lease = Lease(settings.session_timeout_s, rebalance_timeout_s(settings.session_timeout_s))
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
        try:
            self.fetch = Fetch(self._settings.librdkafka() | {"group.id": self.conf.id}, self.loop, self.failed)
        except BrokerError as error:
            self.failed(error)
        self.handler.start()

    async def _wait_for_table_recovery_completed(self) -> bool:
        return bool(self.should_stop)  # there are no tables

    async def _on_partitions_revoked(self, revoked: Set[Any]) -> None:
        self._assigned = frozenset()
        try:
            await self.handler.on_revoked()
        except Exception as error:
            self.failed(error)

    async def _on_partitions_assigned(self, assigned: Set[Any], generation_id: int = 0) -> None:
        if not self.should_stop:
            self._assigned = frozenset(TopicPartition(*tp) for tp in assigned)
            self.handler.on_assigned()

    def hold(self) -> None:
        """Let no record come, nor any that was fetched before."""
        if self.fetch is not None:
            self.fetch.begin({})

    async def begin(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Let the records of `offsets` come, from there on; of no other partition."""
        if self.fetch is not None:
            self.fetch.begin({tp: offset for tp, offset in offsets.items() if tp in self._assigned})
        await self._fetcher.maybe_start()
        self.rebalancing = False

    def is_ready(self) -> bool:
        """Whether the assigned partitions are being worked on; to be asked in any thread."""
        return bool(
            self.started and not self.should_stop and self._assigned and not self.rebalancing and not self.is_stale()
        )

    def is_stale(self) -> bool:
        """Whether the broker may by now have given this worker's partitions to another."""
        return self.lease.left_s <= 0

    def fail_stale(self) -> None:
        """Give up: what this worker would send may be another's by now."""
        self.failed(
            DeliveryError(
                "the broker has not heard of this worker for half its session timeout; others may own its partitions"
            )
        )

    def failed(self, error: BaseException) -> None:
        """Tell of an error after which going on is unsafe, in words where it is the client's."""
        self._failed(client_error(error, self._settings, self.conf.id))

    async def commit_with(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        """Commit offsets with metadata."""
        try:
            await self.consumer._thread.commit_with(offsets)
        except (KafkaError, IllegalStateError) as error:
            raise DeliveryError(f"a commit was refused ({error!r})") from error

    async def committed_with(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        """Committed offsets with their metadata."""
        found: dict[TopicPartition, OffsetAndMetadata] = await self.consumer._thread.committed_with(partitions)
        return found

    def assigned(self) -> list[TopicPartition]:
        """The partitions that are this worker's; to be asked in any thread."""
        return list(self._assigned)

    def aiokafka_producer(self) -> aiokafka.AIOKafkaProducer:
        """The producer under Faust's, for whole batches."""
        return self.producer._ensure_producer()


async def _subscription(stream: Any) -> None:
    async for _ in stream.noack():
        raise RuntimeError("a record took Faust's stream path")


def client_error(error: BaseException, settings: Settings, group: str) -> BaseException:
    """An error of Kafka's client in our words: one that a new beginning may mend, or one that only a person can."""
    if not isinstance(error, KafkaError):
        return error
    where = f"Kafka at {settings.brokers}"
    if isinstance(error, InvalidSessionTimeoutError):
        return BrokerError(
            f"{where} refuses a session timeout of {settings.session_timeout_s:g} s; set KYMO_SESSION_TIMEOUT_S to what lies between "
            "its group.min.session.timeout.ms and group.max.session.timeout.ms"
        )
    if isinstance(error, GroupAuthorizationFailedError | TopicAuthorizationFailedError):
        return BrokerError(
            f"{where} does not let this user read ({error!r}); allow READ on group {group} and its topics"
        )
    if isinstance(error, UnsupportedCodecError):
        return BrokerError(
            f"{where}: records are compressed in a way that cannot be read here ({error}); install kymo[kafka] anew"
        )
    return DeliveryError(f"{where}: the client gave up ({' '.join(repr(error).split())})")
