"""Synthetic recordings as MCAP. In: a :class:`Synthesis`. Out: a file with a JSON message a sample and topic; times in Unix ns.

The file is what mcap's own writer makes of the same messages, but whole chunks are put together at once: times, record
headers and indexes by numpy, numbers by msgspec. The bytes depend on plan and seed alone.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import zstandard
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

from kymo.lab.output import Progress, writing
from kymo.lab.synth.simulate import ORDER, TOPICS, Synthesis
from kymo.streams.errors import PlanError
from kymo.streams.files import whole_file

GENERATED_BY = "kymo synth"
SCHEMA_NAME = "sensor_event"
#: JSON Schema of every message, as recordings of this kind carry it; `id` (the topic) and `timestamp` (ns) are there too.
SCHEMA: dict[str, Any] = {
    "title": SCHEMA_NAME,
    "type": "object",
    "properties": {"values": {"type": "array", "items": {"type": "number"}}},
}
#: Samples in a chunk: about 2 MB of JSON, a few hundred kB compressed.
CHUNK_SAMPLES = 2048
_LEVEL = 1
_HEADER = [("op", "u1"), ("length", "<u8"), ("channel", "<u2"), ("sequence", "<u4"), ("log", "<u8"), ("publish", "<u8")]
_BETWEEN, _BEHIND = b', "values": [', b"]}"
_INDEX = np.dtype([("log", "<u8"), ("offset", "<u8")])
Indexes = dict[int, NDArray[np.void]]
"""By channel, ``log`` and ``offset`` of its messages in a chunk."""


def write_mcap(recording: Synthesis, path: str | Path, progress: Progress | None = None) -> None:
    """Write a synthetic recording; the file appears whole or not at all."""
    target = Path(path)
    with writing(target, PlanError), whole_file(target) as unfinished, unfinished.open("wb") as out:
        _write(recording, out, progress or (lambda done, of: None))


def mcap_bytes(recording: Synthesis) -> bytes:
    """The same file in memory."""
    out = io.BytesIO()
    _write(recording, out, lambda done, of: None)
    return out.getvalue()


def _write(recording: Synthesis, out: IO[bytes], progress: Progress) -> None:
    file = McapFile(out)
    total = len(recording.times_ns)
    starts = range(0, total, CHUNK_SAMPLES)
    # Compression leaves Python's lock: while one chunk is compressed, the next one's numbers are written out.
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for start in starts:
            end, before = min(start + CHUNK_SAMPLES, total), b"" if start else file.definitions()
            packing = pool.submit(_packed, *_messages(recording, start, end, before))
            if waiting is not None:
                file.chunk(*waiting.result())
                progress(start, total)
            waiting = packing
        if waiting is not None:
            file.chunk(*waiting.result())
    file.metadata("synthetic", {"generated_by": GENERATED_BY, "seed": str(recording.seed)})
    units = {topic: recording.plan.unit(topic) for topic in ORDER if topic != "pose_truth"}
    file.metadata("units", {"timestamp": "ns"} | units)
    file.finish()
    progress(total, total)


def _packed(records: bytes, indexes: Indexes) -> tuple[Chunk, Indexes]:
    times = np.concatenate([index["log"] for index in indexes.values()])
    chunk = Chunk(
        compression="zstd",
        data=zstandard.ZstdCompressor(level=_LEVEL).compress(records),
        message_start_time=int(times.min()),
        message_end_time=int(times.max()),
        uncompressed_crc=zlib.crc32(records),
        uncompressed_size=len(records),
    )
    return chunk, indexes


def _messages(recording: Synthesis, start: int, end: int, before: bytes) -> tuple[bytes, Indexes]:
    """Message records of samples `start` to `end`, behind the records `before`, and where each of them stands."""
    count = end - start
    raw = slice(*np.searchsorted(recording.raw_index, [start, end]).tolist())
    lengths = np.zeros((count, len(ORDER)), np.int64)
    pieces: list[Iterable[bytes]] = []
    places: dict[str, NDArray[np.intp] | slice] = {"truth": slice(None), "raw": slice(None)}
    if raw.stop - raw.start < count:
        places["raw"] = recording.raw_index[raw] - start
    times = {"truth": recording.times_ns[start:end], "raw": recording.raw_times_ns[raw]}
    digits = {kind: _numbers(values) for kind, values in times.items()}
    for column, topic in enumerate(ORDER):
        kind = topic.rpartition("_")[2]
        rows = _rows(recording.topics[topic][start:end] if kind == "truth" else recording.topics[topic][raw])
        sizes = np.fromiter(map(len, rows), np.int64, len(rows)) + np.fromiter(
            map(len, digits[kind]), np.int64, len(rows)
        )
        heads, size = _heads(topic, times[kind], sizes)
        parts: tuple[Iterable[bytes], ...] = (heads, digits[kind], repeat(_BETWEEN), rows, repeat(_BEHIND))
        if kind == "raw" and len(rows) < count:
            parts = tuple(_spread(part, places["raw"], count) for part in parts)
        pieces += parts
        lengths[places[kind], column] = sizes + size
    body = before + b"".join(chain.from_iterable(zip(*pieces, strict=False)))  # repeat() has no end
    starts = (len(before) + np.cumsum(lengths)).reshape(lengths.shape) - lengths
    indexes = {}
    for column, topic in enumerate(ORDER):
        kind = topic.rpartition("_")[2]
        index = np.empty(len(times[kind]), _INDEX)
        index["log"], index["offset"] = times[kind], starts[places[kind], column]
        if len(index):
            indexes[TOPICS.index(topic) + 1] = index
    return body, indexes


def _numbers(values: NDArray[Any]) -> list[bytes]:
    """Whole numbers as text."""
    return msgspec.json.encode(values.tolist())[1:-1].split(b",") if len(values) else []


def _rows(values: NDArray[np.float64]) -> list[bytes]:
    """Numbers of each row, separated by commas: of each the shortest text that reads back to the same bits."""
    return msgspec.json.encode(values.tolist())[2:-2].split(b"],[") if len(values) else []


def _heads(topic: str, times: NDArray[np.int64], sizes: NDArray[np.int64]) -> tuple[list[bytes], int]:
    """Record headers, each with the message's text up to its time; and the length of all that is no number."""
    first = f'{{"id": "{topic}", "timestamp": '.encode()
    heads = np.zeros(len(times), [*_HEADER, ("first", f"S{len(first)}")])
    same = heads.itemsize + len(_BETWEEN) + len(_BEHIND)
    heads["op"], heads["channel"], heads["first"] = Opcode.MESSAGE, TOPICS.index(topic) + 1, first
    heads["length"] = sizes + (same - 9)  # the operation and this length itself do not count
    heads["log"] = heads["publish"] = times
    data, size = heads.tobytes(), heads.itemsize
    return [data[place : place + size] for place in range(0, len(data), size)], same


