"""A split that leaks is shown beside one that does not: the same scores as if the recipe had asked for that one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import RECIPE, recipe

from kymo.models.training.record import RunRecord
from kymo.models.training.train import TrainRequest, train

pytest.importorskip("torch", reason="training needs torch")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
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


def trained(data: Path, out: Path, split: str) -> RunRecord:
    text = RECIPE.replace("epochs = 3", f'epochs = 4\nrefit = false\ncompare = false\nsplit = "{split}"')
    return train(recipe(text), TrainRequest((str(data),), out=out)).record


def test_both_figures_of_a_random_split(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYMO_HOME", str(tmp_path / "home"))
    by_session = trained(data, tmp_path / "b", "session")
    by_window = trained(data, tmp_path / "a", "window")
    assert "leak_free" not in by_session.split
    assert by_window.split["kind"] == "window"
    assert by_window.split["leak_free"] == {"kind": "session", "scores": by_session.scores}
    page = (tmp_path / "a" / "report" / "report.html").read_text()
    assert "These scores leak: split by session instead of by window" in page
