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
    """What the topics hold of one raw stream.

    Attributes
    ----------
    format : Format
        Of its newest chunk.
    topic : str
        Where it stands.
    runs : list of [int, int]
        Index ranges without gaps, half open.
    ended : bool
        Whether its end mark is there.
    first_offset, last_offset : int
        Of its chunks.
    empty : int
        Samples that lack a value, each of them a gap.
    partitions : set of int
        Where its chunks stand; one, if whoever sent them keyed each with the session's name.
    """

    format: Format
    topic: str
    runs: list[list[int]]
    ended: bool = False
    first_offset: int = 0
    last_offset: int = 0
    empty: int = 0
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
    """What the topics hold of one session.

    Attributes
    ----------
    session : str
        Its name.
    known : list of str
        Sessions that there are.
    record : dict, optional
        Its message on ``kymo.sessions``.
    streams : dict
        By name.
    rejected : Counter
        Reasons of its rejected messages.
    events : list of Event
        Of the recipe's own classes.
    committed : int, optional
        Next offset of the recipe's workers in the partition; None if they never committed.
    """

    session: str
    known: list[str] = field(default_factory=list)
    record: dict[str, Any] | None = None
    streams: dict[str, StreamFacts] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)
    events: list[Event] = field(default_factory=list)
    committed: int | None = None
