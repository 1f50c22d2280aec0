"""The topics table, and topics on a real broker: made, configured, checked, deleted."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

from kymo.streams.errors import BrokerError, SettingsError, TopicError
from kymo.streams.kafka.admin import broken_promises, delete_run, ensure_topics, list_runs, repair_topics, run_prefix
from kymo.streams.kafka.client import partition_of
from kymo.streams.settings import Settings
from kymo.streams.topics import (
    BY_NAME,
    CHUNK_TOPICS,
    FENCE_MS,
    MESSAGE_MAX,
    REJECTED_EXTRA,
    TABLE,
    TOPIC_OF_KIND,
    Names,
)


def test_every_topic_of_the_flow_is_there_once() -> None:
    names = "sensor physio pose video spectrogram animation events shadow alerts labels sessions models state rejected"
    assert [topic.name for topic in TABLE] == names.split()
    assert set(CHUNK_TOPICS) | set(TOPIC_OF_KIND.values()) <= set(BY_NAME)


def test_partitions_are_equal_but_for_the_one_that_all_read_whole() -> None:
    assert [topic.name for topic in TABLE if topic.partitions is not None] == ["models"]
    assert BY_NAME["models"].partitions == 1


@pytest.mark.parametrize("topic", TABLE, ids=lambda t: t.name)
def test_configuration_is_text_that_kafka_takes(topic: object) -> None:
    config = topic.config()  # type: ignore[attr-defined]
    assert all(type(value) is str and value for value in config.values())
    assert config["cleanup.policy"] in ("compact", "delete")
    assert all(re.fullmatch(r"-?\d+", config[key]) for key in ("max.message.bytes", "retention.ms", "retention.bytes"))


def test_raw_chunks_stay_a_day_under_a_cap() -> None:
    for name in CHUNK_TOPICS:
        assert BY_NAME[name].config()["retention.ms"] == str(24 * 3600 * 1000)
        assert int(BY_NAME[name].config()["retention.bytes"]) > 0


def test_what_is_kept_for_ever() -> None:
    kept = [topic.name for topic in TABLE if topic.config()["retention.ms"] == "-1"]
    assert kept == ["labels", "sessions", "models", "state"]
    assert [topic.name for topic in TABLE if topic.compact] == ["sessions", "models", "state"]


def test_a_rejected_message_fits_with_its_reason() -> None:
    assert BY_NAME["rejected"].message_max == max(BY_NAME[n].message_max for n in CHUNK_TOPICS) + REJECTED_EXTRA
    assert REJECTED_EXTRA == 64 * 1024
    assert MESSAGE_MAX == 4 * 2**20


def test_what_only_workers_write_is_fenced() -> None:
    fenced = [topic.name for topic in TABLE if "message.timestamp.before.max.ms" in topic.config()]
    assert fenced == ["spectrogram", "animation", "events", "shadow", "state"]
    assert BY_NAME["events"].config()["message.timestamp.before.max.ms"] == str(FENCE_MS)


@pytest.mark.parametrize(
    ("stream", "topic"),
    [
        ("imu", "kymo.sensor"),
        ("imu.left", "kymo.sensor"),
        ("eda.wrist.left", "kymo.physio"),
        ("pupil", "kymo.physio"),
        ("ibi", "kymo.physio"),
        ("pose.camera1", "kymo.pose"),
        ("video", "kymo.video"),
        ("spectrogram.left", "kymo.spectrogram"),
        ("animation", "kymo.animation"),
        ("anything.else", "kymo.sensor"),
        ("poses", "kymo.sensor"),
    ],
)
def test_the_kind_of_a_stream_tells_its_topic(stream: str, topic: str) -> None:
    assert Names("kymo").for_stream(stream) == topic


def test_a_run_has_topics_of_its_own() -> None:
    assert Names("kymo.7").of("events") == "kymo.7.events"
    assert not {Names("kymo.7").of(t.name) for t in TABLE} & {Names("kymo").of(t.name) for t in TABLE}


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


def await_gone(admin: KafkaAdminClient, topic: str) -> None:
    give_up = time.monotonic() + 20
    while topic in admin.list_topics():
        assert time.monotonic() < give_up, f"{topic} is still there"


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
    assert (again.created, again.warnings) == ((), ())


def test_sentences_of_broken_promises() -> None:
    names = Names("k")
    own = {names.of(topic.name): topic.config() for topic in TABLE}
    assert list(broken_promises(names, own)) == []
    own["k.state"] |= {"cleanup.policy": "delete", "retention.ms": "604800000"}
    own["k.physio"] |= {"cleanup.policy": "compact,delete", "retention.bytes": "1000"}
    own["k.events"] |= {"message.timestamp.before.max.ms": str(2**63 - 1), "max.message.bytes": "1048588"}
    own["k.shadow"] |= {"message.timestamp.type": "LogAppendTime"}
    del own["k.spectrogram"]["message.timestamp.before.max.ms"]
    own["k.labels"] = {}
    findings = list(broken_promises(names, own))
    broken, notes = (tuple(text for text, needed in findings if needed is asked) for asked in (True, False))
    assert broken == (
        "k.physio: cleanup.policy is compact,delete, not delete: all but a session's newest record is deleted",
        (
            "k.spectrogram: message.timestamp.before.max.ms is not known to this broker, not 4000: a worker that was stopped "
            "and wakes up may write an event twice"
        ),
        "k.events: max.message.bytes is 1048588, not 4194304: larger messages are refused",
        (
            "k.events: message.timestamp.before.max.ms is 9223372036854775807, not 4000: a worker that was stopped and wakes "
            "up may write an event twice"
        ),
        (
            "k.shadow: message.timestamp.type is LogAppendTime, not CreateTime: a worker that was stopped and wakes up may "
            "write an event twice"
        ),
        "k.state: cleanup.policy is delete, not compact: what workers, models and sessions are known by is deleted",
    )
    assert notes[0] == "k.physio: retention.bytes is 1000, not 2147483648: what is not read by then is lost"
    assert notes[1].startswith("k.state: retention.ms is 604800000, not -1: ")
    assert notes[2].startswith("k.labels: this user may not read their settings (right DescribeConfigs)")


def test_what_is_there_is_altered_only_when_told_to(settings: Settings) -> None:
    names = Names(settings.prefix)
    events = names.of("events")
    ensure_topics(settings, names)
    wrong = {"max.message.bytes": "1000", "message.timestamp.before.max.ms": "99999", "retention.ms": "3600000"}
    with KafkaAdminClient(bootstrap_servers=settings.brokers) as admin:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, events, configs=wrong)])
    await_values(settings, events, wrong)
    found = ensure_topics(settings, names)
    assert [text.partition(" is ")[0] for text in found.broken] == [
        f"{events}: max.message.bytes",
        f"{events}: message.timestamp.before.max.ms",
    ]
    assert (
        f"{events}: retention.ms is 3600000, not 2592000000: what is not read by then is lost",
        False,
    ) in found.findings
    assert "kymo doctor --repair-topics" in found.warnings[-1]
    await_values(settings, events, wrong)
    assert repair_topics(settings, names) == [events]
    await_values(settings, events, {key: BY_NAME["events"].config()[key] for key in wrong})
    assert repair_topics(settings, names) == []


def test_other_partition_counts_are_used_and_told(settings: Settings) -> None:
    names = Names(settings.prefix)
    with KafkaAdminClient(bootstrap_servers=settings.brokers) as admin:
        admin.create_topics({names.of("sensor"): {"num_partitions": 2, "configs": BY_NAME["sensor"].config()}})
        admin.wait_for_topics([names.of("sensor")])
        found = ensure_topics(settings, names)
        text = f"{names.of('sensor')}: 2 partitions, not the 3 of KYMO_PARTITIONS; 2 are used"
        assert found.findings == ((text, False),)
        assert {n for name, n in found.partitions.items() if name != names.of("models")} == {2}
        found.require_equal(found.partitions.keys() - {names.of("models")})
        admin.delete_topics([names.of("physio")])
        await_gone(admin, names.of("physio"))
        admin.create_topics({names.of("physio"): {"num_partitions": 5, "configs": BY_NAME["physio"].config()}})
        admin.wait_for_topics([names.of("physio")])
    found = ensure_topics(settings, names)
    assert len(found.broken) == 1
    assert f"; 5: {names.of('physio')}" in found.broken[0]
    found.require_equal([names.of("sensor"), names.of("events")])
    with pytest.raises(TopicError, match=rf"{names.of('physio')} has 5 partitions.*need equal counts"):
        found.require_equal([names.of("sensor"), names.of("physio")])


class Meanwhile:
    """An admin client of a cluster where somebody else makes topics between the first look and ours."""

    there: ClassVar[dict[str, int]] = {"k.sensor": 3}

    def __init__(self, **_: Any) -> None:
        self.looks = 0

    def list_topics(self) -> list[str]:
        self.looks += 1
        return ["k.sensor"] if self.looks == 1 else list(self.there)

    def describe_topics(self, topics: list[str]) -> list[dict[str, Any]]:
        return [{"name": name, "partitions": [{}] * self.there[name]} for name in topics]

    def create_topics(self, wanted: dict[str, Any], raise_errors: bool) -> dict[str, Any]:
        known = {name: name == "k.physio" for name in wanted}
        self.there |= {name: 5 if known[name] else about["num_partitions"] for name, about in wanted.items()}
        return {"topics": [{"name": name, "error_code": 36 if known[name] else 0} for name in wanted]}

    def wait_for_topics(self, *_: Any, **__: Any) -> None:
        pass

    def describe_configs(self, asked: list[Any], config_filter: str) -> dict[str, Any]:
        assert {resource.name for resource in asked} == {"k.sensor", "k.physio"}
        table = {f"k.{topic.name}": topic.config() for topic in TABLE}
        return {"topic": {r.name: {k: {"value": v} for k, v in table[r.name].items()} for r in asked}}

    def close(self) -> None:
        pass


def test_what_somebody_else_makes_meanwhile_is_looked_at_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kymo.streams.kafka.client.KafkaAdminClient", Meanwhile)
    found = ensure_topics(Settings(brokers="b:1", partitions=12), Names("k"))
    assert len(found.created) == len(TABLE) - 2
    assert found.partitions["k.events"] == 3
    assert found.broken == (
        "partition counts differ, and a worker can serve only topics of equal ones: 3: k.sensor; 5: k.physio",
    )


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
    monkeypatch.setattr("kymo.streams.kafka.client.BOOTSTRAP_TIMEOUT_S", 0.3)
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:1, making the topics kymo\.\*"):
        ensure_topics(Settings(brokers="127.0.0.1:1"), Names())


def test_partitions_are_javas() -> None:
    # From org.apache.kafka.common.utils.UtilsTest: murmur2("21") = -973932308, murmur2("foobar") = -790332482.
    assert partition_of(b"21", 2**31) == -973932308 & 0x7FFFFFFF
    assert partition_of(b"foobar", 12) == (-790332482 & 0x7FFFFFFF) % 12
