"""A phone's sensor logs as recordings. In: JSON files (their form: :mod:`lab.prepare.phone_records`). Out: for each one
``NAME.mcap`` and, where it has marks, ``NAME.labels.json``; for all ``phone.experiment.json``; times in Unix ns.

A sensor is a topic with a JSON message a row, as its file has it, in order of time: nothing is resampled, scaled only if asked. Topics
are named after sensors (``TotalAcceleration`` is ``totalacceleration``), but for those that recipes know by another name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcap.writer import CompressionType, Writer

from lab.prepare.phone_records import Mark, PhoneLog, Rows
from streams.chunk import NS
from streams.errors import SourceError
from streams.files import whole_file
from streams.labels.labels import canonical
from streams.readers.words import many

SUFFIXES = (".json", ".jsonl", ".ndjson")
#: Topics of sensors, whose names are compared without case, blanks and underscores. With gravity before without.
TOPICS = {
    "acc_raw": ("totalacceleration", "accelerationincludinggravity", "accelerometer", "acc"),
    "gyro_raw": ("gyroscope", "gyro"),
    "mag_raw": ("magnetometer", "magneticfield", "mag"),
}
EXPERIMENT = "phone.experiment.json"
#: Class of a stretch whose START names none.
MARKED = "marked"


@dataclass(frozen=True, slots=True)
class PhoneOptions:
    """How logs are converted."""

    key: str = "label"  # under which the START's class stands in the labels JSON
    unit: str | None = None  # of times: ``s``, ``ms``, ``us`` or ``ns``; None to tell it from their size
    # topic of a sensor, as the file names it, instead of the default
    topics: Mapping[str, str] = field(default_factory=dict)
    scale: Mapping[str, float] = field(default_factory=dict)  # by topic, what its values are multiplied with


@dataclass(frozen=True, slots=True)
class Converted:
    """One log: its files, rows by topic, stretches, and what was noted."""

    source: Path
    mcap: Path
    labels: Path | None
    rows: Mapping[str, int]
    stretches: int
    notes: tuple[str, ...]


def convert_phone(
    raw: Path, out: Path, options: PhoneOptions, on_file: Callable[[int, int], None] = lambda done, of: None
) -> list[Converted]:
    """Convert a log, or all logs of a folder."""
    files = _files(raw)
    names = _names(files, raw)
    made = []
    out.mkdir(parents=True, exist_ok=True)
    for done, (file, name) in enumerate(zip(files, names, strict=True)):
        on_file(done, len(files))
        made.append(_convert(file, out / f"{name}.mcap", options))
    on_file(len(files), len(files))
    listed = [{"filePath": one.labels.name} for one in made if one.labels]
    if listed:
        _write_json(out / EXPERIMENT, {"dirname": out.resolve().name, "labelFiles": listed})
    return made


def _files(raw: Path) -> list[Path]:
    if not raw.exists():
        raise SourceError("no such file or folder", raw)
    if raw.is_file():
        return [raw]
    found = sorted(p for p in raw.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise SourceError(f"the folder holds no sensor log ({', '.join(SUFFIXES)})", raw)
    return found


def _names(files: Sequence[Path], raw: Path) -> list[str]:
    """Names of recordings: the files', with their folders where several are named alike."""
    stems = [file.stem for file in files]
    return [
        stem if stems.count(stem) == 1 else "-".join(file.relative_to(raw).with_suffix("").parts)
        for file, stem in zip(files, stems, strict=True)
    ]


def _convert(file: Path, target: Path, options: PhoneOptions) -> Converted:
    log = PhoneLog(file, options.unit, options.key)
    topics = _topics(log, options)
    stretches = list(_stretches(log))
    events = [_event(*one, options.key) for one in stretches]
    _write_mcap(target, log, topics, options)
    labels = target.with_suffix(".labels.json") if events else None
    if labels:
        _write_json(labels, {"events": events})
    notes = [f"{many(count, 'row')} of {name} without a number left out" for name, count in log.left_out.items()]
    if log.marks and log.marks[-1].start:
        notes.append("the last START has no STOP: its stretch lasts to the end")
    rows = {topics[name]: len(found.times_ns) for name, found in log.sensors.items()}
    return Converted(file, target, labels, rows, len(events), tuple(notes))


