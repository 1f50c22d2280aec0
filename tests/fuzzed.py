"""Messages that nobody expects. In: a random generator. Out: keys and values.

What :func:`fuzzed` gives a worker must reject, whatever it is. What :func:`odd_record` gives, a record for any topic that is read with any
of its fields otherwise, may be rejected, passed over or taken; nothing may end by it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from kymo.streams.chunk import Chunk, Header, signal_format
from kymo.streams.chunk_pb2 import Chunk as Message
from kymo.streams.codec import ChunkCodec
from kymo.streams.topics import MESSAGE_MAX

Fuzzed = tuple[bytes | None, bytes | None]
_CODEC = ChunkCodec()


def good(pick: random.Random) -> tuple[bytes, bytes]:
    """A chunk as a session of the lab's would send it."""
    session = f"fuzz{pick.randrange(20)}"
    header = Header(session, 10**18, signal_format("imu.wrist", ("x", "y"), 100))
    data = np.full((pick.randint(1, 60), 2), pick.random(), np.float32)
    return session.encode(), _CODEC.encode(Chunk(header, pick.randrange(10**6), data))


def message(pick: random.Random) -> tuple[bytes, Message]:
    """The same, to be damaged."""
    key, value = good(pick)
    parsed = Message()
    parsed.ParseFromString(value)
    return key, parsed


def random_bytes(pick: random.Random) -> Fuzzed:
    """Noise that no field of a chunk begins with: field 0 does not exist."""
    return b"noise", b"\x00" + pick.randbytes(pick.choice([0, 1, 13, 100, 5000]))


def nothing(pick: random.Random) -> Fuzzed:
    """No value, or an empty one; no key."""
    return pick.choice([(b"k", None), (b"k", b""), (None, b"")])


def truncated(pick: random.Random) -> Fuzzed:
    """A chunk of which the end is missing."""
    key, value = good(pick)
    return key, value[: pick.randrange(len(value))]


def text(pick: random.Random) -> Fuzzed:
    """JSON, as another program may send it."""
    return b"json", b'{"session": "a", "values": [' + b"1, " * pick.randrange(100) + b"1]}"


def wrong_shape(pick: random.Random) -> Fuzzed:
    """Shapes that contradict the channels or the data."""
    key, m = message(pick)
    shapes = [[], [3], [0], [2, 0], [1, 1, 1, 1, 2], [2**31, 2], [2**32 - 1] * 4]
    del m.shape[:]
    m.shape.extend(pick.choice(shapes))
    return key, m.SerializeToString()


def absurd(pick: random.Random) -> Fuzzed:
    """Sizes and numbers that nothing has."""
    key, m = message(pick)
    change = pick.randrange(8)
    if change == 0:
        m.first_index = pick.choice([-1, 2**53, 2**63 - 1])
    elif change == 1:
        m.origin_ns = pick.choice([2**62, -(2**62), 2**63 - 1])
    elif change == 2:
        m.rate_num, m.rate_den = 10**18, 1
    elif change == 3:
        m.rate_den = 0
    elif change == 4:
        m.session = "s" * 100_000
        key = m.session.encode()
    elif change == 5:
        m.channels.extend(f"c{i}" for i in range(5000))
    elif change == 6:
        m.data_bytes = 2**32 - 1
    else:
        m.stream = ""
    return key, m.SerializeToString()


def huge(pick: random.Random) -> Fuzzed:
    """As large as the topic takes."""
    return b"huge", b"\x00" * (MESSAGE_MAX - 200 - pick.randrange(100))


def wrong_key(pick: random.Random) -> Fuzzed:
    """A chunk under another session's key."""
    _, value = good(pick)
    return pick.choice([b"", b"other", b"\xff\xfe", b"fuzz"]), value


