"""``kymo prepare phone``. In: sensor logs of phones, JSON. Out: MCAP files, labels JSON, an experiment JSON."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from lab.prepare.phone import EXPERIMENT, Converted, PhoneOptions, convert_phone
from lab.prepare.phone_records import UNITS


def _pairs(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    found = [text.partition("=") for text in texts]
    if wrong := next((text for text, (a, _, b) in zip(texts, found, strict=True) if not a or not b), None):
        raise click.BadParameter(f"{wrong!r}: expected {param.metavar}", ctx, param)
    return {a.strip(): b.strip() for a, _, b in found}


def _factors(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, float]:
    try:
        return {name: float(text) for name, text in _pairs(ctx, param, texts).items()}
    except ValueError:
        raise click.BadParameter(f"{', '.join(texts)}: expected {param.metavar} with a number", ctx, param) from None


@click.command("phone")
@click.argument("raw", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--key", default="label", show_default=True, help="Name of the question that the STARTs' labels answer.")
@click.option("--time-unit", "unit", type=click.Choice(tuple(UNITS)), help="Of times; else told by their size.")
@click.option("--topic", "topics", multiple=True, callback=_pairs, metavar="SENSOR=TOPIC", help="May be repeated.")
@click.option(
    "--scale", multiple=True, callback=_factors, metavar="TOPIC=FACTOR", help="Multiply its values; may be repeated."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def phone(raw: Path, out: Path, as_json: bool, **chosen: object) -> None:
    """Convert sensor logs of phones, JSON, to MCAP with labels JSON beside it.

    RAW is a file or a folder of them: a list of objects, or one object a line. An object is a row of a sensor ({"sensor":
    "Accelerometer", "time": "1700000000000000000", "x": …} or {"type": "accelerometer", "timestamp": …, "values": […]}), or a mark:
    what lies between {"type": "START", "label": "walking"} and {"type": "STOP"} is labelled.

    Example: kymo prepare phone logs/ walks/ --key activity
    """
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("converting", total=None)
        options = PhoneOptions(**chosen)  # type: ignore[arg-type]
        made = convert_phone(raw, out, options, lambda done, of: bar.update(task, completed=done, total=of))
    if as_json:
        click.echo(json.dumps({"path": str(out), "recordings": [_facts(one) for one in made]}, ensure_ascii=False))
        return
    for one in made:
        rows = ", ".join(f"{topic} {count:,}" for topic, count in one.rows.items())
        click.echo(f"{one.mcap}: {rows}; {one.stretches} labelled stretches")
        for note in one.notes:
            click.echo(f"{one.source}: {note}", err=True)
    target = out / EXPERIMENT if any(one.labels for one in made) else out
    click.echo(f"next: kymo plot {target}")


def _facts(one: Converted) -> dict[str, object]:
    return {
        "source": str(one.source),
        "mcap": str(one.mcap),
        "labels": str(one.labels) if one.labels else None,
        "rows": dict(one.rows),
        "stretches": one.stretches,
        "notes": list(one.notes),
    }
