"""A phone's sensor logs as recordings. In: JSON files, each a list of objects or one object a line. Out: for each one
``NAME.mcap`` and, where it has marks, ``NAME.labels.json``; for all ``phone.experiment.json``; times in Unix ns.

A sensor is a topic with a JSON message a row, as its file has it, in order of time: nothing is resampled, scaled only if asked. Topics
are named after sensors (``TotalAcceleration`` is ``totalacceleration``), but for those that recipes know by another name.

A record with ``type`` START or STOP (in any case) is a mark: what lies between a START and the next STOP is a labelled stretch. Its
class is the START's ``label``, else its ``activity``, ``name``, ``class`` or ``text``; further classes are the members of its
``metadata``. A mark without a time stands at the next row (START), or right behind the one before (STOP).

Any other record is a row of one sensor, which ``sensor``, ``type`` or ``name`` names:

- its time is ``time``, ``timestamp`` or ``ts``, or ``seconds_elapsed`` if the file's first row has none, as number or text; all rows have
  one unit (s, ms, µs or ns; or ISO 8601), told by their size and steps if none is said. A mark has it too, or another, by its own size;
- its numbers are ``values``, a list or an object, or else all other members that are numbers, as such or as text; null is a missing
  one. Axes are put in the order x, y, z, w; other members stay as the sensor's first row has them.

An object with a list ``payload``, ``records``, ``data`` or ``samples`` stands for what is in it; what else it says, as a record of a
sensor ``Metadata`` does, is of the recording. Rows without a number, such as notes, are left out and counted.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import numpy as np
from mcap.writer import CompressionType, Writer

from kymo.lab.prepare import UNITS
from kymo.streams.errors import SourceError, SourceWarning
from kymo.streams.files import whole_file
from kymo.streams.labels.labels import canonical
from kymo.streams.readers.moments import iso_ns
from kymo.streams.readers.times import TimeColumn
from kymo.streams.words import NS, brief, is_number, many, some

SUFFIXES = (".json", ".jsonl", ".ndjson")
_NO_LOGS = (".labels.json", ".experiment.json", ".plan.json")  # what stands beside recordings
#: Topics of sensors, whose names are compared without case, blanks and underscores. With gravity before without.
TOPICS = {
    "acc_raw": ("totalacceleration", "accelerationincludinggravity", "accelautocal", "accelerometer", "acc"),
    "gyro_raw": ("gyroautocal", "gyroscope", "gyro"),
    "mag_raw": ("magautocal", "magnetometer", "magneticfield", "mag"),
}
#: Units of sensors that always have the same.
_KNOWN_UNITS = {"accelautocal": "g", "gyroautocal": "rad/s", "magautocal": "µT"}
#: Records of a sensor's name that are none.
_NO_SENSORS = ("TIMESTAMP_FULL",)
EXPERIMENT = "phone.experiment.json"
#: Class of a stretch whose START names none.
_MARKED = "marked"
_LISTS = ("payload", "records", "data", "samples")
_TIMES, _ELAPSED = ("time", "timestamp", "ts"), "seconds_elapsed"
_FIRST_ROWS, _FEWEST_STEPS = 2_000, 10  # of which the unit of times is told
_CLASSES = ("label", "activity", "name", "class", "text")
_AXES = ("x", "y", "z", "w")
_NOT_VALUES = {*_TIMES, _ELAPSED, "sensor", "type", "name", "id", "accuracy"}
_LIMIT_NS = 2**62
_LONGEST_NS = 366 * 86_400 * 10**9


@dataclass(frozen=True, slots=True)
class PhoneOptions:
    """How logs are converted."""

    key: str = "label"  # under which the START's class stands in the labels JSON
    unit: str | None = None  # of times: ``s``, ``ms``, ``us`` or ``ns``; None to tell it from their size
    # topic of a sensor, as the file names it, instead of the default
    topics: Mapping[str, str] = field(default_factory=dict)
    scale: Mapping[str, float] = field(default_factory=dict)  # by topic, what its values are multiplied with
    units: Mapping[str, str] = field(default_factory=dict)  # by topic, of its values as they are written
    # class of stretches whose START names none, and of a log without marks; None: they are only marked
    label: str | None = None


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
    logs, errors = list[Converted](), list[SourceError]()
    out.mkdir(parents=True, exist_ok=True)
    for done, (file, name) in enumerate(zip(files, names, strict=True)):
        on_file(done, len(files))
        try:
            logs.append(_convert(file, out / f"{name}.mcap", options))
        except SourceError as error:
            if raw.is_file():
                raise
            errors.append(error)
    on_file(len(files), len(files))
    if errors and not logs:
        raise errors[0]
    for left_out in errors:
        warnings.warn(f"{left_out}; left out", SourceWarning, stacklevel=2)
    label_files = [{"filePath": log.labels.name} for log in logs if log.labels]
    if label_files:
        said = f"Recorded sensor logs: {some([log.source.name for log in logs if log.labels], 5)}"
        experiment = {"dirname": out.resolve().name, "labelFiles": label_files, "description": said}
        _write_json(out / EXPERIMENT, experiment | {"metadata": {"classification_type": options.key}})
    return logs


def _files(raw: Path) -> list[Path]:
    if not raw.exists():
        raise SourceError("no such file or folder", raw)
    if raw.is_file():
        return [raw]
    found = (path for path in raw.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    files = sorted(path for path in found if not path.name.endswith(_NO_LOGS))
    if not files:
        raise SourceError(f"the folder holds no sensor log ({', '.join(SUFFIXES)})", raw)
    return files


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
    events = list(_stretches(log, options))
    _write_mcap(target, log, topics, options)
    labels = target.with_suffix(".labels.json") if events else None
    if labels:
        _write_json(labels, {"events": events})
    notes = [f"{many(count, 'row')} of {name} without a number left out" for name, count in log.left_out.items()]
    notes += log.notes
    if log.marks and log.marks[-1].start:
        notes.append("the last START has no STOP: its stretch lasts to the end")
    rows = {topics[name]: len(sensor.times_ns) for name, sensor in log.sensors.items()}
    return Converted(file, target, labels, rows, len(events), tuple(notes))


def _topics(log: PhoneLog, options: PhoneOptions) -> dict[str, str]:
    """Topic of each sensor."""
    plain = {name: re.sub(r"[\s_]+", "", name).lower() for name in log.sensors}
    for name in options.topics:
        if name not in log.sensors:
            raise SourceError(f"no sensor `{name}`; there are: {', '.join(log.sensors)}", log.path)
    out = {name: re.sub(r"\s+", "_", name.strip()).lower() for name in log.sensors}
    for topic, names in TOPICS.items():
        best = next((name for known in names for name in log.sensors if plain[name] == known), None)
        if best is not None and topic not in options.topics.values():
            out[best] = topic
    for name, topic in out.items():
        if topic in TOPICS and plain[name] == topic.replace("_", "") and list(out.values()).count(topic) > 1:
            out[name] = f"{topic.removesuffix('_raw')}_uncalibrated"  # what another sensor has calibrated
    out |= options.topics
    if twice := [topic for topic in out.values() if list(out.values()).count(topic) > 1]:
        sensors = ", ".join(name for name, topic in out.items() if topic == twice[0])
        raise SourceError(f"{sensors} would all be topic `{twice[0]}`; name one of them otherwise", log.path)
    for what, given in (("to scale", list(options.scale)), ("that has a unit", list(options.units))):
        if absent := [topic for topic in given if topic not in out.values()]:
            raise SourceError(f"no topic `{absent[0]}` {what}; there are: {', '.join(out.values())}", log.path)
    return out


def _units(topics: Mapping[str, str], options: PhoneOptions) -> dict[str, str]:
    """Units by topic: those that are said, and those of known sensors, whose numbers are as they were."""
    known = {topic: _KNOWN_UNITS.get(re.sub(r"[\s_]+", "", name).lower(), "") for name, topic in topics.items()}
    known = {topic: unit for topic, unit in known.items() if unit and topic not in options.scale}
    return known | dict(options.units)


def _stretches(log: PhoneLog, options: PhoneOptions) -> Iterator[dict[str, Any]]:
    """Each labelled stretch as an event of a labels JSON."""
    end_ns = max(log.order) + 1
    if options.label is not None and not log.marks:
        yield _stretch(log, Mark(True, 1, min(log.order), 0, {}), None, end_ns, options)
    open_mark: Mark | None = None
    for mark in log.marks:
        if not mark.start and open_mark is None:
            raise log.wrong("is a STOP without a START before it", mark.record)
        if open_mark is not None:
            yield _stretch(log, open_mark, mark, _moment(log, mark, end_ns), options)
        open_mark = mark if mark.start else None
    if open_mark is not None:
        yield _stretch(log, open_mark, None, end_ns, options)


def _stretch(log: PhoneLog, start: Mark, stop: Mark | None, end_ns: int, options: PhoneOptions) -> dict[str, Any]:
    start_ns = _moment(log, start, end_ns)
    if end_ns <= start_ns:
        number = stop.record if stop else start.record
        raise log.wrong(f"ends a stretch at {end_ns} ns, which began at {start_ns} ns", number)
    classes = dict(start.classes or (stop.classes if stop is not None and not stop.start else {}))
    if options.label is not None or not classes:
        classes.setdefault(options.key, _MARKED if options.label is None else options.label)
    return {
        "id": f"record-{start.record}",
        "startTime": {"sec": start_ns // NS, "nsec": start_ns % NS},
        "endTime": {"sec": end_ns // NS, "nsec": end_ns % NS},
        "metadata": {name: canonical(text) for name, text in classes.items()},
    }


def _moment(log: PhoneLog, mark: Mark, end_ns: int) -> int:
    """A mark's time: its own, else that of the next row (START) or right behind the row before (STOP)."""
    if mark.time_ns is not None:
        return mark.time_ns
    if mark.start:
        return log.order[mark.row_before] if mark.row_before < len(log.order) else end_ns
    return log.order[mark.row_before - 1] + 1 if mark.row_before else log.order[0]


