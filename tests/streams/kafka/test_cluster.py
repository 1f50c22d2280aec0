"""Three brokers, replicas of everything on each, and brokers killed at random, some with a worker in the same moment."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
from fault_lab import Feed, Lab, await_that, kill, stop_worker
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError
from other_kafka import addresses, cluster

from kymo.deploy.kafka_server import class_path
from kymo.streams.kafka.client import client_arguments

pytestmark = [pytest.mark.broker, pytest.mark.chaos, pytest.mark.timeout(3600)]
KILLS = 20


def in_step(lab: Lab) -> bool:
    """Whether every partition has all of its replicas."""
    try:
        with KafkaAdminClient(**client_arguments(lab.settings)) as admin:
            partitions = [p for topic in admin.describe_topics() for p in topic["partitions"]]
    except (KafkaError, OSError):
        return False
    return all(len(p["isr_nodes"]) == len(p["replica_nodes"]) for p in partitions)


def test_brokers_killed_at_random(tmp_path: Path, jars_dir: Path, prefix: str) -> None:
    pick, back, together = random.Random(6), [], 0
    (tmp_path / "cluster").mkdir()
    with (
        cluster(class_path(jars_dir), tmp_path / "cluster", 3) as nodes,
        Lab(tmp_path, addresses(nodes), prefix, replication=3) as lab,
    ):
        await_that(lambda: in_step(lab), "all replicas")
        feed, workers = Feed(lab, 6, rate=12), [lab.start_worker(), lab.start_worker()]
        feed.start()
        lab.await_growth(everywhere=True)
        for _ in range(KILLS):
            threading.Event().wait(pick.uniform(0, 3))
            node = pick.choice(nodes)
            assert node.process is not None
            node.process.kill()
            if pick.random() < 0.4:
                kill(workers.pop(pick.randrange(2)))
                workers.append(lab.start_worker())
                together += 1
            node.kill()
            back.append(lab.await_growth(everywhere=True))
            threading.Event().wait(pick.uniform(0, 5))
            node.start()
            node.await_ready()
            if pick.random() < 0.8:  # else the next one dies while this one still lacks records
                await_that(lambda: in_step(lab), "all replicas")
        count = lab.check(feed)
        for worker in workers:
            stop_worker(worker)
        assert lab.verdict(lab.expected(feed)) == count
    print(
        f"\n{KILLS} brokers killed, {together} with a worker: {count} events, each once; back after {max(back):.1f} s at most"
    )
    assert count > 6_500
