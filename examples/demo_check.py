"""What a demo proves. In: recordings, events of the topic and of an offline run. Out: counts, scores, latencies in ms.

Pure: the numbers come from what was read back, none is assumed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from streams.chunk import Chunk
from streams.events import Event, event_id
from streams.readers.words import some
from streams.recording import Recording

if TYPE_CHECKING:
    from processors.recipe.load import Recipe

SHOWN = 3  # examples of a complaint


@dataclass(frozen=True, slots=True)
class Seen:
    """An event as it stands in the topic."""

    event: Event
    time_ms: int  # when the worker sent it, Unix ms: the time of its record


@dataclass(slots=True)
class Checked:
    """What was expected against what came; lists hold event ids, in order."""

    expected: int = 0  # windows of the recordings; records in the events topic
    events: int = 0
    # ids that did not come, came more than once, or belong to no window
    missing: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)  # ids, with what differs, of events that are not as offline
    offline_missing: list[str] = field(default_factory=list)  # the same two complaints about the offline run
    offline_unexpected: list[str] = field(default_factory=list)

    def complaints(self) -> list[str]:
        """A line for each thing that is not as it must be; none if all is well."""
        said = {
            "missing": "did not come",
            "repeated": "came more than once",
            "unexpected": "belong to no window of the recordings",
            "different": "are not as offline",
            "offline_missing": "did not come offline",
            "offline_unexpected": "came offline but belong to no window",
        }
        out = [] if self.expected else ["no event was expected: the recordings hold no window"]
        for name, text in said.items():
            found = getattr(self, name)
            if found:
                out.append(f"{len(found)} of {self.expected} events {text}: {some(found, SHOWN)}")
        return out


def expected_ids(recordings: Iterable[Recording], recipe: Recipe) -> list[str]:
    """Ids of the events of all whole windows, by arithmetic alone.

    Windows of length L stand at multiples of the hop H: a piece of samples ``[a, b)`` holds those that begin at
    ``H*ceil(a/H)``, and on by H, as long as they end by b.
    """
    ids = []
    length, hop = recipe.window_length, recipe.window_hop
    for recording in recordings:
        streams = [s for s in recording.streams if not s.header.chain and recipe.matches(s.header.format) is None]
        for first, samples in streams[0].pieces if streams else ():
            begin = -(-first // hop) * hop
            starts = range(begin, first + len(samples) - length + 1, hop)
            heads = ("", *(head.name for head in recipe.heads))
            ids += [event_id(recipe.name, recording.session, start, head) for start in starts for head in heads]
    return ids


def check(expected: Sequence[str], online: Sequence[Event], offline: Sequence[Event]) -> Checked:
    """Compare the topic with what was expected, and with the offline run."""
    wanted, came = set(expected), Counter(event.id for event in online)
    reference = {event.id: event for event in offline}
    found = Checked(len(expected), len(online))
    found.missing = [name for name in expected if not came[name]]
    found.repeated = [name for name, count in came.items() if count > 1]
    found.unexpected = [name for name in came if name not in wanted]
    found.offline_missing = [name for name in expected if name not in reference]
    found.offline_unexpected = [name for name in reference if name not in wanted]
    for event in online:
        twin = reference.get(event.id)
        difference = twin and _difference(event, twin)
        if difference:
            found.different.append(f"{event.id} ({difference})")
    return found


def _difference(online: Event, offline: Event) -> str:
    """The first field that differs, in words; when an event was emitted is its own affair."""
    if replace(online, emitted_ns=0).to_json() == replace(offline, emitted_ns=0).to_json():
        return ""
    ours, theirs = online.to_dict(), offline.to_dict()
    name = next(name for name in ours if name != "emitted_ns" and repr(ours[name]) != repr(theirs[name]))
    return f"{name}: online {ours[name]}, offline {theirs[name]}"


@dataclass(frozen=True, slots=True)
class Latency:
    """How long after a window's last chunk was sent something happened, ms."""

    p50: float
    p95: float
    p99: float
    max: float
    n: int

    def to_dict(self) -> dict[str, float]:
        """JSON object, to a tenth of a millisecond."""
        return {name: round(value, 1) for name, value in asdict(self).items()}


class Sent:
    """When which samples were sent, from the chunks of the input topic."""

    def __init__(self) -> None:
        self.chunks = self.samples = 0
        self._ends: dict[str, list[tuple[int, int]]] = {}

    def add(self, chunk: Chunk, time_ms: int) -> None:
        """Note a chunk, in the topic's order, and the time of its record, Unix ms."""
        self.chunks += 1
        self.samples += chunk.count
        self._ends.setdefault(chunk.session, []).append((chunk.end_index, time_ms))

    @property
    def sessions(self) -> int:
        """How many sessions sent something."""
        return len(self._ends)

    def last_chunk_ms(self, event: Event, length: int) -> int | None:
        """When the chunk was sent that made an event's window of `length` samples whole, Unix ms."""
        ends = self._ends.get(event.session, [])
        at = bisect_left(ends, (event.start_index + length, 0))
        return ends[at][1] if at < len(ends) else None


def latency(
    events: Iterable[Event], length: int, sent: Sent, when_ms: Callable[[Event], float | None]
) -> Latency | None:
    """Percentiles of the time from the sending of each window's last chunk."""
    took = []
    for event in events:
        since, when = sent.last_chunk_ms(event, length), when_ms(event)
        if since is not None and when is not None:
            took.append(when - since)
    if not took:
        return None
    p50, p95, p99 = (float(value) for value in np.percentile(took, [50, 95, 99]))
    return Latency(p50, p95, p99, max(took), len(took))


def truth_of(event: Event, recordings: Mapping[str, Recording], min_share: float) -> str | None:
    """The class that a recording's labels give an event's window; None where they give none, and for a further head's."""
    recording = None if event.head else recordings.get(event.session)
    return recording.label_of(event.start_ns, event.end_ns, min_share) if recording else None


def scores(
    events: Iterable[Event], recordings: Mapping[str, Recording], labels: Sequence[str], min_share: float
) -> dict[str, Any]:
    """Accuracy of the events by recording and by window, as ``kymo evaluate`` counts it."""
    from models.scores import score_windows

    judged, seen = [], set()
    for event in events:
        seen.add(event.session)
        truth = truth_of(event, recordings, min_share)
        if truth is not None:
            judged.append((event.session, truth, event.probabilities))
    silent = [recording for name, recording in recordings.items() if name not in seen]
    without = [label for recording in silent for label in sorted({label.label for label in recording.labels})]
    if not judged and not without:
        return {"accuracy": 0.0, "n": 0, "window_accuracy": 0.0, "windows": 0}
    return score_windows(judged, labels, without)
