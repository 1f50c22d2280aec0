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
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mcap.writer import CompressionType, Writer

from kymo.lab.output import Progress, write_json, writing
from kymo.lab.prepare import UNITS
from kymo.streams.archive.export import json_channel
from kymo.streams.errors import SourceError, SourceWarning
from kymo.streams.files import read_text, whole_file
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
_NAMES, _TIMES, _ELAPSED = ("sensor", "type", "name"), ("time", "timestamp", "ts"), ("seconds_elapsed",)
_FIRST_ROWS, _FEWEST_STEPS = 2_000, 10  # of which the unit of times is told
_CLASSES = ("label", "activity", "name", "class", "text")
_AXES = ("x", "y", "z", "w")
_NOT_VALUES = {*_NAMES, *_TIMES, *_ELAPSED, "id", "accuracy"}
_LIMIT_NS = 2**62
_LONGEST_DAYS, _DAY_NS = 366, 86_400 * NS
_EXAMPLE = '{"sensor": "accelerometer", "time": "1700000000000000000", "x": 0.1, "y": 0.2, "z": 9.8}'


@dataclass(frozen=True, slots=True)
class PhoneOptions:
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
    raw: Path, out: Path, options: PhoneOptions, on_file: Progress = lambda done, of: None
) -> list[Converted]:
    """Convert a log, or all logs of a folder."""
    files = _files(raw)
    stems = Counter(file.stem for file in files)
    logs, errors = list[Converted](), list[SourceError]()
    out.mkdir(parents=True, exist_ok=True)
    for done, file in enumerate(files):
        on_file(done, len(files))
        # Of several that are named alike, their folders tell which is which.
        parts = (file.stem,) if stems[file.stem] == 1 else file.relative_to(raw).with_suffix("").parts
        try:
            logs.append(_convert(file, out / f"{'-'.join(parts)}.mcap", options))
        except SourceError as error:
            if raw.is_file():
                raise
            errors.append(error)
    on_file(len(files), len(files))
    if errors and not logs:
        raise errors[0]
    for unread in errors:
        warnings.warn(f"{unread}; left out", SourceWarning, stacklevel=2)
    label_files = [{"filePath": log.labels.name} for log in logs if log.labels]
    if label_files:
        description = f"Recorded sensor logs: {some([log.source.name for log in logs if log.labels], 5)}"
        experiment = {"dirname": out.resolve().name, "labelFiles": label_files, "description": description}
        write_json(out / EXPERIMENT, experiment | {"metadata": {"classification_type": options.key}})
    return logs


