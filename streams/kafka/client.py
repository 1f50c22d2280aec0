"""What all kafka-python clients here share. In: Settings. Out: connection arguments; errors in the project's words."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from typing import Any, TypeVar

from kafka.admin import KafkaAdminClient
from kafka.errors import CorruptRecordError, KafkaError, KafkaTimeoutError, UnknownTopicOrPartitionError
from kafka.partitioner.default import murmur2

from kymo.streams.errors import BrokerError, SettingsError
from kymo.streams.settings import Settings

#: Until a broker has answered for the first time; where none does, a verb ends after this.
BOOTSTRAP_TIMEOUT_S = 10.0
#: A cluster that has answered may be without a leader for what is asked so long; electing one takes seconds.
PATIENCE_S = 30.0
RETRY_S = 0.25
#: Retriable by their kind, but asking again does not help: damage stays, a topic is not there, a timeout has waited already.
_LASTING = (CorruptRecordError, KafkaTimeoutError, UnknownTopicOrPartitionError)

Answer = TypeVar("Answer")


def client_arguments(settings: Settings) -> dict[str, Any]:
    if not settings.brokers:
        raise SettingsError("no broker is named: set KYMO_BROKERS=host:port, or start one with `kymo broker start`")
    _use_compiled_checksum()
    tls = {"ssl_context": settings.ssl_context()} if settings.security_protocol.endswith("SSL") else {}
    waits = {"bootstrap_timeout_ms": int(BOOTSTRAP_TIMEOUT_S * 1000), "reconnect_backoff_max_ms": 1000}
    return settings.kafka_python() | tls | waits


@contextmanager
def kafka_errors(settings: Settings, doing: str) -> Iterator[None]:
    """Turn the client's errors into a BrokerError that names the broker and what was being done."""
    try:
        yield
    except KafkaError as error:
        # What a server refuses at the handshake looks to the client as if nobody answered.
        secured = ", are user, password and certificates (KYMO_KAFKA_SECURITY_*)"
        plain = settings.security_protocol == "PLAINTEXT"
        raise BrokerError(
            f"Kafka at {settings.brokers}, {doing}: {describe(error)}; is it running (kymo broker status), is "
            f"KYMO_BROKERS{'' if plain else secured} right?"
        ) from None
    except OSError as error:  # a certificate that is not there, a name that cannot be resolved
        raise BrokerError(f"Kafka at {settings.brokers}, {doing}: {error}") from None


def patiently(
    settings: Settings, doing: str, ask: Callable[[], Answer], renew: Callable[[float], None] = lambda _left_s: None
) -> Answer:
    """Ask a cluster that has answered before; while it elects a leader ask again, for :data:`PATIENCE_S` and with a line on stderr."""
    give_up = None
    while True:
        try:
            return ask()
        except (KafkaError, ConnectionError) as error:
            passing = isinstance(error, ConnectionError) or (error.retriable and not isinstance(error, _LASTING))
            if not passing or (give_up is not None and time.monotonic() > give_up):
                raise
            if give_up is None:
                give_up = time.monotonic() + PATIENCE_S
                text = (
                    f"Kafka at {settings.brokers}, {doing}: {describe(error)}; asking again for up to {PATIENCE_S:g} s"
                )
                print(f"kymo: {text}", file=sys.stderr, flush=True)
        time.sleep(RETRY_S)
        renew(max(RETRY_S, give_up - time.monotonic()))


@contextmanager
def admin_client(settings: Settings, doing: str) -> Iterator[Any]:
    """kafka-python's admin client, each call of which is made :func:`patiently`."""
    with kafka_errors(settings, doing):
        client = _Admin(settings, doing)
        try:
            yield client
        finally:
            client.close()


class _Admin:
    def __init__(self, settings: Settings, doing: str) -> None:
        self._settings, self._doing = settings, doing
        self._client: Any = KafkaAdminClient(**client_arguments(settings))

    def close(self) -> None:
        self._client.close()

    def __getattr__(self, name: str) -> Any:
        return partial(self._ask, name)

    def _ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return patiently(self._settings, self._doing, lambda: getattr(self._client, name)(*args, **kwargs), self._renew)

    def _renew(self, left_s: float) -> None:
        """A client remembers which broker is the controller, though it be dead."""
        self._client.close()
        timeout = {"bootstrap_timeout_ms": int(left_s * 1000)}
        self._client = KafkaAdminClient(**client_arguments(self._settings) | timeout)


def describe(error: BaseException) -> str:
    """A Kafka error on one line."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    return text if text.startswith(name) or name in text else f"{name} {text}".strip()


def partition_of(key: bytes, partitions: int) -> int:
    """Partition of a key, the same as Java's default partitioner's.

    >>> partition_of(b"s1", 12)
    9
    """
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


@cache
def _use_compiled_checksum() -> None:
    """kafka-python's CRC-32C is a Python loop: 146 ns a byte, 38 ms for 256 KiB; aiokafka's takes 0.16 ms."""
    from kafka.record import default_records, util

    if util.crc32c_c is not None:
        return
    try:
        compiled = import_module("aiokafka.record.util")
    except ImportError:
        return
    default_records.calc_crc32c = compiled.calc_crc32c
