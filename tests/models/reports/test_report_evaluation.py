"""The report of an evaluation, and sections on further heads: windows whose answers are known beforehand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from report_pages import page, record
from tiny_models import RECIPE, recipe, tiny_bundle

from kymo.models.evaluate import evaluate
from kymo.models.reports.report import evaluate_with_report, report_files
from kymo.models.scores import HeldHead
from kymo.models.training.cli import evaluate_command
from kymo.models.training.record import RunRecord
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
    judgement, files = evaluate_with_report(recipe(), bundle, recordings())
    scores = judgement.scores()
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


def with_heads(**unknown: Any) -> RunRecord:
    """The made-up run, with a head of classes and a number; of session 0 the pace is not known."""
    made = record()
    n = len(made.held_out.y_true)
    truth = np.repeat([0, 1, 0, 1, -1, 1], 10)
    said = np.where(np.arange(n)[:, None] % 5 == 0, [[0.3, 0.7]], [[0.9, 0.1]])
    pace = np.repeat([np.nan, 3000.0, 3100.0, 3200.0, 3300.0, 3400.0], 10)
    errors = np.tile([10.0, -10.0], n // 2) + 20
    heads = [
        HeldHead("surface", ["road", "track"], truth, said),
        HeldHead("pace", [], pace, np.nan_to_num(pace, nan=3000.0) + errors),
    ]
    made.held_out.heads = heads
    made.scores = {**made.scores, "heads": {head.name: head.scores(made.held_out.sessions) for head in heads}}
    return made


def test_sections_of_heads() -> None:
    found = page(with_heads())
    assert [name for name in found.heads if name.startswith("Head")] == ["Head: surface", "Head: pace"]
    caption = "Errors, in the number's own unit; always saying the mean would err by the spread"
    spread = f"{np.std([3000, 3100, 3200, 3300, 3400]):.5g}"
    r2 = 1 - 5 * 20**2 / (5 * 20_000)
    window_r2 = 1 - (25 * 30**2 + 25 * 10**2) / (50 * 20_000)
    assert found.tables[caption][1:] == [
        ["recordings", "5", "20", "20", f"{r2:.3f}", spread],
        ["windows", "50", "20", f"{np.sqrt((30**2 + 10**2) / 2):.5g}", f"{window_r2:.3f}", spread],
    ]
    assert found.tables["Every recording"][1] == ["walk 1", "3000", "3020", "+20"]
    # Of the five recordings with a surface, all are said to be of class road: two are.
    assert ["road", "0.400", "1.000", "0.571", "2"] in [row for rows in found.tables.values() for row in rows]


def test_figures_of_heads_stand_apart() -> None:
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    files = report_files(with_heads())
    wanted = {"head1_confusion_recordings.png", "head1_confusion_windows.png", "head2_said.png"}
    assert wanted <= set(files)
    found = page(with_heads())
    assert any(
        "pace said against pace as it is, of 5 recordings: mean error 20; R2 0.980." in text for text in found.figures
    )
    assert len(found.ids) == len(set(found.ids))
    assert set(report_files(record())) == set(files) - wanted
    assert files == report_files(RunRecord.from_json(with_heads().to_json()))


def test_a_head_without_labels_says_so() -> None:
    made = with_heads()
    n = len(made.held_out.y_true)
    made.held_out.heads = [
        HeldHead("surface", ["road", "track"], np.full(n, -1), np.full((n, 2), 0.5)),
        HeldHead("pace", [], np.full(n, np.nan), np.zeros(n)),
    ]
    made.scores["heads"] = {head.name: head.scores(made.held_out.sessions) for head in made.held_out.heads}
    assert page(made).text.count("No held-out window has a label of this head.") == 2
