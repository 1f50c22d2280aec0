"""Faust without its stream path. In: settings and topic names. Out: a Faust app that hands over records in batches as they were fetched.

Faust keeps what it is good at: the consumer's thread, group membership, assignment, commits, start and stop. Its stream path costs 0.08
to 0.15 ms a message, so it is left out: what a fetch brings goes to the app's `handler` as it is. So is its work around a rebalance,
which is for tables and streams, and which ends early in a worker that stops.

Its transport differs in three things: partitions of equal number stay together (range assignment), a commit carries metadata, and a
worker sends nothing once its lease on its partitions is over (`processors.lease`). Whatever the client meets that it cannot mend is told
to the app: aiokafka would log it and go on for ever without doing anything.
"""

# Faust declares its app, consumer and producer by abstract types that lack what the concrete ones have and we add.
# mypy: disable-error-code="attr-defined,no-any-return,misc"
from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Set
from typing import Any, Protocol

import aiokafka
import faust
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    IllegalStateError,
    InvalidSessionTimeoutError,
    KafkaError,
    TopicAuthorizationFailedError,
    UnsupportedCodecError,
)
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers import aiokafka as driver

from kymo.processors.fetch import Fetch
from kymo.processors.lease import Instant, Lease
from kymo.streams.errors import BrokerError, DeliveryError
from kymo.streams.settings import Settings
from kymo.streams.topics import MIB

REQUEST_TIMEOUT_S = 30.0
_REBALANCING = 27
_UNKNOWN = frozenset((22, 25, 82))  # a generation, a member, an instance that the coordinator does not know


def rebalance_timeout_s(session_timeout_s: float) -> float:
    """How long a group waits for its members to come back."""
    return max(session_timeout_s, 15.0)


