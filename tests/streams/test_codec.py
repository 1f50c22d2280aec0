"""The Chunk codec: round trips, zero copies, other writers, and what is remembered; what is damaged, absurd or contradicts itself."""

from __future__ import annotations

import random
import tracemalloc
from dataclasses import replace
from fractions import Fraction
from typing import Any

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
        Chunk(Header("s", 0, FMT), 0, TWO, complete_ns=5),
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


def test_a_progress_mark_is_an_empty_chunk_to_whoever_does_not_know_it() -> None:
    header, codec = Header("s", 77, imu(1, rate=0)), ChunkCodec()
    plain = Chunk(header, 9, np.empty((0, 1), np.float32), np.empty(0, np.int64))
    mark = replace(plain, complete_ns=-5)
    raw = codec.encode(mark)
    assert_same(codec.decode(raw), mark)
    data = codec.encode(plain)
    assert raw == data.replace(b"\xf2\x01\x00", b"\xa1\x01" + (-5).to_bytes(8, "little", signed=True) + b"\xf2\x01\x00")


def test_layout_in_bytes() -> None:
    """The fixed part of a message, written out: other programs rely on it."""
    raw = ChunkCodec().encode(Chunk(Header("s", 1, imu(1)), 258, np.ones((1, 1), np.float32)))
    assert raw[:14] == b"\x0d\x04\0\0\0\x11\x02\x01\0\0\0\0\0\0"
    assert raw[14:17] == b"\x1a\x01s"
    assert raw[-7:] == b"\xf2\x01\x04\0\0\x80\x3f"


def assert_consistent(chunk: Chunk) -> None:
    """Whatever decodes must hold together, and be written and read again."""
    fmt = chunk.header.format
    assert chunk.session
    assert chunk.stream
    assert fmt.dtype in DTYPES
    assert len(set(fmt.channels)) == len(fmt.channels) > 0
    assert len(fmt.units) in (0, len(fmt.channels))
    assert 0 <= chunk.first_index <= chunk.end_index <= (2**60 if chunk.header.chain else 2**52)
    assert chunk.header.chain or (fmt.step, fmt.span, chunk.filled) == (1, 1, ())
    assert not fmt.rate or -(2**63) <= chunk.start_ns <= chunk.header.time_ns(chunk.end_index) < 2**63
    if fmt.dtype == "jpeg":
        assert all(type(frame) is bytes and frame for frame in chunk.data)
    else:
        assert fmt.shape[-1] == len(fmt.channels)
        assert chunk.data.shape[1:] == fmt.shape
        assert chunk.data.dtype == np.dtype(fmt.dtype)
    assert (chunk.times_ns is not None) or fmt.rate > 0
    assert chunk.times_ns is None or len(chunk.times_ns) == chunk.count
    assert isinstance(chunk.start_ns, int)
    codec = ChunkCodec()
    assert_same(codec.decode(codec.encode(chunk)), chunk)


