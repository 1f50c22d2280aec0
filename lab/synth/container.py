"""An MCAP file as it is put together. In: chunks of message records with their indexes. Out: the file's bytes; times in Unix ns."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from mcap.data_stream import RecordBuilder
from mcap.opcode import Opcode
from mcap.records import (
    Channel,
    Chunk,
    ChunkIndex,
    DataEnd,
    Footer,
    Header,
    McapRecord,
    Metadata,
    MetadataIndex,
    Schema,
    Statistics,
    SummaryOffset,
)
from mcap.writer import MCAP0_MAGIC
from numpy.typing import NDArray

from lab.synth.simulate import TOPICS

SCHEMA_NAME = "sensor_event"
#: JSON Schema of every message, as recordings of this kind carry it; `id` (the topic) and `timestamp` (ns) are there too.
SCHEMA: dict[str, Any] = {
    "title": SCHEMA_NAME,
    "type": "object",
    "properties": {"values": {"type": "array", "items": {"type": "number"}}},
}


@dataclass(frozen=True, slots=True)
class Body:
    """One chunk."""

    packed: bytes  # its records, compressed with zstd
    size: int  # length and CRC-32 of the records
    checksum: int
    times: dict[int, NDArray[np.void]]  # by channel: ``log`` and ``offset`` of its messages


class McapFile:
    """An MCAP file as it is written: one schema, and a channel for each topic."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out, self._place = out, 0
        self._schema = Schema(id=1, name=SCHEMA_NAME, encoding="jsonschema", data=json.dumps(SCHEMA).encode())
        self._channels = [
            Channel(id=i, topic=topic, message_encoding="json", metadata={}, schema_id=1)
            for i, topic in enumerate(TOPICS, 1)
        ]
        self._chunks: list[ChunkIndex] = []
        self._metadata: list[MetadataIndex] = []
        self._counts: dict[int, int] = {}
        self._write(MCAP0_MAGIC)
        self.put(Header(profile="", library="kymo"))

    def _write(self, data: bytes) -> None:
        self._out.write(data)
        self._place += len(data)

    def put(self, *records: McapRecord) -> int:
        """Append records; their length in bytes."""
        data = _bytes_of(*records)
        self._write(data)
        return len(data)

    def definitions(self, first: bool) -> bytes:
        """Schema and channels, which stand in the first chunk."""
        return _bytes_of(self._schema, *self._channels) if first else b""

    def chunk(self, body: Body) -> None:
        """Append a chunk and its index."""
        times = np.concatenate([index["log"] for index in body.times.values()])
        first, last = int(times.min()), int(times.max())
        start = self._place
        length = self.put(
            Chunk(
                compression="zstd",
                data=body.packed,
                message_start_time=first,
                message_end_time=last,
                uncompressed_crc=body.checksum,
                uncompressed_size=body.size,
            )
        )
        offsets: dict[int, int] = {}
        behind = self._place
        for channel, index in body.times.items():
            offsets[channel] = self._place
            data = index.tobytes()
            sizes = np.array([len(data) + 6], "<u8").tobytes(), np.array([channel], "<u2").tobytes()
            self._write(bytes([Opcode.MESSAGE_INDEX]) + b"".join(sizes) + np.array([len(data)], "<u4").tobytes() + data)
            self._counts[channel] = self._counts.get(channel, 0) + len(index)
        self._chunks.append(
            ChunkIndex(
                chunk_start_offset=start,
                chunk_length=length,
                compression="zstd",
                compressed_size=len(body.packed),
                uncompressed_size=body.size,
                message_start_time=first,
                message_end_time=last,
                message_index_offsets=offsets,
                message_index_length=self._place - behind,
            )
        )

    def metadata(self, name: str, members: dict[str, str]) -> None:
        """Append a metadata record."""
        place = self._place
        length = self.put(Metadata(name=name, metadata=members))
        self._metadata.append(MetadataIndex(name=name, offset=place, length=length))

    def finish(self) -> None:
        """Append summary and footer."""
        self.put(DataEnd(data_section_crc=0))
        start, offsets, summary = self._place, [], b""
        statistics = Statistics(
            attachment_count=0,
            channel_count=len(self._channels),
            channel_message_counts=self._counts,
            chunk_count=len(self._chunks),
            message_count=sum(self._counts.values()),
            message_end_time=max(index.message_end_time for index in self._chunks),
            message_start_time=min(index.message_start_time for index in self._chunks),
            metadata_count=len(self._metadata),
            schema_count=1,
        )
        groups: list[tuple[Opcode, list[Any]]] = [
            (Opcode.SCHEMA, [self._schema]),
            (Opcode.CHANNEL, self._channels),
            (Opcode.STATISTICS, [statistics]),
            (Opcode.CHUNK_INDEX, self._chunks),
            (Opcode.METADATA_INDEX, self._metadata),
        ]
        for opcode, records in groups:
            data = _bytes_of(*records)
            offsets.append(SummaryOffset(group_opcode=opcode, group_start=start + len(summary), group_length=len(data)))
            summary += data
        behind = start + len(summary)
        summary += _bytes_of(*offsets)
        footer = Footer(summary_start=start, summary_offset_start=behind, summary_crc=0)
        # The checksum covers the summary and the footer up to itself: all but its last four bytes.
        footer.summary_crc = zlib.crc32(summary + _bytes_of(footer)[:-4])
        self._write(summary)
        self.put(footer)
        self._write(MCAP0_MAGIC)


def _bytes_of(*records: McapRecord) -> bytes:
    builder = RecordBuilder()
    for record in records:
        record.write(builder)
    data: bytes = builder.end()  # type: ignore[no-untyped-call]
    return data
