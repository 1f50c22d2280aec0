"""One session in a worker. In: its chunks with their offsets. Out: windows, and which offsets the session still needs.

What comes out of a chain does not depend on how its input is cut, so a backlog of small chunks goes through as runs of few large ones.

Offsets are released once no open window needs their samples and every window made of them is acknowledged. Where that cannot be told
from the samples alone (a late or repeated chunk, a session that has ended or gone quiet) a snapshot takes their place, and so it does
for every offset where a window rests on all before it, as it does behind a filter or for a stateful model.

A snapshot whose memory is of no use here (another chain's, or left out since it was too large) still says which windows were given and
where the oldest open one begins: the session is read again from there, and what it gave before it does not give again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from kymo.models.serving.outputs import ENDLESS, Marks, Output, Outputs
from kymo.models.serving.snapshots import Floor, SessionSnapshot
from kymo.processors.chain import ChainStage
from kymo.processors.intake import EntryStage
from kymo.processors.spec import header_from_json, header_to_json
from kymo.processors.windows import WindowStage
from kymo.streams.budget import MESSAGE_DATA, RUN
from kymo.streams.chunk import Chunk, Format, Header, Window
from kymo.streams.errors import FormatError, MessageError

#: A run is pushed when it holds so many (or :data:`~kymo.streams.budget.RUN` bytes), and in pieces of so many: more would only add
#: latency, and memory.
SAMPLES = 2_048


@dataclass(slots=True)
class GivenOutput:
    """An output: its place, the oldest sample that may be needed to make it again, and whether it is not yet acknowledged."""

    place: int
    oldest: int
    open: bool = True


#: Kafka's id of an input topic, by its name; empty where it is not known.
TopicId = Callable[[str], str]
#: Told of a new session's chunks: why they are doubtful, empty where they are not, None while that is not known.
Listener = Callable[[Chunk], str | None]


def same_topic(stored_id: str, topic_id: str) -> bool:
    """Whether offsets that were kept of a topic are of the one that stands there now."""
    return not stored_id or not topic_id or stored_id == topic_id


class Session:
    """Chain, and ledger of offsets, of one session."""

    def __init__(self, name: str, stage: ChainStage, outputs: Outputs, chain: str = "", takes_from: int = 0) -> None:
        self.name, self.stage, self._outputs, self._chain = name, stage, outputs, chain
        self.takes_from = takes_from
        self.goes_on_from_snapshots = stage.spec.endless  # never by reading again what is open
        self._endless = stage.spec.endless or outputs.memory >= ENDLESS
        self.given_to = -1  # where the newest window given begins
        self._seen = 0  # one past the newest sample taken
        self.published: Marks = {}  # by its snapshot: what earlier lives have published, and may come again
        self.stream = ""  # the stream that feeds it; "" until its first chunk
        self.topic = ""
        self.ended = False
        self.listener: Listener | None = None  # hears its first samples
        self._together: dict[str, int] = {}
        self.irregular = False  # something came that a restart from an offset could take otherwise
        self.touched_s = 0.0
        self.sent_ms = 0  # when the newest chunk taken was sent, Unix ms
        self.next_index = -1  # where the newest chunk taken ended
        self._given_outputs: deque[GivenOutput] = (
            deque()
        )  # outputs not acknowledged, and those before them that they rest on
        #: What is remembered of the last outputs, for those behind them; whoever judges them keeps it.
        self.memory: list[Any] = []
        self._needed = 0  # what the chain needed when it last gave outputs: the next ones rest on nothing older
        self._derived: tuple[Header, int] | None = None  # header and end of the newest derived chunk
        self._ended_at = -1  # where the derived stream's last end mark stands
        # (end index, offset, what was seen before) of chunks still needed
        self._ledger: deque[tuple[int, int, int]] = deque()
        self.last_offset = -1
        self.stored_upto = -1  # the stored snapshot holds everything up to this offset; -1: none is stored
        self._whole = True  # whether the stored snapshot has this chain's memory, or can have it
        self.large = False  # its memory does not fit into a snapshot
        self.not_before_s = 0.0  # when a snapshot may be tried again
        # (first index, offset) of the first chunk behind the stored snapshot
        self._since: tuple[int, int] | None = None

    def is_new(self, topic: str, offset: int) -> bool:
        """Whether a record of a topic is not in the session yet."""
        return offset >= self.takes_from

    def binds(self, chunk: Chunk, topic: str) -> bool:
        """Whether a chunk of another stream than the session's is to be taken: the first one's, of two places of one kind."""
        if self.stream:
            self.note_other_place()
            return False
        self.stream, self.topic = chunk.stream, topic
        return True

    def expects(self, chunk: Chunk) -> bool:
        """Whether a chunk is the next one; another is looked at alone, and counted."""
        return chunk.first_index == self.next_index

    def samples_together(self, fmt: Format) -> int:
        """How many samples of `fmt` may go through the chain at once."""
        if fmt.stream not in self._together:
            try:
                self._together[fmt.stream] = max(1, min(SAMPLES, int(RUN / self.stage.spec.widest(fmt))))
            except FormatError:  # the chain will say so
                return SAMPLES
        return self._together[fmt.stream]

    def touch(self, floor: Callable[[], Floor], now_s: float, count: int) -> None:
        """So many records are about to be taken; `floor` tells where the outputs stand."""
        self.touched_s = now_s

    def take(self, chunk: Chunk, places: Sequence[tuple[int, int]], topic: str = "") -> list[Output]:
        """Outputs that became whole by `chunk`."""
        self.last_offset, self.next_index = places[-1][1], chunk.end_index
        for end, offset in places:
            self._ledger.append((end, offset, self._seen))
            self._seen = max(self._seen, end)
        if self._since is None:
            starts = (chunk.first_index, *(end for end, _ in places))
            self._since = next(
                (
                    (start, offset)
                    for start, (_, offset) in zip(starts, places, strict=False)
                    if offset > self.stored_upto
                ),
                None,
            )
        outputs: list[Output] = self.stage.push(chunk)
        if chunk.end:
            outputs += self.stage.flush()
        self.ended = chunk.end
        outputs = self._fresh(outputs)
        if outputs:
            self._note(outputs, places[0][1])
        return outputs

    def _fresh(self, outputs: list[Output]) -> list[Output]:
        """Of what the chain gave, what was not given yet; a derived stream in parts that fit into messages, and with its end mark."""
        if outputs and isinstance(outputs[-1], Chunk):
            outputs = [part for output in outputs for part in output.parts(MESSAGE_DATA)]  # type: ignore[union-attr]
            self._derived = (outputs[-1].header, outputs[-1].end_index)
        if self.ended and self._derived is not None and self._derived[1] > self._ended_at:
            self._ended_at = self._derived[1]
            outputs += self._outputs.ending(*self._derived)
        return [o for o in outputs if not isinstance(o, Window) or o.start_index > self.given_to]

    def _note(self, outputs: list[Output], offset: int) -> None:
        if offset <= self.stored_upto:
            # Read again, it gives more than it had when it was stored: only a new snapshot can tell a restart of these.
            self.hold_until_stored(self.takes_from)
        self._given_outputs.extend(GivenOutput(self._outputs.place(output), self._needed) for output in outputs)
        self._needed = self._chain_needs()
        self.given_to = outputs[-1].start_index if isinstance(outputs[-1], Window) else -1

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
        return sum(output.open for output in self._given_outputs)

    def acknowledge(self, place: int) -> None:
        """The output at `place` needs nothing more for itself."""
        next(output for output in self._given_outputs if output.open and output.place == place).open = False
        keep = 0 if self._endless else self._outputs.memory
        while self._settled() > keep:
            self._given_outputs.popleft()

    def _settled(self) -> int:
        """How many outputs stand before the first that is open."""
        return next((i for i, output in enumerate(self._given_outputs) if output.open), len(self._given_outputs))

    def _chain_needs(self) -> int:
        needed = min(self.stage.needs_from.values(), default=0)
        if not self._outputs.kinds:
            return needed
        start = next(s.next_start for s in self.stage.stages if isinstance(s, WindowStage))
        return min(needed, *(kind.needs(start, self._seen) for kind in self._outputs.kinds))

    def _needs(self) -> int:
        # An output may rest on samples before its own start: those on either side of a gap that was bridged.
        return min(self._given_outputs[0].oldest, self._chain_needs()) if self._given_outputs else self._chain_needs()

    def offset_of(self, place: int) -> int:
        """Offset of the record that holds an input index which is still needed."""
        return next((offset for end, offset, _ in self._ledger if end > place), self.last_offset)

    def holds(self) -> dict[str, int]:
        """By topic, the oldest offset that this session still needs."""
        offset = self._hold()
        return {} if offset is None else {self.topic: offset}

    def _hold(self) -> int | None:
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

    def snapshot(
        self, published: Iterable[tuple[tuple[int, str], str]] = (), topic_id: TopicId = lambda _: ""
    ) -> partial[SessionSnapshot]:
        """All of the session, as what makes the snapshot in any thread; only while no window is pending."""
        by_mark = dict(published)
        ahead = self._outputs.ahead(by_mark, self.given_to, self._seen)
        meta: dict[str, Any] = {"stream": self.stream, "memory": self.memory, "given_to": self.given_to}
        meta |= {"seen": self._seen, "published": sorted((*mark, by_mark[mark]) for mark in ahead)}
        meta |= self._made()
        needs = self._needs()
        _, oldest, meta["open_seen"] = next(
            (entry for entry in self._ledger if entry[0] > needs or entry is self._ledger[-1]),
            (self._seen, self.takes_from, self._seen),
        )
        front = {"chain": self._chain, "topic": self.topic, "topic_id": topic_id(self.topic), "upto": self.last_offset}
        front |= {"open": oldest, "ended": self.ended}
        return partial(SessionSnapshot.of, front, meta, [stage.snapshot() for stage in self.stage.stages])

    def stored(self, whole: bool = True) -> None:
        """The snapshot just taken is acknowledged: it stands for every offset so far; `whole` if with the chain's memory."""
        self.stored_upto, self._whole = self.last_offset, whole
        self._given_outputs.clear()
        self._since = None
        self.irregular = False

    def withdrawn(self) -> None:
        """The stored snapshot is deleted."""
        self.stored_upto = -1
        self._since = None

    def reads_again(self, snapshot: SessionSnapshot) -> bool:
        """Whether it could go on from a snapshot only by reading again what is open."""
        return not snapshot.ended and (snapshot.chain != self._chain or not snapshot.memory)

    def restore(self, snapshot: SessionSnapshot, topic_id: TopicId = lambda _: "") -> None:
        """Become what :meth:`snapshot` was taken of; `topic_id` says which topics stand there now."""
        try:
            self._restore(snapshot, topic_id)
        except MessageError:
            raise
        except Exception as error:  # whatever stands there was written by somebody
            raise MessageError(f"a snapshot is damaged ({type(error).__name__}: {error})") from error

    def _made(self) -> dict[str, Any]:
        """Where the derived stream stands, if that is what comes out."""
        if self._derived is None:
            return {}
        header, end = self._derived
        return {"made": header_to_json(header), "made_end": end, "ended_at": self._ended_at}

    def _go_on_from(self, meta: Mapping[str, Any]) -> None:
        if "made" in meta:
            header, end = header_from_json(meta["made"]), int(meta["made_end"])
            self._derived, self._ended_at = (header, end), int(meta["ended_at"])
            self.published |= self._outputs.published_to(end)

    def begin_anew(self) -> None:
        """Forget what the chain has seen."""
        self.stage, self.irregular = self.stage.spec.build(), True

    def _restore(self, snapshot: SessionSnapshot, topic_id: TopicId) -> None:
        meta = snapshot.meta
        self.published = {(int(start), str(head)): str(*bundle) for start, head, *bundle in meta.get("published", ())}
        self.stream, self.topic, self.ended = str(meta["stream"]), snapshot.topic, snapshot.ended
        self.memory, self.given_to = list(meta.get("memory", [])), int(meta.get("given_to", -1))
        self._go_on_from(meta)
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
        if same_topic(snapshot.topic_id, topic_id(snapshot.topic)):
            self.stored_upto, self._whole = snapshot.upto, not self.reads_again(snapshot)
        else:
            # Only a new snapshot can stand for anything of the new topic.
            self.takes_from, self.irregular = 0, True
            self._ledger.clear()


