"""The report of a run: what its page says, that it stands alone, and what it makes of odd records."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from documents import ROOT
from report_pages import LABELS, Page, page, record
from tiny_models import linear_onnx, manifest, window

from kymo.models.bundle import load_bundle
from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.models.reports.report import Picture, bundle_report, pictures, report_files, worst_windows, write_report
from kymo.models.scores import HeldOut
from kymo.models.training.record import RunRecord
from kymo.streams.errors import BundleError, TrainingError

EVIL = "<script>alert('x')</script> & \"$a_b$\" \x00\ud800 ://"


@pytest.fixture(scope="module")
def made() -> dict[str, bytes]:
    """The whole report of the usual record, as a bundle holds it."""
    windows = [window(np.full((4, 2), i), "walk", i) for i in range(60)]
    return bundle_report(record(), windows.__getitem__)


def test_the_tables_say_what_the_record_says() -> None:
    run = record()
    found = page(run)
    assert found.heads == [
        *("Learning curves", "Confusion", "Classes", "Subjects", "Reliability", "Worst windows", "Models compared"),
        *("Split", "Settings", "Lineage"),
    ]
    assert found.tables["Recordings, 3 classes"][1:] == [
        [name, *(f"{row[key]:.3f}" for key in ("precision", "recall", "f1")), str(row["n"])]
        for name, row in run.scores["per_class"].items()
    ]
    right = run.held_out.probabilities.argmax(axis=1) == run.held_out.y_true
    rows = {row[0]: row[1:4] for row in found.tables["3 subjects, the worst first"][1:]}
    assert rows == {
        f"P{i}": ["2", "20", f"{right[20 * i : 20 * i + 20].mean():.1%}".replace("%", " %")] for i in range(3)
    }
    assert len(found.tables["6 sessions, the worst first"]) == 7
    assert found.tables["Compared on the same validation windows"][1:] == [
        [
            "cnn (bundled)",
            f"{run.scores['accuracy'] * 100:.1f} %",
            f"{run.scores['macro_f1']:.3f}",
            f"{run.scores['window_accuracy'] * 100:.1f} %",
            f"{min(epoch['validation_loss'] for epoch in run.history):.3f}",
            "1 min 15 s",
            "812 MB",
            "",
        ],
        ["minirocket", "50.0 %", "–", "–", "–", "3.25 s", "640 MB", "failed"],
    ]
    assert found.tables["The two sides"][1:] == [
        ["training", "2", "90", "sit: 50, walk: 40, run: 0"],
        ["validation", "3", "60", "sit: 20, walk: 20, run: 20"],
    ]
    assert found.tables["1 input"][1:] == [["x.csv", "12", "ab" * 32]]
    assert found.tables["Versions"][1:] == [["python", "3.11.2"], ["numpy", "2.3.5"]]
    assert found.tables["Also"][1:] == [["seed", "0"], ["revision", "0123abc"]]
    assert [row[0] for row in found.tables["Every epoch"][1:]] == list("12345678")
    for text in (
        "2\u00a0min 11\u00a0s",
        "1,240 MB",
        "gaps bridged (3 times)",
        "kymo train wrist",
        'name = "wrist"',
        run.choice,
    ):
        assert text in found.text


def test_the_figures_are_there_as_png_and_in_the_page(made: dict[str, bytes]) -> None:
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    image = pytest.importorskip("PIL.Image")
    files = {name.removeprefix("report/"): data for name, data in made.items()}
    assert list(files) == [
        "run.json",
        "report.html",
        *(f"{name}.png" for name in ("learning_curves", "confusion_recordings", "confusion_windows", "groups")),
        *(f"{name}.png" for name in ("reliability", *(f"worst_{i}" for i in range(1, 7)))),
    ]
    for name, data in files.items():
        if name.endswith(".png"):
            picture = image.open(io.BytesIO(data))
            picture.load()
            assert (picture.format, picture.width > 400, picture.height > 150) == ("PNG", True, True), name
            pixels = np.asarray(picture.convert("L"))
            assert pixels.std() > 5, f"{name} is empty"
    found = Page(files["report.html"].decode())
    assert len(found.figures) == found.tags.count("svg") == len(files) - 2
    assert "lowest, 0.5, in epoch 4." in found.figures[0]  # 1/4 + 4/16 is less than its neighbours


def test_equal_records_give_equal_bytes(made: dict[str, bytes]) -> None:
    windows = [window(np.full((4, 2), i), "walk", i) for i in range(60)]
    assert bundle_report(record(), windows.__getitem__) == made
    assert RunRecord.from_json(made["report/run.json"]).to_json() == record().to_json()
    assert {name.partition("/")[0] for name in made} == {"report"}


def test_a_bundle_checks_its_report_which_is_no_part_of_its_id(tmp_path: Path) -> None:
    held = HeldOut()
    ids = set()
    for seconds in (1.0, 2.0):
        report = bundle_report(RunRecord("tiny", held_out=held, seconds=seconds))
        path = write_bundle(tmp_path / str(seconds), manifest(), {MODEL: linear_onnx(np.eye(3, 2))}, attached=report)
        ids.add(load_bundle(path).id)
    assert len(ids) == 1
    page = path / "report" / "report.html"
    page.write_text(page.read_text().replace("tiny", "tidy"))
    with pytest.raises(BundleError, match=r"report\.html: damaged"):
        load_bundle(path)


def test_the_page_stands_alone(made: dict[str, bytes]) -> None:
    source = made["report/report.html"].decode()
    assert "://" not in source
    assert not re.search(r"@import|url\((?!#)|\ssrc=|<(script|link|img|iframe|object)\b", source)
    links = re.findall(r'href="([^"]+)"', source)
    assert links
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    found = Page(source)
    assert len(found.ids) == len(set(found.ids))
    assert {link[1:] for link in links if link.startswith("#")} <= set(found.ids)
    assert "color-scheme: light dark" in source
    assert "prefers-color-scheme: dark" in source


def test_names_are_text_not_markup() -> None:
    run = record(labels=[EVIL, "b"], recipe=EVIL, recipe_text=EVIL, notes=[EVIL], choice=EVIL)
    run.held_out.sessions = [f"{EVIL}{name}" for name in run.held_out.sessions]
    run.held_out.subjects = [f"{EVIL}{name}" for name in run.held_out.subjects]
    run.split["training"]["groups"] = [EVIL]
    run.lineage["inputs"][0]["path"] = EVIL
    run.candidates[0].name = EVIL
    windows = [window(np.full((4, 2), i), EVIL, i) for i in range(60)]
    source = report_files(run, pictures(run, windows.__getitem__))["report.html"].decode()
    found = Page(source)
    assert "script" not in found.tags
    assert "\x00" not in source
    shown = "<script>alert('x')</script> & \"$a_b$\" \ufffd\ufffd ://"
    assert found.text.count(shown) >= 12


def test_a_split_that_leaks_shows_both_figures() -> None:
    run = record()
    other = {"accuracy": 0.5, "macro_f1": 0.25, "window_accuracy": 0.375}
    run.split |= {"kind": "window", "leak_free": {"kind": "session", "scores": other}}
    found = page(run)
    accuracy, f1, windows = (run.scores[key] for key in ("accuracy", "macro_f1", "window_accuracy"))
    assert found.tables["The same architecture, fitted and scored with each split"][1:] == [
        ["window", f"{accuracy * 100:.1f} %", f"{f1:.3f}", f"{windows * 100:.1f} %"],
        ["session", "50.0 %", "0.250", "37.5 %"],
    ]
    assert "split by session instead of by window, 37.5\u00a0% of windows are right." in found.text


def test_what_is_too_long_is_cut_and_says_so() -> None:
    run = record(sessions=1000, windows=2, labels=[f"class {i}" for i in range(200)])
    run.lineage["inputs"] = [{"path": f"{i}.csv", "recordings": 1, "sha256": "00"} for i in range(3000)]
    run.split["training"]["groups"] = [f"P{i}" for i in range(500)]
    files = report_files(run)
    found = Page(files["report.html"].decode())
    assert len(files["report.html"]) < 1_000_000
    assert len(found.tables["Windows: the 40 classes of 200 with the lowest F1"]) == 41
    assert len(found.tables["The worst 40 of 500 subjects"]) == 41
    assert len(found.tables["3,000 inputs, 100 shown"]) == 101
    assert "Windows: the 20 classes with the most errors of 200 are shown." in found.text
    assert "P59 and 440 more" in found.text


def nothing_held_out() -> RunRecord:
    history = [{"epoch": 1, "loss": float("nan")}, {"epoch": 2, "loss": 0.5}]
    return record(held_out=HeldOut(), scores={}, history=history, candidates=[])


def one_class() -> RunRecord:
    return record(labels=["only"])


def no_numbers() -> RunRecord:
    run = record(history=[{"epoch": 1, "loss": float("nan"), "validation_loss": float("inf")}])
    run.held_out.probabilities = np.full_like(run.held_out.probabilities, np.nan)
    run.scores = {key: None if isinstance(value, float) else value for key, value in run.scores.items()}
    return run


def only_a_name() -> RunRecord:
    return RunRecord("empty")


def from_json() -> RunRecord:
    return RunRecord.from_json(no_numbers().to_json())


@pytest.mark.parametrize("make", [nothing_held_out, one_class, no_numbers, only_a_name, from_json])
def test_there_is_a_report_of_anything(make: Callable[[], RunRecord]) -> None:
    found = page(make())
    assert not re.search(r"\b(nan|NaN|None|inf)\b", found.text)
    if make in (nothing_held_out, only_a_name):
        assert "No window was held out" in found.text
    if make in (no_numbers, from_json):
        assert "No window has probabilities." in found.text


@pytest.mark.parametrize(
    ("shape", "kind"), [((40, 2), "f4"), ((8, 16, 2), "f4"), ((5, 12, 9, 2), "u1"), ((1, 1), "f8"), ((6, 3, 2), "nan")]
)
def test_windows_of_every_kind_are_drawn(shape: tuple[int, ...], kind: str) -> None:
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    data = np.full(shape, np.nan) if kind == "nan" else np.arange(np.prod(shape)).reshape(shape).astype(kind)
    run = record()
    number = worst_windows(run, 1)[0]
    files = report_files(run, {number: Picture(data, ("x", "y"), 2.0, 4.5)})
    assert "worst_1.png" in files
    held = run.held_out
    truth, answer = LABELS[held.y_true[number]], LABELS[held.probabilities[number].argmax()]
    said = f"{held.sessions[number]} ({held.subjects[number]}), 2.00 to 4.50 s: {truth} taken for {answer} with "
    assert any(said in alt for alt in Page(files["report.html"].decode()).figures)


def test_without_matplotlib_the_tables_are_there() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from kymo.models.reports.report import report_files\nfrom kymo.models.training.record import RunRecord\n"
        "files = report_files(RunRecord('r', history=[{'epoch': 1, 'loss': 0.5}]))\n"
        "print(list(files), b'kymo-streams[report]' in files['report.html'])"
    )
    root = ROOT
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout == "['report.html'] True\n", done.stderr


def test_a_report_is_written_or_says_why(tmp_path: Path) -> None:
    path = write_report(tmp_path / "a" / "b", report_files(RunRecord("r")))
    assert path.read_text().startswith("<!DOCTYPE html>")
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"file.*cannot be written"):
        write_report(tmp_path / "file", {})
