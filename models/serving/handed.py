"""What a partition and its owner hand each other. In, out: limits, windows on their way, what an earlier life left."""

from __future__ import annotations

from dataclasses import dataclass, field

from models.serving.outputs import Mark, Output
from models.serving.sessions import Session


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
    """

    output: Output
    place: int
    session: Session
    sent_ms: int
    known: frozenset[int] = frozenset()
    left: int = 1


@dataclass(slots=True)
class Left:
    """What an earlier life of a partition left.

    Attributes
    ----------
    events_start, events_end : int
        Its events since its last commit stand between these offsets of the events partition.
    published : dict of str to set of Mark
        By session, what those events are of: see :mod:`models.serving.outputs`.
    snapshots : dict of str to bytes
        By session, its stored snapshot.
    next_offset : dict of str to int
        By input topic, where reading begins.
    input_end : dict of str to int
        By input topic, the end at loading: nothing behind it can have been read before.
    """

    events_start: int = 0
    events_end: int = 0
    published: dict[str, set[Mark]] = field(default_factory=dict)
    snapshots: dict[str, bytes] = field(default_factory=dict)
    next_offset: dict[str, int] = field(default_factory=dict)
    input_end: dict[str, int] = field(default_factory=dict)