def contradicting(pick: random.Random) -> Fuzzed:
    """A header that contradicts itself."""
    key, m = message(pick)
    change = pick.randrange(6)
    if change == 0:
        m.units.append("m")
    elif change == 1:
        m.channels[1] = "x"
    elif change == 2:
        m.dtype = pick.choice(["", "float16", "object", "float32" * 50])
    elif change == 3:
        m.data += b"\x00"
    elif change == 4:
        m.times_ns = b"\x00" * 9
    else:
        m.dtype = "jpeg"
        m.frame_bytes.append(len(m.data) + 1)
    return key, m.SerializeToString()


KINDS: tuple[Callable[[random.Random], Fuzzed], ...] = (
    random_bytes,
    nothing,
    truncated,
    text,
    wrong_shape,
    absurd,
    wrong_key,
    contradicting,
)


def fuzzed(pick: random.Random, index: int) -> Fuzzed:
    """The message number `index`; one in 250 is huge."""
    return huge(pick) if index % 250 == 249 else KINDS[index % len(KINDS)](pick)


_WHOLE = (0, 1, 2, 3, 7, 1000, 2**31, 2**32 - 1, 2**52 - 1, 2**53, 2**62, 2**63 - 1)
_SIGNED = (*_WHOLE, -1, -(2**61), -(2**63))
_TEXTS = (
    "",
    "x",
    "imu",
    "video",
    "float64",
    "int16",
    "uint8",
    "jpeg",
    "a" * 201,
    "a\0b",
    "a\nb",
    "\u2028",
    "é",
    "../../x",
    "/x",
    "..",
)


def _other(pick: random.Random, field: Any, old: Any) -> Any:
    """Another value for a field of a chunk, by its name and type."""
    if field.name == "times_ns":
        return pick.choice([b"abc", bytes(8), pick.randbytes(8 * pick.randint(1, 60))])
    if field.name == "data":
        return pick.choice([b"", b"x", b"\xff" * len(old), bytes(len(old)), pick.randbytes(len(old)), old * 3])
    if field.type == field.TYPE_BOOL:
        return not old
    repeated = {
        "channels": [[], ["y", "x"], ["x"], ["x", "y", "z"], ["x", "x"], ["x", "y" * 300]],
        "units": [["g"], ["g", "g"], ["", "\x1b[31m"], ["m/s^2", "V"]],
        "shape": [[], [1], [0], [3], [2, 2], [1, 1, 1, 1, 2], [2**31, 2]],
        "frame_bytes": [[1], [8, 8], [2**32 - 1]],
        "absent": [["0 1 x"], ["5 1 x"], ["0 1"], ["0 1 x", "0 9 y"], ["\x00"], [f"0 {2**70} x"]],
        "filled": [[0, 1, 0], [5, 1, 0], [-1, 2, 1], [0, 2**62, 1], [3, 4, 5, 4, 9, 1], [1]],
    }
    if field.name in repeated:
        return pick.choice(repeated[field.name])
    if field.type == field.TYPE_STRING:
        return pick.choice(_TEXTS)
    most = {field.TYPE_UINT32: 2**32, field.TYPE_FIXED32: 2**32, field.TYPE_UINT64: 2**64}.get(field.type)
    return pick.choice([n for n in (_SIGNED if most is None else _WHOLE) if most is None or n < most])


def odd_chunk(pick: random.Random, index: int) -> Fuzzed:
    """A chunk with one field otherwise, by turns each; now and then several."""
    key, m = message(pick)
    fields = Message.DESCRIPTOR.fields
    for field in (fields[index % len(fields)], *pick.sample(list(fields), pick.choice([0, 0, 1, 3]))):
        value = _other(pick, field, getattr(m, field.name))
        m.ClearField(field.name)
        if isinstance(value, list):
            getattr(m, field.name).extend(value)
        else:
            setattr(m, field.name, value)
    if pick.random() < 0.2:
        m.chain = "0123456789abcdef"
    return pick.choice([key, *[m.session.encode()] * 6, None]), m.SerializeToString()


