"""Motion plans. In: a plan's JSON, or its file. Out: a frozen :class:`MotionPlan`, or a PlanError that names the member.

The types are the format: members are called as in the JSON, whose full names are written as a programmer would,
``segments[2].duration_s``; null is as good as none. Members that no type has are kept in :attr:`MotionPlan.notes`, so that a misspelt one
does not vanish in silence. ``docs/synthesis.md`` has the formulas.

World frame: x east, y north, z up. Lengths are m, angles degrees, times s. Fields of the magnetometer are in units of the undisturbed
local field, those of the accelerometer in g (9.80665 m/s²), those of the gyroscope rad/s: what ``*_truth`` topics carry. A field of the
Earth that a plan asks for by a place and a date is the World Magnetic Model's, which comes with the library pygeomag for 2010 to 2029.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, is_dataclass, replace
from datetime import UTC, date, datetime
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated, Any

from kymo.streams.errors import PlanError
from kymo.streams.schema import Kind, Rules, SchemaError, Whole, kind_of, kinds_of, read
from kymo.streams.words import NS

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]
"""w, x, y, z; it turns the sensor's frame into the world's."""
ZERO: Vector = (0.0, 0.0, 0.0)
IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
#: A distortion's level, what it is in labels, and its share of the vector ``world_*``.
LEVELS = ("none", "low", "high")
SHARES = {"none": 0.0, "low": 0.2, "high": 1.0}
#: ``magnetic_distortion`` of each level, in units of the local field, and between which the published training plans draw it.
STRENGTHS = {"none": 0.0, "low": 1.0, "high": 2.5}
DRAWN = {"none": (0.0, 0.0), "low": (0.2, 1.0), "high": (1.5, 2.5)}
#: A number without a level is high from here on: midway between the strongest low and the weakest high one that are drawn.
_HIGH_FROM = (DRAWN["low"][1] + DRAWN["high"][0]) / 2
#: Where a plan says nothing of the field: level and due north, as in the published recordings.
_NORTH: Vector = (0.0, 1.0, 0.0)
#: Units of the ``*_truth`` topics; those of ``*_raw`` where a calibration scales little.
UNITS = {"mag": "field", "acc": "g", "gyro": "rad/s"}
#: More would not fit into memory at once (224 bytes a sample).
_MOST_SAMPLES = 20_000_000
#: No quantity is larger: products of a few of them stay finite.
_LARGEST = 1e30
_YEARS = range(2010, 2030)

Number = Annotated[float, Rules(minimum=-_LARGEST, maximum=_LARGEST, expected="a number (at most 1e30 in size)")]
Amount = Annotated[float, Rules(minimum=0, maximum=_LARGEST, expected="0 or more (at most 1e30)")]
Above0 = Annotated[float, Rules(exclusiveMinimum=0, expected="a number above 0")]
Celsius = Annotated[float, Rules(exclusiveMinimum=-273.15, maximum=_LARGEST, expected="a number above -273.15")]
Row = tuple[Number, Number, Number]
Matrix = Annotated[tuple[Row, Row, Row], Rules(expected="three rows of three numbers")]


@dataclass(frozen=True)
class Xyz:
    x: Number = 0.0
    y: Number = 0.0
    z: Number = 0.0


@dataclass(frozen=True)
class Turn:
    roll: Number = 0.0
    pitch: Number = 0.0
    yaw: Number = 0.0


@dataclass(frozen=True)
class Wxyz:
    """A quaternion of any length."""

    w: Number = 0.0
    x: Number = 0.0
    y: Number = 0.0
    z: Number = 0.0


@dataclass(frozen=True)
class Place:
    lat: Annotated[float, Rules(minimum=-90, maximum=90, expected="-90 to 90 degrees")] = 0.0
    lng: Annotated[float, Rules(minimum=-360, maximum=360, expected="-180 to 180 degrees")] = 0.0
    height: Number = 0.0


@dataclass(frozen=True)
class Pose:
    """Where a recording begins."""

    origin: Place | None = None
    rotation: Wxyz = Wxyz(1.0)
    position: Xyz = Xyz()

    def __post_init__(self) -> None:
        length = math.hypot(*astuple(self.rotation))
        if not 1e-6 < length < 1e6:
            raise SchemaError(("rotation",), why=f"is a quaternion of length {length:g}, expected 1")

    @property
    def quaternion(self) -> Quaternion:
        """The rotation, of length 1."""
        w, x, y, z = astuple(self.rotation)
        length = math.hypot(w, x, y, z)
        # One of length 1 stays what it is, to the bit.
        scale = 1.0 if abs(length - 1.0) < 1e-15 else length
        return (w / scale, x / scale, y / scale, z / scale)


def _check_rank(name: str, matrix: tuple[Vector, Vector, Vector]) -> None:
    """Refuse a matrix that cannot be inverted: its determinant is nothing beside its rows' lengths."""
    (a, b, c), (d, e, f), (g, h, i) = matrix
    size = math.prod(math.hypot(*row) for row in matrix)
    # A product of very small rows may become 0 while each of them can be inverted: a matrix of 1e-150 is no calibration.
    if size == 0 or abs(a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)) <= 1e-12 * size:
        raise SchemaError((name,), "a matrix of full rank, which can be inverted")


