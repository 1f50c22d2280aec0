"""The verb ``refresh``. In: a recipe, an archive, files. Out: what came of it, a line or a JSON object a round."""

from __future__ import annotations

import json
import re
import threading
from functools import partial
from pathlib import Path
from typing import Any

import click

from processors.recipe.load import load_recipe
from streams.errors import KymoError
from streams.settings import Settings

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Period(click.ParamType):
    """A time such as ``90s``, ``30m``, ``1h``, ``1d``, in seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", str(value))
        if found is None or not float(found[1]):
            self.fail(f"{value!r}: expected a time such as 90s, 30m, 1h or 1d", param, ctx)
        return float(found[1]) * _UNITS[found[2]]


@click.command()
@click.argument("recipe")
@click.argument("more", nargs=-1, metavar="")
@click.option("--data", "paths", multiple=True, metavar="PATH…", help="Files, folders or URLs with labels.")
@click.option("--archive", type=click.Path(path_type=Path, file_okay=False), help="Folder of archived topics.")
@click.option("--every", type=Period(), metavar="TIME", help="Again and again, such as 1h; else once.")
@click.option(
    "--metric", type=click.Choice(["accuracy", "macro_f1", "window_accuracy"]), default="accuracy", show_default=True
)
@click.option("--epochs", type=click.IntRange(1), help="Most passes over the data.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Of everything that is random.")
@click.option("--only", is_flag=True, help="The recipe's architecture alone; MiniRocket is not fitted beside it.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a round.")
def refresh(recipe: str, more: tuple[str, ...], paths: tuple[str, ...], **chosen: Any) -> None:
    """Train RECIPE on what is archived and labelled by now, and promote the model if it beats the champion.

    A quarter of the sessions is kept from training, the same ones every time; on them the new model must be better by more than
    chance. Running agents take it within seconds. Without --data and --archive the default archive is used.

    Example: kymo refresh running --archive archive --every 1h
    """
    from models.training.cli import progress
    from models.training.refresh import Outcome, alone, champion_of, plan_of, refresh_for_ever, train_behind_gate
    from models.training.request import TrainRequest

    settings, loaded = Settings.from_env(), load_recipe(recipe)
    sources = _sources((*paths, *more), chosen["archive"], settings)
    request = TrainRequest(sources, epochs=chosen["epochs"], seed=chosen["seed"], only=chosen["only"])

    def one_round() -> Outcome:
        with progress() as on_stage:
            return train_behind_gate(loaded, request, settings, on_stage, metric=chosen["metric"])[1]

    def say(outcome: Outcome) -> None:
        click.echo(json.dumps(outcome.to_dict(), ensure_ascii=False) if chosen["as_json"] else outcome.line())

    with alone(loaded.name, settings.home):
        if chosen["every"] is None:
            say(one_round())
            return
        stop = threading.Event()
        wait = lambda: not stop.wait(chosen["every"])  # noqa: E731

        def signature() -> str:
            return plan_of(loaded, sources).signature

        signature()  # what was mistyped ends this at once; what goes wrong later, the next round may do
        champion = partial(champion_of, loaded, settings.home)
        for outcome in refresh_for_ever(loaded, one_round, signature, wait, champion):
            say(outcome)


def _sources(paths: tuple[str, ...], archive: Path | None, settings: Settings) -> tuple[str, ...]:
    if archive is None and not paths:
        from streams.archive.plan import default_folder

        archive = default_folder(settings)
        if not archive.is_dir():
            raise KymoError(f"{archive}: no archive is there; name --data or --archive, or run `kymo archive`")
    return (*([str(archive)] if archive else []), *paths)
