"""The embedded broker: a real single-node Apache Kafka in a process of its own, on loopback.

In: a data folder and a port. Out: a running server's address. What must outlive a crash stands in the data folder:

``kafka/``            Kafka's own log and metadata
``server.properties`` written anew at each start
``logs/server.log``   what the server says
``broker.json``       the running server's process and port, removed by a stop
``broker.lock``       held while a start or stop is under way
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploy import broker_wait, kafka_jars, kafka_server
from deploy.broker_state import BrokerInfo, alive, created_s, read_state, state_file, write_state
from deploy.kafka_server import HOST, POLL_S
from streams.errors import BrokerError
from streams.files import lock
from streams.settings import Settings

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
KILL_TIMEOUT_S = 20.0  # the kernel takes its time to end a process with much memory on a busy machine
MIN_FREE_BYTES = 256 * 2**20
# Any other program may take a port between its choice and Kafka's bind; nobody loses that race thrice.
PORT_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    """What there is in a data folder."""

    state: Literal["running", "stopped", "died"]  # ``died``: it was started, was not stopped and is gone
    info: BrokerInfo | None = None  # the server, running or dead
    reason: str = ""  # for a dead server, its cause and the last lines of its log


def start(
    data_dir: Path, port: int = 0, *, jars_dir: Path | None = None, timeout_s: float = START_TIMEOUT_S
) -> BrokerInfo:
    """Start Kafka on a data folder, or report the one that already runs on it."""
    data_dir = data_dir.absolute()
    _prepare(data_dir)
    with lock(_lock_file(data_dir)):
        running = _running(data_dir)
        if running:
            if port not in (0, running.port):
                raise BrokerError(
                    f"a broker already runs on {data_dir}, at {running.bootstrap}, not at port {port}; "
                    "stop it first (kymo broker stop) or leave the port as it is"
                )
            return running
        _check_space(data_dir)
        if port:
            _check_port(port)
        jars = kafka_jars.class_path((jars_dir or Settings.from_env().home / "kafka").absolute())
        for attempt in range(PORT_ATTEMPTS):
            try:
                return _launch(data_dir, port or free_port(), jars, timeout_s)
            except BrokerError as error:
                if port or "port is taken" not in str(error) or attempt == PORT_ATTEMPTS - 1:
                    raise
    raise AssertionError("unreachable")


def stop(data_dir: Path, *, timeout_s: float = STOP_TIMEOUT_S) -> bool:
    """Stop the folder's server and wait until its process is gone; one that does not obey within `timeout_s` is killed."""
    data_dir = data_dir.absolute()
    if not data_dir.is_dir():
        return False
    with lock(_lock_file(data_dir)):
        info = _running(data_dir)
        if info:
            _end(info, timeout_s)
        state_file(data_dir).unlink(missing_ok=True)
        return info is not None


def status(data_dir: Path) -> BrokerStatus:
    """What there is in a data folder; never blocks and never changes it."""
    data_dir = data_dir.absolute()
    info = read_state(data_dir)
    if info is None:
        return BrokerStatus("stopped")
    if alive(info):
        return BrokerStatus("running", info)
    return BrokerStatus("died", info, kafka_server.explain(data_dir, f"died (process {info.pid})"))


def address(settings: Settings) -> str:
    """Where clients connect: ``KYMO_BROKERS``, or the embedded broker that runs under ``KYMO_HOME``."""
    if settings.brokers:
        return settings.brokers
    found = status(default_data_dir(settings))
    if found.state == "running" and found.info:
        return found.info.bootstrap
    hint = "start it with `kymo broker start`, or set KYMO_BROKERS to a running Kafka"
    raise BrokerError(f"no broker: KYMO_BROKERS is not set and the embedded one is not running ({found.state}); {hint}")


def default_data_dir(settings: Settings) -> Path:
    """Data folder of the embedded broker when none is named."""
    return (settings.home / "broker").absolute()


@contextlib.contextmanager
def running(data_dir: Path, port: int = 0, *, jars_dir: Path | None = None) -> Iterator[BrokerInfo]:
    """A broker for the length of a ``with`` block; one that was already there stays."""
    had = status(data_dir).state == "running"
    info = start(data_dir, port, jars_dir=jars_dir)
    try:
        yield info
    finally:
        if not had:
            stop(data_dir)


def _prepare(data_dir: Path) -> None:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with _lock_file(data_dir).open("ab"):
            pass
        kafka_server.rotate_log(data_dir)
        with kafka_server.log_file(data_dir).open("ab"):
            pass
    except OSError as error:
        raise BrokerError(
            f"{data_dir}: the broker's data folder cannot be written ({error.strerror}); "
            "choose another with --data-dir or KYMO_HOME"
        ) from error


def _check_space(data_dir: Path) -> None:
    free = shutil.disk_usage(data_dir).free
    if free < MIN_FREE_BYTES:
        raise BrokerError(
            f"no disk space for the broker: {free / 2**20:.0f} MiB free under {data_dir}, "
            f"at least {MIN_FREE_BYTES / 2**20:.0f} MiB needed; "
            "free some, or choose another folder with --data-dir or KYMO_HOME"
        )


def _check_port(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe_socket:
        # As Kafka does, so that a port in TIME_WAIT counts as free.
        probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe_socket.bind((HOST, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise BrokerError(
                f"port {port} on {HOST} is taken ({reason}); choose another with --port, or 0 for any that is free"
            ) from error


def free_port() -> int:
    """A port on loopback that is free at this moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe_socket:
        probe_socket.bind((HOST, 0))
        return int(probe_socket.getsockname()[1])


def _launch(data_dir: Path, port: int, jars: list[Path], timeout_s: float) -> BrokerInfo:
    properties = kafka_server.write_properties(data_dir, port, free_port())
    kafka_server.format_storage(jars, properties, data_dir)
    path = kafka_server.log_file(data_dir)
    with path.open("ab") as log:
        process = subprocess.Popen(
            kafka_server.command(jars, "kafka.Kafka", str(properties)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=data_dir,
            # A session of its own: Ctrl-C in a terminal is meant for the program in front, which stops the broker last.
            start_new_session=True,
        )
    # Reaps the child whenever it ends, so that no zombie stays while this process lives.
    threading.Thread(target=process.wait, name="kafka-reaper", daemon=True).start()
    info = BrokerInfo(f"{HOST}:{port}", process.pid, port, data_dir, path, created_s(process.pid) or time.time())
    try:
        write_state(info)
        broker_wait.await_ready(process, port, data_dir, timeout_s)
    except BaseException:
        # Also for Ctrl-C: a start that did not end well leaves no process.
        process.kill()
        process.wait()
        state_file(data_dir).unlink(missing_ok=True)
        raise
    return info


def _end(info: BrokerInfo, timeout_s: float) -> None:
    for order, limit_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, KILL_TIMEOUT_S)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(info.pid, order)
        deadline = time.monotonic() + limit_s
        while alive(info) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if not alive(info):
            return
    raise BrokerError(f"process {info.pid} of the broker on {info.data_dir} does not end, not even when killed")


def _running(data_dir: Path) -> BrokerInfo | None:
    info = read_state(data_dir)
    return info if info and alive(info) else None


def _lock_file(data_dir: Path) -> Path:
    return data_dir / "broker.lock"
