"""Bundles: what they hold and refuse, and how an agent classifies with one."""

from __future__ import annotations

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from tiny_models import (
    LABELS,
    RECIPE,
    dense_onnx,
    foreign_bundle,
    linear_onnx,
    manifest,
    onnx_bytes,
    recipe,
    tiny_bundle,
    window,
)

from kymo.models.bundle import find_bundle, input_shape, load_bundle
from kymo.models.onnx_model import MAX_BATCH, RULES, OnnxModel, most_together, random_windows
from kymo.models.predict import Classifier, softmax
from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MANIFEST, MODEL
from kymo.streams.errors import BundleError
from kymo.streams.events import Event

ONNX = linear_onnx(np.eye(3, 2))


def test_reads_what_was_written(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b", temperature=2.0)
    assert (bundle.recipe, bundle.labels, bundle.shape, bundle.layout) == ("tiny", LABELS, (2, 4), "channels_first")
    assert (bundle.temperature, bundle.batch, bundle.model_path) == (2.0, "any", tmp_path / "b" / MODEL)
    assert bundle.chain.digest(learned=False) == recipe().chain.digest(learned=False)
    assert bundle.chain.digest() != recipe().chain.digest()
    bundle.check(recipe())


def test_id_depends_on_the_contents_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    first = write_bundle(tmp_path / "a", manifest(), {MODEL: ONNX, "report/report.json": b"{}"})
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "2000000000")
    second = write_bundle(tmp_path / "b", manifest(), {MODEL: ONNX, "report/report.json": b"{}"})
    other = write_bundle(tmp_path / "c", manifest(temperature=1.5), {MODEL: ONNX, "report/report.json": b"{}"})
    ids = [load_bundle(path).id for path in (first, second, other)]
    assert ids[0] == ids[1] != ids[2]
    assert ids[0].startswith("tiny@")
    texts = [json.loads((path / MANIFEST).read_text()) for path in (first, second)]
    assert texts[0].pop("created") == "1970-01-01T00:00:01Z"
    assert texts[1].pop("created") == "2033-05-18T03:33:20Z"
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", [MODEL, "report/report.json"])
@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_damaged_files_are_named(tmp_path: Path, name: str, damage: str) -> None:
    path = write_bundle(tmp_path / "b", manifest(), {MODEL: ONNX, "report/report.json": b"{}"})
    file = path / name
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(BundleError, match=str(file)):
        load_bundle(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m | {"format": 2}, "bundle format 2, expected 1"),
        (lambda m: m | {"labels": ["a", "b", "c"]}, "was changed after it was made"),
        (lambda m: m | {"files": {}}, "does not list model.onnx"),
        (lambda m: [m], "expected a JSON object"),
    ],
)
def test_changed_manifests_are_refused(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    path = tiny_bundle(tmp_path / "b").path
    (path / MANIFEST).write_text(json.dumps(change(json.loads((path / MANIFEST).read_text()))))
    with pytest.raises(BundleError, match=message):
        load_bundle(path)


def test_manifest_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(b"{")
    with pytest.raises(BundleError, match=r"manifest\.json: cannot be read"):
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"labels": ["one"]}, {"temperature": 0}, {"temperature": "warm"}, {"chain": {"step": "sorcery"}}, {"model": {}}],
)
def test_senseless_manifests_are_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json: "):
        tiny_bundle(tmp_path / "b", **changes)


def test_files_outside_the_folder_are_refused(tmp_path: Path) -> None:
    for name in ("../secret", f"../../{tmp_path.name}/b/{MODEL}", str(tmp_path / "b" / MODEL), "a/../../secret"):
        with pytest.raises(BundleError, match="leads out of it"):
            write_bundle(tmp_path / "b", manifest(), {MODEL: ONNX, name: ONNX})
        foreign = foreign_bundle(tmp_path / "b", manifest(), {MODEL: ONNX, name: ONNX})
        (tmp_path / "secret").write_bytes(ONNX)
        with pytest.raises(BundleError, match=r"not there, but manifest\.json lists it"):
            load_bundle(foreign)


@pytest.mark.parametrize(
    "name", ["../../escaped", "/tmp/escaped", "..", ".", "", "a/b", ".hidden", "a" * 101, "a\nb", 7, ["x"]]
)
def test_a_name_that_leads_elsewhere_is_no_recipe(tmp_path: Path, name: object) -> None:
    bundle = foreign_bundle(tmp_path / "b", manifest(recipe=name), {MODEL: ONNX})
    with pytest.raises(BundleError, match="`recipe` is"):
        load_bundle(bundle)
    with pytest.raises(BundleError):
        write_bundle(None, manifest(recipe=name), {MODEL: ONNX}, tmp_path / "home")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b"]


