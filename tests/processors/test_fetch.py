"""What a worker fetches, and the lease under which it may."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Thread
from types import SimpleNamespace
from typing import Any
from unittest import mock

import confluent_kafka
import pytest
from aiokafka.errors import (
    CommitFailedError,
    GroupAuthorizationFailedError,
    InvalidSessionTimeoutError,
    TopicAuthorizationFailedError,
    UnsupportedCodecError,
)
from aiokafka.structs import TopicPartition
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient

from kymo.processors import fetch as fetching
from kymo.processors.faust_app import BatchApp, client_error, listen
from kymo.processors.fetch import Fetch, Passed, leaders
from kymo.processors.lease import Instant, Lease
from kymo.streams.errors import BrokerError, DeliveryError
from kymo.streams.settings import Settings

PARTITIONS, COUNT = 3, 3_000
SENT_MS = int(time.time() * 1000)  # a broker soon deletes what is old


@pytest.fixture
def topic(broker: str, prefix: str) -> str:
    name = f"{prefix}.sensor"
    with KafkaAdminClient(bootstrap_servers=broker) as admin:
        admin.create_topics({name: {"num_partitions": PARTITIONS}})
        admin.wait_for_topics([name])
    with KafkaProducer(bootstrap_servers=broker) as producer:
        for number in range(COUNT):
            for partition in range(PARTITIONS):
                value = None if number == 7 else b"%d" % number
                producer.send(name, partition=partition, key=b"k", value=value, timestamp_ms=SENT_MS + number)
        producer.flush()
    return name


def test_who_is_ahead_waits_and_the_last_never_does() -> None:
    a, b, c, other = (TopicPartition(topic, n) for topic, n in (("a", 0), ("b", 0), ("c", 0), ("a", 1)))
    taken_ms = {a: 9_000, b: 5_000, c: 6_500, other: 90_000}
    assert leaders(taken_ms, [a, b, c, other]) == {a}
    assert leaders(taken_ms, [a, c]) == {a}  # `b` is read to its end
    assert leaders(taken_ms, [a]) == set()
    assert leaders({a: 9_000}, [a, b]) == {a}  # nothing has come of `b` yet, and it has more


def test_topics_of_one_partition_are_read_side_by_side(broker: str, new_prefix: Callable[[], str]) -> None:
    """A worker that catches up takes what was sent at about the same time, whatever lies in each topic, and however fast it comes."""
    names, every_ms, count, errors = [f"{new_prefix()}.sensor" for _ in range(3)], 100, 1_000, list[BaseException]()
    with KafkaAdminClient(bootstrap_servers=broker) as admin:
        admin.create_topics({name: {"num_partitions": 1} for name in names})
        admin.wait_for_topics(names)
    with KafkaProducer(bootstrap_servers=broker) as producer:
        for name in names:
            for number in range(count if name != names[2] else 10):  # the third is short
                producer.send(name, partition=0, value=b"x" * 100, timestamp_ms=SENT_MS + number * every_ms)
        producer.flush()

    async def read() -> list[int]:
        fetch, apart = Fetch(Settings(brokers=broker).librdkafka(), asyncio.get_running_loop(), errors.append), [0]
        taken = {TopicPartition(name, 0): list[int]() for name in names}
        fetch.begin(dict.fromkeys(taken, 0))
        while sum(map(len, taken.values())) < 2 * count + 10:
            for tp, records in (await asyncio.wait_for(fetch.next(), 60)).items():
                taken[tp] += [record.offset for record in records]
            first, second = (len(taken[TopicPartition(name, 0)]) for name in names[:2])
            if max(first, second) < count:
                apart.append(abs(first - second) * every_ms)
        fetch.close()
        assert [offsets == list(range(len(offsets))) for offsets in taken.values()] == [True] * 3
        return apart

    with mock.patch.object(fetching, "_RECORDS", 20):
        apart = asyncio.run(read())
    assert errors == []
    assert len(apart) > 20
    assert max(apart) <= 2_000 + 3 * 20 * every_ms  # what one batch, one that lies ready and one that is made may hold


def test_a_topic_that_ends_with_a_transaction_holds_up_no_other(broker: str, new_prefix: Callable[[], str]) -> None:
    """Where one ends stands a record that nobody is shown: what others have sent since must come all the same."""
    names = ended, other = [f"{new_prefix()}.sensor" for _ in range(2)]
    with KafkaAdminClient(bootstrap_servers=broker) as admin:
        admin.create_topics({name: {"num_partitions": 1} for name in names})
        admin.wait_for_topics(names)
    producer = confluent_kafka.Producer({"bootstrap.servers": broker, "transactional.id": ended})
    producer.init_transactions(30)
    producer.begin_transaction()
    for number in range(10):
        producer.produce(ended, b"x", partition=0, timestamp=SENT_MS + number)
    producer.commit_transaction(30)
    with KafkaProducer(bootstrap_servers=broker) as plain:
        for number in range(100):
            plain.send(other, partition=0, value=b"x", timestamp_ms=SENT_MS + 100 * number)

    async def read() -> dict[str, list[Any]]:
        fetch = Fetch(Settings(brokers=broker).librdkafka(), asyncio.get_running_loop(), errors.append)
        taken: dict[str, list[Any]] = {name: [] for name in names}
        fetch.begin({TopicPartition(name, 0): 0 for name in names})
        while len(taken[ended]) < 11 or len(taken[other]) < 100:
            for tp, records in (await asyncio.wait_for(fetch.next(), 30)).items():
                taken[tp.topic] += records
        fetch.close()
        return taken

    errors = list[BaseException]()
    with mock.patch.object(fetching, "_RECORDS", 5):
        taken = asyncio.run(read())
    assert taken[ended][10:] == [Passed(10)]
    assert [record.offset for record in taken[other]] == list(range(100))
    assert errors == []


def test_each_beginning_gives_the_records_from_there_and_no_other(broker: str, topic: str) -> None:
    rng, errors = random.Random(3), list[BaseException]()

    async def read() -> None:
        fetch = Fetch(Settings(brokers=broker).librdkafka(), asyncio.get_running_loop(), errors.append)
        for turn in range(30):
            offsets = {
                TopicPartition(topic, n): rng.choice((0, 1, COUNT // 2, COUNT - 1))
                for n in rng.sample(range(PARTITIONS), 2)
            }
            if turn % 3 == 0:
                fetch.begin({TopicPartition(topic, n): 0 for n in range(PARTITIONS)})  # and at once otherwise
            if turn % 3 == 1:
                await asyncio.sleep(rng.uniform(0, 0.3))  # what comes now is of before
            fetch.begin(offsets)
            expected, most = dict(offsets), rng.choice((1, 500, 10**6))
            while min(expected.values()) < COUNT and sum(expected.values()) - sum(offsets.values()) < most:
                for tp, records in (await fetch.next()).items():
                    for record in records:
                        assert record.offset == expected[tp], f"turn {turn}, {tp}"
                        value = None if record.offset == 7 else b"%d" % record.offset
                        assert record == (*tp, record.offset, SENT_MS + record.offset, b"k", value)
                        expected[tp] += 1
        fetch.begin({})
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(fetch.next(), 0.5)
        fetch.close()

    asyncio.run(asyncio.wait_for(read(), 90))
    assert errors == []


@pytest.mark.parametrize(
    ("code", "kind"),
    [("TOPIC_AUTHORIZATION_FAILED", TopicAuthorizationFailedError), ("_NOT_IMPLEMENTED", UnsupportedCodecError)],
)
def test_what_trying_again_does_not_mend_is_told(
    monkeypatch: pytest.MonkeyPatch, code: str, kind: type[Exception]
) -> None:
    message = SimpleNamespace(
        error=lambda: confluent_kafka.KafkaError(getattr(confluent_kafka.KafkaError, code), "why")
    )

    class Client:
        polled = 0

        def __init__(self, settings: dict[str, Any]) -> None:
            pass

        def poll(self, _: float) -> Any:
            self.polled += 1
            return message if self.polled == 1 else None

        def consume(self, *_: Any) -> list[Any]:
            return []

        def close(self) -> None:
            pass

    monkeypatch.setattr(confluent_kafka, "Consumer", Client)

    async def told() -> BaseException:
        heard: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        fetch = Fetch({}, asyncio.get_running_loop(), heard.set_result)
        try:
            return await asyncio.wait_for(heard, 10)
        finally:
            fetch.close()

    error = asyncio.run(told())
    assert type(error) is kind
    assert "why" in str(error)


def test_a_topic_that_goes_back_is_told(broker: str, topic: str) -> None:
    """Deleted and made again behind what was read: nothing of it is taken for what came next."""

    async def read() -> BaseException:
        heard: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        fetch = Fetch(Settings(brokers=broker).librdkafka(), asyncio.get_running_loop(), heard.set_result)
        place = TopicPartition(topic, 0)
        fetch.begin({place: 0})
        read = 0
        while read < COUNT:
            read += len((await fetch.next())[place])
        await asyncio.to_thread(make_again, broker, topic)
        try:
            while True:
                done, _ = await asyncio.wait(
                    [heard, coming := asyncio.ensure_future(fetch.next())], return_when=asyncio.FIRST_COMPLETED
                )
                assert coming not in done
                return heard.result()
        finally:
            coming.cancel()
            fetch.close()

    assert "goes back from 3000 to 0" in str(asyncio.run(asyncio.wait_for(read(), 60)))


def make_again(broker: str, topic: str) -> None:
    with KafkaAdminClient(bootstrap_servers=broker) as admin:
        admin.delete_topics([topic])
        while topic in admin.list_topics():
            time.sleep(0.1)
        admin.create_topics({topic: {"num_partitions": PARTITIONS}})
        admin.wait_for_topics([topic])
    with KafkaProducer(bootstrap_servers=broker) as producer:
        for _ in range(10):
            producer.send(topic, partition=0, key=b"k", value=b"other")
        producer.flush()


SETTINGS = Settings(brokers="localhost:1", prefix="t")


def test_what_is_asked_before_the_start_makes_no_client_in_another_thread() -> None:
    app, answers = BatchApp("t.group", ["t.sensor"], SETTINGS, "me", lambda error: None), list[Any]()
    thread = Thread(target=lambda: answers.append((app.is_ready(), app.assigned(), app.is_stale())))
    thread.start()
    thread.join()
    assert answers == [(False, [], True)]
    assert app._consumer is None  # it would belong to that thread's loop


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (InvalidSessionTimeoutError(), BrokerError, "KYMO_SESSION_TIMEOUT_S"),
        (GroupAuthorizationFailedError("t.group"), BrokerError, "allow READ on group t.group"),
        (UnsupportedCodecError("zstd"), BrokerError, "compressed"),
        (CommitFailedError("rebalanced"), DeliveryError, "gave up"),
    ],
)
def test_errors_of_the_client_in_our_words(error: Exception, kind: type[Exception], text: str) -> None:
    told = client_error(error, SETTINGS, "t.group")
    assert isinstance(told, kind)
    assert text in str(told)
    assert "\n" not in str(told)


def test_a_fault_of_our_own_stays_what_it_is() -> None:
    error = KeyError("x")
    assert client_error(error, SETTINGS, "t.group") is error


@pytest.mark.parametrize("error", [DeliveryError("made again"), UnsupportedCodecError("zstd"), KeyError("x")])
def test_whatever_goes_wrong_while_records_are_taken_is_told_to_the_worker(error: Exception) -> None:
    told: list[BaseException] = []
    app = BatchApp("t.group", ["t.sensor"], SETTINGS, "me", told.append)

    async def take() -> None:
        consumer = app.consumer

        async def fetch() -> Any:
            raise error

        app.fetch = SimpleNamespace(next=fetch)
        fetcher = SimpleNamespace(_stopped=asyncio.Event())
        await consumer._drain_messages(fetcher)

    asyncio.run(take())
    assert [type(one) for one in told] == [type(client_error(error, SETTINGS, "t.group"))]


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
