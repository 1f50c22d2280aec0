"""``kymo broker start|stop|status``. In: options. Out: a line or JSON; exit status 0 done, 1 failed, 2 wrong usage."""

from __future__ import annotations

import json
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from deploy.broker_state import BrokerInfo
from streams.errors import BrokerError
from streams.settings import Settings

DEFAULT_PORT = 9092
WATCH_S = 0.5

data_dir_option = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for everything the broker keeps; default: broker under KYMO_HOME.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def broker() -> None:
    """The embedded Apache Kafka.

    Example: kymo broker start --port 0 && kymo broker status --json && kymo broker stop
    """


@broker.command("start")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help=f"Client port on loopback; 0 takes a free one. Default: {DEFAULT_PORT}, or that of the running broker.",
)
@data_dir_option
@json_option
@click.option("--foreground", is_flag=True, help="Stay until Ctrl-C or SIGTERM, then stop the broker.")
def start_command(port: int | None, data_dir: Path | None, as_json: bool, foreground: bool) -> None:
    """Start Kafka, or report the one that already runs.

    Example: kymo broker start --port 9092 --foreground
    """
    from deploy import broker as embedded

    folder = _folder(data_dir)
    if port is None:
        port = 0 if embedded.status(folder).state == "running" else DEFAULT_PORT
    # Before the start, so that a signal that comes while the server is starting is not lost.
    interrupted = _signals() if foreground else None
    info = embedded.start(folder, port)
    _print(
        _running(info),
        f"running at {info.bootstrap}, process {info.pid}, data in {info.data_dir}, log {info.log_file}",
        as_json,
    )
    if interrupted:
        _stay(folder, interrupted)


@broker.command("stop")
@data_dir_option
@json_option
def stop_command(data_dir: Path | None, as_json: bool) -> None:
    """Stop the broker; its data stay.

    Example: kymo broker stop
    """
    from deploy import broker as embedded

    folder = _folder(data_dir)
    stopped = embedded.stop(folder)
    _print(
        {"state": "stopped", "was_running": stopped}, "stopped" if stopped else f"no broker runs on {folder}", as_json
    )


@broker.command("status")
@data_dir_option
@json_option
def status_command(data_dir: Path | None, as_json: bool) -> None:
    """Say whether the broker runs; exit status 1 if not.

    Example: kymo broker status --json
    """
    from deploy import broker as embedded

    folder = _folder(data_dir)
    status = embedded.status(folder)
    if status.state == "running" and status.info:
        info = status.info
        _print(_running(info), f"running at {info.bootstrap}, process {info.pid}, data in {info.data_dir}", as_json)
        return
    text = status.reason if status.state == "died" else f"stopped: no broker runs on {folder}"
    _print({"state": status.state, "data_dir": str(folder), "reason": status.reason}, text, as_json)
    sys.exit(1)


def _folder(data_dir: Path | None) -> Path:
    from deploy.broker import default_data_dir

    return data_dir.absolute() if data_dir else default_data_dir(Settings.from_env())


def _running(info: BrokerInfo) -> dict[str, Any]:
    return {"state": "running"} | {name: str(v) if isinstance(v, Path) else v for name, v in asdict(info).items()}


def _print(record: dict[str, Any], text: str, as_json: bool) -> None:
    click.echo(json.dumps(record) if as_json else text)


def _signals() -> threading.Event:
    interrupted = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: interrupted.set())
    return interrupted


def _stay(folder: Path, interrupted: threading.Event) -> None:
    from deploy import broker as embedded

    while not interrupted.wait(WATCH_S):
        status = embedded.status(folder)
        if status.state == "died":
            raise BrokerError(status.reason)
        if status.state == "stopped":  # by `kymo broker stop` in another terminal
            return
    embedded.stop(folder)
