"""Partition and Session against a log in memory: whatever is done in whatever order, and wherever it crashes, the events stay the same."""

from __future__ import annotations

from typing import Any

import pytest
from crash_lab import (
    CHAINS,
    ENDLESS_CHAINS,
    Life,
    Log,
    campaign,
    chunk,
    finish,
    lives,
    record,
    refuse,
    settle,
    undisturbed,
)
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from kymo.models.serving import partition, snapshots
from kymo.models.serving.partition import Limits, Partition
from kymo.models.serving.snapshots import Floor, SessionSnapshot
from kymo.processors.chain import ChainStage
from kymo.processors.steps.conditioning import Filter
from kymo.streams.chunk import Chunk, Window
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import ChunkError


@settings(max_examples=600, deadline=None)
@example(5_002_128)  # another place's chunk between a snapshot and the first chunk behind it
@example(7_003_395)  # a window that rests on the number before a bridged gap
@given(st.integers(0, 2**32))
def test_crashes_anywhere(seed: int) -> None:
    campaign(seed)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_crashes_anywhere_behind_a_memory_without_end(seed: int) -> None:
    campaign(seed, ENDLESS_CHAINS)


def test_a_session_that_is_too_large_for_now_stops_no_other() -> None:
    clock, log = [0.0], Log({"a": [chunk("s", first, 4) for first in range(0, 80, 4)]}, large=True)
    log.visible = {"a": 20}
    life = Life(log, ENDLESS_CHAINS["filter"], clock, Limits(60.0, 3))
    settle(life, "a", 10)
    life.read("a", 5)
    assert life.waiting
    assert not life.partition.overdue  # to wait would be of no use
    clock[0] = 31.0
    assert life.partition.overdue


def test_without_the_ledger_of_snapshots_a_filter_would_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Filter, "endless", False)

    @settings(max_examples=300, deadline=None, phases=(Phase.generate,))
    @given(st.integers(0, 2**32))
    def crashes(seed: int) -> None:
        campaign(seed, {"filter": ENDLESS_CHAINS["filter"]})

    with pytest.raises(AssertionError):
        crashes()


@pytest.mark.chaos
@pytest.mark.timeout(1200)
@settings(max_examples=50_000, deadline=None)
@given(st.integers(0, 2**64))
def test_crashes_anywhere_at_length(seed: int) -> None:
    campaign(seed)
    campaign(seed, ENDLESS_CHAINS)


def test_a_recording_sent_again_after_a_crash_adds_nothing() -> None:
    log = Log({"a": [chunk("s", 0, 4), chunk("s", 4, 4), chunk("s", 0, 4), chunk("s", 4, 4)]})
    life = lives(log)
    settle(next(life), "a", 2)  # no window is open, so nothing but the memory of what came is needed
    settle(next(life), "a", 4)
    assert [(e[0], e[1]) for e in log.events] == [("s", 0), ("s", 4)]


def test_an_acknowledgement_between_snapshots_and_commit_releases_nothing_early() -> None:
    whole = [chunk("s", 0, 4), chunk("s", 4, 4, end=True)]
    log = Log({"a": [*whole, *whole]})
    life = lives(log)
    first = next(life)
    first.read("a", 2)
    first.publish(99)
    first.commit(heard_between=99)
    settle(next(life), "a", 4)
    assert [(e[0], e[1]) for e in log.events] == [("s", 0), ("s", 4)]


def test_a_snapshot_is_withdrawn_only_behind_the_commit() -> None:
    late = chunk("s", 0, 4)
    log = Log({"a": [chunk("slow", 0, 1), chunk("s", 4, 4), late, *(chunk("s", i, 4) for i in range(8, 40, 4))]})
    life = lives(log)
    first = next(life)
    for _ in range(8):
        settle(first, "a", 1)  # `slow` holds the commit at offset 0
    settle(next(life), "a", 99)
    assert [(e[0], e[1]) for e in log.events] == [("s", i) for i in range(4, 40, 4)]


def test_a_crash_between_two_heads_of_a_window_publishes_the_missing_one_alone() -> None:
    log = Log({"a": [chunk("s", 0, 8)]}, heads=("", "a", "b"))
    life = lives(log)
    first = next(life)
    first.read("a", 1)
    first.publish(4)  # all of the first window, one head of the second
    first.hear(4)
    first.commit()
    assert "a" not in log.commits or log.commits["a"][0] == 0
    again = next(life)
    settle(again, "a", 1)
    assert [(e[1], e[2]) for e in log.events] == [(0, ""), (0, "a"), (0, "b"), (4, ""), (4, "a"), (4, "b")]
    assert again.partition.counts["windows_known"] == 1


