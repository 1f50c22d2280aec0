"""Physics of synthetic recordings, each against a formula of its own: distortions, paths, noise, temperature, timing, geomagnetism."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import pytest
from motion_plans import plan, turning
from scipy.spatial.transform import Rotation

from kymo.lab.synth.plan import Place, dip_and_declination
from kymo.lab.synth.simulate import Synthesis, simulate

G0 = 9.80665


def distorted(**members: Any) -> Any:
    """What a distortion adds to the field, in the world frame, (n, 3)."""
    made = simulate(plan(turning(70, 20, 30, 1.0, **members)))
    world = Rotation.from_quat(made.topics["pose_truth"][:, 6:], scalar_first=True).apply(made.topics["mag_truth"])
    return world - [0.0, 1.0, 0.0], made.plan.segments[0].level


WORLD = {"world_x": 0.3, "world_y": -0.2, "world_z": 0.1}


@pytest.mark.parametrize(
    ("members", "vector", "level"),
    [
        ({}, (0, 0, 0), "none"),
        ({"magnetic_distortion": 0}, (0, 0, 0), "none"),
        ({"magnetic_distortion": 1.0}, (1.0, 0, 0), "low"),
        ({"magnetic_distortion": 2.5}, (2.5, 0, 0), "high"),
        ({"magnetic_distortion": 0.4}, (0.4, 0, 0), "low"),
        ({"magnetic_distortion": 1.24}, (1.24, 0, 0), "low"),
        ({"magnetic_distortion": 1.5}, (1.5, 0, 0), "high"),
        # The level decides, the number is its strength.
        ({"magnetic_distortion": 1.5, "mag_distortion": {"level": "high"}}, (1.5, 0, 0), "high"),
        ({"magnetic_distortion": 0.01, "mag_distortion": {"level": "low"}}, (0.01, 0, 0), "low"),
        ({"magnetic_distortion": 2.5, "mag_distortion": {"level": "low"}}, (2.5, 0, 0), "low"),
        ({"magnetic_distortion": 2.5, "mag_distortion": {"level": "none"}}, (0, 0, 0), "none"),
        ({"magnetic_distortion": 0, "mag_distortion": {"level": "low"} | WORLD}, (0.06, -0.04, 0.02), "low"),
        ({"mag_distortion": {"level": "none"} | WORLD}, (0, 0, 0), "none"),
        ({"mag_distortion": {"level": "low"} | WORLD}, (0.06, -0.04, 0.02), "low"),
        ({"mag_distortion": {"level": "high"} | WORLD}, (0.3, -0.2, 0.1), "high"),
        ({"mag_distortion": {"level": "high", "world_z": -1.0}}, (0, 0, -1), "high"),
        ({"magnetic_distortion": 2.5, "mag_distortion": {"level": "high"} | WORLD}, (0.3, -0.2, 0.1), "high"),
        ({"magnetic_distortion": 1.0, "mag_distortion": WORLD}, (0.06, -0.04, 0.02), "low"),
        # Without a vector it is never silently nothing.
        ({"mag_distortion": {"level": "low"}}, (1.0, 0, 0), "low"),
        ({"mag_distortion": {"level": "high"}}, (2.5, 0, 0), "high"),
        ({"magnetic_distortion": 3.0, "mag_distortion": {"level": "high"}}, (3.0, 0, 0), "high"),
    ],
)
def test_a_distortion_is_a_vector_of_the_world(members: dict[str, Any], vector: Any, level: str) -> None:
    added, found = distorted(**members)
    np.testing.assert_allclose(added, np.broadcast_to(vector, added.shape), atol=1e-12)
    assert found == level


def test_a_distortion_does_not_touch_the_other_sensors() -> None:
    plain, other = (simulate(plan(turning(70, 20, 30, **more))) for more in ({}, {"magnetic_distortion": 2.5}))
    for topic in ("acc_truth", "acc_raw", "gyro_truth", "gyro_raw", "pose_truth"):
        assert (plain.topics[topic] == other.topics[topic]).all()


def moving(**more: Any) -> Synthesis:
    path = {"path": {"to": {"x": 4.0, "y": -2.0, "z": 1.0}}}
    return simulate(plan(turning(0, 0, 90, 4.0, **path, **more), pose={"position": {"x": 1.0, "y": 1.0, "z": 1.0}}))


def test_a_path_begins_and_ends_at_rest_and_is_felt() -> None:
    made = moving()
    pose = made.topics["pose_truth"]
    place, dt = pose[:, 3:6], 0.01
    np.testing.assert_allclose(place[-1], [4.0, -2.0, 1.0], atol=1e-12)
    speed = np.diff(place, axis=0) / dt
    assert np.abs(speed[[0, -1]]).max() < 1e-2 * np.abs(speed).max()
    second = np.diff(speed, axis=0) / dt  # at samples 1 … n-2
    felt = Rotation.from_quat(pose[:, 6:], scalar_first=True).apply(made.topics["acc_truth"]) - [0, 0, 1]
    np.testing.assert_allclose(felt[1:-1], second / G0, atol=2e-5)
    assert np.abs(felt).max() > 0.05, "there is something to feel"


def test_whoever_does_not_move_stays_where_the_path_ended() -> None:
    segments = [turning(0, 0, 90, 1.0, path={"to": {"x": 2.0}}), turning(0, 0, 0, 1.0)]
    made = simulate(plan(*segments))
    assert (made.topics["pose_truth"][100:, 3:6] == [2.0, 0.0, 0.0]).all()
    np.testing.assert_allclose(np.linalg.norm(made.topics["acc_truth"][100:], axis=1), 1.0, atol=1e-12)


def test_a_distortion_fades_with_the_distance_cubed() -> None:
    source = {"position": {"x": 1.0, "y": 1.0, "z": 1.0}, "radius_m": 0.5}
    made = moving(mag_distortion={"level": "high", "source": source} | WORLD)
    pose = made.topics["pose_truth"]
    world = Rotation.from_quat(pose[:, 6:], scalar_first=True).apply(made.topics["mag_truth"]) - [0, 1, 0]
    distance = np.linalg.norm(pose[:, 3:6] - 1.0, axis=1)
    share = np.where(distance <= 0.5, 1.0, (0.5 / np.maximum(distance, 0.5)) ** 3)
    np.testing.assert_allclose(world, share[:, np.newaxis] * [0.3, -0.2, 0.1], atol=1e-12)
    assert share.min() < 0.01
    assert share.max() == 1.0


def allan(values: Any, rate: float, tau_s: float) -> Any:
    """Overlapping Allan deviation of each axis (IEEE Std 952, annex C)."""
    m = round(tau_s * rate)
    theta = np.cumsum(values, axis=0) / rate
    second = theta[2 * m :] - 2 * theta[m:-m] + theta[: -2 * m]
    return np.sqrt((second**2).mean(axis=0) / (2 * (m / rate) ** 2))


@pytest.mark.parametrize(
    ("term", "amount", "tau_s", "expected", "tolerance"),
    [
        ("white", 0.02, 0.1, 0.02 / np.sqrt(0.1), 0.03),
        ("white", 0.02, 1.0, 0.02, 0.06),
        ("bias_instability", 0.02, 1.0, 0.02 * np.sqrt(2 * np.log(2) / np.pi), 0.06),
        ("bias_instability", 0.02, 8.0, 0.02 * np.sqrt(2 * np.log(2) / np.pi), 0.15),
        ("random_walk", 0.02, 1.0, 0.02 * np.sqrt(1.0 / 3), 0.06),
        ("random_walk", 0.02, 8.0, 0.02 * np.sqrt(8.0 / 3), 0.2),
    ],
)
def test_noise_has_the_allan_deviation_that_was_asked_for(
    term: str, amount: float, tau_s: float, expected: float, tolerance: float
) -> None:
    made = simulate(plan({"duration_s": 1000.0}, rate=50, gyro={"noise": {term: amount}}), seed=5)
    error = made.topics["gyro_raw"] - made.topics["gyro_truth"]
    assert np.sqrt((allan(error, 50, tau_s) ** 2).mean()) == pytest.approx(expected, rel=tolerance)
    assert np.abs(np.corrcoef(np.diff(error, axis=0).T) - np.eye(3)).max() < 0.05, "axes know nothing of each other"


def test_noise_is_in_units_of_the_truth_before_the_inverse_calibration() -> None:
    calibration = {"matrix": [[0.5, 0, 0], [0, 0.25, 0], [0, 0, 2.0]]}
    plain, scaled = (
        simulate(plan(acc={"noise": {"white": 0.01}} | more), seed=1) for more in ({}, {"calibration": calibration})
    )
    np.testing.assert_allclose(scaled.topics["acc_raw"] * [0.5, 0.25, 2.0], plain.topics["acc_raw"], rtol=1e-12)


def test_each_term_of_each_sensor_has_its_own_random_numbers() -> None:
    white, walk = {"white": 0.01}, {"random_walk": 0.01}
    both, first, second = (
        simulate(plan(mag={"noise": noise}), seed=1).topics["mag_raw"] for noise in (white | walk, white, walk)
    )
    still = simulate(plan()).topics["mag_raw"]
    np.testing.assert_allclose(both - still, (first - still) + (second - still), atol=1e-12)
    acc = simulate(plan(acc={"noise": white}, mag={"noise": white}), seed=1)
    alone = simulate(plan(acc={"noise": white}), seed=1)
    assert (acc.topics["acc_raw"] == alone.topics["acc_raw"]).all()
    a, b = (acc.topics[f"{name}_raw"] - acc.topics[f"{name}_truth"] for name in ("acc", "mag"))
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.15


def test_iron_that_moves_along_bends_the_field() -> None:
    iron = [[1.1, 0.05, 0.0], [0.0, 0.9, 0.0], [0.02, 0.0, 1.0]]
    made = simulate(plan(turning(80, 10, 20), mag={"soft_iron": iron}))
    np.testing.assert_allclose(made.topics["mag_raw"], made.topics["mag_truth"] @ np.array(iron).T, atol=1e-12)


def test_sensors_drift_as_they_warm() -> None:
    warm = {"start_celsius": 20.0, "end_celsius": 40.0, "reference_celsius": 25.0, "time_constant_s": 2.0}
    sensor = {"temperature": {"bias_per_celsius": {"x": 0.001, "y": 0.0, "z": -0.002}, "scale_per_celsius": 0.0005}}
    made = simulate(plan({"duration_s": 5.0}, temperature=warm, acc=sensor))
    above = 40.0 - 20.0 * np.exp(-np.arange(500) * 0.01 / 2.0) - 25.0
    expected = np.stack([0.001 * above, 0 * above, 1 + 0.0005 * above - 0.002 * above], axis=1)
    np.testing.assert_allclose(made.topics["acc_raw"], expected, atol=1e-12)
    assert (made.topics["mag_raw"] == made.topics["mag_truth"]).all()


def test_lost_samples_are_missing_from_what_is_raw() -> None:
    made = simulate(plan({"duration_s": 100.0}, timing={"drop_probability": 0.1}), seed=2)
    assert len(made.times_ns) == 10_000
    assert len(made.raw_index) == pytest.approx(9000, abs=4 * np.sqrt(10_000 * 0.1 * 0.9))
    assert (made.raw_times_ns == made.times_ns[made.raw_index]).all()
    assert all(len(made.topics[f"{name}_raw"]) == len(made.raw_index) for name in ("mag", "acc", "gyro"))
    assert len(made.topics["mag_truth"]) == 10_000


def test_jitter_moves_times_and_keeps_their_order() -> None:
    made = simulate(plan({"duration_s": 100.0}, timing={"jitter_s": 0.001}, start_time_ns=10**18), seed=2)
    moved = (made.raw_times_ns - made.times_ns) * 1e-9
    assert moved[1:].std() == pytest.approx(0.001, rel=0.05)
    wild = simulate(plan({"duration_s": 100.0}, timing={"jitter_s": 10.0, "drop_probability": 0.5}), seed=2)
    assert (np.diff(wild.raw_times_ns) > 0).all()
    assert wild.raw_times_ns[0] >= 0


#: Dip and declination, degrees, by IGRF-14 (another model, by other authors): they differ by 0.1 degrees at most here.
IGRF = [
    (38.446421508551126, -122.6870156573012, 0.0, "2026-01-01", 61.567, 13.088),
    (60.0, 25.0, 100.0, "2022-07-01", 73.519, 9.749),
    (-33.9, 151.2, 50.0, "2017-03-15", -64.328, 12.584),
    (0.0, 0.0, 0.0, "2012-06-01", -29.430, -5.784),
    (78.0, 15.0, 0.0, "2029-12-31", 82.402, 13.693),
    (52.5, 13.4, 0.0, "2025-06-01", 68.048, 5.009),
]


@pytest.mark.parametrize(("lat", "lng", "height", "day", "dip", "declination"), IGRF)
def test_the_earths_field_is_that_of_another_model(
    lat: float, lng: float, height: float, day: str, dip: float, declination: float
) -> None:
    found = dip_and_declination(Place(lat, lng, height), date.fromisoformat(day))
    assert found == pytest.approx((dip, declination), abs=0.1)


def test_a_plan_may_ask_for_the_earths_field_at_its_origin() -> None:
    pose = {"origin": {"lat": 38.446, "lng": -122.687, "height": 0.0}}
    model = {"model": "wmm", "date": "2026-01-01"}
    (vector,) = {tuple(row) for row in simulate(plan(pose=pose, magnetic_field=model)).topics["mag_truth"].tolist()}
    assert np.degrees(np.arcsin(-vector[2])) == pytest.approx(61.567, abs=0.1)
    assert np.degrees(np.arctan2(vector[0], vector[1])) == pytest.approx(13.088, abs=0.1)
    assert np.linalg.norm(vector) == pytest.approx(1.0)
    start = simulate(plan(pose=pose, magnetic_field={"model": "wmm"}, start_time_ns=1767225600 * 10**9))
    assert start.topics["mag_truth"][0].tolist() == list(vector), "without a date, the recording's start counts"
