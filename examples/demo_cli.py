"""The verb ``demo``. In: options. Out: what :mod:`kymo.examples.demo` found; exit status 0 only if all is well."""

from __future__ import annotations

import sys

import click


@click.command()
@click.option("--speed", type=click.FloatRange(0.1, 1000), default=20.0, show_default=True, help="Times the pace.")
@click.option("--keep", is_flag=True, help="Leave the broker running, with all topics in it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def demo(speed: float, keep: bool, as_json: bool) -> None:
    """Replay 40 recordings through Kafka, classify them as they come, and check every event.

    Exit status 0 only if every expected event came exactly once and equals the offline run's.

    Example: kymo demo --speed 20
    """
    from kymo.examples.demo import Screen, interruptible, run_demo

    screen = Screen(as_json)
    with interruptible():
        result = run_demo(speed, screen, keep=keep)
    screen.result(result)
    if keep:
        where = result["broker"]
        click.echo(f"broker at {where['address']}; stop it: kymo broker stop --data-dir {where['data_dir']}", err=True)
    if not result["ok"]:
        sys.exit(1)
