"""Unpacked MCAP chunks. In: a chunk as a file has it, compressed or not. Out: its bytes, and the records in them, within bounds.

A hundred kilobytes of zstd can stand for gigabytes. What a chunk says of its size, and what really comes out, are both held against
what recordings are: nothing is reserved on a file's word alone.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator

import zstandard
from mcap.data_stream import ReadDataStream
from mcap.opcode import Opcode
from mcap.records import Channel, Chunk, McapRecord, Message, Schema

from streams.errors import SourceError

LARGEST = 2**27  # bytes of a chunk; recorders make chunks of about 2**20
RATIO = 16  # or so many times what it takes packed, as a chunk of large images may
_ALL_LARGEST, _ALL_RATIO = (
    2**28,
    200,
)  # of a whole file: bytes, as of a day that shows nothing, and so many times its own size


def most_of(file_bytes: int) -> int:
    """How much a file of that size may unpack to, bytes."""
    return _ALL_LARGEST + _ALL_RATIO * file_bytes


def unpack(chunk: Chunk) -> bytes:
    """A chunk's records, its checksum verified where it has one."""
    size, most = chunk.uncompressed_size, max(LARGEST, RATIO * len(chunk.data))
    if chunk.compression and size > most:
        raise ValueError(f"{len(chunk.data)} bytes unpack to {size}, expected up to {most}")
    if chunk.compression == "zstd":
        with zstandard.ZstdDecompressor().stream_reader(chunk.data, read_across_frames=True) as reader:
            out = reader.read(size + 1)
    elif chunk.compression == "lz4":
        import lz4.frame  # type: ignore[import-untyped,unused-ignore]

        out = lz4.frame.LZ4FrameDecompressor().decompress(chunk.data, size + 1)
    elif chunk.compression:
        raise SourceError(
            f"is compressed with {chunk.compression!r}, which cannot be read here; expected zstd, lz4 or none"
        )
    else:
        out = chunk.data
    if len(out) != size:
        raise ValueError(f"a chunk unpacks to {'more' if len(out) > size else len(out)} bytes, it says {size}")
    if chunk.uncompressed_crc and zlib.crc32(out) != chunk.uncompressed_crc:
        raise ValueError("its checksum differs")
    return out


def records_in(content: bytes) -> Iterator[McapRecord]:
    """Schemas, channels and messages of an unpacked chunk, one at a time."""
    stream = ReadDataStream(io.BytesIO(content))
    while stream.count < len(content):
        opcode, length = stream.read1(), stream.read8()
        if opcode == Opcode.MESSAGE:
            yield Message.read(stream, length)
        elif opcode == Opcode.CHANNEL:
            yield Channel.read(stream)
        elif opcode == Opcode.SCHEMA:
            yield Schema.read(stream)
        elif opcode == 0:
            raise ValueError("a record of no kind")
        else:
            stream.read(length)
