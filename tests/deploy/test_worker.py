"""`kymo worker` as a process of its own, of one role or of several: what it publishes, what it rejects, and how it ends."""

from __future__ import annotations

import dataclasses
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from documents import ROOT
from fault_feed import RECIPE, lab_recipe
from fault_lab import PATIENCE_S, Feed, Lab, kill, stop_worker
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata
from served import check_online, offline

from kymo.deploy import broker as embedded
from kymo.deploy.broker import free_port
from kymo.deploy.children import Child, kymo_command, kymo_environment
from kymo.deploy.worker import roles_of
from kymo.models.bundle import load_bundle
from kymo.processors.recipe.load import load_recipe
from kymo.streams.chunk import Chunk, Header, signal_format
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import KymoError
from kymo.streams.kafka.client import client_arguments
from kymo.streams.kafka.publish import Publisher
from kymo.streams.kafka.read import read_records
from kymo.streams.readers import read
from kymo.streams.recording import Recording, StreamData
from kymo.streams.settings import Settings
from kymo.streams.topics import Names

DRAIN_S = 20.0


@pytest.fixture
def lab(tmp_path: Path, broker: str, prefix: str) -> Lab:
    return Lab(tmp_path, broker, prefix)


def test_events_equal_an_offline_run_and_sigterm_drains(lab: Lab) -> None:
    with lab:
        feed, worker = Feed(lab, 7, rate=300), lab.start_worker()
        feed.start()
        lab.await_growth(everywhere=True)
        assert stop_worker(worker) < DRAIN_S  # in the middle of its work
        worker = lab.start_worker()
        assert lab.check(feed) > 100
        assert stop_worker(worker) < DRAIN_S
        assert lab.records("rejected") == []
        assert "Traceback" not in lab.said()
        assert list(Path.cwd().glob(f"{lab.settings.prefix}*")) == []  # no folder in whatever folder it was started


def test_commits_of_another_program_are_no_obstacle(lab: Lab) -> None:
    with lab:
        feed, worker = Feed(lab, 8), lab.start_worker()
        feed.start()
        lab.await_growth(everywhere=True)
        stop_worker(worker)
        group = f"{lab.settings.prefix}.lab.model"
        places = [TopicPartition(lab.names.of("sensor"), i) for i in range(lab.settings.partitions)]
        notes = ["", "no JSON", "{}", "[1]", '{"events": "many"}', '{"events": -5}']
        commits = {place: OffsetAndMetadata(0, note, -1) for place, note in zip(places, notes, strict=True)}

        def committed() -> bool:  # refused while the group still knows the worker
            consumer = KafkaConsumer(**client_arguments(lab.settings), group_id=group, enable_auto_commit=False)
            try:
                consumer.assign(places)
                consumer.commit(commits)
            except KafkaError:
                return False
            finally:
                consumer.close()
            return True

        lab.await_that(committed, "commits by hand")
        worker = lab.start_worker()
        lab.check(feed)
        stop_worker(worker)


def test_large_messages_go_through(lab: Lab, tmp_path: Path) -> None:
    lab.recipe, lab.bundle = lab_recipe(tmp_path, hop_s=0.8)
    header = Header("large", 0, signal_format("imu", ("x", "y"), 100))
    data = np.random.default_rng(1).standard_normal((390_000, 2)).astype(np.float32)  # 3.1 MB
    with lab:
        with Publisher(lab.settings, lab.names) as publisher:
            publisher.send("sensor", "large", lab.codec.encode(Chunk(header, 0, data, None, True)))
            publisher.send("sensor", "large", b"\x00" * (4 * 2**20 - 500))
            publisher.flush(PATIENCE_S)
        worker = lab.start_worker()
        recipe, bundle = load_recipe(lab.recipe), load_bundle(str(lab.bundle), lab.settings.home)
        recordings = [Recording("large", [StreamData(header, data)])]
        expected = offline(recipe, recordings, bundle)
        lab.await_that(lambda: sum(lab.ends().values()) >= len(expected), f"{len(expected)} events")
        lab.await_that(lambda: sum(lab.ends("rejected").values()) >= 1, "what was rejected")
        stop_worker(worker)
        assert lab.verdict(expected) == 4_875
        (((key, value), reason),) = lab.rejected().values()
        assert (key, len(value or b""), reason) == (b"large", 4 * 2**20 - 500, "undecodable")


