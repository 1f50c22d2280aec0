"""TFRecord files without TensorFlow. In: named texts, whole numbers, float32 arrays. Out: records of ``tf.train.Example``.

A record is its length (uint64), a checksum of that, the bytes, a checksum of those, all little-endian; checksums are
CRC-32C, rotated and offset as TensorFlow's documentation of the format has it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.codec import varint

Feature = str | int | list[int] | NDArray[np.float32]
_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed
_LANES_LOG2 = 11
_LENGTH, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")
Words = NDArray[np.uint32]


def record(data: bytes) -> bytes:
    """One record of a TFRecord file."""
    length = _LENGTH.pack(len(data))
    return b"".join((length, _CHECKSUM.pack(masked(length)), data, _CHECKSUM.pack(masked(data))))


def example(features: Mapping[str, Feature]) -> bytes:
    """A ``tf.train.Example``: texts become bytes features, whole numbers int64 ones, arrays float ones (flat, in C order)."""
    entries = b""
    for name, value in features.items():
        entry = _field(1, name.encode()) + _field(2, _feature(value))
        entries += _field(1, entry)
    return _field(1, entries)


def _feature(value: Feature) -> bytes:
    if isinstance(value, str):
        return _field(1, _field(1, value.encode()))
    if isinstance(value, int | list):
        numbers = [value] if isinstance(value, int) else value
        return _field(3, _field(1, b"".join(varint(number & (1 << 64) - 1) for number in numbers)))
    return _field(2, _field(1, np.ascontiguousarray(value, "<f4").tobytes()))


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of Protobuf's wire format."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def masked(data: bytes) -> int:
    """The checksum that stands in a TFRecord file."""
    crc = _checksum()(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@cache
def _checksum() -> Callable[[bytes], int]:
    """A compiled CRC-32C where one is installed."""
    try:
        found: Callable[[bytes], int] = import_module("aiokafka.record.util").calc_crc32c
    except (ImportError, AttributeError):
        return crc32c
    return found


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720, appendix B.4).

    The bytes are cut into lanes that numpy runs through side by side. A CRC is linear: that of two lanes is the first one's,
    moved on by as many zero bytes as the second has, plus the second one's.

    Examples
    --------
    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    if len(data) < 64:
        state = 0xFFFFFFFF
        for byte in data:
            state = int(_table()[(state ^ byte) & 255]) ^ state >> 8
        return state ^ 0xFFFFFFFF
    lanes = 1 << min(_LANES_LOG2, len(data).bit_length() // 2)
    length = -(-len(data) // lanes)
    # Zeros in front change nothing as long as the register is 0; that it begins as ones is the same as flipping 32 bits.
    padded = np.zeros(lanes * length, np.uint8)
    padded[-len(data) :] = np.frombuffer(data, np.uint8)
    padded[-len(data) :][:4] ^= 255
    table, columns = _table(), np.ascontiguousarray(padded.reshape(lanes, length).T)
    states = np.zeros(lanes, np.uint32)
    for column in columns:
        states = table[(states ^ column) & 255] ^ states >> 8
    while len(states) > 1:
        states = _apply(_zeros(length), states[::2]) ^ states[1::2]
        length *= 2
    return int(states[0]) ^ 0xFFFFFFFF


@cache
def _table() -> Words:
    states = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        states = np.where(states & 1, states >> 1 ^ np.uint32(_POLYNOMIAL), states >> 1)
    return states.astype(np.uint32)


@lru_cache(maxsize=64)
def _zeros(count: int) -> Words:
    """What becomes of each of the register's 32 bits after `count` zero bytes."""
    if count == 1:
        bits: Any = np.left_shift(np.uint32(1), np.arange(32, dtype=np.uint32))
        stepped: Words = _table()[bits & 255] ^ bits >> 8
        return stepped
    half = _zeros(count // 2)
    twice = _apply(half, half)
    return _apply(_zeros(1), twice) if count % 2 else twice


def _apply(operator: Words, states: Words) -> Words:
    out = np.zeros_like(states)
    for bit in range(32):
        out ^= operator[bit] * (states >> np.uint32(bit) & np.uint32(1))
    return out
