"""One session in a worker. In: its chunks with their offsets. Out: windows, and which offsets the session still needs.

Offsets are released once no open window needs their samples and every window made of them is acknowledged. Where that cannot be told
from the samples alone (a late or repeated chunk, a session that has ended or gone quiet) a snapshot takes their place, and so it does
for every offset where a window rests on all before it, as it does for a stateful model.

A snapshot whose memory is of no use here (another chain's, or left out since it was too large) still says which windows were given and
where the oldest open one begins: the session is read again from there, and what it gave before it does not give again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from models.serving.outputs import ENDLESS, Marks, Output, Outputs
from models.serving.snapshots import Snapshot
from processors.chain import ChainStage
from processors.intake import EntryStage
from processors.spec import header_from_json, header_to_json
from processors.windows import WindowStage
from streams.chunk import Chunk, Header, Window
from streams.errors import MessageError


@dataclass(slots=True)
class _Given:
    """An output: its place, the oldest sample that may be needed to make it again, and whether it is not yet acknowledged."""

    place: int
    rest: int
    open: bool = True


class Session:
    """Chain, and ledger of offsets, of one session."""

    def __init__(self, name: str, stage: ChainStage, outputs: Outputs, chain: str = "", takes_from: int = 0) -> None:
        self.name, self.stage, self._outputs, self._chain = name, stage, outputs, chain
        self.takes_from = takes_from
        self._endless = outputs.memory >= ENDLESS
        self.given_to = -1  # where the newest window given begins
        self._seen = 0  # one past the newest sample taken
        self.published: Marks = {}  # by its snapshot: what earlier lives have published, and may come again
        self.stream = ""  # the stream that feeds it; "" until its first chunk
        self.topic = ""
        self.ended = False
        self.irregular = False  # something came that a restart from an offset could take otherwise
        self.touched_s = 0.0
        self.sent_ms = 0  # when the newest chunk taken was sent, Unix ms
        self.next_index = -1  # where the newest chunk taken ended
        self._given: deque[_Given] = deque()  # outputs not acknowledged, and those before them that they rest on
        #: What was found of the last outputs, for those behind them; whoever judges them keeps it.
        self.memory: list[Any] = []
        self._needed = 0  # what the chain needed when it last gave outputs: the next ones rest on nothing older
        self._made: tuple[Header, int] | None = None  # header and end of the newest derived chunk
        self._ended_at = -1  # where the derived stream's last end mark stands
        self._ledger: deque[tuple[int, int, int]] = (
            deque()
        )  # (end index, offset, what was seen before) of chunks still needed
        self.last_offset = -1
        self.stored_upto = -1  # the stored snapshot holds everything up to this offset; -1: none is stored
        self._whole = True  # whether the stored snapshot has this chain's memory, or can have it
        self.large = False  # its memory does not fit into a snapshot
        self._since: tuple[int, int] | None = (
            None  # (first index, offset) of the first chunk behind the stored snapshot
        )

    def take(self, chunk: Chunk, places: Sequence[tuple[int, int]]) -> list[Output]:
        """Outputs that became whole by `chunk`."""
        self.last_offset, self.next_index = places[-1][1], chunk.end_index
        for end, offset in places:
            self._ledger.append((end, offset, self._seen))
            self._seen = max(self._seen, end)
        if self._since is None:
            starts = (chunk.first_index, *(end for end, _ in places))
            self._since = next(
                ((start, at) for start, (_, at) in zip(starts, places, strict=False) if at > self.stored_upto), None
            )
        made: list[Output] = self.stage.push(chunk)
        if chunk.end:
            made += self.stage.flush()
        if made and isinstance(made[-1], Chunk):
            self._made = (made[-1].header, made[-1].end_index)
        if chunk.end and self._made is not None and self._made[1] > self._ended_at:
            self._ended_at = self._made[1]
            made += self._outputs.ending(*self._made)
        self.ended = chunk.end
        made = [o for o in made if not isinstance(o, Window) or o.start_index > self.given_to]
        if made:
            self._note(made, places[0][1])
        return made

    def _note(self, made: list[Output], offset: int) -> None:
        if offset <= self.stored_upto:
            # Read again, it gives more than it had when it was stored: only a new snapshot can tell a restart of these.
            self.hold_until_stored(self.takes_from)
        self._given.extend(_Given(self._outputs.place(output), self._needed) for output in made)
        self._needed = self._chain_needs()
        self.given_to = made[-1].start_index if isinstance(made[-1], Window) else -1

    def hold_until_stored(self, offset: int) -> None:
        """Hold the commit at an offset until a new snapshot is stored."""
        self.irregular, self._since = True, self._since or (ENDLESS, offset)

    def note_other_place(self) -> None:
        """Another stream of the same kind has come: a restart must know which one feeds it, by a snapshot that says so."""
        if self.stored_upto < 0 or self._since is not None:
            self.irregular = True

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
        if not self._outputs.kinds:
            return own
        start = next(s.next_start for s in self.stage.stages if isinstance(s, WindowStage))
        return min(own, *(kind.needs(start, self._seen) for kind in self._outputs.kinds))

    def _needs(self) -> int:
        # An output may rest on samples before its own start: those on either side of a gap that was bridged.
        return min(self._given[0].rest, self._chain_needs()) if self._given else self._chain_needs()

    def hold(self) -> int | None:
        """Oldest offset that this session still needs; None if none."""
        # What only a snapshot can release stays whole, since a restart anywhere behind it could take it otherwise.
        if not self.must_snapshot():
            self._prune()
        if self._endless or self.stored_upto >= 0:  # all that no snapshot holds
            return self._since[1] if self._since is not None else None
        return self._ledger[0][1] if self._ledger else None

    def _prune(self) -> None:
        # The newest chunk stays although no window needs it: a restart learns from it what came already, and so what is a repetition.
        ledger, needs = self._ledger, self._needs()
        while len(ledger) > 1 and ledger[0][0] <= needs:
            ledger.popleft()

    def _behind_snapshot(self) -> bool:
        return self.stored_upto >= 0 and self._since is not None

    def must_snapshot(self) -> bool:
        """Whether only a snapshot can release what came."""
        return (self.ended or self.irregular) and self._since is not None

    @property
    def unsettled(self) -> bool:
        """Whether a snapshot is to be stored or withdrawn as soon as that may be."""
        return self.must_snapshot() or self._behind_snapshot()

    @property
    def unchanged(self) -> bool:
        """Whether the stored snapshot is all of it: then it may be forgotten until its next chunk."""
        return self.stored_upto >= 0 and self._since is None and not self.irregular and self._whole

    @property
    def behind(self) -> bool:
        """Whether a snapshot would say more than the stored one; where it has not yet come as far, one would say less."""
        renewed = not self._whole and not self.large
        return self.last_offset >= self.stored_upto and (self._since is not None or renewed)

    def can_withdraw(self, committed: int) -> bool:
        """Whether the stored snapshot is overtaken.

        Nothing from before the first chunk behind it is needed any more, and a restart begins behind it: at `committed`.
        """
        if self._endless or self._since is None or not self._behind_snapshot():
            return False
        first_index, offset = self._since
        whole = self._settled() >= self._outputs.memory  # else the snapshot holds some of what the next output rests on
        return whole and self._needs() >= first_index and committed >= offset

    def snapshot(self, published: Iterable[tuple[tuple[int, str], str]] = (), topic_id: str = "") -> partial[Snapshot]:
        """All of the session, as what makes the snapshot in any thread; only while no window is pending."""
        by_mark = dict(published)
        ahead = self._outputs.ahead(by_mark, self.given_to, self._seen)
        meta: dict[str, Any] = {"stream": self.stream, "memory": self.memory, "given_to": self.given_to}
        meta |= {"seen": self._seen, "published": sorted((*mark, by_mark[mark]) for mark in ahead)}
        if self._made is not None:
            meta |= {"made": header_to_json(self._made[0]), "made_end": self._made[1], "ended_at": self._ended_at}
        needs = self._needs()
        _, oldest, meta["open_seen"] = next(
            (entry for entry in self._ledger if entry[0] > needs or entry is self._ledger[-1]),
            (self._seen, self.takes_from, self._seen),
        )
        told = {"chain": self._chain, "topic": self.topic, "topic_id": topic_id, "upto": self.last_offset}
        told |= {"open": oldest, "ended": self.ended}
        return partial(Snapshot.of, told, meta, [stage.snapshot() for stage in self.stage.stages])

    def stored(self, whole: bool = True) -> None:
        """The snapshot just taken is acknowledged: it stands for every offset so far; `whole` if with the chain's memory."""
        self.stored_upto, self._whole = self.last_offset, whole
        self._given.clear()
        self._since = None
        self.irregular = False

    def withdrawn(self) -> None:
        """The stored snapshot is deleted."""
        self.stored_upto = -1
        self._since = None

    def reads_again(self, snapshot: Snapshot) -> bool:
        """Whether it could go on from a snapshot only by reading again what is open."""
        return not snapshot.ended and (snapshot.chain != self._chain or not snapshot.memory)

    def restore(self, snapshot: Snapshot, same_topic: bool = True) -> None:
        """Become what :meth:`snapshot` was taken of."""
        try:
            self._restore(snapshot, same_topic)
        except MessageError:
            raise
        except Exception as error:  # whatever stands there was written by somebody
            raise MessageError(f"a snapshot is damaged ({type(error).__name__}: {error})") from error

    def _restore(self, snapshot: Snapshot, same_topic: bool) -> None:
        meta = snapshot.meta
        self.published = {(int(start), str(head)): str(*made) for start, head, *made in meta.get("published", ())}
        self.stream, self.topic, self.ended = str(meta["stream"]), snapshot.topic, snapshot.ended
        self.memory, self.given_to = list(meta.get("memory", [])), int(meta.get("given_to", -1))
        if "made" in meta:
            header, end = header_from_json(meta["made"]), int(meta["made_end"])
            self._made, self._ended_at = (header, end), int(meta["ended_at"])
            self.published |= self._outputs.published_to(end)
        if self.reads_again(snapshot):
            # Where a window's oldest sample is not known, what comes next is all that can be taken.
            self.takes_from = snapshot.open if snapshot.open >= 0 else snapshot.upto + 1
            self.last_offset, self._seen = self.takes_from - 1, int(meta.get("open_seen", 0))
            if isinstance(entry := self.stage.stages[0], EntryStage):
                entry.go_on_from(self._seen)
        else:
            parts = snapshot.stages()
            for stage, part in zip(
                self.stage.stages[: 1 if snapshot.ended else None], parts, strict=not snapshot.ended
            ):
                stage.restore(part)
            self.takes_from, self.last_offset, self._seen = snapshot.upto + 1, snapshot.upto, int(meta.get("seen", 0))
            oldest = snapshot.open if snapshot.open >= 0 else snapshot.upto
            self._ledger.append((self._seen, oldest, int(meta.get("open_seen", 0))))
        if same_topic:
            self.stored_upto, self._whole = snapshot.upto, not self.reads_again(snapshot)
        else:
            # Only a new snapshot can stand for anything of the new topic.
            self.takes_from, self.irregular = 0, True
            self._ledger.clear()
