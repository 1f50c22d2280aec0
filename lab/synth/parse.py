"""Reading motion plans. In: a plan's JSON, or its file. Out: a :class:`MotionPlan`, or an error that names the member.

A member's full name is written as a programmer would: ``segments[2].duration_s``. Members that nobody asked for are kept
in :attr:`Members.notes`, so that a misspelt one does not vanish in silence. A field of the Earth that a plan asks for by a place
and a date is the World Magnetic Model's, which comes with the library pygeomag for dates from 2010 to 2030.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NoReturn

from kymo.lab.synth.plan import (
    DIRECTION,
    DRAWN,
    IDENTITY,
    LEVELS,
    MOST_SAMPLES,
    SHARES,
    STRENGTHS,
    ZERO,
    Matrix,
    MotionPlan,
    MotionSegment,
    Noise,
    Sensor,
    Source,
    Start,
    Timing,
    Vector,
    Warming,
    count_of,
    steps_of,
)
from kymo.streams.errors import PlanError
from kymo.streams.words import NS

#: A number without a level is high from here on: midway between the strongest low and the weakest high one that are drawn.
_HIGH_FROM = (DRAWN["low"][1] + DRAWN["high"][0]) / 2
#: Where a plan says nothing of the field: level and due north, as in the published recordings.
_NORTH: Vector = (0.0, 1.0, 0.0)
_MODELS = ("wmm",)
_FIRST_YEAR, _BEHIND_YEAR = 2010, 2030
#: No quantity in a plan is larger.
_LARGEST = 1e30


def load_plan(path: str | Path) -> MotionPlan:
    """A plan from a file."""
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
    document = Members(value, "", path)
    initialization = document.members("initialization")
    if initialization is None:
        document.fail("initialization", "is missing, expected a JSON object with at least `sample_rate`")
    rate_hz = initialization.number("sample_rate", over=0.0)
    if rate_hz > NS:
        initialization.fail("sample_rate", f"is {rate_hz:g}, expected at most 10**9: samples are at least 1 ns apart")
    start_ns = initialization.whole("start_time_ns", 0)
    pose = initialization.members("pose")
    start = Start() if pose is None else _start(pose)
    field = _field(
        initialization.members("magnetic_field"), start if pose is not None and "origin" in pose else None, start_ns
    )
    mag, acc, gyro = (_sensor(initialization.members(name), name) for name in ("mag", "acc", "gyro"))
    warming, timing = _warming(initialization.members("temperature")), _timing(initialization.members("timing"))
    initialization.done()
    segments, planned = _segments(document, rate_hz)
    document.done()
    last_ns = start_ns + math.floor(NS / rate_hz) * sum(count_of(s.duration_s, rate_hz) for s in segments)
    if last_ns >= 2**63:
        initialization.fail("start_time_ns", f"is {start_ns}, and the last sample would come after 2**63 ns")
    return MotionPlan(
        start_ns, rate_hz, start, mag, acc, gyro, field, warming, timing, segments, planned, tuple(document.notes)
    )


def _start(pose: Members) -> Start:
    origin, rotation = pose.members("origin"), pose.members("rotation")
    lat = lng = height = 0.0
    if origin is not None:
        lat, lng, height = (origin.number(name, 0.0) for name in ("lat", "lng", "height"))
        if abs(lat) > 90:
            origin.fail("lat", f"is {lat:g}, expected -90 to 90 degrees")
        if abs(lng) > 360:
            origin.fail("lng", f"is {lng:g}, expected -180 to 180 degrees")
        origin.done()
    quaternion = (1.0, 0.0, 0.0, 0.0)
    if rotation is not None:
        w, x, y, z = (rotation.number(name, 0.0) for name in "wxyz")
        length = math.hypot(w, x, y, z)
        if not 1e-6 < length < 1e6:
            pose.fail("rotation", f"is a quaternion of length {length:g}, expected 1")
        # One of length 1 stays what it is, to the bit.
        scale = 1.0 if abs(length - 1.0) < 1e-15 else length
        quaternion = (w / scale, x / scale, y / scale, z / scale)
        rotation.done()
    position = pose.vector("position")
    pose.done()
    return Start(lat, lng, height, position, quaternion)


def _sensor(sensor: Members | None, name: str) -> Sensor:
    if sensor is None:
        return Sensor()
    calibration, noise, warm = (sensor.members(key) for key in ("calibration", "noise", "temperature"))
    fields: dict[str, Any] = {}
    if calibration is not None:
        fields |= {"bias": calibration.vector("bias"), "matrix": calibration.matrix("matrix")}
        fields["unit"] = calibration.text("unit", "")
        calibration.done()
    if noise is not None:
        fields["noise"] = Noise(*(noise.number(key, 0.0, least=0.0) for key in Noise.__slots__))
        noise.done()
    if warm is not None:
        fields["bias_per_celsius"] = warm.vector("bias_per_celsius")
        fields["scale_per_celsius"] = warm.number("scale_per_celsius", 0.0)
        warm.done()
    if name == "mag":
        fields["soft_iron"] = sensor.matrix("soft_iron")
    sensor.done()
    return Sensor(**fields)


def _warming(temperature: Members | None) -> Warming | None:
    if temperature is None:
        return None
    start = temperature.number("start_celsius", 25.0, over=-273.15)
    end, reference = (
        temperature.number(f"{key}_celsius", default, over=-273.15)
        for key, default in (("end", start), ("reference", 25.0))
    )
    warming = Warming(start, end, reference, temperature.number("time_constant_s", 300.0, over=0.0))
    temperature.done()
    return warming


def _timing(timing: Members | None) -> Timing:
    if timing is None:
        return Timing()
    drop = timing.number("drop_probability", 0.0, least=0.0)
    if drop >= 1:
        timing.fail("drop_probability", f"is {drop:g}, expected below 1: no sample would be left")
    jitter_s = timing.number("jitter_s", 0.0, least=0.0)
    timing.done()
    return Timing(drop, jitter_s)


def _segments(document: Members, rate_hz: float) -> tuple[tuple[MotionSegment, ...], tuple[Mapping[str, Any], ...]]:
    listed = document.get("segments")
    if not isinstance(listed, list) or not listed:
        document.fail("segments", "is missing or empty, expected a list of segments")
    segments, total = [], 0.0
    for number, value in enumerate(listed):
        members = Members(value, f"segments[{number}]", document.path, document.notes)
        segments.append(_segment(members, number, rate_hz))
        total += segments[-1].duration_s * rate_hz + 1
        if total > MOST_SAMPLES:
            members.fail("duration_s", f"makes more than {MOST_SAMPLES:,} samples in all; make several plans of it")
    return tuple(segments), tuple(listed)


def _segment(members: Members, number: int, rate_hz: float) -> MotionSegment:
    name = members.text("name", f"segment{number + 1}")
    duration = members.number("duration_s", over=0.0)
    if steps_of(duration, rate_hz) < 1:
        members.fail("duration_s", f"is {duration:g}, shorter than one sample at {rate_hz:g} Hz")
    rotation = members.vector("rotation_rpy_degrees", names=("roll", "pitch", "yaw"))
    for axis, angle in zip(("roll", "pitch", "yaw"), rotation, strict=True):
        if abs(angle) / steps_of(duration, rate_hz) >= 180:
            members.fail(
                f"rotation_rpy_degrees.{axis}",
                f"is {angle:g} in {duration:g} s: half a turn or more between two samples at {rate_hz:g} Hz",
            )
    path, to = members.members("path"), None
    if path is not None:
        if "to" not in path:
            path.fail("to", "is missing, expected a place {x, y, z} in m")
        to = path.vector("to")
        path.done()
    level, vector, source = _distortion(members)
    members.done()
    return MotionSegment(name, duration, rotation, to, level, vector, source)


def _level_of(strength: float) -> str:
    """The level of a ``magnetic_distortion`` that stands alone."""
    return "none" if strength == 0 else "low" if strength < _HIGH_FROM else "high"


def _distortion(segment: Members) -> tuple[str, Vector, Source | None]:
    """Level, vector at full strength and source of a segment's distortion: the level decides, the number is its strength."""
    strength = segment.number("magnetic_distortion", least=0.0) if "magnetic_distortion" in segment else None
    segment.get("magnetic_distortion")
    distortion = segment.members("mag_distortion")
    implied = None if strength is None else _level_of(strength)
    if distortion is None:
        return implied or "none", _vector_of(strength or 0.0), None
    level = distortion.text("level", implied, LEVELS)
    source = _source(distortion.members("source"))
    stated = any(f"world_{axis}" in distortion for axis in "xyz")
    world = tuple(distortion.number(f"world_{axis}", 0.0) for axis in "xyz")
    distortion.done()
    if level == "none":
        if strength:
            segment.notes.append(
                f"{segment.full('magnetic_distortion')} is {strength:g} and has no effect: the level is none"
            )
        return level, ZERO, source
    if not stated:
        if strength == 0:
            segment.fail("magnetic_distortion", f"is 0, but the level is {level}; give its strength, or leave it out")
        return level, _vector_of(STRENGTHS[level] if strength is None else strength), source
    if not any(world):
        distortion.fail(
            "world_x", f"and world_y and world_z are 0, but the level is {level}; a distortion needs a vector"
        )
    x, y, z = (SHARES[level] * value for value in world)
    return level, (x, y, z), source