def _files(raw: Path) -> list[Path]:
    if not raw.exists():
        raise SourceError("no such file or folder", raw)
    if raw.is_file():
        return [raw]
    logs = (path for path in raw.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    files = sorted(path for path in logs if not path.name.endswith(_NO_LOGS))
    if not files:
        raise SourceError(f"the folder holds no sensor log ({', '.join(SUFFIXES)})", raw)
    return files


def _convert(file: Path, target: Path, options: PhoneOptions) -> Converted:
    log = PhoneLog(file, options)
    topics = _topics(log, options)
    events = list(_events(log, options))
    _write_mcap(target, log, topics, options)
    labels = target.with_suffix(".labels.json") if events else None
    if labels:
        write_json(labels, {"events": events})
    notes = [f"{many(count, 'row')} of {name} without a number left out" for name, count in log.left_out.items()]
    notes += log.notes
    if log.marks and log.marks[-1].start:
        notes.append("the last START has no STOP: its stretch lasts to the end")
    rows = {topics[name]: len(sensor.times_ns) for name, sensor in log.sensors.items()}
    return Converted(file, target, labels, rows, len(events), tuple(notes))


def _topics(log: PhoneLog, options: PhoneOptions) -> dict[str, str]:
    topics = {name: re.sub(r"\s+", "_", name.strip()).lower() for name in log.sensors}
    for topic, names in TOPICS.items():
        best = next((name for known in names for name in log.sensors if _plain(name) == known), None)
        if best is not None and topic not in options.topics.values():
            topics[best] = topic
    for name, topic in topics.items():
        if topic in TOPICS and _plain(name) == topic.replace("_", "") and [*topics.values()].count(topic) > 1:
            topics[name] = f"{topic.removesuffix('_raw')}_uncalibrated"  # what another sensor has calibrated
    _check("sensor `{}`", options.topics, topics, log.path)
    topics |= options.topics
    if twice := [topic for topic, count in Counter(topics.values()).items() if count > 1]:
        sensors = ", ".join(name for name, topic in topics.items() if topic == twice[0])
        raise SourceError(f"{sensors} would all be topic `{twice[0]}`; name one of them otherwise", log.path)
    _check("topic `{}` to scale", options.scale, topics.values(), log.path)
    _check("topic `{}` that has a unit", options.units, topics.values(), log.path)
    return topics


def _check(what: str, names: Iterable[str], known: Collection[str], path: Path) -> None:
    if absent := [name for name in names if name not in known]:
        raise SourceError(f"no {what.format(absent[0])}; there are: {', '.join(known)}", path)


def _plain(name: str) -> str:
    return re.sub(r"[\s_]+", "", name).lower()


def _events(log: PhoneLog, options: PhoneOptions) -> Iterator[dict[str, Any]]:
    """Each labelled stretch as an event of a labels JSON."""
    whole = [Mark(True, 1, min(log.order), {})] if options.label is not None and not log.marks else []
    begun: Mark | None = None
    for mark in (*whole, *log.marks, Mark(False, 0, max(log.order) + 1, {})):
        if begun is not None:
            yield _event(log, begun, mark, options)
        elif not mark.start and mark.record:
            raise log.wrong("is a STOP without a START before it", mark.record)
        begun = mark if mark.start else None


def _event(log: PhoneLog, start: Mark, stop: Mark, options: PhoneOptions) -> dict[str, Any]:
    if stop.time_ns <= start.time_ns:
        ends = f"ends a stretch at {stop.time_ns} ns, which began at {start.time_ns} ns"
        raise log.wrong(ends, stop.record or start.record)
    classes = dict(start.classes or ({} if stop.start else stop.classes))
    if options.label is not None or not classes:
        classes.setdefault(options.key, _MARKED if options.label is None else options.label)
    return {
        "id": f"record-{start.record}",
        "startTime": {"sec": start.time_ns // NS, "nsec": start.time_ns % NS},
        "endTime": {"sec": stop.time_ns // NS, "nsec": stop.time_ns % NS},
        "metadata": {name: canonical(text) for name, text in classes.items()},
    }


def _write_mcap(target: Path, log: PhoneLog, topics: Mapping[str, str], options: PhoneOptions) -> None:
    # What is scaled is in no unit that is known.
    known = {topic: _KNOWN_UNITS.get(_plain(name), "") for name, topic in topics.items() if topic not in options.scale}
    units = {topic: unit for topic, unit in known.items() if unit} | dict(options.units)
    with writing(target), whole_file(target) as unfinished, unfinished.open("wb") as file:
        writer = Writer(file, compression=CompressionType.ZSTD)
        writer.start(library="kymo prepare phone")
        writer.add_metadata("phone", {"file": log.path.name} | log.metadata)
        writer.add_metadata("units", {"timestamp": "ns"} | units)
        messages = []
        for name, rows in log.sensors.items():
            topic, factor = topics[name], options.scale.get(topics[name], 1.0)
            channel = json_channel(writer, topic, "sensor_event", _properties(rows.channels))
            for time_ns, values in zip(rows.times_ns, rows.values, strict=True):
                numbers = [None if math.isnan(value) else value * factor for value in values]
                data = json.dumps({"id": topic, "timestamp": time_ns, "values": numbers})
                messages.append((time_ns, channel, data.encode()))
        for time_ns, channel, content in sorted(messages, key=lambda message: message[0]):
            writer.add_message(channel, max(0, time_ns), content, max(0, time_ns))
        writer.finish()  # type: ignore[no-untyped-call]


def _properties(channels: Sequence[str]) -> dict[str, Any]:
    """Members of a message, as JSON Schema has them."""
    items: dict[str, Any] = {"type": "array", "items": {"type": ["number", "null"]}}
    if channels:
        items["prefixItems"] = [{"title": name, "type": ["number", "null"]} for name in channels]
    return {"id": {"type": "string"}, "timestamp": {"type": "integer"}, "values": items}


@dataclass(slots=True)
class Rows:
    """One sensor's rows, in the order of the file."""

    channels: tuple[str, ...]  # names; empty where `values` was a list
    times_ns: list[int] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)  # NaN for a missing one


class Mark(NamedTuple):
    """START or STOP: number of the record, time, classes by key."""

    start: bool
    record: int
    time_ns: int
    classes: Mapping[str, str]


class LogRecord(NamedTuple):
    """A record: its number, counted from 1, and the sensor that it is of."""

    number: int
    name: str
    members: Mapping[str, Any]


class PhoneLog:
    """What a file holds."""

    def __init__(self, path: Path, options: PhoneOptions) -> None:
        self.path = path
        self.sensors: dict[str, Rows] = {}  # by name, in the order of their first rows
        self.metadata: dict[str, str] = {}  # what it says of itself
        self.left_out: Counter[str] = Counter()  # rows without numbers, by sensor
        self.notes: list[str] = []  # what was found out of the times
        rows, marks = list[LogRecord](), list[tuple[LogRecord, int]]()
        for number, members in enumerate(_records(path), 1):
            record = self._record(number, members)
            if str(record.members.get("type", "")).strip().upper() in ("START", "STOP"):
                marks.append((record, len(rows)))
            elif self._take(record):
                rows.append(record)
        if not rows:
            raise SourceError(f"holds no sensor row: expected objects such as {_EXAMPLE}", path)
        elapsed = _member(rows[0].members, _TIMES) is None
        self._members, self._unit = _ELAPSED if elapsed else _TIMES, "s" if elapsed else options.unit
        self._exponent = UNITS[self._unit] if self._unit else self._tell_unit(rows)
        self.order = [self._time(record) for record in rows]  # time of every row, as they came
        for record, time_ns in zip(rows, self.order, strict=True):
            self.sensors[record.name].times_ns.append(time_ns)
        days = (max(self.order) - min(self.order)) // _DAY_NS
        if days >= _LONGEST_DAYS:
            raise SourceError(f"its times span {days} days; say their unit (s, ms, us, ns), or mend them", path)
        self.marks = [self._mark(record, before, options.key) for record, before in marks]

    def wrong(self, what: str, number: int) -> SourceError:
        """What is wrong with a record, counted from 1."""
        return SourceError(f"record {number} {what}", self.path)

    def _record(self, number: int, members: Any) -> LogRecord:
        if not isinstance(members, dict):
            raise self.wrong(f"is {brief(json.dumps(members))}, expected an object", number)
        name = _member(members, _NAMES)
        if not name:
            raise self.wrong(f"has no `sensor`, `type` or `name`: {brief(json.dumps(members))}", number)
        return LogRecord(number, name, members)

    def _take(self, record: LogRecord) -> bool:
        """Take a row's numbers; False for what is none."""
        if record.name.lower() == "metadata":
            self.metadata |= {str(k): str(v) for k, v in record.members.items() if k not in ("sensor", "type")}
            return False
        channels, values = ((), []) if record.name in _NO_SENSORS else self._values(record)
        if values:
            self.sensors.setdefault(record.name, Rows(channels)).values.append(values)
        else:
            self.left_out[record.name] += 1
        return bool(values)

    def _values(self, record: LogRecord) -> tuple[tuple[str, ...], list[float]]:
        """Channels and numbers of a row; none for a row that has no number."""
        number, name, members = record
        known, content = self.sensors.get(name), members.get("values")
        channels: tuple[str, ...] = ()
        if isinstance(content, list):
            numbers = [_number(value) for value in content]
        else:
            parts = content if isinstance(content, dict) else {k: v for k, v in members.items() if k not in _NOT_VALUES}
            numeric = [k for k, v in parts.items() if _number(v) is not None]
            in_order = sorted(numeric, key=_AXES.index) if set(numeric) <= set(_AXES) else numeric
            channels = known.channels if known is not None and numeric else tuple(in_order)
            if absent := [c for c in channels if c not in parts]:
                raise self.wrong(f"{name} has no `{absent[0]}`, as its first row had", number)
            numbers = [_number(parts[c]) for c in channels]
        values = [value for value in numbers if value is not None]
        if len(values) < len(numbers):
            raise self.wrong(f"{name} has a value that is no number: {brief(json.dumps(members))}", number)
        width = len(known.values[0]) if known and values else len(values)
        if len(values) != width:
            raise self.wrong(f"{name} has {len(values)} values, its first row had {width}", number)
        return channels, values

    def _tell_unit(self, rows: Sequence[LogRecord]) -> int:
        """The exponent of times: of many by the steps of the commonest sensor, of a few whole `ts` that of µs, else by size."""
        first, rows = rows[0], rows[:_FIRST_ROWS]
        commonest = Counter(record.name for record in rows).most_common(1)[0][0]
        rows = [record for record in rows if record.name == commonest]
        texts = [text for record in rows if (text := _member(record.members, _TIMES)) is not None]
        sized = _exponent_of(texts[0] if texts else str(_member(first.members, _TIMES)))
        if len(texts) < len(rows) or not all(map(is_number, texts)):
            return sized
        exponent, how = _by_steps(texts, self.path) if len(texts) >= _FEWEST_STEPS else None, "by their steps"
        small = all(text.lstrip("-").isdigit() and _exponent_of(text) == UNITS["s"] for text in texts)
        if exponent is None and small and all(_member(record.members, _TIMES[:-1]) is None for record in rows):
            exponent, how = UNITS["us"], "as whole `ts` are"
        if exponent not in (None, sized):
            unit = next(name for name, value in UNITS.items() if value == exponent)
            self.notes.append(f"times are read as {unit} {how}; --time-unit says another one")
        return sized if exponent is None else exponent

    def _time(self, record: LogRecord) -> int:
        text = _member(record.members, self._members)
        if text is None:
            shown = brief(json.dumps(record.members))
            raise self.wrong(f"has no `time`, `timestamp` or `seconds_elapsed`: {shown}", record.number)
        return self._scaled(text, self._exponent, record.number)

    def _mark(self, record: LogRecord, before: int, key: str) -> Mark:
        """A mark; without a time it stands at the next row (START), or right behind the one before (STOP)."""
        start = str(record.members["type"]).strip().upper() == "START"
        time_ns = self._mark_time(record)
        if time_ns is None and start:
            time_ns = [*self.order, max(self.order) + 1][before]
        elif time_ns is None:
            time_ns = self.order[before - 1] + 1 if before else self.order[0]
        text = next((record.members[m] for m in _CLASSES if record.members.get(m) not in (None, "", {}, [])), None)
        classes = {key: str(text)} if text else {}
        extra = record.members.get("metadata")
        for name, value in extra.items() if isinstance(extra, dict) else ():
            if name and value is not None and str(value).strip():
                classes[str(name)] = str(value)
        return Mark(start, record.number, time_ns, classes)

    def _mark_time(self, record: LogRecord) -> int | None:
        """A mark's own time, if it has one: in the rows' unit if it then lies near them, else told by its size."""
        text = _member(record.members, self._members)
        if text is None:
            return None
        if self._members == _ELAPSED or is_number(text) == (self._exponent >= 0):
            time_ns, around_ns = (
                self._scaled(text, self._exponent, record.number),
                max(self.order) - min(self.order) + NS,
            )
            if self._unit or min(self.order) - around_ns <= time_ns <= max(self.order) + around_ns:
                return time_ns
        return self._scaled(text, _exponent_of(text), record.number)

    def _scaled(self, text: str, exponent: int, number: int) -> int:
        try:
            time_ns = iso_ns(text) if exponent < 0 else int(Decimal(text).scaleb(exponent).to_integral_value())
        except (InvalidOperation, ValueError, OverflowError):
            time = brief(repr(text))
            raise self.wrong(f"has the time {time}, expected a number or ISO 8601 as before", number) from None
        if exponent >= 0 and abs(time_ns) >= _LIMIT_NS:
            raise self.wrong(f"has the time {brief(repr(text))}, which is too large; say the unit", number)
        return time_ns


def _records(path: Path) -> Iterator[Any]:
    """Records of a file: of its one JSON value, or of each line."""
    text = read_text(path)
    try:
        value = json.loads(text)
        if _find_list(value) is not None:
            yield {"sensor": "Metadata"} | {k: v for k, v in value.items() if isinstance(v, str | int | float)}
        yield from _unfolded(value)
        return
    except RecursionError:
        raise SourceError("is no JSON (nested too deep)", path) from None
    except ValueError as error:
        if text.lstrip().startswith("["):
            raise SourceError(f"is no JSON ({error})", path) from None
    for row, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise SourceError(f"is no JSON ({error})", path, row) from None
            yield from _unfolded(value)


def _find_list(value: Any) -> list[Any] | None:
    """The list in an object that stands for what is in it."""
    lists = (value.get(name) for name in _LISTS) if isinstance(value, dict) else ()
    return next((item for item in lists if isinstance(item, list)), None)


def _unfolded(value: Any) -> list[Any]:
    items = value if isinstance(value, list) else _find_list(value)
    return [value] if items is None else items


def _member(record: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of some members that says something."""
    return next((str(record[name]).strip() for name in names if record.get(name) not in (None, "")), None)


def _number(value: Any) -> float | None:
    """A number, NaN for a missing one, None for what is none."""
    if value is None or value == "":
        return math.nan
    if isinstance(value, bool) or not (is_number(value) if isinstance(value, str) else isinstance(value, int | float)):
        return None
    number = float(str(value) if isinstance(value, int) else value)  # a long one is no float
    return number if math.isfinite(number) else math.nan


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
