"""One segment of an archive as it is written. In: Kafka records. Out: an MCAP file that appears whole or not at all; times in Unix ns.

The file has a name of its own, ``….mcap.partial``, until everything in it is on the disk.
"""

from __future__ import annotations

import base64
import contextlib
import json
import time
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from mcap.writer import CompressionType, Writer

from kymo.streams.archive.format import (
    EXTRAS_TOPIC,
    HOLE,
    METADATA_NAME,
    NS_PER_MS,
    PARTIAL,
    Absent,
    Contents,
    extra_of,
    segment_number,
    segment_path,
)
from kymo.streams.chunk_pb2 import Chunk as Message
from kymo.streams.codec import CHUNK_SCHEMA
from kymo.streams.errors import ArchiveError
from kymo.streams.events import EVENT_SCHEMA
from kymo.streams.files import take_name, to_disk
from kymo.streams.labels.labels import LABEL_SCHEMA
from kymo.streams.promotions import PROMOTION_SCHEMA
from kymo.streams.sessions import SESSION_SCHEMA
from kymo.streams.topics import CHUNK_TOPICS, MIB

CHUNK_BYTES = MIB
#: MCAP numbers channels with 16 bits.
MOST_CHANNELS = 60_000
_TEXT, _NS = {"type": "string"}, {"type": "integer", "description": "Unix nanoseconds"}
_ALERT = {"id": _TEXT, "rule": _TEXT, "state": _TEXT, "start_ns": _NS, "end_ns": _NS}
_JSON_SCHEMAS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("events", "shadow"), EVENT_SCHEMA),
    "labels": LABEL_SCHEMA,
    "sessions": SESSION_SCHEMA,
    "models": PROMOTION_SCHEMA,
    "alerts": {"title": "Alert", "type": "object", "additionalProperties": True, "properties": _ALERT},
}


def chunk_schema() -> bytes:
    """The FileDescriptorSet of ``chunk.proto``, which makes an MCAP file readable without this program."""
    out = FileDescriptorSet()
    Message.DESCRIPTOR.file.CopyToProto(out.file.add())
    return out.SerializeToString(deterministic=True)


def _key_members(key: bytes) -> dict[str, str]:
    try:
        return {"key": key.decode()}
    except UnicodeDecodeError:
        return {"key_base64": base64.b64encode(key).decode()}


class SegmentWriter:
    def __init__(self, folder: Path, number: int, contents: Contents) -> None:
        self.path = segment_path(folder, number)
        self.partial = self.path.with_name(self.path.name + PARTIAL)
        self.contents, self.count = contents, 0
        contents.created_ns = contents.created_ns or time.time_ns()
        self._latest_ns = 0
        try:
            self._file = self.partial.open("wb", MIB // 4)
            self._writer = Writer(self._file, CHUNK_BYTES, CompressionType.ZSTD, enable_data_crcs=True)
            self._writer.start(profile="", library="kymo archive")
        except OSError as error:
            raise disk_error(self.path, error) from None
        self._channels: dict[tuple[str, int, bytes | None], int] = {}
        self._schemas: dict[str, tuple[str, int]] = {}

    @property
    def size(self) -> int:
        return self._file.tell()

    @property
    def full(self) -> bool:
        """Whether no further channel fits, whatever the size."""
        return len(self._channels) >= MOST_CHANNELS

    def add(self, record: Any) -> None:
        """Store one record as it is, and count its offset."""
        span = self.contents.spans[record.topic, record.partition]
        offset = record.offset
        if offset > span.next:
            self.contents.absent.append(Absent(record.topic, record.partition, span.next, offset, HOLE))
        channel = self._channels.get((record.topic, record.partition, record.key))
        try:
            if channel is None:
                channel = self._open_channel(record, span.topic_id)
            published_ns = max(record.timestamp, 0) * NS_PER_MS
            # Partitions are read one behind the other, and tools take a message that is older than one before it for a fault.
            log_ns = self._latest_ns = max(self._latest_ns, published_ns)
            value = record.value or b""
            if record.headers or record.value is None or record.timestamp < 0 or record.timestamp_type:
                self._add_extra(record, log_ns)
            self._writer.add_message(channel, log_ns, value, published_ns, offset & 0xFFFFFFFF)
        except OSError as error:
            raise self._failed(error) from None
        span.next = offset + 1
        self.count += 1

    def close(self) -> Path:
        """Write what the segment holds, put it on the disk, give it its name."""
        try:
            self._writer.add_metadata(f"{METADATA_NAME}.{segment_number(self.path):08d}", self.contents.to_metadata())
            self._writer.finish()  # type: ignore[no-untyped-call]
            to_disk(self._file)
            self._file.close()
            take_name(self.partial, self.path, durable=True)
        except OSError as error:
            raise self._failed(error) from None
        return self.path

    def discard(self) -> None:
        with contextlib.suppress(OSError):  # what is still buffered may not fit either
            self._file.close()
        self.partial.unlink(missing_ok=True)

    def _open_channel(self, record: Any, topic_id: str) -> int:
        encoding, schema = self._schema(record.topic.rpartition(".")[2])
        place = {"topic": record.topic, "partition": str(record.partition), "offset": str(record.offset)}
        key = {} if record.key is None else _key_members(record.key)
        name = "/".join((record.topic, *key.values()))
        channel = self._writer.register_channel(name, encoding, schema, place | {"topic_id": topic_id} | key)
        self._channels[record.topic, record.partition, record.key] = channel
        return channel

    def _schema(self, name: str) -> tuple[str, int]:
        kind = "chunk" if name in CHUNK_TOPICS else name
        if kind not in self._schemas:
            encoding, schema, text = "application/octet-stream", "", b""  # snapshots, and bytes that were no message
            if kind == "chunk":
                encoding, schema, text = "protobuf", CHUNK_SCHEMA, chunk_schema()
            elif kind in _JSON_SCHEMAS:
                encoding, schema = "json", f"kymo.{_JSON_SCHEMAS[kind]['title']}"
                text = json.dumps(_JSON_SCHEMAS[kind]).encode()
            form = encoding.replace("json", "jsonschema")
            self._schemas[kind] = encoding, self._writer.register_schema(schema, form, text) if schema else 0
        return self._schemas[kind]

    def _add_extra(self, record: Any, log_ns: int) -> None:
        place = (EXTRAS_TOPIC, 0, None)
        if place not in self._channels:
            schema = self._writer.register_schema("KafkaRecord", "jsonschema", b'{"type":"object"}')
            self._channels[place] = self._writer.register_channel(EXTRAS_TOPIC, "json", schema)
        text = json.dumps(extra_of(record), separators=(",", ":")).encode()
        self._writer.add_message(self._channels[place], log_ns, text, log_ns, record.offset & 0xFFFFFFFF)

    def _failed(self, error: OSError) -> ArchiveError:
        self.discard()
        return disk_error(self.path, error)


def disk_error(path: Path, error: OSError) -> ArchiveError:
    return ArchiveError(
        f"{path}: cannot be written ({error.strerror or error}); the segments before it are whole. Make room or choose "
        "another folder (--dir), then start again: what is missing is read from Kafka, as long as it keeps it"
    )
