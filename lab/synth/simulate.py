"""Synthetic recordings of an IMU with a magnetometer. In: a motion plan. Out: samples by topic.

``mag_truth``, ``acc_truth`` and ``gyro_truth`` are what an ideal sensor would measure, ``*_raw`` what a real one gives; ``pose_truth`` has
lat, lng, height, x, y, z, w, x, y, z. Units are those of :mod:`kymo.lab.synth.plan`.

A segment turns by the same small rotation at every sample, its roll, pitch and yaw divided by its sample intervals. Orientations come from
the angle turned so far, without a loop over samples; only multiplications and additions touch the arrays, which give the same
bits on every processor.

The noise terms are those of IEEE Std 952: white noise N, bias instability B and random walk K, whose Allan deviations over τ s are
``N/√τ``, ``B·√(2 ln 2 / π)`` (0.664 B) and ``K·√(τ/3)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kymo.lab.synth.plan import (
    IDENTITY,
    Magnetometer,
    MotionPlan,
    MotionSegment,
    Noise,
    Place,
    Quaternion,
    Sensor,
    Warmth,
    Xyz,
    load_plan,
    parse_plan,
    steps_of,
)

Floats = NDArray[np.float64]
#: Topics by their channel in a file, and in the order in which a sample's messages follow each other.
TOPICS = ("pose_truth", "mag_truth", "acc_truth", "gyro_truth", "pose", "mag_raw", "acc_raw", "gyro_raw")
ORDER = ("mag_truth", "mag_raw", "acc_truth", "acc_raw", "gyro_truth", "gyro_raw", "pose_truth")
_SENSORS = ("mag", "acc", "gyro")
_PIECE = 4096
_G0_M_S2 = 9.80665
#: Samples keep their order: no time is moved by more than this share of the interval.
_MOST_JITTER = 0.49
#: Each use has random numbers of its own: turning one off leaves the others as they are.
_USES = {"mag": 0, "acc": 1, "gyro": 2, "timing": 3}


@dataclass(frozen=True, slots=True)
class Synthesis:
    """A synthetic recording."""

    plan: MotionPlan  # what was asked for
    seed: int  # of its random numbers
    times_ns: NDArray[np.int64]  # of the ``*_truth`` topics, Unix ns, shape (n,)
    raw_times_ns: NDArray[np.int64]  # of the ``*_raw`` topics, shape (m,): without lost samples, with jitter
    raw_index: NDArray[np.intp]  # which of the n samples they are, shape (m,)
    topics: Mapping[str, Floats]  # values by topic: (n, 3), (m, 3), and (n, 10) of ``pose_truth``

    @property
    def segment(self) -> NDArray[np.intp]:
        """Number of each of the n samples' segment."""
        return np.repeat(np.arange(len(self.plan.segments)), self.plan.counts)


def simulate(plan: MotionPlan | Mapping[str, Any] | str | Path, seed: int = 0) -> Synthesis:
    """Carry out a plan.

    Parameters
    ----------
    plan : MotionPlan, dict, str or Path
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
    >>> recording = simulate({"initialization": {"sample_rate": 2}, "segments": [{"duration_s": 1}]})
    >>> recording.times_ns.tolist(), recording.topics["mag_raw"].tolist()
    ([0, 500000000], [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    """
    plan = _as_plan(plan)
    counts = plan.counts
    count = sum(counts)
    block = np.empty((10 + 6 * len(_SENSORS), count))  # one block of memory is quicker to get than seven
    motion = _move(plan, block[:10])
    times = np.arange(count, dtype=np.int64)
    times *= plan.interval_ns
    times += plan.start_time_ns
    mag, acc, gyro = block[10:13], block[13:16], block[16:19]
    for number, part in _pieces(counts):
        _sense(plan, motion, number, part, mag[:, part], acc[:, part])
        gyro[:, part] = motion.rates_rad_s[:, number : number + 1]
    arrived, raw_times = _arrivals(plan, times, seed)
    excess_celsius = _excess_celsius(plan, times)
    topics = {"pose_truth": motion.pose.T}
    for place, (name, values) in enumerate(zip(_SENSORS, (mag, acc, gyro), strict=True)):
        measured = _measured(plan, name, values, excess_celsius, seed)
        raw = _raw(getattr(plan, name), measured, block[19 + 3 * place : 22 + 3 * place])
        topics |= {f"{name}_truth": values.T, f"{name}_raw": raw.T if len(arrived) == count else raw.T[arrived]}
    return Synthesis(plan, seed, times, raw_times, arrived, topics)


