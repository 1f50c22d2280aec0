"""Input that a session keeps for a chain that may take over. In: its chunks, its present chain's stage. Out: those that the next
window of any kind rests on; another chain's stage, brought to where the session stands.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from models.serving.kinds import Kind
from processors.chain import ChainStage
from processors.memory import pack, unpack
from processors.windows import WindowStage
from streams.chunk import Chunk

_EVERY = 16  # where no window comes, so many chunks are taken before the oldest are looked at again


class Kept:
    """Chunks of one session.

    Parameters
    ----------
    kinds : sequence of Kind
        What may take over; without any nothing is kept.
    """

    def __init__(self, kinds: Sequence[Kind]) -> None:
        self._kinds = kinds
        self._chunks: deque[Chunk] = deque()

    def knows(self, digest: str | None) -> bool:
        """Whether a chain is one of the kinds."""
        return any(kind.digest == digest for kind in self._kinds)

    def needs(self, stage: ChainStage) -> int:
        """Oldest sample that the next window of any kind rests on; far ahead where there are no kinds."""
        if not self._kinds:
            return 2**63 - 1
        start = next(s.next_start for s in stage.stages if isinstance(s, WindowStage))
        seen = self._chunks[-1].end_index if self._chunks else 0
        return min(kind.needs(start, seen) for kind in self._kinds)

    def take(self, chunk: Chunk, stage: ChainStage, moved: bool) -> None:
        """Keep a chunk that `stage` has taken, and let go of what no kind needs any more.

        Parameters
        ----------
        chunk : Chunk
            What of it is new is kept: late and repeated samples went into no window.
        stage : ChainStage
            The present chain's.
        moved : bool
            Whether a window has come of it.
        """
        if not self._kinds:
            return
        chunks, seen = self._chunks, self._chunks[-1].end_index if self._chunks else chunk.first_index
        first = max(chunk.first_index, seen)
        if chunk.end_index > first or chunk.end:
            chunks.append(Chunk(chunk.header, first, chunk.data[first - chunk.first_index :], None, chunk.end))
        if len(chunks) > 1 and (moved or not len(chunks) % _EVERY):
            needs = self.needs(stage)
            while len(chunks) > 1 and chunks[0].end_index <= needs:
                chunks.popleft()

    def replay(self, stage: ChainStage) -> list[Any]:
        """Bring another chain's new stage to where the session stands; its outputs on the way. Nothing is counted again."""
        made = []
        for chunk in self._chunks:
            made += stage.push(chunk)
            if chunk.end:
                made += stage.flush()
        stage.take_counts()
        return made

    def snapshot(self) -> list[bytes]:
        """All chunks; those of one header together, since a header may take more room than a chunk's samples."""
        runs: list[list[Chunk]] = []
        for chunk in self._chunks:
            if runs and runs[-1][-1].header == chunk.header and not runs[-1][-1].end:
                runs[-1].append(chunk)
            else:
                runs.append([chunk])
        return [_packed(run) for run in runs]

    def restore(self, parts: Sequence[bytes]) -> None:
        """Keep what a snapshot held."""
        self._chunks = deque(chunk for part in parts for chunk in _unpacked(part)) if self._kinds else deque()


def _packed(run: Sequence[Chunk]) -> bytes:
    """Chunks of one header, of which only the last may end the session."""
    places = np.array([(c.first_index, c.count) for c in run], np.int64)
    return pack(
        {"header": run[0].header, "end": run[-1].end},
        {"places": places, "data": np.concatenate([c.data for c in run])},
    )


def _unpacked(part: bytes) -> list[Chunk]:
    meta, arrays = unpack(part)
    places = arrays["places"].tolist()
    pieces = np.split(arrays["data"], np.cumsum([count for _, count in places])[:-1])
    ends = [False] * (len(places) - 1) + [meta["end"]]
    return [
        Chunk(meta["header"], first, piece, None, end)
        for (first, _), piece, end in zip(places, pieces, ends, strict=True)
    ]
