"""Training from nothing but files, real ones too, and what was trained in workers: the events of `kymo run`."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from documents import ROOT
from recipes_made import recipe_text
from report_pages import read_record
from served import check_online, offline
from verbs import invoke

from kymo.models.training.train import TrainRequest, train
from kymo.processors.recipe.load import load_recipe
from kymo.streams.readers import read
from kymo.streams.settings import Settings


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("architecture", [pytest.param("spectrogram_cnn", marks=pytest.mark.chaos), "minirocket"])
def test_basic_motions_five_seeds(architecture: str, tmp_path: Path) -> None:
    """Published halves of real recordings; nothing is chosen on the test half."""
    pytest.importorskip("aeon")
    pytest.importorskip("torch")
    recipe = (ROOT / "recipes" / "basicmotions.toml").read_text()
    path = tmp_path / "motions.toml"
    path.write_text(recipe.replace('"spectrogram_cnn"', f'"{architecture}"'))
    found = []
    for seed in range(5):
        out = str(tmp_path / str(seed))
        invoke("train", path, "--data", "basicmotions:train", "--seed", seed, "--out", out, "--only")
        said = json.loads(invoke("evaluate", path, "--data", "basicmotions:test", "--bundle", out, "--json").stdout)
        assert said["n"] == 40
        found.append(said["accuracy"])
    assert (sum(found) / 5, min(found)) == (1.0, 1.0)


@pytest.fixture
def wrist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Synthetic: four subjects to learn from and two others, in folders, and the working folder."""
    monkeypatch.chdir(tmp_path)
    write_trials(tmp_path / "known", range(4), 1, 12)
    write_trials(tmp_path / "new", range(4, 6), 1, 12)
    return tmp_path


@pytest.mark.slow
def test_unknown_wrist_data_without_code(wrist: Path) -> None:
    """`kymo init`, `train`, `evaluate`; what is bundled does not do worse than MiniRocket on other people."""
    pytest.importorskip("torch")
    assert "next: kymo train wrist --data" in invoke("init", "wrist", "--from", "known").stdout
    text = (wrist / "recipes" / "wrist.toml").read_text()
    assert 'split = "subject"' in text
    assert "rate_hz = 32" in text
    said = json.loads(invoke("train", "wrist", "--data", "known", "--json").stdout)
    record = read_record((Path(said["path"]) / "report" / "run.json").read_bytes())
    assert {one.name for one in record.candidates} == {"spectrogram_cnn", "minirocket"}
    assert sorted(name for fold in record.split["folds"] for name in fold["groups"]) == ["p0", "p1", "p2", "p3"]
    scores = json.loads(invoke("evaluate", "wrist", "--data", "new", "--json").stdout)
    assert scores["bundle"] == said["bundle"]
    assert (scores["n"], set(scores["per_subject"])) == (2 * len(ACTIVITIES), {"p4", "p5"})
    alone = wrist / "alone.toml"
    alone.write_text(text.replace("spectrogram_cnn", "minirocket"))
    invoke("train", alone, "--data", "known", "--out", "rocket")
    rocket = json.loads(invoke("evaluate", alone, "--data", "new", "--bundle", "rocket", "--json").stdout)
    assert scores["accuracy"] >= rocket["accuracy"] > 0.5
    assert scores["macro_f1"] >= rocket["macro_f1"]


RECIPE = ROOT / "recipes" / "basicmotions.toml"


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
    check_online(path, recordings, Settings(brokers=broker, prefix=prefix, home=tmp_path / "home"), roles, expected)


HEADS = recipe_text(
    "paces",
    "x y",
    20,
    (2, 1),
    model={
        "architecture": "minirocket",
        "features": 168,
        "min_probability": 0.5,
        "pool": {"kind": "mean", "windows": 3},
    },
    heads=[{"name": "surface"}, {"name": "pace", "column": "pace_hz", "kind": "number"}],
    train={"compare": False},
)


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
    settings = Settings(brokers=broker, prefix=prefix, home=tmp_path / "home")
    check_online(path, recordings, settings, ["processor,model"], expected)


RATE_HZ = 32


