"""The classifier: what an event says, and equal bytes whatever the batch."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tiny_models import LABELS, dense_onnx, linear_onnx, manifest, tiny_bundle, window

from kymo.models.bundle import load_bundle
from kymo.models.onnx_model import RULES, OnnxModel
from kymo.models.predict import Classifier, softmax
from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.streams.errors import BundleError
from kymo.streams.events import Event


def test_an_event_says_what_was_classified(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b")
    data = np.column_stack([np.full(4, 2.0), np.arange(4.0)])  # the model sees the first channel's mean, 2
    (event,) = Classifier(bundle, "tiny", 0.6).classify([window(data, "anna", 6, missing=0.25)])
    total = math.exp(-4) + math.exp(-2) + 1
    expected = [math.exp(-4) / total, math.exp(-2) / total, 1 / total]
    assert event == Event(
        "anna/tiny/6",
        "tiny",
        bundle.id,
        "anna",
        "imu.wrist",
        6,
        600_000_000,
        1_000_000_000,
        "high",
        event.probability,
        dict(zip(LABELS, event.probabilities.values(), strict=True)),
        missing=0.25,
    )
    assert list(event.probabilities.values()) == pytest.approx(expected, rel=1e-6)
    assert event.probability == max(event.probabilities.values())


def test_unknown_below_min_probability(tmp_path: Path) -> None:
    classifier = Classifier(tiny_bundle(tmp_path / "b"), "tiny", 0.6, kind="gyro")
    (event,) = classifier.classify([window(np.full((4, 2), 0.5))])
    assert (event.label, event.stream) == ("unknown", "gyro.wrist")
    assert 0.4 < event.probability < 0.6
    classifier.min_probability = event.probability
    assert classifier.classify([window(np.full((4, 2), 0.5))])[0].label == "high"


def test_temperature_flattens(tmp_path: Path) -> None:
    data = window(np.full((4, 2), 3.0))
    cold, warm = (
        Classifier(tiny_bundle(tmp_path / name, temperature=t), "tiny").classify([data])[0]
        for name, t in (("a", 1.0), ("b", 3.0))
    )
    assert cold.label == warm.label
    assert math.log(warm.probabilities["high"] / warm.probabilities["low"]) == pytest.approx(6 / 3, rel=1e-6)
    assert math.log(cold.probabilities["high"] / cold.probabilities["low"]) == pytest.approx(6, rel=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_unknown(tmp_path: Path, value: float) -> None:
    classifier = Classifier(tiny_bundle(tmp_path / "b"), "tiny")
    bad, good = classifier.classify([window(np.full((4, 2), value)), window(np.full((4, 2), 9.0))])
    assert (bad.label, bad.probability, set(bad.probabilities.values())) == ("unknown", 0.0, {0.0})
    assert good.label == "high"
    assert classifier.counts == {"not_finite": 1}
    bad.to_json()


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    weights = np.random.default_rng(1).standard_normal((3, 2))
    return Classifier(tiny_bundle(tmp_path_factory.mktemp("b") / "b", weights), "tiny", 0.5)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 150), max_size=12), seed=st.integers(0, 99))
def test_events_do_not_depend_on_batches(classifier: Classifier, cuts: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    windows = [window(random.standard_normal((4, 2)) * 3, f"s{i % 5}", i) for i in range(150)]
    whole = [event.to_json() for event in classifier.classify(windows)]
    edges = sorted({0, 150, *cuts})
    parts = [classifier.classify(windows[a:b]) for a, b in pairwise(edges)]
    assert [event.to_json() for part in parts for event in part] == whole
    order = random.permutation(150)
    assert [event.to_json() for event in classifier.classify([windows[i] for i in order])] == [whole[i] for i in order]


def test_memory_order_does_not_matter(classifier: Classifier) -> None:
    data = np.random.default_rng(0).standard_normal((4, 2))
    (a,), (b,) = (classifier.classify([window(np.asarray(data, order=order))]) for order in "CF")
    assert a.to_json() == b.to_json()
    assert classifier.classify([]) == []


def test_windows_of_another_shape_are_refused(classifier: Classifier) -> None:
    with pytest.raises(BundleError, match=r"takes windows of \(4, 2\), session s gave \(5, 2\)"):
        classifier.classify([window(np.zeros((5, 2)))])


def test_a_model_other_than_the_manifest_says_is_refused(tmp_path: Path) -> None:
    two = linear_onnx(np.eye(2))
    bundle = load_bundle(write_bundle(tmp_path / "b", manifest(), {MODEL: two}))
    with pytest.raises(BundleError, match="expected a number for each of 3 labels"):
        Classifier(bundle, "tiny")
    section = manifest()["model"] | {"input": "x"}
    bundle = load_bundle(write_bundle(tmp_path / "b", manifest(model=section), {MODEL: two}))
    with pytest.raises(BundleError, match="takes windows and gives logits, expected `x`"):
        Classifier(bundle, "tiny")
    bundle = load_bundle(write_bundle(tmp_path / "b", manifest(), {MODEL: b"no onnx"}))
    with pytest.raises(BundleError, match="no model that ONNX Runtime can load"):
        Classifier(bundle, "tiny")
    with pytest.raises(BundleError, match="batch rule 'often'"):
        Classifier(tiny_bundle(tmp_path / "c", batch="often"), "tiny")


@pytest.mark.parametrize("rule", RULES)
def test_rules_give_the_same_numbers(rule: str) -> None:
    weights = np.random.default_rng(2).standard_normal((3, 2))
    windows = np.random.default_rng(3).standard_normal((70, 2, 4)).astype(np.float32)
    logits = OnnxModel(linear_onnx(weights), "windows", "logits", rule).run(windows)
    np.testing.assert_allclose(logits, windows.mean(2) @ weights.T.astype(np.float32), rtol=1e-5, atol=1e-6)


def test_a_dense_layer_gets_a_rule_that_holds() -> None:
    shape = (1, 1037)
    model = OnnxModel(dense_onnx(1037, 5, 0), "windows", "logits")
    alone = model.invariant(shape, "float32")
    rule = model.settle(shape, "float32")
    assert (rule == "any") == alone
    assert model.invariant(shape, "float32")
    random = np.random.default_rng(4).standard_normal((64, *shape)).astype(np.float32)
    rows = [model.run(random[i : i + 1]).tobytes() for i in range(64)]
    assert b"".join(rows[:37]) == model.run(random[:37]).tobytes()


def test_rules_are_only_made_stricter() -> None:
    model = OnnxModel(linear_onnx(np.eye(3, 2)), "windows", "logits", "single")
    assert model.settle((2, 4), "float32") == "single"


@pytest.mark.parametrize("rule", RULES)
def test_where_a_window_lies_in_memory_does_not_matter(rule: str) -> None:
    # Rows of 1037 numbers: each begins elsewhere within a vector.
    model = OnnxModel(dense_onnx(1037, 5, 0), "windows", "logits", rule)
    windows = np.random.default_rng(5).standard_normal((20, 1, 1037)).astype(np.float32)
    room = np.empty(windows.size + 16, np.float32)
    found = set()
    for shift in range(16):
        moved = room[shift : shift + windows.size].reshape(windows.shape)
        moved[...] = windows
        found.add(model.run(moved).tobytes())
    assert len(found) == 1


def test_a_model_that_draws_random_numbers_is_refused() -> None:
    nodes = [
        helper.make_node("RandomUniformLike", ["windows"], ["noise"]),
        helper.make_node("Add", ["windows", "noise"], ["noisy"]),
        helper.make_node("Flatten", ["noisy"], ["logits"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("windows", "logits")]
    made = helper.make_model(
        helper.make_graph(nodes, "random", ends[:1], ends[1:]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    with pytest.raises(BundleError, match="other numbers each time"):
        OnnxModel(made.SerializeToString(), "windows", "logits").settle((3,), "float32")


@given(st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=9), st.floats(0.25, 8))
def test_softmax_is_a_distribution(logits: list[float], temperature: float) -> None:
    found = softmax(logits, temperature)
    assert sum(found) == pytest.approx(1)
    assert all(0 <= p <= 1 for p in found)
    assert found.index(max(found)) == logits.index(max(logits)) or len(set(found)) < len(found)
