"""``kymo run``. In: a recipe and paths. Out: events as JSON Lines; what was repaired or left out on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import click

from kymo.streams.errors import KymoError
from kymo.streams.events import Event
from kymo.streams.files import whole_file
from kymo.streams.words import grouped

_SHOWN = 20  # lines of one kind on stderr before the rest is only counted


@click.command("run")
@click.argument("recipe", metavar="RECIPE")
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@click.option("--bundle", metavar="V", help="A bundle's folder or name, instead of the recipe's own.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="F", help="Write events to this file.")
@click.option(
    "--write-derived",
    "derived",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="OUT.mcap",
    help="Write the raw streams, each window as the model sees it (a spectrogram, most often), as a picture too, and its class to this "
    "MCAP file.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the summary as JSON (with --out on stdout, else on stderr)."
)
def run_command(
    recipe: str, paths: tuple[str, ...], bundle: str | None, out: Path | None, derived: Path | None, as_json: bool
) -> None:
    """Classify files without a broker: the same events as online, as JSON Lines.

    Example: kymo run basicmotions basicmotions:test --out events.jsonl
    """
    from kymo.models.bundle import check_model, load_bundle
    from kymo.models.fusion import run_fusion
    from kymo.models.predict import Classifier
    from kymo.models.run import Report, check_matched, run
    from kymo.processors.recipe.fusion import load_fusion
    from kymo.processors.recipe.load import load_recipe
    from kymo.streams.readers import read

    fusion = load_fusion(recipe)
    if fusion is not None and (bundle or derived):
        raise KymoError(
            f"recipe `{fusion.name}` fuses the events of others, which their own bundles make; leave --bundle and --write-derived out"
        )
    recipes = fusion.recipes if fusion is not None else (load_recipe(recipe),)
    for loaded in recipes:
        check_model(loaded)
    report, started = Report(), time.perf_counter()
    classifiers = [Classifier.for_recipe(load_bundle(bundle or loaded.name), loaded) for loaded in recipes]
    with contextlib.ExitStack() as stack:
        (loaded, *_), (classifier, *_) = recipes, classifiers
        if fusion is not None:
            events = run_fusion(fusion, classifiers, lambda of: read(paths, fusion.read_options(of)), report)
        elif derived is None:
            events = run(loaded, read(paths, loaded.read_options()), classifier, report=report)
        else:
            from kymo.models.derived import DerivedFile

            seen = stack.enter_context(DerivedFile(derived, classifier))
            events = run(loaded, seen.recordings(read(paths, loaded.read_options())), seen, report=report)
        file = stack.enter_context(_target(out))
        for event in _progress(events, report):
            file.write(event.to_json().decode() + "\n")
    for classifier in classifiers:
        report.counts.update(classifier.counts)
    counts = {name: n for name, n in sorted(report.counts.items()) if n}
    summary = vars(report) | {"counts": counts, "seconds": round(time.perf_counter() - started, 3)}
    if as_json:
        click.echo(json.dumps(summary, ensure_ascii=False), err=out is None or str(out) == "-")
    else:
        _tell([f"recipe: {note}" for loaded in recipes for note in loaded.notes], summary)
    check_matched(fusion or loaded, report)


@contextlib.contextmanager
def _target(out: Path | None) -> Iterator[IO[str]]:
    """Where events go; a file appears under its name only once it is whole."""
    if out is None or str(out) == "-":
        yield sys.stdout
        sys.stdout.flush()
        return
    try:
        with whole_file(out) as unfinished, unfinished.open("w", encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise KymoError(f"{out}: cannot be written ({error.strerror or error})") from None


def _progress(events: Iterable[Event], report: Any) -> Iterator[Event]:
    """The same events, with a line on stderr that counts them where that is a terminal and stdout is not."""
    if not sys.stderr.isatty() or sys.stdout.isatty():
        yield from events
        return
    from rich.console import Console

    with Console(stderr=True).status("reading") as status:
        for event in events:
            yield event
            if report.events % 50 == 1:
                status.update(f"{report.recordings} recordings, {report.events} events")


def _tell(recipe_notes: list[str], summary: dict[str, Any]) -> None:
    repairs = [(session, note) for session, notes in summary["repairs"].items() for note in notes]
    groups = [
        recipe_notes,
        grouped(repairs),
        grouped((name, f"not taken: {why}") for name, why in summary["unmatched"].items()),
        grouped((name, f"no event: {why}") for name, why in summary["silent"].items()),
        grouped(summary["doubts"].items()),
    ]
    for lines in groups:
        for line in lines[:_SHOWN]:
            click.echo(line, err=True)
        if len(lines) > _SHOWN:
            click.echo(f"… and {len(lines) - _SHOWN} more like these", err=True)
    counts = ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in summary["counts"].items())
    click.echo(
        f"{summary['matched']} of {summary['recordings']} recordings taken, {summary['events']} events "
        f"({summary['unknown']} unknown) in {summary['seconds']:.1f} s{'; ' if counts else ''}{counts}",
        err=True,
    )
