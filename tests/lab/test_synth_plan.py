"""Plans of synthetic recordings, by Python and by the verb."""

from __future__ import annotations

import json
import re
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documents import ROOT, Block, blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from motion_plans import plan, turning
from verbs import invoke

import kymo
from kymo.lab.synth.plan import Magnetometer, Place, Pose, Sensor, Timing, Turn, load_plan, parse_plan
from kymo.lab.synth.simulate import simulate
from kymo.streams.errors import PlanError
from kymo.streams.labels.labels import LabelsJson

ORIGIN = {"lat": 38.0, "lng": -122.0, "height": 5.0}


def test_what_a_short_plan_leaves_out_has_its_default() -> None:
    short = parse_plan(
        {"initialization": {"sample_rate": 50, "pose": {"origin": ORIGIN}}, "segments": [{"duration_s": 2}]}
    )
    assert (short.start_time_ns, short.sample_rate, short.interval_ns, short.counts) == (0, 50.0, 20_000_000, [100])
    assert short.pose == Pose(Place(38.0, -122.0, 5.0))
    assert (astuple(short.pose.position), short.pose.quaternion) == ((0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0))
    assert (short.mag, short.acc, short.gyro) == (Magnetometer(), Sensor(), Sensor())
    assert Sensor().calibration.matrix == Magnetometer().soft_iron == tuple(map(tuple, np.eye(3).tolist()))
    assert (short.field, short.temperature, short.timing) == ((0.0, 1.0, 0.0), None, Timing(0.0, 0.0))
    (segment,) = short.segments
    assert (segment.name, segment.rotation_rpy_degrees, segment.level, segment.path) == (
        "segment1",
        Turn(),
        "none",
        None,
    )
    assert astuple(Turn()) == segment.distortion == (0.0, 0.0, 0.0)
    assert short.notes == ()


def test_members_that_are_not_known_are_told() -> None:
    odd = plan(turning(1, 2, 3, magnetic_distorsion=1.0), sampel_rate=3)
    assert parse_plan(odd | {"version": 2}).notes == (
        "initialization.sampel_rate is not known and has no effect",
        "segments[0].magnetic_distorsion is not known and has no effect",
        "version is not known and has no effect",
    )


def test_a_date_without_a_model_is_told() -> None:
    dated = plan(magnetic_field={"date": "2026-03-01", "model": None})
    assert parse_plan(dated).notes == ("initialization.magnetic_field.date has no effect without a model",)


def with_member(path: str, value: Any) -> dict[str, Any]:
    """A plan with one member set, such as `segments[0].duration_s`."""
    made = json.loads(json.dumps(plan(turning(1, 2, 3), turning(4, 5, 6))))
    *way, last = [int(key) if key.isdigit() else key for key in re.findall(r"\w+", path)]
    inner: Any = made
    for key in way:
        inner = inner[key] if isinstance(inner, list) else inner.setdefault(key, {})
    inner[last] = value
    return made  # type: ignore[no-any-return]


SINGULAR = [[1, 2, 3], [2, 4, 6], [0, 0, 1]]


