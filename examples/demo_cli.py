"""The verb ``demo``. In: options. Out: what :mod:`kymo.examples.demo` found; exit status 0 only if all is well."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from kymo.streams.events import Event


@click.command()
@click.option("--speed", type=click.FloatRange(0.1, 1000), default=20.0, show_default=True, help="Times the pace.")
@click.option("--keep", is_flag=True, help="Leave the broker running, with all topics in it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def demo(speed: float, keep: bool, as_json: bool) -> None:
    """Replay 40 recordings through Kafka, classify them as they come, and check every event.

    Exit status 0 only if every expected event came exactly once and equals the offline run's.

    Example: kymo demo --speed 20
    """
    from kymo.examples.demo import interruptible, run_demo

    with interruptible():
        if as_json:
            result = run_demo(speed, lambda _: None, lambda *_: None, keep=keep)
        else:
            result = run_demo(speed, lambda text: click.secho(text, dim=True), _show, keep=keep)
    if as_json:
        click.echo(json.dumps(result, ensure_ascii=False, allow_nan=False))
    else:
        _print(result)
    if keep:
        where = result["broker"]
        click.echo(f"broker at {where['address']}; stop it: kymo broker stop --data-dir {where['data_dir']}", err=True)
    if not result["ok"]:
        sys.exit(1)


def _show(event: Event, truth: str | None, start_ns: int) -> None:
    """Show an event, its times counted from its session's start, and whether it is right."""
    begin, end = ((at - start_ns) / 1e9 for at in (event.start_ns, event.end_ns))
    label = click.style(f"{event.label:<10}", bold=True)
    right = click.style("✓", fg="green") if event.label == truth else click.style("✗", fg="red")
    words = f"{event.session}  {begin:5.1f} to {end:4.1f} s  {label}{event.probability:6.1%}"
    click.echo(f"{words}  truth {truth or 'unlabelled':<10} {right}")


def _print(result: dict[str, Any]) -> None:
    sent, out, scores = result["in"], result["out"], result["scores"]
    wrong, unknown = scores["n"] - round(scores["accuracy"] * scores["n"]), scores["unknown"]
    doubt = f"; {unknown} said `unknown`, below min_probability" if unknown else ""
    rows = {
        "in": "{sessions} recordings, {samples} samples of {channels} channels in {chunks} chunks".format(**sent),
        "pace": "{speed_requested:g} times the recorded one asked for, {speed_reached:.1f} reached".format(**sent),
        "out": "{events} events of {expected} windows, {repeated} twice, {missing} missing".format(**out),
        "accuracy": f"{scores['accuracy']:.1%} of {scores['n']} recordings ({wrong} wrong)\n"
        f"{scores['window_accuracy']:.1%} of {scores['windows']} windows, by their most probable class{doubt}",
        "latency": f"{_latency(result['latency_ms']['consumer'])}, from a window's last chunk to its event in a consumer\n"
        f"{_latency(result['latency_ms']['record'])}, from a window's last chunk to its event's record",
        "offline": f"{result['offline']['events']} events, {out['different']} of the online ones differ",
        "model": result["bundle"],
        "time": ", ".join(f"{name.replace('_', ' ')} {value:.1f} s" for name, value in result["seconds"].items()),
    }
    click.echo()
    for name, text in rows.items():
        click.echo(click.style(f"{name:<10}", bold=True) + text.replace("\n", "\n" + " " * 10))
    click.echo()
    for line in result["complaints"]:
        click.secho(f"✗ {line}", fg="red")
    if result["ok"]:
        click.secho(f"✓ all {out['expected']} events came exactly once, and they equal the offline run's", fg="green")


def _latency(percentiles: dict[str, float] | None) -> str:
    return "p50 {p50:.1f}, p95 {p95:.1f}, p99 {p99:.1f} ms".format(**percentiles) if percentiles else "none measured"
