"""The topics table: names, sizes, and what follows from them."""

from __future__ import annotations

import re

import pytest

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
