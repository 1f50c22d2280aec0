"""Making synthetic recordings beside a plain loop. In: nothing (a plan of so many seconds). Out: seconds by the clock and of the processor.

The loop is what one writes first: in Python, a sample after the other, a quaternion product, two vectors turned into the
sensor's frame by two products each, three inverse calibrations; then ``json.dumps`` and mcap's own writer. Both make the same
numbers (compared to 1e-9) and the same messages (read back and compared). They take turns; a ratio is the median of the ratios of
rounds that lie side by side. Of the numbers, a turn is the best of three calls: what is kept of the loop's is given back behind it,
and whoever comes next pays for getting the memory anew. Nothing is noisy: random numbers would cost both the same.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mcap.reader import make_reader
from mcap.writer import Writer

from benchmarks.turns import Call, Seconds, medians, ratios, timed, turn
from kymo.lab.synth.files import synth as make_file
from kymo.lab.synth.mcap_file import SCHEMA, SCHEMA_NAME
from kymo.lab.synth.plan import parse_plan
from kymo.lab.synth.simulate import ORDER, TOPICS, simulate

RATE_HZ, SEGMENT_S = 100, 10
Vector = tuple[float, ...]
_SCALES = {"mag": 0.00053, "acc": 0.000185, "gyro": 0.00001}


def plan_of(seconds: float) -> dict[str, Any]:
    """A plan of segments of 10 s, one in three without a distortion, calibrations as in the published plan."""
    random = np.random.default_rng(0)
    sensors = {
        name: {"calibration": {"matrix": [[scale if i == j else 0.0 for j in range(3)] for i in range(3)]}}
        for name, scale in _SCALES.items()
    }
    segments = []
    for number in range(math.ceil(seconds / SEGMENT_S)):
        turn, world = random.uniform(-180, 180, 3).tolist(), random.uniform(-0.2, 0.2, 3).tolist()
        level = ("none", "low", "high")[number % 3]
        segments.append(
            {
                "duration_s": min(SEGMENT_S, seconds - number * SEGMENT_S),
                "rotation_rpy_degrees": dict(zip(("roll", "pitch", "yaw"), turn, strict=True)),
                "mag_distortion": {"level": level} | {f"world_{a}": w for a, w in zip("xyz", world, strict=True)},
            }
        )
    return {"initialization": {"sample_rate": RATE_HZ} | sensors, "segments": segments}


def loop(plan: dict[str, Any]) -> Iterator[tuple[int, dict[str, Vector]]]:
    """Time and values by topic of every sample, one after the other."""
    first = plan["initialization"]
    rate, time, interval = first["sample_rate"], 0, 10**9 // first["sample_rate"]
    inverse = {name: np.linalg.inv(first[name]["calibration"]["matrix"]).tolist() for name in _SCALES}
    shares = {"none": 0.0, "low": 0.2, "high": 1.0}
    q: Vector = (1.0, 0.0, 0.0, 0.0)
    for segment in plan["segments"]:
        steps = int(segment["duration_s"] * rate)
        step = euler(*(math.radians(segment["rotation_rpy_degrees"][a] / steps) for a in ("roll", "pitch", "yaw")))
        share = shares[segment["mag_distortion"]["level"]]
        x, y, z = (share * segment["mag_distortion"][f"world_{axis}"] for axis in "xyz")
        for _ in range(-(-int(10**9 * segment["duration_s"]) // interval)):
            q = multiply(q, step)
            truth = {
                "mag": into_sensor(q, (x, 1.0 + y, z)),
                "acc": into_sensor(q, (0.0, 0.0, 1.0)),
                "gyro": (2.0 * step[1] * rate, 2.0 * step[2] * rate, 2.0 * step[3] * rate),
            }
            values = {}
            for name, vector in truth.items():
                values[f"{name}_truth"] = vector
                values[f"{name}_raw"] = times(inverse[name], vector)
            values["pose_truth"] = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, *q)
            yield time, values
            time += interval


def euler(roll: float, pitch: float, yaw: float) -> Vector:
    """Quaternion of roll about x, then pitch about y, then yaw about z."""
    cr, sr, cp, sp = math.cos(roll / 2), math.sin(roll / 2), math.cos(pitch / 2), math.sin(pitch / 2)
    cy, sy = math.cos(yaw / 2), math.sin(yaw / 2)
    return (
        cr * cp * cy + sr * sp * sy,
        sr * cp * cy - cr * sp * sy,
        cr * sp * cy + sr * cp * sy,
        cr * cp * sy - sr * sp * cy,
    )


def multiply(a: Vector, b: Vector) -> Vector:
    aw, ax, ay, az = a
    bw, bx, by, bz = b
    return (
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    )


def into_sensor(q: Vector, v: Vector) -> Vector:
    """A vector of the world in the sensor's frame: q* v q."""
    w, x, y, z = q
    return multiply(multiply((w, -x, -y, -z), (0.0, *v)), q)[1:]