IMPOSSIBLE = [
    ("initialization", None, "initialization is missing"),
    ("initialization", [], "initialization is [], expected a JSON object"),
    ("initialization.sample_rate", None, "initialization.sample_rate is missing"),
    ("initialization.sample_rate", 0, "initialization.sample_rate is 0, expected a number above 0"),
    ("initialization.sample_rate", "30", "initialization.sample_rate is '30', expected a number"),
    ("initialization.sample_rate", True, "initialization.sample_rate is True"),
    ("initialization.sample_rate", float("nan"), "initialization.sample_rate is nan"),
    ("initialization.sample_rate", 10**400, "initialization.sample_rate is 1000"),
    ("initialization.sample_rate", 2e9, "initialization.sample_rate is 2e+09"),
    ("initialization.start_time_ns", -1, "initialization.start_time_ns is -1"),
    ("initialization.start_time_ns", 1.5, "initialization.start_time_ns is 1.5, expected a whole number"),
    ("initialization.start_time_ns", 2**63 - 1, "initialization.start_time_ns is 9223372036854775807, and the last"),
    ("initialization.pose.origin.lat", 91, "initialization.pose.origin.lat is 91"),
    ("initialization.pose.origin.lng", 1000, "initialization.pose.origin.lng is 1000"),
    ("initialization.pose.rotation", {"w": 0, "x": 0}, "initialization.pose.rotation is a quaternion of length 0"),
    ("initialization.pose.position", [0, 0, 0], "initialization.pose.position is [0, 0, 0], expected a JSON object"),
    ("initialization.mag.calibration.matrix", SINGULAR, "initialization.mag.calibration.matrix is [[1, 2, 3]"),
    ("initialization.acc.calibration.matrix", [[1, 0], [0, 1]], "initialization.acc.calibration.matrix is [[1, 0]"),
    ("initialization.gyro.calibration.matrix", np.zeros((3, 3)).tolist(), "initialization.gyro.calibration.matrix"),
    ("initialization.gyro.calibration.bias.y", "a", "initialization.gyro.calibration.bias.y is 'a'"),
    ("initialization.mag.soft_iron", SINGULAR, "initialization.mag.soft_iron is"),
    ("initialization.acc.noise.white", -1, "initialization.acc.noise.white is -1, expected 0 or more"),
    ("initialization.temperature.time_constant_s", 0, "initialization.temperature.time_constant_s is 0"),
    ("initialization.temperature.start_celsius", -300, "initialization.temperature.start_celsius is -300"),
    ("initialization.timing.drop_probability", 1, "initialization.timing.drop_probability is 1"),
    ("initialization.timing.jitter_s", -0.1, "initialization.timing.jitter_s is -0.1"),
    ("initialization.magnetic_field.dip_degrees", 91, "initialization.magnetic_field.dip_degrees is 91"),
    (
        "initialization.magnetic_field.model",
        "igrf2",
        "initialization.magnetic_field.model is 'igrf2', expected one of wmm",
    ),
    ("initialization.magnetic_field", {"model": "wmm"}, "initialization.magnetic_field.date is missing"),
    (
        "initialization.magnetic_field",
        {"model": "wmm", "date": "1.1.2026"},
        "initialization.magnetic_field.date is '1.1",
    ),
    (
        "initialization.magnetic_field",
        {"model": "wmm", "date": "2031-01-01"},
        "initialization.magnetic_field.date is 2031",
    ),
    (
        "initialization.magnetic_field",
        {"model": "wmm", "date": "2026-01-01"},
        "initialization.magnetic_field.model needs",
    ),
    (
        "initialization.magnetic_field",
        {"model": "wmm", "date": "2026-01-01", "dip_degrees": 3},
        "initialization.magnetic_field.dip_degrees is given beside a model",
    ),
    ("segments", [], "segments is missing or empty"),
    ("segments", {"a": 1}, "segments is missing or empty"),
    ("segments[1]", 3, "segments[1] is 3, expected a JSON object"),
    ("segments[1].duration_s", None, "segments[1].duration_s is missing"),
    ("segments[1].duration_s", 0, "segments[1].duration_s is 0"),
    ("segments[1].duration_s", -3, "segments[1].duration_s is -3"),
    ("segments[1].duration_s", 0.001, "segments[1].duration_s is 0.001, shorter than one sample"),
    ("segments[1].duration_s", 1e9, "segments[1].duration_s makes more than 20,000,000 samples"),
    ("segments[1].name", 7, "segments[1].name is 7, expected a text"),
    ("segments[1].rotation_rpy_degrees", 45, "segments[1].rotation_rpy_degrees is 45"),
    ("segments[1].rotation_rpy_degrees.yaw", "x", "segments[1].rotation_rpy_degrees.yaw is 'x'"),
    ("segments[1].rotation_rpy_degrees.pitch", 18_000, "segments[1].rotation_rpy_degrees.pitch is 18000 in 1 s"),
    ("segments[1].path", {}, "segments[1].path.to is missing"),
    ("segments[1].magnetic_distortion", -1, "segments[1].magnetic_distortion is -1"),
    ("segments[1].mag_distortion", {}, "segments[1].mag_distortion.level is missing"),
    (
        "segments[1].mag_distortion.level",
        "medium",
        "segments[1].mag_distortion.level is 'medium', expected one of none",
    ),
    ("segments[1].mag_distortion", {"level": "low", "world_x": "a"}, "segments[1].mag_distortion.world_x is 'a'"),
    ("segments[1].mag_distortion", {"level": "low", "world_x": 0}, "segments[1].mag_distortion.world_x and world_y"),
    (
        "segments[1]",
        turning(0, 0, 0, magnetic_distortion=0, mag_distortion={"level": "high"}),
        "segments[1].magnetic_distortion is 0, but the level is high",
    ),
    (
        "segments[1].mag_distortion",
        {"level": "low", "source": {"radius_m": 0}},
        "segments[1].mag_distortion.source.radius_m is 0",
    ),
]


@pytest.mark.parametrize(("path", "value", "message"), IMPOSSIBLE)
def test_an_impossible_plan_is_refused_by_the_name_of_its_field(path: str, value: Any, message: str) -> None:
    with pytest.raises(PlanError) as error:
        simulate(with_member(path, value))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_number_beside_the_level_none_is_told() -> None:
    odd = turning(0, 0, 0, magnetic_distortion=2.5, mag_distortion={"level": "none"})
    assert parse_plan(plan(odd)).notes == (
        "segments[0].magnetic_distortion is 2.5 and has no effect: the level is none",
    )


