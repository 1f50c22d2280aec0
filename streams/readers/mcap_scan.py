"""Everything readable in an MCAP file, in the file's order. In: bytes. Out: schema, channel and message, and what was
wrong on the way.

A file that its writer did not close, or that was cut, is read as far as it is whole; a damaged chunk is passed over.
Both are noted.

A hundred kilobytes of zstd can stand for gigabytes. What a chunk says of its size, and what really comes out, are both held against
what recordings are: nothing is reserved on a file's word alone.
"""

from __future__ import annotations

import contextlib
import io
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import IO

import zstandard
from mcap.data_stream import ReadDataStream
from mcap.exceptions import EndOfFile, InvalidMagic, RecordLengthLimitExceeded
from mcap.opcode import Opcode
from mcap.reader import make_reader
from mcap.records import Attachment, Channel, Chunk, DataEnd, Footer, Header, McapRecord, Message, Metadata, Schema
from mcap.stream_reader import StreamReader

from kymo.streams.errors import SourceError
from kymo.streams.words import brief, many

_LARGEST = 2**27  # bytes of a chunk; recorders make chunks of about 2**20
_RATIO = 16  # or so many times what it takes packed, as a chunk of large images may
# Of a whole file: bytes, as of a day that shows nothing, and so many times its own size.
_ALL_LARGEST, _ALL_RATIO = 2**28, 200

Item = tuple[Schema | None, Channel, Message]


class Scan:
    def __init__(self, raw: IO[bytes], path: str, *, empty: bool = False, limited: bool = True) -> None:
        self._raw, self._path, self._empty, self._limited = raw, path, empty, limited
        self._schemas: dict[int, Schema] = {}
        self._channels: dict[int, Channel] = {}
        self._damaged: list[tuple[int, str]] = []  # where each ends, and what is wrong with it
        self._size = self._unpacked = 0
        self._orphans = 0
        self.notes: list[str] = []  # what was damaged
        self.metadata: dict[str, str] = {}  # of the file's metadata records, ``record.member``
        self.attachments: list[str] = []
        self.compressions: Counter[str] = Counter()  # how many MCAP chunks have which
        self.header: Header | None = None  # profile and library

    @property
    def channels(self) -> Mapping[int, tuple[Channel, Schema | None]]:
        """By id, those that the file declares, without messages too; whole once the messages are read."""
        return {number: (channel, self._schemas.get(channel.schema_id)) for number, channel in self._channels.items()}

    def messages(self) -> Iterator[Item]:
        count = 0
        # Channels as the summary has them: those in a damaged chunk are known all the same.
        with contextlib.suppress(Exception):  # a file that was cut has none, a damaged one gives any error
            self._raw.seek(0)
            if summary := make_reader(self._raw).get_summary():
                self._schemas, self._channels = dict(summary.schemas), dict(summary.channels)
        for record in self._records():
            for item in self._inside(record) if isinstance(record, Chunk) else (record,):
                if isinstance(item, Message):
                    channel = self._channels.get(item.channel_id)
                    if channel is None:
                        self._orphans += 1
                        continue
                    count += 1
                    yield self._schemas.get(channel.schema_id), channel, item
                else:
                    self._note(item)
        if self._damaged:
            lost = many(len(self._damaged), "damaged MCAP chunk")
            self.notes.append(f"{lost} passed over, the first ends at byte {self._damaged[0][0]}{self._damaged[0][1]}")
        if self._orphans:
            self.notes.append(f"{many(self._orphans, 'message')} of channels that the file does not declare: not read")
        if not count and not self._empty:
            raise SourceError("; ".join(["holds no whole message", *self.notes]), self._path)

    def _inside(self, chunk: Chunk) -> Iterator[McapRecord]:
        """Records of a chunk, as far as it is whole."""
        self.compressions[chunk.compression or "none"] += 1
        limit, end = _ALL_LARGEST + _ALL_RATIO * self._size, self._raw.tell()
        try:
            content = unpack(chunk)
            self._unpacked += len(content) if chunk.compression else 0
            if self._limited and self._unpacked > limit:
                raise SourceError(f"{self._size} bytes of MCAP unpack to {self._unpacked}, expected up to {limit}")
            yield from _records_in(content)
        except Exception as error:  # the checksum or the decompressor tells, each in its own way
            if isinstance(error, SourceError) and self._limited:
                raise SourceError(error.message, self._path) from None
            self._damaged.append((end, f": {brief(error)}" if isinstance(error, ValueError) else ""))

    def _records(self) -> Iterator[McapRecord]:
        self._size = size = self._raw.seek(0, io.SEEK_END)
        self._raw.seek(0)
        if not size:
            raise SourceError("is empty; expected an MCAP file", self._path)
        records = StreamReader(self._raw, emit_chunks=True, record_size_limit=size).records
        whole_bytes = 0
        while True:
            try:
                record = next(records, None)
            except Exception as error:  # a damaged length or text gives whatever error its parser has
                if isinstance(error, InvalidMagic) or (whole_bytes == 0 and size < 8):
                    raise SourceError("is no MCAP file (its first bytes say so)", self._path) from None
                cut = isinstance(error, (EndOfFile, RecordLengthLimitExceeded)) or self._raw.tell() >= size
                state = "ends within a record" if cut else "is damaged"
                self.notes.append(f"the file {state}: whole up to byte {whole_bytes} of {size}, the rest is not read")
                return
            whole_bytes = self._raw.tell()
            if record is None or isinstance(record, (DataEnd, Footer)):
                return
            yield record

    def _note(self, record: McapRecord) -> None:
        if isinstance(record, Schema):
            self._schemas[record.id] = record
        elif isinstance(record, Channel):
            self._channels[record.id] = record
        elif isinstance(record, Metadata):
            self.metadata |= {f"{record.name}.{name}": text for name, text in record.metadata.items()}
        elif isinstance(record, Attachment):
            self.attachments.append(record.name)
        elif isinstance(record, Header):
            self.header = record


def unpack(chunk: Chunk) -> bytes:
    """A chunk's records, its checksum verified where it has one."""
    size, limit = chunk.uncompressed_size, max(_LARGEST, _RATIO * len(chunk.data))
    if chunk.compression and size > limit:
        raise ValueError(f"{len(chunk.data)} bytes unpack to {size}, expected up to {limit}")
    if chunk.compression == "zstd":
        with zstandard.ZstdDecompressor().stream_reader(chunk.data, read_across_frames=True) as reader:
            content = reader.read(size + 1)
    elif chunk.compression == "lz4":
        import lz4.frame  # type: ignore[import-untyped,unused-ignore]

        content = lz4.frame.LZ4FrameDecompressor().decompress(chunk.data, size + 1)
    elif chunk.compression:
        raise SourceError(
            f"is compressed with {chunk.compression!r}, which cannot be read here; expected zstd, lz4 or none"
        )
    else:
        content = chunk.data
    if len(content) != size:
        raise ValueError(f"a chunk unpacks to {'more' if len(content) > size else len(content)} bytes, it says {size}")
    if chunk.uncompressed_crc and zlib.crc32(content) != chunk.uncompressed_crc:
        raise ValueError("its checksum differs")
    return content


def _records_in(content: bytes) -> Iterator[McapRecord]:
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
