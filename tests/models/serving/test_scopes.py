"""Findings of machines against logs in memory: whatever is crashed, every item is in one published finding, and in one only."""

from __future__ import annotations

import contextlib
import json
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from aiokafka.structs import TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st
from scope_lab import SECOND_NS, ItemLife, ItemLog, act

from kymo.models.serving import scopes
from kymo.models.serving.scopes import EventOperator, Finding, Scope, Scopes, ScopesHandover, ScopeSnapshot
from kymo.streams.errors import MessageError


def is_passed_over(item: str) -> bool:
    """Whether no machine makes anything of an item."""
    return item.endswith(("0", "5"))


class Bundler:
    """A machine that gives its items away three at once, or all when nothing came for a second."""

    def __init__(self, scope: str) -> None:
        self._scope, self._items, self.due_ns = scope, list[str](), None

    due_ns: int | None

    @property
    def over(self) -> bool:
        return not self._items

    def push(self, item: str, now_ns: int) -> list[Finding]:
        if is_passed_over(item):
            return []
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


OPERATOR = EventOperator("r", "r", ("in",), "out", item_of, Bundler, lambda found, _: found, lambda _: None)


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
            mine = [item for scope, item in items if (log.whole or scope == name) and not is_passed_over(item)]
            found = [item for f in log.found if f.key.decode() == name for item in json.loads(f.value)]
            assert [item for item in found if item in mine] == mine, (tp, name)
    assert len(log.found) == len({found.id for found in log.found})


def campaign(seed: int, without: str = "") -> None:
    """A random log, worked on in random steps."""
    pick, clock = random.Random(seed), [10**18]
    log = recorded(pick)
    with mock.patch.object(scopes, "STORE_RECORDS", pick.choice([2, 10, 2000])), left_out(without):
        life = ItemLife(log, OPERATOR, clock)
        for _ in range(pick.randint(20, 150)):
            if not act(life, pick):
                life = ItemLife(log, OPERATOR, clock)
        log.visible = {tp: len(items) for tp, items in log.inputs.items()}
        for _ in range(2):
            life = ItemLife(log, OPERATOR, clock)
            life.finish()
            check(log)


def left_out(rule: str) -> Any:
    """One of the rules as it would be if it were none."""
    react, stored, encode = Scopes._react, Scopes.stored, ScopeSnapshot.encode

    def published_at_once(self: Scopes, scope: Scope, find: Any) -> None:
        before = set(scope.outbox)
        react(self, scope, find)
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


def test_no_record_ends_an_owner() -> None:
    def item(record: Any) -> tuple[str, str]:
        return record.value["session"], record.value["item"]

    told = list[str]()
    owner = Scopes(0, replace(OPERATOR, item=item), lambda: 10**18, told.append)
    tp = TopicPartition("in", 0)
    owner.load(ScopesHandover({tp: 0}))
    values = [{"session": []}, {}, None, 7, *({"session": "s", "item": f"0.{i}"} for i in (1, 2, 3))]
    owner.take(tp, [SimpleNamespace(offset=i, value=value, timestamp=0) for i, value in enumerate(values)])
    assert [line.split(":")[1] for line in told] == [f" in/0 at {i}" for i in range(4)]
    assert [list(scope.outbox) for scope in owner.scopes.values()] == [["s/0.1"]]


def test_the_time_is_told_on_a_topic_that_never_stands_still() -> None:
    tp, clock = TopicPartition("in", 0), [10**18]
    items = [("quiet", "0.1"), *(("busy", f"0.{i}") for i in range(5, 500, 5))]
    log = ItemLog({tp: items}, False)
    life = ItemLife(log, OPERATOR, clock)
    for come in range(2, len(items), 2):  # two come while one is read, all the time
        log.visible = {tp: come}
        life.read(tp, 1 if come % 6 else 4)
        life.tick()
        life.store()
        life.publish(10)
        clock[0] += SECOND_NS // 10
    assert [found.id for found in log.found] == ["quiet/0.1"]


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
    ("rule", "seed"), [("durable", 1), ("outbox", 1), ("floor", 1), ("held", 1), ("upto", 1), ("forget", 7)]
)
def test_each_rule_is_needed(rule: str, seed: int) -> None:
    campaign(seed)
    with pytest.raises(AssertionError):
        campaign(seed, rule)
