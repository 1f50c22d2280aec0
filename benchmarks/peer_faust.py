"""Peer: a plain Faust agent, as tutorials show it. In: one JSON message a sample. Out: events.

A list of samples a session, scipy a channel at a time, the network a window at a time, `await topic.send` an event. It acknowledges each
message as it goes on to the next, so that a restart loses the open windows.
"""

from __future__ import annotations

import sys
from typing import Any

import faust
import numpy as np

from benchmarks.peer import Task, by_channel, event, network


def make_app(task: Task) -> Any:
    app = faust.App(
        task.group,
        broker=f"kafka://{task.brokers}",
        datadir=f"{task.folder}/{task.group}",
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
        consumer_auto_offset_reset="earliest",
    )
    source = app.topic(task.source, value_serializer="json")
    target = app.topic(task.target, value_serializer="json")
    run, work = network(), task.work
    sessions: dict[str, list[Any]] = {}
    starts: dict[str, int] = {}

    @app.agent(source)
    async def classify(stream: Any) -> None:
        async for sample in stream:
            name = sample["session"]
            rows = sessions.setdefault(name, [])
            rows.append(sample["values"])
            if len(rows) == work.length:
                start = starts.get(name, 0)
                logits = run(by_channel(work, np.array(rows)))[0]
                await target.send(key=name, value=event(name, start, logits))
                del rows[: work.hop]
                starts[name] = start + work.hop

    return app


if __name__ == "__main__":
    app = make_app(Task.from_argv())
    sys.argv[1:] = ["worker", "--loglevel", "warn"]
    app.main()
