"""Topics → segments. In: Settings, a folder. Out: the records of all topics of the prefix, as they are, in MCAP segments.

A consumer without a group: where it goes on stands in the newest complete segment alone, so that what is in the files and what is
counted as archived cannot differ. A segment that was not closed is discarded and read from Kafka again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kafka import TopicPartition
from kafka.errors import NoOffsetForPartitionError, OffsetOutOfRangeError

from streams.archive.erase import Erased, alone, drop_erased
from streams.archive.format import (
    ERASED,
    RETENTION,
    REWOUND,
    Absent,
    Contents,
    Place,
    Span,
    read_segment,
    segment_number,
    segment_paths,
)
from streams.archive.plan import ArchiveCounts, ArchivePlan
from streams.archive.recover import recover_partial, unclosed
from streams.archive.segment import SegmentWriter, disk_error
from streams.archive.trouble import Trouble
from streams.errors import ArchiveError
from streams.files import lock
from streams.kafka.admin import Ends, TopicFinder
from streams.kafka.client import kafka_errors, patiently
from streams.kafka.read import Reach, poll, whole_topic_consumer
from streams.settings import Settings
from streams.topics import MIB

POLL_MS = 100
DISCOVER_S = 2.0
#: How topics are read: a partition that lost what was to come next is placed anew.
CONSUMER: dict[str, Any] = {
    "auto_offset_reset": "none",
    "fetch_max_wait_ms": POLL_MS,
    "fetch_max_bytes": 32 * MIB,
}
_TOGETHER = 500  # records between two looks at a segment's size


class Archive:
    """The archive of one prefix."""

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
        self._trouble = Trouble(settings, self.counts, tell)
        self._erased = Erased(folder)
        self._opened = self._looked = 0.0
        self._assigned: dict[Place, str] = {}

    def run(self, stop: Callable[[], bool], *, once: bool = False) -> ArchiveCounts:
        """Archive until asked to stop; the open segment is closed then."""
        with contextlib.ExitStack() as stack:
            self._lock(stack)
            self._erased = Erased(self._folder)
            self._go_on()
            with kafka_errors(self._settings, "archiving"):
                finder = TopicFinder(self._settings, self._plan.topics)
                stack.callback(finder.close)
                consumer = whole_topic_consumer(self._settings, **CONSUMER)
                stack.callback(consumer.close)
                self._contents.cluster = patiently(self._settings, "archiving", lambda: finder.cluster)
                patiently(self._settings, "archiving", lambda: self._look(finder, consumer, first=True))
                there = patiently(self._settings, "archiving", lambda: finder.ends(list(self._assigned)))
            reach = Reach(self._settings, {p: ends.end for p, ends in there.items()}, lambda p: self._at(consumer, p))
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

    def _go_on(self) -> None:
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
            with self._trouble.passing("looking for topics"):
                self._look(finder, consumer)
            self._looked = time.monotonic()
        batches: dict[Any, list[Any]] = {}
        try:
            with self._trouble.passing("reading"):
                batches = poll(consumer, POLL_MS) if self._assigned else {}
        except (OffsetOutOfRangeError, NoOffsetForPartitionError):
            self._assigned = {}  # every partition is placed anew
            self._looked = 0.0
            return
        if not batches and (not self._assigned or self._trouble.lasts):
            time.sleep(POLL_MS / 1000)
        for records in batches.values():
            for first in range(0, len(records), _TOGETHER):
                self._store(records[first : first + _TOGETHER])
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
        if taken := drop_erased(path, self._erased):
            self._tell(f"{path}: {taken} records of a session that was erased meanwhile are taken out")
        self._tell(f"{path}: {segment.count} records, {path.stat().st_size / 1e6:.1f} MB")

    def _look(self, finder: TopicFinder, consumer: Any, *, first: bool = False) -> None:
        """Find topics and partitions, and read those that are new from where they should be read."""
        found = finder.partitions()
        new = {place: known for place, known in found.items() if self._assigned.get(place) != known}
        if new:
            ends = finder.ends(list(new))
            if first:
                self._leftover(new, ends)
            for place, known in new.items():
                self._place(place, known, ends[place])
        if new or found.keys() != self._assigned.keys():
            consumer.assign([TopicPartition(*place) for place in found])
            for place in found:
                consumer.seek(TopicPartition(*place), self._contents.spans[place].next)
        self._assigned, self.ready = found, bool(found)
        self.counts.partitions = len(found)
        if found:
            ends = finder.ends(list(found))
            self.counts.behind = sum(max(0, ends[p].end - self._contents.spans[p].next) for p in found if p in ends)
        self._erased.load()
        self._looked = time.monotonic()

    def _place(self, place: Place, topic_id: str, ends: Ends) -> None:
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

    def _leftover(self, new: dict[Place, str], ends: dict[Place, Ends]) -> None:
        """A segment that was not closed: Kafka has its records still, or else what is whole of it is kept."""
        for partial in unclosed(self._folder, self._number):
            spans, target = self._contents.spans, partial.with_suffix("")
            gone = [p for p, s in spans.items() if p not in ends or new[p] != s.topic_id or ends[p].begin > s.next]
            gone += [
                p for p in new if p not in spans and ends[p].begin
            ]  # it may have been there when that one was begun
            if gone and segment_number(target) == self._number:
                self._tell(f"{partial}: Kafka no longer has all of it ({gone[0][0]}); what is whole is kept")
                for line in recover_partial(partial):
                    self._tell(line)
                self._go_on()
            else:
                self._tell(f"{partial}: was not closed; discarded, its records are read from Kafka again")
                with alone(self._folder):  # it may be one that is being written anew
                    partial.unlink(missing_ok=True)

    def _at(self, consumer: Any, place: Place) -> int:
        """How far a partition is archived, or read where nothing in it was to be archived."""
        return max(self._contents.spans[place].next, consumer.position(TopicPartition(*place)) or 0)
