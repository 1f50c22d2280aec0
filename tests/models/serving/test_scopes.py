"""Findings of machines against logs in memory: whatever is crashed, every item is in one published finding, and in one only."""

from __future__ import annotations

import contextlib
import json
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from aiokafka.structs import TopicPartition
from hypothesis import currently_in_test_context, given, note, settings
from hypothesis import strategies as st

from kymo.models.serving import scopes
from kymo.models.serving.scopes import EventOperator, Finding, Machine, Scope, Scopes, ScopesHandover, ScopeSnapshot
from kymo.streams.errors import MessageError

SECOND_NS = 10**9
MOVES = ["arrive"] * 3 + ["read"] * 5 + ["store", "publish", "hear", "commit", "tick", "wait"] * 2 + ["crash"]


class Bundler:
    """A machine that gives its items away three at once, or all when nothing came for a second."""

    def __init__(self, scope: str) -> None:
        self._scope, self._items, self.due_ns = scope, list[str](), None

    due_ns: int | None

    @property
    def over(self) -> bool:
        return not self._items

    def push(self, item: str, now_ns: int) -> list[Finding]:
        self._items.append(item)
        self.due_ns = now_ns + SECOND_NS
        return self._give() if len(self._items) == 3 else []

    def tick(self, now_ns: int) -> list[Finding]:
        return self._give()

    def _give(self) -> list[Finding]:
        found = Finding(f"{self._scope}/{self._items[0]}", self._scope.encode(), json.dumps(self._items).encode())
        self._items, self.due_ns = [], None
        return [found]

    def snapshot(self) -> dict[str, Any]:
        return {"items": self._items}

    def restore(self, state: Mapping[str, Any], now_ns: int) -> None:
        self._items = list(state["items"])
        self.due_ns = now_ns + SECOND_NS if self._items else None


