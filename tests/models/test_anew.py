"""A state that begins anew at tags: in whichever order the inputs come, killed anywhere, the events are those of one pass a piece."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documents import ROOT, blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from joined_lab import MOVES, JoinedLife, JoinedLog, is_settled, recorded, survives
from recipes_made import STANDARDISE, recipe_text
from tiny_stateful import LABELS, ROWS, JudgedLife, leaky_onnx, manifest, plain, reference

from kymo.models.bundle import load_bundle
from kymo.models.data.dataset import read_dataset
from kymo.models.data.samples import link_runs
from kymo.models.predict import Classifier, Predictor, softmax
from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.models.run import run
from kymo.models.serving.outputs import ENDLESS
from kymo.models.serving.partition import Limits
from kymo.processors.recipe.load import parse_recipe
from kymo.streams.chunk import Array, Chunk, Header, signal_format
from kymo.streams.errors import RecipeError
from kymo.streams.labels.labels import interval
from kymo.streams.recording import Recording, StreamData

TEXT = recipe_text(
    "tiny",
    "a",
    10,
    (0.4, 0.4),
    stream="a",
    behind=[{"step": "anew", "channel": "count"}, *STANDARDISE],
    join={"rate_hz": 10, "grid": "a"},
    model={"architecture": "recurrent", "stateful": True, "min_probability": 0.4},
).replace(
    "[join]",
    '[[input]]\nstream = "tags"\nrate_hz = 0\nchannels = ["tag"]\nsample = "count"\nrequired = false\n[join]',
)
RECIPE = parse_recipe(TEXT)
SAMPLE_NS = 10**8
Tags = Sequence[float]  # in samples


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    path = write_bundle(tmp_path_factory.mktemp("anew") / "tiny", manifest(RECIPE), {MODEL: leaky_onnx()})
    return Predictor.to_serve(load_bundle(path), RECIPE)


def signal(count: int) -> Array:
    return np.sin(0.7 * np.arange(count, dtype=np.float64))[:, None].astype(np.float32)


def recording(count: int, tags: Tags) -> Recording:
    times_ns = np.array([round(tag * SAMPLE_NS) for tag in tags], np.int64)
    plain_stream = StreamData(Header("s", 0, signal_format("a", ("a",), 10)), signal(count))
    marks = StreamData(
        Header("s", 0, signal_format("tags", ("tag",), 0)), np.ones((len(tags), 1), np.float32), times_ns
    )
    return Recording("s", [plain_stream, marks])


def expected(count: int, tags: Tags) -> list[list[float]]:
    """One pass a piece, by numpy; a piece begins with the window that a tag lies in."""
    means = signal(count).astype(np.float64)[: count // ROWS * ROWS].reshape(-1, ROWS, 1).mean(1)
    starts = sorted({0, *(int(tag // ROWS) for tag in tags)})
    parts = [reference(0, means[a:b]) for a, b in pairwise([*starts, len(means)]) if a < b]
    return [softmax(row) for row in np.concatenate(parts).tolist()]


def predicted(found: Any) -> list[dict[str, Any]]:
    return [json.loads(event.to_json()) | {"emitted_ns": 0} for event in found]


COUNTS, TAGS = st.integers(8, 60), st.lists(st.floats(0, 60).filter(lambda tag: tag % 1 > 1e-6), max_size=4)


@settings(max_examples=30, deadline=None)
@given(COUNTS, TAGS, st.integers(1, 3000), st.randoms())
def test_the_state_begins_anew_where_a_tag_lies_however_all_is_cut(
    model: Predictor, count: int, tags: list[float], chunk_ms: int, pick: random.Random
) -> None:
    tags = sorted(tag for tag in tags if tag < count)
    events = predicted(run(RECIPE, [recording(count, tags)], model.classifier, chunk_ms))
    rows = [[event["probabilities"][label] for label in LABELS] for event in events]
    np.testing.assert_allclose(rows, expected(count, tags), atol=1e-6)
    streams = [chunks_of(stream, pick) for stream in recording(count, tags).streams]
    stage, memory, served = model.head.build(), list[Any](), list[Any]()
    while live := [chunks for chunks in streams if chunks]:
        windows = stage.push(pick.choice(live).pop(0))
        served += chain.from_iterable(model.serve(windows, [memory] * len(windows)))
    windows = stage.flush()
    served += chain.from_iterable(model.serve(windows, [memory] * len(windows)))
    assert [json.loads(event) | {"emitted_ns": 0} for event in served] == events


def chunks_of(stream: StreamData, pick: random.Random) -> list[Chunk]:
    edges = [*sorted(pick.sample(range(1, stream.count), min(3, stream.count - 1)) if stream.count > 1 else [])]
    times = stream.times_ns
    return [
        Chunk(stream.header, a, stream.data[a:b], None if times is None else times[a:b], b == stream.count)
        for a, b in pairwise([0, *edges, stream.count])
    ]


def defined(log: JoinedLog, model: Predictor) -> list[Any]:
    """What must be published: by the chain and one pass of the model, fed with what was decided and then with all data."""
    out = []
    for name in sorted({c.session for items in log.inputs.values() for c in items}):
        stage, memory = model.head.build(), list[Any]()
        windows = [w for decision in log.decisions.get(name, ()) for w in stage.decide(decision)]
        windows += [w for items in log.inputs.values() for c in items if c.session == name for w in stage.push(c)]
        entry: Any = stage.stages[0]
        windows += stage.flush() if entry.over else []
        out += [(name, w.start_index, "", plain(model.serve([w], [memory])[0])) for w in windows]
        assert entry.over or is_settled(entry)
    return sorted(out)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_crashes_anywhere(model: Predictor, seed: int) -> None:
    judge = model

    class AnewLife(JoinedLife, JudgedLife):
        model = judge
        kind = JoinedLife.kind

    pick, clock, limits = random.Random(seed), [0.0], Limits(5.0, 10_000)
    join: Any = model.head.specs[0]
    inputs, topics = recorded(pick, join)
    log = JoinedLog(inputs, ENDLESS, topics=topics)
    life = AnewLife(log, model.head, clock, limits)
    for _ in range(pick.randint(20, 120)):
        name, topic = pick.choice(MOVES), pick.choice(sorted(log.inputs))
        if not survives(life, name, topic, pick):
            life = AnewLife(log, model.head, clock, limits)
    log.visible = {topic: len(items) for topic, items in log.inputs.items()}
    for _ in range(2):
        life = AnewLife(log, model.head, clock, limits)
        life.finish()
        for _ in range(20):
            clock[0] += 1.0
            life.decide(False)
            life.finish()
        assert sorted(log.events) == defined(log, model)


def test_what_is_learned_from_begins_anew_there_too() -> None:
    labelled = recording(40, [13.5, 30.2])
    labelled.labels.append(interval(session="s", set="label", start_ns=0, end_ns=40 * SAMPLE_NS, label="low"))
    examples = link_runs(read_dataset([labelled], RECIPE, RECIPE.chain.cut_behind_window()[0]), 4)
    assert len({id(example.run) for example in examples}) == 1  # the marks are behind the step
    examples = link_runs(read_dataset([labelled], RECIPE, type(RECIPE.chain)(RECIPE.chain.specs[:-1])), 4)
    assert [len(example.run) for example in examples] == [3] * 3 + [4] * 4 + [3] * 3


FRAMES = """
name = "frames"
[[input]]
stream = "eda"
rate_hz = 4
channels = ["eda"]
[[input]]
stream = "tags"
rate_hz = 0
channels = ["tag"]
sample = "count"
required = false
[join]
rate_hz = 4
grid = "eda"
[window]
length_s = {}
hop_s = 2
[[window.steps]]
step = "anew"
channel = "count"
[[window.steps]]
step = "animation"
rate_hz = 0.5
height = 12
width = 12
reach_s = [6, 4, 6, 6]
[model]
architecture = "crnn"
backbone = "small"
stateful = true
dense = []
embedding = 8
units = 8
layers = 2
decoder = 0
"""


def test_an_event_a_frame_of_a_figure_whose_frames_show_the_past(tmp_path: Path) -> None:
    recipe = parse_recipe(FRAMES.format(6.25))  # what a frame rests on; the next one comes 2 s later
    described = manifest(RECIPE) | {"recipe": recipe.name, "chain": recipe.chain.to_json()}
    described["model"] = described["model"] | {"shape": [1, 12, 12, 3]}
    bundle = load_bundle(write_bundle(tmp_path / "b", described, {MODEL: leaky_onnx(0, 3, 1, sides=(12, 12))}))
    values = 2 + np.cumsum(np.random.default_rng(1).normal(0, 0.2, (160, 1)), 0).astype(np.float32)
    eda = StreamData(Header("s", 0, signal_format("eda", ("eda",), 4)), values)
    tags = recording(1, [170.0]).streams[1]
    events = list(run(recipe, [Recording("s", [eda, tags])], Classifier.for_recipe(bundle, recipe)))
    assert [event.start_index for event in events] == [*range(0, 160 - 24, 8)]
    stage = recipe.chain.build()
    frames = [w.data for s in (eda, tags) for w in stage.push(Chunk(s.header, 0, s.data, s.times_ns, True))]
    means = np.array([frame[0].mean((0, 1), np.float64) for frame in frames])
    begins = next(i for i, event in enumerate(events) if event.end_ns > 17 * 10**9)
    assert 0 < begins < len(events) - 3
    logits = np.concatenate([reference(0, means[:begins]), reference(0, means[begins:])])
    rows = [list(event.probabilities.values()) for event in events]
    np.testing.assert_allclose(rows, [softmax(row) for row in logits.tolist()], atol=1e-4)


def test_the_recipe_of_the_page_gives_a_frame_every_ten_seconds() -> None:
    (tables,) = (block.text for block in blocks("docs/physiology.md", "toml") if "anew" in block.text)
    inputs, _, rest = tables.partition("[window]")
    text = (ROOT / "recipes" / "listener.toml").read_text()
    text = text.replace("[join]", f"{inputs}[join]").replace("[model]", "[model]\nstateful = true")
    recipe = parse_recipe(re.sub(r"\[window\]\n.*\n.*\n", f"[window]{rest}", text))
    fmt = recipe.chain.output({"eda": recipe.inputs[0].format})
    assert (fmt.rows, recipe.window_hop, recipe.stateful) == (1, 40, True)


def test_rows_must_be_one_stream_s() -> None:
    with pytest.raises(RecipeError, match=r"length_s equal to hop_s .* rows that come every 8 samples"):
        parse_recipe(FRAMES.format(8.25))
    with pytest.raises(RecipeError, match="no channel mark"):
        parse_recipe(
            FRAMES.format(6.25).replace('channel = "count"', 'channel = "mark"').replace("required = false", "")
        )