def times(m: list[list[float]], v: Vector) -> Vector:
    a, b, c = v
    return tuple(row[0] * a + row[1] * b + row[2] * c for row in m)


def by_loop(plan: dict[str, Any], path: Path) -> None:
    """The file, by mcap's writer."""
    with path.open("wb") as out:
        writer = Writer(out)
        writer.start()
        schema = writer.register_schema(SCHEMA_NAME, "jsonschema", json.dumps(SCHEMA).encode())
        channels = {topic: writer.register_channel(topic, "json", schema) for topic in TOPICS}
        for time, values in loop(plan):
            for topic in ORDER:
                data = json.dumps({"id": topic, "timestamp": time, "values": values[topic]}).encode()
                writer.add_message(channels[topic], time, data, time)
        writer.finish()


def consume(plan: dict[str, Any]) -> None:
    """Run the loop, keeping every value, as whoever wants arrays must."""
    kept = [values for _, values in loop(plan)]
    del kept


def synth(rounds: int, seconds: float = 3600.0) -> list[dict[str, Any]]:
    """Seconds and ratios of the numbers and of the file. A RuntimeError if the two do not make the same."""
    compare(plan_of(30.0))
    plan = plan_of(seconds)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "kymo.mcap", Path(folder) / "loop.mcap"
        numbers = by_turns({"kymo": lambda: simulate(plan), "loop": lambda: consume(plan)}, rounds, 3)
        files = by_turns({"kymo": lambda: make_file(plan, ours), "loop": lambda: by_loop(plan, theirs)}, rounds)
        sizes = {"kymo_mb": ours.stat().st_size / 1e6, "loop_mb": theirs.stat().st_size / 1e6}
    about = {"samples": sum(parse_plan(plan).counts)}
    return [about | {"what": "numbers"} | numbers, about | {"what": "file"} | files | sizes]


def by_turns(calls: dict[str, Call], rounds: int, best_of: int = 1) -> dict[str, Any]:
    """Medians of seconds, and of the ratios of rounds; a round that warms up is left out."""
    taken: list[dict[str, Seconds]] = [
        {name: min(timed(call)[0] for _ in range(best_of)) for name, call in turn(calls, number)}
        for number in range(rounds + 1)
    ]
    seconds = {f"{name}_{kind}": value for name in calls for kind, value in medians(taken[1:], name).items()}
    return seconds | ratios(taken[1:], "kymo", "loop")


def compare(plan: dict[str, Any], other: dict[str, Any] | None = None) -> None:
    """A RuntimeError unless Kymo by `plan` and the loop by the same, or by the other, make the same messages in the same order, numbers to
    1e-9."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "kymo.mcap", Path(folder) / "loop.mcap"
        make_file(plan, ours)
        by_loop(other or plan, theirs)
        found, expected = messages(ours), messages(theirs)
    same = [(t, time) for t, time, _ in found] == [(t, time) for t, time, _ in expected]
    if not same or any(
        np.abs(np.subtract(a[2], b[2]) / np.maximum(1, np.abs(b[2]))).max() > 1e-9
        for a, b in zip(found, expected, strict=True)
    ):
        raise RuntimeError("Kymo and the loop do not make the same recording")
    assert len(found) == 7 * sum(parse_plan(plan).counts)


def messages(path: Path) -> list[tuple[str, int, list[float]]]:
    """Topic, time and values of every message."""
    with path.open("rb") as raw:
        found = make_reader(raw).iter_messages(log_time_order=False)
        return [(c.topic, m.log_time, json.loads(m.data)["values"]) for _, c, m in found]
