"""Topics on a real broker: made, configured, checked, deleted."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

from streams.broker.admin import delete_run, ensure_topics, list_runs, run_prefix
from streams.broker.client import partition_of
from streams.errors import BrokerError, SettingsError, TopicError
from streams.settings import Settings
from streams.topics import FENCE_MS, TABLE, Names


@pytest.fixture
def settings(broker: str, prefix: str) -> Settings:
    return Settings(brokers=broker, prefix=prefix, partitions=3)


def configuration(settings: Settings, topic: str) -> dict[str, str]:
    with KafkaAdminClient(bootstrap_servers=settings.brokers) as admin:
        found = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)], config_filter="all")
    return {name: row["value"] for name, row in found["topic"][topic].items()}


def await_values(settings: Settings, topic: str, wanted: dict[str, str]) -> None:
    """An alteration is acknowledged before every reader sees it."""
    give_up = time.monotonic() + 20
    while {key: (have := configuration(settings, topic))[key] for key in wanted} != wanted:
        assert time.monotonic() < give_up, f"{topic}: {have}, expected {wanted}"


@pytest.mark.broker
def test_missing_topics_are_made_as_the_table_says(settings: Settings) -> None:
    names = Names(settings.prefix)
    made = ensure_topics(settings, names)
    assert set(made.created) == {names.of(topic.name) for topic in TABLE}
    assert made.partitions[names.of("sensor")] == 3
    assert made.partitions[names.of("models")] == 1
    for topic in TABLE:
        have = configuration(settings, names.of(topic.name))
        assert {key: have[key] for key in topic.config()} == topic.config()
    again = ensure_topics(settings, names)
    assert (again.created, again.altered) == ((), ())


@pytest.mark.broker
def test_a_configuration_that_differs_is_put_right(settings: Settings) -> None:
    names = Names(settings.prefix)
    events = names.of("events")
    ensure_topics(settings, names)
    wrong = {"max.message.bytes": "1000", "message.timestamp.before.max.ms": "99999"}
    with KafkaAdminClient(bootstrap_servers=settings.brokers) as admin:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, events, configs=wrong)])
    await_values(settings, events, wrong)
    assert ensure_topics(settings, names).altered == (events,)
    right = {"max.message.bytes": str(4 * 2**20), "message.timestamp.before.max.ms": str(FENCE_MS)}
    await_values(settings, events, right)


@pytest.mark.broker
def test_another_partition_count_is_refused_by_name(settings: Settings) -> None:
    names = Names(settings.prefix)
    ensure_topics(settings, names)
    with pytest.raises(TopicError, match=rf"{names.of('sensor')} has 3 partitions, 5 are asked for.*KYMO_PARTITIONS=3"):
        ensure_topics(replace(settings, partitions=5), names)


@pytest.mark.broker
def test_runs_are_listed_and_deleted_apart(settings: Settings, new_prefix: Callable[[], str]) -> None:
    ensure_topics(settings, Names(settings.prefix))
    for run in ("7", "8"):
        ensure_topics(settings, Names(run_prefix(settings.prefix, run)))
    ensure_topics(settings, Names(run_prefix(new_prefix(), "9")))
    assert [(run.name, run.topics, run.messages) for run in list_runs(settings)] == [("7", 14, 0), ("8", 14, 0)]
    assert len(delete_run(settings, "8")) == len(TABLE)
    assert [run.name for run in list_runs(settings)] == ["7"]
    assert ensure_topics(settings, Names(settings.prefix)).created == ()
    with pytest.raises(TopicError, match=r"no run 8 under .*; there are 7"):
        delete_run(settings, "8")


def test_a_run_may_not_be_named_like_a_topic() -> None:
    for name in ("events", "", "a.b", "ä"):
        with pytest.raises(TopicError, match="run"):
            run_prefix("kymo", name)


def test_no_broker_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="KYMO_BROKERS"):
        ensure_topics(Settings(), Names())
    monkeypatch.setattr("streams.broker.client.BOOTSTRAP_TIMEOUT_S", 0.3)
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:1, making the topics kymo\.\*"):
        ensure_topics(Settings(brokers="127.0.0.1:1"), Names())


def test_partitions_are_javas() -> None:
    # From org.apache.kafka.common.utils.UtilsTest: murmur2("21") = -973932308, murmur2("foobar") = -790332482.
    assert partition_of(b"21", 2**31) == -973932308 & 0x7FFFFFFF
    assert partition_of(b"foobar", 12) == (-790332482 & 0x7FFFFFFF) % 12
