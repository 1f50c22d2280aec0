"""The notebooks run from top to bottom, are small, and say what their data are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from documents import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("ipykernel", "matplotlib", "torch"):
        pytest.importorskip(library)
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("KYMO_SMALL", "1")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=110, kernel_name="python3").execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    right, of = map(int, re.findall(r"(\d+) of (\d+) windows are right", printed)[0])
    assert right / of > 0.5  # guessing gives a third


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_small_valid_and_honest(path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    assert path.stat().st_size < 500_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert "recordings are synthetic" in notebook.cells[0].source
    drawn = [c for c in notebook.cells if c.cell_type == "code" and "plt.title" in c.source]
    assert len(drawn) >= {"own_data": 1}.get(path.stem, 4)
    assert all("SYNTHETIC" in cell.source for cell in drawn)
    for cell in drawn:  # the figure is there for those who only read
        assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.source
