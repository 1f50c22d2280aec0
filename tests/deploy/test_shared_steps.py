"""Recipes that begin with the same steps share what does them: one job, one topic, and each its own events."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiokafka.structs import TopicPartition
from memory_kafka import MemoryKafka, Worker, until
from recipes_made import recipe_text
from tiny_models import LABELS, mean_onnx

from kymo.deploy.roles import BOTH, Deployment, group_of, make_operator, make_part, steps_name
from kymo.deploy.worker import _parts
from kymo.models.bundle import load_bundle
from kymo.models.predict import Classifier
from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.models.run import run
from kymo.processors.recipe.load import Recipe, parse_recipe
from kymo.streams.chunk import Chunk, Header, signal_format
from kymo.streams.codec import ChunkCodec
from kymo.streams.recording import Recording, StreamData
from kymo.streams.topics import Names

NAMES, CODEC = Names("t"), ChunkCodec()
SPECTRA = [{"step": "spectrogram", "nperseg": 20, "noverlap": 16}, {"step": "log"}]
GAPS = [(300, 303), (500, 508), (700, 760), (1100, 1500)]  # bridged; filled by both; by the longer windows; by none


def made(name: str, window_s: tuple[float, float], steps: Any = SPECTRA, **of_input: Any) -> Recipe:
    of_input = {"bridge_ms": 50, "max_missing": 0.25} | of_input
    rate, stream = of_input.pop("rate_hz", 100), of_input.pop("stream", "imu")
    model = {"architecture": "spectrogram_cnn"}
    return parse_recipe(
        recipe_text(name, "x y", rate, window_s, stream=stream, steps=steps, model=model, of_input=of_input)
    )


SHORT, LONG = made("short", (1, 0.2)), made("long", (3, 0.48), max_missing=0.5)


def deployment(recipe: Recipe, folder: Path) -> Deployment:
    """With a model that tells classes by the spectra's mean."""
    rows, bins, channels = (recipe.output_format().rows, *recipe.output_format().shape)
    shape = [channels, rows, bins]
    model = {"input": "windows", "output": "logits", "shape": shape, "dtype": "float32", "layout": "channels_first"}
    manifest = {"recipe": recipe.name, "labels": list(LABELS), "temperature": 1.0, "batch": "any", "model": model}
    manifest["chain"] = recipe.chain.to_json()
    weights = np.array([[1.0, -1.0, 0.5], [0.3, 0.2, -0.4]], np.float32)
    return Deployment(recipe, load_bundle(write_bundle(folder, manifest, {MODEL: mean_onnx(weights, [2, 3], shape)})))


def recordings() -> list[Recording]:
    """Two sessions whose numbers hold gaps."""
    found = []
    for seed, name in enumerate(("a", "b")):
        values = np.random.default_rng(seed).standard_normal((2000, 2)).astype(np.float32).cumsum(0)
        for start, end in GAPS:
            values[start + 20 * seed : end + 20 * seed] = np.nan
        head = Header(name, 10**18, signal_format("imu.wrist", ("x", "y"), 100))
        found.append(Recording(name, [StreamData(head, values)], []))
    return found


def test_recipes_of_other_windows_share_a_job_and_a_topic_and_say_what_they_say_alone(tmp_path: Path) -> None:
    deployments = [deployment(recipe, tmp_path / recipe.name) for recipe in (SHORT, LONG)]
    parts = _parts(deployments, ["processor", "model"], NAMES)
    assert [part.role for part in parts] == ["processor", "model", "model"]
    operators = [make_operator(part, NAMES) for part in parts]
    assert {operator.inputs for operator in operators[1:]} == {(operators[0].topic,)} == {("t.spectrogram",)}

    async def work() -> None:
        kafka = MemoryKafka()
        for recording in recordings():
            for chunk in recording.streams[0].chunks(37):
                kafka.append("t.sensor", 0, chunk.session.encode(), CODEC.encode(chunk))
        for part, life in product(parts, range(2)):  # each ends half-way once
            operator = make_operator(part, NAMES)
            worker, source = Worker(kafka, operator, NAMES), TopicPartition(operator.inputs[0], 0)
            if not life:
                kafka.commits.clear()  # those of another group
            worker.start(source)
            if life:
                await until(lambda source=source: kafka.committed(*source) == len(kafka.logs[source]))
            else:
                goal = len(kafka.values(operator.topic)) + 5
                await until(lambda topic=operator.topic, goal=goal: len(kafka.values(topic)) >= goal)
            await worker.stop()
            assert worker.failures == []
        check_derived([CODEC.decode(value) for value in kafka.values("t.spectrogram")])
        published = [json.loads(value) | {"emitted_ns": 0} for value in kafka.values("t.events")]
        for each in deployments:
            alone = run(each.recipe, recordings(), Classifier.for_recipe(each.bundle, each.recipe))
            expected = [json.loads(event.to_json(0)) for event in alone]
            mine = [event for event in published if event["recipe"] == each.recipe.name]
            assert sorted(mine, key=lambda e: e["id"]) == sorted(expected, key=lambda e: e["id"])
            most = max(event["missing"] for event in mine)  # only the longer windows span the third gap
            assert most > 0.2 if each.recipe is LONG else most == 0.08

    asyncio.run(work())


def check_derived(chunks: list[Chunk]) -> None:
    """One stream a session, each column once, in the name that both recipes know."""
    assert {chunk.header.chain for chunk in chunks} == {steps_name(SHORT)} == {steps_name(LONG)}
    for session in ("a", "b"):
        mine = [chunk for chunk in chunks if chunk.session == session]
        assert all(one.end_index <= other.first_index for one, other in pairwise(mine))
        assert mine[-1].end


@pytest.mark.parametrize(
    "other",
    [
        made("o", (1, 0.2), stream="imu.left"),
        made("o", (1, 0.2), stream="imu.right"),
        made("o", (1, 0.24), rate_hz=50, bridge_ms=100),
        made("o", (1, 0.2), bridge_ms=60),
        made("o", (1, 0.2), max_missing=0),
        made("o", (1, 0.2), units=["g", "g"]),
        made("o", (1, 0.2), dtype="float64"),
        made("o", (1, 0.2), [SPECTRA[0] | {"detrend": "linear"}, SPECTRA[1]]),
        made("o", (1, 0.2), SPECTRA[:1]),
    ],
)
def test_what_changes_the_derived_bytes_is_a_job_of_its_own(other: Recipe) -> None:
    assert steps_name(other) != steps_name(SHORT)
    assert group_of("processor", other, NAMES) != group_of("processor", SHORT, NAMES)


@pytest.mark.parametrize(
    "other",
    [
        made("o", (2, 0.48)),
        made("o", (1, 0.08), max_missing=0.9),
        replace(SHORT, name="renamed"),
    ],
)
def test_what_does_not_is_not(other: Recipe) -> None:
    assert steps_name(other) == steps_name(SHORT)
    assert group_of("processor", other, NAMES) == group_of("processor", SHORT, NAMES)


def test_both_roles_in_one_worker_know_no_derived_stream(tmp_path: Path) -> None:
    part = make_part(BOTH, deployment(SHORT, tmp_path / "short"), NAMES)
    assert make_operator(part, NAMES).chain == SHORT.chain.cut_behind_window()[0]
