"""Motion plans. In: values. Out: a frozen :class:`MotionPlan` in which every field has its unit.

World frame: x east, y north, z up. Lengths are m, angles in a plan degrees, times s. Fields of the magnetometer are in
units of the undisturbed local field, those of the accelerometer in g (9.80665 m/s²), those of the gyroscope rad/s: what
``*_truth`` topics carry. ``docs/synthesis.md`` has the format and the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kymo.streams.words import NS

Vector = tuple[float, float, float]
Matrix = tuple[Vector, Vector, Vector]
Quaternion = tuple[float, float, float, float]
"""w, x, y, z; it turns the sensor's frame into the world's."""
ZERO: Vector = (0.0, 0.0, 0.0)
IDENTITY: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
#: A distortion's level, what it is in labels, and its share of the vector ``world_*``.
LEVELS = ("none", "low", "high")
SHARES = {"none": 0.0, "low": 0.2, "high": 1.0}
#: ``magnetic_distortion`` of each level, in units of the local field, and between which the published training plans draw it.
STRENGTHS = {"none": 0.0, "low": 1.0, "high": 2.5}
DRAWN = {"none": (0.0, 0.0), "low": (0.2, 1.0), "high": (1.5, 2.5)}
#: Where a distortion without ``world_*`` points: east, across the reference, so that it turns the heading.
DIRECTION: Vector = (1.0, 0.0, 0.0)
#: More would not fit into memory at once (224 bytes a sample).
MOST_SAMPLES = 20_000_000


#: Units of the ``*_truth`` topics; those of ``*_raw`` where a calibration scales little.
UNITS = {"mag": "field", "acc": "g", "gyro": "rad/s"}


@dataclass(frozen=True, slots=True)
class Noise:
    """Noise of a sensor, by the terms of an Allan deviation (IEEE Std 952), in the unit U of its ``*_truth`` topic."""

    white: float = 0.0  # n, U/√Hz (angle or velocity random walk); a sample's standard deviation is N·√rate
    bias_instability: float = 0.0  # b, U: flicker noise, whose Allan deviation is level at 0.664 B
    random_walk: float = 0.0  # k, U/√s: the bias walks by K·√t


@dataclass(frozen=True, slots=True)
class Sensor:
    """One sensor."""

    # its calibration, ``truth = matrix (raw - bias)``; raw samples are the inverse, ``matrix⁻¹ truth + bias``
    bias: Vector = ZERO
    matrix: Matrix = IDENTITY
    unit: str = ""  # of raw samples, where the plan says it
    noise: Noise = Noise()  # of the measured value, before the inverse calibration
    # what a degree above the reference temperature adds, and by which share it stretches
    bias_per_celsius: Vector = ZERO
    scale_per_celsius: float = 0.0
    # of the magnetometer: what iron that moves along makes of the field, in the sensor's frame
    soft_iron: Matrix = IDENTITY


@dataclass(frozen=True, slots=True)
class Start:
    """Where a recording begins: origin in degrees and m, position in m, orientation as a unit quaternion w, x, y, z."""

    lat: float = 0.0
    lng: float = 0.0
    height: float = 0.0
    position: Vector = ZERO
    rotation: Quaternion = (1.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Warming:
    """Temperature over time, °C: ``end + (start - end)·exp(-t / time_constant_s)``; sensors are true at `reference`."""

    start: float
    end: float
    reference: float
    time_constant_s: float


@dataclass(frozen=True, slots=True)
class Timing:
    """What happens to raw samples on their way: the share that is lost, and the standard deviation of their times, s."""

    drop_probability: float = 0.0
    jitter_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Source:
    """What distorts, at a place (m, world frame): full strength within `radius_m`, then falling with the distance cubed."""

    position: Vector
    radius_m: float


@dataclass(frozen=True, slots=True)
class MotionSegment:
    """A part of a recording with one motion and one distortion."""

    name: str
    duration_s: float  # the time over which it turns by `rotation`; it has ``floor(duration_s · rate) + 1`` samples
    rotation: Vector = ZERO  # roll, pitch and yaw, degrees
    to: Vector | None = None  # where it moves, m; None: it stays
    level: str = "none"  # none, low or high: its class
    distortion: Vector = ZERO  # added to the field in the world frame, in units of the local field, at full strength
    source: Source | None = None  # where the distortion comes from; None: it is the same everywhere


@dataclass(frozen=True, slots=True)
class MotionPlan:
    """A recording to be made."""

    start_time_ns: int  # of the first sample, Unix ns
    rate_hz: float  # samples a second; they stand ``floor(10**9 / rate)`` ns apart
    start: Start  # where it begins
    mag: Sensor
    acc: Sensor
    gyro: Sensor
    field: Vector  # the undisturbed magnetic field in the world frame, of length 1
    warming: Warming | None  # none: the sensors are at their reference temperature
    timing: Timing  # lost samples and jitter
    segments: tuple[MotionSegment, ...]  # one after the other
    planned: tuple[Mapping[str, Any], ...]  # the segments as the plan's JSON has them
    notes: tuple[str, ...] = ()  # members of the JSON that are not known

    @property
    def interval_ns(self) -> int:
        """From one sample to the next, ns."""
        return math.floor(NS / self.rate_hz)

    def unit(self, topic: str) -> str:
        """Unit of a sensor's topic; raw numbers that a calibration scales are counts, if the plan says nothing else."""
        sensor, _, kind = topic.partition("_")
        taken: Sensor = getattr(self, sensor)
        if kind == "truth":
            return UNITS[sensor]
        scales = [math.hypot(*row) for row in taken.matrix]
        return taken.unit or (UNITS[sensor] if all(0.5 < scale < 2 for scale in scales) else "counts")

    @property
    def counts(self) -> list[int]:
        """Samples of each segment."""
        return [count_of(s.duration_s, self.rate_hz) for s in self.segments]


def count_of(duration_s: float, rate_hz: float) -> int:
    """Samples of a segment: those that begin within it, by whole nanoseconds."""
    return -(-math.floor(NS * duration_s) // math.floor(NS / rate_hz))


def steps_of(duration_s: float, rate_hz: float) -> int:
    """By how many steps a segment's turn is divided: the whole sample intervals in its duration, as the published generator counts."""
    return math.floor(duration_s * rate_hz)