def _write_mcap(target: Path, log: PhoneLog, topics: Mapping[str, str], options: PhoneOptions) -> None:
    try:
        with whole_file(target) as unfinished, unfinished.open("wb") as file:
            writer = Writer(file, compression=CompressionType.ZSTD)
            writer.start(library="kymo prepare phone")
            writer.add_metadata("phone", {"file": log.path.name} | log.metadata)
            writer.add_metadata("units", {"timestamp": "ns"} | _units(topics, options))
            messages = []
            for name, rows in log.sensors.items():
                channel = writer.register_channel(topics[name], "json", _schema(writer, rows))
                messages += list(_messages(channel, topics[name], rows, options.scale.get(topics[name], 1.0)))
            for time_ns, channel, data in sorted(messages, key=lambda message: message[0]):
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


@dataclass(slots=True)
class Rows:
    """One sensor's rows, in the order of the file."""

    channels: tuple[str, ...]  # names; empty where `values` was a list
    width: int
    times_ns: list[int] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)  # NaN for a missing one


@dataclass(frozen=True, slots=True)
class Mark:
    """START or STOP: number of the record, time (None where it has none, with that of the row before it), classes by key."""

    start: bool
    record: int
    time_ns: int | None
    row_before: int
    classes: Mapping[str, str]


