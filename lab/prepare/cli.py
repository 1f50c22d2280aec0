"""``kymo prepare``. In: raw recordings as a laboratory or a phone keeps them, or a plan. Out: files that recipes read, and a report."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kymo.lab.output import progress_bar, writing
from kymo.lab.prepare import FEET, FORMATS, UNITS
from kymo.streams.errors import KymoError, SourceError

if TYPE_CHECKING:
    from kymo.lab.prepare.running import RunningReport
    from kymo.processors.recipe.load import Recipe

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_SURFACE = click.Choice(["treadmill", "overground"])


@click.group("prepare")
def prepare() -> None:
    """Make raw recordings ready for a recipe, or make synthetic ones.

    Example: kymo prepare running Raw/ running/
    """


@prepare.command("running")
@click.argument("raw", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--subject", "subjects", multiple=True, metavar="S", help="Only these; may be repeated.")
@click.option("--trial", "trials", multiple=True, metavar="T", help="Only these; may be repeated.")
@click.option("--speed", "speeds", multiple=True, metavar="M/S", help="Only these, such as 2.5; may be repeated.")
@click.option("--surface", "surfaces", multiple=True, type=_SURFACE, help="Only this one; may be repeated.")
@click.option("--feet", type=click.Choice(FEET), default="auto", show_default=True, help="Which feet a session holds.")
@click.option("--format", "formats", multiple=True, type=click.Choice(FORMATS), help="May be repeated; else all three.")
@click.option("--recipe", default="running", show_default=True, help="What the windows of tfrecords are.")
@click.option("--whole", is_flag=True, help="Keep all rows where no column `usabledata` marks the steady part.")
@click.option(
    "--overview", type=click.Path(path_type=Path, dir_okay=False), help="CSV of 10 km results, by subject_id."
)
@click.option("--skip-bad", is_flag=True, help="List files that cannot be read in the report, and go on.")
@click.option("--force", is_flag=True, help="Replace OUT/Prepared.")
@_JSON
def running(raw: Path, out: Path, recipe: str, force: bool, as_json: bool, **choice: Any) -> None:
    """Clean RAW/SENSOR001, … and write OUT/Prepared: csv, parquet, tfrecords.

    Both feet come onto one clock; treadmill and overground runs into folders of their own. What lies outside the steady part is
    left out. report.txt lists every repair by file and row.

    Example: kymo prepare running Raw/ running/ --surface treadmill --speed 2.5
    """
    from kymo.lab.prepare.running import Selection, prepare_running, write_own_recipe
    from kymo.processors.recipe.load import load_recipe

    formats = choice.pop("formats") or FORMATS
    target, loaded, overview = out / "Prepared", load_recipe(recipe), choice.pop("overview")
    if force and (target / "report.json").is_file():
        shutil.rmtree(target)
    with progress_bar("reading") as progress:
        sources = ("csv", *formats) if formats == ("tfrecords",) else formats
        report = prepare_running(raw, out, Selection(**choice), sources, progress, overview)
    own = write_own_recipe(target, loaded, report)
    windows: dict[str, int | str] = {}
    if "tfrecords" in formats:
        windows = _export(target, own, "csv" if "csv" in sources else "parquet")
    if as_json:
        click.echo(json.dumps({"path": str(target), **report.totals(), "tfrecords": windows, "recipe": str(own.path)}))
    else:
        _print(report, target, windows)
        click.echo(f"next      kymo train {own.path} --data {target / next(s for s in sources if s != 'tfrecords')}")
    if windows and all(isinstance(count, str) for count in windows.values()):
        raise SourceError(f"no TFRecords could be written, the rest is there; {next(iter(windows.values()))}", target)


def _export(target: Path, recipe: Recipe, source: str) -> dict[str, int | str]:
    """Windows of each surface as TFRecords, a file a subject: how many, or why there are none."""
    from kymo.models.data.cache import build_dataset
    from kymo.models.data.export import export_dataset
    from kymo.models.data.samples import split_chain

    counts: dict[str, int | str] = {}
    for folder in sorted(path for path in (target / source).iterdir() if path.is_dir()):
        try:
            dataset = build_dataset((folder,), recipe, split_chain(recipe.chain)[0], unlabelled=True)
            export_dataset(recipe, dataset, "tfrecord", target / "tfrecords" / folder.name, by_subject=True)
            counts[folder.name] = len(dataset.examples) + len(dataset.unlabelled)
        except KymoError as error:
            counts[folder.name] = str(error)
    return counts


def _print(report: RunningReport, target: Path, windows: dict[str, int | str]) -> None:
    totals = report.totals()
    repairs = ", ".join(f"{count} {kind}" for kind, count in totals["repairs"].items()) or "none"
    click.echo(f"read      {totals['files']} files, {totals['rows']} rows")
    click.echo(f"written   {totals['sessions']} sessions, {totals['samples_written']} samples")
    for surface, count in windows.items():
        click.echo(
            f"tfrecords {surface}: {count} windows" if isinstance(count, int) else f"tfrecords {surface}: {count}"
        )
    steady = sum("steady" in session for session in report.sessions)
    if steady:
        click.echo(f"steady    part of {steady} sessions, found from the signal: look at {target / 'steady'}")
    if report.overview:
        click.echo(f"results   {report.overview}")
    click.echo(f"repairs   {repairs}")
    click.echo(f"left out  {totals['left_out']}, not chosen {totals['not_chosen']}")
    unsure = [s["clock"]["offset_uncertainty_s"] for s in report.sessions if "clock" in s]
    if unsure:
        click.echo(f"clocks    {len(unsure)} pairs, the least certain to ± {1000 * max(unsure):.2f} ms")
    click.echo(f"report    {target / 'report.txt'}")


def _numbers(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> tuple[float, ...]:
    try:
        return tuple(float(text) for text in texts)
    except ValueError:
        raise click.BadParameter(f"{texts[-1]!r}: expected m/s, such as 2.5") from None


@prepare.command("gait")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--subjects", type=int, default=6, show_default=True, help="Runners.")
@click.option("--speed", "speeds", multiple=True, callback=_numbers, metavar="M/S", help="Else 2.5, 3 and 3.5.")
@click.option("--surface", "surfaces", multiple=True, type=_SURFACE, help="Else both.")
@click.option("--trials", type=int, default=1, show_default=True, help="Recordings of each runner, speed and surface.")
@click.option("--run-s", type=float, default=60.0, show_default=True, help="Seconds of running in each.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Same seed, same bytes.")
@click.option("--clean", is_flag=True, help="No faults: one clock, no spikes, gaps, repeated rows.")
@click.option("--no-taps", is_flag=True, help="The sensors are not knocked together.")
@_JSON
def gait(out: Path, clean: bool, no_taps: bool, as_json: bool, **plan: Any) -> None:
    """Make SYNTHETIC recordings of two foot sensors, OUT/Raw and OUT/truth.json.

    They look like running and are none: for trying things out, not for conclusions about people.

    Example: kymo prepare gait synthetic/ --subjects 6 --seed 0
    """
    from kymo.lab.prepare.gait import NO_FAULTS, Faults, GaitPlan, write_gait

    if (out / "Raw").exists():
        raise SourceError("is there already; name another folder", out / "Raw")
    faults = NO_FAULTS if clean else Faults(taps=not no_taps)
    gait_plan = GaitPlan(faults=faults, **{name: value for name, value in plan.items() if value != ()})
    with progress_bar("making") as progress:
        truths = write_gait(out, gait_plan, progress)
    if as_json:
        click.echo(json.dumps({"path": str(out / "Raw"), "files": len(truths), "plan": asdict(gait_plan)}))
        return
    click.echo(f"{out / 'Raw'}: {len(truths)} files of synthetic gait; what is wrong with them: {out / 'truth.json'}")
    click.echo(f"next: kymo prepare running {out / 'Raw'} {out}")


def _pairs(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    if wrong := next((text for text, (a, _, b) in zip(texts, pairs, strict=True) if not a or not b), None):
        raise click.BadParameter(f"{wrong!r}: expected {param.metavar}", ctx, param)
    return {a.strip(): b.strip() for a, _, b in pairs}


def _factors(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, float]:
    try:
        return {name: float(text) for name, text in _pairs(ctx, param, texts).items()}
    except ValueError:
        raise click.BadParameter(f"{', '.join(texts)}: expected {param.metavar} with a number", ctx, param) from None


@prepare.command("phone")
@click.argument("raw", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--key", default="label", show_default=True, help="Name of the question that the STARTs' labels answer.")
@click.option("--label", metavar="CLASS", help="Of marked parts that name none, and of logs without marks.")
@click.option("--time-unit", "unit", type=click.Choice(tuple(UNITS)), help="Of times; else told by size and steps.")
@click.option("--topic", "topics", multiple=True, callback=_pairs, metavar="SENSOR=TOPIC", help="May be repeated.")
@click.option(
    "--scale", multiple=True, callback=_factors, metavar="TOPIC=FACTOR", help="Multiply its values; may be repeated."
)
@click.option("--unit", "units", multiple=True, callback=_pairs, metavar="TOPIC=UNIT", help="Such as mag_raw=µT.")
@_JSON
def phone(raw: Path, out: Path, as_json: bool, **choice: object) -> None:
    """Convert sensor logs of phones, JSON, to MCAP with labels JSON beside it.

    RAW is a file or a folder of them: a list of objects, or one object a line. An object is a row of a sensor ({"sensor":
    "Accelerometer", "time": "1700000000000000000", "x": …} or {"type": "accelerometer", "timestamp": …, "values": […]}), or a mark:
    what lies between {"type": "START", "label": "walking"} and {"type": "STOP"} is labelled.

    Example: kymo prepare phone logs/ walks/ --key activity
    """
    from kymo.lab.prepare.phone import EXPERIMENT, PhoneOptions, convert_phone

    with progress_bar("converting") as progress:
        logs = convert_phone(raw, out, PhoneOptions(**choice), progress)  # type: ignore[arg-type]
    if as_json:
        recordings = [asdict(log) for log in logs]
        click.echo(json.dumps({"path": str(out), "recordings": recordings}, ensure_ascii=False, default=str))
        return
    for log in logs:
        rows = ", ".join(f"{topic} {count:,}" for topic, count in log.rows.items())
        click.echo(f"{log.mcap}: {rows}; {log.stretches} labelled stretches")
        for note in log.notes:
            click.echo(f"{log.source}: {note}", err=True)
    target = out / EXPERIMENT if any(log.labels for log in logs) else out
    click.echo(f"next: kymo plot {target}")


@prepare.command("physiology")
@click.argument("source", metavar="IN", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--per-second", type=click.IntRange(1, 3), default=1, show_default=True, help="Frames of the 30 Hz video."
)
@click.option("--begin", type=click.IntRange(1), default=1, show_default=True, help="First frame of a clip, from 1.")
@click.option("--end", type=click.IntRange(0), default=0, help="Frame to end before; else as many as each piece has.")
@click.option("--skip", type=click.IntRange(1), default=1, show_default=True, help="Take every N-th of them.")
@click.option("--share", type=click.Choice([100, 80, 50]), default=100, show_default=True, help="Per cent of a clip.")
@click.option("--size", type=click.IntRange(0), default=0, help="Pixels of a side in clips.mcap; else the video's own.")
@click.option("--videos/--no-videos", default=True, help="Whether pieces are written as videos, too.")
@click.option("--shift", type=int, default=0, help="A video's number less its sheet's: 3 if P01's is 04.mp4.")
@_JSON
def physiology(source: Path, out: Path, as_json: bool, **plan: Any) -> None:
    """Cut videos nn.mp4 into the pieces that Pnn.xlsx name, and their frames into folders and tables.

    OUT/clips1.mcap is what recipes read: a session a clip, with its genre and person.

    Example: kymo prepare physiology physio/ clips/ --size 64
    """
    from kymo.lab.prepare.physiology import ClipPlan, prepare_physiology, words

    with progress_bar("cutting") as progress:
        facts = prepare_physiology(source, out, ClipPlan(**plan), progress)
    for note in [] if as_json else facts["notes"]:
        click.echo(f"note: {note}", err=True)
    click.echo(json.dumps(facts, ensure_ascii=False) if as_json else words(facts))


@prepare.command("clocks")
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@click.option("--recipe", "recipe_name", help="Says which inputs there are; the others are put onto its grid's clock.")
@click.option(
    "--within",
    "within_s",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
    help="Offsets to look for, s.",
)
@click.option("--write", is_flag=True, help="Put what is sure into the recipe's file.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="X.png, a picture of how they fit.")
@_JSON
def clock_offsets(
    paths: tuple[str, ...], recipe_name: str | None, within_s: float, write: bool, out: Path | None, as_json: bool
) -> None:
    """Find how far apart clocks are that were never set together.

    By knocks that all sensors felt (hold them together and knock five times, unevenly), or by what moves in all of them. The first
    PATH, or the grid of the recipe, is the reference. What is not sure is said, and the exit status is 1.

    Example: kymo prepare clocks chest.csv wrist.csv --recipe stress --write
    """
    from kymo.lab.prepare.offsets import common_offsets, find_offsets, read_sessions, write_offsets
    from kymo.processors.recipe.load import load_recipe

    if write and not recipe_name:
        raise click.UsageError("--write puts offset_ms into a recipe; say which with --recipe")
    if out is not None and out.suffix.lower() != ".png":
        raise click.BadParameter(f"{out}: expected a name that ends in .png", param_hint="--out")
    recipe = load_recipe(recipe_name) if recipe_name else None
    sessions = read_sessions(paths, recipe)
    with progress_bar("comparing") as progress:
        offsets = find_offsets(sessions, recipe.join.grid if recipe and recipe.join else "", within_s, progress)
    common = common_offsets(offsets, recipe)
    sure = {stream: offset for stream, offset in common.items() if isinstance(offset, float)}
    if as_json:
        found = [offset.to_json() for offset in offsets]
        click.echo(json.dumps({"offsets": found, "offset_ms": common}, ensure_ascii=False))
    else:
        for offset in offsets:
            click.echo(f"{offset.session}: {offset.stream} to {offset.reference}: {offset.words}")
            if offset.note:
                click.echo(f"  {offset.note}", err=True)
        for stream, offset_ms in common.items():
            click.echo(f"{stream}: " + (f"offset_ms = {offset_ms:g}" if stream in sure else str(offset_ms)))
    if out is not None:
        from kymo.lab.look.draw import fits_figure

        fits = [
            (f"{o.stream} to {o.reference}", o.alignment.offset_s, o.alignment.curves)
            for o in offsets
            if o.alignment.curves
        ]
        with writing(out):
            out.write_bytes(fits_figure("clocks", fits[:12]).png)
    if write and recipe:
        for change in write_offsets(recipe, sure):
            click.echo(change, err=as_json)
    if len(sure) < len(common):
        unsure = ", ".join(stream for stream in common if stream not in sure)
        raise SourceError(
            f"no offset for {unsure}: knock all sensors together, five times or more and unevenly, and record that too"
        )
