"""What the topics hold of a session. In: its chunks, one after the other. Out: runs of samples, what is missing, its events."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streams.chunk import Chunk, Format
from streams.events import Event


@dataclass
class StreamFacts:
    """What the topics hold of one raw stream."""

    format: Format  # of its newest chunk
    topic: str  # where it stands
    runs: list[list[int]]  # index ranges without gaps, half open
    ended: bool = False  # whether its end mark is there
    first_offset: int = 0  # of its chunks
    last_offset: int = 0
    empty: int = 0  # samples that lack a value, each of them a gap
    # where its chunks stand; one, if whoever sent them keyed each with the session's name
    partitions: set[int] = field(default_factory=set)

    def add(self, chunk: Chunk, offset: int) -> None:
        """Take the next chunk; a sample without a value in a channel is none."""
        self.ended, self.last_offset = self.ended or chunk.end, offset
        new = chunk.data[max(0, self.runs[-1][1] - chunk.first_index) :]
        bad = (
            np.isnan(new.reshape(len(new), math.prod(new.shape[1:]))).any(axis=1)
            if chunk.data.dtype.kind == "f"
            else np.zeros(0, bool)
        )
        self.empty += int(bad.sum())
        first = chunk.end_index - len(new)
        for at in [first + i for i in np.flatnonzero(bad).tolist()]:
            self._extend(first, at)
            first = at + 1
        self._extend(first, chunk.end_index)

    def _extend(self, start: int, end: int) -> None:
        if start <= self.runs[-1][1]:
            self.runs[-1][1] = max(self.runs[-1][1], end)
        elif start < end:
            self.runs.append([start, end])


@dataclass
class Facts:
    """What the topics hold of one session."""

    session: str
    known: list[str] = field(default_factory=list)  # sessions that there are
    record: dict[str, Any] | None = None  # its message on ``kymo.sessions``
    streams: dict[str, StreamFacts] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)  # reasons of its rejected messages
    events: list[Event] = field(default_factory=list)  # of the recipe's own classes
    committed: int | None = None  # next offset of the recipe's workers in the partition; None if they never committed