def test_a_file_that_is_no_plan_is_named(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for text, message in (
        ("{", "is no JSON"),
        ("[1]", "the plan is [1], expected a JSON object"),
        ("[" * 10**5, "is no JSON"),
    ):
        path.write_text(text)
        with pytest.raises(PlanError) as error:
            load_plan(path)
        assert str(error.value).startswith(f"{path}: {message}")
    with pytest.raises(PlanError, match=r"absent\.json: cannot be read"):
        load_plan(tmp_path / "absent.json")
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(PlanError, match="is no JSON"):
        load_plan(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


PATHS = sorted({row[0] for row in IMPOSSIBLE})


@settings(max_examples=200, deadline=None)
@given(path=st.sampled_from(PATHS), value=json_values)
def test_whatever_stands_in_a_plan_it_is_carried_out_or_refused(path: str, value: Any) -> None:
    try:
        read = parse_plan(with_member(path, value))
    except PlanError:
        return
    if sum(read.counts) < 10_000:
        made = simulate(read)
        assert all(np.isfinite(values).all() for values in made.topics.values())
        assert len(made.times_ns) == sum(read.counts)


PAGE = "docs/synthesis.md"


@pytest.mark.parametrize("block", blocks(PAGE, "json"), ids=lambda block: block.heading)
def test_plans_of_the_page_are_carried_out(block: Block) -> None:
    made = simulate(json.loads(block.text))
    assert made.plan.notes == ()
    assert made.topics["mag_raw"].any()


def test_the_pages_python_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (code,), (printed,) = blocks(PAGE, "python"), blocks(PAGE, "text")
    exec(compile(code.text, PAGE, "exec"), {})
    assert capsys.readouterr().out == printed.text


def test_the_page_knows_every_member() -> None:
    """Members of the plan with everything are those that its tables name."""

    def members(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set(value).union(*map(members, value.values()))
        return set().union(*map(members, value)) if isinstance(value, list) else set()

    text = ROOT.joinpath(PAGE).read_text()
    tables = "\n".join(line for line in text.partition("## The whole format")[2].splitlines() if line.startswith("|"))
    everything = max((json.loads(block.text) for block in blocks(PAGE, "json")), key=lambda found: len(str(found)))
    named = set(re.findall(r"\w+", tables)) | {"initialization", "segments", "white", "bias_instability", "random_walk"}
    assert members(everything) - named - {"to"} == set()


synth = partial(invoke, "synth")


@pytest.fixture
def a_plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    segments = [turning(90, 0, 0), turning(0, 90, 0, mag_distortion={"level": "low", "world_x": 0.3})]
    path.write_text(json.dumps(plan(*segments, mag={"noise": {"white": 0.01}}, start_time_ns=10**18)))
    return path


def test_a_plan_becomes_a_recording_with_labels_and_experiment(tmp_path: Path, a_plan: Path) -> None:
    out, labels, experiment = (tmp_path / name for name in ("data/x.mcap", "data/x.labels.json", "x.experiment.json"))
    out.parent.mkdir()
    done = synth(a_plan, out, "--labels", labels, "--experiment", experiment, "--seed", "4", "--json")
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
    synth(a_plan, out, "--seed", "5")
    assert out.read_bytes() != bytes_of_seed_4


def test_random_plans(tmp_path: Path) -> None:
    done = synth("--random", "2", "--classes", "high, none", "--rounds", "1", "--rate", "20", tmp_path / "out")
    assert done.stdout.startswith(f"{tmp_path / 'out'}: 2 synthetic recordings, ")
    assert len(list((tmp_path / "out").rglob("*.mcap"))) == 2
    again = synth("--random", "2", "--json", tmp_path / "out", status=1)
    assert again.stderr == f"kymo: {tmp_path / 'out'}: holds something already; name an empty folder\n"
    wrong = synth("--random", "2", "--classes", "none,much", tmp_path / "other", status=1)
    assert wrong.stderr == "kymo: classes are none, much; expected some of none, low, high\n"


def test_an_impossible_plan_is_one_line_and_1(tmp_path: Path, a_plan: Path) -> None:
    bad = json.loads(a_plan.read_text())
    bad["segments"][1]["duration_s"] = -5
    a_plan.write_text(json.dumps(bad))
    done = synth(a_plan, tmp_path / "x.mcap", status=1)
    expected = f"kymo: {a_plan}: segments[1].duration_s is -5, expected a number above 0\n"
    assert (done.stdout, done.stderr) == ("", expected)
    assert not (tmp_path / "x.mcap").exists()


def test_an_unknown_member_is_told_and_the_rest_is_done(tmp_path: Path, a_plan: Path) -> None:
    odd = json.loads(a_plan.read_text()) | {"comment": "mine"}
    a_plan.write_text(json.dumps(odd))
    done = synth(a_plan, tmp_path / "x.mcap")
    assert done.stdout == f"{tmp_path / 'x.mcap'}: 200 samples, 2 s, synthetic\n"
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
    synth(*arguments, status=2)
    synth("--random", "1", "--labels", "l.json", "out", status=2)
    synth("plan.json", "x.mcap", "--experiment", "e.json", status=2)
