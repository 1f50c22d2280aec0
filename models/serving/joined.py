"""A session of several inputs in a worker. In: chunks of its inputs with topics and offsets, decisions. Out: windows, what it still needs.

What a window rests on lies at offsets of several topics, and in what was decided of inputs that fell silent. So only a snapshot says what
was taken: until it is stored, the first offset of each topic behind the one before holds the commit, and what was published since is read
back from where the outputs stood when the first thing was taken that is in no snapshot, be it a record or a decision.

An input is given up once its topic is read to its end, nothing has come for `lateness_s` of wall time, and the others are so far ahead.
From then on nothing waits for it; the others stay so far ahead, lest what it has kept is late when it comes back, until it was silent for
`idle_s`. Where none is left that goes on, and some have ended, those that are silent are taken to have ended, too.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

from kymo.models.serving.outputs import Marks, Output
from kymo.models.serving.partition import SNAPSHOT_S, Partition, Pending
from kymo.models.serving.sessions import GivenOutput, Session, TopicId, same_topic
from kymo.models.serving.snapshots import Floor, Handover, SessionSnapshot, lowest
from kymo.processors.chain import Chain
from kymo.processors.join import Decision, Join, JoinStage
from kymo.processors.spec import chain_digest
from kymo.processors.windows import WindowStage
from kymo.streams.chunk import Chunk, Window
from kymo.streams.errors import MessageError
from kymo.streams.messages import read_object

#: Records taken, after which a session is stored; as it is after SNAPSHOT_S, or half as long.
SNAPSHOT_THINGS = 2_000
_AT_ONCE_S = 1e18


@dataclass(slots=True, frozen=True)
class Patience:
    """How long an input is waited for."""

    topic: str  # that it comes on
    lateness_s: float  # that the others may be ahead of it, and that nothing may have come
    idle_s: float = 60.0  # silent for longer, it is not expected back


class JoinedSession(Session):
    """Chain, and ledger of what came of each topic, of one session."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.goes_on_from_snapshots = True
        self.upto: dict[str, int] = {}  # by topic, the newest offset taken
        self._held: dict[str, int] = {}  # by topic, the first offset that is in no snapshot
        self._changed = False  # something is in no snapshot
        self.floor: Floor | None = None  # where the outputs stood when the first of that was taken
        self.decided = 0  # how many decisions it has heard of
        self._came_s: dict[str, float] = {}  # by branch, when something last came
        self._things = 0  # taken since the snapshot
        self._since_s = 0.0
        self.awake_s = math.inf  # when this life first knew of it
        # Sessions that began together are not all stored at once: all else would wait for that.
        self._share = 1 - zlib.crc32(self.name.encode()) % 1000 / 2000  # of SNAPSHOT_S

    @property
    def join(self) -> JoinStage:
        """Its entry."""
        entry = self.stage.stages[0]
        assert isinstance(entry, JoinStage)
        return entry

    def touch(self, floor: Callable[[], Floor], now_s: float, count: int) -> None:
        self.touched_s = now_s
        if not self._changed:
            self._changed, self.floor, self._since_s, self._things = True, floor(), now_s, 0
        self._things += count

    def is_new(self, topic: str, offset: int) -> bool:
        return offset > self.upto.get(topic, -1)

    def binds(self, chunk: Chunk, topic: str) -> bool:
        return True

    def expects(self, chunk: Chunk) -> bool:
        """Whether a chunk need not be looked at alone: each input counts its own."""
        return True

    def take(self, chunk: Chunk, places: Sequence[tuple[int, int]], topic: str = "") -> list[Output]:
        if (stream := self.join.input_of(chunk.stream)) is not None:
            self._came_s[stream] = self.touched_s
        self.upto[topic] = places[-1][1]
        self._held.setdefault(topic, places[0][1])
        return self._give(self.stage.push(chunk))

    def decide(self, decision: Decision) -> list[Output]:
        """Hear of a decision that is stored; outputs that became whole by it."""
        self.decided += 1
        return self._give(self.stage.decide(decision))

    def _give(self, outputs: list[Output]) -> list[Output]:
        if self.join.over and not self.ended:
            outputs += self.stage.flush()
            self.ended = True
        outputs = self._fresh(outputs)
        self._given_outputs.extend(GivenOutput(self._outputs.place(output), 0) for output in outputs)
        if outputs and isinstance(outputs[-1], Window):
            self.given_to = outputs[-1].start_index
        return outputs

    def due(self, patience: Mapping[str, Patience], marks: Marks, read_s: Mapping[str, float]) -> Decision | None:
        """What is to be decided first; `read_s` says as of when topics are read to their ends."""
        waits, silent_s = self.join.waits() if not self.ended else [], dict[str, float]()
        for wait in waits:
            came_s = self._came_s.get(wait.stream, self.awake_s)
            silent_s[wait.stream] = read_s.get(patience[wait.stream].topic, -math.inf) - came_s
        silent = {stream for stream, s in silent_s.items() if s >= patience[stream].lateness_s}
        over = len(silent) == len(waits) < len(self.join.spec.branches)
        for wait in waits:
            name, policy, since = wait.stream, patience[wait.stream], wait.since
            start = wait.tick if since is None else since
            lateness, idle = policy.lateness_s * self.join.spec.ticks, silent_s[name] >= policy.idle_s
            if since is not None and wait.back is not None:
                return Decision(name, since, max(wait.back, self._published_end(marks)))
            if start is None or name not in silent:
                continue
            if over:
                return Decision(name, start, origin_ns=wait.origin_ns, ends=True)
            if wait.newest - start >= lateness if since is None else wait.behind and idle:
                return Decision(name, start, origin_ns=wait.origin_ns, behind=0 if idle else math.ceil(lateness))
        return None

    def _published_end(self, marks: Marks) -> int:
        """Up to which tick an earlier life has published something that rests on it: that stands."""
        window = next((stage.spec.length for stage in self.stage.stages if isinstance(stage, WindowStage)), None)
        newest = max((place for place, _ in marks), default=-1)
        if window is not None or newest < 1:
            return 0 if newest < 0 else newest + (window or 0)
        fmt = self.stage.spec.output({})
        return int((newest - 1) * fmt.step) + fmt.span

    def _lags_s(self) -> dict[str, float]:
        """By input, how far the others are ahead of it, where that may have something decided although nothing comes."""
        waits = self.join.waits() if not self.ended else []
        some_ended, lags_s = len(waits) < len(self.join.spec.branches), dict[str, float]()
        for wait in waits:
            at_once = some_ended or wait.back is not None or wait.behind > 0
            if at_once or wait.tick is not None:
                lag_s = float((wait.newest - (wait.tick or 0)) / self.join.spec.ticks)
                lags_s[wait.stream] = _AT_ONCE_S if at_once else lag_s
        return lags_s

    def waits(self, patience: Mapping[str, Patience]) -> bool:
        """Whether a decision may be due although nothing comes any more."""
        return _are_due(self._lags_s(), patience)

    def holds(self) -> dict[str, int]:
        return self._held

    def must_snapshot(self) -> bool:
        old = self._things >= SNAPSHOT_THINGS or self.touched_s - self._since_s >= SNAPSHOT_S * self._share
        return self._changed and (self.ended or old)

    @property
    def unsettled(self) -> bool:
        return self._changed

    @property
    def unchanged(self) -> bool:
        return not self._changed and self.stored_upto >= 0 and self._whole

    @property
    def behind(self) -> bool:
        return self._changed

    def can_withdraw(self, committed: int) -> bool:
        """Never: nothing else says what was taken."""
        return False

    def snapshot(
        self, published: Iterable[tuple[tuple[int, str], str]] = (), topic_id: TopicId = lambda _: ""
    ) -> partial[SessionSnapshot]:
        by_mark = dict(published)
        ahead = self._outputs.ahead(by_mark, self.given_to)
        meta: dict[str, Any] = {"upto": dict(self.upto), "memory": self.memory, "given_to": self.given_to}
        meta |= {"published": sorted((*mark, by_mark[mark]) for mark in ahead), "decided": self.decided}
        meta |= self._made() | {"topic_ids": {topic: topic_id(topic) for topic in self.upto}, "lags_s": self._lags_s()}
        front = {"chain": self._chain, "topic": "", "topic_id": "", "upto": 0, "open": 0, "ended": self.ended}
        return partial(SessionSnapshot.of, front, meta, [stage.snapshot() for stage in self.stage.stages])

    def stored(self, whole: bool = True) -> None:
        self.stored_upto, self._whole = 0, whole
        self._given_outputs.clear()
        self._held, self._changed, self.floor = {}, False, None

    def begin_anew(self) -> None:
        self.stage, self.memory, self.decided = self.stage.spec.build(), [], 0

    def _restore(self, snapshot: SessionSnapshot, topic_id: TopicId) -> None:
        meta = snapshot.meta
        ids = meta["topic_ids"]
        self.upto = {str(t): int(n) for t, n in meta["upto"].items() if same_topic(str(ids[t]), topic_id(t))}
        self.published = {(int(start), str(head)): str(*bundle) for start, head, *bundle in meta["published"]}
        self.given_to, self.ended = int(meta["given_to"]), snapshot.ended
        self._go_on_from(meta)
        if snapshot.chain != self._chain:
            raise MessageError(
                "its recipe's chain has changed, and what several inputs have in common is not read again"
            )
        if not snapshot.memory:
            raise MessageError("what it held did not fit into a snapshot")
        for stage, part in zip(self.stage.stages, snapshot.stages(), strict=True):
            stage.restore(part)
        self.memory, self.decided, self.stored_upto, self._whole = list(meta["memory"]), int(meta["decided"]), 0, True


