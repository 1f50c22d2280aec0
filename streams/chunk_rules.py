"""What a Chunk message may say. In: a message. Out: its Header, times and ranges, each field plausible, or a ChunkError.

Whatever passes here can be worked with: no step, window or event behind it meets a number, a name or a shape that it has no
answer to. A message that does not pass is rejected once, where it is read.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from streams.chunk import DTYPES, Format, Header, index_at
from streams.chunk_pb2 import Chunk as Message
from streams.errors import ChunkError

MAX_FRAMES = 2**16  # images a chunk
_MAX_NAME, _MAX_CHANNELS, _MAX_RATE = 200, 4096, 10**9
_MAX_SAMPLE = 2**26  # numbers a sample, as an uncompressed video frame may have
_MAX_INDEX = (
    2**52
)  # half of what stays exact in JSON readers that hold numbers as float64: windows reach beyond samples
_MAX_TIME = 2**62  # ns either side of 1970: all times of a chunk and of what is made of it fit into 64 bits
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # a line feed, say, ends a line, and a name within a key


def checked_header(m: Message) -> Header:
    """Header of a message in which every field is plausible."""
    where, channels, units = _checked_names(m)
    if m.rate_den == 0 or m.rate_num > _MAX_RATE * m.rate_den or (m.step_num and not m.step_den):
        raise ChunkError("invalid", f"{where}: rate {m.rate_num}/{m.rate_den} Hz, step {m.step_num}/{m.step_den}")
    if not -_MAX_TIME < m.origin_ns < _MAX_TIME:
        raise ChunkError("invalid", f"{where}: origin {m.origin_ns} ns, expected it within {_MAX_TIME}")
    step, span = Fraction(m.step_num, m.step_den) if m.step_num else Fraction(1), m.span or 1
    if not m.chain and (step != 1 or span != 1 or m.filled):
        raise ChunkError(
            "invalid",
            f"{where}: step {step}, span {span} and {len(m.filled) // 3} ranges of a raw chunk, expected 1, 1 and none; "
            f"a derived one names its `chain`",
        )
    fmt = Format(m.stream, channels, units, Fraction(m.rate_num, m.rate_den), m.dtype, _shape(m, where), step, span)
    return Header(m.session, m.origin_ns, fmt, m.chain)


def _checked_names(m: Message) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """What to call the message in an error, and its channels and units."""
    channels, units = tuple(m.channels), tuple(m.units)
    if not (0 < len(m.session) <= _MAX_NAME and 0 < len(m.stream) <= _MAX_NAME):
        raise ChunkError(
            "invalid", f"session {m.session[:40]!r}, stream {m.stream[:40]!r}: 1 to {_MAX_NAME} characters each"
        )
    odd = next((name for name in (m.session, m.stream, m.chain, *channels, *units) if CONTROL.search(name)), None)
    if odd is not None:
        raise ChunkError("invalid", f"the name {odd[:40]!r} holds a control character, expected letters, digits, signs")
    where = f"{m.session}/{m.stream}"
    if not 0 < len(channels) <= _MAX_CHANNELS or len(set(channels)) != len(channels):
        raise ChunkError(
            "invalid", f"{where}: {len(channels)} channels, expected 1 to {_MAX_CHANNELS} with different names"
        )
    if units and len(units) != len(channels):
        raise ChunkError("invalid", f"{where}: {len(units)} units for {len(channels)} channels")
    if max(len(m.chain), *map(len, channels), *map(len, units)) > _MAX_NAME:
        raise ChunkError(
            "invalid", f"{where}: names of channels, units and chain hold up to {_MAX_NAME} characters each"
        )
    return where, channels, units


def _shape(m: Message, where: str) -> tuple[int, ...]:
    shape = tuple(m.shape)
    if m.dtype not in DTYPES:
        raise ChunkError("invalid", f"{where}: dtype {m.dtype[:40]!r}, expected one of {', '.join(DTYPES)}")
    if m.dtype == "jpeg":
        if shape:
            raise ChunkError("invalid", f"{where}: shape {shape[:8]} of an image, expected none: the image says it")
    elif not shape or shape[-1] != len(m.channels) or 0 in shape or len(shape) > 4:
        raise ChunkError(
            "invalid",
            f"{where}: shape {shape[:8]} of a sample, expected its last axis to be the {len(m.channels)} channels",
        )
    if math.prod(shape) > _MAX_SAMPLE:
        raise ChunkError("invalid", f"{where}: shape {shape} of a sample, expected up to {_MAX_SAMPLE} numbers")
    return shape


def last_index(header: Header) -> int:
    """Where samples of a stream must end: their numbers and times, and those of the raw samples beneath them, stay exact."""
    fmt = header.format
    if not header.chain:
        in_time = index_at(header.origin_ns, fmt.rate, _MAX_TIME) if fmt.rate else _MAX_INDEX
        return max(0, min(_MAX_INDEX, in_time))
    # Rows may end behind the raw samples, and be more: what is made of a chunk at the limit must be written all the same.
    in_time = index_at(header.origin_ns, fmt.rate, _MAX_TIME * 3 // 2) if fmt.rate else _MAX_INDEX
    return max(0, min(256 * _MAX_INDEX, in_time, int((2 * _MAX_INDEX - fmt.span) / fmt.step)))


def checked_times(header: Header, times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Times of an irregular stream's samples, ``(n,)``, Unix ns, if they do not go back."""
    if len(times) and ((times[1:] < times[:-1]).any() or times[0] <= -_MAX_TIME or times[-1] >= _MAX_TIME):
        where = f"{header.session}/{header.format.stream}"
        raise ChunkError("invalid", f"{where}: its {len(times)} times go back, or are beyond {_MAX_TIME} ns")
    return times


def checked_filled(m: Message) -> tuple[tuple[int, int, bool], ...]:
    """Ranges of raw samples that were interpolated, one behind the other."""
    numbers = list(m.filled)
    gaps = tuple((a, b, bool(c)) for a, b, c in zip(*[iter(numbers)] * 3, strict=False))
    ends = [0, *(b for _, b, _ in gaps)]
    if len(numbers) % 3 or any(not end <= a < b < _MAX_INDEX for end, (a, b, _) in zip(ends, gaps, strict=False)):
        raise ChunkError("invalid", f"{m.session}/{m.stream}: interpolated ranges {numbers[:6]} are no rising ranges")
    return gaps