class PhoneLog:
    """What a file holds."""

    def __init__(self, path: Path, unit: str | None = None, key: str = "label") -> None:
        self.path, self._key = path, key
        self._unit_given, self._exponent = unit is not None, None if unit is None else UNITS[unit]
        self._members: tuple[str, ...] | None = None  # where rows have their time
        self.sensors: dict[str, Rows] = {}  # by name, in the order of their first rows
        self.marks: list[Mark] = []  # in the order of the file
        self.metadata: dict[str, str] = {}  # what it says of itself
        self.left_out: Counter[str] = Counter()  # rows without numbers, by sensor
        self.order: list[int] = []  # time of every row, as they came
        self.notes: list[str] = []  # what was found out of the times
        records = list(_records(path))
        if unit is None:
            self._tell_unit(records)
        for number, record in enumerate(records, 1):
            self._take(number, record)
        if not self.sensors:
            raise SourceError(
                "holds no sensor row: expected objects such as "
                '{"sensor": "accelerometer", "time": "1700000000000000000", "x": 0.1, "y": 0.2, "z": 9.8}',
                path,
            )
        self._check_span()
        self.marks = [
            replace(mark, time_ns=self._mark_time(records[mark.record - 1], mark.record)) for mark in self.marks
        ]

    def _tell_unit(self, records: Sequence[Any]) -> None:
        """Tell the unit of numbers: of many by the steps of the commonest sensor, of a few whole `ts` that they are µs."""
        rows = [record for record in records[:_FIRST_ROWS] if isinstance(record, dict) and _name(record)]
        commonest = Counter(map(_name, rows)).most_common(1)
        rows = [record for record in rows if _name(record) == commonest[0][0]]
        times = [_member(record, _TIMES) for record in rows]
        if not times or not all(text is not None and is_number(text) for text in times):
            return
        texts = [str(text) for text in times]
        how = "by their steps"
        exponent = _by_steps(texts, self.path) if len(texts) >= _FEWEST_STEPS else None
        small = all(text.lstrip("-").isdigit() and _exponent_of(text) == UNITS["s"] for text in texts)
        if exponent is None and small and all(_member(record, _TIMES[:-1]) is None for record in rows):
            exponent, how = UNITS["us"], "as whole `ts` are"
        if exponent is not None:
            self._exponent = exponent
            if exponent != _exponent_of(texts[0]):
                unit = next(name for name, value in UNITS.items() if value == exponent)
                self.notes.append(f"times are read as {unit} {how}; --time-unit says another one")

    def wrong(self, what: str, number: int) -> SourceError:
        """What is wrong with a record, counted from 1."""
        return SourceError(f"record {number} {what}", self.path)

    def _take(self, number: int, record: Any) -> None:
        if not isinstance(record, dict):
            raise self.wrong(f"is {brief(json.dumps(record))}, expected an object", number)
        kind = str(record.get("type", "")).strip().upper()
        if kind in ("START", "STOP"):
            self._mark(number, record, kind == "START")
            return
        name = _name(record)
        if not name:
            raise self.wrong(f"has no `sensor`, `type` or `name`: {brief(json.dumps(record))}", number)
        if name.lower() == "metadata":
            self.metadata |= {str(k): str(v) for k, v in record.items() if k not in ("sensor", "type")}
            return
        channels, values = ((), []) if name in _NO_SENSORS else self._values(record, name, number)
        if not values:
            self.left_out[name] += 1
            return
        time = self._time(record, number)
        if time is None:
            raise self.wrong(f"has no `time`, `timestamp` or `seconds_elapsed`: {brief(json.dumps(record))}", number)
        rows = self.sensors.setdefault(name, Rows(channels, len(values)))
        rows.times_ns.append(time)
        rows.values.append(values)
        self.order.append(time)

    def _mark(self, number: int, record: Mapping[str, Any], start: bool) -> None:
        classes: dict[str, str] = {}
        if text := next((record[m] for m in _CLASSES if record.get(m) not in (None, "", {}, [])), None):
            classes[self._key] = str(text)
        extra = record.get("metadata")
        if isinstance(extra, dict):
            classes |= {str(k): str(v) for k, v in extra.items() if k and v is not None and str(v).strip()}
        self.marks.append(Mark(start, number, None, len(self.order), classes))

    def _values(self, record: Mapping[str, Any], name: str, number: int) -> tuple[tuple[str, ...], list[float]]:
        """Channels and numbers of a row; none for a row that has no number."""
        known = self.sensors.get(name)
        content = record.get("values")
        if isinstance(content, list):
            channels: tuple[str, ...] = ()
            numbers = [_number(value) for value in content]
        else:
            members = (
                content if isinstance(content, dict) else {k: v for k, v in record.items() if k not in _NOT_VALUES}
            )
            numeric = tuple(k for k, v in members.items() if _number(v) is not None)
            channels = known.channels if known is not None and numeric else _ordered(numeric)
            if absent := [c for c in channels if c not in members]:
                raise self.wrong(f"{name} has no `{absent[0]}`, as its first row had", number)
            numbers = [_number(members[c]) for c in channels]
        values = [value for value in numbers if value is not None]
        if len(values) < len(numbers):
            raise self.wrong(f"{name} has a value that is no number: {brief(json.dumps(record))}", number)
        if known is not None and values and len(values) != known.width:
            raise self.wrong(f"{name} has {len(values)} values, its first row had {known.width}", number)
        return channels, values

    def _time(self, record: Mapping[str, Any], number: int) -> int | None:
        if self._members is None:
            self._members = _TIMES if _member(record, _TIMES) is not None else (_ELAPSED,)
        text = _member(record, self._members)
        if text is None:
            return None
        if self._members == (_ELAPSED,):
            return self._scaled(text, UNITS["s"], number)
        self._exponent = _exponent_of(text) if self._exponent is None else self._exponent
        return self._scaled(text, self._exponent, number)

    def _mark_time(self, record: Mapping[str, Any], number: int) -> int | None:
        """A mark's time, None where it has none: in the rows' unit if it then lies near them, else told by its size."""
        text = _member(record, self._members or _TIMES)
        if text is None:
            return None
        if self._members == (_ELAPSED,):
            return self._scaled(text, UNITS["s"], number)
        if self._exponent is not None and is_number(text) == (self._exponent >= 0):
            time_ns, around_ns = self._scaled(text, self._exponent, number), max(self.order) - min(self.order) + NS
            if self._unit_given or min(self.order) - around_ns <= time_ns <= max(self.order) + around_ns:
                return time_ns
        return self._scaled(text, _exponent_of(text), number)

    def _check_span(self) -> None:
        first, last = min(self.order), max(self.order)
        if last - first > _LONGEST_NS:
            days = (last - first) // (86_400 * 10**9)
            raise SourceError(f"its times span {days} days; say their unit (s, ms, us, ns), or mend them", self.path)

    def _scaled(self, text: str, exponent: int, number: int) -> int:
        try:
            if exponent < 0:
                return iso_ns(text)
            value = int(Decimal(text).scaleb(exponent).to_integral_value())
        except (InvalidOperation, ValueError, OverflowError):
            raise self.wrong(
                f"has the time {brief(repr(text))}, expected a number or ISO 8601 as before", number
            ) from None
        if not abs(value) < _LIMIT_NS:
            raise self.wrong(f"has the time {brief(repr(text))}, which is too large; say the unit", number)
        return value