def _vector_of(strength: float) -> Vector:
    x, y, z = DIRECTION
    return (strength * x, strength * y, strength * z)


def _source(source: Members | None) -> Source | None:
    if source is None:
        return None
    position, radius_m = source.vector("position"), source.number("radius_m", over=0.0)
    source.done()
    return Source(position, radius_m)


def _field(field: Members | None, start: Start | None, start_ns: int) -> Vector:
    """The undisturbed field that a plan asks for, of length 1, in the world frame (east, north, up)."""
    if field is None:
        return _NORTH
    if "model" not in field:
        dip, declination = (field.number(f"{name}_degrees", 0.0) for name in ("dip", "declination"))
        field.done()
        if abs(dip) > 90:
            field.fail("dip_degrees", f"is {dip:g}, expected -90 to 90")
        return _field_along(dip, declination)
    field.text("model", allowed=_MODELS)
    for name in ("dip_degrees", "declination_degrees"):
        if name in field:
            field.fail(name, "is given beside a model; leave one of the two out")
    day = _date(field, start_ns)
    if start is None:
        field.fail("model", "needs a place; give initialization.pose.origin")
    field.done()
    return _field_along(*dip_and_declination(start.lat, start.lng, start.height, day))


def _field_along(dip_degrees: float, declination_degrees: float) -> Vector:
    """Unit vector (east, north, up) of a field; dip counts downward, declination from north to east.

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


def dip_and_declination(lat: float, lng: float, height_m: float, day: date) -> tuple[float, float]:
    """Dip and declination by the World Magnetic Model."""
    from pygeomag import GeoMag

    year = day.year + (day.timetuple().tm_yday - 1) / (366 if _leap(day.year) else 365)
    edition = max(2010, day.year - day.year % 5)
    model = GeoMag(base_year=None if edition == 2025 else float(edition))
    lng = (lng + 180.0) % 360.0 - 180.0
    field = model.calculate(glat=lat, glon=lng, alt=height_m / 1000.0, time=year, allow_date_outside_lifespan=False)
    return float(field.i), float(field.d)


def _date(field: Members, start_ns: int) -> date:
    if "date" in field:
        text = field.text("date")
        try:
            day = date.fromisoformat(text)
        except ValueError:
            field.fail("date", f"is {text!r}, expected a day such as 2026-03-01")
    else:
        day = datetime.fromtimestamp(start_ns // NS, UTC).date() if start_ns < 2**33 * NS else date.max
    if not _FIRST_YEAR <= day.year < _BEHIND_YEAR:
        field.fail(
            "date",
            f"{'is' if 'date' in field else 'is missing, and the start time means'} {day}; the model holds for "
            f"{_FIRST_YEAR} to {_BEHIND_YEAR - 1}",
        )
    return day


def _leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


class Members:
    """The members of one JSON object of a plan."""

    def __init__(self, value: Any, name: str, path: str, notes: list[str] | None = None) -> None:
        self.name, self.path = name, path
        self.notes: list[str] = [] if notes is None else notes
        if not isinstance(value, dict):
            raise PlanError(f"{name or 'the plan'} is {_shown(value)}, expected a JSON object", path)
        self._value, self._asked = value, set[str]()

    def __contains__(self, key: str) -> bool:
        return self._value.get(key) is not None

    def full(self, key: str) -> str:
        """A member's full name."""
        return f"{self.name}.{key}" if self.name else key

    def fail(self, key: str, message: str) -> NoReturn:
        """Refuse a member."""
        raise PlanError(f"{self.full(key)} {message}", self.path)

    def get(self, key: str) -> Any:
        """A member as it stands; None where it is not there."""
        self._asked.add(key)
        return self._value.get(key)

    def number(
        self, key: str, default: float | None = None, *, least: float = -math.inf, over: float = -math.inf
    ) -> float:
        """A finite number, at least `least` and above `over`; without a default it must be there."""
        value = self.get(key)
        if value is None:
            if default is None:
                self.fail(key, "is missing, expected a number")
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
            self.fail(key, f"is {_shown(value)}, expected a number (at most 1e30 in size)")
        if value < least:
            self.fail(key, f"is {value}, expected {least:g} or more")
        if value <= over:
            self.fail(key, f"is {value}, expected a number above {over:g}")
        return float(value)

    def whole(self, key: str, default: int) -> int:
        """A whole number from 0, below 2**63."""
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
            self.fail(key, f"is {_shown(value)}, expected a whole number from 0 to 2**63 - 1")
        return value

    def text(self, key: str, default: str | None = None, allowed: Sequence[str] = ()) -> str:
        """A text, one of those allowed."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or (allowed and value not in allowed):
            expected = f"one of {', '.join(allowed)}" if allowed else "a text"
            self.fail(
                key, f"is missing, expected {expected}" if value is None else f"is {_shown(value)}, expected {expected}"
            )
        return value

    def vector(self, key: str, default: Vector = ZERO, names: tuple[str, str, str] = ("x", "y", "z")) -> Vector:
        """An object of three numbers; one that is not there is the default's."""
        parts = self.members(key)
        if parts is None:
            return default
        x, y, z = (parts.number(name, preset) for name, preset in zip(names, default, strict=True))
        parts.done()
        return x, y, z

    def matrix(self, key: str, default: Matrix = IDENTITY) -> Matrix:
        """Three rows of three finite numbers that can be inverted."""
        rows = self.get(key)
        if rows is None:
            return default
        shaped = isinstance(rows, list) and len(rows) == 3 and all(isinstance(r, list) and len(r) == 3 for r in rows)
        if not shaped or any(
            isinstance(x, bool) or not isinstance(x, int | float) or not _finite(x) for r in rows for x in r
        ):
            self.fail(key, f"is {_shown(rows)}, expected three rows of three numbers")
        a, b, c = (tuple(float(x) for x in row) for row in rows)
        matrix: Matrix = ((a[0], a[1], a[2]), (b[0], b[1], b[2]), (c[0], c[1], c[2]))
        if _singular(matrix):
            self.fail(key, f"is {_shown(rows)}, which cannot be inverted; expected a matrix of full rank")
        return matrix

    def members(self, key: str) -> Members | None:
        """A JSON object; None where it is not there."""
        value = self.get(key)
        return None if value is None else Members(value, self.full(key), self.path, self.notes)

    def done(self) -> None:
        """Note the members that nobody asked for."""
        self.notes += [
            f"{self.full(key)} is not known and has no effect" for key in self._value if key not in self._asked
        ]


def _singular(matrix: Matrix) -> bool:
    """Whether a matrix cannot be inverted: its determinant is nothing beside its rows' lengths."""
    (a, b, c), (d, e, f), (g, h, i) = matrix
    size = math.prod(math.hypot(*row) for row in matrix)
    # A product of very small rows may become 0 while each of them can be inverted: a matrix of 1e-150 is no calibration.
    return size == 0 or abs(a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)) <= 1e-12 * size


def _finite(value: float) -> bool:
    """Whether a number is one that can be reckoned with: products of a few of them must stay finite."""
    return -_LARGEST <= value <= _LARGEST


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
