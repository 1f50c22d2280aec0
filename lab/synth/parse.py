"""Reading motion plans. In: a plan's JSON, or its file. Out: a :class:`Plan`, or an error that names the field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.synth.earth import field_of
from lab.synth.members import Members, Vector
from lab.synth.plan import (
    DIRECTION,
    LEVELS,
    MOST_SAMPLES,
    NS,
    SHARES,
    STRENGTHS,
    Noise,
    Plan,
    Segment,
    Sensor,
    Source,
    Start,
    Timing,
    Warming,
    count_of,
    steps_of,
)
from streams.errors import PlanError

_HALFWAY = (STRENGTHS["low"] + STRENGTHS["high"]) / 2


def load_plan(path: str | Path) -> Plan:
    """A plan from a file."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise PlanError(f"cannot be read ({error.strerror or error})", path) from None
    except (ValueError, RecursionError) as error:
        raise PlanError(f"is no JSON ({error})", path) from None
    return parse_plan(value, str(path))


def parse_plan(value: Any, path: str = "") -> Plan:
    """A plan from parsed JSON.

    Examples
    --------
    >>> plan = parse_plan({"initialization": {"sample_rate": 100}, "segments": [{"duration_s": 2}]})
    >>> plan.interval_ns, plan.counts, plan.field
    (10000000, [200], (0.0, 1.0, 0.0))
    """
    whole = Members(value, "", path)
    first = whole.members("initialization")
    if first is None:
        whole.fail("initialization", "is missing, expected a JSON object with at least `sample_rate`")
    rate_hz = first.number("sample_rate", over=0.0)
    if rate_hz > NS:
        first.fail("sample_rate", f"is {rate_hz:g}, expected at most 10**9: samples are at least 1 ns apart")
    start_ns = first.whole("start_time_ns", 0)
    pose = first.members("pose")
    start = Start() if pose is None else _start(pose)
    field = field_of(
        first.members("magnetic_field"), start if pose is not None and "origin" in pose else None, start_ns
    )
    mag, acc, gyro = (_sensor(first.members(name), name) for name in ("mag", "acc", "gyro"))
    warming, timing = _warming(first.members("temperature")), _timing(first.members("timing"))
    first.done()
    segments, planned = _segments(whole, rate_hz)
    whole.done()
    last_ns = start_ns + math.floor(NS / rate_hz) * sum(count_of(s.duration_s, rate_hz) for s in segments)
    if last_ns >= 2**63:
        first.fail("start_time_ns", f"is {start_ns}, and the last sample would come after 2**63 ns")
    return Plan(start_ns, rate_hz, start, mag, acc, gyro, field, warming, timing, segments, planned, tuple(whole.notes))


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


def _sensor(found: Members | None, name: str) -> Sensor:
    if found is None:
        return Sensor()
    calibration, noise, warm = (found.members(key) for key in ("calibration", "noise", "temperature"))
    made: dict[str, Any] = {}
    if calibration is not None:
        made |= {"bias": calibration.vector("bias"), "matrix": calibration.matrix("matrix")}
        calibration.done()
    if noise is not None:
        made["noise"] = Noise(*(noise.number(key, 0.0, least=0.0) for key in Noise.__slots__))
        noise.done()
    if warm is not None:
        made["bias_per_celsius"] = warm.vector("bias_per_celsius")
        made["scale_per_celsius"] = warm.number("scale_per_celsius", 0.0)
        warm.done()
    if name == "mag":
        made["soft_iron"] = found.matrix("soft_iron")
    found.done()
    return Sensor(**made)


def _warming(found: Members | None) -> Warming | None:
    if found is None:
        return None
    start = found.number("start_celsius", 25.0, over=-273.15)
    end, reference = (
        found.number(f"{key}_celsius", d, over=-273.15) for key, d in (("end", start), ("reference", 25.0))
    )
    made = Warming(start, end, reference, found.number("time_constant_s", 300.0, over=0.0))
    found.done()
    return made


