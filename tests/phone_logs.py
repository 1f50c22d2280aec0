"""A generator of phone sensor logs. In: sensors with their rates, labelled stretches, a form. Out: the file, and what is in it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

START_NS = 1_700_000_000_123_456_789
FORMS = ("list", "lines", "values", "payload", "elapsed")


@dataclass(frozen=True)
class Log:
    """What a file must give back: by sensor times and values, and stretches."""

    path: Path
    times: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    values: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    stretches: list[tuple[int, int, str]] = field(default_factory=list)


def write_log(
    path: Path, form: str, seed: int = 0, seconds: float = 4.0, stretches: tuple[tuple[float, float, str], ...] = ()
) -> Log:
    """Accelerometer at 50 Hz, magnetometer at 20 Hz and a barometer now and then, with jitter; stretches in seconds."""
    random = np.random.default_rng(seed)
    log, rows = Log(path), list[tuple[int, int, dict[str, Any]]]()
    for sensor, rate, names in (
        ("Accelerometer", 50, "xyz"),
        ("Magnetometer", 20, "xyz"),
        ("Barometer", 1, ("pressure", "height")),
    ):
        count = int(seconds * rate)
        times = START_NS + np.arange(count) * 10**9 // rate + random.integers(0, 10**6, count)
        if form == "elapsed":
            times = (times - START_NS) // 1000 * 1000
        values = random.normal(size=(count, len(names))).round(6)
        log.times[sensor], log.values[sensor] = times, values
        rows += [
            (time, 2, _row(form, sensor, time, dict(zip(names, value, strict=True))))
            for time, value in zip(times.tolist(), values.tolist(), strict=True)
        ]
    for begin, end, name in stretches:
        origin = 0 if form == "elapsed" else START_NS
        a, b = (origin + round(s * 10**9) for s in (begin, end))
        log.stretches.append((a, b, name))
        rows += [(a, 1, _mark(form, "START", a) | {"label": name}), (b, 0, _mark(form, "STOP", b))]
    records = [record for _, _, record in sorted(rows, key=lambda one: one[:2])]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_text(form, records))
    return log


def _row(form: str, sensor: str, time_ns: int, members: dict[str, float]) -> dict[str, Any]:
    if form in ("list", "elapsed"):  # numbers as text, axes backwards
        time = (
            {"seconds_elapsed": f"{time_ns / 1e9:.6f}"}
            if form == "elapsed"
            else {"time": str(time_ns), "seconds_elapsed": "0.1"}
        )
        return {"sensor": sensor, **time, **{k: str(v) for k, v in reversed(members.items())}}
    if form == "payload":
        return {"name": sensor, "time": time_ns, "accuracy": 3, "values": members}
    if form == "values":
        return {"type": sensor, "timestamp": time_ns, "values": list(members.values())}
    return {"type": sensor, "timestamp": time_ns, **members}


def _mark(form: str, kind: str, time_ns: int) -> dict[str, Any]:
    if form == "elapsed":
        return {"type": kind.lower(), "seconds_elapsed": time_ns / 1e9}
    return {"type": kind, "timestamp": time_ns if form == "values" else str(time_ns)}


def _text(form: str, records: list[dict[str, Any]]) -> str:
    if form in ("list", "elapsed"):
        head = {"sensor": "Metadata", "version": "3", "device name": "a phone"}
        return json.dumps([head, *records], indent=1)
    if form == "payload":
        parts = [records[i : i + 50] for i in range(0, len(records), 50)]
        return "".join(json.dumps({"messageId": i, "payload": part}) + "\n" for i, part in enumerate(parts))
    return "\n\n".join(json.dumps(record) for record in records) + "\n"
