"""Frames in a worker: what waits, runs, is judged, packed and sent is bounded in bytes, whatever a sample is."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from aiokafka.structs import TopicPartition
from checks import windows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_kafka import MemoryKafka, Worker, until
from strategies import assert_same, samples

from kymo.models.serving.joined import Patience
from kymo.models.serving.operator import SILENT, Operator, Shadow
from kymo.models.serving.outputs import DerivedChunks, Events, outputs_of
from kymo.models.serving.partition import Limits, Partition
from kymo.models.serving.snapshots import Handover
from kymo.processors.chain import Chain
from kymo.processors.intake import Intake
from kymo.processors.recipe.load import parse_recipe
from kymo.processors.steps.images import Decode, Encode
from kymo.processors.steps.maps import Scale
from kymo.processors.windows import Windows
from kymo.streams.budget import BATCH, IMAGE, PENDING, RUN
from kymo.streams.chunk import Array, Chunk, Format, Header, Window, bytes_of
from kymo.streams.codec import ChunkCodec
from kymo.streams.recording import StreamData
from kymo.streams.topics import MESSAGE_MAX, MIB, Names

NAMES, VIDEO = Names("t"), TopicPartition("t.video", 0)
IMAGES = Format("video", ("red", "green", "blue"), (), Fraction(15), "jpeg", ())
PIXELS = replace(IMAGES, dtype="uint8", shape=(64, 64, 3))
CODEC = ChunkCodec()


def pixels(count: int, fmt: Format = PIXELS) -> Array:
    """Frames that say their number in every pixel."""
    data = np.empty((count, *fmt.shape), np.uint8)
    data[...] = (np.arange(count) % 251).reshape(-1, *[1] * len(fmt.shape))
    return data


def put(kafka: MemoryKafka, fmt: Format, data: Array, each: int, session: str = "s") -> None:
    header = Header(session, 0, fmt)
    for first in range(0, len(data), each):
        made = Chunk(header, first, data[first : first + each], None, first + each >= len(data))
        kafka.append(VIDEO.topic, 0, session.encode(), CODEC.encode(made))


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_chunk_in_parts_is_the_chunk(data: st.DataObject) -> None:
    fmt = data.draw(st.sampled_from([IMAGES, replace(PIXELS, shape=(3, 2, 3)), replace(IMAGES, rate=Fraction(0))]))
    count, most = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 2000))
    times = None if fmt.rate else np.arange(count, dtype=np.int64)
    gaps = ((2, 9, True), (9, 11, False), (30, 34, True))
    whole = Chunk(Header("s", 0, fmt, "x"), 5, samples(fmt, count, 1), times, True, gaps)
    parts = list(whole.parts(most))
    assert all(part.nbytes <= most or part.count == 1 for part in parts)
    assert [part.first_index for part in parts[1:]] == [part.end_index for part in parts[:-1]]
    joined = replace(parts[0], data=np.concatenate([part.data for part in parts]), end=parts[-1].end)
    joined.times_ns = None if times is None else np.concatenate([part.times_ns for part in parts])  # type: ignore[misc]
    assert_same(joined, whole)
    assert [part.end for part in parts] == [False] * (len(parts) - 1) + [True]
    if len(parts) > 1:
        for part in parts:
            under = [gap for gap in gaps if gap[0] < part.end_index and part.first_index < gap[1]]
            assert list(part.filled) == under


def test_bytes_of_images_are_what_they_hold() -> None:
    data = samples(IMAGES, 7, 1)
    total = sum(len(image) for image in data)
    assert bytes_of(data) == Chunk(Header("s", 0, IMAGES), 0, data).nbytes == total > 7 * 8
    window = Window(Header("s", 0, replace(IMAGES, rows=7)), 0, 7, 0, 1, [data[:3], data[3:]])
    assert window.nbytes == total
    assert Windows(78, 39).memory_bytes(IMAGES) == 78 * IMAGE
    assert Windows(78, 39).memory_bytes(replace(PIXELS, shape=(224, 224, 3))) == 78 * 224 * 224 * 3


@pytest.mark.parametrize("decoded", [False, True])
def test_what_goes_through_a_chain_at_once_is_bounded_by_what_it_becomes(
    decoded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """512 images of 64 x 64 are a few 100 kB that become 6 MiB of pixels; 2,048 samples would have been one run."""
    fmt = IMAGES if decoded else PIXELS
    one = pixels(1)
    steps = (Intake(dtype=fmt.dtype), *([Decode(64, 64)] if decoded else []), Scale(1 / 255), Windows(8, 8))
    chain, kafka = Chain(steps), MemoryKafka()
    data = Encode().apply(np.repeat(one, 512, 0), PIXELS) if decoded else np.repeat(one, 512, 0)
    put(kafka, fmt, data, 64)
    sizes, apply = list[int](), Scale.apply

    def noted(self: Scale, data: Array, fmt: Format) -> Array:
        out = apply(self, data, fmt)
        sizes.append(out.nbytes)
        return out

    monkeypatch.setattr(Scale, "apply", noted)
    partition = Partition(0, chain, lambda _: None, lambda: 0.0, Limits(), outputs_of(chain, Events("r")))
    partition.load(Handover(next_offset={VIDEO.topic: 0}))
    taken = [p for some in partition.take(VIDEO.topic, kafka.logs[VIDEO], pytest.fail) for p in some]
    assert len(taken) == 64
    assert sum(sizes) == 512 * 64 * 64 * 3 * 4
    assert max(sizes) <= 2 * RUN


def test_derived_frames_are_cut_to_messages() -> None:
    """A processor that makes float32 of pixels gives four times as many bytes as came in one message."""
    fmt = replace(PIXELS, shape=(256, 256, 3))
    chain, kafka = Chain((Intake(dtype="uint8"), Scale(0.5))), MemoryKafka()
    outputs = DerivedChunks(chain)
    data = pixels(40, fmt)
    put(kafka, fmt, data, 20)  # 3.75 MiB a message

    async def work() -> None:
        topic = NAMES.of("video") + ".derived"
        operator = Operator("r", "r.processor", (VIDEO.topic,), chain, outputs, topic, lambda _: None, outputs.encode)
        for stop in (2, 5, 99):  # a few records in, another takes over
            worker = Worker(kafka, operator, NAMES)
            worker.start(VIDEO)
            await until(lambda stop=stop: len(kafka.values(topic)) >= min(stop, 10))
            if stop == 99:
                await until(lambda: CODEC.decode(kafka.values(topic)[-1]).end)
            await worker.stop()
            assert worker.failures == [], worker.lines
        values = kafka.values(topic)
        assert max(map(len, values)) <= MESSAGE_MAX
        chunks = [CODEC.decode(value) for value in values]
        assert [chunk.first_index for chunk in chunks[1:]] == [chunk.end_index for chunk in chunks[:-1]]
        assert np.array_equal(np.concatenate([chunk.data for chunk in chunks]), data.astype(np.float32) * 0.5)

    asyncio.run(work())


def test_windows_wait_and_are_judged_by_their_bytes_and_are_let_go_of_then() -> None:
    """Windows of 5 MiB: six fill what may wait, six are judged at once, and none is held until the broker has its event."""
    fmt, rows = replace(PIXELS, shape=(256, 256, 3)), 28
    window = rows * 256 * 256 * 3
    chain, kafka = Chain((Intake(dtype="uint8"), Windows(rows, rows))), MemoryKafka()
    put(kafka, fmt, pixels(40 * rows, fmt), 14)
    batches, most = list[int](), 0

    def classify(windows: Sequence[Any], _: object) -> list[list[bytes]]:
        batches.append(sum(w.nbytes for w in windows))
        return [
            [json.dumps({"recipe": "r", "session": w.session, "start_index": w.start_index}).encode()] for w in windows
        ]

    async def work() -> None:
        nonlocal most
        topic = NAMES.of("events")
        operator = Operator("r", "r.x", (VIDEO.topic,), chain, Events("r"), topic, lambda _: None, classify)
        worker = Worker(kafka, operator, NAMES)
        worker.agent._batch_size = 64
        worker.producer.may.clear()  # the broker acknowledges nothing
        worker.start(VIDEO, commit_every_s=3600)
        judged: list[Any] = []
        emitted = worker.agent._emitted

        def note(*arguments: Any) -> None:
            judged.append(arguments[1])
            emitted(*arguments)

        worker.agent._emitted = note  # type: ignore[method-assign]
        while sum(batches) < 40 * window:
            most = max(most, worker.agent._pending_bytes)
            await asyncio.sleep(0)
        worker.producer.may.set()
        await until(lambda: len(judged) == 40)
        assert all(not hasattr(pending, "output") for pending in judged)
        assert worker.failures == []
        await worker.stop()

    asyncio.run(work())
    assert most <= PENDING + 2 * window
    assert max(batches) <= BATCH
    assert len(batches) >= 40 * window / BATCH


def test_a_shadow_takes_no_more_than_its_bytes() -> None:
    shadow = Shadow("t.shadow")
    shadow.predictor = object()  # type: ignore[assignment]
    fmt = replace(PIXELS, rows=100, shape=(256, 256, 3))
    window = Window(Header("s", 0, fmt), 0, 100, 0, 1, pixels(100, fmt))
    shadow.offer([(SILENT, window)] * 10)
    waiting = shadow._queue.qsize()
    assert waiting == -(-PENDING // window.nbytes) == 10 - shadow.counts["dropped"]
    assert len(shadow._next()) == waiting
    shadow.offer([(SILENT, window)])
    assert shadow._queue.qsize() == 1


def test_memories_are_packed_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty quiet sessions with 3 MiB of an open window each: what is due beyond the budget is stored with the next commits."""
    monkeypatch.setattr("kymo.models.serving.partition.PACKED", 8 * MIB)
    fmt, clock = replace(PIXELS, shape=(256, 256, 3)), [0.0]
    chain, kafka = Chain((Intake(dtype="uint8"), Windows(20, 20))), MemoryKafka()
    for number in range(20):
        header = Header(f"s{number}", 0, fmt)
        kafka.append(VIDEO.topic, 0, f"s{number}".encode(), CODEC.encode(Chunk(header, 0, pixels(16, fmt))))
    partition = Partition(0, chain, lambda _: None, lambda: clock[0], Limits(), outputs_of(chain, Events("r")))
    partition.load(Handover(next_offset={VIDEO.topic: 0}))
    assert not [p for some in partition.take(VIDEO.topic, kafka.logs[VIDEO], pytest.fail) for p in some]
    clock[0], turns, stored = 100.0, 0, set[str]()
    while due := partition.snapshots():
        assert len(due) == min(3, 20 - len(stored))  # 9 MiB
        for session, make in due:
            assert make is not None
            partition.stored(session, make())
            stored.add(session.name)
        turns += 1
    assert turns == 7
    assert len(stored) == 20
    assert not partition.sessions  # they are unloaded


