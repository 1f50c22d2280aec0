"""Topics read back: whatever codec, damage named and never asked for again, patience while a cluster elects a leader, TLS files."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka.structs import TopicPartition
from archive_lab import Topics
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient
from kafka.errors import (
    KafkaConnectionError,
    KafkaTimeoutError,
    NotLeaderForPartitionError,
    TopicAuthorizationFailedError,
)

from kymo.processors.fetch import Fetch
from kymo.streams.archive.read import ArchiveReader
from kymo.streams.archive.writer import Archive
from kymo.streams.errors import BrokerError, KymoError, SettingsError
from kymo.streams.kafka import client as kafka_client
from kymo.streams.kafka.client import client_arguments, kafka_errors, patiently
from kymo.streams.kafka.read import Reach, read_records
from kymo.streams.settings import Settings
from kymo.streams.topics import BY_NAME, Names

CODECS = ("gzip", "snappy", "lz4", "zstd")


@pytest.fixture
def settings(broker: str, prefix: str, tmp_path: Path) -> Settings:
    return Settings(brokers=broker, prefix=prefix, home=tmp_path / "home", partitions=2)


def compress_at_broker(settings: Settings, codec: str) -> None:
    names = Names(settings.prefix)
    with KafkaAdminClient(bootstrap_servers=settings.brokers) as admin:
        config = BY_NAME["physio"].config() | {"compression.type": codec}
        admin.create_topics({names.of("physio"): {"num_partitions": 2, "configs": config}})
        admin.wait_for_topics([names.of("physio")])


async def read_as_workers_do(settings: Settings, topic: str, count: int) -> list[bytes | None]:
    errors: list[BaseException] = []
    fetch, values = Fetch(settings.librdkafka(), asyncio.get_running_loop(), errors.append), list[bytes | None]()
    fetch.begin({TopicPartition(topic, n): 0 for n in range(2)})
    while len(values) < count:
        values += [record.value for records in (await fetch.next()).values() for record in records]
    fetch.close()
    assert errors == []
    return values


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_is_read(settings: Settings, codec: str, tmp_path: Path) -> None:
    values = [f"{i} {'x' * 200}".encode() for i in range(100)]
    compress_at_broker(settings, codec)
    with Topics(settings) as topics:
        producer = KafkaProducer(
            **client_arguments(settings), acks="all", compression_type=codec, linger_ms=50, metrics_enabled=False
        )
        for value in values:
            producer.send(topics.names.of("sensor"), value, b"s")  # compressed by its sender
            topics.send("physio", value)  # … and by the broker, as Java does it
        producer.close()
        topics.producer.flush()
        for name in ("sensor", "physio"):
            assert [r.value for r in read_records(settings, topics.names.of(name))] == values
            assert asyncio.run(read_as_workers_do(settings, topics.names.of(name), 100)) == values
        topics.archive(tmp_path / "a")
        assert [r.value for r in ArchiveReader(tmp_path / "a").records()] == values * 2


@pytest.fixture
def readers(settings: Settings, tmp_path: Path) -> Iterator[tuple[Topics, list[Any]]]:
    """Ten records, the last five in a batch of their own, and two ways to read them."""
    with Topics(settings) as topics:
        for i in range(10):
            topics.send("labels", b"%d" % i, partition=1)
            topics.producer.flush()
        archive = Archive(settings, tmp_path / "a")
        yield (
            topics,
            [
                lambda: list(read_records(settings, topics.names.of("labels"))),
                lambda: archive.run(lambda: False, once=True),
            ],
        )


def test_damage_is_named_and_not_asked_for_again(
    readers: tuple[Topics, list[Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from kafka.record.default_records import DefaultRecordBatch

    topics, ways = readers
    right = DefaultRecordBatch.validate_crc
    monkeypatch.setattr(DefaultRecordBatch, "validate_crc", lambda self: self.base_offset != 5 and right(self))
    for read in ways:
        with pytest.raises(BrokerError, match=rf"{topics.names.of('labels')}, partition 1, offset 5: .* is damaged"):
            read()
    assert [r.value for r in ArchiveReader(tmp_path / "a").records()] == [b"%d" % i for i in range(5)]


def test_a_codec_without_its_package_is_named(
    readers: tuple[Topics, list[Any]], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics, ways = readers
    producer = KafkaProducer(**client_arguments(settings), compression_type="snappy", metrics_enabled=False)
    producer.send(topics.names.of("labels"), b"x" * 1000, partition=1)
    producer.close()
    monkeypatch.setattr("kafka.codec.snappy", None)
    for read in ways:
        with pytest.raises(
            BrokerError, match=r"labels, partition 1, offset 10: .*snappy.* pip install 'kymo-streams\[kafka\]'"
        ):
            read()


def test_a_reading_that_stands_still_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    at = {("t", 0): 7, ("t", 1): 3}
    reach = Reach(Settings(brokers="k:1"), {("t", 0): 7, ("t", 1): 9, ("t", 2): 0}, at.__getitem__)
    assert reach.unfinished()
    assert reach.unfinished()
    monkeypatch.setattr("kymo.streams.kafka.read.STALL_S", -1.0)
    at["t", 1] = 4
    assert reach.unfinished()
    with pytest.raises(BrokerError, match=r"t, partition 1 goes on from offset 4 to 9, but nothing came"):
        reach.unfinished()
    at["t", 1] = 9
    assert not reach.unfinished()


def asked(errors: list[BaseException]) -> list[str]:
    """What an asking answers that first fails with these."""

    def ask() -> list[str]:
        if errors:
            raise errors.pop(0)
        return ["answer"]

    settings = Settings(brokers="a:1,b:2")
    with kafka_errors(settings, "looking"):
        return patiently(settings, "looking", ask)


def test_a_cluster_that_elects_a_leader_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kafka_client, "RETRY_S", 0.0)
    passing = [
        KafkaConnectionError("111 ECONNREFUSED"),
        NotLeaderForPartitionError(),
        ConnectionResetError(104, "reset"),
    ]
    assert asked([]) == ["answer"]
    assert capsys.readouterr().err == ""
    assert asked([*passing, *passing]) == ["answer"]
    assert capsys.readouterr().err == (
        "kymo: Kafka at a:1,b:2, looking: KafkaConnectionError: 111 ECONNREFUSED; asking again for up to 30 s\n"
    )
    for lasting in (TopicAuthorizationFailedError("t"), KafkaTimeoutError("waited already")):
        with pytest.raises(BrokerError, match=type(lasting).__name__):
            asked([lasting])
    monkeypatch.setattr(kafka_client, "PATIENCE_S", -1.0)
    with pytest.raises(BrokerError, match="NotLeader"):
        asked([KafkaConnectionError("x"), NotLeaderForPartitionError()])


def test_a_file_for_tls_is_looked_at_before_anything_else(tmp_path: Path) -> None:
    def why(**files: str) -> str:
        settings = Settings(brokers="127.0.0.1:1", security_protocol="SASL_SSL", **files)
        with pytest.raises(SettingsError) as error:
            client_arguments(settings)
        return str(error.value)

    absent, empty = str(tmp_path / "ca.crt"), tmp_path / "empty"
    empty.write_text("")
    for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
        text = f"KYMO_KAFKA_SECURITY_{name.upper()}={absent}: No such file or directory; expected a PEM file"
        assert why(**{name: absent}) == text
    assert why(ssl_cafile=str(empty)).startswith(
        f"KYMO_KAFKA_SECURITY_SSL_CAFILE={empty}: holds nothing that can be used"
    )
    assert why(ssl_certfile=str(empty)).startswith(f"KYMO_KAFKA_SECURITY_SSL_CERTFILE={empty}: ")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed: no certificates to try")
def test_a_key_that_asks_for_a_password_is_an_error_and_not_a_question(tmp_path: Path) -> None:
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-passout", "pass:x", "-subj", "/CN=c"]
    subprocess.run([*make, "-keyout", "key", "-out", "crt"], cwd=tmp_path, check=True, capture_output=True)
    files = {"ssl_certfile": str(tmp_path / "crt"), "ssl_keyfile": str(tmp_path / "key")}
    with pytest.raises(KymoError, match=r"SSL_CERTFILE=.*crt with key .*key: "):
        Settings(security_protocol="SSL", **files).ssl_context()