def item_of(record: Any) -> tuple[str, str] | None:
    if record.value == b"odd":
        raise MessageError("no item")
    return None if record.value == b"" else (record.key.decode(), record.value.decode())


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

    def __init__(self, log: ItemLog, machine: Callable[[str], Machine], clock: list[int]) -> None:
        operator = EventOperator("r", "r", ("in",), "out", item_of, machine, lambda _: None)
        self.log, self.clock = log, clock
        self.scopes = Scopes(0, operator, lambda: clock[0], pytest.fail)
        self.scopes.load(log.left())
        self.waiting: deque[tuple[Scope, Finding]] = deque()
        self.sent: deque[tuple[Scope, Finding, int]] = deque()

    def read(self, tp: TopicPartition, count: int) -> int:
        start = self.scopes.next_offset[tp]
        items = self.log.inputs[tp][start : min(start + count, self.log.visible.get(tp, 0))]
        records = [
            SimpleNamespace(offset=offset, key=b"" if self.log.whole else scope.encode(), value=item.encode())
            for offset, (scope, item) in enumerate(items, start)
        ]
        self.scopes.take(tp, records)
        return len(records)

    def tick(self) -> None:
        if self.scopes.rings:
            self.scopes.tick({tp: self.log.visible.get(tp, 0) for tp in self.log.inputs})

    def store(self, crash_after: int = 99, *, heard: bool = True) -> bool:
        """Store what is due; False if it crashed on the way, perhaps before it heard of what is stored."""
        for number, (scope, snapshot) in enumerate(self.scopes.snapshots()):
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
        return life.store(pick.choice([99, 99, 0, 1]), heard=pick.random() < 0.5)
    elif name == "publish":
        life.publish(count)
    elif name == "hear":
        life.hear(count)
    elif name == "wait":
        life.clock[0] += pick.choice([SECOND_NS // 2, 2 * SECOND_NS, 40 * SECOND_NS])
    elif name in ("commit", "tick"):
        getattr(life, name)()
    return name != "crash"


def recorded(pick: random.Random) -> ItemLog:
    """Items of some sessions in one partition, or in several for one scope."""
    whole = pick.random() < 0.5
    tps = [TopicPartition("in", n) for n in range(pick.randint(2, 3) if whole else 1)]
    counts = {tp: pick.randint(5, 40) for tp in tps}
    return ItemLog(
        {tp: [(f"s{pick.randint(0, 3)}", f"{tp.partition}.{i}") for i in range(counts[tp])] for tp in tps}, whole
    )


def check(log: ItemLog) -> None:
    """Every item is in one finding of its scope, those of a partition in their order."""
    for tp, items in log.inputs.items():
        for name in {"" if log.whole else scope for scope, _ in items}:
            mine = [item for scope, item in items if log.whole or scope == name]
            found = [item for f in log.found if f.key.decode() == name for item in json.loads(f.value)]
            assert [item for item in found if item in mine] == mine, (tp, name)
    assert len(log.found) == len({found.id for found in log.found})


def campaign(seed: int, without: str = "") -> None:
    """A random log, worked on in random steps."""
    pick, clock = random.Random(seed), [10**18]
    log = recorded(pick)
    with mock.patch.object(scopes, "STORE_RECORDS", pick.choice([2, 10, 2000])), left_out(without):
        life = ItemLife(log, Bundler, clock)
        for _ in range(pick.randint(20, 150)):
            if not act(life, pick):
                life = ItemLife(log, Bundler, clock)
        log.visible = {tp: len(items) for tp, items in log.inputs.items()}
        for _ in range(2):
            life = ItemLife(log, Bundler, clock)
            life.finish()
            check(log)


def left_out(rule: str) -> Any:
    """One of the rules as it would be if it were none."""
    react, stored, encode = Scopes._react, Scopes.stored, ScopeSnapshot.encode

    def published_at_once(self: Scopes, scope: Scope, findings_of: Any) -> None:
        before = set(scope.outbox)
        react(self, scope, findings_of)
        self._released += [(scope, found) for found in scope.outbox.values() if found.id not in before]

    def released_before(self: Scopes, scope: Scope, snapshot: ScopeSnapshot | None) -> None:
        released = list(self._released)
        stored(self, scope, snapshot)
        self._released = deque(released)

    def without_outbox(self: ScopeSnapshot) -> bytes:
        return encode(ScopeSnapshot(self.machine, self.upto, self.topic_ids, [], self.floor))

    def without_upto(self: ScopeSnapshot) -> bytes:
        return encode(ScopeSnapshot(self.machine, {}, self.topic_ids, self.outbox, self.floor))

    def forgets(self: Scopes, scope: Scope) -> bool:
        return scope.machine.over and not scope.outbox

    stack = contextlib.ExitStack()
    changes: dict[str, list[tuple[Any, str, Any]]] = {
        "durable": [(Scopes, "_react", published_at_once), (Scopes, "stored", released_before)],
        "outbox": [(ScopeSnapshot, "encode", without_outbox)],
        "floor": [(ScopesHandover, "floor", lambda self: self.end)],
        "held": [(Scopes, "committable", lambda self: dict(self.next_offset))],
        "upto": [(ScopeSnapshot, "encode", without_upto)],
        "forget": [(Scopes, "_may_forget", forgets)],
    }
    for owner, name, change in changes.get(rule, []):
        stack.enter_context(mock.patch.object(owner, name, change))
    return stack


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_crashes_anywhere(seed: int) -> None:
    campaign(seed)


@pytest.mark.chaos
@pytest.mark.timeout(20_000)
@settings(max_examples=20_000, deadline=None)
@given(st.integers(0, 2**64))
def test_crashes_anywhere_at_length(seed: int) -> None:
    campaign(seed)


@pytest.mark.parametrize(
    ("rule", "seed"), [("durable", 1), ("outbox", 1), ("floor", 1), ("held", 1), ("upto", 1), ("forget", 9)]
)
def test_each_rule_is_needed(rule: str, seed: int) -> None:
    campaign(seed)
    with pytest.raises(AssertionError):
        campaign(seed, rule)