def _records(path: Path) -> Iterator[Any]:
    """Records of a file: of its one JSON value, or of each line."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise SourceError(f"cannot be read ({error.strerror or error})", path) from None
    except UnicodeDecodeError:
        raise SourceError("is not UTF-8 text", path) from None
    try:
        value = json.loads(text)
        if isinstance(value, dict) and any(isinstance(value.get(name), list) for name in _LISTS):
            yield {"sensor": "Metadata"} | {k: v for k, v in value.items() if isinstance(v, str | int | float)}
        yield from _unfolded(value)
        return
    except RecursionError:
        raise SourceError("is no JSON (nested too deep)", path) from None
    except ValueError as error:
        if text.lstrip().startswith("["):
            raise SourceError(f"is no JSON ({error})", path) from None
    for row, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"is no JSON ({error})", path, row) from None
        yield from _unfolded(value)


def _unfolded(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        yield from value
        return
    inner = (
        next((value[m] for m in _LISTS if isinstance(value.get(m), list)), None) if isinstance(value, dict) else None
    )
    yield from [value] if inner is None else inner


def _name(record: Mapping[str, Any]) -> str:
    """The sensor that a record is of."""
    return next((str(record[m]).strip() for m in ("sensor", "type", "name") if record.get(m)), "")


def _member(record: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of some members that says something."""
    return next((str(record[name]).strip() for name in names if record.get(name) not in (None, "")), None)


