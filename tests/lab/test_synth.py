"""Synthetic recordings: the published one to the last digit, orientation and fields against scipy, the file against mcap's reader."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documents import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader
from mcap.records import Message, Schema
from motion_plans import plan, turning
from scipy.spatial.transform import Rotation

from kymo.lab.synth.files import synth
from kymo.lab.synth.mcap_file import CHUNK_SAMPLES, mcap_bytes, write_mcap
from kymo.lab.synth.simulate import ORDER, TOPICS, Synthesis, simulate

PUBLISHED = SHARED / "data/imu_mcap"
needs_published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="shared/data/imu_mcap is absent")


def messages(path: Path) -> list[tuple[str, Message, dict[str, Any]]]:
    """Everything in a file, in its order, checksums checked."""
    with path.open("rb") as raw:
        found = make_reader(raw, validate_crcs=True).iter_messages(log_time_order=False)
        return [(channel.topic, message, json.loads(message.data)) for _, channel, message in found]


@needs_published
def test_the_published_recording_comes_out_to_the_last_digit(tmp_path: Path) -> None:
    path = tmp_path / "basic.mcap"
    synth(PUBLISHED / "default_plan.json", path)
    expected, found = messages(PUBLISHED / "basic_synthetic.mcap"), messages(path)
    assert len(expected) == 7 * 1808
    for (topic, message, value), (found_topic, found_message, found_value) in zip(expected, found, strict=True):
        assert (found_topic, found_message.channel_id, found_message.sequence) == (topic, message.channel_id, 0)
        assert (found_message.log_time, found_message.publish_time) == (message.log_time, message.publish_time)
        assert (found_value["id"], found_value["timestamp"]) == (value["id"], value["timestamp"])
    numbers = [np.concatenate([item[2]["values"] for item in items]) for items in (expected, found)]
    assert (np.abs(numbers[1] - numbers[0]) / np.maximum(1.0, np.abs(numbers[0]))).max() < 1e-9


@needs_published
def test_channels_and_schema_are_those_of_the_published_recording(tmp_path: Path) -> None:
    path = tmp_path / "basic.mcap"
    synth(PUBLISHED / "default_plan.json", path)
    with path.open("rb") as ours, (PUBLISHED / "basic_synthetic.mcap").open("rb") as theirs:
        found, expected = (make_reader(raw).get_summary() for raw in (ours, theirs))
    assert found is not None
    assert expected is not None
    assert found.channels == expected.channels
    assert found.schemas == expected.schemas
    assert found.statistics is not None
    assert expected.statistics is not None
    for name in ("message_count", "channel_message_counts", "message_start_time", "message_end_time"):
        assert getattr(found.statistics, name) == getattr(expected.statistics, name)


angles = st.floats(-1000, 1000)


@settings(max_examples=25, deadline=None)
@given(
    turns=st.lists(st.tuples(angles, angles, angles, st.integers(20, 60)), min_size=1, max_size=4),
    start=st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: bool(np.linalg.norm(q) > 0.1)),
    rate=st.sampled_from([30, 50, 99.5, 104, 400]),
    dip=st.floats(-90, 90),
)
def test_orientation_and_fields_are_scipys(
    turns: list[tuple[float, ...]], start: tuple[float, ...], rate: float, dip: float
) -> None:
    """Whatever the plan, the orientation is a product of small rotations, and sensors see the world turned back."""
    made = simulate(
        plan(
            *(turning(roll, pitch, yaw, hundredths / 100) for roll, pitch, yaw, hundredths in turns),
            rate=rate,
            pose={"rotation": dict(zip("wxyz", start, strict=True))},
            magnetic_field={"dip_degrees": dip, "declination_degrees": 10.0},
        )
    )
    now, expected, rates = Rotation.from_quat(start, scalar_first=True), [], []
    for *turn, hundredths in turns:
        duration = hundredths / 100
        # Of fixed axes, roll first.
        step = Rotation.from_euler("xyz", np.array(turn) / math.floor(duration * rate), degrees=True)
        for _ in range(math.ceil(Fraction(math.floor(10**9 * duration), 10**9 // Fraction(str(rate))))):
            now = now * step
            expected.append(now)
            rates.append(2 * rate * step.as_quat()[:3])
    orientation = Rotation.concatenate(expected)
    found = Rotation.from_quat(made.topics["pose_truth"][:, 6:], scalar_first=True)
    assert (found * orientation.inv()).magnitude().max() < 1e-9
    assert np.abs(np.linalg.norm(made.topics["pose_truth"][:, 6:], axis=1) - 1).max() < 1e-12
    field = Rotation.from_euler("xz", [-dip, -10], degrees=True).apply(
        [0, 1, 0]
    )  # tipped down, then turned to the east
    np.testing.assert_allclose(made.topics["mag_truth"], orientation.inv().apply(field), atol=1e-9)
    np.testing.assert_allclose(made.topics["acc_truth"], orientation.inv().apply([0, 0, 1]), atol=1e-9)
    np.testing.assert_allclose(made.topics["gyro_truth"], rates, atol=1e-9)
    assert made.times_ns.tolist() == [i * int(10**9 // rate) for i in range(len(expected))]


def test_half_an_hour_of_one_segment_drifts_no_more_than_rounding() -> None:
    made = simulate(plan(turning(36_000, 0, 0, 1800)))  # 100 whole turns in 180,000 steps
    assert len(made.times_ns) == 180_000
    end = made.topics["pose_truth"][-1, 6:]
    np.testing.assert_allclose(np.abs(end), [1, 0, 0, 0], atol=1e-11)


def test_a_raw_sample_calibrates_to_the_truth() -> None:
    matrix = [[2.0, 0.1, 0.0], [0.0, 0.5, 0.3], [0.2, 0.0, 1.0]]
    calibration = {"calibration": {"bias": {"x": 1.0, "y": -2.0, "z": 3.0}, "matrix": matrix}}
    made = simulate(plan(turning(90, 20, 30), mag=calibration, acc=calibration, gyro=calibration))
    for name in ("mag", "acc", "gyro"):
        truth = (made.topics[f"{name}_raw"] - [1.0, -2.0, 3.0]) @ np.array(matrix).T
        np.testing.assert_allclose(truth, made.topics[f"{name}_truth"], atol=1e-12)


NOISY = {
    "mag": {"noise": {"white": 0.001, "random_walk": 0.01}},
    "timing": {"drop_probability": 0.3, "jitter_s": 0.002},
}


def written(made: Synthesis, path: Path) -> dict[str, tuple[list[int], list[list[float]]]]:
    write_mcap(made, path)
    found: dict[str, tuple[list[int], list[list[float]]]] = {}
    for topic, message, value in messages(path):
        assert (value["id"], value["timestamp"]) == (topic, message.log_time)
        times, values = found.setdefault(topic, ([], []))
        times.append(message.log_time)
        values.append(value["values"])
    return found


@pytest.mark.parametrize("seconds", [0.02, CHUNK_SAMPLES / 100 - 0.01, CHUNK_SAMPLES / 100, 50.0])
@pytest.mark.parametrize("more", [{}, NOISY], ids=["plain", "noisy"])
def test_the_file_holds_every_bit(tmp_path: Path, seconds: float, more: dict[str, Any]) -> None:
    """However many chunks it takes, and whether samples are lost, mcap's reader gives what was computed."""
    made = simulate(plan(turning(123, 45, 6, seconds), **more), seed=3)
    found = written(made, tmp_path / "x.mcap")
    assert set(found) == set(ORDER)
    for topic, (times, values) in found.items():
        raw = topic.endswith("_raw")
        assert times == (made.raw_times_ns if raw else made.times_ns).tolist()
        assert np.array(values).tobytes() == np.ascontiguousarray(made.topics[topic]).tobytes()


