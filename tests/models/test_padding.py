"""Sessions of any length: the last window is filled up with zeros, behind all steps, from the recipe to events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiokafka.structs import TopicPartition
from click.testing import CliRunner
from memory_kafka import MemoryKafka, Worker, until

import kymo
from kymo.models.data.dataset import read_dataset, windows_of
from kymo.models.data.samples import fit_steps, split_chain, with_steps
from kymo.models.data.store import StoreWriter, open_store
from kymo.models.serving.operator import Operator
from kymo.models.serving.outputs import Events
from kymo.processors.recipe.load import parse_recipe
from kymo.streams.chunk import Header, Window
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import RecipeError
from kymo.streams.readers import read
from kymo.streams.recording import StreamData
from kymo.streams.topics import Names

RECIPE = """
name = "tiny"
[[input]]
stream = "imu"
rate_hz = 10
channels = ["x", "y"]
[window]
length_s = 2
hop_s = 1
pad = true
[[window.steps]]
step = "standardise"
[model]
architecture = "minirocket"
features = 84
"""
#: Samples of each session, and of each of its windows what is there.
LENGTHS = {7: [7], 20: [20], 25: [20, 15], 31: [20, 20, 11], 40: [20, 20, 20]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for number, length in enumerate([*LENGTHS] * 2):
        values = np.random.default_rng(number).standard_normal((length, 2)) + (5 if number > 4 else 0)
        rows = [f"{i / 10},{x:.3f},{y:.3f},{'ab'[number > 4]}" for i, (x, y) in enumerate(values)]
        (folder / f"s{number}.csv").write_text("\n".join(["t,x,y,label", *rows]) + "\n")
    return folder


def test_windows_say_what_is_there_and_end_in_zeros(data: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(RECIPE)
    head, steps = split_chain(recipe.chain)
    dataset = read_dataset(read([data], recipe.read_options()), recipe, head)
    by_session: dict[str, list[int]] = {}
    for example in dataset.examples:
        window = example.window
        assert (window.data.shape, len(window.real)) == ((20, 2), window.end_index - window.start_index)
        assert window.end_ns - window.start_ns == len(window.real) * 10**8
        by_session.setdefault(window.session, []).append(len(window.real))
    assert list(by_session.values()) == [*LENGTHS.values()] * 2
    (fitted,) = fit_steps(steps, [example.window for example in dataset.examples])
    every = np.concatenate([example.window.real for example in dataset.examples])
    np.testing.assert_allclose(fitted.to_json()["spec"]["mean"], every.mean(0, np.float64), rtol=1e-6)
    writer = StoreWriter(tmp_path)
    writer.add_all(dataset.examples)
    writer.finish(dataset)
    writer.close()
    for example in with_steps(open_store(tmp_path).examples, [fitted]):
        window = example.window
        assert not window.data[len(window.real) :].any()
        assert np.abs(window.real).max() > 0


def test_sessions_of_any_length_have_events(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYMO_HOME", str(tmp_path / "home"))
    recipe, bundle = tmp_path / "tiny.toml", str(tmp_path / "bundle")
    recipe.write_text(RECIPE)
    done = CliRunner().invoke(kymo.cli, ["train", str(recipe), "--data", str(data), "--out", bundle, "--no-report"])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(kymo.cli, ["run", str(recipe), str(data), "--bundle", bundle])
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [round((event["end_ns"] - event["start_ns"]) / 1e8) for event in events] == [
        count for counts in LENGTHS.values() for count in counts
    ] * 2


def test_a_stateful_model_takes_no_padding() -> None:
    text = RECIPE.replace("hop_s = 1", "hop_s = 2").replace(
        '"minirocket"\nfeatures = 84', '"recurrent"\nstateful = true'
    )
    with pytest.raises(RecipeError, match=r"pad = true: a stateful model takes what came"):
        parse_recipe(text)


def test_online_is_as_offline_whenever_a_worker_is_killed() -> None:
    """Sessions of several lengths, read by workers one after the other: each window there once, and as it is offline."""
    names, topic = Names("t"), TopicPartition("t.sensor", 0)
    recipe = parse_recipe(RECIPE)
    head = recipe.chain.cut_behind_window()[0]

    def described(window: Window) -> dict[str, Any]:
        digest = sha256(np.ascontiguousarray(window.data).tobytes()).hexdigest()
        start, end = window.start_index, window.end_index
        return {"recipe": "tiny", "session": window.session, "start_index": start, "end": end, "data": digest}

    def classify(windows: Sequence[Window], _: object) -> list[list[bytes]]:
        return [[json.dumps(described(window)).encode()] for window in windows]

    kafka, codec, wanted = MemoryKafka(), ChunkCodec(), list[dict[str, Any]]()
    for number, length in enumerate([*LENGTHS, 93]):
        values = np.random.default_rng(number).standard_normal((length, 2)).astype(np.float32)
        stream = StreamData(Header(f"s{number}", 0, recipe.input_format()), values)
        wanted += [described(window) for window in windows_of(stream, head)]
        for chunk in stream.chunks(1 + number):
            kafka.append(topic.topic, 0, f"s{number}".encode(), codec.encode(chunk))

    def published() -> list[dict[str, Any]]:
        return [json.loads(value) for value in kafka.values(names.of("events"))]

    async def work() -> None:
        for count in (3, 6, len(wanted)):
            events = Events("tiny")
            operator = Operator(
                "tiny", "tiny.x", (topic.topic,), head, events, names.of("events"), recipe.matches, classify
            )
            worker = Worker(kafka, operator, names)
            worker.start(topic)
            await until(lambda count=count: len(published()) >= count)
            await worker.stop()
            assert worker.failures == []

    asyncio.run(work())
    by_place = {(event["session"], event["start_index"]): event for event in published()}
    assert len(by_place) == len(published()) == len(wanted)
    assert sorted(map(str, published())) == sorted(map(str, wanted))
