"""Faust's transport for batches. In: an app with a `handler`. Out: fetched records in its hands, commits with metadata, fenced sends.

Three things differ from Faust's own transport: partitions of equal number stay together (range assignment), a commit carries metadata,
and a worker sends nothing once its lease on its partitions is over (`processors.lease`). Whatever the client meets that it cannot mend
is told to the app: aiokafka would log it and go on for ever without doing anything.
"""

# Faust declares its app, consumer and producer by abstract types that lack what the concrete ones have and we add.
# mypy: disable-error-code="attr-defined,no-any-return,misc"
from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import aiokafka
import faust
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers import aiokafka as driver

from processors.lease import Instant, Lease
from streams.settings import Settings
from streams.topics import MIB

REQUEST_TIMEOUT_S = 30.0
_REBALANCING, _UNKNOWN = (
    27,
    frozenset((22, 25, 82)),
)  # a generation, a member, an instance that the coordinator does not know


def rebalance_timeout_s(session_timeout_s: float) -> float:
    """How long a group waits for its members to come back."""
    return max(session_timeout_s, 15.0)


def listen(lease: Lease, send: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
    """What sends a group's requests, telling a lease of the answers.

    It stands where they are sent, since aiokafka takes a refused heartbeat, and one in a rebalance, for a heartbeat. That an answer
    came counts from when it was asked for: it may have waited in this process while others took over.
    """

    async def heard(request: Any) -> Any:
        asked, kind = Instant.now(), type(request).__name__
        answer = await send(request)
        if kind.startswith(("Heartbeat", "SyncGroup")):
            code = answer.error_code
            if code in _UNKNOWN:
                lease.lost()
            elif code == 0 or (code == _REBALANCING and kind.startswith("Heartbeat")):
                lease.heard(asked, rebalancing=code != 0)
        return answer

    return heard


class BatchThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread, with the settings that batches need and an ear for what the coordinator answers."""

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        conf, timeout_ms = self.app.conf, int(self.app.conf.broker_session_timeout * 1000)
        self._assignor = RangePartitionAssignor
        auth = driver.credentials_to_aiokafka_auth(conf.broker_credentials, conf.ssl_context)
        return aiokafka.AIOKafkaConsumer(
            client_id=conf.broker_client_id,
            group_id=conf.id,
            group_instance_id=conf.consumer_group_instance_id,
            bootstrap_servers=driver.server_list(transport.url, transport.default_port),
            partition_assignment_strategy=[RangePartitionAssignor],
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

        def assign_paused(assignment: set[TopicPartition]) -> None:  # what is to be fetched, `processors.fetch` fetches
            assign(assignment)
            consumer.pause(*assignment)

        subscription.assign_from_subscribed = assign_paused
        coordinator._send_req = listen(self.app.lease, coordinator._send_req)

        def told(error: BaseException) -> Awaitable[Any]:
            self._tell(error)
            return asyncio.wait([coordinator._closing])  # aiokafka waits until somebody has heard of it

        def ended(task: asyncio.Task[Any]) -> None:
            if not task.cancelled() and not coordinator._closing.done() and (error := task.exception()) is not None:
                self._tell(error)

        coordinator._push_error_to_user = told
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
        found: dict[TopicPartition, OffsetAndMetadata] = await self.call_thread(
            coordinator.fetch_committed_offsets, list(partitions)
        )
        return found


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
