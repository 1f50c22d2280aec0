"""Training from nothing but files, real ones too, and what was trained in workers: the events of `kymo run`."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from documents import ROOT
from fault_lab import await_that
from wrist import ACTIVITIES, write_trials

from kymo.deploy.children import Child, kymo_command, kymo_environment, stop
from kymo.models.bundle import Bundle
from kymo.models.predict import Classifier
from kymo.models.run import run
from kymo.models.training.cli import evaluate_command, train_command
from kymo.models.training.record import RunRecord
from kymo.models.training.train import TrainRequest, train
from kymo.processors.recipe.init_cli import init
from kymo.processors.recipe.load import Recipe, load_recipe
from kymo.streams.kafka.admin import ensure_topics
from kymo.streams.kafka.read import read_records
from kymo.streams.readers import read
from kymo.streams.recording import Recording
from kymo.streams.replay.replay import replay
from kymo.streams.replay.schedule import ReplayPlan
from kymo.streams.settings import Settings
from kymo.streams.topics import Names


def done(command: Any, *arguments: str) -> str:
    found = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("architecture", [pytest.param("spectrogram_cnn", marks=pytest.mark.chaos), "minirocket"])
def test_basic_motions_five_seeds(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published halves of real recordings; nothing is chosen on the test half."""
    pytest.importorskip("aeon")
    pytest.importorskip("torch")
    monkeypatch.setenv("KYMO_HOME", str(tmp_path))
    recipe = (ROOT / "recipes" / "basicmotions.toml").read_text()
    path = tmp_path / "motions.toml"
    path.write_text(recipe.replace('"spectrogram_cnn"', f'"{architecture}"'))
    found = []
    for seed in range(5):
        out = str(tmp_path / str(seed))
        done(train_command, str(path), "--data", "basicmotions:train", "--seed", str(seed), "--out", out, "--only")
        said = json.loads(done(evaluate_command, str(path), "--data", "basicmotions:test", "--bundle", out, "--json"))
        assert said["n"] == 40
        found.append(said["accuracy"])
    assert (sum(found) / 5, min(found)) == (1.0, 1.0)