#: Name, tilt (degrees from upright, around), rate (Hz), size (g), share of the time moving, overtones.
ACTIVITIES = (
    ("brush_teeth", (70, 20), 3.6, 0.35, 1.0, 0.3),
    ("climb_stairs", (20, 10), 1.7, 0.30, 1.0, 0.6),
    ("comb_hair", (95, 30), 1.1, 0.40, 0.7, 0.2),
    ("descend_stairs", (20, 10), 2.0, 0.36, 1.0, 0.9),
    ("drink_glass", (60, 60), 0.25, 0.25, 0.5, 0.1),
    ("eat_meat", (45, 80), 0.9, 0.18, 0.7, 0.4),
    ("eat_soup", (50, 70), 0.45, 0.22, 0.8, 0.1),
    ("get_up_bed", (60, 0), 0.3, 0.45, 0.4, 0.2),
    ("lie_down_bed", (40, 180), 0.3, 0.40, 0.4, 0.2),
    ("pour_water", (65, 90), 0.35, 0.28, 0.6, 0.2),
    ("sit_down_chair", (30, 40), 0.4, 0.32, 0.35, 0.3),
    ("stand_up_chair", (35, 220), 0.4, 0.34, 0.35, 0.3),
    ("use_telephone", (100, 110), 0.2, 0.12, 0.3, 0.2),
    ("walk", (15, 10), 1.9, 0.28, 1.0, 0.4),
)


def trial(activity: int, subject: int, number: int, seconds: float, seed: int = 0) -> np.ndarray:
    """One trial, ``(n, 3)`` in g."""
    person = np.random.default_rng([seed, 1, subject])
    pace, vigour = person.uniform(0.85, 1.18), person.uniform(0.7, 1.35)
    worn = person.normal(0, 14, 2)
    random = np.random.default_rng([seed, 2, subject, activity, number])
    _, tilt, rate, size, busy, overtones = ACTIVITIES[activity]
    n = round(seconds * RATE_HZ)
    t = np.arange(n) / RATE_HZ
    drift = np.cumsum(random.standard_normal((n, 2)), 0) * 0.15
    angle = np.radians(np.array(tilt) + worn + random.normal(0, 9, 2) + drift)
    gravity = np.column_stack(
        [np.sin(angle[:, 0]) * np.cos(angle[:, 1]), np.sin(angle[:, 0]) * np.sin(angle[:, 1]), np.cos(angle[:, 0])]
    )
    phase = 2 * np.pi * np.cumsum(rate * pace * (1 + 0.06 * random.standard_normal(n))) / RATE_HZ
    own = np.random.default_rng([seed, 3, activity]).uniform(0.3, 1.0, 3)
    moves = _bursts(t, busy, random)[:, None]
    wave = np.column_stack([np.sin(phase + shift) + overtones * np.sin(2 * phase + 2 * shift) for shift in own * np.pi])
    out: np.ndarray = gravity + moves * size * vigour * own * wave + 0.03 * random.standard_normal((n, 3))
    return out.astype(np.float32)


def _bursts(t: np.ndarray, busy: float, random: np.random.Generator) -> np.ndarray:
    """From 0, still, to 1, moving: smooth, for a share of the time."""
    if busy >= 1:
        return np.ones(len(t))
    slow = np.sin(2 * np.pi * (0.22 * t + random.uniform())) + 0.4 * np.sin(2 * np.pi * (0.13 * t + random.uniform()))
    return 1 / (1 + np.exp(-6 * (slow - np.quantile(slow, 1 - busy))))


def write_trials(folder: Path, subjects: range, trials: int, longest_s: float = 290.0, seed: int = 0) -> None:
    """CSV files ``x,y,z,label,subject`` with a time column, one a trial of 4 s to `longest_s`."""
    folder.mkdir(parents=True, exist_ok=True)
    for subject in subjects:
        for activity, (name, *_) in enumerate(ACTIVITIES):
            for number in range(trials):
                random = np.random.default_rng([seed, 4, subject, activity, number])
                seconds = 4 * (longest_s / 4) ** random.beta(0.8, 2.2)  # most are short
                data = trial(activity, subject, number, seconds, seed)
                rows = [
                    f"{i / RATE_HZ:.5f},{x:.4f},{y:.4f},{z:.4f},{name},p{subject}" for i, (x, y, z) in enumerate(data)
                ]
                path = folder / f"p{subject}-{name}-{number}.csv"
                path.write_text("\n".join(["t,x,y,z,label,subject", *rows]) + "\n")
