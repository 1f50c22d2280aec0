"""A report's sections on further heads: the figures and tables that a reader finds, numbers by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from report_pages import page, record

from kymo.models.reports.report import report_files
from kymo.models.scores import score_head
from kymo.models.training.record import HeldHead, RunRecord


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
    made.scores = {**made.scores, "heads": {head.name: score_head(head, made.held_out.sessions) for head in heads}}
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
    made.scores["heads"] = {head.name: score_head(head, made.held_out.sessions) for head in made.held_out.heads}
    assert page(made).text.count("No held-out window has a label of this head.") == 2
