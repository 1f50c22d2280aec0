"""A worker's right to its partitions ends before another can have them, whatever its clocks do."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from kymo.processors.faust_app import listen
from kymo.processors.lease import Instant, Lease

SESSION_S, REBALANCE_S = 6.0, 15.0


@dataclass
class Clocks:
    """A steady clock and a wall clock."""

    steady_s: float = 1000.0
    wall_s: float = 5_000_000.0

    def __call__(self) -> Instant:
        return Instant(self.steady_s, self.wall_s)

    def passes(self, seconds: float) -> None:
        self.steady_s += seconds
        self.wall_s += seconds


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def lease(clocks: Clocks) -> Lease:
    return Lease(SESSION_S, REBALANCE_S, clocks)


def test_nothing_is_owned_before_the_coordinator_says_so(lease: Lease) -> None:
    assert lease.left_s <= 0


def test_half_a_session_timeout_from_when_it_was_asked(lease: Lease, clocks: Clocks) -> None:
    asked = clocks()
    clocks.passes(1.0)  # the answer waited in this process
    lease.heard(asked)
    assert lease.left_s == pytest.approx(2.0)


def test_a_rebalance_is_lived_through_only_for_as_long_as_the_others_wait(lease: Lease, clocks: Clocks) -> None:
    lease.heard(clocks())
    began_s = clocks.steady_s
    while lease.left_s > 0:
        clocks.passes(0.5)
        lease.heard(clocks(), rebalancing=True)
    assert SESSION_S < clocks.steady_s - began_s < REBALANCE_S - 1


def test_a_refused_heartbeat_ends_it_at_once(lease: Lease, clocks: Clocks) -> None:
    lease.heard(clocks())
    lease.lost()
    assert lease.left_s <= 0
    lease.heard(clocks(), rebalancing=True)  # what comes late of an earlier generation gives nothing back
    assert lease.left_s <= 0


def test_a_machine_that_slept_has_no_lease_though_its_steady_clock_stood_still(lease: Lease, clocks: Clocks) -> None:
    lease.heard(clocks())
    stamped_ms = lease.stamp_ms
    clocks.wall_s += 60
    assert lease.left_s <= 0
    assert lease.stamp_ms == stamped_ms  # so that the broker refuses what is made now


def test_a_wall_clock_that_is_set_back_changes_nothing(lease: Lease, clocks: Clocks) -> None:
    lease.heard(clocks())
    before_ms = lease.stamp_ms
    clocks.wall_s -= 3600
    clocks.passes(1.0)
    assert lease.left_s == pytest.approx(2.0)
    assert lease.stamp_ms - before_ms == 1000


@pytest.mark.parametrize(
    ("kind", "code", "left"),
    [
        ("HeartbeatRequest", 0, True),
        ("SyncGroupRequest", 0, True),
        ("HeartbeatRequest", 27, False),  # of a group that gives out partitions anew: nothing new is given by it
        ("SyncGroupRequest", 27, False),
        ("JoinGroupRequest", 0, False),
        ("OffsetCommitRequest", 0, False),
    ],
)
def test_what_counts_as_heard(kind: str, code: int, left: bool) -> None:
    lease = Lease(SESSION_S, REBALANCE_S)

    async def send(_: Any) -> Any:
        return SimpleNamespace(error_code=code)

    asyncio.run(listen(lease, send)(type(kind, (), {})()))
    assert (lease.left_s > 0) == left


@pytest.mark.parametrize("code", [22, 25, 82])
def test_what_ends_it(code: int) -> None:
    lease = Lease(SESSION_S, REBALANCE_S)
    lease.heard(Instant.now())

    async def send(_: Any) -> Any:
        return SimpleNamespace(error_code=code)

    asyncio.run(listen(lease, send)(type("HeartbeatRequest", (), {})()))
    assert lease.left_s <= 0
