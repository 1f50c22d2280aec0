"""``kymo synth``. In: a motion plan, or how many random ones. Out: synthetic recordings (MCAP), their labels and experiments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from kymo.lab.output import Progress, progress_bar
from kymo.streams.words import many

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("synth")
@click.argument("paths", nargs=-1, required=True, metavar="PLAN.json OUT.mcap | OUT_FOLDER")
@click.option("--labels", type=_FILE, help="Also write the labels, 0, 1 and 2 for none, low and high.")
@click.option("--experiment", type=_FILE, help="Also write the experiment JSON; it needs --labels.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all random numbers.")
@click.option("--random", "count", type=click.IntRange(1), metavar="N", help="Draw N plans into OUT_FOLDER.")
@click.option("--classes", default="none,low,high", show_default=True, help="Of the drawn plans, in equal parts.")
@click.option("--rounds", type=click.IntRange(1), default=4, show_default=True, help="Segments of each class in one.")
@click.option(
    "--rate",
    "rate_hz",
    type=click.FloatRange(0, min_open=True),
    default=100.0,
    show_default=True,
    help="Samples a second.",
)
@click.option(
    "--strengths",
    is_flag=True,
    help="Draw magnetic_distortion as the published plans do, not vectors of 30 % of the field.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def synth(paths: tuple[str, ...], count: int | None, as_json: bool, **options: Any) -> None:
    """Make SYNTHETIC recordings of an IMU with a magnetometer: of a motion plan, or of N random ones.

    Random plans hold as much of each class, and their motion says nothing about it. The same plan and seed give the same
    bytes.

    Example: kymo synth --random 10 --classes none,low,high recordings/
    """
    if len(paths) != (1 if count else 2):
        raise click.UsageError("--random N takes one OUT_FOLDER" if count else "expected PLAN.json and OUT.mcap")
    with progress_bar("writing") as progress:
        facts = _draw(count, Path(paths[0]), options, progress) if count else _make(paths, options, progress)
    for note in facts.get("notes", ()):
        click.echo(f"kymo: {paths[0]}: {note}", err=True)
    if as_json:
        click.echo(json.dumps(facts, ensure_ascii=False))
    elif count:
        click.echo(f"{facts['out']}: {many(count, 'synthetic recording')}, {facts['duration_s']:.0f} s in all")
    else:
        click.echo(f"{facts['out']}: {facts['samples']} samples, {facts['duration_s']:.0f} s, synthetic")


def _make(paths: tuple[str, ...], options: dict[str, Any], progress: Progress) -> dict[str, Any]:
    from kymo.lab.synth.files import synth as write

    plan, out = paths
    if not out.lower().endswith(".mcap"):
        raise click.UsageError(f"{out}: expected a name that ends in .mcap")
    labels, experiment = options["labels"], options["experiment"]
    if experiment and not labels:
        raise click.UsageError("--experiment names the labels: give --labels, too")
    recording = write(plan, out, labels, seed=options["seed"], experiment=experiment, progress=progress)
    beside = {"labels": labels, "experiment": experiment}
    return {
        "out": out,
        **{name: str(path) for name, path in beside.items() if path},
        "seed": recording.seed,
        "samples": len(recording.times_ns),
        "rate_hz": recording.plan.sample_rate,
        "duration_s": len(recording.times_ns) * recording.plan.interval_ns / 1e9,
        "segments": len(recording.plan.segments),
        "notes": list(recording.plan.notes),
    }


def _draw(count: int, folder: Path, options: dict[str, Any], progress: Progress) -> dict[str, Any]:
    from kymo.lab.synth.random_plans import RandomPlans, classes_of, synth_random

    for name in ("labels", "experiment"):
        if options[name]:
            raise click.UsageError(f"--{name} is of one recording; --random writes it beside each")
    classes = classes_of([name.strip() for name in options["classes"].split(",")])
    like = RandomPlans(classes, options["rounds"], rate_hz=options["rate_hz"], strengths=options["strengths"])
    experiments = synth_random(count, folder, like, options["seed"], progress)
    seconds = sum(json.loads(path.read_bytes())["metadata"]["total_duration_s"] for path in experiments)
    return {
        "out": str(folder),
        "seed": options["seed"],
        "classes": list(classes),
        "duration_s": seconds,
        "experiments": [str(path) for path in experiments],
    }
