"""Topics of other programs in MCAP files. In: JSON messages, or Protobuf ones that the file's schema explains. Out: each topic's samples,
times in ns.

A message is a sample: its list ``values``, or else all its numbers, named by the way to them (``linear_acceleration.x``). Its time is its
own ``timestamp``, ``stamp``, ``time`` or ``ts``, or its header's, a number, an object of seconds and nanoseconds or ISO 8601; else the time
at which it was logged, or published where the log knows only one. A number's unit is the one in which it runs as the log does.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator, Mapping
from fractions import Fraction
from itertools import islice
from typing import Any, TypeGuard, cast

import numpy as np
from mcap.records import Message, Schema
from numpy.typing import NDArray

from kymo.streams.chunk import Array
from kymo.streams.errors import SourceError
from kymo.streams.readers.moments import iso_ns
from kymo.streams.readers.times import TimeColumn
from kymo.streams.words import NS, OUR_DAYS_S, brief, many

_AXES = {1: ("value",), 3: ("x", "y", "z"), 4: ("w", "x", "y", "z")}
_MAX_NS, _MAX_VALUES = 2**62, 2**16
_NUMBERS = frozenset((int, float))
_TIMES = ("timestamp", "stamp", "time", "ts")
#: Members of a time that is an object.
_SECONDS, _NANOSECONDS = ("sec", "secs", "seconds"), ("nsec", "nsecs", "nanosec", "nanos", "nanoseconds")
#: Schemas whose numbers are no samples.
_NO_SAMPLES = ("foxglove.Log", "foxglove.CompressedImage", "foxglove.RawImage", "classification", "kymo.Event")
_RATIO_SHARE = 0.1  # a span that is so near to the log's times a unit is of that unit
# No sensor sends messages faster: times that run so are of another unit, if they are not of our days.
_FASTEST_STEP_NS = 200_000


def is_sample(value: Any, schema: Schema | None) -> TypeGuard[Mapping[str, Any]]:
    if not isinstance(value, dict) or (schema is not None and schema.name in _NO_SAMPLES):
        return False
    return (
        isinstance(value.get("values"), list)
        or 0 < sum(1 for _ in islice(_numbers(value), _MAX_VALUES + 1)) <= _MAX_VALUES
    )


def _numbers(value: Any, way: str = "") -> Iterator[tuple[str, float]]:
    """A message's numbers with their names, but for its times."""
    if isinstance(value, dict):
        for name, member in value.items():
            if way or name not in (*_TIMES, "header"):
                yield from _numbers(member, f"{way}.{name}" if way else str(name))
    elif isinstance(value, list):
        for i, member in enumerate(value):
            yield from _numbers(member, f"{way}[{i}]")
    elif type(value) in (int, float):
        yield way, value


