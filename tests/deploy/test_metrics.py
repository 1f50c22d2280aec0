"""Metrics: what an agent tells is what a scrape shows; labels from closed sets; the server and its discovery file."""

from __future__ import annotations

import ast
import json
import os
import socket
import subprocess
import sys
import timeit
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from documents import ROOT
from prometheus_client.parser import text_string_to_metric_families

from kymo.deploy.metrics import COUNTS, STAGES, Histogram, WorkerMetrics, process_registry
from kymo.deploy.metrics_server import Server, find_server, is_ready, serve_metrics, targets_folder
from kymo.streams.errors import ChunkError, SettingsError
from kymo.streams.settings import Settings


def scrape(metrics: WorkerMetrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    from prometheus_client import generate_latest

    text = generate_latest(metrics.registry).decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}


def partition(samples: int = 0, **counts: int) -> Any:
    return SimpleNamespace(samples=samples, counts=Counter(counts))


def busy() -> WorkerMetrics:
    metrics = WorkerMetrics({"walk": "walk@1", "fall": "fall@2"})
    observer = metrics.recipes["walk"]
    observer.took(partition(300, gaps=2, duplicates=1), 3, 0.002)
    observer.took(partition(100, gaps=1, unmatched=4), 1, 0.2)
    observer.classified(5, 0.0004)
    for seconds in (0.0005, 0.001, 0.0011, 70.0, -0.2):
        observer.emitted(seconds)
    observer.rejected("key")
    observer.rejected("basicmotions-test-17")
    observer.committed(0.003)
    metrics.watch("walk", lambda: 12, lambda: 7)
    metrics.watch("fall", lambda: 1 // 0, lambda: 0)  # not there yet
    return metrics


def test_a_scrape_shows_what_was_told() -> None:
    found = scrape(busy())

    def value(name: str, **labels: str) -> float:
        return found[name, tuple(sorted(labels.items()))]

    assert value("kymo_samples_total", recipe="walk") == 400
    assert value("kymo_records_total", recipe="walk") == 4
    assert value("kymo_windows_total", recipe="walk") == 5
    assert value("kymo_events_total", recipe="walk") == 5
    assert value("kymo_gaps_total", recipe="walk") == 3
    assert value("kymo_duplicates_total", recipe="walk") == 1
    assert value("kymo_unmatched_total", recipe="walk") == 4
    assert value("kymo_late_total", recipe="walk") == 0
    assert value("kymo_gaps_total", recipe="fall") == 0
    assert value("kymo_rejected_total", recipe="walk", reason="key") == 1
    assert value("kymo_rejected_total", recipe="walk", reason="other") == 1
    assert value("kymo_rejected_total", recipe="walk", reason="oversize") == 0
    assert value("kymo_stage_seconds_count", recipe="walk", stage="chain") == 2
    assert value("kymo_stage_seconds_sum", recipe="walk", stage="chain") == pytest.approx(0.202)
    assert value("kymo_stage_seconds_bucket", recipe="walk", stage="chain", le="0.0025") == 1
    assert value("kymo_batch_windows_bucket", recipe="walk", le="4.0") == 0
    assert value("kymo_batch_windows_bucket", recipe="walk", le="8.0") == 1
    assert value("kymo_end_to_end_seconds_bucket", recipe="walk", le="0.001") == 3
    assert value("kymo_end_to_end_seconds_bucket", recipe="walk", le="60.0") == 4
    assert value("kymo_end_to_end_seconds_bucket", recipe="walk", le="+Inf") == 5
    assert value("kymo_assigned_partitions", recipe="walk") == 12
    assert value("kymo_pending_windows", recipe="walk") == 7
    assert value("kymo_last_commit_timestamp_seconds", recipe="walk") > 1.7e9
    assert value("kymo_last_commit_timestamp_seconds", recipe="fall") == 0
    assert value("kymo_model_info", recipe="fall", bundle="fall@2") == 1
    assert ("kymo_assigned_partitions", (("recipe", "fall"),)) not in found
    assert value("kymo_pending_windows", recipe="fall") == 0


def test_a_partition_is_counted_once_however_often_it_is_looked_at() -> None:
    metrics, same = WorkerMetrics({"walk": "b"}), partition(10, late=1)
    for _ in range(3):
        metrics.recipes["walk"].took(same, 1, 0.001)
    found = scrape(metrics)
    assert found["kymo_samples_total", (("recipe", "walk"),)] == 10
    assert found["kymo_late_total", (("recipe", "walk"),)] == 1


def test_labels_come_from_closed_sets() -> None:
    allowed = {
        "recipe": {"walk", "fall"},
        "bundle": {"walk@1", "fall@2"},
        "reason": {*ChunkError.REASONS, "other"},
        "stage": set(STAGES),
        "alias": {"champion", "shadow"},
        "result": {"taken", "refused", "scored", "dropped", "failed"},
    }
    free = {"le", "version", "python"}  # buckets and the build: one value each in the life of a process
    for name, labels in scrape(busy()):
        for label, value in labels:
            assert label in free or value in allowed[label], f"{name} has {label}={value}"


def test_every_count_that_is_kept_has_a_metric() -> None:
    serving = [ROOT / "models" / "serving" / f"{name}.py" for name in ("partition", "sessions", "agent")]
    kept = {
        "not_a_number",
        "too_large",
        "dropped",
    }  # the intake names two in a variable; an observer is told of the last
    for file in (*(ROOT / "processors").glob("*.py"), *serving):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Subscript)
                and isinstance(node.value, ast.Attribute)
                and node.value.attr == "counts"
            ):
                kept |= {leaf.value for leaf in ast.walk(node.slice) if isinstance(leaf, ast.Constant)}
    assert kept == set(COUNTS)


