"""``kymo demo``. In: BasicMotions' 40 test recordings. Out: their labelled events, and a check that all came once.

It has a broker, topics, a worker and a run folder of its own, in a temporary folder that is gone afterwards.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from deploy.children import ENDING, at_end_signals
from examples.demo_run import Run, Task
from examples.demo_show import Screen
from streams.settings import Settings


@click.command()
@click.option("--speed", type=click.FloatRange(0.1, 1000), default=20.0, show_default=True, help="Times the pace.")
@click.option("--keep", is_flag=True, help="Leave the broker running, with all topics in it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def demo(speed: float, keep: bool, as_json: bool) -> None:
    """Replay 40 recordings through Kafka, classify them as they come, and check every event.

    Exit status 0 only if every expected event came exactly once and equals the offline run's.

    Example: kymo demo --speed 20
    """
    screen = Screen(as_json)
    with _interruptible():
        result = run_demo(speed, screen, keep=keep)
    screen.result(result)
    if keep:
        where = result["broker"]
        click.echo(f"broker at {where['address']}; stop it: kymo broker stop --data-dir {where['data_dir']}", err=True)
    if not result["ok"]:
        sys.exit(1)


def run_demo(speed: float, screen: Screen, *, keep: bool = False) -> dict[str, Any]:
    """The whole demo; leaves nothing running and no file, unless told to keep the broker."""
    from deploy import broker

    started = time.perf_counter()
    user = Settings.from_env()
    home = Path(tempfile.mkdtemp(prefix="kymo-demo-"))
    kept = False
    try:
        screen.step(f"starting Kafka in {home}")
        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(Task.load, user.home)  # takes a processor while Kafka starts on another
            info = broker.start(home / "broker", jars_dir=user.home / "kafka")
            task = loading.result()
        # Nothing of the user's own deployment is used: not its broker, its prefix, nor its security.
        settings = Settings(brokers=info.bootstrap, home=home, metrics_port=0)
        run = Run(task, settings, speed, screen)
        run.online()
        screen.step("reading the topics back, and classifying the same recordings without a broker")
        result = run.judge()
        result["seconds"]["total"] = round(time.perf_counter() - started, 2)
        if keep:
            result["broker"] = {"address": info.bootstrap, "data_dir": str(info.data_dir)}
        kept = keep
        return result
    finally:
        if not kept:
            broker.stop(home / "broker", timeout_s=10.0)
            shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and a closed terminal end the demo as Ctrl-C does: everything is cleared away."""

    def interrupt(*_: object) -> None:
        for number in ENDING:  # clearing away takes seconds; a second Ctrl-C must not break it off
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    with at_end_signals(interrupt):
        yield
