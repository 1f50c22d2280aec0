"""A worker's log says each thing once in a while."""

from __future__ import annotations

import logging

from kymo.deploy.worker_log import Sparse


def record(text: str, *args: object, name: str = "aiokafka") -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, __file__, 1, text, args, None)


def test_the_same_again_is_held_back_and_counted() -> None:
    clock = [0.0]
    sparse = Sparse(10.0, lambda: clock[0])
    assert sparse.filter(record("no answer from %s", "a"))
    assert [sparse.filter(record("no answer from %s", "b")) for _ in range(3)] == [False] * 3
    assert sparse.filter(record("no answer from %s", "a", name="other"))
    assert sparse.filter(record("another thing"))
    clock[0] = 10.0
    last = record("no answer from %s", "c")
    assert sparse.filter(last)
    assert last.getMessage() == "no answer from c (3 more like it)"
    assert not sparse.filter(record("no answer from %s", "c"))


def test_clients_that_look_for_a_broker_leave_the_telling_to_the_worker_for_a_while() -> None:
    clock = [0.0]
    sparse, looking = Sparse(10.0, lambda: clock[0]), "Unable connect to node with id %s: %s"
    assert not sparse.filter(record(looking, 1, "refused", name="aiokafka.client"))
    assert not sparse.filter(record("Unable to request metadata from node with id %s: %r", 1, "closed"))
    assert not sparse.filter(record("Bootstrap failed", name="kafka.net.manager"))
    assert sparse.reason(1.0) == "Bootstrap failed"
    assert not sparse.filter(record("Heartbeat failed for group %s because it is rebalancing", "g"))
    assert sparse.reason(1.0) == "Bootstrap failed"
    for second in range(1, 30):
        clock[0] = float(second)
        assert not sparse.filter(record(looking, 2, "refused"))
    clock[0] = 30.0  # a broker of several that only some need, and nobody has told
    assert sparse.filter(record(looking, 2, "refused"))
    assert not sparse.filter(record(looking, 2, "refused"))  # once in a while, as all else
    sparse.away, clock[0] = True, 45.0
    assert not sparse.filter(record(looking, 2, "refused"))
    assert sparse.reason(1.0).endswith("refused")
    clock[0] = 60.0
    assert not sparse.reason(1.0)


def test_what_a_broker_has_answered_is_said() -> None:
    sparse = Sparse()
    for text, name in (
        ("Unable connect", "models"),
        ("CorruptRecord", "aiokafka.consumer.fetcher"),
        ("Topic a not found in cluster metadata", "aiokafka.cluster"),
        ("Unable connect to node with id 1: SaslAuthenticationFailed", "aiokafka"),
    ):
        assert sparse.filter(record(text, name=name))
    broken = record("Unexpected error in coordinator routine")
    broken.exc_info = (ValueError, ValueError(), None)
    assert sparse.filter(broken)


def test_what_means_nothing_is_left_out() -> None:
    assert not Sparse().filter(record("[^-BatchApp]: Missing sensor state for rebalance #%s", 1))
