"""``kymo inspect`` and ``kymo plot``. In: paths. Out: what files hold, in words or JSON; a page, a picture or a film."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

_KINDS = (".html", ".png", ".mp4", ".gif")
_LABELS = click.Path(path_type=Path, dir_okay=False)


@click.command("inspect")
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each file, one a line.")
def inspect(paths: tuple[str, ...], as_json: bool) -> None:
    """Say what files hold: topics and schemas of MCAP, what Kymo reads from others.

    Any MCAP will do; times are those at which messages were logged. Of other files each recording is told, with its streams,
    labels, and what was repaired, guessed or is doubtful. Folders are searched, for MCAP first. How it looks: kymo plot.

    Example: kymo inspect recording.mcap
    """
    from kymo.lab.look.arrays import SUFFIXES
    from kymo.lab.look.summary import lines_of, lines_of_recording, mcap_summary, recording_facts
    from kymo.streams.errors import SourceError
    from kymo.streams.readers import read
    from kymo.streams.readers.files import find

    gap, others = "", list[str]()
    for path in paths:
        try:
            files = list(find([path], in_folders=SUFFIXES))
        except SourceError:
            files = []
        if not files or files[0].suffix not in SUFFIXES:
            others.append(path)
        for file in files if path not in others else ():
            summary = mcap_summary(file.system.unstrip_protocol(file.path))
            text = json.dumps(asdict(summary), ensure_ascii=False) if as_json else gap + "\n".join(lines_of(summary))
            click.echo(text)
            gap = "\n"
    for recording in read(others, tell=lambda line: click.echo(line, err=True)) if others else ():
        facts = recording_facts(recording)
        click.echo(
            json.dumps(facts, ensure_ascii=False) if as_json else gap + "\n".join(lines_of_recording(recording, facts))
        )
        gap = "\n"


@click.command("plot")
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@click.option("--recipe", help="Says which columns, units and labels to read.")
@click.option(
    "--labels", type=_LABELS, help="Labels JSON of the one recording, where it is not X.labels.json beside it."
)
@click.option("--key", help="Member of `metadata` in the labels JSON whose classes are to be shown; else all.")
@click.option("--session", help="Only this one; else the first twenty.")
@click.option("--stream", "streams", multiple=True, help="Only this stream (again for more).")
@click.option("--start", "start_s", type=click.FloatRange(0), default=0.0, help="Seconds to leave out at the start.")
@click.option("--duration", "duration_s", type=click.FloatRange(0, min_open=True), help="Seconds to show.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="X.html; X.png of one session; X.mp4 or X.gif."
)
@click.option("--fps", "film_hz", type=click.FloatRange(0, min_open=True), help="Frames a second of X.mp4 or X.gif.")
@click.option("--json", "as_json", is_flag=True, help="Print what is shown as JSON.")
def plot(
    paths: tuple[str, ...],
    recipe: str | None,
    as_json: bool,
    out: Path | None,
    labels: Path | None,
    key: str | None,
    **part: Any,
) -> None:
    """Draw recordings: their streams over time, labels shaded.

    Writes NAME.html into the current folder, or whatever --out says: a page that can be zoomed and read with the pointer. All
    streams of a recording are drawn, of an MCAP file all topics. X.mp4 and X.gif show the frames of one session: those that
    it holds, or those that the recipe's steps make, such as `animation`; by default as fast as they were recorded.

    Example: kymo plot recording.csv --start 60 --duration 10 --out part.png
    """
    from kymo.lab.look.plot import Excerpt, plot_files

    if out is not None and out.suffix.lower() not in _KINDS:
        raise click.BadParameter(f"{out}: expected a name that ends in {' or '.join(_KINDS)}", param_hint="--out")
    target, sessions = plot_files(paths, recipe, out, labels, key, Excerpt(**part))
    click.echo(json.dumps({"out": str(target), "sessions": sessions}, ensure_ascii=False) if as_json else str(target))
