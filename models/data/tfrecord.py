"""TFRecord files. In: features of a window. Out: bytes, and back; no TensorFlow is needed.

A record is its length (uint64), a checksum of that, the bytes of a ``tf.train.Example``, a checksum of those, all little-endian;
checksums are CRC-32C, rotated and offset as TensorFlow's documentation of the format has it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kymo.streams.codec import varint
from kymo.streams.errors import SourceError

#: What a TFRecord says of a window under one name.
Feature = str | int | list[int] | NDArray[np.float32]
_LENGTH, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")
_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed


def tfrecord(data: bytes) -> bytes:
    """Frame one record of a TFRecord file."""
    length = _LENGTH.pack(len(data))
    return b"".join((length, _CHECKSUM.pack(_masked(length)), data, _CHECKSUM.pack(_masked(data))))


def tf_example(features: Mapping[str, Feature]) -> bytes:
    """Encode a ``tf.train.Example``: texts become bytes features, whole numbers int64 ones, arrays float ones (flat, in C order)."""
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
    """Encode a length-delimited field of Protobuf's wire format."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def read_records(path: Path) -> Iterator[bytes]:
    """Records of a TFRecord file, their checksums compared."""
    with path.open("rb") as file:
        number = 0
        while head := file.read(12):
            number += 1
            data = checksum = b""
            if head[8:] == _CHECKSUM.pack(_masked(head[:8])):
                data, checksum = file.read(_LENGTH.unpack(head[:8])[0]), file.read(4)
            if checksum != _CHECKSUM.pack(_masked(data)):
                raise SourceError(f"record {number} is damaged or cut off; export the windows again", path)
            yield data


def tf_features(example: bytes) -> dict[str, Any]:
    """Decode what :func:`tf_example` writes: texts, lists of whole numbers, float32 arrays.

    Examples
    --------
    >>> tf_features(tf_example({"label": "run", "n": -1, "x": np.float32([0.5])}))
    {'label': 'run', 'n': [-1], 'x': array([0.5], dtype=float32)}
    """
    ((_, features),) = _fields(example)
    entries = (dict(_fields(entry)) for _, entry in _fields(features))
    return {entry[1].decode(): _value(entry[2]) for entry in entries}


def _value(feature: bytes) -> Any:
    ((kind, content),) = _fields(feature)
    ((_, values),) = _fields(content) or [(1, b"")]
    if kind == 1:
        return values.decode()
    if kind == 2:
        return np.frombuffer(values, "<f4")
    numbers, at = [], 0
    while at < len(values):
        number, at = _varint(values, at)
        numbers.append(number - (1 << 64) if number >> 63 else number)
    return numbers


def _fields(message: bytes) -> list[tuple[int, bytes]]:
    """Number and content of each length-delimited field."""
    fields, at = [], 0
    while at < len(message):
        key, at = _varint(message, at)
        length, at = _varint(message, at)
        fields.append((key >> 3, message[at : at + length]))
        at += length
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def _masked(data: bytes) -> int:
    """Compute the checksum that stands in a TFRecord file."""
    crc = _checksum()(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@cache
def _checksum() -> Callable[[bytes], int]:
    """Take a compiled CRC-32C where one is installed."""
    try:
        compiled: Callable[[bytes], int] = import_module("aiokafka.record.util").calc_crc32c
    except (ImportError, AttributeError):
        return crc32c
    return compiled


def crc32c(data: bytes) -> int:
    """Compute a CRC-32C (RFC 3720, appendix B.4).

    Examples
    --------
    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    register, table = 0xFFFFFFFF, _table()
    for byte in data:
        register = table[(register ^ byte) & 255] ^ register >> 8
    return register ^ 0xFFFFFFFF


@cache
def _table() -> list[int]:
    states = list(range(256))
    for _ in range(8):
        states = [state >> 1 ^ (_POLYNOMIAL if state & 1 else 0) for state in states]
    return states