FILM = """
name = "film"
[[input]]
stream = "video"
rate_hz = 0
channels = ["red", "green", "blue"]
dtype = "jpeg"
sample = "nearest"
bridge_ms = 100
[join]
rate_hz = 3
grid = "video"
[[steps]]
step = "decode"
height = 6
width = 5
[window]
length_s = 3
hop_s = 1
"""


def test_images_of_a_variable_rate_are_once_what_they_are_offline_whoever_takes_over() -> None:
    recipe = parse_recipe(FILM)
    fmt, random = recipe.inputs[0].format, np.random.default_rng(1)
    times = 10**18 + np.cumsum(random.integers(10**7, 9 * 10**7, 600))
    data = samples(fmt, 600, 1)
    stream = StreamData(Header("s", 10**18, fmt), data, times)
    wanted = {w.start_index: zlib.crc32(w.data.tobytes()) for w in windows_of([stream], recipe.chain)}
    assert len(wanted) > 20
    kafka, topic = MemoryKafka(), NAMES.of("events")
    for chunk in stream.chunks(7):
        kafka.append(VIDEO.topic, 0, b"s", CODEC.encode(chunk))

    def classify(windows: Sequence[Any], _: object) -> list[list[bytes]]:
        facts = [{"recipe": "film", "session": "s", "start_index": w.start_index} for w in windows]
        return [
            [json.dumps(fact | {"crc": zlib.crc32(w.data.tobytes())}).encode()]
            for fact, w in zip(facts, windows, strict=True)
        ]

    async def work() -> None:
        chain, patience = recipe.chain.cut_behind_window()[0], {"video": Patience(VIDEO.topic, 10.0, 60.0)}
        operator = Operator("film", "film.x", (VIDEO.topic,), chain, Events("film"), topic, recipe.matches, classify)
        for stop in (3, 11, len(wanted)):
            worker = Worker(kafka, replace(operator, patience=patience), NAMES)
            worker.start(VIDEO)
            await until(lambda stop=stop: len(kafka.values(topic)) >= stop)
            await worker.stop()
            assert worker.failures == [], worker.lines
        events = [json.loads(value) for value in kafka.values(topic)]
        assert {event["start_index"]: event["crc"] for event in events} == wanted
        assert len(events) == len(wanted)

    asyncio.run(work())