def damaged(rng: random.Random, raw: bytes) -> bytes:
    """One to four wounds."""
    out = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        kind, at = rng.randint(0, 7), rng.randrange(len(out) or 1)
        if kind <= 2 and out:
            out[at] ^= 1 << rng.randint(0, 7)
        elif kind == 3 and out:
            out[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif kind == 4:
            out = out[:at]
        elif kind == 5:
            out[at:at] = rng.randbytes(rng.randint(1, 9))
        elif kind == 6:
            out[at:at] = b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f"  # an absurd size or number, if it lands on one
        else:
            del out[at : at + rng.randint(1, 12)]
    return bytes(out)


def test_twenty_thousand_damaged_messages() -> None:
    rng, codec = random.Random(20), ChunkCodec(cache_size=50)
    good = []
    for i, dtype in enumerate(DTYPES * 2):
        fmt = (
            imu(1 + i % 3, dtype, 0 if i > 6 else 100)
            if dtype != "jpeg"
            else Format("video", ("rgb",), (), Fraction(i), "jpeg", ())
        )
        count = 3 + i
        data: Any = np.empty(count, object) if dtype == "jpeg" else samples(fmt, count, i)
        if dtype == "jpeg":
            data[:] = [rng.randbytes(20 + i) for _ in range(count)]
        times = np.arange(count, dtype=np.int64) if fmt.rate == 0 else None
        chunk = Chunk(Header(f"s{i}", i, fmt), 10 * i, data, times)
        good.append((chunk, codec.encode(chunk)))
    refused, decoded, told = 0, 0, set()
    tracemalloc.start()
    for n in range(20_000):
        raw = damaged(rng, good[n % len(good)][1])
        try:
            assert_consistent(codec.decode(raw))
            decoded += 1
        except ChunkError as error:
            refused += 1
            told.add((error.reason, len(str(error)) < 600))
        if n % 100 == 0:
            for chunk, intact in good:
                assert_same(codec.decode(intact), chunk)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 2**20, f"{peak} bytes at the worst, for messages of {max(len(raw) for _, raw in good)}"
    assert told == {("undecodable", True), ("invalid", True)}
    assert refused > 5_000
    assert decoded > 1_000


@given(st.data())
@MANY
def test_damage_never_changes_what_comes_after(data: st.DataObject) -> None:
    chunk = data.draw(any_chunks())
    codec, raw = ChunkCodec(), ChunkCodec().encode(chunk)
    for seed in data.draw(st.lists(st.integers(0, 10**6), max_size=8)):
        wounded = damaged(random.Random(seed), raw)
        results = []
        for reader in (codec, ChunkCodec()):  # one that has seen much, one that has seen nothing
            try:
                results.append(reader.decode(wounded))
            except ChunkError as error:
                results.append(error.reason)
        if isinstance(results[0], Chunk) and isinstance(results[1], Chunk):
            assert_same(results[0], results[1])
        else:
            assert results[0] == results[1]
        assert_same(codec.decode(raw), chunk)


def plain(**other: Any) -> bytes:
    """A message of 2 samples of 2 channels, with some fields otherwise."""
    fields: dict[str, Any] = {
        "first_index": 0,
        "session": "s",
        "stream": "imu",
        "rate_num": 100,
        "rate_den": 1,
        "channels": ["a", "b"],
        "dtype": "float32",
        "shape": [2],
        "data": b"\0" * 16,
    }
    return Message(**{k: v for k, v in (fields | other).items() if v is not None}).SerializeToString()


@pytest.mark.parametrize(
    "other",
    [
        {"shape": [2**31, 2**31, 4, 2], "data": b""},
        {"shape": [2**32 - 1, 2**32 - 1, 2], "data": b""},
        {"shape": [2**32 - 1, 2], "data": b""},
        {"shape": [2**31, 2**31, 2]},
        {"shape": []},
        {"shape": [3]},
        {"shape": [0, 2]},
        {"shape": [1, 1, 1, 1, 2]},
        {"data": b"\0" * 15},
        {"data_bytes": 12},
        {"session": ""},
        {"stream": "x" * 300},
        {"chain": "x" * 300},
        {"channels": ["a", "a"]},
        {"channels": ["a", "b" * 5000]},
        {"units": ["g"]},
        {"units": ["g", "m" * 5000]},
        {"rate_den": 0},
        {"rate_num": 2**64 - 1},
        {"step_num": 1},
        {"rate_num": 0},
        {"times_ns": b"\0" * 8},
        {"first_index": -1},
        {"first_index": 2**53},
        {"origin_ns": 2**63 - 1},
        {"first_index": 2**52 - 1},
        {"rate_num": 1, "first_index": 2**33},
        {"origin_ns": 2**62 - 1},
        {"session": "a\nb"},
        {"stream": "imu\0"},
        {"channels": ["a", "\u2028"]},
        {"units": ["g", "\x9b"]},
        {"span": 1000},
        {"step_num": 7, "step_den": 1},
        {"step_num": 2**64 - 1, "step_den": 2**64 - 2},
        {"filled": [0, 1, 0]},
        {"chain": "x", "filled": [5, 1, 0]},
        {"chain": "x", "filled": [0, 5, 0, 3, 9, 0]},
        {"chain": "x", "filled": [0, 5]},
        {"chain": "x", "filled": [0, 5, 1], "absent": ["4 2 a"]},
        {"chain": "x", "filled": [0, 5, 1], "absent": ["2 9999999999999999 a"]},
        {"chain": "x", "filled": [0, 5, 1], "absent": ["2 4 a\x1bb"]},
        {"chain": "x", "step_num": 2**64 - 1, "step_den": 1},
        {"chain": "x", "span": 2**32 - 1, "step_num": 2**53, "step_den": 1},
        {"rate_num": 0, "times_ns": np.array([5, 4]).tobytes()},
        {"rate_num": 0, "times_ns": np.array([5, 2**62]).tobytes()},
        {"rate_num": 0, "times_ns": np.array([5, 6]).tobytes(), "complete_ns": 2**62},
        {"complete_ns": 5},
        {"rate_num": 0, "times_ns": np.array([-(2**63), 4]).tobytes()},
        {"dtype": "jpeg", "shape": [2], "frame_bytes": [16]},
        {"dtype": "jpeg", "shape": [], "frame_bytes": [1] * (2**16 + 1), "data": b"x" * (2**16 + 1)},
        {"dtype": "object"},
        {"dtype": ""},
        {"dtype": "jpeg", "shape": [], "frame_bytes": [2**32 - 1] * 9},
        {"dtype": "jpeg", "shape": [], "frame_bytes": [16, 0]},
        {"dtype": "jpeg", "shape": [], "frame_bytes": []},
    ],
)
def test_messages_that_contradict_themselves(other: dict[str, Any]) -> None:
    with pytest.raises(ChunkError) as caught:
        ChunkCodec().decode(plain(**other))
    assert caught.value.reason == "invalid"


@pytest.mark.parametrize("raw", [b"", b"\0", b"no message", plain(data=None), plain(first_index=None), plain()[:-1]])
def test_bytes_that_are_no_message(raw: bytes) -> None:
    with pytest.raises(ChunkError) as caught:
        ChunkCodec().decode(raw)
    assert caught.value.reason == "undecodable"


def test_a_message_of_headers_alone_fills_no_memory() -> None:
    names = [f"{i:0100d}" for i in range(4000)]
    codec = ChunkCodec()
    codec.decode(plain(channels=names, shape=[4000], data=b""))
    assert not codec._parsed
    assert not codec._headers
