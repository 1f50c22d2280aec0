"""A Kafka record as an archive keeps it. In: kafka-python's records. Out: what an MCAP message has no place for, as JSON, and back."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from streams.errors import MessageError
from streams.messages import read_object


class ArchivedRecord(NamedTuple):
    """A Kafka record as it was; attributes are named as kafka-python's."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    """Record time, Unix ms; -1 for none."""
    timestamp_type: int
    """0 if the producer set it, 1 if the broker did."""
    key: bytes | None
    value: bytes | None
    """None for a deleted key."""
    headers: Sequence[tuple[str, bytes | None]] = ()


def extra_of(record: Any) -> dict[str, Any]:
    """What of a record an MCAP message has no place for; empty for most."""
    out: dict[str, Any] = {}
    if record.headers:
        out["headers"] = [
            [name, None if value is None else base64.b64encode(value).decode()] for name, value in record.headers
        ]
    if record.value is None:
        out["deleted"] = True
    if record.timestamp < 0:
        out["timestamp"] = record.timestamp
    if record.timestamp_type:
        out["timestamp_type"] = record.timestamp_type
    return out


def read_extra(raw: bytes) -> tuple[tuple[str, int, int], dict[str, Any]]:
    """Of which record, by topic, partition and offset, an extra is, and what it says."""
    extra = read_object(raw)
    place = [extra.get("topic"), extra.get("partition"), extra.get("offset")]
    headers, timestamps = extra.get("headers", []), [extra.get("timestamp", 0), extra.get("timestamp_type", 0)]
    try:
        whole = all(
            isinstance(name, str) and (text is None or base64.b64decode(text) is not None) for name, text in headers
        )
    except (TypeError, ValueError):
        whole = False
    if [type(part) for part in (*place, *timestamps)] != [str, int, int, int, int] or not whole:
        raise MessageError(f"no extra of a record: {str(extra)[:80]}")
    return (extra["topic"], extra["partition"], extra["offset"]), extra


def with_extra(record: ArchivedRecord, extra: Mapping[str, Any]) -> ArchivedRecord:
    """A record with what :func:`extra_of` said of it."""
    headers = tuple((name, None if text is None else base64.b64decode(text)) for name, text in extra.get("headers", ()))
    return record._replace(
        headers=headers,
        value=None if extra.get("deleted") else record.value,
        timestamp=extra.get("timestamp", record.timestamp),
        timestamp_type=extra.get("timestamp_type", 0),
    )
