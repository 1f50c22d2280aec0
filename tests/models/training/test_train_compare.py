"""What is fitted beside the recipe's model, what is bundled, that raw bundles run like any other, and what is shown beside a leak."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recipes_made import MINIROCKET, recipe_text
from report_pages import read_record
from tiny_models import RECIPE, recipe
from verbs import invoke

import kymo.models.data.cli
import kymo.models.training.train
from kymo.models.bundle import Bundle, load_bundle, raw_chain
from kymo.models.data.cache import Reading
from kymo.models.evaluate import evaluate
from kymo.models.predict import Classifier
from kymo.models.run import run
from kymo.models.training.record import RunRecord
from kymo.models.training.search import Medians, draw
from kymo.models.training.train import TrainRequest, train
from kymo.models.zoo import Between, Epoch
from kymo.processors.intake import Intake
from kymo.processors.recipe.load import parse_recipe
from kymo.processors.windows import Windows
from kymo.streams.errors import BundleError, TrainingError
from kymo.streams.readers import read

#: A recipe whose step takes away what tells the classes apart: only raw windows have it.
BLIND = RECIPE.replace("length_s = 0.4", "length_s = 1.2").replace("epochs = 3", "epochs = 2\ncalibrate = false")


BLIND = BLIND.replace('step = "scale"\nfactor = 0.5', 'step = "select"\nchannels = ["y"]')


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for i in range(10):
        x = np.sin((0.5 + 1.5 * (i % 2)) * np.arange(60) + i) + 0.1 * random.standard_normal(60)
        rows = [f"{t / 10},{x[t]:.4f},{random.standard_normal():.4f},{'ab'[i % 2]}" for t in range(60)]
        (folder / f"r{i}.csv").write_text("\n".join(["t,x,y,label", *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def compared(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("compared")
    (folder / "tiny.toml").write_text(BLIND)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KYMO_HOME", str(folder / "home"))
        patch.setattr(kymo.models.data.cli, "_EVERY_S", 0.0)
        arguments = [str(folder / "tiny.toml"), "--data", str(data), "--out", str(folder / "bundle")]
        saved = ["--weights-out", str(folder / "w" / "weights.npz"), "--history-out", str(folder / "history.json")]
        done = invoke("train", *arguments, *saved)
    # Without a terminal it is told in lines what is done, reading first.
    lines = done.stderr.splitlines()
    assert lines[:3] == [
        "kymo: reading",
        "kymo: reading: 1 recording, 25 windows",
        "kymo: reading: 2 recordings, 50 windows",
    ]
    assert [
        line for line in lines if line in ("kymo: spectrogram_cnn, when to stop", "kymo: minirocket, all windows")
    ] == [
        "kymo: spectrogram_cnn, when to stop",
        "kymo: minirocket, all windows",
    ]
    assert "bundled minirocket: 1.000, the mean of accuracy, macro F1 and windows right of windows kept" in done.output
    return folder


def test_the_better_is_bundled_and_the_record_says_so(compared: Path) -> None:
    bundle = load_bundle(compared / "bundle")
    assert (bundle.takes, bundle.shape, bundle.batch) == ("raw", (2, 12), "any")
    assert bundle.manifest["architecture"]["name"] == "minirocket"
    record = read_record((compared / "bundle" / "report" / "run.json").read_bytes())
    assert [(one.name, one.chosen) for one in record.candidates] == [("spectrogram_cnn", False), ("minirocket", True)]
    assert record.architecture == "minirocket"
    assert record.scores["accuracy"] == 1.0 > record.candidates[0].scores["accuracy"]
    assert len(record.held_out.y_true) == record.scores["windows"] == record.split["validation"]["windows"]
    assert record.held_out.probabilities.shape == (record.scores["windows"], 2)
    assert record.recipe_text == BLIND
    assert json.loads(record.to_json()) == json.loads((compared / "bundle" / "report" / "run.json").read_text())
    assert [epoch["epoch"] for epoch in json.loads((compared / "history.json").read_text())] == [1]
    with np.load(compared / "w" / "weights.npz") as weights:
        assert weights["weights"].shape[1] == 2


def test_only_keeps_to_the_recipe(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    for text, only in ((BLIND, True), (BLIND.replace("epochs = 2", "epochs = 2\ncompare = false"), False)):
        done = train(recipe(text), TrainRequest((str(data),), out=tmp_path / "b", only=only))
        assert done.bundle.takes == "chain"
        assert [one.name for one in done.record.candidates] == ["spectrogram_cnn"]
    assert (
        "--only"
        in train(recipe(BLIND), TrainRequest((str(data),), out=tmp_path / "b", only=True)).bundle.manifest["lineage"][
            "command"
        ]
    )


def test_a_raw_bundle_runs_and_is_evaluated(compared: Path, data: Path) -> None:
    loaded, bundle = recipe(BLIND), load_bundle(compared / "bundle")
    events = list(run(loaded, read([data], loaded.read_options()), Classifier.for_recipe(bundle, loaded)))
    # 60 samples, windows of 12 every 2: as many as the recipe's own chain makes, at the same places.
    assert [e.start_index for e in events if e.session == "r3"] == list(range(0, 49, 2))
    assert {e.label for e in events if e.session == "r3"} == {"b"}
    assert events[0].id == "r0/tiny/0"
    scores = evaluate(loaded, bundle, read([data], loaded.read_options()))
    assert (scores["accuracy"], scores["n"], scores["per_subject"]) == (1.0, 10, {})


def test_a_raw_bundle_fits_any_steps_but_no_other_window(compared: Path) -> None:
    bundle = load_bundle(compared / "bundle")
    assert [type(spec) for spec in bundle.chain.specs] == [Intake, Windows]
    assert bundle.chain.to_json() == raw_chain(recipe(BLIND).chain).to_json()
    bundle.check(recipe(RECIPE.replace("length_s = 0.4", "length_s = 1.2")))
    with pytest.raises(BundleError, match="length is 12 in the bundle and 4 in the recipe"):
        bundle.check(recipe(RECIPE))


def test_a_recipe_may_name_minirocket_itself(data: Path, tmp_path: Path) -> None:
    text = BLIND.replace('architecture = "spectrogram_cnn"', 'architecture = "minirocket"\nfeatures = 420')
    done = train(recipe(text), TrainRequest((str(data),), out=tmp_path / "b"))
    assert done.bundle.manifest["architecture"] == {
        "name": "minirocket",
        "parameters": {"features": 420, "windows": 4096},
    }
    assert [one.name for one in done.record.candidates] == ["minirocket"]
    assert done.scores["accuracy"] == 1.0


def test_windows_too_short_for_it_leave_it_out(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    done = train(recipe(RECIPE), TrainRequest((str(data),), out=tmp_path / "b"))
    (own, beside) = done.record.candidates
    assert (own.chosen, beside.chosen) == (True, False)
    assert "at least 9 samples" in beside.note


def test_a_search_says_what_it_tried(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    done = train(recipe(BLIND), TrainRequest((str(data),), out=tmp_path / "b", only=True, search_minutes=0.05))
    record = done.record
    chosen, *others = record.candidates
    assert {"spectrogram_cnn", "spectrogram_cnn 1"} <= {one.name for one in record.candidates}
    assert (chosen.chosen, bool(chosen.scores)) == (True, True)
    assert done.bundle.manifest["architecture"]["parameters"] == chosen.parameters
    assert all(one.note.endswith("in the search") or one.note.startswith("stopped early") for one in others)
    assert not any(one.chosen or one.scores for one in others)


def test_trials_are_drawn_by_the_seed() -> None:
    ranges: dict[str, Any] = {"width": (8, 16, 32), "learning_rate": Between(1e-3, 1e-1)}
    drawn = [draw(ranges, 0, trial) for trial in range(1, 200)]
    assert drawn == [draw(ranges, 0, trial) for trial in range(1, 200)] != [draw(ranges, 1, t) for t in range(1, 200)]
    assert {one["width"] for one in drawn} == {8, 16, 32}
    rates = np.log10([one["learning_rate"] for one in drawn])
    assert rates.min() >= -3
    assert rates.max() <= -1
    assert abs(rates.mean() + 2) < 0.15  # evenly in the logarithm


def test_a_trial_worse_than_the_median_is_hopeless() -> None:
    medians = Medians()
    for best in (0.1, 0.2, 0.3):
        assert not medians.hopeless(5, best)  # too few to compare with
    assert medians.hopeless(5, 0.25)
    assert not medians.hopeless(5, 0.2)
    assert not medians.hopeless(4, 9.0)  # too early


def test_search_needs_something_to_search(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    text = BLIND.replace("epochs = 2", "epochs = 2\nvalidation = 0")
    with pytest.raises(TrainingError, match="none are held out"):
        train(recipe(text), TrainRequest((str(data),), search_minutes=0.01))


@pytest.mark.parametrize("only", [True, False])
def test_recordings_are_let_go_of_when_nobody_takes_them(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only: bool
) -> None:
    """The recipe's own model takes the chain's windows; MiniRocket, beside it, raw ones."""
    pytest.importorskip("torch")
    monkeypatch.setenv("KYMO_HOME", str(tmp_path))
    readings: list[Reading] = []
    kept: dict[str, int] = {}

    def reading() -> Reading:
        readings.append(Reading())
        return readings[-1]

    def on_stage(name: str, _: int) -> Callable[[Epoch], None]:
        return lambda _: kept.update({name: sum(len(made.recordings) for made in readings)})

    monkeypatch.setattr(kymo.models.training.train, "Reading", reading)
    request = TrainRequest((str(data),), out=tmp_path / "b", only=only, report=False)
    train(recipe(BLIND), request, on_stage=on_stage)
    (own,) = {number for name, number in kept.items() if name.startswith("spectrogram_cnn, when to stop")}
    assert own == (0 if only else 10)
    assert {number for name, number in kept.items() if "minirocket" in name} <= {0}


def test_pooling_is_learned_and_kept(data: Path, tmp_path: Path) -> None:
    text = BLIND.replace('architecture = "spectrogram_cnn"', 'architecture = "minirocket"\nfeatures = 84')
    text = text.replace("min_probability = 0.6", 'pool = {kind = "hmm"}')
    done = train(recipe(text), TrainRequest((str(data),), out=tmp_path / "b"))
    bundle: Bundle = done.bundle
    assert done.record.pooling == bundle.manifest["pool"]
    # Eight recordings of 25 windows, four a class, and no change of class: 96 stays, half a count for the other.
    np.testing.assert_allclose(bundle.manifest["pool"]["transitions"], [[96.5 / 97, 0.5 / 97], [0.5 / 97, 96.5 / 97]])
    path = tmp_path / "tiny.toml"
    path.write_text(text)
    arguments = [str(path), "--data", str(data), "--bundle", str(bundle.path), "--json"]
    said = json.loads(invoke("evaluate", *arguments).output)
    assert said["accuracy"] == 1.0


def test_windows_of_one_kind_may_be_asked_for(data: Path, tmp_path: Path) -> None:
    """As a refresh does: running agents can take over only what fits the sessions that they have open."""
    pytest.importorskip("torch")
    request = TrainRequest((str(data),), out=tmp_path / "b", report=False, windows_of="chain")
    made = train(recipe(BLIND), request).bundle
    assert made.takes == "chain"


pytest.importorskip("onnx")


LENGTHS = recipe_text("beside", "acc mag.x mag.y", 10, (2, 1), model=MINIROCKET, train={"epochs": 2})


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten recordings of 6 s: the vector's length says the class, its direction and the other channel nothing."""
    folder, random = tmp_path_factory.mktemp("beside"), np.random.default_rng(6)
    for i in range(10):
        angle = random.uniform(0, 7, 60)
        length = 50 + 0.1 * random.standard_normal(60) + 10 * (i % 2)
        rows = np.stack([random.standard_normal(60), length * np.cos(angle), length * np.sin(angle)], 1)
        lines = [",".join(f"{x:.4f}" for x in row) + f",{'far' if i % 2 else 'near'}" for row in rows]
        (folder / f"r{i}.csv").write_text("\n".join(["acc,mag.x,mag.y,label", *lines]) + "\n")
    return folder


