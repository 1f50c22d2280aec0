"""Synthetic recordings of an IMU with a magnetometer. In: a motion plan. Out: samples by topic, and an MCAP file of them.

``mag_truth``, ``acc_truth`` and ``gyro_truth`` are what an ideal sensor would measure, ``*_raw`` what a real one gives; ``pose_truth`` has
lat, lng, height, x, y, z, w, x, y, z. Units are those of :mod:`streams.synth_plan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.synth_motion import Floats, Motion, move
from streams.synth_noise import arrivals, noise, stream_of
from streams.synth_parse import load_plan, parse_plan
from streams.synth_plan import Plan, Sensor
from streams.synth_read import IDENTITY, ZERO

#: Topics by their channel in a file, and in the order in which a sample's messages follow each other.
TOPICS = ("pose_truth", "mag_truth", "acc_truth", "gyro_truth", "pose", "mag_raw", "acc_raw", "gyro_raw")
ORDER = ("mag_truth", "mag_raw", "acc_truth", "acc_raw", "gyro_truth", "gyro_raw", "pose_truth")


@dataclass(frozen=True, slots=True)
class Synthesis:
    """A synthetic recording.

    Attributes
    ----------
    plan : Plan
        What was asked for.
    seed : int
        Of its random numbers.
    times_ns : ndarray
        Of the ``*_truth`` topics, Unix ns, shape (n,).
    raw_times_ns : ndarray
        Of the ``*_raw`` topics, shape (m,): without lost samples, with jitter.
    raw_index : ndarray
        Which of the n samples they are, shape (m,).
    topics : dict of ndarray
        Values by topic: (n, 3), (m, 3), and (n, 10) of ``pose_truth``.
    segment : ndarray
        Number of each of the n samples' segment.
    """

    plan: Plan
    seed: int
    times_ns: NDArray[np.int64]
    raw_times_ns: NDArray[np.int64]
    raw_index: NDArray[np.intp]
    topics: Mapping[str, Floats]
    segment: NDArray[np.intp]


def simulate(plan: Plan | Mapping[str, Any] | str | Path, seed: int = 0) -> Synthesis:
    """Carry out a plan.

    Parameters
    ----------
    plan : Plan, dict, str or Path
        A plan, its JSON, or the path of its file.
    seed : int
        Of noise, lost samples and jitter, from 0; without these it changes nothing.

    Returns
    -------
    Synthesis
        All topics. The same plan and seed give the same numbers.

    Raises
    ------
    PlanError
        If the plan cannot be carried out; the text names the field.

    Examples
    --------
    >>> made = simulate({"initialization": {"sample_rate": 2}, "segments": [{"duration_s": 1}]})
    >>> made.times_ns.tolist(), made.topics["mag_raw"].tolist()
    ([0, 500000000, 1000000000], [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    """
    plan = as_plan(plan)
    motion = move(plan)
    count = len(motion.segment)
    times = plan.start_time_ns + np.arange(count, dtype=np.int64) * plan.interval_ns
    truth = {"mag": _into_sensor(motion.rotation, _field(plan, motion))}
    gravity = (0.0, 0.0, 1.0) if motion.acceleration_g is None else _lifted(motion.acceleration_g)
    truth |= {"acc": _into_sensor(motion.rotation, gravity), "gyro": motion.rate_rad_s}
    kept, raw_times = arrivals(plan.timing, plan, stream_of(seed, "timing"), count)
    warmer = _warmer(plan, times)
    topics = {"pose_truth": _pose(plan, motion)}
    for name, values in truth.items():
        raw = _raw(getattr(plan, name), _measured(plan, name, values, warmer, seed))
        topics[f"{name}_truth"] = np.ascontiguousarray(values.T)
        topics[f"{name}_raw"] = np.ascontiguousarray(raw.T if len(kept) == count else raw.T[kept])
    return Synthesis(plan, seed, times, raw_times, kept, topics, motion.segment)


def as_plan(plan: Plan | Mapping[str, Any] | str | Path) -> Plan:
    """A plan, whatever it is given as."""
    if isinstance(plan, Plan):
        return plan
    return load_plan(plan) if isinstance(plan, str | Path) else parse_plan(plan)


def _into_sensor(rotation: Floats, world: Any) -> Floats:
    """A vector of the world frame (numbers, or arrays of shape (n,)) in the sensor's, shape (3, n): turned back."""
    w, x, y, z = rotation
    a, b, c = world
    # Rows of the transposed rotation matrix of a unit quaternion.
    return np.stack(
        [
            a * (1.0 - 2.0 * (y * y + z * z)) + b * (2.0 * (x * y + w * z)) + c * (2.0 * (x * z - w * y)),
            a * (2.0 * (x * y - w * z)) + b * (1.0 - 2.0 * (x * x + z * z)) + c * (2.0 * (y * z + w * x)),
            a * (2.0 * (x * z + w * y)) + b * (2.0 * (y * z - w * x)) + c * (1.0 - 2.0 * (x * x + y * y)),
        ]
    )


def _field(plan: Plan, motion: Motion) -> Any:
    """The magnetic field in the world frame: three numbers, or shape (3, n)."""
    if not any(any(segment.distortion) for segment in plan.segments):
        return plan.field
    vectors = np.array([segment.distortion for segment in plan.segments]).T  # (3, segments)
    added = vectors[:, motion.segment]
    ends = np.cumsum(plan.counts)
    for segment, first, end in zip(plan.segments, ends - plan.counts, ends, strict=True):
        if segment.source is not None:
            away = motion.position_m[:, first:end] - np.array(segment.source.position)[:, np.newaxis]
            nearness = segment.source.radius_m / np.maximum(np.sqrt((away * away).sum(axis=0)), segment.source.radius_m)
            added[:, first:end] *= nearness**3
    field: Floats = np.array(plan.field)[:, np.newaxis] + added
    return field


def _lifted(acceleration_g: Floats) -> Floats:
    """What an accelerometer senses: the acceleration, and the force that holds it up against gravity."""
    lifted: Floats = acceleration_g + np.array([[0.0], [0.0], [1.0]])
    return lifted


def _warmer(plan: Plan, times_ns: NDArray[np.int64]) -> Floats | None:
    """Degrees above the reference temperature, shape (n,)."""
    if plan.warming is None:
        return None
    start, end = plan.warming.start, plan.warming.end
    seconds = (times_ns - plan.start_time_ns) * 1e-9
    return np.asarray(end + (start - end) * np.exp(-seconds / plan.warming.time_constant_s) - plan.warming.reference)


def _measured(plan: Plan, name: str, truth: Floats, warmer: Floats | None, seed: int) -> Floats:
    """What a sensor with its errors makes of the truth, before its inverse calibration, shape (3, n)."""
    sensor: Sensor = getattr(plan, name)
    out = truth if sensor.soft_iron == IDENTITY else _times(sensor.soft_iron, truth)
    if warmer is not None and (sensor.scale_per_celsius or any(sensor.bias_per_celsius)):
        out = (
            out * (1.0 + sensor.scale_per_celsius * warmer) + np.array(sensor.bias_per_celsius)[:, np.newaxis] * warmer
        )
    added = noise(sensor.noise, plan.rate_hz, truth.shape[1], seed, name)
    return out if added is None else out + added


def _raw(sensor: Sensor, measured: Floats) -> Floats:
    """Inverse calibration: the counts that a calibration ``matrix (raw - bias)`` turns into what was measured."""
    if sensor.matrix == IDENTITY and sensor.bias == ZERO:
        return measured
    raw: Floats = _times(np.linalg.inv(np.array(sensor.matrix)), measured) + np.array(sensor.bias)[:, np.newaxis]
    return raw


def _times(matrix: Any, x: Floats) -> Floats:
    """A matrix by vectors, shape (3, n), as products of single numbers: a linear algebra library may round differently on
    another machine."""
    return np.stack([row[0] * x[0] + row[1] * x[1] + row[2] * x[2] for row in matrix])


def _pose(plan: Plan, motion: Motion) -> Floats:
    out = np.empty((len(motion.segment), 10))
    out[:, :3] = plan.start.lat, plan.start.lng, plan.start.height
    out[:, 3:6] = motion.position_m.T
    out[:, 6:] = motion.rotation.T
    return out
