"""What a partition and its owner hand each other. In, out: limits, windows on their way, what an earlier life left."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from models.serving.outputs import Marks, Output
from models.serving.sessions import Session
from models.serving.snapshots import Snapshot


@dataclass(slots=True, frozen=True)
class Limits:
    """When a session gets a snapshot, so that it holds back no commit."""

    quiet_s: float = 60.0  # seconds without a chunk after which a session is stored and unloaded
    lag: int = 20_000  # offsets that a session may hold the commit back


@dataclass(slots=True, eq=False)
class Pending:
    """A window on its way to becoming an event."""

    output: Output  # the window, or the derived chunk
    place: int  # where in the session's input it stands
    session: Session  # whose it is
    sent_ms: int  # Unix time at which its last chunk was sent, ms
    # numbers of its records (the events of its heads) that stand already and are not published again
    known: frozenset[int] = frozenset()
    # how many records are not acknowledged yet; none where all are known: then it is judged for the sake of those
    # behind it
    left: int = 1
    bundle: str = ""  # what made those that are known; those behind it rest on it only where the same bundle judges


class Floor(NamedTuple):
    """Where the output topics stood when the first record behind a commit was taken: what comes of those stands behind it."""

    events: int = 0  # offsets of the partitions of the same number
    rejected: int = 0


_NOTHING = Floor()


@dataclass(slots=True)
class Left:
    """What an earlier life of a partition left."""

    start: Floor = _NOTHING  # what came of the records since its last commit stands between these
    end: Floor = _NOTHING
    state_end: int = 0  # where ``kymo.state`` ends
    # by session, what is published of those: see :mod:`models.serving.outputs`
    published: dict[str, Marks] = field(default_factory=dict)
    rejected: set[tuple[str, int]] = field(default_factory=set)  # topics and offsets of those that are rejected
    snapshots: dict[str, Snapshot] = field(default_factory=dict)  # by session, its stored snapshot
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
