"""The embedded Kafka: data survive, failures are named, nothing is left behind."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic
from verbs import invoke

from kymo.deploy import broker as embedded
from kymo.deploy import kafka_server
from kymo.deploy.broker import BrokerInfo, write_state
from kymo.streams.errors import BrokerError
from kymo.streams.settings import Settings

NOWHERE = "http://127.0.0.1:9"
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.setenv(name, NOWHERE)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "data"
    yield folder
    embedded.stop(folder)
    assert servers_on(folder) == []


def servers_on(folder: Path) -> list[int]:
    return [
        p.pid
        for p in psutil.process_iter(["cmdline"])
        if str(folder / "server.properties") in (p.info["cmdline"] or [])
    ]


def produce(bootstrap: str, topic: str, values: list[bytes]) -> None:
    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all")
    sent = [producer.send(topic, value, partition=0) for value in values]
    for future in sent:
        future.get(timeout=20)
    producer.close()


def consume(bootstrap: str, topic: str, count: int) -> list[bytes]:
    consumer = KafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        group_id=f"{topic}-group",
        auto_offset_reset="earliest",
        consumer_timeout_ms=20_000,
    )
    values: list[bytes] = []
    for record in consumer:
        values.append(record.value)
        if len(values) == count:
            break
    consumer.commit()
    consumer.close()
    return values


@pytest.mark.slow
def test_data_and_offsets_survive_kill_and_stop_without_network(
    data_dir: Path, jars_dir: Path, no_network: None
) -> None:
    info = embedded.start(data_dir, jars_dir=jars_dir)
    admin = KafkaAdminClient(bootstrap_servers=info.bootstrap)
    admin.create_topics([NewTopic("t", num_partitions=1, replication_factor=1)])
    admin.close()
    values = [bytes([i]) * 1000 for i in range(50)]
    produce(info.bootstrap, "t", values)
    assert consume(info.bootstrap, "t", 20) == values[:20]

    server = psutil.Process(info.pid)
    server.kill()
    server.wait(10)
    died = embedded.status(data_dir)
    assert died.state == "died"
    assert "Group t-group with generation" in died.reason  # its last words
    again = embedded.start(data_dir, info.port, jars_dir=jars_dir)
    assert again.pid != info.pid
    assert consume(again.bootstrap, "t", 20) == values[20:40]

    assert embedded.stop(data_dir) is True
    assert embedded.status(data_dir).state == "stopped"
    third = embedded.start(data_dir, jars_dir=jars_dir)
    assert consume(third.bootstrap, "t", 10) == values[40:]


def test_second_start_reports_the_running_broker(broker: str, broker_data_dir: Path, jars_dir: Path) -> None:
    info = embedded.start(broker_data_dir, jars_dir=jars_dir)
    assert info.bootstrap == broker
    assert servers_on(broker_data_dir) == [info.pid]
    assert embedded.status(broker_data_dir) == embedded.BrokerStatus("running", info)
    with pytest.raises(BrokerError, match=f"already runs on .*, at {broker}, not at port 1;"):
        embedded.start(broker_data_dir, 1, jars_dir=jars_dir)


def test_it_listens_on_loopback_only(broker: str, broker_data_dir: Path) -> None:
    info = embedded.status(broker_data_dir).info
    assert info is not None
    listening = [c.laddr.ip for c in psutil.Process(info.pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert len(listening) == 2  # clients and controller
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}


FAKE_SERVER = """
import socket, sys, time
from pathlib import Path
go, port, busy = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "busy"
while not go.exists():
    busy or time.sleep(0.01)
with socket.create_server(("127.0.0.1", port)) as server:
    while True:
        client, _ = server.accept()
        client.recv(99)
        client.sendall(bytes([0, 0, 0, 4, 0, 0, 0, 7]))