@pytest.mark.parametrize("folds", ["folds = 0\n", "folds = 2\n"])
def test_the_named_are_fitted_and_judged(vectors: Path, tmp_path: Path, folds: str) -> None:
    recipe = parse_recipe(f'{LENGTHS}{folds}compare = ["magnitude_rule", "minirocket", "magnitude_rule"]\n')
    trained = train(recipe, TrainRequest((str(vectors),), out=tmp_path / "bundle", report=False))
    assert [candidate.name for candidate in trained.record.candidates] == ["minirocket", "magnitude_rule"]
    assert [candidate.scores["windows"] for candidate in trained.record.candidates] == [50 if "2" in folds else 10] * 2
    assert trained.record.candidates[1].scores["window_accuracy"] == 1


def test_none_and_one_that_is_not_known(vectors: Path, tmp_path: Path) -> None:
    request = TrainRequest((str(vectors),), out=tmp_path / "bundle", report=False)
    trained = train(parse_recipe(f"{LENGTHS}compare = []\n"), request)
    assert [candidate.name for candidate in trained.record.candidates] == ["minirocket"]
    with pytest.raises(TrainingError, match=r"architecture 'magnitude': expected one of ast, crnn, magnitude_rule"):
        train(parse_recipe(f'{LENGTHS}compare = ["magnitude"]\n'), request)