@dataclass(frozen=True)
class SensorCalibration:
    """``truth = matrix (raw - bias)``; raw samples are the inverse, ``matrix⁻¹ truth + bias``."""

    bias: Xyz = Xyz()
    matrix: Matrix = IDENTITY
    unit: str = ""  # of raw samples, where the plan says it

    def __post_init__(self) -> None:
        _check_rank("matrix", self.matrix)


@dataclass(frozen=True)
class Noise:
    """Noise of a sensor, by the terms of an Allan deviation (IEEE Std 952), in the unit U of its ``*_truth`` topic."""

    white: Amount = 0.0  # n, U/√Hz (angle or velocity random walk); a sample's standard deviation is N·√rate
    bias_instability: Amount = 0.0  # b, U: flicker noise, whose Allan deviation is level at 0.664 B
    random_walk: Amount = 0.0  # k, U/√s: the bias walks by K·√t


@dataclass(frozen=True)
class Warmth:
    """What a degree above the reference temperature adds to a sensor, and by which share it stretches."""

    bias_per_celsius: Xyz = Xyz()
    scale_per_celsius: Number = 0.0


@dataclass(frozen=True)
class Sensor:
    """One sensor; noise is of the measured value, before the inverse calibration."""

    calibration: SensorCalibration = SensorCalibration()
    noise: Noise = Noise()
    temperature: Warmth = Warmth()


@dataclass(frozen=True)
class Magnetometer(Sensor):
    """A magnetometer, and what iron that moves along makes of the field, in the sensor's frame."""

    soft_iron: Matrix = IDENTITY

    def __post_init__(self) -> None:
        _check_rank("soft_iron", self.soft_iron)


@dataclass(frozen=True)
class EarthField:
    """The undisturbed field; dip counts downward, declination from north to east."""

    dip_degrees: Annotated[float, Rules(minimum=-90, maximum=90, expected="-90 to 90")] | None = None
    declination_degrees: Number | None = None
    model: Annotated[str, Rules(enum=("wmm",))] | None = None
    date: str | None = None

    def __post_init__(self) -> None:
        for name in ("dip_degrees", "declination_degrees"):
            if self.model and getattr(self, name) is not None:
                raise SchemaError((name,), why="is given beside a model; leave one of the two out")

    def vector(self, place: Place | None, start_ns: int) -> Vector:
        """The field in the world frame (east, north, up), of length 1."""
        if not self.model:
            return _field_along(self.dip_degrees or 0.0, self.declination_degrees or 0.0)
        day = _day(self.date, start_ns)
        if place is None:
            raise SchemaError(("model",), why="needs a place; give initialization.pose.origin")
        return _field_along(*dip_and_declination(place, day))


@dataclass(frozen=True)
class Warming:
    """Temperature over time: ``end + (start - end)·exp(-t / time_constant_s)``; sensors are true at the reference."""

    start_celsius: Celsius = 25.0
    end_celsius: Celsius | None = None  # as the start
    reference_celsius: Celsius = 25.0
    time_constant_s: Above0 = 300.0


