"""Topics → segments. In: Settings, a folder. Out: the records of all topics of the prefix, as they are, in MCAP segments.

A consumer without a group: where it goes on stands in the newest complete segment alone, so that what is in the files and what is
counted as archived cannot differ. A segment that was not closed is discarded and read from Kafka again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kafka import TopicPartition
from kafka.errors import (
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    NodeNotReadyError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)

from kymo.streams.archive.check import recover_partial, unclosed
from kymo.streams.archive.erase import Erased, drop_erased, rewrite_lock
from kymo.streams.archive.format import (
    ERASED,
    RETENTION,
    REWOUND,
    Absent,
    ArchivePlan,
    Contents,
    Span,
    read_segment,
    segment_number,
    segment_paths,
)
from kymo.streams.archive.segment import SegmentWriter, disk_error
from kymo.streams.errors import ArchiveError
from kymo.streams.files import lock
from kymo.streams.kafka.admin import Ends, TopicFinder
from kymo.streams.kafka.client import describe, kafka_errors, patiently
from kymo.streams.kafka.read import Reach, poll, whole_topic_consumer
from kymo.streams.settings import Settings
from kymo.streams.topics import MIB, Place

POLL_MS = 100
DISCOVER_S = 2.0
#: How topics are read: a partition that lost what was to come next is placed anew.
CONSUMER = {"auto_offset_reset": "none", "fetch_max_wait_ms": POLL_MS, "fetch_max_bytes": 32 * MIB}
_BATCH = 500  # records between two looks at a segment's size


@dataclass(slots=True)
class ArchiveCounts:
    """What an archive has done since it was started, for metrics."""

    records: int = 0  # stored, in closed and open segments; bytes of values
    bytes: int = 0
    segments: int = 0
    lost: int = 0  # offsets that Kafka no longer had
    behind: int = 0  # records that wait in Kafka, as of the last look
    partitions: int = 0  # that are read
    errors: int = 0  # failed looks at the topics; the archive goes on
    last_closed_s: float = 0.0  # Unix time of the newest segment's end, s; 0 before


class Archive:
    def __init__(
        self,
        settings: Settings,
        folder: Path,  # where the segments are; made if it is not there
        plan: ArchivePlan | None = None,
        tell: Callable[[str], None] = lambda _: None,  # given a line about everything that a person should know
    ) -> None:
        self.counts, self.ready = ArchiveCounts(), False
        self._settings, self._folder, self._tell = settings, folder, tell
        self._plan = plan or ArchivePlan()
        self._contents, self._number = Contents(settings.prefix), 1
        self._segment: SegmentWriter | None = None
        self._outages = Outages(settings, self.counts, tell)
        self._erased = Erased(folder)
        self._opened = self._looked = 0.0
        self._assigned: dict[Place, str] = {}

    def run(self, stop: Callable[[], bool], *, once: bool = False) -> ArchiveCounts:
        """Archive until asked to stop; the open segment is closed then."""
        with contextlib.ExitStack() as stack:
            self._lock(stack)
            self._erased = Erased(self._folder)
            self._resume()
            with kafka_errors(self._settings, "archiving"):
                finder = TopicFinder(self._settings, self._plan.topics)
                stack.callback(finder.close)
                consumer = whole_topic_consumer(self._settings, **CONSUMER)
                stack.callback(consumer.close)
                self._contents.cluster = patiently(self._settings, "archiving", lambda: finder.cluster)
                patiently(self._settings, "archiving", lambda: self._look(finder, consumer, first=True))
                ends = patiently(self._settings, "archiving", lambda: finder.ends(list(self._assigned)))
            reach = Reach(self._settings, {p: e.end for p, e in ends.items()}, lambda p: self._position(consumer, p))
            try:
                while not stop() and (not once or reach.unfinished()):
                    self._step(finder, consumer)
            finally:
                self._close_segment()
        return self.counts

    def _lock(self, stack: contextlib.ExitStack) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(lock(self._folder / ".lock", wait=False))
        except OSError as error:
            raise disk_error(self._folder, error) from None
        if held is None:
            raise ArchiveError(f"{self._folder}: another `kymo archive` writes there; choose another --dir")

    def _resume(self) -> None:
        """Take up where the newest complete segment ends."""
        paths = segment_paths(self._folder)
        if not paths:
            return
        drop_erased(paths[-1], self._erased)  # had its writer been killed before it did
        newest = read_segment(paths[-1])
        if newest.contents.prefix != self._settings.prefix:
            raise ArchiveError(
                f"{self._folder} is the archive of {newest.contents.prefix}.*, not of {self._settings.prefix}.*; "
                "choose another --dir or KYMO_PREFIX"
            )
        self._number = newest.number + 1
        self._contents = newest.contents.following()

    def _step(self, finder: TopicFinder, consumer: Any) -> None:
        if time.monotonic() - self._looked >= DISCOVER_S:
            with self._outages.tolerated("looking for topics"):
                self._look(finder, consumer)
            self._looked = time.monotonic()
        batches: dict[Any, list[Any]] = {}
        try:
            with self._outages.tolerated("reading"):
                batches = poll(consumer, POLL_MS) if self._assigned else {}
        except (OffsetOutOfRangeError, NoOffsetForPartitionError):
            self._assigned = {}  # every partition is placed anew
            self._looked = 0.0
            return
        if not batches and (not self._assigned or self._outages.ongoing):
            time.sleep(POLL_MS / 1000)
        for records in batches.values():
            for first in range(0, len(records), _BATCH):
                self._store(records[first : first + _BATCH])
                self._rotate()
        self._rotate()

    def _rotate(self) -> None:
        if self._segment and (
            self._segment.size >= self._plan.segment_bytes
            or self._segment.full
            or time.monotonic() - self._opened >= self._plan.segment_s
        ):
            self._close_segment()

    def _store(self, records: list[Any]) -> None:
        erased, spans = self._erased, self._contents.spans
        if not self._segment:
            self._segment = SegmentWriter(self._folder, self._number, self._contents)
            self._opened = time.monotonic()
        add, size = self._segment.add, 0
        try:
            for record in records:
                if erased and erased.has(record, spans[record.topic, record.partition].topic_id):
                    self._contents.leave_out(record.topic, record.partition, record.offset, ERASED)
                    continue
                add(record)
                size += len(record.value or b"")
        except ArchiveError:
            self._segment = None  # it is discarded
            raise
        self.counts.records += len(records)
        self.counts.bytes += size

    def _close_segment(self) -> None:
        if not self._segment:
            return
        segment, self._segment = self._segment, None
        path = segment.close()
        self._number += 1
        self._contents = self._contents.following()
        self.counts.segments += 1
        self.counts.last_closed_s = time.time()
        self._erased.load()
        if erased := drop_erased(path, self._erased):
            self._tell(f"{path}: {erased} records of a session that was erased meanwhile are taken out")
        self._tell(f"{path}: {segment.count} records, {path.stat().st_size / 1e6:.1f} MB")

    def _look(self, finder: TopicFinder, consumer: Any, *, first: bool = False) -> None:
        """Find topics and partitions, and read those that are new from where they should be read."""
        partitions = finder.partitions()
        ends = finder.ends(list(partitions))
        new = {place: topic_id for place, topic_id in partitions.items() if self._assigned.get(place) != topic_id}
        if first and new:
            self._settle_unclosed(new, ends)
        for place, topic_id in new.items():
            self._begin(place, topic_id, ends[place])
        if new or partitions.keys() != self._assigned.keys():
            consumer.assign([TopicPartition(*place) for place in partitions])
            for place in partitions:
                consumer.seek(TopicPartition(*place), self._contents.spans[place].next)
        self._assigned, self.ready = partitions, bool(partitions)
        self.counts.partitions = len(partitions)
        self.counts.behind = sum(max(0, ends[p].end - self._contents.spans[p].next) for p in ends)
        self._erased.load()
        self._looked = time.monotonic()

    def _begin(self, place: Place, topic_id: str, ends: Ends) -> None:
        """Decide from where a partition is read; what is no longer there is counted, told and recorded."""
        span = self._contents.spans.get(place)
        where = f"{place[0]}, partition {place[1]}"
        if span is not None and not span.topic_id:  # of a recovered segment
            span.topic_id = topic_id
        if span is None or span.topic_id != topic_id:
            if span is not None:
                self._close_segment()  # the offsets of a segment are of one topic
                self._tell(f"{where}: the topic was made anew; its records are archived from its beginning")
            elif ends.begin:
                self._tell(f"{where}: begins at offset {ends.begin}, what was before is no longer in Kafka")
            self._contents.spans[place] = Span(topic_id, ends.begin, ends.begin)
        elif span.next < ends.begin:
            lost = ends.begin - span.next
            self.counts.lost += lost
            self._tell(f"{where}: GAP, offsets {span.next} to {ends.begin - 1} ({lost}) are no longer in Kafka")
            self._contents.leave_out(*place, ends.begin - 1, RETENTION)
        elif span.next > ends.end:
            self._close_segment()
            span = self._contents.spans[place]
            self._contents.absent.append(Absent(*place, ends.end, span.next, REWOUND))
            self._tell(f"{where}: Kafka ends at {ends.end}, the archive at {span.next}: Kafka has lost records")
            span.first = span.next = ends.end

    def _settle_unclosed(self, new: dict[Place, str], ends: dict[Place, Ends]) -> None:
        """A segment that was not closed: Kafka has its records still, or else what is whole of it is kept."""
        for partial in unclosed(self._folder, self._number):
            spans, target = self._contents.spans, partial.with_suffix("")
            gone = [p for p, s in spans.items() if p not in ends or new[p] != s.topic_id or ends[p].begin > s.next]
            # What is new may have been there when that one was begun.
            gone += [p for p in new if p not in spans and ends[p].begin]
            if gone and segment_number(target) == self._number:
                self._tell(f"{partial}: Kafka no longer has all of it ({gone[0][0]}); what is whole is kept")
                self._tell(recover_partial(partial))
                self._resume()
            else:
                self._tell(f"{partial}: was not closed; discarded, its records are read from Kafka again")
                with rewrite_lock(self._folder):  # it may be one that is being written anew
                    partial.unlink(missing_ok=True)

    def _position(self, consumer: Any, place: Place) -> int:
        """How far a partition is archived, or read where nothing in it was to be archived."""
        return max(self._contents.spans[place].next, consumer.position(TopicPartition(*place)) or 0)


_ABSENT = (ConnectionError, KafkaConnectionError, KafkaTimeoutError, NodeNotReadyError)


class Outages:
    """Lets calls fail for a while, and says when that begins and ends."""

    def __init__(self, settings: Settings, counts: ArchiveCounts, tell: Callable[[str], None]) -> None:
        self._where, self._counts, self._tell = f"Kafka at {settings.brokers}", counts, tell
        self._messages: dict[str, str] = {}  # by what was being done, what was said last

    @property
    def ongoing(self) -> bool:
        return bool(self._messages)

    @contextlib.contextmanager
    def tolerated(self, doing: str) -> Iterator[None]:
        """Do something that may fail, and will be done again.

        An error of Kafka is told when it is another one than last time; offsets that are not there are not this one's affair.
        """
        try:
            yield
        except (OffsetOutOfRangeError, NoOffsetForPartitionError):
            raise
        except (KafkaError, OSError) as error:
            self._counts.errors += 1
            absent = isinstance(error, _ABSENT)
            message = "cannot be reached" if absent else f"refuses {doing} ({describe(error)})"
            repeated = message in self._messages.values()  # that Kafka is away is one matter, whatever finds it out
            self._messages[doing] = message
            if not repeated:
                self._tell(f"{self._where} {message}; trying again until it works, or Ctrl-C")
            return
        message = self._messages.pop(doing, "")
        if message and message not in self._messages.values():
            self._tell(f"{self._where}: {doing} works again")
