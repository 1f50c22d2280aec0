"""``kymo dataset``. In: a recipe and data. Out: its windows as files, or what they are, for people or as JSON."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kymo.streams.words import many

if TYPE_CHECKING:
    from kymo.processors.recipe.load import Recipe

DATA = click.option("--data", "paths", multiple=True, required=True, metavar="PATH…", help="Files, folders or URLs.")
# An option takes one value; what follows it is taken here, so that `--data a.csv b.csv` and shell patterns work.
MORE = click.argument("more", nargs=-1, metavar="")
_EVERY_S = 10.0  # between two lines where there is no terminal
_FORMATS = ("tfrecord", "parquet", "csv")


@click.group("dataset")
def dataset() -> None:
    """The windows that a recipe's model learns from.

    Example: kymo dataset export basicmotions --data basicmotions:train --format parquet --out windows
    """


@dataset.command("export")
@click.argument("recipe")
@MORE
@DATA
@click.option("--format", "fmt", type=click.Choice(_FORMATS), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new folder.")
@click.option("--by", type=click.Choice(("side", "subject")), default="side", show_default=True, help="A file each.")
@click.option("--json", "as_json", is_flag=True, help="Print dataset.json.")
def export(recipe: str, more: tuple[str, ...], paths: tuple[str, ...], by: str, **options: Any) -> None:
    """Write RECIPE's windows as the trainer sees them, a record each, into a new folder.

    A record holds the window (float32), its shape, label, class, session, subject and where it starts and ends. With --by
    subject nothing is split yet, and `kymo train` takes a folder of TFRecords as --data.

    Example: kymo dataset export basicmotions --data basicmotions:train --format tfrecord --out windows
    """
    from kymo.models.data.export import export_dataset
    from kymo.processors.recipe.load import load_recipe

    loaded = load_recipe(recipe)
    with progress() as on_stage:
        dataset = _build(loaded, (*paths, *more), on_stage, by == "subject")
        on_window, written = on_stage("writing", len(dataset.examples)), count(1)
        about = export_dataset(
            loaded,
            dataset,
            options["fmt"],
            options["out"],
            lambda: on_window({"epoch": next(written)}),
            by == "subject",
        )
    if options["as_json"]:
        click.echo(json.dumps(about, ensure_ascii=False))
        return
    sides = ", ".join(f"{sum(counts.values())} {side}" for side, counts in about["windows"].items())
    click.echo(f"{sides} windows of {'x'.join(map(str, about['shape']))}: {options['out']}")


@dataset.command("show")
@click.argument("recipe")
@MORE
@DATA
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(recipe: str, more: tuple[str, ...], paths: tuple[str, ...], as_json: bool) -> None:
    """Count RECIPE's windows, and those that its split and each of its folds hold out, by class; what is known for its heads.

    Example: kymo dataset show basicmotions --data basicmotions:train
    """
    from kymo.models.data.examples import describe, settle_bins
    from kymo.models.data.splits import check_leaks, make_folds, make_split
    from kymo.processors.recipe.load import load_recipe

    loaded = load_recipe(recipe)
    with progress() as on_stage:
        dataset = _build(loaded, (*paths, *more), on_stage)
    loaded = settle_bins(loaded, dataset)
    examples, train = dataset.examples, loaded.train
    split = make_split(examples, train, train.validation, train.seed)
    folds = make_folds(examples, train, train.seed) if train.folds else []
    for sides in (split, *folds):
        check_leaks(examples, sides)
    numbers = {"training": split.training, "validation": split.validation, "left_out": list(split.left_out)}
    counts = {side: _counts(examples, side_numbers, dataset.labels) for side, side_numbers in numbers.items()}
    about = {
        "windows": len(examples),
        "sessions": len({example.session for example in examples}),
        "subjects": len({example.subject for example in examples} - {""}),
        "split": split.kind,
        **counts,
        "folds": [
            {
                "groups": list(fold.validation_groups),
                "validation": _counts(examples, fold.validation, dataset.labels),
            }
            for fold in folds
        ],
        "heads": {head.name: describe(head, examples) for head in loaded.heads},
        "notes": dict(dataset.notes),
    }
    if as_json:
        click.echo(json.dumps(about, ensure_ascii=False))
    else:
        _print(about, dataset.labels, dataset.note_lines())


def _counts(examples: Sequence[Any], numbers: Sequence[int], labels: Sequence[str]) -> dict[str, int]:
    counts = Counter(examples[i].label for i in numbers)
    return {label: counts[label] for label in labels}


def _print(about: dict[str, Any], labels: Sequence[str], notes: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    folds = [fold["validation"] for fold in about["folds"]]
    columns = [about[side] for side in ("training", "validation", "left_out")] + folds
    names = ("training", "validation", "left out", *(f"fold {i}" for i in range(len(folds))))
    table = Table("class", *names, box=None)
    for label in labels:
        table.add_row(label, *(str(counts[label]) for counts in columns))
    console = Console()
    console.print(table)
    console.print(
        f"{about['windows']} windows of {about['sessions']} sessions, {about['subjects']} subjects; "
        f"split by {about['split']}"
    )
    for name, facts in about["heads"].items():
        console.print(
            f"head {name}: " + (", ".join(f"{fact} {value:g}" for fact, value in facts.items()) or "no labels")
        )
    for note in notes:
        console.print(f"note: {note}")


def _build(recipe: Recipe, paths: Sequence[str], on_stage: Callable[..., Any], unlabelled: bool = False) -> Any:
    from kymo.models.data.cache import Reading, build_dataset
    from kymo.models.data.samples import split_chain

    tell = on_stage("reading", 0)
    reading = Reading(lambda recordings, windows: tell({"recordings": recordings, "windows": windows}))
    return build_dataset(paths, recipe, split_chain(recipe.chain)[0], reading=reading, unlabelled=unlabelled)


@contextmanager
def progress() -> Iterator[Callable[[str, int], Callable[[dict[str, float]], None]]]:
    """A bar on stderr, or a line now and then where that is no terminal; what it gives is told each stage, and gives what is told its
    epochs, or how far reading is."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task, last_s = bar.add_task("reading", total=None), [time.monotonic()]

        def say(text: str) -> None:
            last_s[0] = time.monotonic()
            if not console.is_terminal:
                click.echo(f"kymo: {text}", err=True)

        def on_stage(name: str, epochs: int) -> Callable[[dict[str, float]], None]:
            bar.reset(task, total=epochs or None, description=name)
            say(name)

            def on_epoch(epoch: dict[str, float]) -> None:
                of_all = f", {epoch['epoch']:g} of {epochs}" if "epoch" in epoch else ""
                if "windows" in epoch:
                    text = f"{name}: {many(int(epoch['recordings']), 'recording')}, {many(int(epoch['windows']), 'window')}"
                else:
                    accuracy = (
                        f", validation {epoch['validation_accuracy']:.1%}" if "validation_accuracy" in epoch else ""
                    )
                    text = f"{name}: loss {epoch['loss']:.3f}{accuracy}" if "loss" in epoch else name
                bar.update(task, completed=epoch.get("epoch"), description=text)
                if time.monotonic() - last_s[0] > _EVERY_S:
                    say(text + of_all)

            return on_epoch

        yield on_stage
