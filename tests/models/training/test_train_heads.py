"""Further heads from the data to the events: trained, scored, bundled; with folds, oversampling, augmentation, pooling."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_pages import read_record
from tiny_models import RECIPE, recipe
from verbs import invoke

from kymo.models.data.dataset import read_dataset
from kymo.models.data.samples import split_chain, split_data
from kymo.models.data.splits import make_split
from kymo.models.evaluate import JudgedWindow, evaluate
from kymo.models.predict import Classifier
from kymo.models.run import run
from kymo.models.training.gate import plan_of
from kymo.models.training.train import Trained, TrainRequest, train
from kymo.processors.recipe.load import Recipe
from kymo.streams.errors import TrainingError
from kymo.streams.events import Event
from kymo.streams.readers import read

HEADS = """
[[heads]]
name = "surface"
[[heads]]
name = "pace"
column = "seconds_10k"
kind = "number"
"""
TEXT = RECIPE.replace("epochs = 3", "epochs = 30").replace(
    "min_probability = 0.6", "min_probability = 0.6\nlearning_rate = 0.02"
)
WITH_HEADS = TEXT.replace("[train]", f"{HEADS}[train]")


def write(folder: Path, n: int, session: str) -> None:
    """A recording at 10 Hz: x says rest or work, y the surface, both together the pace; some labels are missing."""
    random = np.random.default_rng(n)
    work, road = n % 2, n // 2 % 2
    seconds = "" if n % 5 == 4 else str(3000 + 500 * work + 250 * road)
    surface = "" if n % 7 == 6 else ("track", "road")[road]
    rows = [
        f"{i / 10:.1f},{8 * work + random.standard_normal():.4f},{6 * road + random.standard_normal():.4f},"
        f"{('rest', 'work')[work]},{surface},{seconds},p{n // 4}"
        for i in range(20)
    ]
    (folder / f"{session}.csv").write_text("\n".join(["t,x,y,label,surface,seconds_10k,subject", *rows]) + "\n")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for n in range(16):
        write(folder, n, f"s{n:02}")
    return folder


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unseen")
    for n in range(16, 24):
        write(folder, n, f"u{n:02}")
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    pytest.importorskip("torch")
    text = WITH_HEADS.replace("[train]", "[train]\ncalibrate = true")
    out = tmp_path_factory.mktemp("bundle") / "b"
    return train(recipe(text), TrainRequest((str(data),), out=out, only=True))


def events_of(loaded: Recipe, made: Trained, folder: Path) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = defaultdict(list)
    for event in run(loaded, read([folder], loaded.read_options()), Classifier.for_recipe(made.bundle, loaded)):
        found[event.head].append(event)
    return found


def test_scores_of_every_head_are_printed_and_kept(trained: Trained) -> None:
    heads = trained.scores["heads"]
    assert set(heads) == {"surface", "pace"}
    assert heads["surface"]["accuracy"] == 1.0
    assert heads["pace"]["mae"] < 150  # of 3,000 to 3,750
    manifest = trained.bundle.manifest
    assert [(h["name"], h["labels"]) for h in manifest["heads"]] == [("surface", ["road", "track"]), ("pace", [])]
    assert manifest["heads"][1]["temperature"] == 1.0
    assert 0.25 <= manifest["heads"][0]["temperature"] <= 8
    kept = {key: heads["pace"][key] for key in ("mae", "rmse", "r2", "n")}
    assert manifest["scores"]["heads"]["pace"] == kept
    record = read_record(trained.record.to_json())
    surface, pace = record.held_out.heads
    assert (surface.name, surface.labels, pace.labels) == ("surface", ["road", "track"], [])
    assert len(surface.truth) == len(pace.said) == len(record.held_out.y_true)
    np.testing.assert_allclose(surface.said.sum(1), 1)


def test_scores_are_what_numpy_says_of_the_events(trained: Trained, unseen: Path) -> None:
    loaded = recipe(WITH_HEADS)
    scores = evaluate(loaded, trained.bundle, read([unseen], loaded.read_options()))
    events = events_of(loaded, trained, unseen)
    assert {head: len(found) for head, found in events.items()} == {"": 72, "surface": 72, "pace": 72}
    own: dict[str, list[float]] = defaultdict(list)
    for event in events["pace"]:
        assert event.id.endswith(f"/{event.start_index}/pace")
        assert (event.label, event.probability, set(event.values)) == ("", 0, {"pace"})
        if int(event.session[1:]) % 5 != 4:
            own[event.session].append(event.values["pace"])
    wanted = {s: 3000 + 500 * (int(s[1:]) % 2) + 250 * (int(s[1:]) // 2 % 2) for s in own}
    truth, said = np.array([wanted[s] for s in own]), np.array([np.mean(own[s]) for s in own])
    pace = scores["heads"]["pace"]
    assert (pace["n"], pace["windows"], pace["unclassified"]) == (len(own), 9 * len(own), 0)
    assert pace["mae"] == pytest.approx(np.abs(said - truth).mean())
    assert pace["rmse"] == pytest.approx(np.sqrt(((said - truth) ** 2).mean()))
    assert pace["r2"] == pytest.approx(1 - ((said - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())
    every, each = np.repeat(truth, 9), np.concatenate([own[s] for s in own])
    assert pace["window_mae"] == pytest.approx(np.abs(each - every).mean())
    assert pace["window_r2"] == pytest.approx(1 - ((each - every) ** 2).sum() / ((every - every.mean()) ** 2).sum())
    assert pace["r2"] > 0.7
    surface = scores["heads"]["surface"]
    assert (surface["n"], surface["accuracy"]) == (7, 1.0)
    assert scores["accuracy"] == 1.0


def test_the_command_line_tells_of_heads(data: Path, unseen: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "tiny.toml").write_text(WITH_HEADS)
    words = [str(tmp_path / "tiny.toml"), "--data", str(data), "--out", str(tmp_path / "b")]
    done = invoke("train", *words)
    assert "surface: 4 recordings: accuracy 100.0%" in done.output
    assert "pace: " in done.output
    asked = [str(tmp_path / "tiny.toml"), "--data", str(unseen), "--bundle", str(tmp_path / "b")]
    found = json.loads(invoke("evaluate", *asked, "--json").stdout)
    assert set(found["heads"]["pace"]) >= {"mae", "rmse", "r2", "n"}
    assert set(found["heads"]["surface"]) >= {"accuracy", "macro_f1", "confusion", "per_class", "n"}
    told = invoke("evaluate", *asked).output
    assert "surface: 7 recordings: accuracy" in told
    assert "R2" in told


@pytest.mark.parametrize("pool", ['pool = {kind = "mean", windows = 3}', 'pool = {kind = "hmm", windows = 5}'])
def test_training_scores_what_the_events_would_carry(pool: str, data: Path, tmp_path: Path) -> None:
    """With the model of the split itself (refit = false), judging its held-out windows again gives the record's numbers."""
    pytest.importorskip("torch")
    loaded = recipe(
        WITH_HEADS.replace("[train]", "[train]\nrefit = false\ncalibrate = true").replace(
            "min_prob", f"{pool}\nmin_prob"
        )
    )
    made = train(loaded, TrainRequest((str(data),), out=tmp_path / "b", only=True))
    held = made.record.held_out
    seen: list[JudgedWindow] = []
    recordings = [r for r in read([data], loaded.read_options()) if r.session in set(held.sessions)]
    evaluate(loaded, made.bundle, recordings, seen.append)
    order = {(s, i): n for n, (s, i) in enumerate(zip(held.sessions, held.start_index.tolist(), strict=True))}
    assert len(seen) == len(order) > 20
    surface, pace = held.heads
    for one in seen:
        n = order[one.window.session, one.window.start_index]
        np.testing.assert_allclose(list(one.event.probabilities.values()), held.probabilities[n], atol=1e-5)
        row: dict[str, Any] = dict(one.heads)
        np.testing.assert_allclose(list(row["surface"][1].values()), surface.said[n], atol=1e-5)
        assert row["pace"][1] == pytest.approx(pace.said[n], rel=1e-5)
        truth = None if surface.truth[n] < 0 else surface.labels[surface.truth[n]]
        assert row["surface"][0] == truth
        assert (row["pace"][0] is None) == bool(np.isnan(pace.truth[n]))