@pytest.fixture
def wrist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Synthetic: four subjects to learn from and two others, in folders, and the working folder."""
    monkeypatch.setenv("KYMO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    write_trials(tmp_path / "known", range(4), 1, 12)
    write_trials(tmp_path / "new", range(4, 6), 1, 12)
    return tmp_path


@pytest.mark.slow
def test_unknown_wrist_data_without_code(wrist: Path) -> None:
    """`kymo init`, `train`, `evaluate`; what is bundled does not do worse than MiniRocket on other people."""
    pytest.importorskip("torch")
    assert "next: kymo train wrist --data" in done(init, "wrist", "--from", "known")
    text = (wrist / "recipes" / "wrist.toml").read_text()
    assert 'split = "subject"' in text
    assert "rate_hz = 32" in text
    said = json.loads(done(train_command, "wrist", "--data", "known", "--json"))
    record = RunRecord.from_json((Path(said["path"]) / "report" / "run.json").read_bytes())
    assert {one.name for one in record.candidates} == {"spectrogram_cnn", "minirocket"}
    assert sorted(name for fold in record.split["folds"] for name in fold["groups"]) == ["p0", "p1", "p2", "p3"]
    scores = json.loads(done(evaluate_command, "wrist", "--data", "new", "--json"))
    assert scores["bundle"] == said["bundle"]
    assert (scores["n"], set(scores["per_subject"])) == (2 * len(ACTIVITIES), {"p4", "p5"})
    alone = wrist / "alone.toml"
    alone.write_text(text.replace("spectrogram_cnn", "minirocket"))
    done(train_command, str(alone), "--data", "known", "--out", "rocket")
    rocket = json.loads(done(evaluate_command, str(alone), "--data", "new", "--bundle", "rocket", "--json"))
    assert scores["accuracy"] >= rocket["accuracy"] > 0.5
    assert scores["macro_f1"] >= rocket["macro_f1"]


RECIPE = ROOT / "recipes" / "basicmotions.toml"


def plain(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "emitted_ns"}


@pytest.mark.parametrize("roles", [["processor,model"], ["processor", "model"]])
def test_a_raw_bundle_in_workers(
    roles: list[str], broker: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aeon")
    monkeypatch.setenv("KYMO_HOME", str(tmp_path / "home"))
    path = tmp_path / "motions.toml"
    named = 'architecture = "minirocket"\nfeatures = 840\npool = {kind = "mean", windows = 3}'
    path.write_text(RECIPE.read_text().replace('architecture = "spectrogram_cnn"', named))
    recipe = load_recipe(path)
    bundle = train(recipe, TrainRequest(("basicmotions:train",), report=False)).bundle
    assert bundle.takes == "raw"
    recordings = list(read(["basicmotions:test"], recipe.read_options()))[::5]
    expected = offline(recipe, recordings, bundle)
    assert len(expected) == 8 * 6
    online(path, recordings, Settings(brokers=broker, prefix=prefix, home=tmp_path / "home"), roles, expected)


HEADS = """
name = "paces"
[[input]]
stream = "imu"
rate_hz = 20
channels = ["x", "y"]
[window]
length_s = 2
hop_s = 1
[model]
architecture = "minirocket"
features = 168
min_probability = 0.5
pool = {kind = "mean", windows = 3}
[[heads]]
name = "surface"
[[heads]]
name = "pace"
column = "pace_hz"
kind = "number"
[train]
compare = false
"""


def paces(folder: Path, session: int) -> None:
    """A recording with two classes, two surfaces and a number that changes, each by what the samples are."""
    noise, lines = random.Random(session), ["t,x,y,label,surface,pace_hz"]
    for i in range(600):
        fast, track, pace = i >= 300, i % 300 >= 150, 1 + (i // 100) / 5
        x = (2 if fast else 1) * math.sin(2 * math.pi * pace * i / 20) + noise.gauss(0, 0.1)
        y = (3 if track else 0) * (i % 2) + noise.gauss(0, 0.1)
        labels = ("fast" if fast else "slow", "track" if track else "grass", f"{pace:g}")
        lines.append(f"{i / 20:g},{x:.4f},{y:.4f},{','.join(labels)}")
    (folder / f"run{session}.csv").write_text("\n".join(lines))


def test_heads_in_a_worker(broker: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aeon")
    monkeypatch.setenv("KYMO_HOME", str(tmp_path / "home"))
    path, data = tmp_path / "paces.toml", tmp_path / "data"
    path.write_text(HEADS)
    data.mkdir()
    for session in range(6):
        paces(data, session)
    recipe = load_recipe(path)
    bundle = train(recipe, TrainRequest((str(data),), report=False)).bundle
    assert [(head.name, head.labels) for head in bundle.heads] == [("surface", ("grass", "track")), ("pace", ())]
    recordings = list(read([data], recipe.read_options()))[:3]
    expected = offline(recipe, recordings, bundle)
    assert len(expected) == 3 * 29 * 3
    surfaces = [e for e in expected.values() if e["head"] == "surface"]
    right = [e["label"] == ("track" if (e["start_index"] + 20) % 300 >= 150 else "grass") for e in surfaces]
    assert sum(right) > 0.8 * len(right)  # pooled windows lag behind a change
    online(
        path, recordings, Settings(brokers=broker, prefix=prefix, home=tmp_path / "home"), ["processor,model"], expected
    )


def offline(recipe: Recipe, recordings: list[Recording], bundle: Bundle) -> dict[str, dict[str, Any]]:
    """By id, the events of `kymo run`."""
    events = run(recipe, recordings, Classifier.for_recipe(bundle, recipe))
    return {e.id: json.loads(dataclasses.replace(e, emitted_ns=0).to_json()) for e in events}


def online(
    path: Path, recordings: list[Recording], settings: Settings, roles: list[str], expected: dict[str, dict[str, Any]]
) -> None:
    """Replay recordings to workers: every expected event comes, once, and no other."""
    settings = dataclasses.replace(settings, partitions=3, metrics_port=-1)
    names = Names(settings.prefix)
    ensure_topics(settings, names)
    changes = {"KYMO_BROKERS": settings.brokers, "KYMO_PREFIX": settings.prefix, "KYMO_HOME": str(settings.home)}
    environment = kymo_environment({**changes, "KYMO_PARTITIONS": "3", "KYMO_METRICS_PORT": "-1"}, keep=False)

    def events() -> list[dict[str, Any]]:
        return [json.loads(r.value or b"") for r in read_records(settings, names.of("events"))]

    with ExitStack() as stack:
        children = [Child(r, kymo_command("worker", str(path), "--roles", r), environment, print) for r in roles]
        stack.callback(stop, children)
        for child in children:
            child.start()
        replay(recordings, settings, ReplayPlan(speed=None))
        await_that(lambda: len(events()) >= len(expected), "every event")
    found = events()
    assert len(found) == len(expected)
    assert {e["id"]: plain(e) for e in found} == {i: plain(e) for i, e in expected.items()}