"""


class Starting:
    """A server that starts for as long as the test wants."""

    def __init__(self, folder: Path, how: str) -> None:
        self.folder, self.go, self.port = folder, folder / "go", embedded.free_port()
        kafka_server.rotate_log(folder)
        line = [sys.executable, "-c", FAKE_SERVER, str(self.go), str(self.port), how]
        self.process = subprocess.Popen(line)
        self.told: list[str] = []

    def log(self, line: str) -> None:
        with kafka_server.log_file(self.folder).open("a") as log:
            log.write(line + "\n")


@pytest.fixture
def starting(tmp_path: Path) -> Iterator[Callable[[str], Starting]]:
    made: list[Starting] = []

    def make(how: str) -> Starting:
        made.append(Starting(tmp_path, how))
        return made[-1]

    yield make
    for one in made:
        one.process.kill()
        one.process.wait()


def test_a_server_whose_log_grows_is_waited_for(starting: Callable[[str], Starting]) -> None:
    server, seconds = starting("quiet"), itertools.count(0, 5.0)

    def tell(text: str) -> None:
        server.told.append(text)
        server.log(f"Completed load of Log(dir=x) in 5ms ({len(server.told)}/40 completed in x)")
        if len(server.told) == 30:
            server.go.touch()

    embedded.await_ready(server.process, server.port, server.folder, 60.0, tell, lambda: next(seconds))
    assert server.told[0].startswith("Kafka has been starting for 5 s, no partition loaded yet; see ")
    assert server.told[29].startswith("Kafka has been starting for 150 s, 29 of 40 partitions loaded; see ")


def test_a_server_that_computes_is_waited_for(starting: Callable[[str], Starting]) -> None:
    server = starting("busy")
    process = psutil.Process(server.process.pid)

    def clock() -> float:
        """Seconds that the server has computed: however busy this machine is, all its time is work."""
        spent = process.cpu_times()
        if spent.user + spent.system > 0.8:
            server.go.touch()
        return spent.user + spent.system

    embedded.await_ready(server.process, server.port, server.folder, 0.3, server.told.append, clock)
    assert clock() > 0.8


def test_a_server_that_does_nothing_is_given_up(starting: Callable[[str], Starting]) -> None:
    server, seconds = starting("quiet"), itertools.count(0, 5.0)
    server.log("last words")
    given_up = r"(?s)within 65 s and did nothing for the last 60 s.*last words"
    with pytest.raises(BrokerError, match=given_up):
        embedded.await_ready(
            server.process, server.port, server.folder, 60.0, server.told.append, lambda: next(seconds)
        )
    assert len(server.told) == 12


@pytest.mark.parametrize("order", [signal.SIGINT, signal.SIGTERM])
def test_foreground_ends_with_the_signal(order: signal.Signals, data_dir: Path, jars_dir: Path) -> None:
    code = "from kymo.deploy.cli import broker; broker()"
    line = [sys.executable, "-c", code, "start", "--foreground", "--port", "0", "--json", "--data-dir", str(data_dir)]
    env = os.environ | {"KYMO_HOME": str(jars_dir.parent)}
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        info = json.loads(process.stdout.readline())
        assert servers_on(data_dir) == [info["pid"]]
        process.send_signal(order)
        assert process.wait(timeout=40) == 0
    assert servers_on(data_dir) == []
    assert embedded.status(data_dir).state == "stopped"


def test_a_server_that_dies_at_start_shows_its_log(data_dir: Path, jars_dir: Path) -> None:
    meta = data_dir / "kafka" / "meta.properties"
    meta.parent.mkdir(parents=True)
    meta.write_text("version=1\nnode.id=99\ncluster.id=abc\n")
    with pytest.raises(BrokerError, match=r"(?s)died at start \(status 1\).*server\.log.*99"):
        embedded.start(data_dir, jars_dir=jars_dir)
    assert servers_on(data_dir) == []
    assert embedded.status(data_dir).state == "stopped"


def test_taken_port_is_an_error(data_dir: Path, jars_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BrokerError, match=f"port {port} on 127.0.0.1 is taken"):
            embedded.start(data_dir, port, jars_dir=jars_dir)


def test_no_disk_space_is_an_error(data_dir: Path, jars_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10 * 2**30, 10 * 2**30, 0))
    with pytest.raises(BrokerError, match=r"no disk space for the broker: 0 MiB free under .*, at least 256 MiB"):
        embedded.start(data_dir, jars_dir=jars_dir)


def test_folder_that_cannot_be_written_is_an_error(tmp_path: Path, jars_dir: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BrokerError, match="data folder cannot be written"):
        embedded.start(tmp_path / "file" / "data", jars_dir=jars_dir)


def linked_jars(jars_dir: Path, copy: Path) -> Path:
    copy.mkdir()
    for jar in kafka_server.read_lock():
        (copy / jar.filename).symlink_to(jars_dir.absolute() / jar.filename)
    return copy


def test_damaged_startup_cache_is_ignored(data_dir: Path, tmp_path: Path, jars_dir: Path) -> None:
    copy = linked_jars(jars_dir, tmp_path / "jars")
    kafka_server.aot_cache([copy / "any.jar"]).write_bytes(b"garbage" * 10_000)
    assert kafka_server.probe(embedded.start(data_dir, jars_dir=copy).port)


def test_changed_jar_is_an_error(data_dir: Path, tmp_path: Path, jars_dir: Path) -> None:
    copy = linked_jars(jars_dir, tmp_path / "jars")
    changed = copy / "kafka-clients-4.1.1.jar"
    changed.unlink()
    changed.write_bytes((jars_dir / changed.name).read_bytes() + b"!")
    with pytest.raises(
        BrokerError, match=r"kafka-clients-4\.1\.1\.jar: checksum mismatch: expected sha256 [0-9a-f]{64}, got"
    ):
        embedded.start(data_dir, jars_dir=copy)


def test_failed_download_is_an_error_and_leaves_nothing(data_dir: Path, tmp_path: Path, no_network: None) -> None:
    with pytest.raises(
        BrokerError, match=r"download of Kafka 4\.1\.1 failed at .*\.jar \(Connection refused\); check the network"
    ):
        embedded.start(data_dir, jars_dir=tmp_path / "jars")
    assert list((tmp_path / "jars").iterdir()) == []


def test_lock_file_pins_every_jar_once() -> None:
    jars = kafka_server.read_lock()
    assert len({jar.filename for jar in jars}) == len(jars) == 46
    assert jars[0].filename == "kafka_2.13-4.1.1.jar"


def test_malformed_lock_names_the_line(tmp_path: Path) -> None:
    lock = tmp_path / "kafka.lock"
    lock.write_text("# head\na:b:1 00\n")
    with pytest.raises(BrokerError, match=r"kafka\.lock:2: expected"):
        kafka_server.read_lock(lock)


def test_another_process_under_the_old_pid_is_left_alone(data_dir: Path) -> None:
    data_dir.mkdir()
    write_state(BrokerInfo("127.0.0.1:1", os.getpid(), 1, data_dir, kafka_server.log_file(data_dir), created_s=1.0))
    assert embedded.status(data_dir).state == "died"
    assert embedded.stop(data_dir) is False
    assert embedded.status(data_dir).state == "stopped"


def test_address_prefers_the_setting_to_the_embedded_broker(broker: str, broker_data_dir: Path, tmp_path: Path) -> None:
    assert embedded.address(Settings(brokers="kafka:9092")) == "kafka:9092"
    (tmp_path / "broker").symlink_to(broker_data_dir)
    assert embedded.address(Settings(home=tmp_path)) == broker
    with pytest.raises(BrokerError, match=r"no broker: KYMO_BROKERS is not set .* \(stopped\); start it with"):
        embedded.address(Settings(home=tmp_path / "none"))


def test_damaged_state_file_counts_as_stopped(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "broker.json").write_text('{"pid": ')
    assert embedded.status(data_dir).state == "stopped"
    assert embedded.stop(data_dir) is False


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("java.io.IOException: No space left on device", "no disk space left under"),
        ("java.net.BindException: Address already in use", "its port is taken"),
        ("java.lang.OutOfMemoryError: Java heap space", "it needs 512 MiB of memory"),
        ("anything else", "its log says why"),
    ],
)
def test_known_causes_are_named(line: str, cause: str, tmp_path: Path) -> None:
    path = kafka_server.log_file(tmp_path)
    path.parent.mkdir()
    path.write_text(f"first\n{line}\n\tat a.b.C(D.java:1)\n")
    text = kafka_server.explain(tmp_path, "died")
    assert text.startswith(f"Kafka died: {cause}")
    assert text.endswith(f"first\n{line}")


def test_long_log_is_rotated(tmp_path: Path) -> None:
    path = kafka_server.log_file(tmp_path)
    path.parent.mkdir()
    with path.open("wb") as log:
        log.truncate(kafka_server.LOG_LIMIT_BYTES + 1)
    kafka_server.rotate_log(tmp_path)
    assert not path.exists()
    assert path.with_suffix(".log.1").stat().st_size == kafka_server.LOG_LIMIT_BYTES + 1


def test_command_line_statuses(tmp_path: Path) -> None:
    there = ("--data-dir", tmp_path / "none")
    stopped = invoke("broker", "status", "--json", *there, status=1)
    assert json.loads(stopped.output)["state"] == "stopped"
    invoke("broker", "stop", *there)
    invoke("broker", "start", "--port", "70000", *there, status=2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused = invoke("broker", "start", "--port", taken.getsockname()[1], *there, status=1)
    assert refused.stderr.startswith("kymo: port ")
    assert refused.stderr.count("\n") == 1