def test_a_head_that_the_recipe_has_got_since_is_published_for_what_comes_again() -> None:
    log = Log({"a": [chunk("s", 0, 8)]})
    life = lives(log)
    first = next(life)
    first.read("a", 1)
    first.publish(1)  # and crash: nothing is committed
    log.heads = ("", "a")
    settle(next(life), "a", 1)
    assert [(e[1], e[2]) for e in log.events] == [(0, ""), (0, "a"), (4, ""), (4, "a")]


def test_a_topic_not_yet_read_keeps_its_mark() -> None:
    log = Log({"a": [chunk("s", 0, 8)], "b": [chunk("t", 0, 8)]})
    life = lives(log)
    first = next(life)
    first.read("a", 1)
    first.read("b", 1)
    first.publish(99)
    settle(next(life), "b", 1)  # commits for both
    settle(next(life), "a", 1)
    assert len(log.events) == len(set(log.events)) == 4


def test_a_quiet_session_holds_nothing_back_and_goes_on_exactly() -> None:
    log = Log({"a": [chunk("s", 0, 6), *(chunk("t", i, 4) for i in range(0, 40, 4)), chunk("s", 6, 6)]})
    log.visible = {"a": 11}
    clock = [0.0]
    life = Life(log, CHAINS["overlapping"], clock, Limits(quiet_s=5.0))
    for _ in range(11):
        settle(life, "a", 1)
        clock[0] += 1
    assert log.commits["a"][0] == 10  # the newest chunk of `t`, which is not quiet
    assert set(log.state) == {"s"}
    assert set(life.partition.sessions) == {"t"}
    finish(log, CHAINS["overlapping"], clock, Limits(quiet_s=5.0))


def test_a_session_stored_early_is_unloaded_once_it_is_quiet() -> None:
    log = Log({"a": [chunk("s", 0, 6), *(chunk("t", i, 4) for i in range(0, 40, 4)), chunk("s", 6, 6)]})
    log.visible, clock = {"a": 11}, [0.0]
    life = Life(log, CHAINS["overlapping"], clock, Limits(5.0, 3))
    settle(life, "a", 11)  # `s` holds the commit back, and so is stored at once
    assert (set(log.state), set(life.partition.sessions)) == ({"s"}, {"s", "t"})
    clock[0] = 9.0
    life.commit()
    assert life.partition.sessions == {}
    log.visible = {"a": 12}
    life.finish()
    assert sorted(log.events) == undisturbed(log, CHAINS["overlapping"])


def test_a_slow_session_holds_the_commit_back_by_its_limit_only() -> None:
    log = Log({"a": [chunk("s", 0, 6), *(chunk("t", i, 4) for i in range(0, 80, 4)), chunk("s", 6, 6)]})
    life = next(lives(log, limits=Limits(lag=5)))
    behind = []
    for read in range(1, 22):
        settle(life, "a", 1)
        behind.append(read - log.commits["a"][0])
    assert max(behind) == 5
    finish(log, CHAINS["abutting"], [0.0], Limits(lag=5))


def test_what_is_left_half_taken_is_read_again() -> None:
    items = [chunk("s", 0, 4), chunk("t", 0, 4), chunk("t", 4, 4), chunk("s", 20, 4), chunk("t", 8, 4)]
    log, limits = Log({"a": items}), Limits(lag=0)
    life = next(lives(log, limits=limits))
    settle(life, "a", 2)  # both sessions are in snapshots, so nothing else holds the commit
    rest = [record(i, c.session.encode(), life.codec.encode(c)) for i, c in enumerate(items) if i >= 2]
    life.partition.mark("a", 2)
    taking = life.partition.take("a", rest, refuse)
    life.waiting += next(taking)  # the chunk of `s`, which does not follow; those of `t` wait to be joined
    taking.close()
    life.publish(99)
    life.hear(99)
    life.commit()
    assert log.commits["a"][0] == 2
    finish(log, CHAINS["abutting"], [0.0], limits)