def _are_due(lags_s: Mapping[str, float], patience: Mapping[str, Patience]) -> bool:
    return any(lag_s >= patience[name].lateness_s for name, lag_s in lags_s.items() if name in patience)


class JoinedPartition(Partition):
    """The sessions of one partition, of a chain that joins several inputs."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        #: By branch, how long it is waited for.
        self.patience: Mapping[str, Patience] = {}
        self._asked: list[JoinedSession] = []  # of these something is due, if their topics are read to their ends
        self.decisions: dict[str, list[Decision]] = {}  # by session, what is stored of its inputs
        self._waiting = dict[JoinedSession, None]()  # of these something may be due although nothing comes
        # By topic: where it ended when that was asked last, and when; as of when it is read to its end.
        self._ends, self._read_s = dict[str, tuple[int, float]](), dict[str, float]()
        self._told: dict[str, tuple[int, Floor]] = {}  # what was last to be committed

    def load(self, handover: Handover) -> list[Pending]:
        self.decisions = {name: made for name, made in handover.decisions.items() if name not in handover.gone}
        super().load(handover)
        pending = list[Pending]()
        for name in self._asleep | self.decisions:
            stored, decisions = self._asleep.get(name), self.decisions.get(name, [])
            decided, lags_s = (stored.meta.get("decided", 0), stored.meta.get("lags_s", {})) if stored else (0, {})
            if decided < len(decisions) or _are_due(lags_s, self.patience):
                session = self._wake(name, "")
                for decision in decisions[session.decided :]:
                    session.touch(lambda: handover.start, self._now_s(), 0)  # what comes of it may be published already
                    pending += self._hear(session, decision)
        return pending

    def _session(self, name: str, takes_from: int) -> JoinedSession:
        return JoinedSession(name, self.chain.build(), self._outputs, self._digest, takes_from)

    def _instead(self, session: Session, takes_from: int) -> Session:
        session.begin_anew()
        return session

    def _wake(self, name: str, topic: str) -> JoinedSession:
        session = super()._wake(name, topic)
        assert isinstance(session, JoinedSession)
        session.awake_s, self._waiting[session] = self._now_s(), None
        if session.stored_upto < 0:
            self._tell_all(session)
        return session

    def _begin_anew(self, session: Session) -> None:
        super()._begin_anew(session)
        assert isinstance(session, JoinedSession)
        self._tell_all(session)

    def _tell_all(self, session: JoinedSession) -> None:
        """Have a session that begins anew hear what was decided of it: nothing has come yet that could leave."""
        for decision in self.decisions.get(session.name, ()):
            session.decide(decision)

    def to_ask(self) -> tuple[float, list[str]]:
        """Of which topics it must be known where they end, for something may be due; and what the time is."""
        now_s, candidates, self._waiting = self._now_s(), self._touched | self._waiting, {}
        known = [s for s in candidates if isinstance(s, JoinedSession) and self.sessions.get(s.name) is s]
        self._waiting = {session: None for session in known if session.waits(self.patience)}
        self._asked = [session for session, _ in self._due(known, dict.fromkeys(self.next_offset, now_s))]
        return now_s, [topic for topic in self.next_offset if topic not in self._ends] if self._asked else []

    def due(self, ends: Mapping[str, tuple[int, float]]) -> list[tuple[JoinedSession, Decision]]:
        """What is to be stored and then heard by :meth:`decide`; `ends` says of some topics where they end, and when that was asked.

        Where records come all the time, what is read never reaches the end; but soon where that stood before.
        """
        self._ends |= ends
        for topic, (end, asked_s) in list(self._ends.items()):
            if self._position(topic) >= end:
                self._read_s[topic] = asked_s
                del self._ends[topic]
        return self._due(
            [session for session in self._asked if self.sessions.get(session.name) is session], self._read_s
        )

    def _due(
        self, sessions: Iterable[JoinedSession], read_s: Mapping[str, float]
    ) -> list[tuple[JoinedSession, Decision]]:
        due = ((s, s.due(self.patience, self.published.get(s.name, {}), read_s)) for s in sessions)
        return [(session, decision) for session, decision in due if decision is not None]

    def stored(self, session: Session, snapshot: SessionSnapshot | None) -> None:
        assert isinstance(session, JoinedSession)
        self._waiting[session] = None
        super().stored(session, snapshot)

    def decide(self, session: JoinedSession, decision: Decision) -> list[Pending]:
        """Hear of a decision that is stored and acknowledged."""
        self.decisions.setdefault(session.name, []).append(decision)
        return self._hear(session, decision)

    def _hear(self, session: JoinedSession, decision: Decision) -> list[Pending]:
        session.touch(self._floor, self._now_s(), 1)
        self._touched[session] = None
        self._stored.pop(session.name, None)
        return self._to_publish(session, session.decide(decision))

    def mark(self, topic: str, offset: int) -> None:
        """Nothing: each session knows its own floor."""

    def _keeps(self, session: Session) -> bool:
        assert isinstance(session, JoinedSession)
        return session.waits(self.patience)

    def committable(self) -> dict[str, tuple[int, Floor]]:
        """All topics with one floor, whenever one of them or the floor has changed: none may keep an old note."""
        holds = self._update_holds()
        self._touched = {session: None for session in self._touched if session.unsettled}
        floors = [session.floor for session in self._touched if isinstance(session, JoinedSession) and session.floor]
        floor, out = lowest([self._floor(), *floors]), dict[str, tuple[int, Floor]]()
        for topic in self.next_offset:
            out[topic] = min((self._position(topic), *holds.get(topic, {}).values())), floor
        changed, self._told = out != self._told, out
        return out if changed else {}


def decisions_to_json(decisions: Sequence[Decision], chain: Chain) -> bytes:
    """A message that says what was decided of a session's inputs; their ticks are those of the chain's join."""
    told = {"join": chain_digest("", chain.specs[0]), "decisions": [astuple(decision) for decision in decisions]}
    return json.dumps(told).encode()


def decisions_from_json(value: bytes, chain: Chain) -> list[Decision]:
    """What :func:`decisions_to_json` was given; none where another join's ticks are meant."""
    told = read_object(value)
    try:
        decisions = [Decision(*decision) for decision in told["decisions"]]
        if told["join"] != chain_digest("", join := chain.specs[0]):
            return []
        assert isinstance(join, Join)
        if {decision.stream for decision in decisions} <= {branch.stream for branch in join.branches}:
            return decisions
        raise KeyError("stream")
    except (KeyError, TypeError) as error:
        raise MessageError(f"these are no decisions ({error!r})") from None
