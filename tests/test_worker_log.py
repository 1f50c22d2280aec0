"""A worker's log says each thing once in a while."""

from __future__ import annotations

import logging

from deploy.worker_log import Sparse


def record(text: str, *args: object, name: str = "aiokafka") -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, __file__, 1, text, args, None)


def test_the_same_again_is_held_back_and_counted() -> None:
    clock = [0.0]
    sparse = Sparse(10.0, lambda: clock[0])
    assert sparse.filter(record("no room for %s", "a"))
    assert [sparse.filter(record("no room for %s", "b")) for _ in range(3)] == [False] * 3
    assert sparse.filter(record("no room for %s", "a", name="other"))
    assert sparse.filter(record("another thing"))
    clock[0] = 10.0
    last = record("no room for %s", "c")
    assert sparse.filter(last)
    assert last.getMessage() == "no room for c (3 more like it)"
    assert not sparse.filter(record("no room for %s", "c"))


def test_clients_that_look_for_a_broker_leave_the_telling_to_the_worker() -> None:
    sparse = Sparse()
    assert not sparse.filter(record("Unable connect to node with id %s: %s", 1, "refused", name="aiokafka.client"))
    assert not sparse.filter(record("Bootstrap failed", name="kafka.net.manager"))
    assert sparse.reason == "Bootstrap failed"
    assert sparse.filter(record("Unable connect", name="models"))
    assert sparse.filter(record("CorruptRecord", name="aiokafka.consumer.fetcher"))


def test_what_means_nothing_is_left_out() -> None:
    assert not Sparse().filter(record("[^-BatchApp]: Missing sensor state for rebalance #%s", 1))