pytest.importorskip("torch", reason="training needs torch")


@pytest.fixture(scope="module")
def leaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sessions that differ from each other far more than the classes do."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for i in range(8):
        rows = [
            f"{k / 10:.1f},{level:.3f},{9 * (i % 4) + level:.3f},{'ab'[i % 2]}"
            for k, level in enumerate(random.normal(size=40))
        ]
        (folder / f"s{i}.csv").write_text("\n".join(["t,x,y,label", *rows]) + "\n")
    return folder


def trained(leaking: Path, out: Path, split: str) -> RunRecord:
    text = RECIPE.replace("epochs = 3", f'epochs = 4\nrefit = false\ncompare = false\nsplit = "{split}"')
    return train(recipe(text), TrainRequest((str(leaking),), out=out)).record


def test_both_figures_of_a_random_split(leaking: Path, tmp_path: Path) -> None:
    by_session = trained(leaking, tmp_path / "b", "session")
    by_window = trained(leaking, tmp_path / "a", "window")
    assert "leak_free" not in by_session.split
    assert by_window.split["kind"] == "window"
    assert by_window.split["leak_free"] == {"kind": "session", "scores": by_session.scores}
    page = (tmp_path / "a" / "report" / "report.html").read_text()
    assert "These scores leak: split by session instead of by window" in page


def test_a_trial_has_the_same_parameters_in_every_run() -> None:
    assert draw({"width": (8, 16)}, 0, 1) == draw({"width": (8, 16)}, 0, 1)
