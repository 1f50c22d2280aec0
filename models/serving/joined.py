"""A session of several inputs in a worker. In: chunks of its inputs with topics and offsets, decisions. Out: windows, what it still needs.

What a window rests on lies at offsets of several topics, and in what was decided of inputs that fell silent. So only a snapshot says what
was taken: until it is stored, the first offset of each topic behind the one before holds the commit, and what was published since is read
back from where the outputs stood when the first thing was taken that is in no snapshot, be it a record or a decision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

from kymo.models.serving.outputs import Marks, Output
from kymo.models.serving.sessions import GivenOutput, Session
from kymo.models.serving.snapshots import Floor, SessionSnapshot
from kymo.processors.join import Decision, JoinStage, Wait
from kymo.processors.windows import WindowStage
from kymo.streams.chunk import Chunk
from kymo.streams.errors import MessageError

#: Records taken, and seconds since the first of them, after which a session is stored.
SNAPSHOT_THINGS, SNAPSHOT_S = 2_000, 30.0


@dataclass(slots=True, frozen=True)
class Patience:
    """How long an input is waited for."""

    topic: str  # that it comes on
    lateness_s: float  # that the others may be ahead of it, and that nothing may have come


class JoinedSession(Session):
    """Chain, and ledger of what came of each topic, of one session."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.upto: dict[str, int] = {}  # by topic, the newest offset taken
        self._held: dict[str, int] = {}  # by topic, the first offset that is in no snapshot
        self._changed = False  # something is in no snapshot
        self.floor: Floor | None = None  # where the outputs stood when the first of that was taken
        self.decided = 0  # how many decisions it has heard of
        self._came_s: dict[str, float] = {}  # by branch, when something last came
        self._things = 0  # taken since the snapshot
        self._since_s = 0.0
        self._awake_s = math.inf  # when this life first took something of it

    @property
    def join(self) -> JoinStage:
        """Its entry."""
        entry = self.stage.stages[0]
        assert isinstance(entry, JoinStage)
        return entry

    def touch(self, floor: Callable[[], Floor], now_s: float, count: int) -> None:
        self.touched_s = now_s
        self._awake_s = min(self._awake_s, now_s)
        if not self._changed:
            self._changed, self.floor, self._since_s, self._things = True, floor(), now_s, 0
        self._things += count

    def is_new(self, topic: str, offset: int) -> bool:
        return offset > self.upto.get(topic, -1)

    def expects(self, chunk: Chunk) -> bool:
        """Whether a chunk need not be looked at alone: each input counts its own."""
        return True

    def take(self, chunk: Chunk, places: Sequence[tuple[int, int]], topic: str = "") -> list[Output]:
        branch = self.join.spec.takes(chunk.stream)
        if branch is not None:
            self._came_s[branch.stream] = self.touched_s
        self.upto[topic] = places[-1][1]
        self._held.setdefault(topic, places[0][1])
        outputs: list[Output] = self.stage.push(chunk)
        if self.join.over and not self.ended:
            outputs += self.stage.flush()
            self.ended = True
        return self._give(outputs)

    def decide(self, decision: Decision) -> list[Output]:
        """Hear of a decision that is stored; outputs that became whole by it."""
        self.decided += 1
        return self._give(self.stage.decide(decision))

    def _give(self, outputs: list[Output]) -> list[Output]:
        outputs = [output for output in outputs if output.start_index > self.given_to]  # type: ignore[union-attr]
        if outputs:
            self._given_outputs.extend(GivenOutput(self._outputs.place(output), 0) for output in outputs)
            self.given_to = outputs[-1].start_index  # type: ignore[union-attr]
        return outputs

    def due(
        self, patience: Mapping[str, Patience], marks: Marks, is_read: Mapping[str, bool], now_s: float
    ) -> list[Decision]:
        """What is to be decided now: inputs that fell silent while the others went on, and those that are back."""
        decisions = list[Decision]()
        for wait in self.join.waits() if not self.ended else ():
            policy = patience[wait.stream]
            silent_s = now_s - self._came_s.get(wait.stream, self._awake_s)
            if wait.back is not None:
                decisions.append(Decision(wait.stream, wait.since, max(wait.back, self._published_end(marks))))
            elif (
                self._is_late(wait, policy)
                and wait.tick is not None
                and is_read.get(policy.topic, False)
                and silent_s >= policy.lateness_s
            ):
                decisions.append(Decision(wait.stream, wait.tick))
        return decisions

    def _published_end(self, marks: Marks) -> int:
        """Where the newest window ends that an earlier life has published: what it says of its ticks stands."""
        return max((start + self._window_length for start, _ in marks), default=0)

    def _is_late(self, wait: Wait, policy: Patience) -> bool:
        return wait.tick is not None and wait.newest - wait.tick >= policy.lateness_s * float(self.join.spec.ticks)

    def waits(self, patience: Mapping[str, Patience]) -> bool:
        """Whether a decision may be due although nothing comes any more."""
        return not self.ended and any(self._is_late(wait, patience[wait.stream]) for wait in self.join.waits())

    @property
    def _window_length(self) -> int:
        return next(stage.spec.length for stage in self.stage.stages if isinstance(stage, WindowStage))

    def holds(self) -> dict[str, int]:
        return self._held

    def must_snapshot(self) -> bool:
        old = self._things >= SNAPSHOT_THINGS or self.touched_s - self._since_s >= SNAPSHOT_S
        return self._changed and (self.ended or self.irregular or old)

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
        self, published: Iterable[tuple[tuple[int, str], str]] = (), topic_id: str = ""
    ) -> partial[SessionSnapshot]:
        by_mark = dict(published)
        ahead = self._outputs.ahead(by_mark, self.given_to)
        meta: dict[str, Any] = {"upto": dict(self.upto), "memory": self.memory, "given_to": self.given_to}
        meta |= {"published": sorted((*mark, by_mark[mark]) for mark in ahead), "decided": self.decided}
        front = {"chain": self._chain, "topic": "", "topic_id": topic_id, "upto": 0, "open": 0, "ended": self.ended}
        return partial(SessionSnapshot.of, front, meta, [stage.snapshot() for stage in self.stage.stages])

    def stored(self, whole: bool = True) -> None:
        self.stored_upto, self._whole = 0, whole
        self._given_outputs.clear()
        self._held, self._changed, self.floor, self.irregular = {}, False, None, False

    def _restore(self, snapshot: SessionSnapshot, same_topic: bool) -> None:
        if self.reads_again(snapshot):
            raise MessageError(
                "its recipe's chain has changed, and what several inputs have in common is not read again"
            )
        meta = snapshot.meta
        self.published = {(int(start), str(head)): str(*bundle) for start, head, *bundle in meta["published"]}
        self.memory, self.given_to, self.ended = list(meta["memory"]), int(meta["given_to"]), snapshot.ended
        self.upto = {str(topic): int(offset) for topic, offset in meta["upto"].items()}
        self.decided, self.stored_upto, self._whole = int(meta["decided"]), 0, True
        for stage, part in zip(self.stage.stages, snapshot.stages(), strict=True):
            stage.restore(part)


def decisions_to_json(decisions: Sequence[Decision]) -> list[list[Any]]:
    """Decisions as JSON values; :func:`decisions_from_json` reads them back."""
    return [list(astuple(decision)) for decision in decisions]


def decisions_from_json(values: Sequence[Sequence[Any]]) -> list[Decision]:
    """What :func:`decisions_to_json` was given."""
    return [Decision(*value) for value in values]
