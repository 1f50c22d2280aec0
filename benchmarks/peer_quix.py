"""Peer: Quix Streams with hopping windows, as its documentation shows them. In: one JSON message a sample. Out: events.

Windows stand on the grid of event time and close with the first sample behind them; samples are kept in RocksDB and in a changelog topic.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
from quixstreams import Application

from benchmarks.load import ORIGIN_NS
from benchmarks.peer import Task, by_channel, event, network


def main() -> None:
    task, run = Task.from_argv(), network()
    work = task.work
    app = Application(
        broker_address=task.brokers,
        consumer_group=task.group,
        auto_offset_reset="earliest",
        auto_create_topics=True,
        state_dir=f"{task.folder}/{task.group}",
        loglevel="WARNING",
    )
    source = app.topic(task.source, value_deserializer="json", timestamp_extractor=lambda value, *_: int(value["t_ms"]))

    def classify(window: dict[str, Any]) -> dict[str, Any]:
        rows = window["value"]
        logits = run(by_channel(work, np.array([row["values"] for row in rows])))[0]
        start_index = (window["start"] - ORIGIN_NS // 10**6) * work.rate_hz // 1000
        return event(rows[0]["session"], start_index, logits)

    length, hop = (timedelta(milliseconds=n * 1000 / work.rate_hz) for n in (work.length, work.hop))
    windows = app.dataframe(source).hopping_window(length, hop).collect().final()
    # The grid of event time begins before the first sample, with windows that are not whole.
    whole = windows.filter(lambda window: len(window["value"]) == work.length)
    whole.apply(classify).to_topic(app.topic(task.target, value_serializer="json"))
    app.run()


if __name__ == "__main__":
    main()
