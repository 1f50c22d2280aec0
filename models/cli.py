"""The verbs ``train`` and ``evaluate``. In: a recipe and data. Out: a bundle; scores for people or as JSON."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from models.bundle import load_bundle
from models.evaluate import UNCLASSIFIED, evaluate
from processors.recipe import load_recipe
from streams.sources import read

_DATA = click.option("--data", "paths", multiple=True, required=True, metavar="PATH…", help="Files, folders or URLs.")
# An option takes one value; what follows it is taken here, so that `--data a.csv b.csv` and shell patterns work.
_MORE = click.argument("more", nargs=-1, metavar="")


@click.command("train")
@click.argument("recipe")
@_MORE
@_DATA
@click.option("--epochs", type=click.IntRange(1), help="Most passes over the data.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Of everything that is random.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder; else the registry.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def train_command(recipe: str, more: tuple[str, ...], paths: tuple[str, ...], as_json: bool, **chosen: Any) -> None:
    """Train RECIPE's model on labelled recordings.

    The model becomes the recipe's current version in the registry, or goes to --out.

    Example: kymo train basicmotions --data basicmotions:train
    """
    from models.train import TrainRequest, train, train_parameters

    loaded = load_recipe(recipe)
    request = TrainRequest((*paths, *more), **chosen)
    total = train_parameters(loaded, request)["epochs"]
    console = Console()
    with ExitStack() as stack:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        bar = stack.enter_context(Progress(*columns, console=Console(stderr=True), transient=True))
        task = bar.add_task("reading", total=total)

        def on_epoch(epoch: dict[str, float]) -> None:
            seen = f", validation {epoch['validation_accuracy']:.1%}" if "validation_accuracy" in epoch else ""
            bar.update(task, completed=epoch["epoch"], description=f"loss {epoch['loss']:.3f}{seen}")

        trained = train(loaded, request, on_epoch)
    if as_json:
        click.echo(
            json.dumps({"bundle": trained.bundle.id, "path": str(trained.bundle.path), "scores": trained.scores})
        )
        return
    for note in trained.notes:
        click.echo(f"note: {note}", err=True)
    if trained.scores:
        console.print("On recordings held out for validation:")
        _print_scores(console, trained.scores)
    click.echo(f"{trained.bundle.id}  {trained.bundle.path}")


@click.command("evaluate")
@click.argument("recipe")
@_MORE
@_DATA
@click.option("--bundle", help="Folder, recipe or recipe@digest; else the recipe's current one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate_command(
    recipe: str, more: tuple[str, ...], paths: tuple[str, ...], bundle: str | None, as_json: bool
) -> None:
    """Score a bundle on labelled recordings.

    A recording counts by the mean of its windows; one without a window counts as an error.

    Example: kymo evaluate basicmotions --data basicmotions:test
    """
    loaded = load_recipe(recipe)
    scores = evaluate(loaded, load_bundle(bundle or loaded.name), read((*paths, *more), loaded.read_options()))
    if as_json:
        click.echo(json.dumps(scores, ensure_ascii=False))
    else:
        _print_scores(Console(), scores)


def _print_scores(console: Console, scores: dict[str, Any]) -> None:
    answers = list(next(iter(scores["confusion"].values())))
    table = Table(
        "truth",
        *answers,
        "recall",
        "precision",
        "F1",
        title=scores.get("bundle"),
        box=box.SIMPLE,
        collapse_padding=True,
        pad_edge=False,
    )
    for truth, row in scores["confusion"].items():
        found = scores["per_class"][truth]
        counts = [str(row[answer]) if row[answer] else "·" for answer in answers]
        table.add_row(truth, *counts, *(f"{found[key]:.3f}" for key in ("recall", "precision", "f1")))
    console.print(table)
    without = f", {scores['unclassified']} {UNCLASSIFIED}" if scores["unclassified"] else ""
    console.print(
        f"{scores['n']} recordings: accuracy {scores['accuracy']:.1%}, macro F1 {scores['macro_f1']:.3f}{without}; "
        f"{scores['windows']} windows: accuracy {scores['window_accuracy']:.1%}"
    )
