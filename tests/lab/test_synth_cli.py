"""`kymo synth` as others script against it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from motion_plans import plan, turning

import kymo
from kymo.streams.labels.labels import LabelsJson


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(kymo.cli, ["synth", *map(str, arguments)], prog_name="kymo")


@pytest.fixture
def a_plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    segments = [turning(90, 0, 0), turning(0, 90, 0, mag_distortion={"level": "low", "world_x": 0.3})]
    path.write_text(json.dumps(plan(*segments, mag={"noise": {"white": 0.01}}, start_time_ns=10**18)))
    return path


def test_a_plan_becomes_a_recording_with_labels_and_experiment(tmp_path: Path, a_plan: Path) -> None:
    out, labels, experiment = (tmp_path / name for name in ("data/x.mcap", "data/x.labels.json", "x.experiment.json"))
    out.parent.mkdir()
    done = invoke(a_plan, out, "--labels", labels, "--experiment", experiment, "--seed", "4", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        "out": str(out),
        "labels": str(labels),
        "experiment": str(experiment),
        "seed": 4,
        "samples": 200,
        "rate_hz": 100.0,
        "duration_s": 2.0,
        "segments": 2,
        "notes": [],
    }
    found = [
        (label.start_ns - 10**18, label.end_ns - 10**18, label.label)
        for label in LabelsJson(labels).labels("mag_distortion")
    ]
    assert found == [(0, 1_000_000_000, "0"), (1_000_000_000, 2_000_000_000, "1")]
    written = json.loads(experiment.read_text())
    assert (written["dirname"], written["labelFiles"]) == ("data", [{"filePath": "data/x.labels.json"}])
    assert written["segments"] == json.loads(a_plan.read_text())["segments"]
    bytes_of_seed_4 = out.read_bytes()
    kymo.synth(a_plan, out, seed=4)
    assert out.read_bytes() == bytes_of_seed_4, "Python and command line make the same file"
    assert invoke(a_plan, out, "--seed", "5").exit_code == 0
    assert out.read_bytes() != bytes_of_seed_4


def test_random_plans(tmp_path: Path) -> None:
    done = invoke("--random", "2", "--classes", "high, none", "--rounds", "1", "--rate", "20", tmp_path / "out")
    assert (done.exit_code, done.stdout.startswith(f"{tmp_path / 'out'}: 2 synthetic recordings, ")) == (0, True)
    assert len(list((tmp_path / "out").rglob("*.mcap"))) == 2
    again = invoke("--random", "2", "--json", tmp_path / "out")
    assert (again.exit_code, again.stderr) == (
        1,
        f"kymo: {tmp_path / 'out'}: holds something already; name an empty folder\n",
    )
    wrong = invoke("--random", "2", "--classes", "none,much", tmp_path / "other")
    assert (wrong.exit_code, wrong.stderr) == (1, "kymo: classes are none, much; expected some of none, low, high\n")


def test_an_impossible_plan_is_one_line_and_1(tmp_path: Path, a_plan: Path) -> None:
    bad = json.loads(a_plan.read_text())
    bad["segments"][1]["duration_s"] = -5
    a_plan.write_text(json.dumps(bad))
    done = invoke(a_plan, tmp_path / "x.mcap")
    expected = f"kymo: {a_plan}: segments[1].duration_s is -5, expected a number above 0\n"
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", expected)
    assert not (tmp_path / "x.mcap").exists()


def test_an_unknown_member_is_told_and_the_rest_is_done(tmp_path: Path, a_plan: Path) -> None:
    odd = json.loads(a_plan.read_text()) | {"comment": "mine"}
    a_plan.write_text(json.dumps(odd))
    done = invoke(a_plan, tmp_path / "x.mcap")
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'x.mcap'}: 200 samples, 2 s, synthetic\n")
    assert done.stderr == f"kymo: {a_plan}: comment is not known and has no effect\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("plan.json",),
        ("plan.json", "x.csv"),
        ("plan.json", "x.mcap", "more"),
        ("--random", "2", "a", "b"),
        ("--random", "0", "a"),
    ],
)
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    assert invoke(*arguments).exit_code == 2
    assert invoke("--random", "1", "--labels", "l.json", "out").exit_code == 2
    assert invoke("plan.json", "x.mcap", "--experiment", "e.json").exit_code == 2
