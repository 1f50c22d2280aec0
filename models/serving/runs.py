"""Chunks that follow each other, as one. In: chunks of one session with their offsets. Out: one longer chunk.

What comes out of a chain does not depend on how its input is cut, so a backlog of small chunks may go through as few large ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from models.serving.sessions import Session
from streams.chunk import Chunk
from streams.codec import ChunkCodec
from streams.errors import ChunkError

SAMPLES = (
    2_048  # a run is pushed when it holds so many, and in pieces of so many: more would only add latency, and memory
)


def decode_record(codec: ChunkCodec, record: Any) -> Chunk:
    """The chunk of a record."""
    if record.value is None:
        raise ChunkError("undecodable", "a record without a value")
    chunk = codec.decode(record.value)
    if record.key != chunk.session.encode():
        key = "absent" if record.key is None else repr(record.key[:40])
        raise ChunkError(
            "key", f"the record's key is {key}, its session {chunk.session!r}; the key must be the session"
        )
    return chunk


class Run:
    """Consecutive chunks of one stream of one session."""

    def __init__(self, session: Session, chunk: Chunk, record: Any) -> None:
        self.session, self.chunks, self.records = session, [chunk], [record]
        self.count = chunk.count

    def follows(self, chunk: Chunk) -> bool:
        """Whether `chunk` goes on exactly where this run ends."""
        last = self.chunks[-1]
        return (
            chunk.header is last.header
            and chunk.first_index == last.end_index
            and not last.end
            and chunk.times_ns is None
        )

    def add(self, chunk: Chunk, record: Any) -> None:
        """Add a chunk that :meth:`follows`."""
        self.chunks.append(chunk)
        self.records.append(record)
        self.count += chunk.count

    def pieces(self) -> Iterator[tuple[Chunk, list[tuple[int, int]]]]:
        """All of it as one chunk, or as several where it is long, each with end index and offset of the chunks that it is made of."""
        chunk = self._joined()
        places = [(c.end_index, record.offset) for c, record in zip(self.chunks, self.records, strict=True)]
        if chunk.count < 2 * SAMPLES or chunk.times_ns is not None:
            yield chunk, places
            return
        for start in range(0, chunk.count, SAMPLES):
            stop = min(start + SAMPLES, chunk.count)
            first, end = chunk.first_index + start, chunk.first_index + stop
            own = [place for place in places if first < place[0] <= end]
            if not own or own[-1][0] < end:  # it ends inside of a chunk
                own.append((end, next(offset for above, offset in places if above > end)))
            piece = chunk.data[start:stop]
            yield Chunk(chunk.header, first, piece, None, chunk.end and stop == chunk.count, chunk.filled), own

    def _joined(self) -> Chunk:
        first, last = self.chunks[0], self.chunks[-1]
        if first is last:
            return first
        data = np.concatenate([chunk.data for chunk in self.chunks])
        filled = tuple(gap for chunk in self.chunks for gap in chunk.filled)
        return Chunk(first.header, first.first_index, data, None, last.end, filled)
