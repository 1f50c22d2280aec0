"""A worker's life in memory whose items are events: Scopes against logs, with crashes anywhere."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from aiokafka.structs import TopicPartition
from hypothesis import currently_in_test_context, note

from kymo.models.serving.scopes import EventOperator, Finding, Scope, Scopes, ScopesHandover

SECOND_NS = 10**9
MOVES = ["arrive"] * 3 + ["read"] * 5 + ["store", "publish", "hear", "commit", "tick", "wait"] * 2 + ["crash"]


@dataclass
class ItemLog:
    """What outlives a worker."""

    inputs: dict[TopicPartition, list[tuple[str, str]]]  # scope and item
    whole: bool  # one scope for all of it
    visible: dict[TopicPartition, int] = field(default_factory=dict)
    found: list[Finding] = field(default_factory=list)
    state: dict[str, bytes] = field(default_factory=dict)
    commits: dict[TopicPartition, int] = field(default_factory=dict)

    def left(self) -> ScopesHandover:
        left = ScopesHandover({tp: self.commits.get(tp, 0) for tp in self.inputs}, snapshots=dict(self.state))
        left.end = len(self.found)
        left.published = {found.id for found in self.found[left.floor() :]}
        return left


class ItemLife:
    """A worker between two crashes."""

    def __init__(self, log: ItemLog, operator: EventOperator, clock: list[int]) -> None:
        self.log, self.clock = log, clock
        self.scopes = Scopes(0, operator, lambda: clock[0], pytest.fail)
        self.scopes.load(log.left())
        self.asked: dict[TopicPartition, int] = {}  # where the inputs ended when the time was asked
        self.waiting: deque[tuple[Scope, Finding]] = deque()
        self.sent: deque[tuple[Scope, Finding, int]] = deque()

    def read(self, tp: TopicPartition, count: int) -> int:
        start = self.scopes.next_offset[tp]
        items = self.log.inputs[tp][start : min(start + count, self.log.visible.get(tp, 0))]
        records = [
            SimpleNamespace(
                offset=offset, key=b"" if self.log.whole else scope.encode(), value=item.encode(), timestamp=0
            )
            for offset, (scope, item) in enumerate(items, start)
        ]
        self.scopes.take(tp, records)
        return len(records)

    def tick(self) -> None:
        if self.scopes.asks:
            self.asked = {tp: self.log.visible.get(tp, 0) for tp in self.log.inputs}
            self.scopes.ask(self.clock[0], self.asked)
        self.scopes.tick()

    def store(self, crash_after: int = 99, *, heard: bool = True, timed: bool = True) -> bool:
        """Store what is due; False if it crashed on the way, perhaps before it heard of what is stored."""
        for number, (scope, snapshot) in enumerate(self.scopes.snapshots(timed)):
            if number == crash_after and heard:
                return False
            if snapshot is None:
                self.log.state.pop(scope.name, None)
            else:
                self.log.state[scope.name] = snapshot.encode()
            if number == crash_after:
                return False
            self.scopes.stored(scope, snapshot)
        return True

    def publish(self, count: int) -> None:
        self.waiting += self.scopes.released()
        for _ in range(min(count, len(self.waiting))):
            scope, found = self.waiting.popleft()
            self.log.found.append(found)
            self.sent.append((scope, found, len(self.log.found)))

    def hear(self, count: int) -> None:
        for _ in range(min(count, len(self.sent))):
            self.scopes.acknowledge(*self.sent.popleft())

    def commit(self) -> None:
        for tp, offset in self.scopes.committable().items():
            assert offset >= self.log.commits.get(tp, 0)
            self.log.commits[tp] = offset
            self.scopes.committed(tp, offset)

    def finish(self) -> None:
        """Take all, wait, and let everything through."""
        for _ in range(4):
            for tp in self.log.inputs:
                while self.read(tp, 50):
                    pass
            self.tick()
            self.store()
            self.publish(10**6)
            self.hear(10**6)
            self.commit()
            self.clock[0] += 100 * SECOND_NS


def act(life: ItemLife, pick: random.Random) -> bool:
    """A random step; False if it has crashed."""
    name, tp, count, log = pick.choice(MOVES), pick.choice(sorted(life.log.inputs)), pick.randint(1, 6), life.log
    if currently_in_test_context():
        note(f"{name} {tp.partition} {count}")
    if name == "arrive":
        log.visible[tp] = min(log.visible.get(tp, 0) + count, len(log.inputs[tp]))
    elif name == "read":
        life.read(tp, count)
    elif name == "store":
        return life.store(pick.choice([99, 99, 0, 1]), heard=pick.random() < 0.5, timed=pick.random() < 0.5)
    elif name == "publish":
        life.publish(count)
    elif name == "hear":
        life.hear(count)
    elif name == "wait":
        life.clock[0] += pick.choice([SECOND_NS // 2, 2 * SECOND_NS, 40 * SECOND_NS])
    elif name in ("commit", "tick"):
        getattr(life, name)()
    return name != "crash"