_NAMES = {
    "id": "fuzz7/lab/8",
    "recipe": "lab",
    "session": "fuzz7",
    "stream": "imu.wrist",
    "label": "low",
    "replaces": "",
}
_TIMES = {"start_ns": 10**18, "end_ns": 10**18 + 10, "created_ns": 5, "emitted_ns": 5}
#: By topic, a record of it that is in order.
RECORDS: dict[str, dict[str, Any]] = {
    "events": {
        **_NAMES,
        **_TIMES,
        "bundle": "lab@0123",
        "start_index": 8,
        "probability": 0.5,
        "head": "",
        "missing": 0.0,
    }
    | {"probabilities": {"low": 0.5}, "values": {}},
    "models": {
        "recipe": "lab",
        "alias": "champion",
        "bundle": "lab@0123456789abcdef",
        "promoted_ns": 5,
        "registry": "/tmp",
    }
    | {"action": "promote", "by": "me", "why": ""},
    "labels": {**_NAMES, **_TIMES, "set": "label", "author": "me"},
    "sessions": {
        "session": "fuzz7",
        "subject": None,
        **_TIMES,
        "streams": [{"stream": "imu"}],
        "metadata": {},
        "notes": [],
    }
    | {"replayed": {"complete": True, "digest": "x"}},
}
_DEEP = 100_000
_ODD_JSON = (
    *("1e999", "-1e999", "NaN", "-Infinity", "null", "true", "[]", "{}", "1.5", "-1", "0", "9223372036854775807", "9223372036854775808"),
    *('"x"', '""', '"\\ud800"', '"a\\u0000b"', '"a\\nb"', '"../../x"', '"/etc"', '"\\u001b[31m"', '["x"]', '{"a": [1]}', '[{"x": 7}, 7]'),
    *("1" + "0" * 5000, "[" * _DEEP + "]" * _DEEP, '{"a":' * 100 + "1" + "}" * 100, f'"{"x" * 100_000}"'),
)  # fmt: skip
_ODD_BYTES = (
    None,
    b"",
    b"null",
    b"[]",
    b"7",
    b'"x"',
    b"1e999",
    b"\xff\xfe",
    b"{",
    b"[" * _DEEP,
    b'{"a":' * _DEEP,
    "{}".encode("utf-16"),
)


def odd_json(pick: random.Random, topic: str, index: int) -> Fuzzed:
    """A record of a topic of JSON with one member otherwise, by turns each; every fifth is none at all."""
    key = pick.choice([b"fuzz7", b"lab/champion", b"\xff", b"", b"a\nb", None])
    if index % 5 == 4:
        return key, pick.choice(_ODD_BYTES)
    record = RECORDS[topic]
    name = list(record)[index % len(record)]
    members = {known: json.dumps(value) for known, value in record.items()} | {name: pick.choice(_ODD_JSON)}
    if pick.random() < 0.1:
        del members[name]
    return key, ("{" + ",".join(f"{json.dumps(known)}:{text}" for known, text in members.items()) + "}").encode()


def odd_state(pick: random.Random, index: int) -> Fuzzed:
    """What is no snapshot, under keys as snapshots have them."""
    key = pick.choice([b"lab.processor-model\nfuzz%d" % (index % 20), b"lab.processor-model\n", b"lab", b"\xff", None])
    sizes = [pick.randrange(2**32).to_bytes(4, "little") + pick.randbytes(pick.choice([0, 3, 100])) for _ in range(2)]
    return key, pick.choice([None, b"", b"{}", pick.randbytes(pick.choice([1, 4, 50, 5000])), *sizes])


TOPICS = ("sensor", "sensor", "sensor", *RECORDS, "state")


def odd_record(pick: random.Random, index: int) -> tuple[str, Fuzzed]:
    """The record number `index`, and the topic that it is for."""
    topic, turn = TOPICS[index % len(TOPICS)], index // len(TOPICS)
    if topic == "sensor":
        return topic, odd_chunk(pick, 3 * turn + index % len(TOPICS))
    return topic, odd_state(pick, turn) if topic == "state" else odd_json(pick, topic, turn)


__all__ = ["KINDS", "TOPICS", "Fuzzed", "fuzzed", "odd_record"]
