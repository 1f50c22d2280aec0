"""Training from nothing but files: real recordings of BasicMotions, and made-up ones of a wrist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from documents import ROOT
from wrist import ACTIVITIES, write_trials

from kymo.models.training.cli import evaluate_command, train_command
from kymo.models.training.record import RunRecord
from kymo.processors.recipe.init_cli import init


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
@pytest.mark.timeout(300)
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