@dataclass(frozen=True)
class Timing:
    """What happens to raw samples on their way."""

    # the share that is lost, and the standard deviation of their times
    drop_probability: Annotated[float, Rules(minimum=0, exclusiveMaximum=1)] = 0.0
    jitter_s: Amount = 0.0


@dataclass(frozen=True)
class DistortionSource:
    """What distorts, at a place in the world frame: full strength within `radius_m`, then falling with the distance cubed."""

    radius_m: Above0
    position: Xyz = Xyz()


@dataclass(frozen=True)
class Distortion:
    """A segment's distortion, as a vector at full strength."""

    level: Annotated[str, Rules(enum=LEVELS)] = ""  # as the number says
    source: DistortionSource | None = None  # where it comes from; None: it is the same everywhere
    world_x: Number | None = None
    world_y: Number | None = None
    world_z: Number | None = None

    @property
    def world(self) -> Vector | None:
        """The vector; None where no part of it is given."""
        given = self.world_x, self.world_y, self.world_z
        return None if given == (None, None, None) else tuple(part or 0.0 for part in given)  # type: ignore[return-value]


@dataclass(frozen=True)
class Way:
    to: Annotated[Xyz, Rules(expected="a place {x, y, z} in m")]


@dataclass(frozen=True)
class MotionSegment:
    """A part of a recording with one motion and one distortion: its level decides, its number is the strength."""

    duration_s: Above0  # the time over which it turns; it has ``floor(duration_s · rate) + 1`` samples
    name: str = ""
    rotation_rpy_degrees: Turn = Turn()
    path: Way | None = None  # None: it stays
    magnetic_distortion: Amount | None = None
    mag_distortion: Distortion | None = None

    def __post_init__(self) -> None:
        given = self.mag_distortion
        if given is None or self.level == "none":
            return
        if not self.level:
            raise SchemaError(("mag_distortion", "level"), f"one of {', '.join(LEVELS)}")
        if given.world is None and self.magnetic_distortion == 0:
            why = f"is 0, but the level is {self.level}; give its strength, or leave it out"
            raise SchemaError(("magnetic_distortion",), why=why)
        if given.world == ZERO:
            why = f"and world_y and world_z are 0, but the level is {self.level}; a distortion needs a vector"
            raise SchemaError(("mag_distortion", "world_x"), why=why)

    @property
    def level(self) -> str:
        """Its class: none, low or high."""
        strength = self.magnetic_distortion
        implied = "" if strength is None else "none" if strength == 0 else "low" if strength < _HIGH_FROM else "high"
        return (implied or "none") if self.mag_distortion is None else self.mag_distortion.level or implied

    @property
    def distortion(self) -> Vector:
        """What is added to the field in the world frame, in units of the local field, at full strength.

        Without a vector it points east, across the reference, so that it turns the heading.
        """
        if self.level == "none":
            return ZERO
        if self.mag_distortion is not None and self.mag_distortion.world is not None:
            x, y, z = (SHARES[self.level] * part for part in self.mag_distortion.world)
            return (x, y, z)
        return (STRENGTHS[self.level] if self.magnetic_distortion is None else self.magnetic_distortion, 0.0, 0.0)


@dataclass(frozen=True)
class Initialization:
    """What holds for a whole recording."""

    sample_rate: Above0  # Hz; samples stand ``floor(10**9 / rate)`` ns apart
    start_time_ns: Whole = 0  # of the first sample, Unix ns
    pose: Pose = Pose()
    magnetic_field: EarthField = EarthField()
    mag: Magnetometer = Magnetometer()
    acc: Sensor = Sensor()
    gyro: Sensor = Sensor()
    temperature: Warming | None = None  # none: the sensors are at their reference temperature
    timing: Timing = Timing()


@dataclass(frozen=True)
class _Document:
    """A plan's JSON."""

    initialization: Annotated[Initialization, Rules(expected="a JSON object with at least `sample_rate`")]
    segments: Annotated[tuple[MotionSegment, ...], Rules(minItems=1)]