class ChunkRun:
    """Consecutive chunks of one stream of one session, to be taken as one."""

    def __init__(self, session: Session, topic: str, chunk: Chunk, record: Any) -> None:
        self.session, self.topic, self.chunks, self.records = session, topic, list[Chunk](), list[Any]()
        self.count = self.size = 0
        self.add(chunk, record)

    def follows(self, chunk: Chunk) -> bool:
        """Whether `chunk` goes on exactly where this run ends."""
        last = self.chunks[-1]
        return chunk.header is last.header and chunk.first_index == self.end and not last.end and chunk.times_ns is None

    def add(self, chunk: Chunk, record: Any) -> None:
        """Add a chunk that :meth:`follows`."""
        self.chunks.append(chunk)
        self.records.append(record)
        count = len(chunk.data)
        self.end, self.count, self.size = chunk.first_index + count, self.count + count, self.size + len(record.value)
        #: Whether it holds as much as may go through a chain together.
        self.full = self.count >= SAMPLES or self.size >= RUN

    def pieces(self) -> Iterator[tuple[Chunk, list[tuple[int, int]]]]:
        """All of it as one chunk, or as several where it is long, each with end index and offset of the chunks that it is made of."""
        chunk = self._joined()
        places = [(c.end_index, record.offset) for c, record in zip(self.chunks, self.records, strict=True)]
        samples = self.session.samples_together(chunk.header.format)
        if chunk.count < 2 * samples:
            yield chunk, places
            return
        for start in range(0, chunk.count, samples):
            stop = min(start + samples, chunk.count)
            first, end = chunk.first_index + start, chunk.first_index + stop
            inside = [place for place in places if first < place[0] <= end]
            if not inside or inside[-1][0] < end:  # it ends inside of a chunk
                inside.append((end, next(offset for above, offset in places if above > end)))
            yield chunk.part(start, stop), inside

    def _joined(self) -> Chunk:
        first, last = self.chunks[0], self.chunks[-1]
        if first is last:
            return first
        data = np.concatenate([chunk.data for chunk in self.chunks])
        filled, absent = sum((c.filled for c in self.chunks), ()), sum((c.absent for c in self.chunks), ())
        return Chunk(first.header, first.first_index, data, None, last.end, filled, absent=absent)