def test_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        histogram.observe(value)
    assert histogram.buckets() == ([("1.0", 2.0), ("2.0", 4.0), ("+Inf", 5.0)], 7.5)


def test_observing_costs_little() -> None:
    # The best of many short runs: what other programs do on the machine must not decide.
    observer, seen = WorkerMetrics({"walk": "b"}).recipes["walk"], partition(100)
    took = min(timeit.repeat(lambda: observer.took(seen, 1, 0.001), number=100, repeat=50)) / 100
    emitted = min(timeit.repeat(lambda: observer.emitted(0.004), number=100, repeat=50)) / 100
    assert took < 20e-6
    assert emitted < 2e-6


def get(server: Server, path: str, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, str]:
    request = urllib.request.Request(f"http://{host}:{server.port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, metrics_port=0)


def test_the_server_answers(settings: Settings) -> None:
    state = {"ready": False}
    server = serve_metrics(busy().registry, settings, "worker", lambda: state["ready"])
    try:
        status, text = get(server, "/metrics")
        assert status == 200
        assert 'kymo_events_total{recipe="walk"} 5.0' in text
        assert "kymo_build_info{python=" in text
        assert "process_resident_memory_bytes" in text
        assert get(server, "/livez") == (200, "live\n")
        assert get(server, "/readyz")[0] == 503
        assert not is_ready(f"http://127.0.0.1:{server.port}")
        state["ready"] = True
        assert get(server, "/readyz") == (200, "ready\n")
        assert is_ready(f"http://127.0.0.1:{server.port}")
        del state["ready"]  # what it asks may fail while the process starts
        assert get(server, "/readyz")[0] == 503
        assert get(server, "/")[0] == 404
    finally:
        server.close()
    assert not is_ready(f"http://127.0.0.1:{server.port}", timeout_s=0.5)


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz", "/"])
def test_head_is_get_without_the_body(settings: Settings, path: str) -> None:
    server = serve_metrics(process_registry(), settings, "worker", lambda: False)
    try:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
        found = []
        for method in ("GET", "HEAD"):
            connection.request(method, path)
            reply = connection.getresponse()
            body, length = reply.read(), int(reply.headers["Content-Length"])
            assert length > 0
            found.append((reply.status, reply.headers["Content-Type"], len(body) - (length if method == "GET" else 0)))
        assert found[0] == found[1]
    finally:
        server.close()


def test_livez_says_when_only_a_new_process_helps(settings: Settings) -> None:
    state = {"live": True}
    server = serve_metrics(process_registry(), settings, "worker", lambda: True, lambda: state["live"])
    try:
        assert get(server, "/livez") == (200, "live\n")
        state["live"] = False
        assert get(server, "/livez")[0] == 503
        assert get(server, "/readyz")[0] == 200
    finally:
        server.close()


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback (::1)")
def test_it_is_served_and_found_at_an_ipv6_address(settings: Settings) -> None:
    server = serve_metrics(process_registry(), replace(settings, metrics_host="::1"), "worker", lambda: True)
    try:
        assert get(server, "/livez", host="[::1]") == (200, "live\n")
        found = json.loads((targets_folder(settings.home) / f"worker-{os.getpid()}.json").read_text())
        assert found[0]["targets"] == [f"[::1]:{server.port}"]
        address = find_server(settings.home, "worker", os.getpid())
        assert address is not None
        assert is_ready(address)
    finally:
        server.close()


def test_prometheus_finds_it_while_it_runs(settings: Settings) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    folder = targets_folder(settings.home)
    folder.mkdir(parents=True)
    stale, other = folder / f"replay-{gone.pid}.json", folder / f"replay-{os.getppid()}.json"
    stale.write_text("[]")
    other.write_text("[]")
    server = serve_metrics(process_registry(), settings, "worker", lambda: True)
    mine = folder / f"worker-{os.getpid()}.json"
    assert json.loads(mine.read_text()) == [
        # What differs after a restart would be another time series: neither process number nor time.
        {"targets": [f"127.0.0.1:{server.port}"], "labels": {"role": "worker"}}
    ]
    assert sorted(folder.iterdir()) == sorted([mine, other])
    assert find_server(settings.home, "worker", os.getpid()) == f"http://127.0.0.1:{server.port}"
    server.close()
    assert find_server(settings.home, "worker", os.getpid()) is None
    server.close()


def test_the_next_free_port_is_taken(settings: Settings) -> None:
    first = serve_metrics(process_registry(), settings, "worker", lambda: True)

    second = serve_metrics(process_registry(), replace(settings, metrics_port=first.port), "replay", lambda: True)
    try:
        assert first.port < second.port < first.port + 200
        assert get(second, "/livez")[0] == 200
    finally:
        first.close()
        second.close()


def test_none_is_served_where_none_is_wanted(tmp_path: Path) -> None:
    server = serve_metrics(process_registry(), Settings(home=tmp_path, metrics_port=-1), "worker", lambda: True)
    assert server.port == -1
    assert not list(tmp_path.iterdir())
    server.close()


def test_an_address_that_is_not_ours_is_named(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, metrics_port=9400, metrics_host="192.0.2.1")
    with pytest.raises(SettingsError, match="KYMO_METRICS_HOST"):
        serve_metrics(process_registry(), settings, "worker", lambda: True)