class TopicSamples:
    def __init__(self, name: str, schema: Schema | None, path: str) -> None:
        self.name, self.unit = name, ""  # of all values, where the file says it
        self.stream = " ".join(name.split()).strip("/").replace("/", ".") or "sensor"
        self._path, self._schema = path, schema.data if schema else b""
        self._names: tuple[str, ...] | None = None  # of the numbers, where messages have no `values`
        self._stamps: list[Any] = []
        self._whole_ns = False  # whether stamps are ns by their form
        self._logged, self._published = array("Q"), array("Q")  # ns
        self._times_ns: NDArray[np.int64] | None = None
        self._values: list[array[float]] = []
        self._more = self._far = 0  # messages that have more numbers than the first, or a time beyond all

    def add(self, value: Mapping[str, Any], message: Message) -> None:
        values = value.get("values")
        if not isinstance(values, list):
            values = self._named(value)
        number = len(self._values) + 1
        if not 0 < len(values) <= _MAX_VALUES or (self._values and len(values) != len(self._values[0])):
            expected = len(self._values[0]) if self._values else f"1 to {_MAX_VALUES}"
            raise self._wrong(number, f"{len(values)} values, expected {expected}")
        numbers = [math.nan if item is None else item for item in values] if None in values else values
        if not _NUMBERS.issuperset(map(type, numbers)):
            item = next(item for item in numbers if type(item) not in _NUMBERS)
            raise self._wrong(number, f"{brief(repr(item))} among the values, expected a number")
        self._stamps.append(self._stamp(value, number))
        self._logged.append(message.log_time)
        self._published.append(message.publish_time)
        try:
            self._values.append(array("d", numbers))
        except OverflowError:
            raise self._wrong(number, "a value is too large for a float64") from None

    def _wrong(self, number: int, message: str) -> SourceError:
        return SourceError(f"{self.stream}, message {number}: {message}", self._path)

    def _named(self, value: Mapping[str, Any]) -> list[Any]:
        """Numbers in the order of the first message; one that is not there is none."""
        numbers = dict(_numbers(value))
        self._names = self._names or tuple(numbers)
        self._more += not numbers.keys() <= set(self._names)
        return [numbers.get(name) for name in self._names]

    def _stamp(self, value: Mapping[str, Any], number: int) -> int | float | None:
        stamp, header = value.get("timestamp"), value.get("header")
        if stamp is None:
            holders = (value, header) if isinstance(header, dict) else (value,)
            times = (holder[name] for holder in holders for name in _TIMES if holder.get(name) is not None)
            stamp = next(times, None)
        plain = (type(stamp) is int and abs(stamp) < _MAX_NS) or (type(stamp) is float and math.isfinite(stamp))
        if stamp is None or plain:
            return cast(int | float | None, stamp)
        if isinstance(stamp, dict | str):
            try:
                at = iso_ns(stamp) if isinstance(stamp, str) else _seconds_and_ns(stamp)
            except OverflowError:
                at = _MAX_NS
            except (KeyError, TypeError, ValueError, StopIteration):
                raise self._wrong(number, f"timestamp {brief(repr(stamp))}, expected whole ns") from None
            self._far += (far := abs(at) >= _MAX_NS)
            self._whole_ns |= not far
            return None if far else at
        raise self._wrong(number, f"timestamp {brief(repr(stamp))}, expected whole ns")

    @property
    def times_ns(self) -> NDArray[np.int64]:
        """``(n,)``; before they are settled, what no log gives a unit counts ns."""
        return self._timed(None, True)[0] if self._times_ns is None else self._times_ns

    def settle(self, rate: Fraction | None, sure: bool) -> list[str]:
        """Find out the unit of the times, for all; what is to be said of them and of the messages."""
        self._times_ns, notes = self._timed(rate, sure)
        if self._more:
            notes.append(f"{many(self._more, 'message')} with further numbers, which are left out")
        if self._far:
            notes.append(f"{many(self._far, 'message')} with a time beyond all calendars: the log's is taken")
        return notes

    def _timed(self, rate: Fraction | None, sure: bool) -> tuple[NDArray[np.int64], list[str]]:
        """Times ``(n,)``, and what was found out of their unit; where it is not `sure` to be ns, their steps must make sense."""
        alike = len(self._logged) > 1 and len({*self._logged}) == 1  # some writers fill in the other one alone
        logs = np.frombuffer(self._published if alike else self._logged, np.uint64)
        logged = np.minimum(logs, _MAX_NS).astype(np.int64)
        if any(stamp is None for stamp in self._stamps):
            stamps = [at if stamp is None else stamp for at, stamp in zip(logged.tolist(), self._stamps, strict=True)]
        else:
            stamps = self._stamps
        if self._whole_ns:
            return np.array(stamps, np.int64), []
        whole = all(type(stamp) is int for stamp in stamps)
        numbers: Any = np.array(stamps, np.int64 if whole else np.float64)
        spans = [float(times.max()) - float(times.min()) for times in (numbers, logged)]
        power = round(math.log10(spans[1] / spans[0]) / 3) if min(spans) > 0 else 0
        if power > 0 and abs(spans[1] / spans[0] / 1000**power - 1) < _RATIO_SHARE:
            unit = {1: "µs", 2: "ms", 3: "s"}.get(power, "")
            times = np.rint(numbers * float(1000**power)).astype(np.int64) if not whole else numbers * 1000**power
            if unit and np.abs(times).max() < _MAX_NS:
                return times, [f"its own times are read as {unit}, in which they run as the log does"]
        steps = np.diff(numbers)
        step = float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.0
        our_days = OUR_DAYS_S[0] <= float(np.median(numbers)) / NS < OUR_DAYS_S[1]
        if whole and (sure or our_days or not 0 < step < _FASTEST_STEP_NS):
            return numbers, []
        column = TimeColumn("timestamp", self._path, rate)
        try:
            return column.numbers(numbers, np.arange(1, len(numbers) + 1)), column.notes
        except SourceError:
            if whole:
                return numbers, []
            raise self._wrong(1, f"timestamp {brief(repr(self._stamps[0]))}, expected whole ns") from None

    def takes(self, value: Any) -> bool:
        """Whether a message is of the kind that the first one was."""
        return isinstance(value, dict) and isinstance(value.get("values"), list) is (self._names is None)

    @property
    def first(self) -> array[float]:
        return self._values[0]

    @property
    def values(self) -> Array:
        """``(n, channels)`` float64."""
        return np.array(self._values, np.float64)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the numbers; of ``values`` the schema's titles, else x, y, z for three, w, x, y, z for four, else v0, v1 …"""
        if self._names is not None:
            return self._names
        count = len(self._values[0])
        titles = _titles(self._schema)
        if len(titles) == count and len(set(titles)) == count:
            return titles
        return _AXES.get(count, tuple(f"v{i}" for i in range(count)))


def _seconds_and_ns(stamp: Mapping[str, Any]) -> int:
    seconds = next(stamp[name] for name in _SECONDS if name in stamp)
    whole = round(seconds * NS) if isinstance(seconds, float) else int(seconds) * NS
    return whole + next((int(stamp[name]) for name in _NANOSECONDS if name in stamp), 0)


def _titles(schema: bytes) -> tuple[str, ...]:
    try:
        values = json.loads(schema)["properties"]["values"]
        return tuple(str(item["title"]) for item in values.get("prefixItems") or values["items"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ()


class ProtobufSchemas:
    """Protobuf messages of other programs, by the descriptors that stand in the file."""

    def __init__(self) -> None:
        self._classes: dict[int, Any] = {}  # by schema; None for one that explains nothing

    def decode(self, schema: Schema, data: bytes) -> Any:
        """A message's members as JSON would have them, times as objects; None for one that cannot be read."""
        if schema.id not in self._classes:
            self._classes[schema.id] = _message_class(schema)
        try:
            return _members(self._classes[schema.id].FromString(data)) if self._classes[schema.id] else None
        except Exception:  # the library's own error is not a public name
            return None


def _message_class(schema: Schema) -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    try:
        pool = descriptor_pool.DescriptorPool()
        for file in descriptor_pb2.FileDescriptorSet.FromString(schema.data).file:
            pool.Add(file)
        return message_factory.GetMessageClass(pool.FindMessageTypeByName(schema.name))
    except Exception:  # whatever a foreign descriptor may hold
        return None


def _members(message: Any) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is None:
            members[field.name] = value if isinstance(value, int | float | str | bytes) else list(value)
        elif hasattr(value, "DESCRIPTOR"):
            members[field.name] = _members(value)
        else:
            members[field.name] = [_members(item) for item in value if hasattr(item, "DESCRIPTOR")]
    return members
