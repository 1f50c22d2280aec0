"""Events as items, without any input or output. In: records, the time. Out: findings that may be published, snapshots, offsets to commit.

What a machine finds may rest on choices: on the time, and on the order in which partitions were read. So nothing of it is visible before
the choice is durable: a snapshot holds the machine's state *and* what it has found, and only once that is acknowledged is it published.
After a restart what is missing is published, known by its id; what came since the snapshot comes again, perhaps in another order, and
nobody has seen what was made of it the first time.

A machine is of one scope: a session, or all sessions at once. Then one owner reads all partitions, and what is kept and published stands
in the partition that is its home.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, Protocol

from aiokafka.structs import TopicPartition

from kymo.streams.errors import MessageError
from kymo.streams.messages import read_object

#: Records taken, and seconds since the first of them, after which a scope is stored although it has found nothing.
STORE_RECORDS, STORE_S = 2_000, 30.0
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Finding:
    """What is to be published."""

    id: str  # the same whenever it is found; no other finding of the topic has it
    key: bytes  # the record
    value: bytes


class Machine(Protocol):
    """What becomes of the items of one scope. It reads no clock: the time, Unix ns, comes with what it is told."""

    @property
    def due_ns(self) -> int | None:
        """When it wants to be told the time although nothing comes; None for never."""

    @property
    def over(self) -> bool:
        """Whether a new one would do as well from here on."""

    def push(self, item: Any, now_ns: int) -> list[Any]:
        """Take an item; give what is found."""

    def tick(self, now_ns: int) -> list[Any]:
        """Hear that it is so late; everything that had come was taken before."""

    def snapshot(self) -> dict[str, Any]:
        """All that it remembers, as JSON values."""

    def restore(self, state: Mapping[str, Any], now_ns: int) -> None:
        """Become what :meth:`snapshot` was taken of; how long nothing came counts from now."""


@dataclass(frozen=True, slots=True)
class EventOperator:
    """What an agent does whose items are events, or other small records."""

    recipe: str  # the name that metrics and lines for a person have
    state: str  # under which name its snapshots stand
    inputs: tuple[str, ...]  # full names of the topics that it reads
    topic: str  # full name of the topic for what is found; it must be a fenced one
    item: Callable[[Any], tuple[str, Any] | None]  # scope and item of a record; None for one that is not for it
    machine: Callable[[str], Machine]  # a new one for a scope
    finding: Callable[
        [Any, int], Finding
    ]  # what a machine found, as it is published; stamped with the present, Unix ns
    identify: Callable[
        [bytes | None], str | None
    ]  # the id of what stands in `topic`; None where others have written it


@dataclass(slots=True)
class ScopesHandover:
    """What an earlier owner hands over."""

    next_offset: dict[TopicPartition, int] = field(default_factory=dict)
    topic_ids: dict[str, str] = field(default_factory=dict)  # by topic, Kafka's id of it
    snapshots: dict[str, bytes] = field(default_factory=dict)  # by scope
    published: set[str] = field(default_factory=set)  # ids that stand in the topic since the oldest floor
    end: int = 0  # where the topic for what is found ends
    state_end: int = 0  # where ``kymo.state`` ends

    def floor(self) -> int:
        """From where on stands what the snapshots' outboxes may have in the topic."""
        floors = list[int]()
        for raw in self.snapshots.values():
            with suppress(MessageError):  # a damaged one is told of when it is taken over
                snapshot = ScopeSnapshot.decode(raw)
                floors += [snapshot.floor] if snapshot.outbox else []
        return min(floors, default=self.end)