def test_input_deleted_before_it_was_read_is_a_gap() -> None:
    log = Log({"a": [chunk("s", i, 4) for i in range(0, 40, 4)]})
    life = lives(log)
    settle(next(life), "a", 3)
    log.first = {"a": 6}
    settle(next(life), "a", 99)
    assert [e[1] for e in log.events] == [0, 4, 8, 24, 28, 32, 36]


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (b"s", None, "undecodable"),
        (b"s", b"", "undecodable"),
        (b"s", b"\x00" * 50, "undecodable"),
        (b"other", ChunkCodec().encode(chunk("s", 0, 4)), "key"),
        (b"s", ChunkCodec().encode(chunk("s", 0, 4))[:-1], "undecodable"),
    ],
)
def test_what_is_no_chunk_is_passed_over(key: bytes, value: bytes | None, reason: str) -> None:
    partition = Partition(0, CHAINS["abutting"], lambda fmt: None, lambda: 0.0)
    with pytest.raises(ChunkError) as caught:
        list(partition.take("a", [record(7, key, value)], refuse))
    assert caught.value.reason == reason
    assert partition.committable() == {"a": (8, Floor())}


def test_a_stream_that_the_recipe_does_not_take_is_counted() -> None:
    partition = Partition(0, CHAINS["abutting"], lambda fmt: "another rate", lambda: 0.0)
    assert list(partition.take("a", [record(0, b"s", ChunkCodec().encode(chunk("s", 0, 4)))], refuse)) == []
    assert partition.counts["unmatched"] == 1
    assert partition.committable() == {"a": (1, Floor())}


def test_an_ended_session_that_was_busy_at_a_commit_is_stored_at_the_next() -> None:
    log = Log({"a": [chunk("s", 0, 8, end=True)]})
    life = next(lives(log))
    life.read("a", 1)
    life.publish(99)
    life.commit(heard_between=99)  # acknowledged after it was looked at
    assert log.state == {}
    life.commit()
    assert set(log.state) == {"s"}


def test_a_chunk_that_breaks_a_step_is_rejected_and_the_session_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    push = ChainStage.push

    def breaking(self: ChainStage, item: Chunk) -> list[Window]:
        if item.first_index == 8:
            raise ZeroDivisionError("a bug of a step")
        return push(self, item)  # type: ignore[no-any-return]

    monkeypatch.setattr(ChainStage, "push", breaking)
    partition, rejected = Partition(0, CHAINS["abutting"], lambda fmt: None, lambda: 0.0), list[tuple[int, str]]()
    items = [chunk("s", i, 4) for i in range(0, 20, 4)] + [chunk("t", 0, 4)]
    records = [record(i, c.session.encode(), ChunkCodec().encode(c)) for i, c in enumerate(items)]
    made = [
        p.output.start_index
        for one in records
        for found in partition.take("a", [one], lambda r, e: rejected.append((r.offset, e.reason)))
        for p in found
    ]
    assert (made, rejected) == ([0, 4, 12, 16, 0], [(2, "invalid")])
    assert "a bug of a step" in partition.damaged["s"]


def test_a_session_that_another_place_goes_on_after_is_unloaded() -> None:
    items = [chunk("s", 0, 8), chunk("s", 0, 3, stream="imu.right"), chunk("s", 8, 4, True)]
    items += [chunk("s", i, 3, stream="imu.right") for i in range(3, 30, 3)]
    log, clock = Log({"a": items}, visible={"a": len(items)}), [0.0]
    life = Life(log, CHAINS["abutting"], clock, Limits())
    for _ in items:
        settle(life, "a", 1)
    clock[0] = 1_000.0
    life.commit()
    life.commit()
    assert not life.partition.sessions


def test_rejections_are_forgotten_behind_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "_REJECTED", 10)
    life = next(lives(Log({"a": [chunk("s", 4 * i, 4) for i in range(40)]}, visible={"a": 40})))
    assert [life.partition.rejects("a", offset) for offset in (*range(30), *range(30))] == [True] * 30 + [False] * 30
    assert life.partition.rejects("events", 3)
    settle(life, "a", 40)
    assert not life.partition.rejects("events", 3)
    assert life.partition.rejects("a", 3)  # nobody asks for what lies behind the commit


def test_a_memory_that_nobody_would_unpack_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {"chain": "c", "topic": "a", "topic_id": "", "upto": 1, "open": 0, "ended": False}
    monkeypatch.setattr(snapshots, "MEMORY_MAX", 1000)
    assert SessionSnapshot.of(told, {}, [b"x" * 900]).stages() == [b"x" * 900]
    assert SessionSnapshot.of(told, {}, [b"x" * 1100]).memory == b""
