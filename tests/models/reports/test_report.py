"""Report pages: of a training, of an evaluation."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_pages import LABELS, Page, page, read_record, record
from tiny_models import RECIPE, linear_onnx, manifest, recipe, tiny_bundle, window
from verbs import invoke, python

from kymo.models.bundle import load_bundle
from kymo.models.evaluate import evaluate
from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.models.reports.report import (
    Picture,
    bundle_report,
    evaluate_with_report,
    pictures,
    report_files,
    worst_windows,
    write_report,
)
from kymo.models.scores import HeldHead, HeldOut
from kymo.models.training.record import RunRecord
from kymo.streams.chunk import Header, signal_format
from kymo.streams.errors import BundleError, TrainingError
from kymo.streams.labels.labels import interval
from kymo.streams.recording import Recording, StreamData

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
    assert read_record(made["report/run.json"]).to_json() == record().to_json()
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
    return read_record(no_numbers().to_json())


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
    files = report_files(run, {number: Picture(data, ("x", "y"), (2.0, 4.5))})
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
    assert python(code) == "['report.html'] True\n"


def test_a_report_is_written_or_says_why(tmp_path: Path) -> None:
    path = write_report(tmp_path / "a" / "b", report_files(RunRecord("r")))
    assert path.read_text().startswith("<!DOCTYPE html>")
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"file.*cannot be written"):
        write_report(tmp_path / "file", {})


def recording(session: str, levels: Sequence[float], label: str, subject: str | None = None) -> Recording:
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
    asked = [tmp_path / "tiny.toml", "--data", tmp_path / "one.csv", "--bundle", bundle.path]
    plain = invoke("evaluate", *asked, "--json")
    found = invoke("evaluate", *asked, "--json", "--report", tmp_path / "r")
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
    assert files == report_files(read_record(with_heads().to_json()))


def test_a_head_without_labels_says_so() -> None:
    made = with_heads()
    n = len(made.held_out.y_true)
    made.held_out.heads = [
        HeldHead("surface", ["road", "track"], np.full(n, -1), np.full((n, 2), 0.5)),
        HeldHead("pace", [], np.full(n, np.nan), np.zeros(n)),
    ]
    made.scores["heads"] = {head.name: head.scores(made.held_out.sessions) for head in made.held_out.heads}
    assert page(made).text.count("No held-out window has a label of this head.") == 2
