"""Stateful models: however a stream is cut, the outputs are those of one offline pass."""

from __future__ import annotations

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
from tiny_models import linear_onnx

from kymo.models.onnx_model import StatefulModel, StreamState
from kymo.models.zoo import architecture
from kymo.streams.chunk import Array, Format
from kymo.streams.errors import BundleError, TrainingError

pytestmark = pytest.mark.skipif(find_spec("tensorflow") is None, reason="tensorflow is not installed")
HOP = 8
CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "lstm": ((3,), {"layers": 2}),
    "gru": ((3,), {"cell": "gru", "patch": 4}),
    "spectrogram": ((5, 2), {}),
    "widths": ((3,), {"units": [8, 5], "dense": 4}),
}


def network(shape: tuple[int, ...], **parameters: Any) -> Any:
    """A fresh network for windows of 40 samples."""
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


@pytest.mark.parametrize("name", CASES)
def test_one_pass_is_the_network_over_all_that_came(name: str) -> None:
    made, _, recording, logits = case(name)
    for i, row in enumerate(logits):
        so_far = recording[np.newaxis, : HOP * (i + 1)]
        np.testing.assert_allclose(row, made.predict(so_far)[0], rtol=1e-5, atol=1e-5)
    assert logits.std(0).min() > 1e-3


def numbers(state: StreamState) -> tuple[int, bytes, bytes]:
    return state.hops, state.hidden.tobytes(), state.pending.tobytes()


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


def test_wrong_models_and_samples_are_refused() -> None:
    with pytest.raises(BundleError, match="takes windows and gives logits, expected a stateful model"):
        StatefulModel(linear_onnx(np.ones((2, 2))))
    _, model, recording, _ = case("gru")
    with pytest.raises(BundleError, match=r"samples of \(2,\) and a state of \(8,\), expected \(3,\) and \(8,\)"):
        model.step(model.start(), recording[:, :2])
    with pytest.raises(BundleError, match="a state of"):
        model.step(case("lstm")[1].start(), recording)