def _spread(parts: Iterable[bytes], places: Any, count: int) -> list[bytes]:
    """Parts at their places among `count`, nothing in between."""
    out = [b""] * count
    for place, part in zip(places.tolist(), parts, strict=False):
        out[place] = part
    return out


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

    def definitions(self) -> bytes:
        """Schema and channels, which stand in the first chunk."""
        return _bytes_of(self._schema, *self._channels)

    def chunk(self, chunk: Chunk, indexes: Indexes) -> None:
        """Append a chunk and its indexes."""
        start = self._place
        length, offsets = self.put(chunk), dict[int, int]()
        for channel, index in indexes.items():
            offsets[channel] = self._place
            data = index.tobytes()
            self._write(struct.pack("<BQHI", Opcode.MESSAGE_INDEX, len(data) + 6, channel, len(data)) + data)
            self._counts[channel] = self._counts.get(channel, 0) + len(index)
        self._chunks.append(
            ChunkIndex(
                chunk_start_offset=start,
                chunk_length=length,
                compression=chunk.compression,
                compressed_size=len(chunk.data),
                uncompressed_size=chunk.uncompressed_size,
                message_start_time=chunk.message_start_time,
                message_end_time=chunk.message_end_time,
                message_index_offsets=offsets,
                message_index_length=self._place - start - length,
            )
        )

    def metadata(self, name: str, members: dict[str, str]) -> None:
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
    return bytes(builder.end())  # type: ignore[no-untyped-call]
