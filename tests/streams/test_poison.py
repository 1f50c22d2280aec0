"""Odd records on every topic that is read: each is refused in words, passed over or taken; nothing ends by it."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fault_feed import lab_recipe
from fault_lab import PATIENCE_S, Feed, SwapLab, stop_worker
from fuzzed import odd_record
from kafka import KafkaProducer
from verbs import execute, variables

from kymo.models.bundle import load_bundle
from kymo.models.serving.partition import decode_record
from kymo.processors.recipe.load import load_recipe
from kymo.streams.archive.check import check_archive
from kymo.streams.archive.read import ArchiveReader
from kymo.streams.archive.writer import Archive
from kymo.streams.chunk import Chunk, Header, Window, signal_format
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import ChunkError, EventError, FormatError, KymoError
from kymo.streams.events import Event
from kymo.streams.kafka.client import client_arguments
from kymo.streams.labels.cli import as_json_lines, as_table
from kymo.streams.labels.labels import Label, current_labels
from kymo.streams.messages import Record, read_object, session_of
from kymo.streams.promotions import Promotion
from kymo.streams.sessions import read_session
from kymo.streams.sessions_cli import session_row
from kymo.streams.topics import BY_NAME

NUMBER = 300


SEED = 9


class Taker:
    """Takes the sensor's records as a worker does: a chain a session, and what comes out must be fit to be published."""

    def __init__(self, folder: Path) -> None:
        recipe, bundle = lab_recipe(folder)
        self.recipe, self.chain, self.codec = load_recipe(recipe), load_bundle(bundle).chain, ChunkCodec()
        self.stages: dict[str, Any] = {}
        self.taken = self.refused = 0

    def __call__(self, key: bytes | None, value: bytes | None) -> None:
        try:
            chunk = decode_record(self.codec, SimpleNamespace(key=key, value=value))
        except ChunkError:
            self.refused += 1
            raise
        self.push(chunk)

    def push(self, chunk: Chunk) -> None:
        if chunk.header.chain or self.recipe.matches(chunk.header.format) is not None:
            return
        stage = self.stages.setdefault(chunk.session, self.chain.build())
        made = stage.push(chunk) + (stage.flush() if chunk.end else [])
        if chunk.end_index < 2**52 - 40:  # the session goes on
            fmt = chunk.header.format
            made += stage.push(Chunk(chunk.header, chunk.end_index, np.ones((40, *fmt.shape), fmt.dtype)))
        self.taken += 1
        assert stage.needs_from
        again = self.chain.build()
        again.restore(stage.snapshot())
        assert again.snapshot() == stage.snapshot()
        for window in made:
            assert isinstance(window, Window)
            assert 0 <= window.start_index < window.end_index < 2**53
            assert -(2**63) <= window.start_ns < window.end_ns < 2**63
            assert 0 <= window.missing <= 1
            assert window.data.shape == (16, 2)


def read_event(value: bytes | None) -> None:
    event = Event.from_json(value)
    assert Event.from_json(event.to_json()) == event


def read_promotion(value: bytes | None) -> None:
    promotion = Promotion.from_json(value)
    assert Promotion.from_json(promotion.to_json()) == promotion


def read_label(value: bytes | None) -> None:
    label = Label.from_json(read_object(value))
    (held,) = current_labels([label]) or [label]
    assert as_json_lines([held]).encode() + as_table([held]).encode()


def read_metadata(value: bytes | None) -> None:
    row = session_row("fuzz7", read_session(value))
    assert json.dumps(row).isprintable()


READERS: dict[str, Callable[[bytes | None], None]] = {
    "events": read_event,
    "models": read_promotion,
    "labels": read_label,
    "sessions": read_metadata,
}


@pytest.mark.filterwarnings("error")
def test_three_hundred_odd_records_on_all_topics(tmp_path: Path) -> None:
    pick, sensor, texts, taken = random.Random(SEED), Taker(tmp_path), list[str](), 0
    for index in range(NUMBER):
        topic, (key, value) = odd_record(pick, index)
        assert session_of(Record(topic, 0, index, 0, 0, key, value)) is not None
        try:
            if topic == "sensor":
                sensor(key, value)
            elif topic in READERS:
                READERS[topic](value)
            taken += 1
        except KymoError as error:
            texts.append(str(error))
    assert [text for text in texts if not text.isprintable() or len(text) > 1000] == []
    assert min(len(texts), taken) > NUMBER // 5
    assert min(sensor.refused, sensor.taken) > NUMBER // 40


def test_what_a_chain_refuses_leaves_it_as_it_was(tmp_path: Path) -> None:
    """A chunk that passes the codec and not the chain: what comes behind it is what would have come without."""
    sensor, fmt = Taker(tmp_path), signal_format("imu.wrist", ("x", "y"), 100)
    chunks = [Chunk(Header("s", 10**18, fmt), at, np.full((8, 2), at, np.float32)) for at in range(0, 80, 8)]
    other = signal_format("imu.wrist", ("x", "z"), 100)
    plain, disturbed = sensor.chain.build(), sensor.chain.build()
    for chunk in chunks:
        with pytest.raises(FormatError):
            disturbed.push(Chunk(Header("s", 10**18, other), chunk.first_index, chunk.data))
        assert [w.data.tobytes() for w in plain.push(chunk)] == [w.data.tobytes() for w in disturbed.push(chunk)]


VERBS = (("events",), ("label", "export"), ("sessions", "list"), ("models", "list"), ("doctor",))


Place = tuple[str, int, int]


class PoisonLab(SwapLab):
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
        found = []
        for record in self.records("events"):
            try:
                event = Event.from_json(record.value)
            except EventError:
                continue
            found += [event] if event.session in sessions else []
        return found


@pytest.mark.chaos
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
        expected = lab.expected(feed, lab.versions[0])
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
            done = execute(*words, env=variables(lab.settings), status=None)
            assert done.returncode in (0, 1), words
            assert "Traceback" not in done.stderr + done.stdout, (words, done.stderr[-2000:])
    Archive(lab.settings, tmp_path / "archive").run(lambda: False, once=True)
    assert check_archive(tmp_path / "archive") == []
    assert sessions <= {recording.session for recording in ArchiveReader(tmp_path / "archive").recordings()}
    print(f"\n{len(sent)} odd records, {len(must)} of them rejected, each once; {len(expected)} events, each once")
