"""Snapshots as bytes. In: a dict of JSON values and Headers, and arrays. Out: bytes, the same for the same memory, and back."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from streams.chunk import Array, Format, Header

_LENGTH = struct.Struct("<I")


def pack(meta: Mapping[str, Any], arrays: Mapping[str, Array] | None = None) -> bytes:
    """Bytes of a Stage's memory."""
    described, blobs = [], []
    for name, array in (arrays or {}).items():
        if array.dtype == object:  # frames as bytes
            described.append([name, "bytes", [len(frame) for frame in array]])
            blobs += [bytes(frame) for frame in array]
            continue
        described.append([name, array.dtype.str, list(array.shape)])
        blobs.append(np.ascontiguousarray(array).tobytes())
    text = json.dumps(
        {"meta": {k: _out(v) for k, v in meta.items()}, "arrays": described}, separators=(",", ":")
    ).encode()
    return b"".join((_LENGTH.pack(len(text)), text, *blobs))


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """What :func:`pack` was given; arrays are copies that may be written to."""
    (size,) = _LENGTH.unpack_from(data)
    head = json.loads(data[4 : 4 + size])
    position, arrays = 4 + size, {}
    for name, dtype, shape in head["arrays"]:
        if dtype == "bytes":
            arrays[name] = np.empty(len(shape), object)
            for i, length in enumerate(shape):
                arrays[name][i] = data[position : position + length]
                position += length
            continue
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(data, dtype, count, position).reshape(shape).copy()
        position += count * np.dtype(dtype).itemsize
    return {k: _in(v) for k, v in head["meta"].items()}, arrays


def pack_list(parts: list[bytes]) -> bytes:
    """Several snapshots as one."""
    return b"".join(_LENGTH.pack(len(part)) + part for part in parts)


def unpack_list(data: bytes) -> list[bytes]:
    """What :func:`pack_list` was given."""
    parts, position = [], 0
    while position < len(data):
        (size,) = _LENGTH.unpack_from(data, position)
        parts.append(data[position + 4 : position + 4 + size])
        position += 4 + size
    return parts


def header_to_json(header: Header) -> list[Any]:
    """A Header as JSON values; :func:`header_from_json` reads it back."""
    f = header.format
    fields = [f.stream, f.channels, f.units, str(f.rate), f.dtype, f.shape, str(f.step), f.span, f.rows]
    return [header.session, header.origin_ns, header.chain, fields]


def header_from_json(values: Sequence[Any]) -> Header:
    """What :func:`header_to_json` was given."""
    session, origin_ns, chain, (stream, channels, units, rate, dtype, shape, step, span, rows) = values
    fmt = Format(stream, tuple(channels), tuple(units), Fraction(rate), dtype, tuple(shape), Fraction(step), span, rows)
    return Header(session, origin_ns, fmt, chain)


def _out(value: Any) -> Any:
    return {"__header__": header_to_json(value)} if isinstance(value, Header) else value


def _in(value: Any) -> Any:
    return header_from_json(value["__header__"]) if isinstance(value, dict) and "__header__" in value else value