def test_the_index_leads_to_messages_by_time_and_topic(tmp_path: Path) -> None:
    path = tmp_path / "x.mcap"
    synth(plan(turning(90, 0, 0, 60.0)), path)
    with path.open("rb") as raw:
        reader = make_reader(raw, validate_crcs=True)
        found = [
            m.log_time
            for _, _, m in reader.iter_messages(["acc_raw"], starting_at=30 * 10**9, ending_before=31 * 10**9)
        ]
        schema = reader.get_summary().schemas[1]  # type: ignore[union-attr]
        assert {record.name: dict(record.metadata) for record in reader.iter_metadata()} == {
            "synthetic": {"generated_by": "kymo synth", "seed": "0"},
            "units": {"timestamp": "ns"}
            | {
                f"{sensor}_{kind}": unit
                for sensor, unit in (("mag", "field"), ("acc", "g"), ("gyro", "rad/s"))
                for kind in ("truth", "raw")
            },
        }
    assert found == [30 * 10**9 + i * 10**7 for i in range(100)]
    assert isinstance(schema, Schema)
    assert json.loads(schema.data)["title"] == "sensor_event"


def test_the_same_plan_and_seed_give_the_same_bytes() -> None:
    noisy = plan(turning(90, 0, 0, 30.0), **NOISY)
    first, again, other = (mcap_bytes(simulate(noisy, seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    quiet = plan(turning(90, 0, 0))
    a, b = (simulate(quiet, seed) for seed in (1, 2))
    assert all((a.topics[topic] == b.topics[topic]).all() for topic in ORDER), "a seed changes what is random alone"


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    from kymo.streams.errors import PlanError

    with pytest.raises(PlanError, match="cannot be written"):
        synth(plan(), tmp_path / "absent" / "x.mcap")
    (tmp_path / "folder.mcap").mkdir()
    with pytest.raises(PlanError, match="cannot be written"):
        synth(plan(), tmp_path / "folder.mcap")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.mcap"]


def test_topics_are_those_of_a_file() -> None:
    assert set(ORDER) == set(TOPICS) - {"pose"}


def test_a_plain_loop_makes_the_same_recording() -> None:
    """The loop of `python -m benchmarks synth`, a sample after the other: what is timed there is the same work."""
    from benchmarks.synth import compare, plan_of

    compare(plan_of(25.0))
    changed = plan_of(25.0)
    changed["segments"][1]["rotation_rpy_degrees"]["roll"] += 1e-5
    with pytest.raises(RuntimeError, match="do not make the same recording"):
        compare(plan_of(25.0), changed)


def published(written: dict[str, Any]) -> tuple[list[int], dict[str, list[Any]]]:
    """Times and values by the published generator's rule, a sample after the other."""
    rate, now, time_ns = written["initialization"]["sample_rate"], Rotation.identity(), 0
    times, values = (
        [],
        {topic: list[Any]() for topic in ("mag_truth", "mag_raw", "acc_truth", "gyro_truth", "pose_truth")},
    )
    for segment in written["segments"]:
        angles = [segment["rotation_rpy_degrees"][axis] for axis in ("roll", "pitch", "yaw")]
        step = Rotation.from_euler("xyz", np.array(angles) / int(segment["duration_s"] * rate), degrees=True)
        distortion = segment.get("mag_distortion", {"level": "none"})
        share = {"none": 0.0, "low": 0.2, "high": 1.0}[distortion["level"]]
        vector = [share * distortion.get(f"world_{axis}", 0.0) for axis in "xyz"]
        end_ns = time_ns + int(segment["duration_s"] * 1e9)
        while time_ns < end_ns:
            now = now * step
            times.append(time_ns)
            field, w = now.inv().apply(np.add([0.0, 1.0, 0.0], vector)), np.sign(step.as_quat()[3])
            values["mag_truth"].append(field)
            values["mag_raw"].append(field / 0.00053)
            values["acc_truth"].append(now.inv().apply([0.0, 0.0, 1.0]))
            values["gyro_truth"].append(2.0 * rate * w * step.as_quat()[:3])
            values["pose_truth"].append(now.as_quat(scalar_first=True))
            time_ns += int(1e9 / rate)
    return times, values


COUNTS = {"calibration": {"bias": {"x": 0.0, "y": 0.0, "z": 0.0}, "matrix": (np.eye(3) * 0.00053).tolist()}}
STRONG = {"mag_distortion": {"level": "high", "world_x": 0.2, "world_y": -0.1, "world_z": 0.3}}
WEAK = {"magnetic_distortion": 0.7, "mag_distortion": {"level": "low", "world_y": 5.0}}


@pytest.mark.parametrize("rate", [30, 50, 62.5, 100, 500, 33.3, 59.94, 128])
@pytest.mark.parametrize("durations", [(1.0, 2.0, 0.5), (0.29, 1.57, 3.0), (10.0,), (1 / 3, 2.3141592653, 0.7, 1.0)])
def test_counts_times_and_values_are_the_published_generators(rate: float, durations: tuple[float, ...]) -> None:
    """At rates whose interval is no whole number of ns, and at durations that are no multiple of it, too; and at rest."""
    turns = [(10.0, -20.0, 30.0), (0.0, 0.0, 0.0), (-90.0, 45.0, 5.0), (0.0, 0.0, 179.0)]
    members: list[dict[str, Any]] = [{}, STRONG, WEAK, {}]
    segments = [turning(*turns[n], d, **members[n]) for n, d in enumerate(durations)]
    written = plan(*segments, rate=rate, mag=COUNTS)
    made, (times, values) = simulate(written), published(written)
    assert made.times_ns.tolist() == times
    for topic, expected in values.items():
        found = made.topics[topic][:, 6:] if topic == "pose_truth" else made.topics[topic]
        if topic == "pose_truth":  # q and -q are one orientation
            found = found * np.sign((found * expected).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