def _as_plan(plan: MotionPlan | Mapping[str, Any] | str | Path) -> MotionPlan:
    if isinstance(plan, MotionPlan):
        return plan
    return load_plan(plan) if isinstance(plan, str | Path) else parse_plan(plan)


def _pieces(counts: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Every segment's number and samples, at most so many at once that what is computed on the way stays in the processor's cache."""
    first = 0
    for number, count in enumerate(counts):
        for start in range(first, first + count, _PIECE):
            yield number, slice(start, min(start + _PIECE, first + count))
        first += count


def _sense(plan: MotionPlan, motion: Motion, number: int, part: slice, mag: Floats, acc: Floats) -> None:
    """Field and gravity in the sensor's frame for a part of a segment, into `mag` and `acc` of shape (3, samples)."""
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
    terms = [(c, axis) for c, axis in zip(vector, axes, strict=True) if not isinstance(c, float) or c]
    for number, (component, axis) in enumerate(terms):
        for row, values in zip(out, axis, strict=True):
            if number:
                np.add(row, component * values, out=row)
            else:
                np.multiply(component, values, out=row)
    if not terms:
        out[:] = 0.0


def _field(plan: MotionPlan, motion: Motion, number: int, part: slice) -> Any:
    """The magnetic field in the world frame: three numbers, or three arrays where it fades with the distance."""
    segment = plan.segments[number]
    source = segment.mag_distortion and segment.mag_distortion.source
    share: Any = 1.0
    if source:
        away = motion.position_m[:, part] - _column(source.position)
        radius = source.radius_m
        nearness = radius / np.maximum(np.sqrt((away * away).sum(axis=0)), radius)
        share = nearness * nearness * nearness
    return [field + share * added for field, added in zip(plan.field, segment.distortion, strict=True)]


def _excess_celsius(plan: MotionPlan, times_ns: NDArray[np.int64]) -> Floats | None:
    """Degrees above the reference temperature, shape (n,)."""
    warming = plan.temperature
    if warming is None:
        return None
    start, end = warming.start_celsius, warming.end_celsius
    end = start if end is None else end
    seconds = (times_ns - plan.start_time_ns) * 1e-9
    return np.asarray(end + (start - end) * np.exp(-seconds / warming.time_constant_s) - warming.reference_celsius)


def _measured(plan: MotionPlan, name: str, truth: Floats, excess_celsius: Floats | None, seed: int) -> Floats:
    """What a sensor with its errors makes of the truth, before its inverse calibration, shape (3, n)."""
    sensor: Sensor = getattr(plan, name)
    iron = sensor.soft_iron if isinstance(sensor, Magnetometer) else IDENTITY
    out = truth if iron == IDENTITY else _times(iron, truth, np.empty_like(truth))
    if excess_celsius is not None and sensor.temperature != Warmth():
        scale, bias = sensor.temperature.scale_per_celsius, sensor.temperature.bias_per_celsius
        out = out * (1.0 + scale * excess_celsius) + _column(bias) * excess_celsius
    added = _noise(sensor.noise, plan.sample_rate, truth.shape[1], seed, name)
    return out if added is None else out + added


def _raw(sensor: Sensor, measured: Floats, out: Floats) -> Floats:
    """Inverse calibration: the counts that a calibration ``matrix (raw - bias)`` turns into what was measured; in `out`, if they
    differ from it."""
    calibration = sensor.calibration
    if calibration.matrix == IDENTITY and calibration.bias == Xyz():
        return measured
    _times(np.linalg.inv(np.array(calibration.matrix)), measured, out)
    if calibration.bias != Xyz():
        out += _column(calibration.bias)
    return out


def _column(vector: Xyz) -> Floats:
    return np.array(astuple(vector))[:, np.newaxis]


def _times(matrix: Any, x: Floats, out: Floats) -> Floats:
    """A matrix by vectors, shape (3, n), as products of single numbers: a linear algebra library may round differently on
    another machine."""
    for row, result in zip(np.asarray(matrix).tolist(), out, strict=True):
        columns = [i for i in range(3) if row[i]] or [0]
        np.multiply(x[columns[0]], row[columns[0]], out=result)
        for i in columns[1:]:
            np.add(result, row[i] * x[i], out=result)
    return out


@dataclass(frozen=True, slots=True)
class Motion:
    """What moves, a column a sample."""

    pose: Floats  # lat, lng, height; position x, y, z in m; orientation w, x, y, z; shape (10, n)
    # angular velocity of each segment in the sensor's frame, shape (3, segments): twice the vector part of the
    # rotation from one sample to the next, a second
    rates_rad_s: Floats
    acceleration_g: Floats | None  # in the world frame, shape (3, n), without gravity; None if nothing moves

    @property
    def position_m(self) -> Floats:
        """Where it is in the world frame, shape (3, n)."""
        return self.pose[3:6]

    @property
    def rotation(self) -> Floats:
        """Unit quaternions, shape (4, n)."""
        return self.pose[6:]


def _move(plan: MotionPlan, pose: Floats) -> Motion:
    counts = plan.counts
    rates = np.empty((3, len(counts)))
    pose[:3] = np.array(astuple(plan.pose.origin or Place()))[:, np.newaxis]
    acceleration = np.zeros((3, pose.shape[1])) if any(segment.path for segment in plan.segments) else None
    turned, place, first = plan.pose.quaternion, plan.pose.position, 0
    for number, (segment, count) in enumerate(zip(plan.segments, counts, strict=True)):
        part = slice(first, first + count)
        step = _step_of(segment, plan.sample_rate)
        _turn(turned, step, pose[6:, part])
        w, x, y, z = pose[6:, part.stop - 1].tolist()
        turned, first = (w, x, y, z), part.stop
        rates[:, number] = [2.0 * plan.sample_rate * component for component in step[1:]]
        if segment.path is None or acceleration is None:
            pose[3:6, part] = _column(place)
        else:
            end = segment.path.to
            pose[3:6, part], acceleration[:, part] = _glide(place, end, count, plan.interval_ns * 1e-9)
            place = end
    return Motion(pose, rates, acceleration)


def _step_of(segment: MotionSegment, rate_hz: float) -> Quaternion:
    """The rotation from one sample to the next: first roll about x, then pitch about y, then yaw about z, of fixed axes."""
    steps = steps_of(segment.duration_s, rate_hz)
    halves = [math.radians(angle / steps) / 2.0 for angle in astuple(segment.rotation_rpy_degrees)]
    (cr, cp, cy), (sr, sp, sy) = [math.cos(h) for h in halves], [math.sin(h) for h in halves]
    return (
        cr * cp * cy + sr * sp * sy,
        sr * cp * cy - cr * sp * sy,
        cr * sp * cy + sr * cp * sy,
        cr * cp * sy - sr * sp * cy,
    )


def _turn(first: Quaternion, step: Quaternion, out: Floats) -> None:
    """Orientations after 1, 2, … equal steps from `first`, into `out` of shape (4, count).

    With h half the angle of a step about the axis u, they are ``first (cos kh, u sin kh)``.
    """
    length = math.hypot(*step[1:])
    if length == 0.0:
        out[:] = np.array(first)[:, np.newaxis]
        return
    cosines, sines = _cosines_and_sines(math.atan2(length, step[0]), out.shape[1])
    w, x, y, z = first
    a, b, c = (component / length for component in step[1:])
    turned = np.array([-x * a - y * b - z * c, w * a + y * c - z * b, w * b - x * c + z * a, w * c + x * b - y * a])
    np.multiply(np.array(first)[:, np.newaxis], cosines, out=out)
    out += turned[:, np.newaxis] * sines


def _cosines_and_sines(angle: float, count: int) -> tuple[Floats, Floats]:
    """Cosine and sine of `angle` times 1, 2, …, count, radians.

    From the sums of two angles, about √count of each, so that only multiplications and additions touch long arrays.
    """
    many = math.isqrt(count - 1) + 1
    small = [angle * k for k in range(1, many + 1)]
    large = [angle * (many * k) for k in range(-(-count // many))]
    cs, ss = np.array([[math.cos(x) for x in small], [math.sin(x) for x in small]])  # (many,)
    cl, sl = np.array([[[math.cos(x)] for x in large], [[math.sin(x)] for x in large]])  # (parts, 1)
    return (cl * cs - sl * ss).ravel()[:count], (sl * cs + cl * ss).ravel()[:count]


def _glide(start: Xyz, end: Xyz, count: int, interval_s: float) -> tuple[Floats, Floats]:
    """From rest to rest with the least jerk: position (3, count) in m and acceleration (3, count) in g.

    The position is ``start + (end - start)(10 s³ - 15 s⁴ + 6 s⁵)`` for s = 1/count, …, 1 (Flash and Hogan, 1985).
    """
    s = np.arange(1, count + 1) / count
    square = s * s
    way = _column(end) - _column(start)
    share = square * s * (10.0 - 15.0 * s + 6.0 * square)
    second = (60.0 * s - 180.0 * square + 120.0 * square * s) / (count * interval_s) ** 2
    return _column(start) + way * share, way * second / _G0_M_S2


def _stream_of(seed: int, use: str, term: int = 0) -> np.random.Generator:
    """Random numbers for one use (see :data:`_USES`) and term."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, _USES[use], term])))


def _noise(terms: Noise, rate_hz: float, count: int, seed: int, sensor: str) -> Floats | None:
    """Noise of three axes, shape (3, count); None where all terms are 0."""
    if not (terms.white or terms.bias_instability or terms.random_walk):
        return None
    out = np.zeros((3, count))
    if terms.white:
        out += _stream_of(seed, sensor, 0).standard_normal((3, count)) * (terms.white * math.sqrt(rate_hz))
    if terms.bias_instability:
        out += _flicker(_stream_of(seed, sensor, 1).standard_normal((3, count))) * terms.bias_instability
    if terms.random_walk:
        steps = _stream_of(seed, sensor, 2).standard_normal((3, count))
        out += np.cumsum(steps, axis=1) * (terms.random_walk / math.sqrt(rate_hz))
    return out


def _flicker(white: Floats) -> Floats:
    """Noise with a spectral density of 1/(2πf) from white noise of deviation 1, along the last axis.

    An all-pole filter of order one half (Kasdin, Proc. IEEE 83, 1995): its response h begins with 1 and goes on with
    ``h[k] = h[k-1]·(k - 1/2)/k``.
    """
    count = white.shape[-1]
    k = np.arange(1, count)
    response = np.concatenate([[1.0], np.cumprod((k - 0.5) / k)])
    length = 1 << (2 * count - 1).bit_length()  # the convolution must not wrap around
    spectrum = np.fft.rfft(white, length) * np.fft.rfft(response, length)
    return np.fft.irfft(spectrum, length)[..., :count]


def _arrivals(plan: MotionPlan, times_ns: NDArray[np.int64], seed: int) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Which samples arrive, and when: numbers in order, and times in Unix ns, no two alike. At least one arrives."""
    timing, count = plan.timing, len(times_ns)
    arrived: NDArray[np.intp] = np.arange(count)
    times = times_ns
    if timing.drop_probability:
        lost = _stream_of(seed, "timing", 0).random(count) < timing.drop_probability
        lost[0] &= not lost.all()
        arrived = np.flatnonzero(~lost)
        times = times_ns[arrived]
    if timing.jitter_s:
        late = _stream_of(seed, "timing", 1).standard_normal(count)  # the same whatever is lost
        most = int(_MOST_JITTER * plan.interval_ns)
        moved = np.clip(np.rint(late[arrived] * (timing.jitter_s * 1e9)), -most, most).astype(np.int64)
        times = np.maximum(times + moved, plan.start_time_ns)
    return arrived, times
