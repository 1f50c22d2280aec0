"""A rule over all sessions, and a worker of it alone: `python crowd.py PREFIX TOPIC INSTANCE` with the settings of the environment."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from mode import Worker

from kymo.deploy.roles import make_event_app
from kymo.deploy.worker import fail
from kymo.models.serving.scopes import EventOperator, Finding
from kymo.streams.settings import Settings
from kymo.streams.topics import Names

SECOND_NS = 10**9


class Crowd:
    """A rule over all sessions: it tells when three or more say `x` at once, when no longer, and when none has said anything for 5 s."""

    def __init__(self, _: str) -> None:
        self._labels: dict[str, str] = {}
        self._told, self._number = "", 0
        self.due_ns: int | None = None

    over = False

    def push(self, item: tuple[str, str], now_ns: int) -> list[dict[str, Any]]:
        session, label = item
        self._labels[session] = label
        self.due_ns = now_ns + 5 * SECOND_NS
        crowd = sorted(session for session, label in self._labels.items() if label == "x")
        return self._tell("many" if len(crowd) >= 3 else "few", crowd)

    def tick(self, now_ns: int) -> list[dict[str, Any]]:
        self.due_ns = None
        return self._tell("silent", [])

    def _tell(self, state: str, crowd: list[str]) -> list[dict[str, Any]]:
        if state == self._told:
            return []
        self._told, self._number = state, self._number + 1
        return [{"number": self._number, "state": state, "crowd": crowd}]

    def snapshot(self) -> dict[str, Any]:
        return {"labels": self._labels, "told": self._told, "number": self._number}

    def restore(self, state: Mapping[str, Any], now_ns: int) -> None:
        self._labels, self._told, self._number = dict(state["labels"]), state["told"], state["number"]
        self.due_ns = None if self._told == "silent" else now_ns + 5 * SECOND_NS


def finding(found: dict[str, Any], now_ns: int) -> Finding:
    return Finding(f"crowd/{found['number']}", b"crowd", json.dumps(found | {"now": now_ns}).encode())


def crowd(topic: str, names: Names) -> EventOperator:
    """The rule, over records of a topic whose keys are sessions and whose values are labels."""
    return EventOperator(
        "crowd",
        "crowd.alerts",
        (topic,),
        names.of("events"),
        lambda record: ("", (record.key.decode(), record.value.decode())),
        Crowd,
        finding,
        lambda value: f"crowd/{json.loads(value or b'')['number']}",
    )


def check_history(events: Sequence[Mapping[str, Any]]) -> None:
    """Findings are numbered without a gap and in order, each of another state than the one before."""
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    states = [event["state"] for event in events]
    assert all(a != b for a, b in itertools.pairwise(states))
    assert all((len(event["crowd"]) >= 3) == (event["state"] == "many") for event in events)


if __name__ == "__main__":
    prefix, topic, instance = sys.argv[1:]
    settings = replace(Settings.from_env(), prefix=prefix)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    observer = SimpleNamespace(**dict.fromkeys(("took", "emitted", "committed"), lambda *_: None))
    app = make_event_app(crowd(topic, Names(prefix)), settings, instance, observer, fail, whole=True)
    Worker(app, redirect_stdouts=False, quiet=True, blocking_timeout=0.0, loop=loop).execute_from_commandline()
