"""One session in a worker. In: its chunks with their offsets. Out: windows, and which offsets the session still needs.

Offsets are released once no open window needs their samples and every window made of them is acknowledged. Where that cannot be told
from the samples alone (a late or repeated chunk, a session that has ended or gone quiet) a snapshot takes their place.
"""

from __future__ import annotations

from collections import deque

from processors.chain import ChainStage
from processors.memory import pack, pack_list, unpack, unpack_list
from streams.chunk import Chunk, Window


class Session:
    """Chain, and ledger of offsets, of one session.

    Parameters
    ----------
    name : str
        The session.
    stage : ChainStage
        Its chain, new.
    """

    def __init__(self, name: str, stage: ChainStage) -> None:
        self.name, self.stage = name, stage
        self.stream = ""  # the stream that feeds it; "" until its first chunk
        self.topic = ""
        self.ended = False
        self.irregular = False  # something came that a restart from an offset could take otherwise
        self.touched_s = 0.0
        self.pending: deque[int] = deque()  # start indices of windows given but not acknowledged, ascending
        self._ledger: deque[tuple[int, int]] = deque()  # (end index, offset) of chunks still needed
        self.last_offset = -1
        self.snapshot_upto = -1  # the stored snapshot holds everything up to this offset; -1: none is stored
        self._first_since: tuple[int, int] | None = (
            None  # (first index, offset) of the first chunk behind the stored snapshot
        )

    def take(self, chunk: Chunk, offset: int) -> list[Window]:
        """Windows that became whole by `chunk`."""
        if offset <= self.snapshot_upto:
            return []
        self.last_offset = offset
        if self._first_since is None:
            self._first_since = (chunk.first_index, offset)
        windows: list[Window] = self.stage.push(chunk)
        if chunk.end:
            windows += self.stage.flush()
            self.ended = True
        elif self.ended:
            self.ended = False
        self._ledger.append((chunk.end_index, offset))
        self.pending.extend(w.start_index for w in windows)
        return windows

    def acknowledge(self, start_index: int) -> None:
        """The window at `start_index` needs nothing more; windows are acknowledged in order."""
        self.pending.popleft() if self.pending and self.pending[0] == start_index else self.pending.remove(start_index)

    def _needs(self) -> int:
        needs = min(self.stage.needs_from.values(), default=0)
        return min(needs, self.pending[0]) if self.pending else needs

    def hold(self) -> int | None:
        """Oldest offset that this session still needs; None if none."""
        ledger, needs = self._ledger, self._needs()
        # The newest chunk stays although no window needs it: a restart learns from it what came already, and so what is a repetition.
        # What only a snapshot can release stays whole, since a restart anywhere behind it could take it otherwise.
        while len(ledger) > 1 and ledger[0][0] <= needs and not self.must_snapshot():
            ledger.popleft()
        held = ledger[0][1] if ledger else None
        if self._first_since is not None and (self._behind_snapshot() or self.must_snapshot()):
            # A stored snapshot speaks for the offsets before this one: until it is replaced or withdrawn, a restart must begin here.
            held = self._first_since[1] if held is None or self._behind_snapshot() else held
        return held

    def _behind_snapshot(self) -> bool:
        return self.snapshot_upto >= 0 and self._first_since is not None

    def must_snapshot(self) -> bool:
        """Whether only a snapshot can release what came."""
        return (self.ended or self.irregular) and self._first_since is not None

    def can_withdraw(self, committed: int) -> bool:
        """Whether the stored snapshot is overtaken.

        Nothing from before the first chunk behind it is needed any more, and a restart begins behind it: at `committed`.
        """
        overtaken = self._first_since is not None and self._needs() >= self._first_since[0]
        return self._behind_snapshot() and overtaken and committed > self.snapshot_upto

    def snapshot(self) -> bytes:
        """All of the session; only while no window is pending."""
        meta = {"stream": self.stream, "topic": self.topic, "ended": self.ended, "upto": self.last_offset}
        return pack_list([pack(meta), self.stage.snapshot()])

    def stored(self) -> None:
        """The snapshot just taken is acknowledged: it stands for every offset so far."""
        self.snapshot_upto = self.last_offset
        self._ledger.clear()
        self._first_since = None
        self.irregular = False

    def withdrawn(self) -> None:
        """The stored snapshot is deleted."""
        self.snapshot_upto = -1
        self._first_since = None

    def restore(self, snapshot: bytes) -> None:
        """Become what :meth:`snapshot` was taken of."""
        head, stage = unpack_list(snapshot)
        meta, _ = unpack(head)
        self.stream, self.topic, self.ended = meta["stream"], meta["topic"], meta["ended"]
        self.last_offset = self.snapshot_upto = meta["upto"]
        self.stage.restore(stage)
