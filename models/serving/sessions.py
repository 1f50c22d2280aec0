"""One session in a worker. In: its chunks with their offsets. Out: windows, and which offsets the session still needs.

Offsets are released once no open window needs their samples and every window made of them is acknowledged. Where that cannot be told
from the samples alone (a late or repeated chunk, a session that has ended or gone quiet) a snapshot takes their place, and so it does
for every offset where a window rests on all before it, as it does for a stateful model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from models.serving.outputs import ENDLESS, Mark, Output, Outputs
from models.serving.replayed import Kept
from processors.chain import ChainStage
from processors.memory import pack, pack_list, unpack, unpack_list
from streams.chunk import Chunk, Header, Window


@dataclass(slots=True)
class _Given:
    """An output: its place, the oldest sample that may be needed to make it again, and whether it is not yet acknowledged."""

    place: int
    rest: int
    open: bool = True


class Session:
    """Chain, and ledger of offsets, of one session.

    Parameters
    ----------
    name : str
        The session.
    stage : ChainStage
        Its chain, new.
    outputs : Outputs
        What the chain's outputs are.
    chain : str
        The chain's digest; a snapshot of another chain is of no use.
    """

    def __init__(self, name: str, stage: ChainStage, outputs: Outputs, chain: str = "") -> None:
        self.name, self.stage, self._outputs, self._chain = name, stage, outputs, chain
        self._endless = outputs.memory >= ENDLESS
        self._kept = Kept(outputs.kinds)  # input that another chain, should it take over, goes on from
        self.given_to = -1  # where the newest window given begins
        self._seen = 0  # one past the newest sample taken
        self.published: set[Mark] = set()  # by its snapshot: what earlier lives have published, and may come again
        self._replayed: list[
            Output
        ] = []  # windows that it has and the chain before had not; given with those of the next chunk
        self.stream = ""  # the stream that feeds it; "" until its first chunk
        self.topic = ""
        self.ended = False
        self.irregular = False  # something came that a restart from an offset could take otherwise
        self.touched_s = 0.0
        self.sent_ms = 0  # when the newest chunk taken was sent, Unix ms
        self.next_index = -1  # where the newest chunk taken ended
        self._given: deque[_Given] = deque()  # outputs not acknowledged, and those before them that they rest on
        self.memory: list[
            Any
        ] = []  # what was found of the last outputs, for those behind them; whoever judges them keeps it
        self._needed = 0  # what the chain needed when it last gave outputs: the next ones rest on nothing older
        self._made: tuple[Header, int] | None = None  # header and end of the newest derived chunk
        self._ended_at = -1  # where the derived stream's last end mark stands
        self._ledger: deque[tuple[int, int]] = deque()  # (end index, offset) of chunks still needed
        self.last_offset = -1
        self.snapshot_upto = -1  # the stored snapshot holds everything up to this offset; -1: none is stored
        self._first_since: tuple[int, int] | None = (
            None  # (first index, offset) of the first chunk behind the stored snapshot
        )

    def take(self, chunk: Chunk, places: Sequence[tuple[int, int]]) -> list[Output]:
        """Outputs that became whole by `chunk`.

        Parameters
        ----------
        chunk : Chunk
            The next one, or several that follow each other joined.
        places : sequence of (end index, offset)
            Of the chunks that it was joined of.
        """
        self.last_offset, self.next_index = places[-1][1], chunk.end_index
        self._seen = max(self._seen, chunk.end_index)
        if self._first_since is None:
            self._first_since = (chunk.first_index, places[0][1])
        made: list[Output] = self.stage.push(chunk)
        if chunk.end:
            made += self.stage.flush()
        if made and isinstance(made[-1], Chunk):
            self._made = (made[-1].header, made[-1].end_index)
        if chunk.end and self._made is not None and self._made[1] > self._ended_at:
            self._ended_at = self._made[1]
            made += self._outputs.ending(*self._made)
        self.ended = chunk.end
        if not self._endless:
            self._ledger.extend(places)
        made, self._replayed = self._replayed + self._fresh(made), []
        self._note(made)
        self._kept.take(chunk, self.stage, bool(made))
        return made

    def _fresh(self, made: list[Output]) -> list[Output]:
        """Outputs without the windows that the chain before this one has given."""
        return [o for o in made if not isinstance(o, Window) or o.start_index > self.given_to]

    def _note(self, made: list[Output]) -> None:
        if made:
            self._given.extend(_Given(self._outputs.place(output), self._needed) for output in made)
            self._needed = self._chain_needs()
            self.given_to = made[-1].start_index if isinstance(made[-1], Window) else -1

    def rechain(self, stage: ChainStage, chain: str) -> list[Output]:
        """Go on with another chain of the same recipe; only while no window is pending.

        Parameters
        ----------
        stage : ChainStage
            New.
        chain : str
            Its chain's digest.

        Returns
        -------
        list of Output
            Windows that it has of what came, and that the chain before had not yet.
        """
        self.stage, self._chain = stage, chain
        made = self._fresh(self._kept.replay(stage))
        if self.snapshot_upto >= 0 and self._first_since is None:
            # A restart begins with the stored snapshot and finds them again: it knows of none that it published before the next chunk.
            self._replayed = made
            return []
        self._replayed = []
        self._note(made)
        return made

    @property
    def pending(self) -> int:
        """Outputs given but not acknowledged."""
        return sum(given.open for given in self._given)

    def acknowledge(self, place: int) -> None:
        """The output at `place` needs nothing more for itself."""
        next(given for given in self._given if given.open and given.place == place).open = False
        keep = 0 if self._endless else self._outputs.memory
        while self._settled() > keep:
            self._given.popleft()

    def _settled(self) -> int:
        """How many outputs stand before the first that is open."""
        return next((i for i, given in enumerate(self._given) if given.open), len(self._given))

    def _chain_needs(self) -> int:
        own = min(self.stage.needs_from.values(), default=0)
        return min(own, self._kept.needs(self.stage))

    def _needs(self) -> int:
        # An output may rest on samples before its own start: those on either side of a gap that was bridged.
        return min(self._given[0].rest, self._chain_needs()) if self._given else self._chain_needs()

    def hold(self) -> int | None:
        """Oldest offset that this session still needs; None if none."""
        if self._endless:  # all that no snapshot holds
            return self._first_since[1] if self._first_since is not None else None
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

    @property
    def unchanged(self) -> bool:
        """Whether the stored snapshot is all of it."""
        return self.snapshot_upto >= 0 and self._first_since is None and not self.irregular

    def can_withdraw(self, committed: int) -> bool:
        """Whether the stored snapshot is overtaken.

        Nothing from before the first chunk behind it is needed any more, and a restart begins behind it: at `committed`.
        """
        if self._endless or self._first_since is None or not self._behind_snapshot():
            return False
        first_index, offset = self._first_since
        whole = self._settled() >= self._outputs.memory  # else the snapshot holds some of what the next output rests on
        return whole and self._needs() >= first_index and committed >= offset

    def snapshot(self, published: Iterable[Mark] = ()) -> bytes:
        """All of the session; only while no window is pending.

        Parameters
        ----------
        published : iterable of Mark
            What earlier lives have published of it. Windows that this chain has not given yet, though all their samples came, may
            come of the next samples: a restart behind these would not read their events back.
        """
        ahead = self._outputs.ahead(published, self.given_to, self._seen)
        meta = {"stream": self.stream, "topic": self.topic, "ended": self.ended, "upto": self.last_offset}
        meta |= {"chain": self._chain, "memory": self.memory, "given_to": self.given_to}
        meta |= {"seen": self._seen, "published": sorted(ahead)}
        if self._made is not None:
            meta |= {"made": self._made[0], "made_end": self._made[1], "ended_at": self._ended_at}
        return pack_list([pack(meta), self.stage.snapshot(), *self._kept.snapshot()])

    def stored(self) -> None:
        """The snapshot just taken is acknowledged: it stands for every offset so far."""
        self.snapshot_upto = self.last_offset
        self._ledger.clear()
        self._given.clear()
        self._first_since = None
        self.irregular = False

    def withdrawn(self) -> None:
        """The stored snapshot is deleted."""
        self.snapshot_upto = -1
        self._first_since = None

    def restore(self, snapshot: bytes) -> bool:
        """Become what :meth:`snapshot` was taken of; False, and nothing, if the chain of another recipe made it."""
        about, stage, *kept = unpack_list(snapshot)
        meta, _ = unpack(about)
        self.published = {(start, head) for start, head in meta.get("published", ())}
        other = meta.get("chain") != self._chain
        if other and not (kept and self._kept.knows(meta.get("chain"))):
            return False
        self.stream, self.topic, self.ended = meta["stream"], meta["topic"], meta["ended"]
        self.last_offset = self.snapshot_upto = meta["upto"]
        self.memory = meta.get("memory", [])
        if "made" in meta:
            self._made, self._ended_at = (meta["made"], meta["made_end"]), meta["ended_at"]
        self.given_to, self._seen = meta.get("given_to", -1), meta.get("seen", 0)
        self._kept.restore(kept)
        if other:
            self.rechain(self.stage, self._chain)
        else:
            self.stage.restore(stage)
        return True
