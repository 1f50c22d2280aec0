"""Synthetic recordings of an IMU with a magnetometer. In: a motion plan. Out: samples by topic, and an MCAP file of them.

``mag_truth``, ``acc_truth`` and ``gyro_truth`` are what an ideal sensor would measure, ``*_raw`` what a real one gives; ``pose_truth`` has
lat, lng, height, x, y, z, w, x, y, z. Units are those of :mod:`lab.synth.plan`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.synth.members import IDENTITY, ZERO
from lab.synth.motion import Floats, Motion, move
from lab.synth.noise import arrivals, noise
from lab.synth.parse import load_plan, parse_plan
from lab.synth.plan import Plan, Sensor

#: Topics by their channel in a file, and in the order in which a sample's messages follow each other.
TOPICS = ("pose_truth", "mag_truth", "acc_truth", "gyro_truth", "pose", "mag_raw", "acc_raw", "gyro_raw")
ORDER = ("mag_truth", "mag_raw", "acc_truth", "acc_raw", "gyro_truth", "gyro_raw", "pose_truth")
SENSORS = ("mag", "acc", "gyro")
_PIECE = 4096


@dataclass(frozen=True, slots=True)
class Synthesis:
    """A synthetic recording."""

    plan: Plan  # what was asked for
    seed: int  # of its random numbers
    times_ns: NDArray[np.int64]  # of the ``*_truth`` topics, Unix ns, shape (n,)
    raw_times_ns: NDArray[np.int64]  # of the ``*_raw`` topics, shape (m,): without lost samples, with jitter
    raw_index: NDArray[np.intp]  # which of the n samples they are, shape (m,)
    topics: Mapping[str, Floats]  # values by topic: (n, 3), (m, 3), and (n, 10) of ``pose_truth``

    @property
    def segment(self) -> NDArray[np.intp]:
        """Number of each of the n samples' segment."""
        return np.repeat(np.arange(len(self.plan.segments)), self.plan.counts)


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
    ([0, 500000000], [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    """
    plan = as_plan(plan)
    counts = plan.counts
    count = sum(counts)
    whole = np.empty((10 + 6 * len(SENSORS), count))  # one block of memory is quicker to get than seven
    motion = move(plan, whole[:10])
    times = np.arange(count, dtype=np.int64)
    times *= plan.interval_ns
    times += plan.start_time_ns
    mag, acc, gyro = whole[10:13], whole[13:16], whole[16:19]
    for number, part in _pieces(counts):
        _sense(plan, motion, number, part, (mag[:, part], acc[:, part]))
        gyro[:, part] = motion.rates_rad_s[:, number : number + 1]
    kept, raw_times = arrivals(plan, times, seed)
    warmer = _warmer(plan, times)
    topics = {"pose_truth": motion.pose.T}
    for place, (name, values) in enumerate(zip(SENSORS, (mag, acc, gyro), strict=True)):
        measured = _measured(plan, name, values, warmer, seed)
        raw = _raw(getattr(plan, name), measured, whole[19 + 3 * place : 22 + 3 * place])
        topics |= {f"{name}_truth": values.T, f"{name}_raw": raw.T if len(kept) == count else raw.T[kept]}
    return Synthesis(plan, seed, times, raw_times, kept, topics)


def as_plan(plan: Plan | Mapping[str, Any] | str | Path) -> Plan:
    """A plan, whatever it is given as."""
    if isinstance(plan, Plan):
        return plan
    return load_plan(plan) if isinstance(plan, str | Path) else parse_plan(plan)


def _pieces(counts: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Every segment's number and samples, at most so many at once that what is computed on the way stays in the processor's cache."""
    first = 0
    for number, count in enumerate(counts):
        for start in range(first, first + count, _PIECE):
            yield number, slice(start, min(start + _PIECE, first + count))
        first += count


def _sense(plan: Plan, motion: Motion, number: int, part: slice, out: tuple[Floats, Floats]) -> None:
    """Field and gravity in the sensor's frame for a part of a segment, into two arrays of shape (3, samples)."""
    mag, acc = out
    w, x, y, z = 2.0 * motion.rotation[:, part]
    _, i, j, k = motion.rotation[:, part]
    xx, yy, zz, xy, xz, yz = x * i, y * j, z * k, x * j, x * k, y * k
    wx, wy, wz = w * i, w * j, w * k
    # Columns of the transposed rotation matrix: the world's axes in the sensor's frame.
    east = (1.0 - (yy + zz), xy - wz, xz + wy)
    north = (xy + wz, 1.0 - (xx + zz), yz - wx)
    up = (xz - wy, yz + wx, 1.0 - (xx + yy))
    _combine(mag, _field(plan, motion, number, part), (east, north, up))
    if motion.acceleration_g is None:
        for row, values in zip(acc, up, strict=True):
            row[:] = values
    else:
        across, along, upward = motion.acceleration_g[:, part]
        # It senses the acceleration, and what holds it up against gravity.
        _combine(acc, (across, along, upward + 1.0), (east, north, up))


def _combine(out: Floats, vector: Any, axes: Any) -> None:
    """A vector's components, numbers or arrays, times the axes."""
    there = [(c, axis) for c, axis in zip(vector, axes, strict=True) if not isinstance(c, float) or c]
    for number, (component, axis) in enumerate(there):
        for row, values in zip(out, axis, strict=True):
            if number:
                np.add(row, component * values, out=row)
            else:
                np.multiply(component, values, out=row)
    if not there:
        out[:] = 0.0


def _field(plan: Plan, motion: Motion, number: int, part: slice) -> Any:
    """The magnetic field in the world frame: three numbers, or three arrays where it fades with the distance."""
    segment = plan.segments[number]
    share: Any = 1.0
    if segment.source is not None:
        away = motion.position_m[:, part] - np.array(segment.source.position)[:, np.newaxis]
        radius = segment.source.radius_m
        nearness = radius / np.maximum(np.sqrt((away * away).sum(axis=0)), radius)
        share = nearness * nearness * nearness
    return [field + share * added for field, added in zip(plan.field, segment.distortion, strict=True)]


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
    out = truth if sensor.soft_iron == IDENTITY else _times(sensor.soft_iron, truth, np.empty_like(truth))
    if warmer is not None and (sensor.scale_per_celsius or any(sensor.bias_per_celsius)):
        out = (
            out * (1.0 + sensor.scale_per_celsius * warmer) + np.array(sensor.bias_per_celsius)[:, np.newaxis] * warmer
        )
    added = noise(sensor.noise, plan.rate_hz, truth.shape[1], seed, name)
    return out if added is None else out + added


def _raw(sensor: Sensor, measured: Floats, out: Floats) -> Floats:
    """Inverse calibration: the counts that a calibration ``matrix (raw - bias)`` turns into what was measured; in `out`, if they
    differ from it."""
    if sensor.matrix == IDENTITY and sensor.bias == ZERO:
        return measured
    _times(np.linalg.inv(np.array(sensor.matrix)), measured, out)
    if sensor.bias != ZERO:
        out += np.array(sensor.bias)[:, np.newaxis]
    return out


def _times(matrix: Any, x: Floats, out: Floats) -> Floats:
    """A matrix by vectors, shape (3, n), as products of single numbers: a linear algebra library may round differently on
    another machine."""
    for row, result in zip(np.asarray(matrix).tolist(), out, strict=True):
        there = [i for i in range(3) if row[i]] or [0]
        np.multiply(x[there[0]], row[there[0]], out=result)
        for i in there[1:]:
            np.add(result, row[i] * x[i], out=result)
    return out
