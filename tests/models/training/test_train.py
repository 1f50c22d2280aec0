"""The trainer: what it learns from, what it refuses, and that the same seed gives the same bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from checks import windows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import RECIPE, recipe, window, write_csv
from verbs import invoke

import kymo
from kymo.models.bundle import load_bundle
from kymo.models.data.dataset import read_dataset, streams_of
from kymo.models.data.examples import Example
from kymo.models.data.samples import fit_steps, split_chain, split_data, with_steps
from kymo.models.data.splits import group_of, make_split
from kymo.models.predict import fit_temperature
from kymo.models.registry.manifest import MANIFEST, MODEL
from kymo.models.training.train import TrainRequest, train
from kymo.processors.recipe.load import Recipe
from kymo.processors.recipe.tables import TrainTable
from kymo.streams.errors import KymoError, RecipeError, TrainingError
from kymo.streams.readers import read

SESSIONS = 5  # a class


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for label, level in (("rest", 0.0), ("work", 8.0)):
        for i in range(SESSIONS):
            write_csv(folder / f"{label}{i}.csv", label, level)
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.toml").write_text(RECIPE.replace("epochs = 3", "epochs = 12\ncalibrate = true"))
    done = invoke("train", folder / "tiny.toml", "--data", *sorted(data.iterdir()), "--out", folder / "bundle")
    assert "2 recordings: accuracy 100.0%" in done.output
    return folder / "bundle"


def test_a_trained_bundle_classifies(trained: Path, data: Path) -> None:
    bundle = load_bundle(trained)
    assert (bundle.labels, bundle.shape, bundle.batch) == (("rest", "work"), (2, 4), "any")
    arguments = [str(trained.parent / "tiny.toml"), "--data", str(data), "--bundle", str(trained)]
    done = invoke("evaluate", *arguments, "--json")
    scores = json.loads(done.output)
    assert (scores["accuracy"], scores["macro_f1"], scores["n"]) == (1.0, 1.0, 2 * SESSIONS)
    assert scores["window_accuracy"] > 0.95
    assert "10 recordings: accuracy 100.0%" in invoke("evaluate", *arguments).output


def test_the_manifest_tells_where_it_came_from(trained: Path) -> None:
    manifest = json.loads((trained / MANIFEST).read_text())
    lineage = manifest["lineage"]
    assert lineage["command"].startswith("kymo train tiny --data ")
    assert lineage["windows"] == {"training": 72, "validation": 18}  # 9 windows a recording
    assert {Path(i["path"]).stem for i in lineage["inputs"]} == {f"{c}{i}" for c in ("rest", "work") for i in range(5)}
    assert all(len(i["sha256"]) == 64 and i["recordings"] == 1 for i in lineage["inputs"])
    assert {"torch", "numpy", "onnxruntime"} <= set(lineage["packages"])
    assert manifest["scores"]["n"] == 2
    assert 0.25 <= manifest["temperature"] < 1  # easy data: the logits of so few epochs are too modest
    assert manifest["architecture"]["parameters"]["width"] == 16
    assert manifest["scores"]["accuracy"] == 1.0
    report = json.loads((trained / "report" / "report.json").read_text())
    assert report["parity"] <= 1e-5
    assert {"epoch", "loss", "validation_loss", "validation_accuracy"} == set(report["history"][0])
    assert str(Path.home()).encode() not in (trained / MODEL).read_bytes()


def test_the_same_seed_gives_the_same_bytes(trained: Path, data: Path, tmp_path: Path) -> None:
    loaded = recipe(RECIPE.replace("epochs = 3", "epochs = 12\ncalibrate = true"))
    paths = tuple(map(str, sorted(data.iterdir())))
    again = train(loaded, TrainRequest(paths, out=tmp_path / "a")).bundle
    assert again.id == load_bundle(trained).id
    for name in (MODEL, "report/report.json"):
        assert (again.path / name).read_bytes() == (trained / name).read_bytes()


def test_into_the_registry(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("KYMO_HOME", str(tmp_path))
    epochs: list[dict[str, float]] = []
    text = RECIPE.replace("epochs = 3", "epochs = 3\nvalidation = 0")
    done = train(recipe(text), TrainRequest((str(data),), epochs=2, seed=7), epochs.append)
    assert load_bundle("tiny").id == done.bundle.id
    assert done.bundle.path.parent == tmp_path / "registry" / "tiny"
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    assert done.scores == {}
    assert any("nothing was held out" in note for note in done.notes)


def refused(text: str, *paths: Path) -> str:
    with pytest.raises(TrainingError) as caught:
        train(recipe(text), TrainRequest(tuple(map(str, paths))))
    return str(caught.value)


def test_refuses_what_cannot_be_learned(data: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "short.csv", "rest", 0, 3)
    short = refused(RECIPE, tmp_path / "short.csv")
    assert "no window of 0.4 s fits into the recordings (the longest has 0.3 s" in short
    assert "bridge_ms" in short
    assert "all 9 windows have the label `rest`; a classifier needs" in refused(RECIPE, data / "rest0.csv")
    (tmp_path / "bare.csv").write_text((data / "rest0.csv").read_text().replace("label", "remark"))
    assert "no labels in the data (column `label`)" in refused(RECIPE, tmp_path / "bare.csv")
    patched = RECIPE + "[labels]\nmin_share = 1.0\n"
    lines = (data / "rest0.csv").read_text().splitlines()
    mixed = [lines[0], *(line.replace("rest", f"c{i % 2}") for i, line in enumerate(lines[1:]))]
    (tmp_path / "mixed.csv").write_text("\n".join(mixed) + "\n")
    assert "no window is covered by a label to 100%" in refused(patched, tmp_path / "mixed.csv")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 3", "epoch = 3", r"\[train\] has no key 'epoch'; did you mean 'epochs'"),
        ("epochs = 3", "epochs = 2.5", "epochs = 2.5: expected a whole number"),
        ("epochs = 3", "epochs = 0", "epochs = 0: expected a whole number from 1"),
        ("epochs = 3", "validation = 1", "expected a number from 0 to below 1"),
        ('"spectrogram_cnn"', '"spectrogram_cn"', "architecture 'spectrogram_cn': expected one of .*minirocket, "),
        ("min_probability = 0.6", "depth = 3", r"\[model\] has no parameter 'depth' here; "),
        ('[model]\narchitecture = "spectrogram_cnn"\nmin_probability = 0.6', "", r"has no \[model\]"),
    ],
)
def test_refuses_wrong_parameters(data: Path, old: str, new: str, message: str) -> None:
    pytest.importorskip("torch")
    assert old in RECIPE
    with pytest.raises(KymoError, match=message):
        train(recipe(RECIPE.replace(old, new)), TrainRequest((str(data),)))


def split(examples: list[Example], share: float, seed: int) -> tuple[list[int], list[int]]:
    sides = make_split(examples, TrainTable("session"), share, seed)
    return sides.training, sides.validation


def examples_of(groups: list[tuple[int, str]]) -> list[Example]:
    return [Example(window(np.zeros((4, 2)), f"s{group}", i), label) for i, (group, label) in enumerate(groups)]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.sampled_from("abc")), min_size=1, max_size=60),
    st.floats(0, 0.9),
    st.integers(0, 3),
)
def test_no_group_stands_on_both_sides(groups: list[tuple[int, str]], share: float, seed: int) -> None:
    examples = examples_of(groups)
    training, validation = split(examples, share, seed)
    assert sorted([*training, *validation]) == list(range(len(examples)))
    sides = [{group_of(examples[i], "session") for i in side} for side in (training, validation)]
    assert not sides[0] & sides[1]
    assert {examples[i].label for i in training} == {example.label for example in examples}
    assert (training, validation) == split(examples, share, seed)
    assert share or not validation


def test_every_class_gets_its_share() -> None:
    examples = examples_of([(i, "abcd"[i % 4]) for i in range(40) for _ in range(6)])
    _, validation = split(examples, 0.2, 0)
    held = [examples[i] for i in validation]
    assert {
        label: len({group_of(e, "session") for e in held if e.label == label}) for label in "abcd"
    } == dict.fromkeys("abcd", 2)
    assert {group_of(e, "session") for e in held} != {
        group_of(examples[i], "session") for i in split(examples, 0.2, 1)[1]
    }


def test_a_lone_group_is_not_held_out() -> None:
    assert split(examples_of([(0, "a"), (0, "b")]), 0.2, 0) == ([0, 1], [])
    training, validation = split(examples_of([(0, "a"), (0, "b"), (1, "a"), (1, "b")]), 0.2, 0)
    assert len(training) == len(validation) == 2


@pytest.mark.parametrize(("rule", "groups"), [("session", 4), ("subject", 2), ("window", 36)])
def test_groups_by_the_recipe(tmp_path: Path, rule: str, groups: int) -> None:
    for i in range(4):
        write_csv(tmp_path / f"{i}.csv", "ab"[i % 2], 0)
        text = (tmp_path / f"{i}.csv").read_text().splitlines()
        text = [f"{line},{'subject' if j == 0 else f'p{i // 2}'}" for j, line in enumerate(text)]
        (tmp_path / f"{i}.csv").write_text("\n".join(text) + "\n")
    loaded = recipe(RECIPE + f'split = "{rule}"\n')
    found = read_dataset(read([tmp_path], loaded.read_options()), loaded, split_chain(loaded.chain)[0])
    assert len({group_of(example, rule) for example in found.examples}) == groups
    assert found.labels == ("a", "b")


def windows_by_label(loaded: Recipe, data: Path) -> list[Example]:
    return read_dataset(read([data], loaded.read_options()), loaded, split_chain(loaded.chain)[0]).examples


def test_steps_learn_from_the_training_side_alone(data: Path) -> None:
    loaded = recipe()
    examples = windows_by_label(loaded, data)
    prepared = split_data(loaded, examples, make_split(examples, loaded.train, 0.2, 0))
    held = {group_of(example, "session") for example in prepared.validation}
    rows = np.concatenate([e.window.data for e in examples if group_of(e, "session") not in held]).astype(np.float64)
    learned = prepared.chain.to_json()["specs"][-1]["spec"]
    np.testing.assert_allclose(learned["mean"], rows.mean(0), rtol=1e-9)
    np.testing.assert_allclose(learned["std"], rows.std(0), rtol=1e-9)
    seen = np.concatenate([e.window.data for e in with_steps(prepared.training, prepared.steps)])
    np.testing.assert_allclose(seen.mean(0), 0, atol=1e-6)
    assert prepared.chain.digest(learned=False) == loaded.chain.digest(learned=False)


def test_the_learned_chain_gives_the_trained_windows(data: Path) -> None:
    loaded = recipe()
    examples = windows_by_label(loaded, data)
    prepared = split_data(loaded, examples, make_split(examples, loaded.train, 0.0, 0))
    live = []
    for recording in read([data], loaded.read_options()):
        streams = streams_of(recording, loaded)
        assert streams
        live += windows_of(streams, prepared.chain)
    learned = list(with_steps(prepared.training, prepared.steps))
    assert [w.data.tobytes() for w in live] == [e.window.data.tobytes() for e in learned]
    assert [w.header for w in live] == [e.window.header for e in learned]


def test_steps_behind_one_that_learns_see_its_output() -> None:
    text = RECIPE.replace('step = "standardise"', 'step = "standardise"\n[[window.steps]]\nstep = "standardise"')
    _, steps = split_chain(recipe(text).chain)
    data = np.random.default_rng(0).standard_normal((40, 4, 2)) * 5 + 3
    first, second = (step.to_json()["spec"] for step in fit_steps(steps, [window(d) for d in data]))
    np.testing.assert_allclose(first["mean"], data.reshape(-1, 2).mean(0), rtol=1e-5)
    np.testing.assert_allclose(second["mean"], 0, atol=1e-6)
    np.testing.assert_allclose(second["std"], 1, rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_is_found_again(temperature: float) -> None:
    random = np.random.default_rng(0)
    logits = random.standard_normal((4000, 3)) * 2
    odds = np.exp(logits / temperature)
    classes = [random.choice(3, p=row / row.sum()) for row in odds]
    assert fit_temperature(logits.tolist(), classes) == pytest.approx(temperature, rel=0.12)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("seed = -1", "seed = -1: expected a whole number from 0 to 2147483647"),
        ("seed = 100000000000", "expected a whole number from 0 to 2147483647"),
        ('compare = [["a"]]', 'compare = [["a"]]: expected true or false or names of architectures'),
        ("compare = [1]", "expected true or false or names of architectures"),
    ],
)
def test_senseless_parameters_are_refused(line: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(RECIPE.replace("epochs = 3", line))
    assert says in str(caught.value)


def test_from_python_it_is_what_the_verbs_do(data: Path, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    tiny = kymo.load_recipe(str(trained.parent / "tiny.toml"))
    run = kymo.train(tiny, data, seed=3, out=tmp_path / "bundle")
    assert run.bundle.path == tmp_path / "bundle"
    assert run.report.is_file()
    facts = onnxruntime.InferenceSession(run.bundle.model_path).get_modelmeta().custom_metadata_map
    assert {name: facts[name] for name in ("recipe", "labels", "layout", "channels")} == {
        "recipe": "tiny",
        "labels": '["rest", "work"]',
        "layout": run.bundle.layout,
        "channels": '["x", "y"]',
    }
    assert set(run.scores["per_class"]) == {"rest", "work"}
    assert run._repr_html_().count("<tr>") == 3
    scores = kymo.evaluate(tiny, [data], run.bundle)
    path = next(trained.parent.rglob("tiny.toml"))
    printed = json.loads(invoke("evaluate", path, "--data", data, "--bundle", run.bundle.path, "--json").stdout)
    assert scores == {name: value for name, value in printed.items() if name != "trained_on"}
    assert str(scores).startswith(f"{run.bundle.id}: {2 * SESSIONS} recordings: accuracy")
    assert scores._repr_html_().count("<tr>") == 3


def test_windows_as_arrays_are_those_of_the_trainer(data: Path) -> None:
    tiny = recipe()
    arrays, y, groups = kymo.windows(tiny, str(data))
    examples = read_dataset(read([data], tiny.read_options()), tiny, split_chain(tiny.chain)[0]).examples
    assert np.array_equal(arrays, np.stack([example.window.data for example in examples]).astype(np.float32))
    assert y.tolist() == [example.label for example in examples]
    assert groups.tolist() == [example.window.session for example in examples]  # nobody is named
    assert kymo.windows(tiny, data)._repr_html_().count("<tr>") == 3
