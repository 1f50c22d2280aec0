"""One partition of a recipe in a worker, without any input or output. In: records. Out: windows to classify, offsets to commit.

The owner reads records in order, classifies the windows that :meth:`Partition.take` gives, publishes the events, says so by
:meth:`Partition.acknowledge`, stores what :meth:`Partition.snapshots` asks for, and commits what :meth:`Partition.committable` says.

What a commit costs depends on the sessions that something happened to since the one before, not on all.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from kymo.models.serving.outputs import Events, Marks, Output, Outputs, outputs_of, taken_chain
from kymo.models.serving.sessions import ChunkRun, Listener, Session, same_topic
from kymo.models.serving.snapshots import Floor, Handover, SessionSnapshot
from kymo.processors.chain import Chain
from kymo.streams.budget import PACKED
from kymo.streams.chunk import Chunk, Format, Header
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import ChunkError, FormatError, MessageError

_BINDINGS = 10_000  # headers whose verdict is remembered
SNAPSHOT_S = 30.0  # after which a snapshot is tried again, or is due where nothing else tells what was taken
_REJECTED = 10_000  # so many are remembered although nobody comes back to them
_IRREGULAR = ("duplicates", "late")
Reject = Callable[[Any, ChunkError], None]


@dataclass(slots=True, frozen=True)
class Limits:
    """When a session gets a snapshot, so that it holds back no commit."""

    quiet_s: float = 60.0  # seconds without a chunk after which a session is stored and unloaded
    lag: int = 20_000  # offsets that a session may hold the commit back


@dataclass(slots=True, eq=False)
class Pending:
    """A window on its way to becoming an event."""

    output: Output  # the window, or the derived chunk; deleted once it is judged
    place: int  # where in the session's input it stands
    session: Session  # whose it is
    sent_ms: int  # Unix time at which its last chunk was sent, ms
    # numbers of its records (the events of its heads) that stand already and are not published again
    published: frozenset[int] = frozenset()
    # records; none where all are published: then it is judged for the sake of those behind it
    unacknowledged: int = 1
    bundle: str = ""  # what made those that are published; those behind it rest on it only where the same bundle judges


def decode_record(codec: ChunkCodec, record: Any) -> Chunk:
    """The chunk of a record."""
    if record.value is None:
        raise ChunkError("undecodable", "a record without a value")
    chunk = codec.decode(record.value)
    if record.key != chunk.header.session.encode():
        key = "absent" if record.key is None else repr(record.key[:40])
        raise ChunkError(
            "key", f"the record's key is {key}, its session {chunk.session!r}; the key must be the session"
        )
    return chunk


class Partition:
    """The sessions of one partition."""

    def __init__(
        self,
        number: int,
        chain: Chain,  # from raw chunks to windows, with its learned numbers
        matches: Callable[[Format], str | None],
        now_s: Callable[[], float],
        limits: Limits | None = None,
        outputs: Outputs | None = None,  # what the chain's outputs are; by default what the chain says
    ) -> None:
        self.number, self.chain, self._matches, self._now_s = number, chain, matches, now_s
        self.limits = limits or Limits()
        self.counts: Counter[str] = Counter()
        self.sessions: dict[str, Session] = {}  # the one that was quiet for longest comes first
        # by session, why its stored snapshot is of no use, or its samples are doubtful; emptied by the owner, who tells of it
        self.damaged: dict[str, str] = {}
        self._asleep: dict[str, SessionSnapshot] = {}  # of sessions that are not loaded
        self._stored: dict[str, SessionSnapshot] = {}  # of those that are, and have taken nothing since
        self.takes_runs = (
            True  # whether consecutive chunks are taken as one; else each waits, and grows too old, by itself
        )
        self.listen: Callable[[], Listener] | None = None  # what makes a listener for a new session
        self._codec = ChunkCodec()
        self._digest = chain.digest(learned=False)
        self._outputs, self._takes = outputs or outputs_of(chain, Events("")), taken_chain(chain)
        self._verdicts: dict[int, tuple[Header, bool]] = {}
        self._handover = Handover()
        self.published: dict[str, Marks] = {}  # what earlier lives have published, and may come again
        self.samples = 0
        self.end, self.state_end = Floor(), 0
        self.next_offset: dict[str, int] = {}  # by input topic, where reading goes on
        self._runs: dict[str, ChunkRun] = {}  # by session: read, but not yet taken
        self._pushing: Session | None = None  # has taken some pieces of its run, perhaps a part of a record
        self._floors: dict[str, deque[tuple[int, Floor]]] = {}
        self._committed: dict[str, int] = {}  # by topic: what this life has committed
        self._touched: dict[Session, None] = {}  # something happened to it since the last commit
        self._holds: dict[str, dict[Session, int]] = {}  # by topic, what the others need

    def load(self, handover: Handover) -> list[Pending]:
        """Take over from an earlier life; give what is whole although nothing has come."""
        self._handover, self.published = handover, handover.published
        self.end, self.state_end = handover.end, handover.state_end
        self.next_offset, self._asleep = dict(handover.next_offset), dict(handover.snapshots)
        probe = self._session("", 0)
        for name, snapshot in handover.snapshots.items():
            if (
                snapshot.topic not in self.next_offset
                or not self._same_topic(snapshot)
                or not probe.reads_again(snapshot)
            ):
                continue
            self.counts["other_chain"] += snapshot.chain != self._digest
            first = handover.first_offset.get(snapshot.topic, 0)
            if snapshot.open < first:
                since = "is not known" if snapshot.open < 0 else f"{snapshot.open} is gone"
                self.damaged[name] = (
                    f"the oldest offset that its open window needs {since}; what is left begins at {first}"
                )
            if snapshot.open >= 0:
                self.next_offset[snapshot.topic] = min(self.next_offset[snapshot.topic], max(first, snapshot.open))
        for name in self._asleep.keys() & handover.published.keys() if self._outputs.kinds else ():
            with suppress(TypeError, ValueError):  # a damaged one is told of when its session wakes
                self._wake_if_behind(name, handover.published[name])
        return []

    def _floor(self) -> Floor:
        """Where the outputs stand at the earliest of what is taken now, whichever topic it comes from."""
        again = any(self._position(topic) < self._handover.input_end.get(topic, 0) for topic in self.next_offset)
        return self._handover.start if again else self.end

    def _wake_if_behind(self, name: str, marks: Marks) -> None:
        """Have a session stored again whose snapshot does not know of windows that another kind published of what is in it.

        No record need come for it, and behind the next commit nobody reads those events back.
        """
        snapshot = self._asleep[name]
        meta, topic = snapshot.meta, snapshot.topic
        stored = {(start, head) for start, head, *_ in meta.get("published", ())}
        ahead = self._outputs.ahead(marks, meta.get("given_to", -1), meta.get("seen", 0))
        same = self._same_topic(snapshot)
        if (
            same
            and ahead - stored
            and snapshot.upto >= self._handover.first_offset.get(topic, 0)
            and topic in self.next_offset
        ):
            self._wake(name, topic).hold_until_stored(self._handover.next_offset[topic] - 1)

    def _same_topic(self, snapshot: SessionSnapshot) -> bool:
        return same_topic(snapshot.topic_id, self.topic_id(snapshot.topic))

    def topic_id(self, topic: str) -> str:
        """Kafka's id of an input topic; empty where it is not known."""
        return self._handover.topic_ids.get(topic, "")

    def rejects(self, topic: str, offset: int) -> bool:
        """Whether a record that is of no use is yet to be rejected; asked once, it is."""
        rejected = self._handover.rejected
        rejected_before = (topic, offset) in rejected
        rejected.add((topic, offset))
        return not rejected_before

    def mark(self, topic: str, offset: int) -> None:
        """A batch begins at `offset`: note from where on stands what comes of anything from here on."""
        # What an earlier life may have read has its events anywhere from its mark on; what it cannot have read, behind today's end.
        floor = self._handover.start if offset < self._handover.input_end.get(topic, 0) else self.end
        floors = self._floors.setdefault(topic, deque())
        if not floors or floors[-1][1] != floor:
            floors.append((offset, floor))

    def take(self, topic: str, records: Iterable[Any], reject: Reject) -> Generator[list[Pending], None, None]:
        """Take records in order; where that is stopped half-way, :attr:`next_offset` tells what is not taken yet."""
        runs, behind = self._runs, self._handover.next_offset.get(topic, 0)
        try:
            for record in records:
                self.next_offset[topic] = record.offset + 1
                try:
                    chunk = decode_record(self._codec, record)
                except ChunkError as error:
                    if record.offset >= behind:
                        reject(record, error)
                    continue
                self.samples += len(chunk.data)
                session = self._session_for(topic, chunk, record.offset)
                if session is None:
                    continue
                run = runs.get(session.name)
                if run is not None and run.follows(chunk):
                    run.add(chunk, record)
                else:
                    if run is not None:
                        yield from self._push(run, reject)
                    run = runs[session.name] = ChunkRun(session, topic, chunk, record)
                # The first, late or repeated one is looked at alone, and counted.
                if run.full or not self.takes_runs or (len(run.chunks) == 1 and not session.expects(chunk)):
                    yield from self._push(run, reject)
            while runs:
                yield from self._push(next(iter(runs.values())), reject)
        finally:
            self._pushing = None
            if runs:  # stopped half-way, as in a rebalance: what no session has yet must be read again
                self.next_offset[topic] = self._position(topic)
                runs.clear()

    def _position(self, topic: str) -> int:
        """The oldest offset that no session has taken."""
        offset: int = min((self.next_offset[topic], *(run.records[0].offset for run in self._runs.values())))
        return offset

    def _session_for(self, topic: str, chunk: Chunk, offset: int) -> Session | None:
        """The session that takes a chunk; None if this recipe does not want it, or it is in a snapshot already."""
        header = chunk.header
        if not (self._verdicts.get(id(header)) or self._verdict(header))[1]:
            self.counts["unmatched"] += 1
            return None
        session = self.sessions.get(header.session)
        if session is None:
            if header.session not in self._asleep and offset < self._handover.next_offset.get(topic, 0):
                return None  # behind the commit: read again for another session's sake
            session = self._wake(header.session, topic)
        if not session.is_new(topic, offset):
            return None
        if session.stream != header.format.stream and not session.binds(chunk, topic):
            self.counts["unmatched"] += 1
            self._touched[session] = None
            return None
        return session

    def _push(self, run: ChunkRun, reject: Reject) -> Iterator[list[Pending]]:
        session = run.session
        self.sessions[session.name] = self.sessions.pop(session.name)  # the last to be quiet
        self._touched[session] = None
        session.touch(self._floor, self._now_s(), len(run.records))
        session.sent_ms = run.records[-1].timestamp
        self._stored.pop(session.name, None)
        self._pushing = session
        for chunk, places in run.pieces():
            try:
                outputs = session.take(chunk, places, run.topic)
            except FormatError as error:  # a header that contradicts the session's own
                self._refuse(run, str(error), reject)
                break
            except Exception as error:  # no record may end a worker, again at every start
                self.damaged[session.name] = f"{type(error).__name__}: {error}"
                self._refuse(run, self.damaged[session.name], reject)
                self._begin_anew(session)
                break
            self._listen(session, chunk)
            counts = session.stage.take_counts()
            if counts:
                self.counts.update(counts)
                session.irregular = session.irregular or any(counts[name] for name in _IRREGULAR)
            yield self._to_publish(session, outputs)
        self._pushing = None
        self._runs.pop(session.name, None)

    def _begin_anew(self, session: Session) -> None:
        session.begin_anew()

    def _listen(self, session: Session, chunk: Chunk) -> None:
        """Have a new session's first samples judged, until that is done."""
        if session.listener is None:
            return
        try:
            doubt = session.listener(chunk)
        except Exception as error:  # what only doubts may end no worker
            doubt = f"its first samples could not be judged ({error})"
        if doubt is not None:
            session.listener = None
            if doubt:
                self.counts["doubtful"] += 1
                self.damaged[session.name] = doubt

    @staticmethod
    def _refuse(run: ChunkRun, why: str, reject: Reject) -> None:
        for record in run.records:
            reject(record, ChunkError("invalid", why))

    def _to_publish(self, session: Session, items: list[Output]) -> list[Pending]:
        marks, outputs, sent_ms = self.published.get(session.name), self._outputs, session.sent_ms
        if not marks:
            return [Pending(o, outputs.place(o), session, sent_ms, unacknowledged=outputs.records) for o in items]
        pending = []
        for item in items:
            fresh, published = outputs.fresh(item, marks)
            unacknowledged = outputs.records - len(published)
            self.counts["windows_known"] += not unacknowledged
            if unacknowledged or outputs.memory:  # those behind it rest on it
                bundle = outputs.bundle(item, marks)
                pending.append(Pending(fresh, outputs.place(item), session, sent_ms, published, unacknowledged, bundle))
            else:
                session.acknowledge(outputs.place(item))
        if items and not published:  # so seldom, since there may be many
            ahead = outputs.ahead(marks, session.given_to)
            self.published[session.name] = {mark: bundle for mark, bundle in marks.items() if mark in ahead}
        return pending

    def _verdict(self, header: Header) -> tuple[Header, bool]:
        """Whether the recipe takes a stream; by identity, so that the header is kept."""
        if len(self._verdicts) >= _BINDINGS:
            self._verdicts.clear()
        # A derived stream is known by its chain; raw ones by what they are.
        verdict = header, header.chain == self._takes and self._matches(header.format) is None
        self._verdicts[id(header)] = verdict
        return verdict

    def _wake(self, name: str, topic: str) -> Session:
        takes_from, snapshot = self._handover.next_offset.get(topic, 0), self._asleep.pop(name, None)
        session = self._session(name, takes_from)
        if snapshot is None:
            session.listener = self.listen() if self.listen is not None else None
        else:
            try:
                session.restore(snapshot, self.topic_id)
                if session.unchanged:
                    self._stored[name] = snapshot
            except MessageError as error:
                self.damaged[name] = str(error)
                session = self._instead(session, takes_from)
        if session.published:
            self.published.setdefault(name, {}).update(session.published)
        self.sessions[name] = session
        self._touched[session] = None
        return session

    def _session(self, name: str, takes_from: int) -> Session:
        return Session(name, self.chain.build(), self._outputs, self._digest, takes_from)

    def _instead(self, session: Session, takes_from: int) -> Session:
        """What takes the place of a session whose snapshot is of no use."""
        return self._session(session.name, takes_from)

    def acknowledge(self, pending: Pending) -> None:
        """An event of a window is published and acknowledged (or the window needs none)."""
        pending.unacknowledged -= 1
        if pending.unacknowledged <= 0:
            pending.session.acknowledge(pending.place)
            self._touched[pending.session] = None

    @property
    def overdue(self) -> bool:
        """Whether a session holds the commit back for too long and cannot be stored, since a window of it is under way.

        Where windows flow without a pause there may always be one: then nothing must be taken until it is acknowledged.
        """
        now_s = self._now_s()
        return any(session.pending and now_s >= session.not_before_s for session in self._late())

    def _late(self) -> list[Session]:
        """Sessions that hold the commit back by more than the limit."""
        late = []
        for topic, holds in self._update_holds().items():
            last = self.next_offset.get(topic, 0) - self.limits.lag
            if min(holds.values(), default=last) < last:
                late += [session for session, offset in holds.items() if offset < last]
        return late

    def _update_holds(self) -> dict[str, dict[Session, int]]:
        for session in self._touched:
            held = session.holds()
            for topic in self._holds.keys() | held.keys():
                if topic in held:
                    self._holds.setdefault(topic, {})[session] = held[topic]
                else:
                    self._holds[topic].pop(session, None)
        return self._holds

    def snapshots(self) -> list[tuple[Session, partial[SessionSnapshot] | None]]:
        """Sessions whose snapshot must be stored before the next commit can pass them, with what makes it; None deletes a stored one."""
        now_s, due = self._now_s(), list[tuple[Session, partial[SessionSnapshot] | None]]()
        late, quiet, size = dict.fromkeys(self._late()), dict[Session, None](), 0
        for session in self.sessions.values():
            if now_s - session.touched_s <= self.limits.quiet_s:
                break
            quiet[session] = None
        for session in late | quiet | self._touched:
            if size >= PACKED:
                break
            if session.pending or session is self._pushing or now_s < session.not_before_s:
                continue
            if session in quiet and session.unchanged and session.name in self._stored:
                self._unload(session)
            elif session.behind and (session.must_snapshot() or session in quiet or session in late):
                published = self.published.get(session.name, {}).items()
                due.append((session, make := session.snapshot(published, self.topic_id)))
                size += sum(map(len, make.args[-1]))  # the memories of its stages
            elif session.can_withdraw(self._restart(session.topic)):
                due.append((session, None))
        return due

    def put_off(self, session: Session) -> None:
        """Try later to store a session that is too large for it now; until then it holds the commit."""
        session.not_before_s = self._now_s() + SNAPSHOT_S

    def stored(self, session: Session, snapshot: SessionSnapshot | None) -> None:
        """What :meth:`snapshots` asked for is acknowledged (no record was taken in between)."""
        self._touched[session] = None
        if snapshot is None:
            session.withdrawn()
            return
        session.stored(bool(snapshot.memory))
        self._stored[session.name] = snapshot
        if session.unchanged and (session.ended or self._now_s() - session.touched_s > self.limits.quiet_s):
            self._unload(session)

    def _unload(self, session: Session) -> None:
        if session.name in self._runs or self._keeps(session):
            return
        self._asleep[session.name] = self._stored.pop(session.name)
        del self.sessions[session.name]
        self._touched.pop(session, None)
        for holds in self._holds.values():
            holds.pop(session, None)

    def _keeps(self, session: Session) -> bool:
        """Whether a session may give something although nothing comes."""
        return False

    def committed(self, topic: str, offset: int) -> None:
        """The broker has the commit: a restart begins there."""
        self._committed[topic] = offset
        rejected = self._handover.rejected
        if len(rejected) > _REJECTED:
            rejected -= {(name, place) for name, place in rejected if name == topic and place < offset}

    def _restart(self, topic: str) -> int:
        """Where a restart would begin to read."""
        return self._committed.get(topic, self._handover.next_offset.get(topic, -1))

    def committable(self) -> dict[str, tuple[int, Floor]]:
        """By topic, where it changed: the offset that may be committed, and where to begin to read the outputs back from there."""
        holds, out = self._update_holds(), {}
        self._touched = {session: None for session in self._touched if session.unsettled}
        for topic in self.next_offset:
            offset = min((self._position(topic), *holds.get(topic, {}).values()))
            # What a session reads again takes no commit back: what comes of it stands behind the last one's floor.
            if offset <= self._committed.get(topic, -1) or offset < self._handover.next_offset.get(topic, 0):
                continue
            floors = self._floors.get(topic, deque())
            while len(floors) > 1 and floors[1][0] <= offset:
                floors.popleft()
            if floors:
                out[topic] = (offset, floors[0][1])
            else:  # not read from yet: what an earlier life read of it has its events from that life's mark on
                unread = offset < self._handover.input_end.get(topic, 0)
                out[topic] = (offset, self._handover.start if unread else self.end)
        return out
