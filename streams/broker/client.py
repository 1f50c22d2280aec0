"""What all kafka-python clients here share. In: Settings. Out: connection arguments; errors in the project's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

from kafka.errors import KafkaError
from kafka.partitioner.default import murmur2

from streams.errors import BrokerError, SettingsError
from streams.settings import Settings

BOOTSTRAP_TIMEOUT_S = 10.0


def client_arguments(settings: Settings) -> dict[str, Any]:
    """Arguments of a kafka-python client.

    Raises
    ------
    SettingsError
        If no broker is named.
    """
    if not settings.brokers:
        raise SettingsError("no broker is named: set KYMO_BROKERS=host:port, or start one with `kymo broker start`")
    _use_compiled_checksum()
    return settings.kafka_python() | {
        "bootstrap_timeout_ms": int(BOOTSTRAP_TIMEOUT_S * 1000),
        "reconnect_backoff_max_ms": 1000,
    }


@contextmanager
def kafka_errors(settings: Settings, doing: str) -> Iterator[None]:
    """Turn the client's errors into a BrokerError that names the broker and what was being done.

    Parameters
    ----------
    settings : Settings
        Names the broker.
    doing : str
        Such as ``"making topics"``.
    """
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


def describe(error: BaseException) -> str:
    """A Kafka error on one line."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    return text if text.startswith(name) or name in text else f"{name} {text}".strip()


def partition_of(key: bytes, partitions: int) -> int:
    """Partition of a key, the same as Java's default partitioner's.

    Parameters
    ----------
    key : bytes
        The session's name in UTF-8.
    partitions : int
        Partition count of the topic.

    Examples
    --------
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