@dataclass(frozen=True, kw_only=True)
class MotionPlan(Initialization):
    """A recording to be made."""

    segments: tuple[MotionSegment, ...]  # one after the other
    planned: tuple[Mapping[str, Any], ...]  # the segments as the plan's JSON has them
    notes: tuple[str, ...] = ()  # members of the JSON that have no effect

    def __post_init__(self) -> None:
        rate, total = self.sample_rate, 0.0
        if rate > NS:
            why = f"is {rate:g}, expected at most 10**9: samples are at least 1 ns apart"
            raise SchemaError(("initialization", "sample_rate"), why=why)
        for number, segment in enumerate(self.segments):
            duration, steps = segment.duration_s, steps_of(segment.duration_s, rate)
            where = ("segments", number, "duration_s")
            if steps < 1:
                raise SchemaError(where, why=f"is {duration:g}, shorter than one sample at {rate:g} Hz")
            for axis, angle in vars(segment.rotation_rpy_degrees).items():
                if abs(angle) / steps >= 180:
                    why = f"is {angle:g} in {duration:g} s: half a turn or more between two samples at {rate:g} Hz"
                    raise SchemaError(("segments", number, "rotation_rpy_degrees", axis), why=why)
            total += duration * rate + 1
            if total > _MOST_SAMPLES:
                why = f"makes more than {_MOST_SAMPLES:,} samples in all; make several plans of it"
                raise SchemaError(where, why=why)
        if self.start_time_ns + self.interval_ns * sum(self.counts) >= 2**63:
            why = f"is {self.start_time_ns}, and the last sample would come after 2**63 ns"
            raise SchemaError(("initialization", "start_time_ns"), why=why)
        _ = self.field

    @cached_property
    def field(self) -> Vector:
        """The undisturbed magnetic field in the world frame (east, north, up), of length 1."""
        try:
            return self.magnetic_field.vector(self.pose.origin, self.start_time_ns)
        except SchemaError as wrong:
            wrong.path = ("initialization", "magnetic_field", *wrong.path)
            raise

    @property
    def interval_ns(self) -> int:
        return math.floor(NS / self.sample_rate)

    @property
    def counts(self) -> list[int]:
        """Samples of each segment: those that begin within it, by whole nanoseconds."""
        return [-(-math.floor(NS * segment.duration_s) // self.interval_ns) for segment in self.segments]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """From when to when each segment lasts, ns; it ends where the next one's first sample stands."""
        ends = [self.start_time_ns + count * self.interval_ns for count in accumulate([0, *self.counts])]
        return list(pairwise(ends))

    def unit(self, topic: str) -> str:
        """Unit of a sensor's topic; raw numbers that a calibration scales are counts, if the plan says nothing else."""
        name, _, kind = topic.partition("_")
        sensor: Sensor = getattr(self, name)
        scales = [math.hypot(*row) for row in sensor.calibration.matrix]
        if kind == "truth":
            return UNITS[name]
        return sensor.calibration.unit or (UNITS[name] if all(0.5 < scale < 2 for scale in scales) else "counts")


def load_plan(path: str | Path) -> MotionPlan:
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise PlanError(f"cannot be read ({error.strerror or error})", path) from None
    except (ValueError, RecursionError) as error:
        raise PlanError(f"is no JSON ({error})", path) from None
    return parse_plan(value, str(path))


def parse_plan(value: Any, path: str = "") -> MotionPlan:
    """A plan from parsed JSON.

    Examples
    --------
    >>> plan = parse_plan({"initialization": {"sample_rate": 100}, "segments": [{"duration_s": 2}]})
    >>> plan.interval_ns, plan.counts, plan.field
    (10000000, [200], (0.0, 1.0, 0.0))
    """
    notes: list[str] = []
    try:
        document = read(_Document, _known(kind_of(_Document), value, (), notes))
        field = document.initialization.magnetic_field
        notes += ["initialization.magnetic_field.date has no effect without a model"] * bool(
            field.date and not field.model
        )
        for number, segment in enumerate(document.segments):
            if segment.level == "none" and segment.magnetic_distortion:
                name = f"segments[{number}].magnetic_distortion"
                notes.append(f"{name} is {segment.magnetic_distortion:g} and has no effect: the level is none")
        segments = tuple(replace(s, name=s.name or f"segment{i}") for i, s in enumerate(document.segments, 1))
        planned = tuple(value["segments"])
        return MotionPlan(**vars(document.initialization), segments=segments, planned=planned, notes=tuple(notes))
    except SchemaError as wrong:
        raise PlanError(_words(wrong, value), path) from None


def _known(kind: Kind, value: Any, way: tuple[str | int, ...], notes: list[str]) -> Any:
    """A value without the members that no type has, which are noted, and without null."""
    if isinstance(value, list):
        return [_known(kind.inner[0], item, (*way, i), notes) for i, item in enumerate(value)] if kind.inner else value
    base = next((inner.base for inner in (kind, *kind.inner) if is_dataclass(inner.base)), None)
    if base is None or not isinstance(value, dict):
        return value
    kinds = kinds_of(base)
    known = {k: _known(kinds[k], value[k], (*way, k), notes) for k in kinds if value.get(k) is not None}
    notes += [f"{_name((*way, key))} is not known and has no effect" for key in value if key not in kinds]
    return known


def _words(wrong: SchemaError, document: Any) -> str:
    """What is wrong with a plan, with what stands there."""
    name, value = _name(wrong.path), document
    if wrong.why:
        return f"{name} {wrong.why}"
    for part in wrong.path:
        value = value[part] if isinstance(part, int) else value.get(part)
    text = repr(value)
    stands = "missing" if value is None else text if len(text) <= 60 else text[:57] + "…"
    if name == "segments":
        stands, wrong.expected = "missing or empty", "a list of segments"
    return f"{name or 'the plan'} is {stands}, expected {wrong.expected.replace('a table', 'a JSON object')}"


def _name(way: tuple[str | int, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in way).removeprefix(".")


def _day(text: str | None, start_ns: int) -> date:
    """The day of which a field is; by default that of the start."""
    try:
        started = datetime.fromtimestamp(start_ns // NS, UTC).date() if start_ns < 2**33 * NS else date.max
        day = started if text is None else date.fromisoformat(text)
    except ValueError:
        raise SchemaError(("date",), why=f"is {text!r}, expected a day such as 2026-03-01") from None
    if day.year not in _YEARS:
        states = "is missing, and the start time means" if text is None else "is"
        raise SchemaError(("date",), why=f"{states} {day}; the model holds for {_YEARS[0]} to {_YEARS[-1]}")
    return day


def _field_along(dip_degrees: float, declination_degrees: float) -> Vector:
    """Unit vector (east, north, up) of a field.

    Examples
    --------
    >>> [round(x, 3) for x in _field_along(60, 90)]
    [0.5, 0.0, -0.866]
    """
    if dip_degrees == declination_degrees == 0:
        return _NORTH
    dip, declination = math.radians(dip_degrees), math.radians(declination_degrees)
    level = math.cos(dip)
    return (level * math.sin(declination), level * math.cos(declination), -math.sin(dip))


def dip_and_declination(place: Place, day: date) -> tuple[float, float]:
    """Dip and declination by the World Magnetic Model."""
    from pygeomag import GeoMag

    year = day.year + (day.timetuple().tm_yday - 1) / date(day.year, 12, 31).timetuple().tm_yday
    edition = max(2010, day.year - day.year % 5)
    model = GeoMag(base_year=None if edition == 2025 else float(edition))
    lng = (place.lng + 180.0) % 360.0 - 180.0
    height_km = place.height / 1000.0
    field = model.calculate(glat=place.lat, glon=lng, alt=height_km, time=year, allow_date_outside_lifespan=False)
    return float(field.i), float(field.d)


def steps_of(duration_s: float, rate_hz: float) -> int:
    """By how many steps a segment's turn is divided: the whole sample intervals in its duration, as the published generator counts."""
    return math.floor(duration_s * rate_hz)