def _topics(log: PhoneLog, options: PhoneOptions) -> dict[str, str]:
    """Topic of each sensor."""
    plain = {name: re.sub(r"[\s_]+", "", name).lower() for name in log.sensors}
    for name in options.topics:
        if name not in log.sensors:
            raise SourceError(f"no sensor `{name}`; there are: {', '.join(log.sensors)}", log.path)
    out = {name: re.sub(r"\s+", "_", name.strip()).lower() for name in log.sensors}
    for topic, known in TOPICS.items():
        best = next((name for wanted in known for name in log.sensors if plain[name] == wanted), None)
        if best is not None and topic not in options.topics.values():
            out[best] = topic
    out |= options.topics
    if twice := [topic for topic in out.values() if list(out.values()).count(topic) > 1]:
        both = ", ".join(name for name, topic in out.items() if topic == twice[0])
        raise SourceError(f"{both} would all be topic `{twice[0]}`; name one of them otherwise", log.path)
    if absent := [topic for topic in options.scale if topic not in out.values()]:
        raise SourceError(f"no topic `{absent[0]}` to scale; there are: {', '.join(out.values())}", log.path)
    return out


Stretch = tuple[int, int, Mapping[str, str], int]


def _stretches(log: PhoneLog) -> Iterator[Stretch]:
    """Start, end, classes and number of each labelled stretch."""
    end_ns = max(log.order) + 1
    open_mark: Mark | None = None
    for mark in log.marks:
        if not mark.start and open_mark is None:
            raise log.wrong("is a STOP without a START before it", mark.record)
        if open_mark is not None:
            yield _stretch(log, open_mark, mark, _moment(log, mark, end_ns))
        open_mark = mark if mark.start else None
    if open_mark is not None:
        yield _stretch(log, open_mark, None, end_ns)


def _stretch(log: PhoneLog, start: Mark, stop: Mark | None, end_ns: int) -> Stretch:
    begin_ns = _moment(log, start, end_ns)
    if end_ns <= begin_ns:
        number = stop.record if stop else start.record
        raise log.wrong(f"ends a stretch at {end_ns} ns, which began at {begin_ns} ns", number)
    said = dict(start.classes) or dict(stop.classes if stop is not None and not stop.start else {})
    return begin_ns, end_ns, said, start.record


def _moment(log: PhoneLog, mark: Mark, end_ns: int) -> int:
    """A mark's time: its own, else that of the next row (START) or right behind the row before (STOP)."""
    if mark.time_ns is not None:
        return mark.time_ns
    if mark.start:
        return log.order[mark.row_before] if mark.row_before < len(log.order) else end_ns
    return log.order[mark.row_before - 1] + 1 if mark.row_before else log.order[0]


def _event(start_ns: int, end_ns: int, classes: Mapping[str, str], record: int, key: str) -> dict[str, Any]:
    return {
        "id": f"record-{record}",
        "startTime": {"sec": start_ns // NS, "nsec": start_ns % NS},
        "endTime": {"sec": end_ns // NS, "nsec": end_ns % NS},
        "metadata": {name: canonical(text) for name, text in classes.items()} or {key: MARKED},
    }


def _write_mcap(target: Path, log: PhoneLog, topics: Mapping[str, str], options: PhoneOptions) -> None:
    try:
        with whole_file(target) as unfinished, unfinished.open("wb") as file:
            writer = Writer(file, compression=CompressionType.ZSTD)
            writer.start(library="kymo prepare phone")
            writer.add_metadata("phone", {"file": log.path.name} | log.metadata)
            messages = []
            for name, rows in log.sensors.items():
                channel = writer.register_channel(topics[name], "json", _schema(writer, rows))
                messages += list(_messages(channel, topics[name], rows, options.scale.get(topics[name], 1.0)))
            for time_ns, channel, data in sorted(messages, key=lambda one: one[0]):
                writer.add_message(channel, max(0, time_ns), data, max(0, time_ns))
            writer.finish()  # type: ignore[no-untyped-call]
    except OSError as error:
        raise SourceError(f"cannot be written ({error.strerror or error})", target) from None


def _schema(writer: Writer, rows: Rows) -> int:
    items: dict[str, Any] = {"type": "array", "items": {"type": ["number", "null"]}}
    if rows.channels:
        items["prefixItems"] = [{"title": name, "type": ["number", "null"]} for name in rows.channels]
    schema = {
        "title": "sensor_event",
        "type": "object",
        "properties": {"id": {"type": "string"}, "timestamp": {"type": "integer"}, "values": items},
    }
    return int(writer.register_schema("sensor_event", "jsonschema", json.dumps(schema).encode()))


def _messages(channel: int, topic: str, rows: Rows, factor: float) -> Iterator[tuple[int, int, bytes]]:
    for time_ns, values in zip(rows.times_ns, rows.values, strict=True):
        numbers = [None if math.isnan(value) else value * factor for value in values]
        data = json.dumps({"id": topic, "timestamp": time_ns, "values": numbers})
        yield time_ns, channel, data.encode()


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    try:
        path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise SourceError(f"cannot be written ({error.strerror or error})", path) from None