def _timing(found: Members | None) -> Timing:
    if found is None:
        return Timing()
    drop = found.number("drop_probability", 0.0, least=0.0)
    if drop >= 1:
        found.fail("drop_probability", f"is {drop:g}, expected below 1: no sample would be left")
    made = Timing(drop, found.number("jitter_s", 0.0, least=0.0))
    found.done()
    return made


def _segments(whole: Members, rate_hz: float) -> tuple[tuple[Segment, ...], tuple[Mapping[str, Any], ...]]:
    listed = whole.get("segments")
    if not isinstance(listed, list) or not listed:
        whole.fail("segments", "is missing or empty, expected a list of segments")
    made, total = [], 0.0
    for number, value in enumerate(listed):
        found = Members(value, f"segments[{number}]", whole.path, whole.notes)
        made.append(_segment(found, number, rate_hz))
        total += made[-1].duration_s * rate_hz + 1
        if total > MOST_SAMPLES:
            found.fail("duration_s", f"makes more than {MOST_SAMPLES:,} samples in all; make several plans of it")
    return tuple(made), tuple(listed)


def _segment(found: Members, number: int, rate_hz: float) -> Segment:
    name = found.text("name", f"segment{number + 1}")
    duration = found.number("duration_s", over=0.0)
    if steps_of(duration, rate_hz) < 1:
        found.fail("duration_s", f"is {duration:g}, shorter than one sample at {rate_hz:g} Hz")
    rotation = found.vector("rotation_rpy_degrees", names=("roll", "pitch", "yaw"))
    for axis, angle in zip(("roll", "pitch", "yaw"), rotation, strict=True):
        if abs(angle) / steps_of(duration, rate_hz) >= 180:
            found.fail(
                f"rotation_rpy_degrees.{axis}",
                f"is {angle:g} in {duration:g} s: half a turn or more between two samples at {rate_hz:g} Hz",
            )
    path, to = found.members("path"), None
    if path is not None:
        if "to" not in path:
            path.fail("to", "is missing, expected a place {x, y, z} in m")
        to = path.vector("to")
        path.done()
    level, vector, source = _distortion(found)
    found.done()
    return Segment(name, duration, rotation, to, level, vector, source)


def level_of(strength: float) -> str:
    """The level of a ``magnetic_distortion``: none at 0, high from midway between those of low and high."""
    return "none" if strength == 0 else "low" if strength < _HALFWAY else "high"


def _distortion(found: Members) -> tuple[str, Vector, Source | None]:
    """Level, vector at full strength and source of a segment's distortion."""
    strength = found.number("magnetic_distortion", least=0.0) if "magnetic_distortion" in found else None
    found.get("magnetic_distortion")
    given = found.members("mag_distortion")
    implied = None if strength is None else level_of(strength)
    if given is None:
        return implied or "none", _along(strength or 0.0), None
    level = given.text("level", implied, LEVELS)
    if implied is not None and implied != level:
        given.fail(
            "level", f"is {level}, but {found.full('magnetic_distortion')} is {strength:g}, which means {implied}"
        )
    source = _source(given.members("source"))
    stated = any(f"world_{axis}" in given for axis in "xyz")
    world = tuple(given.number(f"world_{axis}", 0.0) for axis in "xyz")
    given.done()
    if not stated:
        return level, _along(STRENGTHS[level] if strength is None else strength), source
    if level != "none" and not any(world):
        given.fail("world_x", f"and world_y and world_z are 0, but the level is {level}; a distortion needs a vector")
    x, y, z = (SHARES[level] * value for value in world)
    return level, (x, y, z), source


def _along(strength: float) -> Vector:
    x, y, z = DIRECTION
    return (strength * x, strength * y, strength * z)


def _source(found: Members | None) -> Source | None:
    if found is None:
        return None
    made = Source(found.vector("position"), found.number("radius_m", over=0.0))
    found.done()
    return made
