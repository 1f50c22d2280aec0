"""Exchanging bundles under a running worker: no window lost, none classified twice, each by the bundle that was current."""

from __future__ import annotations

import random
import threading
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from fault_lab import Feed, kill, stop_worker
from swap_lab import SwapLab, version
from tiny_models import linear_onnx

from kymo.models.registry import open_registry, tell
from kymo.models.registry.manifest import MODEL

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]


@pytest.fixture
def lab(tmp_path: Path, broker: str, prefix: str) -> SwapLab:
    """Topics and a registry of its own on the session's broker."""
    return SwapLab(tmp_path, broker, prefix)


def test_three_exchanges_while_the_stream_goes_on(lab: SwapLab) -> None:
    with lab:
        feed, worker = Feed(lab, 21, rate=300), lab.start_worker()
        feed.start()
        lab.until_served_by(lab.versions[0])
        promoted: list[tuple[str, int]] = []
        for number in range(3):
            bundle = lab.versions[(number + 1) % 2]
            promoted.append((bundle, lab.promote(bundle)))
            lab.until_served_by(bundle)
        events = lab.check_swaps(feed)
        stop_worker(worker)
        # One batch after the other: in the order of their making, bundles follow each other as they were promoted.
        ordered = sorted(events, key=lambda event: event["emitted_ns"])
        assert [bundle for bundle, _ in groupby(event["bundle"] for event in ordered)] == lab.promoted
        assert "Traceback" not in lab.said()
    took_s = [
        min(e["emitted_ns"] for e in events if e["bundle"] == bundle and e["emitted_ns"] > at_ns) - at_ns
        for bundle, at_ns in promoted
    ]
    said = ", ".join(f"{ns / 1e9:.2f}" for ns in took_s)
    print(f"\n{len(events)} events over 3 promotions, each once; first event of the new bundle after {said} s")


def test_kills_between_promotions(lab: SwapLab) -> None:
    with lab:
        feed, worker = Feed(lab, 22), lab.start_worker()
        feed.start()
        lab.until_served_by(lab.versions[0])
        kill(worker)
        lab.promote(lab.versions[1])  # while no worker runs
        worker = lab.start_worker()
        lab.until_served_by(lab.versions[1])
        lab.promote(lab.versions[0])
        kill(worker)
        worker = lab.start_worker()
        lab.until_served_by(lab.versions[0])
        lab.check_swaps(feed)
        stop_worker(worker)


def test_broken_bundles_are_refused_and_the_old_one_stays(lab: SwapLab) -> None:
    home, registry = lab.settings.home, open_registry(lab.settings.home)
    no_model = version(lab.recipe, home, 3, b"no onnx")
    not_finite = version(lab.recipe, home, 4, linear_onnx(np.full((3, 2), np.nan), rows=16))
    other_shape = version(lab.recipe, home, 5, linear_onnx(np.eye(3, 2), rows=15))
    damaged = version(lab.recipe, home, 6)
    with lab:
        feed, worker = Feed(lab, 23), lab.start_worker()
        feed.start()
        lab.until_served_by(lab.versions[0])
        for bundle in (no_model, not_finite, other_shape, damaged):
            entry = registry.promote("lab", bundle.partition("@")[2])
            if bundle == damaged:
                (home / "registry" / "lab" / entry.digest / MODEL).write_bytes(b"damaged")
            assert tell(entry, "lab", lab.settings) == ""
            lab.await_that(lambda b=bundle: f"{b} is refused" in lab.said(), "the refusal")
        lab.promote(lab.versions[1])
        lab.until_served_by(lab.versions[1])
        assert {event["bundle"] for event in lab.check_swaps(feed)} == set(lab.versions)
        stop_worker(worker)


def test_a_worker_with_another_home_takes_what_is_announced_from_the_shared_registry_and_its_shadow_scores_aside(
    lab: SwapLab, tmp_path: Path
) -> None:
    shadow, champion = lab.versions
    shared = str(lab.settings.home / "registry")
    elsewhere = {"KYMO_HOME": str(tmp_path / "other"), "KYMO_REGISTRY": shared}
    with lab:
        lab.promote(champion)
        feed, worker = Feed(lab, 24), lab.start_worker(**elsewhere)
        feed.start()
        lab.until_served_by(champion)
        lab.promote(shadow, "shadow")
        lab.await_that(lambda: len(lab.events("shadow")) > 50, "the shadow's events")
        events, scored = lab.check_swaps(feed), lab.events("shadow")
        stop_worker(worker)
    offline = lab.offline(feed, shadow)
    assert {event["bundle"] for event in events} == {champion}
    assert len({event["id"] for event in scored}) == len(scored)
    for event in scored:
        assert event | {"emitted_ns": 0} == offline[event["id"]]


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_promotions_and_kills_at_random_moments(lab: SwapLab) -> None:
    pick, kills, promotions = random.Random(31), 0, 0
    with lab:
        feed, workers = Feed(lab, 31), [lab.start_worker(), lab.start_worker()]
        feed.start()
        lab.until_served_by(lab.versions[0])
        for number in range(30):
            lab.promote(lab.versions[(number + 1) % 2])
            promotions += 1
            threading.Event().wait(pick.uniform(0, 2))  # a random moment: while it loads, exchanges, or has exchanged
            if number % 3 == 2:
                kill(workers.pop(0))
                workers.append(lab.start_worker())
                kills += 1
                lab.await_growth()
        lab.until_served_by(lab.promoted[-1])
        events = lab.check_swaps(feed)
        for worker in workers:
            stop_worker(worker)
    print(f"\n{len(events)} events over {promotions} promotions and {kills} kills, each once")
