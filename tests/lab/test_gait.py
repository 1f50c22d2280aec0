"""Synthetic gait: the figures that its sources name come out of the signals, and the same seed gives the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kymo.lab.prepare.gait import GRAVITY, NO_FAULTS, Faults, GaitPlan, GaitRun, make_runner, write_gait
from kymo.streams.errors import SourceError

PLAN = GaitPlan(subjects=1, speeds=(3.0,), surfaces=("treadmill",), run_s=6, stand_s=3, seed=4)


def long_run(speed: float, surface: str = "overground", runner: int = 1) -> GaitRun:
    return GaitRun(make_runner(runner, 0), speed, surface, run_s=120.0, seed=5)


def magnitude(run: GaitRun, foot: str, times: np.ndarray) -> np.ndarray:
    return np.linalg.norm(run.measure(foot, times)[:, :3], axis=1)


def test_stride_rate_is_the_sources_at_the_speeds_that_it_measured() -> None:
    """77, 79 and 80 strides a minute at 2.4, 2.6 and 2.9 m/s, and the mean runner has tempo 1."""
    rates = [60 / long_run(v).stride_s / make_runner(1, 0).tempo for v in (2.4, 2.6, 2.9)]
    np.testing.assert_allclose(rates, [77, 79, 80], atol=1.0)
    assert abs(np.mean([make_runner(i, 0).tempo for i in range(1, 200)]) - 1) < 0.01


@pytest.mark.parametrize("speed", [2.5, 3.5])
def test_the_signal_repeats_every_stride(speed: float) -> None:
    """The stride time is found again in the spectrum of the acceleration, which knows nothing of how it was made."""
    run = long_run(speed)
    times = np.arange(10_000, 50_000) / 500
    power = np.abs(np.fft.rfft(magnitude(run, "left", times) * np.hanning(len(times)))) ** 2
    frequencies = np.fft.rfftfreq(len(times), 1 / 500)
    low = (frequencies > 0.9) & (frequencies < 1.9)
    assert frequencies[low][np.argmax(power[low])] == pytest.approx(1 / run.stride_s, rel=0.03)


def test_feet_strike_in_turns_half_a_stride_apart() -> None:
    left, right = long_run(3.0).strikes_s
    count = min(len(left), len(right)) - 1
    assert ((left[:count] < right[:count]) & (right[:count] < left[1 : count + 1])).all()
    share = np.mean((right[:count] - left[:count]) / np.diff(left)[:count])
    assert share == pytest.approx(0.5 + make_runner(1, 0).asymmetry / 4, abs=0.005)
    assert np.std(np.diff(left)) / np.mean(np.diff(left)) < 0.025


def test_faster_is_harder_and_a_foot_at_rest_feels_gravity() -> None:
    times = np.arange(0, 60_000) / 500
    peaks = [float(np.quantile(magnitude(long_run(v), "left", times), 0.999)) for v in (2.5, 3.0, 3.5)]
    assert peaks == sorted(peaks)
    assert all(4 * GRAVITY < peak < 16 * GRAVITY for peak in peaks)
    still = long_run(3.0).measure("right", np.array([0.5, 1.0]))
    np.testing.assert_allclose(np.linalg.norm(still[:, :3], axis=1), GRAVITY, rtol=1e-12)
    np.testing.assert_allclose(still[:, 3:], 0, atol=1e-12)


def test_a_treadmill_makes_contact_longer_and_flatter() -> None:
    ground, belt = long_run(3.0), long_run(3.0, "treadmill")
    assert (belt.stance - ground.stance) * belt.stride_s == pytest.approx(0.005)
    # Toes sink from the angle at contact to flat: the rotation in between is smaller by 9.8 degrees.
    fall = []
    for run in (ground, belt):
        strike = run.strikes_s[0][40]
        times = np.arange(strike, strike + 0.25 * run.stance * run.stride_s, 1e-4)
        turned = run.measure("left", times)[:, 3:]
        fall.append(np.degrees(np.linalg.norm(turned.sum(axis=0)) * 1e-4))
    assert fall[0] - fall[1] == pytest.approx(9.8, abs=1.5)


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_gait(tmp_path / name, PLAN)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert [f.as_posix() for f in files] == [
        "Raw/SENSOR001/S01_T1_3_tread.csv",
        "Raw/SENSOR002/S01_T1_3_tread.csv",
        "truth.json",
    ]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    write_gait(tmp_path / "c", GaitPlan(subjects=1, speeds=(3.0,), surfaces=("treadmill",), run_s=6, seed=5))
    assert (tmp_path / "a" / files[0]).read_bytes() != (tmp_path / "c" / files[0]).read_bytes()


def test_files_and_truth_agree(tmp_path: Path) -> None:
    faults = Faults(spikes_per_minute=60, gaps_per_minute=20, repeats_per_minute=20, loose_s=0.5)
    plan = GaitPlan(subjects=1, speeds=(3.0,), surfaces=("overground",), run_s=6, seed=4, faults=faults)
    write_gait(tmp_path, plan)
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert "synthetic" in truth["note"]
    for file in truth["files"]:
        lines = (tmp_path / "Raw" / file["file"]).read_text().splitlines()
        assert lines[0] == (
            "t,ax,ay,az,gx,gy,gz,foot,subject_id,trial_id,speed,tread or overground,seconds_10k,score_10k,usabledata"
        )
        assert len(lines) - 1 == file["rows"]
        times = np.array([float(line.split(",")[0]) for line in lines[1:]])
        steps = np.rint(np.diff(times) * 500).astype(int)
        assert [{"before_row": i + 3, "samples": steps[i] - 1} for i in np.flatnonzero(steps > 1)] == file["gaps"]
        assert (np.flatnonzero(steps == 0) + 3).tolist() == file["repeated_rows"]
        assert sum(line.endswith(",0") for line in lines[1:]) == file["unusable_rows"]
        assert len(file["spikes"]) >= 8


def test_without_faults_there_are_none(tmp_path: Path) -> None:
    plan = GaitPlan(subjects=1, speeds=(3.0,), surfaces=("treadmill",), run_s=6, faults=NO_FAULTS)
    for file in write_gait(tmp_path, plan):
        assert (file["gaps"], file["repeated_rows"], file["spikes"]) == ([], [], [])
        assert file["clock"] in (None, {"offset_s": 0.0, "drift_ppm": 0.0})


@pytest.mark.parametrize(
    ("field", "value"), [("subjects", 0), ("speeds", (30.0,)), ("surfaces", ("ice",)), ("run_s", 1)]
)
def test_refuses_plans_out_of_range(field: str, value: object) -> None:
    with pytest.raises(SourceError, match=f"{field} = "):
        GaitPlan(**{field: value})  # type: ignore[arg-type]
