"""Strangers' producers, those of docs/formats.md and others: what they send is classified like the same file offline."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from documents import ROOT, blocks
from fault_lab import await_that
from verbs import execute, running, variables

from kymo.streams.kafka.admin import ensure_topics
from kymo.streams.kafka.client import partition_of
from kymo.streams.kafka.read import read_records
from kymo.streams.settings import Settings
from kymo.streams.topics import Names

PRODUCERS = ROOT / "tests" / "producers"
SESSIONS, ROWS, T0_NS = ("eva", "max-2", "zoë 3"), 203, 1_700_000_000_123_456_789
KAFKA_GO, PROTOBUF_GO = "github.com/segmentio/kafka-go@v0.4.51", "google.golang.org/protobuf@v1.36.12"


def run(*words: str | Path, cwd: Path, **env: str) -> str:
    done = subprocess.run(words, cwd=cwd, env=os.environ | env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout[-1000:]}{done.stderr[-3000:]}"
    return done.stdout


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def fetch(*words: str, cwd: Path) -> None:
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{' '.join(words[:2])} could not fetch packages: {done.stderr[-300:]}")


def documented(language: str, folder: Path) -> Path:
    (block,) = [block.text for block in blocks("docs/formats.md", language) if "producer." in block.text.split("\n")[0]]
    path = folder / block.split()[1]
    path.write_text(block, encoding="utf-8")
    return path


def python(folder: Path, _jars: Path) -> list[str | Path]:
    pytest.importorskip("confluent_kafka", reason="confluent-kafka (librdkafka) is not installed")
    shutil.copy(ROOT / "streams" / "chunk_pb2.py", folder)  # what protoc makes of chunk.proto
    return [sys.executable, documented("python", folder)]


def javascript(folder: Path, _jars: Path) -> list[str | Path]:
    need("node", "npm")
    fetch("npm", "install", "--no-audit", "--no-fund", "--prefix", ".", "kafkajs@2.2.4", "protobufjs@8", cwd=folder)
    shutil.copy(ROOT / "streams" / "chunk.proto", folder)
    return ["node", documented("js", folder)]


def go(folder: Path, _jars: Path) -> list[str | Path]:
    need("go")
    shutil.copy(PRODUCERS / "producer.go", folder)
    fetch("go", "mod", "init", "producer", cwd=folder)
    fetch("go", "get", KAFKA_GO, PROTOBUF_GO, cwd=folder)
    run("go", "build", "-o", "producer", "producer.go", cwd=folder)
    return [folder / "producer"]


def java(folder: Path, jars: Path) -> list[str | Path]:
    need("java", "javac")
    class_path = ":".join(str(jar) for jar in sorted(jars.glob("*.jar")))
    return ["java", "-cp", class_path, PRODUCERS / "Producer.java"]


def recordings(folder: Path) -> list[Path]:
    made = []
    for i, session in enumerate(SESSIONS):
        walk = np.random.default_rng(i).standard_normal((ROWS, 6)).cumsum(0) / 10
        made.append(folder / f"{session}.csv")
        with made[-1].open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["t_ns", "ax", "ay", "az", "gx", "gy", "gz"])
            writer.writerows([T0_NS + j * 10**8, *(f"{v:.4f}" for v in row)] for j, row in enumerate(walk))
    return made


@pytest.mark.parametrize(
    "producer", [python, *(pytest.param(p, marks=pytest.mark.chaos) for p in (javascript, go, java))]
)
def test_events_are_those_of_an_offline_run(
    producer: Callable[[Path, Path], list[str | Path]], tmp_path: Path, broker: str, prefix: str, jars_dir: Path
) -> None:
    command, files = producer(tmp_path, jars_dir), recordings(tmp_path)
    settings = Settings(brokers=broker, prefix=prefix, partitions=6, home=tmp_path / "home")
    env, names = variables(settings), Names(prefix)
    ensure_topics(settings, names)
    for file in files:
        run(*command, broker, names.of("sensor"), file, cwd=tmp_path)
    sent = list(read_records(settings, names.of("sensor")))
    assert {r.key: r.partition for r in sent} == {s.encode(): partition_of(s.encode(), 6) for s in SESSIONS}
    assert len(sent) == len(SESSIONS) * (ROWS // 5 + 1)
    offline = execute("run", "basicmotions", *files, env=env).stdout
    expected = {event["id"]: event for event in map(json.loads, offline.splitlines())}
    have = lambda: [json.loads(r.value or b"") for r in read_records(settings, names.of("events"))]  # noqa: E731
    with running(env, "worker", "basicmotions"):
        await_that(lambda: len(have()) >= len(expected), "events", 60)
    events = have()
    assert len(events) == len(expected) == len({event["id"] for event in events}) > 40
    for event in events:
        same = expected[event["id"]]
        assert event.pop("probabilities") == pytest.approx(same["probabilities"], abs=1e-5)
        for name in set(event) - {"probability", "emitted_ns"}:
            assert event[name] == same[name], name
    assert list(read_records(settings, names.of("rejected"))) == []
