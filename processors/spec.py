"""Spec and Stage, the one abstraction; a Stage's memory as bytes. In: Chunks (or Windows). Out: Chunks, or Windows behind a window step.

A Spec is parameters only; ``spec.build()`` gives a Stage, which is the memory of one session. Nothing here knows Kafka, asyncio, files
or wall time. Two laws hold for every Spec (``tests/checks.py``): cut invariance and crash invariance.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from kymo.streams.chunk import Array, Chunk, Format, Header
from kymo.streams.errors import FormatError
from kymo.streams.schema import SchemaError, check

_LENGTH = struct.Struct("<I")  # of a part of a snapshot


class Stage(ABC):
    """The memory of one Spec in one session."""

    def __init__(self) -> None:
        # what was noticed, by name (``gaps``, ``duplicates``, ``late``, …); the owner may read and clear it
        self.counts: Counter[str] = Counter()

    @abstractmethod
    def push(self, item: Any) -> list[Any]:
        """Take one item; give what became complete by it."""

    def flush(self) -> list[Any]:
        """Give what is still inside and can stand alone; called at the session's end mark only."""
        return []

    @property
    @abstractmethod
    def needs_from(self) -> dict[str, int]:
        """By stream, the oldest input index still needed; what lies before may be forgotten. Empty before the first item."""

    @abstractmethod
    def snapshot(self) -> bytes:
        """All of the memory, so that a new Stage of the same Spec goes on exactly."""

    @abstractmethod
    def restore(self, snapshot: bytes) -> None:
        """Become what `snapshot` was taken of."""


@dataclass(frozen=True)
class Spec(ABC):
    """Parameters of one step, validated at construction, JSON both ways."""

    name: ClassVar[str]
    #: Fields that training sets; two chains that differ in these only are the same chain.
    learned: ClassVar[frozenset[str]] = frozenset()
    #: Whether the step may stand before the window (stream to stream), behind it (per window).
    before_window: ClassVar[bool] = True
    after_window: ClassVar[bool] = True
    #: Whether what comes out rests on no more of the raw input than its format's step and span say.
    spans_all: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if isinstance(value := getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(value))
        try:
            check(self)
        except SchemaError as wrong:
            value = getattr(self, str(wrong.path[0]))
            raise FormatError(f"{self.name}: {wrong.path[0]} {value!r}, expected {wrong.expected}") from None

    @abstractmethod
    def build(self) -> Stage:
        """A Stage for one session."""

    def at(self, fmt: Format) -> Spec:
        """This step behind what gives `fmt`, with what it can know from there filled in; most know all by themselves."""
        return self

    @abstractmethod
    def output(self, inputs: Mapping[str, Format]) -> Format:
        """Format of what comes out, from the formats of what comes in, without data."""

    def apply(self, data: Array, fmt: Format) -> Array:
        """The step on a whole array at once: ``(n, *shape)`` to ``(m, *output.shape)``; how it is done per window."""
        raise TypeError(f"{self.name} cannot stand behind the window")

    def shared(self, fmt: Format) -> Spec:
        """This step behind what gives `fmt`, for windows of any kind: without what a recipe sets for those of its own alone."""
        return self

    def input_index(self, index: int) -> int:
        """Oldest input index that output `index` rests on."""
        return index

    @property
    def endless(self) -> bool:
        """Whether a Stage's memory has no end: then only a snapshot goes on exactly, and `needs_from` says what is needed beside it."""
        return False

    def memory_bytes(self, fmt: Format) -> int:
        """How much of its input, of `fmt`, a Stage keeps at most, in bytes; nothing where that does not grow with the window."""
        return 0

    def to_json(self, learned: bool = True) -> dict[str, Any]:
        """The Spec as JSON values, with or without what training sets; :func:`kymo.processors.registry.spec_from_json` reads it back."""
        names = [f.name for f in dataclasses.fields(self) if learned or f.name not in self.learned]
        return {"step": self.name, **{name: _plain(getattr(self, name), learned) for name in names}}


def only(inputs: Mapping[str, Format]) -> Format:
    """The one format of a step that takes one stream."""
    (fmt,) = inputs.values()
    return fmt


