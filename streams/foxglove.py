"""Messages that Foxglove and Lichtblick show. In: pixels, texts, times in Unix ns. Out: JSON channels and members of MCAP files.

https://docs.foxglove.dev/docs/sdk/schemas describes the schemas.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from mcap.writer import Writer
from numpy.typing import NDArray

from kymo.streams.words import NS

TIME = {
    "type": "object",
    "title": "time",
    "properties": {
        "sec": {"type": "integer", "minimum": 0},
        "nsec": {"type": "integer", "minimum": 0, "maximum": 999_999_999},
    },
}
TEXT, _WHOLE = {"type": "string"}, {"type": "integer", "minimum": 0}
_BYTES = {"type": "string", "contentEncoding": "base64"}
#: Members of Foxglove's own schemas.
SCHEMAS: dict[str, dict[str, Any]] = {
    "foxglove.CompressedImage": {"timestamp": TIME, "frame_id": TEXT, "data": _BYTES, "format": TEXT},
    "foxglove.RawImage": {
        "timestamp": TIME,
        "frame_id": TEXT,
        "width": _WHOLE,
        "height": _WHOLE,
        "encoding": TEXT,
        "step": _WHOLE,
        "data": _BYTES,
    },
    "foxglove.Log": {
        "timestamp": TIME,
        "level": {"title": "LogLevel", "oneOf": [{"title": "INFO", "const": 2}]},
        "message": TEXT,
        "name": TEXT,
        "file": TEXT,
        "line": _WHOLE,
    },
}


def json_channel(writer: Writer, topic: str, schema: str, properties: Mapping[str, Any]) -> int:
    text = json.dumps({"title": schema, "type": "object", "properties": properties}).encode()
    number: int = writer.register_channel(topic, "json", writer.register_schema(schema, "jsonschema", text))
    return number


def stamp(at_ns: int) -> dict[str, int]:
    """A time as these schemas have it; they know none before 1970."""
    at = max(at_ns, 0)
    return {"sec": at // NS, "nsec": at % NS}


def text_of(data: bytes) -> str:
    """Bytes as JSON has them."""
    return base64.b64encode(data).decode()


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A grey picture ``(height, width)`` as PNG."""
    height, width = pixels.shape
    rows = np.zeros((height, width + 1), np.uint8)  # each row begins with its filter, 0 for none
    rows[:, 1:] = pixels
    parts = [b"\x89PNG\r\n\x1a\n"]
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8 bits, grey
    for name, data in ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b"")):
        parts.append(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))
    return b"".join(parts)
