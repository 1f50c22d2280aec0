"""Preparing running recordings: what was put into synthetic ones is found again, and what cannot be read is told."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recipes_made import MINIROCKET, recipe_text
from verbs import invoke

from kymo.lab.prepare.clean import RATE_HZ
from kymo.lab.prepare.gait import Faults, GaitPlan, write_gait
from kymo.lab.prepare.running import Selection, prepare_running
from kymo.lab.prepare.steady import find_steady
from kymo.processors.recipe.load import load_recipe
from kymo.streams.errors import SourceError
from kymo.streams.readers import read
from kymo.streams.recording import ReadOptions

FAULTS = Faults(spikes_per_minute=60, gaps_per_minute=10, repeats_per_minute=10, loose_s=0.6)
PLAN = GaitPlan(subjects=2, speeds=(2.5, 3.5), run_s=10, seed=11, faults=FAULTS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("running")
    write_gait(folder, PLAN)
    prepare_running(folder / "Raw", folder, Selection(), ("csv", "parquet"))
    return folder


def truth_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {file["file"]: file for file in json.loads((folder / "truth.json").read_text())["files"]}


def report_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "Prepared" / "report.json").read_text())
    return found


def usable_rows(path: Path) -> set[int]:
    return {i for i, line in enumerate(path.read_text().splitlines()[1:], 2) if line.endswith(",1")}


def test_every_fault_is_found_by_file_and_row(made: Path) -> None:
    truth, report = truth_of(made), report_of(made)
    assert {file["file"] for file in report["files"]} == set(truth)
    wanted = found = more = 0
    for file in report["files"]:
        real = truth[file["file"]]
        by_kind: dict[str, list[dict[str, Any]]] = {}
        for repair in file["repairs"]:
            by_kind.setdefault(repair["kind"], []).append(repair)
        assert file["rows"] == real["rows"]
        assert [r["first_row"] for r in by_kind.get("repeated", [])] == real["repeated_rows"]
        gaps = [{"before_row": r["last_row"], "samples": r["samples"]} for r in by_kind.get("gap", [])]
        assert gaps == real["gaps"]
        repeated = set(real["repeated_rows"])
        usable = usable_rows(made / "Raw" / file["file"])
        unusable = {row for r in by_kind["unusable"] for row in range(r["first_row"], r["last_row"] + 1)}
        assert not unusable & (usable - repeated)
        assert len(unusable - repeated) == real["rows"] - len(usable | repeated)
        spikes = {(s["row"], s["channel"]) for s in real["spikes"] if s["row"] in usable}
        seen = {(r["first_row"], r["channel"]) for r in by_kind.get("spike", [])}
        wanted, found, more = wanted + len(spikes), found + len(spikes & seen), more + len(seen - spikes)
    assert wanted > 100
    # README: at least 95 % of the spikes, and at most one mended sample in 100 spikes that was none.
    assert found >= 0.95 * wanted
    assert more <= 0.01 * wanted


def test_a_spike_becomes_what_was_there(made: Path, tmp_path: Path) -> None:
    """The same seed without spikes and lost rows says what the mended values were."""
    write_gait(tmp_path, replace(PLAN, faults=Faults(0.6, 60, True, 0, 0, 0, FAULTS.loose_s)))
    off: list[float] = []
    for file in report_of(made)["files"]:
        spiked, real = (table(folder / "Raw" / file["file"]) for folder in (made, tmp_path))
        for repair in file["repairs"]:
            if repair["kind"] == "spike":
                row = repair["first_row"] - 2
                assert spiked[repair["channel"]][row] == repair["was"]
                sample = round(spiked["t"][row] * RATE_HZ)
                scale = 0.15 if repair["channel"].startswith("a") else 0.02  # standard deviation of the noise
                off.append(abs(real[repair["channel"]][sample] - repair["became"]) / scale)
    assert len(off) > 100
    assert np.median(off) < 3


def table(path: Path) -> Any:
    return np.genfromtxt(path, delimiter=",", names=True, usecols=range(7))


@pytest.mark.parametrize("taps", [True, False])
def test_the_clocks_are_found_within_the_stated_uncertainty(taps: bool, tmp_path: Path) -> None:
    plan = GaitPlan(subjects=3, speeds=(2.5, 3.5), surfaces=("overground",), run_s=20, seed=7, faults=Faults(taps=taps))
    write_gait(tmp_path, plan)
    prepare_running(tmp_path / "Raw", tmp_path, Selection())
    truth = truth_of(tmp_path)
    sessions = report_of(tmp_path)["sessions"]
    assert len(sessions) == 6
    for session in sessions:
        clock = session["clock"]
        right = next(truth[path]["clock"] for path in session["from"] if truth[path]["foot"] == "right")
        assert clock["method"] == ("taps" if taps else "gait")
        assert abs(clock["offset_s"] - right["offset_s"]) <= clock["offset_uncertainty_s"]
        assert clock["offset_uncertainty_s"] < (0.001 if taps else 0.012)
        if taps:
            assert abs(clock["drift_ppm"] - right["drift_ppm"]) <= clock["drift_uncertainty_ppm"] < 60


def test_both_feet_stand_at_the_same_times(tmp_path: Path) -> None:
    """Offset and drift taken out, the right foot is what it is in the same run recorded by one clock."""
    quiet = Faults(offset_s=0.6, drift_ppm=80, taps=True, spikes_per_minute=0, gaps_per_minute=0, repeats_per_minute=0)
    plan = GaitPlan(subjects=1, speeds=(3.0,), surfaces=("overground",), run_s=20, seed=3, faults=quiet)
    write_gait(tmp_path / "two", plan)
    write_gait(tmp_path / "one", replace(plan, faults=replace(quiet, offset_s=0.0, drift_ppm=0.0)))
    prepare_running(tmp_path / "two" / "Raw", tmp_path / "two", Selection())
    made = np.genfromtxt(next((tmp_path / "two" / "Prepared").rglob("*.csv")), delimiter=",", names=True)
    real = np.genfromtxt(tmp_path / "one" / "Raw" / "SENSOR002" / "S01_T1_3_overground.csv", delimiter=",", names=True)
    at = np.rint(made["t"] * RATE_HZ).astype(int)
    for channel, noise in (("ax", 0.15), ("az", 0.15), ("gy", 0.02)):
        rest = made[f"{channel}_right"] - real[channel][at]
        assert np.corrcoef(made[f"{channel}_right"], real[channel][at])[0, 1] > 0.999
        assert np.median(np.abs(rest - np.median(rest))) < 3 * noise


def test_sets_sessions_and_formats(made: Path) -> None:
    folder = made / "Prepared"
    names = {f"S0{i}-T1-{speed}-{{}}" for i in (1, 2) for speed in ("2.5", "3.5")}
    for surface in ("treadmill", "overground"):
        wanted = {name.format(surface) for name in names}
        for kind in ("csv", "parquet"):
            assert {path.stem for path in (folder / kind / surface).iterdir()} == wanted
    both = [
        {r.session: r for r in read([folder / kind], ReadOptions(label_column="speed"))} for kind in ("csv", "parquet")
    ]
    assert set(both[0]) == set(both[1])
    for session, recording in both[0].items():
        other = both[1][session]
        (stream,), (same,) = recording.streams, other.streams
        assert recording.subject == other.subject == session[:3]
        assert {label.label for label in recording.labels} == {session.split("-")[2]}
        assert stream.header.format.rate == RATE_HZ
        channels = [f"{c}_{foot}" for foot in ("left", "right") for c in ("ax", "ay", "az", "gx", "gy", "gz")]
        assert [c for c in stream.header.format.channels if "10k" not in c] == channels
        assert [(i, len(piece)) for i, piece in stream.pieces] == [(i, len(piece)) for i, piece in same.pieces]
        np.testing.assert_allclose(stream.data[:, :12], same.data[:, :12], rtol=1e-6)


def test_rows_are_accounted_for(made: Path) -> None:
    """Of the left foot: written, or left out under a reason, or missing in the file."""
    report = report_of(made)
    for session in report["sessions"]:
        left = next(f for f in report["files"] if f["session"] == session["session"] and f["foot"] == "left")
        lost = sum(r["samples"] for r in left["repairs"] if r["kind"] in ("repeated", "empty", "flat"))
        assert left["rows"] - lost == session["samples"] + sum(session["rows_left_out"].values())
    totals = report["totals"]
    assert totals["rows"] == sum(f["rows"] for f in report["files"])
    assert totals["samples_written"] == sum(s["samples"] for s in report["sessions"])
    text = (made / "Prepared" / "report.txt").read_text()
    for file in report["files"]:
        assert f"{file['file']} (" in text
    assert len(re.findall(r": spike in ", text)) == sum(
        r["kind"] == "spike" for f in report["files"] for r in f["repairs"]
    )


def test_a_choice_is_kept_and_the_rest_is_listed(made: Path, tmp_path: Path) -> None:
    wanted = Selection(subjects=("S02",), speeds=("3.50",), surfaces=("treadmill",))
    report = prepare_running(made, tmp_path, wanted)  # the folder above Raw will do
    assert [session["session"] for session in report.sessions] == ["S02-T1-3.5-treadmill"]
    assert len(report.not_chosen) == 2 * 7
    with pytest.raises(SourceError, match=r"no trial is as chosen; there are S01-T1-2.5-overground"):
        prepare_running(made, tmp_path / "none", Selection(subjects=("S09",)))
    assert not (tmp_path / "none" / "Prepared").exists()


def test_one_foot_alone(made: Path, tmp_path: Path) -> None:
    raw = tmp_path / "Raw"
    (raw / "SENSOR001").mkdir(parents=True)
    for name in ("S01_T1_2.5_tread.csv", "S01_T1_3.5_tread.csv"):
        (raw / "SENSOR001" / name).write_text((made / "Raw" / "SENSOR001" / name).read_text())
    (raw / "SENSOR002").mkdir()
    name = "S01_T1_2.5_tread.csv"
    (raw / "SENSOR002" / name).write_text((made / "Raw" / "SENSOR002" / name).read_text())
    report = prepare_running(raw, tmp_path / "both", Selection())
    assert [session["session"] for session in report.sessions] == ["S01-T1-2.5-treadmill"]
    reason = "only the left foot is there, no right one; --feet left takes that foot alone"
    assert report.left_out == [{"what": "S01-T1-3.5-treadmill", "reason": reason}]
    report = prepare_running(raw, tmp_path / "left", Selection(feet="left"))
    assert len(report.sessions) == 2
    header = next((tmp_path / "left" / "Prepared" / "csv").rglob("*.csv")).read_text().partition("\n")[0]
    assert header.startswith("t,ax,ay,az,gx,gy,gz,session,subject,")
    with pytest.raises(
        SourceError, match=r"nothing is left to write; 1 left out, first .* only the left foot is there"
    ):
        prepare_running(raw / "..", tmp_path / "none", Selection(feet="both", trials=("T1",), speeds=("3.5",)))


HEAD = "t,ax,ay,az,gx,gy,gz,foot,subject_id,trial_id,speed,tread or overground,usabledata"
GOOD = [f"{i / 500:.3f},{i % 7},0,9.8,0,0.{i % 9},0,left,S1,T1,2.5,tread,1" for i in range(60)]


def prepared(folder: Path, text: str | bytes, **wanted: Any) -> Any:
    (folder / "SENSOR001").mkdir(exist_ok=True)
    path = folder / "SENSOR001" / "a.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return prepare_running(folder, folder / "out", Selection(**wanted))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "a.csv: is empty; expected a header row and rows of numbers"),
        ([HEAD], "a.csv: has a header but no rows"),
        ([HEAD.replace(",gy", ",yy"), *GOOD], "a.csv: no column `gy` .*there are: t, ax"),
        ([HEAD.replace("speed", "pace"), *GOOD], "a.csv: no column `speed`"),
        ([HEAD.replace("tread or overground", "place"), *GOOD], "a.csv: no column `tread or overground`"),
        ([HEAD, *GOOD[:5], GOOD[5].replace("9.8", "abc")], "a.csv, row 7: column `az` has 'abc', expected a number"),
        ([HEAD, GOOD[0], GOOD[1] + ",7"], "a.csv, row 3: 14 columns where the header has 13"),
        ([HEAD, GOOD[0].replace("2.5", "fast")], "row 2: column `speed` has 'fast', expected m/s"),
        ([HEAD, GOOD[0].replace("tread", "ice")], "row 2: surface 'ice', expected tread or overground"),
        ([HEAD, GOOD[0].replace("left", "both")], "row 2: column `foot` has 'both', expected left or right"),
        ([HEAD, GOOD[0][:-1] + "maybe"], "row 2: column `usabledata` has 'maybe', expected 1 or 0"),
        ([HEAD, GOOD[0].replace("S1", "")], "row 2: column `subject_id` is empty"),
        ([HEAD, *(line.replace("0.0", "0.x") for line in GOOD)], "row 2: column `t` has '0.x"),
        ([HEAD, *(f"{i / 100},{line.partition(',')[2]}" for i, line in enumerate(GOOD))], "the times say 100 Hz"),
        ([HEAD, *(line[:-1] + "0" for line in GOOD)], "nothing is left to write; .* no usable row"),
    ],
)
def test_messy_input_is_told(lines: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=message.replace("(", r"\(")):
        prepared(tmp_path, "\n".join(lines) + "\n" if lines else "")
    assert not (tmp_path / "out" / "Prepared").exists()


def test_messy_input_that_can_be_read(tmp_path: Path) -> None:
    """Semicolons, a byte order mark, empty cells, other names of feet and surface, rows out of order, no 10 km time."""
    rows = [line.replace("left", "L").replace("tread", "Treadmill") for line in GOOD]
    rows[10] = rows[10].replace("9.8", "")
    rows[20], rows[21] = rows[21], rows[20]
    text = "\ufeff" + "\n".join([HEAD, *rows]).replace(",", ";") + "\n\n"
    report = prepared(tmp_path, text)
    assert report.totals()["repairs"] == {"empty": 1, "order": 1}
    assert report.sessions[0]["samples"] == 59
    assert report.files[0]["repairs"][0] == {"kind": "empty", "first_row": 12, "last_row": 12, "samples": 1}


def test_bad_files_can_be_left_out_and_are_listed(tmp_path: Path) -> None:
    (tmp_path / "SENSOR002").mkdir()
    (tmp_path / "SENSOR002" / "b.csv").write_bytes(b"\xff\xfe\x00")
    report = prepared(tmp_path, "\n".join([HEAD, *GOOD]), skip_bad=True)
    assert [item["what"] for item in report.left_out] == ["SENSOR002/b.csv"]
    assert "is no UTF-8 text" in report.left_out[0]["reason"]


def test_two_feet_in_one_file_share_its_rows(tmp_path: Path) -> None:
    names = [f"{c}{n}" for n in (1, 2) for c in ("ax", "ay", "az", "gx", "gy", "gz")]
    head = ",".join(["t", *names, "subject_id", "trial_id", "speed", "surface"])
    rows = [f"{i / 500:.3f},{','.join(str(i * k % 13) for k in range(1, 13))},S1,T1,3,overground" for i in range(40)]
    report = prepared(tmp_path, "\n".join([head, *rows]))
    assert report.sessions[0]["clock"]["method"] == "rows"
    path = tmp_path / "out" / "Prepared" / report.sessions[0]["files"][0]
    made = np.genfromtxt(path, delimiter=",", names=True)
    np.testing.assert_array_equal(made["ax_left"], np.arange(40) % 13)
    np.testing.assert_array_equal(made["gz_right"], np.arange(40) * 12 % 13)


def test_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["prepare", "gait", out, "--subjects", "1", "--speed", "3", "--surface", "treadmill", "--run-s", "5"]
    done = invoke(*arguments)
    assert "2 files of synthetic gait" in done.output
    arguments = ["prepare", "running", f"{out}/Raw", out, "--format", "csv"]
    done = invoke(*arguments, "--json")
    said = json.loads(done.stdout)
    assert (said["sessions"], said["files"], said["left_out"]) == (1, 2, 0)
    again = invoke(*arguments, status=1)
    assert "is there already; name another folder, or replace it with --force" in again.stderr
    invoke(*arguments, "--force")
    absent = invoke("prepare", "running", f"{out}/nothing", out, status=1)
    assert "no such folder" in absent.stderr


def stride(seconds: float, *runs: tuple[float, float]) -> Any:
    """Accelerations of a foot ``(n, 3)`` that stands but for some runs, from and to so many seconds."""
    times = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    out = np.tile((0.0, 0.0, 9.81), (len(times), 1))
    for start, end in runs:
        out[:, 2] += np.where((times >= start) & (times < end), 30 * np.sin(2 * np.pi * 2.7 * times), 0)
    return out + np.random.default_rng(0).normal(0, 0.05, out.shape)


@pytest.mark.parametrize(
    ("surface", "seconds", "runs", "stretches"),
    [
        ("treadmill", 120, [(5, 110)], [(37, 87)]),  # 15 to 109 s without the margins; of these 50 s in the middle
        ("treadmill", 40, [(5, 35)], [(12.5, 34)]),  # no margin takes more than a quarter
        ("treadmill", 60, [(1, 6), (10, 55)], [(20, 54)]),
        ("treadmill", 10, [(0, 10)], [(2.5, 9)]),  # nothing but running
        ("overground", 100, [(5, 40), (50, 90)], [(7, 39), (52, 89)]),
        ("overground", 100, [(5, 40), (50, 90), (94, 98)], [(7, 39), (52, 89)]),
        ("overground", 60, [(5, 40)], [(7, 39)]),
    ],
)
def test_the_steady_part_is_found_from_the_signal(
    surface: str, seconds: float, runs: list[tuple[float, float]], stretches: list[tuple[float, float]]
) -> None:
    steady = find_steady(stride(seconds, *runs), surface)
    found = [(first / RATE_HZ, end / RATE_HZ) for first, end in steady.stretches]
    np.testing.assert_allclose(found, stretches, atol=0.8)
    assert steady.mask.sum() == sum(end - first for first, end in steady.stretches)
    assert ("one stretch instead of two" in steady.note) == (surface == "overground" and len(stretches) == 1)
    if seconds == 120:
        assert steady.mask.sum() == 25_000


def test_a_recording_without_running_is_told() -> None:
    with pytest.raises(SourceError, match=r"no steady running of 3 s is found; .* `usabledata`"):
        find_steady(stride(20, (5, 6)), "treadmill")


@pytest.mark.parametrize(
    ("file", "columns", "session", "channels"),
    [
        ("SENSOR001/SENSOR001_2.5.csv", "{}", "1-1-2.5-treadmill", 6),
        ("SENSOR001/SENSOR001_2.5_3.csv", "{}", "1-3-2.5-treadmill", 6),
        ("SENSOR012/SENSOR012_run_2.csv", "left_{},right_{}", "12-2-overground", 12),
        ("SENSOR012/SENSOR012_run.csv", "{}_left,{}_right", "12-1-overground", 12),
        ("SENSOR001/x.csv", "{};subject_id=7,trial_id=2,speed=2.50,tread or overground=1", "7-2-2.5-treadmill", 6),
        ("SENSOR001/x.csv", "{};subject_id=7.0,trial_id=2.0,speed=3.0,surface=1.0", "7-2-3-treadmill", 6),
        ("SENSOR001/x.csv", "{};subject_id=7,trial_id=2,tread or overground=0,speed=", "7-2-overground", 6),
        ("SENSOR001/x.csv", "{};trial_id=2,tread or overground=0,speed=nan", "1-2-overground", 6),
        ("SENSOR001/SENSOR001_2.5.csv", "{};tread or overground=0", "1-1-2.5-overground", 6),
    ],
)
def test_what_columns_do_not_say_is_in_the_names(
    file: str, columns: str, session: str, channels: int, tmp_path: Path
) -> None:
    names, _, constant = columns.partition(";")
    heads = [name.format(c) for name in names.split(",") for c in ("ax", "ay", "az", "gx", "gy", "gz")]
    pairs = [text.split("=") for text in constant.split(",") if text]
    cells = [*(str(i) for i in range(len(heads))), *(value for _, value in pairs)]
    path = tmp_path / "Raw" / file
    path.parent.mkdir(parents=True)
    numbers, constants = (
        np.arange(len(heads)),
        cells[len(heads) :],
    )  # a sensor that stands still is taken for a dead one
    rows = [",".join([*map(str, numbers + i % 7), *constants]) for i in range(60)]
    path.write_text("\n".join([",".join([*heads, *(name for name, _ in pairs)]), *rows]) + "\n")
    (made,) = prepare_running(tmp_path / "Raw", tmp_path / "out", Selection(feet="auto")).sessions
    assert (made["session"], len(made["channels"])) == (session, channels)
    written = next((tmp_path / "out" / "Prepared" / "csv").rglob("*.csv"))
    assert written.read_text().splitlines()[1].startswith("0.000,0,1,2,3,4,5")


def test_a_treadmill_without_a_speed_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "SENSOR001"
    folder.mkdir()
    (folder / "a.csv").write_text("ax,ay,az,gx,gy,gz,trial_id,surface\n" + "1,2,3,4,5,6,1,1\n" * 60)
    with pytest.raises(SourceError, match="no column `speed`"):
        prepare_running(tmp_path, tmp_path / "out", Selection())


def test_results_of_an_overview(tmp_path: Path) -> None:
    for subject in (1, 2):
        folder = tmp_path / "Data" / "Raw" / f"SENSOR00{subject}"
        folder.mkdir(parents=True)
        (folder / f"SENSOR00{subject}_3.0.csv").write_text("ax,ay,az,gx,gy,gz\n" + "1,2,3,4,5,6\n1,2,3,4,5,7\n" * 30)
    table = tmp_path / "Data" / "my_overview_file.csv"
    table.write_text("subject_id,name,seconds_10k,score_10k\n1,x,45:30,\n2,y,2900,61.5\n3,z,,\n")
    report = prepare_running(tmp_path / "Data" / "Raw", tmp_path / "a", Selection())
    assert report.overview == str(table)
    rows = [path.read_text().splitlines() for path in sorted((tmp_path / "a").rglob("*.csv"))]
    assert rows[1][0].endswith(",session,subject,trial_id,speed,surface,seconds_10k,score_10k")
    assert [text[1].split(",")[12:] for text in rows] == [["2730"], ["2900", "61.5"]]
    for subject, foot, column, cell in ((1, "left", "", ""), (1, "right", ",seconds_10k", ",2500")):
        file = tmp_path / "Feet" / f"SENSOR00{subject}" / f"{foot}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{1.7e9 + i / 500:.3f},{np.sin(i / 9):.4f},2,3,4,5,6,1,1,2.5,1,{foot}{cell}" for i in range(400)]
        head = f"t,ax,ay,az,gx,gy,gz,subject_id,trial_id,speed,surface,foot{column}"
        file.write_text("\n".join([head, *lines]) + "\n")
    prepare_running(tmp_path / "Feet", tmp_path / "c", Selection(whole=True), overview=table)
    (pair,) = (tmp_path / "c").rglob("*.csv")
    assert (
        pair.read_text().splitlines()[1].endswith(",2500")
    )  # what one foot's file says, whatever the other's leaves out
    table.write_text("subject_id,seconds_10k\n1,fast\n")
    for overview in (table, None):
        with pytest.raises(SourceError, match="row 2: column `seconds_10k` has 'fast', expected a number, or a time"):
            prepare_running(tmp_path / "Data" / "Raw", tmp_path / "b", Selection(), overview=overview)


SMALL = recipe_text(
    "running",
    "ax_left az_left gy_left ax_right az_right gy_right",
    500,
    (2, 1),
    model=MINIROCKET,
    labels={"column": "speed"},
    heads=[{"name": "seconds_10k", "kind": "number"}, {"name": "score_10k", "kind": "number"}],
    train={"split": "subject", "results": "Results"},
)


def test_data_as_described_from_raw_files_to_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One foot, six columns, no time, no score: TFRecords a subject, of which the model is the same, to the byte, as of the CSV files."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for subject in (1, 2, 3, 4):
        for speed in ("2.5", "3.5", "run"):
            values = stride(14, (2, 12)) * (1 if speed == "run" else float(speed) / 3)
            table = np.hstack([values, random.normal(0, 1, values.shape)])
            path = tmp_path / "Raw" / f"SENSOR00{subject}" / f"SENSOR00{subject}_{speed}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            metadata = f",{subject},1,{'' if speed == 'run' else speed},{int(speed != 'run')},{2500 + 100 * subject}"
            rows = [",".join(f"{cell:.3f}" for cell in row) + metadata for row in table]
            names = "ax,ay,az,gx,gy,gz,subject_id,trial_id,speed,tread or overground,seconds_10k"
            path.write_text("\n".join([names, *rows]) + "\n")
    (tmp_path / "small.toml").write_text(SMALL)
    target = tmp_path / "out" / "Prepared"
    words = ["prepare", "running", tmp_path / "Raw", tmp_path / "out", "--recipe", tmp_path / "small.toml"]
    made = json.loads(invoke(*words, "--json").stdout)
    assert made["tfrecords"].keys() == {"treadmill", "overground"}
    assert min(made["tfrecords"].values()) > 10
    names = sorted(path.name for path in (target / "tfrecords" / "overground").iterdir())
    assert names == ["1.tfrecord", "2.tfrecord", "3.tfrecord", "4.tfrecord", "dataset.json"]
    assert len(list((target / "steady").iterdir())) == 12
    own = load_recipe(made["recipe"])
    assert own.inputs[0].channels == ("ax", "az", "gy")
    assert [head.name for head in own.heads] == ["seconds_10k"]
    bundles = []
    for data in (target / "tfrecords", target / "csv"):
        invoke("train", made["recipe"], "--data", data, "--out", tmp_path / data.name, "--no-report")
        bundles.append((tmp_path / data.name / "model.onnx").read_bytes())
    assert bundles[0] == bundles[1]
    with np.load(tmp_path / "Results" / "model_weights" / "running.npz") as weights:
        assert weights.files
    history = json.loads((tmp_path / "Results" / "model_history" / "running.json").read_text())
    assert history[0]["epoch"] == 1
    only = tmp_path / "only.toml"
    only.write_text(Path(made["recipe"]).read_text() + '\n[source]\nkeep = "subject_id == 9"\n')
    done = invoke("train", only, "--data", target / "tfrecords", status=1)
    assert "no window in" in done.stderr


def test_no_tfrecord_at_all_is_a_failure(tmp_path: Path) -> None:
    folder = tmp_path / "SENSOR001"
    folder.mkdir()
    (folder / "SENSOR001_2.5.csv").write_text("ax,ay,az,gx,gy,gz\n" + "1,2,3,4,5,6\n1,2,3,4,5,7\n" * 30)
    done = invoke("prepare", "running", tmp_path, tmp_path / "out", status=1)
    assert "no TFRecords could be written, the rest is there; no window of 20 s fits" in done.stderr