def chain_digest(before: str, spec: Spec) -> str:
    """Digest of the steps so far: 16 hexadecimal digits, depending on the recipe alone."""
    text = before + json.dumps(spec.to_json(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def derived_header(header: Header, spec: Spec) -> Header:
    """Header of what `spec` makes of a stream; its format and chain are worked out once for sessions whose streams are alike."""
    fmt = header.format
    known = spec.__dict__.get("_derived")
    if known is None or known[0] != (fmt, header.chain):
        made = spec.output({fmt.stream: fmt}), chain_digest(header.chain, spec)
        known = spec.__dict__["_derived"] = (fmt, header.chain), *made
    return Header(header.session, header.origin_ns, *known[1:])


class StreamStage(Stage):
    """A Stage that makes one stream of another; what it remembers beside the input's header, `numbers` and `arrays` name."""

    numbers: ClassVar[tuple[str, ...]] = ("next",)
    arrays: ClassVar[tuple[str, ...]] = ()

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self._header: Header | None = None  # of what comes in
        self._out: Header
        self._next = 0  # first index of the output that was not given yet

    def _is_other(self, header: Header) -> bool:
        """Whether this is the header of another stream than what came before."""
        if header is not self._header and header == self._header:
            self._header = header  # the same header as another object, as after a restart
        return header is not self._header

    def _bind(self, header: Header) -> None:
        self._header, self._out = header, derived_header(header, self.spec)

    @property
    def needs_from(self) -> dict[str, int]:
        """The oldest sample that the next output rests on."""
        return {} if self._header is None else {self._header.format.stream: self.spec.input_index(self._next)}

    def snapshot(self) -> bytes:
        numbers = {name: getattr(self, f"_{name}") for name in ("header", *self.numbers)}
        return pack(numbers, {name: getattr(self, f"_{name}") for name in self.arrays})

    def restore(self, snapshot: bytes) -> None:
        numbers, arrays = unpack(snapshot)
        if header := numbers.pop("header"):
            self._bind(header)
        for name, value in (numbers | arrays).items():
            setattr(self, f"_{name}", value)


class MapSpec(Spec):
    """A pure function of each sample, lifted: subclasses give :meth:`Spec.apply` and :meth:`Spec.output` alone."""

    def build(self) -> Stage:
        return MapStage(self)


class MapStage(StreamStage):
    """Stage of a :class:`MapSpec`: no memory but the input's header."""

    def push(self, item: Chunk) -> list[Chunk]:
        if self._is_other(item.header):
            self._bind(item.header)
        self._next = item.end_index
        return [
            Chunk(self._out, item.first_index, self.spec.apply(item.data, item.header.format), item.times_ns, item.end)
        ]


class SlowSpec(MapSpec):
    """A function of each sample by itself that takes too long for an event loop, such as an estimator of poses.

    A worker has it done by processes of its own, and what comes of it always ends at a topic. Elsewhere it is done in line. What it makes
    of a sample must not depend on which others it is given with it.
    """

    after_window: ClassVar[bool] = False
    #: Samples, of any sessions, that are worth giving it at once.
    batch: ClassVar[int] = 1

    def prepare(self) -> None:
        """Load what takes long to load; called in each process before its first sample."""


def _plain(value: Any, learned: bool) -> Any:
    if isinstance(value, Spec):
        return value.to_json(learned)
    if isinstance(value, tuple | list):
        return [_plain(v, learned) for v in value]
    if isinstance(value, Fraction):
        return f"{value.numerator}/{value.denominator}"
    return value


def pack(meta: Mapping[str, Any], arrays: Mapping[str, Array] | None = None) -> bytes:
    described, blobs = [], []
    for name, array in (arrays or {}).items():
        if array.dtype == object:  # frames as bytes
            described.append([name, "bytes", [len(frame) for frame in array]])
            blobs += [bytes(frame) for frame in array]
            continue
        described.append([name, array.dtype.str, list(array.shape)])
        blobs.append(np.ascontiguousarray(array).tobytes())
    text = json.dumps(
        {"meta": {k: _out(v) for k, v in meta.items()}, "arrays": described}, separators=(",", ":")
    ).encode()
    return b"".join((_LENGTH.pack(len(text)), text, *blobs))


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """What :func:`pack` was given; arrays are copies that may be written to."""
    (size,) = _LENGTH.unpack_from(data)
    head = json.loads(data[4 : 4 + size])
    position, arrays = 4 + size, {}
    for name, dtype, shape in head["arrays"]:
        if dtype == "bytes":
            arrays[name] = np.empty(len(shape), object)
            for i, length in enumerate(shape):
                arrays[name][i] = data[position : position + length]
                position += length
            continue
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(data, dtype, count, position).reshape(shape).copy()
        position += count * np.dtype(dtype).itemsize
    return {k: _in(v) for k, v in head["meta"].items()}, arrays


def pack_list(parts: list[bytes]) -> bytes:
    """Several snapshots as one."""
    return b"".join(_LENGTH.pack(len(part)) + part for part in parts)


def unpack_list(data: bytes) -> list[bytes]:
    """What :func:`pack_list` was given."""
    parts, position = [], 0
    while position < len(data):
        (size,) = _LENGTH.unpack_from(data, position)
        parts.append(data[position + 4 : position + 4 + size])
        position += 4 + size
    return parts


def header_to_json(header: Header) -> list[Any]:
    """A Header as JSON values; :func:`header_from_json` reads it back."""
    f = header.format
    fields = [f.stream, f.channels, f.units, str(f.rate), f.dtype, f.shape, str(f.step), f.span, f.rows]
    return [header.session, header.origin_ns, header.chain, fields]


def header_from_json(values: Sequence[Any]) -> Header:
    """What :func:`header_to_json` was given."""
    session, origin_ns, chain, (stream, channels, units, rate, dtype, shape, step, span, rows) = values
    fmt = Format(stream, tuple(channels), tuple(units), Fraction(rate), dtype, tuple(shape), Fraction(step), span, rows)
    return Header(session, origin_ns, fmt, chain)


def _out(value: Any) -> Any:
    return {"__header__": header_to_json(value)} if isinstance(value, Header) else value


def _in(value: Any) -> Any:
    return header_from_json(value["__header__"]) if isinstance(value, dict) and "__header__" in value else value
