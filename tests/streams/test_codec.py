"""The Chunk codec: round trips, zero copies, other writers, and what is remembered."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import any_chunks, any_headers, assert_same, imu, samples

from kymo.streams.chunk import DTYPES, Chunk, Format, Header
from kymo.streams.chunk_pb2 import Chunk as Message
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import ChunkError

MANY = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


@given(st.data())
@MANY
def test_round_trip_of_everything(data: st.DataObject) -> None:
    header, codec, reader = data.draw(any_headers()), ChunkCodec(), ChunkCodec()
    for chunk in (data.draw(any_chunks(header)), data.draw(any_chunks(header)), data.draw(any_chunks(header))):
        raw = codec.encode(chunk)
        assert ChunkCodec().encode(chunk) == raw
        assert_same(ChunkCodec().decode(raw), chunk)  # the long way
        assert_same(reader.decode(raw), chunk)  # from the second on, mostly the short way
        assert codec.encode(reader.decode(raw)) == raw


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != "jpeg"])
def test_decoding_copies_nothing(dtype: str) -> None:
    fmt, codec = imu(3, dtype), ChunkCodec()
    header = Header("s", 5, fmt)
    raws = [codec.encode(Chunk(header, 4 * i, samples(fmt, 4, i), end=i == 3)) for i in range(3)]
    first = codec.decode(raws[0])
    for raw in raws:
        chunk = codec.decode(raw)
        assert np.shares_memory(chunk.data, np.frombuffer(raw, np.uint8))
        assert not chunk.data.flags.writeable
        assert chunk.header is first.header


@given(st.data())
@MANY
def test_other_writers_are_read_the_same(data: st.DataObject) -> None:
    chunk = data.draw(any_chunks())
    raw = ChunkCodec().encode(chunk)
    message = Message.FromString(raw)
    fields = fields_of(message.SerializeToString())
    shuffled = data.draw(st.permutations(fields))
    strange = [b"\xfa\x3f\x03abc", b"\xf8\x3f\x96\x01"]  # fields 1023, as bytes and as a number
    message.ClearField("data_bytes")
    again = [
        message.SerializeToString(),
        b"".join(shuffled),
        b"".join([strange[0], *shuffled, strange[1]]),
        raw + strange[0],
    ]
    codec = ChunkCodec()
    for known in (False, True):
        for other in again:
            assert_same(codec.decode(other), chunk)
        if not known:
            assert_same(codec.decode(raw), chunk)


def fields_of(raw: bytes) -> list[bytes]:
    """Fields of a serialised message, repeated ones kept together in order, found without the Protobuf library."""
    out: dict[int, bytes] = {}
    at = 0
    while at < len(raw):
        start = at
        tag, at = varint(raw, at)
        if tag & 7 == 0:
            _, at = varint(raw, at)
        elif tag & 7 == 2:
            size, at = varint(raw, at)
            at += size
        else:
            at += 8 if tag & 7 == 1 else 4
        out[tag >> 3] = out.get(tag >> 3, b"") + raw[start:at]
    return list(out.values())


def varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (raw[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if raw[at - 1] < 0x80:
            return value, at


FMT = imu(2)
TWO = np.zeros((2, 2), np.float32)


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk(Header("s", 0, FMT), 0, np.zeros((2, 3), np.float32)),
        Chunk(Header("s", 0, FMT), 0, np.zeros((2, 2))),
        Chunk(Header("s", 0, FMT), -1, TWO),
        Chunk(Header("s", 0, FMT), 2**53, TWO),
        Chunk(Header("s", 0, FMT), 2**70, TWO),
        Chunk(Header("", 0, FMT), 0, TWO),
        Chunk(Header("\ud800", 0, FMT), 0, TWO),
        Chunk(Header("s", 2**70, FMT), 0, TWO),
        Chunk(Header("s", 0, imu(2, rate=0)), 0, TWO),
        Chunk(Header("s", 0, imu(2, rate=0)), 0, TWO, np.zeros(3, np.int64)),
        Chunk(Header("s", 0, Format("imu", ("a", "a"), (), Fraction(1), "float32", (2,))), 0, TWO),
        Chunk(Header("s", 0, Format("imu", ("a",), (), Fraction(1), "float16", (1,))), 0, np.zeros((1, 1), np.float16)),
        Chunk(Header("s", 0, Format("v", ("a",), (), Fraction(1), "jpeg", ())), 0, np.array([b""], object)),
    ],
)
def test_what_no_reader_would_take_is_not_written(chunk: Chunk) -> None:
    with pytest.raises(ChunkError) as caught:
        ChunkCodec().encode(chunk)
    assert caught.value.reason == "invalid"


def test_what_is_remembered_is_bounded() -> None:
    codec = ChunkCodec(cache_size=8)
    for i in range(100):
        chunk = Chunk(Header(f"s{i}", 0, FMT), 0, TWO)
        for _ in range(2):
            assert_same(codec.decode(codec.encode(chunk)), chunk)
    for cache in (codec._parsed, codec._headers, codec._encoded):
        assert len(cache) == 8


def test_an_end_mark_of_an_irregular_stream() -> None:
    header, codec = Header("s", 77, imu(1, rate=0)), ChunkCodec()
    mark = Chunk(header, 9, np.empty((0, 1), np.float32), np.empty(0, np.int64), end=True)
    came = codec.decode(codec.encode(mark))
    assert_same(came, mark)
    assert came.start_ns == 77


def test_layout_in_bytes() -> None:
    """The fixed part of a message, written out: other programs rely on it."""
    raw = ChunkCodec().encode(Chunk(Header("s", 1, imu(1)), 258, np.ones((1, 1), np.float32)))
    assert raw[:14] == b"\x0d\x04\0\0\0\x11\x02\x01\0\0\0\0\0\0"
    assert raw[14:17] == b"\x1a\x01s"
    assert raw[-7:] == b"\xf2\x01\x04\0\0\x80\x3f"
