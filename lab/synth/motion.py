"""Orientation and place over time. In: a plan. Out: arrays with one row a sample.

A segment turns by the same small rotation at every sample, its roll, pitch and yaw divided by its sample intervals. Orientations come from
the angle turned so far, without a loop over samples; only multiplications and additions touch the arrays, which give the same
bits on every processor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.synth.plan import Plan, Segment, steps_of

Floats = NDArray[np.float64]
Quaternion = tuple[float, float, float, float]
"""w, x, y, z; it turns the sensor's frame into the world's."""
G0_M_S2 = 9.80665


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


def move(plan: Plan, pose: Floats) -> Motion:
    """Carry out a plan's motion."""
    counts = plan.counts
    rates = np.empty((3, len(counts)))
    pose[:3] = [[plan.start.lat], [plan.start.lng], [plan.start.height]]
    acceleration = np.zeros((3, pose.shape[1])) if any(s.to is not None for s in plan.segments) else None
    turned, place, first = plan.start.rotation, plan.start.position, 0
    for number, (segment, count) in enumerate(zip(plan.segments, counts, strict=True)):
        part = slice(first, first + count)
        step = step_of(segment, plan.rate_hz)
        turn(turned, step, pose[6:, part])
        w, x, y, z = pose[6:, part.stop - 1].tolist()
        turned, first = (w, x, y, z), part.stop
        rates[:, number] = [2.0 * plan.rate_hz * component for component in step[1:]]
        if segment.to is None or acceleration is None:
            pose[3:6, part] = np.array(place)[:, np.newaxis]
        else:
            pose[3:6, part], acceleration[:, part] = glide(place, segment.to, count, plan.interval_ns * 1e-9)
            place = segment.to
    return Motion(pose, rates, acceleration)


def step_of(segment: Segment, rate_hz: float) -> Quaternion:
    """The rotation from one sample to the next: first roll about x, then pitch about y, then yaw about z, of fixed axes."""
    steps = steps_of(segment.duration_s, rate_hz)
    halves = [math.radians(angle / steps) / 2.0 for angle in segment.rotation]
    (cr, cp, cy), (sr, sp, sy) = [math.cos(h) for h in halves], [math.sin(h) for h in halves]
    return (
        cr * cp * cy + sr * sp * sy,
        sr * cp * cy - cr * sp * sy,
        cr * sp * cy + sr * cp * sy,
        cr * cp * sy - sr * sp * cy,
    )


def turn(first: Quaternion, step: Quaternion, out: Floats) -> None:
    """Orientations after 1, 2, … equal steps from `first`, into `out` of shape (4, count).

    With h half the angle of a step about the axis u, they are ``first (cos kh, u sin kh)``.
    """
    length = math.hypot(*step[1:])
    if length == 0.0:
        out[:] = np.array(first)[:, np.newaxis]
        return
    cosines, sines = cosines_and_sines(math.atan2(length, step[0]), out.shape[1])
    w, x, y, z = first
    a, b, c = (component / length for component in step[1:])
    turned = np.array([-x * a - y * b - z * c, w * a + y * c - z * b, w * b - x * c + z * a, w * c + x * b - y * a])
    np.multiply(np.array(first)[:, np.newaxis], cosines, out=out)
    out += turned[:, np.newaxis] * sines


def cosines_and_sines(angle: float, count: int) -> tuple[Floats, Floats]:
    """Cosine and sine of `angle` times 1, 2, …, count, radians.

    From the sums of two angles, about √count of each, so that only multiplications and additions touch long arrays.
    """
    many = math.isqrt(count - 1) + 1
    small = [angle * k for k in range(1, many + 1)]
    large = [angle * (many * k) for k in range(-(-count // many))]
    cs, ss = np.array([[math.cos(x) for x in small], [math.sin(x) for x in small]])  # (many,)
    cl, sl = np.array([[[math.cos(x)] for x in large], [[math.sin(x)] for x in large]])  # (parts, 1)
    return (cl * cs - sl * ss).ravel()[:count], (sl * cs + cl * ss).ravel()[:count]


def glide(start: Any, end: Any, count: int, interval_s: float) -> tuple[Floats, Floats]:
    """From rest to rest with the least jerk: position (3, count) in m and acceleration (3, count) in g.

    The position is ``start + (end - start)(10 s³ - 15 s⁴ + 6 s⁵)`` for s = 1/count, …, 1 (Flash and Hogan, 1985).
    """
    s = np.arange(1, count + 1) / count
    square = s * s
    way = np.subtract(end, start)[:, np.newaxis]
    share = square * s * (10.0 - 15.0 * s + 6.0 * square)
    second = (60.0 * s - 180.0 * square + 120.0 * square * s) / (count * interval_s) ** 2
    return np.asarray(start)[:, np.newaxis] + way * share, way * second / G0_M_S2
