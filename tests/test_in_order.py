"""Iterables worked off in threads: what comes, in which order, how far ahead, and what happens when one fails or nobody takes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from models.in_order import in_order


def counted(name: str, number: int) -> Iterator[str]:
    return (f"{name}{i}" for i in range(number))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("room", [1, 3])
def test_items_come_key_by_key_in_order(threads: int, room: int) -> None:
    sizes = {"a": 5, "b": 0, "c": 40, "d": 1}
    found = {}
    for key, items in in_order(((name, partial(counted, name, n)) for name, n in sizes.items()), threads, room):
        found[key] = list(items)
    assert list(found) == list(sizes)
    assert found == {name: list(counted(name, n)) for name, n in sizes.items()}


def test_nothing_to_do() -> None:
    assert list(in_order(iter(()), 2)) == []


def test_none_is_further_ahead_than_its_room() -> None:
    made: list[int] = []
    waiting = threading.Event()

    def make() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            if len(made) == 5:
                waiting.set()
            yield i

    for _, items in in_order([("a", make)], 1, room=3):
        assert next(items) == 0
        assert waiting.wait(10)  # 0 taken, 1 to 3 wait, 4 in the hand
        assert len(made) == 5
        assert list(items) == list(range(1, 100))


def test_several_are_worked_on_at_once() -> None:
    met = threading.Barrier(2, timeout=10)

    def make() -> Iterator[int]:
        met.wait()  # would break if the other were not under way
        yield 1

    assert [list(items) for _, items in in_order([("a", make), ("b", make)], 2)] == [[1], [1]]


def test_an_error_comes_where_the_items_are_taken() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    def whole() -> Iterator[int]:
        yield 2

    jobs: list[tuple[str, Callable[[], Iterator[int]]]] = [("whole", whole), ("broken", broken)]
    taken = ((key, item) for key, items in in_order(jobs, 2) for item in items)
    assert [next(taken), next(taken)] == [("whole", 2), ("broken", 1)]
    with pytest.raises(ValueError, match="no more"):
        next(taken)


def test_threads_end_when_nobody_takes_on() -> None:
    before = threading.active_count()

    def endless() -> Iterator[int]:
        while True:
            yield 0

    for _, items in in_order([("a", endless), ("b", endless)], 2):
        next(items)
        break
    assert threading.active_count() == before
