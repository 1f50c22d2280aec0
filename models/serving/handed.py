"""What a partition and its owner hand each other. In, out: limits, windows on their way, what an earlier life left."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from models.serving.outputs import Marks, Output
from models.serving.sessions import Session
from models.serving.snapshots import Snapshot


@dataclass(slots=True, frozen=True)
class Limits:
    """When a session gets a snapshot, so that it holds back no commit.

    Attributes
    ----------
    quiet_s : float
        Seconds without a chunk after which a session is stored and unloaded.
    lag : int
        Offsets that a session may hold the commit back.
    """

    quiet_s: float = 60.0
    lag: int = 20_000


@dataclass(slots=True, eq=False)
class Pending:
    """A window on its way to becoming an event.

    Attributes
    ----------
    output : Window or Chunk
        The window, or the derived chunk.
    place : int
        Where in the session's input it stands.
    session : Session
        Whose it is.
    sent_ms : int
        Unix time at which its last chunk was sent, ms.
    known : frozenset of int
        Numbers of its records (the events of its heads) that stand already and are not published again.
    left : int
        How many records are not acknowledged yet; none where all are known: then it is judged for the sake of those behind it.
    bundle : str
        What made those that are known; those behind it rest on it only where the same bundle judges.
    """

    output: Output
    place: int
    session: Session
    sent_ms: int
    known: frozenset[int] = frozenset()
    left: int = 1
    bundle: str = ""


class Floor(NamedTuple):
    """Where the output topics stood when the first record behind a commit was taken: what comes of those stands behind it.

    Attributes
    ----------
    events, rejected : int
        Offsets of the partitions of the same number.
    """

    events: int = 0
    rejected: int = 0


_NOTHING = Floor()


@dataclass(slots=True)
class Left:
    """What an earlier life of a partition left.

    Attributes
    ----------
    start, end : Floor
        What came of the records since its last commit stands between these.
    state_end : int
        Where ``kymo.state`` ends.
    published : dict of str to Marks
        By session, what is published of those: see :mod:`models.serving.outputs`.
    rejected : set of (str, int)
        Topics and offsets of those that are rejected.
    snapshots : dict of str to Snapshot
        By session, its stored snapshot.
    gone : list of str
        Sessions whose stored snapshot is of no use any more.
    odd : list of (object, Exception)
        Records of the output topic which are nothing that workers write there.
    odd_snapshots : dict of str to (object, Exception)
        By session, such records of ``kymo.state``.
    next_offset : dict of str to int
        By input topic, where its last commit stands.
    first_offset : dict of str to int
        By input topic, the oldest offset that is still there.
    input_end : dict of str to int
        By input topic, the end at loading: nothing behind it can have been read before.
    topic_ids : dict of str to str
        By input topic, Kafka's id of it.
    """

    start: Floor = _NOTHING
    end: Floor = _NOTHING
    state_end: int = 0
    published: dict[str, Marks] = field(default_factory=dict)
    rejected: set[tuple[str, int]] = field(default_factory=set)
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    odd: list[tuple[Any, Exception]] = field(default_factory=list)
    odd_snapshots: dict[str, tuple[Any, Exception]] = field(default_factory=dict)
    next_offset: dict[str, int] = field(default_factory=dict)
    first_offset: dict[str, int] = field(default_factory=dict)
    input_end: dict[str, int] = field(default_factory=dict)
    topic_ids: dict[str, str] = field(default_factory=dict)
