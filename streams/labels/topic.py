"""The topic ``kymo.labels``. In: Labels. Out: acknowledged messages; and all that were ever made, in order. Times in Unix ns.

The topic is never compacted and keeps its messages for ever: nothing is changed, corrections are added. Which labels hold
follows from all of them: :mod:`streams.labels.cover`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from streams.errors import MessageError, SourceError
from streams.kafka.read import read_records
from streams.kafka.sessions import announced, seen
from streams.labels.labels import Label
from streams.messages import read_object
from streams.replay.publish import Publisher
from streams.settings import Settings
from streams.topics import Names

Tell = Callable[[str], None]


def read_labels(settings: Settings, on_bad: Tell = lambda text: None) -> list[Label]:
    """Every label that was ever made, a session's in the order in which they were made."""
    topic = Names(settings.prefix).of("labels")
    out = []
    for record in read_records(settings, topic):
        try:
            out.append(Label.from_json(read_object(record.value)))
        except (MessageError, SourceError) as error:
            on_bad(f"{topic}, partition {record.partition}, offset {record.offset}: {error}")
    return out


class Starts:
    """First samples of sessions: as ``kymo.sessions`` has them, else as their chunks do, which are read when one is missing."""

    def __init__(self, settings: Settings, on_odd: Tell = lambda text: None) -> None:
        self._settings, self._all = settings, False
        self._ns = _starts(announced(settings, on_odd))

    def of(self, session: str) -> int:
        """First sample of a session, Unix ns."""
        if session not in self._ns and not self._all:
            self._all, self._ns = True, _starts(seen(self._settings)) | self._ns
        if session not in self._ns:
            near = difflib.get_close_matches(session, self._ns, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; {len(self._ns)} sessions are known"
            raise SourceError(f"no session {session!r} has been sent{hint}")
        return self._ns[session]


def _starts(rows: dict[str, dict[str, Any]]) -> dict[str, int]:
    return {session: row["start_ns"] for session, row in rows.items() if "start_ns" in row}


def append_labels(settings: Settings, labels: Iterable[Label], created_ns: int) -> tuple[int, int]:
    """Add labels to the topic; left out are those that say what the last one of their id says, whoever said it when, and
    records of the topic itself.
    """
    log = read_labels(settings)
    last, records = {label.id: _meaning(label) for label in log}, set(log)
    added = there = 0
    with Publisher(settings, Names(settings.prefix)) as publisher:
        for label in labels:
            if last.get(label.id) == _meaning(label) or label in records:
                there += 1
                continue
            last[label.id] = _meaning(label)
            made = label if label.created_ns else replace(label, created_ns=created_ns)
            publisher.send("labels", made.session, json.dumps(made.to_json(), ensure_ascii=False).encode())
            added += 1
        publisher.flush()
    return added, there


def _meaning(label: Label) -> Label:
    return replace(label, author="", created_ns=0)