def test_a_bundle_that_does_not_fit_is_refused_in_one_line(lab: Lab, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(RECIPE.replace("factor = 0.5", "factor = 0.25"))
    with lab:
        lab.recipe = other
        worker = lab.start_worker()
        assert worker.wait(PATIENCE_S) == 1
        (line,) = worker.tail
        assert "bundle" in line
        lab.recipe = tmp_path / "none.toml"
        worker = lab.start_worker()
        assert worker.wait(PATIENCE_S) == 1
        (line,) = worker.tail
        assert "none.toml" in line


def test_no_broker_is_told_in_one_line(lab: Lab) -> None:
    with lab:
        worker = lab.start_worker(KYMO_BROKERS=f"127.0.0.1:{free_port()}")
        assert worker.wait(PATIENCE_S) == 1
        (line,) = worker.tail
        assert "kymo broker status" in line


@pytest.mark.parametrize(
    "part", ["kymo.models.predict.Classifier.classify", "kymo.models.serving.partition.Partition.take"]
)
def test_an_agent_that_dies_ends_the_process(lab: Lab, part: str) -> None:
    module, name, method = part.rsplit(".", 2)
    code = (
        f"import sys, {module} as m\n"
        f"def broken(*_): raise RuntimeError('broken on purpose')\n"
        f"m.{name}.{method} = broken\n"
        "import kymo\n"
        "kymo.main()\n"
    )
    with lab:
        whole = lab.start_worker()
        feed = Feed(lab, 9)
        feed.start()
        lab.await_growth()
        kill(whole)
        said: list[str] = []
        command = [sys.executable, "-c", code, "worker", str(lab.recipe), "--bundle", str(lab.bundle)]
        broken = Child("broken", command, lab.environment(), said.append)
        broken.start()
        try:
            assert broken.wait(PATIENCE_S) == 1
        finally:
            broken.send(signal.SIGKILL)
        assert any("broken on purpose" in line for line in said)
        lab.start_worker()
        lab.check(feed)


@pytest.mark.slow
def test_sigterm_without_a_broker_still_ends(tmp_path: Path, jars_dir: Path, prefix: str) -> None:
    data = tmp_path / "broker"
    info = embedded.start(data, jars_dir=jars_dir)
    try:
        with Lab(tmp_path, info.bootstrap, prefix) as lab:
            feed, worker = Feed(lab, 10), lab.start_worker()
            feed.start()
            lab.await_growth()
            embedded.stop(data, timeout_s=0.0)
            worker.send(signal.SIGTERM)
            assert worker.wait(DRAIN_S + 10) == 1
            lab.workers.remove(worker)
            embedded.start(data, info.port, jars_dir=jars_dir)
            lab.start_worker()
            lab.check(feed)
    finally:
        embedded.stop(data)


def test_help_has_an_example() -> None:
    said: list[str] = []
    child = Child("help", kymo_command("worker", "--help"), kymo_environment({}), said.append)
    child.start()
    assert child.wait(PATIENCE_S) == 0
    assert any("Example: kymo worker" in line for line in said)


SHIPPED = ROOT / "recipes" / "basicmotions.toml"


def chunks_of(settings: Settings) -> list[Chunk]:
    codec = ChunkCodec()
    return [codec.decode(r.value or b"") for r in read_records(settings, Names(settings.prefix).of("spectrogram"))]


def test_two_roles_give_the_events_of_one(broker: str, prefix: str, tmp_path: Path) -> None:
    recipe, home = load_recipe(SHIPPED), tmp_path / "home"
    recordings = list(read(["basicmotions:test"], recipe.read_options()))[::4]
    settings = Settings(brokers=broker, prefix=prefix, home=home, partitions=3)
    expected = offline(recipe, recordings, load_bundle("basicmotions", home))
    check_online(SHIPPED, recordings, settings, ["processor", "model"], expected)
    chunks = chunks_of(settings)
    places = [(c.session, c.first_index, c.end) for c in chunks]
    assert len(set(places)) == len(places)
    assert sorted(c.session for c in chunks if c.end) == sorted(r.session for r in recordings)


def test_roles() -> None:
    settings = Settings()
    assert roles_of("processor,model", settings) == ["processor-model"]
    assert roles_of("model, processor", dataclasses.replace(settings, write_derived=True)) == [
        "processor-model",
        "processor",
    ]
    assert roles_of("model", settings) == ["model"]
    with pytest.raises(KymoError, match="expected processor, model"):
        roles_of("trainer", settings)