@dataclass(frozen=True, slots=True)
class ScopeSnapshot:
    """A scope as it is stored."""

    machine: dict[str, Any]
    upto: dict[TopicPartition, int]  # the newest offset that is in it
    topic_ids: dict[str, str]  # of the topics that the offsets are of
    outbox: list[Finding]
    floor: int  # what stands of the outbox in its topic stands from here on: acknowledgements come in order

    def encode(self) -> bytes:
        """The message."""
        outbox = [(found.id, found.key.decode(), found.value.decode()) for found in self.outbox]
        members = {"version": _VERSION, "machine": self.machine, "upto": [(*tp, end) for tp, end in self.upto.items()]}
        members |= {"topic_ids": self.topic_ids, "outbox": outbox, "floor": self.floor}
        return json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, raw: bytes) -> ScopeSnapshot:
        """The snapshot of a message."""
        members = read_object(raw)
        if members.get("version") != _VERSION:
            raise MessageError(f"a snapshot of version {str(members.get('version'))[:40]}, this Kymo reads {_VERSION}")
        try:
            upto = {TopicPartition(str(topic), int(n)): int(end) for topic, n, end in members["upto"]}
            outbox = [Finding(str(name), key.encode(), value.encode()) for name, key, value in members["outbox"]]
            return cls(dict(members["machine"]), upto, dict(members["topic_ids"]), outbox, int(members["floor"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MessageError(f"a snapshot is damaged ({type(error).__name__}: {error})") from error


class Scope:
    """A machine, and the ledger of what it has taken and found."""

    def __init__(self, name: str, machine: Machine) -> None:
        self.name, self.machine = name, machine
        self.upto: dict[TopicPartition, int] = {}  # the newest offset taken
        self.held: dict[TopicPartition, int] = {}  # the first that is in no stored snapshot
        self.outbox: dict[str, Finding] = {}  # found, and not known to be published
        self.stored: set[str] = set()  # ids that the stored snapshot has
        self.is_stored = False
        self.records, self.since_s, self.touched_s = 0, 0.0, 0.0  # taken since the stored snapshot
        self.alarm_ns: int | None = None  # when it is told the time
        self.sent_ms = 0  # when the newest record taken was sent, Unix ms

    @property
    def settled(self) -> bool:
        """Whether the stored snapshot says all there is to say."""
        return not (self.held or self.outbox or self.stored or self.machine.over)


class Scopes:
    """The scopes of one owner: those of a partition's sessions, or the one of all."""

    def __init__(
        self,
        home: int,  # the partition for what is stored and published
        operator: EventOperator,
        now_ns: Callable[[], int],
        tell: Callable[[str], None],  # called with a line for a person
    ) -> None:
        self.number, self._operator, self._now_ns, self._tell = home, operator, now_ns, tell
        self.scopes: dict[str, Scope] = {}
        self.next_offset: dict[TopicPartition, int] = {}  # where reading goes on
        self.end = self.state_end = 0
        self.samples, self.counts = 0, Counter[str]()  # as partitions count for an observer
        self._topic_ids: dict[str, str] = {}
        self._committed: dict[TopicPartition, int] = {}
        self._changed: dict[Scope, None] = {}  # those that are not settled
        self._fresh: dict[Scope, None] = {}  # those that have found something that is in no stored snapshot
        self._released: deque[tuple[Scope, Finding]] = deque()
        self._alarms: list[tuple[int, int, Scope]] = []
        self._asked: tuple[int, Mapping[TopicPartition, int]] | None = None  # when, and where the inputs ended
        self._order = count()

    def topic_id(self, topic: str) -> str:
        """Kafka's id of an input topic; empty where it is not known."""
        return self._topic_ids.get(topic, "")

    def load(self, handover: ScopesHandover) -> None:
        """Take over from an earlier owner; what it has not published may be at once."""
        self.next_offset, self._topic_ids = dict(handover.next_offset), handover.topic_ids
        self._committed = dict(handover.next_offset)
        self.end, self.state_end = handover.end, handover.state_end
        for name, raw in handover.snapshots.items():
            scope = Scope(name, self._operator.machine(name))
            try:
                snapshot = ScopeSnapshot.decode(raw)
                scope.machine.restore(snapshot.machine, self._now_ns())
            except Exception as error:  # whatever stands there was written by somebody
                self._damaged(name, error)
                continue
            ids = {topic: (handover.topic_ids.get(topic), topic_id) for topic, topic_id in snapshot.topic_ids.items()}
            again = {topic for topic, (now, then) in ids.items() if now and then and now != then}
            # A topic that was made again has other records at these offsets.
            scope.upto = {tp: offset for tp, offset in snapshot.upto.items() if tp.topic not in again}
            scope.stored, scope.is_stored = {found.id for found in snapshot.outbox}, True
            scope.outbox = {found.id: found for found in snapshot.outbox if found.id not in handover.published}
            self._released += [(scope, found) for found in scope.outbox.values()]
            self.scopes[name] = scope
            self._note(scope)

    def _damaged(self, name: str, error: Exception) -> None:
        whose = f"session {name}" if name else "all sessions"
        self._tell(f"{self._operator.recipe}: {whose}: {type(error).__name__}: {error}; it begins anew with what comes")

    def take(self, tp: TopicPartition, records: Iterable[Any]) -> None:
        """Take records of a partition, in order."""
        now_ns = self._now_ns()
        now_s = now_ns / 1e9
        for record in records:
            self.next_offset[tp] = record.offset + 1
            try:
                item = self._operator.item(record)
            except Exception as error:  # no record may end a worker, again at every start
                self.counts["unmatched"] += 1
                self._tell(f"{self._operator.recipe}: {tp.topic}/{tp.partition} at {record.offset}: {error}; left out")
                continue
            if item is None:
                continue
            scope = self.scopes.get(item[0]) or self._open(item[0])
            if record.offset <= scope.upto.get(tp, -1):
                continue
            if not scope.held:
                scope.records, scope.since_s = 0, now_s
            scope.upto[tp], scope.records, scope.touched_s = record.offset, scope.records + 1, now_s
            scope.sent_ms = record.timestamp
            scope.held.setdefault(tp, record.offset)
            self._react(scope, partial(scope.machine.push, item[1], now_ns))

    def _open(self, name: str) -> Scope:
        scope = self.scopes[name] = Scope(name, self._operator.machine(name))
        return scope

    def _react(self, scope: Scope, find: Callable[[], Sequence[Any]]) -> None:
        try:
            findings = [self._operator.finding(found, self._now_ns()) for found in find()]
        except Exception as error:  # no record may end a worker, again at every start
            self._damaged(scope.name, error)
            scope.machine, findings = self._operator.machine(scope.name), []
        if findings:
            scope.outbox |= {found.id: found for found in findings}
            self._fresh[scope] = None
        self._note(scope)

    def _note(self, scope: Scope) -> None:
        if not scope.settled:
            self._changed[scope] = None
        due_ns = scope.machine.due_ns
        if due_ns is not None and (scope.alarm_ns is None or due_ns < scope.alarm_ns):
            scope.alarm_ns = due_ns
            heapq.heappush(self._alarms, (due_ns, next(self._order), scope))

    @property
    def asks(self) -> bool:
        """Whether it is to be found out where the inputs end, since a machine may want to be told the time."""
        return self._asked is None and bool(self._alarms) and self._alarms[0][0] <= self._now_ns()

    def ask(self, asked_ns: int, ends: Mapping[TopicPartition, int]) -> None:
        """Hear where the inputs ended at that time, or later; what comes behind is of no account, and never ends."""
        self._asked = asked_ns, ends

    def tick(self) -> None:
        """Tell the time to those that want it, as of when it was asked where the inputs end, if all that stood there is taken."""
        if self._asked is None or any(self.next_offset[tp] < end for tp, end in self._asked[1].items()):
            return
        (now_ns, _), self._asked, ringing = self._asked, None, list[Scope]()
        while self._alarms and self._alarms[0][0] <= now_ns:
            at_ns, _, scope = heapq.heappop(self._alarms)
            if at_ns == scope.alarm_ns and self.scopes.get(scope.name) is scope:
                scope.alarm_ns = None
                ringing.append(scope)
        for scope in ringing:
            due_ns = scope.machine.due_ns
            if due_ns is not None and due_ns <= now_ns:
                self._react(scope, partial(scope.machine.tick, now_ns))
            else:
                self._note(scope)

    @property
    def waiting(self) -> int:
        """What was found and is not published."""
        return sum(len(scope.outbox) for scope in self._changed)

    @property
    def ready(self) -> bool:
        """Whether something was found that may be published, or may once a snapshot holds it."""
        return bool(self._released) or bool(self._fresh)

    def snapshots(self, timed: bool = True) -> list[tuple[Scope, ScopeSnapshot | None]]:
        """What is to be stored now, None to delete a stored one; unless `timed`, only of those that have found something.

        No record may be taken until it is stored, and :meth:`stored` says so.
        """
        due, now_s = list[tuple[Scope, ScopeSnapshot | None]](), self._now_ns() / 1e9
        for scope in list(self._changed if timed else self._fresh):
            if scope.machine.over and not scope.is_stored and not scope.outbox:
                self._forget(scope)  # as if it had never been
                continue
            if scope.is_stored and self._may_forget(scope):
                due.append((scope, None))
                continue
            old = scope.records >= STORE_RECORDS or now_s - scope.since_s >= STORE_S or scope.machine.over
            # What is published need not be looked for at every restart, but to say so of each finding would double the writing.
            stale = bool(scope.stored) and not scope.outbox and now_s - scope.touched_s >= STORE_S
            if scope in self._fresh or stale or (scope.held and old):
                due.append((scope, self._snapshot(scope)))
        return due

    def _may_forget(self, scope: Scope) -> bool:
        """Whether its snapshot may go: a restart takes nothing again that is in it."""
        done = scope.machine.over and not scope.held and not scope.outbox
        return done and all(self._committed.get(tp, 0) > offset for tp, offset in scope.upto.items())

    def _forget(self, scope: Scope) -> None:
        del self.scopes[scope.name]
        self._changed.pop(scope, None)
        self._fresh.pop(scope, None)

    def _snapshot(self, scope: Scope) -> ScopeSnapshot:
        ids = {tp.topic: self.topic_id(tp.topic) for tp in scope.upto}
        return ScopeSnapshot(scope.machine.snapshot(), dict(scope.upto), ids, list(scope.outbox.values()), self.end)

    def stored(self, scope: Scope, snapshot: ScopeSnapshot | None) -> None:
        """A snapshot is acknowledged; what it has of the outbox may be published."""
        if snapshot is None:
            self._forget(scope)
            return
        self._released += [(scope, found) for found in snapshot.outbox if found.id not in scope.stored]
        scope.stored, scope.is_stored = {found.id for found in snapshot.outbox}, True
        scope.held = {}
        self._fresh.pop(scope, None)
        if scope.settled:
            del self._changed[scope]

    def released(self) -> list[tuple[Scope, Finding]]:
        """What may be published, each once."""
        released = list(self._released)
        self._released.clear()
        return released

    def acknowledge(self, scope: Scope, found: Finding, end: int) -> None:
        """It is published; the topic went on to `end`, where that is known."""
        self.end = max(self.end, end)
        scope.outbox.pop(found.id, None)

    def committable(self) -> dict[TopicPartition, int]:
        """Where it changed: the offset that may be committed."""
        offsets = dict(self.next_offset)
        for scope in self._changed:
            for tp, offset in scope.held.items():
                offsets[tp] = min(offsets[tp], offset)
        return {tp: offset for tp, offset in offsets.items() if offset > self._committed.get(tp, -1)}

    def committed(self, tp: TopicPartition, offset: int) -> None:
        """The broker has the commit: a restart begins there."""
        self._committed[tp] = offset
