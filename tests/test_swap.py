"""Exchanging bundles under a running worker: no window lost, none classified twice, each by the bundle that was current."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import pytest
from fault_lab import Feed, stop_worker
from swap_lab import SwapLab

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]


@pytest.fixture
def lab(tmp_path: Path, broker: str, prefix: str) -> SwapLab:
    """Topics and a registry of its own on the session's broker."""
    return SwapLab(tmp_path, broker, prefix)


def test_five_exchanges_while_the_stream_goes_on(lab: SwapLab) -> None:
    with lab:
        feed, worker = Feed(lab, 21, rate=300), lab.start_worker()
        feed.start()
        took = [lab.until_served_by(lab.versions[0])][:0]
        for number in range(5):
            bundle = lab.versions[(number + 1) % 2]
            lab.promote(bundle)
            took.append(lab.until_served_by(bundle))
        events = lab.check_swaps(feed)
        stop_worker(worker)
        # One batch after the other: in the order of their making, bundles follow each other as they were promoted.
        ordered = sorted(events, key=lambda event: event["emitted_ns"])
        assert [bundle for bundle, _ in groupby(event["bundle"] for event in ordered)] == lab.promoted
        assert "Traceback" not in lab.said()
    print(
        f"\n{len(events)} events over 5 promotions, each once; first of the new bundle after {max(took):.2f} s at most"
    )