def listen(lease: Lease, send: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
    """What sends a group's requests, telling a lease of the answers.

    It stands where they are sent, since aiokafka takes a refused heartbeat, and one in a rebalance, for a heartbeat. That an answer
    came counts from when it was asked for: it may have waited in this process while others took over.
    """

    async def send_and_tell(request: Any) -> Any:
        sent_at, kind = Instant.now(), type(request).__name__
        answer = await send(request)
        if kind.startswith(("Heartbeat", "SyncGroup")):
            code = answer.error_code
            if code in _UNKNOWN:
                lease.lost()
            elif code == 0 or (code == _REBALANCING and kind.startswith("Heartbeat")):
                lease.heard(sent_at, rebalancing=code != 0)
        return answer

    return send_and_tell


class OneOwnerAssignor(RangePartitionAssignor):
    """Gives all partitions to one member; the others stand by."""

    name = "one-owner"

    @classmethod
    def assign(cls, cluster: Any, members: Mapping[str, Any]) -> dict[str, Any]:
        """Let the member whose id comes first have all: it stays the same while it lives."""
        owner = min(members)
        assignment = super().assign(cluster, {owner: members[owner]})
        nothing = type(assignment[owner])(cls.version, [], b"")
        return {member: assignment.get(member, nothing) for member in members}


class BatchThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread, with the settings that batches need and an ear for what the coordinator answers."""

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        conf, timeout_ms = self.app.conf, int(self.app.conf.broker_session_timeout * 1000)
        self._assignor = OneOwnerAssignor if self.app.one_owner else RangePartitionAssignor
        auth = driver.credentials_to_aiokafka_auth(conf.broker_credentials, conf.ssl_context)
        return aiokafka.AIOKafkaConsumer(
            client_id=conf.broker_client_id,
            group_id=conf.id,
            group_instance_id=conf.consumer_group_instance_id,
            bootstrap_servers=driver.server_list(transport.url, transport.default_port),
            partition_assignment_strategy=[self._assignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_interval_ms=300_000,
            metadata_max_age_ms=5_000,  # a topic that was deleted and made again is found within so long
            request_timeout_ms=int(REQUEST_TIMEOUT_S * 1000),
            session_timeout_ms=timeout_ms,
            rebalance_timeout_ms=int(rebalance_timeout_s(timeout_ms / 1000) * 1000),
            heartbeat_interval_ms=max(timeout_ms // 8, 100),
            **auth,
        )

    async def on_start(self) -> None:
        """Start the consumer and listen to its coordinator."""
        await super().on_start()
        consumer = self._ensure_consumer()
        coordinator, subscription = consumer._coordinator, consumer._subscription
        assign = subscription.assign_from_subscribed

        def assign_paused(
            assignment: set[TopicPartition],
        ) -> None:  # what is to be fetched, `kymo.processors.fetch` fetches
            assign(assignment)
            consumer.pause(*assignment)

        subscription.assign_from_subscribed = assign_paused
        coordinator._send_req = listen(self.app.lease, coordinator._send_req)

        def tell(error: BaseException) -> Awaitable[Any]:
            self._tell(error)
            return asyncio.wait([coordinator._closing])  # aiokafka waits until somebody has heard of it

        def ended(task: asyncio.Task[Any]) -> None:
            if not task.cancelled() and not coordinator._closing.done() and (error := task.exception()) is not None:
                self._tell(error)

        coordinator._push_error_to_user = tell
        coordinator._coordination_task.add_done_callback(ended)

    def _tell(self, error: BaseException) -> None:
        self.parent_loop.call_soon_threadsafe(self.app.failed, error)

    def alive(self) -> None:
        """Count from now the time without records after which aiokafka leaves the group."""
        if self._consumer is not None:
            self._consumer._subscription._last_fetch_ended = time.monotonic()

    async def commit_with(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        """Commit offsets and their metadata."""
        await self.call_thread(self._ensure_consumer().commit, dict(offsets))

    async def committed_with(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        """Committed offsets with their metadata."""
        coordinator = self._ensure_consumer()._coordinator
        return await self.call_thread(coordinator.fetch_committed_offsets, list(partitions))


class BatchConsumer(driver.Consumer):
    """Faust's consumer, draining fetches into the app's handler."""

    _thread: BatchThread

    def _new_consumer_thread(self) -> BatchThread:
        return BatchThread(self, loop=self.loop, beacon=self.beacon)

    async def _drain_messages(self, fetcher: Any) -> None:
        try:
            while not (self._stopped.is_set() or fetcher._stopped.is_set()):
                records = await self.app.fetch.next()
                await self.app.handler.on_records(records)
        except Exception as error:  # Faust would end the process, whatever it is
            self.app.failed(error)

    @driver.Consumer.task
    async def _alive(self) -> None:
        """Tell aiokafka that this loop runs: a worker whose loop stands still leaves its group, one whose model is slow does not."""
        while not self.should_stop:
            if self._thread is not None:
                self._thread.alive()
            await asyncio.sleep(1.0)

    async def on_stop(self) -> None:
        """Finish and commit before the connection closes."""
        try:
            await self.app.handler.on_stop()
        except Exception as error:
            self.app.failed(error)
        if self.app.fetch is not None:
            self.app.fetch.close()

    def verify_event_path(self, now: float, tp: Any) -> None:
        """Faust's own check for stuck streams sees none of ours."""


class FencedProducer(driver.Producer):
    """Faust's producer: idempotent, and silent once the worker may have been overtaken."""

    def _settings_extra(self) -> dict[str, Any]:
        return {"acks": "all", "enable_idempotence": True, "max_batch_size": MIB, "max_request_size": 8 * MIB + MIB}

    async def on_start(self) -> None:
        """Start, and put the fence where a request is written to the socket."""
        await super().on_start()
        client = self._ensure_producer().client
        send = client.send

        async def fenced(node_id: Any, request: Any, **kwargs: Any) -> Any:
            if type(request).__name__.startswith("Produce") and self.app.lease.left_s <= 0:
                self.app.fail_stale()
            return await send(node_id, request, **kwargs)

        client.send = fenced


class BatchTransport(driver.Transport):
    """The above as a Faust transport."""

    Consumer = BatchConsumer
    Producer = FencedProducer


def credentials(settings: Settings) -> Any:
    """Faust's credentials of a deployment; None for plain text."""
    if settings.security_protocol == "PLAINTEXT":
        return None
    context = settings.ssl_context() if settings.security_protocol.endswith("SSL") else None
    if settings.security_protocol == "SSL":
        return faust.SSLCredentials(context)
    return faust.SASLCredentials(
        username=settings.sasl_username,
        password=settings.sasl_password,
        mechanism=settings.sasl_mechanism,
        ssl_context=context,
    )


def reader_arguments(settings: Settings) -> dict[str, Any]:
    """Connection arguments for aiokafka's own clients."""
    auth = driver.credentials_to_aiokafka_auth(credentials(settings), None)
    return {"bootstrap_servers": settings.brokers, **auth}


class BatchHandler(Protocol):
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

    handler: BatchHandler  # what takes the records
    fetch: Fetch | None = None  # where the records come from, once it has started

    def __init__(
        self,
        group: str,
        topics: Iterable[str],  # input topics; they must exist, with equal numbers of partitions
        settings: Settings,  # brokers, security, session timeout
        instance: str,
        failed: Callable[[BaseException], None],
        one_owner: bool = False,  # whether one member has all partitions
    ) -> None:
        self.one_owner = one_owner
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
        return await self.consumer._thread.committed_with(partitions)

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
            f"{where}: records are compressed in a way that cannot be read here ({error}); install kymo-streams[kafka] anew"
        )
    return DeliveryError(f"{where}: the client gave up ({' '.join(repr(error).split())})")
