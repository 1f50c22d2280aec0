"""A session as it is stored on ``kymo.state``, and what an owner of a partition hands over. In: what they tell. Out: bytes, and back.

What it tells of itself stands in front, readable without the memory: who takes over a partition with thousands of sessions looks at nothing
else. The memory is compressed. Where it is too large for a message, or another chain made it, the session goes on without it: from the
offset of the oldest sample that an open window of it needs.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from kymo.models.serving.outputs import Marks
from kymo.processors.join import Decision
from kymo.processors.spec import header_to_json, pack_list, unpack, unpack_list
from kymo.streams.errors import MessageError
from kymo.streams.messages import read_object
from kymo.streams.topics import BY_NAME, MIB

VERSION = 1
_FRONT = struct.Struct("<2sBI")  # magic, version, bytes of the front
_FRONT_KINDS = {"chain": str, "topic": str, "topic_id": str, "upto": int, "open": int, "ended": bool, "meta": dict}
_MAGIC = b"KS"
MEMORY_MAX = 256 * MIB  # unpacked
#: Largest snapshot: a message with its key and headers must fit into the topic.
BYTES_MAX = BY_NAME["state"].message_max - MIB // 16


@dataclass(frozen=True, slots=True)
class SessionSnapshot:
    """A stored session."""

    chain: str  # digest of the chain whose memory it is
    # input topic that the offsets are of, and Kafka's id of it: a topic of that name that was made again has other
    # offsets
    topic: str
    topic_id: str
    upto: int  # newest offset that is in it
    open: int  # oldest offset that an open window of any chain of the recipe needs; -1 where that is not known
    ended: bool  # whether the session has ended: then no window is open
    meta: Mapping[str, Any]  # what else the session tells; JSON values that only it reads
    memory: bytes = b""  # the chain's, compressed; empty where it is left out

    @classmethod
    def of(cls, front: Mapping[str, Any], meta: Mapping[str, Any], stages: Sequence[bytes]) -> SessionSnapshot:
        """A snapshot with the memory of a chain's stages, or without it where nobody would unpack as much.

        Compressing it takes its time, and is no work for an event loop.
        """
        memory = pack_list(list(stages))
        return cls(**front, meta=meta, memory=zlib.compress(memory, 1) if len(memory) <= MEMORY_MAX else b"")

    def light(self) -> SessionSnapshot:
        """The same without the memory."""
        return replace(self, memory=b"")

    def encode(self) -> bytes:
        """The message."""
        front = json.dumps({name: getattr(self, name) for name in _FRONT_KINDS}, separators=(",", ":")).encode()
        return b"".join((_FRONT.pack(_MAGIC, VERSION, len(front)), front, self.memory))

    @classmethod
    def decode(cls, raw: bytes) -> SessionSnapshot:
        """The snapshot of a message."""
        if raw[:2] != _MAGIC:
            return _first_version(raw)
        if len(raw) < _FRONT.size:
            raise MessageError(f"a snapshot of {len(raw)} bytes, expected {_FRONT.size} at least")
        _, version, size = _FRONT.unpack_from(raw)
        if version != VERSION:
            raise MessageError(
                f"a snapshot of version {version}, this Kymo reads {VERSION}; run the Kymo that wrote it"
            )
        front, end = read_object(raw[_FRONT.size : _FRONT.size + size]), _FRONT.size + size
        for name, kind in _FRONT_KINDS.items():
            if type(front.get(name)) is not kind:
                raise MessageError(
                    f"a snapshot whose `{name}` is {str(front.get(name))[:40]!r}, expected {kind.__name__}"
                )
        return cls(**{name: front[name] for name in _FRONT_KINDS}, memory=raw[end:])

    def stages(self) -> list[bytes]:
        """The memory of the chain's stages."""
        try:
            unpacking = zlib.decompressobj()
            memory = unpacking.decompress(self.memory, MEMORY_MAX)
            if not unpacking.eof:
                raise MessageError(f"a snapshot's memory is cut, or larger than {MEMORY_MAX // MIB} MiB")
            return unpack_list(memory)
        except (zlib.error, struct.error) as error:
            raise MessageError(f"a snapshot's memory is damaged ({error})") from None


def _first_version(raw: bytes) -> SessionSnapshot:
    """A snapshot of the version that had no number; its memory is that of today's stages."""
    try:
        packed_meta, stage, *_ = unpack_list(raw)
        meta, _ = unpack(packed_meta)
        front = {name: meta.pop(name) for name in ("chain", "topic", "upto", "ended")}
        if "made" in meta:
            meta["made"] = header_to_json(meta["made"])
        return SessionSnapshot.of(front | {"topic_id": "", "open": -1}, meta, unpack_list(stage))
    except Exception as error:  # any bytes may stand there
        raise MessageError(f"{len(raw)} bytes are no snapshot ({type(error).__name__})") from None


class Floor(NamedTuple):
    """Where the output topics stood when the first record behind a commit was taken: what comes of those stands behind it."""

    events: int = 0  # offsets of the partitions of the same number
    rejected: int = 0


_NOTHING = Floor()


@dataclass(slots=True)
class Handover:
    """What an earlier life of a partition hands over to the next."""

    start: Floor = _NOTHING  # what came of the records since its last commit stands between these
    end: Floor = _NOTHING
    state_end: int = 0  # where ``kymo.state`` ends
    # by session, what is published of those: see :mod:`kymo.models.serving.outputs`
    published: dict[str, Marks] = field(default_factory=dict)
    rejected: set[tuple[str, int]] = field(default_factory=set)  # topics and offsets of those that are rejected
    snapshots: dict[str, SessionSnapshot] = field(default_factory=dict)  # by session, its stored snapshot
    gone: list[str] = field(default_factory=list)  # sessions whose stored snapshot is of no use any more
    # records of the output topic which are nothing that workers write there
    odd: list[tuple[Any, Exception]] = field(default_factory=list)
    # by session, such records of ``kymo.state``
    odd_snapshots: dict[str, tuple[Any, Exception]] = field(default_factory=dict)
    next_offset: dict[str, int] = field(default_factory=dict)  # by input topic, where its last commit stands
    first_offset: dict[str, int] = field(default_factory=dict)  # by input topic, the oldest offset that is still there
    # by input topic, the end at loading: nothing behind it can have been read before
    input_end: dict[str, int] = field(default_factory=dict)
    topic_ids: dict[str, str] = field(default_factory=dict)  # by input topic, Kafka's id of it
    decisions: dict[str, list[Decision]] = field(default_factory=dict)  # by session, what was stored of its inputs
    overruled: list[str] = field(default_factory=list)  # sessions of which one that was overtaken has decided, too


def lowest(floors: Sequence[Floor]) -> Floor:
    """The lowest of some floors, topic by topic."""
    return Floor(*(min(offsets) for offsets in zip(*floors, strict=True)))
