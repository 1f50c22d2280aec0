"""The comparison `archive` runs, small; what it measures is in benchmarks/README.md."""

from __future__ import annotations

import pytest

pytest.importorskip("confluent_kafka", reason="the peers need the 'bench' extra")

from benchmarks import report
from benchmarks.archive import TITLES, archive
from benchmarks.load import Workload
from benchmarks.rig import rig

WORK = Workload(2)


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.timeout(120)
def test_every_peer_takes_every_record(broker: str) -> None:
    with rig(WORK, broker) as made:
        rows = archive(made, WORK, 1, live_s=0.1)
    assert [row["peer"] for row in rows[:3]] == list(TITLES.values())
    assert all(row["mb_s"] > 0 and row["mb_cpu_s"] > 0 for row in rows)
    sent = rows[0]["sent_mb"]
    assert rows[2]["file_mb"] == pytest.approx(sent)  # the plain bytes, and nothing else
    assert report.table("archive", rows).count("\n") == 5