def test_finds_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kymo.models.bundle.SHIPPED", tmp_path / "shipped")
    home = tmp_path / "home"
    with pytest.raises(BundleError, match=r"no bundle `tiny` in .*registry.*kymo train tiny"):
        find_bundle("tiny", home)
    shipped = tiny_bundle(tmp_path / "shipped" / "tiny")
    assert find_bundle("tiny", home) == shipped.path
    assert find_bundle(shipped.id, home) == shipped.path
    first = write_bundle(None, manifest(temperature=2), {MODEL: ONNX}, home)
    second = write_bundle(None, manifest(temperature=3), {MODEL: ONNX}, home)
    assert load_bundle("tiny", home).temperature == 3
    assert find_bundle(f"tiny@{first.name}", home) == first
    assert find_bundle(f"tiny@{second.name[:6]}", home) == second
    assert find_bundle(shipped.id, home) == shipped.path
    assert find_bundle(str(first), home) == first
    with pytest.raises(BundleError, match="no bundle `tiny@ffffffff`"):
        find_bundle("tiny@ffffffff", home)
    shutil.copytree(first, first.with_name(first.name[:6] + "x"))
    with pytest.raises(BundleError, match="begin so; give more digits"):
        find_bundle(f"tiny@{first.name[:6]}", home)


def test_a_bundle_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    before = tiny_bundle(tmp_path / "b")
    with pytest.raises(TypeError):
        write_bundle(tmp_path / "b", manifest(temperature=2), {MODEL: ONNX, "report/report.json": "text"})  # type: ignore[dict-item]
    assert load_bundle(tmp_path / "b").id == before.id
    after = write_bundle(tmp_path / "b", manifest(temperature=2), {MODEL: ONNX})
    assert load_bundle(after).temperature == 2
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(BundleError, match="holds something that is no bundle"):
        write_bundle(tmp_path, manifest(), {MODEL: ONNX})
    with pytest.raises(BundleError, match="cannot be written"):
        write_bundle(tmp_path / "mine.txt" / "b", manifest(), {MODEL: ONNX})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("factor = 0.5", "factor = 0.25", "step 2 `scale`, factor is 0.5 in the bundle and 0.25 in the recipe"),
        ("length_s = 0.4", "length_s = 0.6", "step 3 `windows`, length is 4 in the bundle and 6 in the recipe"),
        ('step = "standardise"', 'step = "log"', "step 4 is `standardise` in the bundle and `log` in the recipe"),
        ("[model]", '[[window.steps]]\nstep = "log"\n[model]', "only the recipe has step 5 `log`"),
        ('[[window.steps]]\nstep = "standardise"\n', "", "only the bundle has step 4 `standardise`"),
        ('["x", "y"]', '["y", "x"]', r'step 1 `intake`, channels is \["x", "y"\] in the bundle'),
        (
            "[model]",
            '[labels]\nnames = {"middle" = "mid"}\n[model]',
            "tells label `middle`, which recipe `tiny` calls `mid`",
        ),
    ],
)
def test_refuses_another_recipe(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in RECIPE
    with pytest.raises(BundleError, match=message):
        tiny_bundle(tmp_path / "b").check(recipe(RECIPE.replace(old, new)))


def test_refuses_another_shape(tmp_path: Path) -> None:
    section = manifest()["model"] | {"shape": [2, 5]}
    with pytest.raises(BundleError, match="takes windows of 2 x 5, recipe `tiny` makes 2 x 4"):
        tiny_bundle(tmp_path / "b", model=section).check(recipe())


@pytest.mark.parametrize(
    "names",
    ['"0" = "low"', '"0" = "low", "1" = "middle", "2" = "high"', '"low" = "high", "high" = "low"', '"9" = "odd"'],
)
def test_values_without_a_name_are_classes_as_they_stand(tmp_path: Path, names: str) -> None:
    tiny_bundle(tmp_path / "b").check(recipe(RECIPE.replace("[model]", f"[labels]\nnames = {{{names}}}\n[model]")))


def test_what_the_recipe_may_change(tmp_path: Path) -> None:
    text = RECIPE.replace("0.6", "0.9").replace("epochs = 3", "epochs = 4") + '[[alerts]]\nlabel = "high"\n'
    tiny_bundle(tmp_path / "b").check(recipe(text))


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
    made = onnx_bytes(nodes, {}, {"windows": ["n", 3]}, {"logits": ["n", 3]})
    with pytest.raises(BundleError, match="other numbers each time"):
        OnnxModel(made, "windows", "logits").settle((3,), "float32")


@given(st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=9), st.floats(0.25, 8))
def test_softmax_is_a_distribution(logits: list[float], temperature: float) -> None:
    found = softmax(logits, temperature)
    assert sum(found) == pytest.approx(1)
    assert all(0 <= p <= 1 for p in found)
    assert found.index(max(found)) == logits.index(max(logits)) or len(set(found)) < len(found)


def test_what_a_model_is_tried_with_does_not_depend_on_how_it_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.random.default_rng(0).standard_normal((6, 5, 7)).astype(np.float32)
    monkeypatch.setattr("kymo.models.onnx_model._NUMBERS", 11)
    assert random_windows(np.random.default_rng(0), 6, (5, 7), "float32").tobytes() == whole.tobytes()


def test_windows_are_run_together_as_long_as_they_fit() -> None:
    assert most_together((1000, 12), "float32") == MAX_BATCH
    assert most_together((78, 224, 224, 3), "uint8") == 2
    assert most_together((78, 224, 224, 3), "float32") == 1


def test_channels_first_is_the_last_axis_in_front() -> None:
    assert input_shape((21, 101, 12), "channels_first") == (12, 21, 101)


def test_probabilities_of_logits_alike_and_of_none() -> None:
    assert softmax([0.0, 0.0]) == [0.5, 0.5]
    assert softmax([float("nan"), 0.0]) == [0.0, 0.0]
