"""Chunk ⇄ Protobuf. In: Chunks. Out: bytes as `chunk.proto` describes them, in Kafka and in the archive; and back.

Decoding copies no sample: `data` of the result is a view of the message. The part of a message that is the same in
every chunk of a stream is parsed once and looked up afterwards, so that a chunk costs about as much as three slices.

Whatever is decoded can be worked with: no step, window or event behind it meets a number, a name or a shape that it has no answer
to. A message that does not pass is rejected once, here, with a ChunkError.
"""

from __future__ import annotations

import math
import re
import struct
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from typing import TypeVar

import numpy as np
from google.protobuf.message import DecodeError, EncodeError
from numpy.typing import NDArray

from kymo.streams.chunk import DTYPES, Array, Chunk, Format, Header, index_at
from kymo.streams.chunk_pb2 import Chunk as Message
from kymo.streams.errors import ChunkError

#: Name of the message, which the archive writes as its schema's.
CHUNK_SCHEMA = "kymo.Chunk"
K = TypeVar("K")
V = TypeVar("V")
_PREFIX = struct.Struct("<BIBq")  # tag of data_bytes, data_bytes, tag of first_index, first_index
_TAG_BYTES, _TAG_INDEX, _TAG_DATA = 0x0D, 0x11, b"\xf2\x01"
_MAX_HEADER = 2**16  # bytes of a header that is worth remembering
_MAX_FRAMES = 2**16  # images a chunk
_MAX_NAME, _MAX_CHANNELS, _MAX_RATE = 200, 4096, 10**9
_MAX_SAMPLE = 2**26  # numbers a sample, as an uncompressed video frame may have
# Half of what stays exact in JSON readers that hold numbers as float64: windows reach beyond samples.
_MAX_INDEX = 2**52
_ABSENT = re.compile(r"([0-9]{1,16}) ([0-9]{1,16}) (.{1,200})")
_MAX_TIME = 2**62  # ns either side of 1970: all times of a chunk and of what is made of it fit into 64 bits
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # a line feed, say, ends a line, and a name within a key


