"""Odd records on every topic, on a real broker: workers live and start, the archive and the verbs read on, each is rejected once."""

from __future__ import annotations

import random
import subprocess
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from fault_lab import PATIENCE_S, Feed, stop_worker
from fuzzed import odd_record
from kafka import KafkaProducer
from swap_lab import SwapLab

from kymo.deploy.children import kymo_command
from kymo.models.serving.partition import decode_record
from kymo.streams.archive.check import check_archive
from kymo.streams.archive.read import ArchiveReader
from kymo.streams.archive.writer import Archive
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import ChunkError, EventError
from kymo.streams.events import Event
from kymo.streams.kafka.client import client_arguments
from kymo.streams.topics import BY_NAME

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(3600)]
VERBS = (("events",), ("label", "export"), ("sessions", "list"), ("models", "list"), ("doctor",))
Place = tuple[str, int, int]


class PoisonLab(SwapLab):
    """A lab whose topics others write to."""

    def send_odd(self, seed: int, first: int, last: int) -> dict[Place, bool]:
        """Odd records by place, and whether it is one that a worker must reject."""
        pick, codec, sent = random.Random(seed), ChunkCodec(), list[tuple[str, bool, object]]()
        producer = KafkaProducer(**client_arguments(self.settings), acks="all", linger_ms=20, metrics_enabled=False)
        for index in range(first, last):
            name, (key, value) = odd_record(pick, index)
            key = b"" if key is None and (value is None or BY_NAME[name].compact) else key  # which Kafka refuses itself
            refused = False
            if name == "sensor":
                try:
                    decode_record(codec, SimpleNamespace(key=key, value=value))
                except ChunkError:
                    refused = True
            topic = self.names.of(name)
            place = pick.randrange(1 if name == "models" else self.settings.partitions)
            sent.append((topic, refused, producer.send(topic, key=key, value=value, partition=place)))
        told = [(topic, refused, future.get(PATIENCE_S)) for topic, refused, future in sent]  # type: ignore[attr-defined]
        producer.close()
        return {(topic, about.partition, about.offset): refused for topic, refused, about in told}

    def real_events(self, sessions: set[str]) -> list[Event]:
        """Events of sessions, whatever stands between them."""
        found = []
        for record in self.records("events"):
            try:
                event = Event.from_json(record.value)
            except EventError:
                continue
            found += [event] if event.session in sessions else []
        return found


def test_twenty_thousand_odd_records_on_all_topics(tmp_path: Path, broker: str, prefix: str) -> None:
    number, lab = 20_000, PoisonLab(tmp_path, broker, prefix)
    with lab:
        sent = lab.send_odd(5, 0, number // 2)  # before anybody starts
        feed, worker = Feed(lab, 5), lab.start_worker()
        feed.start()
        sent |= lab.send_odd(6, number // 2, number)
        lab.await_growth()
        stop_worker(worker)
        worker = lab.start_worker()  # starts in the midst of it
        feed.end()
        expected = lab.offline(feed, lab.versions[0])
        sessions = {str(event["session"]) for event in expected.values()}
        lab.await_that(lambda: len(lab.real_events(sessions)) >= len(expected), f"{len(expected)} events")
        must = {place for place, refused in sent.items() if refused}
        lab.await_that(lambda: sum(lab.ends("rejected").values()) >= len(must), f"{len(must)} rejected")
        stop_worker(worker)
        assert Counter(event.id for event in lab.real_events(sessions)) == Counter(expected.keys())
        rejected = Counter(place for place, _, _ in lab.rejections())
        assert must <= rejected.keys() <= sent.keys()
        assert set(rejected.values()) == {1}
        for words in VERBS:
            done = subprocess.run(
                kymo_command(*words), env=lab.environment(), capture_output=True, text=True, check=False
            )
            assert done.returncode in (0, 1), words
            assert "Traceback" not in done.stderr + done.stdout, (words, done.stderr[-2000:])
    Archive(lab.settings, tmp_path / "archive").run(lambda: False, once=True)
    assert check_archive(tmp_path / "archive") == []
    assert sessions <= {recording.session for recording in ArchiveReader(tmp_path / "archive").recordings()}
    print(f"\n{len(sent)} odd records, {len(must)} of them rejected, each once; {len(expected)} events, each once")
