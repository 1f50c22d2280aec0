"""Orientation and place over time. In: a plan. Out: arrays with one row a sample.

A segment turns by the same small rotation at every sample, its roll, pitch and yaw divided by its sample intervals. Powers of that
rotation come from products of products, so that there is no loop over samples; only multiplications and additions touch
the arrays, which give the same bits on every processor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.synth_plan import Plan, Segment, steps_of

Floats = NDArray[np.float64]
Quaternion = tuple[float, float, float, float]
"""w, x, y, z; it turns the sensor's frame into the world's."""
G0_M_S2 = 9.80665


@dataclass(frozen=True, slots=True)
class Motion:
    """What moves.

    Attributes
    ----------
    rotation : ndarray
        Unit quaternions w, x, y, z, shape (4, n).
    rate_rad_s : ndarray
        Angular velocity in the sensor's frame, shape (3, n): of small rotations, twice the quaternion's vector part a sample.
    position_m : ndarray
        In the world frame, shape (3, n).
    acceleration_g : ndarray, optional
        In the world frame, shape (3, n), without gravity; None if nothing moves.
    segment : ndarray
        Number of each sample's segment, shape (n,).
    """

    rotation: Floats
    rate_rad_s: Floats
    position_m: Floats
    acceleration_g: Floats | None
    segment: NDArray[np.intp]


def move(plan: Plan) -> Motion:
    """Carry out a plan's motion.

    Parameters
    ----------
    plan : Plan
        Segments follow each other: each begins where the one before ended. Its first sample has turned by one step already.

    Returns
    -------
    Motion
        n is the sum of the plan's counts.
    """
    counts = plan.counts
    total = sum(counts)
    rotation, rates = np.empty((4, total)), np.empty((3, len(counts)))
    position = np.empty((3, total))
    acceleration = np.zeros((3, total)) if any(s.to is not None for s in plan.segments) else None
    turned, place, first = plan.start.rotation, plan.start.position, 0
    for number, (segment, count) in enumerate(zip(plan.segments, counts, strict=True)):
        part = slice(first, first + count)
        step = step_of(segment, plan.rate_hz)
        rotation[:, part] = product(turned, powers(step, count))
        turned = tuple(rotation[:, part.stop - 1].tolist())
        rates[:, number] = [2.0 * plan.rate_hz * component for component in step[1:]]
        if segment.to is None or acceleration is None:
            position[:, part] = np.array(place)[:, np.newaxis]
        else:
            position[:, part], acceleration[:, part] = glide(place, segment.to, count, plan.interval_ns * 1e-9)
            place = segment.to
        first = part.stop
    segments = np.repeat(np.arange(len(counts)), counts)
    return Motion(rotation, rates[:, segments], position, acceleration, segments)


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


def product(a: Any, b: Any) -> Any:
    """Product of two quaternions, each a number or an array a component: `b` first, then `a`."""
    aw, ax, ay, az = a
    bw, bx, by, bz = b
    return (
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    )


def powers(step: Quaternion, count: int) -> Floats:
    """The first, second, … power of a unit quaternion, shape (4, count)."""
    out = np.empty((4, count))
    out[:, 0] = step
    done = 1
    while done < count:
        more = min(done, count - done)
        out[:, done : done + more] = product(_power(step, done), out[:, :more])
        done += more
    return out


def _power(step: Quaternion, exponent: int) -> Quaternion:
    """One power, from the angle: repeated products would add up their rounding."""
    w, x, y, z = step
    length = math.hypot(x, y, z)
    if length == 0.0:
        return (1.0, 0.0, 0.0, 0.0)
    half = exponent * math.atan2(length, w)
    scale = math.sin(half) / length
    return (math.cos(half), scale * x, scale * y, scale * z)


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