class ChunkCodec:
    """Encodes and decodes Chunks; one a thread.

    >>> import numpy as np
    >>> from kymo.streams.chunk import signal_format
    >>> header = Header("s1", 0, signal_format("imu", ("ax", "ay"), 100))
    >>> codec = ChunkCodec()
    >>> chunk = codec.decode(codec.encode(Chunk(header, 50, np.ones((3, 2), np.float32))))
    >>> chunk, chunk.data.shape
    (Chunk(s1/imu[50:53]), (3, 2))
    """

    def __init__(self, cache_size: int = 10_000) -> None:
        self._parsed: OrderedDict[bytes, tuple[Header, np.dtype[np.generic], int, int, bool]] = OrderedDict()
        self._headers: OrderedDict[Header, Header] = OrderedDict()
        self._formats: OrderedDict[Format, Format] = OrderedDict()
        # By identity, which costs no hashing; the Header is kept with it, so that no other can get its id.
        self._encoded: OrderedDict[tuple[int, bool], tuple[Header, bytes, int]] = OrderedDict()
        self._cache_size = cache_size

    def encode(self, chunk: Chunk) -> bytes:
        header, count = chunk.header, len(chunk.data)
        known = self._encoded.get((id(header), chunk.end))
        if known is None:
            message = _header_message(header, chunk.end)
            limit = last_index(_checked_header(message))
            entry = (header, message.SerializeToString(deterministic=True), limit)
            known = _remember(self._encoded, (id(header), chunk.end), entry, self._cache_size)
        data, sizes = _data_bytes(chunk)
        if not 0 <= chunk.first_index <= known[2] - count or len(data) >= 2**31:
            raise _invalid(header, f"first_index {chunk.first_index}, {len(data)} bytes of data")
        extra, times = b"", chunk.times_ns
        if times is not None or sizes or chunk.filled or not header.format.rate or chunk.complete_ns is not None:
            if (times is None and not header.format.rate) or (times is not None and len(times) != count):
                raise _invalid(header, f"{'no' if times is None else len(times)} times for {count} samples")
            packed = b"" if times is None else _checked_times(header, times.astype("<i8")).tobytes()
            filled = [int(number) for gap in chunk.filled for number in gap]
            mark = _checked_mark(header, chunk.complete_ns)
            absent = [f"{start} {end} {stream}" for start, end, stream in chunk.absent]
            message = Message(times_ns=packed, frame_bytes=sizes, filled=filled, complete_ns=mark, absent=absent)
            extra = message.SerializeToString(deterministic=True)
        prefix = _PREFIX.pack(_TAG_BYTES, len(data), _TAG_INDEX, chunk.first_index)
        return b"".join((prefix, known[1], extra, _data_tag(len(data)), data))

    def decode(self, raw: bytes) -> Chunk:
        """Chunk of a message; its `data` is a read-only view of `raw`."""
        if len(raw) >= _PREFIX.size:
            tag, size, tag2, first_index = _PREFIX.unpack_from(raw)
            start, data_tag = len(raw) - size, _data_tag(size)
            head_end = start - len(data_tag)
            if tag == _TAG_BYTES and tag2 == _TAG_INDEX and head_end >= _PREFIX.size:
                known = self._parsed.get(raw[_PREFIX.size : head_end])
                if known is not None and raw[head_end:start] == data_tag:
                    header, dtype, sample_bytes, limit, end = known
                    count, odd_bytes = divmod(size, sample_bytes)
                    if odd_bytes == 0 and 0 <= first_index <= limit - count:
                        data = np.frombuffer(raw, dtype, count * (sample_bytes // dtype.itemsize), start)
                        return Chunk(header, first_index, data.reshape(count, *header.format.shape), None, end)
        return self._decode_new(raw)

    def _decode_new(self, raw: bytes) -> Chunk:
        """The first chunk of a stream, an irregular one, or one that another writer laid out otherwise."""
        message = Message()
        try:
            message.ParseFromString(raw)
        except DecodeError as error:
            raise ChunkError("undecodable", f"{len(raw)} bytes are no Chunk message ({error})") from None
        if not message.HasField("data") or not message.HasField("first_index"):
            raise ChunkError("undecodable", f"{len(raw)} bytes hold no Chunk: `data` or `first_index` is absent")
        header, content = _checked_header(message), message.data
        if len(raw) - len(content) <= _MAX_HEADER:
            header = self._headers.get(header) or self._shared(header)
        data, limit = _samples(message, content, header), last_index(header)
        if not 0 <= message.first_index <= limit - len(data):
            raise _invalid(header, f"first_index {message.first_index}, expected 0 to {limit - len(data)}")
        times = None
        mark = _checked_mark(header, message.complete_ns if message.HasField("complete_ns") else None)
        if message.times_ns or header.format.rate == 0:
            if len(message.times_ns) != 8 * len(data):
                raise _invalid(header, f"{len(message.times_ns)} bytes of times for {len(data)} samples")
            times = _checked_times(header, np.frombuffer(message.times_ns, "<i8"))
        elif header.format.dtype != "jpeg" and not message.filled and len(raw) - len(content) <= _MAX_HEADER:
            self._learn(raw, message, header, limit)
        filled, absent = _checked_filled(message), _checked_absent(message)
        return Chunk(header, message.first_index, data, times, message.end, filled, mark, absent)

    def _shared(self, header: Header) -> Header:
        """Remember a header; those of one format share it, so that comparing formats is mostly comparing identities, too."""
        fmt = self._formats.get(header.format) or _remember(
            self._formats, header.format, header.format, self._cache_size
        )
        return _remember(self._headers, header, replace(header, format=fmt), self._cache_size)

    def _learn(self, raw: bytes, message: Message, header: Header, limit: int) -> None:
        head_end = len(raw) - len(message.data) - len(_data_tag(len(message.data)))
        constant = _header_message(header, message.end).SerializeToString(deterministic=True)
        if raw[_PREFIX.size : head_end] == constant and raw[0] == _TAG_BYTES and raw[5] == _TAG_INDEX:
            dtype = _little(header.format.dtype)
            sample = dtype.itemsize * math.prod(header.format.shape)
            _remember(self._parsed, constant, (header, dtype, sample, limit, message.end), self._cache_size)


def _remember(cache: OrderedDict[K, V], key: K, value: V, size: int) -> V:
    cache[key] = value
    if len(cache) > size:
        cache.popitem(last=False)
    return value


def _invalid(header: Header, text: str) -> ChunkError:
    return ChunkError("invalid", f"{header.session}/{header.format.stream}: {text}")


def _little(dtype: str) -> np.dtype[np.generic]:
    return np.dtype(dtype).newbyteorder("<")


def varint(value: int) -> bytes:
    """A whole number from 0 in Protobuf's wire format."""
    wire_bytes = bytearray()
    while value > 0x7F:
        wire_bytes.append(value & 0x7F | 0x80)
        value >>= 7
    wire_bytes.append(value)
    return bytes(wire_bytes)


@lru_cache(maxsize=4096)
def _data_tag(size: int) -> bytes:
    """What stands before so many bytes of data."""
    return _TAG_DATA + varint(size)


def _header_message(header: Header, end: bool) -> Message:
    fmt = header.format
    try:
        return Message(
            session=header.session,
            stream=fmt.stream,
            chain=header.chain,
            origin_ns=header.origin_ns,
            rate_num=fmt.rate.numerator,
            rate_den=fmt.rate.denominator,
            channels=fmt.channels,
            units=fmt.units,
            dtype=fmt.dtype,
            shape=fmt.shape,
            step_num=fmt.step.numerator,
            step_den=fmt.step.denominator,
            span=fmt.span,
            end=end,
        )
    except (ValueError, TypeError, EncodeError) as error:
        raise ChunkError("invalid", f"{header.session!r}/{fmt.stream!r}: header cannot be written ({error})") from None


def _data_bytes(chunk: Chunk) -> tuple[bytes, list[int]]:
    """A chunk's samples as bytes, and the size of each frame where they are images."""
    fmt = chunk.header.format
    if fmt.dtype == "jpeg":
        frames = [bytes(frame) for frame in chunk.data]
        if not all(frames):
            raise _invalid(chunk.header, "an image of no bytes")
        return b"".join(frames), [len(frame) for frame in frames]
    if chunk.data.shape[1:] != fmt.shape or chunk.data.dtype != fmt.dtype:
        samples, expected = f"{chunk.data.dtype}{chunk.data.shape[1:]}", f"{fmt.dtype}{fmt.shape}"
        raise _invalid(chunk.header, f"samples are {samples}, their header says {expected}")
    return np.ascontiguousarray(chunk.data).astype(_little(fmt.dtype), copy=False).tobytes(), []


def _samples(m: Message, content: bytes, header: Header) -> Array:
    """Samples as a view of `content`, which is the message's `data` (reading that field copies it)."""
    fmt = header.format
    if m.HasField("data_bytes") and m.data_bytes != len(content):
        raise _invalid(header, f"{len(content)} bytes of data where {m.data_bytes} were announced")
    if fmt.dtype == "jpeg":
        sizes = list(m.frame_bytes)
        if len(sizes) > _MAX_FRAMES or sum(sizes) != len(content) or 0 in sizes:
            wrong = f"{len(sizes)} frame sizes for {len(content)} bytes"
            raise _invalid(header, f"{wrong}, expected up to {_MAX_FRAMES} above 0 that add up to them")
        frames, at = np.empty(len(sizes), object), 0
        for i, size in enumerate(sizes):
            frames[i] = content[at : at + size]
            at += size
        return frames
    dtype = _little(fmt.dtype)
    count, odd_bytes = divmod(len(content), dtype.itemsize * math.prod(fmt.shape))
    if odd_bytes:
        raise _invalid(header, f"{len(content)} bytes are no whole number of {fmt.dtype}{fmt.shape} samples")
    return np.frombuffer(content, dtype).reshape(count, *fmt.shape)


def _checked_header(m: Message) -> Header:
    for wrong in chain(_odd_names(m), _odd_numbers(m)):
        raise ChunkError("invalid", wrong)
    step = Fraction(m.step_num, m.step_den) if m.step_num else Fraction(1)
    rate, channels, units = Fraction(m.rate_num, m.rate_den), tuple(m.channels), tuple(m.units)
    fmt = Format(m.stream, channels, units, rate, m.dtype, tuple(m.shape), step, m.span or 1)
    return Header(m.session, m.origin_ns, fmt, m.chain)


def _odd_names(m: Message) -> Iterator[str]:
    channels, units, where = tuple(m.channels), tuple(m.units), f"{m.session}/{m.stream}"
    if not (0 < len(m.session) <= _MAX_NAME and 0 < len(m.stream) <= _MAX_NAME):
        yield f"session {m.session[:40]!r}, stream {m.stream[:40]!r}: 1 to {_MAX_NAME} characters each"
    for name in (m.session, m.stream, m.chain, *channels, *units):
        if CONTROL.search(name):
            yield f"the name {name[:40]!r} holds a control character, expected letters, digits, signs"
    if not 0 < len(channels) <= _MAX_CHANNELS or len(set(channels)) != len(channels):
        yield f"{where}: {len(channels)} channels, expected 1 to {_MAX_CHANNELS} with different names"
    if units and len(units) != len(channels):
        yield f"{where}: {len(units)} units for {len(channels)} channels"
    if max(len(m.chain), *map(len, channels), *map(len, units)) > _MAX_NAME:
        yield f"{where}: names of channels, units and chain hold up to {_MAX_NAME} characters each"


def _odd_numbers(m: Message) -> Iterator[str]:
    where, shape = f"{m.session}/{m.stream}", tuple(m.shape)
    if m.rate_den == 0 or m.rate_num > _MAX_RATE * m.rate_den or (m.step_num and not m.step_den):
        yield f"{where}: rate {m.rate_num}/{m.rate_den} Hz, step {m.step_num}/{m.step_den}"
    if not -_MAX_TIME < m.origin_ns < _MAX_TIME:
        yield f"{where}: origin {m.origin_ns} ns, expected it within {_MAX_TIME}"
    step, span = Fraction(m.step_num, m.step_den) if m.step_num else Fraction(1), m.span or 1
    if not m.chain and (step != 1 or span != 1 or m.filled):
        yield (
            f"{where}: step {step}, span {span} and {len(m.filled) // 3} ranges of a raw chunk, expected 1, 1 and none; "
            f"a derived one names its `chain`"
        )
    if m.dtype not in DTYPES:
        yield f"{where}: dtype {m.dtype[:40]!r}, expected one of {', '.join(DTYPES)}"
    if m.dtype == "jpeg":
        if shape:
            yield f"{where}: shape {shape[:8]} of an image, expected none: the image says it"
    elif not shape or shape[-1] != len(m.channels) or 0 in shape or len(shape) > 4:
        last = f"the {len(m.channels)} channels"
        yield f"{where}: shape {shape[:8]} of a sample, expected its last axis to be {last}"
    if math.prod(shape) > _MAX_SAMPLE:
        yield f"{where}: shape {shape} of a sample, expected up to {_MAX_SAMPLE} numbers"


def last_index(header: Header) -> int:
    """Where samples of a stream must end: their numbers and times, and those of the raw samples beneath them, stay exact."""
    fmt = header.format
    if not header.chain:
        in_time = index_at(header.origin_ns, fmt.rate, _MAX_TIME) if fmt.rate else _MAX_INDEX
        return max(0, min(_MAX_INDEX, in_time))
    # Rows may end behind the raw samples, and be more: what is made of a chunk at the limit must be written all the same.
    in_time = index_at(header.origin_ns, fmt.rate, _MAX_TIME * 3 // 2) if fmt.rate else _MAX_INDEX
    return max(0, min(256 * _MAX_INDEX, in_time, int((2 * _MAX_INDEX - fmt.span) / fmt.step)))


def _checked_times(header: Header, times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Times of an irregular stream's samples, ``(n,)``, Unix ns, if they do not go back."""
    if len(times) and ((times[1:] < times[:-1]).any() or times[0] <= -_MAX_TIME or times[-1] >= _MAX_TIME):
        raise _invalid(header, f"its {len(times)} times go back, or are beyond {_MAX_TIME} ns")
    return times


def _checked_mark(header: Header, time_ns: int | None) -> int | None:
    """A progress mark, which only an irregular stream has."""
    if time_ns is not None and (header.format.rate or not -_MAX_TIME < time_ns < _MAX_TIME):
        raise _invalid(header, f"complete_ns {time_ns}, expected it of irregular streams, within {_MAX_TIME} ns")
    return time_ns


def _checked_filled(m: Message) -> tuple[tuple[int, int, bool], ...]:
    """Ranges of raw samples that were interpolated, one behind the other."""
    numbers = list(m.filled)
    gaps = tuple((a, b, bool(c)) for a, b, c in zip(*[iter(numbers)] * 3, strict=False))
    ends = [0, *(b for _, b, _ in gaps)]
    if len(numbers) % 3 or any(not end <= a < b < _MAX_INDEX for end, (a, b, _) in zip(ends, gaps, strict=False)):
        raise ChunkError("invalid", f"{m.session}/{m.stream}: interpolated ranges {numbers[:6]} are no rising ranges")
    return gaps


def _checked_absent(m: Message) -> tuple[tuple[int, int, str], ...]:
    """Ranges of ticks at which one of several inputs was not there; they lie within those that were interpolated."""
    parts = [_ABSENT.fullmatch(text) for text in m.absent]
    ranges = tuple((int(part[1]), int(part[2]), part[3]) for part in parts if part)
    wrong = any(not start < end < _MAX_INDEX or CONTROL.search(stream) for start, end, stream in ranges)
    if wrong or len(ranges) < len(parts) or (ranges and not m.filled):
        raise ChunkError("invalid", f'{m.session}/{m.stream}: absent {list(m.absent)[:3]}, expected "START END STREAM"')
    return ranges
