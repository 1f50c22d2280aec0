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
from mcap.opcode import Opcode
from mcap.records import Chunk, ChunkIndex
from mcap.writer import IndexType, Writer
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
    file = _Writer(out)
    total = len(recording.times_ns)
    starts = range(0, total, CHUNK_SAMPLES)
    # Compression leaves Python's lock: while one chunk is compressed, the next one's numbers are written out.
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for start in starts:
            end, before = min(start + CHUNK_SAMPLES, total), b"" if start else file.definitions()
            packing = pool.submit(_packed, *_messages(recording, start, end, before))
            if waiting is not None:
                file.add_chunk(*waiting.result())
                progress(start, total)
            waiting = packing
        if waiting is not None:
            file.add_chunk(*waiting.result())
    file.add_metadata("synthetic", {"generated_by": GENERATED_BY, "seed": str(recording.seed)})
    units = {topic: recording.plan.unit(topic) for topic in ORDER if topic != "pose_truth"}
    file.add_metadata("units", {"timestamp": "ns"} | units)
    file.finish()  # type: ignore[no-untyped-call]
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


class _Writer(Writer):
    """mcap's writer, but chunks are given to it whole."""

    def __init__(self, out: IO[bytes]) -> None:
        super().__init__(out, index_types=IndexType.ALL & ~IndexType.ATTACHMENT)
        self.start(library="kymo")
        schema = self.register_schema(SCHEMA_NAME, "jsonschema", json.dumps(SCHEMA).encode())
        for topic in TOPICS:
            self.register_channel(topic, "json", schema)

    def _own(self, name: str) -> Any:
        """What the writer keeps to itself; its version is fixed."""
        return getattr(self, f"_Writer__{name}")

    def definitions(self) -> bytes:
        """Schema and channels, which stand in the first chunk."""
        return bytes(self._own("chunk_builder").end())

    def add_chunk(self, chunk: Chunk, indexes: Indexes) -> None:
        """Append a chunk and its indexes."""
        out, builder, statistics = self._own("stream"), self._own("record_builder"), self._own("statistics")
        start, offsets = out.tell(), dict[int, int]()
        chunk.write(builder)
        out.write(builder.end())
        length = out.tell() - start
        for channel, index in indexes.items():
            offsets[channel] = out.tell()
            data = index.tobytes()
            out.write(struct.pack("<BQHI", Opcode.MESSAGE_INDEX, len(data) + 6, channel, len(data)) + data)
            statistics.channel_message_counts[channel] += len(index)
            statistics.message_count += len(index)
        self._own("chunk_indices").append(
            ChunkIndex(
                chunk_start_offset=start,
                chunk_length=length,
                compression=chunk.compression,
                compressed_size=len(chunk.data),
                uncompressed_size=chunk.uncompressed_size,
                message_start_time=chunk.message_start_time,
                message_end_time=chunk.message_end_time,
                message_index_offsets=offsets,
                message_index_length=out.tell() - start - length,
            )
        )
        if not statistics.chunk_count:
            statistics.message_start_time = chunk.message_start_time
        statistics.message_end_time = chunk.message_end_time
        statistics.chunk_count += 1
