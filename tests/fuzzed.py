"""Messages that are no chunks. In: a random generator. Out: keys and values, each of which a worker must reject, whatever it is."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from streams.chunk import Chunk, Header, signal_format
from streams.chunk_pb2 import Chunk as Message
from streams.codec import ChunkCodec
from streams.topics import MESSAGE_MAX

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


__all__ = ["KINDS", "Fuzzed", "fuzzed"]
