"""One partition of a recipe in a worker, without any input or output. In: records. Out: windows to classify, offsets to commit.

The owner reads records in order, classifies the windows that :meth:`Partition.take` gives, publishes the events, says so by
:meth:`Partition.acknowledge`, stores what :meth:`Partition.snapshots` asks for, and commits what :meth:`Partition.committable` says.
"""

from __future__ import annotations

import zlib
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from models.serving.handed import Left, Limits, Pending
from models.serving.outputs import Events, Mark, Output, Outputs, outputs_of, taken_chain
from models.serving.runs import SAMPLES, Run, decode_record
from models.serving.sessions import Session
from processors.chain import Chain
from streams.chunk import Chunk, Format, Header
from streams.codec import ChunkCodec
from streams.errors import ChunkError, FormatError

_BINDINGS = 10_000  # headers whose verdict is remembered
_IRREGULAR = ("duplicates", "late")


class Partition:
    """The sessions of one partition.

    Parameters
    ----------
    number : int
        The partition.
    chain : Chain
        From raw chunks to windows, with its learned numbers.
    matches : callable
        ``matches(format)`` is None for a stream that this recipe takes, else the reason why not.
    now_s : callable
        A monotonic clock.
    limits : Limits
        When to snapshot.
    outputs : Outputs, optional
        What the chain's outputs are; by default what the chain says.
    """

    def __init__(
        self,
        number: int,
        chain: Chain,
        matches: Callable[[Format], str | None],
        now_s: Callable[[], float],
        limits: Limits | None = None,
        outputs: Outputs | None = None,
    ) -> None:
        self.number, self.chain, self._matches, self._now_s = number, chain, matches, now_s
        self.limits = limits or Limits()
        self.counts: Counter[str] = Counter()
        self.sessions: dict[str, Session] = {}
        self._asleep: dict[str, bytes] = {}  # compressed, of sessions that are not loaded
        self._stored: dict[str, bytes] = {}  # of those that are, and have taken nothing since
        self._codec = ChunkCodec()
        self._digest = chain.digest(learned=False)
        self._outputs, self._takes = outputs or outputs_of(chain, Events("")), taken_chain(chain)
        self._verdicts: dict[int, tuple[Header, bool]] = {}
        self._left = Left()
        self.published: dict[str, set[Mark]] = {}  # what earlier lives have published, and may come again
        self.samples = 0
        self.events_end = 0
        self.next_offset: dict[str, int] = {}
        self._marks: dict[str, deque[tuple[int, int]]] = {}
        self._committed: dict[str, int] = {}  # by topic: what this life has committed

    def load(self, left: Left) -> None:
        """Take over what an earlier life left."""
        self._left, self.published, self.events_end = left, left.published, left.events_end
        self.next_offset = dict(left.next_offset)
        self._asleep = {name: zlib.compress(data, 1) for name, data in left.snapshots.items()}

    def mark(self, topic: str, offset: int) -> None:
        """A batch begins at `offset`: note from where on the events of anything from here on stand."""
        # What an earlier life may have read has its events anywhere from its mark on; what it cannot have read, behind today's end.
        seen_before = offset < self._left.input_end.get(topic, 0)
        at = self._left.events_start if seen_before else self.events_end
        marks = self._marks.setdefault(topic, deque())
        if not marks or marks[-1][1] != at:
            marks.append((offset, at))

    def take(
        self, topic: str, records: Iterable[Any], reject: Callable[[Any, ChunkError], None]
    ) -> Generator[list[Pending], None, None]:
        """Take records in order; where that is stopped half-way, :attr:`next_offset` tells what is not taken yet.

        Parameters
        ----------
        topic : str
            Where they stand.
        records : iterable
            With `offset`, `key`, `value` and `timestamp` (ms).
        reject : callable
            Called with a record that cannot be used, and why.

        Yields
        ------
        list of Pending
            What became whole; often nothing, so that the caller can stop to do other things.
        """
        runs: dict[str, Run] = {}
        try:
            for record in records:
                self.next_offset[topic] = record.offset + 1
                made = self._take(topic, record, runs, reject)
                if made is not None:
                    yield made
            while runs:
                yield self._push(runs.pop(next(iter(runs))), reject)
        finally:
            if runs:  # left half taken, as in a rebalance: what no session has yet must be read again
                self.next_offset[topic] = min(run.records[0].offset for run in runs.values())

    def _take(
        self, topic: str, record: Any, runs: dict[str, Run], reject: Callable[[Any, ChunkError], None]
    ) -> list[Pending] | None:
        """Take one record, which may wait among `runs` for those that follow it; None if nothing was pushed."""
        try:
            chunk = decode_record(self._codec, record)
        except ChunkError as error:
            reject(record, error)
            return None
        self.samples += chunk.count
        session = self._session_for(topic, chunk, record.offset)
        if session is None:
            return None
        made: list[Pending] | None = None
        run = runs.get(session.name)
        if run is not None and run.follows(chunk):
            run.add(chunk, record)
        else:
            if run is not None:
                made = self._push(runs.pop(session.name), reject)
            run = Run(session, chunk, record)
            if chunk.first_index != session.next_index:  # the first, late or repeated: looked at alone, and counted
                return (made or []) + self._push(run, reject)
            runs[session.name] = run
        if run.count >= SAMPLES:
            made = (made or []) + self._push(runs.pop(session.name), reject)
        return made

    def _session_for(self, topic: str, chunk: Chunk, offset: int) -> Session | None:
        """The session that takes a chunk; None if this recipe does not want it, or it is in a snapshot already."""
        if not self._wanted(chunk.header):
            self.counts["unmatched"] += 1
            return None
        session = self.sessions.get(chunk.session) or self._wake(chunk.session)
        if session.stream != chunk.stream:
            if session.stream:  # two places of one kind: the first one feeds the recipe
                self.counts["unmatched"] += 1
                session.irregular = True
                return None
            session.stream, session.topic = chunk.stream, topic
        return None if offset <= session.snapshot_upto else session

    def _push(self, run: Run, reject: Callable[[Any, ChunkError], None]) -> list[Pending]:
        session = run.session
        session.touched_s, session.sent_ms = self._now_s(), run.records[-1].timestamp
        self._stored.pop(session.name, None)
        try:
            made = session.take(run.joined(), run.places())
        except FormatError as error:  # a header that contradicts the session's own
            for record in run.records:
                reject(record, ChunkError("invalid", str(error)))
            return []
        counts = session.stage.take_counts()
        if counts:
            self.counts.update(counts)
            session.irregular = session.irregular or any(counts[name] for name in _IRREGULAR)
        return self._to_publish(session, made)

    def _to_publish(self, session: Session, made: list[Output]) -> list[Pending]:
        marks, outputs, sent_ms = self.published.get(session.name), self._outputs, session.sent_ms
        if not marks:
            return [Pending(o, outputs.place(o), session, sent_ms, left=outputs.records) for o in made]
        pending = []
        for output in made:
            fresh, known = outputs.fresh(output, marks)
            left = outputs.records - len(known)
            self.counts["windows_known"] += not left
            if left or outputs.memory:  # those behind it rest on it
                pending.append(Pending(fresh, outputs.place(output), session, sent_ms, known, left))
            else:
                session.acknowledge(outputs.place(output))
        if made and not known:  # so seldom, since there may be many
            self.published[session.name] = outputs.ahead(marks, session.given_to)
        return pending

    def _wanted(self, header: Header) -> bool:
        verdict = self._verdicts.get(id(header))
        if verdict is None:
            if len(self._verdicts) >= _BINDINGS:
                self._verdicts.clear()
            verdict = self._verdicts[id(header)] = (header, self._verdict(header))
        return verdict[1]

    def _verdict(self, header: Header) -> bool:
        # A derived stream is known by its chain; raw ones by what they are.
        return header.chain == self._takes and (bool(header.chain) or self._matches(header.format) is None)

    def rechain(self, chain: Chain) -> Iterator[list[Pending]]:
        """Go on with another chain of the same recipe; only while no window is pending. Session by session, what it has of what came."""
        self.chain, self._digest = chain, chain.digest(learned=False)
        for session in self.sessions.values():
            yield self._to_publish(session, session.rechain(chain.build(), self._digest))

    def _wake(self, name: str) -> Session:
        session = self.sessions[name] = Session(name, self.chain.build(), self._outputs, self._digest)
        if name in self._asleep:
            self._stored[name] = zlib.decompress(self._asleep.pop(name))
            self.counts["other_chain"] += not session.restore(self._stored[name])
        if session.published:
            self.published.setdefault(name, set()).update(session.published)
        return session

    def acknowledge(self, pending: Pending) -> None:
        """An event of a window is published and acknowledged (or the window needs none)."""
        pending.left -= 1
        if pending.left <= 0:
            pending.session.acknowledge(pending.place)

    @property
    def overdue(self) -> bool:
        """Whether a session holds the commit back for too long and cannot be stored, since a window of it is under way.

        Where windows flow without a pause there may always be one: then nothing must be taken until it is acknowledged.
        """
        return any(session.pending and self._lag(session) > self.limits.lag for session in self.sessions.values())

    def _lag(self, session: Session) -> int:
        """Offsets that a session holds the commit back."""
        held = session.hold()
        return self.next_offset.get(session.topic, 0) - held if held is not None else 0

    def snapshots(self) -> list[tuple[Session, bytes | None]]:
        """Sessions whose snapshot must be stored before the next commit can pass them; None deletes a stored one."""
        now = self._now_s()
        out: list[tuple[Session, bytes | None]] = []
        for session in list(self.sessions.values()):
            if session.pending:
                continue
            held, quiet = session.hold(), now - session.touched_s > self.limits.quiet_s
            if quiet and session.unchanged and session.name in self._stored:
                self._unload(session)
            elif session.must_snapshot() or (held is not None and (quiet or self._lag(session) > self.limits.lag)):
                out.append((session, session.snapshot(self.published.get(session.name, ()))))
            elif session.can_withdraw(self._restart(session.topic)):
                out.append((session, None))
        return out

    def stored(self, session: Session, snapshot: bytes | None) -> None:
        """What :meth:`snapshots` asked for is acknowledged (no record was taken in between)."""
        if snapshot is None:
            session.withdrawn()
            return
        session.stored()
        self._stored[session.name] = snapshot
        if session.ended or self._now_s() - session.touched_s > self.limits.quiet_s:
            self._unload(session)

    def _unload(self, session: Session) -> None:
        self._asleep[session.name] = zlib.compress(self._stored.pop(session.name), 1)
        del self.sessions[session.name]

    def committed(self, topic: str, offset: int) -> None:
        """The broker has the commit: a restart begins there."""
        self._committed[topic] = offset

    def _restart(self, topic: str) -> int:
        """Where a restart would begin to read."""
        return self._committed.get(topic, self._left.next_offset.get(topic, -1))

    def committable(self) -> dict[str, tuple[int, int]]:
        """By topic, where it changed: the offset that may be committed, and where to begin to read the events back from there."""
        holds: dict[str, int] = dict(self.next_offset)
        for session in self.sessions.values():
            held = session.hold()
            if held is not None:
                holds[session.topic] = min(holds.get(session.topic, held), held)
        out = {}
        for topic, offset in holds.items():
            if self._committed.get(topic) == offset:
                continue
            marks = self._marks.get(topic, deque())
            while len(marks) > 1 and marks[1][0] <= offset:
                marks.popleft()
            if marks:
                out[topic] = (offset, marks[0][1])
            else:  # not read from yet: what an earlier life read of it has its events from that life's mark on
                unread = offset < self._left.input_end.get(topic, 0)
                out[topic] = (offset, self._left.events_start if unread else self.events_end)
        return out
