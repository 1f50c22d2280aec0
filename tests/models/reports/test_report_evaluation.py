"""The report of an evaluation: windows of recordings whose answers are known beforehand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_models import RECIPE, recipe, tiny_bundle

from kymo.models.evaluate import evaluate
from kymo.models.reports.report import evaluate_with_report
from kymo.models.training.cli import evaluate_command
from kymo.streams.chunk import Header, signal_format
from kymo.streams.errors import TrainingError
from kymo.streams.labels.labels import interval
from kymo.streams.recording import Recording, StreamData


def recording(session: str, levels: Sequence[float], label: str, subject: str | None = None) -> Recording:
    """A recording at 10 Hz whose channel x holds `levels`; the small model's logits are (-x/2, 0, x/2)."""
    data = np.column_stack([levels, np.zeros(len(levels))]).astype(np.float32)
    stream = StreamData(Header(session, 0, signal_format("imu.wrist", ("x", "y"), Fraction(10))), data)
    named = [interval(session=session, set="label", start_ns=0, end_ns=10**9, label=label)]
    return Recording(session, [stream], named, subject, path=f"{session}.csv")


def recordings() -> list[Recording]:
    return [
        recording("right", [8] * 10, "high", "anna"),
        recording("wrong", [-8] * 10, "high", "ben"),
        recording("wronger", [-8] * 6 + [-40] * 4, "middle", "ben"),
        recording("too short", [8] * 3, "low"),
        recording("alien", [8] * 4, "jump"),
    ]


def test_the_page_says_what_the_scores_say(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b")
    scores, files = evaluate_with_report(recipe(), bundle, recordings())
    assert scores == evaluate(recipe(), bundle, recordings())
    page = files["report.html"].decode().replace("\u00a0", " ")
    # 4 + 4 + 4 + 1 windows of 4 samples, every 2; those of `right` alone are right.
    assert f"<h1>{bundle.id}: evaluation</h1>" in page
    assert "1 recording without a window, counted as wrong." in page
    assert "13 windows of 3 subjects" in page
    assert f"<dd>{4 / 13:.1%}</dd>".replace("%", " %") in page
    assert "The 6 of 9 wrongly answered windows" in page
    surest = page.index("wronger (ben), 0.60 to 1.00 s: middle taken for low with 100.0 %")
    assert (
        surest < page.index("wronger (ben), 0.40 to 0.80 s: middle taken for low") < page.index("wrong (ben), 0.00 to")
    )
    assert "jump" in page
    assert "too short.csv" in page


def test_which_windows_are_the_worst(tmp_path: Path) -> None:
    """Of windows that are equally wrong, those that came first, however many there are."""
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    wrong = [recording(f"s{i}", [-8] * 4, "high") for i in range(20)]
    page = evaluate_with_report(recipe(), tiny_bundle(tmp_path / "b"), wrong)[1]["report.html"].decode()
    lines = page[page.index(">Worst windows</h2>") : page.index(">Settings</h2>")] if "Settings" in page else page
    assert [i for i in range(20) if f"s{i}, 0.00 to 0.40 s: high" in lines] == list(range(6))


def test_without_labels_there_is_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no recording has a label"):
        evaluate_with_report(recipe(), tiny_bundle(tmp_path / "b"), [])


def test_the_verb_writes_it(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(RECIPE)
    bundle = tiny_bundle(tmp_path / "b")
    rows = "".join(f"{i / 10},8,0,high\n" for i in range(20))
    (tmp_path / "one.csv").write_text(f"t,x,y,label\n{rows}")
    asked = [str(tmp_path / "tiny.toml"), "--data", str(tmp_path / "one.csv"), "--bundle", str(bundle.path)]
    plain = CliRunner().invoke(evaluate_command, [*asked, "--json"], catch_exceptions=False)
    found = CliRunner().invoke(
        evaluate_command, [*asked, "--json", "--report", str(tmp_path / "r")], catch_exceptions=False
    )
    assert found.exit_code == plain.exit_code == 0
    report = json.loads(found.stdout)
    assert report.pop("report") == str(tmp_path / "r" / "report.html")
    assert report == json.loads(plain.stdout)
    assert "9 windows" in (tmp_path / "r" / "report.html").read_text()
