"""``kymo broker``, ``kymo worker`` and ``kymo doctor``. In: options. Out: a running broker or worker; a line a check, or JSON.

What a verb needs is loaded when it runs: its help waits for no library, and its words say which extra is missing.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from kymo.deploy import broker as embedded
from kymo.deploy.broker import PORT, BrokerInfo
from kymo.deploy.children import stop_event
from kymo.streams.errors import BrokerError
from kymo.streams.settings import Settings

WATCH_S = 0.5
_MARKS = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}

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
    help=f"Client port on loopback; 0 takes a free one. Default: {PORT}, or that of the running broker.",
)
@data_dir_option
@json_option
@click.option("--foreground", is_flag=True, help="Stay until Ctrl-C or SIGTERM, then stop the broker.")
def start_command(port: int | None, data_dir: Path | None, as_json: bool, foreground: bool) -> None:
    """Start Kafka, or report the one that already runs.

    Example: kymo broker start --port 9092 --foreground
    """
    folder = _folder(data_dir)
    if port is None:
        port = 0 if embedded.status(folder).state == "running" else PORT
    # Before the start, so that a signal that comes while the server is starting is not lost.
    with stop_event() if foreground else contextlib.nullcontext() as stopped:
        info = embedded.start(folder, port)
        text = f"running at {info.bootstrap}, process {info.pid}, data in {info.data_dir}, log {info.log_file}"
        _print(_running(info), text, as_json)
        if stopped:
            _stay(folder, stopped)


@broker.command("stop")
@data_dir_option
@json_option
def stop_command(data_dir: Path | None, as_json: bool) -> None:
    """Stop the broker; its data stay.

    Example: kymo broker stop
    """
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
    return data_dir.absolute() if data_dir else embedded.default_data_dir(Settings.from_env())


def _running(info: BrokerInfo) -> dict[str, Any]:
    return {"state": "running"} | {name: str(v) if isinstance(v, Path) else v for name, v in asdict(info).items()}


def _print(record: dict[str, Any], text: str, as_json: bool) -> None:
    click.echo(json.dumps(record) if as_json else text)


def _stay(folder: Path, stopped: threading.Event) -> None:
    while not stopped.wait(WATCH_S):
        status = embedded.status(folder)
        if status.state == "died":
            raise BrokerError(status.reason)
        if status.state == "stopped":  # by `kymo broker stop` in another terminal
            return
    embedded.stop(folder)


@click.command()
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE…")
@click.option("--bundle", metavar="V", help="A bundle's folder or name, instead of each recipe's own.")
@click.option("--prefix", metavar="P", help="Topic prefix, instead of KYMO_PREFIX; `kymo.N` for the run N of a replay.")
@click.option(
    "--roles",
    default="processor,model",
    show_default=True,
    metavar="R",
    help="processor: raw to derived streams; model: derived streams to events; both: raw to events, in memory.",
)
def worker(recipes: tuple[str, ...], bundle: str | None, prefix: str | None, roles: str) -> None:
    """Classify what arrives on the input topics until stopped; start as many workers as there are partitions.

    Example: kymo worker basicmotions
    """
    from kymo.deploy.worker import run_worker

    settings = Settings.from_env()
    run_worker(recipes, settings.under(prefix) if prefix else settings, bundle, roles)


@click.command("doctor")
@click.option("--recipe", "recipe_name", metavar="R", help="Check this recipe and its bundle too.")
@click.option("--session", metavar="S", help="Say why this session yields no events (needs --recipe and a broker).")
@click.option(
    "--repair-topics", is_flag=True, help="First configure the topics that are there as Kymo's table has them."
)
@click.option("--json", "json_out", is_flag=True, help="Print one JSON object.")
def doctor(recipe_name: str | None, session: str | None, repair_topics: bool, json_out: bool) -> None:
    """Say what is wrong on this machine, and why a session yields no events.

    Example: kymo doctor --recipe basicmotions --session basicmotions-test-00
    """
    if session is not None and recipe_name is None:
        raise click.UsageError("--session needs --recipe: whose events are missed?")
    from kymo.deploy.doctor import WRONG, check_machine, check_recipe
    from kymo.deploy.doctor_session import check_session

    settings = Settings.from_env()
    if repair_topics:
        from kymo.streams.kafka import admin
        from kymo.streams.topics import Names

        for topic in admin.repair_topics(embedded.located(settings), Names(settings.prefix)) or ["no topic"]:
            click.echo(f"{topic} was altered", err=True)
    checks = list(check_machine(settings))
    if recipe_name is not None:
        recipe, recipe_checks = check_recipe(recipe_name, settings)
        checks += recipe_checks
        if recipe is not None and session is not None:
            checks += check_session(recipe, session, settings)
    well = all(check.state != WRONG for check in checks)
    if json_out:
        click.echo(json.dumps({"ok": well, "checks": [asdict(check) for check in checks]}, ensure_ascii=False))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            click.echo(f"{_MARKS[check.state]} {check.name:{width}}  {check.text}")
    if not well:
        click.get_current_context().exit(1)
