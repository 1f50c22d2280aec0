"""Stateful networks: trained on sequences, exported to ONNX."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes_made import STANDARDISE, recipe_text
from tiny_models import linear_onnx

from kymo.models.data.cache import build_dataset
from kymo.models.data.dataset import read_dataset
from kymo.models.data.samples import link_runs, run_outputs, sequences_of, split_chain
from kymo.models.evaluate import evaluate
from kymo.models.onnx_model import StatefulModel, StreamState
from kymo.models.predict import Classifier
from kymo.models.run import run
from kymo.models.training.train import Trained, TrainRequest, train
from kymo.models.zoo import architecture
from kymo.processors.recipe.load import Recipe, load_recipe, parse_recipe
from kymo.streams.chunk import Array, Format, Header, signal_format
from kymo.streams.errors import BundleError, RecipeError, TrainingError
from kymo.streams.labels.labels import Label
from kymo.streams.readers import read
from kymo.streams.recording import Recording, StreamData
from kymo.streams.settings import Settings

RATE = 20


LATCH = recipe_text(
    "latch",
    "x y",
    RATE,
    (1, 1),
    stream="sensor",
    behind=STANDARDISE,
    model={
        "architecture": "recurrent",
        "stateful": True,
        "cell": "gru",
        "units": 16,
        "dropout": 0.1,
        "learning_rate": 0.01,
    },
    train={"folds": 0, "epochs": 25, "sequence": 20, "split": "session"},
)


def latch(seed: int, seconds: int = 80) -> tuple[Array, Sequence[str]]:
    """Samples ``(n, 2)`` and a label for each; the first ones, before any pulse, have none."""
    random = np.random.default_rng(seed)
    data, labels = random.normal(0, 0.2, (seconds * RATE, 2)), [""] * (seconds * RATE)
    at, up = int(random.integers(5, 2 * RATE)), bool(random.integers(2))
    while at < len(data) - 8:
        data[at : at + 6, 0] += 3 if up else -3
        until = at + int(random.integers(4 * RATE, 12 * RATE))
        labels[at:until] = ["open" if up else "closed"] * (until - at)
        at, up = until, bool(random.integers(2))
    return data.astype(np.float32), labels[: len(data)]


def write_latch(path: Path, seed: int, seconds: int = 80) -> Path:
    """One recording as CSV: ``t``, ``x``, ``y``, ``label``."""
    data, labels = latch(seed, seconds)
    rows = [
        f"{i / RATE:.2f},{x:.4f},{y:.4f},{label}" for i, ((x, y), label) in enumerate(zip(data, labels, strict=False))
    ]
    path.write_text("t,x,y,label\n" + "\n".join(rows) + "\n")
    return path


RECIPE = LATCH.replace('\n[[window.steps]]\nstep = "standardise"', "")


SPECTRA = RECIPE.replace("[window]", '[[steps]]\nstep = "spectrogram"\nnperseg = 8\nnoverlap = 4\n[window]')


def recording(session: str, pieces: Sequence[tuple[int, int]], labelled: Sequence[tuple[int, int, str]]) -> Recording:
    """Noise from sample to sample, with labels from second to second."""
    noise = np.random.default_rng(sum(map(ord, session))).normal(0, 1, (1000, 2)).astype(np.float32)
    header = Header(session, 0, signal_format("sensor", ("x", "y"), 20))
    cut = [(start, noise[start:end]) for start, end in pieces]
    labels = [Label(f"{session}-{a}", session, "label", a * 10**9, b * 10**9, label) for a, b, label in labelled]
    whole = np.concatenate([data for _, data in cut])
    return Recording(session, [StreamData(header, whole, None, 0, cut)], labels=labels)


def examples_of(text: str, *recordings: Recording) -> tuple[Recipe, list[Any]]:
    made = parse_recipe(text)
    return made, link_runs(read_dataset(recordings, made, split_chain(made.chain)[0]))


ONE = recording("s", [(0, 100), (100, 240), (260, 400)], [(0, 3, "open"), (5, 9, "closed"), (14, 20, "open")])


def test_a_sequence_is_a_window_with_those_before_it_joined() -> None:
    made, examples = examples_of(RECIPE, ONE, recording("t", [(0, 60)], [(0, 3, "closed")]))
    starts = [example.window.start_index for example in examples]
    assert starts == [0, 20, 40, 100, 120, 140, 160, 280, 300, 320, 340, 360, 380, 0, 20, 40]
    samples = sequences_of(examples, made.chain, ("closed", "open"), (), 4)
    assert samples.windows.shape == (16, 80, 2)
    assert samples.classes.tolist() == [1] * 3 + [0] * 4 + [1] * 6 + [0] * 3
    noise = ONE.streams[0].pieces
    before_gap = np.concatenate([noise[0][1], noise[1][1]])
    begins = {0: 0, 20: 0, 40: 0, 100: 40, 120: 60, 140: 80, 160: 100}  # those without a label are there, too
    for row, start in enumerate(starts[:7]):
        expected = before_gap[begins[start] : start + 20]
        whole = np.full((80, 2), np.nan, np.float32)
        whole[: len(expected)] = expected
        np.testing.assert_array_equal(samples.windows[row], whole)
    assert [int(np.isfinite(samples.windows[i][:, 0]).sum()) for i in range(7, 16)] == [40, 60, *[80] * 4, 20, 40, 60]
    batch = samples.windows[np.array([3, 1])]
    np.testing.assert_array_equal(batch, np.stack([samples.windows[3], samples.windows[1]]))
    np.testing.assert_array_equal(samples.windows[2:5], np.stack([samples.windows[i] for i in (2, 3, 4)]))


def test_columns_across_a_border_are_in_no_window() -> None:
    made, examples = examples_of(SPECTRA, ONE)
    samples = sequences_of(examples, made.chain, ("closed", "open"), (), 3)
    assert samples.windows.shape[1:] == (3 * 4, 5, 2)  # 20 samples hold 4 columns of 8, every 4
    run = examples[5].run
    np.testing.assert_array_equal(samples.windows[5], np.concatenate([window.data for window in run[5:8]]))


def test_what_was_built_before_is_linked_as_well(tmp_path: Path) -> None:
    file = write_latch(tmp_path / "a.csv", 1)
    made = parse_recipe(RECIPE)
    settings = Settings(home=tmp_path / "home")
    fresh = read_dataset(read([file], made.read_options()), made, made.chain)
    for _ in range(2):
        found = build_dataset([file], made, made.chain, settings)
        assert len(found.unlabelled) == len(fresh.unlabelled) > 0
        one, other = (sequences_of(link_runs(d), made.chain, d.labels, (), 20).windows[:] for d in (found, fresh))
        np.testing.assert_array_equal(one, other)
    stateless = parse_recipe(RECIPE.replace("stateful = true\n", ""))
    assert build_dataset([file], stateless, made.chain, settings).unlabelled == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"session"', '"time"', "divides sessions"),
        ('"session"', '"window"', "divides sessions"),
        ("sequence = 20", "sequence = 0", "sequence = 0: expected a whole number from 1"),
        ('"session"', '"session"\n[[train.augment]]\nkind = "jitter"', "varies windows one by one"),
    ],
)
def test_what_a_stateful_model_cannot_be_trained_with(old: str, new: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(RECIPE.replace(old, new))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latch")
    for seed in range(10):
        write_latch(folder / f"r{seed:02}.csv", seed)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Trained:
    pytest.importorskip("tensorflow")
    folder = tmp_path_factory.mktemp("trained")
    (folder / "latch.toml").write_text(LATCH)
    request = TrainRequest((str(data),), epochs=6, out=folder / "bundle", report=False)
    return train(load_recipe(folder / "latch.toml"), request)


tensorflow = pytest.mark.skipif(find_spec("tensorflow") is None, reason="tensorflow is not installed")


@tensorflow
def test_a_model_learns_what_needs_memory(trained: Trained) -> None:
    own, beside = trained.record.candidates
    assert (own.name, beside.name, own.chosen) == ("recurrent", "minirocket", True)
    assert own.scores["window_accuracy"] > 0.95
    assert beside.scores["window_accuracy"] < 0.75  # a window by itself says nothing
    model = trained.bundle.manifest["model"]
    assert (model["state"], model["shape"]) == (16, [20, 2])
    facts = json.loads((trained.bundle.path / "report" / "report.json").read_text())
    assert 0 < facts["parity"] < 1e-4


@tensorflow
def test_new_recordings_give_the_same_events_however_they_are_cut(trained: Trained, tmp_path: Path) -> None:
    made = parse_recipe(LATCH)
    new = write_latch(tmp_path / "new.csv", 99)
    classifier = Classifier.for_recipe(trained.bundle, made)

    def events(chunk_ms: int) -> list[str]:
        found = run(made, read([new], made.read_options()), classifier, chunk_ms)
        return [json.dumps(json.loads(event.to_json()) | {"emitted_ns": 0}) for event in found]

    assert events(70) == events(1000) == events(10**6)
    scores = evaluate(made, trained.bundle, read([new], made.read_options()))
    assert scores["window_accuracy"] > 0.9
    assert scores["windows"] < len(events(1000))  # those before the first pulse have no label


@tensorflow
def test_scores_are_of_whole_sessions(trained: Trained, data: Path) -> None:
    """What judges held-out windows gives what a run over the recordings gives."""
    made = parse_recipe(LATCH)
    found = read_dataset(read([data / "r03.csv"], made.read_options()), made, split_chain(made.chain)[0])
    examples = link_runs(found)
    model = StatefulModel(trained.bundle.model_path, trained.bundle.input, trained.bundle.output)
    outputs = run_outputs(model, examples[::-1], trained.bundle.chain)[::-1]
    classifier = Classifier.for_recipe(trained.bundle, made)
    events = {e.start_index: e for e in run(made, read([data / "r03.csv"], made.read_options()), classifier)}
    for example, row in zip(examples, outputs.tolist(), strict=True):
        said: Array = np.exp(row - np.max(row))
        probabilities = list(events[example.window.start_index].probabilities.values())
        np.testing.assert_allclose(said / said.sum(), probabilities, atol=1e-6)


HOP = 8


CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "lstm": ((3,), {"layers": 2}),
    "gru": ((3,), {"cell": "gru", "patch": 4}),
    "spectrogram": ((5, 2), {}),
    "widths": ((3,), {"units": [8, 5], "dense": 4}),
}


def network(shape: tuple[int, ...], **parameters: Any) -> Any:
    fmt = Format("imu", ("c",) * shape[-1], (), Fraction(20), "float32", shape, rows=40)
    return architecture("recurrent")(fmt, ("a", "b"), {"units": 8, **parameters}, 3)


@cache
def case(name: str) -> tuple[Any, StatefulModel, Array, Array]:
    """A network, its stateful model, a recording, and the outputs of one pass over it."""
    shape, parameters = CASES[name]
    made = network(shape, **parameters)
    model = StatefulModel(exported(made))
    recording = np.random.default_rng(0).standard_normal((100, *shape)).astype(np.float32)
    state, logits = model.step(model.start(), recording)
    assert (state.hops, logits.shape) == (12, (12, 2))
    return made, model, recording, logits


def exported(made: Any, hop: int = HOP) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stateful.onnx"
        made.export_stateful(path, "windows", "logits", hop)
        return path.read_bytes()


@pytest.mark.skipif(find_spec("tensorflow") is None, reason="tensorflow is not installed")
@pytest.mark.parametrize("name", CASES)
def test_one_pass_is_the_network_over_all_that_came(name: str) -> None:
    made, _, recording, logits = case(name)
    for i, row in enumerate(logits):
        so_far = recording[np.newaxis, : HOP * (i + 1)]
        np.testing.assert_allclose(row, made.predict(so_far)[0], rtol=1e-5, atol=1e-5)
    assert logits.std(0).min() > 1e-3


def numbers(state: StreamState) -> tuple[int, bytes, bytes]:
    return state.hops, state.hidden.tobytes(), state.pending.tobytes()


@pytest.mark.skipif(find_spec("tensorflow") is None, reason="tensorflow is not installed")
@pytest.mark.parametrize("name", CASES)
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_any_cut_gives_the_same_bytes(name: str, data: st.DataObject) -> None:
    _, model, recording, logits = case(name)
    edges = sorted(data.draw(st.lists(st.integers(0, len(recording)), max_size=12)))
    state, parts = model.start(), []
    for start, end in zip([0, *edges], [*edges, len(recording)], strict=True):
        before = numbers(state)
        new, found = model.step(state, recording[start:end])
        assert numbers(state) == before  # whoever goes on from it again sees the same
        state = new
        parts.append(found)
    assert np.concatenate(parts).tobytes() == logits.tobytes()
    whole, _ = model.step(model.start(), recording)
    assert numbers(state) == numbers(whole)
    assert (state.hops, len(state.pending)) == (12, 4)


@pytest.mark.skipif(find_spec("tensorflow") is None, reason="tensorflow is not installed")
def test_sessions_do_not_mix() -> None:
    _, model, recording, logits = case("lstm")
    other = recording[::-1].copy()
    alone = model.step(model.start(), other)[1]
    states, found = [model.start(), model.start()], [[], []]  # type: ignore[var-annotated]
    for i in range(0, 100, 7):
        for k, stream in enumerate((recording, other)):
            states[k], some = model.step(states[k], stream[i : i + 7])
            found[k].append(some)
    assert [np.concatenate(parts).tobytes() for parts in found] == [logits.tobytes(), alone.tobytes()]
    assert alone.tobytes() != logits.tobytes()


@pytest.mark.skipif(find_spec("tensorflow") is None, reason="tensorflow is not installed")
def test_the_graph_declares_hop_and_state() -> None:
    proto = onnx.load_from_string(exported(network((3,), layers=2)))
    sizes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in [*proto.graph.input, *proto.graph.output]
    }
    assert sizes == {
        "windows": ["n", 8, 3],
        "state": ["n", 32],
        "logits": ["n", 2],
        "next_state": ["n", 32],
    }


@pytest.mark.skipif(find_spec("tensorflow") is None, reason="tensorflow is not installed")
@pytest.mark.parametrize(
    ("parameters", "hop", "message"),
    [
        ({"bidirectional": True}, 8, "looks backwards only"),
        ({"attention": True}, 8, "looks backwards only"),
        ({"patch": 4}, 10, "patch = 4 cannot predict every 10 samples"),
        ({}, 0, "cannot predict every 0 samples"),
    ],
)
def test_what_cannot_be_stateful_is_refused(parameters: dict[str, Any], hop: int, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        exported(network((3,), **parameters), hop)


@pytest.mark.skipif(find_spec("tensorflow") is None, reason="tensorflow is not installed")
def test_wrong_models_and_samples_are_refused() -> None:
    with pytest.raises(BundleError, match="takes windows and gives logits, expected a stateful model"):
        StatefulModel(linear_onnx(np.ones((2, 2))))
    _, model, recording, _ = case("gru")
    with pytest.raises(BundleError, match=r"samples of \(2,\) and a state of \(8,\), expected \(3,\) and \(8,\)"):
        model.step(model.start(), recording[:, :2])
    with pytest.raises(BundleError, match="a state of"):
        model.step(case("lstm")[1].start(), recording)
