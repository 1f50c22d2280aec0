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
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from kymo.deploy import kafka_server
from kymo.deploy.kafka_server import HOST, POLL_S, explain, log_file, probe, tail
from kymo.streams.errors import BrokerError
from kymo.streams.files import lock, write_whole
from kymo.streams.settings import Settings

PORT = 9092  # where clients look for a Kafka
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
KILL_TIMEOUT_S = 20.0  # the kernel takes its time to end a process with much memory on a busy machine
MIN_FREE_BYTES = 256 * 2**20
# Any other program may take a port between its choice and Kafka's bind; nobody loses that race thrice.
PORT_ATTEMPTS = 3
SAY_S = 5.0
BUSY = 0.1  # share of the time that a starting server must compute to count as alive; an idle one takes 0.04


@dataclass(frozen=True, slots=True)
class BrokerInfo:
    bootstrap: str  # ``host:port`` for clients
    pid: int  # process of the server
    port: int  # its client port
    data_dir: Path  # its data folder and log
    log_file: Path
    # when the process began (seconds since 1970), so that another process under a reused pid is not taken for it
    created_s: float


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    """Says what there is in a data folder."""

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
            require_free_port(port)
        jars = kafka_server.class_path((jars_dir or Settings.from_env().home / "kafka").absolute())
        for attempt in range(PORT_ATTEMPTS):
            try:
                return launch(data_dir, port or free_port(), jars, timeout_s)
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
            end(info, timeout_s)
        _state_file(data_dir).unlink(missing_ok=True)
        return info is not None


def status(data_dir: Path) -> BrokerStatus:
    """Look what there is in a data folder; never blocks and never changes it."""
    data_dir = data_dir.absolute()
    info = _read_state(data_dir)
    if info is None:
        return BrokerStatus("stopped")
    if _alive(info):
        return BrokerStatus("running", info)
    return BrokerStatus("died", info, explain(data_dir, f"died (process {info.pid})"))


def address(settings: Settings) -> str:
    """Where clients connect: ``KYMO_BROKERS``, or the embedded broker that runs under ``KYMO_HOME``."""
    if settings.brokers:
        return settings.brokers
    embedded = status(default_data_dir(settings))
    if embedded.state == "running" and embedded.info:
        return embedded.info.bootstrap
    hint = "start it with `kymo broker start`, or set KYMO_BROKERS to a running Kafka"
    raise BrokerError(
        f"no broker: KYMO_BROKERS is not set and the embedded one is not running ({embedded.state}); {hint}"
    )


def located(settings: Settings) -> Settings:
    """Settings that name the embedded broker where they named none."""
    return replace(settings, brokers=address(settings))


def default_data_dir(settings: Settings) -> Path:
    return (settings.home / "broker").absolute()


@contextlib.contextmanager
def running(data_dir: Path, port: int = 0, *, jars_dir: Path | None = None) -> Iterator[BrokerInfo]:
    """A broker for the length of a ``with`` block; one that was already there stays."""
    ran_already = status(data_dir).state == "running"
    info = start(data_dir, port, jars_dir=jars_dir)
    try:
        yield info
    finally:
        if not ran_already:
            stop(data_dir)


def _prepare(data_dir: Path) -> None:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with _lock_file(data_dir).open("ab"):
            pass
        kafka_server.rotate_log(data_dir)
        with log_file(data_dir).open("ab"):
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


def require_free_port(port: int) -> None:
    """Raise a BrokerError if a port on loopback is taken."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        # As Kafka does, so that a port in TIME_WAIT counts as free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise BrokerError(
                f"port {port} on {HOST} is taken ({reason}); choose another with --port, or 0 for any that is free"
            ) from error


def free_port() -> int:
    """Find a port on loopback that is free at this moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


def launch(data_dir: Path, port: int, jars: list[Path], timeout_s: float, *flags: str) -> BrokerInfo:
    """Run Kafka on a data folder, with more flags of the JVM, until it answers."""
    properties = kafka_server.write_properties(data_dir, port, free_port())
    kafka_server.format_storage(jars, properties, data_dir)
    path = log_file(data_dir)
    with path.open("ab") as log:
        process = subprocess.Popen(
            kafka_server.command(jars, "kafka.Kafka", str(properties), flags=flags),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=data_dir,
            # A session of its own: Ctrl-C in a terminal is meant for the program in front, which stops the broker last.
            start_new_session=True,
        )
    # Reaps the child whenever it ends, so that no zombie stays while this process lives.
    threading.Thread(target=process.wait, name="kafka-reaper", daemon=True).start()
    info = BrokerInfo(f"{HOST}:{port}", process.pid, port, data_dir, path, _created_s(process.pid) or time.time())
    try:
        write_state(info)
        await_ready(process, port, data_dir, timeout_s)
    except BaseException:
        # Also for Ctrl-C: a start that did not end well leaves no process.
        process.kill()
        process.wait()
        _state_file(data_dir).unlink(missing_ok=True)
        raise
    return info


