"""Chunks that follow each other, as one. In: chunks of one session with their offsets. Out: one longer chunk.

What comes out of a chain does not depend on how its input is cut, so a backlog of small chunks may go through as few large ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from models.serving.sessions import Session
from streams.chunk import Chunk
from streams.codec import ChunkCodec
from streams.errors import ChunkError

SAMPLES = 1_024  # a run is pushed when it holds so many: more would only add latency


def decode_record(codec: ChunkCodec, record: Any) -> Chunk:
    """The chunk of a record.

    Raises
    ------
    ChunkError
        If it holds none, or its key is not the chunk's session.
    """
    if record.value is None:
        raise ChunkError("undecodable", "a record without a value")
    chunk = codec.decode(record.value)
    if record.key is not None and record.key != chunk.session.encode():
        key = record.key[:40]
        raise ChunkError(
            "key", f"the record's key is {key!r}, its session {chunk.session!r}; the key must be the session"
        )
    return chunk


class Run:
    """Consecutive chunks of one stream of one session.

    Parameters
    ----------
    session : Session
        Whose.
    chunk : Chunk
        The first one.
    record : object
        The record that it came in, with `offset` and `timestamp`.
    """

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

    def joined(self) -> Chunk:
        """All of it as one chunk."""
        first, last = self.chunks[0], self.chunks[-1]
        if first is last:
            return first
        data = np.concatenate([chunk.data for chunk in self.chunks])
        filled = tuple(gap for chunk in self.chunks for gap in chunk.filled)
        return Chunk(first.header, first.first_index, data, None, last.end, filled)

    def places(self) -> list[tuple[int, int]]:
        """End index and offset of each chunk."""
        return [(chunk.end_index, record.offset) for chunk, record in zip(self.chunks, self.records, strict=True)]