def _number(value: Any) -> float | None:
    """A number, NaN for a missing one, None for what is none."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = math.nan if value == "" else float(value)
    except (ValueError, OverflowError):
        return None
    if isinstance(value, str) and "_" in value:
        return None
    return number if math.isfinite(number) else math.nan


def _ordered(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(names, key=_AXES.index)) if set(names) <= set(_AXES) else names


def _by_steps(texts: Sequence[str], path: Path) -> int | None:
    """The exponent of the one unit in which times make sense; None in doubt."""
    numbers = np.array([float(text) for text in texts], np.float64)
    try:
        times_ns = TimeColumn("timestamp", path).numbers(numbers, np.arange(1, len(numbers) + 1))
    except SourceError:
        return None
    pairs = zip(times_ns.tolist(), numbers.tolist(), strict=True)
    exponents = {round(math.log10(at / number)) for at, number in pairs if number > 0}
    return exponents.pop() if len(exponents) == 1 and exponents <= set(UNITS.values()) else None


def _exponent_of(text: str) -> int:
    """10**exponent ns are one unit; -1 for ISO 8601."""
    try:
        size = abs(float(text))
    except ValueError:
        return -1
    # Seconds reach 1e11 in the year 5138; the other units follow at the same factor.
    return next((UNITS[unit] for unit, top in (("s", 1e11), ("ms", 1e14), ("us", 1e17)) if size < top), 0)