def end(info: BrokerInfo, timeout_s: float) -> None:
    """End a server's process and wait until it is gone; one that does not obey within `timeout_s` is killed."""
    for order, limit_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, KILL_TIMEOUT_S)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(info.pid, order)
        deadline = time.monotonic() + limit_s
        while _alive(info) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if not _alive(info):
            return
    raise BrokerError(f"process {info.pid} of the broker on {info.data_dir} does not end, not even when killed")


def _running(data_dir: Path) -> BrokerInfo | None:
    info = _read_state(data_dir)
    return info if info and _alive(info) else None


def _lock_file(data_dir: Path) -> Path:
    return data_dir / "broker.lock"


def _say(text: str) -> None:
    print(f"kymo: {text}", file=sys.stderr, flush=True)


def await_ready(
    process: subprocess.Popen[bytes],
    port: int,  # where it will answer
    data_dir: Path,  # its data folder, with its log
    timeout_s: float,  # how long it may do nothing
    tell: Callable[[str], None] = _say,  # gets a line about every `SAY_S` seconds of waiting
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Wait until the server that was just launched answers on `port`, as long as it gets on.

    After an unclean end Kafka reads its logs whole before it answers, however long that takes: it gets on while its log grows
    or it computes.
    """
    begun_s = told_s = moved_s = clock()
    last_work = _work_of(process.pid, data_dir)
    while not probe(port):
        if process.poll() is not None:
            raise BrokerError(explain(data_dir, f"died at start (status {process.returncode})"))
        now_s, work = clock(), _work_of(process.pid, data_dir)
        if work[0] != last_work[0] or work[1] - last_work[1] > BUSY * timeout_s:
            moved_s, last_work = now_s, work
        if now_s - moved_s > timeout_s:
            waited = f"did not answer on port {port} within {now_s - begun_s:.0f} s"
            raise BrokerError(explain(data_dir, f"{waited} and did nothing for the last {timeout_s:.0f} s"))
        if now_s - told_s >= SAY_S:
            told_s = now_s
            tell(f"Kafka has been starting for {now_s - begun_s:.0f} s, {_stage(data_dir)}; see {log_file(data_dir)}")
        time.sleep(POLL_S)


def _work_of(pid: int, data_dir: Path) -> tuple[int, float]:
    """Measure a server's log, and the processor time that it has used (s)."""
    import psutil

    path, used_s = log_file(data_dir), 0.0
    with contextlib.suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        used_s = times.user + times.system
    return path.stat().st_size if path.exists() else 0, used_s


def _stage(data_dir: Path) -> str:
    """Tell by the log how far a start has come."""
    text = "\n".join(tail(log_file(data_dir)))
    loaded = re.findall(r"\((\d+)/(\d+) completed in ", text)
    if loaded:
        return "{} of {} partitions loaded".format(*loaded[-1])
    unclean = "no clean shutdown file was found" in text
    return "reading its data after an unclean end" if unclean else "no partition loaded yet"


def _created_s(pid: int) -> float | None:
    """When the process began (seconds since 1970); None if there is no such process."""
    import psutil

    try:
        process = psutil.Process(pid)
        # Dead but not yet reaped by whoever started it: as good as gone.
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None


def _alive(info: BrokerInfo) -> bool:
    """Whether the very process that `info` names still runs."""
    begun_s = _created_s(info.pid)
    return begun_s is not None and abs(begun_s - info.created_s) < 1.0


def _state_file(data_dir: Path) -> Path:
    return data_dir / "broker.json"


def write_state(info: BrokerInfo) -> None:
    """Leave the note; a reader sees the old one or the new one, never half of it."""
    write_whole(_state_file(info.data_dir), json.dumps(asdict(info), default=str))


def _read_state(data_dir: Path) -> BrokerInfo | None:
    """Read the note back; None if there is none or it cannot be read."""
    try:
        state: dict[str, Any] = json.loads(_state_file(data_dir).read_text())
        # The folder may have been moved or mounted elsewhere since: where it lies now counts.
        return BrokerInfo(**state | {"data_dir": data_dir, "log_file": log_file(data_dir)})
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None  # absent, or cut off by a full disk: Kafka's own lock still guards the data
