"""What tests of MCAP files share. In: messages. Out: a file, and recordings or the error of it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documents import SHARED
from mcap.writer import CompressionType, Writer

from kymo.streams.chunk import Chunk, Header, signal_format
from kymo.streams.codec import ChunkCodec

FOREIGN = SHARED / "data/imu_mcap/basic_synthetic.mcap"
needs_foreign = pytest.mark.skipif(not FOREIGN.is_file(), reason="shared/data/imu_mcap is absent")
HEADER = Header("s1", 10**18, signal_format("imu.left", ("a", "b"), 100, "float32"))
Message = tuple[str, str, str, int, bytes]  # topic, encoding, schema name, log time, data


def mcap(
    path: Path, messages: Iterable[Message], chunk_size: int = 2**20, metadata: dict[str, str] | None = None
) -> Path:
    out = io.BytesIO()
    writer = Writer(out, chunk_size=chunk_size, compression=CompressionType.ZSTD)
    writer.start()
    schemas: dict[str, int] = {}
    channels: dict[tuple[str, str], int] = {}
    for topic, encoding, schema, time, data in messages:
        if schema not in schemas:
            schemas[schema] = writer.register_schema(schema, "jsonschema" if encoding == "json" else encoding, b"")
        if (topic, encoding) not in channels:
            channels[topic, encoding] = writer.register_channel(topic, encoding, schemas[schema])
        writer.add_message(channels[topic, encoding], time, data, time)
    if metadata:
        writer.add_metadata("recording", metadata)
    writer.finish()
    path.write_bytes(out.getvalue())
    return path


def sample(topic: str, time: int, values: Any, **more: Any) -> Message:
    return topic, "json", "event", time, json.dumps({"values": values, **more}).encode()


def chunk(first: int, count: int, header: Header = HEADER, end: bool = False) -> Message:
    data = np.arange(first * 2, (first + count) * 2, dtype=np.float32).reshape(-1, 2)
    return "kymo.sensor", "protobuf", "kymo.Chunk", first, ChunkCodec().encode(Chunk(header, first, data, None, end))