@pytest.mark.parametrize(
    "changes",
    [
        {"[train]\nfolds = 0": '[train]\nfolds = 4\nsplit = "subject"'},
        {
            "[train]": '[train]\nbalance = "oversample"',
            "epochs = 30": 'epochs = 30\n[[train.augment]]\nkind = "jitter"\nshare = 0.05',
        },
    ],
)
def test_heads_with_folds_oversampling_and_augmentation(changes: dict[str, str], data: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    text = WITH_HEADS
    for old, new in changes.items():
        text = text.replace(old, new)
    made = train(
        recipe(text), TrainRequest((str(data),), out=tmp_path / "b")
    )  # MiniRocket cannot take 4 samples: noted
    heads = made.scores["heads"]
    assert heads["surface"]["accuracy"] >= 0.9
    assert heads["pace"]["r2"] > 0.5
    if "folds = 4" in text:
        # Every recording with the label is judged once; those without are not counted.
        assert heads["surface"]["n"] == sum(n % 7 != 6 for n in range(16))
        assert heads["pace"]["n"] == sum(n % 5 != 4 for n in range(16))
        assert len(made.record.held_out.heads[1].said) == 16 * 9


def test_oversampled_windows_keep_their_targets(tmp_path: Path) -> None:
    for n in (0, 1, 2, 3, 5, 7, 9, 11):  # three of work to one of rest
        write(tmp_path, n, f"s{n}")
    loaded = recipe(WITH_HEADS.replace("[train]", '[train]\nbalance = "oversample"'))
    examples = read_dataset(read([tmp_path], loaded.read_options()), loaded, split_chain(loaded.chain)[0]).examples
    prepared = split_data(loaded, examples, make_split(examples, loaded.train, 0.0, 0))
    samples, _ = prepared.samples("channels_first", {}, 0)
    assert len(samples.classes) > len(examples)
    known = {(e.session, e.window.start_index): e.targets for e in examples}
    for i, example in enumerate(prepared.training):
        wanted = known[example.session, example.window.start_index]
        surface = samples.targets["surface"][i]
        assert wanted.get("surface") == (None if surface < 0 else ("road", "track")[surface])
        np.testing.assert_array_equal(samples.targets["pace"][i], np.float32(wanted.get("pace", np.nan)))


def test_an_architecture_without_heads_is_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from kymo.models.zoo.spectrogram_cnn import SpectrogramCnn

    monkeypatch.setattr(SpectrogramCnn, "several_heads", False)
    message = "architecture 'spectrogram_cnn' says the recipe's classes alone, not the heads surface, pace; take another one, "
    with pytest.raises(TrainingError, match=message):
        train(recipe(WITH_HEADS), TrainRequest((str(data),), only=True))


def test_without_heads_nothing_speaks_of_them(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    made = train(
        recipe(TEXT.replace("epochs = 30", "epochs = 1")), TrainRequest((str(data),), out=tmp_path / "b", only=True)
    )
    assert "heads" not in made.bundle.manifest
    assert "heads" not in made.scores
    assert made.record.held_out.heads == []


def test_a_head_of_one_class_is_learned_and_told_of(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    for path in sorted(data.iterdir()):
        (tmp_path / path.name).write_text(path.read_text().replace("track", "road"))
    loaded = recipe(WITH_HEADS.replace("epochs = 30", "epochs = 2"))
    made = train(loaded, TrainRequest((str(tmp_path),), out=tmp_path / "b", only=True))
    assert "head `surface`: all windows with its label have `road`, so it will say nothing else" in made.notes
    assert {(e.label, e.probability) for e in events_of(loaded, made, tmp_path)["surface"]} == {("road", 1.0)}


def test_minirocket_beside_says_the_same_heads(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    for n in range(16):
        write(tmp_path, n, f"s{n:02}")
    longer = WITH_HEADS.replace("length_s = 0.4", "length_s = 1.2").replace("folds = 0\nepochs = 30", "epochs = 2")
    made = train(recipe(longer), TrainRequest((str(tmp_path),), out=tmp_path / "b", windows_of="raw"))
    beside = next(one for one in made.record.candidates if one.name == "minirocket")
    assert not beside.note
    assert set(beside.scores["heads"]) == {"surface", "pace"}
    assert beside.scores["heads"]["pace"]["mae"] < 150
    assert made.bundle.manifest["architecture"]["name"] == "minirocket"
    assert events_of(recipe(longer), made, tmp_path)["pace"][0].values.keys() == {"pace"}


def test_new_labels_of_a_head_are_a_reason_to_train_again(data: Path, tmp_path: Path) -> None:
    for path in data.iterdir():
        (tmp_path / path.name).write_text(path.read_text())
    before = [plan_of(recipe(text), (str(tmp_path),)) for text in (TEXT, WITH_HEADS)]
    one = tmp_path / "s00.csv"
    one.write_text(one.read_text().replace(",3000,", ",3001,"))
    after = [plan_of(recipe(text), (str(tmp_path),)) for text in (TEXT, WITH_HEADS)]
    assert before[0] == after[0]  # a recipe without heads does not look there
    assert before[1].signature != after[1].signature
    assert before[1].held_out == after[1].held_out


def test_heads_in_another_order_are_the_same(trained: Trained, unseen: Path) -> None:
    """A bundle's columns stand in the order of its own training; events in the order of the recipe that runs."""
    loaded = recipe(WITH_HEADS)
    turned = replace(loaded, heads=loaded.heads[::-1])
    one, other = (evaluate(r, trained.bundle, read([unseen], r.read_options())) for r in (loaded, turned))
    assert list(other["heads"]) == ["pace", "surface"]
    assert one["heads"] == other["heads"]
