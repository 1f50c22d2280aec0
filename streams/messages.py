"""What others wrote: records of topics, our own ones too, and JSON in files. In: bytes. Out: an object that nothing behind it can
stumble over.

A topic is input, whoever wrote it. What comes out here is a ``dict`` whose numbers are finite and fit into 64 bits, whose text can
be written as UTF-8 again, and which nests no deeper than :data:`MAX_DEPTH`; what its members
must be, their types say (:mod:`kymo.streams.schema`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple, NoReturn

from google.protobuf.message import DecodeError

from kymo.streams import chunk_pb2
from kymo.streams.errors import MessageError
from kymo.streams.schema import fits
from kymo.streams.topics import CHUNK_TOPICS

MAX_BYTES = 2**24
MAX_FILE_BYTES = 2**30
MAX_DEPTH = 64


class Record(NamedTuple):
    """A Kafka record; attributes are named as kafka-python's."""

    topic: str
    partition: int
    offset: int
    timestamp: int  # wall time of sending, Unix ms; -1 for none
    timestamp_type: int  # 0 if the producer set it, 1 if the broker did
    key: bytes | None
    value: bytes | None  # None for a deleted key
    headers: Sequence[tuple[str, bytes | None]] = ()


def session_of(record: Any) -> bytes:
    """Whose a record is: by its key, or where another program left that out by what its JSON or its chunk says; empty if nobody's.

    >>> session_of(Record("kymo.labels", 0, 0, 0, 0, None, b'{"session": "s1"}'))
    b's1'
    """
    if record.key is not None:
        return bytes(record.key.rpartition(b"\n")[2])
    if record.topic.rpartition(".")[2] in (*CHUNK_TOPICS, "rejected"):
        try:
            return chunk_pb2.Chunk.FromString(record.value or b"").session.encode()
        except DecodeError:
            return b""
    try:
        session = read_object(record.value).get("session")
    except MessageError:
        return b""
    return session.encode() if isinstance(session, str) else b""


def read_object(raw: bytes | str | None, most: int = MAX_BYTES, nan: bool = False) -> dict[str, Any]:
    """The JSON object of a message, or of a file; see :func:`read_json`.

    >>> read_object(b'{"start_ns": 5}')
    {'start_ns': 5}
    >>> read_object(b'{"start_ns": 1e999}')
    Traceback (most recent call last):
    ...
    kymo.streams.errors.MessageError: 19 bytes are no JSON (1e999 is not finite)
    """
    value = read_json(raw, most, nan=nan)
    if not isinstance(value, dict):
        raise MessageError(f"expected a JSON object, got {type(value).__name__}")
    return value


def read_json(raw: bytes | str | None, most: int = MAX_BYTES, numbers: bool = True, nan: bool = False) -> Any:
    """The JSON of a message, or of a file, whatever it is; without `numbers` these are not looked at, as where samples stand in it.
    `nan` is as for :func:`read_object`.
    """
    size = len(raw or b"")
    if not raw or size > most:
        raise MessageError(f"{size} bytes, expected JSON of up to {most}")
    try:
        text = raw.decode() if isinstance(raw, bytes) else raw
        decoder = _LENIENT if nan else _DECODER
        value = decoder.decode(text) if numbers else json.loads(text)
        if text.count("{") + text.count("[") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
            raise RecursionError
        if "\\u" in text or not text.isascii():  # half a character, which UTF-8 has no bytes for
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise MessageError(f"{size} bytes of JSON are nested deeper than {MAX_DEPTH}, expected less") from None
    except ValueError as error:
        raise MessageError(f"{size} bytes are no JSON ({error})") from None
    return value


class Odd:
    """Records that were left out, to be said in one line: call it with what is wrong with each."""

    def __init__(self) -> None:
        self.count, self.first = 0, ""

    def __call__(self, text: str) -> None:
        self.count, self.first = self.count + 1, self.first or text

    def __str__(self) -> str:
        return f"{self.count} odd record{'s' * (self.count != 1)} left out, the first: {self.first}"


def _depth(value: Any) -> int:
    """How deep objects and lists stand in each other; layer by layer, without recursion."""
    layer, depth = [value], 0
    while layer:
        lists = [item.values() if isinstance(item, dict) else item for item in layer if isinstance(item, dict | list)]
        layer = list(chain.from_iterable(lists))
        depth += 1
    return depth


def _float(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _integer(text: str) -> int:
    number = int(text)
    if not fits(number):
        raise ValueError(f"{text[:40]} is beyond 64 bits")
    return number


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text[:40]} is not finite")


_DECODER = json.JSONDecoder(parse_float=_float, parse_int=_integer, parse_constant=_refuse)
_LENIENT = json.JSONDecoder(parse_float=_float, parse_int=_integer, parse_constant=lambda _: None)
